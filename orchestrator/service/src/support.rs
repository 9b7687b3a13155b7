//! Files for support, with secrets redacted.
//!
//! Every line of every text is compared with all secrets of the environment that this machine stores or refers to. A line
//! with a match is replaced and counted.

use std::fmt::Write as _;
use std::fs::File;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::Value;
use textnlp_files::Replace;
use textnlp_orchestrator::environment::model::SecretSource;

use crate::{ChosenEnvironment, Failure, output, size};

/// The replacement of a line with a secret.
const LEFT_OUT: &str = "[a line that holds a secret was left out]";
/// Minimum length of a secret value in bytes. Shorter ones are ordinary words in logs.
const SHORTEST: usize = 8;

/// A written file for support.
pub struct SupportFile {
    /// Its size.
    pub bytes: u64,
    /// Its texts.
    pub names: Vec<String>,
    /// The same as text, with their sizes.
    pub listed: String,
    /// The lines that were left out.
    pub left_out: usize,
}

/// Writes texts without the secrets of an environment into a tar file, with a list of them.
pub fn write(
    chosen: &ChosenEnvironment,
    path: &Utf8Path,
    mut pieces: Vec<(String, String)>,
    now: Timestamp,
) -> Result<SupportFile, Failure> {
    let secrets = Secrets::of(chosen)?;
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
        "Collected by `textnlp-deploy support-bundle` from environment {} at {now:.0}.\n\
         It contains no secrets: the program never writes values of secrets, and every line was checked against those of this machine.\n\n{listed}",
        chosen.scope.name
    )));
    output::fill(path, Replace::private(), |file| pack(file, path, &pieces, now))?;
    let bytes = std::fs::metadata(path).with_context(|| format!("check {path}"))?.len();
    Ok(SupportFile { bytes, names: pieces.into_iter().map(|(name, _)| name).collect(), listed, left_out })
}

/// Every secret value that a document or a log might contain.
struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    fn of(chosen: &ChosenEnvironment) -> Result<Self, Failure> {
        let mut values = Vec::new();
        let mut todo = vec![chosen.scope.folder.join(chosen.scope.platform.secrets_folder())];
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
            .flat_map(|word| [Some(word), value_of(word)].into_iter().flatten())
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

/// The value of a variable, in a word such as `NAME=VALUE`.
fn value_of(word: &[u8]) -> Option<&[u8]> {
    let at = word.iter().position(|byte| *byte == b'=')?;
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    word[..at].iter().all(is_name).then_some(&word[at + 1..])
}

fn holds(line: &[u8], secret: &[u8]) -> bool {
    line.windows(secret.len()).any(|window| window == secret)
}

fn pack(file: &mut File, path: &Utf8Path, pieces: &[(String, String)], now: Timestamp) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_secrets_are_left_out_and_counted() {
        let secrets = Secrets(vec![b"hunter2-hunter2".to_vec()]);
        let (clean, lines) = secrets.out_of("a\nkey=hunter2-hunter2;\nb");
        assert_eq!((clean.as_str(), lines), (format!("a\n{LEFT_OUT}\nb\n").as_str(), 1));
        assert!(is_plain(b"access_key") && !is_plain(b"Access1"));
        assert_eq!(value_of(b"AWS_SECRET_ACCESS_KEY=hunter2="), Some(b"hunter2=".as_slice()));
        assert_eq!(value_of(b"aGVsbG8="), None, "Base64 ends so");
    }
}
