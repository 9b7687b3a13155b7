//! A hostile or poor machine: a full disk, no HOME, links that lead out, lost and lying files.

use std::process::Command;

use crate::machine::{Machine, kill, stand_in};
use crate::small::Small;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use textnlp_onprem::{OnPrem, Options};
use textnlp_provider::{Observed, Progress, Provider, ResourceId, Spec, Verb};

fn id(id: &str) -> ResourceId {
    ResourceId::new(id).unwrap()
}

fn move_to(machine: &mut Machine, state: &Utf8Path) {
    let mut options = Options::new(state, stand_in()).unwrap();
    options.model_cache = machine.onprem.options().model_cache.clone();
    machine.onprem = std::sync::Arc::new(OnPrem::new(options));
    machine.state = state.to_owned();
}

#[tokio::test]
async fn full_disk_is_detected_by_preflight_reported_and_survived() {
    let mut machine = Machine::new(1);
    let at = Utf8PathBuf::from_path_buf(machine.dir.path().join("small disk")).unwrap();
    let Some(small) = Small::mount(at.clone(), "size=1m") else { return };
    move_to(&mut machine, &at.join("state"));
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    assert!(problems.iter().any(|p| !p.warning && p.place == "disk" && p.cause.contains("MB free")), "{problems:#?}");
    let error = machine.try_up().await.unwrap_err();
    assert!(error.contains("Quota"), "{error}");
    let leftovers: Vec<_> = machine.folder().join("bin").read_dir_utf8().unwrap().collect();
    assert!(leftovers.is_empty(), "half a program stays: {leftovers:?}");
    small.remount("size=200m");
    machine.up().await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn noexec_filesystem_is_detected_by_preflight() {
    let mut machine = Machine::new(1);
    let at = Utf8PathBuf::from_path_buf(machine.dir.path().join("noexec")).unwrap();
    let Some(_small) = Small::mount(at.clone(), "size=900m,noexec") else { return };
    move_to(&mut machine, &at.join("state"));
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    assert!(problems.iter().any(|p| !p.warning && p.cause.contains("`noexec`")), "{problems:#?}");
}

#[tokio::test]
async fn resumed_operation_restarts_a_supervisor_that_died_with_its_parent() {
    let mut machine = Machine::new(1);
    let wanted = machine.wanted();
    let of = |name: &str| wanted.iter().find(|wanted| wanted.id == id(name)).unwrap().clone();
    let (network, cluster) = (of("here/network"), of("here/cluster"));
    let op = machine.operation(Verb::Create, &network, machine.resolved(&network), Vec::new());
    machine.drive(&op).await.unwrap();
    let op = machine.operation(Verb::Create, &cluster, machine.resolved(&cluster), Vec::new());
    let Progress::Pending { handle, .. } = machine.onprem.begin(&op).await.unwrap() else { panic!("it is begun") };
    let runs = async |m: &Machine| textnlp_onprem::supervise::status(&m.folder()).await.is_ok_and(|s| s.is_some());
    machine.wait_until("a supervisor", runs).await;
    kill(machine.status().await.pid, Signal::KILL);
    machine.wait_until("no supervisor", async |m| !runs(m).await).await;

    machine.onprem = std::sync::Arc::new(OnPrem::new(machine.onprem.options().clone()));
    let progress = machine.onprem.advance(&op, &handle).await.unwrap();
    assert!(matches!(progress, Progress::Pending { .. }), "{progress:?}");
    machine.wait_until("a supervisor again", runs).await;
}

/// Holds the site's lock and answers as a supervisor of another version would, until it is told to leave.
const OTHER_VERSION: &str = r#"
import fcntl, json, os, socket, sys
folder = sys.argv[1]
lock = open(folder + "/run/supervisor.lock", "r+")
fcntl.lockf(lock, fcntl.LOCK_EX)
control = os.path.join(folder, sys.argv[2])
if os.path.exists(control):
    os.remove(control)
server = socket.socket(socket.AF_UNIX)
server.bind(control)
server.listen()
while True:
    client, _ = server.accept()
    asked = client.makefile().readline()
    client.sendall((json.dumps({"pid": os.getpid(), "version": "0.0.0/1", "units": []}) + "\n").encode())
    client.close()
    if "shutdown" in asked:
        break
"#;

#[tokio::test]
async fn supervisor_of_another_version_is_replaced_without_stopping_programs() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let (server, gateway) = (machine.pid_of("server-0").await, machine.pid_of("gateway").await);
    let control = machine.recorded[&id("here/cluster")].outputs["control"].as_str().unwrap().to_owned();
    kill(machine.status().await.pid, Signal::KILL);
    let mut other = std::process::Command::new("python3")
        .args(["-c", OTHER_VERSION, machine.folder().as_str(), &control])
        .spawn()
        .unwrap();
    let version = async |m: &Machine| {
        textnlp_onprem::supervise::status(&m.folder()).await.ok().flatten().map(|status| status.version)
    };
    machine.wait_until("the other one", async |m| version(m).await.as_deref() == Some("0.0.0/1")).await;

    let wanted = machine.wanted().into_iter().find(|wanted| wanted.id == id("here/cluster")).unwrap();
    let op = machine.operation(Verb::Update, &wanted, machine.resolved(&wanted), Vec::new());
    machine.drive(&op).await.unwrap();
    assert_eq!(version(&machine).await.as_deref(), Some(textnlp_onprem::supervise::VERSION));
    assert!(other.wait().unwrap().success(), "it left by itself");
    machine.wait_until("the programs adopted", async |m| m.ready_pid("gateway").await.is_some()).await;
    assert_eq!((machine.pid_of("server-0").await, machine.pid_of("gateway").await), (server, gateway));
    machine.down().await;
}

