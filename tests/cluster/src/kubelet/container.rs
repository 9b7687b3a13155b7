//! A container: a process with its restarts and probes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::process::Child;

use super::volumes::Places;
use super::{Shared, logs, pod, probe};

/// The first restart delay; it doubles up to the longest one. A real kubelet uses 10 s and 5 minutes.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The longest end of a log in a status, in bytes.
const LAST_BYTES: usize = 2048;

/// The state of a container.
pub(super) enum Stage {
    /// It cannot start: reason and message.
    Waits(String, String),
    /// Running, since this time.
    Runs(Child, Instant),
    /// It ended and is not restarted: the exit code.
    Done(i32),
}

/// A container of a pod.
pub(super) struct Container {
    spec: Value,
    first: bool,
    pub(super) stage: Stage,
    ready: bool,
    /// Whether its startup probe, if any, succeeded.
    started: bool,
    probed: Option<Instant>,
    failures: u64,
    restarts: u32,
    again_at: Option<Instant>,
    last: Option<(i32, String)>,
    log: Utf8PathBuf,
    /// The process id, also after its end.
    pid: u32,
}

impl Container {
    pub(super) fn new(spec: Value, first: bool) -> Self {
        let stage = Stage::Waits("ContainerCreating".to_owned(), String::new());
        Self {
            spec,
            first,
            stage,
            ready: false,
            started: false,
            probed: None,
            failures: 0,
            restarts: 0,
            again_at: None,
            last: None,
            log: Utf8PathBuf::new(),
            pid: 0,
        }
    }

    pub(super) fn name(&self) -> &str {
        self.spec["name"].as_str().unwrap_or_default()
    }

    pub(super) fn waits(&mut self, reason: &str, why: &str) {
        self.stage = Stage::Waits(reason.to_owned(), why.to_owned());
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready && matches!(self.stage, Stage::Runs(..))
    }

    pub(super) fn was_started(&self) -> bool {
        !matches!(&self.stage, Stage::Waits(reason, _) if self.last.is_none() && reason != "CrashLoopBackOff")
    }

    pub(super) fn is_gone(&self) -> bool {
        !matches!(self.stage, Stage::Runs(..))
    }

    /// One poll: starts, restarts or probes the container.
    pub(super) async fn turn(&mut self, shared: &Shared, pod: &Value, places: &Places) {
        match &mut self.stage {
            Stage::Done(_) => {}
            Stage::Waits(..) => {
                if self.again_at.is_none_or(|at| Instant::now() >= at) {
                    self.start(shared, pod, places).await;
                }
            }
            Stage::Runs(child, _) => match child.try_wait() {
                Ok(None) => self.probe(shared, pod, places).await,
                ended => {
                    let code = ended.ok().flatten().and_then(|ended| ended.code()).unwrap_or(137);
                    self.forget(shared);
                    self.ended(pod, code);
                }
            },
        }
    }

    async fn start(&mut self, shared: &Shared, pod: &Value, places: &Places) {
        let image = self.spec["image"].as_str().unwrap_or_default().to_owned();
        if image.starts_with("missing.example") {
            let reason = if self.failures == 0 { "ErrImagePull" } else { "ImagePullBackOff" };
            self.failures += 1;
            self.again_at = Some(Instant::now() + LONGEST_PAUSE);
            return self.waits(reason, &format!("failed to pull image \"{image}\": not found"));
        }
        let variables = match places.variables(&self.spec) {
            Ok(variables) => variables,
            Err(why) => return self.waits("CreateContainerConfigError", &why),
        };
        let words = |field: &str| -> Vec<String> {
            let words = self.spec[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            words.map(|word| places.put(&self.spec, &expand(word, &variables))).collect()
        };
        let (command, args) = (words("command"), words("args"));
        let Some((program, rest)) = command.split_first() else {
            return self.waits("CreateContainerError", "without images every container names its command");
        };
        let (namespace, name) = pod::names(pod);
        self.log = logs::file(&shared.folder, namespace, name, self.name());
        let opened =
            self.log.parent().map(std::fs::create_dir_all).transpose().and_then(|_| std::fs::File::create(&self.log));
        let Ok(log) = opened else { return self.waits("CreateContainerError", "its log cannot be made") };
        let mut process = tokio::process::Command::new(shared.program(&image, program));
        process.args(rest).args(args).env_clear().current_dir(places.folder()).stdin(Stdio::null()).process_group(0);
        process.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        process.envs(variables.iter().map(|(name, value)| (name, places.put(&self.spec, value))));
        // The variables of the API server's address, and the proxy that replaces the pod network.
        process.envs(shared.surroundings());
        if let Some((user, group)) = shared.user(pod) {
            process.uid(user).gid(group);
        }
        let (Ok(out), err) = (log.try_clone(), log) else { return };
        match process.stdout(out).stderr(err).spawn() {
            Ok(child) => {
                self.pid = child.id().unwrap_or_default();
                shared.keeper.began(self.pid);
                (self.ready, self.started, self.probed, self.failures) = (false, false, None, 0);
                self.stage = Stage::Runs(child, Instant::now());
                self.probe(shared, pod, places).await;
            }
            Err(error) => self.ended_before(pod, &format!("exec {program}: {error}")),
        }
    }

    fn ended_before(&mut self, pod: &Value, why: &str) {
        let _ = std::fs::write(&self.log, why);
        self.ended(pod, 127);
    }

    fn ended(&mut self, pod: &Value, code: i32) {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let end = String::from_utf8_lossy(&log[log.len().saturating_sub(LAST_BYTES)..]).into_owned();
        self.last = Some((code, end));
        self.ready = false;
        let policy = pod["spec"]["restartPolicy"].as_str().unwrap_or("Always");
        let stays_down = (self.first && code == 0) || policy == "Never" || (policy == "OnFailure" && code == 0);
        if stays_down {
            self.stage = Stage::Done(code);
            return;
        }
        let pause = LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(self.restarts.min(10)));
        self.restarts += 1;
        self.again_at = Some(Instant::now() + pause);
        let reason = "CrashLoopBackOff";
        self.waits(reason, &format!("back-off restarting failed container {}", self.name()));
    }

