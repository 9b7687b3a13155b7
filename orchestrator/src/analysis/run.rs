//! Runs of `up` and `down` during which errors occurred.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use textnlp_provider::SiteName;

use crate::plan::Purpose;
use crate::state::{Entry, Record, State, StateError};

/// The programs and the journal use one clock or several that agree; a change of a rate is known to the second.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(1);

/// A run that changed a site, from the start of its first operation to the end of its last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunSpan {
    /// The site.
    pub site: SiteName,
    /// The purpose of the run.
    pub purpose: Purpose,
    /// When its first operation started.
    pub from: Timestamp,
    /// When its last operation was recorded last.
    pub until: Timestamp,
}

impl RunSpan {
    pub(super) fn covers(&self, at: Timestamp) -> bool {
        let (before, after) = (self.from.duration_since(at), at.duration_since(self.until));
        before <= TOLERANCE && after <= TOLERANCE
    }
}

/// The runs that changed the sites of a deployment, of each site the oldest first.
pub async fn runs(state: &State) -> Result<Vec<RunSpan>, StateError> {
    let mut all = Vec::new();
    for site in state.sites() {
        all.extend(spans(site, &state.history(site).await?));
    }
    Ok(all)
}

fn spans(site: &SiteName, records: &[Record]) -> Vec<RunSpan> {
    let mut runs: Vec<RunSpan> = Vec::new();
    let (mut approved, mut fence) = (None, 0);
    for record in records {
        match &record.entry {
            Entry::Approved { purpose, .. } => (approved, fence) = (Some(*purpose), record.fence),
            // A later run finishes the operations of one that was interrupted.
            Entry::Begun { .. } | Entry::Pending { .. } | Entry::Ended { .. } if record.fence == fence => {
                if let Some(purpose) = approved.take() {
                    runs.push(RunSpan { site: site.clone(), purpose, from: record.at, until: record.at });
                } else if let Some(run) = runs.last_mut() {
                    run.until = record.at;
                }
            }
            _ => {}
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use textnlp_provider::OperationId;

    use super::*;
    use crate::state::{BodyRef, End};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn record(second: i64, fence: u64, entry: Entry) -> Record {
        let (by, tool) = ("ada".to_owned(), "textnlp-deploy".to_owned());
        Record { n: 1, at: at(second), by, reason: None, tool, fence, entry }
    }

    fn body() -> BodyRef {
        BodyRef { sha256: String::new(), at: 0, len: 0 }
    }

    #[test]
    fn run_lasts_from_its_first_operation_to_its_last() {
        let (op, site) = (OperationId(1), SiteName::new("here").unwrap());
        let approved = |second, fence| {
            record(second, fence, Entry::Approved { purpose: Purpose::Up, plan: body(), tracked: true })
        };
        let pending = |second, fence| {
            record(second, fence, Entry::Pending { op, handle: body(), says: "starts".to_owned(), lacked: None })
        };
        let ended = |second, fence| record(second, fence, Entry::Ended { op, end: End::Gone });
        let records = [
            approved(0, 1),
            record(5, 1, Entry::Completed { purpose: Purpose::Up }),
            approved(10, 2),
            pending(12, 2),
            ended(14, 2),
            approved(100, 3),
            pending(101, 3),
            // Another run finished it.
            ended(900, 4),
        ];
        let found = spans(&site, &records);
        let times: Vec<_> = found.iter().map(|run| (run.from, run.until)).collect();
        assert_eq!(times, [(at(12), at(14)), (at(101), at(101))], "a run without operations changes nothing");
        assert!(
            found[0].covers(at(11)) && found[0].covers(at(15)) && !found[0].covers(at(10)) && !found[0].covers(at(16))
        );
    }
}
