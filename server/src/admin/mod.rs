//! `admin`: one-off commands on the data of a server. They print JSON.

pub(crate) mod analytics;
pub(crate) mod audit;
pub(crate) mod database;
pub(crate) mod features;
pub(crate) mod keys;
pub(crate) mod models;
pub(crate) mod ready;
pub(crate) mod usage;
