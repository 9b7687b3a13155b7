//! A plan is saved, read by somebody, and applied exactly as it was or not at all.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use textnlp_tests::Sandbox;

const DEVELOPMENT: [&str; 2] = ["--env", "development"];
/// A machine with a price.
const MACHINE: &str =
    "budget.machines.here={ watts: 200, price_per_kwh: 0.3, purchase_price: 900, depreciation_months: 36 }";

fn plan(sandbox: &Sandbox, more: &[&str]) -> textnlp_tests::Said {
    sandbox.run(&[&["plan"][..], &DEVELOPMENT, more].concat())
}

#[test]
fn saved_plan_is_applied_without_further_confirmation() {
    let sandbox = Sandbox::new("saved");
    let file = sandbox.folder().join("first.plan");
    let file = file.as_str();
    let said = plan(&sandbox, &["--out", file, "--exit-code"]).expect(6);
    assert!(said.out.contains(&format!("To apply: textnlp-deploy apply {file}")), "{}", said.out);
    // Nobody is asked, and no --yes is needed: the plan was read before.
    let said = sandbox.run(&["apply", file, "--no-gate", "-o", "json"]).expect(0);
    let document = said.json();
    assert!(document["plan"]["create"].as_u64().unwrap() > 5, "{document}");
    assert!(document["address"].as_str().is_some(), "{document}");
    plan(&sandbox, &["--exit-code"]).expect(0);

    let stale = sandbox.run(&["apply", file, "--no-gate"]).expect(4);
    assert!(stale.err.contains("the saved plan is stale") && stale.err.contains("plan again"), "{}", stale.err);

    // What was changed for the plan is changed for its application too.
    let change = ["--set", "server.api.timeout=77s"];
    let planned = plan(&sandbox, &[&change[..], &["--out", file, "-o", "json"]].concat()).expect(0).json();
    assert_eq!(planned["file"].as_str(), Some(file));
    let reaches = planned["reaches"].as_array().unwrap();
    assert!(reaches.iter().any(|one| !one["reaches"].as_array().unwrap().is_empty()), "{planned}");
    // The change restarts the only replica.
    let warned = planned["warnings"].as_array().unwrap();
    let interrupts = |one: &serde_json::Value| one["place"] == "here/server/replica-0";
    assert!(warned.iter().any(|one| interrupts(one) && one.to_string().contains("scaling.min")), "{planned}");
    // No file was ever changed here, but each was created.
    assert!(planned["estimate"]["typical"] == json!([]) && planned["estimate"]["unknown"] == json!([]), "{planned}");
    sandbox.run(&["apply", file, "--no-gate", "--quiet"]).expect(0);
    plan(&sandbox, &[&change[..], &["--exit-code"]].concat()).expect(0);
    // The budget alone refuses it.
    let over = [&change[..], &["--set", "budget.monthly=1", "--set", MACHINE, "--exit-code"]].concat();
    let said = plan(&sandbox, &over).expect(4);
    assert!(said.out.contains("Refused: 1.") && !said.out.contains("No changes"), "{}", said.out);
    let document = plan(&sandbox, &[&over[..], &["-o", "json"]].concat()).expect(4).json();
    assert!(document["ok"] == false && document["exit"] == 4, "{document}");

    // Records that do not exist are not taken for now; and a removal that nobody agreed to is looked at as a removal.
    for past in [&["state", "at", "9999"][..], &["state", "diff", "9999", "10000"]] {
        let said = sandbox.run(&[past, &DEVELOPMENT].concat()).expect(2);
        assert!(said.err.contains("there is no record 9999"), "{}", said.err);
    }
    let down = sandbox.run(&["down", "--env", "development"]).expect(4);
    assert!(down.err.contains("textnlp-deploy plan --down --env development"), "{}", down.err);

    plan(&sandbox, &["--down", "--out", file]).expect(0);
    let down = sandbox.run(&["apply", file]).expect(0);
    assert!(down.out.contains("development is down"), "{}", down.out);
    let stale = sandbox.run(&["apply", file]).expect(4);
    assert!(stale.err.contains("textnlp-deploy plan --down --env development"), "{}", stale.err);
    // Now it is known how long it takes.
    let again = plan(&sandbox, &["-o", "json"]).expect(0).json();
    assert!(again["estimate"]["seconds"].as_f64().unwrap() > 0.0, "{again}");
}

