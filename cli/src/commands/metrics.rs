//! `metrics summary`: what the service did in a period. `metrics dashboard`: a Grafana dashboard of machines.

use std::fmt::Write as _;

use jiff::Timestamp;
use textnlp_files::Replace;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::metrics::{Quantiles, Summary};
use textnlp_provider::dashboard;
use textnlp_service::metrics::{self, SiteSummary, Source};
use textnlp_service::output;

use super::prelude::*;
use crate::operations_args::{Metrics, MetricsDashboard, MetricsSummary};
use crate::signals;

/// `metrics`.
pub async fn metrics(session: &Session, command: &Metrics, console: Console) -> Result<Success, Failure> {
    match command {
        Metrics::Summary(args) => summary(session, args, console).await,
        Metrics::Dashboard(args) => write_dashboard(session, args, console),
    }
}

fn write_dashboard(session: &Session, args: &MetricsDashboard, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let made = metrics::dashboard(&chosen)?;
    let text = dashboard::text(&made);
    let name = &chosen.scope.name;
    let Some(out) = &args.out else {
        return Ok(Success::new(text, json!({ "environment": name, "dashboard": made })));
    };
    let file = session.here.join(out);
    output::write(&file, Replace::private(), text.as_bytes())?;
    Ok(Success::new(format!("wrote {file}"), json!({ "environment": name, "file": file })))
}

async fn summary(session: &Session, args: &MetricsSummary, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("metrics of its own", console).await?;
    let stop = signals::stop(console);
    let progress = Progress::new(console);
    let wanted = (session.global.site.as_deref(), args.period.map(|period| period.0));
    let sites = metrics::summarize((&chosen, &running), wanted, &SystemClock, &progress, &stop).await?;
    progress.finish();
    let text: Vec<String> = sites.iter().map(text).collect();
    let is_whole = sites.iter().all(|site| site.summary.is_some());
    let success = Success::new(text.join("\n"), json!({ "environment": chosen.scope.name, "sites": sites }));
    Ok(if is_whole { success } else { success.exit(Exit::Failed) })
}

fn text(site: &SiteSummary) -> String {
    let at = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let source = match site.source {
        Source::Prometheus => "Prometheus",
        Source::TwoScrapes => "two scrapes",
        Source::UsageRecords => "usage records",
    };
    let mut text = format!("{}: {source}, {} to {} UTC\n", site.site, at(site.from), at(site.until));
    if let Some(summary) = &site.summary {
        let seconds = site.until.duration_since(site.from).as_secs_f64().max(1.0);
        text.push_str(&lines(summary, seconds));
    }
    for note in &site.notes {
        let _ = writeln!(text, "  note         {note}");
    }
    text
}

fn lines(summary: &Summary, seconds: f64) -> String {
    let Summary { requests, errors, error_rate, generated_tokens, prompt_tokens, .. } = summary;
    let share = error_rate.map_or(String::new(), |rate| format!("   {:.2} %", rate * 100.0));
    let number = |value: Option<u64>| value.map_or("unknown".to_owned(), |value| value.to_string());
    let memory = summary.memory_bytes_max.map_or("unknown".to_owned(), size);
    let rows = [
        ("requests", format!("{requests}   {:.2}/s", *requests as f64 / seconds)),
        ("errors", format!("{errors}{share}")),
        ("latency", quantiles(&summary.latency)),
        ("first token", quantiles(&summary.first_token)),
        (
            "tokens",
            format!(
                "{generated_tokens} generated   {:.1}/s   {prompt_tokens} of prompts",
                *generated_tokens as f64 / seconds
            ),
        ),
        ("queue", format!("at most {} waiting, {} running", number(summary.queue_max), number(summary.running_max))),
        ("memory", format!("at most {memory}")),
    ];
    rows.iter().map(|(name, value)| format!("  {name:<12} {value}\n")).collect()
}

fn quantiles(of: &Quantiles) -> String {
    let ms = |name: &str, value: Option<f64>| value.map(|ms| format!("{name} {ms:.0} ms"));
    let parts = [ms("p50", of.p50_ms), ms("p95", of.p95_ms), ms("p99", of.p99_ms)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "none measured".to_owned() } else { parts.join("   ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_shows_rates_and_says_what_was_not_measured() {
        let latency = Quantiles { p50_ms: Some(120.4), p95_ms: Some(480.0), p99_ms: None };
        let summary = Summary {
            requests: 90,
            errors: 9,
            error_rate: Some(0.1),
            latency,
            generated_tokens: 600,
            queue_max: Some(3),
            memory_bytes_max: Some(1_500_000_000),
            ..Summary::default()
        };
        let shown = lines(&summary, 30.0);
        for line in [
            "requests     90   3.00/s",
            "errors       9   10.00 %",
            "latency      p50 120 ms   p95 480 ms\n",
            "first token  none measured",
            "tokens       600 generated   20.0/s   0 of prompts",
            "queue        at most 3 waiting, unknown running",
            "memory       at most 1.50 GB",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
    }
}
