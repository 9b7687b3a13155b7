//! `batch`: requests that the running service answers when it has time.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use textnlp_files::Replace;
use textnlp_orchestrator::report::table::{Table, names};
use textnlp_service::batches;
use textnlp_service::client::{Client, Refusal};
use textnlp_service::output;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::prelude::*;
use crate::batch_args::{Batch, BatchId, BatchList, BatchResults, BatchSubmit};
use crate::server_args::OtherServer;
use crate::{signals, table_view};

/// The first pause between two polls of a batch; each is twice the one before it, up to the longest.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The longest pause between two polls.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Failed polls one after the other that end a wait: an update of the service takes fewer.
const MAX_FAILED_POLLS: u32 = 12;
/// Limit of results in a JSON document, in bytes. A file has no such limit.
const MAX_DOCUMENT: usize = 64 << 20;
/// Limit of one line of results, in bytes: above that of an answer, which the server bounds.
const MAX_RESULT_LINE: usize = 32 << 20;

/// `batch …`.
pub async fn batch(session: &Session, command: &Batch, console: Console) -> Result<Success, Failure> {
    match command {
        Batch::Submit(args) => submit(session, args, console).await,
        Batch::List(args) => list(session, args).await,
        Batch::Show(args) => {
            let client = connect(session, &args.batch.other).await?;
            let shown = find(&client, &args.batch.id).await?;
            if args.wait {
                wait(&client, shown, console).await
            } else {
                Ok(Success::new(text(&shown), batch_document(&shown)))
            }
        }
        Batch::Results(args) => results(session, args, console).await,
        Batch::Cancel(args) => {
            let client = connect(session, &args.other).await?;
            let shown = client.post(&format!("/v1/batches/{}/cancel", args.id), &json!({})).await?;
            Ok(Success::new(text(&shown), batch_document(&shown)))
        }
        Batch::Delete(args) => delete(session, args).await,
    }
}

async fn connect(session: &Session, other: &OtherServer) -> Result<Client, Failure> {
    Ok(Client::new(session.target_or(other).await?)?)
}

async fn submit(session: &Session, args: &BatchSubmit, console: Console) -> Result<Success, Failure> {
    let path = session.here.join(&args.requests);
    let progress = Progress::new(console);
    progress.doing(&format!("checking {path}"));
    let (file, checked) = tokio::task::block_in_place(|| open(&path))?;
    let client = connect(session, &args.other).await?;
    // What refuses batches, or this key, is known before a large file is sent.
    client.get("/v1/batches?limit=1").await?;
    progress.doing(&format!("sending {}", counted(checked.requests, "request")));
    let sent = client.upload("/v1/files", file_name(&path), file).await?;
    let input = sent["id"].as_str().context("the answer to the upload has no id")?.to_owned();
    let wanted = json!({ "input_file_id": input, "endpoint": checked.endpoint, "completion_window": "24h" });
    let created = match client.post("/v1/batches", &wanted).await {
        Ok(created) => created,
        Err(failure) => return Err(without_file(&client, &input, failure).await),
    };
    progress.finish();
    if args.wait {
        console.say(format!("Created {}. It goes on when this command is stopped.", id_of(&created)));
        return wait(&client, created, console).await;
    }
    console.say(format!("Results, when it has ended: {}", next(&client, "results", &created)));
    Ok(Success::new(text(&created), batch_document(&created)))
}

/// Opens and checks a file of requests.
fn open(path: &Utf8Path) -> Result<(File, batches::CheckedFile), Failure> {
    let hint = "give a file of requests, one JSON document a line";
    let found = std::fs::metadata(path).with_context(|| format!("read {path}"));
    let found = found.map_err(|error| Failure::usage("unreadable_file", error).or_hint(hint))?;
    if !found.is_file() {
        return Err(Failure::usage("unreadable_file", anyhow::anyhow!("{path} is not a file")).hint(hint));
    }
    if found.len() > batches::MAX_FILE_BYTES {
        let error = anyhow::anyhow!("{path} has {}: a file of requests has at most 1 GiB", size(found.len()));
        return Err(Failure::usage("file_too_large", error).hint("split it into several files"));
    }
    let file = File::open(path).with_context(|| format!("read {path}"));
    let file = file.map_err(|error| Failure::usage("unreadable_file", error).or_hint(hint))?;
    let checked = batches::check(path.as_str(), BufReader::with_capacity(1 << 16, &file))?;
    Ok((file, checked))
}

