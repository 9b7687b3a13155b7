//! Mixes of requests: what clients request, by weight.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::json;

use super::histogram::Histogram;
use super::{Key, Load, LoadRequest, PROMPTS, Percentiles, Random};

/// The mixes that have a name.
const NAMED: [(&str, &str); 2] = [
    ("generate-validate", "1:generate:100,1:validate"),
    ("short-long", "3:generate:50:gpt2,1:generate:500:gpt2-large"),
];
/// The mix of `load` without another one.
const DEFAULT: &str = "9:generate:50-100,1:validate";
const MOST_KINDS: usize = 20;
const MOST_TOKENS: u32 = 100_000;

/// Kinds of requests with their weights: `3:generate:50:gpt2,1:generate:500:gpt2-large`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix(Vec<RequestKind>);

#[derive(Debug, Clone, PartialEq)]
struct RequestKind {
    weight: f64,
    action: Action,
    /// The fewest and the most tokens of an answer.
    tokens: (u32, u32),
    /// The model; by default the server's.
    model: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Generate,
    Embed,
    Validate,
}

impl Action {
    /// What the model of its requests does, as `kind` in `GET /v1/models`; `None` if they need no model.
    fn model_kind(self) -> Option<&'static str> {
        match self {
            Action::Generate => Some("generation"),
            Action::Embed => Some("embedding"),
            Action::Validate => None,
        }
    }
}

/// A model of a service, as `GET /v1/models` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// What it does: `generation` or `embedding`; `None` if the service does not know it.
    pub kind: Option<String>,
    /// Whether requests that name no model get it.
    pub is_default: bool,
}

impl ServedModel {
    fn does(&self, needed: &str) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == needed)
    }
}

/// Why a service cannot answer requests of a mix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// `unknown_model` or `unsupported_model`.
    pub code: &'static str,
    /// The reason, to follow the address of the service.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

/// The measurements of one kind of a mix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KindResult {
    /// The kind: `3:generate:50:gpt2`.
    pub kind: String,
    /// Finished requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// The latency after the ramp-up.
    pub latency: Percentiles,
}

impl Mix {
    /// The requests of a load without a mix of its own.
    pub(super) fn of(load: &Load) -> Self {
        let tokens = (load.tokens_min, load.tokens_max);
        let action = if load.embeds { Action::Embed } else { Action::Generate };
        let validate =
            RequestKind { weight: load.validate_share, action: Action::Validate, tokens: (0, 0), model: None };
        let other = RequestKind { weight: 1.0 - load.validate_share, action, tokens, model: load.model.clone() };
        Self(vec![validate, other])
    }

    /// Whether a service with these models cannot answer some of the requests.
    pub fn unserved(&self, served: &[ServedModel]) -> Option<Unserved> {
        let (code, reason) = self.0.iter().find_map(|kind| kind.unserved(served))?;
        let replaced: Result<Vec<RequestKind>, Action> = self.0.iter().map(|kind| kind.for_service(served)).collect();
        let hint = match replaced {
            Ok(kinds) => format!("for models of the service: --mix {}", Self(kinds)),
            Err(Action::Embed) => {
                "add a model for embeddings to `models` of the environment, or leave `embed` out of --mix".to_owned()
            }
            Err(_) => "name requests that its models answer: --mix 1:embed".to_owned(),
        };
        Some(Unserved { code, reason, hint })
    }

    /// Draws a request. Returns it with the number of its kind.
    pub(super) fn request(&self, random: &mut Random, key: Option<&Key>, timeout: Duration) -> (LoadRequest, usize) {
        let opening = PROMPTS[random.below(PROMPTS.len() as u64) as usize];
        let number = self.pick(random.share());
        let kind = &self.0[number];
        let (path, mut body) = match kind.action {
            Action::Generate => {
                let (least, most) = kind.tokens;
                let tokens = u64::from(least) + random.below(u64::from(most.saturating_sub(least)) + 1);
                let body = json!({
                    "prompt": opening, "max_tokens": tokens, "temperature": 0.8, "seed": random.next() >> 33,
                    // Every response has the requested length: a model that stops early must not look fast.
                    "ignore_end": true,
                });
                ("/v1/generate", body)
            }
            Action::Embed => ("/v1/embeddings", json!({"input": opening})),
            Action::Validate => {
                let other = PROMPTS[random.below(PROMPTS.len() as u64) as usize];
                ("/v1/validate", json!({"reference": opening, "candidate": other}))
            }
        };
        if let Some(model) = &kind.model {
            body["model"] = json!(model);
        }
        (LoadRequest { key: key.cloned(), timeout, ..LoadRequest::post(path, body) }, number)
    }

    /// The kind at this share of the weights, from 0 to 1.
    fn pick(&self, share: f64) -> usize {
        let mut left = share * self.0.iter().map(|kind| kind.weight).sum::<f64>();
        for (number, kind) in self.0.iter().enumerate() {
            if left < kind.weight {
                return number;
            }
            left -= kind.weight;
        }
        self.0.len() - 1
    }

