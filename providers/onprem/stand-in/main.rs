//! The server program as far as this provider sees it: commands, sockets, signals, answers. Used by the tests of this crate.
//!
//! `api.stand_in` in `server.yaml` makes it misbehave: `crash`, `ready_after_ms`, `answer_after_ms`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test's program")]

mod database;
mod gateway;
mod recovery;
mod server;

use std::path::PathBuf;

/// What the command line says.
struct Arguments {
    command: String,
    config: PathBuf,
    to: Option<u64>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value =
        |flag: &str| arguments.iter().position(|argument| argument == flag).map(|place| arguments[place + 1].clone());
    match arguments.get(1).map(String::as_str) {
        Some("supervise") => {
            let folder = value("--folder").unwrap();
            if arguments.iter().any(|argument| argument == "--certificate") {
                if let Err(why) = textnlp_onprem::supervise::renew_certificate(folder.as_str().into()) {
                    eprintln!("{why}");
                    std::process::exit(1);
                }
                return;
            }
            if let Err(error) = textnlp_onprem::supervise::run(folder.as_str().into(), value("--child").as_deref()) {
                eprintln!("{error}: {:?}", std::error::Error::source(&error));
                std::process::exit(1);
            }
        }
        Some(program @ ("serve" | "gateway" | "agent" | "witness" | "relay" | "admin")) => serve(&Arguments {
            command: if program == "admin" { arguments[2].clone() } else { program.to_owned() },
            config: value("--config").unwrap().into(),
            to: value("--to").map(|to| to.parse().unwrap()),
        }),
        Some("inject") => inject(value("--state").unwrap().as_str().into(), &value("--fault").unwrap()),
        _ => std::process::exit(2),
    }
}

/// A fault by a process of its own, whose locks are not those of the test that wants to see them respected.
fn inject(state: &camino::Utf8Path, fault: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let faults = textnlp_onprem::fault::Faults::new(state, "/proc/self/exe".into());
    match runtime.block_on(faults.inject(&serde_json::from_str(fault).unwrap())) {
        Ok(()) => println!("injected"),
        Err(error) => println!("{error}"),
    }
}

fn serve(arguments: &Arguments) {
    let text = std::fs::read_to_string(&arguments.config).unwrap();
    let config: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match arguments.command.as_str() {
        "serve" => runtime.block_on(server::serve(&config["textnlp"])),
        "gateway" => runtime.block_on(gateway::serve(&arguments.config)),
        "migrate" => database::migrate(&config["textnlp"], arguments.to),
        "keys" => database::keys(&config["textnlp"]),
        "agent" => runtime.block_on(recovery::serve(&config["watch"])),
        "relay" => runtime.block_on(recovery::serve(&config["border"])),
        "witness" => runtime.block_on(recovery::serve(&config["witness"])),
        other => panic!("command {other}"),
    }
}
