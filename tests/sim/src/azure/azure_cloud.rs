//! The server of a simulated Azure, and how a request is answered.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::Cloud;
use super::kinds::{self, Answer, Call};
use super::problem::{Problem, bad};
use super::tokens::{CLUSTERS, STORAGE, Tokens};
use super::{NAMESPACES, blobs, document, machine_learning};
use crate::Timing;
use crate::aws::model::lock;
use crate::aws::protocol::{Reply, Request};
use crate::fault_plan::{Disruption, FaultPlan};
use crate::gcp::run::Answered;
use crate::server::{Protocols, Server};
use crate::simulator::{Exchange, Log, Outcome};

/// The host of Azure Resource Manager: addresses in answers have it, whatever the address of the request was.
pub(crate) const ARM: &str = "https://management.azure.com";
/// The host of Microsoft Entra ID.
const LOGIN: &str = "https://login.microsoftonline.com";
/// What hides in records of requests.
const SECRETS: &[&str] = &["administratorLoginPassword", "secret", "client_secret", "access_token", "value"];

/// How a simulated Azure starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// What ids and chances follow from.
    pub seed: u64,
    /// Delays.
    pub timing: Timing,
    /// The id of the subscription.
    pub subscription: String,
    /// The id of the tenant.
    pub tenant: String,
    /// The object id and application id of the operator, an owner of the subscription.
    pub operator: String,
    /// Namespaces that are registered beside those of every subscription.
    pub namespaces: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            timing: Timing::default(),
            subscription: "00000000-1111-4222-8333-444444444444".to_owned(),
            tenant: "00000000-5555-4666-8777-888888888888".to_owned(),
            operator: "00000000-9999-4aaa-8bbb-cccccccccccc".to_owned(),
            namespaces: Vec::new(),
        }
    }
}

impl Options {
    /// Everything is ready at the next request.
    #[must_use]
    pub fn zero_latency() -> Self {
        Self { timing: Timing { zero_latency: true, ..Timing::default() }, ..Self::default() }
    }

    /// The same with all simulated namespaces registered.
    #[must_use]
    pub fn registered(mut self) -> Self {
        self.namespaces = NAMESPACES.iter().map(|(name, _)| (*name).to_owned()).collect();
        self
    }
}

struct Shared {
    cloud: Mutex<Cloud>,
    tokens: Mutex<Tokens>,
    log: Log,
    id: crate::Random,
}

/// A simulated Azure that answers on the loopback interface until it is dropped.
///
/// One address stands for <https://management.azure.com>, <https://login.microsoftonline.com>, the metadata service of
/// machines and storage accounts: paths tell them apart, and the hosts of accounts. Clients keep the real addresses and
/// send to this one instead.
///
/// Dropping it panics if a request or an answer broke the contract and [`AzureCloud::take_violations`] was not
/// called: a test that uses it is a test of the contract too.
pub struct AzureCloud {
    shared: Arc<Shared>,
    server: Option<Server>,
    url: String,
    options: Options,
}

