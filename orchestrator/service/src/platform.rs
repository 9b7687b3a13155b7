//! What the services need of the program that runs them: the linked providers, this machine, and a sink for progress.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_files::Exposed;
use textnlp_models::FetchOptions;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::backup::Bucket;
use textnlp_orchestrator::dr::control_client::SocketPaths;
use textnlp_orchestrator::dr::fault::Faults;
use textnlp_orchestrator::environment::model::{NetworkSettings, SecretSource, SiteSettings};
use textnlp_orchestrator::environment::{Environment, Loaded};
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::state::Store;
use textnlp_provider::operations::{Operations, ServerProgram, ServiceEndpoint, SiteBackups, SiteCopy, SiteOutputs};
use textnlp_provider::{EnvironmentName, Lineage, Provider, Recorded, SecretRef, SecretStore, Site, SiteName};

use crate::backup::settings;
use crate::{Failure, RerunFlags};

/// The environment that a service works on.
#[derive(Clone)]
pub struct Scope {
    /// The providers and this machine.
    pub platform: &'static dyn Platform,
    /// Builds the commands that hints suggest.
    pub again: RerunFlags,
    /// The environment's name.
    pub name: EnvironmentName,
    /// Its state folder.
    pub folder: Utf8PathBuf,
}

impl Scope {
    /// A suggested command about this environment.
    pub fn command(&self, verb: &str) -> String {
        self.again.command(verb, &self.name)
    }

    /// A provider's hint, whose commands about this environment get its flags.
    pub fn complete(&self, hint: &str) -> String {
        self.again.complete(hint, &self.name)
    }

    /// The same with the values that this session changed.
    pub fn same(&self, verb: &str) -> String {
        self.again.same(verb, &self.name)
    }

    /// The `up` command with the flags of the last one, so that it repairs and changes nothing else.
    pub fn last_up(&self) -> String {
        self.last("up")
    }

    /// The `up` of a lock that another command changed: the program of the last `up` is that of another release.
    pub fn up_of_lock(&self) -> String {
        self.of_lock("up")
    }

    /// The same for another command: `plan`.
    pub fn of_lock(&self, verb: &str) -> String {
        let mut last = settings::last_flags(&self.folder);
        last.changes.retain(|(flag, _)| flag != "--server");
        self.beside(last).same(verb, &self.name)
    }

    /// A command with the flags of the last `up`: without them it would be about other settings than those that run.
    /// Flags of this session come first.
    pub fn last(&self, verb: &str) -> String {
        self.beside(settings::last_flags(&self.folder)).same(verb, &self.name)
    }

    /// The flags of this session, or those of the last `up` where there are none.
    fn beside(&self, last: RerunFlags) -> RerunFlags {
        let canonical = |file: &Option<String>| Utf8Path::new(file.as_deref()?).canonicalize_utf8().ok();
        let is_same = self.again.file.is_none() || canonical(&self.again.file) == canonical(&last.file);
        let mut again = self.again.clone();
        if again.changes.is_empty() && is_same {
            again.file = again.file.or(last.file);
            again.changes = last.changes;
        }
        again
    }

    /// The command that completes an interrupted run.
    pub fn completes(&self, purpose: Purpose) -> String {
        match purpose {
            Purpose::Up => self.last_up(),
            Purpose::Down => self.command("down"),
        }
    }

    /// The folder with the states of all environments.
    pub fn states(&self) -> &Utf8Path {
        self.folder.parent().unwrap_or(&self.folder)
    }
}

/// A loaded environment and the release lock that its runs use.
#[derive(Clone)]
pub struct ChosenEnvironment {
    /// Its scope.
    pub scope: Scope,
    /// The environment.
    pub loaded: Loaded,
    /// The path of its release lock.
    pub lock_path: Utf8PathBuf,
}

impl ChosenEnvironment {
    /// The release lock, if it exists.
    pub fn lock(&self) -> Result<Option<Lock>, Failure> {
        Lock::read(&self.lock_path).map_err(|error| {
            let set = self.scope.command("release set");
            Failure::usage("broken_lock", error).hint(format!("fix it, or remove it and lock the local release: {set}"))
        })
    }
}

/// The providers that a program links, and the machine that it runs on.
#[async_trait]
pub trait Platform: Send + Sync {
    /// The secret store of the state in a folder.
    fn secrets(&self, folder: &Utf8Path) -> Arc<dyn SecretStore>;

