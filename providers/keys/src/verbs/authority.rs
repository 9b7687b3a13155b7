//! A local certificate authority: its key in the secret store, its certificate in a file that clients trust.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, json};
use textnlp_provider::{Error, ErrorKind, Progress, Result, SecretRef, SecretVersion};

use super::Work;
use super::secret::{requested_rotation, version_for};
use crate::Keys;
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::AuthoritySpec;
use crate::trust;
use crate::work::{Observation, ObservedObject};

/// How long clients may go on with a copy of the file that has only the replaced authority: until they read it again.
/// The replaced one stays in the file beside the new one.
const OVERLAP: SignedDuration = SignedDuration::from_hours(30 * 24);

/// From here on, an authority that ends soon is reported: its clients need time for the new one.
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(90 * 24);

/// The name of the marker's fact with the end of the overlap.
const PREVIOUS_UNTIL: &str = "previous_until";

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
    let until = match requested_rotation(work)? {
        Some(rotation) if rotation.immediately => None,
        // Counted from the request, so that a repeated call gives the same.
        Some(rotation) => rotation.at.checked_add(OVERLAP).ok(),
        None => work.marker.as_ref().and_then(previous_until),
    };
    if let Some(until) = until {
        facts.insert(PREVIOUS_UNTIL.to_owned(), json!(until));
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
    let Some(marker) = &work.marker else { return put(work).await };
    // Without a version, the first call was never made, or its key is gone.
    let Some(version) = marker.fact("key_version") else { return put(work).await };
    let secret = SecretRef { name: spec.key.clone(), version: SecretVersion(version.to_owned()) };
    let key = match work.provider.secrets().get(&secret).await {
        Err(error) if error.kind == ErrorKind::NotFound => return put(work).await,
        other => other?,
    };
    let path = work.folder.inside(&spec.certificate_file)?;
    let there = files::read_bounded(&path, files::TEXT_MAX).ok();
    let seen = there.as_deref().and_then(|pem| trust::inspect(pem, Some(pem), Some(&key)).ok());
    let now = Timestamp::now();
    let same_days = marker.spec.get("days") == work.op.spec.get("days");
    let good = seen.filter(|seen| {
        seen.signed == Some(true)
            && seen.key_matches == Some(true)
            && seen.not_after > now
            && same_days
            && !changes_certificate(work)
    });
    let until = previous_until(marker).filter(|until| *until > now);
    let first = there.as_deref().and_then(|pem| trust::first_pem(pem).ok());
    let wanted = match (&good, first) {
        // The file stays as it is, with the replaced authority if there is one.
        (Some(_), _) if until.is_some() => None,
        (Some(_), first) => first,
        (None, first) => {
            let new = trust::authority(&key, &spec.subject, &spec.names, spec.days, now);
            Some(new.map_err(|error| work.invalid(error))? + &first.filter(|_| until.is_some()).unwrap_or_default())
        }
    };
    let sha256 = match &wanted {
        Some(pem) if there.as_deref() != Some(pem.as_bytes()) => {
            let folder = path.parent().unwrap_or(work.folder.root());
            files::make_folder(folder).map_err(work.io(folder))?;
            files::put(&path, pem.as_bytes(), 0o644).map_err(work.io(&path))?;
            trust::inspect(pem.as_bytes(), None, None).map_err(|error| work.fails(error))?.sha256
        }
        _ => good.map(|seen| seen.sha256).unwrap_or_default(),
    };
    let mut facts = Map::new();
    facts.insert("key_version".to_owned(), json!(version));
    facts.insert("sha256".to_owned(), json!(sha256));
    if let Some(until) = until {
        facts.insert(PREVIOUS_UNTIL.to_owned(), json!(until));
    }
    let marker = work.complete(&work.folder.cloud_id(&spec.certificate_file)?, facts)?;
    work.done(&marker).await
}

/// Until when the replaced authority stays in the file.
fn previous_until(marker: &Marker) -> Option<Timestamp> {
    marker.fact(PREVIOUS_UNTIL)?.parse().ok()
}

fn changes_certificate(work: &Work<'_>) -> bool {
    work.op.changes.iter().any(|change| matches!(change.field.split('.').next(), Some("days" | "names")))
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
            } else if seen.not_after <= Timestamp::now() {
                observed.drift("certificate", format!("it ended on {}", seen.not_after));
            } else if marker.complete && marker.fact("sha256") != Some(&seen.sha256) {
                observed.drift("certificate", "it was changed");
            } else if previous_until(marker).is_some_and(|until| until <= Timestamp::now()) {
                observed.drift("certificate", "the authority that it replaced is to be removed from its file");
            } else if seen.not_after.duration_since(Timestamp::now()) < ENDS_SOON {
                observed.trouble = Some(format!("it ends on {}: `secret rotate ca` replaces it", seen.not_after));
            }
        }
    }
    Ok(Observation::There(observed))
}
