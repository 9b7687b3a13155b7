//! Loads files, variables and arguments into one typed environment.
//!
//! The layers by rising precedence: defaults, defaults of the phase, the environments that `extends` names, the file,
//! `TEXTNLP_SET__a__b` variables, `--set a.b=…`, flags. Every layer is read and checked even if another one is invalid,
//! so that one report lists all problems.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_provider::settings::{Hosting, Runtime};
use textnlp_provider::{Capability, RuntimeSupport};

use super::check::{Reading, Schema, join, type_problem};
use super::library::{BUILT_IN_MARK, Library, Source, UnknownEnvironment, new_file};
use super::model::{Environment, LOCAL, Phase};
use super::problem::{Origin, Problem, Report, Severity, nearest};
use super::semantics::{self, Catalogue, Offer};
use super::tree::{self, Entry, Node, NodeKind, segments};
use super::{references, units, upgrade};

/// The layers above the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// The caller's environment variables: for `TEXTNLP_SET__…` and for `${NAME}`.
    pub variables: BTreeMap<String, String>,
    /// The `--set path=value` arguments, in order.
    pub sets: Vec<String>,
    /// Values from other flags.
    pub flags: Vec<FlagValue>,
}

/// A flag that is equivalent to a `--set`.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// The flag, with its dashes.
    pub flag: String,
    /// The path it sets; `sites[*].provider` sets it in every site.
    pub path: String,
    /// The value.
    pub value: Value,
}

/// The path of the flag that replaces the provider of every site.
const ALL_PROVIDERS: &str = "sites[*].provider";

/// A loaded environment with the origins of its values.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The environment.
    pub environment: Environment,
    /// Refusals, warnings and notes; no errors.
    pub report: Report,
    /// The files it was loaded from, by falling precedence.
    pub files: Vec<String>,
    /// The folder `environments/` of the user, if there is one.
    pub(crate) folder: Option<Utf8PathBuf>,
    pub(crate) tree: Node,
}

impl Loaded {
    /// The file that settings are written into, as a part of a hint. A built-in environment has none: how to create one.
    pub fn own_file(&self) -> String {
        let first = self.files.first().map_or("", String::as_str);
        match first.strip_prefix(BUILT_IN_MARK) {
            Some(file) => new_file(self.folder.as_deref(), file.trim_end_matches(".yaml")),
            None => first.to_owned(),
        }
    }

    /// Where an operator wrote what a provider refuses: the first setting in the fix that is written anywhere, else the site. `place` is
    /// `SITE/COMPONENT …`, as problems of providers have it.
    pub fn origin_of(&self, place: &str, fix: &str) -> Option<Origin> {
        let site = place.split('/').next().unwrap_or_default();
        let site = self.environment.sites.iter().position(|known| known.name.as_str() == site);
        let site = site.map(|at| format!("sites[{at}]"));
        let quoted = fix.split('`').skip(1).step_by(2);
        let settings = quoted.filter_map(|text| text.split([':', ' ', '=']).next());
        let settings = settings.filter_map(|setting| match setting.strip_prefix("sites[]") {
            Some(rest) => site.as_ref().map(|site| format!("{site}{rest}")),
            None => Some(setting.to_owned()),
        });
        let paths = settings.filter(|path| !path.is_empty()).chain(site.clone());
        let written = |origin: &Origin| !matches!(origin, Origin::Default { .. });
        paths.filter_map(|path| Some(self.tree.find(&path)?.origin.clone())).find(written)
    }

    /// Whether it is a built-in environment, which has no file.
    pub fn is_built_in(&self) -> bool {
        self.files.first().is_some_and(|first| first.starts_with(BUILT_IN_MARK))
    }
}

/// Why an environment could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no environment of this name.
    #[error(transparent)]
    NoSuch(#[from] UnknownEnvironment),
    /// A file could not be read.
    #[error("read environment file {file}")]
    Read {
        /// The file.
        file: String,
        /// The error.
        source: std::io::Error,
    },
    /// The environment is invalid: all problems.
    #[error("{0}")]
    Invalid(Report),
}

/// A file and everything it extends, merged.
struct Layers {
    tree: Node,
    files: Vec<String>,
    /// Whether every file could be read.
    all_read: bool,
}