#[test]
fn plan_shows_its_cost_as_far_as_it_is_known() {
    let sandbox = Sandbox::new("cost");
    let document = plan(&sandbox, &["-o", "json"]).json();
    assert!(document["cost"]["monthly"].is_null() && document["cost"]["currency"] == "USD", "{}", document["cost"]);
    assert_eq!(
        document["cost"]["unknown"].as_array().unwrap().len(),
        document["steps"].as_array().unwrap().len(),
        "no price of a machine of one's own is known: {document:#}"
    );
    let text = plan(&sandbox, &[]).out;
    assert!(text.contains("Cost: unknown: the machines have no price; set `budget.machines.here`"), "{text}");
    let (costs, lines) = (plan(&sandbox, &["--costs"]).out, document["cost"]["lines"].as_array().unwrap());
    assert!(costs.contains("Cost by resource, per month:") && !text.contains("Cost by resource"), "{costs}");
    for line in lines {
        let (resource, why) = (line["resource"].as_str().unwrap(), line["why"].as_str().unwrap());
        assert!(costs.lines().any(|shown| shown.contains(resource) && shown.contains(why)), "{line}: {costs}");
    }
    let said = plan(&sandbox, &["--set", "budget.monthly=100"]);
    assert!(said.out.contains("the budget of 100.00 USD is not checked"), "{}", said.out);
    assert!(said.out.contains("\nTo apply: textnlp-deploy up"), "{}", said.out);
    // A command that would be refused is not the next one.
    let said = plan(&sandbox, &["--set", "budget.monthly=1", "--set", MACHINE]);
    assert!(said.out.contains("  refused: budget.monthly: "), "{}", said.out);
    assert!(said.out.contains("\nBefore it can be applied: change what is refused above\nThen: "), "{}", said.out);
    assert!(!said.out.contains("To apply:"), "{}", said.out);
    let file = sandbox.folder().join("refused.plan");
    let said = plan(&sandbox, &["--set", "budget.monthly=1", "--set", MACHINE, "--out", file.as_str()]);
    let then = said.out.lines().find(|line| line.starts_with("Then: textnlp-deploy plan "));
    assert!(then.is_some_and(|then| then.ends_with(&format!(" --out {file}"))), "{}", said.out);
}

#[test]
fn plan_for_the_standard_output_comes_before_its_text_in_a_file_too() {
    let sandbox = Sandbox::new("redirected");
    let file = sandbox.folder().join("redirected");
    let redirected = std::fs::File::create(&file).unwrap();
    let mut command = sandbox.command(&["plan", "--env", "development", "--out", "/dev/stdout"]);
    textnlp_tests::said(command.stdout(redirected).output().unwrap()).expect(0);
    let written = std::fs::read_to_string(&file).unwrap();
    let (saved, text) = written.split_once('\n').unwrap();
    let saved: serde_json::Value = serde_json::from_str(saved).unwrap();
    assert!(saved["textnlp_plan"].is_u64(), "{saved:#}");
    assert!(text.contains("Saved as /dev/stdout"), "{text}");
}

/// An environment of AWS whose database has this many standbys, in a file; `None` where the program has no clouds.
fn of_aws(sandbox: &Sandbox, replicas: u32) -> Option<String> {
    if sandbox.run(&["providers"]).expect(0).out.contains("not part of this build") {
        eprintln!("LEFT OUT: costs on several providers: the program is built without clouds");
        return None;
    }
    let file = sandbox.folder().join("shop.yaml");
    let text = format!(
        "extends: pilot\nenvironment: shop\n\
         sites: [{{ name: main, provider: aws, runtime: kubernetes, region: eu-central-1, account: \"123456789012\" }}]\n\
         registry: {{ url: 123456789012.dkr.ecr.eu-central-1.amazonaws.com/textnlp }}\n\
         database: {{ kind: postgres, hosting: managed, replicas: {replicas} }}\n\
         traffic: {{ domain: textnlp.example.com, existing: Z0123456789ABCDEFGHIJ }}\n"
    );
    std::fs::write(&file, text).unwrap();
    Some(file.into_string())
}

