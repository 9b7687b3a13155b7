//! One transport for every request: this project's own HTTP client under the clients of both generations of Azure's crates.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::{Error as CoreError, ErrorKind as CoreKind};
use azure_core::http::headers::Headers;
use azure_core::http::{AsyncRawResponse, HttpClient, Request, request::Body};
use azure_core_compute as legacy;
use bytes::Bytes;
use camino::Utf8Path;
use reqwest::Url;
use reqwest::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use textnlp_net::client::{BodyError, ClientOptions, ProxySettings, is_loopback, read_body};
use textnlp_net::trust::TrustRoots;
use textnlp_provider::{Error, ErrorKind, Result, error_chain};

use crate::access::Access;

/// A variable with an address on this machine that receives all requests to Azure, for tests: their header `Host` keeps the host.
pub const ENDPOINT: &str = "TEXTNLP_AZURE_ENDPOINT";
/// Azure Resource Manager.
pub(crate) const MANAGEMENT: &str = "https://management.azure.com";
/// The hosts that [`ENDPOINT`] stands for, besides those of [`REGISTRIES`]: Resource Manager, Microsoft Entra and the metadata service
/// of machines.
const HOSTS: [&str; 3] = ["management.azure.com", "login.microsoftonline.com", "169.254.169.254"];
/// The end of the address of every registry of images.
pub(crate) const REGISTRIES: &str = ".azurecr.io";
/// Timeout of one call. The engine allows ten seconds for everything that a verb does.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Timeout of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes: the machine sizes of a region are some MB.
const MAX_ANSWER_BYTES: usize = 32 << 20;
/// A file of certificate authorities that are trusted besides the public ones.
const CA_FILE: &str = "TEXTNLP_CA_FILE";

