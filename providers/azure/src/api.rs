//! The client of one subscription and region, and one way to call Azure Resource Manager. It does not retry: each call is journaled,
//! and only the engine repeats it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Url};
use serde_json::Value;
use textnlp_cloud::{Cloud, Filter, Images, document, tags};
use textnlp_net::retry::parse_retry_after;
use textnlp_provider::{Error, ErrorKind, Foreign, Result, Secret, SecretStore};
use tokio::sync::OnceCell;

use crate::access::{Access, Identity};
use crate::answer::Failure;
use crate::compute::Compute;
use crate::kinds;
use crate::operation::Pending;
use crate::table::Row;
use crate::tables::errors;
use crate::token::{self, Tokens};
use crate::transport::{self, NoAnswer, Transport};

/// The start and the end of the headers with which Cost Management tells when to try again (Azure/azqr#745). It has one for each of
/// its limits.
const COST_RETRY_AFTER: (&str, &str) = ("x-ms-ratelimit-microsoft.costmanagement-", "-retry-after");
/// Pages of one list.
const MAX_PAGES: usize = 50;
/// The API version of subscriptions, and that of resource groups, resources and resource providers.
pub(crate) const SUBSCRIPTIONS: &str = "2022-12-01";
pub(crate) const RESOURCES: &str = "2021-04-01";
/// The header with the address of an operation:
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>.
const ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
/// The code of an answer of a resource provider that the subscription has not registered (nforgeio/neonKUBE#1670).
const UNREGISTERED: [&str; 2] = ["MissingSubscriptionRegistration", "Subscription Not Registered"];

/// The client of one subscription and region.
pub(crate) struct Api {
    pub(crate) session: Arc<Session>,
    pub(crate) region: String,
    is_elsewhere: bool,
}

/// What is the same in all regions.
pub(crate) struct Session {
    pub(crate) transport: Transport,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) identity: Identity,
    pub(crate) compute: Compute,
    /// Where the values of secret references are.
    pub(crate) secrets: Arc<dyn SecretStore>,
    /// The images that are pushed.
    pub(crate) images: Images,
    /// Refresh tokens of registries, by host, and when each was given.
    pub(crate) registries: Mutex<BTreeMap<String, (Secret, Instant)>>,
    /// The clients of other regions, by region.
    elsewhere: Mutex<BTreeMap<String, Arc<Api>>>,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    version: &'static str,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    /// The version of the object that is changed.
    etag: Option<String>,
    /// Whether it is refused where the object is there already.
    is_new: bool,
    action: &'static str,
    subject: String,
}

impl Call {
    /// `path` begins with a slash; it may have a query, as addresses of operations do.
    pub(crate) fn new(method: Method, path: impl Into<String>, version: &'static str) -> Self {
        let path = path.into();
        let subject = document::last(path.split('?').next().unwrap_or(&path)).to_owned();
        let action = match method {
            Method::GET => "read",
            Method::DELETE => "delete",
            Method::PUT => "create",
            Method::POST => "call",
            _ => "change",
        };
        Self { method, path, version, query: Vec::new(), body: None, etag: None, is_new: false, action, subject }
    }

    pub(crate) fn get(path: impl Into<String>, version: &'static str) -> Self {
        Self::new(Method::GET, path, version)
    }

    pub(crate) fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(crate) fn etag(self, etag: Option<&str>) -> Self {
        Self { etag: etag.map(str::to_owned), ..self }
    }

    pub(crate) fn new_only(self) -> Self {
        Self { is_new: true, ..self }
    }

    /// The words of its error: `create`, `network textnlp-a`.
    pub(crate) fn saying(self, action: &'static str, subject: impl Into<String>) -> Self {
        Self { action, subject: subject.into(), ..self }
    }
}

/// The answer of a call that succeeded.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// The operation that the call began.
    pub(crate) pending: Option<Pending>,
}

impl Api {
    /// Signs in and asks for the tenant of the subscription.
    pub(crate) async fn connect(access: &Access, secrets: Arc<dyn SecretStore>, images: Images) -> Result<Self> {
        let subscription = access.subscription()?;
        let transport = Transport::of(access)?;
        let tokens = Arc::new(Tokens::new(access, &transport)?);
        let compute = Compute::new(&subscription, tokens.clone(), transport.clone())?;
        let bearer = tokens.bearer(token::MANAGEMENT).await?;
        let claims = token::claims(&bearer.token);
        let text = |name: &str| claims[name].as_str().map(str::to_owned).unwrap_or_default();
        let name = ["upn", "unique_name", "preferred_username", "appid", "oid"].iter().map(|name| text(name));
        let identity = Identity {
            subscription,
            tenant: text("tid"),
            object: text("oid"),
            name: name.into_iter().find(|name| !name.is_empty()).unwrap_or_default(),
            // A token of a user has the scopes that its client acts with.
            is_application: claims["idtyp"] == "app" || claims["scp"].is_null(),
        };
        let elsewhere = Mutex::default();
        let registries = Mutex::default();
        let mut session = Session { transport, tokens, identity, compute, secrets, images, registries, elsewhere };
        let path = format!("/subscriptions/{}", session.identity.subscription);
        let call = Call::get(path, SUBSCRIPTIONS).saying("read", "the subscription");
        let found = session.send(call).await.map_err(|error| match error.kind {
            ErrorKind::NotFound => {
                error.hint("set `sites[].account` to a subscription of the tenant that you sign in to")
            }
            _ => error,
        })?;
        if let Some(tenant) = found.body["tenantId"].as_str() {
            session.identity.tenant = tenant.to_owned();
        }
        Ok(Self { session: Arc::new(session), region: access.region.clone(), is_elsewhere: false })
    }

