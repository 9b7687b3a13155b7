//! Tokens for GKE: OAuth access tokens of Google. The identity is found as Google's libraries find it:
//! <https://cloud.google.com/docs/authentication/application-default-credentials>.

use std::net::IpAddr;

use jiff::Timestamp;
use reqwest::Url;
use serde_json::{Value, json};
use textnlp_provider::{Error, ErrorKind, Result, Secret};

use super::rest::{Rest, bearer, guarded};
use super::{Token, Variables, read_file, shown, text, trimmed};

/// Role bindings in a cluster use e-mail addresses, which a token contains only with the second scope.
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email"];
/// The default token endpoint.
const TOKENS: &str = "https://oauth2.googleapis.com/token";
/// The maximum lifetime of an assertion, in seconds.
const ASSERTED_SECONDS: i64 = 3600;
const ACTION: (&str, &str) = ("sign in to", "gcp");
const HINT: &str =
    "sign in with `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a credential file";

/// The types of credential files, and the flow of each: <https://google.aip.dev/auth/4110>.
const TYPES: &[(&str, CredentialSource)] = &[
    ("service_account", CredentialSource::Asserted),
    ("authorized_user", CredentialSource::Refreshed),
    ("external_account", CredentialSource::Exchanged),
    ("impersonated_service_account", CredentialSource::Impersonated),
];

#[derive(Clone, Copy)]
enum CredentialSource {
    /// A service account key signs an assertion.
    Asserted,
    /// A user's refresh token.
    Refreshed,
    /// An external identity, by workload identity federation.
    Exchanged,
    /// Impersonation of a service account.
    Impersonated,
}

pub(super) async fn token(variables: &Variables) -> Result<Token> {
    let named = variables.get("GOOGLE_APPLICATION_CREDENTIALS");
    let usual = || {
        let folder = match variables.get("CLOUDSDK_CONFIG") {
            Some(folder) => folder.to_owned(),
            None => format!("{}/.config/gcloud", variables.get("HOME")?),
        };
        let file = format!("{folder}/application_default_credentials.json");
        std::path::Path::new(&file).exists().then_some(file)
    };
    let Some(file) = named.map(str::to_owned).or_else(usual) else { return of_machine(variables).await };
    let text = read_file(&file).map_err(|error| error.hint(HINT))?;
    // The parser's error would quote its input.
    let credential: Value = serde_json::from_slice(text.expose()).map_err(|_| wrong(&file, "it is not JSON"))?;
    of_file(&file, &credential, variables).await
}

fn wrong(file: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, "use", file).because(why.to_owned()).hint(HINT)
}

async fn of_file(file: &str, credential: &Value, variables: &Variables) -> Result<Token> {
    let named = credential["type"].as_str().unwrap_or_default();
    let rest = Rest::far(variables)?;
    match TYPES.iter().find(|(name, _)| *name == named) {
        Some((_, CredentialSource::Asserted)) => asserted(&rest, file, credential).await,
        Some((_, CredentialSource::Refreshed)) => refreshed(&rest, file, credential).await,
        Some((_, CredentialSource::Exchanged)) => exchanged(&rest, file, credential, variables).await,
        Some((_, CredentialSource::Impersonated)) => {
            let source = &credential["source_credentials"];
            if source["type"] == "impersonated_service_account" {
                return Err(wrong(file, "`source_credentials` is itself of type `impersonated_service_account`"));
            }
            let url = guarded(file, field(file, credential, "service_account_impersonation_url")?)?;
            let token = Box::pin(of_file(file, source, variables)).await?;
            impersonated(&rest, url, &token, &credential["delegates"], &Value::Null).await
        }
        None => {
            let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
            Err(wrong(file, &format!("its type is `{}`; supported types: {}", shown(named, &[]), known.join(", "))))
        }
    }
}

fn field<'v>(file: &str, credential: &'v Value, name: &str) -> Result<&'v str> {
    let text = credential[name].as_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| wrong(file, &format!("it has no `{name}`")))
}

fn token_address(file: &str, credential: &Value) -> Result<Url> {
    guarded(file, credential["token_uri"].as_str().unwrap_or(TOKENS))
}

