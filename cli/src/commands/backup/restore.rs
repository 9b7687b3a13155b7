//! `restore`: a deployment's state comes back from a copy; `up` makes the rest from it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::json;
use textnlp_models::{FetchOptions, Source, Store};
use textnlp_orchestrator::backup::{Manifest, Opener, Shelf};
use textnlp_orchestrator::state::{Folder, Holder, LineageFile, StateError, Store as _};
use textnlp_provider::{EnvironmentName, Lineage};

use super::gather::STATE;
use super::{keep, moment, opener, prove};
use crate::again::quoted;
use crate::args::Up;
use crate::backup_args::Restore;
use crate::clouds;
use crate::deployment::{operator, state_failed};
use crate::progress::Progress;
use crate::report::{Console, Failure, Success};
use crate::session::Session;
use crate::workplace;

/// `restore FILE`.
pub async fn restore(session: &Session, args: &Restore, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let at = args.at.as_deref().map(moment::read).transpose()?;
    let file = chosen(session, args, at, console)?;
    let root = session.state_root()?;
    // The key of a state that is still here opens its own copies.
    let here = match (&session.global.env, &args.replace) {
        (Some(name), _) | (None, Some(name)) => root.join(name),
        (None, None) => root.clone(),
    };
    let opener = opener(&args.opening, session, &here).await?;
    let opener = Arc::new(opener);
    may_be_restored(session, args, &root, &file, &opener, at).await?;
    std::fs::create_dir_all(&root).with_context(|| format!("make {root}"))?;
    let progress = Progress::new(console);
    progress.doing("reads the backup whole");
    let mut staged = workplace::make(&root, PREFIX, is_aside)?;
    let place = &Utf8PathBuf::try_from(staged.path().to_owned()).context("temporary folders have UTF-8 names")?;
    let (_, mut manifest) = tokio::task::block_in_place(|| prove::open(&file, &opener, place))?;
    let state = prove::state_of(place, &manifest).await.context("read the restored state")?;
    if let Some(at) = at {
        progress.doing("recovers the database beside, to the moment that was asked for");
        moment::recover(&file, place, &mut manifest, &state, &opener, at).await?;
    }
    progress.finish();
    let name = &manifest.environment;
    let target = root.join(name.as_str());
    let moved = rebind(&place.join(STATE), &state)?;
    take_models(session, &manifest, place).await?;
    let replaced = put_in_place(session, args, &manifest, &mut staged, &target).await?;

    let mut lines = vec![format!(
        "{name} of {} is back in {target}: lineage {}",
        manifest.at.strftime("%Y-%m-%d %H:%M UTC"),
        manifest.lineage
    )];
    if let Some(at) = at {
        lines.push(format!(
            "  its database is that of {at}: what was stored later is gone, and keys that were revoked later open again"
        ));
    }
    for (site, database) in &manifest.databases {
        lines.push(format!("  {site}: keys {}, requests accounted for {}", database.keys, database.usage));
        if Utf8Path::new(&database.path).extension() == Some("dump") {
            // A server of our own finds it there when it is made; one of somebody else's is for them to change.
            lines.push(format!(
                "  {site}: a PostgreSQL of its own is made from {dump}; into one of yours: pg_restore -c --if-exists --no-owner -d URL {dump}",
                dump = target.join(&database.path)
            ));
        }
    }
    for (site, machine) in &moved {
        lines.push(format!(
            "  {site}: was on {machine}, now belongs to this machine; if it still runs there, take it down"
        ));
    }
    if let Some(replaced) = &replaced {
        lines.push(format!("  what was here before is kept in {replaced}"));
    }
    for (model, known) in manifest.models.iter().filter(|(_, model)| model.folder.is_none()) {
        lines.push(format!("  model {model} comes from {} again", known.source));
    }
    let whole = keep::whole(&target);
    let next = match whole.is_file() {
        true => format!("textnlp-deploy up --file {} --state-dir {}", quoted(whole.as_str()), quoted(root.as_str())),
        false => format!("textnlp-deploy up --env {name} --state-dir {}", quoted(root.as_str())),
    };
    let mut document = json!({
        "environment": name, "lineage": manifest.lineage, "made": manifest.at, "at": at, "file": file, "state": target, "replaced": replaced,
        "databases": manifest.databases, "environment_file": whole.is_file().then_some(&whole), "next": next,
    });
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !args.up {
        lines.push(format!("What runs is made by: {next}"));
        return Ok(Success::new(lines.join("\n"), document));
    }
    console.say(lines.join("\n"));
    let mut global = session.global.clone();
    global.state_dir = Some(root);
    if whole.is_file() {
        (global.env, global.file) = (None, Some(whole));
    } else {
        (global.env, global.file) = (Some(name.to_string()), None);
    }
    let session = Session::new(global)?;
    let up = Up::default();
    let mut done =
        super::super::up::up(&session, &up, console).await.map_err(|failure| failure.document(document.clone()))?;
    done.document.insert("restored".to_owned(), document);
    Ok(done)
}

