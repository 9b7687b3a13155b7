//! A selected environment with everything that a run needs: its release, its sites with their wanted resources, and its
//! state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::Utf8PathBuf;
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Role, WITNESS};
use textnlp_orchestrator::environment::{self, Environment, SiteOrWitness};
use textnlp_orchestrator::event::{DiscardEvents, Events};
use textnlp_orchestrator::plan::{Facts, Purpose};
use textnlp_orchestrator::release::{Artifacts, Release, short, with_images};
use textnlp_orchestrator::run::{self, Run, RunOptions, RunSite};
use textnlp_orchestrator::state::{Entry, Locked, Operator, SiteLocation, State, StateError, Store};
use textnlp_provider::component::Program;
use textnlp_provider::{Lineage, Problem, Problems, Site, SiteName};
use uuid::Uuid;

use crate::artifacts::{LocalArtifacts, knows_commands, tell_pinned};
use crate::backup::{bucket_endpoint, bucket_problem, key};
use crate::failure::{preflight_failure, state_failed};
use crate::release::program_of;
use crate::up::run_failed;
use crate::{ChosenEnvironment, Exit, Failure, Platform, Progress, Scope, alerts, cache};

/// The account `by` as the operator, in this process.
pub fn acting(platform: &dyn Platform, by: String, reason: Option<String>) -> Operator {
    Operator {
        by,
        reason,
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: platform.host_name(),
        pid: std::process::id(),
    }
}

/// A selected environment, and how its runs are made.
pub struct Selection {
    /// The environment.
    pub chosen: ChosenEnvironment,
    /// The store of its state.
    pub store: Arc<dyn Store>,
    /// The operator, for the journal.
    pub operator: Operator,
    /// The only site of its runs. `None`: all.
    pub site: Option<String>,
    /// Fields whose ownership is forced on a server-side apply conflict.
    pub take_ownership: Vec<String>,
    /// The server program, if it is not the local one.
    pub server: Option<Utf8PathBuf>,
}

/// An environment that is prepared for a run.
pub struct Deployment {
    /// The environment.
    pub chosen: ChosenEnvironment,
    /// The store of its state.
    pub store: Arc<dyn Store>,
    /// The operator, for the journal.
    pub operator: Operator,
    /// Its sites. They have no wanted resources if only the state matters.
    pub sites: BTreeMap<SiteName, RunSite>,
    /// The sites that the selection excludes.
    apart: BTreeSet<SiteName>,
    /// The resolved release, or `None` if only the state matters.
    pub release: Option<Release>,
    /// See [`Run::entry`].
    pub entry: Option<Entry>,
}

impl Deployment {
    /// With all wanted resources, planned by the providers. Without `bound`, no account or cluster is accessed, which
    /// thus need not be reachable.
    pub async fn wanted(selection: Selection, bound: bool, progress: &dyn Progress) -> Result<Self, Failure> {
        let release = selection.resolve(progress).await?;
        let environment = &selection.chosen.loaded.environment;
        let (mut sites, mut problems) = (BTreeMap::new(), Vec::new());
        let components = environment::components(environment, &release);
        let released = with_images(environment, &release.lock);
        for (SiteOrWitness { provider, .. }, (mut site, components)) in
            environment::places(environment).into_iter().zip(components)
        {
            let is_bound = !bound || selection.bind(&mut site, &provider).await?;
            let mut here = selection.run_site(&released, &site, provider)?;
            if !is_bound {
                sites.insert(site.name.clone(), here);
                continue;
            }
            for component in &components {
                match here.provider.lower(component, &site) {
                    Ok(wanted) => here.wanted.extend(wanted),
                    Err(Problems(found)) => problems.extend(found),
                }
            }
            sites.insert(site.name.clone(), here);
        }
        problems.extend(doubled(environment, &sites));
        problems.extend(alerts::cluster_problems(environment));
        problems.extend(cache::redis_problem(environment));
        problems.extend(bucket_problem(&selection.chosen).filter(|_| bound));
        if !problems.is_empty() {
            return Err(preflight_failure("environment check", "not_available", Exit::Usage, &problems));
        }
        selection.with(sites, Some(release))
    }

