//! The stores of states and backups: the local folder, or a cloud's object store. Only this module names them.
//!
//! For a state in an object store, each machine that ran `up` has a `store.json` in the environment's folder. Commands
//! that know only the folder find the state with it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use textnlp_buckets::{BucketOptions, Connector, Route, Scheme, Variables};
use textnlp_net::client::{ProxySettings, Url};
use textnlp_net::trust::TrustError;
use textnlp_orchestrator::backup::{Bucket, Key};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Environment, NetworkSettings, Proxy, SecretSource, StateSettings};
use textnlp_orchestrator::environment::{check_endpoint, is_region};
use textnlp_orchestrator::state::{Folder, Objects, Store, io_hint, json_problem};
use textnlp_provider::{EnvironmentName, Secret};
use textnlp_service::Scope;
use textnlp_service::backup::{put_file, secret_file};

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
/// Timeout of one request. The state engine uses shorter ones where it cannot wait.
const REQUEST: Duration = Duration::from_secs(60);

/// Timeout of a request about a backup: a part of 16 MiB at 450 kbit/s.
const TRANSFER: Duration = Duration::from_secs(300);
/// Retries of such a request.
const RETRIES_MAX: usize = 4;
/// The longest time in which it is repeated.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// The variable with the checksum of each upload.
const CHECKSUM: &str = "AWS_CHECKSUM_ALGORITHM";
/// The variable of a sign-in by a program of this machine.
const OF_AZURE_CLI: &str = "AZURE_USE_AZURE_CLI";
/// The variables with which a bucket is signed in to.
const SIGNS_IN: [(Scheme, &[&str]); 3] = [
    (
        Scheme::S3,
        &[
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ],
    ),
    (
        Scheme::Gs,
        &[
            "SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_SERVICE_ACCOUNT_PATH",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ],
    ),
    (
        Scheme::Az,
        &[
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_ACCESS_KEY",
            "AZURE_STORAGE_MASTER_KEY",
            "AZURE_STORAGE_SAS_TOKEN",
            "AZURE_STORAGE_SAS_KEY",
            "AZURE_STORAGE_TOKEN",
            "AZURE_CLIENT_ID",
            "AZURE_STORAGE_CLIENT_ID",
            "AZURE_FEDERATED_TOKEN_FILE",
            OF_AZURE_CLI,
        ],
    ),
];

/// Those that name a file with credentials.
const NAME_FILES: [&str; 7] = [
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZURE_FEDERATED_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "SERVICE_ACCOUNT",
];

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

/// The authorities and proxies of the caller's variables.
fn own_route() -> Result<Route, TrustError> {
    Ok(Route { trust: network::trust_with(None)?, proxy: ProxySettings::from_env() })
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

    /// See [`route_of_file`].
    fn route_of_file(&self, scheme: Scheme) -> anyhow::Result<Option<(String, Route)>> {
        let variables = Variables::of_this_process();
        route_of_file(scheme, self.state.endpoint.as_deref(), &variables, (self.private_ca.as_ref(), &self.proxy))
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
        if let Some(region) = &self.state.region {
            // It becomes a part of the address that the credentials are sent to.
            anyhow::ensure!(is_region(region), "`{region}` is not the name of a region");
        }
        let scheme: Scheme = scheme.parse()?;
        let connector = Connector {
            own: own_route()?,
            of_host: self.route_of_file(scheme)?,
            timeout: Some(REQUEST),
            idle_timeout: None,
        };
        let options = BucketOptions {
            endpoint: self.state.endpoint.as_deref(),
            region: self.state.region.as_deref(),
            connector,
            // The state engine has its own retries, and knows which requests must not be repeated.
            retry: RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: REQUEST },
        };
        Ok((textnlp_buckets::open(scheme, bucket, &Variables::of_this_process(), options)?, prefix))
    }
}

/// The host of a store's address, with the authorities and proxies that an environment file has for it. None for a store that gets
/// tokens, and for a host that the variables name: it may be the one that gives credentials. A store with the protocol of S3 gets
/// signatures only.
fn route_of_file(
    scheme: Scheme,
    endpoint: Option<&str>,
    variables: &Variables,
    (private_ca, proxy): (Option<&Utf8PathBuf>, &Proxy),
) -> anyhow::Result<Option<(String, Route)>> {
    let Some(endpoint) = endpoint.filter(|_| scheme == Scheme::S3) else { return Ok(None) };
    let url: Url = endpoint.parse().with_context(|| format!("read the address `{endpoint}`"))?;
    let hosts = variables.hosts();
    let Some(host) = url.host_str().filter(|host| !hosts.contains(*host)) else { return Ok(None) };
    let route = Route { trust: network::trust_with(private_ca)?, proxy: network::proxies(proxy) };
    Ok(Some((host.to_owned(), route)))
}

