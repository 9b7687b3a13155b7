//! Runs external programs that print something, such as a credential, with a timeout. The caller names the program.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The most output that is read: a token, or a certificate and its key.
const LONGEST: u64 = 256 << 10;

/// Runs a non-interactive program to its end: its status, and the start of its output and error output. `None` when it
/// exceeded the timeout and was killed.
pub async fn finished(
    mut command: Command,
    within: Duration,
) -> std::io::Result<Option<(ExitStatus, Vec<u8>, Vec<u8>)>> {
    // No terminal: a program that prompts would wait forever under a supervisor.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Ok(None) };
    let ended = tokio::time::timeout(within, async {
        let (printed, errors) = tokio::try_join!(read(out), read(err))?;
        Ok((child.wait().await?, printed, errors))
    });
    ended.await.map_or(Ok(None), |ended: std::io::Result<_>| ended.map(Some))
}

/// Reads the start of the output; a program that writes more gets a closed pipe.
async fn read(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
