//! The state stores: the local folder, or a cloud's object store. Only this module names them.
//!
//! For a state in an object store, each machine that ran `up` has a `store.json` in the environment's folder. Commands
//! that know only the folder find the state with it.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize};
use textnlp_net::client::{ProxySettings, Url, build, is_loopback, same_host};
use textnlp_net::trust::{TrustError, TrustRoots};
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Environment, Proxy, StateSettings};
use textnlp_orchestrator::environment::{check_endpoint, is_region};
use textnlp_orchestrator::state::{Folder, Objects, Store, io_hint, json_problem};
use textnlp_provider::{EnvironmentName, Secret};
use textnlp_service::backup::put_file;

use crate::args::Output;
use crate::network;
use crate::report::{Console, Exit, Failure};
use crate::session::{ChosenEnvironment, Session};

/// The file that points to a remote state.
const POINTER: &str = "store.json";
/// The error code of a state that cannot be read.
pub const DAMAGED: &str = "damaged_state";
/// The name of the local store.
pub const LOCAL: &str = "local";
/// Timeout of connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// Names a file with a token of AWS.
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// The longest token that is looked at, in bytes.
const TOKEN_MAX: u64 = 64 << 10;
/// Variables whose values become headers of requests.
const IN_HEADERS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "IDENTITY_HEADER"];
/// The account of emulators of Azure Blob Storage:
/// <https://learn.microsoft.com/azure/storage/common/storage-connect-azurite#use-a-well-known-storage-account-and-key>.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
/// Its published key.
const EMULATOR_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// A service account of the crate that gets no tokens.
const NO_SERVICE_ACCOUNT: &str =
    r#"{"private_key":"none","private_key_id":"none","client_email":"none","disable_oauth":true}"#;
/// Timeout of one request. The state engine uses shorter ones where it cannot wait.
const REQUEST: Duration = Duration::from_secs(60);

/// The location of a state, as stored in `store.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateLocation {
    environment: EnvironmentName,
    /// The environment's state settings.
    pub state: StateSettings,
    /// The private CA of the store.
    private_ca: Option<Utf8PathBuf>,
    /// The environment's proxies.
    #[serde(default, skip_serializing_if = "is_default")]
    proxy: Proxy,
}

fn is_default(proxy: &Proxy) -> bool {
    *proxy == Proxy::default()
}

/// The authorities and proxies of connections.
#[derive(Debug, Clone)]
struct Route {
    trust: TrustRoots,
    proxy: ProxySettings,
}

/// Connects to stores, and to the services that give credentials for them, by the authorities and proxies of the caller. Those of an
/// environment file are for the host that the same file names.
#[derive(Debug)]
struct Connector {
    own: Route,
    of_file: Option<(String, Route)>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let own = self.own.client(options)?;
        let of_file = self.of_file.as_ref();
        let of_file = of_file.map(|(host, route)| route.client(options).map(|client| (host.clone(), client)));
        let of_file = of_file.transpose()?;
        Ok(HttpClient::new(ByHost { own, of_file }))
    }
}

/// Clients of a store.
#[derive(Debug)]
struct ByHost {
    own: reqwest::Client,
    of_file: Option<(String, reqwest::Client)>,
}

#[async_trait]
impl HttpService for ByHost {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let client = match &self.of_file {
            Some((host, client)) if request.uri().host().is_some_and(|to| to.eq_ignore_ascii_case(host)) => client,
            _ => &self.own,
        };
        client.call(request).await
    }
}

impl Route {
    /// That of the caller's variables.
    fn own() -> Result<Self, TrustError> {
        Ok(Self { trust: network::trust_with(None)?, proxy: ProxySettings::from_env() })
    }

    fn client(&self, options: &ClientOptions) -> object_store::Result<reqwest::Client> {
        // The crate shortens this timeout for metadata services, which are local or do not exist.
        let seconds = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let seconds = seconds.and_then(|text| text.strip_suffix('s')?.parse().ok());
        let net = textnlp_net::client::ClientOptions {
            trust: self.trust.clone(),
            proxy: self.proxy.clone(),
            connect_timeout: seconds.map_or(CONNECT, Duration::from_secs),
            idle_timeout: None,
            timeout: Some(REQUEST),
        };
        let is_https_only = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() != Some("true");
        let builder = net.builder().map(|builder| builder.redirect(same_host()).http1_only().https_only(is_https_only));
        let client = builder.and_then(build);
        client.map_err(|error| object_store::Error::Generic { store: "HTTP", source: error.into() })
    }
}

