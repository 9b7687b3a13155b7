//! Blobs, by requests to the host of their account.

#[path = "../support/plain.rs"]
mod plain;

use serde_json::json;

use crate::Client;
use plain::Plain;

const ACCOUNT: &str = "G/Microsoft.Storage/storageAccounts/textnlpmodels";
const HOST: &str = "textnlpmodels.blob.core.windows.net";
const READER: &str = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1";
const CONTRIBUTOR: &str = "ba92f5b4-2d11-453d-a403-e96b0029c9fe";
const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

/// A cloud with the container `models`, which the operator may write.
fn client() -> Client {
    let client = Client::quick();
    client.make(
        ACCOUNT,
        json!({ "location": "westeurope", "sku": { "name": "Standard_LRS" }, "kind": "StorageV2",
            "properties": { "allowSharedKeyAccess": false } }),
    );
    client.put(&format!("{ACCOUNT}/blobServices/default/containers/models"), json!({})).ok();
    let operator = client.cloud.operator().to_owned();
    client.cloud.world().assign(&container(&client), CONTRIBUTOR, &operator);
    client
}

fn container(client: &Client) -> String {
    client.path(&format!("{ACCOUNT}/blobServices/default/containers/models"))
}

/// Sends a request of a principal.
fn send_as(client: &Client, who: &str, what: (&str, &str), headers: &[(&str, &str)], body: &[u8]) -> Plain {
    let token = format!("Bearer {}", client.cloud.storage_token_of(who));
    let headers = [&[("authorization", token.as_str()), ("x-ms-version", "2023-11-03")][..], headers].concat();
    plain::send(&client.cloud.url(), HOST, what, &headers, body)
}

/// The same of the operator.
fn send(client: &Client, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Plain {
    send_as(client, client.cloud.operator(), (method, target), headers, body)
}

#[test]
fn blobs_are_written_read_in_ranges_listed_and_removed() {
    let client = client();
    let kind = ("x-ms-blob-content-type", "text/plain");
    let written = send(&client, "PUT", "/models/a/one", &[BLOCK, kind], b"0123456789");
    assert_eq!(written.status, 201, "{written:?}");
    assert_eq!(send(&client, "PUT", "/models/a/one", &[], b"").code(), (400, "MissingRequiredHeader"));
    let head = send(&client, "HEAD", "/models/a/one", &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.body.as_str()), (200, "10", ""));
    assert_eq!((head.header("etag"), head.header("content-type")), (written.header("etag"), "text/plain"));
    let read = send(&client, "GET", "/models/a/one", &[("range", "bytes=7-")], b"");
    assert_eq!((read.status, read.body.as_str(), read.header("content-range")), (206, "789", "bytes 7-9/10"));
    assert_eq!(
        send(&client, "GET", "/models/a/one", &[("x-ms-range", "bytes=10-")], b"").code(),
        (416, "InvalidRange")
    );

    for name in ["/models/a/two%20%26", "/models/b/three", "/models/four"] {
        assert_eq!(send(&client, "PUT", name, &[BLOCK], b"x").status, 201);
    }
    let list = |more: &str| send(&client, "GET", &format!("/models?restype=container&comp=list{more}"), &[], b"");
    let first = list("&maxresults=3");
    assert_eq!(first.values("Name"), ["a/one", "a/two &amp;", "b/three"]);
    assert_eq!(first.values("Etag")[0], written.header("etag").trim_matches('"'));
    let marker = first.values("NextMarker")[0].replace('/', "%2F");
    let last = list(&format!("&maxresults=3&marker={marker}"));
    assert_eq!((last.values("Name"), last.values("NextMarker")), (vec!["four"], vec![""]));
    assert_eq!(list("&prefix=b%2F").values("Name"), ["b/three"]);
    assert_eq!(list("&delimiter=%2F").values("Name"), ["four", "a/", "b/"]);

    assert_eq!(send(&client, "DELETE", "/models/a/one", &[], b"").status, 202);
    let missing = send(&client, "GET", "/models/a/one", &[], b"");
    assert_eq!((missing.code(), missing.header("x-ms-error-code")), ((404, "BlobNotFound"), "BlobNotFound"));
    assert_eq!(send(&client, "GET", "/other/one", &[], b"").code(), (404, "ContainerNotFound"));
    // They end with their container.
    client.delete(&format!("{ACCOUNT}/blobServices/default/containers/models")).ok();
    assert_eq!(send(&client, "GET", "/models/four", &[], b"").code(), (404, "ContainerNotFound"));
    assert_eq!(client.cloud.world().blobs.of("textnlpmodels/models").count(), 0);
}

