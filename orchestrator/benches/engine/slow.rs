//! A cloud that lists a page at a time, takes its time for each, and allows only so many calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan;
use textnlp_orchestrator::run::{Run, RunSite, plan_with_refresh};
use textnlp_orchestrator::state::Folder;
use textnlp_provider::{
    CloudId, Component, FieldChange, Handle, Kind, KindName, Object, Observed, Operation, Problem, Problems, Progress,
    Provider, Recorded, ResourceId, Result, Scope, Site, SiteName, Wanted,
};

use crate::world::{UP, World, environment};

/// Objects in one answer, as most clouds give them.
const PAGE: usize = 100;
const CALL: Duration = Duration::from_millis(50);
const CALLS_PER_SECOND: u32 = 20;

/// How long it takes to look at everything, in virtual seconds, and to plan that nothing is to be done, in real ones.
pub fn refresh(world: &World, path: &Utf8PathBuf, wanted: &[Wanted], rounds: usize) -> (f64, f64) {
    let mut sites: BTreeMap<SiteName, RunSite> = world.site(wanted, &Default::default());
    for site in sites.values_mut() {
        let (inner, clock) = (site.provider.clone(), world.clock.clone());
        site.provider = Arc::new(Paged { inner, clock: Arc::new(clock), next: Mutex::default() });
    }
    let environment = environment();
    let road: Run<'_> = world.road(Arc::new(Folder::at(path.clone())), &sites, &environment, &DiscardEvents);
    let began = world.clock.steady();
    let (planned, facts) = world.clock.run(plan_with_refresh(&road, UP)).unwrap().unwrap();
    let took = (world.clock.steady() - began).as_secs_f64();
    assert!(planned.plan().steps.is_empty());
    (took, crate::percentile(rounds, || drop(plan::audit(plan::plan(&facts).unwrap(), &facts).unwrap())))
}

struct Paged {
    inner: Arc<dyn Provider>,
    clock: Arc<dyn Clock>,
    /// When the next call is allowed.
    next: Mutex<Duration>,
}

impl Paged {
    async fn call(&self) {
        let wait = {
            let mut next = self.next.lock().unwrap();
            let at = (*next).max(self.clock.steady());
            *next = at + Duration::from_secs(1) / CALLS_PER_SECOND;
            at - self.clock.steady()
        };
        self.clock.sleep(wait + CALL).await;
    }
}

#[async_trait]
impl Provider for Paged {
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
        let all = self.inner.observe(scope).await?;
        for _ in all.chunks(PAGE) {
            self.call().await;
        }
        Ok(all)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.call().await;
        self.inner.read(kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.call().await;
        self.inner.begin(op).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.call().await;
        self.inner.advance(op, handle).await
    }
}
