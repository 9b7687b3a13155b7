//! A summary of a site's metrics over a period: from two scrapes, or from a Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use textnlp_provider::exposition::{self, Sample};

/// What the servers of a site did in a period.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Answered requests of `/v1/`.
    pub requests: u64,
    /// Those with a status of 500 and above.
    pub errors: u64,
    /// The share of errors; `None` without requests.
    pub error_rate: Option<f64>,
    /// The duration of requests of `/v1/`, to the last byte.
    pub latency: Quantiles,
    /// The time to the first token.
    pub first_token: Quantiles,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Tokens of prompts and of embedded texts.
    pub prompt_tokens: u64,
    /// The longest queue that a scrape saw, all replicas together.
    pub queue_max: Option<u64>,
    /// The most running requests that a scrape saw.
    pub running_max: Option<u64>,
    /// The most resident memory that a scrape saw, in bytes.
    pub memory_bytes_max: Option<u64>,
}

/// Quantiles in milliseconds, interpolated within the buckets of the histogram; `None` without observations.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50_ms: Option<f64>,
    /// The 95th percentile.
    pub p95_ms: Option<f64>,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
}

impl Quantiles {
    fn of(quantile: impl Fn(f64) -> Option<f64>) -> Self {
        let ms = |q| quantile(q).map(|ms| (ms * 10.0).round() / 10.0);
        Self { p50_ms: ms(0.5), p95_ms: ms(0.95), p99_ms: ms(0.99) }
    }
}

const REQUESTS: &str = "http_requests_total";
const LATENCY: &str = "http_request_duration_seconds_bucket";
const FIRST_TOKEN: &str = "textnlp_first_token_seconds_bucket";
const GENERATED: &str = "textnlp_tokens_generated_total";
const PROMPT: &str = "textnlp_prompt_tokens_total";
const QUEUE: &str = "textnlp_queue_length";
const RUNNING: &str = "textnlp_running_requests";
pub(crate) const MEMORY: &str = "process_resident_memory_bytes";
/// Not in [`KEY_METRICS`]: a server has it once a model is loaded.
pub(crate) const MODEL_LOAD_SECONDS: &str = "textnlp_model_load_seconds";
/// Not in [`KEY_METRICS`]: a server has it once it has measured a text with a model.
pub(crate) const MODEL_QUALITY: &str = "textnlp_model_quality_score";
/// 0 for a replica whose metrics could not be read.
pub(crate) const GATHERED: &str = "textnlp_gateway_backend_metrics_gathered";
/// Only replicas have it. [`GATHERED`] is also of the other programs whose metrics the gateway serves, such as the site agent.
pub(crate) const WEIGHT: &str = "textnlp_gateway_backend_weight";
const COUNTERS: [&str; 5] = [REQUESTS, LATENCY, FIRST_TOKEN, GENERATED, PROMPT];
const GAUGES: [&str; 4] = [QUEUE, RUNNING, MEMORY, GATHERED];

/// Metrics that dashboards and alerts need and every scrape of a service has that answered a generation. A model that
/// only makes embeddings has no first token.
pub const KEY_METRICS: [&str; 6] = [REQUESTS, LATENCY, GENERATED, QUEUE, RUNNING, MEMORY];

/// The sample of a site whose metrics could not be read, in a scrape of several sites.
pub fn unread_site(site: &str) -> String {
    format!("{GATHERED}{{site=\"{site}\"}} 0\n")
}

/// The samples of one scrape of a site that a summary needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape(BTreeMap<(String, String), f64>);

impl Scrape {
    /// Adds what one process exports. `replica` is its name where its samples do not have that label.
    pub fn add(&mut self, text: &str, replica: Option<&str>) {
        let needed = |sample: &Sample<'_>| COUNTERS.contains(&sample.name) || GAUGES.contains(&sample.name);
        for sample in exposition::samples(text).filter(needed) {
            let labels = match replica {
                Some(replica) => format!("replica=\"{replica}\",{}", sample.labels),
                None => sample.labels.to_owned(),
            };
            self.0.insert((sample.name.to_owned(), labels), sample.value);
        }
    }

    /// Adds a replica that did not answer.
    pub fn add_unread(&mut self, replica: &str) {
        self.0.insert((GATHERED.to_owned(), format!("replica=\"{replica}\"")), 0.0);
    }