    /// Runs the startup, liveness and readiness probes at their periods.
    async fn probe(&mut self, shared: &Shared, pod: &Value, places: &Places) {
        let Stage::Runs(_, since) = self.stage else { return };
        let has = |name: &str| self.spec[name].is_object();
        if !self.started {
            self.started = !has("startupProbe");
        }
        let name = match (self.started, has("livenessProbe"), has("readinessProbe")) {
            (false, ..) => "startupProbe",
            (true, _, true) => "readinessProbe",
            (true, true, false) => "livenessProbe",
            (true, false, false) => {
                self.ready = true;
                return;
            }
        };
        let probe = &self.spec[name];
        let seconds = |field: &str, otherwise: u64| Duration::from_secs(probe[field].as_u64().unwrap_or(otherwise));
        // Probes run at every poll until the container is ready, because the usual ten seconds only slow tests down.
        let every = if self.ready { seconds("periodSeconds", 10) } else { Duration::ZERO };
        if since.elapsed() < seconds("initialDelaySeconds", 0) || self.probed.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.probed = Some(Instant::now());
        let holds = probe::ask(probe, pod, places, seconds("timeoutSeconds", 1)).await;
        let most = probe["failureThreshold"].as_u64().unwrap_or(3);
        self.failures = if holds { 0 } else { self.failures + 1 };
        match name {
            "startupProbe" => self.started = holds,
            "readinessProbe" => self.ready = holds || (self.ready && self.failures < most),
            _ => {
                self.ready = true;
                if self.failures >= most {
                    self.ask_to_end(shared);
                }
            }
        }
    }

    /// The `preStop` sleep, which delays SIGTERM.
    pub(super) fn stays(&self) -> Duration {
        Duration::from_secs(self.spec["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0))
    }

    /// Sends SIGTERM to the process.
    pub(super) fn ask_to_end(&mut self, shared: &Shared) {
        self.signal(Signal::TERM);
        if let Stage::Runs(child, _) = &mut self.stage
            && let Ok(Some(ended)) = child.try_wait()
        {
            let code = ended.code().unwrap_or(137);
            self.forget(shared);
            self.stage = Stage::Done(code);
        }
    }

    pub(super) async fn kill(&mut self, shared: &Shared) {
        self.signal(Signal::KILL);
        if let Stage::Runs(child, _) = &mut self.stage {
            let _ = child.wait().await;
            self.forget(shared);
            self.stage = Stage::Done(137);
        }
    }

    /// The process has ended: its children are killed too, as in a real container, and the keeper removes it.
    fn forget(&self, shared: &Shared) {
        if let Some(group) = Pid::from_raw(self.pid.cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        shared.keeper.ended(self.pid);
    }

    fn signal(&self, signal: Signal) {
        if let Stage::Runs(child, _) = &self.stage
            && let Some(group) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
        {
            let _ = kill_process_group(group, signal);
        }
    }

    /// The container status for the API server.
    pub(super) fn status(&self) -> Value {
        let last = self.last.as_ref().map(|(code, log)| {
            json!({ "terminated": { "exitCode": code, "reason": if *code == 0 { "Completed" } else { "Error" }, "message": log } })
        });
        let state = match &self.stage {
            Stage::Waits(reason, why) => json!({ "waiting": { "reason": reason, "message": why } }),
            Stage::Runs(..) => json!({ "running": {} }),
            Stage::Done(_) => {
                last.clone().unwrap_or_else(|| json!({ "terminated": { "exitCode": 137, "reason": "Killed" } }))
            }
        };
        // A real kubelet includes the end of the log only with this policy.
        let from_log = self.spec["terminationMessagePolicy"] == "FallbackToLogsOnError";
        let mut last = last.unwrap_or_else(|| json!({}));
        let mut state = state;
        if !from_log {
            for one in [&mut last, &mut state] {
                if let Some(terminated) = one.get_mut("terminated").and_then(Value::as_object_mut) {
                    terminated.remove("message");
                }
            }
        }
        json!({
            "name": self.name(),
            "image": self.spec["image"],
            "imageID": "",
            "ready": self.first && matches!(self.stage, Stage::Done(0)) || self.is_ready(),
            "started": self.started && matches!(self.stage, Stage::Runs(..)),
            "restartCount": self.restarts,
            "state": state,
            "lastState": last,
        })
    }
}

/// Expands `$(NAME)` in commands and arguments, in one pass like Kubernetes: `$$` is a literal `$`, and an unknown name
/// remains as written.
pub(super) fn expand(word: &str, variables: &[(String, String)]) -> String {
    let (mut expanded, mut rest) = (String::new(), word);
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let value = rest.strip_prefix('(').and_then(|inside| inside.split_once(')')).and_then(|(name, after)| {
            variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| (value, after))
        });
        expanded.push_str(value.map_or("$", |(value, _)| value));
        rest = value.map_or(rest.strip_prefix('$').unwrap_or(rest), |(_, after)| after);
    }
    expanded + rest
}
