//! `textnlp-deploy`: one program, many roles. The verbs live in `commands/`, one file each; this file only picks one.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// A program has no outside: `pub` says here which module offers what.
#![allow(unreachable_pub)]

mod again;
mod alert_args;
mod args;
mod backup_args;
mod bundle_args;
mod client;
mod clouds;
mod commands;
mod deployment;
mod dr_args;
mod plan_view;
mod progress;
mod report;
mod session;
mod signals;
mod state_args;
mod stores;
mod workplace;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::report::{Console, Exit, Failure};

fn main() -> ExitCode {
    // aws-lc is the only provider that is linked in; installing it twice is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` are errors to clap, and done to a person.
            if !error.use_stderr() {
                let _ = error.print();
                return code(Exit::Done);
            }
            return code(match args::output_of(std::env::args().skip(1)) {
                args::Output::Text => {
                    let _ = error.print();
                    Exit::Usage
                }
                output => Console::new(output, true).fail(&usage(&error)),
            });
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

/// A mistyped command line, for programs: they get one document whatever happens.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Failure::usage("usage", anyhow::anyhow!("{message}")).hint("textnlp-deploy --help")
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
