//! Sites that all store in a PostgreSQL of somebody else's: a lost site takes nothing along, and nothing is replicated twice.

use serde_json::json;
use textnlp_tests::{counts, eventually};

use super::nothing_was_lost;
use super::place::{NAME, Regions};
use super::shared::postgres;

#[test]
fn sites_with_an_external_database_lose_nothing_with_a_site() {
    let Some(server) = postgres::shared() else { return };
    let database = server.database();
    // The first sites may begin at once: one of them makes the tables.
    let more = format!("database: {{ kind: postgres, url: {} }}\n", json!(server.url(&database)));
    let regions = Regions::with("outside", "", &more);
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    let again = regions.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let count = |what: &str| server.sql(&database, &format!("SELECT count(*) FROM {what}"));
    assert_eq!(count("verifiers WHERE site NOT LIKE '%/%'"), "3", "each site's tokens are known to the others");
    assert_eq!(count("verifiers WHERE site LIKE '%/%'"), "3", "and stay known for as long as they last");

    let made = regions.json(&["key", "create", "a person"], 0);
    let revoked = regions.json(&["key", "create", "gone"], 0);
    for _ in 0..6 {
        assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200, "at once, wherever the front sends a request");
    }
    regions.json(&["key", "revoke", revoked["public_id"].as_str().unwrap()], 0);
    // Two of them were `up`'s.
    let answers = "api_usage WHERE endpoint IN ('/v1/generate', '/v1/stream')";
    eventually("every answer is accounted for, once", || (count(answers) == "8").then_some(()));

    let refused = regions.run(&["dr", "drill", "--fault", "kill", "--set", "dr.drill=clone"]).expect(4);
    assert!(refused.err.contains("a clone would write to the external database"), "{}", refused.err);
    for fault in [&["kill", "--lose-data"][..], &["freeze"], &["blackhole"]] {
        let drill = [&["dr", "drill", "--live", NAME, "--fault"], fault].concat();
        let report = regions.json(&drill, 0);
        nothing_was_lost(&report);
        assert_eq!(report["leftovers"], json!([]), "{report:#}");
        // What servers had answered and not yet written when they were killed is all that there is to lose.
        assert!(report["unaccounted"].as_u64().is_some_and(|lost| lost <= 20), "{report:#}");
        eventually("it is home again", || {
            let status = regions.json_any(&["dr", "status"]);
            (status["primary"] == "primary" && status["ready"] == true).then_some(())
        });
    }
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
    assert_eq!(regions.answers(revoked["key"].as_str().unwrap()), 401);

    // Keys are made and taken back while a site is gone, by whichever of the others.
    regions.kill_site("primary");
    regions.until_taken_over();
    let later = regions.json(&["key", "create", "while it is gone"], 0);
    assert_eq!(regions.answers(later["key"].as_str().unwrap()), 200);
    regions.run(&["up", "--yes", "--no-gate", "--site", "primary"]).expect(0);
    eventually("the home site has its place again", || {
        (regions.json_any(&["dr", "status"])["primary"] == "primary").then_some(())
    });
    assert_eq!(regions.answers(later["key"].as_str().unwrap()), 200);

    // A copy has it once, and proves it.
    regions.json(&["backup", "create"], 0);
    let proof = regions.json(&["backup", "verify"], 0);
    assert_eq!(proof["proof"]["level"], "answered", "{proof:#}");
    regions.run(&["down", "--yes", "--delete-data", NAME]).expect(0);
    assert!(count("api_keys").parse::<u32>().unwrap() >= 3, "a database of somebody else's is left as it is");
}
