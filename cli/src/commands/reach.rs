//! How a client reaches a running environment.

use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::{Error, ErrorKind};
use textnlp_service::client::Client;
use textnlp_service::running::RunningEnvironment;

use super::prelude::*;
use crate::rerun_flags::quoted;
use crate::signals;

/// Replicas and the gateway of machines become ready independently. The gateway polls its replicas twice a second.
const READY_ON_MACHINES: Duration = Duration::from_secs(15);
/// Of one that nothing changed, which may be out of reach.
const READY_UNCHANGED: Duration = Duration::from_secs(60);
/// The load balancer that a cloud makes for a cluster has a name minutes before it passes requests on, and resolvers may
/// keep the answer that there is no such name.
const READY_IN_CLOUDS: Duration = Duration::from_secs(600);
/// For how long a wait is not mentioned, and asked about often.
const BRIEF: Duration = Duration::from_secs(15);
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(2);

/// Waits until the service answers that it is ready, at the address that its clients use; for long only after a change.
pub async fn until_ready(
    environment: &Environment,
    client: &Client,
    is_changed: bool,
    console: Console,
) -> Result<(), Failure> {
    let is_in_cloud = environment.sites.iter().any(|site| !site.is_on_machine());
    let limit = match (is_in_cloud, is_changed) {
        (true, true) => READY_IN_CLOUDS,
        (true, false) => READY_UNCHANGED,
        (false, _) => READY_ON_MACHINES,
    };
    // An ingress shows a certificate of its own until it has that of the issuer.
    let has_ingress = environment
        .sites
        .iter()
        .any(|site| site.cluster.ingress.as_ref().is_some_and(|ingress| ingress.issuer.is_some()));
    let is_lasting = |failure: &Failure| is_of_certificate(failure) && !has_ingress || is_denied(failure);
    let (progress, stop) = (Progress::new(console), signals::stop(console));
    let ready = ready_within(
        limit,
        &SystemClock,
        || async { client.get("/ready").await.map(drop) },
        is_lasting,
        |failure| {
            let why = failure.error.root_cause();
            progress.line(format!(
                "Waiting for the address to answer, up to {} min: {why}. A new load balancer takes minutes.",
                limit.as_secs() / 60
            ));
        },
    );
    let ready = tokio::select! {
        ready = ready => ready,
        () = stop.cancelled() => {
            let stopped = anyhow::anyhow!("stopped while the service was not ready yet; it keeps running");
            Err(Failure::new(Exit::Stopped, "stopped", stopped).hint("run the same command again: it goes on from here"))
        }
    };
    progress.finish();
    ready
}

/// Asks until it is ready, or for as long as the limit; `says` hears once why the wait is long.
async fn ready_within<F: Future<Output = Result<(), Failure>>>(
    limit: Duration,
    clock: &dyn Clock,
    ask: impl Fn() -> F,
    is_lasting: impl Fn(&Failure) -> bool,
    says: impl Fn(&Failure),
) -> Result<(), Failure> {
    let (began, mut is_said) = (clock.steady(), false);
    loop {
        let Err(failure) = ask().await else { return Ok(()) };
        let waited = clock.steady().saturating_sub(began);
        if waited > limit || (waited > BRIEF && is_lasting(&failure)) {
            return Err(failure);
        }
        if waited > BRIEF && !is_said {
            says(&failure);
            is_said = true;
        }
        clock.sleep(if waited > BRIEF { SELDOM } else { OFTEN }).await;
    }
}

/// Whether waiting does not help: another server answers at that address, with a certificate of another authority.
fn is_of_certificate(failure: &Failure) -> bool {
    failure.error.chain().any(|cause| cause.to_string().contains("certificate"))
}

/// Whether the cloud gives the operator no credentials for requests.
fn is_denied(failure: &Failure) -> bool {
    let mut causes = failure.error.chain();
    causes.any(|cause| cause.downcast_ref::<Error>().is_some_and(|error| error.kind == ErrorKind::Denied))
}

/// A `curl` command for a POSIX shell. The key reaches it by a pipe: arguments are visible to all users of the machine.
pub fn curl(running: &RunningEnvironment, prompt: &str) -> String {
    let key = running.key_file.as_ref().map(|key| quoted(key.as_str()));
    let header = key.as_ref().map(|key| format!("sed 's/^/Authorization: Bearer /' {key} | "));
    let mut line = format!("{}curl", header.unwrap_or_default());
    if let Some(ca) = &running.ca_file {
        line.push_str(&format!(" --cacert {}", quoted(ca.as_str())));
    }
    if key.is_some() {
        line.push_str(" -H @-");
    }
    let body = serde_json::json!({ "prompt": prompt, "max_tokens": 60 }).to_string();
    line.push_str(&format!(
        " -H 'Content-Type: application/json' -d {} --url {}",
        quoted(&body),
        quoted(&format!("{}/v1/generate", running.address))
    ));
    line
}

