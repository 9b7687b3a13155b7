//! A model on a plain web server: one .gguf file, or a folder whose files have the usual names.

use std::collections::BTreeSet;

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::download::{Check, Origin, Wanted, download};
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::FileEntry;
use crate::progress::{Event, Progress, Pulled};
use crate::source::WebSource;
use crate::store::Assembly;
use crate::transport::{Fault, Transport, shown};

/// Files that a folder must have, and may have. A web server has no list that we could read.
const MUST: [&str; 2] = ["config.json", "tokenizer.json"];
const MAY: [&str; 5] =
    ["modules.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"];
/// What an encoder of sentence-transformers may have beside its modules.
const WITH_MODULES: [&str; 3] =
    ["1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"];
/// The most shards of a folder.
const MOST_SHARDS: usize = 1024;

/// Brings the file or folder into the assembly.
pub(crate) async fn pull(
    transport: &Transport,
    assembly: &Assembly<'_>,
    web: &WebSource,
    progress: &Progress<'_>,
) -> Result<Pulled> {
    progress(Event::Resolving { what: shown(web.url()) });
    let web_fetch = WebFetch { transport, assembly, progress };
    let files = if web.is_folder() { web_fetch.folder(web.url()).await? } else { vec![web_fetch.file(web).await?] };
    Ok(Pulled { files, revision: None, license: None })
}

struct WebFetch<'a> {
    transport: &'a Transport,
    assembly: &'a Assembly<'a>,
    progress: &'a Progress<'a>,
}

impl WebFetch<'_> {
    async fn file(&self, web: &WebSource) -> Result<FileEntry> {
        let name = web.url().path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
        // Escaped characters stay escaped: the name is only ever a name in our folder.
        if !local::safe_name(name) {
            return Err(Error::Unusable {
                what: shown(web.url()),
                why: format!("`{name}` is not a file name"),
                hint: "give a .gguf file".to_owned(),
            });
        }
        let check = web.digest().map_or(Check::Nothing, Check::Sha256);
        self.get(name, web.url().clone(), check).await?.ok_or_else(|| missing(web.url()))
    }

    async fn folder(&self, base: &Url) -> Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        for name in MUST {
            files.push(self.at(base, name).await?.ok_or_else(|| missing(&join(base, name)))?);
        }
        match self.at(base, "model.safetensors").await? {
            Some(one) => files.push(one),
            None => files.extend(self.shards(base).await?),
        }
        for name in MAY {
            files.extend(self.at(base, name).await?);
        }
        if files.iter().any(|file| file.name == "modules.json") {
            for name in WITH_MODULES {
                files.extend(self.at(base, name).await?);
            }
        }
        Ok(files)
    }

    async fn shards(&self, base: &Url) -> Result<Vec<FileEntry>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let name = "model.safetensors.index.json";
        let index = self.at(base, name).await?.ok_or_else(|| missing(&join(base, "model.safetensors")))?;
        let path = self.assembly.path(name);
        let text = local::read_bounded(&path, 64 << 20)?.unwrap_or_default();
        let parsed: Index =
            serde_json::from_slice(&text).map_err(|error| unusable(base, format!("{name}: {error}")))?;
        let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
        if shards.len() > MOST_SHARDS {
            return Err(unusable(base, format!("{name} names {} files", shards.len())));
        }
        let mut files = vec![index];
        for shard in shards {
            if !local::safe_name(&shard) || !shard.ends_with(".safetensors") {
                return Err(unusable(base, format!("{name} names `{shard}`, which is not a file name of weights")));
            }
            files.push(self.at(base, &shard).await?.ok_or_else(|| missing(&join(base, &shard)))?);
        }
        Ok(files)
    }

    async fn at(&self, base: &Url, name: &str) -> Result<Option<FileEntry>> {
        self.get(&local::stored_name(name), join(base, name), Check::Nothing).await
    }

    /// The file; `None` if the server does not have it.
    async fn get(&self, name: &str, url: Url, check: Check) -> Result<Option<FileEntry>> {
        let wanted = Wanted { name: name.to_owned(), url, bytes: None, check };
        match download(Origin::Web(self.transport), self.assembly, &wanted, self.progress).await? {
            Ok(entry) => Ok(Some(entry)),
            Err(Fault::Refused { status: StatusCode::NOT_FOUND | StatusCode::GONE, .. }) => Ok(None),
            Err(Fault::Refused { status, .. }) => Err(Error::Denied {
                what: shown(&wanted.url),
                why: format!("the server answered {status}"),
                hint: "make it readable without a password, or download it manually and use `file:PATH`".to_owned(),
            }),
            Err(Fault::Fatal(error)) => Err(error),
            Err(Fault::Again(failure)) => {
                Err(Error::Network { what: shown(&wanted.url), attempts: 1, why: failure.reason })
            }
        }
    }
}

fn join(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    // A base that cannot carry a path was refused when the source was parsed.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(name.split('/'));
    }
    url
}

fn missing(url: &Url) -> Error {
    Error::NotFound {
        what: shown(url),
        why: "the server does not have it".to_owned(),
        hint: "a folder needs config.json, tokenizer.json and model.safetensors (or its index and shards)".to_owned(),
    }
}

fn unusable(base: &Url, why: String) -> Error {
    Error::Unusable { what: shown(base), why, hint: "contact its publisher".to_owned() }
}
