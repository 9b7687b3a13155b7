//! The cloud in memory passes the lists that every provider passes, and the lists notice providers that do not.

#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use textnlp_provider::component::*;
use textnlp_provider::conformance::{TestBed, lowers_purely, well_formed};
use textnlp_provider::memory::{Fault, FaultEffect, MemoryCloud, Stage};
use textnlp_provider::settings::{CacheKind, DatabaseKind, Role, Runtime, TlsMode};
use textnlp_provider::*;
use uuid::Uuid;

fn name<T: TryFrom<String, Error = InvalidName>>(text: &str) -> T {
    T::try_from(text.to_owned()).unwrap()
}

fn bench(provider: &dyn Provider) -> TestBed<'_> {
    TestBed::new(provider, name("staging"), name("here"), Lineage(Uuid::from_u128(42)))
}

fn want(id: &str, kind: &str, spec: Value) -> Wanted {
    Wanted {
        id: name(&format!("here/{id}")),
        kind: name(kind),
        site: name("here"),
        via: None,
        spec: Spec::of(&spec),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        protected: false,
    }
}

async fn whole_life(cloud: &dyn Provider, kind: &str) -> Result<(), conformance::Violation> {
    let bench = bench(cloud);
    let parent = want("parent", "memory.bucket", json!({}));
    let made = bench.make(&parent).await?;
    let mut wanted = want("thing", kind, json!({"size": 1}));
    let mut changed = json!({"size": 2});
    if kind == "memory.model" {
        wanted.spec = Spec::of(&json!({"size": 1, "parent": made.cloud_id}));
        changed["parent"] = json!(made.cloud_id);
    }
    bench.whole_life(&wanted, Some(&Spec::of(&changed))).await?;
    bench.unmake(&parent, &made).await
}

fn every_kind() -> Vec<&'static str> {
    // A weight is a part too; models stand for parts.
    MemoryCloud::new().kinds().iter().map(|kind| kind.name).filter(|kind| *kind != "memory.weight").collect()
}

#[tokio::test]
async fn every_kind_passes_the_provider_conformance_suite() {
    for kind in every_kind() {
        let cloud = MemoryCloud::new();
        cloud.slow(3);
        whole_life(&cloud, kind).await.unwrap();
        assert!(cloud.things().is_empty(), "{kind} leaves something behind");
    }
    well_formed(&MemoryCloud::new()).unwrap();
}

#[tokio::test]
async fn lost_replies_and_throttling_do_not_change_the_outcome() {
    for kind in every_kind() {
        let cloud = MemoryCloud::new();
        cloud.slow(2);
        cloud.inject(Fault::once(FaultEffect::LostReply).stage(Stage::Any).times(3));
        cloud.inject(Fault::once(FaultEffect::Throttle(None)).stage(Stage::Any).times(3));
        cloud.inject(Fault::once(FaultEffect::LostRequest).stage(Stage::Any).times(3));
        whole_life(&cloud, kind).await.unwrap();
        assert!(cloud.things().is_empty(), "{kind} leaves something behind");
    }
}

