//! The provider against a simulated Azure: a whole site is created, seen as it was made, changed, and removed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, unreachable_pub)]

mod billed;
mod budgets;
#[path = "../../../cloud/tests/programs/capacity.rs"]
mod capacity;
mod dns;
mod lifecycle;
mod machine_learning;
mod monitoring;
mod network;
mod policy;
mod preflight;
#[path = "../../../cloud/tests/programs/mod.rs"]
mod programs;
mod promotion;
mod random;
#[path = "../../../cloud/tests/programs/records.rs"]
mod records;
mod refresh;
#[path = "../../../cloud/tests/programs/promotion.rs"]
mod replicated;
mod restrictions;
#[path = "../../../../tests/src/seeds.rs"]
mod seeds;
#[path = "../../../cloud/tests/programs/story.rs"]
mod story;
mod traffic;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_azure::{Access, Azure, ENDPOINT};
use textnlp_cloud::{ImageSource, ImageTarget, WithGenerated};
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{
    Budget, Cache, Cluster, ComponentSpec, ConnectionLimits, Database, Endpoint, GpuPool, MaintenanceWindow,
    ManagedCache, ManagedPostgres, Model, ModelReplica, ModelStore, Monitored, Monitoring, Network, Postgres, Program,
    ReceiverAddress, Registry,
};
use textnlp_provider::conformance::{TestBed, well_formed};
use textnlp_provider::settings::{CacheKind, DatabaseKind, GpuSize, Hosting, Runtime, Spot, Weekday};
use textnlp_provider::{
    CloudId, Component, DeleteBounds, Error, ErrorKind, Handle, Lineage, Observed, Operation, OperationId, Outputs,
    Ownership, Progress, Provider, Recorded, ResourceId, Result, Scope, Secret, SecretName, SecretRef, SecretStore,
    SecretVersion, Site, Spec, Sweep, Token, Verb, Wanted, error_chain,
};
use textnlp_sim::azure::{AzureCloud, Options};
use textnlp_sim::{Disruption, Market, Rule};

use capacity::{bought, lacking};

const REGION: &str = "westeurope";
/// The region of a replica of the database, and of copies of models.
const REMOTE: &str = "northeurope";
const LINEAGE: u128 = 0x0198_c0de_0000_7000_8000_0000_0000_0001;
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
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
struct Images(Arc<AzureCloud>);

#[async_trait]
impl ImageSource for Images {
    async fn push(&self, target: &ImageTarget, _report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        assert_eq!((&target.registry, &*target.user), (&self.0.url(), "00000000-0000-0000-0000-000000000000"));
        assert!(!target.password.expose_text().unwrap().contains('.'), "it is a token of the registry, not of Entra");
        let repository = format!("textnlpstaging.azurecr.io/{}", target.repository);
        let mut world = self.0.world();
        let images = &mut world.registry.repositories.entry(repository).or_default().images;
        images.insert(target.tag.clone(), target.digest.clone());
        Ok(())
    }
}

/// Refuses the first push.
struct FailsOnce(Images, AtomicBool);

