//! A site's part: it is primary, follows, or is an outsider until it has caught up.

mod follow;
mod lead;
mod overview;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::configuration::{Configuration, Incarnation, Site};
use crate::log::{Log, Position, Table, Write, apply};
use crate::message::{Effect, Message, Outcome, Peer, Refusal};
use crate::{DRIFT, Millis};

pub use overview::{MemberRole, Overview, PeerOverview};

/// The settings of a site.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The own site.
    pub site: Site,
    /// The incarnation of its disk.
    pub incarnation: Incarnation,
    /// All sites, including this one, in the order in which they ask for leadership.
    pub sites: Vec<Site>,
    /// The site that is primary in normal operation.
    pub home: Site,
    /// Between two heartbeats.
    pub every: Millis,
    /// A shorter silence triggers nothing.
    pub grace: Millis,
    /// Log entries retained for followers that were briefly away. A follower that was away for longer receives the
    /// table.
    pub kept: u64,
    /// Whether the site asks for leadership without a command when the primary is lost.
    pub automatic: bool,
    /// Whether the home site gets leadership back without a command.
    pub failback: bool,
    /// Whether a site without other members may acknowledge writes. This is safe where the data is stored elsewhere and
    /// nothing in the log has to outlive a disk.
    pub sole: bool,
}

impl Settings {
    /// The minimum number of sites that store an acknowledged write.
    fn fewest(&self) -> usize {
        if self.sole { 1 } else { 2 }
    }
}

