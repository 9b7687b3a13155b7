//! Whether the providers that are named are there, and can do what is asked.

use std::collections::BTreeMap;

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::{Catalogue, Meaning};

impl Meaning<'_> {
    pub(super) fn providers(&mut self, catalogue: &Catalogue) {
        if catalogue.providers.is_empty() {
            return;
        }
        let e = self.environment;
        let names: Vec<&str> = catalogue.providers.keys().map(String::as_str).collect();
        let mut limits: BTreeMap<String, (String, String)> = BTreeMap::new();
        let witness = e.dr.witness.iter().map(|w| ("dr.witness".to_owned(), &w.provider, None));
        let sites = e.sites.iter().enumerate().map(|(i, s)| (format!("sites[{i}]"), &s.provider, Some(&s.runtime)));
        for (path, provider, runtime) in sites.chain(witness).collect::<Vec<_>>() {
            if provider == "auto" {
                continue; // reported where the detection failed
            }
            let Some(offer) = catalogue.providers.get(provider) else {
                let near = nearest(provider, names.iter().copied());
                let fix = near.map_or_else(
                    || format!("the providers are `{}`", names.join("`, `")),
                    |n| format!("did you mean `{n}`?"),
                );
                self.error(&format!("{path}.provider"), format!("there is no provider `{}`", cut(provider)), fix);
                continue;
            };
            if !offer.linked {
                self.say(
                    Severity::Refusal,
                    &format!("{path}.provider"),
                    format!("provider `{provider}` is not part of this program"),
                    offer.how_to_get.clone(),
                );
                continue;
            }
            let Some(runtime) = runtime else { continue };
            if !offer.runtimes.contains(runtime) {
                let runtimes: Vec<&str> = offer.runtimes.iter().map(String::as_str).collect();
                let fix = nearest(runtime, runtimes.iter().copied()).map_or_else(
                    || format!("`{provider}` runs `{}` today", runtimes.join("`, `")),
                    |n| format!("did you mean `{n}`?"),
                );
                self.say(
                    Severity::Refusal,
                    &format!("{path}.runtime"),
                    format!("`{provider}` cannot run `{}` yet", cut(runtime)),
                    fix,
                );
                continue;
            }
            for (field, word) in choices(e) {
                let known: Vec<&str> = offer
                    .choices
                    .iter()
                    .filter_map(|c| c.split_once('='))
                    .filter(|(f, _)| *f == field)
                    .map(|(_, w)| w)
                    .collect();
                if !known.is_empty() && !known.contains(&word.as_str()) {
                    let fix = match known.as_slice() {
                        [only] if *only == NOTHING => format!("remove it: `{provider}` does nothing with it today"),
                        _ => format!("`{provider}` offers `{}` today", known.join("`, `")),
                    };
                    limits.entry(field).or_insert_with(|| (word, fix));
                }
            }
        }
        for (field, (word, fix)) in limits {
            let cause = match field.as_str() {
                "gpu.size" => format!(
                    "`{}`: the server computes on the CPU, and has nothing that a GPU would run yet",
                    cut(&word)
                ),
                _ => format!("`{}` is not there yet", cut(&word)),
            };
            self.say(Severity::Refusal, &field, cause, fix);
        }
    }
}

/// The word for a field that nobody set.
const NOTHING: &str = "none";

