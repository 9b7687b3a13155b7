//! Talking to a watch or to the witness: JSON over its Unix socket, with a bound on every answer and every wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A table of a hundred thousand keys stays below this.
const MOST_BYTES: usize = 32 << 20;
/// Statuses come from memory.
pub const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// A claim or a handover is a few exchanges between sites.
const SHIFT_WITHIN: Duration = Duration::from_secs(20);
/// A table or a list of ids is read from a disk.
const READ_WITHIN: Duration = Duration::from_secs(15);
/// Ids in one question, as the watch allows.
const MOST_IDS: usize = 1000;
/// Writes in one request: far below what a body may hold.
const MOST_WRITES: usize = 200;

/// Where the places of an environment are reached.
#[derive(Debug, Clone)]
pub struct Places {
    /// Every site with its watch, in the environment's order.
    pub sites: Vec<(String, Utf8PathBuf)>,
    /// The witness.
    pub witness: Utf8PathBuf,
    /// The site that is primary when nothing is wrong.
    pub home: String,
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// Nobody listens on its socket.
    #[error("{who} is not there ({why})")]
    Absent {
        /// Who was asked.
        who: String,
        /// What the socket says.
        why: String,
    },
    /// It takes too long: it stands still, or what it needs does.
    #[error("{who} does not answer within {within_ms} ms")]
    Silent {
        /// Who was asked.
        who: String,
        /// How long it had.
        within_ms: u128,
    },
    /// It says no.
    #[error("{who} says no: {message}")]
    Refused {
        /// Who was asked.
        who: String,
        /// The status: 409 for what is not granted, 503 for what cannot be done now.
        status: u16,
        /// A stable word.
        code: String,
        /// Its reason.
        message: String,
        /// What it advises.
        hint: Option<String>,
    },
    /// It says something else than was agreed.
    #[error("{who} answers what is not understood: {why}")]
    Strange {
        /// Who was asked.
        who: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What a watch says of its site.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchStatus {
    /// Which site.
    pub site: String,
    /// `primary`, `member` or `outsider`.
    pub role: String,
    /// The configuration that it knows.
    pub epoch: u64,
    /// Who is primary, as far as it knows.
    pub primary: Option<String>,
    /// Whose storing is waited for.
    pub members: Vec<String>,
    /// Whether control data can be changed through it.
    pub writable: bool,
    /// Why not.
    pub why_not: Option<String>,
    /// The last entry of its log.
    pub last: u64,
    /// The last entry that is acknowledged.
    pub committed: u64,
    /// The last entry that its database shows.
    pub applied: u64,
    /// The other sites as it sees them.
    pub peers: BTreeMap<String, Peer>,
    /// How long ago the witness answered it.
    pub witness_heard_ms: Option<u64>,
    /// What would be lost with this site, as time.
    pub rpo_ms: Rpo,
    /// Entries that were taken back because another site had become primary.
    pub withdrawn: u64,
    /// Whether it may claim by itself.
    pub automatic: bool,
    /// How far it is with copying the primary's `models` and `configuration`.
    pub copies: BTreeMap<String, Copies>,
    /// Its server of the PostgreSQL that all sites share, where they do.
    pub database: Option<DatabaseAt>,
    /// What its servers, where they are elsewhere than their watch, say of the database that they store in: `primary`, or `unavailable`
    /// where they do not get into it or it is a copy.
    pub servers_database: Option<String>,
}

/// The role of a database that takes changes.
pub const PRIMARY: &str = "primary";

impl WatchStatus {
    /// The role of the database that its servers work with, where it is one with roles: what is not `primary` takes no changes.
    pub fn database_role(&self) -> Option<&str> {
        let own = self.database.as_ref().map(|database| match database.role.as_str() {
            "" => "not running",
            role => role,
        });
        own.or(self.servers_database.as_deref())
    }
}

/// A site's server of a PostgreSQL that all sites share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseAt {
    /// `primary`, `copy`, or nothing while it does not run.
    pub role: String,
    /// Whether it does its work.
    pub ready: bool,
    /// Why not.
    pub why: Option<String>,
    /// Whether it has everything that the primary's had, so that its site may lead.
    pub fit: bool,
    /// The copies at other sites, as a primary sees them.
    pub copies: BTreeMap<String, DatabaseCopy>,
    /// How often what it did alone was taken back, since its keeper began.
    pub rewound: u64,
    /// How often it was copied from the primary as a whole.
    pub copied: u64,
}

/// A copy of the database at another site, as the primary sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DatabaseCopy {
    /// Whether it follows.
    pub connected: bool,
    /// What it has not replayed.
    pub behind_bytes: u64,
    /// How long ago the first of that was written.
    pub behind_ms: u64,
}

