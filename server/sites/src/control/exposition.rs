//! Metrics of a site agent and of the witness, in OpenMetrics format.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use textnlp_control::{MemberRole, Site};
use textnlp_process::encoded;

use super::dns::Records;
use super::status::Status;
use super::witness::Running;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySite {
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPeer {
    site: String,
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByData {
    site: String,
    data: &'static str,
}

type Real = Gauge<f64, AtomicU64>;

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

pub(super) fn of_watch(site: &Site, status: &Status) -> String {
    let mut registry = Registry::default();
    let own = BySite { site: site.to_string() };
    let overview = &status.overview;
    let one = |registry: &mut Registry, name: &str, help: &str, value: f64| {
        let family = Family::<BySite, Real>::default();
        family.get_or_create(&own).set(value);
        registry.register(name, help, family);
    };
    one(
        &mut registry,
        "textnlp_control_epoch",
        "Epoch of the configuration that this site knows",
        overview.epoch as f64,
    );
    let is_primary = overview.role == MemberRole::Primary;
    one(&mut registry, "textnlp_control_primary", "1 where this site is the primary", f64::from(u8::from(is_primary)));
    let is_member = overview.role != MemberRole::Outsider;
    one(&mut registry, "textnlp_control_member", "1 where this site is in sync", f64::from(u8::from(is_member)));
    let writable = f64::from(u8::from(overview.writable));
    one(&mut registry, "textnlp_control_writable", "1 where control data can be written at this site", writable);
    let committed = overview.committed as f64;
    one(
        &mut registry,
        "textnlp_control_committed_index",
        "The last acknowledged entry that this site knows",
        committed,
    );
    let silence = overview.witness_heard_ms.map_or(f64::INFINITY, seconds);
    one(&mut registry, "textnlp_control_witness_silent_seconds", "Since the witness answered", silence);
    let withdrawn = status.withdrawn as f64;
    one(&mut registry, "textnlp_control_withdrawn_entries", "Unacknowledged entries that were withdrawn", withdrawn);

    let rpo = Family::<ByData, Real>::default();
    for (data, ms) in [("control", status.rpo_ms.control), ("usage", status.rpo_ms.usage)] {
        rpo.get_or_create(&ByData { site: site.to_string(), data }).set(seconds(ms));
    }
    registry.register("textnlp_rpo_seconds", "Data that would be lost with this site's disk now, as time", rpo);
    let (rows, age) = (Family::<ByPeer, Real>::default(), Family::<ByPeer, Real>::default());
    for (peer, seen) in &status.peers {
        let label = ByPeer { site: site.to_string(), peer: peer.to_string() };
        rows.get_or_create(&label).set(seen.usage_behind_rows as f64);
        age.get_or_create(&label).set(seconds(seen.usage_behind_ms));
    }
    registry.register("textnlp_usage_unshipped_rows", "Rows of usage that a peer lacks", rows);
    registry.register("textnlp_usage_unshipped_seconds", "Age of the oldest row of usage that a peer lacks", age);
    if let Some(database) = &status.database {
        let ready = f64::from(u8::from(database.ready));
        one(&mut registry, "textnlp_database_ready", "1 where this site's database server works", ready);
        let fit = f64::from(u8::from(database.fit));
        one(
            &mut registry,
            "textnlp_database_fit",
            "1 where this site's database server has the data of the primary's",
            fit,
        );
        let (bytes, age) = (Family::<ByPeer, Real>::default(), Family::<ByPeer, Real>::default());
        for (peer, copy) in &database.copies {
            let label = ByPeer { site: site.to_string(), peer: peer.to_string() };
            bytes.get_or_create(&label).set(copy.behind_bytes as f64);
            age.get_or_create(&label).set(seconds(copy.behind_ms));
        }
        registry.register("textnlp_database_behind_bytes", "Changes of the database that a site's copy lacks", bytes);
        registry.register("textnlp_database_behind_seconds", "How long ago the first of them was made", age);
    }
    let (missing, lag) = (Family::<ByData, Real>::default(), Family::<ByData, Real>::default());
    for (data, progress) in &status.copies {
        let label = ByData { site: site.to_string(), data };
        missing.get_or_create(&label).set(progress.missing_bytes as f64);
        lag.get_or_create(&label).set(progress.whole_ms.map_or(f64::INFINITY, seconds));
    }
    registry.register("textnlp_copy_missing_bytes", "Items that the primary has and this site lacks", missing);
    registry.register(
        "textnlp_copy_whole_seconds",
        "Age of the primary's list that this site last had everything of",
        lag,
    );
    encoded(&registry)
}

pub(super) fn of_witness(running: &Running) -> String {
    let mut registry = Registry::default();
    let status = running.status();
    let number = |key: &str| status[key].as_f64().unwrap_or(0.0);
    let epoch = Real::default();
    epoch.set(number("epoch"));
    registry.register("textnlp_witness_epoch", "Epoch of the current configuration", epoch);
    let silent = Real::default();
    silent.set(number("renewed_ms") / 1000.0);
    registry.register("textnlp_witness_primary_silent_seconds", "Since the primary last reported", silent);
    let weights = Family::<BySite, Real>::default();
    for (site, weight) in status["weights"].as_object().into_iter().flatten() {
        weights.get_or_create(&BySite { site: site.clone() }).set(weight.as_f64().unwrap_or(0.0));
    }
    registry.register("textnlp_site_weight", "Share of traffic that a site gets", weights);
    if let Some(dns) = running.dns.as_ref().map(Records::figures) {
        let failures = Counter::<u64>::default();
        failures.inc_by(dns.failures);
        registry.register("textnlp_dns_update_failures", "Updates and checks of the DNS name that failed", failures);
        let right = Real::default();
        right.set(f64::from(u8::from(dns.is_right)));
        registry.register("textnlp_dns_current", "1 where the DNS name has the addresses that it should", right);
        let confirmed = Real::default();
        confirmed.set(dns.confirmed_seconds);
        registry.register(
            "textnlp_dns_updated_seconds",
            "Since the name server said that the name is right",
            confirmed,
        );
    }
    encoded(&registry)
}
