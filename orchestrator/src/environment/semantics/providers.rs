//! Whether the named providers exist, and support what the environment asks of them.

use std::collections::BTreeMap;

use textnlp_provider::capabilities::{Setting, Store};
use textnlp_provider::{Capability, Form};

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::{Catalogue, Checker};

impl Checker<'_> {
    pub(super) fn providers(&mut self, catalogue: &Catalogue) {
        let e = self.environment;
        if e.dr.witness.as_ref().is_some_and(|witness| witness.provider == "auto") {
            let cause = "the provider of the witness is not detected automatically";
            self.error("dr.witness.provider", cause, "write it, such as `provider: onprem`");
        }
        if catalogue.providers.is_empty() {
            return;
        }
        let names: Vec<&str> = catalogue.providers.keys().map(String::as_str).collect();
        let mut unsupported: BTreeMap<&str, (String, String)> = BTreeMap::new();
        let export = Capability::Optional(Setting::BillingExport);
        // One site whose costs are in the export is enough.
        let is_export_read = e.sites.iter().any(|site| {
            let offer = catalogue.providers.get(&site.provider);
            offer.and_then(|offer| offer.capabilities.of(site.runtime)).is_some_and(|support| support.supports(export))
        });
        let witness = e.dr.witness.iter().map(|w| ("dr.witness".to_owned(), &w.provider, None));
        let sites = e.sites.iter().enumerate();
        let sites = sites.map(|(i, site)| (format!("sites[{i}]"), &site.provider, Some(site)));
        for (path, provider, place) in sites.chain(witness).collect::<Vec<_>>() {
            if provider == "auto" {
                continue; // of a site it was reported where the detection failed
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
            if let Some(missing) = &offer.missing {
                let cause = format!("provider `{provider}` is not part of this program");
                self.say(Severity::Refusal, &format!("{path}.provider"), cause, missing);
                continue;
            }
            let Some(site) = place else { continue };
            let runtime = site.runtime;
            let Some(support) = offer.capabilities.of(runtime) else {
                let fix = format!("use `{}`", offer.capabilities.names().join("` or `"));
                let cause = format!("provider `{provider}` does not support the runtime `{runtime}`");
                self.say(Severity::Refusal, &format!("{path}.runtime"), cause, fix);
                continue;
            };
            let who = match offer.capabilities.runtimes.len() {
                1 => format!("provider `{provider}`"),
                _ => format!("provider `{provider}` with `runtime: {runtime}`"),
            };
            for (capability, value) in requested(e) {
                // The records of several sites are in the zone of the primary's provider.
                let is_elsewhere = capability == Capability::Optional(Setting::ExistingZone)
                    && e.has_site_records()
                    && site.role != Role::Primary;
                let is_of_another = capability == export && is_export_read;
                // Sites of several clouds have GPUs of their own.
                let is_unwritten = capability == Capability::Optional(Setting::GpuUpgrade)
                    && site.gpu.as_ref().unwrap_or(&e.gpu).upgrade.is_none();
                if is_elsewhere || is_of_another || is_unwritten || support.supports(capability) {
                    continue;
                }
                let cause = match capability {
                    Capability::Gpu(_) => format!("{who} does not support GPUs of size `{}`", cut(&value)),
                    Capability::Optional(_) => {
                        format!("{who} does not support this setting (`{}`)", cut(&value))
                    }
                    _ => format!("{who} does not support `{}`", cut(&value)),
                };
                // Dumps of a cluster are on a volume in it, if not in a bucket.
                let is_accepted =
                    |other: &&Capability| **other != Capability::Backup(Store::Folder) || !e.dumps_in_cluster();
                let instead = support.alternatives(capability).filter(is_accepted);
                let instead: Vec<String> = instead.map(|other| other.to_write()).collect();
                let why = support.reason(capability.path()).filter(|_| instead.is_empty());
                let cause = match why {
                    Some(why) => format!("{cause}: {why}"),
                    None => cause,
                };
                let fix = match instead.as_slice() {
                    // In a cluster cert-manager orders it; a load balancer of a cloud has one of its own.
                    _ if capability == Capability::Tls(TlsMode::Acme) && site.is_in_cluster() => {
                        "use `existing` with the Secret of cert-manager, or `local-ca` with a public certificate at \
                         the ingress or, by `traffic.managed_certificate`, at the load balancer"
                            .to_owned()
                    }
                    [] => "remove it".to_owned(),
                    instead => format!("use {}", instead.join(" or ")),
                };
                unsupported.entry(capability.path()).or_insert((cause, fix));
            }
        }
        for (path, (cause, fix)) in unsupported {
            self.say(Severity::Refusal, path, cause, fix);
        }
        self.features_without_effect();
        self.forms(catalogue);
    }

    /// Ids in a form that their provider does not have: found before a sign-in, or in the answers of the provider minutes later.
    fn forms(&mut self, catalogue: &Catalogue) {
        let e = self.environment;
        let account = &e.account;
        let mut found: BTreeMap<String, (String, &str)> = BTreeMap::new();
        for (i, site) in e.sites.iter().enumerate() {
            let Some(offer) = catalogue.providers.get(&site.provider) else { continue };
            let own = site.existing.role.as_ref();
            let role = if own.is_some() { format!("sites[{i}].existing.role") } else { Form::ROLE.to_owned() };
            // A site whose region is not written yet has that of a machine.
            let region = Some(&site.region).filter(|region| !region.is_empty() && *region != LOCAL);
            for (setting, path, id) in [
                (Form::ACCOUNT, format!("sites[{i}].account"), site.account.as_ref()),
                (Form::REGION, format!("sites[{i}].region"), region),
                (Form::ROLE, role, own.or(account.existing_role.as_ref())),
                (Form::BOUNDARY, Form::BOUNDARY.to_owned(), account.permission_boundary.as_ref()),
            ] {
                if let (Some(form), Some(id)) = (offer.capabilities.form(setting), id)
                    && !(form.fits)(id)
                {
                    let cause = format!("provider `{}` has no id like `{}`", cut(&site.provider), cut(id));
                    found.entry(path).or_insert((cause, form.says));
                }
            }
        }
        for (path, (cause, fix)) in found {
            self.error(&path, cause, fix);
        }
    }
}

