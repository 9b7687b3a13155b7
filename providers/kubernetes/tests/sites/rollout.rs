//! A rollout of two sets of pods on real controllers, to which clients are led at once or by shares, whose job is lost at each change that it makes: another pod of it, or the next look of
//! an operator, brings it to an end, and at no time are clients led to nobody.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use textnlp_kubernetes::{Kubernetes, ORDERS, OperatorCommand, QueryApi, Scrape, Stage};
use textnlp_provider::{Effect, FieldChange, Handle, Operation, Progress, Provider, Verb, Wanted};

use crate::cut::{Cut, Side};
use crate::seeds;
use crate::world::{World, deployment, operation};

/// More changes than a rollout makes.
const CHANGES: u32 = 17;
/// As many as one makes at least.
const MADE: usize = 13;
/// One run tries one change in so many, another commit the next.
const ROTATION: u32 = 3;
/// How many rollouts go on at once.
const AT_ONCE: usize = 6;
/// And with those of other tests.
static PLACES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2 * AT_ONCE);
/// None takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Dozens of rollouts poll one API server at once.
const TICK: Duration = Duration::from_millis(250);
const OLD: &str = "exec sleep 100000";
const NEW: &str = "exec sleep 200000";

/// Who comes when the job is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Another pod of it.
    Another,
    /// Nobody: the job is removed, and somebody runs `up`.
    Nobody,
}

/// How clients are led to new pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Led {
    /// All at once, by the selector of the service.
    AtOnce,
    /// A share of them, by the weights of a route.
    ByShare,
}

/// Figures of pods, of which those that are not old answer badly, if they are to.
struct Figures {
    old: BTreeSet<IpAddr>,
    is_bad: bool,
    asked: AtomicU64,
}

#[async_trait]
impl Scrape for Figures {
    async fn scrape(&self, address: IpAddr, _: u16) -> Result<String, String> {
        let asked = self.asked.fetch_add(50, Ordering::SeqCst);
        let status = if self.is_bad && !self.old.contains(&address) { 500 } else { 200 };
        Ok(format!("http_requests_total{{method=\"POST\",route=\"/v1/generate\",status=\"{status}\"}} {asked}\n"))
    }
}

/// A deployment, its service and its budget in a namespace of their own.
#[async_trait]
impl QueryApi for Figures {
    async fn ask(&self, _: &str, _: &str) -> Result<(u16, String), String> {
        panic!("nobody wrote a question")
    }
}

struct Site {
    world: World,
    update: Operation,
    figures: Figures,
}

