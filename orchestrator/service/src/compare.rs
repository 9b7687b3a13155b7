//! What an environment costs on a provider, and what its providers refuse of it, before there is anything of it.

use std::collections::BTreeMap;

use textnlp_orchestrator::environment::{Environment, SettingFiles, SiteOrWitness, components, places};
use textnlp_orchestrator::plan::Cost;
use textnlp_orchestrator::release::{Artifacts, Release, digest, with_images};
use textnlp_orchestrator::run::RunSite;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::component::Program;
use textnlp_provider::{Problem, Problems};

use crate::{Scope, alerts, cache};

/// The monthly cost of an environment by list prices, or why its providers refuse parts of it.
pub fn cost(scope: &Scope, environment: &Environment) -> Result<Cost, Problems> {
    let Expanded { sites, missing, refused } = expand(scope, environment);
    let problems = [missing, refused].concat();
    match problems.is_empty() {
        true => Ok(Cost::wanted(&sites, &environment.budget)),
        false => Err(Problems(problems)),
    }
}

/// What the providers of an environment refuse of it. A provider that cannot be used on this machine refuses nothing.
pub fn refused(scope: &Scope, environment: &Environment) -> Vec<Problem> {
    let Expanded { mut refused, .. } = expand(scope, environment);
    refused.extend(alerts::cluster_problems(environment));
    refused.extend(cache::redis_problem(environment));
    refused
}

/// The wanted resources of an environment.
struct Expanded {
    sites: Vec<RunSite>,
    /// Why a provider cannot be used.
    missing: Vec<Problem>,
    /// What a provider refuses.
    refused: Vec<Problem>,
}

/// Expands an environment into resources. No provider is asked and no artifact is read: neither prices nor refusals depend on the
/// digests of a release.
fn expand(scope: &Scope, environment: &Environment) -> Expanded {
    let digest = digest(b"");
    let artifacts = Artifacts {
        program: Program { path: "/usr/local/bin/textnlp-server".to_owned(), digest: digest.clone() },
        models: environment.models.iter().map(|model| (model.id(), digest.clone())).collect(),
        templates: None,
        schema: None,
        given: BTreeMap::new(),
        files: SettingFiles::default(),
        image: Some(format!("{}@{digest}", env!("CARGO_PKG_VERSION"))),
    };
    let release = Release::resolve(environment, &artifacts);
    let released = with_images(environment, &release.lock);
    let (mut sites, mut missing, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (SiteOrWitness { provider: name, .. }, (site, parts)) in
        places(environment).into_iter().zip(components(environment, &release))
    {
        let provider = match scope.platform.provider(&name, &scope.folder, &released, &site.name, &[]) {
            Ok(provider) => provider,
            Err(error) => {
                let fix = "`textnlp-deploy providers` lists what is available";
                missing.push(Problem::new(format!("site {}", site.name), format!("{error:#}"), fix));
                continue;
            }
        };
        let mut wanted = Vec::new();
        for part in &parts {
            match provider.lower(part, &site) {
                Ok(resources) => wanted.extend(resources),
                Err(Problems(found)) => refused.extend(found),
            }
        }
        let place = SiteLocation { provider: name, account: site.account, region: site.region, runtime: site.runtime };
        sites.push(RunSite { place, provider, protect_data: site.protect_data, wanted });
    }
    Expanded { sites, missing, refused }
}
