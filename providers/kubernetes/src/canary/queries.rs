//! External analysis of a release: PromQL queries to a Prometheus. The pods' own metrics do not show failures between
//! clients and pods.
//!
//! A missing answer never counts as success. Pure except for [`QueryApi`]; times are seconds since the start of the rollout.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::component::{self, Query};

use super::analysis::AnalysisResult;
use super::monitor::now;
use super::{OperatorCommand, RolloutOrders};

/// The annotation of a deployment with its queries: an [`QueryConfig`].
const QUERIES: &str = "textnlp-rollout-queries";
/// The Secret with the Prometheus token and the certificate authority, and its mount path in the job.
pub(crate) const SECRET: &str = "textnlp-prometheus";
const FOLDER: &str = "/var/run/secrets/prometheus";
/// The interval between two rounds of queries.
const QUERY_INTERVAL: Duration = Duration::from_secs(10);
/// The poll interval until there are pods to query about.
const FIRST_QUERY_INTERVAL: Duration = Duration::from_millis(500);
/// The largest age of the last answers at promotion, in seconds.
const MAX_ANSWER_AGE: u64 = 60;
/// The longest excerpt of an answer in a message.
const MAX_EXCERPT: usize = 200;
/// The placeholder for pods that do not exist yet, used to validate a query.
const NO_POD: &str = "0";

/// The Prometheus and its queries: the contract's `QueryConfig`, as the job parses it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct QueryConfig {
    /// The URL prefix of `/api/v1/query`.
    url: String,
    /// Whether a Secret holds credentials or a certificate authority.
    pub(super) secret: bool,
    queries: Vec<Query>,
}

/// A Prometheus client.
#[async_trait]
pub trait QueryApi: Sync {
    /// The status and body of the answer from `URL/api/v1/query`; an error if it is unreachable.
    async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String>;
}

/// Runs the queries concurrently with the polls of the pods, which never wait for an answer.
#[derive(Debug)]
pub(super) struct QueryRunner {
    outside: Option<QueryConfig>,
    /// The pods that the queries are about, the start of the rollout, and the answers. Both tasks write it.
    answers: Mutex<(Option<(About, u64)>, Answers)>,
}

impl QueryRunner {
    pub(super) fn new(outside: Option<QueryConfig>) -> Self {
        let answers = Answers::of(outside.as_ref());
        Self { outside, answers: Mutex::new((None, answers)) }
    }

    /// Sets the pods that the queries are about. Answers about other pods are dropped.
    pub(super) fn about(&self, about: About, began: u64) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.0.as_ref().is_none_or(|(before, _)| *before != about) {
            *answers = (Some((about, began)), Answers::of(self.outside.as_ref()));
        }
    }

    /// See [`Answers::join`].
    pub(super) fn join(
        &self,
        analysis_result: AnalysisResult,
        times: (u64, u64),
        command: Option<OperatorCommand>,
    ) -> AnalysisResult {
        match self.outside {
            None => analysis_result,
            Some(_) => {
                self.answers.lock().unwrap_or_else(PoisonError::into_inner).1.join(analysis_result, times, command)
            }
        }
    }

    /// See [`QueryConfig::refused`].
    pub(super) async fn refused(&self, ask: &dyn QueryApi, namespace: &str) -> Option<QueryError> {
        self.outside.as_ref()?.refused(ask, namespace).await
    }

    /// Runs the queries in a loop.
    pub(super) async fn go_on(&self, ask: &dyn QueryApi) -> Infallible {
        let Some(outside) = &self.outside else { return std::future::pending().await };
        loop {
            let about = self.answers.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
            let Some((about, began)) = about else {
                tokio::time::sleep(FIRST_QUERY_INTERVAL).await;
                continue;
            };
            let found = outside.ask(ask, &about).await;
            {
                let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                if answers.0.as_ref().is_some_and(|(now, _)| *now == about) {
                    answers.1.add(now().saturating_sub(began), found);
                }
            }
            tokio::time::sleep(QUERY_INTERVAL).await;
        }
    }
}

