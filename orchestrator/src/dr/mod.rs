//! Disaster recovery: status, failover, failback and drills.
//!
//! The site agents and the witness make the decisions; this module is their client. Start with [`control_client`] (JSON
//! over Unix sockets), [`control_status`] (the status of all sites), [`failover`] (failover and failback) and
//! [`journal`] (recorded steps, to resume them). Drills: [`fault`] (faults of a site), [`outside`] (an external
//! client), [`ledger`] (what that client records), [`findings`] (results, pure), [`drill`] (the phases) and [`report`]
//! (the signed report). This module works while a site is down. An automatic failover does not use it.

pub mod control_client;
pub mod control_status;
pub mod drill;
pub mod failover;
pub mod fault;
pub mod findings;
pub mod journal;
pub mod ledger;
pub mod outside;
pub mod report;

mod waterfall;
