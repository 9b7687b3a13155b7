//! Usage reaches the other sites asynchronously: an append-only log per site, merged by the unique ids of rows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_control::Site;
use textnlp_process::Address;
use textnlp_store::{Store, UsageRow, now_ms};
use tokio_util::sync::CancellationToken;

use super::config::AgentConfig;
use super::{client, disk};

/// Poll interval: about this much is lost with a site's disk.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between two queries to a peer when there is nothing to ship.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Rows of one request.
const BATCH: u32 = 500;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of `POST /v1/usage`.
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

/// The stored replication progress of a peer.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct ShippedPosition {
    /// The position of the last shipped row in our log.
    at: i64,
    /// The incarnation of the peer's disk.
    life: Option<u64>,
    /// Up to this position rows of all sites are shipped, to a peer with a new disk.
    all_up_to: i64,
}

/// Ships this site's rows to one peer until the site agent stops.
pub(super) async fn ship(
    store: Store,
    config: AgentConfig,
    peer: Site,
    address: Address,
    shipped: Shipped,
    stop: CancellationToken,
) {
    let file = config.folder.join(format!("usage-at-{peer}.json"));
    // If the progress is lost everything is shipped again: existing rows stay unchanged.
    let mut place: ShippedPosition = disk::read(&file).ok().flatten().unwrap_or_default();
    let mut asked: Option<Instant> = None;
    while !stop.is_cancelled() {
        let full = match store.usage_after(place.at, place.all_up_to, BATCH).await {
            // With nothing to ship, the peer is polled from time to time to check that it still has its rows.
            Ok((rows, _)) if rows.is_empty() && asked.is_some_and(|at| at.elapsed() < IDLE_POLL_INTERVAL) => {
                shipped.set(&peer, Behind::default());
                false
            }
            Ok((rows, last)) => {
                asked = Some(Instant::now());
                let full = rows.len() == BATCH as usize;
                let own = rows.iter().find(|row| row.site.is_empty());
                let oldest = own.map_or(0, |row| now_ms().saturating_sub(row.created_at).max(0) as u64);
                shipped.set(&peer, Behind { rows: rows.len() as u64, ms: oldest });
                let body = json!(Shipment { site: config.site.clone(), rows });
                match client::post(&address, "/v1/usage", &body, REQUEST_TIMEOUT).await {
                    Ok((StatusCode::OK, answer)) => {
                        let life = answer["life"].as_u64();
                        let before = place;
                        if place.life == life {
                            place.at = last;
                        } else {
                            // The peer has a new disk; the first time there is none.
                            let all_up_to =
                                if place.life.is_some() { store.usage_end().await.unwrap_or(last) } else { 0 };
                            place = ShippedPosition { at: 0, life, all_up_to };
                        }
                        if (place.at, place.life) != (before.at, before.life) {
                            // Shipping rows twice is harmless, so an error here is ignored.
                            let _ = disk::put(&file, &place);
                        }
                        full || place.life != before.life
                    }
                    Ok(_) | Err(_) => false,
                }
            }
            Err(error) => {
                tracing::warn!(error = %textnlp_net::error_chain(&error), "usage could not be read");
                false
            }
        };
        if !full {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }
}
