//! A cloud, a disk and a clock, and a short way to say what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Answer, Gates, Limits};
use textnlp_orchestrator::clock::VirtualClock;
use textnlp_orchestrator::event::{Event, EventKind};
use textnlp_orchestrator::plan::{Audited, DeleteData, Facts, Node, Plan, Purpose, Step};
use textnlp_orchestrator::run::{Run, RunError, RunOptions, RunOutcome, RunSite, plan_with_refresh, run_phases};
use textnlp_orchestrator::state::{MemoryStore, Operator, SiteLocation, State, Store};
use textnlp_orchestrator::status::{Unfinished, unfinished};
use textnlp_provider::memory::{Fuse, MemoryCloud, StoredObject};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{
    CloudId, EnvironmentName, KindName, Lineage, Need, Ownership, Ref, ResourceId, SiteName, Spec, Wanted,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub fn id(text: &str) -> ResourceId {
    ResourceId::new(text).unwrap()
}

pub fn here() -> SiteName {
    SiteName::new("here").unwrap()
}

pub fn environment() -> EnvironmentName {
    EnvironmentName::new("staging").unwrap()
}

/// `here/NAME` of a kind; needs are read off the references in the spec.
pub fn want(name: &str, kind: &str, spec: Value) -> Wanted {
    let spec = Spec::of(&spec);
    let needs = spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
    Wanted {
        id: id(&format!("here/{name}")),
        kind: KindName::new(format!("memory.{kind}")).unwrap(),
        site: here(),
        via: None,
        spec,
        needs,
        ownership: Ownership::Ours,
        protected: false,
    }
}

pub fn output(name: &str, field: &str) -> Value {
    json!({"$output": format!("here/{name}#{field}")})
}

pub fn via(mut wanted: Wanted, host: &str) -> Wanted {
    wanted.via = Some(Ref(id(&format!("here/{host}"))));
    wanted
}

pub fn needs(mut wanted: Wanted, names: &[&str]) -> Wanted {
    wanted.needs.extend(names.iter().map(|name| Need::on(id(&format!("here/{name}")))));
    wanted
}

pub fn protected(mut wanted: Wanted) -> Wanted {
    wanted.protected = true;
    wanted
}

pub fn external(mut wanted: Wanted, cloud_id: &str) -> Wanted {
    wanted.ownership = Ownership::External(CloudId::new(cloud_id).unwrap());
    wanted
}

/// The shape of a small service: every way of being recognised, slow and quick, a host and what is reached through it.
pub fn service() -> Vec<Wanted> {
    let server = json!({"models": output("store/tiny", "address"), "database": output("db", "address"), "key": output("vault/key", "version"), "config": 1});
    vec![
        want("net", "network", json!({"cidr": "10.0.0.0/16"})),
        want("cluster", "cluster", json!({"network": output("net", "id"), "size": 2})),
        want("vault", "vault", json!({})),
        want("vault/key", "secret", json!({"vault": output("vault", "id"), "recipe": "api_key"})),
        want("store", "bucket", json!({"limit": 5})),
        want("store/tiny", "model", json!({"parent": output("store", "id"), "digest": "sha256:1"})),
        want("db", "database", json!({"engine": "sqlite", "size": 1})),
        want("cache", "cache", json!({"engine": "redis"})),
        want("cert", "certificate", json!({"names": ["localhost"]})),
        via(want("server/replica-0", "server", server.clone()), "cluster"),
        via(want("server/replica-1", "server", server), "cluster"),
        want(
            "gateway",
            "gateway",
            json!({"certificate": output("cert", "version"), "backends": [output("server/replica-0", "address"), output("server/replica-1", "address")]}),
        ),
    ]
}

/// The same list with one field of one resource set otherwise.
pub fn with(mut all: Vec<Wanted>, name: &str, field: &str, value: Value) -> Vec<Wanted> {
    let wanted = all.iter_mut().find(|wanted| wanted.id == id(&format!("here/{name}"))).unwrap();
    let mut spec = wanted.spec.as_value().clone();
    spec[field] = value;
    wanted.spec = Spec::of(&spec);
    all
}

/// The same list without some resources.
pub fn without(mut all: Vec<Wanted>, names: &[&str]) -> Vec<Wanted> {
    all.retain(|wanted| !names.iter().any(|name| wanted.id == id(&format!("here/{name}"))));
    all
}

/// A cloud, a disk and a clock that outlive the runs that use them.
pub struct World {
    pub cloud: MemoryCloud,
    pub disk: MemoryStore,
    pub clock: VirtualClock,
    pub region: String,
    pub protect_data: bool,
    pub events: Mutex<Vec<Event>>,
    pub stop: Mutex<CancellationToken>,
    /// Where the state is, if not on the disk in memory.
    pub elsewhere: Option<Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>>,
    /// Who measures at gates.
    pub gate: Measured,
    lineages: AtomicU64,
}

/// A gate whose answer a test chooses, and how often it was asked.
#[derive(Default)]
pub struct Measured {
    pub shut: Mutex<Vec<String>>,
    /// It never answers.
    pub is_silent: AtomicBool,
    pub asked: AtomicU64,
}

#[async_trait]
impl Gates for Measured {
    async fn ask(&self, site: &SiteName) -> Answer {
        assert_eq!(*site, here());
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let shut = self.shut.lock().unwrap().clone();
        if shut.is_empty() { Answer::Open } else { Answer::Shut(shut) }
    }
}

impl World {
    pub fn new() -> Self {
        let cloud = MemoryCloud::new();
        cloud.slow(2);
        Self {
            cloud,
            disk: MemoryStore::default(),
            clock: VirtualClock::at("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap()),
            region: "local".to_owned(),
            protect_data: false,
            events: Mutex::default(),
            stop: Mutex::default(),
            elsewhere: None,
            gate: Measured::default(),
            lineages: AtomicU64::new(1),
        }
    }

    pub fn site(&self, wanted: &[Wanted], fuse: &Fuse) -> BTreeMap<SiteName, RunSite> {
        let place = SiteLocation {
            provider: "memory".to_owned(),
            account: "1".to_owned(),
            region: self.region.clone(),
            runtime: Runtime::Process,
        };
        let provider = Arc::new(self.cloud.with_fuse(fuse.clone()));
        let (wanted, protect_data) = (wanted.to_vec(), self.protect_data);
        BTreeMap::from([(here(), RunSite { place, provider, protect_data, wanted })])
    }

    /// Goes the road until its end or until the fuse blows.
    pub fn go(&self, ask: RunOptions, wanted: &[Wanted], fuse: &Fuse) -> Option<Result<RunOutcome, RunError>> {
        self.go_with(self.store(fuse), ask, wanted, fuse)
    }

    fn store(&self, fuse: &Fuse) -> Arc<dyn Store> {
        match &self.elsewhere {
            Some(open) => open(),
            None => Arc::new(self.disk.with_fuse(fuse.clone())),
        }
    }

    pub fn go_with(
        &self,
        store: Arc<dyn Store>,
        ask: RunOptions,
        wanted: &[Wanted],
        fuse: &Fuse,
    ) -> Option<Result<RunOutcome, RunError>> {
        let sites = self.site(wanted, fuse);
        let environment = environment();
        let events = |event: Event| self.events.lock().unwrap().push(event);
        let road = self.road(store, &sites, &environment, &events);
        let stop = self.stop.lock().unwrap().clone();
        self.clock.run_while(run_phases(&road, ask, &mut |_, _| true, &stop), || !fuse.blown())
    }

    pub fn road<'a>(
        &'a self,
        store: Arc<dyn Store>,
        sites: &'a BTreeMap<SiteName, RunSite>,
        environment: &'a EnvironmentName,
        events: &'a dyn textnlp_orchestrator::event::Events,
    ) -> Run<'a> {
        // Every run proposes another lineage; only the first one's counts.
        let fresh = Lineage(Uuid::from_u128(self.lineages.fetch_add(1, Ordering::SeqCst).into()));
        let operator = Operator {
            by: "ada".to_owned(),
            reason: Some("test".to_owned()),
            tool: "textnlp-deploy 0.1.0".to_owned(),
            host: "machine".to_owned(),
            pid: 1,
        };
        Run {
            environment,
            store,
            sites,
            apart: const { &BTreeSet::new() },
            fresh,
            operator,
            clock: Arc::new(self.clock.clone()),
            events,
            gates: Some(&self.gate),
            limits: Limits::default(),
            entry: None,
        }
    }

    pub fn plan(&self, ask: RunOptions, wanted: &[Wanted]) -> Result<(Audited, Facts), RunError> {
        let sites = self.site(wanted, &Fuse::default());
        let environment = environment();
        let store = self.store(&Fuse::default());
        let road = self.road(store, &sites, &environment, &textnlp_orchestrator::event::DiscardEvents);
        self.clock.run(plan_with_refresh(&road, ask)).unwrap()
    }

    /// Runs until nothing stands in the way that an operator can delete as the plan says. What is refused for another
    /// reason stays refused.
    pub fn converge(&self, ask: RunOptions, wanted: &[Wanted]) {
        /// How often an operator may have to delete something by hand.
        const STEPS_BY_HAND: usize = 5;
        for _ in 0..=STEPS_BY_HAND {
            // What was left open is finished, what was left broken is replaced; a maybe that turned into more is planned anew.
            for _ in 0..3 {
                match self.go(ask, wanted, &Fuse::default()).expect("the run ends") {
                    Ok(_) | Err(RunError::Refused(_) | RunError::Preflight(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            if !self.delete_unproven(ask, wanted) {
                return;
            }
        }
        panic!("something had to be deleted by hand more than {STEPS_BY_HAND} times");
    }

    /// As an operator does: deletes the objects that a plan names because no operation created them. Says whether there
    /// were any.
    pub fn delete_unproven(&self, ask: RunOptions, wanted: &[Wanted]) -> bool {
        let (audited, _) = self.plan(ask, wanted).unwrap();
        let problems = audited.plan().warnings.iter().chain(&audited.plan().refusals);
        let causes: Vec<&str> = problems.map(|problem| problem.cause.as_str()).collect();
        let is_named = |id: &CloudId| {
            let start = format!("`{id}` ");
            causes
                .iter()
                .any(|cause| cause.starts_with(&start) && cause.contains("no operation in the state created it"))
        };
        let named: Vec<CloudId> =
            self.ours().into_iter().map(|thing| thing.cloud_id).filter(|id| is_named(id)).collect();
        named.iter().for_each(|id| self.cloud.remove_foreign(id));
        !named.is_empty()
    }

    pub fn try_up(&self, wanted: &[Wanted]) -> Result<RunOutcome, RunError> {
        self.go(UP, wanted, &Fuse::default()).expect("the run ends")
    }

    pub fn up(&self, wanted: &[Wanted]) -> RunOutcome {
        let arrival = self.try_up(wanted).unwrap();
        assert!(
            arrival.is_complete(),
            "{:#?}\n{:#?}",
            arrival.outcome,
            arrival.plan.map(|plan| (plan.blocked, plan.refusals))
        );
        arrival
    }

    pub fn down(&self, ask: RunOptions) -> RunOutcome {
        self.go(ask, &[], &Fuse::default()).expect("the run ends").unwrap()
    }

    pub fn state(&self) -> State {
        let environment = environment();
        let state = State::load(self.store(&Fuse::default()), &environment, Lineage(Uuid::nil()));
        self.clock.run(state).unwrap().unwrap()
    }

    /// The runs that did not do everything that was approved.
    pub fn unfinished(&self) -> Vec<Unfinished> {
        self.clock.run(unfinished(&self.state())).unwrap().unwrap()
    }

    /// The objects of this deployment.
    pub fn ours(&self) -> Vec<StoredObject> {
        let lineage = self.state().lineage();
        self.cloud.things().into_iter().filter(|thing| thing.lineage == Some(lineage)).collect()
    }

    pub fn said(&self, find: impl Fn(&EventKind) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(|event| find(&event.what))
    }

    /// No orphan, no duplicate, no lost record, nothing open, and a second run plans nothing.
    pub fn check(&self, wanted: &[Wanted]) {
        let state = self.state();
        let ours = self.ours();
        let ids: BTreeSet<&ResourceId> = wanted.iter().map(|wanted| &wanted.id).collect();
        let there: Vec<&ResourceId> = ours.iter().filter_map(|thing| thing.resource.as_ref()).collect();
        assert_eq!(there.len(), ids.len(), "objects: {there:?}");
        assert_eq!(there.iter().copied().collect::<BTreeSet<_>>(), ids, "objects");
        let holdings = state.holdings(&here()).unwrap();
        assert_eq!(holdings.keys().collect::<BTreeSet<_>>(), ids, "records");
        for thing in &ours {
            let holding = &holdings[thing.resource.as_ref().unwrap()];
            assert_eq!(holding.current.as_ref().unwrap().cloud_id, thing.cloud_id, "the record names another object");
            assert!(holding.old.is_empty(), "{holding:?}");
            assert!(thing.spec.outputs_needed().is_empty(), "unresolved: {}", thing.spec);
            assert!(thing.broken.is_none() && thing.looks_left == 0, "{thing:?}");
            let wanted = wanted.iter().find(|wanted| Some(&wanted.id) == thing.resource.as_ref()).unwrap();
            for (field, value) in wanted.spec.fields().filter(|(_, value)| !value.to_string().contains("$output")) {
                assert_eq!(thing.spec.get(field), Some(value), "{}: {field}", wanted.id);
            }
        }
        assert!(state.open(&here()).unwrap().is_empty(), "open operations");
        let mutations = self.cloud.mutations();
        let again = self.up(wanted);
        let plan = again.plan.unwrap();
        assert!(plan.steps.is_empty(), "the second run plans {:#?}", plan.steps);
        assert_eq!(self.cloud.mutations(), mutations, "the second run changed something");
        assert_eq!(self.unfinished(), [], "a run that did everything is completed");
    }
}

pub const UP: RunOptions = RunOptions::UP;
pub const GATED: RunOptions = RunOptions { gated: true, ..UP };
pub const DOWN: RunOptions = RunOptions { purpose: Purpose::Down, ..UP };
pub const DOWN_WITH_DATA: RunOptions = RunOptions { delete_data: DeleteData::All, ..DOWN };

/// A plan in lines: `VERB RESOURCE (fields) <- steps it waits for`.
pub fn lines(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(line).collect()
}

fn line(step: &Step) -> String {
    let what = match &step.node {
        Node::Call(call) => call_text(call),
        Node::OneOf(one) => {
            let all: Vec<_> = one.alternatives.iter().map(|alternative| alternative.branch.to_string()).collect();
            all.join("|")
        }
        Node::Note(note) => format!("note {}", serde_json::to_value(note).unwrap()["note"].as_str().unwrap()),
        Node::Gate(gate) => format!("gate {:?}", gate.open),
        _ => unreachable!(),
    };
    let fields: Vec<_> = step.changes.iter().map(|change| change.field.clone()).collect();
    let fields = if fields.is_empty() { String::new() } else { format!(" ({})", fields.join(", ")) };
    let after: Vec<_> = step.after.iter().map(u32::to_string).collect();
    let after = if after.is_empty() { String::new() } else { format!(" <- {}", after.join(" ")) };
    format!("{} {what} {}{fields}{after}", step.id, step.resource)
}

fn call_text(call: &textnlp_orchestrator::plan::Call) -> String {
    use textnlp_orchestrator::plan::{Call, ObjectRole};
    match call {
        Call::Create { beside: true, .. } => "create-beside".to_owned(),
        Call::Delete { which: ObjectRole::Old, .. } => "delete-old".to_owned(),
        Call::Delete { which: ObjectRole::Stray, .. } => "delete-stray".to_owned(),
        call => call.verb().to_string(),
    }
}
