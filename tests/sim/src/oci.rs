//! A registry of images as all clouds have one: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>. Of layers only
//! the sizes are kept.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aws::protocol::{Reply, Request};

/// What was pushed to a repository.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// The digests of images by their tags.
    pub images: BTreeMap<String, String>,
    /// The blobs by their digests, with their sizes.
    pub blobs: BTreeMap<String, usize>,
    manifests: BTreeMap<String, (String, Bytes)>,
    /// What came of an upload in parts.
    upload: Option<(Sha256, usize)>,
}

/// The registries of a cloud.
#[derive(Default)]
pub struct Registry {
    /// What was pushed, by the names of repositories, after the host where registries have hosts of their own.
    pub repositories: BTreeMap<String, Repository>,
    tokens: BTreeMap<String, Grant>,
}

/// What a token of a registry allows: <https://distribution.github.io/distribution/spec/auth/token/>.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// Who has it.
    pub(crate) user: String,
    /// The host of the registry, where registries have hosts of their own.
    pub(crate) registry: String,
    /// Its scopes: `repository:NAME:pull,push`.
    pub(crate) scopes: Vec<String>,
}

impl Registry {
    /// Takes note of a token.
    pub(crate) fn give(&mut self, token: &str, grant: Grant) {
        self.tokens.insert(token.to_owned(), grant);
    }

    /// What a token was given for.
    pub(crate) fn grant(&self, token: &str) -> Option<&Grant> {
        self.tokens.get(token)
    }

    /// The token of a request that allows an action in a repository.
    pub(crate) fn granted(&self, request: &Request, repository: &str, action: &str) -> Option<&Grant> {
        let token = request.header("authorization")?.strip_prefix("Bearer ")?;
        let grant = self.tokens.get(token)?;
        let allows = |scope: &String| {
            let named = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'));
            named.is_some_and(|(name, actions)| name == repository && actions.split(',').any(|one| one == action))
        };
        grant.scopes.iter().any(allows).then_some(grant)
    }
}

/// What a request asks of a registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'r> {
    /// The name of the repository.
    pub(crate) repository: &'r str,
    /// What it does.
    pub(crate) does: Does,
    /// The digest or tag that it is about.
    pub(crate) which: &'r str,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Asks whether a blob is there.
    FindBlob,
    /// Begins an upload.
    BeginUpload,
    /// Sends a part of a blob.
    SendPart,
    /// Sends a blob, or ends an upload in parts.
    SendBlob,
    /// Sends a manifest.
    SendManifest,
    /// Reads a manifest.
    ReadManifest,
}

impl Does {
    /// What a token has to allow for it.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::FindBlob | Self::ReadManifest => "pull",
            Self::BeginUpload | Self::SendPart | Self::SendBlob | Self::SendManifest => "push",
        }
    }
}

/// What a request asks; `None` if it is none of the registry. A method that is not simulated is an error.
pub(crate) fn asked<'r>(method: &str, path: &'r str) -> Option<Result<Asked<'r>, Reply>> {
    let path = path.strip_prefix("/v2/")?;
    let (repository, kind, which) = ["/blobs/uploads/", "/blobs/", "/manifests/"]
        .into_iter()
        .find_map(|kind| path.split_once(kind).map(|(name, which)| (name, kind, which)))?;
    let does = match (method, kind) {
        ("HEAD", "/blobs/") => Does::FindBlob,
        ("POST", "/blobs/uploads/") => Does::BeginUpload,
        ("PATCH", "/blobs/uploads/") => Does::SendPart,
        ("PUT", "/blobs/uploads/") => Does::SendBlob,
        ("PUT", "/manifests/") => Does::SendManifest,
        ("GET", "/manifests/") => Does::ReadManifest,
        _ => return Some(Err(refused(405, "UNSUPPORTED"))),
    };
    Some(Ok(Asked { repository, does, which }))
}

