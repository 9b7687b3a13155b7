//! Changes that take other versions: in the environment's file and in its release lock.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use textnlp_files::Replace;
use textnlp_models::{Event, FetchOptions, Source, Store, inspect};
use textnlp_orchestrator::environment::{Catalogue, Library, Loaded, Overrides, Source as FileSource, diff};
use textnlp_orchestrator::release::Lock;

use crate::artifacts::model_cache;
use crate::configuration::own_file_mode;
use crate::environments::invalid;
use crate::models::failed;
use crate::{ChosenEnvironment, Failure, Progress, size};

/// How another version is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "in", rename_all = "snake_case")]
pub enum Change {
    /// A value of the environment's file.
    File {
        /// The setting: `sites[0].cluster.image`.
        setting: String,
        /// The file.
        file: String,
        /// The line.
        line: usize,
        /// The present value.
        from: String,
        /// The new one.
        to: String,
    },
    /// A model of the release lock: the commit of its branch is fetched, and its digest is locked.
    Model {
        /// The model.
        name: String,
        /// Its source.
        source: String,
        /// The commit.
        commit: String,
    },
    /// Parts of the release lock that this program and this machine have.
    Release {
        /// The parts: `server`, `models.NAME`, `images.SITE`.
        what: Vec<String>,
    },
    /// Another command or person makes it.
    Other {
        /// How.
        how: String,
    },
}

impl Change {
    /// A change of the environment's own file. Files that it extends have other readers, and built-in ones cannot be written.
    /// A line that cannot be edited is named.
    pub(super) fn of_file(
        loaded: &Loaded,
        (setting, from, to): (&str, String, String),
        (file, line): (&str, usize),
    ) -> Self {
        let is_own = loaded.files.first().is_some_and(|own| own == file) && Utf8Path::new(file).is_file();
        if !is_own {
            let how = format!("`{setting}` is set in {file}: write {to} into {}", loaded.own_file());
            return Change::Other { how };
        }
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
        match text.and_then(|text| edited(&text, line, &from, &to)) {
            Ok(_) => Change::File { setting: setting.to_owned(), file: file.to_owned(), line, from, to },
            Err(why) => Change::Other { how: format!("write `{setting}: {to}` at {file}:{line}: {why}") },
        }
    }

    /// Whether `apply` makes it.
    pub fn is_own(&self) -> bool {
        !matches!(self, Change::Other { .. })
    }
}

/// The files that changes were written to.
#[derive(Debug, Default, Serialize)]
pub struct Changed {
    /// The environment's file.
    pub file: Option<Utf8PathBuf>,
    /// The release lock.
    pub lock: Option<Utf8PathBuf>,
}

/// Makes changes: fetches models, then writes the environment's file and the release lock. `here`: the release that
/// `release set` would lock.
pub async fn apply(
    chosen: &ChosenEnvironment,
    changes: &[Change],
    here: &Lock,
    loading: (&Library, &Overrides, &Catalogue),
    progress: &dyn Progress,
) -> Result<Changed, Failure> {
    let before = chosen.lock()?;
    // Before models are fetched, which takes long.
    let edit = Edit::of(chosen, changes, loading)?;
    let mut lock = before.clone();
    for change in changes {
        match (change, &mut lock) {
            (Change::Model { name, source, commit }, Some(lock)) => {
                let digest = fetched(chosen, source, commit, progress).await?;
                lock.models.insert(name.clone(), digest);
                lock.sources.insert(name.clone(), source.clone());
            }
            (Change::Release { what }, Some(lock)) => what.iter().for_each(|part| take(lock, here, part)),
            _ => {}
        }
    }
    // Fetching models takes long: another command may have written the lock.
    if lock != before && chosen.lock()? != before {
        return Err(changed_meanwhile(format!("{} was changed", chosen.lock_path)));
    }
    let file = edit.map(Edit::write).transpose()?;
    let mut changed = Changed { file, lock: None };
    if let Some(lock) = lock.filter(|lock| before.as_ref() != Some(lock)) {
        lock.write(&chosen.lock_path)?;
        changed.lock = Some(chosen.lock_path.clone());
    }
    Ok(changed)
}

