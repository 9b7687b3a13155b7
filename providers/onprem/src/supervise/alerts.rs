//! Alerts of the supervisor: each problem is sent once to the configured receivers, and once more when it is over.
//!
//! This module only detects problems. A child process sends the messages, so that a hanging mail server does not block
//! the supervisor.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use textnlp_keys::{
    SiteFolder,
    files::{self, Stamp},
};
use textnlp_provider::alert::{Alert, AlertState};
use textnlp_provider::component::AlertLimits;
use tokio::process::Child;

use super::background::{Complaint, own_program};
use super::control::{CertificateStatus, PhaseName, Rejected, UnitStatus};
use super::output::{self, Notes};
use super::probe;
use super::service::{Fact, Service};
use crate::alert::{Active, AlertOrder, Outbox};
use crate::names::ALERTS_FILE;

/// Poll interval.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A problem must be gone for this long before it counts as over: it may return at once.
const SETTLED: SignedDuration = SignedDuration::from_mins(5);
/// A persisting problem is sent again after this time.
const REMIND: SignedDuration = SignedDuration::from_hours(24);
/// Ends of a program since it was last ready, from which on it counts as failing.
const FAILURES: u32 = 3;
/// How long memory must be short.
const MEMORY_FOR: SignedDuration = SignedDuration::from_mins(15);
/// The time in which restarts are counted.
const RESTART_WINDOW: Duration = Duration::from_secs(3600);
/// An alert is sent when a certificate without automatic renewal expires within this time.
const CERTIFICATE_ENDS: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Further simultaneous problems are dropped.
const ACTIVE_MOST: usize = 100;
/// Characters of a contact in a message.
const CONTACT_MOST: usize = 200;
/// A sender that takes longer hangs.
const SENDER_TIMEOUT: Duration = Duration::from_secs(180);
/// The first pause after a failed attempt; it doubles up to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause.
const PAUSE_MOST: Duration = Duration::from_secs(300);
/// An alert is sent when the witness was not heard for this long.
const WITNESS_AWAY_MS: u64 = 60_000;
/// Timeout of the request for the replication status of the site agent.
const AGENT_TIMEOUT: Duration = Duration::from_millis(500);

/// The inputs from the rest of the supervisor.
pub(super) struct AlertInputs<'a> {
    pub(super) units: &'a [UnitStatus],
    pub(super) rejected: &'a [Rejected],
    pub(super) certificates: &'a [CertificateStatus],
    /// The problem of the backups, if any.
    pub(super) backup: Option<String>,
}

/// The current problems, the receivers, and the state of sending.
pub(super) struct Alerts {
    folder: SiteFolder,
    outbox: Outbox,
    last_poll: Option<Instant>,
    order: Option<(Stamp, AlertOrder)>,
    active: BTreeMap<(String, String), Active>,
    restarts: BTreeMap<String, Restarts>,
    memory_short_since: Option<Timestamp>,
    service: Service,
    sending: Option<(Child, Instant)>,
    failures: u32,
    again_at: Option<Instant>,
    complaint: Complaint,
}

/// The restarts of one program.
#[derive(Debug, Default)]
struct Restarts {
    counted: u32,
    at: VecDeque<Instant>,
}

impl Alerts {
    pub(super) fn new(folder: &SiteFolder) -> Self {
        let outbox = Outbox::of(folder.root());
        let active = outbox.active().into_iter().map(|one| ((one.name.clone(), one.about.clone()), one)).collect();
        Self {
            folder: folder.clone(),
            outbox,
            last_poll: None,
            order: None,
            active,
            restarts: BTreeMap::new(),
            memory_short_since: None,
            service: Service::default(),
            sending: None,
            failures: 0,
            again_at: None,
            complaint: Complaint::about("alerts"),
        }
    }

    /// Whether the next poll is due.
    pub(super) fn is_due(&self) -> bool {
        self.last_poll.is_none_or(|at| at.elapsed() >= POLL_INTERVAL)
    }

