//! Cross-origin requests of browsers (CORS, <https://fetch.spec.whatwg.org/#http-cors-protocol>), as the server and its
//! gateway allow them.

use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};

/// The methods of the API.
const METHODS: HeaderValue = HeaderValue::from_static("GET,POST,DELETE");
/// What pages may read of an answer besides its body.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id,retry-after,x-ratelimit-limit,x-ratelimit-remaining,x-ratelimit-reset");
/// What an answer depends on.
const VARY: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");
/// The most bytes of header names that a preflight may ask for; SDKs ask for fewer than 500.
const MOST_REQUESTED: usize = 4096;

/// The origins whose pages may call the API.
#[derive(Debug, Clone)]
pub struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// The rule for these origins, of which `*` is every one; `None` without any. An origin that cannot be sent is left out.
    pub fn new(origins: &[String]) -> Option<Self> {
        let any = origins.iter().any(|origin| origin == "*");
        let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
        (!origins.is_empty()).then_some(Self { any, origins })
    }

    /// The status and headers for a preflight; `None` for another request. The requested headers are allowed whatever
    /// they are: they grant nothing, and SDKs have new ones with every version.
    pub fn preflight(&self, method: &Method, request: &HeaderMap) -> Option<(StatusCode, HeaderMap)> {
        if method != Method::OPTIONS || !request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        let mut answer = HeaderMap::new();
        self.mark(request.get(header::ORIGIN), &mut answer);
        answer.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
        if answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            if let Some(requested) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|it| is_list(it)) {
                answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
            }
        }
        Some((StatusCode::OK, answer))
    }

    /// Lets pages of `origin` read an answer, if it is allowed.
    pub fn mark(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        answer.append(header::VARY, VARY);
        let Some(origin) = origin.filter(|origin| self.any || self.origins.contains(origin)) else { return };
        let allowed = if self.any { HeaderValue::from_static("*") } else { origin.clone() };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

/// Whether this is a list of header names, and not too long.
fn is_list(names: &HeaderValue) -> bool {
    names.len() <= MOST_REQUESTED
        && names.to_str().is_ok_and(|names| names.split(',').all(|name| name.trim().parse::<HeaderName>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str]) -> Cors {
        Cors::new(&origins.iter().map(|origin| (*origin).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn request(origin: &'static str, requested: &str) -> HeaderMap {
        HeaderMap::from_iter([
            (header::ORIGIN, HeaderValue::from_static(origin)),
            (header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST")),
            (header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_str(requested).unwrap()),
        ])
    }

    #[test]
    fn preflight_of_the_official_sdk_is_allowed_from_listed_origins_only() {
        let requested = "authorization,content-type,openai-organization,openai-project,x-stainless-arch,x-stainless-os,\
            x-stainless-retry-count,x-stainless-runtime-version,x-stainless-timeout";
        let listed = cors(&["https://app.example.com"]);
        let (status, answer) =
            listed.preflight(&Method::OPTIONS, &request("https://app.example.com", requested)).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example.com");
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_HEADERS], requested);
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_METHODS], "GET,POST,DELETE");
        let (_, other) = listed.preflight(&Method::OPTIONS, &request("https://evil.example.com", requested)).unwrap();
        assert!(other.keys().all(|name| name == header::VARY), "{other:?}");
        let (_, any) =
            cors(&["*"]).preflight(&Method::OPTIONS, &request("https://evil.example.com", requested)).unwrap();
        assert_eq!(any[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(listed.preflight(&Method::POST, &request("https://app.example.com", "x")).is_none());
        assert!(listed.preflight(&Method::OPTIONS, &HeaderMap::new()).is_none());
        assert!(Cors::new(&[]).is_none());
    }

    #[test]
    fn requested_headers_that_are_no_names_or_too_many_are_not_allowed() {
        let listed = cors(&["https://app.example.com"]);
        for requested in ["a b", "a,,b", &"x-name,".repeat(1000), "a;b"] {
            let request = request("https://app.example.com", requested);
            let (_, answer) = listed.preflight(&Method::OPTIONS, &request).unwrap();
            assert!(!answer.contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS), "{requested}");
        }
    }

    #[test]
    fn answer_is_readable_for_allowed_origins() {
        let mut answer = HeaderMap::new();
        cors(&["https://a.example", "https://b.example"])
            .mark(Some(&HeaderValue::from_static("https://b.example")), &mut answer);
        assert_eq!(answer[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://b.example");
        let exposed = "x-request-id,retry-after,x-ratelimit-limit,x-ratelimit-remaining,x-ratelimit-reset";
        assert_eq!(answer[header::ACCESS_CONTROL_EXPOSE_HEADERS], exposed);
        let mut answer = HeaderMap::new();
        cors(&["https://a.example"]).mark(None, &mut answer);
        assert!(answer.keys().all(|name| name == header::VARY));
    }
}
