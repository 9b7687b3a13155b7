//! Container images: of the environment, its release lock and its recorded resources.

use std::collections::BTreeMap;

use serde_json::Value;
use textnlp_bundle::oci::registry::{self, Options, TagList};
use textnlp_bundle::oci::{self, Reference};
use textnlp_bundle::scan::Package;
use textnlp_models::FetchOptions;
use textnlp_orchestrator::environment::{Fact, Loaded, Origin};
use textnlp_orchestrator::release::{Lock, images, pushes_image, short};
use textnlp_provider::error_chain;

use super::{Advisories, Change, DependencyKind, MAX_QUERIES, Queries, Security, UsedVersion};
use crate::bundle::registry_options;
use crate::{ChosenEnvironment, Failure, Progress, running};

/// The ecosystem of advisories about servers, as OSV writes it.
const SERVERS: &str = "Bitnami";
/// The last part of a repository's name, the package of advisories, and how many numbers its versions have. Its tags
/// begin with the version.
const PACKAGES: [(&str, &str, usize); 3] =
    [("postgres", POSTGRES, 2), ("postgresql", POSTGRES, 2), ("redis", "redis", 3)];
const POSTGRES: &str = "postgresql";

/// An image in use, and the setting that names it.
#[derive(Debug)]
struct UsedImage {
    reference: Reference,
    setting: Option<Fact>,
    /// A new major version needs a migration of its data.
    is_database: bool,
}

/// An image, the setting that names it, and whether that place is of a database.
type NamedImage = (String, Option<Fact>, bool);

/// The tags of each repository that was asked.
type TagLists = BTreeMap<String, Result<TagList, String>>;

/// The rows of all images, and whether PostgreSQL is one of them.
pub(super) async fn rows(
    chosen: &ChosenEnvironment,
    lock: Option<&Lock>,
    advisories: &Advisories,
    queries: &Queries<'_>,
) -> (Vec<UsedVersion>, bool) {
    let (recorded, unread) = match recorded(chosen).await {
        Ok(recorded) => (recorded, None),
        Err(failure) => (BTreeMap::new(), Some(format!("{:#}", failure.error))),
    };
    let images = used(&chosen.loaded, lock, &recorded);
    let is_postgres =
        |image: &UsedImage| image.is_database && package(&image.reference).is_none_or(|(name, _)| name == POSTGRES);
    let has_postgres = images.iter().any(is_postgres);
    let (mut rows, mut lists) = (Vec::new(), TagLists::new());
    for image in &images {
        let row = UsedVersion::new(
            DependencyKind::Image,
            format!("{}/{}", image.reference.host, image.reference.repository),
            shown(&image.reference),
            security(&image.reference, image.reference.tag.as_deref(), advisories),
        );
        let row = UsedVersion { setting: image.setting.as_ref().map(|fact| fact.path.clone()), ..row };
        rows.push(compared(row, image, chosen, advisories, queries, &mut lists).await);
    }
    if let Some(why) = unread {
        let security = Security::unknown("the state could not be read");
        let row = UsedVersion::new(DependencyKind::Image, "images of the recorded resources", "unknown", security);
        rows.push(row.unanswered(why));
    }
    (rows, has_postgres)
}

/// The images in the specs of recorded resources, also those that this program names, and whether it is a database's.
async fn recorded(chosen: &ChosenEnvironment) -> Result<BTreeMap<String, bool>, Failure> {
    let state = running::state(&chosen.scope).await?;
    let mut found = BTreeMap::new();
    for site in state.sites() {
        for objects in state.holdings(site)?.values() {
            if let Some(current) = &objects.current {
                collect(current.spec.as_value(), &mut found);
            }
        }
    }
    Ok(found)
}

