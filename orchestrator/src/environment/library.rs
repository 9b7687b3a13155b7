//! Where environments are found: a folder `environments/` of one's own, and what the program carries.

use camino::{Utf8Path, Utf8PathBuf};

use super::load::LoadError;
use super::problem::nearest;
use super::tree;
use super::units::cut;

/// What the program carries, by name.
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

/// The name of the environment that others extend and that nobody runs.
pub const BASE: &str = "base";

/// There is no environment of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no environment `{}`", cut(.name))]
pub struct NoSuch {
    /// The name that was given.
    pub name: String,
    /// The name that was probably meant.
    pub near: Option<String>,
    /// The names that are there.
    pub available: Vec<String>,
}

impl NoSuch {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match &self.near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are `{}`; `textnlp-deploy env new NAME` makes one", self.available.join("`, `")),
        }
    }
}

/// The bytes of one environment file, with the name that messages use.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file as an operator would name it.
    pub label: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl Source {
    /// Reads a file. At most one byte more than the limit is read: the check of the size comes later, with the others.
    pub fn read(path: &Utf8Path) -> Result<Self, LoadError> {
        use std::io::Read;
        let failed = |source| LoadError::Read { file: path.to_string(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(tree::MOST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Self { label: path.to_string(), bytes })
    }
}

/// One environment that can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its file, or `None` for one that the program carries.
    pub file: Option<Utf8PathBuf>,
    /// Whether a file of one's own stands in for one that the program carries.
    pub overrides_built_in: bool,
}

/// The environments that can be named from here.
#[derive(Debug, Clone, Default)]
pub struct Library {
    folders: Vec<Utf8PathBuf>,
}

impl Library {
    /// Only what the program carries.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// The nearest folder `environments/` from here upward, over what the program carries.
    pub fn from_working_directory(here: &Utf8Path) -> Self {
        let folder = here.ancestors().map(|a| a.join("environments")).find(|folder| folder.is_dir());
        Self { folders: folder.into_iter().collect() }
    }

    /// A folder, over what the program carries.
    pub fn from_folder(folder: impl Into<Utf8PathBuf>) -> Self {
        Self { folders: vec![folder.into()] }
    }

    /// The same with the folder of a file searched first.
    pub(crate) fn beside(&self, path: &Utf8Path) -> Self {
        let parent = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
        let mut folders = vec![parent.to_owned()];
        folders.extend(self.folders.iter().filter(|f| **f != parent).cloned());
        Self { folders }
    }

    /// The folder of one's own, if there is one.
    pub fn folder(&self) -> Option<&Utf8Path> {
        self.folders.first().map(Utf8PathBuf::as_path)
    }

    /// Finds an environment by name.
    pub fn find(&self, name: &str) -> Result<Source, LoadError> {
        // A name becomes a path: only plain names do.
        if textnlp_provider::EnvironmentName::new(name).is_ok() {
            for folder in &self.folders {
                let path = folder.join(format!("{name}.yaml"));
                match Source::read(&path) {
                    Err(LoadError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                    found => return found,
                }
            }
            if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
                return Ok(Source { label: format!("(built-in) {name}.yaml"), bytes: text.as_bytes().to_vec() });
            }
        }
        let available: Vec<String> = self.list().into_iter().map(|l| l.name).collect();
        let near = nearest(name, available.iter().map(String::as_str).chain([BASE])).map(str::to_owned);
        Err(NoSuch { name: name.to_owned(), near, available }.into())
    }

    /// Every environment that can be named, without the base that others extend.
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
        // By degree of maturity first, then one's own by name.
        let rank = |l: &Listed| BUILT_IN.iter().position(|(name, _)| *name == l.name).unwrap_or(usize::MAX);
        found.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
        found
    }
}
