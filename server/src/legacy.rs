//! Command lines of older releases. Pods, recorded processes and the settings of running databases contain
//! `serve --role ROLE`.

use std::ffi::OsString;

/// A role, and the command that replaced it.
const ROLES: &[(&str, &[&str])] = &[
    ("server", &["serve"]),
    ("gateway", &["gateway"]),
    ("watch", &["agent"]),
    ("witness", &["witness"]),
    ("border", &["relay"]),
    ("postgres", &["postgres"]),
    ("migrate", &["admin", "migrate"]),
    ("database", &["admin", "check"]),
    ("keys", &["admin", "keys"]),
    ("audit", &["admin", "audit"]),
    ("models", &["admin", "models"]),
    ("ready", &["admin", "ready"]),
    ("backup", &["admin", "backup"]),
    ("base", &["admin", "base-backup"]),
    ("archive", &["admin", "archive-wal"]),
    ("fetch", &["admin", "restore-wal"]),
];

/// The arguments of a program in their current form: `serve --role ROLE` becomes the command of that role.
pub fn current(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let serve = arguments.iter().position(|argument| argument == "serve");
    let Some((serve, role)) = serve.and_then(|serve| {
        let role = arguments[serve..].iter().position(|argument| argument == "--role")?;
        Some((serve, serve + role))
    }) else {
        return arguments;
    };
    let named = arguments.get(role + 1).and_then(|name| ROLES.iter().find(|(known, _)| name == known));
    if let Some((_, command)) = named {
        arguments.drain(role..role + 2);
        arguments.splice(serve..=serve, command.iter().map(OsString::from));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::Command;

    #[derive(clap::Parser)]
    struct Program {
        #[command(subcommand)]
        command: Command,
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn every_legacy_role_maps_to_a_command() {
        for (role, command) in ROLES {
            let more = match *role {
                "backup" | "base" => " --out o",
                "archive" => " --segment s",
                "fetch" => " --segment s --out o",
                "migrate" => " --to 3",
                "keys" | "audit" => " --do {}",
                _ => "",
            };
            for text in
                [format!("p serve --role {role} --config c{more}"), format!("p serve --config c --role {role}{more}")]
            {
                let now = current(words(&text));
                assert_eq!(now, words(&format!("p {} --config c{more}", command.join(" "))));
                Program::try_parse_from(&now)
                    .map(|program| drop(program.command))
                    .unwrap_or_else(|e| panic!("{text}: {e}"));
            }
        }
    }

    #[test]
    fn other_command_lines_are_not_rewritten() {
        for text in [
            "p serve --config c",
            "p gateway --config c",
            "p serve --role boss --config c",
            "p serve --role",
            "p --role gateway",
        ] {
            assert_eq!(current(words(text)), words(text));
        }
        assert_eq!(current(words("p --env e serve --role gateway")), words("p --env e gateway"));
    }
}
