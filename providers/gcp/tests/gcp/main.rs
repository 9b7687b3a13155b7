//! The provider against a simulated Google Cloud: a whole site is created, seen as it was made, and removed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod billed;
mod budgets;
#[path = "../../../cloud/tests/programs/capacity.rs"]
mod capacity;
mod dns;
mod monitoring;
mod network;
mod policy;
#[path = "../../../cloud/tests/programs/mod.rs"]
mod programs;
mod promotion;
mod protection;
mod random;
#[path = "../../../cloud/tests/programs/records.rs"]
mod records;
mod refresh;
#[path = "../../../cloud/tests/programs/promotion.rs"]
mod replicated;
mod run;
#[path = "../../../../tests/src/seeds.rs"]
mod seeds;
#[path = "../../../cloud/tests/programs/story.rs"]
mod story;
mod vertex;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cloud::{ImageSource, ImageTarget, WithGenerated};
use textnlp_gcp::{Access, Gcp};
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{
    Budget, Cache, Cluster, ComponentSpec, ConnectionLimits, Database, Endpoint, GpuPool, MaintenanceWindow,
    ManagedCache, ManagedPostgres, Model, ModelReplica, ModelStore, Monitored, Monitoring, Network, Postgres, Program,
    ReceiverAddress, Registry, ServiceAddress,
};
use textnlp_provider::conformance::{TestBed, well_formed};
use textnlp_provider::settings::{CacheKind, DatabaseKind, GpuSize, Hosting, Runtime, Spot, Weekday};
use textnlp_provider::{
    CloudId, Component, DeleteBounds, Effect, Error, ErrorKind, Handle, Lacking, Lineage, Object, Observed, Operation,
    OperationId, Outputs, Ownership, Progress, Provider, Recorded, ResourceId, Result, Scope, Secret, SecretName,
    SecretRef, SecretStore, SecretVersion, Site, Spec, Sweep, Token, Verb, Wanted, error_chain,
};
use textnlp_sim::Market;
use textnlp_sim::gcp::{GoogleCloud, Options};

use capacity::{bought, bought_over, lacking};

const REGION: &str = "europe-west1";
/// The region of a replica of the database.
const REMOTE: &str = "europe-west4";
const LINEAGE: u128 = 0x0198_c0de_0000_7000_8000_0000_0000_0001;
/// An existing bucket of models.
const THEIRS: &str = "company-models";
/// An existing DNS zone.
const ZONE: &str = "company";
/// Far more steps than an operation without delays takes.
const STEPS: usize = 400;

struct Secrets;

#[async_trait]
impl SecretStore for Secrets {
    async fn put(&self, name: &SecretName, _version: &SecretVersion, _value: &Secret) -> Result<()> {
        Err(Error::new(ErrorKind::Denied, "store", name.to_string()))
    }

    async fn get(&self, _secret: &SecretRef) -> Result<Secret> {
        Ok(Secret::new("a password of some length"))
    }

    async fn versions(&self, _name: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(Vec::new())
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<SecretName>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _name: &SecretName) -> Result<()> {
        Ok(())
    }
}

/// Puts the image of a push into the cloud.
struct Images(Arc<GoogleCloud>);

#[async_trait]
impl ImageSource for Images {
    async fn push(&self, target: &ImageTarget, _report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        assert_eq!(target.user, "oauth2accesstoken");
        assert!(self.0.email_of(target.password.expose_text().unwrap()).is_some(), "it is an access token");
        let location = REGION;
        let parts: Vec<&str> = target.repository.split('/').collect();
        let [project, repository, image] = parts[..] else { panic!("{target:?}") };
        let repository = format!("projects/{project}/locations/{location}/repositories/{repository}");
        self.0.world().put_image(&repository, image, &target.tag, &target.digest);
        Ok(())
    }
}

/// A provider of a cloud.
fn provider(cloud: &Arc<GoogleCloud>) -> Gcp {
    let access = Access {
        project: cloud.project().to_owned(),
        region: REGION.to_owned(),
        impersonate: None,
        variables: Some(cloud.variables().into_iter().collect()),
    };
    let provider = Gcp::new(access, Arc::new(Secrets)).polling_every(Duration::from_millis(1));
    provider.pushing(Arc::new(Images(cloud.clone())))
}

/// A site of an environment.
fn site(cloud: &GoogleCloud, environment: &str) -> Site {
    Site {
        environment: environment.parse().unwrap(),
        name: "main".parse().unwrap(),
        account: cloud.project().to_owned(),
        region: REGION.to_owned(),
        runtime: Runtime::Kubernetes,
        role: None,
        tags: BTreeMap::from([("team".to_owned(), "text".to_owned())]),
        protect_data: false,
        cluster: Some(Box::new(ClusterSite::of("textnlp"))),
        subnets: Vec::new(),
        maintenance: Some(MaintenanceWindow { day: Weekday::Sunday, at: "22:30".parse().unwrap(), hours: 12 }),
    }
}

/// A provider and the cloud that it calls.
struct Bench {
    cloud: Arc<GoogleCloud>,
    provider: Gcp,
    site: Site,
    gpu: Option<GpuPool>,
    /// The existing bucket of its models.
    existing: Option<&'static str>,
    /// The existing network that it is in.
    network: Option<&'static str>,
    /// The region of a replica of its database, which its bucket of models is in too.
    remote: Option<&'static str>,
}

impl Bench {
    /// A resource of the site that `up` would create.
    fn wanted(&self, id: &str, kind: &str, spec: &Value) -> Wanted {
        Wanted {
            id: ResourceId::new(id).unwrap(),
            kind: kind.parse().unwrap(),
            site: self.site.name.clone(),
            via: None,
            spec: Spec::of(spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        }
    }

    fn new(options: Options, protect_data: bool) -> Self {
        let cloud = Arc::new(GoogleCloud::start(options));
        let provider = provider(&cloud);
        let site = Site { protect_data, ..site(&cloud, "staging") };
        {
            let mut world = cloud.world();
            world.enable(cloud.project(), "dns.googleapis.com");
            world.put_zone(cloud.project(), ZONE, "example.com.", false);
        }
        cloud.world().quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 4.0);
        let gpu = Some(GpuPool { spot: Spot::Prefer, ..GpuPool::of(GpuSize::Small, 1) });
        Self { cloud, provider, site, gpu, existing: None, network: None, remote: None }
    }

