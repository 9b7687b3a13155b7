//! Checks that the references of an environment resolve: secrets, the private CA's file and the SAML settings file.
//! Files with secrets are refused while other users have access to them.
//!
//! A missing reference may exist where the environment runs. Such an environment loads and passes `env check`; `plan`
//! and `up` refuse it.

use std::collections::BTreeMap;

use camino::Utf8Path;

use super::check::{Schema, join};
use super::problem::{Problem, Severity};
use super::saml::{SamlProblem, saml_settings};
use super::tree::{Node, NodeKind};
use super::units::{self, SecretSource, cut, is_of_kernel};

/// Accepted for older files; unused.
const UNUSED: &str = "server.security.jwt_secret";

/// Appends every reference that does not resolve.
pub(crate) fn check(tree: &Node, schema: &Schema, variables: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    References { schema, variables, problems }.below(tree, "");
}

struct References<'a> {
    schema: &'a Schema,
    variables: &'a BTreeMap<String, String>,
    problems: &'a mut Vec<Problem>,
}

impl References<'_> {
    fn below(&mut self, node: &Node, path: &str) {
        match &node.kind {
            NodeKind::Map(entries) => {
                entries.iter().for_each(|entry| self.below(&entry.node, &join(path, &entry.key)));
            }
            NodeKind::List(items) => {
                items.iter().enumerate().for_each(|(i, item)| self.below(item, &format!("{path}[{i}]")));
            }
            NodeKind::Scalar { value, .. } => {
                let Some(text) = value.as_str().filter(|_| path != UNUSED) else { return };
                let secret = self.secret(path, text);
                let refused =
                    secret.as_ref().and_then(|secret| of_another_service(secret).or_else(|| self.unlisted(secret)));
                if let Some((cause, fix)) = refused {
                    self.problems.push(Problem::error(node.origin.clone(), path, cause, fix));
                } else if let Some((cause, fix)) = self.missing(path, text, secret) {
                    let problem = Problem::error(node.origin.clone(), path, cause, fix);
                    self.problems.push(problem.at(Severity::Refusal));
                }
            }
        }
    }

    /// The reference in a field for secrets. An address that is a URL refers to none.
    fn secret(&self, path: &str, text: &str) -> Option<SecretSource> {
        let is_secret = self.schema.at(path).and_then(|s| s["format"].as_str()).is_some_and(units::is_secret_format);
        text.parse::<SecretSource>().ok().filter(|_| is_secret)
    }

    /// Why the caller's list does not allow a reference. The name of a file counts without links.
    fn unlisted(&self, secret: &SecretSource) -> Option<(String, String)> {
        let mut allowed = self.variables.get(ALLOWED)?.split(':').filter(|entry| !entry.is_empty());
        let (is_listed, what, entry) = match secret {
            SecretSource::Variable(name) => {
                (allowed.any(|entry| entry == name), format!("the variable `{name}`"), format!("`{name}`"))
            }
            SecretSource::File(file) => {
                // A missing file is another problem.
                let real = Utf8Path::new(file).canonicalize_utf8().ok()?;
                // Not a folder that is named like a variable, in the checkout that the command runs in.
                let folders = allowed.map(Utf8Path::new).filter(|entry| entry.is_absolute());
                let mut folders = folders.filter_map(|entry| entry.canonicalize_utf8().ok());
                (
                    folders.any(|folder| real.starts_with(folder)),
                    format!("the file {}", cut(file)),
                    "its folder".to_owned(),
                )
            }
            SecretSource::Store(_) => return None,
        };
        let fix = format!("if the secret is meant for this server, add {entry} to {ALLOWED}");
        (!is_listed).then(|| (format!("{what} is not in {ALLOWED}"), fix))
    }

    fn missing(&self, path: &str, text: &str, secret: Option<SecretSource>) -> Option<(String, String)> {
        if matches!(path, "network.private_ca" | "rollout.prometheus.ca_file") {
            let fix = "give the certificate authority as a PEM file";
            return file_problem(text).map(|cause| (cause, fix.to_owned()));
        }
        if is_saml(path) {
            return saml_settings(Utf8Path::new(text)).err().map(|SamlProblem { cause, fix }| (cause, fix));
        }
        match secret? {
            SecretSource::Variable(name) => {
                let there = self.variables.get(&name).is_some_and(|value| !value.is_empty());
                (!there).then(|| (format!("the variable `{name}` is not set"), format!("export {name}=…")))
            }
            SecretSource::File(file) => file_problem(&file)
                .map(|cause| (cause, "put the secret there, readable only by you".to_owned()))
                .or_else(|| exposed(&file)),
            SecretSource::Store(name) => Some((
                format!("reading the secret `{}` from the environment's secret store is not supported yet", cut(&name)),
                "write `secret:env:NAME` or `secret:file:PATH`".to_owned(),
            )),
        }
    }
}

