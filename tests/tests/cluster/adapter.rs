//! An autoscaler that asks for nothing but requests, and an adapter of ours that tells it: the real controllers, the real program in its pod, and
//! what the API server says to whoever may ask, and to whoever may not. A cluster has one such adapter, so that one test at a time deploys it:
//! that of all phases.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use textnlp_tests::{Said, eventually, said};

use crate::operator::Operator;
use crate::while_asked;

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

    /// Somebody else's adapter keeps its clients, and nothing is begun.
    pub(crate) fn keeps_another_adapter(&self) {
        let theirs = "v1beta1.custom.metrics.k8s.io";
        let spec = serde_json::json!({ "group": "custom.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 10, "versionPriority": 10 });
        let object = serde_json::json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": theirs }, "spec": spec });
        self.cluster.feed(&["apply"], &object);
        let refused = self.run(&["up", "--yes", "--no-gate"], &[]);
        assert!(refused.exit != 0 && refused.err.contains(theirs), "{refused:?}");
        assert!(!self.get("namespace", &self.namespace)["metadata"].is_object(), "nothing was begun");
        assert_eq!(self.kubectl(&["delete", "apiservice", theirs]).exit, 0);
    }

    /// Our adapter is found and tells the autoscaler, and nobody else.
    pub(crate) fn adapter_tells_the_autoscaler(&self) {
        let registered: Value =
            serde_json::from_str(&self.kubectl(&["get", "apiservice", API, "-o", "json"]).out).unwrap();
        let available = &registered["status"]["conditions"];
        assert!(
            available.as_array().unwrap().iter().any(|one| one["type"] == "Available" && one["status"] == "True"),
            "{available:#}"
        );
        assert!(registered["spec"]["insecureSkipTLSVerify"] != true && registered["spec"]["caBundle"].is_string());

        // What is there is found by whoever looks, and nothing is asked for: three pods, and nothing of anything else.
        let found = self.kubectl(&["get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2"]);
        assert!(found.out.contains("pods/http_requests_per_second"), "{found:?}");
        // But for what `up` asked, which is forgotten soon.
        let idle = |told: &Vec<(String, u64)>| told.len() == 3 && told.iter().all(|(_, value)| *value == 0);
        let rest = eventually("the pods are known, and nobody asks", || Some(self.told()).filter(idle));
        let one: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", &self.path(&rest[0].0)]).out).unwrap();
        assert_eq!(
            (&one["kind"], &one["items"][0]["describedObject"]["name"]),
            (&"MetricValueList".into(), &rest[0].0.clone().into())
        );
        for (path, why) in [
            (self.path("nobody"), "NotFound"),
            (self.path("*").replace(&self.namespace, "default"), "no metrics of pods in namespace default"),
            (format!("{}?labelSelector=a%3D%3D%3Db", self.path("*")), "BadRequest"),
            (format!("{}?metricLabelSelector=a%3Db", self.path("*")), "no labels"),
        ] {
            let refused = self.kubectl(&["get", "--raw", &path]);
            assert!(refused.exit != 0 && refused.err.contains(why), "{path}: {refused:?}");
        }

        // Who may ask is the API server's to say, and who is not the API server is told nothing.
        let autoscaler = "--as=system:serviceaccount:kube-system:horizontal-pod-autoscaler";
        let path = format!("{}?labelSelector=app%3Dtextnlp-api", self.path("*"));
        let told = self.kubectl(&["get", "--raw", &path, autoscaler]);
        assert!(told.out.contains("MetricValueList"), "it may, by what every cluster lets it: {told:?}");
        let stranger = self.cluster.kubeconfig("stranger", &["nobodies"]);
        let kubeconfig = format!("--kubeconfig={stranger}");
        let refused = self.kubectl(&["get", "--raw", &self.path("*"), &kubeconfig]);
        assert!(refused.exit != 0 && refused.err.contains("Forbidden"), "{refused:?}");
        let address = self.cluster.kubelet().forward(&self.namespace, "textnlp-adapter", 443);
        let curl = |path: &str, more: &[&str]| {
            let mut curl = Command::new("curl");
            said(curl.args(["-sSk", "-m", "20"]).args(more).arg(format!("https://{address}{path}")).output().unwrap())
        };
        let refused = curl(&self.path("*"), &["-H", "X-Remote-User: admin", "-H", "X-Remote-Group: system:masters"]);
        let status: Value = serde_json::from_str(&refused.out).unwrap();
        assert_eq!(
            (&status["kind"], &status["code"], &status["reason"]),
            (&"Status".into(), &401.into(), &"Unauthorized".into())
        );
        assert_eq!(curl("/ready", &[]).out, "\"ok\"");
        // Certified by the cluster, as every component of it is, and not by what certifies the front.
        let config: Value = serde_json::from_slice(&std::fs::read(self.cluster.admin()).unwrap()).unwrap();
        let user = &config["users"][0]["user"];
        let files = ["client-certificate-data", "client-key-data"].map(|field| {
            let file = self.sandbox.folder().join(field);
            let mut decode = Command::new("base64");
            decode.args(["-d"]).stdin(std::process::Stdio::piped()).stdout(std::fs::File::create(&file).unwrap());
            let mut decode = decode.spawn().unwrap();
            std::io::Write::write_all(decode.stdin.as_mut().unwrap(), user[field].as_str().unwrap().as_bytes())
                .unwrap();
            assert!(decode.wait().unwrap().success());
            file
        });
        let refused = curl(&self.path("*"), &["--cert", files[0].as_str(), "--key", files[1].as_str()]);
        assert!(refused.exit != 0 && refused.out.is_empty(), "{refused:?}");

        let refused = self.run(&["export", "yaml"], &[]);
        assert!(refused.exit != 0 && refused.err.contains("scaling.adapter"), "{refused:?}");
    }

    /// Under load there are two pods more, every session is kept meanwhile, and without it there are as many as before.
    pub(crate) fn grows(&self, up: &Value) {
        let sessions = ["load", "--sessions", "60", "--every", "2", "--seconds", "60", "-o", "json"];
        // On a busy machine pods may start too late for one load; then all of it is done again.
        let loaded = (1..=4).find_map(|attempt| {
            // The autoscaler is told of each of them, also where the adapter is new.
            eventually("there are three", || (self.replicas() == 3 && self.told().len() == 3).then_some(()));
            let mut held = Value::Null;
            let (asked, failed) = while_asked(self, up, QUESTION, || {
                held = self.run(&sessions, &[]).expect(0).json();
            });
            assert!(failed.is_empty(), "of {asked}: {failed:?}");
            assert_eq!(
                (&held["sessions"]["kept_all"], &held["sessions"]["open"]),
                (&true.into(), &60.into()),
                "{held:#}"
            );
            // Null if none was added.
            assert!(held["scaling"].is_null() || held["scaling"]["from"] == 3, "{held:#}");
            let is_scaled = held["scaling"]["to"] == 5;
            assert!(is_scaled || attempt < 4, "{held:#}");
            is_scaled.then_some((asked, held))
        });
        let (asked, held) = loaded.unwrap();
        eprintln!("{} questions of 60 sessions; five pods after {} s", held["requests"], held["scaling"]["seconds"]);
        let scaler = self.get("horizontalpodautoscaler", "textnlp-api-hpa");
        assert_eq!(
            scaler["status"]["currentMetrics"][0]["pods"]["metric"]["name"], "http_requests_per_second",
            "{scaler:#}"
        );
        let ended = Instant::now();
        eventually("there are three again", || (self.replicas() == 3).then_some(()));
        eprintln!("{asked} requests; three pods again after {:.1?}", ended.elapsed());
    }

    /// After `down`.
    pub(crate) fn has_no_adapter(&self) {
        assert_ne!(self.kubectl(&["get", "apiservice", API]).exit, 0, "it was ours");
        let bound = self.kubectl(&["get", "rolebindings", "-n", "kube-system", "-o", "name"]);
        assert!(!bound.out.contains("textnlp-adapter"), "{bound:?}");
    }
}
