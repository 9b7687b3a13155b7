//! Registries that lie, stall and lead elsewhere.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use textnlp_bundle::oci::registry::{Credentials, Options, PlainHttp, Secret, TagList, has, pull, resolve, tags};
use textnlp_bundle::oci::{Blob, Error, Image, Platform, Reference};
use textnlp_models::Digest;

use crate::tools::{Dir, all, stand_in};

/// What a request looked like: its path and its headers.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    headers: HashMap<String, String>,
}

/// A server of one test: `answer` writes the whole response. Every connection carries one request.
struct Stand {
    host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Stand {
    fn new(answer: impl Fn(&Seen, usize, &mut TcpStream) + Send + Sync + 'static) -> Stand {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Stand { host, seen }
    }

    fn seen(&self, path: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path.contains(path)).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, answer: &(dyn Fn(&Seen, usize, &mut TcpStream) + Send + Sync)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(path) = lines.next().and_then(|line| Some(line.split(' ').nth(1)?.to_owned())) else { return };
    let header = |line: String| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()));
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(header).collect();
    let seen = Seen { path, headers };
    let before = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|old| old.path == seen.path).count();
        log.push(seen.clone());
        before
    };
    answer(&seen, before, &mut stream);
}

fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn image(dir: &Dir) -> (Image, HashMap<String, (Vec<u8>, String)>) {
    let image = stand_in(dir.path(), "victim");
    let content = |blob: &Blob| {
        let kind = if blob.digest == image.manifest.digest {
            image.manifest.media_type.as_str()
        } else {
            "application/octet-stream"
        };
        (blob.digest.to_string(), (all(blob), kind.to_owned()))
    };
    let blobs = image.blobs.iter().map(content).collect();
    (image, blobs)
}

fn honest(seen: &Seen, blobs: &HashMap<String, (Vec<u8>, String)>, stream: &mut TcpStream) {
    match blobs.get(seen.path.rsplit('/').next().unwrap()) {
        Some((body, kind)) => reply(stream, "200 OK", &format!("Content-Type: {kind}\r\n"), body),
        None => reply(stream, "404 Not Found", "", b""),
    }
}

fn largest(image: &Image) -> &Blob {
    image.blobs.iter().max_by_key(|blob| blob.size).unwrap()
}

fn quick() -> Options {
    let mut options = Options::default();
    options.limits.pause = Duration::from_millis(1);
    options.limits.attempts = 3;
    options.limits.idle = Duration::from_secs(5);
    options
}

