//! Whose signature a backup has. Who can write to the destination can replace a backup: encryption needs no secret.

use camino::Utf8Path;
use textnlp_orchestrator::backup::{Manifest, PublicKey};
use textnlp_orchestrator::dr::report::own_key;

use super::restore::lineage_in;
use crate::failure::Failure;

/// Whose signature a restore requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequiredSigner {
    /// None, by the operator's decision.
    Any,
    /// The one of this key.
    Key(PublicKey),
}

/// The key of the deployment in this folder, if the backup is of the same one.
pub(super) fn recorded(state: &Utf8Path, manifest: &Manifest) -> Option<RequiredSigner> {
    let is_same = lineage_in(state) == Some(manifest.lineage);
    own_key(state).ok().filter(|_| is_same).map(RequiredSigner::Key)
}

/// Checks whether a backup has the required signature.
pub(super) fn check(file: &Utf8Path, manifest: &Manifest, required: Option<&RequiredSigner>) -> Result<(), Failure> {
    let Some(RequiredSigner::Key(key)) = required else { return Ok(()) };
    let error = match &manifest.signer {
        Some(signer) if signer == key => return Ok(()),
        Some(other) => anyhow::anyhow!("{file} is signed by {}, not by {}", other.to_base64(), key.to_base64()),
        None => anyhow::anyhow!("{file} is not signed, and {} has to sign it", key.to_base64()),
    };
    Err(Failure::refused("other_signer", error).hint(
        "use another copy of the backup: this one may be forged. If an earlier version of this program made it and you trust its origin: --signed-by any",
    ))
}
