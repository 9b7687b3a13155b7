//! Additional gate checks of an air-gapped site: unmodified content, no known vulnerabilities, and no connections to
//! other machines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::scan::{self, Folder, Gate, Settings, Severity};
use textnlp_bundle::{Authenticity, Drive, Site};
use textnlp_orchestrator::gate::Check;

use super::inspect::signed;
use crate::commands::audit::{self, Audit};
use crate::deployment::Deployment;
use crate::session::{ChosenEnvironment, Session};

/// The checks of an installed site.
pub async fn checks(session: &Session, deployment: &Deployment, audit: &Audit<'_>) -> Vec<Check> {
    let ChosenEnvironment { scope, .. } = &deployment.chosen;
    let root = root(session, deployment);
    let mut checks: Vec<Check> = tokio::task::block_in_place(|| [content(&root), vulnerable(&root, audit)]).into();
    let mut pids = Vec::new();
    for site in deployment.sites.keys() {
        pids.extend(scope.platform.processes(&scope.folder, site).await);
    }
    checks.push(elsewhere(&pids));
    checks
}

/// The root of the installed site: the parent of its environments, else of its state folder.
fn root(session: &Session, deployment: &Deployment) -> Utf8PathBuf {
    let state = deployment.chosen.scope.folder.parent().and_then(Utf8Path::parent);
    let environments = session.library.folder().and_then(Utf8Path::parent);
    let roots: Vec<&Utf8Path> = environments.into_iter().chain(state).collect();
    let installed = roots.iter().find(|root| matches!(Site::new(root).installed(), Ok(Some(_))));
    installed.or(roots.first()).map_or_else(Utf8PathBuf::new, |root| (*root).to_owned())
}

const CONTENT: &str = "content as sealed";
/// The command that adds the missing advisories to an installed site.
const CARRY: &str = "`textnlp-deploy gate --env air-gapped --advisories DIR` with a copy of the advisory database, or a bundle from \
                     `textnlp-deploy bundle create --env air-gapped --out FILE --advisories DIR`; \
                     `--set gates.advisories=warn --reason TEXT` accepts it";
const ELSEWHERE: &str = "connections to elsewhere";

/// Verifies every installed byte.
fn content(root: &Utf8Path) -> Check {
    let fails = |why: String| Check::unmeasured(CONTENT, 0, "altered files", why);
    let site = Site::new(root);
    let (name, record) = match (site.current(), site.installed()) {
        (Ok(Some(name)), Ok(Some(record))) => (name, record),
        (Ok(None), _) | (_, Ok(None)) => return fails(format!("nothing was installed from a bundle in {root}")),
        (Err(error), _) | (_, Err(error)) => return fails(error.to_string()),
    };
    match site.altered(&name, &record, true, &Drive::default()) {
        Ok(altered) => {
            let authenticity = record.sources.iter().map(|s| &s.authenticity).find(|a| !a.is_verified());
            let authenticity = authenticity.or(record.sources.first().map(|s| &s.authenticity));
            let who = authenticity.map_or_else(|| "of unknown origin".to_owned(), |a: &Authenticity| signed(a));
            let mut note = format!("version {}, {} files, {who}", record.version, record.contents.files.len());
            if let Some(first) = altered.first() {
                note = format!("{first}; {note}");
            }
            Check::new(CONTENT, altered.len(), 0, "altered files", altered.is_empty()).note(note)
        }
        Err(error) => fails(error.to_string()),
    }
}

