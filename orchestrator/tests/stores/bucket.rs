//! A bucket in memory that answers as real ones do on a bad day, and that a process can be stopped in front of.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use crate::line::Line;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UpdateVersion,
};

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// 500, 503: nothing happened.
    Error,
    /// 412 although the condition holds: nothing happened.
    Precondition,
    /// It never arrived, and nobody answers.
    Silence,
    /// It happened, and nobody answers.
    LostReply,
    /// It happened, and the version that is told is not the one that is there.
    LiedTag,
    /// The condition does not hold, and the store writes all the same.
    Unconditional,
}

/// Stops whoever crosses it at one of its boundaries, until it is let on.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    crossed: AtomicU64,
    at: u64,
    pub stopped: Arc<AtomicBool>,
    last: Mutex<String>,
}

impl Gate {
    pub fn open() -> Self {
        Self::stops_at(u64::MAX)
    }

    pub fn stops_at(at: u64) -> Self {
        let (crossed, stopped, last) = (AtomicU64::new(0), Arc::default(), Mutex::default());
        Self(Arc::new(Inner { crossed, at, stopped, last }))
    }

    pub fn stopped(&self) -> Arc<AtomicBool> {
        self.0.stopped.clone()
    }

    pub fn last(&self) -> String {
        self.0.last.lock().unwrap().clone()
    }

    pub async fn cross(&self, name: impl FnOnce() -> String) {
        if self.0.crossed.fetch_add(1, Ordering::SeqCst) != self.0.at {
            return;
        }
        *self.0.last.lock().unwrap() = name();
        self.0.stopped.store(true, Ordering::SeqCst);
        std::future::poll_fn(|_| if self.0.stopped.load(Ordering::SeqCst) { Poll::Pending } else { Poll::Ready(()) })
            .await;
    }
}

/// What goes wrong, with names that hold this text, and how many times more.
type Planned = (Wrong, &'static str, u32);

/// One process's way to a bucket that others see too.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<InMemory>,
    /// What goes wrong with the next writes.
    wrongs: Arc<Mutex<Vec<Planned>>>,
    gate: Gate,
    /// What its requests pass on their way.
    line: Option<Line>,
}

impl Bucket {
    pub fn new() -> Self {
        Self { objects: Arc::default(), wrongs: Arc::default(), gate: Gate::open(), line: None }
    }

    /// The same bucket at the other end of a line.
    pub fn over(&self, line: &Line) -> Self {
        Self { line: Some(line.clone()), ..self.clone() }
    }

    /// The same bucket behind a gate.
    pub fn behind(&self, gate: &Gate) -> Self {
        Self { gate: gate.clone(), ..self.clone() }
    }

    pub fn goes_wrong(&self, wrong: Wrong, name: &'static str, times: u32) {
        self.wrongs.lock().unwrap().push((wrong, name, times));
    }

    pub fn heal(&self) {
        self.wrongs.lock().unwrap().clear();
    }

    /// Every object with its bytes, in order.
    pub fn content(&self) -> Vec<(String, Vec<u8>)> {
        futures::executor::block_on(async {
            let listed: Vec<_> = self.objects.list(None).collect().await;
            let mut all = Vec::new();
            for meta in listed {
                let path = meta.unwrap().location;
                let bytes = self.objects.get(&path).await.unwrap().bytes().await.unwrap();
                all.push((path.to_string(), bytes.to_vec()));
            }
            all.sort();
            all
        })
    }

    /// Writes as somebody does who knows no conditions.
    pub fn set(&self, name: &str, bytes: &[u8]) {
        futures::executor::block_on(self.objects.put(&Path::from(name), bytes.to_vec().into())).unwrap();
    }

    /// A request is made; says what goes wrong with it.
    async fn asks(&self, name: &Path) -> Option<Wrong> {
        match &self.line {
            Some(line) => line.asks().await,
            None => self.wrong(name),
        }
    }

    /// A request that only reads.
    async fn reads(&self) -> Result<()> {
        let Some(line) = &self.line else { return Ok(()) };
        match line.asks().await {
            Some(Wrong::Error) => Err(error("503 Slow Down")),
            Some(Wrong::Silence | Wrong::LostReply) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn wrong(&self, name: &Path) -> Option<Wrong> {
        let mut wrongs = self.wrongs.lock().unwrap();
        let at = wrongs.iter().position(|(_, part, times)| *times > 0 && name.as_ref().contains(part))?;
        wrongs[at].2 -= 1;
        Some(wrongs[at].0)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket")
    }
}

fn error(text: &str) -> Error {
    Error::Generic { store: "bucket", source: text.into() }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.gate.cross(|| format!("before writing {location}")).await;
        let wrong = self.asks(location).await;
        match wrong {
            Some(Wrong::Error) => return Err(error("503 Slow Down")),
            Some(Wrong::Silence) => std::future::pending().await,
            Some(Wrong::Precondition) => {
                let (path, source) = (location.to_string(), "412".into());
                return Err(Error::Precondition { path, source });
            }
            _ => {}
        }
        let opts = match wrong {
            Some(Wrong::Unconditional) => PutOptions { mode: PutMode::Overwrite, ..opts },
            _ => opts,
        };
        let written = payload.clone();
        let mut put = self.objects.put_opts(location, payload, opts).await;
        if let (Ok(_), Some(line)) = (&put, &self.line) {
            let bytes: Vec<u8> = written.iter().flat_map(|bytes| bytes.to_vec()).collect();
            line.wrote(location.as_ref(), &bytes);
        }
        match (&mut put, wrong) {
            (Ok(_), Some(Wrong::LostReply)) => std::future::pending().await,
            (Ok(put), Some(Wrong::LiedTag)) => put.e_tag = Some("4711".to_owned()),
            _ => {}
        }
        if let Some(line) = &self.line {
            line.answers().await;
        }
        self.gate.cross(|| format!("after writing {location}")).await;
        put
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gate.cross(|| format!("before reading {location}")).await;
        self.reads().await?;
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (there, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            match there.reads().await {
                Ok(()) => there.objects.list(prefix.as_ref()),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reads().await?;
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[test]
fn fake_bucket_honours_conditional_writes() {
    // What every other test here leans on.
    let bucket = Bucket::new();
    let path = Path::from("a");
    futures::executor::block_on(async {
        let put = |mode: PutMode| {
            bucket.put_opts(&path, PutPayload::from_static(b"x"), PutOptions { mode, ..Default::default() })
        };
        let first = put(PutMode::Create).await.unwrap();
        assert!(matches!(put(PutMode::Create).await, Err(Error::AlreadyExists { .. })));
        let seen = UpdateVersion { e_tag: first.e_tag, version: first.version };
        put(PutMode::Update(seen.clone())).await.unwrap();
        assert!(matches!(put(PutMode::Update(seen)).await, Err(Error::Precondition { .. })));
    });
}
