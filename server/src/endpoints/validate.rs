//! `/v1/validate`: the similarity of a text to a reference.

use axum::Json;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::http::Call;
use crate::quality::{Bleu, BleuOptions, Rouge, Smoothing, bleu, rouge_l, rouge_n};

const METRICS: &[&str] = &["bleu", "rouge1", "rouge2", "rougeL"];

/// The most references.
const MAX_REFERENCES: usize = 16;

/// ROUGE-L compares every pair of words: this product of lengths takes about 130 ms.
const MAX_PRODUCT: usize = 40_000_000;

pub(super) async fn validate(mut call: Call) -> Result<Json<Value>, ApiError> {
    call.enter("validate").await?;
    let fields = call.fields().await?;
    let references = fields.needed("reference", fields.texts("reference", MAX_REFERENCES)).unwrap_or_default();
    let candidate = fields.needed("candidate", fields.text("candidate").map(str::to_owned)).unwrap_or_default();
    if references.is_empty() && fields.get("reference").is_some_and(Value::is_array) {
        fields.wrong("reference", "is empty", None);
    }
    let mut metrics =
        fields.texts("metrics", METRICS.len()).unwrap_or_else(|| METRICS.iter().map(|m| (*m).to_owned()).collect());
    if metrics.iter().any(|metric| metric == "rouge") {
        metrics.extend(METRICS[1..].iter().map(|m| (*m).to_owned()));
        metrics.retain(|metric| metric != "rouge");
    }
    if let Some(other) = metrics.iter().find(|metric| !METRICS.contains(&metric.as_str())) {
        let shown: String = other.chars().take(64).collect();
        fields.wrong(
            "metrics",
            format!("has the unknown metric `{shown}`"),
            Some("bleu, rouge, rouge1, rouge2, rougeL"),
        );
    }
    let mut smoothing = Smoothing::Exp;
    if let Some(name) = fields.text("smoothing") {
        match name.parse() {
            Ok(named) => smoothing = named,
            Err(()) => fields.wrong("smoothing", "is not a known method", Some(&Smoothing::NAMES.join(", "))),
        }
    }
    if let Some(value) = fields.number("smoothing_value", 0.0..=1000.0) {
        match smoothing.with(value) {
            Some(with) => smoothing = with,
            None => fields.wrong("smoothing_value", "requires the method `floor` or `add-k`", None),
        }
    }
    let options = BleuOptions {
        smoothing,
        lowercase: fields.flag("lowercase").unwrap_or(false),
        effective_order: fields.flag("effective_order").unwrap_or(true),
    };
    fields.finish()?;
    // Held while the texts wait for their turn.
    let _memory = fields.into_memory();
    let cost: usize = references
        .iter()
        .map(|reference| reference.len().saturating_mul(candidate.len()))
        .fold(0, usize::saturating_add);
    if metrics.iter().any(|metric| metric == "rougeL") && cost > MAX_PRODUCT {
        return Err(ApiError::invalid("the texts are too long for ROUGE-L")
            .param("candidate")
            .hint("shorten them, or send `metrics` without `rougeL`: [\"bleu\", \"rouge1\", \"rouge2\"]"));
    }
    // Long texts must not delay other answers.
    let scores = call.app.texts.run(&call.record, move || score(&candidate, &references, &metrics, options)).await?;
    Ok(Json(scores))
}

fn score(candidate: &str, references: &[String], metrics: &[String], options: BleuOptions) -> Value {
    let references: Vec<&str> = references.iter().map(String::as_str).collect();
    let mut scores = Map::new();
    scores.insert("object".into(), json!("validation"));
    for metric in metrics {
        let score = match metric.as_str() {
            "bleu" => shown(&bleu(candidate, &references, options), options),
            "rouge1" => overlap(rouge_n(candidate, &references, 1)),
            "rouge2" => overlap(rouge_n(candidate, &references, 2)),
            _ => overlap(rouge_l(candidate, &references)),
        };
        scores.insert(metric.clone(), score);
    }
    Value::Object(scores)
}

fn shown(bleu: &Bleu, options: BleuOptions) -> Value {
    json!({
        "score": bleu.score,
        "precisions": bleu.precisions,
        "brevity_penalty": bleu.brevity_penalty,
        "candidate_length": bleu.candidate_length,
        "reference_length": bleu.reference_length,
        "smoothing": options.smoothing.name(),
        "lowercase": options.lowercase,
        "effective_order": options.effective_order,
    })
}

fn overlap(rouge: Rouge) -> Value {
    json!({ "precision": rouge.precision, "recall": rouge.recall, "fmeasure": rouge.fmeasure })
}
