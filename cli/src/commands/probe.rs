//! `probe`: probes the running service from outside, and records its availability.

use textnlp_orchestrator::availability::{WindowSummary, percent};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::load::Key;
use textnlp_provider::Secret;
use textnlp_service::availability::{Probed, Prober};

use super::prelude::*;
use crate::operations_args::Probe;
use crate::signals;

/// `probe [--every DURATION] [--for DURATION]`.
pub async fn probe(session: &Session, args: &Probe, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("requests of a prober", console).await?;
    let header = &chosen.loaded.environment.server.security.api_key_header;
    let given = args.api_key.as_ref().map(|key| Key { header: header.clone(), value: Secret::new(key.as_bytes()) });
    let (stop, progress) = (signals::stop(console), Progress::new(console));
    let prober = Prober::of(&chosen, &running, given).await?;
    let folder = prober.folder();
    let time = (args.every.0, args.length.map(|length| length.0));
    let probed = prober.run(time, &SystemClock, &progress, &stop).await?;
    progress.finish();
    let document = json!({
        "environment": chosen.scope.name, "address": running.address, "record": folder,
        "every_seconds": args.every.0.as_secs_f64(), "summary": probed.summary,
        "longest_outage_seconds": probed.longest_outage_s,
    });
    let text = format!("{}\n  record       {folder}", text(&probed));
    match probed.is_stopped {
        false => Ok(Success::new(text, document)),
        true => {
            let error = anyhow::anyhow!("stopped early; measured so far:\n{text}");
            let hint = format!("continue the record: {}", chosen.scope.command("probe"));
            Err(Failure::new(Exit::Stopped, "stopped", error).hint(hint).document(document))
        }
    }
}

fn text(probed: &Probed) -> String {
    let Some(WindowSummary { from, until, probes, unavailable, refused, covered, available }) = &probed.summary else {
        return "no probe ended".to_owned();
    };
    let available = available.map_or("not measured".to_owned(), percent);
    let longest = probed.longest_outage_s;
    format!(
        "{from:.0} to {until:.0}, {} covered\n  probes       {probes}, {unavailable} failed, {refused} refused\n  \
         available    {available}, longest outage {longest:.0} s",
        percent(*covered)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_says_what_was_measured() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let summary = WindowSummary {
            from: at(0),
            until: at(3600),
            probes: 360,
            unavailable: 3,
            refused: 1,
            covered: 0.997_22,
            available: Some(0.991_66),
        };
        let probed = Probed { summary: Some(summary), longest_outage_s: 30.0, is_stopped: false };
        let expect = "1970-01-01T00:00:00Z to 1970-01-01T01:00:00Z, 99.72 % covered\n  probes       360, 3 failed, 1 refused\n  \
                      available    99.16 %, longest outage 30 s";
        assert_eq!(text(&probed), expect);
    }
}
