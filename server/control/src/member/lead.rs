//! The primary's part.

use super::{MOST_WAITING, Member, Peers, Refused, Tickets};
use crate::Millis;
use crate::configuration::{Configuration, Incarnation, Site};
use crate::log::{Entry, Position, Write};
use crate::message::{Effect, Message, Outcome, Peer};

/// State that only a primary has.
#[derive(Debug, Clone)]
pub(super) struct Leading {
    /// The first epoch of this leadership: replies to earlier epochs are ignored.
    since: u64,
    pub(super) peers: Peers,
    /// A change requested from the witness. Until it is answered, both configurations count.
    change: Option<(Configuration, Option<Millis>)>,
    /// Position and ticket of writes that wait, in order.
    pub(super) tickets: Tickets,
    handing: Option<Handover>,
}

/// A handover that waits until its target has everything.
#[derive(Debug, Clone)]
struct Handover {
    to: Site,
    /// Since when new writes are refused for it.
    since: Millis,
    /// See [`Configuration::held`].
    held: bool,
}

impl Leading {
    /// What is known of this incarnation of a site's disk.
    fn peer(&self, site: &Site, life: Incarnation) -> Option<&Progress> {
        self.peers.get(site).filter(|peer| peer.incarnation == Some(life))
    }

    /// Whether this primary itself requested a configuration from the witness.
    pub(super) fn asked_for(&self, configuration: &Configuration) -> bool {
        self.change.as_ref().is_some_and(|(wanted, _)| wanted == configuration)
    }
}

/// How far another site is.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub(super) incarnation: Option<Incarnation>,
    /// It has everything up to here on disk.
    pub(super) stored: u64,
    /// The next index to send.
    next: u64,
    sent: Option<Millis>,
    /// When it last answered, by our clock.
    pub(super) answered: Option<Millis>,
    /// When we sent the message it last answered: its lease starts there.
    stamp: Option<Millis>,
    /// Since when it is a member without a break.
    member_since: Option<Millis>,
    /// Since when it lacks entries.
    pub(super) behind_since: Option<Millis>,
}

impl Member {
    pub(super) fn begin_to_lead(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let since = self.configuration.as_ref().map_or(0, |c| c.epoch);
        let next = self.log.last().index + 1;
        let fresh = super::lead::Progress { next, answered: Some(now), ..Progress::default() };
        let peers = self.others().map(|site| (site.clone(), fresh.clone())).collect();
        self.leading = Some(Leading { since, peers, change: None, tickets: Tickets::new(), handing: None });
        self.claim = None;
        self.changed(now, effects);
        self.send_all(now, effects);
    }

    /// Handles a new configuration in which this site is still primary.
    pub(super) fn changed(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let (Some(leading), Some(configuration)) = (&mut self.leading, &self.configuration) else { return };
        if leading.change.as_ref().is_some_and(|(wanted, _)| wanted.epoch <= configuration.epoch) {
            leading.change = None;
        }
        for (site, peer) in &mut leading.peers {
            let is = configuration.members.contains_key(site);
            peer.member_since = is.then(|| peer.member_since.unwrap_or(now));
        }
        self.advance(now, effects);
    }

    pub(super) fn lead(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let due: Vec<Site> = match &self.leading {
            Some(leading) => {
                leading.peers.iter().filter(|(_, p)| self.is_due(p.sent, now)).map(|(s, _)| s.clone()).collect()
            }
            None => return,
        };
        for site in due {
            if let Some(peer) = self.leading.as_mut().and_then(|l| l.peers.get_mut(&site))
                && peer.incarnation.is_some()
            {
                // Resend whatever is not answered yet.
                peer.next = peer.next.min(peer.stored + 1);
            }
            self.send(&site, now, effects);
        }
        let is_held = self.configuration.as_ref().is_some_and(|configuration| configuration.holds(&self.settings.home));
        if self.settings.failback && !is_held && self.settings.home != self.settings.site {
            let home = self.settings.home.clone();
            let rested = |peer: &Progress| peer.member_since.is_some_and(|at| now - at >= 2 * self.settings.grace);
            let is_well = self.leading.as_ref().and_then(|l| l.peers.get(&home)).is_some_and(rested);
            if is_well {
                // A handover that is refused now is tried again at the next tick.
                let _ = self.begin_to_hand_over(now, &home, false);
            }
        }
        self.ask_for_changes(now, effects);
    }

