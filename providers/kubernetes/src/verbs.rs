//! The operations on one object: create, update, delete, and the wait for their end.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::{Error, ErrorKind, Handle, Object, Operation, Ownership, Progress, Recorded, Result, Verb};
use tokio::time::Instant;

use crate::api::Api;
use crate::canary::{self, Canary, RolloutOrders, RolloutState};
use crate::diff::findings;
use crate::error::Call;
use crate::fields::{FieldOwner, Finding, PathSegment};
use crate::identity::{self, ObjectLocation};
use crate::provider::Kubernetes;
use crate::ready::{self, Ready};
use crate::table::{self, Row};
use crate::watch::{self, Change};
use crate::{diagnosis, inside, manifest};

/// The delay before the next poll if the poll itself waits on a watch.
const NOW: Duration = Duration::from_millis(20);
/// How long one poll waits for a change. Pods are inspected between two polls.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);
/// The first poll interval, where watching is not permitted.
const FIRST_POLL_INTERVAL: Duration = Duration::from_millis(300);
/// The later poll interval.
const LATER: Duration = Duration::from_secs(2);
/// The poll interval of a rollout, which takes minutes.
const ROLLING: Duration = Duration::from_secs(1);
/// The time for a controller to observe a change.
const SETTLES: Duration = Duration::from_secs(4);
/// The number of polls at the short interval.
const SOON_LOOKS: u32 = 20;
/// The number of polls for the volume of a claim that is gone: about ten minutes, because Kubernetes detaches a disk from a node that does
/// not answer after six.
const VOLUME_LOOKS: u32 = 300;
/// The limit of foreign objects that a message lists.
const SHOWN: usize = 10;

static VOLUME: Row = table::volumes();

/// One operation on one object.
pub(crate) struct Work<'a> {
    kubernetes: &'a Kubernetes,
    api: Api,
    op: &'a Operation,
    row: &'static Row,
    location: ObjectLocation,
    manager: String,
}

/// The progress of an operation, stored in its handle.
#[derive(Clone, Serialize, Deserialize)]
struct OperationProgress {
    /// The uid of the object that is waited for.
    uid: String,
    /// Whether the object must be gone before the requested create can start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    in_the_way: bool,
    /// The number of polls so far.
    looks: u32,
    /// Whether watching is not permitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unwatched: bool,
    /// The volume of a claim that is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume: Option<String>,
    /// The number of polls for that volume so far.
    #[serde(default)]
    volume_looks: u32,
    /// The rollout job that replaces the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rollout: Option<Box<RolloutOrders>>,
    /// The last problem of its pods: those of a job are removed when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pods: Option<String>,
    /// Whether the last watch was lost, so the next poll uses the longer interval.
    #[serde(skip)]
    lost: bool,
}

impl OperationProgress {
    /// The initial progress.
    fn of(object: &Value) -> Self {
        let uid = identity::uid(object).to_owned();
        Self {
            uid,
            in_the_way: false,
            looks: 0,
            unwatched: false,
            volume: None,
            volume_looks: 0,
            rollout: None,
            pods: None,
            lost: false,
        }
    }
}

impl<'a> Work<'a> {
    pub(crate) async fn on(kubernetes: &'a Kubernetes, op: &'a Operation) -> Result<Self> {
        let began = Instant::now();
        let invalid = |why: &str| {
            Error::new(ErrorKind::Invalid, op.verb.to_string(), op.resource.to_string()).because(why.to_owned())
        };
        let row = table::row(&op.kind).ok_or_else(|| invalid("its kind is not known to this provider"))?;
        if op.resource.site() != op.site.as_str() {
            return Err(invalid("it belongs to another site"));
        }
        if op.recorded.as_ref().is_some_and(|recorded| matches!(recorded.ownership, Ownership::External(_))) {
            let error = Error::new(ErrorKind::Denied, op.verb.to_string(), op.resource.to_string());
            return Err(error.because("an existing object is read and never changed"));
        }
        let recorded = op.recorded.as_ref().map(|recorded| &recorded.cloud_id);
        let location = match (op.verb, recorded) {
            (Verb::Create, _) => ObjectLocation::of_spec(row, &op.spec)?,
            (_, Some(id)) => {
                ObjectLocation::of_id(row, id).ok_or_else(|| invalid("its cloud id is not one of this provider"))?
            }
            (_, None) => return Err(invalid("it is not recorded")),
        };
        let api = kubernetes.api().await?.for_one_verb(began);
        Ok(Self { kubernetes, api, op, row, location, manager: identity::manager(op.lineage) })
    }

