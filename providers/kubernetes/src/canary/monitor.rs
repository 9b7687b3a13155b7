//! The job's side: it polls the new and the old pods every two seconds, and promotes the release or rolls it back.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result};
use tokio::time::Instant;

use super::analysis::{Analysis, AnalysisResult, CanaryObservation};
use super::counters::{self, Group, Totals};
use super::queries::{About, QueryApi, QueryConfig, QueryError, QueryRunner};
use super::start::{OTHERS_STAY, is_one_set};
use super::{
    HASH, OperatorCommand, PodSets, RolloutOrders, RolloutReport, Stage, call, is_held, read_command, read_report,
    traffic,
};
use crate::api::Api;
use crate::diagnosis::{self, POD};
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::ready;

/// The poll interval of the pods.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The poll interval of a blue-green rollout, whose new pods get all clients at once.
const BLUE_GREEN_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time that clients stay routed to one set while pods of the other one remain.
const SETTLES: Duration = Duration::from_secs(600);
/// The poll interval before the rollout starts.
const BEGIN: Duration = Duration::from_millis(250);
/// The timeout for the operator's update to start the rollout.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// How long the job waits for Prometheus before it gives up; nothing has changed by then.
const ANSWERS: Duration = Duration::from_secs(30);
/// The interval of progress reports without a change of stage.
const TELL: Duration = Duration::from_secs(5);
/// Separates the action from the reason for its failure.
const STUCK: &str = "; it cannot be done yet: ";

/// Reads a pod's metrics.
#[async_trait]
pub trait Scrape: Sync {
    /// The text at `http://ADDRESS:PORT/metrics`; an error if the pod does not answer.
    async fn scrape(&self, address: IpAddr, port: u16) -> std::result::Result<String, String>;
}

impl Kubernetes {
    /// Runs a rollout to its end. Temporary refusals of the API server are retried, because only this job would restore
    /// the old release.
    ///
    /// # Errors
    /// If the orders cannot be parsed, or the deployment is gone or was recreated: then there is no rollout to end.
    pub async fn run_rollout(
        &self,
        orders: &str,
        (figures, query_api): (&dyn Scrape, &dyn QueryApi),
        notify: &(dyn Fn(&str) + Sync),
    ) -> Result<RolloutReport> {
        let invalid = |source| Error::new(ErrorKind::Invalid, "read", "the rollout commands").because(source);
        let orders: RolloutOrders = serde_json::from_str(orders).map_err(|error| invalid(error.to_string()))?;
        let asking = QueryRunner::new(QueryConfig::of(&orders).map_err(invalid)?);
        tokio::select! {
            status_report = self.watch_over(&orders, figures, (&asking, query_api), notify) => status_report,
            never = asking.go_on(query_api) => match never {},
        }
    }

