//! A local certificate authority: its key in the secret store, its certificate in a file that clients trust.

use serde_json::{Map, json};
use textnlp_provider::{Error, ErrorKind, Progress, Result, SecretRef, SecretVersion};

use super::Work;
use super::secret::version_for;
use crate::Keys;
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::AuthoritySpec;
use crate::trust;
use crate::work::{Observation, ObservedObject};

/// The first call: the key. The certificate comes with [`certify`].
pub(crate) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: AuthoritySpec = work.spec()?;
    work.refuse_strangers(&work.folder.inside(&spec.certificate_file)?)?;
    let version = version_for(work, &spec.key, "key_version").await?;
    let mut facts = Map::new();
    facts.insert("key_version".to_owned(), json!(version));
    if let Some(sha256) = work.marker.as_ref().and_then(|marker| marker.fact("sha256")) {
        facts.insert("sha256".to_owned(), json!(sha256));
    }
    work.claim(&work.folder.cloud_id(&spec.certificate_file)?, facts)?;
    let secrets = work.provider.secrets();
    if !secrets.versions(&spec.key).await?.contains(&version) {
        let key = trust::new_key().map_err(|error| work.fails(error))?;
        secrets.put(&spec.key, &version, &key).await?;
    }
    Ok(work.pending(json!({ "step": "certify" }), "signs its own certificate"))
}

/// The second call: the certificate. A valid one stays, because clients trust it.
pub(crate) async fn certify(work: &Work<'_>) -> Result<Progress> {
    let spec: AuthoritySpec = work.spec()?;
    let Some(version) = work.marker.as_ref().and_then(|marker| marker.fact("key_version")) else {
        // The first call was never made, or its key is gone.
        return put(work).await;
    };
    let secret = SecretRef { name: spec.key.clone(), version: SecretVersion(version.to_owned()) };
    let key = match work.provider.secrets().get(&secret).await {
        Err(error) if error.kind == ErrorKind::NotFound => return put(work).await,
        other => other?,
    };
    let path = work.folder.inside(&spec.certificate_file)?;
    let there = files::read_bounded(&path, files::TEXT_MAX).ok();
    let seen = there.and_then(|pem| trust::inspect(&pem, Some(&pem), Some(&key)).ok());
    let now = jiff::Timestamp::now();
    let same_days = work.marker.as_ref().is_some_and(|marker| marker.spec.get("days") == work.op.spec.get("days"));
    let good = seen.filter(|seen| {
        seen.signed == Some(true)
            && seen.key_matches == Some(true)
            && seen.not_after > now
            && same_days
            && !changes_days(work)
    });
    let sha256 = match good {
        Some(seen) => seen.sha256,
        None => {
            let pem = trust::authority(&key, &spec.subject, spec.days, now).map_err(|error| work.invalid(error))?;
            let folder = path.parent().unwrap_or(work.folder.root());
            files::make_folder(folder).map_err(work.io(folder))?;
            files::put(&path, pem.as_bytes(), 0o644).map_err(work.io(&path))?;
            trust::inspect(pem.as_bytes(), None, None).map_err(|error| work.fails(error))?.sha256
        }
    };
    let mut facts = Map::new();
    facts.insert("key_version".to_owned(), json!(version));
    facts.insert("sha256".to_owned(), json!(sha256));
    let marker = work.complete(&work.folder.cloud_id(&spec.certificate_file)?, facts)?;
    work.done(&marker).await
}

fn changes_days(work: &Work<'_>) -> bool {
    work.op.changes.iter().any(|change| change.field == "days")
}

pub(crate) async fn remove(work: &Work<'_>) -> Result<()> {
    let spec: AuthoritySpec = work.applied()?;
    let path = work.folder.inside(&spec.certificate_file)?;
    files::remove_file(&path).map_err(work.io(&path))?;
    work.provider.secrets().delete(&spec.key).await
}

pub(crate) async fn observe(keys: &Keys, folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: AuthoritySpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.certificate_file)?;
    let pem = match files::read_bounded(&path, files::TEXT_MAX) {
        Ok(pem) => Some(pem),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", path.as_str(), error)),
    };
    let version = marker.fact("key_version").map(|version| SecretVersion(version.to_owned()));
    let secret = version.map(|version| SecretRef { name: spec.key.clone(), version });
    let key = match &secret {
        None => None,
        Some(secret) => match keys.secrets().get(secret).await {
            Ok(key) => Some(key),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        },
    };
    if pem.is_none() && key.is_none() {
        return Ok(Observation::Absent);
    }
    let mut observed = ObservedObject::default();
    observed.output("ca_file", path.as_str()).output("sha256", marker.fact("sha256").unwrap_or_default());
    observed.output("secret", json!(secret));
    if key.is_none() {
        observed.drift("key", "its key is gone");
    }
    let Some(pem) = pem else {
        observed.drift("certificate", "its file is gone");
        return Ok(Observation::There(observed));
    };
    match trust::inspect(&pem, Some(&pem), key.as_ref()) {
        Err(error) => drop(observed.drift("certificate", error.to_string())),
        Ok(seen) => {
            observed
                .output("not_after", seen.not_after.to_string())
                .output("ca_pem", String::from_utf8_lossy(&pem).into_owned());
            if seen.key_matches == Some(false) || seen.signed == Some(false) {
                observed.drift("certificate", "it does not match the key of the authority");
            } else if seen.not_after <= jiff::Timestamp::now() {
                observed.drift("certificate", format!("it ended on {}", seen.not_after));
            } else if marker.complete && marker.fact("sha256") != Some(&seen.sha256) {
                observed.drift("certificate", "it was changed");
            }
        }
    }
    Ok(Observation::There(observed))
}
