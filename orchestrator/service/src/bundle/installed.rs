//! Additional checks of a site that is installed from a bundle: unmodified content, no known vulnerabilities, and no
//! connections to other machines.

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::manifest::ItemKind;
use textnlp_bundle::scan::{self, Folder, Gate, Settings, Severity};
use textnlp_bundle::{Authenticity, Drive, Installed, Site};
use textnlp_orchestrator::environment::Library;
use textnlp_orchestrator::gate::phases::{CONTENT, VULNERABILITIES};
use textnlp_orchestrator::gate::{Check, EntryBasis};
use textnlp_orchestrator::release::Lock;
use textnlp_provider::units::counted;

use super::signed;
use crate::audit::{Audit, aged, how_to_accept, max_age_days, within_age};
use crate::sockets::elsewhere;
use crate::{ChosenEnvironment, Deployment};

/// The signed bundle that the release of a deployment is installed from. `None` if a part of the release is not from it,
/// or no trusted key had signed it.
pub fn basis(library: &Library, deployment: &Deployment) -> Option<EntryBasis> {
    let site = Site::new(&root(library, deployment));
    let pinned = site.pinned_keys().ok()??;
    // The record says what was trusted at the installation.
    let is_trusted = |key: &str| {
        pinned.trusted.iter().any(|known| known.id() == key) && !pinned.revoked.iter().any(|known| known.id() == key)
    };
    basis_of(&site.installed().ok()??, &deployment.release.as_ref()?.lock, is_trusted)
}

fn basis_of(record: &Installed, lock: &Lock, is_trusted: impl Fn(&str) -> bool) -> Option<EntryBasis> {
    let has = |kind: ItemKind, is_it: &dyn Fn(&str) -> bool| {
        record.contents.items.iter().any(|item| item.kind == kind && is_it(&item.digest.to_string()))
    };
    let is_content = has(ItemKind::Program, &|digest| digest == lock.server)
        && lock.models.values().all(|model| has(ItemKind::Model, &|digest| digest == model))
        && lock.images.values().all(|image| has(ItemKind::Image, &|digest| image.ends_with(digest)));
    let source = record.sources.last().filter(|_| is_content && record.is_verified())?;
    let Authenticity::Verified { key } = &source.authenticity else { return None };
    if !is_trusted(key) {
        return None;
    }
    // A record of the journal is limited in length.
    Some(EntryBasis::Bundle {
        version: record.version.chars().take(100).collect(),
        key: key.chars().take(64).collect(),
    })
}

/// The checks of an installed site.
pub(crate) async fn checks(library: &Library, deployment: &Deployment, audit: &Audit<'_>) -> Vec<Check> {
    let ChosenEnvironment { scope, .. } = &deployment.chosen;
    let root = root(library, deployment);
    // With a copy of the advisory database; a newer bundle has one, too.
    let refresh = scope.last("gate --advisories DIR");
    let both = tokio::task::block_in_place(|| [content(&root), vulnerable(&root, audit, &refresh)]);
    let mut checks: Vec<Check> = both.into();
    let pids = deployment.sites.keys().map(|site| scope.platform.processes(&scope.folder, site));
    let pids: std::io::Result<Vec<Vec<u32>>> = pids.collect();
    checks.push(elsewhere(pids.map(|pids| pids.concat())));
    checks
}

/// The root of the installed site: the parent of its environments, else of its state folder.
fn root(library: &Library, deployment: &Deployment) -> Utf8PathBuf {
    let state = deployment.chosen.scope.folder.parent().and_then(Utf8Path::parent);
    let environments = library.folder().and_then(Utf8Path::parent);
    let roots: Vec<&Utf8Path> = environments.into_iter().chain(state).collect();
    let installed = roots.iter().find(|root| matches!(Site::new(root).installed(), Ok(Some(_))));
    installed.or(roots.first()).map_or_else(Utf8PathBuf::new, |root| (*root).to_owned())
}

