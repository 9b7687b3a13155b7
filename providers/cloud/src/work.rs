//! One driver for all kinds: reads the object, makes the one call that brings it closer to what is wanted, and returns.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use textnlp_provider::{
    Error, ErrorKind, Foreign, Handle, Identity, Object, Operation, Ownership, Progress, Recorded, Result, Spec, Verb,
    ZONES, Zones, capacity,
};

use crate::cloud::Cloud;
use crate::resource::{Filter, ObservedObject, State, TAGS, same_hidden};
use crate::table::{self, Row};
use crate::tags;

/// How many polls a new object may be missing from reads: those of clouds are eventually consistent.
const MISSING_POLLS: u32 = 12;
/// How many polls look for an object after a call whose outcome is unknown, before the call is repeated.
const LOST_POLLS: u32 = 6;
/// How many polls wait for the objects that keep another one from being deleted: network interfaces end minutes after their
/// load balancer.
const DEPENDENCY_POLLS: u32 = 20;
/// How many polls wait for a conflict of a cloud whose conflicts last: about half an hour with four seconds between polls.
const CONFLICT_POLLS: u32 = 60;
/// How many polls wait until a database shows the zone of its standby after a failover: about a quarter of an hour. RDS shows it minutes
/// late (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_RebootInstance.html>).
const FAILOVER_POLLS: u32 = 60;
/// How many times the same change is sent while the object still shows the old value.
const SAME_CHANGES: u32 = 20;
/// The member of a spec that keeps the cloud from deleting the object.
const PROTECTION: &str = "deletion_protection";
/// The longest time between two polls, as a multiple of the shortest.
const LONGEST: u32 = 8;

/// The state of an operation between two calls.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stand {
    /// The object's id; empty while it is unknown whether the call created one.
    id: String,
    /// Polls since the last call.
    polls: u32,
    /// The last change, and the value that the object showed before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    change: Option<(String, String)>,
    /// How many times that change was sent, that delete was refused, or that create found another object.
    #[serde(default, skip_serializing_if = "is_zero")]
    sent: u32,
    /// How many polls waited for a conflict since the last call that was accepted.
    #[serde(default, skip_serializing_if = "is_zero")]
    conflicts: u32,
    /// The id of the change that the cloud makes in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    update: Option<String>,
    /// Whether the value that answers never show was sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_sent: bool,
    /// Set from the failure of an alternative until the create call of another one, after the object that failed is deleted. Its value
    /// is one that was left then: earlier versions create it next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alternative: Option<usize>,
    /// The alternatives that are not created any more, by their index: for want of capacity or quota, or because the cloud does not
    /// offer them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tried: Vec<usize>,
    /// Those of them that may have had capacity: they failed for a quota, or in an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    quota: Vec<usize>,
    /// See [`Handle::lacked`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lacked: Option<String>,
    /// The code and the reason with which the cloud refused the last alternative for want of capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<(String, String)>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// One operation on one object.
pub struct Work<'a, C: Cloud> {
    /// The clients of the object's region.
    api: Arc<C>,
    op: &'a Operation,
    row: &'static Row<C>,
    /// The shortest time between two polls.
    poll: Duration,
}

impl<'a, C: Cloud> Work<'a, C> {
    /// `api` has the clients of the site's region, and `poll` is the shortest time between two polls.
    pub fn of(api: &Arc<C>, op: &'a Operation, poll: Duration) -> Result<Self> {
        let row = table::row::<C>(&op.kind).ok_or_else(|| {
            let error = Error::new(ErrorKind::Invalid, op.verb.to_string(), op.resource.to_string());
            error.because(format!("`{}` is no kind of {}", op.kind, C::NAME))
        })?;
        // An object is where it was created, whatever is wanted now.
        let spec = match (&op.recorded, op.verb) {
            (Some(recorded), Verb::Update | Verb::Delete) => &recorded.spec,
            _ => &op.spec,
        };
        Ok(Self { api: api.of_spec(spec), op, row, poll })
    }

    /// Begins the operation.
    pub async fn begin(&self) -> Result<Progress> {
        if self.op.resource.site() != self.op.site.as_str() {
            return Err(self.invalid("it belongs to another site"));
        }
        if self.op.recorded.as_ref().is_some_and(|recorded| matches!(recorded.ownership, Ownership::External(_))) {
            let error = Error::new(ErrorKind::Denied, self.op.verb.to_string(), self.op.resource.to_string());
            return Err(error.because("an existing object is read and never changed"));
        }
        match self.op.verb {
            Verb::Create => self.create().await,
            Verb::Update | Verb::Delete => {
                let recorded = self.op.recorded.as_ref().ok_or_else(|| self.invalid("it is not recorded"))?;
                self.step(Stand::of(recorded.cloud_id.as_str())).await
            }
        }
    }

