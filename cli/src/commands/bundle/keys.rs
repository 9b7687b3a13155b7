//! `bundle keygen`, `bundle sign` and `bundle trust`.

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::{Password, PublicKey, SecretKey, Site};

use super::failed;
use super::install::absolute;
use crate::bundle_args::{Keygen, Root, Sign};
use crate::commands::prelude::*;

/// `bundle keygen`.
pub fn keygen(args: &Keygen) -> Result<Success, Failure> {
    let with = |ending: &str| Utf8PathBuf::from(format!("{}.{ending}", args.out));
    let (secret, public) = (with("key"), with("pub"));
    if let Some(there) = [&secret, &public].into_iter().find(|path| path.exists()) {
        let error = anyhow::anyhow!("{there} exists, and a key is never overwritten");
        return Err(Failure::usage("key_exists", error).hint("choose another name: --out NAME"));
    }
    let password = password(args.password_file.as_deref())?;
    let key = textnlp_bundle::keygen(&secret, &public, password.as_ref()).map_err(failed)?;
    let mut text = format!(
        "wrote {secret}, the secret key: keep it where bundles are created\nwrote {public}, the public key: copy it to the target machine separately from bundles\nkey id {}",
        key.id()
    );
    if password.is_none() {
        text.push_str("\nThe secret key has no password: anyone who can read the file can sign. --password-file protects it with a password.");
    }
    Ok(Success::new(
        text,
        json!({ "secret_key": secret, "public_key": public, "key": key.id(), "encrypted": password.is_some() }),
    ))
}

/// `bundle sign`.
pub fn sign(args: &Sign) -> Result<Success, Failure> {
    if args.detached {
        let secret = secret_key(&args.key, args.password_file.as_deref())?;
        let id = textnlp_bundle::sign_file(&args.bundle, &secret).map_err(failed)?.id();
        let signature = textnlp_bundle::signature_of(&args.bundle);
        let document = json!({ "file": args.bundle, "signature": signature, "key": id });
        return Ok(Success::new(format!("wrote {signature}, signed by key {id}"), document));
    }
    let id = sign_with(&args.bundle, &args.key, args.password_file.as_deref())?;
    Ok(Success::new(format!("{} is signed by key {id}", args.bundle), json!({ "file": args.bundle, "key": id })))
}

/// Signs a bundle and returns the id of the key.
pub fn sign_with(bundle: &Utf8Path, key: &Utf8Path, password_file: Option<&Utf8Path>) -> Result<String, Failure> {
    let public = textnlp_bundle::sign(bundle, &secret_key(key, password_file)?).map_err(failed)?;
    Ok(public.id())
}

fn secret_key(path: &Utf8Path, password_file: Option<&Utf8Path>) -> Result<SecretKey, Failure> {
    SecretKey::read(path, password(password_file)?.as_ref()).map_err(failed)
}

/// `bundle trust`.
pub fn trust(session: &Session, args: &Root) -> Result<Success, Failure> {
    let root = absolute(session, &args.root);
    let Some(pinned) = Site::new(&root).pinned_keys().map_err(failed)? else {
        let text =
            format!("no key is pinned in {root}: the first bundle that is verified with --trust KEY.pub pins the keys");
        let document = json!({ "root": root, "trusted": [], "revoked": [], "newest": null });
        return Ok(Success::new(text, document));
    };
    let mut text = format!("{root} accepts bundles that one of these keys signed");
    for (what, keys) in [("trusted", &pinned.trusted), ("revoked", &pinned.revoked)] {
        for key in keys {
            text.push_str(&format!("\n  {what}  {}  {}", key.id(), key.to_base64()));
        }
    }
    text.push_str(&format!("\n  newest   {}; older ones need --downgrade", pinned.newest));
    let listed = |keys: &[PublicKey]| -> Vec<_> {
        keys.iter().map(|key| json!({ "id": key.id(), "key": key.to_base64() })).collect()
    };
    Ok(Success::new(
        text,
        json!({ "root": root, "trusted": listed(&pinned.trusted), "revoked": listed(&pinned.revoked), "newest": pinned.newest }),
    ))
}

/// The ids of keys.
pub fn ids(keys: &[PublicKey]) -> Vec<String> {
    keys.iter().map(PublicKey::id).collect()
}

fn password(file: Option<&Utf8Path>) -> Result<Option<Password>, Failure> {
    match file {
        Some(file) => Password::resolve(&format!("secret:file:{file}")).map(Some).map_err(failed),
        // All signing commands use the same variable. Command lines are visible to other users.
        None if std::env::var_os("TEXTNLP_KEY_PASSWORD").is_some() => {
            Password::resolve("secret:env:TEXTNLP_KEY_PASSWORD").map(Some).map_err(failed)
        }
        None => Ok(None),
    }
}
