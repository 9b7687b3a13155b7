//! Access tokens of Microsoft Entra, by the credentials that were found. Each is renewed shortly before its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use azure_core::credentials::{Secret as CoreSecret, TokenCredential};
use azure_core::error::{Error as CoreError, ErrorKind as CoreKind};
use azure_core::http::{ClientMethodOptions, ClientOptions, RetryOptions, Transport as CoreTransport};
use azure_core_compute as legacy;
use azure_identity::{
    AzureCliCredential, AzureCliCredentialOptions, ClientAssertion, ClientAssertionCredential,
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use base64::Engine;
use serde_json::Value;
use textnlp_provider::connect::Bearer;
use textnlp_provider::{Error, ErrorKind, Result, Secret, error_chain};
use textnlp_token::{CERTIFICATE_PATH, ClientCertificate};
use tokio::sync::Mutex;

use crate::access::Access;
use crate::transport::Transport;

/// The scope of Azure Resource Manager.
pub(crate) const MANAGEMENT: &str = "https://management.azure.com/.default";
/// The scope of the API servers of AKS: <https://learn.microsoft.com/azure/aks/kubelogin-authentication>.
pub(crate) const CLUSTERS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630/.default";
/// The scope of registries of images: <https://learn.microsoft.com/azure/container-registry/container-registry-disable-authentication-as-arm>.
pub(crate) const REGISTRIES: &str = "https://containerregistry.azure.net/.default";
/// The scope of requests to online endpoints: <https://learn.microsoft.com/azure/machine-learning/concept-endpoints-online-auth>.
pub(crate) const SCORING: &str = "https://ml.azure.com/.default";
/// The authority of the public cloud.
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// How long before its end a token is renewed.
const BEFORE_END: Duration = Duration::from_secs(120);
/// How old a refused token must be for another one to be worth a call.
const FRESH: Duration = Duration::from_secs(60);
const HINT: &str = "sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID, and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH";

/// The tokens of one identity, by scope.
#[derive(Debug)]
pub(crate) struct Tokens {
    credential: Arc<dyn TokenCredential>,
    cached: Mutex<BTreeMap<&'static str, Cached>>,
}

#[derive(Debug, Clone)]
struct Cached {
    token: Secret,
    ends: SystemTime,
    fetched: SystemTime,
}

impl Tokens {
    pub(crate) fn new(access: &Access, transport: &Transport) -> Result<Self> {
        Ok(Self { credential: credential(access, transport)?, cached: Mutex::default() })
    }

    /// A token that lasts for a while.
    pub(crate) async fn bearer(&self, scope: &'static str) -> Result<Bearer> {
        let mut cached = self.cached.lock().await;
        if let Some(found) = cached.get(scope).filter(|one| one.ends > SystemTime::now() + BEFORE_END) {
            return Ok(Bearer { token: found.token.clone(), ends: found.ends });
        }
        let found = self.credential.get_token(&[scope], None).await.map_err(|error| failed(&error))?;
        let token = found.token.secret();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::new(ErrorKind::Unavailable, "sign in to", "azure").because("the answer has no token"));
        }
        let bearer = Bearer { token: Secret::new(token), ends: SystemTime::from(found.expires_on) };
        let fetched = SystemTime::now();
        cached.insert(scope, Cached { token: bearer.token.clone(), ends: bearer.ends, fetched });
        Ok(bearer)
    }

    /// Takes note that a call was refused as unauthenticated: whether the next call gets another token
    /// (hashicorp/terraform-provider-azurerm#20867).
    pub(crate) async fn refused(&self, scope: &'static str) -> bool {
        let old = self.cached.lock().await.remove(scope);
        old.and_then(|one| one.fetched.elapsed().ok()).unwrap_or_default() > FRESH
    }
}

