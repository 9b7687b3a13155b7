//! Objects of a cluster that does not exist yet: the engine makes the cluster and what is in it, goes on after a kill, and takes both away.
//!
//! The cluster is one of the memory cloud, which stands for EKS, GKE or AKS; what is in it is in a real control plane, to which the outputs of
//! that cluster lead, with tokens that a service account is given for minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_kubernetes::Kubernetes;
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::{Audited, DeleteData, Facts, Plan, Purpose};
use textnlp_orchestrator::run::{Run, RunError, RunOptions, RunOutcome, RunSite, plan_with_refresh, run_phases};
use textnlp_orchestrator::state::{MemoryStore, Operator, SiteLocation, State};
use textnlp_provider::connect::{Bearer, CA, Connect, ENDPOINT, HostEndpoint, TokenSource};
use textnlp_provider::memory::{Fuse, MemoryCloud};
use textnlp_provider::{
    CloudId, Component, Error, ErrorKind, FieldChange, Handle, Kind, KindName, Lineage, Need, Object, Observed,
    Operation, Outputs, Ownership, Problem, Problems, Progress, Provider, ReadFailure, Recorded, Ref, ResourceId,
    Result, Scope, Secret, SecretName, SecretRef, SecretStore, SecretVersion, Site, SiteName, Spec, Through, Wanted,
    settings,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const UP: RunOptions = RunOptions::UP;
const DOWN: RunOptions = RunOptions { purpose: Purpose::Down, delete_data: DeleteData::Nothing, gated: false };
/// Where a cluster of the memory cloud is in truth.
#[derive(Clone)]
struct Address {
    url: String,
    ca: String,
}

type Addresses = Arc<Mutex<BTreeMap<String, Address>>>;

/// The memory cloud, whose clusters say where they are: at the address that their field `fixed` names.
struct Hosts {
    cloud: MemoryCloud,
    addresses: Addresses,
}

impl Hosts {
    fn say(&self, object: &mut Object) {
        let at = object.spec.get("fixed").and_then(Value::as_str).unwrap_or_default();
        let addresses = self.addresses.lock().unwrap();
        if let Some(address) = addresses.get(at).filter(|_| object.kind.as_str() == "memory.cluster") {
            object.outputs.insert(ENDPOINT.to_owned(), json!(address.url));
            object.outputs.insert(CA.to_owned(), json!(address.ca));
        }
    }

    fn said(&self, answer: Result<Progress>) -> Result<Progress> {
        answer.map(|progress| match progress {
            Progress::Done(mut object) => {
                self.say(&mut object);
                Progress::Done(object)
            }
            other => other,
        })
    }
}

#[async_trait]
impl Provider for Hosts {
    fn kinds(&self) -> &'static [Kind] {
        self.cloud.kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.cloud.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.cloud.diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        self.cloud.preflight(wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let mut seen = self.cloud.observe(scope).await?;
        for (_, answer) in &mut seen {
            if let Observed::Present(object) = answer {
                self.say(object);
            }
        }
        Ok(seen)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        let mut answer = self.cloud.read(kind, id).await?;
        if let Observed::Present(object) = &mut answer {
            self.say(object);
        }
        Ok(answer)
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.said(self.cloud.begin(op).await)
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.said(self.cloud.advance(op, handle).await)
    }
}

/// A provider whose run dies at a boundary.
struct Fused {
    inner: Through,
    fuse: Fuse,
}

#[async_trait]
impl Provider for Fused {
    fn kinds(&self) -> &'static [Kind] {
        self.inner.kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.inner.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.inner.diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        self.inner.preflight(wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        self.fuse.cross(|| "before observe".to_owned()).await;
        let answer = self.inner.observe(scope).await;
        self.fuse.cross(|| "after observe".to_owned()).await;
        answer
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.inner.read(kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.fuse.cross(|| format!("before begin {} {}", op.verb, op.resource)).await;
        let answer = self.inner.begin(op).await;
        self.fuse.cross(|| format!("after begin {} {}", op.verb, op.resource)).await;
        answer
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.fuse.cross(|| format!("before advance {} {}", op.verb, op.resource)).await;
        let answer = self.inner.advance(op, handle).await;
        self.fuse.cross(|| format!("after advance {} {}", op.verb, op.resource)).await;
        answer
    }
}

/// Where tokens come from, and what goes wrong with it.
struct Tokens {
    cluster: &'static Cluster,
    /// Whose they are, in `default`.
    account: String,
    asked: AtomicU32,
    how: Mutex<How>,
    lives: Mutex<Duration>,
    given: Mutex<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Well,
    /// The next one is of no use; those after it are.
    SpoiledOnce,
    Fails,
    Hangs,
}

impl Tokens {
    /// Those of an account of its own, that may do everything.
    fn of(cluster: &'static Cluster) -> Arc<Self> {
        let (how, lives) = (Mutex::new(How::Well), Mutex::new(Duration::from_secs(600)));
        let (account, asked, given) = (cluster.namespace_name("deployer"), AtomicU32::new(0), Mutex::default());
        let tokens = Self { cluster, account, asked, how, lives, given };
        tokens.make_account();
        let (who, account) = (format!("--serviceaccount=default:{}", tokens.account), &tokens.account);
        let bound = ["create", "clusterrolebinding", account, "--clusterrole=cluster-admin", &who];
        assert!(cluster.kubectl(&bound).status.success());
        Arc::new(tokens)
    }

    fn make_account(&self) {
        let made = self.cluster.kubectl(&["create", "serviceaccount", &self.account, "-n", "default"]);
        assert!(made.status.success(), "{made:?}");
    }

    /// The account is another one of its name from now on, and its tokens are of no use any more.
    fn revoke(&self) {
        let gone = self.cluster.kubectl(&["delete", "serviceaccount", &self.account, "-n", "default"]);
        assert!(gone.status.success(), "{gone:?}");
        self.make_account();
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    fn goes(&self, how: How) {
        *self.how.lock().unwrap() = how;
    }
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self) -> Result<Bearer> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let how = *self.how.lock().unwrap();
        match how {
            How::Fails => {
                let error = Error::new(ErrorKind::Denied, "sign in to", "the cloud");
                return Err(error.because("the session of ada has ended").hint("sign in again"));
            }
            How::Hangs => std::future::pending().await,
            How::Well | How::SpoiledOnce => {}
        }
        let ask = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 600 } });
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{}/token", self.account);
        let answer = self.cluster.api().call("POST", &path, Some(&ask)).await;
        let answer =
            answer.map_err(|error| Error::new(ErrorKind::Unavailable, "ask for", "a token").because(error))?.ok();
        let mut token = answer["status"]["token"].as_str().unwrap().to_owned();
        if how == How::SpoiledOnce {
            token.truncate(token.len() - 8);
            self.goes(How::Well);
        }
        self.given.lock().unwrap().push(token.clone());
        Ok(Bearer { token: Secret::new(token), ends: SystemTime::now() + *self.lives.lock().unwrap() })
    }
}

