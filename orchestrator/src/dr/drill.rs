//! A rehearsal of losing a site: preflight, baseline, fault, promotion, shift, what was lost, the way back, and nothing left over.
//!
//! The fault is written down by whoever injects it and ends by itself; what else a drill changes (keys, a temporary API key) is in the
//! journal, so that the next drill finishes what this one left.

mod around;
mod database;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_provider::told;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fault::{Fault, FaultKind, Faults};
use super::findings::{Truth, findings};
use super::journal::{Action, Journal, JournalError, WHOLE, begun};
use super::ledger::{Event, Is, Ledger, Mark, prefix, request_id};
use super::outside::{Outside, REQUEST_WITHIN};
use super::picture::Picture;
use super::report::{self, Facts, Figures, Phase, Report, Targets};
use super::shift::{self, Refusal};
use super::talk::Everybody;
use crate::gate::{KeyIssuer, KeyRequest};
use crate::load::{Ask, Key, Wire};
use around::{Before, clear_keys, finish_old, is_back, preflight, revoke};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A front that has just got a key's configuration answers within this.
const FRONT_WITHIN: Duration = Duration::from_secs(20);
/// Answered requests in a row that are a service.
const IN_A_ROW: usize = 5;
/// Usage of requests that living sites answered arrives within this.
const USAGE_WITHIN: Duration = Duration::from_secs(5);
/// A site that was killed starts, loads its models and catches up.
const RECOVERED_WITHIN: Duration = Duration::from_secs(180);
/// Programs that were ready before are ready again.
const UNITS_WITHIN: Duration = Duration::from_secs(60);
/// Before its time is over we take the fault back ourselves, so that the reading is done while it lasts.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// What is to be rehearsed.
#[derive(Debug, Clone)]
pub struct Order {
    /// The site that is lost; left out, the primary.
    pub site: Option<String>,
    /// How.
    pub kind: FaultKind,
    /// Whether its data is lost too.
    pub lose_data: bool,
    /// After this the fault ends whatever happens.
    pub ttl: Duration,
    /// Whether the watches fail over by themselves; else the drill claims, as a person would.
    pub automatic: bool,
    /// Whether the watches go back home by themselves; else the drill does it.
    pub automatic_failback: bool,
    /// Whether control data is in a database that stands outside of every site.
    pub stored_outside: bool,
    /// Lag that is allowed before a drill.
    pub max_lag_ms: u64,
    /// What is promised.
    pub targets: Targets,
    /// How long is asked before the fault.
    pub baseline: Duration,
    /// How long the shifted service is watched before the site comes back.
    pub hold: Duration,
    /// Requests per second.
    pub requests_per_second: u32,
    /// Writes per second.
    pub writes_per_second: u32,
    /// What is asked: a body of `/v1/generate`.
    pub body: Value,
    /// What the report says of the environment.
    pub facts: Facts,
}

/// What a drill works with.
pub struct Stage<'a> {
    /// The environment's state folder.
    pub state: &'a Utf8Path,
    /// What leads a typed command to this environment: ` --env NAME`.
    pub flags: &'a str,
    /// Watches and witness.
    pub everybody: &'a Everybody,
    /// The address that clients use.
    pub front: Arc<dyn Wire>,
    /// Temporary API keys.
    pub keys: &'a dyn KeyIssuer,
    /// Whoever can take a site away.
    pub faults: &'a dyn Faults,
    /// Told by Ctrl-C.
    pub stop: CancellationToken,
    /// Hears what happens.
    pub tell: &'a (dyn Fn(&str, &str) + Send + Sync),
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// Something is not as it must be before a drill; nothing was changed.
    #[error("{}", .0.join("\n"))]
    NotReady(Vec<String>),
    /// It was stopped; the fault was taken back.
    #[error("stopped; {0}")]
    Stopped(String),
    /// A part of it did not work; the fault was taken back.
    #[error("{phase}: {why}")]
    Broken {
        /// In which phase.
        phase: &'static str,
        /// What did not work.
        why: String,
    },
    /// Nothing is done without it.
    #[error("keep the journal")]
    Journal(#[from] JournalError),
}

/// What a drill left behind and could not take away.
pub type Leftovers = Vec<String>;

