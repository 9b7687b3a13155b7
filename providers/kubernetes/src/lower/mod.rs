//! Components → wanted objects. Pure: names are fixed, what only the cluster or the secret store knows stands as a reference.
//!
//! A site is one namespace. Its secrets and certificates are made by whoever is named in `SITE/secrets`, `SITE/certificate` and
//! `SITE/DATABASE/url`, elsewhere than in the cluster; here they become Secrets.

mod adapter;
mod beside;
mod company;
mod database;
mod gateway;
mod nodes;
mod outside;
mod template;
mod workload;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use textnlp_provider::component::{Cache, Certificate, Cluster, ModelStore, Monitoring, Network, Part};
use textnlp_provider::{
    CloudId, Component, ComponentName, KindName, Need, Ownership, Problem, Problems, ResourceId, Site, Spec, Wanted,
};

use crate::canary::{ACCOUNT, CONTROLLER};
pub(crate) use adapter::ADAPTER;
pub use adapter::ADAPTER_COMPONENT;
pub use beside::{Analytics, Spot};
pub use company::CompanyNetwork;
use database::POSTGRES;
pub use database::{BACKUP, RESTORE};
pub(crate) use gateway::AUTHORITY;
pub(crate) use nodes::SHARED_VOLUME;
pub use nodes::{ModelVolume, Nodes};
use template::{Template, render};

/// Where a site's objects go, and what runs there: what an operator says of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The namespace that is ours.
    pub namespace: String,
    /// The image of the server.
    pub image: Option<String>,
    /// Where clients reach the service.
    pub address: Option<String>,
    /// Whether something of the operator's leads there; else the cluster's load balancer does, by the name in the address.
    pub led_by_others: bool,
    /// What of ours leads them there, if anything does.
    pub ingress: Option<Ingress>,
    /// Whether a web application firewall stands before the service.
    pub waf: bool,
    /// What the models weigh together in bytes, where that is known: pods get time to begin by it.
    pub model_bytes: Option<u64>,
    /// The Secret of the namespace, made by others, that holds the certificate and its key; else one of ours does.
    pub tls_secret: Option<String>,
    /// The PostgreSQL that is made beside the servers, if one is.
    pub postgres: Option<OwnPostgres>,
    /// Whether a new release shows first on a few pods, or on a second set of them, that it is well: their template then carries all that they read but secrets.
    pub canary: bool,
    /// Whether a share of the clients is led to those few, where what leads clients can tell shares apart: a route of a Gateway can.
    pub weighted: bool,
    /// The authority by which a Prometheus is trusted that judges a release, as PEM, or why it cannot be had.
    pub prometheus_ca: Option<Result<String, String>>,
    /// The job of the operator's on what the servers stored, if there is one.
    pub analytics: Option<Analytics>,
    /// The settings of SAML for whoever signs people in before the service, or why they cannot be had.
    pub saml: Option<Result<String, String>>,
    /// Where pods find their models.
    pub models: ModelVolume,
    /// Whether the cluster gives pods their users.
    pub openshift: bool,
    /// Which nodes pods go to.
    pub nodes: Nodes,
    /// How pods reach what lies outside.
    pub company: CompanyNetwork,
    /// Whether an adapter of ours tells the autoscaler how many requests there are.
    pub adapter: bool,
    /// How many nodes the cluster should have at least.
    pub min_nodes: u32,
    /// How many it may have at most, where somebody says so: nobody here could see to that.
    pub max_nodes: Option<u32>,
}

impl Placement {
    fn is_weighted(&self) -> bool {
        self.canary && self.weighted && matches!(self.ingress, Some(Ingress::Gateway { .. }))
    }
}

/// A PostgreSQL in the cluster, which CloudNativePG runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPostgres {
    /// Its image, one that CloudNativePG takes; dumps are made by the programs in it.
    pub image: String,
    /// Its major version, which the tag of the image begins with.
    pub version: u32,
    /// The name of the database in it.
    pub database: String,
    /// The disk of each instance, in bytes.
    pub disk_bytes: u64,
    /// The disk of the dumps, in bytes.
    pub dumps_bytes: u64,
}

