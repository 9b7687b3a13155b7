//! Losing a site and getting it back: what an operator sees and does, and the rehearsal of it.
//!
//! The sites' *watches* and the *witness* decide; this talks to them. Read in this order: [`talk`] (their JSON over Unix sockets),
//! [`picture`] (how all of them are), [`shift`] (failover and failback), [`journal`] (what was begun, for whoever goes on), then the
//! rehearsal: [`fault`] (what is done to a site), [`ledger`] and [`outside`] (a client from outside writes down what it saw),
//! [`findings`] (what follows from that; pure), [`drill`] (the phases), [`report`] (for an auditor).
//! Nothing here is asked of the site that is lost, and nothing here is needed for an automatic failover.

pub mod drill;
pub mod fault;
pub mod findings;
pub mod journal;
pub mod ledger;
pub mod outside;
pub mod picture;
pub mod report;
pub mod shift;
pub mod talk;

mod waterfall;
