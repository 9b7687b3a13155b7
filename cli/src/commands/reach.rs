//! How a client reaches a running environment.

use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_service::running::RunningEnvironment;

use crate::rerun_flags::quoted;

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
    use super::*;
    use textnlp_provider::Lineage;
    use uuid::Uuid;

    fn running(key_file: &str) -> RunningEnvironment {
        RunningEnvironment {
            address: "https://127.0.0.1:8443".into(),
            metrics_address: None,
            is_invoked: false,
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
