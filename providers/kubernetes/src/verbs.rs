//! What is done to an object: applied, removed, and waited for.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::{Error, Handle, Object, Operation, Ownership, Progress, Recorded, Result, Sort, Verb};
use tokio::time::Instant;

use crate::api::Api;
use crate::canary::{self, Canary, Orders, Standing};
use crate::diff::findings;
use crate::error::Call;
use crate::fields::{Finding, Is, Segment};
use crate::identity::{self, Place};
use crate::provider::Kubernetes;
use crate::ready::{self, Ready};
use crate::table::{self, Row};
use crate::watch::{self, Change};
use crate::{inside, manifest, trouble};

/// How soon somebody goes on who waits while he looks.
const NOW: Duration = Duration::from_millis(20);
/// How long one look waits for a change. What its pods say of it is asked between two of them.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon something is looked at again that takes a moment, where it may not be watched.
const SOON: Duration = Duration::from_millis(300);
/// How soon something is looked at again that takes a while.
const LATER: Duration = Duration::from_secs(2);
/// How soon a rollout is looked at again: it takes minutes.
const ROLLING: Duration = Duration::from_secs(1);
/// How long a controller may take to look at what changed.
const SETTLES: Duration = Duration::from_secs(4);
/// Looks that come soon.
const SOON_LOOKS: u32 = 20;
/// Things of others that are named.
const SHOWN: usize = 10;

/// One operation on one object.
pub(crate) struct Work<'a> {
    kubernetes: &'a Kubernetes,
    api: Api,
    op: &'a Operation,
    row: &'static Row,
    place: Place,
    manager: String,
}

/// Where an operation stands.
#[derive(Clone, Serialize, Deserialize)]
struct Stand {
    /// The object that is waited for.
    uid: String,
    /// It is to be gone before the create that was asked for can be made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    in_the_way: bool,
    /// How often it was looked at.
    looks: u32,
    /// It may not be watched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unwatched: bool,
    /// A job in the cluster rolls its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollout: Option<Box<Orders>>,
    /// The last watch was lost: whoever looks next takes his time.
    #[serde(skip)]
    lost: bool,
}

impl Stand {
    /// Before the first look at an object.
    fn of(object: &Value) -> Self {
        let uid = identity::uid(object).to_owned();
        Self { uid, in_the_way: false, looks: 0, unwatched: false, rollout: None, lost: false }
    }
}

impl<'a> Work<'a> {
    pub(crate) async fn on(kubernetes: &'a Kubernetes, op: &'a Operation) -> Result<Self> {
        let began = Instant::now();
        let invalid =
            |why: &str| Error::new(Sort::Invalid, op.verb.to_string(), op.resource.to_string()).because(why.to_owned());
        let row = table::row(&op.kind).ok_or_else(|| invalid("its kind is not ours"))?;
        if op.resource.site() != op.site.as_str() {
            return Err(invalid("it is of another site"));
        }
        if op.recorded.as_ref().is_some_and(|recorded| matches!(recorded.ownership, Ownership::External(_))) {
            let error = Error::new(Sort::Denied, op.verb.to_string(), op.resource.to_string());
            return Err(error.because("an existing object is read and never changed"));
        }
        let recorded = op.recorded.as_ref().map(|recorded| &recorded.cloud_id);
        let place = match (op.verb, recorded) {
            (Verb::Create, _) => Place::of_spec(row, &op.spec)?,
            (_, Some(id)) => Place::of_id(row, id).ok_or_else(|| invalid("its cloud id is not ours"))?,
            (_, None) => return Err(invalid("nothing is recorded of it")),
        };
        let api = kubernetes.api().await?.for_one_verb(began);
        Ok(Self { kubernetes, api, op, row, place, manager: identity::manager(op.lineage) })
    }

