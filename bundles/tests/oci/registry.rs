//! Our client and Debian's docker-registry.

use std::collections::BTreeSet;
use std::sync::Mutex;

use textnlp_bundle::oci::layout::Layout;
use textnlp_bundle::oci::registry::{Credentials, Options, PlainHttp, Secret, pull, resolve};
use textnlp_bundle::oci::{self, Error, Platform, Reference, media};
use textnlp_models::{Digest, Event};

use crate::tools::{Dir, Registry, has, skopeo, stand_in, write_images};

fn amd64() -> Platform {
    Platform::linux("amd64")
}

/// `user` with the password `word`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuQDoL5Sa/TtfS/XN4AY/jgq.HBbO1BTu\n";

fn push(dir: &Dir, registry: &Registry, name: &str, extra: &[&str]) -> textnlp_bundle::oci::Image {
    let image = stand_in(dir.path(), name);
    let out = dir.join(&format!("push-{name}"));
    write_images(std::slice::from_ref(&image), &out);
    let (from, to) = (format!("oci:{out}:{name}:1.0.0"), format!("docker://{}/lib/{name}:1", registry.host));
    let mut args = vec!["copy", "--dest-tls-verify=false"];
    args.extend(extra);
    args.extend([from.as_str(), to.as_str()]);
    skopeo(&args);
    image
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_is_pinned_once_and_the_image_is_pulled_by_digest() {
    if !has("skopeo") || !has("docker-registry") {
        return;
    }
    let (dir, registry) = (Dir::new(), Registry::start(None));
    push(&dir, &registry, "postgres", &[]);
    // Docker's own format, as public registries have it.
    push(&dir, &registry, "redis", &["--format", "v2s2"]);
    let options = Options::default();
    let mut images = Vec::new();
    for name in ["postgres", "redis"] {
        let by_tag: Reference = format!("{}/lib/{name}:1", registry.host).parse().unwrap();
        let error = pull(&by_tag, &amd64(), &dir.join("cache"), &options, &|_| {}).await.unwrap_err();
        assert!(matches!(error, Error::Unpinned { .. }), "{error}");
        let pinned = resolve(&by_tag, &options, &|_| {}).await.unwrap();
        let expected =
            skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{by_tag}")]);
        assert_eq!(pinned.digest.unwrap().to_string(), expected.trim());
        let image = pull(&pinned, &amd64(), &dir.join("cache"), &options, &|_| {}).await.unwrap();
        assert_eq!(image.name, format!("{}/lib/{name}:1", registry.host));
        assert_eq!(Some(image.pinned), pinned.digest);
        images.push(image);
    }
    assert_eq!(images[1].manifest.media_type, media::DOCKER_MANIFEST);
    write_images(&images, &dir.join("merged"));
    let layout = Layout::open(&dir.join("merged")).unwrap();
    for image in &images {
        assert_eq!(layout.image(Some(&image.name), &amd64(), "x").unwrap().size(), image.size());
        let to = dir.join(&image.manifest.digest.hex());
        skopeo(&["copy", &format!("oci:{}:{}", dir.join("merged"), image.name), &format!("dir:{to}")]);
        let copied = std::fs::read(to.join("manifest.json")).unwrap();
        assert_eq!(Digest::of(&copied), image.manifest.digest);
    }

    // Again: nothing but manifests is asked for. One blob is damaged and one was cut: both become whole.
    let pinned: Reference = format!("{}/lib/postgres:1@{}", registry.host, images[0].pinned).parse().unwrap();
    let fetched = Mutex::new(Vec::new());
    let listen = |event| {
        if let Event::File { name, done, .. } = event {
            fetched.lock().unwrap().push((name, done));
        }
    };
    pull(&pinned, &amd64(), &dir.join("cache"), &options, &listen).await.unwrap();
    assert!(fetched.lock().unwrap().is_empty());
    let largest = images[0].blobs.iter().max_by_key(|blob| blob.size).unwrap();
    let path = dir.join("cache").join(&largest.path);
    let whole = std::fs::read(&path).unwrap();
    let half = whole.len() / 2;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(format!("{path}.part"), &whole[..half]).unwrap();
    pull(&pinned, &amd64(), &dir.join("cache"), &options, &listen).await.unwrap();
    assert!(fetched.lock().unwrap().iter().all(|(_, done)| *done > half as u64), "it goes on where it was");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    let mut damaged = whole.clone();
    damaged[half] ^= 1;
    // The layout's file is linked to the cache's: a new file, so that only the cache is damaged.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, damaged).unwrap();
    pull(&pinned, &amd64(), &dir.join("cache"), &options, &|_| {}).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    let nobody: Reference = format!("{}/lib/nobody@{}", registry.host, Digest::of(b"")).parse().unwrap();
    let error = pull(&nobody, &amd64(), &dir.join("cache"), &options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    let error = pull(&pinned, &Platform::linux("arm64"), &dir.join("other"), &options, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("it is for linux/amd64"), "{error}");
    let small = Options { most_bytes: 1000, ..Options::default() };
    let error = pull(&pinned, &amd64(), &dir.join("small"), &small, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("larger than 1000 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_once_and_read_back() {
    if !has("docker-registry") {
        return;
    }
    let (dir, registry) = (Dir::new(), Registry::start(Some(HTPASSWD)));
    let image = stand_in(dir.path(), "server");
    let to = |tag: &str| -> Reference { format!("{}/lib/server:{tag}", registry.host).parse().unwrap() };
    let account = |password: &str| Options {
        credentials: Some(Credentials { user: "user".to_owned(), password: Secret::new(password) }),
        ..Options::default()
    };
    let sent = Mutex::new(BTreeSet::new());
    let tell = |event: Event| {
        if let Event::File { name, done, total } = event
            && Some(done) == total
        {
            sent.lock().unwrap().insert(name);
        }
    };
    let error = oci::push(&image, &to("1"), &account("other"), &tell).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(sent.lock().unwrap().is_empty());
    oci::push(&image, &to("1"), &account("word"), &tell).await.unwrap();
    let first = std::mem::take(&mut *sent.lock().unwrap());
    assert_eq!(first.len(), image.blobs.len() - 1, "all blobs but the manifest: {first:?}");
    let pinned = to("1").pin(image.manifest.digest);
    let pulled = pull(&pinned, &amd64(), &dir.join("cache"), &account("word"), &|_| {}).await.unwrap();
    assert_eq!((pulled.manifest.digest, pulled.size()), (image.manifest.digest, image.size()));
    // Another tag needs the manifest only, and the same one nothing.
    oci::push(&image, &to("2"), &account("word"), &tell).await.unwrap();
    oci::push(&image, &to("1"), &account("word"), &tell).await.unwrap();
    assert!(sent.lock().unwrap().is_empty());
    // A file that becomes another one while it is sent is not pushed.
    let program = dir.join("program-62-120000");
    let mut bytes = std::fs::read(&program).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&program, bytes).unwrap();
    let other: Reference = format!("{}/lib/other:1", registry.host).parse().unwrap();
    oci::push(&image, &other, &account("word"), &tell).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_with_authentication_accepts_valid_credentials_only() {
    if !has("skopeo") || !has("docker-registry") {
        return;
    }
    let (dir, registry) = (Dir::new(), Registry::start(Some(HTPASSWD)));
    push(&dir, &registry, "postgres", &["--dest-creds", "user:word"]);
    let reference: Reference = format!("{}/lib/postgres:1", registry.host).parse().unwrap();
    let account = |password: &str| Options {
        credentials: Some(Credentials { user: "user".to_owned(), password: Secret::new(password) }),
        ..Options::default()
    };
    let pinned = resolve(&reference, &account("word"), &|_| {}).await.unwrap();
    pull(&pinned, &amd64(), &dir.join("cache"), &account("word"), &|_| {}).await.unwrap();
    for options in [account("wrong"), Options::default()] {
        let error = resolve(&reference, &options, &|_| {}).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }) && !format!("{error:?}").contains("wrong"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_registry_ca_is_trusted_when_configured() {
    if !has("skopeo") || !has("docker-registry") {
        return;
    }
    let dir = Dir::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&leaf_key, &issuer).unwrap();
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ca, cert, key) = (put("ca", ca.pem()), put("cert", leaf.pem()), put("key", leaf_key.serialize_pem()));
    let registry = Registry::start_with(None, Some((&cert, &key)));
    push(&dir, &registry, "postgres", &[]);
    let reference: Reference = format!("{}/lib/postgres:1", registry.host).parse().unwrap();
    let options = Options { plain_http: PlainHttp::Never, ca_file: Some(ca), ..Options::default() };
    let pinned = resolve(&reference, &options, &|_| {}).await.unwrap();
    pull(&pinned, &amd64(), &dir.join("cache"), &options, &|_| {}).await.unwrap();
    let options = Options { ca_file: None, ..options };
    let error = resolve(&reference, &options, &|_| {}).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { hint, .. } if hint.contains("private CA")), "{error}");
}
