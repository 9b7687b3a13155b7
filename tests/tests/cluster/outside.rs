//! A rollout that is judged from outside of its pods too: a real Prometheus, which is told what the test's own clients saw.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use textnlp_tests::eventually;
use textnlp_tests::ports::Ports;

use crate::operator::Operator;
use crate::rollout::{QUESTION, image};
use crate::{Answer, heard_while};

/// What clients saw, as they tell it to whoever asks.
#[derive(Default)]
struct Clients {
    requests: AtomicU64,
    failures: AtomicU64,
}

impl Clients {
    /// Told at this address for as long as the test goes on.
    fn told(self: &Arc<Self>, namespace: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, namespace) = (self.clone(), namespace.to_owned());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4096]);
                let (requests, failures) = (seen.requests.load(Ordering::SeqCst), seen.failures.load(Ordering::SeqCst));
                let text = format!(
                    "client_requests_total{{of=\"{namespace}\"}} {requests}\nclient_failures_total{{of=\"{namespace}\"}} {failures}\n"
                );
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n";
                let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{text}", text.len());
            }
        });
        address
    }

    /// Asks for texts while something is done; an answer with this word in it is none that a client can use, whatever the pod thinks of it.
    fn ask<T>(&self, operator: &Operator, up: &Value, useless: &str, work: impl FnOnce() -> T) -> T {
        let mut worked = None;
        let hear = |answer: &Answer| {
            let is_well = answer.is_well() && !answer.said.contains(useless);
            self.failures.fetch_add(u64::from(!is_well), Ordering::SeqCst);
            self.requests.fetch_add(1, Ordering::SeqCst);
        };
        heard_while(operator, up, QUESTION, hear, || worked = Some(work()));
        worked.unwrap()
    }
}

/// A Prometheus with what it remembers in a folder of its own, which may be stopped and begun again.
struct Prometheus {
    folder: Utf8PathBuf,
    port: Ports,
    running: Option<Child>,
}

