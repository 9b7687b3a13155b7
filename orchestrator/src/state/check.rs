//! Checks a whole state, and repairs what can be repaired without guessing.

use std::collections::BTreeMap;

use serde::Serialize;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::hold::{self, HOLD, Hold};
use super::store::{Holder, Store};
use super::transfer::named_by;
use super::{Entry, FORMAT, Head, LINEAGE, LineageFile, SiteLocation, StateError, head_name, read_lineage, record};

/// A problem of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The journal or file.
    pub what: String,
    /// The problem.
    pub because: String,
    /// What [`apply_remedies`] does about it; `None` if only a backup helps.
    pub remedy: Option<Remedy>,
}

/// The repair of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "remedy", rename_all = "snake_case")]
pub enum Remedy {
    /// Truncate a partial record at the end: no call depended on it. The next run does the same.
    CutTorn {
        /// The site of the journal.
        site: SiteName,
    },
    /// Rewrite `lineage.json` from the journals.
    WriteLineage {
        /// The lineage.
        lineage: Lineage,
        /// Its sites.
        places: BTreeMap<SiteName, SiteLocation>,
    },
    /// Rewrite `head.json` from the journal, which is intact. Records after its end, if any, are lost.
    WriteHead {
        /// The site of the journal.
        site: SiteName,
        /// The count of lost records, as far as known.
        lost: u64,
    },
    /// Replace the record of the lock, which only counts locks.
    WriteLease {
        /// The highest number of a lock in the journals.
        fence: u64,
    },
    /// Freeze the environment: the file may have said so.
    WriteHold,
}

impl Remedy {
    /// Whether the repair loses records that only a backup could restore.
    pub fn gives_up(&self) -> bool {
        matches!(self, Self::WriteHead { lost, .. } if *lost > 0)
    }
}

/// Checks everything.
pub async fn check(store: &dyn Store, environment: &EnvironmentName) -> Result<Vec<Finding>, StateError> {
    let mut found = Vec::new();
    let (mut lineage, mut places, mut fence) = (None, BTreeMap::new(), 0);
    for site in store.sites().await? {
        let what = format!("journal of `{site}`");
        let bytes = store.log(&site).await?;
        let log = match record::read(&bytes) {
            Ok(log) => log,
            Err(damage) => {
                found.push(Finding { what, because: damage.to_string(), remedy: None });
                continue;
            }
        };
        for line in &log.records {
            fence = fence.max(line.record.fence);
            if let Entry::Opened { lineage: of, place, .. } = &line.record.entry {
                lineage = lineage.or(Some(*of));
                places.insert(site.clone(), place.clone());
            }
            for body in named_by(&line.record.entry) {
                let whole = store.body(&site, body).await.is_ok_and(|bytes| record::sha256(&bytes) == body.sha256);
                if !whole {
                    let because =
                        format!("the body of record {} at byte {} is damaged or missing", line.record.n, body.at);
                    found.push(Finding { what: what.clone(), because, remedy: None });
                }
            }
        }
        if let Some(torn) = &log.torn {
            let because = format!("its last record at byte {} is incomplete, as after a power failure", torn.at);
            found.push(Finding { what, because, remedy: Some(Remedy::CutTorn { site: site.clone() }) });
        }
        found.extend(check_head(store, &site, &log).await?);
    }
    let mut wrong = |because: String| {
        let remedy = lineage.map(|lineage| Remedy::WriteLineage { lineage, places: places.clone() });
        found.push(Finding { what: LINEAGE.to_owned(), because, remedy });
    };
    match store.document(LINEAGE).await? {
        None if lineage.is_some() => wrong("it is missing, and there are journals".to_owned()),
        None => {}
        Some(bytes) => match read_lineage(&store.place(), &bytes) {
            Ok(file) if file.environment != *environment => {
                let because = format!("it belongs to environment `{}`", file.environment);
                found.push(Finding { what: LINEAGE.to_owned(), because, remedy: None });
            }
            Ok(file) if lineage.is_some_and(|lineage| lineage != file.lineage) => {
                let because = format!("it has lineage {}, and the journals have another one", file.lineage);
                found.push(Finding { what: LINEAGE.to_owned(), because, remedy: None });
            }
            Ok(_) => {}
            Err(StateError::Future { found: format, known, .. }) => {
                let because = format!("it has format {format}; this program supports formats up to {known}");
                found.push(Finding { what: LINEAGE.to_owned(), because, remedy: None });
            }
            Err(error) => wrong(error.to_string()),
        },
    }
    if let Some(because) = store.lock_damage().await? {
        let remedy = Some(Remedy::WriteLease { fence });
        found.push(Finding { what: "lease.json".to_owned(), because, remedy });
    }
    let hold = store.document(HOLD).await?.map(|bytes| hold::read(&store.place(), &bytes));
    if let Some(Err(error)) = hold {
        let remedy = (!matches!(error, StateError::Future { .. })).then_some(Remedy::WriteHold);
        found.push(Finding { what: HOLD.to_owned(), because: error.to_string(), remedy });
    }
    Ok(found)
}