    /// The folder of the secrets, within a state folder.
    fn secrets_folder(&self) -> &'static str;

    /// The file with a secret's value, if it is stored.
    fn secret_file(&self, folder: &Utf8Path, secret: &SecretRef) -> Option<Utf8PathBuf>;

    /// The state that a folder contains or points to.
    fn store(&self, folder: &Utf8Path) -> Result<Arc<dyn Store>, Failure>;

    /// Whether the folder only points to a state elsewhere.
    fn is_elsewhere(&self, folder: &Utf8Path) -> Result<bool, Failure>;

    /// The provider with this name. `take` lists the fields whose ownership is forced.
    fn provider(
        &self,
        name: &str,
        folder: &Utf8Path,
        environment: &Environment,
        site: &SiteName,
        take: &[String],
    ) -> anyhow::Result<Arc<dyn Provider>>;

    /// The account of a site: from the environment, else as its provider detects it.
    async fn account_of(&self, environment: &Environment, site: &Site, provider: &str) -> anyhow::Result<String>;

    /// The account of a site whose environment names none.
    fn account(&self, provider: &str) -> String;

    /// Whether an account is a machine, as [`Platform::account`] names it.
    fn is_machine(&self, provider: &str, account: &str) -> bool;

    /// The client endpoint in a site's outputs, if the site runs.
    fn endpoint(&self, outputs: &SiteOutputs) -> Option<ServiceEndpoint>;

    /// The operations of a site. `server` is set if the site runs on this machine.
    fn operations(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
        site: &SiteSettings,
        server: Option<ServerProgram>,
    ) -> anyhow::Result<Arc<dyn Operations>>;

    /// The parts of a site that a backup needs.
    fn site_copy(&self, folder: &Utf8Path, site: &SiteName) -> anyhow::Result<SiteCopy>;

    /// A command that starts a site's program, if that is the recorded one, and the file that must stay open until it
    /// started.
    fn site_program(&self, program: &Utf8Path) -> std::io::Result<(std::process::Command, std::fs::File)>;

    /// The process ids of a site's supervisor and programs on this machine, also of those that a supervisor left behind. One of
    /// another pid namespace is 0.
    fn processes(&self, folder: &Utf8Path, site: &SiteName) -> std::io::Result<Vec<u32>>;

    /// The supervisor of a site on this machine, if it runs.
    async fn supervisor(&self, folder: &Utf8Path, site: &SiteName) -> anyhow::Result<Option<Supervisor>>;

    /// The deployment that the objects on this machine belong to, if it is not the one with this lineage.
    fn other_lineage(&self, folder: &Utf8Path, lineage: Lineage) -> Option<Lineage>;

    /// Appends what other users control in the folders of an environment's sites.
    fn check_sites(&self, folder: &Utf8Path, found: &mut Vec<Exposed>) -> Result<(), textnlp_files::Error>;

    /// Whether a recorded resource is a local certificate authority.
    fn is_authority(&self, recorded: &Recorded) -> bool;

