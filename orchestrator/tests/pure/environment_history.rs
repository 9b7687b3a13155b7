//! The history of releases: what is kept, what survives damage, and what it says about going back.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_orchestrator::environment::model::{ModelSettings, Phase};
use textnlp_orchestrator::environment::{Catalogue, Environment, Library, Overrides};
use textnlp_orchestrator::release::{
    Applied, Artifacts, History, Lock, MAX_RELEASES, PROGRAMS, Release, configuration_digest, digest, images, promote,
    runs_on, with_images,
};
use textnlp_provider::component::Program;

fn environment(name: &str, sets: &[&str]) -> Environment {
    let overrides = Overrides { sets: sets.iter().map(|s| (*s).to_owned()).collect(), ..Overrides::default() };
    Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment
}

fn lock(environment: &Environment, server: &str) -> Lock {
    Lock {
        environment: environment.environment.clone(),
        server: digest(server.as_bytes()),
        models: environment.models.iter().map(|m| (m.name.clone(), digest(m.source().as_bytes()))).collect(),
        sources: environment.models.iter().map(|m| (m.name.clone(), m.source().to_owned())).collect(),
        tenants: Default::default(),
        images: images(environment),
        image_sources: images(environment),
        templates: Some(digest(b"templates")),
        configuration: configuration_digest(environment),
        schema: Some(3),
    }
}

fn nothing_known() -> Artifacts {
    Artifacts {
        program: Program { path: "/p".into(), digest: digest(b"server") },
        models: Default::default(),
        templates: None,
        schema: None,
        given: Default::default(),
        files: Default::default(),
        image: None,
    }
}

fn applied(server: &str, schema: u32) -> Applied {
    Applied {
        at: Timestamp::UNIX_EPOCH,
        by: "ada".to_owned(),
        reason: Some("because\n\u{1f980}".to_owned()),
        tool: "textnlp-deploy 9".to_owned(),
        schema: Some(schema),
        phase: Some(Phase::Staging),
        settings: None,
        lock: lock(&environment("staging", &[]), server),
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn at(&self) -> &Utf8Path {
        Utf8Path::from_path(self.folder.path()).unwrap()
    }

    fn history(&self) -> History {
        History::at(self.at())
    }

    fn files(&self, folder: &str) -> Vec<Utf8PathBuf> {
        let mut files: Vec<_> =
            self.at().join(folder).read_dir_utf8().unwrap().map(|e| e.unwrap().into_path()).collect();
        files.sort();
        files
    }
}

#[test]
fn identical_release_is_stored_once_and_the_oldest_are_dropped() {
    let place = Place::new();
    let history = place.history();
    assert_eq!(history.read().unwrap().entries, []);
    assert_eq!(history.keep(&applied("one", 3)).unwrap(), Some(1));
    let again = Applied { by: "bob".to_owned(), reason: None, at: Timestamp::MAX, ..applied("one", 3) };
    assert_eq!(history.keep(&again).unwrap(), None);
    assert_eq!(history.keep(&applied("two", 3)).unwrap(), Some(2));
    assert_eq!(history.keep(&applied("one", 3)).unwrap(), Some(3), "back again is a release of its own");
    let with_settings = Applied { settings: Some(digest(b"settings")), ..applied("one", 3) };
    assert_eq!(history.keep(&with_settings).unwrap(), Some(4), "the entry of an earlier version had none");
    assert_eq!(history.keep(&with_settings).unwrap(), None);
    let recorded = history.read().unwrap();
    let entries: Vec<_> = recorded.entries.iter().map(|e| (e.number, e.applied.clone())).collect();
    assert_eq!(entries, [(1, applied("one", 3)), (2, applied("two", 3)), (3, applied("one", 3)), (4, with_settings)]);

    for n in 0..MAX_RELEASES {
        history.keep(&applied(&n.to_string(), 4)).unwrap();
    }
    let recorded = history.read().unwrap();
    assert_eq!((recorded.entries.len(), recorded.entries[0].number), (MAX_RELEASES, 5));
    assert_eq!(place.files("releases").len(), MAX_RELEASES, "nothing else lies there");
}

#[test]
fn damaged_history_entry_does_not_affect_the_others() {
    let place = Place::new();
    let history = place.history();
    for server in ["one", "two", "three"] {
        history.keep(&applied(server, 3)).unwrap();
    }
    let file = &place.files("releases")[2];
    let good = std::fs::read(file).unwrap();
    let cuts = (0..good.len()).step_by(7).map(|at| good[..at].to_vec());
    let flips = (0..good.len()).step_by(7).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    });
    for bad in cuts.chain(flips).chain([[&good[..], b" "].concat(), vec![0xff; 3]]) {
        std::fs::write(file, &bad).unwrap();
        let recorded = history.read().unwrap();
        assert_eq!(recorded.entries.len(), 2, "{}", String::from_utf8_lossy(&bad));
        assert!(recorded.skipped.len() == 1 && recorded.skipped[0].starts_with(file.as_str()), "{recorded:?}");
        assert!(recorded.newest().unwrap_err().contains(file.as_str()), "an older entry is not the newest");
    }
    // Its number is not used again, so no release is taken for another one. The older entry is not the newest one.
    assert_eq!(history.keep(&applied("two", 3)).unwrap(), Some(4));
    assert_eq!(history.read().unwrap().newest().unwrap().unwrap().number, 4);
}

