//! Checks that PostgreSQL can run on this machine, or that an external PostgreSQL can be used.

use std::time::Duration;

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_keys::files::{self, Stamp};
use textnlp_keys::{Marker, SecretSpec, SiteFolder};
use textnlp_provider::{Problem, ResourceId, Spec, Wanted};

use crate::spec::{FileSpec, PostgresSpec, ProgramSpec, SchemaSpec};
use crate::table::ResourceKind;
use crate::verbs::{file, pass_bytes, pass_file, postgres, query_database};
use crate::verified::VerifiedProgram;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_PORT: u16 = 5432;

/// Checks a managed server: its programs, its user, its port.
pub(super) fn check_managed(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
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
            let existing = Utf8Path::new(postgres::ELSEWHERE).ancestors().find(|path| path.is_dir());
            let existing = existing.unwrap_or(Utf8Path::new("/"));
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
pub(super) async fn check_external(wanted: &Wanted, all: &[Wanted], folder: &SiteFolder, problems: &mut Vec<Problem>) {
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
    let Some(config) = named(ResourceKind::File, &spec.config) else { return };
    let document = config.spec.typed::<FileSpec>().ok().and_then(|file| file.document);
    let (Some(program), Some(mut document)) = (program, document) else { return };
    let database = &mut document["textnlp"]["database"];
    let connections = database["pool_size"].as_u64().unwrap_or(0) + database["max_overflow"].as_u64().unwrap_or(0);
    let location = format!("{}: database", wanted.id);
    let secret_of = |path: &str| {
        let file = of_site().find(|other| {
            let relative = other.spec.get("path").and_then(Value::as_str);
            ResourceKind::of(&other.kind) == Some(ResourceKind::File)
                && relative.is_some_and(|relative| folder.join(relative) == path)
        });
        let output = file?.spec.outputs_needed().first().cloned()?;
        Some((file?, of_site().find(|other| other.id == output.resource)?))
    };
    // An address that is a secret itself names the server that gets its password.
    if let Some((file, secret)) = database["password_file"].as_str().and_then(secret_of)
        && !is_approved(folder, &spec, &config.id, database, &file.id, secret)
    {
        return check_reachable(&location, database["url"].as_str().unwrap_or_default(), problems).await;
    }
    // Secrets are passed to the program without being written to a disk.
    let mut passed = Vec::new();
    for field in ["url_file", "password_file"] {
        let Some(path) = database[field].as_str() else { continue };
        let secret = secret_of(path);
        // A generated secret belongs to a managed server, which does not exist yet. A missing one is reported
        // elsewhere.
        let given = secret.and_then(|(_, secret)| secret.spec.typed::<SecretSpec>().ok()).and_then(|spec| spec.given);
        let Some(value) = given.and_then(|given| given.read()) else { return };
        let Ok(location) = pass_bytes(value.expose()) else { return };
        database[field] = Value::from(location.path.as_str());
        passed.push(location);
    }
    let Ok(config) = pass_file(&document) else { return };
    let (site, placed) = (folder.clone(), spec.program);
    let program = tokio::task::spawn_blocking(move || {
        let source = VerifiedProgram::of_digest(&program.source, &program.sha256);
        source.or_else(|_| VerifiedProgram::placed(&site, &placed))
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
    let list = |name: &str| found[name].as_array().cloned().unwrap_or_default();
    let text = |problem: &Value, field: &str| problem[field].as_str().unwrap_or_default().to_owned();
    for problem in list("problems") {
        problems.push(Problem::new(location.clone(), text(&problem, "cause"), text(&problem, "fix")));
    }
    for problem in list("notes") {
        problems.push(Problem::warning(location.clone(), text(&problem, "cause"), text(&problem, "fix")));
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

/// Whether an approved `up` on this machine has sent the same secret to the same server. A state that was cloned or
/// unpacked may contain anything, but only root can set the change times of its files, so those are compared.
fn is_approved(
    folder: &SiteFolder,
    spec: &SchemaSpec,
    config: &ResourceId,
    wanted: &Value,
    password: &ResourceId,
    secret: &Wanted,
) -> bool {
    let (path, marker_path) = (folder.join(&spec.config), folder.marker(&secret.id));
    let is_of_up = |id: &ResourceId, fact: &str, path: &Utf8Path| {
        let marker = Marker::read(&folder.marker(id)).ok().flatten().filter(|marker| marker.complete);
        let recorded = marker.and_then(|marker| marker.facts.get(fact).cloned());
        let now = Stamp::of(path).ok().flatten();
        now.is_some_and(|now| recorded == Some(json!(now)))
    };
    if !is_of_up(config, file::STAMP, &path) || !is_of_up(password, file::SECRET_STAMP, &marker_path) {
        return false;
    }
    let Ok(text) = files::read_bounded(&path, files::TEXT_MAX) else { return false };
    let Ok(applied) = serde_yaml::from_slice::<Value>(&text) else { return false };
    let applied = &applied["textnlp"]["database"];
    let is_same = ["url", "password_file", "ca_file"].iter().all(|field| applied[*field] == wanted[*field]);
    let source = |spec: &Spec| spec.typed::<SecretSpec>().ok()?.given.map(|given| given.source);
    let marker = Marker::read(&marker_path).ok().flatten().filter(|marker| marker.complete);
    is_same
        && marker.is_some_and(|marker| source(&marker.spec).is_some() && source(&marker.spec) == source(&secret.spec))
}

/// Checks that a server accepts connections, without a password.
async fn check_reachable(location: &str, url: &str, problems: &mut Vec<Problem>) {
    let Some((host, port)) = host_of(url) else { return };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect((host, port))).await;
    let why = match connected {
        Ok(Ok(_)) => {
            let cause = format!(
                "{host}:{port} answers; user, password, version and rights are checked by `up`, once you approved it"
            );
            let fix = "your password is not sent to a server that a new environment file names";
            return problems.push(Problem::note(location, cause, fix));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let fix = "check that the server runs and that this machine can reach it";
    problems.push(Problem::new(location, format!("{host}:{port}: {why}"), fix));
}

/// Host and port of a URL of PostgreSQL; `None` for a Unix socket, or if a parameter names the server.
fn host_of(url: &str) -> Option<(&str, u16)> {
    if url.split_once('?').is_some_and(|(_, query)| query.contains("host")) {
        return None;
    }
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let address = authority.rsplit('@').next()?;
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => address.find(':').map_or((address, ""), |at| address.split_at(at)),
    };
    let port = port.strip_prefix(':').map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    (!host.is_empty() && !host.starts_with('%')).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn only_a_pair_of_server_and_secret_that_was_applied_on_this_machine_is_approved() {
        let state = tempfile::tempdir().unwrap();
        let state = Utf8PathBuf::from_path_buf(state.path().to_owned()).unwrap();
        let folder = SiteFolder::of(&state, &"here".parse().unwrap());
        let secret = |source: &str| -> Spec {
            Spec::of(&json!({ "name": "database-password", "given": { "source": source, "version": "a1" } }))
        };
        let wanted = |source: &str| -> Wanted {
            let kind = "onprem.secret";
            serde_json::from_value(
                json!({ "id": "here/database/password", "kind": kind, "site": "here", "spec": secret(source) }),
            )
            .unwrap()
        };
        let spec: SchemaSpec = serde_json::from_value(json!({
            "database": "database", "version": null, "program": "bin/server", "program_sha256": "", "config": "config/server.yaml",
        }))
        .unwrap();
        let id = |name: &str| ResourceId::new(format!("here/{name}")).unwrap();
        let (config, password) = (id("server/config"), id("database/password-file"));
        let database = |host: &str| json!({ "url": format!("postgresql://u@{host}/x"), "password_file": "p" });
        let is_approved = |host: &str, source: &str| {
            is_approved(&folder, &spec, &config, &database(host), &password, &wanted(source))
        };
        let mark = |id: &ResourceId, spec: Spec, facts: Value| {
            let marker: Marker = serde_json::from_value(json!({
                "textnlp-lineage": "00000000-0000-4000-8000-000000000000", "textnlp-environment": "staging",
                "textnlp-site": "here", "textnlp-resource": id, "textnlp-operation": 1,
                "kind": "onprem.file", "cloud_id": "sites/here/x", "complete": true, "spec": spec, "facts": facts,
            }))
            .unwrap();
            marker.write(&folder).unwrap();
        };
        let stamp = |path: &Utf8Path| json!(Stamp::of(path).unwrap());
        let (config_path, marker_path) = (folder.join(&spec.config), folder.marker(&wanted("").id));
        assert!(!is_approved("db", "secret:env:DB"), "nothing was applied");
        std::fs::create_dir_all(folder.join("config")).unwrap();
        std::fs::create_dir_all(folder.join("objects")).unwrap();
        let put_config = |host: &str| {
            let applied = json!({ "textnlp": { "database": database(host) } });
            files::put(&config_path, serde_yaml::to_string(&applied).unwrap().as_bytes(), 0o600).unwrap();
        };
        let put_secret = |source: &str| mark(&wanted("").id, secret(source), json!({}));
        let record = || {
            mark(&config, Spec::default(), json!({ (file::STAMP): stamp(&config_path) }));
            mark(&password, Spec::default(), json!({ (file::SECRET_STAMP): stamp(&marker_path) }));
        };
        put_config("db");
        record();
        assert!(!is_approved("db", "secret:env:DB"), "the secret was not applied");
        put_secret("secret:env:DB");
        record();
        assert!(is_approved("db", "secret:env:DB"));
        // Open files keep their inodes: no other file gets the same number.
        let _kept = [&config_path, &marker_path].map(|path| std::fs::File::open(path).unwrap());
        assert!(!is_approved("evil", "secret:env:DB"), "another server");
        assert!(!is_approved("db", "secret:env:OTHER"), "another secret");
        // As a checkout or an archive writes them, with the facts of the machine of their author.
        put_config("evil");
        assert!(!is_approved("evil", "secret:env:DB"), "another configuration than `up` wrote");
        put_config("db");
        assert!(!is_approved("db", "secret:env:DB"), "a copy of the configuration");
        record();
        assert!(is_approved("db", "secret:env:DB"));
        let _kept = std::fs::File::open(&marker_path).unwrap();
        put_secret("secret:env:OTHER");
        assert!(!is_approved("db", "secret:env:OTHER"), "another record of the secret than `up` wrote");
    }

    #[test]
    fn host_of_a_url_is_that_after_the_user() {
        for (url, expected) in [
            ("postgresql://u@db.internal/x", Some(("db.internal", 5432))),
            ("postgresql://u:a@b@10.0.0.1:6432/x?sslmode=disable", Some(("10.0.0.1", 6432))),
            ("postgres://[::1]:6432", Some(("::1", 6432))),
            ("postgresql://u@%2Frun%2Fpostgresql:5432/x", None),
            ("postgresql:///x", None),
            ("postgresql:///x?sslmode=require&host=db", None),
            ("postgresql://db:many/x", None),
        ] {
            assert_eq!(host_of(url), expected, "{url}");
        }
    }
}
