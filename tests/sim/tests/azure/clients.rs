//! Azure's own Python libraries drive every type: create, get, list and delete.

use std::path::Path;
use std::process::Command;

use textnlp_sim::azure::{AzureCloud, Options};

const SCRIPT: &str = include_str!("clients.py");

/// Runs the script against a simulated cloud; it fails with the script.
fn run(cloud: &AzureCloud) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../environments");
    let python = Command::new("bash").arg(script).args(["python", "azure"]).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let mut command = Command::new(String::from_utf8(python.stdout).unwrap().trim());
    let output = command.args(["-c", SCRIPT]).env_clear().envs(cloud.variables()).env("TOKEN", cloud.token()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What is left, without the role assignments of deleted identities.
fn left(cloud: &AzureCloud) -> Vec<String> {
    cloud.world().ids()
}

#[test]
fn every_type_lives_and_ends() {
    let cloud = AzureCloud::start(Options::zero_latency());
    run(&cloud);
    assert_eq!(left(&cloud), Vec::<String>::new());
}

#[test]
fn every_type_lives_and_ends_with_delays() {
    let cloud = AzureCloud::start(Options { seed: 7, ..Options::default() });
    run(&cloud);
    cloud.advance(std::time::Duration::from_secs(60));
    assert_eq!(left(&cloud), Vec::<String>::new());
}
