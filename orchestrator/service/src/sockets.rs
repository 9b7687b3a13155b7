//! The sockets of processes on this machine, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::ELSEWHERE;

/// Outgoing connections of these processes to other machines.
pub(crate) fn elsewhere(pids: std::io::Result<Vec<u32>>) -> Check {
    let unmeasured = |why: String| Check::unmeasured(ELSEWHERE, 0, "connections", why);
    let pids = match pids {
        Ok(pids) if pids.is_empty() => return unmeasured("no process of the service was found".to_owned()),
        Ok(pids) => pids,
        Err(error) => return unmeasured(format!("find the processes of the service: {error}")),
    };
    let mut found = BTreeSet::new();
    for pid in &pids {
        let inodes = match sockets(*pid) {
            Ok(inodes) => inodes,
            Err(error) => return unmeasured(format!("read the connections of process {pid}: {error}")),
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

/// The TCP addresses on which these processes accept connections, or why they are unknown.
pub(crate) fn listeners(pids: &[u32]) -> Result<Vec<SocketAddr>, String> {
    if pids.is_empty() {
        return Err("no process of the service was found".to_owned());
    }
    let mut found = BTreeSet::new();
    for pid in pids {
        let failed = |error: std::io::Error| format!("read the sockets of process {pid}: {error}");
        let inodes = sockets(*pid).map_err(failed)?;
        let mut text = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).map_err(failed)?;
        // Without IPv6 there is no such table.
        text.push_str(&std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default());
        let open = text.lines().filter_map(row).filter(|row| row.listens && inodes.contains(&row.inode));
        found.extend(open.map(|row| row.local));
    }
    Ok(found.into_iter().collect())
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
        let check = elsewhere(Ok(vec![std::process::id()]));
        assert!(check.ok, "{check}");
        let own = listeners(&[std::process::id()]).unwrap();
        assert!(own.contains(&listener.local_addr().unwrap()), "{own:?}");
        assert!(listeners(&[]).is_err() && listeners(&[u32::MAX - 1]).is_err());
        assert!(!elsewhere(Ok(Vec::new())).ok);
        assert!(!elsewhere(Ok(vec![u32::MAX - 1])).ok);
        assert!(!elsewhere(Err(std::io::ErrorKind::PermissionDenied.into())).ok);
    }
}
