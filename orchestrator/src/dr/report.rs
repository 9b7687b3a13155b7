//! The report of a drill: signed JSON, a signed page for auditors, and the trend over all drills.

use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_bundle::{PublicKey, SecretKey, keygen, sign_bytes, signature_of, verify_file};
use textnlp_files::{Replace, unique_name};

use super::control_client::DatabaseRole;
use super::drill::Leftovers;
use super::fault::FaultKind;
use super::findings::Findings;
use super::ledger::Mark;
use super::waterfall;
use crate::gate::phases::{DATABASE_ROLE, LOST, RPO, RTO_CONTROL, RTO_SERVICE, UNACCOUNTED};
use crate::report::page;

/// The format of the JSON document.
pub const FORMAT: &str = "textnlp-drill/1";
/// The most reports in a history.
const MOST_REPORTS: usize = 1000;
const MOST_BYTES: u64 = 64 << 20;

/// The environment, operator and programs of a drill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillFacts {
    /// The environment.
    pub environment: String,
    /// The lineage of the deployment.
    pub lineage: String,
    /// The digest of the release that ran.
    pub release: String,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The program and its version.
    pub tool: String,
    /// The machine it ran on.
    pub host: String,
    /// How traffic is routed: `gateway` or `dns`.
    pub traffic: String,
    /// The kind of database.
    pub database: String,
    /// Whether the drill used the live service instead of clones.
    pub live: bool,
}

/// The targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// `dr.rto`, in seconds.
    pub rto_s: f64,
    /// `dr.rpo`, in seconds.
    pub rpo_s: f64,
}

/// A phase of a drill. Times are in seconds since the ledger began; phases may overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillPhase {
    /// Its name.
    pub name: String,
    /// When it began.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// What happened.
    pub says: String,
}

/// The measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// The results from the ledger.
    #[serde(flatten)]
    pub findings: Findings,
    /// The milestones, in ms since the ledger began.
    pub marks: Vec<(Mark, f64)>,
    /// Whether the service recovered while the fault lasted.
    pub served: bool,
    /// How the failback happened.
    pub failback: FailbackTrigger,
    /// The epoch of the configuration before the fault.
    pub epoch_before: u64,
    /// Whether no site took over, and control data is in an external database. The sites' log, which may need the lost
    /// site, then delays nothing.
    #[serde(default)]
    pub stored_outside: bool,
    /// The database role at the leading site while the lost site is down. `None` if the lost site stays primary, or if
    /// sites store in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseRole>,
}

textnlp_provider::words! {
    /// What made the home site primary again.
    pub enum FailbackTrigger {
        /// The site agents.
        Automatic = "automatic",
        /// The drill.
        Drill = "drill",
        /// No other site was primary.
        NotNeeded = "not needed",
    }
}

/// The report of a drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The drill's id.
    pub id: String,
    /// The environment, operator and programs.
    #[serde(flatten)]
    pub facts: DrillFacts,
    /// The lost site.
    pub site: String,
    /// The fault.
    pub fault: FaultKind,
    /// Whether the site's data was lost too.
    pub lose_data: bool,
    /// Whether the sites failed over without a command.
    pub automatic: bool,
    /// When it began.
    pub began: Timestamp,
    /// The total duration in seconds.
    pub seconds: f64,
    /// The targets.
    pub targets: Targets,
    /// The targets that were missed.
    pub missed: Vec<String>,
    /// The phases.
    pub phases: Vec<DrillPhase>,
    /// The measurements.
    pub figures: Measurements,
    /// Leftovers: what differs from before the drill.
    pub leftovers: Leftovers,
}

/// Why a report could not be written, signed or verified.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Its path.
        path: Utf8PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The key or a signature is invalid.
    #[error(transparent)]
    Signature(#[from] textnlp_bundle::Error),
    /// A file of this environment is not signed by its current key.
    #[error("another key signed it than the current one of the environment, which `secret rotate report` replaces")]
    Replaced,
    /// There is no such report.
    #[error("there is no report of a drill `{0}`")]
    NoSuch(String),
}

