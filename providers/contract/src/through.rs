//! [`Through`]: combines a provider of hosts with a provider of the objects inside of them.
//!
//! Each of the two has its own kinds. Objects in a host are observed through the host as observed. They are changed
//! through the host as recorded, or as observed since. A missing host contains nothing; the content of an unreachable
//! host is unknown. Connections to hosts live as long as the process and are not recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use crate::bill::{Billed, BilledRequest};
use crate::cluster::Capacity;
use crate::combined::SecondPart;
use crate::component::{Component, Site};
use crate::connect::{Connect, HostEndpoint, NAME_NOT_FOUND};
use crate::cost::{Charge, CostLine};
use crate::declare::{Declaration, Declare, PlannedObject};
use crate::error::{Error, ErrorKind, Result, error_chain};
use crate::kind::{DatabasePart, Kind, joined};
use crate::name::{CloudId, ComponentName, KindName, Lineage, ResourceId};
use crate::operation::{Handle, Operation, Progress};
use crate::permission::{PolicyDocument, PolicyRequest};
use crate::provider::{Leftovers, Problem, Problems, Provider, Scope, Sweep};
use crate::resource::{FieldChange, Object, Observed, Outputs, Ownership, ReadFailure, Recorded, Ref, Wanted};
use crate::spec::Spec;

/// Timeout of one step of connecting to a host: a whole call of the engine has 10 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long after the creation of a host was asked for its refusals may mean that access has not taken effect yet, and a name that is
/// not found that it will be. A cluster of a cloud takes some ten minutes, and the access to it another one
/// (<https://github.com/gravitational/teleport/issues/37958>,
/// <https://github.com/terraform-aws-modules/terraform-aws-eks/issues/1064>).
const NEW_ACCESS: SignedDuration = SignedDuration::from_mins(30);
/// The time between two attempts of an operation that a new host refuses.
const AGAIN_IN: Duration = Duration::from_secs(5);
/// The member of the handle of an operation that a new host refused to begin.
const AGAIN: &str = "begins_again";
/// Codes of an API server that does not accept an identity, or not for this call.
const NO_ACCESS: [&str; 4] = ["401", "403", "Unauthorized", "Forbidden"];

/// Creates the inner provider for one endpoint.
pub type Reach = Box<dyn Fn(HostEndpoint) -> Arc<dyn Provider> + Send + Sync>;

/// Two providers as one: the outer creates hosts, the inner works through them.
pub struct Through {
    outer: Arc<dyn Provider>,
    /// Used for its pure functions only.
    inner: Arc<dyn Provider>,
    reach: Reach,
    /// The connection of each host kind.
    connects: BTreeMap<KindName, Arc<dyn Connect>>,
    /// The component whose cluster contains the inner's objects of a site, unless they name another host.
    host: ComponentName,
    /// The component and the site as the inner expands them.
    inner_part: SecondPart,
    /// What a pod of the servers requests.
    pod: Option<Capacity>,
    kinds: &'static [Kind],
    ways: Mutex<Connections>,
}

/// A host by its id and its cloud id: a replaced host has another key.
type HostKey = (ResourceId, CloudId);

/// The connections to hosts.
#[derive(Default)]
struct Connections {
    known: BTreeMap<HostKey, HostConnection>,
    /// Hosts that a call could not reach: the next call observes their outputs first.
    doubted: BTreeSet<HostKey>,
    /// A host of the last observation whose content could not be observed.
    unseen: Option<ResourceId>,
}

/// A connection to one host.
struct HostConnection {
    /// The outputs that it was created from.
    outputs: Outputs,
    /// The recorded outputs at that time.
    recorded: Option<Outputs>,
    inner: Arc<dyn Provider>,
}

