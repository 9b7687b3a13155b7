//! A ticket's text and what derives from it. The text alone grants access; the database holds only its digest and the
//! encrypted request.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use sha2::{Digest, Sha256};

/// The prefix of every ticket.
pub const PREFIX: &str = "tnst_";

/// A new ticket's text.
pub fn generate() -> Result<String, Unspecified> {
    let mut secret = [0u8; 32];
    aws_lc_rs::rand::fill(&mut secret)?;
    Ok(format!("{PREFIX}{}", hex::encode(secret)))
}

/// The digest that a ticket is stored under; `None` if the text is not a ticket.
pub fn digest(text: &str) -> Option<String> {
    let secret = text.strip_prefix(PREFIX)?;
    let is_ours = secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_ours.then(|| hex::encode(Sha256::digest(text)))
}

/// Encrypts the request that a ticket was issued for.
pub fn seal(text: &str, mut body: Vec<u8>) -> Result<Vec<u8>, Unspecified> {
    key(text)?.seal_in_place_append_tag(nonce(), Aad::empty(), &mut body)?;
    Ok(body)
}

/// Opens it again.
pub fn open(text: &str, mut sealed: Vec<u8>) -> Result<Vec<u8>, Unspecified> {
    let length = key(text)?.open_in_place(nonce(), Aad::empty(), &mut sealed)?.len();
    sealed.truncate(length);
    Ok(sealed)
}

fn key(text: &str) -> Result<LessSafeKey, Unspecified> {
    let bytes = Sha256::new().chain_update("textnlp stream ticket body\0").chain_update(text).finalize();
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes)?))
}

/// Each ticket's key seals one body only, so the nonce need not differ.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_request_opens_only_with_its_ticket() {
        let (text, other) = (generate().unwrap(), generate().unwrap());
        let sealed = seal(&text, b"a prompt".to_vec()).unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"prompt"));
        assert_eq!(open(&text, sealed.clone()).unwrap(), b"a prompt");
        assert!(open(&other, sealed.clone()).is_err());
        assert!(open(&text, sealed[1..].to_vec()).is_err());
    }

    #[test]
    fn malformed_tickets_have_no_digest() {
        let text = generate().unwrap();
        assert_eq!(digest(&text).unwrap().len(), 64);
        for text in ["", "tnst_", &text[1..], &text[..68], &format!("{text}0"), &text.to_uppercase(), "tnst_ü"] {
            assert_eq!(digest(text), None, "{text}");
        }
    }
}