/// The texts under `image`, as pods have it, and `imageName`, as CloudNativePG has it for a database.
fn collect(value: &Value, found: &mut BTreeMap<String, bool>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "image" || key == "imageName" => {
                        *found.entry(text.to_owned()).or_default() |= key == "imageName";
                    }
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// All images, without the one that `up` makes of this program: it is in the row of the program.
fn used(loaded: &Loaded, lock: Option<&Lock>, recorded: &BTreeMap<String, bool>) -> Vec<UsedImage> {
    let environment = &loaded.environment;
    let pushed = environment.sites.iter().filter(|site| pushes_image(environment, site));
    let repositories = images(environment);
    let own: Vec<Reference> = pushed.filter_map(|site| repositories.get(site.name.as_str())?.parse().ok()).collect();
    let is_image = |fact: &Fact| {
        let key = fact.path.rsplit('.').next().unwrap_or_default();
        key == "image" || key.ends_with("_image")
    };
    let settings = loaded.facts().into_iter().filter(is_image).filter_map(|fact| {
        let is_database = fact.path.ends_with("database_image");
        Some((fact.value.as_str()?.to_owned(), Some(fact), is_database))
    });
    let locked = lock.into_iter().flat_map(|lock| lock.images.values()).map(|image| (image.clone(), None, false));
    let recorded = recorded.iter().map(|(image, is_database)| (image.clone(), None, *is_database));
    distinct(settings.chain(locked).chain(recorded), &own)
}

/// Each setting, and each image that no setting names once.
fn distinct(images: impl Iterator<Item = NamedImage>, own: &[Reference]) -> Vec<UsedImage> {
    let mut found: Vec<UsedImage> = Vec::new();
    for (text, setting, is_database) in images {
        let Ok(reference) = text.parse::<Reference>() else { continue };
        let is_named = text.contains(['/', ':', '@']);
        let is_own = own.iter().any(|own| is_of(own, &reference));
        if !is_named || is_own {
            continue;
        }
        let is_database = is_database || package(&reference).is_some();
        let mut is_known = false;
        if setting.is_none() {
            for known in found.iter_mut().filter(|known| is_same(&known.reference, &reference)) {
                // The lock has the digest of a configured tag.
                known.reference.digest = known.reference.digest.or(reference.digest);
                known.is_database |= is_database;
                is_known = true;
            }
        }
        if !is_known {
            found.push(UsedImage { reference, setting, is_database });
        }
    }
    found
}

fn is_same(one: &Reference, other: &Reference) -> bool {
    is_of(one, other) && (one.tag == other.tag || (other.digest.is_some() && one.digest == other.digest))
}

fn is_of(one: &Reference, other: &Reference) -> bool {
    one.host == other.host && one.repository == other.repository
}

/// A tag, and where there is none the digest.
fn shown(reference: &Reference) -> String {
    let digest = || reference.digest.map_or_else(|| "latest".to_owned(), |digest| short(&digest.to_string()));
    reference.tag.clone().unwrap_or_else(digest)
}

/// The package of advisories, and how many numbers its versions have.
fn package(reference: &Reference) -> Option<(&'static str, usize)> {
    let name = reference.repository.rsplit('/').next()?;
    PACKAGES.iter().find(|(image, ..)| *image == name).map(|(_, package, numbers)| (*package, *numbers))
}

/// What advisories say about the version in a tag.
fn security(reference: &Reference, tag: Option<&str>, advisories: &Advisories) -> Security {
    let version = tag.and_then(|tag| {
        let tag = tag.trim_start_matches('v');
        let end = tag.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tag.len());
        Some(tag[..end].trim_end_matches('.')).filter(|version| !version.is_empty())
    });
    let Some((name, numbers)) = package(reference) else {
        let scan =
            "no advisories are about this image: scan its content with `bundle create --image` and `bundle scan`";
        return Security::unknown(scan);
    };
    match version {
        None => Security::unknown("its tag has no version"),
        // What it names changes, and advisories name full versions.
        Some(version) if version.split('.').count() < numbers => Security::unknown(match numbers {
            2 => "its tag names no minor version",
            _ => "its tag names no patch version",
        }),
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
    lists: &mut TagLists,
) -> UsedVersion {
    let reference = &image.reference;
    let Some(tag) = reference.tag.as_deref() else {
        return row.not_known("it has no tag, and digests have no order");
    };
    let name = row.name.clone();
    let options = match options(reference, queries) {
        Ok(options) => options,
        Err(why) => return row.unanswered(why),
    };
    let listed = match lists.get(&name) {
        Some(listed) => listed.clone(),
        None if lists.len() >= MAX_QUERIES => {
            return row.not_known(format!("only {MAX_QUERIES} repositories are asked for"));
        }
        None => {
            let tags =
                async { registry::tags(reference, &options, &|_| {}).await.map_err(|error| error_chain(&error)) };
            let listed = queries.ask(&name, tags).await;
            lists.insert(name.clone(), listed.clone());
            listed
        }
    };
    let newer = match listed {
        Ok(TagList { is_complete: false, .. }) => {
            return row.unanswered("the registry lists more tags than are read");
        }
        Ok(TagList { tags, .. }) => match newer(tag, &tags, image.is_database) {
            Ok(newer) => newer,
            Err(why) => return row.not_known(why),
        },
        Err(why) => return row.unanswered(why),
    };
    let is_fixed = |tag: &str| matches!(security(reference, Some(tag), advisories), Security::Unaffected { .. });
    let fixed = newer.iter().find(|tag| is_fixed(tag.as_str())).cloned();
    let newest = newer.last().cloned().unwrap_or_else(|| tag.to_owned());
    let (is_newer_tag, is_newest_fixed) = (newest != tag, is_fixed(newest.as_str()));
    // Without a digest, the same tag is the same text.
    let of = async |tag: String| pinned(reference, tag, &name, &options, queries).await;
    let (newest, source) = match of(newest).await {
        Ok(newest) => (newest, Some(reference.host.clone())),
        Err(why) => return row.unanswered(why),
    };
    let is_newer = is_newer_tag || newest.digest != reference.digest;
    let fix = match fixed {
        _ if !row.is_affected() => None,
        Some(fixed) => Some(match of(fixed.clone()).await {
            Ok(fixed) => change(image, &fixed, chosen),
            Err(why) => Change::Other { how: format!("take tag {fixed}, whose digest is not known: {why}") },
        }),
        None => {
            let how = "the registry has no tag of this form without a known vulnerability: choose another version";
            Some(Change::Other { how: how.to_owned() })
        }
    };
    let text = match is_newer && !is_newer_tag {
        true => newest.digest.map_or(String::new(), |digest| format!("{tag} as {}", short(&digest.to_string()))),
        false => shown(&newest),
    };
    let update = match row.is_affected() && !is_newest_fixed {
        // With the newest version, a vulnerability would remain.
        true => fix.clone(),
        false => is_newer.then(|| change(image, &newest, chosen)),
    };
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

/// A tag by its numbers, and the text between them: `15.19-minimal-trixie` is 15 and 19 in `#.#-minimal-trixie`. A
/// number after a letter is of something else: `pg15`, `cuda12.4`, `alpine3.20`. It belongs to the text.
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
        let (mut shape, mut numbers) = (String::new(), Vec::new());
        for segment in tag.split_inclusive(['-', '_']) {
            let version = segment.strip_prefix('v').unwrap_or(segment);
            let end = version.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(version.len());
            let (version, text) = version.split_at(end);
            shape.push_str(&segment[..segment.len() - version.len() - text.len()]);
            for part in version.split_inclusive(|c: char| !c.is_ascii_digit()) {
                let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
                if !digits.is_empty() {
                    numbers.push(digits.parse::<u64>().ok()?);
                    shape.push('#');
                }
                shape.push_str(&part[digits.len()..]);
            }
            shape.push_str(text);
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
    fn numbers_of_what_a_version_is_for_stay() {
        let newest = |used: &str, tags: &[&str], same_major: bool| {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            newer(used, &tags, same_major).unwrap().pop()
        };
        assert_eq!(newest("15-3.4", &["15-3.5", "18-3.6"], true).as_deref(), Some("15-3.5"));
        let vectors = ["0.8.0-pg16", "0.8.1-pg15", "0.9.0-pg18"];
        assert_eq!(newest("0.8.0-pg15", &vectors, true).as_deref(), Some("0.8.1-pg15"));
        let servers = ["15.19-alpine3.21", "15.20-alpine3.20", "15.21-alpine3.21", "16.4-alpine3.20"];
        assert_eq!(newest("15.19-alpine3.20", &servers, true).as_deref(), Some("15.20-alpine3.20"));
        assert_eq!(newest("2.17.2-cuda12.4", &["2.18.0-cuda13", "2.18.0-cuda12.6"], false), None);
        assert!(newer("pg15", &[], true).is_err());
    }

    #[test]
    fn each_setting_of_an_image_is_a_change_of_its_own() {
        let image = "r.example/pg:15.19";
        let setting = |nth: usize| {
            let path = format!("sites[{nth}].cluster.image");
            let (value, origin) = (Value::from(image), Origin::Default { phase: None });
            (image.to_owned(), Some(Fact { path, value, origin, about: String::new() }), false)
        };
        let recorded: NamedImage = (format!("{image}@sha256:{}", "0".repeat(64)), None, true);
        let found = distinct([setting(0), setting(1), recorded.clone(), recorded].into_iter(), &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        let is_complete = |image: &UsedImage| image.setting.is_some() && image.reference.digest.is_some();
        assert!(found.iter().all(|image| is_complete(image) && image.is_database), "{found:?}");
    }

    #[test]
    fn images_are_found_in_the_specs_of_resources() {
        let mut found = BTreeMap::new();
        let spec = json!({
            "template": { "containers": [{ "image": "r.example/a:1" }, { "image": { "kind": "x" } }] },
            "imageName": "r.example/b:2", "name": "r.example/c:3",
        });
        collect(&spec, &mut found);
        let found: Vec<(&str, bool)> =
            found.iter().map(|(image, is_database)| (image.as_str(), *is_database)).collect();
        assert_eq!(found, [("r.example/a:1", false), ("r.example/b:2", true)]);
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
        for unknown in ["postgres:latest", "postgres:15", "redis:7.2", "r.example/textnlp:1.0.0", "postgres@sha256:0"] {
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
