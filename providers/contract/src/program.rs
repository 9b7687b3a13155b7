//! Programs of others that hand something out, such as a credential: run with a bound, and never asked for by name here.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// The most that is read of what one says: a token, or a certificate and its key.
const LONGEST: u64 = 256 << 10;

/// Runs a program that asks nobody anything, to its end: its status, what it printed and what it complained of, the beginning of each. `None` when it did
/// not end in time, and was ended.
pub async fn finished(
    mut command: Command,
    within: Duration,
) -> std::io::Result<Option<(ExitStatus, Vec<u8>, Vec<u8>)>> {
    // A program that waits for a person would wait for ever: nobody sits at a supervisor.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else { return Ok(None) };
    let ended = tokio::time::timeout(within, async {
        let (printed, said) = tokio::try_join!(read(out), read(err))?;
        Ok((child.wait().await?, printed, said))
    });
    ended.await.map_or(Ok(None), |ended: std::io::Result<_>| ended.map(Some))
}

/// The beginning of what comes; whoever says more has nobody left to say it to.
async fn read(stream: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes).await?;
    Ok(bytes)
}