#[test]
fn every_component_is_expanded_into_resources() {
    let cloud = MemoryCloud::new();
    let site = Site {
        environment: name("staging"),
        name: name("here"),
        account: "1".to_owned(),
        region: "local".to_owned(),
        runtime: Runtime::Process,
        role: Some(Role::Primary),
        tags: BTreeMap::new(),
        protect_data: true,
        cluster: None,
        subnets: Vec::new(),
        maintenance: None,
    };
    let program = Program { path: "/bin/true".to_owned(), digest: "sha256:1".to_owned() };
    let rules = FailureDetection { every_ms: 1000, lost_after: 3 };
    let model = Model {
        name: "textnlp-tiny".to_owned(),
        source: "bundled".to_owned(),
        digest: None,
        role: None,
        quantize: None,
        context: None,
        preload: true,
    };
    let parts = [
        ("network", ComponentSpec::Network(Network { cidr: None, policies: false, ..Network::default() })),
        ("cluster", ComponentSpec::Cluster(Cluster::of(name("network")))),
        (
            "secrets",
            ComponentSpec::Secrets(Secrets {
                generate: BTreeMap::from([("api-key".to_owned(), SecretRecipe::ApiKey)]),
                shared: Default::default(),
                given: Default::default(),
            }),
        ),
        (
            "cert",
            ComponentSpec::Certificate(Certificate { mode: TlsMode::LocalCa, names: vec![], days: 90, acme: None }),
        ),
        (
            "models",
            ComponentSpec::ModelStore(ModelStore {
                models: vec![model],
                max_cache_bytes: 1,
                key: None,
                archive_after_days: None,
                replica: None,
                permission_boundary: None,
            }),
        ),
        (
            "database",
            ComponentSpec::Database(Database {
                kind: DatabaseKind::Sqlite,
                hosting: None,
                schema: None,
                postgres: None,
            }),
        ),
        ("cache", ComponentSpec::Cache(Cache { kind: CacheKind::Redis, managed: None })),
        (
            "server",
            ComponentSpec::Workload(Workload {
                autoscaling: None,
                replicas: 2,
                program: program.clone(),
                config: json!({}),
                cluster: name("cluster"),
                models: name("models"),
                database: name("database"),
                stored: Database { kind: DatabaseKind::Sqlite, hosting: None, schema: None, postgres: None },
                cache: None,
                secrets: name("secrets"),
                first_key: true,
                watch: Some(name("watch")),
                drain_seconds: 1,
                canary: None,
                outside: None,
                served: Vec::new(),
                egress: Egress::default(),
                saml: None,
            }),
        ),
        (
            "gateway",
            ComponentSpec::Endpoint(Endpoint {
                host: "127.0.0.1".to_owned(),
                port: 8443,
                metrics_port: 9090,
                tls: true,
                certificate: name("cert"),
                workload: name("server"),
                watch: Some(name("watch")),
                program: program.clone(),
                max_request_bytes: 1,
                timeout_seconds: 1,
                connections: Default::default(),
                domain: None,
                waf: false,
                zone: None,
                managed_certificate: false,
                acme: false,
                share: None,
                base_domain: None,
            }),
        ),
        ("traffic", ComponentSpec::Traffic(Traffic { weights: BTreeMap::from([(name("here"), 100)]) })),
        ("monitoring", ComponentSpec::Monitoring(Monitoring { stack: true, ..Monitoring::default() })),
        ("registry", ComponentSpec::Registry(Registry { url: "mem".to_owned(), image: None })),
        (
            "border",
            ComponentSpec::Relay(Relay {
                cluster: name("cluster"),
                endpoint: ("127.0.0.1".to_owned(), 8443),
                ready: None,
                watch: name("watch"),
                peers: vec![name("there")],
                witness: RemoteComponent { site: name("witness"), component: name("witness") },
                database: None,
                program: program.clone(),
            }),
        ),
        (
            "watch",
            ComponentSpec::SiteAgent(SiteAgent {
                cluster: name("cluster"),
                border: name("border"),
                workload: name("server"),
                peers: vec![name("there")],
                order: vec![name("here"), name("there")],
                witness: name("witness"),
                home: name("here"),
                rules,
                automatic: true,
                failback: true,
                max_lag_ms: 5000,
                copies: Copies { models_every_ms: 1000, configuration_every_ms: 1000, compress: true },
                database: None,
                outside: None,
                program: program.clone(),
            }),
        ),
        (
            "witness",
            ComponentSpec::Witness(Witness {
                dns: None,
                cluster: name("cluster"),
                sites: vec![name("here"), name("there")],
                home: name("here"),
                rules,
                weights: BTreeMap::from([(name("here"), 100)]),
                front: name("front"),
                program: program.clone(),
            }),
        ),
        (
            "front",
            ComponentSpec::GlobalEndpoint(GlobalEndpoint {
                host: "127.0.0.1".to_owned(),
                port: 8440,
                metrics_port: 9080,
                tls: true,
                certificate: name("cert"),
                weights: BTreeMap::from([(name("here"), 100)]),
                far: false,
                border: name("border"),
                witness: name("witness"),
                program,
                max_request_bytes: 1,
                timeout_seconds: 1,
                connections: Default::default(),
            }),
        ),
        (
            "backup",
            ComponentSpec::Backup(Backup {
                every_seconds: 60,
                keep_seconds: 60,
                destination: None,
                verify: true,
                recipients: Vec::new(),
                point_in_time_seconds: None,
                copies: None,
                managed: None,
            }),
        ),
    ];
    let mut all = Vec::new();
    for (component, part) in parts {
        let component = Component { name: name(component), existing: None, part };
        all.extend(lowers_purely(&cloud, &component, &site).unwrap());
    }
    let ids: Vec<&ResourceId> = all.iter().map(|wanted| &wanted.id).collect();
    for wanted in &all {
        for output in wanted.spec.outputs_needed() {
            assert!(ids.contains(&&output.resource), "{} refers to {}", wanted.id, output.resource);
        }
    }
    assert!(all.iter().any(|wanted| wanted.kind.as_str() == "memory.database" && wanted.protected));
}

