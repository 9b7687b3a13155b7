//! Whether the configured ports are free, ours already, or somebody else's.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use serde_json::Value;
use textnlp_provider::{Problem, Wanted};

use crate::layout::SiteFolder;
use crate::lock;
use crate::marker::Marker;
use crate::spec::{ProcessSpec, bound_addresses};

/// Adds a problem for every port that is taken.
pub(super) fn check(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let inputs = wanted.spec.get("inputs");
    let text = |name: &str| inputs?.get(name).and_then(Value::as_str).map(str::to_owned);
    let (applied, runs) = ours(wanted, folder);
    // Between two gateways the site's supervisor holds the port.
    let supervisor = lock::holder(&folder.lock("supervisor")).ok().flatten();
    for (address, field) in bound_addresses(text).into_iter().zip(["port", "metrics_port"]) {
        if runs && applied.contains(&address) {
            continue;
        }
        let place = format!("{}: {field}", wanted.id);
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let by = holders(address.port());
                if applied.contains(&address) && by.iter().any(|(pid, _)| Some(*pid) == supervisor) {
                    continue;
                }
                let by = by
                    .first()
                    .map(|(pid, name)| format!("`{name}`, pid {pid}"))
                    .map(|by| format!(" by {by}"))
                    .unwrap_or_default();
                let cause = format!("{address} is taken{by}");
                problems.push(Problem::new(place, cause, format!("stop that, or choose another `{field}`")));
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let cause = format!("{address} may be bound by root only");
                problems.push(Problem::new(place, cause, format!("choose a `{field}` over 1023")));
            }
            Err(error) => {
                let cause = format!("{address} cannot be bound: {error}");
                problems.push(Problem::new(place, cause, "choose an address of this machine"));
            }
        }
    }
}

/// The addresses that our own process of that name was applied with, and whether it runs, by its lock.
fn ours(wanted: &Wanted, folder: &SiteFolder) -> (Vec<SocketAddr>, bool) {
    let Ok(Some(marker)) = Marker::read(&folder.marker(&wanted.id)) else { return (Vec::new(), false) };
    let Ok(spec) = marker.spec.typed::<ProcessSpec>() else { return (Vec::new(), false) };
    let runs = matches!(lock::holder(&folder.lock(&spec.unit)), Ok(Some(_)));
    (spec.bound_addresses(), runs)
}

/// The numbers and names of the processes that listen on a port, as far as we may see them.
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
    fn who_took_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let by = holders(port);
        assert!(by.iter().any(|(pid, name)| *pid == std::process::id() && !name.is_empty()), "{by:?}");
    }
}
