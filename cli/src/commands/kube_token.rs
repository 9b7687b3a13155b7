//! `kube-token`: the credential plugin in a kubeconfig's `exec`, for kubectl, Helm and this program. Only an
//! ExecCredential goes to stdout.

use anyhow::Context;

use crate::args::KubeToken;
use crate::clouds;
use crate::report::{Failure, Success};

/// `kube-token aws|gcp|azure`.
pub fn kube_token(args: &KubeToken) -> Result<Success, Failure> {
    // A few sequential requests need one thread only.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let credential = runtime.block_on(clouds::kube_token(args));
    // A pending DNS lookup must not delay the exit.
    runtime.shutdown_background();
    let credential = credential?;
    // With `--output json`, the same members are in the document that every command prints.
    Ok(Success::new(credential.to_string(), credential))
}
