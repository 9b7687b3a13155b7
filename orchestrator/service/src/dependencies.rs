//! What an environment depends on outside of its own programs, and whether it answers.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use reqwest::{Client, Url};
use serde::Serialize;
use textnlp_bundle::oci::Reference;
use textnlp_models::Source;
use textnlp_net::client::{ClientOptions, is_loopback, shown};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{Runtime, TlsMode};
use textnlp_orchestrator::plan::SiteFacts;
use textnlp_orchestrator::release::Lock;
use textnlp_provider::units::{UrlSource, counted};
use textnlp_provider::{Observed, ReadFailure, SiteName, error_chain, finished};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::checks::CheckResult;
use crate::client::{self as service, Target};
use crate::configuration::plain;
use crate::doctor::Select;
use crate::gate::sign_on;
use crate::{ChosenEnvironment, Deployment, Failure, Progress, Scope, quoted, running};

/// Timeout of one request or query.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one sort that are asked.
const ADDRESSES_MAX: usize = 20;
/// Bytes of a file with SAML settings.
const SETTINGS_MAX: u64 = 1 << 20;
/// The port of PostgreSQL, if none is set.
const POSTGRES_PORT: u16 = 5432;
/// The same of Redis.
const REDIS_PORT: u16 = 6379;
/// The request for the version of a Redis (<https://redis.io/docs/latest/commands/info/>), and where its answer has it.
const REDIS_INFO: &[u8] = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n";
const REDIS_VERSION: &str = "redis_version:";
/// Bytes of its answer.
const REDIS_INFO_MAX: u64 = 64 << 10;
/// The oldest Redis that has the commands of the servers: `SET` with `PX` (<https://redis.io/docs/latest/commands/set/>).
const REDIS_OLDEST: [u64; 3] = [2, 6, 12];
/// The oldest Redis that the servers are tested with.
const REDIS_TESTED: [u64; 3] = [7, 0, 0];
/// The transports of git that run no other program that the address names.
const GIT_TRANSPORTS: &str = "file:git:http:https:ssh";

/// Something that the environment depends on.
#[derive(Debug, Serialize)]
pub struct Dependency {
    /// What it is.
    pub name: &'static str,
    /// The site that depends on it, if it is not the whole environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    /// Where it is.
    pub address: String,
    /// Its version, where it says one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    state: &'static str,
    /// Whether it answers.
    #[serde(skip)]
    pub result: CheckResult,
    /// How long the answer took; `None` where nothing was asked.
    pub milliseconds: Option<u64>,
    /// Why it is unhealthy, or unknown.
    pub cause: Option<String>,
    /// What to do.
    pub fix: Option<String>,
}

/// Why a dependency is unhealthy, or unknown.
#[derive(Debug)]
struct Fault(CheckResult, String);

impl Fault {
    fn failed(cause: impl Into<String>) -> Self {
        Self(CheckResult::Problem, cause.into())
    }

    fn unknown(cause: impl Into<String>) -> Self {
        Self(CheckResult::Unknown, cause.into())
    }
}

#[derive(Default)]
struct Dependencies {
    /// The site of the next ones.
    site: Option<SiteName>,
    found: Vec<Dependency>,
}

