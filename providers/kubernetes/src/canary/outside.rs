//! What a new release looks like from outside of its pods: questions of the operator's to a Prometheus. What fails between clients and pods
//! is not among the pods' own figures.
//!
//! No answer is never a good one. Pure but for [`Ask`]: times are seconds since the rollout began.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::component::{self, Query};

use super::judge::Judgement;
use super::watch::now;
use super::{Orders, Wish};

/// The annotation of a deployment with its questions: an [`Outside`].
const QUERIES: &str = "textnlp-rollout-queries";
/// The Secret with the token and the authority, and where the job finds them.
pub(crate) const SECRET: &str = "textnlp-prometheus";
const FOLDER: &str = "/var/run/secrets/prometheus";
/// How often it is asked.
const EVERY: Duration = Duration::from_secs(10);
/// How often it is seen whether there is somebody to ask about.
const SOON: Duration = Duration::from_millis(500);
/// How old the last answer may be of whoever goes on by it.
const FRESH: u64 = 60;
/// What is said of an answer is no longer.
const LONGEST: usize = 200;
/// What stands for pods that are not there yet, where only the question itself is looked at.
const NOBODY: &str = "0";

/// Who is asked, and what. The contract's `Outside`, as the job reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outside {
    /// What stands before `/api/v1/query`.
    url: String,
    /// Whether there is a Secret with what it is asked with.
    pub(super) secret: bool,
    queries: Vec<Query>,
}

/// How a Prometheus is asked.
#[async_trait]
pub trait Ask: Sync {
    /// The status and the text that it answers at `URL/api/v1/query`; an error is one that cannot be reached.
    async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String>;
}

/// Asks beside the looks at the pods, which never wait for an answer.
#[derive(Debug)]
pub(super) struct Asking {
    outside: Option<Outside>,
    /// Whom it is about, and since when the rollout goes on; what was answered. Written by who looks, and by who asks.
    answers: Mutex<(Option<(About, u64)>, Answers)>,
}

impl Asking {
    pub(super) fn new(outside: Option<Outside>) -> Self {
        let answers = Answers::of(outside.as_ref());
        Self { outside, answers: Mutex::new((None, answers)) }
    }

    /// From now on it is asked about these pods; what was answered about others says nothing of them.
    pub(super) fn about(&self, about: About, began: u64) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.0.as_ref().is_none_or(|(before, _)| *before != about) {
            *answers = (Some((about, began)), Answers::of(self.outside.as_ref()));
        }
    }

    /// See [`Answers::join`].
    pub(super) fn join(&self, judgement: Judgement, times: (u64, u64), wish: Option<Wish>) -> Judgement {
        match self.outside {
            None => judgement,
            Some(_) => self.answers.lock().unwrap_or_else(PoisonError::into_inner).1.join(judgement, times, wish),
        }
    }

    /// See [`Outside::refused`].
    pub(super) async fn refused(&self, ask: &dyn Ask, namespace: &str) -> Option<Unasked> {
        self.outside.as_ref()?.refused(ask, namespace).await
    }

    /// Asks again and again.
    pub(super) async fn go_on(&self, ask: &dyn Ask) -> Infallible {
        let Some(outside) = &self.outside else { return std::future::pending().await };
        loop {
            let about = self.answers.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
            let Some((about, began)) = about else {
                tokio::time::sleep(SOON).await;
                continue;
            };
            let found = outside.ask(ask, &about).await;
            {
                let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
                if answers.0.as_ref().is_some_and(|(now, _)| *now == about) {
                    answers.1.add(now().saturating_sub(began), found);
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// Whom a question is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct About {
    pub(super) namespace: String,
    /// The labels of the pods of both releases, as far as they are there.
    pub(super) new: Option<String>,
    pub(super) old: Option<String>,
}

/// What came of one question.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    /// A number.
    Value(f64),
    /// No number, for this reason: it says nothing of the release.
    Unknown(String),
    /// The question cannot be asked at all, whatever there is to be known.
    Refused(String),
    /// Nobody answers.
    Unreachable(String),
}

/// Why a question is not answered at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unasked {
    /// Whether it may be answered in a while.
    pub(super) may_pass: bool,
    pub(super) why: String,
}

/// What all answers together come to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Well,
    Waits,
    Bad(String),
}

/// What was answered so far.
#[derive(Debug)]
struct Answers {
    queries: Vec<Query>,
    seen: Vec<Seen>,
}