/// How far a site is with copying one kind of data from the primary.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Copies {
    /// Whether it is the one that others copy from.
    pub source: bool,
    /// How many the primary has.
    pub wanted: u64,
    /// How many of them are here.
    pub held: u64,
    /// Bytes that are still to come.
    pub missing_bytes: u64,
    /// Age of the primary's list that everything here was last found equal to.
    pub whole_ms: Option<u64>,
    /// Why something is not here.
    pub error: Option<String>,
}

/// Another site, as a watch sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// The last entry that it stored.
    pub stored: u64,
    /// Whether its storing is waited for.
    pub member: bool,
    /// How long ago it answered.
    pub heard_ms: Option<u64>,
    /// Rows of usage that it does not hold yet.
    pub usage_behind_rows: u64,
    /// How old the oldest of them is.
    pub usage_behind_ms: u64,
}

/// What would be lost with a site, as time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rpo {
    /// Control data.
    pub control: u64,
    /// Usage.
    pub usage: u64,
}

/// What the witness says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WitnessStatus {
    /// The configuration.
    pub epoch: u64,
    /// Who is primary.
    pub primary: String,
    /// Whose storing is waited for.
    pub members: Vec<String>,
    /// How long ago the primary renewed its place.
    pub renewed_ms: u64,
    /// How long it may be silent before another gets its place.
    pub grace_ms: u64,
    /// Who is primary when nothing is wrong.
    pub home: String,
    /// Every site.
    pub sites: Vec<String>,
    /// The shares of traffic, as the front has them.
    pub weights: BTreeMap<String, u32>,
    /// The name in DNS that it keeps, if it keeps one.
    pub dns: Option<DnsName>,
    /// The last configurations.
    pub history: Vec<Configuration>,
}

/// A name whose addresses follow the sites.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsName {
    /// Which.
    pub name: String,
    /// The addresses that it should have.
    pub wanted: Option<Vec<String>>,
    /// Those that the name server said it has.
    pub last_acknowledged: Option<Vec<String>>,
    /// When it said so.
    pub at: Option<String>,
    /// Why the last attempt failed, if it did.
    pub error: Option<DnsError>,
}

/// Why a name server did not do what was asked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsError {
    /// A stable word.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A configuration of the past.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// Its number.
    pub epoch: u64,
    /// Who was primary.
    pub primary: String,
    /// Whose storing was waited for.
    pub members: Vec<String>,
    /// Since when.
    pub at: String,
    /// Why.
    pub why: String,
}

/// A write that two sites stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Acknowledged {
    /// Under which configuration.
    pub epoch: u64,
    /// As which entry.
    pub index: u64,
}

/// One end of a Unix socket.
#[derive(Debug, Clone)]
pub struct Socket {
    who: Arc<str>,
    http: reqwest::Client,
}

/// A site's watch.
#[derive(Debug, Clone)]
pub struct Watch {
    /// Which site.
    pub site: String,
    socket: Socket,
}

/// The witness.
#[derive(Debug, Clone)]
pub struct Witness(Socket);

/// Everybody that can be asked.
#[derive(Debug, Clone)]
pub struct Everybody {
    /// The watches, in the environment's order.
    pub watches: Vec<Watch>,
    /// The witness.
    pub witness: Witness,
    /// The site that is primary when nothing is wrong.
    pub home: String,
}

/// Whether a program on a Unix socket says that it is ready. One that is frozen takes the connection and says nothing.
pub async fn answers(socket: &Utf8Path) -> bool {
    const WITHIN: Duration = Duration::from_secs(1);
    Socket::new(socket.to_string(), socket).ask::<Value>("GET", "/ready", None, WITHIN).await.is_ok()
}

impl Everybody {
    /// Nobody is asked yet.
    pub fn at(places: &Places) -> Self {
        let watches = places.sites.iter().map(|(site, path)| Watch {
            site: site.clone(),
            socket: Socket::new(format!("the watch of {site}"), path),
        });
        let witness = Witness(Socket::new("the witness".to_owned(), &places.witness));
        Self { watches: watches.collect(), witness, home: places.home.clone() }
    }

    /// The watch of a site.
    pub fn watch(&self, site: &str) -> Option<&Watch> {
        self.watches.iter().find(|watch| watch.site == site)
    }

    /// The names of all sites.
    pub fn names(&self) -> Vec<String> {
        self.watches.iter().map(|watch| watch.site.clone()).collect()
    }
}

