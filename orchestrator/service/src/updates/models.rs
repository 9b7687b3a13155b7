//! Models: the commit that a hub has now, compared with the one that is used.

use textnlp_models::{HubSource, Source, Store, hub_revision};
use textnlp_orchestrator::environment::Origin;
use textnlp_orchestrator::environment::model::ModelSettings;
use textnlp_orchestrator::release::{Entry, Lock, short};
use textnlp_provider::error_chain;

use super::{Change, DependencyKind, MAX_QUERIES, Queries, Security, UsedVersion, VERSION, by_newer};
use crate::artifacts::model_cache;
use crate::{ChosenEnvironment, Failure};

/// The branch that a source with a commit is compared with.
const BRANCH: &str = "main";
/// Digits of a commit that are shown.
const DIGITS: usize = 12;

/// The rows of all models.
pub(super) async fn rows(
    chosen: &ChosenEnvironment,
    lock: Option<&Lock>,
    here: &Lock,
    applied: Option<&Entry>,
    queries: &Queries<'_>,
) -> Result<Vec<UsedVersion>, Failure> {
    let mut rows = Vec::new();
    for (nth, model) in queries.environment.models.iter().enumerate() {
        let name = model.id();
        let locked = lock.filter(|lock| lock.holds(&name, model.source()));
        let locked = locked.and_then(|lock| lock.models.get(&name)).map(String::as_str);
        let security = Security::unknown("no advisories are about weights");
        let used = locked.map_or_else(|| "not locked".to_owned(), short);
        let row = UsedVersion::new(DependencyKind::Model, &name, used, security);
        let source: Option<Source> = model.source().parse::<Source>().ok().and_then(|source| source.resolve().ok());
        rows.push(match source {
            Some(Source::Hub(hub)) if nth < MAX_QUERIES => {
                let known = known_commit(chosen, &hub, locked)?;
                of_hub(row, (nth, model, &hub), known, chosen, queries).await
            }
            Some(Source::Hub(_)) => row.not_known(format!("only {MAX_QUERIES} models are asked for")),
            Some(Source::Bundled) => of_here(row, model, locked, here, by_newer(applied)),
            Some(Source::File(_)) => of_here(row, model, locked, here, None),
            _ => row.not_known("its source has no versions: compare its digest with that of its author"),
        });
    }
    Ok(rows)
}

/// A model that this program or this machine has: `release set` locks its digest. `older`: why another digest is no
/// newer version, if so.
fn of_here(
    row: UsedVersion,
    model: &ModelSettings,
    locked: Option<&str>,
    here: &Lock,
    older: Option<String>,
) -> UsedVersion {
    let name = model.id();
    let Some(digest) = here.models.get(&name) else {
        return row.not_known("it could not be read on this machine");
    };
    let is_newer = locked.is_some_and(|locked| locked != digest);
    if let Some(why) = older.filter(|_| is_newer) {
        return row.not_known(why);
    }
    UsedVersion {
        newest: Some(short(digest)),
        is_newer,
        source: Some(format!("{} of this machine, program {VERSION}", model.source())),
        update: is_newer.then(|| Change::Release { what: vec![format!("models.{name}")] }),
        ..row
    }
}

/// The commit of the used model: that of its source, else that of the locked digest in the cache.
fn known_commit(chosen: &ChosenEnvironment, hub: &HubSource, locked: Option<&str>) -> Result<Option<String>, Failure> {
    if hub.is_commit() {
        return Ok(Some(hub.revision().to_owned()));
    }
    let Some(locked) = locked else { return Ok(None) };
    let store = Store::existing(model_cache(chosen)?).ok().flatten();
    let models = store.and_then(|store| store.list().ok()).unwrap_or_default();
    let found = models.into_iter().find(|stored| stored.manifest.digest.to_string() == locked);
    Ok(found.and_then(|stored| stored.manifest.revision))
}

