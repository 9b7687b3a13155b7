//! A site on AWS: its resources there, its objects in the cluster that is one of them, its secrets and certificates on the operator's
//! machine.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use textnlp_aws::{Access, Aws, CAPABILITIES, CLUSTER, CLUSTER_NAME, cluster_name, inside};
use textnlp_kubernetes::{ClusterOperations, Kubernetes, endpoint, local_part};
use textnlp_onprem::OnPrem;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::connect::{Bearer, Connect, HostEndpoint, Locate, TokenSource};
use textnlp_provider::operations::Operations;
use textnlp_provider::{
    CloudId, Combined, Error, ErrorKind, Observed, Outputs, Provider, Result, SecretStore, Site, SiteName, Through,
};
use textnlp_token::{AwsSignIn, SignIn, Variables, token};

use super::{Context, Row, cluster};

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "aws",
    about: "Amazon Web Services: EKS and what it needs",
    capabilities: CAPABILITIES,
    missing: None,
    is_this_machine: false,
    account: |environment, site| Box::pin(account(environment, site)),
    provider,
    operations,
    endpoint,
};

/// The component whose resource is the cluster.
const HOST: &str = "cluster";

/// How a site's account is signed in to.
fn access(environment: &Environment, region: &str) -> Access {
    Access { region: region.to_owned(), role: environment.account.existing_role.clone(), ..Access::default() }
}

/// The account that is signed in, which has to be the one that the environment names.
async fn account(environment: &Environment, site: &Site) -> anyhow::Result<String> {
    let identity = Aws::sign_in(&access(environment, &site.region)).await?;
    anyhow::ensure!(
        site.account.is_empty() || site.account == identity.account,
        "the environment names account {}, and {} of account {} is signed in",
        site.account,
        identity.arn,
        identity.account
    );
    Ok(identity.account)
}

fn provider(context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let mut options = super::options(context)?;
    options.serves_elsewhere = true;
    let Context { secrets, environment, site, take, .. } = context;
    let access = access(environment, &region(environment, site)?);
    let settings = cluster::cluster_site(environment, site);
    let inner = Kubernetes::of_clusters(secrets.clone()).of_site(settings).taking(take.iter().cloned().collect());
    let inner = Arc::new(inner);
    let reach = {
        let inner = inner.clone();
        Box::new(move |endpoint| Arc::new(inner.through(endpoint)) as Arc<dyn Provider>)
    };
    let outer = Arc::new(Aws::new(access.clone(), secrets.clone()));
    let through = Through::new(outer, inner, reach, HOST.parse()?)
        .expanding(inside)
        .connecting(CLUSTER.parse()?, Arc::new(Eks { access }));
    Ok(Arc::new(Combined::new(Arc::new(through), Arc::new(OnPrem::new(options)), local_part)))
}

fn region(environment: &Environment, name: &SiteName) -> anyhow::Result<String> {
    let settings = environment.sites.iter().find(|site| site.name == *name);
    let region = settings.map(|settings| settings.region.clone()).unwrap_or_default();
    anyhow::ensure!(
        !region.is_empty() && region != "local",
        "site {name} has no region of AWS: set `sites[].region`, such as eu-central-1"
    );
    Ok(region)
}

/// Access to a cluster of EKS.
#[derive(Clone)]
struct Eks {
    access: Access,
}

#[async_trait]
impl Connect for Eks {
    async fn connect(&self, host: &Outputs) -> Result<HostEndpoint> {
        let Some(cluster) = host.get(CLUSTER_NAME).and_then(|name| name.as_str()) else {
            let error = Error::new(ErrorKind::Unavailable, "sign in to", "the cluster");
            return Err(error.because(format!("it has no output `{CLUSTER_NAME}` yet")));
        };
        let sign_in = AwsSignIn {
            cluster: cluster.to_owned(),
            region: Some(self.access.region.clone()),
            profile: None,
            role_arn: self.access.role.clone(),
        };
        HostEndpoint::of(host, Arc::new(EksToken(SignIn::Aws(sign_in))))
    }
}

struct EksToken(SignIn);

#[async_trait]
impl TokenSource for EksToken {
    async fn token(&self) -> Result<Bearer> {
        /// The lifetime of a token whose end is not known.
        const USUAL: Duration = Duration::from_secs(600);
        let token = token(&self.0, &Variables::of_this_process()).await?;
        let ends = token.ends().map_or_else(|| SystemTime::now() + USUAL, SystemTime::from);
        Ok(Bearer { token: token.secret().clone(), ends })
    }
}

/// The cluster of a site, for commands that have no outputs at hand.
struct SiteCluster {
    eks: Eks,
    id: CloudId,
    secrets: Arc<dyn SecretStore>,
}

#[async_trait]
impl Locate for SiteCluster {
    async fn locate(&self) -> Result<HostEndpoint> {
        let aws = Aws::new(self.eks.access.clone(), self.secrets.clone());
        let kind = CLUSTER.parse().map_err(|error| Error::new(ErrorKind::Invalid, "find", CLUSTER).because(error))?;
        match aws.read(&kind, &self.id).await? {
            Observed::Present(object) => self.eks.connect(&object.outputs).await,
            Observed::Absent => Err(Error::new(ErrorKind::NotFound, "find cluster", self.id.to_string())),
            Observed::Unknown(why) => {
                Err(Error::new(ErrorKind::Unavailable, "find cluster", self.id.to_string()).because(why.0))
            }
        }
    }
}

fn operations(context: &Context<'_>) -> anyhow::Result<Arc<dyn Operations>> {
    let Context { environment, site, secrets, .. } = context;
    let location = places(environment).into_iter().find(|location| location.site.name == **site);
    let existing = environment.sites.iter().find(|one| one.name == **site).and_then(|one| one.existing.cluster.clone());
    let existing = existing.or_else(|| environment.cluster.existing.clone());
    let name = match (existing, location) {
        (Some(name), _) => name,
        (None, Some(location)) => cluster_name(&location.site),
        (None, None) => anyhow::bail!("the environment has no site {site}"),
    };
    let eks = Eks { access: access(environment, &region(environment, site)?) };
    let host = SiteCluster { eks, id: CloudId::new(name)?, secrets: secrets.clone() };
    let settings = cluster::cluster_site(environment, site);
    let kubernetes = Kubernetes::located(Arc::new(host), secrets.clone());
    Ok(Arc::new(ClusterOperations::of(kubernetes, settings.namespace, environment.scaling.max.is_some())))
}