#[async_trait]
impl ImageSource for FailsOnce {
    async fn push(&self, target: &ImageTarget, report: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<()> {
        match self.1.swap(true, Ordering::SeqCst) {
            true => self.0.push(target, report).await,
            false => Err(Error::new(ErrorKind::Unavailable, "push", target.repository.clone())),
        }
    }
}

/// A provider of a cloud.
fn provider(cloud: &AzureCloud, images: impl ImageSource + 'static) -> Azure {
    provider_with(cloud, cloud.variables().into_iter().collect(), images)
}

/// The same, which signs in by these variables.
fn provider_with(
    cloud: &AzureCloud,
    mut variables: BTreeMap<String, String>,
    images: impl ImageSource + 'static,
) -> Azure {
    variables.insert(ENDPOINT.to_owned(), cloud.url());
    let access =
        Access { subscription: cloud.subscription().to_owned(), region: REGION.to_owned(), variables: Some(variables) };
    Azure::new(access, Arc::new(Secrets)).polling_every(Duration::from_millis(1)).pushing(Arc::new(images))
}

/// A site of an environment.
fn site(cloud: &AzureCloud, environment: &str) -> Site {
    Site {
        environment: environment.parse().unwrap(),
        name: "main".parse().unwrap(),
        account: cloud.subscription().to_owned(),
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
    cloud: Arc<AzureCloud>,
    provider: Azure,
    site: Site,
    gpu: Option<GpuPool>,
    /// The existing container of its models.
    existing: Option<CloudId>,
    /// The existing network that it is in, and the address of its NAT gateway.
    network: Option<(CloudId, String)>,
    /// The region of a replica of its database, and of copies of its models.
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
        let cloud = Arc::new(AzureCloud::start(options));
        cloud.set_cluster_endpoint("https://127.0.0.1:6443", CERTIFICATE);
        cloud.world().put_zone("dns", "example.com", false);
        let provider = provider(&cloud, Images(cloud.clone()));
        let site = Site { protect_data, ..site(&cloud, "staging") };
        let gpu = Some(GpuPool { spot: Spot::Prefer, ..GpuPool::of(GpuSize::Small, 1) });
        Self { cloud, provider, site, gpu, existing: None, network: None, remote: None }
    }

    /// A site whose models are in a container of another deployment.
    async fn with_existing_container() -> Self {
        let bench = Self { gpu: None, ..Self::new(Options::zero_latency().registered(), false) };
        let subscription = bench.cloud.subscription().to_owned();
        let group = format!("/subscriptions/{subscription}/resourceGroups/shared");
        let account = format!("{group}/providers/Microsoft.Storage/storageAccounts/companymodels");
        let id = format!("{account}/blobServices/default/containers/weights");
        let made = [
            ("azure.group", json!({ "subscription": subscription, "name": "shared" })),
            (
                "azure.storage",
                json!({
                    "group": group, "name": "companymodels", "sku": "Standard_LRS", "shared_key": false, "versioned": false,
                    "soft_delete_days": 7, "change_feed": false,
                }),
            ),
            ("azure.container", json!({ "account": account, "name": "weights" })),
        ];
        bench.made_by_others(made).await;
        Self { existing: Some(CloudId::new(id).unwrap()), ..bench }
    }

    /// Creates objects of another deployment.
    async fn made_by_others(&self, made: impl IntoIterator<Item = (&'static str, Value)>) {
        for (number, (kind, mut spec)) in (1_001..).zip(made) {
            (spec["location"], spec["tags"]) = (json!(REGION), json!({}));
            let wanted = self.wanted("main/other/one", kind, &spec);
            let mut op = self.operation(number, Verb::Create, &wanted, &wanted.spec, None);
            op.lineage = Lineage(uuid::Uuid::from_u128(LINEAGE + 1));
            self.finish(&op).await;
        }
    }

    /// The id of the existing DNS zone.
    fn zone(&self) -> String {
        let group = format!("/subscriptions/{}/resourceGroups/dns", self.cloud.subscription());
        format!("{group}/providers/Microsoft.Network/dnsZones/example.com")
    }

    fn lower(&self, name: &str, part: ComponentSpec) -> Vec<Wanted> {
        let existing = match name {
            "models" => self.existing.clone(),
            "network" => self.network.as_ref().map(|(id, _)| id.clone()),
            _ => None,
        };
        let component = Component { name: name.parse().unwrap(), existing, part };
        self.provider.lower(&component, &self.site).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The resources of a whole site, each after those that it needs.
    fn all(&self) -> Vec<Wanted> {
        let container = if self.existing.is_some() { "weights" } else { "models" };
        let mut store = ModelStore::of(vec![Model::of("mine", &format!("az://{container}/mine/"))]);
        store.replica = self.remote.map(|region| ModelReplica { region: region.to_owned(), permission_boundary: None });
        store.archive_after_days = self.existing.is_none().then_some(90);
        let url = "textnlpstaging.azurecr.io/text/nlp";
        let image = format!("{url}:1@sha256:{}", "0".repeat(64));
        let registry = Registry { url: url.to_owned(), image: Some(image) };
        let mut all = self.lower("network", ComponentSpec::Network(Network::default()));
        all.extend(self.lower("models", ComponentSpec::ModelStore(store)));
        let nat = self.network.iter().map(|(_, nat)| nat.clone());
        let cluster = Cluster {
            gpu: self.gpu.clone(),
            allow_from: Some(nat.chain(["203.0.113.0/24".to_owned()]).collect()),
            ..Cluster::of("network".parse().unwrap())
        };
        all.extend(self.lower("cluster", ComponentSpec::Cluster(cluster)));
        all.extend(self.lower("registry", ComponentSpec::Registry(registry)));
        all.extend(self.lower("database", ComponentSpec::Database(self.database())));
        all.extend(self.lower("cache", ComponentSpec::Cache(cache())));
        all.extend(self.lower("gateway", ComponentSpec::Endpoint(endpoint(Some(&self.zone()), "text.example.com"))));
        all.extend(self.lower("monitoring", ComponentSpec::Monitoring(monitoring())));
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
        self.go_on(op, None).await
    }

    /// The same from a handle in the journal.
    async fn go_on(&self, op: &Operation, mut handle: Option<Handle>) -> textnlp_provider::resource::Object {
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

/// A cost budget, receivers of which one is a mailbox, and the alerts of a whole site.
fn monitoring() -> Monitoring {
    let receivers = [
        ("oncall", "smtps://mail.example.com?from=alerts@example.com&to=oncall@example.com"),
        ("hook", "https://example.com/hook"),
    ];
    let receivers = receivers.map(|(name, address)| (name.to_owned(), ReceiverAddress::Plain(address.to_owned())));
    let budget = Budget { monthly: 900.0, currency: "USD".to_owned(), warn_at: 0.8 };
    let monitored =
        Monitored { network: true, cluster: true, gpu: true, database: Some(database()), ..Monitored::default() };
    let receivers = BTreeMap::from(receivers);
    Monitoring { stack: true, budget: Some(budget), receivers, monitored, ..Monitoring::default() }
}

/// A cache with a replica.
fn cache() -> Cache {
    let managed =
        ManagedCache { memory_bytes: 1 << 30, replicas: 1, secrets: "secrets".parse().unwrap(), database: None };
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
const MADE_ELSEWHERE: [&str; 3] =
    ["main/secrets/database-password", "main/secrets/cache-password", "main/gateway/service"];

/// The outputs of [`MADE_ELSEWHERE`]: generated passwords, and the Service for clients.
fn secrets() -> BTreeMap<ResourceId, Outputs> {
    let [password, rotation, service] = MADE_ELSEWHERE.map(|id| ResourceId::new(id).unwrap());
    let requested = json!({ "$secret": "main/cache-password", "version": "1" });
    let secret = json!({ "$secret": "main/database-password", "version": "1" });
    BTreeMap::from([
        (password, Outputs::from([("secret".to_owned(), secret)])),
        (rotation, Outputs::from([("secret".to_owned(), requested)])),
        (service, Outputs::from([("address".to_owned(), json!("192.0.2.10"))])),
    ])
}

/// A resource of a site as it is wanted, and as it is recorded.
type Made = (Wanted, Recorded);

/// Creates a site, as its first `up` does.
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
async fn unchanged(bench: &Bench, records: &[Made]) -> Vec<(ResourceId, Observed)> {
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
    seen
}

/// Changes a site in place, as a later `up` does. A replica is promoted before its source changes.
async fn update(bench: &Bench, records: &mut [Made]) {
    for (number, (one, recorded)) in (500..).zip(records.iter_mut().rev()) {
        let changed = changed(one);
        if changed == one.spec || one.ownership != Ownership::Ours {
            continue;
        }
        let object = bench.finish(&bench.operation(number, Verb::Update, one, &changed, Some(recorded))).await;
        (one.spec, recorded.spec) = (changed.clone(), changed);
        let changes = bench.provider.diff(one, recorded, &object);
        assert!(changes.is_empty(), "{}: {changes:?}", one.id);
    }
}

/// Removes a site, as `down` does.
async fn remove(bench: &Bench, records: &[Made]) {
    for (number, (one, recorded)) in (2_000..).zip(records.iter().rev()) {
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

/// A whole site from its creation to its removal. `zone` is that of the pool with GPUs, if there is one.
async fn whole_life(bench: Bench, zone: &str) {
    let before = bench.cloud.world().ids();
    let mut records = create(&bench, &bench.all()).await;
    let seen = unchanged(&bench, &records).await;
    if let Some((_, pool)) = seen.iter().find(|(id, _)| id.as_str() == "main/cluster/gpu-nodes") {
        let Observed::Present(pool) = pool else { panic!("{pool:?}") };
        assert_eq!(pool.spec.get("zones"), Some(&json!([zone])));
    }
    let outputs = |id: &str| {
        let of = |(one, _): &&Made| one.id.as_str() == id;
        records.iter().find(of).unwrap().1.outputs.clone()
    };
    let cluster = outputs("main/cluster");
    assert!(cluster["endpoint"].as_str().is_some_and(|url| url.starts_with("https://")), "{cluster:?}");
    let user = outputs("main/database/instance");
    assert!(user["url"].as_str().is_some_and(|url| url.starts_with("postgresql://textnlp@")), "{user:?}");
    let redis = outputs("main/cache/group");
    assert!(redis["url"].as_str().is_some_and(|url| url.ends_with(".westeurope.redis.azure.net:10000")), "{redis:?}");
    let id = id_of(&records, "main/cache/group").to_lowercase();
    let key = || bench.cloud.world().objects[&id].body["$keys"]["primaryKey"].as_str().unwrap().to_owned();
    let first = key();
    assert!(redis["login"]["$secret"].is_string() && !format!("{records:?}").contains(&first));
    let secrets = WithGenerated::new(Arc::new(provider(&bench.cloud, Images(bench.cloud.clone()))), Arc::new(Secrets));
    let read = secrets.get(&SecretRef::from_value(&redis["login"]).unwrap()).await.unwrap();
    assert_eq!(read.expose_text(), Some(first.as_str()));
    the_redis_is_reached_as_azure_documents_it(&bench, &records);
    let account = outputs("main/models/container")["account"].clone();
    let own = records.iter().find(|(one, _)| one.kind.as_str() == "azure.storage");
    let own = own.and_then(|(one, _)| one.spec.get("name")).cloned();
    assert_eq!(account, own.unwrap_or_else(|| json!("companymodels")));

    let group = id_of(&records, "main/monitoring/mailboxes");
    let alerts = monitoring::alerts(&bench);
    let is_sent = |one: &&Value| one["properties"]["actions"] == json!([{ "actionGroupId": group }]);
    assert_eq!((alerts.len(), alerts.iter().filter(is_sent).count()), (6, 6), "{alerts:?}");
    let budget = bench.cloud.world().get(&id_of(&records, "main/monitoring/budget")).unwrap();
    let mut notifications = budget["properties"]["notifications"].as_object().unwrap().values();
    assert!(notifications.all(|one| one["contactGroups"] == json!([group])), "{budget}");

    // Roles are in effect after minutes, and windows of maintenance have begun on a past day.
    bench.cloud.advance(Duration::from_secs(2 * 86_400));
    let (cluster, registry) = (id_of(&records, "main/cluster"), id_of(&records, "main/registry/registry"));
    assert!(bench.cloud.world().may_pull(&cluster, &registry), "nodes pull images");

    update(&bench, &mut records).await;
    assert_ne!(key(), first, "a rotation replaces the key");
    remove(&bench, &records).await;
    assert_eq!(bench.cloud.world().ids(), before);
}

/// The group of its endpoint and the zone of its name (Azure-Samples/msdocs-flask-postgresql-sample-app#68), and one address for all keys.
fn the_redis_is_reached_as_azure_documents_it(bench: &Bench, records: &[Made]) {
    let sent = |id: &str| bench.cloud.world().get(&id_of(records, id)).unwrap()["properties"].clone();
    assert_eq!(sent("main/cache/group")["clusteringPolicy"], "EnterpriseCluster");
    let connection = &sent("main/cache/endpoint")["privateLinkServiceConnections"][0]["properties"];
    assert_eq!(connection["groupIds"], json!(["redisEnterprise"]));
    let redis = id_of(records, "main/cache/redis");
    assert!(connection["privateLinkServiceId"].as_str().unwrap().eq_ignore_ascii_case(&redis), "{connection}");
    let zone = &sent("main/cache/names")["privateDnsZoneConfigs"][0]["properties"]["privateDnsZoneId"];
    let zone = zone.as_str().unwrap().to_lowercase();
    assert!(zone.ends_with("/privatednszones/privatelink.redis.azure.net"), "{zone}");
}

/// The id of the object of a resource.
fn id_of(records: &[Made], id: &str) -> String {
    records.iter().find(|(one, _)| one.id.as_str() == id).unwrap().1.cloud_id.to_string()
}

/// A spec with what a later environment may change in place.
fn changed(one: &Wanted) -> Spec {
    let mut spec = one.spec.as_value().clone();
    if spec["tags"]["team"].is_string() {
        spec["tags"]["team"] = json!("texts");
    }
    match one.kind.as_str() {
        "azure.cluster" => spec["allow_from"] = json!(["198.51.100.0/24"]),
        "azure.pool" => spec["scaling"]["max"] = json!(3),
        "azure.maintenance" => (spec["day"], spec["at"], spec["hours"]) = (json!("Monday"), json!("03:15"), json!(4)),
        "azure.storage" => spec["soft_delete_days"] = json!(30),
        "azure.lifecycle" => spec["rule"]["cold_after_days"] = json!(30),
        "azure.action-group" => (spec["emails"], spec["enabled"]) = (json!(["team@example.com"]), json!(false)),
        "azure.metric-alert" => (spec["criterion"]["above"], spec["window"]) = (json!(50.0), json!("PT30M")),
        "azure.workbook" => spec["charts"][0]["above"] = json!(50.0),
        "azure.budget" => spec["limit"] = json!(950.5),
        "azure.ml-deployment" => spec["instances"]["min"] = json!(2),
        "azure.autoscale" => spec["scaling"]["min"] = json!(2),
        "azure.dns-record" => spec["ttl"] = json!(30),
        "azure.registry" => spec["sku"] = json!("Premium"),
        "azure.redis" => spec["sku"] = json!("Balanced_B5"),
        "azure.redis-database" => spec["rotation"] = json!({ "$secret": "main/cache-password", "version": "2" }),
        "azure.database-server" => {
            // Of the cheapest tier, which has no standby.
            (spec["sku"], spec["standby"]) = (json!("Standard_B1ms"), json!("Disabled"));
            spec["disk_gb"] = json!(64);
            if spec["source"].is_null() {
                spec["password"] = json!({ "$secret": "main/database-password", "version": "2" });
                spec["maintenance"] = json!({ "day": 1, "hour": 3, "minute": 15 });
            } else {
                // It is promoted, and uses another database.
                (spec["source"], spec["database"]) = (Value::Null, json!("texts"));
            }
        }
        _ => {}
    }
    Spec::of(&spec)
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_quota_names_the_settings_that_it_has_room_for() {
    let mut bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().registered(), false) };
    let cluster = ClusterSite { min_nodes: 3, max_nodes: Some(10), ..ClusterSite::of("textnlp") };
    bench.site.cluster = Some(Box::new(cluster));
    // AKS's own pods have a machine of two cores.
    bench.cloud.world().quotas.insert((REGION.to_owned(), "standardDSv5Family".to_owned()), 11);
    run(async {
        let problems = bench.provider.preflight(&bench.all()).await.unwrap();
        let of_quota = problems.iter().find(|one| one.cause.contains("`standardDSv5Family`")).unwrap();
        let room = "today it has room for `cluster.min_nodes: 2` and `cluster.max_nodes: 2`";
        assert!(of_quota.fix.contains(room), "{of_quota:?}");
    });
}

#[test]
fn kinds_are_declared_well() {
    let bench = Bench::new(Options::zero_latency(), false);
    well_formed(&bench.provider).unwrap();
}

#[test]
fn a_site_is_created_and_removed() {
    run(whole_life(Bench::new(Options::zero_latency(), false), "1"));
}

/// Operations take their time, and what was just written is not seen everywhere.
#[test]
fn a_site_is_created_and_removed_with_the_delays_of_azure() {
    run(whole_life(Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(Options::default(), false) }, "1"));
}

#[test]
fn a_protected_site_is_created_and_removed() {
    let bench = Bench::new(Options::zero_latency().registered(), true);
    run(whole_life(Bench { gpu: None, remote: Some(REMOTE), ..bench }, "1"));
}

#[test]
fn an_existing_container_is_read_by_pods_and_stays() {
    run(async { whole_life(Bench::with_existing_container().await, "1").await });
}

#[test]
fn an_existing_container_must_be_there() {
    run(async {
        let bench = Bench::with_existing_container().await;
        let id = bench.existing.as_ref().unwrap().as_str().replace("weights", "others");
        let bench = Bench { existing: Some(CloudId::new(id).unwrap()), ..bench };
        let store = ComponentSpec::ModelStore(ModelStore::of(vec![Model::of("mine", "bucket:mine/")]));
        let problems = bench.provider.preflight(&bench.lower("models", store)).await.unwrap();
        let problems: Vec<String> =
            problems.iter().filter(|problem| !problem.warning).map(ToString::to_string).collect();
        assert!(problems.len() == 1 && problems[0].contains("the object does not exist"), "{problems:#?}");
    });
}

/// Kinds whose objects stay when they are deleted: they end with what they are in, or others use them too.
const KEPT: &[&str] = &["azure.provider", "azure.database", "azure.key", "azure.ml-environment", "azure.repository"];

/// The rules of the contract, for each kind of a site.
#[test]
fn every_kind_keeps_the_contract() {
    run(async {
        let bench = Bench { remote: Some(REMOTE), ..Bench::new(Options::zero_latency(), true) };
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let bed = TestBed::new(&bench.provider, bench.site.environment.clone(), bench.site.name.clone(), lineage);
        let in_place = |one: &Wanted| {
            let mut spec = changed(one).as_value().clone();
            if one.kind.as_str() == "azure.redis-database" {
                // Not the key: to repeat a regeneration makes another one, and the record has the last.
                spec["rotation"] = one.spec.as_value()["rotation"].clone();
                spec["eviction"] = json!("VolatileLRU");
            }
            Some(Spec::of(&spec)).filter(|spec| *spec != one.spec)
        };
        if let Err(violation) = bed.site(&bench.all(), secrets(), KEPT, in_place).await {
            panic!("{violation}");
        }
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

/// A push that fails is repeated, and another process resumes one that was cut off.
#[test]
fn a_push_ends_with_the_image_in_the_registry() {
    run(async {
        let mut bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().registered(), false) };
        bench.provider = provider(&bench.cloud, FailsOnce(Images(bench.cloud.clone()), AtomicBool::new(false)));
        let all = bench.all();
        let (mut outputs, mut made) = (BTreeMap::new(), Vec::new());
        for (number, id) in (1..).zip(["main/network/group", "main/registry/registry"]) {
            let one = all.iter().find(|one| one.id.as_str() == id).unwrap();
            let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
            let object = bench.finish(&bench.operation(number, Verb::Create, one, &spec, None)).await;
            outputs.insert(one.id.clone(), object.outputs.clone());
        }
        let one = all.iter().find(|one| one.id.as_str() == "main/registry/repository").unwrap();
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
        let wanted = Wanted { spec: spec.clone(), ..one.clone() };
        let mut resumed = None;
        for number in [3, 4] {
            let op = bench.operation(number, Verb::Create, &wanted, &spec, None);
            if number == 4 {
                // The process dies before anything is sent.
                bench.cloud.world().registry.repositories.clear();
                let dying = provider(&bench.cloud, FailsOnce(Images(bench.cloud.clone()), AtomicBool::new(false)));
                let Progress::Pending { handle, .. } = dying.begin(&op).await.unwrap() else { panic!("it is done") };
                drop(dying);
                resumed = Some(handle);
            }
            let object = bench.go_on(&op, resumed.take()).await;
            made.push(object.cloud_id.clone());
            let changes = bench.provider.diff(&wanted, &record(&wanted, &spec, &object), &object);
            assert!(changes.is_empty(), "{changes:?}");
        }
        assert_eq!(made[0], made[1]);
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

/// A group that holds something of another owner stays.
#[test]
fn a_group_with_foreign_objects_is_kept() {
    run(foreign());
}

async fn foreign() {
    let bench = Bench::new(Options::zero_latency().registered(), false);
    let wanted = bench.lower("network", ComponentSpec::Network(Network::default()));
    let group = wanted.iter().find(|one| one.id.as_str() == "main/network/group").unwrap();
    let object = bench.finish(&bench.operation(1, Verb::Create, group, &group.spec, None)).await;
    let recorded = record(group, &group.spec, &object);
    // Of another deployment.
    let mut other = bench.operation(2, Verb::Create, group, &group.spec, None);
    let identity = json!({ "group": object.cloud_id.as_str(), "name": "another-team", "location": REGION, "tags": {} });
    (other.kind, other.spec) = ("azure.identity".parse().unwrap(), Spec::of(&identity));
    (other.resource, other.lineage) =
        (ResourceId::new("main/other/one").unwrap(), Lineage(uuid::Uuid::from_u128(LINEAGE + 1)));
    bench.finish(&other).await;
    let why = refusal(&bench, 3, group, &recorded).await;
    assert!(why.contains("another-team"), "{why}");
    assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
}

/// Why an object is not deleted.
async fn refusal(bench: &Bench, number: u64, one: &Wanted, recorded: &Recorded) -> String {
    let delete = bench.operation(number, Verb::Delete, one, &one.spec, Some(recorded));
    let refused = match bench.provider.begin(&delete).await {
        Ok(Progress::Pending { handle, .. }) => bench.provider.advance(&delete, &handle).await,
        refused => refused,
    };
    error_chain(&refused.err().unwrap_or_else(|| panic!("{} is deleted", one.id)))
}

#[test]
fn what_others_added_to_a_network_or_a_cluster_keeps_it() {
    run(async {
        let bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().registered(), false) };
        let mut outputs: BTreeMap<ResourceId, Outputs> = BTreeMap::new();
        let mut made: BTreeMap<String, (Wanted, Recorded)> = BTreeMap::new();
        let all = bench.all();
        let needed = all
            .iter()
            .filter(|one| ["main/network", "main/cluster"].iter().any(|part| one.id.as_str().starts_with(part)));
        for (number, one) in (1..).zip(needed) {
            let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
            let object = bench.finish(&bench.operation(number, Verb::Create, one, &spec, None)).await;
            outputs.insert(one.id.clone(), object.outputs.clone());
            made.insert(
                one.id.to_string(),
                (Wanted { spec: spec.clone(), ..one.clone() }, record(one, &spec, &object)),
            );
        }
        for (number, container, part, name, cidr) in [
            (100, "main/network/vnet", "main/network/subnet", "theirs", Some("10.42.100.0/24")),
            // This program gives such a name too.
            (101, "main/cluster", "main/cluster/nodes", "cpumedium", None),
        ] {
            let (part, _) = &made[part];
            let mut spec = part.spec.as_value().clone();
            spec["name"] = json!(name);
            if let Some(cidr) = cidr {
                spec["cidr"] = json!(cidr);
            }
            let mut other = bench.operation(number, Verb::Create, part, &Spec::of(&spec), None);
            other.lineage = Lineage(uuid::Uuid::from_u128(LINEAGE + 1));
            bench.finish(&other).await;
            let (one, recorded) = &made[container];
            let why = refusal(&bench, number + 100, one, recorded).await;
            assert!(why.contains(&format!("{name}` is inside")), "{container}: {why}");
        }
    });
}

/// Deleting a group would delete what stays: data of the same deployment.
#[test]
fn a_group_with_data_that_stays_is_kept() {
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        let wanted = bench.lower("network", ComponentSpec::Network(Network::default()));
        let group = wanted.iter().find(|one| one.id.as_str() == "main/network/group").unwrap();
        let object = bench.finish(&bench.operation(1, Verb::Create, group, &group.spec, None)).await;
        let recorded = record(group, &group.spec, &object);
        let models = bench.all().into_iter().find(|one| one.id.as_str() == "main/models/account").unwrap();
        bench.finish(&bench.operation(2, Verb::Create, &models, &models.spec, None)).await;
        let delete = bench.operation(3, Verb::Delete, group, &group.spec, Some(&recorded));
        let mut progress = bench.provider.begin(&delete).await.unwrap();
        for _ in 0..5 {
            let Progress::Pending { handle, says, .. } = progress else { panic!("it does not wait") };
            assert!(says.contains("is still in it"), "{says}");
            progress = bench.provider.advance(&delete, &handle).await.unwrap();
        }
        let seen = bench.provider.read(&group.kind, &recorded.cloud_id).await.unwrap();
        assert!(matches!(seen, Observed::Present(_)), "{seen:?}");
    });
}

#[test]
fn a_pool_without_capacity_is_created_in_another_zone() {
    let bench = Bench::new(Options::zero_latency(), false);
    bench.cloud.world().stock_out(&format!("{REGION}-1"), "Standard_NC4as_T4_v3");
    run(whole_life(bench, "2"));
}

/// skypilot-org/skypilot#10145: a pool without a zone would find none.
#[test]
fn a_pool_with_gpus_is_created_in_a_zone() {
    let bench = Bench::new(Options::zero_latency(), false);
    bench.cloud.world().stock_out(REGION, "Standard_NC4as_T4_v3");
    run(whole_life(bench, "1"));
}

/// Calls as the actions of roles name them: lists of sizes, and writes of node pools.
const SKUS: &str = "Microsoft.Compute/skus/read";
const POOLS: &str = "Microsoft.ContainerService/managedClusters/agentPools/write";

fn calls(bench: &Bench, action: &str) -> usize {
    bench.cloud.requests().iter().filter(|one| one.operation.eq_ignore_ascii_case(action)).count()
}

/// The zones of a pool are tried in the order of what earlier runs found, and all of them. Those of a size without zones are one.
#[test]
fn what_lacked_capacity_is_tried_last() {
    const WITHOUT_ZONES: &str = "Standard_ND96isr_H100_v5";
    const FAMILY: &str = "standardNDSH100v5Family";
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        for quota in [FAMILY, "cores", "lowPriorityCores"] {
            bench.cloud.world().quotas.insert((REGION.to_owned(), quota.to_owned()), 2_000);
        }
        let all = bench.all();
        let place = all.iter().position(|one| one.id.as_str() == "main/cluster/gpu-nodes").unwrap();
        let mut outputs = secrets();
        for (one, recorded) in create(&bench, &all[..place]).await {
            outputs.insert(one.id.clone(), recorded.outputs);
        }
        let spec = all[place].spec.resolve(|id| outputs.get(id)).unwrap();
        let machine = spec.get("machine").and_then(Value::as_str).unwrap().to_owned();
        let mut number = 900;
        let named = |names: &[&str], machine: &str| -> Vec<String> {
            names.iter().map(|name| format!("{name} {machine}")).collect()
        };
        let first = named(&["spot 1"], &machine);
        let before = calls(&bench, SKUS);
        bench.provider.preflight(&all[place..=place]).await.unwrap();
        let pages = calls(&bench, SKUS) - before;
        for (empty, lacked, zone) in
            [(vec![], vec![], "2"), (vec!["2", "3"], named(&["spot 2", "spot 3"], &machine), "1")]
        {
            for zone in empty {
                bench.cloud.world().capacity.set(&format!("{REGION}-{zone}"), &machine, Market::Spot, 0);
            }
            let lacking = lacking(&[first[0].as_str()], true);
            let op = Operation { lacking, ..bench.operation(number, Verb::Create, &all[place], &spec, None) };
            let before = (calls(&bench, SKUS), calls(&bench, POOLS));
            let (found, object) = bought(&bench.provider, &op).await;
            let (reads, creates) = (calls(&bench, SKUS) - before.0, calls(&bench, POOLS) - before.1);
            assert_eq!(reads, pages * creates, "the sizes are listed once for each create call");
            let object = object.unwrap();
            assert_eq!(found, lacked);
            assert_eq!(object.spec.get("zones"), Some(&json!([zone])));
            assert_eq!(object.spec.get("markets"), Some(&json!(["spot"])));
            let recorded = record(&all[place], &spec, &object);
            bench.finish(&bench.operation(number + 1, Verb::Delete, &all[place], &spec, Some(&recorded))).await;
            number += 2;
        }
        bench.cloud.world().stock_out(REGION, WITHOUT_ZONES);
        let mut without_zones = spec.as_value().clone();
        without_zones["machine"] = json!(WITHOUT_ZONES);
        let without_zones = Spec::of(&without_zones);
        let [spot, on_demand] = ["spot", "on-demand"].map(|market| format!("{market} {WITHOUT_ZONES}"));
        for (names, lacked) in [(vec![], [&spot, &on_demand]), (vec![spot.as_str()], [&on_demand, &spot])] {
            let lacking = lacking(&names, true);
            let op = bench.operation(number, Verb::Create, &all[place], &without_zones, None);
            let (found, object) = bought(&bench.provider, &Operation { lacking, ..op }).await;
            assert_eq!(found.iter().collect::<Vec<_>>(), lacked);
            assert!(object.is_none());
            number += 1;
        }
        // The call is accepted, and what it began fails.
        bench.cloud.world().conduct.late_capacity = true;
        let op = bench.operation(number, Verb::Create, &all[place], &without_zones, None);
        let (found, object) = bought(&bench.provider, &op).await;
        assert_eq!(found, [spot, on_demand]);
        assert!(object.is_none());
    });
}

/// Without the list of sizes no zone is said to lack them.
#[test]
fn a_list_of_sizes_that_does_not_come_says_nothing() {
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        let all = bench.all();
        let place = all.iter().position(|one| one.id.as_str() == "main/cluster/gpu-nodes").unwrap();
        let mut outputs = secrets();
        for (one, recorded) in create(&bench, &all[..place]).await {
            outputs.insert(one.id.clone(), recorded.outputs);
        }
        let spec = all[place].spec.resolve(|id| outputs.get(id)).unwrap();
        // A failure that may pass: nothing is created before the next read.
        let before = calls(&bench, POOLS);
        bench.cloud.faults().add(Rule::nth("Microsoft.Compute", SKUS, 1, Disruption::Unavailable));
        let op = bench.operation(900, Verb::Create, &all[place], &spec, None);
        let error = bench.provider.begin(&op).await.unwrap_err();
        assert!(error.refused && error.kind == ErrorKind::Unavailable, "{}", error_chain(&error));
        assert_eq!(calls(&bench, POOLS), before);
        let (found, object) = bought(&bench.provider, &op).await;
        let object = object.unwrap();
        assert!(found.is_empty() && object.spec.get("zones") == Some(&json!(["1"])), "{found:?}");
        let recorded = record(&all[place], &spec, &object);
        bench.finish(&bench.operation(901, Verb::Delete, &all[place], &spec, Some(&recorded))).await;

        // One that does not pass: AKS chooses the place.
        bench.cloud.world().denied.insert(SKUS.to_owned());
        let op = bench.operation(902, Verb::Create, &all[place], &spec, None);
        let (found, object) = bought(&bench.provider, &op).await;
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(object.unwrap().spec.get("zones"), Some(&json!([])));
    });
}

/// A site without GPUs, and the resources of its network and its cluster.
fn cluster_only() -> (Bench, Vec<Wanted>) {
    let bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().registered(), false) };
    let mut wanted = bench.all();
    wanted.retain(|one| ["main/network", "main/cluster"].iter().any(|part| one.id.as_str().starts_with(part)));
    (bench, wanted)
}

