//! Layouts of others and ours.

use std::os::unix::fs::symlink;

use textnlp_bundle::oci::image::assemble;
use textnlp_bundle::oci::layout::{Layout, merge};
use textnlp_bundle::oci::{Error, Image, Platform};

use crate::tools::{Dir, all, has, program, recipe, skopeo, stand_in, write, write_images};

fn amd64() -> Platform {
    Platform::linux("amd64")
}

#[test]
fn written_images_are_found_by_name_tag_digest_and_platform() {
    let dir = Dir::new();
    let mut arm = assemble(&recipe(program(dir.path(), 183, b"arm"), "textnlp")).unwrap();
    arm.name = "textnlp:1.0.0".to_owned();
    let (textnlp, redis) = (stand_in(dir.path(), "textnlp"), stand_in(dir.path(), "redis"));
    write_images(&[redis.clone(), arm.clone(), textnlp.clone()], &dir.join("out"));
    let layout = Layout::open(&dir.join("out")).unwrap();
    assert_eq!(layout.entries().filter_map(|(name, _)| name).collect::<Vec<_>>(), ["redis:1.0.0", "textnlp:1.0.0"]);
    let read = |name: &str, platform: &Platform| layout.image(Some(name), platform, name).unwrap();
    assert_eq!(read("textnlp:1.0.0", &amd64()).manifest.digest, textnlp.manifest.digest);
    assert_eq!(read("textnlp:1.0.0", &Platform::linux("arm64")).manifest.digest, arm.manifest.digest);
    assert_eq!(read(&redis.manifest.digest.to_string(), &amd64()).size(), redis.size());
    let error = layout.image(Some("textnlp:1.0.0"), &Platform::linux("s390x"), "x").unwrap_err().to_string();
    assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
    let error = layout.image(Some("nginx"), &amd64(), "x").unwrap_err().to_string();
    assert!(error.contains("redis:1.0.0, textnlp:1.0.0"), "{error}");
    let error = layout.image(Some("redis:1.0.0"), &Platform::linux("arm64"), "x").unwrap_err().to_string();
    assert!(error.contains("linux/amd64"), "{error}");
}

#[test]
fn layout_merge_is_order_independent_and_deduplicates_blobs() {
    let dir = Dir::new();
    let (one, two) = (stand_in(dir.path(), "one"), stand_in(dir.path(), "two"));
    let bytes = |images: &[Image]| -> Vec<(String, Vec<u8>)> {
        merge(images).unwrap().iter().map(|blob| (blob.path.clone(), all(blob))).collect()
    };
    let merged = bytes(&[one.clone(), two.clone()]);
    assert_eq!(merged, bytes(&[two.clone(), one.clone()]));
    // Four blobs each, of which the lowest layer is shared; the index and the marker.
    assert_eq!(merged.len(), 4 + 3 + 2);
    assert!(merged.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let other = Image { name: one.name.clone(), ..two };
    assert!(matches!(merge(&[one, other]), Err(Error::Conflict { .. })));
}

#[test]
fn skopeo_selects_a_platform_from_a_multi_platform_index() {
    if !has("skopeo") {
        return;
    }
    let dir = Dir::new();
    let arm = assemble(&recipe(program(dir.path(), 183, b"arm"), "textnlp")).unwrap();
    let amd = stand_in(dir.path(), "textnlp");
    write_images(&[arm.clone(), amd.clone()], &dir.join("out"));
    for (architecture, image) in [("arm64", arm), ("amd64", amd)] {
        let from = format!("oci:{}:textnlp:1.0.0", dir.join("out"));
        let seen = skopeo(&["--override-arch", architecture, "inspect", "--config", &from]);
        let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen["architecture"], architecture);
        let to = format!("oci:{}:x", dir.join(architecture));
        skopeo(&["--override-arch", architecture, "copy", "--dest-oci-accept-uncompressed-layers", &from, &to]);
        let read = Layout::open(&dir.join(architecture)).unwrap();
        let read = read.image(None, &Platform::linux(architecture), "y").unwrap();
        assert_eq!(read.manifest.digest, image.manifest.digest);
    }
}

#[test]
fn damaged_and_hostile_layouts_are_refused_with_the_file_name() {
    let dir = Dir::new();
    let image = stand_in(dir.path(), "textnlp");
    let blobs = merge(std::slice::from_ref(&image)).unwrap();
    let check = |name: &str, spoil: &dyn Fn(&camino::Utf8Path), expect: &str| {
        let root = dir.join(name);
        write(&blobs, &root);
        spoil(&root);
        let error = Layout::open(&root).and_then(|layout| layout.image(None, &amd64(), "x")).unwrap_err();
        assert!(error.to_string().contains(expect), "{name}: {error}");
        assert!(!error.hint().is_empty());
    };
    let largest = image.blobs.iter().max_by_key(|blob| blob.size).unwrap();
    let manifest = image.blobs.iter().find(|blob| blob.digest == image.manifest.digest).unwrap();
    check(
        "flipped",
        &|root| {
            let path = root.join(&largest.path);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[1000] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        },
        &largest.path,
    );
    check(
        "shorter",
        &|root| {
            let file = std::fs::OpenOptions::new().write(true).open(root.join(&largest.path)).unwrap();
            file.set_len(10).unwrap();
        },
        "10 bytes",
    );
    check("missing", &|root| std::fs::remove_file(root.join(&largest.path)).unwrap(), "read ");
    check(
        "manifest",
        &|root| {
            let path = root.join(&manifest.path);
            let text = std::fs::read_to_string(&path).unwrap().replace("\"schemaVersion\":2", "\"schemaVersion\":1");
            std::fs::write(&path, text).unwrap();
        },
        &manifest.path,
    );
    check(
        "link",
        &|root| {
            std::fs::remove_file(root.join(&largest.path)).unwrap();
            symlink("/etc/passwd", root.join(&largest.path)).unwrap();
        },
        "not a plain file",
    );
    check("marker", &|root| std::fs::write(root.join("oci-layout"), "{}").unwrap(), "version 1");
    check("index", &|root| std::fs::write(root.join("index.json"), "[").unwrap(), "cannot be parsed");
    check(
        "huge",
        &|root| {
            std::fs::File::create(root.join("index.json")).unwrap().set_len(1 << 30).unwrap();
        },
        "more than",
    );
    check(
        "type",
        &|root| {
            let path = root.join("index.json");
            let text = std::fs::read_to_string(&path).unwrap().replace("image.manifest.v1", "artifact.v1");
            std::fs::write(&path, text).unwrap();
        },
        "neither an image",
    );
    check(
        "traversal",
        &|root| {
            let path = root.join("index.json");
            let text = std::fs::read_to_string(&path)
                .unwrap()
                .replace(&image.manifest.digest.to_string(), "sha256:../../../etc/passwd");
            std::fs::write(&path, text).unwrap();
        },
        "SHA-256",
    );
    // An index that names itself is no way to spend an afternoon.
    check(
        "loop",
        &|root| {
            let own = textnlp_models::Digest::of(b"x");
            let text = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{own}","size":1}}]}}"#
            );
            std::fs::write(root.join("index.json"), text).unwrap();
        },
        "read ",
    );
}
