//! Where the state of an environment lies: its folder on this machine, or a cloud's object store. The only place that names those.
//!
//! A state in an object store leaves `store.json` in the environment's folder on each machine that has put it up: commands that know
//! the folder and not the file find the state by it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Environment, StateSettings};
use textnlp_orchestrator::state::{Folder, Objects, Store};
use textnlp_provider::{EnvironmentName, Secret};

use crate::again::Again;
use crate::args::Output;
use crate::commands::backup::put_file;
use crate::report::{Console, Exit, Failure};
use crate::session::{Chosen, Session};

/// The pointer to a state that lies elsewhere.
const POINTER: &str = "store.json";
/// The folder of this machine.
pub const LOCAL: &str = "local";
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one request may take; the engine itself asks less of those that cannot wait.
const REQUEST: Duration = Duration::from_secs(60);

/// How a state's place is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Located {
    environment: EnvironmentName,
    /// As the environment says.
    pub state: StateSettings,
    /// The authority of a store of one's own.
    private_ca: Option<Utf8PathBuf>,
}

impl Located {
    /// Where an environment says that its state is.
    pub fn of(environment: &Environment) -> anyhow::Result<Self> {
        let here = || Utf8PathBuf::try_from(std::env::current_dir()?).map_err(anyhow::Error::new);
        let absolute = |path: &String| Ok::<_, anyhow::Error>(here()?.join(path));
        Ok(Self {
            environment: environment.environment.clone(),
            state: environment.state.clone(),
            private_ca: environment.network.private_ca.as_ref().map(absolute).transpose()?,
        })
    }

    /// The same environment with its state elsewhere.
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

    /// Opens it. Nothing is asked of the store yet.
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
            Failure::usage("no_state_key", error.context(format!("read the state's key ({source})")))
                .hint("name a key that `age-keygen` made: a line AGE-SECRET-KEY-1…; without it nobody reads the state")
        };
        let text = source.read().ok_or_else(|| no_key(anyhow::anyhow!("it is not there")))?;
        let keys = Key::parse(&Secret::new(text.into_bytes())).map_err(|error| no_key(anyhow::Error::new(error)))?;
        let key = keys.into_iter().next().ok_or_else(|| no_key(anyhow::anyhow!("it is empty")))?;
        Ok(Arc::new(objects.sealed(key)))
    }

    /// The bucket, and where in it.
    fn bucket(&self) -> anyhow::Result<(Arc<dyn ObjectStore>, &str)> {
        let (scheme, rest) = self.state.store.split_once("://").context("it has no scheme")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoint = self.state.endpoint.as_deref().map(|endpoint| endpoint.trim_end_matches('/'));
        let options = self.client(endpoint)?;
        // The engine asks again by itself, and knows when it must not.
        let backoff = BackoffConfig::default();
        let retry = RetryConfig { backoff, max_retries: 0, retry_timeout: REQUEST };
        let store: Arc<dyn ObjectStore> = match scheme {
            "s3" => {
                let mut s3 = AmazonS3Builder::from_env().with_client_options(options).with_retry(retry);
                if let Some(endpoint) = endpoint {
                    s3 = s3.with_endpoint(endpoint);
                }
                if let Some(region) = &self.state.region {
                    s3 = s3.with_region(region);
                }
                Arc::new(s3.with_bucket_name(bucket).build()?)
            }
            "gs" => {
                let mut gs = GoogleCloudStorageBuilder::from_env().with_client_options(options).with_retry(retry);
                if let Some(endpoint) = endpoint {
                    gs = gs.with_base_url(endpoint);
                }
                Arc::new(gs.with_bucket_name(bucket).build()?)
            }
            "az" => {
                let mut az = MicrosoftAzureBuilder::from_env().with_client_options(options).with_retry(retry);
                if let Some(endpoint) = endpoint {
                    az = az.with_endpoint(endpoint.to_owned());
                }
                Arc::new(az.with_container_name(bucket).build()?)
            }
            other => anyhow::bail!("`{other}://` is no kind of store that this program knows"),
        };
        Ok((store, prefix))
    }

    fn client(&self, endpoint: Option<&str>) -> anyhow::Result<ClientOptions> {
        let in_the_clear = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut options =
            ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(in_the_clear);
        if let Some(file) = &self.private_ca {
            let pem = std::fs::read(file).with_context(|| format!("read {file}"))?;
            for certificate in Certificate::from_pem_bundle(&pem)? {
                options = options.with_root_certificate(certificate);
            }
        }
        Ok(options)
    }
}

/// What a folder says of where its environment's state is; `None` where it is the folder itself, or nothing was ever put up.
pub fn recorded(folder: &Utf8Path) -> Result<Option<Located>, Failure> {
    let path = folder.join(POINTER);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // A file in the place of a folder is told by whoever writes there first.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => {
            let error = anyhow::Error::new(error).context(format!("read {path}"));
            return Err(Failure::new(Exit::Failed, "state", error).hint(
                "state needs a folder that can be read and written: mend this one, or choose another with --state-dir DIR",
            ));
        }
    };
    let located = serde_json::from_slice(&text).with_context(|| format!("read {path}"));
    located.map(Some).map_err(|error| {
        Failure::new(Exit::Failed, "damaged_state", error)
            .hint("it only says where the state is: remove it, and the environment's file says so again")
    })
}

/// The state that a folder keeps or points to.
pub fn of_folder(folder: &Utf8Path) -> Result<Arc<dyn Store>, Failure> {
    match recorded(folder)? {
        Some(located) => located.open(folder, Console::new(Output::Text, true)),
        None => Ok(Arc::new(Folder::at(folder))),
    }
}

/// The state of an environment, where it says; refused where the state is known to lie elsewhere.
pub fn of(session: &Session, chosen: &Chosen) -> Result<Arc<dyn Store>, Failure> {
    let wanted = Located::of(&chosen.loaded.environment)?;
    let there = recorded(&chosen.folder)?;
    let is = match &there {
        Some(there) => Some(there.state.store.as_str()),
        None if chosen.folder.join("lineage.json").exists() => Some(LOCAL),
        None => None,
    };
    if let Some(is) = is.filter(|is| *is != wanted.state.store) {
        let name = |store: &str| if store == LOCAL { chosen.folder.to_string() } else { store.to_owned() };
        let error = anyhow::anyhow!(
            "the state of {} lies in {}, and the environment says {}",
            chosen.name,
            name(is),
            name(&wanted.state.store)
        );
        let again: Again = session.again();
        let move_it = again.same(&format!("state move --to {}", wanted.state.store), &chosen.name);
        return Err(Failure::refused("state_elsewhere", error)
            .hint(format!("move it: {move_it}\nor put `state.store: {is}` back")));
    }
    wanted.open(&chosen.folder, session.console())
}

/// Writes down on this machine where the state is.
pub fn remember(located: &Located, folder: &Utf8Path) -> anyhow::Result<()> {
    let path = folder.join(POINTER);
    if located.is_local() {
        return match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(anyhow::Error::new(error).context(format!("remove {path}"))),
        };
    }
    let text = serde_json::to_vec_pretty(located).context("write where the state is")?;
    if std::fs::read(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    put_file(&path, &text).with_context(|| format!("write {path}"))
}
