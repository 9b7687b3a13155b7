//! The answer of a site agent's `GET /v1/status`.

use std::collections::BTreeMap;

use serde::Serialize;
use textnlp_control::{MemberRole, Millis, Overview, PeerOverview, Site};

use super::copies::CopyProgress;
use super::database::{CopyAt, ServerStatus};
use super::http::AgentState;
use super::service::DatabaseAccess;
use super::usage::Behind;

/// A site as its agent sees it.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    #[serde(flatten)]
    pub(super) overview: SiteOverview,
    pub(super) peers: BTreeMap<Site, Peer>,
    pub(super) rpo_ms: Rpo,
    /// Models and configuration of the primary that are here.
    pub(super) copies: BTreeMap<&'static str, CopyProgress>,
    /// Sites whose control data or database has lagged for longer than allowed.
    pub(super) lagging: Vec<Site>,
    /// Entries that were never acknowledged and were withdrawn, since the folder was created.
    pub(super) withdrawn: usize,
    /// The shared PostgreSQL of all sites, where there is one: this site's server, as its supervisor reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<ServerStatus>,
    /// The database state that servers elsewhere report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) servers_database: Option<DatabaseAccess>,
}

/// The overview without its peers.
#[derive(Debug, Serialize)]
pub(super) struct SiteOverview {
    site: Site,
    pub(super) role: MemberRole,
    pub(super) epoch: u64,
    primary: Option<Site>,
    pub(super) members: Vec<Site>,
    held: bool,
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

/// Another site.
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

/// The potential loss with this site's disk, as time.
#[derive(Debug, Serialize)]
pub(super) struct Rpo {
    /// Always 0: nothing is acknowledged before another site has it.
    pub(super) control: Millis,
    /// Age of the oldest usage row that no other site has.
    pub(super) usage: Millis,
}

impl Status {
    pub(super) fn of(watch: &AgentState, overview: Overview, withdrawn: usize) -> Self {
        let leads = overview.role == MemberRole::Primary;
        let unknown =
            || ServerStatus { why: Some("its supervisor does not answer".to_owned()), ..ServerStatus::default() };
        let database = watch.config.postgres.as_ref().map(|_| watch.beside.kept().unwrap_or_else(unknown));
        let copies = database.as_ref().filter(|_| leads).map(|kept| &kept.copies);
        let peers: BTreeMap<Site, Peer> = watch
            .config
            .peers
            .keys()
            .map(|site| {
                // Usage is in the database: its replica there lacks the most recent part.
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
            overview: SiteOverview {
                site: overview.site,
                role: overview.role,
                epoch: overview.epoch,
                primary: overview.primary,
                members: overview.members,
                held: overview.held,
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
