//! `bundle install`: runs the preflight checks, verifies while unpacking, switches to the new content and rolls it out.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_bundle::manifest::{ItemKind, Kind};
use textnlp_bundle::{Site, UnpackOptions, Unpacked};

use super::{authentic, drive, failed, inspect, open, preflight, site, trusted};
use crate::bundle_args::Install;
use crate::progress::Progress;
use crate::report::{Console, Failure, Success, size};
use crate::session::Session;
use crate::signals;

/// `bundle install`.
pub async fn install(session: &Session, args: &Install, console: Console) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let mut bundle = open(&args.bundle)?;
    if bundle.manifest().kind == Kind::Delta {
        return Err(Failure::usage(
            "other_kind",
            anyhow::anyhow!("{} is an update: it contains only the changes since another bundle", args.bundle),
        )
        .hint(format!("textnlp-deploy bundle update apply {}", args.bundle)));
    }
    let authenticity = authentic(&bundle, &trust, console)?;
    let root = absolute(session, &args.root.root);
    let name = site::environment(session, &site::names(&bundle.manifest().items, ItemKind::Environment))?;
    preflight::preflight(session, &bundle, &root, &name, console).await?;
    if args.preflight {
        return Ok(Success::new(
            format!("preflight passed: {} can be installed into {root}", args.bundle),
            json!({ "file": args.bundle, "root": root, "environment": name, "authenticity": authenticity }),
        ));
    }

    let installation = Site::new(&root);
    let progress = Progress::new(console);
    let stop = signals::stop(console);
    let unpacked = drive(&progress, &stop, |drive| {
        let unpacked = installation
            .unpack(&mut bundle, &UnpackOptions { authenticity: authenticity.clone(), deep: false, drive })?;
        installation.activate(&unpacked.name)?;
        Ok(unpacked)
    });
    progress.finish();
    let unpacked = unpacked.map_err(failed)?;
    console.say(said(&unpacked));
    site::lay_out(session, &installation, &unpacked.record, &name, console)?;

    let state = site::state_folder(&root);
    let mut document = json!({
        "file": args.bundle, "root": root, "state_dir": state, "environment": name, "version": bundle.manifest().version, "digest": unpacked.record.content,
        "content": unpacked.folder, "unchanged": unpacked.unchanged, "written_bytes": unpacked.written, "linked_bytes": unpacked.linked,
        "resumed_bytes": unpacked.resumed, "authenticity": authenticity, "unpack_seconds": unpacked.elapsed.as_secs_f64(),
    });
    let up = if args.no_up {
        Value::Null
    } else {
        let run = site::Run { root: &root, environment: &name, no_gate: args.no_gate };
        let up = site::up(session, &run, console).await.map_err(|failure| failure.document(document.clone()))?;
        installation.gc().map_err(failed)?;
        up
    };
    merge(&mut document, up);
    let mut text = format!(
        "{} is installed in {root}: version {}, {}",
        name,
        bundle.manifest().version,
        inspect::signed(&authenticity)
    );
    text.push_str(&format!("\n  state      {state}"));
    if args.no_up {
        text.push_str(&format!("\nTo start it: cd {root} && bin/textnlp-deploy up --env {name} --yes"));
    } else {
        text.push_str(&format!("\n  settings   {root}/environments/{name}.yaml\n  program    {root}/bin/textnlp-deploy\n  rollback   textnlp-deploy bundle update rollback --root {root}"));
    }
    Ok(Success::new(text, document))
}

/// Adds members of the `up` document to this command's document.
pub fn merge(document: &mut Value, up: Value) {
    let (Value::Object(document), Value::Object(up)) = (document, up) else { return };
    for (key, value) in up {
        if !["format", "ok", "exit", "error"].contains(&key.as_str()) {
            document.entry(key).or_insert(value);
        }
    }
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
