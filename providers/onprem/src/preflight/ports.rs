//! Whether the configured ports are free, used by this site, or taken by another program.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use serde_json::Value;
use textnlp_keys::{Marker, SiteFolder};
use textnlp_provider::{Problem, Wanted};

use crate::lock;
use crate::spec::{ProcessSpec, bound_addresses};

/// Adds a problem for every port that is taken.
pub(super) fn check(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let inputs = wanted.spec.get("inputs");
    let text = |name: &str| inputs?.get(name).and_then(Value::as_str).map(str::to_owned);
    let (applied, runs) = ours(wanted, folder);
    // During a restart of the gateway the site's supervisor holds the port.
    let supervisor = lock::holder(&folder.lock("supervisor")).ok().flatten();
    for (address, field) in bound_addresses(text).into_iter().zip(["port", "metrics_port"]) {
        if runs && applied.contains(&address) {
            continue;
        }
        let location = format!("{}: {field}", wanted.id);
        let change = setting(wanted.id.as_str(), field);
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let by = holders(address.port());
                if applied.contains(&address) && by.iter().any(|(pid, _)| Some(*pid) == supervisor) {
                    continue;
                }
                let by = by.first().map(|(pid, name)| {
                    let of = environment(&command_line(*pid)).map(|name| format!(", of environment {name}"));
                    format!(" by `{name}`, pid {pid}{}", of.unwrap_or_default())
                });
                let cause = format!("{address} is taken{}", by.unwrap_or_default());
                problems.push(Problem::new(
                    location,
                    cause,
                    format!("stop that process, or choose another port: {change}"),
                ));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let cause = format!("only root can bind {address}");
                problems.push(Problem::new(location, cause, format!("choose a port above 1023: {change}")));
            }
            Err(error) => {
                let cause = format!("{address} cannot be bound: {error}");
                problems.push(Problem::new(location, cause, "choose an address of this machine"));
            }
        }
    }
}

/// The addresses that this site's process was applied with, and whether it runs, by its lock.
fn ours(wanted: &Wanted, folder: &SiteFolder) -> (Vec<SocketAddr>, bool) {
    let Ok(Some(marker)) = Marker::read(&folder.marker(&wanted.id)) else { return (Vec::new(), false) };
    let Ok(spec) = marker.spec.typed::<ProcessSpec>() else { return (Vec::new(), false) };
    let runs = matches!(lock::holder(&folder.lock(&spec.unit)), Ok(Some(_)));
    (spec.bound_addresses(), runs)
}

/// The pids and names of the processes that listen on a port, as far as they are visible.
fn holders(port: u16) -> Vec<(u32, String)> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).filter_map(|line| listener(line, port)).collect::<Vec<_>>())
        .collect();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|target| {
            let target = target.to_string_lossy();
            inodes.iter().any(|inode| *target == *format!("socket:[{inode}]"))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push((pid, name.trim().to_owned()));
        }
    }
    found
}

/// The setting of a port of a unit, as a flag and as the key for one site.
fn setting(unit: &str, field: &str) -> String {
    let site = unit.split('/').next().unwrap_or_default();
    let general = match (site, field) {
        // The global endpoint of several sites, beside the witness.
        ("witness", _) => return format!("`--set traffic.{field}=PORT`"),
        (_, "metrics_port") => "server.monitoring.metrics_port",
        _ => "server.api.port",
    };
    format!("`--set {general}=PORT`, or for this site `--set sites.{site}.{field}=PORT`")
}

/// What a process was started with.
fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// The environment that a process of this product serves: `STATE/ENVIRONMENT/sites/SITE` is among its arguments.
fn environment(command_line: &str) -> Option<&str> {
    let (before, _) = command_line.split_once("/sites/")?;
    before.rsplit('/').next().filter(|name| textnlp_provider::EnvironmentName::new(*name).is_ok())
}

/// The inode of a line of `/proc/net/tcp` that listens on a port.
fn listener(line: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, hex) = fields.get(1)?.rsplit_once(':')?;
    let listens = fields.get(3) == Some(&LISTEN) && u16::from_str_radix(hex, 16).ok()? == port;
    listens.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_problem_names_the_setting_and_the_environment() {
        assert!(setting("here/gateway/process", "metrics_port").contains("--set server.monitoring.metrics_port="));
        assert!(setting("here/gateway/process", "port").contains("--set sites.here.port="));
        assert_eq!(setting("witness/front/process", "port"), "`--set traffic.port=PORT`");
        let line = "/s/staging/sites/here/bin/server serve --config /s/staging/sites/here/gateway.yaml";
        assert_eq!(environment(line), Some("staging"));
        assert_eq!(environment("/usr/sbin/nginx"), None);
    }

    #[test]
    fn process_holding_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let by = holders(port);
        assert!(by.iter().any(|(pid, name)| *pid == std::process::id() && !name.is_empty()), "{by:?}");
    }
}
