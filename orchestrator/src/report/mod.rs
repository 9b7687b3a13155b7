//! The report of a run: one JSON document and one HTML page, from the same data.
//!
//! The page is self-contained: no script, font or image from elsewhere, so it opens without a network.

mod chart;
pub mod monthly;
pub mod table;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_files::Replace;

use crate::gate::{self, Evidence};
use crate::load::{Limit, Measured, SessionResult};
use chart::{Chart, Line};

/// The content of a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The title: `Gate of staging`, `Load on https://…`.
    pub title: String,
    /// When the run began.
    pub at: Timestamp,
    /// The tested address.
    pub address: String,
    /// Facts for the header of the page: environment, lineage, release, machine.
    pub facts: Vec<(String, String)>,
    /// The gate, if it was a gate run.
    pub gate: Option<Evidence>,
    /// The load test, if it was not part of a gate.
    pub load: Option<Measured>,
    /// The search for the limit, if it ran.
    pub limit: Option<Limit>,
    /// The session test, if it ran.
    pub held: Option<SessionResult>,
}

/// The paths of a written report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The HTML page.
    pub html: Utf8PathBuf,
    /// The JSON document.
    pub json: Utf8PathBuf,
}

impl Report {
    fn measured(&self) -> Option<&Measured> {
        self.load
            .as_ref()
            .or_else(|| self.gate.as_ref()?.load.as_ref())
            .or_else(|| Some(&self.limit.as_ref()?.probes.last()?.measured))
    }

    /// The p95 limit of the gate, if there was one.
    fn limit_ms(&self) -> Option<f64> {
        self.gate.as_ref()?.checks.iter().find(|c| c.name == gate::P95)?.limit.as_f64()
    }

    /// The JSON document.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("reports are plain data with text keys");
        value["format"] = json!("textnlp-report/1");
        value
    }

    /// The HTML page.
    pub fn to_html(&self) -> String {
        let measured = self.measured();
        let context = json!({
            "title": self.title,
            "at": self.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            "address": self.address,
            "facts": self.facts,
            "gate": self.gate.as_ref().map(gate_of),
            "limit": self.limit.as_ref().map(limit_of),
            "numbers": measured.map(numbers_of),
            "held": self.held.as_ref().map(held_of),
            "errors": measured.map(|m| &m.errors_by_kind).or(self.held.as_ref().map(|h| &h.errors_by_kind)).filter(|e| !e.is_empty()),
            "charts": measured.map(|m| charts_of(m, self.limit_ms())).unwrap_or_default(),
            "sample": self.gate.as_ref().and_then(|g| g.sample.as_deref()),
        });
        page(include_str!("report.html"), context)
    }

    /// Writes `FOLDER/NAME-TIME.html` and `.json`, each durably.
    pub fn write(&self, folder: &Utf8Path, name: &str) -> std::io::Result<Written> {
        std::fs::create_dir_all(folder)?;
        let stem = format!("{name}-{}", self.at.strftime("%Y%m%dT%H%M%SZ"));
        let (html, json) = (folder.join(format!("{stem}.html")), folder.join(format!("{stem}.json")));
        let document = serde_json::to_string_pretty(&self.to_json()).expect("plain JSON");
        Replace::umask().write(&json, document.as_bytes())?;
        Replace::umask().write(&html, self.to_html().as_bytes())?;
        Ok(Written { html, json })
    }
}

/// Renders a template in the common page layout.
pub(crate) fn page(template: &str, context: Value) -> String {
    let mut templates = minijinja::Environment::new();
    templates.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    let page = templates
        .add_template("page.css", include_str!("page.css"))
        .and_then(|()| templates.template_from_str(template))
        .and_then(|page| page.render(minijinja::value::Serde(context)));
    page.expect("the built-in template parses and renders any report")
}

fn gate_of(evidence: &Evidence) -> Value {
    let checks: Vec<Value> = evidence
        .checks
        .iter()
        .map(|c| json!({"name": c.name, "measured": c.measured_text(), "limit": c.demand_with_unit(), "ok": c.ok, "warning": c.warning, "waived": c.waived_until, "note": c.note}))
        .collect();
    let changed: Vec<String> = evidence.changed_limits.iter().map(ToString::to_string).collect();
    let exemptions: Vec<String> = evidence.exemptions.iter().map(|recorded| recorded.text(evidence.at)).collect();
    json!({
        "state": evidence.gate.state(), "phase": evidence.phase, "seconds": format!("{:.1}", evidence.seconds),
        "checks": checks, "exemptions": exemptions, "changed_limits": changed,
    })
}