#[tokio::test]
async fn undeliverable_model_is_reported_before_any_change() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let base = Utf8PathBuf::from_path_buf(machine.dir.path().to_owned()).unwrap();
    let broken = base.join("broken");
    crate::machine::make_model(&broken, 3);
    std::fs::remove_file(broken.join("tokenizer.json")).unwrap();
    crate::machine::make_model(&base.join("another"), 4);
    let nobodys = format!("sha256:{}", "0".repeat(64));
    let cases = [
        ("/nowhere".to_owned(), None, "has no file /nowhere"),
        (broken.into_string(), None, "no tokenizer.json"),
        (base.join("another").into_string(), Some(nobodys), "is locked as sha256:0000"),
    ];
    for (path, digest, says) in cases {
        let model = machine.model();
        (model.source, model.digest) = (format!("file:{path}"), digest);
        let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
        let found = problems.iter().filter(|p| !p.warning && p.place.starts_with("here/models")).collect::<Vec<_>>();
        assert!(found.len() == 1 && found[0].cause.contains(says), "{path}: {problems:#?}");
    }
    machine.model().source = format!("file:{}", base.join("another"));
    machine.model().digest = None;
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    assert!(problems.iter().all(|p| !p.place.starts_with("here/models")), "{problems:#?}");
    machine.down().await;
}

#[tokio::test]
async fn supervisor_and_programs_run_without_a_home_directory() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let first = machine.status().await.pid;
    kill(first, Signal::KILL);
    kill(machine_pid(&machine, "server-0"), Signal::KILL);
    machine
        .wait_until("no supervisor", async |m| {
            textnlp_onprem::supervise::status(&m.folder()).await.is_ok_and(|status| status.is_none())
        })
        .await;
    let mut bare = Command::new(stand_in())
        .args(["supervise", "--folder", machine.folder().as_str()])
        .env_clear()
        .current_dir("/")
        .spawn()
        .unwrap();
    machine.wait_until("ready", async |m| m.is_ready("server-0").await && m.is_ready("gateway").await).await;
    machine.down().await;
    assert!(bare.wait().unwrap().success());
}

fn machine_pid(machine: &Machine, unit: &str) -> u32 {
    let text = std::fs::read_to_string(machine.folder().join(format!("run/{unit}.pid"))).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["pid"].as_u64().unwrap() as u32
}

