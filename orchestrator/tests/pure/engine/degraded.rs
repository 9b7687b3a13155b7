//! One site of several cannot be reached: what is there is named and left alone, the others are worked on, with `--site` and without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::Plan;
use textnlp_orchestrator::run::{Run, RunOutcome, RunSite, plan_with_refresh, run_phases};
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::memory::{Fault, FaultEffect, MemoryCloud, Stage};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Need, ResourceId, SiteName, Spec, Wanted};
use tokio_util::sync::CancellationToken;

use crate::world::*;

/// A world of two sites, each with a cloud of its own.
struct Sites {
    world: World,
    clouds: BTreeMap<SiteName, MemoryCloud>,
}

impl Sites {
    fn new() -> Self {
        let names = ["here", "there"].map(|name| SiteName::new(name).unwrap());
        Self { world: World::new(), clouds: names.map(|name| (name, MemoryCloud::new())).into() }
    }

    fn there(&self) -> &MemoryCloud {
        &self.clouds[&SiteName::new("there").unwrap()]
    }

    /// Nothing that is sent there comes back.
    fn cut_off(&self) {
        self.there().blind_for(1000);
        self.there().inject(Fault::once(FaultEffect::LostRequest).stage(Stage::Any).times(1000));
    }

    /// The same service at each site, all of it or what `only` names.
    fn road<T>(&self, size: u64, only: Option<&str>, take: impl AsyncFnOnce(&Run<'_>) -> T) -> T {
        let of_site = |(name, cloud): (&SiteName, &MemoryCloud)| {
            let (provider, account) = ("memory".to_owned(), "1".to_owned());
            let place = SiteLocation { provider, account, region: name.to_string(), runtime: Runtime::Process };
            let wanted =
                with(service(), "cluster", "size", json!(size)).into_iter().map(|one| moved(one, name)).collect();
            (name.clone(), RunSite { place, provider: Arc::new(cloud.clone()), protect_data: false, wanted })
        };
        let mut sites: BTreeMap<SiteName, RunSite> = self.clouds.iter().map(of_site).collect();
        let is_apart = |name: &SiteName| only.is_some_and(|only| name.as_str() != only);
        let apart: BTreeSet<SiteName> = sites.keys().filter(|name| is_apart(name)).cloned().collect();
        sites.retain(|name, _| !is_apart(name));
        let environment = environment();
        let road = self.world.road(Arc::new(self.world.disk.clone()), &sites, &environment, &DiscardEvents);
        self.world.clock.run(take(&Run { apart: &apart, ..road })).unwrap()
    }

    fn up(&self, size: u64, only: Option<&str>) -> RunOutcome {
        let stop = CancellationToken::new();
        self.road(size, only, async |road| run_phases(road, UP, &mut |_, _| true, &stop).await).unwrap()
    }

    fn plan(&self, size: u64) -> Plan {
        self.road(size, None, async |road| plan_with_refresh(road, UP).await).unwrap().0.plan().clone()
    }
}

/// The same resource at another site.
fn moved(one: Wanted, site: &SiteName) -> Wanted {
    let other = |id: &ResourceId| ResourceId::new(id.as_str().replacen("here/", &format!("{site}/"), 1)).unwrap();
    let spec: serde_json::Value =
        serde_json::from_str(&one.spec.to_string().replace("\"here/", &format!("\"{site}/"))).unwrap();
    Wanted {
        id: other(&one.id),
        site: site.clone(),
        via: one.via.map(|host| textnlp_provider::Ref(other(&host.0))),
        needs: one.needs.iter().map(|need| Need::on(other(&need.on))).collect(),
        spec: Spec::of(&spec),
        ..one
    }
}

/// The resources of a site among some.
fn at<'a>(site: &str, ids: impl IntoIterator<Item = &'a ResourceId>) -> usize {
    ids.into_iter().filter(|id| id.site() == site).count()
}

#[test]
fn unreachable_site_is_reported_and_the_others_are_applied() {
    let sites = Sites::new();
    assert!(sites.up(2, None).is_complete());
    sites.cut_off();
    let plan = sites.plan(3);
    let all = service().len();
    assert_eq!(at("there", plan.blocked.iter().map(|blocked| &blocked.resource)), all, "{:#?}", plan.blocked);
    let because = |text: &str| plan.blocked.iter().filter(|blocked| blocked.because.contains(text)).count();
    assert_eq!(
        because("the list did not come")
            + because("`there/cluster` is blocked")
            + because("`there/cluster`, which is blocked"),
        all
    );
    assert_eq!(at("there", plan.steps.iter().map(|step| &step.resource)), 0);
    assert!(plan.summary.update > 0 && !plan.is_complete());
    // Without `--site` the same is done, and what stays undone is said.
    let calls = sites.there().calls().len();
    let arrival = sites.up(3, None);
    assert!(!arrival.is_complete() && arrival.outcome.is_complete(), "{:#?}", arrival.outcome);
    assert_eq!(sites.there().calls().len(), calls, "a site that cannot be seen is not called");
    let plan = arrival.plan.unwrap();
    assert_eq!((plan.blocked.len(), at("here", plan.blocked.iter().map(|blocked| &blocked.resource))), (all, 0));
    // With it the rest is all there is.
    let arrival = sites.up(4, Some("here"));
    assert!(arrival.is_complete() && arrival.plan.unwrap().summary.update > 0);
    // Once it answers again, the rest is done, and then nothing is left to do.
    sites.there().heal();
    let arrival = sites.up(4, None);
    assert!(arrival.is_complete());
    assert_eq!(at("here", arrival.outcome.done.iter().map(|did| &did.resource)), 0);
    assert!(at("there", arrival.outcome.done.iter().map(|did| &did.resource)) > 0);
    assert!(sites.plan(4).steps.is_empty());
}

#[test]
fn site_lost_during_a_run_does_not_block_the_others() {
    let sites = Sites::new();
    assert!(sites.up(2, None).is_complete());
    // Seen, and then gone: the lists come, the calls do not.
    sites.there().inject(Fault::once(FaultEffect::LostRequest).stage(Stage::Any).times(1000));
    let arrival = sites.up(3, None);
    assert!(at("here", arrival.outcome.done.iter().map(|did| &did.resource)) > 0);
    assert_eq!(at("here", arrival.outcome.open.iter().map(|open| &open.resource)), 0);
    assert!(at("there", arrival.outcome.open.iter().map(|open| &open.resource)) > 0, "{:#?}", arrival.outcome);
    // What stays open there is not touched from here.
    sites.cut_off();
    assert!(sites.up(4, Some("here")).is_complete());
    sites.there().heal();
    let arrival = sites.up(4, None);
    assert!(arrival.is_complete() && arrival.recovered > 0, "{:#?}", arrival.outcome);
    assert!(sites.plan(4).steps.is_empty());
}

#[test]
fn first_up_creates_resources_on_reachable_sites() {
    let sites = Sites::new();
    sites.cut_off();
    let arrival = sites.up(2, None);
    assert_eq!(at("here", arrival.outcome.done.iter().map(|did| &did.resource)), service().len());
    assert!(!arrival.is_complete() && sites.there().things().is_empty());
    sites.there().heal();
    assert!(sites.up(2, None).is_complete());
    assert!(sites.plan(2).steps.is_empty());
}