/// The bucket of a backup destination, opened with the variables in the file of `credentials`, else those of this process.
/// Sends no request.
pub fn backup_bucket(
    url: &str,
    credentials: Option<&SecretSource>,
    network: &NetworkSettings,
) -> Result<Bucket, Failure> {
    let (variables, whose) = match credentials {
        Some(SecretSource::File(file)) => (variables_of(Utf8Path::new(file))?, file.as_str()),
        _ => (Variables::of_this_process(), "this process"),
    };
    open_backups(url, &variables, whose, network).map_err(|error| {
        Failure::usage("no_such_store", error.context(format!("open the backups in {url}"))).hint(
            "write `backup.destination: s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, and the variables for it into the file of `backup.credentials`",
        )
    })
}

/// Checks the bucket that pods open with the variables in the file of `credentials`. Returns the address of the store, if
/// it is not that of the cloud. Sends no request.
pub fn bucket_of_pods(url: &str, credentials: &SecretSource) -> Result<Option<String>, Failure> {
    // Validation rejected others.
    let SecretSource::File(file) = credentials else { return Ok(None) };
    let variables = variables_of(Utf8Path::new(file))?;
    if let Some(name) = NAME_FILES.iter().find(|name| variables.get(name).is_some()) {
        let error = anyhow::anyhow!("{name} of {file} names another file, which pods do not have");
        return Err(Failure::usage("no_credentials", error).hint(
            "write the credentials themselves, such as `GOOGLE_SERVICE_ACCOUNT_KEY={…}` on one line; or remove `backup.credentials`, and give the rights to the service account `textnlp-backup` of the namespace",
        ));
    }
    backup_bucket(url, Some(credentials), &NetworkSettings::default())?;
    let scheme: Option<Scheme> = url.split_once("://").and_then(|(scheme, _)| scheme.parse().ok());
    let names = SIGNS_IN.iter().filter(|(known, _)| Some(*known) == scheme).flat_map(|(_, names)| names.iter());
    let unusable =
        |why: &str, hint: &str| Failure::usage("no_credentials", anyhow::anyhow!("{file} {why}")).hint(hint.to_owned());
    if !names.filter(|name| **name != OF_AZURE_CLI).any(|name| variables.get(name).is_some()) {
        return Err(unusable(
            &format!("has no credentials for {url} that pods can use"),
            "write them into it; or remove `backup.credentials`, and give the rights to the service account `textnlp-backup` of the namespace",
        ));
    }
    let endpoint = scheme.and_then(|scheme| variables.endpoint(scheme).ok().flatten());
    if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.starts_with("http://")) {
        // Without encryption, only addresses of this machine are accepted.
        return Err(unusable(
            &format!("names {endpoint}, an address of this machine, which pods do not reach"),
            "write the address of the store that pods reach, with `https://`",
        ));
    }
    Ok(endpoint.map(str::to_owned))
}

fn open_backups(url: &str, variables: &Variables, whose: &str, network: &NetworkSettings) -> anyhow::Result<Bucket> {
    let (scheme, rest) = url.split_once("://").context("it has no scheme")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let scheme: Scheme = scheme.parse()?;
    let endpoint = variables.endpoint(scheme).map_err(anyhow::Error::msg)?;
    let private_ca = network.private_ca.as_ref().map(Utf8PathBuf::from);
    let of_host = route_of_file(scheme, endpoint, variables, (private_ca.as_ref(), &network.proxy))?;
    let connector = Connector { own: own_route()?, of_host, timeout: Some(TRANSFER), idle_timeout: None };
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT };
    let options = BucketOptions { endpoint, region: None, connector, retry };
    // S3 requires one in a bucket with object lock (report apache/arrow-rs-object-store#190).
    let checksum = variables.get(CHECKSUM).is_none().then_some((CHECKSUM, "sha256"));
    let store = textnlp_buckets::open(scheme, bucket, &variables.clone().with(checksum), options)?;
    Ok(Bucket::new(store, prefix, url, signed_in(scheme, variables, whose)))
}