    fn call(&self, action: &'static str, verb: &'static str) -> Call<'_> {
        let (namespace, name) = (self.location.namespace.as_deref(), Some(self.location.name.as_str()));
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

    /// Goes on with an operation. Only that of a removed claim knows its volume, so that an expired sign-in leaves it open.
    pub(crate) async fn advance(kubernetes: &'a Kubernetes, op: &'a Operation, handle: &Handle) -> Result<Progress> {
        let answer = match Self::on(kubernetes, op).await {
            Ok(work) => work.go_on(handle).await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| match error.kind {
            ErrorKind::Denied if handle.0["volume"].is_string() && !inside::is_forbidden(&error) => {
                Error { kind: ErrorKind::Unavailable, ..error }
            }
            _ => error,
        })
    }

    async fn go_on(&self, handle: &Handle) -> Result<Progress> {
        let mut stand: OperationProgress = serde_json::from_value(handle.0.clone())
            .map_err(|source| Error::new(ErrorKind::Invalid, "resume", self.op.resource.to_string()).because(source))?;
        if let Some(orders) = stand.rollout.take() {
            return self.rolling(orders, stand).await;
        }
        let there = self.awaited(&mut stand).await?;
        match (self.op.verb, there) {
            (Verb::Delete, None) => self.gone_with_volume(&stand).await,
            (Verb::Create, None) if stand.in_the_way => self.create(None).await,
            (_, None) => {
                let error =
                    self.call("wait for", "get").error(ErrorKind::NotFound).because("it was removed in the meantime");
                Ok(Progress::Failed { left: None, error })
            }
            (Verb::Delete, Some(object)) => Ok(self.ending(&object, &stand).await),
            (Verb::Create, Some(object)) if stand.in_the_way => Ok(self.ending(&object, &stand).await),
            (_, Some(object)) => self.await_ready(&object, &stand).await,
        }
    }

    /// Waits until the object has the intended state, up to a timeout; returns it, or `None` when it is gone.
    async fn awaited(&self, stand: &mut OperationProgress) -> Result<Option<Value>> {
        let is_it = |object: &Value| identity::uid(object) == stand.uid;
        let is_over = |object: &Value| {
            let is_removed = self.op.verb == Verb::Delete || stand.in_the_way;
            !is_removed && !matches!((self.row.ready)(object), Ready::NotYet(_))
        };
        let (until, call) = (Instant::now() + WATCH_TIMEOUT, self.call("wait for", "watch"));
        let mut there = self.api.get(&self.call("read", "get")).await?.filter(is_it);
        while let Some(object) = there.as_ref().filter(|object| !stand.unwatched && !is_over(object)) {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let left = until.saturating_duration_since(Instant::now());
            there = match watch::next(&self.api, &call, version, left).await {
                Ok(Change::Is(object)) => Some(object).filter(is_it),
                Ok(Change::Gone) => None,
                Ok(Change::Nothing) => break,
                Ok(Change::TooOld) => self.api.get(&self.call("read", "get")).await?.filter(is_it),
                // Without permission to watch, the object is polled.
                Err(error) if error.kind == ErrorKind::Denied => {
                    stand.unwatched = true;
                    break;
                }
                // After a lost connection, the next poll replaces the watch.
                Err(_) => {
                    stand.lost = true;
                    break;
                }
            };
        }
        Ok(there)
    }

