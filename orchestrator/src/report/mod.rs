//! The report of a run: one JSON document and one HTML page, from the same data.
//!
//! The page is self-contained: no script, font or image from elsewhere, so it opens without a network.

pub mod billed;
pub mod monthly;
pub mod results;
pub mod table;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_bundle::report::{Chart, Line, LineColour, Plot};
use textnlp_files::Replace;

use crate::gate::{self, Evidence};
use crate::load::{KindResult, Limit, Measured, RateResult, RateSecond, SessionResult};
use table::{Table, TableReport, names};

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
    /// The load at a fixed rate, if it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateResult>,
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
        let (rate, kinds) = (self.rate.as_ref(), kinds_of(self.kinds()));
        let context = json!({
            "title": self.title,
            "at": self.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            "address": self.address,
            "facts": self.facts,
            "gate": self.gate.as_ref().map(gate_of),
            "limit": self.limit.as_ref().map(limit_of),
            "numbers": measured.map(numbers_of).or(rate.map(rate_numbers_of)),
            "held": self.held.as_ref().map(held_of),
            "kinds": { "title": kinds.title, "columns": kinds.columns, "rows": kinds.rows },
            "errors": Some(self.errors()).filter(|errors| !errors.is_empty()),
            "charts": self.charts().iter().map(Chart::to_page).collect::<Vec<_>>(),
            "sample": self.gate.as_ref().and_then(|g| g.sample.as_deref()),
            "notes": self.notes(),
        });
        page(include_str!("report.html"), context)
    }

    /// Its numbers, plots and tables.
    pub fn to_tables(&self) -> TableReport {
        let tiles = self.measured().map(numbers_of).or(self.rate.as_ref().map(rate_numbers_of));
        let mut facts = vec![("address".to_owned(), self.address.clone())];
        facts.extend(self.facts.iter().cloned());
        let mut tables = vec![kinds_of(self.kinds())];
        if let Some(limit) = &self.limit {
            let rows = limit.probes.iter().map(|p| {
                let Measured { generate, tokens_per_second, .. } = &p.measured;
                vec![
                    p.users.to_string(),
                    if p.ok { "yes" } else { "no" }.to_owned(),
                    ms(generate.p95_ms),
                    percent(p.measured.error_rate()),
                    format!("{tokens_per_second:.0}"),
                ]
            });
            let columns = names(&["users", "sustained", "p95", "errors", "tokens/s"]);
            tables.push(Table { title: "Search for the limit", columns, rows: rows.collect() });
        }
        let errors = self.errors().iter().map(|(kind, count)| vec![kind.clone(), count.to_string()]).collect();
        tables.push(Table { title: "Errors", columns: names(&["error", "requests"]), rows: errors });
        TableReport {
            title: self.title.clone(),
            at: self.at,
            facts,
            tiles: tiles.or(self.held.as_ref().map(held_of)).unwrap_or_default(),
            tables,
            notes: self.notes().into_iter().map(str::to_owned).collect(),
            document: self.to_json(),
            charts: self.charts(),
        }
    }

    fn charts(&self) -> Vec<Chart> {
        let measured = self.measured().map(|measured| charts_of(measured, self.limit_ms()));
        measured.or(self.rate.as_ref().map(rate_charts_of)).unwrap_or_default()
    }

    fn kinds(&self) -> &[KindResult] {
        let of_a_rate = self.rate.as_ref().map(|rate| &rate.kinds);
        of_a_rate.or(self.measured().map(|measured| &measured.kinds)).map(Vec::as_slice).unwrap_or_default()
    }

    fn errors(&self) -> BTreeMap<String, u64> {
        let errors = self.measured().map(|measured| &measured.errors_by_kind);
        let errors = errors.or(self.held.as_ref().map(|held| &held.errors_by_kind));
        errors.or(self.rate.as_ref().map(|rate| &rate.errors_by_kind)).cloned().unwrap_or_default()
    }

    /// How the numbers were measured.
    fn notes(&self) -> Vec<&'static str> {
        let of_a_rate: &[&str] = &[
            "Requests were sent at a fixed rate, whether or not earlier ones were answered. Latency begins when a request was due, not when it was sent.",
            "Latencies are those of successful requests and of timeouts. Percentiles are at most 0.4 % above the measured values.",
        ];
        let of_users: &[&str] = &[
            "Percentiles, the longest answer, and requests and tokens per second are of the time after the ramp-up. The counts, the charts and the histogram include it.",
        ];
        let of_users = self.measured().map(|_| of_users.to_vec());
        of_users.or(self.rate.as_ref().map(|_| of_a_rate.to_vec())).unwrap_or_default()
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

