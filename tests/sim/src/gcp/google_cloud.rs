//! The servers of a simulated Google Cloud, and how a request is answered.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::Cloud;
use super::problem::Problem;
use super::tokens::Tokens;
use super::{
    Call, SERVICES, Service, budgets, dispatch, errors, objects, permissions, route, run, storage, vertex, wire,
};
use crate::Timing;
use crate::aws::model::lock;
use crate::aws::protocol::{Reply, Request};
use crate::fault_plan::{Disruption, FaultPlan};
use crate::server::{Protocols, Server};
use crate::simulator::{Exchange, Log, Outcome};

/// APIs that a new project has: <https://cloud.google.com/service-usage/docs/enabled-service#default>, and Resource
/// Manager, without which nothing can be asked of a project.
const FIRST: &[&str] = &[
    "cloudresourcemanager.googleapis.com",
    "serviceusage.googleapis.com",
    "storage-api.googleapis.com",
    "storage-component.googleapis.com",
    "storage.googleapis.com",
];
/// What hides in records of requests.
const SECRETS: &[&str] = &["password", "rootPassword", "accessToken", "privateKeyData", "access_token", "token"];

/// How a simulated Google Cloud starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// What ids and chances follow from.
    pub seed: u64,
    /// Delays.
    pub timing: Timing,
    /// The id of the first project.
    pub project: String,
    /// Its number.
    pub number: String,
    /// The e-mail address of its owner, who signs in.
    pub operator: String,
    /// APIs that are enabled beside those of every new project.
    pub services: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            timing: Timing::default(),
            project: "simulated-project".to_owned(),
            number: "123456789012".to_owned(),
            operator: "operator@example.com".to_owned(),
            services: Vec::new(),
        }
    }
}

impl Options {
    /// Everything is ready at the next request.
    #[must_use]
    pub fn zero_latency() -> Self {
        Self { timing: Timing { zero_latency: true, ..Timing::default() }, ..Self::default() }
    }

    /// The same with all simulated APIs enabled.
    #[must_use]
    pub fn enabled(mut self) -> Self {
        self.services = SERVICES.iter().map(|service| service.api.to_owned()).collect();
        self
    }
}

struct Shared {
    cloud: Mutex<Cloud>,
    tokens: Mutex<Tokens>,
    log: Log,
}

/// A simulated Google Cloud that answers on the loopback interface until it is dropped.
///
/// Dropping it panics if a request or an answer broke the contract and [`GoogleCloud::take_violations`] was not called:
/// a test that uses it is a test of the contract too.
pub struct GoogleCloud {
    shared: Arc<Shared>,
    servers: Option<(Server, Server)>,
    url: String,
    grpc_url: String,
    project: String,
    operator: String,
    credential_file: std::path::PathBuf,
}

