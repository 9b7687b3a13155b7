//! The providers that are linked into this program: the only place that names them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_onprem::{FileSecretStore, OnPrem, Options};
use textnlp_orchestrator::environment::{Catalogue, Offer};
use textnlp_provider::{Provider, SecretStore};

/// One row of `providers`.
pub struct Row {
    /// Its name in environment files.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// How programs run there.
    pub runtimes: &'static [&'static str],
    /// Settings that it can fulfil, `FIELD=VALUE`.
    pub choices: &'static [&'static str],
    /// Whether it is linked in, or why not.
    pub missing: Option<&'static str>,
}

/// Every provider that environment files may name.
pub const PROVIDERS: &[Row] = &[
    Row {
        name: "onprem",
        about: "your own machines: local processes under a supervisor",
        runtimes: &["process"],
        choices: &[
            "database.kind=sqlite",
            "cache.kind=memory",
            "tls.mode=local-ca",
            "tls.mode=existing",
            "tls.mode=off",
            "gpu.size=none",
            "dr.mode=none",
            "traffic.mode=gateway",
            "monitoring.stack=false",
            "state.store=local",
            "network.waf=false",
            "rollout.strategy=rolling",
        ],
        missing: None,
    },
    Row {
        name: "kubernetes",
        about: "any conformant cluster",
        runtimes: &["kubernetes"],
        choices: &[],
        missing: Some(LATER),
    },
    Row { name: "aws", about: "Amazon Web Services", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
    Row { name: "gcp", about: "Google Cloud", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
    Row { name: "azure", about: "Microsoft Azure", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
];

const LATER: &str = "not in this version: it comes with a later release";

/// What environment files may ask for in this program.
pub fn catalogue() -> Catalogue {
    let offer = |row: &Row| Offer {
        linked: row.missing.is_none(),
        how_to_get: row.missing.unwrap_or_default().to_owned(),
        runtimes: row.runtimes.iter().map(ToString::to_string).collect(),
        choices: row.choices.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
    };
    Catalogue {
        providers: PROVIDERS.iter().map(|row| (row.name.to_owned(), offer(row))).collect::<BTreeMap<_, _>>(),
        detected: Some(("onprem".to_owned(), "no cloud provider is linked in".to_owned())),
    }
}

/// Where the secrets of an environment are.
pub fn secrets(folder: &Utf8Path) -> Arc<FileSecretStore> {
    Arc::new(FileSecretStore::new(folder.join("secrets")))
}

/// The provider of a name, for an environment whose state lies in `folder`.
pub fn provider(
    name: &str,
    folder: &Utf8Path,
    secrets: Arc<dyn SecretStore>,
    strict: bool,
) -> anyhow::Result<Arc<dyn Provider>> {
    anyhow::ensure!(name == "onprem", "provider `{name}` is not linked into this program");
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let mut options = Options::new(folder.to_owned(), program)?;
    options.secrets = secrets;
    options.strict = strict;
    Ok(Arc::new(OnPrem::new(options)))
}

/// What a site's lineage is bound to when the environment names no account: for machines of one's own, the machine.
pub fn account(provider: &str) -> String {
    if provider != "onprem" {
        return String::new();
    }
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id: String = id.trim().chars().filter(char::is_ascii_hexdigit).take(12).collect();
    if id.is_empty() { format!("host-{}", host_name()) } else { format!("machine-{id}") }
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