    /// A site whose models are in a bucket that was there before.
    fn with_existing_bucket(is_uniform: bool) -> Self {
        let bench = Self { gpu: None, existing: Some(THEIRS), ..Self::new(Options::zero_latency().enabled(), false) };
        let mut world = bench.cloud.world();
        let number = world.project(bench.cloud.project()).unwrap().number.clone();
        let bucket = json!({
            "name": format!("projects/_/buckets/{THEIRS}"), "bucket_id": THEIRS, "project": format!("projects/{number}"),
            "location": "EU", "storage_class": "NEARLINE", "metageneration": 1,
            "iam_config": {
                "uniform_bucket_level_access": { "enabled": is_uniform }, "public_access_prevention": "inherited",
            },
        });
        world.put(&bucket_key(), bucket);
        drop(world);
        bench
    }

    /// The existing DNS zone, as an environment names it.
    fn zone(&self) -> String {
        ZONE.to_owned()
    }

    fn lower(&self, name: &str, part: ComponentSpec) -> Vec<Wanted> {
        let existing = match name {
            "models" => self.existing,
            "network" => self.network,
            _ => None,
        };
        let existing = existing.map(|id| CloudId::new(id).unwrap());
        let component = Component { name: name.parse().unwrap(), existing, part };
        self.provider.lower(&component, &self.site).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The resources of a whole site, each after those that it needs.
    fn all(&self) -> Vec<Wanted> {
        let own = format!("textnlp-{}-staging-main-models", self.cloud.project());
        let models = vec![Model::of("mine", &format!("gs://{}/mine/", self.existing.unwrap_or(&own)))];
        let archive_after_days = self.existing.is_none().then_some(90);
        let replica = self.remote.map(|region| ModelReplica { region: region.to_owned(), permission_boundary: None });
        let store = ModelStore { archive_after_days, replica, ..ModelStore::of(models) };
        let url = format!("{REGION}-docker.pkg.dev/{}/textnlp/server", self.cloud.project());
        let image = format!("{url}:1@sha256:{}", "0".repeat(64));
        let registry = Registry { url, image: Some(image) };
        let mut all = self.lower("network", ComponentSpec::Network(Network::default()));
        all.extend(self.lower("models", ComponentSpec::ModelStore(store)));
        let cluster = Cluster {
            gpu: self.gpu.clone(),
            allow_from: Some(vec!["203.0.113.0/24".to_owned()]),
            ..Cluster::of("network".parse().unwrap())
        };
        all.extend(self.lower("cluster", ComponentSpec::Cluster(cluster)));
        all.extend(self.lower("registry", ComponentSpec::Registry(registry)));
        all.extend(self.lower("database", ComponentSpec::Database(self.database())));
        all.extend(self.lower("cache", ComponentSpec::Cache(redis())));
        all.extend(self.lower("gateway", ComponentSpec::Endpoint(endpoint(Some(&self.zone()), "text.example.com"))));
        all.extend(self.lower("monitoring", ComponentSpec::Monitoring(monitoring("USD"))));
        ordered(all)
    }

    fn database(&self) -> Database {
        let mut database = database();
        if let Some(managed) = database.postgres.as_mut().and_then(|postgres| postgres.managed.as_mut()) {
            managed.replica_region = self.remote.map(str::to_owned);
        }
        database
    }

    fn operation(
        &self,
        number: u64,
        verb: Verb,
        wanted: &Wanted,
        spec: &Spec,
        recorded: Option<&Recorded>,
    ) -> Operation {
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        Operation {
            id: OperationId(number),
            token: Token::derive(lineage, &self.site.name, OperationId(number)),
            verb,
            resource: wanted.id.clone(),
            kind: wanted.kind.clone(),
            site: self.site.name.clone(),
            environment: self.site.environment.clone(),
            lineage,
            via: None,
            host: None,
            spec: if verb == Verb::Delete { Spec::default() } else { spec.clone() },
            recorded: recorded.cloned(),
            changes: Vec::new(),
            bounds: DeleteBounds::default(),
            lacking: Vec::new(),
            is_repeated: false,
        }
    }

    /// Runs an operation to its end, as the engine does, over a journal.
    async fn finish(&self, op: &Operation) -> textnlp_provider::resource::Object {
        let mut handle = None;
        let mut last = String::new();
        for _ in 0..STEPS {
            let progress = match &handle {
                None => self.provider.begin(op).await,
                Some(handle) => self.provider.advance(op, handle).await,
            };
            match progress {
                Ok(Progress::Done(object)) => return object,
                Ok(Progress::Pending { handle: next, says, .. }) => {
                    last = says;
                    handle = Some(next);
                }
                Ok(Progress::Failed { error, .. }) => panic!("{} {}: {}", op.verb, op.resource, error_chain(&error)),
                Err(error) if error.kind.may_pass() => last = error_chain(&error),
                Err(error) => panic!("{} {}: {}", op.verb, op.resource, error_chain(&error)),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} {} does not end: {last}", op.verb, op.resource);
    }
}

/// Resources, each after those that it needs.
fn ordered(mut all: Vec<Wanted>) -> Vec<Wanted> {
    let mut ordered: Vec<Wanted> = Vec::new();
    while !all.is_empty() {
        let is_ready = |one: &Wanted| {
            one.needs.iter().all(|need| {
                MADE_ELSEWHERE.contains(&need.on.as_str()) || ordered.iter().any(|done: &Wanted| done.id == need.on)
            })
        };
        let place = all.iter().position(is_ready).unwrap_or_else(|| panic!("{:?}", all[0].needs));
        ordered.push(all.remove(place));
    }
    ordered
}

/// The endpoint of the service, whose name is in this zone.
fn endpoint(zone: Option<&str>, domain: &str) -> Endpoint {
    Endpoint {
        host: "0.0.0.0".to_owned(),
        port: 8443,
        metrics_port: 9090,
        tls: true,
        certificate: "certificate".parse().unwrap(),
        workload: "server".parse().unwrap(),
        watch: None,
        program: Program { path: "textnlp-server".to_owned(), digest: "sha256:0".to_owned() },
        max_request_bytes: 1_000,
        timeout_seconds: 60,
        connections: ConnectionLimits::default(),
        domain: Some(domain.to_owned()),
        waf: false,
        zone: zone.map(|id| CloudId::new(id).unwrap()),
        share: None,
        managed_certificate: false,
        acme: false,
        base_domain: None,
    }
}

/// A cost budget in this currency, a mailbox that gets the alerts of a whole site, and dashboards.
fn monitoring(currency: &str) -> Monitoring {
    let budget = Budget { monthly: 900.0, currency: currency.to_owned(), warn_at: 0.8 };
    let service = Some(ServiceAddress { host: "text.example.com".to_owned(), port: 8443 });
    let monitored =
        Monitored { network: true, cluster: true, gpu: true, database: Some(database()), cache: None, service };
    let receivers = BTreeMap::from([("oncall".to_owned(), mailbox("oncall@example.com"))]);
    Monitoring { stack: true, budget: Some(budget), monitored, receivers, ..Monitoring::default() }
}

fn mailbox(recipients: &str) -> ReceiverAddress {
    ReceiverAddress::Plain(format!("smtps://mail.example.com?from=alerts@example.com&to={recipients}"))
}

/// A cache beside the database.
fn redis() -> Cache {
    let (secrets, database) = ("secrets".parse().unwrap(), Some("database".parse().unwrap()));
    let managed = ManagedCache { memory_bytes: 1_000_000_000, replicas: 0, secrets, database };
    Cache { kind: CacheKind::Redis, managed: Some(managed) }
}

fn database() -> Database {
    let postgres = Postgres {
        address: None,
        ca_file: None,
        name: "textnlp".to_owned(),
        version: 16,
        port: None,
        replicas: 1,
        connections: 50,
        secrets: "secrets".parse().unwrap(),
        cluster: "cluster".parse().unwrap(),
        program: Program { path: "textnlp-server".to_owned(), digest: "sha256:0".to_owned() },
        archive_seconds: None,
        between: None,
        managed: Some(ManagedPostgres { disk_bytes: 20 << 30, backup_seconds: 7 * 86_400, replica_region: None }),
    };
    Database {
        kind: DatabaseKind::Postgres,
        hosting: Some(Hosting::Managed),
        schema: None,
        postgres: Some(Box::new(postgres)),
    }
}

fn record(wanted: &Wanted, spec: &Spec, object: &textnlp_provider::resource::Object) -> Recorded {
    Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: None,
        spec: spec.clone(),
        needs: wanted.needs.clone(),
        ownership: wanted.ownership.clone(),
        schema: 1,
        cloud_id: object.cloud_id.clone(),
        created: object.created,
        outputs: object.outputs.clone(),
        protected: false,
        tainted: false,
    }
}

/// What other providers of the site create.
const MADE_ELSEWHERE: [&str; 3] = ["main/secrets/database-password", "main/gateway/service", "main/server/deployment"];

/// The outputs of [`MADE_ELSEWHERE`]: the generated password of the database, and the Service for clients. Servers have none.
fn secrets() -> BTreeMap<ResourceId, Outputs> {
    let [password, service, _] = MADE_ELSEWHERE.map(|id| ResourceId::new(id).unwrap());
    let secret = json!({ "$secret": "main/database-password", "version": "1" });
    BTreeMap::from([
        (password, Outputs::from([("secret".to_owned(), secret)])),
        (service, Outputs::from([("address".to_owned(), json!("192.0.2.10"))])),
    ])
}

/// A resource of a site as it is wanted, and as it is recorded.
type Made = (Wanted, Recorded);

/// Creates these resources of a site, as its first `up` does.
async fn create(bench: &Bench, wanted: &[Wanted]) -> Vec<Made> {
    let mut outputs = secrets();
    let problems = bench.provider.preflight(wanted).await.unwrap();
    let problems: Vec<String> = problems.iter().filter(|problem| !problem.warning).map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    let mut records = Vec::new();
    for (number, one) in (1..).zip(wanted) {
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap_or_else(|error| panic!("{}: {error}", one.id));
        let object = match &one.ownership {
            Ownership::Ours => bench.finish(&bench.operation(number, Verb::Create, one, &spec, None)).await,
            Ownership::External(id) => match bench.provider.read(&one.kind, id).await.unwrap() {
                Observed::Present(object) => object,
                missing => panic!("{}: {missing:?}", one.id),
            },
        };
        outputs.insert(one.id.clone(), object.outputs.clone());
        records.push((Wanted { spec: spec.clone(), ..one.clone() }, record(one, &spec, &object)));
    }
    records
}

/// Observes a site, which another `up` would not change.
async fn unchanged(bench: &Bench, records: &[Made]) {
    let (resolved, recorded): (Vec<Wanted>, Vec<Recorded>) = records.iter().cloned().unzip();
    let scope = Scope {
        lineage: Lineage(uuid::Uuid::from_u128(LINEAGE)),
        environment: &bench.site.environment,
        site: &bench.site.name,
        wanted: &resolved,
        recorded: &recorded,
    };
    let seen = bench.provider.observe(&scope).await.unwrap();
    for (one, recorded) in records {
        let found = seen.iter().find(|(id, _)| *id == one.id).map(|(_, seen)| seen);
        let Some(Observed::Present(object)) = found else { panic!("{}: {found:?}", one.id) };
        // The engine compares no existing object.
        if one.ownership != Ownership::Ours {
            continue;
        }
        let changes = bench.provider.diff(one, recorded, object);
        assert!(changes.is_empty(), "{}: {changes:?}", one.id);
    }
}

/// Changes a resource to this spec.
async fn update(bench: &Bench, number: u64, made: &mut Made, spec: Spec) {
    let object = bench.finish(&bench.operation(number, Verb::Update, &made.0, &spec, Some(&made.1))).await;
    made.1 = record(&made.0, &spec, &object);
    made.0.spec = spec;
}

/// Leaves behind what workloads of the cluster make: the keys in the simulated cloud.
fn leave_behind(bench: &Bench, records: &[Made]) -> Vec<String> {
    let name = |id: &str| {
        let of = |(one, _): &&Made| one.id.as_str() == id;
        records.iter().find(of).unwrap().0.spec.get("name").and_then(Value::as_str).unwrap().to_owned()
    };
    let (network, subnetwork) = (name("main/network/vpc"), name("main/network/subnet"));
    let project = bench.cloud.project().to_owned();
    bench.cloud.world().leave_behind(&project, &network, &subnetwork, &format!("{REGION}-b"))
}

/// Removes a site, as `down` does.
async fn remove(bench: &Bench, records: &[Made]) {
    for (number, (one, recorded)) in (1_000..).zip(records.iter().rev()) {
        // The engine names what the plan sweeps.
        let mut op = bench.operation(number, Verb::Delete, one, &one.spec, Some(recorded));
        if let Ok(Observed::Present(object)) = bench.provider.read(&one.kind, &recorded.cloud_id).await {
            op.bounds.sweeps = object.foreign.iter().map(|foreign| foreign.cloud_id.clone()).collect();
        }
        if one.ownership == Ownership::Ours {
            bench.finish(&op).await;
        } else {
            let error = bench.provider.begin(&op).await.err();
            assert!(error.is_some_and(|error| error.kind == ErrorKind::Denied), "{} is changed", one.id);
        }
    }
    let recorded: Vec<Recorded> = records.iter().map(|(_, recorded)| recorded.clone()).collect();
    let sweep = Sweep { lineage: Lineage(uuid::Uuid::from_u128(LINEAGE)), before: &recorded, kept: &[] };
    let left = bench.provider.leftovers(&sweep).await.unwrap().unwrap();
    assert!(left.left.is_empty() && left.unsearched.is_empty(), "{left:?}");
    let violations = bench.cloud.take_violations();
    assert!(violations.is_empty(), "{violations:#?}");
}

async fn road(bench: &Bench) {
    let mut records = create(bench, &bench.all()).await;
    unchanged(bench, &records).await;
    let outputs = |id: &str| {
        let of = |(one, _): &&Made| one.id.as_str() == id;
        records.iter().find(of).unwrap().1.outputs.clone()
    };
    let cluster = outputs("main/cluster");
    assert!(cluster["endpoint"].as_str().is_some_and(|url| url.starts_with("https://")), "{cluster:?}");
    let user = outputs("main/database/instance");
    assert!(user["url"].as_str().is_some_and(|url| url.starts_with("postgresql://textnlp@")), "{user:?}");
    the_auth_string_is_read_when_it_is_used(bench, &outputs("main/cache/group")).await;
    // An existing network has the only connection.
    if bench.site.subnets.is_empty() {
        the_connection_of_a_cache_does_not_move(bench, &records).await;
    }
    {
        let world = bench.cloud.world();
        let keys = world.keys();
        let repository = keys.iter().find(|key| key.ends_with("/repositories/textnlp")).unwrap();
        let pools: Vec<&String> = keys.iter().filter(|key| key.contains("/nodePools/")).collect();
        let refused: Vec<_> = pools.iter().filter(|pool| !world.may_pull(pool, repository)).collect();
        assert!(!pools.is_empty() && refused.is_empty(), "nodes pull images: {refused:?} of {pools:?}");
        let (channels, policies) = (monitoring::channels(&world), monitoring::policies(&world));
        let [channel] = channels.as_slice() else { panic!("{channels:?}") };
        assert_eq!(channel["labels"], json!({ "email_address": "oncall@example.com" }));
        assert_eq!(policies.len(), 6);
        let is_sent = |policy: &&Value| policy["notificationChannels"] == json!([channel["name"]]);
        assert_eq!(policies.iter().filter(is_sent).count(), 6, "{policies:?}");
        let budget = keys.iter().find(|key| key.starts_with("billingbudgets/")).and_then(|key| world.get(key)).unwrap();
        assert_eq!(budget["notificationsRule"]["monitoringNotificationChannels"], json!([channel["name"]]));
    }

    // A raised minimum: the pool has one zone, because it began with one node.
    let pool = records.iter_mut().find(|(one, _)| one.id.as_str() == "main/cluster/system-nodes").unwrap();
    let mut larger = pool.1.spec.as_value().clone();
    (larger["nodes"], larger["scaling"]) = (json!(5), json!({ "min": 5, "max": 6 }));
    update(bench, 500, pool, Spec::of(&larger)).await;
    let Observed::Present(seen) = bench.provider.read(&pool.1.kind, &pool.1.cloud_id).await.unwrap() else {
        panic!("the pool is gone")
    };
    assert_eq!(seen.spec.get("nodes"), Some(&json!(5)));
    upgrades_are_set_again(bench, &mut records).await;

    if bench.remote.is_some() {
        replication_is_turned_on_again(bench, &mut records).await;
    }
    let left = leave_behind(bench, &records);
    remove(bench, &records).await;
    // In an existing network nothing is swept.
    let stays: Vec<&String> = left.iter().filter(|key| bench.cloud.world().get(key).is_some()).collect();
    let is_kept = |key: &&String| key.contains("/disks/") || !bench.site.subnets.is_empty();
    assert!(!stays.is_empty() && stays.iter().all(is_kept), "{stays:?}");
}

/// The outputs of an instance of Memorystore refer to its AUTH string, which no document has.
async fn the_auth_string_is_read_when_it_is_used(bench: &Bench, outputs: &Outputs) {
    assert!(outputs["url"].as_str().is_some_and(|url| url.starts_with("rediss://10.") && url.ends_with(":6378")));
    assert!(outputs["ca_pem"].as_str().is_some_and(|pem| pem.starts_with("-----BEGIN CERTIFICATE-----")));
    let login = SecretRef::from_value(&outputs["login"]).unwrap();
    let key = format!("redis/{}", outputs["id"].as_str().unwrap());
    let expected = bench.cloud.world().auth_string(&key).unwrap();
    let secrets = WithGenerated::new(Arc::new(provider(&bench.cloud)), Arc::new(Secrets));
    assert_eq!(secrets.get(&login).await.unwrap().expose_text(), Some(expected.as_str()));
    assert!(!serde_json::to_string(outputs).unwrap().contains(&expected));
    let refused = secrets.put(&login.name, &login.version, &Secret::new("another")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "Google generates it");
    let other = SecretRef { name: SecretName("main/database-password".to_owned()), ..login };
    assert_eq!(secrets.get(&other).await.unwrap().expose_text(), Some("a password of some length"));
}

/// Without a managed database the connection is the cache's own, with the same name.
async fn the_connection_of_a_cache_does_not_move(bench: &Bench, records: &[Made]) {
    let of = |(one, _): &&Made| one.id.as_str() == "main/cache/group";
    let (wanted, recorded) = records.iter().find(of).unwrap();
    let Observed::Present(seen) = bench.provider.read(&recorded.kind, &recorded.cloud_id).await.unwrap() else {
        panic!("the cache is gone")
    };
    let refused = |wanted: &Wanted, recorded: &Recorded| -> Vec<String> {
        let changes = bench.provider.diff(wanted, recorded, &seen).into_iter();
        let refused = changes.filter_map(|change| match change.effect {
            Effect::Refuse(why) => Some(format!("{}: {why}", change.field)),
            _ => None,
        });
        refused.collect()
    };
    assert!(refused(wanted, recorded).is_empty());
    let alone = redis().managed.map(|managed| ManagedCache { database: None, ..managed });
    let alone = bench.lower("cache", ComponentSpec::Cache(Cache { managed: alone, ..redis() }));
    let alone = alone.iter().find(|one| one.id == wanted.id).unwrap();
    let of_alone = Recorded { needs: alone.needs.clone(), ..recorded.clone() };
    for (wanted, recorded) in [(alone, recorded), (wanted, &of_alone)] {
        let found = refused(wanted, recorded);
        let [only] = found.as_slice() else { panic!("{found:?}") };
        assert!(only.starts_with("connection: ") && only.contains("`cache: { kind: memory }`"), "{only}");
    }
}

/// The upgrade strategy of the GPU pool is changed in place, and by hand.
async fn upgrades_are_set_again(bench: &Bench, records: &mut [Made]) {
    let pool = records.iter_mut().find(|(one, _)| one.id.as_str() == "main/cluster/gpu-nodes");
    assert_eq!(pool.is_some(), bench.gpu.is_some());
    let Some(pool) = pool else { return };
    let key = format!("container/{}", pool.1.cloud_id);
    let settings = || bench.cloud.world().get(&key).unwrap()["upgradeSettings"].clone();
    assert_eq!(settings(), json!({ "strategy": "SURGE", "maxSurge": 0, "maxUnavailable": 1 }));
    let mut changed = pool.1.spec.as_value().clone();
    changed["upgrade"] = json!({ "strategy": "BLUE_GREEN", "batch_nodes": 1, "batch_soak": "0s", "soak": "3600s" });
    // The machines of the pool take all GPUs that the project may have, and a change of its upgrades needs no other.
    let limit = |limit: f64| {
        bench.cloud.world().quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), limit);
    };
    limit(1.0);
    let wanted = Wanted { spec: Spec::of(&changed), ..pool.0.clone() };
    let problems = bench.provider.preflight(&[wanted]).await.unwrap();
    let of_quota: Vec<_> = problems.iter().filter(|one| one.cause.contains("GPUS_ALL_REGIONS")).collect();
    assert!(of_quota.iter().all(|one| one.warning), "{of_quota:?}");
    limit(4.0);
    update(bench, 502, pool, Spec::of(&changed)).await;
    assert_eq!(settings()["strategy"], "BLUE_GREEN");

    bench.cloud.world().change(&key, "/upgradeSettings/blueGreenSettings/nodePoolSoakDuration", json!("60s"));
    let Observed::Present(seen) = bench.provider.read(&pool.1.kind, &pool.1.cloud_id).await.unwrap() else {
        panic!("the pool is gone")
    };
    let drifted: Vec<String> =
        bench.provider.diff(&pool.0, &pool.1, &seen).into_iter().map(|change| change.field).collect();
    assert_eq!(drifted, ["upgrade"]);
    let spec = pool.0.spec.clone();
    update(bench, 503, pool, spec).await;
    assert_eq!(settings()["blueGreenSettings"]["nodePoolSoakDuration"], "3600s");
}