/// <https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests>
async fn asserted(rest: &Rest, file: &str, credential: &Value) -> Result<Token> {
    let url = token_address(file, credential)?;
    let key = Secret::new(field(file, credential, "private_key")?);
    let who = field(file, credential, "client_email")?;
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
    header.kid = credential["private_key_id"].as_str().map(str::to_owned);
    let now = Timestamp::now().as_second();
    let audience = credential["token_uri"].as_str().unwrap_or(TOKENS);
    let claims =
        json!({ "iss": who, "scope": SCOPES.join(" "), "aud": audience, "iat": now, "exp": now + ASSERTED_SECONDS });
    let signer = jsonwebtoken::EncodingKey::from_rsa_pem(key.expose());
    // The encoder's error adds nothing, and might quote the key.
    let assertion = signer.and_then(|key| jsonwebtoken::encode(&header, &claims, &key));
    let assertion =
        Secret::new(assertion.map_err(|_| wrong(file, "its `private_key` is not an RSA key in PEM format"))?);
    let fields = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", text(&assertion))];
    let answer =
        rest.ask(ACTION, rest.form(url, &fields), &[&assertion, &key]).await.map_err(|error| error.hint(HINT))?;
    bearer(ACTION, &answer)
}

/// <https://developers.google.com/identity/protocols/oauth2/web-server#offline>
async fn refreshed(rest: &Rest, file: &str, credential: &Value) -> Result<Token> {
    let url = token_address(file, credential)?;
    let [secret, refresh] =
        ["client_secret", "refresh_token"].map(|name| field(file, credential, name).map(Secret::new));
    let (secret, refresh) = (secret?, refresh?);
    let fields = [
        ("grant_type", "refresh_token"),
        ("client_id", field(file, credential, "client_id")?),
        ("client_secret", text(&secret)),
        ("refresh_token", text(&refresh)),
    ];
    let answer = rest.ask(ACTION, rest.form(url, &fields), &[&secret, &refresh]).await;
    bearer(ACTION, &answer.map_err(|error| error.hint("sign in again: `gcloud auth application-default login`"))?)
}

/// <https://google.aip.dev/auth/4117>
async fn exchanged(rest: &Rest, file: &str, credential: &Value, variables: &Variables) -> Result<Token> {
    let url = guarded(file, field(file, credential, "token_url")?)?;
    let subject = subject(rest, file, &credential["credential_source"], variables).await?;
    let becomes = credential["service_account_impersonation_url"].as_str();
    // Impersonation needs only the first scope.
    let scope = if becomes.is_some() { SCOPES[0].to_owned() } else { SCOPES.join(" ") };
    let mut fields = vec![
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("audience", field(file, credential, "audience")?),
        ("scope", &scope),
        ("subject_token_type", field(file, credential, "subject_token_type")?),
        ("subject_token", text(&subject)),
    ];
    let project =
        credential["workforce_pool_user_project"].as_str().map(|project| json!({ "userProject": project }).to_string());
    if let Some(options) = &project {
        fields.push(("options", options));
    }
    let client = credential["client_secret"].as_str().map(Secret::new);
    let mut request = rest.form(url, &fields);
    if let Some(secret) = &client {
        request = request.basic_auth(field(file, credential, "client_id")?, Some(text(secret)));
    }
    let secrets: Vec<&Secret> = [&subject].into_iter().chain(&client).collect();
    let token = bearer(ACTION, &rest.ask(ACTION, request, &secrets).await?)?;
    let Some(becomes) = becomes else { return Ok(token) };
    let lasts = &credential["service_account_impersonation"]["token_lifetime_seconds"];
    impersonated(rest, guarded(file, becomes)?, &token, &Value::Null, lasts).await
}

