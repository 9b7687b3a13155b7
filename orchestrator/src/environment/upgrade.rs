//! Reads files with older keys: the flat `server/database/redis/models/security/logging` tree, the nested `textnlp.*`
//! tree, and `KEY=VALUE` files. Each is converted to current keys, with a warning for each changed key. The load uses
//! the result, and `env migrate` writes it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::library::Source;
use super::problem::{Origin, Problem, Severity};
use super::tree::{self, Entry, Node, NodeKind, segments};
use super::units::{UrlSource, cut};

/// Reads a source; older keys are converted to current ones.
pub(crate) fn read(source: &Source, file: &Arc<str>, problems: &mut Vec<Problem>) -> Option<Node> {
    let node = match variables(&source.bytes) {
        Some(lines) => variables_tree(&lines, file),
        None => tree::read(&source.bytes, file, problems)?,
    };
    if !is_older(&node) {
        return Some(node);
    }
    let stem = source.label.rsplit('/').next().unwrap_or_default().trim_start_matches("(built-in) ");
    let stem = stem.trim_start_matches('.').split('.').next().unwrap_or_default();
    Some(Upgrade { out: Node::map(node.origin.clone()), problems }.run(node, stem))
}

/// The lines of a `KEY=VALUE` file; `None` for another format.
fn variables(bytes: &[u8]) -> Option<Vec<(usize, String, String)>> {
    let text = std::str::from_utf8(bytes).ok().filter(|t| t.len() <= tree::MOST_BYTES)?;
    let mut found = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        if !key.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') || key.is_empty() {
            return None;
        }
        let value = value.trim();
        let unquoted = ['"', '\''].into_iter().find_map(|q| value.strip_prefix(q)?.strip_suffix(q)).unwrap_or(value);
        found.push((i + 1, key.to_owned(), unquoted.to_owned()));
    }
    (!found.is_empty()).then_some(found)
}

fn variables_tree(lines: &[(usize, String, String)], file: &Arc<str>) -> Node {
    let entries = lines.iter().map(|(line, key, value)| {
        let at = Origin::File { file: file.clone(), line: *line, column: 1 };
        Entry {
            key: key.clone(),
            at: at.clone(),
            node: Node {
                origin: at,
                kind: NodeKind::Scalar { value: tree::plain_scalar(value), written: Some(value.as_str().into()) },
            },
        }
    });
    Node { origin: Origin::whole_file(file), kind: NodeKind::Map(entries.collect()) }
}

const VARIABLES: [&str; 5] = ["ENVIRONMENT", "DEBUG", "LOG_LEVEL", "DATABASE_URL", "REDIS_URL"];

/// Whether a tree has a key that only older files use.
fn is_older(node: &Node) -> bool {
    let has = |path: &str| node.find(path).is_some();
    ["textnlp", "redis", "logging", "security", "server.host", "server.port", "server.workers"].into_iter().any(has)
        || VARIABLES.into_iter().any(has)
        || node.get("models").is_some_and(|m| matches!(m.kind, NodeKind::Map(_)))
        || (!has("extends") && !has("database.kind") && ["database.host", "database.url"].into_iter().any(has))
}

/// Pairs of older path and current path. Keys that need more than a move are handled by name.
const MOVES: &[(&str, &str)] = &[
    ("server.host", "server.api.host"),
    ("server.port", "server.api.port"),
    ("server.workers", "server.api.workers"),
    ("api.host", "server.api.host"),
    ("api.port", "server.api.port"),
    ("api.workers", "server.api.workers"),
    ("api.timeout", "server.api.timeout"),
    ("api.max_request_size", "server.api.max_request_size"),
    ("models.path", "storage.model_folder"),
    ("models.cache_dir", "storage.model_folder"),
    ("models.cache_size", "storage.model_cache"),
    ("models.max_cache_size", "storage.model_cache"),
    ("database.host", "database.host"),
    ("database.port", "database.port"),
    ("database.name", "database.name"),
    ("database.user", "database.user"),
    ("database.password", "database.password"),
    ("database.pool_size", "database.pool_size"),
    ("database.max_overflow", "database.max_overflow"),
    ("security.jwt_secret", "server.security.jwt_secret"),
    ("security.jwt_algorithm", "server.security.jwt_algorithm"),
    ("security.jwt_expiry", "server.security.jwt_expiry"),
    ("security.api_keys_enabled", "server.security.api_keys_enabled"),
    ("security.api_key_header", "server.security.api_key_header"),
    ("security.rate_limit", "server.security.rate_limit"),
    ("logging.level", "server.monitoring.log_level"),
    ("logging.file", "server.monitoring.log_file"),
    ("LOG_LEVEL", "server.monitoring.log_level"),
    ("monitoring.metrics_port", "server.monitoring.metrics_port"),
    ("monitoring.enable_tracing", "server.monitoring.enable_tracing"),
    ("monitoring.log_level", "server.monitoring.log_level"),
];