/// The outputs of a cluster, with the tokens of its control plane.
struct Ways(Vec<(String, Arc<Tokens>)>);

#[async_trait]
impl Connect for Ways {
    async fn connect(&self, host: &Outputs) -> Result<HostEndpoint> {
        let ca = host.get(CA).and_then(Value::as_str).unwrap_or_default();
        let tokens = self.0.iter().find(|(of, _)| of == ca).or(self.0.first()).map(|(_, tokens)| tokens.clone());
        HostEndpoint::of(host, tokens.unwrap())
    }
}

/// A line to an API server, which can be cut.
struct Line {
    url: String,
    open: watch::Sender<bool>,
}

impl Line {
    async fn to(cluster: &Cluster) -> Self {
        let to = cluster.url().trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let (to, mut is_open) = (to.clone(), is_open.clone());
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = is_open.wait_for(|open| !open) => {}
                        _ = copy_bidirectional(&mut here, &mut there) => {}
                    }
                });
            }
        });
        Self { url, open }
    }

    fn cut(&self, is_cut: bool) {
        self.open.send_replace(!is_cut);
    }
}

/// Nobody has secrets here.
struct NoSecrets;

#[async_trait]
impl SecretStore for NoSecrets {
    async fn put(&self, _: &SecretName, _: &SecretVersion, _: &Secret) -> Result<()> {
        Ok(())
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        Err(Error::new(ErrorKind::NotFound, "read secret", secret.name.to_string()))
    }

