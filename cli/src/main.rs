//! `textnlp-deploy`: one program, many roles. The verbs live in `commands/`, one file each; this file only picks one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod client;
mod clouds;
mod commands;
mod progress;
mod report;
mod session;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::report::{Console, Exit};

fn main() -> ExitCode {
    // aws-lc is the only provider that is linked in; installing it twice is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // `--help` and `--version` are errors to clap, and done to a person.
            return code(if error.use_stderr() { Exit::Usage } else { Exit::Done });
        }
    };
    let console = Console::new(cli.global.output, cli.global.quiet);
    code(match commands::run(cli, console) {
        Ok(success) => console.finish(success),
        Err(failure) => console.fail(&failure),
    })
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