#[test]
fn check_of_a_site_without_an_account_refuses_only_what_is_refused_for_every_account() {
    let sandbox = Sandbox::new("unsigned");
    let Some(file) = of_aws(&sandbox, 1) else { return };
    let text = std::fs::read_to_string(&file).unwrap();
    let without = text.replace(", account: \"123456789012\"", "").replace("123456789012", "210987654321");
    assert!(!without.contains("123456789012") && without.contains("210987654321.dkr"), "{without}");
    std::fs::write(&file, without).unwrap();
    let check = ["env", "check", "--file", file.as_str()];
    let said = sandbox.run(&check).expect(0);
    assert!(said.out.contains("shop: valid\n"), "{}", said.out);
    // One is of the account, perhaps; the other is no identity in any account. No fix names an account that was assumed.
    let access = "cluster.access=[{ identity: 'arn:aws:iam::210987654321:role/admins', level: view }, { identity: admins, level: view }]";
    let said = sandbox.run(&[&check[..], &["--set", access]].concat()).expect(0);
    assert!(said.out.contains("shop: valid; cannot be deployed as it is\n"), "{}", said.out);
    assert!(said.out.contains("`admins` is neither a role nor a user of IAM"), "{}", said.out);
    assert!(said.out.contains("iam::ACCOUNT:role") && !said.out.contains("another account"), "{}", said.out);
}

#[test]
fn environment_is_compared_on_three_clouds_by_its_monthly_cost() {
    let sandbox = Sandbox::new("compare");
    for (typed, says) in [("aws,acme", "there is no provider `acme`"), ("gcp=a/b", "is not the name of a region")] {
        let said = plan(&sandbox, &["--compare", typed]).expect(2);
        assert!(said.err.contains(says), "{}", said.err);
    }
    plan(&sandbox, &["--compare", "aws", "--out", "file"]).expect(2);
    let Some(file) = of_aws(&sandbox, 1) else { return };
    // There are no credentials, and no address can be reached.
    let compare = ["plan", "--file", file.as_str(), "--compare", "aws,gcp=us-central1,azure"];
    let document = sandbox.run(&[&compare[..], &["-o", "json"]].concat()).expect(0).json();
    let offers = document["providers"].as_array().unwrap();
    assert!(offers.iter().all(|offer| offer["cost"]["known"].as_f64() > Some(0.0)), "{document:#}");
    // Prices of Frankfurt are missing: it is not ranked, whatever its known amounts are.
    let ranked: Vec<bool> = offers.iter().map(|offer| offer["ranked"] == true).collect();
    assert!(ranked[0] && ranked.is_sorted_by(|one, other| one >= other), "{document:#}");
    let of = |name: &str| offers.iter().find(|offer| offer["provider"] == name).unwrap();
    for (name, region) in [("aws", "eu-central-1"), ("gcp", "us-central1"), ("azure", "westeurope")] {
        assert_eq!(of(name)["regions"], serde_json::json!([region]), "{document:#}");
        assert!(of(name)["cost"]["services"].as_array().unwrap().len() > 2, "{document:#}");
    }
    let is_ranked = ["aws", "gcp", "azure"].map(|name| of(name)["ranked"] == true);
    assert_eq!(is_ranked, [false, true, true], "{document:#}");
    for (typed, region) in [("gcp=mars", "us-central1"), ("azure=moon", "westeurope")] {
        let compare = ["plan", "--file", file.as_str(), "--compare", typed];
        let said = sandbox.run(&compare).expect(2).err;
        assert!(said.contains("are recorded") && said.contains(region), "{said}");
    }
    let differs = |name: &str, path: &str| {
        let changes = of(name)["changes"].as_array().unwrap().iter();
        changes.filter(|change| change["path"] == path).count()
    };
    assert_eq!((differs("aws", "traffic.existing"), differs("gcp", "traffic.existing")), (0, 1), "{document:#}");
    let text = sandbox.run(&compare).expect(0).out;
    let unranked = "Cost of shop by list prices, the cheapest first; not ranked where prices are missing: ";
    for says in [unranked, "aws (eu-central-1)", "USD a month", "≥ ", "Not priced:", "traffic.existing"] {
        assert!(text.contains(says), "no `{says}` in:\n{text}");
    }
    assert!(!text.contains("Refused:") && !text.contains("(1)"), "{text}");
    let twice = ["plan", "--file", file.as_str(), "--compare", "aws,aws", "-o", "json"];
    assert_eq!(sandbox.run(&twice).expect(0).json()["providers"].as_array().unwrap().len(), 1);
    // An environment of this machine needs nothing to be compared.
    let local = sandbox.run(&["plan", "--env", "staging", "--compare", "aws,gcp,azure"]).expect(0).out;
    assert!(!local.contains("Refused:") && local.contains("database.hosting"), "{local}");
}

