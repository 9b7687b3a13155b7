//! Against BIND 9.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_control::Site;
use textnlp_store::now_ms;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::publish::Records;
use super::named::{Named, OTHER_SECRET, SECRET, is_installed};

/// A name that follows three sites, at that name server.
struct Bench {
    named: Named,
    records: Records,
}

impl Bench {
    /// With changes to the configuration.
    fn new(changes: Value) -> Option<Self> {
        is_installed().then(|| Self::at(Named::start(), changes))
    }

    fn at(named: Named, changes: Value) -> Self {
        let secret_file = named.file("secret", SECRET, 0o600);
        let mut config = json!({
            "server": named.address.to_string(),
            "zone": "example.com",
            "name": "textnlp.example.com",
            "ttl_seconds": 60,
            "key": { "name": "textnlp-key", "algorithm": "hmac-sha256", "secret_file": secret_file },
            "addresses": { "a": ["192.0.2.1"], "b": ["192.0.2.2", "2001:db8::2"], "c": ["192.0.2.3"] },
        });
        for (pointer, value) in changes.as_object().unwrap() {
            *config.pointer_mut(pointer).unwrap() = value.clone();
        }
        Self { named, records: Records::new(serde_json::from_value(config).unwrap()) }
    }

    fn want(&self, sites: &str) {
        let weights: BTreeMap<Site, u32> =
            ["a", "b", "c"].iter().map(|site| (Site::new(*site), u32::from(sites.contains(site)) * 7)).collect();
        self.records.want(&weights);
    }

    async fn step(&self, now: u64) -> Value {
        self.records.step(now, now_ms()).await;
        self.records.status()
    }

    fn there(&self) -> Vec<String> {
        let name = "textnlp.example.com";
        [self.named.dig(name, "A"), self.named.dig(name, "AAAA")].concat()
    }

    /// What the failure says after one attempt; nothing has changed.
    async fn refused(&self, code: &str) -> (String, String) {
        self.want("a");
        let status = self.step(0).await;
        assert_eq!(status["error"]["code"], code, "{status}\n{}", self.named.log());
        assert_eq!(status["last_acknowledged"], json!(null));
        assert_eq!(self.there(), ["192.0.2.99"]);
        let text = |key: &str| status["error"][key].as_str().unwrap().to_owned();
        (text("message"), text("hint"))
    }
}

#[tokio::test]
async fn dns_name_follows_the_sites_and_other_records_stay_unchanged() {
    for key in ["hmac-sha256 textnlp-key", "hmac-sha512 long-key"] {
        let (algorithm, name) = key.split_once(' ').unwrap();
        let Some(bench) = Bench::new(json!({ "/key/algorithm": algorithm, "/key/name": name })) else { return };
        for (now, sites, expected) in [
            (0, "ab", &["192.0.2.1", "192.0.2.2", "2001:db8::2"][..]),
            (1, "b", &["192.0.2.2", "2001:db8::2"]),
            (2, "", &["192.0.2.2", "2001:db8::2"]),
            (3, "c", &["192.0.2.3"]),
        ] {
            bench.want(sites);
            let status = bench.step(now).await;
            assert_eq!(bench.there(), expected, "{status}");
            assert_eq!((&status["last_acknowledged"], &status["error"]), (&json!(expected), &json!(null)));
            assert!(status["at"].as_str().unwrap().ends_with('Z'), "{status}");
        }
        assert_eq!(bench.named.dig("textnlp.example.com", "TXT"), ["\"somebody else's\""]);
        assert_eq!(bench.named.dig("www.example.com", "A"), ["192.0.2.80"]);
        assert_eq!(bench.named.dig("example.com", "NS"), ["ns.example.com."]);
    }
}

#[tokio::test]
async fn dns_refusals_are_explained() {
    let Some(mut bench) = Bench::new(json!({ "/key/name": "unknown-key" })) else { return };
    let (message, hint) = bench.refused("badkey").await;
    assert!(message.contains("does not know this key") && hint.contains("`unknown-key`"), "{message} {hint}");
    // The right name with another algorithm is another key.
    for (changes, code, says, advises) in [
        (json!({ "/key/algorithm": "hmac-sha512" }), "badkey", "does not know this key", "hmac-sha512"),
        (json!({ "/key/name": "poor-key" }), "refused", "REFUSED", "grant poor-key name textnlp.example.com. A AAAA"),
        (
            json!({ "/name": "www.example.com" }),
            "refused",
            "its rules do not allow it",
            "grant textnlp-key name www.example",
        ),
        (
            json!({ "/name": "x.example.org", "/zone": "example.org" }),
            "notauth",
            "not the zone's primary",
            "example.org",
        ),
        (json!({ "/key/secret_file": "/nowhere" }), "secret", "/nowhere: No such file", "chmod 600"),
    ] {
        bench = Bench::at(bench.named, changes);
        let (message, hint) = bench.refused(code).await;
        assert!(message.contains(says) && hint.contains(advises), "{message}\n{hint}");
    }
    for (text, mode, code, says) in [
        (OTHER_SECRET, 0o600, "badsig", "another secret"),
        (SECRET, 0o644, "secret", "other users may read it, its mode is 644"),
        ("???", 0o600, "secret", "not base64"),
        ("YWJj", 0o600, "secret", "it has 3 bytes"),
    ] {
        bench = Bench::at(bench.named, json!({}));
        bench.named.file("secret", text, mode);
        let (message, _) = bench.refused(code).await;
        assert!(message.contains(says) && !message.contains(text.trim()), "{message}");
    }
    // A secret that was put right is used without a restart.
    bench.named.file("secret", SECRET, 0o600);
    let status = bench.step(500).await;
    assert_eq!((&status["error"], bench.there()), (&json!(null), vec!["192.0.2.1".to_owned()]));
}