    /// Hands leadership over to another member. With `hold` it stays there: see [`Configuration::held`].
    pub fn hand_over(&mut self, now: Millis, to: &Site, hold: bool) -> Result<Vec<Effect>, Refused> {
        self.begin_to_hand_over(now, to, hold)?;
        let mut effects = Vec::new();
        self.ask_for_changes(now, &mut effects);
        Ok(effects)
    }

    fn begin_to_hand_over(&mut self, now: Millis, to: &Site, hold: bool) -> Result<(), Refused> {
        if *to == self.settings.site {
            return Err(Refused::Already);
        }
        self.writable(now)?;
        let hears = self.witness_heard.is_some_and(|at| now.saturating_sub(at) < self.settings.grace);
        if !hears {
            return Err(Refused::NoWitness);
        }
        let last = self.log.last().index;
        let Some(leading) = &mut self.leading else { return Err(Refused::NotPrimary { primary: None }) };
        let is_member = self.configuration.as_ref().is_some_and(|c| c.members.contains_key(to));
        let held = *to != self.settings.home
            && (hold || self.configuration.as_ref().is_some_and(|c| c.holds(&self.settings.home)));
        // A member with few missing entries catches up quickly while new writes are refused.
        if !is_member || leading.peers.get(to).is_none_or(|peer| peer.stored + 256 < last) {
            return Err(Refused::NotInSync { site: to.clone() });
        }
        leading.handing = Some(Handover { to: to.clone(), since: now, held });
        Ok(())
    }

