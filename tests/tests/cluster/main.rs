//! A cluster as an operator meets it: the real program, a real control plane, real servers in its pods, and a PostgreSQL that somebody else runs.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use textnlp_net::client::ClientOptions;
use textnlp_net::trust::TrustRoots;
use textnlp_tests::{counts, eventually, promptly};

mod adapter;
mod all_phases;
mod blue_green;
mod company;
mod database;
mod gateway;
mod node;
mod operator;
mod outside;
mod parts;
mod release;
mod rollout;
mod sites;
mod through;
mod token;

use operator::Operator;

#[test]
fn workload_is_deployed_answers_rolls_out_and_is_removed() {
    let Some(operator) = Operator::new("road") else { return };
    // A namespace that was there, with something of somebody else's in it.
    let namespace = &operator.namespace;
    operator.cluster.kubectl(&["create", "namespace", namespace]);
    operator.cluster.kubectl(&["create", "configmap", "somebody-elses", "-n", namespace, "--from-literal=a=1"]);
    eventually("the namespace has what every namespace gets", || {
        let there = operator.objects();
        (there.contains_key("\"ConfigMap\" \"kube-root-ca.crt\"")
            && there.contains_key("\"ServiceAccount\" \"default\""))
        .then_some(())
    });
    let before = operator.objects();
    let existing = format!("sites[0].existing.network={namespace}");

    let plan = operator.run(&["plan", "-o", "json"], &[&existing]).expect(0).json();
    eprintln!("plan: {:?}", counts(&plan));
    let done = operator.up(&[&existing]);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    eprintln!("up: {:?} in {} s: {}", counts(&done), done["seconds"], done["text"]);
    let deployment = operator.get("deployment", "textnlp-api");
    assert_eq!(deployment["status"]["availableReplicas"], 3, "{deployment:#}");

    let again = operator.up(&[&existing]);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let status = operator.run(&["status", "-o", "json"], &[&existing]).expect(0).json();
    assert_eq!(
        (status["ready"].as_bool(), status["drift"].as_array().map(Vec::len)),
        (Some(true), Some(0)),
        "{status:#}"
    );
    let said = operator.run(&["generate", "Once upon a time"], &[&existing]);
    assert!(said.exit == 0 && !said.out.trim().is_empty(), "{said:?}");

    let made = operator.run(&["key", "create", "somebody", "-o", "json"], &[&existing]).expect(0).json();
    let listed = operator.run(&["key", "list"], &[&existing]).expect(0).out;
    assert!(listed.contains("somebody") && listed.contains("first"), "{listed}");
    let public = made["public_id"].as_str().unwrap();
    operator.run(&["key", "revoke", public], &[&existing]).expect(0);
    let lines = operator.run(&["logs", "api", "-n", "3", "-o", "json"], &[&existing]).expect(0).json();
    let lines = lines["lines"].as_array().unwrap();
    assert!(!lines.is_empty(), "of each pod");
    let is_of_server = |line: &Value| line["process"].as_str().is_some_and(|name| name.ends_with("/api"));
    assert!(
        lines.iter().all(|line| is_of_server(line) && line["line"].as_str().unwrap().starts_with('{')),
        "{lines:?}"
    );
    let unknown = operator.run(&["logs", "unknown"], &[&existing]).expect(2);
    assert!(unknown.err.contains("/api"), "the names are listed: {}", unknown.err);
    let analysis = operator.run(&["analyze", "-o", "json"], &[&existing]).expect(0).json();
    assert!(analysis["analysis"]["lines"].as_u64() > Some(0), "{analysis:#}");

    let (asked, failed) = while_asked(&operator, &done, r#"{"prompt":"Once","max_tokens":8}"#, || {
        let rolled = operator.up(&[&existing, "server.api.max_tokens=2048"]);
        let done: Vec<_> = rolled["outcome"]["done"].as_array().unwrap().iter().map(|one| &one["resource"]).collect();
        assert_eq!(done, ["main/server/config", "main/server/deployment"], "the settings, and then the pods");
    });
    eprintln!("rolled while {asked} requests were answered, {failed:?} failed");
    assert!(failed.is_empty(), "of {asked} requests {}: {failed:?}", failed.len());
    assert!(asked > 0);

    let down = operator.run(&["down", "--yes", "-o", "json"], &[&existing]).expect(0).json();
    eprintln!("down: {}", down["plan"]);
    eventually("the pods are gone", || (operator.objects() == before).then_some(()));
    assert_eq!(operator.objects(), before);
}

