//! What a unit's program may do: less than its supervisor.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set, capability_is_in_bounding_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use textnlp_keys::{Marker, SiteFolder};

use super::unit::Unit;
use crate::names::POSTGRES_HOME;
use crate::spec::PostgresSpec;
use crate::table::ResourceKind;

/// Ports below need a capability.
const UNPRIVILEGED_PORTS: u16 = 1024;

/// No core file: it would hold keys and prompts.
pub(super) fn disable_core_dumps() -> io::Result<()> {
    // One byte and not zero: with zero the kernel still passes the core to a handler such as systemd-coredump; see core(5).
    let most = getrlimit(Resource::Core).maximum.map_or(1, |most| most.min(1));
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Takes from this process, for the program that it becomes, what the program does not need. It cannot get it back.
pub(super) fn restrict(folder: &SiteFolder, unit: &Unit) -> io::Result<()> {
    let needed = needed(folder, unit);
    disable_core_dumps()?;
    set_no_new_privs(true)?;
    let now = capabilities(None)?;
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if needed.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            // Without this capability the set cannot be changed. Then only root has anything from it, and root in such
            // a container has little.
            Ok(true) if now.effective.contains(CapabilitySet::SETPCAP) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // The kernel knows no capability with this number.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let bind = CapabilitySet::NET_BIND_SERVICE;
    // Given by the service manager to a supervisor that is not root.
    let binds = needed.contains(bind) && capability_is_in_ambient_set(bind)?;
    clear_ambient_capability_set()?;
    set_capabilities(None, CapabilitySets { inheritable: now.inheritable & needed, ..now })?;
    if binds {
        configure_capability_in_ambient_set(bind, true)?;
    }
    Ok(())
}

/// What a connection to the site's PostgreSQL needs. For root it runs as another user, whose folder no other user may enter.
fn to_connect(folder: &SiteFolder) -> CapabilitySet {
    let is_link = std::fs::symlink_metadata(folder.join(POSTGRES_HOME)).is_ok_and(|found| found.is_symlink());
    if !is_link {
        return CapabilitySet::empty();
    }
    let markers = Marker::all(folder).unwrap_or_default();
    let mut specs = markers.iter().filter(|marker| marker.kind == ResourceKind::Postgres.kind());
    let is_shared = specs.any(|marker| marker.spec.typed::<PostgresSpec>().is_ok_and(|spec| spec.shared));
    // The socket to the primary of all sites belongs to that user; PostgreSQL's own is open to all who reach it.
    if is_shared { CapabilitySet::DAC_OVERRIDE } else { CapabilitySet::DAC_READ_SEARCH }
}

/// The capabilities that a program needs, of those that its supervisor has.
fn needed(folder: &SiteFolder, unit: &Unit) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    let mut addresses = unit.keeps_sockets.iter().flat_map(|keeps| &keeps.addresses);
    if addresses.any(|address| address.port() < UNPRIVILEGED_PORTS) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    let arguments = unit.argv.get(1..).unwrap_or_default();
    let runs = |command: &str| arguments.first().is_some_and(|first| first == command);
    if arguments.iter().any(|argument| argument == "postgres") {
        needed |= CapabilitySet::CHOWN
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::FOWNER
            | CapabilitySet::KILL
            | CapabilitySet::SETGID
            | CapabilitySet::SETUID;
    } else if runs("agent") {
        // It starts before the folder of PostgreSQL is created.
        needed |= CapabilitySet::DAC_OVERRIDE;
    } else if runs("serve") {
        needed |= to_connect(folder);
    }
    needed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use camino::Utf8Path;

    use super::super::unit::{KeepsSockets, State};
    use super::*;

    fn unit(folder: &SiteFolder, command: &str, address: &str) -> Unit {
        Unit {
            name: "a".to_owned(),
            argv: vec!["/s/bin/a".to_owned(), command.to_owned(), "--config".to_owned(), "/s/postgres".to_owned()],
            env: BTreeMap::new(),
            cwd: folder.root().to_owned(),
            operation: 1,
            lineage: "l".to_owned(),
            spec_digest: "d".to_owned(),
            reload_digest: None,
            stop_grace_ms: 1,
            ready: None,
            log: folder.log("a"),
            group: None,
            turns: false,
            watch: Vec::new(),
            keeps_sockets: Some(KeepsSockets { from: folder.socket("a"), addresses: vec![address.parse().unwrap()] }),
            state: State::Running,
        }
    }

    #[test]
    fn programs_need_capabilities_only_for_low_ports_and_for_postgresql_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(Utf8Path::from_path(dir.path()).unwrap());
        let of = |command: &str, address: &str| needed(&folder, &unit(&folder, command, address));
        assert_eq!(of("gateway", "0.0.0.0:8443"), CapabilitySet::empty());
        assert_eq!(of("gateway", "[::]:443"), CapabilitySet::NET_BIND_SERVICE);
        assert_eq!(of("serve", "127.0.0.1:8080"), CapabilitySet::empty());
        assert_eq!(of("agent", "127.0.0.1:8080"), CapabilitySet::DAC_OVERRIDE);
        assert!(of("postgres", "127.0.0.1:5432").contains(CapabilitySet::SETUID));
        assert!(!of("postgres", "127.0.0.1:5432").contains(CapabilitySet::SYS_ADMIN));
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::os::unix::fs::symlink("/var/lib/elsewhere", folder.join(POSTGRES_HOME)).unwrap();
        assert_eq!(of("serve", "127.0.0.1:8080"), CapabilitySet::DAC_READ_SEARCH);
        assert_eq!(of("gateway", "0.0.0.0:8443"), CapabilitySet::empty());
    }
}