impl Site {
    async fn new(is_bad: bool, led: Led) -> Option<Self> {
        let world = World::new("rolled")?;
        world.cluster.kubelet();
        if led == Led::ByShare && !world.cluster.define("gateway-api") {
            return None;
        }
        let ports = json!({ "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } });
        let budget = json!({ "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
        let made = |wanted: Wanted| {
            let world = &world;
            async move { world.bench().make(&wanted).await.unwrap_or_else(|breach| panic!("{breach}")) }
        };
        made(world.want("service", "web", ports.clone())).await;
        if led == Led::ByShare {
            made(world.want("service", "web-new", ports)).await;
            // No gateway looks at it, and nobody waits for one.
            let create = operation(&world, 8, Verb::Create, &route(&world), None);
            world.provider.begin(&create).await.unwrap();
        }
        made(world.want("pod-disruption-budget", "web", budget)).await;
        let recorded = made(release(&world, OLD, led)).await;
        let mut update = operation(&world, 9, Verb::Update, &release(&world, NEW, led), Some(&recorded));
        let field = "spec.template.spec.containers.web.command".to_owned();
        update.changes = vec![FieldChange { field, before: None, after: None, effect: Effect::InPlace }];
        let mut site =
            Self { world, update, figures: Figures { old: BTreeSet::new(), is_bad, asked: AtomicU64::new(0) } };
        site.figures.old =
            site.pods().await.iter().map(|pod| pod["status"]["podIP"].as_str().unwrap().parse().unwrap()).collect();
        assert_eq!(site.figures.old.len(), 2);
        Some(site)
    }

    async fn get(&self, path: &str) -> Value {
        let (group, rest) = path.split_once(' ').unwrap();
        let path = format!("/{group}/namespaces/{}/{rest}", self.world.namespace);
        let begun = Instant::now();
        loop {
            // A busy API server drops connections.
            match self.world.cluster.api().call("GET", &path, None).await {
                Ok(answer) if answer.status == 404 => return Value::Null,
                Ok(answer) if answer.status < 300 => return answer.body,
                other => assert!(begun.elapsed() < PATIENCE, "{path}: {other:?}"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn selector(&self) -> Value {
        self.get("api/v1 services/web").await["spec"]["selector"].clone()
    }

    /// What a route leads to its second service, and whom that asks for; `None` where there is no route.
    async fn shared(&self) -> Option<(u64, Value)> {
        let route = self.get("apis/gateway.networking.k8s.io/v1 httproutes/web").await;
        let share = route.pointer("/spec/rules/0/backendRefs/1/weight")?.as_u64()?;
        Some((share, self.get("api/v1 services/web-new").await["spec"]["selector"].clone()))
    }

    /// Those that stay.
    async fn pods(&self) -> Vec<Value> {
        let listed = self.get("api/v1 pods?labelSelector=app=web").await;
        let mut pods = listed["items"].as_array().cloned().unwrap_or_default();
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    async fn deployment(&self) -> Value {
        self.get("apis/apps/v1 deployments/web").await
    }

    async fn job(&self) -> Value {
        self.get("apis/batch/v1 jobs").await["items"][0].clone()
    }

    /// Whether a pod that is ready is among those that clients are led to.
    async fn somebody_answers(&self) -> bool {
        let (selector, shared) = (self.selector().await, self.shared().await);
        let pods = self.pods().await;
        let answers = |selector: &Value| {
            let labels = selector.as_object().cloned().unwrap_or_default();
            pods.iter().any(|pod| {
                let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                let mut ready = conditions.filter(|one| one["type"] == "Ready" && one["status"] == "True");
                ready.next().is_some() && labels.iter().all(|(name, value)| pod["metadata"]["labels"][name] == *value)
            })
        };
        let all = answers(&selector)
            && shared.as_ref().is_none_or(|(share, selector)| {
                assert!([0, 10].contains(share), "{share}");
                *share == 0 || answers(selector)
            });
        // They were led elsewhere between two looks.
        all || self.selector().await != selector || self.shared().await != shared
    }

    /// As the job's pod does it, until its connection is lost; `None` when it is.
    async fn run_rollout(&self, cut: &Cut) -> Option<Stage> {
        let job = self.job().await;
        let variables = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let orders = variables.iter().find(|one| one["name"] == ORDERS).unwrap()["value"].as_str().unwrap();
        let orders = orders.replace("$$", "$");
        let kubernetes = Kubernetes::with_client(cut.client(&self.world.cluster.admin()).await, self.world.vault());
        let lost = async {
            while !cut.happened() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            told = kubernetes.run_rollout(&orders, (&self.figures, &self.figures), &|_| ()) => Some(told.unwrap().stage),
            () = lost => None,
        }
    }

    /// As `up` begins it, again where the API server is busy.
    async fn begin(&self) -> Handle {
        let begun = Instant::now();
        loop {
            match self.world.provider.begin(&self.update).await {
                Ok(Progress::Pending { handle, .. }) => return handle,
                Ok(ended) => panic!("it is over too soon: {ended:?}"),
                Err(error) => assert!(error.kind.may_pass() && begun.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// As `up` waits: until it is done, or only until the pods change.
    async fn wait(&self, handle: &mut Handle, until_held: bool) -> Option<Progress> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "{:#}", self.deployment().await);
            if until_held && self.deployment().await["metadata"]["annotations"]["textnlp-rollout"].is_string() {
                return None;
            }
            match self.world.provider.advance(&self.update, handle).await {
                Ok(Progress::Pending { handle: next, .. }) => *handle = next,
                Ok(ended) => return Some(ended),
                Err(error) => assert!(error.kind.may_pass(), "{error}"),
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

fn route(world: &World) -> Wanted {
    let backend =
        |name: &str, weight: u64| json!({ "group": "", "kind": "Service", "name": name, "port": 80, "weight": weight });
    let gateway = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "any" });
    let rule = json!({
        "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
        "backendRefs": [backend("web", 100), backend("web-new", 0)],
    });
    world.want("http-route", "web", json!({ "spec": { "parentRefs": [gateway], "rules": [rule] } }))
}

fn release(world: &World, command: &str, led: Led) -> Wanted {
    let mut spec = deployment(2, &["sh", "-c", command]);
    let mut rolled = json!({ "bake_seconds": 1, "deadline_seconds": 60, "slow_ms": 500, "error_rate": 0.01 });
    if led == Led::ByShare {
        rolled["share"] = json!(10);
        rolled["weighted"] = json!(true);
    }
    spec["metadata"] = json!({ "annotations": { "textnlp-canary": rolled.to_string() } });
    spec["spec"]["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } });
    spec["spec"]["template"]["metadata"]["annotations"] = json!({ "what-it-reads": command });
    world.want("deployment", "web", spec)
}

/// A rollout whose job is lost at a change; whether it came to that one.
async fn lost_at((change, side): (u32, Side), led: Led, is_bad: bool, then: Then) -> Option<bool> {
    let about = format!("{led:?}, change {change}, {side:?}, bad: {is_bad}, then {then:?}");
    let _place = PLACES.acquire().await.unwrap();
    let site = Site::new(is_bad, led).await?;
    let mut handle = site.begin().await;
    let over = AtomicBool::new(false);
    let watched = async {
        while !over.load(Ordering::SeqCst) {
            assert!(site.somebody_answers().await, "{about}: nobody answers: {}", site.selector().await);
            tokio::time::sleep(TICK).await;
        }
    };
    let rolled = async {
        let cut = Cut::at_change(change, side);
        let lost = async {
            let stage = site.run_rollout(&cut).await;
            let known = site.deployment().await["metadata"]["annotations"]["textnlp-rollout-told"].is_string();
            // An operator who is killed as soon as the pods change waits until then for somebody's word.
            let again = match (stage, then) {
                (None, Then::Another) if !known => site.run_rollout(&Cut::at(u32::MAX, Side::Before)).await,
                _ => stage,
            };
            (stage, again)
        };
        let wait = site.wait(&mut handle, true);
        let ((stage, again), ended) = match then {
            Then::Another => tokio::join!(lost, wait),
            Then::Nobody => {
                let lost = async {
                    let ended = lost.await;
                    let name = site.job().await["metadata"]["name"].as_str().unwrap().to_owned();
                    let args = ["delete", "job", &name, "-n", &site.world.namespace, "--wait=false"];
                    assert!(site.world.cluster.kubectl(&args).status.success());
                    ended
                };
                tokio::join!(lost, wait)
            }
        };
        if then == Then::Another && again.is_none() {
            let stage = site.run_rollout(&Cut::at(u32::MAX, Side::Before)).await.unwrap();
            let told = site.deployment().await["metadata"]["annotations"]["textnlp-rollout-told"].clone();
            assert_eq!(stage, if is_bad { Stage::Reverted } else { Stage::Promoted }, "{about}: {told}");
        }
        let ended = match ended {
            Some(ended) => ended,
            None => site.wait(&mut handle, false).await.unwrap(),
        };
        over.store(true, Ordering::SeqCst);
        (stage.is_none(), ended)
    };
    let ((), (was_lost, ended)) = tokio::join!(watched, rolled);
    let is_new = matches!(ended, Progress::Done(_));
    if then == Then::Another {
        assert_eq!(is_new, !is_bad, "{about}: {ended:?}");
    }
    assert!(!(is_new && is_bad), "{about}: {ended:?}");
    assert_eq!(site.selector().await, json!({ "app": "web" }), "{about}");
    if led == Led::ByShare {
        assert_eq!(site.shared().await, Some((0, json!({ "app": "web" }))), "{about}");
        let route = site.get("apis/gateway.networking.k8s.io/v1 httproutes/web").await;
        assert_eq!(route["metadata"]["annotations"]["textnlp-rollout"], Value::Null, "{about}");
        assert_eq!(route.pointer("/spec/rules/0/backendRefs/0/weight"), Some(&json!(100)), "{about}");
    }
    let budget = site.get("apis/policy/v1 poddisruptionbudgets/web").await;
    assert_eq!(budget["spec"]["selector"], json!({ "matchLabels": { "app": "web" } }), "{about}");
    let command = json!(["sh", "-c", if is_new { NEW } else { OLD }]);
    let deployment = site.deployment().await;
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["command"], command, "{about}");
    let pods = site.pods().await;
    assert_eq!(pods.len(), 2, "{about}");
    assert!(pods.iter().all(|pod| pod["spec"]["containers"][0]["command"] == command), "{about}");
    site.world.cluster.kubectl(&["delete", "namespace", &site.world.namespace, "--wait=false"]);
    Some(was_lost)
}

/// The changes at which this run loses the job: one in three, in the turn of the first seed, and the last, to which no rollout comes. All of
/// them where `TEXTNLP_TESTS_EVERY` is set.
fn sample(about: &str) -> Vec<u32> {
    let every = std::env::var_os("TEXTNLP_TESTS_EVERY").is_some();
    let turn = seeds::first_seed() % u64::from(ROTATION);
    let (tried, left): (Vec<u32>, Vec<u32>) =
        (0..CHANGES).partition(|change| every || u64::from(change % ROTATION) == turn || *change == CHANGES - 1);
    if !left.is_empty() {
        eprintln!("{about}: not lost at the changes {left:?} in this run; TEXTNLP_TESTS_EVERY=1 tries them too");
    }
    tried
}

async fn lost_at_each(led: Led, then: Then, sides: &[Side]) {
    let mut tries = Vec::new();
    let changes = sample(&format!("{led:?}, {then:?}"));
    for is_bad in [false, true] {
        for side in sides {
            tries.extend(changes.iter().map(|change| (*change, *side, is_bad)));
        }
    }
    let all = tries.len();
    let reached = tries.iter().filter(|(change, ..)| (*change as usize) < MADE).count();
    let tried = tries.into_iter().map(|(change, side, is_bad)| lost_at((change, side), led, is_bad, then));
    let tried: Vec<Option<bool>> = futures::stream::iter(tried).buffer_unordered(AT_ONCE).collect().await;
    if tried.contains(&None) {
        return;
    }
    let lost = tried.iter().filter(|lost| **lost == Some(true)).count();
    eprintln!("{led:?}, {then:?}: of {all} rollouts the job was lost in {lost}");
    assert!(lost >= reached && lost < all, "at each change, and at none after the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_of_the_rollout_job_completes_the_interrupted_switch() {
    lost_at_each(Led::AtOnce, Then::Another, &[Side::Before, Side::After]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn returning_operator_reverts_an_abandoned_rollout() {
    lost_at_each(Led::AtOnce, Then::Nobody, &[Side::After]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weighted_traffic_is_reverted_wherever_the_job_was_lost() {
    lost_at_each(Led::ByShare, Then::Another, &[Side::Before, Side::After]).await;
    lost_at_each(Led::ByShare, Then::Nobody, &[Side::After]).await;
}

/// As long as clients are shared nothing of that is drift, nobody changes the route beside it, and whoever makes something else of it is not
/// overruled: the old pods are behind it then.
#[tokio::test(flavor = "multi_thread")]
async fn route_changed_by_another_manager_is_kept_and_the_old_pods_restored() {
    let Some(site) = Site::new(false, Led::ByShare).await else { return };
    let (world, wanted) = (&site.world, route(&site.world));
    let mut handle = site.begin().await;
    let never = Cut::at(u32::MAX, Side::Before);
    let path = format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes/web", world.namespace);
    let changed = async {
        let begun = Instant::now();
        while site.shared().await.is_none_or(|(share, _)| share == 0) {
            assert!(begun.elapsed() < PATIENCE, "{:#}", site.deployment().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let place = (world.namespace.as_str(), world.lineage);
        world.provider.record_command(place, "web", OperatorCommand::Pause).await.unwrap();
        let live = world.cluster.api().get(&path).await.unwrap();
        let id = format!("{}/web/{}", world.namespace, live["metadata"]["uid"].as_str().unwrap());
        let seen = world.provider.read(&wanted.kind, &id.parse().unwrap()).await.unwrap();
        let textnlp_provider::Observed::Present(seen) = seen else { panic!("{seen:?}") };
        let mut recorded = site.update.recorded.clone().unwrap();
        (recorded.kind, recorded.cloud_id, recorded.spec) =
            (wanted.kind.clone(), seen.cloud_id.clone(), wanted.spec.clone());
        assert_eq!(world.provider.diff(&wanted, &recorded, &seen), [], "no plan takes that back");
        let update = operation(world, 10, Verb::Update, &wanted, Some(&recorded));
        let refused = world.provider.begin(&update).await.unwrap_err();
        let refused = textnlp_provider::error_chain(&refused);
        assert!(refused.contains("which uses its weights"), "{refused}");
        let mut rules = live["spec"]["rules"].clone();
        for backend in rules[0]["backendRefs"].as_array_mut().unwrap() {
            backend["weight"] = json!(50);
        }
        let change = json!({ "spec": { "rules": rules } });
        world.cluster.api().call("PATCH", &path, Some(&change)).await.unwrap().ok();
    };
    let (stage, held, ()) = tokio::join!(site.run_rollout(&never), site.wait(&mut handle, true), changed);
    assert!(held.is_none());
    assert_eq!(stage, Some(Stage::Reverted));
    let told = site.deployment().await["metadata"]["annotations"]["textnlp-rollout-told"].clone();
    assert!(told.as_str().unwrap().contains("the HTTPRoute was changed in the meantime"), "{told}");
    assert_eq!(site.shared().await, Some((50, json!({ "app": "web" }))), "it is left as it is");
    let pods = site.pods().await;
    let old = json!(["sh", "-c", OLD]);
    assert!(pods.len() == 2 && pods.iter().all(|pod| pod["spec"]["containers"][0]["command"] == old));
}