/// The law of a provider of objects inside of a host: its kinds are its own, and nothing is broken.
const INSIDE: &str = "inside of a host";

/// A cloud that breaks one law, to prove that the list would notice.
struct Broken<'a> {
    cloud: &'a MemoryCloud,
    law: &'static str,
    calls: AtomicU64,
}

#[async_trait]
impl Provider for Broken<'_> {
    fn kinds(&self) -> &'static [Kind] {
        let mut kinds = self.cloud.kinds().to_vec();
        if self.law == INSIDE {
            kinds.truncate(2);
            (kinds[0].name, kinds[0].pricing) = ("inner.pod", Pricing::Included);
            (kinds[1].name, kinds[1].pricing) = ("inner.disk", Pricing::Unknown("by its size"));
            return kinds.leak();
        }
        let database = kinds.iter_mut().find(|kind| kind.name == "memory.database").unwrap();
        match self.law {
            "states its permissions" => database.permissions = &[],
            "names an action" => database.permissions = const { &[Permission::read("")] },
            "a free object has no cost line" => database.pricing = Pricing::Free,
            "only if its kind is priced by its spec" => database.pricing = Pricing::Included,
            "an unknown cost has a reason" => database.pricing = Pricing::Unknown(""),
            "the typical duration" => database.typical = Some(database.deadline * 2),
            _ => return self.cloud.kinds(),
        }
        kinds.leak()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        let declared = self.kinds().iter().find(|one| one.name == kind.as_str()).unwrap();
        let mut lines = self.cloud.costs(kind, spec);
        match self.law {
            "has a cost function" | INSIDE => return declared.costs(),
            "an unknown cost has a reason" if kind.as_str() == "memory.database" => return declared.costs(),
            "unless its kind is free" => lines.clear(),
            "has a source" => lines.iter_mut().for_each(|line| {
                if let Charge::Priced { price, .. } = &mut line.charge {
                    price.source = "";
                }
            }),
            _ => {}
        }
        lines
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.cloud.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let mut changes = self.cloud.diff(wanted, recorded, seen);
        if self.law == "needs no change" {
            let field = "always".to_owned();
            changes.push(FieldChange { field, before: None, after: None, effect: Effect::InPlace });
        }
        changes
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        self.cloud.preflight(wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let mut seen = self.cloud.observe(scope).await?;
        match self.law {
            "answers for every id" => seen.retain(|(_, seen)| *seen != Observed::Absent),
            "carries its lineage" => seen.iter_mut().for_each(|(_, seen)| {
                if let Observed::Present(object) = seen {
                    object.lineage = None;
                }
            }),
            "observed without a record" if scope.wanted.is_empty() && scope.recorded.is_empty() => seen.clear(),
            "outputs of create and read are equal" => seen.iter_mut().for_each(|(_, seen)| {
                if let Observed::Present(object) = seen {
                    object.outputs.insert("uptime".to_owned(), json!(1));
                }
            }),
            _ => {}
        }
        Ok(seen)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        let seen = self.cloud.read(kind, id).await?;
        Ok(if self.law == "read by its cloud id" { Observed::Absent } else { seen })
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        let mut op = op.clone();
        let again = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.law {
            "a repeated create" if op.verb == Verb::Create => {
                op.token = Token::derive(op.lineage, &op.site, OperationId(1000 + again))
            }
            "another deployment has" => op.lineage = Lineage(Uuid::from_u128(42)),
            "delete fails" if op.verb == Verb::Delete => {
                let there = self
                    .cloud
                    .things()
                    .iter()
                    .any(|thing| Some(&thing.cloud_id) == op.recorded.as_ref().map(|r| &r.cloud_id));
                if !there {
                    return Err(Error::new(ErrorKind::NotFound, "delete", op.resource.as_str()));
                }
            }
            "observed as absent" if op.verb == Verb::Delete => {
                let recorded = op.recorded.clone().unwrap();
                let Observed::Present(object) = self.cloud.read(&recorded.kind, &recorded.cloud_id).await? else {
                    panic!()
                };
                return Ok(Progress::Done(object));
            }
            _ => {}
        }
        self.cloud.begin(&op).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.cloud.advance(op, handle).await
    }
}