/// The targets that were missed, as messages.
pub fn missed(targets: &Targets, figures: &Measurements) -> Vec<String> {
    let found = &figures.findings;
    let mut missed = Vec::new();
    match found.service_rto_ms {
        None => missed.push("the service did not come back while the fault lasted: there is no RTO".to_owned()),
        Some(ms) if ms / 1000.0 > targets.rto_s => {
            missed.push(format!("{RTO_SERVICE} {:.2} s; the target is {} s", ms / 1000.0, targets.rto_s))
        }
        Some(_) => {}
    }
    match found.control_rto_ms {
        None if figures.stored_outside => {}
        None => missed.push("control data could not be written while the fault lasted: it has no RTO".to_owned()),
        Some(ms) if ms / 1000.0 > targets.rto_s => {
            missed.push(format!("{RTO_CONTROL} {:.2} s; the target is {} s", ms / 1000.0, targets.rto_s))
        }
        _ => {}
    }
    if let Some(role) = figures.database.filter(|role| *role != DatabaseRole::Primary) {
        missed.push(format!("the database of the current primary is {role}; expected one that accepts writes"));
    }
    if found.lost > 0 {
        missed.push(format!("{} acknowledged writes are lost; the target is 0", found.lost));
    }
    if found.rpo_ms / 1000.0 > targets.rpo_s {
        missed.push(format!("{RPO} {:.2} s; the target is {} s", found.rpo_ms / 1000.0, targets.rpo_s));
    }
    missed
}

impl Report {
    /// The RTO in seconds: the later of service and control data. `None` if one of them did not recover.
    pub fn rto_s(&self) -> Option<f64> {
        let found = &self.figures.findings;
        Some(found.service_rto_ms?.max(found.control_rto_ms?) / 1000.0)
    }

    /// The count of failed requests.
    pub fn requests_failed(&self) -> u64 {
        let failed = self.figures.findings.failed;
        failed.before_fault + failed.during + failed.after_shift + failed.slow_after_shift + failed.on_return
    }

