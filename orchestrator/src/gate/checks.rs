//! The checks of the external prober.

use serde_json::{Value, json};
use textnlp_provider::Secret;
use tokio_util::sync::CancellationToken;

use super::Check;
use crate::load::{Key, LoadRequest, LoadResponse, RequestFailure, Wire};

pub(super) struct Prober<'a> {
    pub(super) wire: &'a dyn Wire,
    pub(super) header: &'a str,
    pub(super) stop: &'a CancellationToken,
}

const PROMPT: &str = "Once upon a time, a small fox lived near the river.";

impl Prober<'_> {
    async fn send(&self, request: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        if self.stop.is_cancelled() {
            return Err(RequestFailure::Broken("stopped".to_owned()));
        }
        self.wire.send(request).await
    }

    /// A path must answer with a status.
    pub(super) async fn status(&self, name: &str, path: &str, wanted: u16) -> Check {
        match self.send(LoadRequest::get(path)).await {
            Ok(answer) => Check::new(name, answer.status, wanted, "status", answer.status == wanted),
            Err(failure) => Check::unmeasured(name, wanted, "status", failure),
        }
    }

    /// A generation without a valid key must be rejected with 401.
    pub(super) async fn refused(&self, name: &str, key: Option<&str>) -> Check {
        let mut request = LoadRequest::post("/v1/generate", json!({"prompt": PROMPT, "max_tokens": 1}));
        request.key = key.map(|key| Key { header: self.header.to_owned(), value: Secret::new(key) });
        match self.send(request).await {
            Ok(answer) => Check::new(name, answer.status, 401, "status", answer.status == 401),
            Err(failure) => Check::unmeasured(name, 401, "status", failure),
        }
    }

    pub(super) async fn accepted(&self, key: &Key) -> Check {
        match self.send(LoadRequest::get("/v1/models").with(key)).await {
            Ok(answer) => Check::new("accepted with a key", answer.status, 200, "status", answer.status == 200),
            Err(failure) => Check::unmeasured("accepted with a key", 200, "status", failure),
        }
    }

    /// Sends more requests than a small rate limit allows: the first succeed, then 429 follows, also where several sites
    /// answer.
    pub(super) async fn limited(&self, key: &Key, limit: u64) -> Check {
        let name = "rate limit limits";
        let mut accepted = 0;
        for _ in 0..limit * 2 + 2 {
            match self.send(LoadRequest::get("/v1/models").with(key)).await {
                Ok(answer) if answer.status == 200 => accepted += 1,
                Ok(answer) if answer.status == 429 => {
                    return Check::new(name, accepted, limit, "accepted", accepted == limit);
                }
                Ok(answer) => return Check::unmeasured(name, limit, "accepted", format!("status {}", answer.status)),
                Err(failure) => return Check::unmeasured(name, limit, "accepted", failure),
            }
        }
        Check::new(name, accepted, limit, "accepted", false).note("nothing was refused")
    }

    async fn text(&self, key: Option<&Key>, more: Value) -> Result<String, String> {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 48, "temperature": 0.8, "seed": 7});
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        let mut request = LoadRequest::post("/v1/generate", body);
        request.key = key.cloned();
        let answer = self.send(request).await.map_err(|f| f.to_string())?;
        if answer.status != 200 {
            let body = answer.json().unwrap_or_default();
            let why = body["error"]["message"].as_str().unwrap_or_default();
            return Err(format!("status {} {why}", answer.status).trim_end().to_owned());
        }
        let body = answer.json().ok_or("the answer is not JSON")?;
        body["text"].as_str().map(str::to_owned).ok_or_else(|| "the answer has no `text`".to_owned())
    }

    /// A generation must return text.
    pub(super) async fn one_generation(&self, key: Option<&Key>) -> (Vec<Check>, Option<String>) {
        match self.text(key, json!({})).await {
            Ok(text) => (vec![written(&text)], Some(text)),
            Err(why) => (vec![Check::unmeasured("generation", "a text", "", why)], None),
        }
    }

    /// A generation must return text, the same text for the same seed, and less text with a stop sequence.
    pub(super) async fn sense(&self, key: &Key) -> (Vec<Check>, Option<String>) {
        let (mut checks, sample) = self.one_generation(Some(key)).await;
        let Some(text) = sample.clone().filter(|text| !text.trim().is_empty()) else { return (checks, sample) };
        let same = "same seed, same text";
        checks.push(match self.text(Some(key), json!({})).await {
            Ok(again) => Check::new(same, again == text, true, "", again == text),
            Err(why) => Check::unmeasured(same, true, "", why),
        });
        let name = "stops where asked";
        let Some((before, stop)) = stop_in(&text) else {
            checks.push(Check::unmeasured(name, true, "", "the text is too short for a stop sequence"));
            return (checks, sample);
        };
        checks.push(match self.text(Some(key), json!({"stop": [stop]})).await {
            Ok(stopped) => {
                let honoured = stopped.trim_end() == before.trim_end();
                Check::new(name, honoured, true, "", honoured)
            }
            Err(why) => Check::unmeasured(name, true, "", why),
        });
        (checks, sample)
    }
}

fn written(text: &str) -> Check {
    let characters = text.trim().chars().count();
    Check::new("generation", characters, "at least 1", "characters", characters >= 1)
}

/// A word from the middle of a text, and the text before its first occurrence.
fn stop_in(text: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let word = *words.get(words.len() / 2).filter(|_| words.len() >= 2)?;
    let at = text.find(word).filter(|at| *at > 0)?;
    Some((&text[..at], word))
}

/// The name of the metrics check.
pub(super) const METRICS: &str = "metrics";

/// The metrics that dashboards and alerts need must exist.
pub(super) async fn metrics(wire: Option<&dyn Wire>) -> Check {
    const WANTED: &str = "textnlp_tokens_generated_total";
    let name = METRICS;
    let Some(wire) = wire else {
        return Check::unmeasured(name, "exported", "", "the address of the metrics is unknown");
    };
    match wire.send(LoadRequest::get("/metrics")).await {
        Ok(answer) if answer.status == 200 => {
            let there = String::from_utf8_lossy(&answer.body).contains(WANTED);
            Check::new(name, if there { "exported" } else { "missing" }, "exported", "", there)
        }
        Ok(answer) => Check::unmeasured(name, "exported", "", format!("status {}", answer.status)),
        Err(failure) => Check::unmeasured(name, "exported", "", failure),
    }
}
