//! The context of a command: the environment, the location of its state, and how to reach its service.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::Site;
use textnlp_orchestrator::environment::{
    Environment, FlagValue, Library, LoadError, Loaded, Overrides, Problem, Severity,
};
use textnlp_orchestrator::load::base_address;
use textnlp_orchestrator::release::Lock;
use textnlp_provider::{EnvironmentName, Secret};
pub use textnlp_service::ChosenEnvironment;
use textnlp_service::artifacts::model_cache;
use textnlp_service::backup::settings::provisioned_file;
use textnlp_service::bundle::advisories::AdvisorySources;
use textnlp_service::client::Target;
pub use textnlp_service::environments::{invalid, known_models, supported_contexts};
use textnlp_service::{RunningEnvironment, Scope, access, origin, running};

use crate::args::Global;
use crate::report::{Console, Failure};
use crate::rerun_flags::{self, RerunFlags, quoted};
use crate::server_args::OtherServer;
use crate::{clouds, network, service_user};

/// The program's name on the `PATH`, and in the folder `bin` of an installed site.
const PROGRAM: &str = "textnlp-deploy";
/// The setting with the contacts, whose absence only commands that prepare a deployment print.
const CONTACTS: &str = "prerequisites.people";
/// The folder of an installed site that has its environments.
pub const ENVIRONMENTS: &str = "environments";

/// Whether the `PATH` leads to this program first.
fn is_on_path(program: &Utf8Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM)).find(|file| file.is_file());
    first.is_some_and(|first| first.canonicalize().ok() == program.as_std_path().canonicalize().ok())
}

/// The global flags and the locations.
pub struct Session {
    /// The global flags.
    pub global: Global,
    /// The working directory.
    pub here: Utf8PathBuf,
    /// The library of environment files.
    pub library: Library,
    /// The root of the installed site that this program is part of.
    pub installation: Option<Utf8PathBuf>,
    /// Whether variables that change values are ignored, because the file is complete.
    pub is_alone: bool,
    /// Whether root stays root: it only asks what another command, as the environment's user, would do.
    pub keeps_user: bool,
}

impl Session {
    /// Reads only the path of the working directory.
    pub fn new(global: Global) -> Result<Self, Failure> {
        let here = std::env::current_dir().context("find the working directory")?;
        let here = Utf8PathBuf::try_from(here).map_err(|e| {
            Failure::usage("path_not_utf8", anyhow::Error::new(e).context("the working directory's name is not UTF-8"))
                .hint("run it in a folder whose path is UTF-8")
        })?;
        let (library, installation) = locations(&here);
        Ok(Self { global, here, library, installation, is_alone: false, keeps_user: false })
    }

    /// A session for a complete environment file. Variables that change values are ignored.
    pub fn alone(global: Global) -> Result<Self, Failure> {
        Ok(Self { is_alone: true, ..Self::new(global)? })
    }

    /// The console of this session.
    pub fn console(&self) -> Console {
        Console::new(self.global.output, self.global.quiet)
    }

    /// The server program of `--server`.
    pub fn server(&self) -> Option<Utf8PathBuf> {
        self.global.server.as_ref().map(|file| self.here.join(file))
    }

    /// Builds the commands that hints suggest.
    pub fn again(&self) -> RerunFlags {
        let installed = self.installation.as_ref().map(|root| root.join("bin").join(PROGRAM));
        let program = installed.filter(|program| !is_on_path(program)).map(|program| quoted(program.as_str()));
        RerunFlags { program, ..rerun_flags::of(&self.global) }
    }

    /// The root of the installed site that this program is part of, if the command works with it.
    pub fn own_site(&self) -> Option<&Utf8Path> {
        let root = self.installation.as_deref()?;
        let is_own = self.library.folder() == Some(root.join(ENVIRONMENTS).as_path());
        (is_own && self.global.file.is_none() && self.global.state_dir.is_none()).then_some(root)
    }

