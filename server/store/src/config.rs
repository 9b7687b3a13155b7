//! The location of a database: a SQLite file, or the address of a PostgreSQL server and the files with its secrets.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use url::Url;

/// Where keys, budgets and usage are stored.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its location.
    pub at: DatabaseAt,
    /// Size of the connection pool.
    pub pool_size: u32,
    /// Connections more under load.
    pub max_overflow: u32,
}

/// A file or a server.
#[derive(Debug, Clone)]
pub enum DatabaseAt {
    /// The SQLite file.
    File(Utf8PathBuf),
    /// A PostgreSQL.
    Server(PostgresAt),
}

impl fmt::Display for DatabaseAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{file}"),
            Self::Server(server) => write!(f, "{server}"),
        }
    }
}

/// A PostgreSQL server: its address, and files with its secrets, which are read whenever a connection is opened.
#[derive(Clone)]
pub struct PostgresAt {
    address: PostgresAddress,
    password_file: Option<Utf8PathBuf>,
    ca_file: Option<Utf8PathBuf>,
}

#[derive(Clone)]
enum PostgresAddress {
    Url(Url),
    File(Utf8PathBuf),
}

/// The longest address or password.
const MAX_SECRET: u64 = 4096;

impl PostgresAt {
    /// One at an address.
    pub fn new(url: &str) -> Result<Self, String> {
        Ok(Self { address: PostgresAddress::Url(parse(url)?), password_file: None, ca_file: None })
    }

    /// One whose address lies in a file.
    pub fn in_file(file: &camino::Utf8Path) -> Self {
        Self { address: PostgresAddress::File(file.to_owned()), password_file: None, ca_file: None }
    }

    /// The same, trusted by an authority that lies in a file.
    pub fn with_authority(self, file: &camino::Utf8Path) -> Self {
        Self { ca_file: Some(file.to_owned()), ..self }
    }

    /// The same with a password that lies in a file.
    pub fn with_password(self, file: &camino::Utf8Path) -> Self {
        Self { password_file: Some(file.to_owned()), ..self }
    }

    /// The complete URL, with the password and the TLS settings. A remote server must present a certificate for its
    /// name, unless the URL says otherwise.
    pub fn url(&self) -> Result<Url, String> {
        let mut url = match &self.address {
            PostgresAddress::Url(url) => url.clone(),
            PostgresAddress::File(file) => {
                parse(&secret(file)?).map_err(|why| format!("the address in {file} {why}"))?
            }
        };
        if let Some(file) = &self.password_file {
            url.set_password(Some(&secret(file)?))
                .map_err(|()| "an address without a host has no password".to_owned())?;
        }
        let has = |names: &[&str]| url.query_pairs().any(|(name, _)| names.contains(&name.as_ref()));
        let mut more = Vec::new();
        if !has(&["sslmode", "ssl-mode"]) {
            more.push(("sslmode", if is_near(&url) { "disable" } else { "verify-full" }));
        }
        if let Some(file) = &self.ca_file
            && !has(&["sslrootcert", "ssl-root-cert", "ssl-ca"])
        {
            more.push(("sslrootcert", file.as_str()));
        }
        if !has(&["application_name"]) {
            more.push(("application_name", "textnlp"));
        }
        url.query_pairs_mut().extend_pairs(more);
        Ok(url)
    }
}

impl PostgresAt {
    /// Its host and database for display, without secrets; also where the URL is in a file.
    pub fn shown(&self) -> String {
        let address = self.url().map_or_else(|_| self.address.clone(), PostgresAddress::Url);
        Self { address, ..self.clone() }.to_string()
    }
}

impl fmt::Display for PostgresAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            PostgresAddress::File(file) => write!(f, "the address in {file}"),
            PostgresAddress::Url(url) => {
                let port = query(url, &["port"]).or(url.port().map(|port| port.to_string()));
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                write!(f, "postgresql://{}{port}{}", host_of(url), url.path())
            }
        }
    }
}

