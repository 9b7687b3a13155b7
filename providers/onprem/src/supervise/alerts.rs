//! What the supervisor sees going wrong is told, once, to whoever the environment names; and once more when it is over.
//!
//! Only seeing happens here. Sending is the work of a child, so that a mail server that hangs holds nobody up.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use textnlp_provider::alert::{Alert, AlertState};
use textnlp_provider::component::AlertLimits;
use tokio::process::Child;

use super::beside::{Complaint, ourselves};
use super::control::{CertificateStatus, PhaseName, Rejected, UnitStatus};
use super::output::{self, Notes};
use super::probe;
use crate::alert::{Active, AlertOrder, Outbox};
use crate::files::{self, Stamp};
use crate::layout::SiteFolder;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What looks well again for so long is over; sooner it may only be taking a breath.
const SETTLED: SignedDuration = SignedDuration::from_mins(5);
/// What is still wrong is told again after this.
const REMIND: SignedDuration = SignedDuration::from_hours(24);
/// A program that ended by itself so often since it last did its work keeps failing.
const FAILURES: u32 = 3;
/// How long memory must be short.
const MEMORY_FOR: SignedDuration = SignedDuration::from_mins(15);
/// Within this, restarts are counted.
const RESTARTS_WITHIN: Duration = Duration::from_secs(3600);
/// A certificate that nobody renews here is told of when it ends within this.
const CERTIFICATE_ENDS: SignedDuration = SignedDuration::from_hours(14 * 24);
/// More things that are wrong at once are not told apart.
const ACTIVE_MOST: usize = 100;
/// A sender that takes longer hangs.
const SENDER_WITHIN: Duration = Duration::from_secs(180);
/// The first pause after an attempt that failed; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause.
const PAUSE_MOST: Duration = Duration::from_secs(300);
/// A witness that is silent for so long is told of.
const WITNESS_AWAY_MS: u64 = 60_000;
/// How long the site's watch may take to say how replication stands.
const WATCH_WITHIN: Duration = Duration::from_millis(500);

/// Something that is wrong at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) about: String,
    pub(super) says: String,
}

impl Fact {
    pub(super) fn new(name: &'static str, about: impl Into<String>, says: impl Into<String>) -> Self {
        Self { name, about: about.into(), says: says.into() }
    }
}

/// What the rest of the supervisor knows.
pub(super) struct Seen<'a> {
    pub(super) units: &'a [UnitStatus],
    pub(super) rejected: &'a [Rejected],
    pub(super) certificates: &'a [CertificateStatus],
    /// What is wrong with the copies, if anything is.
    pub(super) backup: Option<String>,
}