    /// Says so where an installed program does not work with its own site.
    fn note_other_site(&self, console: Console) {
        let is_chosen = self.global.file.is_some() || self.global.state_dir.is_some();
        let site = self.library.folder().and_then(Utf8Path::parent);
        if let (Some(root), Some(site), false) = (&self.installation, site, is_chosen)
            && site != root
        {
            console.say(format!("note: environments and state are those of {site}, not of the installation {root}"));
        }
    }

    /// Warns of a deployment whose state is the user's: earlier versions of an installed program used it in folders without
    /// `environments/`.
    fn note_earlier_state(&self, scope: &Scope, console: Console) {
        let name = &scope.name;
        let is_in = |folder: &Utf8Path| states(folder).contains(name);
        let Some(earlier) = home_state().filter(|home| self.own_site().is_some() && is_in(home)) else { return };
        if !scope.folder.parent().is_some_and(is_in) {
            let to_use = format!("to use it, add --state-dir {earlier}");
            console.say(format!("warning: {name} was deployed with the state in {earlier}: {to_use}"));
        }
    }

    /// An environment with its state folder.
    pub fn scope(&self, name: EnvironmentName) -> Result<Scope, Failure> {
        let folder = self.state_folder(&name)?;
        Ok(Scope { platform: &clouds::Linked, again: self.again(), name, folder })
    }

    /// The overrides from variables, `--set` and its short forms.
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

    /// Loads the environment of `--file` or `--env`. For root, the command runs again as the environment's user.
    pub fn load(&self, console: Console) -> Result<ChosenEnvironment, Failure> {
        self.load_noting(false, console)
    }

    /// The same. Prints what was found in the file, missing contacts only where that is of use.
    fn load_noting(&self, shows_contacts: bool, console: Console) -> Result<ChosenEnvironment, Failure> {
        let loaded = self.read()?;
        let name = loaded.environment.environment.clone();
        let scope = self.scope(name)?;
        let user = loaded.environment.prerequisites.user.as_deref().filter(|user| *user != "root");
        if let Some(user) = user.filter(|_| !self.keeps_user) {
            service_user::switch(self, user, &loaded, &scope.folder)?;
        }
        // Once, by the command that goes on.
        self.note_other_site(console);
        self.note_earlier_state(&scope, console);
        // Of the file that `up` wrote with every setting, warnings were printed when it was written.
        let is_whole =
            self.global.file.as_ref().map(|file| self.here.join(file)) == Some(provisioned_file(&scope.folder));
        let is_shown = |problem: &Problem| {
            (shows_contacts || problem.path != CONTACTS) && !(is_whole && problem.severity == Severity::Warning)
        };
        print_notes(&loaded, is_shown, console);
        // As the user that works on it. For root that only asks, the command that it asks for checks it.
        if !self.keeps_user || user.is_none() || textnlp_files::caller() != 0 {
            access::check(&clouds::Linked, &scope.folder)?;
        }
        // The release lock is beside the environment's file, else in its state folder. The settings that root installed for
        // another user are root's: with a file of their own there, that user could take its name out of them.
        let is_of_root = |folder: &Utf8Path| {
            let installed = folder.parent().is_some_and(|root| self.here.join(root).join("installed.json").exists());
            user.is_some() && installed && !Lock::path(folder, &scope.name).exists()
        };
        let beside = self.library.folder().filter(|folder| self.global.file.is_none() && !is_of_root(folder));
        let lock_path = Lock::path(beside.unwrap_or(&scope.folder), &scope.name);
        Ok(ChosenEnvironment { scope, loaded, lock_path })
    }

    /// The environment of `--file` or `--env` without its state.
    pub fn loaded(&self, console: Console) -> Result<Loaded, Failure> {
        let loaded = self.read()?;
        print_notes(&loaded, |_| true, console);
        Ok(loaded)
    }

