//! How a subscription is signed in to, and which subscription it is.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result};

/// The longest profile of the Azure CLI, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The variable with a subscription.
const SUBSCRIPTION: &str = "AZURE_SUBSCRIPTION_ID";

/// How a subscription is signed in to.
#[derive(Clone, Default)]
pub struct Access {
    /// The subscription id; if empty, that of the variables or of the Azure CLI.
    pub subscription: String,
    /// The region of the site.
    pub region: String,
    /// Variables in place of those of this process, for tests.
    pub variables: Option<BTreeMap<String, String>>,
}

/// Only the names of variables, because values may be secrets.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.as_ref().map(|all| all.keys().collect::<Vec<_>>());
        f.debug_struct("Access")
            .field("subscription", &self.subscription)
            .field("region", &self.region)
            .field("variables", &names)
            .finish()
    }
}

/// Who is signed in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subscription id.
    pub subscription: String,
    /// The id of its tenant.
    pub tenant: String,
    /// The object id of the user or application in the tenant.
    pub object: String,
    /// Its name: the address of a user, or the id of an application.
    pub name: String,
    /// Whether it is an application: a service principal or a managed identity.
    pub is_application: bool,
}

impl Access {
    /// A variable; an empty one counts as absent.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let value = match &self.variables {
            Some(all) => all.get(name).cloned(),
            None => std::env::var(name).ok(),
        };
        value.filter(|value| !value.is_empty())
    }

    /// The subscription of the site: the stated one, else that of the variables or of the Azure CLI.
    ///
    /// # Errors
    /// There is none, or it is no subscription id.
    pub fn subscription(&self) -> Result<String> {
        let stated = Some(self.subscription.clone()).filter(|one| !one.is_empty());
        let variable = || self.variable(SUBSCRIPTION);
        let found = stated.or_else(variable).or_else(|| self.cli_profile().and_then(|one| default_of(&one)));
        let found = found.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "sign in to", "azure")
                .because("no subscription is named")
                .hint("set `sites[].account` to the subscription id, or AZURE_SUBSCRIPTION_ID")
        })?;
        match uuid::Uuid::try_parse(&found) {
            Ok(id) => Ok(id.hyphenated().to_string()),
            Err(_) => {
                let shown: String = found.chars().take(60).collect();
                Err(Error::new(ErrorKind::Invalid, "use subscription", shown).because("it is no subscription id"))
            }
        }
    }

    /// The subscriptions that the Azure CLI is signed in to: <https://learn.microsoft.com/cli/azure/azure-cli-configuration>.
    pub(crate) fn cli_profile(&self) -> Option<Value> {
        let folder = match self.variable("AZURE_CONFIG_DIR") {
            Some(folder) => folder,
            None => format!("{}/.azure", self.variable("HOME")?),
        };
        let mut text = String::new();
        let file = std::fs::File::open(format!("{folder}/azureProfile.json")).ok()?;
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
        // The CLI writes a byte order mark.
        serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()
    }
}

fn default_of(profile: &Value) -> Option<String> {
    let all = profile["subscriptions"].as_array()?;
    all.iter().find(|one| one["isDefault"] == true)?["id"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "0198c0de-0000-4000-8000-000000000001";

    #[test]
    fn subscription_is_stated_or_found() {
        let access = |subscription: &str, variables: &[(&str, &str)]| Access {
            subscription: subscription.to_owned(),
            variables: Some(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
            ..Access::default()
        };
        assert_eq!(access(&ID.to_uppercase(), &[]).subscription().unwrap(), ID);
        assert_eq!(access("", &[(SUBSCRIPTION, ID)]).subscription().unwrap(), ID);
        assert!(access("", &[]).subscription().is_err());
        assert!(access("../../x", &[]).subscription().is_err());
        assert!(!format!("{:?}", access("", &[("SECRET", "hunter2")])).contains("hunter2"));
        let profile = json!({ "subscriptions": [{ "id": "a" }, { "id": ID, "isDefault": true }] });
        assert_eq!(default_of(&profile).as_deref(), Some(ID));
    }
}
