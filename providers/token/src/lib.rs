//! Sign-in to cloud clusters: the output of `kube-token` for a kubeconfig's `users[].user.exec`.
//!
//! A [`SignIn`] names the cloud and the identity, [`token`] fetches a token within a timeout, and [`Version::answer`]
//! formats it for kubectl. Differences between clouds are in tables: partitions of AWS, credential file types of
//! Google, identity sources of Azure. There are no prompts, because there may be no terminal. Nothing is cached: the
//! client caches the token until it expires.
//!
//! Shapes: client authentication, <https://kubernetes.io/docs/reference/config-api/client-authentication.v1/>.
#![forbid(unsafe_code)]

#[cfg(feature = "aws")]
mod aws;
mod azure;
mod certificate;
mod gcp;
mod rest;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_provider::{Error, ErrorKind, Result, Secret};

#[cfg(feature = "aws")]
pub use aws::{AwsAnswer, Partition, aws_call, aws_query, aws_signed, aws_token, aws_variables, partition};
pub use certificate::{CERTIFICATE_PATH, ClientCertificate};

/// The timeout of one request to a service.
const EACH: Duration = Duration::from_secs(10);
/// The overall timeout. kubectl waits for it, and this project's own timeout for such programs is 30 s.
const ALL: Duration = Duration::from_secs(25);
/// The longest accepted token, in bytes; tokens with many groups have about ten thousand.
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// The longest excerpt of an external message, in characters.
const SHOWN: usize = 400;

/// The cloud and the identity to sign in with.
#[derive(Debug, Clone)]
pub enum SignIn {
    /// A cluster of EKS.
    Aws(AwsSignIn),
    /// Any cluster of GKE, by application default credentials.
    Gcp,
    /// A cluster of AKS with Entra ID.
    Azure(AzureSignIn),
}

/// The settings for AWS, see [`SignIn::Aws`].
#[derive(Debug, Clone, Default)]
pub struct AwsSignIn {
    /// The cluster's name; a token is valid for this cluster only.
    pub cluster: String,
    /// Its region; `None` for the default of AWS's own tools.
    pub region: Option<String>,
    /// A profile of the AWS configuration files, which takes precedence over variables.
    pub profile: Option<String>,
    /// An IAM role to assume.
    pub role_arn: Option<String>,
}

/// The settings for Azure, see [`SignIn::Azure`].
#[derive(Debug, Clone, Default)]
pub struct AzureSignIn {
    /// The application id of the API servers: [`AKS`], except for clusters with an application of their own.
    pub server_id: String,
    /// The tenant; otherwise `AZURE_TENANT_ID`.
    pub tenant: Option<String>,
    /// The client id of the application or managed identity; otherwise `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
}

/// The application id of AKS API servers, the same in every tenant:
/// <https://azure.github.io/kubelogin/concepts/aks.html>.
pub const AKS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";

/// Environment variables; an empty one counts as unset.
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The variables of this process.
    pub fn of_this_process() -> Self {
        // Variables outside of UTF-8 are ignored: this crate reads none.
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

/// Only the names, because values may be secrets.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A bearer token for an API server, and its expiry.
#[derive(Debug, Clone)]
pub struct Token {
    token: Secret,
    ends: Option<Timestamp>,
}

impl Token {
    /// Creates a token; an error if a header cannot hold it or it has expired.
    fn new(action: (&str, &str), token: Secret, ends: Option<Timestamp>, now: Timestamp) -> Result<Self> {
        let refused = |why: &str| Err(Error::new(ErrorKind::Denied, action.0, action.1).because(why.to_owned()));
        // A header holds only visible ASCII.
        let bytes = token.expose();
        if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES || !bytes.iter().all(u8::is_ascii_graphic) {
            return refused("the answer has no token that a header can hold");
        }
        if ends.is_some_and(|ends| ends <= now) {
            return refused("the token is already expired: check the clocks");
        }
        Ok(Self { token, ends })
    }

    /// The token.
    pub fn secret(&self) -> &Secret {
        &self.token
    }

    /// When it expires, if that is known.
    pub fn ends(&self) -> Option<Timestamp> {
        self.ends
    }
}

/// The API version of the exec plugin protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The current version.
    V1,
    /// The version for kubectl before 1.24.
    V1Beta1,
}

