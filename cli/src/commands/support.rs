//! `support-bundle`: creates one file for support, with secrets redacted.
//!
//! It contains documents and logs, never files as they are. The environment is the output of `env show`, and the state
//! is that of `state export`. Every line is then compared with all secrets of the environment that this machine stores
//! or refers to. A line with a match is replaced, and the list of files counts such lines.

use std::fmt::Write as _;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::model::SecretSource;

use super::{doctor, logs, state, status};
use crate::clouds;
use crate::report::{Console, Failure, Success, size};
use crate::session::{ChosenEnvironment, Session};
use crate::state_args::SupportBundle;

/// The replacement of a line with a secret.
const LEFT_OUT: &str = "[a line that holds a secret was left out]";
/// Minimum length of a secret value in bytes. Shorter ones are ordinary words in logs.
const SHORTEST: usize = 8;

/// `support-bundle [--out FILE]`.
pub async fn support_bundle(session: &Session, args: &SupportBundle, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let now = Timestamp::now();
    let file =
        args.out.clone().unwrap_or_else(|| format!("support-{name}-{}.tar", now.strftime("%Y%m%dT%H%M%SZ")).into());
    let path = session.here.join(file);
    let secrets = Secrets::of(&chosen)?;
    let quiet = Console::new(session.global.output, true);
    let mut pieces = vec![("environment.yaml".to_owned(), chosen.loaded.to_yaml(false))];
    let document_of = |result: Result<Success, Failure>| match result {
        Ok(success) => Value::Object(success.document),
        Err(failure) => json!({ "error": format!("{:#}", failure.error), "hint": failure.hint }),
    };
    let documents = [
        ("doctor.json", document_of(doctor::doctor(session, quiet).await)),
        ("status.json", document_of(status::status(session, quiet).await)),
        ("state.json", document_of(state::exported(session, quiet).await)),
    ];
    for (name, document) in documents {
        pieces.push((name.to_owned(), format!("{document:#}")));
    }
    for (process, log) in logs::newest(&chosen.scope.folder, args.lines)? {
        pieces.push((format!("logs/{process}.log"), log));
    }
    let machine = json!({
        "program": concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")),
        "at": now,
        "system": rustix::system::uname().release().to_string_lossy(),
        "architecture": std::env::consts::ARCH,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
    });
    pieces.push(("machine.json".to_owned(), format!("{machine:#}")));
    let mut left_out = 0;
    let mut listed = String::new();
    for (name, text) in &mut pieces {
        let (clean, lines) = secrets.out_of(text);
        *text = clean;
        left_out += lines;
        let _ = writeln!(
            listed,
            "{name}  {}{}",
            size(text.len() as u64),
            if lines > 0 { format!(", {lines} lines left out") } else { String::new() }
        );
    }
    pieces.insert(0, ("README".to_owned(), format!(
        "Collected by `textnlp-deploy support-bundle` from environment {name} at {now:.0}.\n\
         It contains no secrets: the program never writes values of secrets, and every line was checked against those of this machine.\n\n{listed}"
    )));
    write(&path, &pieces, now)?;
    let bytes = std::fs::metadata(&path).with_context(|| format!("check {path}"))?.len();
    let names: Vec<&str> = pieces.iter().map(|(name, _)| name.as_str()).collect();
    let mut text = format!("{path}  {}\n{}", size(bytes), listed.trim_end());
    text.push_str("\nIt is an uncompressed tar file: review it before you send it.");
    let document =
        json!({ "environment": name, "file": path, "bytes": bytes, "files": names, "lines_left_out": left_out });
    Ok(Success::new(text, document))
}

/// Every secret value that a document or a log might contain.
struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    fn of(chosen: &ChosenEnvironment) -> Result<Self, Failure> {
        let mut values = Vec::new();
        let mut todo = vec![chosen.scope.folder.join(clouds::SECRETS)];
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                let entries = path.read_dir_utf8().with_context(|| format!("list {path}"))?;
                todo.extend(entries.flatten().map(|entry| entry.into_path()));
            } else if path.is_file() {
                values.push(std::fs::read(&path).with_context(|| format!("read {path}"))?);
            }
        }
        let environment = serde_json::to_value(&chosen.loaded.environment).context("read the environment")?;
        values.extend(referred(&environment).into_iter().map(String::into_bytes));
        // Each line of a key file except its frame is a secret on its own, and so is each token of JSON.
        let mut words: Vec<Vec<u8>> = values
            .iter()
            .flat_map(|value| value.split(|byte| b"\n\r".contains(byte)))
            .filter(|line| !line.starts_with(b"-----"))
            .flat_map(|line| line.split(|byte| b"\" ,{}".contains(byte)))
            .filter(|word| word.len() >= SHORTEST && !is_plain(word))
            .map(<[u8]>::to_vec)
            .collect();
        words.sort();
        words.dedup();
        Ok(Self(words))
    }

    fn out_of(&self, text: &str) -> (String, usize) {
        let mut lines = 0;
        let clean: Vec<&str> = text
            .lines()
            .map(|line| {
                let holds = self.0.iter().any(|secret| holds(line.as_bytes(), secret));
                lines += usize::from(holds);
                if holds { LEFT_OUT } else { line }
            })
            .collect();
        (clean.join("\n") + "\n", lines)
    }
}

/// The values of an environment's references to secrets.
fn referred(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) if text.starts_with("secret:") => {
            text.parse::<SecretSource>().ok().and_then(|source| source.read()).into_iter().collect()
        }
        Value::Array(items) => items.iter().flat_map(referred).collect(),
        Value::Object(members) => members.values().flat_map(referred).collect(),
        _ => Vec::new(),
    }
}

/// Tokens of secret files that are not secret: the names of members.
fn is_plain(word: &[u8]) -> bool {
    word.iter().all(|byte| byte.is_ascii_lowercase() || b"_:-".contains(byte))
}

fn holds(line: &[u8], secret: &[u8]) -> bool {
    line.windows(secret.len()).any(|window| window == secret)
}

fn write(path: &Utf8Path, pieces: &[(String, String)], now: Timestamp) -> Result<(), Failure> {
    // A pipe or a device such as /dev/stdout is written to; a file or a link is replaced.
    let is_stream = std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir());
    if is_stream {
        let mut stream = std::fs::OpenOptions::new().write(true).open(path).with_context(|| format!("open {path}"))?;
        return Ok(pack(&mut stream, path, pieces, now)?);
    }
    Replace::private().with(path, |file| pack(file, path, pieces, now))?;
    Ok(())
}

fn pack(file: &mut std::fs::File, path: &Utf8Path, pieces: &[(String, String)], now: Timestamp) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(file);
    let root = Utf8PathBuf::from(path.file_stem().unwrap_or("support"));
    for (name, text) in pieces {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.as_second().unsigned_abs());
        tar.append_data(&mut header, root.join(name), text.as_bytes()).with_context(|| format!("write {path}"))?;
    }
    tar.finish().with_context(|| format!("write {path}"))
}