/// Verifies every installed byte.
fn content(root: &Utf8Path) -> Check {
    let fails = |why: String| Check::unmeasured(CONTENT, 0, "altered files", why);
    let site = Site::new(root);
    let (name, record) = match (site.current(), site.installed()) {
        (Ok(Some(name)), Ok(Some(record))) => (name, record),
        (Ok(None), _) | (_, Ok(None)) => return fails(format!("nothing was installed from a bundle in {root}")),
        (Err(error), _) | (_, Err(error)) => return fails(error.to_string()),
    };
    match site.altered(&name, &record, true, &Drive::default()) {
        Ok(altered) => {
            let who = signer(&record);
            let mut note =
                format!("version {}, {}, {who}", record.version, counted(record.contents.files.len(), "file"));
            if let Some(first) = altered.first() {
                note = format!("{first}; {note}");
            }
            Check::new(CONTENT, altered.len(), 0, "altered files", altered.is_empty()).note(note)
        }
        Err(error) => fails(error.to_string()),
    }
}

/// Who signed an installed content: the first source without a trusted signature, else the first one.
fn signer(record: &Installed) -> String {
    let unverified = record.sources.iter().map(|source| &source.authenticity).find(|one| !one.is_verified());
    let authenticity = unverified.or(record.sources.first().map(|source| &source.authenticity));
    authenticity.map_or_else(|| "of unknown origin".to_owned(), signed)
}

/// Who signed the installed content, and whether a trusted key did. `None` if nothing is installed from a bundle.
pub(crate) fn origin(library: &Library, deployment: &Deployment) -> Result<Option<(String, bool)>, String> {
    let record = Site::new(&root(library, deployment)).installed().map_err(|error| error.to_string())?;
    Ok(record.map(|record| {
        let who = format!("bundle {}, {}", record.version, signer(&record));
        (who, record.is_verified() && !record.sources.is_empty())
    }))
}

