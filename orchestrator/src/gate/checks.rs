//! The checks of the external prober.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_provider::Secret;
use textnlp_provider::exposition::{self, Sample};
use tokio_util::sync::CancellationToken;

use super::phases::{CheckDefinition, CheckSource, EMBEDDINGS, GENERATION, Gauge, PhaseDefinition, RATE, SEED, STOP};
use super::{Check, GateInputs, IssuedKey};
use crate::clock::Clock;
use crate::environment::Environment;
use crate::load::{Key, LoadRequest, LoadResponse, RequestFailure, Wire};
use crate::metrics::{GATHERED, KEY_METRICS, MODEL_LOAD_SECONDS, MODEL_QUALITY, WEIGHT};

pub(super) struct Prober<'a> {
    pub(super) wire: &'a dyn Wire,
    pub(super) environment: &'a Environment,
    pub(super) definition: &'static PhaseDefinition,
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
    pub(super) async fn status(&self, check: &CheckDefinition, path: &str) -> Check {
        self.answered(check, LoadRequest::get(path)).await
    }

    /// A generation without a valid key must be rejected with 401.
    pub(super) async fn refused(&self, check: &CheckDefinition, key: Option<&str>) -> Check {
        let mut request = LoadRequest::post("/v1/generate", json!({"prompt": PROMPT, "max_tokens": 1}));
        let header = &self.environment.server.security.api_key_header;
        request.key = key.map(|key| Key { header: header.clone(), value: Secret::new(key) });
        self.answered(check, request).await
    }

    pub(super) async fn accepted(&self, check: &CheckDefinition, key: Option<&Key>) -> Check {
        self.answered(check, LoadRequest { key: key.cloned(), ..LoadRequest::get("/v1/models") }).await
    }

    /// The answer must have the status that the check requires.
    async fn answered(&self, check: &CheckDefinition, request: LoadRequest) -> Check {
        match self.send(request).await {
            Ok(answer) => {
                let ok = check.limit(self.environment) == answer.status;
                check.measured(self.environment, answer.status, ok)
            }
            Err(failure) => check.unknown(self.environment, failure),
        }
    }

    /// Sends more requests than a small rate limit allows: the first succeed, then 429 follows, also where several sites
    /// answer.
    pub(super) async fn limited(&self, check: &CheckDefinition, key: &Key) -> Check {
        let mut accepted = 0;
        for _ in 0..RATE * 2 + 2 {
            match self.send(LoadRequest::get("/v1/models").with(key)).await {
                Ok(answer) if answer.status == 200 => accepted += 1,
                Ok(answer) if answer.status == 429 => {
                    return check.measured(self.environment, accepted, accepted == RATE);
                }
                Ok(answer) => return check.unknown(self.environment, format_args!("status {}", answer.status)),
                Err(failure) => return check.unknown(self.environment, failure),
            }
        }
        check.measured(self.environment, accepted, false).note("nothing was refused")
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

    /// A generation must return text; if the phase has these checks, also the same text for the same seed, and less text
    /// with a stop sequence.
    pub(super) async fn texts(&self, key: Option<&Key>) -> (Vec<Check>, Option<String>) {
        let environment = self.environment;
        let defined = |name: &str| self.definition.check(name);
        let text = match self.text(key, json!({})).await {
            Ok(text) => text,
            Err(why) => {
                let check = defined(GENERATION).map(|check| check.unknown(environment, why));
                return (check.into_iter().collect(), None);
            }
        };
        let characters = text.trim().chars().count();
        let written = defined(GENERATION).map(|check| check.measured(environment, characters, characters >= 1));
        let mut checks: Vec<Check> = written.into_iter().collect();
        if characters == 0 {
            return (checks, Some(text));
        }
        if let Some(check) = defined(SEED) {
            checks.push(match self.text(key, json!({})).await {
                Ok(again) => check.measured(environment, again == text, again == text),
                Err(why) => check.unknown(environment, why),
            });
        }
        if let Some(check) = defined(STOP) {
            checks.push(self.stopped(check, key, &text).await);
        }
        (checks, Some(text))
    }

    async fn stopped(&self, check: &CheckDefinition, key: Option<&Key>, text: &str) -> Check {
        let Some((before, stop)) = stop_in(text) else {
            return check.unknown(self.environment, "the text is too short for a stop sequence");
        };
        match self.text(key, json!({"stop": [stop]})).await {
            Ok(stopped) => {
                let honoured = stopped.trim_end() == before.trim_end();
                check.measured(self.environment, honoured, honoured)
            }
            Err(why) => check.unknown(self.environment, why),
        }
    }
}