/// Checks the content against the given advisories, else the included ones. Without them, only the recorded audit of the
/// program is available.
fn vulnerable(root: &Utf8Path, audit: &Audit<'_>) -> Check {
    let gates = audit.gates;
    let fails = |why: String| Check::unmeasured(audit::NAME, 0, "critical", why);
    let settings = Settings { max_age_days: audit::max_age_days(gates), ..Settings::at(audit.now) };
    let mut scan = scan::Scan::new(settings);
    if let Some(database) = audit.given {
        scan = scan.with(database.clone());
    }
    let report = Folder::open(&root.join("current"))
        .map_err(|e| e.to_string())
        .and_then(|folder| scan.of_folder("installed", &folder).map_err(|e| e.to_string()));
    let report = match report {
        Ok(report) => report,
        Err(why) => return fails(why),
    };
    let critical = report.summary.of(Severity::Critical);
    let Some(age) = report.databases.iter().map(|database| database.age_days).max() else {
        let recorded = audit.check(|| None);
        let worst = report.findings.first().filter(|_| critical > 0);
        return match worst {
            Some(worst) => Check::new(audit::NAME, critical, 0, "critical", false)
                .note(format!("{}: {} ({})", worst.id, worst.title, worst.place)),
            None if !recorded.ok && !recorded.waits => recorded,
            None => {
                let why = format!("the bundle has no advisories; to check it: {CARRY}");
                let known = recorded.note.map_or_else(String::new, |note| {
                    format!("; known vulnerabilities: {} in {note}", recorded.measured)
                });
                Check::unchecked(audit::NAME, 0, "critical", why + &known, gates.advisories)
            }
        };
    };
    let of: Vec<String> = report
        .databases
        .iter()
        .map(|d| format!("{} advisories, {}", d.advisories, audit::aged(d.date, d.age_days)))
        .collect();
    let note = format!("{}; {} findings in all", of.join("; "), report.findings.len());
    let check = match scan::gate(&report, Severity::Critical) {
        Gate::Open => Check::new(audit::NAME, critical, 0, "critical", true).note(note),
        Gate::Shut { blockers } => {
            let first = blockers.first().cloned().unwrap_or_default();
            Check::new(audit::NAME, critical, 0, "critical", false).note(format!("{first}; {note}"))
        }
    };
    audit::within_age(check, age, gates, CARRY)
}

/// Outgoing connections of these processes to other machines.
fn elsewhere(pids: &[u32]) -> Check {
    if pids.is_empty() {
        return Check::unmeasured(ELSEWHERE, 0, "connections", "no process of the service was found");
    }
    let mut found = BTreeSet::new();
    for pid in pids {
        let inodes = match sockets(*pid) {
            Ok(inodes) => inodes,
            Err(error) => {
                return Check::unmeasured(
                    ELSEWHERE,
                    0,
                    "connections",
                    format!("read the connections of process {pid}: {error}"),
                );
            }
        };
        let rows: Vec<Row> = ["tcp", "tcp6", "udp", "udp6"]
            .iter()
            .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
            .flat_map(|text| text.lines().skip(1).filter_map(row).collect::<Vec<_>>())
            .collect();
        // A connection to a port with a listener is incoming. The others are outgoing.
        let mut listening: BTreeMap<u16, ()> = BTreeMap::new();
        listening.extend(rows.iter().filter(|r| r.listens).map(|r| (r.local.port(), ())));
        found.extend(
            rows.iter()
                .filter(|r| !r.listens && inodes.contains(&r.inode) && !listening.contains_key(&r.local.port()))
                .filter(|r| !r.remote.ip().is_unspecified() && !r.remote.ip().to_canonical().is_loopback())
                .map(|r| r.remote.to_string()),
        );
    }
    let check = Check::new(ELSEWHERE, found.len(), 0, "connections", found.is_empty());
    let list: Vec<String> = found.into_iter().take(5).collect();
    if list.is_empty() { check.note(format!("of {} processes", pids.len())) } else { check.note(list.join(", ")) }
}

fn sockets(pid: u32) -> std::io::Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        // The descriptor may have been closed meanwhile.
        let Ok(link) = std::fs::read_link(entry?.path()) else { continue };
        let inode: Option<u64> =
            link.to_str().and_then(|l| l.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inodes.extend(inode);
    }
    Ok(inodes)
}

/// A line of `/proc/PID/net/tcp` and similar files.
#[derive(Debug, PartialEq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    listens: bool,
    inode: u64,
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Some(Row {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        listens: *fields.get(3)? == "0A",
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// Parses `0100007F:1F90`: hexadecimal words in native byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let bytes = hex::decode(ip).ok()?;
    let words = bytes.chunks_exact(4).flat_map(|word| {
        let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
        word.to_ne_bytes()
    });
    let bytes: Vec<u8> = words.collect();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn proc_net_row_is_parsed_into_local_and_remote_address() {
        let line =
            "   1: 0100007F:1F90 0200000A:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0000";
        let row = row(line).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(row.local, "127.0.0.1:8080".parse().unwrap());
            assert_eq!(row.remote, "10.0.0.2:50000".parse().unwrap());
        }
        assert_eq!((row.listens, row.inode), (false, 12345));
        assert_eq!(super::row("sl local_address rem_address"), None);
    }

    #[test]
    fn loopback_connections_pass_and_a_missing_process_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let check = elsewhere(&[std::process::id()]);
        assert!(check.ok, "{check}");
        assert!(!elsewhere(&[]).ok);
        assert!(!elsewhere(&[u32::MAX - 1]).ok);
    }
}
