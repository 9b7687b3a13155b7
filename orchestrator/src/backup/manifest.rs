//! The manifest of a backup: its first member, whose digest is checked and which lists the digests of all the others.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Component, Utf8Path};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_bundle::PublicKey;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::log::SegmentName;

/// The version of the format. Optional members need no new version. The number is raised when an older reader would
/// restore too little, or could not read the members after the manifest. From 2 on, a backup is signed.
pub const FORMAT: u64 = 2;

/// Identifies a backup of this program.
pub(super) const KIND: &str = "textnlp-backup";

/// Tens of thousands of journal bodies are one file, so a valid backup has far fewer members than this.
const MEMBERS_MAX: usize = 100_000;

/// The content of a backup, with the place of each member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `textnlp-backup`.
    pub kind: String,
    /// See [`FORMAT`].
    pub format: u64,
    /// The key of the environment that signed this manifest. The reader has verified the signature; whether it is the
    /// expected key, only its caller knows. `None` for backups of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<PublicKey>,
    /// The environment.
    pub environment: EnvironmentName,
    /// The lineage of the deployment.
    pub lineage: Lineage,
    /// When the backup was taken.
    pub at: Timestamp,
    /// Name and version of the program that took it.
    pub tool: String,
    /// The machine it was taken on.
    pub host: String,
    /// The database of each site that has one.
    pub databases: BTreeMap<SiteName, Database>,
    /// The served models, by name.
    pub models: BTreeMap<String, Model>,
    /// Every other member, in the order of the archive.
    pub members: Vec<Member>,
}

/// A database in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// The member with its content.
    pub member: String,
    /// Where it is restored to, relative to the state folder.
    pub path: String,
    /// The version of its schema.
    pub schema: u64,
    /// The count of API keys in it.
    pub keys: u64,
    /// The count of requests in its usage records.
    pub usage: u64,
    /// The base backup, for a managed PostgreSQL whose log is archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

/// A PostgreSQL base backup, by `pg_basebackup`. With the archived log, it can be restored to any later point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The member: a tar.
    pub member: String,
    /// PostgreSQL's system identifier, in digits. `initdb` assigns it to the files and to their log.
    pub system: String,
    /// The major version of PostgreSQL that can read it.
    pub version: u32,
    /// The first log segment it needs; included in the backup.
    pub first: SegmentName,
    /// The last log segment that is included in the backup.
    pub last: SegmentName,
    /// The length of each log segment, in bytes.
    pub part_bytes: u64,
    /// The earliest point in time that can be restored.
    pub from: Timestamp,
    /// Whether the environment's key signs the segments of the log. The logs of earlier versions are not signed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_signed: bool,
}

/// A served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its source.
    pub source: String,
    /// Its digest; the content is fetched again on restore.
    pub digest: Option<String>,
    /// The folder of members with its content, if the backup includes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// A member of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its path within the backup.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Base {
    /// Whether the segments belong to one log, and the system identifier is a number.
    fn is_sound(&self) -> bool {
        let number = |part: &SegmentName| part.number(self.part_bytes);
        self.system.parse::<u64>().is_ok_and(|system| system.to_string() == self.system)
            && number(&self.first).is_some()
            && number(&self.first) <= number(&self.last)
    }
}

impl Manifest {
    /// Parses a manifest. `Err(Ok(n))` is a newer format version, `Err(Err(why))` is not a manifest.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Result<u64, String>> {
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| Err(error.to_string()))?;
        if value["kind"] != KIND {
            return Err(Err(format!("its list is not of kind `{KIND}`")));
        }
        match value["format"].as_u64() {
            Some(found) if found > FORMAT => return Err(Ok(found)),
            Some(1..=FORMAT) => {}
            _ => return Err(Err("its list has no format".to_owned())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| Err(error.to_string()))?;
        manifest.check().map_err(Err)?;
        Ok(manifest)
    }

    /// Whether every path is unique and stays inside of the backup, and every reference resolves.
    fn check(&self) -> Result<(), String> {
        if self.signer.is_some() != (self.format > 1) {
            return Err("its signer does not fit its format".to_owned());
        }
        if self.members.len() > MEMBERS_MAX {
            return Err(format!("it lists {} members", self.members.len()));
        }
        let mut seen = BTreeSet::new();
        let mut sum = 0u64;
        for member in &self.members {
            if !is_inside(&member.path) {
                return Err(format!("`{}` leaves the target folder", shown(&member.path)));
            }
            if !seen.insert(member.path.as_str()) {
                return Err(format!("`{}` is listed twice", shown(&member.path)));
            }
            if member.sha256.len() != 64 || !member.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("`{}` has no digest", shown(&member.path)));
            }
            sum = sum
                .checked_add(member.bytes)
                .filter(|sum| *sum < 1 << 60)
                .ok_or("its members are too large in total")?;
        }
        for (site, database) in &self.databases {
            let base = database.base.as_ref();
            if !seen.contains(database.member.as_str())
                || !is_inside(&database.path)
                || base.is_some_and(|base| !seen.contains(base.member.as_str()))
            {
                return Err(format!("the database of `{site}` is not in it"));
            }
            if base.is_some_and(|base| !base.is_sound()) {
                return Err(format!("the base of `{site}` does not say which log it belongs to"));
            }
        }
        match self.models.values().filter_map(|model| model.folder.as_ref()).find(|folder| !is_inside(folder)) {
            Some(folder) => Err(format!("`{}` leaves the target folder", shown(folder))),
            None => Ok(()),
        }
    }

    /// The total length of all members, in bytes.
    pub fn bytes(&self) -> u64 {
        self.members.iter().map(|member| member.bytes).sum()
    }
}

/// Whether a path is relative and stays below its folder.
pub fn is_inside(path: &str) -> bool {
    let normal = |part| matches!(part, Utf8Component::Normal(_));
    let rebuilt: Vec<&str> = Utf8Path::new(path).components().map(|part| part.as_str()).collect();
    !path.is_empty()
        && path.len() <= 1024
        && !path.chars().any(char::is_control)
        && Utf8Path::new(path).components().all(normal)
        // `a//b` and `a/./b` are aliases of `a/b`.
        && rebuilt.join("/") == path
}

/// Escapes an untrusted name from a file, for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_paths_without_parent_references_are_accepted() {
        for good in ["a", "state/journal/here/log", "a b/ü.yaml", "..a/b"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/./b", "a/", "./a", "a\0b", "a\nb", &"x".repeat(1025)]
        {
            assert!(!is_inside(bad), "{bad:?}");
        }
    }
}
