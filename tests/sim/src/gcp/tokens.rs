//! The token endpoint of OAuth 2.0, and who a token stands for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::cloud::Cloud;
use crate::aws::protocol::Request;
use crate::clock::Random;

/// How long a token lasts, in real time: clients keep it that long.
const LIFETIME: Duration = Duration::from_secs(3600);
/// The most of an assertion's time.
const ASSERTED: i64 = 3600;

struct Token {
    email: String,
    ends: Instant,
}

/// Who an ID token stands for, and for which service.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) email: String,
    pub(crate) audience: String,
}

/// Tokens, by what is presented.
pub(super) struct Tokens {
    access: HashMap<String, Token>,
    identities: HashMap<String, Identity>,
    refresh: HashMap<String, String>,
    random: Random,
}

impl Tokens {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            access: HashMap::new(),
            identities: HashMap::new(),
            refresh: HashMap::new(),
            random: Random::new(seed ^ 2),
        }
    }

    /// A new access token of an account.
    pub(super) fn issue(&mut self, email: &str, lasts: Duration) -> String {
        let token = format!("ya29.{}", self.random.hex(48));
        let ends = Instant::now() + lasts;
        self.access.insert(token.clone(), Token { email: email.to_owned(), ends });
        token
    }

    /// A new ID token of an account for a service.
    pub(super) fn identify(&mut self, email: &str, audience: &str) -> String {
        let token = format!("eyJ{}", self.random.hex(48));
        let identity = Identity { email: email.to_owned(), audience: audience.to_owned() };
        self.identities.insert(token.clone(), identity);
        token
    }

    /// What an ID token is.
    pub(super) fn identity(&self, token: &str) -> Option<Identity> {
        self.identities.get(token).cloned()
    }

    /// A new refresh token of an account.
    pub(super) fn refresh(&mut self, email: &str) -> String {
        let token = format!("1//{}", self.random.hex(40));
        self.refresh.insert(token.clone(), email.to_owned());
        token
    }

    /// Who an access token stands for.
    pub(super) fn email(&self, token: &str) -> Option<String> {
        let token = self.access.get(token).filter(|token| token.ends > Instant::now())?;
        Some(token.email.clone())
    }

    /// Who the header `Authorization` stands for.
    pub(super) fn of(&self, request: &Request) -> Option<String> {
        let value = request.header("authorization")?;
        let (scheme, token) = value.split_once(' ')?;
        self.email(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))
    }

    /// Ends all access tokens.
    pub(super) fn expire(&mut self) {
        self.access.clear();
    }

    /// Answers the token endpoint: status and body.
    pub(super) fn grant(&mut self, cloud: &Cloud, request: &Request) -> (u16, Value) {
        let fields: HashMap<String, String> = url::form_urlencoded::parse(&request.body).into_owned().collect();
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let wrong = |why: &str| (400, json!({ "error": "invalid_grant", "error_description": why }));
        let email = match field("grant_type") {
            "refresh_token" => match self.refresh.get(field("refresh_token")) {
                Some(email) => email.clone(),
                None => return wrong("Bad Request"),
            },
            "urn:ietf:params:oauth:grant-type:jwt-bearer" => match asserted(cloud, field("assertion")) {
                Ok(email) => email,
                Err(why) => return wrong(why),
            },
            _ => {
                let why = "Invalid grant_type: ";
                return (400, json!({ "error": "unsupported_grant_type", "error_description": why }));
            }
        };
        let token = self.issue(&email, LIFETIME);
        let scope = "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/userinfo.email";
        (
            200,
            json!({ "access_token": token, "expires_in": LIFETIME.as_secs() - 1, "scope": scope,
                "token_type": "Bearer" }),
        )
    }

    /// What a token is: `tokeninfo`.
    pub(super) fn info(&self, token: &str, is_older: bool) -> (u16, Value) {
        let Some(token) = self.access.get(token).filter(|token| token.ends > Instant::now()) else {
            return (400, json!({ "error": "invalid_token", "error_description": "Invalid Value" }));
        };
        let seconds = token.ends.saturating_duration_since(Instant::now()).as_secs();
        let id = "100000000000000000000";
        let scope = "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/userinfo.email";
        (
            200,
            match is_older {
                true => json!({ "issued_to": id, "audience": id, "user_id": id, "scope": scope, "expires_in": seconds,
                "email": token.email, "verified_email": true }),
                false => json!({ "azp": id, "aud": id, "sub": id, "scope": scope, "expires_in": seconds.to_string(),
                "email": token.email, "email_verified": "true", "access_type": "offline" }),
            },
        )
    }
}

/// The account that an assertion names. Its signature is not verified: keys of accounts are not simulated.
fn asserted(cloud: &Cloud, assertion: &str) -> Result<String, &'static str> {
    let wrong = "Invalid JWT Signature.";
    let claims = assertion.split('.').nth(1).ok_or(wrong)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).map_err(|_| wrong)?;
    let claims: Value = serde_json::from_slice(&claims).map_err(|_| wrong)?;
    let (issued, ends) = (claims["iat"].as_i64().ok_or(wrong)?, claims["exp"].as_i64().ok_or(wrong)?);
    let now = jiff::Timestamp::now().as_second();
    if ends <= now || ends - issued > ASSERTED || issued > now + 300 {
        return Err("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.");
    }
    let email = claims["iss"].as_str().ok_or(wrong)?;
    let is_account = cloud.objects.values().any(|object| object.body["email"] == email);
    if is_account { Ok(email.to_owned()) } else { Err("Invalid grant: account not found") }
}
