//! The linked providers and this machine, for the services.

use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_net::trust::TrustRoots;
use textnlp_onprem::ScratchInstance;
use textnlp_orchestrator::dr::control_client::SocketPaths;
use textnlp_orchestrator::dr::fault::Faults;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::KeyIssuer;
use textnlp_orchestrator::state::Store;
use textnlp_provider::operations::{Scaling, ServiceEndpoint, SiteBackups, SiteCopy, SiteOutputs};
use textnlp_provider::{Lineage, Provider, SecretRef, SecretStore, Site, SiteName};
use textnlp_service::Platform;
use textnlp_service::platform::ScratchPostgres;
use textnlp_service::running::RunningEnvironment;

use super::faults;
use crate::commands::gate::Issuer;
use crate::report::Failure;
use crate::{clouds, network, stores};

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

    fn provider(
        &self,
        name: &str,
        folder: &Utf8Path,
        environment: &Environment,
        site: &SiteName,
        take: &[String],
    ) -> anyhow::Result<Arc<dyn Provider>> {
        let secrets = clouds::secrets(folder);
        (clouds::row(name)?.provider)(&clouds::Context { folder, secrets, environment, site, take, server: None })
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

    fn site_backups(
        &self,
        folder: &Utf8Path,
        environment: &Environment,
    ) -> anyhow::Result<Option<Arc<dyn SiteBackups>>> {
        match environment.primary().filter(|_| environment.backup.enabled) {
            Some(home) => Ok(clouds::operations(folder, environment, home, None)?.backups()),
            None => Ok(None),
        }
    }

    fn site_copy(&self, folder: &Utf8Path, site: &SiteName) -> anyhow::Result<SiteCopy> {
        Ok(textnlp_onprem::site_copy(folder, site)?)
    }

    fn site_program(&self, program: &Utf8Path) -> std::io::Result<(std::process::Command, std::fs::File)> {
        Ok(textnlp_onprem::VerifiedProgram::at(program)?.into_command())
    }

    async fn processes(&self, folder: &Utf8Path, site: &SiteName) -> Vec<u32> {
        match clouds::supervise::status(&folder.join("sites").join(site.as_str())).await {
            Ok(Some(status)) => status.units.iter().filter_map(|unit| unit.pid).chain([status.pid]).collect(),
            Ok(None) | Err(_) => Vec::new(),
        }
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

    fn scaling(&self, folder: &Utf8Path, environment: &Environment) -> anyhow::Result<Option<Arc<dyn Scaling>>> {
        clouds::find(folder, environment, None, |site| site.scaling())
    }

    fn places(&self, folder: &Utf8Path, environment: &Environment) -> anyhow::Result<SocketPaths> {
        clouds::places(folder, environment)
    }

    fn key_issuer(&self, running: &RunningEnvironment, environment: &Environment) -> Box<dyn KeyIssuer> {
        Box::new(Issuer { running: running.clone(), environment: environment.clone() })
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
