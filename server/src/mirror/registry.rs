//! The reading half of the OCI distribution protocol: `/v2/`, manifests, blobs, tags, the catalogue.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::json;
use textnlp_bundle::oci::catalogue::{Catalogue, path_of};
use textnlp_bundle::oci::media;
use textnlp_models::Digest;

use super::file::{Sent, send};
use super::{Call, reply};

/// The images by the names that clients request.
pub(super) struct Images {
    /// Repository, tag, digest.
    repositories: BTreeMap<String, BTreeMap<String, Digest>>,
    /// Media types of all manifests.
    manifests: HashMap<Digest, &'static str>,
    /// Repositories by their full names, for lists.
    names: Vec<String>,
}

impl Images {
    pub(super) fn of(catalogue: &Catalogue) -> Images {
        let mut repositories: BTreeMap<String, BTreeMap<String, Digest>> = BTreeMap::new();
        let mut manifests = HashMap::new();
        let mut short: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for image in &catalogue.images {
            let (repository, tag) = image.repository_and_tag();
            repositories.entry(repository.to_owned()).or_default().insert(tag.to_owned(), image.target.digest);
            // A container engine that uses us as a mirror of docker.io requests `library/postgres`; people use
            // `postgres`.
            if let Some((host, rest)) = repository.split_once('/')
                && host.contains(['.', ':'])
            {
                let bare = rest.strip_prefix("library/").filter(|_| host == "docker.io");
                for name in [Some(rest), bare].into_iter().flatten() {
                    short.entry(name.to_owned()).or_default().insert(repository.to_owned());
                }
            }
            for descriptor in image.platforms.iter().map(|(_, d, _)| d).chain([&image.target]) {
                if let Some(known) = media::ALL.iter().find(|known| **known == descriptor.media_type) {
                    manifests.insert(descriptor.digest, *known);
                }
            }
        }
        let names = repositories.keys().cloned().collect();
        // A short name that could mean two repositories means none.
        for (name, full) in short {
            if let (1, Some(full)) = (full.len(), full.first())
                && !repositories.contains_key(&name)
                && let Some(tags) = repositories.get(full).cloned()
            {
                repositories.insert(name, tags);
            }
        }
        Images { repositories, manifests, names }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let tags = |name: &String| self.repositories.get(name).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        let named = |name: &String| -> Vec<String> {
            let tags: Vec<String> = tags(name);
            tags.into_iter().map(|tag| format!("{name}:{tag}")).collect()
        };
        self.names.iter().flat_map(named).collect()
    }
}

/// `path` is what follows `/v2`.
pub(super) async fn answer(call: &Call<'_>, path: &[String]) -> Response {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    let images = &call.desk.images;
    match &parts[..] {
        [] | [""] => reply(call, StatusCode::OK, &json!({})),
        ["_catalog"] => {
            let (page, link) = page(call, "/v2/_catalog", images.names.iter());
            linked(reply(call, StatusCode::OK, &json!({ "repositories": page })), link)
        }
        [name @ .., "tags", "list"] if !name.is_empty() => {
            let name = name.join("/");
            let Some(tags) = images.repositories.get(&name) else { return unknown(&name) };
            let (page, link) = page(call, &format!("/v2/{name}/tags/list"), tags.keys());
            linked(reply(call, StatusCode::OK, &json!({ "name": name, "tags": page })), link)
        }
        [name @ .., "manifests", reference] if !name.is_empty() => manifest(call, &name.join("/"), reference).await,
        [name @ .., "blobs", digest] if !name.is_empty() => blob(call, &name.join("/"), digest).await,
        [name @ .., "referrers", _] if !name.is_empty() => {
            // No signatures or lists of contents hang on our images: the bundle's own signature covers all of them.
            let mut response =
                reply(call, StatusCode::OK, &json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [] }));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media::INDEX));
            response
        }
        _ => refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "this path does not exist"),
    }
}

async fn manifest(call: &Call<'_>, name: &str, reference: &str) -> Response {
    let images = &call.desk.images;
    let Some(tags) = images.repositories.get(name) else { return unknown(name) };
    let digest = if reference.contains(':') {
        let Some(digest) = digest(reference) else {
            return refusal(
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                "a digest is `sha256:` and 64 hexadecimal digits",
            );
        };
        digest
    } else {
        match tags.get(reference) {
            Some(digest) => *digest,
            None => return refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "the repository has no such tag"),
        }
    };
    match images.manifests.get(&digest) {
        Some(media_type) => file(call, digest, media_type, "MANIFEST_UNKNOWN").await,
        None => refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "the bundle has no such manifest"),
    }
}

async fn blob(call: &Call<'_>, name: &str, reference: &str) -> Response {
    if !call.desk.images.repositories.contains_key(name) {
        return unknown(name);
    }
    match digest(reference) {
        Some(digest) => file(call, digest, "application/octet-stream", "BLOB_UNKNOWN").await,
        None => refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "a digest is `sha256:` and 64 hexadecimal digits"),
    }
}

async fn file(call: &Call<'_>, digest: Digest, content_type: &'static str, missing: &'static str) -> Response {
    let path = path_of(digest);
    let Some(entry) = call.desk.source.find(&path) else {
        return refusal(StatusCode::NOT_FOUND, missing, "the bundle has no such content");
    };
    let headers = vec![(HeaderName::from_static("docker-content-digest"), digest.to_string())];
    let sent = Sent { path, entry, content_type, etag: format!("\"{digest}\""), headers };
    match send(call, sent).await {
        Ok(response) => response,
        Err(_) => refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            "the bundle is damaged here; see the server's log for the location",
        ),
    }
}

/// Only the long form of a digest, compared as written.
fn digest(text: &str) -> Option<Digest> {
    text.starts_with("sha256:").then(|| text.parse().ok()).flatten()
}

fn unknown(name: &str) -> Response {
    let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", &format!("the bundle has no repository `{name}`"))
}

/// An error in the protocol's form.
pub(super) fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let text = json!({ "errors": [{ "code": code, "message": message, "detail": null }] }).to_string();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `?n=` and `?last=`: a page of a list, and the start of the next.
fn page<'a>(call: &Call<'_>, path: &str, all: impl Iterator<Item = &'a String>) -> (Vec<&'a String>, Option<String>) {
    let query = call.uri.query().unwrap_or_default();
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let last = value("last").and_then(super::decode);
    let mut rest = all.filter(|name| last.as_ref().is_none_or(|last| *name > last));
    let Some(most) = value("n").and_then(|n| n.parse::<usize>().ok()) else { return (rest.collect(), None) };
    let page: Vec<&String> = rest.by_ref().take(most).collect();
    let more = rest.next().is_some();
    let link = page.last().filter(|_| more).map(|last| format!("<{path}?n={most}&last={last}>; rel=\"next\""));
    (page, link)
}

fn linked(mut response: Response, link: Option<String>) -> Response {
    if let Some(value) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, value);
    }
    response
}