impl Through {
    /// `inner` is used for pure functions; `reach` creates the inner provider of one host. The inner's objects are in
    /// the cluster of the component `host` of their site, unless `lower` names another one.
    pub fn new(outer: Arc<dyn Provider>, inner: Arc<dyn Provider>, reach: Reach, host: ComponentName) -> Self {
        let kinds = joined(outer.kinds(), inner.kinds());
        let inner_part: SecondPart = |component, site| Some((component.clone(), site.clone()));
        let connects = BTreeMap::new();
        Self { outer, inner, reach, connects, host, inner_part, pod: None, kinds, ways: Mutex::default() }
    }

    /// The same, whose outer chooses nodes by what a pod of the servers requests.
    #[must_use]
    pub fn sizing(self, pod: Option<Capacity>) -> Self {
        Self { pod, ..self }
    }

    /// Limits what the inner expands: without the settings that the outer alone answers for.
    #[must_use]
    pub fn expanding(self, inner_part: SecondPart) -> Self {
        Self { inner_part, ..self }
    }

    /// Adds the connection of a host kind.
    #[must_use]
    pub fn connecting(mut self, kind: KindName, connect: Arc<dyn Connect>) -> Self {
        self.connects.insert(kind, connect);
        self
    }

    fn is_inner(&self, kind: &KindName) -> bool {
        self.inner.kinds().iter().any(|one| one.name == kind.as_str())
    }

    fn ways(&self) -> MutexGuard<'_, Connections> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inner provider for a host with these outputs: the existing one, if it was created from the same outputs.
    async fn way(
        &self,
        host: &HostKey,
        kind: &KindName,
        outputs: &Outputs,
        recorded: Option<&Outputs>,
    ) -> Result<Arc<dyn Provider>> {
        if let Some(way) = self.ways().known.get_mut(host).filter(|way| way.outputs == *outputs) {
            way.recorded = recorded.cloned();
            return Ok(way.inner.clone());
        }
        let Some(connect) = self.connects.get(kind) else {
            let error = Error::new(ErrorKind::Invalid, "connect to", host.0.as_str());
            return Err(error.because(format!("nothing is reached through a `{kind}`")));
        };
        let inner = (self.reach)(within("connect to", &host.0, connect.connect(outputs)).await?);
        let way = HostConnection { outputs: outputs.clone(), recorded: recorded.cloned(), inner: inner.clone() };
        self.ways().known.insert(host.clone(), way);
        Ok(inner)
    }

    /// The host of an operation, and the inner provider for it.
    async fn inner_of(&self, op: &Operation) -> Result<(HostKey, Arc<dyn Provider>)> {
        let error = |sort| Error::new(sort, op.verb.to_string(), op.resource.as_str());
        let Some(via) = &op.via else {
            return Err(error(ErrorKind::Invalid).because("it has no host"));
        };
        let Some(host) = op.host.as_deref().filter(|host| host.id == via.0) else {
            return Err(error(ErrorKind::Unavailable).because(format!("its host `{}` is not recorded", via.0)));
        };
        let key = (host.id.clone(), host.cloud_id.clone());
        // Outputs that were recorded since are newer than observed ones.
        let newest = |way: &HostConnection| way.recorded.as_ref() == Some(&host.outputs);
        let seen = self.ways().known.get(&key).filter(|way| newest(way)).map(|way| way.outputs.clone());
        let mut outputs = seen.unwrap_or_else(|| host.outputs.clone());
        if self.ways().doubted.remove(&key) {
            let read = within("check", &host.id, self.outer.read(&host.kind, &host.cloud_id)).await;
            match read {
                Ok(Observed::Present(seen)) => outputs = seen.outputs,
                // Not found right after a create does not mean gone, and the provider of the host may be down while the
                // host works.
                Ok(_) => {}
                Err(_) => {
                    self.ways().doubted.insert(key.clone());
                }
            }
        }
        let way = self.way(&key, &host.kind, &outputs, Some(&host.outputs)).await;
        let way = self.judged(&key, way).map_err(|error| unreachable(&host.id, error))?;
        Ok((key, way))
    }

