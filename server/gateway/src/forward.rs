//! Forwards one request: choice of backend, headers, retries.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use textnlp_process::{TRACEPARENT, TRACESTATE, TraceContext};
use tokio::time::Instant;

use super::Gateway;
use super::answer::{Refusal, secure};
use super::backend::{Backend, Failed, Lease};
use super::body::{Download, InFlight, Received, Taken, Upload, UploadState, take};
use super::config::Config;
use super::events::RequestLine;
use super::idle::ActiveRequest;
use super::memory::bytes_of;
use super::prefix::Prompt;

/// Backends that one request may try. More would turn one sick request into an outage of all.
pub(super) const MOST_TRIES: usize = 3;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Hop-by-hop headers (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The longest path in a log line.
const MOST_PATH: usize = 200;
/// A method of a client may be any word; those that exist are shorter.
const MOST_METHOD: usize = 32;

/// The client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Absent on a Unix socket.
    pub(super) ip: Option<IpAddr>,
    /// Whether it is a trusted proxy.
    pub(super) is_proxy: bool,
    pub(super) tls: bool,
}

impl Client {
    /// The client behind a trusted proxy: the last address in `X-Forwarded-For` that is no trusted proxy. What
    /// stands before it is the client's own claim.
    fn behind(self, headers: &HeaderMap, config: &Config) -> Client {
        let mut ip = self.ip;
        if self.is_proxy {
            let values = headers.get_all(FORWARDED_FOR).iter().rev().filter_map(|value| value.to_str().ok());
            for text in values.flat_map(|value| value.rsplit(',')) {
                let text = text.trim();
                let parsed = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
                let Some(named) = parsed else { break };
                ip = Some(named);
                if !config.trusts(named) {
                    break;
                }
            }
        }
        Client { ip, ..self }
    }
}

/// Answers a client's request.
pub(super) async fn handle(
    gateway: Arc<Gateway>,
    client: Client,
    request: Request<Incoming>,
    asked: &mut ActiveRequest,
) -> Result<Response<Download>, Infallible> {
    let started = Instant::now();
    let id = request_id(request.headers());
    let client = client.behind(request.headers(), &gateway.live().config);
    let method: String = request.method().as_str().chars().take(MOST_METHOD).collect();
    let path: String = request.uri().path().chars().take(MOST_PATH).collect();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match forward(&gateway, client, &id, started, request, asked).await {
        Ok(response) => response,
        Err(refusal) => {
            let line = RequestLine { id: id.to_str().unwrap_or_default(), method: &method, path: &path };
            gateway.events.request_refused(&gateway.metrics, client.ip, refusal, line);
            let mut response = refusal.response().map(Download::Own);
            secure(response.headers_mut(), client.tls);
            if let Some(cors) = &gateway.live().cors {
                cors.mark(origin.as_ref(), response.headers_mut());
            }
            response
        }
    };
    response.headers_mut().entry(REQUEST_ID).or_insert(id);
    gateway.metrics.answered(response.status(), started.elapsed());
    Ok(response)
}