/// The credential that the variables name; else that of the Azure CLI, or the managed identity of this machine.
/// <https://learn.microsoft.com/azure/developer/rust/sdk/authentication/overview>
fn credential(access: &Access, transport: &Transport) -> Result<Arc<dyn TokenCredential>> {
    let client_options = || ClientOptions {
        transport: Some(CoreTransport::new(Arc::new(transport.clone()))),
        // The engine repeats what may pass.
        retry: RetryOptions::none(),
        ..ClientOptions::default()
    };
    let (tenant, client) = (access.variable("AZURE_TENANT_ID"), access.variable("AZURE_CLIENT_ID"));
    let lacks = |name: &str| {
        Error::new(ErrorKind::Invalid, "sign in to", "azure").because(format!("{name} is not set")).hint(HINT)
    };
    let application = || {
        Ok((
            tenant.clone().ok_or_else(|| lacks("AZURE_TENANT_ID"))?,
            client.clone().ok_or_else(|| lacks("AZURE_CLIENT_ID"))?,
        ))
    };
    let made: azure_core::Result<Arc<dyn TokenCredential>> = if let Some(file) =
        access.variable("AZURE_FEDERATED_TOKEN_FILE")
    {
        let (tenant, client) = application()?;
        WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
            credential_options: ClientAssertionCredentialOptions { client_options: client_options() },
            client_id: Some(client),
            tenant_id: Some(tenant),
            token_file_path: Some(PathBuf::from(file)),
        }))
        .map(|one| one as Arc<dyn TokenCredential>)
    } else if let Some(secret) = access.variable("AZURE_CLIENT_SECRET") {
        let (tenant, client) = application()?;
        let options = ClientSecretCredentialOptions { client_options: client_options() };
        ClientSecretCredential::new(&tenant, client, CoreSecret::new(secret), Some(options))
            .map(|one| one as Arc<dyn TokenCredential>)
    } else if let Some(file) = access.variable(CERTIFICATE_PATH) {
        let (tenant, client) = application()?;
        let signer = Signer {
            certificate: ClientCertificate::read(&file)?,
            client: client.clone(),
            audience: format!("{AUTHORITY}/{tenant}/oauth2/v2.0/token"),
        };
        let options = ClientAssertionCredentialOptions { client_options: client_options() };
        ClientAssertionCredential::new(tenant, client, signer, Some(options)).map(|one| one as Arc<dyn TokenCredential>)
    } else if client.is_none() && access.cli_profile().is_some() {
        let subscription = access.subscription().ok();
        AzureCliCredential::new(Some(AzureCliCredentialOptions { subscription, tenant_id: None, executor: None }))
            .map(|one| one as Arc<dyn TokenCredential>)
    } else {
        let user_assigned_id = client.map(UserAssignedId::ClientId);
        let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options: client_options() };
        ManagedIdentityCredential::new(Some(options)).map(|one| one as Arc<dyn TokenCredential>)
    };
    made.map_err(|error| failed(&error))
}

/// Signs an assertion for each token.
#[derive(Debug)]
struct Signer {
    certificate: ClientCertificate,
    client: String,
    audience: String,
}

#[async_trait]
impl ClientAssertion for Signer {
    async fn secret(&self, _options: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        let signed = self.certificate.assertion(&self.client, &self.audience);
        let signed = signed.map_err(|error| CoreError::with_message(CoreKind::Credential, error_chain(&error)))?;
        Ok(signed.expose_text().unwrap_or_default().to_owned())
    }
}

/// A failed sign-in: one that cannot reach Microsoft Entra may pass.
fn failed(error: &CoreError) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut kind = ErrorKind::Denied;
    while let Some(one) = cause {
        match one.downcast_ref::<CoreError>().map(CoreError::kind) {
            Some(CoreKind::Io | CoreKind::Connection) => kind = ErrorKind::Unavailable,
            Some(CoreKind::HttpResponse { status, .. }) if u16::from(*status) >= 500 || u16::from(*status) == 429 => {
                kind = ErrorKind::Unavailable;
            }
            _ => {}
        }
        cause = one.source();
    }
    let why = error_chain(error).split_whitespace().collect::<Vec<_>>().join(" ");
    let error = Error::new(kind.clone(), "sign in to", "azure").because(why.chars().take(1_000).collect::<String>());
    if kind == ErrorKind::Denied { error.hint(HINT) } else { error }
}

/// What a token of Microsoft Entra says of its owner; nothing if it is none.
pub(crate) fn claims(token: &Secret) -> Value {
    let part = token.expose_text().and_then(|text| text.split('.').nth(1));
    let decoded =
        part.and_then(|part| base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
    decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The tokens for the generation of Azure's crates that `azure_mgmt_compute` is of. It asks for one at every call.
#[derive(Debug)]
pub(crate) struct LegacyCredential(pub(crate) Arc<Tokens>);

#[async_trait]
impl legacy::auth::TokenCredential for LegacyCredential {
    async fn get_token(&self, _scopes: &[&str]) -> legacy::Result<legacy::auth::AccessToken> {
        let bearer = self.0.bearer(MANAGEMENT).await.map_err(|error| {
            legacy::error::Error::message(legacy::error::ErrorKind::Credential, error_chain(&error))
        })?;
        let token = bearer.token.expose_text().unwrap_or_default().to_owned();
        Ok(legacy::auth::AccessToken::new(token, bearer.ends.into()))
    }

    async fn clear_cache(&self) -> legacy::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_read_without_a_check() {
        let part = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"oid":"o","tid":"t"}"#);
        assert_eq!(claims(&Secret::new(format!("a.{part}.c"))), json!({ "oid": "o", "tid": "t" }));
        assert_eq!(claims(&Secret::new("opaque")), Value::Null);
    }

    #[test]
    fn an_application_needs_its_ids() {
        let variables = [("AZURE_CLIENT_SECRET".to_owned(), "hunter2".to_owned())].into();
        let access = Access { variables: Some(variables), ..Access::default() };
        let transport = Transport::of(&access).unwrap();
        let error = Tokens::new(&access, &transport).unwrap_err();
        assert!(error_chain(&error).contains("AZURE_TENANT_ID") && !error_chain(&error).contains("hunter2"));
    }
}
