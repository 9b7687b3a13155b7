//! Generated secrets: durable in the store before any other program gets them.

use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::component::{ExternalSecret, SecretRecipe};
use textnlp_provider::{
    Error, ErrorKind, Progress, ROTATION, Result, Rotation, Secret, SecretName, SecretRef, SecretVersion,
};

use super::Work;
use crate::Keys;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::SecretSpec;
use crate::table::KeyKind;
use crate::trust;
use crate::work::{Observation, ObservedObject};

/// The one version of a secret that all sites share.
const SHARED: &str = "shared";

/// How long a call waits for a generated value. The engine allows ten seconds for a call.
const WAIT: Duration = Duration::from_secs(4);
/// Limits of what an environment may request.
const RANDOM_MAX: u32 = 4096;

pub(crate) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: SecretSpec = work.spec()?;
    let version = match (&spec.recipe, &spec.given) {
        _ if spec.shared => SecretVersion(SHARED.to_owned()),
        (_, Some(given)) => SecretVersion(given.version.clone()),
        _ => managed_version(work, &spec.name).await?,
    };
    let cloud_id = work.folder.cloud_id(&format!("secrets/{}", spec.name))?;
    let mut facts = Map::new();
    facts.insert("version".to_owned(), json!(version));
    work.claim(&cloud_id, facts.clone())?;
    let there = work.provider.secrets().versions(&spec.name).await?.contains(&version);
    if !there {
        let (recipe, environment) = (spec.clone(), work.op.environment.to_string());
        // A key with the same public id replaces the old one in every database at once.
        let same_id = requested_rotation(work)?.is_some_and(|rotation| !rotation.new_id);
        let public_id = work
            .op
            .recorded
            .as_ref()
            .filter(|_| same_id)
            .and_then(|recorded| recorded.outputs.get("public_id").and_then(Value::as_str).map(str::to_owned));
        let make = move || match (&recipe.recipe, &recipe.given) {
            (Some(recipe), None) => generate(recipe, public_id.as_deref()),
            (None, Some(given)) => read_unchanged(given, &environment),
            _ => Err("it has either a `recipe` or is `given`".to_owned()),
        };
        let Some(made) = work.provider.made(cloud_id.as_str(), WAIT, make).await else {
            return Ok(work.pending(Value::Null, "its value is being generated"));
        };
        let value = made.map_err(|error| work.fails(error))?.map_err(|why| work.invalid(why))?;
        match work.provider.secrets().put(&spec.name, &version, &value).await {
            // Another site was first: its version is used by all.
            Err(error) if spec.shared && error.kind == ErrorKind::Conflict => {}
            other => other?,
        }
    }
    let marker = work.complete(&cloud_id, facts)?;
    work.done(&marker).await
}

/// The version to use: an existing managed one, else one named after this operation.
async fn managed_version(work: &Work<'_>, name: &SecretName) -> Result<SecretVersion> {
    version_for(work, name, "version").await
}

/// See [`managed_version`]; `fact` is the marker's field with the version.
pub(super) async fn version_for(work: &Work<'_>, name: &SecretName, fact: &str) -> Result<SecretVersion> {
    let versions = work.provider.secrets().versions(name).await?;
    if requested_rotation(work)?.is_some() {
        // An interrupted attempt of this operation goes on with its own version.
        let begun = work.marker.as_ref().filter(|marker| marker.operation == work.op.id);
        let begun = begun.and_then(|marker| marker.fact(fact)).map(|version| SecretVersion(version.to_owned()));
        return Ok(begun.unwrap_or_else(|| unused_version(work, &versions)));
    }
    let remembered = work.marker.as_ref().and_then(|marker| marker.fact(fact)).map(|v| SecretVersion(v.to_owned()));
    if let Some(remembered) = remembered {
        return Ok(remembered);
    }
    let own = SecretVersion(work.op.id.to_string());
    match (versions.last(), &work.op.recorded) {
        (None, _) => Ok(own),
        // It is recorded, so it is managed although its marker is gone.
        (Some(newest), Some(_)) => Ok(newest.clone()),
        (Some(_), None) => {
            let error = Error::new(ErrorKind::Exists, "create secret", name.to_string())
                .because("the store already has a secret with that name");
            Err(error.hint("it was left by another environment: remove it from the state folder's `secrets`"))
        }
    }
}

/// The rotation that this operation carries out.
pub(super) fn requested_rotation(work: &Work<'_>) -> Result<Option<Rotation>> {
    let change = work.op.changes.iter().find(|change| change.field == ROTATION);
    let requested = change.and_then(|change| change.after.clone());
    requested.map(|value| serde_json::from_value(value).map_err(|error| work.invalid(error))).transpose()
}

/// A version that the store does not have. After a lost journal, operation numbers repeat; a new value must not get the
/// version of an old one.
fn unused_version(work: &Work<'_>, versions: &[SecretVersion]) -> SecretVersion {
    let own = work.op.id.to_string();
    let mut names = std::iter::once(own.clone()).chain((2u32..).map(|number| format!("{own}-{number}")));
    let unused = names.find(|name| versions.iter().all(|version| version.0 != *name));
    SecretVersion(unused.unwrap_or_else(|| work.op.id.to_string()))
}

pub(crate) async fn remove(work: &Work<'_>) -> Result<()> {
    let spec: SecretSpec = work.applied()?;
    if spec.shared && is_used_elsewhere(work, &spec.name) {
        return Ok(());
    }
    work.provider.secrets().delete(&spec.name).await
}