/// What is wrong, who is told, and how far that has got.
pub(super) struct Alerts {
    folder: SiteFolder,
    outbox: Outbox,
    looked: Option<Instant>,
    order: Option<(Stamp, AlertOrder)>,
    active: BTreeMap<(String, String), Active>,
    restarts: BTreeMap<String, Restarts>,
    memory_short_since: Option<Timestamp>,
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
            looked: None,
            order: None,
            active,
            restarts: BTreeMap::new(),
            memory_short_since: None,
            sending: None,
            failures: 0,
            again_at: None,
            complaint: Complaint::about("alerts"),
        }
    }

    /// Whether it is time for a look.
    pub(super) fn is_due(&self) -> bool {
        self.looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY)
    }

    /// Looks at everything, puts what is new into the outbox, and sees that it is sent.
    pub(super) async fn look(&mut self, seen: Seen<'_>, now: Timestamp, notes: &mut Notes) {
        self.looked = Some(Instant::now());
        if let Err(why) = self.read_order() {
            self.complaint.say(why, notes);
            return;
        }
        let Some((_, order)) = &self.order else { return };
        let (limits, environment, site) = (order.limits, order.environment.clone(), order.site.clone());
        let gate = order.home.then(|| self.of_gate()).flatten();
        let mut facts = of_units(seen.units, seen.rejected);
        facts.extend(self.often_restarted(seen.units, limits.restarts));
        facts.extend(seen.certificates.iter().filter_map(|certificate| of_certificate(certificate, now)));
        facts.extend(seen.backup.map(|why| Fact::new("backup", "copies", why)));
        facts.extend(gate);
        facts.extend(self.of_disk(limits));
        facts.extend(self.of_memory(limits, now));
        facts.extend(self.of_replication(seen.units).await);
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
                says: one.says.clone(),
            };
            notes.say(&format!("alert {alert}: {}", one.says));
            match self.outbox.put(alert) {
                Ok(false) => {}
                Ok(true) => notes.say("alerts: too many wait, the oldest is dropped"),
                Err(error) => self.complaint.say(format!("a message cannot be kept: {error}"), notes),
            }
        }
        let changed = !events.is_empty() || self.active.values().any(|one| one.well_since == Some(now));
        if changed {
            let active: Vec<Active> = self.active.values().cloned().collect();
            if let Err(error) = self.outbox.remember(&active) {
                self.complaint.say(format!("what is wrong cannot be kept: {error}"), notes);
            }
        }
        self.see_that_it_is_sent(notes);
    }

    /// Reads who is told, when that has changed.
    fn read_order(&mut self) -> Result<(), String> {
        let Some(stamp) = Stamp::of(&self.folder.join(crate::lower::ALERTS_FILE)).ok().flatten() else {
            self.order = None;
            return Ok(());
        };
        if self.order.as_ref().is_some_and(|(known, _)| *known == stamp) {
            return Ok(());
        }
        let order = self.outbox.order().map_err(|error| format!("{}: {error}", crate::lower::ALERTS_FILE))?;
        self.order = order.map(|order| (stamp, order));
        Ok(())
    }

    fn see_that_it_is_sent(&mut self, notes: &mut Notes) {
        if let Some((child, since)) = &mut self.sending {
            let log = self.folder.log(LOG);
            let failed = match child.try_wait() {
                Ok(None) if since.elapsed() < SENDER_WITHIN => return,
                Ok(Some(status)) if status.success() => None,
                Ok(Some(_)) => Some(output::tail(&log, 1)),
                Ok(None) => Some(format!("it took longer than {} s and is ended", SENDER_WITHIN.as_secs())),
                Err(error) => Some(error.to_string()),
            };
            // A child that still lives is killed as it is let go.
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
                    self.complaint.say(format!("they are not sent, and tried again: {why}"), notes);
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
                self.complaint.say(format!("they cannot be sent: {error}"), notes);
            }
        }
    }

    /// The command is this very program, which can speak to the world.
    fn start(&self) -> std::io::Result<Child> {
        ourselves(&self.folder, &self.folder.log(LOG))?
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
            known.at.retain(|at| now.duration_since(*at) < RESTARTS_WITHIN);
            while known.at.len() > most as usize + 1 {
                known.at.pop_front();
            }
            if known.at.len() > most as usize {
                let says = format!("it ended by itself and was started again more than {most} times within an hour");
                facts.push(Fact::new("restarts", unit.name.clone(), says));
            }
        }
        facts
    }

    fn of_disk(&self, limits: AlertLimits) -> Option<Fact> {
        let found = rustix::fs::statvfs(self.folder.state().as_std_path()).ok()?;
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        let share = percent(used, used.saturating_add(found.f_bavail))?;
        (share > limits.disk).then(|| {
            let free = found.f_bavail.saturating_mul(found.f_frsize) / 1_000_000;
            Fact::new(
                "disk",
                "state",
                format!("the disk under {} is {share} % full, {free} MB are free", self.folder.state()),
            )
        })
    }

    fn of_memory(&mut self, limits: AlertLimits, now: Timestamp) -> Option<Fact> {
        let share = memory_used(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
        if share <= limits.memory {
            self.memory_short_since = None;
            return None;
        }
        let since = *self.memory_short_since.get_or_insert(now);
        let says = format!("{share} % of this machine's memory is in use, for a quarter of an hour or longer");
        (now.duration_since(since) >= MEMORY_FOR).then(|| Fact::new("memory", "machine", says))
    }

    /// What was measured last, as `gate` and `up` keep it beside the state.
    fn of_gate(&self) -> Option<Fact> {
        let kept = files::read_bounded(&self.folder.state().join("evidence/gate.json"), files::TEXT_MAX).ok()?;
        of_evidence(&kept)
    }

    /// What the site's watch says of the other sites.
    async fn of_replication(&self, units: &[UnitStatus]) -> Vec<Fact> {
        let Some(unit) = units.iter().find(|unit| unit.name == WATCH && unit.phase == PhaseName::Ready) else {
            return Vec::new();
        };
        let request = "GET /v1/status HTTP/1.1\r\nHost: watch\r\nConnection: close\r\n\r\n";
        let socket = self.folder.socket(&unit.name);
        let asked = probe::exchange(&socket, request);
        // One that does not answer is not ready for long, and told of as a program.
        let Ok(Ok(answer)) = tokio::time::timeout(WATCH_WITHIN, asked).await else { return Vec::new() };
        answer.split_once("\r\n\r\n").map(|(_, body)| of_watch(body)).unwrap_or_default()
    }
}