impl GoogleCloud {
    /// Starts a cloud with one project, and writes the credential file of its owner.
    ///
    /// # Panics
    /// No port of the loopback interface can be had, or the file cannot be written.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let mut cloud = Cloud::new(options.seed, options.timing, &options.operator);
        let services: Vec<&str> = FIRST.iter().copied().chain(options.services.iter().map(String::as_str)).collect();
        cloud.add_project(&options.project, &options.number, &services);
        if services.contains(&"compute.googleapis.com") {
            super::compute::catalogue(&mut cloud, &options.project);
        }
        let mut tokens = Tokens::new(options.seed);
        let refresh = tokens.refresh(&options.operator);
        let shared = Arc::new(Shared { cloud: Mutex::new(cloud), tokens: Mutex::new(tokens), log: Log::default() });
        let of_rest = shared.clone();
        let rest = Server::start(Protocols::Http1, Arc::new(move |request| of_rest.answer(request)));
        let of_grpc = shared.clone();
        let answer = move |request: Request| match request.header("content-type") {
            Some(kind) if kind.starts_with("application/grpc") => of_grpc.answer_grpc(&request),
            // The JSON API of the same service has the same host.
            _ => of_grpc.answer(Request { path: format!("/storage{}", request.path), ..request }),
        };
        let grpc = Server::start(Protocols::Both, Arc::new(answer));
        let (url, grpc_url) = (rest.url(), grpc.url());
        lock(&shared.cloud).front.clone_from(&url);
        let credential = json!({
            "type": "authorized_user", "client_id": "simulated.apps.googleusercontent.com",
                "client_secret": "simulated",
            "refresh_token": refresh, "token_uri": format!("{url}/token"), "quota_project_id": options.project,
        });
        let name =
            format!("textnlp-sim-gcp-{}-{}.json", std::process::id(), url.rsplit(':').next().unwrap_or_default());
        let credential_file = std::env::temp_dir().join(name);
        std::fs::write(&credential_file, credential.to_string()).expect("write the credential file");
        let (project, operator) = (options.project, options.operator);
        Self { shared, servers: Some((rest, grpc)), url, grpc_url, project, operator, credential_file }
    }

    /// The address of all services but Cloud Storage.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The address of a service, as variables of endpoint overrides have it: with `/` at the end.
    #[must_use]
    pub fn url_of(&self, service: &str) -> String {
        match service {
            "storage" => format!("{}/", self.grpc_url),
            "bigquery" => format!("{}/bigquery/bigquery/v2/", self.url),
            "compute" => format!("{}/compute/compute/v1/", self.url),
            service => format!("{}/{service}/", self.url),
        }
    }

    /// The id of the first project.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The variables that lead clients here.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let names = SERVICES.iter().map(|service| service.name).chain(["oauth2"]);
        let address =
            |name: &str| (format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_{}", name.to_uppercase()), self.url_of(name));
        let mut variables: Vec<(String, String)> = names.map(address).collect();
        let file = self.credential_file.display().to_string();
        variables.push(("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), file));
        variables.push(("GOOGLE_CLOUD_PROJECT".to_owned(), self.project.clone()));
        variables
    }

    /// A new access token of the owner.
    #[must_use]
    pub fn token(&self) -> String {
        self.token_of(&self.operator)
    }

    /// A new access token of any account.
    #[must_use]
    pub fn token_of(&self, email: &str) -> String {
        lock(&self.shared.tokens).issue(email, Duration::from_secs(3600))
    }

    /// Who an access token stands for, if it is valid.
    #[must_use]
    pub fn email_of(&self, token: &str) -> Option<String> {
        lock(&self.shared.tokens).email(token)
    }

    /// Ends all access tokens.
    pub fn expire_tokens(&self) {
        lock(&self.shared.tokens).expire();
    }

    /// What the cloud holds. Requests wait while it is locked.
    pub fn world(&self) -> MutexGuard<'_, Cloud> {
        lock(&self.shared.cloud)
    }

    /// Moves the virtual time.
    pub fn advance(&self, by: Duration) {
        self.world().advance(by);
    }

    /// Clusters that become ready from now on have this address and certificate: those of a test's control plane.
    pub fn set_cluster_endpoint(&self, url: &str, ca_pem: &str) {
        let address = url.trim_start_matches("https://").trim_end_matches('/').to_owned();
        self.world().endpoint = Some((address, ca_pem.to_owned()));
    }

    /// The faults to inject.
    pub fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        lock(&self.shared.log.faults)
    }

    /// All requests so far, at most the last 100,000. The operation is the method's id, the account the project.
    #[must_use]
    pub fn requests(&self) -> Vec<Exchange> {
        self.shared.log.requests()
    }

    /// What broke the contract so far, in either direction.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.log.violations()
    }

    /// The same, for tests that expect them: they no longer fail the test.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        self.shared.log.take_violations()
    }
}

impl Drop for GoogleCloud {
    fn drop(&mut self) {
        drop(self.servers.take());
        let _ = std::fs::remove_file(&self.credential_file);
        self.shared.log.assert_kept();
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    let headers = vec![("content-type".to_owned(), "application/json; charset=UTF-8".to_owned())];
    Reply { status, headers, body: body.to_string().into() }
}

/// A copy in which secrets are `***`.
fn redacted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let one = |(name, value): (&String, &Value)| {
                let is_secret = SECRETS.contains(&name.as_str());
                (name.clone(), if is_secret { "***".into() } else { redacted(value) })
            };
            members.iter().map(one).collect()
        }
        Value::Array(items) => items.iter().map(redacted).collect(),
        value => value.clone(),
    }
}

