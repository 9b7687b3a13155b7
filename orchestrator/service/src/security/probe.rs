//! The lines of an audit that come from requests to the running service.

use std::time::Duration;

use anyhow::Context;
use reqwest::header::{CACHE_CONTROL, HeaderMap, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use reqwest::{StatusCode, Url};
use serde_json::json;
use textnlp_net::client::ClientOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Rule;
use crate::checks::Checks;
use crate::{Deployment, RunningEnvironment};

/// The timeout of a request or handshake.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A key that no service has issued.
const UNKNOWN_KEY: &str = "tnlp_0000000000000000_00000000000000000000000000000000";

/// Sends requests as clients without rights would.
pub(super) async fn probe(report: &mut Checks, deployment: &Deployment, running: &RunningEnvironment) {
    let scope = &deployment.chosen.scope;
    let environment = &deployment.chosen.loaded.environment;
    if running.is_endpoint() {
        for (rule, name) in
            [(Rule::TlsVersions, "TLS versions"), (Rule::Headers, "headers"), (Rule::Anonymous, "anonymous requests")]
        {
            report.rule = Some(rule);
            report.well(name, "the cloud accepts only signed invocations");
        }
        return;
    }
    let status = scope.command("status");
    tls_versions(report, &running.address, &status).await;
    let client = scope
        .platform
        .trust(running.ca_file.as_deref(), Some(environment))
        .and_then(|trust| Ok(ClientOptions { trust, ..ClientOptions::default() }.client()?));
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            let firewall = environment.network.waf.then_some((Rule::Firewall, FIREWALL));
            let others = [(Rule::Headers, "headers"), (Rule::Anonymous, "anonymous requests")];
            for (rule, name) in others.into_iter().chain(firewall) {
                report.rule = Some(rule);
                report.unknown(name, format!("{error:#}"), status.clone());
            }
            return;
        }
    };
    let address = running.address.trim_end_matches('/');
    report.rule = Some(Rule::Headers);
    match send(client.get(format!("{address}/v1/models"))).await {
        Err(error) => report.unknown("headers", format!("{error:#}"), status.clone()),
        Ok(answer) => match missing_headers(answer.headers(), address.starts_with("https:")) {
            missing if missing.is_empty() => report.well("headers", "responses have every expected header"),
            missing => {
                let fix = "remove what changes them between the clients and the service, such as a proxy";
                report.problem("headers", format!("missing or weak: {}", missing.join(", ")), fix);
            }
        },
    }
    anonymous(report, &client, address, &environment.server.security.api_key_header, &status).await;
    if environment.network.waf {
        firewall(report, &client, address, &status).await;
    }
}

/// The name of the line about the firewall.
const FIREWALL: &str = "web application firewall";
/// What the firewall has to block: a script, a path out of the folder and an SQL condition, each of which the rule set of OWASP
/// scores above its limit (<https://coreruleset.org/docs/2-how-crs-works/2-1-anomaly_scoring/>).
const ATTACK: &str =
    "/v1/models?a=%3Cscript%3Ealert(1)%3C%2Fscript%3E&b=..%2F..%2F..%2Fetc%2Fpasswd&c=1%27%20OR%20%271%27%3D%271";

/// A request that a firewall blocks with 403, after one of the same path that it lets through: the service itself answers 401,
/// because both have no key.
async fn firewall(report: &mut Checks, client: &reqwest::Client, address: &str, status: &str) {
    report.rule = Some(Rule::Firewall);
    let mut answers = Vec::new();
    for path in ["/v1/models", ATTACK] {
        match send(client.get(format!("{address}{path}"))).await {
            Ok(answer) => answers.push(answer.status()),
            Err(error) => return report.unknown(FIREWALL, format!("{error:#}"), status),
        }
    }
    match answers.as_slice() {
        [StatusCode::FORBIDDEN, ..] => {
            report.unknown(FIREWALL, "requests from this machine are refused with 403, also without an attack", status);
        }
        [_, StatusCode::FORBIDDEN] => report.well(FIREWALL, "an attack was blocked"),
        _ => report.problem(
            FIREWALL,
            format!("an attack was not blocked: status {}", answers.last().map_or(0, StatusCode::as_u16)),
            "let ModSecurity block requests (`SecRuleEngine On`), with the rule set of OWASP: docs/guide/kubernetes.md",
        ),
    }
}

async fn send(request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
    Ok(request.timeout(TIMEOUT).send().await?)
}

