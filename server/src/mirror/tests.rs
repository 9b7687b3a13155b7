//! The mirror and its clients: skopeo, our own registry client, our own hub client, and requests by hand.

use std::process::Command;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_bundle::file_source::Folder;
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::oci::image::{Recipe, assemble};
use textnlp_bundle::oci::registry::{pull, resolve};
use textnlp_bundle::oci::{Image, Platform, layout};
use textnlp_models::{Digest, FetchOptions, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Mirror, Options, segments};
use crate::config::Address;

struct Bench {
    dir: tempfile::TempDir,
    mirror: Mirror,
    image: Image,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The smallest static program for amd64, and something behind it.
fn program(path: &Utf8Path) {
    let mut elf = vec![0u8; 120];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    for (at, value) in [(16, 2), (18, 62), (54, 56), (56, 1), (64, 1), (32, 64), (24, 120)] {
        elf[at] = value;
    }
    elf.extend((0..3_000_000u32).map(|n| (n % 251) as u8));
    std::fs::write(path, elf).unwrap();
}

fn item(kind: ItemKind, name: &str, source: Option<&str>, paths: &[&str]) -> Item {
    Item {
        kind,
        name: name.to_owned(),
        version: None,
        digest: Digest::of(name.as_bytes()),
        platform: None,
        license: Some("apache-2.0".to_owned()),
        source: source.map(str::to_owned),
        media_type: None,
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
    }
}

impl Bench {
    async fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().join("bundle")).unwrap();
        let exe = Utf8PathBuf::from_path_buf(dir.path().join("program")).unwrap();
        program(&exe);
        let recipe = Recipe {
            program: exe,
            name: "textnlp".to_owned(),
            version: "1.0.0".to_owned(),
            epoch: 1,
            revision: None,
            source: None,
            models: Vec::new(),
        };
        let image = assemble(&recipe).unwrap();
        let postgres = Image { name: "docker.io/library/postgres:15".to_owned(), ..image.clone() };
        for blob in layout::merge(&[image.clone(), postgres]).unwrap() {
            blob.put(&root.join("images")).unwrap();
        }
        for model in ["tiny", "named"] {
            let folder = root.join("models").join(model);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("config.json"), "{}").unwrap();
            std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
            std::fs::write(folder.join("model.safetensors"), vec![3; 2_500_000]).unwrap();
        }
        let files =
            |model| ["config.json", "tokenizer.json", "model.safetensors"].map(|f| format!("models/{model}/{f}"));
        let (tiny, named) = (files("tiny"), files("named"));
        let source = format!("hf:org/named@{COMMIT}");
        let items = vec![
            item(ItemKind::Model, "tiny", Some("bundled"), &tiny.each_ref().map(String::as_str)),
            item(ItemKind::Model, "named", Some(&source), &named.each_ref().map(String::as_str)),
        ];
        let source = Arc::new(Folder::open(&root, items).unwrap());
        let mirror = Mirror::start(source, Options::default()).await.unwrap();
        Bench { dir, mirror, image }
    }

    fn host(&self) -> String {
        match self.mirror.address() {
            Address::Tcp(address) => address.clone(),
            Address::Unix(path) => panic!("{path}"),
        }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.dir.path().join(name)).unwrap()
    }

    /// Status, headers in lower case, body.
    async fn ask(&self, line: &str, headers: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.host()).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        // A connection that is cut on purpose may end with a reset.
        let _ = stream.read_to_end(&mut all).await;
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(all[..end].to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, all[end + 4..].to_vec())
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.ask(&format!("GET {path}"), "").await;
        (status, serde_json::from_slice(&body).unwrap())
    }
}

