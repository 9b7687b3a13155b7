//! Images in a registry. It takes tokens of its own, each for one repository, in exchange for one of Microsoft Entra:
//! <https://azure.github.io/acr/AAD-OAuth.html>.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use serde_json::Value;
use textnlp_cloud::ImageTarget;
use textnlp_net::retry::parse_retry_after;
use textnlp_provider::{Error, ErrorKind, Result, Secret};

use crate::answer::Failure;
use crate::api::Session;
use crate::token;
use crate::transport::NoAnswer;

/// The user of a registry whose password is a refresh token of it:
/// <https://learn.microsoft.com/azure/container-registry/container-registry-authentication#az-acr-login-with---expose-token>.
const USER: &str = "00000000-0000-0000-0000-000000000000";
/// The tags of a page: the service gives no more (Azure/acr#749).
const PAGE: usize = 1_000;
/// The pages that are read, the latest tags first. An image whose tag is on a later page counts as missing.
const MAX_PAGES: usize = 5;
/// How long a refresh token is used, which lasts for three hours.
const FRESH: Duration = Duration::from_secs(30 * 60);

/// One repository of a registry.
pub(crate) struct Repository<'a> {
    session: &'a Session,
    /// The host of the registry.
    host: &'a str,
    name: &'a str,
}

impl<'a> Repository<'a> {
    pub(crate) fn new(session: &'a Session, host: &'a str, name: &'a str) -> Self {
        Self { session, host, name }
    }

    /// Its images with tags, `TAG@sha256:…`; none before the first push.
    pub(crate) async fn images(&self) -> Result<Vec<String>> {
        let refresh = self.refresh_token().await?;
        let scope = format!("repository:{}:metadata_read", self.name);
        let form = [
            ("grant_type", "refresh_token"),
            ("service", self.host),
            ("scope", &scope),
            ("refresh_token", refresh.expose_text().unwrap_or_default()),
        ];
        let access = self.token("/oauth2/token", &form, "access_token").await?;
        let (mut images, mut last) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            // <https://learn.microsoft.com/rest/api/containerregistry/tag/get-list>
            let path = format!("/acr/v1/{}/_tags?n={PAGE}&orderby=timedesc{last}", self.name);
            let found = match self.send(Method::GET, &path, Some(&access), None).await {
                Err(error) if error.kind == ErrorKind::NotFound => break,
                found => found?,
            };
            let tags = found["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
            let image = |tag: &Value| Some(format!("{}@{}", tag["name"].as_str()?, tag["digest"].as_str()?));
            images.extend(tags.iter().filter_map(image));
            match tags.last().and_then(|tag| tag["name"].as_str()) {
                // Tags are words of `[A-Za-z0-9._-]`.
                Some(name) if tags.len() == PAGE => last = format!("&last={name}"),
                _ => break,
            }
        }
        images.sort();
        Ok(images)
    }

    /// Where an image is pushed to under a tag.
    pub(crate) async fn target(&self, tag: &str, digest: &str) -> Result<ImageTarget> {
        Ok(ImageTarget {
            registry: self.session.transport.registry(self.host),
            user: USER.to_owned(),
            password: self.refresh_token().await?,
            repository: self.name.to_owned(),
            tag: tag.to_owned(),
            digest: digest.to_owned(),
        })
    }

    /// A token of the registry for the identity that deploys.
    async fn refresh_token(&self) -> Result<Secret> {
        let known = self.known().get(self.host).filter(|(_, given)| given.elapsed() < FRESH).cloned();
        if let Some((token, _)) = known {
            return Ok(token);
        }
        let bearer = self.session.tokens.bearer(token::REGISTRIES).await?;
        // The identity may be of another tenant than the subscription.
        let claims = token::claims(&bearer.token);
        let form = [
            ("grant_type", "access_token"),
            ("service", self.host),
            ("tenant", claims["tid"].as_str().unwrap_or(&self.session.identity.tenant)),
            ("access_token", bearer.token.expose_text().unwrap_or_default()),
        ];
        let token = self.token("/oauth2/exchange", &form, "refresh_token").await?;
        self.known().insert(self.host.to_owned(), (token.clone(), Instant::now()));
        Ok(token)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, (Secret, Instant)>> {
        self.session.registries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(&self, path: &str, form: &[(&str, &str)], member: &str) -> Result<Secret> {
        let mut body = Url::parse("form:/").map_err(|error| self.failed(ErrorKind::Invalid).because(error))?;
        body.query_pairs_mut().extend_pairs(form);
        let body = body.query().unwrap_or_default().to_owned();
        let answer = self.send(Method::POST, path, None, Some(body)).await?;
        match answer[member].as_str().filter(|token| !token.is_empty()) {
            Some(token) => Ok(Secret::new(token)),
            None => Err(self.failed(ErrorKind::Unavailable).because(format!("the answer has no {member}"))),
        }
    }

    fn failed(&self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, "read", format!("repository {}/{}", self.host, self.name));
        error.signed_in_as(&self.session.identity.name)
    }

    async fn send(&self, method: Method, path: &str, access: Option<&Secret>, form: Option<String>) -> Result<Value> {
        let url = format!("https://{}{path}", self.host);
        let url = Url::parse(&url).map_err(|_| self.failed(ErrorKind::Invalid).because("it has no such address"))?;
        let mut headers = HeaderMap::new();
        if let Some(access) = access {
            let value = format!("Bearer {}", access.expose_text().unwrap_or_default());
            let value = HeaderValue::try_from(value);
            let mut value = value.map_err(|_| self.failed(ErrorKind::Unavailable).because("no token"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        let answer = self.session.transport.send(method, &url, headers, form.map(Bytes::from)).await;
        let answer = answer.map_err(|error| match error {
            // The name of a new registry is not known everywhere at once.
            NoAnswer::Unreached(_) => self.failed(ErrorKind::Conflict).because(error),
            NoAnswer::Lost(_) => self.failed(ErrorKind::Unavailable).because(error),
            NoAnswer::Unusable(_) => self.failed(ErrorKind::Invalid).because(error),
        })?;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status < 300 {
            return Ok(body);
        }
        let after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| parse_retry_after(text, Timestamp::now()));
        let failure = Failure { after, ..Failure::of_registry(answer.status, &body) };
        let subject = format!("repository {}/{}", self.host, self.name);
        let mut error = failure.error("read", &subject);
        if answer.status == 401 {
            self.known().remove(self.host);
            if self.session.tokens.refused(token::REGISTRIES).await {
                error.kind = ErrorKind::Unavailable;
            }
        }
        Err(error.signed_in_as(&self.session.identity.name))
    }
}
