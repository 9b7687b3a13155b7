//! Buckets of S3, Google Cloud Storage and Azure Blob Storage, and of services with their protocols, opened with credentials
//! of the caller's variables.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod identity;
mod route;
mod variables;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use textnlp_net::client::{Url, is_loopback};

pub use route::{Connector, Route};
pub use variables::Variables;

/// The timeout of connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// The account of emulators of Azure Blob Storage:
/// <https://learn.microsoft.com/azure/storage/common/storage-connect-azurite#use-a-well-known-storage-account-and-key>.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// Its published key.
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// A service account of the crate that gets no tokens.
const NO_SERVICE_ACCOUNT: &str =
    r#"{"private_key":"none","private_key_id":"none","client_email":"none","disable_oauth":true}"#;

/// The protocol of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Amazon S3: `s3://BUCKET`.
    S3,
    /// Google Cloud Storage: `gs://BUCKET`.
    Gs,
    /// Azure Blob Storage: `az://CONTAINER`. The account is a variable.
    Az,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::S3, Self::Gs, Self::Az];

    /// As it is written before `://`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that is no scheme of a bucket.
#[derive(Debug, thiserror::Error)]
#[error("`{0}://` is not a supported bucket; supported are `s3://`, `gs://` and `az://`")]
pub struct UnknownScheme(String);

impl FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(text: &str) -> Result<Self, UnknownScheme> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == text).ok_or_else(|| UnknownScheme(text.to_owned()))
    }
}

/// How a bucket is reached.
#[derive(Debug)]
pub struct BucketOptions<'a> {
    /// The address of the service, if not that of the cloud; `http:` only where the caller has checked that it may be.
    pub endpoint: Option<&'a str>,
    /// The region of S3, if not that of the variables.
    pub region: Option<&'a str>,
    /// Authorities and proxies.
    pub connector: Connector,
    /// Retries of a request.
    pub retry: RetryConfig,
}

/// Why a bucket was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A credential cannot be sent.
    #[error("the credential of {0} has a line break or another character that no HTTP header may have")]
    Credential(String),
    /// The settings do not hold together.
    #[error(transparent)]
    Settings(#[from] object_store::Error),
}

/// Opens a bucket, or a container of Azure. Sends no request.
///
/// # Errors
/// A credential cannot be sent, or a setting is missing.
pub fn open(
    scheme: Scheme,
    bucket: &str,
    variables: &Variables,
    options: BucketOptions<'_>,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    if let Some(name) = variables.unsendable() {
        return Err(OpenError::Credential(name));
    }
    let BucketOptions { endpoint, region, connector, retry } = options;
    let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/'));
    let in_the_clear = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = ClientOptions::new().with_connect_timeout(CONNECT).with_allow_http(in_the_clear);
    Ok(match scheme {
        Scheme::S3 => {
            let mut s3 = variables
                .of::<AmazonS3ConfigKey>("AWS_")
                .fold(AmazonS3Builder::new().with_http_connector(connector), |s3, (key, value)| {
                    s3.with_config(key, value)
                });
            if let Some(endpoint) = endpoint {
                s3 = s3.with_endpoint(endpoint);
            }
            if let Some(region) = region {
                s3 = s3.with_region(region);
            }
            Arc::new(s3.with_client_options(client).with_retry(retry).with_bucket_name(bucket).build()?)
        }
        Scheme::Gs => {
            let gs = google(endpoint, variables).with_http_connector(connector).with_client_options(client);
            Arc::new(gs.with_retry(retry).with_bucket_name(bucket).build()?)
        }
        Scheme::Az => {
            let az = azure(endpoint, variables).with_http_connector(connector).with_client_options(client);
            Arc::new(az.with_retry(retry).with_container_name(bucket).build()?)
        }
    })
}

