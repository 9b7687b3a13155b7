//! A client of the site agents and of the witness: JSON over Unix sockets, with a limit on every answer and a timeout
//! on every wait.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use textnlp_net::client::{BodyError, ClientOptions, build, read_body};
use textnlp_net::trust::TrustRoots;

/// A table of a hundred thousand keys is smaller, in bytes.
const MOST_BYTES: usize = 32 << 20;
/// The timeout of a status request; statuses come from memory.
pub const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of a claim or a handover: a few exchanges between sites.
const SHIFT_TIMEOUT: Duration = Duration::from_secs(20);
/// The timeout of a table or a list of ids, which are read from disk.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// The most ids in one request, by the agent's limit.
const MOST_IDS: usize = 1000;
/// The most writes in one request; far below the limit of a body.
const MOST_WRITES: usize = 200;

/// The sockets of an environment.
#[derive(Debug, Clone)]
pub struct SocketPaths {
    /// Every site with its agent's socket, in the environment's order.
    pub sites: Vec<(String, Utf8PathBuf)>,
    /// The witness's socket.
    pub witness: Utf8PathBuf,
    /// The primary under normal conditions.
    pub home: String,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlClientError {
    /// No process listens on the socket.
    #[error("{who} cannot be reached ({why})")]
    Absent {
        /// The agent or witness.
        who: String,
        /// The error of the connection.
        why: String,
    },
    /// The request timed out: the process or a dependency hangs.
    #[error("{who} does not answer within {within_ms} ms")]
    Silent {
        /// The agent or witness.
        who: String,
        /// The timeout in ms.
        within_ms: u128,
    },
    /// The request was rejected.
    #[error("{who} refused the request: {message}")]
    Refused {
        /// The agent or witness.
        who: String,
        /// The HTTP status: 409 if not granted, 503 if not possible now.
        status: u16,
        /// A stable error code.
        code: String,
        /// The message.
        message: String,
        /// The hint.
        hint: Option<String>,
    },
    /// The answer violates the protocol.
    #[error("the answer of {who} cannot be parsed: {why}")]
    Strange {
        /// The agent or witness.
        who: String,
        /// The reason.
        why: String,
    },
}

/// The status of a site, as its agent reports it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SiteAgentStatus {
    /// The site.
    pub site: String,
    /// Its role.
    pub role: MemberRole,
    /// The epoch of the configuration it knows.
    pub epoch: u64,
    /// The primary, as far as it knows.
    pub primary: Option<String>,
    /// The members: the sites that must store a write before it is acknowledged.
    pub members: Vec<String>,
    /// Whether a planned failover holds, as far as it knows.
    pub held: bool,
    /// Whether it accepts writes of control data.
    pub writable: bool,
    /// Why it does not.
    pub why_not: Option<String>,
    /// The last entry of its log.
    pub last: u64,
    /// The last acknowledged entry.
    pub committed: u64,
    /// The last entry applied to its database.
    pub applied: u64,
    /// The other sites, as it sees them.
    pub peers: BTreeMap<String, Peer>,
    /// The time since the last answer of the witness, in ms.
    pub witness_heard_ms: Option<u64>,
    /// The data that would be lost with this site, as time.
    pub rpo_ms: Rpo,
    /// Entries that were reverted because another site became primary.
    pub withdrawn: u64,
    /// Whether it may claim without a command.
    pub automatic: bool,
    /// Its progress in copying the primary's `models` and `configuration`.
    pub copies: BTreeMap<String, CopyProgress>,
    /// Its server of the PostgreSQL that all sites share, if they share one.
    pub database: Option<DatabaseStatus>,
    /// The database role that its servers report if they run apart from the agent.
    pub servers_database: Option<DatabaseRole>,
}

impl SiteAgentStatus {
    /// The role of the database that its servers use, if it has roles.
    pub fn database_role(&self) -> Option<DatabaseRole> {
        self.database.as_ref().map(|database| database.role).or(self.servers_database)
    }
}

