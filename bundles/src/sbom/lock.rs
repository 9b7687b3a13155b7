//! `Cargo.lock`: the crates of a program and their dependencies.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::scan::Package;

/// The sources of the default registry. Advisories refer only to its crates.
const DEFAULT_REGISTRY: [&str; 2] =
    ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

/// A lock file, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Sorted by name, version and source, as cargo writes them.
    pub(crate) packages: Vec<LockedCrate>,
}

/// One crate of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct LockedCrate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// None: it is part of the workspace.
    pub(crate) source: Option<String>,
    pub(crate) checksum: Option<String>,
    /// As cargo writes them: `name`, `name version` or `name version (source)`.
    #[serde(default)]
    pub(crate) dependencies: Vec<String>,
}

impl LockedCrate {
    pub(crate) fn is_from_registry(&self) -> bool {
        self.source.as_deref().is_some_and(|s| DEFAULT_REGISTRY.contains(&s))
    }
}

impl Lock {
    /// Reads the text of a lock file (versions 2 to 4).
    pub fn parse(text: &str) -> Result<Lock, String> {
        #[derive(Deserialize)]
        struct File {
            version: Option<u32>,
            #[serde(default)]
            package: Vec<LockedCrate>,
        }
        let File { version, mut package } = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        match version {
            // The oldest form keeps checksums elsewhere; its packages are written the same way.
            None | Some(2..=4) => {}
            Some(other) => return Err(format!("its version is {other}; up to 4 are known")),
        }
        package.sort();
        Ok(Lock { packages: package })
    }

    /// The crates from the default registry, to which advisories refer.
    pub fn registry_packages(&self) -> Vec<Package> {
        let registry = self.packages.iter().filter(|p| p.is_from_registry());
        registry.map(|p| Package::of_crate(&p.name, &p.version)).collect()
    }

    /// The crate to which a line of `dependencies` refers.
    pub(crate) fn meant(&self, line: &str) -> Option<usize> {
        let mut words = line.splitn(3, ' ');
        let (name, version, source) = (words.next()?, words.next(), words.next());
        let source = source.map(|s| s.trim_matches(['(', ')']));
        self.packages.iter().position(|p| {
            p.name == name
                && version.is_none_or(|v| p.version == v)
                && source
                    .is_none_or(|s| p.source.as_deref().is_some_and(|own| own.split('#').next() == s.split('#').next()))
        })
    }

    /// The indexes of `root` and of the crates that it needs; all crates if the workspace has no such crate.
    pub(crate) fn reached_from(&self, root: &str) -> Vec<usize> {
        let Some(root) = self.packages.iter().position(|p| p.name == root && p.source.is_none()) else {
            return (0..self.packages.len()).collect();
        };
        // One look-up per line: a lock file has thousands.
        let mut by_line: BTreeMap<&str, Option<usize>> = BTreeMap::new();
        let (mut reached, mut waiting) = (vec![false; self.packages.len()], vec![root]);
        while let Some(at) = waiting.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            for line in &self.packages[at].dependencies {
                waiting.extend(*by_line.entry(line).or_insert_with(|| self.meant(line)));
            }
        }
        (0..self.packages.len()).filter(|at| reached[*at]).collect()
    }
}
