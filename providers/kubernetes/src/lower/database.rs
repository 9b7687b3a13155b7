//! The database: an external one, or a PostgreSQL that CloudNativePG runs beside the servers, with its backups.

use serde_json::{Value, json};
use textnlp_provider::cluster::{OwnPostgres, is_in_registry};
use textnlp_provider::component::{Backup, Database, DatabaseAddress, DumpCopies, Egress, ManagedDumps, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{ComponentName, OutputRef, ResourceId};

use super::company::{download_env, private_authority, private_authority_file};
use super::images::postgres_image;
use super::template::Template;
use super::{ACCOUNT_OF_PODS, Lowering, PROGRAM, REGISTRY_NAME, SECRETS};
use crate::manifest::PLAIN;

/// The name of the PostgreSQL cluster; CloudNativePG derives the names of its services and certificate authority from
/// it.
pub(crate) const POSTGRES: &str = "textnlp-database";
/// The CronJob that takes backups.
pub const BACKUP: &str = "textnlp-backup";
/// The claim of the volume with dumps.
pub(crate) const DUMPS_CLAIM: &str = "textnlp-backups";
/// The suspended CronJob for restores: a job created from it restores a backup.
pub const RESTORE: &str = "textnlp-restore";
/// The mount path of the database's certificate authority.
const AUTHORITY: &str = "/etc/textnlp-database";
/// The Secret with that authority. Its private key is in it too, and is not mounted.
const AUTHORITY_SECRET: &str = "textnlp-database-ca";
/// The Secret of the role that owns the database.
const OWNER_SECRET: &str = "textnlp-database-owner";
/// The label by which CloudNativePG reads a Secret again when it changes: <https://cloudnative-pg.io/documentation/current/labels_annotations/>.
const RELOADED: &str = "cnpg.io/reload";
/// The Secret with the address and the password of a database that a cloud runs, for backups.
const MANAGED_SECRET: &str = "textnlp-backup-database";
const OWNER: &str = "textnlp";
/// The resource of a database that a cloud runs. Its output `url` is an address without the password.
const MANAGED: &str = "instance";
/// The key of the generated password among the secrets of a site.
const PASSWORD: &str = "database-password";
/// Connections besides those of the service: jobs, CloudNativePG, operators.
const SPARE_CONNECTIONS: u32 = 40;
/// The uid of `postgres` in CloudNativePG's images: PostgreSQL's `initdb` refuses a uid without a user name.
const POSTGRES_USER: u32 = 26;
/// The mount paths of the jobs for backups: the password of the database, the dumps, and a volume for one run.
const OWNER_FOLDER: &str = "/etc/textnlp-database-owner";
const DUMPS: &str = "/var/lib/textnlp/backups";
const WORK: &str = "/var/lib/textnlp/work";
/// The Secret with the private key for a restore, which an operator creates for that time, and its mount path.
const KEY_SECRET: &str = "textnlp-backup-key";
const KEY_FOLDER: &str = "/etc/textnlp-backup-key";
/// The key of the variables that sign in to the bucket of copies, among the secrets of a site.
const CREDENTIALS: &str = "backup-credentials";
/// The Secret with them, its file and its mount path.
const CREDENTIALS_SECRET: &str = "textnlp-backup-credentials";
const CREDENTIALS_FILE: &str = "bucket.env";
const CREDENTIALS_FOLDER: &str = "/etc/textnlp-backup-credentials";
/// The schedule of a job that is only started manually, a date that never comes: the 30th of February.
const NEVER: &str = "0 0 30 2 *";
/// The mount path of the script.
const SCRIPT_FOLDER: &str = "/etc/textnlp-backup";
const SCRIPT: &str = include_str!("../../../../templates/kubernetes/backup.sh");

/// The connection of pods to their database.
pub(super) struct DatabaseConnection {
    /// Whether it is the PostgreSQL beside the servers.
    is_ours: bool,
    /// The entries of the pods' Secret for it.
    pub(super) secret: Value,
    /// The section `database:` of the server's configuration.
    pub(super) settings: Value,
    /// The mount path of the database's certificate authority and its volume; null for a public authority.
    pub(super) authority: Value,
    /// The resources that must exist first.
    pub(super) needs: Vec<ResourceId>,
}

impl DatabaseConnection {
    /// The connection as variables for other programs: `DATABASE_URL`, and `PGPASSWORD` from the Secret if the URL has
    /// no password.
    pub(super) fn address_for_others(&self, secret: &str) -> Vec<Value> {
        let of = |name: &str, key: &str| json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } });
        let authority = self.settings["ca_file"].as_str();
        let mut env = Vec::new();
        if self.secret.get("database-url").is_none() && self.secret.get("database-password").is_some() {
            env.push(of("PGPASSWORD", "database-password"));
        }
        let url = self.settings["url"].as_str().unwrap_or_default();
        env.push(match authority {
            _ if self.secret.get("database-url").is_some() => of("DATABASE_URL", "database-url"),
            // The generated password needs no escaping in a URL; Kubernetes expands the variable.
            Some(authority) if self.is_ours => {
                let url = url.replacen('@', ":$(PGPASSWORD)@", 1);
                json!({ "name": "DATABASE_URL", "value": format!("{url}&sslrootcert={authority}") })
            }
            // An external password may need escaping, so it remains a variable of its own.
            _ => json!({ "name": "DATABASE_URL", "value": url }),
        });
        if let Some(authority) = authority.filter(|_| !self.is_ours) {
            env.push(json!({ "name": "PGSSLROOTCERT", "value": authority }));
        }
        env
    }
}

