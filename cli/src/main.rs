//! `textnlp-deploy`: one program, many roles. The verbs live in `commands/`, one file each; this file only picks one.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// A program has no outside: `pub` says here which module offers what.
#![allow(unreachable_pub)]

mod args;
mod client;
mod clouds;
mod commands;
mod deployment;
mod plan_view;
mod progress;
mod report;
mod session;
mod signals;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
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
    // A server's own exit statuses and error lines; nothing of ours around them.
    if let Command::Serve(args) = cli.command {
        return textnlp_server::run(args);
    }
    let console = Console::new(cli.global.output, cli.global.quiet);
    code(match commands::run(cli, console) {
        Ok(success) => console.finish(success),
        Err(failure) => console.fail(&failure),
    })
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