/// Asks for texts again and again while something is done: how many were answered, and what the others said.
fn while_asked(operator: &Operator, up: &Value, question: &str, work: impl FnOnce()) -> (u32, Vec<String>) {
    let (well, failed): (Vec<_>, Vec<_>) =
        asked_while(operator, up, question, work).into_iter().partition(|answer| answer.is_well());
    (u32::try_from(well.len()).unwrap(), failed.into_iter().map(|answer| answer.said).collect())
}

/// What came of one question.
struct Answer {
    began: Instant,
    ended: Instant,
    /// The text, and last the status.
    said: String,
}

impl Answer {
    fn is_well(&self) -> bool {
        self.said.ends_with(" 200")
    }
}

/// How often each of two clients asks: 20 requests a second in all, however fast the machine starts processes.
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);

/// Asks for texts again and again while something is done.
fn asked_while(operator: &Operator, up: &Value, question: &str, work: impl FnOnce()) -> Vec<Answer> {
    heard_while(operator, up, question, |_| (), work)
}

/// The same with who hears of each answer as soon as it is there.
fn heard_while(
    operator: &Operator,
    up: &Value,
    question: &str,
    hear: impl Fn(&Answer) + Sync,
    work: impl FnOnce(),
) -> Vec<Answer> {
    let over = AtomicBool::new(false);
    let (address, ca, key) = (up["address"].as_str().unwrap(), up["ca_file"].as_str().unwrap(), operator.key());
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..2)
            .map(|number| {
                let (url, key, over, hear) = (format!("{address}/v1/generate"), &key, &over, &hear);
                scope.spawn(move || {
                    // A process for each request would take a good part of the cores, so only one of them has some.
                    let client = (number > 0).then(|| OneByOne::new(ca));
                    let mut answers = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        let began = Instant::now();
                        let said = match &client {
                            Some(client) => client.ask(&url, key, question),
                            None => by_curl(ca, &url, key, question),
                        };
                        let answer = Answer { began, ended: Instant::now(), said };
                        hear(&answer);
                        answers.push(answer);
                        std::thread::sleep(REQUEST_INTERVAL.saturating_sub(began.elapsed()));
                    }
                    answers
                })
            })
            .collect();
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::SeqCst);
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect()
    })
}

/// What curl says, which speaks HTTP/2 on a new connection, with the status at its end.
fn by_curl(ca: &str, url: &str, key: &str, question: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-m", "60", "--cacert", ca, "-w", " %{http_code}", "-H", "content-type: application/json"]);
    let said = curl.args(["-H", &format!("x-api-key: {key}"), "-d", question, url]).output().unwrap();
    let said = textnlp_tests::said(said);
    said.err + &said.out
}

/// A client in this process, which speaks HTTP/1.1 on a new connection for each request.
struct OneByOne {
    runtime: tokio::runtime::Runtime,
    client: textnlp_net::client::Client,
}

impl OneByOne {
    fn new(ca: &str) -> Self {
        let options = ClientOptions {
            trust: TrustRoots::only_file(ca.into()).unwrap(),
            timeout: Some(Duration::from_secs(60)),
            ..ClientOptions::default()
        };
        let client = textnlp_net::client::build(options.builder().unwrap().pool_max_idle_per_host(0)).unwrap();
        Self { runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(), client }
    }

