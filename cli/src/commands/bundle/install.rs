//! `bundle install`: runs the preflight checks, verifies while unpacking, switches to the new content and rolls it out.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::manifest::{ItemKind, Kind};
use textnlp_bundle::{AdmissionOptions, Site, UnpackOptions, Unpacked, recipe};
use textnlp_service::bundle::user::SharedFiles;
use textnlp_service::bundle::{signed, site};

use super::user::ServiceUser;
use super::{drive, failed, open, preflight, site as run, trusted, warn_if_unverified};
use crate::bundle_args::Install;
use crate::clouds;
use crate::commands::prelude::*;
use crate::rerun_flags::quoted;
use crate::signals;

/// `bundle install`.
pub async fn install(session: &Session, args: &Install, console: Console) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let mut bundle = open(&args.bundle)?;
    if bundle.manifest().kind == Kind::Delta {
        let error = anyhow::anyhow!("{} is an update: it contains only the changes since another bundle", args.bundle);
        let trust = args.trust.trust.iter().map(|key| format!(" --trust {}", quoted(key.as_str())));
        let root = quoted(args.root.root.as_str());
        let hint = format!(
            "textnlp-deploy bundle update apply {}{} --root {root}",
            quoted(args.bundle.as_str()),
            trust.collect::<String>()
        );
        return Err(Failure::usage("other_kind", error).hint(hint));
    }
    let root = absolute(session, &args.root.root);
    let installation = Site::new(&root);
    let options = AdmissionOptions::from(args.overrides);
    let authenticity = installation.admit(&bundle, &trust, options).map_err(failed)?.authenticity;
    warn_if_unverified(&authenticity, console);
    let name = site::environment(
        session.global.env.as_deref(),
        &site::names(&bundle.manifest().items, ItemKind::Environment),
    )?;
    let is_stream = bundle.path().is_none();
    let text = (!is_stream).then(|| preflight::environment_text(&bundle, &name)).transpose()?;
    let bundled = text.as_deref().map(|text| (text, bundle.manifest().items.as_slice()));
    let requested = args.user.as_deref();
    let mut user = ServiceUser::choose(session, requested, &root, &name, bundled)?;
    preflight::preflight(session, &bundle, &root, &name, user.as_ref(), console).await?;
    if args.preflight {
        let mut text = format!("preflight passed: {} can be installed into {root}", args.bundle);
        if let Some(user) = &user {
            text.push_str(&format!("\n  user       {}", user.name));
            text.push_str(if user.is_created() { " (a system user that the installation creates)" } else { "" });
        }
        let created = user.as_ref().is_some_and(ServiceUser::is_created);
        let user = user.map(|user| user.name);
        return Ok(Success::new(
            text,
            json!({ "file": args.bundle, "root": root, "environment": name, "authenticity": authenticity, "user": user, "creates_user": created }),
        ));
    }

    let state = site::wanted_state(&root, requested_state(session).as_deref())?;
    run::is_not_frozen(&bundle.manifest().items, &root, &state).await?;
    let progress = Progress::new(console);
    let stop = signals::stop(console);
    let shared = user.as_ref().filter(|user| !user.is_root()).map(|_| SharedFiles::begin());
    let unpacked = progress
        .done(drive(&progress, &stop, |drive| {
            installation.unpack(&mut bundle, &UnpackOptions { authenticity: authenticity.clone(), deep: false, drive })
        }))
        .map_err(failed)?;
    if is_stream {
        let file = unpacked.folder.join(recipe::environment_path(&name));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
        user = ServiceUser::choose(
            session,
            requested,
            &root,
            &name,
            Some((text.as_str(), bundle.manifest().items.as_slice())),
        )?;
    }
    if let Some(user) = &user {
        if is_stream {
            preflight::user(user, &root, &state, console)?;
        }
        user.prepare(&state, console)?;
    }
    let activated =
        tokio::task::block_in_place(|| installation.activate_admitted(&unpacked.name, &bundle, &trust, options));
    let pinned = activated.map_err(failed)?.pinned;
    console.say(said(&unpacked));
    let user = user.map(|user| user.name);
    let requested = requested_state(session);
    let choices = site::Choices { state: requested.as_deref(), sets: &session.global.set, user: user.as_deref() };
    site::lay_out(&installation, &unpacked.record, &name, choices, (&clouds::catalogue(), &progress))?;
    drop(shared);

    let state = site::state_folder(&root);
    let mut document = json!({
        "file": args.bundle, "root": root, "state_dir": state, "environment": name, "version": bundle.manifest().version, "digest": unpacked.record.content,
        "content": unpacked.folder, "unchanged": unpacked.unchanged, "written_bytes": unpacked.written, "linked_bytes": unpacked.linked,
        "resumed_bytes": unpacked.resumed, "authenticity": authenticity, "unpack_seconds": unpacked.elapsed.as_secs_f64(),
        "user": user, "trusted_keys": pinned.as_ref().map_or_else(Vec::new, |pinned| super::keys::ids(&pinned.trusted)),
    });
    let up = if args.no_up {
        Value::Null
    } else {
        let options = run::Run { root: &root, environment: &name, no_gate: args.no_gate };
        let up = run::up(session, &options, console).await.map_err(|failure| failure.document(document.clone()))?;
        installation.gc().map_err(failed)?;
        up
    };
    site::merge(&mut document, up);
    let mut text =
        format!("{} is installed in {root}: version {}, {}", name, bundle.manifest().version, signed(&authenticity));
    text.push_str(&format!("\n  state      {state}"));
    if let Some(user) = &user {
        text.push_str(&format!("\n  user       {user}"));
    }
    if let Some(pinned) = &pinned {
        let keys = super::keys::ids(&pinned.trusted).join(", ");
        text.push_str(&format!("\n  trust      only bundles signed by {keys} are accepted from now on"));
    }
    if args.no_up {
        text.push_str(&format!("\nTo start it: cd {root} && bin/textnlp-deploy up --env {name} --yes"));
    } else {
        text.push_str(&format!(
            "\n  settings   {root}/environments/{name}.yaml\n  program    {root}/bin/textnlp-deploy"
        ));
        // The first content has none before it.
        if installation.installed().map_err(failed)?.is_some_and(|record| record.previous.is_some()) {
            text.push_str(&format!("\n  rollback   textnlp-deploy bundle update rollback --root {root}"));
        }
    }
    Ok(Success::new(text, document))
}

/// The state folder of a typed `--state-dir`, also where a variable has the same value.
pub fn requested_state(session: &Session) -> Option<Utf8PathBuf> {
    let requested = session.global.state_dir.as_ref().filter(|_| session.global.is_state_dir_typed);
    requested.map(|requested| absolute(session, requested))
}

/// An absolute root, resolved against the session's working directory.
pub fn absolute(session: &Session, root: &Utf8Path) -> Utf8PathBuf {
    if root.is_absolute() { root.to_owned() } else { session.here.join(root) }
}

fn said(unpacked: &Unpacked) -> String {
    if unpacked.unchanged {
        return format!("The content is already installed and unchanged ({})", unpacked.name);
    }
    let mut text = format!("Verified and unpacked {} into {}", size(unpacked.written), unpacked.folder);
    if unpacked.linked > 0 {
        text.push_str(&format!("; {} already present", size(unpacked.linked)));
    }
    if unpacked.resumed > 0 {
        text.push_str(&format!("; {} from an earlier run", size(unpacked.resumed)));
    }
    text
}