#[tokio::test]
async fn conformance_suite_detects_every_broken_invariant() {
    let laws = [
        ("a repeated create", "memory.cache"),
        ("needs no change", "memory.vault"),
        ("answers for every id", "memory.vault"),
        ("carries its lineage", "memory.vault"),
        ("observed without a record", "memory.vault"),
        ("outputs of create and read are equal", "memory.vault"),
        ("read by its cloud id", "memory.vault"),
        ("another deployment has", "memory.vault"),
        ("delete fails", "memory.vault"),
        ("observed as absent", "memory.vault"),
    ];
    for (law, kind) in laws {
        let cloud = MemoryCloud::new();
        let broken = Broken { cloud: &cloud, law, calls: AtomicU64::new(0) };
        let wanted = want("thing", kind, json!({"size": 1}));
        let breach = bench(&broken).whole_life(&wanted, None).await.expect_err(law);
        assert!(breach.law.contains(law), "{law}: {breach}");
    }
    let declared = [
        "states its permissions",
        "names an action",
        "a free object has no cost line",
        "only if its kind is priced by its spec",
        "an unknown cost has a reason",
        "the typical duration",
        "has a cost function",
        "unless its kind is free",
        "has a source",
    ];
    for law in declared {
        let cloud = MemoryCloud::new();
        let broken = Broken { cloud: &cloud, law, calls: AtomicU64::new(0) };
        let breach = well_formed(&broken).expect_err(law);
        assert!(breach.law.contains(law), "{law}: {breach}");
    }
}

#[test]
fn cost_depends_on_the_spec_and_names_its_source() {
    let cloud = MemoryCloud::new();
    let monthly = |kind: &str, spec: Value| {
        let lines = cloud.costs(&name(kind), &Spec::of(&spec));
        let amount = |line: &CostLine| match &line.charge {
            Charge::Priced { quantity, price } => (price.monthly_micros(*quantity), price.unit.to_string()),
            other => panic!("{other:?}"),
        };
        lines.iter().map(amount).collect::<Vec<_>>()
    };
    assert_eq!(monthly("memory.cluster", json!({})), [(73_000_000, "per hour".to_owned())]);
    assert_eq!(
        monthly("memory.database", json!({"storage_gb": 20})),
        [(50_000_000, "per month".to_owned()), (2_000_000, "per GB-month".to_owned())]
    );
    assert!(monthly("memory.vault", json!({})).is_empty());
    let registry = cloud.costs(&name("memory.registry"), &Spec::default());
    assert!(
        matches!(&registry[0].charge, Charge::Unpriced(why) if why.contains("no price of `registry`")),
        "{registry:?}"
    );
    // The row of a region comes before the one of all regions.
    let row = |region, micros| Price {
        key: "vm",
        region,
        micros,
        currency: "USD",
        unit: PriceUnit::HourOf("vCPU"),
        source: "a list",
        date: jiff::civil::date(2026, 11, 1),
    };
    let prices = [row(None, 1), row(Some("north"), 2)];
    let of = |region| match CostLine::priced(&prices, "vm", region, "VM", "2 vCPU", 2).charge {
        Charge::Priced { quantity, price } => price.monthly_micros(quantity),
        other => panic!("{other:?}"),
    };
    assert_eq!((of("north"), of("south")), (2 * 2 * 730, 2 * 730));
    let text = |micros| Price { micros, ..prices[0] }.to_string();
    assert_eq!(text(526_000), "0.526 USD per vCPU-hour");
    assert_eq!((text(7), text(12_500_000)), ("0.000007 USD per vCPU-hour".into(), "12.50 USD per vCPU-hour".into()));
}

#[test]
fn objects_inside_of_a_priced_host_cost_only_what_is_charged_beside_it() {
    use std::sync::Arc;
    let cloud: &MemoryCloud = Box::leak(Box::new(MemoryCloud::new()));
    let inner = || Arc::new(Broken { cloud, law: INSIDE, calls: AtomicU64::new(0) });
    let outer = || Arc::new(MemoryCloud::new());
    let through = Through::new(outer(), inner(), Box::new(|_| unreachable!("nothing is reached")), name("cluster"));
    let alone = Combined::new(inner(), outer(), |_, _| None);
    let beside = Combined::new(outer(), inner(), |_, _| None);
    let charges = |provider: &dyn Provider, kind: &str| {
        let lines = provider.costs(&name(kind), &Spec::default());
        lines.into_iter().map(|line| line.charge).collect::<Vec<_>>()
    };
    let unknown = [Charge::Unknown("by its size".to_owned())];
    for (provider, pod) in
        [(&through as &dyn Provider, [].as_slice()), (&beside, &[]), (&alone, [Charge::Included].as_slice())]
    {
        assert_eq!(charges(provider, "inner.pod"), pod);
        assert_eq!(charges(provider, "inner.disk"), unknown);
        assert!(matches!(charges(provider, "memory.cluster")[..], [Charge::Priced { quantity: 1, .. }]));
    }
    let resource = |kind: &str| PolicyResource {
        id: name("here/a"),
        cloud_id: None,
        kind: name(kind),
        spec: Spec::default(),
        verbs: [Verb::Create].into(),
    };
    let request = PolicyRequest {
        lineage: None,
        environment: name("staging"),
        site: name("here"),
        resources: vec![resource("memory.cluster"), resource("inner.pod")],
    };
    for provider in [&through as &dyn Provider, &beside, &alone] {
        let policies = provider.policies(&request);
        assert!(matches!(&policies[..], [one] if one.text.contains("memory:Change")), "{policies:?}");
    }
}