const LOG: &str = "alerts";

/// The unit of a site that keeps control data and looks after the others.
const WATCH: &str = "watch";

/// What changes by these facts: what begins, what goes on for so long that it is told again, what is over.
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
        let says = format!("it is well since {since:.0}; it began at {:.0}", one.since);
        events.push((AlertState::Cleared, Active { says, ..one.clone() }));
        false
    });
    events
}

/// Only counts are told: what a program wrote as it ended may hold what nobody should read in a mail.
fn of_units(units: &[UnitStatus], rejected: &[Rejected]) -> Vec<Fact> {
    let failing = units.iter().filter(|unit| unit.failures >= FAILURES).map(|unit| {
        let says = "it ends by itself each time it is started; its log says why";
        Fact::new("process", unit.name.clone(), says)
    });
    let unbelieved = rejected
        .iter()
        .map(|one| Fact::new("process", one.name.clone(), "its unit file is not believed, see `status`"));
    failing.chain(unbelieved).collect()
}

fn of_certificate(certificate: &CertificateStatus, now: Timestamp) -> Option<Fact> {
    let fact = |says: String| Some(Fact::new("certificate", certificate.file.clone(), says));
    if certificate.error.is_some() {
        return fact("it cannot be read or renewed, see `status`".to_owned());
    }
    let not_after = certificate.not_after?;
    if not_after <= now {
        return fact(format!("it ended at {not_after:.0}"));
    }
    // One that is renewed here is late when half of what was left for that is gone.
    let is_late = match certificate.renew_at {
        Some(renew_at) => now.duration_since(renew_at) > not_after.duration_since(renew_at) / 2,
        None => not_after.duration_since(now) < CERTIFICATE_ENDS,
    };
    if is_late { fact(format!("it ends at {not_after:.0}")) } else { None }
}

/// A gate that was measured and found shut.
fn of_evidence(kept: &[u8]) -> Option<Fact> {
    #[derive(serde::Deserialize)]
    struct Kept {
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
    let Kept { phase, at, gate } = serde_json::from_slice(kept).ok()?;
    let says = format!("measured at {at:.0}: {}", gate.blockers.join("; "));
    (gate.state == "shut").then(|| Fact::new("gate", phase, says))
}

/// Facts of the answer of a watch.
fn of_watch(body: &str) -> Vec<Fact> {
    #[derive(serde::Deserialize)]
    struct Told {
        #[serde(default)]
        lagging: Vec<String>,
        writable: bool,
        why_not: Option<String>,
        role: String,
        witness_heard_ms: Option<u64>,
    }
    let Ok(told) = serde_json::from_str::<Told>(body) else { return Vec::new() };
    let mut facts: Vec<Fact> = told
        .lagging
        .iter()
        .map(|site| Fact::new("replication", site.clone(), "this site is behind by more than is allowed"))
        .collect();
    // One that was never heard of since this site began may not be there yet.
    if told.witness_heard_ms.is_some_and(|ms| ms > WITNESS_AWAY_MS) {
        let says = "it has not answered this site for a minute: while it is away no site can take another's place";
        facts.push(Fact::new("replication", "witness", says));
    }
    if told.role == "primary" && !told.writable {
        let why = told.why_not.unwrap_or_default();
        facts.push(Fact::new("replication", "control data", format!("keys and quotas cannot be changed now: {why}")));
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

fn percent(part: u64, whole: u64) -> Option<u32> {
    if whole == 0 {
        return None;
    }
    u32::try_from(u128::from(part) * 100 / u128::from(whole)).ok()
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
    fn a_thing_is_told_once_while_it_lasts_and_once_when_it_is_over() {
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
    fn programs_that_fail_are_told_by_count_and_never_by_what_they_wrote() {
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
    fn certificates_are_told_of_when_they_are_late() {
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
        assert!(of(Some(5 * day), Some(-6 * day), None).unwrap().starts_with("it ends at"));
        assert!(of(Some(-1), Some(-day), None).unwrap().starts_with("it ended at"));
        assert_eq!(of(Some(15 * day), None, None), None);
        assert!(of(Some(13 * day), None, None).is_some() && of(None, None, Some("x")).is_some());
        assert_eq!(of(None, None, None), None);
    }

    #[test]
    fn figures_of_the_machine_and_of_the_watch_are_read() {
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