    /// Continues it, in this process or in another one.
    pub async fn advance(&self, handle: &Handle) -> Result<Progress> {
        let stand: Stand = serde_json::from_value(handle.0.clone())
            .map_err(|source| Error::new(ErrorKind::Invalid, "resume", self.op.resource.to_string()).because(source))?;
        self.step(stand.resumed()).await
    }

    async fn step(&self, mut stand: Stand) -> Result<Progress> {
        // It stays, and nothing has to be known of it.
        if self.op.verb == Verb::Delete && self.row.resource.is_retained() {
            return self.gone();
        }
        if let Some((code, why)) = stand.refusal.take() {
            let error = self.classified("create", self.op.resource.to_string(), &code, why);
            return Ok(Progress::Failed { left: None, error: Error { kind: ErrorKind::Capacity, ..error } });
        }
        if stand.id.is_empty() {
            stand.polls += 1;
            let made = match self.made().await {
                Ok(made) => made,
                Err(error) => return self.conflict(stand, error),
            };
            return match made {
                Some(made) => self.apply(stand.renewed(&made.id), Some(made)).await,
                None if stand.conflicts == 0 && stand.polls <= LOST_POLLS => {
                    self.wait(stand, "it is unknown whether it was created")
                }
                None => self.create_new(stand).await,
            };
        }
        let seen = match self.row.resource.read(&self.api, &stand.id).await {
            Ok(seen) => seen,
            Err(error) => {
                // A failover is not repeated: it counts as called only after its call.
                let refused = error.refused || self.op.spec.zones().is_some() && stand.change.is_none();
                return self.conflict(stand, Error { refused, ..error });
            }
        };
        let seen = seen.filter(|seen| seen.state != State::Gone);
        if let Some(seen) = &seen {
            self.must_be_recorded(seen)?;
        }
        match self.op.verb {
            Verb::Delete => self.delete(stand, seen).await,
            Verb::Create | Verb::Update => self.apply(stand, seen).await,
        }
    }

    async fn create(&self) -> Result<Progress> {
        // Nothing is sent before this read.
        let made = match self.made().await {
            Ok(made) => made,
            Err(error) => return self.conflict(Stand::of(""), Error { refused: true, ..error }),
        };
        if let Some(made) = made {
            return self.apply(Stand::of(&made.id), Some(made)).await;
        }
        if self.op.is_repeated && self.is_found_by_tag() {
            return self.wait(Stand::of(""), "it is unknown whether it was created");
        }
        self.create_new(Stand::of("")).await
    }

    /// Makes the create call for the first alternative that is left, with a stand without an id.
    async fn create_new(&self, stand: Stand) -> Result<Progress> {
        let rest = self.rest(&stand.tried);
        let candidates = match self.row.resource.choose(&self.api, &self.op.spec, &rest).await {
            Ok(candidates) => candidates,
            // Those that are left are not offered any more. The next run begins with all of them.
            Err(error) if error.kind == ErrorKind::Capacity && !stand.tried.is_empty() => {
                return Ok(Progress::Failed { left: None, error });
            }
            Err(error) => return self.conflict(stand, Error { refused: true, ..error }),
        };
        let is_offered = |place: &usize| candidates.iter().any(|one| one.places.contains(place));
        let missing: Vec<usize> = rest.into_iter().filter(|place| !is_offered(place)).collect();
        let stand = Stand { tried: all(&stand.tried, &missing), ..stand };
        let chosen = candidates.into_iter().next().unwrap_or_default();
        match self.row.resource.begin(&self.api, self.op, &chosen).await {
            Ok((id, update)) => self.pending(Stand { update, ..stand.renewed(&id) }, "being created", Duration::ZERO),
            // The reply of this call or of one before it was lost, and lists show a new object late. What still is not listed after a
            // wait is another one.
            Err(error)
                if self.is_found_by_tag()
                    && (error.kind == ErrorKind::Unavailable || error.kind == ErrorKind::Exists && stand.sent == 0) =>
            {
                let sent = stand.sent + u32::from(error.kind == ErrorKind::Exists);
                let stand = Stand { alternative: stand.alternative, sent, ..stand.renewed("") };
                self.wait(stand, &textnlp_provider::error_chain(&error))
            }
            Err(error) if error.refused && lacks(&error.kind) => self.try_next(stand, &chosen.places, error),
            Err(error) => self.conflict(stand, error),
        }
    }

