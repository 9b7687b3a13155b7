//! HTTP requests of the job that analyses a rollout: queries of an external Prometheus, and the metrics of pods.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use textnlp_kubernetes::{QueryApi, Scrape};
use textnlp_net::client::{ClientOptions, ProxySettings, read_body};
use textnlp_net::trust::TrustRoots;

use crate::network;

/// Timeout of one query. Prometheus gets the same one.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of a response in bytes. A single number with warnings is far smaller.
const ANSWER_MAX: usize = 256 << 10;

/// Queries like a dashboard, with the token and the CA from a folder if they exist.
pub(super) struct Queries {
    /// The client, or why there is none. The analysis of the pods continues without it.
    http: Result<reqwest::Client, String>,
    token: Option<Utf8PathBuf>,
}

impl Queries {
    pub(super) fn new(folder: Option<&Utf8Path>) -> Self {
        let file = |name: &str| folder.map(|folder| folder.join(name)).filter(|file| file.exists());
        let http = prepared(file("ca.crt").as_deref()).map_err(|error| format!("{error:#}"));
        Self { http, token: file("token") }
    }

    /// The token is read for every query, so a renewed one is used at once. It is for the address beside it only.
    fn authorization(&self, url: &str) -> Result<Option<HeaderValue>, String> {
        let Some(file) = &self.token else { return Ok(None) };
        let own = std::fs::read_to_string(file.with_file_name("url"))
            .map_err(|error| format!("read its address: {error}"))?;
        if own.trim() != url {
            return Err(format!("its token is for {}, and the deployment names another address", own.trim()));
        }
        let token = std::fs::read_to_string(file).map_err(|error| format!("read its token: {error}"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| "its token has characters that are not allowed in an HTTP header".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

fn prepared(ca: Option<&Utf8Path>) -> anyhow::Result<reqwest::Client> {
    let options =
        ClientOptions { trust: network::trust(ca, None)?, timeout: Some(QUERY_TIMEOUT), ..ClientOptions::default() };
    Ok(options.client()?)
}

#[async_trait]
impl QueryApi for Queries {
    async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String> {
        let http = self.http.as_ref().map_err(Clone::clone)?;
        let mut request = http.post(format!("{url}/api/v1/query"));
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(query)?);
        if let Some(authorization) = self.authorization(url)? {
            request = request.header(AUTHORIZATION, authorization);
        }
        let exchange = async {
            let answer = request.send().await?;
            let status = answer.status().as_u16();
            Ok::<_, anyhow::Error>((
                status,
                String::from_utf8_lossy(&read_body(answer, ANSWER_MAX).await?).into_owned(),
            ))
        };
        exchange.await.map_err(|error| format!("{error:#}"))
    }
}

fn form(query: &str) -> Result<String, String> {
    let mut form = reqwest::Url::parse("form:/").map_err(|error| error.to_string())?;
    form.query_pairs_mut().append_pair("query", query).append_pair("timeout", &format!("{}s", QUERY_TIMEOUT.as_secs()));
    // Thanos would otherwise return partial results. Prometheus ignores this parameter.
    form.query_pairs_mut().append_pair("partial_response", "false");
    Ok(form.query().unwrap_or_default().to_owned())
}

/// Timeout of one request for a pod's metrics.
const SCRAPED_WITHIN: Duration = Duration::from_secs(2);
/// Limit of a metrics response in bytes.
const FIGURES_MAX: usize = 4 << 20;

/// Scrapes metrics like Prometheus.
pub(super) struct Figures(reqwest::Client);

impl Figures {
    pub(super) fn new() -> anyhow::Result<Self> {
        let (trust, proxy) = (TrustRoots::none(), ProxySettings::from_env());
        let options = ClientOptions { trust, proxy, timeout: Some(SCRAPED_WITHIN), ..ClientOptions::default() };
        Ok(Self(options.client()?))
    }
}

#[async_trait]
impl Scrape for Figures {
    async fn scrape(&self, address: IpAddr, port: u16) -> Result<String, String> {
        let url = format!("http://{}/metrics", SocketAddr::new(address, port));
        let exchange = async {
            let answer = self.0.get(url).send().await?.error_for_status()?;
            Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read_body(answer, FIGURES_MAX).await?).into_owned())
        };
        exchange.await.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn prometheus_query_is_form_encoded() {
        let form = form("a{b=~\"5..\"} / c + 1 > 0").unwrap();
        assert_eq!(form, "query=a%7Bb%3D%7E%225..%22%7D+%2F+c+%2B+1+%3E+0&timeout=5s&partial_response=false");
    }

    #[tokio::test]
    async fn prometheus_token_is_sent_only_to_its_own_host() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/prefix", listener.local_addr().unwrap());
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        std::fs::write(folder.join("token"), "first\n").unwrap();
        std::fs::write(folder.join("url"), &url).unwrap();
        let queries = Queries::new(Some(folder));
        let moved =
            format!("HTTP/1.1 307 Moved\r\nLocation: {url}/away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        for token in ["first", "renewed"] {
            std::fs::write(folder.join("token"), token).unwrap();
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut exchange = Vec::new();
                while !exchange.ends_with(b"query=up&timeout=5s&partial_response=false") {
                    assert!(stream.read_buf(&mut exchange).await.unwrap() > 0);
                }
                stream.write_all(moved.as_bytes()).await.unwrap();
                String::from_utf8(exchange).unwrap().to_lowercase()
            };
            let (answered, exchange) = tokio::join!(queries.ask(&url, "up"), answer);
            assert_eq!(answered.unwrap(), (307, String::new()));
            assert!(
                exchange.starts_with("post /prefix/api/v1/query ") && exchange.contains(&format!("bearer {token}\r\n"))
            );
        }
        let why = queries.ask(&format!("{url}/elsewhere"), "up").await.unwrap_err();
        assert!(why.contains("its token is for"), "{why}");
        let without_credentials = Queries::new(None);
        // A bound socket that does not listen: no other process can take its port.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", held.local_addr().unwrap());
        let why = without_credentials.ask(&url, "up").await.unwrap_err();
        assert!(why.to_lowercase().contains("connection refused"), "{why}");
    }

    #[test]
    fn unusable_prometheus_credentials_do_not_stop_the_job() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let framed = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
        std::fs::write(folder.join("ca.crt"), framed).unwrap();
        assert!(Queries::new(Some(folder)).http.is_err());
    }
}