/// The longest chain of `extends`; a cycle exceeds it.
const MOST_LAYERS: usize = 10;

impl Library {
    /// Loads an environment by name.
    pub fn load(&self, name: &str, overrides: &Overrides, catalogue: &Catalogue) -> Result<Loaded, LoadError> {
        let source = self.find(name)?;
        self.load_source(source, overrides, catalogue)
    }

    /// Loads an environment from a file. The environments it extends are searched beside it first.
    pub fn load_file(
        &self,
        path: &camino::Utf8Path,
        overrides: &Overrides,
        catalogue: &Catalogue,
    ) -> Result<Loaded, LoadError> {
        let source = Source::read(path)?;
        self.beside(path).load_source(source, overrides, catalogue)
    }

    /// Loads an environment from a source that was already read.
    pub fn load_source(
        &self,
        source: Source,
        overrides: &Overrides,
        catalogue: &Catalogue,
    ) -> Result<Loaded, LoadError> {
        let schema = Schema::new();
        let mut problems = Vec::new();
        let Layers { mut tree, files, all_read } = self.layers(source, &schema, &mut problems)?;
        if !all_read {
            // The content of an unreadable file is unknown, so neither missing values nor contradictions are reported.
            problems.push(more_checks(&tree));
            return Err(LoadError::Invalid(Report::tidy(problems)));
        }
        for flag in overrides.flags.iter().filter(|flag| flag.path == ALL_PROVIDERS) {
            if let Some(offer) = flag.value.as_str().and_then(|name| catalogue.providers.get(name)) {
                adapt(&mut tree, flag, offer, &mut problems);
            }
        }
        apply_overrides(&mut tree, overrides, &schema, &mut problems);
        fill_in(&mut tree, "", &schema, &overrides.variables, &mut problems);
        semantics::detect_providers(&mut tree, catalogue, &mut problems);
        // Of a misspelled phase, the defaults of the one that is meant.
        let phase =
            tree.get("phase").and_then(Node::text).and_then(|word| nearest(word, Phase::ALL.map(Phase::as_str)));
        let phase = Phase::ALL.into_iter().find(|known| phase == Some(known.as_str())).unwrap_or(Phase::Development);
        let by_phase = Node::of_value(&phase.defaults(), &Origin::Default { phase: Some(phase.to_string()) });
        let mut tree = merge(by_phase, tree);
        schema.check(&tree, Reading::Whole, &mut problems);
        schema.prune(&mut tree);

        let is_invalid = problems.iter().any(|problem| problem.severity == Severity::Error);
        let replaced = if is_invalid { schema.replace_rejected(&mut tree) } else { Some(Vec::new()) };
        let Some(replaced) = replaced else {
            problems.push(more_checks(&tree));
            return Err(LoadError::Invalid(Report::tidy(problems)));
        };
        match serde_json::from_value::<Environment>(tree.to_value()) {
            Ok(environment) => {
                let first = problems.len();
                semantics::check(&environment, &tree, catalogue, &mut problems);
                references::check(&tree, &schema, &overrides.variables, &mut problems);
                // What was replaced was reported; the file does not have the value that these problems are about.
                let found = problems.split_off(first);
                let is_replaced = |path: &str| replaced.iter().any(|place| is_at_or_below(path, place));
                problems.extend(found.into_iter().filter(|problem| !is_replaced(&problem.path)));
                let report = Report::tidy(problems);
                if report.has_errors() {
                    return Err(LoadError::Invalid(report));
                }
                let folder = self.folder().map(Utf8Path::to_owned);
                Ok(Loaded { environment, report, files, folder, tree })
            }
            Err(error) => {
                let problem = if is_invalid { more_checks(&tree) } else { type_problem(tree.origin.clone(), &error) };
                problems.push(problem);
                Err(LoadError::Invalid(Report::tidy(problems)))
            }
        }
    }

