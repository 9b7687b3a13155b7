//! The job's side: looks at the new pods and the old ones every two seconds, and ends the rollout one way or the other.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde_json::Value;
use textnlp_provider::{Error, Result, Sort};
use tokio::time::Instant;

use super::begin::{OTHERS_STAY, is_one_set};
use super::figures::{self, Group, Totals};
use super::judge::{Judge, Judgement, Look};
use super::outside::{About, Ask, Asking, Outside, Unasked};
use super::{HASH, Orders, Sets, Stage, Told, Wish, call, is_held, told, traffic, wish};
use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::ready;
use crate::trouble::{self, POD};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);
/// The same where all clients are led to new pods.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);
/// So long clients are led to one set of pods though pods of another one stay.
const SETTLES: Duration = Duration::from_secs(600);
/// How often it looks for what is to begin.
const BEGIN: Duration = Duration::from_millis(250);
/// An operator who asked for it begins within this time.
const WITHIN: Duration = Duration::from_secs(180);
/// So long it is waited for somebody who is to be asked, before anything changes.
const ANSWERS: Duration = Duration::from_secs(30);
/// How often it says how it goes, where nothing else changes.
const TELL: Duration = Duration::from_secs(5);
/// Between what is to be done and why it cannot be done yet.
const STUCK: &str = "; it cannot be done yet: ";

/// How a pod's figures are fetched.
#[async_trait]
pub trait Scrape: Sync {
    /// The text at `http://ADDRESS:PORT/metrics`; an error is a pod that does not answer.
    async fn scrape(&self, address: IpAddr, port: u16) -> std::result::Result<String, String>;
}

