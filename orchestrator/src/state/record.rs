//! One record of a journal, chained by hashes: the start or the result of an operation, and its author.
//!
//! A line is `SUM JSON\n`. SUM is the SHA-256 of the previous line's sum and this JSON. A changed, missing or moved
//! line is therefore detected at its position. Bodies are stored beside the log and referred to by their own SHA-256.

use std::fmt;
use std::io::BufRead;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use textnlp_provider::{KindName, Lineage, OperationId, ResourceId, SiteName, Token, Verb};

use super::lineage::SiteLocation;
use crate::environment::model::Phase;
use crate::gate::{EntryBasis, Exemption};
use crate::plan::Purpose;

/// The version of the journal's format. A journal with a higher version is rejected.
pub const FORMAT: u32 = 1;

/// The most bytes of a line; longer content belongs into a body.
pub const LINE_LIMIT: usize = 2048;

/// The length of a sum as text.
const SUM: usize = 64;

/// The sum before the first line.
pub(super) const ROOT: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One record of a site's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, counted from 1 without gaps.
    pub n: u64,
    /// When it was written, by the wall clock of that machine.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name and version of the program.
    pub tool: String,
    /// The fencing number of the lock under which it was written; it never decreases.
    pub fence: u64,
    /// The event.
    #[serde(flatten)]
    pub entry: Entry,
}

/// A reference to a body beside the log: its SHA-256, and its position in the local file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BodyRef {
    /// The SHA-256, in hexadecimal.
    pub sha256: String,
    /// Its offset in the file of bodies.
    pub at: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// The start of this site's journal.
    Opened {
        /// The version of the format.
        format: u32,
        /// The lineage of the deployment.
        lineage: Lineage,
        /// The site.
        site: SiteName,
        /// The binding of the site.
        place: SiteLocation,
    },
    /// A plan was approved; its text is the body.
    Approved {
        /// Its purpose.
        purpose: Purpose,
        /// The plan.
        plan: BodyRef,
        /// Whether [`Entry::Completed`] follows once the run has done everything. Earlier versions wrote no such record.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        tracked: bool,
    },
    /// A run did everything that its plan wanted.
    Completed {
        /// Its purpose.
        purpose: Purpose,
    },
    /// The gate was measured. The evidence is a signed file.
    Measured {
        /// The phase of the gate.
        phase: Phase,
        /// The verdict: `open`, `wait` or `shut`.
        gate: String,
        /// The SHA-256 of the file.
        evidence: String,
    },
    /// An operator decided against the table of phases.
    Exempted {
        /// The phase of the environment.
        phase: Phase,
        /// The decision.
        #[serde(flatten)]
        exemption: Exemption,
    },
    /// A release entered its phase.
    Entered {
        /// The phase of the environment.
        phase: Phase,
        /// The digest of what the release runs.
        release: String,
        /// Why it may.
        basis: EntryBasis,
    },
    /// An operation is about to make its first call.
    Begun {
        /// Its number.
        op: OperationId,
        /// The verb.
        verb: Verb,
        /// The resource.
        resource: ResourceId,
        /// Its kind.
        kind: KindName,
        /// Which object of the resource.
        target: Target,
        /// The whole operation, with everything that finishing it needs.
        intent: BodyRef,
        /// The token of the create whose object it is about: its own, or that of an object without a record. Earlier
        /// versions wrote none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created_by: Option<Token>,
    },
    /// The progress of a longer operation; the handle is sensitive.
    Pending {
        /// Its number.
        op: OperationId,
        /// The provider's handle.
        handle: BodyRef,
        /// What it waits for.
        says: String,
        /// The alternative, or its market, that was found to lack capacity. Earlier versions wrote no such member.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lacked: Option<String>,
    },
    /// An operation ended.
    Ended {
        /// Its number.
        op: OperationId,
        /// Its result.
        #[serde(flatten)]
        end: End,
    },
    /// The alternative of a resource was chosen by what was observed.
    Chose {
        /// The resource.
        resource: ResourceId,
        /// The branch: `nothing`, `update` or `replace`.
        branch: String,
        /// The fields that decided.
        because: String,
    },
    /// A managed object without a record was recorded, or a record changed without a call.
    Noted {
        /// The resource.
        resource: ResourceId,
        /// The change: `adopt` or `remember`.
        what: String,
        /// The new record.
        recorded: BodyRef,
        /// The token of the create that made the object, if it had no record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        created_by: Option<Token>,
    },
    /// A replaced object that still exists is in use again; the previous one in use becomes a replaced one.
    Returned {
        /// The resource.
        resource: ResourceId,
        /// The SHA-256 of its record as a replaced object.
        old: String,
        /// The new record.
        recorded: BodyRef,
    },
    /// The object is gone; its record is removed.
    Forgot {
        /// The resource.
        resource: ResourceId,
        /// The reason.
        because: String,
    },
    /// A power failure left a partial record, which was truncated: no call depended on it.
    Mended {
        /// The offset of the partial line.
        offset: u64,
        /// The count of truncated bytes.
        bytes: u64,
    },
}

