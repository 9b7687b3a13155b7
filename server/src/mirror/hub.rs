//! The read API of a model hub, as its clients use it with `HF_ENDPOINT`: repositories and their files.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use textnlp_bundle::file_source::{Entry, FileSource};
use textnlp_bundle::manifest::ItemKind;
use textnlp_models::Source;

use super::file::{Sent, send};
use super::{Call, reply};

/// The models by the names that clients request: the original repository, and `bundle/NAME`.
pub(super) struct Models {
    repositories: BTreeMap<String, Model>,
}

#[derive(Clone)]
struct Model {
    /// The commit: the source's, else the start of the model's digest.
    commit: String,
    /// Other names of the same revision.
    revisions: Vec<String>,
    license: Option<String>,
    /// By name in the repository: the path in the bundle.
    files: BTreeMap<String, (String, Entry)>,
}

impl Models {
    pub(super) fn of(shelf: &dyn FileSource) -> Models {
        let mut repositories = BTreeMap::new();
        for item in shelf.items().iter().filter(|item| item.kind == ItemKind::Model) {
            let folder = format!("models/{}/", item.name);
            let file = |path: &String| {
                let name = path.strip_prefix(&folder)?.to_owned();
                Some((name, (path.clone(), shelf.find(path)?)))
            };
            let hub = match item.source.as_deref().map(str::parse) {
                Some(Ok(Source::Hub(hub))) => Some(hub),
                _ => None,
            };
            let is_commit = |text: &&str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let known = [item.version.as_deref(), hub.as_ref().map(|hub| hub.revision())];
            let known: Vec<&str> = known.into_iter().flatten().collect();
            let commit = known.iter().find(|text| is_commit(text)).map(|text| (*text).to_owned());
            let model = Model {
                commit: commit.unwrap_or_else(|| item.digest.hex()[..40].to_owned()),
                revisions: known.iter().map(|text| (*text).to_owned()).chain(["main".to_owned()]).collect(),
                license: item.license.clone(),
                files: item.paths.iter().filter_map(file).collect(),
            };
            if let Some(hub) = hub {
                repositories.insert(hub.repo().to_owned(), model.clone());
            }
            repositories.insert(format!("bundle/{}", item.name), model);
        }
        Models { repositories }
    }

    pub(super) fn names(&self) -> Vec<&String> {
        self.repositories.keys().collect()
    }
}

pub(super) async fn answer(call: &Call<'_>, path: &[String]) -> Response {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    match &parts[..] {
        ["api", "models", org, name] => match find(call, org, name, "main") {
            Ok(model) => reply(call, StatusCode::OK, &listing(&format!("{org}/{name}"), model)),
            Err(refusal) => refusal,
        },
        ["api", "models", org, name, "revision", revision] => match find(call, org, name, revision) {
            Ok(model) => reply(call, StatusCode::OK, &listing(&format!("{org}/{name}"), model)),
            Err(refusal) => refusal,
        },
        ["api", "models", org, name, "tree", revision, ..] => match find(call, org, name, revision) {
            Ok(model) => reply(call, StatusCode::OK, &tree(model)),
            Err(refusal) => refusal,
        },
        [org, name, "resolve", revision, file @ ..] if !file.is_empty() => match find(call, org, name, revision) {
            Ok(model) => resolve(call, model, &file.join("/")).await,
            Err(refusal) => refusal,
        },
        _ => refusal(StatusCode::NOT_FOUND, "RepoNotFound", "this path does not exist"),
    }
}

fn find<'a>(call: &'a Call<'_>, org: &str, name: &str, revision: &str) -> Result<&'a Model, Response> {
    let Some(model) = call.desk.models.repositories.get(&format!("{org}/{name}")) else {
        let there: Vec<&str> = call.desk.models.names().into_iter().take(20).map(String::as_str).collect();
        let message = format!("the bundle has no such model; it has {}", there.join(", "));
        return Err(refusal(StatusCode::NOT_FOUND, "RepoNotFound", &message));
    };
    if revision != model.commit && !model.revisions.iter().any(|known| known == revision) {
        let message = format!("the bundle has this model at revision {} only", model.commit);
        return Err(refusal(StatusCode::NOT_FOUND, "RevisionNotFound", &message));
    }
    Ok(model)
}

fn listing(repository: &str, model: &Model) -> Value {
    let file = |(name, (_, entry)): (&String, &(String, Entry))| {
        json!({
            "rfilename": name,
            "size": entry.size,
            "lfs": { "sha256": entry.digest.hex(), "size": entry.size, "pointerSize": 0 },
        })
    };
    json!({
        "id": repository,
        "modelId": repository,
        "sha": model.commit,
        "private": false,
        "gated": false,
        "disabled": false,
        "tags": model.license.iter().map(|license| format!("license:{license}")).collect::<Vec<_>>(),
        "cardData": { "license": model.license },
        "siblings": model.files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn tree(model: &Model) -> Value {
    let file = |(name, (_, entry)): (&String, &(String, Entry))| {
        let digest = entry.digest.hex();
        json!({
            "type": "file",
            "path": name,
            "size": entry.size,
            "oid": &digest[..40],
            "lfs": { "oid": digest, "size": entry.size, "pointerSize": 0 },
        })
    };
    model.files.iter().map(file).collect()
}

async fn resolve(call: &Call<'_>, model: &Model, name: &str) -> Response {
    let Some((path, entry)) = model.files.get(name) else {
        return refusal(StatusCode::NOT_FOUND, "EntryNotFound", "the model has no such file");
    };
    let etag = format!("\"{}\"", entry.digest.hex());
    let headers = vec![
        (HeaderName::from_static("x-repo-commit"), model.commit.clone()),
        (HeaderName::from_static("x-linked-etag"), etag.clone()),
        (HeaderName::from_static("x-linked-size"), entry.size.to_string()),
    ];
    let sent = Sent { path: path.clone(), entry: *entry, content_type: "application/octet-stream", etag, headers };
    match send(call, sent).await {
        Ok(response) => response,
        Err(_) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Damaged",
            "the bundle is damaged here; see the server's log for the location",
        ),
    }
}

/// An error in the hub's form.
pub(super) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let mut response = Response::new(Body::from(json!({ "error": message }).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, text) in [("x-error-code", code), ("x-error-message", message)] {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
    response
}
