//! What a provider declares for each of its resource kinds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cost::{CostLine, Pricing};
use crate::permission::Permission;

/// The declaration of one kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// `PROVIDER.NOUN`; see [`crate::KindName`].
    pub name: &'static str,
    /// A description in one line.
    pub says: &'static str,
    /// How an object is recognised after a lost answer.
    pub identity: Identity,
    /// What an object of this kind holds.
    pub data: DataClass,
    /// The order of a replacement.
    pub replace: ReplaceOrder,
    /// Whether updates and replacements of this kind within one component run one at a time, so that the others keep
    /// serving: `true` for replicas.
    pub one_by_one: bool,
    /// How long a new object may be missing from `observe` before it counts as gone. Zero where lists are consistent
    /// with the last write.
    pub settles: Duration,
    /// Timeout of a whole create, update or delete, including its polls.
    pub deadline: Duration,
    /// How long an operation usually takes, for the estimate of a plan without earlier runs; `None` if that depends on
    /// the object, such as its size.
    pub typical: Option<Duration>,
    /// The version of the kind's spec; a recorded spec with a lower number is upgraded when it is read.
    pub schema: u32,
    /// How objects are priced.
    pub pricing: Pricing,
    /// The permissions that a caller needs.
    pub permissions: &'static [Permission],
    /// Terraform's types of this kind, each with the attribute that contains the provider's own id: `("aws_vpc",
    /// "id")`.
    pub terraform: &'static [(&'static str, &'static str)],
    /// Attributes that the provider shows with what others added to them: exports have what was recorded.
    pub shared: &'static [&'static str],
    /// How a replica in another region is told, and what promotes it; `None` where there are no such replicas.
    pub replica: Option<ReplicaFields>,
}

/// What specs have of a database's replica in another region. A promoted one has the outputs `host`, `port`, `database` and `user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaFields {
    /// The field with the region of an object. An object in its site's region is none of these replicas.
    pub region: &'static str,
    /// The field with the server that it replicates. An update to null promotes it.
    pub source: &'static str,
    /// The output of that server which has the same value.
    pub output: &'static str,
    /// The fields that a promoted replica takes over from that server.
    pub inherited: &'static [&'static str],
    /// The field that keeps the provider from deleting an object, where there is one. A promoted replica has it.
    pub protection: Option<&'static str>,
    /// How clients verify the certificate of a promoted one.
    pub verified: Verified,
}

/// How clients verify the certificate of a managed database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// By its name and the authorities of its region, which the provider publishes as a file.
    ByRegion,
    /// By the authority of the server, its output `ca_pem`. The certificate does not have the server's address.
    ByServer,
    /// By its name and the public authorities, which every client has.
    Public,
}

impl Kind {
    /// The lines that [`Kind::pricing`] determines for every object of this kind. One that is priced by its spec has an
    /// unknown cost here.
    pub fn costs(&self) -> Vec<CostLine> {
        let service = self.name.split('.').next().unwrap_or(self.name);
        match self.pricing {
            Pricing::Free => Vec::new(),
            Pricing::Included => vec![CostLine::included(service, self.says)],
            Pricing::Unknown(why) => vec![CostLine::unknown(service, self.says, why)],
            Pricing::BySpec => vec![CostLine::unknown(service, self.says, NOT_PRICED)],
        }
    }
}

/// The reason in a line of [`Pricing::BySpec`] whose provider did not determine the cost.
pub(crate) const NOT_PRICED: &str = "the provider has no price for this kind";

/// How an object is recognised as the one that an operation made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The API returns the first object for a repeated token.
    Token,
    /// A deterministic name, checked to be ours by its lineage.
    Named,
    /// A setting, route, attachment or record of a parent: an idempotent put, observed through the parent.
    Part,
}

/// The class of the data of a kind; decides what may be removed without confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataClass {
    /// Nothing.
    None,
    /// Data that can be recreated.
    Derived,
    /// Data that the environment declared disposable.
    Disposable,
    /// Data that cannot be recreated.
    Precious,
}

/// What an object has of the service's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabasePart {
    /// The data itself: the server, or its files.
    Data,
    /// The data itself, in a server that loads what a restore left beside it once it is created.
    Loaded,
    /// The log of what the sites of a deployment have together: each is filled from it by the others.
    Shared,
    /// Only dumps of it, which a job in a cluster takes.
    Dumps,
}

/// The order in which an object is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceOrder {
    /// Create the new object, then delete the old one: no gap, two objects for a while.
    CreateFirst,
    /// Delete the old object first: for exclusive names, ports and files.
    DeleteFirst,
}

/// The kinds of both, created once for each pair of tables.
pub(crate) fn joined(first: &'static [Kind], second: &'static [Kind]) -> &'static [Kind] {
    static JOINED: Mutex<Vec<(usize, usize, &'static [Kind])>> = Mutex::new(Vec::new());
    let key = (first.as_ptr() as usize, second.as_ptr() as usize);
    let mut known = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((.., kinds)) = known.iter().find(|(a, b, _)| (*a, *b) == key) {
        return kinds;
    }
    let kinds: &'static [Kind] = Box::leak(first.iter().chain(second).cloned().collect());
    known.push((key.0, key.1, kinds));
    kinds
}
