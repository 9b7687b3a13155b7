//! `/v1/models` and `/v1/models/{id}`: OpenAI's format with additional fields.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::config::{Model, Weights};
use crate::error::ApiError;
use crate::http::Call;
use crate::models::{Kind, ModelState};

/// All models that the caller may use.
pub(super) async fn list(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("models").await?;
    let models = call.app.models.list(&caller.tenant);
    let models: Vec<Value> = models.iter().map(|(model, standing)| describe(&call, &caller, model, standing)).collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

/// One model.
pub(super) async fn one(id: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("models").await?;
    let Path(id) = id.map_err(|_| ApiError::invalid("the path is not UTF-8").param("id"))?;
    match call.app.models.find(&caller.tenant, &id) {
        Some((model, standing)) => Ok(Json(describe(&call, &caller, &model, &standing))),
        None => Err(call.app.models.unknown(&caller.tenant, &id)),
    }
}

fn describe(call: &Call, caller: &Caller, model: &Model, standing: &ModelState) -> Value {
    let mut shown = json!({
        "id": model.name,
        "object": "model",
        "created": call.app.models.created(),
        "owned_by": model.tenant.as_deref().unwrap_or("textnlp"),
        "kind": call.app.models.kind(&caller.tenant, &model.name).map(Kind::name),
        "default": model.name == call.app.models.default_name(),
        "state": match standing {
            ModelState::Idle => "not loaded",
            ModelState::Loading(_) => "loading",
            ModelState::Ready(_) => "ready",
            ModelState::Failed(_) => "failed",
        },
        "quantize": model.quantize.map(|weights| match weights {
            Weights::F32 => "f32",
            Weights::F16 => "f16",
            Weights::Q8_0 => "q8_0",
            Weights::Q4_0 => "q4_0",
        }),
    });
    if let ModelState::Failed(why) = standing {
        shown["reason"] = json!(why);
    }
    if let ModelState::Ready(ready) = standing {
        let shape = &ready.info.shape;
        shown["details"] = json!({
            "family": shape.family,
            "parameters": ready.parameters,
            "layers": shape.layers,
            "width": shape.width,
            "heads": shape.heads,
            "vocabulary": shape.vocab,
            "context": ready.info.context,
            "chat": ready.chat.is_some(),
            "memory_bytes": { "weights": ready.info.memory.weights, "kv": ready.info.memory.kv },
            "load_ms": ready.load_ms,
            "notes": ready.notes,
        });
        if let Some(embedder) = &ready.embedder {
            shown["details"]["embeddings"] = embedder.describe();
        }
    }
    shown
}
