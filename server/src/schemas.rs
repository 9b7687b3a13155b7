//! Schemas of structured output. Each is compiled first in a process with limits of memory and time, `check-schema`: the
//! compiler multiplies parts of a schema in ways that cannot all be counted before. Only what passed is compiled here.

use std::collections::HashSet;
use std::io::{self, Read};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_inference::guide::{GuideError, rehearse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::config::Renderer;
use crate::restrict::restrict;
use crate::workers::Workers;

/// Memory of `check-schema`: 64 MiB of it is the stack of the compiler, which few schemas use. Two may run at once, and
/// the server compiles the same again.
const MAX_MEMORY: u64 = 160 << 20;
/// Processor time of `check-schema`. Ordinary schemas take milliseconds.
const MAX_TIME: Duration = Duration::from_secs(2);
/// The longest schema or answer in bytes: calls of tools join the schemas of all functions.
const MAX_BYTES: usize = 1 << 20;
/// Schemas that are known to pass, 32 bytes each.
const MAX_KNOWN: usize = 4096;

/// Compiles few schemas at a time.
pub(crate) struct Schemas {
    /// Turns of the tenants and their keys.
    pub(crate) workers: Workers,
    /// Digests of schemas that passed.
    known: Mutex<HashSet<[u8; 32]>>,
}

impl Schemas {
    pub(crate) fn new(workers: Workers) -> Self {
        Self { workers, known: Mutex::default() }
    }

    /// Whether compiling a schema stays within the limits. Dropping the future ends the process.
    pub(crate) async fn rehearse(&self, schema: &Value, options: &Renderer) -> Result<(), GuideError> {
        let text = schema.to_string();
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        if self.known().contains(&digest) {
            return Ok(());
        }
        match tokio::time::timeout(options.timeout, ask(options, text.as_bytes())).await {
            Ok(Ok(result)) => result?,
            Ok(Err(error)) => return Err(GuideError::Thread(error.to_string())),
            Err(_) => return Err(too_long()),
        }
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(digest);
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_long() -> GuideError {
    GuideError::TooComplex("compiling it takes too much memory or time".to_owned())
}

/// The result of a process for this schema.
async fn ask(options: &Renderer, schema: &[u8]) -> io::Result<Result<(), GuideError>> {
    let mut command = Command::new(&options.program);
    command.arg0("textnlp-server").arg("check-schema").env_clear();
    // Where the program's libraries are.
    command.envs(std::env::var_os("LD_LIBRARY_PATH").map(|folders| ("LD_LIBRARY_PATH", folders)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (mut input, output) = pipes.ok_or_else(|| io::Error::other("it has no pipes"))?;
    let write = async {
        // A process that ended says more by its status.
        let _ = input.write_all(schema).await;
        drop(input);
    };
    let mut answer = Vec::new();
    let mut output = output.take(MAX_BYTES as u64);
    let ((), read) = tokio::join!(write, output.read_to_end(&mut answer));
    read?;
    let status = child.wait().await?;
    if let (true, Ok(result)) = (status.success(), serde_json::from_slice(&answer)) {
        return Ok(result);
    }
    // A signal: it reached a limit of its memory, its stack or its time.
    if status.code().is_none() { Ok(Err(too_long())) } else { Err(io::Error::other(format!("check-schema: {status}"))) }
}

/// Limits this process and compiles the schema on standard input. Prints the result.
pub(crate) fn serve() -> io::Result<()> {
    restrict(MAX_MEMORY, Some(MAX_TIME))?;
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_BYTES as u64).read_to_end(&mut text)?;
    let result = match serde_json::from_slice(&text) {
        Ok(schema) => rehearse(&schema),
        Err(error) => Err(GuideError::TooComplex(error.to_string())),
    };
    serde_json::to_writer(io::stdout(), &result).map_err(io::Error::other)
}