/// A model that makes embeddings.
#[derive(Debug, Clone)]
pub(crate) struct EncoderModel {
    pub(crate) name: String,
    /// Requests that name no model get this one.
    pub(crate) is_default: bool,
}

/// The models that make embeddings, as the service lists them; `None` if it lists no models.
pub(crate) async fn encoders(wire: &dyn Wire, key: Option<&Key>) -> Option<Vec<EncoderModel>> {
    let request = LoadRequest { key: key.cloned(), ..LoadRequest::get("/v1/models") };
    let body = wire.send(request).await.ok()?.json()?;
    let models = body["data"].as_array()?.iter().filter(|model| model["kind"] == "embedding");
    let encoders = models.filter_map(|model| {
        let name = model["id"].as_str()?.to_owned();
        Some(EncoderModel { name, is_default: model["default"] == true })
    });
    Some(encoders.collect())
}

impl Prober<'_> {
    /// The encoders of the service; none once the gate was stopped.
    pub(super) async fn encoders(&self, key: Option<&Key>) -> Vec<EncoderModel> {
        if self.stop.is_cancelled() { Vec::new() } else { encoders(self.wire, key).await.unwrap_or_default() }
    }

    /// A model must return the same vector for the same text.
    pub(super) async fn embedding(&self, key: Option<&Key>, model: &str) -> Check {
        let name = EMBEDDINGS.replace("MODEL", model);
        let (first, again) = match (self.vector(key, model).await, self.vector(key, model).await) {
            (Ok(first), Ok(again)) => (first, again),
            (Err(why), _) | (_, Err(why)) => return Check::unmeasured(&name, "a vector", "", why),
        };
        let check = Check::new(&name, first.len(), "at least 1", "numbers", !first.is_empty() && first == again);
        if first == again { check } else { check.note("the same text had another vector") }
    }

    async fn vector(&self, key: Option<&Key>, model: &str) -> Result<Vec<f64>, String> {
        let body = json!({"model": model, "input": PROMPT});
        let request = LoadRequest { key: key.cloned(), ..LoadRequest::post("/v1/embeddings", body) };
        let answer = self.send(request).await.map_err(|failure| failure.to_string())?;
        let body = answer.json().unwrap_or_default();
        if answer.status != 200 {
            let why = body["error"]["message"].as_str().unwrap_or_default();
            return Err(format!("status {} {why}", answer.status).trim_end().to_owned());
        }
        let numbers = body["data"][0]["embedding"].as_array().ok_or("the answer has no `embedding`")?;
        let numbers: Option<Vec<f64>> = numbers.iter().map(Value::as_f64).collect();
        numbers.ok_or_else(|| "the vector has something else than numbers".to_owned())
    }
}

/// A word from the middle of a text, and the text before its first occurrence.
fn stop_in(text: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let word = *words.get(words.len() / 2).filter(|_| words.len() >= 2)?;
    let at = text.find(word).filter(|at| *at > 0)?;
    Some((&text[..at], word))
}

/// What a request of one tenant asks for in the name of the other.
const OF_A_TENANT: [&str; 3] = ["/v1/models", "/v1/usage", "/v1/features"];
const TICKET: &str = "a stream ticket";
/// The most requests of one tenant before its usage is compared: its ticket, those above, and the stream of the ticket.
const REQUESTS: u64 = OF_A_TENANT.len() as u64 + 2;
/// The service records requests after their answers: how often its usage is read, and how long before each time.
const USAGE_READS: u32 = 15;
const USAGE_DELAY: Duration = Duration::from_secs(2);

