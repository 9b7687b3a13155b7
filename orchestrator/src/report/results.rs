//! Results of other measurements as parts of a report: load tests, and benchmarks of models and of a database.

use std::io::Read as _;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::table::{Table, TableReport, names};
use super::{ms, percent};

/// The most bytes of a result: a day of results has less.
const MAX_BYTES: u64 = 4 << 20;

/// What `load -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadDocument {
    requests: u64,
    errors: u64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    rps: f64,
    tokens_per_second: f64,
    /// The kinds of requests, with their models. A test of sessions has none.
    #[serde(default)]
    kinds: Vec<KindDocument>,
    /// The rate, where it was fixed.
    rate: Option<RateDocument>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KindDocument {
    kind: String,
    requests: u64,
    errors: u64,
    latency: KindLatency,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KindLatency {
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RateDocument {
    wanted: f64,
    sustained: bool,
}

/// What `db bench -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseDocument {
    databases: Vec<DatabaseResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DatabaseResult {
    site: Option<String>,
    #[serde(flatten)]
    outcome: DatabaseOutcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum DatabaseOutcome {
    Measured { clients: u64, transactions: u64, failed: u64, per_second: f64, latency_ms: DatabaseLatency },
    Skipped { skipped: String },
    Failed { error: String },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DatabaseLatency {
    average: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// What `model bench -o json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDocument {
    speeds: Vec<ModelSpeed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ModelSpeed {
    source: String,
    executor: String,
    load_seconds: f64,
    /// Bytes in memory.
    weights: u64,
    results: Vec<ModelResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ModelResult {
    prompt_tokens: u64,
    sequences: u64,
    prefill: f64,
    /// An encoder generates nothing.
    decode: Option<f64>,
}

/// Reads a result. The error says what is wrong with the file.
pub fn read<T: for<'a> Deserialize<'a>>(file: &Utf8Path, command: &str) -> Result<T, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| format!("{file}: {error}"))?;
    opened.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| format!("{file}: {error}"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("{file}: it has more than {} MiB, so `{command}` did not print it", MAX_BYTES >> 20));
    }
    serde_json::from_str(&text).map_err(|error| format!("{file} is not what `{command}` prints: {error}"))
}

impl TableReport {
    /// Adds load tests, by the names of their files.
    pub fn add_loads(&mut self, loads: &[(String, LoadDocument)]) {
        let number = |value: f64| format!("{value:.1}");
        let mut rows = Vec::new();
        for (name, load) in loads {
            let title = match &load.rate {
                Some(rate) => format!("{name}, {} requests per second", rate.wanted),
                None => name.clone(),
            };
            rows.push(vec![
                title,
                load.requests.to_string(),
                percent(share(load.errors, load.requests)),
                number(load.rps),
                number(load.tokens_per_second),
                ms(load.p50_ms),
                ms(load.p95_ms),
                ms(load.p99_ms),
            ]);
            rows.extend(load.kinds.iter().map(|kind| {
                vec![
                    format!("{name}: {}", kind.kind),
                    kind.requests.to_string(),
                    percent(share(kind.errors, kind.requests)),
                    String::new(),
                    String::new(),
                    ms(kind.latency.p50_ms),
                    ms(kind.latency.p95_ms),
                    ms(kind.latency.p99_ms),
                ]
            }));
            if load.rate.as_ref().is_some_and(|rate| !rate.sustained) {
                self.notes.push(format!("load test {name}: the rate was not sustained"));
            }
        }
        let columns = ["load test", "requests", "errors", "requests/s", "tokens/s", "p50", "p95", "p99"];
        self.tables.push(Table { title: "Load tests", columns: names(&columns), rows });
        let documents = loads.iter().map(|(name, load)| json!({ "name": name, "result": load }));
        self.document["load_tests"] = documents.collect();
        self.document["notes"] = json!(self.notes);
    }

    /// Adds benchmarks of models.
    pub fn add_models(&mut self, found: &[ModelDocument]) {
        let speeds: Vec<&ModelSpeed> = found.iter().flat_map(|document| &document.speeds).collect();
        let mut rows = Vec::new();
        for speed in &speeds {
            rows.extend(speed.results.iter().map(|result| {
                vec![
                    speed.source.clone(),
                    speed.executor.clone(),
                    result.sequences.to_string(),
                    result.prompt_tokens.to_string(),
                    format!("{:.1}", result.prefill),
                    result.decode.map_or_else(|| "none".to_owned(), |decode| format!("{decode:.1}")),
                    format!("{:.2} s", speed.load_seconds),
                    format!("{:.1} MB", speed.weights as f64 / 1e6),
                ]
            }));
        }
        let columns =
            ["model", "executor", "sequences", "prompt tokens", "prompt tokens/s", "tokens/s", "loaded in", "weights"];
        self.tables.push(Table { title: "Model benchmark", columns: names(&columns), rows });
        self.document["models"] = json!(speeds);
    }

    /// Adds the benchmark of the databases.
    pub fn add_database(&mut self, found: &DatabaseDocument) {
        let milliseconds = |value: f64| format!("{value:.3} ms");
        let rows = found.databases.iter().map(|result| {
            let mut row = vec![result.site.clone().unwrap_or_else(|| "all sites".to_owned())];
            row.extend(match &result.outcome {
                DatabaseOutcome::Measured { clients, transactions, failed, per_second, latency_ms } => vec![
                    clients.to_string(),
                    transactions.to_string(),
                    failed.to_string(),
                    format!("{per_second:.1}"),
                    milliseconds(latency_ms.average),
                    milliseconds(latency_ms.p95),
                    milliseconds(latency_ms.p99),
                ],
                DatabaseOutcome::Skipped { .. } => gap("skipped"),
                DatabaseOutcome::Failed { .. } => gap("failed"),
            });
            row
        });
        let columns = ["database", "clients", "transactions", "failed", "per second", "average", "p95", "p99"];
        self.tables.push(Table { title: "Database benchmark", columns: names(&columns), rows: rows.collect() });
        for result in &found.databases {
            let site = result.site.as_deref().unwrap_or("all sites");
            if let DatabaseOutcome::Skipped { skipped: why } | DatabaseOutcome::Failed { error: why } = &result.outcome
            {
                self.notes.push(format!("database of {site}: {why}"));
            }
        }
        self.document["databases"] = json!(found.databases);
        self.document["notes"] = json!(self.notes);
    }
}

/// The columns of a database without numbers.
fn gap(why: &str) -> Vec<String> {
    let mut row = vec![String::new(); 7];
    row[0] = why.to_owned();
    row
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}