    /// Creates the next alternative at the next poll: the refused call did nothing. Of the last one the lack of capacity is recorded
    /// before the operation ends.
    fn try_next(&self, stand: Stand, chosen: &[usize], error: Error) -> Result<Progress> {
        let why = textnlp_provider::error_chain(&error);
        let stand = stand.without(chosen, &error.kind);
        let lacked = self.lacked(&stand, chosen, &error.kind);
        match self.rest(&stand.tried).first() {
            Some(next) => {
                let stand = Stand { alternative: Some(*next), lacked, conflicts: 1, ..stand.renewed("") };
                self.pending(stand, &format!("trying another alternative: {why}"), self.poll)
            }
            None if lacked.is_some() => {
                let cause = match error.source.as_deref() {
                    Some(source) => textnlp_provider::error_chain(source),
                    None => why.clone(),
                };
                let refusal = Some((error.code.unwrap_or_default(), cause));
                self.pending(Stand { lacked, refusal, ..stand.renewed("") }, &none_is_left(&why), Duration::ZERO)
            }
            None => self.conflict(stand, error),
        }
    }

    /// The alternatives that were not tried, in the order in which they are.
    fn rest(&self, tried: &[usize]) -> Vec<usize> {
        let all = self.row.resource.alternatives(&self.op.spec);
        let order = capacity::order(&all, &self.op.lacking);
        order.into_iter().filter(|place| !tried.contains(place)).collect()
    }

    /// The stand of an object without capacity, if it is of a handle of an earlier version, which does not have what was tried before.
    fn before(&self, stand: Stand, these: &[usize]) -> Stand {
        if !stand.tried.is_empty() {
            return stand;
        }
        let earlier = self.rest(&[]).into_iter().take_while(|place| !these.contains(place));
        stand.without(&earlier.collect::<Vec<_>>(), &ErrorKind::Quota)
    }

    /// What is remembered of alternatives that lack capacity, with a stand that has them as tried: their name, or their market once none
    /// in it is left, although some may not be offered. Nothing where there is no other order.
    fn lacked(&self, stand: &Stand, these: &[usize], kind: &ErrorKind) -> Option<String> {
        let all = self.row.resource.alternatives(&self.op.spec);
        let name = all.get(*these.first()?)?;
        if *kind != ErrorKind::Capacity || these.len() == all.len() {
            return None;
        }
        let market = capacity::market(name);
        let is_in = |place: &usize| all.get(*place).is_some_and(|one| capacity::market(one) == market);
        let is_only = (0..all.len()).all(|place| is_in(&place));
        let is_left = self.rest(&stand.tried).iter().chain(&stand.quota).any(is_in);
        Some(if is_only || is_left { name.clone() } else { market })
    }

    /// Waits for a conflict that lasts; any other error is the caller's.
    fn conflict(&self, mut stand: Stand, error: Error) -> Result<Progress> {
        if !C::CONFLICTS_LAST || error.kind != ErrorKind::Conflict || stand.conflicts >= CONFLICT_POLLS {
            return Err(error);
        }
        stand.conflicts += 1;
        stand.polls += 1;
        self.wait(stand, &textnlp_provider::error_chain(&error))
    }

    /// How many polls wait for what keeps an object from being deleted.
    const fn dependency_polls() -> u32 {
        if C::CONFLICTS_LAST { CONFLICT_POLLS } else { DEPENDENCY_POLLS }
    }

    /// Whether the API neither knows a client token nor a name, so that only tags tell what a call created.
    fn is_found_by_tag(&self) -> bool {
        !self.row.resource.has_client_token() && self.row.resource.id(&self.op.spec).is_none()
    }