impl Kubernetes {
    /// Sees a rollout to its end. What the API server refuses for a moment is asked for again: nobody else would put the old release
    /// back.
    ///
    /// # Errors
    /// Orders that cannot be read, and a deployment that is another one or gone: there is nothing to end then.
    pub async fn see_to(
        &self,
        orders: &str,
        (figures, ask): (&dyn Scrape, &dyn Ask),
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Told> {
        let invalid = |source| Error::new(Sort::Invalid, "read", "the orders of the rollout").because(source);
        let orders: Orders = serde_json::from_str(orders).map_err(|error| invalid(error.to_string()))?;
        let asking = Asking::new(Outside::of(&orders).map_err(invalid)?);
        tokio::select! {
            told = self.watch_over(&orders, figures, (&asking, ask), tell) => told,
            never = asking.go_on(ask) => match never {},
        }
    }

    async fn watch_over(
        &self,
        orders: &Orders,
        figures: &dyn Scrape,
        (asking, ask): (&Asking, &dyn Ask),
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Told> {
        let mut watching = Watching {
            asking,
            unanswered: None,
            others: None,
            judge: Judge::new(orders.canary),
            new: Group::default(),
            old: Group::default(),
            hash: None,
            before: None,
            ending: None,
            taken: false,
            told: None,
            told_at: Instant::now(),
        };
        let began = Instant::now();
        loop {
            let step = match self.api().await {
                Ok(api) => watching.step(&api, orders, (figures, ask), began.elapsed() > WITHIN).await,
                Err(error) => Err(error),
            };
            let pause = match step {
                Ok(Step::Over(told)) => {
                    tell(&told.says);
                    return Ok(told);
                }
                Ok(Step::Waits) => BEGIN,
                Ok(Step::Looked(says)) => {
                    tell(&says);
                    if orders.canary.is_blue_green() { LOOK_AT_ALL } else { LOOK }
                }
                Err(error) if error.sort == Sort::NotFound => return Err(error),
                Err(error) => {
                    tell(&in_one_line(&error));
                    LOOK
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// What is known from earlier looks. A job that begins anew counts anew, but for when the rollout began.
struct Watching<'a> {
    /// Who judges from outside of the pods.
    asking: &'a Asking,
    /// Since when whoever is to be asked does not answer.
    unanswered: Option<Instant>,
    /// The label of the old pods.
    others: Option<String>,
    judge: Judge,
    new: Group,
    old: Group,
    /// The label of the new pods.
    hash: Option<String>,
    /// What another pod of the job counted of the old pods, while they had the clients.
    before: Option<Totals>,
    /// Since when pods of the release that goes are waited for.
    ending: Option<Instant>,
    /// Whether somebody else has made something of the route that shares clients.
    taken: bool,
    told: Option<Told>,
    told_at: Instant,
}

enum Step {
    Waits,
    Looked(String),
    Over(Told),
}

impl Watching<'_> {
    async fn step(
        &mut self,
        api: &Api,
        orders: &Orders,
        (figures, ask): (&dyn Scrape, &dyn Ask),
        is_late: bool,
    ) -> Result<Step> {
        let call = call("read", "get", &orders.namespace, Some(&orders.name));
        let gone = || call.error(Sort::NotFound).because("it is gone, or another one of its name");
        let deployment = api.get(&call).await?.filter(|found| identity::uid(found) == orders.uid).ok_or_else(gone)?;
        let known = told(&deployment).filter(|told| told.id == orders.id);
        if self.told.is_some() && known.is_none() {
            return Ok(Step::Over(orders.told(Stage::Waiting, "another rollout has begun", 0)));
        }
        let held = is_held(&deployment, &orders.id);
        // What was begun is finished first: whoever said it may have been lost before it was done, or before he said that.
        if let Some(told) = &known {
            match (told.stage, held) {
                (Stage::Promoting | Stage::Reverting, true) => {
                    return self.end(api, orders, &deployment, told.clone()).await;
                }
                (Stage::Promoting | Stage::Reverting, false) => {
                    return self.ended(api, orders, &deployment, told.clone()).await;
                }
                (Stage::Promoted | Stage::Reverted, _) => return Ok(Step::Over(told.clone())),
                (Stage::Waiting | Stage::Preparing | Stage::Switching | Stage::Baking, _) => {}
            }
        }
        if !held {
            let over = match known.map(|told| told.stage) {
                Some(stage @ (Stage::Preparing | Stage::Switching | Stage::Baking)) => {
                    orders.told(stage, "somebody applied something else meanwhile", 0)
                }
                _ if is_late => orders.told(Stage::Waiting, "nobody began within three minutes", 0),
                Some(_) => return Ok(Step::Waits),
                None => {
                    if let Some(step) = self.refused(api, orders, ask).await? {
                        return Ok(step);
                    }
                    let sets = match orders.has_two_sets() {
                        true => Some(keep(api, orders, &deployment).await?),
                        false => None,
                    };
                    let told = Told { sets, ..orders.told(Stage::Waiting, "the job is there", 0) };
                    self.say(api, orders, told).await?;
                    return Ok(Step::Waits);
                }
            };
            if orders.has_two_sets() {
                orders.traffic(api).lead_to_all().await?;
            }
            return Ok(Step::Over(over));
        }
        let now = now();
        let began = known.as_ref().map(|told| told.began).filter(|began| *began > 0).unwrap_or(now);
        let at = now.saturating_sub(began);
        let wish = wish(&deployment, &orders.id).filter(|wish| *wish != Wish::Resume);
        // Which is left to Kubernetes where they are not two whole ones.
        let mut sets = known.as_ref().and_then(|told| told.sets.clone());
        let mut stage = known.map_or(Stage::Waiting, |told| told.stage);
        let mut trouble = None;
        let judgement = match self.looked(api, orders, &deployment, figures, (&mut stage, &mut sets), at).await {
            Ok(look) => {
                trouble = (look.ready < look.pods).then_some(&deployment);
                let is_another = self.hash != sets.as_ref().and_then(|sets| sets.new.clone());
                match stage {
                    _ if self.taken => {
                        let why = "somebody changed the HTTPRoute meanwhile, or removed its second service; that is left as it is";
                        Judgement::Revert(why.to_owned())
                    }
                    Stage::Preparing => self.judge.prepare(look, wish),
                    // What clients are led to is on its way out.
                    _ if orders.has_two_sets() && self.hash.is_some() && is_another => {
                        Judgement::Revert("somebody changed its pods meanwhile".to_owned())
                    }
                    _ => {
                        if look.pods > 0 && look.ready == look.pods {
                            self.asking.about(self.about(orders), began);
                        }
                        let judgement = self.judge.judge(look, wish);
                        self.asking.join(judgement, (at, orders.canary.deadline_seconds), wish)
                    }
                }
            }
            // What cannot be looked at is taken back in its time all the same.
            Err(error) if at >= orders.canary.deadline_seconds || wish == Some(Wish::Abort) => {
                Judgement::Revert(format!("nothing is known of the new pods: {}", in_one_line(&error)))
            }
            Err(error) => return Err(error),
        };
        let (stage, says) = match judgement {
            Judgement::Wait(says) => (stage, says),
            Judgement::Switch(says) => (Stage::Switching, says),
            Judgement::Promote(says) => (Stage::Promoting, says),
            Judgement::Revert(says) => (Stage::Reverting, says),
        };
        let share = match stage {
            Stage::Baking => orders.share(),
            Stage::Preparing => orders.share().map(|_| 0),
            _ => None,
        };
        let mut told = Told { sets, share, ..orders.told(stage, &says, began) };
        if self.taken {
            // Which is no fault of the release: it may be tried again.
            told.release.clear();
        }
        match stage {
            Stage::Promoting | Stage::Reverting => {
                self.say(api, orders, told.clone()).await?;
                self.end(api, orders, &deployment, told).await
            }
            Stage::Switching => {
                // What old pods answered before is known to whoever finishes it.
                self.say(api, orders, told.clone()).await?;
                if let Some(sets) = &told.sets
                    && !orders.traffic(api).show(&sets.old, sets.new.as_deref()).await?
                {
                    // The next look finds it so.
                    return Ok(Step::Looked(says));
                }
                // What went before says nothing of pods that have all clients.
                self.judge = Judge::new(orders.canary);
                self.say(api, orders, Told { stage: Stage::Baking, share: orders.share(), ..told }).await?;
                Ok(Step::Looked(says))
            }
            _ => {
                let is_new = self.told.as_ref().is_none_or(|told| told.stage != stage);
                if is_new || self.told_at.elapsed() >= TELL {
                    let says = match trouble {
                        Some(deployment) => {
                            let says = ready::failing(deployment, told.says);
                            trouble::of_pods(api, call.row, deployment, says).await
                        }
                        None => told.says,
                    };
                    self.say(api, orders, Told { says, ..told }).await?;
                }
                Ok(Step::Looked(says))
            }
        }
    }

    /// What ends a rollout before anything has changed: questions that cannot be asked, and nobody who answers them.
    async fn refused(&mut self, api: &Api, orders: &Orders, ask: &dyn Ask) -> Result<Option<Step>> {
        let Some(Unasked { may_pass, why }) = self.asking.refused(ask, &orders.namespace).await else {
            return Ok(None);
        };
        if may_pass && self.unanswered.get_or_insert_with(Instant::now).elapsed() < ANSWERS {
            return Ok(Some(Step::Looked(why)));
        }
        // It is not the release's fault, which may be tried again.
        let says = format!("no pod was made: {why}");
        let told = Told { release: String::new(), ..orders.told(Stage::Reverted, &says, 0) };
        self.say(api, orders, told.clone()).await?;
        Ok(Some(Step::Over(told)))
    }

    fn about(&self, orders: &Orders) -> About {
        About { namespace: orders.namespace.clone(), new: self.hash.clone(), old: self.others.clone() }
    }

    /// One look, and how far the rollout is: where there are two whole sets of pods, clients are led to the one that is meant.
    async fn looked(
        &mut self,
        api: &Api,
        orders: &Orders,
        deployment: &Value,
        figures: &dyn Scrape,
        (stage, sets): (&mut Stage, &mut Option<Sets>),
        at: u64,
    ) -> Result<Look> {
        let mut look = self.look(api, orders, deployment, figures, at).await?;
        if !orders.has_two_sets() {
            *stage = Stage::Baking;
            return Ok(look);
        }
        let Some(sets) = sets.as_mut() else {
            let error = call("roll", "patch", &orders.namespace, Some(&orders.name)).error(Sort::Conflict);
            return Err(error.because("which of its pods are the old ones is not known any more"));
        };
        let before = *self.before.get_or_insert(sets.before);
        // Before its controller has made the second set, the newest one may still be the first.
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
                look.old = sets.before;
            }
            return Ok(look);
        }
        *stage = Stage::Preparing;
        self.taken = !traffic.keep(Some(&sets.old)).await?;
        *sets = Sets { new: self.hash.clone(), before: before.and(self.old.totals), ..sets.clone() };
        let all = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        // As Kubernetes rounds a surge.
        let meant = orders.canary.share.map_or(all, |share| (all * u64::from(share)).div_ceil(100).max(1));
        Ok(match self.hash {
            Some(_) => Look { pods: look.pods.max(meant), ..look },
            None => Look { at, pods: meant, ..Look::default() },
        })
    }

    /// Does what was said, and says that it is done.
    async fn end(&mut self, api: &Api, orders: &Orders, deployment: &Value, told: Told) -> Result<Step> {
        let done = match told.stage {
            Stage::Promoting => orders.go_on(api).await,
            _ => orders.put_back(api, &told).await,
        };
        if let Err(error) = done {
            let (why, _) = told.says.split_once(STUCK).unwrap_or((&told.says, ""));
            let says = format!("{why}{STUCK}{}", in_one_line(&error));
            // It is tried again as long as it takes; whoever looks should see why.
            let _ = self.say(api, orders, Told { says, ..told.clone() }).await;
            return Err(error);
        }
        if orders.has_two_sets() {
            return Ok(Step::Looked(told.says));
        }
        self.ended(api, orders, deployment, told).await
    }

    /// The pods become those of one release: when they are, clients may be led to all of them again.
    async fn ended(&mut self, api: &Api, orders: &Orders, deployment: &Value, told: Told) -> Result<Step> {
        if orders.has_two_sets() {
            let since = *self.ending.get_or_insert_with(Instant::now);
            if !orders.settle(api, deployment).await? {
                if since.elapsed() < SETTLES {
                    return Ok(Step::Looked(format!("{}; pods of the other release leave", told.says)));
                }
                orders.traffic(api).lead_to_all().await?;
            }
        }
        let told = told.ended();
        self.say(api, orders, told.clone()).await?;
        Ok(Step::Over(told))
    }

    async fn say(&mut self, api: &Api, orders: &Orders, told: Told) -> Result<()> {
        orders.say(api, &told).await?;
        (self.told, self.told_at) = (Some(told), Instant::now());
        Ok(())
    }

    async fn look(
        &mut self,
        api: &Api,
        orders: &Orders,
        deployment: &Value,
        figures: &dyn Scrape,
        at: u64,
    ) -> Result<Look> {
        // Before its controller has looked at the new template, nobody knows which pods are new.
        let new = &orders.promote["spec"]["template"];
        self.hash = set_of(api, orders, deployment, new).await?.or(self.hash.take());
        let Some(hash) = self.hash.clone() else { return Ok(Look { at, ..Look::default() }) };
        let list = Call { action: "list", verb: "list", row: &POD, namespace: Some(&orders.namespace), name: None };
        let pods = api.list(&list, &trouble::selector(deployment)).await?;
        let of = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let staying = |pod: &&Value| !pod["metadata"]["deletionTimestamp"].is_string();
        let is_new = |pod: &Value| pod["metadata"]["labels"][HASH] == hash.as_str();
        let asked = pods.iter().filter(staying).filter_map(|pod| {
            let address: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
            Some(async move { (pod, figures.scrape(address, orders.metrics_port).await) })
        });
        let slow_ms = orders.canary.slow_ms;
        let mut measured = 0;
        for (pod, text) in futures::future::join_all(asked).await {
            // A pod that does not answer now is counted when it does; whether it is ready is the cluster's word.
            let Ok(text) = text else { continue };
            let totals: Totals = figures::read(&text, slow_ms);
            match is_new(pod) {
                true => {
                    measured += 1;
                    self.new.look(&of(pod), totals, true);
                }
                // What old pods counted before, they counted without the new ones beside them.
                false => self.old.look(&of(pod), totals, false),
            }
        }
        let mut others = pods.iter().filter(staying).filter(|pod| !is_new(pod));
        let others = others.find_map(|pod| pod["metadata"]["labels"][HASH].as_str().map(str::to_owned));
        // The last of them may have gone already.
        self.others = others.or(self.others.take());
        let ready = |pod: &&Value| ready::pod(pod);
        let old_ready = pods.iter().filter(staying).filter(|pod| !is_new(pod)).filter(ready).count() as u64;
        let new: Vec<&Value> = pods.iter().filter(staying).filter(|pod| is_new(pod)).collect();
        let restarts = new
            .iter()
            .flat_map(|pod| ["initContainerStatuses", "containerStatuses"].map(|field| &pod["status"][field]));
        let restarts = restarts.flat_map(|all| all.as_array().into_iter().flatten());
        let restarts = restarts.filter_map(|one| one["restartCount"].as_u64()).max().unwrap_or_default();
        // Those that the deployment means to have, of which some may not be made yet.
        let meant = deployment["status"]["updatedReplicas"].as_u64().unwrap_or_default();
        Ok(Look {
            at,
            pods: meant.max(new.len() as u64),
            ready: new.into_iter().filter(ready).count() as u64,
            restarts,
            measured,
            old_ready,
            new: self.new.totals,
            old: self.old.totals,
        })
    }
}

/// By the clock of this machine, in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An error with its reason and what to do about it.
pub(crate) fn in_one_line(error: &Error) -> String {
    let hint = error.hint.iter().map(|hint| format!(" ({})", hint.split_whitespace().collect::<Vec<_>>().join(" ")));
    textnlp_provider::told(error) + &hint.collect::<String>()
}

/// Before there is a second set of pods, clients are led to the one that is there by its own label.
async fn keep(api: &Api, orders: &Orders, deployment: &Value) -> Result<Sets> {
    let call = call("roll", "patch", &orders.namespace, Some(&orders.name));
    if !is_one_set(deployment) {
        return Err(call.error(Sort::Unavailable).because(OTHERS_STAY));
    }
    let old = set_of(api, orders, deployment, &orders.revert["spec"]["template"]).await?;
    let Some(old) = old else {
        return Err(call.error(Sort::Unavailable).because("its controller has not looked at its pods yet"));
    };
    orders.traffic(api).keep(Some(&old)).await?;
    Ok(Sets { old, new: None, before: Totals::default() })
}

/// The label of the pods of this template, if it is the newest; `None` as long as its controller has not looked at it.
async fn set_of(api: &Api, orders: &Orders, deployment: &Value, template: &Value) -> Result<Option<String>> {
    let newest = traffic::newest(api, &orders.namespace, deployment).await?;
    // It may be the one before, where only the number of pods was looked at.
    let newest = newest.filter(|set| is_of(&set["spec"]["template"], template));
    Ok(newest.and_then(|set| set["metadata"]["labels"][HASH].as_str().map(str::to_owned)))
}

/// Whether a set's template is the one that was applied, by what tells releases apart: what the pods read, and their images.
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