/// The pods that a query is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) namespace: String,
    /// The label values of the pods of both releases, as far as they exist.
    pub(super) new: Option<String>,
    pub(super) old: Option<String>,
}

/// The result of one query.
#[derive(Debug, Clone, PartialEq)]
enum QueryResult {
    /// A number.
    Value(f64),
    /// No number, for this reason: it says nothing about the release.
    Unknown(String),
    /// The query is invalid, whatever the data.
    Refused(String),
    /// Prometheus is unreachable.
    Unreachable(String),
}

/// Why a query cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueryError {
    /// Whether the cause may be temporary.
    pub(super) may_pass: bool,
    pub(super) why: String,
}

/// The combined result of all queries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Well,
    Waits,
    Bad(String),
}

/// The answers so far.
#[derive(Debug)]
struct Answers {
    queries: Vec<Query>,
    seen: Vec<QueryAnswers>,
}

/// The answers to one query.
#[derive(Debug, Clone, Default)]
struct QueryAnswers {
    last: Option<(u64, QueryResult)>,
    /// The numbers in a row within the bound, and those beyond it.
    within: u32,
    beyond: u32,
}

impl QueryConfig {
    /// The queries of the new release.
    pub(super) fn of(orders: &RolloutOrders) -> Result<Option<Self>, String> {
        let Some(text) = orders.promote["metadata"]["annotations"][QUERIES].as_str() else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|error| format!("its queries cannot be read: {error}"))
    }

    /// The value of the annotation.
    pub(crate) fn written(outside: &component::PrometheusQueries, secret: bool) -> String {
        json!(Self { url: outside.url.clone(), secret, queries: outside.queries.clone() }).to_string()
    }

    /// Adds the Prometheus settings to the job's pod. An older program rejects the argument, and no rollout starts.
    pub(super) fn reached(&self, pod: &mut Value) {
        let mut add = |pointer: &str, what: Value| {
            if let Some(list) = pod.pointer_mut(pointer).and_then(Value::as_array_mut) {
                list.push(what);
            }
        };
        add("/containers/0/args", json!("--prometheus"));
        add("/containers/0/args", json!(FOLDER));
        if self.secret {
            let mount = json!({ "name": SECRET, "mountPath": FOLDER, "readOnly": true });
            // Without the Secret no query is answered, but the pods are analysed all the same.
            let volume =
                json!({ "name": SECRET, "secret": { "secretName": SECRET, "defaultMode": 288, "optional": true } });
            add("/containers/0/volumeMounts", mount);
            add("/volumes", volume);
        }
    }

    /// Runs every query once before anything changes, to find invalid queries and an unreachable Prometheus.
    async fn refused(&self, ask: &dyn QueryApi, namespace: &str) -> Option<QueryError> {
        let no_pod = Some(NO_POD.to_owned());
        let about = About { namespace: namespace.to_owned(), new: no_pod.clone(), old: no_pod };
        let answers = self.queries.iter().zip(self.ask(ask, &about).await);
        let refused = answers.filter_map(|(query, found)| {
            let may_pass = match found {
                QueryResult::Refused(_) => false,
                QueryResult::Unreachable(_) => true,
                QueryResult::Value(_) | QueryResult::Unknown(_) => return None,
            };
            Some(QueryError { may_pass, why: format!("query `{}`: {}", query.name, found.says()) })
        });
        // A permanent error comes first: waiting does not help.
        refused.min_by_key(|unasked| unasked.may_pass)
    }

    /// The results, in the order of the queries.
    async fn ask(&self, ask: &dyn QueryApi, about: &About) -> Vec<QueryResult> {
        let asked = self.queries.iter().map(|query| async move {
            let text = match filled(&query.query, about) {
                Ok(text) => text,
                Err(why) => return QueryResult::Unknown(why),
            };
            match ask.ask(&self.url, &text).await {
                Ok((status, body)) => read(status, &body),
                Err(why) => QueryResult::Unreachable(cut(&why)),
            }
        });
        futures::future::join_all(asked).await
    }
}

