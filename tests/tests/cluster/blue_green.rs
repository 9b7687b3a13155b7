//! A second set of pods beside the first, and then all clients at once: the cluster itself leads them there, and back.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};
use textnlp_tests::{counts, eventually};

use crate::operator::{Operator, pinned};
use crate::rollout::{QUESTION, image};
use crate::{Answer, asked_while};

const BLUE_GREEN: [&str; 5] = [
    "rollout.strategy=blue-green",
    "rollout.bake=6s",
    "rollout.deadline=15m",
    "server.security.rate_limit=1000000/hour",
    // What is fast here is another machine's.
    "gates.p95_ms=20000",
];
impl Operator {
    fn selector(&self) -> Value {
        self.get("service", "textnlp-api")["spec"]["selector"].clone()
    }

    /// Between rollouts everybody asks for all pods.
    fn leads_to_all(&self) {
        let all = json!({ "app": "textnlp-api" });
        assert_eq!(self.selector(), all);
        let budget = self.get("poddisruptionbudget", "textnlp-api");
        assert_eq!(budget["spec"]["selector"], json!({ "matchLabels": all }));
        let ready = self.get("deployment", "textnlp-api")["status"]["readyReplicas"].clone();
        assert!(ready.as_u64() >= Some(3), "{ready}");
    }

    /// Whether the endpoints of the service are pods of this image alone.
    fn leads_only_to(&self, image: &str) -> bool {
        let list = |more: &[&str]| -> Vec<Value> {
            let out = self.cluster.kubectl(&[&["get", "-o", "json", "-n", &self.namespace][..], more].concat());
            let list: Value = serde_json::from_slice(&out.stdout).unwrap();
            list["items"].as_array().unwrap().clone()
        };
        let pods = list(&["pods", "-l", "app=textnlp-api"]);
        let pods = pods.iter().filter(|pod| pod["spec"]["containers"][0]["image"] == image);
        let pods: BTreeSet<String> = pods.map(|pod| pod["metadata"]["uid"].to_string()).collect();
        let slices = list(&["endpointslices", "-l", "kubernetes.io/service-name=textnlp-api"]);
        let mut endpoints =
            slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten()).peekable();
        endpoints.peek().is_some() && endpoints.all(|one| pods.contains(&one["targetRef"]["uid"].to_string()))
    }

    fn are_gone(&self, image: &str) {
        eventually("its pods are gone", || (self.pods_of(image) == 0).then_some(()));
    }

    fn says(&self, stage: &str, word: &str) {
        eventually(&format!("{stage}: {word}"), || {
            let told = self.rollout();
            (told["stage"] == stage && told["says"].as_str().unwrap_or_default().contains(word)).then_some(())
        });
    }
}

fn of<'a>(answers: &'a [Answer], word: &str) -> Vec<&'a Answer> {
    answers.iter().filter(|answer| answer.said.contains(&format!("\"{word}\""))).collect()
}

fn failed(answers: &[Answer]) -> Vec<&str> {
    answers.iter().filter(|answer| !answer.is_well()).map(|answer| answer.said.as_str()).collect()
}

