//! How all sites are, at one moment, also when some of them are gone.

use std::collections::BTreeMap;

use futures::future::{join, join_all};
use serde::Serialize;

use super::talk::{Copies, DatabaseAt, Everybody, PRIMARY, TalkError, WatchStatus, WitnessStatus};

/// Entries that are on their way at any moment while writes go on.
const IN_FLIGHT: u64 = 32;

/// Everybody's status at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What the witness says.
    pub witness: Result<WitnessStatus, TalkError>,
    /// What each site's watch says, in the environment's order.
    pub sites: Vec<(String, Result<WatchStatus, TalkError>)>,
}

/// A site in words and numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Which.
    pub site: String,
    /// `primary`, `member`, `outsider`, or `unreachable`.
    pub role: String,
    /// The configuration that it knows.
    pub epoch: Option<u64>,
    /// Whether it may become primary without losing anything.
    pub in_sync: bool,
    /// Control entries that it has not stored.
    pub behind_entries: Option<u64>,
    /// Age of the oldest usage of the primary that it does not hold.
    pub lag_ms: Option<u64>,
    /// What would be lost with it now, as time.
    pub rpo_ms: Option<u64>,
    /// Its share of the traffic.
    pub weight: Option<u32>,
    /// How far it is with copying models and configuration.
    pub copies: BTreeMap<String, Copies>,
    /// Its server of a PostgreSQL that all sites share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseAt>,
    /// Bytes of the database that its copy has not replayed, as the primary sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_behind_bytes: Option<u64>,
    /// What its servers, where they are elsewhere than their watch, say of the database that they store in: `primary` or `unavailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers_database: Option<String>,
    /// Whether control data can be changed through it.
    pub writable: bool,
    /// Why it cannot be reached or written to.
    pub why: Option<String>,
}

impl Picture {
    /// Asks everybody at once; whoever does not answer is in the picture as such.
    pub async fn take(everybody: &Everybody) -> Self {
        let sites = join_all(everybody.watches.iter().map(async |watch| (watch.site.clone(), watch.status().await)));
        let (witness, sites) = join(everybody.witness.status(), sites).await;
        Self { witness, sites }
    }

    /// A site's own words, when it answers.
    pub fn site(&self, site: &str) -> Option<&WatchStatus> {
        self.sites.iter().find(|(name, _)| name == site).and_then(|(_, status)| status.as_ref().ok())
    }

    /// The newest configuration that anybody knows: the witness's, or that of the site with the highest epoch.
    pub fn epoch(&self) -> u64 {
        let told = self.sites.iter().filter_map(|(_, status)| Some(status.as_ref().ok()?.epoch));
        told.chain(self.witness.as_ref().ok().map(|witness| witness.epoch)).max().unwrap_or_default()
    }

    /// Who is primary, by the one that decides it, else by the newest configuration that a site knows.
    pub fn primary(&self) -> Option<String> {
        if let Ok(witness) = &self.witness {
            return Some(witness.primary.clone());
        }
        let newest = self.sites.iter().filter_map(|(_, status)| status.as_ref().ok()).max_by_key(|status| status.epoch);
        newest.and_then(|status| status.primary.clone())
    }

    /// Whose storing is waited for.
    pub fn members(&self) -> Vec<String> {
        if let Ok(witness) = &self.witness {
            return witness.members.clone();
        }
        let newest = self.sites.iter().filter_map(|(_, status)| status.as_ref().ok()).max_by_key(|status| status.epoch);
        newest.map(|status| status.members.clone()).unwrap_or_default()
    }

    /// How many entries of the primary a site has not stored; `None` when neither of them says.
    pub fn behind(&self, site: &str) -> Option<u64> {
        let primary = self.site(&self.primary()?)?;
        if primary.site == site {
            return Some(0);
        }
        let stored = self.site(site).map(|status| status.last);
        let seen = primary.peers.get(site).map(|peer| peer.stored);
        Some(primary.last.saturating_sub(stored.max(seen)?))
    }

    /// Each site in a line.
    pub fn lines(&self, max_lag_ms: u64) -> Vec<Line> {
        self.sites.iter().map(|(site, status)| self.line(site, status, max_lag_ms)).collect()
    }

