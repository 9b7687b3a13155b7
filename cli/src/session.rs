//! What every command starts from: which environment, where its state lies, and how its service is reached.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Source;
use textnlp_orchestrator::environment::{FlagValue, Library, LoadError, Loaded, Overrides, Severity};
use textnlp_provider::{EnvironmentName, Secret};

use crate::again::Again;
use crate::args::Global;
use crate::client::{self, Target};
use crate::clouds;
use crate::report::{Console, Failure};

/// The flags, and where things are.
pub struct Session {
    /// The flags.
    pub global: Global,
    /// Where the command was typed.
    pub here: Utf8PathBuf,
    /// Where environment files are found.
    pub library: Library,
    /// Whether variables that change values are passed over: its file says everything.
    pub is_alone: bool,
}

/// An environment that was loaded, with the place of its state.
pub struct Chosen {
    /// The environment.
    pub loaded: Loaded,
    /// Its name.
    pub name: EnvironmentName,
    /// The folder of its state.
    pub folder: Utf8PathBuf,
}

impl Session {
    /// Looks around; reads nothing but the working directory's name.
    pub fn new(global: Global) -> Result<Self, Failure> {
        let here = std::env::current_dir().context("find the working directory")?;
        let here = Utf8PathBuf::try_from(here).map_err(|e| {
            Failure::usage("path_not_utf8", anyhow::Error::new(e).context("the working directory's name is not UTF-8"))
                .hint("work in a folder whose path is UTF-8")
        })?;
        let library = Library::from_working_directory(&here);
        Ok(Self { global, here, library, is_alone: false })
    }

    /// A session about an environment whose file says everything, whatever variables say.
    pub fn alone(global: Global) -> Result<Self, Failure> {
        Ok(Self { is_alone: true, ..Self::new(global)? })
    }

    /// Where this session writes, and how much.
    pub fn console(&self) -> Console {
        Console::new(self.global.output, self.global.quiet)
    }

    /// Commands to type next.
    pub fn again(&self) -> Again {
        Again::of(&self.global)
    }

    /// Variables, `--set` and the flags that are short for one.
    pub fn overrides(&self) -> Overrides {
        let changes = |name: &str| self.is_alone && name.starts_with("TEXTNLP_SET__");
        let variables = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .filter(|(name, _)| !changes(name))
            .collect();
        let flags = self
            .global
            .provider
            .iter()
            .map(|p| FlagValue {
                flag: "--provider".into(),
                path: "sites[*].provider".into(),
                value: p.as_str().into(),
            })
            .collect();
        Overrides { variables, sets: self.global.set.clone(), flags }
    }

    /// The environment of `--file` or `--env`.
    pub fn load(&self, console: Console) -> Result<Chosen, Failure> {
        let loaded = match (&self.global.file, &self.global.env) {
            (Some(file), _) => self.library.load_file(file, &self.overrides(), &clouds::catalogue()),
            (None, Some(name)) => self.library.load(name, &self.overrides(), &clouds::catalogue()),
            (None, None) => {
                let name = self.only_environment()?;
                self.library.load(&name, &self.overrides(), &clouds::catalogue())
            }
        }
        .map_err(|e| invalid(e, &self.again()))?;
        for problem in &loaded.report.0 {
            console.say(problem.to_string());
        }
        let name = loaded.environment.environment.clone();
        if let Some(asked) =
            self.global.env.as_deref().filter(|asked| *asked != name.as_str() && self.global.file.is_none())
        {
            let file = loaded.files.first().map_or("its file", String::as_str);
            let error = anyhow::anyhow!("{file} says `environment: {name}`, and `{asked}` was asked for");
            return Err(Failure::usage("other_environment", error)
                .hint(format!("write `environment: {asked}` there, or ask for --env {name}")));
        }
        known_models(&loaded, &self.again())?;
        let folder = self.state_folder(&name)?;
        Ok(Chosen { loaded, name, folder })
    }

    /// Loads the environment and refuses one that cannot run here: a provider that is not there yet.
    pub fn load_to_run(&self, console: Console) -> Result<Chosen, Failure> {
        self.load_unless(console, |_| true)
    }

    /// Loads the environment to take away what runs. Only what says where that is matters; what it is made of may be missing.
    pub fn load_to_remove(&self, console: Console) -> Result<Chosen, Failure> {
        self.load_unless(console, |path| path.starts_with("state.") || path.starts_with("sites["))
    }

    fn load_unless(&self, console: Console, matters: impl Fn(&str) -> bool) -> Result<Chosen, Failure> {
        let chosen = self.load(console)?;
        let refusals = chosen.loaded.report.refusals().filter(|problem| matters(&problem.path));
        let refusals: Vec<_> = refusals.map(ToString::to_string).collect();
        if refusals.is_empty() {
            return Ok(chosen);
        }
        let error = anyhow::anyhow!("environment {} cannot run here", chosen.name);
        Err(Failure::usage("not_available", error.context_last(&refusals.join("\n"))).hint(format!(
            "`textnlp-deploy providers` says what is there; `{}` explains",
            self.again().check(chosen.name.as_str())
        )))
    }

    /// Where the state of an environment lies: `--state-dir`, else `.textnlp` beside `environments/`, else the user's state directory.
    pub fn state_folder(&self, environment: &EnvironmentName) -> Result<Utf8PathBuf, Failure> {
        Ok(self.state_root()?.join(environment.as_str()))
    }

    /// Where models are kept for every environment of this state folder.
    pub fn model_cache(&self) -> Result<Utf8PathBuf, Failure> {
        Ok(self.state_root()?.join("model-cache"))
    }