impl Entry {
    /// Whether the resources are possibly other ones afterwards, so that earlier measurements say nothing about them.
    pub(super) fn may_change_resources(&self) -> bool {
        matches!(
            self,
            Entry::Opened { .. }
                | Entry::Approved { .. }
                | Entry::Begun { .. }
                | Entry::Returned { .. }
                | Entry::Forgot { .. }
        )
    }
}

/// Which object of a resource an operation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The object in use.
    Current,
    /// A new object beside the one in use, which becomes a replaced one.
    Beside,
    /// A replaced object: the SHA-256 of its record.
    Old(String),
    /// An object without a record.
    Stray,
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum End {
    /// The object matches what is wanted.
    Made {
        /// Its record.
        recorded: BodyRef,
    },
    /// The object is gone.
    Gone,
    /// It failed.
    Failed {
        /// The record of an object that exists nevertheless.
        left: Option<BodyRef>,
        /// The reason.
        because: String,
        /// Whether the provider refused every call of it, so that a create certainly made nothing. Earlier versions wrote
        /// no such member.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
    },
}

/// The head of a journal: number and sum of its last record, and its length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of the last record; zero if there is none.
    pub n: u64,
    /// Its sum.
    pub sum: String,
    /// The length of the log including that record, in bytes.
    pub len: u64,
}

impl Default for Head {
    fn default() -> Self {
        Self { n: 0, sum: ROOT.to_owned(), len: 0 }
    }
}

/// A record is longer than [`LINE_LIMIT`].
#[derive(Debug, thiserror::Error)]
#[error("record {n} has {bytes} bytes; {LINE_LIMIT} are allowed")]
pub struct TooLong {
    /// Its number.
    pub n: u64,
    /// Its length in bytes.
    pub bytes: usize,
}

impl Head {
    /// Appends the next line and advances the head.
    pub(super) fn push(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let json = serde_json::to_string(record).expect("records are plain data");
        let sum = chain(self.sum.as_bytes(), json.as_bytes());
        let bytes = sum.len() + json.len() + 2;
        if bytes > LINE_LIMIT {
            return Err(TooLong { n: record.n, bytes });
        }
        out.extend_from_slice(&sum);
        out.push(b' ');
        out.extend_from_slice(json.as_bytes());
        out.push(b'\n');
        let sum = String::from_utf8_lossy(&sum).into_owned();
        *self = Self { n: record.n, sum, len: self.len + bytes as u64 };
        Ok(())
    }
}

/// A record with its sum and the offset of its line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) record: Record,
    pub(super) sum: String,
    pub(super) offset: u64,
}

/// A journal as it was read.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The concatenated sums of the first records, which were checked but not parsed.
    early: String,
    /// The records after those.
    pub(super) records: Vec<Line>,
    pub(super) head: Head,
    pub(super) torn: Option<Torn>,
}

