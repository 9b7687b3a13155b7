//! Results of a drill, computed from its ledger and from what the new primary holds. Pure: reads no clock and calls no
//! site.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use textnlp_provider::units::counted;

use super::ledger::{LedgerEvent, Mark, RequestStatus, key, request_id};

/// Failures that are closer together than this, or have no answered request between them, are one outage.
const ONE_OUTAGE_MS: f64 = 1000.0;
/// The most lost keys and ids that are listed; the others are only counted.
const MOST_NAMED: usize = 50;
/// The most failure reasons that are listed; the rarer ones are merged into one.
const MOST_REASONS: usize = 8;

/// What the new primary holds, read before the lost site came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrimaryData {
    /// The drill's keys in its control data.
    pub keys: BTreeSet<String>,
    /// Ids of the drill's requests whose usage it has.
    pub known: BTreeSet<String>,
}

/// A period in which requests failed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// When the first failed request was sent, in ms since the ledger began.
    pub from_ms: f64,
    /// When the first request was sent after which none failed; `None` if there was none.
    pub to_ms: Option<f64>,
    /// The count of failed requests.
    pub failed: u64,
    /// Those of them that timed out; the others were refused or broken off.
    #[serde(default)]
    pub timed_out: u64,
}

/// A failure reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The error that the client saw: `status 503 (no_backend)`, `timeout`.
    pub why: String,
    /// The count of requests with it.
    pub requests: u64,
}

/// Counts of one second of the drill, by when requests were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// Successful requests.
    pub ok: u32,
    /// Failed requests.
    pub failed: u32,
    /// Acknowledged writes.
    pub written: u32,
    /// Writes without acknowledgement.
    pub unwritten: u32,
}

/// Failed requests by phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Ended before the fault.
    pub before_fault: u64,
    /// In flight at the fault, or sent between the fault and the traffic shift.
    pub during: u64,
    /// Sent after the traffic shift and before the fault was reverted, and refused or broken off.
    pub after_shift: u64,
    /// Sent then, but timed out: a slow service looks the same as a lost one, so they are counted apart.
    #[serde(default)]
    pub slow_after_shift: u64,
    /// Sent after the fault was reverted: recovery and failback.
    pub on_return: u64,
}

/// All results.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The count of requests sent.
    pub requests: u64,
    /// The counts of failed requests.
    pub failed: Failed,
    /// The failure reasons, the most frequent first.
    #[serde(default)]
    pub reasons: Vec<Reason>,
    /// The periods of failures.
    pub outages: Vec<Outage>,
    /// From the fault to the first request after which none failed while the fault lasted, in ms; `None` if the service
    /// did not recover.
    pub service_rto_ms: Option<f64>,
    /// From the fault to the first acknowledged write under a new configuration, in ms. Without a new configuration, to
    /// the first write after which none failed. `None` if writes did not recover.
    pub control_rto_ms: Option<f64>,
    /// When traffic shifted, in ms: the first successful request that was sent after the new configuration was granted.
    pub shifted_ms: Option<f64>,
    /// The count of writes sent.
    pub writes: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Rejected or unanswered writes; they may or may not be stored.
    pub unacknowledged: u64,
    /// Acknowledged writes that the new primary lacks.
    pub lost: u64,
    /// The keys of the lost writes.
    pub lost_keys: Vec<String>,
    /// Successful requests whose usage the new primary lacks.
    pub unaccounted: u64,
    /// The ids of those requests.
    pub unaccounted_ids: Vec<String>,
    /// The age of the oldest missing entry at the fault, in ms.
    pub rpo_ms: f64,
    /// The counts of each second.
    pub seconds: Vec<Second>,
}

