//! The gateway between real clients and real backends on loopback.
#![allow(clippy::unwrap_used)]

mod backend;
mod site;

mod behind;
mod handover;
mod hostile;
mod malformed;
mod operating;
mod prefix;
mod requests;
mod tls;
