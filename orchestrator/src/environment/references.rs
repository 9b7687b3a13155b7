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
use super::units::{self, SecretSource, cut};

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
                if let Some((cause, fix)) = self.missing(path, text) {
                    let problem = Problem::error(node.origin.clone(), path, cause, fix);
                    self.problems.push(problem.at(Severity::Refusal));
                }
            }
        }
    }

    fn missing(&self, path: &str, text: &str) -> Option<(String, String)> {
        if matches!(path, "network.private_ca" | "rollout.prometheus.ca_file") {
            let fix = "give the certificate authority as a PEM file";
            return file_problem(text).map(|cause| (cause, fix.to_owned()));
        }
        if is_saml(path) {
            return saml_settings(Utf8Path::new(text)).err().map(|SamlProblem { cause, fix }| (cause, fix));
        }
        let is_secret = self.schema.at(path).and_then(|s| s["format"].as_str()).is_some_and(units::is_secret_format);
        // An address that is a URL refers to no secret.
        match text.parse::<SecretSource>().ok().filter(|_| is_secret)? {
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
