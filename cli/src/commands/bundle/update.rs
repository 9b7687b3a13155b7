//! `bundle update …`: creates an update from two bundles, applies it, or rolls it back.

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::legacy;
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::{AdmissionOptions, Contents, Installed, Scope, Site, Target, UnpackOptions, make_delta};
use textnlp_service::bundle::site::merge;
use textnlp_service::bundle::{epoch, signed, site};

use super::install::{absolute, requested_state};
use super::{drive, failed, inspect, open, site as run, trusted, warn_if_unverified};
use crate::bundle_args::{Overrides, Root, Trust, Update};
use crate::clouds;
use crate::commands::prelude::*;
use crate::signals;

/// `bundle update create|apply|rollback`.
pub async fn update(session: &Session, command: &Update, console: Console) -> Result<Success, Failure> {
    match command {
        Update::Create { from, to, out, only, sign_key } => create(from, to, out, only, sign_key.as_deref(), console),
        Update::Apply { bundles, root, trust, overrides, no_up, no_gate } => {
            let trust = (trust, *overrides);
            apply(session, bundles, root, trust, *no_up, *no_gate, console).await
        }
        Update::Zip { names, models, out, version } => zip(names, models, out, version),
        Update::Unzip { file, models } => unzip(file, models),
        Update::Rollback { root, no_up, no_gate } => rollback(session, root, *no_up, *no_gate, console).await,
    }
}

fn create(
    from: &Utf8Path,
    to: &Utf8Path,
    out: &Utf8Path,
    only: &[String],
    sign_key: Option<&Utf8Path>,
    console: Console,
) -> Result<Success, Failure> {
    let (base, target) = (open(from)?, open(to)?);
    let contents = Contents::of(base.manifest()).ok_or_else(|| {
        Failure::usage("other_kind", anyhow::anyhow!("{from} is an update itself"))
            .hint("--from takes the full bundle that is installed at the site")
    })?;
    let gone =
        contents.items.iter().filter(|item| target.manifest().items.iter().all(|there| there.key() != item.key()));
    let items: Vec<&Item> = target.manifest().items.iter().chain(gone).collect();
    let scope = scope(&items, only)?;
    let progress = Progress::new(console);
    let stop = signals::stop(console);
    let made =
        drive(&progress, &stop, |drive| make_delta(Some(&contents), &Target::Bundle(&target), &scope, out, &drive));
    progress.finish();
    let made = made.map_err(failed)?;
    let signed = sign_key.map(|key| super::keys::sign_with(out, key, None)).transpose()?;
    let whole = target.bytes();
    let public = sign_key.and_then(Utf8Path::file_stem).map_or_else(String::new, |key| format!(" --trust {key}.pub"));
    let text = format!(
        "{out}: {} of which {} are content; the full bundle has {}{}\n  signed by  {}{}\nOn the target machine: textnlp-deploy bundle update apply {}{public}",
        size(made.bytes),
        size(made.carried),
        size(whole),
        inspect::items_text(&made.manifest),
        signed.as_deref().unwrap_or("no key"),
        inspect::keys_text(&made.manifest),
        out.file_name().unwrap_or("FILE")
    );
    Ok(Success::new(
        text,
        json!({ "file": made.path, "bytes": made.bytes, "carried_bytes": made.carried, "whole_bytes": whole, "items": made.manifest.items, "signed_by": signed }),
    ))
}

/// The selected items, as `kind/name`, including those that the target removes.
fn scope(items: &[&Item], only: &[String]) -> Result<Scope, Failure> {
    if only.is_empty() {
        return Ok(Scope::Everything);
    }
    let called = |item: &&Item| format!("{}/{}", item.kind, item.name);
    let mut keys = Vec::new();
    for wanted in only {
        let found: Vec<_> = items.iter().filter(|item| called(item) == *wanted).map(|item| item.key()).collect();
        if found.is_empty() {
            let there: Vec<String> = items.iter().map(called).collect();
            return Err(Failure::usage("no_such_item", anyhow::anyhow!("the bundle has no `{wanted}`"))
                .hint(format!("it has: {}", there.join(", "))));
        }
        keys.extend(found);
    }
    Ok(Scope::Items(keys))
}