/// The choices of an environment that a provider may not be able to make true: what it does not offer is refused, never ignored.
fn choices(e: &Environment) -> Vec<(String, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| NOTHING.to_owned());
    let list = |values: Vec<String>| if values.is_empty() { NOTHING.to_owned() } else { values.join(", ") };
    let grown = e.scaling.max.filter(|max| *max > e.scaling.min);
    let nodes = e.cluster.max_nodes.unwrap_or(e.cluster.min_nodes).max(e.cluster.min_nodes);
    let cache = if e.cache.max_size == CacheSettings::default().max_size {
        "default".to_owned()
    } else {
        e.cache.max_size.to_string()
    };
    // Only what differs is refused: an environment that a bundle carries has every default written out.
    let (rollout, traffic, monitoring) =
        (Rollout::default(), TrafficSettings::default(), MonitoringSettings::default());
    let changed = |value: Span, usual: Span| if value == usual { NOTHING.to_owned() } else { value.to_string() };
    // Rules of a monitoring beside the service know every limit; a supervisor that tells receivers does not measure answers.
    let ruled = e.monitoring.stack;
    let told = ruled || !e.monitoring.receivers.is_empty();
    let watched = e.rollout.strategy != Strategy::Rolling;
    let limits = &e.monitoring.alerts;
    let latency = changed(limits.latency, monitoring.alerts.latency);
    let errors = Some(limits.error_rate).filter(|share| *share != monitoring.alerts.error_rate);
    let errors = text(&errors.map(|share| share.to_string()));
    let health_path = Some(e.traffic.health_path.clone()).filter(|path| *path != traffic.health_path);
    let hosted =
        |kind: &str, hosting: Option<Hosting>| hosting.map_or_else(|| kind.to_owned(), |h| format!("{kind}/{h}"));
    [
        ("database.kind", hosted(e.database.kind.as_str(), e.database_hosting())),
        ("cache.kind", hosted(e.cache.kind.as_str(), e.cache.hosting)),
        ("tls.mode", e.tls.mode.to_string()),
        ("gpu.size", e.gpu.size.to_string()),
        ("state.store", e.state.store.split("://").next().unwrap_or_default().to_owned()),
        ("monitoring.stack", e.monitoring.stack.to_string()),
        ("dr.mode", e.dr.mode.to_string()),
        ("traffic.mode", e.traffic.mode.to_string()),
        // Where a zone is kept, it has a use.
        ("traffic.ttl", changed(if e.dns.is_some() { traffic.ttl } else { e.traffic.ttl }, traffic.ttl)),
        ("traffic.health_path", text(&health_path)),
        ("rollout.strategy", e.rollout.strategy.to_string()),
        // Where pods are watched before the others follow, these say how long.
        ("rollout.bake", changed(if watched { rollout.bake } else { e.rollout.bake }, rollout.bake)),
        ("rollout.deadline", changed(if watched { rollout.deadline } else { e.rollout.deadline }, rollout.deadline)),
        ("network.waf", e.network.waf.to_string()),
        ("network.policies", e.network.policies.to_string()),
        ("network.subnets", list(e.network.subnets.clone())),
        ("network.open_ports", list(e.network.open_ports.iter().map(ToString::to_string).collect())),
        ("account.permission_boundary", text(&e.account.permission_boundary)),
        ("account.existing_role", text(&e.account.existing_role)),
        ("backup.enabled", e.backup.enabled.to_string()),
        ("backup.destination", kept_in(&e.backup).to_owned()),
        ("backup.size", text(&e.backup.size.map(|size| size.to_string()))),
        ("replication.database.mode", e.replication.database.mode.to_string()),
        ("monitoring.retention", changed(e.monitoring.retention, monitoring.retention)),
        // A limit says when somebody is told, and nobody is.
        ("monitoring.alerts", if told { NOTHING.to_owned() } else { list(alerts(&e.monitoring.alerts)) }),
        ("monitoring.alerts.latency", if told && !ruled { latency } else { NOTHING.to_owned() }),
        ("monitoring.alerts.error_rate", if told && !ruled { errors } else { NOTHING.to_owned() }),
        ("scaling.max", grown.map_or_else(|| NOTHING.to_owned(), |max| max.to_string())),
        ("cluster.version", text(&e.cluster.version)),
        ("cluster.restricted", e.cluster.restricted.to_string()),
        ("network.private_ca", text(&e.network.private_ca)),
        ("cluster.max_nodes", nodes.to_string()),
        ("cache.max_size", cache),
        ("storage.archive_after", text(&e.storage.archive_after.map(|after| after.to_string()))),
        ("storage.existing_key", text(&e.storage.existing_key)),
        ("storage.model_folder", text(&e.storage.model_folder)),
        ("registry.url", text(&e.registry.url)),
        ("features", list(e.features.keys().cloned().collect())),
    ]
    .into_iter()
    .map(|(field, word)| (field.to_owned(), word))
    .collect()
}

/// The limits that are not the usual ones.
fn alerts(alerts: &Alerts) -> Vec<String> {
    let Alerts { latency, error_rate, memory, disk, restarts } = Alerts::default();
    [
        ("latency", alerts.latency != latency),
        ("error_rate", alerts.error_rate != error_rate),
        ("memory", alerts.memory != memory),
        ("disk", alerts.disk != disk),
        ("restarts", alerts.restarts != restarts),
    ]
    .into_iter()
    .filter(|(_, is_changed)| *is_changed)
    .map(|(name, _)| name.to_owned())
    .collect()
}

/// Where copies go, in a word: a folder, or the kind of object store.
fn kept_in(backup: &Backup) -> &str {
    match backup.destination.as_deref().and_then(|place| place.split_once("://")) {
        Some((scheme, _)) if backup.enabled => scheme,
        _ => "folder",
    }
}