    async fn versions(&self, _: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(Vec::new())
    }

    async fn list(&self, _: &str) -> Result<Vec<SecretName>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &SecretName) -> Result<()> {
        Ok(())
    }
}

/// A cloud, a disk and a control plane that outlive the runs that use them.
struct World {
    cluster: &'static Cluster,
    cloud: MemoryCloud,
    disk: MemoryStore,
    addresses: Addresses,
    tokens: Arc<Tokens>,
    /// Other control planes, by their authorities.
    others: Vec<(String, Arc<Tokens>)>,
    line: Line,
    namespace: String,
}

fn here() -> SiteName {
    SiteName::new("here").unwrap()
}

fn id(name: &str) -> ResourceId {
    ResourceId::new(format!("here/{name}")).unwrap()
}

fn want(name: &str, kind: &str, via: Option<&str>, needs: &[&str], spec: Value) -> Wanted {
    Wanted {
        id: id(name),
        kind: KindName::new(kind).unwrap(),
        site: here(),
        via: via.map(|host| Ref(id(host))),
        spec: Spec::of(&spec),
        needs: needs.iter().map(|need| Need::on(id(need))).collect(),
        ownership: Ownership::Ours,
        protected: false,
    }
}

impl World {
    async fn new(cluster: &'static Cluster, about: &str) -> Self {
        Self::with(cluster, about, Tokens::of(cluster)).await
    }

    async fn with(cluster: &'static Cluster, about: &str, tokens: Arc<Tokens>) -> Self {
        let line = Line::to(cluster).await;
        let first = Address { url: line.url.clone(), ca: cluster.ca_pem().to_owned() };
        let addresses = Arc::new(Mutex::new(BTreeMap::from([("first".to_owned(), first)])));
        let cloud = MemoryCloud::new();
        cloud.slow(2);
        let (disk, others) = (MemoryStore::default(), Vec::new());
        let namespace = cluster.namespace_name(about);
        Self { cluster, cloud, disk, addresses, tokens, others, line, namespace }
    }

    /// A cluster at an address, and in it a namespace with a config map and a deployment.
    fn wanted(&self, at: &str) -> Vec<Wanted> {
        let namespace = self.namespace.as_str();
        let metadata = |name: &str| json!({ "name": name, "namespace": namespace });
        vec![
            want("cluster", "memory.cluster", None, &[], json!({ "fixed": at })),
            want("space", "kubernetes.namespace", Some("cluster"), &[], json!({ "metadata": { "name": namespace } })),
            want(
                "settings",
                "kubernetes.config-map",
                Some("cluster"),
                &["space"],
                json!({ "metadata": metadata("settings"), "data": { "a": "1" } }),
            ),
            want(
                "web",
                "kubernetes.deployment",
                Some("cluster"),
                &["settings"],
                json!({
                    "metadata": metadata("web"),
                    "spec": {
                        "replicas": 0,
                        "selector": { "matchLabels": { "app": "web" } },
                        "template": {
                            "metadata": { "labels": { "app": "web" } },
                            "spec": { "containers": [{ "name": "web", "image": "local/web:1" }] },
                        },
                    },
                }),
            ),
        ]
    }

    /// The provider as a fresh process has it.
    fn provider(&self, fuse: &Fuse) -> Arc<dyn Provider> {
        let outer = Arc::new(Hosts { cloud: self.cloud.clone(), addresses: self.addresses.clone() });
        let inner = Arc::new(Kubernetes::of_clusters(Arc::new(NoSecrets)));
        let reach = {
            let inner = inner.clone();
            move |endpoint| Arc::new(inner.through(endpoint)) as Arc<dyn Provider>
        };
        let through = Through::new(outer, inner, Box::new(reach), "cluster".parse().unwrap());
        let mut ways = vec![(self.cluster.ca_pem().to_owned(), self.tokens.clone())];
        ways.extend(self.others.iter().cloned());
        let inner = through.connecting(KindName::new("memory.cluster").unwrap(), Arc::new(Ways(ways)));
        Arc::new(Fused { inner, fuse: fuse.clone() })
    }

