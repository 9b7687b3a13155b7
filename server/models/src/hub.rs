//! A repository of a Hugging Face hub: what is in it, which of it we need, and what its refusals mean.

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::download::{Check, Origin, Wanted, download, git_blob, remaining};
use crate::error::{Error, Result};
use crate::local;
use crate::options::FetchOptions;
use crate::progress::{Event, Progress, Pulled};
use crate::select::choose;
use crate::source::{HubSource, is_commit};
use crate::store::Assembly;
use crate::transport::{Fault, Transport};

/// The answer of `/api/models/NAME/revision/REV`; the largest repositories list some thousand files.
const LISTING_MOST: usize = 32 << 20;

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: Option<serde_json::Value>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(default, alias = "oid")]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

/// The commit that a revision of a hub's repository has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRevision {
    /// The commit.
    pub commit: String,
    /// When the repository last changed, as the hub writes it.
    pub modified: Option<String>,
}

/// Asks the hub for the commit of a branch or tag.
///
/// # Errors
/// The options allow no network, the hub is not reached, or it has no such repository or revision.
pub async fn hub_revision(
    hub: &HubSource,
    revision: &str,
    options: &FetchOptions,
    progress: &Progress<'_>,
) -> Result<HubRevision> {
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
        #[serde(default, rename = "lastModified")]
        modified: Option<String>,
    }
    let what = format!("hf:{}@{revision}", hub.repo());
    let unusable = |why: String, hint: &str| Error::Unusable { what: what.clone(), why, hint: hint.to_owned() };
    if options.offline {
        return Err(unusable("offline mode allows no request".to_owned(), "unset HF_HUB_OFFLINE"));
    }
    progress(Event::Resolving { what: what.clone() });
    let transport = Transport::new(options)?;
    let url = address(transport.endpoint(), &["api", "models"], hub.repo(), &["revision", revision]);
    let url = url.ok_or_else(|| unusable_endpoint(&transport))?;
    let text = transport.get_small(&url, LISTING_MOST, progress).await;
    let text = text.map_err(|fault| explain(fault, hub, &transport))?;
    let answer: Answer = serde_json::from_slice(&text)
        .map_err(|error| unusable(format!("the hub's answer cannot be read ({error})"), "check HF_ENDPOINT"))?;
    if !is_commit(&answer.sha) {
        return Err(unusable("the hub names no commit".to_owned(), "check HF_ENDPOINT"));
    }
    let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
    Ok(HubRevision { commit: answer.sha, modified: answer.modified.map(plain) })
}

/// Lists the repository and brings what a model needs into the assembly.
pub(crate) async fn pull(
    transport: &Transport,
    assembly: &Assembly<'_>,
    hub: &HubSource,
    progress: &Progress<'_>,
) -> Result<Pulled> {
    let what = format!("hf:{}@{}", hub.repo(), hub.revision());
    progress(Event::Resolving { what: what.clone() });
    let url = address(transport.endpoint(), &["api", "models"], hub.repo(), &["revision", hub.revision()]);
    let mut url = url.ok_or_else(|| unusable_endpoint(transport))?;
    url.set_query(Some("blobs=true"));
    let refused = |fault| explain(fault, hub, transport);
    let text = transport.get_small(&url, LISTING_MOST, progress).await.map_err(refused)?;
    let listing: Listing = serde_json::from_slice(&text).map_err(|error| Error::Unusable {
        what: what.clone(),
        why: format!("the hub's list of files cannot be read ({error})"),
        hint: format!("check that {} is a Hugging Face hub", transport.endpoint()),
    })?;

    // From here on everything is asked for by commit: a branch that moves meanwhile cannot mix two versions.
    let commit = match listing.sha.as_deref() {
        Some(sha) if is_commit(sha) => Some(sha.to_owned()),
        _ => None,
    };
    let revision = commit.as_deref().unwrap_or(hub.revision());
    let names: Vec<&str> = listing.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let mut files = Vec::new();
    for name in choose(&what, hub.file(), &names)? {
        let Some(sibling) = listing.siblings.iter().find(|s| s.rfilename == name) else { continue };
        let segments: Vec<&str> = ["resolve", revision].into_iter().chain(name.split('/')).collect();
        let url =
            address(transport.endpoint(), &[], hub.repo(), &segments).ok_or_else(|| unusable_endpoint(transport))?;
        files.push(Wanted { name: local::stored_name(name), url, bytes: size(sibling), check: check(sibling) });
    }

    // Refuse before the first byte, not at the last file.
    assembly.make_room(&what, files.iter().map(|file| remaining(assembly, file)).sum())?;
    let mut entries = Vec::new();
    for file in &files {
        entries.push(download(Origin::Web(transport), assembly, file, progress).await?.map_err(refused)?);
    }
    Ok(Pulled { files: entries, revision: commit, license: license(&listing) })
}