#[test]
fn conditions_are_entity_tags() {
    let client = client();
    let put = |name: &str, value: &str| send(&client, "PUT", "/models/one", &[BLOCK, (name, value)], b"a");
    assert_eq!(put("if-match", "\"0x1\"").code(), (412, "ConditionNotMet"));
    let first = put("if-none-match", "*");
    assert_eq!(first.status, 201);
    assert_eq!(put("if-none-match", "*").code(), (409, "BlobAlreadyExists"));
    let second = put("if-match", first.header("etag"));
    assert_eq!(second.status, 201);
    let get = |name: &str, value: &str| send(&client, "GET", "/models/one", &[(name, value)], b"");
    assert_eq!(get("if-match", first.header("etag")).code(), (412, "ConditionNotMet"));
    assert_eq!((get("if-match", second.header("etag")).status, get("if-none-match", "*").status), (200, 304));
    let stale = [("if-match", first.header("etag"))];
    assert_eq!(send(&client, "DELETE", "/models/one", &stale, b"").code(), (412, "ConditionNotMet"));
}

#[test]
fn blocks_become_a_blob_by_their_list() {
    let client = client();
    let block =
        |id: &str, body: &[u8]| send(&client, "PUT", &format!("/models/large?comp=block&blockid={id}"), &[], body);
    let list = |ids: &[&str]| {
        let ids: String = ids.iter().map(|id| format!("\t<Uncommitted>{id}</Uncommitted>\n")).collect();
        let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<BlockList>\n{ids}</BlockList>");
        send(&client, "PUT", "/models/large?comp=blocklist", &[], body.as_bytes())
    };
    assert_eq!(block("MDI%3D", b"end").status, 201);
    assert_eq!(block("MDE%3D", b"begin ").status, 201);
    assert_eq!(block("MDAwMw%3D%3D", b"x").code(), (400, "InvalidBlobOrBlock"));
    assert_eq!(send(&client, "GET", "/models/large", &[], b"").code(), (404, "BlobNotFound"));
    assert_eq!(list(&["MDE=", "MDM="]).code(), (400, "InvalidBlockList"));
    let ended = list(&["MDE=", "MDI="]);
    assert_eq!(ended.status, 201, "{ended:?}");
    assert_eq!(send(&client, "GET", "/models/large", &[], b"").body, "begin end");
}

#[test]
fn identities_need_a_role_on_data() {
    let client = client();
    assert_eq!(send(&client, "PUT", "/models/one", &[BLOCK], b"a").status, 201);
    let plain = |headers: &[(&str, &str)]| plain::send(&client.cloud.url(), HOST, ("GET", "/models/one"), headers, b"");
    assert_eq!(plain(&[]).code(), (401, "NoAuthenticationInformation"));
    let of_management = format!("Bearer {}", client.cloud.token());
    let refused = plain(&[("authorization", of_management.as_str())]);
    assert_eq!(refused.code(), (401, "InvalidAuthenticationInfo"), "another audience");
    assert!(refused.header("www-authenticate").contains("resource_id=https://storage.azure.com"), "{refused:?}");
    let key = [("authorization", "SharedKey textnlpmodels:c2lnbmF0dXJl")];
    assert_eq!(plain(&key).code(), (403, "KeyBasedAuthenticationNotPermitted"));

    let mismatch = (403, "AuthorizationPermissionMismatch");
    let as_reader = |what: (&str, &str)| send_as(&client, "a-reader", what, &[BLOCK], b"b");
    assert_eq!(as_reader(("GET", "/models/one")).code(), mismatch);
    let other = client.path("G/Microsoft.Storage/storageAccounts/other");
    client.cloud.world().assign(&other, READER, "a-reader");
    assert_eq!(as_reader(("GET", "/models/one")).code(), mismatch, "the role is that of another account");
    client.cloud.world().assign(&container(&client), READER, "a-reader");
    assert_eq!(as_reader(("GET", "/models/one")).body, "a");
    assert_eq!(as_reader(("GET", "/models?restype=container&comp=list")).status, 200);
    assert_eq!(as_reader(("PUT", "/models/two")).code(), mismatch);
    assert_eq!(as_reader(("DELETE", "/models/one")).code(), mismatch);
    // What administers accounts is no right to data.
    let owner = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635";
    client.cloud.world().assign(&client.path(ACCOUNT), owner, "an-owner");
    assert_eq!(send_as(&client, "an-owner", ("GET", "/models/one"), &[], b"").code(), mismatch);
}