impl Answers {
    fn of(outside: Option<&QueryConfig>) -> Self {
        let queries = outside.map(|outside| outside.queries.clone()).unwrap_or_default();
        Self { seen: vec![QueryAnswers::default(); queries.len()], queries }
    }

    /// Adds a round of results.
    fn add(&mut self, at: u64, found: Vec<QueryResult>) {
        for ((query, seen), found) in self.queries.iter().zip(&mut self.seen).zip(found) {
            match found {
                QueryResult::Value(value) if !is_well(query, value) => {
                    (seen.within, seen.beyond) = (0, seen.beyond.saturating_add(1));
                }
                QueryResult::Value(value) if value.is_finite() => {
                    (seen.within, seen.beyond) = (seen.within.saturating_add(1), 0);
                }
                // A gap is not a success, and it does not reset a count of failures.
                _ => seen.within = 0,
            }
            seen.last = Some((at, found));
        }
    }

    /// Combines the verdict of the pods' own metrics with that of the queries.
    fn join(
        &self,
        analysis_result: AnalysisResult,
        (at, deadline): (u64, u64),
        command: Option<OperatorCommand>,
    ) -> AnalysisResult {
        let verdict = self.verdict(at);
        match (analysis_result, verdict) {
            (AnalysisResult::Revert(why), verdict) if verdict != Verdict::Well && at >= deadline => {
                AnalysisResult::Revert(format!("{why}; {}", self.say(at)))
            }
            (analysis_result @ (AnalysisResult::Revert(_) | AnalysisResult::Switch(_)), _) => analysis_result,
            (_, Verdict::Bad(why)) => AnalysisResult::Revert(why),
            (AnalysisResult::Promote(says), Verdict::Waits) if command == Some(OperatorCommand::Promote) => {
                AnalysisResult::Promote(format!("{says}; not required: {}", self.say(at)))
            }
            (AnalysisResult::Promote(says), Verdict::Waits) | (AnalysisResult::Wait(says), _) => {
                AnalysisResult::Wait(format!("{says}; {}", self.say(at)))
            }
            (AnalysisResult::Promote(says), Verdict::Well) => {
                AnalysisResult::Promote(format!("{says}; {}", self.say(at)))
            }
        }
    }

    fn verdict(&self, at: u64) -> Verdict {
        let both = || self.queries.iter().zip(&self.seen);
        let beyond = both().find(|(query, seen)| seen.beyond >= query.samples);
        if let Some((query, seen)) = beyond {
            let times = if seen.beyond > 1 { format!(", {} times in a row", seen.beyond) } else { String::new() };
            return Verdict::Bad(format!("{}{times}", seen.says(query, at)));
        }
        let has_enough = |(query, seen): (&Query, &QueryAnswers)| seen.within >= query.samples && seen.is_fresh(at);
        if both().all(has_enough) { Verdict::Well } else { Verdict::Waits }
    }

    /// The last answer to each query, for a message.
    fn say(&self, at: u64) -> String {
        let summary: Vec<String> =
            self.queries.iter().zip(&self.seen).map(|(query, seen)| seen.says(query, at)).collect();
        summary.join("; ")
    }
}

impl QueryAnswers {
    fn says(&self, query: &Query, at: u64) -> String {
        let bound = match (query.at_most, query.at_least) {
            (Some(most), _) => format!("at most {most}"),
            (None, Some(least)) => format!("at least {least}"),
            (None, None) => "no bound".to_owned(),
        };
        let name = &query.name;
        match &self.last {
            None => format!("query `{name}` has no result yet"),
            Some((_, found @ QueryResult::Value(_))) if self.is_fresh(at) => {
                let counted = match self.within {
                    within if (1..query.samples).contains(&within) => {
                        format!(", {within} of {} in a row", query.samples)
                    }
                    _ => String::new(),
                };
                format!("query `{name}` is {} ({bound}{counted})", found.says())
            }
            Some((when, QueryResult::Value(value))) => {
                format!(
                    "query `{name}` was {value} ({bound}) {} s ago, and not answered since",
                    at.saturating_sub(*when)
                )
            }
            Some((_, found)) => format!("query `{name}` waits: {}", found.says()),
        }
    }