impl Prober<'_> {
    /// A key must read the data of its own tenant, and of no other one. `generates`: whether a stream ticket can be used.
    pub(super) async fn isolated(
        &self,
        check: &CheckDefinition,
        tenants: &[(String, IssuedKey)],
        generates: bool,
        clock: &dyn Clock,
    ) -> Check {
        match self.shown_to_others(tenants, generates, clock).await {
            Ok(shown) => {
                let measured = check.measured(self.environment, shown.len(), shown.is_empty());
                if shown.is_empty() { measured } else { measured.note(shown.join(", ")) }
            }
            Err(why) => check.unknown(self.environment, why),
        }
    }

    async fn shown_to_others(
        &self,
        tenants: &[(String, IssuedKey)],
        generates: bool,
        clock: &dyn Clock,
    ) -> Result<Vec<String>, String> {
        let (mut tickets, mut shown) = (Vec::new(), Vec::new());
        // What each has: a stream ticket, and a request in its usage.
        for (_, own) in tenants {
            let request = LoadRequest::post("/v1/stream/tickets", json!({})).with(&own.key);
            let issued = self.own(TICKET, request).await?.json().unwrap_or_default();
            let url = issued["url"].as_str().ok_or("the stream ticket has no `url`")?;
            tickets.push(format!("{url}&prompt=a&max_tokens=1"));
        }
        for ((tenant, own), ticket) in tenants.iter().zip(&tickets) {
            let named =
                |path: &'static str| (path, LoadRequest { tenant: Some(tenant.clone()), ..LoadRequest::get(path) });
            let mut is_usable = generates;
            for (other, theirs) in tenants.iter().filter(|(other, _)| other != tenant) {
                for (what, request) in OF_A_TENANT.map(named).into_iter().chain([(TICKET, LoadRequest::get(ticket))]) {
                    match self.send(request.with(&theirs.key)).await.map_err(|failure| failure.to_string())?.status {
                        403 => {}
                        200 => {
                            is_usable &= what != TICKET;
                            shown.push(format!("{what} of {tenant} with a key of {other}"));
                        }
                        status => return Err(format!("status {status} of {what} of {tenant} with a key of {other}")),
                    }
                }
            }
            // The owner gets what others do not: a refusal of every request would prove nothing.
            for (what, request) in OF_A_TENANT.map(named) {
                self.own(what, request.with(&own.key)).await?;
            }
            // This spends the ticket.
            if is_usable {
                self.own(TICKET, LoadRequest::get(ticket).with(&own.key)).await?;
            }
        }
        // Requests that should have been refused are recorded, too.
        let most = REQUESTS + shown.len() as u64;
        for (tenant, own) in tenants {
            let (mut usage, mut requests, mut reads) = (Value::Null, 0, 0);
            for _ in 0..USAGE_READS {
                clock.sleep(USAGE_DELAY).await;
                let request = LoadRequest { tenant: Some(tenant.clone()), ..LoadRequest::get("/v1/usage") };
                usage = self.own("/v1/usage", request.with(&own.key)).await?.json().unwrap_or_default();
                requests = usage["total"]["requests"].as_u64().ok_or("the usage has no `total.requests`")?;
                if requests > 0 {
                    break;
                }
                // What is recorded late stands beside this read.
                reads += 1;
            }
            if usage["tenant"] != **tenant || usage["key"] != *own.public_id || requests > most + reads {
                shown.push(format!("usage of others with a key of {tenant}"));
            } else if requests == 0 {
                return Err(format!("the usage of {tenant} has no request of its key"));
            }
        }
        Ok(shown)
    }

    /// The answer to a tenant's own request, which must succeed. A path may have a ticket: `what` stands for it.
    async fn own(&self, what: &str, request: LoadRequest) -> Result<LoadResponse, String> {
        let answer = self.send(request).await.map_err(|failure| failure.to_string())?;
        match answer.status {
            200 => Ok(answer),
            status => Err(format!("status {status} of {what} with a key of its own tenant")),
        }
    }
}

