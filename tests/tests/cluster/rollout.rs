//! A new release on its first pods: the cluster itself lets it go on, or puts the old one back, whoever is there.

use std::time::Instant;

use serde_json::Value;
use textnlp_tests::eventually;

use crate::operator::{Operator, PROGRAM, pinned};
use crate::while_asked;

const CANARY: [&str; 6] = [
    "rollout.strategy=canary",
    "rollout.bake=8s",
    // The expiry has its test in `sites/rollout.rs`.
    "rollout.deadline=15m",
    "rollout.first_share=10",
    "server.security.rate_limit=1000000/hour",
    // What is fast here is another machine's.
    "gates.p95_ms=20000",
];

pub(crate) const QUESTION: &str = r#"{"prompt":"Once","max_tokens":8}"#;

impl Operator {
    pub(crate) fn template(&self) -> Value {
        let mut template = self.get("deployment", "textnlp-api")["spec"]["template"].clone();
        // What kubectl puts there is no part of a release.
        template["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        template
    }

    /// What the job in the cluster said last.
    pub(crate) fn rollout(&self) -> Value {
        self.run(&["rollout", "status", "-o", "json"], &CANARY).expect(0).json()["rollout"].clone()
    }

    pub(crate) fn pods_of(&self, image: &str) -> usize {
        self.list_of(image).len()
    }

    pub(crate) fn list_of(&self, image: &str) -> Vec<Value> {
        let pods = self.cluster.kubectl(&["get", "pods", "-n", &self.namespace, "-l", "app=textnlp-api", "-o", "json"]);
        let pods: Value = serde_json::from_slice(&pods.stdout).unwrap();
        let pods = pods["items"].as_array().unwrap().iter();
        pods.filter(|pod| pod["spec"]["containers"][0]["image"] == image).cloned().collect()
    }
}

/// A release that is ready, and answers every question alike: with a word, and a status.
const ALIKE: &str = r#"
import http.server, json, re, sys, threading
place = re.search(r"127\.\d+\.\d+\.\d+", open(sys.argv[1]).read()).group()
status, word = int(sys.argv[2]), sys.argv[3]
asked = [0]
class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        count = 'http_requests_total{method="POST",route="/v1/generate",status="%d"} %d\n' % (status, asked[0])
        self.answer(200, count if self.path == "/metrics" else "{}")
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        asked[0] += 1
        event = "data: %s\n\nevent: done\ndata: {}\n\n" % json.dumps({"token": word})
        self.answer(status, event if self.path.endswith("/stream") else json.dumps({"said": word}))
    def log_message(self, *_):
        pass
servers = [http.server.ThreadingHTTPServer((place, port), Api) for port in (8080, 8082, 9090)]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
"#;

/// An image with such a server: what goes before it, and its gateway, are as ever.
pub(crate) fn image(operator: &Operator, word: &str, status: u16) -> String {
    let script = operator.sandbox.folder().join(format!("{word}.sh"));
    let server = operator.sandbox.folder().join("alike.py");
    std::fs::write(&server, ALIKE).unwrap();
    let real = textnlp_tests::program();
    let text = format!(
        "#!/bin/sh\ncase \"$1\" in serve) ;; *) exec {real} \"$@\";; esac\nexec python3 {server} \"$3\" {status} {word}\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let image = pinned(&format!("local/textnlp:{word}"));
    operator.cluster.kubelet().put_program_of(&image, PROGRAM, script);
    image
}

#[test]
fn healthy_canary_is_promoted_and_an_unhealthy_one_reverted_unattended() {
    let Some(operator) = Operator::new("rollout") else { return };
    let with = |set: &'static str| [&CANARY[..], &[set]].concat();
    let up = operator.up(&CANARY);
    assert_eq!(operator.run(&["rollout", "status"], &CANARY).expect(0).out.trim(), "there was no rollout yet");
    let again = operator.up(&CANARY);
    assert_eq!(textnlp_tests::counts(&again)[..4], [0, 0, 0, 0], "{again:#}");

    // A job beside the pods reads what they carry.
    let made = operator.run(&["key", "create", "somebody", "-o", "json"], &CANARY).expect(0).json();
    let listed = operator.run(&["key", "list"], &CANARY).expect(0).out;
    assert!(listed.contains(made["public_id"].as_str().unwrap()), "{listed}");

    // One that is well: first one pod beside three, and then all.
    let well = with("server.api.max_tokens=2048");
    let (asked, failed) = while_asked(&operator, &up, QUESTION, || {
        let rolled = operator.up(&well);
        let done: Vec<_> = rolled["outcome"]["done"].as_array().unwrap().iter().map(|one| &one["resource"]).collect();
        assert_eq!(done, ["main/server/config", "main/server/deployment"]);
    });
    let told = operator.rollout();
    eprintln!("well: {asked} requests; {}", told["says"]);
    assert!(failed.is_empty(), "of {asked}: {failed:?}");
    assert_eq!((&told["stage"], told["goes_on"].as_bool()), (&Value::from("promoted"), Some(false)), "{told:#}");
    let deployment = operator.get("deployment", "textnlp-api");
    assert_eq!(
        (&deployment["status"]["updatedReplicas"], &deployment["status"]["availableReplicas"]),
        (&3.into(), &3.into())
    );
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"], 1, "as before");
    let again = operator.up(&well);
    assert_eq!(textnlp_tests::counts(&again)[..4], [0, 0, 0, 0], "{again:#}");
    let before = operator.template();

    // One whose answers fail, and an operator who goes away.
    let image = &image(&operator, "broken", 500);
    let set = format!("sites[0].cluster.image={image}");
    let bad = [&well[..], &[set.as_str()]].concat();
    let (mut reverted, mut began) = (Value::Null, None);
    let (asked, failed) = while_asked(&operator, &up, QUESTION, || {
        let mut gone = operator.command(&["up", "--yes", "--no-gate"], &bad).spawn().unwrap();
        eventually("a new pod is there", || {
            (operator.rollout()["stage"] == "baking" && operator.pods_of(image) > 0).then_some(())
        });
        gone.kill().unwrap();
        gone.wait().unwrap();
        assert_eq!(operator.pods_of(image), 1, "one beside three");
        began = Some(Instant::now());
        eventually("the old release is back", || {
            reverted = operator.rollout();
            (reverted["stage"] == "reverted" && operator.pods_of(image) == 0).then_some(())
        });
    });
    eprintln!(
        "not well: reverted after {:.1?}, {} of {asked} failed; {}",
        began.unwrap().elapsed(),
        failed.len(),
        reverted["says"]
    );
    // Those that the new release failed to answer, and no other: nothing is dropped when its pod goes.
    assert!(failed.iter().all(|said| said.contains("broken")), "{failed:?}");
    assert!(reverted["says"].as_str().unwrap().contains("answers of the new release failed"), "{reverted:#}");
    assert_eq!(operator.template(), before, "the old release, all of it");

    // Whoever comes back hears of it, and what was wanted before is what runs.
    let heard = operator.run(&["up", "--yes", "--no-gate"], &bad);
    assert!(heard.exit != 0 && heard.err.contains("tried and rolled back"), "it is not tried again: {heard:?}");
    assert_eq!(operator.pods_of(image), 0);
    operator.run(&["rollout", "retry"], &CANARY).expect(0);
    let back = operator.up(&well);
    eprintln!("back: {:?}", textnlp_tests::counts(&back));
    assert_eq!(operator.template(), before);

    // A person's word counts more than time.
    let mut other = well.clone();
    other.push("server.api.queue=99");
    let mut up = operator.command(&["up", "--yes", "--no-gate"], &other).spawn().unwrap();
    eventually("a new pod is there", || (operator.rollout()["stage"] == "baking").then_some(()));
    operator.run(&["rollout", "pause"], &CANARY).expect(0);
    eventually("it is held", || {
        operator.rollout()["says"].as_str().unwrap_or_default().contains("held by").then_some(())
    });
    // Its pod is lost, and somebody wants another number of pods: neither keeps it from its end.
    let job = ["-n", &operator.namespace, "-l", "app.kubernetes.io/name=textnlp-rollout"];
    let lost = [&["delete", "pod", "--wait=false", "--field-selector=status.phase=Running"][..], &job].concat();
    assert!(operator.cluster.kubectl(&lost).status.success());
    let scaled = ["scale", "deployment", "textnlp-api", "--replicas=4", "-n", &operator.namespace];
    assert!(operator.cluster.kubectl(&scaled).status.success());
    operator.run(&["rollout", "promote"], &CANARY).expect(0);
    assert!(up.wait().unwrap().success());
    assert_eq!(operator.rollout()["stage"], "promoted");
    assert_eq!(operator.get("deployment", "textnlp-api")["status"]["updatedReplicas"], 4, "that is theirs");
    let refused = operator.run(&["rollout", "abort"], &CANARY);
    assert!(refused.exit != 0 && refused.err.contains("no rollout is in progress"), "{refused:?}");

    operator.run(&["down", "--yes"], &CANARY).expect(0);
}
