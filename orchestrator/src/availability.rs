//! Availability as a client sees it: probes of the service from outside, their record, and the available share of a
//! window.
//!
//! The record is in the state folder, in a file a day. One prober at a time appends to it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_files::{Lock, append};
use textnlp_provider::Lineage;

use crate::environment::model::Span;
use crate::gate::encoders;
use crate::load::{Key, LoadRequest, LoadResponse, Wire};
use crate::monthly::RequestSum;

/// The longest window of a gate.
pub const MAX_WINDOW: Duration = Duration::from_secs(30 * 86_400);
/// The shortest one.
pub const MIN_WINDOW: Duration = Duration::from_secs(1);
/// The days that are kept: a window of the longest time touches one more, and ends some time after the last probe.
const KEPT_DAYS: i32 = 32;
/// The timeout of a probe.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// The share of a window that the record must cover.
pub const MIN_COVERED: f64 = 0.99;
/// The maximum age of the newest probe.
pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(1);
/// The longest interval of a prober, in milliseconds.
const LONGEST_INTERVAL_MS: i64 = 60_000;
/// How far the clock of a prober may be ahead.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
/// A probe stands for the time until the next one, at most for this many intervals.
const INTERVALS: u32 = 2;
/// The longest reason that is recorded, in characters.
const MAX_REASON: usize = 200;
/// The limit of one day's file that is read: a probe a second with a reason each.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The service answered.
    Available,
    /// It did not answer, or with an error of its own.
    Unavailable,
    /// It refused the request, which says nothing about its availability.
    Refused,
}