    /// The JSON document.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("reports are plain data with text keys");
        value["format"] = json!(FORMAT);
        value["rto_s"] = json!(self.rto_s());
        value["rpo_s"] = json!(self.figures.findings.rpo_ms / 1000.0);
        value["lost"] = json!(self.figures.findings.lost);
        value["unaccounted"] = json!(self.figures.findings.unaccounted);
        value["requests_failed"] = json!(self.requests_failed());
        value
    }

    /// The RTO of control data, as text.
    pub fn control_rto(&self) -> String {
        match self.figures.findings.control_rto_ms {
            Some(ms) => format!("{:.2} s", ms / 1000.0),
            None if self.figures.stored_outside => "stored outside".to_owned(),
            None => "not reached".to_owned(),
        }
    }

    /// The HTML page. It is self-contained: no script, font or image from elsewhere.
    pub fn to_html(&self, key: &PublicKey) -> String {
        page(include_str!("report.html"), self.context(key))
    }

    fn context(&self, key: &PublicKey) -> Value {
        let found = &self.figures.findings;
        let seconds = |ms: Option<f64>| ms.map_or("not reached".to_owned(), |ms| format!("{:.2} s", ms / 1000.0));
        let within = |ms: Option<f64>, limit: f64| ms.is_some_and(|ms| ms / 1000.0 <= limit);
        let row = |name: &str, measured: String, limit: String, ok: bool| json!({ "name": name, "measured": measured, "limit": limit, "ok": ok });
        let promised = |s: f64| format!("{s} s");
        let (rto, rpo) = (self.targets.rto_s, self.targets.rpo_s);
        let targets = [
            row(
                &format!("{RTO_SERVICE}: until no request failed any more"),
                seconds(found.service_rto_ms),
                promised(rto),
                within(found.service_rto_ms, rto),
            ),
            row(
                &format!("{RTO_CONTROL}: until a write was acknowledged"),
                self.control_rto(),
                promised(rto),
                within(found.control_rto_ms, rto) || (found.control_rto_ms.is_none() && self.figures.stored_outside),
            ),
            row(
                &format!("{RPO}: age of the oldest lost data"),
                format!("{:.2} s", found.rpo_ms / 1000.0),
                promised(rpo),
                found.rpo_ms / 1000.0 <= rpo,
            ),
            row(LOST, found.lost.to_string(), "0".to_owned(), found.lost == 0),
        ];
        let database = self.figures.database.map(|role| {
            let wanted = DatabaseRole::Primary;
            row(
                &format!("{DATABASE_ROLE} of the current primary"),
                role.to_string(),
                wanted.to_string(),
                role == wanted,
            )
        });
        let targets: Vec<Value> = targets.into_iter().chain(database).collect();
        let failed = found.failed;
        let tiles = json!([
            [RTO_SERVICE, seconds(found.service_rto_ms)],
            [RTO_CONTROL, self.control_rto()],
            [LOST, found.lost.to_string()],
            [UNACCOUNTED, found.unaccounted.to_string()],
            ["requests refused after the shift", failed.after_shift.to_string()],
            ["left over", self.leftovers.len().to_string()],
        ]);
        let figures = json!([
            ["requests sent", found.requests.to_string()],
            ["failed before the fault", failed.before_fault.to_string()],
            ["failed between fault and shift", failed.during.to_string()],
            ["refused after the shift", failed.after_shift.to_string()],
            ["timed out after the shift", failed.slow_after_shift.to_string()],
            ["failed during recovery and failback", failed.on_return.to_string()],
            ["why they failed", found.why()],
            [
                "outages seen by clients",
                found
                    .outages
                    .iter()
                    .map(|o| match o.to_ms {
                        Some(to) => format!("{:.2} s ({} failed)", (to - o.from_ms) / 1000.0, o.failed),
                        None => format!("from {:.2} s to the end ({} failed)", o.from_ms / 1000.0, o.failed),
                    })
                    .collect::<Vec<_>>()
                    .join(", ")
            ],
            ["writes sent", found.writes.to_string()],
            ["writes acknowledged", found.acknowledged.to_string()],
            ["writes refused or not answered", found.unacknowledged.to_string()],
            [LOST, found.lost.to_string()],
            [UNACCOUNTED, found.unaccounted.to_string()],
        ]);
        let data = if self.lose_data { ", its data lost" } else { "" };
        let mut facts = vec![
            json!([
                "what",
                format!(
                    "{} of site {}{data}, on {}",
                    self.fault.word(),
                    self.site,
                    if self.facts.live { "the running service" } else { "clones" }
                )
            ]),
            json!([
                "who",
                match &self.facts.reason {
                    Some(reason) => format!("{} ({reason})", self.facts.by),
                    None => self.facts.by.clone(),
                }
            ]),
            json!(["when", format!("{}, for {:.1} s", self.began.strftime("%Y-%m-%d %H:%M:%S UTC"), self.seconds)]),
            json!(["host", self.facts.host]),
            json!(["release", self.facts.release]),
            json!(["deployment", self.facts.lineage]),
            json!(["failover", if self.automatic { "automatic" } else { "by hand" }]),
            json!(["failback", self.figures.failback]),
            json!(["traffic moved by", self.facts.traffic]),
            json!(["database", self.facts.database]),
            json!(["program", self.facts.tool]),
        ];
        facts.retain(|fact| fact[1].as_str().is_some_and(|text| !text.is_empty()));
        json!({
            "title": format!("Drill of {}: loss of {}", self.facts.environment, self.site),
            "id": self.id,
            "state": if self.missed.is_empty() { "met" } else { "missed" },
            "missed": self.missed,
            "facts": facts,
            "tiles": tiles,
            "targets": targets,
            "phases": waterfall::rows(&self.phases),
            "waterfall": waterfall::bars(&self.phases, self.seconds),
            "requests": waterfall::requests(found, &self.figures.marks),
            "figures": figures,
            "lost": found.lost_keys,
            "unaccounted": found.unaccounted_ids,
            "leftovers": self.leftovers,
            "key": key.to_base64(),
            "key_id": key.id(),
        })
    }

    /// Writes `report.json` and `report.html` with their signatures, each durably. Returns the page's path.
    pub fn write(&self, folder: &Utf8Path, key: &SecretKey) -> Result<Utf8PathBuf, ReportError> {
        let public = key.public()?;
        let what = format!("textnlp drill {} of {}, {}", self.id, self.facts.environment, self.began);
        let json = serde_json::to_string_pretty(&self.to_json()).expect("plain JSON");
        let html = folder.join("report.html");
        for (path, text) in [(folder.join("report.json"), json), (html.clone(), self.to_html(&public))] {
            write_signed(&path, text.as_bytes(), key, &what)?;
        }
        Ok(html)
    }

    /// Reads the report of a drill, if it is as this environment signed it.
    pub fn read(state: &Utf8Path, id: &str) -> Result<Self, ReportError> {
        let path = folder(state, id)?.join("report.json");
        verify_own(state, &path)?;
        read(&path)
    }
}

/// The folder of a drill.
pub fn folder(state: &Utf8Path, id: &str) -> Result<Utf8PathBuf, ReportError> {
    let plain = !id.is_empty() && id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let folder = state.join("dr/drills").join(id);
    if plain && folder.join("report.json").is_file() {
        Ok(folder)
    } else {
        Err(ReportError::NoSuch(id.chars().take(80).filter(|c| !c.is_control()).collect()))
    }
}

