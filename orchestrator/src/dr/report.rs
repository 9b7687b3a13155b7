//! The report of a drill: one document for machines, one page for an auditor, both signed, and the trend over all drills.

use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_bundle::{PublicKey, SecretKey, keygen, sign_bytes, signature_of, verify_file};

use super::drill::Leftovers;
use super::fault::FaultKind;
use super::findings::Findings;
use super::ledger::Mark;
use super::talk::PRIMARY;
use super::waterfall;
use crate::report::{page, whole};

/// What the documents are.
pub const FORMAT: &str = "textnlp-drill/1";
/// Reports that a history shows at most.
const MOST_REPORTS: usize = 1000;
const MOST_BYTES: u64 = 64 << 20;

/// Who, where and what was rehearsed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The environment.
    pub environment: String,
    /// Which deployment.
    pub lineage: String,
    /// What ran, by digest.
    pub release: String,
    /// Who.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With which program.
    pub tool: String,
    /// On which machine.
    pub host: String,
    /// How traffic moved: `gateway` or `dns`.
    pub traffic: String,
    /// Which database.
    pub database: String,
    /// Whether the running service was used, not clones.
    pub live: bool,
}

/// What is promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Targets {
    /// `dr.rto`, in seconds.
    pub rto_s: f64,
    /// `dr.rpo`, in seconds.
    pub rpo_s: f64,
}

/// A part of a drill. Times are seconds since its ledger began; parts may overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Which.
    pub name: String,
    /// When it began.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// What happened.
    pub says: String,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// From the ledger.
    #[serde(flatten)]
    pub findings: Findings,
    /// Moments, in ms since the ledger began.
    pub marks: Vec<(Mark, f64)>,
    /// Whether the service came back while the fault lasted.
    pub served: bool,
    /// Who went back home: `automatic`, `drill` or `not needed`.
    pub failback: String,
    /// The configuration before the fault.
    pub epoch_before: u64,
    /// Whether nobody took another's place, and control data is stored outside of every site: the log of the sites, which may want the lost one, is
    /// nothing that anybody waits for then.
    #[serde(default)]
    pub stored_outside: bool,
    /// The role of the database that whoever leads works with while the lost site is away: `primary`, or it takes no changes. Nothing
    /// where the lost site keeps its place, or sites store in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which drill.
    pub id: String,
    /// Who, where, what.
    #[serde(flatten)]
    pub facts: Facts,
    /// The site that was lost.
    pub site: String,
    /// How.
    pub fault: FaultKind,
    /// Whether its data was lost too.
    pub lose_data: bool,
    /// Whether nobody had to tell the sites.
    pub automatic: bool,
    /// When it began.
    pub began: Timestamp,
    /// How long it took in all.
    pub seconds: f64,
    /// What is promised.
    pub targets: Targets,
    /// What was promised and not kept; empty when all was.
    pub missed: Vec<String>,
    /// What happened when.
    pub phases: Vec<Phase>,
    /// What was measured.
    pub figures: Figures,
    /// What is not as it was before.
    pub leftovers: Leftovers,
}

/// Why a report could not be written, signed or believed.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file cannot be used.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: Utf8PathBuf,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// The key or a signature.
    #[error(transparent)]
    Signature(#[from] textnlp_bundle::Error),
    /// There is none.
    #[error("there is no report of a drill `{0}`")]
    NoSuch(String),
}

/// What was promised and not kept.
pub fn missed(targets: &Targets, figures: &Figures) -> Vec<String> {
    let found = &figures.findings;
    let mut missed = Vec::new();
    match found.service_rto_ms {
        None => missed.push("the service did not come back while the fault lasted: there is no RTO".to_owned()),
        Some(ms) if ms / 1000.0 > targets.rto_s => {
            missed.push(format!("RTO {:.2} s; promised {} s", ms / 1000.0, targets.rto_s))
        }
        Some(_) => {}
    }
    match found.control_rto_ms {
        None if figures.stored_outside => {}
        None => missed.push("control data could not be written while the fault lasted: it has no RTO".to_owned()),
        Some(ms) if ms / 1000.0 > targets.rto_s => {
            missed.push(format!("RTO of control data {:.2} s; promised {} s", ms / 1000.0, targets.rto_s))
        }
        _ => {}
    }
    if let Some(role) = figures.database.as_deref().filter(|role| *role != PRIMARY) {
        missed.push(format!("the database of whoever leads is {role}; promised one that takes changes"));
    }
    if found.lost > 0 {
        missed.push(format!("{} acknowledged writes are lost; promised 0", found.lost));
    }
    if found.rpo_ms / 1000.0 > targets.rpo_s {
        missed.push(format!("RPO {:.2} s; promised {} s", found.rpo_ms / 1000.0, targets.rpo_s));
    }
    missed
}

impl Report {
    /// RTO in seconds: of the service and of control data, whichever is later. `None` when one of them did not come back.
    pub fn rto_s(&self) -> Option<f64> {
        let found = &self.figures.findings;
        Some(found.service_rto_ms?.max(found.control_rto_ms?) / 1000.0)
    }