    fn samples(&self) -> impl Iterator<Item = Sample<'_>> {
        self.0.iter().map(|((name, labels), value)| Sample { name, labels, value: *value })
    }

    fn total(&self, gauge: &str) -> Option<f64> {
        let values: Vec<f64> =
            self.samples().filter(|sample| sample.name == gauge).map(|sample| sample.value).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    fn replicas(&self) -> BTreeSet<&str> {
        self.samples().filter_map(|sample| sample.label("replica")).collect()
    }

    /// The replicas that one of two scrapes could not read. Their counters are left out.
    pub fn unread<'a>(&'a self, later: &'a Scrape) -> BTreeSet<&'a str> {
        let missing = |sample: &Sample<'_>| sample.name == GATHERED && sample.value == 0.0;
        self.samples().chain(later.samples()).filter(missing).filter_map(|sample| sample.label("replica")).collect()
    }

    /// The replicas that only one of two scrapes has: one that was stopped, and one that was started meanwhile.
    pub fn replaced<'a>(&'a self, later: &'a Scrape) -> (Vec<&'a str>, Vec<&'a str>) {
        let (before, after) = (self.replicas(), later.replicas());
        (before.difference(&after).copied().collect(), after.difference(&before).copied().collect())
    }
}

/// Summarizes what came between two scrapes of a site. A replica that was restarted counts from zero.
pub fn between(before: &Scrape, after: &Scrape) -> Summary {
    let (mut requests, mut errors, mut generated, mut prompt) = (0.0, 0.0, 0.0, 0.0);
    let (mut latency, mut first_token) = (BTreeMap::new(), BTreeMap::new());
    let unread = before.unread(after);
    for (series, now) in &after.0 {
        let earlier = before.0.get(series).filter(|earlier| *earlier <= now).copied().unwrap_or_default();
        let sample = Sample { name: &series.0, labels: &series.1, value: now - earlier };
        if sample.label("replica").is_some_and(|replica| unread.contains(replica)) {
            continue;
        }
        let is_of_api = || sample.label("route").is_some_and(|route| route.starts_with("/v1/"));
        match sample.name {
            REQUESTS if is_of_api() => {
                requests += sample.value;
                if sample.label("status").is_some_and(|status| status.starts_with('5')) {
                    errors += sample.value;
                }
            }
            LATENCY if is_of_api() => add(&mut latency, &sample),
            FIRST_TOKEN => add(&mut first_token, &sample),
            GENERATED => generated += sample.value,
            PROMPT => prompt += sample.value,
            _ => {}
        }
    }
    let most = |gauge: &str| Some(count(before.total(gauge)?.max(after.total(gauge)?)));
    let ms = |buckets: &BTreeMap<String, f64>, q| exposition::quantile(buckets, q).map(|seconds| seconds * 1000.0);
    Summary {
        requests: count(requests),
        errors: count(errors),
        error_rate: rate(errors, requests),
        latency: Quantiles::of(|q| ms(&latency, q)),
        first_token: Quantiles::of(|q| ms(&first_token, q)),
        generated_tokens: count(generated),
        prompt_tokens: count(prompt),
        queue_max: most(QUEUE),
        running_max: most(RUNNING),
        memory_bytes_max: most(MEMORY),
    }
}

fn add(buckets: &mut BTreeMap<String, f64>, sample: &Sample<'_>) {
    if let Some(bound) = sample.label("le") {
        *buckets.entry(bound.to_owned()).or_default() += sample.value;
    }
}

fn count(value: f64) -> u64 {
    value.round() as u64
}

fn rate(errors: f64, requests: f64) -> Option<f64> {
    (requests > 0.0).then(|| errors / requests)
}