/// A recorded probe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// When it was sent.
    pub at: Timestamp,
    /// The interval of the prober, in milliseconds.
    pub every_ms: u32,
    /// The time until the answer, in milliseconds.
    pub ms: u32,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Probe {
    /// Its interval and its duration, as a prober can have them: the record is a file that can be changed.
    fn times(&self) -> (i64, i64) {
        let longest = i64::try_from(TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        (i64::from(self.every_ms).min(LONGEST_INTERVAL_MS), i64::from(self.ms).min(longest))
    }

    /// The longest time that it stands for.
    fn lasts(&self) -> SignedDuration {
        let (every, took) = self.times();
        SignedDuration::from_millis(every * i64::from(INTERVALS) + took)
    }

    /// The end of its interval.
    fn end(&self) -> Timestamp {
        let (every, took) = self.times();
        let interval = SignedDuration::from_millis(every.max(took));
        self.at.checked_add(interval).unwrap_or(self.at)
    }
}

/// Sends one probe: a generation of one token, or for a service of embeddings one vector. Returns its outcome, and the
/// reason if it is not available.
pub async fn probe(wire: &dyn Wire, key: Option<&Key>, embeds: bool) -> (Outcome, Option<String>) {
    let mut request = match embeds {
        true => LoadRequest::post("/v1/embeddings", json!({ "input": "probe" })),
        false => LoadRequest::post("/v1/generate", json!({ "prompt": "probe", "max_tokens": 1 })),
    };
    (request.key, request.timeout) = (key.cloned(), TIMEOUT);
    match wire.send(request).await {
        Ok(answer) => match answer.status {
            200..=299 => (Outcome::Available, None),
            status @ (401 | 403) => (Outcome::Refused, Some(format!("status {status}"))),
            429 if is_limit_of_key(&answer) => (Outcome::Refused, Some("status 429, the limit of the key".to_owned())),
            // Other errors of a client are the service's here: it is overloaded, or what it serves is not there.
            status => (Outcome::Unavailable, Some(format!("status {status}"))),
        },
        Err(failure) => (Outcome::Unavailable, Some(failure.to_string())),
    }
}

/// Whether an answer is the limit of the key, and not of the service.
fn is_limit_of_key(answer: &LoadResponse) -> bool {
    answer.json().is_some_and(|body| body["error"]["code"] == "rate_limit_exceeded")
}

/// Whether requests that name no model get one that makes embeddings. `None` if the service lists no models.
pub async fn embeds_by_default(wire: &dyn Wire, key: Option<&Key>) -> Option<bool> {
    Some(encoders(wire, key).await?.iter().any(|model| model.is_default))
}

/// The record of the probes of one deployment.
#[derive(Debug, Clone)]
pub struct ProbeRecord {
    /// The folder of all deployments that this state folder had.
    root: Utf8PathBuf,
    lineage: Lineage,
}

impl ProbeRecord {
    /// The record in a state folder.
    pub fn at(state: &Utf8Path, lineage: Lineage) -> Self {
        Self { root: state.join("availability"), lineage }
    }

    /// Its folder.
    pub fn folder(&self) -> Utf8PathBuf {
        self.root.join(self.lineage.to_string())
    }

    /// Starts a prober. `None` while another one runs.
    pub fn begin(&self) -> io::Result<Option<Recorder>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        let lock = Lock::try_exclusive(self.folder().join("lock"), 0o600)?;
        Ok(lock.map(|lock| Recorder { record: self.clone(), day: None, _lock: lock }))
    }

    /// The probes that a window before the newest one needs, oldest first. Lines that are not whole are left out, and probes after `now`, of
    /// a clock that was set forward.
    pub fn read(&self, window: Duration, now: Timestamp) -> io::Result<Vec<Probe>> {
        let (latest, mut days) = (now.checked_add(SKEW).unwrap_or(now), days(&self.folder())?);
        days.retain(|(day, _)| *day <= latest.to_zoned(TimeZone::UTC).date());
        days.sort_unstable();
        let Some((newest, _)) = days.last() else { return Ok(Vec::new()) };
        let needed = i32::try_from(window.as_secs() / 86_400).unwrap_or(KEPT_DAYS) + 1;
        let oldest = newest.checked_sub(jiff::Span::new().days(needed)).unwrap_or(Date::MIN);
        let mut probes = Vec::new();
        for (_, file) in days.iter().filter(|(day, _)| *day >= oldest) {
            let mut lines = BufReader::new(fs::File::open(file)?.take(MAX_FILE_BYTES));
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 {
                probes.extend(serde_json::from_slice::<Probe>(&line).ok());
                line.clear();
            }
        }
        probes.retain(|probe| probe.at <= latest);
        // A clock that was set back.
        probes.sort_by_key(|probe| probe.at);
        Ok(probes)
    }
}

/// The days with a file in a folder.
fn days(folder: &Utf8Path) -> io::Result<Vec<(Date, Utf8PathBuf)>> {
    let entries = match folder.read_dir_utf8() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let day = entry.file_name().strip_suffix(".jsonl").and_then(|day| day.parse().ok());
        found.extend(day.map(|day| (day, entry.into_path())));
    }
    Ok(found)
}

/// Appends to a record. No other process does meanwhile.
#[derive(Debug)]
pub struct Recorder {
    record: ProbeRecord,
    /// The day of the last probe.
    day: Option<Date>,
    _lock: Lock,
}