fn ms(ms: f64) -> String {
    format!("{ms:.0} ms")
}

fn tiles<const N: usize>(tiles: [(&str, String); N]) -> Vec<(String, String)> {
    tiles.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The summary tiles above the charts.
fn numbers_of(m: &Measured) -> Vec<(String, String)> {
    tiles([
        ("p50", ms(m.generate.p50_ms)),
        ("p95", ms(m.generate.p95_ms)),
        ("p99", ms(m.generate.p99_ms)),
        ("longest", ms(m.generate.max_ms)),
        ("tokens per second", format!("{:.0}", m.tokens_per_second)),
        ("requests per second", format!("{:.1}", m.rps)),
        ("requests, with ramp-up", m.requests.to_string()),
        ("errors, with ramp-up", percent(m.error_rate())),
        ("users", m.load.users.to_string()),
        ("seconds, with ramp-up", format!("{:.0}", m.seconds)),
    ])
}

fn rate_numbers_of(r: &RateResult) -> Vec<(String, String)> {
    tiles([
        ("p50", ms(r.latency.p50_ms)),
        ("p90", ms(r.latency.p90_ms)),
        ("p95", ms(r.latency.p95_ms)),
        ("p99", ms(r.latency.p99_ms)),
        ("p99.9", ms(r.latency.p99_9_ms)),
        ("longest", ms(r.latency.max_ms)),
        ("requests per second, wanted", format!("{:.1}", r.rate.per_second)),
        ("requests per second, sent", format!("{:.1}", r.sent_per_second)),
        ("requests per second, answered", format!("{:.1}", r.answered_per_second)),
        ("tokens per second", format!("{:.0}", r.tokens_per_second)),
        ("requests", r.requests.to_string()),
        ("errors", percent(r.error_rate())),
        ("dropped", r.dropped.to_string()),
        ("in flight, at most", r.in_flight_max.to_string()),
        ("sent late, p99", ms(r.send_lag.p99_ms)),
        ("seconds", format!("{:.0}", r.seconds)),
    ])
}

fn kinds_of(kinds: &[KindResult]) -> Table {
    let row = |kind: &KindResult| -> Vec<String> {
        let latency = [kind.latency.p50_ms, kind.latency.p95_ms, kind.latency.p99_ms, kind.latency.max_ms];
        let counts = [kind.kind.clone(), kind.requests.to_string(), kind.errors.to_string()];
        counts.into_iter().chain(latency.map(ms)).collect()
    };
    let columns = names(&["request", "count", "failed", "p50", "p95", "p99", "longest"]);
    Table { title: "Kinds of requests", columns, rows: kinds.iter().map(row).collect() }
}

fn held_of(held: &SessionResult) -> Vec<(String, String)> {
    let mut numbers = vec![(format!("open at the end, of {}", held.sessions.count), held.open.to_string())];
    numbers.extend(tiles([
        ("dropped", held.dropped.to_string()),
        ("not opened", held.refused.values().sum::<u64>().to_string()),
        ("opened in, p95", ms(held.opening.p95_ms)),
        ("answer, p50", ms(held.answers.p50_ms)),
        ("answer, p95", ms(held.answers.p95_ms)),
        ("answer, p99", ms(held.answers.p99_ms)),
        ("questions", held.requests.to_string()),
        ("errors", percent(held.error_rate())),
        ("seconds", format!("{:.0}", held.seconds)),
    ]));
    numbers
}

fn rate_charts_of(r: &RateResult) -> Vec<Chart> {
    let line = |name, colour, value: &dyn Fn(&RateSecond) -> f64| Line {
        name,
        colour,
        points: r.series.iter().map(|second| (f64::from(second.second), value(second))).collect(),
    };
    // A second without finished requests has no latency, rather than 0.
    let latency = |name, colour, value: &dyn Fn(&RateSecond) -> f64| {
        let Line { points, .. } = line(name, colour, value);
        Line { name, colour, points: points.into_iter().filter(|(_, y)| *y > 0.0).collect() }
    };
    let requests = vec![
        line("due", LineColour::Brown, &|second| f64::from(second.due)),
        line("answered", LineColour::Blue, &|second| f64::from(second.requests - second.errors)),
        line("dropped or failed", LineColour::Red, &|second| f64::from(second.dropped + second.errors)),
    ];
    let latencies = vec![
        latency("p99", LineColour::Red, &|second| second.p99_ms),
        latency("p95", LineColour::Blue, &|second| second.p95_ms),
        latency("p50", LineColour::Brown, &|second| second.p50_ms),
    ];
    let flying = vec![line("in flight", LineColour::Blue, &|second| f64::from(second.in_flight))];
    let percentiles = vec![Line { name: "latency", colour: LineColour::Blue, points: by_percentile(&r.histogram) }];
    let plots = [
        ("Latency of the requests that ended, ms", "s", latencies),
        ("Requests per second", "s", requests),
        ("Requests in flight", "s", flying),
        ("Latency by percentile, ms: 1 nine is p90, 2 are p99, 3 are p99.9", "nines", percentiles),
    ];
    let chart = |(title, x_unit, lines)| Chart { title, plot: Plot::Lines { x_unit, lines, limit: None } };
    plots.into_iter().map(chart).collect()
}

/// The nines of the share of requests up to each latency. The last request is shown as if a slower one followed.
fn by_percentile(histogram: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let count: u64 = histogram.iter().map(|(_, count)| count).sum();
    let mut slower = count;
    let mut points = Vec::new();
    for (latency, ended) in histogram {
        slower -= ended;
        points.push(((count as f64 / slower.max(1) as f64).log10(), *latency));
    }
    points
}

fn charts_of(m: &Measured, limit_ms: Option<f64>) -> Vec<Chart> {
    let line = |name, colour, value: &dyn Fn(&crate::load::Second) -> f64| Line {
        name,
        colour,
        points: m.series.iter().map(|second| (f64::from(second.second), value(second))).collect(),
    };
    // A second without finished requests has no latency, rather than 0.
    let latency = |name, colour, value: &dyn Fn(&crate::load::Second) -> f64| {
        let Line { points, .. } = line(name, colour, value);
        Line { name, colour, points: points.into_iter().filter(|(_, y)| *y > 0.0).collect() }
    };
    let latencies =
        vec![latency("p95", LineColour::Blue, &|s| s.p95_ms), latency("p50", LineColour::Brown, &|s| s.p50_ms)];
    let tokens = vec![line("tokens", LineColour::Blue, &|s| s.tokens as f64)];
    let users = vec![
        line("users", LineColour::Brown, &|s| f64::from(s.users)),
        line("requests/s", LineColour::Blue, &|s| f64::from(s.requests)),
        line("errors/s", LineColour::Red, &|s| f64::from(s.errors)),
    ];
    let limit = limit_ms.map(|ms| (ms, "limit of p95".to_owned()));
    let over_time = |title, lines, limit| Chart { title, plot: Plot::Lines { x_unit: "s", lines, limit } };
    let mut charts = vec![
        over_time("Latency of whole answers, ms", latencies, limit),
        over_time("Tokens per second", tokens, None),
        over_time("Users and requests", users, None),
    ];
    if m.generate.count > 0 {
        charts.push(Chart { title: "Distribution of latency", plot: Plot::Bars(m.histogram.clone()) });
    }
    charts
}
