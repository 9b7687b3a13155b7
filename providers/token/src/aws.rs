//! Tokens for EKS: a token is a presigned URL of STS `GetCallerIdentity` for one cluster. The API server calls it to
//! identify the client:
//! <https://github.com/kubernetes-sigs/aws-iam-authenticator#api-authorization-from-outside-a-cluster>.

use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine;
use jiff::Timestamp;
use textnlp_provider::{Error, ErrorKind, Result, Secret, error_chain};

use super::rest::{MAX_ANSWER_BYTES, Rest, guarded};
use super::{AwsSignIn, EACH, Token, Variables, checked, shown};

/// The prefix of an EKS token.
const PREFIX: &str = "k8s-aws-v1.";
/// The signed header that binds a token to one cluster.
const CLUSTER: &str = "x-k8s-aws-id";
/// The expiry in the URL, as AWS's own tools set it. The authenticator ignores it: it accepts a token for 15 minutes
/// after signing.
const EXPIRES: Duration = Duration::from_secs(60);
/// The reported lifetime of a token, shorter than those 15 minutes.
const LASTS: Duration = Duration::from_secs(14 * 60);
/// The role session name, which CloudTrail logs.
const SESSION: &str = "textnlp-deploy";
/// The longest answer of the query protocol, in bytes: it is a list.
const MAX_LIST_BYTES: usize = 8 << 20;

/// A group of regions with accounts, ARNs and DNS names of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// The second part of an ARN: `aws`.
    pub name: &'static str,
    /// The end of the names of its services: `amazonaws.com`.
    pub dns_suffix: &'static str,
}

/// The partition of a region.
pub fn partition(region: &str) -> Partition {
    let found = PARTITIONS.iter().find(|(prefix, ..)| region.starts_with(prefix));
    let (name, dns_suffix) = found.map_or(("aws", "amazonaws.com"), |&(_, name, suffix)| (name, suffix));
    Partition { name, dns_suffix }
}

/// Region prefixes, and names and DNS suffixes of their partitions; all other regions belong to `aws`:
/// <https://github.com/boto/botocore/blob/develop/botocore/data/partitions.json>.
const PARTITIONS: &[(&str, &str, &str)] = &[
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
];

const ACTION: (&str, &str) = ("sign in to", "aws");

pub(super) async fn token(options: &AwsSignIn, variables: &Variables) -> Result<Token> {
    // EKS allows letters, digits, `-` and `_`. Self-managed clusters with the same authenticator allow more.
    checked("--cluster", &options.cluster, &['_', '.', ':', '/'])?;
    for (what, value) in [("--profile", &options.profile), ("--role-arn", &options.role_arn)] {
        if value.as_ref().is_some_and(String::is_empty) {
            return Err(Error::new(ErrorKind::Invalid, "use", what).because("it is empty"));
        }
    }
    if let Some(region) = &options.region {
        checked("--region", region, &[])?;
    }
    let config = config(options).await;
    let Some(region) = config.region() else {
        let error = Error::new(ErrorKind::Invalid, ACTION.0, ACTION.1).because("no region is set");
        return Err(error.hint("set the region of the cluster: `--region eu-central-1`, or AWS_REGION"));
    };
    let region = checked("the region", region.as_ref(), &[])?;
    let secrets = confided(variables);
    let credentials = credentials(options, &config, &secrets.iter().collect::<Vec<_>>()).await?;
    presigned(&credentials, region, &options.cluster, SystemTime::now())
}

/// The same for the credentials of a session.
///
/// # Errors
/// The credentials have ended or cannot be had.
pub async fn aws_token(credentials: &SharedCredentialsProvider, cluster: &str, region: &str) -> Result<Token> {
    checked("--cluster", cluster, &['_', '.', ':', '/'])?;
    let region = checked("the region", region, &[])?;
    let credentials = credentials.provide_credentials().await;
    let credentials = credentials
        .map_err(|error| Error::new(ErrorKind::Denied, ACTION.0, ACTION.1).because(shown(&error_chain(&error), &[])))?;
    presigned(&credentials, region, cluster, SystemTime::now())
}

