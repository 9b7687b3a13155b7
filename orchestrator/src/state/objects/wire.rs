//! Bounded reads and conditional writes of whole objects, encrypted if the state is.
//!
//! A write whose answer was lost is retried. Its condition then fails, and the stored object is compared with the
//! written one.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use futures::future::{BoxFuture, Either, select};
use futures::stream::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use textnlp_net::retry::{Backoff, Retry, RetryPolicy, Transient, retry_with_clock};

use super::super::StateError;
use super::Timing;
use super::lease::LEASE;
use crate::backup::{Decryptor, EncryptionMode, Key, error_text, opened};
use crate::clock::Clock;

/// Requests to a store are small and sequential. A longer outage of the store ends the run, which can be resumed.
const RETRIES: RetryPolicy =
    RetryPolicy::new(5, Backoff { first: Duration::from_millis(200), longest: Duration::from_millis(3200) });

/// The most objects of a listing; no valid journal has a million batches.
const MAX_LISTED: usize = 1_000_000;

/// The most requests in flight.
const PARALLEL: usize = 16;

/// The largest object that is read, in bytes.
const MAX_OBJECT_BYTES: u64 = 512 << 20;

pub(super) struct Wire {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) root: Path,
    pub(super) place: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) timing: Timing,
    pub(super) seal: Option<(EncryptionMode, Decryptor)>,
    pub(super) tell: Option<WaitReporter>,
}

/// Receives messages about waits.
pub(super) type WaitReporter = Box<dyn Fn(String) + Send + Sync>;

/// The version of an object: its ETag or generation.
pub(super) type Tag = UpdateVersion;

/// An object as it was read.
pub(super) struct Found {
    /// Decrypted, if the state is encrypted.
    pub(super) bytes: Vec<u8>,
    /// As stored.
    raw: Vec<u8>,
    pub(super) tag: Tag,
}

/// The result of a conditional write.
pub(super) enum Put {
    /// It was written.
    Done(Tag),
    /// The condition failed: the present object.
    Taken(Box<Found>),
}

