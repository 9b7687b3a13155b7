//! The process that renders one chat template: `render-chat`, which the server starts. Standard input has requests, each
//! a length of four bytes (little endian) and JSON: first the template, then the conversation of each rendering. Standard
//! output has an answer to each: a length, a text, and a last byte that says whether the text is the prompt or why there
//! is none.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Builder;

use minijinja::{Error, ErrorKind};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use super::template::Template;
use crate::restrict::restrict;

/// The memory that a template may take: the messages of a context of a million tokens are 16 MiB, and there are few copies
/// of them. Two processes of a model have to fit into the container beside it.
const MAX_MEMORY: u64 = 256 << 20;
/// As the main thread of a program usually has.
const STACK_SIZE: usize = 8 << 20;
/// The longest reason in characters.
const MAX_REASON: usize = 1000;

/// The last byte of an answer with a prompt.
pub(super) const PROMPT: u8 = 0;
/// The last byte of an answer with a reason.
pub(super) const REFUSAL: u8 = 1;

/// Limits this process, then renders until standard input ends. Needs a runtime.
pub(crate) fn serve() -> io::Result<()> {
    // The server ends its renderers: a signal for its whole group must not end them while it drains.
    let _signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    restrict(MAX_MEMORY, None)?;
    let (sender, requests) = sync_channel(1);
    // Parent-death signals follow the thread that started this process, not the server: the end of the input is
    // reliable, and is seen in the middle of a rendering.
    Builder::new().name("requests".into()).spawn(move || {
        let mut input = io::stdin().lock();
        while let Ok(request) = read(&mut input) {
            if sender.send(request).is_err() {
                break;
            }
        }
        std::process::exit(0)
    })?;
    let renderer = Builder::new().name("renderer".into()).stack_size(STACK_SIZE);
    let ended = renderer.spawn(move || render(&requests, &mut io::stdout().lock()))?.join();
    ended.unwrap_or_else(|_| Err(io::Error::other("the renderer panicked")))
}

fn read(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let mut request = vec![0; u32::from_le_bytes(length) as usize];
    input.read_exact(&mut request)?;
    Ok(request)
}

/// Answers the request with the template, then the others.
fn render(requests: &Receiver<Vec<u8>>, output: &mut impl Write) -> io::Result<()> {
    let compiled = Template::new(parse(&requests.recv().map_err(io::Error::other)?)?);
    let template = match compiled {
        Ok(template) => template,
        Err(error) => return answer(output, Err(error.to_string())),
    };
    answer(output, Ok(String::new()))?;
    for request in requests {
        // Calls and tools may be nested deeper than the parser goes.
        let rendered = match serde_json::from_slice(&request) {
            Ok(conversation) => template.render(&conversation),
            Err(error) => Err(Error::new(ErrorKind::BadSerialization, error.to_string())),
        };
        answer(output, rendered.map_err(|error| error.detail().map_or_else(|| error.to_string(), str::to_owned)))?;
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(request: &[u8]) -> io::Result<T> {
    serde_json::from_slice(request).map_err(io::Error::other)
}

fn answer(output: &mut impl Write, rendered: Result<String, String>) -> io::Result<()> {
    let (mut text, last) = match rendered {
        Ok(prompt) => (prompt.into_bytes(), PROMPT),
        Err(reason) => (reason.chars().take(MAX_REASON).collect::<String>().into_bytes(), REFUSAL),
    };
    text.push(last);
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&text)?;
    output.flush()
}
