//! Whether PostgreSQL can run on this machine, or an external one can be used.

use serde_json::Value;
use textnlp_keys::{SecretSpec, SiteFolder};
use textnlp_provider::{Problem, Wanted};

use crate::spec::{FileSpec, PostgresSpec, ProgramSpec, SchemaSpec};
use crate::table::ResourceKind;
use crate::verbs::{VerifiedProgram, pass_bytes, pass_file, postgres, query_database};

/// Checks a managed server: its programs, its user, its port.
pub(super) fn check_own(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let Ok(spec) = wanted.spec.typed::<PostgresSpec>() else { return };
    if folder.join(&spec.path).join("data/PG_VERSION").is_file() || spec.follows {
        return;
    }
    let location = wanted.id.as_str();
    let elsewhere = "or set `database.url` to an external PostgreSQL";
    if postgres::newest(spec.version).is_none() {
        problems.push(Problem::new(location, postgres::missing(spec.version), format!("install it, {elsewhere}")));
    }
    match postgres::user() {
        Ok(None) => {}
        Ok(Some(user)) => {
            if user.name == postgres::SHARED_USER {
                let cause = format!("PostgreSQL runs as `{}`, as other programs may do", user.name);
                let fix = "install PostgreSQL's package, or add a user: `useradd --system textnlp`";
                problems.push(Problem::warning(location, cause, fix));
            }
            let existing = camino::Utf8Path::new(postgres::ELSEWHERE).ancestors().find(|path| path.is_dir());
            let existing = existing.unwrap_or(camino::Utf8Path::new("/"));
            if rustix::fs::access(existing.as_std_path(), rustix::fs::Access::WRITE_OK).is_err() {
                let cause = format!(
                    "PostgreSQL runs as {}, and its folder {} cannot be created",
                    user.name,
                    postgres::ELSEWHERE
                );
                problems.push(Problem::new(location, cause, format!("make it writable, {elsewhere}")));
            }
        }
        Err(why) => problems.push(Problem::new(
            location,
            why,
            "add a system user `postgres`, or run this as a user other than root",
        )),
    }
}

/// Checks the port of a managed server, where one is configured.
pub(super) fn check_port(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let Some(postgres) = wanted.spec.get("document").and_then(|document| document.get("postgres")) else { return };
    let Some(port) = postgres["port"].as_u64().and_then(|port| u16::try_from(port).ok()) else { return };
    let unit = wanted
        .spec
        .get("path")
        .and_then(Value::as_str)
        .and_then(|path| path.strip_prefix("config/")?.strip_suffix(".yaml"));
    let runs = unit.is_some_and(|unit| matches!(crate::lock::holder(&folder.lock(unit)), Ok(Some(_))));
    if postgres["loopback"] != true || runs {
        return;
    }
    if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
        let cause = format!("127.0.0.1:{port} cannot be bound: {error}");
        problems.push(Problem::new(
            format!("{}: port", wanted.id),
            cause,
            "choose another `database.port`, or remove it",
        ));
    }
}

/// Checks an external server. The server program reports all problems, because it is the client of that server.
pub(super) async fn check_others(wanted: &Wanted, all: &[Wanted], folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let Ok(spec) = wanted.spec.typed::<SchemaSpec>() else { return };
    if !spec.served {
        return;
    }
    let of_site = || all.iter().filter(|other| other.site == wanted.site);
    let named = |noun: ResourceKind, path: &str| {
        of_site().find(|other| {
            ResourceKind::of(&other.kind) == Some(noun) && other.spec.get("path").and_then(Value::as_str) == Some(path)
        })
    };
    let program =
        named(ResourceKind::Program, &spec.program).and_then(|program| program.spec.typed::<ProgramSpec>().ok());
    let config = named(ResourceKind::File, &spec.config).and_then(|file| file.spec.typed::<FileSpec>().ok());
    let (Some(program), Some(mut document)) = (program, config.and_then(|config| config.document)) else { return };
    let database = &mut document["textnlp"]["database"];
    let connections = database["pool_size"].as_u64().unwrap_or(0) + database["max_overflow"].as_u64().unwrap_or(0);
    // Secrets are passed to the program without being written to a disk.
    let mut lent = Vec::new();
    for field in ["url_file", "password_file"] {
        let Some(path) = database[field].as_str() else { continue };
        let file = of_site().find(|other| {
            let relative = other.spec.get("path").and_then(Value::as_str);
            ResourceKind::of(&other.kind) == Some(ResourceKind::File)
                && relative.is_some_and(|relative| folder.join(relative) == path)
        });
        let secret = file.and_then(|file| file.spec.outputs_needed().first());
        let secret = secret.and_then(|output| of_site().find(|other| other.id == output.resource));
        // A generated secret belongs to a managed server, which does not exist yet. A missing one is reported
        // elsewhere.
        let given = secret.and_then(|secret| secret.spec.typed::<SecretSpec>().ok()).and_then(|spec| spec.given);
        let Some(value) = given.and_then(|given| given.read()) else { return };
        let Ok(location) = pass_bytes(value.expose()) else { return };
        database[field] = Value::from(location.path.as_str());
        lent.push(location);
    }
    let Ok(config) = pass_file(&document) else { return };
    let location = format!("{}: database", wanted.id);
    let (site, placed) = (folder.clone(), spec.program);
    let program = tokio::task::spawn_blocking(move || {
        let source = VerifiedProgram::of_digest(&program.source, &program.sha256);
        source.or_else(|_| VerifiedProgram::of_site(&site, &placed))
    });
    // A program that is missing or has another digest is reported for its own resource.
    let Ok(Ok(program)) = program.await else { return };
    let found = match query_database(&program, &config.path, wanted.id.as_str()).await {
        Ok(found) => found,
        Err(error) => {
            let fix = "check that the server program runs on this machine";
            return problems.push(Problem::new(location, textnlp_provider::error_chain(&error), fix));
        }
    };
    let problems_of = |list: &str| found[list].as_array().cloned().unwrap_or_default();
    let text = |problems_of: &Value, field: &str| problems_of[field].as_str().unwrap_or_default().to_owned();
    for problems_of in problems_of("problems") {
        problems.push(Problem::new(location.clone(), text(&problems_of, "cause"), text(&problems_of, "fix")));
    }
    for problems_of in problems_of("notes") {
        problems.push(Problem::warning(location.clone(), text(&problems_of, "cause"), text(&problems_of, "fix")));
    }
    let replicas =
        of_site().filter(|other| other.spec.get("arguments") == Some(&serde_json::json!(["serve"]))).count() as u64;
    let most = found["connections"].as_u64().unwrap_or(u64::MAX);
    if replicas * connections > most {
        let cause = format!(
            "{replicas} replicas open up to {} connections, and the server gives {most}",
            replicas * connections
        );
        let fix = "lower `database.pool_size` and `database.max_overflow`, or raise the server's max_connections";
        problems.push(Problem::warning(location, cause, fix));
    }
}
