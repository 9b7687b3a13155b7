//! Feature flags: their values, and the changes that operators made to those of the environment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::audit::AuditEvent;
use super::scope::Job;
use super::{Store, StoreError};

/// The flag that gives a share of the keys another model.
pub const NEW_MODEL: &str = "new_model";

/// Changed flags that are stored.
pub const MAX_FEATURES: usize = 100;

/// Tenants of one flag.
pub const MAX_FEATURE_TENANTS: usize = 50;

/// Names that mean a part of the service which no flag turns on or off, and why.
const RESERVED: [(&str, &str); 4] = [
    ("analytics", "usage analytics has settings instead: `server.analytics`"),
    ("custom_models", "models of one tenant have a setting instead: `models[].tenant` of the environment"),
    ("sso", "single sign-on has settings instead: `server.security.oidc`"),
    ("tenants", "tenants are always isolated"),
];

/// Checks the name of a flag. The error is what is wrong with it, and a hint.
pub fn check_feature_name(name: &str) -> Result<(), (String, &'static str)> {
    if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
        return Err((format!("cannot be `{name}`: {why}"), "use another name for a flag of your own"));
    }
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(("is not the name of a feature flag".to_owned(), "1 to 64 of a-z, 0-9 and _"))
}

/// The value of a flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureValue {
    /// Whether it is on for anyone.
    pub enabled: bool,
    /// The share of keys that have it, from 0 to 100.
    pub percent: u8,
    /// The tenants that may have it; empty for all.
    pub tenants: BTreeSet<String>,
    /// The model of [`NEW_MODEL`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl FeatureValue {
    /// Off, and for all keys of all tenants once it is on.
    pub fn off() -> Self {
        Self { enabled: false, percent: 100, tenants: BTreeSet::new(), model: None }
    }

    /// Whether a key of a tenant has the flag of this name. A key keeps it while the share grows. Two flags with the
    /// same share have different keys.
    pub fn is_on(&self, name: &str, tenant: &str, key: &str) -> bool {
        self.enabled && (self.tenants.is_empty() || self.tenants.contains(tenant)) && place(name, key) < self.percent
    }
}

/// The place of a key among the keys that may have a flag, from 0 to 99.
fn place(name: &str, key: &str) -> u8 {
    let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(key).finalize();
    let first = digest.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    (first % 100) as u8
}

/// The change of a flag by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureChange {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: FeatureValue,
    /// The value of the environment that this one replaced.
    pub replaces: Option<FeatureValue>,
    /// Milliseconds since 1970.
    pub changed_at: i64,
    /// The operator or the key.
    pub changed_by: String,
}

impl FeatureChange {
    /// Whether it is in effect beside the values of the environment.
    pub fn is_in_effect(&self, environment: &BTreeMap<String, FeatureValue>) -> bool {
        environment.get(&self.name) == self.replaces.as_ref()
    }
}

/// More than [`MAX_FEATURES`] changed flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyFeatures;

/// The lock for changes of flags.
const WRITES: &str = "feature flags";

const COLUMNS: &str =
    "SELECT name, enabled, percent, tenants, model, replaces, changed_at, changed_by FROM feature_flags";

impl Store {
    /// The changed flags by name.
    pub async fn feature_changes(&self) -> Result<Vec<FeatureChange>, StoreError> {
        let query = sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY name"));
        let rows = self.ask(sqlx::query(query).fetch_all(&self.reads)).await?;
        rows.iter().map(read).collect()
    }

    /// Stores a change and its event. Replicated changes of another site have no event. Idempotent.
    pub async fn put_feature(
        &self,
        change: &FeatureChange,
        event: Option<&AuditEvent>,
    ) -> Result<Result<(), TooManyFeatures>, StoreError> {
        let mut transaction = self.write_all(WRITES, Job::Features).await?;
        let others = sqlx::query("SELECT count(*) FROM feature_flags WHERE name <> $1").bind(&change.name);
        let others: i64 = self.ask(others.fetch_one(&mut *transaction)).await?.try_get(0)?;
        if others >= MAX_FEATURES as i64 {
            return Ok(Err(TooManyFeatures));
        }
        let query = sqlx::query(
            "INSERT INTO feature_flags (name, enabled, percent, tenants, model, replaces, changed_at, changed_by) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name) DO UPDATE SET enabled = $2, percent = $3, \
             tenants = $4, model = $5, replaces = $6, changed_at = $7, changed_by = $8",
        )
        .bind(&change.name)
        .bind(i64::from(change.value.enabled))
        .bind(i64::from(change.value.percent))
        .bind(serde_json::json!(change.value.tenants).to_string())
        .bind(&change.value.model)
        .bind(change.replaces.as_ref().map(|value| serde_json::json!(value).to_string()))
        .bind(change.changed_at)
        .bind(&change.changed_by);
        self.ask(query.execute(&mut *transaction)).await?;
        if let Some(event) = event {
            self.record(&mut transaction, event).await?;
        }
        self.commit(transaction).await.map(Ok)
    }

    /// Removes the change of a flag, and records its event if there was one; returns whether there was.
    pub async fn drop_feature(&self, name: &str, event: Option<&AuditEvent>) -> Result<bool, StoreError> {
        let mut transaction = self.write_all(WRITES, Job::Features).await?;
        let query = sqlx::query("DELETE FROM feature_flags WHERE name = $1 RETURNING name").bind(name);
        let dropped = self.ask(query.fetch_optional(&mut *transaction)).await?.is_some();
        if let (true, Some(event)) = (dropped, event) {
            self.record(&mut transaction, event).await?;
        }
        self.commit(transaction).await.map(|()| dropped)
    }
}

