//! A backup directory in a bucket: S3, Google Cloud Storage, Azure Blob Storage, or another store with conditional writes.
//!
//! The names are those of a folder. A backup is first written on this machine, so that its digest is known. Its metadata
//! then reserves the name by a conditional write, by which only one of two writers gets it. The backup itself appears
//! under that name when its upload is complete. Metadata without a backup is an upload that did not end.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload,
};
use textnlp_files::Replace;
use textnlp_net::error_chain;
use tokio::runtime::Handle;

use super::Error;
use super::directory::{BESIDE_MAX, BackupDirectory, BackupFacts, FACTS, PROOF, Place, backup_of, remove};
use super::dumps::{DumpFolder, is_copy};

/// The bytes of a part in memory. A longer backup than [`PARTS_MAX`] of them has longer parts.
const PART: u64 = 16 << 20;
/// S3 takes 10,000 parts: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
const PARTS_MAX: u64 = 9_000;
/// The most objects that are listed.
const LISTED_MAX: usize = 100_000;
/// The most requests for metadata in flight.
const PARALLEL: usize = 16;
/// The most characters of a store's answer that are shown.
const SHOWN_MAX: usize = 600;
/// The most time for a list or the records of backups: `status` waits for it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The most time for an upload. It has to end before its reserved name is given up.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(86_400);
/// How long a reserved name without a backup is kept: as long as S3 keeps the parts of one by the rule that the guide recommends.
const UPLOAD_MAX_SECONDS: i64 = 7 * 86_400;

const DENIED: &str = "grant them permission to list, read, write and delete objects under this prefix, or correct the file of `backup.credentials`";
const NO_BUCKET: &str = "create the bucket or container first, or correct its name in `backup.destination`";
const NOT_THERE: &str = "give the address of a backup that `backup list` prints";
const NO_CREDENTIALS: &str = "write the variables with credentials into a file, and `backup.credentials: secret:file:/PATH`; or run on a machine with a role";
const NO_CONDITIONS: &str = "use a store with conditional writes, or a folder as `backup.destination`";
const UNREACHABLE: &str =
    "check that the store can be reached, and that its region is that of the variables, then run this again";

/// A folder of a bucket.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    root: Path,
    at: Utf8PathBuf,
    signed_in: String,
}

/// What [`Bucket::copy_dumps`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CopiedDumps {
    /// The names of the new copies.
    pub copied: Vec<String>,
    /// The count of expired copies that were removed.
    pub removed: usize,
    /// Why expired copies are retained.
    pub retained: Vec<String>,
}

impl fmt::Debug for Bucket {
    /// A store has credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.at).finish()
    }
}