/// Whether another site uses the same secret.
fn is_used_elsewhere(work: &Work<'_>, name: &SecretName) -> bool {
    let sites = work.folder.root().parent().into_iter().flat_map(|sites| sites.read_dir_utf8()).flatten().flatten();
    let others = sites.filter(|site| site.path() != work.folder.root()).map(|site| SiteFolder::at(site.path()));
    let is_it = |marker: &Marker| {
        KeyKind::of(&marker.kind) == Some(KeyKind::Secret)
            && marker.spec.get("name").and_then(Value::as_str) == Some(&name.0)
    };
    // An unreadable site may use it.
    others.into_iter().any(|site| Marker::all(&site).map_or(true, |markers| markers.iter().any(is_it)))
}

pub(crate) async fn observe(keys: &Keys, marker: &Marker) -> Result<Observation> {
    let spec: SecretSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let Some(version) = marker.fact("version") else { return Ok(Observation::Absent) };
    let secret = SecretRef { name: spec.name, version: SecretVersion(version.to_owned()) };
    let value = match keys.secrets().get(&secret).await {
        Ok(value) => value,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(error),
    };
    let mut observed = ObservedObject::default();
    observed.output("secret", json!(secret));
    match spec.recipe.as_ref().map_or(Ok(Vec::new()), |recipe| outputs(recipe, &value)) {
        Ok(public) => observed.outputs.extend(public),
        Err(why) => drop(observed.drift("value", why)),
    }
    Ok(Observation::There(observed))
}

/// The public properties of a secret.
fn outputs(recipe: &SecretRecipe, value: &Secret) -> Result<Vec<(String, Value)>, String> {
    Ok(match recipe {
        SecretRecipe::ApiKey => {
            let text = value.expose_text().ok_or("it is not text")?;
            let mut parts = text.split('_');
            let public = match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some("tnlp"), Some(public), Some(secret), None) if !public.is_empty() && secret.len() == 64 => public,
                _ => return Err("it does not have the form of an API key".to_owned()),
            };
            vec![
                ("public_id".to_owned(), json!(public)),
                ("sha256".to_owned(), json!(hex::encode(Sha256::digest(value.expose())))),
            ]
        }
        SecretRecipe::RsaSigningKey => {
            vec![("public_pem".to_owned(), json!(trust::public_pem(value).map_err(|error| error.to_string())?))]
        }
        SecretRecipe::Password(_) | SecretRecipe::Random(_) | SecretRecipe::AccountKey => Vec::new(),
    })
}

/// A user-provided secret, if it is unchanged since the plan.
fn read_unchanged(given: &ExternalSecret, environment: &str) -> Result<Secret, String> {
    let value = given.read().ok_or_else(|| format!("`{}` no longer exists", given.source))?;
    if given.mark(environment, value.expose()) != given.version {
        return Err(format!("`{}` changed after the plan was made: plan again", given.source));
    }
    Ok(value)
}

/// Generates a value. An API key keeps `public_id`, if there is one.
fn generate(recipe: &SecretRecipe, public_id: Option<&str>) -> Result<Secret, String> {
    match recipe {
        // The format of the server: a public id of 64 bits, a secret of 256.
        SecretRecipe::ApiKey => {
            let public = match public_id {
                Some(public) => public.to_owned(),
                None => hex::encode(random(8)?),
            };
            Ok(Secret::new(format!("tnlp_{public}_{}", hex::encode(random(32)?))))
        }
        SecretRecipe::Password(length) if (8..=RANDOM_MAX).contains(length) => {
            // 64 characters: six bits of each byte, all equally likely.
            const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let bytes = random(*length as usize)?;
            Ok(Secret::new(bytes.iter().map(|byte| LETTERS[usize::from(byte & 63)]).collect::<Vec<u8>>()))
        }
        SecretRecipe::Random(bytes) if (1..=RANDOM_MAX).contains(bytes) => {
            Ok(Secret::new(hex::encode(random(*bytes as usize)?)))
        }
        SecretRecipe::Password(_) => Err(format!("a password has 8 to {RANDOM_MAX} characters")),
        SecretRecipe::Random(_) => Err(format!("a random secret has 1 to {RANDOM_MAX} bytes")),
        SecretRecipe::RsaSigningKey => trust::new_rsa_key().map_err(|error| error.to_string()),
        SecretRecipe::AccountKey => trust::new_key().map_err(|error| error.to_string()),
    }
}

fn random(length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0u8; length];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers are available".to_owned())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_key_id_is_public_and_the_key_is_not() {
        let key = generate(&SecretRecipe::ApiKey, None).unwrap();
        let outputs = outputs(&SecretRecipe::ApiKey, &key).unwrap();
        let text = key.expose_text().unwrap().to_owned();
        assert!(text.starts_with(&format!("tnlp_{}_", outputs[0].1.as_str().unwrap())));
        assert!(!outputs.iter().any(|(_, value)| value.as_str() == Some(&text)));
        assert_ne!(generate(&SecretRecipe::ApiKey, None).unwrap(), key);
        let public = outputs[0].1.as_str().unwrap();
        let rotated = generate(&SecretRecipe::ApiKey, Some(public)).unwrap();
        assert_ne!(rotated, key);
        assert_eq!(super::outputs(&SecretRecipe::ApiKey, &rotated).unwrap()[0], outputs[0], "the id stays");
    }

    #[test]
    fn secret_recipe_lengths_are_bounded() {
        for bad in [SecretRecipe::Password(7), SecretRecipe::Password(u32::MAX), SecretRecipe::Random(0)] {
            assert!(generate(&bad, None).is_err(), "{bad:?}");
        }
        assert_eq!(generate(&SecretRecipe::Password(20), None).unwrap().expose().len(), 20);
        assert_eq!(generate(&SecretRecipe::Random(16), None).unwrap().expose().len(), 32);
    }
}