/// What one question was answered.
#[derive(Debug, Clone, Default)]
struct Seen {
    last: Option<(u64, Found)>,
    /// How many numbers in a row were within the bound, and how many were not.
    within: u32,
    beyond: u32,
}

impl Outside {
    /// What is asked of the release that is to come.
    pub(super) fn of(orders: &Orders) -> Result<Option<Self>, String> {
        let Some(text) = orders.promote["metadata"]["annotations"][QUERIES].as_str() else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|error| format!("its queries cannot be read: {error}"))
    }

    /// The text of the annotation.
    pub(crate) fn written(outside: &component::Outside, secret: bool) -> String {
        json!(Self { url: outside.url.clone(), secret, queries: outside.queries.clone() }).to_string()
    }

    /// Tells the job's pod with what to ask. A program that knows nothing of questions does not take the argument, and no rollout begins.
    pub(super) fn reached(&self, pod: &mut Value) {
        let mut add = |place: &str, what: Value| {
            if let Some(list) = pod.pointer_mut(place).and_then(Value::as_array_mut) {
                list.push(what);
            }
        };
        add("/containers/0/args", json!("--prometheus"));
        add("/containers/0/args", json!(FOLDER));
        if self.secret {
            let mount = json!({ "name": SECRET, "mountPath": FOLDER, "readOnly": true });
            // Without it nobody answers, and the pods are judged all the same.
            let volume =
                json!({ "name": SECRET, "secret": { "secretName": SECRET, "defaultMode": 288, "optional": true } });
            add("/containers/0/volumeMounts", mount);
            add("/volumes", volume);
        }
    }

    /// Asks everything once, before anything has changed: what is wrong with the questions, or with whoever is asked.
    async fn refused(&self, ask: &dyn Ask, namespace: &str) -> Option<Unasked> {
        let nobody = Some(NOBODY.to_owned());
        let about = About { namespace: namespace.to_owned(), new: nobody.clone(), old: nobody };
        let answers = self.queries.iter().zip(self.ask(ask, &about).await);
        let refused = answers.filter_map(|(query, found)| {
            let may_pass = match found {
                Found::Refused(_) => false,
                Found::Unreachable(_) => true,
                Found::Value(_) | Found::Unknown(_) => return None,
            };
            Some(Unasked { may_pass, why: format!("query `{}`: {}", query.name, found.says()) })
        });
        // One that can never be asked is nothing to wait for.
        refused.min_by_key(|unasked| unasked.may_pass)
    }

    /// Every answer, in the order of the questions.
    async fn ask(&self, ask: &dyn Ask, about: &About) -> Vec<Found> {
        let asked = self.queries.iter().map(|query| async move {
            let text = match filled(&query.query, about) {
                Ok(text) => text,
                Err(why) => return Found::Unknown(why),
            };
            match ask.ask(&self.url, &text).await {
                Ok((status, body)) => read(status, &body),
                Err(why) => Found::Unreachable(cut(&why)),
            }
        });
        futures::future::join_all(asked).await
    }
}

impl Answers {
    fn of(outside: Option<&Outside>) -> Self {
        let queries = outside.map(|outside| outside.queries.clone()).unwrap_or_default();
        Self { seen: vec![Seen::default(); queries.len()], queries }
    }

    /// One more answer to each question.
    fn add(&mut self, at: u64, found: Vec<Found>) {
        for ((query, seen), found) in self.queries.iter().zip(&mut self.seen).zip(found) {
            match found {
                Found::Value(value) if !is_well(query, value) => {
                    (seen.within, seen.beyond) = (0, seen.beyond.saturating_add(1));
                }
                Found::Value(value) if value.is_finite() => {
                    (seen.within, seen.beyond) = (seen.within.saturating_add(1), 0);
                }
                // A gap is no reason to go on, and none to forget what was beyond the bound before it.
                _ => seen.within = 0,
            }
            seen.last = Some((at, found));
        }
    }