/// The replication of a bucket in two regions is changed by hand.
async fn replication_is_turned_on_again(bench: &Bench, records: &mut [Made]) {
    let bucket = records.iter_mut().find(|(one, _)| one.kind.as_str() == "gcp.bucket").unwrap();
    let key = format!("storage/{}", bucket.1.cloud_id);
    let placed = bench.cloud.world().get(&key).cloned().unwrap();
    assert_eq!((&placed["location_type"], &placed["rpo"]), (&json!("dual-region"), &json!("ASYNC_TURBO")));
    bench.cloud.world().change(&key, "/rpo", json!("DEFAULT"));
    let Observed::Present(seen) = bench.provider.read(&bucket.1.kind, &bucket.1.cloud_id).await.unwrap() else {
        panic!("the bucket is gone")
    };
    let drifted: Vec<String> =
        bench.provider.diff(&bucket.0, &bucket.1, &seen).into_iter().map(|change| change.field).collect();
    assert_eq!(drifted, ["rpo"]);
    let spec = bucket.0.spec.clone();
    update(bench, 501, bucket, spec).await;
    assert_eq!(bench.cloud.world().get(&key).unwrap()["rpo"], "ASYNC_TURBO");
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// The GPU pool of a site whose other resources are there.
struct GpuNodes {
    bench: Bench,
    wanted: Wanted,
    spec: Spec,
    machine: String,
}

impl GpuNodes {
    async fn of(size: GpuSize) -> Self {
        Self::with(GpuPool { spot: Spot::Prefer, ..GpuPool::of(size, 1) }).await
    }

    async fn with(pool: GpuPool) -> Self {
        let bench = Bench::new(Options::zero_latency().enabled(), false);
        let bench = Bench { gpu: Some(pool), ..bench };
        let mut all = bench.all();
        let place = all.iter().position(|one| one.id.as_str() == "main/cluster/gpu-nodes").unwrap();
        let mut outputs = secrets();
        for (one, recorded) in create(&bench, &all[..place]).await {
            outputs.insert(one.id.clone(), recorded.outputs);
        }
        let wanted = all.swap_remove(place);
        let spec = wanted.spec.resolve(|id| outputs.get(id)).unwrap();
        let machine = textnlp_cloud::machine_names(spec.get("machine"))[0].to_owned();
        Self { bench, wanted, spec, machine }
    }

    /// Leaves so many machines in these zones.
    fn stock(&self, market: Market, zones: &[&str], count: u64) {
        for zone in zones {
            self.bench.cloud.world().capacity.set(&format!("{REGION}-{zone}"), &self.machine, market, count);
        }
    }

    /// The names of a market in these zones.
    fn names(&self, market: &str, zones: &[&str]) -> Vec<String> {
        zones.iter().map(|zone| format!("{market} {REGION}-{zone} {}", self.machine)).collect()
    }

    /// The name of a whole market.
    fn market(&self, market: &str) -> String {
        format!("{market} {}", self.machine)
    }

    fn operation(&self, number: u64, lacking: Vec<Lacking>) -> Operation {
        let op = self.bench.operation(number, Verb::Create, &self.wanted, &self.spec, None);
        Operation { lacking, ..op }
    }

    /// Removes what was bought, if it is this.
    async fn remove(&self, number: u64, object: Option<Object>, market: &str, zone: &str) {
        let object = object.unwrap();
        assert_eq!(object.spec.get("markets"), Some(&json!([market])));
        assert_eq!(object.spec.get("zones"), Some(&json!([format!("{REGION}-{zone}")])));
        let recorded = record(&self.wanted, &self.spec, &object);
        let op = self.bench.operation(number, Verb::Delete, &self.wanted, &self.spec, Some(&recorded));
        self.bench.finish(&op).await;
    }
}

fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// The zones of a pool are tried in the order of what earlier runs found, and all of them.
#[test]
fn what_lacked_capacity_is_tried_last() {
    run(async {
        let pool = GpuNodes::of(GpuSize::Small).await;
        let all_zones = ["b", "c", "d"];
        let spot = pool.names("spot", &all_zones);
        let spot = strs(&spot);
        let first = &spot[..1];
        let cases = [
            // A zone: the others of its market, then itself, then the other market.
            (lacking(first, true), vec![], vec![], ("spot", "c")),
            (lacking(first, true), vec!["c", "d"], pool.names("spot", &["c", "d"]), ("spot", "b")),
            // A market: an hour long.
            (lacking(&spot, true), vec![], vec![], ("on-demand", "b")),
            (lacking(&spot, false), vec![], vec![], ("spot", "b")),
        ];
        for (number, (lacking, empty, lacked, (market, zone))) in (900..).zip(cases) {
            pool.stock(Market::Spot, &all_zones, 9);
            pool.stock(Market::Spot, &empty, 0);
            let (found, object) = bought(&pool.bench.provider, &pool.operation(number, lacking)).await;
            assert_eq!(found, lacked);
            pool.remove(number + 50, object, market, zone).await;
        }
        for market in [Market::Spot, Market::OnDemand] {
            pool.stock(market, &all_zones, 0);
        }
        let lacking = lacking(&[spot[2], spot[0]], true);
        let (found, object) = bought(&pool.bench.provider, &pool.operation(999, lacking)).await;
        let (spot, on_demand) = (pool.names("spot", &["c", "d"]), pool.names("on-demand", &["b", "c"]));
        let (all_spot, all_on_demand) = (vec![pool.market("spot")], vec![pool.market("on-demand")]);
        assert_eq!(found, [spot, all_spot, on_demand, all_on_demand].concat());
        assert!(object.is_none());
    });
}

#[test]
fn the_next_machine_is_bought_where_the_first_one_lacks() {
    run(async {
        let machines = ["n1-standard-4", "g2-standard-8"].map(str::to_owned).to_vec();
        let pool = GpuNodes::with(GpuPool { machines, ..GpuPool::of(GpuSize::Small, 1) }).await;
        let all_zones = ["b", "c", "d"];
        pool.stock(Market::OnDemand, &all_zones, 0);
        let (found, object) = bought(&pool.bench.provider, &pool.operation(900, Vec::new())).await;
        assert!(found.contains(&pool.market("on-demand")), "{found:?}");
        let object = object.unwrap();
        let (machine, gpu) = (object.spec.get("machine"), object.spec.get("accelerator"));
        assert_eq!((machine, gpu), (Some(&json!("g2-standard-8")), Some(&json!({ "type": "nvidia-l4", "count": 1 }))));
        // Nothing is to be changed: it is one of those that are wanted.
        let wanted = Wanted { spec: pool.spec.clone(), ..pool.wanted.clone() };
        let recorded = record(&pool.wanted, &pool.spec, &object);
        let changes = pool.bench.provider.diff(&wanted, &recorded, &object);
        assert!(changes.is_empty(), "{changes:?}");
    });
}

/// A zone that does not have the machines does not keep its market from being one without capacity.
#[test]
fn a_market_lacks_capacity_in_the_zones_that_have_the_machines() {
    run(async {
        let pool = GpuNodes::of(GpuSize::Large).await;
        pool.stock(Market::Spot, &["b", "c"], 0);
        let (found, object) = bought(&pool.bench.provider, &pool.operation(900, Vec::new())).await;
        assert_eq!(found, [pool.names("spot", &["b"]), vec![pool.market("spot")]].concat());
        pool.remove(901, object, "on-demand", "b").await;

        pool.stock(Market::Spot, &["b", "c"], 9);
        for (number, is_recent, market) in [(902, true, "on-demand"), (904, false, "spot")] {
            let op = pool.operation(number, lacking(&strs(&found), is_recent));
            let (again, object) = bought(&pool.bench.provider, &op).await;
            assert!(again.is_empty(), "{again:?}");
            pool.remove(number + 1, object, market, "b").await;
        }
    });
}

/// A zone that a quota closed may have machines.
#[test]
fn a_market_of_which_a_quota_closed_a_zone_is_not_recorded() {
    run(async {
        let pool = GpuNodes::of(GpuSize::Small).await;
        pool.stock(Market::Spot, &["b", "d"], 0);
        let limit = |limit: f64| {
            let quota = (REGION.to_owned(), "PREEMPTIBLE_NVIDIA_T4_GPUS".to_owned());
            pool.bench.cloud.world().quotas.insert(quota, limit);
        };
        // Only while the second zone is tried.
        let journal = |handle: Handle| {
            let tried = handle.0["tried"].as_array().map_or(0, Vec::len);
            limit(if tried == 1 { 0.0 } else { 4.0 });
            handle
        };
        let (found, object) = bought_over(&pool.bench.provider, &pool.operation(900, Vec::new()), journal).await;
        assert_eq!(found, pool.names("spot", &["b", "d"]));
        pool.remove(901, object, "on-demand", "b").await;
    });
}

/// Its handles do not have what was tried.
#[test]
fn an_operation_of_an_earlier_version_tries_each_zone_once() {
    run(async {
        let pool = GpuNodes::of(GpuSize::Small).await;
        pool.stock(Market::Spot, &["b", "c", "d"], 0);
        let earlier = |mut handle: Handle| {
            for member in ["tried", "quota", "lacked"] {
                handle.0.as_object_mut().unwrap().remove(member);
            }
            handle
        };
        let (found, object) = bought_over(&pool.bench.provider, &pool.operation(900, Vec::new()), earlier).await;
        // It is unknown why the zones before failed, so the market is not recorded.
        assert_eq!(found, pool.names("spot", &["b", "c", "d"]));
        pool.remove(901, object, "on-demand", "b").await;
    });
}

#[test]
fn kinds_are_declared_well() {
    let bench = Bench::new(Options::zero_latency().enabled(), false);
    well_formed(&bench.provider).unwrap();
}

#[test]
fn a_site_is_created_and_removed() {
    run(road(&Bench::new(Options::zero_latency().enabled(), false)));
}

#[test]
fn a_protected_site_is_created_and_removed() {
    // The service agents of the project come with its services.
    run(road(&Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(Options::zero_latency(), true) }));
}

