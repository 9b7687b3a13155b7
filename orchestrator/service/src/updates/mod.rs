//! The versions that the release of an environment depends on, newer ones that are known, and the changes that take them.
//!
//! What cannot be asked is unknown, with the reason. Sources: the registries of images, the hub of models, this program,
//! and advisories.

mod change;
mod images;
mod models;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use textnlp_bundle::scan::{Database, Package};
use textnlp_models::{FetchOptions, Limits};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::release::{Applied, Entry, Lock, pushes_image, short};
use textnlp_provider::settings::Hosting;

pub use change::{Change, Changed, apply};
pub(crate) use images::has_image;

use crate::audit::{PROGRAM, Record, age_days, aged, linked};
use crate::bundle::advisories::{AdvisorySources, said};
use crate::{ChosenEnvironment, Failure, Progress, release};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Timeout of a question.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Repositories, and models, that are asked about.
const MAX_QUERIES: usize = 20;

/// What a dependency is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DependencyKind {
    /// The server program, and the image that `up` makes of it.
    Program,
    /// A crate that is compiled into this program.
    Crate,
    /// A container image.
    Image,
    /// A model.
    Model,
    /// Kubernetes.
    Cluster,
    /// PostgreSQL that is no image.
    Database,
}

impl DependencyKind {
    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            DependencyKind::Program => "program",
            DependencyKind::Crate => "crate",
            DependencyKind::Image => "image",
            DependencyKind::Model => "model",
            DependencyKind::Cluster => "cluster",
            DependencyKind::Database => "database",
        }
    }
}

/// An advisory that names a used version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MatchedAdvisory {
    /// `RUSTSEC-2021-0080`.
    pub id: String,
    /// Its title.
    pub title: String,
    /// The versions with the fix.
    pub fixed_in: Option<String>,
}

/// What advisories say about a used version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Security {
    /// Advisories name it.
    Affected {
        /// Those advisories.
        advisories: Vec<MatchedAdvisory>,
    },
    /// No advisory names it.
    Unaffected {
        /// The advisories, and their date.
        by: String,
    },
    /// It was not compared.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Security {
    fn unknown(reason: impl Into<String>) -> Self {
        Security::Unknown { reason: reason.into() }
    }
}

/// A version that is used, compared with what is known of newer ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsedVersion {
    /// What it is.
    pub kind: DependencyKind,
    /// Its name.
    pub name: String,
    /// The setting that names an image: `sites[0].cluster.image`.
    pub setting: Option<String>,
    /// The version.
    pub used: String,
    /// The newest known version.
    pub newest: Option<String>,
    /// Whether that is another one.
    pub is_newer: bool,
    /// Where the newest version is from.
    pub source: Option<String>,
    /// The date of that version, where the source has one.
    pub date: Option<String>,
    /// Why the newest version is not known.
    pub unknown: Option<String>,
    /// Whether that is because a question failed.
    pub is_unanswered: bool,
    /// What advisories say about the used version.
    pub security: Security,
    /// How the newest version is taken.
    pub update: Option<Change>,
    /// How the first version without a known vulnerability is taken.
    pub fix: Option<Change>,
}

impl UsedVersion {
    fn new(kind: DependencyKind, name: impl Into<String>, used: impl Into<String>, security: Security) -> Self {
        Self {
            kind,
            name: name.into(),
            setting: None,
            used: used.into(),
            newest: None,
            is_newer: false,
            source: None,
            date: None,
            unknown: None,
            is_unanswered: false,
            security,
            update: None,
            fix: None,
        }
    }

    /// Its newest version is not known.
    fn not_known(self, reason: impl Into<String>) -> Self {
        Self { unknown: Some(reason.into()), ..self }
    }

    /// A question about it failed.
    fn unanswered(self, reason: impl Into<String>) -> Self {
        Self { is_unanswered: true, ..self.not_known(reason) }
    }

    /// Whether an advisory names it.
    pub fn is_affected(&self) -> bool {
        matches!(self.security, Security::Affected { .. })
    }

    /// The change that an update makes, `None` if it makes none.
    pub fn change(&self, security_only: bool) -> Option<&Change> {
        match (security_only, self.is_affected()) {
            (true, true) => self.fix.as_ref(),
            (true, false) => None,
            (false, _) => self.update.as_ref().or(self.fix.as_ref()),
        }
    }
}

/// The advisories that used versions are compared with.
pub struct Advisories {
    database: Option<Database>,
    described: String,
}

impl Advisories {
    /// Those that the operator gave, else those of this machine.
    pub fn of(sources: &AdvisorySources, given: Option<Database>) -> Self {
        let database = given.or_else(|| Some(sources.on_this_machine()?.database));
        let facts = database.iter().flat_map(|database| database.facts(Timestamp::now()));
        let described = facts.map(|facts| said(&facts)).collect::<Vec<_>>().join("; ");
        Self { database, described }
    }