    fn line(&self, site: &str, status: &Result<WatchStatus, TalkError>, max_lag_ms: u64) -> Line {
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
                Line {
                    site: site.to_owned(),
                    role: status.role.clone(),
                    epoch: Some(status.epoch),
                    in_sync,
                    behind_entries,
                    lag_ms,
                    rpo_ms: Some(status.rpo_ms.control.max(status.rpo_ms.usage)),
                    weight,
                    copies: status.copies.clone(),
                    database: status.database.clone(),
                    database_behind_bytes,
                    servers_database: status.servers_database.clone(),
                    writable: status.writable,
                    why: status.why_not.clone(),
                }
            }
            Err(error) => Line {
                site: site.to_owned(),
                role: "unreachable".to_owned(),
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

    /// What an operator should look at, worst first.
    pub fn warnings(&self, max_lag_ms: u64) -> Vec<String> {
        let mut found = Vec::new();
        if let Err(error) = &self.witness {
            found.push(format!("{error}: nobody can become primary until it is back, and a primary that loses its members goes read-only"));
        }
        if let Ok(witness) = &self.witness
            && witness.renewed_ms >= witness.grace_ms
        {
            found.push(format!(
                "the primary {} has not been heard for {} ms; after {} ms another site may take its place",
                witness.primary, witness.renewed_ms, witness.grace_ms
            ));
        }
        if let Some(dns) = self.witness.as_ref().ok().and_then(|witness| witness.dns.as_ref())
            && let Some(error) = &dns.error
        {
            let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            found.push(format!("{} in DNS does not follow the sites: {}{hint}", dns.name, error.message));
        }
        let mut epochs: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for line in &self.lines(max_lag_ms) {
            if let Some(epoch) = line.epoch {
                epochs
                    .entry(epoch)
                    .or_default()
                    .push(self.sites.iter().find(|(name, _)| *name == line.site).map_or("", |(name, _)| name));
            }
            if line.role == "unreachable" {
                found.push(line.why.clone().unwrap_or_default());
            } else if line.role == "outsider" {
                found.push(format!("{} is no member: it cannot take over until it has caught up", line.site));
            }
            if let Some(lag) = line.lag_ms.filter(|lag| *lag > max_lag_ms) {
                found.push(format!(
                    "{} lags {} ms behind; at most {max_lag_ms} ms are allowed (replication.database.max_lag)",
                    line.site, lag
                ));
            }
            match &line.database {
                Some(DatabaseAt { ready: false, why, .. }) => {
                    let why = why.as_deref().unwrap_or("it does not say why");
                    found.push(format!("the database of {} does not do its work: {why}", line.site));
                }
                Some(DatabaseAt { fit: false, .. }) => found.push(format!(
                    "the database of {} lacks what the primary's has, so it cannot take over; it is being copied",
                    line.site
                )),
                _ => {}
            }
            if line.servers_database.as_deref().is_some_and(|role| role != PRIMARY) {
                found.push(format!(
                    "the servers of {} do not get into their database, or it takes no changes",
                    line.site
                ));
            }
            for (data, copy) in line.copies.iter().filter(|(_, copy)| copy.missing_bytes > 0) {
                let why = copy.error.as_deref().unwrap_or("they are on their way");
                found.push(format!("{} lacks {} bytes of the primary's {data}: {why}", line.site, copy.missing_bytes));
            }
            if let (true, Some(why)) = (line.role == "primary" && !line.writable, &line.why) {
                found.push(format!("control data is read-only: {why}"));
            }
        }
        if self.primary().is_some_and(|primary| self.members().iter().filter(|name| **name != primary).count() == 0) {
            found.push(
                "the primary has no other member: control data cannot be changed, and nobody could take over"
                    .to_owned(),
            );
        }
        let newest = self.epoch();
        for (epoch, sites) in epochs.into_iter().filter(|(epoch, _)| *epoch < newest) {
            found.push(format!("{} still knows epoch {epoch} of {newest}", sites.join(", ")));
        }
        found
    }
}
