//! Container images: of the environment, its release lock and its recorded resources.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_bundle::oci::registry::{self, Options, TagList};
use textnlp_bundle::oci::{self, Reference};
use textnlp_bundle::scan::Package;
use textnlp_models::FetchOptions;
use textnlp_orchestrator::environment::{Fact, Origin};
use textnlp_orchestrator::release::{Lock, images, pushes_image, short};
use textnlp_provider::error_chain;

use super::{Advisories, Change, DependencyKind, MAX_QUERIES, Queries, Security, UsedVersion};
use crate::bundle::registry_options;
use crate::{ChosenEnvironment, Failure, Progress, running};

/// The ecosystem of advisories about servers, as OSV writes it.
const SERVERS: &str = "Bitnami";
/// The last part of a repository's name, and the package of advisories. Its tags begin with the version, and a new major
/// version needs a migration.
const PACKAGES: [(&str, &str); 3] = [("postgres", "postgresql"), ("postgresql", "postgresql"), ("redis", "redis")];

/// An image in use, and the setting that names it.
#[derive(Debug)]
struct UsedImage {
    reference: Reference,
    setting: Option<Fact>,
}

/// The rows of all images.
pub(super) async fn rows(
    chosen: &ChosenEnvironment,
    lock: Option<&Lock>,
    advisories: &Advisories,
    queries: &Queries<'_>,
) -> Vec<UsedVersion> {
    let (recorded, unread) = match recorded(chosen).await {
        Ok(recorded) => (recorded, None),
        Err(failure) => (BTreeSet::new(), Some(format!("{:#}", failure.error))),
    };
    let mut rows = Vec::new();
    for (nth, image) in used(chosen, lock, &recorded).into_iter().enumerate() {
        let row = UsedVersion::new(
            DependencyKind::Image,
            format!("{}/{}", image.reference.host, image.reference.repository),
            shown(&image.reference),
            security(&image.reference, image.reference.tag.as_deref(), advisories),
        );
        rows.push(if nth < MAX_QUERIES {
            compared(row, &image, chosen, advisories, queries).await
        } else {
            row.not_known(format!("only {MAX_QUERIES} images are asked for"))
        });
    }
    if let Some(why) = unread {
        let security = Security::unknown("the state could not be read");
        let row = UsedVersion::new(DependencyKind::Image, "images of the recorded resources", "unknown", security);
        rows.push(row.not_known(why));
    }
    rows
}

/// The images in the specs of recorded resources: also those that this program names.
async fn recorded(chosen: &ChosenEnvironment) -> Result<BTreeSet<String>, Failure> {
    let state = running::state(&chosen.scope).await?;
    let mut found = BTreeSet::new();
    for site in state.sites() {
        for objects in state.holdings(site)?.values() {
            if let Some(current) = &objects.current {
                collect(current.spec.as_value(), &mut found);
            }
        }
    }
    Ok(found)
}

/// The texts under `image`, as pods have it, and `imageName`, as CloudNativePG has it.
fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "image" || key == "imageName" => drop(found.insert(text.to_owned())),
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// Each image once. The image that `up` makes of this program is in the row of the program.
fn used(chosen: &ChosenEnvironment, lock: Option<&Lock>, recorded: &BTreeSet<String>) -> Vec<UsedImage> {
    let environment = &chosen.loaded.environment;
    let pushed = environment.sites.iter().filter(|site| pushes_image(environment, site));
    let repositories = images(environment);
    let own: Vec<Reference> = pushed.filter_map(|site| repositories.get(site.name.as_str())?.parse().ok()).collect();
    let is_image = |fact: &Fact| {
        let key = fact.path.rsplit('.').next().unwrap_or_default();
        key == "image" || key.ends_with("_image")
    };
    let settings = chosen.loaded.facts().into_iter().filter(is_image);
    let settings = settings.filter_map(|fact| Some((fact.value.as_str()?.to_owned(), Some(fact))));
    let locked = lock.into_iter().flat_map(|lock| lock.images.values());
    let others = locked.chain(recorded).map(|image| (image.clone(), None));
    let mut found: Vec<UsedImage> = Vec::new();
    for (text, setting) in settings.chain(others) {
        let Ok(reference) = text.parse::<Reference>() else { continue };
        let is_named = text.contains(['/', ':', '@']);
        let is_own = own.iter().any(|own| is_of(own, &reference));
        if !is_named || is_own {
            continue;
        }
        let is_same = |known: &&mut UsedImage| {
            is_of(&known.reference, &reference)
                && (known.reference.tag == reference.tag
                    || (reference.digest.is_some() && known.reference.digest == reference.digest))
        };
        match found.iter_mut().find(is_same) {
            // The lock has the digest of a configured tag.
            Some(known) => known.reference.digest = known.reference.digest.or(reference.digest),
            None => found.push(UsedImage { reference, setting }),
        }
    }
    found
}

