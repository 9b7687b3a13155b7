//! The filter that the project ships, read by fail2ban itself.

use camino::Utf8Path;

/// The addresses of the lines that the filter takes as failures. None where fail2ban is not installed.
pub(crate) fn failures(log: &Utf8Path) -> Option<Vec<String>> {
    let filter = concat!(env!("CARGO_MANIFEST_DIR"), "/../templates/fail2ban/textnlp.conf");
    let run = |arguments: &[&str]| std::process::Command::new("fail2ban-regex").args(arguments).output();
    let Ok(output) = run(&["--out", "ip", log.as_str(), filter]) else {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "fail2ban is not installed");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text.lines().map(str::to_owned).collect())
}
