//! Third-party servers for tests, installed once by their package managers and pinned by version.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A server that stops with the test.
pub struct Server {
    child: Child,
    /// Its address: `http://127.0.0.1:PORT`.
    pub address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a program and waits for its listen address: the word after `says` in its output.
    pub fn start(command: &mut Command, says: &str) -> Self {
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut server = Self { child: started.expect("start the server"), address: String::new() };
        let pipes: [Box<dyn Read + Send>; 2] = [
            Box::new(server.child.stdout.take().expect("its output is a pipe")),
            Box::new(server.child.stderr.take().expect("its errors are a pipe")),
        ];
        let (tell, told) = std::sync::mpsc::channel();
        for pipe in pipes {
            let tell = tell.clone();
            // Reads to the end, so that the server never blocks on its output.
            std::thread::spawn(move || {
                BufReader::new(pipe).lines().map_while(Result::ok).for_each(|line| drop(tell.send(line)));
            });
        }
        drop(tell);
        let mut seen = String::new();
        while let Ok(line) = told.recv() {
            if let Some((_, rest)) = line.split_once(says) {
                let address = rest.split_whitespace().next().unwrap_or_default().trim_end_matches('/').to_owned();
                server.address = format!("http://{address}");
                return server;
            }
            seen += &line;
            seen.push('\n');
        }
        panic!("it never said `{says}`:\n{seen}");
    }
}

/// An S3 server (moto), reliable for conditional writes and listings, and for little else. `tests` is the folder of
/// this crate.
pub fn moto(tests: &str) -> Option<Server> {
    let python = installed(tests, "python.sh", "moto[server,s3]==5.2.5")?;
    let mut command = Command::new(python);
    command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]);
    Some(Server::start(&mut command, "Running on http://"))
}

/// An Azure Blob server (Azurite), with its data in this folder.
pub fn azurite(tests: &str, folder: &std::path::Path) -> Option<Server> {
    let modules = installed(tests, "node.sh", "azurite")?;
    let mut command = Command::new(format!("{modules}/.bin/node"));
    command.arg(format!("{modules}/azurite/dist/src/blob/main.js"));
    command.args([
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        "0",
        "--disableTelemetry",
        "--silent",
        "--skipApiVersionCheck",
    ]);
    command.arg("--location").arg(folder);
    Some(Server::start(&mut command, "successfully listens on http://"))
}

/// Makes a container in [`azurite`].
pub fn blob_container(tests: &str, server: &Server, name: &str) {
    let script = format!("{tests}/blob_container.py");
    let made = Command::new("python3").args([&script, &server.address, name]).output().expect("start Python");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// An OpenID Connect provider by a certified implementation, oidc-provider: `oidc.mjs` has its clients.
pub fn oidc(tests: &str) -> Option<Server> {
    oidc_at(tests, "127.0.0.1")
}

/// The same at another loopback address.
pub fn oidc_at(tests: &str, address: &str) -> Option<Server> {
    let modules = installed(tests, "node.sh", "oidc")?;
    let mut command = Command::new(format!("{modules}/.bin/node"));
    command.arg(format!("{tests}/oidc.mjs")).args([modules.as_str(), address]);
    Some(Server::start(&mut command, "listening on http://"))
}

/// A fake Google Cloud Storage with both of its protocols: existing emulators ignore preconditions in the protocol of
/// this project's client. `lax` ignores them too.
pub fn gcs(tests: &str, lax: bool) -> Option<Server> {
    // Any Python works; this one is installed for the check below anyway.
    let mut command = Command::new(installed(tests, "python.sh", GCS_CLIENT)?);
    command.arg(format!("{tests}/gcs.py")).args(lax.then_some("--lax"));
    Some(Server::start(&mut command, "listening on http://"))
}

/// Checks the fake with Google's own client: whether it enforces generation preconditions, and which ones it does not.
pub fn checked_by_google(tests: &str, server: &Server) -> Option<(bool, String)> {
    let mut command = Command::new(installed(tests, "python.sh", GCS_CLIENT)?);
    let out = command.arg(format!("{tests}/gcs_check.py")).arg(&server.address).output().expect("start Python");
    let text = [out.stdout, out.stderr].concat();
    Some((out.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// A mail server that stores messages in this folder; with a certificate and its key it uses TLS.
pub fn mail(tests: &str, folder: &std::path::Path, tls: Option<[&std::path::Path; 2]>) -> Option<Server> {
    mail_offering("PLAIN LOGIN", tests, folder, tls)
}

/// The same, with these authentication mechanisms only.
pub fn mail_offering(
    logins: &str,
    tests: &str,
    folder: &std::path::Path,
    tls: Option<[&std::path::Path; 2]>,
) -> Option<Server> {
    let mut command = Command::new(installed(tests, "python.sh", "aiosmtpd==1.4.6")?);
    command.arg(format!("{tests}/mail.py")).arg(folder).args(tls.into_iter().flatten()).env("MAIL_LOGINS", logins);
    Some(Server::start(&mut command, "listening on http://"))
}

/// Checks a token with AWS's and Google's own libraries; `what` is a command of `kube_token.py`.
pub fn token_oracle(tests: &str, what: &str, asked: &serde_json::Value) -> Option<serde_json::Value> {
    use std::io::Write;
    let packages = "botocore==1.44.5 google-auth==2.62.2 cryptography==46.0.3";
    let mut command = Command::new(installed(tests, "python.sh", packages)?);
    command.arg(format!("{tests}/kube_token.py")).arg(what).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("start Python");
    write!(child.stdin.take().expect("its input is a pipe"), "{asked}").expect("ask it");
    let out = child.wait_with_output().expect("it ends");
    assert!(out.status.success(), "kube_token.py {what} fails");
    Some(serde_json::from_slice(&out.stdout).expect("JSON"))
}

const GCS_CLIENT: &str = "google-cloud-storage==3.17.1";

/// The path of an installed package. `None` with a message if it cannot be installed; a failure if the tests require
/// all tools.
#[allow(clippy::print_stderr)]
fn installed(tests: &str, script: &str, package: &str) -> Option<String> {
    let out = Command::new("sh").arg(format!("{tests}/{script}")).arg(package).output().expect("start sh");
    if out.status.success() {
        return Some(String::from_utf8_lossy(&out.stdout).trim().to_owned());
    }
    let why = format!("{package} cannot be installed: {}", String::from_utf8_lossy(&out.stderr).trim());
    assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{why}");
    eprintln!("LEFT OUT: {why}");
    None
}
