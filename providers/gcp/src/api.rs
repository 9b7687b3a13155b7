//! The client of one project and region, and one way to call Google's services. It does not retry: each call is journaled, and only
//! the engine repeats it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use futures::StreamExt;
use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, RETRY_AFTER};
use serde_json::Value;
use textnlp_cloud::{Cloud, Images, document};
use textnlp_net::client::{BodyError, ClientOptions, ProxySettings, read_body};
use textnlp_net::retry::parse_retry_after;
use textnlp_net::trust::TrustRoots;
use textnlp_provider::{Error, ErrorKind, Foreign, Result, SecretStore, error_chain};
use tokio::sync::OnceCell;

use crate::access::{Access, Identity};
use crate::answer::Failure;
use crate::kinds;
use crate::labels;
use crate::service::{Endpoints, Service};
use crate::storage::Buckets;
use crate::table::Row;
use crate::tables::errors;
use crate::token::Tokens;

/// Timeout of one call. The engine allows ten seconds for everything that a verb does.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes: a page of machine types of all zones.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Pages of one list.
const MAX_PAGES: usize = 50;
/// A file of certificate authorities that are trusted besides the public ones.
const CA_FILE: &str = "TEXTNLP_CA_FILE";
/// How long an answer about a disabled service is used: one observation asks for each of its kinds.
const DISABLED_FOR: Duration = Duration::from_secs(5);
/// Codes of an answer of a service that the project has not enabled, or that is not usable yet.
const DISABLED: [&str; 2] = ["SERVICE_DISABLED", "accessNotConfigured"];
/// Objects that are read at the same time.
const AT_ONCE: usize = 8;

/// The client of one project and region.
pub(crate) struct Api {
    pub(crate) session: Arc<Session>,
    pub(crate) region: String,
    is_elsewhere: bool,
}

/// What is the same in all regions.
pub(crate) struct Session {
    http: reqwest::Client,
    pub(crate) tokens: Arc<Tokens>,
    endpoints: Endpoints,
    pub(crate) identity: Identity,
    quota_project: Option<String>,
    number: OnceCell<String>,
    buckets: OnceCell<Buckets>,
    /// Where the values of secret references are.
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) images: Images,
    /// Whether a service was disabled, and when that was asked.
    disabled: Mutex<BTreeMap<Service, (Instant, bool)>>,
    /// The clients of other regions, by region.
    elsewhere: Mutex<BTreeMap<String, Arc<Api>>>,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    service: Service,
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    action: &'static str,
    subject: String,
}

impl Call {
    pub(crate) fn new(service: Service, method: Method, path: impl Into<String>) -> Self {
        let path = path.into();
        let subject = document::last(&path).to_owned();
        let action = match method {
            Method::GET => "read",
            Method::DELETE => "delete",
            Method::POST => "create",
            _ => "change",
        };
        Self { service, method, path, query: Vec::new(), body: None, action, subject }
    }

    pub(crate) fn get(service: Service, path: impl Into<String>) -> Self {
        Self::new(service, Method::GET, path)
    }

    pub(crate) fn post(service: Service, path: impl Into<String>, body: Value) -> Self {
        Self::new(service, Method::POST, path).body(body)
    }

    pub(crate) fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// The words of its error: `create`, `network textnlp-a`.
    pub(crate) fn saying(self, action: &'static str, subject: impl Into<String>) -> Self {
        Self { action, subject: subject.into(), ..self }
    }
}

impl Api {
    /// Signs in and asks who is signed in.
    pub(crate) async fn connect(access: &Access, secrets: Arc<dyn SecretStore>, images: Images) -> Result<Self> {
        let project = access.project()?;
        let endpoints = Endpoints::of(|name| access.variable(name))?;
        let http = client(access)?;
        let tokens = Arc::new(Tokens::new(access.clone(), http.clone(), endpoints.clone()));
        let identity = Identity { project, email: String::new() };
        let mut session = Session {
            http,
            tokens,
            endpoints,
            identity,
            quota_project: access.quota_project(),
            number: OnceCell::new(),
            buckets: OnceCell::new(),
            secrets,
            images,
            disabled: Mutex::default(),
            elsewhere: Mutex::default(),
        };
        session.identity.email = session.email(access).await?;
        Ok(Self { session: Arc::new(session), region: access.region.clone(), is_elsewhere: false })
    }

