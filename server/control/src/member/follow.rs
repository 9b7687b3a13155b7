//! The follower's part.

use super::{Claim, Member};
use crate::Millis;
use crate::configuration::{Configuration, Site};
use crate::log::{Entry, Position, Snapshot};
use crate::message::{Effect, Message, Peer};

impl Member {
    /// Whether the sender is the primary, as far as this site knows; if so, records that it was heard.
    pub(super) fn follows(
        &mut self,
        now: Millis,
        from: &Site,
        configuration: &Configuration,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if let Some(known) = &self.configuration
            && known.epoch > configuration.epoch
        {
            let newer = Message::Newer { configuration: known.clone(), let_go: false };
            effects.push(Effect::Send(Peer::Site(from.clone()), newer));
            return false;
        }
        self.adopt(now, configuration.clone(), effects);
        let leads = self.configuration.as_ref().is_some_and(|c| c.primary == *from) && *from != self.settings.site;
        if leads {
            self.heard = now;
            self.granted_until = now + self.settings.grace;
            self.followed_until = self.granted_until;
        }
        leads
    }

    pub(super) fn append(
        &mut self,
        from: &Site,
        previous: Position,
        entries: Vec<Entry>,
        committed: u64,
        stamp: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let base = self.log.base().at;
        let there = self.log.position(previous.index);
        // Entries in our snapshot are acknowledged, so the primary has the same ones.
        if previous.index >= base.index && there != Some(previous) {
            let last = self.log.last();
            let hint = match there {
                None => last.index,
                Some(other) => {
                    // Another primary's tail: the whole epoch is skipped at once.
                    let of_epoch = self.log.entries().iter().find(|entry| entry.at.epoch == other.epoch);
                    of_epoch.map_or(base.index, |first| first.at.index - 1).max(base.index)
                }
            };
            let answer = Message::Behind { epoch: self.epoch(), incarnation: self.settings.incarnation, hint, stamp };
            return effects.push(Effect::Send(Peer::Site(from.clone()), answer));
        }
        let upto = previous.index + entries.len() as u64;
        let new: Vec<Entry> = entries
            .into_iter()
            .filter(|entry| entry.at.index > base.index)
            .skip_while(|entry| self.log.position(entry.at.index) == Some(entry.at))
            .collect();
        if let Some(first) = new.first() {
            let after = first.at.index - 1;
            if after < self.committed {
                // This would remove acknowledged entries. A correct primary never asks for that, so nothing is changed.
                return;
            }
            if self.log.last().index > after {
                let entries = self.log.truncate(after);
                effects.push(Effect::Withdraw { after, entries });
            }
            new.iter().for_each(|entry| self.log.push(entry.clone()));
            effects.push(Effect::Append(new));
        }
        self.answer_stored(from, upto.max(base.index), stamp, effects);
        self.commit(committed.min(upto), effects);
    }

    pub(super) fn install(&mut self, from: &Site, snapshot: Snapshot, stamp: Millis, effects: &mut Vec<Effect>) {
        let upto = snapshot.at.index;
        if self.committed < upto {
            let kept = self.log.position(upto) == Some(snapshot.at);
            if !kept {
                let tail = self.log.install(snapshot.clone());
                let is_in = |entry: &Entry| entry.writes.iter().all(|w| snapshot.table.get(&w.key) == w.value.as_ref());
                let aside = tail.into_iter().filter(|e| e.at.index > self.committed && !is_in(e)).collect();
                self.table = snapshot.table.clone();
                self.committed = upto;
                effects.push(Effect::Install { snapshot, aside });
                effects.push(Effect::Committed(upto));
            } else {
                self.commit(upto, effects);
            }
        }
        self.answer_stored(from, upto, stamp, effects);
    }

    fn answer_stored(&self, to: &Site, upto: u64, stamp: Millis, effects: &mut Vec<Effect>) {
        let answer = Message::Stored { epoch: self.epoch(), incarnation: self.settings.incarnation, upto, stamp };
        effects.push(Effect::Send(Peer::Site(to.clone()), answer));
    }

    /// Asks the witness for leadership while the primary is silent. Sites earlier in the order ask earlier.
    pub(super) fn request_leadership(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let Some(configuration) = &self.configuration else { return };
        if !self.is_member() || !self.fit || configuration.primary == self.settings.site {
            self.claim = None;
            return;
        }
        let rank = self.settings.sites.iter().position(|site| *site == self.settings.site).unwrap_or_default() as u64;
        let wait = self.settings.grace + rank * self.settings.every / 2;
        let silent = now.saturating_sub(self.heard) >= wait;
        match &self.claim {
            Some(claim) if claim.told => {}
            Some(_) if !silent => self.claim = None,
            None if silent && self.settings.automatic => self.claim = Some(Claim::default()),
            _ => {}
        }
        let (site, incarnation) = (self.settings.site.clone(), self.settings.incarnation);
        let seen = self.witness_clock.unwrap_or(0);
        let held = configuration.holds(&self.settings.home) && site != self.settings.home;
        let to = Configuration { held, ..configuration.taken_by(&site) };
        let due = self.claim.is_some_and(|claim| self.is_due(claim.sent, now));
        if let (true, Some(claim)) = (due, &mut self.claim) {
            claim.sent = Some(now);
            effects.push(Effect::Send(Peer::Witness, Message::Change { by: site, incarnation, to, seen }));
        }
    }

    fn epoch(&self) -> u64 {
        self.configuration.as_ref().map_or(0, |c| c.epoch)
    }
}