#[test]
fn provider_that_refuses_a_setting_is_listed_with_the_reason() {
    let sandbox = Sandbox::new("compared");
    let Some(file) = of_aws(&sandbox, 2) else { return };
    let compare = ["plan", "--file", file.as_str(), "--compare"];
    let said = sandbox.run(&[&compare[..], &["azure,aws,gcp"]].concat()).expect(0);
    let reason = "azure: main/database";
    assert!(said.out.contains(reason) && said.out.contains("Azure keeps one standby"), "{}", said.out);
    let document = sandbox.run(&[&compare[..], &["azure,aws,gcp", "-o", "json"]].concat()).expect(0).json();
    let offers = document["providers"].as_array().unwrap();
    let last = offers.last().unwrap();
    assert!(last["provider"] == "azure" && last["cost"].is_null(), "{document:#}");
    assert_eq!(last["refused"].as_array().unwrap().len(), 1, "{document:#}");
    assert!(offers[..2].iter().all(|offer| offer["cost"]["known"].as_f64() > Some(0.0)), "{document:#}");
    // Without another offer there is nothing to compare.
    sandbox.run(&[&compare[..], &["azure"]].concat()).expect(1);
}

#[test]
fn policy_of_a_provider_without_policies_is_refused() {
    let sandbox = Sandbox::new("policy");
    let none = plan(&sandbox, &["--policy"]).expect(2);
    assert!(
        none.err.contains("have no policies") && none.err.contains("plan --env development -o json"),
        "{}",
        none.err
    );
    let none = plan(&sandbox, &["--policy", "--boundary"]).expect(2);
    assert!(
        none.err.contains("no role of this plan takes a permissions boundary")
            && none.err.contains("only sites on AWS"),
        "{}",
        none.err
    );
    plan(&sandbox, &["--boundary"]).expect(2);
}

#[test]
fn provider_is_detected_and_the_reason_is_shown() {
    let mut sandbox = Sandbox::new("detected");
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let text = "extends: base\nenvironment: mine\nphase: staging\nsites: [{ name: here, provider: auto }]\n";
    std::fs::write(folder.join("mine.yaml"), text).unwrap();
    let plan = sandbox.run(&["plan", "--env", "mine"]).expect(0);
    assert!(plan.err.contains("`onprem` is detected: no other provider was detected"), "{}", plan.err);

    let kube = sandbox.folder().join("home/.kube");
    std::fs::create_dir_all(&kube).unwrap();
    let config = "current-context: lab\ncontexts: [{ name: lab, context: { cluster: c, user: u } }]\n\
                  clusters: [{ name: c, cluster: { server: \"https://127.0.0.1:1\" } }]\nusers: [{ name: u, user: {} }]\n";
    std::fs::write(kube.join("config"), config).unwrap();
    let document = sandbox.run(&["providers", "-o", "json"]).expect(0).json();
    assert_eq!(document["detected"]["provider"], "kubernetes", "{document:#}");
    let shown = sandbox.run(&["env", "show", "mine", "--explain"]).expect(0).out;
    assert!(shown.contains("detected (~/.kube/config has the current context `lab`)"), "{shown}");

    // What decides nothing is reported.
    std::fs::write(folder.join("mine.yaml"), text.replace("auto", "auto, runtime: process")).unwrap();
    sandbox.variables.push(("AZURE_CLIENT_ID", "hunter2".to_owned()));
    let shown = sandbox.run(&["env", "show", "mine", "--explain"]).expect(0).out;
    let reason = "but `kubernetes` does not run this site; AZURE_CLIENT_ID is set, but `azure` ";
    assert!(shown.contains(reason) && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn plan_file_of_another_environment_is_refused_before_any_change() {
    let sandbox = Sandbox::new("edited");
    let file = sandbox.folder().join("a.plan");
    plan(&sandbox, &["--out", file.as_str()]).expect(0);
    let good = std::fs::read_to_string(&file).unwrap();
    let check = |text: &str, args: &[&str], exit: i32, says: &str| {
        std::fs::write(&file, text).unwrap();
        let said = sandbox.run(&[&["apply", file.as_str()][..], args].concat()).expect(exit);
        assert!(said.err.contains(says), "{}", said.err);
    };
    check(&good.replace("here/gateway", "here/getaway"), &[], 4, "changed after it was saved");
    check(&good.replacen("\"textnlp_plan\":1", "\"textnlp_plan\":7", 1), &[], 4, "supports formats up to 1");
    check(&good[..good.len() / 2], &[], 4, "not a saved plan");
    check("{}", &[], 4, "`textnlp_plan` is missing");
    check(&good, &["--env", "staging"], 4, "is a plan for `development`");
    check(&good, &["--set", "gates.users=3"], 2, "uses the options of the saved plan");
    std::fs::write(&file, &good).unwrap();
    let exposed = || sandbox.run(&["apply", file.as_str()]).expect(4);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let said = exposed();
    assert!(said.err.contains("other users can write to") && said.err.contains("cp "), "{}", said.err);
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file, Some(1), None).unwrap();
        assert!(exposed().err.contains("belongs to"));
    }
    let said = sandbox.run(&["apply", "nowhere.plan"]).expect(2);
    assert!(said.err.contains("nowhere.plan"), "{}", said.err);
    let said = plan(&sandbox, &["--delete-data", "development"]).expect(2);
    assert!(said.err.contains("--down"), "{}", said.err);
    assert_eq!(
        sandbox.run(&["status", "--env", "development", "-o", "json"]).json()["resources"],
        serde_json::json!([])
    );
}