#[tokio::test]
async fn clock_difference_to_the_dns_server_is_reported_with_both_times() {
    let Some(bench) = Bench::new(json!({})) else { return };
    bench.want("a");
    for (now, hours) in [(0, -2), (100_000, 2)] {
        bench.records.step(now, now_ms() + hours * 3_600_000).await;
        let status = bench.records.status();
        let message = status["error"]["message"].as_str().unwrap();
        assert!(status["error"]["code"] == "badtime" && message.starts_with("BADTIME"), "{status}");
        // The server's own time, and not what it was sent.
        let says = message.split(['T', 'Z']).filter(|part| part.contains(':')).collect::<Vec<_>>();
        assert!(message.contains("clock says") && says.len() >= 2 && says[0] != says[1], "{message}");
        assert_eq!(bench.there(), ["192.0.2.99"]);
    }
    assert_eq!(bench.step(200_000).await["error"], json!(null));
    assert_eq!(bench.there(), ["192.0.2.1"]);
}

#[tokio::test]
async fn records_are_correct_soon_after_a_dns_server_outage() {
    let Some(mut bench) = Bench::new(json!({})) else { return };
    bench.want("ab");
    bench.step(0).await;
    bench.named.stop();
    bench.want("b");
    let status = bench.step(1).await;
    assert_eq!(status["error"]["code"], "unanswered");
    let message = status["error"]["message"].as_str().unwrap();
    assert!(message.contains("over TCP") && message.contains("over UDP"), "{message}");
    assert_eq!(
        (&status["wanted"], &status["last_acknowledged"][0]),
        (&json!(["192.0.2.2", "2001:db8::2"]), &json!("192.0.2.1"))
    );
    let figures = bench.records.figures();
    assert!(figures.failures == 1 && !figures.is_right, "{figures:?}");
    bench.named.again();
    // Not before its time, and then at once.
    assert_ne!(bench.step(500).await["error"], json!(null));
    assert_eq!(bench.step(501).await["error"], json!(null));
    assert_eq!(bench.there(), ["192.0.2.2", "2001:db8::2"]);
    assert!(bench.records.figures().is_right);
}

#[tokio::test]
async fn externally_changed_record_is_detected_and_a_cname_reported() {
    let Some(bench) = Bench::new(json!({})) else { return };
    bench.want("a");
    bench.step(0).await;
    let port = bench.named.address.port();
    let script = format!(
        "server 127.0.0.1 {port}\nzone example.com\nkey hmac-sha256:textnlp-key {SECRET}\nupdate add textnlp.example.com 60 A 192.0.2.66\nsend\n"
    );
    let file = bench.named.file("script", &script, 0o600);
    assert!(std::process::Command::new("nsupdate").arg(file).status().unwrap().success());
    assert_eq!(bench.there(), ["192.0.2.1", "192.0.2.66"]);
    assert_eq!(bench.step(59_999).await["error"], json!(null));
    let status = bench.step(60_000).await;
    assert!(status["error"]["message"].as_str().unwrap().contains("192.0.2.66"), "{status}");
    assert_eq!(bench.step(60_500).await["error"], json!(null));
    assert_eq!(bench.there(), ["192.0.2.1"]);

    // A name server acknowledges addresses at an alias, and drops them.
    let bench = Bench::at(bench.named, json!({ "/name": "alias.example.com" }));
    bench.want("a");
    let status = bench.step(0).await;
    assert_eq!(status["error"]["code"], "alias", "{status}");
    assert_eq!(bench.named.dig("alias.example.com", "CNAME"), ["www.example.com."]);
}

/// What stands between, and lets only datagrams through.
#[tokio::test]
async fn dns_falls_back_to_udp_when_tcp_gets_no_answer() {
    let Some(bench) = Bench::new(json!({})) else { return };
    let wall = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = tokio::net::UdpSocket::bind(wall.local_addr().unwrap()).await.unwrap();
    let (address, server) = (wall.local_addr().unwrap(), bench.named.address);
    let closes = tokio::spawn(async move {
        loop {
            // It takes the request and hangs up.
            let (mut stream, _) = wall.accept().await.unwrap();
            let _ = stream.read(&mut [0; 600]).await;
            let _ = stream.shutdown().await;
        }
    });
    let relays = tokio::spawn(async move {
        let (mut question, mut answer) = ([0; 600], [0; 4096]);
        loop {
            let (length, from) = relay.recv_from(&mut question).await.unwrap();
            let to = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            to.send_to(&question[..length], server).await.unwrap();
            let (length, _) = to.recv_from(&mut answer).await.unwrap();
            // An answer to something else comes first.
            relay.send_to(b"??", from).await.unwrap();
            relay.send_to(&answer[..length], from).await.unwrap();
        }
    });
    let bench = Bench::at(bench.named, json!({ "/server": address.to_string() }));
    bench.want("b");
    let status = bench.step(0).await;
    assert_eq!(status["error"], json!(null));
    assert_eq!(bench.there(), ["192.0.2.2", "2001:db8::2"]);
    closes.abort();
    relays.abort();
}