#[test]
fn blue_green_rollout_switches_all_traffic_at_once_and_back() {
    let Some(operator) = Operator::new("blue") else { return };
    let of_image = |image: &str| format!("sites[0].cluster.image={image}");
    let up = operator.up(&BLUE_GREEN);
    let again = operator.up(&BLUE_GREEN);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    operator.leads_to_all();

    // One that is well. It is held before clients are led to it, and the job's pod is lost meanwhile.
    let second = image(&operator, "second", 200);
    let set = of_image(&second);
    let well = [&BLUE_GREEN[..], &[set.as_str()]].concat();
    let (mut resumed, mut led) = (None, None);
    let answers = asked_while(&operator, &up, QUESTION, || {
        let mut rolls = operator.command(&["up", "--yes", "--no-gate"], &well).spawn().unwrap();
        operator.says("preparing", "no traffic is routed to them");
        operator.run(&["rollout", "pause"], &BLUE_GREEN).expect(0);
        operator.says("preparing", "held by `rollout pause`; 3 of 3 new pods are ready");
        assert_eq!(operator.pods_of(&second), 3, "as many as of the first");
        assert!(operator.selector()["pod-template-hash"].is_string(), "{}", operator.selector());
        let job = ["-n", &operator.namespace, "-l", "app.kubernetes.io/name=textnlp-rollout"];
        let lost = [&["delete", "pod", "--wait=false", "--field-selector=status.phase=Running"][..], &job].concat();
        assert!(operator.cluster.kubectl(&lost).status.success());
        resumed = Some(Instant::now());
        operator.run(&["rollout", "resume"], &BLUE_GREEN).expect(0);
        eventually("clients are led to the second set", || operator.leads_only_to(&second).then_some(()));
        led = Some(Instant::now());
        assert!(rolls.wait().unwrap().success());
    });
    assert_eq!(failed(&answers), [""; 0], "of {}", answers.len());
    let theirs = of(&answers, "second");
    assert!(!theirs.is_empty(), "clients came there");
    assert!(theirs.iter().all(|answer| answer.ended > resumed.unwrap()), "before they were led there");
    let mut later = answers.iter().filter(|answer| answer.began > led.unwrap());
    assert!(later.all(|answer| answer.said.contains("\"second\"")), "and all of them");
    let told = operator.rollout();
    eprintln!("well: {} requests, {} of them by the second set; {}", answers.len(), theirs.len(), told["says"]);
    assert_eq!((&told["stage"], told["goes_on"].as_bool()), (&Value::from("promoted"), Some(false)), "{told:#}");
    operator.leads_to_all();
    operator.are_gone(&pinned("local/textnlp:1"));
    let again = operator.up(&well);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    let before = operator.template();

    // One whose answers fail, and an operator who goes away before anybody is led there.
    let broken = image(&operator, "broken", 500);
    let set = of_image(&broken);
    let bad = [&BLUE_GREEN[..], &[set.as_str()]].concat();
    let answers = asked_while(&operator, &up, QUESTION, || {
        let mut gone = operator.command(&["up", "--yes", "--no-gate"], &bad).spawn().unwrap();
        operator.says("preparing", "new pods are ready");
        gone.kill().unwrap();
        gone.wait().unwrap();
        operator.says("reverted", "answers of the new release failed");
        operator.are_gone(&broken);
    });
    let theirs = of(&answers, "broken");
    let (first, last) = (theirs.iter().map(|one| one.began).min(), theirs.iter().map(|one| one.ended).max());
    eprintln!(
        "not well: {} of {} requests failed, within {:.2?}; {}",
        theirs.len(),
        answers.len(),
        last.unwrap() - first.unwrap(),
        operator.rollout()["says"]
    );
    // Those that the new release failed to answer, and no other: the old pods are there, and nothing is dropped when the new ones go.
    assert_eq!(failed(&answers).len(), theirs.len(), "{:?}", failed(&answers));
    operator.leads_to_all();
    assert_eq!(operator.template(), before, "the old release, all of it");
    operator.run(&["rollout", "retry"], &BLUE_GREEN).expect(0);
    operator.up(&well);

    // A person who changes his mind, and the number of pods before that.
    let never = image(&operator, "never", 200);
    let set = of_image(&never);
    let other = [&BLUE_GREEN[..], &[set.as_str()]].concat();
    let answers = asked_while(&operator, &up, QUESTION, || {
        let mut rolls = operator.command(&["up", "--yes", "--no-gate"], &other).spawn().unwrap();
        operator.says("preparing", "");
        operator.run(&["rollout", "pause"], &BLUE_GREEN).expect(0);
        operator.says("preparing", "held by");
        let scaled = ["scale", "deployment", "textnlp-api", "--replicas=4", "-n", &operator.namespace];
        assert!(operator.cluster.kubectl(&scaled).status.success());
        operator.says("preparing", "4 of 4");
        assert_eq!(operator.pods_of(&never), 4, "of both sets");
        operator.run(&["rollout", "abort"], &BLUE_GREEN).expect(0);
        assert!(!rolls.wait().unwrap().success());
    });
    assert_eq!((failed(&answers), of(&answers, "never").len()), (vec![], 0), "of {}", answers.len());
    operator.says("reverted", "rollout abort");
    operator.leads_to_all();
    operator.are_gone(&never);
    assert_eq!((operator.template(), operator.pods_of(&second)), (before, 4));

    // One by one again.
    let rolling = [&BLUE_GREEN[3..], &["rollout.strategy=rolling"]].concat();
    let answers = asked_while(&operator, &up, QUESTION, || drop(operator.up(&rolling)));
    assert_eq!(failed(&answers), [""; 0], "of {}", answers.len());
    operator.are_gone(&second);
    assert_eq!(operator.pods_of(&pinned("local/textnlp:1")), 4);
    operator.leads_to_all();
    assert!(!operator.get("role", "textnlp-rollout")["metadata"].is_object());
    operator.run(&["down", "--yes"], &BLUE_GREEN).expect(0);
}