/// The copy that was named, or the one whose log leads to the moment.
fn chosen(session: &Session, args: &Restore, at: Option<Timestamp>, console: Console) -> Result<Utf8PathBuf, Failure> {
    let named = args.backup.as_ref().map(|backup| session.here.join(backup));
    let root = session.state_root()?;
    let there = |name: &EnvironmentName| lineage_in(&root.join(name.as_str()));
    match (named, at) {
        (Some(folder), Some(at)) if folder.is_dir() => moment::choose(&Shelf::at(folder), at, there),
        (Some(file), _) => Ok(file),
        (None, Some(at)) => {
            let (_, shelf, _) = super::its_shelf(session, console)?;
            moment::choose(&shelf, at, there)
        }
        (None, None) => Err(Failure::usage("usage", anyhow::anyhow!("no backup is named"))
            .hint("give the path of a file that `backup create` made: `textnlp-deploy restore FILE`")),
    }
}

/// Looks whether a backup can be restored here, before anything is opened, made or changed. One report says everything that stands in the
/// way.
async fn may_be_restored(
    session: &Session,
    args: &Restore,
    root: &Utf8Path,
    file: &Utf8Path,
    opener: &Opener,
    at: Option<Timestamp>,
) -> Result<(), Failure> {
    let listed = tokio::task::block_in_place(|| prove::list(file, opener));
    let mut obstacles = Vec::new();
    if let Some(at) = at {
        let why = |failure: &Failure| match &failure.hint {
            Some(hint) => format!("{:#}: {hint}", failure.error),
            None => format!("{:#}", failure.error),
        };
        obstacles.extend(moment::preflight(file, at, listed.as_ref().map_err(why)).err());
    }
    if let Ok(manifest) = &listed {
        let name = &manifest.environment;
        if let Some(asked) = session.global.env.as_deref().filter(|asked| *asked != name.as_str()) {
            let error = anyhow::anyhow!("{file} is of environment `{name}`, and `{asked}` was asked for");
            obstacles.push(
                Failure::refused("other_environment", error).hint(format!("leave --env out, or say --env {name}")),
            );
        }
        let target = root.join(name.as_str());
        obstacles.extend(may_replace(session, args, manifest, &target).await?);
        let holder = Folder::at(&target).holder().await.map_err(|error| state_failed(error, &session.again(), name))?;
        if holder.is_some() && lineage_in(&target) == Some(manifest.lineage) {
            obstacles.push(state_failed(StateError::Held { holder }, &session.again(), name));
        }
    }
    one_report(file, obstacles)?;
    listed.map(drop)
}

/// Several refusals in one report, which has the first one's code.
fn one_report(file: &Utf8Path, mut failures: Vec<Failure>) -> Result<(), Failure> {
    if failures.len() < 2 {
        return failures.pop().map_or(Ok(()), Err);
    }
    let causes: Vec<String> = failures.iter().map(|failure| format!("{:#}", failure.error)).collect();
    let hints: Vec<String> = failures.iter().filter_map(|failure| failure.hint.clone()).collect();
    let error = anyhow::anyhow!("{}", causes.join("; ")).context(format!("{file} cannot be restored here"));
    let mut all = Failure::new(failures[0].exit, failures[0].code, error).hint(hints.join("; "));
    failures.into_iter().for_each(|failure| all.document.extend(failure.document));
    Err(all)
}

