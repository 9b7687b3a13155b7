//! The audit log of operators' commands: small documents `audit/YYYY-MM` in the store of an environment's state.
//!
//! Each line is a record: JSON with the digest of the line before it, so that a changed, missing or inserted line is
//! found. Commands append without the lock of the state, by compare-and-swap. A document that is full or of an earlier
//! month ends with a record that names the next one, so that two commands never continue the log at two places.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_provider::EnvironmentName;
use uuid::Uuid;

use super::record::{cut, sha256};
use super::{StateError, Store};
use crate::clock::Clock;

/// The folder of the documents.
pub const AUDIT: &str = "audit";

/// The age in days from which whole months are removed.
pub const RETENTION_DAYS: i64 = 400;
/// The months that are kept at any age: a clock that is wrong removes no recent ones.
const KEPT_MONTHS: usize = 14;
/// The largest document in bytes. Each record writes its document again.
const DOCUMENT_BYTES: usize = 1 << 20;
/// The most bytes of a command's arguments in a record.
const ARGUMENTS_BYTES: usize = 2000;
/// The most records that are taken over from another log at once: less than a document.
const BATCH: usize = 50;
/// How often an append is tried again after another command was faster.
const ATTEMPTS: u32 = 40;
/// The longest pause after a lost race.
const LONGEST_PAUSE: Duration = Duration::from_millis(1000);
/// The digest before the first record.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A command that changes an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedCommand {
    /// Unique to this run of the command.
    pub id: Uuid,
    /// The environment.
    pub environment: EnvironmentName,
    /// The command: `up`, `state move`.
    pub command: String,
    /// Its flags and arguments, with `***` for every value that may be a secret.
    pub arguments: Vec<String>,
    /// The operator: the login that the kernel recorded, else the real user.
    pub actor: String,
    /// The user of the process, if it is another one, as with `sudo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The variable SUDO_USER, which the caller can set: a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_sudo_user: Option<String>,
    /// The machine.
    pub host: String,
    /// The process id.
    pub pid: u32,
    /// Name and version of the program.
    pub tool: String,
    /// The server of the locked release, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// The reason, from `--reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandOutcome {
    /// It did what it should.
    Succeeded,
    /// It failed or was refused.
    Failed,
    /// A signal stopped it.
    Interrupted,
}

impl CommandOutcome {
    /// As it is recorded.
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// The event of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditEvent {
    /// A command begins; durable before it changes anything.
    Begin(Box<AuditedCommand>),
    /// A command ended.
    End {
        /// The id of its `Begin`.
        id: Uuid,
        /// The outcome.
        outcome: CommandOutcome,
        /// The exit status.
        exit: i32,
        /// The error code of a failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// The last record of a document.
    Continued {
        /// The name of the next one.
        document: String,
    },
}

/// A line without its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// The digest of the line before it.
    previous: String,
    time: Timestamp,
    #[serde(flatten)]
    event: AuditEvent,
}

/// A command of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandRecord {
    /// When it began.
    pub time: Timestamp,
    /// The command.
    #[serde(flatten)]
    pub command: AuditedCommand,
    /// Its end. `None`: it runs, or the process ended before it could be recorded.
    pub end: Option<CommandEnd>,
}

/// The end of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandEnd {
    /// When it ended.
    pub time: Timestamp,
    /// The outcome.
    pub outcome: CommandOutcome,
    /// The exit status.
    pub exit: i32,
    /// The error code of a failure.
    pub code: Option<String>,
}

/// A place where the chain of records is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditDamage {
    /// The document.
    pub document: String,
    /// The number of the record in it, from 1.
    pub record: usize,
    /// What is wrong.
    pub because: String,
}

/// The audit log as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditLog {
    /// The commands, oldest first.
    pub commands: Vec<CommandRecord>,
    /// Where the chain is broken.
    pub damage: Vec<AuditDamage>,
}

impl AuditedCommand {
    /// The same command with short texts, so that a record has a bounded length.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let short = |text: Option<String>, most| text.map(|text| cut(&text, most));
        self.command = cut(&self.command, 100);
        for text in [&mut self.actor, &mut self.host, &mut self.tool] {
            *text = cut(text, 100);
        }
        self.user = short(self.user, 100);
        self.claimed_sudo_user = short(self.claimed_sudo_user, 100);
        self.release = short(self.release, 100);
        self.reason = short(self.reason, 300);
        let mut room = ARGUMENTS_BYTES;
        let mut kept = Vec::new();
        for argument in &self.arguments {
            let argument = cut(argument, 300);
            let Some(left) = room.checked_sub(argument.len()) else {
                kept.push("…".to_owned());
                break;
            };
            room = left;
            kept.push(argument);
        }
        self.arguments = kept;
        self
    }
}

