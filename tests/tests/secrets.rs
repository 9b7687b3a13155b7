//! Secret canaries: what no output, report, journal, log, bundle, command line or environment of a process may contain.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use textnlp_tests::Sandbox;
use textnlp_tests::stand_in::StandIn;

/// Every command that reads, or leaves the service running, with its exit status, and that of its second run where it differs. `TMP` is
/// replaced by a temporary folder.
const COMMANDS: &[(&str, &[i32])] = &[
    ("preflight --env staging", &[0]),
    ("plan --env staging", &[0]),
    ("plan --env staging --down", &[0]),
    ("plan --env staging --compare onprem,aws", &[0]),
    ("apply TMP/staging.plan", &[0]),
    ("up --env staging --no-gate --yes", &[0]),
    ("status --env staging", &[0]),
    ("drift --env staging", &[0]),
    ("doctor --env staging", &[0]),
    ("explain --env staging here/secrets/api-key", &[0]),
    ("explain --env staging here/secrets/jwt-signing-key", &[0]),
    ("logs --env staging -n 500", &[0]),
    ("logs errors --env staging --since 1h", &[0]),
    ("analyze --env staging", &[0]),
    ("metrics summary --env staging --period 1s", &[0]),
    ("metrics dashboard --env staging", &[0]),
    ("analytics list --env staging", &[0]),
    ("analytics run --env staging", &[2]),
    ("cost report --env staging", &[0]),
    ("performance report --env staging", &[0]),
    ("baseline record --env staging --users 1 --seconds 1 --replace", &[0]),
    ("baseline compare --env staging", &[0]),
    ("baseline show --env staging", &[0]),
    ("gate --env staging", &[0]),
    ("phase list", &[0]),
    ("phase show --env staging", &[0]),
    ("health --env staging", &[0]),
    ("health check --env staging --all", &[0]),
    ("generate --env staging Mira --max-tokens 3", &[0]),
    ("chat --env staging", &[0]),
    ("tokenize --env staging Mira", &[0]),
    ("embed --env staging Mira", &[1]),
    ("batch submit --env staging TMP/requests.jsonl", &[1]),
    ("batch list --env staging", &[1]),
    ("batch show --env staging batch_1", &[1]),
    ("batch results --env staging batch_1 --out TMP/results.jsonl", &[1]),
    ("batch cancel --env staging batch_1", &[1]),
    ("batch delete --env staging batch_1", &[1]),
    ("validate --env staging --reference a --candidate a", &[0]),
    ("load --env staging --users 1 --seconds 1", &[0]),
    ("providers", &[0]),
    ("init TMP/init", &[0]),
    ("env list", &[0]),
    ("env show --env staging", &[0]),
    ("env show --env staging --explain", &[0]),
    ("env diff development staging", &[0]),
    ("env check --env staging", &[0]),
    ("env new --from staging copy", &[0, 4]),
    ("env migrate TMP/old.yaml", &[0]),
    ("env schema", &[0]),
    ("model list", &[0]),
    ("model pull bundled", &[0]),
    ("model push bundled s3://nowhere/", &[1]),
    ("model inspect bundled", &[0]),
    ("model fit bundled", &[0]),
    ("model bench bundled --threads 1", &[0]),
    ("export terraform --env staging", &[0]),
    ("export cloudformation --env staging --out TMP/cloudformation", &[2]),
    ("export bicep --env staging --out TMP/bicep", &[2]),
    ("export deployment-manager", &[2]),
    ("export yaml --env pilot", &[2]),
    ("export kustomize --env pilot --out TMP/kustomize", &[2]),
    ("export helm --env pilot --out TMP/helm", &[2]),
    ("export argocd --env pilot --repo https://git.example.com/a --path . --out TMP/argocd", &[2]),
    ("export flux --env pilot --repo https://git.example.com/a --path . --out TMP/flux", &[2]),
    ("key list --env staging", &[0]),
    ("key revoke --env staging nothing-0000", &[2]),
    ("feature list --env staging", &[0]),
    ("feature set beta on --env staging --percent 50 --tenant acme", &[0]),
    ("feature clear beta --env staging", &[0, 2]),
    // Its `up` would apply another setting too.
    ("secret rotate jwt --env staging --yes --no-gate --set server.api.max_tokens=999", &[4]),
    ("secret rotate jwt --env staging --yes --no-gate", &[0]),
    ("secret rotate ca --env staging --yes --no-gate", &[0]),
    ("secret rotate database --env staging --yes --no-gate", &[2]),
    ("secret rotate cache --env staging --yes --no-gate", &[2]),
    ("secret rotate cache --env staging --yes --immediately", &[2]),
    ("secret rotate backup --env staging --yes", &[0]),
    ("secret rotate report --env staging --yes", &[0]),
    ("audit export --env staging", &[0]),
    ("audit export --env staging --commands", &[0]),
    ("audit list --env staging", &[0]),
    ("security audit --env staging --full --sarif TMP/audit.sarif", &[0]),
    ("compliance report --env staging --framework gdpr --out TMP/gdpr.html", &[1]),
    ("alert test --env staging", &[1]),
    ("alert list --env staging", &[0]),
    ("deps --env staging", &[0]),
    ("deps check-updates --env staging", &[0]),
    ("deps update --env staging --security-only --yes", &[0]),
    ("db vacuum --env staging", &[0]),
    ("db analyze --env staging", &[0]),
    ("db bench --env staging --clients 2 --duration 1s", &[0]),
    ("db failover --env staging --yes", &[4]),
    ("db promote --env staging --region eu-west-1 --yes", &[4]),
    ("probe --env staging --every 1s --for 2s", &[0]),
    ("cleanup --env staging --older-than 1d", &[0]),
    ("support-bundle --env staging --out TMP/support.tar", &[0]),
    ("release show --env staging", &[0]),
    ("release set --env staging", &[0]),
    ("release checklist --env staging --done tests --reason CI-7", &[3]),
    ("release history --env staging", &[0]),
    ("release diff --env staging", &[0]),
    ("promote --from development --to staging", &[3]),
    ("rollback --env staging --to 1", &[0]),
    ("rollback --config --env staging", &[2]),
    ("rollout status --env staging", &[2]),
    ("rollout promote --env staging", &[2]),
    ("rollout abort --env staging", &[2]),
    ("rollout pause --env staging", &[2]),
    ("rollout resume --env staging", &[2]),
    ("rollout retry --env staging", &[2]),
    ("bundle create --out TMP/b.tar --no-server-image --offline", &[0]),
    ("bundle verify TMP/b.tar", &[0]),
    ("bundle inspect TMP/b.tar", &[0]),
    ("bundle diff TMP/b.tar TMP/b.tar", &[0]),
    ("bundle install TMP/none.tar --root TMP/root", &[2]),
    ("bundle scan TMP/b.tar", &[3]),
    ("bundle trust --root TMP/root", &[0]),
    ("bundle update create --from TMP/b.tar --to TMP/b.tar --out TMP/u.tar", &[0]),
    ("bundle update apply TMP/none.tar --root TMP/root", &[2]),
    ("bundle update rollback --root TMP/root", &[2]),
    ("bundle update zip textnlp-tiny --models TMP/models --out TMP/m.zip", &[1]),
    ("bundle update unzip TMP/none.zip --models TMP/models", &[1]),
    ("bundle export TMP/b.tar --out TMP/export", &[0, 1]),
    ("bundle keygen --out TMP/signing", &[0, 2]),
    ("bundle sign TMP/b.tar --key TMP/none.key", &[1]),
    ("dr status --env staging", &[2]),
    ("dr failover --env staging --to here", &[2]),
    ("dr failback --env staging", &[2]),
    ("dr drill --env staging", &[2]),
    ("dr drill --finish --env staging", &[2]),
    ("dr history --env staging", &[2]),
    ("dr report --env staging", &[2]),
    ("dr verify-report TMP/none.json", &[2]),
    ("backup create --env staging", &[0]),
    ("backup list --env staging", &[0]),
    ("backup verify --env staging --light", &[0]),
    ("backup prune --env staging", &[0]),
    ("restore TMP/none.dump --env staging", &[2]),
    ("state list --env staging", &[0]),
    ("state show --env staging here/secrets/api-key", &[0]),
    ("state history --env staging", &[0]),
    ("state at --env staging 3", &[0]),
    ("state diff --env staging 1 3", &[0]),
    ("state repair --env staging", &[0]),
    ("state adopt --env staging", &[0]),
    ("state move --env staging --to TMP/elsewhere", &[2]),
    ("state remove --env staging here/nothing", &[2]),
    ("state import --env staging", &[0]),
    ("state export --env staging", &[0]),
    ("hold --env staging --reason test", &[0]),
    ("hold --env staging --release", &[0]),
    ("completions bash", &[0]),
    ("man", &[0]),
    ("man --dir TMP/man", &[0]),
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
        ("TEXTNLP_SET__gates__p95_ms", "60000".to_owned()),
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
    let request = json!({ "custom_id": "a", "method": "POST", "url": "/v1/generate", "body": { "prompt": "Mira" } });
    std::fs::write(tmp.join("requests.jsonl"), request.to_string()).unwrap();
    let saved = tmp.join("staging.plan");
    sandbox.run(&["plan", "--env", "staging", "--out", saved.as_str()]).expect(0);
    let mut wrong = Vec::new();
    for (command, exits) in COMMANDS {
        for (more, exit) in [&["-o", "text", "-vv"][..], &["-o", "json"]].into_iter().zip(exits.iter().cycle()) {
            let typed = command.replace("TMP", tmp.as_str());
            let typed: Vec<&str> = typed.split(' ').chain(more.iter().copied()).collect();
            let said = sandbox.run(&typed);
            assert!(said.exit != 101 && said.exit >= 0, "{typed:?}: {}\n{}", said.exit, said.err);
            if said.exit != *exit {
                wrong.push(format!("{command}: exit {}, not {exit}\n{}{}", said.exit, said.out, said.err));
            }
            let is_usage = more[1] == "json" && said.out.contains(r#""code": "usage""#);
            assert!(!is_usage, "{typed:?} does nothing: {}", said.out);
            for text in [&said.out, &said.err] {
                assert_eq!(leak(text), None, "{typed:?} prints a secret");
            }
        }
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));

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
        let is_searched = COMMANDS.iter().any(|(command, _)| {
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
