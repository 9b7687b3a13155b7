//! The layout of `--help`: commands in groups, and examples.

use std::fmt::Write;

use clap::builder::Styles;
use clap::{Command, CommandFactory};

use crate::args::Cli;

/// The groups of the command list, in the order of a first reading.
const GROUPS: [(&str, &[&str]); 9] = [
    ("Deploy", &["preflight", "plan", "up", "apply", "gate", "phase", "down"]),
    (
        "Operate",
        &[
            "status",
            "metrics",
            "analytics",
            "probe",
            "performance",
            "cost",
            "logs",
            "analyze",
            "doctor",
            "deps",
            "db",
            "cleanup",
            "feature",
        ],
    ),
    ("Use the service", &["generate", "chat", "embed", "batch", "tokenize", "validate", "health", "load"]),
    ("Environments", &["init", "env", "providers", "model", "export"]),
    ("Access and records", &["key", "secret", "audit", "security", "compliance", "alert", "support-bundle"]),
    ("Releases", &["release", "promote", "rollback", "rollout", "baseline"]),
    ("Bundles", &["bundle"]),
    ("Recovery", &["backup", "restore", "dr"]),
    ("State", &["explain", "drift", "state", "hold"]),
];

/// The last group: for scripts and other programs.
const OTHERS: (&str, &[&str]) = ("Other", &["serve", "kube-token", "completions", "man", "help"]);

/// Examples of commands that have no other text below their options.
const EXAMPLES: [(&str, &[&str]); 21] = [
    ("init", &["init", "init my-service"]),
    ("preflight", &["preflight --env staging"]),
    (
        "plan",
        &[
            "plan --env staging",
            "plan --env staging --out staging.plan",
            "plan --env staging --down",
            "plan --env staging --costs",
            "plan --env pilot --compare aws,gcp,azure",
        ],
    ),
    (
        "up",
        &[
            "up --env staging",
            "up --env staging --yes --reason release-42",
            "up --env development --set server.api.port=8081",
        ],
    ),
    ("status", &["status --env staging", "status --env staging --output json"]),
    ("explain", &["explain --env staging here/server/replica-0"]),
    ("logs", &["logs --env staging", "logs --env staging gateway --follow", "logs errors --env staging --since 1h"]),
    (
        "gate",
        &[
            "gate --env staging",
            "gate --env staging --again",
            "gate --env pilot --waive availability --until 2026-12-31 --reason INC-7",
        ],
    ),
    (
        "down",
        &[
            "down --env staging",
            "down --env staging --delete-dumps staging",
            "down --env staging --delete-data staging",
        ],
    ),
    ("drift", &["drift --env staging"]),
    ("doctor", &["doctor --env staging"]),
    ("deps", &["deps --env staging", "deps --env pilot -o json", "deps check-updates --env staging"]),
    ("support-bundle", &["support-bundle --env staging"]),
    (
        "restore",
        &["restore backup_20261120.dump --key staging.key --up", "restore --env staging --at 2026-11-20T12:00:00Z"],
    ),
    ("generate", &["generate --env staging Hello", "generate --env staging Hello --max-tokens 40"]),
    ("chat", &["chat --env staging"]),
    ("embed", &["embed --env staging Hello", "embed --env staging Hello World --model bge-small"]),
    ("tokenize", &["tokenize --env staging Hello"]),
    ("health", &["health --env staging", "health check --env staging --all"]),
    ("completions", &["completions bash"]),
    ("man", &["man", "man --dir ~/.local/share/man/man1"]),
];

/// The command line with all its descriptions.
pub fn described() -> Command {
    let mut command = Cli::command();
    for (name, examples) in EXAMPLES {
        let lines: Vec<String> = examples.iter().map(|example| format!("  textnlp-deploy {example}")).collect();
        command = command.mut_subcommand(name, |sub| sub.after_help(format!("Examples:\n{}", lines.join("\n"))));
    }
    command
}

/// The command line with its help laid out.
pub fn command() -> Command {
    let mut command = described();
    let list = list(&command);
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    // The groups replace clap's own list.
    for name in names {
        command = command.mut_subcommand(name, |sub| sub.hide(true));
    }
    command.override_usage("textnlp-deploy [OPTIONS] <COMMAND>").help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}{{all-args}}{{after-help}}"
    ))
}