impl Findings {
    /// The failure reasons as text; empty without failures.
    pub fn why(&self) -> String {
        let parts = self.reasons.iter().map(|reason| format!("{} × {}", reason.requests, reason.why));
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// What clients saw before the fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Baseline {
    /// Answered requests.
    pub(super) answered: u64,
    /// Acknowledged writes.
    pub(super) acknowledged: u64,
    /// Requests and writes that failed or timed out.
    pub(super) failed: u64,
    /// The first error.
    pub(super) why: Option<String>,
}

impl Baseline {
    /// The results of what was sent at `from` or later, in ms since the ledger began.
    pub(super) fn of(events: &[LedgerEvent], from: f64) -> Self {
        let (mut found, mut sent) = (Self::default(), BTreeSet::new());
        for event in events {
            let (is_write, t, n, is, why) = match event {
                LedgerEvent::Request { t, n, is, why } => (false, *t, *n, *is, why),
                LedgerEvent::Write { t, n, is, why, .. } => (true, *t, *n, *is, why),
                LedgerEvent::Mark { .. } => continue,
            };
            match is {
                RequestStatus::Sent if t >= from => _ = sent.insert((is_write, n)),
                _ if !sent.contains(&(is_write, n)) => {}
                RequestStatus::Ok if is_write => found.acknowledged += 1,
                RequestStatus::Ok => found.answered += 1,
                RequestStatus::Failed | RequestStatus::Timeout => {
                    found.failed += 1;
                    let timed_out = || (is == RequestStatus::Timeout).then(|| "timeout".to_owned());
                    found.why = found.why.take().or_else(|| why.clone()).or_else(timed_out);
                }
                RequestStatus::Sent => {}
            }
        }
        found
    }

    /// Whether it shows a service without failures.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.answered > 0 && self.acknowledged > 0
    }

    /// The results as text.
    pub(super) fn describe(&self) -> String {
        let failed = match (self.failed, &self.why) {
            (0, _) => "none failed".to_owned(),
            (failed, None) => format!("{failed} failed"),
            (failed, Some(why)) => format!("{failed} failed ({why})"),
        };
        let (requests, writes) = (counted(self.answered, "request"), counted(self.acknowledged, "write"));
        format!("{requests} answered, {writes} acknowledged, {failed}")
    }
}

#[derive(Debug, Clone, Copy)]
struct Span {
    n: u64,
    sent: f64,
    end: Option<(f64, RequestStatus)>,
    epoch: Option<u64>,
}

impl Span {
    fn ok(&self) -> Option<f64> {
        self.end.and_then(|(t, is)| (is == RequestStatus::Ok).then_some(t))
    }

    fn failed(&self) -> Option<f64> {
        self.end.and_then(|(t, is)| (is != RequestStatus::Ok).then_some(t))
    }

    fn timed_out(&self) -> bool {
        self.end.is_some_and(|(_, is)| is == RequestStatus::Timeout)
    }
}

