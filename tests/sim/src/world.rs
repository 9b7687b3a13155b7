//! What a simulated cloud holds.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::clock::{Clock, Random, later};
use crate::{Call, Fault};

/// The place of a resource: an account, and a region of it or none for what is global.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// The account.
    pub account: String,
    /// The region; empty for global services such as IAM.
    pub region: String,
}

impl Scope {
    /// A region of an account.
    pub fn new(account: impl Into<String>, region: impl Into<String>) -> Self {
        Self { account: account.into(), region: region.into() }
    }

    /// What an account has outside of regions.
    pub fn global(account: impl Into<String>) -> Self {
        Self::new(account, "")
    }
}

/// Decides whether an identity may make a call; it refuses with the service's error.
pub type Authorizer = fn(&World, &Call) -> Result<(), Fault>;

type Action = Box<dyn FnOnce(&mut World) + Send>;

/// Everything that a simulated cloud holds. Handlers change it, one request at a time.
pub struct World {
    /// Tags of all resources, by ARN.
    pub tags: Tags,
    /// Which resource uses which.
    pub uses: Uses,
    /// How many instances can be had.
    pub capacity: Capacity,
    /// How much an account may have.
    pub quotas: Quotas,
    /// Who may sign requests.
    pub credentials: Credentials,
    /// Called before each handler, if set.
    pub authorizer: Option<Authorizer>,
    /// Numbers and ids that follow from the seed.
    pub random: Random,
    pub(crate) tokens: Tokens,
    pub(crate) clock: Clock,
    states: HashMap<(TypeId, Scope), Box<dyn Any + Send>>,
    deferred: BTreeMap<(Timestamp, u64), Action>,
    deferrals: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            tags: Tags::default(),
            uses: Uses::default(),
            capacity: Capacity::default(),
            quotas: Quotas::default(),
            credentials: Credentials::default(),
            authorizer: None,
            random: Random::new(seed),
            tokens: Tokens::default(),
            clock: Clock::new(),
            states: HashMap::new(),
            deferred: BTreeMap::new(),
            deferrals: 0,
        }
    }

    /// What a service holds in a place: each has a type of its own, and one of another is read by its type.
    pub fn state<T: Default + Send + 'static>(&mut self, scope: &Scope) -> &mut T {
        let state = self.states.entry((TypeId::of::<T>(), scope.clone())).or_insert_with(|| Box::<T>::default());
        state.downcast_mut().unwrap_or_else(|| unreachable!("the key names the type"))
    }

    /// What a service holds in a place, if it was ever asked for.
    #[must_use]
    pub fn find<T: 'static>(&self, scope: &Scope) -> Option<&T> {
        self.states.get(&(TypeId::of::<T>(), scope.clone()))?.downcast_ref()
    }

    /// The places in which a service holds anything, in order.
    #[must_use]
    pub fn scopes<T: 'static>(&self) -> Vec<Scope> {
        let wanted = TypeId::of::<T>();
        let mut scopes: Vec<Scope> =
            self.states.keys().filter(|(id, _)| *id == wanted).map(|(_, s)| s.clone()).collect();
        scopes.sort();
        scopes
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
    }

    /// Does something at a time; [`Call::due`] gives one. It happens before the first request after it.
    pub fn defer(&mut self, due: Timestamp, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.deferrals += 1;
        self.deferred.insert((due, self.deferrals), Box::new(action));
    }

    /// Creates an object once for a client token. The same token with the same input gives the key of the first object;
    /// with another input it is refused with `mismatch`. Without a token `create` runs each time.
    ///
    /// `create` makes the object and gives its key, from which the handler then answers in both cases. `token` is the
    /// member of the input that holds the token, such as `ClientToken`.
    ///
    /// # Errors
    /// `mismatch`, or what `create` fails with, after which the token is free again.
    pub fn once(
        &mut self,
        call: &Call,
        token: &str,
        mismatch: Fault,
        create: impl FnOnce(&mut Self) -> Result<String, Fault>,
    ) -> Result<String, Fault> {
        let Some(value) = call.str(token).filter(|value| !value.is_empty()) else { return create(self) };
        let key = (call.scope(), call.service.to_owned(), call.operation.clone(), value.to_owned());
        let mut input = call.input.clone();
        if let Some(members) = input.as_object_mut() {
            members.shift_remove(token);
        }
        if let Some((first, object)) = self.tokens.0.get(&key) {
            return if *first == input { Ok(object.clone()) } else { Err(mismatch) };
        }
        let object = create(self)?;
        self.tokens.0.insert(key, (input, object.clone()));
        Ok(object)
    }
}

