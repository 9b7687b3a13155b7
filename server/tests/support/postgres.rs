//! A real PostgreSQL on a Unix socket in a temporary folder, one for all tests of a program; it ends with the program, however that ends.

// Each test program uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where Debian keeps the programs of the newest version from 15 on; `TEXTNLP_POSTGRES_BIN` is another place.
pub(crate) fn programs() -> Option<PathBuf> {
    if let Some(place) = std::env::var_os("TEXTNLP_POSTGRES_BIN") {
        return Some(place.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let versions = versions.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let newest = versions.filter(|version| *version >= 15).max()?;
    Some(PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin")))
}

/// Where it may be left out, it is said that it was.
pub(crate) fn is_installed() -> bool {
    let found = programs().is_some();
    assert!(found || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "PostgreSQL is not installed");
    if !found {
        eprintln!("NOT TESTED: PostgreSQL is not installed (Debian: apt-get install postgresql-15)");
    }
    found
}

/// Whom the server runs as where we are root, which it refuses: its package's user, else nobody.
pub(crate) fn user() -> Option<(u32, u32)> {
    let id = |flag: &str, name: &str| -> Option<u32> {
        let said = Command::new("id").args([flag, name]).output().ok()?;
        String::from_utf8(said.stdout).ok()?.trim().parse().ok()
    };
    if Command::new("id").arg("-u").output().ok()?.stdout != b"0\n" {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| Some((id("-u", name)?, id("-g", name)?)))
}

pub(crate) struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    port: Option<String>,
    /// Holds the pipe whose end is the server's end.
    guard: Child,
}

/// `$1` the programs, `$2` the folder, `$3` further settings. Ends with its standard input.
const GUARD: &str = r#"
"$1/initdb" -D "$2/data" -U owner -A trust -E UTF8 --locale=C --no-sync >"$2/log" 2>&1 &&
printf '%s\n' "unix_socket_directories = '$2'" "listen_addresses = ''" "fsync = off" "$3" >>"$2/data/postgresql.conf" &&
"$1/pg_ctl" -D "$2/data" -w -t 60 -l "$2/log" start >>"$2/log" 2>&1 && echo ready
read -r _
"$1/pg_ctl" -D "$2/data" -m immediate stop >/dev/null 2>&1
rm -rf "$2"
"#;

impl Cluster {
    /// A server of one's own, with further lines of settings; a port is the last of them.
    pub(crate) fn start(settings: &str) -> Self {
        let programs = programs().unwrap();
        let folder = tempfile::Builder::new().prefix("tnpg").tempdir().unwrap().keep();
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "sh"]).arg(&programs).arg(&folder).arg(settings).current_dir("/");
        guard.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        if let Some((user, group)) = user() {
            std::os::unix::fs::chown(&folder, Some(user), Some(group)).unwrap();
            guard.uid(user).gid(group);
        }
        let mut guard = guard.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(guard.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert_eq!(line, "ready\n", "PostgreSQL does not start: {}", log());
        let port = settings.split_once("port = ").map(|(_, port)| port.to_owned());
        let cluster = Self { folder, programs, port, guard };
        cluster.sql("postgres", "CREATE ROLE textnlp LOGIN; CREATE ROLE textnlp_tenant NOLOGIN");
        cluster.sql("postgres", "GRANT textnlp_tenant TO textnlp");
        cluster
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs statements as the superuser, and says what they answer.
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        let said = self.said(database, statements);
        assert!(said.status.success(), "{statements}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }

    /// The same, whatever comes of it.
    pub(crate) fn said(&self, database: &str, statements: &str) -> Output {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-U", "owner", "-d", database, "-c", statements]);
        if let Some(port) = &self.port {
            psql.args(["-p", port]);
        }
        psql.arg("-h").arg(&self.folder).output().unwrap()
    }

    /// A new empty database; the server's own role owns it.
    pub(crate) fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER textnlp"));
        name
    }

    /// The address of a database for the server's own role.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgresql://textnlp@{}/{database}", self.folder.to_str().unwrap().replace('/', "%2F"))
    }

    /// Lets it speak TLS from now on.
    pub(crate) fn begin_tls(&self, certificate: &str, key: &str) {
        use std::os::unix::fs::PermissionsExt;
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.folder.join("data").join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some((user, group)) = user() {
                std::os::unix::fs::chown(&file, Some(user), Some(group)).unwrap();
            }
        }
        self.sql("postgres", "ALTER SYSTEM SET ssl = on");
        self.crash_and_start();
    }

    /// Stops it at once, as a crash does, and starts it again with what it had.
    pub(crate) fn crash_and_start(&self) {
        self.control(&["-m", "immediate", "restart"]);
    }

    pub(crate) fn control(&self, arguments: &[&str]) {
        let mut control = Command::new(self.programs.join("pg_ctl"));
        control.args(["-w", "-t", "60", "-l"]).arg(self.folder.join("log")).arg("-D").arg(self.folder.join("data"));
        if let Some((user, group)) = user() {
            control.uid(user).gid(group);
        }
        let done = control.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).status();
        assert!(done.unwrap().success(), "pg_ctl {arguments:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// The server that all tests of this program share.
pub(crate) fn shared() -> Option<&'static Cluster> {
    static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| is_installed().then(|| Cluster::start(""))).as_ref()
}
