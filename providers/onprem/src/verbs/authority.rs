//! A certificate authority of one's own: its key in the secret store, its certificate in a file that clients trust.

use serde_json::{Map, json};
use textnlp_provider::{Error, Progress, Result, SecretRef, SecretVersion, Sort};

use super::secret::version_for;
use super::{Look, Seen, Work};
use crate::OnPrem;
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::spec::AuthoritySpec;
use crate::trust;

/// The first call: the key. The certificate comes with [`certify`].
pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: AuthoritySpec = work.spec()?;
    work.refuse_strangers(&work.folder.inside(&spec.certificate_file)?)?;
    let version = version_for(work, &spec.key, "key_version").await?;
    let mut facts = Map::new();
    facts.insert("key_version".to_owned(), json!(version));
    if let Some(sha256) = work.marker.as_ref().and_then(|marker| marker.fact("sha256")) {
        facts.insert("sha256".to_owned(), json!(sha256));
    }
    work.claim(&work.folder.cloud_id(&spec.certificate_file)?, facts)?;
    let secrets = &work.onprem.options().secrets;
    if !secrets.versions(&spec.key).await?.contains(&version) {
        let key = trust::new_key().map_err(|error| work.fails(error))?;
        secrets.put(&spec.key, &version, &key).await?;
    }
    Ok(work.pending(json!({ "step": "certify" }), "signs its own certificate"))
}

/// The second call: the certificate. One that is there and good stays: clients trust it.
pub(super) async fn certify(work: &Work<'_>) -> Result<Progress> {
    let spec: AuthoritySpec = work.spec()?;
    let Some(version) = work.marker.as_ref().and_then(|marker| marker.fact("key_version")) else {
        // The first call was never made, or what it made is gone.
        return put(work).await;
    };
    let secret = SecretRef { name: spec.key.clone(), version: SecretVersion(version.to_owned()) };
    let key = match work.onprem.options().secrets.get(&secret).await {
        Err(error) if error.sort == Sort::NotFound => return put(work).await,
        other => other?,
    };
    let path = work.folder.inside(&spec.certificate_file)?;
    let there = files::read_bounded(&path, files::TEXT_MAX).ok();
    let seen = there.and_then(|pem| trust::look(&pem, Some(&pem), Some(&key)).ok());
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
            trust::look(pem.as_bytes(), None, None).map_err(|error| work.fails(error))?.sha256
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

pub(super) async fn remove(work: &Work<'_>) -> Result<()> {
    let spec: AuthoritySpec = work.applied()?;
    let path = work.folder.inside(&spec.certificate_file)?;
    files::remove_file(&path).map_err(work.io(&path))?;
    work.onprem.options().secrets.delete(&spec.key).await
}

pub(super) async fn look(onprem: &OnPrem, folder: &SiteFolder, marker: &Marker) -> Result<Seen> {
    let spec: AuthoritySpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(Sort::Invalid, "read", marker.resource.to_string()).because(error))?;
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
        Some(secret) => match onprem.options().secrets.get(secret).await {
            Ok(key) => Some(key),
            Err(error) if error.sort == Sort::NotFound => None,
            Err(error) => return Err(error),
        },
    };
    if pem.is_none() && key.is_none() {
        return Ok(Seen::Absent);
    }
    let mut look = Look::default();
    look.output("ca_file", path.as_str()).output("sha256", marker.fact("sha256").unwrap_or_default());
    look.output("secret", json!(secret));
    if key.is_none() {
        look.drift("key", "its key is gone");
    }
    let Some(pem) = pem else {
        look.drift("certificate", "its file is gone");
        return Ok(Seen::There(look));
    };
    match trust::look(&pem, Some(&pem), key.as_ref()) {
        Err(error) => drop(look.drift("certificate", error.to_string())),
        Ok(seen) => {
            look.output("not_after", seen.not_after.to_string())
                .output("ca_pem", String::from_utf8_lossy(&pem).into_owned());
            if seen.key_matches == Some(false) || seen.signed == Some(false) {
                look.drift("certificate", "it is not the one of our key");
            } else if seen.not_after <= jiff::Timestamp::now() {
                look.drift("certificate", format!("it ended on {}", seen.not_after));
            } else if marker.complete && marker.fact("sha256") != Some(&seen.sha256) {
                look.drift("certificate", "it was changed");
            }
        }
    }
    Ok(Seen::There(look))
}
