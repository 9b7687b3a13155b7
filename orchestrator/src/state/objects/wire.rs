//! Bounded reads and conditional writes of whole objects, sealed if the state is.
//!
//! A write whose answer was lost is made again: its condition then fails, and what is there is compared with what was written.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use futures::future::{Either, select};
use futures::stream::StreamExt;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload, UpdateVersion,
};

use super::super::StateError;
use super::Timing;
use super::lease::LEASE;
use crate::backup::{Key, Opener, Seal, opened};
use crate::clock::Clock;

/// How often a request is made again that failed in a way that may pass.
const ATTEMPTS: u32 = 5;

/// The first pause before a request is made again; it doubles each time.
const PAUSE: Duration = Duration::from_millis(200);

/// The most objects of a listing: a journal of a million batches is not one of ours.
const MOST: usize = 1_000_000;

/// Objects in the air at once.
const PARALLEL: usize = 16;

/// The longest object that is read, in bytes.
const LONGEST: u64 = 512 << 20;

pub(super) struct Wire {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) root: Path,
    pub(super) place: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) timing: Timing,
    pub(super) seal: Option<(Seal, Opener)>,
    pub(super) tell: Option<Tell>,
}

/// Whoever is told what is waited for.
pub(super) type Tell = Box<dyn Fn(String) + Send + Sync>;

/// Which version of an object was seen: its ETag, its generation.
pub(super) type Tag = UpdateVersion;

/// An object as it was read.
pub(super) struct Found {
    /// Opened, if the state is sealed.
    pub(super) bytes: Vec<u8>,
    /// As it lies in the store.
    raw: Vec<u8>,
    pub(super) tag: Tag,
}

/// What a conditional write came to.
pub(super) enum Put {
    /// It is there as it was written.
    Done(Tag),
    /// The condition did not hold: this is there instead.
    Taken(Box<Found>),
}

