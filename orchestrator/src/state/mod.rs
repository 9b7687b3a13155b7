//! The state: an append-only, hash-chained journal for each site, its lock, and its lineage.
//!
//! [`State::load`] reads without a lock. [`State::lock`] takes the lock, truncates records that a power failure left
//! partial, and returns a [`Locked`], the only writer. The start of an operation is durable before its call is made,
//! and its end before anything depends on it: [`Locked::commit`] returns once file and folder are synced. `head.json`
//! beside a log records its length, so that a truncated log is detected. `snapshot.json` caches its fold, so that a
//! long log is not parsed again.

pub mod audit;
mod check;
mod durations;
mod error;
mod fold;
mod folder;
mod hold;
mod lineage;
mod memory;
mod objects;
mod past;
mod record;
mod shortages;
mod snapshot;
mod store;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use textnlp_provider::{
    CloudId, EnvironmentName, Handle, Lacking, Lineage, OperationId, Recorded, ResourceId, SiteName, Token,
};

use crate::clock::Clock;
use crate::gate::{EnteredPhase, RecordedExemption};

pub use check::{Finding, Remedy, apply_remedies, check};
pub use durations::Durations;
pub use error::{Io, StateError, io_hint};
pub use fold::{Intent, OpenOperation, RecordedObjects, ReplacedObject, UnfinishedRun, UnresolvedCreate};
pub use folder::Folder;
pub use hold::{Hold, held_in, release_in};
pub use lineage::{LineageFile, SiteLocation};
pub use memory::MemoryStore;
pub use objects::{Objects, Timing};
pub use past::{Changed, PointInTime, RecordDifference, differences};
pub use record::{BodyRef, Damage, End, Entry, FORMAT, Head, LINE_LIMIT, Record, Target, Torn};
pub use shortages::{Shortage, Shortages};
pub use store::{Batch, Holder, Lease, Lock, Store};
pub use transfer::{moved_away, transfer};

use fold::{Fold, SequenceError};
pub(crate) use record::cut;
use snapshot::Snapshot;

/// Scheduled backups as the holder of a lock, in [`Holder::by`].
pub const SCHEDULE: &str = "schedule";
/// How long a run waits for a scheduled backup that holds the lock.
pub const SCHEDULE_TIMEOUT: Duration = Duration::from_secs(120);
const SCHEDULE_POLL: Duration = Duration::from_millis(500);

const LINEAGE: &str = "lineage.json";

/// The author of records and the reason of the run; part of every record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The person or the account.
    pub by: String,
    /// The reason, from `--reason`.
    pub reason: Option<String>,
    /// Name and version of the program.
    pub tool: String,
    /// The machine.
    pub host: String,
    /// The process id.
    pub pid: u32,
}

/// A state as it was read.
pub struct State {
    store: Arc<dyn Store>,
    environment: EnvironmentName,
    lineage: Lineage,
    is_new: bool,
    places: BTreeMap<SiteName, SiteLocation>,
    journals: BTreeMap<SiteName, Journal>,
}

/// One site's journal, folded.
#[derive(Debug, Clone, Default)]
struct Journal {
    head: Head,
    bodies_len: u64,
    fold: Fold,
    /// The loaded bodies by their SHA-256; bodies that no record needs are dropped from time to time.
    bodies: HashMap<String, (BodyRef, Vec<u8>)>,
    torn: Option<Torn>,
    /// The last record that the snapshot covers.
    snapshot: u64,
}

