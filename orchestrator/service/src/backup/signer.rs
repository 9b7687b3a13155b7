//! Whose signature a backup has. Who can write to the destination can replace a backup: encryption needs no secret.

use camino::Utf8Path;
use textnlp_orchestrator::backup::{Manifest, PublicKey};
use textnlp_orchestrator::dr::report::own_key;

use super::restore::lineage_in;
use crate::Failure;

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

/// The signer that a verification requires: the restored database is started, and its author's code runs in it.
pub(super) fn of_verification(
    state: &Utf8Path,
    given: Option<RequiredSigner>,
    file: &Utf8Path,
) -> Result<RequiredSigner, Failure> {
    given.or_else(|| own_key(state).ok().map(RequiredSigner::Key)).ok_or_else(|| {
        let error = anyhow::anyhow!(
            "{file} can be by anyone: this machine has no key of the environment that signs its backups"
        );
        Failure::refused("unknown_signer", error)
            .hint("give the key that `backup create` printed: --signed-by RW…; `--signed-by any` trusts the file")
    })
}

/// Checks whether a backup has the required signature.
pub(super) fn check(file: &Utf8Path, manifest: &Manifest, required: Option<&RequiredSigner>) -> Result<(), Failure> {
    let Some(RequiredSigner::Key(key)) = required else { return Ok(()) };
    let key_text = key.to_base64();
    let (error, hint) = match &manifest.signer {
        Some(signer) if signer == key => return Ok(()),
        Some(other) => {
            let other = other.to_base64();
            let hint = format!(
                "if `secret rotate report` printed {other} as the old key, and you know that the file is yours: --signed-by {other}. Else use another copy of the backup: this one may be forged"
            );
            (anyhow::anyhow!("{file} is signed by {other}, not by {key_text}"), hint)
        }
        None => {
            let hint = "use another copy of the backup: this one may be forged. If an earlier version of this program made it and you trust its origin: --signed-by any";
            (anyhow::anyhow!("{file} is not signed, and {key_text} has to sign it"), hint.to_owned())
        }
    };
    Err(Failure::refused("other_signer", error).hint(hint))
}
