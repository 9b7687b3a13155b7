//! The gateway in front of gateways: backends that speak TLS, and figures of others.

use std::sync::atomic::Ordering::SeqCst;

use camino::{Utf8Path, Utf8PathBuf};
use http_body_util::BodyExt;
use hyper::Request;
use rcgen::{CertifiedKey, KeyPair};
use textnlp_gateway as gateway;
use tokio::net::{UnixListener, UnixStream};

use crate::backend::Backend;
use crate::site::{Site, eventually};

fn certified(name: &str) -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed([name.to_owned()]).unwrap()
}

/// By renaming, as whoever issues certificates does.
fn publish(certificate: &CertifiedKey<KeyPair>, file: &Utf8Path) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, certificate.cert.pem()).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

struct Front {
    site: Site,
    folder: Utf8PathBuf,
}

impl Front {
    /// `backends`: lines of the list; `more`: further lines of the configuration.
    async fn new(folder: tempfile::TempDir, backends: &str, more: &str) -> Front {
        Front::looking(folder, backends, more, "interval_ms: 20, timeout_ms: 300").await
    }

    async fn looking(folder: tempfile::TempDir, backends: &str, more: &str, health: &str) -> Front {
        let path = Utf8Path::from_path(folder.path()).unwrap().to_owned();
        let text = format!(
            "gateway:\n  listen: \"127.0.0.1:0\"\n  metrics_listen: \"127.0.0.1:0\"\n  admin_listen: \"unix:{path}/admin.sock\"\n  \
             health: {{ {health} }}\n{more}  backends:\n{backends}"
        );
        std::fs::write(path.join("gateway.yaml"), text).unwrap();
        let gateway = gateway::start(&path.join("gateway.yaml")).await.unwrap();
        Front { site: Site { folder, gateway }, folder: path }
    }
}

fn line(name: &str, folder: &Utf8Path, certified_as: &str) -> String {
    format!(
        "    - {{ name: {name}, listen: \"unix:{folder}/{name}.sock\", tls: {{ ca_file: {folder}/{name}-ca.pem, name: {certified_as} }} }}\n"
    )
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().to_owned();
    (folder, path)
}

#[tokio::test]
async fn requests_and_streams_reach_tls_backends_over_unix_sockets() {
    let (folder, path) = folder();
    let certificate = certified("localhost");
    publish(&certificate, &path.join("a-ca.pem"));
    let a = Backend::secure("a", &path.join("a.sock"), &certificate);
    let front = Front::new(folder, &line("a", &path, "localhost"), "").await;
    front.site.until("a", "healthy").await;
    assert_eq!(front.site.get("/x").await, (200, "a GET /x 0".to_owned()));
    let body = "x".repeat(300_000);
    assert_eq!(front.site.post("/y", &body).await, (200, "a POST /y 300000".to_owned()));
    assert_eq!(a.requests(), 2);

    // Each event arrives by itself, before the next one is written.
    let mut events = front.site.open(Request::get("/events"), "").await.into_body();
    for at in 0..3 {
        a.state.events.add(1);
        let frame = events.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, format!("data: {at}\n\n"));
    }
    assert!(events.frame().await.is_none());

    // A client that leaves is noticed behind the front.
    let events = front.site.open(Request::get("/events"), "").await;
    drop(events);
    eventually(async || a.state.left.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn only_a_backend_with_the_expected_ca_and_name_is_trusted() {
    let (folder, path) = folder();
    let (right, wrong) = (certified("localhost"), certified("localhost"));
    for name in ["stranger", "misnamed", "right"] {
        publish(&right, &path.join(format!("{name}-ca.pem")));
    }
    let stranger = Backend::secure("stranger", &path.join("stranger.sock"), &wrong);
    let misnamed = Backend::secure("misnamed", &path.join("misnamed.sock"), &right);
    let _plain = Backend::unix("plain", &path.join("plain.sock"));
    publish(&right, &path.join("plain-ca.pem"));
    let list = line("stranger", &path, "localhost")
        + &line("misnamed", &path, "other.example")
        + &line("plain", &path, "localhost");
    let front = Front::new(folder, &list, "").await;
    for name in ["stranger", "misnamed", "plain"] {
        front.site.until(name, "unhealthy").await;
    }
    assert_eq!(front.site.get("/x").await.0, 503);
    assert_eq!((stranger.requests(), misnamed.requests()), (0, 0), "not even an unhealthy one is told anything");
    let (_, status) = front.site.admin("GET", "/status", "").await;
    let why = status["backends"][0]["last_error"].as_str().unwrap();
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn backend_ca_may_be_published_later_and_replaced() {
    let (folder, path) = folder();
    let first = certified("localhost");
    let a = Backend::secure("a", &path.join("a.sock"), &first);
    let front = Front::new(folder, &line("a", &path, "localhost"), "").await;
    front.site.until("a", "unhealthy").await;
    let (_, status) = front.site.admin("GET", "/status", "").await;
    assert!(status["backends"][0]["last_error"].as_str().unwrap().contains("a-ca.pem"), "{status}");
    publish(&first, &front.folder.join("a-ca.pem"));
    front.site.until("a", "healthy").await;

    // The site is lost and comes back with an authority of its own.
    a.kill().await;
    front.site.until("a", "unhealthy").await;
    let second = certified("localhost");
    let a = Backend::secure("a", &path.join("a.sock"), &second);
    publish(&second, &front.folder.join("a-ca.pem"));
    front.site.until("a", "healthy").await;
    assert_eq!(front.site.get("/x").await.0, 200);
    assert_eq!(a.requests(), 1);
}

#[tokio::test]
async fn unresponsive_socket_does_not_delay_other_backends() {
    let (folder, path) = folder();
    let certificate = certified("localhost");
    publish(&certificate, &path.join("a-ca.pem"));
    publish(&certificate, &path.join("silent-ca.pem"));
    let _a = Backend::secure("a", &path.join("a.sock"), &certificate);
    // It takes connections and says nothing, as a border does while nothing passes it.
    let silent = UnixListener::bind(path.join("silent.sock")).unwrap();
    let holding = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            all.push(stream);
        }
    });
    let list = line("silent", &path, "localhost") + &line("a", &path, "localhost");
    let front = Front::new(folder, &list, "").await;
    front.site.until("a", "healthy").await;
    front.site.until("silent", "unhealthy").await;
    for _ in 0..10 {
        assert_eq!(front.site.get("/x").await.0, 200);
    }
    holding.abort();
}

