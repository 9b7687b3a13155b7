//! A scenario has the same results against the simulator and against moto, in process: only of behaviours that moto has right.
//!
//! Those of ELBv2 (a target group in use, an unknown certificate) have no scenario: the provider creates no load balancers, target groups
//! and listeners, and neither does the simulator. It has those that controllers of a cluster left behind, lists them and deletes them.

use std::process::Command;

use textnlp_sim::aws::route53;
use textnlp_sim::{Options, Scope, Simulator, aws};

const SCRIPT: &str = include_str!("moto.py");
/// The hosted zone of the simulator: it has no operation that creates one.
const ZONE: &str = "Z0123456789EXAMPLE";

/// What each call of a scenario gave.
fn results(scenario: &str, simulator: Option<&Simulator>) -> serde_json::Value {
    let mut python = Command::new(aws::model::python().unwrap());
    python.args(["-c", SCRIPT, scenario]).env_clear();
    python.env("AWS_ACCESS_KEY_ID", Simulator::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", Simulator::SECRET_KEY);
    python.env("AWS_DEFAULT_REGION", "eu-west-1").env("AWS_EC2_METADATA_DISABLED", "true");
    match simulator {
        Some(simulator) => python.env("AWS_ENDPOINT_URL", simulator.url()).env("ZONE", ZONE),
        None => python.env("MOTO_IAM_LOAD_MANAGED_POLICIES", "true"),
    };
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn compare(scenario: &str) {
    let simulator = Simulator::start(Options::zero_latency());
    route53::zone(&mut simulator.world(), &Scope::global("123456789012"), ZONE, "example.com", false);
    let ours = results(scenario, Some(&simulator));
    assert!(ours.as_array().is_some_and(|calls| calls.len() >= 6), "{ours}");
    assert_eq!(ours, results(scenario, None));
}

#[test]
fn s3_conditional_writes() {
    compare("conditional_writes");
}

#[test]
fn s3_bucket_configuration_read_back() {
    compare("bucket_settings");
}

#[test]
fn ec2_network_creation_error_codes_and_tag_filters() {
    compare("network_errors");
}

#[test]
fn iam_role_attach_detach_delete_conflicts() {
    compare("role_conflicts");
}

#[test]
fn ecr_tag_immutability() {
    compare("immutable_tags");
}

#[test]
fn secrets_manager_tokens() {
    compare("secret_tokens");
}

#[test]
fn eks_delete_with_node_groups() {
    compare("cluster_with_nodes");
}

#[test]
fn route53_change_batch_errors() {
    compare("change_batches");
}
