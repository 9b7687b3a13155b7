//! A zone named in the environment follows the sites: BIND 9 is asked with `dig`.

#[path = "../../../server/tests/control/named.rs"]
mod named;

use textnlp_tests::eventually;

use super::place::{NAME, Regions};
use named::{Named, OTHER_SECRET, SECRET, is_installed};

const DOMAIN: &str = "textnlp.example.com";

fn addresses(named: &Named) -> Vec<String> {
    [named.dig(DOMAIN, "A"), named.dig(DOMAIN, "AAAA")].concat()
}

#[test]
fn dns_zone_follows_the_sites_and_its_key_is_rotated_at_runtime() {
    if !is_installed() {
        return;
    }
    let named = Named::start();
    let zone = format!(
        "dns: {{ server: \"{}\", zone: example.com, key: {{ name: textnlp-key, secret: \"secret:env:TSIG\" }}, addresses: {{ \
         primary: [192.0.2.1], secondary: [192.0.2.2, \"2001:db8::2\"], tertiary: [\"2001:db8::3\"] }} }}\n",
        named.address
    );
    let regions = Regions::with("zone", &format!(", domain: {DOMAIN}, ttl: 30s"), &zone);
    let up = |secret: &str| regions.run_where("TSIG", secret, &["up", "--yes", "--no-gate", "-o", "json"]);
    // Nothing runs before what it needs is there, and a secret is never repeated.
    let refused = regions.run(&["up", "--yes", "--no-gate"]).expect(2);
    assert!(refused.err.contains("the variable `TSIG` is not set"), "{}", refused.err);
    let refused = up("hunter2").expect(2);
    assert!(refused.err.contains("not a TSIG key") && !refused.err.contains("hunter2"), "{}", refused.err);

    // Another key than the name server's: told at the next look, with what to do.
    up(OTHER_SECRET.trim()).expect(0);
    regions.until_in_sync();
    let told = eventually("the refusal is told", || {
        let status = regions.json_any(&["dr", "status"]);
        let told = status["warnings"].to_string();
        told.contains("BADSIG").then_some(told)
    });
    assert!(told.contains("does not match the state of the sites"), "{told}");
    let changed = up(SECRET.trim()).expect(0).json();
    assert_eq!(changed["outcome"]["done"].as_array().map(Vec::len), Some(2), "the key and its file: {changed:#}");
    // The tertiary has no share while all is well.
    eventually("the name has the addresses", || {
        (addresses(&named) == ["192.0.2.1", "192.0.2.2", "2001:db8::2"]).then_some(())
    });
    eventually("nothing is left to act on", || (regions.json_any(&["dr", "status"])["ready"] == true).then_some(()));
    let again = regions.run_where("TSIG", SECRET.trim(), &["plan", "--exit-code"]);
    assert_eq!(again.exit, 0, "a second `up` plans nothing: {}{}", again.out, again.err);

    regions.dashboard_is_scraped(&["Witness"]);
    regions.kill_site("primary");
    // A primary always has a share.
    let moved: &[&str] = match regions.until_taken_over() {
        "secondary" => &["192.0.2.2", "2001:db8::2"],
        _ => &["192.0.2.2", "2001:db8::2", "2001:db8::3"],
    };
    eventually("the lost site goes out of the name", || (addresses(&named) == moved).then_some(()));
    up(SECRET.trim()).expect(0);
    eventually("and comes back into it", || {
        (addresses(&named) == ["192.0.2.1", "192.0.2.2", "2001:db8::2"]).then_some(())
    });
    regions.run_where("TSIG", SECRET.trim(), &["down", "--yes", "--delete-data", NAME]).expect(0);
    assert!(!regions.state(NAME).join("secrets/witness.dns-key").exists());
}
