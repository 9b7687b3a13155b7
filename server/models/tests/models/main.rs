//! The store of models: where they come from, what is believed of them, and what is kept.
#![allow(clippy::unwrap_used)]

mod bucket;
mod hub;
mod inspect;
mod road;
mod standin;
mod store;
