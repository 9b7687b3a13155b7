//! The gate check of single sign-on: the service accepts a token that the identity provider issues now, and refuses the same
//! token with another signature.

use std::time::Duration;

use serde_json::Value;
use textnlp_net::client::{Client, ClientOptions, ProxySettings, Url, read_body};
use textnlp_net::error_chain;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_orchestrator::load::{Key, LoadRequest, Wire};
use textnlp_provider::Secret;

/// For one answer of the provider.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer of the provider, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Measures the check. Without a client at the provider it is unknown.
pub(super) async fn check(check: &CheckDefinition, environment: &Environment, service: &dyn Wire) -> Check {
    let (oidc, gates) = (&environment.server.security.oidc, &environment.gates);
    let Some(issuer) = &oidc.issuer else {
        return check.unknown(environment, "the service has no identity provider: set `server.security.oidc`");
    };
    let (Some(client), Some(secret)) = (&gates.sign_on_client, &gates.sign_on_secret) else {
        let why = "set `gates.sign_on_client` and `gates.sign_on_secret`, a client that the provider gives tokens";
        return check.unknown(environment, why);
    };
    let Some(secret) = secret.read().map(Secret::new) else {
        return check.unknown(environment, "the secret of `gates.sign_on_secret` cannot be read");
    };
    let audience = oidc.audience.as_deref().unwrap_or_default();
    let token = match token(issuer, (client, &secret), (audience, gates.sign_on_scope.as_deref())).await {
        Ok(token) => token,
        Err(why) => return check.unknown(environment, format!("the provider issued no token: {why}")),
    };
    match (status(service, &token).await, status(service, &changed(&token)).await) {
        (Ok(200), Ok(401)) => check.measured(environment, "accepted", true),
        (Ok(200), Err(why)) => check.unknown(environment, why),
        (Ok(200), Ok(429)) => check.unknown(environment, "this address sent too many invalid credentials"),
        (Ok(200), Ok(other)) => {
            let note = format!("the same token with another signature was answered with status {other}");
            check.measured(environment, "not verified", false).note(note)
        }
        // No answer about the token: the keys are not read yet, or this address sent too many invalid ones.
        (Ok(status @ (429 | 500..)), _) => {
            check.unknown(environment, format!("the service answered with status {status}"))
        }
        (Ok(status), _) => check.measured(environment, format!("status {status}"), false),
        (Err(why), _) => check.unknown(environment, why),
    }
}

/// The status of a request with a token.
async fn status(service: &dyn Wire, token: &str) -> Result<u16, String> {
    let key = Key { header: "Authorization".to_owned(), value: Secret::new(format!("Bearer {token}")) };
    let request = LoadRequest { key: Some(key), ..LoadRequest::get("/v1/models") };
    service.send(request).await.map(|answer| answer.status).map_err(|failure| failure.to_string())
}

/// The same token with a signature that differs in its first letters.
fn changed(token: &str) -> String {
    let Some((signed, signature)) = token.rsplit_once('.') else { return token.to_owned() };
    let start: String = signature.chars().take(4).map(|letter| if letter == 'A' { 'B' } else { 'A' }).collect();
    format!("{signed}.{start}{}", signature.get(4..).unwrap_or_default())
}

/// A token by client credentials (RFC 6749, section 4.4). Providers name the audience in different parameters; they ignore others.
async fn token(
    issuer: &str,
    (client, secret): (&str, &Secret),
    (audience, scope): (&str, Option<&str>),
) -> Result<String, String> {
    let options =
        ClientOptions { proxy: ProxySettings::from_env(), timeout: Some(TIMEOUT), ..ClientOptions::default() };
    let http = options.client().map_err(|error| error.to_string())?;
    let metadata = metadata(&http, issuer).await?;
    let endpoint = metadata["token_endpoint"].as_str().ok_or("its metadata has no `token_endpoint`")?;
    let url: Url = endpoint.parse().map_err(|error| format!("`token_endpoint`: {error}"))?;
    let is_here = |url: &Url| textnlp_net::client::is_loopback(url);
    if url.scheme() != "https" && !is_here(&url) {
        return Err("its `token_endpoint` has no https".to_owned());
    }
    let mut form = url.clone();
    form.query_pairs_mut().clear().append_pair("grant_type", "client_credentials").append_pair("audience", audience);
    if audience.contains(':') {
        // Only an absolute URI can be one (RFC 8707).
        form.query_pairs_mut().append_pair("resource", audience);
    }
    if let Some(scope) = scope {
        form.query_pairs_mut().append_pair("scope", scope);
    }
    let request = http
        .post(url)
        .basic_auth(encoded(client), secret.expose_text().map(encoded))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form.query().unwrap_or_default().to_owned());
    let answer = request.send().await.map_err(|error| error_chain(&error.without_url()))?;
    let answer = read(answer).await?;
    answer["access_token"].as_str().map(str::to_owned).ok_or_else(|| "its answer has no `access_token`".to_owned())
}

/// As in a form: an id or a secret may have any characters (RFC 6749, section 2.3.1).
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// The address of an issuer's metadata
/// (<https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfigurationRequest>).
pub(crate) fn metadata_address(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

/// The metadata of an issuer.
pub(crate) async fn metadata(http: &Client, issuer: &str) -> Result<Value, String> {
    let answer = http.get(metadata_address(issuer)).send().await.map_err(|error| error_chain(&error.without_url()))?;
    read(answer).await
}

async fn read(answer: reqwest::Response) -> Result<Value, String> {
    let status = answer.status();
    let body = read_body(answer, MAX_ANSWER).await.map_err(|error| error.to_string())?;
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        // RFC 6749, section 5.2.
        let why = document["error_description"].as_str().or(document["error"].as_str()).unwrap_or("no reason is given");
        return Err(format!("status {}: {}", status.as_u16(), why.chars().take(200).collect::<String>()));
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_secrets_are_written_as_in_a_form() {
        assert_eq!(encoded("https://a.b/c"), "https%3A%2F%2Fa.b%2Fc");
        assert_eq!(encoded("a+b%2 ü_-"), "a%2Bb%252%20%C3%BC_-");
    }

    #[test]
    fn a_changed_token_differs_in_its_signature_only() {
        for token in ["a.b.AAAAxyz", "a.b.BcdeF", "a.b.xy", "a.b."] {
            let other = changed(token);
            assert_eq!(other.len(), token.len(), "{token}");
            assert_eq!(other.rsplit_once('.').unwrap().0, "a.b");
            assert_eq!(other == token, token == "a.b.", "{token}");
        }
    }
}
