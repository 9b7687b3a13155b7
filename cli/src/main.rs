//! `textnlp-deploy`: one program with many roles. This file dispatches to the modules in `commands/`.

#![cfg_attr(test, allow(clippy::unwrap_used))]
// Nothing outside uses a program's items, so `pub` marks what a module offers to the others.
#![allow(unreachable_pub)]

mod alert_args;
mod args;
mod backup_args;
mod batch_args;
mod bundle_args;
mod check_view;
mod clouds;
mod commands;
mod deployment;
mod dr_args;
mod gate_args;
mod help;
mod network;
mod operations_args;
mod own_terminal;
mod plan_view;
mod progress;
mod report;
mod rerun_flags;
mod server_args;
mod service_user;
mod session;
mod signals;
mod state_args;
mod stores;
mod table_view;

use std::ffi::OsStr;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::CommandFactory;
use rustix::fs::Mode;

use crate::args::{Cli, Command};
use crate::report::{Console, Exit, Failure};

fn main() -> ExitCode {
    // aws-lc is the only provider that is linked in. A second installation fails harmlessly.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    textnlp_server::disable_core_dumps();
    // No file that this program or its children write is writable by other users.
    let umask = rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::umask(umask | Mode::WGRP | Mode::WOTH);
    let typed = help::command().try_get_matches_from(textnlp_server::current(std::env::args_os()));
    let cli = match typed.and_then(|matches| Cli::of_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // clap reports `--help` and `--version` as errors, but for users they succeed.
            if !error.use_stderr() {
                return code(match error.print() {
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Exit::Failed,
                    _ => Exit::Done,
                });
            }
            let typed: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
            let is_set = |variable: &OsStr| std::env::var_os(variable).is_some();
            let hint = meant(&error, &typed, is_environment).or_else(|| of_variables(&error, &typed, is_set));
            return code(match args::output_of(typed.into_iter()) {
                args::Output::Text => {
                    let _ = error.print();
                    hint.into_iter()
                        .for_each(|hint| Console::new(args::Output::Text, false).say(format!("\nhint: {hint}")));
                    Exit::Usage
                }
                output => Console::new(output, true).fail(&usage(&error, hint)),
            });
        }
    };
    // The server prints its own errors and sets its own exit status.
    if let Command::Server(command) = cli.command {
        return textnlp_server::run(command.0);
    }
    let console = Console::new(cli.global.output, cli.global.quiet);
    avoid_exposed_temporary_folder(console);
    code(match commands::run(cli, console) {
        Ok(success) => console.finish(success),
        Err(failure) => console.fail(&failure),
    })
}

/// Uses `/tmp` where other users control `TMPDIR`: they could replace what this command puts there.
fn avoid_exposed_temporary_folder(console: Console) {
    let Ok(folder) = std::env::temp_dir().canonicalize() else { return };
    if let Ok(Some(exposed)) = textnlp_files::check_parents(folder)
        && tempfile::env::override_temp_dir("/tmp".as_ref()).is_ok()
    {
        console.warn(format!("temporary files are in /tmp instead of TMPDIR: {exposed}"));
    }
}

/// The failure for an invalid command line. With JSON output it is a document too.
fn usage(error: &clap::Error, hint: Option<String>) -> Failure {
    let text = error.render().to_string();
    let is_end = |line: &&str| !line.starts_with("Usage:") && !line.trim_start().starts_with("tip:");
    let lines = text.lines().take_while(is_end).map(str::trim).filter(|line| !line.is_empty());
    let message = lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned();
    let used = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
    let command: Vec<&str> = used.split(' ').take_while(|word| !word.starts_with(['-', '[', '<'])).collect();
    let help = format!("{} --help", if command.is_empty() { "textnlp-deploy".to_owned() } else { command.join(" ") });
    Failure::usage("usage", anyhow::anyhow!("{message}")).hint(hint.unwrap_or(help))
}

/// Suggests `--env NAME` for an environment that was typed as a positional argument or with a single dash.
fn meant(error: &clap::Error, typed: &[String], exists: impl Fn(&str) -> bool) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    let after = typed.iter().position(|word| word == "-env").map(|at| typed.get(at + 1));
    let name = match after {
        Some(name) => name.map_or("NAME", String::as_str),
        None => unknown.as_str(),
    };
    exists(name).then(|| format!("did you mean `--env {name}`?"))
}

/// Whether there is an environment of this name for the working directory.
fn is_environment(name: &str) -> bool {
    let here = std::env::current_dir().ok().and_then(|here| Utf8PathBuf::try_from(here).ok());
    here.is_some_and(|here| session::locations(&here).0.find(name).is_ok())
}

