//! What is in a copy: written first, believed only after its digest, and what every other byte is held against.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Component, Utf8Path};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::log::PartName;

/// The version of the format. Members are only added to a version; a number is added when an older reader would restore less than
/// there is.
pub const FORMAT: u64 = 1;

/// What tells a copy of ours from any other document.
pub(super) const KIND: &str = "textnlp-backup";

/// Tens of thousands of journal bodies are one file; a copy with more members than this is none of ours.
const MEMBERS_MAX: usize = 100_000;

/// The list of what is in a copy, with where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `textnlp-backup`.
    pub kind: String,
    /// See [`FORMAT`].
    pub format: u64,
    /// Which environment.
    pub environment: EnvironmentName,
    /// Which deployment.
    pub lineage: Lineage,
    /// When.
    pub at: Timestamp,
    /// Name and version of the program that made it.
    pub tool: String,
    /// The machine it was made on.
    pub host: String,
    /// The database of each site that has one.
    pub databases: BTreeMap<SiteName, Database>,
    /// What was served, by name.
    pub models: BTreeMap<String, Model>,
    /// Every other member, in the order in which they follow.
    pub members: Vec<Member>,
}

/// A database as it was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// The member.
    pub member: String,
    /// Where it belongs, from the state folder.
    pub path: String,
    /// Its schema.
    pub schema: u64,
    /// API keys in it.
    pub keys: u64,
    /// Requests that it accounts for.
    pub usage: u64,
    /// Where an archived log goes on from, for a PostgreSQL of our own whose log is archived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
}

/// A PostgreSQL's own files as `pg_basebackup` copied them: with the archived log they become what it was at any later moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The member: a tar.
    pub member: String,
    /// The number that PostgreSQL gave to these files and to their log when they were first made, in digits.
    pub system: String,
    /// The major version whose programs read it.
    pub version: u32,
    /// The first part of the log that it needs; it comes along.
    pub first: PartName,
    /// The last part of the log that came along.
    pub last: PartName,
    /// The length of each part.
    pub part_bytes: u64,
    /// The first moment that can be restored.
    pub from: Timestamp,
}

/// A model as it was served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Where it came from.
    pub source: String,
    /// Its digest; its content is fetched again.
    pub digest: Option<String>,
    /// The folder of members that hold its content, when it was taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its path within the copy.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

impl Base {
    /// Whether what is said of the log is of one log, and its number is one.
    fn is_sound(&self) -> bool {
        let number = |part: &PartName| part.number(self.part_bytes);
        self.system.parse::<u64>().is_ok_and(|system| system.to_string() == self.system)
            && number(&self.first).is_some()
            && number(&self.first) <= number(&self.last)
    }
}

impl Manifest {
    /// Reads the text of a manifest. `Err(Ok(n))` is a later format, `Err(Err(why))` is no manifest.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Result<u64, String>> {
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| Err(error.to_string()))?;
        if value["kind"] != KIND {
            return Err(Err(format!("its list is not of kind `{KIND}`")));
        }
        match value["format"].as_u64() {
            Some(found) if found > FORMAT => return Err(Ok(found)),
            Some(FORMAT) => {}
            _ => return Err(Err("its list has no format".to_owned())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| Err(error.to_string()))?;
        manifest.check().map_err(Err)?;
        Ok(manifest)
    }

    /// Whether every path stays inside, once, and everything that is referred to is there.
    fn check(&self) -> Result<(), String> {
        if self.members.len() > MEMBERS_MAX {
            return Err(format!("it lists {} members", self.members.len()));
        }
        let mut seen = BTreeSet::new();
        let mut sum = 0u64;
        for member in &self.members {
            if !is_inside(&member.path) {
                return Err(format!("`{}` does not stay inside", shown(&member.path)));
            }
            if !seen.insert(member.path.as_str()) {
                return Err(format!("`{}` is listed twice", shown(&member.path)));
            }
            if member.sha256.len() != 64 || !member.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("`{}` has no digest", shown(&member.path)));
            }
            sum = sum.checked_add(member.bytes).filter(|sum| *sum < 1 << 60).ok_or("its lengths add up to too much")?;
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
            Some(folder) => Err(format!("`{}` does not stay inside", shown(folder))),
            None => Ok(()),
        }
    }

    /// The bytes of all members.
    pub fn bytes(&self) -> u64 {
        self.members.iter().map(|member| member.bytes).sum()
    }
}

/// Whether a path goes down from a folder and nowhere else.
pub fn is_inside(path: &str) -> bool {
    let normal = |part| matches!(part, Utf8Component::Normal(_));
    let rebuilt: Vec<&str> = Utf8Path::new(path).components().map(|part| part.as_str()).collect();
    !path.is_empty()
        && path.len() <= 1024
        && !path.chars().any(char::is_control)
        && Utf8Path::new(path).components().all(normal)
        // `a//b` and `a/./b` are other names of `a/b`.
        && rebuilt.join("/") == path
}

/// A name from a file that a stranger may have made, for a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_go_down_are_inside() {
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