    /// Detects problems, puts new messages into the outbox, and starts the sender.
    pub(super) async fn look(&mut self, seen: AlertInputs<'_>, now: Timestamp, notes: &mut Notes) {
        self.last_poll = Some(Instant::now());
        if let Err(why) = self.read_order() {
            self.complaint.say(why, notes);
            return;
        }
        let Some((_, order)) = &self.order else { return };
        let (limits, service) = (order.limits, order.service);
        let (environment, site, contacts) = (order.environment.clone(), order.site.clone(), order.contacts.clone());
        let gate = order.home.then(|| self.of_gate()).flatten();
        let mut facts = of_units(seen.units, seen.rejected);
        facts.extend(self.often_restarted(seen.units, limits.restarts));
        facts.extend(seen.certificates.iter().filter_map(|certificate| of_certificate(certificate, now)));
        facts.extend(seen.backup.map(|why| Fact::new("backup", "copies", why)));
        facts.extend(gate);
        facts.extend(self.of_disk(limits));
        let meminfo = std::fs::read_to_string("/proc/meminfo");
        facts.extend(meminfo.ok().and_then(|meminfo| self.of_memory(&meminfo, limits, now)));
        facts.extend(self.of_replication(seen.units).await);
        facts.extend(self.service.look(&self.folder, seen.units, &service, now).await);
        let events = step(&mut self.active, &facts, now);
        for (state, one) in &events {
            let alert = Alert {
                id: format!("{site}-{}-{}-{}", one.name, now.as_millisecond(), short_digest(&one.about)),
                environment: environment.clone(),
                site: site.clone(),
                at: now,
                state: *state,
                name: one.name.clone(),
                about: one.about.clone(),
                says: match on_call(&contacts, &one.name).filter(|_| *state == AlertState::Raised) {
                    Some(contact) => format!("{}\nOn call: {contact}", one.says),
                    None => one.says.clone(),
                },
            };
            notes.say(&format!("alert {alert}: {}", one.says));
            match self.outbox.put(alert) {
                Ok(false) => {}
                Ok(true) => notes.say("alerts: the queue is full, the oldest message is dropped"),
                Err(error) => self.complaint.say(format!("a message cannot be stored: {error}"), notes),
            }
        }
        let changed = !events.is_empty() || self.active.values().any(|one| one.well_since == Some(now));
        if changed {
            let active: Vec<Active> = self.active.values().cloned().collect();
            if let Err(error) = self.outbox.remember(&active) {
                self.complaint.say(format!("the open alerts cannot be stored: {error}"), notes);
            }
        }
        self.ensure_sent(notes);
    }

    /// Reads the alert order when it changed.
    fn read_order(&mut self) -> Result<(), String> {
        let Some(stamp) = Stamp::of(&self.folder.join(ALERTS_FILE)).ok().flatten() else {
            self.order = None;
            return Ok(());
        };
        if self.order.as_ref().is_some_and(|(known, _)| *known == stamp) {
            return Ok(());
        }
        let order = self.outbox.order().map_err(|error| format!("{}: {error}", ALERTS_FILE))?;
        self.order = order.map(|order| (stamp, order));
        Ok(())
    }

