//! The clients of AWS's services, and one way to call them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_elasticloadbalancingv2::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_xml::decode::{Document, XmlDecodeError, try_data};
use aws_types::request_id::RequestId;
use textnlp_cloud::{Cloud, Images};
use textnlp_provider::{Error, ErrorKind, Foreign, Result, SecretStore, error_chain};
use textnlp_token::{aws_query, partition};

use crate::kinds;
use crate::resource::Shared;
use crate::session::{AskCode, AssumedRole, Session};
use crate::table::Row;
use crate::tables::errors;
use crate::tags;

/// Timeout of one call. The engine allows ten seconds for everything that a verb does.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Credentials are kept until this long before they end, as the clients of the SDK keep them.
const BEFORE_END: Duration = Duration::from_secs(5 * 60);
/// The codes of an answer to credentials that have ended.
const ENDED: &[&str] = &["ExpiredToken", "ExpiredTokenException", "RequestExpired"];
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How an account is signed in to. What is not set is found as AWS's own tools find it: variables, profiles, SSO, web identity,
/// the metadata service.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The region of the site.
    pub region: String,
    /// The region of the STS that signs in while that of the site's region does not answer.
    pub other_region: Option<String>,
    /// The role to assume.
    pub role: Option<AssumedRole>,
    /// Who is asked for the codes of its MFA device.
    pub ask_code: Option<AskCode>,
    /// A simulator in place of AWS.
    pub simulator: Option<Simulator>,
}

/// A server that simulates AWS's APIs, for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulator {
    /// The URL of all services.
    pub url: String,
    /// What requests are signed with.
    pub credentials: Credentials,
}

/// Who is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The account, twelve digits.
    pub account: String,
    /// The ARN of the user or of the assumed role.
    pub arn: String,
}

/// The clients of one account and region. They do not retry: each call is journaled, and only the engine repeats it.
pub(crate) struct Api {
    config: SdkConfig,
    /// The clients of other regions, by region.
    elsewhere: Mutex<BTreeMap<String, Arc<Api>>>,
    /// Whether this region is not that of the site.
    is_elsewhere: bool,
    pub(crate) identity: Identity,
    /// The session of the role, if one is assumed.
    session: Option<Arc<Session>>,
    /// The credentials of the last call without a client: their source may start a program or call STS each time.
    credentials: tokio::sync::Mutex<Option<Credentials>>,
    pub(crate) region: String,
    /// Where the values of secret references are.
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) images: Images,
    pub(crate) acm: aws_sdk_acm::Client,
    pub(crate) autoscaling: aws_sdk_applicationautoscaling::Client,
    pub(crate) budgets: aws_sdk_budgets::Client,
    pub(crate) cloudwatch: aws_sdk_cloudwatch::Client,
    pub(crate) logs: aws_sdk_cloudwatchlogs::Client,
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ecr: aws_sdk_ecr::Client,
    pub(crate) eks: aws_sdk_eks::Client,
    pub(crate) elasticache: aws_sdk_elasticache::Client,
    pub(crate) elb: aws_sdk_elasticloadbalancingv2::Client,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) quotas: aws_sdk_servicequotas::Client,
    pub(crate) rds: aws_sdk_rds::Client,
    pub(crate) route53: aws_sdk_route53::Client,
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) sagemaker: aws_sdk_sagemaker::Client,
    pub(crate) secretsmanager: aws_sdk_secretsmanager::Client,
    pub(crate) sns: aws_sdk_sns::Client,
    pub(crate) tagging: aws_sdk_resourcegroupstagging::Client,
}

impl Api {
    /// Signs in and asks who is signed in.
    pub(crate) async fn connect(access: &Access, secrets: Arc<dyn SecretStore>, images: Images) -> Result<Self> {
        let (config, identity, session) = Self::signed_in(access).await?;
        Ok(Self::of(&config, identity, session, access.region.clone(), secrets, images))
    }

    /// Asks who is signed in.
    pub(crate) async fn identify(access: &Access) -> Result<Identity> {
        Ok(Self::signed_in(access).await?.1)
    }

    /// The credentials of the role that is assumed; `None` without one.
    pub(crate) async fn assumed(access: &Access) -> Result<Option<SharedCredentialsProvider>> {
        let (config, session) = configured(access).await?;
        Ok(config.credentials_provider().filter(|_| session.is_some()))
    }

