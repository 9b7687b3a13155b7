//! Third-party tools that tests compare our results with.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Whether a tool is missing. Then the test says so loudly, or fails where tools are required.
pub(crate) fn missing(tool: &str) -> bool {
    missing_where(tool, "TEXTNLP_TESTS_REQUIRE_TOOLS")
}

/// The same for a tool that is required only where `variable` is set.
pub(crate) fn missing_where(tool: &str, variable: &str) -> bool {
    let there = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()));
    if !there {
        assert!(std::env::var_os(variable).is_none(), "{tool} must be installed");
        eprintln!("\n*** SKIPPED: {tool} is not installed ***\n");
    }
    !there
}

/// What `program` prints, given `input`; `None` when `tool` is missing.
pub(crate) fn run(tool: &str, program: &str, arguments: &[&str], input: &str) -> Option<String> {
    if missing(tool) {
        return None;
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}