/// The Secret that cert-manager fills for an ingress of ours. It leaves it when the ingress goes.
pub const FILLED_BY_CERT_MANAGER: &str = "textnlp-ingress-tls";

/// An object of ours that leads clients to the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ingress {
    /// For a controller of ingress-nginx.
    Nginx {
        /// Its class.
        class: String,
        /// The name under which clients come.
        host: String,
        /// Where the certificate is that they see, and who of cert-manager's fills it.
        tls_secret: String,
        /// The ClusterIssuer, where the Secret does not exist already.
        issuer: Option<String>,
    },
    /// A route of OpenShift.
    Route {
        /// The name under which clients come.
        host: String,
    },
    /// A route of the Gateway API.
    Gateway {
        /// The namespace of the Gateway, which is an operator's.
        namespace: String,
        /// Its name.
        name: String,
        /// The one of its listeners that is meant, if one is.
        section: Option<String>,
        /// The port that clients come by.
        port: u16,
        /// The name under which clients come.
        host: String,
    },
}

/// Nobody in particular: the number that images without root have agreed on.
const USER: u32 = 65532;
/// The program's place in the image, which `bundle create` packs.
const PROGRAM: &str = "/usr/local/bin/textnlp-deploy";
/// Where models lie in a pod.
const MODELS: &str = "/var/lib/textnlp/models";
/// The list of them.
const MODELS_FILE: &str = "models.yaml";
const SECRETS: &str = "/etc/textnlp-secrets";
/// The Secret that they are in.
const SECRETS_NAME: &str = "textnlp-secrets";
/// The ports of containers; those of the service are the environment's.
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;
const METRICS_PORT: u16 = 9090;

/// What Grafana shows, of whichever namespace is chosen there.
const DASHBOARD: &str = include_str!("../../../../templates/kubernetes/dashboard.json");

/// The components that others lean on without naming them.
const NETWORK: &str = "network";
const ENDPOINT: &str = "gateway";
const CERTIFICATE: &str = "certificate";
/// The generated secrets that pods read.
const API_KEY: &str = "api-key";
const JWT_KEY: &str = "jwt-signing-key";

/// What all of a component's objects are made from.
struct Lowering<'a> {
    component: &'a Component,
    site: &'a Site,
    place: &'a Placement,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

/// What a component of a site becomes in its namespace.
pub(crate) fn lower(component: &Component, site: &Site, place: &Placement) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { component, site, place, wanted: Vec::new(), problems: Vec::new() };
    lowering.lower();
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

