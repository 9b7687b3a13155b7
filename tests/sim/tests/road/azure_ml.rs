//! A site that is an online endpoint of Azure Machine Learning, as an operator meets it: the real program, and a real server of it in
//! each container.

use std::sync::Arc;

use textnlp_sim::azure::{AzureCloud, Options};
use textnlp_sim::gcp::run::Container;
use textnlp_tests::{Said, Sandbox, counts, said};

use crate::containers::Containers;
use crate::follower::Follower;

const FILE: &str = "endpoint.yaml";
/// The subscription of the guide.
const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";

/// The deployments of the endpoint.
fn deployments(cloud: &AzureCloud) -> usize {
    cloud.world().ids().iter().filter(|id| id.contains("/deployments/")).count()
}

#[test]
fn an_endpoint_of_azure_ml_is_made_opens_its_gate_changes_and_is_removed_with_everything() {
    let sandbox = Sandbox::new("azure-ml");
    let cloud = AzureCloud::start(Options { subscription: SUBSCRIPTION.to_owned(), ..Options::zero_latency() });
    let section = ("docs/guide/azure.md", "Azure Machine Learning");
    let follower = Follower::of(&sandbox, section, FILE, &[], cloud.variables());
    let containers = Containers::new(&sandbox, "TEXTNLP_AZURE_ML", "/ping");
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
    assert!(plan["cost"].to_string().contains("Azure Machine Learning"), "{:#}", plan["cost"]);
    let policy = run(&["plan", "--policy"]).expect(0).out;
    for action in ["deployments/write", "score/action"] {
        let action = format!("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/{action}");
        assert!(policy.contains(&action), "{action}: {policy}");
    }
    // Later phases need keys and metrics, which is said before anything changes.
    let staging = ["phase=staging", "tls.mode=local-ca", "server.security.api_keys_enabled=true"];
    let sets: Vec<&str> = staging.iter().flat_map(|set| ["--set", *set]).collect();
    let gated = run(&[&up[..2], &sets[..]].concat());
    assert!(gated.exit != 0 && gated.err.contains("only the gate of development can be"), "{gated:?}");
    assert_eq!(cloud.world().ids(), Vec::<String>::new(), "nothing was changed");

    let made = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy up"))).expect(0).json();
    assert!(!made["text"].as_str().unwrap().trim().is_empty(), "{made:#}");
    assert_eq!(made["gate"]["state"], "open", "{made:#}");
    let address = made["address"].as_str().unwrap();
    assert!(address.contains("/textnlp-endpo") && address.ends_with("/invocations"), "{address}");
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
    let refused = run(&["generate", "Once", "--model", "nothing"]);
    assert!(refused.exit != 0 && refused.err.contains("(status 404)"), "the status of the server: {refused:?}");
    follower.run(follower.printed("textnlp-deploy gate")).expect(0);
    assert_eq!(run(&["health", "-o", "json"]).expect(0).json()["health"]["status"], "ok");
    for (words, reason) in [
        ("key list", "which has no API keys and tenants"),
        ("load", "which has no address for load tests"),
        ("tokenize a", "it completes texts and chats, and has no `/v1/tokenize`"),
        ("backup create", "there is nothing to back up"),
        ("logs", "/getLogs?api-version="),
    ] {
        let refused = run(&words.split(' ').collect::<Vec<_>>());
        assert!(refused.exit != 0 && refused.err.contains(reason), "{words}: {refused:?}");
    }

    // A deployment that does not become ready leaves the requests to the one before it, and the next `up` makes another one.
    let context = || run(&[&up[..], &["--set", "models.0.context=256"]].concat());
    cloud.world().mute = true;
    let failed = context();
    let said = format!("{failed:?}");
    assert!(failed.exit != 0 && said.contains("its probes are not answered"), "{said}");
    let hint = failed.json()["error"]["hint"].to_string();
    assert!(hint.contains("logs --file endpoint.yaml` names the command"), "{hint}");
    assert!(!run(&["generate", "Once"]).expect(0).out.trim().is_empty(), "the old deployment answers");
    cloud.world().mute = false;
    assert_eq!(context().expect(0).json()["gate"]["state"], "open");
    assert_eq!(containers.count(), 2, "one server for each release that was called");
    assert_eq!(deployments(&cloud), 1, "the old deployment and the failed one are deleted");

    follower.run(follower.printed("textnlp-deploy down")).expect(0);
    assert_eq!(cloud.world().ids(), Vec::<String>::new());
    assert!(cloud.world().deleted_workspaces.is_empty(), "the workspace is purged");
    assert_eq!(cloud.violations(), Vec::<String>::new());
}
