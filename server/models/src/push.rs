//! `model push`: puts a stored model into a bucket, in a folder named by its digest.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use camino::Utf8Path;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, WriteMultipart};
use serde::Serialize;
use textnlp_net::error_chain;
use tokio::io::AsyncReadExt;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{FileEntry, MANIFEST, Manifest};
use crate::options::FetchOptions;
use crate::progress::{Event, Progress};
use crate::source::BucketSource;
use crate::store::Model;

/// Repetitions of a request that failed.
const RETRIES: usize = 6;
/// The least bytes of a part, and of a file that is sent in parts.
const PART: u64 = 16 << 20;
/// Parts of a file: S3 takes 10,000 (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const MOST_PARTS: u64 = 9_000;
/// Parts that are sent side by side, and held in memory.
const SIDE_BY_SIDE: usize = 4;

/// A model in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The source to write in an environment.
    pub source: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that were sent; the others were there.
    pub sent: u64,
}

/// Puts a model into the folder `DIGEST` below `to`. Files that are there with their sizes are not sent again, unless `overwrite`. Each
/// is verified while it is read, and the manifest comes last: a folder with a manifest is complete.
pub async fn push(
    model: &Model,
    to: &BucketSource,
    overwrite: bool,
    options: &FetchOptions,
    progress: &Progress<'_>,
) -> Result<Pushed> {
    let of = &model.manifest;
    let folder = to.below(&of.digest.to_string().replace(':', "-"));
    progress(Event::Resolving { what: folder.to_string() });
    let bucket = Bucket::with(&folder, options, RETRIES)?;
    let there: BTreeMap<String, u64> = bucket.list(&folder, progress).await?.into_iter().collect();
    let mut sent = 0;
    for file in &of.files {
        if !overwrite && there.get(&file.name) == Some(&file.bytes) {
            progress(Event::File { name: file.name.clone(), done: file.bytes, total: Some(file.bytes) });
            continue;
        }
        send(&bucket, &folder, &model.dir.join(&file.name), file, progress).await?;
        sent += file.bytes;
    }
    // The source of this machine may be a path that others need not know.
    let manifest =
        Manifest::new(folder.to_string(), of.revision.clone(), of.license.clone(), of.files.clone()).to_bytes();
    if overwrite || sent > 0 || there.get(MANIFEST) != Some(&(manifest.len() as u64)) {
        let (what, path) = place(&folder, MANIFEST);
        let put = bucket.store.put(&path, PutPayload::from(manifest)).await;
        put.map_err(|error| failed(&what, &error))?;
    }
    Ok(Pushed { source: folder.to_string(), digest: of.digest, bytes: of.bytes, sent })
}

/// Sends one file. What differs from its digest does not become an object, and parts that were sent in vain are removed.
async fn send(
    bucket: &Bucket,
    folder: &BucketSource,
    from: &Utf8Path,
    file: &FileEntry,
    progress: &Progress<'_>,
) -> Result<()> {
    let (what, path) = place(folder, &file.name);
    let opened = local::open_to_read(from).map_err(Error::io("open", from))?;
    let mut content = tokio::fs::File::from_std(opened).take(file.bytes.saturating_add(1));
    let part = PART.max(file.bytes.div_ceil(MOST_PARTS));
    let tell = |done| progress(Event::File { name: file.name.clone(), done, total: Some(file.bytes) });
    if file.bytes <= part {
        let mut buffer = Vec::new();
        content.read_to_end(&mut buffer).await.map_err(Error::io("read", from))?;
        let mut hash = Context::new(&SHA256);
        hash.update(&buffer);
        proven(from, file, hash, buffer.len() as u64)?;
        bucket.store.put(&path, PutPayload::from(buffer)).await.map_err(|error| failed(&what, &error))?;
        tell(file.bytes);
        return Ok(());
    }
    let upload = bucket.store.put_multipart(&path).await.map_err(|error| failed(&what, &error))?;
    let mut writer = parts(upload, part);
    let sent = async {
        let (mut hash, mut done) = (Context::new(&SHA256), 0);
        loop {
            let mut buffer = Vec::new();
            let read = (&mut content).take(part).read_to_end(&mut buffer).await.map_err(Error::io("read", from))?;
            if read == 0 {
                return proven(from, file, hash, done);
            }
            hash.update(&buffer);
            done += read as u64;
            writer.wait_for_capacity(SIDE_BY_SIDE).await.map_err(|error| failed(&what, &error))?;
            writer.put(buffer.into());
            tell(done);
        }
    };
    if let Err(error) = sent.await {
        let _ = writer.abort().await;
        return Err(error);
    }
    writer.finish().await.map(drop).map_err(|error| failed(&what, &error))
}

fn parts(upload: Box<dyn MultipartUpload>, part: u64) -> WriteMultipart {
    WriteMultipart::new_with_chunk_size(upload, usize::try_from(part).unwrap_or(usize::MAX))
}

fn proven(from: &Utf8Path, file: &FileEntry, hash: Context, bytes: u64) -> Result<()> {
    let found = hex::encode(hash.finish());
    if bytes == file.bytes && found == file.digest.hex() {
        return Ok(());
    }
    Err(Error::corrupt(from, "it is not what was stored"))
}

fn place(folder: &BucketSource, name: &str) -> (String, Path) {
    (format!("{folder}{name}"), Path::from(format!("{}{name}", folder.path())))
}

fn failed(what: &str, error: &object_store::Error) -> Error {
    Error::Upload {
        what: what.to_owned(),
        why: error_chain(error).chars().filter(|c| !c.is_control()).take(300).collect(),
    }
}
