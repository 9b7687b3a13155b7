//! How the job that judges a release asks a Prometheus of the operator's.

use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use textnlp_kubernetes::Ask;

use crate::client;

/// How long one answer may take. Prometheus gives up when we do.
const WITHIN: Duration = Duration::from_secs(5);
/// One number takes less; so do its warnings.
const ANSWER_MAX: usize = 256 << 10;
/// An authority, and those beside it.
const AUTHORITY_MAX: usize = 64 << 10;

/// Asks as a dashboard would, with the token and the authority of a folder, where it has them.
pub(super) struct Queries {
    /// Or why nobody can be asked: the pods are looked at all the same.
    http: Result<reqwest::Client, String>,
    token: Option<Utf8PathBuf>,
}

impl Queries {
    pub(super) fn new(folder: Option<&Utf8Path>) -> Self {
        let file = |name: &str| folder.map(|folder| folder.join(name)).filter(|file| file.exists());
        let http = prepared(file("ca.crt").as_deref()).map_err(|error| format!("{error:#}"));
        Self { http, token: file("token") }
    }

    /// Read each time: whoever renews it need not tell.
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let Some(file) = &self.token else { return Ok(None) };
        let token = std::fs::read_to_string(file).map_err(|error| format!("read its token: {error}"))?;
        let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| "its token holds what no header can".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

fn prepared(ca: Option<&Utf8Path>) -> anyhow::Result<reqwest::Client> {
    let ca = ca.map(client::read_ca).transpose()?;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(client::tls(ca.as_deref())?)
        .timeout(WITHIN)
        .no_proxy()
        // It would lead a secret elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION")));
    http.build().context("prepare a client")
}

#[async_trait]
impl Ask for Queries {
    async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String> {
        let http = self.http.as_ref().map_err(Clone::clone)?;
        let mut request = http.post(format!("{url}/api/v1/query"));
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(query)?);
        if let Some(authorization) = self.authorization()? {
            request = request.header(AUTHORIZATION, authorization);
        }
        let asked = async {
            let mut answer = request.send().await?;
            let mut read = Vec::new();
            while let Some(part) = answer.chunk().await?.filter(|part| read.len() + part.len() <= ANSWER_MAX) {
                read.extend_from_slice(&part);
            }
            Ok::<_, reqwest::Error>((answer.status().as_u16(), String::from_utf8_lossy(&read).into_owned()))
        };
        // The cause says more than that there was one.
        asked.await.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }
}

fn form(query: &str) -> Result<String, String> {
    let mut form = reqwest::Url::parse("form:/").map_err(|error| error.to_string())?;
    form.query_pairs_mut().append_pair("query", query).append_pair("timeout", &format!("{}s", WITHIN.as_secs()));
    // Thanos would answer with what some of its stores have; Prometheus knows no such word.
    form.query_pairs_mut().append_pair("partial_response", "false");
    Ok(form.query().unwrap_or_default().to_owned())
}

/// The authority in a file, for the cluster; a key in it would be no secret there.
pub(super) fn authority(file: &Utf8Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    if text.len() > AUTHORITY_MAX {
        return Err(format!("{file} is longer than {} KiB", AUTHORITY_MAX >> 10));
    }
    if text.contains("PRIVATE KEY") {
        return Err(format!("{file} holds a private key, which is nobody's but the authority's"));
    }
    let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes()).peekable();
    if certificates.peek().is_none() || certificates.any(|one| one.is_err()) {
        return Err(format!("{file} holds no certificates in PEM form"));
    }
    client::tls(Some(text.as_bytes())).map_err(|error| format!("{file}: {error:#}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn a_question_is_sent_as_it_is_written() {
        let form = form("a{b=~\"5..\"} / c + 1 > 0").unwrap();
        assert_eq!(form, "query=a%7Bb%3D%7E%225..%22%7D+%2F+c+%2B+1+%3E+0&timeout=5s&partial_response=false");
    }

    #[tokio::test]
    async fn a_token_goes_where_it_is_asked_and_no_further() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/prefix", listener.local_addr().unwrap());
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        std::fs::write(folder.join("token"), "first\n").unwrap();
        let queries = Queries::new(Some(folder));
        let moved =
            format!("HTTP/1.1 307 Moved\r\nLocation: {url}/away\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        for token in ["first", "renewed"] {
            std::fs::write(folder.join("token"), token).unwrap();
            let answer = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"query=up&timeout=5s&partial_response=false") {
                    assert!(stream.read_buf(&mut asked).await.unwrap() > 0);
                }
                stream.write_all(moved.as_bytes()).await.unwrap();
                String::from_utf8(asked).unwrap().to_lowercase()
            };
            let (answered, asked) = tokio::join!(queries.ask(&url, "up"), answer);
            assert_eq!(answered.unwrap(), (307, String::new()));
            assert!(asked.starts_with("post /prefix/api/v1/query ") && asked.contains(&format!("bearer {token}\r\n")));
        }
        let nobody = Queries::new(None);
        drop(listener);
        let why = nobody.ask(&url, "up").await.unwrap_err();
        assert!(why.to_lowercase().contains("connection refused"), "{why}");
    }

    #[test]
    fn an_authority_is_certificates_and_nothing_else() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let file = folder.join("ca.pem");
        let said = |text: &str| {
            std::fs::write(&file, text).unwrap();
            authority(&file).unwrap_err()
        };
        assert!(said("nothing").contains("no certificates"));
        assert!(said("-----BEGIN PRIVATE KEY-----").contains("a private key"));
        let framed = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
        assert!(said(framed).contains("ca.pem"), "what is framed as one need not be one");
        // The job is not ended by what it cannot ask with.
        std::fs::write(folder.join("ca.crt"), framed).unwrap();
        assert!(Queries::new(Some(folder)).http.is_err());
        assert!(said(&"x".repeat(AUTHORITY_MAX + 1)).contains("longer than"));
        assert!(authority(&folder.join("gone")).is_err());
    }
}
