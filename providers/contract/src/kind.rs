//! What a provider declares of each kind of resource that it has.

use std::time::Duration;

/// What a provider declares of one kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// `PROVIDER.NOUN`; see [`crate::KindName`].
    pub name: &'static str,
    /// One line for people: what this is.
    pub says: &'static str,
    /// How an object is recognised after a lost answer.
    pub identity: Identity,
    /// What an object of this kind holds.
    pub data: DataClass,
    /// In which order a replacement happens.
    pub replace: ReplaceOrder,
    /// Updates and replacements of this kind within one component go one after another, so that the others answer
    /// meanwhile: `true` for replicas.
    pub one_by_one: bool,
    /// How long a new object may stay invisible to `observe`: not found within this time of its creation is not gone.
    /// Zero where a list is consistent with what was just written.
    pub settles: Duration,
    /// How long a whole create, update or delete may take, waiting included.
    pub deadline: Duration,
    /// The version of the kind's spec; a recorded spec with a lower number is upgraded when it is read.
    pub schema: u32,
    /// The row of the provider's price table, if an object costs money.
    pub price_key: Option<&'static str>,
    /// What a caller must be allowed to do, in the provider's own words.
    pub permissions: &'static [&'static str],
    /// Terraform's types whose objects are of this kind, each with the attribute that holds the provider's own id: `("aws_vpc", "id")`.
    pub terraform: &'static [(&'static str, &'static str)],
}

/// How an object is recognised as the one that an operation made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The API returns the first object for a repeated token.
    Token,
    /// A deterministic name, checked to be ours by its lineage.
    Named,
    /// A setting, route, attachment or record of a parent: an idempotent put, read again through the parent.
    Part,
}

/// What a kind holds; decides what may be removed without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataClass {
    /// Nothing.
    None,
    /// Data that can be made again from what we have.
    Derived,
    /// Data that the environment declared disposable.
    Disposable,
    /// Data that nobody can make again.
    Precious,
}

/// In which order an object is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceOrder {
    /// The new object first, then the old one goes: no gap, two objects for a while.
    CreateFirst,
    /// The old object first: for names, ports and files that only one can have.
    DeleteFirst,
}
