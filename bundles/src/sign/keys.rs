//! Keys of signatures, as minisign writes them, and the password of a secret one.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// A public key, in its base64 text where it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub(super) minisign::PublicKey);

/// A secret key. It cannot be printed.
pub struct SecretKey(pub(super) minisign::SecretKey);

/// The password of a secret key. It cannot be printed and is wiped on drop.
pub struct Password(Zeroizing<String>);

/// Writes a new pair of keys, the secret one with mode 0600. Existing files are not replaced. Without a password the
/// file alone is enough to sign; callers warn.
pub fn keygen(secret: &Utf8Path, public: &Utf8Path, password: Option<&Password>) -> Result<PublicKey> {
    let failed = |error: minisign::PError| key_error(secret, &error);
    let pair = match password {
        Some(password) => minisign::KeyPair::generate_encrypted_keypair(Some(password.0.to_string())),
        None => minisign::KeyPair::generate_unencrypted_keypair(),
    }
    .map_err(failed)?;
    let key = PublicKey(pair.pk);
    let text = pair.sk.to_box(Some("textnlp bundle secret key")).map_err(failed)?;
    let text = Zeroizing::new(text.into_string());
    write_new(secret, text.as_bytes(), 0o600)?;
    if let Err(error) = write_new(public, key.to_file().as_bytes(), 0o644) {
        // Half a pair is useless.
        let _ = std::fs::remove_file(secret);
        return Err(error);
    }
    Ok(key)
}

impl PublicKey {
    /// Reads the base64 text of a key, or the two lines of a `.pub` file.
    pub fn parse(text: &str) -> Result<PublicKey> {
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let shown: String = line.chars().take(80).collect();
        let invalid = |why: String| Error::Key { path: format!("`{shown}`"), why };
        let key = minisign::PublicKey::from_base64(line)
            .map_err(|error| invalid(format!("it is not a minisign public key ({error})")))?;
        // The crate reads the algorithm and does not compare it: "Ed", Ed25519.
        if !key.to_bytes().starts_with(b"Ed") {
            return Err(invalid("it is not a minisign public key (its algorithm is unknown)".to_owned()));
        }
        Ok(PublicKey(key))
    }

    /// Reads a `.pub` file.
    pub fn read(path: &Utf8Path) -> Result<PublicKey> {
        PublicKey::parse(&read_key(path)?).map_err(|error| match error {
            Error::Key { why, .. } => Error::Key { path: path.to_string(), why },
            error => error,
        })
    }

    /// The text for `minisign -P`.
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }

    /// 16 hexadecimal digits, as minisign shows it.
    pub fn id(&self) -> String {
        id(self.0.keynum())
    }

    /// The content of a `.pub` file.
    pub fn to_file(&self) -> String {
        format!("untrusted comment: textnlp bundle public key {}\n{}\n", self.id(), self.to_base64())
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Error;

    fn try_from(text: String) -> Result<PublicKey> {
        PublicKey::parse(&text)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_base64()
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// This text.
    pub fn new(text: String) -> Password {
        Password(Zeroizing::new(text))
    }

    /// Follows `secret:env:NAME` or `secret:file:PATH`; of a file the first line counts.
    pub fn resolve(reference: &str) -> Result<Password> {
        let failed = |why: &str| Error::Key { path: reference.to_owned(), why: why.to_owned() };
        if let Some(name) = reference.strip_prefix("secret:env:") {
            let text = std::env::var(name).map_err(|_| failed("the variable is not set"))?;
            return Ok(Password::new(text));
        }
        let Some(path) = reference.strip_prefix("secret:file:") else {
            return Err(failed("a password is given as secret:env:NAME or secret:file:PATH"));
        };
        let text = read_secret(Utf8Path::new(path))?;
        Ok(Password::new(text.lines().next().unwrap_or_default().to_owned()))
    }
}

impl SecretKey {
    /// Reads a secret key file of this program or of minisign.
    pub fn read(path: &Utf8Path, password: Option<&Password>) -> Result<SecretKey> {
        let text = read_secret(path)?;
        if let Some(key) = without_checksum(&text) {
            return Ok(SecretKey(key));
        }
        let boxed = minisign::SecretKeyBox::from_string(&text).map_err(|error| key_error(path, &error))?;
        let key = match password {
            // Without this branch the library would ask on the terminal.
            None => boxed.into_unencrypted_secret_key().map_err(|_| Error::Key {
                path: path.to_string(),
                why: "it is encrypted, or not a minisign secret key; give the password by reference".into(),
            })?,
            Some(password) => {
                boxed.into_secret_key(Some(password.0.to_string())).map_err(|error| key_error(path, &error))?
            }
        };
        Ok(SecretKey(key))
    }

    /// The public key.
    pub fn public(&self) -> Result<PublicKey> {
        minisign::PublicKey::from_secret_key(&self.0)
            .map(PublicKey)
            .map_err(|error| Error::Signature { why: error.to_string() })
    }
}

/// `minisign -G -W` (0.11) leaves the checksum of an unencrypted key at zero, which the library rejects.
fn without_checksum(text: &str) -> Option<minisign::SecretKey> {
    use base64::Engine as _;
    const LENGTH: usize = 158;
    const CHECKSUM: usize = 32;
    let bytes = Zeroizing::new(base64::engine::general_purpose::STANDARD.decode(text.lines().nth(1)?.trim()).ok()?);
    let unencrypted =
        bytes.len() == LENGTH && bytes[..4] == *b"Ed\0\0" && bytes[LENGTH - CHECKSUM..].iter().all(|byte| *byte == 0);
    if unencrypted { minisign::SecretKey::from_bytes(&bytes).ok() } else { None }
}

/// minisign shows the number as a little-endian integer.
pub(super) fn id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn key_error(path: &Utf8Path, error: &minisign::PError) -> Error {
    Error::Key { path: path.to_string(), why: error.to_string() }
}

/// Key files are small; a larger file is none.
pub(super) fn read_key(path: &Utf8Path) -> Result<String> {
    use std::io::Read as _;
    const MAX_KEY_FILE_BYTES: u64 = 16 << 10;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(text)
}

/// Reads a file that only its owner has access to.
fn read_secret(path: &Utf8Path) -> Result<Zeroizing<String>> {
    match textnlp_files::check_secret(path) {
        Ok(Some(exposed)) => Err(Error::Key { path: path.to_string(), why: format!("{exposed}; {}", exposed.fix()) }),
        _ => read_key(path).map(Zeroizing::new),
    }
}

fn write_new(path: &Utf8Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}
