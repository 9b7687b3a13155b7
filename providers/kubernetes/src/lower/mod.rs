//! Expansion of components into Kubernetes objects. Pure: names are fixed; values that only the cluster or the secret
//! store knows are references.
//!
//! A site is one namespace. Its secrets and certificates are created outside of the cluster, by the providers of
//! `SITE/secrets`, `SITE/certificate` and `SITE/DATABASE/url`. Here they become Secrets.

mod adapter;
mod analytics;
mod company;
mod database;
mod external_access;
mod gateway;
mod images;
mod ingress;
mod local;
mod node_autoscaler;
mod nodes;
mod policies;
mod resources;
mod template;
mod workload;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use textnlp_provider::cluster::{ClusterAccess, ClusterSite, GPU, IngressKind, REGISTRY_PASSWORD};
use textnlp_provider::component::{
    CLUSTER_RECEIVERS, Cache, Certificate, ComponentSpec, MailAddresses, ModelStore, Monitoring, Network,
    ReceiverAddress, is_public_webhook, receiver_secret,
};
use textnlp_provider::dashboard::{self, Watched};
use textnlp_provider::settings::{Strategy, TlsMode};
use textnlp_provider::{
    CloudId, Component, ComponentName, KindName, Need, OutputRef, Ownership, Problem, Problems, ResourceId, Site, Spec,
    Wanted,
};

use crate::canary::ACCOUNT;
use crate::manifest::{PLAIN, REGISTRY};
pub use database::{BACKUP, RESTORE};
pub(crate) use database::{DUMPS_CLAIM, POSTGRES};
pub(crate) use gateway::AUTHORITY;
use images::DEVICE_PLUGIN;
pub(crate) use images::is_pinned;
pub(crate) use ingress::{FILLED_BY_CERT_MANAGER, gateway_port};
pub use local::local_part;
use nodes::Volume;
pub(crate) use nodes::{SHARED_VOLUME, gpu_resource, gpu_resource_of, has_gpu, job_nodes};
pub use resources::server_pod;
use template::{Template, render};

/// The conventional `nonroot` uid of images.
const USER: u32 = 65532;
/// The path of the program in the image that `bundle create` builds.
pub(crate) const PROGRAM: &str = "/usr/local/bin/textnlp-deploy";
/// The model directory in a pod.
const MODELS: &str = "/var/lib/textnlp/models";
/// The list of models.
const MODELS_FILE: &str = "models.yaml";
const SECRETS: &str = "/etc/textnlp-secrets";
/// The Secret mounted there.
const SECRETS_NAME: &str = "textnlp-secrets";
/// The Secret with the addresses of webhooks that get alerts.
pub(crate) const RECEIVERS_NAME: &str = "textnlp-receivers";
/// The Secret by which nodes sign in to the registry of the images, and the type of such Secrets.
const REGISTRY_NAME: &str = "textnlp-registry";
pub(crate) const PULL_SECRET: &str = "kubernetes.io/dockerconfigjson";
/// The key of the file in it.
pub(crate) const PULL_FILE: &str = ".dockerconfigjson";
/// The ports in a pod; the environment sets the ports of the service. Requests reach the server over loopback only, from
/// the gateway.
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8443;
const HEALTH_PORT: u16 = 8081;
/// For health checks of the global endpoint and the site agent, which are outside of the cluster.
const READY_PORT: u16 = 8444;
const PROBE_PORT: u16 = 8082;
const METRICS_PORT: u16 = 9090;

/// The service account of the pods.
pub(crate) const ACCOUNT_OF_PODS: &str = "textnlp-api";

/// The components that others depend on implicitly.
const NETWORK: &str = "network";
/// The component of a cloud's cluster, which has its nodes.
const CLUSTER: &str = "cluster";
/// The kinds whose objects have volumes, which are deleted after them.
const WITH_VOLUMES: [&str; 3] =
    ["kubernetes.persistent-volume-claim", "kubernetes.cron-job", "kubernetes.postgres-cluster"];