    /// The configuration with the credentials that sign requests.
    pub(crate) async fn configuration(access: &Access) -> Result<SdkConfig> {
        Ok(configured(access).await?.0)
    }

    async fn signed_in(access: &Access) -> Result<(SdkConfig, Identity, Option<Arc<Session>>)> {
        let error = match Self::signed_in_there(access).await {
            Err(error) if is_without_sts(&error) => error,
            answer => return answer,
        };
        let Some(other) = access.other_region.as_ref().filter(|other| **other != access.region) else {
            return Err(error);
        };
        let there = Access { region: other.clone(), ..access.clone() };
        let (config, identity, session) = Self::signed_in_there(&there).await?;
        // The other clients stay in the region of the site.
        Ok((config.to_builder().region(Region::new(access.region.clone())).build(), identity, session))
    }

    async fn signed_in_there(access: &Access) -> Result<(SdkConfig, Identity, Option<Arc<Session>>)> {
        let (config, session) = configured(access).await?;
        let identity = identify(&config).await?;
        Ok((config, identity, session))
    }

    fn of(
        config: &SdkConfig,
        identity: Identity,
        session: Option<Arc<Session>>,
        region: String,
        secrets: Arc<dyn SecretStore>,
        images: Images,
    ) -> Self {
        let mut s3 = aws_sdk_s3::config::Builder::from(config);
        // A bucket is a part of the host's name only where the host is one of AWS.
        s3.set_force_path_style(Some(config.endpoint_url().is_some()));
        Self {
            config: config.clone(),
            elsewhere: Mutex::default(),
            is_elsewhere: false,
            identity,
            session,
            credentials: tokio::sync::Mutex::default(),
            region,
            secrets,
            images,
            acm: aws_sdk_acm::Client::new(config),
            autoscaling: aws_sdk_applicationautoscaling::Client::new(config),
            budgets: aws_sdk_budgets::Client::new(config),
            cloudwatch: aws_sdk_cloudwatch::Client::new(config),
            logs: aws_sdk_cloudwatchlogs::Client::new(config),
            ec2: aws_sdk_ec2::Client::new(config),
            ecr: aws_sdk_ecr::Client::new(config),
            eks: aws_sdk_eks::Client::new(config),
            elasticache: aws_sdk_elasticache::Client::new(config),
            elb: aws_sdk_elasticloadbalancingv2::Client::new(config),
            iam: aws_sdk_iam::Client::new(config),
            kms: aws_sdk_kms::Client::new(config),
            quotas: aws_sdk_servicequotas::Client::new(config),
            rds: aws_sdk_rds::Client::new(config),
            route53: aws_sdk_route53::Client::new(config),
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            sagemaker: aws_sdk_sagemaker::Client::new(config),
            secretsmanager: aws_sdk_secretsmanager::Client::new(config),
            sns: aws_sdk_sns::Client::new(config),
            tagging: aws_sdk_resourcegroupstagging::Client::new(config),
        }
    }

    /// The configuration with the credentials that sign requests, for services without a client.
    pub(crate) fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// The ARN of an object of this account; the region is empty for services without regions.
    pub(crate) fn arn(&self, service: &str, region: &str, resource: &str) -> String {
        format!("arn:{}:{service}:{region}:{}:{resource}", partition(&self.region).name, self.identity.account)
    }

    /// Waits for the answer to one call of `service`, its signing name. `action` and `subject` are the words of its error: `create`,
    /// `VPC vpc-1`.
    pub(crate) async fn call<T, E>(
        &self,
        service: &'static str,
        action: &str,
        subject: impl Into<String>,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let mut answer = sent(service, action, subject, &self.identity, answer).await;
        if let Err(error) = &mut answer {
            self.check_session(error).await;
        }
        answer
    }

    /// A call with the credentials of a session that has ended is repeated with new ones.
    async fn check_session(&self, error: &mut Error) {
        let has_ended = error.code.as_deref().is_some_and(|code| ENDED.contains(&code));
        if !has_ended {
            return;
        }
        *self.credentials.lock().await = None;
        if let Some(session) = &self.session
            && session.ended().await
        {
            error.kind = ErrorKind::Unavailable;
        }
    }

