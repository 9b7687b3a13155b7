//! The blobs of storage accounts, each account with a host of its own; what Resource Manager knows of accounts is in `storage`.

use bytes::Bytes;
use quick_xml::escape::escape;

use super::cloud::Cloud;
use crate::aws::protocol::{Reply, Request, http_date};
use crate::objects::{Condition, Listing, Object, condition, parameter, read, replied};
use crate::{Behaviour, Source};

/// The end of the hosts of accounts.
const HOST: &str = ".blob.core.windows.net";
/// The start of what roles allow.
const BLOBS: &str = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs";

/// Roles on blobs and what they may do:
/// <https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage>.
const ROLES: &[(&str, &[&str])] = &[
    ("2a2b9908-6ea1-4ae2-8e65-a410df84e7d1", &["read"]),
    ("ba92f5b4-2d11-453d-a403-e96b0029c9fe", &["read", "write", "delete"]),
    ("b7e6dc6d-f1e8-4753-8033-0f276bb0955b", &["read", "write", "delete"]),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "errors of blobs are XML with a code, which the header x-ms-error-code has too",
        Source::Report("microsoft/AzureStorageExplorer#3767"),
    ),
    rule(
        "a request without a credential is 401 NoAuthenticationInformation",
        Source::Documentation("https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes"),
    ),
    rule(
        "a token for another audience is 401 InvalidAuthenticationInfo with a challenge",
        Source::Report("Azure/AzureStor#119"),
    ),
    rule(
        "a key of an account that has none is 403 KeyBasedAuthenticationNotPermitted",
        Source::Report("Azure/terraform-azurerm-avm-res-storage-storageaccount#184"),
    ),
    rule(
        "an owner of an account has no right to its blobs without a role on data: 403 AuthorizationPermissionMismatch",
        Source::Report("Azure/azure-storage-azcopy#474"),
    ),
    rule(
        "lists and reads are blobs/read, writes blobs/write, deletions blobs/delete",
        Source::Documentation(
            "https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory",
        ),
    ),
    rule(
        "a blob that is there and must not be is 409 BlobAlreadyExists",
        Source::Report("Azure/azure-storage-python#422"),
    ),
    rule(
        "other conditions that do not hold are 412 ConditionNotMet, and 304 for a read of what did not change",
        Source::Documentation(
            "https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations",
        ),
    ),
    rule(
        "blocks become a blob by a list of their ids, which have the same length",
        Source::Documentation("https://learn.microsoft.com/rest/api/storageservices/put-block"),
    ),
    rule(
        "a block that nobody sent is 400 InvalidBlockList",
        Source::Documentation("https://learn.microsoft.com/rest/api/storageservices/put-block-list"),
    ),
    rule(
        "lists have pages with a marker; entity tags have no quotation marks there",
        Source::Documentation("https://learn.microsoft.com/rest/api/storageservices/list-blobs"),
    ),
    rule(
        "a range that a blob does not have is 416 InvalidRange",
        Source::Documentation("https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Storage", what, source }
}

/// The account of a request for blobs.
pub(crate) fn account(request: &Request) -> Option<&str> {
    request.header("host")?.split(':').next()?.strip_suffix(HOST)
}

/// Whether an account is there. No other name has an address.
pub(crate) fn is_there(cloud: &Cloud, account: &str) -> bool {
    let end = format!("/microsoft.storage/storageaccounts/{account}");
    cloud.objects.iter().any(|(key, object)| key.ends_with(&end) && object.ghost_until.is_none())
}

/// What a request needs from a role on data.
pub(crate) fn action(request: &Request) -> String {
    format!("{BLOBS}/{}", verb(request))
}

fn verb(request: &Request) -> &'static str {
    match request.method.as_str() {
        "GET" | "HEAD" => "read",
        "DELETE" => "delete",
        _ => "write",
    }
}

/// An error.
pub(crate) fn refused(status: u16, code: &str, message: &str) -> Reply {
    let headers = [("content-type", "application/xml".to_owned()), ("x-ms-error-code", code.to_owned())];
    let message = escape(message);
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    replied(status, &headers, text.into())
}

/// Answers a request to an account; `path` is without percent-encoding and `user` is who its token stands for.
pub(crate) fn answer(cloud: &mut Cloud, request: &Request, path: &str, account: &str, user: Option<&str>) -> Reply {
    let mut reply = answered(cloud, request, path, account, user).unwrap_or_else(|refused| refused);
    if request.method == "HEAD" {
        reply.body = Bytes::new();
    }
    reply
}

