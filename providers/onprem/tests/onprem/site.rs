//! A whole local site: made, looked at, broken in every way, mended, removed.

use std::time::Duration;

use crate::machine::{Machine, kill};
use camino::Utf8PathBuf;
use rustix::process::Signal;
use serde_json::json;
use textnlp_provider::{ErrorKind, Health, Observed, ResourceId, Verb};

fn id(id: &str) -> ResourceId {
    ResourceId::new(id).unwrap()
}

fn get(machine: &mut Machine, path: &str) -> Result<String, std::io::Error> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", machine.endpoint().port))?;
    stream.set_read_timeout(Some(crate::machine::DEADLINE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[tokio::test]
async fn site_comes_up_answers_and_is_removed_without_a_trace() {
    let mut machine = Machine::new(2);
    let steps = machine.up().await;
    assert!(steps.iter().all(|step| step.starts_with("create ")), "{steps:#?}");
    for made in ["here/network", "here/cluster", "here/server/replica-1", "here/gateway/process", "here/server/api-key"]
    {
        assert!(steps.contains(&format!("create {made}")), "{made} in {steps:#?}");
    }
    assert!(get(&mut machine, "/x").unwrap().contains("200 OK"));
    assert_eq!(machine.up().await, [] as [String; 0], "a second up plans nothing");
    let children: Vec<u32> =
        vec![machine.pid_of("server-0").await, machine.pid_of("gateway").await, machine.status().await.pid];
    machine.down().await;
    assert!(
        !machine.state.join("sites").exists(),
        "{:?}",
        std::fs::read_dir(machine.state.join("sites")).map(|d| d.count())
    );
    for pid in children {
        let gone = rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap());
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(gone.is_err() || stat.contains(") Z "), "{pid} lives: {stat}");
    }
    assert_eq!(
        std::fs::read_dir(machine.state.join("secrets"))
            .unwrap()
            .flatten()
            .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
            .count(),
        0
    );
}

#[tokio::test]
async fn damaged_site_objects_are_detected_and_repaired() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let folder = machine.folder();
    // A removed file, a changed file, a removed folder, a certificate of somebody else, an opened file, a lost marker.
    std::fs::remove_file(folder.join("config/server-0.yaml")).unwrap();
    std::fs::write(folder.join("config/gateway.yaml"), "gateway: {}\n").unwrap();
    std::fs::remove_dir(folder.join("log")).ok();
    std::fs::copy(folder.join("certs/ca.pem"), folder.join("certs/server.pem")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder.join("certs/server-jwt-key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::remove_file(folder.join("objects/database.json")).unwrap();
    std::fs::write(
        folder.join("models").read_dir_utf8().unwrap().next().unwrap().unwrap().path().join("config.json"),
        "{}",
    )
    .unwrap();
    let seen = machine.observe().await;
    assert_eq!(seen[&id("here/server/config-0")], Observed::Absent);
    for broken in ["here/gateway/config", "here/certificate/leaf", "here/server/jwt-key", "here/database"] {
        let Observed::Present(object) = &seen[&id(broken)] else { panic!("{broken}: {:?}", seen[&id(broken)]) };
        assert!(matches!(&object.health, Health::Degraded(_)), "{broken}: {:?}", object.health);
    }
    let steps = machine.up().await;
    for step in [
        "create here/server/config-0",
        "update here/gateway/config: content",
        "update here/certificate/leaf: certificate",
        "update here/server/jwt-key: mode",
        "update here/database: marker",
    ] {
        assert!(steps.contains(&step.to_owned()), "{step} in {steps:#?}");
    }
    assert!(
        steps.iter().any(|step| step.starts_with("update here/models/") && step.ends_with(": files")),
        "{steps:#?}"
    );
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn killed_program_is_restarted_by_the_supervisor() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let before = machine.pid_of("server-0").await;
    kill(before, Signal::KILL);
    machine
        .wait_until("another server", async |machine| {
            machine.ready_pid("server-0").await.is_some_and(|pid| pid != before)
        })
        .await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn programs_survive_their_supervisor_and_its_successor_adopts_them() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let (server, gateway) = (machine.pid_of("server-0").await, machine.pid_of("gateway").await);
    let supervisor = machine.status().await.pid;
    kill(supervisor, Signal::KILL);
    machine
        .wait_until("no supervisor", async |machine| {
            textnlp_onprem::supervise::status(&machine.folder()).await.is_ok_and(|status| status.is_none())
        })
        .await;
    assert!(get(&mut machine, "/x").unwrap().contains(&format!("pid {server}")), "the service goes on");
    let seen = machine.observe().await;
    let Observed::Present(object) = &seen[&id("here/cluster")] else { panic!() };
    assert_eq!(object.health, Health::Degraded("state: stopped".to_owned()));
    assert_eq!(machine.up().await, ["update here/cluster: state"]);
    machine
        .wait_until("adopted", async |machine| machine.is_ready("server-0").await && machine.is_ready("gateway").await)
        .await;
    assert_eq!(
        (machine.pid_of("server-0").await, machine.pid_of("gateway").await),
        (server, gateway),
        "no double was started"
    );
    assert_ne!(machine.status().await.pid, supervisor);
    kill(server, Signal::KILL);
    machine
        .wait_until("restarted", async |machine| machine.ready_pid("server-0").await.is_some_and(|pid| pid != server))
        .await;
    machine.down().await;
}

#[tokio::test]
async fn down_works_without_a_running_supervisor() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let server = machine.pid_of("server-0").await;
    kill(machine.status().await.pid, Signal::KILL);
    machine.down().await;
    let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert!(!machine.folder().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn configuration_change_rolls_two_replicas_without_a_failed_request() {
    let mut machine = Machine::new(2);
    machine.behave("answer_after_ms", json!(30));
    machine.behave("colour", json!("green"));
    machine.up().await;
    assert!(get(&mut machine, "/x").unwrap().contains("green"));
    let port = machine.endpoint().port;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let until = stop.clone();
    let client = std::thread::spawn(move || {
        let (mut answers, mut failures) = (0, Vec::new());
        while !until.load(std::sync::atomic::Ordering::SeqCst) {
            use std::io::{Read, Write};
            let ask = || -> std::io::Result<String> {
                let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
                stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            match ask() {
                Ok(text) if text.contains("200 OK") => answers += 1,
                other => failures.push(format!("{other:?}")),
            }
        }
        (answers, failures)
    });
    let pids = (machine.pid_of("server-0").await, machine.pid_of("server-1").await);
    machine.behave("colour", json!("blue"));
    let steps = machine.up().await;
    assert!(
        steps.contains(&"update here/server/config-1: document.textnlp.api.stand_in.colour".to_owned()),
        "{steps:#?}"
    );
    assert!(steps.iter().any(|step| step.starts_with("update here/server/replica-1: config_sha256")), "{steps:#?}");
    assert!(!steps.iter().any(|step| step.contains("gateway")), "{steps:#?}");
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (answers, failures) = client.join().unwrap();
    assert!(answers > 0 && failures.is_empty(), "{answers} answers, failed: {failures:?}");
    assert!(get(&mut machine, "/x").unwrap().contains("blue"));
    let after = (machine.pid_of("server-0").await, machine.pid_of("server-1").await);
    assert!(pids.0 != after.0 && pids.1 != after.1);
    machine.down().await;
}

#[tokio::test]
async fn simultaneous_unit_changes_never_stop_both_replicas() {
    let mut machine = Machine::new(2);
    machine.behave("ready_after_ms", json!(300));
    machine.up().await;
    machine.behave("colour", json!("blue"));
    // As an engine that runs both updates side by side would: both unit files change before either restarted.
    let wanted = machine.wanted();
    for config in ["here/server/config-0", "here/server/config-1"] {
        let one = wanted.iter().find(|w| w.id == id(config)).unwrap().clone();
        let op = machine.operation(Verb::Update, &one, machine.resolved(&one), Vec::new());
        let object = machine.drive(&op).await.unwrap();
        machine.record(&one, op.spec.clone(), object);
    }
    let mut pending = Vec::new();
    for replica in ["here/server/replica-0", "here/server/replica-1"] {
        let one = wanted.iter().find(|w| w.id == id(replica)).unwrap().clone();
        let op = machine.operation(Verb::Update, &one, machine.resolved(&one), Vec::new());
        use textnlp_provider::Provider;
        let textnlp_provider::Progress::Pending { handle, .. } = machine.onprem.begin(&op).await.unwrap() else {
            panic!()
        };
        pending.push((op, handle));
    }
    let mut done = 0;
    machine
        .wait_until("both updated", async |machine| {
            use textnlp_provider::{Progress, Provider};
            let up = machine.is_ready("server-0").await || machine.is_ready("server-1").await;
            assert!(up, "{:#?}", machine.status().await);
            if let Some((op, handle)) = pending.first()
                && let Progress::Done(_) = machine.onprem.advance(op, handle).await.unwrap()
            {
                pending.remove(0);
                done += 1;
            }
            done == 2
        })
        .await;
    machine.up().await;
    machine.down().await;
}

#[tokio::test]
async fn gateway_reloads_when_a_replica_is_added() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let gateway = machine.pid_of("gateway").await;
    machine.workload().replicas = 2;
    let steps = machine.up().await;
    assert!(steps.contains(&"create here/server/replica-1".to_owned()), "{steps:#?}");
    assert!(steps.iter().any(|step| step.starts_with("update here/gateway/process: config_sha256")), "{steps:#?}");
    assert_eq!(machine.pid_of("gateway").await, gateway);
    let log = machine.folder().join("log/gateway.log");
    machine.wait_until("a reload", async |_| std::fs::read_to_string(&log).unwrap().contains("reloaded")).await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn failing_program_is_reported_with_its_last_output() {
    let mut machine = Machine::new(1);
    machine.behave("crash", json!(true));
    let error = machine.try_up().await.unwrap_err();
    assert!(error.contains("here/server/replica-0") && error.contains("it was told to crash"), "{error}");
    machine.behave("crash", json!(false));
    machine.up().await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn programs_start_with_a_clean_environment() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let log = std::fs::read_to_string(machine.folder().join("log/server-0.log")).unwrap();
    let names: Vec<&str> = log.lines().find_map(|line| line.strip_prefix("environment ")).unwrap().split(',').collect();
    assert!(names.contains(&"PATH"));
    assert!(!names.iter().any(|name| name.starts_with("CARGO")), "{names:?}");
    let files = machine.folder().join("data/textnlp.db");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(files).unwrap().permissions().mode() & 0o777, 0o600);
    machine.down().await;
}

#[tokio::test]
async fn programs_run_without_capabilities_new_privileges_and_core_dumps() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let status = |pid: u32, field: &str| -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    let set = |pid: u32, field: &str| u64::from_str_radix(&status(pid, field), 16).unwrap();
    // CAP_SETPCAP: without it, as in some containers, root keeps the set of the container.
    let may_drop = set(std::process::id(), "CapEff") & (1 << 8) != 0;
    for unit in ["server-0", "gateway"] {
        let pid = machine.pid_of(unit).await;
        assert_eq!(status(pid, "NoNewPrivs"), "1", "{unit}");
        assert_eq!((set(pid, "CapInh"), set(pid, "CapAmb")), (0, 0), "{unit}");
        let bounding = if may_drop { 0 } else { set(std::process::id(), "CapBnd") };
        assert_eq!(set(pid, "CapBnd"), bounding, "{unit}");
        assert_eq!((set(pid, "CapPrm") | set(pid, "CapEff")) & !bounding, 0, "{unit}");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        let most: Vec<u64> = core.split_whitespace().take(2).map(|limit| limit.parse().unwrap()).collect();
        assert!(most.iter().all(|limit| *limit <= 1), "{unit}: {core}");
    }
    machine.down().await;
}

#[tokio::test]
async fn invalid_unit_file_is_refused_and_other_units_keep_running() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let units = machine.folder().join("units");
    let server = machine.pid_of("server-0").await;
    for (file, text) in [
        ("evil.json", "{"),
        ("argv.json", "[]"),
        ("big.json", &"x".repeat(400_000)),
        ("server-0.json", "{\"name\":\"../../x\"}"),
    ] {
        std::fs::write(units.join(file), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", units.join("link.json")).unwrap();
    machine.wait_until("five refusals", async |machine| machine.status().await.rejected.len() == 5).await;
    assert_eq!(machine.pid_of("server-0").await, server, "a broken unit file stops nothing");
    let seen = machine.observe().await;
    let Observed::Present(object) = &seen[&id("here/cluster")] else { panic!() };
    assert!(matches!(&object.health, Health::Degraded(why) if why.contains("evil")), "{:?}", object.health);
    for file in ["evil.json", "argv.json", "big.json", "link.json"] {
        std::fs::remove_file(units.join(file)).unwrap();
    }
    let steps = machine.up().await;
    assert_eq!(steps, ["update here/server/replica-0: unit_file"]);
    machine.down().await;
    assert!(std::fs::read_to_string("/etc/passwd").unwrap().contains("root"));
}

#[tokio::test]
async fn unmanaged_files_are_never_overwritten() {
    let mut machine = Machine::new(1);
    let file = machine.folder().join("config/server-0.yaml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "mine").unwrap();
    let seen = machine.observe().await;
    assert!(matches!(&seen[&id("here/server/config-0")], Observed::Unknown(_)));
    use textnlp_provider::Provider;
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    assert!(problems.iter().any(|p| !p.warning && p.place == "here/server/config-0"), "{problems:#?}");
    let one = machine.wanted().into_iter().find(|w| w.id == id("here/server/config-0")).unwrap();
    let op = machine.operation(Verb::Create, &one, one.spec.clone(), Vec::new());
    assert_eq!(machine.onprem.begin(&op).await.unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn objects_of_another_lineage_are_refused() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let ours = machine.lineage;
    machine.lineage = textnlp_provider::Lineage(uuid::Uuid::new_v4());
    let seen = machine.observe().await;
    assert!(seen.values().all(|seen| matches!(seen, Observed::Unknown(_) | Observed::Absent)), "{seen:#?}");
    assert!(seen.values().any(|seen| matches!(seen, Observed::Unknown(_))));
    use textnlp_provider::Provider;
    for wanted in machine.wanted().into_iter().filter(|w| w.id == id("here/database") || w.id == id("here/cluster")) {
        for verb in [Verb::Create, Verb::Update, Verb::Delete] {
            let op = machine.operation(verb, &wanted, wanted.spec.clone(), Vec::new());
            assert_eq!(machine.onprem.begin(&op).await.unwrap_err().kind, ErrorKind::Exists, "{verb} {}", wanted.id);
        }
    }
    machine.lineage = ours;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn moved_state_directory_starts_at_its_new_path() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let key = std::fs::read(machine.folder().join("certs/ca.pem")).unwrap();
    // Everything is stopped, as before a move.
    let supervisor = machine.status().await.pid;
    kill(supervisor, Signal::KILL);
    let pids = ["server-0", "gateway"].map(|unit| {
        let text = std::fs::read_to_string(machine.folder().join(format!("run/{unit}.pid"))).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["pid"].as_u64().unwrap() as u32
    });
    pids.iter().for_each(|pid| kill(*pid, Signal::KILL));
    let new = Utf8PathBuf::from_path_buf(machine.dir.path().join("elsewhere")).unwrap();
    std::fs::rename(&machine.state, &new).unwrap();
    let mut options = textnlp_onprem::Options::new(new.clone(), crate::machine::stand_in()).unwrap();
    options.model_cache = machine.onprem.options().model_cache.clone();
    machine.onprem = std::sync::Arc::new(textnlp_onprem::OnPrem::new(options));
    machine.state = new;
    let seen = machine.observe().await;
    assert!(!seen.values().any(|seen| matches!(seen, Observed::Absent)), "{seen:#?}");
    let steps = machine.up().await;
    assert!(steps.iter().all(|step| step.starts_with("update ")), "nothing is made again: {steps:#?}");
    assert!(get(&mut machine, "/x").unwrap().contains("200 OK"));
    assert_eq!(std::fs::read(machine.folder().join("certs/ca.pem")).unwrap(), key, "clients trust what they trusted");
    machine.down().await;
}

#[tokio::test]
async fn preflight_reports_all_machine_problems_at_once() {
    use textnlp_provider::Provider;
    let mut machine = Machine::new(1);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    machine.endpoint().port = held.local_addr().unwrap().port();
    machine.workload().program.digest = format!("sha256:{}", "0".repeat(64));
    if let textnlp_provider::component::ComponentSpec::ModelStore(store) = &mut machine.components[4].part {
        store.models[0].source = "file:/nowhere/at/all".to_owned();
    }
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    let blocking: Vec<String> = problems.iter().filter(|p| !p.warning).map(ToString::to_string).collect();
    for (place, cause) in [
        ("here/gateway/process: port", format!("pid {}", std::process::id())),
        ("here/server/program", "the release is locked to sha256:0000".to_owned()),
        ("here/models/", "/nowhere/at/all".to_owned()),
    ] {
        assert!(
            blocking.iter().any(|p| p.starts_with(place) && p.contains(&cause)),
            "{place} {cause} in {blocking:#?}"
        );
    }
    assert_eq!(blocking.len(), 3, "{blocking:#?}");
}

#[tokio::test]
async fn preflight_reads_the_model_cache_and_refuses_another_folder() {
    use textnlp_provider::Provider;
    let machine = Machine::new(1);
    let cache = machine.onprem.options().model_cache.clone();
    let problems = async |machine: &Machine| {
        let found = machine.onprem.preflight(&machine.wanted()).await.unwrap();
        found.iter().filter(|problem| !problem.warning).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(problems(&machine).await, [""; 0]);
    assert!(!cache.exists(), "preflight created the model cache");
    std::fs::create_dir(&cache).unwrap();
    assert_eq!(problems(&machine).await, [""; 0]);
    assert_eq!(cache.read_dir_utf8().unwrap().count(), 0);

    std::fs::write(cache.join("thesis.tex"), "").unwrap();
    let found = problems(&machine).await;
    assert!(found.len() == 1 && found[0].contains("it is no model cache"), "{found:#?}");
    assert_eq!(cache.read_dir_utf8().unwrap().count(), 1);
    std::fs::remove_file(cache.join("thesis.tex")).unwrap();

    textnlp_models::Store::open(&cache).unwrap();
    assert_eq!(problems(&machine).await, [""; 0]);
    for folder in ["refs", "locks", "used"] {
        assert_eq!(cache.join(folder).read_dir_utf8().unwrap().count(), 0, "{folder}");
    }
}

#[tokio::test]
async fn own_ports_are_no_preflight_problem() {
    use textnlp_provider::Provider;
    let mut machine = Machine::new(1);
    machine.up().await;
    let problems = machine.onprem.preflight(&machine.wanted()).await.unwrap();
    assert!(problems.iter().all(|problem| problem.warning), "{problems:#?}");
    machine.down().await;
}

#[tokio::test]
async fn second_supervisor_of_a_site_is_refused() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let first = machine.status().await.pid;
    let second = std::process::Command::new(crate::machine::stand_in())
        .args(["supervise", "--folder", machine.folder().as_str()])
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains(&format!("pid {first}")), "{second:?}");
    assert_eq!(machine.status().await.pid, first);
    let double = std::process::Command::new(crate::machine::stand_in())
        .args(["supervise", "--folder", machine.folder().as_str(), "--child", "server-0"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&double.stderr).contains("runs already"), "{double:?}");
    machine.down().await;
}

#[tokio::test]
async fn replaced_certificate_reloads_the_programs_that_watch_it() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let gateway = machine.pid_of("gateway").await;
    let Some(textnlp_provider::component::ComponentSpec::Certificate(certificate)) = machine
        .components
        .iter_mut()
        .map(|c| &mut c.part)
        .find(|p| matches!(p, textnlp_provider::component::ComponentSpec::Certificate(_)))
    else {
        panic!()
    };
    certificate.names.push("b.example".to_owned());
    let steps = machine.up().await;
    // The authority is constrained to the names of the site.
    assert_eq!(steps, ["update here/certificate/authority: names", "update here/certificate/leaf: authority names"]);
    let log = machine.folder().join("log/gateway.log");
    machine.wait_until("a reload", async |_| std::fs::read_to_string(&log).unwrap().contains("reloaded")).await;
    assert_eq!(machine.pid_of("gateway").await, gateway);
    machine.down().await;
}

#[tokio::test]
async fn every_step_is_idempotent_across_processes() {
    use textnlp_provider::{Progress, Provider};
    let mut machine = Machine::new(1);
    for wanted in machine.wanted() {
        let spec = machine.resolved(&wanted);
        let op = machine.operation(Verb::Create, &wanted, spec.clone(), Vec::new());
        // Every call is made twice, the second by another provider, as after a crash.
        let mut progress = machine.onprem.begin(&op).await.unwrap();
        let begun = std::time::Instant::now();
        let object = loop {
            let other = textnlp_onprem::OnPrem::new(machine.onprem.options().clone());
            let again = match &progress {
                Progress::Done(_) => other.begin(&op).await.unwrap(),
                Progress::Pending { handle, .. } => other.advance(&op, handle).await.unwrap(),
                Progress::Failed { error, .. } => panic!("{}: {error}", op.resource),
            };
            match (progress, again) {
                (Progress::Done(first), Progress::Done(second)) => {
                    assert_eq!(first.outputs, second.outputs, "{}", op.resource);
                    break second;
                }
                (_, Progress::Done(object)) if op.resource.as_str() != "here/models/m-tiny-1" => break object,
                (_, again) => progress = again,
            }
            assert!(begun.elapsed() < crate::machine::DEADLINE, "{}", op.resource);
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        machine.record(&wanted, spec, object);
    }
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn older_restored_database_is_migrated_and_gets_its_key() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let file = machine.folder().join("data/textnlp.db");
    // As a restore does: another file, of before the first migration.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"SQLite format 3\0{\"version\":0,\"keys\":{}}").unwrap();
    let steps = machine.up().await;
    assert_eq!(
        steps,
        ["update here/database: mode", "update here/server/schema: database", "update here/server/api-key: key"]
    );
    assert_eq!(machine.up().await, [] as [String; 0]);
    assert!(std::fs::read_to_string(&file).unwrap().contains("public_id"));
    // Or the same file, written over.
    std::fs::write(&file, b"SQLite format 3\0{\"version\":0,\"keys\":{}}").unwrap();
    assert_eq!(machine.up().await, ["update here/server/api-key: key"]);
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

#[tokio::test]
async fn certificate_for_external_servers_is_stored_and_removed_with_its_key() {
    use textnlp_provider::{SecretName, SecretRef};
    let mut machine = Machine::new(1);
    let mut options = machine.onprem.options().clone();
    options.serves_elsewhere = true;
    machine.onprem = std::sync::Arc::new(textnlp_onprem::OnPrem::new(options));
    machine.up().await;
    let seen = machine.observe().await;
    let leaf = seen.iter().find(|(id, _)| id.as_str().ends_with("/leaf")).map(|(_, seen)| seen.clone());
    let Some(Observed::Present(leaf)) = leaf else { panic!("{seen:#?}") };
    let secrets = machine.onprem.options().secrets.clone();
    for (output, file) in [("certificate", "certs/server.pem"), ("key", "certs/server-key.pem")] {
        let kept = SecretRef::from_value(&leaf.outputs[output]).unwrap();
        let value = secrets.get(&kept).await.unwrap();
        assert_eq!(value.expose(), std::fs::read(machine.folder().join(file)).unwrap(), "{output}");
    }
    assert_eq!(machine.up().await, Vec::<String>::new(), "a second one changes nothing");
    machine.down().await;
    for name in ["here/tls-certificate", "here/tls-key"] {
        assert!(secrets.versions(&SecretName(name.to_owned())).await.unwrap().is_empty(), "{name}");
    }
}