    /// The other sites that may take over: the members, and those of a requested change. The witness may have granted
    /// it, and its answer may be lost.
    fn counted<'a>(
        &'a self,
        leading: &'a Leading,
        configuration: &'a Configuration,
    ) -> impl Iterator<Item = (&'a Site, &'a Incarnation)> {
        let wanted = leading.change.iter().flat_map(|(wanted, _)| &wanted.members);
        configuration.members.iter().chain(wanted).filter(|(site, _)| **site != self.settings.site)
    }

    /// Whether a write can be acknowledged now.
    pub fn writable(&self, now: Millis) -> Result<(), Refused> {
        let not = || Refused::NotPrimary { primary: self.configuration.as_ref().map(|c| c.primary.clone()) };
        let (Some(leading), Some(configuration)) = (&self.leading, &self.configuration) else { return Err(not()) };
        if let Some(Handover { to, .. }) = &leading.handing {
            return Err(Refused::HandingOver { to: to.clone() });
        }
        if configuration.members.len() < self.settings.fewest() {
            return Err(Refused::Alone);
        }
        if let Some(in_ms) = self.granted_until.checked_sub(now).filter(|left| *left > 0) {
            return Err(Refused::OldLease { in_ms });
        }
        for (site, life) in self.counted(leading, configuration) {
            let stamp = leading.peer(site, *life).and_then(|peer| peer.stamp);
            if stamp.is_none_or(|stamp| now.saturating_sub(stamp) >= self.lease()) {
                let silent_ms = stamp.map_or(now.saturating_sub(self.heard), |stamp| now.saturating_sub(stamp));
                return Err(Refused::NoLease { site: site.clone(), silent_ms });
            }
        }
        Ok(())
    }

    /// Until when no other site can be primary, whatever happens; `None` where this site is not primary, or not for
    /// certain. A database outside of the log may be written until then: unlike a write of the log, this needs no other
    /// site in sync.
    ///
    /// The witness grants leadership to another site only a grace after it last heard from the primary, and the new
    /// primary waits until the lease that it granted to its predecessor has ended. So either the witness's last answer
    /// is recent, or those of all sites that may take over are.
    pub fn leads_until(&self, now: Millis) -> Option<Millis> {
        let (Some(leading), Some(configuration)) = (&self.leading, &self.configuration) else { return None };
        // Only the witness's answer tells whether leadership was handed over, and it may be lost.
        let gives_away = leading.change.as_ref().is_some_and(|(wanted, _)| wanted.primary != configuration.primary);
        if gives_away || leading.handing.is_some() || self.granted_until.max(self.followed_until) > now {
            return None;
        }
        let answered = |(site, life): (&Site, &Incarnation)| leading.peer(site, *life).and_then(|peer| peer.stamp);
        let by_members =
            self.counted(leading, configuration).map(answered).reduce(|one, other| Some(one?.min(other?))).flatten();
        let until = by_members.max(self.witness_heard)? + self.lease();
        (until > now).then_some(until)
    }

    pub(super) fn put(
        &mut self,
        now: Millis,
        ticket: u64,
        writes: Vec<Write>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let epoch = self.configuration.as_ref().map_or(0, |c| c.epoch);
        let at = Position { epoch, index: self.log.last().index + 1 };
        let Some(leading) = &mut self.leading else { return Err(Refused::NotPrimary { primary: None }) };
        if leading.tickets.len() >= MOST_WAITING {
            return Err(Refused::Full(leading.tickets.len()));
        }
        leading.tickets.push_back((at, ticket));
        for peer in leading.peers.values_mut() {
            peer.behind_since.get_or_insert(now);
        }
        let entry = Entry { at, writes };
        self.log.push(entry.clone());
        effects.push(Effect::Append(vec![entry]));
        self.send_all(now, effects);
        // With no other member there is no reply to wait for.
        self.advance(now, effects);
        Ok(())
    }

    fn send_all(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let others: Vec<Site> = self.others().cloned().collect();
        for site in others {
            self.send(&site, now, effects);
        }
    }

    fn send(&mut self, site: &Site, now: Millis, effects: &mut Vec<Effect>) {
        let (Some(leading), Some(configuration)) = (&mut self.leading, &self.configuration) else { return };
        let Some(peer) = leading.peers.get_mut(site) else { return };
        peer.sent = Some(now);
        let configuration = configuration.clone();
        let message = match self.log.position(peer.next.saturating_sub(1)) {
            Some(previous) => {
                let entries = self.log.after(previous.index);
                peer.next = previous.index + 1 + entries.len() as u64;
                Message::Append { configuration, previous, entries, committed: self.committed, stamp: now }
            }
            None => {
                let snapshot = self.log.base().clone();
                peer.next = snapshot.at.index + 1;
                Message::Install { configuration, snapshot, stamp: now }
            }
        };
        effects.push(Effect::Send(Peer::Site(site.clone()), message));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn stored(
        &mut self,
        now: Millis,
        site: &Site,
        epoch: u64,
        incarnation: Incarnation,
        upto: u64,
        stamp: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let last = self.log.last().index;
        let Some(peer) = self.answer(now, site, epoch, incarnation, stamp) else { return };
        peer.stored = peer.stored.max(upto.min(last));
        if peer.stored == last {
            peer.behind_since = None;
        }
        let more = peer.next <= last;
        if more {
            self.send(site, now, effects);
        }
        self.advance(now, effects);
        self.ask_for_changes(now, effects);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn behind(
        &mut self,
        now: Millis,
        site: &Site,
        epoch: u64,
        incarnation: Incarnation,
        hint: u64,
        stamp: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let Some(peer) = self.answer(now, site, epoch, incarnation, stamp) else { return };
        peer.behind_since.get_or_insert(now);
        if hint + 1 < peer.next {
            peer.next = hint + 1;
            self.send(site, now, effects);
        }
    }

    /// Handles what every reply contains: the sender is alive, and its lease.
    fn answer(
        &mut self,
        now: Millis,
        site: &Site,
        epoch: u64,
        incarnation: Incarnation,
        stamp: Millis,
    ) -> Option<&mut Progress> {
        let known = self.configuration.as_ref()?.epoch;
        let leading = self.leading.as_mut()?;
        if epoch < leading.since || epoch > known {
            return None;
        }
        let peer = leading.peers.get_mut(site)?;
        if peer.incarnation != Some(incarnation) {
            // Another incarnation: nothing is known about it, and a late reply of the old one must not count for it.
            if peer.incarnation.is_some() && peer.stamp.is_some_and(|before| before > stamp) {
                return None;
            }
            (peer.incarnation, peer.stored, peer.stamp) = (Some(incarnation), 0, None);
        }
        peer.answered = Some(now);
        peer.stamp = peer.stamp.max(Some(stamp));
        Some(peer)
    }

    /// Acknowledges entries that every member has on disk.
    pub(super) fn advance(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let (Some(leading), Some(configuration)) = (&self.leading, &self.configuration) else { return };
        // A primary without other members acknowledges nothing that would be lost with its disk.
        if configuration.members.len() < self.settings.fewest() || self.granted_until > now {
            return;
        }
        let has = |(site, life): (&Site, &Incarnation)| leading.peer(site, *life).map_or(0, |peer| peer.stored);
        let last = self.log.last().index;
        let upto = self.counted(leading, configuration).map(has).min().unwrap_or(last).min(last);
        if upto > self.committed {
            self.commit(upto, effects);
            // The others apply it at once, not only with the next heartbeat.
            self.send_all(now, effects);
        }
        let Some(leading) = &mut self.leading else { return };
        while let Some((at, ticket)) = leading.tickets.front().copied().filter(|(at, _)| at.index <= self.committed) {
            leading.tickets.pop_front();
            effects.push(Effect::Answer(ticket, Outcome::Acknowledged(at)));
        }
    }

    /// Requests a due change from the witness: one at a time, repeated until it is answered.
    fn ask_for_changes(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let due = self.due_change(now);
        let (every, site, incarnation) = (self.settings.every, self.settings.site.clone(), self.settings.incarnation);
        let seen = self.witness_clock.unwrap_or(0);
        let Some(leading) = &mut self.leading else { return };
        let change = match (&mut leading.change, due) {
            (Some(there), _) => there,
            (none, Some(due)) => none.insert((due, None)),
            (None, None) => return,
        };
        if change.1.is_none_or(|sent| now - sent >= (every / 2).max(1)) {
            change.1 = Some(now);
            let message = Message::Change { by: site, incarnation, to: change.0.clone(), seen };
            effects.push(Effect::Send(Peer::Witness, message));
        }
    }

    fn due_change(&mut self, now: Millis) -> Option<Configuration> {
        let configuration = self.configuration.as_ref()?;
        let last = self.log.last().index;
        let grace = self.settings.grace;
        let leading = self.leading.as_mut()?;
        if leading.change.is_some() {
            return None;
        }
        if let Some(Handover { to, since, held }) = leading.handing.clone() {
            let stored = leading.peers.get(&to).map_or(0, |peer| peer.stored);
            if configuration.members.contains_key(&to) && self.committed == last && stored == last {
                return Some(Configuration { held, ..configuration.given_to(&to) });
            }
            if now - since >= grace {
                // Writes have waited long enough: we stay.
                leading.handing = None;
            }
        }
        let is_new = |site: &Site, p: &super::lead::Progress| {
            let life = p.incarnation?;
            let well = p.answered.is_some_and(|at| now - at < grace / 2);
            (!configuration.has(site, life) && well && p.stored == last).then_some(life)
        };
        if let Some((site, life)) = leading.peers.iter().find_map(|(site, p)| Some((site, is_new(site, p)?))) {
            return Some(configuration.with(site, life));
        }
        // The last other member is never removed: it is the only one that may take over.
        if configuration.members.len() > 2 {
            let silent = |site: &&Site| {
                let peer = leading.peers.get(*site);
                let life = configuration.members.get(*site).copied();
                peer.is_none_or(|p| {
                    p.answered.is_none_or(|at| now - at >= grace) || (p.incarnation.is_some() && p.incarnation != life)
                })
            };
            let gone = configuration.members.keys().filter(|site| **site != self.settings.site).find(silent);
            return gone.map(|site| configuration.without(site));
        }
        None
    }
}
