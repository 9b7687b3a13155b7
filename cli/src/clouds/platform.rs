//! The linked providers and this machine, for the services.

use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_files::Exposed;
use textnlp_keys::{KeyKind, Marker, SiteFolder};
use textnlp_models::FetchOptions;
use textnlp_net::trust::TrustRoots;
use textnlp_onprem::{ScratchInstance, fault};
use textnlp_orchestrator::backup::Bucket;
use textnlp_orchestrator::dr::control_client::SocketPaths;
use textnlp_orchestrator::dr::fault::Faults;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{NetworkSettings, SecretSource, SiteSettings};
use textnlp_orchestrator::state::Store;
use textnlp_provider::operations::{Operations, ServerProgram, ServiceEndpoint, SiteCopy, SiteOutputs};
use textnlp_provider::{Lineage, Provider, Recorded, SecretRef, SecretStore, Site, SiteName};
use textnlp_server::auth::key;
use textnlp_service::Platform;
use textnlp_service::platform::{Build, NewKey, RecordedDatabase, ScratchPostgres, Supervisor};

use super::faults;
use crate::report::Failure;
use crate::{clouds, network, stores};

const BUILD: Build = Build {
    features: &[("clouds", cfg!(feature = "clouds")), ("candle", cfg!(feature = "candle"))],
    marker: match (cfg!(feature = "clouds"), cfg!(feature = "candle")) {
        (true, true) => "textnlp-deploy was built with the features: clouds, candle",
        (true, false) => "textnlp-deploy was built with the features: clouds",
        (false, true) => "textnlp-deploy was built with the features: candle",
        (false, false) => "textnlp-deploy was built with the features: none",
    },
};

/// This program with its providers.
pub struct Linked;

#[async_trait]
impl Platform for Linked {
    fn secrets(&self, folder: &Utf8Path) -> Arc<dyn SecretStore> {
        clouds::secrets(folder)
    }

