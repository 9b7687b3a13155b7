//! The certificate of a public authority: this program writes the order, the supervisor carries it out.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use textnlp_keys::acme::{self, AcmeOrder, PUBLIC_CERTIFICATE_FILE, PublicCertificate};
use textnlp_keys::{Marker, SiteFolder};
use textnlp_provider::{Error, ErrorKind, Handle, Object, Progress, Result};

use super::{Observation, ObservedObject, Supervisor, Work};
use crate::lock;
use crate::names::ACME_LOCK;

/// The message while the authority checks the names.
const WAITS: &str = "waiting for the certificate: the authority connects to port 443 of each name";

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let order: AcmeOrder = work.spec()?;
    work.refuse_strangers(&work.folder.join(PUBLIC_CERTIFICATE_FILE))?;
    work.claim(&work.folder.cloud_id(PUBLIC_CERTIFICATE_FILE)?, Map::new())?;
    let begun = Timestamp::now();
    order.write(&work.folder).map_err(|why| work.fails(why))?;
    let lock_path = work.folder.lock(ACME_LOCK);
    match lock::take(&lock_path) {
        // Between two attempts: the operator may have fixed why the last one failed.
        Ok(_held) => {
            let mut certificate = read(work)?;
            certificate.retry_now().map_err(|why| work.fails(why))?;
            if let Some(failure) = certificate.failure().filter(|_| certificate.info().is_none()) {
                return Err(refused(work, failure));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(work.io(&lock_path)(error)),
    }
    ordering(work, &Handle(json!({ "step": "order", "since": begun }))).await
}

/// Waits for the certificate, or for the reason why there is none.
pub(super) async fn ordering(work: &Work<'_>, handle: &Handle) -> Result<Progress> {
    let certificate = read(work)?;
    if certificate.info().is_some() {
        let marker = work.complete(&work.folder.cloud_id(PUBLIC_CERTIFICATE_FILE)?, Map::new())?;
        return work.done(&marker).await;
    }
    let since = handle.0.get("since").and_then(Value::as_str).and_then(|since| since.parse::<Timestamp>().ok());
    // An older failure is that of an attempt which the operator knows.
    if let Some(failure) = certificate.failure().filter(|failure| since.is_none_or(|since| failure.at >= since)) {
        return Err(refused(work, failure));
    }
    if !matches!(Supervisor::of(&work.folder).await, Supervisor::Runs(_)) {
        return Err(work.fails("the supervisor, which orders it, does not run"));
    }
    Ok(work.pending(handle.0.clone(), WAITS))
}

fn read(work: &Work<'_>) -> Result<PublicCertificate> {
    let found = PublicCertificate::read(&work.folder, Timestamp::now()).map_err(|why| work.fails(why))?;
    found.ok_or_else(|| work.fails("its order is gone"))
}

fn refused(work: &Work<'_>, failure: &acme::AcmeFailure) -> Error {
    work.invalid(failure.says.clone()).hint(failure.fix())
}

/// Removes order and certificate once no attempt runs.
pub(super) async fn remove(work: &Work<'_>) -> Result<Progress> {
    let lock_path = work.folder.lock(ACME_LOCK);
    let held = match lock::take(&lock_path) {
        Ok(held) => held,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            return Ok(work.pending(json!({ "step": "remove" }), "waiting for an attempt to order a certificate"));
        }
        // Without a folder for the lock there is no attempt.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return gone(work).await,
        Err(error) => return Err(work.io(&lock_path)(error)),
    };
    let removed = gone(work).await;
    drop(held);
    removed
}

async fn gone(work: &Work<'_>) -> Result<Progress> {
    let last: Object = work.last_seen().await?;
    acme::remove(&work.folder).map_err(work.io(work.folder.join(PUBLIC_CERTIFICATE_FILE)))?;
    work.removed(last)
}

pub(super) fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let wanted: AcmeOrder = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.join(PUBLIC_CERTIFICATE_FILE);
    let unreadable = |why: String| Error::new(ErrorKind::Unavailable, "read", path.as_str()).because(why);
    let found = PublicCertificate::read(folder, Timestamp::now()).map_err(unreadable)?;
    if found.is_none() && !path.exists() {
        return Ok(Observation::Absent);
    }
    let mut observed = ObservedObject::default();
    observed.output("certificate_file", path.as_str()).output("names", json!(wanted.names));
    let Some(found) = found else {
        observed.drift("order", "its order is gone");
        return Ok(Observation::There(observed));
    };
    if *found.order() != wanted {
        observed.drift("order", "its order was changed");
    }
    match found.info() {
        None => drop(observed.drift("certificate", "there is none that is valid for these names")),
        Some(info) => {
            observed.output("sha256", info.sha256.as_str()).output("not_after", info.not_after.to_string());
            observed.output("not_before", info.not_before.to_string());
        }
    }
    Ok(Observation::There(observed))
}
