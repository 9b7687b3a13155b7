//! What a simulated Azure holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::costs::Charge;
use super::kinds;
use super::policies::Policy;
use crate::clock::{Clock, Random, later};
use crate::{Capacity, Market, Timing};

/// How often a deletion looks whether it can end.
const HELD: Duration = Duration::from_secs(60);
/// How long the result of an operation can be read after its end.
const OPERATION_RETENTION: Duration = Duration::from_secs(7 * 86_400);

/// A resource. Its key is the lower-case id.
#[derive(Clone, Debug)]
pub struct Object {
    /// The id as its creator wrote it.
    pub id: String,
    /// As a read answers it, without what is computed for each read.
    pub body: Value,
    /// Until when reads may miss it, and from when on lists have it.
    pub lag: (Timestamp, Timestamp),
    /// Until when a deleted one still shows.
    pub ghost_until: Option<Timestamp>,
}

/// What an operation changes at its end: it gives the error with which it fails.
pub(crate) type Effect = Box<dyn FnOnce(&mut Cloud) -> Result<(), Value> + Send>;

/// A long-running operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The last part of its addresses.
    pub id: String,
    /// The key of what it changes.
    pub target: String,
    /// Whose writers it keeps waiting: a key.
    pub holds: String,
    /// Whether it deletes.
    pub is_deletion: bool,
    /// Whether the service started it without a request.
    pub is_internal: bool,
    /// When it began.
    pub start: Timestamp,
    /// When it ended; far in the future if it never does.
    pub end: Option<Timestamp>,
    /// How it ended.
    pub error: Option<Value>,
    /// The address that its answers repeat.
    pub(crate) address: String,
}

/// A security principal of the directory.
#[derive(Clone, Debug)]
pub struct Principal {
    /// Its type, such as `ServicePrincipal`.
    pub kind: &'static str,
    /// The application's id.
    pub client: String,
    /// From when on the role service knows it.
    pub known_from: Timestamp,
}

/// How PostgreSQL refuses a region that is closed to the subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// `LocationIsOfferRestricted`.
    OfferRestricted,
    /// `ParameterOutOfRange` with an empty list of versions.
    OutOfRange,
    /// `InternalServerError`.
    Internal,
}

/// Behaviour that varies, each from what public reports tell. Ranges are seconds, drawn from by the seed; with zero
/// latency they are nothing.
#[derive(Clone, Debug)]
pub struct Conduct {
    /// How long reads may miss a new resource.
    pub read_lag: Range<u64>,
    /// How long lists miss it.
    pub list_lag: Range<u64>,
    /// How long the registration of a namespace takes.
    pub registration: Range<u64>,
    /// How long the role service does not know a new principal.
    pub principal_lag: Range<u64>,
    /// How long a role assignment has no effect.
    pub grant_lag: Range<u64>,
    /// How long a deleted role assignment still shows.
    pub assignment_ghost: Range<u64>,
    /// How long a delegated subnet is busy after the server is gone.
    pub link_lag: Range<u64>,
    /// How long a resource is not `Succeeded` after its operation is.
    pub state_gap: Range<u64>,
    /// How long a write of a federated credential keeps other writes of the identity out.
    pub federation_busy: Range<u64>,
    /// How long the name of a deleted storage account or registry stays taken.
    pub name_hold: Range<u64>,
    /// How long a removed lock still counts.
    pub lock_lag: Range<u64>,
    /// How long AKS changes a cluster without a request after it was created.
    pub reconciliation: Range<u64>,
    /// Whether a group is created again while its deletion goes on, which takes it away all the same.
    pub recreates_groups: bool,
    /// Whether a change of a cluster never ends.
    pub updates_stay: bool,
    /// Whether links on delegated subnets never clear.
    pub links_stay: bool,
    /// Whether the address of a deletion is 404 once the resource is gone.
    pub operations_vanish: bool,
    /// Whether `Location` answers 200 with a body that says `Failed`.
    pub failed_in_success: bool,
    /// Whether statuses of operations have no member `status` at times.
    pub bare_polls: bool,
    /// Whether operations have states that few clients know: while they are pending, and at their end.
    pub odd_states: bool,
    /// Whether a size that is not available shows in the operation instead of the call.
    pub late_capacity: bool,
    /// Whether a second write of a node pool cancels the first instead of being refused.
    pub preempts: bool,
    /// Whether failed clusters repair themselves.
    pub self_heals: bool,
    /// Whether a disruption budget in the clusters allows no eviction.
    pub keeps_pods: bool,
    /// How PostgreSQL refuses the region, if it does.
    pub closed: Option<Closed>,
    /// The most requests of a subscription in a minute.
    pub requests_per_minute: Option<u32>,
    /// Whether only reads are limited.
    pub limits_reads_only: bool,
    /// What `Retry-After` says with 429.
    pub retry_after: u64,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            read_lag: 0..20,
            list_lag: 0..40,
            registration: 0..120,
            principal_lag: 0..90,
            grant_lag: 0..300,
            assignment_ghost: 0..30,
            link_lag: 30..600,
            state_gap: 0..30,
            federation_busy: 0..8,
            name_hold: 0..120,
            lock_lag: 0..60,
            reconciliation: 0..60,
            recreates_groups: false,
            updates_stay: false,
            links_stay: false,
            operations_vanish: false,
            failed_in_success: false,
            bare_polls: false,
            odd_states: false,
            late_capacity: false,
            preempts: false,
            self_heals: false,
            keeps_pods: false,
            closed: None,
            requests_per_minute: None,
            limits_reads_only: false,
            retry_after: 17,
        }
    }
}

