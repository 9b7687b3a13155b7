//! A stand-in for a model hub and its storage host: two real HTTP servers on loopback whose faults a test prescribes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with one answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is cut after this many body bytes.
    Cut(usize),
    /// Another answer.
    Answer { status: u16, headers: Vec<(&'static str, String)> },
    /// The content's last byte is changed.
    Damaged,
    /// The header promises this many bytes more than there are; then the connection ends.
    Promises(i64),
    /// The body stops after this many bytes and the connection stays open.
    Stalls(usize),
    /// A range is answered as if there had been another offset.
    WrongRange,
    /// One byte at a time with a pause between them, until the test says `go`.
    Drips,
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
pub(crate) struct State {
    files: BTreeMap<String, Entry>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) sent: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct Entry {
    content: Vec<u8>,
    status: u16,
    headers: Vec<(String, String)>,
}

#[derive(Clone)]
pub(crate) struct Standin {
    pub(crate) hub: String,
    pub(crate) storage: String,
    pub(crate) state: Arc<Mutex<State>>,
}

/// A file of the repository: small ones lie in git, large ones on the storage host behind a redirect.
pub(crate) struct RepoFile {
    pub(crate) name: &'static str,
    pub(crate) content: Vec<u8>,
    pub(crate) large: bool,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    textnlp_models::Digest::of(bytes).hex()
}

fn git_blob(bytes: &[u8]) -> String {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    hex::encode(context.finish())
}

/// Bytes that no compression or repetition could hide a mistake in.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

impl Standin {
    pub(crate) async fn start() -> Standin {
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let standin = Standin {
            hub: format!("http://{}", hub.local_addr().unwrap()),
            storage: format!("http://{}", storage.local_addr().unwrap()),
            state: Arc::default(),
        };
        for (listener, prefix) in [(hub, "hub"), (storage, "storage")] {
            let state = standin.state.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(connection(stream, state.clone(), prefix));
                }
            });
        }
        standin
    }

    /// Publishes a repository at the commit, under the branch `main`.
    pub(crate) fn publish(&self, repo: &str, files: &[RepoFile]) {
        let siblings: Vec<_> = files
            .iter()
            .map(|file| match file.large {
                true => serde_json::json!({"rfilename": file.name, "size": file.content.len(), "blobId": "0".repeat(40),
                    "lfs": {"sha256": sha256(&file.content), "size": file.content.len(), "pointerSize": 130}}),
                false => serde_json::json!({"rfilename": file.name, "size": file.content.len(), "blobId": git_blob(&file.content)}),
            })
            .collect();
        let listing = serde_json::json!({"id": repo, "sha": COMMIT, "gated": false, "siblings": siblings, "cardData": {"license": "mit"}});
        for revision in ["main", COMMIT] {
            let path = format!("hub/api/models/{repo}/revision/{revision}?blobs=true");
            self.put(&path, 200, listing.to_string().into_bytes(), &[]);
        }
        for file in files {
            let path = format!("hub/{repo}/resolve/{COMMIT}/{}", file.name);
            if file.large {
                let key = sha256(&file.content);
                let headers = [
                    ("location", format!("{}/cdn/{key}?signature=secret", self.storage)),
                    ("x-linked-etag", format!("\"{key}\"")),
                    ("x-linked-size", file.content.len().to_string()),
                    ("x-repo-commit", COMMIT.to_owned()),
                ];
                self.put(&path, 302, b"see there".to_vec(), &headers);
                let tag = [("etag", format!("\"storage-{}\"", &key[..8]))];
                self.put(&format!("storage/cdn/{key}?signature=secret"), 200, file.content.clone(), &tag);
            } else {
                let tag = [("etag", format!("\"{}\"", git_blob(&file.content))), ("x-repo-commit", COMMIT.to_owned())];
                self.put(&path, 200, file.content.clone(), &tag);
            }
        }
    }

    /// Serves this at `hub/…` or `storage/…`.
    pub(crate) fn put(&self, path: &str, status: u16, content: Vec<u8>, headers: &[(&str, String)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.state.lock().unwrap().files.insert(path.to_owned(), Entry { content, status, headers });
    }

    /// The next answers to paths that contain this go wrong in this way.
    pub(crate) fn fault(&self, path_part: &str, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.insert(path_part.to_owned(), faults.into_iter().collect());
    }

    pub(crate) fn requests(&self, path_part: &str) -> Vec<Seen> {
        self.state.lock().unwrap().seen.iter().filter(|seen| seen.path.contains(path_part)).cloned().collect()
    }

    pub(crate) fn sent(&self, path_part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.sent.iter().filter(|(path, _)| path.contains(path_part)).map(|(_, sent)| sent).sum()
    }
}