/// Checks the content against the given advisories, else the included ones. Without them, only the recorded audit of the
/// program is available. The service uses no file of `packages/`: findings in Python packages there are named and do not
/// count. `refresh`: the command that checks it against others.
fn vulnerable(root: &Utf8Path, audit: &Audit<'_>, refresh: &str) -> Check {
    let gates = audit.gates;
    let fails = |why: String| Check::unmeasured(VULNERABILITIES, 0, "critical", why);
    let settings = Settings { max_age_days: max_age_days(gates), has_packages: false, ..Settings::at(audit.now) };
    let mut scan = scan::Scan::new(settings);
    if let Some(database) = audit.given {
        scan = scan.with(database.clone());
    }
    let scanned = Folder::open(&root.join("current")).map_err(|e| e.to_string()).and_then(|folder| {
        let report = scan.of_folder("installed", &folder).map_err(|e| e.to_string())?;
        Ok((report, scan.of_python_packages("packages", &folder).map_err(|e| e.to_string())?))
    });
    let (report, packages) = match scanned {
        Ok(scanned) => scanned,
        Err(why) => return fails(why),
    };
    let critical = report.summary.of(Severity::Critical);
    let Some(age) = report.databases.iter().map(|database| database.age_days).max() else {
        let recorded = audit.check(|| None);
        let worst = report.findings.first().filter(|_| critical > 0);
        return match worst {
            Some(worst) => Check::new(VULNERABILITIES, critical, 0, "critical", false)
                .note(format!("{}: {} ({})", worst.id, worst.title, worst.place)),
            None if !recorded.ok && !recorded.waits => recorded,
            None => {
                let known = recorded.measured.as_u64().map(|found| format!("; the audit of the program found {found}"));
                let why = format!(
                    "the bundle has no advisories; to check it: {refresh}{}{}",
                    known.unwrap_or_default(),
                    how_to_accept(gates.advisories)
                );
                Check::unchecked(VULNERABILITIES, 0, "critical", why, gates.advisories)
            }
        };
    };
    let of: Vec<String> =
        report.databases.iter().map(|d| format!("{} advisories, {}", d.advisories, aged(d.date, d.age_days))).collect();
    let mut note = format!("{}; {} in all", of.join("; "), counted(report.findings.len(), "finding"));
    let affected = packages.map_or(0, |packages| packages.packages().len());
    if affected > 0 {
        note.push_str(&format!("; not counted: findings in {} of packages/", counted(affected, "Python package")));
    }
    let check = match scan::gate(&report, Severity::Critical) {
        Gate::Open => Check::new(VULNERABILITIES, critical, 0, "critical", true).note(note),
        Gate::Shut { blockers } => {
            let first = blockers.first().cloned().unwrap_or_default();
            Check::new(VULNERABILITIES, critical, 0, "critical", false).note(format!("{first}; {note}"))
        }
    };
    within_age(check, age, gates, refresh)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use textnlp_bundle::manifest::{Item, Kind};
    use textnlp_bundle::scan::Database;
    use textnlp_bundle::{Contents, Source};
    use textnlp_models::Digest;
    use textnlp_orchestrator::environment::model::Gates;

    use super::*;

    #[test]
    fn findings_in_python_packages_are_named_and_do_not_shut_the_gate() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let packages = root.join("current/packages");
        std::fs::create_dir_all(&packages).unwrap();
        std::fs::create_dir(root.join("osv")).unwrap();
        let document = r#"{ "id": "PYSEC-1", "modified": "2026-08-21T00:00:00Z", "summary": "Bad things",
            "severity": [{ "type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H" }],
            "affected": [{ "package": { "ecosystem": "PyPI", "name": "foo-bar" },
                "ranges": [{ "type": "ECOSYSTEM", "events": [{ "introduced": "0" }, { "fixed": "1.1" }] }] }] }"#;
        std::fs::write(root.join("osv/one.json"), document).unwrap();
        let (database, gates) = (Database::from_folder(&root.join("osv")).unwrap(), Gates::default());
        let now = "2026-09-01T12:00:00Z".parse().unwrap();
        let audit = Audit { gates: &gates, now, given: Some(&database), refresh: "gate", features: &[] };
        std::fs::write(packages.join("foo_bar-1.1-py3-none-any.whl"), "a wheel").unwrap();
        let without = vulnerable(root, &audit, "gate");
        let note = without.note.unwrap_or_default();
        assert!(without.ok && note.ends_with("; 0 findings in all"), "{note}");
        std::fs::write(packages.join("foo_bar-1.0-py3-none-any.whl"), "a wheel").unwrap();
        let with = vulnerable(root, &audit, "gate");
        let note = with.note.unwrap_or_default();
        assert!(with.ok && note.ends_with("; not counted: findings in 1 Python package of packages/"), "{note}");
    }

    #[test]
    fn only_the_content_of_signed_bundles_enters_a_phase() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let item = |kind: ItemKind, name: &str| Item {
            kind,
            name: name.to_owned(),
            version: None,
            digest: digest(name),
            platform: None,
            license: None,
            source: None,
            media_type: None,
            paths: Vec::new(),
        };
        let items =
            vec![item(ItemKind::Program, "textnlp"), item(ItemKind::Model, "tiny"), item(ItemKind::Image, "api")];
        let authenticity = Authenticity::Verified { key: "ABCD".to_owned() };
        let source =
            Source { kind: Kind::Full, version: "2.0.0".to_owned(), manifest: digest("manifest"), authenticity };
        let signed = Installed {
            format: 1,
            content: digest("content"),
            version: "2.0.0".to_owned(),
            epoch: 1,
            sources: vec![source],
            previous: None,
            contents: Contents { items, files: Vec::new() },
            stamps: Vec::new(),
        };
        let lock = Lock {
            environment: "pilot".parse().unwrap(),
            server: digest("textnlp").to_string(),
            models: BTreeMap::from([("tiny".to_owned(), digest("tiny").to_string())]),
            sources: BTreeMap::new(),
            tenants: BTreeMap::new(),
            images: BTreeMap::from([("main".to_owned(), format!("r.example/api@{}", digest("api")))]),
            image_sources: BTreeMap::new(),
            templates: None,
            configuration: String::new(),
            schema: None,
        };
        let basis = basis_of(&signed, &lock, |_| true).expect("it is the content of the bundle");
        assert_eq!(basis.to_string(), "bundle 2.0.0 signed by key ABCD");
        let other = digest("other").to_string();
        assert_eq!(basis_of(&signed, &Lock { server: other.clone(), ..lock.clone() }, |_| true), None);
        let models = BTreeMap::from([("tiny".to_owned(), other.clone())]);
        assert_eq!(basis_of(&signed, &Lock { models, ..lock.clone() }, |_| true), None);
        let images = BTreeMap::from([("main".to_owned(), format!("r.example/api@{other}"))]);
        assert_eq!(basis_of(&signed, &Lock { images, ..lock.clone() }, |_| true), None);
        assert_eq!(basis_of(&signed, &lock, |key| key != "ABCD"), None, "the site trusts it no longer");
        let mut unsigned = signed;
        unsigned.sources[0].authenticity = Authenticity::Unverified { why: "it is not signed".to_owned() };
        assert_eq!(basis_of(&unsigned, &lock, |_| true), None);
    }
}