    /// The environment with this name, for a check: its file has to have that name too.
    pub fn load_named(&self, name: &str) -> Result<Loaded, LoadError> {
        let mut loaded = self.library.load(name, &self.overrides(), &clouds::catalogue())?;
        match self.misnamed(name, &loaded) {
            None => Ok(loaded),
            Some(problem) => {
                loaded.report.0.push(problem);
                Err(LoadError::Invalid(loaded.report))
            }
        }
    }

    /// The problem of an environment that has another name than the one by which it was found.
    fn misnamed(&self, requested: &str, loaded: &Loaded) -> Option<Problem> {
        let name = loaded.environment.environment.as_str();
        if name == requested {
            return None;
        }
        let field = loaded.facts().into_iter().find(|fact| fact.path == "environment")?;
        let exists = self.library.find(name).is_ok();
        let other = if exists { format!(", or use --env {name}") } else { String::new() };
        let fix = format!("set `environment: {requested}` there{other}");
        Some(Problem::error(field.origin, field.path, format!("it is `{name}` in the file of `{requested}`"), fix))
    }

    /// The environment of `--file`, else of this name, with further flags.
    pub fn loaded_with(&self, name: &EnvironmentName, flags: Vec<FlagValue>) -> Result<Loaded, LoadError> {
        let mut overrides = self.overrides();
        overrides.flags.extend(flags);
        match &self.global.file {
            Some(file) => self.library.load_file(file, &overrides, &clouds::catalogue()),
            None => self.library.load(name.as_str(), &overrides, &clouds::catalogue()),
        }
    }

    fn read(&self) -> Result<Loaded, Failure> {
        self.check_library()?;
        let loaded = match &self.global.file {
            Some(file) => self
                .library
                .load_file(file, &self.overrides(), &clouds::catalogue())
                .map_err(|e| invalid(e, &self.again()))?,
            None => {
                let requested = self.environment_name()?;
                let loaded = self.library.load(&requested, &self.overrides(), &clouds::catalogue());
                let loaded = loaded.map_err(|e| self.or_deployed_copy(&requested, invalid(e, &self.again())))?;
                if let Some(Problem { origin, path, cause, fix, .. }) = self.misnamed(&requested, &loaded) {
                    let error = anyhow::anyhow!("{origin}: `{path}`: {cause}");
                    return Err(Failure::usage("other_environment", error).hint(fix));
                }
                loaded
            }
        };
        known_models(&loaded, &self.again())?;
        Ok(loaded)
    }

    /// The failure of a missing environment. One that is deployed here is still managed by the copy that its last `up` recorded.
    fn or_deployed_copy(&self, requested: &str, failure: Failure) -> Failure {
        if failure.code != "no_such_environment" {
            return failure;
        }
        let folder = EnvironmentName::new(requested).ok().and_then(|name| self.state_folder(&name).ok());
        match folder.map(|folder| provisioned_file(&folder)).filter(|copy| copy.is_file()) {
            Some(copy) => failure.hint(format!(
                "{requested} is deployed here, and its file is missing: put it back; until then, in the place of --env, name the copy that its last `up` recorded: --file {}",
                quoted(copy.as_str())
            )),
            None => failure,
        }
    }

    /// Refuses an `environments/` of another user, as git refuses a repository: it may have been put in or above the
    /// working directory for this command to find.
    pub fn check_library(&self) -> Result<(), Failure> {
        let Some(folder) = self.library.folder().filter(|_| self.global.file.is_none()) else { return Ok(()) };
        let exposed = textnlp_files::check_settings(folder).with_context(|| format!("check {folder}"))?;
        exposed.map_or(Ok(()), |exposed| {
            let error = anyhow::anyhow!("{exposed}, who decides what its environments do");
            let hint = format!("{}\nor name the file of the environment: --file {folder}/NAME.yaml", exposed.fix());
            Err(Failure::refused("settings_exposed", error).hint(hint))
        })
    }

    /// Loads the environment. Rejects one that cannot run, because its provider is not available.
    pub fn load_to_run(&self, console: Console) -> Result<ChosenEnvironment, Failure> {
        self.load_unless(false, console, |_| true)
    }