    /// Whether a request of this kind generates a text or a vector.
    pub(super) fn generates(&self, kind: usize) -> bool {
        self.0[kind].action != Action::Validate
    }
}

impl RequestKind {
    /// The code and the reason, if a service with these models cannot answer it.
    fn unserved(&self, served: &[ServedModel]) -> Option<(&'static str, String)> {
        let needed = self.action.model_kind()?;
        let names = || served.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = match &self.model {
            Some(name) => served.iter().find(|model| model.name == *name),
            // A service that marks no default decides itself.
            None => Some(served.iter().find(|model| model.is_default)?),
        };
        let Some(model) = found else {
            let name = self.model.as_deref().unwrap_or_default();
            return Some(("unknown_model", format!("has no model `{name}`; it has {}", names())));
        };
        if model.does(needed) {
            return None;
        }
        let name = &model.name;
        let is_default = if self.model.is_none() { "the default model " } else { "" };
        let others = served.iter().any(|model| model.does(needed));
        let reason = match (self.action, others) {
            (Action::Embed, false) => "has no model that makes embeddings".to_owned(),
            (Action::Embed, true) => format!("makes no embeddings by {is_default}`{name}`, which generates text"),
            (_, false) => "has no model that generates text".to_owned(),
            (_, true) => format!("generates no text by {is_default}`{name}`, which makes embeddings"),
        };
        Some(("unsupported_model", reason))
    }

    /// The same request of a model that the service has. The action, if it has none for it.
    fn for_service(&self, served: &[ServedModel]) -> Result<Self, Action> {
        if self.unserved(served).is_none() {
            return Ok(self.clone());
        }
        let of_default = Self { model: None, ..self.clone() };
        if of_default.unserved(served).is_none() {
            return Ok(of_default);
        }
        let needed = self.action.model_kind().unwrap_or_default();
        let other = served.iter().find(|model| model.kind.as_deref() == Some(needed)).ok_or(self.action)?;
        Ok(Self { model: Some(other.name.clone()), ..self.clone() })
    }
}

impl Default for Mix {
    fn default() -> Self {
        DEFAULT.parse().expect("the built-in mix is valid")
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = NAMED.iter().find(|(name, _)| *name == text).map_or(text, |(_, kinds)| *kinds);
        let kinds = text.split(',').map(str::parse).collect::<Result<Vec<RequestKind>, String>>()?;
        match kinds.len() {
            ..=MOST_KINDS => Ok(Self(kinds)),
            count => Err(format!("it has {count} kinds of requests; the most are {MOST_KINDS}")),
        }
    }
}

impl FromStr for RequestKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let names = NAMED.map(|(name, _)| format!("`{name}`")).join(" nor ");
            format!(
                "`{text}` is neither {names} nor `WEIGHT:generate:TOKENS[:MODEL]`, `WEIGHT:embed[:MODEL]` or `WEIGHT:validate`"
            )
        };
        let (weight, rest) = text.split_once(':').ok_or_else(wrong)?;
        let weight: u16 = weight.parse().ok().filter(|weight| *weight > 0).ok_or_else(wrong)?;
        let (action, rest) = rest.split_once(':').map_or((rest, None), |(action, rest)| (action, Some(rest)));
        let (action, tokens, model) = match (action, rest) {
            ("validate", None) => (Action::Validate, None, None),
            ("embed", model) => (Action::Embed, None, model),
            ("generate", Some(rest)) => {
                let (tokens, model) =
                    rest.split_once(':').map_or((rest, None), |(tokens, model)| (tokens, Some(model)));
                (Action::Generate, Some(tokens), model)
            }
            _ => return Err(wrong()),
        };
        if model.is_some_and(|model| model.trim().is_empty()) {
            return Err(wrong());
        }
        let tokens = match tokens {
            None => (0, 0),
            Some(tokens) => {
                let (least, most) = tokens.split_once('-').unwrap_or((tokens, tokens));
                let count = |text: &str| text.parse::<u32>().ok().filter(|count| (1..=MOST_TOKENS).contains(count));
                count(least).zip(count(most)).filter(|(least, most)| least <= most).ok_or_else(|| {
                    format!("`{tokens}` is no count of tokens from 1 to {MOST_TOKENS}, such as `50` or `50-100`")
                })?
            }
        };
        Ok(Self { weight: f64::from(weight), action, tokens, model: model.map(str::to_owned) })
    }
}

/// As it is parsed.
impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, kind) in self.0.iter().enumerate() {
            write!(f, "{}{kind}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weight, action, tokens: (least, most), model } = self;
        match action {
            Action::Generate if least == most => write!(f, "{weight}:generate:{least}")?,
            Action::Generate => write!(f, "{weight}:generate:{least}-{most}")?,
            Action::Embed => write!(f, "{weight}:embed")?,
            Action::Validate => write!(f, "{weight}:validate")?,
        }
        model.iter().try_for_each(|model| write!(f, ":{model}"))
    }
}

