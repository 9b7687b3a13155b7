//! The certificate that clients see: issued by the local authority, or user-provided.

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use textnlp_provider::{
    CloudId, Error, ErrorKind, Health, Object, Observed, Progress, ReadFailure, Result, Secret, SecretName, SecretRef,
    SecretVersion, Spec,
};

use super::Work;
use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::order::{Order, reissue, renewal_order};
use crate::spec::CertificateSpec;
use crate::table::KeyKind;
use crate::trust;
use crate::work::{Observation, ObservedObject};

pub(crate) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: CertificateSpec = work.spec()?;
    let cloud_id = work.folder.cloud_id(&spec.certificate_file)?;
    let key_path = work.folder.inside(&spec.key_file)?;
    work.refuse_strangers(&key_path)?;
    let authority_key = work.provider.secrets().get(&spec.authority_key).await?;
    work.claim(&cloud_id, Map::new())?;
    // A usable key stays, so that certificate and key always match while one of them is written.
    let usable =
        files::read_bounded(&key_path, files::TEXT_MAX).is_ok_and(|pem| trust::public_pem(&Secret::new(pem)).is_ok());
    if !usable {
        let key = trust::new_key().map_err(|error| work.fails(error))?;
        files::make_folder(&work.folder.join("certs")).map_err(work.io(&key_path))?;
        files::put(&key_path, key.expose(), 0o600).map_err(work.io(&key_path))?;
    }
    // One for another cluster is renewed by the next `up`, not by a supervisor.
    let order = Order {
        names: spec.names.clone(),
        days: spec.days,
        certificate_file: spec.certificate_file.clone(),
        key_file: spec.key_file.clone(),
        ca_file: spec.ca_file.clone(),
        authority_key: spec.authority_key.clone(),
    };
    if spec.kept.is_none() {
        let written = serde_json::to_vec_pretty(&order).map_err(|error| work.invalid(error))?;
        files::put(&renewal_order(&work.folder), &written, 0o600).map_err(work.io(renewal_order(&work.folder)))?;
    }
    reissue(&work.folder, &order, &authority_key, Timestamp::now()).map_err(|why| work.fails(why))?;
    if let Some(name) = &spec.kept {
        let certificate = files::read_bounded(&work.folder.inside(&spec.certificate_file)?, files::TEXT_MAX)
            .map_err(work.io(&spec.certificate_file))?;
        let key = files::read_bounded(&key_path, files::TEXT_MAX).map_err(work.io(&key_path))?;
        let seen = trust::inspect(&certificate, None, None).map_err(|error| work.fails(error))?;
        let [first, second] = retained_secrets(name, &seen.sha256);
        let secrets = work.provider.secrets();
        secrets.put(&first.name, &first.version, &Secret::new(certificate)).await?;
        secrets.put(&second.name, &second.version, &Secret::new(key)).await?;
    }
    let marker = work.complete(&cloud_id, Map::new())?;
    work.done(&marker).await
}

/// Certificate and key of a fingerprint as secrets.
fn retained_secrets(name: &SecretName, sha256: &str) -> [SecretRef; 2] {
    let version = SecretVersion(sha256.to_owned());
    ["certificate", "key"]
        .map(|part| SecretRef { name: SecretName(format!("{name}-{part}")), version: version.clone() })
}

pub(crate) async fn remove(work: &Work<'_>) -> Result<()> {
    let spec: CertificateSpec = work.applied()?;
    for secret in spec.kept.iter().flat_map(|name| retained_secrets(name, "")) {
        work.provider.secrets().delete(&secret.name).await?;
    }
    // The order first: the supervisor must not renew a certificate that is being removed.
    let order = renewal_order(&work.folder);
    files::remove_file(&order).map_err(work.io(&order))?;
    for file in [&spec.certificate_file, &spec.key_file] {
        let path = work.folder.inside(file)?;
        files::remove_file(&path).map_err(work.io(&path))?;
    }
    Ok(())
}