#[test]
fn a_site_in_a_bare_project_is_created_and_removed() {
    // Its catalogue of machines appears with the service.
    run(road(&Bench { gpu: None, ..Bench::new(Options::zero_latency(), false) }));
}

/// The key of the existing bucket in the simulated cloud.
fn bucket_key() -> String {
    format!("storage/projects/_/buckets/{THEIRS}")
}

/// The role that members read the existing bucket with.
fn reader(bench: &Bench, member: &str) -> Wanted {
    let target = format!("projects/_/buckets/{THEIRS}");
    let spec = json!({ "target": target, "role": "roles/storage.objectViewer", "member": member, "tags": {} });
    bench.wanted("main/models/other", "gcp.bucket-binding", &spec)
}

#[test]
fn an_existing_bucket_is_read_by_pods_and_stays_as_it_is() {
    run(async {
        let bench = Bench::with_existing_bucket(true);
        let before = bench.cloud.world().get(&bucket_key()).cloned();
        let theirs = reader(&bench, "user:ann@example.com");
        // A member that its owner added.
        bench.finish(&bench.operation(1_000, Verb::Create, &theirs, &theirs.spec, None)).await;
        road(&bench).await;
        assert_eq!(bench.cloud.world().get(&bucket_key()).cloned(), before, "the bucket is changed");
        for (member, stays) in [("user:ann@example.com", true), ("pods:textnlp/textnlp-models", false)] {
            let id = format!("projects/_/buckets/{THEIRS}#roles/storage.objectViewer#{member}");
            let seen = bench.provider.read(&theirs.kind, &CloudId::new(id).unwrap()).await.unwrap();
            assert_eq!(matches!(seen, Observed::Present(_)), stays, "{member}: {seen:?}");
        }
    });
}