fn changed_meanwhile(why: String) -> Failure {
    let error = anyhow::anyhow!(why).context("nothing was written");
    Failure::refused("changed_meanwhile", error).hint("run the command again")
}

fn read(file: &Utf8Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {file}"))
}

/// The new text of the environment's file.
struct Edit {
    file: Utf8PathBuf,
    mode: u32,
    before: String,
    after: String,
}

impl Edit {
    /// `None` if no change is in the file. Refused unless the new text sets what was approved and nothing else.
    fn of(
        chosen: &ChosenEnvironment,
        changes: &[Change],
        (library, overrides, catalogue): (&Library, &Overrides, &Catalogue),
    ) -> Result<Option<Self>, Failure> {
        let file = changes.iter().find_map(|change| match change {
            Change::File { file, .. } => Some(Utf8PathBuf::from(file)),
            _ => None,
        });
        let Some(file) = file else { return Ok(None) };
        let Some(mode) = own_file_mode(&file)? else {
            return Err(Failure::usage("no_environment_file", anyhow::anyhow!("{file} does not exist any more")));
        };
        let before = read(&file)?;
        let mut after = before.clone();
        let (mut made, mut wanted) = (BTreeSet::new(), BTreeMap::new());
        for change in changes {
            let Change::File { setting, line, from, to, .. } = change else { continue };
            wanted.insert(setting.as_str(), Some(to.as_str()));
            // Aliases of a YAML anchor have its line.
            if made.insert((line, from, to)) {
                after = edited(&after, *line, from, to)
                    .map_err(|why| changed_meanwhile(format!("{file}:{line}: {why}")))?;
            }
        }
        // Before it replaces a file that can be loaded.
        let source = FileSource { label: file.to_string(), bytes: after.clone().into_bytes() };
        let loaded = library.beside(&file).load_source(source, overrides, catalogue);
        let loaded = loaded.map_err(|error| invalid(error, &chosen.scope.again))?;
        let differences = diff(&chosen.loaded, &loaded);
        let found: BTreeMap<&str, Option<&str>> = differences
            .iter()
            .map(|one| (one.path.as_str(), one.right.as_ref().and_then(|value| value.as_str())))
            .collect();
        if found != wanted {
            let settings = found.into_keys().collect::<Vec<_>>().join(", ");
            return Err(changed_meanwhile(format!(
                "{file} would change in [{settings}], which is not what was approved"
            )));
        }
        Ok(Some(Self { file, mode, before, after }))
    }

    fn write(self) -> Result<Utf8PathBuf, Failure> {
        let Self { file, mode, before, after } = self;
        if read(&file)? != before {
            return Err(changed_meanwhile(format!("{file} was edited")));
        }
        Replace::mode(mode).write(&file, after.as_bytes()).with_context(|| format!("write {file}"))?;
        Ok(file)
    }
}

/// The part of a lock that this machine has.
fn take(lock: &mut Lock, here: &Lock, part: &str) {
    match part.split_once('.') {
        Some(("models", name)) => {
            if let Some(digest) = here.models.get(name) {
                lock.models.insert(name.to_owned(), digest.clone());
            }
        }
        Some(("images", site)) => {
            if let Some(image) = here.images.get(site) {
                lock.images.insert(site.to_owned(), image.clone());
            }
            if let Some(source) = here.image_sources.get(site) {
                lock.image_sources.insert(site.to_owned(), source.clone());
            }
        }
        _ => {
            // As `release set` does: the schema is that of the server.
            lock.server.clone_from(&here.server);
            lock.schema = here.schema;
            lock.templates.clone_from(&here.templates);
        }
    }
}