impl Dependencies {
    fn add(
        &mut self,
        (name, address): (&'static str, impl Into<String>),
        took: Option<Duration>,
        answer: Result<(), Fault>,
        fix: impl Into<String>,
    ) {
        let (result, cause) = match answer {
            Ok(()) => (CheckResult::Well, None),
            Err(Fault(result, cause)) => (result, Some(cause)),
        };
        let fix = cause.is_some().then(|| fix.into()).filter(|fix| !fix.is_empty());
        let milliseconds = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let (site, state, address) = (self.site.clone(), result.state(), address.into());
        self.found.push(Dependency { name, site, address, version: None, state, result, milliseconds, cause, fix });
    }
}

/// Asks the dependencies of an environment. `target`: how a client reaches its service.
pub async fn dependencies(
    chosen: ChosenEnvironment,
    select: Select<'_>,
    target: impl AsyncFnOnce() -> Result<Target, Failure>,
    progress: &dyn Progress,
) -> Result<Vec<Dependency>, Failure> {
    let (scope, environment, lock) = (chosen.scope.clone(), chosen.loaded.environment.clone(), chosen.lock()?);
    let mut found = Dependencies::default();
    progress.doing("asking the state store");
    let began = Instant::now();
    let recorded = async { Deployment::recorded(select(chosen)?).await };
    match recorded.await {
        Ok(deployment) => sites(&mut found, &deployment, progress).await,
        Err(failure) => {
            let (address, cause) = (scope.folder.to_string(), reason(&failure));
            let fix = failure.hint.unwrap_or_default();
            found.add(("state store", address), Some(began.elapsed()), Err(Fault::failed(cause)), fix);
        }
    }
    progress.doing("asking the service");
    database(&mut found, &scope, &environment, target).await;
    progress.doing("resolving names");
    names(&mut found, &scope, &environment).await;
    progress.doing("asking registries, model sources and other services");
    over_http(&mut found, &scope, &environment, lock.as_ref()).await?;
    cache(&mut found, &environment).await;
    repository(&mut found, &environment).await;
    not_contacted(&mut found, &scope, &environment);
    Ok(found.found)
}

fn reason(failure: &Failure) -> String {
    format!("{:#}", failure.error)
}

/// The store of the state, and the APIs of clusters and clouds.
async fn sites(found: &mut Dependencies, deployment: &Deployment, progress: &dyn Progress) {
    let scope = &deployment.chosen.scope;
    let began = Instant::now();
    let state = deployment.state().await;
    let answer = state.as_ref().map(|_| ()).map_err(|failure| Fault::failed(reason(failure)));
    found.add(("state store", deployment.store.place()), Some(began.elapsed()), answer, scope.command("doctor"));
    let Ok(state) = state else { return };
    let elsewhere: Vec<_> =
        deployment.sites.iter().filter(|(_, site)| site.place.runtime != Runtime::Process).collect();
    if elsewhere.is_empty() {
        return;
    }
    progress.doing("reading the sites");
    let began = Instant::now();
    let facts = match state.is_new() {
        true => None,
        false => Some(deployment.facts(&state).await),
    };
    let took = facts.as_ref().map(|_| began.elapsed());
    for (name, site) in elsewhere {
        found.site = Some(name.clone());
        let api = if site.place.runtime == Runtime::Kubernetes { "cluster API" } else { "cloud API" };
        let (answer, fix) = match &facts {
            None => (Err(Fault::unknown("nothing is deployed there yet")), "preflight"),
            Some(Err(failure)) => (Err(Fault::failed(reason(failure))), "preflight"),
            Some(Ok(facts)) => (facts.sites.get(name).map_or(Ok(()), read), "status"),
        };
        found.add((api, site.place.to_string()), took, answer, scope.command(fix));
    }
    found.site = None;
}

/// Whether the resources of a site could be read.
fn read(site: &SiteFacts) -> Result<(), Fault> {
    let unread: Vec<&str> = site
        .observed
        .iter()
        .filter_map(|(_, seen)| match seen {
            Observed::Unknown(ReadFailure(why)) => Some(why.as_str()),
            Observed::Present(_) | Observed::Absent => None,
        })
        .collect();
    match unread.first() {
        None => Ok(()),
        Some(why) if unread.len() == site.observed.len() => Err(Fault::failed(*why)),
        Some(why) => {
            Err(Fault(CheckResult::Warning, format!("{} could not be read: {why}", counted(unread.len(), "resource"))))
        }
    }
}

/// The database as the servers reach it.
async fn database(
    found: &mut Dependencies,
    scope: &Scope,
    environment: &Environment,
    target: impl AsyncFnOnce() -> Result<Target, Failure>,
) {
    let settings = &environment.database;
    let address = match &settings.host {
        Some(host) => format!("{host}:{}", settings.port.unwrap_or(POSTGRES_PORT)),
        None => format!("{} of the service", settings.kind),
    };
    let running = match running::running(scope).await {
        Ok(running) => running,
        Err(failure) => {
            let fix = failure.hint.clone().unwrap_or_default();
            return found.add(("database", address), None, Err(Fault::unknown(reason(&failure))), fix);
        }
    };
    if running.is_endpoint() {
        return;
    }
    let began = Instant::now();
    let answer = match target().await.and_then(|target| service::Client::new(target).map_err(Failure::from)) {
        Ok(client) => tokio::time::timeout(TIMEOUT, client.get("/ready")).await,
        Err(failure) => Ok(Err(failure)),
    };
    let answer = match answer {
        Err(_) => Err(Fault::unknown(format!("the service did not answer within {} s", TIMEOUT.as_secs()))),
        Ok(Err(failure)) => Err(Fault::unknown(format!("the service does not say: {}", reason(&failure)))),
        Ok(Ok(ready)) => match ready["database"].as_str() {
            Some("ok") => Ok(()),
            Some(other) => Err(Fault::failed(format!("the service reports: {other}"))),
            None => Err(Fault::unknown("the service does not report its database")),
        },
    };
    found.add(("database", address), Some(began.elapsed()), answer, scope.command("logs errors"));
}

/// The names of the service and of its certificate.
async fn names(found: &mut Dependencies, scope: &Scope, environment: &Environment) {
    let address = running::running(scope).await.ok().and_then(|running| running.address.parse::<Url>().ok());
    let of_address = address.as_ref().and_then(Url::host_str).map(str::to_owned);
    for name in hosts(environment, of_address) {
        let began = Instant::now();
        let answer = match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name.as_str(), 443))).await {
            Err(_) => Err(Fault::failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
            Ok(Err(error)) => Err(Fault::failed(error.to_string())),
            Ok(Ok(mut addresses)) => addresses.next().map(|_| ()).ok_or_else(|| Fault::failed("it has no address")),
        };
        let fix = format!("create its DNS record, then: getent ahosts {}", quoted(&name));
        found.add(("DNS", name), Some(began.elapsed()), answer, fix);
    }
}