/// Computes the results from a ledger. `epoch_before` is the epoch of the configuration before the fault.
pub fn findings(drill: &str, events: &[LedgerEvent], epoch_before: u64, truth: &PrimaryData) -> Findings {
    let (requests, writes) = spans(events);
    let mark = |wanted: Mark| {
        events.iter().find_map(|event| match event {
            LedgerEvent::Mark { t, name } if *name == wanted => Some(*t),
            _ => None,
        })
    };
    let (fault, granted) = (mark(Mark::Fault), mark(Mark::Granted));
    let read = mark(Mark::Read).or(mark(Mark::Revert)).unwrap_or(f64::MAX);
    let revert = mark(Mark::Revert).unwrap_or(f64::MAX);
    let mut found = Findings { requests: requests.len() as u64, writes: writes.len() as u64, ..Findings::default() };
    found.reasons = reasons(events);
    found.outages = outages(&requests);
    found.seconds = seconds(&requests, &writes);
    found.acknowledged = writes.iter().filter(|write| write.ok().is_some()).count() as u64;
    found.unacknowledged = writes.iter().filter(|write| write.failed().is_some()).count() as u64;
    found.shifted_ms =
        granted.and_then(|granted| earliest(requests.iter().filter(|r| r.sent >= granted && r.ok().is_some())));
    for request in &requests {
        let Some(end) = request.failed() else { continue };
        let failed = &mut found.failed;
        *match (fault, found.shifted_ms) {
            (None, _) => &mut failed.before_fault,
            (Some(fault), _) if end < fault => &mut failed.before_fault,
            _ if request.sent >= revert => &mut failed.on_return,
            (_, Some(shifted)) if request.sent >= shifted && request.timed_out() => &mut failed.slow_after_shift,
            (_, Some(shifted)) if request.sent >= shifted => &mut failed.after_shift,
            _ => &mut failed.during,
        } += 1;
    }
    let Some(fault) = fault else { return found };
    found.service_rto_ms = service_rto(&requests, fault, revert);
    found.control_rto_ms = writes
        .iter()
        .filter(|write| write.epoch.is_some_and(|epoch| epoch > epoch_before))
        .filter_map(Span::ok)
        .filter(|t| (fault..revert).contains(t))
        .min_by(f64::total_cmp)
        .map(|t| t - fault)
        // Without a takeover, control data has recovered when no write fails any more, as for the service.
        .or_else(|| service_rto(&writes, fault, revert));
    // The new primary cannot hold what was answered after it was read.
    let missing = |spans: &[Span], name: &dyn Fn(u64) -> String, there: &BTreeSet<String>| -> Vec<(String, f64)> {
        let answered = spans.iter().filter_map(|span| Some((name(span.n), span.ok().filter(|t| *t < read)?)));
        answered.filter(|(name, _)| !there.contains(name)).collect()
    };
    let lost = missing(&writes, &|n| key(drill, n), &truth.keys);
    let unaccounted = missing(&requests, &|n| request_id(drill, n), &truth.known);
    let oldest = lost.iter().chain(&unaccounted).map(|(_, t)| *t).min_by(f64::total_cmp);
    found.rpo_ms = oldest.map_or(0.0, |t| (fault - t).max(0.0));
    // Rounded to the ledger's microseconds, without the error of floating-point subtraction.
    for ms in
        [Some(&mut found.rpo_ms), found.service_rto_ms.as_mut(), found.control_rto_ms.as_mut()].into_iter().flatten()
    {
        *ms = (*ms * 1000.0).round() / 1000.0;
    }
    let names = |missing: Vec<(String, f64)>| missing.into_iter().map(|(name, _)| name).take(MOST_NAMED).collect();
    (found.lost, found.unaccounted) = (lost.len() as u64, unaccounted.len() as u64);
    (found.lost_keys, found.unaccounted_ids) = (names(lost), names(unaccounted));
    found
}

/// From the fault to the sending of the first request after which none failed, while the fault lasted. A successful
/// request after the last failure is required: without traffic there is no evidence of recovery, nor is there in what the
/// lost site may have answered itself, after the fault.
fn service_rto(requests: &[Span], fault: f64, revert: f64) -> Option<f64> {
    let touched = |r: &&Span| r.sent < revert && r.end.is_none_or(|(t, _)| t >= fault);
    let last_failed =
        requests.iter().filter(touched).filter(|r| r.ok().is_none()).map(|r| r.sent).max_by(f64::total_cmp);
    let after = requests.iter().filter(|r| r.sent >= fault && r.ok().is_some_and(|t| t < revert));
    match last_failed {
        None => after.map(|_| 0.0).next(),
        Some(last) => earliest(after.filter(|r| r.sent > last)).map(|t| (t - fault).max(0.0)),
    }
}

fn earliest<'s>(spans: impl Iterator<Item = &'s Span>) -> Option<f64> {
    spans.map(|span| span.sent).min_by(f64::total_cmp)
}

fn outages(requests: &[Span]) -> Vec<Outage> {
    let mut found: Vec<Outage> = Vec::new();
    let mut last_failed = f64::MIN;
    for request in requests.iter().filter(|r| r.failed().is_some()) {
        match found.last_mut() {
            Some(outage)
                if request.sent - last_failed <= ONE_OUTAGE_MS || outage.to_ms.is_none_or(|to| request.sent < to) =>
            {
                outage.failed += 1;
            }
            _ => found.push(Outage { from_ms: request.sent, to_ms: None, failed: 1, timed_out: 0 }),
        }
        last_failed = request.sent;
        if let Some(outage) = found.last_mut() {
            outage.timed_out += u64::from(request.timed_out());
            outage.to_ms = earliest(requests.iter().filter(|r| r.sent > last_failed && r.ok().is_some()));
        }
    }
    found
}

