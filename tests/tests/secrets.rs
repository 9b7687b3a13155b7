//! Secret canaries: what no output, report, journal, log, bundle, command line or environment of a process may contain.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use textnlp_tests::Sandbox;
use textnlp_tests::stand_in::StandIn;

/// Every command that reads, or leaves the service running. `TMP` is replaced by a temporary folder.
const COMMANDS: &[&str] = &[
    "preflight --env staging",
    "plan --env staging",
    "plan --env staging --down",
    "plan --env staging --compare onprem,aws",
    "apply TMP/staging.plan",
    "up --env staging --no-gate --yes",
    "status --env staging",
    "drift --env staging",
    "doctor --env staging",
    "explain --env staging here/server/api-key",
    "explain --env staging here/server/jwt-key",
    "logs --env staging -n 500",
    "logs errors --env staging --since 1h",
    "analyze --env staging",
    "metrics summary --env staging --period 1s",
    "analytics list --env staging",
    "analytics run --env staging",
    "cost report --env staging",
    "performance report --env staging",
    "baseline record --env staging --users 1 --seconds 1 --replace",
    "baseline compare --env staging",
    "baseline show --env staging",
    "gate --env staging",
    "phase list",
    "phase show --env staging",
    "health --env staging",
    "health check --env staging --all",
    "generate --env staging Mira --max-tokens 3",
    "chat --env staging",
    "tokenize --env staging Mira",
    "embed --env staging Mira",
    "validate --env staging --reference a --candidate a",
    "load --env staging --users 1 --seconds 1",
    "providers",
    "init TMP/init",
    "env list",
    "env show --env staging",
    "env show --env staging --explain",
    "env diff development staging",
    "env check --env staging",
    "env new --from staging copy",
    "env migrate TMP/old.yaml",
    "env schema",
    "model list",
    "model pull bundled",
    "model push bundled s3://nowhere/",
    "model inspect bundled",
    "model fit bundled",
    "export terraform --env staging",
    "export cloudformation --env staging --out TMP/cloudformation",
    "export bicep --env staging --out TMP/bicep",
    "export deployment-manager",
    "export yaml --env pilot",
    "export kustomize --env pilot --out TMP/kustomize",
    "export helm --env pilot --out TMP/helm",
    "export argocd --env pilot --repo https://git.example.com/a --path . --out TMP/argocd",
    "export flux --env pilot --repo https://git.example.com/a --path . --out TMP/flux",
    "key list --env staging",
    "key revoke --env staging nothing-0000",
    "feature list --env staging",
    "feature set beta on --env staging --percent 50 --tenant acme",
    "feature clear beta --env staging",
    "secret rotate jwt --env staging --yes --no-gate",
    "secret rotate ca --env staging --yes --no-gate",
    "secret rotate database --env staging --yes --no-gate",
    "secret rotate backup --env staging --yes",
    "secret rotate report --env staging --yes",
    "audit export --env staging",
    "audit export --env staging --commands",
    "audit list --env staging",
    "security audit --env staging --full --sarif TMP/audit.sarif",
    "compliance report --env staging --framework gdpr --out TMP/gdpr.html",
    "alert test --env staging",
    "alert list --env staging",
    "deps --env staging",
    "deps check-updates --env staging",
    "deps update --env staging --security-only --yes",
    "db vacuum --env staging",
    "db analyze --env staging",
    "db bench --env staging --clients 2 --duration 1s",
    "db failover --env staging --yes",
    "db promote --env staging --region eu-west-1 --yes",
    "probe --env staging --every 1s --for 2s",
    "cleanup --env staging --older-than 1d",
    "support-bundle --env staging --out TMP/support.tar",
    "release show --env staging",
    "release set --env staging",
    "release checklist --env staging --done tests --reason CI-7",
    "release history --env staging",
    "release diff --env staging",
    "promote --from development --to staging",
    "rollback --env staging --to 1",
    "rollback --config --env staging",
    "rollout status --env staging",
    "rollout promote --env staging",
    "rollout abort --env staging",
    "rollout pause --env staging",
    "rollout resume --env staging",
    "rollout retry --env staging",
    "bundle create --out TMP/b.tar --no-server-image --offline",
    "bundle verify TMP/b.tar",
    "bundle inspect TMP/b.tar",
    "bundle diff TMP/b.tar TMP/b.tar",
    "bundle install TMP/none.tar --root TMP/root",
    "bundle scan TMP/b.tar",
    "bundle trust --root TMP/root",
    "bundle update create --from TMP/b.tar --to TMP/b.tar --out TMP/u.tar",
    "bundle update apply TMP/none.tar --root TMP/root",
    "bundle update rollback --root TMP/root",
    "bundle update zip textnlp-tiny --models TMP/models --out TMP/m.zip",
    "bundle update unzip TMP/none.zip --models TMP/models",
    "bundle export TMP/b.tar --out TMP/export",
    "bundle keygen --out TMP/signing",
    "bundle sign TMP/b.tar --key TMP/none.key",
    "dr status --env staging",
    "dr failover --env staging --to here",
    "dr failback --env staging",
    "dr drill --env staging",
    "dr history --env staging",
    "dr report --env staging",
    "dr verify-report TMP/none.json",
    "backup create --env staging",
    "backup list --env staging",
    "backup verify --env staging --light",
    "backup prune --env staging",
    "restore TMP/none.dump --env staging",
    "state list --env staging",
    "state show --env staging here/server/api-key",
    "state history --env staging",
    "state at --env staging 3",
    "state diff --env staging 1 3",
    "state repair --env staging",
    "state adopt --env staging",
    "state move --env staging --to TMP/elsewhere",
    "state remove --env staging here/nothing",
    "state import --env staging",
    "state export --env staging",
    "hold --env staging --reason test",
    "hold --env staging --release",
    "completions bash",
    "man",
    "man --dir TMP/man",
];