impl Wire {
    pub(super) fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |path, part| path.join(part))
    }

    /// One object; `None` when it is not there.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Found>, StateError> {
        let Some((raw, tag)) = self.get_raw(name).await? else { return Ok(None) };
        Ok(Some(Found { bytes: self.open(name, &raw)?, raw, tag }))
    }

    /// Many objects at once, in order. What is gone is an error: these are never removed.
    pub(super) async fn get_all(&self, names: &[String]) -> Result<Vec<Vec<u8>>, StateError> {
        let names = names.to_vec();
        let reads = futures::stream::iter(names.into_iter().map(|name| async move {
            let found = self.get(&name).await?;
            found.map(|found| found.bytes).ok_or_else(|| self.unreadable(&name, "it was listed and is not there"))
        }));
        let read: Vec<_> = reads.buffered(PARALLEL).collect().await;
        read.into_iter().collect()
    }

    /// The last parts of the names under a folder, after `after`, in order.
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
                        if names.len() > MOST {
                            break;
                        }
                    }
                    Ok(names)
                }
            })
            .await?;
        if names.len() > MOST {
            return Err(self.unreadable(folder, "it holds more than a million objects"));
        }
        // Stores list in order, and not all of them promise it.
        names.sort();
        Ok(names)
    }

    /// The folders right under a folder.
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

    /// Writes an object that must not be there yet.
    pub(super) async fn create(&self, name: &str, bytes: &[u8]) -> Result<Put, StateError> {
        self.put(name, bytes, PutMode::Create).await
    }

    /// Writes over the version that was seen.
    pub(super) async fn update(&self, name: &str, bytes: &[u8], tag: &Tag) -> Result<Put, StateError> {
        self.put(name, bytes, PutMode::Update(tag.clone())).await
    }

    async fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<Put, StateError> {
        // Sealed once: the same bytes are sent again, so that they are known again.
        let raw = self.close(name, bytes)?;
        let mut failures = 0;
        loop {
            let error = match self.put_once(name, &raw, mode.clone()).await {
                Ok(tag) => return Ok(Put::Done(tag)),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => match self.get_raw(name).await? {
                    Some((there, tag)) if there == raw => return Ok(Put::Done(tag)),
                    Some((there, tag)) => {
                        return Ok(Put::Taken(Box::new(Found { bytes: self.open(name, &there)?, raw: there, tag })));
                    }
                    // It says that something is there, and nothing is: it may think better of it.
                    None => Error::Generic { store: "store", source: "it says of a new name that it is taken".into() },
                },
                Err(error) => error,
            };
            failures += 1;
            if failures >= ATTEMPTS || !may_pass(&error) {
                return Err(self.failed("write", name, error));
            }
            self.pause(failures).await;
        }
    }

    /// One conditional write, with whatever comes of it.
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
                if got.meta.size > LONGEST {
                    let source = format!("it has {} bytes, which none of ours has", got.meta.size).into();
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
        let mut failures = 0;
        loop {
            match self.in_time(name, request()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    failures += 1;
                    if failures >= ATTEMPTS || !may_pass(&error) {
                        return Err(self.failed(action, name, error));
                    }
                    self.pause(failures).await;
                }
            }
        }
    }

    async fn in_time<T>(&self, name: &str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        // A lease cannot wait; a long journal on a slow line can.
        let limit = if name == LEASE { self.timing.request } else { self.timing.transfer };
        match select(Box::pin(request), self.clock.sleep(limit)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), _)) => {
                let source = format!("no answer within {} s", limit.as_secs()).into();
                Err(Error::Generic { store: "store", source })
            }
        }
    }

    async fn pause(&self, failures: u32) {
        self.clock.sleep(PAUSE.saturating_mul(1 << (failures - 1).min(4))).await;
    }

    fn failed(&self, action: &'static str, name: &str, error: Error) -> StateError {
        let says = told(&error);
        let hint = match &error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                "give the account that this run uses the right to read, list and write there"
            }
            Error::NotFound { .. } => NO_BUCKET,
            Error::NotSupported { .. } | Error::NotImplemented { .. } => {
                "use a store with conditional writes, or keep the state in a folder (`state.store: local`)"
            }
            Error::InvalidPath { .. } | Error::UnknownConfigurationKey { .. } => {
                "mend `state.store` in the environment file"
            }
            _ if says.contains("NoSuchBucket") || says.contains("ContainerNotFound") => NO_BUCKET,
            // Where clouds keep the credentials of a machine of theirs; it is asked when nothing else has any.
            _ if says.contains("169.254.169.254") || says.contains("metadata.google.internal") => {
                "this run has no credentials: export those of the store, or run where the machine has a role"
            }
            _ => "see that the store can be reached, then run the same command again: nothing that was done is lost",
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
        sealed.map_err(|error| self.unreadable(name, format!("it cannot be sealed: {error}")))?;
        Ok(raw)
    }

    fn open(&self, name: &str, raw: &[u8]) -> Result<Vec<u8>, StateError> {
        const SEALED: &[u8] = b"age-encryption.org/";
        let sealed = raw.starts_with(SEALED);
        let unfit = |because: String| StateError::Sealed { what: format!("{}/{name}", self.place), because };
        let Some((_, opener)) = &self.seal else {
            if sealed {
                return Err(unfit("it is encrypted, and the environment names no `state.encryption_key`".to_owned()));
            }
            return Ok(raw.to_vec());
        };
        if !sealed {
            return Err(unfit("it is not encrypted, and the environment names a `state.encryption_key`".to_owned()));
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

    /// What makes a state sealed by this key.
    pub(super) fn sealed_by(key: Key) -> (Seal, Opener) {
        (Seal::Keys(vec![key.recipient()]), Opener::Keys(vec![key]))
    }
}

impl Found {
    /// As it lies in the store.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }
}

const NO_BUCKET: &str = "make the bucket or container first, this program does not; or mend its name in `state.store`";

/// An error with its causes in one line. Each layer of a client repeats the one below it, and servers answer in XML.
fn told(error: &Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|told| told.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    let text = texts.join(": ");
    let inside = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0.split('\n').next().unwrap_or_default().to_owned())
    };
    let plain = match inside("Code").zip(inside("Message")) {
        Some((code, message)) => {
            let before = text.split("<?xml").next().unwrap_or_default().split("<Error").next().unwrap_or_default();
            format!("{} {code}: {message}", before.trim_end())
        }
        None => text,
    };
    super::super::cut(&plain, 600)
}

/// What another attempt may mend.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::NotModified { .. })
}