/// A bucket that another deployment created has its labels, and the role of these pods on it is still this deployment's.
#[test]
fn the_bucket_of_another_deployment_can_be_an_existing_one() {
    run(async {
        let bench = Bench::with_existing_bucket(true);
        let labels = json!({ "textnlp-lineage": uuid::Uuid::from_u128(LINEAGE + 1).to_string() });
        bench.cloud.world().change(&bucket_key(), "/labels", labels);
        road(&bench).await;
        assert!(bench.cloud.world().get(&bucket_key()).is_some());
    });
}

#[test]
fn a_quota_names_the_settings_that_it_has_room_for() {
    let mut bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().enabled(), false) };
    let cluster = ClusterSite { min_nodes: 6, max_nodes: Some(9), ..ClusterSite::of("textnlp") };
    bench.site.cluster = Some(Box::new(cluster));
    bench.cloud.world().quotas.insert((REGION.to_owned(), "CPUS".to_owned()), 20.0);
    run(async {
        let problems = bench.provider.preflight(&bench.all()).await.unwrap();
        let of_quota = problems.iter().find(|one| one.cause.contains("`CPUS`")).unwrap();
        // Five nodes in three zones would be six.
        let room = "today it has room for `cluster.min_nodes: 3` and `cluster.max_nodes: 3`";
        assert!(of_quota.fix.contains(room), "{of_quota:?}");
    });
}