/// The names that clients resolve. Addresses, wildcards and this machine's own name need no DNS.
fn hosts(environment: &Environment, of_address: Option<String>) -> Vec<String> {
    let names = environment.tls.names.iter().chain(&environment.traffic.domain).cloned().chain(of_address);
    let is_name = |name: &String| {
        let plain = name.trim_start_matches('[').trim_end_matches(']');
        plain.parse::<IpAddr>().is_err() && !name.starts_with('*') && name != "localhost"
    };
    let names: BTreeSet<String> = names.filter(is_name).collect();
    names.into_iter().take(ADDRESSES_MAX).collect()
}

/// Registries, model sources and other services with HTTP: any answer below 500 shows that they can be reached, and metadata of an issuer
/// has to be its own.
async fn over_http(
    found: &mut Dependencies,
    scope: &Scope,
    environment: &Environment,
    lock: Option<&Lock>,
) -> Result<(), Failure> {
    let options = scope.platform.fetching(environment)?;
    let trust = scope.platform.trust(None, Some(environment))?;
    let proxy = options.proxy.clone();
    let http = ClientOptions { trust, proxy, timeout: Some(TIMEOUT), ..ClientOptions::default() }.client()?;
    let images: Vec<&str> = lock.into_iter().flat_map(|lock| lock.images.values()).map(String::as_str).collect();
    for url in registries(environment.registry.url.as_deref(), &images) {
        let began = Instant::now();
        let answer = ask(&http, &url).await;
        found.add(("registry", shown(&url)), Some(began.elapsed()), answer, scope.command("preflight"));
    }
    for url in model_sources(environment, &options.endpoint) {
        let began = Instant::now();
        // Models that a site has are not downloaded again.
        let answer = ask(&http, &url).await.map_err(|Fault(_, cause)| Fault(CheckResult::Warning, cause));
        let fix = format!("curl --head {} # with the proxy of `network.proxy`", quoted(&shown(&url)));
        found.add(("model source", shown(&url)), Some(began.elapsed()), answer, fix);
    }
    for site in &environment.sites {
        let Some(file) = &site.cluster.saml else { continue };
        found.site = Some(site.name.clone());
        let fix = format!("check `idp.singleSignOnService.url` in {file}");
        match sign_on_address(Utf8Path::new(file)) {
            Err(why) => found.add(("identity provider", file), None, Err(Fault::unknown(why)), fix),
            Ok(url) => {
                let began = Instant::now();
                // Browsers open it, and this machine may not be allowed to.
                let answer = ask(&http, &url).await.map_err(|Fault(_, cause)| Fault(CheckResult::Warning, cause));
                found.add(("identity provider", shown(&url)), Some(began.elapsed()), answer, fix);
            }
        }
    }
    found.site = None;
    if let Some(issuer) = &environment.server.security.oidc.issuer {
        let began = Instant::now();
        let answer = issues_tokens(&http, issuer).await;
        let fix = format!("check `server.security.oidc.issuer`: curl {}", quoted(&sign_on::metadata_address(issuer)));
        found.add(("identity provider", issuer), Some(began.elapsed()), answer, fix);
    }
    let traces = environment.server.monitoring.traces.endpoint.as_deref().map(|at| ("trace collector", at));
    let authority = (environment.tls.mode == TlsMode::Acme).then(|| environment.tls.acme_directory());
    for (what, at) in traces.into_iter().chain(authority.map(|at| ("certificate authority", at))) {
        // Validation rejected invalid addresses.
        let Ok(url) = at.parse::<Url>() else { continue };
        let began = Instant::now();
        // The programs of the sites send requests to it, and this machine may not be allowed to.
        let answer = ask(&http, &url).await.map_err(|Fault(_, cause)| Fault(CheckResult::Warning, cause));
        let fix = format!("curl --head {} # with the proxy of `network.proxy`", quoted(&shown(&url)));
        found.add((what, shown(&url)), Some(began.elapsed()), answer, fix);
    }
    Ok(())
}