async fn forward(
    gateway: &Arc<Gateway>,
    client: Client,
    id: &HeaderValue,
    started: Instant,
    request: Request<Incoming>,
    asked: &mut ActiveRequest,
) -> Result<Response<Download>, Refusal> {
    let live = gateway.live();
    let (mut head, body) = request.into_parts();
    let body = Received::new(body, &head.headers);
    if asked.of_address() > live.config.max_connections_per_address {
        return Err(Refusal::AddressLimit);
    }
    let deadline = started + Duration::from_secs(live.config.timeout_seconds);
    let address = client.ip.filter(|ip| !live.config.trusts(*ip));
    // As they came, and as they are sent.
    let _fields = gateway.memory.hold(address, 2 * bytes_of(&head.headers))?;
    let target = origin_form(&head.method, &head.uri)?;
    let host = requested_host(head.version, &head.uri, &head.headers)?;
    one_length(&mut head.headers)?;
    head.headers = forwarded_headers(&head.headers, host, client, id);
    let upload = Arc::new(UploadState::default());
    let end = upload.end.clone();
    asked.set_body_end(end.clone());
    let (body, _held) = take(body, live.config.max_request_bytes, deadline, &upload, &gateway.memory, address).await?;
    let head = Head { method: head.method, uri: target, headers: head.headers };

    let prompt = match &body {
        Taken::Whole(bytes) if live.backends.all().len() > 1 => {
            gateway.prefixes.prompt(&head.method, head.uri.path(), &head.headers, bytes)
        }
        _ => None,
    };

    let (tried, last) = (Vec::new(), Refusal::NoBackend);
    let mut attempt = ForwardedRequest { gateway, deadline, head, prompt, upload, tried, last };
    let mut answer = pin!(attempt.run(body));
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // Until then the client is awaited, not the backend.
        () = end.cancelled() => asked.set_waiting(true),
    }
    answer.await
}

struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

struct ForwardedRequest<'a> {
    gateway: &'a Arc<Gateway>,
    deadline: Instant,
    head: Head,
    /// Whose beginning a backend may have; `None` for other requests, and with one backend.
    prompt: Option<Prompt>,
    upload: Arc<UploadState>,
    tried: Vec<Arc<Backend>>,
    last: Refusal,
}

enum Attempt {
    Answer(Response<Download>),
    /// The backend did nothing; the body is unchanged.
    Again(Taken),
    Over(Refusal),
}