/// The name that the service stores, if it is plain.
fn file_name(path: &Utf8Path) -> &str {
    let is_plain = |name: &&str| {
        name.len() <= 200 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    path.file_name().filter(is_plain).unwrap_or("requests.jsonl")
}

/// The failure of a batch that was not created, after its file was deleted again.
async fn without_file(client: &Client, file: &str, failure: Failure) -> Failure {
    match client.delete(&format!("/v1/files/{file}")).await {
        Ok(_) => failure,
        Err(_) => {
            let hint = client.same(&format!("batch delete {file}"));
            let hint = format!("the sent file is still stored; delete it: {hint}");
            let own = failure.hint.clone();
            failure.hint(own.map_or(hint.clone(), |own| format!("{own}\n{hint}")))
        }
    }
}

async fn find(client: &Client, id: &str) -> Result<Value, Failure> {
    client.get(&format!("/v1/batches/{id}")).await
}

/// Waits until a batch has ended. It runs on when the command is stopped.
async fn wait(client: &Client, mut shown: Value, console: Console) -> Result<Success, Failure> {
    let (stop, progress) = (signals::stop(console), Progress::new(console));
    let (mut pause, mut failed) = (POLL_INTERVAL, 0);
    while !batches::is_final(status_of(&shown)) {
        progress.doing(&text(&shown));
        if is_stopped_within(&stop, pause).await {
            progress.finish();
            let error = anyhow::anyhow!("stopped waiting; the batch goes on: {}", text(&shown));
            let again = format!("{} --wait", next(client, "show", &shown));
            return Err(Failure::new(Exit::Stopped, "stopped", error).hint(again).document(batch_document(&shown)));
        }
        pause = (pause * 2).min(POLL_INTERVAL_MAX);
        let polled = find(client, id_of(&shown)).await;
        match polled {
            Ok(now) => {
                if counts(&now) != counts(&shown) || status_of(&now) != status_of(&shown) {
                    progress.log(&text(&now));
                }
                (shown, failed) = (now, 0);
            }
            Err(failure) if failed + 1 >= MAX_FAILED_POLLS || is_refused(&failure) => {
                progress.finish();
                let hint = match is_refused(&failure) {
                    true => client.same("batch list"),
                    false => format!("{} --wait", next(client, "show", &shown)),
                };
                return Err(failure.or_hint(hint).document(batch_document(&shown)));
            }
            Err(_) => failed += 1,
        }
    }
    progress.finish();
    let (total, completed, _) = counts(&shown);
    if status_of(&shown) == "completed" && completed == total {
        console.say(format!("Results: {}", next(client, "results", &shown)));
        return Ok(Success::new(text(&shown), batch_document(&shown)));
    }
    let reason = shown["errors"]["data"][0]["message"].as_str();
    let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
    let error = anyhow::anyhow!("not every request has an answer: {}{reason}", text(&shown));
    let hint = format!("the errors are in the results: {}", next(client, "results", &shown));
    Err(Failure::new(Exit::Failed, "batch_failed", error).hint(hint).document(batch_document(&shown)))
}

/// Whether the service runs and refuses the poll: the batch is gone, or the key is no longer valid.
fn is_refused(failure: &Failure) -> bool {
    failure.error.downcast_ref::<Refusal>().is_some_and(Refusal::is_final)
}

/// Whether the command is stopped in this time.
async fn is_stopped_within(stop: &CancellationToken, pause: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => true,
        () = tokio::time::sleep(pause) => false,
    }
}

async fn list(session: &Session, args: &BatchList) -> Result<Success, Failure> {
    let client = connect(session, &args.other).await?;
    let after = args.after.as_ref().map_or(String::new(), |id| format!("&after={id}"));
    let page = client.get(&format!("/v1/batches?limit={}{after}", args.limit)).await?;
    let found = page["data"].as_array().cloned().unwrap_or_default();
    let more = page["has_more"] == true;
    let document = json!({ "batches": found, "has_more": more, "last_id": page["last_id"] });
    if found.is_empty() {
        return Ok(Success::new("no batches", document));
    }
    let columns = names(&["ID", "STATUS", "ENDPOINT", "REQUESTS", "COMPLETED", "FAILED", "CREATED"]);
    let mut text = counted(found.len(), "batch");
    text.push_str(&table_view::lines(&Table { title: "", columns, rows: found.iter().map(row).collect() }));
    if let Some(last) = page["last_id"].as_str().filter(|_| more) {
        text.push_str(&format!("\n  earlier ones: {}", client.same(&format!("batch list --after {last}"))));
    }
    Ok(Success::new(text, document))
}

