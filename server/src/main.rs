//! The lean build of the server, without clouds and without the command line for deploying.

use std::process::ExitCode;

use clap::Parser;
use textnlp_server::ServeArgs;

#[derive(Parser)]
#[command(name = "textnlp-server", version, about = "Text generation over HTTP")]
enum Program {
    /// Run a server, a gateway, a migration or a command about keys
    Serve(ServeArgs),
}

fn main() -> ExitCode {
    let Program::Serve(args) = Program::parse();
    textnlp_server::run(args)
}
