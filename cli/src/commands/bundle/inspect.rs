//! `bundle verify`, `inspect` and `diff`: read-only commands.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use textnlp_bundle::manifest::{ItemKind, Kind, Manifest};
use textnlp_bundle::scan::Database;
use textnlp_bundle::{AdmissionOptions, Change, Contents, Site, VerifyOptions};
use textnlp_service::bundle::{advisories, scan_failed, signed};

use super::{authentic, drive, failed, open, trusted, warn_if_unverified};
use crate::bundle_args::{Diff, Inspect, Verify};
use crate::commands::prelude::*;
use crate::signals;

/// Limit of damages in the text output. The JSON document has all of them.
const SHOWN: usize = 20;

/// `bundle verify`.
pub fn verify(args: &Verify, console: Console) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let mut bundle = open(&args.bundle)?;
    let progress = Progress::new(console);
    let stop = signals::stop(console);
    let found = progress
        .done(drive(&progress, &stop, |drive| bundle.verify(&VerifyOptions { whole_files: true, drive })))
        .map_err(failed)?;
    if !found.is_whole() {
        let lines: Vec<String> = found.damages.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = (found.damages.len() as u64 + found.more).saturating_sub(lines.len() as u64);
        let more = if more > 0 { format!("\nand {more} more; --output json lists them") } else { String::new() };
        let error = anyhow::anyhow!("{}{more}", lines.join("\n")).context(format!("{} is damaged", args.bundle));
        return Err(Failure::new(Exit::Failed, "damaged", error)
            .hint("copy it again from where it was created, and run `bundle verify` there too")
            .document(json!({ "verified": found })));
    }
    let authenticity = match &args.root {
        Some(root) => {
            let admission = Site::new(root).admit(&bundle, &trust, AdmissionOptions::default());
            let authenticity = admission.map_err(failed)?.authenticity;
            warn_if_unverified(&authenticity, console);
            authenticity
        }
        None => authentic(&bundle, &trust, console)?,
    };
    // A stream can be read only once, and an update has only changed files.
    let is_readable = bundle.path().is_some() && bundle.manifest().kind == Kind::Full;
    let known = if is_readable { Database::carried(&bundle).map_err(scan_failed)? } else { None };
    let known = known.map_or_else(Vec::new, |database| database.facts(jiff::Timestamp::now()));
    let max = args.age.advisories_max_age;
    for old in known.iter().filter(|database| database.age_days > max) {
        console.warn(format!("the advisories in {} are {} days old, the limit is {max}", args.bundle, old.age_days));
    }
    let said: Vec<String> = known.iter().map(advisories::said).collect();
    let said = match (is_readable, said.is_empty()) {
        (false, _) => "not read".to_owned(),
        (true, true) => "none".to_owned(),
        (true, false) => said.join("; "),
    };
    let text = format!(
        "{}: verified: every byte is unchanged ({} in {} files and {} chunks, {:.1} s)\n  content    {}\n  signed     {}\n  advisories {}",
        args.bundle,
        size(found.bytes),
        found.files,
        found.chunks,
        found.seconds,
        bundle.content_digest(),
        signed(&authenticity),
        said
    );
    Ok(Success::new(
        text,
        json!({ "file": args.bundle, "digest": bundle.content_digest(), "manifest": bundle.manifest_digest(), "verified": found, "authenticity": authenticity, "advisories": known }),
    ))
}