fn list(command: &Command) -> String {
    let heading = *Styles::styled().get_header();
    let mut text = String::new();
    for (group, names) in GROUPS.iter().chain([&OTHERS]) {
        let _ = writeln!(text, "{heading}{group}:{heading:#}");
        for name in *names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map_or("Print help for a command".to_owned(), ToString::to_string);
            let _ = writeln!(text, "  {name:<16}{about}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use textnlp_orchestrator::gate::phases::{IndicatorSource, PHASES};

    use super::*;

    #[test]
    fn every_visible_command_is_in_one_group() {
        let mut listed: Vec<&str> =
            GROUPS.iter().chain([&OTHERS]).flat_map(|(_, names)| names.iter().copied()).collect();
        let command = Cli::command();
        let mut visible: Vec<&str> =
            command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name).collect();
        visible.push("help");
        listed.sort_unstable();
        visible.sort_unstable();
        assert_eq!(listed, visible);
    }

    #[test]
    fn examples_are_valid_and_shown() {
        for (name, examples) in EXAMPLES {
            for example in examples {
                let words = ["textnlp-deploy"].into_iter().chain(example.split(' '));
                let parsed = command().try_get_matches_from(words).unwrap();
                assert_eq!(parsed.subcommand_name(), Some(name), "{example}");
            }
            let help = command().try_get_matches_from(["textnlp-deploy", name, "--help"]).unwrap_err().to_string();
            assert!(help.contains(examples[0]), "{help}");
        }
    }

    /// The examples below the help of a command and its subcommands, without their explanations.
    fn examples_of(command: &Command, found: &mut Vec<String>) {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("textnlp-deploy "));
        found.extend(lines.filter_map(|line| line.split("  ").next()).map(|example| example.trim().to_owned()));
        command.get_subcommands().for_each(|sub| examples_of(sub, found));
    }

    #[test]
    fn examples_of_the_operating_commands_are_valid() {
        let (command, mut found) = (command(), Vec::new());
        for name in [
            "logs",
            "metrics",
            "analytics",
            "batch",
            "probe",
            "cost",
            "performance",
            "baseline",
            "health",
            "load",
            "security",
            "compliance",
            "db",
            "deps",
            "cleanup",
            "feature",
            "release",
        ] {
            examples_of(command.find_subcommand(name).unwrap(), &mut found);
        }
        assert!(found.len() >= 8, "{found:?}");
        for example in found {
            accept(&command, &words(&format!("textnlp-deploy {example}")), &example);
        }
    }

    #[test]
    fn commands_in_the_documentation_are_valid() {
        let (command, mut count) = (command(), 0);
        for (page, line) in textnlp_tests::guide::shell_lines() {
            let words = words(&line);
            // Variables of the command stand before it.
            let begin = words.iter().take_while(|word| is_variable(word)).count();
            if words.get(begin).is_some_and(|first| first == "textnlp-deploy") {
                accept(&command, &words[begin..], &format!("{page}: {line}"));
                count += 1;
            }
        }
        assert!(count >= 320, "{count} commands were found");
    }

    /// The flags of short forms in a text: `` `down --delete-data` ``.
    #[test]
    fn flags_in_the_text_of_the_documentation_exist() {
        let (command, mut count) = (command(), 0);
        for (page, span) in textnlp_tests::guide::code_spans() {
            let words = words(span.strip_prefix("textnlp-deploy ").unwrap_or(&span));
            let mut path = vec![&command];
            for word in &words {
                let last: &Command = path[path.len() - 1];
                let Some(sub) = last.find_subcommand(word) else { break };
                path.push(sub);
            }
            if path.len() == 1 {
                continue;
            }
            let known: BTreeSet<&str> = path
                .iter()
                .flat_map(|command| command.get_arguments())
                .filter_map(|argument| argument.get_long_and_visible_aliases())
                .flatten()
                .chain(["help"])
                .collect();
            for word in words.iter().take_while(|word| *word != "--").filter_map(|word| word.strip_prefix("--")) {
                let end = word.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
                let flag = &word[..end.unwrap_or(word.len())];
                assert!(flag.is_empty() || known.contains(flag), "{page}: `{span}` has no flag --{flag}");
                count += 1;
            }
        }
        assert!(count >= 150, "{count} flags were found");
    }

    #[test]
    fn commands_of_the_phases_are_valid() {
        let command = command();
        for definition in &PHASES {
            let name = definition.phase.as_str();
            let steps = definition.steps.iter().map(|step| step.command.line(name));
            let watched = definition.indicators().filter_map(|indicator| match indicator.source {
                IndicatorSource::Command(command) => Some(command.line(name)),
                IndicatorSource::Metric(_) | IndicatorSource::Alert(_) => None,
            });
            for line in steps.chain(watched) {
                accept(&command, &words(&line), &format!("phase {name}: {line}"));
            }
        }
    }

    #[track_caller]
    fn accept(command: &Command, words: &[String], place: &str) {
        let parsed = command.clone().try_get_matches_from(words);
        parsed.unwrap_or_else(|error| panic!("{place}: {error}"));
    }

    /// The words of a line of a shell, up to a comment, a pipe, a redirection or the next command.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        for c in line.chars() {
            match quote {
                Some(open) if open == c => quote = None,
                Some(_) => word.push(c),
                None => match c {
                    '\'' | '"' => quote = Some(c),
                    '#' if word.is_empty() => break,
                    '|' | '>' | '<' | '&' | ';' => break,
                    ' ' => words.push(std::mem::take(&mut word)),
                    _ => word.push(c),
                },
            }
        }
        words.push(word);
        words.retain(|word| !word.is_empty());
        words
    }

    fn is_variable(word: &str) -> bool {
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        word.split_once('=').is_some_and(|(name, _)| is_name(name))
    }

    #[test]
    fn top_level_help_has_the_groups_and_options() {
        let help = command().try_get_matches_from(["textnlp-deploy", "--help"]).unwrap_err().to_string();
        for text in ["Recovery:\n  backup", "--state-dir", "Exit statuses:", "<COMMAND>"] {
            assert!(help.contains(text), "{text}: {help}");
        }
    }
}
