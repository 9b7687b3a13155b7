//! Checks of disaster recovery: site failure, targets and backups.

use std::collections::BTreeSet;
use std::time::Duration;

use textnlp_provider::Capability;
use textnlp_provider::capabilities::{Setting, Store};

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::serving::is_host_name;
use super::{Catalogue, Checker};

/// The longest deadline of a rollout, in seconds.
const ROLLOUT_MAX_SECONDS: u64 = 3 * 3600;
/// The time from the turn of a site to its takeover: the witness's grant, the new primary's first write and the new
/// traffic weights. Usually well under a second; this is the guaranteed bound.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Records of a zone follow the health checks of its provider: how long these take where the provider is not known.
const RECORD_CHECKS: Duration = Duration::from_secs(30);
/// How long resolvers keep the records of several sites, which have no other TTL.
const RECORD_TTL: Duration = Duration::from_secs(60);
/// Usage is replicated four times a second; this is the guaranteed bound.
const SHIPPED: Duration = Duration::from_secs(1);
/// Shorter poll intervals cost more than they gain.
const FASTEST_LOOK: Duration = Duration::from_millis(100);
/// The site agent's longest poll interval.
const SLOWEST_LOOK: Duration = Duration::from_secs(600);
/// Each segment of PostgreSQL's log takes 16 MB of the database's disk until it is archived.
const LOG_FASTEST: Duration = Duration::from_secs(5);
/// For more than an hour, daily backups are sufficient.
const LOG_SLOWEST: Duration = Duration::from_secs(3600);

