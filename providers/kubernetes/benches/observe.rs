//! What a look at many objects costs: 100 namespaces with 60 objects each on a real control plane, beside kubectl, which lists the same kinds by
//! the same label in the same run.
//!
//! `cargo bench --locked --workspace --bench observe -- [--namespaces 100] [--times 5]`
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, missing_docs, dead_code)]

#[path = "../tests/cut/mod.rs"]
mod cut;
#[path = "../tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use cut::Cut;
use futures::StreamExt;
use serde_json::{Value, json};
use textnlp_kubernetes::Kubernetes;
use textnlp_provider::{Observed, Provider, Recorded, Scope, SiteName, Wanted};
use world::{World, want};

/// What is in each namespace: how many of a kind, and what one of them says.
fn kinds() -> [(&'static str, u32, Value); 5] {
    let pod = json!({ "metadata": { "labels": { "app": "none" } }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    let none = json!({ "matchLabels": { "app": "none" } });
    [
        ("config-map", 25, json!({ "data": { "a": "x".repeat(500) } })),
        ("service-account", 10, json!({})),
        ("service", 10, json!({ "spec": { "selector": { "app": "none" }, "ports": [{ "port": 80 }] } })),
        ("network-policy", 10, json!({ "spec": { "podSelector": none, "policyTypes": ["Ingress"] } })),
        ("deployment", 5, json!({ "spec": { "replicas": 0, "selector": none, "template": pod } })),
    ]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str, otherwise: u32| {
        let at = arguments.iter().position(|one| one == flag);
        at.and_then(|at| arguments.get(at + 1)).map_or(otherwise, |text| text.parse().unwrap())
    };
    let (namespaces, times) = (value("--namespaces", 100), value("--times", 5));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(namespaces, times));
}

async fn run(namespaces: u32, times: u32) {
    let Some(world) = World::new("many") else { return };
    let mut wanted = Vec::new();
    for number in 0..namespaces {
        let namespace = world.cluster.namespace("many");
        for (kind, count, rest) in kinds() {
            for n in 0..count {
                wanted.push(want(kind, &format!("{kind}-{number}-{n}"), Some(&namespace), rest.clone()));
            }
        }
    }
    let begun = Instant::now();
    let recorded = make(&world, &wanted).await;
    println!("made {} objects in {:.0} s", recorded.len(), begun.elapsed().as_secs_f64());

    let site: SiteName = "here".parse().unwrap();
    let (mut looks, mut calls) = (Vec::new(), 0);
    for _ in 0..times {
        let line = Cut::answering(Vec::new());
        let fresh = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
        let begun = Instant::now();
        let environment = "staging".parse().unwrap();
        let scope = Scope {
            environment: &environment,
            site: &site,
            lineage: world.lineage,
            wanted: &wanted,
            recorded: &recorded,
        };
        let seen = fresh.observe(&scope).await.unwrap();
        looks.push(begun.elapsed());
        calls = line.calls();
        let there = seen.iter().filter(|(_, observed)| matches!(observed, Observed::Present(_))).count();
        assert_eq!(there, wanted.len(), "every object is seen");
    }
    let mut peers = Vec::new();
    let label = format!("textnlp-lineage={}", world.lineage);
    let listed = "configmaps,serviceaccounts,services,networkpolicies,deployments";
    for _ in 0..times {
        let begun = Instant::now();
        let out = world.cluster.kubectl(&["get", listed, "-A", "-l", &label, "-o", "json"]);
        peers.push(begun.elapsed());
        let found: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(found["items"].as_array().unwrap().len(), wanted.len());
    }
    let (ours, theirs) = (median(looks), median(peers));
    println!(
        "{} objects in {namespaces} namespaces: {:.2} s and {calls} requests; kubectl get of the same {:.2} s; ratio {:.2}",
        wanted.len(),
        ours.as_secs_f64(),
        theirs.as_secs_f64(),
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

async fn make(world: &World, wanted: &[Wanted]) -> Vec<Recorded> {
    let bench = world.bench();
    let making = wanted.iter().map(|one| {
        let bench = &bench;
        async move { bench.make(one).await.unwrap() }
    });
    futures::stream::iter(making).buffer_unordered(16).collect().await
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
