//! Signing in to the clusters of clouds: what `kube-token` prints for a kubeconfig's `users[].user.exec`.
//!
//! One shape: a [`SignIn`] names the cloud and whom it is asked for, [`token`] asks within a bound, [`Version::answer`] writes what kubectl reads.
//! What differs is in tables: partitions of AWS, types of credential files of Google, ways to an identity of Azure. Nobody is ever asked
//! anything: there may be no terminal. Nothing is kept: whoever asked keeps the token until it ends.
//!
//! Shapes: client authentication, <https://kubernetes.io/docs/reference/config-api/client-authentication.v1/>.

#[cfg(feature = "aws")]
mod aws;
mod azure;
mod gcp;
mod rest;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_provider::{Error, Result, Secret, Sort};

/// One question to a service, with its answer.
const EACH: Duration = Duration::from_secs(10);
/// Everything together: kubectl waits for it, and our own limit for such programs is 30 s.
const ALL: Duration = Duration::from_secs(25);
/// The longest text that is handed on as a token; tokens with many groups have some ten thousand bytes.
const LONGEST: usize = 64 << 10;
/// How much is shown of what somebody else says.
const SHOWN: usize = 400;

/// Whom a cloud is asked for, and what for.
#[derive(Debug, Clone)]
pub enum SignIn {
    /// A cluster of EKS.
    Aws(AwsSignIn),
    /// Any cluster of GKE, by application default credentials.
    Gcp,
    /// A cluster of AKS that asks Entra.
    Azure(AzureSignIn),
}

/// See [`SignIn::Aws`].
#[derive(Debug, Clone, Default)]
pub struct AwsSignIn {
    /// The cluster's name: a token is good for this one only.
    pub cluster: String,
    /// Its region; else what AWS's own tools would take.
    pub region: Option<String>,
    /// A profile of the AWS files, before all variables.
    pub profile: Option<String>,
    /// A role to be taken on first.
    pub role_arn: Option<String>,
}

/// See [`SignIn::Azure`].
#[derive(Debug, Clone, Default)]
pub struct AzureSignIn {
    /// The application that stands for the API servers: [`AKS`] but for clusters with one of their own.
    pub server_id: String,
    /// The tenant; else `AZURE_TENANT_ID`.
    pub tenant: Option<String>,
    /// The application or identity that signs in; else `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
}

/// The application that stands for the API servers of AKS, in every tenant: <https://azure.github.io/kubelogin/concepts/aks.html>.
pub const AKS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";

/// Variables as a process has them; one that is empty is not there.
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        // A value that is no text is none of ours.
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

/// The names alone: values may be secrets.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What an API server is shown, and when it ends.
#[derive(Debug, Clone)]
pub struct Token {
    token: Secret,
    ends: Option<Timestamp>,
}

impl Token {
    /// Only what can be a token, and still is one.
    fn new(action: (&str, &str), token: Secret, ends: Option<Timestamp>, now: Timestamp) -> Result<Self> {
        let refused = |why: &str| Err(Error::new(Sort::Denied, action.0, action.1).because(why.to_owned()));
        // It goes into a header.
        let bytes = token.expose();
        if bytes.is_empty() || bytes.len() > LONGEST || !bytes.iter().all(u8::is_ascii_graphic) {
            return refused("the answer has no token that a header can hold");
        }
        if ends.is_some_and(|ends| ends <= now) {
            return refused("the token that was handed out has ended already: look at the clocks");
        }
        Ok(Self { token, ends })
    }
}

/// The version of the exchange that whoever runs us speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one of today.
    V1,
    /// That of kubectl before 1.24.
    V1Beta1,
}

impl Version {
    const ALL: [Self; 2] = [Self::V1, Self::V1Beta1];

