//! Clients who come by a Gateway of the operator's, of whom a share tries a new release first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use textnlp_tests::{counts, eventually, promptly};

use crate::operator::{Operator, pinned};
use crate::rollout::{QUESTION, image};
use crate::{Answer, asked_while, heard_while};

const SHARED: [&str; 5] = [
    "rollout.strategy=canary",
    "rollout.bake=4s",
    "rollout.deadline=15m",
    "rollout.first_share=10",
    "server.security.rate_limit=1000000/hour",
];
/// So many questions are asked while the share is measured.
const ASKED: usize = 200;

impl Operator {
    /// Runs `up` where the authority of the Gateway's certificate is one that this machine trusts.
    fn up_by_gateway(&self, authority: &str, more: &[&str]) -> Value {
        let mut up = self.command(&["up", "--yes", "--no-gate", "-o", "json"], more);
        textnlp_tests::said(up.env("SSL_CERT_FILE", authority).output().unwrap()).expect(0).json()
    }

    fn weights(&self) -> Vec<Value> {
        let route = self.get("httproute", "textnlp-api");
        let backends = route.pointer("/spec/rules/0/backendRefs").and_then(Value::as_array).cloned();
        backends.unwrap_or_default().iter().map(|backend| backend["weight"].clone()).collect()
    }

