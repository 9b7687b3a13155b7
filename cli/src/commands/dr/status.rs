//! `dr status`, `dr watch`: the status of every site and the witness. Unreachable ones do not fail the command.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use textnlp_orchestrator::dr::control_status::{ControlStatus, SiteLine};
use textnlp_service::dr::Sites;
use textnlp_service::dr::status::{self, SitesStatus};
use textnlp_service::running;

use super::sites;
use crate::commands::prelude::*;
use crate::signals;

/// The most that the state is waited for where nothing answers: a bucket may be lost with the region of its sites.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// `dr status`: exits with 1 if something is unhealthy.
pub async fn status(session: &Session, console: Console) -> Result<Success, Failure> {
    let sites = sites(session)?;
    let now = take(&sites).await?;
    let (text, document) = view(&sites, &now, console);
    let success = Success::new(text, document);
    Ok(if now.warnings.is_empty() { success } else { success.exit(Exit::Failed) })
}

/// The status of the sites. Those of an environment that is not deployed would all be reported as lost. If its state cannot be read
/// in time, it counts as deployed.
async fn take(sites: &Sites) -> Result<SitesStatus, Failure> {
    let now = status::status(sites).await;
    let ControlStatus { witness, sites: answers } = &now.control_status;
    let scope = &sites.chosen.scope;
    // Where something answers, a state store that does not is not waited for.
    let is_silent = witness.is_err() && answers.iter().all(|(_, answer)| answer.is_err());
    let is_new = async || running::state(scope).await.is_ok_and(|state| state.is_new());
    if is_silent && tokio::time::timeout(STATE_TIMEOUT, is_new()).await.unwrap_or(false) {
        let error = anyhow::anyhow!("environment {} is not deployed from this folder", scope.name);
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    }
    Ok(now)
}

/// `dr watch`.
pub async fn watch(session: &Session, console: Console) -> Result<Success, Failure> {
    let sites = sites(session)?;
    let stop = signals::stop(console);
    let on_terminal = console.is_text() && std::io::stdout().is_terminal();
    let mut shown = String::new();
    let mut last;
    let mut now = take(&sites).await?;
    loop {
        let (text, document) = view(&sites, &now, console);
        console.event(&json!({ "event": "dr", "status": document }));
        // The part of the status without values that change permanently.
        let lines: Vec<_> = now.lines.iter().map(|l| (l.role, l.in_sync, l.weight)).collect();
        let (primary, epoch) = (now.control_status.primary(), now.control_status.epoch());
        let steady = format!("{epoch} {primary:?} {lines:?} {}", now.warnings.len());
        if on_terminal {
            console.clear();
            console.stream(&format!("{text}\n"));
        } else if steady != shown {
            // A log gets a line only after a change.
            console.stream(&format!("{text}\n"));
            shown = steady;
        }
        last = document;
        tokio::select! {
            () = tokio::time::sleep(sites.chosen.loaded.environment.dr.watch_every.0) => {}
            () = stop.cancelled() => break,
        }
        // Whether it is deployed is asked once.
        now = status::status(&sites).await;
    }
    Ok(Success::new("", last))
}

fn view(sites: &Sites, now: &SitesStatus, console: Console) -> (String, Value) {
    let SitesStatus { control_status, lines, warnings, unfinished, clones_left } = now;
    let name = &sites.chosen.scope.name;
    let (primary, epoch) = (control_status.primary(), control_status.epoch());
    let home = &sites.control_clients.home;
    let shown = primary.as_deref().unwrap_or("none");
    let away = if primary.as_deref().is_some_and(|primary| primary != home) {
        format!(" (home is {home})")
    } else {
        String::new()
    };
    let mut text = format!("{name}: epoch {epoch}, primary {shown}{away}\n");
    let held = control_status.held();
    if held {
        let failback = sites.chosen.scope.command("dr failback");
        let _ = writeln!(text, "  a planned failover holds; to end it: {failback}");
    }
    let _ = writeln!(
        text,
        "  {:<14} {:<12} {:>6} {:<8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "SITE", "ROLE", "EPOCH", "IN SYNC", "BEHIND", "LAG", "RPO", "MODELS", "CONFIG", "WEIGHT"
    );
    for line in lines {
        text.push_str(&row(line, console));
    }
    match &control_status.witness {
        Ok(witness) => {
            let _ = writeln!(
                text,
                "  witness: heard {} {} ms ago, grace {} ms",
                witness.primary, witness.renewed_ms, witness.grace_ms
            );
            if let Some(dns) = &witness.dns {
                let is = dns.last_acknowledged.as_ref().map_or_else(|| "unknown".to_owned(), |is| is.join(", "));
                let _ = writeln!(text, "  dns: {} is {is}", dns.name);
            }
        }
        Err(error) => {
            let _ = writeln!(text, "  witness: {error}");
        }
    }
    for warning in warnings {
        let _ = writeln!(text, "  {} {warning}", console.paint("33", "!"));
    }
    let witness = match &control_status.witness {
        Ok(witness) => {
            json!({ "reachable": true, "epoch": witness.epoch, "renewed_ms": witness.renewed_ms, "grace_ms": witness.grace_ms, "dns": witness.dns, "history": witness.history })
        }
        Err(error) => json!({ "reachable": false, "why": error.to_string() }),
    };
    let document = json!({
        "environment": name, "ready": warnings.is_empty(), "epoch": epoch, "primary": primary, "home": home, "held": held, "members": control_status.members(),
        "max_lag_ms": sites.max_lag_ms, "sites": lines, "witness": witness, "warnings": warnings, "unfinished": unfinished, "clones_left": clones_left,
    });
    (text, document)
}

fn row(line: &SiteLine, console: Console) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let ms = |value: Option<u64>| or_dash(value.map(|ms| format!("{ms} ms")));
    let number = |value: Option<u64>| or_dash(value.map(|n| n.to_string()));
    // Coloured after padding, because escape sequences would count as width.
    let sync = console
        .paint(if line.in_sync { "32" } else { "31" }, &format!("{:<8}", if line.in_sync { "yes" } else { "no" }));
    format!(
        "  {:<14} {:<12} {:>6} {sync} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7}\n",
        line.site,
        line.role,
        number(line.epoch),
        number(line.behind_entries),
        ms(line.lag_ms),
        ms(line.rpo_ms),
        copied(line, "models"),
        copied(line, "configuration"),
        or_dash(line.weight.map(|weight| weight.to_string())),
    )
}

/// The age of a site's copy of the data, or what it lacks.
fn copied(line: &SiteLine, data: &str) -> String {
    match line.copies.get(data) {
        Some(copy) if copy.source => "source".to_owned(),
        Some(copy) if copy.held < copy.wanted => format!("{} of {}", copy.held, copy.wanted),
        Some(copy) => copy.whole_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0)),
        None => "-".to_owned(),
    }
}