    /// Without wanted resources: for showing the state and for `down`.
    pub async fn recorded(selection: Selection) -> Result<Self, Failure> {
        let environment = &selection.chosen.loaded.environment;
        let mut sites = BTreeMap::new();
        for SiteOrWitness { provider, mut site } in environment::places(environment) {
            selection.bind(&mut site, &provider).await?;
            sites.insert(site.name.clone(), selection.run_site(environment, &site, provider)?);
        }
        selection.with(sites, None)
    }

    /// The role of each site in disaster recovery.
    pub fn roles(&self) -> BTreeMap<SiteName, &'static str> {
        let places = environment::places(&self.chosen.loaded.environment).into_iter();
        places.map(|place| (place.site.name, place.site.role.map_or(WITNESS, Role::as_str))).collect()
    }

    /// The run of this deployment.
    pub fn run<'r>(&'r self, events: &'r dyn Events) -> Run<'r> {
        Run {
            environment: &self.chosen.scope.name,
            store: self.store.clone(),
            sites: &self.sites,
            apart: &self.apart,
            fresh: Lineage(Uuid::new_v4()),
            operator: self.operator.clone(),
            clock: Arc::new(SystemClock),
            events,
            gates: None,
            limits: Limits::default(),
            entry: self.entry.clone(),
        }
    }

    /// Reads what exists at the providers.
    pub async fn facts(&self, state: &State) -> Result<Facts, Failure> {
        self.check_providers(state)?;
        let facts = run::read(&self.run(&DiscardEvents), state, RunOptions::UP).await;
        facts.map_err(|error| run_failed(error, Purpose::Up, &self.chosen.scope))
    }

    /// Another provider knows none of the kinds that a site's records have.
    pub(crate) fn check_providers(&self, state: &State) -> Result<(), Failure> {
        for (site, now) in &self.sites {
            if let Some(recorded) = state.places().get(site)
                && recorded.provider != now.place.provider
                && !state.is_empty(site)
            {
                let (recorded, wanted) = (Box::new(recorded.clone()), Box::new(now.place.clone()));
                return Err(self.failed(StateError::OtherPlace { site: site.clone(), recorded, wanted }));
            }
        }
        Ok(())
    }

    /// What would keep its sites from running. Sites on the same machine report the same problems, which are listed once.
    pub async fn preflight(&self) -> Result<Vec<Problem>, Failure> {
        let mut found = Vec::new();
        for site in self.sites.values() {
            for mut problem in site.provider.preflight(&site.wanted).await? {
                problem.fix = self.chosen.scope.complete(&problem.fix);
                if !found.contains(&problem) {
                    found.push(problem);
                }
            }
        }
        Ok(found)
    }

    /// The location that each of its sites is bound to.
    pub fn places(&self) -> BTreeMap<SiteName, SiteLocation> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect()
    }

    /// Loads the state and locks it.
    pub async fn locked(&self) -> Result<Locked, Failure> {
        let locked = self.state().await?.lock(&self.operator, &BTreeMap::new(), Arc::new(SystemClock)).await;
        locked.map_err(|error| self.failed(error))
    }

    /// Loads the state without a lock.
    pub async fn state(&self) -> Result<State, Failure> {
        let state = State::load(self.store.clone(), &self.chosen.scope.name, Lineage(Uuid::new_v4())).await;
        state.map_err(|error| self.failed(error))
    }

    /// Converts an error of the state.
    pub fn failed(&self, error: StateError) -> Failure {
        state_failed(error, &self.chosen.scope.again, &self.chosen.scope.name)
    }
}

/// Rejects two sites in one cluster, which would share a namespace. The API server identifies a cluster.
fn doubled(environment: &Environment, sites: &BTreeMap<SiteName, RunSite>) -> Vec<Problem> {
    let mut known: BTreeMap<&str, &SiteName> = BTreeMap::new();
    let clusters = environment.sites.iter().filter(|site| site.is_in_cluster());
    let bound = clusters.filter_map(|site| sites.get(&site.name).map(|here| (&site.name, here.place.account.as_str())));
    // The account of a cloud has room for several clusters.
    let bound = bound.filter(|(_, account)| account.contains("://"));
    let same = |(name, server)| {
        let other = known.insert(server, name)?;
        let cause = format!("its kubeconfig points to {server}, which is the cluster of site {other}");
        Some(Problem::new(format!("{name}: cluster"), cause, "set another `context` or another `kubeconfig`"))
    };
    bound.filter_map(same).collect()
}

