//! A site on AWS: its resources there, its objects in the cluster that is one of them, its secrets and certificates on the operator's
//! machine. An endpoint of SageMaker has resources only.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use camino::Utf8PathBuf;
use textnlp_aws::{
    Access, AssumedRole, Aws, CAPABILITIES, CLUSTER, CLUSTER_NAME, EndpointOperations, cluster_name, inside,
};
use textnlp_kubernetes::{ClusterOperations, Kubernetes, endpoint, local_part};
use textnlp_models::FetchOptions;
use textnlp_onprem::OnPrem;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::connect::{Bearer, Connect, HostEndpoint, Locate, TokenSource};
use textnlp_provider::operations::Operations;
use textnlp_provider::{
    CloudId, Combined, Error, ErrorKind, Observed, Outputs, Provider, Result, Secret, SecretStore, Site, SiteName,
    Through,
};
use textnlp_token::{AwsSignIn, SignIn, Variables, aws_token, token};

use super::image::OwnImage;
use super::{Context, Row, cluster};
use crate::own_terminal;
use crate::report::Console;

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "aws",
    about: "Amazon Web Services: EKS or SageMaker",
    capabilities: CAPABILITIES,
    missing: None,
    is_this_machine: false,
    account: |environment, site| Box::pin(account(environment, site)),
    provider,
    operations,
    endpoint: |outputs| textnlp_aws::endpoint(outputs).or_else(|| endpoint(outputs)),
};

/// The component whose resource is the cluster.
const HOST: &str = "cluster";

/// How a site's account is signed in to.
fn access(environment: &Environment, name: &SiteName, region: &str) -> Access {
    let account = &environment.account;
    let site = environment.sites.iter().find(|site| site.name == *name);
    let role = site.and_then(|site| site.existing.role.clone()).or_else(|| account.existing_role.clone());
    let role = role.map(|arn| AssumedRole {
        arn,
        external_id: account.external_id.clone(),
        mfa_serial: account.mfa_serial.clone(),
        duration: account.session_duration.map(|span| Duration::from_secs(span.as_seconds())),
    });
    Access { region: region.to_owned(), role, ask_code: Some(ask_code), ..Access::default() }
}

/// Asks for a code on the terminal. It is used once and not stored.
fn ask_code(serial: &str) -> Result<Secret> {
    if !std::io::stdin().is_terminal() {
        let error = Error::new(ErrorKind::Denied, "ask for a code of", serial);
        return Err(error.because("there is no terminal").hint("use a session that exists: put its credentials into AWS_PROFILE or AWS_SESSION_TOKEN, and remove `account.existing_role` and `account.mfa_serial`"));
    }
    let failed = |error| Error::new(ErrorKind::Denied, "read a code of", serial).because(error);
    Console::ask(&format!("Code of the MFA device {serial}:"));
    let code = own_terminal::read_hidden(std::io::stdin()).map_err(failed)?;
    Ok(Secret::new(code))
}

/// The account that is signed in, which has to be the one that the environment names.
async fn account(environment: &Environment, site: &Site) -> anyhow::Result<String> {
    let identity = Aws::sign_in(&access(environment, &site.name, &site.region)).await?;
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
    let Context { secrets, environment, site, take, .. } = context;
    let access = access(environment, site, &region(environment, site)?);
    let image =
        OwnImage { program: Utf8PathBuf::try_from(std::env::current_exe()?)?, network: FetchOptions::from_env() };
    let outer = Arc::new(Aws::new(access.clone(), secrets.clone()).pushing(Arc::new(image)));
    if environment.is_endpoint() {
        let reason = "--take-ownership applies to Kubernetes objects only";
        anyhow::ensure!(take.is_empty(), "{reason}, and site {site} is an endpoint of SageMaker");
        return Ok(outer);
    }
    let mut options = super::options(context)?;
    options.serves_elsewhere = true;
    let settings = cluster::cluster_site(environment, site);
    let inner = Kubernetes::of_clusters(secrets.clone()).of_site(settings).taking(take.iter().cloned().collect());
    let inner = Arc::new(inner);
    let reach = {
        let inner = inner.clone();
        Box::new(move |endpoint| Arc::new(inner.through(endpoint)) as Arc<dyn Provider>)
    };
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
        let token = EksToken { cluster: cluster.to_owned(), access: self.access.clone() };
        HostEndpoint::of(host, Arc::new(token))
    }
}

struct EksToken {
    cluster: String,
    access: Access,
}

#[async_trait]
impl TokenSource for EksToken {
    async fn token(&self) -> Result<Bearer> {
        /// The lifetime of a token whose end is not known.
        const USUAL: Duration = Duration::from_secs(600);
        let (cluster, region) = (&self.cluster, &self.access.region);
        let token = match Aws::assumed(&self.access).await? {
            Some(credentials) => aws_token(&credentials, cluster, region).await?,
            None => {
                let (cluster, region) = (cluster.clone(), Some(region.clone()));
                let sign_in = AwsSignIn { cluster, region, ..AwsSignIn::default() };
                token(&SignIn::Aws(sign_in), &Variables::of_this_process()).await?
            }
        };
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
    let access = access(environment, site, &region(environment, site)?);
    if let Some(location) = location.as_ref().filter(|_| environment.is_endpoint()) {
        return Ok(Arc::new(EndpointOperations::new(access, &location.site)));
    }
    let existing = environment.sites.iter().find(|one| one.name == **site).and_then(|one| one.existing.cluster.clone());
    let existing = existing.or_else(|| environment.cluster.existing.clone());
    let name = match (existing, location) {
        (Some(name), _) => name,
        (None, Some(location)) => cluster_name(&location.site),
        (None, None) => anyhow::bail!("the environment has no site {site}"),
    };
    let eks = Eks { access };
    let host = SiteCluster { eks, id: CloudId::new(name)?, secrets: secrets.clone() };
    let settings = cluster::cluster_site(environment, site);
    let kubernetes = Kubernetes::located(Arc::new(host), secrets.clone());
    Ok(Arc::new(ClusterOperations::of(kubernetes, settings.namespace, environment.scaling.max.is_some())))
}