    fn about(&self, package: &Package) -> Security {
        let Some(database) = &self.database else {
            return Security::unknown("no advisories are on this machine: give them with --advisories DIR");
        };
        let (_, version) = package.matched_by();
        let found = database.about(package).into_iter().filter(|advisory| advisory.informational.is_none());
        let advisories: Vec<_> = found
            .map(|advisory| MatchedAdvisory {
                id: advisory.id.clone(),
                title: advisory.title.clone(),
                fixed_in: advisory.fixed_in(version),
            })
            .collect();
        if !advisories.is_empty() {
            return Security::Affected { advisories };
        }
        if !database.covers(&package.ecosystem) {
            return Security::unknown(format!(
                "the advisories ({}) do not cover {}",
                self.described, package.ecosystem
            ));
        }
        match database.unread().first() {
            Some((what, why)) => Security::unknown(format!("advisory {what} could not be read: {why}")),
            None => Security::Unaffected { by: self.described.clone() },
        }
    }

    /// The row of this program's crates, and one for each crate that an advisory names.
    /// `set`: the command that locks another program.
    fn crates(&self, features: &[(&str, bool)], set: &str) -> Vec<UsedVersion> {
        let packages = linked(features);
        let compared = packages.iter().map(|package| (package, self.about(package)));
        let (affected, others): (Vec<_>, Vec<_>) =
            compared.partition(|(_, security)| matches!(security, Security::Affected { .. }));
        let security = match &self.database {
            Some(_) => others.into_iter().map(|(_, security)| security).next(),
            None => Some(of_this_build()),
        };
        let security = security.unwrap_or_else(|| Security::unknown("this program has no list of its crates"));
        let used = format!("{} crates of {VERSION}", packages.len());
        let all = UsedVersion::new(DependencyKind::Crate, PROGRAM, used, security);
        let newer = "the crate registry is not asked: a newer program has newer crates";
        let mut rows = vec![UsedVersion { fix: by_newer_program(&all.security, set), ..all.not_known(newer) }];
        for (package, security) in affected {
            let fixed = match &security {
                Security::Affected { advisories } => advisories.iter().find_map(|advisory| advisory.fixed_in.clone()),
                _ => None,
            };
            let row = UsedVersion::new(DependencyKind::Crate, &package.name, &package.version, security);
            rows.push(UsedVersion {
                is_newer: fixed.is_some(),
                source: fixed.is_some().then(|| self.described.clone()),
                unknown: fixed.is_none().then(|| "the advisory names no fixed version".to_owned()),
                newest: fixed,
                fix: by_newer_program(&row.security, set),
                ..row
            });
        }
        rows
    }
}

/// What the audit at the build of this program found.
fn of_this_build() -> Security {
    let record = match Record::of_this_program() {
        Ok(record) => record,
        Err(why) => return Security::unknown(why),
    };
    let advisories: Vec<_> = record.vulnerabilities.iter().map(|line| recorded(line)).collect();
    if !advisories.is_empty() {
        return Security::Affected { advisories };
    }
    let days = age_days(record.newest_advisory, Timestamp::now());
    Security::Unaffected { by: format!("audit of the build, {}", aged(record.newest_advisory, days)) }
}

/// A line of the record.
fn recorded(line: &str) -> MatchedAdvisory {
    let (id, title) = line.split_once(' ').unwrap_or((line, ""));
    MatchedAdvisory { id: id.to_owned(), title: title.to_owned(), fixed_in: None }
}

fn by_newer_program(security: &Security, set: &str) -> Option<Change> {
    let is_affected = matches!(security, Security::Affected { .. });
    is_affected.then(|| Change::Other { how: format!("install a program that has the fix, then lock it: {set}") })
}

/// How registries and the hub are asked.
struct Queries<'a> {
    environment: &'a Environment,
    /// By the environment's proxies and certificate authorities.
    fetching: FetchOptions,
    progress: &'a dyn Progress,
}

impl<'a> Queries<'a> {
    fn of(chosen: &'a ChosenEnvironment, progress: &'a dyn Progress) -> Result<Self, Failure> {
        let environment = &chosen.loaded.environment;
        let fetching = chosen.scope.platform.fetching(environment)?;
        Ok(Self { environment, fetching: FetchOptions { limits: limits(), ..fetching }, progress })
    }

    /// The answer to a question, or why there is none.
    async fn ask<T>(&self, what: &str, question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        if self.fetching.offline {
            return Err("offline mode allows no request: unset HF_HUB_OFFLINE".to_owned());
        }
        self.progress.doing(&format!("querying {what}"));
        match tokio::time::timeout(QUERY_TIMEOUT, question).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", QUERY_TIMEOUT.as_secs())),
        }
    }
}

