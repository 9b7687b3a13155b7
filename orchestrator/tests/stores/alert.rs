//! Messages to people: to a webhook on this machine, and by mail to a server that somebody else wrote.

use std::path::Path;

use textnlp_net::client::ProxySettings;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::alert::{AlertError, Destination, Sender};
use textnlp_provider::alert::{Alert, AlertState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");

fn alert() -> Alert {
    Alert {
        id: "here-disk-1".to_owned(),
        environment: "staging".to_owned(),
        site: "here".to_owned(),
        at: "2026-11-20T12:00:00Z".parse().unwrap(),
        state: AlertState::Raised,
        name: "disk".to_owned(),
        about: "state \u{1f980}\r\nBcc: eve@example.com".to_owned(),
        says: "the disk is 95 % full\n.\nQUIT\n\u{e4}\u{f6}\u{fc}".to_owned(),
    }
}

/// Trusts this authority, or nobody.
fn sender(authority: Option<&rcgen::Certificate>) -> Sender {
    let trust = match authority {
        Some(authority) => TrustRoots::only_pem(authority.pem().as_bytes(), "test").unwrap(),
        None => TrustRoots::none(),
    };
    Sender::new(trust, ProxySettings::default()).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

/// Answers every request with this status, and gives back what the first one was.
async fn answers(status: &'static str) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/hook?token=hunter2", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        // A body ends with its last brace.
        while !seen.ends_with(b"}") {
            let mut part = [0; 4096];
            let read = stream.read(&mut part).await.unwrap();
            assert!(read > 0);
            seen.extend_from_slice(&part[..read]);
        }
        let answer = format!(
            "HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    (address, task)
}

#[test]
fn webhook_receives_a_json_document_and_errors_hide_secrets() {
    run(async {
        let (address, task) = answers("204 No Content").await;
        sender(None).send(&Destination::parse(&address).unwrap(), &alert()).await.unwrap();
        let seen = task.await.unwrap();
        assert!(seen.starts_with("POST /hook?token=hunter2 HTTP/1.1"), "{seen}");
        assert!(seen.to_lowercase().contains("idempotency-key: here-disk-1"), "{seen}");
        let body: serde_json::Value = serde_json::from_str(seen.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&body["state"], &body["name"], &body["format"]), (&"raised".into(), &"disk".into(), &1.into()));
        assert!(body["text"].as_str().unwrap().starts_with("[staging/here] raised: disk state"), "{body:#}");
        // A redirect is not followed: whoever is there was never named.
        for status in ["500 Oh", "307 Elsewhere", "404 Gone"] {
            let (address, task) = answers(status).await;
            let error = sender(None).send(&Destination::parse(&address).unwrap(), &alert()).await.unwrap_err();
            assert!(matches!(error, AlertError::Refused { .. }) && error.to_string().contains(&status[..3]), "{error}");
            task.await.unwrap();
        }
        let gone = Destination::parse("http://127.0.0.1:1/hook?token=hunter2").unwrap();
        let error = sender(None).send(&gone, &alert()).await.unwrap_err();
        assert!(!format!("{error:?} {error} {gone} {gone:?}").contains("hunter2"), "{error:?}");
    });
}

/// A server's certificate, which vouches for itself.
fn certificate(folder: &Path) -> rcgen::Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert
}

#[test]
fn mail_uses_verified_tls_and_login_and_escapes_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificate(folder.path());
    let tls = [folder.path().join("cert.pem"), folder.path().join("key.pem")];
    let Some(server) = crate::servers::mail(TESTS, folder.path(), Some([&tls[0], &tls[1]])) else { return };
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let to = |login: &str, host: &str| {
        let text = format!("smtps://{login}@{host}:{port}?from=deploy@example.com&to=ada@example.com,ops@example.com");
        Destination::parse(&text).unwrap()
    };
    let says = |login: &str, host: &str, trusts: bool| {
        let sender = sender(trusts.then_some(&authority));
        run(sender.send(&to(login, host), &alert())).map(drop).map_err(|error| error.to_string())
    };
    const RIGHT: &str = "ada:hunter2%20%25";
    let refused = |result: Result<(), String>, because: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(because) && !error.contains("hunter"), "{error}");
    };
    refused(says(RIGHT, "localhost", false), "certificate");
    refused(says(RIGHT, "127.0.0.1", true), "certificate");
    refused(says("ada:hunter3", "localhost", true), "AUTH PLAIN: it answers `535");
    assert!(!folder.path().join("mail-1").exists());
    says(RIGHT, "localhost", true).unwrap();
    let mail = std::fs::read_to_string(folder.path().join("mail-1")).unwrap();
    let (envelope, content) = mail.split_once('\n').unwrap();
    assert_eq!(envelope.trim(), "deploy@example.com -> ada@example.com,ops@example.com");
    assert!(!content.contains("\nBcc:"), "{content}");
    assert!(content.contains("Subject: [staging/here] raised: disk state ???Bcc: eve@example.com"), "{content}");
    assert!(content.contains("Date: Fri, 20 Nov 2026 12:00:00"), "{content}");
    // The body is whole: neither the dot nor the words behind it ended it.
    use base64::Engine;
    let body: String = content.replace('\r', "").split_once("\n\n").unwrap().1.split_whitespace().collect();
    let text = base64::prelude::BASE64_STANDARD.decode(body).unwrap();
    assert!(String::from_utf8(text).unwrap().starts_with("the disk is 95 % full\n.\nQUIT\n\u{e4}\u{f6}\u{fc}\n"));
}

#[test]
fn mail_server_offering_only_login_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    let authority = certificate(folder.path());
    let tls = [folder.path().join("cert.pem"), folder.path().join("key.pem")];
    let Some(server) = crate::servers::mail_offering("LOGIN", TESTS, folder.path(), Some([&tls[0], &tls[1]])) else {
        return;
    };
    let port = server.address.rsplit(':').next().unwrap();
    let send = |password: &str, more: &str| {
        let to = format!("smtps://ada:{password}@localhost:{port}?from=deploy@example.com&to=ops@example.com{more}");
        let sent = run(sender(Some(&authority)).send(&Destination::parse(&to).unwrap(), &alert()));
        sent.map(drop).map_err(|error| error.to_string())
    };
    assert!(send("hunter3", "").unwrap_err().contains("AUTH LOGIN: it answers `535"));
    assert!(send("hunter2%20%25", "&auth=plain").unwrap_err().contains("it offers AUTH LOGIN, and not PLAIN"));
    send("hunter2%20%25", "").unwrap();
    let mail = std::fs::read_to_string(folder.path().join("mail-1")).unwrap();
    assert!(mail.starts_with("deploy@example.com -> ops@example.com"), "{mail}");
}