#[test]
fn change_of_one_site_is_recorded_with_its_time() {
    let place = Place::new();
    let history = place.history();
    let at = |server: &str, second: i64| Applied { at: Timestamp::from_second(second).unwrap(), ..applied(server, 3) };
    let changed = || history.changed_at().unwrap().map(|at| at.as_second());
    let both = ["home", "away"];
    history.keep(&at("one", 1)).unwrap();
    history.keep_sites(both, &at("one", 2)).unwrap();
    assert_eq!(changed(), None, "an earlier version recorded this release");
    let steps = [
        ("two", &both[..1], 10, 10),
        ("two", &both[..1], 11, 10),
        ("two", &both[1..], 20, 20),
        ("two", &both[..], 30, 20),
        // Back on one site, which the history of releases does not show.
        ("three", &both[..1], 40, 40),
        ("two", &both[..], 50, 50),
    ];
    for (server, sites, second, expect) in steps {
        history.keep_sites(sites.iter().copied(), &at(server, second)).unwrap();
        assert_eq!(changed(), Some(expect), "{server} at {second}");
    }
    assert_eq!(history.read().unwrap().entries.len(), 1);
    std::fs::write(place.at().join("releases/sites.json"), "{").unwrap();
    assert!(history.changed_at().is_err());
    history.keep_sites(both, &at("two", 60)).unwrap();
    assert_eq!(changed(), Some(60));
}

#[test]
fn leftover_of_a_killed_run_is_not_an_entry_and_is_removed() {
    let place = Place::new();
    let history = place.history();
    history.keep(&applied("one", 3)).unwrap();
    // No process has this id: ids end at 2^22.
    let left = place.at().join("releases/99999999-0.new");
    std::fs::write(&left, "sha256").unwrap();
    assert_eq!(history.read().unwrap().entries.len(), 1);
    history.keep(&applied("two", 3)).unwrap();
    assert!(!left.exists() && history.read().unwrap().skipped.is_empty());
}