    fn secrets_folder(&self) -> &'static str {
        clouds::SECRETS
    }

    fn secret_file(&self, folder: &Utf8Path, secret: &SecretRef) -> Option<Utf8PathBuf> {
        clouds::secrets(folder).file_of(secret).ok()
    }

    fn store(&self, folder: &Utf8Path) -> Result<Arc<dyn Store>, Failure> {
        stores::of_folder(folder)
    }

    fn is_elsewhere(&self, folder: &Utf8Path) -> Result<bool, Failure> {
        Ok(stores::recorded(folder)?.is_some())
    }

    fn backup_bucket(
        &self,
        url: &str,
        credentials: Option<&SecretSource>,
        network: &NetworkSettings,
    ) -> Result<Bucket, Failure> {
        stores::backup_bucket(url, credentials, network)
    }

    fn bucket_of_pods(&self, url: &str, credentials: &SecretSource) -> Result<Option<String>, Failure> {
        stores::bucket_of_pods(url, credentials)
    }

    fn provider(
        &self,
        name: &str,
        folder: &Utf8Path,
        environment: &Environment,
        site: &SiteName,
        take: &[String],
    ) -> anyhow::Result<Arc<dyn Provider>> {
        let secrets = clouds::secrets(folder);
        clouds::provider(name, &clouds::Context { folder, secrets, environment, site, take, server: None })
    }

    async fn account_of(&self, environment: &Environment, site: &Site, provider: &str) -> anyhow::Result<String> {
        (clouds::row(provider)?.account)(environment, site).await
    }

    fn account(&self, provider: &str) -> String {
        if clouds::row(provider).is_ok_and(|row| row.is_this_machine) { clouds::this_machine() } else { String::new() }
    }

    fn is_machine(&self, provider: &str, account: &str) -> bool {
        clouds::row(provider).is_ok_and(|row| row.is_this_machine)
            && (account.starts_with("machine-") || account.starts_with("host-"))
    }

    fn endpoint(&self, outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
        clouds::PROVIDERS.iter().find_map(|row| (row.endpoint)(outputs))
    }

    fn operations(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
        site: &SiteSettings,
        server: Option<ServerProgram>,
    ) -> anyhow::Result<Arc<dyn Operations>> {
        let (secrets, name) = (clouds::secrets(folder), &site.name);
        let context = clouds::Context { folder, secrets, environment, site: name, take: &[], server };
        (clouds::row(&site.provider)?.operations)(&context)
    }

    fn site_copy(&self, folder: &Utf8Path, site: &SiteName) -> anyhow::Result<SiteCopy> {
        Ok(textnlp_onprem::site_copy(folder, site)?)
    }

    fn site_program(&self, program: &Utf8Path) -> std::io::Result<(std::process::Command, std::fs::File)> {
        Ok(textnlp_onprem::VerifiedProgram::at(program)?.into_command())
    }

    fn processes(&self, folder: &Utf8Path, site: &SiteName) -> std::io::Result<Vec<u32>> {
        clouds::supervise::processes(&folder.join("sites").join(site.as_str()))
    }

    async fn supervisor(&self, folder: &Utf8Path, site: &SiteName) -> anyhow::Result<Option<Supervisor>> {
        let Some(found) = clouds::supervise::status(&folder.join("sites").join(site.as_str())).await? else {
            return Ok(None);
        };
        let failing = found.units.iter().filter(|unit| unit.failures > 0);
        let failing =
            failing.map(|unit| format!("{} exited {} times since it was last ready", unit.name, unit.failures));
        let rejected = found.rejected.iter().map(|unit| format!("unit file {}: {}", unit.name, unit.why));
        let trouble = rejected.chain(failing).collect();
        Ok(Some(Supervisor { pid: found.pid, version: found.version, trouble }))
    }

    fn other_lineage(&self, folder: &Utf8Path, lineage: Lineage) -> Option<Lineage> {
        let sites = folder.join("sites").read_dir_utf8().into_iter().flatten().flatten();
        // A marker that cannot be read is reported where it is observed.
        let markers = sites.flat_map(|site| Marker::all(&SiteFolder::at(site.path())).unwrap_or_default());
        markers.map(|marker| marker.lineage).find(|other| *other != lineage)
    }

    fn check_sites(&self, folder: &Utf8Path, found: &mut Vec<Exposed>) -> Result<(), textnlp_files::Error> {
        let sites = folder.join("sites");
        let before = found.len();
        textnlp_files::check_folder(&sites, 0, found)?;
        if found.len() == before {
            let entries = sites.read_dir_utf8().into_iter().flatten().flatten();
            for site in entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_file())) {
                // The files of a model are checked where it is observed.
                SiteFolder::at(site.path()).check_owners(1, found)?;
            }
        }
        Ok(())
    }

    fn is_authority(&self, recorded: &Recorded) -> bool {
        KeyKind::of(&recorded.kind) == Some(KeyKind::Authority)
    }

    fn secret_name<'r>(&self, recorded: &'r Recorded) -> Option<&'r str> {
        let is_secret = KeyKind::of(&recorded.kind) == Some(KeyKind::Secret);
        is_secret.then(|| recorded.id.as_str().rsplit('/').next()).flatten()
    }

    fn database_of(&self, recorded: &Recorded) -> Option<RecordedDatabase> {
        let field = |name: &str| recorded.spec.get(name);
        let is_file = match recorded.kind.as_str() {
            "onprem.database" => true,
            "onprem.postgres" if field("follows").and_then(Value::as_bool) != Some(true) => false,
            _ => return None,
        };
        let path = field("path")?.as_str()?;
        Some(RecordedDatabase { path: format!("sites/{}/{path}", recorded.site), is_file })
    }

    fn build(&self) -> &'static Build {
        &BUILD
    }

    fn fetching(&self, environment: &Environment) -> anyhow::Result<FetchOptions> {
        clouds::fetching(environment)
    }

    fn archive_socket(&self, postgres: &Utf8Path) -> Utf8PathBuf {
        textnlp_onprem::archive_socket(postgres)
    }

    fn scratch_postgres(&self, directory: &Utf8Path, version: Option<u32>) -> anyhow::Result<ScratchPostgres> {
        let made = match version {
            None => ScratchInstance::make(directory),
            Some(version) => ScratchInstance::empty(directory, version),
        };
        let made = made.map_err(anyhow::Error::msg)?;
        Ok(ScratchPostgres {
            folder: made.folder.clone(),
            programs: made.programs.clone(),
            user: made.user,
            guard: Box::new(made),
        })
    }

    fn trust(&self, own: Option<&Utf8Path>, environment: Option<&Environment>) -> anyhow::Result<TrustRoots> {
        network::trust(own, environment)
    }

    fn places(&self, folder: &Utf8Path, environment: &Environment) -> anyhow::Result<SocketPaths> {
        let home = environment.primary().map(|site| site.name.to_string()).unwrap_or_default();
        let sites = environment.sites.iter();
        let sites = sites.map(|site| (site.name.to_string(), fault::socket(folder, &site.name, "watch"))).collect();
        let witness = fault::socket(folder, &SiteName::new(fault::WITNESS)?, "witness");
        Ok(SocketPaths { sites, witness, home })
    }

    fn new_key(&self, public_id: Option<&str>) -> Option<NewKey> {
        let made = public_id.map_or_else(key::NewKey::generate, key::NewKey::with_public_id).ok()?;
        Some(NewKey { digest: key::digest(&made.text), public_id: made.public_id, text: made.text })
    }

    fn faults(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
        lineage: Lineage,
    ) -> anyhow::Result<Box<dyn Faults>> {
        Ok(Box::new(faults::faults(folder, environment, lineage)?))
    }

    fn seed(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        site: &SiteName,
        lineage: Lineage,
        database: &Utf8Path,
    ) -> anyhow::Result<()> {
        Ok(textnlp_onprem::seed(from, to, site, lineage, database)?)
    }

    fn expiry_file(&self) -> &'static str {
        textnlp_onprem::supervise::EXPIRES
    }

    fn host_name(&self) -> String {
        clouds::host_name()
    }

    fn postgres_lacks(&self, version: u32) -> Option<String> {
        ScratchInstance::lacks(version)
    }
}