/// Names the variables whose values an error is about: their options were not typed.
fn of_variables(error: &clap::Error, typed: &[String], is_set: impl Fn(&OsStr) -> bool) -> Option<String> {
    use clap::error::{ContextKind, ContextValue};
    let mut shown: Vec<&str> = Vec::new();
    for context in [ContextKind::InvalidArg, ContextKind::PriorArg] {
        match error.get(context) {
            Some(ContextValue::String(one)) => shown.push(one),
            Some(ContextValue::Strings(several)) => shown.extend(several.iter().map(String::as_str)),
            _ => {}
        }
    }
    // `--output <OUTPUT>`
    let is_shown = |long: &str| {
        let mut names = shown.iter().filter_map(|text| text.strip_prefix("--")?.split([' ', '=', '[']).next());
        names.any(|name| name == long)
    };
    let is_typed = |arg: &clap::Arg| {
        typed.iter().take_while(|word| *word != "--").any(|word| match word.strip_prefix("--") {
            Some(rest) => rest.split('=').next() == arg.get_long(),
            None => arg.get_short().is_some_and(|short| word.starts_with('-') && word.contains(short)),
        })
    };
    let root = Cli::command();
    let mut command = &root;
    let mut commands = vec![command];
    for word in typed {
        if let Some(below) = command.find_subcommand(word) {
            command = below;
            commands.push(below);
        }
    }
    let mut named = Vec::new();
    for arg in commands.iter().flat_map(|command| command.get_arguments()) {
        let (Some(long), Some(variable)) = (arg.get_long(), arg.get_env()) else { continue };
        if is_shown(long) && !is_typed(arg) && is_set(variable) {
            let variable = variable.to_string_lossy();
            named.push(format!("the value of --{long} is that of the variable {variable}: correct or unset it"));
        }
    }
    (!named.is_empty()).then(|| named.join("; "))
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn typed_state_dir_is_told_from_a_variable() {
        let is_typed = |more: &[&str]| {
            let words = ["textnlp-deploy"].iter().chain(more);
            Cli::of_matches(&help::command().try_get_matches_from(words).unwrap()).unwrap().global.is_state_dir_typed
        };
        assert!(is_typed(&["status", "--state-dir", "/srv"]) && is_typed(&["--state-dir=/srv", "backup", "list"]));
        assert!(!is_typed(&["status"]));
    }

    #[test]
    fn limits_of_a_new_key_are_checked_before_it_is_created() {
        let create = |more: &[&str]| {
            Cli::try_parse_from(["textnlp-deploy", "key", "create"].iter().chain(more))
                .map(drop)
                .map_err(|error| error.exit_code())
        };
        let long = "x".repeat(201);
        for wrong in [
            &["k", "--expires-days", "0"][..],
            &["k", "--expires-days", "36501"],
            &["k", "--expires-days", "3000000"],
            &[""],
            &[" "],
            &["a\nb"],
            &[long.as_str()],
            &["k", "--tenant", ""],
            &["k", "--tenant", "-a"],
            &["k", "--tenant", "A"],
        ] {
            assert_eq!(create(wrong), Err(2), "{wrong:?}");
        }
        for right in [&["k", "--expires-days", "1"][..], &["k", "--expires-days", "36500"], &[&long.as_str()[1..]]] {
            assert_eq!(create(right), Ok(()), "{right:?}");
        }
    }

    #[test]
    fn missing_env_flag_is_suggested() {
        let hint = |typed: &[&str]| {
            let error = Cli::try_parse_from(["textnlp-deploy"].iter().chain(typed)).unwrap_err();
            let typed: Vec<String> = typed.iter().map(ToString::to_string).collect();
            meant(&error, &typed, |name| name == "staging")
        };
        assert_eq!(hint(&["up", "staging"]).as_deref(), Some("did you mean `--env staging`?"));
        assert_eq!(hint(&["-env", "staging", "up"]).as_deref(), Some("did you mean `--env staging`?"));
        assert_eq!(hint(&["up", "nope"]), None);
        assert_eq!(hint(&["up", "--nonsense"]), None);
        assert_eq!(hint(&["stauts"]), None);
    }

    #[test]
    fn error_about_a_value_of_a_variable_names_the_variable() {
        let hint = |parsed: &[&str], typed: &[&str], set: &[&str]| {
            let error = Cli::try_parse_from(["textnlp-deploy"].iter().chain(parsed)).unwrap_err();
            let typed: Vec<String> = typed.iter().map(ToString::to_string).collect();
            of_variables(&error, &typed, |variable| set.iter().any(|name| variable == *name))
        };
        let wrong = ["status", "--output", "paper"];
        let of_variable = hint(&wrong, &["status"], &["TEXTNLP_OUTPUT"]).expect("it is named");
        assert!(of_variable.contains("--output is that of the variable TEXTNLP_OUTPUT"), "{of_variable}");
        assert_eq!(hint(&wrong, &["status"], &[]), None);
        for typed in [&["status", "--output", "paper"][..], &["status", "-o", "paper"], &["status", "--output=paper"]] {
            assert_eq!(hint(typed, typed, &["TEXTNLP_OUTPUT"]), None, "{typed:?}");
        }
        let conflict = ["status", "--env", "staging", "--file", "a.yaml"];
        let of_variable = hint(&conflict, &["status", "--file", "a.yaml"], &["TEXTNLP_ENV"]).expect("it is named");
        assert!(of_variable.contains("TEXTNLP_ENV"), "{of_variable}");
        let wrong = ["bundle", "serve", "a.tar", "--listen", "here"];
        let of_variable = hint(&wrong, &["bundle", "serve", "a.tar"], &["TEXTNLP_LISTEN"]).expect("it is named");
        assert!(of_variable.contains("TEXTNLP_LISTEN"), "{of_variable}");
    }

    #[test]
    fn help_is_available_as_a_command() {
        for typed in [&["help"][..], &["help", "up"], &["help", "state", "repair"]] {
            let error = Cli::try_parse_from(["textnlp-deploy"].iter().chain(typed)).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{typed:?}");
        }
    }
}
