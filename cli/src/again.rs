//! Commands to type next: with the flags that lead to the same environment and the same state.

use std::fmt::Display;

use crate::args::Global;

/// The flags of a session that a command typed next needs as well.
#[derive(Debug, Clone, Default)]
pub struct Again {
    file: Option<String>,
    state_dir: Option<String>,
    changes: Vec<(&'static str, String)>,
}

impl Again {
    /// What was given, on the command line or by variables.
    pub fn of(global: &Global) -> Self {
        let mut changes: Vec<_> = global.set.iter().map(|set| ("--set", set.clone())).collect();
        let flags = [
            ("--site", global.site.clone()),
            ("--provider", global.provider.clone()),
            ("--server", global.server.as_ref().map(ToString::to_string)),
        ];
        changes.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag, value?))));
        Self {
            file: global.file.as_ref().map(ToString::to_string),
            state_dir: global.state_dir.as_ref().map(ToString::to_string),
            changes,
        }
    }

    /// A command about no environment.
    pub fn bare(&self, words: &str) -> String {
        let state = self.state_dir.as_deref().map(|folder| flag("--state-dir", folder));
        format!("textnlp-deploy {words}{}", state.unwrap_or_default())
    }

    /// A command about an environment of the library, whatever file this one came from.
    pub fn named(&self, verb: &str, environment: impl Display) -> String {
        self.bare(&format!("{verb} --env {environment}"))
    }

    /// A command about this environment.
    pub fn command(&self, verb: &str, environment: impl Display) -> String {
        match &self.file {
            Some(file) => self.bare(&format!("{verb}{}", flag("--file", file))),
            None => self.named(verb, environment),
        }
    }

    /// The look at what was just mended: this file's, else every environment's.
    pub fn check(&self) -> String {
        let file = self.file.as_deref().map(|file| flag("--file", file));
        format!("textnlp-deploy env check{}", file.unwrap_or_default())
    }

    /// A command that is to do what this one looked at: with the values that were changed for this run.
    pub fn same(&self, verb: &str, environment: impl Display) -> String {
        let changes: String = self.changes.iter().map(|(name, value)| flag(name, value)).collect();
        self.command(verb, environment) + &changes
    }
}

fn flag(name: &str, value: &str) -> String {
    format!(" {name} {}", quoted(value))
}

/// A word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    fn again(flags: &[&str]) -> Again {
        let words = ["textnlp-deploy", "status"].iter().chain(flags);
        Again::of(&Cli::try_parse_from(words).unwrap().global)
    }

    #[test]
    fn commands_carry_the_flags_that_lead_back() {
        let plain = again(&["--env", "staging"]);
        assert_eq!(plain.same("up", "staging"), "textnlp-deploy up --env staging");
        let told =
            again(&["--file", "my env.yaml", "--state-dir", "/srv/it's", "--set", "scaling.min=2", "--site", "here"]);
        assert_eq!(told.bare("model list"), r"textnlp-deploy model list --state-dir '/srv/it'\''s'");
        assert_eq!(told.named("up", "dev"), r"textnlp-deploy up --env dev --state-dir '/srv/it'\''s'");
        assert_eq!(told.command("up", "dev"), r"textnlp-deploy up --file 'my env.yaml' --state-dir '/srv/it'\''s'");
        assert_eq!(told.same("up", "dev"), told.command("up", "dev") + " --set scaling.min=2 --site here");
    }
}