    fn call(&self, action: &'static str, verb: &'static str) -> Call<'_> {
        let (namespace, name) = (self.place.namespace.as_deref(), Some(self.place.name.as_str()));
        Call { action, verb, row: self.row, namespace, name }
    }

    pub(crate) async fn begin(&self) -> Result<Progress> {
        let there = self.api.get(&self.call("read", "get")).await?;
        match self.op.verb {
            Verb::Create => self.create(there.as_ref()).await,
            Verb::Update => self.update(there.as_ref()).await,
            Verb::Delete => self.delete(there.as_ref()).await,
        }
    }

    pub(crate) async fn advance(&self, handle: &Handle) -> Result<Progress> {
        let mut stand: Stand = serde_json::from_value(handle.0.clone())
            .map_err(|source| Error::new(Sort::Invalid, "go on with", self.op.resource.to_string()).because(source))?;
        if let Some(orders) = stand.rollout.take() {
            return self.rolling(orders, stand).await;
        }
        let there = self.awaited(&mut stand).await?;
        match (self.op.verb, there) {
            (Verb::Delete, None) => self.gone(),
            (Verb::Create, None) if stand.in_the_way => self.create(None).await,
            (_, None) => {
                let error = self.call("wait for", "get").error(Sort::NotFound).because("somebody removed it meanwhile");
                Ok(Progress::Failed { left: None, error })
            }
            (Verb::Delete, Some(object)) => Ok(self.ending(&object, &stand).await),
            (Verb::Create, Some(object)) if stand.in_the_way => Ok(self.ending(&object, &stand).await),
            (_, Some(object)) => self.await_ready(&object, &stand).await,
        }
    }

    /// The object that is waited for, as soon as it is as it should be, or as it is after a while; `None` when it is gone.
    async fn awaited(&self, stand: &mut Stand) -> Result<Option<Value>> {
        let is_it = |object: &Value| identity::uid(object) == stand.uid;
        let is_over = |object: &Value| {
            let goes = self.op.verb == Verb::Delete || stand.in_the_way;
            !goes && !matches!((self.row.ready)(object), Ready::NotYet(_))
        };
        let (until, call) = (Instant::now() + PATIENCE, self.call("wait for", "watch"));
        let mut there = self.api.get(&self.call("read", "get")).await?.filter(is_it);
        while let Some(object) = there.as_ref().filter(|object| !stand.unwatched && !is_over(object)) {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let left = until.saturating_duration_since(Instant::now());
            there = match watch::next(&self.api, &call, version, left).await {
                Ok(Change::Is(object)) => Some(object).filter(is_it),
                Ok(Change::Gone) => None,
                Ok(Change::Nothing) => break,
                Ok(Change::TooOld) => self.api.get(&self.call("read", "get")).await?.filter(is_it),
                // Whoever may read it and not watch it looks at it again and again.
                Err(error) if error.sort == Sort::Denied => {
                    stand.unwatched = true;
                    break;
                }
                // A look is as good as a watch whose way was lost.
                Err(_) => {
                    stand.lost = true;
                    break;
                }
            };
        }
        Ok(there)
    }

    /// Makes an object that is not there, or goes on with the one that an earlier try made.
    async fn create(&self, there: Option<&Value>) -> Result<Progress> {
        let Some(object) = there else {
            let written = self.apply(None, &[]).await?;
            return self.await_ready(&written, &Stand::of(&written)).await;
        };
        if identity::lineage(object) != Some(self.op.lineage) {
            let whose = match identity::lineage(object) {
                Some(lineage) => format!("it is there and belongs to lineage {lineage}"),
                None => "it is there and carries no lineage: somebody else made it".to_owned(),
            };
            let hint = "choose another name, or remove it if nobody needs it";
            return Err(self.call("create", "create").error(Sort::Exists).because(whose).hint(hint));
        }
        if !identity::is_applied(object, self.op.lineage) {
            let why = "it is there with our label, which this deployment did not set: somebody copied it";
            let hint = "take the label away or choose another name";
            return Err(self.call("create", "create").error(Sort::Exists).because(why).hint(hint));
        }
        if identity::resource(object).is_some_and(|resource| resource != self.op.resource) {
            let whose = format!(
                "it is there as {} of the same deployment",
                object["metadata"]["annotations"][identity::RESOURCE]
            );
            return Err(self.call("create", "create").error(Sort::Exists).because(whose));
        }
        if object["metadata"]["deletionTimestamp"].is_string() {
            return Ok(self.ending(object, &Stand { in_the_way: true, ..Stand::of(object) }).await);
        }
        let written = self.apply(Some(identity::uid(object)), &[]).await?;
        self.await_ready(&written, &Stand::of(&written)).await
    }

    /// Applies what is wanted now to the object that was recorded, and to no other of its name.
    async fn update(&self, there: Option<&Value>) -> Result<Progress> {
        let Some(object) =
            there.filter(|object| self.place.uid.as_deref().is_none_or(|uid| uid == identity::uid(object)))
        else {
            return Err(self.call("update", "patch").error(Sort::NotFound).because("it is not there any more"));
        };
        // What others own, and nothing new is wanted of, stays out of what is applied: it would be a conflict.
        let seen = manifest::seen(self.row, object, &self.manager, Ready::Yes)?;
        let recorded = self.op.recorded.as_ref().map(|recorded| &recorded.spec);
        let found = findings(&self.op.spec, recorded, &seen.spec);
        let (take, found): (Vec<Finding>, Vec<Finding>) = found
            .into_iter()
            .filter(|finding| !matches!(finding.is, Is::Ours))
            .partition(|finding| self.kubernetes.taken().contains(&finding.field));
        let left: Vec<&[Segment]> = found
            .iter()
            .filter(|finding| matches!(finding.is, Is::Taken(_)))
            .map(|finding| &finding.path[..])
            .collect();
        if let Some(canary) = Canary::of(self.op) {
            let refused =
                |why: &str, hint: &str| self.call("roll", "patch").error(Sort::Conflict).because(why).hint(hint);
            if !take.is_empty() {
                let why = "a field is to be taken from its owner, and the pods are to change";
                return Err(refused(
                    why,
                    "take it with `--set rollout.strategy=rolling`, or in an `up` that changes no pods",
                ));
            }
            if self.is_let_go(object) {
                let why = "the number of pods is to be ours again, and the pods are to change";
                return Err(refused(why, "do one after the other: `scaling` in an `up` of its own"));
            }
            self.hand_over(object, &seen).await?;
            return self.begin_rollout(object, canary, (&left, &seen)).await;
        }
        if let ("Deployment", Some(namespace)) = (self.row.kind, &self.place.namespace) {
            canary::make_way(&self.api, (namespace, &self.place.name), object, (&self.manager, None)).await?;
        }
        if let (table::HTTP_ROUTE, Some(namespace)) = (self.row.kind, &self.place.namespace) {
            canary::leave_shares(&self.api, namespace, object).await?;
        }
        self.hand_over(object, &seen).await?;
        let is_agreed = !found.iter().any(|finding| matches!(finding.is, Is::Contested(_)));
        let written = match take.is_empty() || !is_agreed {
            true => self.apply(Some(identity::uid(object)), &left).await?,
            false => self.take(object, &left).await?,
        };
        self.await_ready(&written, &Stand::of(&written)).await
    }

    /// Has a job in the cluster roll the pods; they change when it is there.
    async fn begin_rollout(
        &self,
        object: &Value,
        canary: Canary,
        (left, seen): (&[&[Segment]], &Object),
    ) -> Result<Progress> {
        let uid = identity::uid(object);
        let promote = manifest::applied(self.row, self.op, self.kubernetes.secrets(), Some(uid), left).await?;
        // `Canary::of` has seen what is recorded.
        let before = self.op.recorded.as_ref().map_or(&self.op.spec, |recorded| &recorded.spec);
        let theirs = findings(before, Some(before), &seen.spec);
        let theirs: Vec<&[Segment]> =
            theirs.iter().filter(|one| matches!(one.is, Is::Taken(_))).map(|one| &one.path[..]).collect();
        let before = Operation { spec: before.clone(), ..self.op.clone() };
        let revert = manifest::applied(self.row, &before, self.kubernetes.secrets(), Some(uid), &theirs).await?;
        let place = (self.place.namespace.as_deref().unwrap_or_default(), self.place.name.as_str(), uid);
        let route = canary::route_of(&self.api, (place.0, place.1), &self.manager, canary).await?;
        let orders = Orders::of(self.op, canary, place, &self.manager, (promote, revert), route);
        orders.send(&self.api, object).await?;
        let stand = Stand { rollout: Some(Box::new(orders)), ..Stand::of(object) };
        Ok(pending(&stand, "the job that rolls its pods begins".to_owned()))
    }

    /// Waits for the job's word. Whoever cannot look now has lost nothing: the rollout goes on without him.
    async fn rolling(&self, orders: Box<Orders>, stand: Stand) -> Result<Progress> {
        let for_now = |error: Error| Error { sort: Sort::Unavailable, ..error };
        let there = self.api.get(&self.call("read", "get")).await.map_err(for_now)?;
        let Some(object) = there.filter(|object| identity::uid(object) == stand.uid) else {
            let error = self.call("wait for", "get").error(Sort::NotFound).because("somebody removed it meanwhile");
            return Ok(Progress::Failed { left: None, error });
        };
        match orders.look(&self.api, &object).await.map_err(for_now)? {
            Standing::GoesOn(says) => {
                // The same handle: whoever keeps it need not write it again.
                let handle = Handle(json!(Stand { rollout: Some(orders), ..stand }));
                Ok(Progress::Pending { handle, says, again_in: ROLLING })
            }
            Standing::Promoted => {
                // Its progress was counted from long ago, until its controller has seen that the first pods count now.
                tokio::time::sleep(SETTLES).await;
                let object = self.api.get(&self.call("read", "get")).await.map_err(for_now)?.unwrap_or(object);
                self.await_ready(&object, &stand).await
            }
            Standing::Ended(why) => {
                let left = manifest::seen(self.row, &object, &self.manager, Ready::Yes)?;
                let error = self.call("roll", "patch").error(Sort::Invalid).because(why);
                let hint = "change it, or `rollback`; `rollout retry` lets it be tried once more as it is";
                Ok(Progress::Failed { left: Some(left), error: error.hint(hint) })
            }
        }
    }

    /// Whether the holder has the number of pods, which is to be ours again.
    fn is_let_go(&self, object: &Value) -> bool {
        let holder = identity::holder(&self.manager);
        let managed = object["metadata"]["managedFields"].as_array();
        let is_held = managed.into_iter().flatten().any(|entry| entry["manager"] == holder.as_str());
        is_held && self.op.spec.as_value()["spec"].get("replicas").is_some()
    }

    /// A number of pods that nobody owns any more falls to the default of one: when it is given up, it is held as it is until an autoscaler
    /// says another (<https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership>); when it is wanted
    /// again, it is let go of.
    async fn hand_over(&self, object: &Value, seen: &Object) -> Result<()> {
        let (ours, _) = manifest::owners(&seen.spec);
        let is_wanted = self.op.spec.as_value()["spec"].get("replicas").is_some();
        let was_ours = ours.is_some_and(|fields| fields["f:spec"].get("f:replicas").is_some());
        let mut held = manifest::bare(self.row, &self.place, identity::uid(object));
        match &object["spec"]["replicas"] {
            now if now.is_u64() && !is_wanted && was_ours => held["spec"] = json!({ "replicas": now }),
            _ if self.is_let_go(object) => {}
            _ => return Ok(()),
        }
        let holder = identity::holder(&self.manager);
        self.api.apply(&self.call("apply", "patch"), &holder, &held, false).await.map(drop)
    }

    /// Applies by force what nobody contests but for the fields that are to be taken; an object that anybody changed since it was looked
    /// at is not touched, for that may be another field.
    async fn take(&self, object: &Value, left: &[&[Segment]]) -> Result<Value> {
        let uid = Some(identity::uid(object));
        let mut manifest = manifest::applied(self.row, self.op, self.kubernetes.secrets(), uid, left).await?;
        manifest["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let call = self.call("apply", "patch");
        Ok(self.api.force(&call, &self.manager, &manifest).await?.object)
    }

    async fn apply(&self, uid: Option<&str>, taken: &[&[Segment]]) -> Result<Value> {
        let manifest = manifest::applied(self.row, self.op, self.kubernetes.secrets(), uid, taken).await?;
        let call = self.call("apply", "patch");
        match self.api.apply(&call, &self.manager, &manifest, false).await {
            Ok(written) if uid.is_none() && !written.created => {
                // It was not there a moment ago, and the API server found it: whoever made it meanwhile owns it, and what was
                // added to it is taken back, our label first of all.
                let bare = manifest::bare(self.row, &self.place, identity::uid(&written.object));
                let given_back = self.api.apply(&call, &self.manager, &bare, false).await;
                let why = match given_back {
                    Ok(_) => "somebody else made it at the same moment".to_owned(),
                    Err(error) => format!(
                        "somebody else made it at the same moment; our fields were added to it, and could not be taken back: {error}"
                    ),
                };
                let hint = format!(
                    "`kubectl get {} {} -o yaml --show-managed-fields` shows who",
                    self.row.resource(),
                    self.place.name
                );
                Err(call.error(Sort::Exists).because(why).hint(hint))
            }
            Ok(written) => Ok(written.object),
            // The label of another deployment is another manager's.
            Err(error) if uid.is_none() && error.code.as_deref() == Some("Conflict") && error.hint.is_some() => {
                Err(Error { sort: Sort::Exists, ..error })
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for the recorded object to go, and for no other of its name.
    async fn delete(&self, there: Option<&Value>) -> Result<Progress> {
        if self.place.uid.is_none() && there.is_some() {
            // Recorded by its name alone, as a person may have written it: any object may have that by now.
            let error = self
                .call("delete", "delete")
                .error(Sort::Denied)
                .because("which object of this name is ours is not recorded");
            return Err(error.hint("`state remove` forgets it, and `state import` records it with its uid"));
        }
        let Some(object) = there.filter(|object| self.place.uid.as_deref() == Some(identity::uid(object))) else {
            return self.gone();
        };
        let uid = identity::uid(object).to_owned();
        if self.row.kind == table::namespaces().kind || self.row.kind == table::DEFINITION {
            self.holds_only_ours(object).await?;
        }
        if !object["metadata"]["deletionTimestamp"].is_string() {
            match self.api.delete(&self.call("delete", "delete"), &uid).await {
                Ok(()) => {}
                Err(error) if matches!(error.sort, Sort::NotFound | Sort::Conflict) && error.hint.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        let stand = Stand { uid, ..Stand::of(object) };
        // Most objects are gone at once, and nobody need wait to learn it.
        match self.api.get(&self.call("read", "get")).await?.filter(|object| identity::uid(object) == stand.uid) {
            None => self.gone(),
            Some(object) => Ok(self.ending(&object, &stand).await),
        }
    }

    /// A namespace takes everything in it along, and a definition every object of its kind: what others made is not ours to remove.
    async fn holds_only_ours(&self, object: &Value) -> Result<()> {
        let call = self.call("delete", "delete");
        let foreign = match self.row.kind == table::DEFINITION {
            true => inside::of_kind(&self.api, &call, object, self.op.lineage).await?,
            false => inside::foreign(&self.api, &call, &self.place.name, self.op.lineage).await?,
        };
        if foreign.is_empty() {
            return Ok(());
        }
        let shown = foreign.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = foreign.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let why = format!("it holds what this deployment did not make: {shown}{more}");
        let hint = "move or remove what is in it, then run the same command again";
        Err(call.error(Sort::Denied).because(why).hint(hint))
    }

    fn gone(&self) -> Result<Progress> {
        let recorded = self.op.recorded.as_ref();
        let recorded = recorded
            .ok_or_else(|| self.call("delete", "delete").error(Sort::Invalid).because("nothing is recorded of it"))?;
        Ok(Progress::Done(as_recorded(recorded, self.op)))
    }

    async fn ending(&self, object: &Value, stand: &Stand) -> Progress {
        pending(stand, trouble::of_leaving(&self.api, self.row, object).await)
    }

    /// Whether the policy beside a route is in force, where there is one.
    async fn in_force(&self, route: &Value) -> Result<Ready> {
        let row = table::named("kubernetes.backend-tls-policy");
        let of = |field: &str| route["metadata"][field].as_str();
        let call = Call { action: "read", verb: "get", row, namespace: of("namespace"), name: of("name") };
        match self.api.get(&call).await {
            Ok(policy) => Ok(policy.map_or(Ready::Yes, |policy| ready::in_force(&policy))),
            // Of a route that is somebody else's way, whoever may not look at policies need not.
            Err(error) if error.sort == Sort::Denied => Ok(Ready::Yes),
            Err(error) => Err(error),
        }
    }

    async fn await_ready(&self, object: &Value, stand: &Stand) -> Result<Progress> {
        let ready = match (self.row.ready)(object) {
            Ready::Yes if self.row.kind == table::HTTP_ROUTE => self.in_force(object).await?,
            ready => ready,
        };
        match ready {
            Ready::Yes => Ok(Progress::Done(manifest::seen(self.row, object, &self.manager, Ready::Yes)?)),
            Ready::NotYet(why) => {
                let says = trouble::of_pods(&self.api, self.row, object, why).await;
                Ok(pending(stand, says))
            }
            Ready::Never(why) => {
                let why = trouble::of_pods(&self.api, self.row, object, why).await;
                let left = manifest::seen(self.row, object, &self.manager, Ready::Never(why.clone()))?;
                let error = self.call("wait for", "get").error(Sort::Invalid).because(why);
                Ok(Progress::Failed { left: Some(left), error })
            }
        }
    }
}

fn pending(stand: &Stand, says: String) -> Progress {
    let stand = Stand { looks: stand.looks.saturating_add(1), ..stand.clone() };
    let again_in = match stand.unwatched || stand.lost {
        false => NOW,
        true if stand.looks <= SOON_LOOKS => SOON,
        true => LATER,
    };
    Progress::Pending { handle: Handle(json!(stand)), says, again_in }
}

/// The last that is known of an object that is gone.
fn as_recorded(recorded: &Recorded, op: &Operation) -> Object {
    Object {
        kind: recorded.kind.clone(),
        cloud_id: recorded.cloud_id.clone(),
        spec: recorded.spec.clone(),
        outputs: recorded.outputs.clone(),
        lineage: Some(op.lineage),
        health: textnlp_provider::Health::Degraded("it is gone".to_owned()),
        via: None,
        foreign: Vec::new(),
    }
}
