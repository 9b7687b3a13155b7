//! The objects of Cloud Storage's buckets, by its XML API.

use base64::Engine;
use bytes::Bytes;
use md5::{Digest, Md5};
use quick_xml::escape::escape;

use super::cloud::Cloud;
use super::{iam, storage};
use crate::aws::protocol::{Reply, Request};
use crate::objects::{Condition, Listing, Object, condition, parameter, read, replied};
use crate::{Behaviour, Source};

/// The host of all buckets.
pub(super) const HOST: &str = "storage.googleapis.com";
/// The least bytes of a part that is not the last one.
const PART: usize = 5 << 20;

/// Roles on objects with their permissions: <https://cloud.google.com/storage/docs/access-control/iam-roles>.
const ROLES: &[(&str, &[&str])] = &[
    ("roles/storage.admin", EVERYTHING),
    ("roles/storage.objectAdmin", EVERYTHING),
    ("roles/storage.objectUser", EVERYTHING),
    ("roles/storage.objectViewer", &["storage.objects.get", "storage.objects.list"]),
    ("roles/storage.legacyObjectReader", &["storage.objects.get"]),
    (
        "roles/storage.objectCreator",
        &["storage.objects.create", "storage.multipartUploads.create", "storage.multipartUploads.abort"],
    ),
];
const EVERYTHING: &[&str] = &[
    "storage.objects.get",
    "storage.objects.list",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.multipartUploads.create",
    "storage.multipartUploads.abort",
];

pub(super) const LEDGER: &[Behaviour] = &[
    rule(
        "errors of the XML API have a code, a message and details",
        Source::Documentation("https://cloud.google.com/storage/docs/xml-api/reference-status"),
    ),
    rule(
        "a read without the right is 403 AccessDenied, and its details name the caller and the permission",
        Source::Report("discord/discord-example-app#60"),
    ),
    rule(
        "what needs which permission on a bucket",
        Source::Documentation("https://cloud.google.com/storage/docs/access-control/iam-xml"),
    ),
    rule(
        "roles of a bucket and of its project count for its objects",
        Source::Documentation("https://cloud.google.com/storage/docs/access-control/iam-roles"),
    ),
    rule(
        "x-goog-if-generation-match is the live generation, 0 for none, or the request is 412",
        Source::Documentation("https://cloud.google.com/storage/docs/request-preconditions"),
    ),
    rule(
        "the entity tag of an object that was sent whole is its MD5, and that of one in parts is not",
        Source::Documentation("https://cloud.google.com/storage/docs/hashes-etags#etags"),
    ),
    rule(
        "lists have pages in the order of names, with folders by a delimiter",
        Source::Documentation("https://cloud.google.com/storage/docs/xml-api/get-bucket-list"),
    ),
    rule(
        "parts of an upload have at least 5 MiB but for the last; the end names each with its entity tag",
        Source::Documentation("https://cloud.google.com/storage/docs/multipart-uploads"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "storage", what, source }
}

/// What a request is called in records: as the methods of the JSON API.
pub(super) fn operation(request: &Request, path: &str) -> &'static str {
    match (request.method.as_str(), path.split_once('/').is_some_and(|(_, name)| !name.is_empty())) {
        ("GET", false) => "storage.objects.list",
        ("GET" | "HEAD", true) => "storage.objects.get",
        ("DELETE", _) => "storage.objects.delete",
        _ => "storage.objects.insert",
    }
}

/// An error.
pub(super) fn refused(status: u16, code: &str, message: &str, details: &str) -> Reply {
    let details = if details.is_empty() { String::new() } else { format!("<Details>{}</Details>", escape(details)) };
    let message = escape(message);
    xml(
        status,
        &[],
        &format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message>{details}</Error>"
        ),
    )
}

fn xml(status: u16, headers: &[(&str, String)], text: &str) -> Reply {
    let kind = [("content-type", "application/xml; charset=UTF-8".to_owned())];
    replied(status, &[&kind[..], headers].concat(), Bytes::copy_from_slice(text.as_bytes()))
}

