//! How a project is signed in to, and which project it is.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result, Secret};
use textnlp_token::Variables;

/// The longest credential file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// The variables with a project, the first one first.
const PROJECTS: [&str; 2] = ["GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"];
/// The variable with the project that calls of a user are counted for.
const QUOTA_PROJECT: &str = "GOOGLE_CLOUD_QUOTA_PROJECT";

/// How a project is signed in to. The credentials are found as Google's own libraries find them: application default credentials.
#[derive(Clone, Default)]
pub struct Access {
    /// The project id; if empty, that of the variables or of the credential file.
    pub project: String,
    /// The region of the site.
    pub region: String,
    /// The e-mail address of a service account that is impersonated.
    pub impersonate: Option<String>,
    /// Variables in place of those of this process, for tests.
    pub variables: Option<BTreeMap<String, String>>,
}

/// Only the names of variables, because values may be secrets.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.as_ref().map(|all| all.keys().collect::<Vec<_>>());
        f.debug_struct("Access")
            .field("project", &self.project)
            .field("region", &self.region)
            .field("impersonate", &self.impersonate)
            .field("variables", &names)
            .finish()
    }
}

/// Who is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The project id.
    pub project: String,
    /// The e-mail address of the user or the service account.
    pub email: String,
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

    /// The variables for the sign-in.
    pub(crate) fn all_variables(&self) -> Variables {
        match &self.variables {
            Some(all) => all.clone().into_iter().collect(),
            None => Variables::of_this_process(),
        }
    }

    /// The project of the site: the stated one, else that of the variables or of the credential file.
    ///
    /// # Errors
    /// There is none, or it is no project id.
    pub fn project(&self) -> Result<String> {
        let stated = Some(self.project.clone()).filter(|project| !project.is_empty());
        let variable = || PROJECTS.iter().find_map(|name| self.variable(name));
        let found = stated.or_else(variable).or_else(|| {
            let facts = self.credential_facts();
            facts.project.or(facts.quota_project)
        });
        let project = found.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "sign in to", "gcp")
                .because("no project is named")
                .hint("set `sites[].account` to the project id, or GOOGLE_CLOUD_PROJECT")
        })?;
        if !is_project_id(&project) {
            let error = Error::new(ErrorKind::Invalid, "use project", project.chars().take(60).collect::<String>());
            return Err(error.because("a project id has 6 to 30 lower-case letters, digits and hyphens"));
        }
        Ok(project)
    }

    /// The project that calls are counted for: the one that the credential names, or that of the site for a user.
    pub(crate) fn quota_project(&self) -> Option<String> {
        let facts = self.credential_facts();
        // The calls of a user are counted for the project of gcloud itself otherwise, which has most services disabled.
        let is_user = facts.is_user && self.impersonate.is_none();
        let found = self.variable(QUOTA_PROJECT).or(facts.quota_project);
        found.or_else(|| self.project().ok().filter(|_| is_user)).filter(|one| is_project_id(one))
    }

    /// What the credential file says that is no secret.
    pub(crate) fn credential_facts(&self) -> CredentialFacts {
        let Some(text) = self.credential_file().and_then(|path| read(&path)) else { return CredentialFacts::default() };
        let file: Value = serde_json::from_slice(text.expose()).unwrap_or_default();
        let field = |name: &str| file[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        CredentialFacts {
            project: field("project_id"),
            quota_project: field("quota_project_id"),
            email: field("client_email"),
            is_user: file["type"] == "authorized_user",
        }
    }

    /// <https://cloud.google.com/docs/authentication/application-default-credentials>
    fn credential_file(&self) -> Option<String> {
        if let Some(path) = self.variable("GOOGLE_APPLICATION_CREDENTIALS") {
            return Some(path);
        }
        let folder = match self.variable("CLOUDSDK_CONFIG") {
            Some(folder) => folder,
            None => format!("{}/.config/gcloud", self.variable("HOME")?),
        };
        Some(format!("{folder}/application_default_credentials.json"))
    }
}

/// See [`Access::credential_facts`].
#[derive(Debug, Default)]
pub(crate) struct CredentialFacts {
    pub(crate) project: Option<String>,
    pub(crate) quota_project: Option<String>,
    pub(crate) email: Option<String>,
    /// Whether it is a user's own sign-in.
    pub(crate) is_user: bool,
}

fn read(path: &str) -> Option<Secret> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(Secret::new(bytes))
}

/// <https://cloud.google.com/resource-manager/docs/creating-managing-projects>; older ids have a domain before a colon.
fn is_project_id(id: &str) -> bool {
    let name = id.rsplit(':').next().unwrap_or(id);
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (6..=30).contains(&name.len())
        && name.bytes().all(fits)
        && name.as_bytes()[0].is_ascii_lowercase()
        && !name.ends_with('-')
        && id.bytes().all(|byte| fits(byte) || byte == b'.' || byte == b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_is_stated_or_found() {
        let access = |project: &str, variables: &[(&str, &str)]| Access {
            project: project.to_owned(),
            variables: Some(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()),
            ..Access::default()
        };
        let both = [("GOOGLE_CLOUD_PROJECT", "from-variable"), ("CLOUDSDK_CORE_PROJECT", "from-gcloud")];
        assert_eq!(access("stated-one", &both).project().unwrap(), "stated-one");
        assert_eq!(access("", &both).project().unwrap(), "from-variable");
        assert_eq!(access("", &both[1..]).project().unwrap(), "from-gcloud");
        assert!(access("", &[]).project().is_err());
        for bad in ["UPPER-case", "short", "../../x-project", "a-project-", "1-project"] {
            assert!(access(bad, &[]).project().is_err(), "{bad}");
        }
        assert!(access("example.com:my-project", &[]).project().is_ok());
        assert!(!format!("{:?}", access("", &[("SECRET", "hunter2")])).contains("hunter2"));
    }
}