async fn apply(
    session: &Session,
    bundles: &[Utf8PathBuf],
    root: &Root,
    (trust, overrides): (&Trust, Overrides),
    no_up: bool,
    no_gate: bool,
    console: Console,
) -> Result<Success, Failure> {
    let trust = trusted(trust)?;
    let root = absolute(session, &root.root);
    let (installation, before) = site::installed(&root)?;
    let state = site::wanted_state(&root, requested_state(session).as_deref())?;
    run::is_not_frozen(&before.contents.items, &root, &state).await?;
    let progress = Progress::new(console);
    let stop = signals::stop(console);
    let mut applied = Vec::new();
    let mut options = AdmissionOptions::from(overrides);
    for path in bundles {
        let mut bundle = open(path)?;
        let authenticity = installation.admit(&bundle, &trust, options).map_err(failed)?.authenticity;
        warn_if_unverified(&authenticity, console);
        let unpacked = drive(&progress, &stop, |drive| {
            let unpacked = installation
                .apply(&mut bundle, &UnpackOptions { authenticity: authenticity.clone(), deep: false, drive })?;
            installation.activate_admitted(&unpacked.name, &bundle, &trust, options)?;
            Ok(unpacked)
        });
        let unpacked = unpacked.map_err(failed)?;
        // What the first update pinned counts for the next one.
        options.forget_trust = false;
        let what = if unpacked.unchanged {
            "already applied".to_owned()
        } else {
            format!("applied, {} new", size(unpacked.written))
        };
        progress.line(format!("  {path}: {what}; {}", signed(&authenticity)));
        applied.push(json!({ "file": path, "written_bytes": unpacked.written, "unchanged": unpacked.unchanged, "authenticity": authenticity }));
    }
    progress.finish();
    let (_, now) = site::installed(&root)?;
    let mut document = json!({ "root": root, "before": before.content, "digest": now.content, "applied": applied });
    let rolled = roll(session, &installation, &now, no_up, no_gate, console).await;
    let rolled = rolled.map_err(|failure| failure.document(document.clone()))?;
    merge(&mut document, rolled);
    if !no_up {
        // The new content runs. One previous version is kept for a rollback.
        installation.gc().map_err(failed)?;
    }
    Ok(Success::new(format!("{root} has {} now (before: {})", now.content, before.content), document))
}

async fn rollback(
    session: &Session,
    root: &Root,
    no_up: bool,
    no_gate: bool,
    console: Console,
) -> Result<Success, Failure> {
    let root = absolute(session, &root.root);
    let (installation, before) = site::installed(&root)?;
    let state = site::wanted_state(&root, requested_state(session).as_deref())?;
    run::is_not_frozen(&before.contents.items, &root, &state).await?;
    let names = site::names(&before.contents.items, ItemKind::Environment);
    let runs = names.iter().any(|name| is_deployed(&state, name));
    // `up` would refuse it once the content is switched.
    if runs && !no_up && !session.global.yes && !console.can_ask() {
        let error = anyhow::anyhow!("a rollback changes what runs, and there is no terminal to ask at");
        return Err(Failure::refused("not_approved", error).hint("approve it with --yes"));
    }
    installation.rollback().map_err(not_rolled_back)?;
    let (_, now) = site::installed(&root)?;
    let mut document = json!({ "root": root, "before": before.content, "digest": now.content });
    let rolled = roll(session, &installation, &now, no_up, no_gate, console).await;
    let rolled = rolled.map_err(|failure| unfinished(failure.document(document.clone())))?;
    installation.finish_rollback().map_err(failed)?;
    merge(&mut document, rolled);
    // An earlier rollback switched the content and left its end open.
    let done = match before.content == now.content {
        true => format!("{root}: the rollback to {} (version {}) is finished", now.content, now.version),
        false => format!("{root} is rolled back to {} (version {})", now.content, now.version),
    };
    Ok(Success::new(format!("{done}; run the same command again to undo it"), document))
}

/// A failure after the content was switched: the rollback stays open, so the same command does not lead forward again.
fn unfinished(failure: Failure) -> Failure {
    let again = "the same command finishes the rollback";
    let hint = failure.hint.as_ref().map_or_else(|| again.to_owned(), |hint| format!("{hint}\nthen {again}"));
    failure.hint(hint)
}

