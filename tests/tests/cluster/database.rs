//! `pilot` as it is written: its database beside its servers, dumps that are proven, keys that nobody's logs know.

use std::process::Command;

use base64::Engine;
use serde_json::{Value, json};
use textnlp_tests::{counts, eventually};

use crate::operator::Operator;

#[test]
fn pilot_deploys_as_shipped_and_its_backups_restore_lost_data() {
    let Some(mut operator) = Operator::with_nothing("pilot") else { return };
    let is_watched = operator.receives_alerts();
    let operator = operator;
    let namespace = operator.namespace.as_str();
    let done = operator.up(&[]);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    eprintln!("up: {:?} in {} s", counts(&done), done["seconds"]);
    assert!(done["backup"]["newest_verified"].is_null() && done["backup"]["enabled"] == true, "{}", done["backup"]);
    assert_eq!(operator.get("clusters.postgresql.cnpg.io", "textnlp-database")["spec"]["instances"], 3);
    assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0], "a second up plans nothing");
    if is_watched {
        let config = operator.get("alertmanagerconfig", "textnlp");
        let hook = &config["spec"]["receivers"][0]["webhookConfigs"][0]["urlSecret"];
        assert_eq!(
            (&hook["name"], &hook["key"]),
            (&"textnlp-receivers".into(), &"receiver-oncall".into()),
            "{config:#}"
        );
        let data = operator.get("secret", "textnlp-receivers")["data"]["receiver-oncall"].clone();
        let url = base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap();
        assert_eq!(url, b"https://hooks.example.com/services/t0ken");
    }

    // Keys are made where the command is typed; what a pod prints of them is no secret.
    let keys = |args: &[&str]| operator.run(&[&["key"], args, &["-o", "json"]].concat(), &[]).expect(0).json();
    let made = keys(&["create", "somebody", "--rate-limit", "77/hour"]);
    let (id, key) = (made["public_id"].as_str().unwrap(), made["key"].as_str().unwrap());
    let answers = |key: &str, path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "60", "--cacert", done["ca_file"].as_str().unwrap(), "-w", " %{http_code}"]);
        curl.args(["-H", &format!("x-api-key: {key}"), &format!("{}{path}", done["address"].as_str().unwrap())]);
        textnlp_tests::said(curl.output().unwrap()).out.ends_with(" 200")
    };
    let opens = |key: &str| answers(key, "/v1/models");
    assert!(opens(key));
    let rotated = keys(&["rotate", id]);
    let newer = rotated["key"].as_str().unwrap();
    assert_eq!(rotated["rate_limit"], "77/hour", "what it may stays");
    assert!(opens(newer) && newer != key);
    let refused = operator.run(&["key", "rotate", "nobody-has-it"], &[]).expect(2);
    assert!(refused.err.contains("there is no key `nobody-has-it`"), "{}", refused.err);
    let jobs = operator.cluster.kubectl(&["get", "jobs", "-n", namespace, "-o", "name"]);
    let jobs = String::from_utf8(jobs.stdout).unwrap();
    assert!(!jobs.contains("errand"), "they go when they are done: {jobs}");
    for file in walk(&operator.cluster.folder().join("pods/logs").join(namespace)) {
        let said = std::fs::read(&file).unwrap();
        let holds = |secret: &str| said.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!holds(key) && !holds(newer), "{file} holds a key");
    }

    // What somebody typed is no variable of the pod, and another cluster behind the same names is none of ours.
    let odd = keys(&["create", "$(ENVIRONMENT) $$"]);
    assert_eq!(odd["name"], "$(ENVIRONMENT) $$");
    keys(&["revoke", odd["public_id"].as_str().unwrap()]);
    let lineage = operator.get("deployment", "textnlp-api")["metadata"]["labels"]["textnlp-lineage"].clone();
    for (label, exit) in [("00000000-0000-4000-8000-000000000000", 1), (lineage.as_str().unwrap(), 0)] {
        let label = format!("textnlp-lineage={label}");
        let label = ["label", "deployment", "textnlp-api", "-n", namespace, "--overwrite", &label];
        assert!(operator.cluster.kubectl(&label).status.success());
        let said = operator.run(&["key", "list"], &[]);
        assert!((said.exit == 0) == (exit == 0), "{said:?}");
        assert!(exit == 0 || said.err.contains("does not belong to this deployment"), "{}", said.err);
    }
    let refused = operator.run(&["backup", "create", "--plain"], &[]).expect(2);
    assert!(refused.err.contains("--plain applies to backups of a machine"), "{}", refused.err);

    // A dump, proven; then what it has is lost, and comes back. What was made after it is not in it.
    let dumped = operator.run(&["backup", "create"], &[]).expect(0);
    assert!(dumped.out.contains("backup_2") && dumped.out.contains("verified: restored with 3 "), "{dumped:?}");
    eventually("status knows of it", || {
        let status = operator.run(&["status", "-o", "json"], &[]).expect(0).json();
        status["backup"]["newest_verified"].is_string().then_some(())
    });
    let listed = operator.run(&["backup", "list"], &[]).expect(0).out;
    assert!(
        listed.contains("volume textnlp-backups") && listed.contains("The newest verified one is of 2"),
        "{listed}"
    );
    keys(&["revoke", id]);
    let later = keys(&["create", "later"]);
    assert!(!opens(newer) && opens(later["key"].as_str().unwrap()));
    let claim = operator.get("persistentvolumeclaim", "textnlp-backups");
    let folder = operator.cluster.folder().join("claims").join(claim["metadata"]["uid"].as_str().unwrap());
    let files = walk(&folder).into_iter().filter(|file| file.file_name().unwrap().starts_with("backup_"));
    for file in files {
        let text = std::fs::read(&file).unwrap();
        assert!(file.as_str().ends_with(".dump.age") && text.starts_with(b"age-encryption.org/v1\n"), "{file}");
    }
    // The key is where the operator is; the cluster has it only for a restore.
    let restore = |name: &str| {
        let restore = ["create", "job", "--namespace", namespace, name, "--from=cronjob/textnlp-restore"];
        assert!(operator.cluster.kubectl(&restore).status.success());
    };
    restore("early");
    eventually("it is not restored without the key", || {
        (operator.get("job", "early")["status"]["failed"] == 1).then_some(())
    });
    assert!(!opens(newer));
    let shown = operator.run(&["backup", "key", "show"], &[]).expect(0).out;
    let key_file = operator.sandbox.folder().join("key.txt");
    textnlp_tests::write_secret(&key_file, &shown);
    let from = format!("--from-file={key_file}");
    let secret = ["create", "secret", "generic", "textnlp-backup-key", "--namespace", namespace, &from];
    assert!(operator.cluster.kubectl(&secret).status.success());
    restore("restore");
    let ended = || operator.get("job", "restore")["status"]["succeeded"] == 1;
    eventually("it is restored", || ended().then_some(()));
    let secret = ["delete", "secret", "textnlp-backup-key", "--namespace", namespace];
    assert!(operator.cluster.kubectl(&secret).status.success());
    eventually("the key of the dump opens", || opens(newer).then_some(()));
    assert!(!opens(later["key"].as_str().unwrap()));
    // Its statement runs as the tenants' role, to which the restored tables are granted.
    assert!(answers(newer, "/v1/usage"));
    assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0], "nothing of that is drift");

    // The pod of its primary is deleted while rows are written; another instance serves, and none of them is lost.
    let primary =
        || operator.get("clusters.postgresql.cnpg.io", "textnlp-database")["status"]["currentPrimary"].clone();
    let first = primary();
    let refused = operator.run(&["db", "failover", "-o", "json"], &[]).expect(4).json();
    assert_eq!((&refused["error"]["code"], primary()), (&Value::from("not_approved"), first.clone()));
    let failed_over = operator.run(&["db", "failover", "--yes", "-o", "json"], &[]).expect(0).json();
    assert_eq!((&failed_over["killed"], &failed_over["lost"]), (&first, &Value::from(0)), "{failed_over:#}");
    assert!(
        failed_over["acknowledged"].as_u64() > Some(10) && failed_over["failed"].as_u64() > Some(0),
        "{failed_over:#}"
    );
    assert!(failed_over["primary"] == primary() && failed_over["primary"] != first, "{failed_over:#}");
    operator.sql("DO $$ BEGIN ASSERT to_regclass('textnlp_failover_rehearsal') IS NULL; END $$");
    eventually("the service is back", || opens(newer).then_some(()));

    another_password(&operator);
    assert!(opens(newer));
    day_two(&operator);

    // The dumps of this database are its only copy.
    let refused = operator.run(&["down", "--yes", "--delete-dumps", "pilot"], &[]).expect(4);
    assert!(refused.err.contains("`main/database/cluster` runs in the same cluster"), "{}", refused.err);
    // What people rely on stays until it is named.
    let down = operator.run(&["down", "--yes", "-o", "json"], &[]).expect(0).json();
    let kept = down["retained"].to_string();
    assert!(kept.contains("main/database/cluster") && kept.contains("main/backup/volume"), "{down:#}");
    assert!(!operator.get("deployment", "textnlp-api")["metadata"].is_object());
    let again = operator.up(&[]);
    assert_eq!(again["text"].as_str().map(str::is_empty), Some(false), "{again:#}");
    assert!(opens(newer), "the database was kept");
    operator.run(&["down", "--yes", "--delete-data", "pilot"], &[]).expect(0);
    let gone = operator.cluster.kubectl(&["get", "namespace", namespace]);
    assert!(!gone.status.success(), "the namespace was ours");
}