    /// What becomes of what the pods' own figures come to.
    fn join(&self, judgement: Judgement, (at, deadline): (u64, u64), wish: Option<Wish>) -> Judgement {
        let verdict = self.verdict(at);
        match (judgement, verdict) {
            (Judgement::Revert(why), verdict) if verdict != Verdict::Well && at >= deadline => {
                Judgement::Revert(format!("{why}; {}", self.say(at)))
            }
            (judgement @ (Judgement::Revert(_) | Judgement::Switch(_)), _) => judgement,
            (_, Verdict::Bad(why)) => Judgement::Revert(why),
            (Judgement::Promote(says), Verdict::Waits) if wish == Some(Wish::Promote) => {
                Judgement::Promote(format!("{says}; not waited for: {}", self.say(at)))
            }
            (Judgement::Promote(says), Verdict::Waits) | (Judgement::Wait(says), _) => {
                Judgement::Wait(format!("{says}; {}", self.say(at)))
            }
            (Judgement::Promote(says), Verdict::Well) => Judgement::Promote(format!("{says}; {}", self.say(at))),
        }
    }

    fn verdict(&self, at: u64) -> Verdict {
        let both = || self.queries.iter().zip(&self.seen);
        let beyond = both().find(|(query, seen)| seen.beyond >= query.samples);
        if let Some((query, seen)) = beyond {
            let times = if seen.beyond > 1 { format!(", {} times in a row", seen.beyond) } else { String::new() };
            return Verdict::Bad(format!("{}{times}", seen.says(query, at)));
        }
        let has_enough = |(query, seen): (&Query, &Seen)| seen.within >= query.samples && seen.is_fresh(at);
        if both().all(has_enough) { Verdict::Well } else { Verdict::Waits }
    }

    /// What each of them was answered last.
    fn say(&self, at: u64) -> String {
        let said: Vec<String> = self.queries.iter().zip(&self.seen).map(|(query, seen)| seen.says(query, at)).collect();
        said.join("; ")
    }
}

impl Seen {
    fn says(&self, query: &Query, at: u64) -> String {
        let bound = match (query.at_most, query.at_least) {
            (Some(most), _) => format!("at most {most}"),
            (None, Some(least)) => format!("at least {least}"),
            (None, None) => "no bound".to_owned(),
        };
        let name = &query.name;
        match &self.last {
            None => format!("query `{name}` was not answered yet"),
            Some((_, found @ Found::Value(_))) if self.is_fresh(at) => {
                let counted = match self.within {
                    within if (1..query.samples).contains(&within) => {
                        format!(", {within} of {} in a row", query.samples)
                    }
                    _ => String::new(),
                };
                format!("query `{name}` is {} ({bound}{counted})", found.says())
            }
            Some((when, Found::Value(value))) => {
                format!(
                    "query `{name}` was {value} ({bound}) {} s ago, and not answered since",
                    at.saturating_sub(*when)
                )
            }
            Some((_, found)) => format!("query `{name}` waits: {}", found.says()),
        }
    }

    fn is_fresh(&self, at: u64) -> bool {
        self.last.as_ref().is_some_and(|(when, _)| at.saturating_sub(*when) < FRESH)
    }
}

fn is_well(query: &Query, value: f64) -> bool {
    query.at_most.is_none_or(|most| value <= most) && query.at_least.is_none_or(|least| value >= least)
}

impl Found {
    fn says(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Unknown(why) => why.clone(),
            Self::Refused(why) => format!("it cannot be asked: {why}"),
            Self::Unreachable(why) => format!("Prometheus does not answer: {why}"),
        }
    }
}

/// A question about these pods.
fn filled(query: &str, about: &About) -> Result<String, String> {
    let mut parts = query.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").ok_or("a placeholder is never closed")?;
        let value = match name.trim() {
            "namespace" => Some(&about.namespace),
            "new" => about.new.as_ref(),
            "old" => about.old.as_ref(),
            unknown => return Err(format!("nobody knows what `{}` stands for", cut(unknown))),
        };
        text += value.ok_or_else(|| format!("there are no pods that `{}` stands for", name.trim()))?;
        text += rest;
    }
    Ok(text)
}

/// What Prometheus answered (<https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>).
fn read(status: u16, body: &str) -> Found {
    // What is no JSON at all says as little as what is another one.
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let word = |field: &str| cut(answer[field].as_str().unwrap_or_default());
    match (answer["status"].as_str(), answer["errorType"].as_str()) {
        (Some("success"), _) if status == 200 => partial(&answer).unwrap_or_else(|| result(&answer["data"])),
        (Some("error"), Some("bad_data")) if status == 400 => Found::Refused(word("error")),
        // What was asked could not be counted, with what there is now.
        (Some("error"), Some("execution")) => Found::Unknown(word("error")),
        (Some("error"), _) => Found::Unreachable(format!("status {status}: {}", word("error"))),
        _ => Found::Unreachable(format!("status {status}, and no answer of a Prometheus")),
    }
}

