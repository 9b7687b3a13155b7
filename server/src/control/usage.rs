//! Usage goes to the other sites behind the answers: an append-only log per site, merged as a union by the rows' own ids.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
/// Between two questions to a peer that there is nothing to ship to.
const ASK_EVERY: Duration = Duration::from_secs(2);
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

/// How far a peer has our rows, as it is remembered.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Place {
    /// The place of the last row in our log.
    at: i64,
    /// Which life of the peer's disk has them.
    life: Option<u64>,
    /// Up to this place rows of all sites are shipped: to a disk that begins anew.
    all_up_to: i64,
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
    let mut place: Place = disk::read(&file).ok().flatten().unwrap_or_default();
    let mut asked: Option<Instant> = None;
    while !stop.is_cancelled() {
        let full = match store.usage_after(place.at, place.all_up_to, BATCH).await {
            // Where there is nothing to ship, the peer is asked from time to time whether it still has what it had.
            Ok((rows, _)) if rows.is_empty() && asked.is_some_and(|at| at.elapsed() < ASK_EVERY) => {
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
                match client::post(&address, "/v1/usage", &body, WITHIN).await {
                    Ok((StatusCode::OK, answer)) => {
                        let life = answer["life"].as_u64();
                        let before = place;
                        if place.life == life {
                            place.at = last;
                        } else {
                            // Another disk than the one that had our rows, and the first time none.
                            let all_up_to =
                                if place.life.is_some() { store.usage_end().await.unwrap_or(last) } else { 0 };
                            place = Place { at: 0, life, all_up_to };
                        }
                        if (place.at, place.life) != (before.at, before.life) {
                            // Shipped twice is as good as once: where this is lost, that is what happens.
                            let _ = disk::put(&file, &place);
                        }
                        full || place.life != before.life
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
