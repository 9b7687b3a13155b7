//! What a restore makes valid again: API keys and secrets that were revoked or rotated after the backup, by the audit log of
//! the state that it replaces. And the API keys of that state that it loses.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use textnlp_orchestrator::backup::Manifest;
use textnlp_orchestrator::state::Folder;
use textnlp_orchestrator::state::audit::{self, CommandRecord};
use uuid::Uuid;

use crate::failure::Exit;

/// What is valid again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValidAgain {
    /// API keys.
    pub keys: Vec<Withdrawn>,
    /// Secrets of the environment.
    pub secrets: Vec<Withdrawn>,
    /// Why there may be more.
    pub unknown: Option<String>,
}

/// A key or secret that the replaced state had revoked or rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// The public ID of the key, or the name of the secret: `jwt`.
    pub id: String,
    /// The name of the key, where the restored database could be read.
    pub name: Option<String>,
    /// When the last command that revoked or rotated it began.
    pub at: Timestamp,
    /// The command that does it again, without the program and the flags of the environment: `key revoke ID`.
    pub command: String,
}

/// An API key that a restore loses: it is not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostKey {
    /// Its public ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
}

impl LostKey {
    /// The keys of the replaced databases that no restored one has; those that were revoked are not missed.
    pub(super) fn of(replaced: &[Value], restored: &[Value]) -> Vec<Self> {
        let text = |key: &Value, field: &str| key[field].as_str().unwrap_or_default().to_owned();
        let mut lost: Vec<Self> = Vec::new();
        for key in replaced.iter().filter(|key| key["revoked_at"].is_null()) {
            let id = text(key, "public_id");
            // Sites that fill each other have the same keys.
            let is_known = lost.iter().any(|known| known.id == id);
            if !is_known && restored.iter().all(|known| known["public_id"] != id.as_str()) {
                lost.push(Self { name: text(key, "name"), tenant: text(key, "tenant"), id });
            }
        }
        lost
    }
}

/// What had ended before a backup.
#[derive(Clone, Copy)]
enum Before<'a> {
    /// What ended up to this time.
    Time(Timestamp),
    /// The commands with these ids.
    Recorded(&'a BTreeSet<Uuid>),
}

impl Before<'_> {
    fn has(self, id: Uuid, ended: Timestamp) -> bool {
        match self {
            Self::Time(time) => ended <= time,
            Self::Recorded(known) => known.contains(&id),
        }
    }
}

impl ValidAgain {
    /// Compares the state in `target` with a backup, of which `restored` is the state, and whose databases may be of another time,
    /// `keys_at`. A backup takes a while: what had ended before is what its own audit log says, which it copies first.
    pub(super) async fn after(
        target: &Utf8Path,
        restored: &Utf8Path,
        manifest: &Manifest,
        keys_at: Option<Timestamp>,
    ) -> Self {
        let known = audit::read(&Folder::at(restored)).await.map(|log| log.commands).unwrap_or_default();
        let known: BTreeSet<Uuid> = known.iter().filter(|one| one.end.is_some()).map(|one| one.command.id).collect();
        let before = if known.is_empty() { Before::Time(manifest.at) } else { Before::Recorded(&known) };
        match audit::read(&Folder::at(target)).await {
            Ok(log) => {
                let unknown = (!log.damage.is_empty()).then(|| "its audit log is damaged".to_owned());
                Self { unknown, ..Self::of(&log.commands, keys_at.map_or(before, Before::Time), before) }
            }
            Err(error) => Self { unknown: Some(textnlp_provider::error_chain(&error)), ..Self::default() },
        }
    }

    /// By the commands of the audit log. Those that may have failed halfway count; those that were refused do not.
    fn of(commands: &[CommandRecord], of_keys: Before<'_>, of_secrets: Before<'_>) -> Self {
        let refused = [Exit::Usage as i32, Exit::Refused as i32];
        let mut keys: BTreeMap<String, Withdrawn> = BTreeMap::new();
        let mut secrets = keys.clone();
        for CommandRecord { time, command, end } in commands {
            let (found, before) = match command.command.as_str() {
                "key revoke" | "key rotate" => (&mut keys, of_keys),
                "secret rotate" => (&mut secrets, of_secrets),
                _ => continue,
            };
            let last = end.as_ref().map_or(*time, |end| end.time);
            let is_refused = end.as_ref().is_some_and(|end| refused.contains(&end.exit));
            let Some(id) = command.arguments.iter().find(|word| !word.starts_with("--")) else { continue };
            if before.has(command.id, last) || is_refused {
                continue;
            }
            let is_leak = command.arguments.iter().any(|word| word == "--immediately");
            let again = format!("{} {id}{}", command.command, if is_leak { " --immediately" } else { "" });
            // A revoked key needs no rotation, and what leaked once is rotated as leaked.
            let is_stronger = |known: &Withdrawn| {
                known.command.starts_with("key revoke") || known.command.ends_with(" --immediately")
            };
            let command = found.get(id).filter(|known| is_stronger(known)).map(|known| known.command.clone());
            let command = command.unwrap_or(again);
            found.insert(id.clone(), Withdrawn { id: id.clone(), name: None, at: *time, command });
        }
        Self { keys: keys.into_values().collect(), secrets: secrets.into_values().collect(), unknown: None }
    }

