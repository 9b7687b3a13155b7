//! Transfers a state to another store, byte for byte: journals with their chains, bodies, documents and the
//! audit log of commands.

use std::collections::BTreeMap;

use textnlp_provider::{EnvironmentName, SiteName};

use super::store::{Batch, Holder, Lock, Store};
use super::{
    BodyRef, Entry, FORMAT, LINEAGE, LineageFile, Locked, SiteLocation, StateError, audit, head_name, read_lineage,
    record,
};

/// Documents that are copied if they exist.
const DOCUMENTS: [&str; 2] = ["hold.json", LINEAGE];

/// The most bytes of one append.
const PIECE: usize = 4 << 20;

/// Copies a whole state into an empty store, under a lock of its own there. The caller holds the lock of `from`, or
/// ensures that there is no writer.
///
/// The lineage is written last: an interrupted copy is not a state, and the next transfer starts again.
pub async fn transfer(from: &dyn Store, to: &dyn Store, holder: &Holder) -> Result<(), StateError> {
    let lock = to.lock(holder).await?;
    let copied = copy(from, to, &lock).await;
    let unlocked = to.unlock(lock).await;
    copied.and(unlocked)
}

async fn copy(from: &dyn Store, to: &dyn Store, lock: &Lock) -> Result<(), StateError> {
    let ours = from.document(LINEAGE).await?.map(|bytes| read_lineage(&from.place(), &bytes)).transpose()?;
    if let Some(bytes) = to.document(LINEAGE).await? {
        let there = read_lineage(&to.place(), &bytes)?;
        // A state that was moved away may return: the target then has its beginning.
        if there.moved.is_none() || Some(there.lineage) != ours.map(|file| file.lineage) {
            let because = "a state already exists there, and two states cannot be merged".to_owned();
            return Err(StateError::Unreadable { what: to.place(), because });
        }
    }
    for site in from.sites().await? {
        let bytes = from.log(&site).await?;
        let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
        if let Some(torn) = log.torn {
            let because = format!("its last record is incomplete at byte {}: the next `up` repairs it", torn.at);
            return Err(StateError::Unreadable { what: format!("journal of `{site}`"), because });
        }
        let there = to.log(&site).await?;
        if !bytes.starts_with(&there) {
            let because = format!("the journal of `{site}` there has other content");
            return Err(StateError::Unreadable { what: to.place(), because });
        }
        let bodies = bodies(from, &site, &log).await?;
        let mut log_at = there.len();
        let mut bodies_at = to.bodies_len(&site).await?.min(bodies.len() as u64) as usize;
        while log_at < bytes.len() || bodies_at < bodies.len() {
            let lines_end = whole_lines(&bytes, log_at);
            let bodies_end = (bodies_at + PIECE).min(bodies.len());
            // Bodies first: a record never refers to a body that does not exist yet.
            let lines = if bodies_end < bodies.len() { &[][..] } else { &bytes[log_at..lines_end] };
            let batch = Batch {
                log_at: log_at as u64,
                lines: lines.to_vec(),
                bodies_at: bodies_at as u64,
                bodies: bodies[bodies_at..bodies_end].to_vec(),
                names: Vec::new(),
            };
            to.append(lock, &site, &batch).await?;
            (log_at, bodies_at) = (log_at + lines.len(), bodies_end);
        }
        if let Some(head) = from.document(&head_name(&site)).await? {
            to.replace(lock, &head_name(&site), &head).await?;
        }
    }
    // Before the lineage, with which the copy counts as a state.
    for document in audit::documents(from).await? {
        let name = audit::path(&document);
        if let Some(bytes) = from.document(&name).await? {
            to.replace(lock, &name, &bytes).await?;
        }
    }
    for name in DOCUMENTS {
        if let Some(bytes) = from.document(name).await? {
            to.replace(lock, name, &bytes).await?;
        }
    }
    Ok(())
}

/// Marks a store's state as moved; later runs get the new location as an error.
pub async fn moved_away(
    from: &dyn Store,
    environment: &EnvironmentName,
    to: &str,
    holder: &Holder,
) -> Result<(), StateError> {
    let lock = from.lock(holder).await?;
    let Some(bytes) = from.document(LINEAGE).await? else { return Ok(()) };
    let file = read_lineage(&from.place(), &bytes)?;
    let file = LineageFile { format: FORMAT, environment: environment.clone(), moved: Some(to.to_owned()), ..file };
    let bytes = serde_json::to_vec_pretty(&file).expect("a lineage is plain data");
    from.replace(&lock, LINEAGE, &bytes).await?;
    from.unlock(lock).await
}

impl Locked {
    /// Binds a site with objects to another location: the objects were found there, or the operator confirmed it.
    pub async fn rebind(&mut self, site: &SiteName, place: &SiteLocation) -> Result<(), StateError> {
        self.bind(&BTreeMap::from([(site.clone(), place.clone())])).await
    }
}

/// The bodies of a site, concatenated; gaps where no record refers to one.
async fn bodies(from: &dyn Store, site: &SiteName, log: &record::Log) -> Result<Vec<u8>, StateError> {
    let mut named: BTreeMap<u64, BodyRef> = BTreeMap::new();
    for line in &log.records {
        for body in named_by(&line.record.entry) {
            named.insert(body.at, body.clone());
        }
    }
    let mut bodies: Vec<u8> = Vec::new();
    for (at, body) in named {
        let bytes = super::read_body(from, site, &body).await?;
        let end = at as usize + bytes.len();
        if bodies.len() < end {
            bodies.resize(end, b' ');
        }
        bodies[at as usize..end].copy_from_slice(&bytes);
    }
    Ok(bodies)
}

/// The bodies that an entry refers to.
pub(super) fn named_by(entry: &Entry) -> impl Iterator<Item = &BodyRef> {
    use super::End;
    let one = match entry {
        Entry::Approved { plan, .. } => Some(plan),
        Entry::Begun { intent, .. } => Some(intent),
        Entry::Pending { handle, .. } => Some(handle),
        Entry::Ended { end: End::Made { recorded }, .. }
        | Entry::Noted { recorded, .. }
        | Entry::Returned { recorded, .. } => Some(recorded),
        Entry::Ended { end: End::Failed { left, .. }, .. } => left.as_ref(),
        Entry::Opened { .. } | Entry::Ended { end: End::Gone, .. } => None,
        Entry::Completed { .. } | Entry::Measured { .. } => None,
        Entry::Exempted { .. } | Entry::Entered { .. } => None,
        Entry::Chose { .. } | Entry::Forgot { .. } | Entry::Mended { .. } => None,
    };
    one.into_iter()
}

/// The end of the last complete line that fits into one append.
fn whole_lines(bytes: &[u8], from: usize) -> usize {
    let most = (from + PIECE).min(bytes.len());
    bytes[from..most].iter().rposition(|byte| *byte == b'\n').map_or(most, |last| from + last + 1)
}
