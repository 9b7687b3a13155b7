//! A disaster-recovery drill: preflight, baseline, fault, promotion, traffic shift, data-loss check, failback, cleanup.
//!
//! The injector of the fault records it, and the fault ends without this process. The journal records the drill's other
//! changes (keys, a temporary API key), so that the next drill can clean up after a crash.

mod around;
mod database;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_provider::error_chain;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::control_client::{ControlClients, DatabaseRole};
use super::control_status::ControlStatus;
use super::failover::{self, FailoverRefusal};
use super::fault::{Fault, FaultKind, Faults};
use super::findings::{Baseline, PrimaryData, findings};
use super::journal::{Action, Journal, JournalError, WHOLE, begin_record};
use super::ledger::{Ledger, LedgerEvent, Mark, RequestStatus, prefix, request_id};
use super::outside::{DrillClient, REQUEST_TIMEOUT};
use super::report::{self, DrillFacts, DrillPhase, FailbackTrigger, Measurements, Report, Targets};
use crate::gate::{KeyIssuer, KeyRequest};
use crate::load::{Key, LoadRequest, Wire};
use around::{InitialState, clear_keys, finish_old, is_back, preflight, revoke};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the global endpoint may take until it accepts a new API key.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(20);
/// The most measurements before the fault.
const BASELINES: usize = 3;
/// Consecutive successful requests that count as recovered.
const IN_A_ROW: usize = 5;
/// How long the usage of requests at surviving sites may take to arrive.
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a killed site may take to start, load its models and catch up.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(180);
/// How long programs that were ready before may take to be ready again.
const UNITS_TIMEOUT: Duration = Duration::from_secs(60);
/// The drill reverts the fault this long before its end, so that the results are read while it lasts.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// The options of a drill.
#[derive(Debug, Clone)]
pub struct DrillOptions {
    /// The site to lose; by default the primary.
    pub site: Option<String>,
    /// The kind of fault.
    pub kind: FaultKind,
    /// Whether the site's data is lost too.
    pub lose_data: bool,
    /// The fault ends after this time in any case.
    pub ttl: Duration,
    /// Whether site agents fail over automatically; otherwise the drill claims, as an operator would.
    pub automatic: bool,
    /// Whether site agents fail back automatically; otherwise the drill does it.
    pub automatic_failback: bool,
    /// Whether control data is in an external database.
    pub stored_outside: bool,
    /// The most replication lag before a drill, in ms.
    pub max_lag_ms: u64,
    /// The targets.
    pub targets: Targets,
    /// How long requests are measured before the fault.
    pub baseline: Duration,
    /// How long the service is observed after the traffic shift, before the site comes back.
    pub hold: Duration,
    /// Requests per second.
    pub requests_per_second: u32,
    /// Writes per second.
    pub writes_per_second: u32,
    /// The request: a body of `/v1/generate`.
    pub body: Value,
    /// The environment, operator and programs, for the report.
    pub facts: DrillFacts,
}

/// The inputs of a drill.
pub struct DrillInputs<'a> {
    /// The environment's state folder.
    pub state: &'a Utf8Path,
    /// The flags that select this environment in a command: ` --env NAME`.
    pub flags: &'a str,
    /// Clients of the site agents and of the witness.
    pub control_clients: &'a ControlClients,
    /// The address that clients use.
    pub front: Arc<dyn Wire>,
    /// Issues temporary API keys.
    pub keys: &'a dyn KeyIssuer,
    /// Injects faults.
    pub faults: &'a dyn Faults,
    /// Cancelled on Ctrl-C.
    pub stop: CancellationToken,
    /// Receives progress: phase and message.
    pub tell: &'a (dyn Fn(&str, &str) + Send + Sync),
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The preconditions are not met; nothing was changed.
    #[error("{}", .0.join("\n"))]
    NotReady(Vec<String>),
    /// The operator stopped it; the fault was reverted.
    #[error("stopped; {0}")]
    Stopped(String),
    /// A phase failed; the fault was reverted.
    #[error("{phase}: {why}")]
    Broken {
        /// The phase.
        phase: &'static str,
        /// The error.
        why: String,
    },
    /// The journal is required.
    #[error("access the journal of failovers and drills")]
    Journal(#[from] JournalError),
}

