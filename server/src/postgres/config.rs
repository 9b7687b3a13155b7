//! `postgres:`: which folder, which role, and the files that follow from that.

use std::collections::BTreeMap;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use super::{Archive, Error, Recover};
use crate::config::{Address, read_yaml};

/// A folder, and no link to one.
const NO_LINK: i32 = (rustix::fs::OFlags::DIRECTORY.bits() | rustix::fs::OFlags::NOFOLLOW.bits()) as i32;

/// The role that everything belongs to: it comes in by the socket alone, as whoever runs this program.
pub(super) const OWNER: &str = "textnlp_owner";
/// The role of the service.
pub(super) const SERVICE: &str = "textnlp";
/// The role of copies.
pub(super) const REPLICATION: &str = "textnlp_copies";

/// `postgres:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Our own socket: whether it is ready, and its figures.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// Where PostgreSQL's programs are.
    pub programs: Utf8PathBuf,
    /// The folder that holds `data/` and `run/`.
    pub folder: Utf8PathBuf,
    /// Whom it runs as, where this is root: user and group.
    #[serde(default)]
    pub user: Option<(u32, u32)>,
    /// The number in the socket's name, and the port where `loopback` listens.
    pub port: u16,
    /// Whether it listens on this machine's own address, beside its socket.
    #[serde(default)]
    pub loopback: bool,
    /// The name of the database.
    pub database: String,
    /// A dump that the database is made from, where there is none yet; it goes when that is done.
    #[serde(default)]
    pub dump: Option<Utf8PathBuf>,
    /// Hands its log over, where it is archived.
    #[serde(default)]
    pub archive: Option<Archive>,
    /// What it is brought to before it serves, where its folder is a base.
    #[serde(default)]
    pub recover: Option<Recover>,
    /// Whether it ends with its standard input: a proof takes its server along, however it dies.
    #[serde(default)]
    pub attended: bool,
    /// The file with the service's password.
    pub password_file: Utf8PathBuf,
    /// The file with the password of copies, where there are any.
    #[serde(default)]
    pub replication_password_file: Option<Utf8PathBuf>,
    /// Connections of everybody.
    pub max_connections: u32,
    /// The names of the copies that follow this one.
    #[serde(default)]
    pub copies: Vec<String>,
    /// Whom this one follows; nobody, when it is the primary.
    #[serde(default)]
    pub primary: Option<Primary>,
    /// The sites that it is shared with, where another one may be primary tomorrow.
    #[serde(default)]
    pub sites: Option<Sites>,
}

/// The sites of a PostgreSQL that several share: each has a server, and one of them is the primary.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sites {
    /// Which this is.
    pub site: String,
    /// Who says which is primary: this site's watch.
    #[serde(deserialize_with = "address")]
    pub watch: Address,
    /// The others' databases, through this site's border.
    #[serde(deserialize_with = "addresses")]
    pub peers: BTreeMap<String, Address>,
    /// The socket by which others come in, behind this site's border.
    pub door: Utf8PathBuf,
    /// A copy that lacks more is not given the primary's place.
    pub max_lag_ms: u64,
    /// A link that leads to the folder, for people.
    #[serde(default)]
    pub link: Option<Utf8PathBuf>,
}

impl Sites {
    /// The name of a site's slot, which knows no hyphens.
    pub(super) fn slot(site: &str) -> String {
        format!("at_{}", site.replace('-', "_"))
    }
}

/// Whom a copy follows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// The folder of its socket.
    pub socket_folder: Utf8PathBuf,
    /// The number in its socket's name.
    pub port: u16,
    /// Our name there.
    pub name: String,
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn addresses<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Address>, D::Error> {
    let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
    texts.into_iter().map(|(site, text)| Ok((site, text.parse().map_err(serde::de::Error::custom)?))).collect()
}

impl Config {
    /// Reads and checks a file.
    pub fn read(file: &Utf8Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            postgres: Config,
        }
        let wrong = |why| Error::Config { file: file.to_owned(), why };
        let config = read_yaml::<Document>(file, 64 << 10).map_err(wrong)?.postgres;
        let names = config.copies.iter().chain(config.primary.iter().map(|primary| &primary.name));
        // Names of replication slots.
        let is_name = |name: &String| {
            (1..=40).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if let Some(name) = names.into_iter().find(|name| !is_name(name)) {
            return Err(wrong(format!("`{name}` is no name of a copy: a-z, 0-9 and _")));
        }
        if !(config.folder.is_absolute() && config.programs.is_absolute()) {
            return Err(wrong("`folder` and `programs` are absolute paths".to_owned()));
        }
        if let Some(sites) = &config.sites {
            let problem = if config.primary.is_some() || !config.copies.is_empty() {
                Some("`sites` say who follows whom; `primary` and `copies` do not go with them")
            } else if sites.peers.is_empty() || sites.peers.contains_key(&sites.site) {
                Some("`sites.peers` are the others, at least one")
            } else if config.replication_password_file.is_none() {
                Some("`sites` need a `replication_password_file`")
            } else if !sites.door.is_absolute() {
                Some("`sites.door` is an absolute path")
            } else if config.port == u16::MAX {
                Some("`port` leaves no number for the door")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(wrong(problem.to_owned()));
            }
        }
        Ok(config)
    }

