//! What an operator does with it.

use std::sync::atomic::Ordering::SeqCst;

use http_body_util::BodyExt;
use hyper::Request;
use textnlp_gateway::{self as gateway, Error};
use textnlp_process::OPENMETRICS;
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::site::{Site, eventually};

#[tokio::test]
async fn metrics_of_all_backends_are_one_exposition() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    site.get("/x").await;
    site.get("/x").await;
    let text = site.metrics().await;
    for line in [
        "textnlp_requests_total{replica=\"a\",route=\"/a\"} 7",
        "textnlp_requests_total{replica=\"b\",route=\"/a\"} 7",
        "textnlp_up{replica=\"a\"} 1",
        "textnlp_gateway_requests_total{status=\"200\"} 2",
        "textnlp_gateway_backend_healthy{replica=\"a\"} 1",
        "textnlp_gateway_backend_requests_total{replica=\"b\"} 1",
        "textnlp_gateway_backend_metrics_gathered{replica=\"b\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let mut types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let all = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), all, "a family is there twice");
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);

    // Older readers get each family with its type and help, too.
    let older = site.scrape(Request::get("/metrics").header("accept", "text/plain;version=0.0.4")).await;
    assert_eq!(older.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let older = String::from_utf8(older.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    for line in [
        "# TYPE textnlp_requests_total counter",
        "# HELP textnlp_requests_total Requests.",
        "textnlp_requests_total{replica=\"a\",route=\"/a\"} 7",
    ] {
        assert!(older.lines().any(|found| found == line), "{line} is not in\n{older}");
    }
    assert_eq!(older.matches("# TYPE ").count(), all);
    assert!(!older.contains("# EOF"));
    let head = site.scrape(Request::head("/metrics")).await;
    assert_eq!((head.status().as_u16(), head.headers()["content-type"].to_str().unwrap()), (200, OPENMETRICS));
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(site.scrape(Request::post("/metrics")).await.status(), 405);

    b.kill().await;
    site.until("b", "unhealthy").await;
    let text = site.metrics().await;
    assert!(text.contains("textnlp_up{replica=\"a\"} 1") && !text.contains("textnlp_up{replica=\"b\"}"));
    assert!(
        text.contains("backend_metrics_gathered{replica=\"b\"} 0") && text.contains("backend_healthy{replica=\"b\"} 0")
    );
}

#[tokio::test]
async fn weights_change_at_once_and_a_reload_restores_those_of_the_file() {
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let site = Site::new(&[&a, &b]).await;
    let (status, shown) = site.admin("POST", "/weights", "{\"a\": 0}").await;
    assert_eq!((status, shown["backends"][0]["weight"].as_u64()), (200, Some(0)));
    for _ in 0..4 {
        site.get("/x").await;
    }
    assert_eq!((a.requests(), b.requests()), (0, 4));

    for body in ["{\"nobody\": 1}", "{\"a\": -1}", "{\"a\": 10001}", "nonsense"] {
        let (status, answer) = site.admin("POST", "/weights", body).await;
        assert_eq!(status, 400, "{body}");
        assert!(answer["error"]["hint"].is_string());
    }
    let reloaded = site.gateway.reload().await.unwrap();
    assert_eq!(reloaded.reweighted, ["a"]);
    for _ in 0..4 {
        site.get("/x").await;
    }
    assert_eq!((a.requests(), b.requests()), (2, 6));
    assert_eq!(site.admin("GET", "/ready", "").await.0, 200);
    assert_eq!(site.admin("GET", "/nothing", "").await.0, 404);
}

#[tokio::test]
async fn invalid_gateway_configuration_changes_nothing_and_lists_every_error() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    site.write(&[&a, &a], "  timeout_seconds: 0\n  max_connections: 0\n");
    let Err(Error::Config(invalid)) = site.gateway.reload().await else { panic!("it was taken") };
    assert_eq!(invalid.problems.len(), 3, "{invalid}");
    let text = invalid.to_string();
    for part in ["backend `a` is duplicated", "timeout_seconds 0 is not between", "max_connections 0"] {
        assert!(text.contains(part), "{text}");
    }
    for more in ["  unknown: 1\n", "  timeout_seconds: 5\n  timeout_seconds: 6\n", "  tls: { certificate_file: x }\n"] {
        site.write(&[&a], more);
        assert!(site.admin("POST", "/reload", "").await.0 == 400, "{more}");
    }
    assert_eq!(site.get("/x").await.0, 200);
}