/// Whether an issuer's metadata is its own: servers refuse all of its tokens otherwise.
async fn issues_tokens(http: &Client, issuer: &str) -> Result<(), Fault> {
    let metadata = sign_on::metadata(http, issuer).await.map_err(|cause| Fault(CheckResult::Warning, cause))?;
    match metadata["issuer"].as_str() {
        Some(named) if named == issuer => Ok(()),
        Some(named) => {
            let named: String = named.chars().take(200).collect();
            Err(Fault::failed(format!("its metadata names the issuer `{named}`")))
        }
        None => Err(Fault::failed("its metadata names no issuer")),
    }
}

/// The Redis that the operator runs: its version, or with TLS whether its port is open.
async fn cache(found: &mut Dependencies, environment: &Environment) {
    const NAME: &str = "cache";
    let fix = "check `cache.url`, and that firewalls let the servers connect to it";
    let Some(source) = environment.cache.url.as_ref().filter(|_| environment.cache.is_external()) else { return };
    let UrlSource::Url(text) = source else {
        return found.add((NAME, "cache.url"), None, Err(Fault::unknown("its address is a secret")), fix);
    };
    // Validation rejected invalid addresses.
    let Ok(url) = text.parse::<Url>() else { return };
    let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(REDIS_PORT));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    // Pods may be able to connect where this machine is not.
    let mark = if environment.runs_here() { CheckResult::Problem } else { CheckResult::Warning };
    let asked = async {
        let stream = TcpStream::connect((bare, port)).await?;
        if url.scheme() == "rediss" { Ok(None) } else { version_line(stream).await.map(Some) }
    };
    let began = Instant::now();
    let (version, answer) = match tokio::time::timeout(TIMEOUT, asked).await {
        Err(_) => (None, Err(Fault(mark, format!("no answer within {} s", TIMEOUT.as_secs())))),
        Ok(Err(error)) => (None, Err(Fault(mark, error.to_string()))),
        Ok(Ok(None)) => (None, Ok(())),
        Ok(Ok(Some(line))) => match line.strip_prefix(REDIS_VERSION) {
            Some(version) => (Some(plain(version)), suits(version)),
            None => (None, Err(without_version(&line, mark))),
        },
    };
    found.add((NAME, format!("{host}:{port}")), Some(began.elapsed()), answer, fix);
    if let Some(added) = found.found.last_mut() {
        added.version = version;
    }
}

/// The line with the version of a Redis, or its first line if that announces no text; empty if it has none.
async fn version_line(mut stream: TcpStream) -> std::io::Result<String> {
    stream.write_all(REDIS_INFO).await?;
    let mut answer = BufReader::new(stream.take(REDIS_INFO_MAX));
    let mut first = String::new();
    answer.read_line(&mut first).await?;
    // A text and its length; otherwise an error, or nothing of Redis.
    let Some(length) = first.trim_end().strip_prefix('$').and_then(|length| length.parse::<u64>().ok()) else {
        return Ok(first.trim_end().to_owned());
    };
    let mut lines = answer.take(length).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with(REDIS_VERSION) {
            return Ok(line);
        }
    }
    Ok(String::new())
}