fn is_of(one: &Reference, other: &Reference) -> bool {
    one.host == other.host && one.repository == other.repository
}

/// A tag, and where there is none the digest.
fn shown(reference: &Reference) -> String {
    let digest = || reference.digest.map_or_else(|| "latest".to_owned(), |digest| short(&digest.to_string()));
    reference.tag.clone().unwrap_or_else(digest)
}

fn package(reference: &Reference) -> Option<&'static str> {
    let name = reference.repository.rsplit('/').next()?;
    PACKAGES.iter().find(|(image, _)| *image == name).map(|(_, package)| *package)
}

/// What advisories say about the version in a tag.
fn security(reference: &Reference, tag: Option<&str>, advisories: &Advisories) -> Security {
    let version = tag.and_then(|tag| {
        let tag = tag.trim_start_matches('v');
        let end = tag.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tag.len());
        Some(tag[..end].trim_end_matches('.')).filter(|version| !version.is_empty())
    });
    let Some(name) = package(reference) else {
        let scan =
            "no advisories are about this image: scan its content with `bundle create --image` and `bundle scan`";
        return Security::unknown(scan);
    };
    match version {
        None => Security::unknown("its tag has no version"),
        Some(version) => advisories.about(&Package {
            ecosystem: SERVERS.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            origin: None,
            architecture: None,
        }),
    }
}

/// Whether the registry of a pinned image has it. Else why that is not known.
pub(crate) async fn has_image(
    chosen: &ChosenEnvironment,
    image: &str,
    progress: &dyn Progress,
) -> Result<bool, String> {
    let reference: Reference = image.parse().map_err(|error: oci::Error| error_chain(&error))?;
    let queries = Queries::of(chosen, progress).map_err(|failure| format!("{:#}", failure.error))?;
    let options = options(&reference, &queries)?;
    let asked = async { registry::has(&reference, &options, &|_| {}).await.map_err(|error| error_chain(&error)) };
    queries.ask(image, asked).await
}

/// How the registry of an image is asked. Credentials go by the caller's own proxies only.
fn options(reference: &Reference, queries: &Queries<'_>) -> Result<Options, String> {
    let failed = |failure: Failure| format!("{:#}", failure.error);
    let own = FetchOptions { limits: queries.fetching.limits.clone(), ..FetchOptions::from_env() };
    let options = registry_options(&reference.host, own).map_err(failed)?;
    match &options.credentials {
        Some(_) => Ok(options),
        None => registry_options(&reference.host, queries.fetching.clone()).map_err(failed),
    }
}