    /// The tokens of an identity, without a call.
    pub(crate) fn tokens(access: &Access) -> Result<Tokens> {
        let endpoints = Endpoints::of(|name| access.variable(name))?;
        Ok(Tokens::new(access.clone(), client(access)?, endpoints))
    }

    pub(crate) fn project(&self) -> &str {
        &self.session.identity.project
    }

    /// The value of a placeholder in a template of a row.
    pub(crate) fn placeholder(&self, name: &str) -> Option<String> {
        match name {
            "project" => Some(self.project().to_owned()),
            "location" => Some(self.region.clone()),
            _ => None,
        }
    }

    /// A path of this project and region.
    pub(crate) fn path(&self, template: &str) -> String {
        document::fill(template, |name| self.placeholder(name)).unwrap_or_else(|| template.to_owned())
    }

    /// The address of a registry of images.
    pub(crate) fn registry(&self, host: &str) -> String {
        self.session.endpoints.registry(host)
    }

    pub(crate) async fn send(&self, call: Call) -> Result<Value> {
        self.session.send(call).await
    }

    /// The same, for a read: an object that is not found is `None`.
    pub(crate) async fn find(&self, call: Call) -> Result<Option<Value>> {
        match self.send(call).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A read that finds nothing where the project does not have the service enabled: it has no objects of it.
    pub(crate) async fn find_enabled(&self, call: Call) -> Result<Option<Value>> {
        let service = call.service;
        self.or_nothing(service, self.find(call).await).await
    }

    /// The answer of a service, and nothing where the project does not have it enabled.
    pub(crate) async fn or_nothing<T: Default>(&self, service: Service, answer: Result<T>) -> Result<T> {
        match answer {
            Err(error) if is_disabled(&error) && self.session.is_disabled(service).await? => Ok(T::default()),
            answer => answer,
        }
    }

    /// All items of a list; empty where the project does not have the service enabled.
    pub(crate) async fn list(
        &self,
        service: Service,
        path: &str,
        items: &str,
        query: &[(&'static str, String)],
    ) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut page = String::new();
        for _ in 0..MAX_PAGES {
            let mut call = Call::get(service, path).saying("list", path.to_owned());
            call.query.extend(query.iter().cloned());
            call.query.extend(service.longest_page().map(|(name, size)| (name, size.to_owned())));
            if !page.is_empty() {
                call = call.query("pageToken", page);
            }
            let Some(mut answer) = self.find_enabled(call).await? else { return Ok(all) };
            match answer[items].take() {
                Value::Array(found) => all.extend(found),
                // An aggregated list has a list for each scope.
                Value::Object(scopes) => all.extend(scopes.into_iter().flat_map(|(_, mut scope)| {
                    let lists = scope.as_object_mut().map(std::mem::take).unwrap_or_default();
                    lists.into_iter().flat_map(|(_, list)| match list {
                        Value::Array(found) => found,
                        _ => Vec::new(),
                    })
                })),
                _ => {}
            }
            page = answer["nextPageToken"].as_str().unwrap_or_default().to_owned();
            if page.is_empty() {
                return Ok(all);
            }
        }
        let error = Error::new(ErrorKind::Invalid, "list", path.to_owned());
        Err(error.because(format!("it has more than {MAX_PAGES} pages")))
    }

    /// Reads several paths of a service at the same time.
    pub(crate) async fn read_all(&self, service: Service, paths: Vec<String>) -> Result<Vec<Value>> {
        let reads = paths.into_iter().map(|path| self.find_enabled(Call::get(service, path)));
        let read: Vec<_> = futures::stream::iter(reads).buffered(AT_ONCE).collect().await;
        read.into_iter().filter_map(Result::transpose).collect()
    }

    /// The number of the project, by which its service agents and producers of private services know it.
    pub(crate) async fn project_number(&self) -> Result<&str> {
        let number = self.session.number.get_or_try_init(|| async {
            let call = Call::get(Service::ResourceManager, format!("projects/{}", self.project()));
            let answer = self.send(call.saying("read", format!("project {}", self.project()))).await?;
            let number = answer["projectNumber"].as_str().unwrap_or_default().to_owned();
            match number.is_empty() {
                true => Err(Error::new(ErrorKind::Unavailable, "read the number of", self.project())),
                false => Ok(number),
            }
        });
        number.await.map(String::as_str)
    }

    /// The same number, if a call has asked for it.
    pub(crate) fn known_number(&self) -> Option<&str> {
        self.session.number.get().map(String::as_str)
    }

    /// The client of buckets.
    pub(crate) async fn buckets(&self) -> Result<&Buckets> {
        let session = &self.session;
        let connect = || {
            let root = session.endpoints.root(Service::Storage);
            Buckets::connect(root, session.tokens.clone(), session.identity.clone())
        };
        session.buckets.get_or_try_init(connect).await
    }
}

impl Session {
    /// Forgets which services were disabled.
    pub(crate) fn services_changed(&self) {
        self.disabled.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn send(&self, call: Call) -> Result<Value> {
        self.answer(call).await.map_err(|error| error.signed_in_as(&self.identity.email))
    }

    async fn answer(&self, call: Call) -> Result<Value> {
        let Call { service, method, path, query, body, action, subject } = call;
        let failed = |kind| Error::new(kind, action, subject.clone());
        let mut url = self.endpoints.url(service, &path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(&query);
        }
        let takes_body = [Method::POST, Method::PUT].contains(&method);
        let bearer = self.tokens.bearer().await?;
        let mut request = self.http.request(method, url).bearer_auth(bearer.token.expose_text().unwrap_or_default());
        if let Some(project) = &self.quota_project {
            request = request.header("x-goog-user-project", project);
        }
        match &body {
            Some(body) => request = request.json(body),
            // Google answers 411 to one without a body and without its length.
            None if takes_body => request = request.header(CONTENT_LENGTH, "0"),
            None => {}
        }
        let response = request.send().await.map_err(|error| {
            let why = match error.is_timeout() && !error.is_connect() {
                true => format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
                false => error_chain(&error.without_url()),
            };
            failed(ErrorKind::Unavailable).because(why)
        })?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = retry_after.and_then(|text| parse_retry_after(text, Timestamp::now()));
        let body = read_body(response, MAX_ANSWER_BYTES).await.map_err(|error| match error {
            BodyError::Cut(_) => failed(ErrorKind::Unavailable).because(error),
            BodyError::TooLong(_) => failed(ErrorKind::Invalid).because(error),
        })?;
        let answer: Value = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&body).unwrap_or_default(),
        };
        if status < 400 {
            if answer.is_null() && !body.is_empty() {
                return Err(failed(ErrorKind::Unavailable).because("the answer is not JSON"));
            }
            return Ok(answer);
        }
        let failure = Failure { after, ..Failure::of_answer(status, &answer) };
        let mut error = failure.error(service, action, &subject);
        if status == 401 && self.tokens.refused().await {
            error.kind = ErrorKind::Unavailable;
        }
        Err(error)
    }

    /// Whether the project has a service disabled. One that is enabled may not be usable yet.
    async fn is_disabled(&self, service: Service) -> Result<bool> {
        let known = self.disabled.lock().unwrap_or_else(PoisonError::into_inner).get(&service).copied();
        if let Some((_, is_disabled)) = known.filter(|(asked, _)| asked.elapsed() < DISABLED_FOR) {
            return Ok(is_disabled);
        }
        let path = format!("projects/{}/services/{}", self.identity.project, service.api());
        let call = Call::get(Service::ServiceUsage, path).saying("read", format!("the state of {}", service.api()));
        let answer = self.send(call).await.map_err(|error| match is_disabled(&error) {
            true => error.hint(bootstrap_hint(&self.identity.project)),
            false => error,
        })?;
        let is_disabled = answer["state"] == "DISABLED";
        let mut disabled = self.disabled.lock().unwrap_or_else(PoisonError::into_inner);
        disabled.insert(service, (Instant::now(), is_disabled));
        Ok(is_disabled)
    }

    /// The e-mail address of who is signed in.
    async fn email(&self, access: &Access) -> Result<String> {
        if let Some(account) = &access.impersonate {
            self.tokens.bearer().await?;
            return Ok(account.clone());
        }
        if let Some(email) = access.credential_facts().email {
            self.tokens.bearer().await?;
            return Ok(email);
        }
        let call = Call::get(Service::OAuth2, "userinfo").saying("sign in to", "gcp");
        match self.send(call).await {
            Ok(answer) => Ok(answer["email"].as_str().unwrap_or("an identity without an e-mail address").to_owned()),
            // A federated identity has none.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::NotFound) => {
                self.tokens.bearer().await?;
                Ok("an identity without an e-mail address".to_owned())
            }
            Err(error) => Err(error.hint("check the network and `HTTPS_PROXY`")),
        }
    }
}

