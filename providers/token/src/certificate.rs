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

use super::read_bytes;

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
    /// Other certificates, such as those of its authorities, are ignored.
    ///
    /// # Errors
    /// If it cannot be read, or has no RSA key without a password, or no certificate of that key. Errors never quote its content.
    pub fn read(path: &str) -> Result<Self> {
        let content = read_bytes(path)?;
        let refuse = |why: &str, fix: &str| {
            let error = Error::new(ErrorKind::Invalid, "use", CERTIFICATE_PATH).because(format!("{path}: {why}"));
            error.hint(fix.to_owned())
        };
        let Some(text) = content.expose_text() else {
            let fix = "convert it: `openssl pkcs12 -in FILE.pfx -out FILE.pem -nodes`";
            return Err(refuse("it is not in PEM format", fix));
        };
        let found = |what: &'static str| sections(text).filter(move |(label, _)| label.ends_with(what));
        if found("CERTIFICATE").next().is_none() {
            return Err(refuse("it has no certificate in PEM format", "append the certificate in PEM format"));
        }
        let Some((label, key)) = found("PRIVATE KEY").next() else {
            return Err(refuse("it has no private key", "append the key in PEM format"));
        };
        if label.starts_with("ENCRYPTED") || key.contains("Proc-Type: 4,ENCRYPTED") {
            let fix = "remove it: `openssl pkey -in FILE.pem -out KEY.pem && openssl x509 -in FILE.pem >> KEY.pem`, and name KEY.pem";
            return Err(refuse("its private key has a password", fix));
        }
        // The error of the parser adds nothing, and might quote the key.
        let Ok(key) = EncodingKey::from_rsa_pem(key.as_bytes()) else {
            return Err(refuse("its private key is not an RSA key in PEM format", "Entra accepts RSA keys only"));
        };
        let Some(modulus) = modulus(key.as_bytes()) else {
            return Err(refuse("its private key is not an RSA key in PEM format", "write the file again"));
        };
        let decoded = |(_, section): (&str, &str)| {
            let body: String = section.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
            STANDARD.decode(body).ok()
        };
        let is_own = |der: &Vec<u8>| der.windows(modulus.len()).any(|part| part == modulus);
        let Some(der) = found("CERTIFICATE").filter_map(decoded).find(is_own) else {
            let fix = "append the certificate of the key in PEM format, which is registered with the application";
            return Err(refuse("it has no certificate of its private key", fix));
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

/// The modulus of an RSA key in the DER of PKCS #1: the second number after the version. A certificate of the key has the same bytes
/// (<https://www.rfc-editor.org/rfc/rfc8017#appendix-A.1.2>).
fn modulus(key: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    let (members, _) = der(SEQUENCE, key)?;
    let (_version, rest) = der(INTEGER, members)?;
    let (modulus, _) = der(INTEGER, rest)?;
    (!modulus.is_empty()).then_some(modulus)
}

/// The content of a value in DER with this tag, and what is after it.
fn der(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        // The length of the length.
        _ => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let add = |sum: usize, digit: &u8| sum.checked_mul(256)?.checked_add(usize::from(*digit));
            (digits.iter().try_fold(0, add)?, rest)
        }
    };
    rest.split_at_checked(length).filter(|_| *found == tag)
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