/// Replaces the password of the owner: the role has the new one before the servers that use it come up.
fn another_password(operator: &Operator) {
    let of_secret = || operator.get("secret", "textnlp-database-owner")["data"]["password"].clone();
    let of_pods = || operator.get("secret", "textnlp-secrets")["data"]["database-password"].clone();
    let before = of_secret();
    operator.sql("CREATE TABLE password_before AS SELECT rolpassword FROM pg_authid WHERE rolname = 'textnlp'");
    let rotate = ["secret", "rotate", "database", "--yes", "--no-gate", "-o", "json"];
    let rotated = operator.run(&rotate, &[]).expect(0).json();
    assert_eq!(rotated["rotated"], json!(["main/secrets/database-password"]), "{rotated:#}");
    assert!(of_secret().is_string() && of_secret() != before && of_pods() == of_secret());
    operator
        .sql("DO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM password_before JOIN pg_authid USING (rolpassword)); END $$");
    operator.sql("DROP TABLE password_before");
    let cluster = operator.get("clusters.postgresql.cnpg.io", "textnlp-database");
    let read = &cluster["status"]["secretsResourceVersion"]["applicationSecretVersion"];
    assert_eq!(*read, operator.get("secret", "textnlp-database-owner")["metadata"]["resourceVersion"], "{cluster:#}");
    assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0], "nothing is left to do");
}