/// `bundle inspect`.
pub fn inspect(args: &Inspect) -> Result<Success, Failure> {
    let trust = trusted(&args.trust)?;
    let bundle = open(&args.bundle)?;
    let manifest = bundle.manifest();
    let authenticity = bundle.authenticity(&trust);
    let kind = match manifest.kind {
        Kind::Full => "full",
        Kind::Delta => "delta",
    };
    let made = jiff::Timestamp::from_second(i64::try_from(manifest.epoch).unwrap_or_default())
        .map(|time| time.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default();
    let mut text = format!(
        "{}: version {}, {kind}, {} in {} files, times of {made}",
        args.bundle,
        manifest.version,
        size(bundle.bytes()),
        manifest.files.len()
    );
    text.push_str(&items_text(manifest));
    let _ = write!(text, "\n  signed     {}", signed(&authenticity));
    let mut digest = Some(bundle.content_digest());
    if manifest.delta.is_none() {
        let _ = write!(text, "\n  content    {}", bundle.content_digest());
    }
    if let Some(delta) = &manifest.delta {
        // An update contains only a part. This digest is of the complete result.
        digest = delta.result;
        for (word, digest) in [("from", delta.base), ("to", delta.result)] {
            let _ =
                write!(text, "\n  {word:<9}  {}", digest.map_or("any site".to_owned(), |digest| digest.to_string()));
        }
        let carried: u64 = delta.carries.iter().map(|c| u64::from(c.size)).sum();
        let _ = write!(text, "\n  content    {} in {}", size(carried), counted(delta.carries.len(), "chunk"));
        for path in &delta.removes {
            let _ = write!(text, "\n  removes    {path}");
        }
    }
    text.push_str(&keys_text(manifest));
    for damage in bundle.head_damages() {
        let _ = write!(text, "\n  DAMAGED    {damage}");
    }
    if args.files {
        text.push_str("\n\n     BYTES  DIGEST        PATH");
        for file in &manifest.files {
            let _ = write!(text, "\n{:>10}  {}  {}", file.size, &file.digest.hex()[..12], file.path);
        }
    }
    let files: Vec<_> = manifest
        .files
        .iter()
        .map(|f| json!({ "path": f.path, "size": f.size, "digest": f.digest, "executable": f.executable, "chunks": f.chunks.len() }))
        .collect();
    Ok(Success::new(
        text,
        json!({
            "file": args.bundle, "kind": kind, "version": manifest.version, "epoch": manifest.epoch, "bytes": bundle.bytes(),
            "digest": digest, "base": manifest.delta.as_ref().and_then(|delta| delta.base), "manifest": bundle.manifest_digest(),
            "authenticity": authenticity, "items": manifest.items, "keys": manifest.keys, "files": files, "damages": bundle.head_damages(),
        }),
    ))
}

/// The items of a bundle, one per line.
pub fn items_text(manifest: &Manifest) -> String {
    let sizes: BTreeMap<&str, u64> = manifest.files.iter().map(|f| (f.path.as_str(), f.size)).collect();
    let mut text = String::new();
    for item in &manifest.items {
        let bytes: u64 = item.paths.iter().filter_map(|p| sizes.get(p.as_str())).sum();
        let mut more: Vec<String> = Vec::new();
        more.extend(item.version.clone().filter(|v| item.kind != ItemKind::Program || *v != manifest.version));
        more.extend(item.platform.clone());
        more.extend(item.license.clone());
        more.extend(item.source.clone().filter(|s| !s.contains("@sha256:")));
        let _ = write!(
            text,
            "\n  {:<11} {:<32} {:>9}  {}  {}",
            item.kind,
            item.name,
            size(bytes),
            &item.digest.hex()[..12],
            more.join(", ")
        );
    }
    text
}

/// The keys that a bundle introduces and revokes, one per line.
pub fn keys_text(manifest: &Manifest) -> String {
    let change = manifest.keys.clone().unwrap_or_default();
    let mut text = String::new();
    for (what, keys) in [("introduces", &change.introduces), ("revokes", &change.revokes)] {
        for key in keys {
            let _ = write!(text, "\n  {what:<10} key {} ({})", key.id(), key.to_base64());
        }
    }
    text
}

/// `bundle diff`.
pub fn diff(args: &Diff) -> Result<Success, Failure> {
    let read_contents = |path: &camino::Utf8Path| -> Result<Contents, Failure> {
        let bundle = open(path)?;
        Contents::of(bundle.manifest()).ok_or_else(|| {
            Failure::usage("other_kind", anyhow::anyhow!("{path} is an update: it contains only what changed"))
                .hint("compare full bundles; `bundle inspect` shows what an update contains")
        })
    };
    let (left, right) = (read_contents(&args.left)?, read_contents(&args.right)?);
    let changes = textnlp_bundle::diff(&left, &right);
    let document =
        json!({ "left": left.digest(), "right": right.digest(), "same": changes.is_empty(), "diff": changes });
    if changes.is_empty() {
        return Ok(Success::new(
            format!("{} and {} have the same content ({})", args.left, args.right, left.digest()),
            document,
        ));
    }
    let sign = |change: Change| match change {
        Change::Added => "+",
        Change::Removed => "-",
        Change::Changed => "~",
    };
    let mut text = format!(
        "{} → {}: {} new in {} files, {} before, {} after",
        args.left,
        args.right,
        size(changes.bytes_new),
        changes.files.len(),
        size(changes.bytes_before),
        size(changes.bytes_after)
    );
    for item in &changes.items {
        let _ = write!(text, "\n  {} {}", sign(item.change), item.item);
        match (&item.version_before, &item.version_after) {
            (Some(before), Some(after)) if before != after => {
                let _ = write!(text, "  {before} → {after}");
            }
            _ => {}
        }
    }
    text.push('\n');
    for file in &changes.files {
        let _ = write!(
            text,
            "\n  {} {:<64} {:>9} new of {}",
            sign(file.change),
            file.path,
            size(file.bytes_new),
            size(file.bytes_after)
        );
    }
    Ok(Success::new(text, document))
}