/// The role of a site in the configuration that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// It accepts writes of control data.
    Primary,
    /// It stores every write before it is acknowledged.
    Member,
    /// It has to catch up first.
    Outsider,
    /// Its agent does not answer.
    Unreachable,
    /// One of a newer agent.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The role of a database. Only a primary accepts writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseRole {
    /// It accepts writes.
    Primary,
    /// It follows a primary.
    Copy,
    /// The servers cannot connect to it, or it is a replica.
    Unavailable,
    /// It does not run.
    #[default]
    #[serde(rename = "not running", alias = "")]
    NotRunning,
    /// One of a newer agent.
    #[serde(other)]
    Unknown,
}

impl DatabaseRole {
    /// Writes it as agents do.
    fn as_reported<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if *self == Self::NotRunning { to.serialize_str("") } else { self.serialize(to) }
    }
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for DatabaseRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A site's server of a PostgreSQL that all sites share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseStatus {
    /// Its role.
    #[serde(serialize_with = "DatabaseRole::as_reported")]
    pub role: DatabaseRole,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    pub why: Option<String>,
    /// Whether it has everything that the primary's server had, so that its site may become primary.
    pub fit: bool,
    /// The replicas at other sites, as a primary sees them.
    pub copies: BTreeMap<String, DatabaseReplica>,
    /// How often it was rewound to the primary's history, since its supervisor started.
    pub rewound: u64,
    /// How often it was copied from the primary as a whole.
    pub copied: u64,
}

/// A replica of the database at another site, as the primary sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseReplica {
    /// Whether it is connected.
    pub connected: bool,
    /// Bytes that it has not replayed.
    pub behind_bytes: u64,
    /// The age of the oldest change it has not replayed, in ms.
    pub behind_ms: u64,
}

/// A site's progress in copying one kind of data from the primary.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyProgress {
    /// Whether it is the source of the copies.
    pub source: bool,
    /// The count of items at the primary.
    pub wanted: u64,
    /// The count of items that are already copied.
    pub held: u64,
    /// Bytes that are missing.
    pub missing_bytes: u64,
    /// The age of the primary's list with which the items here last matched, in ms.
    pub whole_ms: Option<u64>,
    /// The last error.
    pub error: Option<String>,
}

/// Another site, as an agent sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// The last entry that it stored.
    pub stored: u64,
    /// Whether it is a member.
    pub member: bool,
    /// The time since its last answer, in ms.
    pub heard_ms: Option<u64>,
    /// Rows of usage that it lacks.
    pub usage_behind_rows: u64,
    /// The age of the oldest of them, in ms.
    pub usage_behind_ms: u64,
}

/// The data that would be lost with a site, as time in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rpo {
    /// Control data.
    pub control: u64,
    /// Usage.
    pub usage: u64,
}

/// The status that the witness reports.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WitnessStatus {
    /// The epoch of the configuration.
    pub epoch: u64,
    /// The primary.
    pub primary: String,
    /// The members: the sites that must store a write before it is acknowledged.
    pub members: Vec<String>,
    /// Whether a planned failover holds: the home site becomes primary only by a command, or if the primary is lost.
    pub held: bool,
    /// The time since the primary's last renewal, in ms.
    pub renewed_ms: u64,
    /// The primary's grace period, in ms: how long it may be silent before another site can claim.
    pub grace_ms: u64,
    /// The primary under normal conditions.
    pub home: String,
    /// Every site.
    pub sites: Vec<String>,
    /// The traffic weights, as at the global endpoint.
    pub weights: BTreeMap<String, u32>,
    /// The DNS name that it maintains, if any.
    pub dns: Option<DnsName>,
    /// The last configurations.
    pub history: Vec<Configuration>,
}

/// A DNS name whose addresses follow the sites.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsName {
    /// The name.
    pub name: String,
    /// The addresses that it should have.
    pub wanted: Option<Vec<String>>,
    /// The addresses that the name server last confirmed.
    pub last_acknowledged: Option<Vec<String>>,
    /// When it confirmed them.
    pub at: Option<String>,
    /// The last error, if the last update failed.
    pub error: Option<DnsError>,
}

