//! Builds the commands that hints suggest, with the flags for the same environment and state.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
pub use textnlp_provider::units::quoted;

/// The commands that hints of providers name without the flags of an environment.
const ABOUT_AN_ENVIRONMENT: &[&str] = &["plan --policy", "logs", "state import"];
/// The same, with more after it.
const ABOUT_OBJECTS: [&str; 2] = ["explain ", "state import "];

/// The flags that a suggested command needs as well. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RerunFlags {
    /// The environment that `--env` selects.
    pub env: Option<String>,
    /// The environment file of `--file`.
    pub file: Option<String>,
    /// The folder of `--state-dir`.
    #[serde(skip)]
    pub state_dir: Option<String>,
    /// The program as a shell finds it, if not by its name alone.
    #[serde(skip)]
    pub program: Option<String>,
    /// Flags that change values of the environment.
    pub changes: Vec<(String, String)>,
}

impl RerunFlags {
    fn program(&self) -> &str {
        self.program.as_deref().unwrap_or("textnlp-deploy")
    }

    /// A command without an environment.
    pub fn bare(&self, words: &str) -> String {
        let state = self.state_dir.as_deref().map(|folder| flag("--state-dir", folder));
        format!("{} {words}{}", self.program(), state.unwrap_or_default())
    }

    /// A command about an environment of the library, whichever file this session uses.
    pub fn named(&self, verb: &str, environment: impl Display) -> String {
        self.bare(&format!("{verb} --env {environment}"))
    }

    /// A command about this environment.
    pub fn command(&self, verb: &str, environment: impl Display) -> String {
        format!("{} {verb}{}", self.program(), self.flags(environment))
    }

    /// A hint of a provider, which knows no flags: its commands about an environment, between backquotes, get those of this
    /// one.
    pub fn complete(&self, hint: &str, environment: impl Display) -> String {
        let is_about =
            |verb: &str| ABOUT_AN_ENVIRONMENT.contains(&verb) || ABOUT_OBJECTS.iter().any(|of| verb.starts_with(of));
        let complete = |(n, part): (usize, &str)| match part.strip_prefix("textnlp-deploy ") {
            Some(verb) if n % 2 == 1 && is_about(verb) => self.command(verb, &environment),
            _ => part.to_owned(),
        };
        hint.split('`').enumerate().map(complete).collect::<Vec<_>>().join("`")
    }

    /// The flags after the verb that select this environment and its state.
    pub fn flags(&self, environment: impl Display) -> String {
        let which = match &self.file {
            Some(file) => flag("--file", file),
            None => format!(" --env {environment}"),
        };
        which + &self.state_dir.as_deref().map(|folder| flag("--state-dir", folder)).unwrap_or_default()
    }

    /// The `env check` command, as the end of a hint: for this session's file, else this environment, else the one from the
    /// command line. Names changed values after the command without repeating them, because one may be a secret that was
    /// written out. Checks all environments if none is named.
    pub fn check(&self, environment: &str) -> String {
        let named = Some(environment).filter(|name| !name.is_empty()).or(self.env.as_deref());
        let which = match (&self.file, named) {
            (Some(file), _) => flag("--file", file),
            (None, Some(name)) => flag("--env", name),
            (None, None) => String::new(),
        };
        let (mut flags, mut same) = (String::new(), Vec::new());
        for (name, value) in self.changes.iter().filter(|_| !which.is_empty()) {
            match value.split_once('=') {
                Some((key, _)) => same.push(format!("`{name} {key}`")),
                None => flags.push_str(&flag(name, value)),
            }
        }
        let same = if same.is_empty() { String::new() } else { format!(", with the same {}", same.join(", ")) };
        format!("{} env check{which}{flags}{same}", self.program())
    }

    /// A command for the same environment, with the values that this run changed.
    pub fn same(&self, verb: &str, environment: impl Display) -> String {
        let changes: String = self.changes.iter().map(|(name, value)| flag(name, value)).collect();
        self.command(verb, environment) + &changes
    }
}

fn flag(name: &str, value: &str) -> String {
    format!(" {name} {}", quoted(value))
}
