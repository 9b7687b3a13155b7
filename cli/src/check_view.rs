//! The text and JSON output of checks.

use std::fmt::Write as _;

use serde_json::{Value, json};
use textnlp_provider::EnvironmentName;
use textnlp_provider::units::counted;
use textnlp_service::checks::{CheckLine, CheckResult, Checks};

use crate::report::{Console, Exit, Success};

/// The result of `doctor` and `health check`: exits with 1 if a check failed. The text leaves out those that passed
/// unless `all` is set.
pub fn problems(checks: Checks, environment: Option<EnvironmentName>, all: bool, console: Console) -> Success {
    let lines = checks.lines;
    let mut text = table(&lines, |line| all || line.mark != CheckResult::Well, console);
    let [problems, warnings, _] = counts(&lines);
    text.push_str(&match (problems, warnings) {
        (0, 0) => "No problems found.".to_owned(),
        (0, n) => format!("No problems; {}.", counted(n, "warning")),
        (n, _) => format!("{} to fix.", counted(n, "problem")),
    });
    let document = json!({ "environment": environment, "checks": lines, "problems": problems, "warnings": warnings });
    exit(Success::new(text, document), problems)
}

/// The result of `security audit` and `deps`: exits with 1 if a line failed. `rows` are the member `name` of the document.
pub fn states(lines: &[CheckLine], end: &str, mut document: Value, console: Console) -> Success {
    let [failed, warnings, unknown] = counts(lines);
    let mut text = table(lines, |_| true, console);
    let _ = write!(text, "{failed} failed, {}, {unknown} unknown, {end}.", counted(warnings, "warning"));
    (document["failed"], document["warnings"], document["unknown"]) = (json!(failed), json!(warnings), json!(unknown));
    exit(Success::new(text, document), failed)
}

fn exit(success: Success, failed: usize) -> Success {
    if failed == 0 { success } else { success.exit(Exit::Failed) }
}

/// The numbers of failed ones, of warnings and of unknown ones.
fn counts(lines: &[CheckLine]) -> [usize; 3] {
    [CheckResult::Problem, CheckResult::Warning, CheckResult::Unknown]
        .map(|mark| lines.iter().filter(|line| line.mark == mark).count())
}

/// A row for each line that is shown, and one for each fix.
fn table(lines: &[CheckLine], is_shown: impl Fn(&&CheckLine) -> bool, console: Console) -> String {
    let title =
        |line: &CheckLine| line.site.as_ref().map_or_else(|| line.name.clone(), |site| format!("{site}/{}", line.name));
    let width = lines.iter().map(|line| title(line).len()).max().unwrap_or_default().max(12);
    let indent = " ".repeat(width + 3);
    let mut text = String::new();
    for line in lines.iter().filter(is_shown) {
        let mark = match line.mark {
            CheckResult::Well => console.paint("32", "✓"),
            CheckResult::Warning => console.paint("33", "!"),
            CheckResult::Problem => console.paint("31", "✗"),
            CheckResult::Unknown => console.paint("33", "?"),
        };
        let says = line.says.replace('\n', &format!("\n{indent}"));
        let _ = writeln!(text, "{mark} {:<width$} {says}", title(line));
        for fix in line.fix.iter().flat_map(|fix| fix.lines()) {
            let _ = writeln!(text, "{indent}→ {fix}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Output;

    #[test]
    fn failed_check_decides_the_exit_status() {
        let console = Console::new(Output::Text, true);
        let mut checks = Checks::default();
        checks.well("registry", "https://r.example/v2/  12 ms");
        checks.warning("model source", "it is slow\nand late", "wait");
        let well = states(&checks.lines, "of 2", json!({}), console);
        assert!(well.exit.is_none() && well.document["warnings"] == 1, "{well:?}");
        assert!(well.text.contains("r.example/v2/  12 ms") && well.text.contains("→ wait"), "{}", well.text);
        assert!(well.text.ends_with("0 failed, 1 warning, 0 unknown, of 2."), "{}", well.text);
        checks.problem("DNS", "it has no address", "create it");
        let failed = states(&checks.lines, "of 3", json!({}), console);
        assert!(matches!(failed.exit, Some(Exit::Failed)) && failed.document["failed"] == 1, "{failed:?}");
        let failed = problems(checks, None, false, console);
        assert!(failed.text.ends_with("1 problem to fix.") && !failed.text.contains("registry"), "{}", failed.text);
    }
}