/// Why a DNS update failed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsError {
    /// A stable error code.
    pub code: String,
    /// The message.
    pub message: String,
    /// How to fix it.
    pub hint: Option<String>,
}

/// An earlier configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// Its epoch.
    pub epoch: u64,
    /// The primary.
    pub primary: String,
    /// The members.
    pub members: Vec<String>,
    /// When it was granted.
    pub at: String,
    /// The reason.
    pub why: String,
}

/// A write that two sites stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Acknowledged {
    /// The epoch of the configuration.
    pub epoch: u64,
    /// The index of its entry.
    pub index: u64,
}

/// A client of a Unix socket.
#[derive(Debug, Clone)]
pub struct SocketClient {
    who: Arc<str>,
    http: reqwest::Client,
}

/// A client of a site agent.
#[derive(Debug, Clone)]
pub struct SiteAgentClient {
    /// The site.
    pub site: String,
    socket: SocketClient,
}

/// A client of the witness.
#[derive(Debug, Clone)]
pub struct WitnessClient(SocketClient);

/// Clients of all site agents and of the witness.
#[derive(Debug, Clone)]
pub struct ControlClients {
    /// The site agents, in the environment's order.
    pub watches: Vec<SiteAgentClient>,
    /// The witness.
    pub witness: WitnessClient,
    /// The primary under normal conditions.
    pub home: String,
}

/// Whether a program on a Unix socket reports ready. A suspended program accepts the connection but does not answer.
pub async fn answers(socket: &Utf8Path) -> bool {
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
    SocketClient::new(socket.to_string(), socket).ask::<Value>("GET", "/ready", None, REQUEST_TIMEOUT).await.is_ok()
}

impl ControlClients {
    /// Builds the clients; sends no request.
    pub fn at(places: &SocketPaths) -> Self {
        let watches = places.sites.iter().map(|(site, path)| SiteAgentClient {
            site: site.clone(),
            socket: SocketClient::new(format!("the site agent of {site}"), path),
        });
        let witness = WitnessClient(SocketClient::new("the witness".to_owned(), &places.witness));
        Self { watches: watches.collect(), witness, home: places.home.clone() }
    }

    /// The agent of a site.
    pub fn watch(&self, site: &str) -> Option<&SiteAgentClient> {
        self.watches.iter().find(|watch| watch.site == site)
    }

    /// The names of all sites.
    pub fn names(&self) -> Vec<String> {
        self.watches.iter().map(|watch| watch.site.clone()).collect()
    }
}

impl SiteAgentClient {
    /// The site's status.
    pub async fn status(&self) -> Result<SiteAgentStatus, ControlClientError> {
        self.socket.ask("GET", "/v1/status", None, STATUS_TIMEOUT).await
    }

    /// Writes control data; acknowledged once two sites stored it.
    pub async fn write(
        &self,
        writes: &[(String, Value)],
        within: Duration,
    ) -> Result<Acknowledged, ControlClientError> {
        let writes: Vec<Value> = writes.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        let body = json!({ "writes": writes, "timeout_ms": within.as_millis() as u64 });
        // Slightly longer than the server's own timeout, so that its answer arrives.
        self.socket.ask("POST", "/v1/write", Some(body), within + Duration::from_millis(250)).await
    }