    /// Creates an object, or resumes with the one of an earlier attempt.
    async fn create(&self, there: Option<&Value>) -> Result<Progress> {
        let Some(object) = there else {
            let written = self.apply(None, &[]).await?;
            return self.await_ready(&written, &OperationProgress::of(&written)).await;
        };
        if identity::lineage(object) != Some(self.op.lineage) {
            let whose = match identity::lineage(object) {
                Some(lineage) => format!("it exists and belongs to lineage {lineage}"),
                None => format!("it is there and has no lineage label: {} created it", identity::creator(object)),
            };
            let hint = "choose another name, or remove it if it is not needed";
            return Err(self.call("create", "create").error(ErrorKind::Exists).because(whose).hint(hint));
        }
        if !identity::is_applied(object, self.op.lineage) {
            let why = "it exists with the lineage label of this deployment, which did not set it: the label was copied";
            let hint = "remove the label or choose another name";
            return Err(self.call("create", "create").error(ErrorKind::Exists).because(why).hint(hint));
        }
        if identity::resource(object).is_some_and(|resource| resource != self.op.resource) {
            let whose = format!(
                "it exists as {} of the same deployment",
                object["metadata"]["annotations"][identity::RESOURCE]
            );
            return Err(self.call("create", "create").error(ErrorKind::Exists).because(whose));
        }
        if object["metadata"]["deletionTimestamp"].is_string() {
            return Ok(self
                .ending(object, &OperationProgress { in_the_way: true, ..OperationProgress::of(object) })
                .await);
        }
        let written = self.apply(Some(identity::uid(object)), &[]).await?;
        self.await_ready(&written, &OperationProgress::of(&written)).await
    }

    /// Applies the wanted spec to the recorded object, never to another one of the same name.
    async fn update(&self, there: Option<&Value>) -> Result<Progress> {
        let Some(object) =
            there.filter(|object| self.location.uid.as_deref().is_none_or(|uid| uid == identity::uid(object)))
        else {
            return Err(self.call("update", "patch").error(ErrorKind::NotFound).because("it no longer exists"));
        };
        // Unchanged fields that other managers own are omitted from the apply: they would conflict.
        let seen = manifest::seen(self.row, object, &self.manager, Ready::Yes)?;
        let recorded = self.op.recorded.as_ref().map(|recorded| &recorded.spec);
        let found = findings(&self.op.spec, recorded, &seen.spec);
        let (take, found): (Vec<Finding>, Vec<Finding>) = found
            .into_iter()
            .filter(|finding| !matches!(finding.is, FieldOwner::Ours))
            .partition(|finding| self.kubernetes.taken().contains(&finding.field));
        let left: Vec<&[PathSegment]> = found
            .iter()
            .filter(|finding| matches!(finding.is, FieldOwner::Taken(_)))
            .map(|finding| &finding.path[..])
            .collect();
        if let Some(canary) = Canary::of(self.op) {
            let refused =
                |why: &str, hint: &str| self.call("roll", "patch").error(ErrorKind::Conflict).because(why).hint(hint);
            if !take.is_empty() {
                let why = "the plan takes a field from its owner and also changes the pods";
                return Err(refused(
                    why,
                    "take the field with `--set rollout.strategy=rolling`, or in an `up` that changes no pods",
                ));
            }
            if self.is_let_go(object) {
                let why = "the plan takes the number of pods back from the autoscaler and also changes the pods";
                return Err(refused(why, "change `scaling` in a separate `up`"));
            }
            self.hand_over(object, &seen).await?;
            return self.begin_rollout(object, canary, (&left, &seen)).await;
        }
        if let ("Deployment", Some(namespace)) = (self.row.kind, &self.location.namespace) {
            canary::route_to_all(&self.api, (namespace, &self.location.name), object, (&self.manager, None)).await?;
        }
        if let (table::HTTP_ROUTE, Some(namespace)) = (self.row.kind, &self.location.namespace) {
            canary::leave_shares(&self.api, namespace, object).await?;
        }
        self.hand_over(object, &seen).await?;
        let is_agreed = !found.iter().any(|finding| matches!(finding.is, FieldOwner::Contested(_)));
        let written = match take.is_empty() || !is_agreed {
            true => self.apply(Some(identity::uid(object)), &left).await?,
            false => self.take(object, &left).await?,
        };
        self.await_ready(&written, &OperationProgress::of(&written)).await
    }

