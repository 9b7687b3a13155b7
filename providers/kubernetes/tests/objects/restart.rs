//! The API server goes away while something is waited for, and comes back.

use crate::world::{World, deployment, operation};
use serde_json::json;
use textnlp_provider::{Progress, Provider, Scope, Verb};

#[tokio::test(flavor = "multi_thread")]
async fn wait_survives_an_api_server_restart() {
    let Some((world, _in_use)) = World::exclusive("restart").await else { return };
    world.cluster.kubelet();
    let mut spec = deployment(1, &["sh", "-c", "exec sleep 100000"]);
    // Not before the file is there, which is made while the API server is away.
    let gate = world.cluster.folder().join("gate");
    spec["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["test", "-e", gate] } });
    let wanted = world.want("deployment", "web", spec);
    let op = operation(&world, 1, Verb::Create, &wanted, None);
    let Progress::Pending { mut handle, .. } = world.provider.begin(&op).await.unwrap() else {
        panic!("it is ready too soon")
    };
    world.cluster.stop_api_server();
    let error = world.provider.advance(&op, &handle).await.unwrap_err();
    assert!(error.kind.may_pass(), "{error}");
    let environment = "staging".parse().unwrap();
    let scope =
        Scope { lineage: world.lineage, environment: &environment, site: &wanted.site, wanted: &[], recorded: &[] };
    assert!(world.provider.observe(&scope).await.unwrap_err().kind.may_pass());
    let problems = world.provider.preflight(std::slice::from_ref(&wanted)).await.unwrap();
    assert!(matches!(&problems[..], [one] if one.place == "cluster"), "{problems:?}");
    std::fs::write(&gate, "").unwrap();
    world.cluster.start_api_server().unwrap();
    for _ in 0..600 {
        match world.provider.advance(&op, &handle).await {
            Ok(Progress::Done(_)) => return,
            Ok(Progress::Pending { handle: next, .. }) => handle = next,
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert!(error.kind.may_pass(), "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("it does not become ready");
}