    /// The name of a generated secret; `None` for another resource.
    fn secret_name<'r>(&self, recorded: &'r Recorded) -> Option<&'r str>;

    /// The database on this machine that a recorded resource is; `None` for another resource, and for a copy of the
    /// database of another site.
    fn database_of(&self, recorded: &Recorded) -> Option<RecordedDatabase>;

    /// How this program was built.
    fn build(&self) -> &'static Build;

    /// How models are fetched: by this process's variables, overridden by the environment.
    fn fetching(&self, environment: &Environment) -> anyhow::Result<FetchOptions>;

    /// The bucket of a backup destination, opened with the variables in the file of `credentials`, else those of this
    /// process. Sends no request.
    fn backup_bucket(
        &self,
        url: &str,
        credentials: Option<&SecretSource>,
        network: &NetworkSettings,
    ) -> Result<Bucket, Failure>;

    /// Checks the bucket of a backup destination for pods, which have no other file of this machine than `credentials`.
    /// Returns the address of the store, if it is not that of the cloud. Sends no request.
    fn bucket_of_pods(&self, url: &str, credentials: &SecretSource) -> Result<Option<String>, Failure>;

    /// The socket in a PostgreSQL folder over which its log is archived and fetched.
    fn archive_socket(&self, postgres: &Utf8Path) -> Utf8PathBuf;

    /// Creates a temporary PostgreSQL in a private folder: an empty database of the newest version, or with a version
    /// only the folder for files of exactly that one.
    fn scratch_postgres(&self, directory: &Utf8Path, version: Option<u32>) -> anyhow::Result<ScratchPostgres>;

    /// The trust roots for a service. `own` is the service's own authority and then the only one.
    fn trust(&self, own: Option<&Utf8Path>, environment: Option<&Environment>) -> anyhow::Result<TrustRoots>;

    /// The addresses of an environment's site agents and its witness.
    fn places(&self, folder: &Utf8Path, environment: &Environment) -> anyhow::Result<SocketPaths>;

    /// Makes an API key, for this public id or a new one; `None` if the system has no random numbers.
    fn new_key(&self, public_id: Option<&str>) -> Option<NewKey>;

    /// The faults of a drill in an environment's sites.
    fn faults(&self, folder: &Utf8Path, environment: &Environment, lineage: Lineage)
    -> anyhow::Result<Box<dyn Faults>>;

    /// Puts a backed-up database where a site of another deployment uses it as its own.
    fn seed(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        site: &SiteName,
        lineage: Lineage,
        database: &Utf8Path,
    ) -> anyhow::Result<()>;

    /// The name of the file in a state folder that limits the lifetime of its programs.
    fn expiry_file(&self) -> &'static str;

    /// The host name of this machine.
    fn host_name(&self) -> String;

    /// What this machine lacks for reading the data files of this PostgreSQL version.
    fn postgres_lacks(&self, version: u32) -> Option<String>;
}

impl<'p> dyn Platform + 'p {
    /// The first site with an ability: the named one, else the home site, else in file order.
    pub fn find<T>(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
        named: Option<&str>,
        ability: impl Fn(Arc<dyn Operations>) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let named = environment.sites.iter().filter(|site| named == Some(site.name.as_str()));
        for site in named.chain(environment.primary()).chain(&environment.sites) {
            if let Some(found) = ability(self.operations(folder, environment, site, None)?) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The operations of the site with this name, or `None` if the environment has no such site.
    pub fn operations_of(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
        name: &str,
        server: Option<ServerProgram>,
    ) -> anyhow::Result<Option<Arc<dyn Operations>>> {
        let site = environment.sites.iter().find(|site| site.name.as_str() == name);
        site.map(|site| self.operations(folder, environment, site, server)).transpose()
    }

    /// The backups that the home site takes itself. `None` if this program takes them or backups are off.
    pub fn site_backups(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
    ) -> anyhow::Result<Option<Arc<dyn SiteBackups>>> {
        match environment.primary().filter(|_| environment.backup.enabled) {
            Some(home) => Ok(self.operations(folder, environment, home, None)?.backups()),
            None => Ok(None),
        }
    }
}

/// The supervisor of a site.
pub struct Supervisor {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The programs that it does not keep running, and why.
    pub trouble: Vec<String>,
}

/// A database on this machine, as the state records it.
pub struct RecordedDatabase {
    /// Its file or data folder, relative to the state folder.
    pub path: String,
    /// Whether it is a file, which sites can replace by one with the keys of another site.
    pub is_file: bool,
}

/// How this program was built.
pub struct Build {
    /// Its cargo features, and whether it was built with them.
    pub features: &'static [(&'static str, bool)],
    /// A text in this program, from which another one reads that.
    pub marker: &'static str,
}

/// A new API key.
pub struct NewKey {
    /// Its public id.
    pub public_id: String,
    /// What clients send.
    pub text: String,
    /// The digest of that, which the server stores.
    pub digest: String,
}

/// A temporary PostgreSQL. Dropping it removes its folder.
pub struct ScratchPostgres {
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// The folder of its programs.
    pub programs: Utf8PathBuf,
    /// User and group, where it cannot run as the current user.
    pub user: Option<(u32, u32)>,
    /// Removes the folder on drop.
    pub guard: Box<dyn Any + Send>,
}

/// A sink for the progress of a service.
pub trait Progress: Send + Sync {
    /// The current activity.
    fn doing(&self, activity: &str);

    /// A line that stays.
    fn line(&self, line: &str);

    /// A line that stays, only where the current activity is not shown: in a log.
    fn log(&self, line: &str);

    /// A warning that is shown even when quiet.
    fn warn(&self, warning: &str);

    /// An event for programs.
    fn event(&self, event: &Value);
}