/// The headers of an API response that protect browsers and caches, after
/// <https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers>.
fn missing_headers(headers: &HeaderMap, is_tls: bool) -> Vec<&'static str> {
    let has = |name, part: &str| {
        headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|value| value.to_lowercase().contains(part)))
    };
    let expected = [
        ("x-content-type-options: nosniff", has(X_CONTENT_TYPE_OPTIONS, "nosniff")),
        ("x-frame-options: DENY", has(X_FRAME_OPTIONS, "deny")),
        ("cache-control: no-store", has(CACHE_CONTROL, "no-store")),
        ("strict-transport-security", !is_tls || has(STRICT_TRANSPORT_SECURITY, "max-age=")),
    ];
    expected.into_iter().filter(|(_, is_there)| !is_there).map(|(name, _)| name).collect()
}

/// Requests without a key, and with one that was never issued, for paths that must not answer them.
async fn anonymous(report: &mut Checks, client: &reqwest::Client, address: &str, header: &str, status: &str) {
    const NAME: &str = "anonymous requests";
    report.rule = Some(Rule::Anonymous);
    let body = json!({ "prompt": "a", "max_tokens": 1 });
    let (mut answered, mut count) = (Vec::new(), 0);
    for (method, path) in
        [("GET", "/v1/models"), ("GET", "/v1/usage"), ("GET", "/admin/features"), ("POST", "/v1/generate")]
    {
        for key in [None, Some(UNKNOWN_KEY)] {
            let url = format!("{address}{path}");
            let mut request = if method == "POST" { client.post(url).json(&body) } else { client.get(url) };
            if let Some(key) = key {
                request = request.header(header, key);
            }
            match send(request).await {
                Err(error) => return report.unknown(NAME, format!("{method} {path}: {error:#}"), status),
                Ok(answer) if is_refused(answer.status()) => count += 1,
                Ok(answer) => {
                    let with = if key.is_some() { "with an unknown key" } else { "without a key" };
                    answered.push(format!("{method} {path} {with}: status {}", answer.status().as_u16()));
                }
            }
        }
    }
    match answered.is_empty() {
        true => report.well(NAME, format!("{count} of {count} requests without a valid key were refused")),
        false => report.problem(NAME, answered.join("\n"), "set `server.security.api_keys_enabled: true`"),
    }
}

fn is_refused(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS
    )
}

/// The answer to a handshake that offers TLS 1.1 at most.
#[derive(Debug, PartialEq, Eq)]
enum OldHandshake {
    Refused,
    Accepted,
}

async fn tls_versions(report: &mut Checks, address: &str, status: &str) {
    const NAME: &str = "TLS versions";
    report.rule = Some(Rule::TlsVersions);
    let url = match Url::parse(address) {
        Ok(url) if url.scheme() == "https" => url,
        _ => return report.problem(NAME, "clients connect without TLS", "set `tls.mode`: docs/guide/environments.md"),
    };
    let handshake = tokio::time::timeout(TIMEOUT, old_handshake(&url)).await;
    match handshake.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", TIMEOUT.as_secs()))) {
        Ok(OldHandshake::Refused) => report.well(NAME, "TLS 1.1 is refused"),
        Ok(OldHandshake::Accepted) => {
            let fix = "raise the lowest version of what terminates TLS, such as an ingress or a load balancer";
            report.problem(NAME, "TLS 1.1 is accepted", fix);
        }
        Err(error) => report.unknown(NAME, format!("{error:#}"), status),
    }
}

async fn old_handshake(url: &Url) -> anyhow::Result<OldHandshake> {
    let host = url.host_str().context("the address has no host")?;
    let port = url.port_or_known_default().unwrap_or(443);
    // IPv6 addresses have brackets only in URLs.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = TcpStream::connect((name, port)).await.with_context(|| format!("connect to {host}:{port}"))?;
    let is_name = url.domain().is_some();
    stream.write_all(&old_client_hello(is_name.then_some(name))).await.context("send a handshake")?;
    let mut head = [0; 6];
    match stream.read_exact(&mut head).await {
        // A record of the handshake whose message is a ServerHello.
        Ok(_) if head[0] == HANDSHAKE && head[5] == SERVER_HELLO => Ok(OldHandshake::Accepted),
        Ok(_) if head[0] == ALERT => Ok(OldHandshake::Refused),
        Ok(_) => anyhow::bail!("the answer to a handshake is not TLS"),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset) =>
        {
            Ok(OldHandshake::Refused)
        }
        Err(error) => Err(error).context("read the answer to a handshake"),
    }
}

