//! Buckets. A bucket is the JSON form of its message (`google.storage.v2.Bucket`), so that its row is as that of any other kind.

use std::sync::Arc;

use futures::FutureExt;
use http::HeaderValue;
use serde_json::Value;
use textnlp_gcs::{CallError, SignInError};
use textnlp_provider::{Error, ErrorKind, Result, error_chain};

use crate::access::Identity;
use crate::answer::Failure;
use crate::service::Service;
use crate::token::Tokens;

/// The client of a project's buckets. It does not retry.
pub(crate) struct Buckets {
    client: textnlp_gcs::Buckets,
    identity: Identity,
}

impl Buckets {
    /// `root` is the address of Cloud Storage.
    pub(crate) async fn connect(root: String, tokens: Arc<Tokens>, identity: Identity) -> Result<Self> {
        let sign_in = move || authorization(tokens.clone()).boxed();
        let client = textnlp_gcs::Buckets::connect(root, identity.project.clone(), Arc::new(sign_in)).await;
        let failed = || Error::new(ErrorKind::Unavailable, "set up", "a client of Cloud Storage");
        Ok(Self { client: client.map_err(|error| failed().because(error))?, identity })
    }

    /// `name` is `projects/_/buckets/BUCKET`.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Value>> {
        self.found("read", name, self.client.get(name).await)
    }

    /// The buckets of the project whose names start so.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Value>> {
        self.client.list(prefix).await.map_err(|error| self.failed("list", "buckets", error))
    }

    pub(crate) async fn create(&self, id: &str, bucket: Value) -> Result<()> {
        self.client.create(id, bucket).await.map_err(|error| self.failed("create", id, error))
    }

    /// Changes the members in the mask, in the names of the message: `soft_delete_policy`.
    pub(crate) async fn update(&self, name: &str, bucket: Value, mask: &str) -> Result<()> {
        self.client.update(name, bucket, mask).await.map_err(|error| self.failed("change", name, error))
    }

    /// Deletes a page of objects with their old versions, and an empty bucket itself.
    pub(crate) async fn end(&self, name: &str) -> Result<()> {
        self.client.end(name).await.map_err(|error| self.failed("delete", name, error))
    }

    /// The policy of a bucket in this version; `None` if there is no such bucket.
    pub(crate) async fn policy(&self, name: &str, version: i32) -> Result<Option<Value>> {
        self.found("read the policy of", name, self.client.policy(name, version).await)
    }

    /// Replaces the policy of a bucket, if its etag is the one in `policy`.
    pub(crate) async fn set_policy(&self, name: &str, policy: &Value) -> Result<()> {
        let set = self.client.set_policy(name, policy.clone()).await;
        set.map_err(|error| self.failed("change the policy of", name, error))
    }

    fn found(&self, action: &str, name: &str, found: Result<Value, CallError>) -> Result<Option<Value>> {
        match found.map_err(|error| self.failed(action, name, error)) {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    fn failed(&self, action: &str, subject: &str, error: CallError) -> Error {
        let kind = match error {
            CallError::Refused { codes, message, .. } => {
                let failure = Failure { codes, status: Some(400), message, after: None };
                return failure.error(Service::Storage, action, subject).signed_in_as(&self.identity.email);
            }
            CallError::SignIn(_) => ErrorKind::Denied,
            CallError::Lost(_) => ErrorKind::Unavailable,
            CallError::Document(_) => ErrorKind::Invalid,
        };
        Error::new(kind, action, subject).because(error_chain(&error)).signed_in_as(&self.identity.email)
    }
}

/// The header with a token of this program.
async fn authorization(tokens: Arc<Tokens>) -> Result<HeaderValue, SignInError> {
    let bearer = tokens.bearer().await;
    let bearer = bearer.map_err(|error| SignInError { why: error_chain(&error), may_pass: error.kind.may_pass() })?;
    let text = format!("Bearer {}", bearer.token.expose_text().unwrap_or_default());
    let value = HeaderValue::from_str(&text);
    let mut value = value.map_err(|_| SignInError { why: "the token is no header".to_owned(), may_pass: false })?;
    value.set_sensitive(true);
    Ok(value)
}