    fn sites(&self, wanted: &[Wanted], provider: Arc<dyn Provider>) -> BTreeMap<SiteName, RunSite> {
        let text = |text: &str| text.to_owned();
        let runtime = settings::Runtime::Kubernetes;
        let place = SiteLocation { provider: text("memory"), account: text("1"), region: text("r"), runtime };
        BTreeMap::from([(here(), RunSite { place, provider, protect_data: false, wanted: wanted.to_vec() })])
    }

    fn road<'a>(
        &self,
        sites: &'a BTreeMap<SiteName, RunSite>,
        environment: &'a textnlp_provider::EnvironmentName,
        fuse: &Fuse,
    ) -> Run<'a> {
        let (by, tool, host) = ("ada".to_owned(), "test".to_owned(), "machine".to_owned());
        let pause = Duration::from_millis(20);
        Run {
            environment,
            store: Arc::new(self.disk.with_fuse(fuse.clone())),
            sites,
            apart: const { &BTreeSet::new() },
            fresh: Lineage(Uuid::new_v4()),
            operator: Operator { by, reason: None, tool, host, pid: 1 },
            clock: Arc::new(SystemClock),
            events: &DiscardEvents,
            gates: None,
            limits: Limits { pause, longest_pause: Duration::from_millis(500), ..Limits::default() },
            entry: None,
        }
    }

    /// Goes the whole way as a process of its own; `None` if it died on the way.
    async fn go(&self, ask: RunOptions, wanted: &[Wanted], fuse: &Fuse) -> Option<Result<RunOutcome, RunError>> {
        let (sites, environment) = (self.sites(wanted, self.provider(fuse)), "staging".parse().unwrap());
        let road = self.road(&sites, &environment, fuse);
        let dies = async {
            while !fuse.blown() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (stop, mut agree) = (CancellationToken::new(), |_: &Plan, _: &Facts| true);
        tokio::select! {
            arrival = run_phases(&road, ask, &mut agree, &stop) => Some(arrival),
            () = dies => None,
        }
    }

    async fn done(&self, ask: RunOptions, wanted: &[Wanted]) -> RunOutcome {
        let arrival = self.go(ask, wanted, &Fuse::default()).await.unwrap().unwrap_or_else(|error| panic!("{error:?}"));
        let left = arrival.plan.as_ref().map(|plan| (&plan.blocked, &plan.refusals));
        assert!(arrival.is_complete(), "{:#?}\n{left:#?}", arrival.outcome);
        arrival
    }

    async fn plan(&self, wanted: &[Wanted]) -> (Audited, Facts) {
        let (sites, environment) = (self.sites(wanted, self.provider(&Fuse::default())), "staging".parse().unwrap());
        plan_with_refresh(&self.road(&sites, &environment, &Fuse::default()), UP)
            .await
            .unwrap_or_else(|error| panic!("{error:?}"))
    }

    async fn state(&self) -> State {
        State::load(Arc::new(self.disk.clone()), &"staging".parse().unwrap(), Lineage(Uuid::nil())).await.unwrap()
    }

    /// What is there of ours, by name and uid.
    async fn objects(&self, cluster: &Cluster) -> BTreeMap<String, String> {
        let api = cluster.api();
        let namespace = &self.namespace;
        let mut found = BTreeMap::new();
        for (name, path) in [
            ("space", format!("/api/v1/namespaces/{namespace}")),
            ("settings", format!("/api/v1/namespaces/{namespace}/configmaps/settings")),
            ("web", format!("/apis/apps/v1/namespaces/{namespace}/deployments/web")),
        ] {
            if let Some(object) = api.get(&path).await {
                found.insert(name.to_owned(), object["metadata"]["uid"].as_str().unwrap().to_owned());
            }
        }
        found
    }

    /// Everything is there once, recorded as it is, nothing is open, and nothing is left to do.
    async fn is_whole(&self, wanted: &[Wanted]) {
        self.is_whole_in(self.cluster, wanted).await;
    }

    async fn is_whole_in(&self, cluster: &Cluster, wanted: &[Wanted]) {
        let clusters: Vec<_> = self.cloud.things().into_iter().map(|thing| thing.cloud_id).collect();
        assert_eq!(clusters.len(), 1, "{clusters:?}");
        let state = self.state().await;
        assert!(state.open(&here()).unwrap().is_empty());
        let there = self.objects(cluster).await;
        assert_eq!(there.len(), 3, "{there:?}");
        for (id, holding) in state.holdings(&here()).unwrap() {
            assert!(holding.old.is_empty());
            let recorded = holding.current.unwrap();
            if let Some(uid) = there.get(id.component()) {
                assert!(recorded.cloud_id.as_str().ends_with(uid.as_str()), "{recorded:?} {uid}");
                assert_eq!(recorded.via, Some(Ref(self::id("cluster"))));
            }
        }
        let (plan, _) = self.plan(wanted).await;
        assert!(plan.plan().steps.is_empty() && plan.plan().is_complete(), "{:#?}", plan.plan());
        assert_eq!(self.cloud.complaints(), [""; 0]);
    }

    /// No token, and no way in but what the outputs say, is written down anywhere.
    fn keeps_tokens_to_itself(&self, written: &str) {
        for token in self.tokens.given.lock().unwrap().iter() {
            assert!(!written.contains(token.as_str()), "a token was written down");
        }
    }

    /// The namespace goes by itself, sooner or later.
    fn leave(&self) {
        self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false", "--ignore-not-found"]);
    }
}

