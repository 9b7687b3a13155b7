//! Components → resources. Pure: paths follow from the names.

mod serving;

mod postgres;
mod recovery;

use std::collections::BTreeMap;

pub(crate) use postgres::{DUMP, POSTGRES_HOME};

use camino::Utf8PathBuf;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_provider::component::{
    Backup, Certificate, Cluster, Database, Given, ModelStore, Monitoring, Network, Part, ReceiverAddress, Secrets,
};
use textnlp_provider::{
    CloudId, Component, ComponentName, Need, OutputRef, Ownership, Problem, Problems, Ref, ResourceId, SecretName,
    Site, Spec, Wanted,
};

use crate::alert::{AlertOrder, Receiver};
use crate::layout::{FOLDERS, SiteFolder};
use crate::spec::{DatabaseSpec, DirectorySpec, ModelSpec, SecretSpec, SupervisorSpec};
use crate::table::Noun;

/// The name of the component whose folder everything else of a site lies in.
pub const NETWORK: &str = "network";
/// The name of the generated secret that becomes the first API key.
pub const API_KEY: &str = "api-key";
/// The name of the generated secret that signs tokens.
pub const JWT_KEY: &str = "jwt-signing-key";

/// Clients trust the authority by hand: it must outlive many certificates.
const AUTHORITY_DAYS: u32 = 3650;

pub(crate) const CA_FILE: &str = "certs/ca.pem";
pub(crate) const CERTIFICATE_FILE: &str = "certs/server.pem";
pub(crate) const KEY_FILE: &str = "certs/server-key.pem";
/// The name of the component whose certificate clients see.
const CERTIFICATE: &str = "certificate";
pub(crate) const BACKUP_FILE: &str = "config/backup.yaml";
pub(crate) const ALERTS_FILE: &str = "config/alerts.yaml";
pub(crate) const DATABASE_FILE: &str = "data/textnlp.db";

/// What all of a component's resources are made from.
pub(crate) struct Lowering<'a> {
    pub(crate) component: &'a Component,
    pub(crate) site: &'a Site,
    pub(crate) folder: SiteFolder,
    pub(crate) hostname: &'a str,
    /// See [`crate::Options::serves_elsewhere`].
    pub(crate) elsewhere: bool,
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) problems: Vec<Problem>,
}