/// What a drill left behind and could not remove.
pub type Leftovers = Vec<String>;

/// A drill in progress.
struct RunningDrill<'a> {
    stage: &'a DrillInputs<'a>,
    order: &'a DrillOptions,
    id: String,
    fault: Fault,
    ledger: Arc<Ledger>,
    epoch: u64,
    phases: Vec<DrillPhase>,
    units: BTreeMap<String, Vec<String>>,
    /// The database role at the leading site.
    database: Option<DatabaseRole>,
}

/// Reverts and finishes unfinished drills, without another fault. Returns their ids.
pub async fn finish(stage: &DrillInputs<'_>, by: &str) -> Result<Vec<String>, DrillError> {
    let mut journal = Journal::open(stage.state, by, stage.flags)?;
    finish_old(stage, &mut journal).await
}

/// Runs a drill. Reverts and finishes an unfinished earlier drill first. Does not write the report.
pub async fn run(stage: &DrillInputs<'_>, order: &DrillOptions) -> Result<(Report, Utf8PathBuf), DrillError> {
    let mut journal = Journal::open(stage.state, &order.facts.by, stage.flags)?;
    finish_old(stage, &mut journal).await?;
    let id =
        format!("{}-{}", Timestamp::now().strftime("%Y%m%dt%H%M%S"), &uuid::Uuid::new_v4().simple().to_string()[..4]);
    let InitialState { fault, epoch, units } = preflight(stage, order, &id).await?;
    let folder = stage.state.join("dr/drills").join(&id);
    let broken = |phase: &'static str| move |why: std::io::Error| DrillError::Broken { phase, why: why.to_string() };
    std::fs::create_dir_all(&folder).map_err(broken("preflight"))?;
    let ledger = Arc::new(Ledger::begin(&folder.join("ledger.jsonl")).map_err(broken("preflight"))?);
    let undo = Some(format!("{} reverts what is left", journal.command("dr drill --finish")));
    let data = json!({ "fault": fault, "home": stage.control_clients.home, "epoch": epoch });
    journal.begin(Action::Drill, &id, WHOLE, undo, data)?;
    let mut running =
        RunningDrill { stage, order, id: id.clone(), fault, ledger, epoch, phases: Vec::new(), units, database: None };
    match running.go(&mut journal).await {
        Ok(report) => {
            let missed = json!({ "missed": report.missed, "leftovers": report.leftovers });
            journal.end(Action::Drill, &id, WHOLE, missed)?;
            Ok((report, folder))
        }
        Err(error) => {
            // Left unfinished if the site is not back yet: the next drill resumes here.
            let left = running.abort(&mut journal).await;
            (stage.tell)(
                "abort",
                &if left.is_empty() {
                    "the fault is reverted, and nothing is left".to_owned()
                } else {
                    left.join("; ")
                },
            );
            Err(match error {
                DrillError::Stopped(why) if !left.is_empty() => {
                    DrillError::Stopped(format!("{why}; left: {}", left.join("; ")))
                }
                DrillError::Broken { phase, why } if !left.is_empty() => {
                    DrillError::Broken { phase, why: format!("{why}; left: {}", left.join("; ")) }
                }
                error => error,
            })
        }
    }
}