fn row(batch: &Value) -> Vec<String> {
    let (total, completed, failed) = counts(batch);
    let created = batch["created_at"].as_i64().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let created = created.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string());
    let endpoint = batch["endpoint"].as_str().unwrap_or("-").to_owned();
    let [total, completed, failed] = [total, completed, failed].map(|count| count.to_string());
    vec![id_of(batch).to_owned(), status_of(batch).to_owned(), endpoint, total, completed, failed, created]
}

async fn results(session: &Session, args: &BatchResults, console: Console) -> Result<Success, Failure> {
    let client = connect(session, &args.batch.other).await?;
    let id = args.batch.id.as_str();
    let (files, batch) = if is_file(id) {
        (vec![id.to_owned()], Value::Null)
    } else {
        let shown = find(&client, id).await?;
        (result_files(&client, &shown)?, shown)
    };
    let mut document = json!({ "batch": batch, "files": files });
    if let Some(out) = &args.out {
        let path = session.here.join(out);
        let bytes = write(&client, &files, &path)?;
        document["file"] = json!(path);
        document["bytes"] = json!(bytes);
        return Ok(Success::new(format!("wrote {path}"), document));
    }
    let mut lines = ResultLines::default();
    let mut printed = Printed { console, kept: Vec::new(), kept_bytes: 0 };
    for file in &files {
        let path = format!("/v1/files/{file}/content");
        client.download(&path, |part| lines.take(part, |line| printed.line(line))).await?;
        lines.finish(|line| printed.line(line))?;
    }
    if console.is_text() {
        return Ok(Success::default());
    }
    document["results"] = Value::Array(printed.kept);
    Ok(Success::new("", document))
}

/// Whether an id is that of a file.
fn is_file(id: &str) -> bool {
    id.starts_with("file-")
}

/// The files with the results of a batch.
fn result_files(client: &Client, shown: &Value) -> Result<Vec<String>, Failure> {
    if !batches::is_final(status_of(shown)) {
        let error = anyhow::anyhow!("the results appear when the batch has ended: {}", text(shown));
        let hint = format!("{} --wait", next(client, "show", shown));
        return Err(Failure::new(Exit::Failed, "batch_unfinished", error).hint(hint).document(batch_document(shown)));
    }
    let files = ["output_file_id", "error_file_id"].into_iter().filter_map(|name| shown[name].as_str());
    Ok(files.map(str::to_owned).collect())
}

/// Writes files one after the other to the file that the operator named. After an error it is as it was before.
fn write(client: &Client, files: &[String], path: &Utf8Path) -> Result<u64, Failure> {
    let (mut bytes, mut failed) = (0_u64, None);
    let written = output::fill(path, Replace::private(), |out| {
        let downloaded = tokio::task::block_in_place(|| {
            Handle::current().block_on(async {
                for file in files {
                    let content = format!("/v1/files/{file}/content");
                    let each = |part: &[u8]| -> Result<(), Failure> {
                        bytes += part.len() as u64;
                        Ok(out.write_all(part).with_context(|| format!("write {path}"))?)
                    };
                    client.download(&content, each).await?;
                }
                Ok::<(), Failure>(())
            })
        });
        downloaded.map_err(|failure| {
            let error = anyhow::anyhow!("{:#}", failure.error);
            failed = Some(failure);
            error
        })
    });
    match (failed, written) {
        // That of the service, with its hint.
        (Some(failure), _) => Err(failure),
        (None, written) => written.map(|()| bytes),
    }
}

/// Results that are printed line by line, or kept for the document.
struct Printed {
    console: Console,
    kept: Vec<Value>,
    kept_bytes: usize,
}

impl Printed {
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if self.console.is_text() {
            self.console.stream(&format!("{}\n", String::from_utf8_lossy(line)));
            return Ok(());
        }
        self.kept_bytes += line.len();
        if self.kept_bytes > MAX_DOCUMENT {
            let error =
                anyhow::anyhow!("the results have more than {}, too much for one document", size(MAX_DOCUMENT as u64));
            return Err(Failure::usage("results_too_large", error).hint("write them to a file: --out FILE"));
        }
        self.kept.push(serde_json::from_slice(line).context("read a result")?);
        Ok(())
    }
}

/// Splits a download into lines.
#[derive(Default)]
struct ResultLines {
    rest: Vec<u8>,
}

impl ResultLines {
    fn take(&mut self, part: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.len() > MAX_RESULT_LINE {
                return Err(Failure::from(anyhow::anyhow!(
                    "a line of the results has more than {MAX_RESULT_LINE} bytes"
                )));
            }
            if self.rest.ends_with(b"\n") {
                self.finish(&mut each)?;
            }
        }
        Ok(())
    }

    /// Takes what is left as a line.
    fn finish(&mut self, mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let line = std::mem::take(&mut self.rest);
        if line.trim_ascii().is_empty() { Ok(()) } else { each(line.trim_ascii_end()) }
    }
}