/// What a summary asks a Prometheus, by the value of the label [`VALUE`]. `MATCH` stands for the matchers of the site's
/// series, `PERIOD` for the period and `STEP` for the step of subqueries.
const QUERIES: [(&str, &str); 8] = [
    ("requests", "sum(increase(http_requests_total{MATCH,route=~\"/v1/.*\"}[PERIOD]))"),
    ("errors", "sum(increase(http_requests_total{MATCH,route=~\"/v1/.*\",status=~\"5..\"}[PERIOD]))"),
    ("generated", "sum(increase(textnlp_tokens_generated_total{MATCH}[PERIOD]))"),
    ("prompt", "sum(increase(textnlp_prompt_tokens_total{MATCH}[PERIOD]))"),
    ("queue", "max_over_time(sum(textnlp_queue_length{MATCH})[PERIOD:STEP])"),
    ("running", "max_over_time(sum(textnlp_running_requests{MATCH})[PERIOD:STEP])"),
    ("memory", "max_over_time(sum(process_resident_memory_bytes{MATCH})[PERIOD:STEP])"),
    ("since", "min(min_over_time(timestamp(textnlp_ready{MATCH})[PERIOD:STEP]))"),
];
/// The histograms of a summary, with the matchers of their series.
const HISTOGRAMS: [(&str, &str); 2] = [
    ("latency", "http_request_duration_seconds_bucket{MATCH,route=~\"/v1/.*\"}"),
    ("first_token", "textnlp_first_token_seconds_bucket{MATCH}"),
];
const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];
const VALUE: &str = "textnlp_value";
/// The finest step of a subquery in seconds, and the most steps of one.
const STEP: u64 = 15;
const MAX_STEPS: u64 = 2000;

/// One instant query for all values of a summary, so that all have the same time.
pub fn query(matchers: &str, period: Duration) -> String {
    let seconds = period.as_secs().max(1);
    let step = (seconds / MAX_STEPS).max(STEP);
    let quantiles = HISTOGRAMS.iter().flat_map(|(name, series)| {
        QUANTILES.map(|q| {
            let query = format!("histogram_quantile({q}, sum by (le) (increase({series}[PERIOD])))");
            (format!("{name}_{q}"), query)
        })
    });
    let values = QUERIES.iter().map(|(name, query)| ((*name).to_owned(), (*query).to_owned()));
    let parts = values.chain(quantiles).map(|(name, query)| {
        let query = query.replace("PERIOD", &format!("{seconds}s")).replace("STEP", &format!("{step}s"));
        format!("label_replace({}, \"{VALUE}\", \"{name}\", \"\", \"\")", query.replace("MATCH", matchers))
    });
    parts.collect::<Vec<_>>().join(" or ")
}

/// The summary in an answer to [`query`], and the first time in the period that the Prometheus has samples of. `None`
/// if it has none of the site.
pub fn of_prometheus(answer: &Value) -> Option<(Summary, Timestamp)> {
    let series = answer["data"]["result"].as_array()?;
    let values: BTreeMap<&str, f64> = series
        .iter()
        .filter_map(|one| Some((one["metric"][VALUE].as_str()?, one["value"][1].as_str()?.parse::<f64>().ok()?)))
        .filter(|(_, value)| value.is_finite())
        .collect();
    let value = |name: &str| values.get(name).copied();
    let counted = |name: &str| count(value(name).unwrap_or_default());
    let ms = |name: &str, q: f64| value(&format!("{name}_{q}")).map(|seconds| seconds * 1000.0);
    let since = Timestamp::from_second(value("since")? as i64).ok()?;
    let summary = Summary {
        requests: counted("requests"),
        errors: counted("errors"),
        error_rate: rate(value("errors").unwrap_or_default(), value("requests").unwrap_or_default()),
        latency: Quantiles::of(|q| ms("latency", q)),
        first_token: Quantiles::of(|q| ms("first_token", q)),
        generated_tokens: counted("generated"),
        prompt_tokens: counted("prompt"),
        queue_max: value("queue").map(count),
        running_max: value("running").map(count),
        memory_bytes_max: value("memory").map(count),
    };
    Some((summary, since))
}

/// A firing alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FiringAlert {
    /// Its name: `TextnlpNotReady`.
    pub name: String,
    /// Its severity, if its rule has one.
    pub severity: Option<String>,
    /// Its other labels, such as the pod.
    pub labels: BTreeMap<String, String>,
    /// When its condition became true.
    pub since: Timestamp,
}

/// One instant query for the firing alerts of a site. Its answer has the number of scraped targets too, because no alerts
/// of a Prometheus that scrapes nothing mean nothing.
pub fn alerts_query(matchers: &str) -> String {
    format!(
        "label_replace(count(up{{{matchers}}}), \"{VALUE}\", \"targets\", \"\", \"\") or \
         (ALERTS_FOR_STATE{{{matchers}}} and ignoring(alertstate) ALERTS{{alertstate=\"firing\",{matchers}}})"
    )
}