impl RunningDrill<'_> {
    async fn go(&mut self, journal: &mut Journal) -> Result<Report, DrillError> {
        let api_key = self.issue(journal).await?;
        self.front_answers(&api_key).await?;
        let client = DrillClient {
            drill: self.id.clone(),
            front: self.stage.front.clone(),
            key: Some(api_key),
            body: self.order.body.clone(),
            watches: self.stage.control_clients.watches.clone(),
            ledger: self.ledger.clone(),
            requests_per_second: self.order.requests_per_second,
            writes_per_second: self.order.writes_per_second,
        };
        let quit = CancellationToken::new();
        let client = tokio::spawn(client.run(quit.clone()));
        let rehearsed = self.rehearse(journal).await;
        if rehearsed.is_err() {
            // Reverted before any wait. An error is reported by the later revert.
            let _ = self.stage.faults.revert(&self.id).await;
        }
        quit.cancel();
        // The client's last requests end by their timeouts; a write after the cleanup would stay.
        client.await.map_err(|error| self.broken("client", error.to_string()))?;
        let (served, truth, failback) = rehearsed?;
        let leftovers = self.leftovers(journal, truth.as_ref()).await;
        self.report(served, truth.unwrap_or_default(), failback, leftovers)
    }

    /// Every phase between the client's first request and its last. Returns whether the service recovered, what the new
    /// primary held, and how the failback happened.
    async fn rehearse(
        &mut self,
        journal: &mut Journal,
    ) -> Result<(bool, Option<PrimaryData>, FailbackTrigger), DrillError> {
        self.baseline().await?;
        self.lose(journal).await?;
        let served = self.shift().await?;
        self.look_at_database().await?;
        let truth = self.find_losses().await?;
        self.take_back(journal).await?;
        self.recovery().await?;
        Ok((served, truth, self.go_home(journal).await?))
    }

    async fn issue(&self, journal: &mut Journal) -> Result<Key, DrillError> {
        self.tell("preflight", "a temporary API key is created");
        let name = format!("drill {} (temporary)", self.id);
        let request = KeyRequest { name, requests_per_hour: None, tenant: None };
        let issued = self.stage.keys.create(request).await.map_err(|why| self.broken("preflight", why))?;
        let undo = Some(journal.command(&format!("key revoke {}", issued.public_id)));
        journal.begin(Action::Drill, &self.id, "key", undo, json!({ "public_id": issued.public_id }))?;
        Ok(issued.key)
    }

    /// Waits until the global endpoint accepts this API key: every site knows it then.
    async fn front_answers(&self, api_key: &Key) -> Result<(), DrillError> {
        let began = Instant::now();
        let (mut in_a_row, mut says) = (0, String::new());
        while in_a_row < IN_A_ROW {
            let load_request = LoadRequest {
                timeout: REQUEST_TIMEOUT,
                ..LoadRequest::post("/v1/generate", self.order.body.clone()).with(api_key)
            };
            match self.stage.front.send(load_request).await {
                Ok(answer) if answer.status == 200 => in_a_row += 1,
                Ok(answer) => (in_a_row, says) = (0, format!("status {}", answer.status)),
                Err(failure) => (in_a_row, says) = (0, failure.to_string()),
            }
            if in_a_row == 0 {
                if began.elapsed() > ENDPOINT_TIMEOUT {
                    return Err(self.broken(
                        "preflight",
                        format!("the global endpoint does not answer: {says}; no fault was injected"),
                    ));
                }
                pause(self.stage, POLL_INTERVAL).await?;
            }
        }
        Ok(())
    }

    /// Measures the service before the fault. One slow request on a busy machine is no reason to give up, so a bad
    /// measurement is repeated.
    async fn baseline(&mut self) -> Result<(), DrillError> {
        let began = self.ledger.now();
        self.tell(
            "baseline",
            &format!(
                "load from outside: {} requests and {} writes a second",
                self.order.requests_per_second, self.order.writes_per_second
            ),
        );
        let mut last = String::new();
        for attempt in 1..=BASELINES {
            let from = self.ledger.now();
            pause(self.stage, self.order.baseline).await?;
            let measured = Baseline::of(&self.events("baseline")?, from);
            if measured.is_good() {
                let repeated = (attempt > 1).then(|| format!("; measurement {attempt}, before it: {last}"));
                self.phase("baseline", began, None, measured.describe() + &repeated.unwrap_or_default());
                return Ok(());
            }
            if attempt < BASELINES {
                self.tell("baseline", &format!("{}; it is measured again", measured.describe()));
            }
            last = measured.describe();
        }
        let why = format!(
            "the service is unhealthy before the fault, measured {BASELINES} times: {last}; no fault was injected"
        );
        Err(self.broken("baseline", why))
    }

    /// Injects the fault and observes the reaction of the sites.
    async fn lose(&mut self, journal: &mut Journal) -> Result<(), DrillError> {
        // Counted from now: preflight and baseline took time.
        self.fault.until = until(self.order.ttl);
        let undo = Some(format!("it expires at {}", self.fault.until));
        journal.begin(Action::Drill, &self.id, "fault", undo, json!(self.fault))?;
        self.tell(
            "fault",
            &format!(
                "{} of {}{}",
                self.fault.kind.word(),
                self.fault.site,
                if self.fault.lose_data { ", its data is lost" } else { "" }
            ),
        );
        let fault_at = self.ledger.mark(Mark::Fault);
        let injected = async {
            let why = |why: String| DrillError::Broken { phase: "fault", why };
            self.stage.faults.inject(&self.fault).await.map_err(why)?;
            Ok(self.ledger.now())
        };
        let (injected_at, (detected, granted)) = futures::try_join!(injected, self.watch_promotion())?;
        journal.end(Action::Drill, &self.id, "fault", Value::Null)?;
        self.phase("fault", fault_at, Some(injected_at), format!("{} injected", self.fault.kind.word()));
        let end = self.ledger.now();
        let Some((granted, primary)) = granted else {
            self.phase(
                "detection",
                fault_at,
                Some(detected.unwrap_or(end)),
                "the witness granted no other configuration while the fault lasted".to_owned(),
            );
            return Ok(());
        };
        let detected = detected.unwrap_or(granted).min(granted);
        self.phase(
            "detection",
            fault_at,
            Some(detected),
            "until the grace period of the site's lease had expired at the witness".to_owned(),
        );
        self.phase(
            "fencing",
            detected,
            Some(granted),
            format!("until the witness granted epoch {} with {primary} as primary", self.epoch + 1),
        );
        Ok(())
    }

    /// The times when the witness considered the site silent and when it granted another configuration, and the new
    /// primary.
    async fn watch_promotion(&self) -> Result<(Option<f64>, Option<(f64, String)>), DrillError> {
        let (mut detected, mut claimed) = (None, Instant::now());
        let began = Instant::now();
        let mut time_limit = Duration::MAX;
        while !self.is_over() && began.elapsed() < time_limit {
            if let Ok(witness) = self.stage.control_clients.witness.status().await {
                // A full disk need not cause a failover; every other fault must.
                if self.fault.kind == FaultKind::DiskFull {
                    time_limit = Duration::from_millis(witness.grace_ms.saturating_mul(3)) + Duration::from_secs(5);
                }
                let without = witness.epoch > self.epoch
                    && !witness.members.contains(&self.fault.site)
                    && witness.primary != self.fault.site;
                if without {
                    let at = self.ledger.mark(Mark::Granted);
                    self.tell(
                        "promotion",
                        &format!(
                            "epoch {}: {} is primary, members {}",
                            witness.epoch,
                            witness.primary,
                            witness.members.join(", ")
                        ),
                    );
                    return Ok((detected, Some((at, witness.primary))));
                }
                let silent = witness.primary == self.fault.site && failover::grace(&witness).is_none();
                if silent && detected.is_none() {
                    detected = Some(self.ledger.mark(Mark::Detected));
                    self.tell(
                        "detection",
                        &format!("{} has sent no heartbeat for {} ms", witness.primary, witness.renewed_ms),
                    );
                }
                // What an operator would do without automatic failover.
                if silent && !self.order.automatic && claimed.elapsed() > Duration::from_millis(500) {
                    claimed = Instant::now();
                    self.claim(&witness.members).await;
                }
            }
            pause(self.stage, POLL_INTERVAL).await?;
        }
        Ok((detected, None))
    }

    async fn claim(&self, members: &[String]) {
        let control_status = ControlStatus::take(self.stage.control_clients).await;
        let able = members.iter().filter(|name| **name != self.fault.site).filter_map(|name| control_status.site(name));
        // The site with the most entries; among equals the first in the environment's order.
        let best = able.fold(None, |best: Option<&super::control_client::SiteAgentStatus>, site| match best {
            Some(best) if best.last >= site.last => Some(best),
            _ => Some(site),
        });
        let Some(watch) = best.and_then(|site| self.stage.control_clients.watch(&site.site)) else { return };
        match watch.claim().await {
            Ok(()) => self.tell("promotion", &format!("{} received the command to take over", watch.site)),
            // Retried at the next poll, until the timeout.
            Err(error) => self.tell("promotion", &error.to_string()),
        }
    }

    /// Waits until requests and writes succeed without the site, then observes for a while. Returns whether the service
    /// recovered.
    async fn shift(&mut self) -> Result<bool, DrillError> {
        let fault_at = self.mark(Mark::Fault)?;
        let granted = self.mark(Mark::Granted)?;
        let mut served = false;
        while !self.is_over() {
            let events = self.events("shift")?;
            let requests_ok = in_a_row(&events, granted.or(fault_at).unwrap_or_default()) >= IN_A_ROW;
            let wrote = events.iter().find_map(|event| match event {
                LedgerEvent::Write { t, is: RequestStatus::Ok, epoch: Some(epoch), .. } if *epoch > self.epoch => {
                    Some(*t)
                }
                _ => None,
            });
            // Without a new configuration, a write cannot be acknowledged under one.
            if requests_ok && (wrote.is_some() || granted.is_none()) {
                served = true;
                let end = wrote.unwrap_or_else(|| self.ledger.now());
                if let Some(granted) = granted {
                    self.phase(
                        "promotion",
                        granted,
                        Some(end),
                        "until the new primary acknowledged a write".to_owned(),
                    );
                }
                break;
            }
            pause(self.stage, POLL_INTERVAL).await?;
        }
        let found = findings(&self.id, &self.events("shift")?, self.epoch, &PrimaryData::default());
        if let (Some(at), Some(rto)) = (fault_at, found.service_rto_ms) {
            self.phase(
                "shift",
                at,
                Some(at + rto),
                format!("until no request failed any more, {:.2} s after the fault", rto / 1000.0),
            );
        }
        self.tell(
            "shift",
            if served {
                "the service answers without the site"
            } else {
                "the service did not come back while the fault lasted"
            },
        );
        let from = self.ledger.now();
        let hold = self.left().min(self.order.hold);
        pause(self.stage, hold).await?;
        self.phase("hold", from, None, "the service is observed on the new primary".to_owned());
        Ok(served)
    }

    /// Reads what the new primary holds before the lost site comes back. `None` without a reachable primary.
    async fn find_losses(&mut self) -> Result<Option<PrimaryData>, DrillError> {
        let from = self.ledger.now();
        let primary =
            self.stage.control_clients.witness.status().await.map(|witness| witness.primary).unwrap_or_default();
        let preferred = self.stage.control_clients.watch(&primary).filter(|_| primary != self.fault.site);
        // If the lost site stays primary, another member is asked.
        let other = self.stage.control_clients.watches.iter().find(|watch| watch.site != self.fault.site);
        let Some(watch) = preferred.or(other) else { return Ok(None) };
        let read_at = self.ledger.mark(Mark::Read);
        let events = self.events("reading")?;
        let fault_at = self.mark(Mark::Fault)?.unwrap_or_default();
        let answered: Vec<(u64, f64)> = events
            .iter()
            .filter_map(|event| match event {
                LedgerEvent::Request { t, n, is: RequestStatus::Ok, .. } if *t < read_at => Some((*n, *t)),
                _ => None,
            })
            .collect();
        let ids: Vec<String> = answered.iter().map(|(n, _)| request_id(&self.id, *n)).collect();
        let began = Instant::now();
        loop {
            let keys = watch.keys(&prefix(&self.id)).await;
            let known = watch.known(&ids).await;
            match (keys, known) {
                (Ok(keys), Ok(known)) => {
                    let truth = PrimaryData { keys: keys.into_iter().collect(), known: known.into_iter().collect() };
                    // The usage of surviving sites is still arriving; that of the lost site will not.
                    let coming = answered
                        .iter()
                        .any(|(n, t)| *t > fault_at + 1000.0 && !truth.known.contains(&request_id(&self.id, *n)));
                    if !coming || began.elapsed() > USAGE_TIMEOUT || self.is_over() {
                        self.phase(
                            "reading",
                            from,
                            None,
                            format!(
                                "{} holds {} writes and the usage of {} requests",
                                watch.site,
                                truth.keys.len(),
                                truth.known.len()
                            ),
                        );
                        self.tell(
                            "reading",
                            &format!(
                                "{} holds {} writes and the usage of {} of {} requests",
                                watch.site,
                                truth.keys.len(),
                                truth.known.len(),
                                ids.len()
                            ),
                        );
                        return Ok(Some(truth));
                    }
                }
                (Err(error), _) | (_, Err(error)) if began.elapsed() > USAGE_TIMEOUT => {
                    return Err(self.broken("reading", format!("the lost data is unknown: {error}")));
                }
                _ => {}
            }
            pause(self.stage, POLL_INTERVAL).await?;
        }
    }

    async fn take_back(&mut self, journal: &mut Journal) -> Result<(), DrillError> {
        let at = self.ledger.mark(Mark::Revert);
        journal.begin(Action::Drill, &self.id, "revert", None, Value::Null)?;
        self.stage.faults.revert(&self.id).await.map_err(|why| self.broken("revert", why))?;
        journal.end(Action::Drill, &self.id, "revert", Value::Null)?;
        self.tell("revert", &format!("{} is allowed to rejoin", self.fault.site));
        self.phase("revert", at, None, "the fault is reverted".to_owned());
        Ok(())
    }

    async fn recovery(&mut self) -> Result<(), DrillError> {
        let from = self.ledger.now();
        let began = Instant::now();
        while !is_back(&ControlStatus::take(self.stage.control_clients).await, &self.fault.site) {
            if began.elapsed() > RECOVERY_TIMEOUT {
                return Err(self.broken(
                    "recovery",
                    format!("{} has not rejoined as a member after {} s", self.fault.site, RECOVERY_TIMEOUT.as_secs()),
                ));
            }
            pause(self.stage, POLL_INTERVAL).await?;
        }
        let at = self.ledger.mark(Mark::Recovered);
        self.tell("recovery", &format!("{} is a member again", self.fault.site));
        self.phase(
            "recovery",
            from,
            Some(at),
            format!("until {} had caught up and was a member again", self.fault.site),
        );
        Ok(())
    }

    /// Waits until the home site is primary again, or fails back. Returns how it happened.
    async fn go_home(&mut self, journal: &mut Journal) -> Result<FailbackTrigger, DrillError> {
        let from = self.ledger.now();
        let home = self.stage.control_clients.home.clone();
        let witness =
            self.stage.control_clients.witness.status().await.map_err(|e| self.broken("failback", e.to_string()))?;
        if witness.primary == home {
            // Either no site took over, or the home site became primary again during the poll.
            let was_replaced = self.fault.site == home && self.mark(Mark::Granted)?.is_some();
            self.ledger.mark(Mark::Home);
            return Ok(if was_replaced { FailbackTrigger::Automatic } else { FailbackTrigger::NotNeeded });
        }
        let mut by = FailbackTrigger::Drill;
        if self.order.automatic_failback {
            let time_limit = Duration::from_millis(witness.grace_ms.saturating_mul(4)) + Duration::from_secs(15);
            let began = Instant::now();
            while began.elapsed() < time_limit && by == FailbackTrigger::Drill {
                if self.stage.control_clients.witness.status().await.is_ok_and(|witness| witness.primary == home) {
                    by = FailbackTrigger::Automatic;
                }
                pause(self.stage, POLL_INTERVAL).await?;
            }
        }
        if by == FailbackTrigger::Drill {
            let tell = |says: &str| self.tell("failback", says);
            let shifted = failover::failback(self.stage.control_clients, journal, RECOVERY_TIMEOUT, &tell);
            tokio::select! {
                shifted = shifted => shifted.map_err(|refusal: FailoverRefusal| self.broken("failback", error_chain(&refusal)))?,
                () = self.stage.stop.cancelled() => return Err(stopped()),
            };
        }
        let at = self.ledger.mark(Mark::Home);
        self.tell("failback", &format!("{home} is primary again ({by})"));
        self.phase("failback", from, Some(at), format!("until {home} was primary again ({by})"));
        // The cost of the failback shows in the requests after it.
        pause(self.stage, Duration::from_secs(1).min(self.order.hold)).await?;
        Ok(by)
    }

    /// Removes what the drill created and returns what is left.
    async fn leftovers(&mut self, journal: &mut Journal, truth: Option<&PrimaryData>) -> Leftovers {
        let mut left = Leftovers::new();
        if let Err(why) = clear_keys(self.stage, &self.id).await {
            left.push(format!("keys under {} in control data: {why}", prefix(&self.id)));
        }
        if let Err(why) = revoke(self.stage, journal, &self.id).await {
            left.push(format!("the temporary API key, which expires within the hour: {why}"));
        }
        match self.stage.faults.open().await {
            Ok(open) => left.extend(open.iter().map(|fault| format!("fault {} of {}", fault.id, fault.site))),
            Err(why) => left.push(format!("faults cannot be read: {why}")),
        }
        let began = Instant::now();
        for (site, before) in &self.units {
            loop {
                let now = self.stage.faults.ready_units(site).await;
                let missing: Vec<&str> = before.iter().filter(|unit| !now.contains(unit)).map(String::as_str).collect();
                if missing.is_empty() {
                    break;
                }
                if began.elapsed() > UNITS_TIMEOUT {
                    left.push(format!("{site}: not ready as before: {}", missing.join(", ")));
                    break;
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        if let Some(lost) = self.stage.faults.lost_data(&self.fault).await {
            // The lost data may be the only copy of what is missing elsewhere.
            let complete = left.is_empty() && truth.is_some_and(|truth| self.is_within_promise(truth));
            let removed = match complete {
                true => self.stage.faults.discard_lost(&self.fault).await,
                false => {
                    Err("it can hold data that the other sites lack: remove it when that data is not needed".to_owned())
                }
            };
            if let Err(why) = removed {
                left.push(format!("{lost}: {why}"));
            }
        }
        left
    }

    /// Whether the data that the new primary lacks is within the targets.
    fn is_within_promise(&self, truth: &PrimaryData) -> bool {
        let Ok(events) = self.ledger.read() else { return false };
        let found = findings(&self.id, &events, self.epoch, truth);
        found.lost == 0 && found.rpo_ms <= self.order.targets.rpo_s * 1000.0
    }

    fn report(
        &mut self,
        served: bool,
        truth: PrimaryData,
        failback: FailbackTrigger,
        leftovers: Leftovers,
    ) -> Result<Report, DrillError> {
        self.ledger.sync().map_err(|error| self.broken("ledger", error.to_string()))?;
        let events = self.events("ledger")?;
        let found = findings(&self.id, &events, self.epoch, &truth);
        let marks = events.iter().filter_map(|event| match event {
            LedgerEvent::Mark { t, name } => Some((*name, *t)),
            _ => None,
        });
        let marks: Vec<(Mark, f64)> = marks.collect();
        let stored_outside = self.order.stored_outside && marks.iter().all(|(mark, _)| *mark != Mark::Granted);
        let figures = Measurements {
            findings: found,
            marks,
            served,
            failback,
            epoch_before: self.epoch,
            stored_outside,
            database: self.database.take(),
        };
        let phases = std::mem::take(&mut self.phases);
        Ok(Report {
            id: self.id.clone(),
            facts: self.order.facts.clone(),
            site: self.fault.site.clone(),
            fault: self.fault.kind,
            lose_data: self.fault.lose_data,
            automatic: self.order.automatic,
            began: self.ledger.at(),
            seconds: self.ledger.now().round() / 1000.0,
            targets: self.order.targets,
            missed: report::missed(&self.order.targets, &figures),
            phases,
            figures,
            leftovers,
        })
    }

    /// Reverts what can be reverted at once, after an error or Ctrl-C. Returns what is left.
    async fn abort(&mut self, journal: &mut Journal) -> Leftovers {
        let mut left = Leftovers::new();
        let injected = begin_record(journal.records(), &self.id, "fault").is_some();
        if let Err(why) = self.stage.faults.revert(&self.id).await {
            left.push(format!("fault {}: {why}; it expires at {}", self.id, self.fault.until));
        }
        if let Err(why) = clear_keys(self.stage, &self.id).await {
            left.push(format!("keys under {} in control data: {why}", prefix(&self.id)));
        }
        if let Err(why) = revoke(self.stage, journal, &self.id).await {
            left.push(format!("the temporary API key, which expires within the hour: {why}"));
        }
        let control_status = ControlStatus::take(self.stage.control_clients).await;
        let home = control_status.primary().is_some_and(|primary| primary == self.stage.control_clients.home);
        if injected && !(home && is_back(&control_status, &self.fault.site)) {
            left.push(format!(
                "{} rejoins on its own; the next drill waits for it and fails back first",
                self.fault.site
            ));
        } else if left.is_empty() {
            // Everything is as before, so the next drill has nothing to finish.
            let _ = journal.fail(Action::Drill, &self.id, WHOLE, "given up");
        }
        left
    }

    fn events(&self, phase: &'static str) -> Result<Vec<LedgerEvent>, DrillError> {
        self.ledger.read().map_err(|error| self.broken(phase, error.to_string()))
    }

    fn mark(&self, wanted: Mark) -> Result<Option<f64>, DrillError> {
        let events = self.events("ledger")?;
        Ok(events.iter().find_map(|event| match event {
            LedgerEvent::Mark { t, name } if *name == wanted => Some(*t),
            _ => None,
        }))
    }

    fn phase(&mut self, name: &str, from: f64, to: Option<f64>, says: String) {
        let to = to.unwrap_or_else(|| self.ledger.now());
        // Rounded to whole milliseconds, so that the report reads back unchanged.
        let seconds = |ms: f64| ms.round() / 1000.0;
        self.phases.push(DrillPhase {
            name: name.to_owned(),
            from_s: seconds(from),
            to_s: seconds(to.max(from)),
            says,
        });
    }

    /// The rest of the fault's time, minus the time to read the results.
    fn left(&self) -> Duration {
        let left = Duration::try_from(self.fault.until.duration_since(Timestamp::now())).unwrap_or_default();
        left.saturating_sub(BEFORE_THE_END)
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn tell(&self, phase: &str, says: &str) {
        (self.stage.tell)(phase, says);
    }

    fn broken(&self, phase: &'static str, why: String) -> DrillError {
        DrillError::Broken { phase, why }
    }
}

/// The consecutive successful requests among the newest finished ones that were sent since then.
fn in_a_row(events: &[LedgerEvent], since: f64) -> usize {
    let mut sent = BTreeMap::new();
    let mut over = Vec::new();
    for event in events {
        match event {
            LedgerEvent::Request { t, n, is: RequestStatus::Sent, .. } if *t >= since => drop(sent.insert(*n, *t)),
            LedgerEvent::Request { n, is, .. } if *is != RequestStatus::Sent && sent.contains_key(n) => {
                over.push(*is == RequestStatus::Ok)
            }
            _ => {}
        }
    }
    over.iter().rev().take_while(|ok| **ok).count()
}

/// The end of a fault that starts now.
fn until(ttl: Duration) -> Timestamp {
    Timestamp::now() + SignedDuration::try_from(ttl).unwrap_or(SignedDuration::from_secs(60))
}

/// Sleeps, unless the drill is stopped.
async fn pause(stage: &DrillInputs<'_>, time: Duration) -> Result<(), DrillError> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = stage.stop.cancelled() => Err(stopped()),
    }
}

fn stopped() -> DrillError {
    DrillError::Stopped("the fault is reverted".to_owned())
}
