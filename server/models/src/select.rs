//! Which files of a repository or folder make up the model.

use crate::error::{Error, Result};
use crate::local;

/// Chooses among `names` (paths inside the repository). Only names at the top count, unless one file was asked for by
/// its path. `what` is the source as text.
pub(crate) fn choose<'a>(what: &str, file: Option<&str>, names: &[&'a str]) -> Result<Vec<&'a str>> {
    if let Some(file) = file {
        return match names.iter().find(|name| **name == file) {
            Some(name) => Ok(vec![name]),
            None => {
                let others: Vec<_> = names.iter().filter(|n| n.ends_with(".gguf")).take(20).copied().collect();
                let why = match others.as_slice() {
                    [] => "there is no .gguf file".to_owned(),
                    others => format!("there are {}", others.join(", ")),
                };
                Err(Error::NotFound {
                    what: format!("{file} in {what}"),
                    why,
                    hint: "choose one of its files".to_owned(),
                })
            }
        };
    }
    let top: Vec<&str> = names.iter().copied().filter(|name| local::safe_name(name)).collect();
    let weights = safetensors(&top);
    if !weights.is_empty() && top.contains(&"config.json") {
        let pooling = names.iter().copied().filter(|name| top.contains(&"modules.json") && local::is_pooling(name));
        return Ok(weights.into_iter().chain(companions(&top)).chain(pooling).collect());
    }
    let ggufs: Vec<&str> =
        names.iter().copied().filter(|name| name.ends_with(".gguf") && local::safe_relative(name)).collect();
    let no = |why: String, hint: String| Err(Error::Unusable { what: what.to_owned(), why, hint });
    match ggufs.as_slice() {
        [one] => Ok(vec![one]),
        [] => no(
            "there is neither config.json with .safetensors files nor a .gguf file".to_owned(),
            "pickled weights (.bin, .pt) are not supported, because they can run code; use a model with safetensors"
                .to_owned(),
        ),
        many => no(
            format!(
                "there are {} .gguf files: {}",
                many.len(),
                many.iter().take(20).copied().collect::<Vec<_>>().join(", ")
            ),
            format!("choose one: {}/{}", what.trim_end_matches('/'), many[0]),
        ),
    }
}

/// The weights. Some repositories carry the same weights whole, in shards and under other tools' names.
fn safetensors<'a>(top: &[&'a str]) -> Vec<&'a str> {
    const INDEX: &str = "model.safetensors.index.json";
    if let Some(whole) = top.iter().find(|name| **name == "model.safetensors") {
        return vec![whole];
    }
    let all = top.iter().copied().filter(|name| name.ends_with(".safetensors"));
    match top.iter().find(|name| **name == INDEX) {
        Some(index) => {
            let shards = all.filter(|name| name.starts_with("model-") && name.contains("-of-"));
            shards.chain([*index]).collect()
        }
        None => all.collect(),
    }
}

/// What the weights need beside them.
fn companions<'a>(top: &[&'a str]) -> impl Iterator<Item = &'a str> {
    let ready_made = top.contains(&"tokenizer.json");
    top.iter().copied().filter(move |name| match *name {
        "config.json" | "generation_config.json" => true,
        // How an encoder's rows become one vector.
        "modules.json" | "config_sentence_transformers.json" => true,
        // What the tokenizer is made from when it is not there ready-made.
        "vocab.json" | "merges.txt" | "special_tokens_map.json" | "added_tokens.json" => !ready_made,
        name => {
            (name.starts_with("tokenizer") && name.ends_with(".json"))
                || (name.starts_with("sentence_") && name.ends_with("_config.json"))
                || (name.starts_with("chat_template") && (name.ends_with(".jinja") || name.ends_with(".json")))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: Option<&str>, names: &[&str], expect: &str) {
        let found = match choose("hf:a/b", file, names) {
            Ok(mut names) => {
                names.sort_unstable();
                names.join(" ")
            }
            Err(error) => format!("no: {error}"),
        };
        assert_eq!(found, expect);
    }

    #[test]
    fn only_files_a_model_needs_are_selected() {
        let gpt2 = [
            "README.md",
            "config.json",
            "merges.txt",
            "vocab.json",
            "model.safetensors",
            "pytorch_model.bin",
            "64.tflite",
            "onnx/config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            ".gitattributes",
        ];
        check(None, &gpt2, "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json");
        let slow = ["config.json", "merges.txt", "vocab.json", "model.safetensors", "x.gguf"];
        check(None, &slow, "config.json merges.txt model.safetensors vocab.json");
        let shards = [
            "config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
            "model-1-of-2.safetensors",
            "model-2-of-2.safetensors",
            "consolidated.safetensors",
        ];
        let expect = "chat_template.jinja config.json model-1-of-2.safetensors model-2-of-2.safetensors model.safetensors.index.json tokenizer.json";
        check(None, &shards, expect);
        let encoder = [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "onnx/1_Pooling/config.json",
            "vocab.txt",
        ];
        let expect =
            "1_Pooling/config.json config.json model.safetensors modules.json sentence_bert_config.json tokenizer.json";
        check(None, &encoder, expect);
        check(None, &["README.md", "x.gguf"], "x.gguf");
        check(Some("q/x.gguf"), &["q/x.gguf", "q/y.gguf"], "q/x.gguf");
    }

    #[test]
    fn unselectable_repositories_are_explained() {
        check(None, &["x.gguf", "y.gguf"], "no: hf:a/b cannot be used: there are 2 .gguf files: x.gguf, y.gguf");
        let neither =
            "no: hf:a/b cannot be used: there is neither config.json with .safetensors files nor a .gguf file";
        check(None, &["config.json", "pytorch_model.bin"], neither);
        check(None, &["../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a/.hidden.gguf"], neither);
        check(Some("z.gguf"), &["x.gguf"], "no: z.gguf in hf:a/b does not exist: there are x.gguf");
    }
}
