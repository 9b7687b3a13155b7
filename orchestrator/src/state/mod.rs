//! What we wrote down: an append-only, hash-chained journal per site, its lock, and the lineage it belongs to.
//!
//! [`State::load`] reads without a lock. [`State::lock`] takes the lock, mends what a power cut tore, and gives a
//! [`Locked`], the only thing that writes. Begin is durable before a call is made, end before anything depends on it;
//! [`Locked::commit`] returns when both file and folder are. `head.json` beside a log remembers how far it went, so that a log that
//! lost its end is noticed; `snapshot.json` what it added up to, so that a long one is not taken apart again.

mod check;
mod error;
mod fold;
mod folder;
mod hold;
mod lineage;
mod memory;
mod objects;
mod past;
mod record;
mod snapshot;
mod store;
mod took;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use textnlp_provider::{CloudId, EnvironmentName, Handle, Lineage, OperationId, Recorded, ResourceId, SiteName};

use crate::clock::Clock;

pub use check::{Finding, Remedy, check, mend};
pub use error::{Io, StateError};
pub use fold::{Holding, Intent, Old, Open};
pub use folder::Folder;
pub use hold::Hold;
pub use lineage::{LineageFile, Place};
pub use memory::MemoryStore;
pub use objects::{Objects, Timing};
pub use past::{Changed, Difference, Moment, differences};
pub use record::{BodyRef, Damage, End, Entry, FORMAT, Head, LINE_LIMIT, Record, Target, Torn};
pub use store::{Batch, Holder, Lease, Lock, Store};
pub use took::Took;
pub use transfer::{moved_away, transfer};

use fold::{Fold, Unfit};
pub(crate) use record::cut;
use snapshot::Snapshot;

const LINEAGE: &str = "lineage.json";

/// Who writes, and why. It stands in every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The person or the account.
    pub by: String,
    /// Why, as `--reason` says.
    pub reason: Option<String>,
    /// Name and version of the tool.
    pub tool: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
}

/// A state as it was read.
pub struct State {
    store: Arc<dyn Store>,
    environment: EnvironmentName,
    lineage: Lineage,
    is_new: bool,
    places: BTreeMap<SiteName, Place>,
    journals: BTreeMap<SiteName, Journal>,
}

/// One site's journal, added up.
#[derive(Debug, Clone, Default)]
struct Journal {
    head: Head,
    bodies_len: u64,
    fold: Fold,
    /// The bodies at hand, by their SHA-256; those that no record names any more are let go from time to time.
    bodies: HashMap<String, (BodyRef, Vec<u8>)>,
    torn: Option<Torn>,
    /// The record up to which there is a snapshot.
    snapshot: u64,
}

impl State {
    /// Reads a state; takes no lock. `fresh` becomes the lineage when there is none yet.
    pub async fn load(
        store: Arc<dyn Store>,
        environment: &EnvironmentName,
        fresh: Lineage,
    ) -> Result<Self, StateError> {
        // Somebody else may be at work meanwhile: what is written last is read first, so that it never tells of more than is read then.
        let sites = store.sites().await?;
        let file = match store.document(LINEAGE).await? {
            Some(bytes) => Some(read_lineage(&store.place(), &bytes)?),
            None => None,
        };
        let (lineage, is_new, places) = match file {
            Some(file) if file.environment != *environment => {
                let (place, wanted) = (store.place(), environment.clone());
                return Err(StateError::OtherEnvironment { place, recorded: file.environment, wanted });
            }
            Some(LineageFile { moved: Some(to), .. }) => return Err(StateError::Moved { place: store.place(), to }),
            Some(file) => (file.lineage, false, file.sites),
            None if !sites.is_empty() => {
                let what = format!("{}/{LINEAGE}", store.place());
                return Err(StateError::Unreadable {
                    what,
                    because: "it is missing, and there are journals beside it".to_owned(),
                });
            }
            None => (fresh, true, BTreeMap::new()),
        };
        let mut journals = BTreeMap::new();
        for site in sites {
            let journal = read_journal(store.as_ref(), &site).await?;
            if let Some((recorded, _)) = journal.fold.opened
                && recorded != lineage
            {
                return Err(StateError::OtherLineage { place: store.place(), site, recorded, expected: lineage });
            }
            journals.insert(site, journal);
        }
        Ok(Self { store, environment: environment.clone(), lineage, is_new, places, journals })
    }

