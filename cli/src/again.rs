//! Commands to type next: with the flags that lead to the same environment and the same state.

use std::fmt::Display;

use camino::Utf8PathBuf;

use crate::args::Global;

/// The flags of a session that a command typed next needs as well.
#[derive(Debug, Clone, Default)]
pub struct Again {
    file: Option<String>,
    state_dir: Option<String>,
    changes: Vec<(&'static str, String)>,
}

impl Again {
    /// What was typed. What a variable says goes on to say it, so commands stay short.
    pub fn of(global: &Global) -> Self {
        Self::beside(global, |variable| std::env::var(variable).ok())
    }

    fn beside(global: &Global, variable: impl Fn(&str) -> Option<String>) -> Self {
        let typed = |value: Option<String>, name: &str| value.filter(|value| variable(name).as_ref() != Some(value));
        let text = |path: &Option<Utf8PathBuf>| path.as_ref().map(ToString::to_string);
        let mut changes: Vec<_> = global.set.iter().map(|set| ("--set", set.clone())).collect();
        let flags = [
            ("--site", typed(global.site.clone(), "TEXTNLP_SITE")),
            ("--provider", typed(global.provider.clone(), "TEXTNLP_PROVIDER")),
            ("--server", typed(text(&global.server), "TEXTNLP_SERVER")),
        ];
        changes.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag, value?))));
        changes.extend(global.take_ownership.iter().map(|field| ("--take-ownership", field.clone())));
        // Where a variable names a file, `--env` beside it would be refused: the file is named again.
        Self { file: text(&global.file), state_dir: typed(text(&global.state_dir), "TEXTNLP_STATE_DIR"), changes }
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
        format!("textnlp-deploy {verb}{}", self.flags(environment))
    }

    /// What leads to this environment and its state, to stand behind a verb.
    pub fn flags(&self, environment: impl Display) -> String {
        let which = match &self.file {
            Some(file) => flag("--file", file),
            None => format!(" --env {environment}"),
        };
        which + &self.state_dir.as_deref().map(|folder| flag("--state-dir", folder)).unwrap_or_default()
    }

    /// The look at this session's file, else at these environments; at all of them when none is named.
    pub fn check(&self, environments: &str) -> String {
        match &self.file {
            Some(file) => format!("textnlp-deploy env check{}", flag("--file", file)),
            None => format!("textnlp-deploy env check {environments}").trim_end().to_owned(),
        }
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

    fn beside(flags: &[&str], variable: &str, value: &str) -> Again {
        let words = ["textnlp-deploy", "status"].iter().chain(flags);
        let global = Cli::try_parse_from(words).unwrap().global;
        Again::beside(&global, |name| (name == variable).then(|| value.to_owned()))
    }

    fn again(flags: &[&str]) -> Again {
        beside(flags, "", "")
    }

    #[test]
    fn what_a_variable_says_need_not_be_typed_again() {
        let of = |said: &str| beside(&["--state-dir", "/srv"], "TEXTNLP_STATE_DIR", said).named("up", "dev");
        assert_eq!(of("/srv"), "textnlp-deploy up --env dev");
        assert_eq!(of("/other"), "textnlp-deploy up --env dev --state-dir /srv");
    }

    #[test]
    fn commands_carry_the_flags_that_lead_back() {
        let plain = again(&["--env", "staging"]);
        assert_eq!(plain.same("up", "staging"), "textnlp-deploy up --env staging");
        let told =
            again(&["--file", "my env.yaml", "--state-dir", "/srv/it's", "--set", "scaling.min=2", "--site", "here"]);
        assert_eq!(
            (plain.check("pilot"), plain.check("")),
            ("textnlp-deploy env check pilot".into(), "textnlp-deploy env check".into())
        );
        assert_eq!(told.check("dev"), "textnlp-deploy env check --file 'my env.yaml'");
        assert_eq!(told.bare("model list"), r"textnlp-deploy model list --state-dir '/srv/it'\''s'");
        assert_eq!(told.named("up", "dev"), r"textnlp-deploy up --env dev --state-dir '/srv/it'\''s'");
        assert_eq!(told.command("up", "dev"), r"textnlp-deploy up --file 'my env.yaml' --state-dir '/srv/it'\''s'");
        assert_eq!(told.same("up", "dev"), told.command("up", "dev") + " --set scaling.min=2 --site here");
    }
}
