//! The status of a site, for operators.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Member, Refused};
use crate::Millis;
use crate::configuration::Site;
use crate::message::Refusal;

/// The role of a site in the known configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// It leads.
    Primary,
    /// It has everything acknowledged.
    Member,
    /// It does not, or no longer, have everything acknowledged.
    Outsider,
}

/// The status as the site itself sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// The site.
    pub site: Site,
    /// Its role.
    pub role: MemberRole,
    /// The epoch of the known configuration; 0 before the first.
    pub epoch: u64,
    /// Its primary.
    pub primary: Option<Site>,
    /// Its members.
    pub members: Vec<Site>,
    /// See [`Configuration::held`](crate::Configuration::held).
    pub held: bool,
    /// Whether control data can be written here now.
    pub writable: bool,
    /// Why it cannot.
    pub why_not: Option<Refused>,
    /// The last entry here.
    pub last: u64,
    /// Index of the last acknowledged entry that it knows.
    pub committed: u64,
    /// The other sites, as the primary sees them.
    pub peers: BTreeMap<Site, PeerOverview>,
    /// How long ago the witness answered.
    pub witness_heard_ms: Option<Millis>,
    /// Milliseconds since the primary was heard, where it is another site.
    pub primary_heard_ms: Option<Millis>,
    /// Why the witness refused the last request.
    pub refusal: Option<Refusal>,
    /// Whether it acts without a command.
    pub automatic: bool,
}

/// Another site, as the primary sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerOverview {
    /// It has everything up to here on disk.
    pub stored: u64,
    /// Whether it is a member.
    pub member: bool,
    /// How long ago it answered.
    pub heard_ms: Option<Millis>,
    /// For how long it has lacked entries, in milliseconds.
    pub behind_ms: Millis,
}

impl Member {
    /// See [`Overview`].
    pub fn overview(&self, now: Millis) -> Overview {
        let configuration = self.configuration.as_ref();
        let role = match (self.is_primary(), self.is_member()) {
            (true, _) => MemberRole::Primary,
            (false, true) => MemberRole::Member,
            (false, false) => MemberRole::Outsider,
        };
        let writable = self.writable(now);
        let peers = self.leading.iter().flat_map(|leading| &leading.peers);
        let seen = peers.map(|(site, peer)| {
            let life = peer.incarnation;
            let overview = PeerOverview {
                stored: peer.stored,
                member: configuration.is_some_and(|c| life.is_some_and(|life| c.has(site, life))),
                heard_ms: peer.incarnation.and(peer.answered).map(|at| now.saturating_sub(at)),
                behind_ms: peer.behind_since.map_or(0, |at| now.saturating_sub(at)),
            };
            (site.clone(), overview)
        });
        Overview {
            site: self.settings.site.clone(),
            role,
            epoch: configuration.map_or(0, |c| c.epoch),
            primary: configuration.map(|c| c.primary.clone()),
            members: configuration.map(|c| c.members.keys().cloned().collect()).unwrap_or_default(),
            held: configuration.is_some_and(|c| c.holds(&self.settings.home)),
            writable: writable.is_ok(),
            why_not: writable.err(),
            last: self.log.last().index,
            committed: self.committed,
            peers: seen.collect(),
            witness_heard_ms: self.witness_heard.map(|at| now.saturating_sub(at)),
            primary_heard_ms: (!self.is_primary()).then(|| now.saturating_sub(self.heard)),
            refusal: self.refusal,
            automatic: self.settings.automatic,
        }
    }
}
