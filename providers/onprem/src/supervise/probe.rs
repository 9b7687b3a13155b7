//! Readiness probes of programs over their Unix socket.

use std::time::Duration;

use camino::Utf8Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::unit::Ready;

/// A program that needs longer to answer is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Status line, headers and the start of a short body.
const ANSWER_MAX: u64 = 64 << 10;

/// `Ok` when the program answers 200, else the reason, from its answer where there is one.
pub(crate) async fn probe(ready: &Ready) -> Result<(), String> {
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", ready.path);
    match tokio::time::timeout(PROBE_TIMEOUT, exchange(&ready.unix, &request)).await {
        Ok(Ok(answer)) => verdict(&answer),
        Ok(Err(error)) => Err(format!("does not answer on its socket: {error}")),
        Err(_) => Err(format!("does not answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}

/// Sends one request and reads a short answer; the caller sets the timeout.
pub(crate) async fn exchange(unix: &Utf8Path, request: &str) -> std::io::Result<String> {
    exchange_up_to(unix, request, ANSWER_MAX).await
}

/// The same with an answer of at most `max` bytes.
pub(crate) async fn exchange_up_to(unix: &Utf8Path, request: &str, max: u64) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(unix).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(max).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn verdict(answer: &str) -> Result<(), String> {
    let status =
        answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse::<u16>().ok());
    match status {
        Some(200) => Ok(()),
        Some(code) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let body: String = body.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(if body.is_empty() { format!("answers {code}") } else { format!("answers {code}: {body}") })
        }
        None => Err("does not speak HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_200_is_ready() {
        assert_eq!(verdict("HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        assert_eq!(verdict("HTTP/1.1 503 x\r\na: b\r\n\r\nloading"), Err("answers 503: loading".to_owned()));
        for bad in ["", "HTTP/1.", "SSH-2.0-x", "HTTP/1.1 \u{e4}\u{e4}"] {
            assert!(verdict(bad).is_err(), "{bad}");
        }
    }
}
