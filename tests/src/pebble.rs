//! Debian's Pebble, an ACME authority for tests.

use std::process::{Child, Command, Stdio};

use crate::ports::Ports;

/// A process that stops with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts a program and waits until it accepts connections at this address.
    fn start(command: &mut Command, address: &str) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Self(command.spawn().expect("start the server"));
        crate::eventually("the server listens", || std::net::TcpStream::connect(address).ok());
        process
    }
}

/// An ACME authority (Pebble) with the DNS server that it asks, which has no addresses at first.
pub struct Pebble {
    _authority: Process,
    _dns: Process,
    dns_management: String,
    _ports: Ports,
    /// The URL of its directory.
    pub directory: String,
    /// The URL of the root of what it issues.
    pub root: String,
}

impl Pebble {
    /// Gives all names an address.
    pub fn resolve(&self, address: &str) {
        let body = format!("{{\"ip\":\"{address}\"}}");
        let url = format!("http://{}/set-default-ipv4", self.dns_management);
        let said = Command::new("curl").args(["-sS", "--fail", "-d", &body, &url]).output().expect("start curl");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

/// Debian's Pebble, which validates names at this port of this machine. `tls` is the certificate of its own API, and its
/// key.
#[allow(clippy::print_stderr)]
pub fn pebble(folder: &std::path::Path, tls_port: u16, tls: [&std::path::Path; 2]) -> Option<Pebble> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&paths).any(|path| path.join(program).is_file());
    if !["pebble", "pebble-challtestsrv", "curl"].into_iter().all(is_there) {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "pebble or curl is not installed");
        eprintln!("LEFT OUT: pebble or curl is not installed (Debian: apt-get install pebble curl)");
        return None;
    }
    let ports = Ports::ask(4);
    let [api, management, dns, dns_management] =
        [0, 1, 2, 3].map(|number| format!("127.0.0.1:{}", ports.numbers()[number]));
    let file = folder.join("pebble.json");
    let config = serde_json::json!({ "pebble": {
        "listenAddress": api, "managementListenAddress": management, "certificate": tls[0], "privateKey": tls[1],
        "httpPort": 1, "tlsPort": tls_port, "ocspResponderURL": "", "externalAccountBindingRequired": false,
    } });
    std::fs::write(&file, config.to_string()).expect("write the configuration");
    let mut names = Command::new("pebble-challtestsrv");
    names.args(["-defaultIPv4", "", "-defaultIPv6", "", "-dns01", &dns, "-management", &dns_management]);
    names.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
    let dns_server = Process::start(&mut names, &dns_management);
    let mut authority = Command::new("pebble");
    // Without a random pause before each validation.
    authority.arg("-config").arg(&file).args(["-dnsserver", &dns]).env("PEBBLE_VA_NOSLEEP", "1");
    let authority = Process::start(&mut authority, &api);
    let (directory, root) = (format!("https://{api}/dir"), format!("https://{management}/roots/0"));
    Some(Pebble { _authority: authority, _dns: dns_server, dns_management, _ports: ports, directory, root })
}
