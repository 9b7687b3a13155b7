//! Every environment that the program carries, lowered onto the cloud in memory, and killed at every boundary: before, in the middle of and
//! after each write to a journal, before and after each call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use textnlp_orchestrator::environment::{self, Catalogue, Library, Overrides};
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::release::{Artifacts, Release, digest};
use textnlp_orchestrator::run::{RunOptions, RunOutcome, RunSite, run_phases};
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::component::Program;
use textnlp_provider::memory::{Fuse, MemoryCloud};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Provider, ResourceId, SiteName, Wanted};
use tokio_util::sync::CancellationToken;

use crate::world::*;

/// What is wanted at each site of an environment, in the words of the cloud in memory.
fn lowered(name: &str) -> BTreeMap<SiteName, Vec<Wanted>> {
    let environment = Library::built_in().load(name, &Overrides::default(), &Catalogue::default()).unwrap().environment;
    let artifacts = Artifacts {
        program: Program { path: "/opt/server".to_owned(), digest: digest(b"server") },
        models: environment.models.iter().map(|model| (model.name.clone(), digest(model.name.as_bytes()))).collect(),
        templates: None,
        schema: Some(4),
        given: BTreeMap::new(),
        files: Default::default(),
        image: None,
    };
    let release = Release::resolve(&environment, &artifacts);
    let cloud = MemoryCloud::new();
    let of_site = |(site, components): (textnlp_provider::Site, Vec<textnlp_provider::Component>)| {
        let wanted = components.iter().flat_map(|component| cloud.lower(component, &site).unwrap()).collect();
        (site.name, wanted)
    };
    environment::components(&environment, &release).into_iter().map(of_site).collect()
}

type Sites = BTreeMap<SiteName, Vec<Wanted>>;

fn go(world: &World, sites: &Sites, ask: RunOptions, fuse: &Fuse) -> Option<RunOutcome> {
    let place = |name: &SiteName| SiteLocation {
        provider: "memory".to_owned(),
        account: "1".to_owned(),
        region: name.to_string(),
        runtime: Runtime::Process,
    };
    let provider: Arc<dyn Provider> = Arc::new(world.cloud.with_fuse(fuse.clone()));
    let of_site = |(name, wanted): (&SiteName, &Vec<Wanted>)| {
        let (place, provider, wanted) = (place(name), provider.clone(), wanted.clone());
        (name.clone(), RunSite { place, provider, protect_data: false, wanted })
    };
    let sites = sites.iter().map(of_site).collect();
    let environment = environment();
    let road = world.road(Arc::new(world.disk.with_fuse(fuse.clone())), &sites, &environment, &DiscardEvents);
    let stop = CancellationToken::new();
    let arrival = world.clock.run_while(run_phases(&road, ask, &mut |_, _| true, &stop), || !fuse.blown())?;
    Some(arrival.unwrap_or_else(|error| panic!("{error:?}")))
}

/// No orphan, no duplicate, no lost record, nothing open, and a second run plans nothing.
fn check(world: &World, sites: &Sites) {
    let state = world.state();
    let ids: BTreeSet<&ResourceId> = sites.values().flatten().map(|wanted| &wanted.id).collect();
    let things = world.cloud.things();
    let there: Vec<&ResourceId> = things.iter().filter_map(|thing| thing.resource.as_ref()).collect();
    assert_eq!(there.len(), ids.len(), "objects: {there:?}");
    assert_eq!(there.into_iter().collect::<BTreeSet<_>>(), ids);
    assert!(things.iter().all(|thing| thing.lineage == Some(state.lineage()) && thing.broken.is_none()));
    for (site, wanted) in sites {
        let holdings = state.holdings(site).unwrap();
        assert_eq!(holdings.keys().collect::<BTreeSet<_>>(), wanted.iter().map(|wanted| &wanted.id).collect());
        assert!(holdings.values().all(|holding| holding.current.is_some() && holding.old.is_empty()));
        assert!(state.open(site).unwrap().is_empty());
    }
    let mutations = world.cloud.mutations();
    let again = go(world, sites, UP, &Fuse::default()).expect("it ends");
    assert!(
        again.plan.unwrap().steps.is_empty() && world.cloud.mutations() == mutations,
        "the second run does something"
    );
    assert_eq!(world.cloud.complaints(), [""; 0]);
}

fn finish(world: &World, sites: &Sites, ask: RunOptions) {
    let arrival = go(world, sites, ask, &Fuse::default()).expect("the next run ends");
    assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
}

/// Kills an `up` and a `down` of this environment at each of their boundaries. Says how many there were.
fn killed_everywhere(name: &str) -> u64 {
    let sites = lowered(name);
    let gone: Sites = sites.keys().map(|site| (site.clone(), Vec::new())).collect();
    let fuse = Fuse::default();
    let whole = World::new();
    go(&whole, &sites, UP, &fuse).expect("it ends");
    check(&whole, &sites);
    let ups = fuse.crossed();
    let fuse = Fuse::default();
    go(&whole, &gone, DOWN_WITH_DATA, &fuse).expect("it ends");
    assert!(whole.cloud.things().is_empty());
    let downs = fuse.crossed();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let one = |boundary: u64| {
        let world = World::new();
        let (ask, wanted, boundary) = if boundary < ups {
            (UP, &sites, boundary)
        } else {
            go(&world, &sites, UP, &Fuse::default()).expect("it ends");
            (DOWN_WITH_DATA, &gone, boundary - ups)
        };
        let fuse = Fuse::blows_at(boundary);
        assert!(go(&world, wanted, ask, &fuse).is_none(), "{name} {boundary}: the run should have died");
        finish(&world, wanted, ask);
        check(&world, wanted);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let boundary = next.fetch_add(1, Ordering::Relaxed);
                    if boundary >= ups + downs {
                        return;
                    }
                    one(boundary);
                }
            });
        }
    });
    ups + downs
}

#[test]
fn every_built_in_environment_survives_a_kill_at_every_boundary() {
    let mut all = 0;
    for listed in Library::built_in().list().into_iter().filter(|listed| listed.name != environment::BASE) {
        let points = killed_everywhere(&listed.name);
        println!("{}: {points} boundaries", listed.name);
        all += points;
    }
    println!("{all} boundaries");
    assert!(all > 2000, "{all}");
}