    fn is_fresh(&self, at: u64) -> bool {
        self.last.as_ref().is_some_and(|(when, _)| at.saturating_sub(*when) < MAX_ANSWER_AGE)
    }
}

fn is_well(query: &Query, value: f64) -> bool {
    query.at_most.is_none_or(|most| value <= most) && query.at_least.is_none_or(|least| value >= least)
}

impl QueryResult {
    fn says(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Unknown(why) => why.clone(),
            Self::Refused(why) => format!("it cannot be queried: {why}"),
            Self::Unreachable(why) => format!("Prometheus does not answer: {why}"),
        }
    }
}

/// Fills the pods into a query.
fn filled(query: &str, about: &About) -> Result<String, String> {
    let mut parts = query.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").ok_or("a placeholder is never closed")?;
        let value = match name.trim() {
            "namespace" => Some(&about.namespace),
            "new" => about.new.as_ref(),
            "old" => about.old.as_ref(),
            unknown => return Err(format!("`{}` is not a known placeholder", cut(unknown))),
        };
        text += value.ok_or_else(|| format!("`{}` matches no pods", name.trim()))?;
        text += rest;
    }
    Ok(text)
}

/// Parses an answer of Prometheus (<https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>).
fn read(status: u16, body: &str) -> QueryResult {
    // An invalid JSON document is treated as an unknown one.
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let word = |field: &str| cut(answer[field].as_str().unwrap_or_default());
    match (answer["status"].as_str(), answer["errorType"].as_str()) {
        (Some("success"), _) if status == 200 => partial(&answer).unwrap_or_else(|| result(&answer["data"])),
        (Some("error"), Some("bad_data")) if status == 400 => QueryResult::Refused(word("error")),
        // The query could not be evaluated with the current data.
        (Some("error"), Some("execution")) => QueryResult::Unknown(word("error")),
        (Some("error"), _) => QueryResult::Unreachable(format!("status {status}: {}", word("error"))),
        _ => QueryResult::Unreachable(format!("status {status}, and not a Prometheus response")),
    }
}

/// A partial answer, as far as the store reports it: the missing part may be the failing one.
fn partial(answer: &Value) -> Option<QueryResult> {
    let warnings = answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let warned = warnings.into_iter().find(|warning| !warning.starts_with("PromQL info"));
    match warned {
        Some(warning) => Some(QueryResult::Unknown(format!("its result has a warning: {}", cut(warning)))),
        // VictoriaMetrics reports it in this field.
        None => (answer["isPartial"] == true).then(|| QueryResult::Unknown("its result is partial".to_owned())),
    }
}

fn result(data: &Value) -> QueryResult {
    let sample = match data["resultType"].as_str() {
        Some("scalar") => &data["result"],
        Some("vector") => match data["result"].as_array().map(Vec::as_slice) {
            Some([]) => return QueryResult::Unknown("no data".to_owned()),
            Some([one]) => &one["value"],
            Some(many) => {
                return QueryResult::Refused(format!("{} series instead of one number: use `sum(…)`", many.len()));
            }
            None => &Value::Null,
        },
        Some(other) => {
            return QueryResult::Refused(format!("its result is a {}, not an instant vector or a scalar", cut(other)));
        }
        None => &Value::Null,
    };
    match sample[1].as_str().map(str::parse::<f64>) {
        Some(Ok(value)) if value.is_nan() => QueryResult::Unknown("NaN: zero divided by zero".to_owned()),
        Some(Ok(value)) => QueryResult::Value(value),
        _ => QueryResult::Unreachable("not a Prometheus response".to_owned()),
    }
}