/// Appends records. Durable on return.
pub async fn append(store: &dyn Store, clock: &dyn Clock, events: &[AuditEvent]) -> Result<(), StateError> {
    for attempt in 0..ATTEMPTS {
        let now = clock.now();
        let timed: Vec<_> = events.iter().map(|event| (now, event.clone())).collect();
        if try_append(store, now, &timed).await? {
            return Ok(());
        }
        clock.sleep(pause(attempt)).await;
    }
    Err(too_busy(store))
}

/// Appends what another log of the same deployment has and this one lacks, with its times: a restored log ends at its backup.
/// Returns the count of commands. Durable on return.
pub async fn take_over(store: &dyn Store, clock: &dyn Clock, from: &AuditLog) -> Result<usize, StateError> {
    let here = read(store).await?.commands;
    let known: BTreeMap<Uuid, bool> = here.iter().map(|one| (one.command.id, one.end.is_some())).collect();
    let (mut commands, mut events) = (0, Vec::new());
    for CommandRecord { time, command, end } in &from.commands {
        let has_end = known.get(&command.id).copied();
        if has_end.is_none() {
            commands += 1;
            events.push((*time, AuditEvent::Begin(Box::new(command.clone()))));
        }
        if let Some(CommandEnd { time, outcome, exit, code }) = end.as_ref().filter(|_| has_end != Some(true)) {
            let (id, code) = (command.id, code.clone());
            events.push((*time, AuditEvent::End { id, outcome: *outcome, exit: *exit, code }));
        }
    }
    events.sort_by_key(|(time, _)| *time);
    for month in events.chunk_by(|(a, _), (b, _)| a.strftime("%Y-%m").to_string() == b.strftime("%Y-%m").to_string()) {
        for batch in month.chunks(BATCH) {
            let mut attempt = 0;
            while !try_append(store, batch[0].0, batch).await? {
                attempt += 1;
                if attempt >= ATTEMPTS {
                    return Err(too_busy(store));
                }
                clock.sleep(pause(attempt)).await;
            }
        }
    }
    Ok(commands)
}

fn too_busy(store: &dyn Store) -> StateError {
    unreadable(store, AUDIT, "other commands write to it faster than this one")
}

/// A random pause, longer after each lost race: the others wait for other times.
fn pause(attempt: u32) -> Duration {
    let most = Duration::from_millis(10 << attempt.min(7)).min(LONGEST_PAUSE);
    let share = Uuid::new_v4().as_u128() % 1000;
    most.mul_f64(share as f64 / 1000.0)
}

/// One attempt. `false`: another command wrote meanwhile, or the log continues in another document from now on.
async fn try_append(store: &dyn Store, now: Timestamp, events: &[(Timestamp, AuditEvent)]) -> Result<bool, StateError> {
    let month = now.strftime("%Y-%m").to_string();
    let names = documents(store).await?;
    let Some(newest) = names.last() else { return create(store, &month, START, now, events, &names).await };
    let Some(bytes) = store.document(&path(newest)).await? else { return Ok(false) };
    let last = lines_of(&bytes).last().copied().unwrap_or_default();
    let digest = computed_digest(last);
    if let Some(Line { event: AuditEvent::Continued { document }, .. }) = parsed(last) {
        // Another command was stopped before it wrote the next document.
        if !is_document(&document) || document <= *newest {
            return Err(unreadable(store, newest, "its last record names no later document"));
        }
        return create(store, &document, &digest, now, events, &names).await;
    }
    // An answer that was lost: the records are there.
    let is_there = |(_, event): &(Timestamp, AuditEvent)| {
        lines_of(&bytes).iter().any(|line| parsed(line).is_some_and(|l| l.event == *event))
    };
    if events.iter().all(is_there) {
        return Ok(true);
    }
    let added = written(&digest, events);
    let mut whole = bytes.clone();
    if !whole.ends_with(b"\n") {
        whole.push(b'\n');
    }
    let is_past = month.as_str() > month_of(newest);
    if !is_past && whole.len() + added.len() <= DOCUMENT_BYTES {
        whole.extend_from_slice(&added);
        return store.swap(&path(newest), Some(&bytes), &whole).await;
    }
    let next = if is_past { month } else { next_part(newest) };
    let closing = written(&digest, &[(now, AuditEvent::Continued { document: next })]);
    whole.extend_from_slice(&closing);
    store.swap(&path(newest), Some(&bytes), &whole).await?;
    Ok(false)
}

