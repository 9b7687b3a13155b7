//! Signatures of bundles: a minisign signature over the manifest, and trusted keys from outside the bundle.
//!
//! The signed comment ends with the line of `SHA256SUMS` for `sha256sum -c`, so that minisign and sha256sum verify a whole
//! bundle before anything in it runs ([`STOCK_VERIFICATION`]).

mod detached;

use std::fs::OpenOptions;
use std::io::{Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::layout::{self, MANIFEST_NAME, SIGNATURE, SIGNATURE_NAME, SUMS_NAME};
use crate::open::Bundle;
use crate::volumes::Volumes;
pub use detached::{sign_bytes, sign_file, signature_of, verify_bytes, verify_file};

/// A public key, in its base64 text where it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(minisign::PublicKey);

/// A secret key. It cannot be printed.
pub struct SecretKey(minisign::SecretKey);

/// The password of a secret key. It cannot be printed and is wiped on drop.
pub struct Password(Zeroizing<String>);

/// The trusted keys of this site.
#[derive(Clone, Debug, Default)]
pub struct TrustSet {
    keys: Vec<PublicKey>,
}

/// The content of the signature block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Nothing.
    None,
    /// A signature that fits the manifest and the key that it names; the key may still be untrusted.
    Valid {
        /// The key id that the signature claims.
        key: PublicKey,
    },
    /// Something else.
    Invalid {
        /// What is wrong.
        why: String,
    },
}

/// The verified origin of a bundle. Recorded with an installed site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "authenticity", rename_all = "snake_case", deny_unknown_fields)]
pub enum Authenticity {
    /// Signed with a trusted key.
    Verified {
        /// Its id, 16 hexadecimal digits.
        key: String,
    },
    /// Unverified origin.
    Unverified {
        /// `it is not signed`, `it is signed with the unknown key …`.
        why: String,
    },
}

impl Authenticity {
    /// Whether a trusted key signed.
    pub fn is_verified(&self) -> bool {
        matches!(self, Authenticity::Verified { .. })
    }
}

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

/// Signs a bundle in place: writes its signature block only. Signing again replaces the signature.
pub fn sign(path: &Utf8Path, key: &SecretKey) -> Result<PublicKey> {
    let bundle = Bundle::open(path)?;
    let member = bundle.layout.members[0];
    let block = bundle.layout.members[1];
    let volumes = Volumes::open(path, true)?;
    let _lock = volumes.lock()?;
    let mut manifest = vec![0; member.size as usize];
    volumes.read_at(&mut manifest, member.data_at)?;
    let public = key.public()?;
    let sums = layout::sums(&manifest, bundle.manifest());
    volumes.write_at(&key.block(&manifest, &sums)?, block.data_at)?;
    volumes.sync()?;
    match Bundle::open(path)?.signature() {
        Signature::Valid { key } if *key == public => Ok(public),
        _ => Err(Error::Signature { why: "the signature that was just written is invalid".into() }),
    }
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

    /// The whole signature block over a manifest and its `SHA256SUMS`.
    fn block(&self, manifest: &[u8], sums: &[u8]) -> Result<Vec<u8>> {
        let key = self.public()?;
        let failed = |error: minisign::PError| Error::Signature { why: error.to_string() };
        let signed = minisign::sign(
            Some(&key.0),
            &self.0,
            manifest,
            Some(&trusted_comment(&key, sums)),
            Some(&untrusted_comment(&key)),
        );
        let mut block = signed.map_err(failed)?.into_string().into_bytes();
        if block.len() as u64 > SIGNATURE {
            return Err(Error::Signature { why: format!("it has {} bytes; the maximum is {SIGNATURE}", block.len()) });
        }
        block.resize(SIGNATURE as usize, b'\n');
        Ok(block)
    }
}

/// The key is in the signed comment, so that a flipped bit is noticed without a key. It does not prove the signer.
fn trusted_comment(key: &PublicKey, sums: &[u8]) -> String {
    format!("{}, {}  {SUMS_NAME}", key_comment(key), Digest::of(sums).hex())
}

/// The signed comment of bundles whose signature does not cover `SHA256SUMS`.
fn key_comment(key: &PublicKey) -> String {
    format!("{TRUSTED}{}", key.to_base64())
}