impl Prober<'_> {
    /// The owner of a model must get a text of it, or a vector of an encoder. Another tenant must get the answer for a model
    /// that does not exist.
    pub(super) async fn custom_model(&self, check: &CheckDefinition, model: &str, owner: &Key, other: &Key) -> Check {
        match self.of_owner_alone(check, model, owner, other).await {
            Ok(check) => check,
            Err(why) => check.unknown(self.environment, why),
        }
    }

    async fn of_owner_alone(
        &self,
        check: &CheckDefinition,
        model: &str,
        owner: &Key,
        other: &Key,
    ) -> Result<Check, String> {
        let failed = |measured: &str, note: String| Ok(check.measured(self.environment, measured, false).note(note));
        let is_encoder = self.encoders(Some(owner)).await.iter().any(|encoder| encoder.name == model);
        let what = if is_encoder { "a vector" } else { "a text" };
        let own = self.computed(model, is_encoder, owner).await?;
        let body = own.json().unwrap_or_default();
        let is_there = match is_encoder {
            true => body["data"][0]["embedding"].as_array().is_some_and(|numbers| !numbers.is_empty()),
            false => body["text"].as_str().is_some_and(|text| !text.trim().is_empty()),
        };
        match own.status {
            200 if is_there => {}
            200 => {
                return failed(if is_encoder { "an empty vector" } else { "an empty text" }, format!("of `{model}`"));
            }
            404 => return failed("not found", format!("`{model}` with a key of its tenant")),
            status => {
                let why = body["error"]["message"].as_str().unwrap_or_default();
                return Err(format!("status {status} of `{model}` {why}").trim_end().to_owned());
            }
        }
        let absent = "0".repeat(model.len());
        let theirs = self.computed(model, is_encoder, other).await?;
        let none = self.computed(&absent, is_encoder, other).await?;
        if none.status != 404 {
            return Err(format!("status {} of a model that does not exist", none.status));
        }
        if theirs.status == 429 || theirs.status >= 500 {
            return Err(format!("status {} of `{model}` with a key of another tenant", theirs.status));
        }
        if theirs.status == 200 {
            return failed(&format!("{what} for another tenant"), format!("of `{model}`"));
        }
        if shown(&theirs, model) != shown(&none, &absent) {
            let note = format!("the answer about `{model}` differs from that about a model that does not exist");
            return failed("shown to another tenant", note);
        }
        Ok(check.measured(self.environment, what, true))
    }

    /// The answer to a generation, or to a request of an encoder. The service may load the model for it.
    async fn computed(&self, model: &str, is_encoder: bool, key: &Key) -> Result<LoadResponse, String> {
        let (path, body) = match is_encoder {
            true => ("/v1/embeddings", json!({"model": model, "input": PROMPT})),
            false => {
                let body = json!({"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0.8, "seed": 7});
                ("/v1/generate", body)
            }
        };
        let timeout = self.environment.server.api.timeout.0;
        let request = LoadRequest { timeout, ..LoadRequest::post(path, body) };
        self.send(request.with(key)).await.map_err(|failure| failure.to_string())
    }
}

/// What an answer says of a name, without the hint, which suggests names with similar letters. Whether the hint has the
/// name.
fn shown(answer: &LoadResponse, name: &str) -> (u16, String, bool) {
    let mut body = answer.json().unwrap_or_default();
    let hint = body.pointer_mut("/error/hint").map(Value::take).unwrap_or_default();
    (answer.status, body.to_string().replace(name, "NAME"), hint.to_string().contains(name))
}

impl Prober<'_> {
    /// A scrape must have a sample of each key metric.
    pub(super) async fn metrics(&self, check: &CheckDefinition, wire: Option<&dyn Wire>) -> Check {
        let environment = self.environment;
        let text = match scrape(wire).await {
            Ok(text) => text,
            Err(why) => return check.unknown(environment, why),
        };
        let found: BTreeSet<&str> = exposition::samples(&text).map(|sample| sample.name).collect();
        let missing: Vec<&str> = KEY_METRICS.into_iter().filter(|name| !found.contains(name)).collect();
        match missing.is_empty() {
            true => check.measured(environment, "exported", true),
            false => check.measured(environment, "missing", false).note(missing.join(", ")),
        }
    }
}

