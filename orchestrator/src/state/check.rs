//! Looks at a whole state and says what is wrong with it, piece by piece; and mends what can be mended without a guess.

use std::collections::BTreeMap;

use serde::Serialize;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::store::{Holder, Store};
use super::transfer::named_by;
use super::{Entry, FORMAT, Head, LINEAGE, LineageFile, Place, StateError, head_name, read_lineage, record};

/// One thing that is wrong with a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which piece.
    pub what: String,
    /// What is wrong.
    pub because: String,
    /// What [`mend`] does about it; `None` where only a copy helps.
    pub remedy: Option<Remedy>,
}

/// What can be done about a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "remedy", rename_all = "snake_case")]
pub enum Remedy {
    /// Cut a torn end off: no call was made on its strength. The next run does it too.
    CutTorn {
        /// Whose journal.
        site: SiteName,
    },
    /// Write `lineage.json` again from what the journals say.
    WriteLineage {
        /// Which deployment.
        lineage: Lineage,
        /// Its sites.
        places: BTreeMap<SiteName, Place>,
    },
    /// Write `head.json` again from the journal, which is whole. Records after its end, if there were any, are lost.
    WriteHead {
        /// Whose journal.
        site: SiteName,
        /// How many records the lost end had, as far as is known.
        lost: u64,
    },
}

impl Remedy {
    /// Whether it gives something up that only a copy could bring back.
    pub fn gives_up(&self) -> bool {
        matches!(self, Self::WriteHead { lost, .. } if *lost > 0)
    }
}

/// Looks at every piece.
pub async fn check(store: &dyn Store, environment: &EnvironmentName) -> Result<Vec<Finding>, StateError> {
    let mut found = Vec::new();
    let (mut lineage, mut places) = (None, BTreeMap::new());
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
            let because = format!("a power cut tore its last record at byte {}", torn.at);
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
                let because = format!("it names lineage {}, and the journals another one", file.lineage);
                found.push(Finding { what: LINEAGE.to_owned(), because, remedy: None });
            }
            Ok(_) => {}
            Err(StateError::Future { found: format, known, .. }) => {
                let because = format!("it has format {format}, this program knows up to {known}");
                found.push(Finding { what: LINEAGE.to_owned(), because, remedy: None });
            }
            Err(error) => wrong(error.to_string()),
        },
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
            // Another journal was put in its place; which of them is right, nobody here can tell.
            let because = format!("record {} is not the one that an earlier run wrote", head.n);
            return Ok(Some(Finding { what: head_name(site), because, remedy: None }));
        }
    };
    Ok(Some(Finding { what: head_name(site), because, remedy: Some(Remedy::WriteHead { site: site.clone(), lost }) }))
}

/// Does what the remedies say. What has none stays as it is.
pub async fn mend(
    store: &dyn Store,
    environment: &EnvironmentName,
    found: &[Finding],
    holder: &Holder,
) -> Result<(), StateError> {
    let lock = store.lock(holder).await?;
    for remedy in found.iter().filter_map(|finding| finding.remedy.as_ref()) {
        match remedy {
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
