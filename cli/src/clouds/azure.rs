//! A site on Azure: its resources there, and its objects in the cluster of AKS that is one of them. An endpoint of Azure Machine Learning
//! has resources only.

use std::sync::Arc;

use async_trait::async_trait;
use textnlp_azure::{
    Access, Azure, CAPABILITIES, CLUSTER, InvocationOperations, Records, cluster_id, cluster_name, inside,
    models_container,
};
use textnlp_cloud::WithGenerated;
use textnlp_kubernetes::endpoint;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::connect::{Bearer, Connect, HostEndpoint, TokenSource};
use textnlp_provider::operations::Operations;
use textnlp_provider::{Outputs, Provider, Result, SecondPart, Site, SiteName};

use super::image::OwnImage;
use super::managed::{self, ManagedClusters};
use super::{Assumed, Context, ModelBucket, Row};

/// The region of examples, and of comparisons of costs.
const REGION: &str = "westeurope";

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "azure",
    about: "Microsoft Azure: AKS or Azure Machine Learning",
    capabilities: CAPABILITIES,
    missing: None,
    assumed: Some(Assumed {
        region: REGION,
        prices: || textnlp_azure::tables::prices::PRICES.as_slice(),
        account: "00000000-0000-0000-0000-000000000001",
        registry: |_, _| "example.azurecr.io/textnlp".to_owned(),
    }),
    is_this_machine: false,
    account: |environment, site| Box::pin(account(environment, site)),
    provider,
    records: Some(records),
    operations,
    endpoint: |outputs| textnlp_azure::endpoint(outputs).or_else(|| endpoint(outputs)),
    bucket: |site, existing| {
        let (account, container) = models_container(site, existing)?;
        let address = format!("az://{container}/");
        Some(ModelBucket { address, variables: vec![("AZURE_STORAGE_ACCOUNT_NAME", account)] })
    },
};

/// How a site's subscription is signed in to.
fn access(environment: &Environment, name: &SiteName, region: &str) -> Access {
    let site = environment.sites.iter().find(|site| site.name == *name);
    let subscription = site.and_then(|site| site.account.clone()).unwrap_or_default();
    Access { subscription, region: region.to_owned(), ..Access::default() }
}

/// The subscription that is signed in to, which has to be the one that the environment names.
async fn account(environment: &Environment, site: &Site) -> anyhow::Result<String> {
    let access = Access { subscription: site.account.clone(), ..access(environment, &site.name, &site.region) };
    Ok(Azure::sign_in(&access).await?.subscription)
}

fn region(environment: &Environment, name: &SiteName) -> anyhow::Result<String> {
    managed::region(environment, name, "Azure", REGION)
}

fn provider(context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let Context { secrets, environment, site, take, .. } = context;
    let access = access(environment, site, &region(environment, site)?);
    let outer = Arc::new(Azure::new(access.clone(), secrets.clone()).pushing(Arc::new(OwnImage::new()?)));
    if environment.is_endpoint() {
        let reason = "--take-ownership applies to Kubernetes objects only";
        anyhow::ensure!(take.is_empty(), "{reason}, and site {site} has none");
        return Ok(outer);
    }
    // The key of a cache, for its Secret in the cluster.
    let secrets = Arc::new(WithGenerated::new(outer.clone(), secrets.clone()));
    managed::provider(&context.with_secrets(secrets), outer, inside, clusters(access)?)
}

/// The records of another site's names, in a zone of the subscription of this site.
fn records(context: &Context<'_>, home: &SiteName) -> anyhow::Result<(Arc<dyn Provider>, SecondPart)> {
    let Context { environment, secrets, .. } = context;
    let access = access(environment, home, &region(environment, home)?);
    Ok((Arc::new(Records::new(Azure::new(access, secrets.clone()))), Records::part))
}

fn operations(context: &Context<'_>) -> anyhow::Result<Arc<dyn Operations>> {
    let Context { secrets, environment, site, .. } = context;
    let access = access(environment, site, &region(environment, site)?);
    let location = places(environment).into_iter().find(|location| location.site.name == **site);
    if let Some(location) = location.filter(|_| environment.is_endpoint()) {
        return Ok(Arc::new(InvocationOperations::new(access, &location.site)));
    }
    let cloud = Arc::new(Azure::new(access.clone(), secrets.clone()));
    managed::operations(context, cloud, clusters(access.clone())?, cluster_name, |name| {
        Ok(cluster_id(&access.subscription()?, &name)?)
    })
}

/// The clusters of AKS, which take tokens of Microsoft Entra.
fn clusters(access: Access) -> anyhow::Result<ManagedClusters> {
    let connect = Arc::new(Aks { access });
    Ok(ManagedClusters { kind: CLUSTER.parse()?, connect, generates_cache_password: false })
}

/// Access to a cluster of AKS.
struct Aks {
    access: Access,
}

#[async_trait]
impl Connect for Aks {
    async fn connect(&self, host: &Outputs) -> Result<HostEndpoint> {
        HostEndpoint::of(host, Arc::new(AksToken { access: self.access.clone() }))
    }
}

struct AksToken {
    access: Access,
}

#[async_trait]
impl TokenSource for AksToken {
    async fn token(&self) -> Result<Bearer> {
        Azure::cluster_token(&self.access).await
    }
}