/// Whether an environment of a site was deployed.
fn is_deployed(state: &Utf8Path, environment: &str) -> bool {
    state.join(environment).join("lineage.json").exists()
}

/// Why an installed site is not rolled back. Where it has no earlier version, another bundle is the next step.
fn not_rolled_back(error: textnlp_bundle::Error) -> Failure {
    let is_first = matches!(error, textnlp_bundle::Error::Site { .. });
    let failure = failed(error);
    match is_first {
        true => failure.hint("install another bundle, or apply an update: what runs before it is kept for a rollback"),
        false => failure,
    }
}

/// Sets up the current content and rolls it out to all of its environments that run here.
async fn roll(
    session: &Session,
    installation: &Site,
    installed: &Installed,
    no_up: bool,
    no_gate: bool,
    console: Console,
) -> Result<Value, Failure> {
    let root = installation.root();
    let names = site::names(&installed.contents.items, ItemKind::Environment);
    let state = site::wanted_state(root, requested_state(session).as_deref())?;
    let up: Vec<&String> = names.iter().filter(|name| is_deployed(&state, name)).collect();
    let mut last = Value::Null;
    let chosen = session.global.env.as_deref().or_else(|| names.first().map(String::as_str)).unwrap_or_default();
    let (requested, progress) = (requested_state(session), Progress::new(console));
    let choices = site::Choices { state: requested.as_deref(), sets: &session.global.set, user: None };
    site::lay_out(installation, installed, chosen, choices, (&clouds::catalogue(), &progress))?;
    progress.finish();
    for name in up.iter().filter(|_| !no_up) {
        last = run::up(session, &run::Run { root, environment: name, no_gate }, console).await?;
    }
    Ok(last)
}

fn zip(names: &[String], models: &Utf8Path, out: &Utf8Path, version: &str) -> Result<Success, Failure> {
    let made =
        tokio::task::block_in_place(|| legacy::update::create(models, names, out, version, epoch()?).map_err(older))?;
    let mut text = format!("{out}: {}", made.manifest.models.keys().cloned().collect::<Vec<_>>().join(", "));
    for name in &made.skipped {
        text.push_str(&format!("\n  skipped {name}: it is not in {models}"));
    }
    Ok(Success::new(text, json!({ "file": out, "manifest": made.manifest, "skipped": made.skipped })))
}

fn unzip(file: &Utf8Path, models: &Utf8Path) -> Result<Success, Failure> {
    let done = tokio::task::block_in_place(|| legacy::update::apply(file, models)).map_err(older)?;
    let mut text = format!("{models} has the models of {file}");
    for (word, names) in [("added", &done.added), ("replaced", &done.replaced), ("unchanged", &done.unchanged)] {
        if !names.is_empty() {
            text.push_str(&format!("\n  {word:<9} {}", names.join(", ")));
        }
    }
    let document =
        json!({ "models": models, "added": done.added, "replaced": done.replaced, "unchanged": done.unchanged });
    Ok(Success::new(text, document))
}

fn older(error: legacy::Error) -> Failure {
    let hint = error.hint();
    Failure::new(Exit::Failed, "update", error).hint(hint)
}

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use textnlp_bundle::Error;

    use super::*;

    #[test]
    fn only_a_site_without_an_earlier_version_needs_another_bundle() {
        let root = Utf8PathBuf::from("/srv/site");
        let first = not_rolled_back(Error::Site { root: root.clone(), why: "nothing was installed before".to_owned() });
        assert!(first.hint.is_some_and(|hint| hint.starts_with("install another bundle")));
        let shut = unfinished(Failure::new(Exit::GateShut, "gate_not_open", anyhow::anyhow!("shut")).hint("measure"));
        assert_eq!(shut.hint.as_deref(), Some("measure\nthen the same command finishes the rollback"));
        let source = IoError::from(ErrorKind::PermissionDenied);
        let denied = not_rolled_back(Error::Io { action: "link", path: root, source });
        assert!(denied.hint.is_some_and(|hint| hint.contains("that you may read and write")));
    }
}
