//! A site on AWS: its resources there, its objects in the cluster that is one of them, its secrets and certificates on the operator's
//! machine. An endpoint of SageMaker has resources only.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use textnlp_aws::{
    Access, AssumedRole, Aws, CAPABILITIES, CLUSTER, CLUSTER_NAME, EndpointOperations, Records, cluster_name, inside,
    models_bucket,
};
use textnlp_kubernetes::endpoint;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::connect::{Bearer, Connect, HostEndpoint, TokenSource};
use textnlp_provider::operations::Operations;
use textnlp_provider::{CloudId, Error, ErrorKind, Outputs, Provider, Result, SecondPart, Secret, Site, SiteName};
use textnlp_token::{AwsSignIn, SignIn, Variables, aws_token, partition, token};

use super::image::OwnImage;
use super::managed::{self, ManagedClusters};
use super::{Assumed, Context, ModelBucket, Row};
use crate::own_terminal;
use crate::report::Console;

/// The region of examples.
const REGION: &str = "eu-central-1";
/// The lifetime of a token whose end is not known.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "aws",
    about: "Amazon Web Services: EKS or SageMaker",
    capabilities: CAPABILITIES,
    missing: None,
    assumed: Some(Assumed {
        region: "us-east-1",
        prices: || textnlp_aws::tables::prices::PRICES.as_slice(),
        account: "123456789012",
        registry: |account, region| format!("{account}.dkr.ecr.{region}.{}/textnlp", partition(region).dns_suffix),
    }),
    is_this_machine: false,
    account: |environment, site| Box::pin(account(environment, site)),
    provider,
    records: Some(records),
    operations,
    endpoint: |outputs| textnlp_aws::endpoint(outputs).or_else(|| endpoint(outputs)),
    bucket: |site, existing| {
        let own = |bucket: &str| bucket.rsplit([':', '/']).next().unwrap_or(bucket).to_owned();
        let name = existing.map_or_else(|| models_bucket(site), own);
        Some(ModelBucket { address: format!("s3://{name}/"), variables: vec![("AWS_REGION", site.region.clone())] })
    },
};

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
    // The replica there is promoted while the region of the site is lost.
    let other_region = environment.database.replica_region.clone().filter(|other| other != region);
    Access { region: region.to_owned(), other_region, role, ask_code: Some(ask_code), ..Access::default() }
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
    let outer = Arc::new(Aws::new(access.clone(), secrets.clone()).pushing(Arc::new(OwnImage::new()?)));
    if environment.is_endpoint() {
        let reason = "--take-ownership applies to Kubernetes objects only";
        anyhow::ensure!(take.is_empty(), "{reason}, and site {site} is an endpoint of SageMaker");
        return Ok(outer);
    }
    managed::provider(context, outer, inside, clusters(access)?)
}

/// The records of another site's names, in a zone of the account of this site.
fn records(context: &Context<'_>, home: &SiteName) -> anyhow::Result<(Arc<dyn Provider>, SecondPart)> {
    let Context { environment, secrets, .. } = context;
    let access = access(environment, home, &region(environment, home)?);
    Ok((Arc::new(Records::new(Aws::new(access, secrets.clone()))), Records::part))
}

/// The clusters of EKS.
fn clusters(access: Access) -> anyhow::Result<ManagedClusters> {
    let connect = Arc::new(Eks { access });
    Ok(ManagedClusters { kind: CLUSTER.parse()?, connect, generates_cache_password: false })
}

fn region(environment: &Environment, name: &SiteName) -> anyhow::Result<String> {
    managed::region(environment, name, "AWS", REGION)
}

/// Access to a cluster of EKS.
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
        let (cluster, region) = (&self.cluster, &self.access.region);
        let token = match Aws::assumed(&self.access).await? {
            Some(credentials) => aws_token(&credentials, cluster, region).await?,
            None => {
                let (cluster, region) = (cluster.clone(), Some(region.clone()));
                let sign_in = AwsSignIn { cluster, region, ..AwsSignIn::default() };
                token(&SignIn::Aws(sign_in), &Variables::of_this_process()).await?
            }
        };
        let ends = token.ends().map_or_else(|| SystemTime::now() + TOKEN_LIFETIME, SystemTime::from);
        Ok(Bearer { token: token.secret().clone(), ends })
    }
}

fn operations(context: &Context<'_>) -> anyhow::Result<Arc<dyn Operations>> {
    let Context { environment, site, secrets, .. } = context;
    let location = places(environment).into_iter().find(|location| location.site.name == **site);
    let access = access(environment, site, &region(environment, site)?);
    if let Some(location) = location.filter(|_| environment.is_endpoint()) {
        return Ok(Arc::new(EndpointOperations::new(access, &location.site)));
    }
    let aws = Arc::new(Aws::new(access.clone(), secrets.clone()));
    managed::operations(context, aws, clusters(access)?, cluster_name, |name| Ok(CloudId::new(name)?))
}
