//! Injected faults of the inter-site relay, and when they end.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;

/// The longest duration of a fault: a drill takes minutes.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(600);

/// The kind of an injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// No byte passes and no connection ends, as when a cable is cut.
    Blackhole,
}

/// A fault with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) until: Instant,
}

/// The active fault, if any. Every relayed connection observes it.
#[derive(Debug)]
pub(super) struct Faults(watch::Sender<Option<Fault>>);

impl Default for Faults {
    fn default() -> Faults {
        Faults(watch::channel(None).0)
    }
}

impl Faults {
    /// Starts a fault, or changes the end of the active one.
    pub(super) fn begin(&self, kind: Kind, lasts: Duration) {
        self.0.send_replace(Some(Fault { kind, until: Instant::now() + lasts }));
        tracing::warn!(?kind, ms = lasts.as_millis() as u64, "a fault was injected");
    }

    /// Ends the active fault. Returns false if there was none.
    pub(super) fn end(&self) -> bool {
        let was = self.0.send_replace(None).is_some();
        if was {
            tracing::info!("the fault ended");
        }
        was
    }

    pub(super) fn now(&self) -> Option<Fault> {
        *self.0.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Option<Fault>> {
        self.0.subscribe()
    }
}

/// Ends faults whose time is over, even if the process that requested them is gone.
pub(super) async fn end_in_time(shared: Arc<Shared>) {
    let mut fault = shared.faults.watch();
    loop {
        let now = *fault.borrow_and_update();
        let over = async {
            match now {
                Some(fault) => tokio::time::sleep_until(fault.until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.stop.accept.cancelled() => return,
            changed = fault.changed() => if changed.is_err() { return },
            () = over => {
                // A fault that was extended in the meantime continues.
                let ended = shared.faults.0.send_if_modified(|there| {
                    let over = *there == now;
                    if over {
                        *there = None;
                    }
                    over
                });
                if ended {
                    tracing::info!("the fault ended");
                }
            }
        }
    }
}
