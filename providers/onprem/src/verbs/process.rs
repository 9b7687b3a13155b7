//! A supervised program: a unit file that the site's supervisor reads.

use std::collections::BTreeMap;

use rustix::process::{Pid, Signal};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use textnlp_keys::{Marker, SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, FieldChange, Handle, Problem, Progress, Result, Spec, Wanted};

use super::{Observation, ObservedObject, Supervisor, Work};
use crate::lock;
use crate::spec::{OnConfig, ProcessSpec};
use crate::supervise::{self, ControlRequest, KeepsSockets, PhaseName, Running, State, Unit, UnitStatus, output};

/// A program that failed this often since its unit changed will not recover by itself.
const FAILURES_MAX: u32 = 5;

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: ProcessSpec = work.spec()?;
    let cloud_id = work.folder.cloud_id(&format!("units/{}.json", spec.unit))?;
    work.refuse_strangers(&work.folder.unit(&spec.unit))?;
    work.claim(&cloud_id, Map::new())?;
    let unit = unit(&work.folder, &spec, work.op.id.0, &work.op.lineage.to_string());
    write(work, &unit)?;
    let outcome =
        supervise::request(work.folder.root(), &ControlRequest::Apply).await.map_err(|error| work.fails(error))?;
    if outcome.is_none() {
        let error = work.fails("the site's supervisor is not running");
        return Err(error.hint(format!("look at {}", work.folder.log("supervisor"))));
    }
    // A failing unit waits for its next restart; a new `up` restarts it at once. A program that runs and cannot serve
    // does not look again at what this run repaired.
    let status = supervise::status(work.folder.root()).await.map_err(|error| work.fails(error))?;
    let cannot_serve =
        |seen: &UnitStatus| seen.name == spec.unit && seen.phase != PhaseName::Ready && seen.says.contains(FAILING);
    let name = spec.unit.clone();
    let request = match status.is_some_and(|status| status.units.iter().any(cannot_serve)) {
        true => ControlRequest::Restart { name },
        false => ControlRequest::Start { name },
    };
    supervise::request(work.folder.root(), &request).await.map_err(|error| work.fails(error))?;
    Ok(work.pending(json!({ "step": "start" }), format!("{} becomes ready", spec.unit)))
}

/// The part of a server's `/ready` answer that says that it runs and cannot serve.
const FAILING: &str = "\"status\":\"failing\"";

pub(super) async fn starting(work: &Work<'_>) -> Result<Progress> {
    let spec: ProcessSpec = work.spec()?;
    let cloud_id = work.folder.cloud_id(&format!("units/{}.json", spec.unit))?;
    let wanted = unit(&work.folder, &spec, work.op.id.0, &work.op.lineage.to_string());
    let status = supervise::status(work.folder.root()).await.map_err(|error| work.fails(error))?;
    let Some(status) = status else {
        return Err(work.fails("the site's supervisor is not running"));
    };
    if let Some(rejected) = status.rejected.iter().find(|rejected| rejected.name == spec.unit) {
        return Ok(Progress::Failed { left: None, error: work.invalid(format!("the supervisor: {}", rejected.why)) });
    }
    let Some(seen) = status.units.iter().find(|seen| seen.name == spec.unit) else {
        return put(work).await;
    };
    let current = is_current(seen, &wanted);
    if current && seen.phase == PhaseName::Ready {
        let marker = work.complete(&cloud_id, Map::new())?;
        return work.done(&marker).await;
    }
    if seen.failures >= FAILURES_MAX && seen.phase != PhaseName::Ready {
        let log = work.folder.log(&spec.unit);
        let why = format!("it exited {} times; end of its log:\n{}", seen.failures, output::tail(&log, 5));
        let left = work.last_seen().await.ok();
        return Ok(Progress::Failed { left, error: work.fails(why).hint(format!("see {log}")) });
    }
    // The program reports a permanent failure, such as a model that cannot be loaded.
    if current && seen.phase != PhaseName::Ready && seen.says.contains(FAILING) {
        let left = work.last_seen().await.ok();
        let log = work.folder.log(&spec.unit);
        return Ok(Progress::Failed { left, error: work.invalid(seen.says.clone()).hint(format!("see {log}")) });
    }
    let says = match (seen.phase, current) {
        (PhaseName::Ready | PhaseName::Unready, false) => {
            format!("{} waits to restart after other replicas", spec.unit)
        }
        (PhaseName::Stopping, _) => format!("{} finishes its open requests", spec.unit),
        _ if seen.says.is_empty() => format!("{} becomes ready", spec.unit),
        _ => format!("{}: {}", spec.unit, seen.says),
    };
    Ok(work.pending(json!({ "step": "start" }), says))
}