    async fn watch_over(
        &self,
        orders: &RolloutOrders,
        figures: &dyn Scrape,
        (asking, query_api): (&QueryRunner, &dyn QueryApi),
        notify: &(dyn Fn(&str) + Sync),
    ) -> Result<RolloutReport> {
        let mut watching = RolloutMonitor {
            asking,
            unanswered: None,
            others: None,
            analysis: Analysis::new(orders.canary),
            new: Group::default(),
            old: Group::default(),
            hash: None,
            before: None,
            ending: None,
            taken: false,
            status_report: None,
            reported_at: Instant::now(),
        };
        let began = Instant::now();
        loop {
            let step = match self.api().await {
                Ok(api) => watching.step(&api, orders, (figures, query_api), began.elapsed() > START_TIMEOUT).await,
                Err(error) => Err(error),
            };
            let pause = match step {
                Ok(Step::Over(status_report)) => {
                    notify(&status_report.says);
                    return Ok(status_report);
                }
                Ok(Step::Waits) => BEGIN,
                Ok(Step::Looked(says)) => {
                    notify(&says);
                    if orders.canary.is_blue_green() { BLUE_GREEN_POLL_INTERVAL } else { POLL_INTERVAL }
                }
                Err(error) if error.kind == ErrorKind::NotFound => return Err(error),
                Err(error) => {
                    notify(&in_one_line(&error));
                    POLL_INTERVAL
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// The state between polls. A restarted job counts from zero, but keeps the start of the rollout.
struct RolloutMonitor<'a> {
    /// The queries to Prometheus.
    asking: &'a QueryRunner,
    /// Since when Prometheus does not answer.
    unanswered: Option<Instant>,
    /// The label value of the old pods.
    others: Option<String>,
    analysis: Analysis,
    new: Group,
    old: Group,
    /// The label value of the new pods.
    hash: Option<String>,
    /// The requests of the old pods while they had the clients, as a previous pod of the job counted them.
    before: Option<Totals>,
    /// Since when the pods of the other release are terminating.
    ending: Option<Instant>,
    /// Whether another manager changed the route with the traffic weights.
    taken: bool,
    status_report: Option<RolloutReport>,
    reported_at: Instant,
}

enum Step {
    Waits,
    Looked(String),
    Over(RolloutReport),
}

impl RolloutMonitor<'_> {
    async fn step(
        &mut self,
        api: &Api,
        orders: &RolloutOrders,
        (figures, query_api): (&dyn Scrape, &dyn QueryApi),
        is_late: bool,
    ) -> Result<Step> {
        let call = call("read", "get", &orders.namespace, Some(&orders.name));
        let gone = || call.error(ErrorKind::NotFound).because("it is gone, or it was recreated");
        let deployment = api.get(&call).await?.filter(|found| identity::uid(found) == orders.uid).ok_or_else(gone)?;
        let known = read_report(&deployment).filter(|status_report| status_report.id == orders.id);
        if self.status_report.is_some() && known.is_none() {
            return Ok(Step::Over(orders.report(Stage::Waiting, "another rollout has started", 0)));
        }
        let held = is_held(&deployment, &orders.id);
        // A recorded decision is carried out first: the previous pod of the job may have been lost before it was done
        // or reported.
        if let Some(status_report) = &known {
            match (status_report.stage, held) {
                (Stage::Promoting | Stage::Reverting, true) => {
                    return self.end(api, orders, &deployment, status_report.clone()).await;
                }
                (Stage::Promoting | Stage::Reverting, false) => {
                    return self.ended(api, orders, &deployment, status_report.clone()).await;
                }
                (Stage::Promoted | Stage::Reverted, _) => return Ok(Step::Over(status_report.clone())),
                (Stage::Waiting | Stage::Preparing | Stage::Switching | Stage::Baking, _) => {}
            }
        }
        if !held {
            let over = match known.map(|status_report| status_report.stage) {
                Some(stage @ (Stage::Preparing | Stage::Switching | Stage::Baking)) => {
                    orders.report(stage, "another change was applied in the meantime", 0)
                }
                _ if is_late => orders.report(Stage::Waiting, "the rollout job did not start within three minutes", 0),
                Some(_) => return Ok(Step::Waits),
                None => {
                    if let Some(step) = self.refused(api, orders, query_api).await? {
                        return Ok(step);
                    }
                    let sets = match orders.has_two_sets() {
                        true => Some(keep(api, orders, &deployment).await?),
                        false => None,
                    };
                    let status_report = RolloutReport { sets, ..orders.report(Stage::Waiting, "the job exists", 0) };
                    self.say(api, orders, status_report).await?;
                    return Ok(Step::Waits);
                }
            };
            if orders.has_two_sets() {
                orders.traffic(api).lead_to_all().await?;
            }
            return Ok(Step::Over(over));
        }
        let now = now();
        let began = known.as_ref().map(|status_report| status_report.began).filter(|began| *began > 0).unwrap_or(now);
        let at = now.saturating_sub(began);
        let command = read_command(&deployment, &orders.id).filter(|command| *command != OperatorCommand::Resume);
        // Without two sets, Kubernetes itself routes the clients.
        let mut sets = known.as_ref().and_then(|status_report| status_report.sets.clone());
        let mut stage = known.map_or(Stage::Waiting, |status_report| status_report.stage);
        let mut trouble = None;
        let analysis_result = match self.looked(api, orders, &deployment, figures, (&mut stage, &mut sets), at).await {
            Ok(observation) => {
                trouble = (observation.ready < observation.pods).then_some(&deployment);
                let is_another = self.hash != sets.as_ref().and_then(|sets| sets.new.clone());
                match stage {
                    _ if self.taken => {
                        let why = "the HTTPRoute was changed in the meantime, or its second service was removed; it is left unchanged";
                        AnalysisResult::Revert(why.to_owned())
                    }
                    Stage::Preparing => self.analysis.prepare(observation, command),
                    // The set that clients are routed to is being replaced.
                    _ if orders.has_two_sets() && self.hash.is_some() && is_another => {
                        AnalysisResult::Revert("its pod template was changed in the meantime".to_owned())
                    }
                    _ => {
                        if observation.pods > 0 && observation.ready == observation.pods {
                            self.asking.about(self.about(orders), began);
                        }
                        let analysis_result = self.analysis.evaluate(observation, command);
                        self.asking.join(analysis_result, (at, orders.canary.deadline_seconds), command)
                    }
                }
            }
            // Without observations the rollout is rolled back at its deadline all the same.
            Err(error) if at >= orders.canary.deadline_seconds || command == Some(OperatorCommand::Abort) => {
                AnalysisResult::Revert(format!("the state of the new pods is unknown: {}", in_one_line(&error)))
            }
            Err(error) => return Err(error),
        };
        let (stage, says) = match analysis_result {
            AnalysisResult::Wait(says) => (stage, says),
            AnalysisResult::Switch(says) => (Stage::Switching, says),
            AnalysisResult::Promote(says) => (Stage::Promoting, says),
            AnalysisResult::Revert(says) => (Stage::Reverting, says),
        };
        let share = match stage {
            Stage::Baking => orders.share(),
            Stage::Preparing => orders.share().map(|_| 0),
            _ => None,
        };
        let mut status_report = RolloutReport { sets, share, ..orders.report(stage, &says, began) };
        if self.taken {
            // The release did not fail, so it may be retried.
            status_report.release.clear();
        }
        match stage {
            Stage::Promoting | Stage::Reverting => {
                self.say(api, orders, status_report.clone()).await?;
                self.end(api, orders, &deployment, status_report).await
            }
            Stage::Switching => {
                // The baseline is recorded first, for a restarted job.
                self.say(api, orders, status_report.clone()).await?;
                if let Some(sets) = &status_report.sets
                    && !orders.traffic(api).show(&sets.old, sets.new.as_deref()).await?
                {
                    // The next poll sees the same and rolls back.
                    return Ok(Step::Looked(says));
                }
                // The old observations say nothing about pods with all clients.
                self.analysis = Analysis::new(orders.canary);
                self.say(api, orders, RolloutReport { stage: Stage::Baking, share: orders.share(), ..status_report })
                    .await?;
                Ok(Step::Looked(says))
            }
            _ => {
                let is_new = self.status_report.as_ref().is_none_or(|status_report| status_report.stage != stage);
                if is_new || self.reported_at.elapsed() >= TELL {
                    let says = match trouble {
                        Some(deployment) => {
                            let says = ready::failing(deployment, status_report.says);
                            diagnosis::of_pods(api, call.row, deployment, says).await
                        }
                        None => status_report.says,
                    };
                    self.say(api, orders, RolloutReport { says, ..status_report }).await?;
                }
                Ok(Step::Looked(says))
            }
        }
    }

    /// Ends a rollout before anything has changed if a query is invalid or Prometheus is unreachable.
    async fn refused(&mut self, api: &Api, orders: &RolloutOrders, query_api: &dyn QueryApi) -> Result<Option<Step>> {
        let Some(QueryError { may_pass, why }) = self.asking.refused(query_api, &orders.namespace).await else {
            return Ok(None);
        };
        if may_pass && self.unanswered.get_or_insert_with(Instant::now).elapsed() < ANSWERS {
            return Ok(Some(Step::Looked(why)));
        }
        // The release did not fail, so it may be retried.
        let says = format!("no pod was created: {why}");
        let status_report = RolloutReport { release: String::new(), ..orders.report(Stage::Reverted, &says, 0) };
        self.say(api, orders, status_report.clone()).await?;
        Ok(Some(Step::Over(status_report)))
    }

    fn about(&self, orders: &RolloutOrders) -> About {
        About { namespace: orders.namespace.clone(), new: self.hash.clone(), old: self.others.clone() }
    }

    /// One poll. With two sets of pods, it also routes clients to the intended one and advances the stage.
    async fn looked(
        &mut self,
        api: &Api,
        orders: &RolloutOrders,
        deployment: &Value,
        figures: &dyn Scrape,
        (stage, sets): (&mut Stage, &mut Option<PodSets>),
        at: u64,
    ) -> Result<CanaryObservation> {
        let mut observation = self.look(api, orders, deployment, figures, at).await?;
        if !orders.has_two_sets() {
            *stage = Stage::Baking;
            return Ok(observation);
        }
        let Some(sets) = sets.as_mut() else {
            let error = call("roll", "patch", &orders.namespace, Some(&orders.name)).error(ErrorKind::Conflict);
            return Err(error.because("its old pods can no longer be identified"));
        };
        let before = *self.before.get_or_insert(sets.before);
        // Until the controller has created the second set, the newest one may be the first.
        self.hash = self.hash.take().filter(|hash| *hash != sets.old);
        let traffic = orders.traffic(api);
        let is_done = match (&*stage, sets.new.as_deref()) {
            (Stage::Switching, Some(new)) => traffic.shows(new).await?,
            _ => false,
        };
        if is_done || *stage == Stage::Baking {
            *stage = Stage::Baking;
            self.taken = !traffic.show(&sets.old, sets.new.as_deref()).await?;
            if orders.canary.is_blue_green() {
                observation.old = sets.before;
            }
            return Ok(observation);
        }
        *stage = Stage::Preparing;
        self.taken = !traffic.keep(Some(&sets.old)).await?;
        *sets = PodSets { new: self.hash.clone(), before: before.and(self.old.totals), ..sets.clone() };
        let all = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        // Kubernetes rounds a surge up, too.
        let expected = orders.canary.share.map_or(all, |share| (all * u64::from(share)).div_ceil(100).max(1));
        Ok(match self.hash {
            Some(_) => CanaryObservation { pods: observation.pods.max(expected), ..observation },
            None => CanaryObservation { at, pods: expected, ..CanaryObservation::default() },
        })
    }

    /// Carries out a promotion or a rollback, and reports its end.
    async fn end(
        &mut self,
        api: &Api,
        orders: &RolloutOrders,
        deployment: &Value,
        status_report: RolloutReport,
    ) -> Result<Step> {
        let done = match status_report.stage {
            Stage::Promoting => orders.go_on(api).await,
            _ => orders.put_back(api, &status_report).await,
        };
        if let Err(error) = done {
            let (why, _) = status_report.says.split_once(STUCK).unwrap_or((&status_report.says, ""));
            let says = format!("{why}{STUCK}{}", in_one_line(&error));
            // It is retried without limit; the report shows an operator why. A failed report must not hide the error.
            let _ = self.say(api, orders, RolloutReport { says, ..status_report.clone() }).await;
            return Err(error);
        }
        if orders.has_two_sets() {
            return Ok(Step::Looked(status_report.says));
        }
        self.ended(api, orders, deployment, status_report).await
    }

    /// Waits until one set of pods is left, then routes clients to all pods again.
    async fn ended(
        &mut self,
        api: &Api,
        orders: &RolloutOrders,
        deployment: &Value,
        status_report: RolloutReport,
    ) -> Result<Step> {
        if orders.has_two_sets() {
            let since = *self.ending.get_or_insert_with(Instant::now);
            if !orders.settle(api, deployment).await? {
                if since.elapsed() < SETTLES {
                    return Ok(Step::Looked(format!("{}; removing the pods of the other release", status_report.says)));
                }
                orders.traffic(api).lead_to_all().await?;
            }
        }
        let status_report = status_report.ended();
        self.say(api, orders, status_report.clone()).await?;
        Ok(Step::Over(status_report))
    }

    async fn say(&mut self, api: &Api, orders: &RolloutOrders, status_report: RolloutReport) -> Result<()> {
        orders.say(api, &status_report).await?;
        (self.status_report, self.reported_at) = (Some(status_report), Instant::now());
        Ok(())
    }

    async fn look(
        &mut self,
        api: &Api,
        orders: &RolloutOrders,
        deployment: &Value,
        figures: &dyn Scrape,
        at: u64,
    ) -> Result<CanaryObservation> {
        // Until the controller has observed the new template, the new pods are not known.
        let new = &orders.promote["spec"]["template"];
        self.hash = set_of(api, orders, deployment, new).await?.or(self.hash.take());
        let Some(hash) = self.hash.clone() else { return Ok(CanaryObservation { at, ..CanaryObservation::default() }) };
        let list = Call { action: "list", verb: "list", row: &POD, namespace: Some(&orders.namespace), name: None };
        let pods = api.list(&list, &diagnosis::selector(deployment)).await?;
        let of = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let staying = |pod: &&Value| !pod["metadata"]["deletionTimestamp"].is_string();
        let is_new = |pod: &Value| pod["metadata"]["labels"][HASH] == hash.as_str();
        let scrapes = pods.iter().filter(staying).filter_map(|pod| {
            let address: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
            Some(async move { (pod, figures.scrape(address, orders.metrics_port).await) })
        });
        let slow_ms = orders.canary.slow_ms;
        let mut measured = 0;
        for (pod, text) in futures::future::join_all(scrapes).await {
            // The counters of a pod that does not answer are read later; the kubelet decides whether it is ready.
            let Ok(text) = text else { continue };
            let totals: Totals = counters::read(&text, slow_ms);
            match is_new(pod) {
                true => {
                    measured += 1;
                    self.new.look(&of(pod), totals, true);
                }
                // Requests of old pods before the rollout are not counted.
                false => self.old.look(&of(pod), totals, false),
            }
        }
        let mut others = pods.iter().filter(staying).filter(|pod| !is_new(pod));
        let others = others.find_map(|pod| pod["metadata"]["labels"][HASH].as_str().map(str::to_owned));
        // All of the old pods may be gone already.
        self.others = others.or(self.others.take());
        let ready = |pod: &&Value| ready::pod(pod);
        let old_ready = pods.iter().filter(staying).filter(|pod| !is_new(pod)).filter(ready).count() as u64;
        let new: Vec<&Value> = pods.iter().filter(staying).filter(|pod| is_new(pod)).collect();
        let restarts = new
            .iter()
            .flat_map(|pod| ["initContainerStatuses", "containerStatuses"].map(|field| &pod["status"][field]));
        let restarts = restarts.flat_map(|all| all.as_array().into_iter().flatten());
        let restarts = restarts.filter_map(|one| one["restartCount"].as_u64()).max().unwrap_or_default();
        // The intended number, of which some pods may not exist yet.
        let expected = deployment["status"]["updatedReplicas"].as_u64().unwrap_or_default();
        Ok(CanaryObservation {
            at,
            pods: expected.max(new.len() as u64),
            ready: new.into_iter().filter(ready).count() as u64,
            restarts,
            measured,
            old_ready,
            new: self.new.totals,
            old: self.old.totals,
        })
    }
}

/// This machine's clock, in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An error with its cause and hint, on one line.
pub(crate) fn in_one_line(error: &Error) -> String {
    let hint = error.hint.iter().map(|hint| format!(" ({})", hint.split_whitespace().collect::<Vec<_>>().join(" ")));
    textnlp_provider::error_chain(error) + &hint.collect::<String>()
}

/// Routes clients to the existing pods by their set's label, before there is a second set.
async fn keep(api: &Api, orders: &RolloutOrders, deployment: &Value) -> Result<PodSets> {
    let call = call("roll", "patch", &orders.namespace, Some(&orders.name));
    if !is_one_set(deployment) {
        return Err(call.error(ErrorKind::Unavailable).because(OTHERS_STAY));
    }
    let old = set_of(api, orders, deployment, &orders.revert["spec"]["template"]).await?;
    let Some(old) = old else {
        return Err(call.error(ErrorKind::Unavailable).because("its controller has not observed its pods yet"));
    };
    orders.traffic(api).keep(Some(&old)).await?;
    Ok(PodSets { old, new: None, before: Totals::default() })
}

/// The label value of the pods of this template, if it is the newest; `None` until the controller has observed it.
async fn set_of(api: &Api, orders: &RolloutOrders, deployment: &Value, template: &Value) -> Result<Option<String>> {
    let newest = traffic::newest(api, &orders.namespace, deployment).await?;
    // The newest set may have the previous template, if the controller observed only a scaling.
    let newest = newest.filter(|set| is_of(&set["spec"]["template"], template));
    Ok(newest.and_then(|set| set["metadata"]["labels"][HASH].as_str().map(str::to_owned)))
}

/// Whether a set has the applied template, compared by what distinguishes releases: annotations (the configuration) and
/// images.
pub(super) fn is_of(template: &Value, applied: &Value) -> bool {
    let read = applied["metadata"]["annotations"].as_object().into_iter().flatten();
    let same_read = read.into_iter().all(|(name, text)| template["metadata"]["annotations"][name] == *text);
    let images = |of: &Value| -> Vec<Value> {
        let all =
            ["initContainers", "containers"].map(|field| of["spec"][field].as_array().cloned().unwrap_or_default());
        all.into_iter().flatten().map(|one| one["image"].clone()).collect()
    };
    same_read && images(template) == images(applied)
}
