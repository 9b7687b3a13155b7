//! Bundles: what they are made of, and the sites that are installed from them.

pub mod advisories;
pub mod create;
pub mod installed;
mod parts;
pub mod preflight;
pub mod site;
pub mod user;

use camino::Utf8PathBuf;
pub(crate) use parts::registry_options;
use textnlp_bundle::{Authenticity, Error, PublicKey, TrustSet, scan};

use crate::{Exit, Failure};

/// The name of a model in a bundle, which has no slash: `NAME`, or `TENANT@NAME`. Names in environments have no `@`.
fn model_name(tenant: Option<&str>, name: &str) -> String {
    tenant.map_or_else(|| name.to_owned(), |tenant| format!("{tenant}@{name}"))
}

/// The same for an entry of `models` in the text of an environment.
fn model_name_of(entry: &serde_yaml::Mapping) -> Option<String> {
    let field = |key: &str| entry.get(key).and_then(serde_yaml::Value::as_str);
    Some(model_name(field("tenant"), field("name")?))
}

/// Converts an error of the bundle crate.
pub fn failed(error: Error) -> Failure {
    let hint = error.hint();
    let (exit, code) = match &error {
        Error::Stopped { .. } => (Exit::Stopped, "stopped"),
        Error::NotABundle { .. } => (Exit::Usage, "no_bundle"),
        Error::NewerFormat { .. } => (Exit::Usage, "newer_format"),
        Error::Inputs { .. } => (Exit::Usage, "wrong_inputs"),
        Error::Kind { .. } => (Exit::Usage, "other_kind"),
        Error::Key { .. } => (Exit::Usage, "wrong_key"),
        Error::Manifest { .. } | Error::Damaged { .. } | Error::Truncated { .. } | Error::Signature { .. } => {
            (Exit::Failed, "damaged")
        }
        Error::WrongBase { .. } => (Exit::Refused, "wrong_base"),
        Error::NotTrusted { .. } => (Exit::Refused, "not_trusted"),
        Error::Exposed(_) => (Exit::Refused, "root_exposed"),
        Error::OlderRelease { .. } => (Exit::Refused, "older_release"),
        Error::Room { .. } => (Exit::Failed, "no_space"),
        Error::NotReplaceable { .. } => (Exit::Refused, "not_replaceable"),
        Error::Busy { .. } => (Exit::Refused, "locked"),
        _ => (Exit::Failed, "bundle"),
    };
    let document = match &error {
        Error::Damaged { damages } => serde_json::json!({ "damages": damages }),
        Error::WrongBase { mismatches, .. } => serde_json::json!({ "mismatches": mismatches }),
        Error::Inputs { problems } | Error::Manifest { problems } => serde_json::json!({ "problems": problems }),
        _ => serde_json::json!({}),
    };
    Failure::new(exit, code, error).document(document).hinted(hint)
}

/// Converts an error of a scan.
pub fn scan_failed(error: scan::Error) -> Failure {
    let hint = error.hint();
    Failure::new(Exit::Failed, "scan", error).hint(hint)
}

/// The public keys of a flag.
pub fn public_keys(flag: &str, paths: &[Utf8PathBuf]) -> Result<Vec<PublicKey>, Failure> {
    // A key may also be the text of its second line, which starts with `RW`.
    if let Some(missing) = paths.iter().find(|path| !path.exists() && !path.as_str().starts_with("RW")) {
        return Err(Failure::usage("no_such_file", anyhow::anyhow!("the public key {missing} does not exist"))
            .hint(format!("{flag} takes the NAME.pub that `bundle keygen` wrote where the bundle was created")));
    }
    let keys = TrustSet::from_texts(paths.iter().map(|path| path.as_str())).map_err(failed)?;
    Ok(keys.keys().to_vec())
}

/// A short description of a bundle's signer.
pub fn signed(authenticity: &Authenticity) -> String {
    match authenticity {
        Authenticity::Verified { key } => format!("by key {key}, which is trusted here"),
        Authenticity::Unverified { why } => format!("unverified: {why}"),
    }
}

/// The platform of this machine, as in bundles.
pub fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The timestamp of every member.
pub fn epoch() -> Result<u64, Failure> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse().map_err(|_| {
            Failure::usage("usage", anyhow::anyhow!("SOURCE_DATE_EPOCH is `{text}`, not a number of seconds"))
                .hint("unset it, or: export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)")
        }),
        // 2026-01-01. A fixed default makes builds reproducible.
        Err(_) => Ok(1_767_225_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_tenants_have_names_of_their_own_in_bundles() {
        let name = |text: &str| model_name_of(&serde_yaml::from_str(text).unwrap());
        assert_eq!(name("{ name: own, source: bundled }").as_deref(), Some("own"));
        assert_eq!(name("{ name: own, tenant: acme }").as_deref(), Some("acme@own"));
        assert_eq!(name("{ tenant: acme }"), None);
    }
}
