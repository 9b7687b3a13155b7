//! The witness process: its record on disk, and the traffic weights of the global endpoint.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_control::{Configuration, Memory, Message, Record, Site, Witness, WitnessSettings, weights};
use tokio_util::sync::CancellationToken;

use super::config::WitnessConfig;
use super::{Error, client, clock, disk, dns};

/// The stored state: the record and its history.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredWitness {
    #[serde(default)]
    memory: Memory,
    history: Vec<ConfigurationRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ConfigurationRecord {
    epoch: u64,
    primary: Site,
    members: Vec<Site>,
    /// Milliseconds since 1970.
    at_ms: i64,
    why: String,
}

/// Maximum number of changes in the history.
const MOST_HISTORY: usize = 100;

/// A witness with its settings and its stored state.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) config: WitnessConfig,
    pub(super) dns: Option<dns::Records>,
    state: Mutex<(Witness, StoredWitness)>,
}

impl Running {
    pub(super) fn open(config: WitnessConfig) -> Result<Self, Error> {
        let wrong = |why: String| Error::Folder { folder: config.folder.clone(), why };
        std::fs::create_dir_all(&config.folder).map_err(|error| wrong(error.to_string()))?;
        let kept: StoredWitness = disk::read(&config.folder.join("record.json")).map_err(wrong)?.unwrap_or_default();
        let settings = WitnessSettings {
            sites: config.sites.iter().cloned().collect(),
            home: config.home.clone(),
            grace: config.grace_ms(),
        };
        let witness = Witness::new(settings, kept.memory.clone(), clock::now());
        let dns = config.dns.clone().map(dns::Records::new);
        Ok(Self { config, dns, state: Mutex::new((witness, kept)) })
    }

    /// Handles messages; the record is on disk before the answers are sent.
    pub(super) fn receive(&self, messages: Vec<Message>) -> io::Result<Vec<Message>> {
        let mut state = self.state();
        let mut answers = Vec::new();
        for message in messages {
            // A change that cannot be stored is reverted.
            let before = state.0.clone();
            let (record, answer) = state.0.receive(clock::now(), message);
            if let Some(record) = record {
                let mut kept = state.1.clone();
                kept.add(record);
                kept.memory = state.0.memory().clone();
                if let Err(error) = disk::put(&self.config.folder.join("record.json"), &kept) {
                    state.0 = before;
                    return Err(error);
                }
                state.1 = kept;
            }
            answers.extend(answer);
        }
        Ok(answers)
    }

    /// See `GET /v1/status`.
    pub(super) fn status(&self) -> Value {
        let state = self.state();
        let (witness, kept) = &*state;
        let now = clock::now();
        let holds = witness.configuration();
        json!({
            "epoch": holds.map_or(0, |c| c.epoch),
            // Empty while there is no primary.
            "primary": holds.map_or("", |c| c.primary.as_str()),
            "members": holds.map(|c| c.members.keys().collect::<Vec<_>>()).unwrap_or_default(),
            "held": holds.is_some_and(|c| c.holds(&self.config.home)),
            "renewed_ms": witness.renewed(now),
            "heard_ms": witness.heard(now),
            "grace_ms": self.config.grace_ms(),
            "home": self.config.home,
            "sites": self.config.sites,
            "weights": holds.map(|c| self.weights(c)).unwrap_or_default(),
            "dns": self.dns.as_ref().map(dns::Records::status),
            "history": kept.history.iter().map(ConfigurationRecord::shown).collect::<Vec<_>>(),
        })
    }

    fn weights(&self, configuration: &Configuration) -> BTreeMap<Site, u32> {
        weights(configuration, &self.config.home, &self.config.weights)
    }

    /// `None` until there is a configuration.
    pub(super) fn wanted_weights(&self) -> Option<BTreeMap<Site, u32>> {
        self.state().0.configuration().map(|configuration| self.weights(configuration))
    }

    fn state(&self) -> MutexGuard<'_, (Witness, StoredWitness)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredWitness {
    fn add(&mut self, record: Record) {
        let Record { configuration, why } = record;
        tracing::info!(epoch = configuration.epoch, primary = %configuration.primary, %why, "the configuration has changed");
        self.history.push(ConfigurationRecord {
            epoch: configuration.epoch,
            primary: configuration.primary.clone(),
            members: configuration.members.keys().cloned().collect(),
            at_ms: textnlp_store::now_ms(),
            why,
        });
        let more = self.history.len().saturating_sub(MOST_HISTORY);
        self.history.drain(..more);
    }
}

impl ConfigurationRecord {
    fn shown(&self) -> Value {
        let at = jiff::Timestamp::from_millisecond(self.at_ms).map_or_else(|_| String::new(), |at| at.to_string());
        json!({ "epoch": self.epoch, "primary": self.primary, "members": self.members, "at": at, "why": self.why })
    }
}

/// Sets the weights of the global endpoint when they differ from the wanted ones: after a failover, and after a restart
/// of the endpoint.
pub(super) async fn keep_weights(running: Arc<Running>, stop: CancellationToken) {
    const POLL_INTERVAL: Duration = Duration::from_millis(200);
    const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
    let Some(front) = running.config.front.clone() else { return };
    let mut silent = false;
    while !stop.is_cancelled() {
        if let Some(wanted) = running.wanted_weights() {
            let observed = client::get(&front, "/status", REQUEST_TIMEOUT).await;
            let there: Option<BTreeMap<Site, u32>> = observed.as_ref().ok().map(|(_, status)| {
                let backends = status["backends"].as_array().into_iter().flatten();
                let weight = |b: &Value| Some((Site::new(b["name"].as_str()?), b["weight"].as_u64()? as u32));
                backends.filter_map(weight).collect()
            });
            match (observed, there) {
                (Ok(_), Some(there)) if there != wanted => {
                    silent = false;
                    let known: BTreeMap<_, _> =
                        wanted.into_iter().filter(|(site, _)| there.contains_key(site)).collect();
                    if known.iter().any(|(site, weight)| there.get(site) != Some(weight)) {
                        match client::post(&front, "/weights", &json!(known), REQUEST_TIMEOUT).await {
                            Ok((status, _)) if status.is_success() => {
                                tracing::info!(?known, "traffic weights are updated")
                            }
                            Ok((status, answer)) => {
                                tracing::warn!(%status, %answer, "the global endpoint rejected the weights")
                            }
                            Err(why) => tracing::warn!(%why, "the global endpoint did not accept the weights"),
                        }
                    }
                }
                (Ok(_), _) => silent = false,
                (Err(why), _) if !silent => {
                    silent = true;
                    tracing::warn!(%why, "the global endpoint does not answer");
                }
                _ => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}