/// The location in a name, if it has one.
fn location(name: &str) -> String {
    let mut parts = name.split('/').skip_while(|part| !["locations", "regions", "zones"].contains(part));
    parts.nth(1).unwrap_or_default().to_owned()
}

fn is_lost(disruption: Option<&Disruption>) -> bool {
    matches!(disruption, Some(Disruption::LostRequest | Disruption::LostReply | Disruption::Reset))
}

/// The error of an injected fault that comes before anything is done.
fn injected(service: &str, project: &str, disruption: Option<&Disruption>) -> Result<(), Problem> {
    Err(match disruption {
        Some(Disruption::Throttled) => errors::rate_limited(service, project),
        Some(Disruption::Internal) => Problem::new("INTERNAL", "Internal error encountered."),
        Some(Disruption::Unavailable) => Problem::new("UNAVAILABLE", "The service is currently unavailable."),
        Some(Disruption::Refused(fault)) => Problem::from(fault),
        Some(Disruption::LostRequest | Disruption::Reset) => {
            Problem::new("UNKNOWN", "the connection ends before the request takes effect")
        }
        Some(Disruption::LostReply | Disruption::Delayed(_)) | None => return Ok(()),
    })
}

fn unauthenticated() -> Problem {
    let message = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or \
        other \
                   valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    Problem::new("UNAUTHENTICATED", message).info("ACCESS_TOKEN_TYPE_UNSUPPORTED", "googleapis.com", json!({}))
}