fn runs(story: impl Future<Output = ()>) {
    Runtime::new().unwrap().block_on(story);
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| format!("{} {}", verbs(step), step.resource.component())).collect()
}

fn verbs(step: &textnlp_orchestrator::plan::Step) -> String {
    let verbs: Vec<String> = step.node.calls().iter().map(|call| call.verb().to_string()).collect();
    if verbs.is_empty() { "note".to_owned() } else { verbs.join("|") }
}

#[test]
fn missing_cluster_is_planned_created_and_removed_with_its_objects() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let world = World::new(cluster, "through").await;
        let wanted = world.wanted("first");
        let (plan, facts) = world.plan(&wanted).await;
        assert_eq!(steps(plan.plan()), ["create cluster", "create space", "create settings", "create web"]);
        assert!(
            facts.sites[&here()].observed.iter().all(|(_, seen)| *seen == Observed::Absent),
            "{:?}",
            facts.sites[&here()].observed
        );
        assert!(world.cloud.calls().is_empty() && world.objects(cluster).await.is_empty(), "a plan changes nothing");
        assert_eq!(world.tokens.asked(), 0, "nobody is asked for a token to nowhere");

        let arrival = world.done(UP, &wanted).await;
        assert_eq!(arrival.outcome.done.len(), 4);
        world.is_whole(&wanted).await;
        let plan = format!("{:?}", arrival.plan);
        world.keeps_tokens_to_itself(&(plan + &String::from_utf8_lossy(&world.disk.raw_log(&here()))));

        // What changes is changed where it is.
        let before = world.objects(cluster).await;
        let mut changed = wanted.clone();
        let mut spec = changed[2].spec.as_value().clone();
        spec["data"]["a"] = json!("2");
        changed[2].spec = Spec::of(&spec);
        let arrival = world.done(UP, &changed).await;
        assert_eq!(steps(&arrival.plan.unwrap()), ["update settings"]);
        assert_eq!(world.objects(cluster).await, before);
        world.is_whole(&changed).await;

        // What is in it goes before it does.
        let arrival = world.done(DOWN, &[]).await;
        let order: Vec<&str> = arrival.outcome.done.iter().map(|did| did.resource.component()).collect();
        assert_eq!(order, ["web", "settings", "space", "cluster"]);
        assert!(world.objects(cluster).await.is_empty() && world.cloud.things().is_empty());
    });
}

