//! The control plane of Cloud Storage, by Google's own crate over gRPC: it has no other transport in it.
//!
//! Buckets and policies are the JSON forms of their messages, `google.storage.v2.Bucket` and `google.iam.v1.Policy`. Those messages take
//! longer to compile than all of the provider that uses them; this crate has none of the program's types, so that a change of those does
//! not compile them again.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use google_cloud_auth::credentials::{CacheableResource, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use google_cloud_gax::error::rpc::{Code, StatusDetails};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_iam_v1::model::{GetIamPolicyRequest, GetPolicyOptions, Policy, SetIamPolicyRequest};
use google_cloud_storage::client::StorageControl;
use google_cloud_storage::model::Bucket;
use google_cloud_wkt::FieldMask;
use http::{Extensions, HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Timeout of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Objects of one page, all of which are deleted by one step.
const PAGE: i32 = 100;
/// Pages of a list of buckets.
const MAX_PAGES: usize = 50;
/// Calls at the same time.
const AT_ONCE: usize = 16;

/// Gives the header `Authorization` of the next call.
pub type SignIn = Arc<dyn Fn() -> BoxFuture<'static, Result<HeaderValue, SignInError>> + Send + Sync>;

/// Why there is no such header.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct SignInError {
    /// The reason.
    pub why: String,
    /// Whether a later attempt may succeed.
    pub may_pass: bool,
}

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Cloud Storage refused it.
    #[error("{message}")]
    Refused {
        /// The reasons and the code of the status, the most specific ones first.
        codes: Vec<String>,
        /// The message.
        message: String,
        /// Whether there is no such object.
        is_absent: bool,
    },
    /// No token.
    #[error("sign in")]
    SignIn(#[source] google_cloud_storage::Error),
    /// No answer.
    #[error("no answer")]
    Lost(#[source] google_cloud_storage::Error),
    /// A document is no such message, or a message has no such document.
    #[error("the JSON form of a message")]
    Document(#[from] serde_json::Error),
}

impl From<google_cloud_storage::Error> for CallError {
    fn from(error: google_cloud_storage::Error) -> Self {
        let Some(status) = error.status() else {
            return if error.is_authentication() { Self::SignIn(error) } else { Self::Lost(error) };
        };
        let reason = |detail: &StatusDetails| match detail {
            StatusDetails::ErrorInfo(info) => Some(info.reason.clone()),
            _ => None,
        };
        let mut codes: Vec<String> = status.details.iter().filter_map(reason).collect();
        codes.push(status.code.name().to_owned());
        Self::Refused { codes, message: status.message.clone(), is_absent: status.code == Code::NotFound }
    }
}

/// The client of a project's buckets. It does not retry, and each call ends within eight seconds.
#[derive(Debug)]
pub struct Buckets {
    client: StorageControl,
    project: String,
}

impl Buckets {
    /// `root` is the address of Cloud Storage.
    ///
    /// # Errors
    /// The client cannot be made.
    pub async fn connect(
        root: String,
        project: String,
        sign_in: SignIn,
    ) -> Result<Self, google_cloud_gax::client_builder::Error> {
        let client = StorageControl::builder()
            .with_endpoint(root)
            .with_credentials(Credentials(sign_in))
            .with_retry_policy(NeverRetry)
            .with_attempt_timeout(CALL_TIMEOUT)
            .build()
            .await?;
        Ok(Self { client, project })
    }

    /// `name` is `projects/_/buckets/BUCKET`.
    ///
    /// # Errors
    /// The call failed.
    pub async fn get(&self, name: &str) -> Result<Value, CallError> {
        document(&self.client.get_bucket().set_name(name).send().await?)
    }

    /// The buckets of the project whose names start so, 50 pages of them at most.
    ///
    /// # Errors
    /// The call failed.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Value>, CallError> {
        let (mut all, mut page) = (Vec::new(), String::new());
        for _ in 0..MAX_PAGES {
            let parent = format!("projects/{}", self.project);
            let call = self.client.list_buckets().set_parent(parent).set_prefix(prefix).set_page_token(page);
            let answer = call.send().await?;
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

    /// Creates a bucket in the project.
    ///
    /// # Errors
    /// `bucket` is no bucket, or the call failed.
    pub async fn create(&self, id: &str, mut bucket: Value) -> Result<(), CallError> {
        bucket["project"] = format!("projects/{}", self.project).into();
        let bucket = message::<Bucket>(bucket)?;
        let call = self.client.create_bucket().set_parent("projects/_").set_bucket_id(id).set_bucket(bucket);
        Ok(call.send().await.map(drop)?)
    }

    /// Changes the members in the mask, in the names of the message: `soft_delete_policy`.
    ///
    /// # Errors
    /// `bucket` is no bucket, or the call failed.
    pub async fn update(&self, name: &str, mut bucket: Value, mask: &str) -> Result<(), CallError> {
        bucket["name"] = name.into();
        let mask = FieldMask::default().set_paths([mask]);
        let call = self.client.update_bucket().set_bucket(message::<Bucket>(bucket)?).set_update_mask(mask);
        Ok(call.send().await.map(drop)?)
    }

    /// Deletes a page of objects with their old versions, and an empty bucket itself.
    ///
    /// # Errors
    /// A call failed. An object that is gone already is none.
    pub async fn end(&self, name: &str) -> Result<(), CallError> {
        let call = self.client.list_objects().set_parent(name).set_versions(true).set_page_size(PAGE);
        let page = call.send().await?;
        if page.objects.is_empty() {
            return Ok(self.client.delete_bucket().set_name(name).send().await?);
        }
        let deletes = page.objects.into_iter().map(|object| async move {
            let call = self.client.delete_object().set_bucket(name).set_object(&object.name);
            match call.set_generation(object.generation).send().await.map_err(CallError::from) {
                Ok(()) | Err(CallError::Refused { is_absent: true, .. }) => Ok(()),
                Err(error) => Err(error),
            }
        });
        let deleted: Vec<Result<(), CallError>> =
            futures::stream::iter(deletes).buffer_unordered(AT_ONCE).collect().await;
        deleted.into_iter().collect()
    }

    /// The policy of a bucket in this version.
    ///
    /// # Errors
    /// The call failed.
    pub async fn policy(&self, name: &str, version: i32) -> Result<Value, CallError> {
        let options = GetPolicyOptions::new().set_requested_policy_version(version);
        let request = GetIamPolicyRequest::new().set_resource(name).set_options(options);
        document(&self.client.get_iam_policy().with_request(request).send().await?)
    }

    /// Replaces the policy of a bucket, if its etag is the one in `policy`.
    ///
    /// # Errors
    /// `policy` is no policy, or the call failed.
    pub async fn set_policy(&self, name: &str, policy: Value) -> Result<(), CallError> {
        let request = SetIamPolicyRequest::new().set_resource(name).set_policy(message::<Policy>(policy)?);
        Ok(self.client.set_iam_policy().with_request(request).send().await.map(drop)?)
    }
}

fn document(message: &impl Serialize) -> Result<Value, CallError> {
    Ok(serde_json::to_value(message)?)
}

fn message<T: DeserializeOwned>(document: Value) -> Result<T, CallError> {
    Ok(serde_json::from_value(document)?)
}

/// The caller's sign-in, for the client.
struct Credentials(SignIn);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl CredentialsProvider for Credentials {
    async fn headers(&self, _extensions: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let value = (self.0)().await.map_err(|error| CredentialsError::from_msg(error.may_pass, error.why))?;
        let data = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        Ok(CacheableResource::New { entity_tag: EntityTag::new(), data })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
