//! Credentials for the API server, fetched with a timeout and never shown: the output of a kubeconfig's exec plugin
//! (`users[].user.exec`), and tokens of a cluster that is a resource of the deployment.
//!
//! Shapes: client authentication, <https://kubernetes.io/docs/reference/config-api/client-authentication.v1/>.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use http::HeaderValue;
use kube::config::{AuthInfo, ExecConfig};
use serde::Deserialize;
use serde_json::json;
use textnlp_provider::connect::{Bearer, TokenSource};
use textnlp_provider::{Error, ErrorKind, Result, error_chain, finished};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// The timeout of the exec plugin. It may call its cloud; it cannot prompt a user.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The longest excerpt of its stderr in an error, in bytes.
const SHOWN: usize = 500;
/// A credential is renewed this long before it expires.
const AHEAD: Duration = Duration::from_secs(60);

/// The timeout for a token: the call that waits for it has 10 s in total.
const TOKEN_DEADLINE: Duration = Duration::from_secs(4);

/// A trimmed token file is read again after this time, as `kubectl` does.
const TOKEN_FILE_FOR: Duration = Duration::from_secs(60);

/// A failed source is not called again within this time; concurrent callers get the same error.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// The shortest time a token is used, whatever its expiry.
const AT_LEAST: Duration = Duration::from_secs(5);

/// The tokens of one endpoint. No `Debug`, because they are secrets.
pub(crate) struct Tokens {
    url: String,
    source: Arc<dyn TokenSource>,
    held: Mutex<CachedToken>,
}

#[derive(Default)]
struct CachedToken {
    token: Option<(HeaderValue, SystemTime)>,
    /// The last failure, for callers that waited for the same attempt.
    failed: Option<(Instant, String, Option<String>)>,
}

impl Tokens {
    pub(crate) fn new(url: &str, source: Arc<dyn TokenSource>) -> Self {
        Self { url: url.to_owned(), source, held: Mutex::default() }
    }

    /// The `Authorization` header; `refused` is the header that the API server rejected before.
    pub(crate) async fn header(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue> {
        let failed = || Error::new(ErrorKind::Unavailable, "get a token for", self.url.clone());
        // Concurrent callers wait for the same token.
        let mut held = self.held.lock().await;
        let is_good = |(header, until): &&(HeaderValue, SystemTime)| {
            SystemTime::now() < *until && refused.is_none_or(|refused| refused != header)
        };
        if let Some((header, _)) = held.token.as_ref().filter(is_good) {
            return Ok(header.clone());
        }
        if let Some((_, why, hint)) = held.failed.as_ref().filter(|(at, ..)| at.elapsed() < FAILED_FOR) {
            return Err(Error { hint: hint.clone(), ..failed().because(why.clone()) });
        }
        let (why, hint) = match tokio::time::timeout(TOKEN_DEADLINE, self.source.token()).await {
            Ok(Ok(bearer)) => return held.take(bearer).ok_or_else(|| failed().because("the answer is not a token")),
            Ok(Err(error)) => (error_chain(&error), error.hint),
            Err(_) => (format!("it did not arrive within {TOKEN_DEADLINE:?}"), None),
        };
        held.failed = Some((Instant::now(), why.clone(), hint.clone()));
        Err(Error { hint, ..failed().because(why) })
    }
}

impl CachedToken {
    /// `None` if it cannot be a header.
    fn take(&mut self, bearer: Bearer) -> Option<HeaderValue> {
        // The parser's error would quote its input.
        let mut header = HeaderValue::try_from(format!("Bearer {}", bearer.token.expose_text()?)).ok()?;
        header.set_sensitive(true);
        // A token that expires at once, perhaps because of a wrong clock, is used briefly. If the API server rejects
        // it, it is renewed.
        let until = bearer.ends.checked_sub(AHEAD).unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::now() + AT_LEAST);
        self.failed = None;
        Some(self.token.insert((header, until)).0.clone())
    }
}

#[derive(Deserialize)]
struct PluginOutput {
    status: Option<Status>,
}

