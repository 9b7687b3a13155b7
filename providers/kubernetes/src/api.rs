//! Calls to the API server: one request each, bounded in time and size. A change is never retried without the caller's
//! knowledge.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::credential::Tokens;
use crate::error::{self, Call};

/// The timeout of one call, and of all calls of one verb together. A run that takes over the state waits this long
/// before it touches operations that were open.
const DEADLINE: Duration = Duration::from_secs(10);
/// The retries of a throttled list, its default delay and its longest delay.
const PUT_OFF: u32 = 4;
const LATER: Duration = Duration::from_secs(1);
const MOST_LATER: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes: a page of 500 objects, most of them small.
const MAX_ANSWER_BYTES: usize = 128 << 20;
/// What all pages of a list have at most, in bytes, and what a page counts for at least: an answer may always name another page.
const MAX_LIST_BYTES: usize = 128 << 20;
const MIN_PAGE_BYTES: usize = 16 << 10;
const JSON: &str = "application/json";
/// The number of objects per page of a list.
const PAGE: u32 = 500;
/// How often a list restarts after its continue token expired.
const LISTINGS: u32 = 3;
/// The accepted content types; logs are plain text, and the server refuses a client that does not accept it.
const WHOLE: &str = "application/json, */*";
/// Lists that carry only the metadata of objects.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json";

/// A connection to one API server as one user.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    /// Set where the client has no credential of its own.
    tokens: Option<Arc<Tokens>>,
    /// No call starts after this time.
    until: Option<Instant>,
}

/// The result of a successful write.
pub(crate) struct Written {
    /// The object after the call.
    pub(crate) object: Value,
    /// Whether the call created it.
    pub(crate) created: bool,
}

impl Api {
    pub(crate) fn new(client: kube::Client, tokens: Option<Arc<Tokens>>) -> Self {
        Self { client, tokens, until: None }
    }

    /// Fetches a token if calls need one.
    pub(crate) async fn signed_in(&self) -> Result<()> {
        match &self.tokens {
            Some(tokens) => tokens.header(None).await.map(drop),
            None => Ok(()),
        }
    }

    /// The same connection for one verb of an operation: all of its calls share one timeout, counted from `began`.
    pub(crate) fn for_one_verb(self, began: Instant) -> Self {
        Self { until: Some(began + DEADLINE), ..self }
    }