#[test]
fn concurrent_runs_record_different_release_numbers() {
    let place = Place::new();
    let history = place.history();
    let numbers: BTreeSet<_> = std::thread::scope(|scope| {
        let keep = |n: u32| history.keep(&applied(&n.to_string(), 1)).unwrap();
        let runs: Vec<_> = (0..8).map(|n| scope.spawn(move || keep(n))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(numbers, (1..=8).map(Some).collect());
    assert_eq!(history.read().unwrap().entries.len(), 8);
}

#[test]
fn programs_are_stored_by_digest_verified_and_bounded() {
    let place = Place::new();
    let history = place.history();
    let of = |name: &str| {
        let path = place.at().join(name);
        std::fs::write(&path, name).unwrap();
        Program { path: path.into_string(), digest: digest(name.as_bytes()) }
    };
    let one = of("one");
    assert_eq!(history.program(&one.digest), None);
    history.keep_program(&one).unwrap();
    history.keep_program(&one).unwrap();
    let kept = history.program(&one.digest).unwrap();
    assert!(kept.digest == one.digest && std::fs::read_to_string(&kept.path).unwrap() == "one");
    std::fs::write(&kept.path, "other").unwrap();
    assert_eq!(history.program(&one.digest), None, "other bytes are another program");

    let lying = Program { digest: digest(b"else"), ..one };
    assert!(history.keep_program(&lying).unwrap_err().to_string().contains("copy program"));
    for n in 0..PROGRAMS {
        history.keep_program(&of(&format!("more-{n}"))).unwrap();
    }
    assert_eq!(place.files("programs").len(), PROGRAMS);
    assert!(history.program(&digest(b"more-2")).is_some());
}

#[test]
fn rollback_selects_another_release_with_a_compatible_schema() {
    let place = Place::new();
    let history = place.history();
    history.keep(&applied("old", 3)).unwrap();
    history.keep(&applied("new", 4)).unwrap();
    // The old server on the schema that the new one left behind.
    history.keep(&applied("old", 4)).unwrap();
    let mut configured = applied("old", 4);
    configured.lock.configuration = digest(b"other");
    history.keep(&configured).unwrap();
    let recorded = history.read().unwrap();
    assert_eq!(recorded.before(&configured.lock).unwrap().number, 2, "a configuration alone is nothing to go back to");
    assert_eq!(recorded.before(&applied("new", 4).lock).unwrap().number, 4);
    assert_eq!(recorded.schema_of(&digest(b"old")), Some(3));
    assert_eq!(recorded.schema_of(&digest(b"unknown")), None);
    assert!(runs_on(3, 3) && runs_on(3, 4) && !runs_on(3, 5));
}

#[test]
fn promotion_takes_the_verified_release_and_keeps_the_configuration() {
    let (from, to) = (environment("development", &[]), environment("staging", &[]));
    let proven = lock(&from, "server");
    let promoted = promote(&proven, &to).unwrap();
    let wanted =
        Lock { environment: to.environment.clone(), configuration: configuration_digest(&to), ..proven.clone() };
    assert_eq!(promoted, wanted);
    assert_ne!(promoted.configuration, proven.configuration);

    let refused = |sets: &[&str]| promote(&proven, &environment("staging", sets)).unwrap_err().join("; ");
    assert!(refused(&["models[0].source=file:/elsewhere"]).contains("has another source"));
    let mut nothing = proven.clone();
    nothing.models.clear();
    assert!(promote(&nothing, &to).unwrap_err()[0].contains("does not run in development"));

    // The content of a tenant's model is verified by any name.
    let (name, tenant) = ("own".to_owned(), Some("acme".to_owned()));
    let own = ModelSettings { name, tenant, role: None, ..to.models[0].clone() };
    let with = |model: &ModelSettings| {
        let mut to = to.clone();
        to.models.push(model.clone());
        promote(&proven, &to)
    };
    let promoted = with(&own).unwrap();
    assert_eq!(promoted.models["acme/own"], proven.models["textnlp-tiny"]);
    assert_eq!(promoted.sources["acme/own"], "bundled");
    let elsewhere = ModelSettings { source: Some("file:/own".to_owned()), ..own.clone() };
    assert!(with(&elsewhere).unwrap_err()[0].contains("model acme/own of staging does not run in development"));
    let of_all = ModelSettings { tenant: None, ..own.clone() };
    assert!(with(&of_all).unwrap_err()[0].contains("model own of staging does not run in development"));
    // A private model is not published by a name that looks like its id.
    let mut public = to.clone();
    public.models.push(ModelSettings { name: "acme/own".to_owned(), ..of_all });
    let refused = promote(&promoted, &public).unwrap_err();
    assert_eq!(refused, ["model acme/own of staging is for all tenants, and belongs to one in staging"]);
    let mut ours = to.clone();
    ours.models.push(own.clone());
    let [ours, public] = [ours, public].map(|environment| Lock {
        models: promoted.models.clone(),
        ..Release::resolve(&environment, &nothing_known()).lock
    });
    assert_eq!(ours.differences(&public)[0].to_string(), "models.acme/own: locked acme, here none");
    // Of several digests with its source, it has the one that is written.
    let mut several = proven.clone();
    several.models.insert("other".to_owned(), digest(b"other"));
    several.sources.insert("other".to_owned(), "bundled".to_owned());
    let promoted_by = |pinned: Option<String>| {
        let mut to = to.clone();
        to.models.push(ModelSettings { digest: pinned, ..own.clone() });
        promote(&several, &to)
    };
    assert!(promoted_by(None).unwrap_err()[0].contains("of which development runs 2 digests"));
    assert_eq!(promoted_by(Some(digest(b"other"))).unwrap().models["acme/own"], digest(b"other"));
    assert!(promoted_by(Some(digest(b"none"))).unwrap_err()[0].contains("pinned to another digest"));
}

#[test]
fn locked_image_is_valid_while_the_environment_names_the_same_image() {
    let named = |image: &str| environment("pilot", &[&format!("sites[0].cluster.image={image}")]);
    let (old, new) = (named("r.example/t:1"), named("r.example/t:2"));
    let artifacts = nothing_known();
    // As `rollback` leaves it: the image of then, and what is said today.
    let mut locked = Release::resolve(&old, &artifacts).lock;
    locked.image_sources = images(&new);
    let of = |environment: &Environment| {
        let release = Release::locked(environment, &locked, &artifacts).unwrap();
        (
            with_images(environment, &release.lock).sites[0].cluster.image.clone(),
            release.lock.image_sources["main"].clone(),
        )
    };
    assert_eq!(of(&new), (Some("r.example/t:1".into()), "r.example/t:2".into()));
    assert_eq!(of(&named("r.example/t:3")), (Some("r.example/t:3".into()), "r.example/t:3".into()), "said anew");
    let fresh = Release::resolve(&new, &artifacts).lock;
    assert!(!fresh.runs_the_same(&locked));
    assert_eq!(fresh.differences(&locked)[0].to_string(), "images.main: locked r.example/t:2, here r.example/t:1");
}

#[test]
fn image_of_this_program_is_locked_in_the_repository_of_the_registry() {
    let environment = environment("pilot", &["registry.url=https://1.registry.example/textnlp/"]);
    let artifacts = |image: Option<&str>| Artifacts {
        program: Program { path: "/p".into(), digest: digest(b"server") },
        models: Default::default(),
        templates: None,
        schema: None,
        given: Default::default(),
        files: Default::default(),
        image: image.map(|tag| format!("{tag}@{}", digest(tag.as_bytes()))),
    };
    let image = |tag: &str| Some(format!("1.registry.example/textnlp:{tag}@{}", digest(tag.as_bytes())));
    let first = Release::resolve(&environment, &artifacts(Some("1.0-a"))).lock;
    assert_eq!(first.images.get("main").cloned(), image("1.0-a"));
    assert_eq!(first.image_sources["main"], "1.registry.example/textnlp");
    // A newer program adds no release by itself, and one without an image goes on with the locked one.
    for newer in [Some("1.1-b"), None] {
        let locked = Release::locked(&environment, &first, &artifacts(newer)).unwrap();
        assert_eq!(with_images(&environment, &locked.lock).sites[0].cluster.image, image("1.0-a"));
    }
    assert_eq!(Release::resolve(&environment, &artifacts(None)).lock.images.len(), 0);
    let own =
        self::environment("pilot", &["registry.url=1.registry.example/t", "sites[0].cluster.image=r.example/t:1"]);
    assert_eq!(Release::resolve(&own, &artifacts(Some("1.0-a"))).lock.images["main"], "r.example/t:1");
}

#[test]
fn promotion_pins_the_verified_image_by_digest() {
    let to = |image: &str| environment("scale-up", &[&format!("sites[0].cluster.image={image}")]);
    let pinned = |by: &str| format!("r.example/t:1@{}", digest(by.as_bytes()));
    let proven = |image: &str| lock(&environment("pilot", &[&format!("sites[0].cluster.image={image}")]), "server");
    let over = |from: &str, said: &str| promote(&proven(from), &to(said)).map(|lock| lock.images["main"].clone());
    assert_eq!(over("r.example/t:1", "r.example/t:1").unwrap(), "r.example/t:1");
    // A copy of the registry has the same bytes under the same digest.
    let there = format!("far.example/t:9@{}", digest(b"a"));
    assert_eq!(over(&pinned("a"), "far.example/t:9").unwrap(), there);
    assert_eq!(over(&pinned("a"), &there).unwrap(), there);
    for (from, said) in [("r.example/t:1".to_owned(), "r.example/t:2"), (pinned("b"), there.as_str())] {
        let why = over(&from, said).unwrap_err().join("; ");
        assert!(why.contains("site main of scale-up has the image") && why.contains(&from), "{why}");
    }
    // Machines prove a program, and no image.
    let of_machines = lock(&environment("staging", &[]), "server");
    assert!(promote(&of_machines, &to("r.example/t:2")).unwrap().images.is_empty());
}