/// Everything that a simulated Azure holds: one subscription. Requests change it, one at a time.
pub struct Cloud {
    /// The id of the subscription.
    pub subscription: String,
    /// The tenant.
    pub tenant: String,
    /// The state of the subscription: `Enabled`, `Warned`, `Disabled`.
    pub state: String,
    /// Registered namespaces, and from when on each can be used.
    pub namespaces: BTreeMap<String, Timestamp>,
    /// All resources by key.
    pub objects: BTreeMap<String, Object>,
    /// All operations by id.
    pub operations: BTreeMap<String, Operation>,
    /// Behaviour that varies.
    pub conduct: Conduct,
    /// How many machines can be had, by zone (`westeurope-1`, or the region), size and market.
    pub capacity: Capacity,
    /// Quotas that differ from the usual ones, by region and name.
    pub quotas: BTreeMap<(String, String), i64>,
    /// The currency of the bill.
    pub currency: String,
    /// For how many seconds queries of costs are beyond their limit, if they are.
    pub costs_limited_for: Option<u64>,
    /// Sizes that the subscription may not use, by region.
    pub restricted: BTreeSet<(String, String)>,
    /// Operations that the operator lacks, such as `Microsoft.Network/virtualNetworks/write`.
    pub denied: BTreeSet<String>,
    /// The only operations that the operator has; without this, it has all.
    pub allowed: Option<BTreeSet<String>>,
    /// The operations that the operator's requests needed, lower-case, each with whether none of them was refused for
    /// want of it.
    pub needed: BTreeMap<String, bool>,
    /// Locks by scope, lower-case: the level, and until when a removed one counts.
    pub locks: BTreeMap<String, (String, Option<Timestamp>)>,
    /// Assignments of policies with the effect Deny, by id.
    pub policies: BTreeMap<String, Policy>,
    /// Names that are taken everywhere, by type and name, and until when; `MAX` for those of other customers.
    pub taken: BTreeMap<(String, String), Timestamp>,
    /// Soft-deleted vaults by name: as they were, and until when they are kept.
    pub deleted_vaults: BTreeMap<String, (Object, Timestamp)>,
    /// The keys of these vaults.
    pub deleted_keys: BTreeMap<String, BTreeMap<String, Object>>,
    /// Soft-deleted workspaces of Azure Machine Learning by key, and until when they are kept.
    pub deleted_workspaces: BTreeMap<String, Timestamp>,
    /// Who is in the directory, by object id.
    pub principals: BTreeMap<String, Principal>,
    /// Links that services hold on delegated subnets, by key of the subnet, and until when.
    pub links: BTreeMap<String, Timestamp>,
    /// Groups of nodes that something outside refers to, by key: they cannot be deleted.
    pub blocked: BTreeSet<String>,
    /// Numbers and ids that follow from the seed.
    pub random: Random,
    /// The blobs, by `ACCOUNT/CONTAINER`.
    pub blobs: crate::objects::Store,
    /// What was pushed to registries of images, by their hosts and the names of repositories.
    pub registry: crate::oci::Registry,
    /// What stands for new servers of PostgreSQL, if anything does.
    pub stand: Option<crate::postgres::Stand>,
    /// What stands for the containers of online endpoints, if anything does.
    pub containers: Option<crate::gcp::run::Containers>,
    /// Whether containers of new deployments do not answer their probes.
    pub mute: bool,
    /// The address of the simulator, which those of online endpoints have.
    pub(crate) front: String,
    pub(crate) charges: Vec<Charge>,
    pub(crate) operator: String,
    pub(crate) endpoint: Option<(String, String)>,
    pub(crate) busy: BTreeMap<String, Timestamp>,
    pub(crate) grants: BTreeMap<String, Timestamp>,
    pub(crate) recent: Vec<Timestamp>,
    pub(crate) timing: Timing,
    clock: Clock,
    deferred: BTreeMap<(Timestamp, u64), Action>,
    deferrals: u64,
}