/// Google Cloud Storage with the caller's credentials. An address of this machine gets none: any user may listen there, and the
/// receiver of a token can use it.
fn google(endpoint: Option<&str>, variables: &Variables) -> GoogleCloudStorageBuilder {
    let own = || {
        let google = GoogleCloudStorageBuilder::new();
        let google = match variables.get("SERVICE_ACCOUNT") {
            Some(path) => google.with_service_account_path(path),
            None => google,
        };
        variables.of::<GoogleConfigKey>("GOOGLE_").fold(google, |google, (key, value)| google.with_config(key, value))
    };
    match endpoint {
        Some(here) if is_here(here) => {
            GoogleCloudStorageBuilder::new().with_base_url(here).with_service_account_key(NO_SERVICE_ACCOUNT)
        }
        Some(endpoint) => own().with_base_url(endpoint),
        None => own(),
    }
}

/// Azure Blob Storage with the caller's credentials; on this machine an emulator, with those that all emulators have. See [`google`].
fn azure(endpoint: Option<&str>, variables: &Variables) -> MicrosoftAzureBuilder {
    let azure = match endpoint {
        Some(here) if is_here(here) => {
            MicrosoftAzureBuilder::new().with_account(EMULATOR_ACCOUNT).with_access_key(EMULATOR_KEY)
        }
        _ => {
            let azure = variables
                .of::<AzureConfigKey>("AZURE_")
                .fold(MicrosoftAzureBuilder::new(), |azure, (key, value)| azure.with_config(key, value));
            match (variables.get("IDENTITY_ENDPOINT"), identity::Identity::of(variables)) {
                (Some(endpoint), _) => azure.with_msi_endpoint(endpoint),
                (None, Some(identity)) => azure.with_credentials(Arc::new(identity)),
                (None, None) => azure,
            }
        }
    };
    match endpoint {
        Some(endpoint) => azure.with_endpoint(endpoint.to_owned()),
        None => azure,
    }
}

/// Whether an address is one of this machine.
fn is_here(endpoint: &str) -> bool {
    endpoint.parse::<Url>().is_ok_and(|url| is_loopback(&url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_what_they_are_written_as() {
        for scheme in Scheme::ALL {
            assert_eq!(scheme.name().parse::<Scheme>().unwrap(), scheme);
        }
        assert!("ftp".parse::<Scheme>().unwrap_err().to_string().contains("`ftp://`"));
    }

    #[test]
    fn a_store_on_this_machine_gets_the_credentials_of_an_emulator() {
        let none = Variables::default();
        for (endpoint, is_here) in [
            ("http://127.0.0.1:10000/devstoreaccount1", true),
            ("https://localhost:10000/devstoreaccount1", true),
            ("https://mine.blob.core.windows.net", false),
        ] {
            let account = azure(Some(endpoint), &none).get_config_value(&AzureConfigKey::AccountName);
            assert_eq!(account.as_deref() == Some(EMULATOR_ACCOUNT), is_here, "{endpoint}");
            let account = google(Some(endpoint), &none).get_config_value(&GoogleConfigKey::ServiceAccountKey);
            assert_eq!(account.as_deref() == Some(NO_SERVICE_ACCOUNT), is_here, "{endpoint}");
        }
    }

    #[test]
    fn variables_configure_the_cloud_that_they_name() {
        let variables = Variables::of_pairs([
            ("AZURE_STORAGE_ACCOUNT_NAME", "mine"),
            ("AZURE_NO_SUCH_SETTING", "x"),
            ("GOOGLE_BUCKET", "theirs"),
            ("SERVICE_ACCOUNT", "/key.json"),
        ]);
        let account = azure(None, &variables).get_config_value(&AzureConfigKey::AccountName);
        assert_eq!(account.as_deref(), Some("mine"));
        let google = google(None, &variables);
        assert_eq!(google.get_config_value(&GoogleConfigKey::ServiceAccount).as_deref(), Some("/key.json"));
        assert_eq!(google.get_config_value(&GoogleConfigKey::Bucket).as_deref(), Some("theirs"));
    }
}