    /// Requests that failed, all of them.
    pub fn requests_failed(&self) -> u64 {
        let failed = self.figures.findings.failed;
        failed.before_fault + failed.during + failed.after_shift + failed.on_return
    }

    /// The document.
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

    /// When control data could be changed again, as it is told.
    pub fn control_rto(&self) -> String {
        match self.figures.findings.control_rto_ms {
            Some(ms) => format!("{:.2} s", ms / 1000.0),
            None if self.figures.stored_outside => "stored outside".to_owned(),
            None => "not reached".to_owned(),
        }
    }

    /// The page. It holds everything it needs: no script, no font, no image from elsewhere.
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
                "RTO, service: until no request failed any more",
                seconds(found.service_rto_ms),
                promised(rto),
                within(found.service_rto_ms, rto),
            ),
            row(
                "RTO, control data: until a write was acknowledged",
                self.control_rto(),
                promised(rto),
                within(found.control_rto_ms, rto) || (found.control_rto_ms.is_none() && self.figures.stored_outside),
            ),
            row(
                "RPO: how far back something is missing",
                format!("{:.2} s", found.rpo_ms / 1000.0),
                promised(rpo),
                found.rpo_ms / 1000.0 <= rpo,
            ),
            row("acknowledged writes lost", found.lost.to_string(), "0".to_owned(), found.lost == 0),
        ];
        let role = self.figures.database.as_ref();
        let database = role.map(|role| {
            row("role of the database of whoever leads", role.clone(), PRIMARY.to_owned(), role == PRIMARY)
        });
        let targets: Vec<Value> = targets.into_iter().chain(database).collect();
        let failed = found.failed;
        let tiles = json!([
            ["service back after", seconds(found.service_rto_ms)],
            ["writes taken after", self.control_rto()],
            ["acknowledged writes lost", found.lost.to_string()],
            ["answers without usage", found.unaccounted.to_string()],
            ["requests failed after the shift", failed.after_shift.to_string()],
            ["left over", self.leftovers.len().to_string()],
        ]);
        let figures = json!([
            ["requests sent", found.requests.to_string()],
            ["failed before the fault", failed.before_fault.to_string()],
            ["failed between fault and shift", failed.during.to_string()],
            ["failed after the shift", failed.after_shift.to_string()],
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
            ["acknowledged writes that the new primary lacked", found.lost.to_string()],
            ["answered requests whose usage it lacked", found.unaccounted.to_string()],
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
            "title": format!("Drill of {}: {} lost", self.facts.environment, self.site),
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

    /// Writes `report.json` and `report.html` with their signatures, each whole or not at all. Returns the page.
    pub fn write(&self, folder: &Utf8Path, key: &SecretKey) -> Result<Utf8PathBuf, ReportError> {
        let public = key.public()?;
        let what = format!("textnlp drill {} of {}, {}", self.id, self.facts.environment, self.began);
        let json = serde_json::to_string_pretty(&self.to_json()).expect("plain JSON");
        let html = folder.join("report.html");
        for (path, text) in [(folder.join("report.json"), json), (html.clone(), self.to_html(&public))] {
            let signature = sign_bytes(text.as_bytes(), key, &what)?;
            whole(&path, text.as_bytes()).map_err(io("write", &path))?;
            let beside = signature_of(&path);
            whole(&beside, signature.as_bytes()).map_err(io("write", &beside))?;
        }
        Ok(html)
    }

    /// Reads the document of a drill.
    pub fn read(state: &Utf8Path, id: &str) -> Result<Self, ReportError> {
        let path = folder(state, id)?.join("report.json");
        read(&path)
    }
}

/// Where everything of a drill lies.
pub fn folder(state: &Utf8Path, id: &str) -> Result<Utf8PathBuf, ReportError> {
    let plain = !id.is_empty() && id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let folder = state.join("dr/drills").join(id);
    if plain && folder.join("report.json").is_file() {
        Ok(folder)
    } else {
        Err(ReportError::NoSuch(id.chars().take(80).filter(|c| !c.is_control()).collect()))
    }
}

/// Every report of an environment, oldest first; drills that were not finished have none. What cannot be read is named.
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
            Err(error) => unread.push(textnlp_provider::told(&error)),
        }
    }
    reports.sort_by_key(|report| report.began);
    (reports, unread)
}

/// The key that signs reports, made when there is none. Its public half lies beside the drills.
pub fn signing_key(state: &Utf8Path) -> Result<SecretKey, ReportError> {
    let (secret, public) = key_files(state);
    if !secret.is_file() {
        for folder in [secret.parent(), public.parent()].into_iter().flatten() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make", folder))?;
        }
        // The half of a pair whose making was cut off.
        let _ = std::fs::remove_file(&public);
        keygen(&secret, &public, None)?;
    }
    Ok(SecretKey::read(&secret, None)?)
}

/// The key that reports of this environment are held against.
pub fn public_key(state: &Utf8Path) -> Result<PublicKey, ReportError> {
    Ok(PublicKey::read(&key_files(state).1)?)
}

/// Says what a report was signed as, when its signature is by this key and holds.
pub fn verify(file: &Utf8Path, key: &PublicKey) -> Result<String, ReportError> {
    Ok(verify_file(file, key)?)
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