    /// The same for a command that prepares a deployment. Prints also which contacts the file lacks.
    pub fn load_to_deploy(&self, console: Console) -> Result<ChosenEnvironment, Failure> {
        let chosen = self.load_unless(true, console, |_| true)?;
        supported_contexts(&chosen.loaded, Some(&model_cache(&chosen)?))?;
        Ok(chosen)
    }

    /// Loads the environment for a removal. Its location must be valid, but its inputs may be missing.
    pub fn load_to_remove(&self, console: Console) -> Result<ChosenEnvironment, Failure> {
        let matters = |path: &str| path.starts_with("state.") || path.starts_with("sites[");
        let chosen = self.load_unless(false, console, matters)?;
        origin::check(&chosen.scope)?;
        Ok(chosen)
    }

    fn load_unless(
        &self,
        shows_contacts: bool,
        console: Console,
        matters: impl Fn(&str) -> bool,
    ) -> Result<ChosenEnvironment, Failure> {
        let chosen = self.load_noting(shows_contacts, console)?;
        let refusals = chosen.loaded.report.refusals().filter(|problem| matters(&problem.path));
        let refusals: Vec<_> = refusals.map(ToString::to_string).collect();
        if refusals.is_empty() {
            return Ok(chosen);
        }
        let error = anyhow::anyhow!("environment {} cannot run here", chosen.scope.name);
        Err(Failure::usage("not_available", error.context_last(&refusals.join("\n"))).hint(format!(
            "`textnlp-deploy providers` lists what is available; to see what is missing: {}",
            self.again().check(chosen.scope.name.as_str())
        )))
    }

    /// The state folder of an environment: `--state-dir`, else `.textnlp` beside `environments/`, which are those of an
    /// installed program if the working directory has none, else the user's state directory.
    pub fn state_folder(&self, environment: &EnvironmentName) -> Result<Utf8PathBuf, Failure> {
        Ok(self.state_root()?.join(environment.as_str()))
    }

    /// The model cache that all environments of this state folder share.
    pub fn model_cache(&self) -> Result<Utf8PathBuf, Failure> {
        let cache = self.state_root()?.join(access::MODEL_CACHE);
        access::check_model_cache(&cache)?;
        Ok(cache)
    }

    /// Where advisories are found.
    pub fn advisories(&self) -> AdvisorySources {
        AdvisorySources { here: self.here.clone() }
    }

    /// Loads the environment, which must run and have more than the invocations of an inference endpoint: `what`.
    pub async fn load_running(
        &self,
        what: &str,
        console: Console,
    ) -> Result<(ChosenEnvironment, RunningEnvironment), Failure> {
        let chosen = self.load(console)?;
        let running = running::running(&chosen.scope).await?;
        running.has_api(&chosen.scope, what)?;
        Ok((chosen, running))
    }

    /// The console without notes.
    pub fn quiet(&self) -> Console {
        Console::new(self.global.output, true)
    }

    /// The folder with the states of all environments.
    pub fn state_root(&self) -> Result<Utf8PathBuf, Failure> {
        access::resolve(&self.here.join(self.typed_state_root()?))
    }

    fn typed_state_root(&self) -> Result<Utf8PathBuf, Failure> {
        if let Some(folder) = &self.global.state_dir {
            return Ok(folder.clone());
        }
        // An installed site may link to a state folder elsewhere.
        if let Some(project) = self.library.folder().and_then(Utf8Path::parent) {
            return Ok(project.join(".textnlp"));
        }
        home_state().ok_or_else(|| {
            let error =
                anyhow::anyhow!("there is no folder for the state: no `environments/` folder, and HOME is not set");
            Failure::usage("no_state_folder", error).hint("choose a folder with --state-dir DIR")
        })
    }