/// Where a backup is opened before it counts.
const PREFIX: &str = ".restore-";

/// Whether a state lies there that was in use, and that a run was killed over putting aside. Only such a one has a lock: backups hold none.
fn is_aside(opened: &Utf8Path) -> bool {
    opened.join(STATE).join("lock").exists()
}

/// Sites of a machine that is no more belong to the one that they are restored on.
fn rebind(
    state: &Utf8Path,
    read: &textnlp_orchestrator::state::State,
) -> Result<Vec<(textnlp_provider::SiteName, String)>, Failure> {
    let mut moved = Vec::new();
    let mut sites = read.places().clone();
    for (site, place) in &mut sites {
        let here = clouds::account(&place.provider);
        // What an environment names by itself is no machine of ours to move.
        if clouds::is_machine(&place.provider, &place.account) && place.account != here {
            moved.push((site.clone(), std::mem::replace(&mut place.account, here)));
        }
    }
    if moved.is_empty() {
        return Ok(moved);
    }
    let path = state.join("lineage.json");
    let text = std::fs::read(&path).with_context(|| format!("read {path}"))?;
    let file: LineageFile = serde_json::from_slice(&text).with_context(|| format!("read {path}"))?;
    let text = serde_json::to_vec_pretty(&LineageFile { sites, ..file }).context("write the lineage")?;
    keep::put(&path, &text).with_context(|| format!("write {path}"))?;
    Ok(moved)
}

/// Models that came along go where `up` looks for them first.
async fn take_models(session: &Session, manifest: &Manifest, place: &Utf8Path) -> Result<(), Failure> {
    for (name, model) in &manifest.models {
        let Some(folder) = &model.folder else { continue };
        into_cache(&session.model_cache()?, name, &place.join(folder), model.digest.as_deref()).await?;
    }
    Ok(())
}

/// Puts a model's folder into a cache, where `up` looks before it asks the model's source. What is there already stays.
pub async fn into_cache(cache: &Utf8Path, name: &str, folder: &Utf8Path, digest: Option<&str>) -> Result<(), Failure> {
    let store = Store::open(cache).context("open the model cache")?;
    let source: Source =
        format!("file:{folder}").parse().with_context(|| format!("name the folder of model {name}"))?;
    let mut options = FetchOptions::default();
    if let Some(digest) = digest {
        let digest = digest.parse().with_context(|| format!("read the digest of model {name}"))?;
        if store.open_model(&digest).context("look into the model cache")?.is_some() {
            return Ok(());
        }
        options.expect = Some(digest);
    }
    store.fetch(&source, &options, &|_| {}).await.with_context(|| format!("put model {name} into the cache"))?;
    Ok(())
}

/// The deployment whose state a folder holds; `None` where it holds none.
fn lineage_in(target: &Utf8Path) -> Option<Lineage> {
    let text = std::fs::read(target.join("lineage.json")).ok()?;
    serde_json::from_slice::<LineageFile>(&text).ok().map(|file| file.lineage)
}

