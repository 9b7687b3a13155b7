//! `postgres:`: which folder, which role, and the files that follow from that.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use textnlp_files::Replace;
use textnlp_process::{Address, InvalidConfig, read_config};

use super::{Archive, Error, Recover};

/// A folder, and no link to one.
const NO_LINK: i32 = (rustix::fs::OFlags::DIRECTORY.bits() | rustix::fs::OFlags::NOFOLLOW.bits()) as i32;
/// A file, and no link to one. A pipe is not waited for.
const PLAIN: i32 = (rustix::fs::OFlags::NOFOLLOW.bits() | rustix::fs::OFlags::NONBLOCK.bits()) as i32;

/// The role that owns everything. It connects only by the Unix socket, with peer authentication.
pub(super) const OWNER: &str = "textnlp_owner";
/// The role of the service.
pub(super) const SERVICE: &str = "textnlp";
/// The role for replication.
pub(super) const REPLICATION: &str = "textnlp_copies";

/// `postgres:`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The supervisor's control socket: readiness and metrics.
    #[serde(deserialize_with = "address")]
    pub listen: Address,
    /// The directory of PostgreSQL's programs.
    pub programs: Utf8PathBuf,
    /// The folder that holds `data/` and `run/`.
    pub folder: Utf8PathBuf,
    /// User and group that it runs as, if this process is root.
    #[serde(default)]
    pub user: Option<(u32, u32)>,
    /// The number in the socket's name, and the port of `loopback`.
    pub port: u16,
    /// Whether it listens on this machine's own address, beside its socket.
    #[serde(default)]
    pub loopback: bool,
    /// The name of the database.
    pub database: String,
    /// A dump to create the database from, if there is none yet; it is deleted afterwards.
    #[serde(default)]
    pub dump: Option<Utf8PathBuf>,
    /// WAL archiving, where configured.
    #[serde(default)]
    pub archive: Option<Archive>,
    /// The recovery target, where the data directory is a base backup.
    #[serde(default)]
    pub recover: Option<Recover>,
    /// Whether it stops at the end of standard input, so that a verification never leaves a server behind.
    #[serde(default)]
    pub attended: bool,
    /// The file with the service's password.
    pub password_file: Utf8PathBuf,
    /// The file with the replication password, where there are replicas.
    #[serde(default)]
    pub replication_password_file: Option<Utf8PathBuf>,
    /// `max_connections` of the server.
    pub max_connections: u32,
    /// The names of the replicas of this server.
    #[serde(default)]
    pub copies: Vec<String>,
    /// The primary that this server follows; `None` when it is the primary.
    #[serde(default)]
    pub primary: Option<Primary>,
    /// The other sites that share the database, where the primary may move between sites.
    #[serde(default)]
    pub sites: Option<Sites>,
}

/// The sites of a PostgreSQL that several share: each has a server, and one of them is the primary.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sites {
    /// Which this is.
    pub site: String,
    /// The control socket of this site's agent, which reports the primary.
    #[serde(deserialize_with = "address")]
    pub watch: Address,
    /// The other sites' databases, through this site's inter-site relay.
    #[serde(deserialize_with = "addresses")]
    pub peers: BTreeMap<String, Address>,
    /// The socket for connections from other sites, behind this site's inter-site relay.
    pub door: Utf8PathBuf,
    /// A replica that lags by more may not become primary, in milliseconds.
    pub max_lag_ms: u64,
    /// A symbolic link to the data directory, for operators.
    #[serde(default)]
    pub link: Option<Utf8PathBuf>,
}

impl Sites {
    /// The replication slot of a site; slot names allow no hyphens.
    pub(super) fn slot(site: &str) -> String {
        format!("at_{}", site.replace('-', "_"))
    }
}