/// A path as a JSON value, null if unknown.
pub fn path_or_null(path: Option<&Utf8PathBuf>) -> Value {
    path.map_or(Value::Null, |p| Value::String(p.to_string()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use jiff::Timestamp;
    use textnlp_orchestrator::clock::VirtualClock;
    use textnlp_provider::Lineage;
    use textnlp_provider::operations::EndpointAccess;
    use uuid::Uuid;

    fn unreachable(why: &'static str) -> Failure {
        Failure::new(Exit::Failed, "unreachable", anyhow::anyhow!(why).context("send the request"))
    }

    /// Whether an address that answers after some seconds is waited for, and how often the wait is mentioned.
    fn waits(seconds: u64, limit: Duration, why: &'static str) -> (bool, u32) {
        let (clock, said) = (VirtualClock::at(Timestamp::UNIX_EPOCH), Cell::new(0));
        let ask = || async { if clock.steady().as_secs() < seconds { Err(unreachable(why)) } else { Ok(()) } };
        let ready =
            clock.run(ready_within(limit, &clock, ask, is_of_certificate, |_| said.set(said.get() + 1))).unwrap();
        (ready.is_ok(), said.get())
    }

    #[test]
    fn new_load_balancer_is_waited_for_and_the_wait_is_mentioned_once() {
        assert_eq!(waits(240, READY_IN_CLOUDS, "connection refused"), (true, 1));
        assert_eq!(waits(5, READY_IN_CLOUDS, "connection refused"), (true, 0));
        assert_eq!(waits(700, READY_IN_CLOUDS, "connection refused"), (false, 1));
        assert_eq!(waits(60, READY_ON_MACHINES, "connection refused"), (false, 0));
    }

    #[test]
    fn certificate_of_another_authority_is_reported_soon() {
        assert_eq!(waits(240, READY_IN_CLOUDS, "invalid peer certificate: UnknownIssuer"), (false, 0));
    }

    fn running(key_file: &str) -> RunningEnvironment {
        RunningEnvironment {
            address: "https://127.0.0.1:8443".into(),
            access: EndpointAccess::Keys,
            ca_file: Some("/a b/ca.pem".into()),
            key_file: Some(key_file.into()),
            key: None,
            key_id: None,
            servers: Vec::new(),
            namespace: None,
            folder: Utf8PathBuf::new(),
            lineage: Lineage(Uuid::nil()),
        }
    }

    #[test]
    fn printed_curl_command_quotes_paths_with_blanks() {
        assert_eq!(
            curl(&running("/a b/key"), "It's"),
            "sed 's/^/Authorization: Bearer /' '/a b/key' | curl --cacert '/a b/ca.pem' -H @- \
             -H 'Content-Type: application/json' -d '{\"prompt\":\"It'\\''s\",\"max_tokens\":60}' --url https://127.0.0.1:8443/v1/generate"
        );
    }

    #[test]
    fn printed_curl_command_runs_nothing_of_an_address_that_a_state_brings() {
        for address in ["https://a/$(touch b)", "-Kb", "https://a' -Kb '"] {
            let folder = tempfile::tempdir().unwrap();
            let line = curl(&RunningEnvironment { address: address.into(), key_file: None, ..running("") }, "a");
            let script = format!("curl() {{ printf '%s\\n' \"$@\" > arguments; }}; {line}");
            let ran =
                std::process::Command::new("sh").args(["-c", &script]).current_dir(folder.path()).status().unwrap();
            assert!(ran.success());
            let arguments = std::fs::read_to_string(folder.path().join("arguments")).unwrap();
            assert!(arguments.ends_with(&format!("--url\n{address}/v1/generate\n")), "{arguments}");
        }
    }

    #[test]
    fn printed_curl_command_has_no_key_among_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("the key");
        std::fs::write(&key, "tnlp_0123_secret").unwrap();
        let line = curl(&running(key.to_str().unwrap()), "a");
        let script = format!("curl() {{ printf '%s\\n' \"$@\" > arguments; cat > input; }}; {line}");
        let ran = std::process::Command::new("sh").args(["-c", &script]).current_dir(folder.path()).status().unwrap();
        assert!(ran.success());
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("input").trim_end(), "Authorization: Bearer tnlp_0123_secret");
        assert!(!read("arguments").contains("secret"), "{}", read("arguments"));
    }
}
