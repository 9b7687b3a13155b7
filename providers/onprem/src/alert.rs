//! Alerts of a site: the receivers, the active alerts, and the outbox.
//!
//! The supervisor and commands put messages into the outbox. One process at a time sends them. No caller blocks on
//! delivery, and the outbox is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_keys::{SiteFolder, files};
use textnlp_provider::alert::Alert;
use textnlp_provider::component::{AlertLimits, ServiceLimits};

use crate::lock;
use crate::names::ALERTS_FILE;

/// Above this count the oldest message is dropped.
const WAITING_MOST: usize = 200;

/// Messages that could not be sent for this long are dropped.
const RETENTION: SignedDuration = SignedDuration::from_hours(24);

/// The receivers and limits of alerts: the file that `up` writes for the supervisor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertOrder {
    /// The environment.
    pub environment: String,
    /// The site.
    pub site: String,
    /// The receivers by name.
    pub receivers: BTreeMap<String, Receiver>,
    /// Thresholds of the site's alerts.
    pub limits: AlertLimits,
    /// Thresholds of the service's alerts, as clients see the service.
    #[serde(default)]
    pub service: ServiceLimits,
    /// Whether this site also sends the alerts of the environment as a whole, such as its gate.
    #[serde(default)]
    pub home: bool,
    /// The on-call contacts by role.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contacts: BTreeMap<String, String>,
    /// A certificate authority to trust for receivers, besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Utf8PathBuf>,
    /// The environment's proxies, as `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`. They override the process's variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy: BTreeMap<String, Receiver>,
}

/// The address of a receiver or of its proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Receiver {
    /// Written here: it holds no secret.
    Address {
        /// The address.
        address: String,
    },
    /// In a file.
    File {
        /// Its path.
        file: Utf8PathBuf,
    },
}

/// An active alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// The kind of alert.
    pub name: String,
    /// The affected object.
    pub about: String,
    /// The message.
    pub says: String,
    /// When the problem began.
    pub since: Timestamp,
    /// When a notification was last sent.
    pub told: Timestamp,
    /// When the problem was last seen to end, if it has not returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub well_since: Option<Timestamp>,
}

/// The outbox of a site.
#[derive(Debug, Clone)]
pub struct Outbox {
    folder: Utf8PathBuf,
    order: Utf8PathBuf,
}

/// A message that is not delivered to all receivers yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingMessage {
    /// The message.
    pub alert: Alert,
    /// The receivers that have got it.
    #[serde(default)]
    pub arrived: BTreeSet<String>,
    #[serde(skip)]
    file: Utf8PathBuf,
}

impl Outbox {
    /// The outbox of a site's folder. Creates nothing until the first message.
    pub fn of(site: &Utf8Path) -> Self {
        let site = SiteFolder::at(site);
        Self { folder: site.join("run/alerts"), order: site.join(ALERTS_FILE) }
    }