    /// Which deployment this is.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Whether nothing was ever written: the lineage is only proposed so far.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Which environment it belongs to.
    pub fn environment(&self) -> &EnvironmentName {
        &self.environment
    }

    /// Where it is kept, for messages.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// What each known site is bound to.
    pub fn places(&self) -> &BTreeMap<SiteName, Place> {
        &self.places
    }

    /// Refuses sites that are bound to another place than they are pointed at now.
    pub fn check_places(&self, wanted: &BTreeMap<SiteName, Place>) -> Result<(), StateError> {
        for (site, wanted) in wanted {
            if let Some(recorded) = self.places.get(site)
                && recorded != wanted
                && !self.is_empty(site)
            {
                let (site, recorded, wanted) = (site.clone(), Box::new(recorded.clone()), Box::new(wanted.clone()));
                return Err(StateError::OtherPlace { site, recorded, wanted });
            }
        }
        Ok(())
    }

    /// Whether nothing is recorded or open at a site: then it may move.
    pub fn is_empty(&self, site: &SiteName) -> bool {
        self.journals.get(site).is_none_or(|journal| journal.fold.slots.is_empty() && journal.fold.open.is_empty())
    }

    /// The sites that have a journal.
    pub fn sites(&self) -> impl Iterator<Item = &SiteName> {
        self.journals.keys()
    }

    /// The objects of a site, as recorded.
    pub fn holdings(&self, site: &SiteName) -> Result<BTreeMap<ResourceId, Holding>, StateError> {
        self.journals.get(site).map_or_else(|| Ok(BTreeMap::new()), |journal| journal.holdings(site))
    }

    /// An object of a site, as recorded.
    pub(crate) fn current(&self, site: &SiteName, resource: &ResourceId) -> Option<Recorded> {
        let journal = self.journals.get(site)?;
        journal.body(site, journal.fold.slots.get(resource)?.current.as_ref()?).ok()
    }

    /// The SHA-256 that names a replaced object's record in the journal, also while the end of what replaced it is still to be written.
    pub(crate) fn old(&self, site: &SiteName, resource: &ResourceId, cloud_id: &CloudId) -> Option<String> {
        let journal = self.journals.get(site)?;
        let slots = journal.fold.slots.get(resource)?;
        let is_it =
            |body: &&BodyRef| journal.body::<Recorded>(site, body).is_ok_and(|recorded| recorded.cloud_id == *cloud_id);
        slots.old.iter().chain(&slots.current).find(is_it).map(|body| body.sha256.clone())
    }

    /// The operations of a site that were begun and have not ended.
    pub fn open(&self, site: &SiteName) -> Result<BTreeMap<OperationId, Open>, StateError> {
        let Some(journal) = self.journals.get(site) else { return Ok(BTreeMap::new()) };
        let mut all = BTreeMap::new();
        for (op, open) in &journal.fold.open {
            let intent = journal.body(site, &open.intent)?;
            let handle = open.handle.as_ref().map(|body| journal.body::<Handle>(site, body)).transpose()?;
            let (says, begun) = (open.says.clone(), open.begun);
            all.insert(*op, Open { intent, handle, says, begun });
        }
        Ok(all)
    }

    /// How long operations took at a site.
    pub fn took(&self, site: &SiteName) -> Took {
        self.journals.get(site).map(|journal| journal.fold.took.clone()).unwrap_or_default()
    }

    /// What the end of each log looked like, for a caller that wants to know whether anybody wrote since.
    pub fn heads(&self) -> BTreeMap<SiteName, Head> {
        self.journals.iter().map(|(site, journal)| (site.clone(), journal.head.clone())).collect()
    }

    /// What a power cut left at the end of a log; the next run that writes cuts it off.
    pub fn torn(&self) -> impl Iterator<Item = (&SiteName, &Torn)> {
        self.journals.iter().filter_map(|(site, journal)| Some((site, journal.torn.as_ref()?)))
    }