    /// The credentials of calls without a client.
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        let provider = self.config.credentials_provider().ok_or("no credentials were found")?;
        // A session keeps its own.
        if self.session.is_some() {
            return Ok(provider.provide_credentials().await?);
        }
        let mut known = self.credentials.lock().await;
        let lasts = |one: &Credentials| one.expiry().is_none_or(|ends| ends > SystemTime::now() + BEFORE_END);
        if let Some(found) = known.as_ref().filter(|one| lasts(one)) {
            return Ok(found.clone());
        }
        let found = provider.provide_credentials().await?;
        *known = Some(found.clone());
        Ok(found)
    }

    /// Makes one call of the query protocol of Elastic Load Balancing, for its API without a client. Its answer is XML. The words are
    /// those of [`Self::call`].
    pub(crate) async fn query(
        &self,
        service: &'static str,
        (action, subject): (&str, &str),
        fields: &[(&str, &str)],
    ) -> Result<String> {
        let failed = |kind| Error::new(kind, action, subject).signed_in_as(&self.identity.arn);
        let credentials = self.credentials().await.map_err(|error| failed(ErrorKind::Denied).because(error))?;
        let url = balancing_url(&self.config).await.map_err(|error| failed(ErrorKind::Invalid).because(error))?;
        let credentials = SharedCredentialsProvider::new(credentials);
        let call = aws_query(&credentials, (self.region.as_str(), service), &url, fields);
        let Ok(answer) = tokio::time::timeout(CALL_TIMEOUT, call).await else {
            let why = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            return Err(failed(ErrorKind::Unavailable).because(why));
        };
        let answer = answer?;
        let body = String::from_utf8_lossy(answer.body.expose()).into_owned();
        if answer.status == 200 {
            return Ok(body);
        }
        let (code, message) = refusal(&body).unwrap_or_default();
        let (kind, hint) = errors::classify(service, &code, Some(answer.status), &message);
        let why = if message.is_empty() { format!("status {}", answer.status) } else { message };
        let mut error = failed(kind).because(why);
        error.refused = is_refused(&error.kind, Some(answer.status));
        error.code = (!code.is_empty()).then_some(code);
        error.hint = hint;
        self.check_session(&mut error).await;
        Err(error)
    }

    /// The same, for a read: an object that is not found is `None`.
    pub(crate) async fn find<T, E>(
        &self,
        service: &'static str,
        subject: impl Into<String>,
        answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<Option<T>>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match self.call(service, "read", subject, answer).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Cloud for Api {
    type Shared = Shared;

    const NAME: &'static str = "AWS";
    const NAME_TAG: Option<&'static str> = Some(tags::NAME);

    fn rows() -> &'static [&'static [Row]] {
        kinds::ALL
    }

    fn classify(service: &str, code: &str, message: &str) -> (ErrorKind, Option<String>) {
        errors::classify(service, code, None, message)
    }

    fn is_reserved(key: &str) -> bool {
        [tags::SECRET, tags::ZONE].contains(&key) || key.starts_with(tags::RESERVED)
    }

    /// Interfaces and security groups in the network hold nothing, and they appear while nodes and load balancers are being deleted.
    fn is_named(foreign: &Foreign) -> bool {
        foreign.swept && foreign.cloud_id.as_str().starts_with("arn:")
    }

    fn signed_in(&self) -> &str {
        &self.identity.arn
    }

    fn region(&self) -> &str {
        &self.region
    }

    fn is_elsewhere(&self) -> bool {
        self.is_elsewhere
    }

    fn in_region(self: &Arc<Self>, region: &str) -> Arc<Self> {
        if region == self.region {
            return self.clone();
        }
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let there = elsewhere.entry(region.to_owned()).or_insert_with(|| {
            let config = self.config.to_builder().region(Region::new(region.to_owned())).build();
            let (identity, session) = (self.identity.clone(), self.session.clone());
            // Repositories are in the region of the site.
            let (secrets, images) = (self.secrets.clone(), Images::default());
            let there = Self::of(&config, identity, session, region.to_owned(), secrets, images);
            Arc::new(Self { is_elsewhere: true, ..there })
        });
        there.clone()
    }
}

