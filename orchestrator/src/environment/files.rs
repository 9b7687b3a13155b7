//! The files that settings name and that become part of a deployment. They are read before the plan, which then depends
//! on its arguments only.

use std::collections::BTreeMap;

use camino::Utf8Path;
use textnlp_net::trust::{TrustError, TrustProblem, TrustRoots};
use textnlp_provider::SiteName;
use textnlp_provider::component::FileText;

use super::model::Environment;
use super::saml::saml_settings;

/// Limit of a CA file in bytes.
const AUTHORITY_MAX: usize = 64 << 10;

/// The content of each file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingFiles {
    /// `network.private_ca`.
    pub private_ca: Option<FileText>,
    /// `rollout.prometheus.ca_file`.
    pub prometheus_ca: Option<FileText>,
    /// `sites[].cluster.saml`.
    pub saml: BTreeMap<SiteName, FileText>,
    /// The public half of the environment's backup key, for dumps that a cluster encrypts.
    pub backup_recipient: Option<String>,
    /// The address of the store that a cluster copies its dumps to, if the file of `backup.credentials` has one.
    pub backup_endpoint: Option<String>,
}

impl SettingFiles {
    /// Reads the files that sites in clusters need. `folder` is the base of relative paths.
    pub fn read(environment: &Environment, folder: &Utf8Path) -> Self {
        let sites = environment.sites.iter().filter(|site| site.is_in_cluster());
        if sites.clone().next().is_none() {
            return Self::default();
        }
        let ca = |file: Option<&String>| file.map(|file| authority(&folder.join(file)));
        let saml = |file: &String| saml_settings(&folder.join(file)).map_err(|problem| problem.cause);
        Self {
            private_ca: ca(environment.network.private_ca.as_ref()),
            prometheus_ca: ca(environment.rollout.prometheus.as_ref().and_then(|one| one.ca_file.as_ref())),
            saml: sites.filter_map(|site| Some((site.name.clone(), saml(site.cluster.saml.as_ref()?)))).collect(),
            backup_recipient: None,
            backup_endpoint: None,
        }
    }
}

/// Reads a CA file for the cluster. Refuses a private key, because the cluster would expose it.
fn authority(file: &Utf8Path) -> FileText {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    if text.len() > AUTHORITY_MAX {
        return Err(format!("{file} is longer than {} KiB", AUTHORITY_MAX >> 10));
    }
    if text.contains("PRIVATE KEY") {
        return Err(format!(
            "{file} contains a private key: the file of a certificate authority must contain certificates only"
        ));
    }
    match TrustRoots::only_pem(text.as_bytes(), file.as_str()) {
        Ok(_) => Ok(text),
        Err(TrustError { problem: TrustProblem::Empty | TrustProblem::NotPem(_), .. }) => {
            Err(format!("{file} contains no certificates in PEM format"))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ca_file_must_contain_only_certificates() {
        let kept = tempfile::tempdir().expect("a folder");
        let folder = Utf8Path::from_path(kept.path()).expect("a path");
        let file = folder.join("ca.pem");
        let refusal = |text: &str| {
            std::fs::write(&file, text).expect("written");
            authority(&file).expect_err("no authority")
        };
        assert!(refusal("nothing").contains("no certificates"));
        assert!(refusal("-----BEGIN PRIVATE KEY-----").contains("a private key"));
        let framed = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
        assert!(refusal(framed).contains("ca.pem"), "what is framed as one need not be one");
        assert!(refusal(&"x".repeat(AUTHORITY_MAX + 1)).contains("longer than"));
        assert!(authority(&folder.join("gone")).is_err());
    }
}