impl Version {
    const ALL: [Self; 2] = [Self::V1, Self::V1Beta1];

    /// The version that `KUBERNETES_EXEC_INFO` requests; the current one if the variable is not set.
    pub fn asked(info: Option<&str>) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Info {
            api_version: String,
            kind: String,
        }
        let Some(info) = info.filter(|info| !info.is_empty()) else { return Ok(Self::V1) };
        let refused = || Error::new(ErrorKind::Invalid, "read", "KUBERNETES_EXEC_INFO");
        // The parser's error would quote its input, which may describe a company's cluster.
        let Ok(info) = serde_json::from_str::<Info>(info) else {
            return Err(refused().because("it is not an ExecCredential in JSON with `apiVersion` and `kind`"));
        };
        if info.kind != "ExecCredential" {
            return Err(refused().because(format!("its kind is `{}`, and not ExecCredential", shown(&info.kind, &[]))));
        }
        Self::ALL.into_iter().find(|version| version.name() == info.api_version).ok_or_else(|| {
            let [new, old] = Self::ALL.map(Self::name);
            let why = format!("it requests `{}`; supported are {new} and {old}", shown(&info.api_version, &[]));
            refused().because(why).hint(format!("write `apiVersion: {new}` under `exec` in the kubeconfig"))
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }

    /// The `ExecCredential` for kubectl. Only here the token is written out.
    pub fn answer(self, token: &Token) -> Value {
        let mut status = json!({ "token": token.token.expose_text() });
        if let Some(ends) = token.ends {
            // Whole seconds are the precision that all clients parse.
            status["expirationTimestamp"] = json!(ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        json!({ "apiVersion": self.name(), "kind": "ExecCredential", "spec": { "interactive": false }, "status": status })
    }
}

/// Fetches a token. For AWS, the variables are those of this process, as the AWS SDK reads them.
pub async fn token(sign_in: &SignIn, variables: &Variables) -> Result<Token> {
    let asked = async {
        match sign_in {
            #[cfg(feature = "aws")]
            SignIn::Aws(options) => aws::token(options, variables).await,
            #[cfg(not(feature = "aws"))]
            SignIn::Aws(_) => Err(Error::new(ErrorKind::Invalid, "sign in to", "aws")
                .because("this build does not support AWS; build it with `cargo build --release --features aws`")),
            SignIn::Gcp => gcp::token(variables).await,
            SignIn::Azure(options) => azure::token(options, variables).await,
        }
    };
    tokio::time::timeout(ALL, asked).await.unwrap_or_else(|_| {
        let cloud = match sign_in {
            SignIn::Aws(_) => "aws",
            SignIn::Gcp => "gcp",
            SignIn::Azure(_) => "azure",
        };
        let error = Error::new(ErrorKind::Unavailable, "sign in to", cloud);
        Err(error
            .because(format!("there was no token after {} s", ALL.as_secs()))
            .hint("check that a proxy or firewall allows connections from here, and that the metadata service answers"))
    })
}

/// The beginning of an external message on one line, with secrets redacted.
fn shown(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter_map(|secret| secret.expose_text()).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "***");
    }
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN).collect()
}

/// Reads a credential file, which is a text. Errors never quote its content.
fn read_file(path: &str) -> Result<Secret> {
    let text = read_bytes(path)?;
    if text.expose_text().is_none() {
        return Err(not_a_credential(path));
    }
    Ok(text)
}

/// Reads a credential file, which may be binary.
fn read_bytes(path: &str) -> Result<Secret> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|source| Error::io("read", path, source))?;
    file.take(MAX_TOKEN_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
    if bytes.len() > MAX_TOKEN_BYTES {
        return Err(not_a_credential(path));
    }
    Ok(Secret::new(bytes))
}