/// The digest of a branch's commit, fetched into the cache that `up` uses.
async fn fetched(
    chosen: &ChosenEnvironment,
    source: &str,
    commit: &str,
    progress: &dyn Progress,
) -> Result<String, Failure> {
    let source: Source = source.parse().map_err(|error| failed(textnlp_models::Error::Source(error)))?;
    let store = Store::open(model_cache(chosen)?).map_err(failed)?;
    let fetching = chosen.scope.platform.fetching(&chosen.loaded.environment)?;
    let options = FetchOptions { refresh: true, ..fetching };
    let report = |event| {
        if let Event::File { name, done, .. } = event {
            progress.doing(&format!("{name}: {}", size(done)));
        }
    };
    let model = store.fetch(&source, &options, &report).await.map_err(failed)?;
    inspect(&model.dir).map_err(failed)?;
    if model.manifest.revision.as_deref() != Some(commit) {
        return Err(changed_meanwhile(format!("{source} has another commit than {commit} now")));
    }
    Ok(model.manifest.digest.to_string())
}

/// The text with a value of one line replaced. Lines count from 1. Why it is not replaced, if so.
fn edited(text: &str, line: usize, from: &str, to: &str) -> Result<String, String> {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = line.checked_sub(1).ok_or("lines count from 1")?;
    let found = lines.get_mut(at).ok_or("the file has fewer lines")?;
    if found.matches(from).count() != 1 {
        return Err(format!("the line does not have `{from}` exactly once"));
    }
    let replaced = found.replacen(from, to, 1);
    *found = &replaced;
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::super::tests::lock;
    use super::*;

    #[test]
    fn one_line_of_a_file_changes_and_its_comment_stays() {
        let text = "a: 1\nimage: r/x:1.0 # keep\nb: r/x:1.0\n";
        assert_eq!(edited(text, 2, "r/x:1.0", "r/x:1.1").unwrap(), "a: 1\nimage: r/x:1.1 # keep\nb: r/x:1.0\n");
        assert_eq!(edited("image: r/x:1.0", 1, "r/x:1.0", "r/x:1.1").unwrap(), "image: r/x:1.1");
        for (line, from) in [(0, "r/x:1.0"), (1, "r/x:1.0"), (9, "r/x:1.0"), (2, "e")] {
            assert!(edited(text, line, from, "y").is_err(), "{line} {from}");
        }
    }

    #[test]
    fn line_that_cannot_be_edited_is_named_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("texts.yaml");
        std::fs::write(&file, "image: r/x:1.0\nother: ${REGISTRY}/x:1.0\nboth: [r/x:1.0, r/x:1.0]\n").unwrap();
        let mut loaded = Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
        let of = |loaded: &Loaded, line: usize| {
            Change::of_file(loaded, ("image", "r/x:1.0".to_owned(), "r/x:1.1".to_owned()), (file.as_str(), line))
        };
        assert!(!of(&loaded, 1).is_own(), "it is not the file of the environment");
        loaded.files = vec![file.to_string()];
        assert!(of(&loaded, 1).is_own());
        for line in [2, 3, 4] {
            let Change::Other { how } = of(&loaded, line) else { panic!("line {line} is edited") };
            assert!(how.contains(&format!("texts.yaml:{line}")), "{how}");
        }
    }

    #[test]
    fn only_the_named_parts_of_a_lock_change() {
        let environment = Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
        let (mut old, mut new) = (lock(&environment.environment, "1"), lock(&environment.environment, "2"));
        new.models.insert("a".to_owned(), "sha256:a".to_owned());
        new.images.insert("here".to_owned(), "r/x@sha256:0".to_owned());
        let server = old.server.clone();
        take(&mut old, &new, "models.a");
        assert_eq!((&old.models, &old.server, old.images.len()), (&new.models, &server, 0));
        take(&mut old, &new, "images.here");
        take(&mut old, &new, "server");
        assert_eq!((&old.images, &old.server), (&new.images, &new.server));
    }
}