fn no_such_key(path: &str) -> Reply {
    refused(404, "NoSuchKey", "The specified key does not exist.", &format!("No such object: {path}"))
}

fn no_such_upload() -> Reply {
    refused(404, "NoSuchUpload", "The requested upload was not found.", "")
}

fn denied(user: &str, permission: &str) -> Reply {
    let what = if permission == "storage.objects.list" { "bucket" } else { "object" };
    let details = format!(
        "{user} does not have {permission} access to the Google Cloud Storage {what}. Permission '{permission}' denied on \
         resource (or it may not exist)."
    );
    refused(403, "AccessDenied", "Access denied.", &details)
}

/// Answers a request; `path` is without percent-encoding and `user` is who its token stands for.
pub(super) fn answer(cloud: &mut Cloud, request: &Request, path: &str, user: Option<&str>) -> Reply {
    let mut reply = answered(cloud, request, path, user).unwrap_or_else(|refused| refused);
    if request.method == "HEAD" {
        reply.body = Bytes::new();
    }
    reply
}

fn answered(cloud: &mut Cloud, request: &Request, path: &str, user: Option<&str>) -> Result<Reply, Reply> {
    let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
    let is_there = cloud.blobs.get(bucket, name).is_some();
    let is_in_parts = ["uploads", "uploadId"].iter().any(|one| parameter(request, one).is_some());
    let mut needed = match (request.method.as_str(), name.is_empty()) {
        ("GET", true) => vec!["storage.objects.list"],
        ("GET" | "HEAD", false) => vec!["storage.objects.get"],
        ("PUT" | "POST", false) if is_in_parts => vec!["storage.multipartUploads.create", "storage.objects.create"],
        ("PUT", false) => vec!["storage.objects.create"],
        ("DELETE", false) if is_in_parts => vec!["storage.multipartUploads.abort"],
        ("DELETE", false) => vec!["storage.objects.delete"],
        _ => {
            let message = "The specified method is not allowed against this resource.";
            return Err(refused(405, "MethodNotAllowed", message, ""));
        }
    };
    let is_whole = parameter(request, "partNumber").is_none() && parameter(request, "uploads").is_none();
    if is_there && is_whole && ["PUT", "POST"].contains(&request.method.as_str()) {
        needed.push("storage.objects.delete");
    }
    let user = user.ok_or_else(|| refused(401, "AuthenticationRequired", "Authentication required.", ""))?;
    if cloud.foreign_buckets.contains(bucket) {
        return Err(denied(user, needed[0]));
    }
    let key = format!("storage/projects/_/buckets/{bucket}");
    let Some(found) = cloud.get(&key) else {
        return Err(refused(404, "NoSuchBucket", "The specified bucket does not exist.", ""));
    };
    let project = storage::project_id(cloud, storage::text(found, "/project"));
    if let Some(permission) = needed.into_iter().find(|one| !may(cloud, user, &project, &key, one)) {
        return Err(denied(user, permission));
    }
    match request.method.as_str() {
        "GET" | "HEAD" if !name.is_empty() => get(cloud, request, (bucket, name)),
        "GET" | "HEAD" => Ok(list(cloud, request, bucket)),
        "DELETE" => delete(cloud, request, (bucket, name)),
        "POST" => post(cloud, request, (bucket, name)),
        _ => put(cloud, request, (bucket, name)),
    }
}

/// Whether a caller has a permission on a bucket.
fn may(cloud: &mut Cloud, user: &str, project: &str, bucket: &str, permission: &str) -> bool {
    if user == cloud.operator {
        return cloud.authorize(user, project, permission);
    }
    let (cloud, member) = (&*cloud, super::member(user));
    let of_project = format!("cloudresourcemanager/projects/{project}");
    let is_granted = |role: &str| [bucket, &of_project].iter().any(|key| iam::grants(cloud, key, role, &member));
    ROLES.iter().any(|(role, held)| held.contains(&permission) && is_granted(role))
}

