//! What a cloud that runs the servers as containers passes to each: variables, because there are no files.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::Spec;
use textnlp_provider::component::{InferenceEndpoint, Model};

use crate::image::PUSH_IT;

/// The most bytes of one variable: <https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html>.
const MOST_OF_VALUE: usize = 1024;

/// How a cloud runs containers.
pub struct ContainerHost {
    /// What messages call it.
    pub name: &'static str,
    /// The variables that the server reads its configuration and the list of its models from, each in numbered pieces.
    pub server: &'static str,
    /// See `server`.
    pub models: &'static str,
    /// The most bytes of all variables with their names.
    pub most: usize,
    /// The address that the server listens on.
    pub listen: &'static str,
    /// A folder that the server may write.
    pub folder: &'static str,
    /// The longest time from SIGTERM to the end of a container, in seconds.
    pub drain_seconds: u64,
    /// The schemes of buckets that containers read with the account they run as.
    pub bucket: &'static str,
}

/// A model that is not part of the program.
pub fn is_fetched(model: &Model) -> bool {
    model.source != "bundled"
}

/// An image by its digest alone: a cloud takes a tag or a digest, and not both.
pub fn by_digest(image: &str) -> String {
    image.split_once('@').map_or_else(
        || image.to_owned(),
        |(tagged, digest)| {
            // The port of a registry is no tag.
            let name = tagged.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(tagged, |(name, _)| name);
            format!("{name}@{digest}")
        },
    )
}

/// Why a container cannot be made: the setting, the cause and the fix.
type ContainerProblem = (&'static str, String, String);

impl ContainerHost {
    /// What a container runs: its image by the digest, and its variables. `registry` is an address to push images to.
    pub fn container(
        &self,
        endpoint: &InferenceEndpoint,
        more: BTreeMap<String, String>,
        registry: &str,
    ) -> Result<(String, BTreeMap<String, String>), Vec<ContainerProblem>> {
        let Some(image) = &endpoint.image else {
            let cause = "there is no image: `registry.url` is not set, or none can be made of this program";
            let fix = format!("write `registry: {{ url: {registry} }}`; or {PUSH_IT}");
            return Err(vec![("image", cause.to_owned(), fix)]);
        };
        let variables = self.variables(endpoint, more);
        let variables = variables
            .map_err(|problems| problems.into_iter().map(|(cause, fix)| ("models", cause, fix)).collect::<Vec<_>>())?;
        Ok((by_digest(image), variables))
    }

    /// The variables of a container with `more` of them, or what is wrong with its models: causes with their fixes.
    pub fn variables(
        &self,
        endpoint: &InferenceEndpoint,
        more: BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Vec<(String, String)>> {
        let mut problems = Vec::new();
        let mut listed = Vec::new();
        let mut paths = BTreeMap::new();
        for (place, model) in endpoint.models.iter().enumerate() {
            if model.source.starts_with("file:") {
                let cause = format!("model `{}` is on this machine, which {} does not reach", model.name, self.name);
                let fix = format!("use a source that it reaches: `bundled`, `{}:`, `hf:`, `https:`", self.bucket);
                problems.push((cause, fix));
            }
            if model.source.starts_with("bucket:") {
                let cause =
                    format!("model `{}` is in the bucket of the site, which may be an existing one", model.name);
                problems.push((cause, format!("write its address: `{}://BUCKET/PATH`", self.bucket)));
            }
            let Some(digest) = &model.digest else {
                let cause = format!("model `{}` has no digest, so it cannot be verified", model.name);
                problems.push((cause, "add `digest: sha256:…`; `textnlp-deploy model pull` prints it".to_owned()));
                continue;
            };
            let path = format!("{}/models/{place}", self.folder);
            listed.push(json!({ "name": model.name, "source": model.source, "digest": digest, "path": path }));
            paths.insert(model.name.as_str(), path);
        }
        let delivery = json!({
            "cache": format!("{}/cache", self.folder), "max_cache_bytes": endpoint.max_cache_bytes, "models": listed,
        });
        let config = self.configured(endpoint.config.clone(), &paths);
        let mut variables = more;
        for (name, document) in [(self.server, config), (self.models, delivery)] {
            let text = Spec::of(&document).to_string();
            let pieces = pieces(&text).into_iter().enumerate();
            variables.extend(pieces.map(|(number, piece)| (format!("{name}_{number}"), piece)));
        }
        let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > self.most {
            let (name, most) = (self.name, self.most);
            let cause = format!("the configuration has {bytes} bytes, and {name} passes {most} to a container");
            problems.push((cause, "serve fewer models with one endpoint".to_owned()));
        }
        if problems.is_empty() { Ok(variables) } else { Err(problems) }
    }

    /// The server's configuration with the settings that only a container has. The server itself turns off what is not for
    /// there.
    fn configured(&self, mut config: Value, paths: &BTreeMap<&str, String>) -> Value {
        let tree = &mut config["textnlp"];
        tree["api"]["listen"] = json!(self.listen);
        if let Some(drain) = tree["api"]["drain_seconds"].as_u64() {
            tree["api"]["drain_seconds"] = json!(drain.min(self.drain_seconds));
        }
        tree["models"]["cache_dir"] = json!(self.folder);
        tree["database"]["url"] = json!(format!("sqlite://{}/textnlp.db", self.folder));
        for model in tree["models"]["serve"].as_array_mut().into_iter().flatten() {
            if let Some(path) = model["name"].as_str().and_then(|name| paths.get(name)) {
                model["path"] = json!(path);
            }
        }
        config
    }
}

/// A text in pieces that fit into variables.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for letter in text.chars() {
        if let Some(last) = pieces.last_mut().filter(|last| last.len() + letter.len_utf8() <= MOST_OF_VALUE) {
            last.push(letter);
        } else {
            pieces.push(letter.to_string());
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fit_into_variables_and_join_to_the_text() {
        for text in [String::new(), "a".repeat(MOST_OF_VALUE), "ä".repeat(2000)] {
            let pieces = pieces(&text);
            assert!(pieces.iter().all(|piece| piece.len() <= MOST_OF_VALUE), "{}", text.len());
            assert_eq!(pieces.concat(), text);
        }
        assert_eq!(pieces(&"a".repeat(MOST_OF_VALUE + 1)).len(), 2);
    }

    #[test]
    fn images_keep_their_digest_only() {
        assert_eq!(by_digest("r.example:5000/t:1.0-a@sha256:1"), "r.example:5000/t@sha256:1");
        assert_eq!(by_digest("r.example:5000/t@sha256:1"), "r.example:5000/t@sha256:1");
        assert_eq!(by_digest("r.example/t:1.0-a"), "r.example/t:1.0-a");
    }
}
