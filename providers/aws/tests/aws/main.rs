//! The provider against a simulated AWS: conformance of each kind, and what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod acm;
mod authorize;
mod billed;
#[path = "../../../cloud/tests/programs/capacity.rs"]
mod capacity;
#[path = "../../../../tests/src/checkov.rs"]
mod checkov;
mod ecr;
mod eks;
mod elasticache;
mod engine;
mod iam;
mod inference;
mod kms;
mod monitoring;
mod network;
mod origin;
mod policy;
#[path = "../../../cloud/tests/programs/mod.rs"]
mod programs;
mod promotion;
mod random;
mod rds;
mod refresh;
mod route53;
mod s3;
mod sagemaker;
mod secretsmanager;
#[path = "../../../../tests/src/seeds.rs"]
mod seeds;
mod session;
mod shape;
mod sweep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use textnlp_aws::{Access, Aws};
use textnlp_provider::component::{ConnectionLimits, Database, Endpoint, ManagedPostgres, Postgres, Program, Site};
use textnlp_provider::conformance::{TestBed, Violation};
use textnlp_provider::settings::{DatabaseKind, Hosting, Runtime};
use textnlp_provider::{
    CloudId, Error, ErrorKind, KindName, Lineage, Need, Outputs, Ownership, Recorded, ResourceId, Result, Secret,
    SecretName, SecretRef, SecretStore, SecretVersion, Spec, Wanted,
};
use textnlp_sim::{Options, Simulator, Timing};

/// The region of all tests.
pub(crate) const REGION: &str = "eu-west-1";
/// The account of the simulator.
pub(crate) const ACCOUNT: &str = "123456789012";

/// A simulated AWS and the provider of its account.
pub(crate) struct Bench {
    pub(crate) simulator: Simulator,
    pub(crate) provider: Aws,
}

impl Bench {
    /// New objects appear in lists at the next request.
    pub(crate) fn new() -> Self {
        Self::consistent_after(Duration::from_secs(4))
    }

    /// New objects and tags appear in lists so much later; each request takes five seconds of the simulator's time.
    pub(crate) fn consistent_after(consistency: Duration) -> Self {
        let timing = Timing { consistency, ..Timing::default() };
        Self::of(Simulator::start(Options { timing, ..Options::default() }), [])
    }

    /// With the values of secrets.
    pub(crate) fn of(simulator: Simulator, secrets: impl IntoIterator<Item = (SecretRef, &'static str)>) -> Self {
        let provider = provider_of(&simulator, secrets).polling_every(Duration::ZERO);
        Self { simulator, provider }
    }

    /// How the provider signs in.
    pub(crate) fn access(&self) -> Access {
        access(&self.simulator)
    }

    /// The conformance tests; one for each test, because it numbers operations.
    pub(crate) fn bed(&self) -> TestBed<'_> {
        TestBed::new(&self.provider, "staging".parse().unwrap(), "here".parse().unwrap(), lineage())
    }

    /// How many requests of an operation succeeded.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        let is_one =
            |one: &&textnlp_sim::Exchange| one.operation == operation && one.outcome == textnlp_sim::Outcome::Succeeded;
        self.simulator.requests().iter().filter(is_one).count()
    }

    /// Where the simulator holds the objects of the region.
    pub(crate) fn scope() -> textnlp_sim::Scope {
        textnlp_sim::Scope::new(ACCOUNT, REGION)
    }
}

pub(crate) fn access(simulator: &Simulator) -> Access {
    let credentials =
        aws_credential_types::Credentials::new(Simulator::ACCESS_KEY, Simulator::SECRET_KEY, None, None, "test");
    let simulator = textnlp_aws::Simulator { url: simulator.url(), credentials };
    Access { region: REGION.to_owned(), simulator: Some(simulator), ..Access::default() }
}

