//! Keys of vectors, and the form that vectors have in Redis.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// Changes with what keys or values mean, so that servers of other versions find nothing.
const FORMAT: u32 = 1;
/// The beginning of every key in Redis.
const PREFIX: &str = "textnlp:embedding:1:";
/// The beginning of every value in Redis: its format, and the numbers of the vector.
const MAGIC: [u8; 4] = *b"tnv1";
/// Bytes of the digest that binds a value to its key.
const CHECK: usize = 8;
/// Bytes of a value besides the numbers.
const HEADER: usize = MAGIC.len() + 4 + CHECK;

/// What vectors of a model depend on: a SHA-256 of its files and settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 32]);

/// The key of a text's vector: a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// The key of a text, as tokens, for a tenant of an environment. Tenants share no entry: neither an answer nor its time
    /// says what another one sent. Environments have tenants of the same names, and may share a Redis.
    pub(super) fn new(environment: &str, tenant: &str, model: &Fingerprint, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"textnlp-embedding\0");
        hash.update(FORMAT.to_le_bytes());
        // With the lengths, no other names and text have the same bytes.
        for name in [environment, tenant] {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
        hash.update(model.0);
        let mut bytes = Vec::with_capacity(4 * tokens.len());
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        hash.update(&bytes);
        Self(hash.finalize().into())
    }

    /// The key in Redis.
    pub(super) fn name(&self) -> String {
        format!("{PREFIX}{}", hex::encode(self.0))
    }

    fn check(&self, numbers: &[u8]) -> [u8; CHECK] {
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(numbers);
        let digest: [u8; 32] = hash.finalize().into();
        let mut check = [0; CHECK];
        check.copy_from_slice(&digest[..CHECK]);
        check
    }
}

/// The bytes of a value with this many numbers.
pub(super) fn value_bytes(width: usize) -> usize {
    HEADER + 4 * width
}

/// The form in Redis: format, count, digest, and 32-bit floats, least significant byte first.
pub(super) fn encode(key: &Key, vector: &[f32]) -> Vec<u8> {
    let numbers: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut value = Vec::with_capacity(value_bytes(vector.len()));
    value.extend_from_slice(&MAGIC);
    value.extend_from_slice(&(vector.len() as u32).to_le_bytes());
    value.extend_from_slice(&key.check(&numbers));
    value.extend_from_slice(&numbers);
    value
}

/// The vector of a value; `None` if it is not one that [`encode`] wrote for this key, with this many numbers.
pub(super) fn decode(key: &Key, width: usize, value: &[u8]) -> Option<Arc<[f32]>> {
    if value.len() != value_bytes(width) {
        return None;
    }
    let (magic, rest) = value.split_at_checked(MAGIC.len())?;
    let (count, rest) = rest.split_at_checked(4)?;
    let (check, numbers) = rest.split_at_checked(CHECK)?;
    let is_ours = magic == MAGIC && count == (width as u32).to_le_bytes() && check == key.check(numbers);
    let vector: Arc<[f32]> =
        numbers.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
    (is_ours && vector.iter().all(|number| number.is_finite())).then_some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Fingerprint = Fingerprint([7; 32]);

    #[test]
    fn keys_differ_by_environment_tenant_model_and_tokens() {
        let key = Key::new("production", "acme", &MODEL, &[1, 2, 3]);
        assert_eq!(key, Key::new("production", "acme", &MODEL, &[1, 2, 3]));
        for other in [
            Key::new("staging", "acme", &MODEL, &[1, 2, 3]),
            Key::new("productiona", "cme", &MODEL, &[1, 2, 3]),
            Key::new("production", "acmf", &MODEL, &[1, 2, 3]),
            Key::new("production", "", &MODEL, &[1, 2, 3]),
            Key::new("production", "acme", &Fingerprint([8; 32]), &[1, 2, 3]),
            Key::new("production", "acme", &MODEL, &[1, 2]),
            Key::new("production", "acme", &MODEL, &[1, 3, 2]),
            Key::new("production", "acme", &MODEL, &[1, 2, 3, 0]),
        ] {
            assert_ne!(key, other);
        }
        let name = key.name();
        let digits = name.strip_prefix(PREFIX).unwrap();
        assert!(digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{name}");
    }

    #[test]
    fn damaged_values_are_no_vectors() {
        let (key, other) = (Key::new("production", "acme", &MODEL, &[1]), Key::new("production", "acme", &MODEL, &[2]));
        let vector = [0.5_f32, -0.25, 1.0];
        let value = encode(&key, &vector);
        assert_eq!(value.len(), value_bytes(3));
        assert_eq!(decode(&key, 3, &value).as_deref(), Some(vector.as_slice()));
        assert_eq!(decode(&other, 3, &value), None);
        assert_eq!(decode(&key, 2, &value), None);
        assert_eq!(decode(&key, 4, &value), None);
        for length in 0..value.len() {
            assert_eq!(decode(&key, 3, &value[..length]), None, "{length} bytes");
        }
        for place in 0..value.len() {
            let mut damaged = value.clone();
            damaged[place] ^= 1;
            assert_eq!(decode(&key, 3, &damaged), None, "byte {place}");
        }
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(decode(&key, 1, &encode(&key, &[number])), None, "{number}");
        }
    }
}
