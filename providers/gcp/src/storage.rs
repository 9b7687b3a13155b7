//! Buckets, by Google's own crate over gRPC: the control plane of Cloud Storage has no other transport in it.
//!
//! A bucket is the JSON form of its message (`google.storage.v2.Bucket`), so that its row is as that of any other kind.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use google_cloud_auth::credentials::{CacheableResource, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use google_cloud_gax::error::rpc::StatusDetails;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_iam_v1::model::{GetIamPolicyRequest, GetPolicyOptions, Policy, SetIamPolicyRequest};
use google_cloud_storage::client::StorageControl;
use google_cloud_storage::model::Bucket;
use google_cloud_wkt::FieldMask;
use http::{Extensions, HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result, error_chain};

use crate::access::Identity;
use crate::answer::Failure;
use crate::service::Service;
use crate::token::Tokens;

/// Timeout of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Objects of one page, all of which are deleted by one step.
const PAGE: i32 = 100;
/// Pages of a list of buckets.
const MAX_PAGES: usize = 50;
/// Calls at the same time.
const AT_ONCE: usize = 16;

/// The client of a project's buckets. It does not retry.
pub(crate) struct Buckets {
    client: StorageControl,
    identity: Identity,
}

impl Buckets {
    /// `root` is the address of Cloud Storage.
    pub(crate) async fn connect(root: String, tokens: Arc<Tokens>, identity: Identity) -> Result<Self> {
        let client = StorageControl::builder()
            .with_endpoint(root)
            .with_credentials(Credentials { tokens })
            .with_retry_policy(NeverRetry)
            .with_attempt_timeout(CALL_TIMEOUT)
            .build()
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, "set up", "a client of Cloud Storage").because(error)
            })?;
        Ok(Self { client, identity })
    }

    /// `name` is `projects/_/buckets/BUCKET`.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Value>> {
        match self.client.get_bucket().set_name(name).send().await {
            Ok(bucket) => document(&bucket).map(Some),
            Err(error) => match self.failed("read", name, &error) {
                error if error.kind == ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    /// The buckets of the project whose names start so.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Value>> {
        let (mut all, mut page) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let parent = format!("projects/{}", self.identity.project);
            let call = self.client.list_buckets().set_parent(parent).set_prefix(prefix).set_page_token(page);
            let answer = call.send().await.map_err(|error| self.failed("list", "buckets", &error))?;
            for bucket in &answer.buckets {
                all.push(document(bucket)?);
            }
            page = answer.next_page_token;
            if page.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    pub(crate) async fn create(&self, id: &str, mut bucket: Value) -> Result<()> {
        bucket["project"] = format!("projects/{}", self.identity.project).into();
        let call = self
            .client
            .create_bucket()
            .set_parent("projects/_")
            .set_bucket_id(id)
            .set_bucket(message::<Bucket>(&bucket)?);
        call.send().await.map(drop).map_err(|error| self.failed("create", id, &error))
    }

    /// Changes the members in the mask, in the names of the message: `soft_delete_policy`.
    pub(crate) async fn update(&self, name: &str, mut bucket: Value, mask: &str) -> Result<()> {
        bucket["name"] = name.into();
        let mask = FieldMask::default().set_paths([mask]);
        let call = self.client.update_bucket().set_bucket(message::<Bucket>(&bucket)?).set_update_mask(mask);
        call.send().await.map(drop).map_err(|error| self.failed("change", name, &error))
    }

    /// Deletes a page of objects with their old versions, and an empty bucket itself.
    pub(crate) async fn end(&self, name: &str) -> Result<()> {
        let call = self.client.list_objects().set_parent(name).set_versions(true).set_page_size(PAGE);
        let page = call.send().await.map_err(|error| self.failed("list", &format!("objects in {name}"), &error))?;
        if page.objects.is_empty() {
            let deleted = self.client.delete_bucket().set_name(name).send().await;
            return deleted.map_err(|error| self.failed("delete", name, &error));
        }
        let deletes = page.objects.into_iter().map(|object| async move {
            let call = self.client.delete_object().set_bucket(name).set_object(&object.name);
            let subject = format!("{} in {name}", object.name);
            match call.set_generation(object.generation).send().await {
                Ok(()) => Ok(()),
                Err(error) => match self.failed("delete", &subject, &error) {
                    error if error.kind == ErrorKind::NotFound => Ok(()),
                    error => Err(error),
                },
            }
        });
        let deleted: Vec<Result<()>> = futures::stream::iter(deletes).buffer_unordered(AT_ONCE).collect().await;
        deleted.into_iter().collect()
    }

    /// The policy of a bucket in this version; `None` if there is no such bucket.
    pub(crate) async fn policy(&self, name: &str, version: i32) -> Result<Option<Value>> {
        let options = GetPolicyOptions::new().set_requested_policy_version(version);
        let request = GetIamPolicyRequest::new().set_resource(name).set_options(options);
        match self.client.get_iam_policy().with_request(request).send().await {
            Ok(policy) => document(&policy).map(Some),
            Err(error) => match self.failed("read the policy of", name, &error) {
                error if error.kind == ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Replaces the policy of a bucket, if its etag is the one in `policy`.
    pub(crate) async fn set_policy(&self, name: &str, policy: &Value) -> Result<()> {
        let request = SetIamPolicyRequest::new().set_resource(name).set_policy(message::<Policy>(policy)?);
        let sent = self.client.set_iam_policy().with_request(request).send().await;
        sent.map(drop).map_err(|error| self.failed("change the policy of", name, &error))
    }

    fn failed(&self, action: &str, subject: &str, error: &google_cloud_storage::Error) -> Error {
        let Some(status) = error.status() else {
            let kind = if error.is_authentication() { ErrorKind::Denied } else { ErrorKind::Unavailable };
            let error = Error::new(kind, action, subject).because(error_chain(error));
            return error.signed_in_as(&self.identity.email);
        };
        let reason = |detail: &StatusDetails| match detail {
            StatusDetails::ErrorInfo(info) => Some(info.reason.clone()),
            _ => None,
        };
        let mut codes: Vec<String> = status.details.iter().filter_map(reason).collect();
        codes.push(status.code.name().to_owned());
        let failure = Failure { codes, status: Some(400), message: status.message.clone(), after: None };
        failure.error(Service::Storage, action, subject).signed_in_as(&self.identity.email)
    }
}

fn document(message: &impl Serialize) -> Result<Value> {
    serde_json::to_value(message).map_err(|error| Error::new(ErrorKind::Invalid, "read", "a bucket").because(error))
}

fn message<T: DeserializeOwned>(document: &Value) -> Result<T> {
    serde_json::from_value(document.clone())
        .map_err(|error| Error::new(ErrorKind::Invalid, "describe", "a bucket").because(error))
}

/// The tokens of this program, for the client.
#[derive(Debug)]
struct Credentials {
    tokens: Arc<Tokens>,
}

impl CredentialsProvider for Credentials {
    async fn headers(&self, _extensions: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let bearer = self.tokens.bearer().await;
        let bearer = bearer.map_err(|error| CredentialsError::from_msg(error.kind.may_pass(), error_chain(&error)))?;
        let text = format!("Bearer {}", bearer.token.expose_text().unwrap_or_default());
        let value = HeaderValue::from_str(&text);
        let mut value = value.map_err(|_| CredentialsError::from_msg(false, "the token is no header"))?;
        value.set_sensitive(true);
        let data = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        Ok(CacheableResource::New { entity_tag: EntityTag::new(), data })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