impl Log {
    /// The sum of the record of this number, if it exists.
    pub(super) fn sum(&self, n: u64) -> Option<&str> {
        let at = usize::try_from(n.checked_sub(1)?).ok()?;
        match at.checked_sub(self.early.len() / SUM) {
            None => self.early.get(at * SUM..(at + 1) * SUM),
            Some(at) => self.records.get(at).map(|line| line.sum.as_str()),
        }
    }
}

/// A partial last line after a power failure. Nothing depends on it: its write never returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Its offset.
    pub at: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Damage that no power failure explains; always reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The offset of the damaged line.
    pub offset: u64,
    /// The number of the record expected there.
    pub n: u64,
    /// The problem.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}: {}", self.n, self.offset, self.what)
    }
}

/// Reads a whole journal.
pub(super) fn read(bytes: &[u8]) -> Result<Log, Damage> {
    read_after(bytes, 0)
}

/// Reads a whole journal and checks every line; the first `early` records are not parsed.
pub(super) fn read_after(bytes: &[u8], early: u64) -> Result<Log, Damage> {
    let (lines, rest) = lines_of(bytes);
    let (first, then) = lines.split_at(lines.len().min(usize::try_from(early).unwrap_or(usize::MAX)));
    let mut log = Log::default();
    log.read_early(first)?;
    let mut fence = 0;
    for line in then {
        let (sum, json, offset) = log.follow(line)?;
        let n = log.head.n;
        let damage = |what: String| Damage { offset, n, what };
        let record = record_of(n, json).map_err(damage)?;
        if record.fence < fence {
            let what = format!("it was written under lock {} after lock {fence} was granted", record.fence);
            return Err(damage(what));
        }
        fence = record.fence;
        log.records.push(Line { record, sum: sum.to_owned(), offset });
    }
    if !rest.is_empty() {
        let (offset, n) = (log.head.len, log.head.n + 1);
        // A complete line whose last byte is not a newline is not partial: that byte was changed.
        if checked_line(&log.head.sum, log.head.n, &rest[..rest.len() - 1]).is_ok() {
            return Err(Damage { offset, n, what: "its last byte was changed".to_owned() });
        }
        log.torn = Some(Torn { at: offset, bytes: rest.len() as u64 });
    }
    Ok(log)
}

impl Log {
    /// Advances to the next line, if it follows.
    fn follow<'l>(&mut self, line: &'l [u8]) -> Result<(&'l str, &'l str, u64), Damage> {
        let (offset, n) = (self.head.len, self.head.n + 1);
        let damage = |what: String| Damage { offset, n, what };
        let (sum, json) = checked_line(&self.head.sum, self.head.n, line).map_err(damage)?;
        sum.clone_into(&mut self.head.sum);
        (self.head.n, self.head.len) = (n, offset + line.len() as u64 + 1);
        Ok((sum, json, offset))
    }

    /// Each line has the sum that the next one starts from, so two threads check half of a long journal each.
    fn read_early(&mut self, lines: &[&[u8]]) -> Result<(), Damage> {
        let (left, right) = lines.split_at(lines.len() / 2);
        let between = left.last().and_then(|last| last.get(..SUM)).unwrap_or(ROOT.as_bytes());
        let check_left = || are_whole(ROOT.as_bytes(), left);
        let whole = if lines.len() < WORTH_A_THREAD {
            check_left() && are_whole(between, right)
        } else {
            std::thread::scope(|scope| {
                let other = scope.spawn(check_left);
                are_whole(between, right) && other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        };
        self.early.reserve(lines.len() * SUM);
        for line in lines {
            if !whole {
                // Checked one by one, to find the damaged line.
                self.follow(line)?;
            }
            self.early.push_str(line.get(..SUM).and_then(|sum| std::str::from_utf8(sum).ok()).unwrap_or(ROOT));
            if whole {
                self.head.n += 1;
                self.head.len += line.len() as u64 + 1;
            }
        }
        if whole && let Some(last) = self.early.len().checked_sub(SUM) {
            self.early[last..].clone_into(&mut self.head.sum);
        }
        Ok(())
    }
}

/// Fewer lines are checked faster than a thread is started.
const WORTH_A_THREAD: usize = 1000;

/// Whether each of these lines follows the one before it.
fn are_whole(before: &[u8], lines: &[&[u8]]) -> bool {
    let mut before = before;
    lines.iter().all(|line| {
        let Some((sum, json)) =
            line.split_at_checked(SUM).and_then(|(sum, rest)| Some((sum, rest.strip_prefix(b" ")?)))
        else {
            return false;
        };
        let follows = chain(before, json) == *sum && std::str::from_utf8(json).is_ok();
        before = sum;
        follows
    })
}

/// The complete lines, and the rest after them.
fn lines_of(bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut lines, mut rest) = (Vec::new(), bytes);
    loop {
        // Reading from memory cannot fail, and this search is vectorized, unlike an iterator over bytes.
        let len = { rest }.skip_until(b'\n').unwrap_or_default();
        let Some(line) = rest[..len].strip_suffix(b"\n") else { return (lines, rest) };
        lines.push(line);
        rest = &rest[len..];
    }
}