/// Everything that the environment asks of a provider, with the value as the operator wrote it. A setting at its default asks nothing:
/// environments in bundles have every default written out.
fn requested(e: &Environment) -> Vec<(Capability, String)> {
    let (rollout, traffic) = (Rollout::default(), TrafficSettings::default());
    let gpus = e.sites.iter().filter_map(|site| site.gpu.as_ref()).chain([&e.gpu]);
    let gpu = gpus.map(|gpu| gpu.size).find(|size| *size != GpuSize::None);
    let choices = [
        Some(Capability::Database(e.database.kind, e.database_hosting())),
        (e.cache.kind == CacheKind::Redis && !e.cache.is_external())
            .then_some(Capability::Cache(e.cache.kind, e.cache.hosting)),
        Some(Capability::Tls(e.tls.mode)),
        Some(Capability::Traffic(e.traffic.mode)),
        Some(Capability::Rollout(e.rollout.strategy)),
        Some(Capability::State(Store::of(&e.state.store))),
        gpu.map(Capability::Gpu),
        (e.dr.mode != Failover::None).then_some(Capability::Failover(e.dr.mode)),
        (e.replication.database.mode != DatabaseCopy::None)
            .then_some(Capability::Replication(e.replication.database.mode)),
        e.backup.enabled.then(|| Capability::Backup(e.backup.destination.as_deref().map_or(Store::Folder, Store::of))),
    ];
    let value = |choice: Capability| match choice {
        Capability::State(Store::Unknown) => e.state.store.clone(),
        Capability::Backup(Store::Unknown) => e.backup.destination.clone().unwrap_or_default(),
        choice => choice.to_string(),
    };
    let choices = choices.into_iter().flatten().map(|choice| (choice, value(choice)));
    let of = |setting: Setting| -> Option<String> {
        let is_on = |on: bool| on.then(|| "true".to_owned());
        let list = |values: Vec<String>| (!values.is_empty()).then(|| values.join(", "));
        let existing = |of: fn(&Existing) -> Option<&String>, general: &Option<String>| {
            general.as_ref().or_else(|| e.sites.iter().find_map(|site| of(&site.existing))).cloned()
        };
        let changed = |value: Span, usual: Span| (value != usual).then(|| value.to_string());
        let notified = e.monitoring.stack || !e.monitoring.receivers.is_empty();
        let limits = &e.monitoring.alerts;
        match setting {
            Setting::PermissionBoundary => e.account.permission_boundary.clone(),
            Setting::ExistingRole => existing(|of| of.role.as_ref(), &e.account.existing_role),
            Setting::ExternalId => e.account.external_id.clone(),
            Setting::MfaDevice => e.account.mfa_serial.clone(),
            Setting::SessionDuration => e.account.session_duration.map(|span| span.to_string()),
            Setting::Backup => is_on(e.backup.enabled),
            Setting::BackupSize => e.backup.size.map(|size| size.to_string()),
            Setting::PointInTimeRecovery => e.backup.point_in_time.map(|span| span.to_string()),
            Setting::BillingExport => e.budget.billing_export.clone(),
            Setting::ClusterAccess => list(e.cluster.access.iter().map(|one| one.identity.clone()).collect()),
            Setting::ClusterNetworks => {
                let networks = e.cluster.allow_from.as_ref();
                networks.map(|all| if all.is_empty() { "[]".to_owned() } else { all.join(", ") })
            }
            Setting::ClusterNodes => {
                let nodes = e.cluster.max_nodes.unwrap_or(e.cluster.min_nodes).max(e.cluster.min_nodes);
                (nodes > 1).then(|| nodes.to_string())
            }
            Setting::NodeSize => e.cluster.node_size.map(|size| size.to_string()),
            Setting::ClusterVersion => e.cluster.version.clone(),
            Setting::DatabaseReplica => e.database.replica_region.clone(),
            Setting::GpuAutoscaling => {
                let all = e.sites.iter().map(|site| site.gpu.as_ref().unwrap_or(&e.gpu));
                let grows = all.filter(|gpu| gpu.size != GpuSize::None).filter_map(|gpu| Some((gpu.max?, gpu.count)));
                grows.filter(|(max, count)| max > count).map(|(max, _)| max).max().map(|max| max.to_string())
            }
            Setting::GpuMachines => {
                let all = e.sites.iter().map(|site| site.gpu.as_ref().unwrap_or(&e.gpu));
                list(all.filter(|gpu| gpu.size != GpuSize::None).flat_map(|gpu| gpu.machines.clone()).collect())
            }
            Setting::GpuUpgrade => {
                let all = e.sites.iter().map(|site| site.gpu.as_ref().unwrap_or(&e.gpu));
                let written = all.filter(|gpu| gpu.size != GpuSize::None).filter_map(|gpu| gpu.upgrade);
                list(written.map(|upgrade| upgrade.to_string()).collect())
            }
            Setting::Maintenance => e.maintenance.map(|window| format!("{} {}", window.day, window.at)),
            Setting::Features => list(e.features.keys().cloned().collect()),
            // A limit without a receiver raises no alert.
            Setting::AlertLimits => list(alert_limits(limits)).filter(|_| !notified),
            Setting::AlertReceivers => list(e.monitoring.receivers.keys().cloned().collect()),
            Setting::MonitoringStack => is_on(e.monitoring.stack),
            Setting::AddressRange => e.network.cidr.clone(),
            // The default of a phase applies only where there are pods.
            Setting::NetworkPolicies => is_on(e.network.policies == Some(true)),
            Setting::PrivateAuthority => e.network.private_ca.clone(),
            Setting::Proxy => (e.network.proxy != Proxy::default()).then(|| "proxy".to_owned()),
            Setting::Subnets => {
                let of_sites = e.sites.iter().flat_map(|site| &site.existing.subnets);
                list(e.network.subnets.iter().chain(of_sites).cloned().collect())
            }
            Setting::WebApplicationFirewall => is_on(e.network.waf),
            Setting::ExistingRegistry => existing(|of| of.registry.as_ref(), &e.registry.existing),
            Setting::RegistryPassword => e.registry.password.as_ref().map(ToString::to_string),
            Setting::Registry => e.registry.of_cloud().map(str::to_owned),
            // Only a rollout in steps waits.
            Setting::RolloutBake => {
                changed(e.rollout.bake, rollout.bake).filter(|_| e.rollout.strategy == Strategy::Rolling)
            }
            Setting::RolloutDeadline => {
                changed(e.rollout.deadline, rollout.deadline).filter(|_| e.rollout.strategy == Strategy::Rolling)
            }
            Setting::Autoscaling => e.scaling.max.filter(|max| *max > e.scaling.min).map(|max| max.to_string()),
            Setting::ArchiveAfter => e.storage.archive_after.map(|after| after.to_string()),
            Setting::EncryptionKey => existing(|of| of.key.as_ref(), &e.storage.existing_key),
            Setting::ModelFolder => e.storage.model_folder.clone(),
            Setting::ModelReplica => e.storage.replicate_to.clone(),
            Setting::Tags => list(e.tags.keys().cloned().collect()),
            Setting::ExistingZone => existing(|of| of.zone.as_ref(), &e.traffic.existing),
            Setting::ManagedCertificate => e.traffic.managed_certificate.then(|| "true".to_owned()),
            // The records of a zone have a lifetime.
            Setting::DnsTtl => changed(e.traffic.ttl, traffic.ttl).filter(|_| e.dns.is_none()),
        }
    };
    let settings = Setting::ALL.iter().filter_map(|setting| Some((Capability::Optional(*setting), of(*setting)?)));
    choices.chain(settings).collect()
}

/// The names of the limits that are not at their defaults.
fn alert_limits(alerts: &Alerts) -> Vec<String> {
    let Alerts { latency, latency_for, error_rate, error_rate_for, memory, disk, restarts } = Alerts::default();
    [
        ("latency", alerts.latency != latency),
        ("latency_for", alerts.latency_for != latency_for),
        ("error_rate", alerts.error_rate != error_rate),
        ("error_rate_for", alerts.error_rate_for != error_rate_for),
        ("memory", alerts.memory != memory),
        ("disk", alerts.disk != disk),
        ("restarts", alerts.restarts != restarts),
    ]
    .into_iter()
    .filter(|(_, is_changed)| *is_changed)
    .map(|(name, _)| name.to_owned())
    .collect()
}