/// Commands of daily operation, with their exit statuses and a member of their documents. Two of them have two exit statuses: the
/// registry of the image is reached or not, and a report is complete or not.
const DAY_TWO: [(&str, &[i32], &str); 25] = [
    ("status", &[0], "/resources/0"),
    ("drift", &[0], "/drift"),
    ("doctor", &[0], "/checks/0"),
    ("health", &[0], "/ready/status"),
    ("health check --all", &[0], "/checks/0"),
    ("metrics summary --period 24h", &[0], "/sites/0/summary/generated_tokens"),
    ("metrics summary --period 1s", &[0], "/sites/0/summary/requests"),
    ("logs -n 20", &[0], "/lines/0/process"),
    ("analyze --since 1h", &[0], "/analysis/lines"),
    ("logs errors --since 1h", &[0], "/sites/0/complete"),
    ("deps", &[0, 1], "/dependencies/0"),
    ("deps check-updates", &[0], "/versions/0"),
    ("db vacuum", &[0], "/databases/0/milliseconds"),
    ("db analyze", &[0], "/databases/0/milliseconds"),
    ("db bench --clients 2 --duration 1s", &[0], "/databases/0/transactions"),
    ("cleanup --older-than 30d", &[0], "/found"),
    ("performance report --html FOLDER/performance.html", &[0], "/report"),
    ("cost report --pdf FOLDER/cost.pdf", &[0], "/pdf"),
    ("security audit --full --sarif FOLDER/audit.sarif", &[0], "/lines/0"),
    ("compliance report --framework gdpr --format pdf --out FOLDER/gdpr.pdf", &[0, 1], "/controls/0"),
    ("alert list", &[0], "/sites/0/unknown"),
    ("backup list", &[0], "/newest_verified"),
    ("audit list", &[0], "/commands/0"),
    ("feature list", &[0], "/features"),
    ("support-bundle --out FOLDER/support.tar", &[0], "/files/0"),
];