    fn ensure_sent(&mut self, notes: &mut Notes) {
        if let Some((child, since)) = &mut self.sending {
            let log = self.folder.log(LOG);
            let failed = match child.try_wait() {
                Ok(None) if since.elapsed() < SENDER_TIMEOUT => return,
                Ok(Some(status)) if status.success() => None,
                Ok(Some(_)) => Some(output::tail(&log, 1)),
                Ok(None) => Some(format!("it took longer than {} s and was stopped", SENDER_TIMEOUT.as_secs())),
                Err(error) => Some(error.to_string()),
            };
            // A child that still lives is killed when it is dropped.
            self.sending = None;
            let _ = output::keep_bounded(&log);
            match failed {
                None => {
                    (self.failures, self.again_at) = (0, None);
                    self.complaint.end();
                }
                Some(why) => {
                    let pause = PAUSE.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MOST);
                    self.failures = self.failures.saturating_add(1);
                    self.again_at = Some(Instant::now() + pause);
                    self.complaint.say(format!("messages are not sent and will be retried: {why}"), notes);
                }
            }
        }
        if self.again_at.is_some_and(|at| Instant::now() < at) || self.outbox.is_empty() {
            return;
        }
        match self.start() {
            Ok(child) => self.sending = Some((child, Instant::now())),
            Err(error) => {
                self.again_at = Some(Instant::now() + PAUSE_MOST);
                self.complaint.say(format!("messages cannot be sent: {error}"), notes);
            }
        }
    }

    /// The sender is this program itself, which can open connections.
    fn start(&self) -> std::io::Result<Child> {
        own_program(&self.folder, &self.folder.log(LOG))?
            .args(["alert", "send", "--folder", self.folder.root().as_str()])
            .spawn()
    }

    fn often_restarted(&mut self, units: &[UnitStatus], most: u32) -> Vec<Fact> {
        let now = Instant::now();
        self.restarts.retain(|name, _| units.iter().any(|unit| unit.name == *name));
        let mut facts = Vec::new();
        for unit in units {
            let known = self.restarts.entry(unit.name.clone()).or_default();
            for _ in known.counted..unit.restarts.min(known.counted.saturating_add(most.saturating_add(1))) {
                known.at.push_back(now);
            }
            known.counted = unit.restarts;
            known.at.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
            while known.at.len() > most as usize + 1 {
                known.at.pop_front();
            }
            if known.at.len() > most as usize {
                let says = format!("it exited and was restarted more than {most} times within an hour");
                facts.push(Fact::new("restarts", unit.name.clone(), says));
            }
        }
        facts
    }

    fn of_disk(&self, limits: AlertLimits) -> Option<Fact> {
        let textnlp_files::Filesystem { used, free, .. } = textnlp_files::filesystem(self.folder.state()).ok()?;
        let share = percent(used, used.saturating_add(free))?;
        (share > limits.disk).then(|| {
            let free = free / 1_000_000;
            Fact::new(
                "disk",
                "state",
                format!("the disk under {} is {share} % full, {free} MB are free", self.folder.state()),
            )
        })
    }

    fn of_memory(&mut self, meminfo: &str, limits: AlertLimits, now: Timestamp) -> Option<Fact> {
        let share = memory_used(meminfo)?;
        if share <= limits.memory {
            self.memory_short_since = None;
            return None;
        }
        let since = *self.memory_short_since.get_or_insert(now);
        let says = format!("{share} % of this machine's memory is in use, for a quarter of an hour or longer");
        (now.duration_since(since) >= MEMORY_FOR).then(|| Fact::new("memory", "machine", says))
    }

    /// The last measurement, as `gate` and `up` store it beside the state.
    fn of_gate(&self) -> Option<Fact> {
        let kept = files::read_bounded(&self.folder.state().join("evidence/gate.json"), files::TEXT_MAX).ok()?;
        of_evidence(&kept)
    }

    /// The replication status of the site agent.
    async fn of_replication(&self, units: &[UnitStatus]) -> Vec<Fact> {
        let Some(unit) = units.iter().find(|unit| unit.name == WATCH && unit.phase == PhaseName::Ready) else {
            return Vec::new();
        };
        let request = "GET /v1/status HTTP/1.1\r\nHost: watch\r\nConnection: close\r\n\r\n";
        let socket = self.folder.socket(&unit.name);
        let answer = probe::exchange(&socket, request);
        // An agent that does not answer is soon unready, and reported as a unit.
        let Ok(Ok(answer)) = tokio::time::timeout(AGENT_TIMEOUT, answer).await else { return Vec::new() };
        answer.split_once("\r\n\r\n").map(|(_, body)| of_watch(body)).unwrap_or_default()
    }
}

const LOG: &str = "alerts";

/// The unit of the site agent.
const WATCH: &str = "watch";

/// Applies the facts and returns the messages: raised, reminded, cleared.
fn step(active: &mut BTreeMap<(String, String), Active>, facts: &[Fact], now: Timestamp) -> Vec<(AlertState, Active)> {
    let mut events = Vec::new();
    for fact in facts {
        let key = (fact.name.to_owned(), fact.about.clone());
        let is_full = active.len() >= ACTIVE_MOST;
        match active.get_mut(&key) {
            Some(known) => {
                known.well_since = None;
                if now.duration_since(known.told) >= REMIND {
                    (known.told, known.says) = (now, fact.says.clone());
                    events.push((AlertState::Raised, known.clone()));
                }
            }
            None if is_full => {}
            None => {
                let (name, about) = key.clone();
                let one = Active { name, about, says: fact.says.clone(), since: now, told: now, well_since: None };
                events.push((AlertState::Raised, one.clone()));
                active.insert(key, one);
            }
        }
    }
    active.retain(|(name, about), one| {
        if facts.iter().any(|fact| fact.name == name.as_str() && fact.about == *about) {
            return true;
        }
        let since = *one.well_since.get_or_insert(now);
        if now.duration_since(since) < SETTLED {
            return true;
        }
        let says = format!("it has been healthy since {since:.0}; the alert started at {:.0}", one.since);
        events.push((AlertState::Cleared, Active { says, ..one.clone() }));
        false
    });
    events
}