fn answered(
    cloud: &mut Cloud,
    request: &Request,
    path: &str,
    account: &str,
    user: Option<&str>,
) -> Result<Reply, Reply> {
    let user = user.ok_or_else(|| unauthenticated(cloud, request))?;
    let (container, name) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    let end = format!("/storageaccounts/{account}/blobservices/default/containers/{container}");
    let found = cloud.objects.iter().find(|(key, object)| key.ends_with(&end) && object.ghost_until.is_none());
    let Some(scope) = found.map(|(key, _)| key.clone()) else {
        return Err(refused(404, "ContainerNotFound", "The specified container does not exist."));
    };
    let allows = |role: &&(&str, &[&str])| role.1.contains(&verb(request));
    let roles: Vec<&str> = ROLES.iter().filter(allows).map(|role| role.0).collect();
    if !cloud.has_role(user, &scope, &roles) || !cloud.authorize(user, &action(request)) {
        let message = "This request is not authorized to perform this operation using this permission.";
        return Err(refused(403, "AuthorizationPermissionMismatch", message));
    }
    let bucket = format!("{account}/{container}");
    let place = (bucket.as_str(), name);
    match (request.method.as_str(), name.is_empty(), parameter(request, "comp")) {
        ("GET", true, Some("list")) => Ok(list(cloud, request, account, container)),
        ("GET" | "HEAD", false, None) => get(cloud, request, place),
        ("PUT", false, None) => put(cloud, request, place),
        ("PUT", false, Some("block")) => put_block(cloud, request, place),
        ("PUT", false, Some("blocklist")) => put_block_list(cloud, request, place),
        ("DELETE", false, None) => delete(cloud, request, place),
        _ => Err(refused(405, "UnsupportedHttpVerb", "The resource doesn't support the specified HTTP verb.")),
    }
}

/// The refusal of a request whose credential stands for nobody.
fn unauthenticated(cloud: &Cloud, request: &Request) -> Reply {
    let challenge = format!(
        "Bearer authorization_uri=https://login.microsoftonline.com/{}/oauth2/authorize resource_id=https://storage.azure.com",
        cloud.tenant
    );
    let message =
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.";
    let mut reply = match request.header("authorization") {
        None => refused(401, "NoAuthenticationInformation", message),
        Some(value) if value.starts_with("SharedKey ") => {
            let message = "Key based authentication is not permitted on this storage account.";
            return refused(403, "KeyBasedAuthenticationNotPermitted", message);
        }
        Some(_) => refused(401, "InvalidAuthenticationInfo", message),
    };
    reply.headers.push(("www-authenticate".to_owned(), challenge));
    reply
}

fn not_found() -> Reply {
    refused(404, "BlobNotFound", "The specified blob does not exist.")
}

/// Refuses a write or a deletion whose conditions do not hold.
fn check(request: &Request, there: Option<&Object>) -> Result<(), Reply> {
    match condition(request, there) {
        Condition::Holds => Ok(()),
        Condition::IsSame if request.header("if-none-match") == Some("*") => {
            Err(refused(409, "BlobAlreadyExists", "The specified blob already exists."))
        }
        Condition::Differs | Condition::IsSame => Err(not_met()),
    }
}

fn not_met() -> Reply {
    let message = "The condition specified using HTTP conditional header(s) is not met.";
    refused(412, "ConditionNotMet", message)
}

fn get(cloud: &Cloud, request: &Request, (bucket, name): (&str, &str)) -> Result<Reply, Reply> {
    let object = cloud.blobs.get(bucket, name).ok_or_else(not_found)?;
    match condition(request, Some(object)) {
        Condition::Holds => {}
        Condition::Differs => return Err(not_met()),
        Condition::IsSame => return Ok(replied(304, &[("etag", object.etag.clone())], Bytes::new())),
    }
    let asked = request.header("x-ms-range").or_else(|| request.header("range"));
    let reply = read(request, object, asked);
    let message = "The range specified is invalid for the current size of the resource.";
    let mut reply = reply.map_err(|_| refused(416, "InvalidRange", message))?;
    reply.headers.push(("x-ms-blob-type".to_owned(), "BlockBlob".to_owned()));
    Ok(reply)
}

