//! The objects of buckets, by requests of Cloud Storage's XML API.

#[path = "../support/plain.rs"]
mod plain;

use serde_json::json;
use textnlp_sim::gcp::{GoogleCloud, Options};

use plain::Plain;

/// A cloud with the bucket `models`.
fn cloud() -> GoogleCloud {
    let cloud = GoogleCloud::start(Options::zero_latency());
    let bucket =
        json!({ "name": "projects/_/buckets/models", "bucket_id": "models", "project": "projects/123456789012" });
    cloud.world().put("storage/projects/_/buckets/models", bucket);
    cloud
}

/// Sends a request of a user.
fn send_as(cloud: &GoogleCloud, user: &str, what: (&str, &str), headers: &[(&str, &str)], body: &[u8]) -> Plain {
    let token = format!("Bearer {}", cloud.token_of(user));
    let headers = [&[("authorization", token.as_str())][..], headers].concat();
    plain::send(&cloud.url(), "storage.googleapis.com", what, &headers, body)
}

/// The same of the owner.
fn send(cloud: &GoogleCloud, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Plain {
    send_as(cloud, "operator@example.com", (method, target), headers, body)
}

#[test]
fn objects_are_written_read_in_ranges_listed_and_removed() {
    let cloud = cloud();
    let written = send(&cloud, "PUT", "/models/a%2Fone", &[("content-type", "text/plain")], b"0123456789");
    assert_eq!((written.status, written.header("etag")), (200, "\"781e5e245d69b566979b86e28d23f2c7\""));
    let head = send(&cloud, "HEAD", "/models/a%2Fone", &[], b"");
    assert_eq!((head.status, head.header("content-length"), head.body.as_str()), (200, "10", ""));
    assert_eq!(head.header("content-type"), "text/plain");
    for (range, status, body, of) in [
        ("bytes=2-4", 206, "234", "bytes 2-4/10"),
        ("bytes=7-", 206, "789", "bytes 7-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("lines=1", 200, "0123456789", ""),
    ] {
        let read = send(&cloud, "GET", "/models/a%2Fone", &[("range", range)], b"");
        assert_eq!((read.status, read.body.as_str(), read.header("content-range")), (status, body, of), "{range}");
    }
    assert_eq!(send(&cloud, "GET", "/models/a/one", &[("range", "bytes=10-")], b"").code(), (416, "InvalidRange"));

    for name in ["/models/a%2Ftwo%20%26", "/models/b%2Fthree", "/models/four"] {
        assert_eq!(send(&cloud, "PUT", name, &[], b"x").status, 200);
    }
    let first = send(&cloud, "GET", "/models?list-type=2&max-keys=3", &[], b"");
    assert_eq!(first.values("Key"), ["a/one", "a/two &amp;", "b/three"]);
    assert_eq!((first.values("IsTruncated"), first.values("Size")), (vec!["true"], vec!["10", "1", "1"]));
    let token = first.values("NextContinuationToken")[0].replace('/', "%2F");
    let target = format!("/models?list-type=2&max-keys=3&continuation-token={token}");
    assert_eq!(send(&cloud, "GET", &target, &[], b"").values("Key"), ["four"]);
    assert_eq!(send(&cloud, "GET", "/models?list-type=2&prefix=a%2Ft", &[], b"").values("Key"), ["a/two &amp;"]);
    let folders = send(&cloud, "GET", "/models?list-type=2&delimiter=%2F", &[], b"");
    assert_eq!((folders.values("Key"), folders.values("Prefix")), (vec!["four"], vec!["", "a/", "b/"]));

    assert_eq!(send(&cloud, "DELETE", "/models/a/one", &[], b"").status, 204);
    assert_eq!(send(&cloud, "DELETE", "/models/a/one", &[], b"").code(), (404, "NoSuchKey"));
    assert_eq!(send(&cloud, "GET", "/models/a/one", &[], b"").code(), (404, "NoSuchKey"));
    assert_eq!(send(&cloud, "GET", "/other/a", &[], b"").code(), (404, "NoSuchBucket"));
}

#[test]
fn generations_and_entity_tags_are_conditions() {
    let cloud = cloud();
    let written = |generation: &str, body: &[u8]| {
        send(&cloud, "PUT", "/models/one", &[("x-goog-if-generation-match", generation)], body)
    };
    assert_eq!(written("7", b"a").code(), (412, "PreconditionFailed"));
    let first = written("0", b"a");
    assert_eq!(first.status, 200);
    assert_eq!(written("0", b"b").code(), (412, "PreconditionFailed"));
    let second = written(first.header("x-goog-generation"), b"b");
    assert_eq!(second.status, 200);
    let get = |name: &str, value: &str| send(&cloud, "GET", "/models/one", &[(name, value)], b"");
    assert_eq!(get("if-match", first.header("etag")).code(), (412, "PreconditionFailed"));
    assert_eq!(get("if-match", second.header("etag")).body, "b");
    assert_eq!(get("if-none-match", second.header("etag")).status, 304);
    let generation = first.header("x-goog-generation");
    let target = format!("/models/one?generation={generation}");
    assert_eq!(send(&cloud, "GET", &target, &[], b"").code(), (404, "NoSuchKey"));
    let condition = [("x-goog-if-generation-match", generation)];
    assert_eq!(send(&cloud, "DELETE", "/models/one", &condition, b"").status, 412);
}

#[test]
fn parts_become_an_object_at_the_end_of_their_upload() {
    let cloud = cloud();
    let begin = || {
        let begun = send(&cloud, "POST", "/models/large?uploads=", &[], b"");
        begun.values("UploadId")[0].to_owned()
    };
    let part = |id: &str, number: usize, body: &[u8]| {
        let target = format!("/models/large?partNumber={number}&uploadId={id}");
        send(&cloud, "PUT", &target, &[], body).header("etag").to_owned()
    };
    let end = |id: &str, etags: &[&str]| {
        let part =
            |(at, etag): (usize, &&str)| format!("<Part><ETag>{etag}</ETag><PartNumber>{}</PartNumber></Part>", at + 1);
        let parts: String = etags.iter().enumerate().map(part).collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        send(&cloud, "POST", &format!("/models/large?uploadId={id}"), &[], body.as_bytes())
    };
    let large = vec![b'x'; 5 << 20];
    let id = begin();
    // In any order.
    let (two, one) = (part(&id, 2, b"end"), part(&id, 1, &large));
    assert_eq!(end(&id, &[&one, "\"0\""]).code(), (400, "InvalidPart"));
    assert_eq!(send(&cloud, "GET", "/models/large", &[], b"").status, 404);
    let ended = end(&id, &[&one, &two]);
    assert_eq!((ended.status, ended.values("ETag")[0].ends_with("-2&quot;")), (200, true), "{}", ended.body);
    let read = send(&cloud, "GET", "/models/large", &[("range", "bytes=5242878-")], b"");
    assert_eq!((read.body.as_str(), read.header("content-range")), ("xxend", "bytes 5242878-5242882/5242883"));
    assert_eq!(end(&id, &[&one, &two]).code(), (404, "NoSuchUpload"));

    let id = begin();
    let (one, two) = (part(&id, 1, b"small"), part(&id, 2, b"end"));
    assert_eq!(end(&id, &[&one, &two]).code(), (400, "EntityTooSmall"));
    let upload = format!("/models/large?uploadId={id}");
    assert_eq!(send(&cloud, "DELETE", &upload, &[], b"").status, 204);
    assert_eq!(send(&cloud, "DELETE", &upload, &[], b"").code(), (404, "NoSuchUpload"));
}

#[test]
fn identities_need_a_role_on_the_bucket() {
    let cloud = cloud();
    let plain = |token: &[(&str, &str)]| {
        plain::send(&cloud.url(), "storage.googleapis.com", ("GET", "/models?list-type=2"), token, b"")
    };
    assert_eq!(plain(&[]).code(), (401, "AuthenticationRequired"));
    assert_eq!(plain(&[("authorization", "Bearer other")]).code(), (401, "AuthenticationRequired"));
    assert_eq!(send(&cloud, "PUT", "/models/one", &[], b"a").status, 200);

    let pods = "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/simulated-project.svc.id.goog/subject/ns/textnlp/sa/textnlp-models";
    let as_pods = |method: &str, target: &str| send_as(&cloud, pods, (method, target), &[], b"b");
    let refused = as_pods("GET", "/models/one");
    assert_eq!(refused.code(), (403, "AccessDenied"));
    assert!(refused.body.contains("does not have storage.objects.get access"), "{}", refused.body);
    cloud.world().grant_on_bucket("other", "roles/storage.objectViewer", pods);
    assert_eq!(as_pods("GET", "/models/one").status, 403, "the role is that of another bucket");
    cloud.world().grant_on_bucket("models", "roles/storage.objectViewer", pods);
    assert_eq!((as_pods("GET", "/models/one").body.as_str(), as_pods("GET", "/models?list-type=2").status), ("a", 200));
    assert_eq!(as_pods("PUT", "/models/two").code(), (403, "AccessDenied"));
    assert_eq!(as_pods("DELETE", "/models/one").code(), (403, "AccessDenied"));

    cloud.world().grant_on_bucket("models", "roles/storage.objectCreator", "user:writer@example.com");
    let write = |target: &str| send_as(&cloud, "writer@example.com", ("PUT", target), &[], b"c");
    assert_eq!(write("/models/two").status, 200);
    assert_eq!(write("/models/one").code(), (403, "AccessDenied"), "a creator does not replace");
    cloud.world().denied.insert("storage.objects.create".to_owned());
    assert_eq!(send(&cloud, "PUT", "/models/three", &[], b"a").code(), (403, "AccessDenied"));
}
