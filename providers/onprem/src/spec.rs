//! The specs of our kinds. Paths are relative to the site's folder, so that a state folder that moved differs in nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::component::{Given, SecretRecipe};
use textnlp_provider::{SecretName, SecretRef};

use crate::supervise::Ready;

/// `onprem.directory`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DirectorySpec {
    pub(crate) folders: Vec<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
}

/// `onprem.supervisor`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SupervisorSpec {
    pub(crate) state: String,
    /// See [`crate::supervise::VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
}

/// `onprem.secret`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretSpec {
    pub(crate) name: SecretName,
    /// How it is generated, for one that we make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) recipe: Option<SecretRecipe>,
    /// Where it is taken from, for one that a person keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) given: Option<Given>,
    /// Whether all sites have it in common: the first that needs it makes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shared: bool,
}

/// `onprem.authority`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthoritySpec {
    pub(crate) subject: String,
    pub(crate) days: u32,
    pub(crate) certificate_file: String,
    pub(crate) key: SecretName,
}

/// `onprem.certificate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateSpec {
    pub(crate) names: Vec<String>,
    pub(crate) days: u32,
    pub(crate) certificate_file: String,
    pub(crate) key_file: String,
    pub(crate) ca_file: String,
    /// The authority's fingerprint: another authority issues another certificate.
    pub(crate) authority: String,
    pub(crate) authority_key: SecretRef,
    /// The secret that certificate and key are kept as too, `NAME-certificate` and `NAME-key`: for whoever serves with them elsewhere, where
    /// no supervisor renews them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<SecretName>,
}

/// `onprem.model`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelSpec {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) digest: Option<String>,
    pub(crate) path: String,
    pub(crate) max_cache_bytes: u64,
}

/// `onprem.program`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProgramSpec {
    /// Where the file is taken from; what runs is told by the digest.
    pub(crate) source: Utf8PathBuf,
    pub(crate) sha256: String,
    pub(crate) path: String,
}

/// `onprem.file`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSpec {
    pub(crate) path: String,
    /// The content as a tree, written as YAML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) document: Option<Value>,
    /// The content as a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<SecretRef>,
}

/// `onprem.database`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseSpec {
    pub(crate) path: String,
    /// The wanted schema; `None` is the newest of the server.
    pub(crate) schema: Option<u32>,
}

/// `onprem.postgres`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostgresSpec {
    pub(crate) path: String,
    /// The oldest version that makes it. What is there is kept by the version that made it.
    pub(crate) version: u32,
    /// The wanted schema; `None` is the newest of the server.
    pub(crate) schema: Option<u32>,
    /// Whether its content comes from another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) follows: bool,
    /// Whether other sites have it too: once it was made, what is in it comes and goes with its keeper.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shared: bool,
}

/// `onprem.control`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlSpec {
    pub(crate) path: String,
}

/// `onprem.schema`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SchemaSpec {
    pub(crate) database: String,
    /// Whether the database is a server, which only the program can look at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) served: bool,
    pub(crate) version: Option<u32>,
    pub(crate) program: String,
    pub(crate) program_sha256: String,
    pub(crate) config: String,
}

/// `onprem.api-key`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiKeySpec {
    pub(crate) database: String,
    /// See [`SchemaSpec::served`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) served: bool,
    pub(crate) public_id: String,
    pub(crate) sha256: String,
    pub(crate) name: String,
    pub(crate) program: String,
    pub(crate) config: String,
    /// Whether it is a record of control data, which several sites hold.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replicated: bool,
}

/// `onprem.process`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessSpec {
    /// The name of its unit, and of its sockets and files.
    pub(crate) unit: String,
    pub(crate) program: String,
    pub(crate) program_sha256: String,
    pub(crate) arguments: Vec<String>,
    /// The file behind `--config`.
    pub(crate) config: String,
    pub(crate) config_sha256: String,
    /// What a changed configuration takes: `restart` or `reload`.
    pub(crate) on_config: OnConfig,
    /// Digests of what else it reads when it begins: models, keys. Another digest is a restart.
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, Value>,
    /// Files whose change it is told of.
    #[serde(default)]
    pub(crate) watch: Vec<Utf8PathBuf>,
    /// Where it answers, for people and for those who need it.
    pub(crate) listen: String,
    pub(crate) metrics_listen: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<String>,
    /// The name of the socket and the path that say that it is ready.
    pub(crate) ready: ReadySpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// See [`crate::supervise::Unit::turns`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) turns: bool,
    pub(crate) stop_grace_ms: u64,
    pub(crate) state: String,
}

/// The TCP addresses that a process binds, by its inputs: they stand among what takes a restart to change.
pub(crate) fn bound_addresses(input: impl Fn(&str) -> Option<String>) -> Vec<SocketAddr> {
    ["listen", "metrics_listen"].iter().filter_map(|name| input(name)?.parse().ok()).collect()
}

impl ProcessSpec {
    /// See [`bound_addresses`].
    pub(crate) fn bound_addresses(&self) -> Vec<SocketAddr> {
        bound_addresses(|name| self.inputs.get(name).and_then(Value::as_str).map(str::to_owned))
    }
}

/// See [`ProcessSpec::on_config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnConfig {
    Restart,
    Reload,
}

/// See [`ProcessSpec::ready`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadySpec {
    pub(crate) socket: String,
    pub(crate) path: String,
}

impl ReadySpec {
    pub(crate) fn at(&self, folder: &crate::layout::SiteFolder) -> Ready {
        Ready { unix: folder.socket(&self.socket), path: self.path.clone() }
    }
}
