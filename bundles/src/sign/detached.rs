//! Detached signatures: `FILE.minisig`, which minisign verifies too (`minisign -Vm FILE -P KEY`).

use std::io::Cursor;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::Replace;

use super::keys::{PublicKey, SecretKey, id, read_key};
use crate::error::{Error, Result};

/// Far above the size of a signed report.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Where the signature of a file lies.
pub fn signature_of(file: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{file}.minisig"))
}

/// The text of a signature over these bytes. `what` is signed too: the kind and the owner of the file.
pub fn sign_bytes(bytes: &[u8], key: &SecretKey, what: &str) -> Result<String> {
    let public = key.public()?;
    // A line break would end the comment.
    let what: String = what.chars().filter(|c| !c.is_control()).collect();
    let untrusted = format!("signature by key {}", public.id());
    let signed = minisign::sign(Some(&public.0), &key.0, bytes, Some(&what), Some(&untrusted));
    signed.map(|signature| signature.into_string()).map_err(|error| Error::Signature { why: error.to_string() })
}

/// Signs a file and writes the signature file. The name is signed too, so that no other file can replace it.
pub fn sign_file(file: &Utf8Path, key: &SecretKey) -> Result<PublicKey> {
    let bytes = read_whole(file)?;
    let text = sign_bytes(&bytes, key, &format!("file {}", file.file_name().unwrap_or_default()))?;
    Replace::mode(0o644).write(signature_of(file), text.as_bytes())?;
    let public = key.public()?;
    verify_file(file, &public)?;
    Ok(public)
}

fn read_whole(file: &Utf8Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(Error::io("open", file))?;
    opened.take(MAX_REPORT_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", file))?;
    if bytes.len() as u64 > MAX_REPORT_BYTES {
        return Err(Error::FileSignature { why: format!("{file} is larger than {MAX_REPORT_BYTES} bytes") });
    }
    Ok(bytes)
}

/// Returns the signed description of a file, if its signature is valid and by this key.
pub fn verify_file(file: &Utf8Path, key: &PublicKey) -> Result<String> {
    let signature = signature_of(file);
    let text = read_key(&signature)?;
    let invalid = |why| Error::FileSignature { why: format!("{signature} does not fit {file}: {why}") };
    // The number is not signed: it tells which key is missing, and verifies nothing.
    let signer = minisign::SignatureBox::from_string(&text).ok().map(|signature| id(signature.keynum()));
    if let Some(found) = signer.filter(|found| *found != key.id()) {
        return Err(Error::OtherKey { file: file.to_owned(), found, expected: key.id() });
    }
    verify_bytes(&read_whole(file)?, &text, key).map_err(invalid)
}

/// Returns the signed description of these bytes, if the signature is valid and by this key.
///
/// # Errors
/// Why it is not.
pub fn verify_bytes(bytes: &[u8], signature: &str, key: &PublicKey) -> std::result::Result<String, String> {
    let by_key = |error| format!("key {}: {error}", key.id());
    let signature = minisign::SignatureBox::from_string(signature).map_err(by_key)?;
    minisign::verify(&key.0, &signature, Cursor::new(bytes), true, false, false).map_err(by_key)?;
    signature.trusted_comment().map_err(by_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::keys::keygen;

    #[test]
    fn detached_signature_detects_a_changed_byte_and_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let public = keygen(&dir.join("a.key"), &dir.join("a.pub"), None).unwrap();
        let other = keygen(&dir.join("b.key"), &dir.join("b.pub"), None).unwrap();
        let key = SecretKey::read(&dir.join("a.key"), None).unwrap();
        let file = dir.join("report.json");
        std::fs::write(&file, "{}").unwrap();
        let text = sign_bytes(b"{}", &key, "drill d1\nof x").unwrap();
        std::fs::write(signature_of(&file), &text).unwrap();
        assert_eq!(verify_file(&file, &public).unwrap(), "drill d1of x");
        let error = verify_file(&file, &other).unwrap_err();
        assert!(matches!(&error, Error::OtherKey { found, .. } if *found == public.id()), "{error}");
        std::fs::write(&file, "{ }").unwrap();
        assert!(verify_file(&file, &public).is_err());
        std::fs::write(&file, "{}").unwrap();
        std::fs::write(signature_of(&file), text.replace("drill d1", "drill d2")).unwrap();
        assert!(verify_file(&file, &public).is_err(), "what it was signed as is signed too");
        assert_eq!(sign_file(&file, &key).unwrap(), public);
        assert_eq!(verify_file(&file, &public).unwrap(), "file report.json");
    }
}