/// The state that survives a restart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// The last known configuration.
    pub configuration: Option<Configuration>,
    /// The log.
    pub log: Log,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Refused {
    /// Another site is primary, or none is known.
    #[error("this site is not the primary{}", .primary.as_ref().map_or(String::new(), |site| format!("; {site} is")))]
    NotPrimary {
        /// The primary, as far as known.
        primary: Option<Site>,
    },
    /// No other site has everything, so a write could be lost with this one.
    #[error("no other site is in sync: a write would be lost with this site")]
    Alone,
    /// A member has not answered for so long that it may have taken over.
    #[error("{site} has not answered for {silent_ms} ms and may be the primary now")]
    NoLease {
        /// Which member.
        site: Site,
        /// For how long.
        silent_ms: Millis,
    },
    /// The site that was primary before may still believe that it is.
    #[error("the lease of the previous primary ends in {in_ms} ms")]
    OldLease {
        /// How long still.
        in_ms: Millis,
    },
    /// Leadership is being handed over to another site.
    #[error("this site is handing over the primary role to {to}")]
    HandingOver {
        /// The target.
        to: Site,
    },
    /// More writes wait than are allowed to.
    #[error("{0} writes are already queued")]
    Full(usize),
    /// A site that lacks acknowledged entries cannot become primary.
    #[error("{site} is not in sync")]
    NotInSync {
        /// Which.
        site: Site,
    },
    /// The data that this site stores outside of the log lacks what others have.
    #[error("the database of {site} lacks data of the primary's, or may lack it")]
    NotFit {
        /// Which.
        site: Site,
    },
    /// Leadership cannot be handed over without the witness.
    #[error("the witness does not answer")]
    NoWitness,
    /// The site is primary already.
    #[error("this site is already the primary")]
    Already,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Member {
    settings: Settings,
    configuration: Option<Configuration>,
    /// The primary of the previous configuration, where it was another site.
    before: Option<Site>,
    log: Log,
    committed: u64,
    table: Table,
    /// When the primary of this configuration was last heard, or when this site started.
    heard: Millis,
    /// Until then a primary before us may believe in a lease that we gave.
    granted_until: Millis,
    /// The same for data led outside of the log, which learns of a new configuration later.
    followed_until: Millis,
    witness_heard: Option<Millis>,
    witness_clock: Option<Millis>,
    renewed: Option<Millis>,
    claim: Option<Claim>,
    refusal: Option<Refusal>,
    leading: Option<lead::Leading>,
    /// Whether the data outside of the log is complete enough to lead.
    fit: bool,
}

/// A request for leadership.
#[derive(Debug, Clone, Copy, Default)]
struct Claim {
    /// An operator requested it.
    told: bool,
    sent: Option<Millis>,
}

/// The most writes that wait to be acknowledged.
const MOST_WAITING: usize = 1024;

impl Member {
    /// Starts from the state on disk. A restarted site assumes that it granted a lease just before.
    pub fn new(settings: Settings, state: State, now: Millis) -> (Self, Vec<Effect>) {
        let committed = state.log.base().at.index;
        let table = state.log.base().table.clone();
        let granted_until = now + settings.grace;
        let mut member = Self {
            settings,
            configuration: state.configuration,
            before: None,
            log: state.log,
            committed,
            table,
            heard: now,
            granted_until,
            followed_until: granted_until,
            witness_heard: None,
            witness_clock: None,
            renewed: None,
            claim: None,
            refusal: None,
            leading: None,
            fit: true,
        };
        let mut effects = Vec::new();
        if member.is_primary() {
            member.begin_to_lead(now, &mut effects);
        }
        (member, effects)
    }

    /// Time has passed. To be called several times per heartbeat.
    pub fn tick(&mut self, now: Millis) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.is_due(self.renewed, now) {
            self.renewed = Some(now);
            effects.push(Effect::Send(
                Peer::Witness,
                Message::Renew {
                    site: self.settings.site.clone(),
                    incarnation: self.settings.incarnation,
                    configuration: self.configuration.clone(),
                    stamp: now,
                },
            ));
        }
        if self.leading.is_some() {
            self.lead(now, &mut effects);
        } else {
            self.request_leadership(now, &mut effects);
        }
        effects
    }

    /// Handles a message.
    pub fn receive(&mut self, now: Millis, from: &Peer, message: Message) -> Vec<Effect> {
        let mut effects = Vec::new();
        match (from, message) {
            (Peer::Witness, Message::Holds { configuration, stamp, clock, refusal }) => {
                self.witness_clock = Some(clock);
                if let Some(stamp) = stamp {
                    self.witness_heard = self.witness_heard.max(Some(stamp));
                }
                self.refusal = refusal;
                if let Some(configuration) = configuration {
                    self.adopt(now, configuration, &mut effects);
                }
            }
            (Peer::Site(site), Message::Append { configuration, previous, entries, committed, stamp })
                if self.follows(now, site, &configuration, &mut effects) =>
            {
                self.append(site, previous, entries, committed, stamp, &mut effects);
            }
            (Peer::Site(site), Message::Install { configuration, snapshot, stamp })
                if self.follows(now, site, &configuration, &mut effects) =>
            {
                self.install(site, snapshot, stamp, &mut effects);
            }
            (Peer::Site(site), Message::Stored { epoch, incarnation, upto, stamp }) => {
                self.stored(now, site, epoch, incarnation, upto, stamp, &mut effects);
            }
            (Peer::Site(site), Message::Behind { epoch, incarnation, hint, stamp }) => {
                self.behind(now, site, epoch, incarnation, hint, stamp, &mut effects);
            }
            (Peer::Site(site), Message::Newer { configuration, let_go }) => {
                let told = configuration.epoch;
                self.adopt(now, configuration, &mut effects);
                // A former primary that reports this configuration holds no lease any more.
                let holds = self.configuration.as_ref().is_some_and(|c| c.epoch == told);
                if holds && self.before.as_ref() == Some(site) {
                    self.granted_until = now;
                    if let_go {
                        self.followed_until = now;
                    }
                }
            }
            _ => {}
        }
        effects
    }

    /// Puts writes into the log. The ticket is answered by an [`Effect::Answer`].
    pub fn write(&mut self, now: Millis, ticket: u64, writes: Vec<Write>) -> Result<Vec<Effect>, Refused> {
        self.writable(now)?;
        let mut effects = Vec::new();
        self.put(now, ticket, writes, &mut effects)?;
        Ok(effects)
    }

    /// An operator's request that this site becomes primary. The witness still has to grant it.
    pub fn claim(&mut self, now: Millis) -> Result<Vec<Effect>, Refused> {
        if self.is_primary() {
            return Err(Refused::Already);
        }
        if !self.is_member() {
            return Err(Refused::NotInSync { site: self.settings.site.clone() });
        }
        if !self.fit {
            return Err(Refused::NotFit { site: self.settings.site.clone() });
        }
        self.claim = Some(Claim { told: true, sent: None });
        let mut effects = Vec::new();
        self.request_leadership(now, &mut effects);
        Ok(effects)
    }

    /// Cancels the request.
    pub fn give_up_claim(&mut self) {
        self.claim = None;
    }

    /// Sets whether the data outside of the log is complete enough to become primary. Initially it is.
    pub fn set_fit(&mut self, fit: bool) {
        self.fit = fit;
    }

    /// The table as far as everything in it is acknowledged.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The writes acknowledged after an index, in order; the whole table where the log does not reach back that far.
    pub fn acknowledged_after(&self, index: u64) -> Vec<Write> {
        let base = self.log.base().at.index;
        if index < base {
            let put =
                |(key, value): (&String, &serde_json::Value)| Write { key: key.clone(), value: Some(value.clone()) };
            return self.table.iter().map(put).collect();
        }
        (index + 1..=self.committed).filter_map(|index| self.log.entry(index)).flat_map(|e| e.writes.clone()).collect()
    }

    /// The last acknowledged position.
    pub fn committed(&self) -> Position {
        self.log.position(self.committed).unwrap_or(self.log.base().at)
    }

    /// The configuration in force, as far as known.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.configuration.as_ref()
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Whether this site is the primary of the configuration it knows.
    pub fn is_primary(&self) -> bool {
        self.is_member() && self.configuration.as_ref().is_some_and(|c| c.primary == self.settings.site)
    }

    /// Whether it has everything acknowledged, as far as it knows.
    pub fn is_member(&self) -> bool {
        let own = (&self.settings.site, self.settings.incarnation);
        self.configuration.as_ref().is_some_and(|c| c.has(own.0, own.1))
    }

    /// How long a granted lease counts: a grace, reduced by the maximum clock drift.
    fn lease(&self) -> Millis {
        self.settings.grace - 2 * (self.settings.grace / DRIFT)
    }

    fn is_due(&self, last: Option<Millis>, now: Millis) -> bool {
        last.is_none_or(|last| now.saturating_sub(last) >= (self.settings.every / 2).max(1))
    }

    fn others(&self) -> impl Iterator<Item = &Site> {
        self.settings.sites.iter().filter(|site| **site != self.settings.site)
    }

    /// Adopts a configuration if it is newer than the known one.
    fn adopt(&mut self, now: Millis, configuration: Configuration, effects: &mut Vec<Effect>) {
        let known = self.configuration.as_ref();
        if known.is_some_and(|known| configuration.epoch <= known.epoch) {
            return;
        }
        let another = known.is_none_or(|known| known.primary != configuration.primary);
        let led = self.leading.is_some();
        let is_claimed = self.claim.is_some();
        let let_go = self.leading.as_ref().is_some_and(|leading| leading.asked_for(&configuration));
        effects.push(Effect::Configure(configuration.clone()));
        self.before = self.configuration.replace(configuration.clone()).map(|c| c.primary).filter(|_| another);
        self.claim = self.claim.filter(|_| !another);
        if another {
            self.heard = now;
            if !is_claimed && self.is_primary() {
                // The witness did not wait for leases. The predecessor may still rely on its lease until it says
                // otherwise.
                self.followed_until = self.followed_until.max(now + self.settings.grace);
            }
        }
        match (led, self.is_primary()) {
            (true, true) => self.changed(now, effects),
            (true, false) => {
                self.step_down(effects);
                let newer = Message::Newer { configuration: configuration.clone(), let_go };
                effects.push(Effect::Send(Peer::Site(configuration.primary), newer));
            }
            (false, true) => self.begin_to_lead(now, effects),
            (false, false) => {}
        }
    }

    fn step_down(&mut self, effects: &mut Vec<Effect>) {
        let Some(leading) = self.leading.take() else { return };
        effects.extend(leading.tickets.into_iter().map(|(_, ticket)| Effect::Answer(ticket, Outcome::Unknown)));
    }

    /// Everything up to here is acknowledged.
    fn commit(&mut self, upto: u64, effects: &mut Vec<Effect>) {
        if upto <= self.committed {
            return;
        }
        for index in self.committed + 1..=upto {
            if let Some(entry) = self.log.entry(index) {
                apply(&mut self.table, entry);
            }
        }
        self.committed = upto;
        effects.push(Effect::Committed(upto));
        if upto - self.log.base().at.index > 2 * self.settings.kept {
            self.log.compact(upto - self.settings.kept);
            effects.push(Effect::Compact { snapshot: self.log.base().clone(), rest: self.log.entries().to_vec() });
        }
    }
}

type Tickets = VecDeque<(Position, u64)>;
type Peers = BTreeMap<Site, lead::Progress>;
