//! The log endpoint of a node for `kubectl logs`, over TLS like a kubelet.

use camino::{Utf8Path, Utf8PathBuf};
use futures::FutureExt;
use serde_json::Value;

use crate::tls::{self, Answer};

/// The log file of a container.
pub(super) fn file(folder: &Utf8Path, namespace: &str, pod: &str, container: &str) -> Utf8PathBuf {
    folder.join("logs").join(namespace).join(pod).join(format!("{container}.log"))
}

/// Serves logs until the runtime ends; returns the port.
pub(super) async fn lend(folder: Utf8PathBuf, trusted: &(String, String)) -> u16 {
    tls::serve(trusted, move |target, _| {
        let answer = answer(&folder, &target);
        async move { answer }.boxed()
    })
    .await
}

/// Answers `/containerLogs/NAMESPACE/POD/CONTAINER?tailLines=N&timestamps=true`. The log of an ended container remains
/// until it restarts. The time of a line is that of its JSON, else that of the line before.
fn answer(folder: &Utf8Path, target: &str) -> Answer {
    let nothing = ("404 Not Found", "text/plain", String::new());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let ["", "containerLogs", namespace, pod, container] = path.split('/').collect::<Vec<_>>()[..] else {
        return nothing;
    };
    let Ok(text) = std::fs::read_to_string(file(folder, namespace, pod, container)) else {
        return nothing;
    };
    let last = query.split('&').find_map(|pair| pair.strip_prefix("tailLines=")?.parse::<usize>().ok());
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(last.unwrap_or(usize::MAX))..];
    if !query.split('&').any(|pair| pair == "timestamps=true") {
        return ("200 OK", "text/plain", shown.join("\n"));
    }
    let mut time = "1970-01-01T00:00:00Z".to_owned();
    let timed = |line: &&str| {
        let fields: Value = serde_json::from_str(line).unwrap_or_default();
        if let Some(own) = fields["timestamp"].as_str() {
            own.clone_into(&mut time);
        }
        format!("{time} {line}\n")
    };
    ("200 OK", "text/plain", shown.iter().map(timed).collect())
}
