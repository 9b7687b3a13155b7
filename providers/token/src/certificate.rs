//! Client certificates of Microsoft Entra: an application proves who it is by a signed assertion, and no secret leaves this machine.
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_provider::{Error, ErrorKind, Result, Secret};
use uuid::Uuid;

use super::{read_file, text};

/// The variable with the path of a certificate and its private key.
pub const CERTIFICATE_PATH: &str = "AZURE_CLIENT_CERTIFICATE_PATH";
/// The type of assertions, as a field of a request for a token.
pub(super) const ASSERTION_TYPE: (&str, &str) =
    ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
/// How long an assertion is valid, in seconds.
const LASTS: i64 = 600;

/// The certificate of an application, with its private key.
pub struct ClientCertificate {
    key: EncodingKey,
    /// The SHA-256 of the certificate, by which Entra finds the registered one.
    thumbprint: String,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("thumbprint", &self.thumbprint).finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// Reads a file in PEM format, as `az ad sp create-for-rbac --create-cert` writes it: the certificate and its RSA key, in any order.
    ///
    /// # Errors
    /// If it cannot be read, or has no certificate or no RSA key without a password. Errors never quote its content.
    pub fn read(path: &str) -> Result<Self> {
        let content = read_file(path)?;
        let found = |what: &str| sections(text(&content)).find(|(label, _)| label.ends_with(what));
        let refuse = |why: &str, fix: &str| {
            let error = Error::new(ErrorKind::Invalid, "use", CERTIFICATE_PATH).because(format!("{path}: {why}"));
            error.hint(fix.to_owned())
        };
        let Some((_, certificate)) = found("CERTIFICATE") else {
            let fix = "convert it: `openssl pkcs12 -in FILE.pfx -out FILE.pem -nodes`";
            return Err(refuse("it has no certificate in PEM format", fix));
        };
        let Some((label, key)) = found("PRIVATE KEY") else {
            return Err(refuse("it has no private key", "append the key in PEM format"));
        };
        if label.starts_with("ENCRYPTED") || key.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(refuse("its private key has a password", "remove it: `openssl pkey -in FILE.pem`"));
        }
        let body: String = certificate.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let Ok(der) = STANDARD.decode(body) else {
            return Err(refuse("its certificate is not in PEM format", "write the file again"));
        };
        // The error of the parser adds nothing, and might quote the key.
        let Ok(key) = EncodingKey::from_rsa_pem(key.as_bytes()) else {
            return Err(refuse("its private key is not an RSA key in PEM format", "Entra accepts RSA keys only"));
        };
        Ok(Self { key, thumbprint: URL_SAFE_NO_PAD.encode(Sha256::digest(der)) })
    }

    /// A signed assertion that `client` is who asks the token endpoint `audience`.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn assertion(&self, client: &str, audience: &str) -> Result<Secret> {
        let mut header = Header::new(Algorithm::PS256);
        header.x5t_s256 = Some(self.thumbprint.clone());
        let now = Timestamp::now().as_second();
        let claims = json!({
            "aud": audience, "iss": client, "sub": client, "jti": Uuid::new_v4(), "nbf": now, "iat": now, "exp": now + LASTS,
        });
        let signed = jsonwebtoken::encode(&header, &claims, &self.key);
        let wrong = |_| Error::new(ErrorKind::Invalid, "use", CERTIFICATE_PATH).because("its private key cannot sign");
        signed.map(Secret::new).map_err(wrong)
    }
}

/// The sections of a text in PEM format, each with its label.
fn sections(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices("-----BEGIN ").filter_map(move |(start, begin)| {
        let section = text.get(start..)?;
        let (label, _) = section.get(begin.len()..)?.split_once("-----")?;
        let end = format!("-----END {label}-----");
        let length = section.find(&end)? + end.len();
        Some((label, section.get(..length)?))
    })
}