/// The address of Elastic Load Balancing, which its two APIs share
/// (<https://docs.aws.amazon.com/general/latest/gr/elb.html>): the rules of the SDK know FIPS and dual stack.
async fn balancing_url(config: &SdkConfig) -> Result<String, BoxError> {
    let params = Params::builder()
        .set_region(config.region().map(ToString::to_string))
        .set_use_fips(config.use_fips())
        .set_use_dual_stack(config.use_dual_stack())
        .set_endpoint(config.endpoint_url().map(str::to_owned))
        .build()?;
    Ok(DefaultResolver::new().resolve_endpoint(&params).await?.url().to_owned())
}

/// Whether another STS may sign in: this one does not answer, or no credentials were found, which profiles with a role and web
/// identities get from it.
fn is_without_sts(error: &Error) -> bool {
    error.kind == ErrorKind::Unavailable || (error.action == SIGNING_IN && error.code.is_none())
}

/// What [`identify`] does.
const SIGNING_IN: &str = "sign in to";
/// How to sign in.
const SIGN_IN: &str = "`aws sts get-caller-identity` shows your identity; sign in with `aws sso login`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

/// Asks who is signed in.
pub(crate) async fn identify(config: &SdkConfig) -> Result<Identity> {
    let credentials = match config.credentials_provider() {
        Some(provider) => match provider.provide_credentials().await {
            Ok(credentials) => Some(credentials),
            // Outside of AWS the last source, the metadata service of a machine, ends with other errors than that nothing was found.
            Err(error) => {
                let missing = Error::new(ErrorKind::Denied, SIGNING_IN, "aws").because(error_chain(&error));
                return Err(missing.hint(SIGN_IN));
            }
        },
        None => None,
    };
    let key = credentials.map(|credentials| format!("the access key {}", credentials.access_key_id()));
    let unknown = Identity { account: String::new(), arn: key.unwrap_or_else(|| "no identity".to_owned()) };
    let sts = aws_sdk_sts::Client::new(config);
    let answer = sent("sts", SIGNING_IN, "aws", &unknown, sts.get_caller_identity().send()).await;
    let answer = answer.map_err(|error| match (&error.hint, &error.kind) {
        (Some(_), _) => error,
        (None, ErrorKind::Denied) => error.hint(SIGN_IN),
        (None, _) => error.hint("check the network, `HTTPS_PROXY`, and `AWS_ENDPOINT_URL` if it is set"),
    })?;
    Ok(Identity { account: answer.account.unwrap_or_default(), arn: answer.arn.unwrap_or_default() })
}

pub(crate) async fn sent<T, E>(
    service: &'static str,
    action: &str,
    subject: impl Into<String>,
    identity: &Identity,
    answer: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let error = match answer.await {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let status = error.raw_response().map(|response| response.status().as_u16());
    let request_id = error.request_id().map(str::to_owned);
    let code = error.code().map(str::to_owned);
    let message = error.message().unwrap_or_default().to_owned();
    let (kind, hint) = match (&error, &code) {
        // Without credentials no call is made.
        (SdkError::ConstructionFailure(_), _) => (ErrorKind::Denied, None),
        (_, Some(code)) => errors::classify(service, code, status, &message),
        (_, None) => errors::classify(service, "", status, &message),
    };
    let why = if message.is_empty() { error_chain(&error) } else { message };
    let mut failed = Error::new(kind, action, subject.into());
    failed.refused = matches!(error, SdkError::ConstructionFailure(_)) || is_refused(&failed.kind, status);
    failed.code = code;
    failed.request_id = request_id;
    failed.hint = hint;
    Err(failed.because(why).signed_in_as(&identity.arn))
}

/// The code and the message of an error of the query protocol
/// (<https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/CommonErrors.html>).
fn refusal(body: &str) -> Result<(String, String), XmlDecodeError> {
    let (mut code, mut message) = (String::new(), String::new());
    let mut document = Document::new(body);
    let mut root = document.root_element()?;
    while let Some(mut error) = root.next_tag() {
        while let Some(mut part) = error.next_tag() {
            if part.start_el().matches("Code") {
                code = try_data(&mut part)?.into_owned();
            } else if part.start_el().matches("Message") {
                message = try_data(&mut part)?.into_owned();
            }
        }
    }
    Ok((code, message))
}

/// Whether an answer says that the call did nothing. A timeout, throttling and a conflict may follow an earlier effect.
fn is_refused(kind: &ErrorKind, status: Option<u16>) -> bool {
    use ErrorKind::{Denied, Exists, Invalid, NotFound, Quota};
    let is_final = matches!(kind, Denied | Exists | Invalid | NotFound | Quota);
    is_final && status.is_some_and(|status| (400..500).contains(&status) && ![408, 429].contains(&status))
}

async fn configured(access: &Access) -> Result<(SdkConfig, Option<Arc<Session>>)> {
    signing(loader(access), access).await
}

/// What is configured before anything is read or called.
fn loader(access: &Access) -> ConfigLoader {
    let timeouts = TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled())
        .region(Region::new(access.region.clone()));
    if let Some(Simulator { url, credentials }) = &access.simulator {
        loader = loader.endpoint_url(url).credentials_provider(credentials.clone());
    }
    loader
}