    /// Every record of a site, oldest first.
    pub async fn history(&self, site: &SiteName) -> Result<Vec<Record>, StateError> {
        let bytes = self.store.log(site).await?;
        let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
        Ok(log.records.into_iter().map(|line| line.record).collect())
    }

    /// A body that a record names.
    pub async fn body<T: DeserializeOwned>(&self, site: &SiteName, body: &BodyRef) -> Result<T, StateError> {
        parse(site, body, &read_body(self.store.as_ref(), site, body).await?)
    }

    /// Takes the lock, reads again under it, binds the sites and mends torn ends.
    pub async fn lock(
        self,
        operator: &Operator,
        places: &BTreeMap<SiteName, Place>,
        clock: Arc<dyn Clock>,
    ) -> Result<Locked, StateError> {
        let short = |text: &str| cut(text, 100);
        let holder = Holder {
            by: short(&operator.by),
            pid: operator.pid,
            host: short(&operator.host),
            since: clock.now(),
            tool: short(&operator.tool),
        };
        let lock = self.store.lock(&holder).await?;
        let read = Self::load(self.store.clone(), &self.environment, self.lineage).await;
        let state = match read.and_then(|state| state.check_places(places).map(|()| state)) {
            Ok(state) => state,
            Err(error) => {
                // The first error says more; a lock that is not given back ends by itself.
                let _ = self.store.unlock(lock).await;
                return Err(error);
            }
        };
        let operator = Operator {
            by: holder.by,
            reason: operator.reason.as_deref().map(|reason| cut(reason, 300)),
            tool: holder.tool,
            host: holder.host,
            pid: operator.pid,
        };
        let mut locked = Locked { state, lock, operator, clock, touched: BTreeSet::new(), mended: Vec::new() };
        locked.mend().await?;
        locked.bind(places).await?;
        Ok(locked)
    }
}

/// A state that only this run may write to.
pub struct Locked {
    state: State,
    lock: Lock,
    operator: Operator,
    clock: Arc<dyn Clock>,
    touched: BTreeSet<SiteName>,
    mended: Vec<String>,
}

impl std::ops::Deref for Locked {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl Locked {
    /// The fencing number of this lock.
    pub fn fence(&self) -> u64 {
        self.lock.fence
    }

    /// Until when the lock holds, where that is not for as long as this process lives.
    pub fn lease(&self) -> Option<Arc<dyn Lease>> {
        self.lock.lease.clone()
    }

    /// How long after the lock was taken operations that an earlier holder left open must not be touched.
    pub fn grace(&self) -> std::time::Duration {
        self.lock.grace
    }

    /// What was mended when the lock was taken, for people.
    pub fn mended(&self) -> &[String] {
        &self.mended
    }

    /// The number of the next operation of a site.
    pub(crate) fn next_operation(&self, site: &SiteName) -> u64 {
        self.state.journals.get(site).map_or(1, |journal| journal.fold.next + 1)
    }