fn untrusted_comment(key: &PublicKey) -> String {
    format!("signature of a textnlp bundle by key {}", key.id())
}

const TRUSTED: &str = "textnlp bundle, key ";

/// The files that [`STOCK_VERIFICATION`] reads.
pub const STOCK_VERIFICATION_FILES: [&str; 3] = [MANIFEST_NAME, SIGNATURE_NAME, SUMS_NAME];

/// Verifies `install.sh` and the programs of an extracted bundle with tools that the target machine had before. `KEY` is
/// the public key's file.
pub const STOCK_VERIFICATION: [&str; 2] = [
    "minisign -QVm manifest.json -p KEY | sed 's/.*, //' | sha256sum -c",
    "grep -E '  (install.sh|bin/.*)$' SHA256SUMS | sha256sum -c",
];

impl Signature {
    /// Reads a block of any bytes.
    pub(crate) fn read(block: &[u8], manifest: &[u8], sums: &[u8]) -> Signature {
        let end = block.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
        if end == 0 {
            return Signature::None;
        }
        match valid(&block[..end], manifest, sums) {
            Ok(key) => Signature::Valid { key },
            Err(why) => Signature::Invalid { why },
        }
    }

    /// Verifies it with the trusted keys.
    pub fn authenticity(&self, trust: &TrustSet) -> Authenticity {
        match self {
            Signature::None => Authenticity::Unverified { why: "it is not signed".into() },
            Signature::Invalid { why } => Authenticity::Unverified { why: format!("its signature is invalid: {why}") },
            Signature::Valid { key } if trust.keys.contains(key) => Authenticity::Verified { key: key.id() },
            Signature::Valid { key } => Authenticity::Unverified {
                why: format!("it is signed with key {}, which is not trusted here", key.id()),
            },
        }
    }
}

fn valid(block: &[u8], manifest: &[u8], sums: &[u8]) -> Result<PublicKey, String> {
    let text = std::str::from_utf8(block).map_err(|_| "it is not text".to_owned())?;
    let lines: Vec<&str> = text.lines().collect();
    let [_, signature, comment, global] = lines[..] else {
        return Err(format!("it has {} lines instead of 4", lines.len()));
    };
    // The library does not check lengths, so they are checked here: 74 and 64 bytes.
    if signature.len() != 100 || global.len() != 88 {
        return Err("its lines do not have the length of a signature".into());
    }
    let comment = comment.strip_prefix("trusted comment: ").ok_or("it has no signed comment")?;
    let named = comment.strip_prefix(TRUSTED).ok_or("its comment does not name the key")?;
    let key = PublicKey::parse(named.split_once(", ").map_or(named, |(key, _)| key))
        .map_err(|_| "its comment does not name a key".to_owned())?;
    let parsed = minisign::SignatureBox::from_string(text).map_err(|error| error.to_string())?;
    // A signature has one canonical text: any other change is found by encoding it again.
    let expected_comment = parsed.untrusted_comment().ok() == Some(untrusted_comment(&key));
    if !expected_comment
        || parsed.to_string().trim_end() != text
        || ![trusted_comment(&key, sums), key_comment(&key)].contains(&comment.to_owned())
    {
        return Err("it is not in canonical form".into());
    }
    minisign::verify(&key.0, &parsed, Cursor::new(manifest), true, false, false).map_err(|error| error.to_string())?;
    Ok(key)
}

impl TrustSet {
    /// Trusts these keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> TrustSet {
        TrustSet { keys: keys.into_iter().collect() }
    }

    /// Each text is a key or the path of a `.pub` file.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<TrustSet> {
        let key = |text: &str| {
            if Utf8Path::new(text).exists() { PublicKey::read(text.into()) } else { PublicKey::parse(text) }
        };
        Ok(TrustSet { keys: texts.into_iter().map(key).collect::<Result<_>>()? })
    }

    /// The trusted keys.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }

    /// Whether no key is trusted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
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
fn id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn key_error(path: &Utf8Path, error: &minisign::PError) -> Error {
    Error::Key { path: path.to_string(), why: error.to_string() }
}

/// Key files are small; a larger file is none.
fn read_key(path: &Utf8Path) -> Result<String> {
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