/// With the credentials of the role to assume.
async fn signing(loader: ConfigLoader, access: &Access) -> Result<(SdkConfig, Option<Arc<Session>>)> {
    let config = loader.load().await;
    let Some(role) = &access.role else { return Ok((config, None)) };
    if config.credentials_provider().is_none() {
        return Err(Error::new(ErrorKind::Denied, "assume", role.arn.clone()).because("no credentials were found"));
    }
    let from = access.simulator.as_ref().map(|one| format!("{} {}", one.url, one.credentials.access_key_id()));
    // A session calls STS in the region of its first client, which may be lost.
    let there = access.other_region.as_ref().filter(|other| **other == access.region);
    let from = from.into_iter().chain(there.cloned()).collect::<Vec<_>>().join(" ");
    let session = Session::shared(role, &config, from, access.ask_code);
    // Refused here with its hint; a client of a service would only say that it has no credentials.
    session.credentials().await?;
    // The session knows when its credentials end.
    let config = config.into_builder().identity_cache(IdentityCache::no_cache());
    let config =
        config.credentials_provider(SharedCredentialsProvider::new(SessionCredentials(session.clone()))).build();
    Ok((config, Some(session)))
}

/// A session as the SDK takes it.
#[derive(Debug)]
struct SessionCredentials(Arc<Session>);