/// Commands that print a secret by design, run until they are stopped, or speak for another program.
const EXEMPT: &[&str] = &[
    "key create",
    "key rotate",
    "backup key show",
    "serve",
    "dr watch",
    "bundle serve",
    "kube-token aws",
    "kube-token gcp",
    "kube-token azure",
    "down",
];

/// Where secrets are meant to be. What holds one must not be readable by other users.
const PLACES: [&str; 3] = ["secrets/", "sites/here/", "site/"];

#[test]
fn no_output_report_or_process_contains_a_secret() {
    let mut sandbox = Sandbox::new("canaries");
    let webhook = "canary-webhook-4f1d9c02";
    sandbox.variables.extend([
        ("ONCALL", format!("https://127.0.0.1:1/{webhook}")),
        ("TEXTNLP_SET__monitoring__receivers__oncall", "secret:env:ONCALL".to_owned()),
        ("HF_TOKEN", "canary-hub-91ab3377".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "canary-cloud-77e0a1c4".to_owned()),
        ("AWS_REGION", "eu-west-1".to_owned()),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1".to_owned()),
        // A short gate: what it prints and stores matters here.
        ("TEXTNLP_SET__gates__users", "1".to_owned()),
        ("TEXTNLP_SET__gates__hold", "1s".to_owned()),
        ("TEXTNLP_NODE_PASSWORD", "canary-node-0c9d2b51".to_owned()),
    ]);
    sandbox.up("staging");
    let created = sandbox.run(&["key", "create", "client", "--env", "staging"]).expect(0).out.trim().to_owned();
    let shown = sandbox.run(&["backup", "key", "show", "--env", "staging"]).expect(0).out;
    let backup_key = shown.lines().last().unwrap().to_owned();

    let mut canaries = BTreeSet::from([
        webhook.to_owned(),
        "canary-hub-91ab3377".to_owned(),
        "canary-cloud-77e0a1c4".to_owned(),
        "canary-node-0c9d2b51".to_owned(),
        created.rsplit('_').next().unwrap().to_owned(),
        backup_key,
    ]);
    let secrets = sandbox.state("staging").join("secrets");
    for file in sandbox.files(&secrets) {
        let text = std::fs::read_to_string(secrets.join(&file)).unwrap_or_default();
        // Public halves are in certificates and key sets; of a private key every line of its body counts.
        let public = text.contains("BEGIN CERTIFICATE") || text.contains("BEGIN PUBLIC");
        canaries.extend(
            text.lines()
                .map(str::trim)
                .filter(|line| {
                    !public && line.len() >= 24 && !line.starts_with("---") && !line.starts_with("untrusted comment:")
                })
                .map(|line| {
                    // The public id of a key may be shown.
                    if line.starts_with("tnlp_") {
                        line.rsplit('_').next().unwrap_or(line).to_owned()
                    } else {
                        line.to_owned()
                    }
                }),
        );
    }
    assert!(canaries.len() > 12, "{} canaries are too few", canaries.len());
    let leak = |text: &str| canaries.iter().find(|canary| text.contains(canary.as_str())).map(|c| c[..8].to_owned());

    let tmp = sandbox.folder().join("tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    std::fs::write(tmp.join("old.yaml"), "environment: old\n").unwrap();
    let saved = tmp.join("staging.plan");
    sandbox.run(&["plan", "--env", "staging", "--out", saved.as_str()]).expect(0);
    for command in COMMANDS {
        for more in [&["-o", "text", "-vv"][..], &["-o", "json"]] {
            let typed = command.replace("TMP", tmp.as_str());
            let typed: Vec<&str> = typed.split(' ').chain(more.iter().copied()).collect();
            let said = sandbox.run(&typed);
            assert!(said.exit != 101 && said.exit >= 0, "{typed:?}: {}\n{}", said.exit, said.err);
            let is_usage = more[1] == "json" && said.out.contains(r#""code": "usage""#);
            assert!(!is_usage, "{typed:?} does nothing: {}", said.out);
            for text in [&said.out, &said.err] {
                assert_eq!(leak(text), None, "{typed:?} prints a secret");
            }
        }
    }

    // What was written: journals, evidence, reports, logs, bundles, plans, exports.
    let mut searched = 0;
    for file in sandbox.files(sandbox.folder()) {
        let path = sandbox.folder().join(&file);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        searched += 1;
        if let Some(leaked) = leak(&String::from_utf8_lossy(&bytes)) {
            let relative = file.strip_prefix("state/staging/").unwrap_or("-");
            assert!(PLACES.iter().any(|place| relative.starts_with(place)), "{file} contains {leaked}…");
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o007, 0, "{file} has mode {mode:o}");
        }
    }
    assert!(searched > 100, "{searched} files are too few");

    let processes = sandbox.processes();
    assert!(processes.len() >= 3, "{processes:?}");
    for (pid, line) in processes {
        assert_eq!(leak(&line), None, "the command line of {pid}");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert_eq!(leak(&String::from_utf8_lossy(&environment)), None, "the environment of {line}");
    }
    sandbox.run(&["down", "--env", "staging", "--yes"]).expect(0);
}

/// The names of the subcommands in a help text.
fn subcommands(help: &str, top: bool) -> Vec<String> {
    let lines: Vec<&str> = if top {
        help.lines().take_while(|line| !line.starts_with("Options:")).collect()
    } else {
        help.lines()
            .skip_while(|line| !line.starts_with("Commands:"))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .collect()
    };
    let names = lines.iter().filter_map(|line| {
        let (name, about) = line.strip_prefix("  ")?.split_once("  ")?;
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        (plain && !about.is_empty() && name != "help").then(|| name.to_owned())
    });
    names.collect()
}

#[test]
fn every_command_is_searched_for_secrets_or_exempt() {
    let sandbox = Sandbox::new("commands");
    let mut leaves = BTreeSet::new();
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let mut typed: Vec<&str> = path.iter().map(String::as_str).collect();
        typed.push("--help");
        let below = subcommands(&sandbox.run(&typed).expect(0).out, path.is_empty());
        if below.is_empty() {
            leaves.insert(path.join(" "));
        }
        todo.extend(below.into_iter().map(|name| [&path[..], &[name]].concat()));
    }
    assert!(leaves.len() > 60, "{leaves:?}");
    for leaf in &leaves {
        let is_searched = COMMANDS.iter().any(|command| {
            command.strip_prefix(leaf.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        });
        assert!(is_searched || EXEMPT.contains(&leaf.as_str()), "`{leaf}` is neither searched nor exempt");
    }
}

#[test]
fn a_store_on_this_machine_gets_no_token_of_a_cloud() {
    for (store, path) in [("az://c/x", "/devstoreaccount1"), ("gs://b/x", "")] {
        let other = StandIn::of(404, "");
        let mut sandbox = Sandbox::new("store");
        sandbox.variables.extend([
            ("AZURE_STORAGE_ACCOUNT_NAME", "mine".to_owned()),
            ("AZURE_STORAGE_TOKEN", "hunter2".to_owned()),
            ("GOOGLE_BEARER_TOKEN", "hunter2".to_owned()),
        ]);
        let (store, endpoint) = (format!("state.store={store}"), format!("state.endpoint={}{path}", other.url()));
        sandbox.run(&["status", "--env", "staging", "--set", &store, "--set", &endpoint]);
        let requests = other.requests();
        assert!(!requests.is_empty() && !format!("{requests:?}").contains("hunter2"), "{store}: {requests:?}");
    }
}
