//! The same engine with its state in a real folder.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use camino::Utf8PathBuf;
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_orchestrator::state::{Folder, State, StateError, Store};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Lineage, Wanted};
use uuid::Uuid;

use crate::world::*;

struct OnDisk {
    world: World,
    folder: tempfile::TempDir,
}

impl OnDisk {
    fn new() -> Self {
        Self { world: World::new(), folder: tempfile::tempdir().unwrap() }
    }

    /// A path with a space in it, as people have them.
    fn path(&self) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join("my state")).unwrap()
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(Folder::at(self.path()))
    }

    fn go(
        &self,
        ask: RunOptions,
        wanted: &[Wanted],
        fuse: &Fuse,
    ) -> Option<Result<textnlp_orchestrator::run::RunOutcome, RunError>> {
        self.world.go_with(self.store(), ask, wanted, fuse)
    }

    fn up(&self) -> textnlp_orchestrator::run::RunOutcome {
        self.go(UP, &service(), &Fuse::default()).unwrap().unwrap()
    }

    fn load(&self) -> Result<State, StateError> {
        self.world.clock.run(State::load(self.store(), &environment(), Lineage(Uuid::nil()))).unwrap()
    }
}

#[test]
fn disk_store_keeps_the_same_state_as_the_memory_store() {
    let disk = OnDisk::new();
    assert!(disk.up().is_complete());
    let again = disk.up();
    assert!(again.plan.unwrap().steps.is_empty());
    assert_eq!(disk.load().unwrap().holdings(&here()).unwrap().len(), 12);
}

#[test]
fn state_directory_is_readable_by_its_owner_only() {
    let disk = OnDisk::new();
    disk.up();
    let mut files = 0;
    let mut todo = vec![disk.path().into_std_path_buf()];
    while let Some(path) = todo.pop() {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{path:?}");
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{path:?}");
            files += 1;
        }
    }
    assert!(files >= 5, "{files}");
}

#[test]
fn run_killed_at_provider_calls_resumes_from_the_state_directory() {
    for boundary in 0..60 {
        let disk = OnDisk::new();
        let fuse = Fuse::blows_at(boundary);
        if disk.go(UP, &service(), &fuse).is_some() {
            break;
        }
        assert!(disk.up().is_complete(), "{boundary}");
        assert!(disk.up().plan.unwrap().steps.is_empty(), "{boundary}");
        assert_eq!(disk.world.cloud.things().len(), 12, "{boundary}");
    }
}

#[test]
fn state_lock_is_held_only_by_a_live_process() {
    let disk = OnDisk::new();
    disk.up();
    let holder = textnlp_orchestrator::state::Holder {
        by: "grace".to_owned(),
        pid: 4711,
        host: "elsewhere".to_owned(),
        since: "2026-01-01T00:00:00Z".parse().unwrap(),
        tool: "test".to_owned(),
    };
    let lock = disk.world.clock.run(disk.store().lock(&holder)).unwrap().unwrap();
    let error = disk.go(UP, &service(), &Fuse::default()).unwrap().unwrap_err();
    let RunError::State(error @ StateError::Held { .. }) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("grace with process 4711 on elsewhere"), "{error}");
    let fence = lock.fence;
    drop(lock);
    let lock = disk.world.clock.run(disk.store().lock(&holder)).unwrap().unwrap();
    assert!(lock.fence > fence);
}

#[test]
fn torn_journal_end_on_disk_is_repaired() {
    use std::io::Write;
    let disk = OnDisk::new();
    disk.up();
    let log = disk.path().join("journal/here/log");
    std::fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(b"0123 {\"n\":").unwrap();
    assert_eq!(disk.load().unwrap().torn().count(), 1, "reading alone changes nothing");
    let arrival = disk.up();
    assert_eq!(arrival.mended.len(), 1);
    assert!(disk.load().unwrap().torn().next().is_none());
}

#[test]
fn changed_body_in_the_state_directory_is_detected() {
    let disk = OnDisk::new();
    disk.up();
    let bodies = disk.path().join("journal/here/bodies");
    let mut bytes = std::fs::read(&bodies).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&bodies, bytes).unwrap();
    assert!(matches!(disk.load(), Err(StateError::DamagedBody { .. })));
}

#[test]
fn unreadable_state_directory_is_reported_with_a_hint() {
    let disk = OnDisk::new();
    let path = disk.path();
    std::fs::write(&path, "a file where the folder should be").unwrap();
    let error = disk.go(UP, &service(), &Fuse::default()).unwrap().unwrap_err();
    let RunError::State(error) = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("my state") && error.hint().is_some(), "{error:?}");
}

#[test]
fn missing_lineage_with_existing_journals_is_not_a_new_deployment() {
    let disk = OnDisk::new();
    disk.up();
    std::fs::remove_file(disk.path().join("lineage.json")).unwrap();
    assert!(matches!(disk.load(), Err(StateError::Unreadable { .. })));
}

#[test]
fn thousand_resources_share_disk_syncs() {
    let disk = OnDisk::new();
    let all: Vec<Wanted> = (0..1_000)
        .map(|number| {
            let uses = if number < 50 {
                serde_json::json!({})
            } else {
                serde_json::json!({"uses": output(&format!("r{}", number - 50), "id")})
            };
            want(&format!("r{number}"), "vault", uses)
        })
        .collect();
    let began = std::time::Instant::now();
    assert!(disk.go(UP, &all, &Fuse::default()).unwrap().unwrap().is_complete());
    let up = began.elapsed();
    let opened = std::time::Instant::now();
    assert_eq!(disk.load().unwrap().holdings(&here()).unwrap().len(), 1_000);
    let open = opened.elapsed();
    let again = std::time::Instant::now();
    assert!(disk.go(UP, &all, &Fuse::default()).unwrap().unwrap().plan.unwrap().steps.is_empty());
    println!("1,000 resources: up {up:?}, open {open:?}, second up {:?}", again.elapsed());
}