/// Whether the servers can use a Redis of this version.
fn suits(version: &str) -> Result<(), Fault> {
    let numbers: Result<Vec<u64>, _> = version.split('.').map(str::parse::<u64>).collect();
    let Ok(numbers) = numbers else { return Err(Fault::unknown("its version is not one of Redis")) };
    let shown = |[major, minor, patch]: [u64; 3]| format!("{major}.{minor}.{patch}");
    if numbers.as_slice() < REDIS_OLDEST.as_slice() {
        return Err(Fault::failed(format!("the servers use commands of Redis {} and newer", shown(REDIS_OLDEST))));
    }
    if numbers.as_slice() < REDIS_TESTED.as_slice() {
        let cause = format!("the servers are tested with Redis {} and newer", shown(REDIS_TESTED));
        return Err(Fault(CheckResult::Warning, cause));
    }
    Ok(())
}

/// Why a Redis names no version. `mark`: of one that the servers cannot use.
fn without_version(line: &str, mark: CheckResult) -> Fault {
    match line.strip_prefix('-') {
        Some(error) if error.starts_with("NOAUTH") => {
            Fault(mark, "its version is unknown: it asks for a password, and `cache.url` has none".to_owned())
        }
        Some(error) if ["DENIED", "ERR max number of clients"].iter().any(|start| error.starts_with(start)) => {
            Fault(mark, format!("it refuses connections: {}", plain(error)))
        }
        Some(error) => Fault::unknown(format!("its version is unknown: {}", plain(error))),
        None => Fault::unknown("its version is unknown: it names none"),
    }
}

/// The Git repository of the environment, as `git` of this machine reaches it.
async fn repository(found: &mut Dependencies, environment: &Environment) {
    const NAME: &str = "Git repository";
    const SETTING: &str = "prerequisites.git";
    let Some(address) = &environment.prerequisites.git else { return };
    if has_credentials(address) {
        let cause = "its address may contain credentials, which other users of this machine would see while git runs";
        let fix = format!("write `{SETTING}` without them, and let a credential helper of git keep them");
        return found.add((NAME, SETTING), None, Err(Fault::unknown(cause)), fix);
    }
    let began = Instant::now();
    // The controllers in a cluster may reach it where this machine may not.
    let answer = listed(address).await.map_err(|cause| Fault(CheckResult::Warning, cause));
    let fix = format!("git ls-remote -- {} HEAD", quoted(address));
    found.add((NAME, plain(address)), Some(began.elapsed()), answer, fix);
}

/// Whether an address of a repository has something else than a host, the login name of SSH and a path.
fn has_credentials(address: &str) -> bool {
    let (scheme, rest) = address.split_once("://").unwrap_or(("ssh", address));
    let user = rest.rsplit_once('@').map(|(user, _)| user);
    rest.contains(['?', '#']) || user.is_some_and(|user| scheme != "ssh" || user.contains(':'))
}

/// Lists the default branch of a repository without a prompt, outside of all repositories, whose settings could name programs.
async fn listed(address: &str) -> Result<(), String> {
    let seconds = TIMEOUT.as_secs();
    let mut git = Command::new("git");
    // Its transports outlive a git that is killed: they end by themselves when their server is silent.
    git.args(["-c", "http.lowSpeedLimit=1", "-c", &format!("http.lowSpeedTime={seconds}")]);
    git.args(["-C", "/", "ls-remote", "--quiet", "--", address, "HEAD"]);
    git.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "").env("LC_ALL", "C");
    // A hook of Git that runs this program has set it.
    git.env_remove("GIT_DIR").env("GIT_ALLOW_PROTOCOL", GIT_TRANSPORTS);
    let ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=2";
    git.env("GIT_SSH_COMMAND", format!("{ssh} -o ConnectTimeout={seconds}"));
    match finished(git, TIMEOUT).await {
        Err(error) => Err(format!("git could not be started: {error}")),
        Ok(None) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        Ok(Some((status, ..))) if status.success() => Ok(()),
        Ok(Some((_, _, errors))) => {
            let errors = String::from_utf8_lossy(&errors);
            let first = errors.lines().find(|line| !line.starts_with("remote:"));
            Err(plain(&without_user(first.unwrap_or("git printed no error"))))
        }
    }
}

/// A line of git without the user of an address: where git's settings rewrite an address, that may be a token.
fn without_user(line: &str) -> String {
    match (line.find("://").map(|at| at + 3), line.rfind('@')) {
        (Some(from), Some(at)) if from <= at => format!("{}{}", &line[..from], &line[at + 1..]),
        _ => line.to_owned(),
    }
}

