//! `kube-token`: what kubectl, Helm and this program ask a kubeconfig's `exec` for. Only an ExecCredential goes to stdout.

use anyhow::Context;

use crate::args::KubeToken;
use crate::clouds;
use crate::report::{Failure, Success};

/// `kube-token aws|gcp|azure`.
pub fn kube_token(args: &KubeToken) -> Result<Success, Failure> {
    // A few questions, one after the other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let credential = runtime.block_on(clouds::kube_token(args));
    // A name that nobody resolves keeps no one waiting.
    runtime.shutdown_background();
    let credential = credential?;
    // Whoever asked for JSON gets the same members within the document that every command prints.
    Ok(Success::new(credential.to_string(), credential))
}