/// hashicorp/terraform-provider-azurerm#33143: the count is the autoscaler's. Azure/AKS#4860: a disruption budget refuses an upgrade.
/// Azure/AKS#2090: it fails the deletion of a pool.
#[test]
fn what_runs_in_a_cluster_has_its_say() {
    run(async {
        let (bench, wanted) = cluster_only();
        let mut records = create(&bench, &wanted).await;
        update(&bench, &mut records).await;
        let of = |id: &str| records.iter().find(|(one, _)| one.id.as_str() == id).unwrap();
        let (pool, recorded) = of("main/cluster/nodes");
        let id = recorded.cloud_id.as_str();
        bench.cloud.world().autoscale(id, 2);
        unchanged(&bench, &records).await;
        let mut spec = pool.spec.as_value().clone();
        spec["scaling"]["max"] = json!(5);
        bench.finish(&bench.operation(900, Verb::Update, pool, &Spec::of(&spec), Some(recorded))).await;
        assert_eq!(bench.cloud.world().get(id).unwrap()["properties"]["count"], json!(2));

        let (cluster, recorded) = of("main/cluster");
        let mut spec = cluster.spec.as_value().clone();
        spec["version"] = json!("1.34");
        let op = bench.operation(901, Verb::Update, cluster, &Spec::of(&spec), Some(recorded));
        bench.cloud.world().conduct.keeps_pods = true;
        let error = bench.provider.begin(&op).await.err().unwrap();
        assert!(
            error.kind == ErrorKind::Invalid && error.hint.as_deref().unwrap().contains("minAvailable"),
            "{error:?}"
        );
        bench.cloud.world().conduct.keeps_pods = false;
        bench.finish(&op).await;

        bench.cloud.world().conduct.keeps_pods = true;
        let (pool, recorded) = of("main/cluster/nodes");
        let delete = bench.operation(902, Verb::Delete, pool, &pool.spec, Some(recorded));
        let (mut answer, mut error) = (bench.provider.begin(&delete).await, None);
        for _ in 0..STEPS {
            match answer {
                Ok(Progress::Pending { handle, .. }) => answer = bench.provider.advance(&delete, &handle).await,
                Ok(Progress::Failed { error: found, .. }) | Err(found) => {
                    error = Some(found);
                    break;
                }
                Ok(Progress::Done(_)) => break,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let error = error.unwrap();
        let hint = error.hint.as_deref().unwrap_or_default();
        assert!(error.kind == ErrorKind::Invalid && hint.contains("ignore-pod-disruption-budget"), "{error:?}");
    });
}

/// maniSbindra/az-mpf#70: a refusal of a later call of the same create.
#[test]
fn a_cluster_whose_role_is_refused_is_recorded() {
    run(async {
        let (bench, wanted) = cluster_only();
        let place = wanted.iter().position(|one| one.id.as_str() == "main/cluster").unwrap();
        let records = create(&bench, &wanted[..place]).await;
        let outputs: BTreeMap<ResourceId, Outputs> =
            records.iter().map(|(one, recorded)| (one.id.clone(), recorded.outputs.clone())).collect();
        let spec = wanted[place].spec.resolve(|id| outputs.get(id)).unwrap();
        let op = bench.operation(900, Verb::Create, &wanted[place], &spec, None);
        bench.cloud.world().denied.insert("Microsoft.Authorization/roleAssignments/write".to_owned());
        let mut progress = bench.provider.begin(&op).await.unwrap();
        for _ in 0..STEPS {
            let Progress::Pending { handle, .. } = &progress else { break };
            progress = bench.provider.advance(&op, handle).await.unwrap();
        }
        let Progress::Failed { left: Some(left), error } = progress else { panic!("the role is not refused") };
        assert!(
            error.kind == ErrorKind::Denied && bench.cloud.world().get(left.cloud_id.as_str()).is_some(),
            "{error:?}"
        );
    });
}

#[test]
fn problems_are_in_one_report() {
    let gpu = Some(GpuPool::of(GpuSize::Small, 1));
    let bench = Bench { gpu, ..Bench::new(Options::zero_latency(), false) };
    bench.cloud.world().lock(&format!("/subscriptions/{}", bench.cloud.subscription()), "ReadOnly");
    run(async {
        let problems = bench.provider.preflight(&bench.all()).await.unwrap();
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        for part in ["NCASv3_T4", "keeps everything"] {
            assert!(problems.iter().any(|one| one.contains(part)), "{part}: {problems:#?}");
        }
    });
}
