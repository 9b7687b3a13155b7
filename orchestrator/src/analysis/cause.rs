//! Likely causes of messages, by a part of their text.

use serde::Serialize;

/// A likely cause, and the command that shows more or repairs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// What is probably wrong.
    pub text: &'static str,
    /// The command without the name of the program and the flags of the environment.
    pub command: &'static str,
}

/// The parts of messages, in lower case; the first row that fits counts. The general ones are last.
const CAUSES: &[(&[&str], Cause)] = &[
    (
        &["no space left on device", "disk full", "the disk failed"],
        Cause { text: "a disk is full or broken", command: "doctor" },
    ),
    (
        &["too many open files", "the limit of open files"],
        Cause { text: "the limit of open files (`ulimit -n`) is too low", command: "preflight" },
    ),
    (
        &["out of memory", "oomkilled", "cannot allocate memory", "memory allocation of"],
        Cause { text: "there is too little memory for the model and its requests", command: "preflight" },
    ),
    (
        &["too many clients already", "remaining connection slots", "pool timed out"],
        Cause {
            text: "the database has too few connections: raise `database.pool_size`, or lower the number of replicas",
            command: "plan",
        },
    ),
    (
        &["password authentication failed", "no pg_hba.conf entry"],
        Cause { text: "the database refuses the password or the client", command: "preflight" },
    ),
    (
        &["certificate has expired", "certificate expired", "notvalidyet", "certificate is not valid yet"],
        Cause { text: "a certificate expired, or a clock is wrong", command: "doctor" },
    ),
    (
        &["unknownissuer", "unable to get local issuer", "self-signed certificate", "self signed certificate"],
        Cause { text: "a client does not trust the certificate authority", command: "status" },
    ),
    (
        &["errimagepull", "imagepullbackoff", "failed to pull image"],
        Cause { text: "the image is not in the registry, or the node may not read it", command: "preflight" },
    ),
    (
        &["was changed: it has sha256", "digest mismatch"],
        Cause { text: "a file is not the one that was deployed", command: "drift" },
    ),
    (&["a model could not be loaded"], Cause { text: "the files of a model cannot be loaded", command: "preflight" }),
    (
        &[
            "the database query failed",
            "tokens could not be reserved",
            "token usage could not be recorded",
            "usage is buffered until the database answers",
            "usage could not be written",
            "rate limits are counted by this replica only",
            "audit events lost",
            "the database system is starting up",
            "the database system is shutting down",
        ],
        Cause { text: "the database does not answer or refuses", command: "status" },
    ),
    (
        &["backend removed from rotation", "an answer was interrupted", "a request was interrupted before its answer"],
        Cause { text: "a replica of the server stopped or does not answer", command: "status" },
    ),
    (
        &["the new certificate was rejected", "the certificate cannot be loaded", "handshake failed"],
        Cause { text: "a certificate, or a client that speaks another protocol", command: "doctor" },
    ),
    (
        &[
            "the service of this site does not answer",
            "the global endpoint",
            "the copy from the primary failed",
            "the database does not have its designated role",
        ],
        Cause { text: "sites do not reach each other, or one failed", command: "dr status" },
    ),
    (
        &["a request handler panicked", "panicked at"],
        Cause { text: "a defect of the program: report it with a support bundle", command: "support-bundle" },
    ),
    (
        &["reason=address_limit", "reason=full", "reason=rate"],
        Cause { text: "a client sends more than its limit", command: "key list" },
    ),
    (
        &["status=401", "status=403", "unauthorized"],
        Cause { text: "a client has no valid key, or one without the scope", command: "key list" },
    ),
    (
        &["access denied", "permission denied"],
        Cause { text: "a user or an identity lacks a permission", command: "doctor" },
    ),
    (
        &["no such host", "name or service not known", "failed to lookup address"],
        Cause { text: "a name cannot be resolved", command: "doctor" },
    ),
    (
        &["connection refused", "connection reset", "no route to host", "network is unreachable"],
        Cause { text: "a server does not run, or a firewall blocks it", command: "status" },
    ),
    (&["timed out", "timeout", "deadline"], Cause { text: "something answers too slowly", command: "status" }),
];

impl Cause {
    /// The likely cause of a message.
    pub(super) fn of(message: &str) -> Option<Self> {
        let message = message.to_lowercase();
        CAUSES.iter().find(|(parts, _)| parts.iter().any(|part| message.contains(part))).map(|(_, cause)| *cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_causes_come_before_general_ones() {
        let of = |text: &str| Cause::of(text).map(|cause| cause.command);
        assert_eq!(of("write wal: No space left on device (os error 28), timed out"), Some("doctor"));
        assert_eq!(of("the database query failed error=connection refused"), Some("status"));
        assert_eq!(of("FATAL: password authentication failed for user"), Some("preflight"));
        assert_eq!(of("all is well"), None);
    }

    #[test]
    fn runbook_lists_every_cause() {
        let mut table = "| a message has | likely cause | next command |\n|---|---|---|\n".to_owned();
        for (parts, Cause { text, command }) in CAUSES {
            let parts: Vec<String> = parts.iter().map(|part| format!("`{part}`")).collect();
            table.push_str(&format!("| {} | {text} | `{command}` |\n", parts.join(", ")));
        }
        textnlp_tests::guide::expect_section("docs/runbooks/troubleshooting.md", "causes", &table);
    }

    /// What our own programs no longer say is removed from the table.
    #[test]
    fn own_messages_of_the_table_exist() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let mut text = String::new();
        let mut folders = vec![root.join("server"), root.join("providers/onprem/src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                match path.extension().and_then(std::ffi::OsStr::to_str) {
                    Some("rs") => text.push_str(&std::fs::read_to_string(path).unwrap().to_lowercase()),
                    _ if path.is_dir() => folders.push(path),
                    _ => {}
                }
            }
        }
        let own = ["the ", "a ", "an ", "usage ", "token", "rate limits", "audit events", "backend "];
        for part in CAUSES.iter().flat_map(|(parts, _)| *parts) {
            let foreign = part.starts_with("the database system") || *part == "the global endpoint";
            assert!(foreign || !own.iter().any(|start| part.starts_with(start)) || text.contains(part), "{part}");
        }
    }
}