impl Bucket {
    /// The folder `prefix` of an open bucket. `address` is how an operator writes it, and `signed_in` names what has the
    /// credentials.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, address: &str, signed_in: impl Into<String>) -> Self {
        let parts = prefix.split('/').filter(|part| !part.is_empty());
        let root = parts.fold(Path::default(), |path, part| path.join(part));
        Self { store, root, at: address.trim_end_matches('/').into(), signed_in: signed_in.into() }
    }

    /// The backup directory in it. Backups are written to `workplace`, a folder of this machine, and then uploaded.
    pub fn directory(self, workplace: impl Into<Utf8PathBuf>) -> BackupDirectory {
        BackupDirectory::elsewhere(Arc::new(self), workplace.into())
    }

    /// A folder in it.
    #[must_use]
    pub fn folder(self, name: &str) -> Self {
        Self { root: self.root.join(name), at: self.at.join(name), ..self }
    }

    /// Copies the encrypted dumps that are missing here, the oldest first. Then removes copies that are here for longer
    /// than `keep`, but never the newest one, and none from before the first dump in the folder: it is of another volume.
    pub fn copy_dumps(&self, dumps: &DumpFolder, keep: Duration, now: Timestamp) -> Result<CopiedDumps, Error> {
        let mut done = CopiedDumps::default();
        let there = self.objects()?;
        for (file, name) in dumps.copies()? {
            // Copies appear whole. A file that was put back may be cut off, and must not replace its copy.
            if there.iter().any(|(known, _)| *known == name) {
                continue;
            }
            self.send(&file, &name)?;
            done.copied.push(name);
        }
        let mut copies: Vec<(String, ObjectMeta)> =
            self.objects()?.into_iter().filter(|(name, _)| is_copy(name)).collect();
        copies.sort_by_key(|(_, object)| object.last_modified);
        copies.pop();
        let since = Timestamp::try_from(dumps.since()?).unwrap_or(Timestamp::MAX).as_second();
        copies.retain(|(_, object)| object.last_modified.timestamp() >= since);
        let age = |object: &ObjectMeta| u64::try_from(now.as_second() - object.last_modified.timestamp()).unwrap_or(0);
        for (name, _) in copies.iter().filter(|(_, object)| age(object) > keep.as_secs()) {
            match self.remove(name)? {
                None => done.removed += 1,
                Some(why) => done.retained.push(why),
            }
        }
        Ok(done)
    }

    /// Uploads a file of this machine. A short one must not exist yet with other content, and a long one appears when it
    /// is complete.
    fn send(&self, whole: &Utf8Path, name: &str) -> Result<(), Error> {
        let mut file = File::open(whole).map_err(Error::io("open", whole))?;
        let bytes = file.metadata().map_err(Error::io("check", whole))?.len();
        let part = PART.max(bytes.div_ceil(PARTS_MAX));
        if bytes > part {
            return wait(self.upload(&mut file, part, whole, name));
        }
        match wait(self.create(name, next(&mut file, part, whole)?))? {
            true => Ok(()),
            false => Err(Error::io("name", self.at.join(name))(io::ErrorKind::AlreadyExists.into())),
        }
    }

    fn path(&self, name: &str) -> Path {
        self.root.clone().join(name)
    }

    /// Waits for an answer that is shown.
    fn soon<T>(&self, action: &'static str, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let within = async { tokio::time::timeout(READ_TIMEOUT, request).await };
        wait(within).unwrap_or_else(|_| {
            Err(self.failed(action, "", unusual(format!("no complete answer in {} s", READ_TIMEOUT.as_secs()))))
        })
    }

    /// The objects directly in the folder, with their names.
    fn objects(&self) -> Result<Vec<(String, ObjectMeta)>, Error> {
        let listed = self.soon("list", async {
            let listed = self.store.list_with_delimiter(Some(&self.root)).await;
            listed.map(|listed| listed.objects).map_err(|error| self.failed("list", "", error))
        })?;
        if listed.len() > LISTED_MAX {
            return Err(self.failed("list", "", unusual(format!("it has more than {LISTED_MAX} objects"))));
        }
        let name = |object: &ObjectMeta| {
            let mut parts = object.location.prefix_match(&self.root)?;
            let is_direct = parts.next().is_some() && parts.next().is_none();
            object.location.filename().filter(|_| is_direct).map(str::to_owned)
        };
        Ok(listed.into_iter().filter_map(|object| Some((name(&object)?, object))).collect())
    }

    /// An object of at most `most` bytes; `None` if it does not exist or is longer.
    async fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let got = match self.store.get_opts(&self.path(name), GetOptions::default()).await {
            Ok(got) if got.meta.size > most => return Ok(None),
            Ok(got) => got.bytes().await,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => Err(error),
        };
        got.map(|bytes| Some(bytes.to_vec())).map_err(|error| self.failed("read", name, error))
    }

    /// Writes an object that must not exist yet. A request whose answer was lost is repeated, and then finds its own
    /// object.
    async fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Error> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(name), PutPayload::from(bytes.clone()), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(self.read(name, bytes.len() as u64).await?.is_some_and(|there| there == bytes))
            }
            Err(error) => Err(self.failed("write", name, error)),
        }
    }

    /// Uploads a file in parts, one at a time in memory.
    async fn upload(&self, file: &mut File, part: u64, whole: &Utf8Path, name: &str) -> Result<(), Error> {
        let fails = |error| self.failed("upload", name, error);
        let began = Instant::now();
        let started = self.store.put_multipart_opts(&self.path(name), PutMultipartOptions::default()).await;
        let mut upload = started.map_err(fails)?;
        let sent = async {
            loop {
                if began.elapsed() > UPLOAD_TIMEOUT {
                    return Err(fails(unusual("it took longer than a day".to_owned())));
                }
                let bytes = next(file, part, whole)?;
                if bytes.is_empty() {
                    return upload.complete().await.map(drop).map_err(fails);
                }
                upload.put_part(PutPayload::from(bytes)).await.map_err(fails)?;
            }
        };
        let sent = sent.await;
        if sent.is_err() {
            // Parts that cannot be removed either are for the bucket's rule about incomplete uploads.
            let _ = upload.abort().await;
        }
        sent
    }

    fn failed(&self, action: &'static str, name: &str, error: object_store::Error) -> Error {
        use object_store::Error as E;
        let says = error_text(&error);
        let has = |parts: &[&str]| parts.iter().any(|part| says.contains(part));
        let hint = match &error {
            _ if has(&["NoSuchBucket", "ContainerNotFound"]) => NO_BUCKET,
            _ if has(&["169.254.169.254", "metadata.google.internal"]) => NO_CREDENTIALS,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => DENIED,
            E::NotSupported { .. } | E::NotImplemented { .. } => NO_CONDITIONS,
            // A list that is denied has no error of its own.
            _ if has(&["401 Unauthorized", "403 Forbidden"]) => DENIED,
            E::NotFound { .. } if name.is_empty() => NO_BUCKET,
            E::NotFound { .. } => NOT_THERE,
            _ => UNREACHABLE,
        };
        let path = if name.is_empty() { self.at.clone() } else { self.at.join(name) };
        Error::Bucket { action, path, signed_in: self.signed_in.clone(), hint, source: says.into() }
    }
}

impl Place for Bucket {
    fn at(&self) -> &Utf8Path {
        &self.at
    }

    fn names(&self) -> Result<Vec<(String, Option<u64>)>, Error> {
        Ok(self.objects()?.into_iter().map(|(name, object)| (name, Some(object.size))).collect())
    }