/// The external identity's token, from a file or from a URL.
async fn subject(rest: &Rest, file: &str, source: &Value, variables: &Variables) -> Result<Secret> {
    let answer = if let Some(path) = source["file"].as_str() {
        read_file(path)?
    } else if let Some(address) = source["url"].as_str() {
        // Metadata services use plain HTTP on loopback or link-local addresses. They are called without a proxy, and no
        // other address is allowed plain HTTP.
        let url = Url::parse(address).map_err(|_| wrong(file, "`credential_source.url` is not an address"))?;
        let (url, nearby) = match is_nearby(&url) {
            true => (url, Some(Rest::nearby(variables)?)),
            false => (guarded(file, address)?, None),
        };
        let headers = source["headers"].as_object().into_iter().flatten();
        let headers: Vec<(&String, Secret)> =
            headers.filter_map(|(name, value)| Some((name, Secret::new(value.as_str()?)))).collect();
        let rest = nearby.as_ref().unwrap_or(rest);
        let request = headers.iter().fold(rest.get(url), |request, (name, value)| request.header(*name, text(value)));
        let confided: Vec<&Secret> = headers.iter().map(|(_, value)| value).collect();
        rest.ask(("ask for an identity", address), request, &confided).await?
    } else {
        return Err(wrong(
            file,
            "its `credential_source` is neither a `file` nor a `url`: sources of AWS, executables and certificates are not supported",
        ));
    };
    let format = &source["format"];
    let token = match format["type"].as_str().unwrap_or("text") {
        "text" => trimmed(&answer),
        _ => {
            let name = format["subject_token_field_name"].as_str().unwrap_or_default();
            let answer: Value = serde_json::from_slice(answer.expose()).unwrap_or_default();
            Secret::new(answer[name].as_str().unwrap_or_default())
        }
    };
    if token.expose().is_empty() {
        return Err(wrong(file, "`credential_source` returned no identity"));
    }
    Ok(token)
}

/// Whether a plain HTTP address is loopback or link-local.
fn is_nearby(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let here = match host.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
        // The IPv6 address of the AWS metadata service.
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unicast_link_local() || ip.segments()[..2] == [0xfd00, 0x0ec2],
        Err(_) => host == "localhost" || host == "metadata.google.internal",
    };
    url.scheme() == "http" && here
}

/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>
async fn impersonated(rest: &Rest, url: Url, token: &Token, delegates: &Value, seconds: &Value) -> Result<Token> {
    let action = ("impersonate a service account of", "gcp");
    let delegates = if delegates.is_array() { delegates.clone() } else { json!([]) };
    let lifetime = format!("{}s", seconds.as_u64().unwrap_or(ASSERTED_SECONDS.unsigned_abs()));
    let body = json!({ "delegates": delegates, "scope": SCOPES, "lifetime": lifetime });
    let request = rest.post(url).bearer_auth(text(&token.token)).json(&body);
    let answer = rest.ask(action, request, &[&token.token]).await?;
    let answer: Value = serde_json::from_slice(answer.expose()).unwrap_or_default();
    let ends = answer["expireTime"].as_str().and_then(|time| time.parse().ok());
    Token::new(action, Secret::new(answer["accessToken"].as_str().unwrap_or_default()), ends, Timestamp::now())
}

/// The identity of the machine or the pod:
/// <https://cloud.google.com/compute/docs/access/authenticate-workloads#applications>.
async fn of_machine(variables: &Variables) -> Result<Token> {
    let host = variables.get("GCE_METADATA_HOST").unwrap_or("metadata.google.internal");
    let action = ("ask the metadata service", host);
    let wrong = |_| {
        Error::new(ErrorKind::Invalid, "use", "GCE_METADATA_HOST").because("it is not a host with an optional port")
    };
    let mut url = Url::parse(&format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token"))
        .map_err(wrong)?;
    url.query_pairs_mut().append_pair("scopes", &SCOPES.join(","));
    let rest = Rest::nearby(variables)?;
    let answer = rest.ask(action, rest.get(url).header("metadata-flavor", "Google"), &[]).await;
    bearer(action, &answer.map_err(|error| error.hint(HINT))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_queried_over_plain_http_only_on_local_addresses() {
        for (address, nearby) in [
            ("http://169.254.169.254/latest", true),
            ("http://[fd00:ec2::254]/latest", true),
            ("http://metadata.google.internal/x", true),
            ("http://127.0.0.1:8080/x", true),
            ("http://10.0.0.1/x", false),
            ("http://metadata.google.internal.example/x", false),
            ("https://127.0.0.1/x", false),
        ] {
            assert_eq!(is_nearby(&Url::parse(address).unwrap()), nearby, "{address}");
        }
    }
}