#[test]
fn disks_of_new_pools_have_the_key_of_the_site_and_those_of_old_ones_stay() {
    run(async {
        let bench = Bench { gpu: None, ..Bench::new(Options::zero_latency(), true) };
        let parts = ["main/network/", "main/models/", "main/cluster"];
        let is_part = |one: &Wanted| parts.iter().any(|part| one.id.as_str().starts_with(part));
        let wanted: Vec<Wanted> = bench.all().into_iter().filter(is_part).collect();
        let records = create(&bench, &wanted).await;
        let id = |of: &str| {
            let found = records.iter().find(|(one, _)| one.id.as_str() == of).unwrap();
            found.1.cloud_id.to_string()
        };
        let (pool, site_key) = (format!("container/{}", id("main/cluster/system-nodes")), id("main/models/key"));
        let disk_key = || bench.cloud.world().get(&pool).unwrap()["config"]["bootDiskKmsKey"].clone();
        assert_eq!(disk_key(), json!(site_key));
        unchanged(&bench, &records).await;
        // A pool that an earlier version of this program created.
        if let Some(stored) = bench.cloud.world().objects.get_mut(&pool) {
            stored.body["config"].as_object_mut().unwrap().shift_remove("bootDiskKmsKey");
        }
        assert_eq!(disk_key(), Value::Null);
        unchanged(&bench, &records).await;
    });
}

