//! The state stores: the local folder, or a cloud's object store. Only this module names them.
//!
//! For a state in an object store, each machine that ran `up` has a `store.json` in the environment's folder. Commands
//! that know only the folder find the state with it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use textnlp_net::client::{ProxySettings, build, same_host};
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Environment, Proxy, StateSettings};
use textnlp_orchestrator::state::{Folder, Objects, Store, io_hint};
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
/// The metadata services of clouds, which no proxy reaches.
const METADATA: &str = "169.254.0.0/16,fd00:ec2::/32,metadata.google.internal";
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

/// Connects to stores with the authorities and proxies of an environment.
#[derive(Debug)]
struct Connector {
    trust: TrustRoots,
    proxy: ProxySettings,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // The crate shortens this timeout for metadata services, which are local or do not exist.
        let seconds = options.get_config_value(&ClientConfigKey::ConnectTimeout);
        let seconds = seconds.and_then(|text| text.strip_suffix('s')?.parse().ok());
        let mut proxy = self.proxy.clone();
        proxy.no_proxy = Some(proxy.no_proxy.into_iter().fold(METADATA.to_owned(), |all, more| all + "," + &more));
        let net = textnlp_net::client::ClientOptions {
            trust: self.trust.clone(),
            proxy,
            connect_timeout: seconds.map_or(CONNECT, Duration::from_secs),
            idle_timeout: None,
            timeout: Some(REQUEST),
        };
        let is_https_only = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() != Some("true");
        let builder = net.builder().map(|builder| builder.redirect(same_host()).http1_only().https_only(is_https_only));
        let client = builder.and_then(build);
        client
            .map(HttpClient::new)
            .map_err(|error| object_store::Error::Generic { store: "HTTP", source: error.into() })
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
        let text = source.read().ok_or_else(|| no_key(anyhow::anyhow!("it is not set")))?;
        let keys = Key::parse(&Secret::new(text.into_bytes())).map_err(|error| no_key(anyhow::Error::new(error)))?;
        let key = keys.into_iter().next().ok_or_else(|| no_key(anyhow::anyhow!("it is empty")))?;
        Ok(Arc::new(objects.sealed(key)))
    }

    /// The bucket and the prefix in it.
    fn bucket(&self) -> anyhow::Result<(Arc<dyn ObjectStore>, &str)> {
        let (scheme, rest) = self.state.store.split_once("://").context("it has no scheme")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoint = self.state.endpoint.as_deref().map(|endpoint| endpoint.trim_end_matches('/'));
        let in_the_clear = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let options = ClientOptions::new().with_connect_timeout(CONNECT).with_allow_http(in_the_clear);
        let (trust, proxy) = (network::trust_with(self.private_ca.as_ref())?, network::proxies(&self.proxy));
        let connector = Connector { trust, proxy };
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
                    s3 = s3.with_region(region);
                }
                Arc::new(s3.with_client_options(options).with_retry(retry).with_bucket_name(bucket).build()?)
            }
            "gs" => {
                let mut gs = GoogleCloudStorageBuilder::from_env().with_http_connector(connector);
                if let Some(endpoint) = endpoint {
                    gs = gs.with_base_url(endpoint);
                }
                Arc::new(gs.with_client_options(options).with_retry(retry).with_bucket_name(bucket).build()?)
            }
            "az" => {
                let mut az = MicrosoftAzureBuilder::from_env().with_http_connector(connector);
                if let Some(endpoint) = endpoint {
                    az = az.with_endpoint(endpoint.to_owned());
                }
                Arc::new(az.with_client_options(options).with_retry(retry).with_container_name(bucket).build()?)
            }
            other => anyhow::bail!("`{other}://` is not a supported state store"),
        };
        Ok((store, prefix))
    }
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
    let located = serde_json::from_slice(&text).with_context(|| format!("read {path}"));
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_store_is_reached_through_the_proxy_and_a_metadata_service_is_not() {
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
        let proxy = ProxySettings { http: Some(proxy), ..ProxySettings::default() };
        let connector = || Connector { trust: TrustRoots::none(), proxy: proxy.clone() };
        let azure = MicrosoftAzureBuilder::new().with_http_connector(connector()).with_allow_http(true);
        let azure = azure.with_endpoint("http://store.invalid".to_owned()).with_account("a").with_access_key("a2V5");
        let missing = azure.with_container_name("c").build().unwrap().get(&Path::from("x")).await;
        assert!(matches!(missing, Err(object_store::Error::NotFound { .. })), "{missing:?}");
        let s3 = AmazonS3Builder::new().with_http_connector(connector()).with_bucket_name("b");
        let s3 = s3
            .with_metadata_endpoint("http://metadata.google.internal")
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        s3.build().unwrap().get(&Path::from("x")).await.unwrap_err();
        assert_eq!(*seen.lock().unwrap(), ["GET http://store.invalid/c/x HTTP/1.1"]);
    }
}
