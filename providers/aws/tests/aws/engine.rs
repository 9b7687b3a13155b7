//! A simulated account, and what environments of it want.

use std::collections::BTreeMap;
use std::sync::Arc;

use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{Component, ComponentSpec, Site};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Kind, Outputs, SecretRef, Spec, Wanted};
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::{Options, Scope, Simulator};

use crate::ecr::Images;
use crate::elasticache::token;
use crate::iam::BOUNDARY;
pub(crate) use crate::programs::engine::{DOWN, Process, Stack, UP};
use crate::rds::password;
use crate::{ACCOUNT, REGION, provider_of, site};

/// The hosted zone of the account.
pub(crate) const ZONE: &str = "Z0123456789EXAMPLE";
/// What another provider creates in the cluster.
const SERVICE: &str = "here/gateway/service";

/// A simulated account, and the provider that is signed in to it.
pub(crate) struct Account {
    pub(crate) simulator: Arc<Simulator>,
    process: Process,
}

impl AsRef<Process> for Account {
    fn as_ref(&self) -> &Process {
        &self.process
    }
}

impl Account {
    pub(crate) fn new(options: Options) -> Self {
        let simulator = Simulator::start(options);
        // New accounts may run no machines with GPUs, and have addresses for one protected network.
        for code in ["L-0263D0A3", "L-DB2E81BA", "L-3819A6DF"] {
            simulator.world().quotas.set(&crate::Bench::scope(), code, 256.0);
        }
        {
            let (mut world, global) = (simulator.world(), Scope::global(ACCOUNT));
            route53::zone(&mut world, &global, ZONE, "example.com", false);
            world.state::<Iam>(&global).policies.insert(BOUNDARY.to_owned());
        }
        Self::of(Arc::new(simulator))
    }

    fn of(simulator: Arc<Simulator>) -> Self {
        let aws =
            provider_of(&simulator, [(password("1"), "first-password-0001"), (token("1"), "first-token-of-a-test")]);
        let aws = aws.pushing(Arc::new(Images::of(&simulator)));
        let place = SiteLocation {
            provider: "aws".to_owned(),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            runtime: Runtime::Kubernetes,
        };
        Self { simulator, process: Process::new(aws, "here", place) }
    }

    /// The same account as another process sees it.
    pub(crate) fn again(&self) -> Self {
        Self::of(self.simulator.clone())
    }

    /// The kinds of the provider.
    pub(crate) fn kinds(&self) -> &'static [Kind] {
        self.process.provider.kinds()
    }

    /// What components expand to. The passwords of a database and a cache are secrets that are there, and so is the load balancer of the service.
    pub(crate) fn lower(&self, components: &[Component], site: &Site) -> Vec<Wanted> {
        let mut all: Vec<Wanted> = Vec::new();
        for component in components {
            all.extend(self.process.provider.lower(component, site).unwrap());
        }
        let balancer = Outputs::from([("address".to_owned(), "service.elb.eu-west-1.amazonaws.com".into())]);
        for one in &mut all {
            one.protected = false;
            one.spec = one.spec.resolve_known(|id| (id.as_str() == SERVICE).then_some(&balancer));
            one.needs.retain(|need| need.on.as_str() != SERVICE);
            let secrets: [(&str, &str, SecretRef); 2] =
                [("password", "database-password", password("1")), ("token", "cache-password", token("1"))];
            for (field, name, secret) in secrets {
                if one.spec.get(field).is_some_and(|value| value.to_string().contains(name)) {
                    let mut spec = one.spec.as_value().clone();
                    spec[field] = serde_json::to_value(secret).unwrap();
                    one.spec = Spec::of(&spec);
                    one.needs.retain(|need| !need.on.as_str().contains(name));
                }
            }
        }
        all
    }

    /// The records of the zone.
    pub(crate) fn records(&self) -> BTreeMap<route53::RecordKey, serde_json::Value> {
        self.simulator.world().find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records.clone()
    }

    /// Every resource and its tags, the latest ones too.
    pub(crate) fn tags(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let world = self.simulator.world();
        let end = "9999-01-01T00:00:00Z".parse().unwrap();
        world.tags.listed("", end).map(|(arn, tags)| (arn.to_owned(), tags)).collect()
    }
}

/// A component without an existing object.
pub(crate) fn component(name: &str, part: ComponentSpec) -> Component {
    Component { name: name.parse().unwrap(), existing: None, part }
}

/// A site of an environment, with machines.
pub(crate) fn site_of(environment: &str, protect_data: bool, max_nodes: u32) -> Site {
    let cluster = ClusterSite { min_nodes: 2, max_nodes: Some(max_nodes), ..ClusterSite::of("textnlp") };
    Site { environment: environment.parse().unwrap(), protect_data, cluster: Some(Box::new(cluster)), ..site() }
}