/// Writes a blob, and says what it is then.
fn write(cloud: &mut Cloud, request: &Request, place: (&str, &str), content: Bytes) -> Reply {
    let kind = request.header("x-ms-blob-content-type").or_else(|| request.header("content-type"));
    let (kind, now) = (kind.unwrap_or("application/octet-stream"), cloud.now());
    let object = cloud.blobs.put(place, content, kind, now, |number| format!("\"0x{number:X}\""));
    let headers = [("etag", object.etag), ("last-modified", http_date(object.modified))];
    replied(201, &headers, Bytes::new())
}

fn put(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    if request.header("x-ms-blob-type") != Some("BlockBlob") {
        let message = "An HTTP header that's mandatory for this request is not specified.";
        return Err(refused(400, "MissingRequiredHeader", message));
    }
    check(request, cloud.blobs.get(place.0, place.1))?;
    Ok(write(cloud, request, place, request.body.clone()))
}

/// The uploads of blocks to a blob are one.
fn upload_of((bucket, name): (&str, &str)) -> String {
    format!("{bucket}/{name}")
}

fn put_block(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    let id = parameter(request, "blockid").filter(|id| !id.is_empty());
    let message = "A required query parameter was not specified for this request.";
    let id = id.ok_or_else(|| refused(400, "MissingRequiredQueryParameter", message))?;
    let upload = cloud.blobs.begin(&upload_of(place), place, "");
    if upload.parts.keys().any(|other| other.len() != id.len()) {
        return Err(refused(400, "InvalidBlobOrBlock", "The specified blob or block content is invalid."));
    }
    upload.parts.insert(id.to_owned(), request.body.clone());
    Ok(replied(201, &[], Bytes::new()))
}

fn put_block_list(cloud: &mut Cloud, request: &Request, place: (&str, &str)) -> Result<Reply, Reply> {
    check(request, cloud.blobs.get(place.0, place.1))?;
    let text = String::from_utf8_lossy(&request.body);
    let elements = text.split('<').filter_map(|element| element.split_once('>'));
    let ids = elements.filter(|(name, _)| ["Uncommitted", "Latest"].contains(name)).map(|(_, id)| id);
    let (id, mut content) = (upload_of(place), Vec::<u8>::new());
    let upload = cloud.blobs.begin(&id, place, "");
    for block in ids {
        let Some(part) = upload.parts.get(block) else {
            return Err(refused(400, "InvalidBlockList", "The specified block list is invalid."));
        };
        content.extend_from_slice(part);
    }
    cloud.blobs.end(&id);
    Ok(write(cloud, request, place, content.into()))
}

fn delete(cloud: &mut Cloud, request: &Request, (bucket, name): (&str, &str)) -> Result<Reply, Reply> {
    let object = cloud.blobs.get(bucket, name).ok_or_else(not_found)?;
    check(request, Some(object))?;
    cloud.blobs.remove(bucket, name);
    Ok(replied(202, &[], Bytes::new()))
}

fn list(cloud: &Cloud, request: &Request, account: &str, container: &str) -> Reply {
    let text = |name: &str| parameter(request, name).unwrap_or_default();
    let most = text("maxresults").parse().unwrap_or(usize::MAX).min(cloud.timing.page).max(1);
    let (prefix, after) = (text("prefix"), text("marker"));
    let listing = Listing { prefix, delimiter: text("delimiter"), after, most };
    let page = cloud.blobs.page(&format!("{account}/{container}"), listing);
    let one = |(name, object): &(String, Object)| {
        format!(
            "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag><Content-Length>{}</Content-Length>\
             <Content-Type>{}</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>",
            escape(name.as_str()),
            http_date(object.modified),
            object.etag.trim_matches('"'),
            object.content.len(),
            escape(object.kind.as_str())
        )
    };
    let blobs: String = page.objects.iter().map(one).collect();
    let folder = |name: &String| format!("<BlobPrefix><Name>{}</Name></BlobPrefix>", escape(name.as_str()));
    let folders: String = page.folders.iter().map(folder).collect();
    let (prefix, next) = (escape(prefix), escape(page.next.as_deref().unwrap_or_default()));
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"https://{account}{HOST}/\" \
         ContainerName=\"{container}\"><Prefix>{prefix}</Prefix><Blobs>{blobs}{folders}</Blobs><NextMarker>{next}</NextMarker>\
         </EnumerationResults>"
    );
    replied(200, &[("content-type", "application/xml".to_owned())], text.into())
}
