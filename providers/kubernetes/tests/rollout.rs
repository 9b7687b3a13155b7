//! A rollout of two sets of pods on real controllers, whose job is lost at each change that it makes: another pod of it, or the next look of
//! an operator, brings it to an end, and at no time are clients led to nobody.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub, missing_docs, dead_code)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use textnlp_kubernetes::{Kubernetes, ORDERS, Scrape, Stage};
use textnlp_provider::{Effect, FieldChange, Handle, Operation, Progress, Provider, Verb, Wanted};

mod cut;
mod world;

use cut::{Cut, Side};
use world::{World, deployment, operation};

/// More changes than a rollout makes.
const CHANGES: u32 = 17;
/// As many as one makes at least.
const MADE: usize = 13;
/// How many rollouts go on at once.
const AT_ONCE: usize = 6;
/// None takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(100);
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
struct Site {
    world: World,
    update: Operation,
    figures: Figures,
}

impl Site {
    async fn new(is_bad: bool) -> Option<Self> {
        let world = World::new("rolled")?;
        world.cluster.kubelet();
        let ports = json!({ "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } });
        let budget = json!({ "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
        let made = |wanted: Wanted| {
            let world = &world;
            async move { world.bench().make(&wanted).await.unwrap_or_else(|breach| panic!("{breach}")) }
        };
        made(world.want("service", "web", ports)).await;
        made(world.want("pod-disruption-budget", "web", budget)).await;
        let recorded = made(release(&world, OLD)).await;
        let mut update = operation(&world, 9, Verb::Update, &release(&world, NEW), Some(&recorded));
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
        self.world.cluster.api().get(&path).await.unwrap_or_default()
    }

    async fn selector(&self) -> Value {
        self.get("api/v1 services/web").await["spec"]["selector"].clone()
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
        let selector = self.selector().await;
        let labels = selector.as_object().cloned().unwrap_or_default();
        let answers = self.pods().await.iter().any(|pod| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|one| one["type"] == "Ready" && one["status"] == "True");
            ready.next().is_some() && labels.iter().all(|(name, value)| pod["metadata"]["labels"][name] == *value)
        });
        // They were led elsewhere between two looks.
        answers || self.selector().await != selector
    }

    /// As the job's pod does it, until its connection is lost; `None` when it is.
    async fn see_to(&self, cut: &Cut) -> Option<Stage> {
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
            told = kubernetes.see_to(&orders, &self.figures, &|_| ()) => Some(told.unwrap().stage),
            () = lost => None,
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
                Err(error) => assert!(error.sort.may_pass(), "{error}"),
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

fn release(world: &World, command: &str) -> Wanted {
    let mut spec = deployment(2, &["sh", "-c", command]);
    let rolled = json!({ "bake_seconds": 1, "deadline_seconds": 60, "slow_ms": 500, "error_rate": 0.01 });
    spec["metadata"] = json!({ "annotations": { "textnlp-canary": rolled.to_string() } });
    spec["spec"]["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } });
    spec["spec"]["template"]["metadata"]["annotations"] = json!({ "what-it-reads": command });
    world.want("deployment", "web", spec)
}

/// A rollout whose job is lost at a change; whether it came to that one.
async fn lost_at(change: u32, side: Side, is_bad: bool, then: Then) -> Option<bool> {
    let about = format!("change {change}, {side:?}, bad: {is_bad}, then {then:?}");
    let site = Site::new(is_bad).await?;
    let Progress::Pending { mut handle, .. } = site.world.provider.begin(&site.update).await.unwrap() else {
        panic!("{about}: it is over too soon")
    };
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
            let stage = site.see_to(&cut).await;
            let known = site.deployment().await["metadata"]["annotations"]["textnlp-rollout-told"].is_string();
            // An operator who is killed as soon as the pods change waits until then for somebody's word.
            let again = match (stage, then) {
                (None, Then::Another) if !known => site.see_to(&Cut::at(u32::MAX, Side::Before)).await,
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
            let stage = site.see_to(&Cut::at(u32::MAX, Side::Before)).await.unwrap();
            assert_eq!(stage, if is_bad { Stage::Reverted } else { Stage::Promoted }, "{about}");
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

async fn lost_at_each(then: Then, sides: &[Side]) {
    let mut tries = Vec::new();
    for is_bad in [false, true] {
        for side in sides {
            tries.extend((0..CHANGES).map(|change| (change, *side, is_bad)));
        }
    }
    let all = tries.len();
    let tried = tries.into_iter().map(|(change, side, is_bad)| lost_at(change, side, is_bad, then));
    let tried: Vec<Option<bool>> = futures::stream::iter(tried).buffer_unordered(AT_ONCE).collect().await;
    if tried.contains(&None) {
        return;
    }
    let lost = tried.iter().filter(|lost| **lost == Some(true)).count();
    eprintln!("{then:?}: of {all} rollouts the job was lost in {lost}");
    assert!(lost >= 2 * sides.len() * MADE && lost < all, "at each change, and at none after the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_of_the_job_finishes_what_was_begun_wherever_it_was_lost() {
    lost_at_each(Then::Another, &[Side::Before, Side::After]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_comes_back_puts_back_what_nobody_finishes() {
    lost_at_each(Then::Nobody, &[Side::After]).await;
}
