//! A copy of the RustSec database: `crates/NAME/RUSTSEC-YYYY-NNNN.md`, TOML in front, text behind.

use camino::Utf8Path;
use jiff::civil::Date;
use serde::Deserialize;

use super::Advisory;
use crate::scan::contents::{Contents as _, Folder, whole};
use crate::scan::error::Error;

/// No advisory is longer.
const MOST_BYTES: u64 = 1 << 20;

type Read = (Vec<Advisory>, Vec<(String, String)>);

/// All of them, and the files that could not be read.
pub(super) fn read(folder: &Utf8Path) -> Result<Read, Error> {
    let crates = folder.join("crates");
    let files = Folder::open(&crates).map_err(|source| Error::Read { path: crates.to_string(), source })?;
    let (mut advisories, mut unread) = (Vec::new(), files.unreadable());
    for entry in files.entries().into_iter().filter(|e| e.path.ends_with(".md")) {
        let text = match whole(&files, &entry.path, MOST_BYTES) {
            Ok(text) => text.and_then(|bytes| String::from_utf8(bytes).ok()),
            Err(source) => return Err(Error::Read { path: crates.join(&entry.path).into_string(), source }),
        };
        match text.ok_or_else(|| "it is not a short UTF-8 text".to_owned()).and_then(|text| one(&text)) {
            Ok(advisory) => advisories.push(advisory),
            Err(why) => unread.push((entry.path, why)),
        }
    }
    Ok((advisories, unread))
}

#[derive(Deserialize)]
struct FrontMatter {
    advisory: Head,
    #[serde(default)]
    versions: Versions,
}

#[derive(Deserialize)]
struct Head {
    id: String,
    package: String,
    date: Date,
    #[serde(default)]
    aliases: Vec<String>,
    cvss: Option<String>,
    informational: Option<String>,
    url: Option<String>,
    withdrawn: Option<Date>,
}

#[derive(Default, Deserialize)]
struct Versions {
    #[serde(default)]
    patched: Vec<String>,
    #[serde(default)]
    unaffected: Vec<String>,
}

fn one(text: &str) -> Result<Advisory, String> {
    let text = text.strip_prefix("```toml").ok_or("it does not begin with TOML")?;
    let (front, body) = text.split_once("\n```").ok_or("its TOML has no end")?;
    let FrontMatter { advisory, versions } = toml::from_str(front).map_err(|e| e.message().to_owned())?;
    let title = body.lines().find_map(|line| line.strip_prefix("# ")).ok_or("it has no title")?;
    let mut aliases = advisory.aliases;
    aliases.sort();
    Ok(Advisory {
        id: advisory.id,
        ecosystem: super::crates(),
        package: advisory.package,
        title: title.trim().to_owned(),
        date: advisory.date,
        cvss: advisory.cvss,
        severity: None,
        aliases,
        url: advisory.url,
        informational: advisory.informational,
        withdrawn: advisory.withdrawn,
        patched: versions.patched,
        unaffected: versions.unaffected,
        ranges: Vec::new(),
        versions: Vec::new(),
    })
}
