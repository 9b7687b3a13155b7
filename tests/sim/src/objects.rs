//! The objects of buckets and containers, as Google Cloud and Azure have them. Of each object only the newest version is kept.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use jiff::Timestamp;

use crate::aws::protocol::{Reply, Request, http_date};

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub content: Bytes,
    /// The media type that its writer named.
    pub kind: String,
    /// Its number: each write has a higher one.
    pub generation: u64,
    /// Its entity tag, with quotation marks.
    pub etag: String,
    /// When it was written.
    pub modified: Timestamp,
}

/// The objects of a cloud, and uploads in parts that did not end.
#[derive(Default)]
pub struct Store {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: BTreeMap<String, Upload>,
    last: u64,
}

/// An upload in parts.
pub(crate) struct Upload {
    bucket: String,
    name: String,
    /// The media type of the object.
    pub(crate) kind: String,
    /// The parts by their numbers or ids.
    pub(crate) parts: BTreeMap<String, Bytes>,
}

/// A part of a list that is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Listing<'r> {
    pub(crate) prefix: &'r str,
    pub(crate) delimiter: &'r str,
    /// The name after which it begins.
    pub(crate) after: &'r str,
    /// The most objects and folders.
    pub(crate) most: usize,
}

/// A part of a list.
#[derive(Default)]
pub(crate) struct Page {
    pub(crate) objects: Vec<(String, Object)>,
    pub(crate) folders: Vec<String>,
    /// The name after which the next page begins.
    pub(crate) next: Option<String>,
}

/// Whether the headers `If-Match` and `If-None-Match` hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// They hold.
    Holds,
    /// It is another one than that of `If-Match`.
    Differs,
    /// It is the one of `If-None-Match`.
    IsSame,
}

/// A range that an object does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsatisfiable;

impl Store {
    /// An object.
    #[must_use]
    pub fn get(&self, bucket: &str, name: &str) -> Option<&Object> {
        self.buckets.get(bucket)?.get(name)
    }

    /// The objects of a bucket in the order of their names.
    pub fn of<'s>(&'s self, bucket: &str) -> impl Iterator<Item = (&'s String, &'s Object)> + use<'s> {
        self.buckets.get(bucket).into_iter().flatten()
    }

    /// Writes an object. Its entity tag may follow from its number.
    pub(crate) fn put(
        &mut self,
        (bucket, name): (&str, &str),
        content: Bytes,
        kind: &str,
        now: Timestamp,
        etag: impl FnOnce(u64) -> String,
    ) -> Object {
        self.last = self.last.max(u64::try_from(now.as_microsecond()).unwrap_or_default()) + 1;
        let (generation, kind) = (self.last, kind.to_owned());
        let object = Object { content, kind, generation, etag: etag(generation), modified: now };
        self.buckets.entry(bucket.to_owned()).or_default().insert(name.to_owned(), object.clone());
        object
    }

    /// Removes an object, if it is there.
    pub(crate) fn remove(&mut self, bucket: &str, name: &str) -> Option<Object> {
        self.buckets.get_mut(bucket)?.remove(name)
    }

    /// Removes the objects and uploads of buckets, by their names.
    pub(crate) fn clear(&mut self, is_one: impl Fn(&str) -> bool) {
        self.buckets.retain(|bucket, _| !is_one(bucket));
        self.uploads.retain(|_, upload| !is_one(&upload.bucket));
    }

    /// A page of a list.
    pub(crate) fn page(&self, bucket: &str, asked: Listing<'_>) -> Page {
        let Listing { prefix, delimiter, after, most } = asked;
        let (mut page, mut last) = (Page::default(), "");
        for (name, object) in self.of(bucket) {
            // A name that ends with the delimiter is that of a folder that was listed.
            let is_listed = name.as_str() <= after
                || (!delimiter.is_empty() && after.ends_with(delimiter) && name.starts_with(after));
            let Some(rest) = name.strip_prefix(prefix).filter(|_| !is_listed) else { continue };
            let folder = rest.find(delimiter).filter(|_| !delimiter.is_empty());
            let folder = folder.map(|at| &name[..prefix.len() + at + delimiter.len()]);
            if folder.is_some() && page.folders.last().map(String::as_str) == folder {
                continue;
            }
            if page.objects.len() + page.folders.len() == most {
                page.next = Some(last.to_owned());
                break;
            }
            match folder {
                Some(folder) => page.folders.push(folder.to_owned()),
                None => page.objects.push((name.clone(), object.clone())),
            }
            last = folder.unwrap_or(name);
        }
        page
    }

    /// An upload in parts to an object, which is begun where there is none of this id.
    pub(crate) fn begin(&mut self, id: &str, (bucket, name): (&str, &str), kind: &str) -> &mut Upload {
        self.uploads.entry(id.to_owned()).or_insert_with(|| Upload {
            bucket: bucket.to_owned(),
            name: name.to_owned(),
            kind: kind.to_owned(),
            parts: BTreeMap::new(),
        })
    }

    /// An upload in parts to an object.
    pub(crate) fn upload(&mut self, id: &str, (bucket, name): (&str, &str)) -> Option<&mut Upload> {
        self.uploads.get_mut(id).filter(|upload| upload.bucket == bucket && upload.name == name)
    }

    /// Ends an upload: its parts go.
    pub(crate) fn end(&mut self, id: &str) {
        self.uploads.remove(id);
    }
}

/// Whether the conditions of a request hold for what is there.
pub(crate) fn condition(request: &Request, there: Option<&Object>) -> Condition {
    let is_it = |tag: &str| there.is_some_and(|object| tag == "*" || tag == object.etag);
    match (request.header("if-match"), request.header("if-none-match")) {
        (Some(tag), _) if !is_it(tag) => Condition::Differs,
        (_, Some(tag)) if is_it(tag) => Condition::IsSame,
        _ => Condition::Holds,
    }
}

/// The bytes that a header asks for. One that is not of this form is left out.
fn range(header: &str, length: usize) -> Result<Option<Range<usize>>, Unsatisfiable> {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(length)),
        (Ok(first), Err(_)) if last.is_empty() => (first, length),
        (Err(_), Ok(last)) if first.is_empty() => (length.saturating_sub(last), length),
        _ => return Ok(None),
    };
    if start < end { Ok(Some(start..end)) } else { Err(Unsatisfiable) }
}

/// The answer to a read of an object, or of a range of it.
pub(crate) fn read(request: &Request, object: &Object, asked: Option<&str>) -> Result<Reply, Unsatisfiable> {
    let length = object.content.len();
    let part = asked.map_or(Ok(None), |asked| range(asked, length))?;
    let mut headers = vec![
        ("content-type", object.kind.clone()),
        ("etag", object.etag.clone()),
        ("last-modified", http_date(object.modified)),
        ("accept-ranges", "bytes".to_owned()),
    ];
    let status = if part.is_some() { 206 } else { 200 };
    if let Some(part) = &part {
        headers.push(("content-range", format!("bytes {}-{}/{length}", part.start, part.end - 1)));
    }
    let part = part.unwrap_or(0..length);
    headers.push(("content-length", part.len().to_string()));
    let body = if request.method == "HEAD" { Bytes::new() } else { object.content.slice(part) };
    Ok(replied(status, &headers, body))
}

/// An answer.
pub(crate) fn replied(status: u16, headers: &[(&str, String)], body: Bytes) -> Reply {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Reply { status, headers, body }
}

/// A parameter of a request's query.
pub(crate) fn parameter<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    request.query.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
}