    /// The environment of `--env`, else the only one that is deployed here. One that was taken down, and left at most data on
    /// machines, counts only where nothing else is.
    pub fn environment_name(&self) -> Result<String, Failure> {
        if let Some(name) = &self.global.env {
            return Ok(name.clone());
        }
        let root = self.state_root()?;
        let mut found = states(&root);
        if found.len() > 1 {
            let is_deployed =
                |name: &EnvironmentName| !running::is_down(&clouds::Linked, &root.join(name.as_str()), name);
            let deployed: Vec<EnvironmentName> = found.iter().filter(|name| is_deployed(name)).cloned().collect();
            if !deployed.is_empty() {
                found = deployed;
            }
        }
        match found.as_slice() {
            [only] => Ok(only.to_string()),
            [] => {
                let error = anyhow::anyhow!("no environment is given, and none is deployed here");
                Err(Failure::usage("no_environment", error)
                    .hint("choose one: --env staging; `textnlp-deploy env list` shows them"))
            }
            several => {
                let names: Vec<&str> = several.iter().map(EnvironmentName::as_str).collect();
                let error = anyhow::anyhow!("several environments are deployed here: {}", names.join(", "));
                Err(Failure::usage("which_environment", error).hint(format!("choose one: --env {}", several[0])))
            }
        }
    }

    /// The scope of the running environment, whose file is only read if it is named.
    pub fn running_scope(&self) -> Result<(Scope, Option<Environment>), Failure> {
        if self.global.file.is_some() {
            let chosen = self.load(self.quiet())?;
            return Ok((chosen.scope, Some(chosen.loaded.environment)));
        }
        let name = EnvironmentName::new(self.environment_name()?).map_err(|e| Failure::usage("invalid_name", e))?;
        let scope = self.scope(name)?;
        match access::check(&clouds::Linked, &scope.folder) {
            Ok(()) => Ok((scope, None)),
            // Its file says whether root changes to that user.
            Err(refused) if refused.code == "other_owner" && textnlp_files::caller() == 0 => {
                let chosen = self.load(self.quiet()).map_err(|failure| match failure.code {
                    "no_such_environment" => refused,
                    _ => failure,
                })?;
                Ok((chosen.scope, Some(chosen.loaded.environment)))
            }
            Err(refused) => Err(refused),
        }
    }

    /// The address and credentials of the running environment.
    pub async fn target(&self) -> Result<Target, Failure> {
        self.target_or(&OtherServer::default()).await
    }

    /// The address and credentials of a server: the one of the flags, else the running environment's.
    pub async fn target_or(&self, other: &OtherServer) -> Result<Target, Failure> {
        let ca = other.ca_file.as_deref();
        let key = other.key().map(|key| Secret::new(key.as_bytes()));
        if let Some(address) = &other.address {
            let hint = "give its base URL: --address https://HOST:PORT";
            let address = base_address(address).map_err(|error| Failure::usage("usage", error).hint(hint))?;
            let trust = network::trust(ca, None)?;
            return Ok(Target {
                address,
                key,
                trust,
                environment: None,
                again: self.again(),
                invocations: None,
                caller: None,
            });
        }
        let (scope, mut environment) = self.running_scope()?;
        // Who authorizes the requests to an inference endpoint is in the environment's file.
        if environment.is_none() && running::running(&scope).await?.is_endpoint() {
            environment = Some(self.load(self.quiet())?.loaded.environment);
        }
        let mut target = Target::of(&scope, environment.as_ref()).await?;
        target.key = key.or(target.key);
        if ca.is_some() {
            target.trust = network::trust(ca, None)?;
        }
        Ok(target)
    }
}

/// The library of a working directory, and the root of the installed site that this program is part of: its environments
/// are used where the working directory has none.
pub fn locations(here: &Utf8Path) -> (Library, Option<Utf8PathBuf>) {
    let installation = Site::of_this_program().map(|site| site.root().to_owned());
    let found = Library::from_working_directory(here);
    let own = installation.as_ref().map(|root| root.join(ENVIRONMENTS)).filter(|folder| folder.is_dir());
    match own {
        Some(folder) if found.folder().is_none() => (Library::from_folder(folder), installation),
        _ => (found, installation),
    }
}