fn size(sibling: &Sibling) -> Option<u64> {
    sibling.lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size)
}

fn check(sibling: &Sibling) -> Check {
    match &sibling.lfs {
        Some(lfs) => lfs.sha256.as_deref().and_then(|text| text.parse().ok()).map_or(Check::Nothing, Check::Sha256),
        None => sibling.blob.as_deref().and_then(git_blob).unwrap_or(Check::Nothing),
    }
}

fn license(listing: &Listing) -> Option<String> {
    let card = listing.card.as_ref().and_then(|card| card.get("license")).and_then(|text| text.as_str());
    let tag = || listing.tags.iter().find_map(|tag| tag.strip_prefix("license:"));
    card.or_else(tag).map(|text| text.chars().filter(|c| !c.is_control()).take(100).collect())
}

fn address(endpoint: &Url, before: &[&str], repo: &str, after: &[&str]) -> Option<Url> {
    let mut url = endpoint.clone();
    url.path_segments_mut().ok()?.pop_if_empty().extend(before).extend(repo.split('/')).extend(after);
    Some(url)
}

fn unusable_endpoint(transport: &Transport) -> Error {
    Error::Setting { what: "HF_ENDPOINT".to_owned(), why: format!("{} cannot carry a path", transport.endpoint()) }
}

/// What a refusal of the hub means, and what to do.
fn explain(fault: Fault, hub: &HubSource, transport: &Transport) -> Error {
    let (status, code, message) = match fault {
        Fault::Fatal(error) => return error,
        Fault::Again(failure) => {
            return Error::Network { what: format!("hf:{}", hub.repo()), attempts: 1, why: failure.reason };
        }
        Fault::Refused { status, code, message } => (status, code.unwrap_or_default(), message),
    };
    let what = format!("hf:{}", hub.repo());
    let page = format!("{}/{}", transport.endpoint().as_str().trim_end_matches('/'), hub.repo());
    let message_text = message.unwrap_or_else(|| format!("the hub answered {status}"));
    let token = if transport.has_token() { "the token in HF_TOKEN" } else { "no token (HF_TOKEN is not set)" };
    match (status, code.as_str()) {
        (_, "GatedRepo") => Error::Denied {
            what,
            why: format!("it is gated and the request used {token}: {message_text}"),
            hint: format!("accept its terms at {page}, create a token with read access, and set HF_TOKEN"),
        },
        (StatusCode::NOT_FOUND, "RevisionNotFound") => Error::NotFound {
            what: format!("revision {} of {what}", hub.revision()),
            why: message_text,
            hint: format!("see {page}/tree/main for its branches and tags"),
        },
        (StatusCode::NOT_FOUND, "EntryNotFound") => {
            Error::NotFound { what, why: message_text, hint: format!("see its files at {page}/tree/main") }
        }
        // The hub says 401 for what does not exist, too, so that clients cannot probe for private names.
        (StatusCode::UNAUTHORIZED, _) | (StatusCode::NOT_FOUND, _) => Error::NotFound {
            what,
            why: format!("it does not exist, or it is private and the request used {token}: {message_text}"),
            hint: format!("check the name at {page}; for a private model set HF_TOKEN to a token that may read it"),
        },
        (StatusCode::FORBIDDEN, _) => Error::Denied {
            what,
            why: format!("the request used {token}: {message_text}"),
            hint: format!("request access at {page}, and set HF_TOKEN to a token that may read it"),
        },
        _ => Error::Network { what, attempts: 1, why: message_text },
    }
}