    /// The folder that the states of all environments lie in.
    pub fn state_root(&self) -> Result<Utf8PathBuf, Failure> {
        if let Some(folder) = &self.global.state_dir {
            return Ok(if folder.is_absolute() { folder.clone() } else { self.here.join(folder) });
        }
        if let Some(project) = self.library.folder().and_then(Utf8Path::parent) {
            return Ok(
                if project.is_absolute() { project.to_owned() } else { self.here.join(project) }.join(".textnlp")
            );
        }
        let absolute = |name: &str| std::env::var(name).ok().map(Utf8PathBuf::from).filter(|p| p.is_absolute());
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|folder| folder.join("textnlp"))
            .ok_or_else(|| {
                Failure::usage(
                    "no_state_folder",
                    anyhow::anyhow!("there is no place for state: no `environments/` folder, no HOME"),
                )
                .hint("say where with --state-dir DIR")
            })
    }

    /// Where the release lock of an environment lies: beside its file, else with its state.
    pub fn lock_folder(&self, chosen: &Chosen) -> Utf8PathBuf {
        match self.library.folder() {
            Some(folder) if self.global.file.is_none() => folder.to_owned(),
            _ => chosen.folder.clone(),
        }
    }

    /// The one environment that has state here, for commands that talk to what runs.
    fn only_environment(&self) -> Result<String, Failure> {
        let root = self.state_root()?;
        let mut found: Vec<String> = match root.read_dir_utf8() {
            Ok(entries) => entries
                .flatten()
                .filter(|e| ["lineage.json", "store.json"].iter().any(|name| e.path().join(name).exists()))
                .map(|e| e.file_name().to_owned())
                .collect(),
            Err(_) => Vec::new(),
        };
        found.sort();
        match found.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Failure::usage(
                "no_environment",
                anyhow::anyhow!("no environment is named and none has been put up here"),
            )
            .hint("name one: --env staging; `textnlp-deploy env list` shows them")),
            several => {
                let error = anyhow::anyhow!("several environments are up here: {}", several.join(", "));
                Err(Failure::usage("which_environment", error).hint(format!("name one: --env {}", several[0])))
            }
        }
    }

    /// How the running environment is reached.
    pub async fn target(&self) -> Result<Target, Failure> {
        self.target_or(None, None, None).await
    }

    /// How a server is reached: the one that the flags name, else the running environment's.
    pub async fn target_or(
        &self,
        address: Option<&str>,
        key: Option<&str>,
        ca: Option<&Utf8Path>,
    ) -> Result<Target, Failure> {
        let key = key.map(|k| Secret::new(k.as_bytes()));
        let ca_pem = ca.map(client::read_ca).transpose()?;
        if let Some(address) = address {
            let address = address.trim_end_matches('/').to_owned();
            return Ok(Target { address, key, ca_pem, environment: None, again: self.again() });
        }
        let (name, folder) = match (&self.global.env, &self.global.file) {
            (Some(name), None) => {
                let name = EnvironmentName::new(name.clone()).map_err(|e| Failure::usage("invalid_name", e))?;
                let folder = self.state_folder(&name)?;
                (name, folder)
            }
            (_, Some(_)) => {
                let chosen = self.load(Console::new(self.global.output, true))?;
                (chosen.name, chosen.folder)
            }
            (None, None) => {
                let name = self.only_environment()?;
                let name = EnvironmentName::new(name).map_err(|e| Failure::usage("invalid_name", e))?;
                let folder = self.state_folder(&name)?;
                (name, folder)
            }
        };
        let mut target = crate::commands::running::target(self, &name, &folder).await?;
        target.key = key.or(target.key);
        target.ca_pem = ca_pem.or(target.ca_pem);
        Ok(target)
    }
}

/// Refuses sources that no model can come from, all of them at once, before anything is done.
pub fn known_models(loaded: &Loaded, again: &Again) -> Result<(), Failure> {
    let wrong: Vec<String> = loaded
        .environment
        .models
        .iter()
        .filter_map(|m| Some(format!("models.{}.source: {}", m.name, Source::check(m.source()).err()?)))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}", wrong.join("\n")).context("the environment names models that there are not");
    Err(Failure::usage("no_such_model", error).hint(again.bare("model list")))
}

/// Errors of loading, for people and programs.
pub fn invalid(error: LoadError, again: &Again) -> Failure {
    match error {
        LoadError::NoSuch(no) => {
            let hint = no.fix();
            Failure::usage("no_such_environment", no).hint(hint)
        }
        LoadError::Invalid(report) => {
            let problems = serde_json::to_value(&report.0).unwrap_or_default();
            let count = report.count(Severity::Error) + report.count(Severity::Refusal);
            Failure::usage(
                "invalid_environment",
                anyhow::anyhow!("{report}").context(match count {
                    1 => "the environment has a mistake".to_owned(),
                    _ => format!("the environment has {count} mistakes"),
                }),
            )
            .hint(format!("mend what is named, then look again: {}", again.check("")))
            .document(serde_json::json!({ "problems": problems }))
        }
        other => Failure::usage("unreadable_environment", other)
            .hint("name one that is there: textnlp-deploy env list, or --file PATH"),
    }
}

/// Puts a text under an error as its cause.
trait ContextLast {
    fn context_last(self, cause: &str) -> anyhow::Error;
}

impl ContextLast for anyhow::Error {
    fn context_last(self, cause: &str) -> anyhow::Error {
        anyhow::anyhow!("{cause}").context(self.to_string())
    }
}
