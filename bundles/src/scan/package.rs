//! A package in the scanned content.

use serde::{Deserialize, Serialize};

/// The ecosystem of crates.
pub const CRATES: &str = "crates.io";
/// The ecosystem of Python packages.
pub(crate) const PYTHON: &str = "PyPI";

/// One package, wherever it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// `crates.io`, `Debian:12`, `Alpine:v3.19`, `PyPI`: as OSV writes it.
    pub ecosystem: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The source package that it was built from, with its version: the subject of a distribution's advisories.
    pub origin: Option<(String, String)>,
    /// `amd64`.
    pub architecture: Option<String>,
}

impl Package {
    /// A crate of the default registry.
    pub fn of_crate(name: &str, version: &str) -> Package {
        Package {
            ecosystem: CRATES.to_owned(),
            name: name.to_owned(),
            version: version.to_owned(),
            origin: None,
            architecture: None,
        }
    }

    /// A Python package. Its name can be written in several ways: `Foo_Bar` is `foo-bar`.
    pub(crate) fn of_python(name: &str, version: &str) -> Package {
        let words = name.split(['-', '_', '.']).filter(|w| !w.is_empty()).map(str::to_ascii_lowercase);
        Package {
            ecosystem: PYTHON.to_owned(),
            name: words.collect::<Vec<_>>().join("-"),
            version: version.to_owned(),
            origin: None,
            architecture: None,
        }
    }

    /// The name and version that advisories refer to.
    pub fn matched_by(&self) -> (&str, &str) {
        self.origin.as_ref().map_or((&self.name, &self.version), |(name, version)| (name, version))
    }

    /// `pkg:deb/debian/openssl@3.0.11-1?arch=amd64&distro=debian-12`.
    pub fn purl(&self) -> String {
        let (base, release) = self.ecosystem.split_once(':').unwrap_or((&self.ecosystem, ""));
        let vendor = base.to_ascii_lowercase();
        let kind = match base {
            CRATES => "cargo".to_owned(),
            PYTHON => "pypi".to_owned(),
            "Debian" | "Ubuntu" => format!("deb/{vendor}"),
            "Alpine" | "Wolfi" | "Chainguard" => format!("apk/{vendor}"),
            _ => format!("generic/{}", escaped(&vendor)),
        };
        let name = if base == PYTHON { self.name.to_ascii_lowercase().replace('_', "-") } else { self.name.clone() };
        let mut purl = format!("pkg:{kind}/{}@{}", escaped(&name), escaped(&self.version));
        let mut mark = '?';
        let distribution = (!release.is_empty()).then(|| format!("{vendor}-{release}"));
        for (key, value) in [("arch", self.architecture.clone()), ("distro", distribution)] {
            if let Some(value) = value {
                purl.push_str(&format!("{mark}{key}={}", escaped(&value)));
                mark = '&';
            }
        }
        purl
    }
}

/// Percent-encoding for package URLs.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Reverses [`escaped`]; other text is unchanged.
pub(crate) fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let coded = (byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match coded.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
