//! The simulated AWS, driven by its own Python client and by requests as no client sends them.
#![allow(clippy::unwrap_used)]

mod acm;
mod codecs;
mod eks;
mod ledger;
mod monitoring;
mod moto;
mod network;
mod refusals;
mod route53;
mod sagemaker;
mod storage;
mod vpc;

use std::process::Command;

use textnlp_sim::{Simulator, aws};

/// Runs a script of boto3 against a simulator; it fails with the script.
pub(crate) fn boto3(simulator: &Simulator, script: &str) -> String {
    let output = Command::new(aws::model::python().unwrap())
        .args(["-c", script])
        .env_clear()
        .env("AWS_ENDPOINT_URL", simulator.url())
        .env("AWS_ACCESS_KEY_ID", Simulator::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", Simulator::SECRET_KEY)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
