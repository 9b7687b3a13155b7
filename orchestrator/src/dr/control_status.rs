//! The status of all sites at one point in time, including unreachable ones.

use std::collections::BTreeMap;

use futures::future::{join, join_all};
use serde::Serialize;

use super::control_client::{
    ControlClientError, ControlClients, CopyProgress, DatabaseRole, DatabaseStatus, MemberRole, SiteAgentStatus,
    WitnessStatus,
};

/// Entries that may be in flight at any time while writes continue.
const IN_FLIGHT: u64 = 32;

/// The status of the witness and of every site.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlStatus {
    /// The answer of the witness.
    pub witness: Result<WitnessStatus, ControlClientError>,
    /// The answer of each site's agent, in the environment's order.
    pub sites: Vec<(String, Result<SiteAgentStatus, ControlClientError>)>,
}

/// The status of one site, for display.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteLine {
    /// Its name.
    pub site: String,
    /// Its role.
    pub role: MemberRole,
    /// The epoch of the configuration it knows.
    pub epoch: Option<u64>,
    /// Whether it can become primary without data loss.
    pub in_sync: bool,
    /// Control entries that it has not stored.
    pub behind_entries: Option<u64>,
    /// The age of the primary's oldest usage record that it lacks, in ms.
    pub lag_ms: Option<u64>,
    /// The data that would be lost with it now, as time in ms.
    pub rpo_ms: Option<u64>,
    /// Its traffic weight.
    pub weight: Option<u32>,
    /// Its progress in copying models and configuration.
    pub copies: BTreeMap<String, CopyProgress>,
    /// Its server of the PostgreSQL that all sites share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseStatus>,
    /// Bytes of the database that its replica has not replayed, as the primary reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_behind_bytes: Option<u64>,
    /// The database role that its servers report if they run apart from the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers_database: Option<DatabaseRole>,
    /// Whether it accepts writes of control data.
    pub writable: bool,
    /// Why it is unreachable or does not accept writes.
    pub why: Option<String>,
}

impl ControlStatus {
    /// Asks the witness and all sites in parallel. Errors become part of the result.
    pub async fn take(control_clients: &ControlClients) -> Self {
        let sites =
            join_all(control_clients.watches.iter().map(async |watch| (watch.site.clone(), watch.status().await)));
        let (witness, sites) = join(control_clients.witness.status(), sites).await;
        Self { witness, sites }
    }

    /// A site's status, if it answered.
    pub fn site(&self, site: &str) -> Option<&SiteAgentStatus> {
        self.sites.iter().find(|(name, _)| name == site).and_then(|(_, status)| status.as_ref().ok())
    }

    /// The newest known epoch: the witness's, or the highest of any site.
    pub fn epoch(&self) -> u64 {
        let known_epochs = self.sites.iter().filter_map(|(_, status)| Some(status.as_ref().ok()?.epoch));
        known_epochs.chain(self.witness.as_ref().ok().map(|witness| witness.epoch)).max().unwrap_or_default()
    }

    /// The primary, as the witness reports it; without the witness, by the newest configuration of a site.
    pub fn primary(&self) -> Option<String> {
        if let Ok(witness) = &self.witness {
            return Some(witness.primary.clone());
        }
        let newest = self.sites.iter().filter_map(|(_, status)| status.as_ref().ok()).max_by_key(|status| status.epoch);
        newest.and_then(|status| status.primary.clone())
    }

    /// The members: the sites that must store a write before it is acknowledged.
    pub fn members(&self) -> Vec<String> {
        if let Ok(witness) = &self.witness {
            return witness.members.clone();
        }
        let newest = self.sites.iter().filter_map(|(_, status)| status.as_ref().ok()).max_by_key(|status| status.epoch);
        newest.map(|status| status.members.clone()).unwrap_or_default()
    }

    /// Whether a planned failover holds, so that the home site becomes primary only by a command or if the primary is
    /// lost.
    pub fn held(&self) -> bool {
        if let Ok(witness) = &self.witness {
            return witness.held;
        }
        // A site of an older release does not know.
        let known = || self.sites.iter().filter_map(|(_, status)| status.as_ref().ok());
        let newest = known().map(|status| status.epoch).max();
        known().any(|status| Some(status.epoch) == newest && status.held)
    }

    /// The count of the primary's entries that a site has not stored; `None` if unknown.
    pub fn behind(&self, site: &str) -> Option<u64> {
        let primary = self.site(&self.primary()?)?;
        if primary.site == site {
            return Some(0);
        }
        let stored = self.site(site).map(|status| status.last);
        let seen = primary.peers.get(site).map(|peer| peer.stored);
        Some(primary.last.saturating_sub(stored.max(seen)?))
    }

    /// The status of each site.
    pub fn lines(&self, max_lag_ms: u64) -> Vec<SiteLine> {
        self.sites.iter().map(|(site, status)| self.line(site, status, max_lag_ms)).collect()
    }