    /// Starts the rollout job; pods change once it has started.
    async fn begin_rollout(
        &self,
        object: &Value,
        canary: Canary,
        (left, seen): (&[&[PathSegment]], &Object),
    ) -> Result<Progress> {
        let uid = identity::uid(object);
        let promote = manifest::applied(self.row, self.op, self.kubernetes.secrets(), Some(uid), left).await?;
        // `Canary::of` has checked that a record exists.
        let before = self.op.recorded.as_ref().map_or(&self.op.spec, |recorded| &recorded.spec);
        let foreign_changes = findings(before, Some(before), &seen.spec);
        let foreign_changes: Vec<&[PathSegment]> = foreign_changes
            .iter()
            .filter(|one| matches!(one.is, FieldOwner::Taken(_)))
            .map(|one| &one.path[..])
            .collect();
        let before = Operation { spec: before.clone(), ..self.op.clone() };
        let revert =
            manifest::applied(self.row, &before, self.kubernetes.secrets(), Some(uid), &foreign_changes).await?;
        let location = (self.location.namespace.as_deref().unwrap_or_default(), self.location.name.as_str(), uid);
        let route = canary::route_of(&self.api, (location.0, location.1), &self.manager, canary).await?;
        let orders = RolloutOrders::of(self.op, canary, location, &self.manager, (promote, revert), route);
        orders.send(&self.api, object).await?;
        let stand = OperationProgress { rollout: Some(Box::new(orders)), ..OperationProgress::of(object) };
        Ok(pending(&stand, "starting its rollout job".to_owned()))
    }

    /// Waits for the job's report. A failed read is retried: the rollout continues without the operator.
    async fn rolling(&self, orders: Box<RolloutOrders>, stand: OperationProgress) -> Result<Progress> {
        let for_now = |error: Error| Error { kind: ErrorKind::Unavailable, ..error };
        let there = self.api.get(&self.call("read", "get")).await.map_err(for_now)?;
        let Some(object) = there.filter(|object| identity::uid(object) == stand.uid) else {
            let error =
                self.call("wait for", "get").error(ErrorKind::NotFound).because("it was removed in the meantime");
            return Ok(Progress::Failed { left: None, error });
        };
        match orders.look(&self.api, &object).await.map_err(for_now)? {
            RolloutState::GoesOn(says) => {
                // The handle is unchanged, so the journal need not be rewritten.
                let handle = Handle(json!(OperationProgress { rollout: Some(orders), ..stand }));
                Ok(Progress::Pending { handle, says, again_in: ROLLING })
            }
            RolloutState::Promoted => {
                // `progressDeadlineSeconds` still counts from the start of the rollout, until the controller observes
                // the promoted spec.
                tokio::time::sleep(SETTLES).await;
                let object = self.api.get(&self.call("read", "get")).await.map_err(for_now)?.unwrap_or(object);
                self.await_ready(&object, &stand).await
            }
            RolloutState::Ended(why) => {
                let left = manifest::seen(self.row, &object, &self.manager, Ready::Yes)?;
                let error = self.call("roll", "patch").error(ErrorKind::Invalid).because(why);
                let hint = "change it, or run `rollback`; `rollout retry` tries the same release again";
                Ok(Progress::Failed { left: Some(left), error: error.hint(hint) })
            }
        }
    }

    /// Whether the handover manager holds a replica count that the spec sets again.
    fn is_let_go(&self, object: &Value) -> bool {
        let holder = identity::holder(&self.manager);
        let managed = object["metadata"]["managedFields"].as_array();
        let is_held = managed.into_iter().flatten().any(|entry| entry["manager"] == holder.as_str());
        is_held && self.op.spec.as_value()["spec"].get("replicas").is_some()
    }