/// The headers of a `POST` of this JSON body, signed with the credentials for a service of a region.
///
/// # Errors
/// The credentials have ended or cannot be had, or the URL is none.
pub async fn aws_signed(
    credentials: &SharedCredentialsProvider,
    region: &str,
    service: &str,
    url: &str,
    body: &[u8],
) -> Result<Vec<(String, Secret)>> {
    signed(credentials, (region, service), url, &[("content-type", "application/json")], body).await
}

/// The answer of a service to a signed call: its status and its body.
pub struct AwsAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Secret,
}

/// Makes one signed call of a service with the protocol `JSON 1.1`. `target` is its header `X-Amz-Target`:
/// `AWSInsightsIndexService.GetCostAndUsage`. It is not repeated.
///
/// # Errors
/// The credentials have ended or cannot be had, or there is no answer.
pub async fn aws_call(
    credentials: &SharedCredentialsProvider,
    (region, service): (&str, &str),
    url: &str,
    target: &str,
    body: &[u8],
) -> Result<AwsAnswer> {
    post(
        credentials,
        (region, service),
        url,
        &[("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target)],
        body,
        MAX_ANSWER_BYTES,
    )
    .await
}

/// Makes one signed call of a service with the query protocol: `Action` and `Version` are fields. Its answer is XML. It is not
/// repeated.
///
/// # Errors
/// The credentials have ended or cannot be had, or there is no answer.
pub async fn aws_query(
    credentials: &SharedCredentialsProvider,
    (region, service): (&str, &str),
    url: &str,
    fields: &[(&str, &str)],
) -> Result<AwsAnswer> {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    post(credentials, (region, service), url, &headers, body.as_bytes(), MAX_LIST_BYTES).await
}

async fn post(
    credentials: &SharedCredentialsProvider,
    (region, service): (&str, &str),
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    limit: usize,
) -> Result<AwsAnswer> {
    let address = guarded("the address of the service", url)?;
    let headers = signed(credentials, (region, service), address.as_str(), headers, body).await?;
    let rest = Rest::far(&Variables::of_this_process())?;
    let mut request = rest.post(address).body(body.to_vec());
    for (name, value) in &headers {
        request = request.header(name, value.expose_text().unwrap_or_default());
    }
    let (status, body) = rest.send(("call", service), request, &[], limit).await?;
    Ok(AwsAnswer { status, body })
}

async fn signed(
    credentials: &SharedCredentialsProvider,
    (region, service): (&str, &str),
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Vec<(String, Secret)>> {
    let failed = |kind, why: String| Error::new(kind, "sign", url).because(shown(&why, &[]));
    let found = credentials.provide_credentials().await;
    let identity = found.map_err(|error| failed(ErrorKind::Denied, error_chain(&error)))?.into();
    let invalid = |error: &(dyn std::error::Error + 'static)| failed(ErrorKind::Invalid, error_chain(error));
    let signer = v4::SigningParams::builder().identity(&identity).region(region).name(service).time(SystemTime::now());
    let signer = signer.settings(SigningSettings::default()).build().map_err(|error| invalid(&error))?.into();
    let request = SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body))
        .map_err(|error| invalid(&error))?;
    let (signed, _) = sign(request, &signer).map_err(|error| invalid(&error))?.into_parts();
    let headers = signed.headers().chain(headers.iter().copied());
    Ok(headers.map(|(name, value)| (name.to_owned(), Secret::new(value))).collect())
}

/// The credentials that AWS's own tools find, of a profile or a sign-in, as the variables of a session.
///
/// # Errors
/// There are none, or they have ended.
pub async fn aws_variables() -> Result<Vec<(&'static str, Secret)>> {
    let options = AwsSignIn::default();
    let config = config(&options).await;
    let found = credentials(&options, &config, &[]).await?;
    let session = found.session_token().map(|token| ("AWS_SESSION_TOKEN", Secret::new(token)));
    let region = config.region().map(|region| ("AWS_REGION", Secret::new(region.to_string())));
    let key = [
        ("AWS_ACCESS_KEY_ID", Secret::new(found.access_key_id())),
        ("AWS_SECRET_ACCESS_KEY", Secret::new(found.secret_access_key())),
    ];
    Ok(key.into_iter().chain(session).chain(region).collect())
}

/// The configuration of AWS's own tools: region, profile, proxies, endpoints.
async fn config(options: &AwsSignIn) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(EACH).build();
    let retries = RetryConfig::standard().with_max_attempts(2);
    let mut loader =
        aws_config::defaults(BehaviorVersion::v2026_01_12()).timeout_config(timeouts).retry_config(retries);
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    loader.load().await
}

async fn credentials(options: &AwsSignIn, config: &SdkConfig, secrets: &[&Secret]) -> Result<Credentials> {
    // An explicit profile takes precedence over variables, as in the `aws` CLI.
    let provider = match &options.profile {
        Some(profile) => {
            let settings = ProviderConfig::without_region().with_region(config.region().cloned());
            let provider = ProfileFileCredentialsProvider::builder().profile_name(profile).configure(&settings).build();
            Some(SharedCredentialsProvider::new(provider))
        }
        None => config.credentials_provider(),
    };
    let refused = || match &options.profile {
        Some(profile) => Error::new(ErrorKind::Denied, "sign in to aws with the profile", shown(profile, &[])),
        None => Error::new(ErrorKind::Denied, ACTION.0, ACTION.1),
    };
    let failed = |error: &(dyn std::error::Error + 'static), hint: &str| {
        refused().because(shown(&error_chain(error), secrets)).hint(hint.to_owned())
    };
    let provider = provider.ok_or_else(|| refused().because("no credentials were found"))?;
    let Some(role) = &options.role_arn else {
        return provider.provide_credentials().await.map_err(|error| failed(&error, "`aws sts get-caller-identity` shows your identity; sign in with `aws sso login`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
    };
    let assumed =
        AssumeRoleProvider::builder(role).session_name(SESSION).configure(config).build_from_provider(provider).await;
    assumed.provide_credentials().await.map_err(|error| {
        failed(&error, "check the trust policy of this role and your identity: `aws sts get-caller-identity`")
    })
}

/// The values of variables that must not appear in errors.
fn confided(variables: &Variables) -> Vec<Secret> {
    let names = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"];
    names.iter().filter_map(|name| variables.get(name)).map(Secret::new).collect()
}

/// The token of these credentials for a cluster at a given time.
fn presigned(credentials: &Credentials, region: &str, cluster: &str, now: SystemTime) -> Result<Token> {
    let failed = |why: String| Error::new(ErrorKind::Invalid, ACTION.0, ACTION.1).because(why);
    let began = Timestamp::try_from(now).map_err(|error| failed(error.to_string()))?;
    let mut ends = now + LASTS;
    if let Some(end) = credentials.expiry() {
        if end <= now {
            let error = Error::new(ErrorKind::Denied, ACTION.0, ACTION.1).because("the credentials have expired");
            return Err(error.hint("sign in again: `aws sso login`"));
        }
        // STS rejects a signature once its credentials have expired.
        ends = ends.min(end);
    }
    let suffix = partition(region).dns_suffix;
    let address = format!("https://sts.{region}.{suffix}/?Action=GetCallerIdentity&Version=2011-06-15");
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(EXPIRES);
    let identity = credentials.clone().into();
    let signer =
        v4::SigningParams::builder().identity(&identity).region(region).name("sts").time(now).settings(settings);
    let signer = signer.build().map_err(|error| failed(error_chain(&error)))?.into();
    let headers = [(CLUSTER, cluster)].into_iter();
    let request = SignableRequest::new("GET", &address, headers, SignableBody::Bytes(&[]))
        .map_err(|error| failed(error_chain(&error)))?;
    let (signed, _) = sign(request, &signer).map_err(|error| failed(error_chain(&error)))?.into_parts();
    let mut request = http::Request::new(());
    *request.uri_mut() = address.parse().map_err(|error| failed(format!("{error}")))?;
    signed.apply_to_request_http1x(&mut request);
    let address = zeroize::Zeroizing::new(request.uri().to_string());
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(address.as_bytes());
    let ends = Timestamp::try_from(ends).map_err(|error| failed(error.to_string()))?;
    Token::new(ACTION, Secret::new(format!("{PREFIX}{encoded}")), Some(ends), began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// The Python interpreter of a virtual environment with the pinned packages, which other tests share. `None` with a
    /// message if it cannot be installed.
    fn python(tests: &str) -> Option<String> {
        let packages = ["botocore==1.44.5", "google-auth==2.62.2", "cryptography==46.0.3"];
        let out = Command::new("sh").arg(format!("{tests}/python.sh")).args(packages).output().unwrap();
        if out.status.success() {
            return Some(String::from_utf8_lossy(&out.stdout).trim().to_owned());
        }
        let why = format!("botocore cannot be installed: {}", String::from_utf8_lossy(&out.stderr));
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{why}");
        eprintln!("LEFT OUT: {why}");
        None
    }

    /// Host, path, and the sorted query parameters with the signature.
    fn parts(url: &str) -> (String, Vec<(String, String)>) {
        let url = reqwest::Url::parse(url).unwrap();
        let mut fields: Vec<_> = url.query_pairs().into_owned().collect();
        fields.sort();
        (format!("{}{}", url.host_str().unwrap_or_default(), url.path()), fields)
    }

    #[test]
    fn presigned_url_matches_botocore() {
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests");
        let Some(python) = python(tests) else { return };
        let now: Timestamp = "2026-11-22T10:20:30Z".parse().unwrap();
        for (region, cluster, session) in [
            ("eu-central-1", "prod", None),
            ("us-east-1", "a_b.c:d/e", Some("FwoG/ZXIv+YXdz==")),
            ("cn-north-1", "prod", Some("short")),
            ("us-gov-west-1", "prod", None),
            ("us-iso-east-1", "prod", None),
            ("us-isob-east-1", "prod", None),
            ("us-isof-south-1", "prod", None),
            ("eu-isoe-west-1", "prod", None),
            ("eusc-de-east-1", "prod", None),
        ] {
            let (access, secret) = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
            let credentials = Credentials::new(access, secret, session.map(str::to_owned), None, "test");
            let token = presigned(&credentials, region, cluster, now.into()).unwrap();
            assert_eq!(token.ends, Some("2026-11-22T10:34:30Z".parse().unwrap()));
            let encoded = token.token.expose_text().unwrap().strip_prefix(PREFIX).unwrap();
            let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).unwrap();

            let mut child = Command::new(&python)
                .args([&format!("{tests}/kube_token.py"), "sign"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let options = json!({ "time": "20261122T102030Z", "access": access, "secret": secret, "session": session, "region": region, "cluster": cluster });
            child.stdin.take().unwrap().write_all(options.to_string().as_bytes()).unwrap();
            let expected: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
            assert_eq!(parts(std::str::from_utf8(&url).unwrap()), parts(expected["url"].as_str().unwrap()), "{region}");
        }
    }

    #[test]
    fn aws_token_expires_with_its_credentials() {
        let now: Timestamp = "2026-11-22T10:20:30Z".parse().unwrap();
        let at = |seconds: i64| {
            let end = now + jiff::SignedDuration::from_secs(seconds);
            let credentials = Credentials::new("AKID", "hunter2", None, Some(end.into()), "test");
            presigned(&credentials, "eu-central-1", "prod", now.into()).map(|token| (end, token.ends))
        };
        let (end, ends) = at(90).unwrap();
        assert_eq!(ends, Some(end));
        let error = at(0).unwrap_err();
        assert!(error_chain(&error).contains("have expired") && error.hint.is_some(), "{error:?}");
    }
}
