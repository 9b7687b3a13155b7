//! Leases of rate limits and token budgets, where these are counted by the primary site: see [`textnlp_store::lease`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use textnlp_process::Address;
use textnlp_sites::control::counters::{self, LeaseError};
use textnlp_store::lease::{Lease, Outcome};
use textnlp_store::{Reservation, now_ms};
use tokio::sync::OwnedMutexGuard;

use crate::error::chain;

/// Counters with a lease. Beyond it leases are dropped: what they held stays counted.
const MAX_LEASES: usize = 10_000;

/// The leases of this replica.
#[derive(Debug)]
pub(crate) struct Leases {
    agent: Address,
    /// By what is reserved, without the number of units.
    held: Mutex<HashMap<Reservation, Arc<Held>>>,
}

#[derive(Debug, Default)]
struct Held {
    lease: Mutex<Lease>,
    /// Locked by the one request that asks for the next lease.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Held {
    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the next lease, and takes `units` of it. A task of its own: a client that leaves must not lose the lease.
    async fn renew(
        self: &Arc<Self>,
        agent: &Address,
        turn: OwnedMutexGuard<()>,
        reservation: Reservation,
        units: u64,
    ) -> Result<Option<Outcome>, LeaseError> {
        let (held, agent) = (self.clone(), agent.clone());
        let renewing = tokio::spawn(async move {
            let request = held.lease().request(&reservation);
            let answer = counters::lease(&agent, &request).await;
            let applied = answer.map(|answer| held.lease().apply(&request, answer, units, now_ms()));
            drop(turn);
            applied
        });
        renewing.await.unwrap_or_else(|error| Err(LeaseError::new(error)))
    }
}

impl Leases {
    pub(crate) fn new(agent: Address) -> Self {
        Self { agent, held: Mutex::default() }
    }

    fn held(&self, reservation: &Reservation) -> Arc<Held> {
        let name = Reservation { units: 0, ..reservation.clone() };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MAX_LEASES && !held.contains_key(&name) {
            held.retain(|_, held| held.lease().is_open());
            if held.len() >= MAX_LEASES {
                tracing::warn!("too many keys at once: unused parts of their limits stay counted");
                held.clear();
            }
        }
        held.entry(name).or_default().clone()
    }

    /// Takes the units of a reservation.
    pub(crate) async fn reserve(&self, reservation: &Reservation) -> Result<Outcome, LeaseError> {
        let (held, units) = (self.held(reservation), reservation.units);
        let taken = held.lease().take(units, now_ms());
        if let Some(taken) = taken {
            self.renew_early(&held, reservation);
            return Ok(taken);
        }
        let turn = held.turn.clone().lock_owned().await;
        // The request before may have asked for enough.
        let taken = held.lease().take(units, now_ms());
        if let Some(taken) = taken {
            return Ok(taken);
        }
        match held.renew(&self.agent, turn, reservation.clone(), units).await {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => Err(LeaseError::new("its answer has no lease")),
            Err(error) => match held.lease().take_late(units, now_ms()) {
                Some(left) => Ok(Ok(left)),
                None => Err(error),
            },
        }
    }

    /// Asks for the next lease before this one ends, so that no request waits for it.
    fn renew_early(&self, held: &Arc<Held>, reservation: &Reservation) {
        if !held.lease().is_ending(now_ms()) {
            return;
        }
        let Ok(turn) = held.turn.clone().try_lock_owned() else { return };
        let (held, agent, reservation) = (held.clone(), self.agent.clone(), reservation.clone());
        tokio::spawn(async move { held.renew(&agent, turn, reservation, 0).await });
    }

    /// Ends a reservation.
    pub(crate) fn settle(&self, reservation: &Reservation, used: u64) {
        self.held(reservation).lease().settle(reservation.units, used);
    }

    /// Returns what is left of leases that are over; at the end, of all.
    pub(crate) async fn give_back(&self, all: bool) {
        let held: Vec<_> = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.iter().map(|(name, held)| (name.clone(), held.clone())).collect()
        };
        for (name, held) in held {
            let (is_over, is_open) = {
                let lease = held.lease();
                (lease.is_over(now_ms()), lease.is_open())
            };
            if !is_over && !all {
                continue;
            }
            if is_open {
                // Somebody else is asking already.
                let Ok(turn) = held.turn.clone().try_lock_owned() else { continue };
                if let Err(error) = held.renew(&self.agent, turn, name.clone(), 0).await {
                    tracing::debug!(error = %chain(&error), "leases could not be returned yet");
                    return;
                }
            }
            let mut known = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            // One reference here and one in the table: no request uses it.
            if Arc::strong_count(&held) == 2 && !held.lease().is_open() {
                known.remove(&name);
            }
        }
    }
}