impl Prometheus {
    /// `None`, said loudly, where it is not installed, unless everything must be there.
    fn new(folder: Utf8PathBuf, of: &str) -> Option<Self> {
        if let Err(why) = Command::new("prometheus").arg("--version").output() {
            assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "prometheus: {why}");
            eprintln!("LEFT OUT: prometheus is not here");
            return None;
        }
        std::fs::create_dir(&folder).unwrap();
        let scraped = json!({ "job_name": "clients", "static_configs": [{ "targets": [of] }] });
        let config = json!({ "global": { "scrape_interval": "1s" }, "scrape_configs": [scraped] });
        std::fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        let mut prometheus = Self { folder, port: Ports::ask(1), running: None };
        prometheus.start();
        Some(prometheus)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.numbers()[0])
    }

    fn start(&mut self) {
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", self.folder.join("prometheus.yml")));
        command.arg(format!("--storage.tsdb.path={}", self.folder.join("data")));
        command.arg(format!("--web.listen-address={}", self.url().trim_start_matches("http://")));
        command.arg("--log.level=error");
        self.running = Some(command.stdin(Stdio::null()).spawn().unwrap());
        eventually("Prometheus is ready", || {
            let asked = Command::new("curl").args(["-sf", &format!("{}/-/ready", self.url())]).output().unwrap();
            asked.status.success().then_some(())
        });
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().unwrap();
            running.wait().unwrap();
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn external_analysis_reverts_a_bad_release_and_waits_without_data() {
    let Some(operator) = Operator::new("outside") else { return };
    let clients = Arc::new(Clients::default());
    let scraped = clients.told(&operator.namespace);
    let Some(mut prometheus) = Prometheus::new(operator.sandbox.folder().join("prometheus"), &scraped) else { return };
    let share =
        "sum(increase(client_failures_total{of=\"{{namespace}}\"}[10s])) / sum(increase(client_requests_total[10s]))";
    let judged = |query: &str| {
        let share = json!({ "name": "errors seen by clients", "query": query, "at_most": 0.05, "for": 2 });
        let never_there = json!({
            "name": "pods that are no pods", "query": "absent(up{pod=~\".*{{new}}.*|.*{{old}}.*\"})", "at_least": 1, "for": 1,
        });
        format!("rollout.queries={}", json!([share, never_there]))
    };
    let (url, queries) = (format!("rollout.prometheus={}", json!({ "url": prometheus.url() })), judged(share));
    let with = |more: &[&str]| {
        let always = [
            "rollout.strategy=canary",
            // Long enough to be held in the middle.
            "rollout.bake=10s",
            "rollout.deadline=15m",
            "gates.p95_ms=20000",
            "server.security.rate_limit=1000000/hour",
            url.as_str(),
        ];
        always.iter().chain(more).map(|set| (*set).to_owned()).collect::<Vec<_>>()
    };
    fn run(operator: &Operator, sets: &[String]) -> textnlp_tests::Said {
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        operator.run(&["up", "--yes", "--no-gate", "-o", "json"], &sets)
    }
    let says = |told: &Value| told["says"].as_str().unwrap_or_default().to_owned();
    let up = run(&operator, &with(&[&queries])).expect(0).json();
    let before = operator.template();

    // What Prometheus does not understand is said before anything changes, in its own words.
    let wrong = judged("sum(client_failures_total");
    let refused = run(&operator, &with(&[&wrong, "server.api.max_tokens=1024"]));
    assert!(
        refused.exit != 0
            && refused.err.contains("no pod was created: query `errors seen by clients`: it cannot be queried"),
        "{refused:?}"
    );
    assert!(refused.err.contains("parse error"), "{refused:?}");
    assert_eq!(operator.template(), before);

    // Its pod finds it well, and so does its probe; those who ask it do not.
    let fine = image(&operator, "fine", 200);
    let bad = with(&[&queries, &format!("sites[0].cluster.image={fine}")]);
    let began = Instant::now();
    let heard = clients.ask(&operator, &up, "\"fine\"", || run(&operator, &bad));
    let told = operator.rollout();
    eprintln!("bad for clients alone: over after {:.1?}; {}", began.elapsed(), says(&told));
    assert!(heard.exit != 0 && heard.err.contains("query `errors seen by clients` is 0."), "{heard:?}");
    assert_eq!(told["stage"], "reverted", "{told:#}");
    assert!(says(&told).contains("(at most 0.05), 2 times in a row"), "{told:#}");
    assert_eq!(operator.template(), before, "the old release, all of it");

    // One that is well, with nobody to say so for a while; the pod of the job is lost meanwhile.
    let good = with(&[&queries, "server.api.max_tokens=2048"]);
    clients.ask(&operator, &up, "\"fine\"", || {
        let sets: Vec<&str> = good.iter().map(String::as_str).collect();
        let mut up = operator.command(&["up", "--yes", "--no-gate"], &sets).spawn().unwrap();
        eventually("the new pod is measured", || (operator.rollout()["stage"] == "baking").then_some(()));
        // Held, so that it is not promoted before Prometheus has stopped.
        operator.run(&["rollout", "pause"], &sets).expect(0);
        eventually("it is held", || says(&operator.rollout()).contains("held by").then_some(()));
        prometheus.stop();
        let waits = "query `errors seen by clients` waits: Prometheus does not answer";
        eventually("it hears nothing of Prometheus", || says(&operator.rollout()).contains(waits).then_some(()));
        operator.run(&["rollout", "resume"], &sets).expect(0);
        eventually("it waits for Prometheus", || {
            let told = operator.rollout();
            assert_eq!(told["stage"], "baking", "nobody goes on by answers that are not there: {told:#}");
            (says(&told).contains(waits) && !says(&told).contains("held by")).then_some(())
        });
        let job = ["-n", &operator.namespace, "-l", "app.kubernetes.io/name=textnlp-rollout"];
        let lost = [&["delete", "pod", "--wait=false", "--field-selector=status.phase=Running"][..], &job].concat();
        assert!(operator.cluster.kubectl(&lost).status.success());
        prometheus.start();
        assert!(up.wait().unwrap().success());
    });
    let told = operator.rollout();
    eprintln!("well for clients: {}", says(&told));
    assert_eq!(told["stage"], "promoted", "{told:#}");
    assert!(says(&told).contains("query `errors seen by clients` is 0 (at most 0.05)"), "{told:#}");
    let sets: Vec<&str> = good.iter().map(String::as_str).collect();
    assert_eq!(textnlp_tests::counts(&operator.up(&sets))[..4], [0, 0, 0, 0]);
    operator.run(&["down", "--yes"], &sets).expect(0);
}