/// Writes the first records of a document, and removes documents that are too old.
async fn create(
    store: &dyn Store,
    name: &str,
    previous: &str,
    now: Timestamp,
    events: &[(Timestamp, AuditEvent)],
    names: &[String],
) -> Result<bool, StateError> {
    let bytes = written(previous, events);
    let is_created = store.swap(&path(name), None, &bytes).await?;
    if is_created {
        for old in expired(names, now) {
            // The next month tries again.
            let _ = store.remove(&path(old)).await;
        }
    }
    Ok(is_created)
}

/// The documents before the retention, without the newest months.
fn expired(names: &[String], now: Timestamp) -> Vec<&str> {
    let Ok(horizon) = now.checked_sub(SignedDuration::from_hours(24 * RETENTION_DAYS)) else { return Vec::new() };
    let horizon = horizon.strftime("%Y-%m").to_string();
    let mut months: Vec<&str> = names.iter().map(|name| month_of(name)).collect();
    months.dedup();
    // The one that was just created is a month too.
    let kept = months.len().saturating_sub(KEPT_MONTHS - 1);
    let old: Vec<&str> = months[..kept].iter().filter(|month| **month < horizon.as_str()).copied().collect();
    names.iter().map(String::as_str).filter(|name| old.contains(&month_of(name))).collect()
}

/// Reads the log and checks its chain.
pub async fn read(store: &dyn Store) -> Result<AuditLog, StateError> {
    let mut log = AuditLog::default();
    let mut started: BTreeMap<Uuid, usize> = BTreeMap::new();
    let names = documents(store).await?;
    let mut months: Vec<&str> = names.iter().map(|name| month_of(name)).collect();
    months.dedup();
    // The digest of the last line, and the document that it names.
    let mut before: Option<(String, Option<String>)> = None;
    for name in &names {
        let bytes = store.document(&path(name)).await?.unwrap_or_default();
        let mut found = |record: usize, because: &str| {
            log.damage.push(AuditDamage { document: name.clone(), record, because: because.to_owned() });
        };
        let lines = lines_of(&bytes);
        if lines.is_empty() {
            found(1, "the document is empty");
        }
        for (at, line) in lines.into_iter().enumerate() {
            let number = at + 1;
            let digest = computed_digest(line);
            let Some(Line { previous, time, event }) = parsed(line) else {
                found(number, "it is not what this program writes");
                before = Some((digest, None));
                continue;
            };
            if stated_digest(line) != Some(digest.as_bytes()) {
                found(number, "its content was changed: it does not match its digest");
            }
            match &before {
                Some((last, _)) if *last != previous => {
                    found(number, "it does not follow the record before it: records were changed, removed or inserted");
                }
                // Months before it were removed for their age.
                None if previous != START && months.len() < KEPT_MONTHS => {
                    found(number, "the records before it are missing");
                }
                Some((_, next)) if at == 0 && next.as_deref() != Some(name.as_str()) => {
                    found(number, "the document before it does not end with its name");
                }
                Some((_, Some(_))) if at > 0 => found(number, "it follows the last record of its document"),
                _ => {}
            }
            let mut next = None;
            match event {
                AuditEvent::Begin(command) => {
                    started.insert(command.id, log.commands.len());
                    log.commands.push(CommandRecord { time, command: *command, end: None });
                }
                AuditEvent::End { id, outcome, exit, code } => match started.get(&id) {
                    Some(at) => log.commands[*at].end = Some(CommandEnd { time, outcome, exit, code }),
                    // Its start was in a month that was removed.
                    None if months.len() >= KEPT_MONTHS => {}
                    None => found(number, "it ends a command whose start is not recorded"),
                },
                AuditEvent::Continued { document } => next = Some(document),
            }
            before = Some((digest, next));
        }
    }
    if let Some((_, Some(document))) = before {
        log.damage.push(AuditDamage { document, record: 1, because: "the document is missing".to_owned() });
    }
    Ok(log)
}