/// Everything that keeps a backup from the place of what is in `target`. Looks, and changes nothing.
async fn may_replace(
    session: &Session,
    args: &Restore,
    manifest: &Manifest,
    target: &Utf8Path,
) -> Result<Vec<Failure>, Failure> {
    let name = &manifest.environment;
    if is_bare(target)? {
        return Ok(Vec::new());
    }
    let lineage = lineage_in(target);
    if lineage != Some(manifest.lineage) {
        let other =
            lineage.map_or("something else".to_owned(), |other| format!("another deployment (lineage {other})"));
        let error = anyhow::anyhow!("{target} holds {other}; the backup is of lineage {}", manifest.lineage);
        return Ok(vec![
            Failure::refused("other_deployment", error).hint("restore into another folder: --state-dir DIR"),
        ]);
    }
    let mut obstacles = Vec::new();
    match args.replace.as_deref() {
        Some(typed) if typed == name.as_str() => {}
        Some(typed) => {
            let error = anyhow::anyhow!("--replace names `{typed}`, the backup is of `{name}`");
            obstacles.push(Failure::refused("wrong_name", error).hint(format!("type its name: --replace {name}")));
        }
        None => {
            let error = anyhow::anyhow!("{target} holds this deployment already");
            obstacles.push(Failure::refused("state_is_there", error).hint(format!(
                "to go back to the backup: --replace {name} (what is here is kept beside); to try it elsewhere: --state-dir DIR"
            )));
        }
    }
    let state = super::super::running::state(&session.again(), name, target).await?;
    for site in state.places().keys() {
        if !clouds::processes(target, site).await.is_empty() {
            let error = anyhow::anyhow!("site `{site}` runs on the state that would be replaced");
            obstacles.push(Failure::refused("running", error).hint(session.again().named("down", name)));
        }
    }
    Ok(obstacles)
}

/// Puts the restored state in its place, in one step. Says where the one that was there is kept.
async fn put_in_place(
    session: &Session,
    args: &Restore,
    manifest: &Manifest,
    staged: &mut tempfile::TempDir,
    target: &Utf8Path,
) -> Result<Option<Utf8PathBuf>, Failure> {
    let restored = Utf8PathBuf::try_from(staged.path().join(STATE)).context("temporary folders have UTF-8 names")?;
    if is_bare(target)? {
        // An empty folder is replaced by the rename.
        std::fs::rename(&restored, target).with_context(|| format!("put the state into {target}"))?;
        flush(target)?;
        return Ok(None);
    }
    let name = &manifest.environment;
    // Held until the new one is in its place: no run begins on the old one. Somebody may have begun one since the look.
    let who = operator(session);
    let holder = Holder { by: who.by, pid: who.pid, host: who.host, since: Timestamp::now(), tool: who.tool };
    let _lock = Folder::at(target).lock(&holder).await.map_err(|error| state_failed(error, &session.again(), name))?;
    one_report(target, may_replace(session, args, manifest, target).await?)?;
    let kept = free_name(&format!("{target}.replaced-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ")))?;
    exchange(staged, target, &kept)?;
    flush(target)?;
    Ok(Some(kept))
}

/// Exchanges what was restored with what is in `target`, and keeps that as `kept`. Where it cannot be kept, everything is as it was.
fn exchange(staged: &mut tempfile::TempDir, target: &Utf8Path, kept: &Utf8Path) -> anyhow::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let restored = &Utf8PathBuf::try_from(staged.path().join(STATE)).context("temporary folders have UTF-8 names")?;
    // One step for both: a kill leaves one of the two states in its place, never none.
    let exchange = || {
        let done = renameat_with(CWD, restored.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE);
        done.map_err(std::io::Error::from).with_context(|| format!("put the state into {target}"))
    };
    exchange()?;
    // From here on the earlier state lies among what was opened, and that is thrown away at the end.
    staged.disable_cleanup(true);
    let kept = std::fs::rename(restored, kept).with_context(|| format!("keep the earlier state as {kept}"));
    let is_safe = match &kept {
        Ok(()) => Ok(()),
        Err(_) => exchange(),
    };
    match is_safe {
        Ok(()) => {
            staged.disable_cleanup(false);
            kept
        }
        Err(why) => kept.with_context(|| format!("the earlier state is left in {restored}, and stays there ({why:#})")),
    }
}

/// A name beside the state that nothing has yet.
fn free_name(wanted: &str) -> Result<Utf8PathBuf, Failure> {
    /// Replacements within one second.
    const MOST: u32 = 100;
    let mut names = (1..=MOST).map(|number| match number {
        1 => Utf8PathBuf::from(wanted),
        _ => Utf8PathBuf::from(format!("{wanted}-{number}")),
    });
    let is_free = |path: &Utf8PathBuf| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    Ok(names
        .find(is_free)
        .with_context(|| format!("find a name for the earlier state: {wanted} and {MOST} more are taken"))?)
}

