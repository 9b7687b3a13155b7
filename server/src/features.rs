//! Feature flags: the values of the environment, and the changes that operators made to them.
//!
//! A change is stored with the value of the environment that it replaced, and is in effect as long as the environment
//! has that value. So replicas with the old and with the new environment follow their own file, in any order of starts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_inference::format::is_encoder;
use textnlp_net::retry::retry;
use textnlp_sites::control::features as replicated;
use textnlp_sites::control::keys::ControlDataError;
use textnlp_store::{
    Action, Actor, AuditEvent, FeatureChange, FeatureValue, MAX_FEATURE_TENANTS, MAX_FEATURES, NEW_MODEL, Origin,
    RETRIES, Store, StoreError, TooManyFeatures, check_feature_name, now_ms,
};
use tokio_util::sync::CancellationToken;

use crate::admin::keys::elsewhere;
use crate::app::App;
use crate::auth::{Caller, tenant};
use crate::config::{Config, Model, nearest};

/// How often the changed flags are read: a change is in effect at each replica within 5 seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The value of a flag, and its change if the environment has another value or none.
#[derive(Debug, Clone, PartialEq)]
struct Flag {
    value: FeatureValue,
    change: Option<FeatureChange>,
}

/// All flags at one time.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Flags {
    flags: BTreeMap<String, Flag>,
    /// Stored changes of values that the environment no longer has.
    replaced: Vec<String>,
}

impl Flags {
    fn new(environment: &BTreeMap<String, FeatureValue>, changes: Vec<FeatureChange>) -> Self {
        let of_environment =
            |(name, value): (&String, &FeatureValue)| (name.clone(), Flag { value: value.clone(), change: None });
        let (mut flags, mut replaced): (BTreeMap<_, _>, _) =
            (environment.iter().map(of_environment).collect(), Vec::new());
        for change in changes {
            if change.is_in_effect(environment) {
                flags.insert(change.name.clone(), Flag { value: change.value.clone(), change: Some(change) });
            } else {
                replaced.push(change.name);
            }
        }
        Self { flags, replaced }
    }

    /// The names of the flags that a caller has.
    pub(crate) fn of(&self, caller: &Caller) -> Vec<&str> {
        let on = self.flags.iter().filter(|(name, flag)| flag.value.is_on(name, &caller.tenant, &caller.user));
        on.map(|(name, _)| name.as_str()).collect()
    }

    /// The model of [`NEW_MODEL`], if a caller is in its share.
    pub(crate) fn new_model(&self, caller: &Caller) -> Option<&str> {
        let flag = self.flags.get(NEW_MODEL)?;
        let is_on = flag.value.is_on(NEW_MODEL, &caller.tenant, &caller.user);
        flag.value.model.as_deref().filter(|_| is_on)
    }

    /// One flag as JSON; null if there is none of this name.
    pub(crate) fn one(&self, name: &str) -> Value {
        self.flags.get(name).map_or(Value::Null, |flag| {
            let FeatureValue { enabled, percent, tenants, model } = &flag.value;
            let change = flag.change.as_ref();
            json!({
                "feature": name,
                "enabled": enabled,
                "percent": percent,
                "tenants": tenants,
                "model": model,
                "source": if change.is_some() { "operator" } else { "environment" },
                "changed_at": change.map(|change| change.changed_at / 1000),
                "changed_by": change.map(|change| &change.changed_by),
            })
        })
    }

    /// All flags as JSON.
    pub(crate) fn all(&self) -> Value {
        let all: Vec<Value> = self.flags.keys().map(|name| self.one(name)).collect();
        json!({ "object": "list", "data": all, "replaced": self.replaced })
    }
}

/// The flags of a replica.
#[derive(Debug)]
pub(crate) struct Features {
    current: Mutex<Arc<Flags>>,
    /// Held while they are read: what an earlier read gives must not replace what a later one gave.
    reading: tokio::sync::Mutex<()>,
}

impl Features {
    /// The flags as they were read at the start.
    pub(crate) fn new(flags: Flags) -> Self {
        Self { current: Mutex::new(Arc::new(flags)), reading: tokio::sync::Mutex::default() }
    }

    /// The flags as they were read last.
    pub(crate) fn current(&self) -> Arc<Flags> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the flags. If that fails, the last ones stay in effect.
    pub(crate) async fn refresh(&self, config: &Config, store: &Store) {
        let _reading = self.reading.lock().await;
        match read(config, store).await {
            Ok(flags) => *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(flags),
            Err(error) => {
                tracing::debug!(error = %textnlp_net::error_chain(&error), "the feature flags could not be read");
            }
        }
    }
}

/// Reads the flags again and again until the server stops.
pub(crate) async fn keep(app: &App, stop: &CancellationToken) {
    let poll = async {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            app.features.refresh(&app.config, &app.store).await;
        }
    };
    // A database that does not answer must not delay the drain.
    stop.run_until_cancelled(poll).await;
}