/// The beginning of an external message, on one line.
fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "errors seen by clients";

    fn outside(queries: &[(&str, Option<f64>, Option<f64>, u32)]) -> QueryConfig {
        let query = |&(query, at_most, at_least, samples): &(&str, Option<f64>, Option<f64>, u32)| Query {
            name: NAME.to_owned(),
            query: query.to_owned(),
            at_most,
            at_least,
            samples,
        };
        QueryConfig { url: "http://p".to_owned(), secret: false, queries: queries.iter().map(query).collect() }
    }

    /// One query with an upper bound of 0.01, three times in a row; an answer every ten seconds.
    fn answered(found: &[QueryResult]) -> Answers {
        let mut answers = Answers::of(Some(&outside(&[("q", Some(0.01), None, 3)])));
        for (n, found) in found.iter().enumerate() {
            answers.add(n as u64 * 10, vec![found.clone()]);
        }
        answers
    }

    fn value(value: f64) -> QueryResult {
        QueryResult::Value(value)
    }

    fn no_data() -> QueryResult {
        QueryResult::Unknown("no data".to_owned())
    }

    fn down() -> QueryResult {
        QueryResult::Unreachable("connection refused".to_owned())
    }

    fn promote() -> AnalysisResult {
        AnalysisResult::Promote("healthy for 300 s".to_owned())
    }

    /// The verdict for a rollout whose pods are healthy, half a minute after the first answer.
    fn judged(found: &[QueryResult]) -> AnalysisResult {
        answered(found).join(promote(), (30, 1000), None)
    }

    #[test]
    fn query_within_its_bound_for_enough_samples_promotes() {
        let bound = value(0.01);
        let analysis_result = judged(&[value(0.0), value(0.004), bound.clone()]);
        let AnalysisResult::Promote(says) = analysis_result else { panic!("{analysis_result:?}") };
        assert_eq!(says, format!("healthy for 300 s; query `{NAME}` is 0.01 (at most 0.01)"));
        let AnalysisResult::Wait(says) = judged(&[value(0.0), bound]) else { panic!("two are not three") };
        assert!(says.ends_with("(at most 0.01, 2 of 3 in a row)"), "{says}");
    }

    #[test]
    fn query_beyond_its_bound_reverts_only_after_several_samples() {
        let (good, bad) = (value(0.0), value(0.5));
        for found in [vec![bad.clone()], vec![bad.clone(), bad.clone()], vec![bad.clone(), good.clone(), bad.clone()]] {
            assert!(matches!(judged(&found), AnalysisResult::Wait(_)), "{found:?}");
        }
        let AnalysisResult::Revert(why) = judged(&[good, bad.clone(), bad.clone(), bad.clone()]) else { panic!() };
        assert_eq!(why, format!("query `{NAME}` is 0.5 (at most 0.01), 3 times in a row"));
        // A gap does not hide it either.
        let with_gap = [bad.clone(), no_data(), bad.clone(), down(), bad.clone()];
        assert!(matches!(judged(&with_gap), AnalysisResult::Revert(_)));
        // The message appears also while the rollout waits, and with a promote command.
        for (analysis_result, command) in [
            (AnalysisResult::Wait("healthy for 8 of 300 s".to_owned()), None),
            (promote(), Some(OperatorCommand::Promote)),
        ] {
            let analysis_result =
                answered(&[bad.clone(), bad.clone(), bad.clone()]).join(analysis_result, (30, 1000), command);
            assert!(matches!(analysis_result, AnalysisResult::Revert(_)), "{analysis_result:?}");
        }
    }

    #[test]
    fn missing_query_result_never_counts_as_success() {
        let good = || value(0.0);
        let infinite = || value(f64::NEG_INFINITY);
        for (found, why) in [
            (vec![], "has no result yet"),
            (vec![no_data(); 9], "waits: no data"),
            (vec![down(); 9], "waits: Prometheus does not answer: connection refused"),
            (vec![good(), good(), good(), no_data()], "waits: no data"),
            (vec![good(), good(), good(), down(), good()], "1 of 3 in a row"),
            (vec![infinite(), infinite(), infinite()], "is -inf"),
        ] {
            let analysis_result = judged(&found);
            assert!(
                matches!(&analysis_result, AnalysisResult::Wait(says) if says.contains(why)),
                "{found:?}: {analysis_result:?}"
            );
        }
        // An outdated answer does not count either.
        let before = answered(&[good(), good(), good()]);
        assert!(matches!(before.join(promote(), (79, 1000), None), AnalysisResult::Promote(_)));
        let AnalysisResult::Wait(says) = before.join(promote(), (80, 1000), None) else { panic!() };
        assert!(says.ends_with("was 0 (at most 0.01) 60 s ago, and not answered since"), "{says}");
    }

    #[test]
    fn operator_command_overrides_queries_and_the_deadline_names_them() {
        let waits = answered(&[no_data()]);
        let AnalysisResult::Promote(says) = waits.join(promote(), (30, 1000), Some(OperatorCommand::Promote)) else {
            panic!()
        };
        assert_eq!(says, format!("healthy for 300 s; not required: query `{NAME}` waits: no data"));
        let over = AnalysisResult::Revert("the deadline of 1000 s has passed".to_owned());
        let AnalysisResult::Revert(says) = waits.join(over.clone(), (1000, 1000), None) else { panic!() };
        assert_eq!(says, format!("the deadline of 1000 s has passed; query `{NAME}` waits: no data"));
        // A verdict of the pods' own metrics is reported alone.
        assert_eq!(waits.join(over.clone(), (30, 1000), None), over);
        let switch = AnalysisResult::Switch("all are ready".to_owned());
        assert_eq!(waits.join(switch.clone(), (30, 1000), None), switch);
    }

    #[test]
    fn all_queries_must_pass() {
        let mut both = Answers::of(Some(&outside(&[("a", Some(1.0), None, 1), ("b", None, Some(0.99), 2)])));
        both.add(0, vec![value(0.5), value(1.0)]);
        assert!(matches!(both.join(promote(), (0, 1000), None), AnalysisResult::Wait(_)));
        both.add(10, vec![value(0.5), value(0.995)]);
        assert!(matches!(both.join(promote(), (10, 1000), None), AnalysisResult::Promote(_)));
        both.add(20, vec![value(0.5), value(0.9)]);
        assert!(matches!(both.join(promote(), (20, 1000), None), AnalysisResult::Wait(_)));
        both.add(30, vec![value(2.0), value(1.0)]);
        let AnalysisResult::Revert(why) = both.join(promote(), (30, 1000), None) else { panic!() };
        assert!(why.ends_with("is 2 (at most 1)"), "{why}");
    }

    #[test]
    fn prometheus_responses_are_classified() {
        let vector =
            |samples: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}}}}"#);
        let sample = |value: &str| format!(r#"{{"metric":{{}},"value":[1700000000.1,"{value}"]}}"#);
        let one = |value: &str| read(200, &vector(&sample(value)));
        assert_eq!((one("0.25"), one("1e-3"), one("+Inf")), (value(0.25), value(0.001), value(f64::INFINITY)));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000,"2"]}}"#;
        assert_eq!(read(200, scalar), value(2.0));
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert_eq!(
            read(200, matrix),
            QueryResult::Refused("its result is a matrix, not an instant vector or a scalar".to_owned())
        );
        for (body, why) in [
            (vector(""), "no data"),
            (vector(&sample("NaN")), "NaN"),
            (r#"{"status":"success","warnings":["store b is not there"],"data":{"resultType":"scalar","result":[1,"0"]}}"#.to_owned(), "store b is not there"),
            (r#"{"status":"success","isPartial":true,"data":{"resultType":"scalar","result":[1,"0"]}}"#.to_owned(), "its result is partial"),
            (r#"{"status":"error","errorType":"execution","error":"many-to-many"}"#.to_owned(), "many-to-many"),
        ] {
            assert!(matches!(read(200, &body), QueryResult::Unknown(says) if says.contains(why)), "{body}");
        }
        let two = read(200, &vector(&format!("{},{}", sample("1"), sample("2"))));
        assert!(matches!(&two, QueryResult::Refused(says) if says.starts_with("2 series")), "{two:?}");
        let told = r#"{"status":"success","warnings":["PromQL info: no counter"],"data":{"resultType":"scalar","result":[1,"0"]}}"#;
        assert_eq!(read(200, told), value(0.0));
        let bad = r#"{"status":"error","errorType":"bad_data","error":"1:5: parse error:\n unexpected end"}"#;
        assert_eq!(read(400, bad), QueryResult::Refused("1:5: parse error: unexpected end".to_owned()));
        // A proxy before Prometheus answers in another form, which says nothing about the query.
        for (status, body) in [
            (401, "Unauthorized"),
            (502, "<html>"),
            (400, "{}"),
            (200, "null"),
            (200, r#"{"status":"success","data":{"resultType":"vector","result":[{"value":[1,2]}]}}"#),
            (503, r#"{"status":"error","errorType":"unavailable","error":"starting"}"#),
            (500, &vector(&sample("0"))),
        ] {
            assert!(matches!(read(status, body), QueryResult::Unreachable(_)), "{status} {body}");
        }
        assert_eq!(cut("a\u{1b}[2J\n b"), "a[2J b");
        assert!(cut(&"ä".repeat(500)).chars().count() == MAX_EXCERPT + 1);
    }

    #[test]
    fn query_placeholders_are_filled_with_both_releases() {
        let about = About { namespace: "n".to_owned(), new: Some("1".to_owned()), old: None };
        let query = r#"sum(x{namespace="{{namespace}}",pod=~"api-{{ new }}-.*"})"#;
        assert_eq!(filled(query, &about).unwrap(), r#"sum(x{namespace="n",pod=~"api-1-.*"})"#);
        assert_eq!(filled("{{old}}", &about).unwrap_err(), "`old` matches no pods");
        assert!(filled("{{other}}", &about).is_err() && filled("{{new", &about).is_err());
    }

    /// Answers each query with its own text.
    struct Says(&'static [(&'static str, u16, &'static str)]);

    #[async_trait]
    impl QueryApi for Says {
        async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String> {
            assert_eq!(url, "http://p");
            let summary = self.0.iter().find(|(asked, ..)| *asked == query);
            summary.map(|(_, status, body)| (*status, (*body).to_owned())).ok_or_else(|| "nobody there".to_owned())
        }
    }

    #[tokio::test]
    async fn invalid_queries_are_refused_before_any_change() {
        const NONE: &str = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
        const BAD: &str = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        let says = Says(&[("up{pod=\"0\"}", 200, NONE), ("up{", 400, BAD)]);
        let refused = async |queries: &[&str]| {
            let queries: Vec<_> = queries.iter().map(|query| (*query, Some(1.0), None, 1)).collect();
            outside(&queries).refused(&says, "n").await
        };
        let well = r#"up{pod="{{new}}"}"#;
        assert_eq!(refused(&[well]).await, None, "that there is nothing to be known yet is no fault");
        let Some(unasked) = refused(&[well, "down", "up{"]).await else { panic!() };
        let why = format!("query `{NAME}`: it cannot be queried: parse error");
        assert_eq!(unasked, QueryError { may_pass: false, why }, "rather than what may pass");
        let Some(unasked) = refused(&["down", well]).await else { panic!() };
        assert!(unasked.may_pass && unasked.why.contains("nobody there"), "{unasked:?}");
    }

    #[test]
    fn query_results_are_discarded_when_the_pods_change() {
        let asking = QueryRunner::new(Some(outside(&[("{{new}}", Some(1.0), None, 1)])));
        let about = |new: &str| asking.about(About { new: Some(new.to_owned()), ..About::default() }, 1);
        let promotes = || matches!(asking.join(promote(), (0, 1000), None), AnalysisResult::Promote(_));
        assert!(!promotes(), "nothing is left to query");
        about("1");
        asking.answers.lock().unwrap().1.add(0, vec![value(0.0)]);
        assert!(promotes());
        about("1");
        assert!(promotes(), "they are the same");
        about("2");
        assert!(!promotes());
        assert_eq!(QueryRunner::new(None).join(promote(), (0, 1000), None), promote(), "nobody is asked");
    }
}