async fn delete(session: &Session, args: &BatchId) -> Result<Success, Failure> {
    let client = connect(session, &args.other).await?;
    let id = args.id.as_str();
    if is_file(id) {
        if client.delete(&format!("/v1/files/{id}")).await?.is_none() {
            let error = anyhow::anyhow!("there is no file {id}");
            return Err(Failure::usage("no_such_file", error).hint(client.same("batch list")));
        }
        return Ok(Success::new(format!("deleted {id}"), json!({ "deleted": [id] })));
    }
    let shown = find(&client, id).await?;
    if !batches::is_final(status_of(&shown)) {
        let error = anyhow::anyhow!("the batch has not ended: {}", text(&shown));
        let hint = format!("cancel it first: {}", next(&client, "cancel", &shown));
        return Err(Failure::refused("batch_unfinished", error).hint(hint).document(batch_document(&shown)));
    }
    let mut deleted = Vec::new();
    for name in ["input_file_id", "output_file_id", "error_file_id"] {
        let Some(file) = shown[name].as_str() else { continue };
        // What an earlier run or the retention has deleted is missing.
        if client.delete(&format!("/v1/files/{file}")).await?.is_some() {
            deleted.push(file);
        }
    }
    let text = format!("deleted {} of {id}", counted(deleted.len(), "file"));
    Ok(Success::new(text, json!({ "batch": shown, "deleted": deleted })))
}

fn batch_document(batch: &Value) -> Value {
    json!({ "batch": batch })
}

fn id_of(batch: &Value) -> &str {
    batch["id"].as_str().unwrap_or("?")
}

fn status_of(batch: &Value) -> &str {
    batch["status"].as_str().unwrap_or("?")
}

/// All requests, those with an answer, and those with an error.
fn counts(batch: &Value) -> (u64, u64, u64) {
    let count = |name: &str| batch["request_counts"][name].as_u64().unwrap_or_default();
    (count("total"), count("completed"), count("failed"))
}

/// A batch in a line: `batch_… in_progress, 2 of 3 requests completed, 0 failed`.
fn text(batch: &Value) -> String {
    let (total, completed, failed) = counts(batch);
    let requests = counted(total, "request");
    format!("{} {}, {completed} of {requests} completed, {failed} failed", id_of(batch), status_of(batch))
}

/// The command about a batch that an operator runs next.
fn next(client: &Client, verb: &str, batch: &Value) -> String {
    client.same(&format!("batch {verb} {}", id_of(batch)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_is_described_in_a_line() {
        let batch = json!({
            "id": "batch_1", "status": "in_progress", "endpoint": "/v1/generate", "created_at": 0,
            "request_counts": { "total": 3, "completed": 2, "failed": 1 },
        });
        assert_eq!(text(&batch), "batch_1 in_progress, 2 of 3 requests completed, 1 failed");
        assert_eq!(row(&batch), ["batch_1", "in_progress", "/v1/generate", "3", "2", "1", "1970-01-01 00:00"]);
    }

    #[test]
    fn results_are_split_into_lines_wherever_their_parts_end() {
        let text = "{\"a\":\"ü\"}\n\n{\"b\":1}".as_bytes();
        for split in 0..=text.len() {
            let (mut lines, mut found) = (ResultLines::default(), Vec::new());
            let mut keep = |line: &[u8]| -> Result<(), Failure> {
                found.push(String::from_utf8(line.to_vec()).unwrap());
                Ok(())
            };
            lines.take(&text[..split], &mut keep).unwrap();
            lines.take(&text[split..], &mut keep).unwrap();
            lines.finish(&mut keep).unwrap();
            assert_eq!(found, ["{\"a\":\"ü\"}", "{\"b\":1}"], "split at {split}");
        }
    }

    #[test]
    fn names_of_files_are_sent_only_if_they_are_plain() {
        for (path, name) in
            [("/a/requests-1.jsonl", "requests-1.jsonl"), ("/a/b\".jsonl", "requests.jsonl"), ("/", "requests.jsonl")]
        {
            assert_eq!(file_name(Utf8Path::new(path)), name);
        }
    }

    #[test]
    fn folders_and_missing_files_are_refused_with_a_hint() {
        for path in ["/", "/nonexistent/requests.jsonl"] {
            let failure = open(Utf8Path::new(path)).unwrap_err();
            assert!(
                failure.code == "unreadable_file" && failure.exit == Exit::Usage && failure.hint.is_some(),
                "{path}"
            );
        }
    }
}