/// Types of records and of handshake messages: <https://www.rfc-editor.org/rfc/rfc5246#appendix-A>.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// A ClientHello of TLS 1.1 (<https://www.rfc-editor.org/rfc/rfc4346#section-7.4.1.2>) in one record.
fn old_client_hello(name: Option<&str>) -> Vec<u8> {
    const VERSION: [u8; 2] = [3, 2];
    // ECDHE with RSA or ECDSA and AES-CBC, and RSA with AES-CBC: what servers of that time had.
    const SUITES: [u8; 12] = [0xc0, 0x13, 0xc0, 0x14, 0xc0, 0x09, 0xc0, 0x0a, 0x00, 0x2f, 0x00, 0x35];
    // supported_groups: secp256r1, secp384r1; ec_point_formats: uncompressed.
    const CURVES: [u8; 16] = [0, 10, 0, 6, 0, 4, 0, 23, 0, 24, 0, 11, 0, 2, 1, 0];
    let mut extensions = Vec::new();
    if let Some(name) = name.filter(|name| name.len() < 256) {
        let length = name.len() as u16;
        extensions.extend([0, 0]);
        extensions.extend((length + 5).to_be_bytes());
        extensions.extend((length + 3).to_be_bytes());
        extensions.push(0);
        extensions.extend(length.to_be_bytes());
        extensions.extend(name.as_bytes());
    }
    extensions.extend(CURVES);
    // No secret follows from the 32 "random" bytes: the connection ends after the answer.
    let mut hello = [&VERSION[..], &[7; 32], &[0, 0, SUITES.len() as u8], &SUITES, &[1, 0]].concat();
    hello.extend((extensions.len() as u16).to_be_bytes());
    hello.extend(extensions);
    let mut message = vec![CLIENT_HELLO, 0];
    message.extend((hello.len() as u16).to_be_bytes());
    message.extend(hello);
    let mut record = vec![HANDSHAKE, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::CheckResult;

    #[tokio::test]
    async fn old_handshake_is_accepted_only_with_a_server_hello() {
        let cases: [(&[u8], Option<OldHandshake>); 4] = [
            (&[ALERT, 3, 2, 0, 2, 2, 70], Some(OldHandshake::Refused)),
            (&[HANDSHAKE, 3, 2, 0, 40, SERVER_HELLO, 0], Some(OldHandshake::Accepted)),
            (&[], Some(OldHandshake::Refused)),
            (b"HTTP/1.1 400 Bad Request\r\n", None),
        ];
        for (answer, expected) in cases {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = Url::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 5];
                stream.read_exact(&mut head).await.unwrap();
                let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
                stream.read_exact(&mut body).await.unwrap();
                assert_eq!((head[0], body[0], &body[4..6]), (HANDSHAKE, CLIENT_HELLO, &[3, 2][..]));
                assert_eq!(usize::from(u16::from_be_bytes([body[2], body[3]])), body.len() - 4);
                stream.write_all(answer).await.unwrap();
            };
            let (seen, ()) = tokio::join!(old_handshake(&url), serve);
            assert_eq!(seen.ok(), expected);
        }
    }

    #[tokio::test]
    async fn an_attack_that_reaches_the_service_is_a_problem() {
        for (statuses, expected) in [
            (["401 Unauthorized", "403 Forbidden"], CheckResult::Well),
            (["401 Unauthorized", "401 Unauthorized"], CheckResult::Problem),
            (["403 Forbidden", "403 Forbidden"], CheckResult::Unknown),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let serve = async {
                for (place, status) in statuses.into_iter().enumerate() {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap();
                    let is_attack = String::from_utf8_lossy(&request[..length]).contains("%3Cscript%3E");
                    assert_eq!(is_attack, place == 1);
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            };
            let (client, mut report) = (ClientOptions::default().client().unwrap(), Checks::default());
            tokio::join!(firewall(&mut report, &client, &address, "status"), serve);
            let line = report.lines.last().unwrap();
            assert_eq!((line.mark, line.rule), (expected, Some(Rule::Firewall)), "{line:?}");
        }
    }

    #[test]
    fn hello_names_the_server() {
        let (named, unnamed) = (old_client_hello(Some("llm.example")), old_client_hello(None));
        assert_eq!(named.len(), unnamed.len() + 9 + "llm.example".len());
        assert!(String::from_utf8_lossy(&named).contains("llm.example"));
    }

    #[test]
    fn weak_and_missing_headers_are_named() {
        let mut headers = HeaderMap::new();
        assert_eq!(missing_headers(&headers, false).len(), 3);
        headers.insert(X_CONTENT_TYPE_OPTIONS, "nosniff".parse().unwrap());
        headers.insert(X_FRAME_OPTIONS, "DENY".parse().unwrap());
        headers.insert(CACHE_CONTROL, "private, no-store".parse().unwrap());
        assert_eq!(missing_headers(&headers, true), ["strict-transport-security"]);
        headers.insert(STRICT_TRANSPORT_SECURITY, "max-age=31536000".parse().unwrap());
        assert!(missing_headers(&headers, true).is_empty());
        headers.insert(CACHE_CONTROL, "public".parse().unwrap());
        assert_eq!(missing_headers(&headers, true), ["cache-control: no-store"]);
    }
}