    /// Passes an answer of a host on; on a connection error the host is marked as doubted.
    fn judged<T>(&self, host: &HostKey, answer: Result<T>) -> Result<T> {
        if answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Unavailable) {
            self.ways().doubted.insert(host.clone());
        }
        answer
    }

    /// The objects in one host. `asked` are its own.
    async fn inside(
        &self,
        host: &ResourceId,
        seen: Result<Found, String>,
        scope: &Scope<'_>,
    ) -> Vec<(ResourceId, Observed)> {
        let all = |answer: &Observed| {
            let wanted = scope.wanted.iter().map(|wanted| &wanted.id);
            let ids: BTreeSet<&ResourceId> = wanted.chain(scope.recorded.iter().map(|one| &one.id)).collect();
            ids.into_iter().map(|id| (id.clone(), answer.clone())).collect()
        };
        let unknown = |why: String| Observed::Unknown(ReadFailure(why));
        let (object, recorded) = match seen {
            Ok(Found::Here { object, recorded }) => (object, recorded),
            Ok(Found::Nowhere) => return all(&Observed::Absent),
            Err(why) => return all(&unknown(format!("its host `{host}` could not be observed: {why}"))),
        };
        let key = (host.clone(), object.cloud_id);
        let way = self.way(&key, &object.kind, &object.outputs, recorded.as_ref()).await;
        let answer = match way {
            Ok(inner) => inner.observe(scope).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(mut answers) => {
                for (_, answer) in &mut answers {
                    if let Observed::Present(object) = answer {
                        object.via = Some(Ref(host.clone()));
                    }
                }
                answers
            }
            Err(error) => all(&unknown(error_chain(&unreachable(host, error)))),
        }
    }
}

/// The observation of a host.
#[expect(clippy::large_enum_variant, reason = "one at a time, and taken apart at once")]
enum Found {
    /// It exists; `recorded` are its recorded outputs.
    Here { object: Object, recorded: Option<Outputs> },
    /// It certainly does not exist.
    Nowhere,
}

/// The host's object among all objects that were observed under its id: the recorded one, else the one that the planner would take for
/// it; never one that was replaced. `records` begin with the one in use.
fn found(id: &ResourceId, seen: &[(ResourceId, Observed)], records: &[&Recorded]) -> Result<Found, String> {
    let mut objects = Vec::new();
    let mut is_answered = false;
    for (_, answer) in seen.iter().filter(|(one, _)| one == id) {
        is_answered = true;
        match answer {
            Observed::Present(object) => objects.push(object),
            Observed::Absent => {}
            Observed::Unknown(why) => return Err(why.0.clone()),
        }
    }
    if !is_answered {
        return Err("it was not observed".to_owned());
    }
    let (current, old) = records.split_first().map_or((None, &[][..]), |(first, old)| (Some(*first), old));
    objects.retain(|object| !old.iter().any(|old| old.cloud_id == object.cloud_id));
    objects.sort_by(|a, b| a.cloud_id.cmp(&b.cloud_id));
    let is_current = |object: &&&Object| current.is_some_and(|current| current.cloud_id == object.cloud_id);
    let object = objects.iter().find(is_current).or(objects.first()).map(|object| (*object).clone());
    Ok(object.map_or(Found::Nowhere, |object| {
        let recorded = current.filter(|current| current.cloud_id == object.cloud_id);
        Found::Here { recorded: recorded.map(|recorded| recorded.outputs.clone()), object }
    }))
}

fn unreachable(host: &ResourceId, error: Error) -> Error {
    let (sort, hint) = (error.kind.clone(), error.hint.clone());
    Error { hint, ..Error::new(sort, "reach", host.as_str()).because(error) }
}

/// The answer of an operation in a host. A refusal of a new host passes once the grant is effective everywhere, and its name is found
/// once resolvers know it: both are waited for.
fn awaited(
    host: Option<&Recorded>,
    answer: Result<Progress>,
    handle: Option<&Handle>,
    now: Timestamp,
) -> Result<Progress> {
    match answer {
        Err(error) if is_not_yet(host, &error, now) => {
            let handle = handle.cloned().unwrap_or_else(|| Handle(serde_json::json!({ AGAIN: true })));
            Ok(Progress::Pending { handle, says: error_chain(&error), again_in: AGAIN_IN })
        }
        answer => answer,
    }
}

