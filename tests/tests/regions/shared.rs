//! One PostgreSQL for all sites: it moves with the primary, comes back with the lost site, and is never written at two.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use camino::Utf8PathBuf;
use rustix::process::Signal;
use serde_json::{Value, json};
use textnlp_tests::{counts, eventually, said, signal};

use super::nothing_was_lost;
use super::place::{NAME, Regions};

#[path = "../../../server/tests/support/postgres.rs"]
pub(super) mod postgres;

const SHARED: &str = "database: { kind: postgres }\n";

fn up(name: &str, more: &str) -> Regions {
    let regions = Regions::with(name, "", &format!("{SHARED}{more}"));
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    regions
}

/// A command of PostgreSQL's client at a site: at its own server, or by the door to the primary of all.
fn psql(regions: &Regions, site: &str, user: &str) -> Command {
    let place = regions.state(NAME).join("sites").join(site);
    let mut command = Command::new("psql");
    command.args(["-h", folder_of(regions, site).join("run").as_str(), "-U", user, "-d", "textnlp", "-AtXq"]);
    if user == "textnlp" {
        let password = std::fs::read_to_string(place.join("certs/database-password")).unwrap();
        command.args(["-p", "5433"]).env("PGPASSWORD", password.trim()).env("PGOPTIONS", "-c textnlp.tenant=*");
    }
    command.env("PGCONNECT_TIMEOUT", "10");
    command
}

/// What a site's own server says to its owner.
fn asks(regions: &Regions, site: &str, sql: &str) -> String {
    let output = psql(regions, site, "textnlp_owner").args(["-c", sql]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).trim().to_owned()
}

fn database(status: &Value, site: &str) -> Value {
    let sites = status["sites"].as_array().unwrap();
    sites.iter().find(|line| line["site"] == site).unwrap()["database"].clone()
}

fn until_well(regions: &Regions) -> Value {
    eventually("nothing is left to act on", || {
        let status = regions.json_any(&["dr", "status"]);
        (status["primary"] == "primary" && status["ready"] == true).then_some(status)
    })
}

/// The sites whose own server takes changes.
fn primaries(regions: &Regions) -> Vec<&'static str> {
    let sites = ["primary", "secondary", "tertiary"];
    sites.into_iter().filter(|site| asks(regions, site, "SELECT pg_is_in_recovery()") == "f").collect()
}

