//! `monitoring.traces`: where the spans of requests are sent.

use std::str::FromStr;

use axum::http::HeaderName;
use camino::Utf8PathBuf;
use textnlp_net::client::{Url, is_loopback, is_plain_http};

use super::document::Section;

/// The collector that gets the spans of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceExport {
    /// Its address, with the path.
    pub endpoint: Url,
    /// The share of requests that are traced, of those whose caller does not decide it.
    pub ratio: f64,
    /// The header that authenticates this server.
    pub header: Option<TraceHeader>,
}

/// A header whose value is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceHeader {
    /// Its name.
    pub name: HeaderName,
    /// The file of its value.
    pub secret_file: Utf8PathBuf,
}

struct Ratio(f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or_else(|| format!("is not a number from 0 to 1: `{}`", text.escape_debug()))
    }
}

/// `monitoring.traces`; without it, no span is sent. `is_enabled`: `enable_tracing`.
pub(super) fn traces(parent: &Section<'_>, is_enabled: bool) -> Option<TraceExport> {
    if !parent.has("traces") {
        return None;
    }
    if !is_enabled {
        parent.wrong("traces", "needs `enable_tracing: true`", None);
    }
    let section = parent.section("traces");
    let address = section.needed_text("endpoint");
    let ratio = section.parsed::<Ratio>("ratio").map_or(1.0, |ratio| ratio.0);
    let name = section.text("header");
    let secret_file = section.text("secret_file").map(Utf8PathBuf::from);
    if name.is_some() != secret_file.is_some() {
        section.wrong("header", "needs `secret_file`, and the other way round", None);
    }
    let header = name.zip(secret_file).and_then(|(name, secret_file)| match name.parse() {
        Ok(name) => Some(TraceHeader { name, secret_file }),
        Err(_) => {
            section.wrong("header", format!("`{}` is not the name of a header", name.escape_debug()), None);
            None
        }
    });
    let endpoint = address.and_then(|address| {
        let url = Url::parse(&address).ok().filter(is_plain_http);
        if url.is_none() {
            let hint =
                "an address without a password, such as `https://collector.example.com:4318/v1/traces`".to_owned();
            section.wrong("endpoint", "is not an `https:` or `http:` address", hint);
        }
        url
    });
    if header.is_some() && endpoint.as_ref().is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
        section.wrong("endpoint", "is an `http:` address: the secret would be sent without TLS", None);
    }
    section.finish();
    endpoint.map(|endpoint| TraceExport { endpoint, ratio, header })
}