impl StateLocation {
    /// The location of the state in an environment file.
    pub fn of(environment: &Environment) -> anyhow::Result<Self> {
        let here = || Utf8PathBuf::try_from(std::env::current_dir()?).map_err(anyhow::Error::new);
        let absolute = |path: &String| Ok::<_, anyhow::Error>(here()?.join(path));
        Ok(Self {
            environment: environment.environment.clone(),
            state: environment.state.clone(),
            private_ca: environment.network.private_ca.as_ref().map(absolute).transpose()?,
            proxy: environment.network.proxy.clone(),
        })
    }

    /// The same settings with another store.
    pub fn moved_to(&self, store: &str) -> Self {
        let mut moved = self.clone();
        moved.state.store = store.to_owned();
        if store == LOCAL {
            (moved.state.endpoint, moved.state.region, moved.state.encryption_key) = (None, None, None);
        }
        moved
    }

    fn is_local(&self) -> bool {
        self.state.store == LOCAL
    }

    /// Opens the store. Sends no request yet.
    pub fn open(&self, folder: &Utf8Path, console: Console) -> Result<Arc<dyn Store>, Failure> {
        if self.is_local() {
            return Ok(Arc::new(Folder::at(folder)));
        }
        let wrong = |error: anyhow::Error| {
            Failure::usage("no_such_store", error.context(format!("open the state in {}", self.state.store))).hint(
                "write `state.store: s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `local`",
            )
        };
        let (store, prefix) = self.bucket().map_err(wrong)?;
        let root =
            prefix.split('/').filter(|part| !part.is_empty()).fold(Path::default(), |path, part| path.join(part));
        let root = root.join(self.environment.as_str());
        let place = format!("{}/{}", self.state.store.trim_end_matches('/'), self.environment);
        let objects = Objects::new(store, root, place, Arc::new(SystemClock)).telling(move |text| console.say(text));
        let Some(source) = &self.state.encryption_key else { return Ok(Arc::new(objects)) };
        let no_key = |error: anyhow::Error| {
            Failure::usage("no_state_key", error.context(format!("read the state's key ({source})"))).hint(
                "give a key from `age-keygen`: a line AGE-SECRET-KEY-1…; without it the state cannot be decrypted",
            )
        };
        let text = source.read().ok_or_else(|| no_key(anyhow::anyhow!("it is not set, or is no text")))?;
        let keys = Key::parse(&Secret::new(text.into_bytes())).map_err(|error| no_key(anyhow::Error::new(error)))?;
        let key = keys.into_iter().next().ok_or_else(|| no_key(anyhow::anyhow!("it is empty")))?;
        Ok(Arc::new(objects.sealed(key)))
    }

    /// The host of `state.endpoint`, with the authorities and proxies that come with it. None for a store that gets tokens, and for a
    /// host that the caller's variables name: it may be the one that gives credentials. A store with the protocol of S3 gets
    /// signatures only.
    fn route_of_file(&self, scheme: &str) -> anyhow::Result<Option<(String, Route)>> {
        let Some(endpoint) = self.state.endpoint.as_deref().filter(|_| scheme == "s3") else { return Ok(None) };
        let url: Url = endpoint.parse().with_context(|| format!("read the address `{endpoint}`"))?;
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let Some(host) = url.host_str().filter(|host| !hosts_of(variables).contains(*host)) else { return Ok(None) };
        let route =
            Route { trust: network::trust_with(self.private_ca.as_ref())?, proxy: network::proxies(&self.proxy) };
        Ok(Some((host.to_owned(), route)))
    }