/// No `Debug`, because it is a secret.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<jiff::Timestamp>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Replaces an exec plugin by its output, within a timeout; returns when the credential must be renewed.
pub(crate) async fn resolve(auth: &mut AuthInfo, within: Duration) -> Result<Option<SystemTime>> {
    if let Some(provider) = &auth.auth_provider {
        let error = refused(&provider.name).because("`auth-provider` was removed in Kubernetes 1.26");
        return Err(error.hint("write the kubeconfig again with `exec`, using the command-line tool of your cloud"));
    }
    let Some(exec) = auth.exec.take() else { return Ok(None) };
    let program = exec.command.clone().unwrap_or_default();
    let status = run(&program, &exec, within).await.map_err(|error| match &exec.install_hint {
        Some(hint) if error.hint.is_none() => error.hint(hint.trim().to_owned()),
        _ => error,
    })?;
    if let Some(token) = status.token {
        auth.token = Some(token.into());
    }
    if let (Some(certificate), Some(key)) = (status.client_certificate_data, status.client_key_data) {
        let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
        auth.client_certificate_data = Some(encode(&certificate));
        auth.client_key_data = Some(encode(&key).into());
    }
    Ok(status.expiration_timestamp.map(|ends| SystemTime::from(ends).checked_sub(AHEAD).unwrap_or(SystemTime::now())))
}

/// Trims the token of a kubeconfig, as its editors and `kubectl` do. `kube` panics on one that cannot be a header. Returns when
/// the file of a trimmed token must be read again.
pub(crate) fn trim_token(auth: &mut AuthInfo) -> Result<Option<SystemTime>> {
    // `kube` prefers a password, and a token to a file.
    if auth.username.is_some() && auth.password.is_some() {
        return Ok(None);
    }
    let written = json!(&*auth);
    let inline = written["token"].as_str().map(str::trim).filter(|token| !token.is_empty());
    let (token, read, what) = match (inline, &auth.token_file) {
        (Some(token), _) => (token.to_owned(), None, "the token of the kubeconfig".to_owned()),
        (None, Some(file)) => {
            let what = format!("token file {file}");
            let read =
                read_token(file).map_err(|why| Error::new(ErrorKind::Denied, "read", what.clone()).because(why))?;
            (read.trim().to_owned(), Some(read), what)
        }
        (None, None) => {
            auth.token = None;
            return Ok(None);
        }
    };
    if token.is_empty() || HeaderValue::try_from(format!("Bearer {token}")).is_err() {
        let why = "it is empty, or has characters that no token has, such as a line break";
        let hint = "write the token on one line, without quotes or comments";
        return Err(Error::new(ErrorKind::Denied, "use", what).because(why).hint(hint));
    }
    // `kube` reads the file again, but does not trim.
    let is_read_by_kube = read.as_ref().is_some_and(|read| *read == token);
    auth.token = (!is_read_by_kube).then(|| token.into());
    Ok((read.is_some() && !is_read_by_kube).then(|| SystemTime::now() + TOKEN_FILE_FOR))
}