impl Selection {
    fn with(self, mut sites: BTreeMap<SiteName, RunSite>, release: Option<Release>) -> Result<Deployment, Failure> {
        let Self { chosen, store, operator, site, .. } = self;
        let mut apart = BTreeSet::new();
        if let Some(only) = &site {
            let known: Vec<_> = sites.keys().map(ToString::to_string).collect();
            apart = sites.keys().filter(|name| name.as_str() != only).cloned().collect();
            sites.retain(|name, _| name.as_str() == only);
            if sites.is_empty() {
                let error = anyhow::anyhow!("environment {} has no site `{only}`", chosen.scope.name);
                return Err(Failure::usage("no_such_site", error).hint(format!("its sites: {}", known.join(", "))));
            }
        }
        Ok(Deployment { chosen, store, operator, sites, apart, release, entry: None })
    }

    /// Finds the account that a site is bound to. `false`: it cannot be reached, and the selection excludes the site: the others can be changed
    /// while it is lost.
    async fn bind(&self, site: &mut Site, provider: &str) -> Result<bool, Failure> {
        let is_excluded = self.site.as_ref().is_some_and(|only| *only != site.name.as_str());
        match self.account(site, provider).await {
            Ok(account) => site.account = account,
            Err(_) if is_excluded => return Ok(false),
            Err(failure) => return Err(failure),
        }
        Ok(true)
    }

    async fn account(&self, site: &Site, provider: &str) -> Result<String, Failure> {
        let account = self.chosen.scope.platform.account_of(&self.chosen.loaded.environment, site, provider).await;
        account.map_err(|error| {
            // A missing file is reported before any request.
            let hint = error.downcast_ref::<textnlp_provider::Error>().and_then(|error| error.hint.as_deref());
            let hint = hint.map(|hint| self.chosen.scope.complete(hint));
            let failure = Failure::usage("no_way_in", error.context(format!("site {} cannot be reached", site.name)));
            failure.hinted(hint)
        })
    }

    fn run_site(&self, environment: &Environment, site: &Site, provider: String) -> Result<RunSite, Failure> {
        let Scope { platform, folder, .. } = &self.chosen.scope;
        let linked = platform.provider(&provider, folder, environment, &site.name, &self.take_ownership);
        let place = SiteLocation {
            provider,
            account: site.account.clone(),
            region: site.region.clone(),
            runtime: site.runtime,
        };
        let provider = linked.map_err(|e| Failure::usage("not_available", e))?;
        Ok(RunSite { place, provider, protect_data: site.protect_data, wanted: Vec::new() })
    }

    /// Resolves the release: from the lock, or before the first lock from the local artifacts.
    async fn resolve(&self, progress: &dyn Progress) -> Result<Release, Failure> {
        let Self { chosen, server, .. } = self;
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        let mut here = LocalArtifacts { chosen, server: server.clone(), progress }.read()?;
        if environment.dumps_in_cluster() {
            let key = key::there(scope.platform, &scope.folder).await?;
            here.files.backup_recipient = key.map(|key| key.recipient().to_string());
            here.files.backup_endpoint = bucket_endpoint(chosen);
        }
        let Some(lock) = chosen.lock()? else {
            return Ok(Release::resolve(environment, &here));
        };
        // Pods run the program in their image.
        let program = match environment.runs_here() {
            true => here.program,
            false => Program { digest: lock.server.clone(), ..here.program },
        };
        let here = Artifacts { program, ..here };
        let set = scope.command("release set");
        tell_pinned(environment, &lock, &here, &set, progress);
        match Release::locked(environment, &lock, &here) {
            Ok(release) => Ok(release),
            Err(difference) => {
                // The locked program may still be where the last `up` put it, or among the replaced ones.
                let Some(program) = program_of(scope, &lock).await? else {
                    let error = anyhow::Error::new(*difference)
                        .context("the release lock names a server program that is not available here");
                    return Err(Failure::refused("locked_program_missing", error)
                        .hint(format!("give it with --server FILE, or lock the local release: {set}")));
                };
                knows_commands(&program, scope)?;
                progress.line(&format!(
                    "The release lock pins server {}; the local server differs. To use the local one: {set}",
                    short(&lock.server)
                ));
                Ok(Release::locked(environment, &lock, &Artifacts { program, ..here })?)
            }
        }
    }
}