impl Lowering<'_> {
    pub(super) fn database(&mut self, database: &Database) {
        let Some(postgres) = &database.postgres else {
            let cause = format!("a `{}` database is not supported in a cluster", database.kind);
            let fix = "write `database: { kind: postgres }` for one that CloudNativePG runs, and add `url: secret:env:DATABASE_URL` for an external one";
            return self.problem("kind", cause, fix);
        };
        match (&postgres.address, &self.cluster.postgres) {
            // One that a cloud runs is a resource of that cloud's provider.
            (Some(_), _) => {}
            (None, _) if database.hosting == Some(Hosting::Managed) => {}
            (None, Some(own)) if database.hosting == Some(Hosting::Cluster) => self.own_postgres(postgres, own),
            (None, _) => {
                let hosting = database.hosting.map_or("", Hosting::as_str);
                let cause = format!("`hosting: {hosting}` is not supported for PostgreSQL in a cluster");
                self.problem("hosting", cause, "write `hosting: cluster`, or the address of an external one");
            }
        }
    }

    fn own_postgres(&mut self, postgres: &Postgres, own: &OwnPostgres) {
        if postgres.port.is_some() {
            self.problem("port", "the service of the database in the cluster has port 5432", "remove it");
        }
        if postgres.archive_seconds.is_some() {
            let cause = "archiving the log of a PostgreSQL in the cluster is not supported yet";
            self.problem("backup.point_in_time", cause, "remove it: backups are taken on the schedule of `backup`");
        }
        if postgres.between.is_some() {
            let cause = "failover between sites in clusters is not supported yet";
            self.problem("between", cause, "keep one site in this environment");
        }
        let Some(image) = self.checked_image(own.version) else { return };
        if major(&image) != Some(own.version) {
            let cause = format!(
                "CloudNativePG reads the version off the tag, and `{image}` does not begin with {}",
                own.version
            );
            let fix = format!(
                "use an image such as `registry.example.com/postgresql:{}`, or change `database.version`",
                own.version
            );
            self.problem("database_image", cause, fix);
        }
        let name = self.component.name.clone();
        let (Some(owner), Some(cluster)) = (self.id(name.as_str(), "owner"), self.id(name.as_str(), "cluster")) else {
            return;
        };
        let Some(password) = self.id(postgres.secrets.as_str(), PASSWORD) else { return };
        let data = json!({ "username": { PLAIN: OWNER }, "password": OutputRef::new(password, "secret") });
        let labels = json!({ (RELOADED): "true" });
        self.labelled_secret(owner.clone(), (OWNER_SECRET, "kubernetes.io/basic-auth"), &labels, &data, Vec::new());
        // A pull secret that is added to a running cluster can stall the operator (report
        // cloudnative-pg/cloudnative-pg#8370), so only an image that needs it gets one.
        let is_private = self.registry().is_some_and(|address| is_in_registry(&image, address));
        let pull_secret = self.pull_secret().filter(|_| is_private);
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "name": POSTGRES,
            "instances": postgres.replicas.saturating_add(1),
            "image": image,
            "pull_secret": pull_secret.as_ref().map(|_| REGISTRY_NAME),
            "version": own.version,
            "disk": disk(own.disk_bytes),
            "database": own.database,
            "owner": OWNER,
            "secret": OWNER_SECRET,
            "owner_digest": OutputRef::new(owner.clone(), "digest"),
            "connections": postgres.connections.saturating_add(SPARE_CONNECTIONS),
        });
        self.object(cluster, Template::Postgres, &inputs, [owner].into_iter().chain(pull_secret));
    }

    /// The image of PostgreSQL, compatible with CloudNativePG; backups use the programs in it.
    fn postgres_image(&self, version: u32) -> Option<String> {
        self.settings().database_image.clone().or_else(|| postgres_image(version))
    }

    /// The same; reports one that is missing or not pinned.
    fn checked_image(&mut self, version: u32) -> Option<String> {
        let image = self.postgres_image(version);
        match &image {
            Some(image) => self.pinned("database_image", image),
            None => {
                let cause = format!("no image of PostgreSQL {version} is built in");
                let fix = format!(
                    "write `sites[].cluster.database_image: ghcr.io/cloudnative-pg/postgresql:{version}@sha256:…`, or choose another `database.version`"
                );
                self.problem("database_image", cause, fix);
            }
        }
        image
    }

    /// The pods' connection to the database; `None` if there is none, which the database component reports.
    pub(super) fn way(
        &self,
        database: &ComponentName,
        stored: &Database,
        egress: &Egress,
    ) -> Option<DatabaseConnection> {
        let postgres = stored.postgres.as_ref()?;
        let of = |part: &str| self.id(database.as_str(), part).map(|id| json!(OutputRef::new(id, "secret")));
        let by_password = |password: Value| json!({ "database-password": password });
        let password_file = format!("{SECRETS}/database-password");
        let mut needs = Vec::new();
        let (secret, settings) = match &postgres.address {
            Some(DatabaseAddress::Secret(_)) => {
                (json!({ "database-url": of("url")? }), json!({ "url": "${DATABASE_URL}" }))
            }
            Some(DatabaseAddress::Url(url, None)) => (json!({}), json!({ "url": url })),
            Some(DatabaseAddress::Url(url, Some(_))) => {
                (by_password(of("password")?), json!({ "url": url, "password_file": password_file }))
            }
            None if stored.hosting == Some(Hosting::Managed) => {
                let instance = self.id(database.as_str(), MANAGED)?;
                let password = self.id(postgres.secrets.as_str(), PASSWORD)?;
                needs.push(instance.clone());
                let mut secret = by_password(json!(OutputRef::new(password, "secret")));
                secret["database-url"] = json!({ PLAIN: OutputRef::new(instance, "url") });
                (secret, json!({ "url": "${DATABASE_URL}", "password_file": password_file }))
            }
            None => {
                let own = self.cluster.postgres.as_ref()?;
                let password = self.id(postgres.secrets.as_str(), PASSWORD)?;
                let url = format!("postgresql://{OWNER}@{POSTGRES}-rw:5432/{}?sslmode=verify-full", own.database);
                let settings =
                    json!({ "url": url, "password_file": password_file, "ca_file": format!("{AUTHORITY}/ca.crt") });
                return Some(DatabaseConnection {
                    is_ours: true,
                    secret: by_password(json!(OutputRef::new(password, "secret"))),
                    settings,
                    authority: json!({
                        "folder": AUTHORITY,
                        "volume": {
                            "name": "database-authority",
                            "secret": { "secretName": AUTHORITY_SECRET, "items": [{ "key": "ca.crt", "path": "ca.crt" }] },
                        },
                    }),
                    needs: self.id(database.as_str(), "cluster").into_iter().collect(),
                });
            }
        };
        let mut way =
            DatabaseConnection { is_ours: false, secret, settings, authority: private_authority(egress), needs };
        if !way.authority.is_null() {
            way.settings["ca_file"] = json!(private_authority_file());
        }
        Some(way)
    }

    /// Verified backups on a volume of the namespace, their copies in a bucket, and the job that restores one.
    pub(super) fn backup(&mut self, backup: &Backup) {
        let dumped = match (&self.cluster.postgres, &backup.managed) {
            (Some(own), _) => self.own_dumped(own),
            (None, Some(managed)) => self.managed_dumped(managed),
            (None, None) => {
                let cause = "backups of an external database from a cluster are not supported";
                return self.problem("backup", cause, "set `backup: { enabled: false }`, and back it up where it runs");
            }
        };
        if let Some(target) = backup.destination.as_ref().filter(|_| backup.copies.is_none()) {
            let cause = format!("the dumps of a cluster are on a volume in it, not in `{target}`");
            let fix = "write the bucket for copies of them, `s3://BUCKET/PREFIX`, `gs://…` or `az://…`, or remove it";
            self.problem("destination", cause, fix);
        }
        let user = self.user().map(|_| POSTGRES_USER);
        if backup.verify && user.is_none() {
            let cause = "the user that OpenShift assigns to a pod has no name, so PostgreSQL cannot create the database for the verification";
            self.problem("verify", cause, "set `backup: { verify: false }`");
        }
        let Some(schedule) = schedule(backup.every_seconds) else {
            let cause = format!("a CronJob cannot run every {} s", backup.every_seconds);
            let fix = "write an interval that divides an hour or a day evenly, a day or a week: 15m, 1h, 6h, 24h, 7d";
            return self.problem("every", cause, fix);
        };
        let name = self.component.name.clone();
        let ids = ["volume", "script", "schedule", "restore"].map(|part| self.id(name.as_str(), part));
        let [Some(volume), Some(script), Some(scheduled), Some(restore)] = ids else { return };
        // What is missing was reported.
        let Some(Dumped { image, disk_bytes, backup_bytes, secret, connection, authority, ca, needs }) = dumped else {
            return;
        };
        let namespace = self.cluster.namespace.clone();
        let claim = json!({ "namespace": namespace, "name": DUMPS_CLAIM, "size": disk(backup_bytes), "access": "ReadWriteOnce", "class": null });
        self.object(volume.clone(), Template::VolumeClaim, &claim, []);
        let mut files = json!({ "backup.sh": SCRIPT });
        if let Some(ca) = ca {
            files["ca.crt"] = json!(ca);
        }
        let files = json!({ "namespace": namespace, "name": "textnlp-backup", "files": files, "carried": false });
        self.object(script.clone(), Template::ConfigMap, &files, []);
        // The workload reports an image that is missing.
        let Some(program) = self.settings().image.clone() else { return };
        let mut env = vec![variable("PASSWORD_FILE", &format!("{OWNER_FOLDER}/password"))];
        env.extend(connection);
        env.push(variable("WORK", WORK));
        env.push(variable("VERIFY", if backup.verify { "true" } else { "false" }));
        let postgres = |name: &str, verb: &str| {
            let command = ["sh", &format!("{SCRIPT_FOLDER}/backup.sh"), verb];
            json!({ "name": name, "image": image, "command": command, "env": env, "is_postgres": true })
        };
        let ours = |name: &str, verb: &str, arguments: Vec<String>, env: Vec<Value>| {
            let command = [PROGRAM, "backup", verb].map(str::to_owned).into_iter().chain(arguments);
            let command: Vec<String> = command.collect();
            json!({ "name": name, "image": program, "command": command, "env": env, "is_postgres": false })
        };
        let (dump, report, folder) =
            (format!("{WORK}/dump"), format!("--report={WORK}/report"), format!("--folder={DUMPS}"));
        let keep = format!("--keep={}", backup.keep_seconds);
        let recipients = backup.recipients.iter().map(|recipient| format!("--recipient={recipient}"));
        let mut encrypt: Vec<String> =
            [format!("--dump={dump}"), report.clone(), folder.clone(), keep].into_iter().chain(recipients).collect();
        let (mut env_of_store, mut needs_of_store, mut store) = (Vec::new(), Vec::new(), Value::Null);
        if let Some(copies) = backup.copies.as_deref() {
            encrypt.push(format!("--destination={}", copies.url));
            if copies.credentials.is_some() {
                encrypt.push(format!("--credentials={CREDENTIALS_FOLDER}/{CREDENTIALS_FILE}"));
            }
            env_of_store.extend(download_env(&copies.egress));
            needs_of_store = self.store_access(copies);
            store = json!({
                "secret": copies.credentials.is_some().then_some(CREDENTIALS_SECRET),
                "file": CREDENTIALS_FILE, "folder": CREDENTIALS_FOLDER, "authority": private_authority(&copies.egress),
            });
        }
        // Only an account of its own may sign in to the bucket.
        let signs_in = backup.copies.as_ref().is_some_and(|copies| copies.credentials.is_none());
        let account = if signs_in { BACKUP } else { ACCOUNT_OF_PODS };
        let decrypt = [folder, format!("--key={KEY_FOLDER}/key.txt"), format!("--out={dump}"), report];
        let storing = [postgres("dump", "dump"), ours(BACKUP, "encrypt", encrypt, env_of_store)];
        let restoring = [ours("decrypt", "decrypt", decrypt.into(), Vec::new()), postgres(RESTORE, "restore")];
        let needs: Vec<ResourceId> = [volume, script].into_iter().chain(needs).collect();
        for (id, name, steps, schedule, tries) in
            [(scheduled, BACKUP, storing, schedule.as_str(), 2), (restore, RESTORE, restoring, NEVER, 0)]
        {
            let is_restore = name == RESTORE;
            let inputs = json!({
                "namespace": namespace, "name": name, "steps": steps, "schedule": schedule, "suspend": is_restore,
                "tries": tries, "user": user, "authority_secret": authority, "owner_secret": secret,
                "key_secret": is_restore.then_some(KEY_SECRET),
                "account": if is_restore { ACCOUNT_OF_PODS } else { account },
                "store": (!is_restore).then_some(&store),
                // An account's credentials would also be given to the container with the database's password.
                "skip": (signs_in && !is_restore).then_some("dump"),
                "folders": {
                    "script": SCRIPT_FOLDER, "authority": AUTHORITY, "owner": OWNER_FOLDER, "dumps": DUMPS,
                    "work": WORK, "key": KEY_FOLDER,
                },
                // The restored database and the compressed dump.
                "disk": disk(disk_bytes.saturating_add(disk_bytes / 2)),
            });
            let further = needs_of_store.iter().filter(|_| !is_restore);
            self.object(id, Template::DatabaseJob, &inputs, needs.iter().chain(further).cloned());
        }
    }

    /// What the job that copies dumps to a bucket has of its own: the credentials or an account, and a network policy. Returns what
    /// must exist first.
    fn store_access(&mut self, copies: &DumpCopies) -> Vec<ResourceId> {
        let component = self.component.name.clone();
        let mut needs = Vec::new();
        match &copies.credentials {
            Some(secrets) => {
                let ids = (self.id(component.as_str(), "credentials"), self.id(secrets.as_str(), CREDENTIALS));
                if let (Some(id), Some(value)) = ids {
                    let data = json!({ (CREDENTIALS_FILE): OutputRef::new(value, "secret") });
                    self.secret(id.clone(), CREDENTIALS_SECRET, "Opaque", &data, Vec::new());
                    needs.push(id);
                }
            }
            None => {
                let account = self.id(component.as_str(), "account");
                self.service_account(account.clone(), BACKUP);
                needs.extend(account);
            }
        }
        if copies.egress.private_ca.is_some() {
            needs.extend(self.id(SERVER, "private-ca"));
        }
        needs.extend(self.copies_policy(copies));
        needs
    }

    /// The PostgreSQL beside the servers.
    fn own_dumped(&self, own: &OwnPostgres) -> Option<Dumped> {
        let (host, authority) = (format!("{POSTGRES}-rw"), format!("{AUTHORITY}/ca.crt"));
        let connection = [
            ("PGHOST", host.as_str()),
            ("PGPORT", "5432"),
            ("PGUSER", OWNER),
            ("PGDATABASE", &own.database),
            ("PGSSLMODE", "verify-full"),
            ("PGSSLROOTCERT", &authority),
        ];
        Some(Dumped {
            // The database component reports an image that is missing.
            image: self.postgres_image(own.version)?,
            disk_bytes: own.disk_bytes,
            backup_bytes: own.backup_bytes,
            secret: OWNER_SECRET,
            connection: connection.map(|(name, value)| variable(name, value)).into(),
            authority: Some(AUTHORITY_SECRET),
            ca: None,
            needs: self.id(DATABASE, "cluster").into_iter().collect(),
        })
    }

    /// One that a cloud runs: with the address and the password that the servers have, and verified as they do.
    fn managed_dumped(&mut self, managed: &ManagedDumps) -> Option<Dumped> {
        let component = self.component.name.clone();
        let owner = self.id(component.as_str(), "owner")?;
        let instance = self.id(DATABASE, MANAGED)?;
        let password = self.id(managed.secrets.as_str(), PASSWORD)?;
        // `pg_dump` refuses a newer server, and `pg_restore` of 17 sets `transaction_timeout`, which an older one refuses.
        let image = self.checked_image(managed.version)?;
        if major(&image) != Some(managed.version) {
            let cause = format!(
                "its programs dump and restore the database, and the tag of `{image}` does not begin with {}",
                managed.version
            );
            let fix =
                format!("use an image such as `registry.example.com/postgresql:{}`, or remove it", managed.version);
            self.problem("database_image", cause, fix);
            return None;
        }
        // The workload reports an authority that cannot be read.
        let ca = managed.private_ca.clone().and_then(Result::ok);
        let data = json!({
            "password": OutputRef::new(password, "secret"),
            "url": { PLAIN: OutputRef::new(instance, "url") },
        });
        self.secret(owner.clone(), MANAGED_SECRET, "Opaque", &data, Vec::new());
        let from = json!({ "secretKeyRef": { "name": MANAGED_SECRET, "key": "url" } });
        let mut connection = vec![json!({ "name": "DATABASE_URL", "valueFrom": from })];
        connection.extend(ca.is_some().then(|| variable("PGSSLROOTCERT", &format!("{SCRIPT_FOLDER}/ca.crt"))));
        Some(Dumped {
            image,
            disk_bytes: managed.disk_bytes,
            backup_bytes: managed.backup_bytes,
            secret: MANAGED_SECRET,
            connection,
            authority: None,
            ca,
            needs: vec![owner],
        })
    }
}

