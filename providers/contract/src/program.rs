//! Runs external programs that print something, such as a credential, with a timeout. The caller names the program.

use std::io::Read as _;
use std::process::{self, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The most output that is read: a token, or a certificate and its key.
const OUTPUT_LIMIT: u64 = 256 << 10;

/// Runs a non-interactive program to its end: its status, and the start of its output and error output. `None` when it
/// exceeded the timeout and was killed.
pub async fn finished(
    mut command: Command,
    timeout: Duration,
) -> std::io::Result<Option<(ExitStatus, Vec<u8>, Vec<u8>)>> {
    // No terminal: under a supervisor, a program that prompts would wait forever.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Ok(None) };
    let ended = tokio::time::timeout(timeout, async {
        let (printed, errors) = tokio::try_join!(read(out), read(err))?;
        Ok((child.wait().await?, printed, errors))
    });
    ended.await.map_or(Ok(None), |ended: std::io::Result<_>| ended.map(Some))
}

/// Reads the start of the output; a program that writes more gets a closed pipe.
async fn read(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The first line that a program prints, or `None` without an answer within the timeout. Blocks.
pub fn first_line(program: &Utf8Path, arguments: &[&str], timeout: Duration) -> Option<String> {
    const LINE_LIMIT: u64 = 200;
    let mut child = process::Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < timeout => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut output = String::new();
    child.stdout.take()?.take(LINE_LIMIT).read_to_string(&mut output).ok()?;
    let line: String = output.lines().next()?.chars().filter(|c| !c.is_control()).collect();
    (status.success() && !line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_of_a_program_is_bounded_by_a_timeout() {
        const LONG: Duration = Duration::from_secs(60);
        let first_line_of = |script, timeout| first_line(Utf8Path::new("/bin/sh"), &["-c", script], timeout);
        assert_eq!(
            first_line_of("echo textnlp-server 9.9.9; echo more", LONG).as_deref(),
            Some("textnlp-server 9.9.9")
        );
        assert_eq!(first_line_of("echo textnlp-server 9.9.9; exit 1", LONG), None);
        assert_eq!(first_line_of("exit 0", LONG), None);
        assert_eq!(first_line_of("exec sleep 1000", Duration::ZERO), None);
        assert_eq!(first_line(Utf8Path::new("/nowhere/program"), &[], LONG), None);
    }
}
