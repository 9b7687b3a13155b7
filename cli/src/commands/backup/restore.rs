//! `restore`: a deployment's state comes back from a copy; `up` makes the rest from it.

use std::time::Instant;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::json;
use textnlp_models::{FetchOptions, Source, Store};
use textnlp_orchestrator::backup::Manifest;
use textnlp_orchestrator::state::{Folder, Holder, LineageFile, Store as _};

use super::gather::STATE;
use super::{keep, opener, prove};
use crate::again::quoted;
use crate::args::Up;
use crate::backup_args::Restore;
use crate::clouds;
use crate::deployment::{operator, state_failed};
use crate::progress::Progress;
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `restore FILE`.
pub async fn restore(session: &Session, args: &Restore, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    if let Some(moment) = &args.at {
        let error = anyhow::anyhow!("going back to {moment} takes the log of a PostgreSQL, which is not kept yet");
        return Err(Failure::usage("not_available", error)
            .hint("restore the last copy before that moment: `textnlp-deploy backup list` shows when each was made"));
    }
    let file = session.here.join(&args.backup);
    let root = session.state_root()?;
    std::fs::create_dir_all(&root).with_context(|| format!("make {root}"))?;
    let progress = Progress::new(console);
    progress.doing("reads the backup whole");
    clear(&root);
    let staged = tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(&root)
        .with_context(|| format!("make a folder in {root}"))?;
    let place = Utf8Path::from_path(staged.path()).context("temporary folders have UTF-8 names")?;
    // The key of a state that is still here opens its own copies.
    let here = match (&session.global.env, &args.replace) {
        (Some(name), _) | (None, Some(name)) => root.join(name),
        (None, None) => root.clone(),
    };
    let opener = opener(&args.opening, session, &here).await?;
    let (_, manifest) = tokio::task::block_in_place(|| prove::open(&file, &opener, place))?;
    let state = prove::state_of(place, &manifest).await.context("read the restored state")?;
    progress.finish();
    let name = &manifest.environment;
    if let Some(asked) = session.global.env.as_deref().filter(|asked| *asked != name.as_str()) {
        let error = anyhow::anyhow!("{file} is of environment `{name}`, and `{asked}` was asked for");
        return Err(Failure::refused("other_environment", error).hint(format!("leave --env out, or say --env {name}")));
    }
    let target = root.join(name.as_str());
    let moved = rebind(&place.join(STATE), &state)?;
    take_models(session, &manifest, place).await?;
    let replaced = put_in_place(session, args, &manifest, &place.join(STATE), &target).await?;

    let mut lines = vec![format!(
        "{name} of {} is back in {target}: lineage {}",
        manifest.at.strftime("%Y-%m-%d %H:%M UTC"),
        manifest.lineage
    )];
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
        "environment": name, "lineage": manifest.lineage, "made": manifest.at, "state": target, "replaced": replaced,
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
    let up = Up { no_gate: false, prompt: None };
    let mut done =
        super::super::up::up(&session, &up, console).await.map_err(|failure| failure.document(document.clone()))?;
    done.document.insert("restored".to_owned(), document);
    Ok(done)
}

/// Where a backup is opened before it counts.
const PREFIX: &str = ".restore-";

/// Removes what killed runs opened: it holds secrets. A state that was in use, which a run was killed over putting aside, stays.
fn clear(root: &Utf8Path) {
    for entry in root.read_dir_utf8().into_iter().flatten().flatten() {
        let pid = entry.file_name().strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        let is_dead = pid.is_some_and(|pid| !Utf8PathBuf::from(format!("/proc/{pid}")).exists());
        // Only a state in use has a lock: backups hold none.
        if is_dead && !entry.path().join(STATE).join("lock").exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
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

/// Puts the restored state in its place, in one step. Says where the one that was there is kept.
async fn put_in_place(
    session: &Session,
    args: &Restore,
    manifest: &Manifest,
    restored: &Utf8Path,
    target: &Utf8Path,
) -> Result<Option<Utf8PathBuf>, Failure> {
    let name = &manifest.environment;
    if is_bare(target)? {
        // An empty folder is replaced by the rename.
        std::fs::rename(restored, target).with_context(|| format!("put the state into {target}"))?;
        flush(target)?;
        return Ok(None);
    }
    let lineage = std::fs::read(target.join("lineage.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<LineageFile>(&text).ok())
        .map(|file| file.lineage);
    if lineage != Some(manifest.lineage) {
        let other =
            lineage.map_or("something else".to_owned(), |other| format!("another deployment (lineage {other})"));
        let error = anyhow::anyhow!("{target} holds {other}; the backup is of lineage {}", manifest.lineage);
        return Err(Failure::refused("other_deployment", error).hint("restore into another folder: --state-dir DIR"));
    }
    match args.replace.as_deref() {
        Some(typed) if typed == name.as_str() => {}
        Some(typed) => {
            let error = anyhow::anyhow!("--replace names `{typed}`, the backup is of `{name}`");
            return Err(Failure::refused("wrong_name", error).hint(format!("type its name: --replace {name}")));
        }
        None => {
            let error = anyhow::anyhow!("{target} holds this deployment already");
            return Err(Failure::refused("state_is_there", error).hint(format!(
                "to go back to the backup: --replace {name} (what is here is kept beside); to try it elsewhere: --state-dir DIR"
            )));
        }
    }
    // Held until the new one is in its place: no run begins on the old one.
    let who = operator(session);
    let holder = Holder { by: who.by, pid: who.pid, host: who.host, since: Timestamp::now(), tool: who.tool };
    let _lock = Folder::at(target).lock(&holder).await.map_err(|error| state_failed(error, &session.again(), name))?;
    let state = super::super::running::state(&session.again(), name, target).await?;
    for site in state.places().keys() {
        if !clouds::processes(target, site).await.is_empty() {
            let error = anyhow::anyhow!("site `{site}` runs on the state that would be replaced");
            return Err(Failure::refused("running", error).hint(session.again().named("down", name)));
        }
    }
    let kept = Utf8PathBuf::from(format!("{target}.replaced-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ")));
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    // One step for both: a kill leaves one of the two states in its place, never none.
    renameat_with(CWD, restored.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE)
        .map_err(std::io::Error::from)
        .with_context(|| format!("put the state into {target}"))?;
    std::fs::rename(restored, &kept).with_context(|| format!("keep the earlier state as {kept}"))?;
    flush(target)?;
    Ok(Some(kept))
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
    use textnlp_provider::{EnvironmentName, Lineage};
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
        clear(root);
        assert!(!opened.exists() && aside.exists() && mine.exists());
    }
}