async fn scrape(wire: Option<&dyn Wire>) -> Result<String, String> {
    let wire = wire.ok_or_else(|| "the address of the metrics is unknown".to_owned())?;
    match wire.send(LoadRequest::get("/metrics")).await {
        Ok(answer) if answer.status == 200 => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
        Ok(answer) => Err(format!("status {}", answer.status)),
        Err(failure) => Err(failure.to_string()),
    }
}

/// How long the gate waits for servers that loaded a model and have not measured its text.
const PERPLEXITY_WAIT: Duration = Duration::from_secs(300);
const PERPLEXITY_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the servers have measured the texts that have a limit, before a load test: measurements are work for them.
pub(super) async fn until_texts_are_measured(
    definition: &'static PhaseDefinition,
    environment: &Environment,
    outside: &GateInputs<'_>,
) {
    let is_on = |check: &CheckDefinition| check.source == CheckSource::Perplexity && check.is_on(environment);
    if !definition.checks().any(is_on) {
        return;
    }
    let last = outside.clock.steady() + PERPLEXITY_WAIT;
    while scrape(outside.metrics).await.is_ok_and(|text| is_measuring(environment, &text))
        && outside.clock.steady() < last
        && !outside.stop.is_cancelled()
    {
        outside.clock.sleep(PERPLEXITY_POLL_INTERVAL).await;
    }
}

/// The checks of metrics that are on, by one scrape.
pub(super) async fn gauges(
    definition: &'static PhaseDefinition,
    environment: &Environment,
    outside: &GateInputs<'_>,
) -> Vec<Check> {
    let on = definition.checks().filter(|check| match check.source {
        CheckSource::Gauge(_) | CheckSource::Perplexity => check.is_on(environment),
        _ => false,
    });
    let on: Vec<_> = on.collect();
    if on.is_empty() {
        return Vec::new();
    }
    let text = scrape(outside.metrics).await;
    let measured = on.into_iter().filter_map(|check| match (&text, check.source) {
        (Err(why), _) => Some(check.unknown(environment, why)),
        (Ok(text), CheckSource::Gauge(gauge)) => Some(highest(check, gauge, environment, text)),
        (Ok(text), CheckSource::Perplexity) => Some(perplexities(check, environment, text)),
        _ => None,
    });
    measured.collect()
}

/// The models whose text has a limit, with it.
pub(super) fn perplexity_limits(environment: &Environment) -> impl Iterator<Item = (String, f64)> {
    environment.models.iter().filter_map(|model| Some((model.id(), model.quality.as_ref()?.max_perplexity?)))
}

/// The server of a sample.
fn server_of<'a>(sample: &Sample<'a>) -> &'a str {
    sample.label("replica").unwrap_or("a server")
}

/// The samples of a metric of a model.
fn of_model<'a>(text: &'a str, metric: &str, model: &str) -> Vec<Sample<'a>> {
    exposition::samples(text).filter(|sample| sample.name == metric && sample.label("model") == Some(model)).collect()
}

