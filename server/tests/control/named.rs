//! BIND 9 as a child in a temporary folder, with a zone in which a key may change two names; asked with `dig`.

// Tests of the messages and of the processes each use a part of it.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use ports::Ports;

#[allow(unreachable_pub)]
#[path = "../../../tests/src/ports.rs"]
mod ports;

/// `textnlp-key`, as its file has it.
pub(crate) const SECRET: &str = "dGhpcyBpcyBhIGtleSBmb3IgdGVzdHMgb25seSwgMzIgYg==\n";
/// Another one of the same length.
pub(crate) const OTHER_SECRET: &str = "dGhpcyBpcyBub3QgdGhhdCBrZXkgYXQgYWxsLCBidXQgbG9uZw==\n";

const ZONE: &str = "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.80\n\
                    textnlp TXT \"somebody else's\"\ntextnlp A 192.0.2.99\nalias CNAME www\n";
const RULES: &str = "update-policy { grant textnlp-key name textnlp.example.com. A AAAA; grant textnlp-key name alias.example.com. A AAAA; \
                     grant long-key name textnlp.example.com. A AAAA; };";

/// Where it may be left out, it is said that it was.
pub(crate) fn is_installed() -> bool {
    let there = |tool: &str| Command::new(tool).arg("-v").output().is_ok();
    let found = there("named") && there("dig");
    assert!(found || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "named and dig are not installed");
    if !found {
        eprintln!("NOT TESTED: named and dig are not installed (Debian: apt-get install bind9 bind9-dnsutils)");
    }
    found
}

pub(crate) struct Named {
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    child: Option<Child>,
    ports: Ports,
}

impl Named {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("example.com.zone"), ZONE).unwrap();
        let ports = Ports::ask(1);
        let mut named = Self { folder, address: address(&ports), child: None, ports };
        // A process that reserves no ports may have it for UDP.
        for _ in 0..5 {
            named.configure();
            if named.begin() {
                return named;
            }
            named.ports = Ports::ask(1);
            named.address = address(&named.ports);
        }
        panic!("named does not start: {}", named.log());
    }

    /// As it was, with its zone.
    pub(crate) fn again(&mut self) {
        assert!(self.begin(), "{}", self.log());
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It writes its journal down first.
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        child.wait().unwrap();
    }

    /// The records of a name, in order.
    pub(crate) fn dig(&self, name: &str, kind: &str) -> Vec<String> {
        self.try_dig(name, kind).unwrap_or_else(|| panic!("named does not answer: {}", self.log()))
    }

    pub(crate) fn file(&self, name: &str, text: &str, mode: u32) -> Utf8PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let file = Utf8PathBuf::try_from(self.folder.path().join(name)).unwrap();
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn try_dig(&self, name: &str, kind: &str) -> Option<Vec<String>> {
        let port = self.address.port().to_string();
        let out = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port, "+short", "+norec", "+time=2", "+tries=1", name, kind])
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        (out.status.success() && !text.contains(";;")).then_some(lines)
    }

    fn configure(&self) {
        let (folder, port) = (self.folder.path().display(), self.address.port());
        let secret = SECRET.trim();
        let text = format!(
            "options {{ directory \"{folder}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; pid-file none; \
             session-keyfile \"{folder}/session.key\"; notify no; dnssec-validation no; empty-zones-enable no; }};\n\
             controls {{ }};\n\
             key \"textnlp-key\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n\
             key \"long-key\" {{ algorithm hmac-sha512; secret \"{secret}\"; }};\n\
             key \"poor-key\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n\
             zone \"example.com\" {{ type primary; file \"example.com.zone\"; {RULES} }};\n"
        );
        std::fs::write(self.folder.path().join("named.conf"), text).unwrap();
    }

    fn begin(&mut self) -> bool {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let file = self.folder.path().join("named.conf");
        let child = Command::new("named")
            .args(["-g", "-n", "1", "-c"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some()) {
                break;
            }
            // A stranger on the same port has no such zone.
            if self.try_dig("www.example.com", "A").is_some_and(|found| found == ["192.0.2.80"]) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.stop();
        false
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop();
    }
}

fn address(ports: &Ports) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports.numbers()[0]).into()
}