/// What a component of a site becomes on this machine.
pub(crate) fn lower(
    component: &Component,
    site: &Site,
    folder: SiteFolder,
    hostname: &str,
    elsewhere: bool,
) -> Result<Vec<Wanted>, Problems> {
    let mut lowering =
        Lowering { component, site, folder, hostname, elsewhere, wanted: Vec::new(), problems: Vec::new() };
    lowering.lower();
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

impl Lowering<'_> {
    fn lower(&mut self) {
        if self.site.runtime != "process" {
            let cause =
                format!("the on-prem provider runs programs as local processes, not by `{}`", self.site.runtime);
            return self.problem("runtime", cause, "set `runtime: process` for this site");
        }
        let existing_is_read = matches!(&self.component.part, Part::Certificate(_));
        if self.component.existing.is_some() && !existing_is_read {
            return self.problem("existing", "only a certificate can be `existing` on a machine", "remove `existing`");
        }
        match &self.component.part {
            Part::Network(network) => self.network(network),
            Part::Cluster(cluster) => self.cluster(cluster),
            Part::Secrets(secrets) => self.secrets(secrets),
            Part::Certificate(certificate) => self.certificate(certificate),
            Part::ModelStore(models) => self.models(models),
            Part::Database(database) => self.database(database),
            Part::Workload(workload) => self.workload(workload),
            Part::Endpoint(endpoint) => self.endpoint(endpoint),
            Part::Cache(cache) if cache.kind == "memory" => {}
            Part::Cache(cache) => {
                let cause = format!("a `{}` cache is not to be had from local processes", cache.kind);
                self.problem("kind", cause, "set `cache: { kind: memory }`, which every replica keeps for itself");
            }
            Part::Traffic(traffic) if traffic.weights.keys().all(|site| *site == self.site.name) => {}
            Part::Traffic(_) => {
                let cause = "one machine's gateway does not share traffic with other sites";
                self.problem("weights", cause, "leave only this site in `traffic.weights`");
            }
            Part::Monitoring(monitoring) => self.monitoring(monitoring),
            // Programs come as files, by digest: no images are pulled.
            Part::Registry(_) => {}
            Part::Border(border) => self.border(border),
            Part::Watch(watch) => self.watch(watch),
            Part::Witness(witness) => self.witness(witness),
            Part::Front(front) => self.front(front),
            Part::Backup(backup) => self.backup(backup),
        }
    }

    fn network(&mut self, network: &Network) {
        if let Some(cidr) = &network.cidr {
            let cause = format!("local processes have no address range such as {cidr}");
            self.problem("cidr", cause, "remove it for this site");
        }
        let folders = FOLDERS.iter().map(|folder| (*folder).to_owned()).collect();
        let spec = DirectorySpec { folders, tags: self.site.tags.clone() };
        self.want(self.id(), Noun::Directory, &spec, []);
    }

    fn cluster(&mut self, cluster: &Cluster) {
        if cluster.gpu.is_some() {
            let cause = "local processes serve on the CPU";
            self.problem("gpu", cause, "remove `gpu` for this site, or choose a runtime with GPU machines");
        }
        let network = ResourceId::of(&self.site.name, &cluster.network);
        let spec = SupervisorSpec { state: "running".to_owned(), version: Some(crate::supervise::VERSION.to_owned()) };
        self.want(self.id(), Noun::Supervisor, &spec, [network]);
    }

    fn secrets(&mut self, secrets: &Secrets) {
        for (name, recipe) in &secrets.generate {
            let Some(id) = self.part(name) else { continue };
            let is_shared = secrets.shared.contains(name);
            let kept_as = if is_shared { SecretName(format!("shared/{name}")) } else { self.secret_name(name) };
            let spec = SecretSpec { name: kept_as, recipe: Some(recipe.clone()), given: None, shared: is_shared };
            let network = self.network_id();
            self.want_protected(id, Noun::Secret, &spec, [network]);
        }
        for (name, given) in &secrets.given {
            let Some(id) = self.part(name) else { continue };
            let spec =
                SecretSpec { name: self.secret_name(name), recipe: None, given: Some(given.clone()), shared: false };
            let network = self.network_id();
            self.want(id, Noun::Secret, &spec, [network]);
        }
    }

    fn certificate(&mut self, certificate: &Certificate) {
        let (Some(authority), Some(leaf)) = (self.part("authority"), self.part("leaf")) else { return };
        match (certificate.mode.as_str(), &self.component.existing) {
            ("existing", Some(file)) => self.existing_certificate(leaf, file.clone()),
            ("existing", None) => {
                let fix =
                    "set `tls: { existing: /path/to/certificate.pem }`; its key lies beside it, with the ending `.key`";
                self.problem("existing", "no certificate file is named", fix);
            }
            ("local-ca", None) => self.local_authority(certificate, authority, leaf),
            ("local-ca", Some(_)) => self.problem("existing", "it contradicts `local-ca`", "set `mode: existing`"),
            (mode, _) => {
                let cause = format!("a certificate by `{mode}` is not to be had on a machine yet");
                self.problem("mode", cause, "set `tls: { mode: local-ca }`, or `existing` with a certificate of yours");
            }
        }
    }

    fn existing_certificate(&mut self, leaf: ResourceId, file: CloudId) {
        if !file.as_str().starts_with('/') {
            return self.problem("existing", format!("`{file}` is not an absolute path"), "write the whole path");
        }
        self.want(leaf, Noun::Certificate, &json!({ "existing": file.as_str() }), []);
        if let Some(last) = self.wanted.last_mut() {
            last.ownership = Ownership::External(file);
        }
    }

    fn local_authority(&mut self, certificate: &Certificate, authority: ResourceId, leaf: ResourceId) {
        if certificate.days == 0 || certificate.days > AUTHORITY_DAYS / 2 {
            let cause = format!("a certificate cannot live {} days", certificate.days);
            self.problem("days", cause, format!("choose 1 to {} days", AUTHORITY_DAYS / 2));
        }
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let own = Some(self.hostname.to_owned()).filter(|_| !self.elsewhere);
        names.extend(own.into_iter().filter(|name| is_dns_name(name)));
        for name in &certificate.names {
            let usable = is_dns_name(name) || name.parse::<std::net::IpAddr>().is_ok();
            if usable {
                names.push(name.clone());
            } else {
                self.problem("names", format!("`{name}` is neither a DNS name nor an address"), "correct it");
            }
        }
        let network = self.network_id();
        let subject = format!("textnlp {} {}", self.site.environment, self.site.name);
        // Another certificate of the site lies beside that of its clients, with an authority of its own.
        let name = self.component.name.as_str();
        let (ca_file, certificate_file, key_file, prefix) = match name {
            CERTIFICATE => (CA_FILE.to_owned(), CERTIFICATE_FILE.to_owned(), KEY_FILE.to_owned(), String::new()),
            other => (
                format!("certs/{other}-ca.pem"),
                format!("certs/{other}.pem"),
                format!("certs/{other}-key.pem"),
                format!("{other}-"),
            ),
        };
        let key = self.secret_name(&format!("{prefix}ca-key"));
        let spec = json!({
            "subject": subject, "days": AUTHORITY_DAYS, "certificate_file": ca_file, "key": key,
        });
        self.want_protected(authority.clone(), Noun::Authority, &spec, [network]);
        let mut spec = json!({
            "names": crate::trust::sorted_names(&names),
            "days": certificate.days,
            "certificate_file": certificate_file,
            "key_file": key_file,
            "ca_file": ca_file,
            "authority": OutputRef::new(authority.clone(), "sha256"),
            "authority_key": OutputRef::new(authority.clone(), "secret"),
        });
        if self.elsewhere {
            spec["kept"] = json!(self.secret_name(&format!("{prefix}tls")));
        }
        self.want(leaf, Noun::Certificate, &spec, [authority]);
    }

    fn models(&mut self, store: &ModelStore) {
        let mut labels: BTreeMap<String, &str> = BTreeMap::new();
        for model in &store.models {
            let label = label_of(&model.name);
            if let Some(other) = labels.insert(label.clone(), &model.name) {
                self.problem("models", format!("`{other}` and `{}` have one name", model.name), "rename one");
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
            self.want(id, Noun::Model, &spec, [network]);
        }
    }

    fn database(&mut self, database: &Database) {
        if let Some(postgres) = &database.postgres {
            return self.postgres(database, postgres);
        }
        if database.kind != "sqlite" {
            let cause = format!("a `{}` database is not to be had from local processes yet", database.kind);
            return self.problem("kind", cause, "set `database: { kind: sqlite }`");
        }
        let spec = DatabaseSpec { path: DATABASE_FILE.to_owned(), schema: database.schema };
        let network = self.network_id();
        self.want_protected(self.id(), Noun::Database, &spec, [network]);
    }

    /// The schedule is a file that the supervisor reads.
    fn backup(&mut self, backup: &Backup) {
        if let Some(place) = backup.destination.as_ref().filter(|place| !place.starts_with('/')) {
            let cause = format!("copies cannot go to `{place}` yet");
            return self.problem("destination", cause, "write a folder that begins with `/`, or leave it out");
        }
        let spec = json!({ "path": BACKUP_FILE, "document": backup });
        let network = self.network_id();
        self.want(self.id(), Noun::File, &spec, [network]);
    }

    /// Who is told is a file that the supervisor reads. An address that is a secret is kept here as a file of its own, because the
    /// supervisor goes on when the variables of whoever typed `up` are gone; one that lies in a file stays there.
    fn monitoring(&mut self, monitoring: &Monitoring) {
        if monitoring.stack {
            let cause = "no dashboards are installed on a machine; the gateway's metrics port serves the figures";
            self.problem("stack", cause, "set `monitoring: { stack: false }`");
        }
        if monitoring.receivers.is_empty() {
            return;
        }
        let (mut receivers, mut needs) = (BTreeMap::new(), vec![self.network_id()]);
        for (name, address) in &monitoring.receivers {
            let receiver = match address {
                ReceiverAddress::Plain(address) => Receiver::Address { address: address.clone() },
                ReceiverAddress::Secret(given) => match given.source.strip_prefix("secret:file:") {
                    Some(path) => Receiver::File { file: path.into() },
                    None => {
                        let parts = ["secret", "file"].map(|what| self.part(&format!("{what}-{name}")));
                        let [Some(secret), Some(file)] = parts else { continue };
                        let path = format!("config/alert-{name}");
                        self.given_file(&format!("alert-{name}"), given, secret, file.clone(), &path);
                        needs.push(file);
                        Receiver::File { file: self.folder.join(&path) }
                    }
                },
            };
            receivers.insert(name.clone(), receiver);
        }
        let order = AlertOrder {
            environment: self.site.environment.to_string(),
            site: self.site.name.to_string(),
            receivers,
            limits: monitoring.limits,
            home: monitoring.home,
            ca_file: monitoring.ca_file.as_ref().map(Utf8PathBuf::from),
        };
        let spec = json!({ "path": ALERTS_FILE, "document": order });
        self.want(self.id(), Noun::File, &spec, needs);
    }

    /// A secret that a person keeps, as `name`, and the file at `path` that programs read it from.
    fn given_file(&mut self, name: &str, given: &Given, secret: ResourceId, file: ResourceId, path: &str) {
        let network = self.network_id();
        let spec = SecretSpec { name: self.secret_name(name), recipe: None, given: Some(given.clone()), shared: false };
        self.want(secret.clone(), Noun::Secret, &spec, [network.clone()]);
        self.want(file, Noun::File, &json!({ "path": path, "secret": OutputRef::new(secret, "secret") }), [network]);
    }

    pub(crate) fn id(&self) -> ResourceId {
        ResourceId::of(&self.site.name, &self.component.name)
    }

    /// `SITE/COMPONENT/PART`; a part that is not a label is a problem.
    pub(crate) fn part(&mut self, part: &str) -> Option<ResourceId> {
        match ResourceId::part(&self.site.name, &self.component.name, part) {
            Ok(id) => Some(id),
            Err(error) => {
                self.problem(part, error.to_string(), "rename it");
                None
            }
        }
    }

    /// A part of another component.
    pub(crate) fn part_of(&mut self, component: &ComponentName, part: &str) -> Option<ResourceId> {
        match ResourceId::part(&self.site.name, component, part) {
            Ok(id) => Some(id),
            Err(error) => {
                self.problem(part, error.to_string(), "rename it");
                None
            }
        }
    }

    fn network_id(&self) -> ResourceId {
        let network = ComponentName::new(NETWORK).expect("the constant is a label");
        ResourceId::of(&self.site.name, &network)
    }

    fn secret_name(&self, name: &str) -> SecretName {
        SecretName(format!("{}/{name}", self.site.name))
    }

    pub(crate) fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let place = format!("{}/{}", self.site.name, self.component.name);
        self.problems.push(Problem::new(format!("{place}: {field}"), cause, fix));
    }

    pub(crate) fn want(
        &mut self,
        id: ResourceId,
        noun: Noun,
        spec: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        let spec = Spec::of(spec);
        let mut needs: Vec<Need> = needs
            .into_iter()
            .chain(spec.outputs_needed().iter().map(|output| output.resource.clone()))
            .map(Need::on)
            .collect();
        needs.sort();
        needs.dedup();
        self.wanted.push(Wanted {
            id,
            kind: noun.kind(),
            site: self.site.name.clone(),
            via: None::<Ref>,
            spec,
            needs,
            ownership: Ownership::Ours,
            protected: false,
        });
    }

    fn want_protected(
        &mut self,
        id: ResourceId,
        noun: Noun,
        spec: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        self.want(id, noun, spec, needs);
        if let Some(last) = self.wanted.last_mut() {
            last.protected = self.site.protect_data;
        }
    }
}

/// A name as a label: the name itself where it is one, else its letters and a digest that keeps two names apart.
pub(crate) fn label_of(name: &str) -> String {
    if ComponentName::new(name).is_ok() {
        return name.to_owned();
    }
    let letters: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(28).collect();
    let digest = hex::encode(Sha256::digest(name.as_bytes()));
    format!("m-{}-{}", letters.trim_matches('-'), &digest[..8]).replace("--", "-")
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253 && rest.split('.').all(label) && rest.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_model_name_becomes_a_label() {
        assert_eq!(label_of("textnlp-tiny"), "textnlp-tiny");
        for name in ["GPT2.xl", "org/name", "", "ü", &"x".repeat(99), "7b", "a--b.c"] {
            let label = label_of(name);
            assert!(ComponentName::new(label.clone()).is_ok(), "{name} -> {label}");
        }
        assert_ne!(label_of("A.b"), label_of("a.B"));
    }

    #[test]
    fn dns_names() {
        for good in ["localhost", "a.example.com", "*.example.com", "host-1"] {
            assert!(is_dns_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a b", "ü.de", "*.*.de", "1.2.3.4", &"a".repeat(64)] {
            assert!(!is_dns_name(bad), "{bad}");
        }
    }
}
