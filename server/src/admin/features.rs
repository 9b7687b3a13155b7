//! `admin features`: feature flags by JSON, for the operator's commands: a command on standard input, an answer on
//! standard output.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_store::{Actor, Store};

use super::keys::{KeysError, operator};
use crate::config::Config;
use crate::features::{self, Author, FeatureError, Wanted};

/// A command and the operator who runs it.
#[derive(Debug, Deserialize)]
struct Command {
    #[serde(flatten)]
    action: FlagAction,
    operator: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum FlagAction {
    List,
    Set {
        feature: String,
        enabled: bool,
        percent: Option<u8>,
        tenants: Option<BTreeSet<String>>,
        model: Option<String>,
    },
    Clear {
        feature: String,
    },
}

/// The fields of commands: serde does not refuse others beside flattened ones.
const FIELDS: [&str; 7] = ["do", "feature", "enabled", "percent", "tenants", "model", "operator"];

/// Answers a `list` with all flags, a `set` with the flag after it, and a `clear` also with whether there was such a
/// flag.
pub async fn features(config: &Config, command: &str) -> Result<Value, KeysError> {
    let wrong = |message: String| KeysError::Command {
        message,
        hint: Some(r#"{"do": "set", "feature": "new_model", "enabled": false, "operator": "NAME"}"#.to_owned()),
    };
    let command: Value =
        serde_json::from_str(command).map_err(|error| wrong(format!("the command is not valid JSON: {error}")))?;
    let fields = command.as_object().ok_or_else(|| wrong("the command is not a JSON object".to_owned()))?;
    if let Some(other) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(wrong(format!("`{other}` is not a known field")));
    }
    let command: Command =
        serde_json::from_value(command).map_err(|error| wrong(format!("the command cannot be read: {error}")))?;
    let by = operator(command.operator.as_deref())?;
    let store = Store::open_existing(&config.database).await?;
    let answer = answer(config, &store, command.action, &by).await;
    store.close().await;
    answer
}

async fn answer(config: &Config, store: &Store, action: FlagAction, by: &Actor) -> Result<Value, KeysError> {
    store.prepare().await?;
    let author = Author { by, origin: None };
    match action {
        FlagAction::List => Ok(features::read(config, store).await?.all()),
        FlagAction::Set { feature: name, enabled, percent, tenants, model } => {
            let wanted = Wanted { name: name.clone(), enabled, percent, tenants, model };
            Ok(features::set(config, store, wanted, author).await?.one(&name))
        }
        FlagAction::Clear { feature } => {
            match features::clear(config, store, &feature, author).await {
                Ok(flags) => Ok(json!({ "feature": feature, "cleared": true, "flag": flags.one(&feature) })),
                // Of several sites, another one may have it.
                Err(FeatureError::Unknown(_)) => Ok(json!({ "feature": feature, "cleared": false, "flag": null })),
                Err(error) => Err(error.into()),
            }
        }
    }
}

impl From<FeatureError> for KeysError {
    fn from(error: FeatureError) -> Self {
        match error {
            FeatureError::Wrong { field, message, hint } => {
                Self::Command { message: format!("`{field}` {message}"), hint: Some(hint) }
            }
            FeatureError::Unknown(_) => Self::Command {
                message: error.to_string(),
                hint: Some("`textnlp-deploy feature list` shows them".to_owned()),
            },
            FeatureError::Store(error) => Self::Store(error),
            FeatureError::ControlData(error) => Self::Watch(error),
        }
    }
}