#[tokio::test]
async fn listen_address_in_use_is_named_with_a_hint() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let file = site.path("second.yaml");
    let port = site.address().port();
    std::fs::write(&file, format!("gateway:\n  listen: \"127.0.0.1:{port}\"\n")).unwrap();
    let error = gateway::start(&file).await.unwrap_err();
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.hint().unwrap().contains(&format!("sport = :{port}")));

    std::fs::write(&file, format!("gateway:\n  listen: \"unix:{}\"\n", site.path("admin.sock"))).unwrap();
    let error = gateway::start(&file).await.unwrap_err();
    assert!(error.hint().unwrap().contains("another process answers"), "{error}");
    assert_eq!(site.admin("GET", "/status", "").await.0, 200, "the living socket was taken away");

    // One that a killed process left is nobody's.
    let dead = site.path("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    std::fs::write(&file, format!("gateway:\n  listen: \"unix:{dead}\"\n")).unwrap();
    gateway::start(&file).await.unwrap();
}

#[tokio::test]
async fn gateway_drain_accepts_no_connections_and_finishes_requests() {
    let a = Backend::tcp("a").await;
    let Site { folder: _folder, gateway } = {
        let site = Site::new(&[&a]).await;
        // An idle client must not hold the drain up.
        site.get("/x").await;
        site
    };
    let gateway::SocketAddress::Tcp(address) = gateway.address().clone() else { panic!() };
    let idle = TcpStream::connect(address).await.unwrap();
    let held = tokio::spawn(async move {
        let request = hyper::Request::post("/hold").header("host", "x");
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from("{}"))).unwrap();
        let response = crate::site::exchange(TcpStream::connect(address).await.unwrap(), request).await;
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes()
    });
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    let draining = tokio::spawn(gateway.drain());
    eventually(async || TcpStream::connect(address).await.is_err()).await;
    assert!(!draining.is_finished());
    a.state.go.notify_one();
    assert_eq!(held.await.unwrap(), "a");
    tokio::time::timeout(crate::site::SOON, draining).await.unwrap().unwrap();
    drop(idle);
}

#[tokio::test]
async fn request_that_outlasts_the_drain_timeout_is_cut() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  drain_seconds: 0\n").await;
    let address = site.address();
    let held = tokio::spawn(async move {
        let mut client = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut text = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut text).await;
        text
    });
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    let Site { folder: _folder, gateway } = site;
    tokio::time::timeout(crate::site::SOON, gateway.drain()).await.unwrap();
    // Cut, or told so: which of the two depends on which connection ends first.
    let text = held.await.unwrap();
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&text));
    eventually(async || a.state.left.load(SeqCst) == 1).await;
}

/// The other half of the test below: a process of its own, so that it can be sent signals.
#[tokio::test]
#[ignore = "started by sighup_reloads_and_sigterm_drains_the_gateway"]
async fn gateway_child_process() {
    let Ok(file) = std::env::var("GATEWAY_FILE") else { return };
    gateway::run(camino::Utf8Path::new(&file)).await.unwrap();
}

#[tokio::test]
async fn sighup_reloads_and_sigterm_drains_the_gateway() {
    use rustix::process::{Pid, Signal, kill_process};
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| camino::Utf8Path::from_path(folder.path()).unwrap().join(name);
    let (a, b) = (Backend::tcp("a").await, Backend::tcp("b").await);
    let write = |backend: &Backend| {
        let (front, admin) = (path("front.sock"), path("admin.sock"));
        let text = format!(
            "gateway:\n  listen: \"unix:{front}\"\n  admin_listen: \"unix:{admin}\"\n  health: {{ interval_ms: 20 }}\n  backends: [ {{ name: {}, listen: \"{}\" }} ]\n",
            backend.name, backend.listen
        );
        std::fs::write(path("gateway.yaml"), text).unwrap();
    };
    let ask = async |target: &'static str| {
        let stream = tokio::net::UnixStream::connect(path("front.sock")).await.ok()?;
        let request = hyper::Request::post(target).header("host", "x");
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from("{}"))).unwrap();
        let answer = crate::site::exchange(stream, request).await;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        Some(String::from_utf8(body.to_vec()).unwrap())
    };
    write(&a);
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "operating::gateway_child_process", "--ignored"])
        .env("GATEWAY_FILE", path("gateway.yaml"))
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    eventually(async || ask("/x").await.is_some_and(|body| body.starts_with("a "))).await;

    write(&b);
    kill_process(pid, Signal::HUP).unwrap();
    eventually(async || ask("/x").await.is_some_and(|body| body.starts_with("b "))).await;

    let held = async { ask("/hold").await };
    let stop = async {
        eventually(async || b.state.waiting.load(SeqCst) == 1).await;
        kill_process(pid, Signal::TERM).unwrap();
        eventually(async || !path("front.sock").exists()).await;
        b.state.go.notify_one();
    };
    let (answer, ()) = tokio::join!(held, stop);
    assert_eq!(answer.as_deref(), Some("b"));
    let ended = tokio::time::timeout(crate::site::SOON, child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(!path("admin.sock").exists());
}