    /// Those that the cluster would send clients to.
    fn ready_pods_of(&self, image: &str) -> usize {
        let is_ready = |pod: &&Value| {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        self.list_of(image).iter().filter(is_ready).count()
    }

    /// As it was applied: all clients come to one service, and that asks for all pods.
    fn shares_nothing(&self) {
        assert_eq!(self.weights(), [100, 0]);
        for service in ["textnlp-api", "textnlp-api-new"] {
            assert_eq!(self.get("service", service)["spec"]["selector"], json!({ "app": "textnlp-api" }), "{service}");
        }
    }
}

fn by(answers: &[Answer], word: &str) -> usize {
    answers.iter().filter(|answer| answer.said.contains(&format!("\"{word}\""))).count()
}

fn failed(answers: &[Answer]) -> Vec<&str> {
    answers.iter().filter(|answer| !answer.is_well()).map(|answer| answer.said.as_str()).collect()
}

#[test]
fn gateway_canary_gets_its_traffic_weight_for_any_number_of_pods() {
    let Some(mut operator) = Operator::new("gateway") else { return };
    let cluster = operator.cluster;
    let infra = cluster.namespace("infra");
    let namespace = operator.namespace.clone();
    let label = ("kubernetes.io/metadata.name", namespace.as_str());
    let Some(port) = cluster.gateway(&infra, "localhost", label) else { return };
    let authority = operator.sandbox.folder().join("authority.pem");
    std::fs::write(&authority, cluster.ca_pem()).unwrap();
    let authority = authority.as_str();
    operator.sets.retain(|set| !set.contains("cluster.address"));
    operator.sets.extend([
        "traffic.domain=localhost".to_owned(),
        "sites[0].cluster.ingress.kind=gateway".to_owned(),
        format!("sites[0].cluster.ingress.gateway={infra}/web"),
        format!("sites[0].cluster.ingress.port={port}"),
        // What is fast here is another machine's.
        "gates.p95_ms=20000".to_owned(),
    ]);
    let with = |more: &str| [SHARED.to_vec(), vec![more]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let refused = |more: &str, says: &str| {
        let more = with(more);
        let said = operator.run(&["up", "--yes", "--no-gate"], &more.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.exit != 0 && said.err.contains(says), "{says}: {said:?}");
        assert!(!operator.get("httproute", "textnlp-api")["metadata"].is_object(), "nothing was begun");
    };
    refused(&format!("sites[0].cluster.ingress.gateway={infra}/other"), "choose an existing one");
    refused("sites[0].cluster.ingress.port=443", &format!("`https` listens on port {port}"));
    refused("traffic.domain=text.example.com", "`https` takes \"localhost\" alone");
    refused("cluster.namespace=elsewhere", "allows routes of namespaces with other labels");

    let up = operator.up_by_gateway(authority, &SHARED);
    assert_eq!(up["text"].as_str().map(str::is_empty), Some(false), "a prompt was answered: {up:#}");
    assert_eq!(up["address"], format!("https://localhost:{port}"));
    let again = operator.up_by_gateway(authority, &SHARED);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    operator.shares_nothing();
    let came = json!({ "address": up["address"], "ca_file": authority });

    // One that is well. Held in the middle, it has a tenth of the clients, with one pod beside three.
    let of_well = image(&operator, "well", 200);
    let well = format!("sites[0].cluster.image={of_well}");
    let well = [&SHARED[..], &[well.as_str()]].concat();
    let mut rolls = None;
    let before = asked_while(&operator, &came, QUESTION, || {
        let mut up = operator.command(&["up", "--yes", "--no-gate"], &well);
        rolls = Some(up.env("SSL_CERT_FILE", authority).spawn().unwrap());
        let early = promptly("the first pod is made", || {
            let weights = operator.weights();
            // Of a pod that is ready, the rollout may have shared the clients before it says so.
            match operator.rollout()["stage"].as_str() {
                Some("preparing") => (operator.ready_pods_of(&of_well) == 0).then_some(Some(weights)),
                Some("baking") => Some(None),
                _ => None,
            }
        });
        let early = early.unwrap_or_else(|| {
            eprintln!("NOT TESTED: the first pod was ready before its weight was read");
            Vec::new()
        });
        assert!(early.is_empty() || early == [100, 0], "no client before it is ready: {early:?}");
        eventually("clients are shared", || (operator.rollout()["stage"] == "baking").then_some(()));
        operator.run(&["rollout", "pause"], &SHARED).expect(0);
        assert_eq!(operator.weights(), [90, 10]);
    });
    assert_eq!(failed(&before), [""; 0], "of {}", before.len());
    assert_eq!((operator.pods_of(&pinned("local/textnlp:1")), operator.pods_of(&pinned("local/textnlp:well"))), (3, 1));
    let told = operator.rollout();
    assert_eq!((&told["share"], &told["stage"]), (&Value::from(10), &Value::from("baking")), "{told:#}");
    assert!(operator.run(&["rollout", "status"], &SHARED).expect(0).out.contains("10 % of the clients"));
    let asked = AtomicUsize::new(0);
    let count = |_: &Answer| {
        asked.fetch_add(1, Ordering::Relaxed);
    };
    let answers = heard_while(&operator, &came, QUESTION, count, || {
        eventually("a share can be measured", || (asked.load(Ordering::Relaxed) >= ASKED).then_some(()));
    });
    let theirs = by(&answers, "well");
    eprintln!("well: {theirs} of {} requests came to the new release while it was held", answers.len());
    assert_eq!(failed(&answers), [""; 0], "of {}", answers.len());
    let share = theirs as f64 / answers.len() as f64;
    assert!((0.07..=0.13).contains(&share), "{share}");
    let after = asked_while(&operator, &came, QUESTION, || {
        operator.run(&["rollout", "resume"], &SHARED).expect(0);
        assert!(rolls.take().unwrap().wait().unwrap().success());
    });
    assert_eq!(failed(&after), [""; 0], "of {}", after.len());
    let told = operator.rollout();
    eprintln!("well: {} requests while it was promoted; {}", after.len(), told["says"]);
    assert_eq!((&told["stage"], &told["share"]), (&Value::from("promoted"), &Value::Null), "{told:#}");
    operator.shares_nothing();
    let again = operator.up_by_gateway(authority, &well);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    let template = operator.template();

    // One whose answers fail, and an operator who goes away.
    let broken = image(&operator, "broken", 500);
    let set = format!("sites[0].cluster.image={broken}");
    let bad = [&SHARED[..], &[set.as_str()]].concat();
    let began = Instant::now();
    let answers = asked_while(&operator, &came, QUESTION, || {
        let mut gone = operator.command(&["up", "--yes", "--no-gate"], &bad).spawn().unwrap();
        eventually("clients are shared", || (operator.weights() == [90, 10]).then_some(()));
        gone.kill().unwrap();
        gone.wait().unwrap();
        eventually("the old release is back", || {
            let told = operator.rollout();
            assert_ne!(told["stage"], "promoted", "{told:#}");
            (told["stage"] == "reverted" && operator.pods_of(&broken) == 0).then_some(())
        });
    });
    let theirs: Vec<&Answer> = answers.iter().filter(|answer| answer.said.contains("broken")).collect();
    let (first, last) =
        (theirs.iter().map(|one| one.began).min().unwrap(), theirs.iter().map(|one| one.ended).max().unwrap());
    let meanwhile = answers.iter().filter(|one| one.ended >= first && one.began <= last).count();
    eprintln!(
        "not well: {} of {meanwhile} requests failed within {:.1?}, {} in all, reverted after {:.1?}; {}",
        theirs.len(),
        last - first,
        answers.len(),
        began.elapsed(),
        operator.rollout()["says"]
    );
    // Those that the new release failed to answer, and no other; and those are the share.
    assert_eq!(failed(&answers).len(), theirs.len(), "{:?}", failed(&answers));
    assert!(theirs.len() as f64 <= 0.13 * meanwhile as f64 + 3.0, "{} of {meanwhile}", theirs.len());
    operator.shares_nothing();
    assert_eq!(operator.template(), template, "the old release, all of it");
    let heard = operator.run(&["up", "--yes", "--no-gate"], &bad);
    assert!(heard.exit != 0 && heard.err.contains("tried and rolled back"), "{heard:?}");
    operator.run(&["rollout", "retry"], &SHARED).expect(0);
    operator.up_by_gateway(authority, &well);
    let again = operator.up_by_gateway(authority, &well);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");

    operator.run(&["down", "--yes"], &SHARED).expect(0);
    assert!(!operator.get("httproute", "textnlp-api")["metadata"].is_object());
    cluster.kubectl(&["delete", "namespace", &infra, "--wait=false"]);
}
