//! Components → resources. Pure: paths follow from the names.

mod serving;

mod postgres;
mod recovery;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use camino::Utf8PathBuf;
use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_keys::{Expansion, Keys, SiteFolder};
use textnlp_provider::component::{
    AcmeAccount, Backup, Cluster, ComponentSpec, Database, ExternalSecret, ModelStore, Monitoring, Network,
    ReceiverAddress,
};
use textnlp_provider::settings::{DatabaseKind, Runtime};
use textnlp_provider::{Component, ComponentName, OutputRef, Problems, ResourceId, Site, Wanted};

use crate::alert::{AlertOrder, Receiver};
use crate::names::{ALERTS_FILE, BACKUP_FILE, DATABASE_FILE};
use crate::spec::{DatabaseSpec, ModelSpec, SupervisorSpec};
use crate::table::ResourceKind;

/// The inputs of a component's resources.
pub(crate) struct Lowering<'a> {
    expansion: Expansion<'a>,
    /// Expands folders, secrets and certificates.
    keys: &'a Keys,
    pub(crate) folder: SiteFolder,
    /// See [`crate::Options::serves_elsewhere`].
    pub(crate) elsewhere: bool,
}

impl<'a> Deref for Lowering<'a> {
    type Target = Expansion<'a>;

    fn deref(&self) -> &Self::Target {
        &self.expansion
    }
}

impl DerefMut for Lowering<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.expansion
    }
}

/// Expands a component of a site into resources.
pub(crate) fn lower(
    component: &Component,
    site: &Site,
    keys: &Keys,
    folder: SiteFolder,
    elsewhere: bool,
) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { expansion: Expansion::new(component, site), keys, folder, elsewhere };
    lowering.lower();
    lowering.expansion.finish()
}

