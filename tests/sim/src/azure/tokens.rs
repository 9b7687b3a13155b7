//! The token endpoints: Microsoft Entra ID, and the metadata service of machines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::cloud::{Cloud, text};
use crate::aws::protocol::Request;
use crate::clock::{Random, later};

/// How long a token lasts, in real time: clients keep it that long.
const LIFETIME: Duration = Duration::from_secs(3599);
/// How much longer a too early exchange of a new federated credential makes it fail.
const EARLY_PENALTY: Duration = Duration::from_secs(60);
/// The audience of tokens for clusters of AKS with Microsoft Entra integration.
pub(super) const CLUSTERS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";

/// The audience of tokens for the data of storage accounts.
pub(super) const STORAGE: &str = "https://storage.azure.com";

struct Token {
    principal: String,
    audience: String,
    ends: Instant,
}

/// Tokens, by what is presented.
pub(super) struct Tokens {
    known: HashMap<String, Token>,
    random: Random,
    /// The secret of the operator's application.
    pub(super) secret: String,
    /// The SHA-256 of the certificate of the operator's application, in base64url.
    pub(super) certificate: Option<String>,
}

impl Tokens {
    pub(super) fn new(seed: u64) -> Self {
        let random = Random::new(seed ^ 2);
        let secret = format!("simulated~{}", random.hex(30));
        Self { known: HashMap::new(), random, secret, certificate: None }
    }

