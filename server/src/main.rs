//! The lean build of the server programs, without clouds and without the command line for deploying.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use textnlp_server::Command;

#[derive(Parser)]
#[command(name = "textnlp-server", version, about = "Text generation over HTTP")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    textnlp_server::run(Program::parse_from(textnlp_server::current(std::env::args_os())).command)
}
