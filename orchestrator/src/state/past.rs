//! The records at an earlier point in time, and the difference between two.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use textnlp_provider::{Recorded, ResourceId, SiteName};

use super::fold::Fold;
use super::{Journal, RecordedObjects, State, StateError, record, unfit_error};

/// A point in time of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointInTime {
    /// After the site's record of this number.
    Record(u64),
    /// At this time, by the clocks of the writers.
    Time(Timestamp),
    /// Now.
    Now,
}

/// The change of a resource's record between two points in time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    /// The resource.
    pub resource: ResourceId,
    /// `added`, `removed` or `changed`.
    pub what: &'static str,
    /// The members of a changed record that differ, as dotted paths with both values.
    pub fields: Vec<RecordDifference>,
}

/// One member of a record that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecordDifference {
    /// Its path: `spec.size`, `outputs.address`.
    pub field: String,
    /// The earlier value.
    pub before: Option<Value>,
    /// The later value.
    pub after: Option<Value>,
}

impl State {
    /// The recorded objects of a site at a point in time.
    pub async fn holdings_at(
        &self,
        site: &SiteName,
        moment: PointInTime,
    ) -> Result<BTreeMap<ResourceId, RecordedObjects>, StateError> {
        let bytes = self.store.log(site).await?;
        let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
        let mut fold = Fold::default();
        for record::Line { record, offset, .. } in &log.records {
            let past = match moment {
                PointInTime::Record(n) => record.n > n,
                PointInTime::Time(at) => record.at > at,
                PointInTime::Now => false,
            };
            // Clocks of different machines disagree, so the order of the journal decides.
            if past {
                break;
            }
            fold.apply(record).map_err(|unfit| unfit_error(site, record.n, *offset, unfit))?;
        }
        let mut journal = Journal { fold, ..Journal::default() };
        let needed: Vec<_> = journal.fold.needed().cloned().collect();
        for body in needed {
            let bytes = super::read_body(self.store.as_ref(), site, &body).await?;
            journal.bodies.insert(body.sha256.clone(), (body, bytes));
        }
        journal.holdings(site)
    }
}

/// The changes between two points in time, in order of ids.
pub fn differences(
    before: &BTreeMap<ResourceId, RecordedObjects>,
    after: &BTreeMap<ResourceId, RecordedObjects>,
) -> Vec<Changed> {
    let ids: BTreeSet<&ResourceId> = before.keys().chain(after.keys()).collect();
    let current =
        |all: &BTreeMap<ResourceId, RecordedObjects>, id: &ResourceId| all.get(id).and_then(|h| h.current.clone());
    let changed = ids.into_iter().filter_map(|id| {
        let (what, fields) = match (current(before, id), current(after, id)) {
            (None, None) => return None,
            (None, Some(_)) => ("added", Vec::new()),
            (Some(_), None) => ("removed", Vec::new()),
            (Some(before), Some(after)) if before == after => return None,
            (Some(before), Some(after)) => ("changed", fields(&before, &after)),
        };
        Some(Changed { resource: id.clone(), what, fields })
    });
    changed.collect()
}

fn fields(before: &Recorded, after: &Recorded) -> Vec<RecordDifference> {
    let value = |recorded: &Recorded| serde_json::to_value(recorded).expect("records are plain data");
    let mut found = Vec::new();
    below("", &value(before), &value(after), &mut found);
    found
}

fn below(at: &str, before: &Value, after: &Value, found: &mut Vec<RecordDifference>) {
    let (Value::Object(left), Value::Object(right)) = (before, after) else {
        if before != after {
            let some = |value: &Value| (!value.is_null()).then(|| value.clone());
            found.push(RecordDifference { field: at.to_owned(), before: some(before), after: some(after) });
        }
        return;
    };
    let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
        below(&at, &of(left), &of(right), found);
    }
}