/// The contact for an alert with its role: that of its subject, else the one for the programs.
fn on_call(contacts: &BTreeMap<String, String>, alert: &str) -> Option<String> {
    let role = match alert {
        "authentication" | "certificate" => "security",
        "backup" | "replication" => "database",
        _ => "devops",
    };
    let (role, contact) = contacts.get_key_value(role).or_else(|| contacts.get_key_value("devops"))?;
    let line: String = contact.lines().next()?.chars().take(CONTACT_MOST).collect();
    Some(format!("{line} ({role})"))
}

/// Only counts are sent: the output of a program may hold secrets.
fn of_units(units: &[UnitStatus], rejected: &[Rejected]) -> Vec<Fact> {
    let failing = units.iter().filter(|unit| unit.failures >= FAILURES).map(|unit| {
        let says = "it exits after each start; see its log";
        Fact::new("process", unit.name.clone(), says)
    });
    let unbelieved =
        rejected.iter().map(|one| Fact::new("process", one.name.clone(), "its unit file is invalid, see `status`"));
    failing.chain(unbelieved).collect()
}

fn of_certificate(certificate: &CertificateStatus, now: Timestamp) -> Option<Fact> {
    let fact = |says: String| Some(Fact::new("certificate", certificate.file.clone(), says));
    if certificate.error.is_some() {
        return fact("it cannot be read, ordered or renewed, see `status`".to_owned());
    }
    let not_after = certificate.not_after?;
    if not_after <= now {
        return fact(format!("it expired at {not_after:.0}"));
    }
    // A renewal is late when half of the time left for it has passed.
    let is_late = match certificate.renew_at {
        Some(renew_at) => now.duration_since(renew_at) > not_after.duration_since(renew_at) / 2,
        None => not_after.duration_since(now) < CERTIFICATE_ENDS,
    };
    if is_late { fact(format!("it expires at {not_after:.0}")) } else { None }
}

/// A measured gate that is closed.
fn of_evidence(kept: &[u8]) -> Option<Fact> {
    #[derive(serde::Deserialize)]
    struct GateEvidence {
        phase: String,
        at: Timestamp,
        gate: Gate,
    }
    #[derive(serde::Deserialize)]
    struct Gate {
        state: String,
        #[serde(default)]
        blockers: Vec<String>,
    }
    let GateEvidence { phase, at, gate } = serde_json::from_slice(kept).ok()?;
    let says = format!("measured at {at:.0}: {}", gate.blockers.join("; "));
    (gate.state == "shut").then(|| Fact::new("gate", phase, says))
}

/// Facts of a site agent's answer.
fn of_watch(body: &str) -> Vec<Fact> {
    #[derive(PartialEq, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Role {
        Primary,
        #[serde(other)]
        Other,
    }
    #[derive(serde::Deserialize)]
    struct AgentAnswer {
        #[serde(default)]
        lagging: Vec<String>,
        writable: bool,
        why_not: Option<String>,
        role: Role,
        witness_heard_ms: Option<u64>,
    }
    let Ok(told) = serde_json::from_str::<AgentAnswer>(body) else { return Vec::new() };
    let mut facts: Vec<Fact> = told
        .lagging
        .iter()
        .map(|site| Fact::new("replication", site.clone(), "this site lags behind by more than the limit"))
        .collect();
    // A witness that was never heard since this site started may not exist yet.
    if told.witness_heard_ms.is_some_and(|ms| ms > WITNESS_AWAY_MS) {
        let says = "it has not answered this site for a minute: until it answers no site can take over";
        facts.push(Fact::new("replication", "witness", says));
    }
    if told.role == Role::Primary && !told.writable {
        let why = told.why_not.unwrap_or_default();
        facts.push(Fact::new(
            "replication",
            "control data",
            format!("keys and quotas cannot be changed at the moment: {why}"),
        ));
    }
    facts
}

/// The share of memory in use, from `/proc/meminfo`.
fn memory_used(meminfo: &str) -> Option<u32> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, available) = (field("MemTotal")?, field("MemAvailable")?);
    percent(total.saturating_sub(available), total)
}

fn percent(part: u64, capacity: u64) -> Option<u32> {
    if capacity == 0 {
        return None;
    }
    u32::try_from(u128::from(part) * 100 / u128::from(capacity)).ok()
}

