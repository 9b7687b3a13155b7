//! The signature of a bundle that exists, written into its block.

use camino::Utf8Path;

use super::{PublicKey, SecretKey, Signature};
use crate::error::{Error, Result};
use crate::layout;
use crate::open::Bundle;
use crate::volumes::Volumes;

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