fn reasons(events: &[LedgerEvent]) -> Vec<Reason> {
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        let why = match event {
            LedgerEvent::Request { is: RequestStatus::Failed, why, .. } => why.as_deref().unwrap_or("failed"),
            LedgerEvent::Request { is: RequestStatus::Timeout, .. } => "timeout",
            _ => continue,
        };
        *counted.entry(why).or_default() += 1;
    }
    let mut all: Vec<Reason> =
        counted.into_iter().map(|(why, requests)| Reason { why: why.to_owned(), requests }).collect();
    all.sort_by_key(|reason| std::cmp::Reverse(reason.requests));
    let rare = all.split_off(all.len().min(MOST_REASONS));
    if !rare.is_empty() {
        all.push(Reason { why: "other reasons".to_owned(), requests: rare.iter().map(|reason| reason.requests).sum() });
    }
    all
}

fn seconds(requests: &[Span], writes: &[Span]) -> Vec<Second> {
    // Bounded like the ledger: every second has an event or lies between two.
    const MOST: usize = 7200;
    let mut all: Vec<Second> = Vec::new();
    let mut count = |span: &Span, add: &dyn Fn(&mut Second, bool)| {
        let at = (span.sent / 1000.0) as usize;
        if at < MOST && span.end.is_some() {
            all.resize(all.len().max(at + 1), Second::default());
            add(&mut all[at], span.ok().is_some());
        }
    };
    for request in requests {
        count(request, &|second, ok| *(if ok { &mut second.ok } else { &mut second.failed }) += 1);
    }
    for write in writes {
        count(write, &|second, ok| *(if ok { &mut second.written } else { &mut second.unwritten }) += 1);
    }
    all
}

