//! Signatures of bundles: a minisign signature over the manifest, and trusted keys from outside the bundle.
//!
//! The signed comment ends with the line of `SHA256SUMS` for `sha256sum -c`, so that minisign and sha256sum verify a whole
//! bundle before anything in it runs ([`STOCK_VERIFICATION`]).

mod detached;
mod in_place;
mod keys;

use std::io::Cursor;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

use crate::error::{Error, Result};
use crate::layout::{MANIFEST_NAME, SIGNATURE, SIGNATURE_NAME, SUMS_NAME};
pub use detached::{sign_bytes, sign_file, signature_of, verify_bytes, verify_file};
pub use in_place::sign;
pub use keys::{Password, PublicKey, SecretKey, keygen};

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

impl SecretKey {
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