    /// Writes what the closure puts down, in one go. When this returns, it is durable.
    pub async fn commit(&mut self, site: &SiteName, write: impl FnOnce(&mut Pen<'_>)) -> Result<(), StateError> {
        let journal = self.state.journals.entry(site.clone()).or_default();
        let mut pen = Pen { journal, batch: Batch::default(), entries: Vec::new(), fresh: BTreeMap::new() };
        if pen.journal.fold.opened.is_none() {
            let Some(place) = self.state.places.get(site).cloned() else {
                return Err(StateError::Unbound { site: site.clone() });
            };
            let (format, lineage) = (FORMAT, self.state.lineage);
            pen.entry(Entry::Opened { format, lineage, site: site.clone(), place });
        }
        write(&mut pen);
        let Pen { mut batch, entries, fresh, .. } = pen;
        let mut head = journal.head.clone();
        batch.log_at = head.len;
        batch.bodies_at = journal.bodies_len;
        let at = self.clock.now();
        // The locks of a store count from one; a journal that came from another store goes on from where it was.
        let fence = self.lock.fence.max(journal.fold.fence);
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let (by, reason, tool) =
                (self.operator.by.clone(), self.operator.reason.clone(), self.operator.tool.clone());
            let record = Record { n: head.n + 1, at, by, reason, tool, fence, entry };
            head.push(&record, &mut batch.lines)
                .map_err(|source| StateError::TooLong { site: site.clone(), source })?;
            records.push(record);
        }
        // What contradicts the journal would be refused by everybody who reads it: it must not get there.
        journal.fold.foresee(&records).map_err(|(n, what)| StateError::Contradiction {
            site: site.clone(),
            n,
            what,
        })?;
        self.state.store.append(&self.lock, site, &batch).await?;
        journal.bodies_len += batch.bodies.len() as u64;
        journal.head = head;
        journal.bodies.extend(fresh);
        for record in &records {
            journal.fold.apply(record).map_err(|unfit| unfit_error(site, record.n, batch.log_at, unfit))?;
        }
        journal.let_bodies_go();
        self.touched.insert(site.clone());
        Ok(())
    }

    /// Ends the run: remembers how far the journals went and gives the lock back.
    pub async fn close(self) -> Result<State, StateError> {
        for site in &self.touched {
            let Some(journal) = self.state.journals.get(site) else { continue };
            let bytes = serde_json::to_vec(&journal.head).expect("a head is plain data");
            self.state.store.replace(&self.lock, &head_name(site), &bytes).await?;
            if journal.head.n >= journal.snapshot + snapshot::EVERY {
                let bytes = Snapshot::write(&journal.head, &journal.fold);
                self.state.store.replace(&self.lock, &snapshot_name(site), &bytes).await?;
            }
        }
        self.state.store.unlock(self.lock).await?;
        Ok(self.state)
    }

    async fn bind(&mut self, places: &BTreeMap<SiteName, Place>) -> Result<(), StateError> {
        let new: Vec<_> = places.iter().filter(|(site, place)| self.state.places.get(*site) != Some(*place)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut sites = self.state.places.clone();
        sites.extend(new.iter().map(|(site, place)| ((*site).clone(), (*place).clone())));
        let (lineage, environment) = (self.state.lineage, self.state.environment.clone());
        let file = LineageFile { format: FORMAT, lineage, environment, sites, moved: None };
        let bytes = serde_json::to_vec_pretty(&file).expect("a lineage is plain data");
        self.state.store.replace(&self.lock, LINEAGE, &bytes).await?;
        self.state.places = file.sites;
        self.state.is_new = false;
        for (site, place) in new {
            // A site of which nothing is left may be bound to another place; its journal goes on.
            if self.state.journals.get(site).is_some_and(|journal| journal.fold.opened.is_some()) {
                let (format, site, place) = (FORMAT, site.clone(), place.clone());
                self.commit(&site.clone(), |pen| pen.entry(Entry::Opened { format, lineage, site, place })).await?;
            }
        }
        Ok(())
    }

    async fn mend(&mut self) -> Result<(), StateError> {
        let torn: Vec<_> = self.state.torn().map(|(site, torn)| (site.clone(), torn.clone())).collect();
        for (site, Torn { at, bytes }) in torn {
            // A line that is whole but for its newline was not acknowledged either; whether it is cut or kept, the call that
            // it announces was not made, and cutting is the one way for both.
            self.state.store.cut(&self.lock, &site, at).await?;
            if let Some(journal) = self.state.journals.get_mut(&site) {
                journal.torn = None;
            }
            self.commit(&site, |pen| pen.entry(Entry::Mended { offset: at, bytes })).await?;
            self.mended.push(format!("journal of `{site}`: {bytes} bytes of a torn record at byte {at} were cut off"));
        }
        Ok(())
    }
}

/// What one commit writes.
pub struct Pen<'a> {
    journal: &'a Journal,
    batch: Batch,
    entries: Vec<Entry>,
    fresh: BTreeMap<String, (BodyRef, Vec<u8>)>,
}

impl Pen<'_> {
    /// Puts a body beside the log and names it.
    pub fn body<T: Serialize>(&mut self, value: &T) -> BodyRef {
        let bytes = serde_json::to_vec(value).expect("bodies are plain data");
        let sha256 = record::sha256(&bytes);
        if let Some((known, _)) = self.journal.bodies.get(&sha256).or_else(|| self.fresh.get(&sha256)) {
            return known.clone();
        }
        let at = self.journal.bodies_len + self.batch.bodies.len() as u64;
        let body = BodyRef { sha256: sha256.clone(), at, len: bytes.len() as u32 };
        self.batch.bodies.extend_from_slice(&bytes);
        self.batch.names.push(body.clone());
        self.fresh.insert(sha256, (body.clone(), bytes));
        body
    }