/// Questions are small, and many sources may be unreachable at once.
fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        idle: Duration::from_secs(10),
        attempts: 2,
        wait_at_most: Duration::from_secs(10),
        ..Limits::default()
    }
}

/// The versions that the release of an environment depends on. `here`: the release that `release set` would lock.
pub async fn used_versions(
    chosen: &ChosenEnvironment,
    here: &Lock,
    advisories: &Advisories,
    progress: &dyn Progress,
) -> Result<Vec<UsedVersion>, Failure> {
    let (environment, lock) = (&chosen.loaded.environment, chosen.lock()?);
    let queries = Queries::of(chosen, progress)?;
    let history = release::recorded(&chosen.scope)?;
    let applied = history.newest().ok().flatten();
    let set = chosen.scope.command("release set");
    let mut rows: Vec<UsedVersion> = program(environment, lock.as_ref(), here, applied, &set).into_iter().collect();
    rows.extend(advisories.crates(chosen.scope.platform.build().features, &set));
    let (images, has_postgres) = images::rows(chosen, lock.as_ref(), advisories, &queries).await;
    rows.extend(images);
    rows.extend(models::rows(chosen, lock.as_ref(), here, applied, &queries).await?);
    rows.extend(by_providers(environment, has_postgres));
    Ok(rows)
}

/// How the version of this program compares with that of the program that applied a release.
fn order(applied: &Applied) -> Option<Ordering> {
    let numbers =
        |version: &str| -> Vec<u64> { version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect() };
    let other = numbers(applied.tool.rsplit(' ').next().unwrap_or_default());
    (!other.is_empty()).then(|| numbers(VERSION).cmp(&other))
}

/// Why what this program has is no newer version, if a newer program applied the newest release.
fn by_newer(applied: Option<&Entry>) -> Option<String> {
    let Entry { number, applied } = applied?;
    let is_newer = order(applied) == Some(Ordering::Less);
    is_newer.then(|| format!("release {number} was applied by a newer program, {}", applied.tool))
}

/// The server program, or the image that `up` makes of it. `None` if neither is deployed from here. `set`: the command
/// that locks this program.
fn program(
    environment: &Environment,
    lock: Option<&Lock>,
    here: &Lock,
    applied: Option<&Entry>,
    set: &str,
) -> Option<UsedVersion> {
    let pushed: BTreeSet<String> = environment
        .sites
        .iter()
        .filter(|site| pushes_image(environment, site))
        .map(|site| format!("images.{}", site.name))
        .collect();
    if !environment.runs_here() && pushed.is_empty() {
        return None;
    }
    let version = |lock: &Lock| match lock.images.values().next().filter(|_| !environment.runs_here()) {
        Some(image) => image.clone(),
        None => short(&lock.server),
    };
    let security = Security::unknown("its crates have rows of their own");
    let source = Some(format!("this program, {VERSION}; no list of its versions is known"));
    let Some(lock) = lock else {
        let row = UsedVersion::new(DependencyKind::Program, PROGRAM, "not locked", security);
        return Some(UsedVersion { newest: Some(version(here)), source, ..row });
    };
    let what: Vec<String> = lock
        .differences(here)
        .into_iter()
        .map(|difference| difference.what)
        .filter(|what| (what == "server" && environment.runs_here()) || pushed.contains(what))
        .collect();
    let row = UsedVersion::new(DependencyKind::Program, PROGRAM, version(lock), security);
    let is_newer = !what.is_empty();
    if let Some(why) = by_newer(applied).filter(|_| is_newer) {
        return Some(row.not_known(why));
    }
    let update = match applied.and_then(|entry| order(&entry.applied)) {
        _ if !is_newer => None,
        Some(Ordering::Greater) => Some(Change::Release { what }),
        _ => {
            let how = format!("this program is not known to be newer than the locked one: to lock it: {set}");
            Some(Change::Other { how })
        }
    };
    Some(UsedVersion { newest: Some(version(here)), is_newer, source, update, ..row })
}