/// Requests and writes with their start and end, in the order of sending.
fn spans(events: &[LedgerEvent]) -> (Vec<Span>, Vec<Span>) {
    let (mut requests, mut writes) = (BTreeMap::new(), BTreeMap::new());
    for event in events {
        let (spans, t, n, is, epoch) = match event {
            LedgerEvent::Request { t, n, is, .. } => (&mut requests, *t, *n, *is, None),
            LedgerEvent::Write { t, n, is, epoch, .. } => (&mut writes, *t, *n, *is, *epoch),
            LedgerEvent::Mark { .. } => continue,
        };
        let span = spans.entry(n).or_insert(Span { n, sent: t, end: None, epoch: None });
        if is != RequestStatus::Sent {
            span.end = Some((t, is));
            span.epoch = epoch;
        }
    }
    let sorted = |spans: BTreeMap<u64, Span>| {
        let mut spans: Vec<Span> = spans.into_values().collect();
        spans.sort_by(|a, b| a.sent.total_cmp(&b.sent));
        spans
    };
    (sorted(requests), sorted(writes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger from text: `r SENT END ok|failed|timeout [WHY]`, `w SENT END ok EPOCH`, `mark T NAME`; numbers are
    /// assigned in order.
    fn ledger(lines: &str) -> Vec<LedgerEvent> {
        let (mut events, mut requests, mut writes) = (Vec::new(), 0, 0);
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let time = |at: usize| words[at].parse::<f64>().unwrap();
            let word = |at: usize| serde_json::from_value::<RequestStatus>(words[at].into()).unwrap();
            match words[0] {
                "mark" => events
                    .push(LedgerEvent::Mark { t: time(1), name: serde_json::from_value(words[2].into()).unwrap() }),
                "r" => {
                    let n = requests;
                    requests += 1;
                    events.push(LedgerEvent::Request { t: time(1), n, is: RequestStatus::Sent, why: None });
                    if words.len() > 2 {
                        let why = words.get(4).map(|why| (*why).to_owned());
                        events.push(LedgerEvent::Request { t: time(2), n, is: word(3), why });
                    }
                }
                _ => {
                    let n = writes;
                    writes += 1;
                    let write = |t, is, epoch| LedgerEvent::Write { t, n, is, epoch, site: None, why: None };
                    events.push(write(time(1), RequestStatus::Sent, None));
                    events.push(write(time(2), word(3), words.get(4).map(|e| e.parse().unwrap())));
                }
            }
        }
        events
    }

    fn all(requests: u64, writes: u64) -> PrimaryData {
        PrimaryData {
            keys: (0..writes).map(|n| key("d", n)).collect(),
            known: (0..requests).map(|n| request_id("d", n)).collect(),
        }
    }

    const KILLED: &str = "
        r 0 10 ok
        w 5 20 ok 1
        r 950 1400 failed
        mark 1000 fault
        r 1100 1110 failed
        r 1200 1210 ok
        w 1250 1300 failed
        r 1900 4900 timeout
        mark 3000 detected
        mark 3100 granted
        r 3050 3060 failed
        r 3200 3210 ok
        w 3300 3350 ok 2
        r 3400 3410 ok
        mark 5000 read
        mark 5100 revert
        r 5200 5210 failed
        r 5300 5310 ok
    ";

    #[test]
    fn service_rto_ends_with_the_first_request_without_later_failures() {
        let found = findings("d", &ledger(KILLED), 1, &all(9, 3));
        assert_eq!(found.service_rto_ms, Some(2200.0), "the answered one at 1200 was followed by failures");
        assert_eq!(found.control_rto_ms, Some(2350.0));
        assert_eq!(found.shifted_ms, Some(3200.0));
        assert_eq!(found.failed, Failed { during: 4, on_return: 1, ..Failed::default() });
        assert_eq!((found.lost, found.unaccounted, found.rpo_ms), (0, 0, 0.0));
        let outages: Vec<_> = found.outages.iter().map(|o| (o.from_ms, o.to_ms, o.failed, o.timed_out)).collect();
        assert_eq!(outages, [(950.0, Some(3200.0), 4, 1), (5200.0, Some(5300.0), 1, 0)]);
        assert_eq!(found.seconds[1], Second { ok: 1, failed: 2, written: 0, unwritten: 1 });
    }

    #[test]
    fn acknowledged_write_missing_on_the_new_primary_counts_as_lost() {
        let truth = PrimaryData { keys: [key("d", 1), key("d", 2)].into(), ..all(9, 0) };
        let found = findings("d", &ledger(KILLED), 1, &truth);
        assert_eq!((found.lost, found.lost_keys.as_slice()), (1, ["drill/d/0".to_owned()].as_slice()));
        assert_eq!(found.rpo_ms, 980.0);
    }

    #[test]
    fn unacknowledged_write_may_be_missing() {
        let truth = PrimaryData { keys: [key("d", 0), key("d", 2)].into(), ..all(9, 0) };
        assert_eq!(findings("d", &ledger(KILLED), 1, &truth).lost, 0);
    }

    #[test]
    fn only_answered_requests_without_usage_are_unaccounted() {
        let truth = PrimaryData { known: (2..9).map(|n| request_id("d", n)).collect(), ..all(0, 3) };
        let found = findings("d", &ledger(KILLED), 1, &truth);
        assert_eq!(found.unaccounted_ids, ["drill-d-0"]);
        assert_eq!(found.rpo_ms, 990.0);
    }

    #[test]
    fn requests_answered_after_the_reading_are_not_missing() {
        let text = "mark 0 fault\nr 10 20 ok\nmark 100 read\nr 110 120 ok\nw 111 121 ok 2";
        let truth = PrimaryData { known: [request_id("d", 0)].into(), ..PrimaryData::default() };
        let found = findings("d", &ledger(text), 1, &truth);
        assert_eq!((found.lost, found.unaccounted), (0, 0));
    }

    #[test]
    fn rto_is_zero_without_failures_and_none_without_recovery() {
        let found = findings("d", &ledger("mark 0 fault\nr 10 20 ok"), 1, &all(1, 0));
        assert_eq!((found.service_rto_ms, found.control_rto_ms), (Some(0.0), None));
        let found = findings("d", &ledger("mark 0 fault\nr 10 20 ok\nr 30 40 failed"), 1, &all(2, 0));
        assert_eq!(found.service_rto_ms, None);
        let found = findings("d", &ledger("mark 0 fault\nr 10 20 failed\nr 30"), 1, &all(2, 0));
        assert_eq!(found.service_rto_ms, None, "a request without an end is no recovery");
        assert_eq!(findings("d", &ledger("mark 0 fault"), 1, &all(0, 0)).service_rto_ms, None, "nobody asked");
    }

    #[test]
    fn writes_under_the_old_configuration_do_not_end_the_control_rto() {
        let found = findings("d", &ledger("mark 0 fault\nw 10 20 ok 1\nw 30 45 ok 2"), 1, &all(0, 2));
        assert_eq!(found.control_rto_ms, Some(45.0));
    }

    #[test]
    fn answers_after_the_fault_are_no_recovery_from_it() {
        let text = "mark 0 fault\nr 10 20 failed\nr 30 55 ok\nw 10 20 failed\nw 30 55 ok 1\nw 35 56 ok 2\nmark 50 revert\nr 60 70 ok";
        let found = findings("d", &ledger(text), 1, &all(3, 3));
        assert_eq!((found.service_rto_ms, found.control_rto_ms), (None, None));
    }

    #[test]
    fn control_rto_without_a_new_configuration_ends_with_the_last_failure() {
        let found = findings("d", &ledger("mark 0 fault\nw 10 20 failed\nw 30 45 ok 1"), 1, &all(0, 2));
        assert_eq!(found.control_rto_ms, Some(30.0));
        let found = findings("d", &ledger("mark 0 fault\nw 10 20 ok 1\nw 30 45 failed"), 1, &all(0, 2));
        assert_eq!(found.control_rto_ms, None, "the old primary's last words are no recovery");
    }

    #[test]
    fn failure_reasons_are_counted_and_bounded() {
        let mut text =
            "r 1 2 timeout\nr 1 2 failed a\nr 1 2 failed a\nr 1 2 ok\nr 1 2 failed\nr 1\nw 1 2 failed".to_owned();
        let found = |text: &str| -> Vec<(String, u64)> {
            let found = findings("d", &ledger(text), 1, &all(0, 0));
            found.reasons.into_iter().map(|reason| (reason.why, reason.requests)).collect()
        };
        let of = |why: &str, requests| (why.to_owned(), requests);
        assert_eq!(found(&text), [of("a", 2), of("failed", 1), of("timeout", 1)]);
        (0..20).for_each(|n| text.push_str(&format!("\nr 1 2 failed b{n}")));
        let many = found(&text);
        assert_eq!((many.len(), many.last()), (MOST_REASONS + 1, Some(&of("other reasons", 15))));
    }

    #[test]
    fn failures_are_classified_by_drill_phase() {
        let found = findings(
            "d",
            &ledger("r 1 2 failed\nmark 10 fault\nr 11 12 ok\nmark 20 granted\nr 21 22 ok\nr 23 24 failed\nr 25 26 ok"),
            1,
            &all(5, 0),
        );
        assert_eq!(found.failed, Failed { before_fault: 1, after_shift: 1, ..Failed::default() });
    }

    #[test]
    fn slow_requests_after_the_shift_are_counted_apart_from_refused_ones() {
        let text = "mark 10 fault\nmark 20 granted\nr 21 22 ok\nr 23 3023 timeout\nr 25 26 failed\nr 27 28 ok\nmark 4000 revert";
        let found = findings("d", &ledger(text), 1, &all(4, 0));
        assert_eq!(found.failed, Failed { after_shift: 1, slow_after_shift: 1, ..Failed::default() });
    }

    #[test]
    fn baseline_counts_only_what_was_sent_in_its_own_time() {
        let events = ledger("r 1 3001 timeout\nw 2 3 failed\nr 100 3100 ok\nw 101 102 ok 1\nr 103");
        let first = Baseline::of(&events, 0.0);
        assert_eq!((first.answered, first.acknowledged, first.failed, first.is_good()), (1, 1, 2, false));
        assert_eq!(first.describe(), "1 request answered, 1 write acknowledged, 2 failed (timeout)");
        let second = Baseline::of(&events, 50.0);
        assert!(second.is_good(), "{second:?}");
        assert_eq!(second.describe(), "1 request answered, 1 write acknowledged, none failed");
        assert!(!Baseline::of(&events, 102.5).is_good(), "nothing was answered");
    }
}
