//! Models by short names, from the file `catalogue.yaml` that is compiled in.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use textnlp_inference::cpu::Quant;
use textnlp_inference::family::Architecture;

use crate::inspect::{Footprints, Format, Summary};
use crate::source::Source;

/// The models that have short names.
#[derive(Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// One model of the catalogue.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The short name.
    pub name: String,
    /// Where it comes from; never another catalogue name.
    #[serde(serialize_with = "as_text")]
    pub source: Source,
    /// What it is good for.
    pub about: String,
    /// The model family.
    pub family: String,
    /// The licence of the weights, as an SPDX identifier.
    pub license: String,
    /// Number of parameters.
    pub parameters: u64,
    /// The longest sequence in tokens.
    pub context: u64,
    /// What memory needs are computed from.
    pub shape: Shape,
    /// The memory it is promised to run in.
    pub minimum_memory_gb: f64,
}

/// The sizes that decide about memory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Number of layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub width: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Number of tokens known.
    pub vocab: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    models: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    source: String,
    about: String,
    family: String,
    license: String,
    parameters: u64,
    context: u64,
    shape: Shape,
    minimum_memory_gb: f64,
}

fn as_text<S: serde::Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(source)
}

static EMBEDDED: LazyLock<Catalogue> = LazyLock::new(|| {
    Catalogue::parse(include_str!("../catalogue.yaml")).expect("the embedded catalogue is checked by a test")
});

impl Catalogue {
    /// The catalogue that is compiled in.
    pub fn embedded() -> &'static Catalogue {
        &EMBEDDED
    }

    /// The model of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Every model, as the file orders them.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The name that was probably meant.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        let close = |entry: &&Entry| distance(&entry.name, name) <= 1 + entry.name.len() / 5;
        self.entries.iter().filter(close).min_by_key(|e| distance(&e.name, name)).map(|e| e.name.as_str())
    }

    fn parse(text: &str) -> Result<Catalogue, String> {
        let file: File = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let entries = file.models.into_iter().map(|line| {
            let source = match line.source.parse().map_err(|error| format!("{}: {error}", line.name))? {
                Source::Catalogue(other) => return Err(format!("{} refers to the name {other}", line.name)),
                source => source,
            };
            Ok(Entry {
                name: line.name,
                source,
                about: line.about,
                family: line.family,
                license: line.license,
                parameters: line.parameters,
                context: line.context,
                shape: line.shape,
                minimum_memory_gb: line.minimum_memory_gb,
            })
        });
        Ok(Catalogue { entries: entries.collect::<Result<_, _>>()? })
    }
}

impl Entry {
    /// What the weights will be once pulled, so that [`fit`](fn@crate::fit) can answer before anything is pulled.
    pub fn summary(&self) -> Summary {
        Summary {
            family: self.family.clone(),
            format: Format::Safetensors,
            parameters: self.parameters,
            dtype: "f16".to_owned(),
            weights_bytes: self.parameters * 2,
            context: self.context,
            layers: self.shape.layers,
            width: self.shape.width,
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            vocab: self.shape.vocab,
            files: Vec::new(),
            bytes: self.parameters * 2,
            digest: None,
            license: Some(self.license.clone()),
            chat_template: None,
            embeddings: false,
            quantization_error: None,
            footprints: self.footprints(),
        }
    }

    /// What the shape and the number of parameters tell of its memory: which family it is changes little.
    fn footprints(&self) -> Footprints {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let shape = Architecture {
            family: self.family.clone(),
            layers: size(self.shape.layers),
            width: size(self.shape.width),
            heads: size(self.shape.heads),
            kv_heads: size(self.shape.kv_heads),
            head_dim: size(self.shape.head_dim),
            ffn: 4 * size(self.shape.width),
            vocab: size(self.shape.vocab),
            context: size(self.context),
            ..Architecture::plain()
        };
        Footprints::estimate(&shape, self.parameters, Quant::F16)
    }
}

/// Levenshtein's distance; names are short, so the plain table does.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_catalogue_parses_and_its_names_are_unique() {
        let catalogue = Catalogue::parse(include_str!("../catalogue.yaml")).unwrap();
        let mut names: Vec<_> = catalogue.entries().map(|e| e.name.as_str()).collect();
        for name in ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "smollm2-135m-instruct", "textnlp-tiny"] {
            assert!(names.contains(&name), "{name}");
            assert_eq!(name.parse::<Source>().unwrap(), Source::Catalogue(name.to_owned()));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), catalogue.entries().count());
    }

    /// The figures are written by hand; the shapes must add up to the parameters.
    #[test]
    fn catalogue_parameter_counts_match_the_shapes() {
        for entry in Catalogue::embedded().entries().filter(|e| e.name != "textnlp-tiny") {
            let Shape { layers, width, heads, kv_heads, head_dim, vocab } = entry.shape;
            assert_eq!(heads * head_dim, width, "{}", entry.name);
            if entry.family == "gpt2" {
                let block = 12 * width * width + 13 * width;
                assert_eq!(
                    entry.parameters,
                    vocab * width + entry.context * width + layers * block + 2 * width,
                    "{}",
                    entry.name
                );
            } else {
                // What is left after embeddings and attention must be the three feed-forward matrices and the norms.
                let tables = if entry.name.starts_with("tinyllama") { 2 } else { 1 };
                let attention = 2 * width * width + 2 * width * kv_heads * head_dim;
                let rest = entry.parameters - tables * vocab * width - width - layers * (attention + 2 * width);
                assert_eq!(rest % (3 * width * layers), 0, "{}", entry.name);
            }
        }
    }

    #[test]
    fn catalogue_errors_are_named() {
        assert!(Catalogue::parse("models: [{ name: x }]").unwrap_err().contains("missing field"));
        let text = include_str!("../catalogue.yaml").replacen("source: bundled", "source: gpt2", 1);
        assert!(Catalogue::parse(&text).unwrap_err().contains("refers to the name gpt2"));
    }
}