    /// The bucket and the prefix in it.
    fn bucket(&self) -> anyhow::Result<(Arc<dyn ObjectStore>, &str)> {
        let (scheme, rest) = self.state.store.split_once("://").context("it has no scheme")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // `store.json` may come with a folder of another author.
        if let Some(endpoint) = &self.state.endpoint {
            check_endpoint(endpoint, &self.state.store)
                .map_err(|(cause, fix)| anyhow::anyhow!("{cause}: {fix}").context(format!("use {endpoint}")))?;
        }
        let endpoint = self.state.endpoint.as_deref().map(|endpoint| endpoint.trim_end_matches('/'));
        let in_the_clear = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        if let Some(name) = unsendable(|name| std::env::var(name).ok()) {
            anyhow::bail!(
                "the credential of {name} has a line break or another character that no HTTP header may have"
            );
        }
        let options = ClientOptions::new().with_connect_timeout(CONNECT).with_allow_http(in_the_clear);
        let connector = Connector { own: Route::own()?, of_file: self.route_of_file(scheme)? };
        // The state engine has its own retries, and knows which requests must not be repeated.
        let backoff = BackoffConfig::default();
        let retry = RetryConfig { backoff, max_retries: 0, retry_timeout: REQUEST };
        let store: Arc<dyn ObjectStore> = match scheme {
            "s3" => {
                let mut s3 = AmazonS3Builder::from_env().with_http_connector(connector);
                if let Some(endpoint) = endpoint {
                    s3 = s3.with_endpoint(endpoint);
                }
                if let Some(region) = &self.state.region {
                    // It becomes a part of the address that the credentials are sent to.
                    anyhow::ensure!(is_region(region), "`{region}` is not the name of a region");
                    s3 = s3.with_region(region);
                }
                Arc::new(s3.with_client_options(options).with_retry(retry).with_bucket_name(bucket).build()?)
            }
            "gs" => {
                let gs = google(endpoint).with_http_connector(connector).with_client_options(options);
                Arc::new(gs.with_retry(retry).with_bucket_name(bucket).build()?)
            }
            "az" => {
                let az = azure(endpoint).with_http_connector(connector).with_client_options(options);
                Arc::new(az.with_retry(retry).with_container_name(bucket).build()?)
            }
            other => anyhow::bail!("`{other}://` is not a supported state store"),
        };
        Ok((store, prefix))
    }
}

/// Google Cloud Storage with the caller's credentials. An address of this machine gets none: any user may listen there, and the
/// receiver of a token can use it.
fn google(endpoint: Option<&str>) -> GoogleCloudStorageBuilder {
    match endpoint {
        Some(here) if is_here(here) => {
            GoogleCloudStorageBuilder::new().with_base_url(here).with_service_account_key(NO_SERVICE_ACCOUNT)
        }
        Some(endpoint) => GoogleCloudStorageBuilder::from_env().with_base_url(endpoint),
        None => GoogleCloudStorageBuilder::from_env(),
    }
}

/// Azure Blob Storage with the caller's credentials; on this machine an emulator, with those that all emulators have. See [`google`].
fn azure(endpoint: Option<&str>) -> MicrosoftAzureBuilder {
    let azure = match endpoint {
        Some(here) if is_here(here) => {
            MicrosoftAzureBuilder::new().with_account(EMULATOR_ACCOUNT).with_access_key(EMULATOR_KEY)
        }
        _ => MicrosoftAzureBuilder::from_env(),
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

/// The variable with a credential that cannot be sent: the crate panics on it.
fn unsendable(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is_sendable = |text: &str| HeaderValue::from_str(text).is_ok();
    let file = variable(TOKEN_FILE).and_then(|path| {
        let mut text = String::new();
        std::fs::File::open(path).ok()?.take(TOKEN_MAX).read_to_string(&mut text).ok()?;
        Some((TOKEN_FILE, text))
    });
    let values = IN_HEADERS.into_iter().filter_map(|name| Some((name, variable(name)?)));
    values.chain(file).find(|(_, text)| !is_sendable(text)).map(|(name, _)| name.to_owned())
}

/// The hosts in these variables' addresses: services that the caller sends credentials to.
fn hosts_of(variables: impl Iterator<Item = (String, String)>) -> BTreeSet<String> {
    // A store with the protocol of S3 gets signatures only.
    let is_of_cloud = |name: &str| {
        name != "AWS_ENDPOINT_URL_S3" && ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|prefix| name.starts_with(prefix))
    };
    let addresses = variables.filter(|(name, _)| is_of_cloud(name)).filter_map(|(_, value)| value.parse::<Url>().ok());
    addresses.filter_map(|address| address.host_str().map(str::to_owned)).collect()
}

/// The location in a folder's `store.json`. `None` if the state is in the folder itself, or `up` never ran.
pub fn recorded(folder: &Utf8Path) -> Result<Option<StateLocation>, Failure> {
    let path = folder.join(POINTER);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // A file in place of the folder is reported by the first write.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => {
            let hint = io_hint(path.as_str(), error.kind());
            let error = anyhow::Error::new(error).context(format!("read {path}"));
            return Err(Failure::new(Exit::Failed, "state", error).hint(hint));
        }
    };
    let located = serde_json::from_slice(&text).map_err(|error| anyhow::Error::msg(json_problem(&error)));
    let located = located.with_context(|| format!("read {path}"));
    located.map(Some).map_err(|error| {
        Failure::new(Exit::Failed, DAMAGED, error)
            .hint("it only records where the state is, and is written again by `textnlp-deploy state repair`")
    })
}