/// A variable of the caller with the only variables and folders from which environments may have secrets, as
/// `DB_PASSWORD:/etc/textnlp`.
const ALLOWED: &str = "TEXTNLP_ALLOW_SECRETS";
/// The beginnings of names of variables with credentials of clouds, registries and hubs.
const VARIABLES: [&str; 23] = [
    "ACTIONS_",
    "ANTHROPIC_",
    "ARM_",
    "AWS_",
    "AZURE_",
    "BITBUCKET_",
    "BUILDKITE_",
    "CARGO_",
    "CI_",
    "CIRCLE_",
    "CLOUDSDK_",
    "DOCKER_",
    "GCP_",
    "GH_",
    "GITHUB_",
    "GITLAB_",
    "GOOGLE_",
    "HF_",
    "NPM_",
    "OPENAI_",
    "SSH_",
    "TF_",
    "VAULT_",
];
/// Folders and files with credentials of other programs, as the tools of clouds, clusters, registries and git name them.
const FILES: [&str; 20] = [
    ".aws",
    ".azure",
    ".bash_history",
    ".cargo",
    ".config/gcloud",
    ".config/gh",
    ".docker",
    ".git-credentials",
    ".gnupg",
    ".kube",
    ".my.cnf",
    ".netrc",
    ".npmrc",
    ".ssh",
    ".terraform.d",
    ".textnlp",
    ".vault-token",
    ".zsh_history",
    "etc/shadow",
    "kubernetes.io",
];

/// Why a reference is refused: the server that gets the secret is named by the same file, whose author may be another one. No database,
/// receiver or proxy has the credential of a cloud as its password.
fn of_another_service(secret: &SecretSource) -> Option<(String, String)> {
    match secret {
        SecretSource::Variable(name) => VARIABLES.iter().any(|start| name.starts_with(start)).then(|| {
            let cause = format!("the variable `{name}` belongs to another service");
            (cause, "if the value is meant for this server, give it another name".to_owned())
        }),
        SecretSource::File(file) => {
            let path = Utf8Path::new(file);
            let real = path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
            let fix = "if the secret is meant for this server, put it into a file of its own elsewhere".to_owned();
            if is_of_kernel(file) {
                return Some((format!("{} is a file of the kernel", cut(file)), fix));
            }
            let known =
                |path: &Utf8Path| FILES.into_iter().find(|part| format!("/{path}/").contains(&format!("/{part}/")));
            let part = known(path).or_else(|| known(&real))?;
            Some((format!("`{part}` in {} belongs to another service", cut(file)), fix))
        }
        SecretSource::Store(_) => None,
    }
}

/// `sites[0].cluster.saml`.
fn is_saml(path: &str) -> bool {
    path.starts_with("sites[") && path.ends_with("].cluster.saml")
}

/// Who else has access to a file with a secret, and how to fix it.
fn exposed(path: &str) -> Option<(String, String)> {
    // A file that cannot be read is another problem.
    let exposed = textnlp_files::check_secret(path).ok().flatten()?;
    Some((exposed.to_string(), exposed.fix()))
}

fn file_problem(path: &str) -> Option<String> {
    match std::fs::File::open(path).and_then(|file| file.metadata()) {
        Ok(found) if found.is_file() => None,
        Ok(_) => Some(format!("{} is not a file", cut(path))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(format!("there is no file {}", cut(path))),
        Err(error) => Some(format!("the file {} cannot be read: {error}", cut(path))),
    }
}
