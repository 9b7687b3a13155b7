//! Amazon Web Services.
#![forbid(unsafe_code)]

pub mod tables;