    /// Whom this one follows, if it does: between sites, whoever is behind the door.
    pub(super) fn following(&self) -> Option<Primary> {
        let through_door = |sites: &Sites| Primary {
            socket_folder: self.run(),
            port: self.door_number(),
            name: Sites::slot(&sites.site),
        };
        self.primary.clone().or_else(|| self.sites.as_ref().map(through_door))
    }

    /// The number in the name of the door's socket.
    pub(super) fn door_number(&self) -> u16 {
        self.port.saturating_add(1)
    }

    /// The slots of those who follow, when this one is the primary.
    pub(super) fn slots(&self) -> Vec<String> {
        let others = self.sites.iter().flat_map(|sites| sites.peers.keys()).map(|site| Sites::slot(site));
        self.copies.iter().cloned().chain(others).collect()
    }

    pub(super) fn data(&self) -> Utf8PathBuf {
        self.folder.join("data")
    }

    pub(super) fn run(&self) -> Utf8PathBuf {
        self.folder.join("run")
    }

    /// Who may come in, how a copy proves itself, and the folder of the socket.
    pub(super) fn write_files(&self) -> Result<(), Error> {
        let run = self.run();
        let fails = |path: &Utf8Path| {
            let path = path.to_owned();
            move |source| Error::Folder { path, source }
        };
        let make = || -> std::io::Result<()> {
            match std::fs::create_dir(&run) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // Not by its path: whoever owns the folder around it may have put a link there, and we may be root.
            let folder = std::fs::OpenOptions::new().read(true).custom_flags(NO_LINK).open(&run)?;
            self.give(&folder)?;
            folder.set_permissions(std::fs::Permissions::from_mode(0o700))
        };
        make().map_err(fails(&run))?;
        let me = rustix::process::geteuid().as_raw();
        let user = self.user.map_or(me, |(user, _)| user);
        let mut ident = String::new();
        for uid in std::collections::BTreeSet::from([me, user]) {
            // The system calls its users by names.
            if let Some(name) = name_of(uid) {
                ident.push_str(&format!("owner {name} {OWNER}\n"));
            }
        }
        let access = format!(
            "local all {OWNER} peer map=owner\nlocal replication {OWNER} peer map=owner\nlocal {database} {SERVICE} scram-sha-256\nlocal replication {REPLICATION} scram-sha-256\n\
             host {database} {SERVICE} 127.0.0.1/32 scram-sha-256\nhost {database} {SERVICE} ::1/128 scram-sha-256\n\
             {rewinds}",
            database = quoted(&self.database),
            // A primary of before reads what the one of now has changed since.
            rewinds = if self.sites.is_some() {
                format!("local postgres {REPLICATION} scram-sha-256\n")
            } else {
                String::new()
            },
        );
        self.put("access.conf", &access)?;
        self.put("users.conf", &ident)?;
        if let (Some(primary), Some(file)) = (self.following(), &self.replication_password_file) {
            let password = std::fs::read_to_string(file).map_err(fails(file))?;
            // Fields of a password file keep their colons and backslashes by a backslash.
            let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
            let line = format!(
                "{}:{}:*:{REPLICATION}:{}\n",
                escape(primary.socket_folder.as_str()),
                primary.port,
                escape(password.trim())
            );
            self.put("primary.pass", &line)?;
        }
        Ok(())
    }

    /// Writes a file that the server's user alone reads.
    pub(super) fn put(&self, name: &str, text: &str) -> Result<(), Error> {
        let (path, beside) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
        let write = || -> std::io::Result<()> {
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            self.give(&file)?;
            std::fs::rename(&beside, &path)
        };
        write().map_err(|source| Error::Folder { path: path.clone(), source })
    }

    /// Gives a file to whom the server runs as.
    fn give(&self, file: &std::fs::File) -> std::io::Result<()> {
        self.user.map_or(Ok(()), |(user, group)| fchown(file, Some(user), Some(group)))
    }

    /// How a copy reaches its primary.
    pub(super) fn follows(&self, primary: &Primary) -> String {
        let value = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        format!(
            "host={} port={} user={REPLICATION} application_name={} passfile={}",
            value(primary.socket_folder.as_str()),
            primary.port,
            primary.name,
            value(self.folder.join("primary.pass").as_str()),
        )
    }
}

/// A name as pg_hba.conf has it, where quotes take the meaning from words like `all`.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name of a user of this system.
fn name_of(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