impl ForwardedRequest<'_> {
    async fn run(&mut self, body: Taken) -> Result<Response<Download>, Refusal> {
        let mut body = Some(body);
        while self.tried.len() < MOST_TRIES {
            let Some(backend) = self.choose() else { break };
            if !self.tried.is_empty() {
                self.gateway.metrics.retried();
            }
            self.tried.push(backend.clone());
            match self.try_one(&backend, body.take()).await {
                Attempt::Answer(response) => return Ok(response),
                Attempt::Again(kept) => body = Some(kept),
                Attempt::Over(refusal) => return Err(refusal),
            }
        }
        Err(self.last)
    }

    fn choose(&self) -> Option<Arc<Backend>> {
        // A reload in between may have brought new ones.
        let live = self.gateway.live();
        let Some(prompt) = &self.prompt else { return live.backends.pick(&self.tried) };
        let held = self.gateway.prefixes.holders(prompt);
        let (backend, reason) = live.backends.pick_for(&self.tried, &held)?;
        self.gateway.metrics.chosen(reason.name());
        Some(backend)
    }

    async fn try_one(&mut self, backend: &Arc<Backend>, body: Option<Taken>) -> Attempt {
        let Some(body) = body else { return Attempt::Over(self.last) };
        let whole = match &body {
            Taken::Whole(bytes) => Some(bytes.clone()),
            Taken::Stream(_) => None,
        };
        let upload = match body {
            Taken::Whole(bytes) => Upload::Whole(Full::new(bytes)),
            Taken::Stream(stream) => Upload::Stream(stream),
        };
        let in_flight = InFlight::begin(backend);
        backend.requests.fetch_add(1, Relaxed);
        let sent = tokio::time::timeout_at(self.deadline, self.send(backend, upload)).await;
        match sent {
            Err(_) => self.interrupted(backend, "it exceeded its time limit".to_owned(), false, whole),
            Ok(Ok((response, lease))) => self.answered(backend, response, lease, in_flight, whole),
            Ok(Err(Failed::NotSent { request, why, .. })) => {
                backend.takes_no_requests(why);
                self.last = Refusal::NoBackend;
                Attempt::Again(match (request.into_body(), whole) {
                    (Upload::Stream(stream), _) => Taken::Stream(stream),
                    (Upload::Whole(_), whole) => Taken::Whole(whole.unwrap_or_default()),
                })
            }
            Ok(Err(Failed::NoFiles)) => Attempt::Over(Refusal::OpenFiles),
            Ok(Err(Failed::Sent { why, unread })) => self.interrupted(backend, why, unread, whole),
        }
    }

    /// Some of the request was sent, and there is no answer.
    fn interrupted(&mut self, backend: &Backend, why: String, unread: bool, whole: Option<Bytes>) -> Attempt {
        let late = Instant::now() >= self.deadline;
        // A client's fault says nothing of the backend, which other clients would lose.
        if let Some(refusal) = self.upload.fault(late) {
            return Attempt::Over(refusal);
        }
        if late {
            backend.failed_once(why);
            return Attempt::Over(Refusal::TooLong);
        }
        tracing::warn!(backend = %backend.name, %why, "a request was interrupted before its answer");
        backend.failed_once(why);
        self.last = if unread { Refusal::NoBackend } else { Refusal::BackendFailed };
        match whole {
            // The backend may have processed it; safe methods may be repeated. Our server does nothing before
            // it has the whole body, so an unread request was not processed: that happens when a replica that
            // is being replaced closes an idle connection while we write to it.
            Some(bytes) if unread || self.head.method.is_safe() => Attempt::Again(Taken::Whole(bytes)),
            _ => Attempt::Over(self.last),
        }
    }

    /// Sends it, and retries on a new connection if a reused one turns out to be closed before anything was sent.
    async fn send(&self, backend: &Arc<Backend>, upload: Upload) -> Result<(Response<Incoming>, Lease), Failed> {
        let stops = &self.gateway.stops;
        match backend.send(self.request(upload), self.deadline, false, stops).await {
            Err(Failed::NotSent { request, connect: false, .. }) => {
                backend.send(*request, self.deadline, true, stops).await
            }
            other => other,
        }
    }

    fn request(&self, upload: Upload) -> Request<Upload> {
        let mut request = Request::new(upload);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.head.headers.clone();
        request
    }

    fn answered(
        &mut self,
        backend: &Arc<Backend>,
        response: Response<Incoming>,
        lease: Lease,
        in_flight: InFlight,
        whole: Option<Bytes>,
    ) -> Attempt {
        // A server that is shutting down closes the connection with its 503, and has done nothing.
        if response.status() == StatusCode::SERVICE_UNAVAILABLE && closes(response.headers()) {
            backend.takes_no_requests("it is draining".to_owned());
            if let Some(bytes) = whole
                && self.tried.len() < MOST_TRIES
                && self.gateway.live().backends.pick(&self.tried).is_some()
            {
                self.last = Refusal::NoBackend;
                return Attempt::Again(Taken::Whole(bytes));
            }
        }
        // Requests that are the client's fault say nothing about the replica.
        if let Some(prompt) = &self.prompt {
            if response.status().is_success() {
                backend.answered_prompt(true);
                self.gateway.prefixes.record(prompt, backend.incarnation());
            } else if response.status().is_server_error() {
                backend.answered_prompt(false);
            }
        }
        if is_closing(&response) {
            backend.drains();
        }
        let (mut head, body) = response.into_parts();
        remove_hop_by_hop(&mut head.headers);
        let upload = self.upload.clone();
        Attempt::Answer(Response::from_parts(head, Download::backend(body, backend.clone(), lease, upload, in_flight)))
    }
}

/// A response that closes its connection although the request was valid.
fn is_closing(response: &Response<Incoming>) -> bool {
    let status = response.status();
    !status.is_client_error()
        && status != StatusCode::SERVICE_UNAVAILABLE
        && response.version() == Version::HTTP_11
        && closes(response.headers())
}

fn closes(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("close")))
    })
}

