//! Values of secret references in calls, and the tag that says which version an object has: AWS shows neither passwords nor tokens.

use textnlp_provider::{Error, ErrorKind, Result, SecretName, SecretRef, SecretVersion};

use crate::api::Api;

/// The value, as text for one call.
pub(super) async fn value(api: &Api, secret: &SecretRef) -> Result<String> {
    let value = api.secrets.get(secret).await?;
    value.expose_text().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "read", format!("secret {}", secret.name)).because("it is not text")
    })
}

/// The tag of an object that has this version.
pub(super) fn tag(secret: &SecretRef) -> String {
    format!("{}@{}", secret.name, secret.version)
}

/// The version that a tag names.
pub(super) fn of_tag(tag: &str) -> Option<SecretRef> {
    let (name, version) = tag.rsplit_once('@')?;
    Some(SecretRef { name: SecretName(name.to_owned()), version: SecretVersion(version.to_owned()) })
}
