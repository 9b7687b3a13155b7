//! A node that is lost as by a power cut, what becomes of the pods that were on it, and what is said of it meanwhile.

use std::io::BufRead;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use textnlp_tests::{counts, eventually};

use crate::asked_while;
use crate::operator::Operator;

/// The node that is lost, and the taint by which nobody else's pods go there.
const THERE: &str = "there";
const TAINT: &str = "example.com/may-be-lost";

#[test]
fn pods_of_a_lost_node_are_rescheduled_and_stuck_ones_reported() {
    let Some(operator) = Operator::new("node") else { return };
    let mut there = operator.cluster.kubelet().another(THERE, &json!({ "key": TAINT, "effect": "NoSchedule" }));
    let borne = json!([{ "key": TAINT, "operator": "Exists", "effect": "NoSchedule" }]);
    let sets = [
        &format!("sites[0].cluster.tolerations={borne}"),
        // Whoever asks until all is well asks often.
        "server.security.rate_limit=1000000/hour",
    ];
    let done = operator.up(&sets);
    let on = |node: &str| pods(&operator).into_iter().filter(|pod| is_on(pod, node)).count();
    assert!(on(THERE) > 0, "pods are spread over nodes");

    let lost = Instant::now();
    let answers = asked_while(&operator, &done, r#"{"prompt":"Once","max_tokens":8}"#, || {
        there.lose();
        let ready = || operator.get("deployment", "textnlp-api")["status"]["readyReplicas"].as_u64().unwrap_or(0);
        eventually("its pods are missed", || (ready() < 3).then_some(()));
        eprintln!("missed after {:?}", lost.elapsed());
        // Status and `up` name the node, and nothing is done about it: the cluster does it by itself.
        let status = operator.run(&["status", "-o", "json"], &sets).json();
        let why = status["drift"][0]["why"].as_str().unwrap_or_default();
        assert!(why.contains(&format!("is on node {THERE}, which is unreachable since")), "{status:#}");
        assert_eq!(counts(&operator.up(&sets))[..4], [0, 0, 0, 0]);
        eventually("others take their place", || (ready() == 3 && on("here") == 3).then_some(()));
        eprintln!("whole again after {:?}", lost.elapsed());
    });
    let failed = answers.iter().filter(|answer| !answer.is_well());
    let last = failed.clone().map(|answer| answer.ended.duration_since(lost)).max();
    eprintln!("{} of {} requests failed, the last {last:?} after the loss", failed.count(), answers.len());
    assert!(answers.iter().any(|answer| answer.is_well() && answer.began > lost), "pods elsewhere answer");
    let text = operator.up(&sets)["text"].clone();
    assert_eq!(text.as_str().map(str::is_empty), Some(false), "all is well again");

    // Nobody says that the programs there ended, so that `down` waits, and says for what.
    let mut down = operator.command(&["down", "--yes", "-o", "jsonl"], &sets);
    let mut down = down.stdout(Stdio::piped()).spawn().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let said = std::io::BufReader::new(down.stdout.take().unwrap());
    std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let words = format!("stays on node {THERE}, which is unreachable since");
    let named =
        std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(120)).ok()).find(|line| line.contains(&words));
    assert!(named.is_some(), "what it waits for is never said");
    assert!(down.try_wait().unwrap().is_none(), "it waits");
    there.come_back();
    let rest: Vec<String> = told.iter().collect();
    assert!(down.wait().unwrap().success(), "{rest:#?}");
    let gone = operator.cluster.kubectl(&["get", "namespace", &operator.namespace]);
    assert!(!gone.status.success(), "the namespace was ours");
}

/// The servers' pods that stay.
fn pods(operator: &Operator) -> Vec<Value> {
    let found = operator.get("pods", "-lapp=textnlp-api")["items"].as_array().cloned().unwrap_or_default();
    found.into_iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_string()).collect()
}

fn is_on(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"] == node
}
