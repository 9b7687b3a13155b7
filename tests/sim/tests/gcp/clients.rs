//! Google's own Python client drives every kind: create, get, list and delete.

use std::process::Command;

use textnlp_sim::aws::model;
use textnlp_sim::gcp::{GoogleCloud, Options};

/// Runs a script of Google's clients against a simulated cloud; it fails with the script. Gives what it prints.
pub(crate) fn python(cloud: &GoogleCloud, script: &str) -> String {
    let output = Command::new(model::python().unwrap())
        .args(["-c", script])
        .env_clear()
        .envs(cloud.variables())
        .env("TOKEN", cloud.token())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const SCRIPT: &str = include_str!("clients.py");

#[test]
fn every_kind_lives_and_ends() {
    let cloud = GoogleCloud::start(Options::zero_latency().enabled());
    python(&cloud, SCRIPT);
    let left: Vec<String> = cloud.world().keys().into_iter().filter(|key| !is_kept(key)).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn every_kind_lives_and_ends_with_delays() {
    let cloud = GoogleCloud::start(Options { seed: 7, ..Options::default() }.enabled());
    cloud.world().conduct.producer_hold = 0..0;
    python(&cloud, SCRIPT);
    let left: Vec<String> = cloud.world().keys().into_iter().filter(|key| !is_kept(key)).collect();
    assert!(left.is_empty(), "{left:#?}");
}

/// Catalogues, and keys, which are not deleted.
fn is_kept(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    let is_of_catalogue = parts.iter().any(|part| ["machineTypes", "acceleratorTypes"].contains(part));
    key.starts_with("cloudkms/") || is_of_catalogue || parts.len() == 5 && parts[3] == "zones"
}