/// A flood fills the queue of the only replica: requests wait, and the replica stays in rotation.
#[tokio::test]
async fn requests_wait_while_the_queue_of_their_backend_is_full() {
    let (folder, path) = folder();
    let socket = path.join("a.sock");
    let a = Backend::unix("a", &socket);
    let backend = format!("    - {{ name: a, listen: \"{}\" }}\n", a.listen);
    // A check takes longer than a connection may take that is in no queue.
    let health = "interval_ms: 50, timeout_ms: 3000, unhealthy_after: 3";
    let front = Front::looking(folder, &backend, "", health).await;
    front.site.until("a", "healthy").await;
    let paused = a.state.accepting.lock().await;
    let mut others = Vec::new();
    while let Ok(stream) = UnixStream::connect(&socket).await {
        others.push(stream);
    }
    let checked = async {
        eventually(async || {
            let (_, status) = front.site.admin("GET", "/status", "").await;
            status["backends"][0]["last_error"].as_str().is_some_and(|why| why.contains("no answer"))
        })
        .await;
        front.site.until("a", "healthy").await;
        drop((others, paused));
    };
    let (answer, ()) = tokio::join!(front.site.get("/x"), checked);
    assert_eq!(answer.0, 200, "{}", answer.1);
}

#[tokio::test]
async fn waiting_requests_are_abandoned_with_their_backend_if_configured() {
    for gives_up in [true, false] {
        let (folder, path) = folder();
        let a = Backend::unix("a", &path.join("a.sock"));
        let backend = format!("    - {{ name: a, listen: \"{}\" }}\n", a.listen);
        let front = Front::looking(folder, &backend, "", &format!("interval_ms: 20, gives_up: {gives_up}")).await;
        front.site.until("a", "healthy").await;
        let told = async {
            eventually(async || a.state.waiting.load(SeqCst) == 1).await;
            a.state.sick.store(true, SeqCst);
            front.site.until("a", "unhealthy").await;
            if !gives_up {
                a.state.go.notify_one();
            }
        };
        let (answer, ()) = tokio::join!(front.site.post("/hold", "x"), told);
        if gives_up {
            assert_eq!(answer.0, 502, "it may have been done: {}", answer.1);
            eventually(async || a.state.left.load(SeqCst) == 1).await;
        } else {
            assert_eq!(answer, (200, "a".to_owned()), "a busy replica finishes what it has");
        }
    }
}

#[tokio::test]
async fn external_metrics_are_merged_with_those_of_the_backends() {
    let (folder, path) = folder();
    let _watch = Backend::unix("watch", &path.join("watch.sock"));
    let a = Backend::unix("a", &path.join("a.sock"));
    let backend = format!("    - {{ name: a, listen: \"{0}\", metrics_listen: \"{0}\" }}\n", a.listen);
    let more = format!("  metrics_from: [ \"unix:{path}/watch.sock\", \"unix:{path}/gone.sock\" ]\n");
    let front = Front::new(folder, &backend, &more).await;
    front.site.until("a", "healthy").await;
    let text = front.site.metrics().await;
    for line in [
        "textnlp_requests_total{replica=\"a\",route=\"/a\"} 7",
        "textnlp_requests_total{replica=\"watch\",route=\"/a\"} 7",
        "textnlp_gateway_backend_metrics_gathered{replica=\"watch\"} 1",
        "textnlp_gateway_backend_metrics_gathered{replica=\"gone\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
    }
    assert_eq!(text.matches("# TYPE textnlp_requests counter").count(), 1, "{text}");
}

#[test]
fn backend_configuration_errors_are_named_together() {
    let (_folder, path) = folder();
    let file = path.join("gateway.yaml");
    let text = "gateway:\n  listen: \"127.0.0.1:0\"\n  metrics_from: [ \"unix:/r/a.sock\", \"unix:/s/a.sock\", \"unix:/r/b.sock\" ]\n  \
                backends: [ { name: b, listen: \"unix:/b\", tls: { ca_file: ca.pem, name: \"a b\" } } ]\n";
    std::fs::write(&file, text).unwrap();
    let error = gateway::Config::read(&file).unwrap_err().to_string();
    for sentence in [
        "backend `b`: tls.ca_file `ca.pem` is not an absolute path",
        "backend `b`: tls.name `a b` is neither a DNS name nor an address",
        "metrics_from unix:/s/a.sock: `a` is duplicated",
        "metrics_from unix:/r/b.sock: `b` is duplicated",
    ] {
        assert!(error.contains(sentence), "{sentence}: {error}");
    }
    std::fs::write(&file, text.replace("ca_file: ca.pem, ", "")).unwrap();
    assert!(gateway::Config::read(&file).unwrap_err().to_string().contains("missing field `ca_file`"));
}