impl fmt::Debug for PostgresAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Whether the URL is a Unix socket or this machine itself.
fn is_near(url: &Url) -> bool {
    let host = host_of(url);
    host.starts_with('/')
        || host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// The server that the driver connects to: [`parse`] refuses URLs that name several.
fn host_of(url: &Url) -> String {
    query(url, HOSTS).unwrap_or_else(|| decoded(url.host_str().unwrap_or("localhost")))
}

/// The parameters that name the server instead of the host of the URL.
const HOSTS: &[&str] = &["host", "hostaddr"];

/// The first parameter with one of these names.
fn query(url: &Url, names: &[&str]) -> Option<String> {
    url.query_pairs().find(|(name, _)| names.contains(&name.as_ref())).map(|(_, value)| value.into_owned())
}

/// Percent-decodes a part of a URL: `%2F` is a slash.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..2).filter(|_| *first == b'%').and_then(|digits| hex::decode(digits).ok());
        match code {
            Some(code) => {
                bytes.extend(code);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse(text: &str) -> Result<Url, String> {
    let url: Url = text.trim().parse().map_err(|_| "is not a URL".to_owned())?;
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return Err("is not the URL of a PostgreSQL server: it must begin with `postgresql://`".to_owned());
    }
    if url.host_str().is_some_and(|host| host.contains(',')) {
        return Err("names several hosts, which is not supported: name the primary server".to_owned());
    }
    let count = |names: &[&str]| url.query_pairs().filter(|(name, _)| names.contains(&name.as_ref())).count();
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    let is_other = has_host && query(&url, HOSTS).is_some_and(|host| !host.starts_with('/'));
    if is_other || count(HOSTS) > 1 || count(&["port"]) > 1 {
        return Err("names several servers: name it once, as the host of the URL".to_owned());
    }
    Ok(url)
}

fn secret(file: &Utf8Path) -> Result<String, String> {
    let fails = |error: std::io::Error| format!("{file}: {error}");
    if std::fs::metadata(file).map_err(fails)?.len() > MAX_SECRET {
        return Err(format!("{file} has more than {MAX_SECRET} bytes"));
    }
    Ok(std::fs::read_to_string(file).map_err(fails)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expect: &str) {
        assert_eq!(PostgresAt::new(url).unwrap().url().unwrap().as_str(), expect);
    }

    #[test]
    fn remote_database_must_verify_its_host_name_by_default() {
        check("postgresql://u@db/x", "postgresql://u@db/x?sslmode=verify-full&application_name=textnlp");
        check("postgres://u@db/x?sslmode=require", "postgres://u@db/x?sslmode=require&application_name=textnlp");
        for near in [
            "postgresql://u@127.0.0.1:5/x",
            "postgresql://u@[::1]/x",
            "postgresql://u@localhost/x",
            "postgresql://u@%2Frun%2Fp/x",
        ] {
            check(near, &format!("{near}?sslmode=disable&application_name=textnlp"));
        }
        check(
            "postgresql://u@x/x?host=/run/p",
            "postgresql://u@x/x?host=/run/p&sslmode=disable&application_name=textnlp",
        );
    }

    #[test]
    fn database_address_names_one_server() {
        for url in [
            "postgresql://u@db.company.example/x?host=127.0.0.1&port=6432",
            "postgresql:///x?host=localhost&host=evil.example",
            "postgresql:///x?host=localhost&hostaddr=192.0.2.1",
            "postgresql:///x?host=db&port=1&port=2",
        ] {
            assert!(PostgresAt::new(url).unwrap_err().contains("several servers"), "{url}");
        }
        let at = PostgresAt::new("postgresql:///x?hostaddr=192.0.2.1&port=6432").unwrap();
        assert_eq!(at.to_string(), "postgresql://192.0.2.1:6432/x");
        assert!(at.url().unwrap().query().unwrap().contains("sslmode=verify-full"));
    }

    #[test]
    fn database_secrets_are_read_from_files_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut at = PostgresAt::new("postgresql://u@db:6432/x").unwrap();
        at.password_file = Some(file("p", "hunter/2\n"));
        at.ca_file = Some("/ca.pem".into());
        let url = at.url().unwrap();
        assert_eq!(
            (url.password(), url.query().unwrap().contains("sslrootcert=%2Fca.pem")),
            (Some("hunter%2F2"), true)
        );
        assert_eq!(format!("{at} {at:?}"), "postgresql://db:6432/x postgresql://db:6432/x");
        let whole = PostgresAt { address: PostgresAddress::File(file("u", "postgresql://u:hunter3@db/x\n")), ..at };
        assert!(!format!("{whole:?}").contains("hunter"));
        assert_eq!(whole.url().unwrap().username(), "u");
        assert_eq!(whole.shown(), "postgresql://db/x");
        let none = PostgresAt { address: PostgresAddress::File("/nowhere".into()), ..whole };
        assert!(none.url().unwrap_err().contains("/nowhere"));
    }
}