/// The provider that is signed in to a simulator, with the values of secrets.
pub(crate) fn provider_of(simulator: &Simulator, secrets: impl IntoIterator<Item = (SecretRef, &'static str)>) -> Aws {
    Aws::new(access(simulator), Arc::new(Secrets(secrets.into_iter().collect())))
}

/// Creates resources in the order of their needs, with the outputs that they refer to.
pub(crate) async fn make_all(
    bed: &TestBed<'_>,
    mut left: Vec<Wanted>,
) -> std::result::Result<Vec<(Wanted, Recorded)>, Violation> {
    let mut made: Vec<(Wanted, Recorded)> = Vec::new();
    let mut outputs: BTreeMap<ResourceId, Outputs> = BTreeMap::new();
    while !left.is_empty() {
        let is_ready = |one: &Wanted| one.needs.iter().all(|need| outputs.contains_key(&need.on));
        let at = left.iter().position(is_ready).unwrap_or_else(|| {
            panic!(
                "{:?} need each other, or something that is not there",
                left.iter().map(|one| one.id.as_str()).collect::<Vec<_>>()
            )
        });
        let one = left.remove(at);
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
        let one = Wanted { spec, ..one };
        let recorded = bed.make(&one).await?;
        outputs.insert(one.id.clone(), recorded.outputs.clone());
        made.push((one, recorded));
    }
    Ok(made)
}

/// The lineage of all tests.
pub(crate) fn lineage() -> Lineage {
    "00000000-0000-4000-8000-000000007e57".parse().unwrap()
}

/// The site of all tests.
pub(crate) fn site() -> Site {
    Site {
        environment: "staging".parse().unwrap(),
        name: "here".parse().unwrap(),
        account: ACCOUNT.to_owned(),
        region: REGION.to_owned(),
        runtime: Runtime::Kubernetes,
        role: None,
        tags: BTreeMap::from([("team".to_owned(), "nlp".to_owned())]),
        protect_data: true,
        cluster: None,
        subnets: Vec::new(),
        maintenance: None,
    }
}

fn program() -> Program {
    Program { path: "textnlp-server".to_owned(), digest: "sha256:0".to_owned() }
}

/// A database that AWS operates.
pub(crate) fn database(managed: ManagedPostgres, replicas: u32, connections: u32) -> Database {
    let postgres = Postgres {
        address: None,
        ca_file: Some("rds.pem".to_owned()),
        name: "textnlp".to_owned(),
        version: 16,
        port: None,
        replicas,
        connections,
        secrets: "secrets".parse().unwrap(),
        cluster: "cluster".parse().unwrap(),
        program: program(),
        archive_seconds: None,
        between: None,
        managed: Some(managed),
    };
    let (kind, hosting) = (DatabaseKind::Postgres, Some(Hosting::Managed));
    Database { kind, hosting, schema: None, postgres: Some(Box::new(postgres)) }
}

/// The endpoint for clients, with records in a zone.
pub(crate) fn endpoint(zone: Option<&str>, domain: &str, base_domain: Option<&str>) -> Endpoint {
    Endpoint {
        host: "0.0.0.0".to_owned(),
        port: 8443,
        metrics_port: 9090,
        tls: true,
        certificate: "certificate".parse().unwrap(),
        workload: "server".parse().unwrap(),
        watch: None,
        program: program(),
        max_request_bytes: 1_000,
        timeout_seconds: 60,
        connections: ConnectionLimits::default(),
        domain: Some(domain.to_owned()),
        waf: false,
        zone: zone.map(|id| CloudId::new(id).unwrap()),
        managed_certificate: false,
        acme: false,
        share: None,
        base_domain: base_domain.map(str::to_owned),
    }
}

/// A wanted resource of the site, without references.
pub(crate) fn wanted(id: &str, kind: &str, spec: &Value) -> Wanted {
    Wanted {
        id: ResourceId::new(id).unwrap(),
        kind: KindName::new(kind).unwrap(),
        site: "here".parse().unwrap(),
        via: None,
        spec: Spec::of(spec),
        needs: Vec::<Need>::new(),
        ownership: Ownership::Ours,
        protected: false,
    }
}

/// An output of a resource that a test created.
pub(crate) fn output(recorded: &Recorded, name: &str) -> String {
    recorded.outputs[name].as_str().unwrap().to_owned()
}

/// Runs a test; a violated rule fails it with its sentence.
pub(crate) fn run(test: impl Future<Output = Result<(), textnlp_provider::conformance::Violation>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Err(violation) = runtime.block_on(test) {
        panic!("{violation}");
    }
}

/// Secrets that are there from the start.
pub(crate) struct Secrets(pub(crate) BTreeMap<SecretRef, &'static str>);

#[async_trait]
impl SecretStore for Secrets {
    async fn put(&self, name: &SecretName, _version: &SecretVersion, _value: &Secret) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "store", name.to_string()))
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        let found = self.0.get(secret).map(|text| Secret::new((*text).to_owned()));
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "read", secret.name.to_string()))
    }

    async fn versions(&self, _name: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(Vec::new())
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<SecretName>> {
        Ok(Vec::new())
    }

    async fn delete(&self, name: &SecretName) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "delete", name.to_string()))
    }
}

#[test]
fn kinds_are_declared_well() {
    let bench = Bench::new();
    textnlp_provider::conformance::well_formed(&bench.provider).unwrap();
}