/// Software whose versions its provider decides, and that no source here lists. `has_postgres`: an image of PostgreSQL
/// has a row.
fn by_providers(environment: &Environment, has_postgres: bool) -> Vec<UsedVersion> {
    let mut rows = Vec::new();
    if environment.sites.iter().any(SiteSettings::is_in_cluster) {
        let used = environment.cluster.version.clone().unwrap_or_else(|| "as the cluster has it".to_owned());
        let security = Security::unknown("the provider sets the patch version");
        let row = UsedVersion::new(DependencyKind::Cluster, "Kubernetes", used, security);
        rows.push(row.not_known("the versions of the provider are not asked: set `cluster.version` to one of them"));
    }
    let Some(hosting) = environment.database_hosting() else { return rows };
    let (vulnerable, newest) = match hosting == Hosting::Cluster && !environment.runs_here() {
        true if has_postgres => return rows,
        true => ("its image is not recorded yet", "the first `up` records its image"),
        false => (
            "the minor version is that of the provider or of the machine's packages",
            "the versions of the provider or of the machine's packages are not asked",
        ),
    };
    let used = environment.database.version.to_string();
    let row = UsedVersion::new(DependencyKind::Database, "PostgreSQL", used, Security::unknown(vulnerable));
    rows.push(row.not_known(newest));
    rows
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    fn environment(sets: &[&str]) -> Environment {
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        let overrides = Overrides { sets, ..Overrides::default() };
        Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment
    }

    pub(super) fn lock(environment: &Environment, server: &str) -> Lock {
        Lock {
            environment: environment.environment.clone(),
            server: format!("sha256:{}", server.repeat(64)),
            models: Default::default(),
            sources: Default::default(),
            tenants: Default::default(),
            images: Default::default(),
            image_sources: Default::default(),
            templates: None,
            configuration: String::new(),
            schema: None,
        }
    }

    /// Advisories about one crate, as RustSec writes them.
    pub(super) fn advisories(folder: &Utf8Path, krate: &str, patched: &str) -> Advisories {
        let place = folder.join("crates").join(krate);
        std::fs::create_dir_all(&place).unwrap();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"{krate}\"\ndate = \"2026-01-01\"\n\n\
             [versions]\npatched = [{patched}]\n```\n\n# A flaw\n\nIt was made up.\n"
        );
        std::fs::write(place.join("RUSTSEC-2026-9999.md"), text).unwrap();
        let database = Database::from_folder(folder).unwrap();
        Advisories { database: Some(database), described: "RustSec".to_owned() }
    }

    /// A release that a program of this version applied.
    pub(super) fn entry(lock: &Lock, version: &str) -> Entry {
        let (at, by, tool) = (Timestamp::UNIX_EPOCH, "ada".to_owned(), format!("{PROGRAM} {version}"));
        let lock = lock.clone();
        Entry {
            number: 3,
            applied: Applied { at, by, reason: None, tool, schema: None, phase: None, settings: None, lock },
        }
    }

    #[test]
    fn only_a_newer_program_takes_the_place_of_the_locked_one() {
        let environment = environment(&[]);
        let (old, new) = (lock(&environment, "1"), lock(&environment, "2"));
        let of = |here: &Lock, version: &str| {
            program(&environment, Some(&old), here, Some(&entry(&old, version)), "set").unwrap()
        };
        let row = of(&new, "0.0.1");
        assert!(row.is_newer && row.newest == Some(short(&new.server)), "{row:?}");
        assert_eq!(row.change(false), Some(&Change::Release { what: vec!["server".to_owned()] }));
        assert_eq!(row.change(true), None, "no advisory names it");
        let older = of(&new, "9999.0.0");
        assert!(!older.is_newer && older.change(false).is_none(), "{older:?}");
        assert!(older.unknown.is_some_and(|why| why.contains("release 3 was applied by a newer program")));
        let other = of(&new, VERSION);
        assert!(other.is_newer && matches!(other.change(false), Some(Change::Other { .. })), "{other:?}");
        let same = of(&old, "0.0.1");
        assert!(!same.is_newer && same.change(false).is_none(), "{same:?}");
        let first = program(&environment, None, &new, None, "set").unwrap();
        assert!(first.used == "not locked" && first.change(false).is_none(), "{first:?}");
    }

    #[test]
    fn crate_with_an_advisory_has_a_row_and_is_not_changed_here() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let rows = advisories(folder, "tokio", "\">= 99.0.0\"").crates(&[], "set");
        let [all, tokio] = rows.as_slice() else { panic!("{rows:?}") };
        assert!(matches!(all.security, Security::Unaffected { .. }) && all.unknown.is_some(), "{all:?}");
        assert!(tokio.name == "tokio" && tokio.is_affected() && tokio.is_newer, "{tokio:?}");
        assert_eq!(tokio.newest.as_deref(), Some(">= 99.0.0"));
        assert!(matches!(tokio.change(true), Some(Change::Other { .. })), "{tokio:?}");
        let none = Advisories { database: None, described: String::new() }.crates(&[], "set");
        assert!(
            matches!(&none[0].security, Security::Unaffected { by } if by.contains("audit of the build")),
            "{none:?}"
        );
    }

    #[test]
    fn versions_of_providers_are_unknown_and_not_fine() {
        let rows = by_providers(&environment(&["database.kind=postgres", "database.version=16"]), false);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert!(row.used == "16" && row.unknown.is_some() && !row.is_newer, "{row:?}");
        assert!(by_providers(&environment(&[]), false).is_empty());
    }
}