/// Kills an `up` and a `down` at every boundary between the engine, its journal and the providers.
#[test]
fn run_killed_at_any_boundary_is_completed_by_a_new_process() {
    let Some(cluster) = Cluster::shared() else { return };
    let tokens = Tokens::of(cluster);
    let (up, down) = (Fuse::default(), Fuse::default());
    runs(async {
        let whole = World::with(cluster, "killed", tokens.clone()).await;
        whole.go(UP, &whole.wanted("first"), &up).await.unwrap().unwrap();
        whole.go(DOWN, &[], &down).await.unwrap().unwrap();
    });
    let (ups, downs) = (up.crossed(), down.crossed());
    assert!(ups > 30 && downs > 20, "{ups} {downs}");
    let one = async |boundary: u64| {
        let world = World::with(cluster, "killed", tokens.clone()).await;
        let wanted = world.wanted("first");
        let is_up = boundary < ups;
        let (ask, then, boundary) =
            if is_up { (UP, wanted.clone(), boundary) } else { (DOWN, Vec::new(), boundary - ups) };
        if !is_up {
            world.done(UP, &wanted).await;
        }
        let died = world.go(ask, &then, &Fuse::blows_at(boundary)).await.is_none();
        world.done(ask, &then).await;
        match is_up {
            true => world.is_whole(&wanted).await,
            false => assert!(world.objects(cluster).await.is_empty() && world.cloud.things().is_empty()),
        }
        world.leave();
        died
    };
    // Each thread has its own time and network; what they share is the control plane.
    let (next, died) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                runs(async {
                    loop {
                        let boundary = next.fetch_add(1, Ordering::SeqCst);
                        if boundary >= ups + downs {
                            break;
                        }
                        died.fetch_add(u64::from(one(boundary).await), Ordering::SeqCst);
                    }
                });
            });
        }
    });
    // How often something slow is looked at is another number each time: the last boundaries may not be reached.
    let died = died.into_inner();
    assert!(died * 10 > (ups + downs) * 8, "{died} of {ups} + {downs}");
    eprintln!("killed at {died} boundaries of {ups} + {downs}");
}

#[test]
fn unreachable_cluster_is_unknown_and_left_unchanged() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let world = World::new(cluster, "cut").await;
        let wanted = world.wanted("first");
        // Cut before there is anything in it: the cluster is made, and what could not be begun is finished when the line is back.
        world.line.cut(true);
        let arrival = world.go(UP, &wanted, &Fuse::default()).await.unwrap().unwrap();
        assert!(!arrival.is_complete() && world.cloud.things().len() == 1, "{:#?}", arrival.outcome);
        world.line.cut(false);
        world.done(UP, &wanted).await;
        world.is_whole(&wanted).await;

        world.line.cut(true);
        let before = world.objects(cluster).await;
        let unknown = |(plan, facts): (Audited, Facts), why: &str| {
            let plan = plan.plan();
            assert!(plan.steps.is_empty() && plan.blocked.len() == 3, "{plan:#?}");
            let seen = facts.sites[&here()].observed.iter().filter(|(one, _)| *one != id("cluster"));
            for (id, seen) in seen {
                assert!(
                    matches!(seen, Observed::Unknown(ReadFailure(text)) if text.contains("here/cluster") && text.contains(why)),
                    "{id}: {seen:?}"
                );
            }
        };
        unknown(world.plan(&wanted).await, "");
        // Nobody gives it up, and nothing of it is forgotten.
        let arrival = world.go(DOWN, &[], &Fuse::default()).await.unwrap().unwrap();
        assert!(!arrival.is_complete() && arrival.outcome.done.is_empty(), "{:#?}", arrival.outcome);
        world.line.cut(false);
        assert_eq!(world.objects(cluster).await, before);

        world.tokens.goes(How::Fails);
        unknown(world.plan(&wanted).await, "the session of ada has ended");
        world.tokens.goes(How::Hangs);
        let planned = tokio::time::timeout(Duration::from_secs(300), world.plan(&wanted)).await;
        unknown(planned.expect("a plan without the token"), "did not arrive within 4s");
        world.tokens.goes(How::Well);
        world.is_whole(&wanted).await;
        world.leave();
    });
}