/// The user's state folder.
fn home_state() -> Option<Utf8PathBuf> {
    let absolute = |name: &str| std::env::var(name).ok().map(Utf8PathBuf::from).filter(|p| p.is_absolute());
    let folder = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(folder.join("textnlp"))
}

/// The environments that have a state in this folder.
pub fn states(root: &Utf8Path) -> Vec<EnvironmentName> {
    let mut found: Vec<EnvironmentName> = match root.read_dir_utf8() {
        Ok(entries) => entries
            .flatten()
            .filter(|e| ["lineage.json", "store.json"].iter().any(|name| e.path().join(name).exists()))
            // Not what a restore kept of the state before, nor another program's.
            .filter_map(|e| EnvironmentName::new(e.file_name()).ok())
            .collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    found
}

/// Prints the warnings and notes of an environment.
fn print_notes(loaded: &Loaded, is_shown: impl Fn(&Problem) -> bool, console: Console) {
    let shown = loaded.report.0.iter().filter(|problem| is_shown(problem));
    shown.for_each(|problem| console.say(problem.to_string()));
}

/// Appends a text to an error as its innermost cause.
trait ContextLast {
    fn context_last(self, cause: &str) -> anyhow::Error;
}

impl ContextLast for anyhow::Error {
    fn context_last(self, cause: &str) -> anyhow::Error {
        anyhow::anyhow!("{cause}").context(self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn hint_of_a_deployed_environment_without_a_file_names_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        let words = ["textnlp-deploy", "status", "--env", "a-lost-one", "--state-dir", root.as_str()];
        let global = Cli::try_parse_from(words).unwrap().global;
        let session = Session { library: Library::built_in(), ..Session::new(global).unwrap() };
        let hint = || session.load(session.quiet()).err().and_then(|failure| failure.hint).unwrap();
        assert!(hint().contains("env new"), "{}", hint());
        let copy = provisioned_file(&root.join("a-lost-one"));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(&copy, "environment: a-lost-one\n").unwrap();
        assert!(hint().ends_with(&format!("--file {copy}")), "{}", hint());
    }

    #[test]
    fn folders_on_the_way_to_programs_secrets_and_models_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap().canonicalize_utf8().unwrap();
        let state = root.join("development");
        let site = state.join("sites/here");
        for folder in ["journal/here", "secrets/here.api-key", "sites/here/bin", "sites/here/log", "sites/here/data"] {
            std::fs::create_dir_all(state.join(folder)).unwrap();
        }
        std::fs::create_dir_all(root.join("model-cache/blobs/ab")).unwrap();
        std::fs::write(site.join("bin/server"), "").unwrap();
        let set_mode = |path: &Utf8Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let run_time = [site.join("log"), site.join("data")];
        run_time.iter().for_each(|folder| set_mode(folder, 0o777));
        access::check(&clouds::Linked, &state).unwrap();
        let levels = ["", "journal", "journal/here", "secrets/here.api-key", "sites", "sites/here", "sites/here/bin"];
        let levels = levels.map(|level| state.join(level)).into_iter();
        for path in levels.chain([site.join("bin/server"), root.join("model-cache"), root.join("model-cache/blobs/ab")])
        {
            set_mode(&path, 0o777);
            let refused = access::check(&clouds::Linked, &state).unwrap_err();
            assert_eq!(refused.code, "state_exposed", "{path}");
            let fix = format!("chmod go-w {}", path.as_str().trim_end_matches('/'));
            assert!(refused.hint.unwrap().contains(&fix), "{path}");
            set_mode(&path, 0o755);
        }
        access::check(&clouds::Linked, &state).unwrap();
        std::fs::rename(&site, root.join("away")).unwrap();
        symlink(root.join("away"), &site).unwrap();
        assert!(
            format!("{:#}", access::check(&clouds::Linked, &state).unwrap_err().error).contains("is a symbolic link")
        );
    }
}