/// Encoder families generate no text; some older files preload them, without a source.
const ENCODERS: [&str; 6] = ["bert", "distilbert", "roberta", "albert", "electra", "deberta"];

/// `bert`, `bert-base-uncased`, `org/distilbert-base`.
fn is_encoder(name: &str) -> bool {
    let family = name.rsplit('/').next().unwrap_or_default().split('-').next().unwrap_or_default();
    ENCODERS.iter().any(|encoder| family.eq_ignore_ascii_case(encoder))
}

struct Upgrade<'p> {
    out: Node,
    problems: &'p mut Vec<Problem>,
}

impl Upgrade<'_> {
    fn run(mut self, mut old: Node, stem: &str) -> Node {
        let nested = old.take("textnlp");
        for (prefix, tree) in [("textnlp.", nested.map(|e| e.node)), ("", Some(old))] {
            if let Some(tree) = tree {
                self.tree(tree, prefix);
            }
        }
        self.identity(stem);
        self.out
    }

    fn tree(&mut self, mut old: Node, prefix: &str) {
        // Current keys in the same file are retained.
        let today = |key: &str, node: &Node| match key {
            "database" => node.get("kind").is_some() || node.get("hosting").is_some(),
            "models" => matches!(node.kind, NodeKind::List(_)),
            "redis" | "logging" | "security" | "api" | "server" | "monitoring" => false,
            key => !VARIABLES.contains(&key),
        };
        let names: Vec<String> = old.entries().iter().map(|e| e.key.clone()).collect();
        for name in names {
            let Some(entry) = old.take(&name) else { continue };
            if today(&name, &entry.node) {
                self.out.put(entry);
            } else {
                self.section(&name, entry, prefix);
            }
        }
    }

    fn section(&mut self, name: &str, entry: Entry, prefix: &str) {
        match name {
            "ENVIRONMENT" => return self.environment(&entry),
            "DEBUG" => return self.debug(&entry),
            "DATABASE_URL" => return self.database_url(entry.node, "DATABASE_URL"),
            "REDIS_URL" => return self.redis(&entry.node.origin, "REDIS_URL"),
            "LOG_LEVEL" => return self.moved("LOG_LEVEL", "server.monitoring.log_level", entry.node),
            _ => {}
        }
        let NodeKind::Map(fields) = entry.node.kind else {
            self.out.put(entry);
            return;
        };
        let mut left = Vec::new();
        for field in fields {
            let old = format!("{name}.{}", field.key);
            let shown = format!("{prefix}{old}");
            match old.as_str() {
                "database.url" => self.database_url(field.node, &shown),
                _ if name == "redis" => self.redis(&field.node.origin, &shown),
                "models.default" | "models.preload" => self.models(&field, &shown),
                "models.download_on_startup" => {
                    self.warn(
                        &field.at,
                        &shown,
                        "models are fetched and checked by `up`, before the server starts",
                        "remove it",
                    );
                }
                _ => match MOVES.iter().find(|(from, _)| *from == old) {
                    Some((_, to)) => self.moved(&shown, to, field.node),
                    None => left.push(field),
                },
            }
        }
        if name == "database" && self.out.get("database").is_some_and(|n| n.get("host").is_some()) {
            self.text("database.kind", "postgres", &entry.at);
            self.text("database.hosting", "external", &entry.at);
        }
        // Other keys are current, or mistakes that the check reports.
        for field in left {
            self.place(&format!("{name}.{}", field.key), field.node);
        }
    }

    fn warn(&mut self, at: &Origin, path: &str, cause: &str, fix: &str) {
        self.say(Severity::Warning, at, path, cause, fix);
    }

    fn say(&mut self, severity: Severity, at: &Origin, path: &str, cause: &str, fix: &str) {
        self.problems.push(Problem::error(at.clone(), path, cause, fix).at(severity));
    }

    fn moved(&mut self, from: &str, to: &str, node: Node) {
        if from != to {
            let fix = format!("write `{to}`; `textnlp-deploy env migrate` does it");
            self.warn(&node.origin.clone(), from, "this is an older key", &fix);
        }
        self.place(to, node);
    }

    /// Sets a value in the new tree unless the path has one.
    fn place(&mut self, path: &str, value: Node) {
        let mut node = &mut self.out;
        let mut names = segments(path);
        let Some(last) = names.pop() else { return };
        for name in names {
            let origin = value.origin.clone();
            node.put(Entry { key: name.clone(), at: origin.clone(), node: Node::map(origin) });
            let NodeKind::Map(entries) = &mut node.kind else { return };
            let Some(entry) = entries.iter_mut().find(|e| e.key == name) else { return };
            node = &mut entry.node;
        }
        node.put(Entry { key: last, at: value.origin.clone(), node: value });
    }

    fn text(&mut self, path: &str, text: &str, at: &Origin) {
        self.place(path, Node::scalar(Value::String(text.to_owned()), at.clone()));
    }

    fn environment(&mut self, entry: &Entry) {
        let at = entry.node.origin.clone();
        self.warn(&at, "ENVIRONMENT", "this is an older key", "write `environment` and `phase`");
        if let Some(name) = entry.node.text() {
            self.text("environment", name, &at);
        }
    }

    fn debug(&mut self, entry: &Entry) {
        let at = entry.node.origin.clone();
        self.warn(&at, "DEBUG", "this is an older key", "write `server.monitoring.log_level: DEBUG`");
        if matches!(&entry.node.kind, NodeKind::Scalar { value: Value::Bool(true), .. }) {
            self.text("server.monitoring.log_level", "DEBUG", &at);
        }
    }

    fn models(&mut self, field: &Entry, shown: &str) {
        let at = field.node.origin.clone();
        self.warn(&at, shown, "this is an older key", "write `models: [{ name: …, role: default, preload: true }]`");
        let default = field.key == "default";
        let (encoders, names): (Vec<String>, Vec<String>) = field
            .node
            .text()
            .map(str::to_owned)
            .into_iter()
            .chain(field.node.items().iter().filter_map(|i| i.text().map(str::to_owned)))
            .partition(|name| is_encoder(name));
        for name in encoders {
            let cause = format!("`{}` is an encoder, which generates no text: it is skipped", cut(&name));
            let fix = "for embeddings, write it into `models` with its `source` and `role: embeddings`";
            self.say(Severity::Note, &at, shown, &cause, fix);
        }
        // Without any, the models of the extended environment apply.
        if names.is_empty() {
            return;
        }
        self.out.put(Entry {
            key: "models".to_owned(),
            at: at.clone(),
            node: Node { origin: at.clone(), kind: NodeKind::List(Vec::new()) },
        });
        let NodeKind::Map(entries) = &mut self.out.kind else { return };
        let Some(NodeKind::List(models)) = entries.iter_mut().find(|e| e.key == "models").map(|e| &mut e.node.kind)
        else {
            return;
        };
        for name in names {
            let known = models.iter().position(|m| m.get("name").and_then(Node::text) == Some(&name));
            let position = known.unwrap_or_else(|| {
                models.push(Node::of_value(&json!({"name": name}), &at));
                models.len() - 1
            });
            let (key, value) = if default { ("role", json!("default")) } else { ("preload", json!(true)) };
            models[position].put(Entry { key: key.to_owned(), at: at.clone(), node: Node::scalar(value, at.clone()) });
        }
    }

    fn database_url(&mut self, node: Node, shown: &str) {
        let at = node.origin.clone();
        let url = node.text().unwrap_or_default().to_owned();
        if url.starts_with("sqlite") {
            self.warn(&at, shown, "this is an older key", "write `database: { kind: sqlite }`");
            return self.text("database.kind", "sqlite", &at);
        }
        self.text("database.kind", "postgres", &at);
        self.text("database.hosting", "external", &at);
        self.address(node, shown);
    }

    /// A Redis is not taken over: environment files hold no passwords, and older servers used it for something else.
    fn redis(&mut self, at: &Origin, shown: &str) {
        let fix = "remove it; `cache: { kind: redis, url: secret:env:REDIS_URL }` keeps vectors there";
        self.warn(at, shown, "the address of a Redis may have a password, so this is left out", fix);
    }

    /// Moves the address of the database: a reference, or a URL without a password. From a URL with one, the password is
    /// removed: environment files hold no secrets.
    fn address(&mut self, node: Node, shown: &str) {
        let at = node.origin.clone();
        let text = node.text().unwrap_or_default().to_owned();
        if let Some(name) = text.strip_prefix('$').filter(|n| super::units::is_variable(n)) {
            self.warn(&at, shown, "this is an older key", &format!("write `database.url: secret:env:{name}`"));
            return self.text("database.url", &format!("secret:env:{name}"), &at);
        }
        if super::units::is_variable(&text) && text.starts_with("SECRET_") {
            self.warn(&at, shown, "this is the name of a secret", &format!("write `database.url: secret:env:{text}`"));
            return self.text("database.url", &format!("secret:env:{text}"), &at);
        }
        if text.parse::<UrlSource>().is_ok() {
            return self.moved(shown, "database.url", node);
        }
        // The form is `scheme://user:password@rest`.
        let split = text.split_once("://").and_then(|(_, rest)| {
            let (login, rest) = rest.rsplit_once('@')?;
            let (user, _) = login.split_once(':')?;
            Some((user.to_owned(), rest.to_owned()))
        });
        let Some((user, rest)) = split else {
            return self.moved(shown, "database.url", node);
        };
        let fix =
            "the password was left out: put it into the variable DB_PASSWORD, and change it if this file was shared";
        self.warn(&at, shown, "this URL contains a password in plain text", fix);
        let (host_port, name) = rest.split_once('/').unwrap_or((&rest, "textnlp"));
        let (host, port) = host_port.split_once(':').unwrap_or((host_port, "5432"));
        self.text("database.host", host, &at);
        self.place("database.port", Node::scalar(tree::plain_scalar(port), at.clone()));
        self.text("database.name", name.split('?').next().unwrap_or(name), &at);
        self.text("database.user", &user, &at);
        self.text("database.password", "secret:env:DB_PASSWORD", &at);
    }

    /// An older file names neither what it extends nor its provider; both follow from its name.
    fn identity(&mut self, stem: &str) {
        let at = self.out.origin.clone();
        let stem = match stem {
            "" | "env" => "development",
            other => other,
        };
        let name = self.out.get("environment").and_then(Node::text).unwrap_or(stem).to_owned();
        let like = match name.as_str() {
            "production" | "prod" | "pilot" => "pilot",
            "staging" | "stage" => "staging",
            known if super::library::BUILT_IN.iter().any(|(n, _)| *n == known) => known,
            _ => "development",
        };
        let like = like.to_owned();
        if self.out.get("environment").is_none() {
            self.text("environment", &name, &at);
        }
        if self.out.get("extends").is_none() && self.out.get("sites").is_none() {
            self.text("extends", &like, &at);
            let cause = format!("a file in the old format does not say where `{}` runs", cut(&name));
            self.warn(&at, "extends", &cause, &format!("the values of `{like}` apply; write `extends: {like}`"));
        }
    }
}