fn md5(content: &[u8]) -> String {
    format!("\"{}\"", hex::encode(Md5::digest(content)))
}

/// What an answer says of an object.
fn described(object: &Object) -> Vec<(&'static str, String)> {
    let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&object.content));
    vec![
        ("etag", object.etag.clone()),
        ("x-goog-generation", object.generation.to_string()),
        ("x-goog-metageneration", "1".to_owned()),
        ("x-goog-hash", format!("md5={md5}")),
        ("x-goog-stored-content-length", object.content.len().to_string()),
    ]
}

/// Refuses a write or a deletion of another generation.
fn check_generation(request: &Request, there: Option<&Object>) -> Result<(), Reply> {
    let wanted = request.header("x-goog-if-generation-match").and_then(|text| text.parse::<u64>().ok());
    match wanted.is_some_and(|wanted| wanted != there.map_or(0, |object| object.generation)) {
        true => Err(precondition()),
        false => Ok(()),
    }
}

fn precondition() -> Reply {
    let message = "At least one of the pre-conditions you specified did not hold.";
    refused(412, "PreconditionFailed", message, "")
}

fn get(cloud: &Cloud, request: &Request, (bucket, name): (&str, &str)) -> Result<Reply, Reply> {
    let wanted = parameter(request, "generation").and_then(|text| text.parse::<u64>().ok());
    let object = cloud.blobs.get(bucket, name);
    let object = object.filter(|object| wanted.is_none_or(|wanted| wanted == object.generation));
    let object = object.ok_or_else(|| no_such_key(&format!("{bucket}/{name}")))?;
    check_generation(request, Some(object))?;
    match condition(request, Some(object)) {
        Condition::Holds => {}
        Condition::Differs => return Err(precondition()),
        Condition::IsSame => return Ok(replied(304, &described(object), Bytes::new())),
    }
    let reply = read(request, object, request.header("range"));
    let mut reply = reply.map_err(|_| refused(416, "InvalidRange", "The requested range cannot be satisfied.", ""))?;
    let more = described(object).into_iter().map(|(name, value)| (name.to_owned(), value));
    reply.headers.extend(more);
    Ok(reply)
}

fn put(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    if let Some(id) = parameter(request, "uploadId") {
        let number = parameter(request, "partNumber").and_then(|text| text.parse::<u32>().ok());
        let number = number.filter(|number| (1..=10_000).contains(number));
        let number = number.ok_or_else(|| refused(400, "InvalidArgument", "Invalid argument.", "partNumber"))?;
        let upload = cloud.blobs.upload(id, place).ok_or_else(no_such_upload)?;
        upload.parts.insert(part_of(number), request.body.clone());
        return Ok(replied(200, &[("etag", md5(&request.body))], Bytes::new()));
    }
    check_generation(request, cloud.blobs.get(place.0, place.1))?;
    let kind = request.header("content-type").unwrap_or("application/octet-stream");
    let (now, etag) = (cloud.now(), md5(&request.body));
    let object = cloud.blobs.put(place, request.body.clone(), kind, now, |_| etag);
    Ok(replied(200, &described(&object), Bytes::new()))
}

/// The key of a part: they are joined by their numbers.
fn part_of(number: u32) -> String {
    format!("{number:05}")
}

/// The texts of elements of a name in a document.
fn values<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let open = format!("<{name}>");
    text.split(open.as_str()).skip(1).filter_map(|rest| rest.split('<').next()).collect()
}

