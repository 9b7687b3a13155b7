//! `release`: what runs, by digest, and how a newer server is let in.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::release::{Lock, Release as Resolved};

use crate::args::Release;
use crate::deployment::{artifacts, broken_lock, short};
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `release show|set`.
pub fn release(session: &Session, command: &Release, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let environment = &chosen.loaded.environment;
    let path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
    let locked = Lock::read(&path).map_err(|e| broken_lock(e, session, &chosen.name))?;
    let mut here = Resolved::resolve(environment, &artifacts(session, environment, console)?).lock;
    if let Some(locked) = &locked {
        // Of a model that is not part of this program, what was delivered stays; a new digest comes with a new source.
        for model in environment.models.iter().filter(|m| locked.holds(&m.name, m.source())) {
            if let (false, Some(digest)) = (here.models.contains_key(&model.name), locked.models.get(&model.name)) {
                here.models.insert(model.name.clone(), digest.clone());
            }
        }
    }
    let differences = locked.as_ref().map(|l| l.differences(&here)).unwrap_or_default();
    if matches!(command, Release::Set) {
        here.write(&path)?;
        let mut text = format!("wrote {path}");
        for difference in &differences {
            let _ = write!(text, "\n  {difference}");
        }
        let _ = write!(text, "\nTo roll to it: {}", session.again().command("up", &chosen.name));
        return Ok(Success::new(text, json!({ "lock": path, "release": here, "changed": differences })));
    }
    let Some(locked) = locked else {
        let text = format!("{path} is not there: the first `up` writes it\nhere: server {}", short(&here.server));
        return Ok(Success::new(text, json!({ "lock": path, "release": null, "here": here, "differences": [] })));
    };
    let mut text = format!("{path}\n  server         {}\n", short(&locked.server));
    for (name, digest) in &locked.models {
        let _ = writeln!(text, "  model {name:<8} {}", short(digest));
    }
    let _ = writeln!(text, "  configuration  {}", short(&locked.configuration));
    if differences.is_empty() {
        let _ = write!(text, "The same is here.");
    } else {
        for difference in &differences {
            let _ = writeln!(text, "  differs: {difference}");
        }
        let _ = write!(text, "To release what is here: {}", session.again().command("release set", &chosen.name));
    }
    Ok(Success::new(text, json!({ "lock": path, "release": locked, "here": here, "differences": differences })))
}
