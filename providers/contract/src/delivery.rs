//! The delivery of an export by a GitOps controller: a folder of a Git repository, and the controller that applies it.

use crate::provider::{Problem, Problems};
use crate::units::Span;

/// A folder of a Git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitFolder {
    /// The address of the repository.
    pub repository: String,
    /// The path of the folder in it.
    pub path: String,
    /// A branch, a full reference such as `refs/tags/v1.2.0`, or a commit.
    pub revision: String,
}

/// A controller that applies a folder of a Git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Controller {
    /// Argo CD.
    ArgoCd {
        /// The AppProject of the Application.
        project: String,
        /// The name of the cluster in Argo CD.
        cluster: String,
    },
    /// Flux.
    Flux {
        /// How often it reads the repository and corrects drift.
        interval: Span,
        /// The Secret with the credentials of the repository.
        secret: Option<String>,
    },
}

/// What a controller is told to apply. Only checked values are constructed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    source: GitFolder,
    namespace: String,
    controller: Controller,
}

const URL_BYTES: usize = 2048;
const PATH_BYTES: usize = 1024;
const REVISION_BYTES: usize = 255;
/// The length of a namespace, and of the other names.
const LABEL_BYTES: usize = 63;
const NAME_BYTES: usize = 253;
const INTERVAL_SECONDS: std::ops::RangeInclusive<u64> = 10..=86_400;

impl Delivery {
    /// Checks the options of a command. An error has all problems; none repeats the address, which may contain a password.
    pub fn new(mut source: GitFolder, namespace: String, controller: Controller) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut check = |option: &str, cause: Option<&str>, fix: &str| {
            problems.extend(cause.map(|cause| Problem::new(option, cause, fix)));
        };
        let fix = "write `https://HOST/PATH` or `ssh://git@HOST/PATH`, and give the credentials to the controller";
        check("--repo", repository(&source.repository), fix);
        let path = folder(&source.path);
        let fix = "write the path of a folder in the repository, such as `clusters/pilot`, or `.`";
        check("--path", invalid(path.is_some()), fix);
        let fix = "write a branch, a reference such as `refs/tags/v1.2.0`, or a commit";
        check("--revision", invalid(is_revision(&source.revision)), fix);
        let fix = "write the name of an object: lower-case letters, digits and hyphens";
        check("--namespace", invalid(is_name(&namespace, LABEL_BYTES) && !namespace.contains('.')), fix);
        match &controller {
            Controller::ArgoCd { project, cluster } => {
                check("--project", invalid(is_name(project, NAME_BYTES)), fix);
                let is_cluster = (1..=NAME_BYTES).contains(&cluster.len()) && !cluster.chars().any(char::is_control);
                check("--cluster", invalid(is_cluster), "write a name that `argocd cluster list` shows");
            }
            Controller::Flux { interval, secret } => {
                let is_interval = INTERVAL_SECONDS.contains(&interval.as_seconds());
                check("--interval", invalid(is_interval), "write a time from `10s` to `24h`");
                let is_secret = secret.as_ref().is_none_or(|secret| is_name(secret, NAME_BYTES));
                check("--secret", invalid(is_secret), fix);
            }
        }
        let Some(path) = path.filter(|_| problems.is_empty()) else { return Err(Problems(problems)) };
        source.path = path;
        Ok(Self { source, namespace, controller })
    }

    /// The folder that the controller reads. Its path has no slash at its ends, and is empty for the whole repository.
    pub fn source(&self) -> &GitFolder {
        &self.source
    }

    /// The namespace of the controller's objects.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
}

fn invalid(is_valid: bool) -> Option<&'static str> {
    (!is_valid).then_some("it is not valid")
}

/// What is wrong with the address of a repository.
fn repository(url: &str) -> Option<&'static str> {
    if url.len() > URL_BYTES || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Some("it is too long, or contains spaces");
    }
    let Some((scheme, rest)) = url.split_once("://") else { return Some("it is not a URL with a scheme") };
    let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
    let is_login = |user: &str| user.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    match (scheme, user) {
        ("https", None) => {}
        ("ssh", user) if user.is_none_or(is_login) => {}
        ("https" | "ssh", _) => return Some("it contains credentials, and the export would be committed with them"),
        _ => return Some("its scheme is neither `https` nor `ssh`"),
    }
    if url.contains(['?', '#']) {
        return Some("it has a query or a fragment, which may contain credentials");
    }
    let Some((authority, path)) = rest.split_once('/') else { return Some("it has no path") };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_of_host =
        |c: char| c.is_ascii_alphanumeric() || "-.".contains(c) || (host.starts_with('[') && "[]:".contains(c));
    let is_host = !host.is_empty() && host.chars().all(is_of_host);
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let is_path = !path.trim_matches('/').is_empty();
    (!(is_host && is_port && is_path)).then_some("its host, port or path is not valid")
}

