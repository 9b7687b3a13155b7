//! External tools that an operator may want beside the service.
//!
//! Local processes need none of them, so a missing tool is only a note. A setting that needs one is refused before this
//! check: a `runtime` that this program does not support.

use std::process::Stdio;
use std::time::Duration;

use textnlp_provider::{Minimum, Problem};

/// A tool: its version command, its oldest supported version, and its purpose.
struct Tool {
    says: &'static str,
    command: &'static str,
    arguments: &'static [&'static str],
    least: fn(&Minimum) -> (u32, u32),
    used_for: &'static str,
}

const TOOLS: [Tool; 3] = [
    Tool {
        says: "Python",
        command: "python3",
        arguments: &["--version"],
        least: |_| (3, 8),
        used_for: "your own scripts",
    },
    Tool {
        says: "Docker",
        command: "docker",
        arguments: &["--version"],
        least: |minimum| minimum.docker,
        used_for: "`templates/compose`",
    },
    Tool {
        says: "kubectl",
        command: "kubectl",
        arguments: &["version", "--client"],
        least: |_| (1, 28),
        used_for: "the commands that hints print for clusters",
    },
];

/// A tool that hangs counts as missing.
const TOOL_TIMEOUT: Duration = Duration::from_secs(3);

/// The version of each tool, in their order; `None` where it is missing or unknown.
pub(super) type Versions = [Option<(u32, u32)>; TOOLS.len()];

pub(super) async fn read() -> Versions {
    let [python, docker, kubectl] = TOOLS.each_ref().map(ask);
    let (python, docker, kubectl) = tokio::join!(python, docker, kubectl);
    [python, docker, kubectl]
}

/// One note about all of them.
pub(super) fn check(versions: &Versions, minimum: &Minimum, problems: &mut Vec<Problem>) {
    let tools: Vec<String> = TOOLS
        .iter()
        .zip(versions)
        .map(|(tool, version)| {
            let (least_major, least_minor) = (tool.least)(minimum);
            match version {
                Some((major, minor)) if (*major, *minor) < (least_major, least_minor) => {
                    format!(
                        "{} {major}.{minor} is older than {least_major}.{least_minor}, which is required by {}",
                        tool.says, tool.used_for
                    )
                }
                Some((major, minor)) => format!("{} {major}.{minor}", tool.says),
                None => format!("no {} (for {}: {least_major}.{least_minor})", tool.says, tool.used_for),
            }
        })
        .collect();
    let cause = format!("there is {}", tools.join(", "));
    problems.push(Problem::note("software", cause, "nothing to do: `runtime: process` needs none of them"));
}

/// A program in the folders of `PATH`, but in none that depends on where the command runs.
fn installed(name: &str) -> Option<std::path::PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let mut absolute = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
    absolute.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()))
}

async fn ask(tool: &Tool) -> Option<(u32, u32)> {
    let child = tokio::process::Command::new(installed(tool.command)?)
        .args(tool.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let said = tokio::time::timeout(TOOL_TIMEOUT, child.wait_with_output()).await.ok()?.ok()?;
    said.status.success().then(|| version(&String::from_utf8_lossy(&said.stdout)))?
}

/// The first `MAJOR.MINOR` of a text, whatever stands before it: `Docker version 24.0.7, build …`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| {
        let mut numbers = word.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_from_tool_output() {
        assert_eq!(version("Python 3.11.2\n"), Some((3, 11)));
        assert_eq!(version("Docker version 24.0.7, build afdd53b\n"), Some((24, 0)));
        assert_eq!(version("Client Version: v1.28.2\nKustomize Version: v5.0.4\n"), Some((1, 28)));
        assert_eq!(version("no number 3 here"), None);
    }

    #[test]
    fn missing_and_outdated_tools_are_one_note() {
        let said = |versions: Versions, minimum: &Minimum| {
            let mut problems = Vec::new();
            check(&versions, minimum, &mut problems);
            assert!(problems.iter().all(|problem| problem.note && problem.warning), "{problems:?}");
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let text = said([Some((3, 7)), Some((20, 10)), None], &Minimum::DEVELOPMENT);
        assert!(text.contains("Python 3.7 is older than 3.8") && text.contains("Docker 20.10,"), "{text}");
        assert!(text.contains("no kubectl") && text.contains("1.28"), "{text}");
        let text = said([Some((3, 8)), Some((20, 10)), Some((1, 28))], &Minimum::PRODUCTION);
        assert!(text.contains("Docker 20.10 is older than 24.0") && !text.contains("kubectl 1.28 is older"), "{text}");
    }
}