    /// The object that an earlier call of this operation created.
    async fn made(&self) -> Result<Option<ObservedObject<Spec>>> {
        let resource = self.row.resource;
        if let Some(name) = resource.id(&self.op.spec) {
            let Some(seen) = resource.read(&self.api, &name).await?.filter(|seen| seen.state != State::Gone) else {
                return Ok(None);
            };
            if seen.state == State::Deleting {
                let error = Error::new(ErrorKind::Conflict, "create", self.op.resource.to_string());
                return Err(error.because(format!("`{name}` is still being deleted")));
            }
            // A part of another deployment's parent is another deployment's.
            let is_adopted =
                !resource.carries_tags() && tags::lineage(&seen.tags).is_none_or(|one| one == self.op.lineage);
            let is_made_by_cloud = seen.tags.is_empty() && resource.is_made_by_cloud(&seen.id);
            if !is_adopted && !is_made_by_cloud && tags::origin(&seen.tags).operation() != Some(&self.op.token) {
                let whose = match (tags::lineage(&seen.tags), tags::resource(&seen.tags)) {
                    (Some(lineage), Some(resource)) if lineage == self.op.lineage && resource == self.op.resource => {
                        "another operation than this one, by its tag `textnlp-operation`".to_owned()
                    }
                    (Some(lineage), Some(resource)) => format!("{resource} of the deployment {lineage}"),
                    (Some(lineage), None) => format!("the deployment {lineage}"),
                    _ => "no deployment: it has no tag `textnlp-lineage`".to_owned(),
                };
                let error = Error::new(ErrorKind::Exists, "create", self.op.resource.to_string());
                return Err(error
                    .because(format!("`{name}` exists and belongs to {whose}"))
                    .hint("`textnlp-deploy state import` adopts an object; or give the environment another name"));
            }
            return Ok(Some(seen));
        }
        if resource.has_client_token() {
            return Ok(None);
        }
        let filter = Filter::Operation(self.op.lineage, self.op.token.as_str().to_owned());
        let made = resource.list(&self.api, &filter).await?;
        let mut made = made.into_iter().filter(|seen| !matches!(seen.state, State::Gone | State::Deleting));
        match (made.next(), made.next()) {
            // A lost call may have made one of them, or another identity copied the tag: only its operator can tell.
            (Some(one), Some(other)) => {
                let error = Error::new(ErrorKind::Exists, "create", self.op.resource.to_string());
                let why = format!("`{}` and `{}` both have the tag of this operation", one.id, other.id);
                Err(error.because(why).hint("delete one of them, or remove its tag `textnlp-operation`"))
            }
            (one, _) => Ok(one),
        }
    }

    async fn apply(&self, mut stand: Stand, seen: Option<ObservedObject<Spec>>) -> Result<Progress> {
        stand.polls += 1;
        if let Some(next) = stand.alternative {
            let is_old = |seen: &ObservedObject<Spec>| {
                let these = self.row.resource.tried(&self.op.spec, &seen.spec);
                !these.is_empty() && these.iter().all(|place| stand.tried.contains(place))
            };
            match &seen {
                None => return self.create_new(Stand { alternative: Some(next), ..stand.renewed("") }).await,
                Some(old) if old.state == State::Deleting => {
                    return self.wait(stand, "the one without capacity is being deleted");
                }
                Some(old) if matches!(old.state, State::Failed { .. }) && is_old(old) => {
                    return self.delete_failed(stand, old, next).await;
                }
                Some(_) => stand.alternative = None,
            }
        }
        let mut seen = seen;
        // The create itself, in the background: it can fail before the object shows, and after it shows.
        if let (Verb::Create, None, Some(update)) = (self.op.verb, &stand.change, &stand.update) {
            match self.row.resource.change(&self.api, &stand.id, update).await? {
                State::Pending(says) => return self.wait(stand, &format!("its creation is {says}")),
                State::Failed { code, why } => match &mut seen {
                    // An earlier step has removed what failed.
                    Some(seen) if seen.state == State::Deleting => {}
                    Some(seen) => seen.state = State::Failed { code, why },
                    None => {
                        let error = self.classified("create", self.op.resource.to_string(), &code, why);
                        return Ok(Progress::Failed { left: None, error });
                    }
                },
                // Reads may show the object late from now on only.
                _ => (stand.update, stand.polls) = (None, 0),
            }
        }
        let Some(seen) = seen else {
            if self.op.verb == Verb::Create && stand.polls <= MISSING_POLLS {
                return self.wait(stand, "not shown yet");
            }
            let error = Error::new(ErrorKind::NotFound, "wait for", self.op.resource.to_string());
            let error = error.because(format!("`{}` was removed in the meantime", stand.id));
            return Ok(Progress::Failed { left: None, error });
        };
        match &seen.state {
            State::Failed { code, why } => {
                let (kind, hint) = C::classify(self.row.service, code, why);
                let these = self.row.resource.tried(&self.op.spec, &seen.spec);
                if self.op.verb == Verb::Create && lacks(&kind) && !these.is_empty() {
                    let is_new = these.iter().any(|place| !stand.tried.contains(place));
                    let stand = self.before(stand, &these).without(&these, &kind);
                    let lacked = self.lacked(&stand, &these, &kind).filter(|_| is_new);
                    match self.rest(&stand.tried).first() {
                        Some(next) => return self.delete_failed(Stand { lacked, ..stand }, &seen, *next).await,
                        None if lacked.is_some() => {
                            let says = none_is_left(why);
                            return self.pending(Stand { lacked, ..stand }, &says, Duration::ZERO);
                        }
                        None => {}
                    }
                }
                let mut error = Error::new(kind, self.op.verb.to_string(), self.op.resource.to_string());
                error.code = (!code.is_empty()).then(|| code.clone());
                error.hint = hint;
                let error = error.because(why.clone()).signed_in_as(self.api.signed_in());
                return Ok(Progress::Failed { left: seen.object(self.row), error });
            }
            State::Deleting => {
                let error = Error::new(ErrorKind::Conflict, self.op.verb.to_string(), self.op.resource.to_string());
                return Err(error.because(format!("`{}` is being deleted", seen.id)));
            }
            State::Pending(says) => return self.wait(stand, &format!("`{}` is {says}", seen.id)),
            State::Ready | State::Degraded(_) | State::Gone => {}
        }
        if let Some(update) = stand.update.take() {
            match self.row.resource.change(&self.api, &stand.id, &update).await? {
                State::Pending(says) => {
                    let says = format!("a change of `{}` is {says}", seen.id);
                    return self.wait(Stand { update: Some(update), ..stand }, &says);
                }
                State::Failed { code, why } => {
                    let error = self.classified("change", self.op.resource.to_string(), &code, why);
                    return self.failed(&seen, error);
                }
                _ => {}
            }
        }
        // A failover changes nothing else, also where the object is not as it was when it was asked for.
        if let Some(to) = self.op.spec.zones() {
            return self.fail_over(stand, &seen, &to).await;
        }
        if let Some(field) = self.hidden(&stand).or_else(|| seen.next(self.row.resource, self.op)) {
            return self.put(stand, &seen, field).await;
        }
        match &seen.state {
            State::Degraded(why) if self.op.verb == Verb::Create => self.wait(stand, why),
            _ if self.op.verb == Verb::Create && self.is_found_by_tag() => self.listed(stand, &seen).await,
            _ => self.done(&seen),
        }
    }