/// The sign-on address in a file with SAML settings (<https://github.com/SAML-Toolkits/python3-saml#settings>).
fn sign_on_address(file: &Utf8Path) -> Result<Url, String> {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(SETTINGS_MAX).read_to_string(&mut text));
    read.map_err(|error| format!("read {file}: {error}"))?;
    let settings: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
    let url = settings["idp"]["singleSignOnService"]["url"].as_str().and_then(|url| url.parse().ok());
    url.ok_or_else(|| format!("{file} has no `idp.singleSignOnService.url`"))
}

async fn ask(http: &Client, url: &Url) -> Result<(), Fault> {
    let answered = http.get(url.clone()).send().await;
    let answer = answered.map_err(|error| Fault::failed(error_chain(&error.without_url())))?;
    match answer.status().as_u16() {
        status @ 500.. => Err(Fault::failed(format!("it answers with status {status}"))),
        _ => Ok(()),
    }
}

/// The base of each registry's API (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#endpoints>).
fn registries(set: Option<&str>, images: &[&str]) -> Vec<Url> {
    let of_setting = set.map(|set| set.split_once("://").map_or(set, |(_, rest)| rest));
    let of_setting = of_setting.and_then(|rest| rest.split('/').next()).map(str::to_owned);
    let of_images = images.iter().filter_map(|image| image.parse::<Reference>().ok()).map(|image| image.host);
    let hosts: BTreeSet<String> = of_setting.into_iter().chain(of_images).collect();
    let base = |host: String| {
        // The name of Docker Hub in images is not the host of its API.
        let host = if host == "docker.io" { "registry-1.docker.io".to_owned() } else { host };
        let secure: Url = format!("https://{host}/v2/").parse().ok()?;
        if is_loopback(&secure) { format!("http://{host}/v2/").parse().ok() } else { Some(secure) }
    };
    hosts.into_iter().filter_map(base).take(ADDRESSES_MAX).collect()
}

/// The hosts from which models of the environment are downloaded.
fn model_sources(environment: &Environment, hub: &str) -> Vec<Url> {
    let sources = environment.models.iter().filter_map(|model| model.source().parse::<Source>().ok()?.resolve().ok());
    let root = |source: Source| match source {
        Source::Hub(_) => hub.parse::<Url>().ok(),
        Source::Web(web) => web.url().join("/").ok(),
        Source::Bundled | Source::File(_) | Source::Bucket(_) | Source::SiteBucket(_) | Source::Catalogue(_) => None,
    };
    let roots: BTreeSet<Url> = sources.filter_map(root).collect();
    roots.into_iter().take(ADDRESSES_MAX).collect()
}