async fn of_hub(
    row: UsedVersion,
    (nth, model, hub): (usize, &ModelSettings, &HubSource),
    known: Option<String>,
    chosen: &ChosenEnvironment,
    queries: &Queries<'_>,
) -> UsedVersion {
    let branch = if hub.is_commit() { BRANCH } else { hub.revision() };
    let question =
        async { hub_revision(hub, branch, &queries.fetching, &|_| {}).await.map_err(|error| error_chain(&error)) };
    let newest = match queries.ask(&model.id(), question).await {
        Ok(newest) => newest,
        Err(why) => return row.unanswered(why),
    };
    let date = newest.modified.as_deref().and_then(|text| text.get(..10)).map(str::to_owned);
    let source = Some(format!("hf:{}@{branch}", hub.repo()));
    let row = UsedVersion { newest: Some(digits(&newest.commit)), source, date, ..row };
    let Some(known) = known else {
        return row
            .not_known("the commit of the used model is not known: the model cache of this machine does not have it");
    };
    let is_newer = known != newest.commit;
    let update = is_newer.then(|| change((nth, model, hub), &newest.commit, chosen));
    UsedVersion { used: digits(&known), is_newer, update, ..row }
}

fn digits(commit: &str) -> String {
    commit.chars().take(DIGITS).collect()
}

/// How a model's newer commit is taken: in the file where it names a commit, else in the lock.
fn change((nth, model, hub): (usize, &ModelSettings, &HubSource), commit: &str, chosen: &ChosenEnvironment) -> Change {
    if model.digest.is_some() {
        let how =
            format!("its `digest` is set: write `source: {}` with the digest of that commit", source_of(hub, commit));
        return Change::Other { how };
    }
    if !hub.is_commit() {
        let (name, source) = (model.id(), model.source().to_owned());
        return Change::Model { name, source, commit: commit.to_owned() };
    }
    let from = model.source().to_owned();
    let to = source_of(hub, commit);
    // Models may have the same source.
    let path = format!("models[{nth}].source");
    match chosen.loaded.explain(&path).into_iter().next().map(|fact| fact.origin) {
        Some(Origin::File { file, line, .. }) => {
            Change::of_file(&chosen.loaded, (path.as_str(), from, to), (file.as_ref(), line))
        }
        Some(origin) => Change::Other { how: format!("it is set by {origin}: write {to} there") },
        None => Change::Other { how: format!("write `source: {to}` into {}", chosen.loaded.own_file()) },
    }
}

/// The source with another commit.
fn source_of(hub: &HubSource, commit: &str) -> String {
    let file = hub.file().map_or(String::new(), |file| format!("/{file}"));
    format!("hf:{}@{commit}{file}", hub.repo())
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::super::tests::{entry, lock};
    use super::*;

    #[test]
    fn model_of_this_program_is_newer_when_its_digest_differs() {
        let environment =
            Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap().environment;
        let model = environment.models.first().unwrap();
        let mut here = lock(&environment, "1");
        let row = || UsedVersion::new(DependencyKind::Model, &model.name, "x", Security::unknown("x"));
        assert!(of_here(row(), model, Some("sha256:1"), &here, None).unknown.is_some());
        here.models.insert(model.name.clone(), "sha256:2".to_owned());
        assert!(!of_here(row(), model, Some("sha256:2"), &here, None).is_newer);
        let applied = entry(&here, "9999.0.0");
        let older = of_here(row(), model, Some("sha256:1"), &here, by_newer(Some(&applied)));
        assert!(!older.is_newer && older.unknown.is_some(), "{older:?}");
        let newer = of_here(row(), model, Some("sha256:1"), &here, None);
        assert_eq!(newer.change(false), Some(&Change::Release { what: vec![format!("models.{}", model.name)] }));
        assert_eq!(newer.change(true), None);
    }

    #[test]
    fn another_commit_keeps_repository_and_file() {
        let Source::Hub(hub) = format!("hf:org/name@{}/a.gguf", "1".repeat(40)).parse().unwrap() else {
            panic!("it is of a hub")
        };
        assert_eq!(source_of(&hub, "2"), "hf:org/name@2/a.gguf");
    }
}