impl Wire {
    pub(super) fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |path, part| path.join(part))
    }

    /// Reads an object; `None` if it does not exist.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Found>, StateError> {
        let Some((raw, tag)) = self.get_raw(name).await? else { return Ok(None) };
        Ok(Some(Found { bytes: self.open(name, &raw)?, raw, tag }))
    }

    /// Reads many objects in parallel, in order. A missing one is an error: they are never removed.
    pub(super) async fn get_all(&self, names: &[String]) -> Result<Vec<Vec<u8>>, StateError> {
        let names = names.to_vec();
        let reads = futures::stream::iter(names.into_iter().map(|name| async move {
            let found = self.get(&name).await?;
            found.map(|found| found.bytes).ok_or_else(|| self.unreadable(&name, "it was listed and is not there"))
        }));
        let read: Vec<_> = reads.buffered(PARALLEL).collect().await;
        read.into_iter().collect()
    }

    /// The base names in a folder, after `after`, in order.
    pub(super) async fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<String>, StateError> {
        let under = self.path(folder);
        let from = after.map(|after| self.path(&format!("{folder}/{after}")));
        let mut names = self
            .again("list", folder, || {
                let (under, from, store) = (under.clone(), from.clone(), self.store.clone());
                async move {
                    let mut listed = match &from {
                        Some(from) => store.list_with_offset(Some(&under), from),
                        None => store.list(Some(&under)),
                    };
                    let mut names = Vec::new();
                    while let Some(found) = listed.next().await {
                        let ObjectMeta { location, .. } = found?;
                        names.extend(location.filename().map(str::to_owned));
                        if names.len() > MAX_LISTED {
                            break;
                        }
                    }
                    Ok(names)
                }
            })
            .await?;
        if names.len() > MAX_LISTED {
            return Err(self.unreadable(folder, "it holds more than a million objects"));
        }
        // Most stores list in order, but not all guarantee it.
        names.sort();
        Ok(names)
    }

    /// The direct subfolders of a folder.
    pub(super) async fn folders(&self, folder: &str) -> Result<Vec<String>, StateError> {
        let under = self.path(folder);
        let listed = self
            .again("list", folder, || {
                let (under, store) = (under.clone(), self.store.clone());
                async move { store.list_with_delimiter(Some(&under)).await }
            })
            .await?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes an object. Nothing is wrong if it does not exist.
    pub(super) async fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        self.again("remove", name, || {
            let (path, store) = (path.clone(), self.store.clone());
            async move {
                let paths = futures::stream::once(async move { Ok(path) }).boxed();
                match store.delete_stream(paths).next().await {
                    Some(Err(error)) if !matches!(error, Error::NotFound { .. }) => Err(error),
                    _ => Ok(()),
                }
            }
        })
        .await
    }

    /// Writes an object that must not exist yet.
    pub(super) async fn create(&self, name: &str, bytes: &[u8]) -> Result<Put, StateError> {
        self.put(name, bytes, PutMode::Create).await
    }

    /// Overwrites the version that was read.
    pub(super) async fn update(&self, name: &str, bytes: &[u8], tag: &Tag) -> Result<Put, StateError> {
        self.put(name, bytes, PutMode::Update(tag.clone())).await
    }

    async fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<Put, StateError> {
        // Encrypted once: a retry sends the same bytes, so that they can be recognized.
        let raw = self.close(name, bytes)?;
        let mut retry = Retry::with_clock(RETRIES, StoreClock(&*self.clock));
        loop {
            let error = match self.put_once(name, &raw, mode.clone()).await {
                Ok(tag) => return Ok(Put::Done(tag)),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match self.get_raw(name).await? {
                    Some((there, tag)) if there == raw => return Ok(Put::Done(tag)),
                    Some((there, tag)) => {
                        return Ok(Put::Taken(Box::new(Found { bytes: self.open(name, &there)?, raw: there, tag })));
                    }
                    // The store reports a conflict but has no object; retried, since this may be transient.
                    None => {
                        Error::Generic { store: "store", source: "it reports that a new name already exists".into() }
                    }
                },
                Err(error) => error,
            };
            match retry.failed(Transient::connection("write"), false) {
                Ok(pause) if may_pass(&error) => retry.sleep(pause).await,
                _ => return Err(self.failed("write", name, error)),
            }
        }
    }

    /// One conditional write without retries.
    pub(super) async fn put_once(&self, name: &str, raw: &[u8], mode: PutMode) -> Result<Tag, Error> {
        let (path, payload) = (self.path(name), PutPayload::from(raw.to_vec()));
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.in_time(name, self.store.put_opts(&path, payload, options)).await?;
        Ok(Tag { e_tag: put.e_tag, version: put.version })
    }

    async fn get_raw(&self, name: &str) -> Result<Option<(Vec<u8>, Tag)>, StateError> {
        let path = self.path(name);
        self.again("read", name, || {
            let (path, store) = (path.clone(), self.store.clone());
            async move {
                let got: GetResult = match store.get_opts(&path, GetOptions::default()).await {
                    Ok(got) => got,
                    Err(Error::NotFound { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                if got.meta.size > MAX_OBJECT_BYTES {
                    let source =
                        format!("it has {} bytes, which is more than this program writes", got.meta.size).into();
                    return Err(Error::NotSupported { source });
                }
                let tag = Tag { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
                Ok(Some((got.bytes().await?.to_vec(), tag)))
            }
        })
        .await
    }

    async fn again<T, F: Future<Output = Result<T, Error>>>(
        &self,
        action: &'static str,
        name: &str,
        request: impl Fn() -> F,
    ) -> Result<T, StateError> {
        let answer = retry_with_clock(RETRIES, StoreClock(&*self.clock), may_pass, || self.in_time(name, request()));
        answer.await.map_err(|error| self.failed(action, name, error))
    }

    async fn in_time<T>(&self, name: &str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // A lease cannot wait; a long journal on a slow connection can.
        let limit = if name == LEASE { self.timing.request } else { self.timing.transfer };
        match select(Box::pin(request), self.clock.sleep(limit)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), _)) => {
                let source = format!("no answer within {} s", limit.as_secs()).into();
                Err(Error::Generic { store: "store", source })
            }
        }
    }

    fn failed(&self, action: &'static str, name: &str, error: Error) -> StateError {
        let says = error_text(&error);
        let hint = match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                "grant the account of this run permission to read, list and write there"
            }
            Error::NotFound { .. } => NO_BUCKET,
            Error::NotSupported { .. } | Error::NotImplemented { .. } => {
                "use a store with conditional writes, or keep the state in a folder (`state.store: local`)"
            }
            Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
                "correct `state.store` in the environment file"
            }
            _ if says.contains("NoSuchBucket") || says.contains("ContainerNotFound") => NO_BUCKET,
            // The metadata services of clouds; they are tried when there are no other credentials.
            _ if says.contains("169.254.169.254") || says.contains("metadata.google.internal") => {
                "this run has no credentials: export those of the store, or run on a machine with a role"
            }
            _ => "check that the store can be reached, then run the same command again: completed work is kept",
        };
        let (what, place) = (format!("`{name}`"), self.place.clone());
        StateError::Object { action, what, place, hint, source: says.into() }
    }

    pub(super) fn unreadable(&self, name: &str, because: impl Into<String>) -> StateError {
        StateError::Unreadable { what: format!("{}/{name}", self.place), because: because.into() }
    }

    fn close(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, StateError> {
        let Some((seal, _)) = &self.seal else { return Ok(bytes.to_vec()) };
        let mut raw = Vec::with_capacity(bytes.len() + 256);
        let sealed = seal
            .write(&mut raw, |out| out.write_all(bytes).map_err(|error| crate::backup::Error::Key(error.to_string())));
        sealed.map_err(|error| self.unreadable(name, format!("it cannot be encrypted: {error}")))?;
        Ok(raw)
    }

    fn open(&self, name: &str, raw: &[u8]) -> Result<Vec<u8>, StateError> {
        const SEALED: &[u8] = b"age-encryption.org/";
        let sealed = raw.starts_with(SEALED);
        let unfit = |because: String| StateError::Sealed { what: format!("{}/{name}", self.place), because };
        let Some((_, opener)) = &self.seal else {
            if sealed {
                return Err(unfit("it is encrypted, and the environment has no `state.encryption_key`".to_owned()));
            }
            return Ok(raw.to_vec());
        };
        if !sealed {
            return Err(unfit("it is not encrypted, and the environment has a `state.encryption_key`".to_owned()));
        }
        let mut from = match opened(Utf8Path::new(name), raw, opener) {
            Ok(from) => from,
            Err(crate::backup::Error::Sealed { why, .. }) => return Err(unfit(why)),
            Err(error) => return Err(self.unreadable(name, error.to_string())),
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut from, &mut bytes).map_err(|error| self.unreadable(name, error.to_string()))?;
        Ok(bytes)
    }

    /// The encryption and decryption with this key.
    pub(super) fn sealed_by(key: Key) -> (EncryptionMode, Decryptor) {
        (EncryptionMode::Keys(vec![key.recipient()]), Decryptor::Keys(vec![key]))
    }
}

impl Found {
    /// As stored.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }
}

const NO_BUCKET: &str = "create the bucket or container first, or correct its name in `state.store`";

/// The engine's clock, for retries.
struct StoreClock<'a>(&'a dyn Clock);

impl textnlp_net::retry::RetryClock for StoreClock<'_> {
    fn now(&self) -> Duration {
        self.0.steady()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'_, ()> {
        self.0.sleep(time)
    }

    // Derived from the clock, so that a run on a virtual clock is reproducible.
    fn jitter(&self) -> f64 {
        f64::from(self.0.steady().subsec_nanos() % 1000) / 999.0
    }
}

/// Whether the error may be transient.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::NotModified { .. })
}