    /// Adds the names of the keys, and removes those that the keys of the restored databases lack or have as revoked.
    pub(super) fn keep(&mut self, known: &[Value]) {
        self.keys.retain_mut(|key| {
            let valid =
                known.iter().find(|known| known["public_id"] == key.id.as_str() && known["revoked_at"].is_null());
            key.name = valid.and_then(|valid| valid["name"].as_str()).map(str::to_owned);
            valid.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use textnlp_orchestrator::state::audit::{AuditedCommand, CommandEnd, CommandOutcome};
    use textnlp_provider::EnvironmentName;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(hour * 3600).unwrap()
    }

    /// A command that took a minute; without an exit status it was killed.
    fn ran(hour: i64, command: &str, arguments: &[&str], exit: Option<i32>) -> CommandRecord {
        let time = at(hour);
        let end = exit.map(|exit| {
            let outcome = if exit == 0 { CommandOutcome::Succeeded } else { CommandOutcome::Failed };
            CommandEnd { time: time + jiff::SignedDuration::from_secs(60), outcome, exit, code: None }
        });
        let command = AuditedCommand {
            id: Uuid::new_v4(),
            environment: EnvironmentName::new("staging").unwrap(),
            command: command.to_owned(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            actor: "ada".to_owned(),
            user: None,
            claimed_sudo_user: None,
            host: "machine".to_owned(),
            pid: 7,
            tool: "test".to_owned(),
            release: None,
            reason: None,
        };
        CommandRecord { time, command, end }
    }

    #[test]
    fn what_was_withdrawn_after_the_backup_is_listed_once() {
        let log = [
            ran(1, "key revoke", &["before"], Some(0)),
            ran(3, "key rotate", &["leaked", "--grace=1h"], Some(0)),
            ran(4, "key revoke", &["leaked"], Some(0)),
            ran(5, "key revoke", &["--env=staging", "killed"], None),
            ran(5, "key revoke", &["refused"], Some(Exit::Refused as i32)),
            ran(5, "key revoke", &["unknown"], Some(Exit::Usage as i32)),
            ran(6, "secret rotate", &["jwt", "--immediately"], Some(Exit::GateShut as i32)),
            ran(7, "secret rotate", &["jwt"], Some(0)),
            ran(8, "secret rotate", &["database", "--no-gate"], Some(Exit::Failed as i32)),
            ran(9, "up", &["--yes"], Some(0)),
        ];
        let commands = |found: &[Withdrawn]| {
            found.iter().map(|one| format!("{} {}", one.at.as_second() / 3600, one.command)).collect::<Vec<_>>()
        };
        let found = ValidAgain::of(&log, Before::Time(at(2)), Before::Time(at(2)));
        assert_eq!(commands(&found.keys), ["5 key revoke killed", "4 key revoke leaked"]);
        assert_eq!(commands(&found.secrets), ["8 secret rotate database", "7 secret rotate jwt --immediately"]);
        // A database of a later time has what was revoked before it.
        let later = ValidAgain::of(&log, Before::Time(at(5)), Before::Time(at(2)));
        assert_eq!((later.keys, later.secrets), (Vec::new(), found.secrets));
        // What was revoked while the backup was taken is not in its databases for certain, and not in its audit log.
        let known: BTreeSet<Uuid> = log[..2].iter().map(|one| one.command.id).collect();
        let during = ValidAgain::of(&log, Before::Recorded(&known), Before::Recorded(&known));
        assert_eq!(commands(&during.keys), ["5 key revoke killed", "4 key revoke leaked"]);
    }

    #[test]
    fn keys_of_the_replaced_databases_that_the_backup_lacks_are_lost() {
        let key = |id: &str, revoked_at: Option<i64>| json!({ "public_id": id, "name": format!("of {id}"), "tenant": "acme", "revoked_at": revoked_at });
        let replaced = [key("kept", None), key("later", None), key("revoked", Some(1)), key("later", None)];
        let lost = LostKey::of(&replaced, &[key("kept", Some(1)), key("gone", None)]);
        assert_eq!(lost, [LostKey { id: "later".into(), name: "of later".into(), tenant: "acme".into() }]);
    }

    #[test]
    fn only_keys_that_the_restored_database_accepts_are_listed_by_name() {
        let log = ["valid", "revoked", "created-later"].map(|id| ran(3, "key revoke", &[id], Some(0)));
        let mut found = ValidAgain::of(&log, Before::Time(at(2)), Before::Time(at(2)));
        found.keep(&[
            json!({ "public_id": "valid", "name": "a person", "revoked_at": null }),
            json!({ "public_id": "revoked", "name": "another", "revoked_at": 1 }),
        ]);
        let named: Vec<_> = found.keys.iter().map(|key| (key.id.as_str(), key.name.as_deref())).collect();
        assert_eq!(named, [("valid", Some("a person"))]);
    }
}
