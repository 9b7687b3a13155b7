//! The witness moves traffic by DNS: BIND 9 is asked with `dig`.

use serde_json::json;

use super::LONG;
use super::named::{Named, SECRET, is_installed};
use super::sites::{Sites, until};

const NAME: &str = "textnlp.example.com";

#[test]
fn lost_primary_leaves_dns_and_returns() {
    if !is_installed() {
        return;
    }
    let mut named = Named::start();
    let dns = json!({
        "server": named.address.to_string(),
        "zone": "example.com",
        "name": NAME,
        "key": { "name": "textnlp-key", "algorithm": "hmac-sha256", "secret_file": named.file("secret", SECRET, 0o600) },
        "addresses": { "primary": ["192.0.2.1"], "secondary": ["192.0.2.2", "2001:db8::2"], "tertiary": ["2001:db8::3"] },
    });
    let mut sites = Sites::start_configured("automatic: true, failback: true", &format!("dns: {dns}"));
    let there = |named: &Named| [named.dig(NAME, "A"), named.dig(NAME, "AAAA")].concat();
    let both = ["192.0.2.1", "192.0.2.2", "2001:db8::2"];
    sites.until_all_are_members();
    // The tertiary has no share while all is well.
    until(LONG, || there(&named) == both);

    sites.kill("primary");
    // On a busy machine the tertiary may claim first. A primary always has a share.
    let moved = |primary: &str| match primary {
        "secondary" => vec!["192.0.2.2", "2001:db8::2"],
        "tertiary" => vec!["192.0.2.2", "2001:db8::2", "2001:db8::3"],
        _ => Vec::new(),
    };
    until(LONG, || there(&named) == moved(sites.witness_status()["primary"].as_str().unwrap_or_default()));
    // The name server is gone when the next site is lost, and learns of it when it is back.
    named.stop();
    sites.kill("secondary");
    until(LONG, || sites.witness_status()["dns"]["error"]["code"] == "unanswered");
    until(LONG, || sites.witness_status()["primary"] == "tertiary");
    let metrics = sites.metrics("witness");
    let failures = metrics.lines().find_map(|line| line.strip_prefix("textnlp_dns_update_failures_total ")).unwrap();
    assert!(failures.parse::<f64>().unwrap() >= 1.0, "{metrics}");
    named.again();
    sites.run("primary");
    sites.run("secondary");
    until(LONG, || sites.witness_status()["primary"] == "primary" && there(&named) == both);

    until(LONG, || {
        let dns = sites.witness_status()["dns"].clone();
        dns["error"].is_null() && dns["last_acknowledged"] == json!(both) && dns["wanted"] == json!(both)
    });
    let metrics = sites.metrics("witness");
    assert!(metrics.contains("textnlp_dns_current 1") && metrics.contains("textnlp_dns_updated_seconds "), "{metrics}");
    assert_eq!(named.dig(NAME, "TXT"), ["\"somebody else's\""]);
    assert_eq!(named.dig("www.example.com", "A"), ["192.0.2.80"]);
}