fn short_digest(text: &str) -> String {
    use sha2::Digest;
    hex::encode(&sha2::Sha256::digest(text.as_bytes())[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + minutes * 60).unwrap()
    }

    /// Runs facts by minutes, and says what is told.
    fn check(minutes: &[(i64, &[&str])], expected: &[&str]) {
        let mut active = BTreeMap::new();
        let mut told = Vec::new();
        for (minute, names) in minutes {
            let facts: Vec<Fact> = names.iter().map(|name| Fact::new("process", *name, "x")).collect();
            for (state, one) in step(&mut active, &facts, at(*minute)) {
                told.push(format!("{minute} {} {}", state.as_str(), one.about));
            }
        }
        assert_eq!(told, expected);
    }

    #[test]
    fn alert_is_raised_once_and_cleared_once() {
        check(&[(0, &["a"]), (1, &["a"]), (2, &["a", "b"])], &["0 raised a", "2 raised b"]);
        check(&[(0, &["a"]), (1, &[]), (3, &[]), (6, &[]), (7, &[])], &["0 raised a", "6 cleared a"]);
        // What comes and goes within a few minutes is one thing.
        check(&[(0, &["a"]), (1, &[]), (4, &["a"]), (5, &[]), (9, &["a"])], &["0 raised a"]);
        check(&[(0, &["a"]), (1, &[]), (6, &[]), (7, &["a"])], &["0 raised a", "6 cleared a", "7 raised a"]);
        check(&[(0, &["a"]), (1439, &["a"]), (1440, &["a"]), (1441, &["a"])], &["0 raised a", "1440 raised a"]);
        let many: Vec<String> = (0..300).map(|i| format!("p{i}")).collect();
        let facts: Vec<Fact> = many.iter().map(|name| Fact::new("process", name, "x")).collect();
        assert_eq!(step(&mut BTreeMap::new(), &facts, at(0)).len(), ACTIVE_MOST);
    }

    #[test]
    fn contact_is_that_of_the_alert_else_of_the_programs() {
        let of = |roles: &[&str], alert: &str| {
            let contacts = roles.iter().map(|role| ((*role).to_owned(), format!("Ada\n{role}"))).collect();
            on_call(&contacts, alert)
        };
        assert_eq!(of(&["devops", "database"], "backup").as_deref(), Some("Ada (database)"));
        assert_eq!(of(&["devops", "database"], "disk").as_deref(), Some("Ada (devops)"));
        assert_eq!(of(&["devops"], "certificate").as_deref(), Some("Ada (devops)"));
        assert_eq!(of(&["database"], "disk"), None);
    }

    fn unit(name: &str, restarts: u32, failures: u32) -> UnitStatus {
        UnitStatus {
            name: name.to_owned(),
            phase: PhaseName::Waiting,
            pid: None,
            restarts,
            failures,
            spec_digest: None,
            reload_digest: None,
            operation: None,
            says: "thread 'main' panicked: hunter2".to_owned(),
            file_gone: false,
        }
    }

    #[test]
    fn failing_programs_are_reported_by_restart_count_without_their_output() {
        let rejected = [Rejected { name: "odd".to_owned(), why: "hunter2".to_owned() }];
        let facts = of_units(&[unit("fine", 2, 2), unit("bad", 9, 3)], &rejected);
        assert_eq!(facts.iter().map(|fact| fact.about.as_str()).collect::<Vec<_>>(), ["bad", "odd"]);
        assert!(!format!("{facts:?}").contains("hunter2"));
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&camino::Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        let mut alerts = Alerts::new(&folder);
        assert!(alerts.often_restarted(&[unit("a", 5, 0)], 5).is_empty());
        let facts = alerts.often_restarted(&[unit("a", 6, 0)], 5);
        assert_eq!((facts.len(), facts[0].name), (1, "restarts"));
        // A supervisor that begins anew counts anew, and a huge count costs nothing.
        assert!(alerts.often_restarted(&[unit("a", 0, 0), unit("b", u32::MAX, 0)], 5).len() == 2);
        assert!(alerts.restarts["b"].at.len() <= 7);
    }

    #[test]
    fn memory_above_its_limit_for_a_quarter_of_an_hour_raises_an_alert() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(&camino::Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        // Readings by minute, in percent, and the minutes of the alert.
        let check = |limits: AlertLimits, readings: &[(i64, u32)], expected: &[i64]| {
            let mut alerts = Alerts::new(&folder);
            let mut raised = Vec::new();
            for (minute, used) in readings {
                let meminfo = format!("MemTotal: 10000 kB\nMemAvailable: {} kB\n", 10_000 - used * 100);
                if let Some(fact) = alerts.of_memory(&meminfo, limits, at(*minute)) {
                    assert_eq!((fact.name, fact.about.as_str()), ("memory", "machine"));
                    assert!(fact.says.starts_with(&format!("{used} % ")), "{}", fact.says);
                    raised.push(*minute);
                }
            }
            assert_eq!(raised, expected, "{readings:?}");
        };
        let usual = AlertLimits::default();
        assert_eq!(usual.memory, 80);
        check(usual, &[(0, 81), (5, 95), (14, 81), (15, 81), (16, 99)], &[15, 16]);
        check(usual, &[(0, 80), (15, 80), (60, 80)], &[]);
        // Enough memory in between begins the time again.
        check(usual, &[(0, 90), (10, 80), (11, 90), (15, 90), (25, 90), (26, 90), (27, 40)], &[26]);
        check(AlertLimits { memory: 95, ..usual }, &[(0, 90), (15, 95), (16, 96), (31, 96)], &[31]);
        // What cannot be read neither raises it nor begins the time again.
        let mut alerts = Alerts::new(&folder);
        let full = "MemTotal: 100 kB\nMemAvailable: 1 kB\n";
        assert!(alerts.of_memory(full, usual, at(0)).is_none() && alerts.of_memory("", usual, at(15)).is_none());
        assert!(alerts.of_memory(full, usual, at(16)).is_some());
    }

    #[test]
    fn overdue_certificates_raise_an_alert() {
        let of = |not_after: Option<i64>, renew_at: Option<i64>, error: Option<&str>| {
            let certificate = CertificateStatus {
                file: "c".to_owned(),
                not_after: not_after.map(at),
                renew_at: renew_at.map(at),
                error: error.map(str::to_owned),
            };
            of_certificate(&certificate, at(0)).map(|fact| fact.says)
        };
        let day = 24 * 60;
        assert_eq!(of(Some(30 * day), Some(20 * day), None), None);
        assert_eq!(of(Some(10 * day), Some(-day), None), None, "it is just being renewed");
        assert!(of(Some(5 * day), Some(-6 * day), None).unwrap().starts_with("it expires at"));
        assert!(of(Some(-1), Some(-day), None).unwrap().starts_with("it expired at"));
        assert_eq!(of(Some(15 * day), None, None), None);
        assert!(of(Some(13 * day), None, None).is_some() && of(None, None, Some("x")).is_some());
        assert_eq!(of(None, None, None), None);
    }

    #[test]
    fn machine_and_site_agent_measurements_are_parsed() {
        let meminfo = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    2000 kB\n";
        assert_eq!(memory_used(meminfo), Some(87));
        assert_eq!((memory_used(""), memory_used("MemTotal: x kB\nMemAvailable: 1 kB")), (None, None));
        let facts = of_watch(r#"{"role":"primary","writable":false,"why_not":"nobody else has it","lagging":["b"]}"#);
        assert_eq!(facts.iter().map(|fact| fact.about.as_str()).collect::<Vec<_>>(), ["b", "control data"]);
        assert!(of_watch(r#"{"role":"secondary","writable":false,"why_not":null,"lagging":[]}"#).is_empty());
        let witness = |ms: &str| {
            let facts = of_watch(&format!(r#"{{"role":"secondary","writable":false,"witness_heard_ms":{ms}}}"#));
            facts.first().map(|fact| fact.about.clone())
        };
        assert_eq!(["null", "60000", "60001"].map(witness), [None, None, Some("witness".to_owned())]);
        assert!(of_watch("nonsense").is_empty());
        let kept = |state: &str| {
            let text = format!(
                r#"{{"phase":"staging","at":"2026-11-20T12:00:00Z","gate":{{"state":"{state}","blockers":["p95 is 900 ms"]}}}}"#
            );
            of_evidence(text.as_bytes())
        };
        assert_eq!(kept("shut").unwrap().says, "measured at 2026-11-20T12:00:00Z: p95 is 900 ms");
        assert!(
            kept("wait").is_none()
                && of_evidence(br#"{"phase":"x","at":"2026-11-20T12:00:00Z","gate":{"state":"open"}}"#).is_none()
        );
    }
}