/// The first call: the unit says `stopped`, and the supervisor ends the program; without a supervisor, a signal does.
pub(super) async fn remove(work: &Work<'_>) -> Result<Progress> {
    let spec: ProcessSpec = work.applied()?;
    let mut stopped = unit(&work.folder, &spec, work.op.id.0, &work.op.lineage.to_string());
    if let Ok(there) = Unit::read(&work.folder, &spec.unit) {
        if there.lineage != stopped.lineage {
            return Err(Error::new(ErrorKind::Exists, "delete", work.op.resource.to_string())
                .because("the unit belongs to another lineage"));
        }
        stopped = there;
        stopped.operation = work.op.id.0;
    }
    stopped.state = State::Stopped;
    if work.folder.join("units").exists() {
        write(work, &stopped)?;
        // Without a supervisor the next poll ends the program.
        let _ = supervise::request(work.folder.root(), &ControlRequest::Apply).await;
    }
    Ok(work.pending(work.provider.waiting().begin("stop"), format!("{} finishes its open requests", spec.unit)))
}

pub(super) async fn stopping(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    let spec: ProcessSpec = work.applied()?;
    let lock_path = work.folder.lock(&spec.unit);
    let holder = lock::holder(&lock_path).map_err(work.io(&lock_path))?;
    let status = supervise::status(work.folder.root()).await.ok().flatten();
    let kept = status.as_ref().and_then(|status| status.units.iter().find(|seen| seen.name == spec.unit));
    let says = format!("{} finishes its open requests", spec.unit);
    if let Some(pid) = holder {
        let Some(waited) = work.provider.waiting().waited_ms(handle) else { return remove(work).await };
        // The supervisor applies the grace period; this call does when the supervisor is missing or hangs.
        let overdue = waited > spec.stop_grace_ms.saturating_add(5_000);
        if status.is_none() || overdue {
            end(pid, if waited > spec.stop_grace_ms { Signal::KILL } else { Signal::TERM });
        }
        return Ok(work.pending(handle.0.clone(), says));
    }
    if kept.is_some_and(|seen| seen.phase != PhaseName::Stopped) {
        return Ok(work.pending(handle.0.clone(), says));
    }
    let last = work.last_seen().await?;
    let folder = &work.folder;
    let mut gone = vec![folder.unit(&spec.unit), folder.pid(&spec.unit), folder.lock(&spec.unit)];
    gone.extend([
        folder.socket(&spec.unit),
        folder.socket(&format!("{}-metrics", spec.unit)),
        folder.socket(&spec.ready.socket),
    ]);
    for path in gone {
        files::remove_file(&path).map_err(work.io(&path))?;
    }
    let _ = supervise::request(folder.root(), &ControlRequest::Apply).await;
    work.removed(last)
}

