//! A site that is a service of Cloud Run, as an operator meets it: the real program, and a real server of it in each container.

use std::sync::Arc;

use textnlp_sim::gcp::run::Container;
use textnlp_sim::gcp::{GoogleCloud, Options};
use textnlp_tests::{Said, Sandbox, counts, said};

use crate::containers::Containers;
use crate::follower::Follower;
use crate::gcp::left;

const FILE: &str = "service.yaml";
const PROJECT: &str = "my-project";

#[test]
fn a_service_of_cloud_run_is_made_opens_its_gate_changes_and_is_removed_with_everything() {
    let sandbox = Sandbox::new("cloud-run");
    let cloud = GoogleCloud::start(Options { project: PROJECT.to_owned(), ..Options::zero_latency() });
    let section = ("docs/guide/gcp.md", "Cloud Run");
    let follower = Follower::of(&sandbox, section, FILE, &[], cloud.variables());
    let containers = Containers::new(&sandbox, "TEXTNLP_CLOUD_RUN", "/ready");
    let known = Arc::downgrade(&containers);
    cloud.world().containers = Some(Arc::new(move |container: &Container, method: &str, path: &str, body: &[u8]| {
        known.upgrade().unwrap().answer(&container.environment, method, path, body)
    }));
    let run = |args: &[&str]| -> Said {
        let mut command = sandbox.command(&[args, &["--file", FILE]].concat());
        said(command.envs(cloud.variables()).output().unwrap())
    };
    let up = ["up", "--yes", "--output", "json"];

    let plan = run(&["plan", "-o", "json"]).expect(0).json();
    assert!(plan["cost"].to_string().contains("Cloud Run"), "{:#}", plan["cost"]);
    let policy = run(&["plan", "--policy"]).expect(0).out;
    for permission in ["run.services.create", "iam.serviceAccounts.getOpenIdToken", "iam.serviceAccounts.actAs"] {
        assert!(policy.contains(permission), "{permission}: {policy}");
    }
    // Later phases need keys and metrics, which is said before anything changes.
    let staging = ["phase=staging", "tls.mode=local-ca", "server.security.api_keys_enabled=true"];
    let sets: Vec<&str> = staging.iter().flat_map(|set| ["--set", *set]).collect();
    let gated = run(&[&up[..2], &sets[..]].concat());
    assert!(gated.exit != 0 && gated.err.contains("only the gate of development can be"), "{gated:?}");
    assert!(!cloud.world().keys().iter().any(|key| key.starts_with("run/")), "nothing was changed");

    // What the first command of the guide does.
    let role = "roles/iam.serviceAccountOpenIdTokenCreator";
    cloud.world().grant_in_project(PROJECT, role, "user:operator@example.com");
    let made = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy up"))).expect(0).json();
    assert!(!made["text"].as_str().unwrap().trim().is_empty(), "{made:#}");
    assert_eq!(made["gate"]["state"], "open", "{made:#}");
    let again = run(&up).expect(0).json();
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let status = run(&["status", "-o", "json"]).expect(0).json();
    assert_eq!(
        (status["ready"].as_bool(), status["drift"].as_array().map(Vec::len)),
        (Some(true), Some(0)),
        "{status:#}"
    );
    let text = follower.run(follower.printed("textnlp-deploy generate")).expect(0);
    assert!(!text.out.trim().is_empty(), "{text:?}");
    follower.run(follower.printed("textnlp-deploy gate")).expect(0);
    assert_eq!(run(&["health", "-o", "json"]).expect(0).json()["health"]["status"], "ok");
    run(&["tokenize", "a"]).expect(0);
    for (words, reason) in [
        ("key list", "which has no API keys and tenants"),
        ("load", "which has no address for load tests"),
        ("backup create", "there is nothing to back up"),
        ("logs", "gcloud run services logs read textnlp-service-main"),
    ] {
        let refused = run(&words.split(' ').collect::<Vec<_>>());
        assert!(refused.exit != 0 && refused.err.contains(reason), "{words}: {refused:?}");
    }

    // A revision that does not listen leaves the requests to the one before it, and one that does replaces it.
    let context = || run(&[&up[..], &["--set", "models.0.context=256"]].concat());
    cloud.world().mute = true;
    let failed = context();
    assert!(failed.exit != 0 && format!("{failed:?}").contains("failed to start and listen"), "{failed:?}");
    assert!(!run(&["generate", "Once"]).expect(0).out.trim().is_empty(), "the old revision answers");
    cloud.world().mute = false;
    assert_eq!(context().expect(0).json()["gate"]["state"], "open");
    assert_eq!(containers.count(), 2, "one server for each revision that was called");

    follower.run(follower.printed("textnlp-deploy down")).expect(0);
    assert_eq!(left(&cloud), Vec::<String>::new());
    assert_eq!(cloud.violations(), Vec::<String>::new());
}
