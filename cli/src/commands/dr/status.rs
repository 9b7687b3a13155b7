//! `dr status`, `dr watch`: the status of every site and the witness. Unreachable ones do not fail the command.

use std::fmt::Write as _;
use std::io::IsTerminal;

use serde_json::{Value, json};
use textnlp_orchestrator::dr::control_status::{ControlStatus, SiteLine};
use textnlp_orchestrator::dr::failover;

use super::{Sites, clone};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::signals;

/// `dr status`: exits with 1 if something is unhealthy.
pub async fn status(session: &Session, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let look = read_status(&sites, console).await;
    let success = Success::new(look.text, look.document);
    Ok(if look.well { success } else { success.exit(Exit::Failed) })
}

/// `dr watch`.
pub async fn watch(session: &Session, console: Console) -> Result<Success, Failure> {
    let sites = Sites::of(session)?;
    let stop = signals::stop(console);
    let on_terminal = console.is_text() && std::io::stdout().is_terminal();
    let mut shown = String::new();
    let mut last;
    loop {
        let now = read_status(&sites, console).await;
        console.event(&json!({ "event": "dr", "status": now.document }));
        if on_terminal {
            // Starts at the top of a cleared screen.
            console.stream(&format!("\u{1b}[H\u{1b}[2J{}\n", now.text));
        } else if now.steady != shown {
            // A log gets a line only after a change.
            console.stream(&format!("{}\n", now.text));
            shown.clone_from(&now.steady);
        }
        last = now.document;
        tokio::select! {
            () = tokio::time::sleep(sites.environment().dr.watch_every.0) => {}
            () = stop.cancelled() => break,
        }
    }
    Ok(Success::new("", last))
}

struct StatusView {
    text: String,
    /// The part of the status without values that change permanently.
    steady: String,
    document: Value,
    well: bool,
}

async fn read_status(sites: &Sites, console: Console) -> StatusView {
    let control_status = ControlStatus::take(&sites.control_clients).await;
    let lines = control_status.lines(sites.max_lag_ms);
    let mut warnings = control_status.warnings(sites.max_lag_ms);
    let name = &sites.chosen.name;
    let everybody_is_gone =
        control_status.witness.is_err() && control_status.sites.iter().all(|(_, status)| status.is_err());
    if everybody_is_gone {
        warnings.insert(0, format!("no site of {name} answers: check that it runs: {}", sites.command("up")));
    }
    let open = failover::left_open(&sites.chosen.folder).unwrap_or_default();
    for left in &open {
        let word = |field: &str| left[field].as_str().unwrap_or_default().to_owned();
        let next = if word("action") == "drill" { "dr drill" } else { "dr failover" };
        warnings.push(format!(
            "{} {} of {} was not finished; the next `{next}` finishes it",
            word("action"),
            word("id"),
            word("at")
        ));
    }
    let states = sites.chosen.folder.parent();
    let clones: Vec<_> = states.map(clone::left).unwrap_or_default();
    // Other environments may have states beside this one. Only the clones of this environment are reported.
    let clones: Vec<_> = clones.into_iter().filter(|root| root.join(name.as_str()).exists()).collect();
    for root in &clones {
        warnings.push(format!(
            "a killed drill left its clone in {root}; its processes exit on their own, and the next {} removes the clone",
            sites.command("dr drill")
        ));
    }
    let (primary, epoch) = (control_status.primary(), control_status.epoch());
    let home = &sites.control_clients.home;
    let shown = primary.as_deref().unwrap_or("none");
    let away = if primary.as_deref().is_some_and(|primary| primary != home) {
        format!(" (home is {home})")
    } else {
        String::new()
    };
    let mut text = format!("{name}: epoch {epoch}, primary {shown}{away}\n");
    let _ = writeln!(
        text,
        "  {:<14} {:<12} {:>6} {:<8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "SITE", "ROLE", "EPOCH", "IN SYNC", "BEHIND", "LAG", "RPO", "MODELS", "CONFIG", "WEIGHT"
    );
    for line in &lines {
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
    for warning in &warnings {
        let _ = writeln!(text, "  {} {warning}", console.paint("33", "!"));
    }
    let steady = format!(
        "{epoch} {shown} {:?} {}",
        lines.iter().map(|l| (l.role, l.in_sync, l.weight)).collect::<Vec<_>>(),
        warnings.len()
    );
    let witness = match &control_status.witness {
        Ok(witness) => {
            json!({ "reachable": true, "epoch": witness.epoch, "renewed_ms": witness.renewed_ms, "grace_ms": witness.grace_ms, "dns": witness.dns, "history": witness.history })
        }
        Err(error) => json!({ "reachable": false, "why": error.to_string() }),
    };
    let well = warnings.is_empty();
    let document = json!({
        "environment": name, "ready": well, "epoch": epoch, "primary": primary, "home": home, "members": control_status.members(),
        "max_lag_ms": sites.max_lag_ms, "sites": lines, "witness": witness, "warnings": warnings, "unfinished": open, "clones_left": clones,
    });
    StatusView { text, steady, document, well }
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
