//! The server's side of a process that renders a chat template.

use std::io;
use std::process::Stdio;
use std::time::Instant;

use camino::Utf8Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::MAX_PROMPT;
use super::renderings::{PROMPT, REFUSAL};

/// Variables that the process keeps: the time zone of `strftime_now`, and where the program's libraries are.
const VARIABLES: [&str; 2] = ["TZ", "LD_LIBRARY_PATH"];

/// A process that renders one template. Dropping it kills the process.
pub(super) struct Renderer {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// When it answered last.
    pub(super) used: Instant,
}

impl Renderer {
    pub(super) fn start(program: &Utf8Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("textnlp-server").arg("render-chat").env_clear();
        command.envs(VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) = pipes.ok_or_else(|| io::Error::other("it has no pipes"))?;
        Ok(Self { child, input, output, used: Instant::now() })
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The answer to a request: a prompt, or why the template refuses. It waits for as long as the process takes.
    pub(super) async fn ask(&mut self, request: &[u8]) -> io::Result<Result<String, String>> {
        let length = u32::try_from(request.len()).map_err(io::Error::other)?;
        self.input.write_all(&length.to_le_bytes()).await?;
        self.input.write_all(request).await?;
        let length = self.output.read_u32_le().await? as usize;
        if length > MAX_PROMPT + 1 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut answer = vec![0; length];
        self.output.read_exact(&mut answer).await?;
        let last = answer.pop();
        let text = String::from_utf8(answer).map_err(io::Error::other)?;
        self.used = Instant::now();
        match last {
            Some(PROMPT) => Ok(Ok(text)),
            Some(REFUSAL) => Ok(Err(text)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Kills the process, unless it ended itself, and says how it ended.
    pub(super) async fn end(mut self) -> String {
        // A process that is ending already keeps its status.
        let _ = self.child.start_kill();
        self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}