type Action = Box<dyn FnOnce(&mut Cloud) + Send>;

impl Cloud {
    pub(crate) fn new(seed: u64, timing: Timing, subscription: &str, tenant: &str, operator: &str) -> Self {
        let clock = Clock::new();
        let kind = Principal { kind: "ServicePrincipal", client: operator.to_owned(), known_from: clock.now() };
        Self {
            subscription: subscription.to_owned(),
            tenant: tenant.to_owned(),
            state: "Enabled".to_owned(),
            namespaces: BTreeMap::new(),
            objects: BTreeMap::new(),
            operations: BTreeMap::new(),
            conduct: Conduct::default(),
            capacity: Capacity::default(),
            quotas: BTreeMap::new(),
            currency: "USD".to_owned(),
            costs_limited_for: None,
            restricted: BTreeSet::new(),
            denied: BTreeSet::new(),
            allowed: None,
            needed: BTreeMap::new(),
            locks: BTreeMap::new(),
            policies: BTreeMap::new(),
            taken: BTreeMap::new(),
            deleted_vaults: BTreeMap::new(),
            deleted_keys: BTreeMap::new(),
            deleted_workspaces: BTreeMap::new(),
            principals: BTreeMap::from([(operator.to_owned(), kind)]),
            links: BTreeMap::new(),
            blocked: BTreeSet::new(),
            random: Random::new(seed),
            blobs: crate::objects::Store::default(),
            registry: crate::oci::Registry::default(),
            stand: None,
            containers: None,
            mute: false,
            front: String::new(),
            charges: Vec::new(),
            operator: operator.to_owned(),
            endpoint: None,
            busy: BTreeMap::new(),
            grants: BTreeMap::new(),
            recent: Vec::new(),
            timing,
            clock,
            deferred: BTreeMap::new(),
            deferrals: 0,
        }
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the time, and does what became due.
    pub fn advance(&mut self, by: Duration) {
        let end = later(self.now(), by);
        while let Some(entry) = self.deferred.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((due, _), action) = entry.remove_entry();
            // An action sees the time at which it was due.
            let now = self.now();
            self.clock.advance(Duration::try_from(due.duration_since(now)).unwrap_or_default());
            action(self);
        }
        let now = self.now();
        self.clock.advance(Duration::try_from(end.duration_since(now)).unwrap_or_default());
        self.operations.retain(|_, one| one.end.is_none_or(|ended| later(ended, OPERATION_RETENTION) > end));
        self.objects.retain(|_, one| one.ghost_until.is_none_or(|until| until > end));
        self.deleted_vaults.retain(|_, (_, until)| *until > end);
    }

    /// Does something at a time.
    pub fn defer(&mut self, due: Timestamp, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.deferrals += 1;
        self.deferred.insert((due, self.deferrals), Box::new(action));
    }

    /// When something that takes so long is done. With zero latency that is the next request.
    #[must_use]
    pub fn due(&self, after: Duration) -> Timestamp {
        later(self.now(), if self.timing.zero_latency { Duration::from_millis(1) } else { after })
    }

    /// A time after now, by a range of seconds; now with zero latency.
    #[must_use]
    pub fn lagged(&self, seconds: &Range<u64>) -> Timestamp {
        let by = match self.timing.zero_latency || seconds.is_empty() {
            true => 0,
            false => seconds.start + self.random.number() % (seconds.end - seconds.start),
        };
        later(self.now(), Duration::from_secs(by))
    }