/// The transport.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    elsewhere: Option<Url>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// The server cannot be reached.
    Unreached(String),
    /// It fails: the outcome is unknown.
    Lost(String),
    /// The answer cannot be used.
    Unusable(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unreached(why) | Self::Lost(why) | Self::Unusable(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for NoAnswer {}

impl Transport {
    pub(crate) fn of(access: &Access) -> Result<Self> {
        let variable = access.variable(CA_FILE);
        let trust = TrustRoots::public_and(variable.as_deref().map(Utf8Path::new))
            .map_err(|error| Error::new(ErrorKind::Invalid, "use", CA_FILE).because(error))?;
        let proxy = ProxySettings::from_variables(|name| access.variable(name));
        let options = ClientOptions {
            trust,
            proxy,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: None,
            timeout: Some(CALL_TIMEOUT),
        };
        let http = options
            .client()
            .map_err(|error| Error::new(ErrorKind::Invalid, "set up", "an HTTP client").because(error))?;
        Ok(Self { http, elsewhere: access.variable(ENDPOINT).map(|address| local(&address)).transpose()? })
    }

    /// Sends one request and reads the answer.
    pub(crate) async fn send(
        &self,
        method: reqwest::Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Answer, NoAnswer> {
        let takes_body = [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::PATCH].contains(&method);
        let mut request = self.http.request(method, self.target(url)).headers(headers);
        if let Some(host) = url.host_str().filter(|_| self.elsewhere.is_some()) {
            request = request.header(HOST, host);
        }
        match body {
            Some(body) if !body.is_empty() => request = request.body(body),
            // Resource Manager answers 411 to one without a body and without its length.
            _ if takes_body => request = request.header(CONTENT_LENGTH, "0"),
            _ => {}
        }
        let response = request.send().await.map_err(|error| match (error.is_connect(), error.is_timeout()) {
            (true, _) => NoAnswer::Unreached(error_chain(&error.without_url())),
            (false, true) => NoAnswer::Lost(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
            (false, false) => NoAnswer::Lost(error_chain(&error.without_url())),
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = read_body(response, MAX_ANSWER_BYTES).await.map_err(|error| match error {
            BodyError::Cut(_) => NoAnswer::Lost(error_chain(&error)),
            BodyError::TooLong(_) => NoAnswer::Unusable(error_chain(&error)),
        })?;
        Ok(Answer { status, headers, body: body.to_vec() })
    }

    /// The address of a registry of images.
    pub(crate) fn registry(&self, host: &str) -> String {
        match self.elsewhere.as_ref().filter(|_| host.ends_with(REGISTRIES)) {
            Some(elsewhere) => elsewhere.origin().ascii_serialization(),
            None => format!("https://{host}"),
        }
    }

    /// Where a request is sent.
    fn target(&self, url: &Url) -> Url {
        let is_azure = url.host_str().is_some_and(|host| HOSTS.contains(&host) || host.ends_with(REGISTRIES));
        let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| is_azure) else { return url.clone() };
        let mut target = elsewhere.clone();
        target.set_path(url.path());
        target.set_query(url.query());
        target
    }
}

/// A token is sent over TLS or to this machine only.
fn local(address: &str) -> Result<Url> {
    let url = Url::parse(address).ok().filter(|url| url.scheme() == "http" && is_loopback(url));
    url.ok_or_else(|| Error::new(ErrorKind::Invalid, "use", ENDPOINT).because("it is no http address of this machine"))
}

/// The headers of a request.
fn headers<'h>(pairs: impl Iterator<Item = (&'h str, &'h str)>) -> HeaderMap {
    let pair = |(name, value): (&str, &str)| {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(name.eq_ignore_ascii_case("authorization"));
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    };
    pairs.filter_map(pair).collect()
}

/// The headers of an answer that are texts.
fn texts(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> + '_ {
    headers.iter().filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
}

#[async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let failed = |kind, why: String| CoreError::with_message(kind, why);
        let Body::Bytes(body) = request.body() else {
            return Err(failed(CoreKind::Other, "a body that is a stream is not supported".to_owned()));
        };
        let sent = headers(request.headers().iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes())
            .map_err(|error| failed(CoreKind::Other, error.to_string()))?;
        let answer = self.send(method, request.url(), sent, Some(body.clone())).await.map_err(|error| match error {
            NoAnswer::Unreached(why) | NoAnswer::Lost(why) => failed(CoreKind::Io, why),
            NoAnswer::Unusable(why) => failed(CoreKind::DataConversion, why),
        })?;
        let mut found = Headers::new();
        for (name, value) in texts(&answer.headers) {
            found.insert(name, value);
        }
        Ok(AsyncRawResponse::from_bytes(answer.status.into(), found, answer.body))
    }
}

#[async_trait]
impl legacy::HttpClient for Transport {
    async fn execute_request(&self, request: &legacy::Request) -> legacy::Result<legacy::Response> {
        let failed = |kind, why: String| legacy::error::Error::message(kind, why);
        let other = legacy::error::ErrorKind::Other;
        let sent: Vec<_> = request.headers().iter().collect();
        let sent = headers(sent.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let method = reqwest::Method::from_bytes(request.method().to_string().as_bytes())
            .map_err(|error| failed(other.clone(), error.to_string()))?;
        let body = match request.body() {
            legacy::Body::Bytes(body) => body.clone(),
            legacy::Body::SeekableStream(_) => {
                return Err(failed(other, "a body that is a stream is not supported".to_owned()));
            }
        };
        let answer = self.send(method, request.url(), sent, Some(body)).await;
        let answer = answer.map_err(|error| failed(legacy::error::ErrorKind::Io, error.to_string()))?;
        let status = legacy::StatusCode::try_from(answer.status)
            .map_err(|_| failed(legacy::error::ErrorKind::DataConversion, format!("status {}", answer.status)))?;
        let mut found = legacy::headers::Headers::new();
        for (name, value) in texts(&answer.headers) {
            found.insert(name, value);
        }
        let body = Bytes::from(answer.body);
        Ok(legacy::Response::new(status, found, Box::pin(futures::stream::once(async { Ok(body) }))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sent_to_this_machine_only() {
        for bad in ["http://example.com/", "https://127.0.0.1/", "nothing"] {
            assert!(local(bad).is_err(), "{bad}");
        }
        let http = reqwest::Client::builder();
        let http = http.tls_backend_preconfigured(TrustRoots::none().client_config()).build().unwrap();
        let transport = Transport { http, elsewhere: Some(local("http://127.0.0.1:7").unwrap()) };
        for (url, target) in [
            ("https://management.azure.com/a/b?api-version=1", "http://127.0.0.1:7/a/b?api-version=1"),
            ("https://login.microsoftonline.com/t/oauth2/v2.0/token", "http://127.0.0.1:7/t/oauth2/v2.0/token"),
            ("https://mine.azurecr.io/v2/a", "http://127.0.0.1:7/v2/a"),
            ("https://example.com/a", "https://example.com/a"),
        ] {
            assert_eq!(transport.target(&Url::parse(url).unwrap()).as_str(), target);
        }
    }
}
