//! Tokens of the identity of a container of Azure Machine Learning, which come neither from a metadata service nor by the protocol of
//! other containers: the address and a secret are variables
//! (<https://learn.microsoft.com/azure/machine-learning/how-to-authenticate-online-endpoint>; `AzureMLCredential` of azure-identity for
//! Python has the query and the header).

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::azure::{AzureConfigKey, AzureCredential};
use object_store::client::CredentialProvider;
use serde_json::Value;
use textnlp_net::client::{ClientOptions, ProxySettings, Url, read_body};
use textnlp_net::trust::TrustRoots;

use crate::CONNECT;
use crate::variables::Variables;

/// The variables with the address and with the secret.
const ADDRESS: &str = "MSI_ENDPOINT";
const SECRET: &str = "MSI_SECRET";
/// The header with the secret.
const HEADER: &str = "secret";
/// The query for a token of storage accounts.
const QUERY: [(&str, &str); 2] = [("api-version", "2017-09-01"), ("resource", "https://storage.azure.com/")];
/// How long before its end a token is renewed, and how long one lasts that does not say its end.
const BEFORE_END: Duration = Duration::from_secs(300);
const USUAL: Duration = Duration::from_secs(900);
/// The timeout of a request, and the longest answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const MOST: usize = 64 << 10;

/// The identity.
pub(crate) struct Identity {
    address: Url,
    secret: String,
    cached: Mutex<Option<(Arc<AzureCredential>, SystemTime)>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Whether a setting chooses another credential, which `with_credentials` would override.
fn is_other(key: AzureConfigKey) -> bool {
    matches!(
        key,
        AzureConfigKey::AccessKey
            | AzureConfigKey::ClientSecret
            | AzureConfigKey::CredentialType
            | AzureConfigKey::FabricTokenServiceUrl
            | AzureConfigKey::FederatedTokenFile
            | AzureConfigKey::MsiEndpoint
            | AzureConfigKey::SasKey
            | AzureConfigKey::SkipSignature
            | AzureConfigKey::Token
            | AzureConfigKey::UseAzureCli
            | AzureConfigKey::UseEmulator
    )
}

impl Identity {
    /// That of these variables, if they name one and no other credential.
    pub(crate) fn of(variables: &Variables) -> Option<Self> {
        if variables
            .of::<AzureConfigKey>("AZURE_")
            .any(|(key, value)| is_other(key) && !value.eq_ignore_ascii_case("false"))
        {
            return None;
        }
        let mut address: Url = variables.get(ADDRESS)?.parse().ok()?;
        address.query_pairs_mut().extend_pairs(QUERY);
        if let Some(client) = variables.get("AZURE_CLIENT_ID") {
            address.query_pairs_mut().append_pair("clientid", client);
        }
        let secret = variables.get(SECRET)?.to_owned();
        Some(Self { address, secret, cached: Mutex::default() })
    }

    async fn fetch(&self) -> Result<(Arc<AzureCredential>, SystemTime), String> {
        // It is on this machine, or link-local: no proxy reaches it.
        let options = ClientOptions {
            trust: TrustRoots::none(),
            proxy: ProxySettings::default(),
            connect_timeout: CONNECT,
            idle_timeout: None,
            timeout: Some(TIMEOUT),
        };
        let client = options.client().map_err(|error| error.to_string())?;
        let request = client.get(self.address.clone()).header(HEADER, &self.secret).header("Metadata", "true");
        let response = request.send().await.map_err(|error| error.without_url().to_string())?;
        let status = response.status();
        let body = read_body(response, MOST).await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("status {status}"));
        }
        let body: Value = serde_json::from_slice(&body).map_err(|_| "the answer is not JSON".to_owned())?;
        let token = body["access_token"].as_str().filter(|token| !token.is_empty()).ok_or("the answer has no token")?;
        let now = SystemTime::now();
        // A number, or the text of one.
        let ends = body["expires_on"].as_u64().or_else(|| body["expires_on"].as_str()?.parse().ok());
        let ends = ends.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        Ok((Arc::new(AzureCredential::BearerToken(token.to_owned())), ends.unwrap_or(now + USUAL)))
    }
}

#[async_trait]
impl CredentialProvider for Identity {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((token, _)) = cached.filter(|(_, ends)| *ends > SystemTime::now() + BEFORE_END) {
            return Ok(token);
        }
        let (token, ends) = self.fetch().await.map_err(|why| object_store::Error::Unauthenticated {
            path: ADDRESS.to_owned(),
            source: format!("sign in with the identity of the container: {why}").into(),
        })?;
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), ends));
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_token_is_asked_for_with_the_secret_and_used_until_its_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/token", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let mut heads = Vec::new();
            // The first one has ended already.
            for (token, ends) in [("one", "1".to_owned()), ("two", u64::from(u32::MAX).to_string())] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
                heads.push(String::from_utf8(head).unwrap());
                let body = format!(r#"{{"access_token":"{token}","expires_on":"{ends}"}}"#);
                let length = body.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            heads
        });
        let pairs = [(ADDRESS, address.as_str()), (SECRET, "hunter2"), ("AZURE_CLIENT_ID", "c")];
        let identity = Identity::of(&Variables::of_pairs(pairs)).unwrap();
        for expected in ["one", "two", "two"] {
            let credential = identity.get_credential().await.unwrap();
            assert!(matches!(&*credential, AzureCredential::BearerToken(token) if token == expected));
            let shown = format!("{identity:?}");
            assert!(!shown.contains("hunter2") && !shown.contains(expected), "{shown}");
        }
        for head in server.await.unwrap() {
            let query = "/token?api-version=2017-09-01&resource=https%3A%2F%2Fstorage.azure.com%2F&clientid=c ";
            assert!(head.contains(query) && head.to_lowercase().contains("secret: hunter2"), "{head}");
        }
        for name in ["AZURE_FEDERATED_TOKEN_FILE", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCESS_KEY"] {
            let other = pairs.into_iter().chain([(name, "/token")]);
            assert!(Identity::of(&Variables::of_pairs(other)).is_none(), "another credential is named: {name}");
        }
        assert!(Identity::of(&Variables::of_pairs([(ADDRESS, address.as_str())])).is_none());
    }
}
