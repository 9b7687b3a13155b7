//! The specs of this provider's kinds. Paths are relative to the site's folder, so that moving the state folder changes
//! nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::SecretRef;

use crate::supervise::Ready;

/// `onprem.supervisor`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SupervisorSpec {
    pub(crate) state: String,
    /// See [`crate::supervise::VERSION`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
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
    /// The source of the file; the running program is identified by the digest.
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
    /// The oldest version for a new folder. An existing folder stays at the version that created it.
    pub(crate) version: u32,
    /// The wanted schema; `None` is the newest of the server.
    pub(crate) schema: Option<u32>,
    /// Whether it is a standby.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) follows: bool,
    /// Whether other sites have it too: then its content is managed by the PostgreSQL supervisor once it was created.
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
    /// Whether the database is a server, which only the program can read.
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
    /// Whether it is a record of replicated control data.
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
    /// Digests of the other files that it reads at startup: models, keys. A changed digest needs a restart.
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, Value>,
    /// Files whose change is signalled to it.
    #[serde(default)]
    pub(crate) watch: Vec<Utf8PathBuf>,
    /// Its address, for operators and for dependent resources.
    pub(crate) listen: String,
    pub(crate) metrics_listen: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<String>,
    /// The socket and the path of its readiness check.
    pub(crate) ready: ReadySpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<String>,
    /// See [`crate::supervise::Unit::turns`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) turns: bool,
    pub(crate) stop_grace_ms: u64,
    pub(crate) state: String,
}

/// The TCP addresses that a process binds. They are among its inputs, because changing one needs a restart.
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
    pub(crate) fn at(&self, folder: &textnlp_keys::SiteFolder) -> Ready {
        Ready { unix: folder.socket(&self.socket), path: self.path.clone() }
    }
}