#[test]
fn expired_or_rejected_cluster_token_is_requested_again() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let world = World::new(cluster, "tokens").await;
        let wanted = world.wanted("first");
        world.tokens.goes(How::SpoiledOnce);
        world.done(UP, &wanted).await;
        assert_eq!(world.tokens.asked(), 2, "one of no use, one for all that followed");

        // Another process, whose tokens have ended before they come, by a clock that is wrong: what is good is told by whoever takes it, and
        // nobody asks for one with each call.
        *world.tokens.lives.lock().unwrap() = Duration::ZERO;
        world.is_whole(&wanted).await;
        assert!((3..20).contains(&world.tokens.asked()), "{}", world.tokens.asked());
        *world.tokens.lives.lock().unwrap() = Duration::from_secs(600);

        // Revoked under a process that goes on: API servers remember for seconds whom they knew.
        let sites = world.sites(&wanted, world.provider(&Fuse::default()));
        let environment = "staging".parse().unwrap();
        let road = world.road(&sites, &environment, &Fuse::default());
        let whole = async || assert!(plan_with_refresh(&road, UP).await.unwrap().0.plan().is_complete());
        whole().await;
        let asked = world.tokens.asked();
        whole().await;
        assert_eq!(world.tokens.asked(), asked, "one that is good is kept");
        world.tokens.revoke();
        let until = Instant::now() + Duration::from_secs(60);
        while world.tokens.asked() == asked {
            assert!(Instant::now() < until, "the API server goes on taking the old one");
            whole().await;
        }
        assert_eq!(world.tokens.asked(), asked + 1);
        world.leave();
    });
}

#[test]
fn new_process_resumes_with_a_cluster_at_another_address() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let tokens = Tokens::of(cluster);
        let mut boundary = 10;
        // Somewhere in there the namespace is begun and not recorded.
        let world = loop {
            let world = World::with(cluster, "moved", tokens.clone()).await;
            let fuse = Fuse::blows_at(boundary);
            assert!(world.go(UP, &world.wanted("first"), &fuse).await.is_none(), "it never came to the namespace");
            if fuse.last().is_some_and(|last| last.starts_with("after begin create here/space")) {
                break world;
            }
            world.leave();
            boundary += 1;
        };
        let wanted = world.wanted("first");
        let new = Line::to(cluster).await;
        world.line.cut(true);
        world.addresses.lock().unwrap().get_mut("first").unwrap().url.clone_from(&new.url);
        let arrival = world.done(UP, &wanted).await;
        assert!(arrival.recovered > 0, "{:#?}", arrival.outcome);
        world.is_whole(&wanted).await;
        world.leave();
    });
}

#[test]
fn replaced_cluster_gets_its_objects_recreated() {
    let (Some(first), Some(second)) = (Cluster::shared(), Cluster::second()) else { return };
    runs(async {
        let mut world = World::new(first, "replaced").await;
        let there = Address { url: second.url().to_owned(), ca: second.ca_pem().to_owned() };
        world.addresses.lock().unwrap().insert("second".to_owned(), there);
        world.others.push((second.ca_pem().to_owned(), Tokens::of(second)));
        let wanted = world.wanted("first");
        world.done(UP, &wanted).await;
        let before = world.objects(first).await;

        let moved = world.wanted("second");
        let fuse = Fuse::default();
        let arrival = world.go(UP, &moved, &fuse).await.unwrap().unwrap();
        assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
        let did: Vec<String> =
            arrival.outcome.done.iter().map(|did| format!("{} {}", did.verb, did.resource.component())).collect();
        let order =
            ["delete web", "delete settings", "delete space", "delete cluster", "create cluster", "create space"];
        assert_eq!(did[..6], order, "{did:?}");
        assert!(world.objects(first).await.is_empty());
        let after = world.objects(second).await;
        assert!(after.len() == 3 && before.values().all(|uid| !after.values().any(|new| new == uid)));
        world.is_whole_in(second, &moved).await;

        // One whose objects nobody wants any more is emptied before it is replaced, and two stand beside one another.
        let mut both = world.wanted("first");
        both.truncate(1);
        world.done(UP, &both).await;
        assert!(world.objects(second).await.is_empty(), "nothing is left behind in the old one");
        both.extend(world.wanted("first").split_off(1));
        both.push(want("other", "memory.cluster", None, &[], json!({ "fixed": "second" })));
        for one in world.wanted("second").split_off(1) {
            let name = |of: &str| format!("other-{of}");
            let needs = one.needs.iter().map(|need| Need::on(id(&name(need.on.component())))).collect();
            both.push(Wanted { id: id(&name(one.id.component())), via: Some(Ref(id("other"))), needs, ..one });
        }
        world.done(UP, &both).await;
        assert!(world.objects(first).await.len() == 3 && world.objects(second).await.len() == 3);
        assert!(world.plan(&both).await.0.plan().steps.is_empty());
        world.done(DOWN, &[]).await;
        assert!(world.objects(first).await.is_empty() && world.objects(second).await.is_empty());
        assert!(world.cloud.things().is_empty());
    });
}