    /// The tokens of an identity, without a call.
    pub(crate) fn tokens(access: &Access) -> Result<Tokens> {
        Tokens::new(access, &Transport::of(access)?)
    }

    pub(crate) fn subscription(&self) -> &str {
        &self.session.identity.subscription
    }

    /// The path of something in the subscription: `/providers` becomes `/subscriptions/ID/providers`.
    pub(crate) fn of_subscription(&self, path: &str) -> String {
        format!("/subscriptions/{}{path}", self.subscription())
    }

    pub(crate) async fn send(&self, call: Call) -> Result<Reply> {
        self.session.send(call).await
    }

    /// The same, for a read: an object that is not found is `None`. A resource provider that is not registered has no objects.
    pub(crate) async fn find(&self, call: Call) -> Result<Option<Value>> {
        match self.send(call).await {
            Ok(found) => Ok(Some(found.body)),
            Err(error) if error.kind == ErrorKind::NotFound || is_unregistered(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All items of a list; empty where its scope does not exist.
    pub(crate) async fn list(&self, call: Call) -> Result<Vec<Value>> {
        let (version, subject) = (call.version, call.path.clone());
        let mut all = Vec::new();
        let mut next = Some(call.saying("list", subject.clone()));
        for _ in 0..MAX_PAGES {
            let Some(call) = next.take() else { return Ok(all) };
            let Some(mut answer) = self.find(call).await? else { return Ok(all) };
            if let Value::Array(found) = answer["value"].take() {
                all.extend(found);
            }
            let link = answer["nextLink"].as_str().filter(|link| !link.is_empty());
            next = link.and_then(own_path).map(|path| Call::get(path, version).saying("list", subject.clone()));
        }
        if next.is_none() {
            return Ok(all);
        }
        Err(Error::new(ErrorKind::Invalid, "list", subject).because(format!("it has more than {MAX_PAGES} pages")))
    }

    /// The resources and resource groups with the tag of a filter: one list for all kinds of an observation.
    pub(crate) async fn tagged<'f>(&self, filter: &'f Filter<Self>, own: &'f mut Vec<Value>) -> Result<&'f [Value]> {
        if let Filter::Lineage(_, shared) = filter {
            return shared.get_or_try_init(|| self.with_tag(filter)).await.map(Vec::as_slice);
        }
        *own = self.with_tag(filter).await?;
        Ok(own)
    }

    async fn with_tag(&self, filter: &Filter<Self>) -> Result<Vec<Value>> {
        let (key, value) = filter.tag();
        let query = format!("tagName eq '{key}' and tagValue eq '{value}'");
        let mut all = Vec::new();
        for path in ["/resources", "/resourcegroups"] {
            let call = Call::get(self.of_subscription(path), RESOURCES).query("$filter", query.clone());
            all.extend(self.list(call).await?);
        }
        // AKS copies the tags of a cluster to the group of its nodes and to what is in it.
        let text = |one: &Value, member: &str| one[member].as_str().unwrap_or_default().to_ascii_lowercase();
        let managed = all.iter().filter(|one| !text(one, "managedBy").is_empty());
        let managed: Vec<String> = managed.map(|one| format!("{}/", text(one, "id"))).collect();
        all.retain(|one| !managed.iter().any(|group| format!("{}/", text(one, "id")).starts_with(group)));
        Ok(all)
    }
}

/// The path and the query of an address of Azure Resource Manager; `None` for one elsewhere, which gets no token.
pub(crate) fn own_path(address: &str) -> Option<String> {
    let root = Url::parse(transport::MANAGEMENT).ok()?;
    let url = root.join(address).ok().filter(|url| url.origin() == root.origin())?;
    Some(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

impl Session {
    async fn send(&self, call: Call) -> Result<Reply> {
        self.answer(call).await.map_err(|error| error.signed_in_as(&self.identity.name))
    }

    async fn answer(&self, call: Call) -> Result<Reply> {
        let Call { method, path, version, query, body, etag, is_new, action, subject } = call;
        let failed = |kind| Error::new(kind, action, subject.clone());
        let url = Url::parse(&format!("{}{path}", transport::MANAGEMENT));
        let mut url = url.map_err(|_| failed(ErrorKind::Invalid).because(format!("`{path}` is no path")))?;
        if !url.query_pairs().any(|(name, _)| name == "api-version") {
            url.query_pairs_mut().append_pair("api-version", version);
        }
        url.query_pairs_mut().extend_pairs(&query);
        let bearer = self.tokens.bearer(token::MANAGEMENT).await?;
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {}", bearer.token.expose_text().unwrap_or_default());
        let mut value = HeaderValue::try_from(value).map_err(|_| failed(ErrorKind::Denied).because("no token"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        if let Some(etag) = etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
            headers.insert(IF_MATCH, etag);
        }
        if is_new {
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let body = body.map(|body| Bytes::from(body.to_string()));
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let answer = self.transport.send(method, &url, headers, body).await.map_err(|error| match error {
            NoAnswer::Unreached(_) | NoAnswer::Lost(_) => failed(ErrorKind::Unavailable).because(error),
            NoAnswer::Unusable(_) => failed(ErrorKind::Invalid).because(error),
        })?;
        let text = |name: &HeaderName| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let body: Value = match answer.body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&answer.body).unwrap_or_default(),
        };
        let status = answer.status;
        if status < 300 {
            if body.is_null() && status == 200 && !answer.body.is_empty() {
                return Err(failed(ErrorKind::Unavailable).because("the answer is not JSON"));
            }
            let pending = Pending::of(text(&ASYNC_OPERATION), text(&LOCATION), status);
            return Ok(Reply { status, body, pending });
        }
        if status < 400 {
            return Err(failed(ErrorKind::Unavailable).because(format!("status {status}")));
        }
        let of_costs = answer.headers.iter().filter(|(name, _)| {
            let (start, end) = COST_RETRY_AFTER;
            name.as_str().starts_with(start) && name.as_str().ends_with(end)
        });
        let waits = of_costs.filter_map(|(_, value)| value.to_str().ok()).chain(text(&RETRY_AFTER));
        let after = waits.filter_map(|text| parse_retry_after(text, Timestamp::now())).max();
        let failure = Failure { after, ..Failure::of_answer(status, &body) };
        let mut error = failure.error(action, &subject);
        if status == 401 && self.tokens.refused(token::MANAGEMENT).await {
            error.kind = ErrorKind::Unavailable;
        }
        Err(error)
    }
}

/// Whether a resource provider is not registered.
pub(crate) fn is_unregistered(error: &Error) -> bool {
    error.code.as_deref().is_some_and(|code| UNREGISTERED.contains(&code))
}

impl Cloud for Api {
    /// The list of all tagged objects.
    type Shared = OnceCell<Vec<Value>>;

    const NAME: &'static str = "Azure";
    // Operations of a cluster and of a network take minutes, and so do grants (hashicorp/terraform-provider-azurerm#11417,
    // hashicorp/terraform-provider-azurerm#3780, Azure/azure-workload-identity#417).
    const CONFLICTS_LAST: bool = true;

    fn rows() -> &'static [&'static [Row]] {
        kinds::ALL
    }

    fn classify(_service: &str, code: &str, message: &str) -> (ErrorKind, Option<String>) {
        let (kind, _, hint) = errors::meaning(&[code.to_owned()], None, message);
        (kind, hint)
    }

    fn is_reserved(key: &str) -> bool {
        // Azure's own, such as `hidden-title`, and those of AKS on what it creates.
        let is_of_azure = ["hidden-", "aks-managed-", "ms-resource-usage"].iter().any(|start| key.starts_with(start));
        is_of_azure || key == kinds::database::DATABASE
    }

    fn is_named(_foreign: &Foreign) -> bool {
        false
    }

    fn signed_in(&self) -> &str {
        &self.session.identity.name
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

/// The tags in a document.
pub(crate) fn tags_at(document: &Value, member: &str) -> tags::Tags {
    let members = document::get(document, member).and_then(Value::as_object).into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_sent_to_resource_manager_only() {
        let path = own_path("https://management.azure.com/subscriptions/s/operations/o?api-version=1&t=2");
        assert_eq!(path.as_deref(), Some("/subscriptions/s/operations/o?api-version=1&t=2"));
        assert_eq!(own_path("https://management.azure.com:443/a").as_deref(), Some("/a"));
        for elsewhere in
            ["https://management.azure.com.example.com/a", "http://management.azure.com/a", "//example.com/a"]
        {
            assert_eq!(own_path(elsewhere), None, "{elsewhere}");
        }
    }
}