/// What has the credentials for a bucket, without them.
fn signed_in(scheme: Scheme, variables: &Variables, whose: &str) -> String {
    let is_set = |name: &&str| variables.get(name).is_some();
    let of_scheme = |(known, names): &(Scheme, &'static [&'static str])| (*known == scheme).then_some(*names);
    match SIGNS_IN.iter().filter_map(of_scheme).flatten().copied().find(is_set) {
        Some(name) => format!("{name} of {whose}"),
        None => format!("the role of this machine, because {whose} has no credentials for {scheme}://"),
    }
}

/// The variables in a file: one in a line, as `env` prints them.
fn variables_of(file: &Utf8Path) -> Result<Variables, Failure> {
    let text = secret_file(file, "the credentials of the backup bucket")?;
    let wrong = |number: usize, why: &str| {
        let error =
            anyhow::anyhow!("line {number} of {file} {why}").context("read the credentials of the backup bucket");
        Failure::usage("no_credentials", error).hint("write one variable in a line, such as `AWS_ACCESS_KEY_ID=…`")
    };
    let text = text.expose_text().ok_or_else(|| wrong(1, "is not text"))?;
    let mut variables = Variables::default();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or_else(|| wrong(number, "has no `=`"))?;
        if name != name.trim() || value != value.trim() || value.starts_with(['"', '\'']) {
            return Err(wrong(number, "has a space or a quotation mark around its name or value"));
        }
        variables = variables.with([(name, value)]);
        // The line may be a part of a secret, so it is not shown.
        variables.get(name).ok_or_else(|| wrong(number, "is no variable of a cloud"))?;
    }
    Ok(variables)
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
    let other = other_place(&chosen.scope, &wanted.state.store)
        .map_err(|failure| if failure.code == DAMAGED { failure.hint(repair()) } else { failure })?;
    if let Some(OtherPlace { text, fixes: [move_it, restore] }) = other {
        return Err(Failure::refused("state_elsewhere", anyhow::anyhow!(text)).hint(format!("{move_it}\n{restore}")));
    }
    wanted.open(&chosen.scope.folder, session.console())
}

/// A state that is not in the store that its environment file names.
pub struct OtherPlace {
    /// Which places these are.
    pub text: String,
    /// What makes them the same again: one or the other.
    pub fixes: [String; 2],
}