    /// Registers namespaces at once, as another person would have done before.
    pub fn register(&mut self, namespaces: &[&str]) {
        let now = self.now();
        self.namespaces.extend(namespaces.iter().map(|one| (one.to_lowercase(), now)));
    }

    /// Whether a namespace is registered by now.
    #[must_use]
    pub fn is_registered(&self, namespace: &str) -> bool {
        self.namespaces.get(&namespace.to_lowercase()).is_some_and(|from| *from <= self.now())
    }

    /// Puts a resource there as it is, as if another person had made it: its body has what a read answers.
    pub fn put(&mut self, id: &str, body: Value) {
        let now = self.now();
        let object = Object { id: id.to_owned(), body, lag: (now, now), ghost_until: None };
        self.objects.insert(id.to_lowercase(), object);
    }

    /// Puts a zone of Azure DNS into a resource group. Gives its id.
    pub fn put_zone(&mut self, group: &str, name: &str, is_private: bool) -> String {
        super::dns::put_zone(self, group, name, is_private)
    }

    /// A resource as reads answer it, once all can see it.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Value> {
        let key = id.to_lowercase();
        let object = self.objects.get(&key).filter(|one| one.ghost_until.is_none())?;
        Some(kinds::shown(self, &key, object))
    }

    /// The ids of all resources that reads show.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let shown = self.objects.values().filter(|one| one.ghost_until.is_none());
        shown.map(|one| one.id.clone()).collect()
    }

    /// Changes a member of a resource, as if another person had done so.
    pub fn change(&mut self, id: &str, pointer: &str, value: Value) {
        let etag = self.etag();
        if let Some(object) = self.objects.get_mut(&id.to_lowercase()) {
            put(&mut object.body, pointer, value);
            if object.body.get("etag").is_some() {
                object.body["etag"] = etag.into();
            }
        }
    }

    /// Assigns a role at a scope at once, as another person would have done before. Gives the id of the assignment.
    pub fn assign(&mut self, scope: &str, role: &str, principal: &str) -> String {
        let name = guid(&format!("{scope} {role} {principal}"));
        let id = format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{name}");
        let of_subscription = format!("/subscriptions/{}/providers/Microsoft.Authorization", self.subscription);
        let properties = json!({ "scope": scope, "principalId": principal, "principalType": "ServicePrincipal",
            "roleDefinitionId": format!("{of_subscription}/roleDefinitions/{role}") });
        let kind = "Microsoft.Authorization/roleAssignments";
        self.put(&id, json!({ "id": id, "name": name, "type": kind, "properties": properties }));
        id
    }

    /// Locks a scope, such as `CanNotDelete`.
    pub fn lock(&mut self, scope: &str, level: &str) {
        self.locks.insert(scope.to_lowercase(), (level.to_owned(), None));
    }

    /// Removes a lock, which counts for a while longer.
    pub fn unlock(&mut self, scope: &str) {
        let until = self.lagged(&self.conduct.lock_lag);
        if let Some(lock) = self.locks.get_mut(&scope.to_lowercase()) {
            lock.1 = Some(until);
        }
    }

    /// Empties a zone's stock of a size, on demand and spot.
    pub fn stock_out(&mut self, zone: &str, size: &str) {
        for market in [Market::OnDemand, Market::Spot] {
            self.capacity.set(zone, size, market, 0);
        }
    }

    /// Fills it again.
    pub fn restock(&mut self, zone: &str, size: &str, count: u64) {
        for market in [Market::OnDemand, Market::Spot] {
            self.capacity.set(zone, size, market, count);
        }
    }

    /// Takes the nodes of a spot pool away: its count is lower without any error.
    pub fn evict(&mut self, pool: &str) {
        self.autoscale(pool, 0);
    }

    /// Sets the count of a pool, as the autoscaler of its cluster does.
    pub fn autoscale(&mut self, pool: &str, count: u64) {
        self.change(pool, "/properties/count", count.into());
    }

    /// Whether the nodes of a cluster can pull images from a registry.
    #[must_use]
    pub fn may_pull(&self, cluster: &str, registry: &str) -> bool {
        super::container::may_pull(self, cluster, registry)
    }

    /// The version of a resource, as etags have it.
    pub(crate) fn etag(&self) -> String {
        format!("W/\"{}\"", self.random.uuid())
    }

    /// The operation that keeps writers of something out.
    pub(crate) fn running(&self, holds: &str) -> Option<&Operation> {
        self.operations.values().find(|one| one.holds == holds && one.end.is_none())
    }

    /// Adds an operation that ends at a time, or never, and changes something then.
    pub(crate) fn begin(&mut self, operation: Operation, due: Option<Timestamp>, effect: Effect) {
        let id = operation.id.clone();
        self.operations.insert(id.clone(), operation);
        let Some(due) = due else { return };
        self.defer(due, move |cloud| cloud.end(id, effect));
    }

    fn end(&mut self, id: String, effect: Effect) {
        // One that was cancelled changes nothing.
        let Some(operation) = self.operations.get(&id).filter(|one| one.end.is_none()) else { return };
        if operation.is_deletion && super::container::is_held(self, &operation.target) {
            let again = later(self.now(), HELD);
            return self.defer(again, move |cloud| cloud.end(id, effect));
        }
        let error = effect(self).err();
        let now = self.now();
        if let Some(operation) = self.operations.get_mut(&id) {
            operation.end = Some(now);
            operation.error = error;
        }
    }

    /// Sets the state of a resource, if it is there.
    pub(crate) fn set_state(&mut self, key: &str, state: &str) {
        if let Some(object) = self.objects.get_mut(key) {
            put(&mut object.body, "/properties/provisioningState", state.into());
        }
    }

    /// Whether a principal has a role by now that counts for a scope; any of the roles will do.
    pub(crate) fn has_role(&self, principal: &str, scope: &str, roles: &[&str]) -> bool {
        let scope = format!("{}/", scope.to_lowercase());
        self.objects.iter().filter(|(key, _)| key.contains("/roleassignments/")).any(|(key, object)| {
            let properties = &object.body["properties"];
            let above = format!("{}/", text(properties, "/scope").to_lowercase().trim_end_matches('/'));
            let role = text(properties, "/roleDefinitionId").rsplit('/').next().unwrap_or_default().to_lowercase();
            properties["principalId"] == principal
                && scope.starts_with(&above)
                && (roles.is_empty() || roles.contains(&role.as_str()))
                && object.ghost_until.is_none()
                && self.grants.get(key).is_none_or(|from| *from <= self.now())
        })
    }

    /// Whether a caller with a role may do something; what the operator needed is noted.
    pub(crate) fn authorize(&mut self, user: &str, action: &str) -> bool {
        let is_operator = user == self.operator;
        let is_allowed = |all: &BTreeSet<String>| all.iter().any(|one| one.eq_ignore_ascii_case(action));
        let has = !self.denied.contains(action) && (!is_operator || self.allowed.as_ref().is_none_or(is_allowed));
        if is_operator {
            *self.needed.entry(action.to_lowercase()).or_insert(true) &= has;
        }
        has
    }

    /// The error of a subscription beyond its rate.
    pub(crate) fn is_limited(&mut self, is_read: bool) -> bool {
        let Some(limit) = self.conduct.requests_per_minute else { return false };
        if self.conduct.limits_reads_only && !is_read {
            return false;
        }
        let now = self.now();
        self.recent.retain(|time| later(*time, Duration::from_secs(60)) > now);
        if self.recent.len() < limit as usize {
            self.recent.push(now);
            return false;
        }
        true
    }
}

/// A member that is text, by its pointer.
pub(crate) fn text<'v>(body: &'v Value, pointer: &str) -> &'v str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a member by its pointer, and makes objects on the way.
pub(crate) fn put(body: &mut Value, pointer: &str, value: Value) {
    let mut place = body;
    for part in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
}

/// Sets a member that is missing.
pub(crate) fn put_missing(body: &mut Value, pointer: &str, value: Value) {
    if body.pointer(pointer).is_none_or(Value::is_null) {
        put(body, pointer, value);
    }
}

/// A GUID that follows from a text.
pub(crate) fn guid(seed: &str) -> String {
    use sha2::Digest;
    let digits = hex::encode(sha2::Sha256::digest(seed.as_bytes()));
    format!("{}-{}-4{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}