/// Every report of an environment, oldest first, and messages about those that are unreadable or not as they were signed. Unfinished
/// drills have no report.
pub fn history(state: &Utf8Path) -> (Vec<Report>, Vec<String>) {
    let entries = state.join("dr/drills").read_dir_utf8().into_iter().flatten().flatten();
    let mut ids: Vec<String> = entries.map(|entry| entry.file_name().to_owned()).collect();
    ids.sort();
    let from = ids.len().saturating_sub(MOST_REPORTS);
    let (mut reports, mut unread) = (Vec::new(), Vec::new());
    for id in &ids[from..] {
        match Report::read(state, id) {
            Ok(report) => reports.push(report),
            Err(ReportError::NoSuch(_)) => {}
            Err(error) => unread.push(format!("{id}: {}", textnlp_provider::error_chain(&error))),
        }
    }
    reports.sort_by_key(|report| report.began);
    (reports, unread)
}

/// Writes a file and its signature, each durably. `what` is part of what is signed.
pub fn write_signed(path: &Utf8Path, bytes: &[u8], key: &SecretKey, what: &str) -> Result<(), ReportError> {
    let (signature_path, signature) = (signature_of(path), sign_bytes(bytes, key, what)?);
    for (path, bytes) in [(path, bytes), (signature_path.as_path(), signature.as_bytes())] {
        Replace::umask().write(path, bytes).map_err(|e| io("write", path)(e.source))?;
    }
    Ok(())
}

/// The key that signs the reports of drills, the evidence of gates and backups; created if it does not exist. The public key is
/// stored beside the drills.
pub fn signing_key(state: &Utf8Path) -> Result<SecretKey, ReportError> {
    let (secret, public) = key_files(state);
    if !secret.is_file() {
        for folder in [secret.parent(), public.parent()].into_iter().flatten() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make", folder))?;
        }
        // The one of another private key.
        let _ = std::fs::remove_file(&public);
        // A killed run leaves no half of a key, and of concurrent ones the first key counts.
        let name = unique_name();
        let [fresh, fresh_public] = ["", ".pub"].map(|end| Utf8PathBuf::from(format!("{secret}.{name}{end}.new")));
        let made = keygen(&fresh, &fresh_public, None);
        let linked = made.is_ok().then(|| std::fs::hard_link(&fresh, &secret));
        [&fresh, &fresh_public].into_iter().for_each(|file| drop(std::fs::remove_file(file)));
        made?;
        if let Some(Err(error)) = linked
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(io("make", &secret)(error));
        }
    }
    let key = SecretKey::read(&secret, None)?;
    if !public.is_file() {
        let text = key.public()?.to_file();
        Replace::mode(0o644).write(&public, text.as_bytes()).map_err(|error| io("write", &public)(error.source))?;
    }
    Ok(key)
}

/// Replaces the signing key, which is created if there was none. Reports, evidence and backups before it are no longer those of this
/// environment: an attacker with the old key could have made them. The caller holds the lock of the state.
///
/// Returns the public halves of the old one and of the new one.
pub fn rotate_signing_key(state: &Utf8Path) -> Result<(PublicKey, PublicKey), ReportError> {
    let old = signing_key(state)?.public()?;
    let (secret, public) = key_files(state);
    // A process that stops here leaves the old key, or none, and then the next signature creates one.
    std::fs::remove_file(&secret).map_err(io("remove", &secret))?;
    std::fs::remove_file(&public).map_err(io("remove", &public))?;
    Ok((old, signing_key(state)?.public()?))
}

/// The public key that verifies reports of this environment.
pub fn public_key(state: &Utf8Path) -> Result<PublicKey, ReportError> {
    Ok(PublicKey::read(&key_files(state).1)?)
}

/// Returns the signed comment of a report if its signature by this key is valid.
pub fn verify(file: &Utf8Path, key: &PublicKey) -> Result<String, ReportError> {
    Ok(verify_file(file, key)?)
}

/// Returns the signed comment of a file if its signature by this environment's own key is valid. The public key beside
/// the drills is not asked: it lies where reports do, and the secret one among the secrets.
pub fn verify_own(state: &Utf8Path, file: &Utf8Path) -> Result<String, ReportError> {
    match verify_file(file, &own_key(state)?) {
        Err(textnlp_bundle::Error::OtherKey { .. }) => Err(ReportError::Replaced),
        verified => Ok(verified?),
    }
}

/// The public half of this environment's own key.
pub fn own_key(state: &Utf8Path) -> Result<PublicKey, ReportError> {
    Ok(SecretKey::read(&key_files(state).0, None)?.public()?)
}

fn key_files(state: &Utf8Path) -> (Utf8PathBuf, Utf8PathBuf) {
    (state.join("secrets/.drill-report.key"), state.join("dr/drill-report.pub"))
}

fn read(path: &Utf8Path) -> Result<Report, ReportError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io("read", path))?;
    file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| io("read", path)(error.into()))
}

fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> ReportError {
    let path = path.to_owned();
    move |source| ReportError::Io { action, path, source }
}
