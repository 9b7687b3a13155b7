//! Calls of the API server: one request each, bounded in time and size, no change repeated behind the caller's back.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;
use textnlp_provider::{Error, Result, Sort};
use tokio::time::Instant;

use crate::credential::Tokens;
use crate::error::{self, Call};

/// A single call has at most this long, and so have all calls of one verb together: a run that took the state over waits as
/// long before it touches what was open.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a list is asked for again that an API server puts off, and how long after when it does not say, and at the most.
const PUT_OFF: u32 = 4;
const LATER: Duration = Duration::from_secs(1);
const MOST_LATER: Duration = Duration::from_secs(5);
/// The longest answer that is read: a page of 500 objects, most of them small.
const LONGEST: usize = 128 << 20;
const JSON: &str = "application/json";
/// How many objects of a list come at once.
const PAGE: u32 = 500;
/// A list whose next page has expired is begun again this often.
const LISTINGS: u32 = 3;
/// What answers are asked for as; logs come as text, and are refused to whoever takes none.
const WHOLE: &str = "application/json, */*";
/// Lists without what is in their objects.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json";

/// The way to one API server as one user.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
    /// Where the client does not know by itself who it is.
    tokens: Option<Arc<Tokens>>,
    /// Nothing is asked after this.
    until: Option<Instant>,
}

/// A mutating call that was answered with success.
pub(crate) struct Written {
    /// The object as it is now.
    pub(crate) object: Value,
    /// Whether the call made it.
    pub(crate) created: bool,
}

impl Api {
    pub(crate) fn new(client: kube::Client, tokens: Option<Arc<Tokens>>) -> Self {
        Self { client, tokens, until: None }
    }

    /// Has a token where calls need one.
    pub(crate) async fn signed_in(&self) -> Result<()> {
        match &self.tokens {
            Some(tokens) => tokens.header(None).await.map(drop),
            None => Ok(()),
        }
    }

    /// The same way for one verb of an operation: all its calls together have the time of one, from when it began.
    pub(crate) fn for_one_verb(self, began: Instant) -> Self {
        Self { until: Some(began + DEADLINE), ..self }
    }