    /// Reads the file and everything it extends, checks each layer and merges them.
    fn layers(&self, source: Source, schema: &Schema, problems: &mut Vec<Problem>) -> Result<Layers, LoadError> {
        let mut all_read = true;
        let mut stack: Vec<Node> = Vec::new();
        let mut files: Vec<String> = Vec::new();
        let mut next = Some(source);
        while let Some(source) = next.take() {
            let file: Arc<str> = Arc::from(source.label.as_str());
            files.push(source.label.clone());
            let known = problems.len();
            let mut layer = match upgrade::read(&source, &file, problems) {
                Some(node) if matches!(node.kind, NodeKind::Map(_)) => node,
                Some(node) if node.is_null() => Node::map(Origin::whole_file(&file)),
                Some(node) => {
                    let fix = "write `key: value` lines, such as `environment: staging`";
                    problems.push(Problem::error(node.origin, "", "the file is not a mapping", fix));
                    Node::map(Origin::whole_file(&file))
                }
                None => {
                    // An empty file is readable; it sets nothing.
                    all_read &= problems.len() == known;
                    Node::map(Origin::whole_file(&file))
                }
            };
            // A problem of the whole file is reported at its first line, wherever the mapping starts.
            layer.origin = Origin::whole_file(&file);
            schema.check(&layer, Reading::Layer, problems);
            if let Some(extends) = layer.get("extends").filter(|n| !n.is_null())
                && let Some(name) = extends.text()
            {
                next = self.extended(name, extends, &files, problems)?;
                // Values of an unreadable layer are not reported as missing.
                all_read &= next.is_some();
            }
            stack.push(layer);
        }
        let bottom = stack.pop().unwrap_or_else(|| Node::map(Origin::Default { phase: None }));
        let mut merged = stack.into_iter().rfold(bottom, merge);
        drop_nulls(&mut merged);
        Ok(Layers { tree: merged, files, all_read })
    }

    fn extended(
        &self,
        name: &str,
        at: &Node,
        files: &[String],
        problems: &mut Vec<Problem>,
    ) -> Result<Option<Source>, LoadError> {
        let mut refuse =
            |cause: String, fix: String| problems.push(Problem::error(at.origin.clone(), "extends", cause, fix));
        match self.find(name) {
            Err(LoadError::NoSuch(no)) => {
                let is_own = |name: &str| files.iter().any(|file| Utf8Path::new(file).file_stem() == Some(name));
                let no = no.without(is_own);
                refuse(no.to_string(), no.fix());
                // Of a misspelled name, the environment that is meant.
                let meant = no.near.and_then(|near| self.find(&near).ok());
                return Ok(meant.filter(|source| files.len() < MOST_LAYERS && !files.contains(&source.label)));
            }
            Err(other) => return Err(other),
            Ok(source) if files.contains(&source.label) => {
                // A file that overrides a built-in environment may extend it by the same name.
                if let Ok(carried) = Library::built_in().find(name)
                    && !files.contains(&carried.label)
                {
                    return Ok(Some(carried));
                }
                refuse(
                    format!("`{}` extends itself through {}", units::cut(name), files.join(", ")),
                    "remove the cycle".to_owned(),
                );
            }
            Ok(_) if files.len() >= MOST_LAYERS => {
                refuse(
                    format!("more than {MOST_LAYERS} environments extend one another"),
                    "flatten some of them".to_owned(),
                );
            }
            Ok(source) => return Ok(Some(source)),
        }
        Ok(None)
    }
}

/// The note that some checks did not run.
fn more_checks(tree: &Node) -> Problem {
    let cause = "whether the settings fit together was not checked";
    Problem::error(tree.origin.clone(), "", cause, "fix these errors first; more checks follow").at(Severity::Note)
}