#[derive(Default)]
pub(crate) struct Tokens(HashMap<(Scope, String, String, String), (Value, String)>);

/// Tags of resources, by ARN. EC2's have ARNs too: [`Call::arn`] makes them.
#[derive(Default)]
pub struct Tags(BTreeMap<String, BTreeMap<String, Tag>>);

struct Tag {
    value: String,
    visible: Timestamp,
}

impl Tags {
    /// Sets tags; even none, which registers the resource. [`Tags::listed`] shows them from `visible` on, for which [`Call::visible`] is the usual time.
    pub fn set(&mut self, arn: &str, tags: impl IntoIterator<Item = (String, String)>, visible: Timestamp) {
        let known = self.0.entry(arn.to_owned()).or_default();
        for (key, value) in tags {
            known.insert(key, Tag { value, visible });
        }
    }

    /// Removes tags by their keys.
    pub fn remove<'a>(&mut self, arn: &str, keys: impl IntoIterator<Item = &'a str>) {
        if let Some(known) = self.0.get_mut(arn) {
            keys.into_iter().for_each(|key| drop(known.remove(key)));
        }
    }

    /// Forgets a resource.
    pub fn forget(&mut self, arn: &str) {
        self.0.remove(arn);
    }

    /// Whether tags of a resource, perhaps none, were ever set and it was not forgotten.
    #[must_use]
    pub fn has(&self, arn: &str) -> bool {
        self.0.contains_key(arn)
    }

    /// A resource's tags.
    #[must_use]
    pub fn of(&self, arn: &str) -> BTreeMap<String, String> {
        let tags = self.0.get(arn).into_iter().flatten();
        tags.map(|(key, tag)| (key.clone(), tag.value.clone())).collect()
    }

    /// Resources whose ARN starts with a text and their tags, as lists and the tagging API show them: tags appear late.
    pub fn listed<'a>(
        &'a self,
        prefix: &'a str,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a str, BTreeMap<String, String>)> + 'a {
        let from = self.0.range(prefix.to_owned()..).take_while(move |(arn, _)| arn.starts_with(prefix));
        from.map(move |(arn, tags)| {
            let visible = tags.iter().filter(|(_, tag)| tag.visible <= now);
            (arn.as_str(), visible.map(|(key, tag)| (key.clone(), tag.value.clone())).collect())
        })
    }
}

/// Which resource uses which, across services: what is used cannot be deleted.
///
/// Keys are what the services agree on: ARNs, or ids as `subnet-0…` that are unique anyway.
#[derive(Default)]
pub struct Uses(BTreeSet<(String, String)>);

impl Uses {
    /// `user` uses `used` from now on.
    pub fn add(&mut self, user: &str, used: &str) {
        self.0.insert((used.to_owned(), user.to_owned()));
    }

    /// `user` uses `used` no longer.
    pub fn remove(&mut self, user: &str, used: &str) {
        self.0.remove(&(used.to_owned(), user.to_owned()));
    }

    /// `user` is gone, and uses nothing.
    pub fn forget(&mut self, user: &str) {
        self.0.retain(|(_, one)| one != user);
    }

