//! An external PostgreSQL by its address, or one that runs here: a primary and its standbys.

use serde_json::{Map, Value, json};
use textnlp_keys::SOCKET_PATH_MAX;
use textnlp_provider::component::{Database, DatabaseAddress, ExternalSecret, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{ComponentName, OutputRef, ResourceId};

use super::Lowering;
use crate::names::{DATABASE_FILE, DUMP, POSTGRES_HOME};
use crate::spec::PostgresSpec;
use crate::table::ResourceKind;

/// The number in the name of the server's socket when no port is configured.
const PORT: u16 = 5432;
/// The most standbys on one machine.
const COPIES_MAX: u32 = 3;
/// Connections beyond those of the service: the supervisor of PostgreSQL, standbys, commands, operators.
const SPARE_CONNECTIONS: u32 = 20;
/// PostgreSQL writes what is in memory to disk before it stops.
const GRACE_MS: u64 = 60_000;
/// The role of the service, see `server/sites/src/postgres`.
const SERVICE: &str = "textnlp";
/// The component of the generated passwords within a site's secrets.
const PASSWORD: &str = "database-password";
const REPLICATION_PASSWORD: &str = "replication-password";

/// How programs reach their database.
pub(super) struct StoreOf {
    /// Its identity: the path of a file, or the component.
    pub(super) named: String,
    /// Whether it is a PostgreSQL server.
    pub(super) served: bool,
    /// The wanted schema.
    pub(super) schema: Value,
    /// `database:` of the server's configuration.
    pub(super) settings: Map<String, Value>,
    /// Files whose change needs a restart.
    pub(super) files: Vec<(String, ResourceId)>,
    /// Resources that must be created first.
    pub(super) needs: Vec<ResourceId>,
}

/// The file of a database secret.
pub(super) fn secret_file(database: &ComponentName, what: &str) -> String {
    format!("certs/{database}-{what}")
}

impl Lowering<'_> {
    pub(super) fn store_of(&mut self, name: &ComponentName, stored: &Database) -> Option<StoreOf> {
        let Some(postgres) = &stored.postgres else {
            let database = ResourceId::of(&self.site.name, name);
            let settings = json!({ "url": format!("sqlite://{}", self.folder.join(DATABASE_FILE)) });
            return Some(StoreOf {
                named: DATABASE_FILE.to_owned(),
                served: false,
                schema: json!(OutputRef::new(database, "schema")),
                settings: map(settings),
                files: Vec::new(),
                needs: Vec::new(),
            });
        };
        let mut settings = Map::new();
        let mut files = Vec::new();
        let mut needs = Vec::new();
        let mut file = |this: &mut Self, field: &str, what: &str| -> Option<()> {
            let id = this.part_of(name, &format!("{what}-file"))?;
            settings.insert(field.to_owned(), json!(this.folder.join(&secret_file(name, what))));
            files.push((format!("database-{what}"), id.clone()));
            needs.push(id);
            Some(())
        };
        match &postgres.address {
            Some(DatabaseAddress::Secret(_)) => file(self, "url_file", "url")?,
            Some(DatabaseAddress::Url(url, password)) => {
                if password.is_some() {
                    file(self, "password_file", "password")?;
                }
                settings.insert("url".to_owned(), json!(url));
            }
            None => {
                file(self, "password_file", "password")?;
                let url = self.own_address(postgres.port, postgres.between.is_some(), &postgres.name);
                settings.insert("url".to_owned(), json!(url));
                needs.push(self.part_of(name, "server-0")?);
            }
        }
        if let Some(file) = &postgres.ca_file {
            settings.insert("ca_file".to_owned(), json!(file));
        }
        let schema = json!(stored.schema);
        Some(StoreOf { named: name.to_string(), served: true, schema, settings, files, needs })
    }

    /// The address of the local server, or of the socket that leads to the primary of all sites.
    pub(super) fn own_address(&self, port: Option<u16>, door: bool, name: &str) -> String {
        let folder = self.folder.join(&home(0)).join("run").as_str().replace('/', "%2F");
        let number = port.unwrap_or(PORT).saturating_add(u16::from(door));
        format!("postgresql://{SERVICE}@{folder}:{number}/{name}")
    }

    pub(super) fn postgres(&mut self, database: &Database, postgres: &Postgres) {
        if let Some(file) = postgres.ca_file.as_ref().filter(|file| !file.starts_with('/')) {
            let cause = format!("`{file}` is not an absolute path, and the servers have another working directory");
            return self.problem("network.private_ca", cause, "write the absolute path");
        }
        match (&postgres.address, database.hosting) {
            (Some(DatabaseAddress::Secret(given)), _) => self.given("url", given),
            (Some(DatabaseAddress::Url(_, Some(given))), _) => self.given("password", given),
            (Some(DatabaseAddress::Url(_, None)), _) => {}
            (None, Some(Hosting::Cluster)) => self.own_postgres(database, postgres),
            (None, hosting) => {
                let cause = format!(
                    "`hosting: {}` is not supported for PostgreSQL on a machine",
                    hosting.unwrap_or(Hosting::Managed)
                );
                self.problem("hosting", cause, "write `hosting: cluster`, or the address of an external PostgreSQL");
            }
        }
    }

    /// A user-provided secret, and the file that the programs on this machine read.
    fn given(&mut self, what: &str, given: &ExternalSecret) {
        let (Some(secret), Some(file)) = (self.part(what), self.part(&format!("{what}-file"))) else { return };
        let (name, path) = (format!("{}-{what}", self.component.name), secret_file(&self.component.name, what));
        // Pods get the secret itself. Only a site that replicates has programs here.
        if self.site.cluster.as_deref().is_some_and(|cluster| !cluster.replicates) {
            return self.given_secret(secret, &name, given);
        }
        self.given_file(&name, given, secret, file, &path);
    }

    fn own_postgres(&mut self, database: &Database, postgres: &Postgres) {
        if postgres.replicas > COPIES_MAX {
            let cause = format!("{} database replicas on one machine are not supported", postgres.replicas);
            return self.problem("replicas", cause, format!("choose 0 to {COPIES_MAX}"));
        }
        if postgres.between.is_some() && (postgres.replicas > 0 || postgres.port.is_some()) {
            let cause = "each site has one database server, and its supervisor routes clients to it";
            return self.problem("replicas", cause, "remove `database.replicas` and `database.port`");
        }
        let name = self.component.name.clone();
        let port = postgres.port.unwrap_or(PORT);
        let socket = self.folder.join(&home(0)).join(format!("run/.s.PGSQL.{port}"));
        // The names of standbys are longer.
        if socket.as_str().len() + 2 > SOCKET_PATH_MAX {
            let cause = format!("the database's socket {socket} has a path of more than {} bytes", SOCKET_PATH_MAX - 2);
            return self.problem("path", cause, "choose a shorter `--state-dir`");
        }
        let (Some(password), Some(program), Some(secret)) =
            (self.part("password-file"), self.part("program"), self.part_of(&postgres.secrets, PASSWORD))
        else {
            return;
        };
        let network = self.network_id();
        let path = secret_file(&name, "password");
        let spec = json!({ "path": path, "secret": OutputRef::new(secret, "secret") });
        self.want(password.clone(), ResourceKind::File, &spec, [network.clone()]);
        let mut secrets = vec![("database-password", password)];
        if postgres.replicas > 0 || postgres.between.is_some() {
            let (Some(file), Some(secret)) =
                (self.part("replication-file"), self.part_of(&postgres.secrets, REPLICATION_PASSWORD))
            else {
                return;
            };
            let path = secret_file(&name, "replication");
            let spec = json!({ "path": path, "secret": OutputRef::new(secret, "secret") });
            self.want(file.clone(), ResourceKind::File, &spec, [network]);
            secrets.push(("replication-password", file));
        }
        let bin = format!("bin/{name}");
        if self.program(&program, &postgres.program, &bin).is_none() {
            return;
        }
        for number in 0..=postgres.replicas {
            self.postgres_server(number, database, postgres, &program, &bin, &secrets);
        }
    }

    /// One server: its folder, its configuration, its process. Number 0 is the primary.
    fn postgres_server(
        &mut self,
        number: u32,
        database: &Database,
        postgres: &Postgres,
        program: &ResourceId,
        bin: &str,
        secrets: &[(&str, ResourceId)],
    ) {
        let name = self.component.name.clone();
        let unit = format!("{name}-{number}");
        let (Some(config_id), Some(process), Some(primary)) =
            (self.part(&format!("config-{number}")), self.part(&format!("server-{number}")), self.part("server-0"))
        else {
            return;
        };
        let folder = match number {
            0 => Some(self.id()),
            copy => self.part(&format!("copy-{copy}")),
        };
        let (Some(folder), Some(listen)) = (folder, self.unix(&unit)) else { return };
        let network = self.network_id();
        let is_home = postgres.between.as_ref().is_none_or(|between| between.home == self.site.name);
        let spec = PostgresSpec {
            path: home(number),
            version: postgres.version,
            schema: database.schema.filter(|_| number == 0),
            follows: number > 0 || !is_home,
            shared: postgres.between.is_some(),
        };
        // The data of a standby can be copied again.
        match number {
            0 => self.want_protected(folder.clone(), ResourceKind::Postgres, &spec, [network.clone()]),
            _ => self.want(folder.clone(), ResourceKind::Postgres, &spec, [network.clone()]),
        }
        let copy = |number: u32| format!("copy_{number}");
        let mut document = json!({
            "listen": listen,
            "programs": OutputRef::new(folder.clone(), "programs"),
            "folder": OutputRef::new(folder.clone(), "folder"),
            "user": OutputRef::new(folder, "user"),
            "port": postgres.port.unwrap_or(PORT),
            "loopback": postgres.port.is_some() && number == 0,
            "database": postgres.name,
            "password_file": self.folder.join(&secret_file(&name, "password")),
            "max_connections": postgres.connections.saturating_add(SPARE_CONNECTIONS),
        });
        if postgres.replicas > 0 || postgres.between.is_some() {
            document["replication_password_file"] = json!(self.folder.join(&secret_file(&name, "replication")));
        }
        let mut needs = vec![ResourceId::of(&self.site.name, &postgres.cluster)];
        if let Some(between) = &postgres.between {
            let mut peers = Map::new();
            for peer in &between.peers {
                let Some(socket) = self.unix(&super::recovery::database_door_to(peer)) else { return };
                peers.insert(peer.to_string(), json!(socket));
            }
            let (Some(watch), Some(process)) =
                (self.unix(between.watch.as_str()), self.part_of(&between.watch, "process"))
            else {
                return;
            };
            document["sites"] = json!({
                "site": self.site.name,
                "watch": watch,
                "peers": peers,
                "door": self.folder.socket(&super::recovery::database_door(&name)),
                "max_lag_ms": between.max_lag_ms,
                "link": self.folder.join(&home(0)),
            });
            if is_home {
                document["dump"] = json!(self.folder.join(DUMP));
            }
            needs.push(process);
        } else if number == 0 {
            document["dump"] = json!(self.folder.join(DUMP));
            if let Some(seconds) = postgres.archive_seconds {
                document["archive"] = json!({ "every_seconds": seconds });
            }
            document["copies"] = json!((1..=postgres.replicas).map(copy).collect::<Vec<_>>());
        } else {
            // The path is the primary's own: its server's user need not see ours.
            let socket_folder = OutputRef::new(self.id(), "sockets");
            document["primary"] =
                json!({ "socket_folder": socket_folder, "port": postgres.port.unwrap_or(PORT), "name": copy(number) });
            needs.push(primary);
        }
        let config_file = format!("config/{unit}.yaml");
        let spec = json!({ "path": config_file, "document": { "postgres": document } });
        self.want(config_id.clone(), ResourceKind::File, &spec, [network]);
        let inputs: Map<String, Value> = secrets
            .iter()
            .map(|(name, id)| ((*name).to_owned(), json!(OutputRef::new(id.clone(), "sha256"))))
            .collect();
        let spec = json!({
            "unit": unit,
            "program": bin,
            "program_sha256": OutputRef::new(program.clone(), "sha256"),
            "arguments": ["postgres"],
            "config": config_file,
            "config_sha256": OutputRef::new(config_id, "sha256"),
            "on_config": "restart",
            "inputs": inputs,
            "watch": [],
            "listen": listen,
            "metrics_listen": listen,
            "ready": { "socket": unit, "path": "/ready" },
            "stop_grace_ms": GRACE_MS,
            "state": "running",
        });
        self.want(process, ResourceKind::Process, &spec, needs);
    }
}

/// The folder of a server.
fn home(number: u32) -> String {
    if number == 0 { POSTGRES_HOME.to_owned() } else { format!("data/postgres-{number}") }
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