    /// Writes an entry.
    pub fn entry(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}

impl Journal {
    fn holdings(&self, site: &SiteName) -> Result<BTreeMap<ResourceId, Holding>, StateError> {
        let mut holdings = BTreeMap::new();
        for (resource, slots) in &self.fold.slots {
            let current = slots.current.as_ref().map(|body| self.body::<Recorded>(site, body)).transpose()?;
            let mut old = Vec::new();
            for body in &slots.old {
                old.push(Old { sha256: body.sha256.clone(), recorded: self.body(site, body)? });
            }
            let sha256 = slots.current.as_ref().map(|body| body.sha256.clone());
            let (since, by) = (slots.since, slots.by);
            holdings.insert(resource.clone(), Holding { current, sha256, old, since, by });
        }
        Ok(holdings)
    }

    fn body<T: DeserializeOwned>(&self, site: &SiteName, body: &BodyRef) -> Result<T, StateError> {
        let bytes = self.bodies.get(&body.sha256).map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        parse(site, body, bytes)
    }

    /// Lets go of bodies that no record needs any more, when they are the greater part.
    fn let_bodies_go(&mut self) {
        let few = self.fold.slots.len() + 2 * self.fold.open.len() + 64;
        if self.bodies.len() > 2 * few {
            let needed: HashSet<String> = self.fold.needed().map(|body| body.sha256.clone()).collect();
            self.bodies.retain(|sha256, _| needed.contains(sha256));
        }
    }
}

fn parse<T: DeserializeOwned>(site: &SiteName, body: &BodyRef, bytes: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(bytes).map_err(|error| StateError::Unreadable {
        what: format!("body {} of `{site}` at byte {}", &body.sha256[..12.min(body.sha256.len())], body.at),
        because: error.to_string(),
    })
}

fn read_lineage(place: &str, bytes: &[u8]) -> Result<LineageFile, StateError> {
    let unreadable = |error: serde_json::Error| StateError::Unreadable {
        what: format!("{place}/{LINEAGE}"),
        because: error.to_string(),
    };
    // A newer tool may have changed everything but the number.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(found) = value["format"].as_u64().filter(|format| *format > u64::from(FORMAT)) {
        return Err(StateError::Future { what: format!("{place}/{LINEAGE}"), found, known: FORMAT });
    }
    serde_json::from_value(value).map_err(unreadable)
}