impl AzureCloud {
    /// Starts a cloud with one subscription with nothing in it.
    ///
    /// # Panics
    /// No port of the loopback interface can be had.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let Options { seed, timing, subscription, tenant, operator, namespaces } = options.clone();
        let mut cloud = Cloud::new(seed, timing, &subscription, &tenant, &operator);
        let first = NAMESPACES.iter().filter(|(_, is_first)| *is_first).map(|(name, _)| *name);
        cloud.register(&first.chain(namespaces.iter().map(String::as_str)).collect::<Vec<_>>());
        // Seconds of an interpreter, which no client waits for then. Where they cannot be read, each request says so.
        let _ = document::has("");
        let (tokens, id) = (Mutex::new(Tokens::new(seed)), crate::Random::new(seed ^ 1));
        let shared = Arc::new(Shared { cloud: Mutex::new(cloud), tokens, log: Log::default(), id });
        let of_server = shared.clone();
        let server = Server::start(Protocols::Http1, Arc::new(move |request| of_server.answer(&request)));
        let url = server.url();
        lock(&shared.cloud).front.clone_from(&url);
        Self { shared, url, server: Some(server), options }
    }

    /// The address of all services.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The id of the subscription.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.options.subscription
    }

    /// The variables with which clients sign in, and the one that leads the program here.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let Options { subscription, tenant, operator, .. } = &self.options;
        let secret = lock(&self.shared.tokens).secret.clone();
        let rows = [
            ("AZURE_SUBSCRIPTION_ID", subscription.clone()),
            ("AZURE_TENANT_ID", tenant.clone()),
            ("AZURE_CLIENT_ID", operator.clone()),
            ("AZURE_CLIENT_SECRET", secret),
            ("TEXTNLP_AZURE_ENDPOINT", self.url.clone()),
        ];
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Registers a certificate of the operator's application by its SHA-256 in base64url. Signatures are not verified.
    pub fn register_certificate(&self, thumbprint: &str) {
        lock(&self.shared.tokens).certificate = Some(thumbprint.to_owned());
    }

    /// A new access token of the operator for Azure Resource Manager.
    #[must_use]
    pub fn token(&self) -> String {
        self.token_of(&self.options.operator)
    }

    /// A new access token of any principal for Azure Resource Manager.
    #[must_use]
    pub fn token_of(&self, principal: &str) -> String {
        lock(&self.shared.tokens).issue(principal, ARM, &self.options.tenant)
    }

    /// A new access token of any principal for the data of storage accounts.
    #[must_use]
    pub fn storage_token_of(&self, principal: &str) -> String {
        lock(&self.shared.tokens).issue(principal, STORAGE, &self.options.tenant)
    }

    /// A new access token of any principal for online endpoints.
    #[must_use]
    pub fn scoring_token_of(&self, principal: &str) -> String {
        lock(&self.shared.tokens).issue(principal, machine_learning::AUDIENCE, &self.options.tenant)
    }

    /// The object id of the operator.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.options.operator
    }

    /// Who a token for clusters of AKS stands for, if it is valid and a role lets the principal use the cluster.
    #[must_use]
    pub fn cluster_user(&self, token: &str, cluster: &str) -> Option<String> {
        let principal = lock(&self.shared.tokens).principal(token, CLUSTERS)?;
        let cloud = self.world();
        super::container::may_use(&cloud, &principal, cluster).then_some(principal)
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
        self.world().endpoint = Some((url.trim_end_matches('/').to_owned(), ca_pem.to_owned()));
    }

    /// The faults to inject. A service is a namespace and an operation what a role's action calls it, such as
    /// `Microsoft.Network` and `Microsoft.Network/virtualNetworks/write`.
    pub fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        lock(&self.shared.log.faults)
    }

    /// All requests so far, at most the last 100,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Exchange> {
        self.shared.log.requests()
    }

    /// What is wrong with the document of an object by the models of Azure's libraries, as in a request with it.
    ///
    /// # Errors
    /// Its type is not simulated, or the models cannot be read.
    pub fn check(&self, id: &str, body: &Value) -> Result<Vec<String>, String> {
        let call = Call::parse("PUT", id, &[], self.options.operator.clone());
        let call = call.ok_or_else(|| format!("{id} is no id of Azure Resource Manager"))?;
        let route = kinds::route(&call).ok_or_else(|| format!("{id} is not simulated"))?;
        Ok(document::check_request(route.request, body)?.0)
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

impl Drop for AzureCloud {
    fn drop(&mut self) {
        drop(self.server.take());
        self.shared.log.assert_kept();
    }
}

impl Shared {
    /// The cloud, after the time of one request.
    fn tick(&self) -> MutexGuard<'_, Cloud> {
        let mut cloud = lock(&self.cloud);
        let step = cloud.timing.step;
        cloud.advance(step);
        cloud
    }

    fn answer(&self, request: &Request) -> (Option<Reply>, Option<Disruption>) {
        let path = percent_decoded(&request.path);
        if let Some(account) = blobs::account(request) {
            return self.answer_blobs(request, &path, account);
        }
        if super::registry::is_its(&path) {
            return self.answer_registry(request);
        }
        if let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(machine_learning::SCORING)) {
            return self.answer_scoring(request, rest.trim_start_matches('/'));
        }
        let is_login = path.contains("/oauth2/") || path.contains("/discovery/") || path.contains("/.well-known/");
        if is_login && !path.starts_with("/subscriptions/") {
            return self.answer_login(request, &path);
        }
        let mut exchange = Exchange { account: lock(&self.cloud).subscription.clone(), ..Exchange::default() };
        let mut disruption = None;
        let result = self.result(request, &path, &mut exchange, &mut disruption);
        let lost = is_lost(disruption.as_ref());
        exchange.is_lost = lost;
        exchange.outcome = match &result {
            Ok(answer) if answer.status < 400 => Outcome::Succeeded,
            Ok(answer) => Outcome::Failed(super::cloud::text(&answer.body, "/error/code").to_owned()),
            Err(problem) => Outcome::Failed(problem.code.clone()),
        };
        self.log.record(exchange);
        let answer = result.unwrap_or_else(|problem| {
            let headers = problem.retry_after.map(|after| ("Retry-After", after.to_string())).into_iter().collect();
            Answer { status: problem.status, body: json!({ "error": problem.error() }), headers }
        });
        let mut reply = reply(answer.status, &answer.body);
        reply.headers.extend(answer.headers.into_iter().map(|(name, value)| (name.to_owned(), value)));
        reply.headers.push(("x-ms-request-id".to_owned(), self.id.uuid()));
        reply.headers.push(("x-ms-correlation-request-id".to_owned(), self.id.uuid()));
        if answer.status >= 400 {
            reply.headers.push(("x-ms-failure-cause".to_owned(), "gateway".to_owned()));
        }
        ((!lost).then_some(reply), disruption)
    }

    fn result(
        &self,
        request: &Request,
        path: &str,
        exchange: &mut Exchange,
        disruption: &mut Option<Disruption>,
    ) -> Result<Answer, Problem> {
        let mut cloud = self.tick();
        let user = lock(&self.tokens).of(request).map_err(unauthenticated)?;
        exchange.identity.clone_from(&user);
        if let Some(answer) = kinds::poll(&mut cloud, path, &request.method) {
            exchange.operation = "poll".to_owned();
            *disruption = lock(&self.log.faults).next("", "poll", "");
            injected(disruption.as_ref())?;
            if cloud.denied.contains("operations/read") {
                return Err(denied(&user, "operations/read", path));
            }
            let call = Call::parse("GET", path, &[], user.clone());
            let action = call.map(|call| call.action()).filter(|action| !cloud.authorize(&user, action));
            return action.map_or(answer, |action| Err(denied(&user, &action, path)));
        }
        let mut call = Call::parse(&request.method, path, &request.query, user).ok_or_else(|| {
            self.log.violation(format!("{} {path}: it is no path of Azure Resource Manager", request.method));
            Problem::new(404, "InvalidResourceType", format!("The path '{path}' is not known."))
        })?;
        call.if_match = request.header("if-match").map(str::to_owned);
        call.if_none_match = request.header("if-none-match").map(str::to_owned);
        exchange.operation = call.action();
        exchange.service =
            NAMESPACES.iter().find(|(name, _)| name.eq_ignore_ascii_case(&call.namespace)).map_or("", |row| row.0);
        let Some(route) = kinds::route(&call) else {
            self.log.violation(format!("{} {path}: not simulated", request.method));
            return Err(Problem::new(404, "InvalidResourceType", format!("{} is not simulated.", call.kind)));
        };
        if !request.body.is_empty() {
            call.body = serde_json::from_slice(&request.body).map_err(|error| {
                self.log.violation(format!("{}: the body is no JSON: {error}", call.action()));
                bad("InvalidRequestContent", "The request content was invalid and could not be deserialized.")
            })?;
        }
        exchange.input = redacted(&call.body);
        *disruption = lock(&self.log.faults).next(exchange.service, &exchange.operation, "");
        injected(disruption.as_ref())?;
        kinds::check_version(&call, &route)?;
        let unknown = request.query.iter().find(|(name, _)| !kinds::PARAMETERS.contains(&name.as_str()));
        if let Some((name, _)) = unknown {
            self.log.violation(format!("{}: there is no parameter {name}", call.action()));
        }
        let problems = document::check_request(route.request, &call.body).map_err(|why| self.broken(&call, &[why]))?;
        if !problems.0.is_empty() {
            let text = problems.0.join("; ");
            let _ = self.broken(&call, &problems.0);
            return Err(bad("InvalidRequestContent", format!("The request content was invalid: {text}")));
        }
        document::strip(route.request, &mut call.body);
        self.admit(&mut cloud, &call)?;
        let answer = (route.handler)(&mut cloud, &call)?;
        let is_body = answer.status < 300 && !answer.body.is_null() && answer.body != json!({});
        let problems = match is_body && answer.status != 202 {
            true => document::check_answer(route.answer, &answer.body).map_err(|why| self.broken(&call, &[why]))?,
            false => document::Problems::default(),
        };
        if !problems.0.is_empty() {
            let _ = self.broken(&call, &problems.0);
        }
        Ok(answer)
    }

    /// Records what broke the contract.
    fn broken(&self, call: &Call, problems: &[String]) -> Problem {
        self.log.violation(format!("{}: {}", call.action(), problems.join("; ")));
        Problem::new(500, "InternalServerError", problems.join("; "))
    }

    /// Refuses a call of another or a disabled subscription, beyond the rate, without the right, or of a namespace that
    /// is not registered.
    fn admit(&self, cloud: &mut Cloud, call: &Call) -> Result<(), Problem> {
        if !call.subscription.is_empty() && !call.subscription.eq_ignore_ascii_case(&cloud.subscription) {
            let message = format!("The subscription '{}' could not be found.", call.subscription);
            return Err(Problem::new(404, "SubscriptionNotFound", message));
        }
        if cloud.is_limited(call.is_read()) {
            let code = if call.is_read() { "SubscriptionRequestsThrottled" } else { "ResourceRequestsThrottled" };
            let message = format!(
                "Number of requests for subscription '{}' and operation '{}' exceeded the limit. Please try again \
                 after {} seconds.",
                cloud.subscription,
                call.action(),
                cloud.conduct.retry_after
            );
            return Err(Problem::new(429, code, message).after(cloud.conduct.retry_after));
        }
        let action = call.action();
        let may = call.user == cloud.operator || cloud.has_role(&call.user, &call.scope(), &[]);
        if !may || !cloud.authorize(&call.user, &action) {
            return Err(denied(&call.user, &action, &call.path));
        }
        if let Some((linked, scope)) = kinds::linked(call).find(|(linked, _)| !cloud.authorize(&call.user, linked)) {
            return Err(denied_linked(&call.user, &action, &call.path, linked, &scope));
        }
        if !call.is_read() && cloud.state != "Enabled" && !call.subscription.is_empty() {
            let message = format!(
                "The subscription '{}' is disabled and therefore marked as read only. You cannot perform any write \
                 actions on this subscription until it is re-enabled.",
                cloud.subscription
            );
            return Err(Problem::new(409, "ReadOnlyDisabledSubscription", message));
        }
        kinds::admit(cloud, call)
    }

    fn answer_registry(&self, request: &Request) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let (service, operation) = ("Microsoft.ContainerRegistry", "registry".to_owned());
        let disruption = lock(&self.log.faults).next(service, &operation, "");
        // Those for Resource Manager are taken only unless a registry is set otherwise.
        let user = |token: &str| lock(&self.tokens).principal(token, "containerregistry");
        let reply = match injected(disruption.as_ref()) {
            Err(problem) => crate::oci::refused(problem.status, "UNKNOWN"),
            Ok(()) => super::registry::answer(&mut cloud, request, user),
        };
        let failed = (reply.status >= 400).then(|| Outcome::Failed(reply.status.to_string()));
        let is_lost = is_lost(disruption.as_ref());
        let outcome = failed.unwrap_or(Outcome::Succeeded);
        self.log.record(Exchange { service, operation, outcome, is_lost, ..Exchange::default() });
        ((!is_lost).then_some(reply), disruption)
    }

    /// Answers a request for blobs. An account that does not exist has no address, so that there is no answer.
    fn answer_blobs(&self, request: &Request, path: &str, account: &str) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let (service, operation) = ("Microsoft.Storage", blobs::action(request));
        let disruption = lock(&self.log.faults).next(service, &operation, "");
        if !blobs::is_there(&cloud, account) {
            return (None, disruption);
        }
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let user = token.and_then(|token| lock(&self.tokens).principal(token, STORAGE));
        let mut reply = match injected(disruption.as_ref()) {
            Err(problem) => blobs::refused(problem.status, &problem.code, &problem.message),
            Ok(()) => blobs::answer(&mut cloud, request, path, account, user.as_deref()),
        };
        reply.headers.push(("x-ms-request-id".to_owned(), self.id.uuid()));
        let failed = (reply.status >= 400).then(|| Outcome::Failed(reply.status.to_string()));
        let is_lost = is_lost(disruption.as_ref());
        let outcome = failed.unwrap_or(Outcome::Succeeded);
        let identity = user.unwrap_or_default();
        self.log.record(Exchange { service, operation, identity, outcome, is_lost, ..Exchange::default() });
        ((!is_lost).then_some(reply), disruption)
    }

    /// Answers a request to an online endpoint. No lock is held while a container answers it.
    fn answer_scoring(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let user = token.and_then(|token| lock(&self.tokens).principal(token, machine_learning::AUDIENCE));
        let (answered, route) = machine_learning::answer(&mut cloud, request, path, user.as_deref());
        drop(cloud);
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        let (status, body) = match answered {
            Answered::Refused(status, why) => (status, why.as_bytes().to_vec()),
            Answered::By(container, containers) => {
                let (status, body) = containers(&container, &request.method, &route, &request.body);
                if status != 200 {
                    headers.push(("ms-azureml-model-error-statuscode".to_owned(), status.to_string()));
                    headers.push(("ms-azureml-model-error-reason".to_owned(), "model_error".to_owned()));
                }
                (if status == 200 { status } else { 424 }, body)
            }
        };
        let outcome = if status < 400 { Outcome::Succeeded } else { Outcome::Failed(status.to_string()) };
        let (service, operation) = ("Microsoft.MachineLearningServices", machine_learning::SCORE.to_owned());
        let identity = user.unwrap_or_default();
        self.log.record(Exchange { service, operation, identity, outcome, ..Exchange::default() });
        (Some(Reply { status, headers, body: body.into() }), None)
    }

    fn answer_login(&self, request: &Request, path: &str) -> (Option<Reply>, Option<Disruption>) {
        let mut cloud = self.tick();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let operation = if path.ends_with("/token") { "token" } else { "discovery" };
        let disruption = lock(&self.log.faults).next("entra", operation, "");
        let tenant = parts.first().copied().unwrap_or_default();
        let issuer = |tenant: &str| format!("{LOGIN}/{tenant}/v2.0");
        let (status, body) = match injected(disruption.as_ref()) {
            Err(problem) => (problem.status, json!({ "error": problem.code, "error_description": problem.message })),
            Ok(()) => match parts[..] {
                ["metadata", "identity", "oauth2", "token"] => lock(&self.tokens).metadata(&cloud, request),
                [tenant, "oauth2", "v2.0", "token"] => lock(&self.tokens).grant(&mut cloud, tenant, request),
                [.., "discovery", "instance"] => {
                    let endpoint = format!("{LOGIN}/{tenant}/v2.0/.well-known/openid-configuration");
                    (200, json!({ "tenant_discovery_endpoint": endpoint, "api-version": "1.1" }))
                }
                [tenant, "v2.0", ".well-known", "openid-configuration"] => {
                    let at = |what: &str| format!("{LOGIN}/{tenant}/oauth2/v2.0/{what}");
                    let body = json!({ "issuer": issuer(tenant), "token_endpoint": at("token"),
                        "authorization_endpoint": at("authorize") });
                    (200, body)
                }
                _ => {
                    self.log.violation(format!("entra: {path} is not simulated"));
                    (404, json!({ "error": "not_found" }))
                }
            },
        };
        let outcome = if status == 200 { Outcome::Succeeded } else { Outcome::Failed(status.to_string()) };
        let lost = is_lost(disruption.as_ref());
        let exchange = Exchange {
            service: "entra",
            operation: operation.to_owned(),
            outcome,
            is_lost: lost,
            ..Exchange::default()
        };
        self.log.record(exchange);
        ((!lost).then(|| reply(status, &body)), disruption)
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    let headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
    let body = if body.is_null() || status == 204 { String::new() } else { body.to_string() };
    Reply { status, headers, body: body.into() }
}