    /// The alert order; `None` when no receivers are configured.
    pub fn order(&self) -> io::Result<Option<AlertOrder>> {
        match files::read_bounded(&self.order, files::TEXT_MAX) {
            Ok(text) => serde_yaml::from_slice(&text).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores a message until it is sent. Returns whether the oldest one was dropped for it.
    pub fn put(&self, alert: Alert) -> io::Result<bool> {
        files::make_folder(&self.folder)?;
        // Ordered by the time of the message; storing the same message twice keeps one.
        let id: String = alert.id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(80).collect();
        let file = self.folder.join(format!("{:015}-{id}.json", alert.at.as_millisecond().max(0)));
        let waiting = PendingMessage { alert, arrived: BTreeSet::new(), file: file.clone() };
        self.write(&waiting)?;
        let all = self.files()?;
        let too_many = all.len().saturating_sub(WAITING_MOST);
        for oldest in all.iter().filter(|path| **path != file).take(too_many) {
            files::remove_file(oldest)?;
        }
        Ok(too_many > 0)
    }

    /// The pending messages, oldest first. Removes messages that are expired or unreadable.
    pub fn waiting(&self, now: Timestamp) -> io::Result<Vec<PendingMessage>> {
        let mut all = Vec::new();
        for file in self.files()? {
            let text = files::read_bounded(&file, files::TEXT_MAX)?;
            match serde_json::from_slice::<PendingMessage>(&text) {
                Ok(waiting) if now.duration_since(waiting.alert.at) < RETENTION => {
                    all.push(PendingMessage { file, ..waiting })
                }
                _ => files::remove_file(&file)?,
            }
        }
        Ok(all)
    }

    /// Whether no message is pending. Cheap.
    pub fn is_empty(&self) -> bool {
        self.files().map_or(true, |files| files.is_empty())
    }

    /// Records the delivery of a message to a receiver.
    pub fn arrived(&self, waiting: &mut PendingMessage, receiver: &str) -> io::Result<()> {
        waiting.arrived.insert(receiver.to_owned());
        self.write(waiting)
    }

    /// Removes a message that all receivers have.
    pub fn done(&self, waiting: &PendingMessage) -> io::Result<()> {
        files::remove_file(&waiting.file)
    }

    /// Takes the sender's lock, held while the file is open; `None` when another process holds it.
    pub fn sole_sender(&self) -> io::Result<Option<File>> {
        files::make_folder(&self.folder)?;
        match lock::take(&self.folder.join("sender.lock")) {
            Ok(held) => Ok(Some(held)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The active alerts of the supervisor's last poll.
    pub fn active(&self) -> Vec<Active> {
        let text = files::read_bounded(&self.folder.join(ACTIVE), files::TEXT_MAX).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Stores the active alerts, so that the next supervisor does not send them again.
    pub(crate) fn remember(&self, active: &[Active]) -> io::Result<()> {
        files::make_folder(&self.folder)?;
        files::put(&self.folder.join(ACTIVE), &serde_json::to_vec_pretty(active)?, 0o600)
    }

    fn write(&self, waiting: &PendingMessage) -> io::Result<()> {
        files::put(&waiting.file, &serde_json::to_vec_pretty(waiting)?, 0o600)
    }

    fn files(&self) -> io::Result<Vec<Utf8PathBuf>> {
        let entries = match self.folder.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            let is_message = entry.file_name().starts_with(|c: char| c.is_ascii_digit());
            if is_message && entry.file_name().ends_with(".json") {
                all.push(entry.into_path());
            }
        }
        all.sort();
        Ok(all)
    }
}

const ACTIVE: &str = "active.json";

#[cfg(test)]
mod tests {
    use textnlp_provider::alert::AlertState;

    use super::*;

    fn alert(number: i64) -> Alert {
        let text = String::new();
        Alert {
            id: format!("id-{number}"),
            environment: "staging".to_owned(),
            site: "here".to_owned(),
            at: Timestamp::from_second(1_000_000 + number).unwrap(),
            state: AlertState::Raised,
            name: "disk".to_owned(),
            about: text.clone(),
            says: text,
        }
    }

    #[test]
    fn outbox_keeps_order_limits_and_delivery_status() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::of(&Utf8Path::from_path(dir.path()).unwrap().join("sites/here"));
        assert!(outbox.is_empty() && outbox.active().is_empty() && outbox.order().unwrap().is_none());
        std::fs::create_dir_all(&outbox.folder).unwrap();
        let now = Timestamp::from_second(1_000_500).unwrap();
        for number in (0..210).rev() {
            outbox.put(alert(number)).unwrap();
        }
        let waiting = outbox.waiting(now).unwrap();
        assert_eq!(waiting.len(), WAITING_MOST);
        // The one that was just put is never the one that goes.
        assert_eq!(waiting[0].alert.id, "id-0");
        let mut first = waiting[0].clone();
        outbox.put(alert(0)).unwrap();
        outbox.arrived(&mut first, "oncall").unwrap();
        let again = outbox.waiting(now).unwrap();
        assert_eq!((again.len(), again[0].arrived.len(), again[1].arrived.len()), (WAITING_MOST, 1, 0));
        outbox.done(&first).unwrap();
        assert_eq!(outbox.waiting(now).unwrap().len(), WAITING_MOST - 1);
        let late = Timestamp::from_second(1_000_000 + 86_400 + 205).unwrap();
        assert_eq!(outbox.waiting(late).unwrap().len(), 4, "what is a day old tells nobody anything");
        std::fs::write(outbox.folder.join("0-torn.json"), "{").unwrap();
        assert_eq!(outbox.waiting(late).unwrap().len(), 4);
        assert!(!outbox.folder.join("0-torn.json").exists());
        let held = outbox.sole_sender().unwrap();
        assert!(held.is_some());
    }

    #[test]
    fn alert_receivers_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let site = Utf8Path::from_path(dir.path()).unwrap();
        std::fs::create_dir(site.join("config")).unwrap();
        let receivers = BTreeMap::from([
            ("oncall".to_owned(), Receiver::File { file: "/run/address".into() }),
            ("team".to_owned(), Receiver::Address { address: "https://hooks.example.com/".to_owned() }),
        ]);
        let (environment, site_name) = ("staging".to_owned(), "here".to_owned());
        let proxy = BTreeMap::from([("HTTPS_PROXY".to_owned(), Receiver::File { file: "/run/proxy".into() })]);
        let order = AlertOrder { environment, site: site_name, receivers, home: true, proxy, ..AlertOrder::default() };
        std::fs::write(site.join(ALERTS_FILE), serde_yaml::to_string(&order).unwrap()).unwrap();
        assert_eq!(Outbox::of(site).order().unwrap(), Some(order));
    }
}