/// The alerts in an answer to [`alerts_query`], the oldest first; `None` if the Prometheus scrapes nothing of the site.
pub fn firing_alerts(answer: &Value) -> Option<Vec<FiringAlert>> {
    let series = answer["data"]["result"].as_array()?;
    series.iter().find(|one| one["metric"][VALUE] == "targets")?;
    let alert = |one: &Value| {
        let mut labels: BTreeMap<String, String> = serde_json::from_value(one["metric"].clone()).ok()?;
        labels.remove("__name__");
        labels.remove("namespace");
        let name = labels.remove("alertname")?;
        let seconds: f64 = one["value"][1].as_str()?.parse().ok()?;
        let since = Timestamp::from_second(seconds as i64).ok()?;
        Some(FiringAlert { name, severity: labels.remove("severity"), labels, since })
    };
    let mut alerts: Vec<FiringAlert> = series.iter().filter_map(alert).collect();
    alerts.sort_by(|a, b| (a.since, &a.name, &a.labels).cmp(&(b.since, &b.name, &b.labels)));
    Some(alerts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a replica exports after this many answers of half a second and of two seconds, of which some failed.
    fn exported(quick: u32, slow: u32, failed: u32, queued: u32) -> String {
        let (all, well) = (quick + slow, quick + slow - failed);
        format!(
            "# TYPE http_requests counter\n\
             http_requests_total{{method=\"POST\",route=\"/v1/generate\",status=\"200\"}} {well}\n\
             http_requests_total{{method=\"POST\",route=\"/v1/generate\",status=\"503\"}} {failed}\n\
             http_requests_total{{method=\"GET\",route=\"/health\",status=\"500\"}} 70000\n\
             http_request_duration_seconds_bucket{{le=\"0.5\",method=\"POST\",route=\"/v1/generate\"}} {quick}\n\
             http_request_duration_seconds_bucket{{le=\"2.5\",method=\"POST\",route=\"/v1/generate\"}} {all}\n\
             http_request_duration_seconds_bucket{{le=\"+Inf\",method=\"POST\",route=\"/v1/generate\"}} {all}\n\
             textnlp_first_token_seconds_bucket{{le=\"0.1\",model=\"m\"}} {all}\n\
             textnlp_first_token_seconds_bucket{{le=\"+Inf\",model=\"m\"}} {all}\n\
             textnlp_tokens_generated_total{{model=\"m\",user=\"a\"}} {}\n\
             textnlp_prompt_tokens_total{{model=\"m\",user=\"a\"}} {}\n\
             textnlp_queue_length {queued}\ntextnlp_running_requests 1\nprocess_resident_memory_bytes 1000\n# EOF\n",
            all * 10,
            all * 3
        )
    }

    fn scrape(replicas: &[(&str, String)]) -> Scrape {
        let mut scrape = Scrape::default();
        replicas.iter().for_each(|(name, text)| scrape.add(text, Some(name)));
        scrape
    }

    #[test]
    fn summary_counts_what_came_between_two_scrapes() {
        let before = scrape(&[("a", exported(100, 0, 0, 7)), ("b", exported(500, 0, 0, 0))]);
        // The second replica was restarted: it counts from zero.
        let after = scrape(&[("a", exported(150, 50, 5, 0)), ("b", exported(100, 0, 0, 2))]);
        let summary = between(&before, &after);
        assert_eq!((summary.requests, summary.errors, summary.error_rate), (200, 5, Some(0.025)));
        assert_eq!((summary.generated_tokens, summary.prompt_tokens), (2000, 600));
        assert_eq!((summary.queue_max, summary.running_max, summary.memory_bytes_max), (Some(7), Some(2), Some(2000)));
        let latency = summary.latency;
        assert_eq!((latency.p50_ms, latency.p95_ms, latency.p99_ms), (Some(333.3), Some(2100.0), Some(2420.0)));
        assert_eq!(summary.first_token.p95_ms, Some(95.0));
        let none = between(&after, &after);
        assert_eq!((none.requests, none.error_rate, none.latency), (0, None, Quantiles::default()));
        assert_eq!(between(&Scrape::default(), &Scrape::default()), Summary::default());
    }

    #[test]
    fn replaced_replicas_are_named() {
        let before = scrape(&[("a", exported(1, 0, 0, 0)), ("b", exported(1, 0, 0, 0))]);
        let after = scrape(&[("b", exported(1, 0, 0, 0)), ("c", exported(1, 0, 0, 0))]);
        assert_eq!(before.replaced(&after), (vec!["a"], vec!["c"]));
        // One that the gateway could not read was not restarted: what it counted before is not of this period.
        let mut partial = scrape(&[("b", exported(1, 0, 0, 0))]);
        partial.add("textnlp_gateway_backend_metrics_gathered{replica=\"a\"} 0\n", None);
        assert_eq!(partial.unread(&before), BTreeSet::from(["a"]));
        assert_eq!(between(&partial, &before).requests, 0);
        let mut gathered = Scrape::default();
        gathered.add("textnlp_queue_length{replica=\"server-0\"} 1\n", None);
        assert_eq!(gathered.replaced(&gathered), (Vec::<&str>::new(), Vec::<&str>::new()));
        assert_eq!(gathered.replicas(), BTreeSet::from(["server-0"]));
    }

    #[test]
    fn prometheus_is_asked_once_and_its_answer_read() {
        let query = query("namespace=\"shop\"", Duration::from_secs(3600));
        assert_eq!(query.matches("label_replace(").count(), 14);
        for placeholder in ["MATCH", "PERIOD", "STEP"] {
            assert!(!query.contains(placeholder), "{query}");
        }
        let one = "label_replace(sum(increase(http_requests_total{namespace=\"shop\",route=~\"/v1/.*\"}[3600s])), \
                   \"textnlp_value\", \"requests\", \"\", \"\")";
        assert!(query.starts_with(one), "{query}");
        assert!(query.contains("\"latency_0.95\"") && query.contains("[3600s:15s]"), "{query}");
        let series = |name: &str, value: &str| json!({ "metric": { VALUE: name }, "value": [1_800_000_000, value] });
        let result = [
            series("requests", "199.6"),
            series("errors", "2"),
            series("latency_0.95", "0.25"),
            series("first_token_0.5", "NaN"),
            series("memory", "1e9"),
            series("since", "1799999000"),
        ];
        let answer = |result: &[Value]| json!({ "status": "success", "data": { "result": result } });
        let (summary, since) = of_prometheus(&answer(&result)).unwrap();
        assert_eq!((summary.requests, summary.errors, summary.memory_bytes_max), (200, 2, Some(1_000_000_000)));
        assert_eq!((summary.latency.p95_ms, summary.first_token.p50_ms), (Some(250.0), None));
        assert_eq!(since.as_second(), 1_799_999_000);
        assert_eq!(of_prometheus(&answer(&result[..5])), None, "it has no samples of the servers");
        assert_eq!(of_prometheus(&json!({})), None);
    }

    #[test]
    fn firing_alerts_are_of_a_prometheus_that_scrapes_the_site() {
        let query = alerts_query("namespace=\"shop\"");
        assert!(
            query.ends_with("and ignoring(alertstate) ALERTS{alertstate=\"firing\",namespace=\"shop\"})"),
            "{query}"
        );
        let alert = |name: &str, pod: &str, since: &str| {
            let labels = json!({
                "__name__": "ALERTS_FOR_STATE", "alertname": name, "namespace": "shop", "severity": "critical", "pod": pod,
            });
            json!({ "metric": labels, "value": [1_800_000_000, since] })
        };
        let targets = json!({ "metric": { VALUE: "targets" }, "value": [1_800_000_000, "3"] });
        let found = [alert("TextnlpDown", "a", "1799999000"), alert("TextnlpMemory", "b", "1799998000"), targets];
        let answer = |result: &[Value]| json!({ "status": "success", "data": { "result": result } });
        let alerts = firing_alerts(&answer(&found)).unwrap();
        let read: Vec<_> = alerts.iter().map(|one| (one.name.as_str(), one.since.as_second())).collect();
        assert_eq!(read, [("TextnlpMemory", 1_799_998_000), ("TextnlpDown", 1_799_999_000)]);
        assert_eq!(alerts[1].severity.as_deref(), Some("critical"));
        assert_eq!(alerts[1].labels, BTreeMap::from([("pod".to_owned(), "a".to_owned())]));
        assert_eq!(firing_alerts(&answer(&found[2..])), Some(Vec::new()));
        assert_eq!(firing_alerts(&answer(&found[..2])), None, "it scrapes nothing of the site");
    }
}