#[test]
fn shared_database_survives_a_site_failure_and_fails_back() {
    if !postgres::is_installed() {
        return;
    }
    // A short name: the clone lies deeper, and the paths of sockets are short.
    let mut regions = up("s", "");
    let status = until_well(&regions);
    assert_eq!(database(&status, "primary")["role"], "primary", "{status:#}");
    for copy in ["secondary", "tertiary"] {
        assert_eq!(database(&status, copy)["role"], "copy", "{status:#}");
        assert_eq!(database(&status, "primary")["copies"][copy]["connected"], true, "{status:#}");
    }
    regions.dashboard_is_scraped(&["Site agents", "Shared PostgreSQL"]);
    let again = regions.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let made = regions.json(&["key", "create", "a person"], 0);
    let revoked = regions.json(&["key", "create", "gone"], 0);
    regions.json(&["key", "revoke", revoked["public_id"].as_str().unwrap()], 0);

    let report = regions.json(&["dr", "drill", "--fault", "kill", "--lose-data", "--live", NAME], 0);
    nothing_was_lost(&report);
    assert_eq!(report["leftovers"], json!([]), "{report:#}");
    let status = until_well(&regions);
    assert_eq!(database(&status, "primary")["copied"], 1, "its disk was gone: {status:#}");

    // Its power goes: the server had no time to stop, and is made whole before it is taken back.
    nothing_was_lost(&regions.json(&["dr", "drill", "--fault", "kill"], 0));
    let status = until_well(&regions);
    assert_ne!(database(&status, "primary")["rewound"], 0, "{status:#}");
    assert_eq!(database(&status, "primary")["copied"], 0, "nothing had to be copied: {status:#}");

    // It stands still, its server too, and goes on after another has its place.
    let server = server_of(&regions, "primary");
    let drill = regions.start(&["dr", "drill", "--fault", "freeze", "-o", "json"]);
    eventually("the server stands still as well", || is_stopped(server).then_some(()));
    let ended = said(drill.wait_with_output().unwrap()).expect(0);
    nothing_was_lost(&ended.json());
    let status = until_well(&regions);
    assert!(!is_stopped(server_of(&regions, "primary")));
    assert_ne!(database(&status, "primary")["rewound"], 0, "{status:#}");
    assert_eq!(database(&status, "primary")["copied"], 0, "nothing had to be copied: {status:#}");

    // Cut off, its server goes on believing that it leads. On a clone of everything, which is gone afterwards.
    let (folders, report) = (0..3).find_map(|_| drill_on_a_clone(&regions)).expect("a clone reaches sync");
    nothing_was_lost(&report);
    assert_eq!((&report["live"], &report["leftovers"]), (&json!(false), &json!([])), "{report:#}");
    assert!(folders.iter().all(|folder| !folder.exists()), "its databases are gone: {folders:?}");
    until_well(&regions);
    assert_eq!(primaries(&regions), ["primary"]);
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
    assert_eq!(regions.answers(revoked["key"].as_str().unwrap()), 401);
    assert!(regions.faults().is_empty());

    // Its disk takes nothing more, neither the log nor the database.
    let refused = regions.run(&["dr", "drill", "--fault", "disk_full"]).expect(4);
    assert!(refused.err.contains("same filesystem") && refused.err.contains("nothing was changed"), "{refused:?}");
    regions.run(&["down", "--yes"]).expect(0);
    assert!(of_database(&regions).is_empty(), "a server that stops is waited for: {:?}", of_database(&regions));
    if regions.mount_data("primary") {
        regions.run(&["up", "--yes", "--no-gate"]).expect(0);
        until_well(&regions);
        let report = regions.json(&["dr", "drill", "--fault", "disk_full"], 0);
        nothing_was_lost(&report);
        until_well(&regions);
        // What the site itself had answered meanwhile waited in its servers, and is accounted for now that it is back, but for what was on its way.
        let ids: Vec<&str> =
            report["figures"]["unaccounted_ids"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let sql = format!("SELECT count(*) FROM api_usage WHERE request_id IN ('{}')", ids.join("', '"));
        eventually("usage that waited for the disk is written", || {
            let there: usize = asks(&regions, "primary", &sql).parse().ok()?;
            (there + 5 > ids.len()).then_some(())
        });
        let refused = regions.run(&["dr", "drill", "--fault", "kill", "--lose-data", "--live", NAME]).expect(4);
        assert!(refused.err.contains("cannot be removed while it is mounted"), "{refused:?}");
        assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
        assert_eq!(regions.answers(revoked["key"].as_str().unwrap()), 401);
        regions.run(&["down", "--yes"]).expect(0);
        regions.unmount();
    } else {
        eprintln!("LEFT OUT: only root can give a site a filesystem of its own");
    }
    regions.run(&["down", "--yes", "--delete-data", NAME]).expect(0);
    assert!(regions.processes().is_empty(), "{:?}", regions.processes());
    assert!(of_database(&regions).is_empty(), "{:?}", of_database(&regions));
}

#[test]
fn frozen_primary_is_fenced_and_one_without_a_database_hands_over() {
    if !postgres::is_installed() {
        return;
    }
    let regions = up("frozen", "dr: { failback: manual }\n");
    let write = |n: u32| format!("INSERT INTO tenants (id, created_at) VALUES ('t{n}', 0) RETURNING id;\n");
    // A client of the old primary, connected before anything happens.
    let mut client = psql(&regions, "primary", "textnlp")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = client.stdin.take().unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    input.write_all(write(1).as_bytes()).unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "t1");
    // Copies are made after the answer: what none of them has is lost with its primary.
    for site in ["secondary", "tertiary"] {
        eventually("the copies have the first change", || {
            (asks(&regions, site, "SELECT id FROM tenants WHERE id = 't1'") == "t1").then_some(())
        });
    }

    // The whole site stands still, its server too.
    let pids: Vec<u32> = of_site(&regions, "primary");
    assert!(pids.len() > 6, "{pids:?}");
    pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
    // What is on its way to it when it stops is there when it goes on.
    input.write_all(write(2).as_bytes()).unwrap();
    let next = regions.until_taken_over();
    eventually("its database takes changes", || {
        let status = regions.json_any(&["dr", "status"]);
        (status["primary"] == next && database(&status, next)["ready"] == true).then_some(())
    });
    let made = regions.json(&["key", "create", "meanwhile"], 0);
    pids.iter().for_each(|pid| signal(*pid, Signal::CONT));
    let _ = input.write_all(write(3).as_bytes());
    drop(input);
    line.clear();
    // Neither was ever acknowledged, and the connection ended.
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "", "the old primary took a change");
    assert!(!client.wait().unwrap().success());

    eventually("the old primary follows", || {
        let status = regions.json_any(&["dr", "status"]);
        let sites = status["sites"].as_array()?;
        (sites.iter().all(|site| site["in_sync"] == true) && database(&status, "primary")["role"] == "copy")
            .then_some(())
    });
    assert_eq!(primaries(&regions), [next]);
    for site in ["primary", "secondary", "tertiary"] {
        let mut before = String::new();
        eventually("the copies show the same", || {
            let there = asks(&regions, site, "SELECT string_agg(id, ',' ORDER BY id) FROM tenants WHERE id LIKE 't_'");
            if there != "t1" && there != before {
                eprintln!("{site} shows `{there}`");
                before.clone_from(&there);
            }
            (there == "t1").then_some(())
        });
    }
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
    // By the door of any site one comes to where changes are taken.
    let output = psql(&regions, "primary", "textnlp").args(["-c", &write(4)]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "t4", "{output:?}");
    // Nobody comes in by it as its owner.
    let owner = psql(&regions, "primary", "textnlp_owner").args(["-p", "5433", "-c", "SELECT 1"]).output().unwrap();
    assert!(!owner.status.success() && owner.stdout.is_empty(), "{owner:?}");

    // The database of whoever leads dies for good, and its watch goes on: nobody would take the place of a primary that is heard.
    std::fs::write(folder_of(&regions, next).join("data/global/pg_control"), "broken").unwrap();
    signal(server_of(&regions, next), Signal::KILL);
    let last = eventually("another site leads", || {
        let status = regions.json_any(&["dr", "status"]);
        let mut sites = ["primary", "secondary", "tertiary"].into_iter().filter(|site| *site != next);
        sites.find(|site| status["primary"] == *site && database(&status, site)["ready"] == true)
    });
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
    if last != "primary" {
        // The home site asks first, but on a busy machine the other one may be first.
        regions.until_in_sync();
        regions.json(&["dr", "failback", "--wait", "2m"], 0);
    }
    let status = until_well(&regions);
    assert_eq!(database(&status, next)["copied"], 1, "what cannot be rewound is copied: {status:#}");
    assert_eq!(primaries(&regions), ["primary"]);
    regions.run(&["down", "--yes", "--delete-data", NAME]).expect(0);
}