    fn line(&self, site: &str, status: &Result<SiteAgentStatus, ControlClientError>, max_lag_ms: u64) -> SiteLine {
        let weight = self.witness.as_ref().ok().map(|witness| witness.weights.get(site).copied().unwrap_or(0));
        let primary = self.primary();
        let by_primary = primary.as_deref().and_then(|name| self.site(name)).filter(|p| p.site != site);
        let lag_ms = match &by_primary {
            Some(primary) => primary.peers.get(site).map(|peer| peer.usage_behind_ms),
            None => (primary.as_deref() == Some(site) && status.is_ok()).then_some(0),
        };
        let behind_entries = self.behind(site);
        let copy = by_primary.and_then(|primary| primary.database.as_ref()?.copies.get(site));
        let database_behind_bytes = copy.map(|copy| copy.behind_bytes);
        match status {
            Ok(status) => {
                let is_member = primary.as_deref() == Some(site) || self.members().iter().any(|name| name == site);
                let in_sync = is_member
                    && status.epoch == self.epoch()
                    && behind_entries.is_none_or(|entries| entries <= IN_FLIGHT)
                    && lag_ms.is_none_or(|ms| ms <= max_lag_ms)
                    && status.database.as_ref().is_none_or(|database| database.fit);
                SiteLine {
                    site: site.to_owned(),
                    role: status.role,
                    epoch: Some(status.epoch),
                    in_sync,
                    behind_entries,
                    lag_ms,
                    rpo_ms: Some(status.rpo_ms.control.max(status.rpo_ms.usage)),
                    weight,
                    copies: status.copies.clone(),
                    database: status.database.clone(),
                    database_behind_bytes,
                    servers_database: status.servers_database,
                    writable: status.writable,
                    why: status.why_not.clone(),
                }
            }
            Err(error) => SiteLine {
                site: site.to_owned(),
                role: MemberRole::Unreachable,
                epoch: None,
                in_sync: false,
                behind_entries,
                lag_ms,
                rpo_ms: None,
                weight,
                copies: BTreeMap::new(),
                database: None,
                database_behind_bytes,
                servers_database: None,
                writable: false,
                why: Some(error.to_string()),
            },
        }
    }

    /// Warnings for the operator, worst first.
    pub fn warnings(&self, max_lag_ms: u64) -> Vec<String> {
        let mut found = Vec::new();
        if let Err(error) = &self.witness {
            found.push(format!("{error}: no site can become primary until it is back, and a primary that loses its members becomes read-only"));
        }
        if let Ok(witness) = &self.witness
            && witness.renewed_ms >= witness.grace_ms
        {
            found.push(format!(
                "the primary {} has sent no heartbeat for {} ms; after {} ms another site can become primary",
                witness.primary, witness.renewed_ms, witness.grace_ms
            ));
        }
        if let Some(dns) = self.witness.as_ref().ok().and_then(|witness| witness.dns.as_ref())
            && let Some(error) = &dns.error
        {
            let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            found.push(format!(
                "DNS record {} does not match the state of the sites: {}{hint}",
                dns.name, error.message
            ));
        }
        let mut epochs: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for line in &self.lines(max_lag_ms) {
            if let Some(epoch) = line.epoch {
                epochs
                    .entry(epoch)
                    .or_default()
                    .push(self.sites.iter().find(|(name, _)| *name == line.site).map_or("", |(name, _)| name));
            }
            match line.role {
                MemberRole::Unreachable => found.push(line.why.clone().unwrap_or_default()),
                MemberRole::Outsider => {
                    found.push(format!("{} is not a member: it cannot take over until it has caught up", line.site));
                }
                MemberRole::Primary | MemberRole::Member | MemberRole::Unknown => {}
            }
            if let Some(lag) = line.lag_ms.filter(|lag| *lag > max_lag_ms) {
                found.push(format!(
                    "{} lags {} ms behind; at most {max_lag_ms} ms are allowed (replication.database.max_lag)",
                    line.site, lag
                ));
            }
            match &line.database {
                Some(DatabaseStatus { ready: false, why, .. }) => {
                    let why = why.as_deref().unwrap_or("it gives no reason");
                    found.push(format!("the database of {} is unhealthy: {why}", line.site));
                }
                Some(DatabaseStatus { fit: false, .. }) => found.push(format!(
                    "the database of {} lags behind the primary's, so the site cannot take over; the data is being copied",
                    line.site
                )),
                _ => {}
            }
            if line.servers_database.is_some_and(|role| role != DatabaseRole::Primary) {
                found.push(format!(
                    "the servers of {} cannot connect to their database, or it accepts no writes",
                    line.site
                ));
            }
            for (data, copy) in line.copies.iter().filter(|(_, copy)| copy.missing_bytes > 0) {
                let why = copy.error.as_deref().unwrap_or("they are being copied");
                found.push(format!("{} lacks {} bytes of the primary's {data}: {why}", line.site, copy.missing_bytes));
            }
            if let (true, Some(why)) = (line.role == MemberRole::Primary && !line.writable, &line.why) {
                found.push(format!("control data is read-only: {why}"));
            }
        }
        if self.primary().is_some_and(|primary| self.members().iter().filter(|name| **name != primary).count() == 0) {
            found.push(
                "the primary has no other member: control data cannot be changed, and no site can take over".to_owned(),
            );
        }
        let newest = self.epoch();
        for (epoch, sites) in epochs.into_iter().filter(|(epoch, _)| *epoch < newest) {
            found.push(format!("{} is still at epoch {epoch}; the newest is {newest}", sites.join(", ")));
        }
        found
    }
}
