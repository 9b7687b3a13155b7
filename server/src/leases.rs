//! Leases of rate limits and token budgets, where these are counted by the primary site: see [`textnlp_store::lease`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use textnlp_process::Address;
use textnlp_sites::control::counters::{self, LeaseError};
use textnlp_store::lease::{Lease, Outcome};
use textnlp_store::{Reservation, now_ms};
use tokio::sync::OwnedMutexGuard;

use crate::error::chain;

/// Counters with a lease; each token of `/auth/token` has one. Beyond it the key with the most loses its leases: what
/// they held stays counted.
const MAX_LEASES: usize = 10_000;

/// The leases of this replica.
#[derive(Debug)]
pub(crate) struct Leases {
    agent: Address,
    /// By what is reserved, without the number of units.
    held: Mutex<HashMap<Reservation, Arc<KeyLease>>>,
}

#[derive(Debug, Default)]
struct KeyLease {
    lease: Mutex<Lease>,
    /// Locked by the one request that asks for the next lease.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How often there was no answer.
    failures: AtomicU64,
}

impl KeyLease {
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
            if applied.is_err() {
                held.failures.fetch_add(1, Relaxed);
            }
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

    fn held(&self, reservation: &Reservation) -> Arc<KeyLease> {
        let name = Reservation { units: 0, ..reservation.clone() };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= MAX_LEASES && !held.contains_key(&name) {
            held.retain(|_, held| held.lease().is_open());
            if held.len() >= MAX_LEASES {
                let mut counts: HashMap<&str, usize> = HashMap::new();
                for name in held.keys() {
                    *counts.entry(&name.subject).or_default() += 1;
                }
                let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(key, _)| key.to_owned());
                tracing::warn!(
                    key = most.as_deref(),
                    "too many leases at once: unused parts of this key's limits stay counted"
                );
                held.retain(|name, _| Some(&name.subject) != most.as_ref());
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
        let failures = held.failures.load(Relaxed);
        let turn = held.turn.clone().lock_owned().await;
        // The request before may have asked for enough.
        let taken = held.lease().take(units, now_ms());
        if let Some(taken) = taken {
            return Ok(taken);
        }
        let error = if held.failures.load(Relaxed) == failures {
            match held.renew(&self.agent, turn, reservation.clone(), units).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => return Err(LeaseError::new("its answer has no lease")),
                Err(error) => error,
            }
        } else {
            // Each would wait for an own timeout, one after the other.
            LeaseError::new("it did not answer the request before")
        };
        let late = held.lease().take_late(units, now_ms());
        late.map_or(Err(error), |left| Ok(Ok(left)))
    }

    /// Asks for the next lease before this one ends, so that no request waits for it.
    fn renew_early(&self, held: &Arc<KeyLease>, reservation: &Reservation) {
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
                // Another request is asking already.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use axum::extract::State;
    use axum::routing::post;
    use axum::{Json, Router};
    use camino::Utf8PathBuf;
    use textnlp_process::{Listener, Serving};
    use textnlp_store::lease::{Granted, LeaseAnswer, LeaseRequest};
    use textnlp_store::{BudgetRefusal, Database, DatabaseAt, Store, Token, Unit};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;

    /// A site agent of the primary.
    struct Agent {
        store: Store,
        granted: tokio::sync::Mutex<Granted>,
        asked: AtomicU64,
        stop: CancellationToken,
        connections: TaskTracker,
        address: Address,
        _folder: tempfile::TempDir,
    }

    async fn grant(State(agent): State<Arc<Agent>>, Json(request): Json<LeaseRequest>) -> Json<LeaseAnswer> {
        agent.asked.fetch_add(1, Ordering::SeqCst);
        let mut granted = agent.granted.lock().await;
        let leased = granted.leased(&request, now_ms());
        let answer = agent.store.lease(&request, 3, leased, now_ms()).await.unwrap();
        granted.note(&request, &answer, now_ms());
        Json(answer)
    }

    async fn agent() -> Arc<Agent> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap();
        let at = DatabaseAt::File(path("t.db"));
        let store = Store::open(&Database { at, pool_size: 1, max_overflow: 0 }).await.unwrap();
        store.prepare().await.unwrap();
        let address = Address::Unix(path("agent.sock"));
        let listener = Listener::bind(&address).await.unwrap();
        let agent = Arc::new(Agent {
            store,
            granted: Default::default(),
            asked: AtomicU64::new(0),
            stop: CancellationToken::new(),
            connections: TaskTracker::new(),
            address,
            _folder: folder,
        });
        let serving = Serving {
            header_timeout: Duration::from_secs(10),
            max_connections: 100,
            leaving: Arc::default(),
            stop: agent.stop.clone(),
            leave: agent.stop.clone(),
            connections: agent.connections.clone(),
        };
        let routes = Router::new().route("/v1/counters", post(grant)).with_state(agent.clone());
        agent.connections.spawn(listener.serve(routes, serving));
        agent
    }