/// Whether nothing is there.
fn is_bare(target: &Utf8Path) -> Result<bool, Failure> {
    match target.read_dir_utf8() {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(anyhow::Error::new(error).context(format!("look at {target}")).into()),
    }
}

fn flush(target: &Utf8Path) -> Result<(), Failure> {
    let parent = target.parent().unwrap_or(target);
    let flushed = std::fs::File::open(parent).and_then(|folder| folder.sync_all());
    Ok(flushed.with_context(|| format!("flush {parent}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use textnlp_orchestrator::state::State;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_site_of_a_machine_that_is_no_more_belongs_to_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        let site = |account: &str| json!({ "provider": "onprem", "account": account, "region": "local", "runtime": "process" });
        let lineage = json!({
            "format": 1, "lineage": Uuid::nil(), "environment": "staging",
            "sites": { "here": site("machine-dead0000dead"), "there": site("named-by-the-environment") },
        });
        std::fs::write(folder.join("lineage.json"), lineage.to_string()).unwrap();
        let load = async || {
            let name = EnvironmentName::new("staging").unwrap();
            State::load(Arc::new(Folder::at(folder)), &name, Lineage(Uuid::max())).await.unwrap()
        };
        let moved = rebind(folder, &load().await).unwrap();
        assert_eq!(moved.len(), 1);
        assert_eq!((moved[0].0.as_str(), moved[0].1.as_str()), ("here", "machine-dead0000dead"));
        let accounts: Vec<_> = load().await.places().values().map(|place| place.account.clone()).collect();
        assert_eq!(accounts, [clouds::account("onprem"), "named-by-the-environment".to_owned()]);
        assert_eq!(load().await.lineage(), Lineage(Uuid::nil()));
        assert!(rebind(folder, &load().await).unwrap().is_empty(), "once is enough");
    }

    /// Two states of one text each: one in its place, one restored beside it.
    fn two_states() -> (tempfile::TempDir, Utf8PathBuf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let target = Utf8Path::from_path(dir.path()).unwrap().join("staging");
        let staged = tempfile::Builder::new().prefix(PREFIX).tempdir_in(dir.path()).unwrap();
        for (folder, text) in [(target.as_std_path(), "earlier"), (&staged.path().join(STATE), "restored")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("text"), text).unwrap();
        }
        (dir, target, staged)
    }

    #[test]
    fn a_state_that_was_replaced_is_kept_or_stays_where_it_is() {
        let read = |folder: &Utf8Path| std::fs::read_to_string(folder.join("text")).unwrap();
        let (dir, target, mut staged) = two_states();
        let kept = free_name(&format!("{target}.replaced-1")).unwrap();
        exchange(&mut staged, &target, &kept).unwrap();
        drop(staged);
        assert_eq!((read(&target), read(&kept)), ("restored".to_owned(), "earlier".to_owned()));
        assert_eq!(free_name(kept.as_str()).unwrap(), format!("{kept}-2"), "nothing is kept over another");
        drop(dir);

        // It cannot be kept under that name: it was lost with what was opened.
        let (_dir, target, mut staged) = two_states();
        let nowhere = target.join("../not-there/kept");
        let error = format!("{:#}", exchange(&mut staged, &target, &nowhere).unwrap_err());
        assert!(error.contains("keep the earlier state as"), "{error}");
        let opened = staged.path().to_owned();
        drop(staged);
        assert_eq!(read(&target), "earlier");
        assert!(!opened.exists(), "what was opened holds secrets, and goes");
    }

    #[test]
    fn what_killed_runs_opened_goes_and_a_state_that_was_put_aside_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        // No process has this number.
        let (opened, aside) = (root.join(".restore-4194305-a"), root.join(".restore-4194305-b"));
        let mine = root.join(format!(".restore-{}-c", std::process::id()));
        for folder in [&opened, &aside, &mine] {
            std::fs::create_dir_all(folder.join(STATE)).unwrap();
        }
        std::fs::write(aside.join(STATE).join("lock"), "").unwrap();
        let _ours = workplace::make(root, PREFIX, is_aside).unwrap();
        assert!(!opened.exists() && aside.exists() && mine.exists());
    }
}