/// A copy in which secrets are `***`.
fn redacted(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let one = |(name, value): (&String, &Value)| {
                let is_secret = SECRETS.contains(&name.as_str()) && value.is_string();
                (name.clone(), if is_secret { "***".into() } else { redacted(value) })
            };
            members.iter().map(one).collect()
        }
        Value::Array(items) => items.iter().map(redacted).collect(),
        value => value.clone(),
    }
}

fn is_lost(disruption: Option<&Disruption>) -> bool {
    matches!(disruption, Some(Disruption::LostRequest | Disruption::LostReply | Disruption::Reset))
}

/// The error of an injected fault that comes before anything is done.
fn injected(disruption: Option<&Disruption>) -> Result<(), Problem> {
    Err(match disruption {
        Some(Disruption::Throttled) => {
            Problem::new(429, "TooManyRequests", "The request was throttled; see the header Retry-After.").after(17)
        }
        Some(Disruption::Internal) => Problem::new(500, "InternalServerError", "Encountered internal server error."),
        Some(Disruption::Unavailable) => Problem::new(503, "ServiceUnavailable", "The service is unavailable."),
        Some(Disruption::Refused(fault)) => Problem::from(fault),
        Some(Disruption::LostRequest | Disruption::Reset) => {
            Problem::new(500, "Lost", "the connection ends before the request takes effect")
        }
        Some(Disruption::LostReply | Disruption::Delayed(_)) | None => return Ok(()),
    })
}

fn unauthenticated(is_unknown: bool) -> Problem {
    match is_unknown {
        true => {
            Problem::new(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        }
        false => Problem::new(401, "ExpiredAuthenticationToken", "The access token expiry UTC time is in the past."),
    }
}

pub(crate) fn denied(user: &str, action: &str, path: &str) -> Problem {
    let message = format!(
        "The client '{user}' with object id '{user}' does not have authorization to perform action '{action}' over \
         scope '{path}' or the scope is invalid. If access was recently granted, please refresh your credentials."
    );
    Problem::new(403, "AuthorizationFailed", message)
}

/// A write that refers to something without the right to: microsoft/planetary-computer-hub#25.
fn denied_linked(user: &str, action: &str, path: &str, linked: &str, scope: &str) -> Problem {
    let message = format!(
        "The client '{user}' with object id '{user}' has permission to perform action '{action}' on scope '{path}'; \
         however, it does not have permission to perform action '{linked}' on the linked scope(s) '{scope}' or the \
         linked scope(s) are invalid."
    );
    Problem::new(403, "LinkedAuthorizationFailed", message)
}

fn percent_decoded(path: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
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