async fn read_journal(store: &dyn Store, site: &SiteName) -> Result<Journal, StateError> {
    // Before the log, which whoever is at work writes first: neither is ever ahead of what is read.
    let known_head = store.document(&head_name(site)).await?;
    let cached = store.document(&snapshot_name(site)).await?.unwrap_or_default();
    let bytes = store.log(site).await?;
    let damaged = |damage| StateError::Damaged { site: site.clone(), damage };
    let snapshot = Snapshot::of(&cached);
    // The sum is read on a second core while the lines are checked.
    let (read, fold) = std::thread::scope(|scope| {
        let fold = snapshot.as_ref().map(|snapshot| scope.spawn(|| snapshot.fold()));
        let read = record::read_after(&bytes, snapshot.as_ref().map_or(0, Snapshot::records));
        (read, fold.and_then(|fold| fold.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    });
    let mut log = read.map_err(damaged)?;
    let mut journal = Journal::default();
    match (snapshot, fold) {
        (Some(snapshot), Some(fold)) if snapshot.is_of(&log) => {
            (journal.snapshot, journal.fold) = (snapshot.records(), fold);
        }
        (Some(_), _) => log = record::read(&bytes).map_err(damaged)?,
        (None, _) => {}
    }
    if let Some(bytes) = known_head {
        check_head(store, site, &log, &bytes)?;
    }
    for record::Line { record, offset, .. } in &log.records {
        journal.fold.apply(record).map_err(|unfit| unfit_error(site, record.n, *offset, unfit))?;
    }
    (journal.head, journal.torn) = (log.head, log.torn);
    journal.bodies_len = store.bodies_len(site).await?;
    let needed: Vec<BodyRef> = journal.fold.needed().cloned().collect();
    let bodies = store.bodies(site, &needed).await?;
    check_bodies(site, &needed, &bodies)?;
    journal.bodies = needed.into_iter().zip(bodies).map(|(body, bytes)| (body.sha256.clone(), (body, bytes))).collect();
    Ok(journal)
}

/// A log that ends before where a finished run left it, or goes another way, was put back to an older state or lost its end.
fn check_head(store: &dyn Store, site: &SiteName, log: &record::Log, bytes: &[u8]) -> Result<(), StateError> {
    let known: Head = serde_json::from_slice(bytes).map_err(|error| StateError::Unreadable {
        what: format!("{}/{}", store.place(), head_name(site)),
        because: error.to_string(),
    })?;
    let damage = |what: String| {
        let damage = Damage { offset: log.head.len, n: log.head.n + 1, what };
        Err(StateError::Damaged { site: site.clone(), damage })
    };
    if known.n > log.head.n {
        return damage(format!("it is missing, and so is everything up to record {}", known.n));
    }
    if known.n > 0 && log.sum(known.n) != Some(known.sum.as_str()) {
        return damage(format!("record {} is not the one that an earlier run wrote", known.n));
    }
    Ok(())
}

async fn read_body(store: &dyn Store, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError> {
    let bytes = store.body(site, body).await?;
    check_body(site, body, &bytes)?;
    Ok(bytes)
}

/// Checks many bodies, on two cores.
fn check_bodies(site: &SiteName, named: &[BodyRef], bodies: &[Vec<u8>]) -> Result<(), StateError> {
    /// Fewer are checked sooner than a thread is started.
    const WORTH_A_THREAD: usize = 500;
    let check = |named: &[BodyRef], bodies: &[Vec<u8>]| {
        named.iter().zip(bodies).try_for_each(|(body, bytes)| check_body(site, body, bytes))
    };
    if named.len() < WORTH_A_THREAD {
        return check(named, bodies);
    }
    let half = named.len() / 2;
    let ((left, right), (lefts, rights)) = (named.split_at(half), bodies.split_at(half.min(bodies.len())));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| check(left, lefts));
        let one = check(right, rights);
        other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(one)
    })
}

fn check_body(site: &SiteName, body: &BodyRef, bytes: &[u8]) -> Result<(), StateError> {
    if record::sha256(bytes) == body.sha256 {
        return Ok(());
    }
    let what = "a body was changed: its checksum does not match".to_owned();
    Err(StateError::DamagedBody { site: site.clone(), offset: body.at, what })
}

fn unfit_error(site: &SiteName, n: u64, offset: u64, unfit: Unfit) -> StateError {
    match unfit {
        Unfit::Future(found) => {
            StateError::Future { what: format!("journal of `{site}`"), found: found.into(), known: FORMAT }
        }
        Unfit::Contradiction(what) => StateError::Damaged { site: site.clone(), damage: Damage { offset, n, what } },
    }
}

fn head_name(site: &SiteName) -> String {
    format!("journal/{site}/head.json")
}

fn snapshot_name(site: &SiteName) -> String {
    format!("journal/{site}/snapshot.json")
}

/// Whether a wall-clock moment lies within `window` of another, whichever way the clock jumped.
pub(crate) fn within(a: Timestamp, b: Timestamp, window: std::time::Duration) -> bool {
    a.duration_since(b).unsigned_abs() < window
}
