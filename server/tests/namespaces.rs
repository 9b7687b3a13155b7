//! Three sites and a witness, each in a network namespace of its own, joined by cables that are really cut. Between them every byte goes
//! over TCP with mutual TLS, from border to border. Needs root and `ip` (Debian: iproute2); left out loudly elsewhere.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

const SITES: [&str; 3] = ["primary", "secondary", "tertiary"];
const PLACES: [&str; 4] = ["primary", "secondary", "tertiary", "witness"];
const PROGRAM: &str = env!("CARGO_BIN_EXE_textnlp-server");
const PORT: u16 = 7443;
const LONG: Duration = Duration::from_secs(120);
/// Heartbeats, of 200 ms each: a busy machine can stop a process for longer than a second.
const LOST_AFTER: u32 = 15;

fn until(what: &str, mut come: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !come() {
        assert!(begun.elapsed() < LONG, "it has not come true: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn ip(args: &str) -> bool {
    let made = Command::new("ip").args(args.split(' ')).stderr(Stdio::null()).status();
    made.is_ok_and(|status| status.success())
}

/// Namespaces with a hub in the middle, gone when this is.
struct Cables {
    id: String,
}

impl Cables {
    fn lay() -> Option<Self> {
        let cables = Self { id: format!("t{}", std::process::id()) };
        let hub = cables.space("hub");
        let mut made = ip(&format!("netns add {hub}")) && ip(&format!("-n {hub} link add name hub0 type bridge"));
        made = made && ip(&format!("-n {hub} link set dev hub0 up"));
        for (number, place) in PLACES.iter().enumerate() {
            let space = cables.space(place);
            let commands = [
                format!("netns add {space}"),
                format!("-n {hub} link add name c{number} type veth peer name cable netns {space}"),
                format!("-n {hub} link set dev c{number} master hub0"),
                format!("-n {hub} link set dev c{number} up"),
                format!("-n {space} address add {}/24 dev cable", address(place)),
                format!("-n {space} link set dev lo up"),
                format!("-n {space} link set dev cable up"),
            ];
            made = made && commands.iter().all(|command| ip(command));
        }
        made.then_some(cables)
    }

    fn space(&self, place: &str) -> String {
        format!("{}-{place}", self.id)
    }

    /// Pulls a place's cable, or plugs it in again.
    fn plug(&self, place: &str, state: &str) {
        let number = PLACES.iter().position(|known| *known == place).unwrap();
        assert!(ip(&format!("-n {} link set dev c{number} {state}", self.space("hub"))));
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        for place in PLACES.iter().chain(&["hub"]) {
            ip(&format!("netns del {}", self.space(place)));
        }
    }
}

fn address(place: &str) -> String {
    format!("10.77.0.{}", 1 + PLACES.iter().position(|known| *known == place).unwrap())
}

/// The environment: files, cables, processes.
struct World {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
    running: BTreeMap<String, Child>,
    cables: Cables,
}

impl World {
    fn start(cables: Cables) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        certify(&root, "ca", &PLACES);
        certify(&root, "strangers", &["stranger"]);
        let mut world = Self { _folder: folder, root, running: BTreeMap::new(), cables };
        for place in PLACES {
            world.write(place);
            world.run(place, "border");
        }
        world.run("witness", "witness");
        for site in SITES {
            world.run(site, "watch");
        }
        world
    }

    fn socket(&self, place: &str, name: &str) -> String {
        format!("unix:{}/{place}/{name}.sock", self.root)
    }

    fn write(&self, place: &str) {
        let folder = self.root.join(place);
        std::fs::create_dir_all(folder.join("data")).unwrap();
        let role = if place == "witness" { "witness" } else { "watch" };
        let mut links = vec![json!({
            "name": "in", "listen": format!("{}:{PORT}", address(place)), "to": self.socket(place, role),
            "listen_tls": self.tls("ca", place, None),
        })];
        let others = || PLACES.iter().filter(|other| place != "witness" && **other != place);
        links.extend(others().map(|other| {
            json!({
                "name": format!("out-{other}"), "listen": self.socket(place, &format!("out-{other}")),
                "to": format!("{}:{PORT}", address(other)), "to_tls": self.tls("ca", place, Some(other)),
            })
        }));
        let border = json!({ "border": { "listen": self.socket(place, "border"), "links": links } });
        std::fs::write(folder.join("border.yaml"), border.to_string()).unwrap();
        let document = if place == "witness" {
            json!({ "witness": {
                "folder": folder.join("data"), "listen": self.socket(place, role), "sites": SITES, "home": "primary",
                "every_ms": 200, "lost_after": LOST_AFTER, "weights": { "primary": 100, "secondary": 50, "tertiary": 0 },
            }})
        } else {
            let out = |other: &&&str| **other != "witness";
            let peers: BTreeMap<_, _> =
                others().filter(out).map(|other| (*other, self.socket(place, &format!("out-{other}")))).collect();
            json!({ "watch": {
                "site": place, "folder": folder.join("data/control"), "listen": self.socket(place, role), "peers": peers,
                "witness": self.socket(place, "out-witness"), "database": format!("sqlite://{folder}/data/t.db"),
                "every_ms": 200, "lost_after": LOST_AFTER, "automatic": true, "failback": true, "home": "primary", "max_lag_ms": 5000,
            }})
        };
        std::fs::write(folder.join(format!("{role}.yaml")), document.to_string()).unwrap();
    }

    fn tls(&self, authority: &str, place: &str, name: Option<&str>) -> Value {
        json!({
            "certificate_file": self.root.join(format!("{place}.pem")), "key_file": self.root.join(format!("{place}.key")),
            "ca_file": self.root.join(format!("{authority}.pem")), "name": name,
        })
    }

    /// `role` is also the name of the program's files.
    fn run(&mut self, place: &str, role: &str) {
        let program = match role {
            "border" => "relay",
            "watch" => "agent",
            other => other,
        };
        let log = self.root.join(format!("{place}-{role}.log"));
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.cables.space(place), PROGRAM, program, "--config"])
            .arg(self.root.join(place).join(format!("{role}.yaml")))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running.insert(format!("{place}-{role}"), child);
        until(&format!("{place}'s {role} is ready"), || {
            self.ask(place, role, "GET", "/ready", "").is_some_and(|(status, _)| status == 200)
        });
    }

    fn ask(&self, place: &str, name: &str, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.root.join(place).join(format!("{name}.sock"))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    fn status(&self, site: &str) -> Value {
        self.ask(site, "watch", "GET", "/v1/status", "").map_or(Value::Null, |(_, status)| status)
    }

    fn write_key(&self, at: &str, key: &str) -> u16 {
        self.write_within(at, key, 8000)
    }

    fn write_within(&self, at: &str, key: &str, timeout_ms: u64) -> u16 {
        let body = json!({ "writes": [{ "key": key, "value": at }], "timeout_ms": timeout_ms }).to_string();
        self.ask(at, "watch", "POST", "/v1/write", &body).map_or(0, |(status, _)| status)
    }

    fn keys(&self, site: &str) -> Vec<String> {
        let answer = self.ask(site, "watch", "GET", "/v1/table?prefix=k", "").unwrap().1;
        answer["entries"].as_object().unwrap().keys().cloned().collect()
    }

    fn all_are_members(&self) -> bool {
        let status = self.status("primary");
        status["role"] == "primary"
            && status["writable"] == true
            && status["members"].as_array().is_some_and(|members| members.len() == 3)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in self.running.keys() {
                let log = std::fs::read_to_string(self.root.join(format!("{name}.log"))).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(8).collect();
                eprintln!("== {name}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// An authority with a certificate for each name.
fn certify(root: &Utf8Path, authority: &str, names: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    std::fs::write(root.join(format!("{authority}.pem")), pem).unwrap();
    let issuer = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([(*name).to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(root.join(format!("{name}.pem")), leaf.pem()).unwrap();
        std::fs::write(root.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn network_partitions_lose_no_acknowledged_write() {
    let Some(cables) = Cables::lay() else {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_NAMESPACES").is_none(), "namespaces cannot be made");
        eprintln!("NOT TESTED: network namespaces cannot be made here; that takes root and `ip` (Debian: iproute2)");
        return;
    };
    let mut world = World::start(cables);
    until("all are members", || world.all_are_members());
    until("a write is acknowledged", || world.write_key("primary", "k0") == 200);

    // Whoever is not of this environment is not let in, although the port is open to him.
    let stranger = json!({ "border": { "listen": world.socket("stranger", "border"), "links": [{
        "name": "try", "listen": world.socket("stranger", "try"), "to": format!("{}:{PORT}", address("primary")),
        "to_tls": {
            "certificate_file": world.root.join("stranger.pem"), "key_file": world.root.join("stranger.key"),
            "ca_file": world.root.join("ca.pem"), "name": "primary",
        },
    }]}});
    std::fs::create_dir_all(world.root.join("stranger")).unwrap();
    std::fs::write(world.root.join("stranger/border.yaml"), stranger.to_string()).unwrap();
    let space = world.cables.space("tertiary");
    let log = std::fs::File::create(world.root.join("stranger-border.log")).unwrap();
    let child = Command::new("ip")
        .args(["netns", "exec", &space, PROGRAM, "relay", "--config"])
        .arg(world.root.join("stranger/border.yaml"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    world.running.insert("stranger-border".to_owned(), child);
    until("the stranger is there", || world.ask("stranger", "border", "GET", "/ready", "").is_some());
    assert_eq!(world.ask("stranger", "try", "GET", "/v1/status", ""), None);
    let refused = world.ask("primary", "border", "GET", "/v1/status", "").unwrap().1;
    assert!(refused["links"][0]["failures"].as_u64().unwrap() >= 1, "{refused}");

    // The primary's cable is pulled: another takes its place, and the one that is alone takes no more writes.
    world.cables.plug("primary", "down");
    // Weights are a preference: on a busy machine the tertiary may claim first.
    let mut next = None;
    until("another takes over", || {
        next = ["secondary", "tertiary"].into_iter().find(|site| world.status(site)["role"] == "primary");
        next.is_some()
    });
    until("it takes writes", || world.write_key(next.unwrap(), "k1") == 200);
    assert_ne!(world.write_within("primary", "k-lost", 1500), 200, "nobody else has stored it");
    assert_eq!(world.status("primary")["writable"], false);
    world.cables.plug("primary", "up");
    until("it comes home", || world.all_are_members());
    until("it has what was written meanwhile", || world.keys("primary").contains(&"k1".to_owned()));

    // The witness's cable: writes go on, and nobody takes another's place.
    world.cables.plug("witness", "down");
    // A site that is stopped for a moment interrupts them, and without the witness they go on by themselves.
    until("writes go on", || world.write_key("tertiary", "k2") == 200);
    world.cables.plug("secondary", "down");
    until("the rest goes on or waits", || {
        let status = world.status("primary");
        status["role"] == "primary"
    });
    world.cables.plug("witness", "up");
    until("one member less is enough", || world.write_key("primary", "k3") == 200);
    world.cables.plug("secondary", "up");
    until("all are members again", || world.all_are_members());
    for site in SITES {
        until("everything acknowledged is everywhere", || {
            let keys = world.keys(site);
            let all = ["k0", "k1", "k2", "k3"].iter().all(|key| keys.contains(&(*key).to_owned()));
            all && keys == world.keys("primary")
        });
    }
}
