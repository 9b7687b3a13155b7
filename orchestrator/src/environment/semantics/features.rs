//! Checks of feature flags.

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::Checker;
use super::serving::is_tenant_id;

/// The flag that gives a share of the keys another model.
const NEW_MODEL: &str = "new_model";

/// Flags and tenants of a flag that the server accepts.
const MAX_FEATURES: usize = 100;
const MAX_TENANTS: usize = 50;

/// Names that mean a part of the service which no flag turns on or off, and why. The server refuses them too.
const WITHOUT_EFFECT: [(&str, &str); 4] = [
    ("analytics", "usage analytics has settings instead: `server.analytics`"),
    ("custom_models", "models of one tenant have a setting instead: `models[].tenant`"),
    ("sso", "single sign-on has settings instead: `server.security.oidc`"),
    ("tenants", "tenants are always isolated"),
];

impl Checker<'_> {
    pub(super) fn features(&mut self) {
        let e = self.environment;
        if e.features.len() > MAX_FEATURES {
            let cause = format!("there are {} feature flags; {MAX_FEATURES} are possible", e.features.len());
            self.error("features", cause, "remove flags that no client reads");
        }
        for (name, Feature(feature)) in &e.features {
            let path = format!("features.{}", cut(name));
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if !(1..=64).contains(&name.len()) || !name.bytes().all(is_plain) {
                let cause = format!("`{}` is not the name of a feature flag", cut(name));
                self.error(&path, cause, "use 1 to 64 of a-z, 0-9 and `_`");
            }
            if feature.tenants.len() > MAX_TENANTS {
                let cause = format!("the flag has {} tenants; {MAX_TENANTS} are possible", feature.tenants.len());
                self.error(&format!("{path}.tenants"), cause, "remove `tenants` for all tenants");
            }
            for (i, tenant) in feature.tenants.iter().enumerate().filter(|(_, tenant)| !is_tenant_id(tenant)) {
                let cause = format!("`{}` is not a tenant", cut(tenant));
                self.error(&format!("{path}.tenants[{i}]"), cause, "use 1 to 40 of a-z, 0-9, `-` and `_`");
            }
            self.model_of_feature(name, feature, &format!("{path}.model"));
        }
    }

    fn model_of_feature(&mut self, name: &str, feature: &FeatureSettings, path: &str) {
        let e = self.environment;
        let shared = || e.models.iter().filter(|served| served.tenant.is_none()).map(|served| served.name.as_str());
        match &feature.model {
            Some(_) if name != NEW_MODEL => {
                self.error(
                    path,
                    "it has no effect with this flag",
                    format!("remove it; only `{NEW_MODEL}` has a model"),
                );
            }
            Some(model) if e.models.iter().any(|served| served.tenant.is_some() && served.id() == *model) => {
                let cause = format!("requests of all tenants would get `{}`, which belongs to one", cut(model));
                self.error(path, cause, "name a model without `tenant`");
            }
            Some(model) if !shared().any(|name| name == model) => {
                let near = nearest(model, shared());
                let fix =
                    near.map_or_else(|| "add it to `models`".to_owned(), |near| format!("did you mean `{near}`?"));
                self.error(path, format!("`models` has no `{}`", cut(model)), fix);
            }
            None if name == NEW_MODEL && feature.enabled => {
                let fix = "write `new_model: { model: NAME }` with a model of `models`, or `new_model: false`";
                self.error(path, "the model of the share is not set", fix);
            }
            _ => {}
        }
    }

    /// Refuses flags that nothing reads.
    pub(super) fn features_without_effect(&mut self) {
        for (name, why) in WITHOUT_EFFECT.iter().filter(|(name, _)| self.environment.features.contains_key(*name)) {
            let cause = format!("the flag would have no effect: {why}");
            self.say(Severity::Refusal, &format!("features.{name}"), cause, "remove it");
        }
    }
}