    /// The answer, or why there is none, with the status at its end.
    fn ask(&self, url: &str, key: &str, question: &str) -> String {
        let request = self.client.post(url).header("x-api-key", key).header("content-type", "application/json");
        self.runtime.block_on(async {
            let answer = match request.body(question.to_owned()).send().await {
                Ok(answer) => answer,
                Err(error) => return format!("{error:?} 000"),
            };
            let status = answer.status().as_u16();
            match answer.text().await {
                Ok(text) => format!("{text} {status}"),
                Err(error) => format!("{error:?} 000"),
            }
        })
    }
}

/// Starts `up` and kills it once it has written a record of this event. On a busy machine it may have ended by then: it is undone, and
/// tried again.
fn kill_up(operator: &Operator, event: &str, what: &str) {
    let journal = operator.sandbox.state("pilot").join("journal/main/log");
    let written = || std::fs::read_to_string(&journal).unwrap_or_default();
    let event = format!("\"entry\":\"{event}\"");
    for _ in 0..5 {
        let before = written().matches('\n').count();
        let mut child = operator.command(&["up", "--yes", "--no-gate", "-o", "json"], &[]).spawn().unwrap();
        promptly("it has begun", || {
            let written = written();
            // One that is shorter was begun anew.
            let known = if written.matches('\n').count() < before { 0 } else { before };
            let is_there = written.lines().skip(known).any(|line| line.contains(&event) && line.contains(what));
            (is_there || child.try_wait().unwrap().is_some()).then_some(())
        });
        let _ = child.kill();
        let ended = child.wait().unwrap();
        if ended.signal().is_some() {
            return;
        }
        assert!(ended.success(), "it failed before it was killed: {ended}");
        operator.run(&["down", "--yes"], &[]).expect(0);
    }
    panic!("it had ended each time before it could be killed");
}

#[test]
fn killed_up_is_completed_by_the_next_and_its_namespace_removed() {
    let Some(operator) = Operator::new("killed") else { return };
    // Killed when its first object is there, and once more when its pods are about to begin: the journal has it first.
    kill_up(&operator, "ended", "");
    kill_up(&operator, "begun", "main/server/deployment");
    let done = operator.up(&[]);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0]);
    let keys = operator.cluster.kubectl(&["get", "jobs,deployments,secrets", "-n", &operator.namespace, "-o", "name"]);
    assert_eq!(String::from_utf8(keys.stdout).unwrap().lines().count(), 5, "nothing is there twice");

    operator.run(&["down", "--yes"], &[]).expect(0);
    let gone = operator.cluster.kubectl(&["get", "namespace", &operator.namespace]);
    assert!(!gone.status.success(), "the namespace was ours");
}

#[test]
fn manual_field_change_is_reverted_only_when_taken_by_name() {
    let Some(operator) = Operator::new("taken") else { return };
    operator.up(&[]);
    let kubectl = |args: &[&str]| operator.cluster.kubectl(&[args, &["-n", &operator.namespace]].concat());
    let change = r#"{"spec":{"revisionHistoryLimit":3}}"#;
    assert!(kubectl(&["patch", "deployment", "textnlp-api", "--type=merge", "-p", change]).status.success());
    let refused = operator.run(&["up", "--yes", "--no-gate"], &[]);
    let field = "spec.revisionHistoryLimit";
    assert!(refused.exit != 0 && refused.err.contains(&format!("--take-ownership {field}")), "{refused:?}");
    let kept = || operator.get("deployment", "textnlp-api")["spec"]["revisionHistoryLimit"].clone();
    assert_eq!(kept(), 3, "nothing was forced");
    // A plan that was read and saved says it too.
    let file = operator.sandbox.folder().join("take.plan");
    operator.run(&["plan", "--take-ownership", field, "--out", file.as_str()], &[]).expect(0);
    let mut apply = operator.sandbox.command(&["apply", file.as_str(), "--no-gate"]);
    apply.env("KUBECONFIG", operator.cluster.admin()).env("DATABASE_URL", &operator.url);
    let applied = textnlp_tests::said(apply.output().unwrap());
    assert!(matches!(applied.exit, 0 | 3), "{applied:?}");
    assert_eq!(kept(), 10);
    assert_eq!(counts(&operator.up(&[]))[..4], [0, 0, 0, 0]);
    operator.run(&["down", "--yes"], &[]).expect(0);

    let elsewhere =
        operator.sandbox.run(&["plan", "--env", "development", "--take-ownership", "spec.replicas"]).expect(2);
    assert!(elsewhere.err.contains("applies to Kubernetes objects only"), "{}", elsewhere.err);
}