/// Whether an error says that a service is not enabled, or not usable yet.
pub(crate) fn is_disabled(error: &Error) -> bool {
    error.code.as_deref().is_some_and(|code| DISABLED.contains(&code))
}

/// What an operator does in a bare project: a service cannot enable itself.
pub(crate) fn bootstrap_hint(project: &str) -> String {
    format!(
        "enable it once: `gcloud services enable serviceusage.googleapis.com cloudresourcemanager.googleapis.com --project {project}`"
    )
}

fn client(access: &Access) -> Result<reqwest::Client> {
    let ca_file = access.variable(CA_FILE);
    let trust = TrustRoots::public_and(ca_file.as_deref().map(Utf8Path::new))
        .map_err(|error| Error::new(ErrorKind::Invalid, "use", CA_FILE).because(error))?;
    let proxy = ProxySettings::from_variables(|name| access.variable(name));
    let options = ClientOptions {
        trust,
        proxy,
        connect_timeout: CONNECT_TIMEOUT,
        idle_timeout: None,
        timeout: Some(CALL_TIMEOUT),
    };
    options.client().map_err(|error| Error::new(ErrorKind::Invalid, "set up", "an HTTP client").because(error))
}

impl Cloud for Api {
    type Shared = ();

    const NAME: &'static str = "Google Cloud";
    // Operations of a cluster take minutes, and so do grants and services that were just enabled
    // (hashicorp/terraform-provider-google#8214, googleapis/google-auth-library-python#604, hashicorp/terraform-provider-google#3650).
    const CONFLICTS_LAST: bool = true;

    fn rows() -> &'static [&'static [Row]] {
        kinds::ALL
    }

    fn classify(service: &str, code: &str, message: &str) -> (ErrorKind, Option<String>) {
        let service = Service::named(service).unwrap_or(Service::Compute);
        let (kind, _, hint) = errors::meaning(service, &[code.to_owned()], None, message);
        (kind, hint)
    }

    fn is_reserved(key: &str) -> bool {
        labels::is_reserved(key)
    }

    /// Firewall rules and endpoint groups hold nothing, and they appear while load balancers are being deleted.
    fn is_named(_foreign: &Foreign) -> bool {
        false
    }

    fn signed_in(&self) -> &str {
        &self.session.identity.email
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
        let mut elsewhere = self.session.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        let there = elsewhere.entry(region.to_owned()).or_insert_with(|| {
            Arc::new(Self { session: self.session.clone(), region: region.to_owned(), is_elsewhere: true })
        });
        there.clone()
    }
}