const ENDPOINT: &str = "gateway";
const CERTIFICATE: &str = "certificate";
/// The part of a registry that images are pushed to. The provider that pushes them calls it so.
const REPOSITORY: &str = "repository";
/// The generated secrets that pods read.
const API_KEY: &str = "api-key";
const JWT_KEY: &str = "jwt-signing-key";

/// The state of one component's expansion.
struct Lowering<'a> {
    component: &'a Component,
    site: &'a Site,
    cluster: &'a ClusterSite,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

/// Expands a component into the objects of its site's namespace.
pub(crate) fn lower(component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
    let Some(cluster) = site.cluster.as_deref() else {
        let cause = format!("a cluster runs programs as pods, not with `{}`", site.runtime);
        let location = format!("{}/{} runtime", site.name, component.name);
        return Err(Problems(vec![Problem::new(location, cause, "set `runtime: kubernetes` for this site")]));
    };
    let mut lowering = Lowering { component, site, cluster, wanted: Vec::new(), problems: Vec::new() };
    lowering.lower();
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

impl<'a> Lowering<'a> {
    fn settings(&self) -> &'a ClusterAccess {
        &self.cluster.settings
    }
}

impl Lowering<'_> {
    fn lower(&mut self) {
        if self.component.existing.is_some()
            && !matches!(self.component.part, ComponentSpec::Network(_) | ComponentSpec::Certificate(_))
        {
            let cause = "only the namespace and the certificate can be `existing` in this version";
            let fix = "remove it, or write `existing: { network: NAMESPACE, certificate: SECRET }`";
            return self.problem("existing", cause, fix);
        }
        match &self.component.part {
            ComponentSpec::Network(network) => self.network(network),
            ComponentSpec::Cluster(_) => self.cluster(),
            // Created outside of the cluster; their values reach pods as Secrets of the workload and the endpoint.
            ComponentSpec::Secrets(_) | ComponentSpec::Registry(_) => {}
            ComponentSpec::Certificate(certificate) => self.certificate(certificate),
            ComponentSpec::ModelStore(store) => self.models(store),
            ComponentSpec::Database(database) => self.database(database),
            // One that a cloud runs is a resource of that cloud's provider.
            ComponentSpec::Cache(Cache { managed: Some(_), .. }) => {}
            ComponentSpec::Cache(Cache { kind, managed: None }) => {
                let cause = format!("clusters do not create a `{kind}` cache");
                self.problem(
                    "kind",
                    cause,
                    "write the address of a Redis that you run as `cache.url`, or `cache: { kind: memory }`",
                );
            }
            ComponentSpec::Workload(workload) => self.workload(workload),
            ComponentSpec::Endpoint(endpoint) => self.endpoint(endpoint),
            ComponentSpec::Traffic(traffic) if traffic.weights.keys().all(|site| *site == self.site.name) => {}
            ComponentSpec::Monitoring(monitoring) => self.monitoring(monitoring),
            // The inter-site relay and the site agents run outside of the cluster.
            ComponentSpec::Relay(_) | ComponentSpec::SiteAgent(_) => {}
            ComponentSpec::Traffic(_) | ComponentSpec::Witness(_) | ComponentSpec::GlobalEndpoint(_) => {
                let cause = "a cluster does not split traffic with other sites";
                let fix = "write `dr: { mode: automatic, witness: … }` with a provider of machines, or keep one site";
                self.problem("sites", cause, fix);
            }
            ComponentSpec::Backup(backup) => self.backup(backup),
            ComponentSpec::InferenceEndpoint(_) => {
                self.problem("runtime", "a cluster runs pods", "write `runtime: kubernetes`");
            }
        }
    }

    fn network(&mut self, network: &Network) {
        if let Some(cidr) = &network.cidr {
            let cause = format!("the cluster has its own network, and {cidr} cannot be created in it");
            self.problem("cidr", cause, "remove it for this site");
        }
        self.namespace();
        self.policies(network);
    }

    /// The port for health checks of the global endpoint and the site agent, where there are any.
    fn ready_port(&self) -> Option<u16> {
        (self.cluster.replicates || self.settings().health_address.is_some()).then_some(READY_PORT)
    }

    fn namespace(&mut self) {
        let Some(id) = self.id(NETWORK, "namespace") else { return };
        let name = &self.cluster.namespace;
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_name =
            (1..=63).contains(&name.len()) && name.chars().all(label) && !name.starts_with('-') && !name.ends_with('-');
        if !is_name || name == "default" || name.starts_with("kube-") {
            let cause = format!("`{name}` is not a valid namespace for this program");
            return self.problem(
                "cluster.namespace",
                cause,
                "write a name such as `textnlp`; `default` and `kube-…` are reserved",
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

    /// A generated certificate is created outside of the cluster; an external one is a Secret that its owner renews.
    fn certificate(&mut self, certificate: &Certificate) {
        let Some(existing) = self.component.existing.clone() else {
            if certificate.mode == TlsMode::Existing {
                let fix = "write `tls: { existing: SECRET }`, with a Secret of cert-manager or your own";
                self.problem("existing", "no Secret with a certificate is set", fix);
            }
            return;
        };
        let name = existing.as_str();
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if certificate.mode != TlsMode::Existing {
            let cause = format!("it contradicts `{}`", certificate.mode);
            return self.problem("existing", cause, "set `mode: existing`");
        }
        if name.is_empty() || name.len() > 253 || !name.chars().all(label) || name.starts_with(['-', '.']) {
            let cause = format!("`{name}` is not the name of a Secret");
            let fix = "write the name of a Secret in the namespace with `tls.crt` and `tls.key`; `kubectl create secret tls` creates one from files";
            return self.problem("existing", cause, fix);
        }
        let Some(id) = self.id(CERTIFICATE, "secret") else { return };
        let Ok(location) = CloudId::new(format!("{}/{name}", self.cluster.namespace)) else { return };
        let namespace = self.id(NETWORK, "namespace");
        let spec = json!({ "metadata": { "name": name, "namespace": self.cluster.namespace } });
        self.push(id, "kubernetes.secret", spec, namespace.into_iter().collect());
        if let Some(last) = self.wanted.last_mut() {
            last.ownership = Ownership::External(location);
        }
    }

    fn cluster(&mut self) {
        let choice = &self.cluster.node_choice;
        if self.cluster.nodes.is_none() {
            let chosen = [("cluster.node_size", choice.size.is_some()), ("instance_type", choice.machine.is_some())];
            for (field, _) in chosen.into_iter().filter(|(_, is_set)| *is_set) {
                self.problem(field, "the nodes of an existing cluster are its operator's", "remove it");
            }
        }
        if self.cluster.nodes.is_some() && self.settings().gpu_resource() != GPU {
            let cause = format!("the nodes that are created offer whole GPUs, as `{GPU}`");
            let fix = "remove it, or use an existing cluster whose nodes offer it: `existing: { cluster: NAME }`";
            self.problem("cluster.gpu_resource", cause, fix);
        }
        if let Some(gpu) = self.cluster.gpu.as_ref().filter(|gpu| gpu.device_plugin) {
            let inputs = json!({ "image": DEVICE_PLUGIN, "nodes": self.gpu_nodes(gpu) });
            self.part_of_kind("device-plugin", Template::DevicePlugin, &inputs, []);
        }
        if let Some(autoscaler) = &self.cluster.node_autoscaler {
            self.node_autoscaler(autoscaler);
        }
        self.registry_account();
        self.service_account(self.id(CLUSTER, "service-account"), ACCOUNT_OF_PODS);
        if self.is_carried() {
            self.service_account(self.id(CLUSTER, "rollout-account"), ACCOUNT);
            let inputs = json!({
                "namespace": self.cluster.namespace,
                "name": ACCOUNT,
                "deployment": "textnlp-api",
                "weighted": self.is_weighted(),
            });
            for (part, template) in [("rollout-role", Template::Role), ("rollout-binding", Template::RoleBinding)] {
                self.part_of_kind(part, template, &inputs, []);
            }
        }
    }

    /// The Secret with the account at the registry of the images.
    fn registry_account(&mut self) {
        let (Some(account), Some(id)) = (&self.cluster.registry, self.pull_secret()) else { return };
        let Some(password) = self.id(account.secrets.as_str(), REGISTRY_PASSWORD) else { return };
        let password = OutputRef::new(password, "secret");
        let file = json!({ (REGISTRY): account.address, "username": account.user, "password": password });
        self.secret(id, REGISTRY_NAME, PULL_SECRET, &json!({ (PULL_FILE): file }), Vec::new());
    }

    /// The registry of that account. Pods name it in an annotation, so that those without the account are replaced:
    /// Kubernetes gives it to a pod only when the pod is created
    /// (<https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#serviceaccount-admission-controller>).
    fn registry(&self) -> Option<&str> {
        self.cluster.registry.as_ref().map(|account| account.address.as_str())
    }

    /// The id of the Secret with the account; `None` without an account.
    fn pull_secret(&self) -> Option<ResourceId> {
        self.cluster.registry.as_ref().and_then(|_| self.id(CLUSTER, "registry"))
    }

    /// A service account of the namespace. Kubernetes gives its Secret for images to each pod that is created with it.
    fn service_account(&mut self, id: Option<ResourceId>, name: &str) {
        let Some(id) = id else { return };
        let pull_secret = self.pull_secret();
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "name": name,
            "pull_secret": pull_secret.as_ref().map(|_| REGISTRY_NAME),
        });
        self.object(id, Template::ServiceAccount, &inputs, pull_secret);
    }

    /// The list of models, from which each pod fetches and verifies them.
    fn models(&mut self, store: &ModelStore) {
        let mut labels: BTreeMap<String, &str> = BTreeMap::new();
        let mut listed = Vec::new();
        for model in &store.models {
            let label = label_of(&model.name);
            if let Some(other) = labels.insert(label.clone(), &model.name) {
                self.problem("models", format!("`{other}` and `{}` have the same name", model.name), "rename one");
            }
            if model.source.starts_with("file:") && !matches!(self.volume(), Volume::Image(_)) {
                let cause = format!("model `{}` is on this machine, and pods cannot reach it", model.name);
                self.problem(&label, cause, "use a source that the cluster can reach: `bundled`, `hf:`, `https:`; or put it in an image (`sites[].cluster.models: { kind: image, … }`)");
            }
            let signs_in = self.cluster.bucket_identity.as_ref().map(|identity| identity.scheme.as_str());
            if let Some(scheme) = self.scheme(model).filter(|scheme| signs_in != Some(scheme)) {
                let cause =
                    format!("model `{}` is in a bucket, and pods get no credentials for `{scheme}:` here", model.name);
                let fix = match signs_in {
                    Some(own) => {
                        format!("push it to a bucket of `{own}:`: `textnlp-deploy model push SOURCE {own}://BUCKET/`")
                    }
                    None => {
                        "put it in an image (`sites[].cluster.models: { kind: image, … }`), or use `hf:` or `https:`"
                            .to_owned()
                    }
                };
                self.problem(&label, cause, fix);
            }
            let Some(digest) = &model.digest else {
                let cause = format!("model `{}` has no digest, so pods cannot verify it", model.name);
                self.problem(&label, cause, "add `digest: sha256:…`; `textnlp-deploy model pull` prints it");
                continue;
            };
            listed.push(json!({
                "name": model.name,
                "source": self.source(model),
                "digest": digest,
                "path": format!("{MODELS}/{label}"),
            }));
        }
        let files = [(MODELS_FILE.to_owned(), self.delivery(&listed, store.max_cache_bytes))];
        let id = ResourceId::of(&self.site.name, &self.component.name);
        self.config_map(id, "textnlp-models", files);
        self.shared_volume(store);
    }

    /// The uid of the pods; `None` on OpenShift, which assigns uids per namespace.
    fn user(&self) -> Option<u32> {
        (!self.settings().openshift && self.ingress_kind() != Some(IngressKind::Route)).then_some(USER)
    }

    fn ingress_kind(&self) -> Option<IngressKind> {
        self.settings().ingress.as_ref().map(|ingress| ingress.kind)
    }

    /// Whether releases roll out as a canary or blue-green. The pod template then contains the configuration, but no
    /// secrets.
    fn is_carried(&self) -> bool {
        self.cluster.rollout != Strategy::Rolling
    }

    /// Whether the canary has a traffic weight. It needs a route with weights, as a Gateway provides.
    fn is_weighted(&self) -> bool {
        self.cluster.rollout == Strategy::Canary && self.ingress_kind() == Some(IngressKind::Gateway)
    }

    fn monitoring(&mut self, monitoring: &Monitoring) {
        if monitoring.stack {
            self.watched(monitoring);
            self.receivers(monitoring);
        } else if !monitoring.receivers.is_empty() {
            let cause = "the alerts of a cluster are those of its Prometheus, and `monitoring.stack` is off";
            self.problem("receivers", cause, "write `monitoring.stack: true`, or remove `monitoring.receivers`");
        }
    }

    /// The receivers, for the cluster's Alertmanager. The address of a webhook is a Secret, because its path is usually a
    /// token. One that is secret is a webhook, which is checked where secrets can be read.
    fn receivers(&mut self, monitoring: &Monitoring) {
        let (mut hooks, mut mails) = (serde_json::Map::new(), Vec::new());
        for (name, address) in &monitoring.receivers {
            match address {
                ReceiverAddress::Secret(_) => {
                    let secrets = monitoring.secrets.as_ref().map_or_else(String::new, ToString::to_string);
                    match self.id(&secrets, &receiver_secret(name)) {
                        Some(id) => drop(hooks.insert(receiver_secret(name), json!(OutputRef::new(id, "secret")))),
                        None => self.problem("receivers", format!("the name `{name}` is too long"), "shorten it"),
                    }
                }
                ReceiverAddress::Plain(text) if is_public_webhook(text) => {
                    hooks.insert(receiver_secret(name), json!({ PLAIN: text }));
                }
                ReceiverAddress::Plain(text) => match MailAddresses::of(text) {
                    Some(mail) => {
                        let (to, server) = (mail.to.join(","), mail.server());
                        mails.push(json!({ "to": to, "from": mail.from, "server": server, "starttls": !mail.tls }));
                    }
                    None => {
                        let cause = format!("the Alertmanager of a cluster cannot use the address of `{name}`");
                        self.problem("receivers", cause, CLUSTER_RECEIVERS);
                    }
                },
            }
        }
        if hooks.is_empty() && mails.is_empty() {
            return;
        }
        let names: Vec<&String> = hooks.keys().collect();
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "secret": RECEIVERS_NAME,
            "hooks": names,
            "mails": mails,
        });
        let component = self.component.name.clone();
        let addresses = self.id(component.as_str(), "receiver-addresses").filter(|_| !hooks.is_empty());
        if let Some(id) = addresses.clone() {
            self.secret(id, RECEIVERS_NAME, "Opaque", &Value::Object(hooks), Vec::new());
        }
        self.part_of_kind("receivers", Template::AlertmanagerConfig, &inputs, addresses);
    }

    /// The monitors, alerts and dashboard for the cluster's Prometheus and Grafana.
    fn watched(&mut self, monitoring: &Monitoring) {
        let (limits, service) = (monitoring.limits, monitoring.service);
        let namespace = &self.cluster.namespace;
        let inputs = json!({
            "namespace": namespace,
            "latency_seconds": service.latency_seconds,
            "latency_for_seconds": service.latency_for_seconds,
            "error_rate": service.error_rate,
            "error_rate_for_seconds": service.error_rate_for_seconds,
            "memory": limits.memory,
            "disk": limits.disk,
            "restarts": limits.restarts,
            "dashboard": dashboard::text(&dashboard::dashboard(Watched::Pods)),
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
        // JSON is valid YAML, and its canonical form gives one digest per content.
        let files: BTreeMap<String, String> =
            files.into_iter().map(|(file, tree)| (file, Spec::of(&tree).to_string())).collect();
        let inputs =
            json!({ "namespace": self.cluster.namespace, "name": name, "files": files, "carried": self.is_carried() });
        self.object(id, Template::ConfigMap, &inputs, []);
    }

    fn secret(&mut self, id: ResourceId, name: &str, kind: &str, data: &Value, needs: Vec<ResourceId>) {
        self.labelled_secret(id, (name, kind), &Value::Null, data, needs);
    }

    fn labelled_secret(
        &mut self,
        id: ResourceId,
        (name, kind): (&str, &str),
        labels: &Value,
        data: &Value,
        needs: Vec<ResourceId>,
    ) {
        let namespace = &self.cluster.namespace;
        let inputs = json!({ "namespace": namespace, "name": name, "labels": labels, "type": kind, "data": data });
        self.object(id, Template::Secret, &inputs, needs);
    }

    /// Adds an object with the id `SITE/COMPONENT/PART`.
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

    /// Adds an object in the namespace.
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
                let cause = format!("the template {} is invalid: {why}", template.file());
                self.problem("template", cause, "this is a bug in this program: report it");
                None
            }
        }
    }

    fn push(&mut self, id: ResourceId, kind: &str, mut spec: Value, needs: Vec<ResourceId>) {
        for (name, value) in &self.site.tags {
            let taken = spec["metadata"]["labels"].get(name).is_some_and(|ours| ours != value.as_str());
            if taken {
                let cause = format!("label `{name}` is used to select or analyze {id}");
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
        if let (Some(from), Some(image)) = (&self.cluster.image_from, &self.settings().image)
            && spec.to_string().contains(image)
        {
            needs.extend(self.id(from.as_str(), REPOSITORY));
        }
        let kind = KindName::new(kind).expect("the names in the table are kind names");
        if let Some(nodes) =
            self.cluster.nodes.as_ref().filter(|_| crate::table::row(&kind).is_some_and(|row| row.has_pods))
        {
            let pod = &spec.as_value()["spec"]["template"]["spec"];
            let gpu = nodes.gpu.as_ref().filter(|_| has_gpu(pod));
            needs.extend([Some(&nodes.general), gpu].into_iter().flatten().filter_map(|part| self.id(CLUSTER, part)));
        }
        let disks = self.cluster.nodes.as_ref().and_then(|nodes| nodes.disks.as_ref());
        needs.extend(disks.filter(|_| WITH_VOLUMES.contains(&kind.as_str())).and_then(|part| self.id(CLUSTER, part)));
        needs.extend(spec.outputs_needed().iter().map(|output| output.resource.clone()));
        needs.sort();
        needs.dedup();
        self.wanted.push(Wanted {
            id,
            kind,
            site: self.site.name.clone(),
            via: None,
            spec,
            needs: needs.into_iter().map(Need::on).collect(),
            ownership: Ownership::Ours,
            protected: false,
        });
    }

    /// The id `SITE/COMPONENT/PART`.
    fn id(&self, component: &str, part: &str) -> Option<ResourceId> {
        let component = ComponentName::new(component).ok()?;
        ResourceId::part(&self.site.name, &component, part).ok()
    }

    fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let location = format!("{}/{} {field}", self.site.name, self.component.name);
        let problem = Problem::new(location, cause.into(), fix.into());
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// A model's name as a DNS label: `org/name` becomes `org-name`.
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