fn read(row: &AnyRow) -> Result<FeatureChange, StoreError> {
    let unreadable = |error: serde_json::Error| StoreError::Schema(format!("table feature_flags: {error}"));
    let (tenants, replaces): (String, Option<String>) = (row.try_get("tenants")?, row.try_get("replaces")?);
    Ok(FeatureChange {
        name: row.try_get("name")?,
        value: FeatureValue {
            enabled: row.try_get::<i64, _>("enabled")? != 0,
            percent: row.try_get::<i64, _>("percent")?.clamp(0, 100) as u8,
            tenants: serde_json::from_str(&tenants).map_err(unreadable)?,
            model: row.try_get("model")?,
        },
        replaces: replaces.map(|text| serde_json::from_str(&text)).transpose().map_err(unreadable)?,
        changed_at: row.try_get("changed_at")?,
        changed_by: row.try_get("changed_by")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::audit::{Action, Actor, AuditPage};
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(changed_flags_are_stored_recorded_and_bounded,);

    fn change(name: &str, percent: u8) -> FeatureChange {
        let tenants = ["acme".to_owned(), "globex".to_owned()].into();
        FeatureChange {
            name: name.to_owned(),
            value: FeatureValue { enabled: true, percent, tenants, model: Some("large".to_owned()) },
            replaces: Some(FeatureValue::off()),
            changed_at: 7,
            changed_by: "key 0123".to_owned(),
        }
    }

    async fn changed_flags_are_stored_recorded_and_bounded(bench: Bench) {
        let store = bench.store().await;
        let event = || AuditEvent::new(&Actor::Server, Action::FeatureSet).object("beta");
        assert_eq!(store.put_feature(&change("beta", 10), Some(&event())).await.unwrap(), Ok(()));
        let again = FeatureChange { replaces: None, ..change("beta", 20) };
        assert_eq!(store.put_feature(&again, Some(&event())).await.unwrap(), Ok(()));
        assert_eq!(
            bench.open().await.feature_changes().await.unwrap(),
            std::slice::from_ref(&again),
            "another replica reads it"
        );
        for number in 1..MAX_FEATURES {
            assert_eq!(store.put_feature(&change(&format!("f{number}"), 1), None).await.unwrap(), Ok(()));
        }
        assert_eq!(store.put_feature(&change("last", 1), Some(&event())).await.unwrap(), Err(TooManyFeatures));
        assert_eq!(store.put_feature(&again, None).await.unwrap(), Ok(()), "a flag that is there can be changed");
        let dropped = || AuditEvent::new(&Actor::Server, Action::FeatureClear).object("beta");
        assert!(store.drop_feature("beta", Some(&dropped())).await.unwrap());
        assert!(!store.drop_feature("beta", Some(&dropped())).await.unwrap());
        assert_eq!(store.put_feature(&change("last", 1), None).await.unwrap(), Ok(()));
        let page = AuditPage { after: 0, since_ms: 0, limit: 1000 };
        let rows = store.audit_page(page).await.unwrap();
        let of = |action: &str| rows.iter().filter(|row| row.action == action).count();
        assert_eq!((of("feature.set"), of("feature.clear")), (2, 1), "only what changed is recorded");
    }

    #[test]
    fn share_of_keys_is_close_to_its_percentage_and_only_grows() {
        let keys: Vec<String> = (0..10_000).map(|number| format!("{number:016x}")).collect();
        let of = |name: &str, percent: u8| -> BTreeSet<&String> {
            let value = FeatureValue { enabled: true, percent, ..FeatureValue::off() };
            keys.iter().filter(|key| value.is_on(name, "default", key)).collect()
        };
        assert_eq!((of("a", 0).len(), of("a", 100).len()), (0, keys.len()));
        let (ten, twenty) = (of("a", 10), of("a", 20));
        assert!((800..1200).contains(&ten.len()), "{}", ten.len());
        assert!(ten.is_subset(&twenty) && twenty.len() > ten.len());
        let both = ten.intersection(&of("b", 10)).count();
        assert!(both < ten.len() / 2, "{both} keys have both flags");
    }

    #[test]
    fn flag_is_on_only_for_its_tenants_and_only_while_it_is_enabled() {
        let value = FeatureValue { percent: 100, ..change("a", 100).value };
        assert!(value.is_on("a", "acme", "key") && !value.is_on("a", "initech", "key"));
        assert!(!FeatureValue { enabled: false, ..value }.is_on("a", "acme", "key"));
    }

    #[test]
    fn change_is_in_effect_until_the_environment_has_another_value() {
        let change = change("beta", 10);
        let with = |value: Option<FeatureValue>| value.map(|value| ("beta".to_owned(), value)).into_iter().collect();
        assert!(change.is_in_effect(&with(Some(FeatureValue::off()))));
        assert!(!change.is_in_effect(&with(Some(FeatureValue { enabled: true, ..FeatureValue::off() }))));
        assert!(!change.is_in_effect(&with(None)));
        assert!(FeatureChange { replaces: None, ..change }.is_in_effect(&with(None)));
    }

    #[test]
    fn names_without_effect_and_names_that_no_flag_can_have_are_refused() {
        assert_eq!((check_feature_name("new_model"), check_feature_name(&"a".repeat(64))), (Ok(()), Ok(())));
        for name in ["", "A", "a-b", "a b", "ä", "../a", &"a".repeat(65)] {
            assert!(check_feature_name(name).is_err(), "{name}");
        }
        for (name, why) in RESERVED {
            assert!(check_feature_name(name).unwrap_err().0.contains(why));
        }
    }
}