    impl Agent {
        fn asked(&self) -> u64 {
            self.asked.load(Ordering::SeqCst)
        }

        async fn stop(&self) {
            self.stop.cancel();
            self.connections.close();
            self.connections.wait().await;
        }
    }

    fn of(unit: Unit, units: u64) -> Reservation {
        let (rate, key_limit) = match unit {
            Unit::Requests => (Some("1000/hour".parse().unwrap()), None),
            Unit::Tokens => (None, Some(150)),
        };
        Reservation { unit, subject: "key".to_owned(), key_limit, token: None, rate, units }
    }

    #[tokio::test]
    async fn many_requests_share_one_lease_and_its_rest_is_returned() {
        let agent = agent().await;
        let (replica, request) = (Leases::new(agent.address.clone()), of(Unit::Requests, 1));
        let taken = futures::future::join_all((0..50).map(|_| replica.reserve(&request))).await;
        assert!(taken.iter().all(|taken| matches!(taken, Ok(Ok(Some(_))))), "{taken:?}");
        assert_eq!(agent.asked(), 1);
        replica.give_back(false).await;
        assert_eq!(agent.asked(), 1, "it is not over");
        replica.give_back(true).await;
        assert_eq!((agent.asked(), replica.held.lock().unwrap().len()), (2, 0));
        let other = Leases::new(agent.address.clone());
        let left = other.reserve(&request).await.unwrap().unwrap().unwrap();
        // A unit comes back every 3.6 s.
        assert!((949..960).contains(&left.remaining), "{left:?}");
        agent.stop().await;
        assert!(matches!(other.reserve(&request).await, Ok(Ok(_))), "what is leased can be used");
        assert!(replica.reserve(&request).await.is_err());
    }

    #[tokio::test]
    async fn failure_is_shared_by_the_requests_that_waited_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("agent.sock")).unwrap();
        let socket = tokio::net::UnixListener::bind(&path).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let counted = asked.clone();
        // Closes every connection.
        let agent = tokio::spawn(async move {
            while socket.accept().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (replica, request) = (Leases::new(Address::Unix(path)), of(Unit::Requests, 1));
        let taken = futures::future::join_all((0..10).map(|_| replica.reserve(&request))).await;
        assert!(taken.iter().all(Result::is_err), "{taken:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(replica.reserve(&request).await.is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 2, "the next request asks again");
        agent.abort();
    }

    #[test]
    fn key_with_too_many_tokens_costs_no_other_key_its_leases() {
        let replica = Leases::new(Address::Unix("/nowhere.sock".into()));
        // Something to settle.
        replica.settle(&of(Unit::Tokens, 1), 0);
        for number in 0..=MAX_LEASES {
            let token = Token { jti: number.to_string(), limit: 1, expires_at_ms: 0 };
            replica.settle(&Reservation { subject: "other".into(), token: Some(token), ..of(Unit::Tokens, 1) }, 0);
        }
        let held = replica.held.lock().unwrap();
        assert!(held.len() < MAX_LEASES && held.keys().any(|name| name.subject == "key"), "{}", held.len());
    }

    #[tokio::test]
    async fn tokens_that_were_not_used_are_free_at_once() {
        let agent = agent().await;
        let replica = Leases::new(agent.address.clone());
        let tokens = |units| of(Unit::Tokens, units);
        assert!(replica.reserve(&tokens(100)).await.unwrap().is_ok());
        let refused = replica.reserve(&tokens(100)).await.unwrap();
        assert!(matches!(refused, Err(BudgetRefusal::Spent { limit: 150, left: 50, .. })), "{refused:?}");
        replica.settle(&tokens(100), 10);
        assert!(replica.reserve(&tokens(140)).await.unwrap().is_ok());
        assert!(replica.reserve(&tokens(1)).await.unwrap().is_err());
        agent.stop().await;
    }
}
