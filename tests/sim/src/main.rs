//! A simulated cloud for clients in other processes: prints its address, and ends with its standard input.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::io::Read;
use std::process::ExitCode;

use textnlp_sim::{Behaviour, Options, Simulator, aws, azure, gcp};

fn main() -> ExitCode {
    let options = match std::env::args().nth(1).as_deref() {
        None => Options::default(),
        Some("--zero-latency") => Options::zero_latency(),
        Some("--ledger") => {
            ledger(aws::ledger());
            ledger(gcp::ledger());
            ledger(azure::ledger());
            return ExitCode::SUCCESS;
        }
        Some("--gcp") => return google_cloud(),
        Some("--azure") => return azure_cloud(),
        Some(_) => {
            eprintln!("usage: textnlp-sim [--zero-latency | --gcp | --azure | --ledger]");
            return ExitCode::from(2);
        }
    };
    let simulator = Simulator::start(options);
    let address = serde_json::json!({
        "url": simulator.url(),
        "access_key": Simulator::ACCESS_KEY,
        "secret_key": Simulator::SECRET_KEY,
    });
    println!("{address}");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let violations = simulator.take_violations();
    violations.iter().for_each(|violation| eprintln!("{violation}"));
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves Google Cloud with all APIs enabled and no delays; the variables lead clients to it.
fn google_cloud() -> ExitCode {
    let cloud = gcp::GoogleCloud::start(gcp::Options::zero_latency().enabled());
    let variables: serde_json::Map<_, _> =
        cloud.variables().into_iter().map(|(name, value)| (name, value.into())).collect();
    println!("{}", serde_json::json!({ "url": cloud.url(), "token": cloud.token(), "variables": variables }));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let violations = cloud.take_violations();
    violations.iter().for_each(|violation| eprintln!("{violation}"));
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves Azure with all namespaces registered and no delays; the variables sign clients in.
fn azure_cloud() -> ExitCode {
    let cloud = azure::AzureCloud::start(azure::Options::zero_latency().registered());
    let variables: serde_json::Map<_, _> =
        cloud.variables().into_iter().map(|(name, value)| (name, value.into())).collect();
    println!("{}", serde_json::json!({ "url": cloud.url(), "token": cloud.token(), "variables": variables }));
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let violations = cloud.take_violations();
    violations.iter().for_each(|violation| eprintln!("{violation}"));
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn ledger((behaviours, counts): (Vec<Behaviour>, HashMap<&'static str, usize>)) {
    for behaviour in behaviours {
        let Behaviour { service, what, source } = behaviour;
        let cited = if source.cited().is_empty() { String::new() } else { format!(" ({})", source.cited()) };
        println!("{:<14} {service:<24} {what}{cited}", source.kind());
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    counts.iter().for_each(|(kind, count)| println!("{count:>5} {kind}"));
}