/// The primary that a replica follows.
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
    pub fn read(file: &Utf8Path) -> Result<Self, InvalidConfig> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            postgres: Config,
        }
        read_config("configuration", file, 64 << 10, |document: Document| document.postgres, Self::problem)
    }

    fn problem(&self) -> Option<String> {
        let names = self.copies.iter().chain(self.primary.iter().map(|primary| &primary.name));
        // Names of replication slots.
        let is_name = |name: &String| {
            (1..=40).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if let Some(name) = names.into_iter().find(|name| !is_name(name)) {
            return Some(format!("`{name}` is not a valid name of a copy: a-z, 0-9 and _"));
        }
        if !(self.folder.is_absolute() && self.programs.is_absolute()) {
            return Some("`folder` and `programs` must be absolute paths".to_owned());
        }
        let sites = self.sites.as_ref()?;
        let problem = if self.primary.is_some() || !self.copies.is_empty() {
            Some("`sites` cannot be combined with `primary` and `copies`")
        } else if sites.peers.is_empty() || sites.peers.contains_key(&sites.site) {
            Some("`sites.peers` must have at least one other site")
        } else if self.replication_password_file.is_none() {
            Some("`sites` need a `replication_password_file`")
        } else if !sites.door.is_absolute() {
            Some("`sites.door` must be an absolute path")
        } else if self.port == u16::MAX {
            Some("`port` leaves no free number for `sites.door`")
        } else {
            None
        };
        problem.map(str::to_owned)
    }

    /// The primary that this server follows, if any; between sites, through the local proxy socket.
    pub(super) fn following(&self) -> Option<Primary> {
        let via_relay = |sites: &Sites| Primary {
            socket_folder: self.run(),
            port: self.door_number(),
            name: Sites::slot(&sites.site),
        };
        self.primary.clone().or_else(|| self.sites.as_ref().map(via_relay))
    }

    /// The number in the name of the proxy socket.
    pub(super) fn door_number(&self) -> u16 {
        self.port.saturating_add(1)
    }

    /// The replication slots, when this server is the primary.
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

    /// The name of the database until it is whole.
    pub(super) fn half_database(&self) -> String {
        format!("{}_half", self.database)
    }

    /// Writes the client authentication, the replication credentials, and the directory of the socket.
    pub(super) fn write_files(&self) -> Result<(), Error> {
        let run = self.run();
        let fails = |path: &Utf8Path| {
            let path = path.to_owned();
            move |source| Error::Folder { path, source }
        };
        let make = || -> io::Result<()> {
            match std::fs::create_dir(&run) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // Not by its path: the owner of the parent directory may have placed a link there, and we may be root.
            let folder = OpenOptions::new().read(true).custom_flags(NO_LINK).open(&run)?;
            self.give(&folder)?;
            folder.set_permissions(std::fs::Permissions::from_mode(0o700))
        };
        make().map_err(fails(&run))?;
        let me = rustix::process::geteuid().as_raw();
        let user = self.user.map_or(me, |(user, _)| user);
        let mut ident = String::new();
        for uid in std::collections::BTreeSet::from([me, user]) {
            // The system calls its users by names.
            if let Some(name) = textnlp_files::user_name(uid) {
                ident.push_str(&format!("owner {name} {OWNER}\n"));
            }
        }
        let access = format!(
            "local all {OWNER} peer map=owner\nlocal replication {OWNER} peer map=owner\nlocal {database} {SERVICE} scram-sha-256\nlocal {half} {SERVICE} scram-sha-256\nlocal replication {REPLICATION} scram-sha-256\n\
             host {database} {SERVICE} 127.0.0.1/32 scram-sha-256\nhost {database} {SERVICE} ::1/128 scram-sha-256\n\
             {rewinds}",
            database = quoted(&self.database),
            half = quoted(&self.half_database()),
            // A former primary reads from the current one what has changed since the divergence.
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
        let path = self.folder.join(name);
        let written = Replace::private().sole_writer().with(&path, |file| {
            std::io::Write::write_all(file, text.as_bytes())?;
            self.give(file)
        });
        written.map_err(|source: io::Error| Error::Folder { path, source })
    }

    /// Creates `standby.signal` in a data directory beside the others: PostgreSQL starts as a standby if it exists.
    pub(super) fn put_standby_signal(&self, data: &str) -> Result<(), Error> {
        let put = || {
            let folder = self.open_own(&self.folder.join(data))?;
            let file = Replace::private().sole_writer();
            file.with(in_folder(&folder, "standby.signal"), |file| self.give(file))
        };
        put().map_err(|source: io::Error| Error::Folder { path: self.folder.join(data).join("standby.signal"), source })
    }

    /// Reads the start of a file below a data directory, at most `length` bytes. `folders` lead to it from there.
    pub(super) fn read_data(&self, folders: &[&str], name: &str, length: u64) -> io::Result<Vec<u8>> {
        let mut folder = self.open_own(&self.data())?;
        for inner in folders {
            folder = self.open_own(&in_folder(&folder, inner))?;
        }
        let file = OpenOptions::new().read(true).custom_flags(PLAIN).open(in_folder(&folder, name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Opens a folder of the server's user. The user may have replaced it by a link or a folder of others, where this
    /// process would read or write as root.
    fn open_own(&self, path: &Utf8Path) -> io::Result<File> {
        let folder = OpenOptions::new().read(true).custom_flags(NO_LINK).open(path)?;
        let owner = self.user.map_or_else(|| rustix::process::geteuid().as_raw(), |(user, _)| user);
        match folder.metadata()?.uid() {
            uid if uid == owner => Ok(folder),
            uid => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it belongs to uid {uid}, not {owner}")))
            }
        }
    }

    /// Changes the owner of a file to the server's user.
    fn give(&self, file: &File) -> io::Result<()> {
        self.user.map_or(Ok(()), |(user, group)| fchown(file, Some(user), Some(group)))
    }

    /// The connection string from a replica to its primary.
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

/// The path of an entry of an open folder, wherever that is moved meanwhile.
fn in_folder(folder: &File, name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

/// A quoted name for pg_hba.conf: quotes remove the special meaning of words like `all`.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_in_the_data_directory_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let (folder, outside) = (root.join("postgres"), root.join("outside"));
        for path in [&folder.join("data/global"), &outside] {
            std::fs::create_dir_all(path).unwrap();
        }
        let own = std::fs::metadata(&folder).unwrap();
        let text = serde_json::json!({
            "listen": "unix:/nowhere", "programs": "/nowhere", "folder": folder, "user": [own.uid(), own.gid()],
            "port": 5432, "database": "textnlp", "password_file": "/nowhere", "max_connections": 5,
        });
        let config: Config = serde_json::from_value(text).unwrap();
        let system = || config.read_data(&["global"], "pg_control", 8);
        config.put_standby_signal("data").unwrap();
        assert!(folder.join("data/standby.signal").is_file());
        std::fs::write(outside.join("pg_control"), "of others").unwrap();
        std::fs::copy(outside.join("pg_control"), folder.join("data/global/pg_control")).unwrap();
        assert_eq!(system().unwrap(), b"of other");

        // The server's user replaces the file, the folder of it, and the whole directory.
        std::fs::remove_file(folder.join("data/global/pg_control")).unwrap();
        symlink(outside.join("pg_control"), folder.join("data/global/pg_control")).unwrap();
        assert!(system().is_err());
        std::fs::remove_dir_all(folder.join("data/global")).unwrap();
        symlink(&outside, folder.join("data/global")).unwrap();
        assert!(system().is_err());
        std::fs::remove_dir_all(folder.join("data")).unwrap();
        symlink(&outside, folder.join("data")).unwrap();
        assert!(config.put_standby_signal("data").is_err());
        assert!(!outside.join("standby.signal").exists());

        // A folder of another user.
        let other = Config { user: Some((own.uid() + 1, own.gid())), ..config.clone() };
        std::fs::remove_file(folder.join("data")).unwrap();
        std::fs::create_dir(folder.join("data")).unwrap();
        let error = format!("{:?}", other.put_standby_signal("data").unwrap_err());
        assert!(error.contains("belongs to uid"), "{error}");
        config.put_standby_signal("data").unwrap();
    }
}
