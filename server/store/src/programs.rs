//! PostgreSQL's client programs: dump and restore.

use std::process::Stdio;
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio::process::Command;
use url::Url;

use crate::config::decoded;

/// Timeout: many gigabytes take long.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(3600);

/// Finds a program of at least this version: Debian's directories, Red Hat's, then `PATH`.
pub fn find(name: &str, least: u32) -> Option<Utf8PathBuf> {
    // Searches 20 major versions, one a year.
    let versions = (least..least + 20)
        .flat_map(|version| [format!("/usr/lib/postgresql/{version}/bin"), format!("/usr/pgsql-{version}/bin")]);
    let folders = std::env::var("TEXTNLP_POSTGRES_BIN").into_iter().chain(versions);
    let path = std::env::var("PATH").unwrap_or_default();
    // An empty or relative entry is the working directory, whose files others may have put there.
    let places = path.split(':').filter(|place| place.starts_with('/')).map(str::to_owned);
    let folders: Vec<String> = folders.chain(places).collect();
    folders.into_iter().map(|folder| Utf8PathBuf::from(folder).join(name)).find(|program| program.is_file())
}

/// Runs a program on a database. The password is not on the command line. The error is the program's output.
pub async fn run(program: &Utf8PathBuf, url: &Url, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").envs(variables(url));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let child = child.map_err(|error| format!("start {program}: {error}"))?;
    let ended = tokio::time::timeout(PROGRAM_TIMEOUT, child.wait_with_output()).await;
    let said = match ended {
        Ok(said) => said.map_err(|error| format!("{program}: {error}"))?,
        Err(_) => return Err(format!("{program} did not end within {} s", PROGRAM_TIMEOUT.as_secs())),
    };
    if said.status.success() {
        return Ok(());
    }
    let excerpt: String = String::from_utf8_lossy(&said.stderr).chars().take(2000).collect();
    Err(format!("{program}: {}", excerpt.trim().replace('\n', "; ")))
}

/// The address as the variables that PostgreSQL's programs read. They see all tenants' rows.
fn variables(url: &Url) -> Vec<(&'static str, String)> {
    let mut set = vec![("PGOPTIONS", "-c textnlp.tenant=*".to_owned()), ("PGCONNECT_TIMEOUT", "10".to_owned())];
    let mut add = |name, value: String| {
        if !value.is_empty() {
            set.push((name, value));
        }
    };
    add("PGHOST", url.host_str().map(decoded).unwrap_or_default());
    add("PGPORT", url.port().map(|port| port.to_string()).unwrap_or_default());
    add("PGUSER", decoded(url.username()));
    add("PGPASSWORD", url.password().map(decoded).unwrap_or_default());
    add("PGDATABASE", decoded(url.path().trim_start_matches('/')));
    let mut has_authority = false;
    for (name, value) in url.query_pairs() {
        let variable = match name.as_ref() {
            "host" => "PGHOST",
            "port" => "PGPORT",
            "user" => "PGUSER",
            "password" => "PGPASSWORD",
            "dbname" => "PGDATABASE",
            "sslmode" | "ssl-mode" => "PGSSLMODE",
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => {
                has_authority = true;
                "PGSSLROOTCERT"
            }
            "sslcert" | "ssl-cert" => "PGSSLCERT",
            "sslkey" | "ssl-key" => "PGSSLKEY",
            _ => continue,
        };
        add(variable, value.into_owned());
    }
    if !has_authority {
        // libpq 15 cannot use the system's CA store by itself.
        add("PGSSLROOTCERT", "/etc/ssl/certs/ca-certificates.crt".to_owned());
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_url_becomes_libpq_variables() {
        let of = |url: &str| -> Vec<String> {
            variables(&url.parse().unwrap())
                .into_iter()
                .skip(2)
                .map(|(name, value)| format!("{name}={value}"))
                .collect()
        };
        assert_eq!(
            of("postgresql://u:p%2Fw@%2Frun%2Fp:5433/x?sslmode=disable&sslrootcert=/ca"),
            [
                "PGHOST=/run/p",
                "PGPORT=5433",
                "PGUSER=u",
                "PGPASSWORD=p/w",
                "PGDATABASE=x",
                "PGSSLMODE=disable",
                "PGSSLROOTCERT=/ca"
            ]
        );
        assert_eq!(of("postgresql://h/x?user=v")[0..2], ["PGHOST=h", "PGDATABASE=x"]);
    }
}