/// The first server that loaded a model and has not measured its text.
fn measuring<'a>(text: &'a str, model: &str) -> Option<Sample<'a>> {
    let [loaded, measured] = [MODEL_LOAD_SECONDS, MODEL_QUALITY].map(|metric| of_model(text, metric, model));
    let server = |sample: &Sample<'a>| ["site", "replica", "pod"].map(|label| sample.label(label));
    let same = |samples: &[Sample<'a>], one: &Sample<'a>| {
        samples.iter().filter(|sample| server(sample) == server(one)).count()
    };
    loaded.iter().find(|one| same(&measured, one) < same(&loaded, one)).copied()
}

fn is_measuring(environment: &Environment, text: &str) -> bool {
    perplexity_limits(environment).any(|(model, _)| measuring(text, &model).is_some())
}

/// The highest perplexity of each model that has a limit. A server that measured nothing may have a higher one.
fn perplexities(check: &CheckDefinition, environment: &Environment, text: &str) -> Check {
    if let Some(unread) = unread(text) {
        return check.unknown(environment, format_args!("the metrics of {unread} could not be read"));
    }
    let (mut found, mut are_met) = (Vec::new(), true);
    for (model, limit) in perplexity_limits(environment) {
        if let Some(server) = measuring(text, &model) {
            let why = format!("{} has not measured `{model}` yet", server_of(&server));
            return check.waiting(environment, why);
        }
        let measured = of_model(text, MODEL_QUALITY, &model);
        if let Some(none) = measured.iter().find(|sample| !sample.value.is_finite()) {
            let why = format!("{} cannot measure the text of `{model}`: see its log", server_of(none));
            return check.unknown(environment, why);
        }
        let Some(most) = measured.iter().max_by(|a, b| a.value.total_cmp(&b.value)) else {
            return check.unknown(environment, format_args!("no server has loaded `{model}`"));
        };
        are_met &= most.value <= limit;
        // Rounded up: what is shown is not below the limit while the value is above it.
        found.push(format!("{model} {}", (most.value * 1000.0).ceil() / 1000.0));
    }
    check.measured(environment, found.join(", "), are_met)
}

/// A server or a site whose metrics could not be read.
fn unread(text: &str) -> Option<String> {
    let is_server = |name: &str| {
        exposition::samples(text).any(|sample| sample.name == WEIGHT && sample.label("replica") == Some(name))
    };
    exposition::samples(text).filter(|sample| sample.name == GATHERED && sample.value == 0.0).find_map(|sample| {
        let site = sample.label("site").map(|site| format!("site {site}"));
        site.or_else(|| sample.label("replica").filter(|replica| is_server(replica)).map(str::to_owned))
    })
}

/// The highest value of a metric, of all servers: one that could not be read may have a higher one.
fn highest(check: &CheckDefinition, gauge: Gauge, environment: &Environment, text: &str) -> Check {
    if let Some(unread) = unread(text) {
        return check.unknown(environment, format_args!("the metrics of {unread} could not be read"));
    }
    let samples: Vec<Sample<'_>> = exposition::samples(text).filter(|sample| sample.name == gauge.metric).collect();
    // A server that cannot measure it exports 0.
    if let Some(none) = samples.iter().find(|sample| !(sample.value.is_finite() && sample.value > 0.0)) {
        let server = none.label("replica").unwrap_or("a server");
        return check.unknown(environment, format_args!("{server} exports no value of `{}`", gauge.metric));
    }
    let Some(most) = samples.iter().max_by(|a, b| a.value.total_cmp(&b.value)) else {
        return check.unknown(environment, format_args!("no server exports a value of `{}`", gauge.metric));
    };
    let value = most.value / gauge.unit as f64;
    let is_met = check.limit(environment).as_f64().is_some_and(|limit| value <= limit);
    // Rounded up: what is shown is not below the limit while the value is above it.
    let check = check.measured(environment, (value * 1000.0).ceil() / 1000.0, is_met);
    let source = ["model", "replica"].map(|label| most.label(label).map(|value| format!("{label} {value}")));
    let source: Vec<String> = source.into_iter().flatten().collect();
    match source.is_empty() {
        true => check,
        false => check.note(source.join(", ")),
    }
}