async fn connection(mut stream: TcpStream, state: Arc<Mutex<State>>, prefix: &'static str) {
    while let Some(seen) = request(&mut stream, prefix).await {
        if !answer(&mut stream, &state, seen).await {
            return;
        }
    }
}

pub(crate) async fn request(stream: &mut TcpStream, prefix: &str) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
    Some(Seen { method, path: format!("{prefix}{path}"), headers: headers.collect() })
}

/// False: the connection is over.
async fn answer(stream: &mut TcpStream, state: &Mutex<State>, seen: Seen) -> bool {
    if seen.method == "HEAD" {
        let entry = state.lock().unwrap().files.get(&seen.path).cloned();
        let Some(Entry { content, status, headers }) = entry else { return false };
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", content.len());
        return stream.write_all(head.as_bytes()).await.is_ok();
    }
    let (entry, fault) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        let key = state.faults.keys().find(|part| seen.path.contains(part.as_str())).cloned();
        let fault = key.and_then(|key| state.faults.get_mut(&key)?.pop_front());
        (state.files.get(&seen.path).cloned(), fault)
    };
    let Some(mut entry) = entry else {
        return send(stream, 404, &[], b"nothing here", None, state, &seen.path).await;
    };
    if let Some(Fault::Answer { status, headers }) = &fault {
        let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        return send(stream, *status, &headers, b"not now", None, state, &seen.path).await;
    }
    if matches!(fault, Some(Fault::Damaged)) {
        *entry.content.last_mut().unwrap() ^= 1;
    }
    let tag = entry.headers.iter().find(|(name, _)| name == "etag").map(|(_, tag)| tag.clone());
    let range = seen
        .headers
        .get("range")
        .and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let same = seen.headers.get("if-range").is_none_or(|wanted| Some(wanted) == tag.as_ref());
    let total = entry.content.len();
    match range {
        Some(from) if entry.status == 200 && same && from >= total => {
            entry.headers.push(("content-range".to_owned(), format!("bytes */{total}")));
            send(stream, 416, &entry.headers, b"", None, state, &seen.path).await
        }
        Some(from) if entry.status == 200 && same => {
            let from = if matches!(fault, Some(Fault::WrongRange)) { from / 2 } else { from };
            entry.headers.push(("content-range".to_owned(), format!("bytes {from}-{}/{total}", total - 1)));
            send(stream, 206, &entry.headers, &entry.content[from..], fault, state, &seen.path).await
        }
        _ => send(stream, entry.status, &entry.headers, &entry.content, fault, state, &seen.path).await,
    }
}

async fn send(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
    fault: Option<Fault>,
    state: &Mutex<State>,
    path: &str,
) -> bool {
    let length = match fault {
        Some(Fault::Promises(more)) => body.len() as i64 + more,
        _ => body.len() as i64,
    };
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    let upto = match fault {
        Some(Fault::Cut(n) | Fault::Stalls(n)) => n.min(body.len()),
        _ => body.len(),
    };
    let pieces = if matches!(fault, Some(Fault::Drips)) { 1 } else { 8192 };
    for piece in body[..upto].chunks(pieces) {
        if stream.write_all(piece).await.is_err() || stream.flush().await.is_err() {
            return false;
        }
        *state.lock().unwrap().sent.entry(path.to_owned()).or_default() += piece.len();
        if pieces == 1 {
            // What is being tested is that somebody gives up on this.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    match fault {
        Some(Fault::Stalls(_)) => {
            let _ = stream.read_u8().await;
            false
        }
        Some(Fault::Cut(_) | Fault::Promises(_)) => false,
        _ => true,
    }
}