    /// Ends a create once lists show its object. A second one with the same tag stays: an earlier call, whose reply was lost, may
    /// have created it, or another identity copied the tag. The next plan names it.
    async fn listed(&self, stand: Stand, seen: &ObservedObject<Spec>) -> Result<Progress> {
        let filter = Filter::Operation(self.op.lineage, self.op.token.as_str().to_owned());
        let all = self.row.resource.list(&self.api, &filter).await?;
        if all.iter().any(|one| one.id == seen.id) || stand.polls > MISSING_POLLS {
            return self.done(seen);
        }
        self.wait(stand, &format!("`{}` is not listed yet", seen.id))
    }

    /// The field of an update that answers never show, until its value was sent.
    fn hidden(&self, stand: &Stand) -> Option<&'static str> {
        let (resource, op) = (self.row.resource, self.op);
        let before = |field: &str| op.recorded.as_ref().and_then(|recorded| recorded.spec.get(field));
        let is_changed = |field: &str| !same_hidden(op.spec.get(field), before(field));
        let is_wanted = op.verb == Verb::Update && !stand.is_sent;
        resource.in_place().iter().copied().find(|field| is_wanted && resource.is_hidden(field) && is_changed(field))
    }

    /// Fails over to the standby. The call is made once: a second one would lead back, and the zones are shown late.
    async fn fail_over(&self, mut stand: Stand, seen: &ObservedObject<Spec>, to: &Zones) -> Result<Progress> {
        let is_called = stand.change.as_ref().is_some_and(|(field, _)| field == ZONES);
        let is_there = seen.zones.as_ref().is_some_and(|zones| zones.primary == to.primary);
        // Zones that are the same do not tell which of the two servers is the primary.
        if is_there && (is_called || to.primary != to.standby) {
            return self.done(seen);
        }
        if is_called || self.op.is_repeated {
            if stand.polls <= FAILOVER_POLLS {
                let says = format!("it is not shown yet that the primary of `{}` is in {}", seen.id, to.primary);
                return self.wait(stand, &says);
            }
            let why = match is_called {
                true => format!("`{}` does not show its primary and its standby in the other zones", seen.id),
                false => format!("an interrupted run may have failed `{}` over, which is not repeated", seen.id),
            };
            return Err(Error::new(ErrorKind::Invalid, "fail over", self.op.resource.to_string()).because(why));
        }
        // Before the call: another failover may have been made since it was asked for.
        if seen.zones.as_ref() != Some(&to.failed_over()) {
            let error = Error::new(ErrorKind::Invalid, "fail over", self.op.resource.to_string());
            let error = error.because(format!("the standby of `{}` cannot take over any more", seen.id));
            return Err(Error { refused: true, ..error });
        }
        let before = stand.clone();
        stand.update = match self.row.resource.fail_over(&self.api, seen, self.op).await {
            Ok(update) => update,
            Err(error) if error.kind == ErrorKind::Conflict => return self.conflict(before, error),
            Err(error) => return Err(error),
        };
        stand.change = Some((ZONES.to_owned(), to.primary.clone()));
        (stand.polls, stand.conflicts) = (0, 0);
        self.pending(stand, "failing over to its standby", Duration::ZERO)
    }

    /// Sends one change. One that the cloud accepted and does not show yet is sent again after a while.
    async fn put(&self, mut stand: Stand, seen: &ObservedObject<Spec>, field: &str) -> Result<Progress> {
        let before = stand.clone();
        let shown = if field == TAGS {
            format!("{:?}", seen.tags)
        } else {
            seen.spec.get(field).map(ToString::to_string).unwrap_or_default()
        };
        let change =
            Some((field.to_owned(), textnlp_provider::Spec::of(&serde_json::json!({ "shown": shown })).digest()));
        stand.sent = if stand.change == change { stand.sent + 1 } else { 0 };
        if stand.sent > SAME_CHANGES {
            let error = Error::new(ErrorKind::Invalid, "change", format!("{} {field}", self.op.resource));
            let error = error.because(format!(
                "{} accepts the change of `{field}`, and `{}` keeps its old value",
                C::NAME,
                seen.id
            ));
            return self.failed(seen, error);
        }
        // The read that showed the old value may have been stale: every other time the next read decides.
        if stand.sent % 2 == 1 {
            stand.change = change;
            return self.pending(stand, &format!("the change of `{field}` is not shown yet"), self.poll);
        }
        stand.update = match self.row.resource.start(&self.api, seen, self.op, field).await {
            Ok(update) => update,
            Err(error) if error.kind == ErrorKind::Conflict => return self.conflict(before, error),
            Err(error) if error.kind.may_pass() || error.kind == ErrorKind::NotFound => return Err(error),
            Err(error) => return self.failed(seen, error),
        };
        stand.change = change;
        stand.is_sent |= self.row.resource.is_hidden(field);
        (stand.polls, stand.conflicts) = (0, 0);
        self.pending(stand, &format!("changing `{field}`"), Duration::ZERO)
    }

    /// Removes what the cloud had no capacity for, so that the next alternative can be created.
    async fn delete_failed(&self, stand: Stand, seen: &ObservedObject<Spec>, next: usize) -> Result<Progress> {
        let stand = Stand { alternative: Some(next), ..stand };
        if let Err(error) = self.row.resource.delete(&self.api, seen, self.op).await {
            return self.conflict(stand, error);
        }
        let why = if let State::Failed { why, .. } = &seen.state { why.as_str() } else { "no capacity" };
        self.pending(Stand { update: None, ..stand }, &format!("trying another alternative: {why}"), self.poll)
    }

    /// A failed create leaves an object that the next plan replaces; a failed update leaves the object as it was.
    fn failed(&self, seen: &ObservedObject<Spec>, error: Error) -> Result<Progress> {
        match self.op.verb {
            Verb::Create => Ok(Progress::Failed { left: seen.object(self.row), error }),
            Verb::Update | Verb::Delete => Err(error),
        }
    }

    async fn delete(&self, mut stand: Stand, seen: Option<ObservedObject<Spec>>) -> Result<Progress> {
        stand.polls += 1;
        let Some(mut seen) = seen else { return self.gone() };
        if seen.state == State::Deleting {
            return self.wait(stand, &format!("`{}` is being deleted", seen.id));
        }
        if let (State::Pending(says), false) = (&seen.state, self.row.resource.deletes_pending()) {
            return self.wait(stand, &format!("`{}` is {says}", seen.id));
        }
        if let Some(update) = stand.update.take() {
            match self.row.resource.change(&self.api, &stand.id, &update).await? {
                State::Pending(says) => {
                    let says = format!("the deletion of `{}` is {says}", seen.id);
                    return self.wait(Stand { update: Some(update), ..stand }, &says);
                }
                State::Failed { code, why } => {
                    let error = self.classified("delete", self.op.resource.to_string(), &code, why);
                    if !error.kind.may_pass() || stand.sent >= Self::dependency_polls() {
                        return Err(error);
                    }
                    stand.sent += 1;
                    return self.wait(stand, &textnlp_provider::error_chain(&error));
                }
                _ => {}
            }
        }
        if self.op.bounds.is_unrecorded && seen.spec.get(PROTECTION).is_some_and(|is_on| *is_on == true) {
            let error = Error::new(ErrorKind::Denied, "delete", self.op.resource.to_string());
            let why = format!("`{}` is protected against deletion, and it is not in the state", seen.id);
            return Err(error.because(why).hint("switch the protection off yourself if the object can go"));
        }
        seen.foreign.retain(|foreign| !foreign.outlives);
        if let Some(foreign) = seen.foreign.iter().find(|foreign| foreign.is_in_the_way()) {
            let error = Error::new(ErrorKind::Conflict, "delete", self.op.resource.to_string());
            let why = format!(
                "{} `{}` is inside `{}`, and this deployment did not create it",
                foreign.what, foreign.cloud_id, seen.id
            );
            return Err(error.because(why).hint("remove it, or move it elsewhere; then run the same command again"));
        }
        let is_unnamed =
            |foreign: &&Foreign| C::is_named(foreign) && !self.op.bounds.sweeps.contains(&foreign.cloud_id);
        if let Some(foreign) = seen.foreign.iter().find(is_unnamed) {
            let error = Error::new(ErrorKind::Denied, "delete", self.op.resource.to_string());
            let why = format!(
                "the {} `{}` was created after the plan, which does not name it",
                foreign.what, foreign.cloud_id
            );
            return Err(error.because(why).hint("run the same command again: the new plan names it"));
        }
        match self.row.resource.delete(&self.api, &seen, self.op).await {
            Ok(update) => self.pending(Stand { update, ..stand }, &format!("deleting `{}`", seen.id), Duration::ZERO),
            // Deleted by another process since it was read; the next read decides.
            Err(error) if error.kind == ErrorKind::NotFound => self.wait(stand, "not shown as deleted yet"),
            Err(error) if error.kind == ErrorKind::Conflict && stand.sent < Self::dependency_polls() => {
                stand.sent += 1;
                self.wait(stand, &textnlp_provider::error_chain(&error))
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses to change or delete another object than the recorded one: others may create one of the same name.
    fn must_be_recorded(&self, seen: &ObservedObject<Spec>) -> Result<()> {
        let Some(recorded) = &self.op.recorded else { return Ok(()) };
        let (why, hint) = match tags::lineage(&seen.tags) {
            _ if self.op.verb == Verb::Create || seen.state == State::Deleting => return Ok(()),
            None if !self.row.resource.carries_tags() => return Ok(()),
            Some(lineage) if lineage != self.op.lineage => ("belongs to another deployment now", None),
            None if self.row.kind.identity != Identity::Token => (
                "has no tag `textnlp-lineage` any more",
                Some("restore its tags `textnlp-lineage` and `textnlp-resource` if it is the recorded one".to_owned()),
            ),
            _ if recorded.created.zip(seen.created).is_some_and(|(recorded, seen)| recorded != seen) => {
                ("was created after the recorded one was gone", None)
            }
            _ => return Ok(()),
        };
        let error = Error::new(ErrorKind::Denied, self.op.verb.to_string(), self.op.resource.to_string());
        Err(Error { hint, ..error.because(format!("`{}` {why}", seen.id)) })
    }

    fn done(&self, seen: &ObservedObject<Spec>) -> Result<Progress> {
        let object =
            seen.object(self.row).ok_or_else(|| self.invalid(&format!("{} shows an id that is none", C::NAME)))?;
        Ok(Progress::Done(object))
    }

    /// The object as it was recorded, for a delete that finds nothing.
    fn gone(&self) -> Result<Progress> {
        let Some(Recorded { kind, cloud_id, spec, outputs, .. }) = self.op.recorded.clone() else {
            return Err(self.invalid("it is not recorded"));
        };
        Ok(Progress::Done(Object {
            kind,
            cloud_id,
            spec,
            outputs,
            lineage: Some(self.op.lineage),
            origin: textnlp_provider::Origin::Untold,
            created: None,
            health: textnlp_provider::Health::Ready,
            via: None,
            foreign: Vec::new(),
        }))
    }

    /// Polls again, the later the longer it takes. The first poll is at once.
    fn wait(&self, stand: Stand, says: &str) -> Result<Progress> {
        let again_in = self.poll * (1 << (stand.polls / 4).min(LONGEST.ilog2()));
        self.pending(stand, says, again_in)
    }

    fn pending(&self, stand: Stand, says: &str, again_in: Duration) -> Result<Progress> {
        let handle = serde_json::to_value(&stand).map_err(|source| {
            Error::new(ErrorKind::Invalid, "continue", self.op.resource.to_string()).because(source)
        })?;
        Ok(Progress::Pending { handle: Handle(handle), says: says.to_owned(), again_in })
    }

    /// The error of a code that the cloud states for what it did in the background.
    fn classified(&self, action: &str, subject: String, code: &str, why: String) -> Error {
        let (kind, hint) = C::classify(self.row.service, code, &why);
        let mut error = Error::new(kind, action, subject);
        error.code = (!code.is_empty()).then(|| code.to_owned());
        error.hint = hint;
        error.because(why).signed_in_as(self.api.signed_in())
    }

    fn invalid(&self, why: &str) -> Error {
        Error::new(ErrorKind::Invalid, self.op.verb.to_string(), self.op.resource.to_string()).because(why.to_owned())
    }
}

impl Stand {
    fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            polls: 0,
            change: None,
            sent: 0,
            conflicts: 0,
            update: None,
            is_sent: false,
            alternative: None,
            tried: Vec::new(),
            quota: Vec::new(),
            lacked: None,
            refusal: None,
        }
    }

    /// That of another object, with the same alternatives left.
    fn renewed(&self, id: &str) -> Self {
        Self { tried: self.tried.clone(), quota: self.quota.clone(), ..Self::of(id) }
    }

    /// The one of a handle. Earlier versions tried one alternative after the other, and kept only the next one.
    fn resumed(self) -> Self {
        let stand = Self { lacked: None, ..self };
        match stand.alternative {
            Some(next) if stand.tried.is_empty() => stand.without(&(0..next).collect::<Vec<_>>(), &ErrorKind::Quota),
            _ => stand,
        }
    }

    /// Without these alternatives, which failed like this.
    fn without(self, these: &[usize], kind: &ErrorKind) -> Self {
        let quota = if *kind == ErrorKind::Capacity { self.quota } else { all(&self.quota, these) };
        Self { tried: all(&self.tried, these), quota, ..self }
    }
}