/// Path and query with the requested authority (in HTTP/2 in the URI, in HTTP/1.1 in a header).
fn origin_form(method: &Method, uri: &Uri) -> Result<Uri, Refusal> {
    if *method == Method::CONNECT {
        return Err(Refusal::BadRequest("CONNECT is not supported"));
    }
    match uri.path_and_query() {
        // Parsed again: a path of which a fragment was removed may be empty, and is `/` only as text.
        Some(path) if path.as_str().starts_with('/') || path.as_str() == "*" => {
            path.as_str().parse().map_err(|_| Refusal::BadRequest("the requested path is invalid"))
        }
        _ => Err(Refusal::BadRequest("the request has no path")),
    }
}

/// The host that is requested, by RFC 9112, 3.2 and RFC 9113, 8.3.1. Only HTTP/1.0 may name none.
fn requested_host(version: Version, target: &Uri, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, authority) = (hosts.next(), target.authority().map(|authority| authority.as_str()));
    if hosts.next().is_some() {
        return Err(Refusal::BadRequest("the request has two hosts"));
    }
    if !host.is_none_or(|host| host.to_str().is_ok_and(is_host)) || !authority.is_none_or(is_host) {
        return Err(Refusal::BadRequest("the requested host is not `NAME:PORT`"));
    }
    match (host, authority) {
        (None, None) if version > Version::HTTP_10 => Err(Refusal::BadRequest("the request has no host")),
        (None, Some(_)) if version == Version::HTTP_11 => Err(Refusal::BadRequest("the request has no `Host` header")),
        (Some(host), Some(authority))
            if version == Version::HTTP_2 && !is_same_host(target.scheme_str(), host.as_bytes(), authority) =>
        {
            Err(Refusal::BadRequest("`host` differs from `:authority`"))
        }
        // In HTTP/1.1, too, the target's authority replaces the header.
        (_, Some(authority)) => {
            HeaderValue::from_str(authority).map(Some).map_err(|_| Refusal::BadRequest("the requested host is invalid"))
        }
        (host, None) => Ok(host.cloned()),
    }
}

/// Replaces a repeated length by one (RFC 9110, 8.6). hyper does so in HTTP/1.1; in HTTP/2 equal lengths remain, and h2 accepts
/// an empty one.
fn one_length(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next().cloned() else { return Ok(()) };
    let is_number = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    if !is_number || lengths.any(|other| *other != first) {
        return Err(Refusal::BadRequest("`content-length` is not one number"));
    }
    headers.insert(header::CONTENT_LENGTH, first);
    Ok(())
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2). http and https have no empty host (RFC 9110, 4.2).
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok());
    let is_name = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        // Without percent-encoding, which names in DNS do not have.
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b)),
    };
    is_port && is_name
}

/// Whether both name the same host: in any case, with or without the scheme's port.
fn is_same_host(scheme: Option<&str>, host: &[u8], authority: &str) -> bool {
    let port: &[u8] = if scheme == Some("http") { b":80" } else { b":443" };
    let bare = |text: &[u8]| {
        let text = text.strip_suffix(port).or_else(|| text.strip_suffix(b":")).unwrap_or(text);
        text.to_ascii_lowercase()
    };
    bare(host) == bare(authority.as_bytes())
}

