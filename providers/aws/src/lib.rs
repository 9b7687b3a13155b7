//! Amazon Web Services.
#![forbid(unsafe_code)]