async fn check_head(store: &dyn Store, site: &SiteName, log: &record::Log) -> Result<Option<Finding>, StateError> {
    let Some(bytes) = store.document(&head_name(site)).await? else { return Ok(None) };
    let (because, lost) = match serde_json::from_slice::<Head>(&bytes) {
        Err(error) => (format!("it cannot be read: {error}"), 0),
        Ok(head) if head.n > log.head.n => {
            let lost = head.n - log.head.n;
            (format!("the journal ends {lost} records before it: its end is missing"), lost)
        }
        Ok(head) => {
            let there = log.records.iter().find(|line| line.record.n == head.n);
            if head.n == 0 || there.is_some_and(|line| line.sum == head.sum) {
                return Ok(None);
            }
            // The journal was replaced by another one; which of them is right cannot be decided here.
            let because = format!("record {} differs from the record that an earlier run wrote", head.n);
            return Ok(Some(Finding { what: head_name(site), because, remedy: None }));
        }
    };
    Ok(Some(Finding { what: head_name(site), because, remedy: Some(Remedy::WriteHead { site: site.clone(), lost }) }))
}

/// Applies the remedies. Findings without one are unchanged.
pub async fn apply_remedies(
    store: &dyn Store,
    environment: &EnvironmentName,
    found: &[Finding],
    holder: &Holder,
) -> Result<(), StateError> {
    let remedies = || found.iter().filter_map(|finding| finding.remedy.as_ref());
    for remedy in remedies() {
        // Without it no lock is granted.
        if let Remedy::WriteLease { fence } = remedy {
            store.reset_lock(holder, *fence).await?;
        }
    }
    let lock = store.lock(holder).await?;
    for remedy in remedies() {
        match remedy {
            Remedy::WriteLease { .. } => {}
            Remedy::WriteHold => {
                let Holder { by, host, since, tool, .. } = holder.clone();
                let why = format!("{HOLD} was damaged: the environment may have been frozen");
                let bytes = hold::written(Some(Hold { by, host, since, why, tool }));
                store.replace(&lock, HOLD, &bytes).await?;
            }
            Remedy::CutTorn { site } => {
                let bytes = store.log(site).await?;
                let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
                if let Some(torn) = log.torn {
                    store.cut(&lock, site, torn.at).await?;
                }
            }
            Remedy::WriteLineage { lineage, places } => {
                let (environment, sites) = (environment.clone(), places.clone());
                let file = LineageFile { format: FORMAT, lineage: *lineage, environment, sites, moved: None };
                let bytes = serde_json::to_vec_pretty(&file).expect("a lineage is plain data");
                store.replace(&lock, LINEAGE, &bytes).await?;
            }
            Remedy::WriteHead { site, .. } => {
                let bytes = store.log(site).await?;
                let log = record::read(&bytes).map_err(|damage| StateError::Damaged { site: site.clone(), damage })?;
                let head = serde_json::to_vec(&log.head).expect("a head is plain data");
                store.replace(&lock, &head_name(site), &head).await?;
            }
        }
    }
    store.unlock(lock).await
}