#[test]
fn lagging_replica_is_reported_and_not_promoted() {
    if !postgres::is_installed() {
        return;
    }
    let more = "dr: { failback: manual }\nreplication: { database: { mode: streaming, max_lag: 1s } }\n";
    let regions = up("lags", more);
    asks(&regions, "secondary", "SELECT pg_wal_replay_pause()");
    let made = regions.json(&["key", "create", "a person"], 0);
    let warnings = eventually("the lag is told", || {
        let status = regions.json_any(&["dr", "status"]);
        let line = status["sites"].as_array()?.iter().find(|line| line["site"] == "secondary")?.clone();
        let lags = line["lag_ms"].as_u64()? > 1000 && line["database_behind_bytes"].as_u64()? > 0;
        (lags && line["in_sync"] == false).then(|| status["warnings"].to_string())
    });
    assert!(warnings.contains("replication.database.max_lag"), "{warnings}");
    let refused = regions.run(&["dr", "failover", "--to", "secondary"]);
    assert!(refused.exit != 0 && refused.err.contains("the copy of the database at secondary is"), "{refused:?}");
    assert!(refused.err.contains("hint: "), "{refused:?}");
    assert_eq!(regions.json_any(&["dr", "status"])["primary"], "primary");
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200, "it goes on where it was");

    asks(&regions, "secondary", "SELECT pg_wal_replay_resume()");
    regions.until_in_sync();
    let moved = regions.json(&["dr", "failover", "--to", "secondary"], 0);
    assert_eq!(moved["shifted"]["way"], "handover", "{moved:#}");
    assert_eq!(primaries(&regions), ["secondary"]);
    assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
    // Twice is once.
    regions.json(&["dr", "failover", "--to", "secondary"], 0);

    // A copy of everything, taken by the door of the home site while another leads.
    let revoked = regions.json(&["key", "create", "gone"], 0);
    regions.json(&["key", "revoke", revoked["public_id"].as_str().unwrap()], 0);
    let copy = regions.json(&["backup", "create"], 0)["file"].as_str().unwrap().to_owned();
    let proof = regions.json(&["backup", "verify"], 0);
    assert_eq!(proof["proof"]["level"], "answered", "{proof:#}");
    let later = regions.json(&["key", "create", "too late"], 0);
    regions.json(&["dr", "failback", "--wait", "2m"], 0);
    assert_eq!(primaries(&regions), ["primary"]);

    // The machine burns with all sites. What is left: the file and the key.
    let shown = regions.run(&["backup", "key", "show"]).expect(0).out;
    let (file, key) = (regions.folder().join("carried-away.dump"), regions.folder().join("carried-away.key"));
    std::fs::copy(copy, &file).unwrap();
    textnlp_tests::write_secret(&key, &shown);
    lose_everything(&regions);
    let restored = regions.plain(&["restore", file.as_str(), "--key", key.as_str(), "-o", "json"]).expect(0).json();
    assert_eq!(
        restored["databases"]["primary"]["keys"], 3,
        "the first one, a person's, and one that is revoked: {restored:#}"
    );
    assert_eq!(restored["databases"].as_object().map(|all| all.len()), Some(1), "{restored:#}");
    let whole = restored["environment_file"].as_str().unwrap().to_owned();
    regions.plain(&["up", "--file", &whole, "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    let answers = |made: &Value| regions.answers(made["key"].as_str().unwrap());
    assert_eq!((answers(&made), answers(&revoked), answers(&later)), (200, 401, 401));
    until_well(&regions);
    // And they stand in for one another again.
    regions.json(&["dr", "failover", "--to", "secondary"], 0);
    assert_eq!(primaries(&regions), ["secondary"]);
    assert_eq!((answers(&made), answers(&revoked)), (200, 401));
    regions.json(&["dr", "failback", "--wait", "2m"], 0);
    regions.run(&["down", "--yes", "--delete-data", NAME]).expect(0);
}

/// Every process, the state with all sites, and what lies outside of it.
fn lose_everything(regions: &Regions) {
    let folders = ["primary", "secondary", "tertiary"].map(|site| folder_of(regions, site));
    for site in ["witness", "primary", "secondary", "tertiary"] {
        regions.kill_site(site);
    }
    eventually("nothing runs any more", || {
        (regions.processes_now().is_empty() && of_database(regions).is_empty()).then_some(())
    });
    for folder in folders {
        let _ = std::fs::remove_dir_all(&folder);
    }
    std::fs::remove_dir_all(regions.state(NAME)).unwrap();
}

/// The folder of a site's database.
fn folder_of(regions: &Regions, site: &str) -> Utf8PathBuf {
    let link = regions.state(NAME).join("sites").join(site).join("data/postgres");
    link.read_link_utf8().unwrap_or(link)
}

/// The server of a site.
fn server_of(regions: &Regions, site: &str) -> u32 {
    let file = std::fs::read_to_string(folder_of(regions, site).join("data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().parse().unwrap()
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// The folders of the clone's databases, and the report; `None` where a busy machine does not copy them within a minute.
fn drill_on_a_clone(regions: &Regions) -> Option<(Vec<Utf8PathBuf>, Value)> {
    let mut drill = regions.start(&["dr", "drill", "--fault", "blackhole", "--set", "dr.drill=clone", "-o", "json"]);
    let folders = eventually("the clone has servers of its own", || match drill.try_wait().unwrap() {
        Some(_) => Some(None),
        None => of_clone(regions).map(Some),
    });
    let ended = said(drill.wait_with_output().unwrap());
    if [&ended.out, &ended.err].iter().any(|said| said.contains("did not reach sync within")) {
        return None;
    }
    let report = ended.expect(0).json();
    Some((folders.expect("the drill ended before"), report))
}

/// The folders of a clone's databases, once all are there.
fn of_clone(regions: &Regions) -> Option<Vec<Utf8PathBuf>> {
    let states = regions.folder().join("state");
    let mut entries = states.read_dir_utf8().ok()?.flatten();
    let clone = entries.find(|entry| entry.file_name().starts_with(".drill-clone-"))?;
    let sites = clone.path().join(NAME).join("sites");
    let folder = |site| {
        let link = sites.join(site).join("data/postgres");
        let folder = link.read_link_utf8().unwrap_or(link);
        folder.is_dir().then_some(folder)
    };
    ["primary", "secondary", "tertiary"].into_iter().map(folder).collect()
}

/// The servers that run on the folders of these sites, whose command lines name no sandbox.
fn of_database(regions: &Regions) -> Vec<String> {
    let folders: Vec<String> =
        ["primary", "secondary", "tertiary"].map(|site| format!("{}/", folder_of(regions, site))).into();
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let raw = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&raw).replace('\0', " "))
    });
    lines.filter(|line| folders.iter().any(|folder| line.contains(folder.as_str()))).collect()
}

/// Every process of a site, those of its database too.
fn of_site(regions: &Regions, site: &str) -> Vec<u32> {
    let of_site = format!("sites/{site}");
    let ours = regions.processes_now().into_iter().filter(|(_, line)| line.contains(&of_site)).map(|(pid, _)| pid);
    let mut pids: Vec<u32> = ours.collect();
    // The supervisor first: it would start again what stops.
    pids.sort_by_key(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).map_or(1, |line| i32::from(!line.contains("supervise")))
    });
    let server = server_of(regions, site);
    let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
    pids.push(server);
    pids.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    pids
}