/// The row with the newest tag, and the first one without a known vulnerability.
async fn compared(
    row: UsedVersion,
    image: &UsedImage,
    chosen: &ChosenEnvironment,
    advisories: &Advisories,
    queries: &Queries<'_>,
) -> UsedVersion {
    let reference = &image.reference;
    let Some(tag) = reference.tag.as_deref() else {
        return row.not_known("it has no tag, and digests have no order");
    };
    let name = row.name.clone();
    let options = match options(reference, queries) {
        Ok(options) => options,
        Err(why) => return row.not_known(why),
    };
    let listed = async { registry::tags(reference, &options, &|_| {}).await.map_err(|error| error_chain(&error)) };
    let newer = match queries.ask(&name, listed).await {
        Ok(TagList { is_complete: false, .. }) => {
            return row.not_known("the registry lists more tags than are read");
        }
        Ok(TagList { tags, .. }) => match newer(tag, &tags, package(reference).is_some()) {
            Ok(newer) => newer,
            Err(why) => return row.not_known(why),
        },
        Err(why) => return row.not_known(why),
    };
    let is_fixed =
        |tag: &&String| matches!(security(reference, Some(tag.as_str()), advisories), Security::Unaffected { .. });
    let fixed = newer.iter().find(is_fixed);
    let (newest, fixed) = (newer.last().cloned().unwrap_or_else(|| tag.to_owned()), fixed.cloned());
    let is_newer_tag = newest != tag;
    // Without a digest, the same tag is the same text.
    let of = async |tag: String| pinned(reference, tag, &name, &options, queries).await;
    let (newest, source) = match of(newest).await {
        Ok(newest) => (newest, Some(reference.host.clone())),
        Err(why) => return row.not_known(why),
    };
    let is_newer = is_newer_tag || newest.digest != reference.digest;
    let fix = match fixed.filter(|_| row.is_affected()) {
        Some(fixed) => of(fixed).await.ok().map(|fixed| change(image, &fixed, chosen)),
        None if row.is_affected() => {
            let how = "the registry has no tag of this form without a known vulnerability: choose another version";
            Some(Change::Other { how: how.to_owned() })
        }
        None => None,
    };
    let text = match is_newer && !is_newer_tag {
        true => newest.digest.map_or(String::new(), |digest| format!("{tag} as {}", short(&digest.to_string()))),
        false => shown(&newest),
    };
    let update = is_newer.then(|| change(image, &newest, chosen));
    UsedVersion { newest: Some(text), is_newer, source, update, fix, ..row }
}

/// The image of a tag: with its present digest, if the used one has a digest.
async fn pinned(
    used: &Reference,
    tag: String,
    name: &str,
    options: &Options,
    queries: &Queries<'_>,
) -> Result<Reference, String> {
    let wanted = Reference { tag: Some(tag), digest: None, ..used.clone() };
    if used.digest.is_none() {
        return Ok(wanted);
    }
    let resolved = async { registry::resolve(&wanted, options, &|_| {}).await.map_err(|error| error_chain(&error)) };
    queries.ask(name, resolved).await
}

/// How another image takes the place of a used one.
fn change(image: &UsedImage, to: &Reference, chosen: &ChosenEnvironment) -> Change {
    let Some(Fact { path, value, origin, .. }) = &image.setting else {
        let how = format!(
            "no setting names it: a newer program has another one, or set `sites[].cluster.database_image` for PostgreSQL, to {to}"
        );
        return Change::Other { how };
    };
    let from = value.as_str().unwrap_or_default().to_owned();
    let pinned = to.to_string();
    // A configured tag stays one.
    let to = match from.contains('@') {
        true => pinned.clone(),
        false => Reference { digest: None, ..to.clone() }.to_string(),
    };
    // The host of Docker Hub is left out where it was.
    let to = match from.starts_with(image.reference.host.as_str()) {
        true => to,
        false => to.trim_start_matches("docker.io/").trim_start_matches("library/").to_owned(),
    };
    match origin {
        Origin::File { file, line, .. } if from != to => {
            Change::of_file(&chosen.loaded, (path.as_str(), from, to), (file.as_ref(), *line))
        }
        Origin::File { .. } => Change::Other { how: format!("its tag has new content: write {pinned}") },
        origin => Change::Other { how: format!("it is set by {origin}: write {to} there") },
    }
}

/// A tag by its numbers, and the text between them: `15.19-minimal-trixie` is 15 and 19 in `#.#-minimal-trixie`.
#[derive(Debug, PartialEq)]
struct TagForm {
    shape: String,
    numbers: Vec<u64>,
}

impl TagForm {
    /// `None` for a tag without version numbers.
    fn of(tag: &str) -> Option<Self> {
        // Commits have no order.
        let is_commit = |part: &str| {
            part.len() >= 7
                && part.bytes().all(|byte| byte.is_ascii_hexdigit())
                && part.bytes().any(|byte| byte.is_ascii_alphabetic())
                && part.bytes().any(|byte| byte.is_ascii_digit())
        };
        if tag.split(['-', '.', '_']).any(is_commit) {
            return None;
        }
        let (mut shape, mut numbers, mut rest) = (String::new(), Vec::new(), tag);
        while let Some(first) = rest.chars().next() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            if digits > 0 {
                numbers.push(rest[..digits].parse::<u64>().ok()?);
                shape.push('#');
                rest = &rest[digits..];
            } else {
                shape.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        (!numbers.is_empty()).then_some(Self { shape, numbers })
    }
}

/// The tags of the same form with higher numbers, lowest first.
fn newer(used: &str, tags: &[String], same_major: bool) -> Result<Vec<String>, &'static str> {
    let form = TagForm::of(used).ok_or("its tag has no version that can be compared")?;
    let mut found: Vec<(TagForm, &String)> = tags
        .iter()
        .filter_map(|tag| Some((TagForm::of(tag)?, tag)))
        .filter(|(other, _)| other.shape == form.shape && other.numbers > form.numbers)
        .filter(|(other, _)| !same_major || other.numbers.first() == form.numbers.first())
        .collect();
    found.sort_by(|(one, _), (other, _)| one.numbers.cmp(&other.numbers));
    Ok(found.into_iter().map(|(_, tag)| tag.clone()).collect())
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use serde_json::json;
    use textnlp_bundle::scan::Database;

