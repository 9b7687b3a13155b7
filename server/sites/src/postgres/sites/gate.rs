//! The state that decides about connections: which site is primary, whether it is this one, and until when that is
//! certain.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::boottime_ms;

/// The last answer of the site agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct Lead {
    pub(super) epoch: u64,
    /// Since which epoch the primary has been that without a break.
    pub(super) since: u64,
    pub(super) primary: Option<String>,
    /// The previous primary, and since which epoch.
    pub(super) before: Option<(String, u64)>,
    /// For how long no other site can become primary, from the time of the request, in milliseconds.
    lease_ms: Option<u64>,
    /// Whether everything that was acknowledged is in the database.
    shown: bool,
}

/// The route of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// To the server here.
    Here,
    /// To a site.
    To(String),
    /// No route at the moment.
    Nowhere(&'static str),
}

#[derive(Debug, Default)]
struct State {
    lead: Lead,
    /// Until when this site leads for certain, by [`boottime_ms`].
    leads_until: u64,
    /// When the answer was requested.
    asked_at: u64,
    /// When this site released leadership: answers requested before are ignored.
    released_at: u64,
    /// The server here is a primary, and is all that one should be.
    is_primary: bool,
    /// The server is ready for replicas.
    accepts_replicas: bool,
    /// Cancelled to end connections made under the current state.
    here: CancellationToken,
    there: CancellationToken,
    /// Number of connected replicas under the current state.
    following: Arc<AtomicUsize>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    site: String,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Gate {
    pub(super) fn new(site: &str) -> Arc<Self> {
        Arc::new(Self { site: site.to_owned(), state: Mutex::default(), changed: watch::Sender::new(()) })
    }

    /// Handles an answer of the site agent, and the time of its request.
    pub(super) fn update(&self, lead: Lead, asked_at: u64) {
        let mut state = self.state();
        if asked_at <= state.released_at {
            return;
        }
        if lead.primary != state.lead.primary {
            // Also ends connections waiting for a former primary.
            std::mem::take(&mut state.there).cancel();
            state.following = Arc::default();
        }
        let leads = lead.primary.as_deref() == Some(&self.site);
        state.leads_until = lead.lease_ms.filter(|_| leads).map_or(state.leads_until, |ms| asked_at + ms);
        if !leads {
            state.leads_until = 0;
        }
        (state.lead, state.asked_at) = (lead, asked_at);
        self.look(state);
    }

    /// The site agent did not answer; its last answer holds until its lease ends.
    pub(super) fn not_told(&self) {
        self.look(self.state());
    }

    /// Sets whether the local server is a writable primary.
    pub(super) fn set_primary(&self, is_primary: bool) {
        let mut state = self.state();
        state.is_primary = is_primary;
        state.accepts_replicas &= is_primary;
        self.look(state);
    }

    /// Accepts replicas, as long as the server is a primary.
    pub(super) fn take_copies(&self) {
        self.state().accepts_replicas = true;
    }

    /// Accepts no client from now on, whatever lease was granted.
    pub(super) fn release(&self) {
        let mut state = self.state();
        (state.leads_until, state.released_at) = (0, boottime_ms());
        self.look(state);
    }

    fn look(&self, mut state: MutexGuard<'_, State>) {
        if !self.serves_now(&state) {
            std::mem::take(&mut state.here).cancel();
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// The last answer of the site agent.
    pub(super) fn lead(&self) -> Lead {
        self.state().lead.clone()
    }

    /// Whether this site leads for certain now.
    pub(super) fn leads(&self) -> bool {
        self.state().leads_until > boottime_ms()
    }

    /// Whether local clients may be served now. Checked before relaying any bytes, by a clock that includes suspended
    /// time.
    pub(super) fn serves(&self) -> bool {
        self.serves_now(&self.state())
    }

    fn serves_now(&self, state: &State) -> bool {
        state.is_primary && state.lead.shown && state.leads_until > boottime_ms()
    }

    /// Whether replicas may connect here.
    pub(super) fn copies_may(&self) -> bool {
        self.state().accepts_replicas
    }

    /// The route to the primary, and the token that ends it.
    pub(super) fn way(&self) -> (Route, CancellationToken) {
        let state = self.state();
        match state.lead.primary.as_deref() {
            Some(primary) if primary == self.site => match self.serves_now(&state) {
                true => (Route::Here, state.here.clone()),
                false => (
                    Route::Nowhere("this site is the designated primary, but not active yet or no longer active"),
                    state.there.clone(),
                ),
            },
            Some(primary) => (Route::To(primary.to_owned()), state.there.clone()),
            None => (Route::Nowhere("no primary is known"), state.there.clone()),
        }
    }

    /// The token that is cancelled when clients are no longer served here.
    pub(super) fn here(&self) -> CancellationToken {
        self.state().here.clone()
    }

    /// The counter of replicas connected to the current primary.
    pub(super) fn following(&self) -> Arc<AtomicUsize> {
        self.state().following.clone()
    }

    /// Whether the local replica follows the current primary, and no other.
    pub(super) fn follows(&self) -> bool {
        self.state().following.load(Ordering::SeqCst) > 0
    }

    /// Notifies about every change.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(primary: &str, lease_ms: Option<u64>, shown: bool) -> Lead {
        Lead { epoch: 3, since: 2, primary: Some(primary.to_owned()), before: None, lease_ms, shown }
    }

    #[test]
    fn gate_is_open_while_the_lease_is_valid_and_the_server_is_primary() {
        let gate = Gate::new("a");
        let now = boottime_ms();
        gate.update(lead("a", Some(60_000), true), now);
        assert!(gate.leads() && !gate.serves(), "its server is no primary yet");
        gate.set_primary(true);
        assert_eq!(gate.way().0, Route::Here);
        let (_, open) = gate.way();
        gate.update(lead("a", Some(60_000), false), now);
        assert!(!gate.serves() && open.is_cancelled(), "what was revoked may not be there");
        gate.update(lead("a", Some(60_000), true), now);
        // No answer of the watch ends a lease that it gave; time does, also while it says nothing.
        gate.update(lead("a", None, true), now);
        assert!(gate.serves());
        gate.update(lead("a", Some(60_000), true), now - 60_000);
        assert!(!gate.leads() && !gate.serves());
        gate.update(lead("a", Some(60_000), true), now);
        gate.update(lead("b", None, true), now);
        assert!(!gate.leads());
        assert_eq!(gate.way().0, Route::To("b".to_owned()));
    }

    #[test]
    fn released_gate_reopens_only_with_a_newer_lease() {
        let gate = Gate::new("a");
        let before = boottime_ms();
        gate.update(lead("a", Some(60_000), true), before);
        gate.set_primary(true);
        let (_, open) = gate.way();
        gate.release();
        assert!(open.is_cancelled());
        gate.update(lead("a", Some(60_000), true), before);
        assert!(!gate.leads(), "an answer that was on its way");
        while boottime_ms() <= before + 1 {
            std::hint::spin_loop();
        }
        gate.update(lead("a", Some(60_000), true), boottime_ms() + 1);
        assert!(gate.leads());
    }

    #[test]
    fn replica_of_one_primary_does_not_follow_the_next() {
        let gate = Gate::new("a");
        gate.update(lead("b", None, true), boottime_ms());
        let (of_b, (_, open)) = (gate.following(), gate.way());
        of_b.fetch_add(1, Ordering::SeqCst);
        assert!(gate.follows());
        gate.update(lead("c", None, true), boottime_ms());
        assert!(!gate.follows() && open.is_cancelled());
    }
}