impl ProvideCredentials for SessionCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        self.0.provide_credentials()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Mutex;

    use async_trait::async_trait;
    use aws_smithy_runtime_api::client::http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
    };
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
    use textnlp_provider::{Secret, SecretName, SecretRef, SecretVersion};

    use aws_credential_types::provider::error::CredentialsError;

    use super::*;
    use crate::tables::Service;

    /// Connects nowhere, and remembers where it was asked to connect to, by the service that the request is signed for.
    #[derive(Debug, Clone, Default)]
    struct Nowhere(Arc<Mutex<Vec<(String, String)>>>);

    impl HttpConnector for Nowhere {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let uri = request.uri().to_owned();
            let scope = request.headers().get("authorization").unwrap_or_default().to_owned();
            // Credential=KEY/DATE/REGION/SERVICE/aws4_request
            let service = scope.split('/').nth(3).unwrap_or("unsigned").to_owned();
            self.0.lock().unwrap().push((service, uri));
            HttpConnectorFuture::ready(Err(ConnectorError::io("no network here".into())))
        }
    }

    impl HttpClient for Nowhere {
        fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
            SharedHttpConnector::new(self.clone())
        }
    }

    struct NoSecrets;

    #[async_trait]
    impl SecretStore for NoSecrets {
        async fn put(&self, name: &SecretName, _: &SecretVersion, _: &Secret) -> Result<()> {
            Err(Error::new(ErrorKind::Denied, "store", name.to_string()))
        }

        async fn get(&self, secret: &SecretRef) -> Result<Secret> {
            Err(Error::new(ErrorKind::NotFound, "read", secret.name.to_string()))
        }

        async fn versions(&self, _: &SecretName) -> Result<Vec<SecretVersion>> {
            Ok(Vec::new())
        }

        async fn list(&self, _: &str) -> Result<Vec<SecretName>> {
            Ok(Vec::new())
        }

        async fn delete(&self, name: &SecretName) -> Result<()> {
            Err(Error::new(ErrorKind::Denied, "delete", name.to_string()))
        }
    }

    /// Every request of every client goes to the simulator, and no other place is asked for credentials or a region.
    #[test]
    fn with_a_simulator_no_address_of_aws_is_contacted() {
        const URL: &str = "http://127.0.0.1:9";
        let credentials = Credentials::new("AKIASIMULATEDOPERATR", "secret", None, None, "test");
        let simulator = Some(Simulator { url: URL.to_owned(), credentials });
        let nowhere = Nowhere::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for role in [None, Some("arn:aws:iam::123456789012:role/deploy".to_owned())] {
                let role = role.map(|arn| AssumedRole { arn, ..AssumedRole::default() });
                let simulator = simulator.clone();
                let access = Access { region: "eu-west-1".to_owned(), role, simulator, ..Access::default() };
                let signed = signing(loader(&access).http_client(nowhere.clone()), &access).await;
                // A role is assumed before any client is made.
                if access.role.is_some() {
                    signed.unwrap_err();
                    continue;
                }
                let (config, _) = signed.unwrap();
                let sts = aws_sdk_sts::Client::new(&config);
                let _ = sts.get_caller_identity().send().await;
                let identity = Identity { account: "123456789012".to_owned(), arn: String::new() };
                let region = access.region.clone();
                let api = || {
                    let secrets = Arc::new(NoSecrets);
                    Api::of(&config, identity.clone(), None, region.clone(), secrets, Images::default())
                };
                let elsewhere = Arc::new(api()).in_region("us-east-1");
                let _ = elsewhere.ec2.describe_vpcs().send().await;
                // A new client has to be added here.
                let Api {
                    config: _,
                    elsewhere: _,
                    is_elsewhere: _,
                    identity: _,
                    session: _,
                    credentials: _,
                    region: _,
                    secrets: _,
                    images: _,
                    acm,
                    autoscaling,
                    budgets,
                    cloudwatch,
                    logs,
                    ec2,
                    ecr,
                    eks,
                    elasticache,
                    elb,
                    iam,
                    kms,
                    quotas,
                    rds,
                    route53,
                    s3,
                    sagemaker,
                    secretsmanager,
                    sns,
                    tagging,
                } = api();
                let _ = acm.list_certificates().send().await;
                let namespace = aws_sdk_applicationautoscaling::types::ServiceNamespace::Sagemaker;
                let _ = autoscaling.describe_scalable_targets().service_namespace(namespace).send().await;
                let _ = budgets.describe_budgets().account_id("123456789012").send().await;
                let _ = cloudwatch.describe_alarms().send().await;
                let _ = logs.describe_log_groups().send().await;
                let _ = ec2.describe_vpcs().send().await;
                let _ = ecr.describe_repositories().send().await;
                let _ = eks.list_clusters().send().await;
                let _ = elasticache.describe_replication_groups().send().await;
                let _ = elb.describe_load_balancers().send().await;
                let _ = iam.list_roles().send().await;
                let _ = kms.list_keys().send().await;
                let _ = quotas.get_service_quota().service_code("ec2").quota_code("L-0263D0A3").send().await;
                let _ = rds.describe_db_instances().send().await;
                let _ = route53.list_hosted_zones().send().await;
                let _ = s3.head_bucket().bucket("models").send().await;
                let _ = sagemaker.list_models().send().await;
                let _ = secretsmanager.list_secrets().send().await;
                let _ = sns.list_topics().send().await;
                let _ = tagging.get_resources().send().await;
            }
        });
        let asked = nowhere.0.lock().unwrap().clone();
        let elsewhere: Vec<_> = asked.iter().filter(|(_, uri)| !uri.starts_with(&format!("{URL}/"))).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        asked.iter().for_each(|(service, _)| *counts.entry(service).or_default() += 1);
        let found: BTreeSet<Option<Service>> = counts.keys().map(|name| Service::signed(name)).collect();
        assert_eq!(found, Service::ALL.into_iter().map(Some).collect::<BTreeSet<_>>(), "{counts:?}");
        // That of the identity and that of the role are both STS.
        assert_eq!((counts.get("sts"), counts.get("ec2")), (Some(&2), Some(&2)), "{counts:?}");
    }

    #[test]
    fn error_of_the_query_protocol_has_its_code_and_message() {
        let answer = "<ErrorResponse xmlns=\"http://elasticloadbalancing.amazonaws.com/doc/2012-06-01/\"><Error><Type>Sender</Type>\
            <Code>LoadBalancerNotFound</Code><Message>There is no &quot;a&quot;</Message></Error><RequestId>1</RequestId></ErrorResponse>";
        let expected = ("LoadBalancerNotFound".to_owned(), "There is no \"a\"".to_owned());
        assert_eq!(refusal(answer).unwrap(), expected);
        // A proxy's.
        assert_eq!(refusal("Bad gateway").unwrap_or_default(), <(String, String)>::default());
    }

    /// Credentials that end at a time, and how often they were asked for.
    #[derive(Debug)]
    struct Ending(SystemTime, Arc<Mutex<usize>>);

    impl ProvideCredentials for Ending {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            *self.1.lock().unwrap() += 1;
            future::ProvideCredentials::ready(Ok(Credentials::new("AKID", "secret", None, Some(self.0), "test")))
        }
    }

    fn config_with(provider: impl ProvideCredentials + 'static) -> SdkConfig {
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .http_client(Nowhere::default())
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .build()
    }

    #[test]
    fn credentials_of_calls_without_a_client_are_kept_while_they_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (minutes, expected) in [(60, [1, 1, 2]), (4, [1, 2, 3])] {
            let asked = Arc::new(Mutex::new(0));
            let config = config_with(Ending(SystemTime::now() + Duration::from_secs(minutes * 60), asked.clone()));
            let identity = Identity { account: "123456789012".to_owned(), arn: String::new() };
            let (secrets, images) = (Arc::new(NoSecrets), Images::default());
            let api = Api::of(&config, identity, None, "eu-central-1".to_owned(), secrets, images);
            let counts = runtime.block_on(async {
                let mut counts = Vec::new();
                for code in ["Throttling", "ExpiredToken", ""] {
                    api.credentials().await.unwrap();
                    counts.push(*asked.lock().unwrap());
                    api.check_session(&mut Error::new(ErrorKind::Denied, "list", "a test").code(code)).await;
                }
                counts
            });
            assert_eq!(counts, expected, "{minutes}");
        }
    }

    #[test]
    fn address_of_load_balancers_is_that_of_the_region_and_the_settings() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (region, fips, dual, host) in [
            ("eu-west-1", false, false, "elasticloadbalancing.eu-west-1.amazonaws.com"),
            ("cn-north-1", false, false, "elasticloadbalancing.cn-north-1.amazonaws.com.cn"),
            ("us-east-1", true, false, "elasticloadbalancing-fips.us-east-1.amazonaws.com"),
            ("us-gov-west-1", true, false, "elasticloadbalancing.us-gov-west-1.amazonaws.com"),
            ("eu-west-1", false, true, "elasticloadbalancing.eu-west-1.api.aws"),
            ("cn-north-1", false, true, "elasticloadbalancing.cn-north-1.api.amazonwebservices.com.cn"),
        ] {
            let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).region(Region::new(region));
            let config = config.use_fips(fips).use_dual_stack(dual).build();
            assert_eq!(runtime.block_on(balancing_url(&config)).unwrap(), format!("https://{host}"));
        }
    }

    /// Credentials that are nowhere.
    #[derive(Debug)]
    struct NoCredentials;

    impl ProvideCredentials for NoCredentials {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("the chain has none")))
        }
    }

    #[test]
    fn missing_credentials_are_not_taken_for_a_network_that_fails() {
        let nowhere = Nowhere::default();
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .http_client(nowhere.clone())
            .credentials_provider(SharedCredentialsProvider::new(NoCredentials))
            .build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(identify(&config)).unwrap_err();
        assert!(is_without_sts(&error), "the STS of another region may have them");
        assert_eq!((error.kind, error.hint.as_deref()), (ErrorKind::Denied, Some(SIGN_IN)));
        assert!(nowhere.0.lock().unwrap().is_empty(), "there is nothing to sign with");
    }
}
