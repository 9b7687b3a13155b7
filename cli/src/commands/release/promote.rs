//! `promote`: the release that an environment has proven becomes the next one's, digest for digest.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::release::{self, History, Lock, Recorded};
use textnlp_provider::component::Program;

use super::{locked, recorded};
use crate::again::{Again, quoted};
use crate::args::{Global, Promote};
use crate::commands::{gate, running};
use crate::deployment::{artifacts, short};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::{Chosen, Session};

/// `promote --from ENV --to ENV`.
pub async fn promote(session: &Session, args: &Promote, console: Console) -> Result<Success, Failure> {
    if args.from == args.to {
        return Err(Failure::usage("usage", anyhow::anyhow!("--from and --to name the same environment")));
    }
    let named = |name: &String| {
        let global = Global { env: Some(name.clone()), file: None, ..session.global.clone() };
        Session::new(global)
    };
    let (from, to) = (named(&args.from)?, named(&args.to)?);
    let (source, target) = (from.load(console)?, to.load(console)?);
    let (_, proven) = locked(&from, &source)?;
    let history = recorded(&source, console)?;
    let proof = Proof { session: &from, chosen: &source, history: &history };
    let (mut blockers, mut hint) = proof.blockers(proven.as_ref());
    let promoted = match &proven {
        None => None,
        Some(proven) => match release::promote(proven, &target.loaded.environment) {
            Ok(lock) => Some(lock),
            Err(models) => {
                blockers.extend(models);
                hint = hint.or_else(|| Some(from.again().bare(&format!("env diff {} {}", source.name, target.name))));
                None
            }
        },
    };
    let Some(lock) = promoted.filter(|_| blockers.is_empty()) else {
        let error = anyhow::anyhow!("{}", blockers.join("\n"))
            .context(format!("the release of {} is not proven for {}", source.name, target.name));
        let document = json!({ "from": source.name, "to": target.name, "blockers": blockers });
        let failure = Failure::new(Exit::GateShut, "gate_not_open", error).document(document);
        return Err(match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        });
    };

    let (path, before) = locked(&to, &target)?;
    let changed = before.map(|before| before.differences(&lock));
    lock.write(&path)?;
    let here = artifacts(&to, &target.loaded.environment, console)?.program;
    let serves_here = target.loaded.environment.runs_here();
    let next = if here.digest == lock.server || !serves_here {
        to.again().same("up", &target.name)
    } else {
        let file = program_of(&from, &source, &lock).await?.map_or_else(|| "FILE".to_owned(), |p| quoted(&p.path));
        let again = Again::of(&Global { server: None, ..to.global.clone() });
        format!("{} --server {file}", again.same("up", &target.name))
    };
    let mut text = format!("wrote {path}: what {} has proven", source.name);
    if serves_here {
        let _ = write!(text, "\n  server {}", short(&lock.server));
    }
    for (site, image) in &lock.images {
        let _ = write!(text, "\n  image {site} {image}");
    }
    for (name, digest) in &lock.models {
        let _ = write!(text, "\n  model {name} {}", short(digest));
    }
    let _ = write!(text, "\nTo roll to it: {next}");
    let document = json!({
        "from": source.name, "to": target.name, "lock": path, "release": lock, "changed": changed, "next": next,
    });
    Ok(Success::new(text, document))
}

async fn program_of(session: &Session, chosen: &Chosen, lock: &Lock) -> Result<Option<Program>, Failure> {
    let there = running::program(session, &chosen.name, &chosen.folder).await?;
    let kept = || History::at(&chosen.folder).program(&lock.server);
    Ok(there.filter(|program| program.digest == lock.server).or_else(kept))
}

/// What is known of a release in the environment where it runs.
struct Proof<'a> {
    session: &'a Session,
    chosen: &'a Chosen,
    history: &'a Recorded,
}

impl Proof<'_> {
    /// Everything that stands against promoting this lock, and the command that gets further.
    fn blockers(&self, lock: Option<&Lock>) -> (Vec<String>, Option<String>) {
        let (name, environment) = (&self.chosen.name, &self.chosen.loaded.environment);
        let up = Some(self.session.again().same("up", name));
        let measure = Some(self.session.again().same("gate --again", name));
        let Some(lock) = lock else { return (vec![format!("{name} has no release lock: nothing ran there")], up) };
        let newest = self.history.entries.last().map(|entry| &entry.applied);
        let Some(applied) = newest.filter(|applied| applied.lock.runs_the_same(lock)) else {
            return (
                vec![format!("the lock of {name} names a release that is not the last one that `up` applied")],
                up,
            );
        };
        let Some(kept) = gate::kept(&self.chosen.folder) else {
            return (vec![format!("the gate of {name} was not measured")], measure);
        };
        let at = kept.at().strftime("%Y-%m-%d %H:%M");
        if !kept.is_of(lock, environment) {
            let what = "of another release, configuration or gate than today's";
            return (vec![format!("the evidence of the gate of {name}, measured {at}, is {what}")], measure);
        }
        if kept.at() < applied.at {
            return (vec![format!("the gate of {name} was measured {at}, before this release was applied")], measure);
        }
        let blockers = kept.blockers();
        let hint = (!blockers.is_empty()).then_some(measure).flatten();
        (blockers, hint)
    }
}