/// Runs all of [`DAY_TWO`], and reports every one that is not as expected.
fn day_two(operator: &Operator) {
    let mut wrong = Vec::new();
    for (command, exits, member) in DAY_TWO {
        let command = command.replace("FOLDER", operator.sandbox.folder().as_str());
        let words: Vec<&str> = command.split(' ').chain(["-o", "json"]).collect();
        let said = operator.run(&words, &[]);
        let document: Value = serde_json::from_str(&said.out).unwrap_or_default();
        let has_member = document.pointer(member).is_some_and(|value| !value.is_null());
        if !exits.contains(&said.exit) || document["exit"] != said.exit || !has_member {
            wrong.push(format!(
                "{command}: exit {}, not one of {exits:?}, or no `{member}`\n{}\n{}",
                said.exit, said.out, said.err
            ));
        }
        if let Some(is_complete) = document["is_complete"].as_bool() {
            assert_eq!(said.exit == 0, is_complete, "{document:#}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Every file below a folder.
fn walk(folder: &camino::Utf8Path) -> Vec<camino::Utf8PathBuf> {
    let Ok(entries) = folder.read_dir_utf8() else { return Vec::new() };
    let below = |entry: camino::Utf8DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => walk(entry.path()),
        _ => vec![entry.path().to_owned()],
    };
    entries.flatten().flat_map(below).collect()
}

#[test]
fn unreadable_backup_is_discarded_and_old_ones_are_pruned() {
    let Some(operator) = Operator::with_nothing("dumps") else { return };
    operator.up(&[]);
    let claim = operator.get("persistentvolumeclaim", "textnlp-backups");
    let folder = operator.cluster.folder().join("claims").join(claim["metadata"]["uid"].as_str().unwrap());
    let dumps = || {
        let mut names: Vec<String> =
            folder.read_dir_utf8().unwrap().flatten().map(|entry| entry.file_name().to_owned()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    };
    let create = || operator.run(&["backup", "create"], &[]);
    create().expect(0);
    create().expect(0);
    let two = dumps();
    assert!(two.len() == 2 && two[0].ends_with("-2.dump.age") && two[1].starts_with("backup_2"), "{two:?}");
    // One is older than what is kept, and one is a stranger's.
    let touched = Command::new("touch").args(["-d", "40 days ago", folder.join(&two[1]).as_str()]).status().unwrap();
    assert!(touched.success());
    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    create().expect(0);
    let left = dumps();
    // The name of the one that went is free again.
    assert!(left.contains(&"notes.txt".to_owned()) && left.len() == 3 && left != two, "{left:?}");

    // A database that a dump does not bring back whole: the job fails, and what was there stays.
    operator.sql(
        "SET ROLE textnlp; CREATE FUNCTION fits(int) RETURNS bool LANGUAGE sql AS 'SELECT true'; CREATE TABLE broken (a int CHECK (fits(a))); \
         INSERT INTO broken VALUES (1); CREATE OR REPLACE FUNCTION fits(int) RETURNS bool LANGUAGE sql AS 'SELECT false'",
    );
    let failed = create();
    assert!(failed.exit != 0 && failed.err.contains("pg_restore"), "{failed:?}");
    assert_eq!(dumps(), left, "half a dump is none");
    eventually("the last that ended well is told", || {
        operator.get("cronjob", "textnlp-backup")["status"]["lastSuccessfulTime"].is_string().then_some(())
    });
}
