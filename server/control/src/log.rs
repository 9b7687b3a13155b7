//! The log of changes, and the table that they make.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Control data: small values by key. `GET /v1/table` returns it.
pub type Table = BTreeMap<String, Value>;

/// The position of an entry. Positions order by index; the epoch distinguishes two entries with the same index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// In which epoch it was appended.
    pub epoch: u64,
    /// From 1, without gaps; 0 is before everything.
    pub index: u64,
}

/// A value that is put, or taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// Of the table.
    pub key: String,
    /// `None` deletes the key.
    pub value: Option<Value>,
}

/// The writes of one request, applied atomically.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its position.
    pub at: Position,
    /// In order.
    pub writes: Vec<Write>,
}

impl Entry {
    /// Approximate size in a message.
    fn bytes(&self) -> usize {
        let of = |write: &Write| write.key.len() + write.value.as_ref().map_or(0, |value| value.to_string().len()) + 64;
        self.writes.iter().map(of).sum::<usize>() + 64
    }
}

/// The table at a position.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last entry in it.
    pub at: Position,
    /// The resulting table.
    pub table: Table,
}

/// A snapshot and the entries after it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Log {
    base: Snapshot,
    entries: Vec<Entry>,
}

impl Log {
    /// A log as read from disk; `None` if the entries do not follow the snapshot without a gap.
    pub fn new(base: Snapshot, entries: Vec<Entry>) -> Option<Self> {
        let follows = entries.iter().zip(base.at.index + 1..).all(|(entry, index)| entry.at.index == index);
        follows.then_some(Self { base, entries })
    }

    /// The snapshot at its beginning.
    pub fn base(&self) -> &Snapshot {
        &self.base
    }

    /// The entries after the snapshot.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The last position.
    pub fn last(&self) -> Position {
        self.entries.last().map_or(self.base.at, |entry| entry.at)
    }

    /// The position of an index that is here.
    pub(crate) fn position(&self, index: u64) -> Option<Position> {
        if index == self.base.at.index {
            return Some(self.base.at);
        }
        self.entry(index).map(|entry| entry.at)
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.base.at.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The entries after an index, as many as fit a message.
    pub(crate) fn after(&self, index: u64) -> Vec<Entry> {
        /// Large enough that a round trip carries much, small enough that a heartbeat is never late.
        const MOST: usize = 256;
        const MOST_BYTES: usize = 1 << 20;
        let from = usize::try_from(index.saturating_sub(self.base.at.index)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.bytes();
            // A larger entry is sent alone.
            is_first || bytes <= MOST_BYTES
        };
        self.entries.iter().skip(from).take(MOST).take_while(fits).cloned().collect()
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        debug_assert_eq!(entry.at.index, self.last().index + 1);
        self.entries.push(entry);
    }

    /// Removes and returns the entries after an index.
    pub(crate) fn truncate(&mut self, index: u64) -> Vec<Entry> {
        let keep = usize::try_from(index.saturating_sub(self.base.at.index)).unwrap_or(usize::MAX);
        self.entries.split_off(keep.min(self.entries.len()))
    }

    /// Replaces everything by another site's snapshot.
    pub(crate) fn install(&mut self, base: Snapshot) -> Vec<Entry> {
        self.base = base;
        std::mem::take(&mut self.entries)
    }

    /// Folds entries up to an index, which must be committed, into the snapshot.
    pub(crate) fn compact(&mut self, index: u64) {
        let many = usize::try_from(index.saturating_sub(self.base.at.index)).unwrap_or(usize::MAX);
        for entry in self.entries.drain(..many.min(self.entries.len())) {
            apply(&mut self.base.table, &entry);
            self.base.at = entry.at;
        }
    }
}

/// Applies an entry to a table.
pub(crate) fn apply(table: &mut Table, entry: &Entry) {
    for write in &entry.writes {
        match &write.value {
            Some(value) => drop(table.insert(write.key.clone(), value.clone())),
            None => drop(table.remove(&write.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u64, index: u64) -> Entry {
        let write = Write { key: format!("k{index}"), value: Some(epoch.into()) };
        Entry { at: Position { epoch, index }, writes: vec![write] }
    }

    #[test]
    fn replication_message_is_bounded_but_carries_at_least_one_entry() {
        let large = |index| {
            let write = Write { key: "k".into(), value: Some("x".repeat(700_000).into()) };
            Entry { at: Position { epoch: 1, index }, writes: vec![write] }
        };
        let log = Log::new(Snapshot::default(), (1..=3).map(large).collect()).unwrap();
        assert_eq!(log.after(0).len(), 1);
        let log = Log::new(Snapshot::default(), (1..=600).map(|index| entry(1, index)).collect()).unwrap();
        assert_eq!((log.after(0).len(), log.after(590).len()), (256, 10));
    }

    #[test]
    fn compacted_entries_are_in_the_table_and_the_rest_in_the_log() {
        let mut log = Log::new(Snapshot::default(), (1..=5).map(|index| entry(1, index)).collect()).unwrap();
        log.compact(3);
        assert_eq!((log.base().at.index, log.base().table.len(), log.entries().len()), (3, 3, 2));
        assert_eq!(log.position(3), Some(Position { epoch: 1, index: 3 }));
        assert_eq!(log.position(2), None);
        assert_eq!(log.after(0), log.after(3));
        assert_eq!(log.truncate(4), [entry(1, 5)]);
        log.push(entry(2, 5));
        assert_eq!(log.last(), Position { epoch: 2, index: 5 });
        assert!(Log::new(Snapshot::default(), vec![entry(1, 2)]).is_none(), "a gap");
    }
}