impl State {
    /// Reads a state without a lock. `fresh` becomes the lineage if there is none yet.
    pub async fn load(
        store: Arc<dyn Store>,
        environment: &EnvironmentName,
        fresh: Lineage,
    ) -> Result<Self, StateError> {
        // Another run may write at the same time. What it writes last is read first, so nothing refers to a record that
        // was not read.
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
                    because: "it is missing, and its folder has journals".to_owned(),
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

    /// The lineage of the deployment.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Whether nothing was ever written: the lineage is only proposed.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether anything is recorded. A lineage alone records nothing.
    pub fn has_records(&self) -> bool {
        self.journals.values().any(|journal| journal.head.n > 0)
    }

    /// The state with this lineage, if it has no records of another one.
    #[must_use]
    pub fn with_lineage(self, lineage: Lineage) -> Self {
        if self.has_records() || self.lineage == lineage {
            return self;
        }
        Self { lineage, is_new: true, ..self }
    }

    /// The environment it belongs to.
    pub fn environment(&self) -> &EnvironmentName {
        &self.environment
    }

    /// Its location, for messages.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// The binding of each known site.
    pub fn places(&self) -> &BTreeMap<SiteName, SiteLocation> {
        &self.places
    }

    /// Rejects sites whose binding differs from the recorded one.
    pub fn check_places(&self, wanted: &BTreeMap<SiteName, SiteLocation>) -> Result<(), StateError> {
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

    /// Whether a site has no recorded objects and no open operations, so that it may be bound elsewhere.
    pub fn is_empty(&self, site: &SiteName) -> bool {
        self.journals.get(site).is_none_or(|journal| journal.fold.slots.is_empty() && journal.fold.open.is_empty())
    }

    /// The sites that have a journal.
    pub fn sites(&self) -> impl Iterator<Item = &SiteName> {
        self.journals.keys()
    }

    /// The recorded objects of a site.
    pub fn holdings(&self, site: &SiteName) -> Result<BTreeMap<ResourceId, RecordedObjects>, StateError> {
        self.journals.get(site).map_or_else(|| Ok(BTreeMap::new()), |journal| journal.holdings(site))
    }

    /// The recorded object in use of a resource.
    pub(crate) fn current(&self, site: &SiteName, resource: &ResourceId) -> Option<Recorded> {
        let journal = self.journals.get(site)?;
        journal.body(site, journal.fold.slots.get(resource)?.current.as_ref()?).ok()
    }

    /// The SHA-256 of a replaced object's record, by which the journal refers to it; also before the end of the
    /// replacement is recorded.
    pub(crate) fn old(&self, site: &SiteName, resource: &ResourceId, cloud_id: &CloudId) -> Option<String> {
        let journal = self.journals.get(site)?;
        let slots = journal.fold.slots.get(resource)?;
        let is_it =
            |body: &&BodyRef| journal.body::<Recorded>(site, body).is_ok_and(|recorded| recorded.cloud_id == *cloud_id);
        slots.old.iter().chain(&slots.current).find(is_it).map(|body| body.sha256.clone())
    }

    /// The open operations of a site.
    pub fn open(&self, site: &SiteName) -> Result<BTreeMap<OperationId, OpenOperation>, StateError> {
        let Some(journal) = self.journals.get(site) else { return Ok(BTreeMap::new()) };
        let mut all = BTreeMap::new();
        for (op, open) in &journal.fold.open {
            let intent = journal.body(site, &open.intent)?;
            let handle = open.handle.as_ref().map(|body| journal.body::<Handle>(site, body)).transpose()?;
            let (says, begun) = (open.says.clone(), open.begun);
            all.insert(*op, OpenOperation { intent, handle, says, begun });
        }
        Ok(all)
    }

    /// The tokens of creates at a site that ended without a recorded object. An object without a record belongs to this
    /// deployment only if it has one of these tokens.
    pub fn unresolved(&self, site: &SiteName) -> BTreeMap<ResourceId, Vec<UnresolvedCreate>> {
        self.journals.get(site).map(|journal| journal.fold.unresolved.clone()).unwrap_or_default()
    }

    /// The token of the next operation of this number.
    pub(crate) fn token(&self, site: &SiteName, op: OperationId) -> Token {
        let last = self.journals.get(site).map_or("", |journal| journal.head.sum.as_str());
        Token::derive_after(last, self.lineage, site, op)
    }

    /// The past durations of operations at a site.
    pub fn took(&self, site: &SiteName) -> Durations {
        self.journals.get(site).map(|journal| journal.fold.took.clone()).unwrap_or_default()
    }

    /// What lacked capacity at a site lately.
    pub fn shortages(&self, site: &SiteName) -> Shortages {
        self.journals.get(site).map(|journal| journal.fold.shortages.clone()).unwrap_or_default()
    }

    /// The runs that did not do everything that was approved.
    pub fn unfinished(&self) -> impl Iterator<Item = (&SiteName, &UnfinishedRun)> {
        self.journals.iter().filter_map(|(site, journal)| Some((site, journal.fold.run.as_ref()?)))
    }

    /// The digest of the gate's evidence. `None` once the resources of a site may have changed after the measurement.
    pub fn evidence(&self) -> Option<&str> {
        let mut all = self.journals.values().map(|journal| journal.fold.evidence.as_deref());
        let first = all.next()??;
        all.all(|evidence| evidence == Some(first)).then_some(first)
    }

    /// The exemptions, oldest first; the same decision at several sites once.
    pub fn exemptions(&self) -> Vec<RecordedExemption> {
        let mut all: Vec<&RecordedExemption> =
            self.journals.values().flat_map(|journal| &journal.fold.exemptions).collect();
        all.sort_by_key(|recorded| recorded.at);
        let mut distinct: Vec<RecordedExemption> = Vec::new();
        for one in all {
            let is_same = |known: &RecordedExemption| RecordedExemption { at: one.at, ..known.clone() } == *one;
            if !distinct.iter().any(is_same) {
                distinct.push(one.clone());
            }
        }
        distinct
    }

    /// The releases that entered a phase without an exemption.
    pub fn entered(&self) -> impl Iterator<Item = &EnteredPhase> {
        self.journals.values().flat_map(|journal| &journal.fold.entered)
    }

    /// When the last `down` was approved.
    pub fn removal(&self) -> Option<Timestamp> {
        self.journals.values().filter_map(|journal| journal.fold.removal).max()
    }

    /// Whether a `down` ended at every site, and nothing was created or changed since: at most data is left, and no object
    /// that a failed create may have made.
    pub fn is_down(&self) -> bool {
        let is_down = |journal: &Journal| {
            let fold = &journal.fold;
            let is_older = |slots: &fold::Slots| fold.removal.is_some_and(|removal| slots.since < removal);
            let is_settled = fold.run.is_none() && fold.open.is_empty() && fold.unresolved.is_empty();
            is_settled && fold.slots.values().all(is_older)
        };
        self.removal().is_some() && self.journals.values().all(is_down)
    }

    /// The head of each log, to detect later writes.
    pub fn heads(&self) -> BTreeMap<SiteName, Head> {
        self.journals.iter().map(|(site, journal)| (site.clone(), journal.head.clone())).collect()
    }

    /// Partial records that a power failure left; the next run that writes truncates them.
    pub fn torn(&self) -> impl Iterator<Item = (&SiteName, &Torn)> {
        self.journals.iter().filter_map(|(site, journal)| Some((site, journal.torn.as_ref()?)))
    }

    /// Every record of a site, oldest first.
    pub async fn history(&self, site: &SiteName) -> Result<Vec<Record>, StateError> {
        let bytes = self.store.log(site).await?;
        let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
        Ok(log.records.into_iter().map(|line| line.record).collect())
    }

    /// A body that a record refers to.
    pub async fn body<T: DeserializeOwned>(&self, site: &SiteName, body: &BodyRef) -> Result<T, StateError> {
        parse(site, body, &read_body(self.store.as_ref(), site, body).await?)
    }

    /// Takes the lock, reads again under it, binds the sites and truncates partial records. Waits up to two minutes for
    /// a scheduled backup.
    pub async fn lock(
        self,
        operator: &Operator,
        places: &BTreeMap<SiteName, SiteLocation>,
        clock: Arc<dyn Clock>,
    ) -> Result<Locked, StateError> {
        self.lock_while(operator, places, clock, &mut |_| true).await
    }

    /// The same as [`lock`](Self::lock). While a scheduled backup holds the lock, `wait` decides at each poll whether to
    /// wait longer.
    pub async fn lock_while(
        self,
        operator: &Operator,
        places: &BTreeMap<SiteName, SiteLocation>,
        clock: Arc<dyn Clock>,
        wait: &mut (dyn FnMut(&Holder) -> bool + Send),
    ) -> Result<Locked, StateError> {
        let short = |text: &str| cut(text, 100);
        let holder = Holder {
            by: short(&operator.by),
            pid: operator.pid,
            host: short(&operator.host),
            since: clock.now(),
            tool: short(&operator.tool),
        };
        let lock = lock_after_schedule(self.store.as_ref(), &holder, clock.as_ref(), wait).await?;
        let read = Self::load(self.store.clone(), &self.environment, self.lineage).await;
        let state = match read.and_then(|state| state.check_places(places).map(|()| state.with_lineage(self.lineage))) {
            Ok(state) => state,
            Err(error) => {
                // The first error is the useful one; the lock ends without the release too.
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
        let (touched, mended) = (BTreeSet::new(), Vec::new());
        let mut locked = Locked { state, lock, operator, clock, touched, mended, has_new_places: false };
        locked.truncate_torn().await?;
        locked.bind(places).await?;
        Ok(locked)
    }
}

/// Takes the lock. Waits for a scheduled backup, because the operator did not start it and it ends without help.
async fn lock_after_schedule(
    store: &dyn Store,
    holder: &Holder,
    clock: &dyn Clock,
    wait: &mut (dyn FnMut(&Holder) -> bool + Send),
) -> Result<Lock, StateError> {
    let began = clock.steady();
    loop {
        match store.lock(holder).await {
            Err(StateError::Held { holder: Some(other) })
                if other.by == SCHEDULE && clock.steady().saturating_sub(began) < SCHEDULE_TIMEOUT && wait(&other) =>
            {
                clock.sleep(SCHEDULE_POLL).await;
            }
            result => return result,
        }
    }
}

/// A locked state, which only this run may write.
pub struct Locked {
    state: State,
    lock: Lock,
    operator: Operator,
    clock: Arc<dyn Clock>,
    touched: BTreeSet<SiteName>,
    mended: Vec<String>,
    /// Whether `lineage.json` lacks the lineage or places. Of a new state it is written with the first record, so that a
    /// refused run leaves no lineage.
    has_new_places: bool,
}

impl std::ops::Deref for Locked {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl Locked {
    /// The fencing number of the lock.
    pub fn fence(&self) -> u64 {
        self.lock.fence
    }

    /// The lease of the lock, if the lock does not last for the life of the process.
    pub fn lease(&self) -> Option<Arc<dyn Lease>> {
        self.lock.lease.clone()
    }

    /// How long after the lock was taken operations that an earlier holder left open must not be touched.
    pub fn grace(&self) -> std::time::Duration {
        self.lock.grace
    }

    /// Messages about repairs when the lock was taken.
    pub fn mended(&self) -> &[String] {
        &self.mended
    }

    /// The number of the next operation of a site.
    pub(crate) fn next_operation(&self, site: &SiteName) -> u64 {
        self.state.journals.get(site).map_or(1, |journal| journal.fold.next + 1)
    }

    /// What lacks capacity now, for an operation that creates a resource.
    pub(crate) fn lacking(&self, site: &SiteName, resource: &ResourceId) -> Vec<Lacking> {
        let journal = self.state.journals.get(site);
        journal.map(|journal| journal.fold.shortages.lacking(resource, self.clock.now())).unwrap_or_default()
    }

    /// Writes the records that the closure adds, in one append. Durable on return.
    pub async fn commit(
        &mut self,
        site: &SiteName,
        write: impl FnOnce(&mut JournalWriter<'_>),
    ) -> Result<(), StateError> {
        if self.has_new_places {
            self.write_lineage().await?;
        }
        let journal = self.state.journals.entry(site.clone()).or_default();
        let mut writer =
            JournalWriter { journal, batch: Batch::default(), entries: Vec::new(), fresh: BTreeMap::new() };
        if writer.journal.fold.opened.is_none() {
            let Some(place) = self.state.places.get(site).cloned() else {
                return Err(StateError::Unbound { site: site.clone() });
            };
            let (format, lineage) = (FORMAT, self.state.lineage);
            writer.entry(Entry::Opened { format, lineage, site: site.clone(), place });
        }
        write(&mut writer);
        let JournalWriter { mut batch, entries, fresh, .. } = writer;
        let mut head = journal.head.clone();
        batch.log_at = head.len;
        batch.bodies_at = journal.bodies_len;
        let at = self.clock.now();
        // The locks of a store count from one; a journal that was transferred continues with its own numbers.
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
        // Every later read would reject a record that contradicts the journal, so it must not be written.
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
        journal.release_bodies();
        self.touched.insert(site.clone());
        Ok(())
    }

    /// Ends the run: saves the heads of the journals and releases the lock.
    pub async fn close(self) -> Result<State, StateError> {
        for site in &self.touched {
            let Some(journal) = self.state.journals.get(site) else { continue };
            let bytes = serde_json::to_vec(&journal.head).expect("a head is plain data");
            self.state.store.replace(&self.lock, &head_name(site), &bytes).await?;
            if journal.head.n >= journal.snapshot + snapshot::RECORDS_PER_SNAPSHOT {
                let bytes = Snapshot::write(&journal.head, &journal.fold);
                self.state.store.replace(&self.lock, &snapshot_name(site), &bytes).await?;
            }
        }
        self.state.store.unlock(self.lock).await?;
        Ok(self.state)
    }

    async fn bind(&mut self, places: &BTreeMap<SiteName, SiteLocation>) -> Result<(), StateError> {
        let (is_new, lineage) = (self.state.is_new, self.state.lineage);
        let new: Vec<_> = places.iter().filter(|(site, place)| self.state.places.get(*site) != Some(*place)).collect();
        if places.is_empty() || (new.is_empty() && !is_new) {
            return Ok(());
        }
        self.state.places.extend(new.iter().map(|(site, place)| ((*site).clone(), (*place).clone())));
        self.state.is_new = false;
        self.has_new_places = true;
        if !is_new {
            self.write_lineage().await?;
        }
        for (site, place) in new {
            // An empty site may be bound to another location; its journal continues.
            if self.state.journals.get(site).is_some_and(|journal| journal.fold.opened.is_some()) {
                let (format, site, place) = (FORMAT, site.clone(), place.clone());
                self.commit(&site.clone(), |writer| writer.entry(Entry::Opened { format, lineage, site, place }))
                    .await?;
            }
        }
        Ok(())
    }

    async fn write_lineage(&mut self) -> Result<(), StateError> {
        let State { lineage, environment, places, .. } = &self.state;
        let (environment, sites) = (environment.clone(), places.clone());
        let file = LineageFile { format: FORMAT, lineage: *lineage, environment, sites, moved: None };
        let bytes = serde_json::to_vec_pretty(&file).expect("a lineage is plain data");
        self.state.store.replace(&self.lock, LINEAGE, &bytes).await?;
        self.has_new_places = false;
        Ok(())
    }

    async fn truncate_torn(&mut self) -> Result<(), StateError> {
        let torn: Vec<_> = self.state.torn().map(|(site, torn)| (site.clone(), torn.clone())).collect();
        for (site, Torn { at, bytes }) in torn {
            // A complete record without its newline was not acknowledged either, so its call was not made. Both cases
            // are truncated.
            self.state.store.cut(&self.lock, &site, at).await?;
            if let Some(journal) = self.state.journals.get_mut(&site) {
                journal.torn = None;
            }
            self.commit(&site, |writer| writer.entry(Entry::Mended { offset: at, bytes })).await?;
            self.mended.push(format!("journal of `{site}`: {bytes} bytes of a torn record at byte {at} were cut off"));
        }
        Ok(())
    }
}

/// The records and bodies of one commit.
pub struct JournalWriter<'a> {
    journal: &'a Journal,
    batch: Batch,
    entries: Vec<Entry>,
    fresh: BTreeMap<String, (BodyRef, Vec<u8>)>,
}

impl JournalWriter<'_> {
    /// Adds a body and returns its reference.
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

    /// Adds a record.
    pub fn entry(&mut self, entry: Entry) {
        self.entries.push(entry);
    }
}

impl Journal {
    fn holdings(&self, site: &SiteName) -> Result<BTreeMap<ResourceId, RecordedObjects>, StateError> {
        let mut holdings = BTreeMap::new();
        for (resource, slots) in &self.fold.slots {
            let current = slots.current.as_ref().map(|body| self.body::<Recorded>(site, body)).transpose()?;
            let mut old = Vec::new();
            for body in &slots.old {
                old.push(ReplacedObject { sha256: body.sha256.clone(), recorded: self.body(site, body)? });
            }
            let sha256 = slots.current.as_ref().map(|body| body.sha256.clone());
            let (since, by) = (slots.since, slots.by);
            holdings.insert(resource.clone(), RecordedObjects { current, sha256, old, since, by });
        }
        Ok(holdings)
    }

    fn body<T: DeserializeOwned>(&self, site: &SiteName, body: &BodyRef) -> Result<T, StateError> {
        let bytes = self.bodies.get(&body.sha256).map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        parse(site, body, bytes)
    }

    /// Drops bodies that no record needs, once they are the majority.
    fn release_bodies(&mut self) {
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

/// What is wrong with a small file of a state, without any text of it: a state may come with a checkout, where the file may be a
/// link to a private one.
pub fn json_problem(error: &serde_json::Error) -> String {
    match error.line() {
        0 => "it has other values than this program writes".to_owned(),
        line => format!("line {line}, column {} is not what this program writes", error.column()),
    }
}

fn read_lineage(place: &str, bytes: &[u8]) -> Result<LineageFile, StateError> {
    let unreadable = |error: serde_json::Error| StateError::Unreadable {
        what: format!("{place}/{LINEAGE}"),
        because: json_problem(&error),
    };
    // A newer version may have changed everything but the format number.
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(unreadable)?;
    if let Some(found) = value["format"].as_u64().filter(|format| *format > u64::from(FORMAT)) {
        return Err(StateError::Future { what: format!("{place}/{LINEAGE}"), found, known: FORMAT });
    }
    serde_json::from_value(value).map_err(unreadable)
}

async fn read_journal(store: &dyn Store, site: &SiteName) -> Result<Journal, StateError> {
    // The head is read before the log, since a writer writes the log first: the head is never ahead of the log that is
    // read.
    let known_head = store.document(&head_name(site)).await?;
    let cached = store.document(&snapshot_name(site)).await?.unwrap_or_default();
    let bytes = store.log(site).await?;
    let damaged = |damage| StateError::Damaged { site: site.clone(), damage };
    let snapshot = Snapshot::of(&cached);
    // The snapshot is parsed on a second thread while the lines are checked.
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

/// Rejects a log that ends before its recorded head, or differs there: it was restored from an older copy or truncated.
fn check_head(store: &dyn Store, site: &SiteName, log: &record::Log, bytes: &[u8]) -> Result<(), StateError> {
    let known: Head = serde_json::from_slice(bytes).map_err(|error| StateError::Unreadable {
        what: format!("{}/{}", store.place(), head_name(site)),
        because: json_problem(&error),
    })?;
    let damage = |what: String| {
        let damage = Damage { offset: log.head.len, n: log.head.n + 1, what };
        Err(StateError::Damaged { site: site.clone(), damage })
    };
    if known.n > log.head.n {
        return damage(format!("it is missing, and so is everything up to record {}", known.n));
    }
    if known.n > 0 && log.sum(known.n) != Some(known.sum.as_str()) {
        return damage(format!("record {} differs from the record that an earlier run wrote", known.n));
    }
    Ok(())
}

async fn read_body(store: &dyn Store, site: &SiteName, body: &BodyRef) -> Result<Vec<u8>, StateError> {
    let bytes = store.body(site, body).await?;
    check_body(site, body, &bytes)?;
    Ok(bytes)
}

/// Checks many bodies on two threads.
fn check_bodies(site: &SiteName, named: &[BodyRef], bodies: &[Vec<u8>]) -> Result<(), StateError> {
    /// Fewer are checked faster than a thread is started.
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

fn unfit_error(site: &SiteName, n: u64, offset: u64, unfit: SequenceError) -> StateError {
    match unfit {
        SequenceError::Future(found) => {
            StateError::Future { what: format!("journal of `{site}`"), found: found.into(), known: FORMAT }
        }
        SequenceError::Contradiction(what) => {
            StateError::Damaged { site: site.clone(), damage: Damage { offset, n, what } }
        }
    }
}

fn head_name(site: &SiteName) -> String {
    format!("journal/{site}/head.json")
}

fn snapshot_name(site: &SiteName) -> String {
    format!("journal/{site}/snapshot.json")
}

/// Whether a wall-clock time is within `window` of another, in either direction.
pub(crate) fn within(a: Timestamp, b: Timestamp, window: std::time::Duration) -> bool {
    a.duration_since(b).unsigned_abs() < window
}