/// The flags as they are stored.
pub(crate) async fn read(config: &Config, store: &Store) -> Result<Flags, StoreError> {
    Ok(Flags::new(&config.features, store.feature_changes().await?))
}

/// Why a flag was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeatureError {
    /// A field of the request is wrong.
    #[error("{message}")]
    Wrong { field: &'static str, message: String, hint: String },
    /// There is no flag of this name.
    #[error("there is no feature flag `{0}`")]
    Unknown(String),
    /// The database.
    #[error("store the feature flag")]
    Store(#[from] StoreError),
    /// The site agent refused or failed.
    #[error(transparent)]
    ControlData(#[from] ControlDataError),
}

fn wrong(field: &'static str, message: impl Into<String>, hint: impl Into<String>) -> FeatureError {
    FeatureError::Wrong { field, message: message.into(), hint: hint.into() }
}

impl From<TooManyFeatures> for FeatureError {
    fn from(_: TooManyFeatures) -> Self {
        let message = format!("would be one more changed flag than the limit of {MAX_FEATURES}");
        wrong("feature", message, "clear changes that are no longer needed, also the ones in `replaced` of the list")
    }
}

/// The author of a change, and the request with which it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Author<'a> {
    pub(crate) by: &'a Actor,
    pub(crate) origin: Option<Origin<'a>>,
}

impl Author<'_> {
    fn event(self, action: Action, name: &str, from: Option<&FeatureValue>, to: Option<&FeatureValue>) -> AuditEvent {
        let event = AuditEvent::new(self.by, action).object(name).detail(json!({ "from": from, "to": to }));
        match self.origin {
            Some(origin) => event.origin(origin),
            None => event,
        }
    }
}

/// What an operator wants of a flag. What is left out stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) enabled: bool,
    pub(crate) percent: Option<u8>,
    pub(crate) tenants: Option<BTreeSet<String>>,
    pub(crate) model: Option<String>,
}

/// Changes a flag; returns all flags after it.
pub(crate) async fn set(
    config: &Config,
    store: &Store,
    wanted: Wanted,
    author: Author<'_>,
) -> Result<Flags, FeatureError> {
    check_feature_name(&wanted.name).map_err(|(message, hint)| wrong("feature", message, hint))?;
    let changes = store.feature_changes().await?;
    let others = changes.iter().filter(|change| change.name != wanted.name).count();
    let there = Flags::new(&config.features, changes);
    let old = there.flags.get(&wanted.name).map(|flag| &flag.value);
    let now = old.cloned().unwrap_or_else(FeatureValue::off);
    let value = FeatureValue {
        enabled: wanted.enabled,
        percent: wanted.percent.unwrap_or(now.percent),
        tenants: wanted.tenants.unwrap_or(now.tenants),
        model: wanted.model.or(now.model),
    };
    check(&wanted.name, &value, &config.models.serve)?;
    if old == Some(&value) {
        return Ok(there);
    }
    if others >= MAX_FEATURES {
        return Err(TooManyFeatures.into());
    }
    let event = author.event(Action::FeatureSet, &wanted.name, old, Some(&value));
    let replaces = config.features.get(&wanted.name).cloned();
    let changed_by = author.by.describe();
    let change = FeatureChange { name: wanted.name, value, replaces, changed_at: now_ms(), changed_by };
    match &config.watch {
        Some(watch) => {
            elsewhere::<_, FeatureError>(store, event, replicated::put(watch, &change)).await?;
        }
        None => {
            let put = || store.put_feature(&change, Some(&event));
            retry(RETRIES, StoreError::may_be_repeated, put).await??;
        }
    }
    Ok(read(config, store).await?)
}

/// Removes the change of a flag, which has the value of the environment again, if any; returns all flags after it.
pub(crate) async fn clear(
    config: &Config,
    store: &Store,
    name: &str,
    author: Author<'_>,
) -> Result<Flags, FeatureError> {
    let changes = store.feature_changes().await?;
    let is_changed = changes.iter().any(|change| change.name == name);
    let there = Flags::new(&config.features, changes);
    let old = there.flags.get(name).map(|flag| &flag.value);
    match (is_changed, old) {
        (true, _) => {}
        (false, Some(_)) => return Ok(there),
        (false, None) => return Err(FeatureError::Unknown(name.chars().take(64).collect())),
    }
    let event = author.event(Action::FeatureClear, name, old, config.features.get(name));
    match &config.watch {
        Some(watch) => {
            elsewhere::<_, FeatureError>(store, event, replicated::remove(watch, name)).await?;
        }
        None => {
            retry(RETRIES, StoreError::may_be_repeated, || store.drop_feature(name, Some(&event))).await?;
        }
    }
    Ok(read(config, store).await?)
}

