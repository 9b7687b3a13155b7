//! What `GET /v1/status` of a watch tells.

use std::collections::BTreeMap;

use serde::Serialize;
use textnlp_control::{Millis, Overview, PeerOverview, Site};

use super::beside::{CopyAt, Kept};
use super::copies::Standing;
use super::http::Watch;
use super::usage::Behind;

/// A site as its watch sees it.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    #[serde(flatten)]
    pub(super) overview: Told,
    pub(super) peers: BTreeMap<Site, Peer>,
    pub(super) rpo_ms: Rpo,
    /// Models and configuration of the primary that are here.
    pub(super) copies: BTreeMap<&'static str, Standing>,
    /// Sites that have lacked something of the control data or of the database for longer than is allowed.
    pub(super) lagging: Vec<Site>,
    /// Entries that were never acknowledged and had to go, in this folder's life.
    pub(super) withdrawn: usize,
    /// The PostgreSQL of all sites, where there is one: this site's server, as its keeper says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<Kept>,
    /// What servers elsewhere say of the database that they store in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) servers_database: Option<&'static str>,
}

/// The overview without its peers.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    site: Site,
    pub(super) role: String,
    pub(super) epoch: u64,
    primary: Option<Site>,
    pub(super) members: Vec<Site>,
    pub(super) writable: bool,
    why_not: Option<String>,
    last: u64,
    pub(super) committed: u64,
    /// Up to here the site's database shows it.
    applied: u64,
    pub(super) witness_heard_ms: Option<Millis>,
    primary_heard_ms: Option<Millis>,
    refusal: Option<String>,
    automatic: bool,
}

/// One other site.
#[derive(Debug, Serialize)]
pub(super) struct Peer {
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
    member: bool,
    heard_ms: Option<Millis>,
    behind_ms: Millis,
    pub(super) usage_behind_rows: u64,
    pub(super) usage_behind_ms: u64,
}

/// What would be lost with this site's disk, as time.
#[derive(Debug, Serialize)]
pub(super) struct Rpo {
    /// Nothing is acknowledged before another site has it.
    pub(super) control: Millis,
    /// Age of the oldest row of usage that no other site has.
    pub(super) usage: Millis,
}

impl Status {
    pub(super) fn of(watch: &Watch, overview: Overview, withdrawn: usize) -> Self {
        let leads = overview.role == "primary";
        let nobody = || Kept { why: Some("its keeper does not answer".to_owned()), ..Kept::default() };
        let database = watch.config.postgres.as_ref().map(|_| watch.beside.kept().unwrap_or_else(nobody));
        let copies = database.as_ref().filter(|_| leads).map(|kept| &kept.copies);
        let peers: BTreeMap<Site, Peer> = watch
            .config
            .peers
            .keys()
            .map(|site| {
                // Usage is in the database: what its copy there lacks.
                let usage = copies.map(|copies| copies.get(site).map(behind).unwrap_or_default());
                let usage = usage.or_else(|| watch.shipped.behind().get(site).copied()).unwrap_or_default();
                (site.clone(), peer(overview.peers.get(site), usage, overview.members.contains(site)))
            })
            .collect();
        let lags = |(site, peer): (&Site, &Peer)| {
            let database = copies.and_then(|copies| copies.get(site)).map_or(0, |copy| copy.behind_ms);
            (peer.behind_ms.max(database) > watch.config.max_lag_ms).then(|| site.clone())
        };
        let rpo_ms = Rpo { control: 0, usage: peers.values().map(|peer| peer.usage_behind_ms).min().unwrap_or(0) };
        Self {
            lagging: if leads { peers.iter().filter_map(lags).collect() } else { Vec::new() },
            overview: Told {
                site: overview.site,
                role: overview.role,
                epoch: overview.epoch,
                primary: overview.primary,
                members: overview.members,
                writable: overview.writable,
                why_not: overview.why_not.map(|why| why.to_string()),
                last: overview.last,
                committed: overview.committed,
                applied: watch.actor.applied(),
                witness_heard_ms: overview.witness_heard_ms,
                primary_heard_ms: overview.primary_heard_ms,
                refusal: overview.refusal.map(|why| why.to_string()),
                automatic: overview.automatic,
            },
            peers,
            copies: watch.copied.standing(),
            rpo_ms,
            withdrawn,
            database,
            servers_database: watch.actor.service().database(),
        }
    }
}

fn behind(copy: &CopyAt) -> Behind {
    Behind { rows: 0, ms: copy.behind_ms }
}

fn peer(seen: Option<&PeerOverview>, usage: Behind, member: bool) -> Peer {
    Peer {
        stored: seen.map(|peer| peer.stored),
        member: seen.map_or(member, |peer| peer.member),
        heard_ms: seen.and_then(|peer| peer.heard_ms),
        behind_ms: seen.map_or(0, |peer| peer.behind_ms),
        usage_behind_rows: usage.rows,
        usage_behind_ms: usage.ms,
    }
}
