//! What happens beside the running service: a drill on a clone, and a copy that is made while the home site is lost.

use serde_json::{Value, json};
use textnlp_tests::eventually;

use super::nothing_was_lost;
use super::place::{NAME, Regions};

/// What drills leave beside the states of environments.
fn clones(regions: &Regions) -> Vec<String> {
    let entries = regions.folder().join("state").read_dir_utf8().into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_owned()).filter(|name| name.starts_with(".drill-clone-")).collect()
}

fn supervisors(processes: &[(u32, String)]) -> Vec<u32> {
    processes.iter().filter(|(_, line)| line.contains("supervise")).map(|(pid, _)| *pid).collect()
}

/// Their command lines, in order.
fn programs(processes: &[(u32, String)]) -> Vec<String> {
    let mut lines: Vec<String> = processes.iter().map(|(_, line)| line.clone()).collect();
    lines.sort();
    lines
}

#[test]
fn drill_on_a_clone_changes_nothing_and_cleans_up_even_when_killed() {
    let regions = Regions::with("clone", "", "dr: { drill: clone }\n");
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    let made = regions.json(&["key", "create", "a person"], 0);
    let before = regions.json(&["dr", "status"], 0);
    let ours = regions.processes();
    let refused = regions.run(&["dr", "drill", "--fault", "disk_full"]).expect(4);
    assert!(refused.err.contains("no filesystem of its own"), "{}", refused.err);
    regions.run(&["hold", "--reason", "exams"]).expect(0);
    for args in [&["dr", "drill"][..], &["dr", "failover", "--to", "b"], &["dr", "failback"]] {
        let refused = regions.run(args).expect(4).err;
        assert!(refused.contains("exams") && refused.contains("hold --release"), "{args:?}: {refused}");
    }
    regions.run(&["hold", "--release"]).expect(0);

    // Killed in the middle: its clone goes on, with the data of the environment, and the next drill removes it.
    let mut drill = regions.start(&["dr", "drill"]);
    let left = eventually("the clone is lost a site", || {
        let clone = clones(&regions).pop()?;
        let faults = regions.folder().join("state").join(&clone).join(NAME).join("sites/witness/faults");
        faults.read_dir_utf8().is_ok_and(|mut faults| faults.next().is_some()).then_some(clone)
    });
    drill.kill().unwrap();
    drill.wait().unwrap();
    let root = regions.folder().join("state").join(&left);
    let file = root.join("environment.yaml");
    let of_clone = ["--file", file.as_str(), "--state-dir", root.as_str(), "-o", "json"];
    let keys = eventually("the clone takes commands", || {
        let said = regions.plain(&[&["key", "list"][..], &of_clone].concat());
        (said.exit == 0).then(|| said.json())
    });
    assert!(keys.to_string().contains(made["public_id"].as_str().unwrap()), "{keys:#}");
    let lineage: Value = serde_json::from_slice(&std::fs::read(root.join(NAME).join("lineage.json")).unwrap()).unwrap();
    let own: Value = serde_json::from_slice(&std::fs::read(regions.state(NAME).join("lineage.json")).unwrap()).unwrap();
    assert_ne!(lineage["lineage"], own["lineage"]);

    let report = regions.json(&["dr", "drill", "--fault", "kill", "--lose-data"], 0);
    nothing_was_lost(&report);
    assert_eq!((&report["live"], &report["leftovers"]), (&json!(false), &json!([])), "{report:#}");
    assert_eq!(clones(&regions), Vec::<String>::new());
    // A fault kills or stops a site's supervisor first. What a supervisor restarts on a busy machine, or a site that takes
    // over from a slow one, is no fault.
    assert_eq!(supervisors(&regions.processes()), supervisors(&ours));
    eventually("the same programs run", || (programs(&regions.processes()) == programs(&ours)).then_some(()));
    assert!(regions.faults().is_empty(), "{:?}", regions.faults());
    eventually("the same site leads", || {
        (regions.json_any(&["dr", "status"])["primary"] == before["primary"]).then_some(())
    });
    regions.until_in_sync();
    let log = regions.state(NAME).join("sites/witness/log");
    let files = regions.files(&log).into_iter();
    let told: String = files.map(|file| std::fs::read_to_string(log.join(file)).unwrap_or_default()).collect();
    let is_commanded = told.is_empty() || told.contains("primary handed over the primary role");
    let after = regions.json_any(&["dr", "status"]);
    assert!(after["epoch"] == before["epoch"] || !is_commanded, "a command moved the role: {told}");
    for _ in 0..6 {
        assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200, "its data was not lost");
    }
    assert_eq!(regions.json(&["dr", "history"], 0)["drills"][0]["on"], "clone");
    assert!(regions.run(&["dr", "history"]).out.contains(" clone "));
    regions.run(&["plan", "--exit-code"]).expect(0);
    let page = regions.json(&["dr", "report"], 0)["report"].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string(&page).unwrap().contains("on clones"));
    regions.run(&["dr", "verify-report", &page]).expect(0);
}

#[test]
fn restored_home_site_knows_keys_revoked_during_its_outage() {
    let regions = Regions::with("copied", "", "dr: { failback: manual }\n");
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    let revoked = regions.json(&["key", "create", "revoked"], 0);
    regions.kill_site("primary");
    regions.until_taken_over();
    regions.json(&["key", "revoke", revoked["public_id"].as_str().unwrap()], 0);
    let made = regions.json(&["key", "create", "made"], 0);
    let copy = regions.json(&["backup", "create", "--plain"], 0)["file"].as_str().unwrap().to_owned();
    regions.run(&["down", "--yes"]).expect(0);
    regions.json(&["restore", &copy, "--replace", NAME], 0);
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    regions.until_in_sync();
    // Whichever site answers.
    for _ in 0..6 {
        assert_eq!(regions.answers(made["key"].as_str().unwrap()), 200);
        assert_eq!(regions.answers(revoked["key"].as_str().unwrap()), 401);
    }
}