impl Repository {
    /// Answers a request to this repository.
    pub(crate) fn answer(&mut self, asked: Asked<'_>, request: &Request, is_immutable: bool) -> Reply {
        let Asked { repository, does, which } = asked;
        let digest = || format!("sha256:{}", hex::encode(Sha256::digest(&request.body)));
        match does {
            Does::FindBlob => match self.blobs.get(which) {
                Some(size) => empty(200, &[("content-length", size.to_string())]),
                None => refused(404, "BLOB_UNKNOWN"),
            },
            Does::BeginUpload => {
                self.upload = None;
                empty(202, &[("location", format!("/v2/{repository}/blobs/uploads/one?_state=1"))])
            }
            Does::SendPart => {
                let (hash, length) = self.upload.get_or_insert_with(|| (Sha256::new(), 0));
                let range = request.header("content-range").and_then(|range| range.split_once('-'));
                let expected = (length.to_string(), (*length + request.body.len()).saturating_sub(1).to_string());
                if range != Some((&expected.0, &expected.1)) {
                    return refused(416, "BLOB_UPLOAD_INVALID");
                }
                hash.update(&request.body);
                *length += request.body.len();
                empty(202, &[("location", format!("/v2/{repository}/blobs/uploads/one?_state={length}"))])
            }
            Does::SendBlob => {
                let (mut hash, mut length) = self.upload.take().unwrap_or_else(|| (Sha256::new(), 0));
                hash.update(&request.body);
                length += request.body.len();
                let digest = format!("sha256:{}", hex::encode(hash.finalize()));
                if !request.query.iter().any(|(name, value)| name == "digest" && *value == digest) {
                    return refused(400, "DIGEST_INVALID");
                }
                self.blobs.insert(digest, length);
                empty(201, &[])
            }
            Does::SendManifest => {
                let manifest: Value = serde_json::from_slice(&request.body).unwrap_or_default();
                let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
                let mut parts = layers.iter().chain([&manifest["config"]]);
                if !parts.all(|part| part["digest"].as_str().is_some_and(|part| self.blobs.contains_key(part))) {
                    return refused(400, "MANIFEST_BLOB_UNKNOWN");
                }
                if is_immutable && self.images.contains_key(which) {
                    return refused(400, "TAG_INVALID");
                }
                let kind = request.header("content-type").unwrap_or_default().to_owned();
                self.manifests.insert(digest(), (kind, request.body.clone()));
                self.images.insert(which.to_owned(), digest());
                empty(201, &[])
            }
            Does::ReadManifest => {
                let digest = self.images.get(which).map_or(which, String::as_str);
                match self.manifests.get(digest) {
                    Some((kind, bytes)) => {
                        Reply { body: bytes.clone(), ..empty(200, &[("content-type", kind.clone())]) }
                    }
                    None => refused(404, "MANIFEST_UNKNOWN"),
                }
            }
        }
    }
}

fn empty(status: u16, headers: &[(&str, String)]) -> Reply {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Reply { status, headers, body: Bytes::new() }
}

/// An error, by its code in the specification.
pub(crate) fn refused(status: u16, code: &str) -> Reply {
    let body = json!({ "errors": [{ "code": code, "message": code }] }).to_string();
    Reply { status, headers: vec![("content-type".to_owned(), "application/json".to_owned())], body: body.into() }
}

/// The refusal of a request without a right credential, which says how to get one.
pub(crate) fn challenged(challenge: &str) -> Reply {
    let mut reply = refused(401, "UNAUTHORIZED");
    reply.headers.push(("www-authenticate".to_owned(), challenge.to_owned()));
    reply
}

/// The answer of a token service.
pub(crate) fn token(member: &str, token: &str) -> Reply {
    let body = json!({ member: token, "expires_in": 3600 }).to_string();
    Reply { status: 200, headers: vec![("content-type".to_owned(), "application/json".to_owned())], body: body.into() }
}

/// The values of a field, each of which may have several.
pub(crate) fn scopes(fields: &[(String, String)]) -> Vec<String> {
    let of_field = fields.iter().filter(|(name, _)| name == "scope");
    of_field.flat_map(|(_, value)| value.split(' ')).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

/// The user and the password of Basic authentication.
pub(crate) fn basic(request: &Request) -> Option<(String, String)> {
    use base64::Engine;
    let value = request.header("authorization")?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(value).ok()?).ok()?;
    pair.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}