/// The sum and the JSON of a line that must follow the record of this number and sum.
fn checked_line<'l>(before: &str, number: u64, line: &'l [u8]) -> Result<(&'l str, &'l str), String> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    let (sum, json) = line.split_once(' ').ok_or_else(|| "it has no checksum".to_owned())?;
    if chain(before.as_bytes(), json.as_bytes()) == *sum.as_bytes() {
        return Ok((sum, json));
    }
    // The number distinguishes a changed record from a missing or moved one.
    let found = serde_json::from_str::<serde_json::Value>(json).ok().and_then(|json| json["n"].as_u64());
    Err(match found {
        Some(n) if n > number + 1 => format!("record {n} is in its place: records are missing or out of order"),
        Some(n) if n < number + 1 => format!("record {n} is in its place: records were moved or written twice"),
        _ => "it was changed: its checksum does not match".to_owned(),
    })
}

fn record_of(n: u64, json: &str) -> Result<Record, String> {
    let record: Record = serde_json::from_str(json).map_err(|error| format!("it cannot be read: {error}"))?;
    if record.n != n {
        return Err(format!("it has the number {}", record.n));
    }
    Ok(record)
}

/// The sum of a line, as text.
fn chain(before: &[u8], json: &[u8]) -> [u8; SUM] {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(json);
    let mut text = [0; SUM];
    hex::encode_to_slice(hash.finalize(), &mut text).expect("it is twice as long");
    text
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Cuts a text to at most `most` bytes of JSON and removes control characters, so that a record stays short and on one
/// line.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let mut short = String::new();
    let mut bytes = 0;
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        bytes += c.len_utf8() + usize::from(matches!(c, '"' | '\\'));
        if bytes > most {
            short.push('…');
            break;
        }
        short.push(c);
    }
    short
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::Runtime;

    use super::*;

    fn body() -> BodyRef {
        BodyRef { sha256: "ab".repeat(32), at: u64::MAX, len: u32::MAX }
    }

    /// Every kind of entry, with texts and names of the maximum length.
    fn entries() -> Vec<Entry> {
        let label = "n".repeat(40);
        let site = SiteName::new(&label).unwrap();
        let resource = ResourceId::new(format!("{label}/{label}/{label}")).unwrap();
        let kind = KindName::new(format!("{}.{label}", "p".repeat(20))).unwrap();
        let (op, text) = (OperationId(u64::MAX), cut(&"\"\u{1}".repeat(1000), 400));
        let long = "a".repeat(64);
        let runtime = Runtime::Kubernetes;
        let place = SiteLocation { provider: long.clone(), account: long.clone(), region: long.clone(), runtime };
        let lineage = Lineage(uuid::Uuid::max());
        vec![
            Entry::Opened { format: FORMAT, lineage, site, place },
            Entry::Approved { purpose: Purpose::Down, plan: body(), tracked: true },
            Entry::Completed { purpose: Purpose::Down },
            Entry::Measured { phase: Phase::MultiRegion, gate: "shut".to_owned(), evidence: "ab".repeat(32) },
            Entry::Exempted {
                phase: Phase::Pilot,
                exemption: Exemption::Waiver { check: text.clone(), until: jiff::civil::date(2026, 12, 1) },
            },
            Entry::Entered {
                phase: Phase::Pilot,
                release: format!("sha256:{long}"),
                basis: EntryBasis::Promoted { from: label.parse().unwrap(), measured: Timestamp::MAX },
            },
            Entry::Entered {
                phase: Phase::Pilot,
                release: format!("sha256:{long}"),
                basis: EntryBasis::Bundle { version: text.clone(), key: long.clone() },
            },
            Entry::Entered { phase: Phase::Pilot, release: format!("sha256:{long}"), basis: EntryBasis::Earlier },
            Entry::Begun {
                op,
                verb: Verb::Delete,
                resource: resource.clone(),
                kind,
                target: Target::Old("ab".repeat(32)),
                intent: body(),
                created_by: Token::parse(&"ab".repeat(16)),
            },
            Entry::Pending { op, handle: body(), says: text.clone(), lacked: None },
            Entry::Pending { op, handle: body(), says: text.clone(), lacked: Some(cut(&"\"".repeat(1000), 300)) },
            Entry::Ended { op, end: End::Made { recorded: body() } },
            Entry::Ended { op, end: End::Gone },
            Entry::Ended { op, end: End::Failed { left: Some(body()), because: text.clone(), refused: false } },
            Entry::Ended { op, end: End::Failed { left: None, because: text.clone(), refused: true } },
            Entry::Chose { resource: resource.clone(), branch: "replace".to_owned(), because: text.clone() },
            Entry::Noted {
                resource: resource.clone(),
                what: "remember".to_owned(),
                recorded: body(),
                created_by: None,
            },
            Entry::Returned { resource: resource.clone(), old: "ab".repeat(32), recorded: body() },
            Entry::Forgot { resource, because: text },
            Entry::Mended { offset: u64::MAX, bytes: u64::MAX },
        ]
    }

    #[test]
    fn every_journal_record_fits_a_line_and_round_trips() {
        // Regression test: a record with two members of the same name could be written but not read.
        let (mut head, mut bytes, mut written) = (Head::default(), Vec::new(), Vec::new());
        for entry in entries() {
            let record = Record {
                n: head.n + 1,
                at: Timestamp::MAX,
                by: cut(&"\u{1f980}".repeat(500), 100),
                reason: Some(cut(&"\u{1f980}".repeat(500), 300)),
                tool: cut(&"t".repeat(500), 100),
                fence: u64::MAX,
                entry,
            };
            head.push(&record, &mut bytes).unwrap();
            written.push(record);
        }
        let log = read(&bytes).unwrap();
        assert_eq!(log.records.into_iter().map(|line| line.record).collect::<Vec<_>>(), written);
        assert_eq!(log.head, head);
    }

    #[test]
    fn oversized_journal_record_is_refused() {
        let entry = Entry::Forgot { resource: ResourceId::new("here/x").unwrap(), because: "x".repeat(LINE_LIMIT) };
        let (by, tool) = ("ada".to_owned(), "test".to_owned());
        let record = Record { n: 1, at: Timestamp::MAX, by, reason: None, tool, fence: 1, entry };
        let mut out = Vec::new();
        assert!(Head::default().push(&record, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn record_of_a_holder_that_lost_the_lock_is_detected() {
        let (mut head, mut bytes) = (Head::default(), Vec::new());
        for (n, fence) in [(1, 1), (2, 3), (3, 2)] {
            let entry = Entry::Mended { offset: 0, bytes: 1 };
            let (by, tool) = ("ada".to_owned(), "test".to_owned());
            head.push(&Record { n, at: Timestamp::MAX, by, reason: None, tool, fence, entry }, &mut bytes).unwrap();
        }
        let damage = read(&bytes).unwrap_err();
        assert_eq!(damage.n, 3);
        assert!(damage.what.contains("under lock 2 after lock 3"), "{damage}");
    }
}
