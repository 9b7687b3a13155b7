//! Expands every component into resources of the memory cloud.

use serde_json::{Value, json};

use crate::component::{Component, ComponentSpec, Site};
use crate::kind::DataClass;
use crate::name::{ComponentName, KindName, ResourceId};
use crate::provider::{Problem, Problems};
use crate::resource::{Need, Ownership, Ref, Wanted};
use crate::spec::{OutputRef, Spec};

use super::kinds;

/// The component itself is `SITE/COMPONENT`; secrets, models, replicas and weights are parts of it.
pub(super) fn lower(component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { site, component, wanted: Vec::new(), problems: Vec::new() };
    lowering.run();
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

struct Lowering<'a> {
    site: &'a Site,
    component: &'a Component,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

impl Lowering<'_> {
    fn run(&mut self) {
        match &self.component.part {
            ComponentSpec::Network(network) => self.main("memory.network", json!({"cidr": network.cidr})),
            ComponentSpec::Cluster(cluster) => {
                self.main(
                    "memory.cluster",
                    json!({"network": self.output(&cluster.network, "id"), "gpu": cluster.gpu}),
                );
            }
            ComponentSpec::Secrets(secrets) => {
                self.main("memory.vault", json!({}));
                for (name, recipe) in &secrets.generate {
                    self.part(name, "memory.secret", json!({"vault": self.own("id"), "recipe": recipe}));
                }
            }
            ComponentSpec::Certificate(certificate) => self.main("memory.certificate", json!(certificate)),
            ComponentSpec::ModelStore(store) => {
                self.main("memory.bucket", json!({"max_cache_bytes": store.max_cache_bytes}));
                for model in &store.models {
                    self.part(&model.name, "memory.model", json!({"parent": self.own("id"), "model": model}));
                }
            }
            ComponentSpec::Database(database) => {
                self.main(
                    "memory.database",
                    json!({"engine": database.kind, "hosting": database.hosting, "schema": database.schema}),
                );
            }
            ComponentSpec::Cache(cache) => self.main("memory.cache", json!({"engine": cache.kind})),
            ComponentSpec::Workload(workload) => {
                let mut spec = json!({"program": workload.program.digest, "config": workload.config});
                spec["models"] = self.output(&workload.models, "address");
                spec["database"] = self.output(&workload.database, "address");
                spec["secrets"] = self.output(&workload.secrets, "id");
                let mut replicas = Vec::new();
                for number in 0..workload.replicas {
                    let name = format!("replica-{number}");
                    self.part(&name, "memory.server", spec.clone());
                    if let Some(replica) = self.wanted.last_mut() {
                        replica.via = Some(Ref(ResourceId::of(&self.site.name, &workload.cluster)));
                        replicas.push(output(&replica.id, "address"));
                    }
                }
                self.main("memory.service", json!({"replicas": replicas}));
            }
            ComponentSpec::Endpoint(endpoint) => {
                let mut spec = json!({"host": endpoint.host, "port": endpoint.port, "tls": endpoint.tls});
                if endpoint.tls {
                    spec["certificate"] = self.output(&endpoint.certificate, "version");
                }
                spec["service"] = self.output(&endpoint.workload, "address");
                spec["program"] = json!(endpoint.program.digest);
                self.main("memory.gateway", spec);
            }
            ComponentSpec::Traffic(traffic) => {
                self.main("memory.registry", json!({"url": "mem:traffic"}));
                for (name, weight) in &traffic.weights {
                    self.part(name.as_str(), "memory.weight", json!({"parent": self.own("id"), "weight": weight}));
                }
            }
            ComponentSpec::Monitoring(monitoring) => self.main("memory.monitor", json!(monitoring)),
            ComponentSpec::Registry(registry) => self.main("memory.registry", json!({"url": registry.url})),
            ComponentSpec::Relay(border) => {
                let spec = json!({"endpoint": border.endpoint, "peers": border.peers, "witness": border.witness});
                self.hosted("memory.relay", &border.cluster, spec);
            }
            ComponentSpec::SiteAgent(watch) => {
                let mut spec = json!({"peers": watch.peers, "home": watch.home, "rules": watch.rules});
                spec["border"] = self.output(&watch.border, "address");
                self.hosted("memory.watch", &watch.cluster, spec);
            }
            ComponentSpec::Witness(witness) => {
                let spec = json!({"sites": witness.sites, "home": witness.home, "rules": witness.rules});
                self.hosted("memory.watch", &witness.cluster, spec);
            }
            ComponentSpec::GlobalEndpoint(front) => {
                let mut spec = json!({"host": front.host, "port": front.port, "weights": front.weights});
                if front.tls {
                    spec["certificate"] = self.output(&front.certificate, "version");
                }
                self.main("memory.gateway", spec);
            }
            ComponentSpec::Backup(backup) => self.main("memory.schedule", json!(backup)),
            ComponentSpec::InferenceEndpoint(endpoint) => {
                self.main("memory.gateway", json!({"image": endpoint.image, "replicas": endpoint.replicas}));
            }
        }
    }

    fn main(&mut self, kind: &'static str, spec: Value) {
        let id = ResourceId::of(&self.site.name, &self.component.name);
        let ownership = self.component.existing.clone().map_or(Ownership::Ours, Ownership::External);
        self.push(id, kind, spec, ownership);
    }

    /// The component itself, on a cluster.
    fn hosted(&mut self, kind: &'static str, cluster: &ComponentName, spec: Value) {
        self.main(kind, spec);
        let host = Ref(ResourceId::of(&self.site.name, cluster));
        if let Some(last) = self.wanted.last_mut() {
            last.via = Some(host);
        }
    }

    fn part(&mut self, part: &str, kind: &'static str, spec: Value) {
        match ResourceId::part(&self.site.name, &self.component.name, part) {
            Ok(id) => self.push(id, kind, spec, Ownership::Ours),
            Err(error) => {
                let location = format!("{}/{}", self.site.name, self.component.name);
                self.problems.push(Problem::new(location, error.to_string(), "give it another name"));
            }
        }
    }

    fn push(&mut self, id: ResourceId, kind: &'static str, spec: Value, ownership: Ownership) {
        let precious = kinds::find(kind).is_some_and(|kind| kind.data == DataClass::Precious);
        let spec = Spec::of(&spec);
        let needs = spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
        let kind = KindName::new(kind).expect("kinds are named in a table");
        let (site, protected) = (self.site.name.clone(), precious && self.site.protect_data);
        self.wanted.push(Wanted { id, kind, site, via: None, spec, needs, ownership, protected });
    }

    fn output(&self, component: &ComponentName, field: &str) -> Value {
        output(&ResourceId::of(&self.site.name, component), field)
    }

    fn own(&self, field: &str) -> Value {
        self.output(&self.component.name, field)
    }
}

fn output(resource: &ResourceId, field: &str) -> Value {
    json!(OutputRef::new(resource.clone(), field))
}