fn end(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is gone already needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn write(work: &Work<'_>, unit: &Unit) -> Result<()> {
    let path = work.folder.unit(&unit.name);
    files::make_folder(&work.folder.join("units")).map_err(work.io(&path))?;
    let bytes = serde_json::to_vec_pretty(unit).map_err(|error| work.invalid(error))?;
    files::put(&path, &bytes, 0o600).map_err(work.io(&path))
}

/// The unit of a process. The digest covers only the fields whose change needs a restart.
fn unit(folder: &SiteFolder, spec: &ProcessSpec, operation: u64, lineage: &str) -> Unit {
    let program = folder.join(&spec.program).into_string();
    let mut argv = vec![program];
    argv.extend(spec.arguments.iter().cloned());
    argv.extend(["--config".to_owned(), folder.join(&spec.config).into_string()]);
    let restarts = spec.on_config == OnConfig::Restart;
    let config = restarts.then_some(&spec.config_sha256);
    // Only a process with TCP addresses has clients that would be refused.
    let addresses = spec.bound_addresses();
    let what_runs = json!({ "argv": argv, "program": spec.program_sha256, "config": config, "inputs": spec.inputs });
    Unit {
        name: spec.unit.clone(),
        argv,
        env: BTreeMap::new(),
        cwd: folder.root().to_owned(),
        operation,
        lineage: lineage.to_owned(),
        spec_digest: hex::encode(Sha256::digest(Spec::of(&what_runs).to_string())),
        reload_digest: (!restarts).then(|| spec.config_sha256.clone()),
        stop_grace_ms: spec.stop_grace_ms,
        ready: Some(spec.ready.at(folder)),
        log: folder.log(&spec.unit),
        group: spec.group.clone(),
        turns: spec.turns,
        watch: spec.watch.clone(),
        keeps_sockets: (!addresses.is_empty()).then(|| KeepsSockets { from: spec.ready.at(folder).unix, addresses }),
        state: State::Running,
    }
}

/// The fields whose change restarts a program, except its configuration: see [`unit()`].
const RESTARTS: [&str; 4] = ["program", "program_sha256", "arguments", "inputs"];

/// See [`textnlp_provider::Provider::interruption`]. Replicas of one group restart one after the other; the spec may have
/// references to outputs, so it is read by its fields.
pub(crate) fn interruption(wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
    let group = wanted.spec.get("group").filter(|group| !group.is_null())?;
    let reloads = wanted.spec.get("on_config").and_then(serde_json::Value::as_str) == Some("reload");
    let restarts = |change: &FieldChange| {
        let field = change.field.split('.').next().unwrap_or_default();
        RESTARTS.contains(&field) || (!reloads && ["config", "config_sha256"].contains(&field))
    };
    let replicas = among.iter().filter(|one| one.kind == wanted.kind && one.spec.get("group") == Some(group)).count();
    if replicas > 1 || !changes.iter().any(restarts) {
        return None;
    }
    let cause = "it is the only replica: requests fail while it restarts";
    let fix = "to serve without an interruption, set `scaling.min: 2`: replicas restart one after the other";
    Some(Problem::warning(wanted.id.as_str(), cause, fix))
}

fn is_current(seen: &UnitStatus, wanted: &Unit) -> bool {
    seen.spec_digest.as_ref() == Some(&wanted.spec_digest) && seen.reload_digest == wanted.reload_digest
}

pub(super) fn observe(folder: &SiteFolder, marker: &Marker, supervisor: &Supervisor) -> Result<Observation> {
    let unreadable = |error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error);
    let spec: ProcessSpec = marker.spec.typed().map_err(unreadable)?;
    let lock_path = folder.lock(&spec.unit);
    let holder = lock::holder(&lock_path).map_err(|error| Error::io("check", lock_path.as_str(), error))?;
    let file = match files::Stamp::of(&folder.unit(&spec.unit)) {
        Ok(None) if holder.is_none() => return Ok(Observation::Absent),
        Ok(stamp) => stamp,
        Err(error) => return Err(Error::io("check", folder.unit(&spec.unit).as_str(), error)),
    };
    let wanted = unit(folder, &spec, marker.operation.0, &marker.lineage.to_string());
    let mut look = ObservedObject::default();
    look.output("unit", spec.unit.as_str()).output("log", wanted.log.as_str());
    look.output("listen", spec.listen.as_str()).output("metrics_listen", spec.metrics_listen.as_str());
    look.output("address", spec.listen.as_str()).output("ca_file", json!(spec.ca_file));
    match file.map(|_| Unit::read(folder, &spec.unit)) {
        None => drop(look.drift("unit_file", "it is gone")),
        Some(Err(why)) => drop(look.drift("unit_file", why)),
        Some(Ok(there)) if without_operation(&there) != without_operation(&wanted) => {
            look.drift("unit_file", "it was changed");
        }
        Some(Ok(_)) => {}
    }
    state(folder, &spec, &wanted, holder, supervisor, &mut look);
    Ok(Observation::There(look))
}

fn without_operation(unit: &Unit) -> Unit {
    Unit { operation: 0, ..unit.clone() }
}