    /// A new access token of a principal for an audience.
    pub(super) fn issue(&mut self, principal: &str, audience: &str, tenant: &str) -> String {
        // Clients read the claims of Azure's tokens.
        let encode = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "aud": audience, "oid": principal, "tid": tenant, "jti": self.random.hex(16) });
        let head = encode(json!({ "typ": "JWT", "alg": "RS256" }));
        let token = format!("{head}.{}.{}", encode(claims), self.random.hex(43));
        let ends = Instant::now() + LIFETIME;
        self.known
            .insert(token.clone(), Token { principal: principal.to_owned(), audience: audience.to_owned(), ends });
        token
    }

    /// Who a token stands for, if it is valid and for this audience.
    pub(super) fn principal(&self, token: &str, audience: &str) -> Option<String> {
        let token = self.known.get(token).filter(|token| token.ends > Instant::now())?;
        token.audience.contains(audience).then(|| token.principal.clone())
    }

    /// Who the header `Authorization` stands for; false says that it has an ended token.
    pub(super) fn of(&self, request: &Request) -> Result<String, bool> {
        let value = request.header("authorization").ok_or(true)?;
        let token = value.split_once(' ').map_or("", |(_, token)| token.trim());
        self.principal(token, "management").ok_or(!self.known.contains_key(token))
    }

    /// Ends all access tokens.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        self.known.values_mut().for_each(|token| token.ends = now);
    }

    fn granted(&mut self, cloud: &Cloud, principal: &str, scope: &str) -> Value {
        let audience = scope.trim_end_matches("/.default").trim_end_matches('/');
        let token = self.issue(principal, audience, &cloud.tenant);
        let lasts = LIFETIME.as_secs();
        json!({ "token_type": "Bearer", "expires_in": lasts, "ext_expires_in": lasts, "access_token": token })
    }

    /// Answers `/{tenant}/oauth2/v2.0/token`: status and body.
    pub(super) fn grant(&mut self, cloud: &mut Cloud, tenant: &str, request: &Request) -> (u16, Value) {
        let fields: HashMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let wrong = |status: u16, error: &str, code: u64, why: &str| {
            let text = format!("AADSTS{code}: {why}");
            (status, json!({ "error": error, "error_description": text, "error_codes": [code] }))
        };
        if tenant != cloud.tenant {
            return wrong(400, "invalid_request", 90_002, &format!("Tenant '{tenant}' not found."));
        }
        if field("grant_type") != "client_credentials" {
            return wrong(400, "unsupported_grant_type", 70_003, "The app requested an unsupported grant type.");
        }
        let client = field("client_id");
        let Some(principal) = principal_of(cloud, client) else {
            let why = format!("Application with identifier '{client}' was not found in the directory.");
            return wrong(400, "unauthorized_client", 700_016, &why);
        };
        let assertion = field("client_assertion");
        if !assertion.is_empty() {
            let checked = match part(assertion, 0)["x5t#S256"].as_str() {
                Some(thumbprint) => self.certified(cloud, &principal, (assertion, thumbprint)),
                None => federated(cloud, &principal, assertion),
            };
            if let Err((code, why)) = checked {
                return wrong(401, "invalid_client", code, why);
            }
        } else if principal != cloud.operator || field("client_secret") != self.secret {
            return wrong(401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
        (200, self.granted(cloud, &principal, field("scope")))
    }

    /// Checks an assertion that a certificate signed, but for its signature.
    fn certified(&self, cloud: &Cloud, principal: &str, (assertion, thumbprint): (&str, &str)) -> Checked {
        let (header, claims) = (part(assertion, 0), part(assertion, 1));
        let is_registered = principal == cloud.operator && self.certificate.as_deref() == Some(thumbprint);
        if !is_registered || header["alg"] != "PS256" {
            return Err((
                700_027,
                "The certificate with identifier used to sign the client assertion is not registered on application.",
            ));
        }
        let endpoint = format!("https://login.microsoftonline.com/{}/oauth2/v2.0/token", cloud.tenant);
        if claims["aud"] != endpoint.as_str() {
            return Err((700_023, "Client assertion audience claim does not match Realm issuer."));
        }
        let now = jiff::Timestamp::now().as_second();
        match claims["nbf"].as_i64().zip(claims["exp"].as_i64()) {
            Some((from, until)) if from <= now && now < until => Ok(()),
            _ => Err((700_024, "Client assertion is not within its valid time range.")),
        }
    }

    /// Answers `/metadata/identity/oauth2/token` of a machine with the operator's identity.
    pub(super) fn metadata(&mut self, cloud: &Cloud, request: &Request) -> (u16, Value) {
        if request.header("metadata").is_none_or(|value| !value.eq_ignore_ascii_case("true")) {
            let why = "Required metadata header not specified";
            return (400, json!({ "error": "invalid_request", "error_description": why }));
        }
        let resource = request.query.iter().find(|(name, _)| name == "resource").map(|(_, value)| value.clone());
        let mut body = self.granted(cloud, &cloud.operator.clone(), &resource.unwrap_or_default());
        let ends = later(jiff::Timestamp::now(), LIFETIME).as_second();
        body["expires_in"] = LIFETIME.as_secs().to_string().into();
        body["expires_on"] = ends.to_string().into();
        (200, body)
    }
}

fn principal_of(cloud: &Cloud, client: &str) -> Option<String> {
    cloud.principals.iter().find(|(_, one)| one.client == client).map(|(id, _)| id.clone())
}

/// A refused assertion: the number of the error of Entra, and its words.
type Checked = Result<(), (u64, &'static str)>;

/// A part of an assertion.
fn part(assertion: &str, number: usize) -> Value {
    let part = assertion.split('.').nth(number).unwrap_or_default();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part.trim_end_matches('='));
    bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Checks the claims of an assertion against the identity's federated credentials. Its signature is not verified: the
/// simulated issuers have no keys.
fn federated(cloud: &mut Cloud, principal: &str, assertion: &str) -> Checked {
    let claims = part(assertion, 1);
    if claims["exp"].as_i64().is_some_and(|ends| ends < jiff::Timestamp::now().as_second()) {
        return Err((700_024, "Client assertion is not within its valid time range."));
    }
    if principal == cloud.operator {
        return Ok(());
    }
    let identity = cloud.objects.iter().find(|(_, one)| text(&one.body, "/properties/principalId") == principal);
    let below = identity.map_or_else(String::new, |(key, _)| format!("{key}/federatedidentitycredentials/"));
    let fits = |body: &Value| {
        ["issuer", "subject"]
            .iter()
            .zip(["iss", "sub"])
            .all(|(member, claim)| body["properties"][member] == claims[claim])
    };
    let now = cloud.now();
    let found = cloud.objects.iter().find(|(key, one)| key.starts_with(&below) && fits(&one.body));
    let none = "No matching federated identity record found for presented assertion.";
    let Some(key) = found.map(|(key, _)| key.clone()).filter(|_| !below.is_empty()) else { return Err((70_021, none)) };
    match cloud.grants.get_mut(&key).filter(|from| **from > now) {
        Some(from) => {
            *from = later(*from, EARLY_PENALTY);
            Err((70_021, none))
        }
        None => Ok(()),
    }
}