    /// What `KUBERNETES_EXEC_INFO` asks for; run by hand, there is none.
    pub fn asked(info: Option<&str>) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Info {
            api_version: String,
            kind: String,
        }
        let Some(info) = info.filter(|info| !info.is_empty()) else { return Ok(Self::V1) };
        let refused = || Error::new(Sort::Invalid, "read", "KUBERNETES_EXEC_INFO");
        // The reader's own words would quote what it read, which may hold a company's cluster.
        let Ok(info) = serde_json::from_str::<Info>(info) else {
            return Err(refused().because("it is no ExecCredential in JSON with `apiVersion` and `kind`"));
        };
        if info.kind != "ExecCredential" {
            return Err(refused().because(format!("its kind is `{}`, and not ExecCredential", shown(&info.kind, &[]))));
        }
        Self::ALL.into_iter().find(|version| version.name() == info.api_version).ok_or_else(|| {
            let [new, old] = Self::ALL.map(Self::name);
            let why =
                format!("it asks for `{}`, and {new} and {old} are what is spoken here", shown(&info.api_version, &[]));
            refused().because(why).hint(format!("write `apiVersion: {new}` under `exec` in the kubeconfig"))
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }

    /// What kubectl reads: the one place where a token is written out.
    pub fn answer(self, token: &Token) -> Value {
        let mut status = json!({ "token": token.token.expose_text() });
        if let Some(ends) = token.ends {
            // A second is the finest that its readers of times agree on.
            status["expirationTimestamp"] = json!(ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        json!({ "apiVersion": self.name(), "kind": "ExecCredential", "spec": { "interactive": false }, "status": status })
    }
}

/// Asks for a token. For AWS the variables are those of this process, as its own tools read them.
pub async fn token(sign_in: &SignIn, variables: &Variables) -> Result<Token> {
    let asked = async {
        match sign_in {
            #[cfg(feature = "aws")]
            SignIn::Aws(ask) => aws::token(ask, variables).await,
            #[cfg(not(feature = "aws"))]
            SignIn::Aws(_) => Err(Error::new(Sort::Invalid, "sign in to", "aws")
                .because("it was left out when this program was built: build it with `--features aws`")),
            SignIn::Gcp => gcp::token(variables).await,
            SignIn::Azure(ask) => azure::token(ask, variables).await,
        }
    };
    tokio::time::timeout(ALL, asked).await.unwrap_or_else(|_| {
        let cloud = match sign_in {
            SignIn::Aws(_) => "aws",
            SignIn::Gcp => "gcp",
            SignIn::Azure(_) => "azure",
        };
        let error = Error::new(Sort::Unavailable, "sign in to", cloud);
        Err(error
            .because(format!("there was no token after {} s", ALL.as_secs()))
            .hint("see which address does not answer from here: a proxy, a firewall, a metadata service"))
    })
}

/// The beginning of somebody else's words in one line, without what was confided to them.
fn shown(text: &str, secrets: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter_map(|secret| secret.expose_text()).filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "***");
    }
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN).collect()
}

/// A file with a credential. Its words are never shown, nor those of whoever cannot read them.
fn read_file(path: &str) -> Result<Secret> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|source| Error::io("read", path, source))?;
    file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
    let text = Secret::new(bytes);
    if text.expose().len() > LONGEST || text.expose_text().is_none() {
        return Err(Error::new(Sort::Invalid, "read", path).because("it is no file with a credential"));
    }
    Ok(text)
}

/// A secret of ours is text wherever it comes from.
fn text(secret: &Secret) -> &str {
    secret.expose_text().unwrap_or_default()
}

/// What a token stands for when it is read from a file or taken from an answer: without the line end.
fn trimmed(text: &Secret) -> Secret {
    Secret::new(text.expose().trim_ascii())
}

/// A value that becomes a part of an address or of a name there.
fn checked<'v>(what: &str, value: &'v str, more: &[char]) -> Result<&'v str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || more.contains(&c);
    if value.is_empty() || value.len() > 256 || !value.chars().all(fits) {
        let said = if value.is_empty() { "it is empty".to_owned() } else { format!("it is `{}`", shown(value, &[])) };
        return Err(Error::new(Sort::Invalid, "use", what).because(said));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_asked_for_is_spoken_and_no_other() {
        let asks = |version: &str| {
            let info = json!({ "apiVersion": format!("client.authentication.k8s.io/{version}"), "kind": "ExecCredential", "spec": { "interactive": true } });
            Version::asked(Some(&info.to_string())).map_err(|error| textnlp_provider::told(&error))
        };
        assert_eq!((Version::asked(None).ok(), Version::asked(Some("")).ok()), (Some(Version::V1), Some(Version::V1)));
        assert_eq!((asks("v1"), asks("v1beta1")), (Ok(Version::V1), Ok(Version::V1Beta1)));
        assert!(asks("v1alpha1").is_err_and(|told| told.contains("v1alpha1") && told.contains("v1beta1")));
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
    fn only_what_a_header_can_hold_is_a_token() {
        let now = Timestamp::UNIX_EPOCH;
        let token =
            |text: &str, ends: Option<Timestamp>| Token::new(("sign in to", "somewhere"), Secret::new(text), ends, now);
        assert!(token("ya29.a-b_c~+/=", None).is_ok());
        for text in ["", "a b", "a\nb", "ä", &"x".repeat(LONGEST + 1)] {
            assert!(token(text, None).is_err(), "{text}");
        }
        assert!(token("t", Some(now)).is_err(), "it has ended");
        let answer = Version::V1.answer(&token("t", Some("2026-11-22T10:20:30.987Z".parse().unwrap())).unwrap());
        assert_eq!(answer["status"], json!({ "token": "t", "expirationTimestamp": "2026-11-22T10:20:30Z" }));
    }

    #[test]
    fn what_was_confided_to_somebody_is_not_repeated() {
        let secret = Secret::new("hunter2");
        assert_eq!(shown("no \u{1b}[31mhunter2\r\n  here", &[&secret]), "no [31m*** here");
        assert_eq!(shown(&"ä".repeat(9999), &[]).chars().count(), SHOWN);
        let variables: Variables = [("SECRET".to_owned(), "hunter2".to_owned())].into_iter().collect();
        assert_eq!(format!("{variables:?} {secret:?}"), r#"{"SECRET"} ***"#);
    }

    #[test]
    fn a_credential_is_sent_by_tls_or_not_off_this_machine() {
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