fn not_a_credential(path: &str) -> Error {
    Error::new(ErrorKind::Invalid, "read", path).because("it is not a credential file")
}

/// A secret as text; all secrets of this crate are UTF-8.
fn text(secret: &Secret) -> &str {
    secret.expose_text().unwrap_or_default()
}

/// A token from a file or an answer, without the trailing newline.
fn trimmed(text: &Secret) -> Secret {
    Secret::new(text.expose().trim_ascii())
}

/// Validates a value that becomes part of a URL or a name.
fn checked<'v>(what: &str, value: &'v str, more: &[char]) -> Result<&'v str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || more.contains(&c);
    if value.is_empty() || value.len() > 256 || !value.chars().all(fits) {
        let said = if value.is_empty() { "it is empty".to_owned() } else { format!("it is `{}`", shown(value, &[])) };
        return Err(Error::new(ErrorKind::Invalid, "use", what).because(said));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_exec_credential_version_is_used_and_others_refused() {
        let version_for = |version: &str| {
            let info = json!({ "apiVersion": format!("client.authentication.k8s.io/{version}"), "kind": "ExecCredential", "spec": { "interactive": true } });
            Version::asked(Some(&info.to_string())).map_err(|error| textnlp_provider::error_chain(&error))
        };
        assert_eq!((Version::asked(None).ok(), Version::asked(Some("")).ok()), (Some(Version::V1), Some(Version::V1)));
        assert_eq!((version_for("v1"), version_for("v1beta1")), (Ok(Version::V1), Ok(Version::V1Beta1)));
        assert!(
            version_for("v1alpha1").is_err_and(|refusal| refusal.contains("v1alpha1") && refusal.contains("v1beta1"))
        );
        for garbage in [
            "{",
            "[]",
            "7",
            "null",
            r#"{"kind":"ExecCredential"}"#,
            r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"Pod"}"#,
            "\u{fffd}",
        ] {
            assert!(Version::asked(Some(garbage)).is_err(), "{garbage}");
        }
    }

    #[test]
    fn token_must_be_a_valid_header_value() {
        let now = Timestamp::UNIX_EPOCH;
        let token =
            |text: &str, ends: Option<Timestamp>| Token::new(("sign in to", "somewhere"), Secret::new(text), ends, now);
        assert!(token("ya29.a-b_c~+/=", None).is_ok());
        for text in ["", "a b", "a\nb", "ä", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(token(text, None).is_err(), "{text}");
        }
        assert!(token("t", Some(now)).is_err(), "it has ended");
        let answer = Version::V1.answer(&token("t", Some("2026-11-22T10:20:30.987Z".parse().unwrap())).unwrap());
        assert_eq!(answer["status"], json!({ "token": "t", "expirationTimestamp": "2026-11-22T10:20:30Z" }));
    }

    #[test]
    fn shown_provider_messages_redact_secrets() {
        let secret = Secret::new("hunter2");
        assert_eq!(shown("no \u{1b}[31mhunter2\r\n  here", &[&secret]), "no [31m*** here");
        assert_eq!(shown(&"ä".repeat(9999), &[]).chars().count(), SHOWN);
        let variables: Variables = [("SECRET".to_owned(), "hunter2".to_owned())].into_iter().collect();
        assert_eq!(format!("{variables:?} {secret:?}"), r#"{"SECRET"} ***"#);
    }

    #[test]
    fn credentials_are_sent_only_over_tls_or_to_this_machine() {
        for (address, fits) in [
            ("https://login.example/x", true),
            ("http://127.0.0.1:1/x", true),
            ("http://[::1]:1/x", true),
            ("http://localhost:1/x", true),
            ("http://login.example/x", false),
            ("http://127.0.0.1.example/x", false),
            ("ftp://127.0.0.1/x", false),
            ("login", false),
        ] {
            assert_eq!(rest::guarded("it", address).is_ok(), fits, "{address}");
        }
    }
}