/// The documents, in order.
pub(super) async fn documents(store: &dyn Store) -> Result<Vec<String>, StateError> {
    let mut names = store.documents(AUDIT).await?;
    names.retain(|name| is_document(name));
    names.sort();
    Ok(names)
}

/// The path of a document in the store.
pub(super) fn path(document: &str) -> String {
    format!("{AUDIT}/{document}")
}

/// `2026-11`, and `2026-11.001` where a month has more than one.
fn is_document(name: &str) -> bool {
    let is_number = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    let (month, part) = name.split_once('.').map_or((name, None), |(month, part)| (month, Some(part)));
    let is_month = month.split_once('-').is_some_and(|(year, month)| is_number(year, 4) && is_number(month, 2));
    is_month && part.is_none_or(|part| is_number(part, 3))
}

fn month_of(document: &str) -> &str {
    document.split('.').next().unwrap_or(document)
}

/// The document after a full one. After a thousand, the first of them is named, which is refused as not later.
fn next_part(document: &str) -> String {
    let part: u32 = document.split_once('.').and_then(|(_, part)| part.parse().ok()).unwrap_or_default();
    format!("{}.{:03}", month_of(document), (part + 1) % 1000)
}

/// The lines of records, each after the other.
fn written(previous: &str, events: &[(Timestamp, AuditEvent)]) -> Vec<u8> {
    let (mut bytes, mut digest) = (Vec::new(), previous.to_owned());
    for (time, event) in events {
        let line = Line { previous: digest, time: *time, event: event.clone() };
        let json = serde_json::to_string(&line).expect("records are plain data");
        // The digest is of the rest of the line.
        let rest = &json[1..];
        digest = sha256(rest.as_bytes());
        bytes.extend_from_slice(format!("{DIGEST}{digest}\",{rest}\n").as_bytes());
    }
    bytes
}

/// How each line begins.
const DIGEST: &str = "{\"digest\":\"";

/// The digest that a line states, and the text that it is of.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (digest, rest) = line.strip_prefix(DIGEST.as_bytes())?.split_at_checked(START.len())?;
    Some((digest, rest.strip_prefix(b"\",")?))
}

fn stated_digest(line: &[u8]) -> Option<&[u8]> {
    split(line).map(|(digest, _)| digest)
}

/// The digest of a line as it is, also if it is damaged: the log continues after it.
fn computed_digest(line: &[u8]) -> String {
    sha256(split(line).map_or(line, |(_, rest)| rest))
}

fn parsed(line: &[u8]) -> Option<Line> {
    split(line)?;
    serde_json::from_slice(line).ok()
}

fn lines_of(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect()
}