impl Serialize for Mix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The requests of one kind.
pub(super) struct KindTally {
    kind: String,
    requests: u64,
    errors: u64,
    latency: Histogram,
}

impl KindTally {
    pub(super) fn all(mix: &Mix) -> Vec<Self> {
        let of =
            |kind: &RequestKind| Self { kind: kind.to_string(), requests: 0, errors: 0, latency: Histogram::default() };
        mix.0.iter().map(of).collect()
    }

    /// A finished request, with its latency if that counts.
    pub(super) fn add(&mut self, failed: bool, latency: Option<Duration>) {
        self.requests += 1;
        self.errors += u64::from(failed);
        if let Some(latency) = latency {
            self.latency.add(latency);
        }
    }

    pub(super) fn finish(self) -> KindResult {
        let Self { kind, requests, errors, latency } = self;
        KindResult { kind, requests, errors, latency: latency.percentiles() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_parsed_by_name_and_by_their_kinds() {
        let shown = |text: &str| text.parse::<Mix>().map(|mix| mix.to_string());
        for (name, kinds) in NAMED {
            assert_eq!(shown(name), Ok(kinds.to_owned()));
        }
        for same in ["9:generate:50-100,1:validate", "1:embed", "2:embed:bge-small,1:generate:8:org/model:4bit"] {
            assert_eq!(shown(same), Ok(same.to_owned()));
        }
        assert_eq!(Mix::default().to_string(), DEFAULT);
        for wrong in [
            "",
            "long",
            "0:validate",
            "1:chat",
            "1:generate",
            "1:generate:0",
            "1:generate:9-3",
            "1:embed:",
            "1:validate:x",
        ] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
        assert!(shown(&["1:validate"; MOST_KINDS + 1].join(",")).is_err());
    }

    #[test]
    fn mix_that_a_service_cannot_answer_is_refused_with_one_that_it_can() {
        let model = |name: &str, kind: Option<&str>, is_default: bool| ServedModel {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            is_default,
        };
        let (tiny, vectors) = (model("tiny", Some("generation"), true), model("bge", Some("embedding"), false));
        let refused = |mix: &str, served: &[ServedModel]| {
            let unserved = mix.parse::<Mix>().unwrap().unserved(served).expect("it is refused");
            (unserved.code, unserved.reason, unserved.hint)
        };
        let none = std::slice::from_ref(&tiny);
        for mix in ["1:embed", "9:generate:5,1:embed"] {
            let (code, reason, hint) = refused(mix, none);
            assert_eq!((code, reason.as_str()), ("unsupported_model", "has no model that makes embeddings"));
            assert!(hint.contains("add a model for embeddings"), "{hint}");
        }
        let both = [tiny.clone(), vectors.clone()];
        let (_, reason, hint) = refused("1:embed,1:validate", &both);
        assert!(
            reason.contains("the default model `tiny`") && hint.ends_with("--mix 1:embed:bge,1:validate"),
            "{hint}"
        );
        let (code, _, hint) = refused("1:generate:5:bge", &both);
        assert_eq!(code, "unsupported_model");
        assert!(hint.ends_with("--mix 1:generate:5"), "{hint}");
        let (code, reason, hint) = refused("short-long", none);
        assert_eq!((code, reason.as_str()), ("unknown_model", "has no model `gpt2`; it has tiny"));
        assert!(hint.ends_with("--mix 3:generate:50,1:generate:500"), "{hint}");
        let (_, reason, _) = refused("1:generate:5", &[ServedModel { is_default: true, ..vectors }]);
        assert_eq!(reason, "has no model that generates text");
        let unknown = [tiny, model("later", None, false)];
        for fine in ["1:embed:bge,1:generate:5", "1:validate"] {
            assert_eq!(fine.parse::<Mix>().unwrap().unserved(&both), None, "{fine}");
        }
        assert_eq!("1:embed:later".parse::<Mix>().unwrap().unserved(&unknown), None, "its kind is not known yet");
    }

    #[test]
    fn requests_have_the_shares_of_the_mix() {
        let mix: Mix = "short-long".parse().unwrap();
        let mut short = 0;
        for number in 0..4000 {
            let (request, kind) = mix.request(&mut Random::new(1, number), None, Duration::from_secs(1));
            let body = request.body.unwrap();
            let expected = if kind == 0 { (50, "gpt2") } else { (500, "gpt2-large") };
            assert_eq!((body["max_tokens"].as_u64(), body["model"].as_str()), (Some(expected.0), Some(expected.1)));
            short += u64::from(kind == 0);
        }
        assert!((2900..3100).contains(&short), "{short}");
    }
}