/// Whether another alternative may have what this one lacks.
fn lacks(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Capacity | ErrorKind::Quota)
}

fn none_is_left(why: &str) -> String {
    format!("no other alternative is left: {why}")
}

/// Both together, each once.
fn all(tried: &[usize], these: &[usize]) -> Vec<usize> {
    let new = these.iter().filter(|place| !tried.contains(place));
    tried.iter().chain(new).copied().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Stand;

    /// Journals of earlier versions have them.
    #[test]
    fn handles_keep_their_form() {
        let change = json!(["tags", "sha256:0"]);
        let whole = json!({ "id": "vpc-1", "polls": 3, "change": change, "sent": 2, "update": "update-1", "is_sent": true, "alternative": 1 });
        let refused = json!({ "id": "", "polls": 1, "conflicts": 1, "alternative": 2 });
        let tried = json!({ "id": "", "polls": 0, "conflicts": 1, "alternative": 0, "tried": [1], "lacked": "spot b" });
        let last = json!({ "id": "", "polls": 0, "tried": [1, 0], "quota": [1], "lacked": "spot a",
            "refusal": ["SkuNotAvailable", "no machines"] });
        for handle in [json!({ "id": "", "polls": 0 }), whole, refused, tried, last] {
            let stand: Stand = serde_json::from_value(handle.clone()).unwrap();
            assert_eq!(serde_json::to_value(&stand).unwrap(), handle);
        }
    }

    #[test]
    fn the_next_alternative_of_earlier_versions_follows_those_that_were_tried() {
        let resumed = |handle| serde_json::from_value::<Stand>(handle).unwrap().resumed();
        let earlier = resumed(json!({ "id": "", "polls": 1, "conflicts": 1, "alternative": 2 }));
        assert_eq!((earlier.alternative, earlier.tried, earlier.quota), (Some(2), vec![0, 1], vec![0, 1]));
        let later = resumed(json!({ "id": "", "polls": 0, "alternative": 0, "tried": [2, 1], "lacked": "spot" }));
        assert_eq!((later.tried, later.quota, later.lacked), (vec![2, 1], vec![], None), "it is reported once");
        assert_eq!(resumed(json!({ "id": "a", "polls": 0 })).tried, Vec::<usize>::new());
    }
}