    /// Without an owner, the replica count would fall to its default of one. If the spec drops it, the handover manager
    /// holds the current value until an autoscaler sets another one
    /// (<https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership>). If the spec sets
    /// it again, the handover manager releases it.
    async fn hand_over(&self, object: &Value, seen: &Object) -> Result<()> {
        let (ours, _) = manifest::owners(&seen.spec);
        let is_wanted = self.op.spec.as_value()["spec"].get("replicas").is_some();
        let was_ours = ours.is_some_and(|fields| fields["f:spec"].get("f:replicas").is_some());
        let mut held = manifest::bare(self.row, &self.location, identity::uid(object));
        match &object["spec"]["replicas"] {
            now if now.is_u64() && !is_wanted && was_ours => held["spec"] = json!({ "replicas": now }),
            _ if self.is_let_go(object) => {}
            _ => return Ok(()),
        }
        let holder = identity::holder(&self.manager);
        self.api.apply(&self.call("apply", "patch"), &holder, &held, false).await.map(drop)
    }

    /// Applies with force; conflicts are limited to the agreed fields. An object that changed since it was read is not
    /// touched, because other fields may conflict now.
    async fn take(&self, object: &Value, left: &[&[PathSegment]]) -> Result<Value> {
        let uid = Some(identity::uid(object));
        let mut manifest = manifest::applied(self.row, self.op, self.kubernetes.secrets(), uid, left).await?;
        manifest["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let call = self.call("apply", "patch");
        Ok(self.api.force(&call, &self.manager, &manifest).await?.object)
    }

    async fn apply(&self, uid: Option<&str>, taken: &[&[PathSegment]]) -> Result<Value> {
        let manifest = manifest::applied(self.row, self.op, self.kubernetes.secrets(), uid, taken).await?;
        let call = self.call("apply", "patch");
        match self.api.apply(&call, &self.manager, &manifest, false).await {
            Ok(written) if uid.is_none() && !written.created => {
                // Another client created the object after it was read as absent, and owns it. The fields that were
                // added to it are released, the lineage label first of all.
                let bare = manifest::bare(self.row, &self.location, identity::uid(&written.object));
                let given_back = self.api.apply(&call, &self.manager, &bare, false).await;
                let why = match given_back {
                    Ok(_) => "another client created it at the same time".to_owned(),
                    Err(error) => format!(
                        "another client created it at the same time; fields of this deployment were added to it and could not be reverted: {error}"
                    ),
                };
                let hint = format!(
                    "`kubectl get {} {} -o yaml --show-managed-fields` shows its field managers",
                    self.row.resource(),
                    self.location.name
                );
                Err(call.error(ErrorKind::Exists).because(why).hint(hint))
            }
            Ok(written) => Ok(written.object),
            // The lineage label of another deployment belongs to another manager.
            Err(error) if uid.is_none() && !error.contested.is_empty() => {
                Err(Error { kind: ErrorKind::Exists, ..error })
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the recorded object, never another one of the same name.
    async fn delete(&self, there: Option<&Value>) -> Result<Progress> {
        if self.location.uid.is_none() && there.is_some() {
            // Recorded without a uid, as in a manual import: another object may have the name by now.
            let error = self
                .call("delete", "delete")
                .error(ErrorKind::Denied)
                .because("the object with this name is not recorded");
            return Err(error.hint(
                "remove the record with `state remove`, and record the object with its uid with `state import`",
            ));
        }
        let Some(object) = there.filter(|object| self.location.uid.as_deref() == Some(identity::uid(object))) else {
            return self.gone();
        };
        let uid = identity::uid(object).to_owned();
        if self.row.kind == table::namespaces().kind || self.row.kind == table::DEFINITION {
            self.holds_only_ours(object).await?;
        }
        if !object["metadata"]["deletionTimestamp"].is_string() {
            match self.api.delete(&self.call("delete", "delete"), &uid).await {
                Ok(()) => {}
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        let volume = object["spec"]["volumeName"].as_str().filter(|_| self.row.kind == table::VOLUME_CLAIM);
        let stand = OperationProgress { uid, volume: volume.map(str::to_owned), ..OperationProgress::of(object) };
        // Most objects are deleted at once, so one read here saves a poll.
        let there = self.api.get(&self.call("read", "get")).await?.filter(|object| identity::uid(object) == stand.uid);
        match (there, &stand.volume) {
            (Some(object), _) => Ok(self.ending(&object, &stand).await),
            // Its handle is journaled first: it alone knows the volume.
            (None, Some(name)) => Ok(pending(&stand, format!("its volume {name} is read next"))),
            (None, None) => self.gone(),
        }
    }

    /// An object is gone when the volume of a claim is: what deletes the volume may be removed next. The wait has a bound, because that
    /// may be gone already, or may never succeed.
    async fn gone_with_volume(&self, stand: &OperationProgress) -> Result<Progress> {
        let Some(name) = &stand.volume else { return self.gone() };
        let call = Call { action: "read", verb: "get", row: &VOLUME, namespace: None, name: Some(name) };
        match self.api.get(&call).await {
            Ok(Some(volume))
                if volume["spec"]["claimRef"]["uid"] == stand.uid.as_str()
                    && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete" =>
            {
                if stand.volume_looks >= VOLUME_LOOKS {
                    let phase = volume["status"]["phase"].as_str().unwrap_or("there");
                    let why = format!("its volume {name} is still {phase}: what deletes it does not run or is refused");
                    let hint = format!(
                        "`kubectl describe pv {name}` shows why; the same command again goes on without it: delete its disk yourself then"
                    );
                    let error = self.call("delete", "delete").error(ErrorKind::Unavailable).because(why).hint(hint);
                    return Ok(Progress::Failed { left: None, error });
                }
                // It is polled: only the claim is watched.
                let volume_looks = stand.volume_looks + 1;
                let stand = OperationProgress { unwatched: true, volume_looks, ..stand.clone() };
                Ok(pending(&stand, format!("its volume {name} is being deleted")))
            }
            Ok(_) => self.gone(),
            // A claim is deleted without permission to read volumes too.
            Err(error) if inside::is_forbidden(&error) => self.gone(),
            Err(error) => Err(error),
        }
    }

    /// The deletion of a namespace deletes everything in it, that of a definition every object of its kind. Foreign
    /// objects must not be deleted that way.
    async fn holds_only_ours(&self, object: &Value) -> Result<()> {
        let call = self.call("delete", "delete");
        let foreign = match self.row.kind == table::DEFINITION {
            true => inside::of_kind(&self.api, &call, object, self.op.lineage).await?,
            false => inside::foreign(&self.api, &call, &self.location.name, self.op.lineage).await?,
        };
        let names = foreign.names;
        if names.is_empty() {
            return Ok(());
        }
        let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let why = format!("it contains objects that this deployment did not create: {shown}{more}");
        let hint = "move or remove what is in it, then run the same command again";
        // What the cluster is about to remove is waited for by retries.
        let kind = if foreign.is_leaving { ErrorKind::Conflict } else { ErrorKind::Denied };
        Err(call.error(kind).because(why).hint(hint))
    }

    fn gone(&self) -> Result<Progress> {
        let recorded = self.op.recorded.as_ref();
        let recorded = recorded
            .ok_or_else(|| self.call("delete", "delete").error(ErrorKind::Invalid).because("it is not recorded"))?;
        Ok(Progress::Done(as_recorded(recorded, self.op)))
    }

    async fn ending(&self, object: &Value, stand: &OperationProgress) -> Progress {
        pending(stand, diagnosis::of_leaving(&self.api, self.row, object).await)
    }

    /// Whether the policy of a route is in force, if there is one.
    async fn in_force(&self, route: &Value) -> Result<Ready> {
        let row = table::named("kubernetes.backend-tls-policy");
        let of = |field: &str| route["metadata"][field].as_str();
        let call = Call { action: "read", verb: "get", row, namespace: of("namespace"), name: of("name") };
        match self.api.get(&call).await {
            Ok(policy) => Ok(policy.map_or(Ready::Yes, |policy| ready::in_force(&policy))),
            // A route without such a policy must work without permission to read policies.
            Err(error) if error.kind == ErrorKind::Denied => Ok(Ready::Yes),
            Err(error) => Err(error),
        }
    }

    /// Whether CloudNativePG has read the Secret of the owner, if there is one.
    async fn has_read_owner(&self, cluster: &Value) -> Result<Ready> {
        let Some(name) = cluster["spec"]["bootstrap"]["initdb"]["secret"]["name"].as_str() else {
            return Ok(Ready::Yes);
        };
        let row = table::named("kubernetes.secret");
        let namespace = cluster["metadata"]["namespace"].as_str();
        let call = Call { action: "read", verb: "get", row, namespace, name: Some(name) };
        let secret = self.api.get(&call).await?;
        Ok(secret.map_or(Ready::Yes, |secret| ready::has_read(cluster, &secret)))
    }

    async fn await_ready(&self, object: &Value, stand: &OperationProgress) -> Result<Progress> {
        let mut stand = stand.clone();
        let ready = match (self.row.ready)(object) {
            Ready::Yes if self.row.kind == table::HTTP_ROUTE => self.in_force(object).await?,
            Ready::Yes if self.row.kind == table::POSTGRES_CLUSTER => {
                let ready = self.has_read_owner(object).await?;
                // A watch ends at once where the object says that it is ready.
                stand.unwatched |= ready != Ready::Yes;
                ready
            }
            ready => ready,
        };
        match ready {
            Ready::Yes => Ok(Progress::Done(manifest::seen(self.row, object, &self.manager, Ready::Yes)?)),
            Ready::NotYet(why) => {
                let problem = diagnosis::problem_of_pods(&self.api, self.row, object).await;
                let says = diagnosis::extended(why, problem.as_deref());
                let pods = problem.or_else(|| stand.pods.clone());
                Ok(pending(&OperationProgress { pods, ..stand }, says))
            }
            Ready::Never(why) => {
                let problem = diagnosis::problem_of_pods(&self.api, self.row, object).await;
                // The pods of a failed job are removed with their problem.
                let problem = problem.or_else(|| stand.pods.clone().filter(|_| self.row.kind == "Job"));
                let says = diagnosis::extended(why, problem.as_deref());
                let left = manifest::seen(self.row, object, &self.manager, Ready::Never(says.clone()))?;
                let error = self.call("wait for", "get").error(ErrorKind::Invalid).because(says);
                Ok(Progress::Failed { left: Some(left), error })
            }
        }
    }
}

fn pending(stand: &OperationProgress, says: String) -> Progress {
    let stand = OperationProgress { looks: stand.looks.saturating_add(1), ..stand.clone() };
    let again_in = match stand.unwatched || stand.lost {
        false => NOW,
        true if stand.looks <= SOON_LOOKS => FIRST_POLL_INTERVAL,
        true => LATER,
    };
    Progress::Pending { handle: Handle(json!(stand)), says, again_in }
}

/// The last recorded state of an object that is gone.
fn as_recorded(recorded: &Recorded, op: &Operation) -> Object {
    Object {
        kind: recorded.kind.clone(),
        cloud_id: recorded.cloud_id.clone(),
        spec: recorded.spec.clone(),
        outputs: recorded.outputs.clone(),
        lineage: Some(op.lineage),
        origin: textnlp_provider::Origin::Untold,
        created: None,
        health: textnlp_provider::Health::Degraded("it is gone".to_owned()),
        via: None,
        foreign: Vec::new(),
    }
}
