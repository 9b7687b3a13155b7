//! Usage goes to the other sites behind the answers: an append-only log per site, merged as a union by the rows' own ids.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_control::Site;
use tokio_util::sync::CancellationToken;

use super::config::WatchConfig;
use super::{client, disk};
use crate::config::Address;
use crate::database::{Store, UsageRow, now_ms};

/// Between two looks: what is lost with a site's disk is about this much.
const EVERY: Duration = Duration::from_millis(250);
/// Rows of one request.
const BATCH: u32 = 500;
const WITHIN: Duration = Duration::from_secs(5);

/// What `POST /v1/usage` takes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Shipment {
    pub(super) site: Site,
    pub(super) rows: Vec<UsageRow>,
}

/// How far a peer has our rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Behind {
    /// Rows that it lacks, as far as was looked.
    pub(super) rows: u64,
    /// Age of the oldest of them.
    pub(super) ms: u64,
}

/// By peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Shipped(Arc<Mutex<BTreeMap<Site, Behind>>>);

impl Shipped {
    pub(super) fn behind(&self) -> BTreeMap<Site, Behind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, peer: &Site, behind: Behind) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.clone(), behind);
    }
}

/// Ships this site's rows to one peer until the watch stops.
pub(super) async fn ship(
    store: Store,
    config: WatchConfig,
    peer: Site,
    address: Address,
    shipped: Shipped,
    stop: CancellationToken,
) {
    let file = config.folder.join(format!("usage-at-{peer}.json"));
    // Where it is forgotten everything is shipped again: a row that is there stays as it is.
    let mut at: i64 = disk::read(&file).ok().flatten().unwrap_or(0);
    while !stop.is_cancelled() {
        let full = match store.usage_after(at, BATCH).await {
            Ok((rows, _)) if rows.is_empty() => {
                shipped.set(&peer, Behind::default());
                false
            }
            Ok((rows, last)) => {
                let full = rows.len() == BATCH as usize;
                let oldest = rows.first().map_or(0, |row| now_ms().saturating_sub(row.created_at).max(0) as u64);
                shipped.set(&peer, Behind { rows: rows.len() as u64, ms: oldest });
                let body = json!(Shipment { site: config.site.clone(), rows });
                match client::post(&address, "/v1/usage", &body, WITHIN).await {
                    Ok((StatusCode::OK, _)) => {
                        at = last;
                        // Shipped twice is as good as once: this need not be durable at every batch, only soon.
                        let _ = disk::put(&file, &at);
                        full
                    }
                    Ok(_) | Err(_) => false,
                }
            }
            Err(error) => {
                tracing::warn!(error = %crate::error::chain(&error), "usage could not be read");
                false
            }
        };
        if !full {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}