#[test]
fn quotas_of_networks_are_compared_with_what_is_created() {
    run(async {
        let bench = Bench::new(Options::zero_latency().enabled(), false);
        let all: Vec<Wanted> = bench.all().into_iter().filter(|one| one.kind.as_str() != "gcp.node-pool").collect();
        let metrics = [
            ("NETWORKS", "main/network/vpc"),
            ("SUBNETWORKS", "main/network/subnet"),
            ("ROUTERS", "main/network/router"),
            ("GLOBAL_INTERNAL_ADDRESSES", "main/database/range"),
        ];
        let limit = |limit: f64| {
            let quotas = metrics.map(|(metric, _)| ((String::new(), metric.to_owned()), limit));
            bench.cloud.world().quotas.extend(quotas);
        };
        let of_quotas = async || {
            let problems = bench.provider.preflight(&all).await.unwrap();
            problems.into_iter().filter(|one| one.cause.starts_with("the quota ")).collect::<Vec<_>>()
        };
        limit(0.0);
        let problems = of_quotas().await;
        assert_eq!(problems.len(), metrics.len(), "{problems:#?}");
        for (metric, place) in metrics {
            let says = format!("the quota `{metric}` allows 0; 0 are used, and this plan needs 1 more");
            let found = problems.iter().find(|one| one.cause == says).unwrap_or_else(|| panic!("{problems:#?}"));
            assert!(found.place == place && !found.warning && found.fix.ends_with("System Limits"), "{found:?}");
        }
        limit(1.0);
        assert!(of_quotas().await.is_empty());
        // What is there is used, and not created again.
        create(&bench, &bench.lower("network", ComponentSpec::Network(Network::default()))).await;
        let problems = of_quotas().await;
        assert!(problems.is_empty(), "{problems:#?}");
    });
}