    use super::*;

    #[test]
    fn only_tags_of_the_same_form_and_major_version_are_newer() {
        let tags = [
            "15.19-202608170814-minimal-trixie",
            "15.20-202610050814-minimal-trixie",
            "15.9-202410050814-minimal-trixie",
            "15.21-202610050814-minimal-bookworm",
            "16.20-202610050814-minimal-trixie",
            "latest",
        ]
        .map(str::to_owned);
        let of = |same_major| newer("15.19-202608170814-minimal-trixie", &tags, same_major).unwrap();
        assert_eq!(of(true), ["15.20-202610050814-minimal-trixie"]);
        assert_eq!(of(false).last().map(String::as_str), Some("16.20-202610050814-minimal-trixie"));
        for without in ["latest", "1.0.0-0a1b2c3d4e5f"] {
            assert!(newer(without, &tags, false).is_err(), "{without}");
        }
        let versions = ["v0.9.0", "v0.20.0", "v0.21.0-rc.1"].map(str::to_owned);
        assert_eq!(newer("v0.19.9", &versions, false).unwrap(), ["v0.20.0"], "a candidate is another form");
    }

    #[test]
    fn images_are_found_in_the_specs_of_resources() {
        let mut found = BTreeSet::new();
        let spec = json!({
            "template": { "containers": [{ "image": "r.example/a:1" }, { "image": { "kind": "x" } }] },
            "imageName": "r.example/b:2", "name": "r.example/c:3",
        });
        collect(&spec, &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["r.example/a:1", "r.example/b:2"]);
    }

    #[test]
    fn advisories_of_a_server_are_matched_by_its_tag() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let advisory = json!({
            "id": "BIT-postgresql-2026-1", "modified": "2026-08-13T00:00:00Z", "summary": "A flaw",
            "affected": [{
                "package": { "ecosystem": "Bitnami", "name": "postgresql" },
                "ranges": [{ "type": "SEMVER", "events": [{ "introduced": "15.0.0" }, { "fixed": "15.20.0" }] }],
            }],
        });
        std::fs::write(folder.join("a.json"), advisory.to_string()).unwrap();
        let database = Database::from_folder(folder).unwrap();
        let advisories = Advisories { database: Some(database), described: "OSV".to_owned() };
        let of = |image: &str| {
            let reference: Reference = image.parse().unwrap();
            security(&reference, reference.tag.as_deref(), &advisories)
        };
        let Security::Affected { advisories: found } = of("ghcr.io/cloudnative-pg/postgresql:15.19-2026-x") else {
            panic!("15.19 is affected")
        };
        assert_eq!((found[0].id.as_str(), found[0].fixed_in.as_deref()), ("BIT-postgresql-2026-1", Some(">= 15.20.0")));
        assert!(matches!(of("postgres:15.20"), Security::Unaffected { .. }));
        for unknown in ["postgres:latest", "r.example/textnlp:1.0.0", "postgres@sha256:0"] {
            let Ok(reference) = unknown.parse::<Reference>() else { continue };
            let found = security(&reference, reference.tag.as_deref(), &advisories);
            assert!(matches!(found, Security::Unknown { .. }), "{unknown}: {found:?}");
        }
        let crates = super::super::tests::advisories(&folder.join("rustsec"), "tokio", "");
        let reference: Reference = "postgres:15.19".parse().unwrap();
        let found = security(&reference, Some("15.19"), &crates);
        assert!(matches!(&found, Security::Unknown { reason } if reason.contains("do not cover Bitnami")), "{found:?}");
    }
}