fn unreadable(store: &dyn Store, name: &str, because: &str) -> StateError {
    let folder = if name == AUDIT { String::new() } else { format!("/{AUDIT}") };
    StateError::Unreadable { what: format!("{}{folder}/{name}", store.place()), because: because.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use camino::Utf8PathBuf;

    use super::*;
    use crate::clock::VirtualClock;
    use crate::state::{Folder, MemoryStore};

    fn at(text: &str) -> VirtualClock {
        VirtualClock::at(text.parse().unwrap())
    }

    fn begin(number: u128) -> AuditEvent {
        AuditEvent::Begin(Box::new(AuditedCommand {
            id: Uuid::from_u128(number),
            environment: EnvironmentName::new("staging").unwrap(),
            command: "up".to_owned(),
            arguments: vec!["--yes".to_owned()],
            actor: "ada".to_owned(),
            user: None,
            claimed_sudo_user: None,
            host: "machine".to_owned(),
            pid: 7,
            tool: "test".to_owned(),
            release: None,
            reason: None,
        }))
    }

    fn end(number: u128) -> AuditEvent {
        let code = Some("port_in_use".to_owned());
        AuditEvent::End { id: Uuid::from_u128(number), outcome: CommandOutcome::Failed, exit: 1, code }
    }

    fn add(store: &dyn Store, clock: &VirtualClock, event: AuditEvent) {
        clock.run(append(store, clock, &[event])).expect("it ends").unwrap();
    }

    fn log(store: &dyn Store) -> AuditLog {
        at("2026-01-01T00:00:00Z").run(read(store)).expect("it ends").unwrap()
    }

    fn text(store: &MemoryStore, document: &str) -> String {
        String::from_utf8(store.raw_document(&path(document)).unwrap()).unwrap()
    }

    #[test]
    fn begins_and_ends_are_one_chain_with_the_end_that_is_missing() {
        let (store, clock) = (MemoryStore::default(), at("2026-11-20T08:00:00Z"));
        add(&store, &clock, begin(1));
        clock.pass(Duration::from_secs(3));
        add(&store, &clock, end(1));
        add(&store, &clock, begin(2));
        let AuditLog { commands, damage } = log(&store);
        assert!(damage.is_empty(), "{damage:?}");
        let first = commands[0].end.as_ref().unwrap();
        assert_eq!(
            (first.outcome, first.exit, first.code.as_deref()),
            (CommandOutcome::Failed, 1, Some("port_in_use"))
        );
        assert_eq!(first.time.duration_since(commands[0].time).as_secs(), 3);
        assert!(commands[1].end.is_none());
        let lines = text(&store, "2026-11");
        for line in lines.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value["digest"].is_string() && value["time"].is_string(), "{line}");
        }
        assert!(lines.lines().next().unwrap().contains(START));
    }

    #[test]
    fn changed_removed_and_inserted_records_are_found() {
        let (store, clock) = (MemoryStore::default(), at("2026-11-20T08:00:00Z"));
        for number in 1..=3 {
            add(&store, &clock, begin(number));
        }
        let whole = text(&store, "2026-11");
        let lines: Vec<&str> = whole.lines().collect();
        let damaged = |content: String| {
            let changed = MemoryStore::default();
            changed.set_raw_document(&path("2026-11"), Some(content.into_bytes()));
            let damage = log(&changed).damage;
            damage.first().map(|damage| damage.record)
        };
        let of = |lines: &[&str]| lines.join("\n") + "\n";
        assert_eq!(damaged(of(&lines)), None);
        assert_eq!(damaged(whole.replacen("ada", "eve", 1)), Some(1));
        assert_eq!(damaged(of(&[lines[0], lines[1].replace("ada", "eve").as_str(), lines[2]])), Some(2));
        assert_eq!(damaged(of(&[lines[0], lines[2]])), Some(2), "a record was removed");
        assert_eq!(damaged(of(&lines[1..])), Some(1), "the first record was removed");
        assert_eq!(damaged(of(&[lines[0], lines[1], lines[1], lines[2]])), Some(3), "a record was inserted");
        assert_eq!(damaged(of(&[lines[0], "nonsense", lines[2]])), Some(2));
        assert_eq!(damaged(whole[..whole.len() - 20].to_owned()), Some(3), "the last record was cut");
        assert_eq!(damaged(String::new()), Some(1), "everything was removed");

        // A damaged log does not stop commands, and the damage stays visible.
        store.set_raw_document(&path("2026-11"), Some(of(&[lines[0], "nonsense", lines[2]]).into_bytes()));
        add(&store, &clock, begin(4));
        let AuditLog { commands, damage } = log(&store);
        assert_eq!(commands.len(), 3);
        assert!(damage.iter().all(|damage| damage.record < 4), "{damage:?}");
    }

    #[test]
    fn months_and_full_documents_continue_the_chain() {
        let store = MemoryStore::default();
        add(&store, &at("2026-11-30T23:59:59Z"), begin(1));
        let clock = at("2026-12-01T00:00:01Z");
        add(&store, &clock, end(1));
        // Its clock is behind: it goes on where the others are.
        add(&store, &at("2026-11-30T23:59:59Z"), begin(2));
        assert!(text(&store, "2026-11").lines().last().unwrap().contains("\"document\":\"2026-12\""));
        assert_eq!(text(&store, "2026-12").lines().count(), 2);
        assert!(log(&store).damage.is_empty());
        assert_eq!(log(&store).commands.len(), 2);

        // A command was stopped before it wrote the next document.
        let december = store.raw_document(&path("2026-12"));
        store.set_raw_document(&path("2026-12"), None);
        let damage = log(&store).damage;
        assert!(damage[0].document == "2026-12" && damage[0].because.contains("missing"), "{damage:?}");
        store.set_raw_document(&path("2026-12"), december);
        store.set_raw_document(&path("2026-11"), None);
        assert_eq!(log(&store).damage[0].record, 1, "the records before it are missing");

        let full = MemoryStore::default();
        let reason = Some("x".repeat(DOCUMENT_BYTES / 3));
        for number in 1..=4 {
            let AuditEvent::Begin(command) = begin(number) else { unreachable!() };
            add(&full, &clock, AuditEvent::Begin(Box::new(AuditedCommand { reason: reason.clone(), ..*command })));
        }
        let names = clock.run(documents(&full)).unwrap().unwrap();
        assert_eq!(names, ["2026-12", "2026-12.001"]);
        assert_eq!((log(&full).damage, log(&full).commands.len()), (Vec::new(), 4));
    }

    #[test]
    fn restored_log_takes_over_what_was_recorded_after_its_backup() {
        let (store, clock) = (MemoryStore::default(), at("2026-11-30T23:00:00Z"));
        add(&store, &clock, begin(1));
        add(&store, &clock, end(1));
        // The backup command is in progress.
        add(&store, &clock, begin(2));
        let restored = MemoryStore::default();
        restored.set_raw_document(&path("2026-11"), store.raw_document(&path("2026-11")));
        clock.pass(Duration::from_secs(60));
        add(&store, &clock, end(2));
        for number in 3..3 + 2 * BATCH as u128 {
            clock.pass(Duration::from_secs(60));
            add(&store, &clock, begin(number));
        }
        let whole = log(&store);
        let taken = |store: &MemoryStore| clock.run(take_over(store, &clock, &whole)).expect("it ends").unwrap();
        assert_eq!(taken(&restored), 2 * BATCH);
        assert_eq!(log(&restored), whole, "with its times, and in one chain");
        assert!(text(&restored, "2026-12").contains("\"time\":\"2026-12-01T"));
        let before = text(&restored, "2026-12");
        assert_eq!(taken(&restored), 0);
        assert_eq!(text(&restored, "2026-12"), before, "nothing twice");
        add(&restored, &clock, begin(999));
        assert!(log(&restored).damage.is_empty());
    }

    #[test]
    fn old_months_are_removed_and_recent_ones_never() {
        let store = MemoryStore::default();
        let month = |number: u128| {
            let (year, month) = (2024 + number / 12, number % 12 + 1);
            at(&format!("{year}-{month:02}-10T00:00:00Z"))
        };
        for number in 0..20 {
            add(&store, &month(number), begin(number));
        }
        let names = month(0).run(documents(&store)).unwrap().unwrap();
        assert_eq!(names.first().map(String::as_str), Some("2024-07"), "{names:?}");
        assert_eq!(names.len(), KEPT_MONTHS);
        assert!(log(&store).damage.is_empty());
        // A clock that is a century ahead.
        add(&store, &at("2126-01-01T00:00:00Z"), begin(100));
        assert!(month(0).run(documents(&store)).unwrap().unwrap().len() >= KEPT_MONTHS);
    }

    #[test]
    fn records_of_two_writers_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let place = Utf8PathBuf::from_path_buf(folder.path().join("state")).unwrap();
        let memory = MemoryStore::default();
        type Open = Arc<dyn Fn() -> Arc<dyn Store> + Send + Sync>;
        let stores: [Open; 2] =
            [Arc::new(move || Arc::new(memory.clone())), Arc::new(move || Arc::new(Folder::at(place.clone())))];
        for open in stores {
            let writers: Vec<_> = (0..4u128)
                .map(|writer| {
                    let open = open.clone();
                    std::thread::spawn(move || {
                        let store = open();
                        for number in 0..10 {
                            add(&*store, &at("2026-11-20T08:00:00Z"), begin(100 * writer + number));
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            let AuditLog { commands, damage } = log(&*open());
            assert_eq!((damage, commands.len()), (Vec::new(), 40));
        }
    }

    #[test]
    fn records_have_a_bounded_length() {
        let AuditEvent::Begin(command) = begin(1) else { unreachable!() };
        let long = "\u{1}\"x".repeat(4000);
        let command = AuditedCommand {
            command: long.clone(),
            arguments: vec![long.clone(); 100],
            actor: long.clone(),
            user: Some(long.clone()),
            claimed_sudo_user: Some(long.clone()),
            host: long.clone(),
            release: Some(long.clone()),
            reason: Some(long),
            ..*command
        };
        let line = written(START, &[(Timestamp::UNIX_EPOCH, AuditEvent::Begin(Box::new(command.bounded())))]);
        assert!(line.len() < 6000, "{}", line.len());
    }
}