fn forwarded_headers(received: &HeaderMap, host: Option<HeaderValue>, client: Client, id: &HeaderValue) -> HeaderMap {
    let mut headers = received.clone();
    remove_hop_by_hop(&mut headers);
    // The gateway sends `100 Continue` itself when it reads the body.
    headers.remove(header::EXPECT);
    let host = host.unwrap_or(HeaderValue::from_static("gateway"));
    headers.insert(header::HOST, host.clone());
    // HTTP/2 may split cookies; HTTP/1.1 has one header (RFC 9113, 8.2.3).
    let cookies: Vec<&[u8]> = received.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
    // The client's claims about its address are replaced.
    headers.remove("forwarded");
    headers.remove(FORWARDED_FOR);
    if let Some(ip) = client.ip.and_then(|ip| HeaderValue::from_str(&ip.to_canonical().to_string()).ok()) {
        headers.insert(FORWARDED_FOR, ip);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if client.tls { "https" } else { "http" }));
    headers.insert(FORWARDED_HOST, host);
    headers.insert(REQUEST_ID, id.clone());
    // The gateway has no span of its own, so a valid context goes on unchanged. Without one, the server begins a trace.
    let context = TraceContext::of(received);
    if context.as_ref().is_none_or(|context| context.state.is_none()) {
        headers.remove(TRACESTATE);
    }
    if context.is_none() {
        headers.remove(TRACEPARENT);
    }
    headers
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The client's own id if it is safe to log, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let harmless = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
    };
    match headers.get(REQUEST_ID).filter(harmless) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&uuid::Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(received: &[(&'static str, &'static str)], host: Option<&'static str>, name: &str, expect: Option<&str>) {
        let headers: HeaderMap = received
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let client = Client { ip: Some("::ffff:10.0.0.7".parse().unwrap()), is_proxy: false, tls: true };
        let host = host.map(HeaderValue::from_static);
        let found = forwarded_headers(&headers, host, client, &request_id(&headers));
        assert_eq!(found.get(name).map(|v| v.to_str().unwrap()), expect, "{name}");
    }

    /// Version, target, `Host` headers, and the host that the server gets, if any; `None` for a refused request.
    type HostCase<'a> = (Version, &'a str, &'a [&'static str], Option<Option<&'static str>>);

    #[test]
    fn host_is_one_name_and_the_target_decides() {
        use Version as V;
        let table: &[HostCase<'_>] = &[
            (V::HTTP_11, "/x", &["a.example"], Some(Some("a.example"))),
            (V::HTTP_11, "/x", &["A_b.example:8443"], Some(Some("A_b.example:8443"))),
            (V::HTTP_11, "/x", &["[::1]:8443"], Some(Some("[::1]:8443"))),
            (V::HTTP_11, "/x", &["[::1]"], Some(Some("[::1]"))),
            (V::HTTP_10, "/x", &[], Some(None)),
            (V::HTTP_11, "/x", &[], None),
            (V::HTTP_2, "/x", &[], None),
            (V::HTTP_2, "/x", &["a.example"], Some(Some("a.example"))),
            (V::HTTP_11, "/x", &["a", "a"], None),
            (V::HTTP_11, "http://b.example/x", &["a.example"], Some(Some("b.example"))),
            (V::HTTP_11, "http://b.example/x", &[], None),
            (V::HTTP_11, "http://u:p@b.example/x", &["b.example"], None),
            (V::HTTP_2, "https://a.example/x", &[], Some(Some("a.example"))),
            (V::HTTP_2, "https://a.example/x", &["A.example:443"], Some(Some("a.example"))),
            (V::HTTP_2, "http://a.example:80/x", &["a.example"], Some(Some("a.example:80"))),
            (V::HTTP_2, "https://a.example/x", &["a.example:80"], None),
            (V::HTTP_2, "https://a.example/x", &["b.example"], None),
            (V::HTTP_2, "https://a.example/x", &["a.example", "a.example"], None),
            (V::HTTP_2, "https://a@a.example/x", &[], None),
        ];
        for (version, target, hosts, expect) in table {
            let headers: HeaderMap = hosts.iter().map(|host| (header::HOST, HeaderValue::from_static(host))).collect();
            let found = requested_host(*version, &target.parse().unwrap(), &headers).ok();
            let expect = expect.map(|host| host.map(HeaderValue::from_static));
            assert_eq!(found, expect, "{version:?} {target} {hosts:?}");
        }
        for bad in [
            "", ":80", "a b", "a:99999", "a:-1", "a:b", "a:1:2", "::1", "[::1", "[::g]", "[::1]x", "u@a", "<a>", "a/b",
            "a%2", "a%2d",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn target_is_not_empty() {
        for (target, expect) in
            [("/x?y", "/x?y"), ("*", "*"), ("http://a/x#y", "/x"), ("http://a", "/"), ("http://a#x", "/")]
        {
            let found = origin_form(&Method::GET, &target.parse().unwrap()).unwrap();
            assert_eq!(found.to_string(), expect, "{target}");
        }
    }

    #[test]
    fn length_is_one_number() {
        let table: &[(&[&'static str], Option<&[&str]>)] = &[
            (&[], Some(&[])),
            (&["5"], Some(&["5"])),
            (&["5", "5"], Some(&["5"])),
            (&["5", "05"], None),
            (&["5", "6"], None),
            (&[""], None),
            (&["+5"], None),
        ];
        for (lengths, expect) in table {
            let mut headers: HeaderMap =
                lengths.iter().map(|length| (header::CONTENT_LENGTH, HeaderValue::from_static(length))).collect();
            let is_accepted = one_length(&mut headers).is_ok();
            let found: Vec<&str> =
                headers.get_all(header::CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(is_accepted.then_some(found.as_slice()), *expect, "{lengths:?}");
        }
    }

    #[test]
    fn hop_by_hop_headers_are_not_forwarded() {
        let received = [
            ("connection", "keep-alive, X-Secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ];
        for name in ["connection", "x-secret", "te", "upgrade"] {
            check(&received, None, name, None);
        }
        check(&received, None, "accept", Some("*/*"));
    }

    #[test]
    fn forwarded_headers_of_clients_are_not_trusted() {
        check(
            &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "http")],
            None,
            "x-forwarded-for",
            Some("10.0.0.7"),
        );
        check(&[("x-forwarded-proto", "http")], None, "x-forwarded-proto", Some("https"));
        check(&[("forwarded", "for=1.2.3.4")], None, "forwarded", None);
        check(&[], Some("a.example"), "host", Some("a.example"));
        check(&[("host", "b.example")], Some("a.example"), "x-forwarded-host", Some("a.example"));
    }

    #[test]
    fn valid_trace_context_is_forwarded_and_an_invalid_one_removed() {
        const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = ("traceparent", PARENT);
        check(&[parent], None, "traceparent", Some(PARENT));
        check(&[parent, ("tracestate", "vendor=1")], None, "tracestate", Some("vendor=1"));
        check(&[parent, ("tracestate", "vendor")], None, "tracestate", None);
        check(&[parent, ("tracestate", "vendor")], None, "traceparent", Some(PARENT));
        let wrong = ("traceparent", "00-0-0-01");
        check(&[wrong, ("tracestate", "vendor=1")], None, "traceparent", None);
        check(&[wrong, ("tracestate", "vendor=1")], None, "tracestate", None);
    }

    #[test]
    fn only_a_trusted_proxy_names_the_client() {
        let config = serde_json::json!({ "listen": "127.0.0.1:1", "trusted_proxies": ["10.0.0.0/8", "::1"] });
        let config: Config = serde_json::from_value(config).unwrap();
        let named = |peer: &str, values: &[&'static str]| {
            let headers: HeaderMap =
                values.iter().map(|value| (FORWARDED_FOR, HeaderValue::from_static(value))).collect();
            let ip: IpAddr = peer.parse().unwrap();
            let client = Client { ip: Some(ip), is_proxy: config.trusts(ip), tls: true };
            client.behind(&headers, &config).ip.unwrap().to_string()
        };
        assert_eq!(named("192.0.2.1", &["198.51.100.1"]), "192.0.2.1");
        assert_eq!(named("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(named("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(named("::ffff:10.0.0.1", &["203.0.113.9, 198.51.100.1 , 10.0.0.2"]), "198.51.100.1");
        assert_eq!(named("::1", &["203.0.113.9", "198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(named("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(named("10.0.0.1", &["198.51.100.1, nonsense, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(named("10.0.0.1", &["nonsense"]), "10.0.0.1");
    }

    #[test]
    fn valid_request_ids_are_kept_and_invalid_ones_replaced() {
        check(&[("x-request-id", "abc-1.2:3")], None, "x-request-id", Some("abc-1.2:3"));
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("a b\"<script>"));
        assert_eq!(request_id(&headers).len(), 36);
    }
}