/// The state that a folder contains or points to.
pub fn of_folder(folder: &Utf8Path) -> Result<Arc<dyn Store>, Failure> {
    match recorded(folder)? {
        Some(located) => located.open(folder, Console::new(Output::Text, true)),
        None => Ok(Arc::new(Folder::at(folder))),
    }
}

/// The state of an environment file. Refused if the recorded location is another one.
pub fn of(session: &Session, chosen: &ChosenEnvironment) -> Result<Arc<dyn Store>, Failure> {
    let wanted = StateLocation::of(&chosen.loaded.environment)?;
    let repair = || chosen.scope.command("state repair");
    let there = recorded(&chosen.scope.folder)
        .map_err(|failure| if failure.code == DAMAGED { failure.hint(repair()) } else { failure })?;
    let is = match &there {
        Some(there) => Some(there.state.store.as_str()),
        None if chosen.scope.folder.join("lineage.json").exists() => Some(LOCAL),
        None => None,
    };
    if let Some(is) = is.filter(|is| *is != wanted.state.store) {
        let name = |store: &str| if store == LOCAL { chosen.scope.folder.to_string() } else { store.to_owned() };
        let error = anyhow::anyhow!(
            "the state of {} is in {}, but the environment file names {}",
            chosen.scope.name,
            name(is),
            name(&wanted.state.store)
        );
        let move_it = chosen.scope.same(&format!("state move --to {}", wanted.state.store));
        return Err(Failure::refused("state_elsewhere", error)
            .hint(format!("move it: {move_it}\nor restore `state.store: {is}`")));
    }
    wanted.open(&chosen.scope.folder, session.console())
}