impl Lowering<'_> {
    fn lower(&mut self) {
        if self.site.runtime != "kubernetes" {
            let cause = format!("a cluster runs programs as pods, not by `{}`", self.site.runtime);
            return self.problem("runtime", cause, "set `runtime: kubernetes` for this site");
        }
        if self.component.existing.is_some() && !matches!(self.component.part, Part::Network(_) | Part::Certificate(_))
        {
            let cause = "only the namespace and the certificate can be `existing` in this version";
            let fix = "remove it, or write `existing: { network: NAMESPACE, certificate: SECRET }`";
            return self.problem("existing", cause, fix);
        }
        match &self.component.part {
            Part::Network(network) => self.network(network),
            Part::Cluster(cluster) => self.cluster(cluster),
            // Made where the operator is; what pods need of them is a Secret of the workload and the endpoint.
            Part::Secrets(_) | Part::Registry(_) => {}
            Part::Certificate(certificate) => self.certificate(certificate),
            Part::ModelStore(store) => self.models(store),
            Part::Database(database) => self.database(database),
            Part::Cache(Cache { kind }) if kind == "memory" => {}
            Part::Cache(Cache { kind }) => {
                let cause = format!("a `{kind}` cache is not put into a cluster yet");
                self.problem("kind", cause, "set `cache: { kind: memory }`, which every replica keeps for itself");
            }
            Part::Workload(workload) => self.workload(workload),
            Part::Endpoint(endpoint) => self.endpoint(endpoint),
            Part::Traffic(traffic) if traffic.weights.keys().all(|site| *site == self.site.name) => {}
            Part::Monitoring(monitoring) => self.monitoring(monitoring),
            // What looks after sites stands outside of them.
            Part::Border(_) | Part::Watch(_) => {}
            Part::Traffic(_) | Part::Witness(_) | Part::Front(_) => {
                let cause = "a cluster does not share traffic with other sites";
                let fix = "write `dr: { mode: automatic, witness: … }` with the provider of machines of your own, or leave one site";
                self.problem("sites", cause, fix);
            }
            Part::Backup(backup) => self.backup(backup),
        }
    }

    fn network(&mut self, network: &Network) {
        if let Some(cidr) = &network.cidr {
            let cause = format!("the cluster's network is its own, and {cidr} is not made in it");
            self.problem("cidr", cause, "remove it for this site");
        }
        self.namespace();
        if network.policies {
            let ours = json!({ "matchLabels": { "app.kubernetes.io/part-of": "textnlp" } });
            let inputs = json!({
                "namespace": self.place.namespace,
                "https_port": HTTPS_PORT,
                "metrics_port": METRICS_PORT,
                "rollout": self.place.canary.then_some(CONTROLLER),
                "adapter": self.place.adapter.then_some(ADAPTER),
                "adapter_port": HTTPS_PORT,
                // What others run in a namespace of theirs goes on talking.
                "pods": if self.component.existing.is_some() { ours } else { json!({}) },
            });
            for (part, template) in
                [("allow-in", Template::AllowIn), ("allow-out", Template::AllowOut), ("deny", Template::Deny)]
            {
                self.part_of_kind(part, template, &inputs, []);
            }
            if self.place.adapter {
                self.part_of_kind("allow-adapter", Template::AllowAdapter, &inputs, []);
            }
            if let Some(Ingress::Nginx { issuer: Some(_), .. }) = self.place.ingress {
                self.part_of_kind("allow-solver", Template::AllowSolver, &inputs, []);
            }
            if self.place.postgres.is_some() {
                let inputs = json!({ "namespace": self.place.namespace, "name": POSTGRES });
                self.part_of_kind("allow-database", Template::AllowDatabase, &inputs, []);
            }
        }
    }

    fn namespace(&mut self) {
        let Some(id) = self.id(NETWORK, "namespace") else { return };
        let name = &self.place.namespace;
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_name =
            (1..=63).contains(&name.len()) && name.chars().all(label) && !name.starts_with('-') && !name.ends_with('-');
        if !is_name || name == "default" || name.starts_with("kube-") {
            let cause = format!("`{name}` cannot be a namespace of ours");
            return self.problem(
                "cluster.namespace",
                cause,
                "write a label such as `textnlp`; `default` and `kube-…` are the cluster's",
            );
        }
        let external = self.component.existing.clone();
        if let Some(named) = external.as_ref().filter(|named| named.as_str() != name) {
            let cause = format!("the existing namespace is `{named}`, and `cluster.namespace` says `{name}`");
            return self.problem("existing.network", cause, format!("set `cluster: {{ namespace: {named} }}`"));
        }
        let Some((row, mut spec)) = self.render(Template::Namespace, &json!({ "namespace": name })) else { return };
        if external.is_some() {
            spec = json!({ "metadata": { "name": name } });
        }
        self.push(id, row.name, spec, Vec::new());
        if let (Some(id), Some(last)) = (external, self.wanted.last_mut()) {
            last.ownership = Ownership::External(id);
        }
    }

    /// One of ours is made where the operator is; that of others is a Secret which they renew.
    fn certificate(&mut self, certificate: &Certificate) {
        let Some(existing) = self.component.existing.clone() else {
            if certificate.mode == "existing" {
                let fix = "write `tls: { existing: SECRET }`, as cert-manager or whoever else makes it";
                self.problem("existing", "no Secret with a certificate is named", fix);
            }
            return;
        };
        let name = existing.as_str();
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if certificate.mode != "existing" {
            let cause = format!("it contradicts `{}`", certificate.mode);
            return self.problem("existing", cause, "set `mode: existing`");
        }
        if name.is_empty() || name.len() > 253 || !name.chars().all(label) || name.starts_with(['-', '.']) {
            let cause = format!("`{name}` is not the name of a Secret");
            let fix = "write that of a Secret in the namespace with `tls.crt` and `tls.key`; a file is carried there by `kubectl create secret tls`";
            return self.problem("existing", cause, fix);
        }
        let Some(id) = self.id(CERTIFICATE, "secret") else { return };
        let Ok(place) = CloudId::new(format!("{}/{name}", self.place.namespace)) else { return };
        let namespace = self.id(NETWORK, "namespace");
        let spec = json!({ "metadata": { "name": name, "namespace": self.place.namespace } });
        self.push(id, "kubernetes.secret", spec, namespace.into_iter().collect());
        if let Some(last) = self.wanted.last_mut() {
            last.ownership = Ownership::External(place);
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        if cluster.gpu.is_some() {
            let cause = "servers serve on the CPU in this version, which has no kernels for GPUs: a pod with `nvidia.com/gpu` would hold one that nobody uses";
            let fix = "remove `gpu` for this site; which nodes pods go to is said by `sites[].cluster.node_selector`, `tolerations` and `runtime_class`";
            self.problem("gpu", cause, fix);
        }
        let inputs = json!({ "namespace": self.place.namespace, "name": "textnlp-api" });
        self.part_of_kind("service-account", Template::ServiceAccount, &inputs, []);
        if self.place.canary {
            let inputs = json!({
                "namespace": self.place.namespace,
                "name": ACCOUNT,
                "deployment": "textnlp-api",
                "weighted": self.place.is_weighted(),
            });
            for (part, template) in [
                ("rollout-account", Template::ServiceAccount),
                ("rollout-role", Template::Role),
                ("rollout-binding", Template::RoleBinding),
            ] {
                self.part_of_kind(part, template, &inputs, []);
            }
        }
    }

    /// Pods deliver and prove them by themselves, each from this list.
    fn models(&mut self, store: &ModelStore) {
        let mut labels: BTreeMap<String, &str> = BTreeMap::new();
        let mut listed = Vec::new();
        for model in &store.models {
            let label = label_of(&model.name);
            if let Some(other) = labels.insert(label.clone(), &model.name) {
                self.problem("models", format!("`{other}` and `{}` have one name", model.name), "rename one");
            }
            if model.source.starts_with("file:") && !matches!(self.place.models, ModelVolume::Image { .. }) {
                let cause = format!("model `{}` lies on this machine, and pods cannot reach it", model.name);
                self.problem(&label, cause, "name a source that the cluster reaches: `bundled`, `hf:`, `https:`; or bring it in an image (`sites[].cluster.models: { kind: image, … }`)");
            }
            let Some(digest) = &model.digest else {
                let cause =
                    format!("nobody knows the digest of model `{}`, so pods could not prove what they get", model.name);
                self.problem(&label, cause, "add `digest: sha256:…`; `textnlp-deploy model pull` tells it");
                continue;
            };
            listed.push(json!({
                "name": model.name,
                "source": model.source,
                "digest": digest,
                "path": format!("{MODELS}/{label}"),
            }));
        }
        let files = [(MODELS_FILE.to_owned(), self.delivery(&listed, store.max_cache_bytes))];
        let id = ResourceId::of(&self.site.name, &self.component.name);
        self.config_map(id, "textnlp-models", files);
        self.shared_volume();
    }

    /// As whom pods run: OpenShift gives each namespace users of its own, and takes no other.
    fn user(&self) -> Option<u32> {
        (!self.place.openshift && !matches!(self.place.ingress, Some(Ingress::Route { .. }))).then_some(USER)
    }

    fn monitoring(&mut self, monitoring: &Monitoring) {
        if monitoring.stack {
            self.watched(monitoring);
        }
        if !monitoring.receivers.is_empty() {
            let cause = "nobody in a cluster tells receivers yet";
            self.problem("receivers", cause, "remove `monitoring.receivers`");
        }
    }

    /// What a Prometheus and a Grafana of the cluster take up by themselves.
    fn watched(&mut self, monitoring: &Monitoring) {
        let (limits, service) = (monitoring.limits, monitoring.service);
        let namespace = &self.place.namespace;
        let inputs = json!({
            "namespace": namespace,
            "latency_seconds": service.latency_seconds,
            "error_rate": service.error_rate,
            "memory": limits.memory,
            "disk": limits.disk,
            "restarts": limits.restarts,
            "dashboard": DASHBOARD,
        });
        for (part, template) in [
            ("figures", Template::ServiceMonitor),
            ("alerts", Template::PrometheusRule),
            ("dashboard", Template::Dashboard),
        ] {
            self.part_of_kind(part, template, &inputs, []);
        }
    }

    fn config_map(&mut self, id: ResourceId, name: &str, files: impl IntoIterator<Item = (String, Value)>) {
        // JSON is YAML, and has one form for one content.
        let files: BTreeMap<String, String> =
            files.into_iter().map(|(file, tree)| (file, Spec::of(&tree).to_string())).collect();
        let inputs =
            json!({ "namespace": self.place.namespace, "name": name, "files": files, "carried": self.place.canary });
        self.object(id, Template::ConfigMap, &inputs, []);
    }

    fn secret(&mut self, id: ResourceId, name: &str, kind: &str, data: &Value, needs: Vec<ResourceId>) {
        let inputs = json!({ "namespace": self.place.namespace, "name": name, "type": kind, "data": data });
        self.object(id, Template::Secret, &inputs, needs);
    }

    /// An object as `SITE/COMPONENT/PART`.
    fn part_of_kind(
        &mut self,
        part: &str,
        template: Template,
        inputs: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        let component = self.component.name.clone();
        if let Some(id) = self.id(component.as_str(), part) {
            self.object(id, template, inputs, needs);
        }
    }

    /// An object in the namespace.
    fn object(
        &mut self,
        id: ResourceId,
        template: Template,
        inputs: &impl Serialize,
        needs: impl IntoIterator<Item = ResourceId>,
    ) {
        let Some((row, spec)) = self.render(template, inputs) else { return };
        let namespace = self.id(NETWORK, "namespace");
        let needs = namespace.into_iter().chain(needs).collect();
        self.push(id, row.name, spec, needs);
    }

    fn render(&mut self, template: Template, inputs: &impl Serialize) -> Option<(&'static crate::table::Row, Value)> {
        match render(template, inputs) {
            Ok(rendered) => Some(rendered),
            Err(why) => {
                let cause = format!("the template {} gives no object: {why}", template.file());
                self.problem("template", cause, "this is a fault of the program: tell its makers");
                None
            }
        }
    }

    fn push(&mut self, id: ResourceId, kind: &str, mut spec: Value, needs: Vec<ResourceId>) {
        for (name, value) in &self.site.tags {
            let taken = spec["metadata"]["labels"].get(name).is_some_and(|ours| ours != value.as_str());
            if taken {
                let cause = format!("label `{name}` is one by which {id} is found or judged");
                self.problem("tags", cause, "choose another name");
                return;
            }
            if is_label(name) && is_label(value) {
                spec["metadata"]["labels"][name.as_str()] = json!(value);
            } else {
                let cause = format!("`{name}: {value}` cannot be a label of objects");
                self.problem(
                    "tags",
                    cause,
                    "use letters, digits, `-`, `_`, `.`, at most 63, at both ends a letter or digit",
                );
                return;
            }
        }
        let spec = Spec::of(&spec);
        let mut needs: Vec<ResourceId> = needs;
        needs.extend(spec.outputs_needed().iter().map(|output| output.resource.clone()));
        needs.sort();
        needs.dedup();
        self.wanted.push(Wanted {
            id,
            kind: KindName::new(kind).expect("the names in the table are kind names"),
            site: self.site.name.clone(),
            via: None,
            spec,
            needs: needs.into_iter().map(Need::on).collect(),
            ownership: Ownership::Ours,
            protected: false,
        });
    }

    /// `SITE/COMPONENT/PART`.
    fn id(&self, component: &str, part: &str) -> Option<ResourceId> {
        let component = ComponentName::new(component).ok()?;
        ResourceId::part(&self.site.name, &component, part).ok()
    }

    fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let place = format!("{}/{} {field}", self.site.name, self.component.name);
        let problem = Problem::new(place, cause.into(), fix.into());
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// A model's name as one label: `org/name` becomes `org-name`.
fn label_of(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).collect::<String>().trim_matches('-').to_owned()
}

fn is_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}
