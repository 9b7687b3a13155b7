//! Expansion of components into AWS resources. Pure: addresses and ids that only AWS knows are references.
//!
//! | component | resources |
//! |---|---|
//! | model store | `SITE/models/key`, `bucket`: the key of the site's data and the bucket of your models; `replica-key`, `replica-bucket`, `replica-role` for copies in another region; `reader-role` and `reader` for pods that read models of buckets |
//! | cluster | `SITE/cluster`: the control plane; `role`, `node-role`, `network-role`, `disk-role`, `key`, `logs`, `oidc`, `network-identity`, `disk-identity`, `addon-vpc-cni` and the like, `system-template`, `system-nodes`, of other machines than the usual ones `system-medium-template` and the like; `gpu-template` and `gpu-nodes` with GPUs; `autoscaler-role` and `autoscaler-identity` where a pool may grow. An existing cluster is read only |
//! | registry | `SITE/registry/repository`, if its address is that of this account |
//! | database | `SITE/database/subnets`, `access`, `parameters`, `instance`, `replica-N`: a managed PostgreSQL; `remote`, `remote-key`, `remote-vpc` and the like: its replica in another region |
//! | cache | `SITE/cache/subnets`, `access`, `group`: a managed cache of vectors |
//! | inference endpoint | `SITE/server/endpoint`: the endpoint of SageMaker; `model`, `config`, `role`, `logs`, `alarm-errors`; `scaling` with autoscaling |
//! | endpoint | `SITE/gateway/record`, `tenants-record`: the names that clients use, in an existing zone; `certificate`: their public certificate; with several sites `health` and `name`, the site's own name |
//! | monitoring | `SITE/monitoring/topic` with receivers; `alarm-nat-ports-a` and the like; `overview`, a dashboard, with a stack; `budget` |
//! | network | `vpc`, `internet-gateway`, `subnet-public-a`, `subnet-private-a`, `address-a`, `nat-a`, `routes-public`, `routes-private-a`, `endpoint-s3`; `-b` and `-c` in the other zones; `endpoints` and `endpoint-sts` and the like, `flow-logs`, `flow-log-role` and `flow-log` where data is protected. With an existing network, `vpc` and `subnet-private-a` are existing too |

mod autoscaler;
mod cache;
mod cluster;
mod database;
pub(crate) mod endpoint;
mod inference;
mod models;
mod monitoring;
mod network;
mod registry;
mod zones;

pub(crate) use autoscaler::node_autoscaler;
pub(crate) use cluster::{DISKS, SYSTEM, addon};
pub use models::models_bucket;
pub(crate) use models::{PUBLISHERS, bucket_identity};
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::spec::OutputRef;
use textnlp_provider::{
    Component, DataClass, KindName, Need, Ownership, Problem, Problems, ResourceId, Site, Spec, Wanted,
};

use crate::table;
use crate::tags::Tags;

/// The kind of records, which have no tags.
const RECORD: &str = "aws.dns-record";

/// Expands a component into the resources of its site's account and region.
pub(crate) fn lower(component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { component, site, wanted: Vec::new(), problems: Vec::new() };
    match &component.part {
        ComponentSpec::Network(network) => lowering.network(network),
        ComponentSpec::ModelStore(store) => lowering.models(store),
        ComponentSpec::Database(database) => lowering.database(database),
        ComponentSpec::Cache(cache) => lowering.cache(cache),
        ComponentSpec::Registry(registry) => lowering.registry(registry),
        ComponentSpec::Cluster(cluster) => lowering.cluster(cluster),
        ComponentSpec::Endpoint(endpoint) => lowering.endpoint(endpoint),
        ComponentSpec::Monitoring(monitoring) => lowering.monitoring(monitoring),
        ComponentSpec::InferenceEndpoint(endpoint) => lowering.inference(endpoint),
        // Objects inside of the cluster, and secrets and certificates on the operator's machine, are other providers'.
        _ => {}
    }
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

/// The state of one component's expansion.
struct Lowering<'a> {
    component: &'a Component,
    site: &'a Site,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

impl Lowering<'_> {
    /// Adds the resource `SITE/COMPONENT`, which may be an existing object.
    fn main(&mut self, kind: &'static str, spec: &impl Serialize) -> ResourceId {
        let id = ResourceId::of(&self.site.name, &self.component.name);
        let ownership = self.component.existing.clone().map_or(Ownership::Ours, Ownership::External);
        self.push(id.clone(), kind, spec, ownership);
        id
    }

    /// Adds the resource `SITE/COMPONENT/PART`.
    fn part(&mut self, part: &str, kind: &'static str, spec: &impl Serialize) -> Option<ResourceId> {
        match ResourceId::part(&self.site.name, &self.component.name, part) {
            Ok(id) => {
                self.push(id.clone(), kind, spec, Ownership::Ours);
                Some(id)
            }
            Err(error) => {
                self.problem("", error.to_string(), "give it another name");
                None
            }
        }
    }

    fn push(&mut self, id: ResourceId, kind: &'static str, spec: &impl Serialize, ownership: Ownership) {
        let mut spec = serde_json::to_value(spec).unwrap_or_default();
        let mut tags: Tags = serde_json::from_value(spec["tags"].take()).unwrap_or_default();
        if kind != RECORD {
            tags.extend(self.site.tags.clone());
        }
        spec["tags"] = json!(tags);
        let spec = Spec::of(&spec);
        let needs = spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
        let kind = KindName::new(kind).expect("the names in the table are kind names");
        let is_precious = table::row(&kind).is_some_and(|row| row.kind.data == DataClass::Precious);
        let (site, protected) = (self.site.name.clone(), is_precious && self.site.protect_data);
        self.wanted.push(Wanted { id, kind, site, via: None, spec, needs, ownership, protected });
    }

    /// Adds a dependency of the last resource that no reference in its spec states.
    fn after(&mut self, on: Option<ResourceId>) {
        if let (Some(last), Some(on)) = (self.wanted.last_mut(), on) {
            last.needs.push(Need::on(on));
            last.needs.sort();
            last.needs.dedup();
        }
    }

    fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let place = format!("{}/{} {field}", self.site.name, self.component.name);
        self.problems.push(Problem::new(place.trim_end(), cause, fix));
    }
}

/// A reference to an output.
fn output(resource: &ResourceId, field: &str) -> Value {
    json!(OutputRef::new(resource.clone(), field))
}