/// A line of the record.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    probe: &'a Probe,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Recorder {
    /// The record that it appends to.
    pub fn record(&self) -> &ProbeRecord {
        &self.record
    }

    /// Adds a probe, durable when this returns. With the first one of a day, files of old days are removed.
    pub fn add(&mut self, probe: &Probe, why: Option<&str>) -> io::Result<()> {
        let day = probe.at.to_zoned(TimeZone::UTC).date();
        let file = self.record.folder().join(format!("{day}.jsonl"));
        if self.day != Some(day) {
            end_line(&file)?;
            self.prune(day)?;
            self.day = Some(day);
        }
        let why = why.map(|why| why.chars().take(MAX_REASON).collect());
        let mut line = serde_json::to_vec(&Line { probe, why })?;
        line.push(b'\n');
        Ok(append(file, &line, 0o600)?)
    }

    /// Removes files of old days, also of earlier deployments.
    fn prune(&self, today: Date) -> io::Result<()> {
        let oldest = today.checked_sub(jiff::Span::new().days(KEPT_DAYS)).unwrap_or(Date::MIN);
        for deployment in self.record.root.read_dir_utf8()? {
            for (_, file) in days(deployment?.path())?.into_iter().filter(|(day, _)| *day < oldest) {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

/// Ends a line that a killed prober left.
fn end_line(file: &Utf8Path) -> io::Result<()> {
    let mut opened = match fs::File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut last = [b'\n'];
    if opened.metadata()?.len() > 0 {
        opened.seek(SeekFrom::End(-1))?;
        opened.read_exact(&mut last)?;
    }
    if last == [b'\n'] { Ok(()) } else { Ok(append(file, b"\n", 0o600)?) }
}

/// What a record says about a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WindowSummary {
    /// The start.
    pub from: Timestamp,
    /// The end: that of the newest probe.
    pub until: Timestamp,
    /// The probes.
    pub probes: u64,
    /// Those without an answer, or with an error of the service.
    pub unavailable: u64,
    /// Those that the service refused. They cover no time.
    pub refused: u64,
    /// The covered share of the window.
    pub covered: f64,
    /// The available share of the covered time. `None` if no time is covered.
    pub available: Option<f64>,
}

/// Summarizes the window that ends with the newest probe. `since`: the time before which no probe counts. `None` without
/// probes.
pub fn over(probes: &[Probe], window: Duration, since: Option<Timestamp>) -> Option<WindowSummary> {
    let counts = |probe: &&Probe| since.is_none_or(|since| probe.at > since);
    let newest = probes.last().filter(counts)?;
    let until = newest.end();
    let from = until.checked_sub(window).unwrap_or(Timestamp::MIN);
    let begins = since.map_or(from, |since| from.max(since));
    let mut summary =
        WindowSummary { from: begins, until, probes: 0, unavailable: 0, refused: 0, covered: 0.0, available: None };
    let (mut covered, mut available) = (0.0, 0.0);
    for (at, probe) in probes.iter().enumerate() {
        let next = probes.get(at + 1).map_or(until, |next| next.at);
        let end = probe.at.checked_add(probe.lasts()).unwrap_or(next).min(next);
        if end <= from || !counts(&probe) {
            continue;
        }
        summary.probes += 1;
        let seconds = end.duration_since(probe.at.max(from)).as_secs_f64().max(0.0);
        match probe.outcome {
            Outcome::Available => available += seconds,
            Outcome::Unavailable => summary.unavailable += 1,
            Outcome::Refused => {
                summary.refused += 1;
                continue;
            }
        }
        covered += seconds;
    }
    summary.covered = covered / window.as_secs_f64().max(f64::MIN_POSITIVE);
    summary.available = (covered > 0.0).then_some(available / covered);
    Some(summary)
}

/// The summary, if the record is enough for a gate; else why not.
pub fn enough(summary: Option<WindowSummary>, window: Span, now: Timestamp) -> Result<WindowSummary, String> {
    let summary = summary.ok_or("no probe is recorded")?;
    if now.duration_since(summary.until) > MAX_AGE {
        return Err(format!("the newest probe is of {:.0}, more than an hour ago", summary.until));
    }
    if summary.covered < MIN_COVERED {
        let WindowSummary { covered, refused, .. } = summary;
        let (recorded, least) = (percent(covered), percent(MIN_COVERED));
        let refused = if refused == 0 { String::new() } else { format!("; {refused} probes were refused") };
        return Err(format!("{recorded} of the last {window} are recorded, and {least} are needed{refused}"));
    }
    Ok(summary)
}

/// The lower share of the two records, and what both say.
pub fn combined(summary: &WindowSummary, own: Option<&RequestSum>) -> (f64, String) {
    let outside = summary.available.unwrap_or_default();
    let WindowSummary { from, until, probes, unavailable, covered, .. } = summary;
    let mut note =
        format!("{probes} probes from {from:.0} to {until:.0}, {unavailable} failed, {} covered", percent(*covered));
    if let Some(own) = own {
        note += &format!("; {} recorded requests, {} failed", own.requests, own.errors);
    }
    // Rounded down, so that a share below the limit does not look like the limit.
    let lower = own.and_then(RequestSum::availability).map_or(outside, |inside| inside.min(outside));
    ((lower * 1e6 + 1e-6).floor() / 1e6, note)
}

/// A share in percent, rounded down.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 1e4 + 1e-6).floor() / 1e2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn probe(second: i64, outcome: Outcome) -> Probe {
        Probe { at: at(second), every_ms: 10_000, ms: 20, outcome }
    }

    /// A probe every ten seconds; those of `outages` are not available.
    fn record(seconds: std::ops::Range<i64>, outages: &[std::ops::Range<i64>]) -> Vec<Probe> {
        let outcome = |second| match outages.iter().any(|outage| outage.contains(&second)) {
            true => Outcome::Unavailable,
            false => Outcome::Available,
        };
        seconds.step_by(10).map(|second| probe(second, outcome(second))).collect()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn lacks_at(probes: &[Probe], second: i64) -> Option<String> {
        enough(over(probes, HOUR, None), Span(HOUR), at(second)).err()
    }

    #[test]
    fn window_ends_with_the_newest_probe_and_counts_its_outages() {
        let summary = over(&record(0..7200, &[100..200, 7000..7036]), HOUR, None).unwrap();
        assert_eq!((summary.from, summary.until), (at(3600), at(7200)));
        assert_eq!((summary.probes, summary.unavailable), (360, 4), "the first outage is older");
        assert!((summary.covered - 1.0).abs() < 1e-9, "{summary:?}");
        let (share, note) = combined(&summary, None);
        assert_eq!(share, 0.988888);
        assert!(note.contains("360 probes") && note.contains("4 failed"), "{note}");
    }

    #[test]
    fn gap_is_not_measured_and_a_long_one_makes_the_gate_wait() {
        let mut probes = record(0..3600, &[]);
        assert_eq!(lacks_at(&probes, 3700), None);
        probes.retain(|probe| !(at(1000)..at(1030)).contains(&probe.at));
        assert_eq!(lacks_at(&probes, 3700), None, "20 s are missing");
        probes.retain(|probe| !(at(1000)..at(1080)).contains(&probe.at));
        let why = lacks_at(&probes, 3700).unwrap();
        assert!(why.contains("98.05 %") && why.contains("of the last 1h") && why.contains("99 %"), "{why}");
        // What is covered was available: a gap is no outage.
        assert_eq!(over(&probes, HOUR, None).unwrap().available, Some(1.0));
    }

    #[test]
    fn record_must_be_there_fresh_and_of_this_deployment() {
        let probes = record(0..3600, &[]);
        assert_eq!(lacks_at(&[], 0).as_deref(), Some("no probe is recorded"));
        assert!(lacks_at(&probes, 3600 + 3601).unwrap().contains("more than an hour ago"));
        assert!(lacks_at(&probes[..180], 1800).unwrap().starts_with("50 %"));
        let since = over(&probes, HOUR, Some(at(1795))).unwrap();
        assert!((since.covered - 0.5).abs() < 0.01 && since.probes == 180, "{since:?}");
        assert_eq!(since.from, at(1795), "the service's own record is read from there");
        assert_eq!(over(&probes, HOUR, Some(at(3600))), None);
    }

    #[test]
    fn slow_failure_counts_for_its_whole_time_and_a_refusal_for_none() {
        // Probes every second; one times out after ten.
        let of = |second, ms, outcome| Probe { at: at(second), every_ms: 1000, ms, outcome };
        let quick = |second| of(second, 5, Outcome::Available);
        let mut probes: Vec<Probe> = (0..50).map(quick).collect();
        probes.push(of(50, 10_000, Outcome::Unavailable));
        probes.extend((60..100).map(quick));
        let summary = over(&probes, Duration::from_secs(100), None).unwrap();
        assert!((summary.covered - 1.0).abs() < 1e-9 && (summary.available.unwrap() - 0.9).abs() < 1e-9, "{summary:?}");
        probes[10].outcome = Outcome::Refused;
        let refused = over(&probes, Duration::from_secs(100), None).unwrap();
        assert!((refused.covered - 0.99).abs() < 1e-9 && refused.refused == 1, "{refused:?}");
        let rest = (0..100).map(|second| of(second, 5, Outcome::Refused)).collect::<Vec<_>>();
        let none = over(&rest, Duration::from_secs(100), None).unwrap();
        assert_eq!((none.covered, none.available), (0.0, None));
    }

    #[test]
    fn worse_of_both_records_counts() {
        let summary = over(&record(0..3600, &[]), HOUR, None).unwrap();
        let own =
            |requests, errors| combined(&summary, Some(&RequestSum { requests, errors, ..RequestSum::default() }));
        assert_eq!(own(0, 0).0, 1.0, "no request is no record");
        let (share, note) = own(2000, 3);
        assert_eq!(share, 0.9985);
        assert!(note.contains("2000 recorded requests, 3 failed"), "{note}");
        let outage = over(&record(0..3600, std::slice::from_ref(&(0..100))), HOUR, None).unwrap();
        assert_eq!(combined(&outage, Some(&RequestSum { requests: 9, ..RequestSum::default() })).0, 0.972222);
    }

    #[test]
    fn record_survives_a_killed_prober_and_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(folder.path()).unwrap();
        let record = ProbeRecord::at(state, Lineage(uuid::Uuid::nil()));
        assert_eq!(record.read(HOUR, at(50 * 86_400)).unwrap(), Vec::new(), "nothing was probed");
        let mut recorder = record.begin().unwrap().unwrap();
        assert!(record.begin().unwrap().is_none(), "one prober at a time");
        let (first, second) = (probe(0, Outcome::Available), probe(10, Outcome::Unavailable));
        recorder.add(&first, None).unwrap();
        recorder.add(&second, Some(&"x".repeat(1000))).unwrap();
        drop(recorder);
        let day = record.folder().join(format!("{}.jsonl", first.at.to_zoned(TimeZone::UTC).date()));
        append(&day, br#"{"at":"2027-01-15T0"#, 0o600).unwrap();
        let mut recorder = record.begin().unwrap().unwrap();
        let third = probe(20, Outcome::Refused);
        recorder.add(&third, Some("status 401")).unwrap();
        assert_eq!(record.read(HOUR, at(50 * 86_400)).unwrap(), [first, second, third]);
        assert!(fs::metadata(&day).unwrap().len() < 1000);
        assert_eq!(record.read(HOUR, at(-600)).unwrap(), Vec::new(), "a clock that was set forward proves nothing");
        // Another deployment had the folder before.
        let other = ProbeRecord::at(state, Lineage(uuid::Uuid::max()));
        other.begin().unwrap().unwrap().add(&first, None).unwrap();
        assert_eq!(record.read(HOUR, at(50 * 86_400)).unwrap().len(), 3);
        let later = Probe { at: at(40 * 86_400), ..first };
        recorder.add(&later, None).unwrap();
        assert_eq!(record.read(MAX_WINDOW, at(50 * 86_400)).unwrap(), [later]);
        assert_eq!(
            other.read(MAX_WINDOW, at(50 * 86_400)).unwrap(),
            Vec::new(),
            "old files of earlier deployments are removed"
        );
    }
}