fn state(
    folder: &SiteFolder,
    spec: &ProcessSpec,
    wanted: &Unit,
    holder: Option<u32>,
    supervisor: &Supervisor,
    look: &mut ObservedObject,
) {
    let Supervisor::Runs(status) = supervisor else {
        // Programs run on without their supervisor, whose absence is reported on its own resource.
        match holder {
            None => drop(look.drift("state", "stopped")),
            Some(pid) => {
                let running = Running::of_holder(folder, &spec.unit, pid);
                if running.is_none_or(|running| running.spec_digest != wanted.spec_digest) {
                    look.drift("state", "running, as it was before");
                }
            }
        }
        return;
    };
    let Some(seen) = status.units.iter().find(|seen| seen.name == spec.unit) else {
        look.drift("state", if holder.is_some() { "running, unsupervised" } else { "stopped" });
        return;
    };
    let why = if seen.says.is_empty() { String::new() } else { format!(": {}", seen.says) };
    match seen.phase {
        PhaseName::Ready if is_current(seen, wanted) => {}
        PhaseName::Ready => drop(look.drift("state", "running, as it was before")),
        // It may be loading its models, or be ready in a moment.
        PhaseName::Starting => drop(look.drift("state", format!("starting{why}"))),
        PhaseName::Unready => drop(look.drift("state", format!("running, not ready{why}"))),
        PhaseName::Stopping => drop(look.drift("state", "stopping")),
        PhaseName::Waiting => drop(look.drift("state", format!("ended{why}"))),
        PhaseName::Stopped => drop(look.drift("state", "stopped")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::Utf8Path;
    use serde_json::Value;

    fn spec(change: impl FnOnce(&mut Value)) -> ProcessSpec {
        let mut spec = json!({
            "unit": "server-0", "program": "bin/server", "program_sha256": "p", "arguments": ["serve"],
            "config": "config/server-0.yaml", "config_sha256": "c", "on_config": "restart", "inputs": {"m": "1"},
            "listen": "unix:x", "metrics_listen": "unix:y", "ready": {"socket": "server-0", "path": "/ready"},
            "stop_grace_ms": 1, "state": "running",
        });
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    fn digests(change: impl FnOnce(&mut Value)) -> (String, Option<String>) {
        let unit = unit(&SiteFolder::at(Utf8Path::new("/s")), &spec(change), 1, "l");
        (unit.spec_digest, unit.reload_digest)
    }

    #[test]
    fn changed_startup_inputs_restart_a_program() {
        let before = digests(|_| {});
        let cases: [fn(&mut Value); 4] = [
            |spec| spec["config_sha256"] = json!("d"),
            |spec| spec["program_sha256"] = json!("q"),
            |spec| spec["inputs"]["m"] = json!("2"),
            |spec| spec["arguments"] = json!(["serve", "-v"]),
        ];
        for case in cases {
            assert_ne!(digests(case), before);
        }
        assert_eq!(digests(|spec| spec["stop_grace_ms"] = json!(2)), before);
    }

    #[test]
    fn restart_of_the_only_replica_interrupts_requests() {
        use textnlp_provider::{Effect, KindName, Ownership, ResourceId, SiteName};
        let replica = |number: usize, group: Option<&str>| Wanted {
            id: ResourceId::new(format!("here/server/replica-{number}")).unwrap(),
            kind: KindName::new("onprem.process").unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec: Spec::of(&json!({ "on_config": "restart", "group": group })),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        };
        let change =
            |field: &str| [FieldChange { field: field.to_owned(), before: None, after: None, effect: Effect::InPlace }];
        let (server, gateway) = (replica(0, Some("server")), replica(9, None));
        let alone = [server.clone(), gateway.clone()];
        for field in ["config_sha256", "program_sha256", "inputs.model-tiny"] {
            let found = interruption(&server, &change(field), &alone).unwrap();
            assert!(found.warning && found.fix.contains("scaling.min"), "{found}");
        }
        assert_eq!(interruption(&server, &change("stop_grace_ms"), &alone), None, "it does not restart");
        let two = [server.clone(), replica(1, Some("server"))];
        assert_eq!(interruption(&server, &change("config_sha256"), &two), None, "the other one serves");
        assert_eq!(interruption(&gateway, &change("inputs.listen"), &alone), None, "its sockets are kept");
    }

    #[test]
    fn sockets_are_kept_for_programs_with_their_own_addresses() {
        let folder = SiteFolder::at(Utf8Path::new("/s"));
        let keeps = |change: fn(&mut Value)| unit(&folder, &spec(change), 1, "l").keeps_sockets;
        assert_eq!(keeps(|_| {}), None, "a replica has none");
        let kept = keeps(|spec| {
            spec["inputs"] = json!({"listen": "0.0.0.0:8443", "metrics_listen": "127.0.0.1:9090", "tls": true});
            spec["ready"]["socket"] = json!("gateway-admin");
        });
        let addresses = ["0.0.0.0:8443", "127.0.0.1:9090"].map(|address| address.parse().unwrap()).to_vec();
        assert_eq!(kept, Some(KeepsSockets { from: folder.socket("gateway-admin"), addresses }));
    }

    #[test]
    fn changed_gateway_configuration_is_a_reload() {
        let reload = |config: &'static str| {
            digests(move |spec| {
                spec["on_config"] = json!("reload");
                spec["config_sha256"] = json!(config);
            })
        };
        assert_eq!(reload("a").0, reload("b").0);
        assert_ne!(reload("a").1, reload("b").1);
    }
}