impl Lowering<'_> {
    fn lower(&mut self) {
        if self.site.runtime != Runtime::Process {
            let cause =
                format!("the on-prem provider runs programs as local processes, not with `{}`", self.site.runtime);
            return self.problem("runtime", cause, "set `runtime: process` for this site");
        }
        let existing_is_read = matches!(&self.component.part, ComponentSpec::Certificate(_));
        if self.component.existing.is_some() && !existing_is_read {
            return self.problem("existing", "only a certificate can be `existing` on a machine", "remove `existing`");
        }
        match &self.component.part {
            ComponentSpec::Network(network) => self.network(network),
            ComponentSpec::Cluster(cluster) => self.cluster(cluster),
            ComponentSpec::Secrets(_) => self.keys.expand(&mut self.expansion),
            ComponentSpec::Certificate(certificate) => {
                self.keys.expand(&mut self.expansion);
                if let Some(acme) = &certificate.acme {
                    self.public_certificate(acme, &certificate.names);
                }
            }
            ComponentSpec::ModelStore(models) => self.models(models),
            ComponentSpec::Database(database) => self.database(database),
            ComponentSpec::Workload(workload) => self.workload(workload),
            ComponentSpec::Endpoint(endpoint) => self.endpoint(endpoint),
            ComponentSpec::Cache(cache) => {
                let cause = format!("local processes do not create a `{}` cache", cache.kind);
                self.problem(
                    "kind",
                    cause,
                    "write the address of a Redis that you run as `cache.url`, or `cache: { kind: memory }`",
                );
            }
            ComponentSpec::Traffic(traffic) if traffic.weights.keys().all(|site| *site == self.site.name) => {}
            ComponentSpec::Traffic(_) => {
                let cause = "the gateway of one machine does not split traffic with other sites";
                self.problem("weights", cause, "keep only this site in `traffic.weights`");
            }
            ComponentSpec::Monitoring(monitoring) => self.monitoring(monitoring),
            // Programs are copied as files, by digest: no images are pulled.
            ComponentSpec::Registry(_) => {}
            ComponentSpec::Relay(border) => self.border(border),
            ComponentSpec::SiteAgent(watch) => self.watch(watch),
            ComponentSpec::Witness(witness) => self.witness(witness),
            ComponentSpec::GlobalEndpoint(front) => self.front(front),
            ComponentSpec::Backup(backup) => self.backup(backup),
            ComponentSpec::InferenceEndpoint(_) => {
                self.problem("runtime", "this machine runs processes", "write `runtime: process`");
            }
        }
    }

    fn network(&mut self, network: &Network) {
        if let Some(cidr) = &network.cidr {
            let cause = format!("local processes have no address range such as {cidr}");
            self.problem("cidr", cause, "remove it for this site");
        }
        self.keys.expand(&mut self.expansion);
    }

    fn cluster(&mut self, cluster: &Cluster) {
        if cluster.gpu.is_some() {
            let cause = "GPUs are not handed out to local processes, which serve on the CPU";
            self.problem("gpu", cause, "remove `gpu` for this site, or choose a runtime with GPU machines");
        }
        let network = ResourceId::of(&self.site.name, &cluster.network);
        let spec = SupervisorSpec { state: "running".to_owned(), version: Some(crate::supervise::VERSION.to_owned()) };
        let id = self.id();
        self.want(id, ResourceKind::Supervisor, &spec, [network]);
    }

    fn models(&mut self, store: &ModelStore) {
        let mut labels: BTreeMap<String, &str> = BTreeMap::new();
        for model in &store.models {
            let label = label_of(&model.name);
            if let Some(other) = labels.insert(label.clone(), &model.name) {
                self.problem("models", format!("`{other}` and `{}` have the same name", model.name), "rename one");
                continue;
            }
            let Some(id) = self.part(&label) else { continue };
            let spec = ModelSpec {
                name: model.name.clone(),
                source: model.source.clone(),
                digest: model.digest.clone(),
                path: format!("models/{label}"),
                max_cache_bytes: store.max_cache_bytes,
            };
            let network = self.network_id();
            self.want(id, ResourceKind::Model, &spec, [network]);
        }
    }

    fn database(&mut self, database: &Database) {
        if let Some(postgres) = &database.postgres {
            return self.postgres(database, postgres);
        }
        if database.kind != DatabaseKind::Sqlite {
            let cause =
                format!("a `{}` database without an address is not supported by local processes", database.kind);
            return self.problem("kind", cause, "set `database: { kind: sqlite }`");
        }
        let spec = DatabaseSpec { path: DATABASE_FILE.to_owned(), schema: database.schema };
        let network = self.network_id();
        let id = self.id();
        self.want_protected(id, ResourceKind::Database, &spec, [network]);
    }

    /// The certificate of a public authority, which is ordered once the gateway answers challenges.
    fn public_certificate(&mut self, acme: &AcmeAccount, names: &[String]) {
        let id = self.part("public");
        let (key, gateway) = (self.part_of(&acme.secrets, &acme.key), self.part_of(&acme.gateway, "process"));
        let (Some(id), Some(key), Some(gateway)) = (id, key, gateway) else { return };
        let mut proxy = serde_json::Map::new();
        for (name, address) in &acme.proxy {
            let address = match address {
                ReceiverAddress::Plain(address) => json!(address),
                ReceiverAddress::Secret(external) => {
                    let label = name.to_ascii_lowercase().replace('_', "-");
                    let Some(secret) = self.part(&label) else { return };
                    self.given_secret(secret.clone(), &format!("acme-{label}"), external);
                    json!(OutputRef::new(secret, "secret"))
                }
            };
            proxy.insert(name.clone(), address);
        }
        let mut spec = json!({
            "directory": acme.directory,
            "names": textnlp_keys::trust::sorted_names(names),
            "account_key": OutputRef::new(key, "secret"),
        });
        if let Some(email) = &acme.email {
            spec["email"] = json!(email);
        }
        if let Some(ca_file) = &acme.ca_file {
            spec["ca_file"] = json!(ca_file);
        }
        if !proxy.is_empty() {
            spec["proxy"] = json!(proxy);
        }
        self.want(id, ResourceKind::PublicCertificate, &spec, [gateway]);
    }

    /// The schedule is a file that the supervisor reads.
    fn backup(&mut self, backup: &Backup) {
        let spec = json!({ "path": BACKUP_FILE, "document": backup });
        let network = self.network_id();
        let id = self.id();
        self.want(id, ResourceKind::File, &spec, [network]);
    }

    /// The receivers and their proxies are a file that the supervisor reads.
    fn monitoring(&mut self, monitoring: &Monitoring) {
        if monitoring.stack {
            let cause = "no dashboards are installed on a machine: `metrics dashboard` prints one";
            self.problem("stack", cause, "set `monitoring: { stack: false }`");
        }
        if monitoring.receivers.is_empty() {
            return;
        }
        let mut needs = vec![self.network_id()];
        let receivers = monitoring.receivers.iter().filter_map(|(name, address)| {
            let parts = ["secret", "file"].map(|what| format!("{what}-{name}"));
            Some((name.clone(), self.receiver(address, &format!("alert-{name}"), parts, &mut needs)?))
        });
        let receivers = receivers.collect();
        let proxy = monitoring.proxy.iter().filter_map(|(name, address)| {
            let label = name.to_ascii_lowercase().replace('_', "-");
            let parts = ["secret", "file"].map(|what| format!("proxy-{what}-{label}"));
            Some((name.clone(), self.receiver(address, &label, parts, &mut needs)?))
        });
        let proxy = proxy.collect();
        let order = AlertOrder {
            environment: self.site.environment.to_string(),
            site: self.site.name.to_string(),
            receivers,
            limits: monitoring.limits,
            service: monitoring.service,
            home: monitoring.home,
            contacts: monitoring.contacts.clone(),
            ca_file: monitoring.ca_file.as_ref().map(Utf8PathBuf::from),
            proxy,
        };
        let spec = json!({ "path": ALERTS_FILE, "document": order });
        let id = self.id();
        self.want(id, ResourceKind::File, &spec, needs);
    }

    /// An address that the supervisor reads. A secret one from a variable is stored as the file `name`, because the
    /// supervisor outlives the environment of `up`. One that comes from a file stays there.
    fn receiver(
        &mut self,
        address: &ReceiverAddress,
        name: &str,
        [secret, file]: [String; 2],
        needs: &mut Vec<ResourceId>,
    ) -> Option<Receiver> {
        let external = match address {
            ReceiverAddress::Plain(address) => return Some(Receiver::Address { address: address.clone() }),
            ReceiverAddress::Secret(external) => external,
        };
        if let Some(path) = external.source.strip_prefix("secret:file:") {
            return Some(Receiver::File { file: path.into() });
        }
        let (secret, file) = (self.part(&secret), self.part(&file));
        let (secret, file) = (secret?, file?);
        let path = format!("config/{name}");
        self.given_file(name, external, secret, file.clone(), &path);
        needs.push(file);
        Some(Receiver::File { file: self.folder.join(&path) })
    }

    /// A user-provided secret `name`, and the file at `path` that programs read.
    fn given_file(&mut self, name: &str, external: &ExternalSecret, secret: ResourceId, file: ResourceId, path: &str) {
        self.given_secret(secret.clone(), name, external);
        let network = self.network_id();
        self.want(
            file,
            ResourceKind::File,
            &json!({ "path": path, "secret": OutputRef::new(secret, "secret") }),
            [network],
        );
    }
}

/// A name as a label: unchanged where it is one, else its letters and a digest that makes it unique.
pub(crate) fn label_of(name: &str) -> String {
    if ComponentName::new(name).is_ok() {
        return name.to_owned();
    }
    let letters: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(28).collect();
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    format!("m-{}-{}", letters.trim_matches('-'), &digest[..8]).replace("--", "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_model_name_becomes_a_valid_label() {
        assert_eq!(label_of("textnlp-tiny"), "textnlp-tiny");
        for name in ["GPT2.xl", "org/name", "", "ü", &"x".repeat(99), "7b", "a--b.c"] {
            let label = label_of(name);
            assert!(ComponentName::new(label.clone()).is_ok(), "{name} -> {label}");
        }
        assert_ne!(label_of("A.b"), label_of("a.B"));
        assert_ne!(label_of("acme/own"), label_of("acme-own"));
    }
}
