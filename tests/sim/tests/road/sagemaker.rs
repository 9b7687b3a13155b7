//! A site that is an endpoint of SageMaker, as an operator meets it: the real program, and a real server of it in each container.

use std::sync::Arc;

use textnlp_sim::aws::sagemaker::{Container, SageMaker};
use textnlp_sim::{Options, Scope, Simulator};
use textnlp_tests::{Said, Sandbox, counts, said};

use super::{ACCOUNT, REGION, signed_in};
use crate::containers::Containers;
use crate::follower::Follower;

const FILE: &str = "endpoint.yaml";
/// The deployment in the guide.
const LINEAGE: &str = "5f0c2a70-6c1e-4d0a-9b5e-2f5f0d3a7c11";

#[test]
fn an_endpoint_of_sagemaker_is_made_answers_changes_and_is_removed_with_everything() {
    let sandbox = Sandbox::new("sagemaker");
    let simulator = Simulator::start(Options::zero_latency());
    let section = ("docs/guide/aws.md", "SageMaker");
    let follower = Follower::of(&sandbox, section, FILE, &[], signed_in(&simulator.url(), REGION));
    let follower = follower.and("docs/guide/aws.md", "Lost state");
    let containers = Containers::new(&sandbox, "TEXTNLP_SAGEMAKER", "/ping");
    let known = Arc::downgrade(&containers);
    let change = |change: &dyn Fn(&mut SageMaker)| {
        change(simulator.world().state::<SageMaker>(&Scope::new(ACCOUNT, REGION)));
    };
    let answers: textnlp_sim::aws::sagemaker::Containers = Box::new(move |container: &Container, body: &[u8]| {
        known.upgrade().unwrap().answer(&container.environment, "POST", "/invocations", body)
    });
    simulator.world().state::<SageMaker>(&Scope::new(ACCOUNT, REGION)).containers = Some(answers);
    let run = |args: &[&str]| -> Said {
        let mut command = sandbox.command(&[args, &["--file", FILE]].concat());
        said(command.envs(signed_in(&simulator.url(), REGION)).output().unwrap())
    };
    let up = ["up", "--yes", "-o", "json"];

    let plan = run(&["plan", "-o", "json"]).expect(0).json();
    assert!(plan["cost"].to_string().contains("SageMaker"), "{:#}", plan["cost"]);
    let policy = run(&["plan", "--policy"]).expect(0).out;
    for action in ["sagemaker:CreateEndpoint", "sagemaker:InvokeEndpoint", "iam:PassRole"] {
        assert!(policy.contains(action), "{action}: {policy}");
    }
    // Later phases need keys and metrics, which is said before anything changes.
    let staging = ["phase=staging", "tls.mode=local-ca", "server.security.api_keys_enabled=true"];
    let sets: Vec<&str> = staging.iter().flat_map(|set| ["--set", *set]).collect();
    let gated = run(&[&up[..2], &sets[..]].concat());
    assert!(gated.exit != 0 && gated.err.contains("only the gate of development can be"), "{gated:?}");
    let is_change = |operation: &str| operation.starts_with("Create") || operation.starts_with("Put");
    assert!(!simulator.requests().iter().any(|one| is_change(&one.operation)), "nothing was changed");

    let made = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy up"))).expect(0).json();
    assert!(!made["text"].as_str().unwrap().trim().is_empty(), "{made:#}");
    assert_eq!(made["gate"]["state"], "open", "{made:#}");
    let names: Vec<&str> =
        made["gate"]["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert!(names.starts_with(&["health", "generation"]), "{names:?}");
    let address = made["address"].as_str().unwrap();
    assert!(address.ends_with("/endpoints/textnlp-endpoint-main/invocations"), "{address}");
    let again = run(&up).expect(0).json();
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let status = run(&["status", "-o", "json"]).expect(0).json();
    assert_eq!(
        (status["ready"].as_bool(), status["drift"].as_array().map(Vec::len)),
        (Some(true), Some(0)),
        "{status:#}"
    );
    // Another folder has no records: nothing claims there that nothing is deployed.
    let lineage = status["lineage"].as_str().unwrap();
    for verb in [&["status"][..], &["down", "--yes"]] {
        let refused = run(&[verb, &["--state-dir", "other"]].concat()).expect(4);
        assert!(refused.err.contains(&format!("state import --lineage {lineage}")), "{verb:?}: {refused:?}");
    }
    // The state is lost while the endpoint runs: its objects are recorded again, and tags of others stay.
    let repository = format!("arn:aws:ecr:{REGION}:{ACCOUNT}:repository/textnlp");
    let others = ("cost-center".to_owned(), "7".to_owned());
    {
        let mut world = simulator.world();
        let now = world.now();
        world.tags.set(&repository, [others.clone()], now);
    }
    std::fs::remove_dir_all(sandbox.state("endpoint")).unwrap();
    let lost = run(&["status"]).expect(4);
    assert!(lost.err.contains(&format!("state import --lineage {lineage}")), "{lost:?}");
    let import = follower.printed("textnlp-deploy state import").replace(LINEAGE, lineage);
    let imported = follower.run(&format!("{import} --yes -o json")).expect(0).json();
    let proposals = imported["proposals"].as_array().unwrap();
    assert!(proposals.len() > 8 && proposals.iter().all(|one| one["wanted"] == true), "{imported:#}");
    assert_eq!(imported["imported"], proposals.len(), "{imported:#}");
    let plan = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy plan"))).expect(0).json();
    assert_eq!(counts(&plan)[..4], [0, 0, 0, 0], "an import leaves nothing to do: {plan:#}");
    assert_eq!(counts(&run(&up).expect(0).json())[..4], [0, 0, 0, 0]);
    assert!(simulator.world().tags.of(&repository).into_iter().any(|tag| tag == others));

    let text = follower.run(follower.printed("textnlp-deploy generate")).expect(0);
    assert!(!text.out.trim().is_empty(), "{text:?}");
    follower.run(follower.printed("textnlp-deploy gate")).expect(0);
    assert_eq!(run(&["health", "-o", "json"]).expect(0).json()["health"]["status"], "ok");
    for (words, reason) in [
        ("key list", "which has no API keys and tenants"),
        ("load", "which has no address for load tests"),
        ("tokenize a", "it completes texts and chats, and has no `/v1/tokenize`"),
        ("backup create", "there is nothing to back up"),
        ("logs", "/aws/sagemaker/Endpoints/textnlp-endpoint-main"),
    ] {
        let refused = run(&words.split(' ').collect::<Vec<_>>());
        assert!(refused.exit != 0 && refused.err.contains(reason), "{words}: {refused:?}");
    }

    // A release that raises an alarm is rolled back, and one that does not replaces the old one.
    let context = |tokens: &str| run(&[&up[..], &["--set", tokens]].concat());
    change(&|known| known.alarmed = true);
    let failed = context("models.0.context=256");
    assert!(failed.exit != 0 && format!("{failed:?}").contains("returned to the old instances"), "{failed:?}");
    assert!(!run(&["generate", "Once"]).expect(0).out.trim().is_empty(), "the old release answers");
    change(&|known| known.alarmed = false);
    assert_eq!(context("models.0.context=256").expect(0).json()["gate"]["state"], "open");
    assert_eq!(containers.count(), 2, "one server for each release that was invoked");

    follower.run(follower.printed("textnlp-deploy down")).expect(0);
    let world = simulator.world();
    let all = world.tags.listed("arn:", world.now());
    // KMS keeps a deleted key for thirty days.
    let ours = all.filter(|(arn, tags)| tags.contains_key("textnlp-lineage") && !arn.contains(":key/"));
    assert_eq!(ours.map(|(arn, _)| arn.to_owned()).collect::<Vec<_>>(), Vec::<String>::new());
}