fn is_at_or_below(path: &str, place: &str) -> bool {
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Merges one tree over another: mappings are merged, other values replaced, and a null removes a value.
pub(crate) fn merge(below: Node, above: Node) -> Node {
    if above.is_null() {
        return above;
    }
    let Node { origin, kind } = above;
    let NodeKind::Map(above) = kind else { return Node { origin, kind } };
    let NodeKind::Map(mut entries) = below.kind else { return Node { origin, kind: NodeKind::Map(above) } };
    for Entry { key, at, node } in above {
        match entries.iter_mut().find(|e| e.key == key) {
            Some(entry) => {
                let old = std::mem::replace(&mut entry.node, Node::scalar(Value::Null, at.clone()));
                entry.node = merge(old, node);
                entry.at = at;
            }
            None => entries.push(Entry { key, at, node }),
        }
    }
    Node { origin, kind: NodeKind::Map(entries) }
}

fn drop_nulls(node: &mut Node) {
    match &mut node.kind {
        NodeKind::Map(entries) => {
            entries.retain(|e| !e.node.is_null());
            entries.iter_mut().for_each(|e| drop_nulls(&mut e.node));
        }
        NodeKind::List(items) => items.iter_mut().for_each(drop_nulls),
        NodeKind::Scalar { .. } => {}
    }
}

const PREFIX: &str = "TEXTNLP_SET__";

fn apply_overrides(tree: &mut Node, overrides: &Overrides, schema: &Schema, problems: &mut Vec<Problem>) {
    let mut set_by: BTreeMap<String, &String> = BTreeMap::new();
    for (name, value) in &overrides.variables {
        if let Some(path) = name.strip_prefix(PREFIX) {
            let origin = Origin::Variable { name: name.clone() };
            if let Some(node) = tree::read_inline(value, &origin, problems)
                .or(value.is_empty().then(|| Node::scalar(Value::Null, origin.clone())))
            {
                // Names of variables are often upper case.
                let path = schema.spelled(&path.replace("__", "."), tree);
                set(tree, &path, node, &origin, problems);
                if let Some(other) = set_by.insert(path.clone(), name) {
                    let cause = format!("the variable `{other}` sets it too");
                    problems.push(Problem::error(origin, path, cause, "unset one of the two variables"));
                }
            }
        }
    }
    for argument in &overrides.sets {
        let Some((path, value)) = argument.split_once('=') else {
            let origin = Origin::Set { path: units::cut(argument) };
            problems.push(Problem::error(origin, "", "there is no `=` in it", "write `--set scaling.min=2`"));
            continue;
        };
        if path.is_empty() {
            // The value may be a secret.
            let origin = Origin::Set { path: "=VALUE".to_owned() };
            problems.push(Problem::error(
                origin,
                "",
                "there is no setting before the `=`",
                "write `--set scaling.min=2`",
            ));
            continue;
        }
        let origin = Origin::Set { path: path.to_owned() };
        if let Some(node) = tree::read_inline(value, &origin, problems)
            .or(value.is_empty().then(|| Node::scalar(Value::Null, origin.clone())))
        {
            set(tree, path, node, &origin, problems);
        }
    }
    for flag in &overrides.flags {
        let origin = Origin::Flag { flag: flag.flag.clone() };
        set(tree, &flag.path, Node::of_value(&flag.value, &origin), &origin, problems);
    }
    drop_nulls(tree);
}

/// Replaces what the file says for another provider and the one of `flag` does not support: the runtime, the region and the database.
/// Variables and arguments still take precedence.
fn adapt(tree: &mut Node, flag: &FlagValue, offer: &Offer, problems: &mut Vec<Problem>) {
    let mut changes: Vec<(String, Value)> = Vec::new();
    // The sites of an environment share a database.
    let mut support: Option<&RuntimeSupport> = None;
    let word = |node: Option<&Node>| node.and_then(Node::text).map(str::to_owned);
    for (i, site) in tree.get("sites").map(Node::items).unwrap_or_default().iter().enumerate() {
        let runtime = word(site.get("runtime")).unwrap_or_else(|| Runtime::Process.to_string());
        let runtimes = offer.capabilities.runtimes;
        let known = runtimes.iter().find(|one| one.runtime.as_str() == runtime);
        if let (None, Some(first)) = (known, runtimes.first()) {
            changes.push((format!("sites[{i}].runtime"), json!(first.runtime.as_str())));
        }
        support = support.or(known).or(runtimes.first());
        let is_local = word(site.get("region")).is_none_or(|region| region == LOCAL);
        if let Some(region) = offer.region.as_ref().filter(|_| is_local) {
            changes.push((format!("sites[{i}].region"), json!(region)));
        }
    }
    let database = tree.get("database");
    let kind = word(database.and_then(|database| database.get("kind")));
    let hosting = word(database.and_then(|database| database.get("hosting")));
    let databases =
        support.map(|one| one.supported).unwrap_or_default().iter().filter_map(|capability| match capability {
            Capability::Database(kind, hosting) => Some((*kind, *hosting)),
            _ => None,
        });
    let databases: Vec<_> = databases.collect();
    let is_supported = databases.iter().any(|(known, at)| {
        kind.as_deref() == Some(known.as_str()) && (hosting.is_none() || hosting.as_deref() == at.map(Hosting::as_str))
    });
    if let Some((kind, hosting)) = databases.first().filter(|_| !is_supported) {
        changes.push(("database.kind".to_owned(), json!(kind.as_str())));
        changes.extend(hosting.map(|hosting| ("database.hosting".to_owned(), json!(hosting.as_str()))));
    }
    let name = flag.value.as_str().unwrap_or_default();
    let origin = Origin::Flag { flag: format!("{} {name}", flag.flag) };
    for (path, value) in changes {
        let cause = format!("it is `{}` for provider `{name}`", value.as_str().unwrap_or_default());
        let fix = format!("to decide otherwise, add `--set {path}=…`");
        problems.push(Problem::error(origin.clone(), path.clone(), cause, fix).at(Severity::Note));
        set(tree, &path, Node::of_value(&value, &origin), &origin, problems);
    }
}

/// Sets the value at a path and creates missing mappings on the way. List entries are selected by index, by their
/// `name`, or all of them by `*`.
fn set(tree: &mut Node, path: &str, value: Node, origin: &Origin, problems: &mut Vec<Problem>) {
    let path_segments = segments(path);
    if path_segments.is_empty() {
        problems.push(Problem::error(
            origin.clone(),
            "",
            "it names no field",
            "write the path of a field, such as `scaling.min`",
        ));
        return;
    }
    set_below(tree, "", &path_segments, value, origin, problems);
}

fn set_below(node: &mut Node, path: &str, rest: &[String], value: Node, origin: &Origin, problems: &mut Vec<Problem>) {
    let Some((first, rest)) = rest.split_first() else {
        *node = merge(std::mem::replace(node, Node::scalar(Value::Null, origin.clone())), value);
        return;
    };
    if let NodeKind::List(items) = &mut node.kind {
        if first == "*" {
            for (i, item) in items.iter_mut().enumerate() {
                set_below(item, &format!("{path}[{i}]"), rest, value.clone(), origin, problems);
            }
            return;
        }
        let at = first
            .parse::<usize>()
            .ok()
            .or_else(|| items.iter().position(|i| i.get("name").and_then(Node::text) == Some(first)));
        match at.filter(|i| *i < items.len()) {
            Some(i) => set_below(&mut items[i], &format!("{path}[{i}]"), rest, value, origin, problems),
            None => {
                let names: Vec<_> = items.iter().filter_map(|i| i.get("name").and_then(Node::text)).collect();
                let cause = format!("`{path}` has no entry `{}`", units::cut(first));
                let near = nearest(first, names.iter().copied()).map(|n| format!("did you mean `{n}`?"));
                let fix = near.unwrap_or_else(|| {
                    format!("its entries are 0 to {}, or {}", items.len().saturating_sub(1), names.join(", "))
                });
                problems.push(Problem::error(origin.clone(), path, cause, fix));
            }
        }
        return;
    }
    if node.is_null() || matches!(node.kind, NodeKind::Scalar { .. }) && node.origin == *origin {
        *node = Node::map(origin.clone());
    }
    let below = join(path, first);
    let NodeKind::Map(entries) = &mut node.kind else {
        let cause = format!("`{path}` is a single value and has no fields");
        problems.push(Problem::error(origin.clone(), below, cause, format!("set `{path}` itself")));
        return;
    };
    let at = entries.iter().position(|e| e.key == *first).unwrap_or_else(|| {
        entries.push(Entry { key: first.clone(), at: origin.clone(), node: Node::scalar(Value::Null, origin.clone()) });
        entries.len() - 1
    });
    entries[at].at = origin.clone();
    set_below(&mut entries[at].node, &below, rest, value, origin, problems);
}

/// Expands `${NAME}` and `${NAME:-default}`. In a field for a secret, `${NAME}` becomes a reference.
fn fill_in(
    node: &mut Node,
    path: &str,
    schema: &Schema,
    variables: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    let origin = node.origin.clone();
    match &mut node.kind {
        NodeKind::Map(entries) => {
            for entry in entries {
                fill_in(&mut entry.node, &join(path, &entry.key), schema, variables, problems);
            }
        }
        NodeKind::List(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                fill_in(item, &format!("{path}[{i}]"), schema, variables, problems);
            }
        }
        NodeKind::Scalar { value, written } => {
            let Some(text) = value.as_str().filter(|text| text.contains("${")) else { return };
            let secret = schema.at(path).and_then(|s| s["format"].as_str()).is_some_and(units::is_secret_format);
            if secret {
                if let Ok(reference) = text.parse::<units::SecretSource>() {
                    *value = Value::String(reference.to_string());
                }
                return;
            }
            if path.starts_with("state.") || path == "backup.destination" && text.contains("://") {
                let cause = "variables are not filled in here: they would be sent to the store";
                let fix = format!(
                    "write the value, or set it for one run: export TEXTNLP_SET__{}=…",
                    path.replace('.', "__")
                );
                problems.push(Problem::error(origin, path, cause, fix));
                return;
            }
            match substitute(text, variables) {
                Ok(filled) if written.is_some() => *value = tree::plain_scalar(&filled),
                Ok(filled) => *value = Value::String(filled),
                Err(missing) => {
                    for (cause, fix) in missing {
                        problems.push(Problem::error(origin.clone(), path, cause, fix));
                    }
                }
            }
        }
    }
}

