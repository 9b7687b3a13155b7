//! A site on Google Cloud: its resources there, and its objects in the cluster of GKE that is one of them. A service of Cloud Run and
//! an endpoint of Vertex AI have resources only.

use std::sync::Arc;

use async_trait::async_trait;
use textnlp_cloud::WithGenerated;
use textnlp_gcp::{
    Access, CAPABILITIES, CLUSTER, EndpointOperations, Gcp, InvocationOperations, Records, cluster_id, cluster_name,
    models_bucket,
};
use textnlp_kubernetes::endpoint;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::connect::{Bearer, Connect, HostEndpoint, TokenSource};
use textnlp_provider::operations::Operations;
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Outputs, Provider, Result, SecondPart, Site, SiteName};

use super::image::OwnImage;
use super::managed::{self, ManagedClusters};
use super::{Assumed, Context, ModelBucket, Row};

/// The region of examples.
const REGION: &str = "europe-west4";

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "gcp",
    about: "Google Cloud: GKE, Cloud Run or Vertex AI",
    capabilities: CAPABILITIES,
    missing: None,
    assumed: Some(Assumed {
        region: "us-central1",
        prices: || textnlp_gcp::tables::prices::PRICES.as_slice(),
        account: "my-project",
        registry: |account, region| format!("{region}-docker.pkg.dev/{account}/textnlp/server"),
    }),
    is_this_machine: false,
    account: |environment, site| Box::pin(account(environment, site)),
    provider,
    records: Some(records),
    operations,
    endpoint: |outputs| textnlp_gcp::endpoint(outputs).or_else(|| endpoint(outputs)),
    bucket: |site, existing| {
        let address = format!("gs://{}/", models_bucket(site, existing));
        Some(ModelBucket { address, variables: Vec::new() })
    },
};

/// How a site's project is signed in to.
fn access(environment: &Environment, name: &SiteName, region: &str) -> Access {
    let site = environment.sites.iter().find(|site| site.name == *name);
    let impersonate =
        site.and_then(|site| site.existing.role.clone()).or_else(|| environment.account.existing_role.clone());
    let project = site.and_then(|site| site.account.clone());
    Access { project: project.unwrap_or_default(), region: region.to_owned(), impersonate, ..Access::default() }
}

/// The project that is signed in to, which has to be the one that the environment names.
async fn account(environment: &Environment, site: &Site) -> anyhow::Result<String> {
    let access = Access { project: site.account.clone(), ..access(environment, &site.name, &site.region) };
    Ok(Gcp::sign_in(&access).await?.project)
}

fn region(environment: &Environment, name: &SiteName) -> anyhow::Result<String> {
    managed::region(environment, name, "Google Cloud", REGION)
}

fn provider(context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let Context { secrets, environment, site, take, .. } = context;
    let access = access(environment, site, &region(environment, site)?);
    let outer = Arc::new(Gcp::new(access.clone(), secrets.clone()).pushing(Arc::new(OwnImage::new()?)));
    if environment.is_endpoint() {
        let reason = "--take-ownership applies to Kubernetes objects only";
        anyhow::ensure!(take.is_empty(), "{reason}, and site {site} has none");
        return Ok(outer);
    }
    // The AUTH string of a cache, for its Secret in the cluster.
    let secrets = Arc::new(WithGenerated::new(outer.clone(), secrets.clone()));
    managed::provider(&context.with_secrets(secrets), outer, textnlp_gcp::inside, clusters(access)?)
}

/// The records of another site's names, in a zone of the project of this site.
fn records(context: &Context<'_>, home: &SiteName) -> anyhow::Result<(Arc<dyn Provider>, SecondPart)> {
    let Context { environment, secrets, .. } = context;
    let access = access(environment, home, &region(environment, home)?);
    Ok((Arc::new(Records::new(Gcp::new(access, secrets.clone()))), Records::part))
}

fn operations(context: &Context<'_>) -> anyhow::Result<Arc<dyn Operations>> {
    let Context { secrets, environment, site, .. } = context;
    let access = access(environment, site, &region(environment, site)?);
    let location = places(environment).into_iter().find(|location| location.site.name == **site);
    if let Some(location) = location.filter(|_| environment.is_endpoint()) {
        if location.site.runtime == Runtime::Vertex {
            return Ok(Arc::new(InvocationOperations::new(access, &location.site)));
        }
        return Ok(Arc::new(EndpointOperations::new(access, &location.site)));
    }
    let cloud = Arc::new(Gcp::new(access.clone(), secrets.clone()));
    managed::operations(context, cloud, clusters(access.clone())?, cluster_name, |name| {
        Ok(cluster_id(&access.project()?, &access.region, &name)?)
    })
}

/// The clusters of GKE, which take the access token of the project.
fn clusters(access: Access) -> anyhow::Result<ManagedClusters> {
    let connect = Arc::new(Gke { access });
    Ok(ManagedClusters { kind: CLUSTER.parse()?, connect, generates_cache_password: true })
}

/// Access to a cluster of GKE.
struct Gke {
    access: Access,
}

#[async_trait]
impl Connect for Gke {
    async fn connect(&self, host: &Outputs) -> Result<HostEndpoint> {
        HostEndpoint::of(host, Arc::new(GkeToken { access: self.access.clone() }))
    }
}

struct GkeToken {
    access: Access,
}

#[async_trait]
impl TokenSource for GkeToken {
    async fn token(&self) -> Result<Bearer> {
        Gcp::cluster_token(&self.access).await
    }
}