/// Compares the recorded location of a state with `wanted`, the store that the environment file names.
pub fn other_place(scope: &Scope, wanted: &str) -> Result<Option<OtherPlace>, Failure> {
    let there = recorded(&scope.folder)?;
    let is = match &there {
        Some(there) => Some(there.state.store.as_str()),
        None if scope.folder.join("lineage.json").exists() => Some(LOCAL),
        None => None,
    };
    let name = |store: &str| if store == LOCAL { scope.folder.to_string() } else { store.to_owned() };
    Ok(is.filter(|is| *is != wanted).map(|is| OtherPlace {
        text: format!(
            "the state of {} is in {}, but the environment file names {}",
            scope.name,
            name(is),
            name(wanted)
        ),
        fixes: [
            format!("move it: {}", scope.same(&format!("state move --to {wanted}"))),
            format!("or restore `state.store: {is}`"),
        ],
    }))
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
    use super::*;
    use crate::clouds::Linked;
    use crate::rerun_flags::RerunFlags;

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

    #[test]
    fn state_in_another_store_than_the_file_names_is_reported_with_both_places() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        let name = EnvironmentName::new("prod").unwrap();
        let scope = Scope { platform: &Linked, again: RerunFlags::default(), name, folder: folder.clone() };
        let of = |wanted: &str| other_place(&scope, wanted).unwrap().map(|other| other.text);
        assert_eq!(of("s3://b/x"), None, "nothing was deployed");
        std::fs::write(folder.join("lineage.json"), "{}").unwrap();
        assert_eq!(of(LOCAL), None);
        let text = format!("the state of prod is in {folder}, but the environment file names s3://b/x");
        assert_eq!(of("s3://b/x"), Some(text));
        let pointer =
            serde_json::json!({ "environment": "prod", "state": { "store": "gs://b/x" }, "private_ca": null });
        std::fs::write(folder.join(POINTER), pointer.to_string()).unwrap();
        assert_eq!(of("gs://b/x"), None);
        let text = format!("the state of prod is in gs://b/x, but the environment file names {folder}");
        assert_eq!(of(LOCAL), Some(text));
    }

    #[test]
    fn variables_of_a_backup_bucket_are_those_of_its_file_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("bucket.env");
        let variables = |text: &str| {
            textnlp_files::Replace::private().write(&file, text.as_bytes()).unwrap();
            variables_of(&file)
        };
        let read = variables("# of the bucket\n\nexport AWS_ACCESS_KEY_ID=mine\nAWS_SECRET_ACCESS_KEY=a=b\n").unwrap();
        assert_eq!((read.get("AWS_ACCESS_KEY_ID"), read.get("AWS_SECRET_ACCESS_KEY")), (Some("mine"), Some("a=b")));
        assert_eq!(signed_in(Scheme::S3, &read, file.as_str()), format!("AWS_ACCESS_KEY_ID of {file}"));
        assert!(signed_in(Scheme::Gs, &read, "this process").starts_with("the role of this machine"));
        for (text, why) in [("AWS_REGION=x\nhunter2", "line 2"), ("AWS_ACESS=x\nHTTPS_PROXY=hunter2", "line 2")] {
            let refused = variables(text).unwrap_err();
            let said = format!("{:#}", refused.error);
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(variables_of(&file).unwrap_err().code, "secret_exposed");
        let unknown = backup_bucket("ftp://host/backups", None, &NetworkSettings::default()).unwrap_err();
        assert!(format!("{:#}", unknown.error).contains("`ftp://`"), "{:#}", unknown.error);
    }

    #[test]
    fn credentials_of_pods_need_nothing_of_this_machine_and_report_the_address_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("bucket.env");
        let of = |url: &str, text: &str| {
            textnlp_files::Replace::private().write(&file, text.as_bytes()).unwrap();
            bucket_of_pods(url, &SecretSource::File(file.to_string()))
        };
        let keys = "AWS_ACCESS_KEY_ID=mine\nAWS_SECRET_ACCESS_KEY=hunter2\nAWS_REGION=eu-central-1\n";
        assert_eq!(of("s3://b/p", keys).unwrap(), None);
        let minio = format!("{keys}AWS_ENDPOINT_URL_S3=https://minio.example.com:9000\n");
        assert_eq!(of("s3://b/p", &minio).unwrap().as_deref(), Some("https://minio.example.com:9000"));
        let named = of("gs://b/p", "GOOGLE_SERVICE_ACCOUNT=/etc/textnlp/account.json").unwrap_err();
        assert!(format!("{:#}", named.error).contains("GOOGLE_SERVICE_ACCOUNT of"), "{:#}", named.error);
        assert!(named.hint.unwrap_or_default().contains("GOOGLE_SERVICE_ACCOUNT_KEY"));
        let clear = of("s3://b/p", &format!("{keys}AWS_ENDPOINT_URL_S3=http://minio.example.com")).unwrap_err();
        assert!(format!("{:#}", clear.error).contains("not encrypted"), "{:#}", clear.error);
        let here = of("s3://b/p", &format!("{keys}AWS_ENDPOINT_URL_S3=http://127.0.0.1:9000")).unwrap_err();
        assert!(format!("{:#}", here.error).contains("which pods do not reach"), "{:#}", here.error);
        for (url, text) in [
            ("s3://b/p", "AWS_REGION=eu-central-1"),
            ("az://c/p", "AZURE_STORAGE_ACCOUNT_NAME=a\nAZURE_USE_AZURE_CLI=true"),
        ] {
            let without = of(url, text).unwrap_err();
            assert!(format!("{:#}", without.error).contains("has no credentials"), "{:#}", without.error);
        }
    }

    #[test]
    fn the_route_of_a_file_is_for_stores_that_get_signatures() {
        let location = |store: &str, endpoint: &str| {
            let text = format!(
                r#"{{"environment":"prod","state":{{"store":"{store}","endpoint":"{endpoint}"}},"private_ca":null}}"#
            );
            serde_json::from_str::<StateLocation>(&text).unwrap()
        };
        let s3 = location("s3://b/x", "https://store.invalid:9000").route_of_file(Scheme::S3).unwrap();
        assert_eq!(s3.map(|(host, _)| host).as_deref(), Some("store.invalid"));
        // They get tokens, not signatures.
        assert!(location("gs://b/x", "https://x.googleapis.com").route_of_file(Scheme::Gs).unwrap().is_none());
    }
}