/// A database that is dumped.
struct Dumped {
    /// The image with the programs that dump and restore it.
    image: String,
    /// The disk of the database, in bytes.
    disk_bytes: u64,
    /// The disk for dumps, in bytes.
    backup_bytes: u64,
    /// The Secret with its password.
    secret: &'static str,
    /// The variables of its address.
    connection: Vec<Value>,
    /// The Secret with its certificate authority, for a database in the cluster.
    authority: Option<&'static str>,
    /// Its certificate authorities, which are beside the script.
    ca: Option<String>,
    /// The resources that must exist first.
    needs: Vec<ResourceId>,
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// The major version of PostgreSQL in an image, by its tag.
fn major(image: &str) -> Option<u32> {
    let (_, tag) = image.split('@').next()?.rsplit('/').next()?.split_once(':')?;
    tag.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The component that the backups belong to.
const DATABASE: &str = "database";
/// The component with the certificate authorities of a company.
const SERVER: &str = "server";

/// Bytes as a Kubernetes quantity, in the largest unit that divides them.
pub(super) fn disk(bytes: u64) -> String {
    let units = [(1_u64 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi")];
    let amount = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    amount.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// A period as a cron expression in UTC; daily and weekly runs start at 02:00.
fn schedule(seconds: u64) -> Option<String> {
    const HOUR: u64 = 3600;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    // Cron steps restart with every hour or day, so the period must divide it.
    let parts = |amount: u64, unit: u64| seconds.is_multiple_of(unit) && amount.is_multiple_of(seconds);
    match seconds {
        WEEK => Some("0 2 * * 0".to_owned()),
        DAY => Some("0 2 * * *".to_owned()),
        HOUR => Some("0 * * * *".to_owned()),
        HOUR..DAY if parts(DAY, HOUR) => Some(format!("0 */{} * * *", seconds / HOUR)),
        60..HOUR if parts(HOUR, 60) => Some(format!("*/{} * * * *", seconds / 60)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backup_intervals_become_cron_schedules_or_are_refused() {
        for (seconds, line) in [
            (86_400, Some("0 2 * * *")),
            (7 * 86_400, Some("0 2 * * 0")),
            (3600, Some("0 * * * *")),
            (6 * 3600, Some("0 */6 * * *")),
            (15 * 60, Some("*/15 * * * *")),
            (60, Some("*/1 * * * *")),
            (5 * 3600, None),
            (7 * 60, None),
            (90, None),
            (30, None),
            (0, None),
            (2 * 86_400, None),
        ] {
            assert_eq!(schedule(seconds).as_deref(), line, "{seconds}");
        }
    }

    #[test]
    fn disk_sizes_are_written_in_whole_units() {
        for (bytes, says) in [(100 << 30, "100Gi"), (1 << 40, "1Ti"), (1536 << 20, "1536Mi"), (1_000_000, "1000000")] {
            assert_eq!(disk(bytes), says);
        }
    }
}