/// Dependencies that are not asked, because a request has an effect or its address is not known here.
fn not_contacted(found: &mut Dependencies, scope: &Scope, environment: &Environment) {
    for model in &environment.models {
        let Ok(source @ (Source::Bucket(_) | Source::SiteBucket(_))) = model.source().parse() else { continue };
        let why = "it answers to the credentials of the pods only";
        let check = scope.command("preflight");
        found.add(("model bucket", &source.to_string()), None, Err(Fault::unknown(why)), check);
    }
    for name in environment.monitoring.receivers.keys() {
        let why = "a request would be a message";
        found.add(("alert receiver", name), None, Err(Fault::unknown(why)), scope.command("alert test"));
    }
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::{CacheKind, ModelSettings};
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    fn environment() -> Environment {
        Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap().environment
    }

    fn texts(urls: Vec<Url>) -> Vec<String> {
        urls.into_iter().map(String::from).collect()
    }

    #[test]
    fn registries_of_the_setting_and_of_images_are_asked_once() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let (api, hub) = (format!("r.example/api@{digest}"), format!("postgres@{digest}"));
        let local = format!("127.0.0.1:5000/api@{digest}");
        let found = texts(registries(Some("https://r.example/team"), &[&api, &hub, &local, "-not an image"]));
        let expected = ["http://127.0.0.1:5000/v2/", "https://registry-1.docker.io/v2/", "https://r.example/v2/"];
        assert_eq!(found, expected);
        assert!(registries(None, &[]).is_empty());
    }

    #[test]
    fn names_are_those_that_need_dns() {
        let mut environment = environment();
        environment.traffic.domain = None;
        environment.tls.names =
            ["texts.example", "10.0.0.1", "*.texts.example", "::1", "localhost"].map(str::to_owned).into();
        let found = hosts(&environment, Some("api.example".to_owned()));
        assert_eq!(found, ["api.example", "texts.example"]);
        assert_eq!(hosts(&environment, Some("[::1]".to_owned())), ["texts.example"]);
    }

    #[test]
    fn only_models_that_are_downloaded_have_a_source() {
        let hub = "https://hub.example";
        let mut environment = environment();
        let model = environment.models.first().unwrap().clone();
        let mut of = |sources: &[&str]| {
            let with = |source: &&str| ModelSettings { source: Some((*source).to_owned()), ..model.clone() };
            environment.models = sources.iter().map(with).collect();
            texts(model_sources(&environment, hub))
        };
        assert!(of(&["bundled", "file:/models/a"]).is_empty());
        let found = of(&["hf:org/a", "hf:org/b", "https://models.example/c/model.gguf"]);
        assert_eq!(found, ["https://hub.example/", "https://models.example/"]);
    }

    #[test]
    fn address_of_the_identity_provider_is_in_the_saml_settings() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("saml.json");
        assert!(sign_on_address(&file).unwrap_err().starts_with("read "));
        std::fs::write(&file, r#"{"idp":{"singleSignOnService":{"url":"https://idp.example/sso"}}}"#).unwrap();
        assert_eq!(sign_on_address(&file).unwrap().as_str(), "https://idp.example/sso");
        std::fs::write(&file, "{}").unwrap();
        assert!(sign_on_address(&file).unwrap_err().contains("singleSignOnService"));
    }

    /// Answers one request, and returns it.
    async fn serve(listener: &tokio::net::TcpListener, status: &str, body: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn metadata_of_an_issuer_has_to_name_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}/realms/acme", listener.local_addr().unwrap());
        let http = ClientOptions::default().client().unwrap();
        let own = format!(r#"{{"issuer":"{issuer}"}}"#);
        for (status, body, expected) in [
            ("200 OK", own.as_str(), None),
            (
                "200 OK",
                r#"{"issuer":"https://other.example"}"#,
                Some((CheckResult::Problem, "`https://other.example`")),
            ),
            ("200 OK", "{}", Some((CheckResult::Problem, "no issuer"))),
            ("404 Not Found", "", Some((CheckResult::Warning, "status 404"))),
        ] {
            let (answer, request) = tokio::join!(issues_tokens(&http, &issuer), serve(&listener, status, body));
            assert!(request.starts_with("GET /realms/acme/.well-known/openid-configuration "), "{request}");
            match (answer, expected) {
                (Ok(()), None) => {}
                (Err(Fault(mark, cause)), Some((expected, says))) => {
                    assert!(mark == expected && cause.contains(says), "{cause}");
                }
                (answer, _) => panic!("{body}: {answer:?}"),
            }
        }
    }

    /// Answers one request for the version.
    async fn redis(listener: &tokio::net::TcpListener, answer: &str) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; REDIS_INFO.len()];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, REDIS_INFO);
        stream.write_all(answer.as_bytes()).await.unwrap();
        // A Redis keeps the connection open.
        let _ = stream.read(&mut [0]).await;
    }

    #[tokio::test]
    async fn a_cache_is_asked_for_its_version() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut environment = environment();
        environment.cache.kind = CacheKind::Redis;
        let found = async |environment: &Environment| {
            let mut found = Dependencies::default();
            cache(&mut found, environment).await;
            found.found.pop()
        };
        let address = listener.local_addr().unwrap().to_string();
        environment.cache.url = Some(UrlSource::Url(format!("redis://{address}/0")));
        let info = |version: &str| {
            let text = format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n");
            format!("${}\r\n{text}\r\n", text.len())
        };
        for (answer, version, result, cause) in [
            (info("7.0.15"), Some("7.0.15"), CheckResult::Well, ""),
            (info("10.0.0"), Some("10.0.0"), CheckResult::Well, ""),
            (info("6.2.14"), Some("6.2.14"), CheckResult::Warning, "tested with Redis 7.0.0"),
            (info("2.6.12"), Some("2.6.12"), CheckResult::Warning, "tested with Redis 7.0.0"),
            (info("2.6.9"), Some("2.6.9"), CheckResult::Problem, "commands of Redis 2.6.12"),
            (info("new"), Some("new"), CheckResult::Unknown, "not one of Redis"),
            ("-NOAUTH Authentication required.\r\n".to_owned(), None, CheckResult::Problem, "has none"),
            ("-NOPERM this user has no permissions\r\n".to_owned(), None, CheckResult::Unknown, "NOPERM this user"),
            ("+OK\r\n".to_owned(), None, CheckResult::Unknown, "it names none"),
        ] {
            let (found, ()) = tokio::join!(found(&environment), redis(&listener, &answer));
            let found = found.unwrap();
            assert_eq!((found.address.as_str(), found.version.as_deref()), (address.as_str(), version), "{answer}");
            let says = found.cause.unwrap_or_default();
            assert!(found.result == result && says.contains(cause) && says.is_empty() == cause.is_empty(), "{says}");
        }
        // With TLS only the connection is made.
        environment.cache.url = Some(UrlSource::Url(format!("rediss://{address}/0")));
        let connected = found(&environment).await.unwrap();
        assert_eq!((connected.version, connected.result), (None, CheckResult::Well));
        // A bound socket that does not listen: no other process can take its port.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.local_addr().unwrap().to_string();
        environment.cache.url = Some(UrlSource::Url(format!("redis://{address}/0")));
        let refused = found(&environment).await.unwrap();
        assert_eq!((refused.address, refused.result), (address, CheckResult::Problem));
        environment.cache.kind = CacheKind::None;
        assert!(found(&environment).await.is_none());
    }

    #[tokio::test]
    async fn a_repository_is_listed_and_an_address_with_credentials_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let bare = folder.path().join("clusters.git");
        let made = std::process::Command::new("git").args(["init", "--quiet", "--bare"]).arg(&bare).status().unwrap();
        assert!(made.success());
        let found = async |address: Option<&str>| {
            let mut environment = environment();
            environment.prerequisites.git = address.map(str::to_owned);
            let mut found = Dependencies::default();
            repository(&mut found, &environment).await;
            found.found.pop()
        };
        assert!(found(None).await.is_none());
        let there = format!("file://{}", bare.display());
        let listed = found(Some(&there)).await.unwrap();
        assert_eq!((listed.address, listed.result, listed.cause), (there.clone(), CheckResult::Well, None));
        let elsewhere = found(Some(&format!("{there}.gone"))).await.unwrap();
        let cause = elsewhere.cause.unwrap();
        assert!(elsewhere.result == CheckResult::Warning && cause.contains("clusters.git.gone"), "{cause}");
        // Transports that run the program in the address are refused.
        let program = found(Some("ext::sh -c true")).await.unwrap();
        let cause = program.cause.unwrap();
        assert!(program.result == CheckResult::Warning && cause.contains("'ext' not allowed"), "{cause}");
        for (line, shown) in [
            (
                "fatal: could not read Password for 'https://hunter2@git.example.com': terminal prompts disabled",
                "fatal: could not read Password for 'https://git.example.com': terminal prompts disabled",
            ),
            (
                "git@git.example.com: Permission denied (publickey).",
                "git@git.example.com: Permission denied (publickey).",
            ),
        ] {
            assert_eq!(without_user(line), shown);
        }
        for address in [
            "https://ada:hunter2@git.example.com/a",
            "https://hunter2@git.example.com/a",
            "https://ada:hun/ter2@git.example.com/a",
            "https://git.example.com/a?token=hunter2",
            "ssh://git:hunter2@git.example.com/a",
        ] {
            let kept = found(Some(address)).await.unwrap();
            let shown = format!("{kept:?}");
            assert!(
                kept.result == CheckResult::Unknown && !shown.contains("hunter2") && !shown.contains("ter2"),
                "{shown}"
            );
        }
        for address in
            ["git@git.example.com:a/b.git", "ssh://git@git.example.com:2222/a", "https://git.example.com/a@b"]
        {
            assert_eq!(has_credentials(address), address.contains("https"), "{address}");
        }
    }

    #[tokio::test]
    async fn refusal_by_status_is_an_answer_and_an_error_of_the_server_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/v2/", listener.local_addr().unwrap()).parse().unwrap();
        let http = ClientOptions::default().client().unwrap();
        for (status, is_well) in [("401 Unauthorized", true), ("503 Service Unavailable", false)] {
            let (answer, _) = tokio::join!(ask(&http, &url), serve(&listener, status, ""));
            assert_eq!(answer.is_ok(), is_well, "{answer:?}");
        }
        // A bound socket that does not listen: no other process can take its port.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", held.local_addr().unwrap()).parse().unwrap();
        let Fault(result, cause) = ask(&http, &url).await.unwrap_err();
        assert!(result == CheckResult::Problem && cause.to_lowercase().contains("refused"), "{cause}");
    }
}