#[test]
fn external_objects_of_controllers_are_removed_before_the_cluster() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let world = World::new(cluster, "balanced").await;
        let mut wanted = world.wanted("first");
        let balanced = json!({
            "metadata": { "name": "web", "namespace": world.namespace },
            "spec": { "type": "LoadBalancer", "ports": [{ "name": "http", "port": 80 }], "selector": { "app": "web" } },
        });
        wanted.push(want("balanced", "kubernetes.service", Some("cluster"), &["web"], balanced));
        // Stands for the controller of a cloud: a load balancer for the service, and its finalizer for as long as that is there.
        let (api, cloud) = (cluster.api(), world.cloud.clone());
        let path = format!("/api/v1/namespaces/{}/services/web", world.namespace);
        let controller = tokio::spawn(async move {
            let finalizers = |list: Value| json!({ "metadata": { "finalizers": list } });
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let Some(service) = api.get(&path).await else { continue };
                if service["metadata"]["deletionTimestamp"].is_string() {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    let cluster_is_there = cloud.things().len() == 1;
                    api.call("PATCH", &path, Some(&finalizers(json!([])))).await.unwrap().ok();
                    return cluster_is_there;
                }
                if service["status"]["loadBalancer"]["ingress"].is_null() {
                    let held = finalizers(json!(["service.kubernetes.io/load-balancer-cleanup"]));
                    api.call("PATCH", &path, Some(&held)).await.unwrap().ok();
                    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } } });
                    api.call("PATCH", &format!("{path}/status"), Some(&status)).await.unwrap().ok();
                }
            }
        });
        world.done(UP, &wanted).await;
        assert!(world.plan(&wanted).await.0.plan().steps.is_empty());
        world.done(DOWN, &[]).await;
        assert!(controller.await.unwrap(), "the cluster went before its load balancer");
        assert!(world.objects(cluster).await.is_empty() && world.cloud.things().is_empty());
    });
}

#[test]
fn existing_cluster_is_used_from_the_first_up_and_kept() {
    let Some(cluster) = Cluster::shared() else { return };
    runs(async {
        let world = World::new(cluster, "existing").await;
        let cloud_id = CloudId::new("cluster-of-ada").unwrap();
        let kind = KindName::new("memory.cluster").unwrap();
        world.cloud.place_foreign(&kind, &cloud_id, None, Spec::of(&json!({ "fixed": "first" })));
        let mut wanted = world.wanted("first");
        wanted[0].ownership = Ownership::External(cloud_id);
        world.done(UP, &wanted).await;
        world.is_whole(&wanted).await;

        // Another one in its place is not taken for one in which everything is gone.
        let other = CloudId::new("cluster-of-bob").unwrap();
        world.cloud.place_foreign(&kind, &other, None, Spec::of(&json!({ "fixed": "first" })));
        let mut moved = wanted.clone();
        moved[0].ownership = Ownership::External(other.clone());
        let (plan, _) = world.plan(&moved).await;
        let refused = format!("{:?}", plan.plan().refusals);
        assert!(refused.contains("recorded in `cluster-of-ada`, not in `cluster-of-bob`"), "{refused}");
        assert!(plan.plan().steps.is_empty(), "{:#?}", plan.plan().steps);
        world.done(DOWN, &[]).await;
        assert!(world.objects(cluster).await.is_empty() && world.cloud.things().len() == 2, "what exists stays");
    });
}