pub(crate) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: CertificateSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.certificate_file)?;
    let key_path = folder.inside(&spec.key_file)?;
    let pem = read(&path)?;
    let key = read(&key_path)?.map(Secret::new);
    let authority = read(&folder.inside(&spec.ca_file)?)?;
    if pem.is_none() && key.is_none() {
        return Ok(Observation::Absent);
    }
    let mut observed = ObservedObject::default();
    observed.output("certificate_file", path.as_str()).output("key_file", key_path.as_str());
    observed.output("ca_file", folder.join(&spec.ca_file).as_str()).output("names", json!(spec.names));
    if key.is_none() {
        observed.drift("key", "its file is gone");
    }
    if spec.kept.is_none() && read(&renewal_order(folder))?.is_none() {
        observed.drift("renewal", "its renewal configuration is gone");
    }
    let Some(pem) = pem else {
        observed.drift("certificate", "its file is gone");
        return Ok(Observation::There(observed));
    };
    match trust::inspect(&pem, authority.as_deref(), key.as_ref()) {
        Err(error) => drop(observed.drift("certificate", error.to_string())),
        Ok(seen) => {
            observed.output("sha256", seen.sha256.as_str()).output("not_after", seen.not_after.to_string());
            observed.output("not_before", seen.not_before.to_string());
            if seen.signed == Some(false) {
                observed.drift("certificate", "it was not issued by the site's authority");
            } else if seen.key_matches == Some(false) {
                observed.drift("certificate", "it does not match its key");
            } else if seen.names != spec.names {
                observed.drift("certificate", format!("it is for {}", seen.names.join(", ")));
            } else if seen.not_after <= Timestamp::now() {
                observed.drift("certificate", format!("it ended on {}", seen.not_after));
            } else if spec.kept.is_some() && seen.renew_at() <= Timestamp::now() {
                // Only the next `up` renews it.
                observed.drift("certificate", format!("it is to be renewed, and ends on {}", seen.not_after));
            }
            if let Some(name) = &spec.kept {
                let [certificate, key] = retained_secrets(name, &seen.sha256);
                observed.output("certificate", json!(certificate)).output("key", json!(key));
            }
        }
    }
    Ok(Observation::There(observed))
}

/// Observes a user-provided certificate: read and checked, never changed.
pub(crate) fn observe_existing(file: &CloudId) -> Observed {
    let path = Utf8PathBuf::from(file.as_str());
    let key_path = key_path_for(&path);
    let (pem, key) = match (read(&path), read(&key_path)) {
        (Ok(Some(pem)), Ok(key)) => (pem, key),
        (Ok(None), _) => return Observed::Absent,
        (Err(error), _) | (_, Err(error)) => {
            return Observed::Unknown(ReadFailure(textnlp_provider::error_chain(&error)));
        }
    };
    let key = key.map(Secret::new);
    let mut observed = ObservedObject::default();
    observed
        .output("certificate_file", path.as_str())
        .output("key_file", key_path.as_str())
        .output("ca_file", Value::Null);
    let trouble = match trust::inspect(&pem, None, key.as_ref()) {
        Err(error) => Some(error.to_string()),
        Ok(seen) => {
            observed.output("sha256", seen.sha256.as_str()).output("not_after", seen.not_after.to_string());
            observed.output("names", json!(seen.names));
            match seen.key_matches {
                None => Some(format!("its key {key_path} does not exist")),
                Some(false) => Some(format!("{key_path} is not its key")),
                Some(true) if seen.not_after <= Timestamp::now() => Some(format!("it ended on {}", seen.not_after)),
                Some(true) => match textnlp_files::check_secret(&key_path) {
                    Ok(exposed) => exposed.map(|exposed| format!("{exposed}: {}", exposed.fix())),
                    Err(error) => Some(textnlp_provider::error_chain(&error)),
                },
            }
        }
    };
    Observed::Present(Object {
        kind: KeyKind::Certificate.into(),
        cloud_id: file.clone(),
        spec: Spec::of(&json!({ "existing": file.as_str() })),
        outputs: observed.outputs,
        lineage: None,
        origin: textnlp_provider::Origin::Untold,
        created: None,
        health: trouble.map_or(Health::Ready, Health::Degraded),
        via: None,
        foreign: Vec::new(),
    })
}

/// `site.pem` → `site.key`; `fullchain.pem` → `privkey.pem`, as certbot names them.
fn key_path_for(path: &Utf8Path) -> Utf8PathBuf {
    let named = path.with_extension("key");
    let certbot = path.with_file_name("privkey.pem");
    if !named.exists() && certbot.exists() { certbot } else { named }
}

/// certbot's files are links; an operator's own file may be one.
fn read(path: &Utf8Path) -> Result<Option<Vec<u8>>> {
    match std::fs::canonicalize(path).and_then(|real| {
        let real = Utf8PathBuf::from_path_buf(real).map_err(|_| std::io::ErrorKind::InvalidFilename)?;
        files::read_bounded(&real, files::TEXT_MAX)
    }) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path.as_str(), error)),
    }
}
