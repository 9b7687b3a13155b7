//! The environments that can be named: the user's folder `environments/`, and the built-in ones.

use camino::{Utf8Path, Utf8PathBuf};

use super::load::LoadError;
use super::problem::nearest;
use super::tree;
use super::units::cut;

/// The built-in environments by name.
pub(crate) const BUILT_IN: &[(&str, &str)] = &[
    ("base", include_str!("../../../environments/base.yaml")),
    ("development", include_str!("../../../environments/development.yaml")),
    ("staging", include_str!("../../../environments/staging.yaml")),
    ("pilot", include_str!("../../../environments/pilot.yaml")),
    ("scale-up", include_str!("../../../environments/scale-up.yaml")),
    ("enterprise", include_str!("../../../environments/enterprise.yaml")),
    ("multi-region", include_str!("../../../environments/multi-region.yaml")),
    ("multi-region-clouds", include_str!("../../../environments/multi-region-clouds.yaml")),
    ("air-gapped", include_str!("../../../environments/air-gapped.yaml")),
    ("optimized", include_str!("../../../environments/optimized.yaml")),
];

/// The base environment that others extend; it cannot be run.
pub const BASE: &str = "base";

/// There is no environment of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no environment `{}`", cut(.name))]
pub struct UnknownEnvironment {
    /// The given name.
    pub name: String,
    /// The most similar name.
    pub near: Option<String>,
    /// The available names.
    pub available: Vec<String>,
}

impl UnknownEnvironment {
    fn new(name: &str, available: Vec<String>) -> Self {
        let near = nearest(name, available.iter().map(String::as_str).chain([BASE])).map(str::to_owned);
        Self { name: name.to_owned(), near, available }
    }

    /// The same with some of the names left out.
    pub(crate) fn without(mut self, is_left_out: impl Fn(&str) -> bool) -> Self {
        self.available.retain(|name| !is_left_out(name));
        Self::new(&self.name, self.available)
    }

    /// The hint.
    pub fn fix(&self) -> String {
        match &self.near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "the environments are `{}`; `textnlp-deploy env new NAME` creates one",
                self.available.join("`, `")
            ),
        }
    }
}

/// The prefix of the labels of built-in environments.
pub(crate) const BUILT_IN_MARK: &str = "(built-in) ";

/// The file that an operator creates to change settings of a built-in environment, as a part of a hint.
pub(crate) fn new_file(folder: Option<&Utf8Path>, name: &str) -> String {
    let folder = folder.unwrap_or(Utf8Path::new("environments"));
    format!("{}, a new file that begins with `extends: {name}`", folder.join(format!("{name}.yaml")))
}

/// The content of an environment file, with its label for messages.
#[derive(Debug, Clone)]
pub struct Source {
    /// The label.
    pub label: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Source {
    /// Reads a file, at most one byte more than the limit; the size is checked later with everything else.
    pub fn read(path: &Utf8Path) -> Result<Self, LoadError> {
        use std::io::Read;
        let failed = |source| LoadError::Read { file: path.to_string(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(tree::MOST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Self { label: path.to_string(), bytes })
    }
}

/// An environment that can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its file; `None` for a built-in one.
    pub file: Option<Utf8PathBuf>,
    /// Whether a user's file overrides a built-in environment.
    pub overrides_built_in: bool,
}

/// The environments that can be named from here.
#[derive(Debug, Clone, Default)]
pub struct Library {
    folders: Vec<Utf8PathBuf>,
}

impl Library {
    /// Only the built-in environments.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// The nearest folder `environments/` from here upward, then the built-in ones.
    pub fn from_working_directory(here: &Utf8Path) -> Self {
        let folder = here.ancestors().map(|a| a.join("environments")).find(|folder| folder.is_dir());
        Self { folders: folder.into_iter().collect() }
    }

    /// This folder, then the built-in environments.
    pub fn from_folder(folder: impl Into<Utf8PathBuf>) -> Self {
        Self { folders: vec![folder.into()] }
    }

    /// The same, with the folder of a file searched first.
    pub fn beside(&self, path: &Utf8Path) -> Self {
        let parent = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
        let mut folders = vec![parent.to_owned()];
        folders.extend(self.folders.iter().filter(|f| **f != parent).cloned());
        Self { folders }
    }

    /// The user's folder, if there is one.
    pub fn folder(&self) -> Option<&Utf8Path> {
        self.folders.first().map(Utf8PathBuf::as_path)
    }

    /// How to create the file of a built-in environment: see [`Loaded::own_file`](super::Loaded::own_file).
    pub fn new_file(&self, name: &str) -> String {
        new_file(self.folder(), name)
    }

    /// Finds an environment by name.
    pub fn find(&self, name: &str) -> Result<Source, LoadError> {
        // The name becomes part of a path, so only valid names are accepted.
        if textnlp_provider::EnvironmentName::new(name).is_ok() {
            for folder in &self.folders {
                let path = folder.join(format!("{name}.yaml"));
                match Source::read(&path) {
                    Err(LoadError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                    found => return found,
                }
            }
            if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
                return Ok(Source { label: format!("{BUILT_IN_MARK}{name}.yaml"), bytes: text.as_bytes().to_vec() });
            }
        }
        let available: Vec<String> = self.list().into_iter().map(|l| l.name).collect();
        Err(UnknownEnvironment::new(name, available).into())
    }

    /// Every environment that can be named, except the base.
    pub fn list(&self) -> Vec<Listed> {
        let mut found: Vec<Listed> = Vec::new();
        for folder in &self.folders {
            let mut names: Vec<String> = folder
                .read_dir_utf8()
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .filter_map(|entry| entry.file_name().strip_suffix(".yaml").map(str::to_owned))
                .filter(|name| textnlp_provider::EnvironmentName::new(name.as_str()).is_ok())
                .collect();
            names.sort();
            for name in names {
                if !found.iter().any(|l| l.name == name) {
                    let overrides_built_in = BUILT_IN.iter().any(|(known, _)| *known == name);
                    found.push(Listed { file: Some(folder.join(format!("{name}.yaml"))), overrides_built_in, name });
                }
            }
        }
        for (name, _) in BUILT_IN {
            if !found.iter().any(|l| l.name == *name) {
                found.push(Listed { name: (*name).to_owned(), file: None, overrides_built_in: false });
            }
        }
        found.retain(|l| l.name != BASE);
        // Built-in environments by maturity, then the user's by name.
        let rank = |l: &Listed| BUILT_IN.iter().position(|(name, _)| *name == l.name).unwrap_or(usize::MAX);
        found.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        found
    }
}
