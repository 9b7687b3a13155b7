//! A simulated cloud for clients in other processes: prints its address, and ends with its standard input.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::io::Read;

use textnlp_sim::{Options, Simulator, aws};

fn main() {
    let options = match std::env::args().nth(1).as_deref() {
        None => Options::default(),
        Some("--zero-latency") => Options::zero_latency(),
        Some("--ledger") => return ledger(),
        Some(_) => {
            println!("usage: textnlp-sim [--zero-latency | --ledger]");
            return;
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
}

fn ledger() {
    let (behaviours, counts) = aws::ledger();
    for behaviour in behaviours {
        println!("{:<14} {:<24} {}", behaviour.source.kind(), behaviour.service, behaviour.what);
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    counts.iter().for_each(|(kind, count)| println!("{count:>5} {kind}"));
}