async fn fetch(stand: &Stand, image: &Image, options: &Options) -> Result<Image, Error> {
    let dir = Dir::new();
    let reference: Reference = format!("{}/a/b:1@{}", stand.host, image.manifest.digest).parse().unwrap();
    pull(&reference, &Platform::linux("amd64"), dir.path(), options, &|_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_all_pages_are_listed_and_other_hosts_are_not_asked() {
    let stand = Stand::new(|seen, _, stream| match seen.path.as_str() {
        "/v2/a/b/tags/list?n=1000" => {
            let next = "Link: </v2/a/b/tags/list?last=1.1&n=1000>; rel=\"next\"\r\n";
            reply(stream, "200 OK", next, br#"{"name":"a/b","tags":["1.0","1.1","-no tag"]}"#);
        }
        "/v2/a/b/tags/list?last=1.1&n=1000" => reply(stream, "200 OK", "", br#"{"name":"a/b","tags":["1.2"]}"#),
        "/v2/a/away/tags/list?n=1000" => {
            let next = "Link: <https://other.example/v2/a/away/tags/list>; rel=\"next\"\r\n";
            reply(stream, "200 OK", next, br#"{"tags":["1.0"]}"#);
        }
        "/v2/a/none/tags/list?n=1000" => reply(stream, "200 OK", "", br#"{"tags":null}"#),
        _ => reply(stream, "404 Not Found", "", b""),
    });
    let of = async |name: &str| {
        let reference: Reference = format!("{}/a/{name}:1.0", stand.host).parse().unwrap();
        tags(&reference, &quick(), &|_| {}).await
    };
    let all =
        |tags: &[&str], is_complete| TagList { tags: tags.iter().map(ToString::to_string).collect(), is_complete };
    assert_eq!(of("b").await.unwrap(), all(&["1.0", "1.1", "1.2"], true));
    assert_eq!(of("away").await.unwrap(), all(&["1.0"], false));
    assert_eq!(of("none").await.unwrap(), all(&[], true));
    assert!(matches!(of("gone").await.unwrap_err(), Error::Missing { .. }));
    let pinned: Reference = format!("{}/a/b@{}", stand.host, Digest::of(b"")).parse().unwrap();
    assert!(!has(&pinned, &quick(), &|_| {}).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_with_a_wrong_digest_is_refused_after_one_retry() {
    let dir = Dir::new();
    let (image, mut blobs) = image(&dir);
    let layer = largest(&image).digest.to_string();
    blobs.get_mut(&layer).unwrap().0[700] ^= 1;
    let stand = Stand::new(move |seen, _, stream| honest(seen, &blobs, stream));
    let error = fetch(&stand, &image, &quick()).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { expected, .. } if *expected == layer), "{error}");
    assert_eq!(stand.seen(&layer).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_with_a_wrong_digest_is_refused() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let digest = image.manifest.digest.to_string();
    let other = blobs.clone();
    let stand = Stand::new(move |seen, _, stream| {
        let (mut body, kind) = other[&digest].clone();
        body.push(b' ');
        assert!(seen.path.contains("/manifests/"));
        let headers = format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n");
        reply(stream, "200 OK", &headers, &body);
    });
    assert!(matches!(fetch(&stand, &image, &quick()).await.unwrap_err(), Error::Mismatch { .. }));
    // A tag whose digest header lies is not pinned either.
    let tag: Reference = format!("{}/a/b:1", stand.host).parse().unwrap();
    assert!(matches!(resolve(&tag, &quick(), &|_| {}).await.unwrap_err(), Error::Mismatch { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_download_resumes_and_gives_up_without_progress() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let layer = largest(&image).digest.to_string();
    let cut = layer.clone();
    let whole = blobs.clone();
    let stand = Stand::new(move |seen, before, stream| {
        let (body, _) = &whole[seen.path.rsplit('/').next().unwrap()];
        if !seen.path.ends_with(&cut) {
            return honest(seen, &whole, stream);
        }
        // A third each time; it promises all.
        let from: usize = seen
            .headers
            .get("range")
            .map_or(0, |range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap());
        assert_eq!(from > 0, before > 0);
        let end = (from + body.len() / 3 + 1).min(body.len());
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}\r\n", body.len() - from);
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[from..end]));
    });
    assert_eq!(fetch(&stand, &image, &quick()).await.unwrap().size(), image.size());
    assert_eq!(stand.seen(&layer).len(), 3);

    let never = layer.clone();
    let silent = Stand::new(move |seen, _, stream| {
        if !seen.path.ends_with(&never) {
            honest(seen, &blobs, stream);
        }
    });
    let error = fetch(&silent, &image, &quick()).await.unwrap_err();
    assert!(matches!(&error, Error::Network { attempts: 3, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_response_bodies_end_at_the_promised_size() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let endless = |stream: &mut TcpStream, headers: &str| {
        let head = format!("HTTP/1.1 200 OK\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        while stream.write_all(&chunk).is_ok() {}
    };
    let (layer, content) = (largest(&image).digest.to_string(), blobs.clone());
    let stand = Stand::new(move |seen, _, stream| match seen.path.ends_with(&layer) {
        true => endless(stream, ""),
        false => honest(seen, &content, stream),
    });
    let error = fetch(&stand, &image, &quick()).await.unwrap_err();
    assert!(matches!(&error, Error::Mismatch { found, .. } if found == "more"), "{error}");
    let stand =
        Stand::new(move |_, _, stream| endless(stream, "Content-Type: application/vnd.oci.image.index.v1+json\r\n"));
    let error = fetch(&stand, &image, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn non_image_responses_are_refused_as_such() {
    let dir = Dir::new();
    let page = b"<html>log in to the hotel's network</html>".to_vec();
    let stand = Stand::new({
        let page = page.clone();
        move |_, _, stream| reply(stream, "200 OK", "Content-Type: text/html; charset=utf-8\r\n", &page)
    });
    let tag: Reference = format!("{}/a/b:1", stand.host).parse().unwrap();
    let error = resolve(&tag, &quick(), &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("`text/html` is neither an image"), "{error}");
    let reference = tag.pin(Digest::of(&page));
    let error = pull(&reference, &Platform::linux("amd64"), dir.path(), &quick(), &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("text/html"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_retry_after_is_honoured_within_bounds() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let busy = |after: &'static str, blobs: HashMap<String, (Vec<u8>, String)>| {
        Stand::new(move |seen, before, stream| match before {
            0 => reply(stream, "429 Too Many Requests", &format!("Retry-After: {after}\r\n"), b""),
            _ => honest(seen, &blobs, stream),
        })
    };
    let stand = busy("0", blobs.clone());
    fetch(&stand, &image, &quick()).await.unwrap();
    assert_eq!(stand.seen("/manifests/").len(), 2);
    let error = fetch(&busy("86400", blobs), &image, &quick()).await.unwrap_err();
    assert!(matches!(error, Error::Throttled { seconds: Some(86400), .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sent_only_to_the_registry_and_its_token_service() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let content = blobs.clone();
    let storage = Stand::new(move |seen, _, stream| honest(seen, &content, stream));
    let elsewhere = storage.host.clone();
    // Tokens come from the registry itself, blobs from another host.
    let own = Arc::new(Mutex::new(String::new()));
    let host = own.clone();
    let stand = Stand::new(move |seen, _, stream| {
        let host = host.lock().unwrap().clone();
        if seen.path.starts_with("/token") {
            let known = seen.headers.get("authorization").is_some_and(|a| a == "Basic bWU6aHVudGVyMg==");
            let status = if known { "200 OK" } else { "401 Unauthorized" };
            return reply(stream, status, "", br#"{"token":"t0ken"}"#);
        }
        if seen.headers.get("authorization").is_none_or(|a| a != "Bearer t0ken") {
            let ask = format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
            return reply(stream, "401 Unauthorized", &ask, b"");
        }
        match seen.path.contains("/blobs/") {
            true => {
                reply(stream, "307 Temporary Redirect", &format!("Location: http://{elsewhere}{}\r\n", seen.path), b"")
            }
            false => honest(seen, &blobs, stream),
        }
    });
    *own.lock().unwrap() = stand.host.clone();
    let credentials = Credentials { user: "me".to_owned(), password: Secret::new("hunter2") };
    let options = Options { credentials: Some(credentials), ..quick() };
    fetch(&stand, &image, &options).await.unwrap();
    assert_eq!(stand.seen("/token").len(), 1, "a token is used again");
    assert!(stand.seen("/token")[0].path.contains("scope=repository%3Aa%2Fb%3Apull"));
    assert!(!storage.seen("/blobs/").is_empty());
    assert!(storage.seen("").iter().all(|seen| !seen.headers.contains_key("authorization")));

    // A registry that sends us to another host for a token does not get the password there.
    let thief = Stand::new(|_, _, stream| reply(stream, "200 OK", "", br#"{"token":"t"}"#));
    let realm = thief.host.clone();
    let stand = Stand::new(move |_, _, stream| {
        let ask = format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\"\r\n");
        reply(stream, "401 Unauthorized", &ask, b"");
    });
    let error = fetch(&stand, &image, &options).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { hint, .. } if hint.contains("token hosts")), "{error}");
    assert!(thief.seen("").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_loops_and_unencrypted_remote_redirects_are_refused() {
    let dir = Dir::new();
    let (image, _) = image(&dir);
    let turns = Stand::new(|seen, _, stream| reply(stream, "302 Found", &format!("Location: {}\r\n", seen.path), b""));
    let error = fetch(&turns, &image, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    let away = Stand::new(|_, _, stream| reply(stream, "302 Found", "Location: http://198.51.100.1/x\r\n", b""));
    let error = fetch(&away, &image, &quick()).await.unwrap_err();
    assert!(error.to_string().contains("not encrypted"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_proxy_is_used_except_for_no_proxy_hosts() {
    let dir = Dir::new();
    let (image, blobs) = image(&dir);
    let proxy = Stand::new(move |seen, _, stream| honest(seen, &blobs, stream));
    let mut options = Options { plain_http: PlainHttp::Always, ..quick() };
    options.proxy.http = Some(format!("http://{}", proxy.host));
    let reference: Reference = format!("registry.invalid:5000/a/b@{}", image.manifest.digest).parse().unwrap();
    pull(&reference, &Platform::linux("amd64"), dir.path(), &options, &|_| {}).await.unwrap();
    assert_eq!(proxy.seen("http://registry.invalid:5000/v2/a/b/").len(), 4);
    options.proxy.no_proxy = Some("registry.invalid".to_owned());
    let error = pull(&reference, &Platform::linux("amd64"), dir.path(), &options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
}