#[test]
fn external_certificate_is_kept_when_switching_to_our_own_and_back() {
    let Some(operator) = Operator::new("given") else { return };
    let (namespace, files) = (operator.namespace.as_str(), operator.sandbox.folder());
    operator.cluster.kubectl(&["create", "namespace", namespace]);
    let network = format!("sites[0].existing.network={namespace}");
    let given = [network.as_str(), "tls.mode=existing", "tls.existing=site-tls"];
    // Before there is one, nothing is begun; and what cannot be one is told before that.
    let refused = operator.run(&["up", "--yes", "--no-gate"], &given);
    assert!(refused.exit != 0 && refused.err.contains("site-tls"), "{refused:?}");
    assert!(!operator.get("deployment", "textnlp-api")["metadata"].is_object());
    let file = operator.run(&["plan"], &[&network, "tls.mode=existing", "tls.existing=/etc/site.pem"]).expect(2);
    assert!(file.err.contains("is not the name of a Secret"), "{}", file.err);

    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=textnlp -keyout k.pem -out request.pem
        printf 'subjectAltName=IP:127.0.0.1' > names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out c.pem";
    let made = Command::new("sh").current_dir(files).args(["-euc", script]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (certificate, key) = (format!("--cert={}", files.join("c.pem")), format!("--key={}", files.join("k.pem")));
    operator.cluster.kubectl(&["create", "secret", "tls", "site-tls", "-n", namespace, &certificate, &key]);
    let up = |more: &[&str]| {
        let mut command = operator.command(&["up", "--yes", "--no-gate", "-o", "json"], more);
        // Who signed it is trusted by this machine.
        command.env("SSL_CERT_FILE", files.join("ca.pem"));
        textnlp_tests::said(command.output().unwrap()).expect(0).json()
    };
    let done = up(&given);
    assert_eq!(done["ca_file"], Value::Null, "{done:#}");
    assert_eq!(
        done["text"].as_str().map(str::is_empty),
        Some(false),
        "it was asked, and its certificate believed: {done:#}"
    );
    assert_eq!(counts(&up(&given))[..4], [0, 0, 0, 0], "a second up plans nothing");

    let ours = up(&[&network]);
    assert!(ours["ca_file"].is_string() && operator.get("secret", "textnlp-tls")["metadata"].is_object(), "{ours:#}");
    let again = up(&given);
    assert_eq!(again["ca_file"], Value::Null, "{again:#}");
    assert!(!operator.get("secret", "textnlp-tls")["metadata"].is_object());
    operator.run(&["down", "--yes"], &given).expect(0);
    assert!(operator.get("secret", "site-tls")["metadata"].is_object(), "it was never ours");
    operator.cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn exported_chart_installs_with_helm_answers_and_rolls_out() {
    let Some(operator) = Operator::new("chart") else { return };
    let Some(_) = operator.cluster.helm() else { return };
    let (namespace, chart) = (operator.namespace.as_str(), operator.sandbox.folder().join("chart"));
    let export = |args: &[&str]| {
        let mut command = operator.command(&[&["export"], args].concat(), &[]);
        textnlp_tests::said(command.env_remove("KUBECONFIG").output().unwrap())
    };
    let done = export(&["helm", "--out", chart.as_str(), "-o", "json"]).expect(0).json();
    assert_eq!((&done["environment"], &done["site"]), (&Value::from("pilot"), &Value::from("main")), "{done:#}");
    // Again, over itself; never over what is somebody's.
    std::fs::write(chart.join("templates/mine.yaml"), "").unwrap();
    export(&["helm", "--out", chart.as_str()]).expect(0);
    assert!(chart.join("templates/mine.yaml").exists());
    std::fs::remove_file(chart.join("templates/mine.yaml")).unwrap();
    let refused = export(&["kustomize", "--out", operator.sandbox.folder().as_str()]).expect(4);
    assert!(refused.err.contains("no export wrote"), "{}", refused.err);
    let refused = export(&["kustomize", "--out", chart.as_str()]).expect(4);
    assert!(refused.err.contains("for another tool"), "{}", refused.err);
    assert!(export(&["yaml"]).expect(0).out.contains("kind: Deployment"));

    let (files, sets) = operator.chart();
    assert_eq!(sets.len(), 2 * 6, "{sets:?}");
    operator.cluster.kubectl(&["create", "namespace", namespace]);
    operator.cluster.kubectl(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]);
    let helm = |args: &[&str]| {
        let mut helm = operator.cluster.helm().unwrap();
        let said =
            textnlp_tests::said(helm.current_dir(&files).args(args).args(["--namespace", namespace]).output().unwrap());
        assert_eq!(said.exit, 0, "helm {args:?}: {said:?}");
    };
    let mut install = vec!["upgrade", "--install", "textnlp", chart.as_str(), "--wait", "--timeout", "5m"];
    install.extend(sets.iter().map(String::as_str));
    helm(&install);
    let key = std::fs::read_to_string(files.join("api-key")).unwrap();
    let address = operator.cluster.kubelet().forward(namespace, "textnlp-api", operator.sandbox.port);
    let answers = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "60", "--cacert", files.join("tls.crt").as_str(), "-w", " %{http_code}"]);
        curl.args(["-H", &format!("x-api-key: {key}"), "-H", "content-type: application/json"]);
        curl.args(["-d", r#"{"prompt":"Once","max_tokens":8}"#, &format!("https://{address}/v1/generate")]);
        textnlp_tests::said(curl.output().unwrap())
    };
    // The key is written when the database has its schema, beside the pods and not before them.
    eventually("the first key opens", || answers().out.ends_with(" 200").then_some(()));

    let pods = || {
        let out = operator.cluster.kubectl(&["get", "replicasets", "-n", namespace, "-o", "name"]);
        String::from_utf8(out.stdout).unwrap().lines().count()
    };
    assert_eq!(pods(), 1);
    helm(&[install.as_slice(), &["--set", "image=local/textnlp:2"]].concat());
    assert_eq!(pods(), 2, "another image is another set of pods");
    let said = answers();
    assert!(said.out.ends_with(" 200"), "{said:?}");
    helm(&["uninstall", "textnlp", "--wait"]);
    assert!(!operator.get("deployment", "textnlp-api")["metadata"].is_object());
    operator.cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn unsupported_cluster_features_are_reported_all_at_once() {
    let Some(operator) = Operator::new("refused") else { return };
    let mut command = operator.sandbox.command(&["up", "--env", "pilot", "--yes"]);
    let said = textnlp_tests::said(command.env("KUBECONFIG", operator.cluster.admin()).output().unwrap()).expect(2);
    for named in ["no image is set", "the address that clients use is not configured"] {
        assert!(said.err.contains(named), "{named} is not named:\n{}", said.err);
    }
    assert!(!operator.get("namespace", &operator.namespace)["metadata"].is_object(), "nothing was begun");

    let mut unnamed = operator.sets.clone();
    unnamed.retain(|set| !set.contains("cluster.image") && !set.contains("cluster.address"));
    let operator = Operator { sets: unnamed, ..operator };
    let said = operator.run(&["up", "--yes", "--no-gate"], &[]).expect(2);
    assert!(
        said.err.contains("no image is set") && said.err.contains("the address that clients use is not configured"),
        "{}",
        said.err
    );
    let said = operator.run(&["plan"], &["sites[0].account=team-a"]).expect(2);
    assert!(said.err.contains("remove `account` of site main"), "{}", said.err);
    let said = operator.run(&["plan"], &["sites[0].cluster.context=nowhere"]).expect(2);
    assert!(said.err.contains("it has no context `nowhere`"), "{}", said.err);
}