fn has_skopeo() -> bool {
    let found = Command::new("skopeo").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "skopeo is not installed");
    if !found {
        eprintln!("NOT TESTED: skopeo is not installed (Debian: apt-get install skopeo)");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_an_image_from_the_mirror() {
    if !has_skopeo() {
        return;
    }
    let bench = Bench::new().await;
    for name in ["textnlp:1.0.0", "postgres:15", "library/postgres:15", "docker.io/library/postgres:15"] {
        let (from, to) = (format!("docker://{}/{name}", bench.host()), bench.path(&name.replace(['/', ':'], "-")));
        let job = move || {
            let args = ["--insecure-policy", "copy", "--src-tls-verify=false", &from, &format!("dir:{to}")];
            let out = Command::new("skopeo").args(args).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            std::fs::read(to.join("manifest.json")).unwrap()
        };
        let manifest = tokio::task::spawn_blocking(job).await.unwrap();
        assert_eq!(Digest::of(&manifest), bench.image.manifest.digest);
    }
    bench.mirror.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_client_pulls_from_the_mirror_by_digest() {
    let bench = Bench::new().await;
    let tag = format!("{}/textnlp:1.0.0", bench.host()).parse().unwrap();
    let pinned = resolve(&tag, &Default::default(), &|_| {}).await.unwrap();
    assert_eq!(pinned.digest, Some(bench.image.manifest.digest));
    let platform = Platform::linux("amd64");
    let image = pull(&pinned, &platform, &bench.path("cache"), &Default::default(), &|_| {}).await.unwrap();
    assert_eq!(image.size(), bench.image.size());
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_client_fetches_models_from_the_mirror_by_repository_and_commit() {
    let bench = Bench::new().await;
    let store = Store::open(bench.path("store")).unwrap();
    let options = FetchOptions { endpoint: format!("http://{}", bench.host()), ..FetchOptions::default() };
    for source in ["hf:bundle/tiny".to_owned(), "hf:org/named".to_owned(), format!("hf:org/named@{COMMIT}")] {
        let model = store.fetch(&source.parse().unwrap(), &options, &|_| {}).await.unwrap();
        assert_eq!(std::fs::read(model.dir.join("model.safetensors")).unwrap(), vec![3; 2_500_000], "{source}");
        assert_eq!(model.manifest.license.as_deref(), Some("apache-2.0"));
    }
    let fetch =
        async |source: &str| store.fetch(&source.parse().unwrap(), &options, &|_| {}).await.unwrap_err().to_string();
    assert!(fetch("hf:org/nobody").await.contains("org/nobody"));
    assert!(fetch("hf:org/named@v9").await.contains("v9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_conforms_to_the_registry_protocol() {
    let bench = Bench::new().await;
    let digest = bench.image.manifest.digest;
    assert_eq!(bench.json("/v2/").await, (200, serde_json::json!({})));
    let (_, all) = bench.json("/v2/_catalog").await;
    assert_eq!(all["repositories"], serde_json::json!(["docker.io/library/postgres", "textnlp"]));
    let (status, head, body) = bench.ask("GET /v2/_catalog?n=1", "").await;
    assert!(status == 200 && head.contains("last=docker.io/library/postgres>; rel=\"next\""), "{head}");
    assert!(!String::from_utf8(body).unwrap().contains("textnlp"));
    assert_eq!(bench.json("/v2/textnlp/tags/list").await.1["tags"], serde_json::json!(["1.0.0"]));
    let (status, head, body) = bench.ask(&format!("HEAD /v2/textnlp/manifests/{digest}"), "").await;
    assert_eq!((status, body.len()), (200, 0));
    assert!(
        head.contains(&format!("docker-content-digest: {digest}")) && head.contains("image.manifest.v1+json"),
        "{head}"
    );
    assert!(head.contains(&format!("content-length: {}", bench.image.manifest.size)), "{head}");
    for (path, status, code) in [
        ("/v2/nobody/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/textnlp/manifests/9", 404, "MANIFEST_UNKNOWN"),
        ("/v2/textnlp/manifests/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/textnlp/blobs/sha256:../../../../etc/passwd", 404, "NAME_UNKNOWN"),
        ("/v2/textnlp/blobs/sha256:%2e%2e%2fetc", 400, "DIGEST_INVALID"),
        (&format!("/v2/textnlp/blobs/{}", Digest::of(b"")), 404, "BLOB_UNKNOWN"),
    ] {
        let (found, body) = bench.json(path).await;
        assert_eq!((found, body["errors"][0]["code"].as_str().unwrap()), (status, code), "{path}");
    }
    // A layer is no manifest, whatever it is asked for as.
    let layer = bench.image.blobs.iter().max_by_key(|blob| blob.size).unwrap();
    assert_eq!(bench.json(&format!("/v2/textnlp/manifests/{}", layer.digest)).await.0, 404);
    for line in ["POST /v2/textnlp/blobs/uploads/", "PUT /v2/textnlp/manifests/1", "DELETE /v2/textnlp/manifests/1"] {
        let (status, head, body) = bench.ask(line, "Content-Length: 0\r\n").await;
        assert!(status == 405 && head.contains("allow: get, head"), "{head}");
        assert!(String::from_utf8(body).unwrap().contains("UNSUPPORTED"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirror_supports_ranges_and_etags() {
    let bench = Bench::new().await;
    let layer = bench.image.blobs.iter().max_by_key(|blob| blob.size).unwrap();
    let whole = std::fs::read(bench.path("bundle/images").join(&layer.path)).unwrap();
    let get = format!("GET /v2/textnlp/blobs/{}", layer.digest);
    let (status, head, body) = bench.ask(&get, "").await;
    assert!(status == 200 && head.contains("accept-ranges: bytes") && body == whole);
    let (status, head, body) = bench.ask(&get, "Range: bytes=1000000-2000001\r\n").await;
    assert_eq!(status, 206);
    assert!(head.contains(&format!("content-range: bytes 1000000-2000001/{}", whole.len())), "{head}");
    assert_eq!(body, whole[1_000_000..2_000_002]);
    let (status, head, _) = bench.ask(&get, &format!("Range: bytes={}-\r\n", whole.len())).await;
    assert!(status == 416 && head.contains(&format!("content-range: bytes */{}", whole.len())), "{head}");
    let (status, _, body) = bench.ask(&get, &format!("If-None-Match: \"{}\"\r\n", layer.digest)).await;
    assert_eq!((status, body.len()), (304, 0));
    let (status, _, body) = bench.ask(&get, "Range: bytes=0-1\r\nIf-Range: \"another\"\r\n").await;
    assert_eq!((status, body.len()), (200, whole.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_mirror_file_is_an_error_and_never_a_short_response() {
    let bench = Bench::new().await;
    let path = bench.path("bundle/models/tiny/model.safetensors");
    let get = "GET /bundle/tiny/resolve/main/model.safetensors";
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1_500_000).unwrap();
    // The first block is there: the answer begins, and the connection is cut.
    let (status, head, body) = bench.ask(get, "").await;
    assert!(status == 200 && head.contains("content-length: 2500000") && body.len() < 2_500_000, "{}", body.len());
    std::fs::remove_file(&path).unwrap();
    let (status, head, body) = bench.ask(get, "").await;
    assert_eq!(status, 500);
    assert!(
        head.contains("x-error-code: damaged") && !String::from_utf8(body).unwrap().contains("bundle/models"),
        "{head}"
    );
}

#[test]
fn mirror_paths_are_percent_decoded_once() {
    let parts = |path| segments(path).map(|parts| parts.join("|"));
    assert_eq!(parts("/a/b%20c/%2e%2E").as_deref(), Some("a|b c|.."));
    assert_eq!(parts("/%252f").as_deref(), Some("%2f"));
    assert_eq!(parts("/"), Some(String::new()));
    for bad in ["/%", "/%2", "/%+1", "/%zz", "/%ff"] {
        assert_eq!(parts(bad), None, "{bad}");
    }
}

/// The configuration that the compose files mount.
#[test]
fn compose_server_configuration_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("server.yaml")).unwrap();
    std::fs::write(&path, include_str!("../../../templates/compose/server.yaml")).unwrap();
    let config = crate::config::Config::read(&path).unwrap();
    assert_eq!(config.models.default, "textnlp-tiny");
}