/// A replica that is not wanted any more serves until the others have shown that they do without it.
#[test]
fn unwanted_replica_is_removed_only_through_the_gate() {
    let sandbox = Sandbox::new("gated");
    let file = sandbox.folder().join("gated.plan");
    let run = |verb: &str, replicas: &str, p95: &str, more: &[&str]| {
        let (replicas, p95) = (format!("scaling.min={replicas}"), format!("gates.p95_ms={p95}"));
        let sets = ["gates.users=2", "gates.hold=1s", &replicas, &p95].into_iter().flat_map(|set| ["--set", set]);
        sandbox.run(&[verb, "--env", "staging"].into_iter().chain(sets).chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let replicas = || {
        let status = sandbox.run(&["status", "--env", "staging", "-o", "json"]).json();
        let all = status["resources"].as_array().unwrap().clone();
        all.iter().filter(|one| one["resource"].as_str().is_some_and(|id| id.contains("/replica-"))).count()
    };
    run("up", "2", "60000", &["--yes", "--no-gate"]).expect(0);
    assert_eq!(replicas(), 2);
    let both = run("up", "1", "60000", &["--yes", "--gated", "--no-gate"]).expect(2);
    assert!(both.err.contains("--no-gate"), "{}", both.err);
    let shut = run("up", "1", "1", &["--yes", "--gated"]).expect(3);
    assert!(
        shut.err.contains("the previous version was not removed") && shut.err.contains("here/server/replica-1"),
        "{}",
        shut.err
    );
    assert!(shut.out.contains("The staging gate is shut"), "every check is shown: {}", shut.out);
    assert_eq!(replicas(), 2, "nothing went");
    let why = sandbox.run(&["state", "history", "--env", "staging"]).expect(0).out;
    assert!(why.contains("chose shut for here/gate"), "{why}");

    let planned = run("plan", "1", "60000", &["--gated", "--out", file.as_str()]).expect(0);
    assert!(planned.out.contains("◇ here/gate"), "{}", planned.out);
    sandbox.run(&["apply", file.as_str()]).expect(0);
    assert_eq!(replicas(), 1);
    sandbox.run(&["down", "--env", "staging", "--yes", "--delete-data", "staging"]).expect(0);
}

/// Checks of checkov that exported manifests do not pass, each with the reason.
const UNCHECKED: &[(&str, &str)] = &[
    ("CKV_K8S_35", "the job of the first key reads its id and its digest, which are no secrets, as variables"),
    ("CKV_K8S_40", "backups run as the user of CloudNativePG's image, 26, whom its files belong to"),
];

#[test]
fn exported_manifests_pass_checkov() {
    let sandbox = Sandbox::new("checkov");
    let image = format!("sites[0].cluster.image=registry.example.com/textnlp:1@sha256:{}", "a".repeat(64));
    let manifests = sandbox.folder().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let file = manifests.join("all.yaml");
    let of = ["export", "yaml", "--env", "pilot", "--provider", "kubernetes", "--out", file.as_str()];
    let sets = ["--set", "traffic.domain=text.example.com", "--set", image.as_str()];
    sandbox.run(&[&of[..], &sets].concat()).expect(0);
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let failures = textnlp_tests::checkov::failures(tests, manifests.as_std_path());
    let failed: Vec<&str> = failures.keys().map(String::as_str).collect();
    assert_eq!(failed, UNCHECKED.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "{failures:#?}");
}

#[test]
fn address_of_a_repository_with_a_password_is_refused_and_not_shown() {
    let sandbox = Sandbox::new("gitops");
    let out = sandbox.folder().join("out");
    let repository = "https://ada:hunter2@git.example.com/clusters.git";
    for more in [["-o", "text"], ["-o", "json"]] {
        let of = ["export", "flux", "--env", "pilot", "--repo", repository, "--path", "../a", "--out", out.as_str()];
        let said = sandbox.run(&[&of[..], &more].concat()).expect(2);
        let all = format!("{}{}", said.out, said.err);
        assert!(all.contains("--repo") && all.contains("--path") && all.contains("credentials"), "{all}");
        assert!(!all.contains("hunter2"), "{all}");
    }
    assert!(!out.exists(), "nothing was written");
}

/// A folder that came with a repository may hold links and a list of what an earlier export wrote.
#[test]
fn links_in_the_folder_of_an_export_are_refused() {
    let sandbox = Sandbox::new("links");
    let mine = sandbox.folder().join("mine");
    let out = sandbox.folder().join("out");
    std::fs::create_dir(&mine).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(mine.join("id_ed25519"), "a key").unwrap();
    std::os::unix::fs::symlink(&mine, out.join("base")).unwrap();
    std::fs::write(out.join(".textnlp-export"), "kustomize\nbase/id_ed25519\n").unwrap();
    let image = format!("sites[0].cluster.image=registry.example.com/textnlp:1@sha256:{}", "a".repeat(64));
    let of = ["export", "kustomize", "--env", "pilot", "--provider", "kubernetes", "--out", out.as_str()];
    let sets = ["--set", "traffic.domain=text.example.com", "--set", image.as_str()];
    let said = sandbox.run(&[&of[..], &sets].concat()).expect(4);
    assert!(said.err.contains("out/base is a symbolic link"), "{}", said.err);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2, "nothing was written");
    assert_eq!(std::fs::read_to_string(mine.join("id_ed25519")).unwrap(), "a key");
}

/// Each line of the guide for one machine, in its order, but for the build of the program and the models of a network.
#[test]
fn the_guide_for_one_machine_is_followed() {
    const GUIDE: &str = "docs/guide/localhost.md";
    let sandbox = Sandbox::new("localhost");
    let is_left_out = |line: &str| {
        let is_build = line.starts_with("cargo ") || line.starts_with("alias ");
        is_build || line.contains("smollm2") || line.trim().is_empty()
    };
    let mut followed = 0;
    for section in ["Install", "Start", "Models", "Requests", "Change something", "Logs and metrics", "Clean up"] {
        let blocks = textnlp_tests::guide::blocks(GUIDE, section).into_iter().filter(|(language, _)| language == "sh");
        let lines: String = blocks.map(|(_, text)| text).collect();
        for line in lines.lines().filter(|line| !is_left_out(line)) {
            // The ports of the sandbox, and an end where the operator interrupts.
            let line = line.replace("curl -s ", "curl -sf ").replace(":8080", &format!(":{}", sandbox.port));
            let line = line.replace(":9089", &format!(":{}", sandbox.metrics_port));
            let (line, exit) = match line.contains("--follow") {
                // Interrupted: the status of `timeout`.
                true => (format!("timeout --signal=INT --kill-after=20 3 {line}"), 124),
                false => (line, 0),
            };
            let said = sandbox.shell(&line);
            assert!(said.exit == exit, "`{line}`: {}\n{}{}", said.exit, said.out, said.err);
            followed += 1;
        }
    }
    assert!(followed > 20, "{followed} lines");
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
}