#[tokio::test]
async fn forged_pid_file_kills_no_other_process() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let server = machine.pid_of("server-0").await;
    kill(machine.status().await.pid, Signal::KILL);
    let pid_file = machine.folder().join("run/server-0.pid");
    let text = std::fs::read_to_string(&pid_file).unwrap().replace(&server.to_string(), &bystander.id().to_string());
    std::fs::write(&pid_file, text).unwrap();
    machine.up().await;
    machine.down().await;
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn program_that_other_users_could_have_replaced_is_not_started() {
    use std::os::unix::fs::PermissionsExt;
    let mut machine = Machine::new(1);
    machine.up().await;
    for (path, mode) in [("bin", 0o700), ("bin/server", 0o755)] {
        let path = machine.folder().join(path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        kill(machine.pid_of("server-0").await, Signal::KILL);
        let refused = |unit: &textnlp_onprem::supervise::UnitStatus| {
            unit.name == "server-0" && unit.says.contains("cannot be started: other users")
        };
        machine.wait_until("it is refused", async |machine| machine.status().await.units.iter().any(refused)).await;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        machine.wait_until("it runs", async |machine| machine.is_ready("server-0").await).await;
    }
    machine.down().await;
}

#[tokio::test]
async fn symlinks_out_of_the_site_are_not_followed() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let outside = Utf8PathBuf::from_path_buf(machine.dir.path().join("outside")).unwrap();
    std::fs::create_dir_all(outside.join("server")).unwrap();
    std::fs::write(outside.join("server-0.yaml"), "mine").unwrap();
    let config = machine.folder().join("config");
    let aside = machine.folder().join("config-aside");
    std::fs::rename(&config, &aside).unwrap();
    std::os::unix::fs::symlink(&outside, &config).unwrap();
    let one = machine.wanted().into_iter().find(|w| w.id == id("here/server/config-0")).unwrap();
    for verb in [Verb::Update, Verb::Delete] {
        let op = machine.operation(verb, &one, machine.resolved(&one), Vec::new());
        machine.onprem.begin(&op).await.unwrap_err();
    }
    assert!(matches!(machine.observe().await[&id("here/server/config-0")], Observed::Unknown(_)));
    assert_eq!(std::fs::read_to_string(outside.join("server-0.yaml")).unwrap(), "mine");
    std::fs::remove_file(&config).unwrap();
    std::fs::rename(&aside, &config).unwrap();
    // A model's folder that became a link: the link goes, what it points to stays.
    let model = machine.folder().join("models").read_dir_utf8().unwrap().next().unwrap().unwrap().path().to_owned();
    std::fs::remove_dir_all(&model).unwrap();
    std::os::unix::fs::symlink(&outside, &model).unwrap();
    machine.down().await;
    assert_eq!(std::fs::read_to_string(outside.join("server-0.yaml")).unwrap(), "mine");
}

#[tokio::test]
async fn unreadable_site_is_unknown_and_not_absent() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let marker = machine.folder().join("objects/database.json");
    let aside = machine.folder().join("objects/aside");
    std::fs::rename(&marker, &aside).unwrap();
    // Root reads everything, so an unreadable file is one that is no file.
    std::fs::create_dir(&marker).unwrap();
    let wanted = machine.wanted();
    let scope = textnlp_provider::Scope {
        lineage: machine.lineage,
        environment: &machine.site.environment,
        site: &machine.site.name,
        wanted: &wanted,
        recorded: &[],
    };
    assert!(machine.onprem.observe(&scope).await.is_err());
    std::fs::remove_dir(&marker).unwrap();
    std::fs::rename(&aside, &marker).unwrap();
    machine.down().await;
}

#[tokio::test]
async fn deleting_missing_objects_succeeds() {
    let mut machine = Machine::new(1);
    for wanted in machine.wanted() {
        let op = machine.operation(Verb::Delete, &wanted, Spec::default(), Vec::new());
        machine.drive(&op).await.unwrap_or_else(|e| panic!("{e}"));
    }
    machine.up().await;
    let folder = machine.folder();
    for file in ["config/server-0.yaml", "certs/server.pem", "certs/ca.pem", "bin/server", "data/textnlp.db"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    machine.down().await;
    assert!(!folder.exists());
}

#[tokio::test]
async fn user_files_in_the_site_are_kept_by_down() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let notes = machine.folder().join("data/my notes.txt");
    std::fs::write(&notes, "mine").unwrap();
    machine.down().await;
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
    let left: Vec<String> =
        machine.folder().read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
    assert_eq!(left, ["data"]);
}

#[tokio::test]
async fn half_done_operations_of_a_killed_run_are_completed() {
    let mut machine = Machine::new(1);
    // One call of each operation, then the run dies: nothing is recorded, the next run begins with operations of its own.
    for wanted in machine.wanted() {
        let Ok(spec) = wanted.spec.resolve(|id| machine.recorded.get(id).map(|r| &r.outputs)) else { break };
        let op = machine.operation(Verb::Create, &wanted, spec.clone(), Vec::new());
        let begun = machine.onprem.begin(&op).await;
        // A copy that takes longer than a call goes on here, because this process does not die: two would write the same file.
        if wanted.kind.as_str() == "onprem.program" && matches!(begun, Ok(Progress::Pending { .. })) {
            machine.drive(&op).await.unwrap();
        }
        let again = machine.operation(Verb::Create, &wanted, spec.clone(), Vec::new());
        let object = machine.drive(&again).await.unwrap();
        machine.record(&wanted, spec, object);
    }
    machine.up().await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    // And the same on the way down.
    for wanted in machine.wanted().into_iter().rev() {
        let op = machine.operation(Verb::Delete, &wanted, Spec::default(), Vec::new());
        let _ = machine.onprem.begin(&op).await;
        let again = machine.operation(Verb::Delete, &wanted, Spec::default(), Vec::new());
        machine.drive(&again).await.unwrap();
    }
    assert!(!machine.folder().exists());
}
