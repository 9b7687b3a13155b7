use camino::Utf8PathBuf;

use crate::control::WitnessConfig;

const GOOD: &str = r#"witness:
  folder: /f
  listen: "unix:/w.sock"
  sites: [a, b]
  home: a
  every_ms: 200
  lost_after: 3
  weights: { a: 100, b: 0 }
  dns:
    server: 127.0.0.1:5353
    zone: example.com
    name: textnlp.example.com
    key: { name: k, algorithm: hmac-sha256, secret_file: /s }
    addresses: { a: [192.0.2.1], b: ["2001:db8::3", 192.0.2.3] }
"#;

fn read(text: &str) -> Result<WitnessConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = Utf8PathBuf::try_from(folder.path().join("w.yaml")).unwrap();
    std::fs::write(&file, text).unwrap();
    WitnessConfig::read(&file).map_err(|error| error.to_string())
}

#[test]
fn dns_configuration_errors_are_reported_at_startup() {
    assert_eq!(read(GOOD).unwrap().dns.unwrap().ttl_seconds, 60);
    for (from, to, says) in [
        (
            "name: textnlp.example.com",
            "name: textnlp.example.org",
            "`dns.name` textnlp.example.org is not in example.com",
        ),
        ("name: textnlp.example.com", "name: \"*.example.com\"", "is not a domain name"),
        ("server: 127.0.0.1:5353", "server: ns.example.com:53", "invalid socket address"),
        ("    zone", "    ttl_seconds: 0\n    zone", "`dns.ttl_seconds` is 0"),
        ("hmac-sha256", "hmac-md5", "hmac-md5"),
        ("secret_file: /s", "secret_file: s", "not an absolute path"),
        ("secret_file: /s", "secret: abc", "secret"),
        (
            "addresses: { a: [192.0.2.1],",
            "addresses: { c: [192.0.2.1],",
            "names c, which is not a site of this environment; `dns.addresses` has none for a",
        ),
        ("a: [192.0.2.1]", "a: []", "has none for a"),
        ("a: [192.0.2.1]", "a: [192.0.2.3]", "gives 192.0.2.3 to two sites"),
        ("a: [192.0.2.1]", "a: [0.0.0.0]", "has 0.0.0.0, which is not a reachable address"),
        ("a: 100, b: 0", "a: 100", "`weights` lacks b"),
        ("a: 100, b: 0", "a: 0, b: 100", "`weights` gives a no traffic"),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let told = read(&GOOD.replacen(from, to, 1)).expect_err(to);
        assert!(told.contains(says), "{told}\n{says}");
    }
}
