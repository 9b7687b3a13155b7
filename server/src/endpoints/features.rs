//! Feature flags: `GET /v1/features` for clients, `/admin/features` for operators.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use serde_json::{Value, json};
use textnlp_store::{Actor, MAX_FEATURE_TENANTS};

use crate::auth::{ADMIN, Caller};
use crate::error::ApiError;
use crate::features::{self, Author, FeatureError, Wanted};
use crate::http::Call;

/// The flags that the caller has. The names of others may be secrets of other tenants.
pub(super) async fn own(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter_any().await?;
    let flags = call.app.features.current();
    Ok(Json(json!({ "object": "features", "tenant": caller.tenant, "enabled": flags.of(&caller) })))
}

/// All flags.
pub(super) async fn list(call: Call) -> Result<Json<Value>, ApiError> {
    call.enter(ADMIN).await?;
    Ok(Json(features::read(&call.app.config, &call.app.store).await?.all()))
}

/// Changes a flag.
pub(super) async fn set(mut call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter(ADMIN).await?;
    let fields = call.fields().await?;
    let name = fields.needed("feature", fields.text("feature").map(str::to_owned)).unwrap_or_default();
    let enabled = fields.needed("enabled", fields.flag("enabled")).unwrap_or_default();
    let percent = fields.integer("percent", 0..=100).map(|percent| percent as u8);
    let tenants = fields.texts("tenants", MAX_FEATURE_TENANTS).map(|tenants| tenants.into_iter().collect());
    let model = fields.text("model").map(str::to_owned);
    fields.finish()?;
    let wanted = Wanted { name: name.clone(), enabled, percent, tenants, model };
    let app = &call.app;
    let author = Author { by: &actor(&caller), origin: Some(call.origin()) };
    let flags = features::set(&app.config, &app.store, wanted, author).await?;
    app.features.refresh(&app.config, &app.store).await;
    Ok(Json(flags.one(&name)))
}

/// Removes the change of a flag.
pub(super) async fn clear(name: Result<Path<String>, PathRejection>, call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter(ADMIN).await?;
    let Path(name) = name.map_err(|_| ApiError::invalid("the path is not UTF-8").param("name"))?;
    let app = &call.app;
    let author = Author { by: &actor(&caller), origin: Some(call.origin()) };
    let flags = features::clear(&app.config, &app.store, &name, author).await?;
    app.features.refresh(&app.config, &app.store).await;
    Ok(Json(json!({ "feature": name, "flag": flags.one(&name) })))
}

fn actor(caller: &Caller) -> Actor {
    Actor::Key(caller.user.clone())
}

impl From<FeatureError> for ApiError {
    fn from(error: FeatureError) -> Self {
        match error {
            FeatureError::Wrong { field, message, hint } => {
                Self::invalid(format!("`{field}` {message}")).param(field).hint(hint)
            }
            FeatureError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "feature_not_found", error.to_string())
                .param("name")
                .hint("GET /admin/features lists the flags"),
            FeatureError::Store(error) => error.into(),
            FeatureError::ControlData(error) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage_unavailable", error.message)
                    .hint(error.hint.unwrap_or_else(|| "try again in a moment".to_owned()))
                    .retry_after(std::time::Duration::from_secs(2))
            }
        }
    }
}