impl Checker<'_> {
    pub(super) fn traffic(&mut self) {
        let e = self.environment;
        let names: Vec<&str> = e.sites.iter().map(|s| s.name.as_str()).collect();
        for (site, weight) in &e.traffic.weights {
            let path = format!("traffic.weights.{}", cut(site));
            match e.sites.iter().find(|s| s.name.as_str() == site) {
                None => {
                    let near = nearest(site, names.iter().copied());
                    let fix = near.map_or_else(
                        || format!("the sites are `{}`", names.join("`, `")),
                        |n| format!("did you mean `{n}`?"),
                    );
                    self.error(&path, format!("there is no site `{}`", cut(site)), fix);
                }
                Some(known) if known.role == Role::Standby && *weight > 0 => {
                    self.error(
                        &path,
                        "a standby has no traffic before a failover",
                        "write 0; the failover gives it its weight",
                    );
                }
                Some(known) if !known.serves() && *weight > 0 => {
                    self.error(&path, "this site does not run the API", "write 0, or add `api` to its services");
                }
                Some(_) if *weight > 1000 => {
                    self.error(&path, format!("{weight} is out of range"), "write a number from 0 to 1000")
                }
                Some(_) => {}
            }
        }
        if !e.traffic.weights.is_empty() && e.traffic.weights.values().all(|w| *w == 0) {
            self.error("traffic.weights", "no site gets any traffic", "give at least the primary a weight");
        }
        let other = e.sites.iter().position(|site| site.role != Role::Primary);
        if let Some(other) = other.filter(|_| e.witness_place().is_none())
            && e.primary().is_some_and(SiteSettings::is_on_machine)
        {
            self.error(
                &format!("sites[{other}]"),
                "sites on machines share their traffic only by a global endpoint, and none is configured",
                "write `dr: { mode: automatic }` and `traffic: { mode: gateway }`, or make it an environment of its own",
            );
        }
        if e.traffic.mode == TrafficMode::Dns && e.traffic.domain.is_none() {
            self.error("traffic.domain", "`mode: dns` needs a domain", "write `domain: textnlp.example.com`");
        }
        if let Some(domain) = &e.traffic.domain
            && !is_host_name(domain)
        {
            self.error(
                "traffic.domain",
                format!("`{}` is not a DNS name", cut(domain)),
                "write one such as `textnlp.example.com`",
            );
        }
    }

    pub(super) fn recovery(&mut self, catalogue: &Catalogue) {
        let (e, dr) = (self.environment, &self.environment.dr);
        if dr.mode != Failover::None && e.sites.len() < 2 {
            self.error("dr.mode", "there is no second site to fail over to", "add a site, or write `mode: none`");
        }
        if let Some(place) = e.witness_place() {
            self.witnessed(place, catalogue);
        }
        if dr.mode == Failover::Automatic {
            let locations: BTreeSet<(&str, &str)> =
                e.sites.iter().map(|s| (s.provider.as_str(), s.name.as_str())).collect();
            match &dr.witness {
                None if locations.len() < 3 || e.witness_place().is_some() => {
                    // That of sites on one machine is a process on it.
                    let place = match e.primary().filter(|primary| primary.is_on_machine()) {
                        Some(primary) => {
                            let (provider, region) = (cut(&primary.provider), cut(&primary.region));
                            format!("`witness: {{ provider: {provider}, region: {region} }}`")
                        }
                        None => "`witness: { provider: …, region: … }` outside both sites".to_owned(),
                    };
                    let fix = format!("add {place}, or write `mode: manual`");
                    self.error("dr.mode", "automatic failover needs a witness in a third location", fix);
                }
                Some(witness) => {
                    let primary = e.primary();
                    if primary.is_some_and(|p| {
                        !p.is_on_machine()
                            && p.provider == witness.provider
                            && p.region == witness.region
                            && p.region != "local"
                    }) {
                        self.error(
                            "dr.witness",
                            "the witness would fail together with the primary",
                            "put it in another region",
                        );
                    }
                }
                None => {}
            }
            let detection = dr.watch_every.0 * dr.lost_after;
            let by_gateway = e.traffic.mode == TrafficMode::Gateway;
            let takeover = dr.watch_every.0 * self.last_turn() / 2 + TAKEOVER;
            let needed = if by_gateway { detection + takeover } else { detection };
            if detection >= dr.rto.0 || needed > dr.rto.0 {
                let mut cause = format!("a site failure is detected only after {}", Span(detection));
                if by_gateway {
                    cause.push_str(&format!(
                        " (`watch_every` {} × `lost_after` {}), and another site takes over within {} more: {} in total",
                        dr.watch_every,
                        dr.lost_after,
                        Span(takeover),
                        Span(needed)
                    ));
                }
                self.error("dr.rto", cause, "allow more time, or poll more often (`watch_every`, `lost_after`)");
            }
            // With DNS, clients notice only when resolvers query again.
            let by_dns = e.traffic.mode == TrafficMode::Dns || e.dns.is_some();
            let moved = needed + e.traffic.ttl.0;
            if by_dns && needed <= dr.rto.0 && moved >= dr.rto.0 {
                let cause = format!(
                    "resolvers keep the old answer for {} after another site has taken over: {} + {} are {}",
                    e.traffic.ttl,
                    Span(needed),
                    e.traffic.ttl,
                    Span(moved)
                );
                self.error("traffic.ttl", cause, format!("make it shorter than what `dr.rto` ({}) leaves", dr.rto));
            }
        }
        let home = e.primary().and_then(|home| catalogue.providers.get(&home.provider));
        let records = home.and_then(|home| home.capabilities.site_records);
        let noticed = records.map_or(RECORD_CHECKS, |records| records.notices_after) + RECORD_TTL;
        if dr.mode != Failover::None && e.has_site_records() && noticed >= dr.rto.0 {
            let cause = format!("clients that follow the DNS records notice a lost site only after {}", Span(noticed));
            self.error("dr.rto", cause, "allow more time");
        }
        if dr.failback == Failover::Automatic && dr.mode == Failover::None {
            self.error("dr.failback", "failback has no effect without failover", "set `dr.mode`, or remove it");
        }
        let replication = &e.replication.database;
        if dr.mode != Failover::None {
            if dr.rpo.0 < SHIPPED {
                let cause = format!(
                    "usage data reaches the other sites within {}, which is more than `dr.rpo` ({})",
                    Span(SHIPPED),
                    dr.rpo
                );
                self.error("dr.rpo", cause, format!("write at least `{}`", Span(SHIPPED)));
            }
            if replication.mode == DatabaseCopy::None {
                self.error(
                    "replication.database.mode",
                    "after a failover the database would be gone",
                    "write `mode: streaming`",
                );
            } else if replication.max_lag.0 >= dr.rpo.0 {
                let cause = format!(
                    "a lag of {} is allowed, which is not less than `dr.rpo` ({})",
                    replication.max_lag, dr.rpo
                );
                self.error("replication.database.max_lag", cause, "allow less lag, or a larger `dr.rpo`");
            }
        }
        if replication.mode == DatabaseCopy::Streaming && e.sites.len() < 2 {
            self.warn(
                "replication.database.mode",
                "there is no second site to replicate to",
                "remove it, or add a site",
            );
        }
        let backup = &e.backup;
        if backup.enabled && e.has_cluster_with_external_database() {
            let cause = "a cluster takes no backups of a database that runs elsewhere";
            let fix = "write `enabled: false`, and back it up where it runs";
            self.say(Severity::Refusal, "backup.enabled", cause, fix);
        }
        if backup.enabled && backup.keep.0 < backup.every.0 {
            self.error(
                "backup.keep",
                "a backup would expire before the next one is taken",
                "keep it longer than `every`",
            );
        }
        if backup.enabled && backup.every.as_seconds() < 60 {
            self.error("backup.every", "the interval of backups is too short", "write at least `1m`");
        }
        if let Some(behind) = backup.point_in_time {
            if e.database_hosting() != Some(Hosting::Cluster) || e.database.existing.is_some() {
                let cause = "only the log of a PostgreSQL that this program runs can be archived";
                self.error("backup.point_in_time", cause, "write `database: { kind: postgres }`, or remove it");
            } else if e.shares_database() {
                let cause = "archiving the log of a PostgreSQL that sites share is not supported yet";
                self.error("backup.point_in_time", cause, "remove it: backups are taken, and every site has the data");
            } else if !backup.enabled {
                let cause = "a log archive needs backups to start from";
                self.error("backup.point_in_time", cause, "write `backup.enabled: true`, or remove it");
            }
            if behind.0 < LOG_FASTEST {
                let cause = format!("a WAL segment of 16 MB is closed every {behind}, even if it is almost empty");
                self.error("backup.point_in_time", cause, format!("write at least `{}`", Span(LOG_FASTEST)));
            } else if behind.0 > LOG_SLOWEST {
                let cause = format!("writes of up to {behind} would be lost with the disk");
                self.error("backup.point_in_time", cause, format!("write at most `{}`", Span(LOG_SLOWEST)));
            }
        }
        for (number, recipient) in backup.recipients.iter().enumerate() {
            if recipient.parse::<crate::backup::Recipient>().is_err() {
                let cause = format!("`{}` is not a public key", cut(recipient));
                self.error(
                    &format!("backup.recipients[{number}]"),
                    cause,
                    "write the public key that `age-keygen` prints: `age1…`",
                );
            }
        }
        // The supervisor takes backups, and its working directory differs from the operator's.
        let folder = backup.destination.as_deref().filter(|place| !place.contains("://"));
        if let Some(place) = folder.filter(|_| e.dumps_in_cluster()) {
            let cause = format!("the dumps of a cluster are on a volume in it, not in the folder `{}`", cut(place));
            let fix = "write the bucket for copies of them, `s3://BUCKET/PREFIX`, `gs://…` or `az://…`, or remove it";
            self.say(Severity::Refusal, "backup.destination", cause, fix);
        } else if let Some(place) = folder.filter(|place| !place.starts_with('/')) {
            let cause = format!("`{}` is neither an absolute path nor an object store", cut(place));
            let fix = "write the absolute path of a folder, or a bucket with `backup.credentials`, or remove it";
            self.error("backup.destination", cause, fix);
        }
        self.backup_bucket();
        // Runs wait for a rollout at most four hours, and other pods follow the canary.
        if e.rollout.strategy != Strategy::Rolling && e.rollout.deadline.as_seconds() > ROLLOUT_MAX_SECONDS {
            let cause = format!("`{}` is longer than a rollout may take", e.rollout.deadline);
            self.error("rollout.deadline", cause, "write at most `3h`");
        }
        if e.rollout.bake.0 >= e.rollout.deadline.0 {
            self.error(
                "rollout.deadline",
                "the rollout would revert before the analysis of the new release ends",
                "make it longer than `bake`",
            );
        }
    }

    /// Requirements of backups in a bucket. The supervisor of a machine or the job of a cluster writes there, without the
    /// variables of an operator.
    fn backup_bucket(&mut self) {
        let e = self.environment;
        let (backup, in_cluster) = (&e.backup, e.dumps_in_cluster());
        let Some(url) = backup.destination.as_deref().filter(|place| place.contains("://")) else {
            if backup.credentials.is_some() {
                let fix = "remove it, or name a bucket in `backup.destination`";
                self.error("backup.credentials", "backups in a folder need no credentials", fix);
            }
            return;
        };
        if !is_bucket(url) {
            let cause = format!("`{}` is not a bucket and a prefix", cut(url));
            let fix = "write `s3://BUCKET/PREFIX`; credentials are in the file of `backup.credentials`";
            self.error("backup.destination", cause, fix);
        }
        if backup.point_in_time.is_some() {
            let cause = "the log of a database is archived in folders, not in buckets";
            let fix = match in_cluster {
                // Its dumps are never in a folder of this machine.
                true => "remove `point_in_time`",
                false => "write the absolute path of a folder as `backup.destination`, or remove `point_in_time`",
            };
            self.say(Severity::Refusal, "backup.point_in_time", cause, fix);
        }
        let (who, reader) = match in_cluster {
            true => ("the job in the cluster", "you"),
            false => ("the supervisor", "the user of the supervisor"),
        };
        let fix = format!(
            "write `secret:file:/PATH`: a file with lines such as `AWS_ACCESS_KEY_ID=…`, readable only by {reader}"
        );
        match &backup.credentials {
            Some(SecretSource::File(file)) if file.starts_with('/') => {}
            Some(_) => {
                let cause = format!(
                    "{who} writes to the bucket, with neither the variables nor the working directory of your shell"
                );
                self.error("backup.credentials", cause, fix);
            }
            None if backup.enabled && url.starts_with("az://") => {
                let cause = format!("the storage account is a variable, which {who} does not have");
                // The place of the setting that is missing is not in the file.
                self.error("backup.destination", cause, format!("set `backup.credentials`: {fix}"));
            }
            // No provider has it, which is reported.
            None if matches!(Store::of(url), Store::Unknown) => {}
            None if in_cluster => {
                let cause = "the job in the cluster signs in as the service account `textnlp-backup` of the namespace";
                let fix = format!("if that has no rights in the cloud, {fix}");
                self.say(Severity::Note, "backup.credentials", cause, fix);
            }
            None if backup.enabled => {
                let cause = "scheduled backups sign in with the role of the machine, and do not have your variables";
                self.say(Severity::Note, "backup.credentials", cause, format!("if it has no role, {fix}"));
            }
            None => {}
        }
        let private_ca = e.network.private_ca.as_ref().filter(|_| backup.enabled && !in_cluster);
        if private_ca.is_some_and(|file| !file.starts_with('/')) {
            let cause = "the supervisor that takes backups runs in another folder";
            self.error("network.private_ca", cause, "write a path that begins with `/`");
        }
    }

    /// The place of the last site that may take over, in the order of their turns. Each place is half a poll interval.
    fn last_turn(&self) -> u32 {
        u32::try_from(self.environment.members().count().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Requirements of sites that fail over through the gateway.
    fn witnessed(&mut self, place: WitnessPlace<'_>, catalogue: &Catalogue) {
        let e = self.environment;
        let home = e.primary();
        if e.members().count() < 2 {
            let fix = "add `api` to the `services` of a second site, or write `mode: none`";
            self.error("dr.mode", "only one site runs the API, so there is no site to fail over to", fix);
        }
        if let Some((i, _)) = e.sites.iter().enumerate().find(|(_, site)| site.serves() && site.database().is_none()) {
            let cause = "the site runs the API and has no database for control data";
            self.error(&format!("sites[{i}].services"), cause, "add `database-replica`");
        }
        if let Some(i) = e.sites.iter().position(|site| site.role == Role::Primary && !site.serves()) {
            let cause = "the primary must run the API: the first API key is created there";
            self.error(&format!("sites[{i}].services"), cause, "add `api`");
        }
        if e.dr.watch_every.0 < FASTEST_LOOK {
            let cause = format!("a poll interval of {} is shorter than the time of one answer", e.dr.watch_every);
            self.error("dr.watch_every", cause, format!("write at least `{}`", Span(FASTEST_LOOK)));
        } else if e.dr.watch_every.0 > SLOWEST_LOOK {
            let cause = format!("a poll interval of {} is too long to detect a site failure in time", e.dr.watch_every);
            self.error("dr.watch_every", cause, format!("write at most `{}`", Span(SLOWEST_LOOK)));
        }
        if e.dr.lost_after < 2 {
            let cause = "one failed poll can be a busy machine and not a site failure";
            self.error("dr.lost_after", cause, "write at least 2");
        }
        if e.dr.failback == Failover::Automatic && e.dr.mode == Failover::Manual {
            let cause = "automatic failback needs automatic failover";
            self.error("dr.failback", cause, "write `failback: manual`, or `mode: automatic`");
        }
        // Links between machines are not supported yet. Sites on one machine use sockets, and clusters have addresses.
        let machine = match home {
            Some(home) if !home.is_in_cluster() => (home.provider.as_str(), home.region.as_str()),
            _ => (place.provider, place.region),
        };
        let is_remote =
            |site: &SiteSettings| !site.is_in_cluster() && (site.provider.as_str(), site.region.as_str()) != machine;
        if let Some((i, site)) = e.sites.iter().enumerate().find(|(_, site)| is_remote(site)) {
            let cause = format!(
                "the built-in global endpoint supports only clusters and sites on one machine, and this site is in `{}`",
                cut(&site.region)
            );
            // Sites on machines have no other way to share their traffic.
            let fix = match home.is_some_and(SiteSettings::is_on_machine) {
                true => format!("write `region: {}`, or make it an environment of its own", machine.1),
                false => format!("write `traffic: {{ mode: dns }}`, or `region: {}`", machine.1),
            };
            self.say(Severity::Refusal, &format!("sites[{i}].region"), cause, fix);
        }
        if place.runtime != Runtime::Process {
            let cause = "the witness and the global endpoint are processes on a machine outside every cluster";
            let fix = "write `witness: { provider: …, region: local }` with a provider of machines";
            self.say(Severity::Refusal, "dr.witness", cause, fix);
        } else if (place.provider, place.region) != machine {
            let cause = format!(
                "the witness of sites on one machine is a process on that machine, not in `{}`",
                cut(place.region)
            );
            let fix = format!("write `witness: {{ provider: {}, region: {} }}`", machine.0, machine.1);
            self.say(Severity::Refusal, "dr.witness", cause, fix);
        }
        self.witnessed_clusters(catalogue);
        if e.tls.mode == TlsMode::Existing {
            let cause = "the global endpoint verifies each site with the site's built-in certificate authority";
            self.say(Severity::Refusal, "tls.mode", cause, "write `tls: { mode: local-ca }`");
        }
    }

    /// Requirements of sites in clusters that fail over to each other.
    fn witnessed_clusters(&mut self, catalogue: &Catalogue) {
        let e = self.environment;
        let mut clusters = e.sites.iter().enumerate().filter(|(_, site)| site.is_in_cluster()).peekable();
        if clusters.peek().is_some() && !e.stores_outside() {
            let cause = "sites in clusters fail over to one another only if all use one external PostgreSQL";
            let fix = "write `database: { kind: postgres, url: \"secret:env:DATABASE_URL\" }`, which every cluster and this machine reach";
            self.say(Severity::Refusal, "database", cause, fix);
        }
        let mut known: Vec<&SiteSettings> = Vec::new();
        for (i, site) in clusters {
            if let Some(other) = known.iter().find(|other| is_same_cluster(e, catalogue, other, site)) {
                let cause = format!("`{}` is in the same cluster", other.name);
                let (at, fix) = match creates_clusters(catalogue, site) {
                    false => ("cluster.context", "write another `context` or `kubeconfig`: a cluster fails as a whole"),
                    true => ("existing.cluster", "write another cluster, or none: a cluster fails as a whole"),
                };
                self.error(&format!("sites[{i}].{at}"), cause, fix);
            }
            known.push(site);
            if site.cluster.ingress.is_some() {
                let cause = "the global endpoint needs TLS to the pods of a site, and an ingress terminates TLS";
                let fix = "write `address: https://HOST:PORT` of a load balancer that passes TLS through, with `load_balancer: true` if it is the cluster's";
                self.say(Severity::Refusal, &format!("sites[{i}].cluster.ingress"), cause, fix);
            } else if site.cluster.address.is_none() {
                let cause = "the global endpoint needs the address of this site, and none is configured";
                let fix = "write `address: https://HOST:PORT`, and `load_balancer: true` if it is the cluster's load balancer";
                self.error(&format!("sites[{i}].cluster.address"), cause, fix);
            }
        }
    }
}

/// Whether the provider of a site creates its cluster, which no kubeconfig names then.
pub(super) fn creates_clusters(catalogue: &Catalogue, site: &SiteSettings) -> bool {
    let support = catalogue.providers.get(&site.provider).and_then(|offer| offer.capabilities.of(site.runtime));
    support.is_some_and(|support| support.supports(Capability::Optional(Setting::ClusterVersion)))
}

/// Whether two sites are in one cluster, as far as the environment says: that of one kubeconfig, or one existing cluster of a cloud, which is
/// the environment's where a site has none. A cloud creates a cluster for each other site. An account that is not set may be the other's.
fn is_same_cluster(e: &Environment, catalogue: &Catalogue, one: &SiteSettings, other: &SiteSettings) -> bool {
    let access = |site: &SiteSettings| (site.cluster.kubeconfig.clone(), site.cluster.context.clone());
    let existing = |site: &SiteSettings| site.existing.cluster.clone().or_else(|| e.cluster.existing.clone());
    if one.provider != other.provider {
        return false;
    }
    if existing(one).is_some() || existing(other).is_some() {
        let accounts = one.account.as_ref().zip(other.account.as_ref());
        let is_same_place = one.region == other.region && accounts.is_none_or(|(one, other)| one == other);
        return is_same_place && existing(one) == existing(other);
    }
    !creates_clusters(catalogue, one) && access(one) == access(other)
}

/// Whether an address is a bucket with a prefix, and nothing more.
fn is_bucket(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let is_named = !rest.is_empty() && !rest.starts_with('/');
    is_named && !rest.contains(['@', '?', '#', ' ']) && !rest.split('/').any(|part| part == "." || part == "..")
}
