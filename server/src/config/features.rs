//! `features`: the feature flags of the environment.

use std::collections::BTreeMap;

use textnlp_store::{FeatureValue, MAX_FEATURES, check_feature_name};

use super::Model;
use super::document::Section;
use crate::features::{FeatureError, check};

pub(super) fn features(parent: &Section<'_>, models: &[Model]) -> BTreeMap<String, FeatureValue> {
    let mut features = BTreeMap::new();
    let sections = parent.sections("features");
    if sections.len() > MAX_FEATURES {
        let message = format!("has {} flags; it may have {MAX_FEATURES}", sections.len());
        parent.wrong("features", message, "remove flags that no client reads".to_owned());
        return features;
    }
    for section in sections {
        let Some(name) = section.needed_text("name") else { continue };
        if let Err((message, hint)) = check_feature_name(&name) {
            section.wrong("name", message, hint.to_owned());
        } else if features.contains_key(&name) {
            section.wrong("name", format!("`{name}` is duplicated"), None);
        }
        let all = FeatureValue::off();
        let value = FeatureValue {
            enabled: section.flag("enabled").unwrap_or(true),
            percent: section.integer("percent", 0..=100).map_or(all.percent, |percent| percent as u8),
            tenants: section.texts("tenants").unwrap_or_default().into_iter().collect(),
            model: section.text("model"),
        };
        if let Err(FeatureError::Wrong { field, message, hint }) = check(&name, &value, models) {
            section.wrong(field, message, hint);
        }
        section.finish();
        features.insert(name, value);
    }
    features
}