/// An answer of some of those who should have given it, as far as they say so: what is missing may be what is bad.
fn partial(answer: &Value) -> Option<Found> {
    let warnings = answer["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let warned = warnings.into_iter().find(|warning| !warning.starts_with("PromQL info"));
    match warned {
        Some(warning) => Some(Found::Unknown(format!("it is answered with a warning: {}", cut(warning)))),
        // As VictoriaMetrics says it.
        None => (answer["isPartial"] == true).then(|| Found::Unknown("its answer is of some stores alone".to_owned())),
    }
}

fn result(data: &Value) -> Found {
    let sample = match data["resultType"].as_str() {
        Some("scalar") => &data["result"],
        Some("vector") => match data["result"].as_array().map(Vec::as_slice) {
            Some([]) => return Found::Unknown("no data".to_owned()),
            Some([one]) => &one["value"],
            Some(many) => {
                return Found::Refused(format!("{} series, and one number is asked for: `sum(…)`", many.len()));
            }
            None => &Value::Null,
        },
        Some(other) => return Found::Refused(format!("its answer is a {}, and no number of one moment", cut(other))),
        None => &Value::Null,
    };
    match sample[1].as_str().map(str::parse::<f64>) {
        Some(Ok(value)) if value.is_nan() => Found::Unknown("NaN: nothing was divided by nothing".to_owned()),
        Some(Ok(value)) => Found::Value(value),
        _ => Found::Unreachable("no answer of a Prometheus".to_owned()),
    }
}

/// Somebody else's words on one line, and not too many of them.
fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "errors seen by clients";

    fn outside(queries: &[(&str, Option<f64>, Option<f64>, u32)]) -> Outside {
        let query = |&(query, at_most, at_least, samples): &(&str, Option<f64>, Option<f64>, u32)| Query {
            name: NAME.to_owned(),
            query: query.to_owned(),
            at_most,
            at_least,
            samples,
        };
        Outside { url: "http://p".to_owned(), secret: false, queries: queries.iter().map(query).collect() }
    }

    /// One question, whose answers are to be at most 0.01, three times in a row; an answer every ten seconds.
    fn answered(found: &[Found]) -> Answers {
        let mut answers = Answers::of(Some(&outside(&[("q", Some(0.01), None, 3)])));
        for (n, found) in found.iter().enumerate() {
            answers.add(n as u64 * 10, vec![found.clone()]);
        }
        answers
    }

    fn value(value: f64) -> Found {
        Found::Value(value)
    }

    fn no_data() -> Found {
        Found::Unknown("no data".to_owned())
    }

    fn down() -> Found {
        Found::Unreachable("connection refused".to_owned())
    }

    fn promote() -> Judgement {
        Judgement::Promote("well for 300 s".to_owned())
    }

    /// What becomes of a rollout that the pods themselves find well, half a minute after the first answer.
    fn judged(found: &[Found]) -> Judgement {
        answered(found).join(promote(), (30, 1000), None)
    }

    #[test]
    fn what_is_within_its_bound_often_enough_goes_on() {
        let bound = value(0.01);
        let judgement = judged(&[value(0.0), value(0.004), bound.clone()]);
        let Judgement::Promote(says) = judgement else { panic!("{judgement:?}") };
        assert_eq!(says, format!("well for 300 s; query `{NAME}` is 0.01 (at most 0.01)"));
        let Judgement::Wait(says) = judged(&[value(0.0), bound]) else { panic!("two are not three") };
        assert!(says.ends_with("(at most 0.01, 2 of 3 in a row)"), "{says}");
    }

    #[test]
    fn what_is_beyond_its_bound_is_put_back_after_so_many_answers_and_not_by_a_single_one() {
        let (good, bad) = (value(0.0), value(0.5));
        for found in [vec![bad.clone()], vec![bad.clone(), bad.clone()], vec![bad.clone(), good.clone(), bad.clone()]] {
            assert!(matches!(judged(&found), Judgement::Wait(_)), "{found:?}");
        }
        let Judgement::Revert(why) = judged(&[good, bad.clone(), bad.clone(), bad.clone()]) else { panic!() };
        assert_eq!(why, format!("query `{NAME}` is 0.5 (at most 0.01), 3 times in a row"));
        // Nor does a gap hide it.
        let with_gap = [bad.clone(), no_data(), bad.clone(), down(), bad.clone()];
        assert!(matches!(judged(&with_gap), Judgement::Revert(_)));
        // It is said to whoever only waits too, and to whoever wants it to go on.
        for (judgement, wish) in
            [(Judgement::Wait("well for 8 of 300 s".to_owned()), None), (promote(), Some(Wish::Promote))]
        {
            let judgement = answered(&[bad.clone(), bad.clone(), bad.clone()]).join(judgement, (30, 1000), wish);
            assert!(matches!(judgement, Judgement::Revert(_)), "{judgement:?}");
        }
    }

    #[test]
    fn no_answer_is_never_a_good_one() {
        let good = || value(0.0);
        let infinite = || value(f64::NEG_INFINITY);
        for (found, why) in [
            (vec![], "was not answered yet"),
            (vec![no_data(); 9], "waits: no data"),
            (vec![down(); 9], "waits: Prometheus does not answer: connection refused"),
            (vec![good(), good(), good(), no_data()], "waits: no data"),
            (vec![good(), good(), good(), down(), good()], "1 of 3 in a row"),
            (vec![infinite(), infinite(), infinite()], "is -inf"),
        ] {
            let judgement = judged(&found);
            assert!(matches!(&judgement, Judgement::Wait(says) if says.contains(why)), "{found:?}: {judgement:?}");
        }
        // Nor is one of long ago.
        let before = answered(&[good(), good(), good()]);
        assert!(matches!(before.join(promote(), (79, 1000), None), Judgement::Promote(_)));
        let Judgement::Wait(says) = before.join(promote(), (80, 1000), None) else { panic!() };
        assert!(says.ends_with("was 0 (at most 0.01) 60 s ago, and not answered since"), "{says}");
    }

    #[test]
    fn a_person_does_not_wait_for_it_and_the_deadline_says_what_was_waited_for() {
        let waits = answered(&[no_data()]);
        let Judgement::Promote(says) = waits.join(promote(), (30, 1000), Some(Wish::Promote)) else { panic!() };
        assert_eq!(says, format!("well for 300 s; not waited for: query `{NAME}` waits: no data"));
        let over = Judgement::Revert("the deadline of 1000 s is over".to_owned());
        let Judgement::Revert(says) = waits.join(over.clone(), (1000, 1000), None) else { panic!() };
        assert_eq!(says, format!("the deadline of 1000 s is over; query `{NAME}` waits: no data"));
        // What the pods themselves say is said alone.
        assert_eq!(waits.join(over.clone(), (30, 1000), None), over);
        let switch = Judgement::Switch("all are ready".to_owned());
        assert_eq!(waits.join(switch.clone(), (30, 1000), None), switch);
    }

    #[test]
    fn each_of_several_questions_has_to_be_well() {
        let mut both = Answers::of(Some(&outside(&[("a", Some(1.0), None, 1), ("b", None, Some(0.99), 2)])));
        both.add(0, vec![value(0.5), value(1.0)]);
        assert!(matches!(both.join(promote(), (0, 1000), None), Judgement::Wait(_)));
        both.add(10, vec![value(0.5), value(0.995)]);
        assert!(matches!(both.join(promote(), (10, 1000), None), Judgement::Promote(_)));
        both.add(20, vec![value(0.5), value(0.9)]);
        assert!(matches!(both.join(promote(), (20, 1000), None), Judgement::Wait(_)));
        both.add(30, vec![value(2.0), value(1.0)]);
        let Judgement::Revert(why) = both.join(promote(), (30, 1000), None) else { panic!() };
        assert!(why.ends_with("is 2 (at most 1)"), "{why}");
    }

    #[test]
    fn answers_of_prometheus_are_read_for_what_they_are() {
        let vector =
            |samples: &str| format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}}}}"#);
        let sample = |value: &str| format!(r#"{{"metric":{{}},"value":[1700000000.1,"{value}"]}}"#);
        let one = |value: &str| read(200, &vector(&sample(value)));
        assert_eq!((one("0.25"), one("1e-3"), one("+Inf")), (value(0.25), value(0.001), value(f64::INFINITY)));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000,"2"]}}"#;
        assert_eq!(read(200, scalar), value(2.0));
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert_eq!(read(200, matrix), Found::Refused("its answer is a matrix, and no number of one moment".to_owned()));
        for (body, why) in [
            (vector(""), "no data"),
            (vector(&sample("NaN")), "NaN"),
            (r#"{"status":"success","warnings":["store b is not there"],"data":{"resultType":"scalar","result":[1,"0"]}}"#.to_owned(), "store b is not there"),
            (r#"{"status":"success","isPartial":true,"data":{"resultType":"scalar","result":[1,"0"]}}"#.to_owned(), "some stores alone"),
            (r#"{"status":"error","errorType":"execution","error":"many-to-many"}"#.to_owned(), "many-to-many"),
        ] {
            assert!(matches!(read(200, &body), Found::Unknown(says) if says.contains(why)), "{body}");
        }
        let two = read(200, &vector(&format!("{},{}", sample("1"), sample("2"))));
        assert!(matches!(&two, Found::Refused(says) if says.starts_with("2 series")), "{two:?}");
        let told = r#"{"status":"success","warnings":["PromQL info: no counter"],"data":{"resultType":"scalar","result":[1,"0"]}}"#;
        assert_eq!(read(200, told), value(0.0));
        let bad = r#"{"status":"error","errorType":"bad_data","error":"1:5: parse error:\n unexpected end"}"#;
        assert_eq!(read(400, bad), Found::Refused("1:5: parse error: unexpected end".to_owned()));
        // Whoever stands before it speaks otherwise, and not of the question.
        for (status, body) in [
            (401, "Unauthorized"),
            (502, "<html>"),
            (400, "{}"),
            (200, "null"),
            (200, r#"{"status":"success","data":{"resultType":"vector","result":[{"value":[1,2]}]}}"#),
            (503, r#"{"status":"error","errorType":"unavailable","error":"starting"}"#),
            (500, &vector(&sample("0"))),
        ] {
            assert!(matches!(read(status, body), Found::Unreachable(_)), "{status} {body}");
        }
        assert_eq!(cut("a\u{1b}[2J\n b"), "a[2J b");
        assert!(cut(&"ä".repeat(500)).chars().count() == LONGEST + 1);
    }

    #[test]
    fn a_question_is_about_the_pods_of_both_releases() {
        let about = About { namespace: "n".to_owned(), new: Some("1".to_owned()), old: None };
        let query = r#"sum(x{namespace="{{namespace}}",pod=~"api-{{ new }}-.*"})"#;
        assert_eq!(filled(query, &about).unwrap(), r#"sum(x{namespace="n",pod=~"api-1-.*"})"#);
        assert_eq!(filled("{{old}}", &about).unwrap_err(), "there are no pods that `old` stands for");
        assert!(filled("{{other}}", &about).is_err() && filled("{{new", &about).is_err());
    }

    /// Answers each question with its own text.
    struct Says(&'static [(&'static str, u16, &'static str)]);

    #[async_trait]
    impl Ask for Says {
        async fn ask(&self, url: &str, query: &str) -> Result<(u16, String), String> {
            assert_eq!(url, "http://p");
            let said = self.0.iter().find(|(asked, ..)| *asked == query);
            said.map(|(_, status, body)| (*status, (*body).to_owned())).ok_or_else(|| "nobody there".to_owned())
        }
    }

    #[tokio::test]
    async fn what_can_never_be_asked_is_said_before_anything_changes() {
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
        let why = format!("query `{NAME}`: it cannot be asked: parse error");
        assert_eq!(unasked, Unasked { may_pass: false, why }, "rather than what may pass");
        let Some(unasked) = refused(&["down", well]).await else { panic!() };
        assert!(unasked.may_pass && unasked.why.contains("nobody there"), "{unasked:?}");
    }

    #[test]
    fn other_pods_begin_with_no_answers_and_old_answers_are_not_theirs() {
        let asking = Asking::new(Some(outside(&[("{{new}}", Some(1.0), None, 1)])));
        let about = |new: &str| asking.about(About { new: Some(new.to_owned()), ..About::default() }, 1);
        let goes_on = || matches!(asking.join(promote(), (0, 1000), None), Judgement::Promote(_));
        assert!(!goes_on(), "nobody is there to be asked about");
        about("1");
        asking.answers.lock().unwrap().1.add(0, vec![value(0.0)]);
        assert!(goes_on());
        about("1");
        assert!(goes_on(), "they are the same");
        about("2");
        assert!(!goes_on());
        assert_eq!(Asking::new(None).join(promote(), (0, 1000), None), promote(), "nobody is asked");
    }
}