    /// The keys with a prefix that this site has.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, ControlClientError> {
        #[derive(Deserialize)]
        struct Table {
            entries: BTreeMap<String, Value>,
        }
        let prefix: String = prefix
            .bytes()
            .flat_map(|b| {
                if b.is_ascii_alphanumeric() || b"-_./".contains(&b) {
                    vec![char::from(b)]
                } else {
                    format!("%{b:02X}").chars().collect()
                }
            })
            .collect();
        let table: Table = self.socket.ask("GET", &format!("/v1/table?prefix={prefix}"), None, READ_TIMEOUT).await?;
        Ok(table.entries.into_keys().collect())
    }

    /// Removes every key with a prefix and returns the count of removed keys.
    pub async fn clear(&self, prefix: &str) -> Result<usize, ControlClientError> {
        let keys = self.keys(prefix).await?;
        for some in keys.chunks(MOST_WRITES) {
            let writes: Vec<_> = some.iter().map(|key| (key.clone(), Value::Null)).collect();
            self.write(&writes, Duration::from_secs(5)).await?;
        }
        Ok(keys.len())
    }

    /// The ids among these whose usage this site has.
    pub async fn known(&self, ids: &[String]) -> Result<Vec<String>, ControlClientError> {
        #[derive(Deserialize)]
        struct KnownIds {
            known: Vec<String>,
        }
        let mut all = Vec::new();
        for some in ids.chunks(MOST_IDS) {
            let body = json!({ "request_ids": some });
            all.extend(self.socket.ask::<KnownIds>("POST", "/v1/usage/ids", Some(body), READ_TIMEOUT).await?.known);
        }
        Ok(all)
    }

    /// Claims the primary role.
    pub async fn claim(&self) -> Result<(), ControlClientError> {
        self.socket.ask::<Value>("POST", "/v1/claim", Some(json!({})), SHIFT_TIMEOUT).await.map(drop)
    }

    /// Asks the primary to hand over to `to`. With `hold` there is no failback without a command.
    pub async fn hand_over(&self, to: &str, hold: bool) -> Result<(), ControlClientError> {
        let path = if hold { "/v1/handover?hold=true" } else { "/v1/handover" };
        self.socket.ask::<Value>("POST", path, Some(json!({ "to": to })), SHIFT_TIMEOUT).await.map(drop)
    }
}

impl WitnessClient {
    /// The status of the witness.
    pub async fn status(&self) -> Result<WitnessStatus, ControlClientError> {
        self.0.ask("GET", "/v1/status", None, STATUS_TIMEOUT).await
    }
}

impl SocketClient {
    fn new(who: String, path: &Utf8Path) -> Self {
        let options = ClientOptions { trust: TrustRoots::none(), ..ClientOptions::default() };
        let builder = options.builder().map(|builder| {
            // A connection to a site that was suspended cannot be reused.
            builder.unix_socket(path.as_std_path()).pool_max_idle_per_host(0)
        });
        let http =
            builder.and_then(build).expect("a client without TLS, proxies and names has nothing that can be missing");
        Self { who: who.into(), http }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        within: Duration,
    ) -> Result<T, ControlClientError> {
        let exchange = async {
            let url = format!("http://localhost{path}");
            let mut request = if method == "POST" { self.http.post(url) } else { self.http.get(url) };
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(|error| self.lost(&error))?;
            let status = response.status().as_u16();
            let bytes = read_body(response, MOST_BYTES).await.map_err(|error| match error {
                BodyError::TooLong(_) => self.strange(format!("more than {MOST_BYTES} bytes")),
                BodyError::Cut(error) => self.lost(&error),
            })?;
            Ok((status, bytes))
        };
        let silent = || ControlClientError::Silent { who: self.who.to_string(), within_ms: within.as_millis() };
        let (status, bytes) = tokio::time::timeout(within, exchange).await.map_err(|_| silent())??;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()));
        }
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let error = &answer["error"];
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        Err(ControlClientError::Refused {
            who: self.who.to_string(),
            status,
            code: text("code").unwrap_or_default(),
            // The rejection of a claim may be plain text.
            message: text("message")
                .or_else(|| error.as_str().map(str::to_owned))
                .unwrap_or_else(|| format!("status {status}")),
            hint: text("hint"),
        })
    }

    fn lost(&self, error: &reqwest::Error) -> ControlClientError {
        let mut deepest: &dyn std::error::Error = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        ControlClientError::Absent { who: self.who.to_string(), why: deepest.to_string() }
    }

    fn strange(&self, why: String) -> ControlClientError {
        ControlClientError::Strange { who: self.who.to_string(), why }
    }
}