    fn documents(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let reads = stream::iter(names.iter().map(|name| self.read(name, BESIDE_MAX)));
        self.soon("read", reads.buffered(PARALLEL).try_collect())
    }

    fn put_document(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let put = wait(self.store.put_opts(&self.path(name), PutPayload::from(bytes.to_vec()), PutOptions::default()));
        put.map(drop).map_err(|error| self.failed("write", name, error))
    }

    /// Written twice: a store that ignores conditions would let one writer replace the backup of another.
    fn claim(&self, record: &str, bytes: &[u8]) -> Result<bool, Error> {
        use object_store::Error as E;
        wait(async {
            if !self.create(record, bytes.to_vec()).await? {
                return Ok(false);
            }
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&self.path(record), PutPayload::from(bytes.to_vec()), options).await {
                Err(E::AlreadyExists { .. } | E::Precondition { .. }) => Ok(true),
                Err(error) => Err(self.failed("write", record, error)),
                Ok(_) => {
                    // These are our own bytes.
                    let _ = self.store.delete(&self.path(record)).await;
                    let source = "it replaces an object that must not exist yet".into();
                    Err(self.failed("write", record, E::NotSupported { source }))
                }
            }
        })
    }

    fn publish(&self, whole: &Utf8Path, name: &str) -> Result<(), Error> {
        self.send(whole, name)?;
        remove(whole)
    }

    fn remove(&self, name: &str) -> Result<Option<String>, Error> {
        match wait(self.store.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) if is_refusal(&error) => Ok(Some(format!(
                "{} is retained: the bucket does not let it be removed ({})",
                self.at.join(name),
                error_text(&error)
            ))),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    fn fetch(&self, name: &str, folder: &Utf8Path) -> Result<Utf8PathBuf, Error> {
        let records = [FACTS, PROOF].map(|ending| format!("{name}.{ending}"));
        for (record, bytes) in records.iter().zip(self.documents(&records)?) {
            if let Some(bytes) = bytes {
                Replace::private().write(folder.join(record), &bytes)?;
            }
        }
        let to = folder.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&to)
            .map_err(Error::io("make", to.as_path()))?;
        wait(async {
            let fails = |error| self.failed("read", name, error);
            let path = self.path(name);
            let found = self.store.head(&path).await.map_err(fails)?;
            let mut done = 0;
            while done < found.size {
                let end = found.size.min(done + PART);
                // Only of the object that was there at the start.
                let options = GetOptions {
                    range: Some(GetRange::Bounded(done..end)),
                    if_match: found.e_tag.clone(),
                    ..GetOptions::default()
                };
                let got = self.store.get_opts(&path, options).await.map_err(fails)?;
                let bytes = got.bytes().await.map_err(fails)?;
                if bytes.len() as u64 != end - done {
                    return Err(Error::Truncated { path: self.at.join(name), what: format!("after byte {done}") });
                }
                file.write_all(&bytes).map_err(Error::io("write", to.as_path()))?;
                done = end;
            }
            Ok(())
        })?;
        Ok(to)
    }

    /// Removes the metadata of uploads that did not end, a week after they began.
    fn tidy(&self, now: Timestamp) -> Result<(), Error> {
        let objects = self.objects()?;
        let is_old = |object: &ObjectMeta| now.as_second() - object.last_modified.timestamp() > UPLOAD_MAX_SECONDS;
        let has = |backup: &str| objects.iter().any(|(name, _)| name == backup);
        for (name, object) in &objects {
            let Some(backup) = backup_of(name).filter(|backup| !has(backup) && is_old(object)) else { continue };
            let document = wait(self.read(name, BESIDE_MAX))?;
            if document.is_some_and(|text| serde_json::from_slice::<BackupFacts>(&text).is_ok()) {
                self.remove(&format!("{backup}.{PROOF}"))?;
                self.remove(name)?;
            }
        }
        Ok(())
    }
}

/// A problem that the store does not report as an error.
fn unusual(text: String) -> object_store::Error {
    object_store::Error::Generic { store: "store", source: text.into() }
}

/// The next part of a file; empty at its end.
fn next(file: &mut File, part: u64, path: &Utf8Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(part).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    Ok(bytes)
}

/// Whether a store that works refuses to remove an object: by its retention, or because these credentials may not.
fn is_refusal(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    match error {
        E::PermissionDenied { .. } | E::AlreadyExists { .. } | E::Precondition { .. } => true,
        // S3 and Azure are asked to remove several at once: the code of each is in the text.
        E::Generic { .. } => {
            let text = error_text(error);
            ["AccessDenied", "(code: 403)", "(code: 409)", "(code: 412)"].iter().any(|code| text.contains(code))
        }
        _ => false,
    }
}

/// An error of a store with its causes on one line; only code and message if the server answered in XML.
pub(crate) fn error_text(error: &object_store::Error) -> String {
    let text = error_chain(error);
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
    let mut shown: String = plain.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_MAX).collect();
    if plain.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Waits for the bucket. Backups are written and read by code that blocks; the runtime's other thread goes on.
fn wait<T>(request: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| Handle::current().block_on(request))
}