fn read_token(file: &str) -> std::io::Result<String> {
    let mut text = String::new();
    // More than the longest header that an API server accepts.
    std::fs::File::open(file)?.take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

fn refused(program: &str) -> Error {
    Error::new(ErrorKind::Denied, "get a credential from", program.to_owned())
}

async fn run(program: &str, exec: &ExecConfig, within: Duration) -> Result<Status> {
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten());
    for one in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (one.get("name"), one.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({ "interactive": false });
    if let Some(cluster) = exec.cluster.as_ref().filter(|_| exec.provide_cluster_info) {
        spec["cluster"] = json!(cluster);
    }
    let version = exec.api_version.as_deref().unwrap_or("client.authentication.k8s.io/v1");
    let info = json!({ "apiVersion": version, "kind": "ExecCredential", "spec": spec });
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    let ended = finished(command, within).await.map_err(|source| {
        let error = refused(program).because(source);
        error.hint("the kubeconfig needs it: install it, or use its full path there")
    })?;
    let Some((ended, output, errors)) = ended else {
        let why = format!("it did not end within {within:?} and was stopped");
        return Err(refused(program).because(why).hint("run it manually: it can be waiting for an interactive login"));
    };
    if !ended.success() {
        // Stderr is for the operator, stdout is the credential.
        let errors = String::from_utf8_lossy(&errors);
        let shown: String = errors.trim().chars().take(SHOWN).collect();
        return Err(refused(program).because(format!("{ended}: {shown}")));
    }
    // The parser's error would quote its input.
    let output: Option<PluginOutput> = serde_json::from_slice(&output).ok();
    let status = output.and_then(|output| output.status);
    status.filter(|status| status.token.is_some() || status.client_key_data.is_some()).ok_or_else(|| {
        refused(program).because("it printed no ExecCredential with a token or a certificate in its `status`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(script: &str) -> AuthInfo {
        let exec = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "env": [{ "name": "PLANTED", "value": "hunter2" }], "installHint": "install it from there" } });
        serde_json::from_value(exec).expect("an auth info")
    }

    #[test]
    fn token_is_trimmed_and_one_that_cannot_be_a_header_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |user: serde_json::Value| {
            let mut auth: AuthInfo = serde_json::from_value(user).expect("an auth info");
            let until = trim_token(&mut auth).map_err(|error| error_chain(&error))?;
            let token = json!(auth)["token"].as_str().map(str::to_owned);
            Ok::<_, String>((token, until.is_some()))
        };
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("a file");
            json!({ "tokenFile": path })
        };
        let token = |text: &str| Some(text.to_owned());
        assert_eq!(read(json!({ "token": "hunter2\n" })), Ok((token("hunter2"), false)));
        assert_eq!(read(json!({ "token": " hunter2" })), Ok((token("hunter2"), false)));
        assert_eq!(read(json!({ "token": "" })), Ok((None, false)));
        assert_eq!(read(json!({})), Ok((None, false)));
        assert_eq!(read(file("break", "hunter2\n")), Ok((token("hunter2"), true)));
        assert_eq!(read(file("plain", "hunter2")), Ok((None, false)), "kube reads and renews it");
        for wrong in [
            json!({ "token": "hun\nter2" }),
            file("two", "hun\nter2"),
            file("empty", "\n"),
            json!({ "tokenFile": "/none" }),
        ] {
            let why = read(wrong).expect_err("it is refused");
            assert!(!why.contains("hun"), "{why}");
        }
    }

    #[tokio::test]
    async fn token_and_its_expiry_are_parsed() {
        let mut auth = auth(
            r#"test -n "$KUBERNETES_EXEC_INFO" || exit 1; echo '{"status":{"token":"'$PLANTED'","expirationTimestamp":"2040-01-01T00:01:00Z"}}'"#,
        );
        let ends = resolve(&mut auth, DEADLINE).await.expect("a credential").expect("an end");
        assert_eq!(ends, SystemTime::from("2040-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time")));
        assert_eq!(json!(auth)["token"], "hunter2");
        assert!(auth.exec.is_none(), "the client runs no program");
    }

    #[tokio::test]
    async fn exec_plugin_output_and_input_are_never_shown() {
        for (script, expect) in [
            ("echo $PLANTED; echo please sign in >&2; exit 3", "please sign in"),
            ("echo $PLANTED", "it printed no ExecCredential"),
            (r#"echo '{"status":{"token":7,"other":"'$PLANTED'"}}'"#, "it printed no ExecCredential"),
            // It has no reader left.
            ("yes $PLANTED", "signal|exit status: 141"),
        ] {
            let error = resolve(&mut auth(script), DEADLINE).await.expect_err("no credential");
            let text = format!("{error} {:?} {:?}", std::error::Error::source(&error), error.hint);
            assert!(expect.split('|').any(|part| text.contains(part)), "{text}");
            assert!(!text.contains("hunter2") && text.contains("install it from there"), "{text}");
        }
    }

    #[tokio::test]
    async fn hanging_exec_plugin_is_terminated() {
        let error = resolve(&mut auth("exec sleep 1000"), Duration::from_millis(100)).await.expect_err("no credential");
        assert!(format!("{:?}", std::error::Error::source(&error)).contains("within 100ms"), "{error}");
    }
}