/// A drill that is under way.
struct Running<'a> {
    stage: &'a Stage<'a>,
    order: &'a Order,
    id: String,
    fault: Fault,
    ledger: Arc<Ledger>,
    epoch: u64,
    phases: Vec<Phase>,
    units: BTreeMap<String, Vec<String>>,
    /// The role of the database that whoever leads works with.
    database: Option<String>,
}

/// Rehearses. First what an earlier drill left unfinished is taken back and finished. The report is not written yet.
pub async fn run(stage: &Stage<'_>, order: &Order) -> Result<(Report, Utf8PathBuf), DrillError> {
    let mut journal = Journal::open(stage.state, &order.facts.by, stage.flags)?;
    finish_old(stage, &mut journal).await?;
    let id =
        format!("{}-{}", Timestamp::now().strftime("%Y%m%dt%H%M%S"), &uuid::Uuid::new_v4().simple().to_string()[..4]);
    let Before { fault, epoch, units } = preflight(stage, order, &id).await?;
    let folder = stage.state.join("dr/drills").join(&id);
    let broken = |phase: &'static str| move |why: std::io::Error| DrillError::Broken { phase, why: why.to_string() };
    std::fs::create_dir_all(&folder).map_err(broken("preflight"))?;
    let ledger = Arc::new(Ledger::begin(&folder.join("ledger.jsonl")).map_err(broken("preflight"))?);
    let undo = Some(format!("{} takes back what is left, then begins anew", journal.command("dr drill")));
    let data = json!({ "fault": fault, "home": stage.everybody.home, "epoch": epoch });
    journal.begin(Action::Drill, &id, WHOLE, undo, data)?;
    let mut running =
        Running { stage, order, id: id.clone(), fault, ledger, epoch, phases: Vec::new(), units, database: None };
    match running.go(&mut journal).await {
        Ok(report) => {
            let missed = json!({ "missed": report.missed, "leftovers": report.leftovers });
            journal.end(Action::Drill, &id, WHOLE, missed)?;
            Ok((report, folder))
        }
        Err(error) => {
            // Left unfinished where the site is not back yet: the next drill goes on from here.
            let left = running.abort(&mut journal).await;
            (stage.tell)(
                "abort",
                &if left.is_empty() { "the fault is taken back, nothing is left".to_owned() } else { left.join("; ") },
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

impl Running<'_> {
    async fn go(&mut self, journal: &mut Journal) -> Result<Report, DrillError> {
        let api_key = self.issue(journal).await?;
        self.front_answers(&api_key).await?;
        let client = Outside {
            drill: self.id.clone(),
            front: self.stage.front.clone(),
            key: Some(api_key),
            body: self.order.body.clone(),
            watches: self.stage.everybody.watches.clone(),
            ledger: self.ledger.clone(),
            requests_per_second: self.order.requests_per_second,
            writes_per_second: self.order.writes_per_second,
        };
        let quit = CancellationToken::new();
        let client = tokio::spawn(client.run(quit.clone()));
        let rehearsed = self.rehearse(journal).await;
        if rehearsed.is_err() {
            // Before anything is waited for; what it says is heard when it is asked again.
            let _ = self.stage.faults.revert(&self.id).await;
        }
        quit.cancel();
        // Its last requests end by their own time; a write that comes after the clearing would stay.
        client.await.map_err(|error| self.broken("client", error.to_string()))?;
        let (served, truth, failback) = rehearsed?;
        let leftovers = self.leftovers(journal, truth.as_ref()).await;
        self.report(served, truth.unwrap_or_default(), failback, leftovers)
    }

    /// Everything between the first request of the client and its last. Says whether the service came back, what the new primary held,
    /// and who went back home.
    async fn rehearse(&mut self, journal: &mut Journal) -> Result<(bool, Option<Truth>, String), DrillError> {
        self.baseline().await?;
        self.lose(journal).await?;
        let served = self.shift().await?;
        self.look_at_database().await?;
        let truth = self.look_for_losses().await?;
        self.take_back(journal).await?;
        self.recovery().await?;
        Ok((served, truth, self.go_home(journal).await?))
    }

    async fn issue(&self, journal: &mut Journal) -> Result<Key, DrillError> {
        self.tell("preflight", "a temporary key is made");
        let request = KeyRequest { name: format!("drill {} (temporary)", self.id), requests_per_hour: None };
        let issued = self.stage.keys.create(request).await.map_err(|why| self.broken("preflight", why))?;
        let undo = Some(journal.command(&format!("key revoke {}", issued.public_id)));
        journal.begin(Action::Drill, &self.id, "key", undo, json!({ "public_id": issued.public_id }))?;
        Ok(issued.key)
    }

    /// The front answers with this key: every site has heard of it.
    async fn front_answers(&self, api_key: &Key) -> Result<(), DrillError> {
        let began = Instant::now();
        let (mut in_a_row, mut says) = (0, String::new());
        while in_a_row < IN_A_ROW {
            let ask =
                Ask { timeout: REQUEST_WITHIN, ..Ask::post("/v1/generate", self.order.body.clone()).with(api_key) };
            match self.stage.front.send(ask).await {
                Ok(answer) if answer.status == 200 => in_a_row += 1,
                Ok(answer) => (in_a_row, says) = (0, format!("status {}", answer.status)),
                Err(failure) => (in_a_row, says) = (0, failure.to_string()),
            }
            if in_a_row == 0 {
                if began.elapsed() > FRONT_WITHIN {
                    return Err(
                        self.broken("preflight", format!("the front does not answer: {says}; nothing was injected"))
                    );
                }
                pause(self.stage, LOOK_EVERY).await?;
            }
        }
        Ok(())
    }

    async fn baseline(&mut self) -> Result<(), DrillError> {
        let from = self.ledger.now();
        self.tell(
            "baseline",
            &format!(
                "{} requests and {} writes a second from outside",
                self.order.requests_per_second, self.order.writes_per_second
            ),
        );
        pause(self.stage, self.order.baseline).await?;
        let events = self.events("baseline")?;
        let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
        let bad = count(|e| {
            matches!(
                e,
                Event::Request { is: Is::Failed | Is::Timeout, .. } | Event::Write { is: Is::Failed | Is::Timeout, .. }
            )
        });
        let asked = count(|e| matches!(e, Event::Request { is: Is::Ok, .. }));
        let wrote = count(|e| matches!(e, Event::Write { is: Is::Ok, .. }));
        if bad > 0 || asked == 0 || wrote == 0 {
            let why = events.iter().find_map(|event| match event {
                Event::Request { is: Is::Failed | Is::Timeout, why, .. }
                | Event::Write { is: Is::Failed | Is::Timeout, why, .. } => why.clone(),
                _ => None,
            });
            let why = format!(
                "the service is not well before anything happened: {asked} answered, {wrote} writes acknowledged, {bad} failed{}; nothing was injected",
                why.map(|why| format!(" ({why})")).unwrap_or_default()
            );
            return Err(self.broken("baseline", why));
        }
        self.phase(
            "baseline",
            from,
            None,
            format!("{asked} requests answered, {wrote} writes acknowledged, none failed"),
        );
        Ok(())
    }

    /// Injects the fault and watches for what the sites do about it.
    async fn lose(&mut self, journal: &mut Journal) -> Result<(), DrillError> {
        // Counted from now: the preflight and the baseline took their part of it.
        self.fault.until = until(self.order.ttl);
        let undo = Some(format!("it ends by itself at {}", self.fault.until));
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
                "no other configuration was granted while the fault lasted".to_owned(),
            );
            return Ok(());
        };
        let detected = detected.unwrap_or(granted).min(granted);
        self.phase(
            "detection",
            fault_at,
            Some(detected),
            "until the witness had not heard the site for its grace".to_owned(),
        );
        self.phase(
            "fencing",
            detected,
            Some(granted),
            format!("until the witness granted epoch {} with {primary} as primary", self.epoch + 1),
        );
        Ok(())
    }

    /// When the witness counted the site as silent, and when it granted a configuration without it and to whom.
    async fn watch_promotion(&self) -> Result<(Option<f64>, Option<(f64, String)>), DrillError> {
        let (mut detected, mut claimed) = (None, Instant::now());
        let began = Instant::now();
        let mut patience = Duration::MAX;
        while !self.is_over() && began.elapsed() < patience {
            if let Ok(witness) = self.stage.everybody.witness.status().await {
                // A full disk need not make anybody take over; every other loss must.
                if self.fault.kind == FaultKind::DiskFull {
                    patience = Duration::from_millis(witness.grace_ms.saturating_mul(3)) + Duration::from_secs(5);
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
                let silent = witness.primary == self.fault.site && shift::grace(&witness).is_none();
                if silent && detected.is_none() {
                    detected = Some(self.ledger.mark(Mark::Detected));
                    self.tell(
                        "detection",
                        &format!("{} has not been heard for {} ms", witness.primary, witness.renewed_ms),
                    );
                }
                // What a person would do where nothing is automatic.
                if silent && !self.order.automatic && claimed.elapsed() > Duration::from_millis(500) {
                    claimed = Instant::now();
                    self.claim(&witness.members).await;
                }
            }
            pause(self.stage, LOOK_EVERY).await?;
        }
        Ok((detected, None))
    }

    async fn claim(&self, members: &[String]) {
        let picture = Picture::take(self.stage.everybody).await;
        let able = members.iter().filter(|name| **name != self.fault.site).filter_map(|name| picture.site(name));
        // The one that has most; of equals the first, in the environment's order.
        let best = able.fold(None, |best: Option<&super::talk::WatchStatus>, site| match best {
            Some(best) if best.last >= site.last => Some(best),
            _ => Some(site),
        });
        let Some(watch) = best.and_then(|site| self.stage.everybody.watch(&site.site)) else { return };
        match watch.claim().await {
            Ok(()) => self.tell("promotion", &format!("{} was told to take over", watch.site)),
            // Asked again at the next look; the wait has its end.
            Err(error) => self.tell("promotion", &error.to_string()),
        }
    }

    /// Waits until clients are served and writes are taken without the site, then watches for a while. Says whether that came about.
    async fn shift(&mut self) -> Result<bool, DrillError> {
        let fault_at = self.mark(Mark::Fault)?;
        let granted = self.mark(Mark::Granted)?;
        let mut served = false;
        while !self.is_over() {
            let events = self.events("shift")?;
            let requests_ok = in_a_row(&events, granted.or(fault_at).unwrap_or_default()) >= IN_A_ROW;
            let wrote = events.iter().find_map(|event| match event {
                Event::Write { t, is: Is::Ok, epoch: Some(epoch), .. } if *epoch > self.epoch => Some(*t),
                _ => None,
            });
            // Without a new configuration there is nothing that a write could be acknowledged under.
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
            pause(self.stage, LOOK_EVERY).await?;
        }
        let found = findings(&self.id, &self.events("shift")?, self.epoch, &Truth::default());
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
        self.phase("hold", from, None, "the shifted service is watched".to_owned());
        Ok(served)
    }

    /// Asks the new primary what it holds, before the lost site comes back. `None` when there is no primary that could be asked.
    async fn look_for_losses(&mut self) -> Result<Option<Truth>, DrillError> {
        let from = self.ledger.now();
        let primary = self.stage.everybody.witness.status().await.map(|witness| witness.primary).unwrap_or_default();
        let asked = self.stage.everybody.watch(&primary).filter(|_| primary != self.fault.site);
        // Where the site kept its place, another one that is a member tells.
        let other = self.stage.everybody.watches.iter().find(|watch| watch.site != self.fault.site);
        let Some(watch) = asked.or(other) else { return Ok(None) };
        let read_at = self.ledger.mark(Mark::Read);
        let events = self.events("reading")?;
        let fault_at = self.mark(Mark::Fault)?.unwrap_or_default();
        let answered: Vec<(u64, f64)> = events
            .iter()
            .filter_map(|event| match event {
                Event::Request { t, n, is: Is::Ok, .. } if *t < read_at => Some((*n, *t)),
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
                    let truth = Truth { keys: keys.into_iter().collect(), known: known.into_iter().collect() };
                    // Usage of those that living sites answered is on its way; what the lost one answered does not come any more.
                    let coming = answered
                        .iter()
                        .any(|(n, t)| *t > fault_at + 1000.0 && !truth.known.contains(&request_id(&self.id, *n)));
                    if !coming || began.elapsed() > USAGE_WITHIN || self.is_over() {
                        self.phase(
                            "reading",
                            from,
                            None,
                            format!(
                                "{} tells what it holds: {} writes, usage of {} requests",
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
                (Err(error), _) | (_, Err(error)) if began.elapsed() > USAGE_WITHIN => {
                    return Err(self.broken("reading", format!("nobody tells what was lost: {error}")));
                }
                _ => {}
            }
            pause(self.stage, LOOK_EVERY).await?;
        }
    }

    async fn take_back(&mut self, journal: &mut Journal) -> Result<(), DrillError> {
        let at = self.ledger.mark(Mark::Revert);
        journal.begin(Action::Drill, &self.id, "revert", None, Value::Null)?;
        self.stage.faults.revert(&self.id).await.map_err(|why| self.broken("revert", why))?;
        journal.end(Action::Drill, &self.id, "revert", Value::Null)?;
        self.tell("revert", &format!("{} may come back", self.fault.site));
        self.phase("revert", at, None, "the fault is taken back".to_owned());
        Ok(())
    }

    async fn recovery(&mut self) -> Result<(), DrillError> {
        let from = self.ledger.now();
        let began = Instant::now();
        while !is_back(&Picture::take(self.stage.everybody).await, &self.fault.site) {
            if began.elapsed() > RECOVERED_WITHIN {
                return Err(self.broken(
                    "recovery",
                    format!("{} is no member again after {} s", self.fault.site, RECOVERED_WITHIN.as_secs()),
                ));
            }
            pause(self.stage, LOOK_EVERY).await?;
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

    /// Waits for the home site to be primary again, or sees to it. Says who did it.
    async fn go_home(&mut self, journal: &mut Journal) -> Result<String, DrillError> {
        let from = self.ledger.now();
        let home = self.stage.everybody.home.clone();
        let witness =
            self.stage.everybody.witness.status().await.map_err(|e| self.broken("failback", e.to_string()))?;
        if witness.primary == home {
            // Either nobody had taken its place, or it got it back while we looked.
            let was_replaced = self.fault.site == home && self.mark(Mark::Granted)?.is_some();
            let by = if was_replaced { "automatic" } else { "not needed" };
            self.ledger.mark(Mark::Home);
            return Ok(by.to_owned());
        }
        let mut by = "drill";
        if self.order.automatic_failback {
            let patience = Duration::from_millis(witness.grace_ms.saturating_mul(4)) + Duration::from_secs(15);
            let began = Instant::now();
            while began.elapsed() < patience && by == "drill" {
                if self.stage.everybody.witness.status().await.is_ok_and(|witness| witness.primary == home) {
                    by = "automatic";
                }
                pause(self.stage, LOOK_EVERY).await?;
            }
        }
        if by == "drill" {
            let tell = |says: &str| self.tell("failback", says);
            let shifted = shift::failback(self.stage.everybody, journal, RECOVERED_WITHIN, &tell);
            tokio::select! {
                shifted = shifted => shifted.map_err(|refusal: Refusal| self.broken("failback", told(&refusal)))?,
                () = self.stage.stop.cancelled() => return Err(stopped()),
            };
        }
        let at = self.ledger.mark(Mark::Home);
        self.tell("failback", &format!("{home} is primary again ({by})"));
        self.phase("failback", from, Some(at), format!("until {home} was primary again ({by})"));
        // What the way back costs shows in the requests that follow it.
        pause(self.stage, Duration::from_secs(1).min(self.order.hold)).await?;
        Ok(by.to_owned())
    }

    /// Takes away what a drill makes, and names what stays.
    async fn leftovers(&mut self, journal: &mut Journal, truth: Option<&Truth>) -> Leftovers {
        let mut left = Leftovers::new();
        if let Err(why) = clear_keys(self.stage, &self.id).await {
            left.push(format!("keys under {} in control data: {why}", prefix(&self.id)));
        }
        if let Err(why) = revoke(self.stage, journal, &self.id).await {
            left.push(format!("the temporary API key, which ends within the hour: {why}"));
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
                if began.elapsed() > UNITS_WITHIN {
                    left.push(format!("{site}: not ready as before: {}", missing.join(", ")));
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        if let Some(lost) = self.stage.faults.lost_data(&self.fault).await {
            // What is missing elsewhere may be in it alone.
            let complete = left.is_empty() && truth.is_some_and(|truth| self.is_within_promise(truth));
            let removed = match complete {
                true => self.stage.faults.discard_lost(&self.fault).await,
                false => {
                    Err("something is missing elsewhere and may be there: remove it when it is not needed".to_owned())
                }
            };
            if let Err(why) = removed {
                left.push(format!("{lost}: {why}"));
            }
        }
        left
    }

    /// Whether what the new primary lacks is within what is promised.
    fn is_within_promise(&self, truth: &Truth) -> bool {
        let Ok(events) = self.ledger.read() else { return false };
        let found = findings(&self.id, &events, self.epoch, truth);
        found.lost == 0 && found.rpo_ms <= self.order.targets.rpo_s * 1000.0
    }

    fn report(
        &mut self,
        served: bool,
        truth: Truth,
        failback: String,
        leftovers: Leftovers,
    ) -> Result<Report, DrillError> {
        self.ledger.sync().map_err(|error| self.broken("ledger", error.to_string()))?;
        let events = self.events("ledger")?;
        let found = findings(&self.id, &events, self.epoch, &truth);
        let marks = events.iter().filter_map(|event| match event {
            Event::Mark { t, name } => Some((*name, *t)),
            _ => None,
        });
        let marks: Vec<(Mark, f64)> = marks.collect();
        let stored_outside = self.order.stored_outside && marks.iter().all(|(mark, _)| *mark != Mark::Granted);
        let figures = Figures {
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

    /// Takes back what can be taken back at once, after a failure or Ctrl-C. Says what is left.
    async fn abort(&mut self, journal: &mut Journal) -> Leftovers {
        let mut left = Leftovers::new();
        let injected = begun(journal.records(), &self.id, "fault").is_some();
        if let Err(why) = self.stage.faults.revert(&self.id).await {
            left.push(format!("fault {}: {why}; it ends by itself at {}", self.id, self.fault.until));
        }
        if let Err(why) = clear_keys(self.stage, &self.id).await {
            left.push(format!("keys under {} in control data: {why}", prefix(&self.id)));
        }
        if let Err(why) = revoke(self.stage, journal, &self.id).await {
            left.push(format!("the temporary API key, which ends within the hour: {why}"));
        }
        let picture = Picture::take(self.stage.everybody).await;
        let home = picture.primary().is_some_and(|primary| primary == self.stage.everybody.home);
        if injected && !(home && is_back(&picture, &self.fault.site)) {
            left.push(format!(
                "{} comes back by itself; the next drill waits for it and goes back home first",
                self.fault.site
            ));
        } else if left.is_empty() {
            // Everything is as before: there is nothing for the next one to finish.
            let _ = journal.fail(Action::Drill, &self.id, WHOLE, "given up");
        }
        left
    }

    fn events(&self, phase: &'static str) -> Result<Vec<Event>, DrillError> {
        self.ledger.read().map_err(|error| self.broken(phase, error.to_string()))
    }

    fn mark(&self, wanted: Mark) -> Result<Option<f64>, DrillError> {
        let events = self.events("ledger")?;
        Ok(events.iter().find_map(|event| match event {
            Event::Mark { t, name } if *name == wanted => Some(*t),
            _ => None,
        }))
    }

    fn phase(&mut self, name: &str, from: f64, to: Option<f64>, says: String) {
        let to = to.unwrap_or_else(|| self.ledger.now());
        // Whole milliseconds: what is read back from the document is what was measured.
        let seconds = |ms: f64| ms.round() / 1000.0;
        self.phases.push(Phase { name: name.to_owned(), from_s: seconds(from), to_s: seconds(to.max(from)), says });
    }

    /// What is left of the fault's time, less what the reading needs.
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

/// Answered requests at the end of those that were sent since then and are over.
fn in_a_row(events: &[Event], since: f64) -> usize {
    let mut sent = BTreeMap::new();
    let mut over = Vec::new();
    for event in events {
        match event {
            Event::Request { t, n, is: Is::Sent, .. } if *t >= since => drop(sent.insert(*n, *t)),
            Event::Request { n, is, .. } if *is != Is::Sent && sent.contains_key(n) => over.push(*is == Is::Ok),
            _ => {}
        }
    }
    over.iter().rev().take_while(|ok| **ok).count()
}

/// When a fault that begins now ends.
fn until(ttl: Duration) -> Timestamp {
    Timestamp::now() + SignedDuration::try_from(ttl).unwrap_or(SignedDuration::from_secs(60))
}

/// Waits; less when it is told to stop.
async fn pause(stage: &Stage<'_>, time: Duration) -> Result<(), DrillError> {
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        () = stage.stop.cancelled() => Err(stopped()),
    }
}

fn stopped() -> DrillError {
    DrillError::Stopped("the fault is taken back".to_owned())
}