/// Records the location of the state on this machine.
pub fn remember(located: &StateLocation, folder: &Utf8Path) -> anyhow::Result<()> {
    let path = folder.join(POINTER);
    if located.is_local() {
        return match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(anyhow::Error::new(error).context(format!("remove {path}"))),
        };
    }
    let text = serde_json::to_vec_pretty(located).context("record where the state is")?;
    if std::fs::read(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    put_file(&path, &text).with_context(|| format!("write {path}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use object_store::ObjectStoreExt;
    use object_store::aws::AmazonS3ConfigKey;
    use object_store::azure::AzureConfigKey;
    use object_store::gcp::GoogleConfigKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_recorded_store_is_checked_like_that_of_an_environment_file() {
        for (store, endpoint) in [
            ("gs://b/x", "http://storage.example.com"),
            ("gs://b/x", "https://storage.example.com"),
            ("az://b/x", "https://storage.example.com"),
            ("s3://b/x", "http://minio.example.com"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let folder = Utf8Path::from_path(folder.path()).unwrap();
            let pointer = serde_json::json!({
                "environment": "prod", "state": { "store": store, "endpoint": endpoint }, "private_ca": null,
            });
            std::fs::write(folder.join(POINTER), pointer.to_string()).unwrap();
            let refused = of_folder(folder).err().unwrap_or_else(|| panic!("{store} at {endpoint}"));
            assert!(format!("{:#}", refused.error).contains(endpoint), "{:#}", refused.error);
        }
    }

    /// A proxy that finds nothing, with the first lines of the requests that it gets.
    async fn proxy() -> (Route, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sees = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
                sees.lock().unwrap().push(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
                let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
            }
        });
        let proxy = ProxySettings { http: Some(proxy.clone()), https: Some(proxy), ..ProxySettings::default() };
        (Route { trust: TrustRoots::none(), proxy }, seen)
    }

    #[tokio::test]
    async fn the_proxy_of_a_file_is_for_the_store_that_it_names_and_for_no_credential() {
        let ((own, seen), (of_file, seen_by_file)) = (proxy().await, proxy().await);
        let connector = || Connector { own: own.clone(), of_file: Some(("store.invalid".to_owned(), of_file.clone())) };
        let retry = || RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let azure = MicrosoftAzureBuilder::new().with_http_connector(connector()).with_allow_http(true);
        let azure = azure.with_endpoint("http://store.invalid".to_owned()).with_account("a").with_access_key("a2V5");
        let missing = azure.with_container_name("c").build().unwrap().get(&Path::from("x")).await;
        assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
        let s3 = AmazonS3Builder::new().with_http_connector(connector()).with_bucket_name("b");
        let s3 = s3.with_metadata_endpoint("http://metadata.google.internal").with_retry(retry());
        s3.build().unwrap().get(&Path::from("x")).await.unwrap_err();
        assert!(seen.lock().unwrap().is_empty(), "no proxy reaches a metadata service");
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "eyJ0").unwrap();
        let s3 = AmazonS3Builder::new().with_http_connector(connector()).with_bucket_name("b").with_allow_http(true);
        let s3 = s3.with_endpoint("http://store.invalid").with_retry(retry());
        let s3 = s3
            .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token.to_str().unwrap())
            .with_config(AmazonS3ConfigKey::RoleArn, "arn:aws:iam::1:role/r")
            .with_config(AmazonS3ConfigKey::StsEndpoint, "https://sts.invalid");
        s3.build().unwrap().get(&Path::from("x")).await.unwrap_err();
        let seen = seen.lock().unwrap();
        assert!(seen.len() == 1 && seen[0].starts_with("CONNECT sts.invalid:443"), "{seen:?}");
        assert_eq!(*seen_by_file.lock().unwrap(), ["GET http://store.invalid/c/x HTTP/1.1"]);
    }

    #[test]
    fn hosts_of_the_callers_variables_keep_the_callers_route() {
        let variables = [
            ("AWS_ENDPOINT_URL_STS", "https://minio.example:9000"),
            ("AZURE_AUTHORITY_HOST", "https://login.example/"),
            ("AWS_ENDPOINT_URL_S3", "https://store.example"),
            ("AWS_REGION", "eu-central-1"),
            ("CI_SERVER_URL", "https://gitlab.example"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let hosts: Vec<_> = hosts_of(variables.into_iter()).into_iter().collect();
        assert_eq!(hosts, ["login.example", "minio.example"]);
        let location = |store: &str, endpoint: &str| {
            let text = format!(
                r#"{{"environment":"prod","state":{{"store":"{store}","endpoint":"{endpoint}"}},"private_ca":null}}"#
            );
            serde_json::from_str::<StateLocation>(&text).unwrap()
        };
        let s3 = location("s3://b/x", "https://store.invalid:9000").route_of_file("s3").unwrap();
        assert_eq!(s3.map(|(host, _)| host).as_deref(), Some("store.invalid"));
        // They get tokens, not signatures.
        assert!(location("gs://b/x", "https://x.googleapis.com").route_of_file("gs").unwrap().is_none());
    }

    #[test]
    fn a_store_on_this_machine_gets_the_credentials_of_an_emulator() {
        for (endpoint, is_here) in [
            ("http://127.0.0.1:10000/devstoreaccount1", true),
            ("https://localhost:10000/devstoreaccount1", true),
            ("https://mine.blob.core.windows.net", false),
        ] {
            let account = azure(Some(endpoint)).get_config_value(&AzureConfigKey::AccountName);
            assert_eq!(account.as_deref() == Some(EMULATOR_ACCOUNT), is_here, "{endpoint}");
            let account = google(Some(endpoint)).get_config_value(&GoogleConfigKey::ServiceAccountKey);
            assert_eq!(account.as_deref() == Some(NO_SERVICE_ACCOUNT), is_here, "{endpoint}");
        }
    }

    #[test]
    fn credentials_that_no_header_can_hold_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let refused = |content: &str, session: Option<&str>| {
            std::fs::write(&token, content).unwrap();
            unsendable(|name| match name {
                TOKEN_FILE => Some(token.to_str().unwrap().to_owned()),
                "AWS_SESSION_TOKEN" => session.map(str::to_owned),
                _ => None,
            })
        };
        assert_eq!(refused("eyJ0", Some("abc")), None);
        assert_eq!(refused("eyJ0\n", None).as_deref(), Some(TOKEN_FILE));
        assert_eq!(refused("eyJ0", Some("a\nb")).as_deref(), Some("AWS_SESSION_TOKEN"));
    }
}
