//! What the doors go by: who is primary, whether this site leads, and until when that is sure.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::control::boottime_ms;

/// What the site's watch said last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub(super) struct Lead {
    pub(super) epoch: u64,
    /// Since which epoch the primary has been that without a break.
    pub(super) since: u64,
    pub(super) primary: Option<String>,
    /// Who was it before, and since which epoch.
    pub(super) before: Option<(String, u64)>,
    /// For how long nobody else can be given this site's place, from when it was asked for.
    lease_ms: Option<u64>,
    /// Whether everything that was acknowledged is in the database.
    shown: bool,
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// To the server here.
    Here,
    /// To a site.
    To(String),
    /// Nowhere at the moment.
    Nowhere(&'static str),
}

#[derive(Debug, Default)]
struct State {
    lead: Lead,
    /// Until when this site leads for sure, by [`boottime_ms`].
    leads_until: u64,
    /// When the answer was asked for.
    asked_at: u64,
    /// When this site let go of its lead: what was asked before that counts no more.
    released_at: u64,
    /// The server here is a primary, and is all that one should be.
    is_primary: bool,
    /// Whoever copies it finds what it needs.
    takes_copies: bool,
    /// Connections that were made under what holds now end when something else does.
    here: CancellationToken,
    there: CancellationToken,
    /// Copies that follow through the door, under what holds now.
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

    /// The watch has answered what it was asked at a time.
    pub(super) fn told(&self, lead: Lead, asked_at: u64) {
        let mut state = self.state();
        if asked_at <= state.released_at {
            return;
        }
        if lead.primary != state.lead.primary {
            // Also those that wait for somebody who is primary no more.
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

    /// The watch did not answer; what it said before holds as long as it said.
    pub(super) fn not_told(&self) {
        self.look(self.state());
    }

    /// Whether the server here is a primary that may be written to, as far as it is concerned.
    pub(super) fn set_primary(&self, is_primary: bool) {
        let mut state = self.state();
        state.is_primary = is_primary;
        state.takes_copies &= is_primary;
        self.look(state);
    }

    /// Copies may be let in, as long as the server is a primary.
    pub(super) fn take_copies(&self) {
        self.state().takes_copies = true;
    }

    /// Nobody is let in here from now on, whatever was said before.
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

    /// What the watch said last.
    pub(super) fn lead(&self) -> Lead {
        self.state().lead.clone()
    }

    /// Whether this site leads for sure at this moment.
    pub(super) fn leads(&self) -> bool {
        self.state().leads_until > boottime_ms()
    }

    /// Whether the service may be let in here at this moment. Asked before every byte that passes, by a clock that goes on while we stand still.
    pub(super) fn serves(&self) -> bool {
        self.serves_now(&self.state())
    }

    fn serves_now(&self, state: &State) -> bool {
        state.is_primary && state.lead.shown && state.leads_until > boottime_ms()
    }

    /// Whether copies may be let in here.
    pub(super) fn copies_may(&self) -> bool {
        self.state().takes_copies
    }

    /// Where somebody who wants the primary goes, and what ends that.
    pub(super) fn way(&self) -> (Way, CancellationToken) {
        let state = self.state();
        match state.lead.primary.as_deref() {
            Some(primary) if primary == self.site => match self.serves_now(&state) {
                true => (Way::Here, state.here.clone()),
                false => (Way::Nowhere("this site is to lead, and does not yet, or not any more"), state.there.clone()),
            },
            Some(primary) => (Way::To(primary.to_owned()), state.there.clone()),
            None => (Way::Nowhere("nobody is known to be primary"), state.there.clone()),
        }
    }

    /// What ends when the service is not served here any more.
    pub(super) fn here(&self) -> CancellationToken {
        self.state().here.clone()
    }

    /// Counts the copies that follow the primary of the moment.
    pub(super) fn following(&self) -> Arc<AtomicUsize> {
        self.state().following.clone()
    }

    /// Whether the copy here follows the primary of the moment, and no other.
    pub(super) fn follows(&self) -> bool {
        self.state().following.load(Ordering::SeqCst) > 0
    }

    /// Changes with everything that is told.
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
    fn it_is_open_while_the_lease_lasts_the_server_is_a_primary_and_all_is_shown() {
        let gate = Gate::new("a");
        let now = boottime_ms();
        gate.told(lead("a", Some(60_000), true), now);
        assert!(gate.leads() && !gate.serves(), "its server is no primary yet");
        gate.set_primary(true);
        assert_eq!(gate.way().0, Way::Here);
        let (_, open) = gate.way();
        gate.told(lead("a", Some(60_000), false), now);
        assert!(!gate.serves() && open.is_cancelled(), "what was revoked may not be there");
        gate.told(lead("a", Some(60_000), true), now);
        // No answer of the watch ends a lease that it gave; time does, also while it says nothing.
        gate.told(lead("a", None, true), now);
        assert!(gate.serves());
        gate.told(lead("a", Some(60_000), true), now - 60_000);
        assert!(!gate.leads() && !gate.serves());
        gate.told(lead("a", Some(60_000), true), now);
        gate.told(lead("b", None, true), now);
        assert!(!gate.leads());
        assert_eq!(gate.way().0, Way::To("b".to_owned()));
    }

    #[test]
    fn who_has_let_go_leads_again_only_by_what_was_asked_afterwards() {
        let gate = Gate::new("a");
        let before = boottime_ms();
        gate.told(lead("a", Some(60_000), true), before);
        gate.set_primary(true);
        let (_, open) = gate.way();
        gate.release();
        assert!(open.is_cancelled());
        gate.told(lead("a", Some(60_000), true), before);
        assert!(!gate.leads(), "an answer that was on its way");
        while boottime_ms() <= before + 1 {
            std::hint::spin_loop();
        }
        gate.told(lead("a", Some(60_000), true), boottime_ms() + 1);
        assert!(gate.leads());
    }

    #[test]
    fn who_follows_one_primary_does_not_follow_the_next() {
        let gate = Gate::new("a");
        gate.told(lead("b", None, true), boottime_ms());
        let (of_b, (_, open)) = (gate.following(), gate.way());
        of_b.fetch_add(1, Ordering::SeqCst);
        assert!(gate.follows());
        gate.told(lead("c", None, true), boottime_ms());
        assert!(!gate.follows() && open.is_cancelled());
    }
}