/// The last words of names of variables with secrets: `AWS_SECRET_ACCESS_KEY`, `PGPASSWORD`.
const SECRETS: [&str; 13] = [
    "APIKEY",
    "AUTH",
    "COOKIE",
    "CREDENTIAL",
    "CREDENTIALS",
    "DSN",
    "KEY",
    "PASS",
    "PASSPHRASE",
    "PASSWORD",
    "PAT",
    "SECRET",
    "TOKEN",
];

/// Whether a variable is to be kept out of addresses, paths and texts. The file of another author could otherwise send it to a server
/// that it names, and any file would show it in plans and in the state.
fn may_be_secret(name: &str, value: &str) -> bool {
    let is_named = name
        .to_ascii_uppercase()
        .split('_')
        .any(|word| SECRETS.contains(&word) || SECRETS.iter().any(|secret| secret.len() > 4 && word.ends_with(secret)));
    let has_password = value.split_once("://").is_some_and(|(_, rest)| {
        rest.split(['/', '?', '#'])
            .next()
            .and_then(|host| host.rsplit_once('@'))
            .is_some_and(|(user, _)| user.contains(':'))
    });
    is_named || has_password || value.contains("-----BEGIN ")
}

fn substitute(text: &str, variables: &BTreeMap<String, String>) -> Result<String, Vec<(String, String)>> {
    let (mut out, mut missing, mut rest) = (String::new(), Vec::new(), text);
    while let Some(at) = rest.find("${") {
        // `$${` is an escaped `${`.
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            missing.push((
                "a `${` has no closing `}`".to_owned(),
                "write `${NAME}`, or `$${` for the characters themselves".to_owned(),
            ));
            return Err(missing);
        };
        let inside = &rest[at + 2..at + end];
        let (name, otherwise) = inside.split_once(":-").map_or((inside, None), |(n, o)| (n, Some(o)));
        match (units::is_variable(name), variables.get(name).map(String::as_str).or(otherwise)) {
            (false, _) => missing
                .push((format!("`{}` is not the name of a variable", units::cut(name)), "write `${NAME}`".to_owned())),
            (true, Some(value)) if may_be_secret(name, value) => missing.push((
                format!("the variable `{name}` may be a secret, and this field is not one for secrets"),
                format!("write `secret:env:{name}` in a field for secrets; if it is none, give it another name"),
            )),
            (true, Some(value)) => out.push_str(value),
            (true, None) => {
                missing.push((
                    format!("the variable `{name}` is not set"),
                    format!("export {name}=…, or write `${{{name}:-otherwise}}`"),
                ));
            }
        }
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    if missing.is_empty() { Ok(out) } else { Err(missing) }
}