fn limit_of(limit: &Limit) -> Value {
    let probes: Vec<Value> = limit
        .probes
        .iter()
        .map(|p| {
            json!({
                "users": p.users, "ok": p.ok, "p95": format!("{:.0}", p.measured.generate.p95_ms),
                "errors": percent(p.measured.error_rate()), "tokens": format!("{:.0}", p.measured.tokens_per_second),
            })
        })
        .collect();
    json!({"users": limit.users, "at_least": limit.at_least, "probes": probes})
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// The summary tiles above the charts.
fn numbers_of(m: &Measured) -> Value {
    let ms = |ms: f64| format!("{ms:.0} ms");
    json!([
        ["p50", ms(m.generate.p50_ms)],
        ["p95", ms(m.generate.p95_ms)],
        ["p99", ms(m.generate.p99_ms)],
        ["longest", ms(m.generate.max_ms)],
        ["tokens per second", format!("{:.0}", m.tokens_per_second)],
        ["requests per second", format!("{:.1}", m.rps)],
        ["requests", m.requests.to_string()],
        ["errors", percent(m.error_rate())],
        ["users", m.load.users.to_string()],
        ["seconds", format!("{:.0}", m.seconds)],
    ])
}

fn held_of(held: &SessionResult) -> Value {
    let ms = |ms: f64| format!("{ms:.0} ms");
    json!([
        [format!("open at the end, of {}", held.sessions.count), held.open.to_string()],
        ["dropped", held.dropped.to_string()],
        ["refused", held.refused.values().sum::<u64>().to_string()],
        ["opened in, p95", ms(held.opening.p95_ms)],
        ["answer, p50", ms(held.answers.p50_ms)],
        ["answer, p95", ms(held.answers.p95_ms)],
        ["answer, p99", ms(held.answers.p99_ms)],
        ["questions", held.requests.to_string()],
        ["errors", percent(held.error_rate())],
        ["seconds", format!("{:.0}", held.seconds)],
    ])
}

fn charts_of(m: &Measured, limit_ms: Option<f64>) -> Vec<Value> {
    let over = |value: &dyn Fn(&crate::load::Second) -> f64| -> Vec<(f64, f64)> {
        m.series.iter().map(|s| (f64::from(s.second), value(s))).collect()
    };
    // A second without finished requests has no latency, rather than 0.
    let there = |points: Vec<(f64, f64)>| points.into_iter().filter(|(_, y)| *y > 0.0).collect::<Vec<_>>();
    let latency = Chart {
        x_unit: "s",
        lines: vec![
            Line { name: "p95", class: "a", points: there(over(&|s| s.p95_ms)) },
            Line { name: "p50", class: "b", points: there(over(&|s| s.p50_ms)) },
        ],
        limit: limit_ms.map(|ms| (ms, "limit of p95".to_owned())),
    };
    let tokens = Chart {
        x_unit: "s",
        lines: vec![Line { name: "tokens", class: "a", points: over(&|s| s.tokens as f64) }],
        limit: None,
    };
    let users = Chart {
        x_unit: "s",
        lines: vec![
            Line { name: "users", class: "b", points: over(&|s| f64::from(s.users)) },
            Line { name: "requests/s", class: "a", points: over(&|s| f64::from(s.requests)) },
            Line { name: "errors/s", class: "c", points: over(&|s| f64::from(s.errors)) },
        ],
        limit: None,
    };
    let mut charts = vec![
        json!({"title": "Latency of whole answers, ms", "svg": latency.to_svg(), "legend": latency.legend()}),
        json!({"title": "Tokens per second", "svg": tokens.to_svg(), "legend": tokens.legend()}),
        json!({"title": "Users and requests", "svg": users.to_svg(), "legend": users.legend()}),
    ];
    if m.generate.count > 0 {
        charts.push(json!({"title": "Distribution of latency", "svg": chart::bars(&m.histogram), "legend": []}));
    }
    charts
}