impl Watch {
    /// How its site is.
    pub async fn status(&self) -> Result<WatchStatus, TalkError> {
        self.socket.ask("GET", "/v1/status", None, STATUS_WITHIN).await
    }

    /// Changes control data; acknowledged when two sites stored it.
    pub async fn write(&self, writes: &[(String, Value)], within: Duration) -> Result<Acknowledged, TalkError> {
        let writes: Vec<Value> = writes.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        let body = json!({ "writes": writes, "timeout_ms": within.as_millis() as u64 });
        // A little longer than it may take itself, so that its own answer arrives.
        self.socket.ask("POST", "/v1/write", Some(body), within + Duration::from_millis(250)).await
    }

    /// The keys under a prefix that this site has.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>, TalkError> {
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
        let table: Table = self.socket.ask("GET", &format!("/v1/table?prefix={prefix}"), None, READ_WITHIN).await?;
        Ok(table.entries.into_keys().collect())
    }

    /// Removes every key under a prefix, and says how many there were.
    pub async fn clear(&self, prefix: &str) -> Result<usize, TalkError> {
        let keys = self.keys(prefix).await?;
        for some in keys.chunks(MOST_WRITES) {
            let writes: Vec<_> = some.iter().map(|key| (key.clone(), Value::Null)).collect();
            self.write(&writes, Duration::from_secs(5)).await?;
        }
        Ok(keys.len())
    }

    /// Which of these requests' usage this site holds.
    pub async fn known(&self, ids: &[String]) -> Result<Vec<String>, TalkError> {
        #[derive(Deserialize)]
        struct Known {
            known: Vec<String>,
        }
        let mut all = Vec::new();
        for some in ids.chunks(MOST_IDS) {
            let body = json!({ "request_ids": some });
            all.extend(self.socket.ask::<Known>("POST", "/v1/usage/ids", Some(body), READ_WITHIN).await?.known);
        }
        Ok(all)
    }

    /// Asks for the primary's place.
    pub async fn claim(&self) -> Result<(), TalkError> {
        self.socket.ask::<Value>("POST", "/v1/claim", Some(json!({})), SHIFT_WITHIN).await.map(drop)
    }

    /// Has the primary give its place away.
    pub async fn hand_over(&self, to: &str) -> Result<(), TalkError> {
        self.socket.ask::<Value>("POST", "/v1/handover", Some(json!({ "to": to })), SHIFT_WITHIN).await.map(drop)
    }
}

impl Witness {
    /// The configuration, and how the primary is.
    pub async fn status(&self) -> Result<WitnessStatus, TalkError> {
        self.0.ask("GET", "/v1/status", None, STATUS_WITHIN).await
    }
}

impl Socket {
    fn new(who: String, path: &Utf8Path) -> Self {
        // Nothing here is TLS; the client wants to be told so by a configuration that trusts nobody.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the protocol versions of its own default")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .unix_socket(path.as_std_path())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A connection to a site that stood still is of no use afterwards.
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client without TLS, proxies and names has nothing that can be missing");
        Self { who: who.into(), http }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        within: Duration,
    ) -> Result<T, TalkError> {
        let exchange = async {
            let url = format!("http://localhost{path}");
            let mut request = if method == "POST" { self.http.post(url) } else { self.http.get(url) };
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.map_err(|error| self.lost(&error))?;
            let status = response.status().as_u16();
            let mut bytes = Vec::new();
            let mut chunks = response.bytes_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| self.lost(&error))?;
                if bytes.len() + chunk.len() > MOST_BYTES {
                    return Err(self.strange(format!("more than {MOST_BYTES} bytes")));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok((status, bytes))
        };
        let silent = || TalkError::Silent { who: self.who.to_string(), within_ms: within.as_millis() };
        let (status, bytes) = tokio::time::timeout(within, exchange).await.map_err(|_| silent())??;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()));
        }
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let error = &answer["error"];
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        Err(TalkError::Refused {
            who: self.who.to_string(),
            status,
            code: text("code").unwrap_or_default(),
            // The claim's refusal may be a plain text.
            message: text("message")
                .or_else(|| error.as_str().map(str::to_owned))
                .unwrap_or_else(|| format!("status {status}")),
            hint: text("hint"),
        })
    }

    fn lost(&self, error: &reqwest::Error) -> TalkError {
        let mut deepest: &dyn std::error::Error = error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        TalkError::Absent { who: self.who.to_string(), why: deepest.to_string() }
    }

    fn strange(&self, why: String) -> TalkError {
        TalkError::Strange { who: self.who.to_string(), why }
    }
}