/// Checks the value of a flag, of the environment or of an operator.
pub(crate) fn check(name: &str, value: &FeatureValue, models: &[Model]) -> Result<(), FeatureError> {
    if value.percent > 100 {
        return Err(wrong(
            "percent",
            format!("is {}; it must be from 0 to 100", value.percent),
            "write 100 for all keys",
        ));
    }
    if value.tenants.len() > MAX_FEATURE_TENANTS {
        let message = format!("has {} tenants; it may have {MAX_FEATURE_TENANTS}", value.tenants.len());
        return Err(wrong("tenants", message, "leave it empty for all tenants"));
    }
    if let Some(tenant) = value.tenants.iter().find(|tenant| !tenant::is_tenant_id(tenant)) {
        let shown: String = tenant.chars().take(64).collect();
        return Err(wrong(
            "tenants",
            format!("has `{shown}`, which is not a tenant id"),
            "1 to 40 of a-z, 0-9, - and _",
        ));
    }
    match &value.model {
        Some(_) if name != NEW_MODEL => {
            Err(wrong("model", "has no effect with this flag", format!("only `{NEW_MODEL}` has a model")))
        }
        // A flag whose model is gone can still be turned off.
        Some(model) if value.enabled => check_model(model, models),
        None if name == NEW_MODEL && value.enabled => {
            Err(wrong("model", "is missing", "name the model that requests of this share get"))
        }
        _ => Ok(()),
    }
}

fn check_model(name: &str, models: &[Model]) -> Result<(), FeatureError> {
    // Requests of all tenants get it.
    let shared = || models.iter().filter(|model| model.tenant.is_none());
    let names: Vec<&str> = shared().map(|model| model.name.as_str()).collect();
    let shown: String = name.chars().take(128).collect();
    let Some(model) = shared().find(|model| model.name == name) else {
        let hint = match nearest(&shown, &names) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("this server has: {}", names.join(", ")),
        };
        return Err(wrong("model", format!("names `{shown}`, which the server does not serve"), hint));
    };
    if is_encoder(Path::new(model.path.as_str())) == Some(true) {
        return Err(wrong(
            "model",
            format!("names `{shown}`, which generates no text"),
            "name a model for text generation",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(enabled: bool, percent: u8) -> FeatureValue {
        FeatureValue { enabled, percent, ..FeatureValue::off() }
    }

    fn change(name: &str, value: FeatureValue, replaces: Option<FeatureValue>) -> FeatureChange {
        let changed_by = "key 0123456789abcdef".to_owned();
        FeatureChange { name: name.to_owned(), value, replaces, changed_at: 7000, changed_by }
    }

    fn environment(value: FeatureValue) -> BTreeMap<String, FeatureValue> {
        [("beta".to_owned(), value)].into()
    }

    #[test]
    fn change_wins_until_the_environment_has_another_value() {
        let changes = || vec![change("beta", value(true, 10), Some(value(false, 100)))];
        let flags = Flags::new(&environment(value(false, 100)), changes());
        assert_eq!((&flags.one("beta")["percent"], &flags.one("beta")["changed_at"]), (&json!(10), &json!(7)));
        let flags = Flags::new(&environment(value(false, 50)), changes());
        assert_eq!((&flags.one("beta")["percent"], &flags.one("beta")["source"]), (&json!(50), &json!("environment")));
        assert_eq!(flags.all()["replaced"], json!(["beta"]));
        let flags = Flags::new(&BTreeMap::new(), changes());
        assert_eq!((flags.one("beta"), &flags.all()["replaced"]), (Value::Null, &json!(["beta"])));
    }

    #[test]
    fn only_a_new_model_has_a_model_and_only_one_that_is_served() {
        let large = Model {
            name: "large".into(),
            tenant: None,
            path: "/nowhere".into(),
            quantize: None,
            context: None,
            executor: None,
            matryoshka: false,
            parse_special_tokens: false,
            quality_text: None,
        };
        let owned = Model { name: "acme/own".into(), tenant: Some("acme".into()), ..large.clone() };
        let models = [large, owned];
        let with = |name: &str, enabled: bool, model: Option<&str>| {
            let value = FeatureValue { model: model.map(str::to_owned), ..value(enabled, 100) };
            check(name, &value, &models).map_err(|error| error.to_string())
        };
        assert_eq!((with(NEW_MODEL, true, Some("large")), with(NEW_MODEL, false, None)), (Ok(()), Ok(())));
        assert_eq!(with(NEW_MODEL, false, Some("gone")), Ok(()), "what has gone can be turned off");
        for (name, enabled, model) in
            [(NEW_MODEL, true, None), (NEW_MODEL, true, Some("larg")), ("beta", true, Some("large"))]
        {
            assert!(with(name, enabled, model).is_err(), "{name} {enabled} {model:?}");
        }
        // An administrator of any tenant may ask: a tenant's model is one that is not there.
        let hint = |model: &str| {
            let value = FeatureValue { model: Some(model.to_owned()), ..value(true, 100) };
            match check(NEW_MODEL, &value, &models) {
                Err(FeatureError::Wrong { message, hint, .. }) => (message.replace(model, "M"), hint),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(hint("acme/own"), hint("acme/0wn"));
        assert_eq!(hint("acme/own").1, "this server has: large");
    }
}