    /// One object; `None` when it is not there.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Result<Option<Value>> {
        match self.send(call, "GET", &call.path(), None).await {
            Ok((_, object)) => Ok(Some(object)),
            Err(error) if error.sort == Sort::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A document at any path, such as `/version`.
    pub(crate) async fn document(&self, call: &Call<'_>, path: &str) -> Result<Value> {
        Ok(self.send(call, "GET", path, None).await?.1)
    }

    /// The last lines of a container's log; `before` asks for those of the run before this one.
    pub(crate) async fn log(&self, call: &Call<'_>, container: &str, lines: u32, before: bool) -> Result<String> {
        let path =
            format!("{}/log?container={container}&tailLines={lines}&limitBytes=4096&previous={before}", call.path());
        let (_, _, bytes) = self.exchange(call, "GET", &path, (WHOLE, JSON), Vec::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What a container printed, up to so many bytes.
    pub(crate) async fn whole_log(&self, call: &Call<'_>, container: &str, most: u32) -> Result<String> {
        let path = format!("{}/log?container={container}&limitBytes={most}", call.path());
        let (_, _, bytes) = self.exchange(call, "GET", &path, (WHOLE, JSON), Vec::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Every object of a kind that carries these labels, page by page.
    pub(crate) async fn list(&self, call: &Call<'_>, selector: &str) -> Result<Vec<Value>> {
        let root = call.row.path(call.namespace);
        let mut failed = None;
        for _ in 0..LISTINGS {
            match self.pages(call, &root, selector, WHOLE).await {
                // The versions that the pages are of are gone: what was read so far is of no use.
                Err(error) if error.code.as_deref() == Some("Expired") => failed = Some(error),
                other => return other,
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(Sort::Unavailable, "list", call.row.resource())))
    }

    /// The metadata of every object at a path, which need be of no kind of the table.
    pub(crate) async fn metadata(&self, call: &Call<'_>, path: &str) -> Result<Vec<Value>> {
        self.pages(call, path, "", METADATA).await
    }

    async fn pages(&self, call: &Call<'_>, root: &str, selector: &str, accept: &str) -> Result<Vec<Value>> {
        let (mut found, mut next, mut put_off) = (Vec::new(), String::new(), 0);
        loop {
            let selector = encode(selector);
            let path = format!("{root}?limit={PAGE}&labelSelector={selector}&continue={}", encode(&next));
            let bytes = match self.exchange(call, "GET", &path, (accept, JSON), Vec::new()).await {
                Ok((_, _, bytes)) => bytes,
                // As for a moment after a kind was defined. A look changes nothing: it is taken again here.
                Err(Error { sort: Sort::Throttled { after }, .. }) if put_off < PUT_OFF && self.until.is_none() => {
                    put_off += 1;
                    tokio::time::sleep(after.unwrap_or(LATER).min(MOST_LATER)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
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

    /// An answer that comes bit by bit, such as a watch; whoever reads it sees to it that it ends.
    pub(crate) async fn stream(&self, call: &Call<'_>, path: &str) -> Result<Body> {
        let request = || Request::builder().method("GET").uri(path).header("accept", WHOLE).body(Body::empty());
        let (head, body) = self.answered(call, request).await?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let bytes = whole(call, body).await?;
        Err(self.refusal(call, head.status, &head.headers, &bytes))
    }

    /// The answer to a request; one whose token is not taken is made once more, with another token.
    async fn answered(
        &self,
        call: &Call<'_>,
        request: impl Fn() -> http::Result<Request<Body>>,
    ) -> Result<Response<Body>> {
        let mut refused = None;
        loop {
            let mut request = request().map_err(|source| call.error(Sort::Invalid).because(source))?;
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
                error.hint("a token made a moment ago is not taken: does the cluster know whom it is for?")
            }
            _ => error,
        }
    }

    /// Server-side apply that takes nothing from others; `dry` changes nothing.
    pub(crate) async fn apply(&self, call: &Call<'_>, manager: &str, manifest: &Value, dry: bool) -> Result<Written> {
        let dry = if dry { "&dryRun=All" } else { "" };
        self.applied(call, manager, manifest, &format!("force=false{dry}")).await
    }

    /// Server-side apply that takes every field of the manifest from whoever has it. The manifest says of which version of the object
    /// somebody looked at what that takes; another one is a conflict.
    pub(crate) async fn force(&self, call: &Call<'_>, manager: &str, manifest: &Value) -> Result<Written> {
        if !manifest["metadata"]["resourceVersion"].is_string() {
            return Err(call.error(Sort::Invalid).because("nothing is forced on an object that nobody looked at"));
        }
        self.applied(call, manager, manifest, "force=true").await
    }

    /// Server-side apply of what is nobody's but the manager's by its name, such as an annotation of ours that somebody copied.
    pub(crate) async fn own(&self, call: &Call<'_>, manager: &str, manifest: &Value) -> Result<Written> {
        self.applied(call, manager, manifest, "force=true").await
    }

    async fn applied(&self, call: &Call<'_>, manager: &str, manifest: &Value, how: &str) -> Result<Written> {
        let path = format!("{}?fieldManager={}&{how}&fieldValidation=Strict", call.path(), encode(manager));
        let (status, object) = self.send(call, "PATCH", &path, Some(manifest)).await?;
        Ok(Written { object, created: status == StatusCode::CREATED })
    }

    /// Creates an object whose name nobody knows before: a review, which asks a question and keeps nothing, or a job of the moment.
    pub(crate) async fn ask(&self, call: &Call<'_>, path: &str, question: &Value) -> Result<Value> {
        Ok(self.send(call, "POST", path, Some(question)).await?.1)
    }

    /// Asks for an object to be removed if it is still the one with this uid.
    pub(crate) async fn delete(&self, call: &Call<'_>, uid: &str) -> Result<()> {
        // What it made goes before it does, so that gone means gone.
        self.removed(call, uid, ("propagationPolicy", "Foreground".into())).await
    }

    /// Removes a pod if it is still the one with this uid, without a moment to leave.
    pub(crate) async fn kill(&self, call: &Call<'_>, uid: &str) -> Result<()> {
        self.removed(call, uid, ("gracePeriodSeconds", 0.into())).await
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
            call.error(Sort::Unavailable).because(why)
        };
        let until = self.until.map_or(Instant::now() + DEADLINE, |until| until.min(Instant::now() + DEADLINE));
        // The server gives up when we do: nothing is done later that nobody waits for.
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
    let body = Limited::new(body, LONGEST).collect().await;
    Ok(body.map_err(|source| call.error(Sort::Unavailable).because(source))?.to_bytes().to_vec())
}

fn parsed(call: &Call<'_>, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|source| call.error(Sort::Unavailable).because(format!("the answer is no JSON: {source}")))
}

/// A value within a query.
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}
