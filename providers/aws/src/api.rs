//! The clients of AWS's services, and one way to call them.

use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;
use textnlp_provider::{Error, ErrorKind, Result, SecretStore, error_chain};

use crate::tables::errors;

/// Timeout of one call. The engine allows ten seconds for everything that a verb does.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How an account is signed in to. What is not set is found as AWS's own tools find it: variables, profiles, SSO, web identity,
/// the metadata service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// The region of the site.
    pub region: String,
    /// The role to assume, by its ARN.
    pub role: Option<String>,
    /// A simulator in place of AWS.
    pub simulator: Option<Simulator>,
}

/// A server that simulates AWS's APIs, for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulator {
    /// The URL of all services.
    pub url: String,
    /// What requests are signed with.
    pub credentials: aws_credential_types::Credentials,
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
    pub(crate) identity: Identity,
    pub(crate) region: String,
    /// Where the values of secret references are.
    pub(crate) secrets: Arc<dyn SecretStore>,
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
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) secretsmanager: aws_sdk_secretsmanager::Client,
    pub(crate) tagging: aws_sdk_resourcegroupstagging::Client,
}

impl Api {
    /// Signs in and asks who is signed in.
    pub(crate) async fn connect(access: &Access, secrets: Arc<dyn SecretStore>) -> Result<Self> {
        let (config, identity) = Self::signed_in(access).await?;
        Ok(Self::of(&config, identity, access.region.clone(), secrets))
    }

    /// Asks who is signed in.
    pub(crate) async fn identify(access: &Access) -> Result<Identity> {
        Ok(Self::signed_in(access).await?.1)
    }

    async fn signed_in(access: &Access) -> Result<(SdkConfig, Identity)> {
        let config = configured(access).await?;
        let sts = aws_sdk_sts::Client::new(&config);
        let unknown = Identity { account: String::new(), arn: "an unknown identity".to_owned() };
        let answer = sent("sts", "sign in to", "aws", &unknown, sts.get_caller_identity().send()).await;
        let answer = answer.map_err(|error| match error.hint {
            Some(_) => error,
            None => error.hint("`aws sts get-caller-identity` shows your identity; sign in with `aws sso login`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        })?;
        let identity = Identity { account: answer.account.unwrap_or_default(), arn: answer.arn.unwrap_or_default() };
        Ok((config, identity))
    }

    fn of(config: &SdkConfig, identity: Identity, region: String, secrets: Arc<dyn SecretStore>) -> Self {
        let mut s3 = aws_sdk_s3::config::Builder::from(config);
        // A bucket is a part of the host's name only where the host is one of AWS.
        s3.set_force_path_style(Some(config.endpoint_url().is_some()));
        Self {
            identity,
            region,
            secrets,
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
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            secretsmanager: aws_sdk_secretsmanager::Client::new(config),
            tagging: aws_sdk_resourcegroupstagging::Client::new(config),
        }
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
        sent(service, action, subject, &self.identity, answer).await
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

async fn sent<T, E>(
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
    failed.code = code;
    failed.request_id = request_id;
    let who = &identity.arn;
    let why = if failed.kind == ErrorKind::Denied { format!("{why} (signed in as {who})") } else { why };
    failed = failed.because(why);
    failed.hint = hint;
    Err(failed)
}

async fn configured(access: &Access) -> Result<SdkConfig> {
    let timeouts = TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .timeout_config(timeouts)
        .retry_config(RetryConfig::disabled())
        .region(Region::new(access.region.clone()));
    if let Some(Simulator { url, credentials }) = &access.simulator {
        loader = loader.endpoint_url(url).credentials_provider(credentials.clone());
    }
    let config = loader.load().await;
    let Some(role) = &access.role else { return Ok(config) };
    if config.credentials_provider().is_none() {
        return Err(Error::new(ErrorKind::Denied, "assume", role.clone()).because("no credentials were found"));
    }
    let assumed = aws_config::sts::AssumeRoleProvider::builder(role)
        .session_name("textnlp-deploy")
        .configure(&config)
        .build()
        .await;
    let provider = aws_credential_types::provider::SharedCredentialsProvider::new(assumed);
    Ok(config.into_builder().credentials_provider(provider).build())
}