    /// What uses a resource, in order.
    pub fn users<'a>(&'a self, used: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        let from = self.0.range((used.to_owned(), String::new())..);
        from.take_while(move |(one, _)| one == used).map(|(_, user)| user.as_str())
    }
}

/// How an instance is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Market {
    /// Kept until it is given back.
    OnDemand,
    /// Cheaper, and taken away when others need it.
    Spot,
}

/// How many instances of a type a zone still has. What is not set has no bound.
#[derive(Default)]
pub struct Capacity(HashMap<(String, String, Market), u64>);

impl Capacity {
    /// Bounds a zone, such as `eu-west-1a`.
    pub fn set(&mut self, zone: &str, instance_type: &str, market: Market, count: u64) {
        self.0.insert((zone.to_owned(), instance_type.to_owned(), market), count);
    }

    /// What is left; `None` has no bound.
    #[must_use]
    pub fn left(&self, zone: &str, instance_type: &str, market: Market) -> Option<u64> {
        self.0.get(&(zone.to_owned(), instance_type.to_owned(), market)).copied()
    }

    /// Takes instances, all or none: false says that there are not enough.
    #[must_use]
    pub fn take(&mut self, zone: &str, instance_type: &str, market: Market, count: u64) -> bool {
        let Some(left) = self.0.get_mut(&(zone.to_owned(), instance_type.to_owned(), market)) else { return true };
        match left.checked_sub(count) {
            Some(rest) => *left = rest,
            None => return false,
        }
        true
    }

    /// Gives instances back.
    pub fn give(&mut self, zone: &str, instance_type: &str, market: Market, count: u64) {
        if let Some(left) = self.0.get_mut(&(zone.to_owned(), instance_type.to_owned(), market)) {
            *left = left.saturating_add(count);
        }
    }
}

/// A quota as Service Quotas names it, and what an account has at first.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// The code of the service at Service Quotas, such as `ec2`.
    pub service: &'static str,
    /// The code, such as `L-DB2E81BA`.
    pub code: &'static str,
    /// The name.
    pub name: &'static str,
    /// What a new account has.
    pub value: f64,
    /// Whether an account may ask for more.
    pub adjustable: bool,
}

/// Quotas that differ from what services list as their first values.
#[derive(Default)]
pub struct Quotas(HashMap<(Scope, String), f64>);

impl Quotas {
    /// Sets a quota by its code.
    pub fn set(&mut self, scope: &Scope, code: &str, value: f64) {
        self.0.insert((scope.clone(), code.to_owned()), value);
    }

    /// The value of a quota in a place.
    #[must_use]
    pub fn of(&self, scope: &Scope, quota: &Quota) -> f64 {
        self.0.get(&(scope.clone(), quota.code.to_owned())).copied().unwrap_or(quota.value)
    }
}

/// A key that requests are signed with, and who it stands for.
#[derive(Clone)]
pub struct Credential {
    /// The secret part.
    pub secret: String,
    /// The session's token, of temporary ones.
    pub token: Option<String>,
    /// The account.
    pub account: String,
    /// The ARN of the identity, as `GetCallerIdentity` gives it.
    pub identity: String,
    /// The unique id of the identity, such as `AIDA…`.
    pub id: String,
    /// When it ends on the virtual clock.
    pub expires: Option<Timestamp>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("identity", &self.identity).field("expires", &self.expires).finish()
    }
}

/// Access keys and who they stand for.
#[derive(Default)]
pub struct Credentials(HashMap<String, Credential>);

impl Credentials {
    /// Adds a key, or replaces it.
    pub fn insert(&mut self, access_key: &str, credential: Credential) {
        self.0.insert(access_key.to_owned(), credential);
    }

    /// Removes a key.
    pub fn remove(&mut self, access_key: &str) {
        self.0.remove(access_key);
    }

    /// Who a key stands for.
    #[must_use]
    pub fn get(&self, access_key: &str) -> Option<&Credential> {
        self.0.get(access_key)
    }
}
