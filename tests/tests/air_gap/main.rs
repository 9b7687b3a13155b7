//! One file out, a running service in, with the cable pulled; and whatever can happen to that file and that service on the way.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod archive;
mod stage;

mod faults;
mod kills;
mod offers;
mod readme;
mod road;
mod same;
mod site;
mod trust;
mod unplugged;
mod update;
mod user;