impl Shared {
    /// Moves the clock as each request does.
    fn tick(&self) -> MutexGuard<'_, Cloud> {
        let mut cloud = lock(&self.cloud);
        let step = cloud.timing.step.max(Duration::from_millis(1));
        cloud.advance(step);
        cloud
    }

    fn answer(&self, request: Request) -> (Option<Reply>, Option<Disruption>) {
        let path = request.path.trim_start_matches('/').to_owned();
        // The names of quotas have a slash in a part of the path.
        let path = if path.starts_with("serviceusage/") { path.replace("%2F", "%252F") } else { path };
        let path: String = percent_decoded(&path);
        match request.header("host").and_then(|host| host.split(':').next()) {
            Some(objects::HOST) => return self.answer_objects(&request, &path),
            // Some clients refresh the tokens of users there, whatever their file says.
            Some("accounts.google.com") if path == "o/oauth2/token" => return self.answer_oauth(&request, ""),
            _ => {}
        }
        let (first, rest) = path.split_once('/').unwrap_or((&path, ""));
        if first == "token" || first == "oauth2" {
            return self.answer_oauth(&request, rest);
        }
        if first == "v2" {
            return self.answer_registry(&request);
        }
        if first == "run.app" {
            return self.answer_run(&request, rest);
        }
        if first == vertex::PREDICTIONS {
            return self.answer_prediction(&request, rest);
        }
        let Some(service) = SERVICES.iter().find(|service| service.name == first) else {
            self.log.violation(format!("{path}: no service of this name is simulated"));
            return (Some(reply(404, &json!({ "error": { "code": 404, "message": "Not Found" } }))), None);
        };
        let mut exchange = Exchange { service: service.name, ..Exchange::default() };
        let mut disruption = None;
        let result = self.result(service, &request, rest, &mut exchange, &mut disruption);
        let lost = is_lost(disruption.as_ref());
        exchange.is_lost = lost;
        exchange.outcome = match &result {
            Ok(_) => Outcome::Succeeded,
            Err(problem) => Outcome::Failed(problem.reason.clone()),
        };
        self.log.record(exchange);
        let reply = match result {
            Ok(answer) => reply(200, &answer),
            Err(problem) => reply(problem.http, &problem.body(service.is_older)),
        };
        ((!lost).then_some(reply), disruption)
    }

    fn result(
        &self,
        service: &'static Service,
        request: &Request,
        path: &str,
        exchange: &mut Exchange,
        disruption: &mut Option<Disruption>,
    ) -> Result<Value, Problem> {
        let routed = route(service, &request.method, path).map_err(|why| {
            self.log.violation(format!("{}: {why}", service.name));
            Problem::new("INTERNAL", why)
        })?;
        let Some((document, method, plain, prefix)) = routed else {
            self.log.violation(format!("{}: the documents have no method {} {path}", service.name, request.method));
            return Err(Problem::new("NOT_FOUND", format!("Not found: {path}")));
        };
        exchange.operation.clone_from(&method.id);
        let mut cloud = self.tick();
        let user = lock(&self.tokens).of(request).ok_or_else(unauthenticated)?;
        exchange.identity.clone_from(&user);
        let body: Option<Value> = match request.body.is_empty() {
            true => None,
            false => match serde_json::from_slice(&request.body) {
                Ok(body) => Some(body),
                Err(error) => {
                    self.log.violation(format!("{}: the body is no JSON: {error}", method.id));
                    return Err(Problem::new("INVALID_ARGUMENT", "Invalid JSON payload received."));
                }
            },
        };
        let body = body.filter(|_| request.method != "GET" || method.request.is_some());
        exchange.input = redacted(body.as_ref().unwrap_or(&Value::Null));
        let problems = document.check_request(method, &request.query, body.as_ref());
        if !problems.is_empty() {
            let text = problems.join("; ");
            self.log.violation(format!("{}: {text}", method.id));
            let violations: Vec<Value> = problems.iter().map(|one| json!({ "description": one })).collect();
            let detail = json!({ "@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations });
            let message = format!("Invalid JSON payload received. {text}");
            return Err(Problem::new("INVALID_ARGUMENT", message).detail(detail));
        }
        let mut body = body.unwrap_or_default();
        document.normalise(method, &mut body);
        let mut call = Call {
            service,
            id: &method.id,
            name: plain.strip_prefix(prefix).unwrap_or(plain).to_owned(),
            project: String::new(),
            query: request.query.clone(),
            body,
            user,
            is_v3: prefix == "v3/",
            page: cloud.timing.page,
        };
        find_project(&cloud, &mut call);
        if service.name == "billingbudgets" {
            call.project = budgets::quota_project(&cloud, request.header("x-goog-user-project"), &call.user)?;
        }
        exchange.account.clone_from(&call.project);
        exchange.region = location(&call.name);
        *disruption = lock(&self.log.faults).next(service.name, &method.id, &exchange.region);
        injected(service.name, &call.project, disruption.as_ref())?;
        let has_quota_project = request.header("x-goog-user-project").is_some();
        self.admit(&mut cloud, &call, has_quota_project)?;
        let Some(answered) = dispatch(&mut cloud, &call) else {
            self.log.violation(format!("{}: not simulated", method.id));
            return Err(Problem::new("UNIMPLEMENTED", "not simulated"));
        };
        let mut answer = answered?;
        if method.id.ends_with(".generateAccessToken") {
            answer = self.token(&answer);
        }
        if method.id.ends_with(".generateIdToken") {
            let (email, audience) = answer["token"].as_str().and_then(|text| text.split_once(' ')).unwrap_or_default();
            answer = json!({ "token": lock(&self.tokens).identify(email, audience) });
        }
        let problems = document.check_answer(method, &answer);
        if !problems.is_empty() {
            self.log.violation(format!("{}: {}", method.id, problems.join("; ")));
        }
        Ok(answer)
    }

    /// Refuses a call of an API that is off, of a caller without the permissions, or beyond the rate.
    fn admit(&self, cloud: &mut Cloud, call: &Call<'_>, has_quota_project: bool) -> Result<(), Problem> {
        let is_operator = call.user == cloud.operator;
        let mut needed = permissions(cloud, call);
        if has_quota_project && is_operator {
            needed.push("serviceusage.services.use".to_owned());
        }
        let authorize = |cloud: &mut Cloud| {
            let missing = needed.iter().find(|one| !cloud.authorize(&call.user, &call.project, one));
            missing.map_or(Ok(()), |one| Err(errors::denied(call.service.name, one, &call.name)))
        };
        // Names of some operations have no project, in which others could have roles.
        if call.project.is_empty() {
            return if is_operator { authorize(cloud) } else { Ok(()) };
        }
        let Some(project) = cloud.project(&call.project) else {
            return Err(match call.service.name {
                "compute" => errors::not_found("compute", &format!("projects/{}", call.project)),
                _ => Problem::new("PERMISSION_DENIED", "The caller does not have permission"),
            });
        };
        let is_usable = project.services.get(call.service.api).is_some_and(|from| *from <= cloud.now());
        if !is_usable {
            return Err(errors::api_disabled(call.service, project));
        }
        cloud.admit(&call.project, call.service.name)?;
        authorize(cloud)
    }

    /// A token of a service account: the handler gave its address and how many seconds it lasts.
    fn token(&self, answer: &Value) -> Value {
        let text = |member: &str| answer[member].as_str().unwrap_or_default();
        let lasts = Duration::from_secs(text("expireTime").parse().unwrap_or(3600));
        let token = lock(&self.tokens).issue(text("accessToken"), lasts);
        let ends = crate::later(jiff::Timestamp::now(), lasts);
        let ends = jiff::Timestamp::from_second(ends.as_second()).unwrap_or(ends);
        json!({ "accessToken": token, "expireTime": ends.to_string() })
    }

    /// Answers a request to a service of Cloud Run. Other requests go on while an instance answers.
    fn answer_run(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let cloud = self.tick();
        let (answered, rest) = run::answer(&cloud, request, path, |token| lock(&self.tokens).identity(token));
        drop(cloud);
        self.answer_by(answered, request, &rest, ("run", "run.app"))
    }

    /// Answers a request to an endpoint of Vertex AI with a name of its own, which no document describes.
    fn answer_prediction(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let user = lock(&self.tokens).of(request);
        let (answered, route) = vertex::answer(&mut cloud, request, path, user.as_deref());
        drop(cloud);
        self.answer_by(answered, request, &route, ("aiplatform", "aiplatform.rawPredict"))
    }

    /// The answer of a container, which no lock is held for.
    fn answer_by(
        &self,
        answered: run::Answered,
        request: &Request,
        path: &str,
        (service, operation): (&'static str, &str),
    ) -> (Option<Reply>, Option<Disruption>) {
        let (status, body) = match answered {
            run::Answered::Refused(status, why) => (status, why.as_bytes().to_vec()),
            run::Answered::By(container, containers) => containers(&container, &request.method, path, &request.body),
        };
        let outcome = if status < 400 { Outcome::Succeeded } else { Outcome::Failed(status.to_string()) };
        self.log.record(Exchange { service, operation: operation.to_owned(), outcome, ..Exchange::default() });
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        (Some(Reply { status, headers, body: body.into() }), None)
    }

    /// Answers a request of the registry of images, which no document describes.
    fn answer_registry(&self, request: &Request) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let operation = "artifactregistry.docker".to_owned();
        let disruption = lock(&self.log.faults).next("artifactregistry", &operation, "");
        let reply = match injected("artifactregistry", "", disruption.as_ref()) {
            Err(problem) => crate::oci::refused(problem.http, "UNKNOWN"),
            Ok(()) => super::registry::answer(&mut cloud, request, |token| lock(&self.tokens).email(token)),
        };
        let failed = (reply.status >= 400).then(|| Outcome::Failed(reply.status.to_string()));
        let is_lost = is_lost(disruption.as_ref());
        let outcome = failed.unwrap_or(Outcome::Succeeded);
        self.log.record(Exchange { service: "artifactregistry", operation, outcome, is_lost, ..Exchange::default() });
        ((!is_lost).then_some(reply), disruption)
    }

    /// Answers a request of Cloud Storage's XML API, which no document describes.
    fn answer_objects(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let operation = objects::operation(request, path);
        let disruption = lock(&self.log.faults).next("storage", operation, "");
        let user = lock(&self.tokens).of(request);
        let reply = match injected("storage", "", disruption.as_ref()) {
            Err(problem) => objects::refused(problem.http, "InternalError", &problem.message, ""),
            Ok(()) => objects::answer(&mut cloud, request, path, user.as_deref()),
        };
        let failed = (reply.status >= 400).then(|| Outcome::Failed(reply.status.to_string()));
        let is_lost = is_lost(disruption.as_ref());
        let exchange = Exchange {
            service: "storage",
            operation: operation.to_owned(),
            identity: user.unwrap_or_default(),
            outcome: failed.unwrap_or(Outcome::Succeeded),
            is_lost,
            ..Exchange::default()
        };
        self.log.record(exchange);
        ((!is_lost).then_some(reply), disruption)
    }

    fn answer_oauth(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let cloud = self.tick();
        let operation = if path.is_empty() { "token" } else { path };
        let disruption = lock(&self.log.faults).next("oauth2", operation, "");
        let mut tokens = lock(&self.tokens);
        let presented = || {
            let of_query =
                request.query.iter().find(|(name, _)| name == "access_token").map(|(_, token)| token.clone());
            let form: Vec<(String, String)> = url::form_urlencoded::parse(&request.body).into_owned().collect();
            let of_form = form.into_iter().find(|(name, _)| name == "access_token").map(|(_, token)| token);
            of_query.or(of_form).unwrap_or_default()
        };
        let (status, body) = match (injected("oauth2", "", disruption.as_ref()), operation) {
            (Err(problem), _) => (problem.http, problem.body(false)),
            (Ok(()), "token") => tokens.grant(&cloud, request),
            (Ok(()), "tokeninfo" | "oauth2/v3/tokeninfo" | "v3/tokeninfo") => tokens.info(&presented(), false),
            (Ok(()), "oauth2/v2/tokeninfo" | "oauth2/v1/tokeninfo" | "v2/tokeninfo" | "v1/tokeninfo") => {
                tokens.info(&presented(), true)
            }
            (
                Ok(()),
                "oauth2/v1/userinfo" | "oauth2/v2/userinfo" | "oauth2/v3/userinfo" | "userinfo/v2/me" | "v1/userinfo"
                | "v2/userinfo" | "v3/userinfo",
            ) => match tokens.of(request) {
                Some(email) if operation.contains("v3") => {
                    (200, json!({ "sub": "100000000000000000000", "email": email, "email_verified": true }))
                }
                Some(email) => (200, json!({ "id": "100000000000000000000", "email": email, "verified_email": true })),
                None => (401, unauthenticated().body(false)),
            },
            (Ok(()), other) => {
                self.log.violation(format!("oauth2: {other} is not simulated"));
                (404, json!({ "error": "not_found" }))
            }
        };
        let outcome = if status == 200 { Outcome::Succeeded } else { Outcome::Failed(status.to_string()) };
        let lost = is_lost(disruption.as_ref());
        let exchange = Exchange {
            service: "oauth2",
            operation: operation.to_owned(),
            outcome,
            is_lost: lost,
            ..Exchange::default()
        };
        self.log.record(exchange);
        ((!lost).then(|| reply(status, &body)), disruption)
    }

    fn answer_grpc(&self, request: &Request) -> (Option<Reply>, Option<Disruption>) {
        let mut exchange = Exchange { service: "storage", ..Exchange::default() };
        exchange.operation = request.path.trim_start_matches('/').replace('/', ".");
        let mut disruption = None;
        let result = self.result_grpc(request, &mut exchange, &mut disruption);
        let lost = is_lost(disruption.as_ref());
        exchange.is_lost = lost;
        exchange.outcome = match &result {
            Ok(_) => Outcome::Succeeded,
            Err(problem) => Outcome::Failed(problem.code.to_owned()),
        };
        self.log.record(exchange);
        let kind = ("content-type".to_owned(), "application/grpc".to_owned());
        let reply = match result {
            Ok(message) => {
                let headers = vec![kind, ("grpc-status".to_owned(), "0".to_owned())];
                Reply { status: 200, headers, body: wire::framed(&message).into() }
            }
            Err(problem) => {
                let status = ("grpc-status".to_owned(), problem.number().to_string());
                let message = ("grpc-message".to_owned(), wire::escaped(&problem.message));
                Reply { status: 200, headers: vec![kind, status, message], body: Default::default() }
            }
        };
        ((!lost).then_some(reply), disruption)
    }

    fn result_grpc(
        &self,
        request: &Request,
        exchange: &mut Exchange,
        disruption: &mut Option<Disruption>,
    ) -> Result<Vec<u8>, Problem> {
        let mut cloud = self.tick();
        let user = lock(&self.tokens).of(request).ok_or_else(unauthenticated)?;
        exchange.identity.clone_from(&user);
        let Some(method) = storage::METHODS.iter().find(|method| method.path == request.path) else {
            self.log.violation(format!("{}: not simulated", request.path));
            return Err(Problem::new("UNIMPLEMENTED", "not simulated"));
        };
        let message = wire::unframed(&request.body).ok_or("it is not one message");
        let message = message.map_err(str::to_owned).and_then(|message| wire::decode(method.request, message));
        let message = message.map_err(|why| {
            self.log.violation(format!("{}: {why}", request.path));
            Problem::new("INVALID_ARGUMENT", why)
        })?;
        exchange.input = message.clone();
        let project = storage::project_of(&cloud, &message);
        exchange.account.clone_from(&project);
        *disruption = lock(&self.log.faults).next("storage", &exchange.operation, "");
        injected("storage", &project, disruption.as_ref())?;
        if let Some(of) = cloud.project(&project) {
            let storage = SERVICES.iter().find(|service| service.name == "storage");
            let is_usable = of.services.get("storage.googleapis.com").is_some_and(|from| *from <= cloud.now());
            if let Some(service) = storage.filter(|_| !is_usable) {
                return Err(errors::api_disabled(service, of));
            }
            if !method.permission.is_empty() && !cloud.authorize(&user, &project, method.permission) {
                return Err(errors::denied("storage", method.permission, &project));
            }
        } else if !project.is_empty() {
            return Err(Problem::new("PERMISSION_DENIED", "The caller does not have permission"));
        }
        let answer = (method.handler)(&mut cloud, &message)?;
        wire::encode(method.response, &answer).map_err(|why| {
            self.log.violation(format!("{}: {why}", request.path));
            Problem::new("INTERNAL", why)
        })
    }
}

/// Sets the project of a call, and its id in place of its number in the name.
fn find_project(cloud: &Cloud, call: &mut Call<'_>) {
    let mut parts: Vec<String> = call.name.split('/').map(str::to_owned).collect();
    if let [first, project, ..] = &mut parts[..]
        && first == "projects"
    {
        match cloud.project(project) {
            Some(found) => {
                project.clone_from(&found.id);
                call.project.clone_from(&found.id);
            }
            // The account's address names the project.
            None if project == "-" => {
                let address = call.name.rsplit('/').next().unwrap_or_default();
                let domain = address.split_once('@').map_or("", |(_, domain)| domain);
                call.project = domain.split('.').next().unwrap_or_default().to_owned();
            }
            None => call.project.clone_from(project),
        }
        call.name = parts.join("/");
        return;
    }
    // Service networking names the project in the network.
    let network = ["network", "consumerNetwork"].iter().find_map(|member| call.body[*member].as_str());
    let network = network.or_else(|| call.parameter("network")).unwrap_or_default().to_owned();
    let name = network.find("projects/").map_or("", |start| &network[start + 9..]);
    let name = name.split('/').next().unwrap_or_default();
    if !name.is_empty() {
        call.project = cloud.project(name).map_or_else(|| name.to_owned(), |project| project.id.clone());
    }
}

fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match (first, digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}
