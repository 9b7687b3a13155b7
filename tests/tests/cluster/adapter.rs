//! An autoscaler that asks for nothing but requests, and an adapter of ours that tells it: the real controllers, the real program in its pod, and
//! what the API server says to whoever may ask, and to whoever may not.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use textnlp_tests::{Said, counts, eventually, in_days, said};

use crate::operator::Operator;
use crate::while_asked;

const GROWS: [&str; 9] = [
    "phase=scale-up",
    "gates.sessions=60",
    // What is fast here is another machine's.
    "gates.p95_ms=20000",
    "scaling.min=3",
    "scaling.max=5",
    "scaling.requests_per_second=1",
    "scaling.adapter=true",
    "server.security.rate_limit=1000000/hour",
    // The test has neither backups nor alert receivers.
    "gates.compliance=[]",
];
const API: &str = "v1beta2.custom.metrics.k8s.io";
const QUESTION: &str = r#"{"prompt":"Once","max_tokens":8}"#;

impl Operator {
    fn kubectl(&self, args: &[&str]) -> Said {
        said(self.cluster.kubectl(args))
    }

    fn path(&self, pod: &str) -> String {
        format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{}/pods/{pod}/http_requests_per_second", self.namespace)
    }

    /// What the API server tells of the servers' pods: each one's name, and thousandths of a request a second.
    fn told(&self) -> Vec<(String, u64)> {
        let path = format!("{}?labelSelector=app%3Dtextnlp-api", self.path("*"));
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", &path]).out).unwrap_or_default();
        let items = list["items"].as_array().into_iter().flatten();
        items
            .map(|item| {
                let value = item["value"].as_str().unwrap().strip_suffix('m').unwrap();
                (item["describedObject"]["name"].as_str().unwrap().to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    fn replicas(&self) -> u64 {
        self.get("deployment", "textnlp-api")["status"]["readyReplicas"].as_u64().unwrap_or_default()
    }
}

#[test]
fn autoscaler_scales_on_requests_reported_by_our_metrics_adapter() {
    let Some(operator) = Operator::new("grows") else { return };
    let namespace = operator.namespace.as_str();

    // Somebody else's adapter keeps its clients, and nothing is begun.
    let theirs = "v1beta1.custom.metrics.k8s.io";
    let spec = serde_json::json!({ "group": "custom.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 10, "versionPriority": 10 });
    let object = serde_json::json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": theirs }, "spec": spec });
    operator.cluster.feed(&["apply"], &object);
    let refused = operator.run(&["up", "--yes", "--no-gate"], &GROWS);
    assert!(refused.exit != 0 && refused.err.contains(theirs), "{refused:?}");
    assert!(!operator.get("namespace", namespace)["metadata"].is_object(), "nothing was begun");
    assert_eq!(operator.kubectl(&["delete", "apiservice", theirs]).exit, 0);

    let up = operator.up(&GROWS);
    let registered: Value =
        serde_json::from_str(&operator.kubectl(&["get", "apiservice", API, "-o", "json"]).out).unwrap();
    let available = &registered["status"]["conditions"];
    assert!(
        available.as_array().unwrap().iter().any(|one| one["type"] == "Available" && one["status"] == "True"),
        "{available:#}"
    );
    assert!(registered["spec"]["insecureSkipTLSVerify"] != true && registered["spec"]["caBundle"].is_string());
    let again = operator.up(&GROWS);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");

    // What is there is found by whoever looks, and nothing is asked for: three pods, and nothing of anything else.
    let found = operator.kubectl(&["get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2"]);
    assert!(found.out.contains("pods/http_requests_per_second"), "{found:?}");
    // But for what `up` asked, which is forgotten soon.
    let idle = |told: &Vec<(String, u64)>| told.len() == 3 && told.iter().all(|(_, value)| *value == 0);
    let rest = eventually("the pods are known, and nobody asks", || Some(operator.told()).filter(idle));
    let one: Value =
        serde_json::from_str(&operator.kubectl(&["get", "--raw", &operator.path(&rest[0].0)]).out).unwrap();
    assert_eq!(
        (&one["kind"], &one["items"][0]["describedObject"]["name"]),
        (&"MetricValueList".into(), &rest[0].0.clone().into())
    );
    for (path, why) in [
        (operator.path("nobody"), "NotFound"),
        (operator.path("*").replace(namespace, "default"), "no metrics of pods in namespace default"),
        (format!("{}?labelSelector=a%3D%3D%3Db", operator.path("*")), "BadRequest"),
        (format!("{}?metricLabelSelector=a%3Db", operator.path("*")), "no labels"),
    ] {
        let refused = operator.kubectl(&["get", "--raw", &path]);
        assert!(refused.exit != 0 && refused.err.contains(why), "{path}: {refused:?}");
    }

    // Who may ask is the API server's to say, and who is not the API server is told nothing.
    let autoscaler = "--as=system:serviceaccount:kube-system:horizontal-pod-autoscaler";
    let path = format!("{}?labelSelector=app%3Dtextnlp-api", operator.path("*"));
    let told = operator.kubectl(&["get", "--raw", &path, autoscaler]);
    assert!(told.out.contains("MetricValueList"), "it may, by what every cluster lets it: {told:?}");
    let stranger = operator.cluster.kubeconfig("stranger", &["nobodies"]);
    let kubeconfig = format!("--kubeconfig={stranger}");
    let refused = operator.kubectl(&["get", "--raw", &operator.path("*"), &kubeconfig]);
    assert!(refused.exit != 0 && refused.err.contains("Forbidden"), "{refused:?}");
    let address = operator.cluster.kubelet().forward(namespace, "textnlp-adapter", 443);
    let curl = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        said(curl.args(["-sSk", "-m", "20"]).args(more).arg(format!("https://{address}{path}")).output().unwrap())
    };
    let refused = curl(&operator.path("*"), &["-H", "X-Remote-User: admin", "-H", "X-Remote-Group: system:masters"]);
    let status: Value = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(
        (&status["kind"], &status["code"], &status["reason"]),
        (&"Status".into(), &401.into(), &"Unauthorized".into())
    );
    assert_eq!(curl("/ready", &[]).out, "\"ok\"");
    // Certified by the cluster, as every component of it is, and not by what certifies the front.
    let config: Value = serde_json::from_slice(&std::fs::read(operator.cluster.admin()).unwrap()).unwrap();
    let user = &config["users"][0]["user"];
    let files = ["client-certificate-data", "client-key-data"].map(|field| {
        let file = operator.sandbox.folder().join(field);
        let mut decode = Command::new("base64");
        decode.args(["-d"]).stdin(std::process::Stdio::piped()).stdout(std::fs::File::create(&file).unwrap());
        let mut decode = decode.spawn().unwrap();
        std::io::Write::write_all(decode.stdin.as_mut().unwrap(), user[field].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
        file
    });
    let refused = curl(&operator.path("*"), &["--cert", files[0].as_str(), "--key", files[1].as_str()]);
    assert!(refused.exit != 0 && refused.out.is_empty(), "{refused:?}");

    // Nobody loads what others work with only to open a gate: it waits, and says how to show what it asks for.
    let gate =
        |more: &[&str], exit: i32| operator.run(&[&["gate", "-o", "json"], more].concat(), &GROWS).expect(exit).json();
    let check = |gate: &Value, name: &str| -> Value {
        let mut checks = gate["gate"]["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).unwrap().clone()
    };
    let waits = gate(&[], 3);
    assert_eq!(waits["gate"]["state"], "wait", "{waits:#}");
    let blockers = waits["gate"]["blockers"].to_string();
    assert!(blockers.contains("load --sessions 60") && blockers.contains("load --users 200"), "{blockers}");
    assert!(blockers.contains("p95 of their answers: not measured yet (measured with `open sessions`"), "{blockers}");
    assert_eq!(waits["gate"]["blockers"].as_array().unwrap().len(), 3, "{blockers}");
    assert_eq!(check(&waits, "security audit")["measured"], 0, "{waits:#}");
    // What is not measured yet can be waived.
    let (until, later) = (in_days(30), in_days(60));
    let checks = ["open sessions", "p95 of their answers", "more pods under load within"];
    let all = checks.iter().flat_map(|check| ["--waive", check]);
    let waived = gate(&all.chain(["--until", &until, "--reason", "a test"]).collect::<Vec<_>>(), 0);
    assert_eq!(waived["gate"]["state"], "open", "{waived:#}");
    let open = gate(&[], 0);
    assert!(open["gate"]["reused"] == true && open["gate"]["exemptions"].as_array().unwrap().len() == 4, "{open:#}");
    let longer = gate(&["--waive", "open sessions", "--until", &later, "--reason", "a test"], 0);
    assert_eq!(check(&longer, "open sessions")["waived_until"].as_str(), Some(later.as_str()), "{longer:#}");
    // The objects of the cluster are read.
    let audit = operator.run(&["security", "audit", "--full", "-o", "json"], &GROWS).expect(0).json();
    for (name, says) in [("roles", "roles"), ("pods", "containers"), ("images", "images"), ("open ports", "services")] {
        let line = audit["lines"].as_array().unwrap().iter().find(|line| line["name"] == name).unwrap();
        let is_read = line["state"] == "warning" || line["evidence"].as_str().unwrap().ends_with(says);
        assert!(is_read && line["site"].is_string(), "{line:#}");
    }

    // Under load there are more, every session is kept meanwhile, and without it there are as many as before.
    let sessions = ["load", "--sessions", "60", "--every", "2", "--seconds", "60", "-o", "json"];
    // On a busy machine pods may start too late for one load; then all of it is done again.
    let loaded = (1..=4).find_map(|attempt| {
        let mut held = Value::Null;
        let (asked, failed) = while_asked(&operator, &up, QUESTION, || {
            held = operator.run(&sessions, &GROWS).expect(0).json();
        });
        assert!(failed.is_empty(), "of {asked}: {failed:?}");
        assert_eq!((&held["sessions"]["kept_all"], &held["sessions"]["open"]), (&true.into(), &60.into()), "{held:#}");
        assert_eq!(held["scaling"]["from"], 3, "{held:#}");
        let is_scaled = held["scaling"]["to"] == 5;
        if !is_scaled {
            assert!(attempt < 4, "{held:#}");
            eventually("there are as many as before", || (operator.replicas() == 3).then_some(()));
        }
        is_scaled.then_some((asked, held))
    });
    let (asked, held) = loaded.unwrap();
    eprintln!("{} questions of 60 sessions; five pods after {} s", held["requests"], held["scaling"]["seconds"]);
    let loaded = gate(&["--again"], 0);
    assert_eq!((&loaded["gate"]["state"], &check(&loaded, "open sessions")["measured"]), (&"open".into(), &60.into()));
    let metrics = check(&loaded, "metrics");
    assert_eq!((&metrics["measured"], &metrics["limit"]), (&1.into(), &1.into()), "{metrics:#}");
    let scaler = operator.get("horizontalpodautoscaler", "textnlp-api-hpa");
    assert_eq!(
        scaler["status"]["currentMetrics"][0]["pods"]["metric"]["name"], "http_requests_per_second",
        "{scaler:#}"
    );
    let ended = Instant::now();
    eventually("there are three again", || (operator.replicas() == 3).then_some(()));
    eprintln!("{asked} requests; three pods again after {:.1?}", ended.elapsed());

    let refused = operator.run(&["export", "yaml"], &GROWS);
    assert!(refused.exit != 0 && refused.err.contains("scaling.adapter"), "{refused:?}");
    operator.run(&["down", "--yes"], &GROWS).expect(0);
    assert_ne!(operator.kubectl(&["get", "apiservice", API]).exit, 0, "it was ours");
    let bound = operator.kubectl(&["get", "rolebindings", "-n", "kube-system", "-o", "name"]);
    assert!(!bound.out.contains("textnlp-adapter"), "{bound:?}");
}
