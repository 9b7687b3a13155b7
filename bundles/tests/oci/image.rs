//! The server's image.

use serde_json::Value;
use std::process::Command;
use textnlp_bundle::oci::image::assemble;
use textnlp_bundle::oci::{Image, layout, media};

use crate::tools::{Dir, all, has, program, recipe, skopeo, stand_in, write_images};

fn json_of(image: &Image, path: &str) -> Value {
    let blob = image.blobs.iter().find(|blob| blob.path == path).unwrap();
    serde_json::from_slice(&all(blob)).unwrap()
}

#[test]
fn same_image_recipe_is_reproducible_and_a_new_program_changes_one_layer() {
    let dir = Dir::new();
    let (one, two) = (stand_in(dir.path(), "textnlp"), stand_in(dir.path(), "textnlp"));
    let bytes = |image: &Image| -> Vec<(String, Vec<u8>)> {
        layout::merge(std::slice::from_ref(image)).unwrap().iter().map(|blob| (blob.path.clone(), all(blob))).collect()
    };
    assert_eq!(bytes(&one), bytes(&two));
    let other = assemble(&recipe(program(dir.path(), 62, b"other"), "textnlp")).unwrap();
    let paths = |image: &Image| image.blobs.iter().map(|blob| blob.path.clone()).collect::<Vec<_>>();
    let shared = paths(&one).into_iter().filter(|path| paths(&other).contains(path)).count();
    assert_eq!((one.blobs.len(), shared), (4, 1), "the layer of folders and authorities is the same");
}

#[test]
fn image_documents_conform_to_the_oci_specification() {
    let dir = Dir::new();
    let image = stand_in(dir.path(), "textnlp");
    let item = image.item(None);
    assert_eq!((item.name.as_str(), item.version.as_deref(), item.paths.len()), ("textnlp", Some("1.0.0"), 4));
    let manifest = json_of(&image, &format!("blobs/sha256/{}", image.manifest.digest.hex()));
    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], media::MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], media::CONFIG);
    let digest = |value: &Value| value["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let config = json_of(&image, &format!("blobs/sha256/{}", digest(&manifest["config"])));
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(config["rootfs"]["type"], "layers");
    assert_eq!(config["history"].as_array().unwrap().len(), layers.len());
    for (layer, diff) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        assert_eq!(layer["mediaType"], media::LAYER);
        assert_eq!(&layer["digest"], diff, "an uncompressed layer is its own difference");
    }
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!((&config["os"], &config["architecture"]), (&"linux".into(), &"amd64".into()));
    let run = &config["config"];
    assert_eq!(run["User"], "65532:65532");
    assert_eq!(run["Entrypoint"][0], "/usr/local/bin/textnlp-deploy");
    assert!(run["ExposedPorts"].get("8080/tcp").is_some());
    assert_eq!(run["Labels"]["org.opencontainers.image.version"], "1.0.0");
    assert_eq!(run["Labels"]["org.opencontainers.image.revision"], "abc");
}

#[test]
fn image_layers_contain_what_the_service_needs_writable_by_root_only() {
    let dir = Dir::new();
    let model = dir.join("tiny");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    std::fs::write(model.join("model.safetensors"), vec![7; 100_000]).unwrap();
    let mut recipe = recipe(program(dir.path(), 62, b"salt"), "textnlp");
    recipe.models.push(("tiny".to_owned(), model));
    let image = assemble(&recipe).unwrap();
    let mut listing = String::new();
    let manifest = json_of(&image, &format!("blobs/sha256/{}", image.manifest.digest.hex()));
    for layer in manifest["layers"].as_array().unwrap() {
        let path = format!("blobs/sha256/{}", layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap());
        let tar = dir.join("layer.tar");
        std::fs::write(&tar, all(image.blobs.iter().find(|blob| blob.path == path).unwrap())).unwrap();
        let out = Command::new("tar").args(["--numeric-owner", "-tvf", tar.as_str()]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        listing.push_str(&String::from_utf8(out.stdout).unwrap());
        let out =
            Command::new("tar").args(["-C", dir.path().as_str(), "--no-same-owner", "-xf", tar.as_str()]).output();
        assert!(out.unwrap().status.success());
    }
    let has = |mode: &str, owner: &str, path: &str| {
        let found = listing.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[0] == mode && words[1] == owner && words[5] == path
        });
        assert!(found, "{mode} {owner} {path}\n{listing}");
    };
    has("-rwxr-xr-x", "0/0", "usr/local/bin/textnlp-deploy");
    has("-rw-r--r--", "0/0", "etc/ssl/certs/ca-certificates.crt");
    has("drwxrwxrwt", "0/0", "tmp/");
    has("drwxr-xr-x", "65532/65532", "var/lib/textnlp/");
    has("-rw-r--r--", "65532/65532", "var/lib/textnlp/models/tiny/model.safetensors");
    assert_eq!(std::fs::read(dir.join("var/lib/textnlp/models/tiny/model.safetensors")).unwrap(), vec![7; 100_000]);
    assert_eq!(
        std::fs::read(dir.join("usr/local/bin/textnlp-deploy")).unwrap(),
        std::fs::read(&recipe.program).unwrap()
    );
    let roots = std::fs::read_to_string(dir.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(roots.matches("-----BEGIN CERTIFICATE-----").count() > 100);
    assert!(std::fs::read_to_string(dir.join("etc/passwd")).unwrap().contains("textnlp:x:65532:65532:"));
}

#[test]
fn dynamically_linked_program_is_refused_for_an_image() {
    let error = assemble(&recipe("/bin/sh".into(), "textnlp")).unwrap_err();
    assert!(error.to_string().contains("not static") && error.hint().contains("crt-static"), "{error}");
    let dir = Dir::new();
    for (name, version) in [("Text NLP", "1"), ("textnlp", "1.0+x"), ("../x", "1")] {
        let mut recipe = recipe(program(dir.path(), 62, b""), name);
        recipe.version = version.to_owned();
        assert!(assemble(&recipe).is_err(), "{name}:{version}");
    }
}

#[test]
fn skopeo_reads_and_copies_the_image() {
    if !has("skopeo") {
        return;
    }
    let dir = Dir::new();
    let image = stand_in(dir.path(), "textnlp");
    write_images(std::slice::from_ref(&image), &dir.join("out"));
    let from = format!("oci:{}:textnlp:1.0.0", dir.join("out"));
    let seen: Value = serde_json::from_str(&skopeo(&["inspect", &from])).unwrap();
    assert_eq!(seen["Digest"], image.manifest.digest.to_string());
    assert_eq!(seen["Architecture"], "amd64");
    assert_eq!(seen["Created"], "2023-11-14T22:13:20Z");
    let to = format!("oci:{}:again", dir.join("copy"));
    skopeo(&["copy", "--dest-oci-accept-uncompressed-layers", &from, &to]);
    let seen: Value = serde_json::from_str(&skopeo(&["inspect", &to])).unwrap();
    assert_eq!(seen["Digest"], image.manifest.digest.to_string());
}