/// Begins or ends an upload in parts.
fn post(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    let (bucket, name) = (place.0, escape(place.1));
    let Some(id) = parameter(request, "uploadId") else {
        let id = cloud.random.hex(40);
        let kind = request.header("content-type").unwrap_or("application/octet-stream");
        cloud.blobs.begin(&id, place, kind);
        let text = format!(
            "<?xml version='1.0' encoding='UTF-8'?><InitiateMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>\
             <Bucket>{bucket}</Bucket><Key>{name}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        return Ok(xml(200, &[], &text));
    };
    let text = String::from_utf8_lossy(&request.body).replace("&quot;", "\"");
    let (numbers, etags) = (values(&text, "PartNumber"), values(&text, "ETag"));
    let upload = cloud.blobs.upload(id, place).ok_or_else(no_such_upload)?;
    let mut content = Vec::<u8>::new();
    for (index, (number, etag)) in numbers.iter().zip(&etags).enumerate() {
        let part = number.parse::<u32>().ok().and_then(|number| upload.parts.get(&part_of(number)));
        let Some(part) = part.filter(|part| md5(part) == *etag) else {
            let message = "One or more of the specified parts could not be found.";
            return Err(refused(400, "InvalidPart", message, ""));
        };
        if index + 1 < numbers.len() && part.len() < PART {
            let message = "Your proposed upload is smaller than the minimum allowed object size.";
            return Err(refused(400, "EntityTooSmall", message, ""));
        }
        content.extend_from_slice(part);
    }
    if numbers.is_empty() || numbers.len() != etags.len() {
        return Err(refused(400, "MalformedCompleteMultipartUploadRequest", "The request is malformed.", ""));
    }
    let (kind, now) = (upload.kind.clone(), cloud.now());
    let etag = format!("\"{}-{}\"", md5(&content).trim_matches('"'), numbers.len());
    let object = cloud.blobs.put(place, content.into(), &kind, now, |_| etag);
    cloud.blobs.end(id);
    let etag = escape(&object.etag);
    let text = format!(
        "<?xml version='1.0' encoding='UTF-8'?><CompleteMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>\
         <Location>http://{HOST}/{bucket}/{name}</Location><Bucket>{bucket}</Bucket><Key>{name}</Key><ETag>{etag}</ETag>\
         </CompleteMultipartUploadResult>"
    );
    Ok(xml(200, &[("x-goog-generation", object.generation.to_string())], &text))
}

fn delete(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    if let Some(id) = parameter(request, "uploadId") {
        cloud.blobs.upload(id, place).ok_or_else(no_such_upload)?;
        cloud.blobs.end(id);
        return Ok(replied(204, &[], Bytes::new()));
    }
    check_generation(request, cloud.blobs.get(place.0, place.1))?;
    let removed = cloud.blobs.remove(place.0, place.1);
    removed.ok_or_else(|| no_such_key(&format!("{}/{}", place.0, place.1)))?;
    Ok(replied(204, &[], Bytes::new()))
}

fn list(cloud: &Cloud, request: &Request, bucket: &str) -> Reply {
    let text = |name: &str| parameter(request, name).unwrap_or_default();
    let most = text("max-keys").parse().unwrap_or(usize::MAX).min(cloud.timing.page).max(1);
    let (prefix, after) = (text("prefix"), text("continuation-token").max(text("start-after")));
    let page = cloud.blobs.page(bucket, Listing { prefix, delimiter: text("delimiter"), after, most });
    let one = |(name, object): &(String, Object)| {
        format!(
            "<Contents><Key>{}</Key><Generation>{}</Generation><MetaGeneration>1</MetaGeneration><LastModified>{}</LastModified>\
             <ETag>{}</ETag><Size>{}</Size></Contents>",
            escape(name.as_str()),
            object.generation,
            object.modified,
            escape(object.etag.as_str()),
            object.content.len()
        )
    };
    let contents: String = page.objects.iter().map(one).collect();
    let folder = |name: &String| format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(name.as_str()));
    let folders: String = page.folders.iter().map(folder).collect();
    let count = page.objects.len() + page.folders.len();
    let next =
        page.next.as_deref().map(|next| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(next)));
    let (is_more, next, prefix) = (next.is_some(), next.unwrap_or_default(), escape(prefix));
    let text = format!(
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>\
         <Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><IsTruncated>{is_more}</IsTruncated>\
         {next}{contents}{folders}</ListBucketResult>"
    );
    xml(200, &[], &text)
}
