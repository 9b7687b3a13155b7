//! Control data by key: the entries of the table, and their conversion to database rows.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use textnlp_store::{ApiKey, FeatureChange};

/// API keys: `key/PUBLIC_ID`.
pub(crate) const KEY: &str = "key/";
/// Changed feature flags: `feature/NAME`.
pub(crate) const FEATURE: &str = "feature/";
/// Public halves of signing keys: `verifier/SITE`, and with an end `verifier/SITE/KID`.
pub(crate) const VERIFIER: &str = "verifier/";

/// An API key in the table: everything but the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeyRow {
    sha256: String,
    tenant: String,
    name: String,
    scopes: Vec<String>,
    rate_limit: Option<String>,
    token_rate_limit: Option<String>,
    token_limit: Option<u64>,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
}

/// The table key and the value of an API key.
pub(crate) fn of_key(key: &ApiKey) -> (String, Value) {
    let row = KeyRow {
        sha256: key.sha256.clone(),
        tenant: key.tenant.clone(),
        name: key.name.clone(),
        scopes: key.scopes.clone(),
        rate_limit: key.rate_limit.map(|rate| rate.to_string()),
        token_rate_limit: key.token_rate_limit.map(|rate| rate.to_string()),
        token_limit: key.token_limit,
        created_at: key.created_at,
        expires_at: key.expires_at,
        revoked_at: key.revoked_at,
    };
    (format!("{KEY}{}", key.public_id), json!(row))
}

/// The API key of an entry. The error is a sentence.
pub(crate) fn to_key(public_id: &str, value: &Value) -> Result<ApiKey, String> {
    let row: KeyRow = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    let rate = |text: Option<String>| text.map(|text| text.parse()).transpose();
    Ok(ApiKey {
        public_id: public_id.to_owned(),
        sha256: row.sha256,
        tenant: row.tenant,
        name: row.name,
        scopes: row.scopes,
        rate_limit: rate(row.rate_limit)?,
        token_rate_limit: rate(row.token_rate_limit)?,
        token_limit: row.token_limit,
        created_at: row.created_at,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    })
}

/// The table key and the value of a changed feature flag.
pub(crate) fn of_feature(change: &FeatureChange) -> (String, Value) {
    (format!("{FEATURE}{}", change.name), json!(change))
}

/// The changed feature flag of an entry. The error is a sentence.
pub(crate) fn to_feature(name: &str, value: &Value) -> Result<FeatureChange, String> {
    let change: FeatureChange = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    if change.name == name && change.value.percent <= 100 {
        return Ok(change);
    }
    Err("its name or its percentage is wrong".to_owned())
}

#[cfg(test)]
mod tests {
    use textnlp_store::FeatureValue;

    use super::*;

    #[test]
    fn api_key_row_round_trips() {
        let key = ApiKey {
            public_id: "0123456789abcdef".into(),
            sha256: "0".repeat(64),
            tenant: "default".into(),
            name: "test".into(),
            scopes: vec!["*".into()],
            rate_limit: Some("5/minute".parse().unwrap()),
            token_rate_limit: None,
            token_limit: Some(9),
            created_at: 1,
            expires_at: None,
            revoked_at: Some(7),
        };
        let (name, value) = of_key(&key);
        assert_eq!(to_key(name.strip_prefix(KEY).unwrap(), &value).unwrap(), key);
        assert!(to_key("x", &json!({ "sha256": 3 })).is_err());
    }

    #[test]
    fn changed_feature_flag_round_trips() {
        let off = FeatureValue::off();
        let value = FeatureValue { percent: 5, model: Some("large".into()), ..off.clone() };
        let (name, replaces) = ("new_model".to_owned(), Some(off));
        let change = FeatureChange { name, value, replaces, changed_at: 3, changed_by: "operator ada".into() };
        let (name, mut value) = of_feature(&change);
        assert_eq!(to_feature(name.strip_prefix(FEATURE).unwrap(), &value).unwrap(), change);
        assert!(to_feature("other", &value).is_err());
        value["value"]["percent"] = json!(101);
        assert!(to_feature("new_model", &value).is_err());
    }
}