#[test]
fn policy_has_only_the_needed_permissions_with_filled_placeholders() {
    const KINDS: &[Permission] = &[
        Permission::read("thing:Describe"),
        Permission { resource: "arn:{$account}:{name}", ..Permission::on(&[Verb::Create], "thing:Create") },
        Permission {
            resource: "arn:{$account}:{id}",
            conditions: &[Condition { key: "tag/lineage", value: "{$lineage}" }],
            ..Permission::on(&[Verb::Delete], "thing:Delete")
        },
        Permission::change("to listen on {inputs.listen}"),
        Permission::change("to listen on {inputs.metrics_listen}"),
        Permission::on(&[Verb::Update], "thing:Pass{?inputs}"),
        Permission::on(&[Verb::Update], "thing:Unpass{!inputs}"),
        Permission::on(&[Verb::Update], "thing:Copy{?copy}"),
        Permission {
            conditions: &[Condition { key: "policy", value: "{policies}" }],
            ..Permission::on(&[Verb::Update], "thing:Attach{?policies}")
        },
        Permission::on(&[Verb::Update], "thing:Join{?groups}"),
        Permission::on(&[Verb::Update], "thing:Rename{name=a}"),
        Permission::on(&[Verb::Update], "thing:Rename{name=b}"),
        Permission::on(&[Verb::Update], "thing:Restart{always=true}"),
    ];
    let kind = Kind { permissions: KINDS, ..MemoryCloud::new().kinds()[0].clone() };
    let spec = Spec::of(&json!({
        "name": "a", "inputs": {"listen": "127.0.0.1:1"}, "id": {"$output": "here/b#id"}, "copy": null,
        "policies": ["one", "two"], "groups": [], "always": true,
    }));
    let request = |verbs: &[Verb], lineage: Option<Lineage>| PolicyRequest {
        lineage,
        environment: name("staging"),
        site: name("here"),
        resources: vec![PolicyResource {
            id: name("here/a"),
            cloud_id: None,
            kind: name(kind.name),
            spec: spec.clone(),
            verbs: verbs.iter().copied().collect(),
        }],
    };
    let check = |verbs: &[Verb], lineage, expect: &[&str]| {
        let own = |name: &str| (name == "$account").then(|| "42".to_owned());
        let needed = request(verbs, lineage).permissions(std::slice::from_ref(&kind), own);
        let mut rows: Vec<String> =
            needed.keys().map(|one| format!("{} on {} if {:?}", one.action, one.resource, one.conditions)).collect();
        rows.sort();
        assert_eq!(rows, expect, "{verbs:?}");
    };
    check(&[], None, &["thing:Describe on * if {}"]);
    check(
        &[Verb::Update],
        None,
        &[
            r#"thing:Attach on * if {"policy": "one two"}"#,
            "thing:Describe on * if {}",
            "thing:Pass on * if {}",
            "thing:Rename on * if {}",
            "thing:Restart on * if {}",
            "to listen on 127.0.0.1:1 on * if {}",
        ],
    );
    check(
        &[Verb::Create],
        None,
        &["thing:Create on arn:42:a if {}", "thing:Describe on * if {}", "to listen on 127.0.0.1:1 on * if {}"],
    );
    let lineage = Some(Lineage(Uuid::nil()));
    let ours = r#"{"tag/lineage": "00000000-0000-0000-0000-000000000000"}"#;
    check(
        &[Verb::Delete],
        lineage,
        &[
            "thing:Delete on arn:42:* if ".to_owned() + ours,
            "thing:Describe on * if {}".to_owned(),
            "to listen on 127.0.0.1:1 on * if {}".to_owned(),
        ]
        .each_ref()
        .map(String::as_str),
    );
    // The first `up` determines the lineage.
    let before = request(&[Verb::Delete], None).permissions(std::slice::from_ref(&kind), |_| None);
    let conditions: Vec<_> = before.keys().flat_map(|one| one.conditions.values()).collect();
    assert_eq!(conditions, ["*"]);
}
