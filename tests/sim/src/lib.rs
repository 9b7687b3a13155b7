//! Simulators of cloud APIs.
#![forbid(unsafe_code)]