/// A relative path without empty parts and dots; `None` if it leaves the repository.
fn folder(path: &str) -> Option<String> {
    let is_part = |part: &&str| *part != ".." && part.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let is_inside = !path.is_empty() && !path.starts_with('/') && parts.iter().all(is_part);
    (is_inside && path.len() <= PATH_BYTES).then(|| parts.join("/"))
}

/// Whether git takes a text for the name of a reference or a commit.
fn is_revision(text: &str) -> bool {
    (1..=REVISION_BYTES).contains(&text.len())
        && text.chars().all(|c| c.is_alphanumeric() || "/._-+#".contains(c))
        && !["..", "//", "/."].iter().any(|part| text.contains(part))
        && !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !text.ends_with(".lock")
}

/// Whether an API server takes a text for the name of an object.
fn is_name(text: &str, most: usize) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= most && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(repository: &str, path: &str, revision: &str) -> Result<Delivery, Problems> {
        let text = str::to_owned;
        let source = GitFolder { repository: text(repository), path: text(path), revision: text(revision) };
        let controller = Controller::Flux { interval: Span::seconds(60), secret: None };
        Delivery::new(source, text("flux-system"), controller)
    }

    #[test]
    fn addresses_with_credentials_are_refused_without_showing_them() {
        for bad in [
            "https://ada:hunter2@git.example.com/a/b",
            "https://hunter2@git.example.com/a/b",
            "https://ada:hun/ter2@git.example.com/a/b",
            "https://git.example.com/a?private_token=hunter2",
            "ssh://git:hunter2@git.example.com/a/b",
            "https://ada:hunter2/a/b",
            "http://git.example.com/a/b",
            "git@git.example.com:hunter2/b",
            "https://git.example.com/",
            "https:///a",
            "https://git.example.com:port/a",
        ] {
            let Err(Problems(problems)) = delivery(bad, "a", "main") else { panic!("{bad} is accepted") };
            assert_eq!(problems.len(), 1, "{bad}");
            assert!(problems[0].place == "--repo" && !problems[0].to_string().contains("hun"), "{problems:?}");
        }
        for good in ["https://git.example.com/a/b.git", "ssh://git@git.example.com:2222/a", "https://[fd00::1]:8443/a"]
        {
            assert!(delivery(good, "a", "main").is_ok(), "{good}");
        }
    }

    #[test]
    fn all_problems_are_in_one_report() {
        let source = GitFolder { repository: "x".to_owned(), path: "../b".to_owned(), revision: "a..b".to_owned() };
        let controller = Controller::Flux { interval: Span::seconds(1), secret: Some("A".to_owned()) };
        let Err(Problems(problems)) = Delivery::new(source, "a.b".to_owned(), controller) else { panic!("accepted") };
        let places: Vec<&str> = problems.iter().map(|problem| problem.place.as_str()).collect();
        assert_eq!(places, ["--repo", "--path", "--revision", "--namespace", "--interval", "--secret"]);
    }

    #[test]
    fn paths_lose_their_dots_and_revisions_are_names_of_git() {
        let path = |text: &str| delivery("https://a/b", text, "main").map(|delivery| delivery.source().path.clone());
        for (text, expect) in [(".", ""), ("./clusters//pilot/", "clusters/pilot"), (".github", ".github")] {
            assert_eq!(path(text).as_deref(), Ok(expect));
        }
        for bad in ["", "/a", "a/../b", "a\\b", "a\nb"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "-x", "a b", "a..b", "main.lock", "a~1", "a@{1}", "a/"] {
            assert!(delivery("https://a/b", "a", bad).is_err(), "{bad:?}");
        }
        assert!(delivery("https://a/b", "a", "refs/tags/v1.2.0").is_ok());
    }
}