    /// Reads one object; `None` if it does not exist.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Result<Option<Value>> {
        match self.send(call, "GET", &call.path(), None).await {
            Ok((_, object)) => Ok(Some(object)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the document at any path, such as `/version`.
    pub(crate) async fn document(&self, call: &Call<'_>, path: &str) -> Result<Value> {
        Ok(self.send(call, "GET", path, None).await?.1)
    }

    /// The text at any path, such as an answer of a pod that the API server forwards.
    pub(crate) async fn text(&self, call: &Call<'_>, path: &str) -> Result<String> {
        let (_, _, bytes) = self.exchange(call, "GET", path, (WHOLE, JSON), Vec::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of a container's log; `before` reads the log of the previous run.
    pub(crate) async fn log(&self, call: &Call<'_>, container: &str, lines: u32, before: bool) -> Result<String> {
        let path =
            format!("{}/log?container={container}&tailLines={lines}&limitBytes=4096&previous={before}", call.path());
        self.text(call, &path).await
    }

    /// The log of a container, up to `most` bytes.
    pub(crate) async fn whole_log(&self, call: &Call<'_>, container: &str, most: u32) -> Result<String> {
        let path = format!("{}/log?container={container}&limitBytes={most}", call.path());
        self.text(call, &path).await
    }

    /// Lists every object of a kind with these labels, page by page.
    pub(crate) async fn list(&self, call: &Call<'_>, selector: &str) -> Result<Vec<Value>> {
        let root = call.row.path(call.namespace);
        let mut failed = None;
        for _ in 0..LISTINGS {
            match self.pages(call, &root, selector, WHOLE).await {
                // The snapshot behind the pages is gone, so the pages that were read are unusable.
                Err(error) if error.code.as_deref() == Some("Expired") => failed = Some(error),
                other => return other,
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "list", call.row.resource())))
    }

    /// Lists the metadata of every object at a path, also of kinds outside of the table.
    pub(crate) async fn metadata(&self, call: &Call<'_>, path: &str) -> Result<Vec<Value>> {
        self.pages(call, path, "", METADATA).await
    }

    async fn pages(&self, call: &Call<'_>, root: &str, selector: &str, accept: &str) -> Result<Vec<Value>> {
        let (mut found, mut next, mut put_off, mut size) = (Vec::new(), String::new(), 0, 0);
        loop {
            let selector = encode(selector);
            let path = format!("{root}?limit={PAGE}&labelSelector={selector}&continue={}", encode(&next));
            let bytes = match self.exchange(call, "GET", &path, (accept, JSON), Vec::new()).await {
                Ok((_, _, bytes)) => bytes,
                // The API server throttles briefly after a kind was defined. A read is safe to retry.
                Err(Error { kind: ErrorKind::Throttled { after }, .. })
                    if put_off < PUT_OFF && self.until.is_none() =>
                {
                    put_off += 1;
                    tokio::time::sleep(after.unwrap_or(LATER).min(MOST_LATER)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            size += bytes.len().max(MIN_PAGE_BYTES);
            if size > MAX_LIST_BYTES {
                let why = format!("the list is longer than {} MiB", MAX_LIST_BYTES >> 20);
                return Err(call.error(ErrorKind::Unavailable).because(why));
            }
            let mut page = parsed(call, &bytes)?;
            if let Some(items) = page.get_mut("items").and_then(Value::as_array_mut) {
                found.append(items);
            }
            match page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => next = token.to_owned(),
                None => return Ok(found),
            }
        }
    }

    /// Opens a streaming answer, such as a watch; the caller limits its duration.
    pub(crate) async fn stream(&self, call: &Call<'_>, path: &str) -> Result<Body> {
        let request = || Request::builder().method("GET").uri(path).header("accept", WHOLE).body(Body::empty());
        let (head, body) = self.answered(call, request).await?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let bytes = whole(call, body).await?;
        Err(self.refusal(call, head.status, &head.headers, &bytes))
    }

    /// Sends a request; if its token is rejected, it is sent once more with a new token.
    async fn answered(
        &self,
        call: &Call<'_>,
        request: impl Fn() -> http::Result<Request<Body>>,
    ) -> Result<Response<Body>> {
        let mut refused = None;
        loop {
            let mut request = request().map_err(|source| call.error(ErrorKind::Invalid).because(source))?;
            let token = match &self.tokens {
                Some(tokens) => Some(tokens.header(refused.as_ref()).await?),
                None => None,
            };
            if let Some(token) = &token {
                request.headers_mut().insert(AUTHORIZATION, token.clone());
            }
            let answer = self.client.send(request).await.map_err(|source| error::transport(call, source))?;
            if answer.status() != StatusCode::UNAUTHORIZED || token.is_none() || refused.is_some() {
                return Ok(answer);
            }
            refused = token;
        }
    }

    fn refusal(&self, call: &Call<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        let error = error::refusal(call, status, headers, body);
        match self.tokens {
            Some(_) if status == StatusCode::UNAUTHORIZED => {
                error.hint("a new token was rejected: check that the cluster knows the identity of the token")
            }
            _ => error,
        }
    }

    /// Server-side apply without force; `dry` is a dry run.
    pub(crate) async fn apply(&self, call: &Call<'_>, manager: &str, manifest: &Value, dry: bool) -> Result<Written> {
        let dry = if dry { "&dryRun=All" } else { "" };
        self.applied(call, manager, manifest, &format!("force=false{dry}")).await
    }

    /// Server-side apply with force: it takes ownership of every field of the manifest. The manifest names the
    /// `resourceVersion` that was checked; any other version is a conflict.
    pub(crate) async fn force(&self, call: &Call<'_>, manager: &str, manifest: &Value) -> Result<Written> {
        if !manifest["metadata"]["resourceVersion"].is_string() {
            return Err(call
                .error(ErrorKind::Invalid)
                .because("no field is forced on an object that was not read first"));
        }
        self.applied(call, manager, manifest, "force=true").await
    }

    /// Server-side apply with force of fields that belong to the manager by their names, such as a copied annotation.
    pub(crate) async fn own(&self, call: &Call<'_>, manager: &str, manifest: &Value) -> Result<Written> {
        self.applied(call, manager, manifest, "force=true").await
    }

    async fn applied(&self, call: &Call<'_>, manager: &str, manifest: &Value, how: &str) -> Result<Written> {
        let path = format!("{}?fieldManager={}&{how}&fieldValidation=Strict", call.path(), encode(manager));
        let (status, object) = self.send(call, "PATCH", &path, Some(manifest)).await?;
        Ok(Written { object, created: status == StatusCode::CREATED })
    }

    /// Creates an object without a fixed name: a review, which the server does not store, or a one-off job.
    pub(crate) async fn ask(&self, call: &Call<'_>, path: &str, question: &Value) -> Result<Value> {
        Ok(self.send(call, "POST", path, Some(question)).await?.1)
    }

    /// Deletes an object if it still has this uid.
    pub(crate) async fn delete(&self, call: &Call<'_>, uid: &str) -> Result<()> {
        // Foreground deletion: dependents are deleted first, so a missing object means that nothing is left.
        self.removed(call, uid, ("propagationPolicy", "Foreground".into())).await
    }

    /// The same without waiting for dependents, which the cluster deletes afterwards.
    pub(crate) async fn delete_in_background(&self, call: &Call<'_>, uid: &str) -> Result<()> {
        self.removed(call, uid, ("propagationPolicy", "Background".into())).await
    }

    /// Deletes a pod with this grace period, if it still has this uid. With 0 seconds its object is gone before its programs are.
    pub(crate) async fn kill(&self, call: &Call<'_>, uid: &str, grace_seconds: u32) -> Result<()> {
        self.removed(call, uid, ("gracePeriodSeconds", grace_seconds.into())).await
    }

    async fn removed(&self, call: &Call<'_>, uid: &str, (option, value): (&str, Value)) -> Result<()> {
        let preconditions = serde_json::json!({ "uid": uid });
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions, option: value,
        });
        self.send(call, "DELETE", &call.path(), Some(&body)).await.map(drop)
    }

    async fn send(
        &self,
        call: &Call<'_>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let content = if method == "PATCH" { "application/apply-patch+yaml" } else { JSON };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let (status, _, bytes) = self.exchange(call, method, path, (WHOLE, content), body).await?;
        Ok((status, parsed(call, &bytes)?))
    }

    async fn exchange(
        &self,
        call: &Call<'_>,
        method: &str,
        path: &str,
        (accept, content): (&str, &str),
        body: Vec<u8>,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>)> {
        let late = || {
            let why = format!("the API server did not answer within {} s", DEADLINE.as_secs());
            call.error(ErrorKind::Unavailable).because(why)
        };
        let until = self.until.map_or(Instant::now() + DEADLINE, |until| until.min(Instant::now() + DEADLINE));
        // The server gets the same timeout, so it does not finish a request that the client has given up.
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 {
            return Err(late());
        }
        let query = if path.contains('?') { '&' } else { '?' };
        let request = || {
            Request::builder()
                .method(method)
                .uri(format!("{path}{query}timeout={left}ms"))
                .header("accept", accept)
                .header("content-type", content)
                .body(Body::from(body.clone()))
        };
        let exchanged = async {
            let (head, body) = self.answered(call, request).await?.into_parts();
            Ok((head.status, head.headers, whole(call, body).await?))
        };
        let answer = tokio::time::timeout_at(until, exchanged).await;
        let (status, headers, bytes) = answer.map_err(|_| late())??;
        if status.is_success() {
            return Ok((status, headers, bytes));
        }
        Err(self.refusal(call, status, &headers, &bytes))
    }
}

async fn whole(call: &Call<'_>, body: Body) -> Result<Vec<u8>> {
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    Ok(body.map_err(|source| call.error(ErrorKind::Unavailable).because(source))?.to_bytes().to_vec())
}

fn parsed(call: &Call<'_>, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|source| call.error(ErrorKind::Unavailable).because(format!("the answer is not JSON: {source}")))
}

/// Percent-encodes a query value, or a password in an address.
pub(crate) fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_list_without_an_end_is_an_error() {
        let service = tower::service_fn(|_: Request<Body>| async {
            let page = serde_json::json!({ "items": [], "metadata": { "continue": "more" } });
            let answer = Response::builder().body(page.to_string());
            answer.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
        });
        let api = Api::new(kube::Client::new(service, "here"), None);
        let row = crate::table::namespaces();
        let call = Call { action: "list", verb: "list", row, namespace: None, name: None };
        let error = api.list(&call, "").await.unwrap_err();
        assert!(textnlp_provider::error_chain(&error).contains("the list is longer"), "{error:?}");
    }
}
