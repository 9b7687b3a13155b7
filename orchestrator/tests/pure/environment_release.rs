//! Releases: the lock file and what it fixes.

use std::collections::BTreeMap;

use camino::Utf8Path;
use expect_test::expect;
use textnlp_orchestrator::environment::{Catalogue, Environment, Library, Overrides};
use textnlp_orchestrator::release::{Artifacts, Lock, LockError, Release, digest};
use textnlp_provider::component::Program;

fn staging(sets: &[&str]) -> Environment {
    let overrides = Overrides { sets: sets.iter().map(|s| (*s).to_owned()).collect(), ..Overrides::default() };
    Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment
}

fn artifacts(server: &str) -> Artifacts {
    Artifacts {
        program: Program { path: format!("/opt/{server}"), digest: digest(server.as_bytes()) },
        models: BTreeMap::from([
            ("textnlp-tiny".to_owned(), digest(b"tiny")),
            ("unused".to_owned(), digest(b"unused")),
        ]),
        templates: Some(digest(b"templates")),
        schema: Some(3),
        given: BTreeMap::new(),
        files: Default::default(),
        image: None,
    }
}

#[test]
fn release_lock_round_trips_and_is_deterministic() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let environment = staging(&[]);
    let lock = Release::resolve(&environment, &artifacts("server-1")).lock;
    let path = Lock::path(folder, &environment.environment);
    assert_eq!(Lock::read(&path).unwrap(), None);
    lock.write(&path).unwrap();
    assert_eq!(Lock::read(&path).unwrap(), Some(lock.clone()));
    assert_eq!(std::fs::read(&path).unwrap(), lock.to_bytes());
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "nothing is left beside it");
    expect![[r#"
        # The locked release. Written by `textnlp-deploy release set` and `promote`; read by `up`.
        environment: staging
        server: sha256:…
        models:
          textnlp-tiny: sha256:…
        sources:
          textnlp-tiny: bundled
        templates: sha256:…
        configuration: sha256:…
        schema: 3
    "#]]
    .assert_eq(
        &String::from_utf8(lock.to_bytes())
            .unwrap()
            .lines()
            .map(|l| match l.split_once("sha256:") {
                Some((head, _)) => format!("{head}sha256:…\n"),
                None => format!("{l}\n"),
            })
            .collect::<String>(),
    );
}

#[test]
fn broken_release_lock_is_an_error_and_not_treated_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().join("staging.lock");
    let good = String::from_utf8(Release::resolve(&staging(&[]), &artifacts("server-1")).lock.to_bytes()).unwrap();
    for bad in [
        String::new(),
        "server: [".to_owned(),
        good.replace("sha256:", "md5:"),
        format!("{good}more: 1\n"),
        "\u{0}".to_owned(),
    ] {
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(Lock::read(&path), Err(LockError::Broken { .. })), "{bad}");
    }
    // In a checkout it may be a link to any file of its reader.
    for private in ["-----BEGIN KEY-----\nCANARY\n", "CANARY", "CANARY:x:0:0::\n", "- CANARY\n", "\"CANARY\": {}\n"] {
        std::fs::write(&path, private).unwrap();
        let error = Lock::read(&path).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
    }
}

#[test]
fn configuration_digest_depends_on_meaning_and_not_on_wording() {
    let of = |sets: &[&str]| Release::resolve(&staging(sets), &artifacts("s")).lock.configuration;
    assert_eq!(of(&[]), of(&["scaling.min=1", "description=other words"]));
    assert_ne!(of(&[]), of(&["scaling.min=2"]));
}

#[test]
fn lock_without_templates_equals_an_older_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().join("staging.lock");
    let here = Artifacts { templates: None, ..artifacts("server-1") };
    let lock = Release::resolve(&staging(&[]), &here).lock;
    let text = String::from_utf8(lock.to_bytes()).unwrap();
    assert!(!text.contains("templates"), "{text}");
    std::fs::write(&path, format!("{text}templates: {}\n", digest(b""))).unwrap();
    let older = Lock::read(&path).unwrap().unwrap();
    assert_eq!(older.differences(&lock), []);
}

#[test]
fn newer_artifacts_do_not_replace_locked_ones() {
    let environment = staging(&[]);
    let mut old = artifacts("server-1");
    let lock = Release::resolve(&environment, &old).lock;
    old.models.insert("textnlp-tiny".to_owned(), digest(b"newer tiny"));
    old.templates = Some(digest(b"newer templates"));
    let release = Release::locked(&environment, &lock, &old).unwrap();
    assert_eq!(lock.differences(&release.lock), []);
    let elsewhere = staging(&["models[0].source=file:/models/other"]);
    let release = Release::locked(&elsewhere, &lock, &old).unwrap();
    assert_eq!(
        release.lock.models["textnlp-tiny"],
        digest(b"newer tiny"),
        "another source is not held to the old digest"
    );
    let difference = Release::locked(&environment, &lock, &artifacts("server-2")).unwrap_err();
    assert_eq!(difference.what, "server");
    let newer = Release::resolve(&staging(&["models[0].context=512"]), &artifacts("server-2")).lock;
    let what: Vec<_> = lock.differences(&newer).into_iter().map(|d| d.what).collect();
    assert_eq!(what, ["server", "configuration"]);
}