#[test]
fn an_existing_bucket_must_be_there_and_have_uniform_access() {
    run(async {
        for (is_there, says) in [(true, "no uniform bucket-level access"), (false, "the object does not exist")] {
            let bench = Bench::with_existing_bucket(false);
            if !is_there {
                bench.cloud.world().objects.remove(&bucket_key());
            }
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let problems: Vec<String> =
                problems.iter().filter(|problem| !problem.warning).map(ToString::to_string).collect();
            assert!(problems.len() == 1 && problems[0].contains(says), "{problems:#?}");
        }
    });
}

/// A network with its private services access, which is deleted after `change`: the error, if it stays.
async fn connection(change: impl FnOnce(&Bench, &str)) -> Option<Error> {
    let bench = Bench::new(Options::zero_latency().enabled(), false);
    let all = bench.all();
    let (mut outputs, mut made) = (BTreeMap::new(), None);
    for (number, id) in (1..).zip(["main/network/vpc", "main/database/range", "main/database/connection"]) {
        let one = all.iter().find(|one| one.id.as_str() == id).unwrap();
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
        let object = bench.finish(&bench.operation(number, Verb::Create, one, &spec, None)).await;
        outputs.insert(one.id.clone(), object.outputs.clone());
        made = Some((one, record(one, &spec, &object)));
    }
    let (one, recorded) = made.unwrap();
    let network = outputs[&ResourceId::new("main/network/vpc").unwrap()]["id"].as_str().unwrap().to_owned();
    change(&bench, &network);
    let op = bench.operation(9, Verb::Delete, one, &recorded.spec, Some(&recorded));
    let mut handle = None;
    for _ in 0..STEPS {
        let answer = match &handle {
            None => bench.provider.begin(&op).await,
            Some(handle) => bench.provider.advance(&op, handle).await,
        };
        bench.cloud.advance(Duration::from_secs(10));
        match answer {
            Ok(Progress::Done(_)) => return None,
            Ok(Progress::Pending { handle: next, .. }) => handle = Some(next),
            Ok(Progress::Failed { error, .. }) | Err(error) => return Some(error),
        }
    }
    panic!("it does not end");
}

#[test]
fn an_inactive_peering_is_removed() {
    run(async {
        let left = connection(|bench, network| bench.cloud.world().end_producer(network)).await;
        assert!(left.is_none(), "{left:?}");
    });
}

#[test]
fn a_peering_with_an_external_range_stays() {
    run(async {
        let share = |bench: &Bench, network: &str| bench.cloud.world().share_connection(network, "theirs");
        let left = connection(share).await.map(|error| error_chain(&error)).unwrap_or_default();
        assert!(left.contains("the external range `theirs`"), "{left}");
    });
}

/// Kinds whose objects stay when they are deleted: they end with what they are in, or others use them too.
const KEPT: &[&str] = &["gcp.services", "gcp.key-ring", "gcp.key-binding", "gcp.sql-database", "gcp.sql-user"];

/// The rules of the contract, for each kind of a site.
#[test]
fn every_kind_keeps_the_contract() {
    run(async {
        let bench = Bench { remote: Some(REMOTE), ..Bench::new(Options::zero_latency(), true) };
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let bed = TestBed::new(&bench.provider, bench.site.environment.clone(), bench.site.name.clone(), lineage);
        let in_place = |one: &Wanted| Some(policy::changed(one)).filter(|spec| *spec != one.spec);
        if let Err(violation) = bed.site(&bench.all(), secrets(), KEPT, in_place).await {
            panic!("{violation}");
        }
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}