/// Whether an error is that of a host which is not reached yet. Of one whose age is unknown, also because the clock of this machine is
/// behind, the deadline of the operation bounds the wait.
fn is_not_yet(host: Option<&Recorded>, error: &Error, now: Timestamp) -> bool {
    let is_young = |created: Timestamp| now.duration_since(created) < NEW_ACCESS;
    let is_new = host.is_some_and(|host| host.created.is_none_or(is_young));
    let is_refusal = error.kind == ErrorKind::Denied
        && error.contested.is_empty()
        && error.code.as_deref().is_some_and(|code| NO_ACCESS.contains(&code));
    let is_unknown = error.kind == ErrorKind::Unavailable && error.code.as_deref() == Some(NAME_NOT_FOUND);
    is_new && (is_refusal || is_unknown)
}

/// Applies [`CONNECT_TIMEOUT`] to a future.
async fn within<T>(action: &str, host: &ResourceId, answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, answer).await.unwrap_or_else(|_| {
        let error = Error::new(ErrorKind::Unavailable, action, host.as_str());
        Err(error.because(format!("it took longer than {} s", CONNECT_TIMEOUT.as_secs())))
    })
}

#[async_trait]
impl Provider for Through {
    fn kinds(&self) -> &'static [Kind] {
        self.kinds
    }

    /// Objects that only use their host cost nothing extra.
    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        if !self.is_inner(kind) {
            return self.outer.costs(kind, spec);
        }
        let mut lines = self.outer.costs_inside(kind, spec);
        if lines.is_empty() {
            lines = self.inner.costs(kind, spec);
        }
        lines.retain(|line| line.charge != Charge::Included);
        lines
    }

    fn costs_among(&self, kind: &KindName, spec: &Spec, others: &[(&KindName, &Spec)]) -> Option<Vec<CostLine>> {
        let mut lines = self.outer.costs_among(kind, spec, others)?;
        lines.retain(|line| !self.is_inner(kind) || line.charge != Charge::Included);
        Some(lines)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let mut documents = self.outer.policies(&request.of_kinds(|kind| !self.is_inner(kind)));
        documents.extend(self.inner.policies(&request.of_kinds(|kind| self.is_inner(kind))));
        documents
    }

    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let mut documents = self.outer.boundaries(&request.of_kinds(|kind| !self.is_inner(kind)));
        documents.extend(self.inner.boundaries(&request.of_kinds(|kind| self.is_inner(kind))));
        documents
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        match self.is_inner(&request.object.kind) {
            true => self.inner.declare(request),
            false => self.outer.declare(request),
        }
    }

    async fn prepare_declarations(&self, wanted: &[Wanted]) -> Result<()> {
        let outside: Vec<_> = wanted.iter().filter(|one| !self.is_inner(&one.kind)).cloned().collect();
        self.outer.prepare_declarations(&outside).await
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        match self.is_inner(&wanted.kind) {
            true => self.inner.planned(wanted, lineage),
            false => self.outer.planned(wanted, lineage),
        }
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let mut site = site.clone();
        if let Some(cluster) = &mut site.cluster {
            cluster.node_choice.pod = self.pod;
        }
        let site = &site;
        let mut wanted = self.outer.lower(component, site)?;
        let Some((inner_component, inner_site)) = (self.inner_part)(component, site) else { return Ok(wanted) };
        let inside = self.inner.lower(&inner_component, &inner_site)?.into_iter().map(|one| {
            let via = one.via.clone().unwrap_or_else(|| Ref(ResourceId::of(&site.name, &self.host)));
            Wanted { via: Some(via), ..one }
        });
        wanted.extend(inside);
        Ok(wanted)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let provider = if self.is_inner(&wanted.kind) { &self.inner } else { &self.outer };
        provider.diff(wanted, recorded, seen)
    }

    fn interruption(&self, wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
        let provider = if self.is_inner(&wanted.kind) { &self.inner } else { &self.outer };
        provider.interruption(wanted, changes, among)
    }

    fn controller(&self, seen: &Object) -> Option<String> {
        let provider = if self.is_inner(&seen.kind) { &self.inner } else { &self.outer };
        provider.controller(seen)
    }

    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        let provider = if self.is_inner(&recorded.kind) { &self.inner } else { &self.outer };
        provider.database_part(recorded)
    }

    fn is_refilled(&self, recorded: &Recorded) -> bool {
        let provider = if self.is_inner(&recorded.kind) { &self.inner } else { &self.outer };
        provider.is_refilled(recorded)
    }

    /// Objects of a host that is missing, or that is to change itself, are not checked.
    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let (inside, outside): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|one| self.is_inner(&one.kind));
        let mut problems = self.outer.preflight(&outside).await?;
        let mut hosts: BTreeMap<ResourceId, Vec<Wanted>> = BTreeMap::new();
        for one in inside {
            let Some(Ref(host)) = one.via.clone() else { continue };
            if !outside.iter().any(|other| other.id == host) {
                hosts.entry(host).or_default().push(one);
            }
        }
        for (host, wanted) in hosts {
            let way = self.ways().known.iter().find(|((id, _), _)| *id == host).map(|(_, way)| way.inner.clone());
            if let Some(inner) = way {
                problems.extend(inner.preflight(&wanted).await.map_err(|error| unreachable(&host, error))?);
            }
        }
        Ok(problems)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let (wanted, outer_wanted): (Vec<_>, Vec<_>) =
            scope.wanted.iter().cloned().partition(|one| self.is_inner(&one.kind));
        let (recorded, outer_recorded): (Vec<_>, Vec<_>) =
            scope.recorded.iter().cloned().partition(|one| self.is_inner(&one.kind));
        let external = |ownership: &Ownership| match ownership {
            Ownership::External(id) => Some(id.clone()),
            Ownership::Ours => None,
        };
        let existing: BTreeMap<ResourceId, (KindName, CloudId)> = outer_recorded
            .iter()
            .map(|one| (&one.id, &one.kind, &one.ownership))
            .chain(outer_wanted.iter().map(|one| (&one.id, &one.kind, &one.ownership)))
            .filter_map(|(id, kind, ownership)| Some((id.clone(), (kind.clone(), external(ownership)?))))
            .collect();
        let ours: Vec<Wanted> = outer_wanted.into_iter().filter(|one| !existing.contains_key(&one.id)).collect();
        let mut seen = self.outer.observe(&Scope { wanted: &ours, recorded: &outer_recorded, ..*scope }).await?;
        for (id, (kind, cloud_id)) in existing {
            seen.retain(|(one, _)| *one != id);
            let read = within("check", &id, self.outer.read(&kind, &cloud_id)).await;
            seen.push((id, read.unwrap_or_else(|error| Observed::Unknown(ReadFailure(error_chain(&error))))));
        }

        // Hosts that a resource is reached through, and hosts that may contain unlisted objects.
        let via = |via: &Option<Ref>| via.as_ref().map(|host| host.0.clone());
        let mut hosts: BTreeSet<ResourceId> = wanted.iter().filter_map(|one| via(&one.via)).collect();
        hosts.extend(recorded.iter().filter_map(|one| via(&one.via)));
        hosts.extend(seen.iter().filter_map(|(id, answer)| match answer {
            Observed::Present(object) if self.connects.contains_key(&object.kind) => Some(id.clone()),
            _ => None,
        }));
        let mut answers = Vec::new();
        let (mut there, mut unseen) = (BTreeSet::new(), None);
        for host in hosts {
            let wanted: Vec<_> = wanted.iter().filter(|one| via(&one.via).as_ref() == Some(&host)).cloned().collect();
            let recorded: Vec<_> =
                recorded.iter().filter(|one| via(&one.via).as_ref() == Some(&host)).cloned().collect();
            let records: Vec<&Recorded> = outer_recorded.iter().filter(|one| one.id == host).collect();
            let found = found(&host, &seen, &records);
            match &found {
                Ok(Found::Here { object, .. }) => {
                    there.insert((host.clone(), object.cloud_id.clone()));
                }
                Ok(Found::Nowhere) => {}
                Err(_) => unseen = Some(host.clone()),
            }
            let inside = Scope { wanted: &wanted, recorded: &recorded, ..*scope };
            answers.extend(self.inside(&host, found, &inside).await);
        }
        let mut ways = self.ways();
        ways.known.retain(|key, _| there.contains(key));
        ways.doubted.clear();
        let missing_host = there.into_iter().find(|key| !ways.known.contains_key(key)).map(|(host, _)| host);
        ways.unseen = unseen.or(missing_host);
        drop(ways);
        seen.extend(answers);
        Ok(seen)
    }

    async fn read_recorded(&self, recorded: &Recorded) -> Result<Observed> {
        match self.is_inner(&recorded.kind) {
            true => self.read(&recorded.kind, &recorded.cloud_id).await,
            false => self.outer.read_recorded(recorded).await,
        }
    }

    /// An external object inside of a host is searched in each host of the last observation.
    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        if !self.is_inner(kind) {
            return self.outer.read(kind, id).await;
        }
        let (ways, unseen): (Vec<_>, _) = {
            let ways = self.ways();
            let known = ways.known.iter().map(|((host, _), way)| (host.clone(), way.inner.clone()));
            (known.collect(), ways.unseen.clone())
        };
        // It may be in that host, whatever other hosts have of that name.
        if let Some(host) = unseen {
            return Ok(Observed::Unknown(ReadFailure(format!(
                "its host can be `{host}`, which could not be observed"
            ))));
        }
        if ways.is_empty() {
            return Ok(Observed::Unknown(ReadFailure("no host exists that could contain it".to_owned())));
        }
        let mut found = Vec::new();
        for (host, inner) in ways {
            match inner.read(kind, id).await.map_err(|error| unreachable(&host, error))? {
                Observed::Present(mut object) => {
                    object.via = Some(Ref(host));
                    found.push(object);
                }
                Observed::Absent => {}
                unknown @ Observed::Unknown(_) => return Ok(unknown),
            }
        }
        match found.len() {
            0 => Ok(Observed::Absent),
            1 => Ok(Observed::Present(found.swap_remove(0))),
            _ => Ok(Observed::Unknown(ReadFailure("several hosts have an object with this name".to_owned()))),
        }
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        if !self.is_inner(&op.kind) {
            return self.outer.begin(op).await;
        }
        let (host, inner) = self.inner_of(op).await?;
        let answer = self.judged(&host, inner.begin(op).await);
        awaited(op.host.as_deref(), answer, None, Timestamp::now())
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        if !self.is_inner(&op.kind) {
            return self.outer.advance(op, handle).await;
        }
        let (host, inner) = self.inner_of(op).await?;
        let is_refused = handle.0.get(AGAIN).is_some();
        let answer = if is_refused { inner.begin(op).await } else { inner.advance(op, handle).await };
        awaited(op.host.as_deref(), self.judged(&host, answer), Some(handle), Timestamp::now())
    }

    /// What is inside of a host ends with it.
    async fn leftovers(&self, sweep: &Sweep<'_>) -> Result<Option<Leftovers>> {
        self.outer.leftovers(sweep).await
    }

    async fn billed(&self, request: &BilledRequest) -> Result<Billed> {
        self.outer.billed(request).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Health;

    fn id() -> ResourceId {
        ResourceId::new("here/cluster").expect("an id")
    }

    fn object(cloud_id: &str) -> Object {
        Object {
            kind: "memory.cluster".parse().expect("a kind"),
            cloud_id: CloudId::new(cloud_id).expect("an id"),
            spec: Spec::default(),
            outputs: Outputs::from([("endpoint".to_owned(), json!(cloud_id))]),
            lineage: None,
            origin: crate::Origin::Untold,
            created: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        }
    }

    #[test]
    fn refusals_of_a_new_host_pass_and_those_of_an_old_one_do_not() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let refusal =
            |code: &str| Error { code: Some(code.to_owned()), ..Error::new(ErrorKind::Denied, "create", "a") };
        let waits = |minutes: Option<i64>, code: &str| {
            let created = minutes.map(|minutes| now - jiff::SignedDuration::from_mins(minutes));
            let host = Recorded { created, ..recorded("one") };
            match awaited(Some(&host), Err(refusal(code)), None, now) {
                Ok(Progress::Pending { handle, .. }) => handle.0.get(AGAIN).is_some(),
                Err(error) => error.kind != ErrorKind::Denied,
                answer => panic!("{answer:?}"),
            }
        };
        assert!(waits(Some(12), "Forbidden") && waits(Some(12), "Unauthorized") && waits(None, "Forbidden"));
        assert!(waits(Some(-90), "Forbidden"), "this machine's clock is behind");
        assert!(!waits(Some(12), "Invalid") && !waits(Some(90), "Forbidden"));
        assert!(awaited(None, Err(refusal("Forbidden")), None, now).is_err());
    }

    #[test]
    fn the_name_of_a_new_host_is_waited_for() {
        let now = Timestamp::from_second(1_800_000_000).expect("a time");
        let waits = |minutes: i64, code: Option<&str>| {
            let host = Recorded { created: Some(now - jiff::SignedDuration::from_mins(minutes)), ..recorded("one") };
            let error = Error::new(ErrorKind::Unavailable, "create", "a");
            let error = Error { code: code.map(str::to_owned), ..error };
            awaited(Some(&host), Err(error), None, now).is_ok()
        };
        assert!(waits(12, Some(NAME_NOT_FOUND)));
        assert!(!waits(90, Some(NAME_NOT_FOUND)) && !waits(12, None) && !waits(12, Some("ServiceUnavailable")));
    }

    fn recorded(cloud_id: &str) -> Recorded {
        let Object { kind, cloud_id, spec, outputs, .. } = object(cloud_id);
        Recorded {
            id: id(),
            kind,
            site: "here".parse().expect("a site"),
            via: None,
            spec,
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id,
            outputs,
            protected: false,
            tainted: false,
            created: None,
        }
    }

    /// The host's object among the existing ones, by its records: the first record is the one in use.
    fn check(there: &[&str], records: &[&str], expect: Result<&str, &str>) {
        let mut seen: Vec<_> = there.iter().map(|one| (id(), Observed::Present(object(one)))).collect();
        seen.push((id(), Observed::Absent));
        let records: Vec<Recorded> = records.iter().map(|one| recorded(one)).collect();
        let found = found(&id(), &seen, &records.iter().collect::<Vec<_>>());
        let found = match &found {
            Ok(Found::Here { object, .. }) => Ok(object.cloud_id.as_str()),
            Ok(Found::Nowhere) => Ok("nowhere"),
            Err(why) => Err(why.as_str()),
        };
        assert_eq!(found, expect, "{there:?} {records:?}");
    }

    #[test]
    fn host_is_the_recorded_object_and_never_a_replaced_one() {
        check(&[], &[], Ok("nowhere"));
        check(&["a"], &[], Ok("a"));
        check(&["b", "a"], &[], Ok("a"));
        check(&["b", "a"], &["b"], Ok("b"));
        check(&["b", "a"], &["b", "a"], Ok("b"));
        check(&["a"], &["b", "a"], Ok("nowhere"));
        check(&["c", "a"], &["b", "a"], Ok("c"));
        let unseen =
            [(id(), Observed::Present(object("a"))), (id(), Observed::Unknown(ReadFailure("cut short".to_owned())))];
        assert!(matches!(found(&id(), &unseen, &[]), Err(why) if why == "cut short"));
        assert!(found(&id(), &[], &[]).is_err(), "one of which nobody says anything is not gone");
    }
}
