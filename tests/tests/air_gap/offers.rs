//! What else a bundle is good for: a registry and mirror for others, a thing to be scanned, a folder in the older layout.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use textnlp_tests::{has, said, signal};

use crate::stage::{Goods, Stage, advisories, names, other_model, tool};

const CRITICAL: &str = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H";
const LOW: &str = "CVSS:3.1/AV:L/AC:H/PR:H/UI:R/S:U/C:L/I:N/A:N";

/// A server that is stopped whatever happens.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bundle_serve_is_a_registry_and_a_mirror_until_stopped() {
    let stage = Stage::new("serve");
    stage.run(&["bundle", "create", "--env", "development", "--out", "b.tar"]).expect(0);
    let mut command = stage.command(&["bundle", "serve", "b.tar", "--listen", "127.0.0.1:0", "--output", "jsonl"]);
    let mut serving = Serving(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(serving.0.stdout.take().unwrap()).lines();
    let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["event"], "serving", "{event:#}");
    let address = event["address"].as_str().unwrap().to_owned();
    let image = event["images"][0].as_str().unwrap().to_owned();

    if tool("skopeo") {
        let reference = format!("docker://{address}/{image}");
        let inspected = said(stage.other("skopeo", &["inspect", "--tls-verify=false", &reference]).output().unwrap())
            .expect(0)
            .json();
        assert_eq!(inspected["Os"], "linux", "{inspected:#}");
        let copied = stage
            .other(
                "skopeo",
                &["copy", "-q", "--insecure-policy", "--src-tls-verify=false", &reference, "oci:copied:one"],
            )
            .output();
        said(copied.unwrap()).expect(0);
        assert!(stage.made().join("copied/index.json").exists());
        let pushed = stage.other(
            "skopeo",
            &[
                "copy",
                "-q",
                "--insecure-policy",
                "--dest-tls-verify=false",
                "oci:copied:one",
                &format!("docker://{address}/mine:1"),
            ],
        );
        let mut pushed = pushed;
        assert_ne!(
            pushed.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code(),
            Some(0),
            "it is read-only"
        );
    }
    let mut pull = stage.command(&["model", "pull", "hf:bundle/textnlp-tiny", "--output", "json"]);
    let pulled = said(pull.env("HF_ENDPOINT", format!("http://{address}")).output().unwrap()).expect(0).json();
    assert!(pulled["ok"] == true, "{pulled:#}");
    let mut pull = stage.command(&["model", "pull", "hf:bundle/huge"]);
    let missing = said(pull.env("HF_ENDPOINT", format!("http://{address}")).output().unwrap());
    assert_ne!(missing.exit, 0, "{missing:?}");

    // Taken by somebody else: named, with a way out.
    let taken = stage.run(&["bundle", "serve", "b.tar", "--listen", &address]).expect(1);
    names(&taken.err, &[&address, "--listen"]);

    signal(serving.0.id(), Signal::TERM);
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(serving.0.wait().unwrap().code(), Some(0));
    let document: Value = serde_json::from_str(rest.last().expect("a document at the end")).unwrap();
    assert!(document["ok"] == true && document["exit"] == 0, "{document:#}");
    assert!(std::net::TcpStream::connect(&address).is_err(), "nobody listens there any more");
}

#[test]
fn bundle_scan_finds_known_vulnerabilities_and_applies_its_gate() {
    let stage = Stage::new("scan");
    let low = advisories(&stage, "low", "tokio", LOW);
    let critical = advisories(&stage, "critical", "tokio", CRITICAL);
    let wheel = "foo_bar-1.0-py3-none-any.whl";
    std::fs::write(stage.made().join(wheel), "a package").unwrap();
    let create =
        ["bundle", "create", "--env", "air-gapped", "--out", "b.tar", "--advisories", low.as_str(), "--package", wheel];
    stage.run(&create).expect(0);
    let clean = stage.json(0, &["bundle", "scan", "b.tar", "--out", "reports"]);
    has(&clean, &["reports", "files", "gate.state", "gate.blockers"]);
    assert_eq!(clean["gate"]["state"], "open");
    names(&clean.to_string(), &["RUSTSEC-2025-9999", "tokio"]);
    // What is in the image is in its list.
    let list = stage.other("tar", &["-xOf", "b.tar", "--wildcards", "sbom/image-textnlp*"]).output().unwrap();
    let list = said(list).expect(0).json();
    let inside: Vec<_> =
        list["components"].as_array().unwrap().iter().map(|c| (&c["name"], c["hashes"].is_null())).collect();
    assert_eq!(inside, [(&json!("ca-certificates.crt"), false), (&json!("textnlp-deploy"), false)], "{list:#}");
    for (name, begins) in [("scan.json", "{"), ("scan.html", "<!"), ("scan.pdf", "%PDF-")] {
        let bytes = std::fs::read(stage.made().join("reports").join(name)).unwrap();
        assert!(bytes.starts_with(begins.as_bytes()), "{name}: {:?}", &bytes[..20]);
    }
    names(&std::fs::read_to_string(stage.made().join("reports/scan.html")).unwrap(), &["RUSTSEC-2025-9999"]);

    let shut = stage.run(&["bundle", "scan", "b.tar", "--fail-on", "low"]).expect(3);
    names(&shut.err, &["RUSTSEC-2025-9999", "hint: ", "--allow"]);
    // Newer data than the bundle's, brought on another way.
    let shut = stage.json(3, &["bundle", "scan", "b.tar", "--advisories", &critical]);
    assert_eq!(shut["gate"]["state"], "shut", "{shut:#}");
    // What is installed is scanned as what was sealed.
    stage.install("b.tar", &["--no-up"]).expect(0);
    let current = stage.root().join("current");
    let folder = stage.json(3, &["bundle", "scan", current.as_str(), "--fail-on", "low"]);
    names(&folder.to_string(), &["RUSTSEC-2025-9999"]);
    // As older scripts want it: a file for each image, and one report of them all.
    stage.run(&["bundle", "scan", "b.tar", "--out", "each", "--per-image"]).expect(0);
    let each = stage.sandbox.files(&stage.made().join("each"));
    let of_images: Vec<_> = each.iter().filter(|f| f.starts_with("scan_") && f.contains("textnlp")).collect();
    assert!(of_images.len() == 1 && each.contains(&"scan_configs.json".to_owned()), "{each:?}");
    let packages = std::fs::read_to_string(stage.made().join("each/scan_python_packages.json")).unwrap();
    names(&packages, &["PyPI packages of packages/", "listed, not matched"]);
    let together = stage.json(0, &["bundle", "scan", "--reports", "each/scan_*.json", "--out", "together"]);
    assert!(together["reports"].as_array().is_some_and(|r| r.len() == 3), "{together:#}");
    let nowhere = stage.run(&["bundle", "scan", "nowhere.tar"]);
    assert!([1, 2].contains(&nowhere.exit));
    names(&nowhere.err, &["nowhere.tar"]);
}

#[test]
fn models_are_exchanged_as_legacy_zip_files() {
    let goods = Goods::get();
    let stage = Stage::new("zip");
    let (old, new) = (stage.made().join("old/models"), other_model(&stage, &goods.first));
    said(stage.other("cp", &["-r", new.parent().unwrap().as_str(), "there"]).output().unwrap()).expect(0);
    std::fs::create_dir_all(&old).unwrap();
    let zip = ["bundle", "update", "zip", "textnlp-tiny", "nobody", "--models", "there", "--out", "models.zip"];
    let made = stage.json(0, &zip);
    assert_eq!(made["skipped"], json!(["nobody"]), "{made:#}");
    // The standard output is a pipe here, and a zip file is written with seeks.
    let stream = ["bundle", "update", "zip", "textnlp-tiny", "--models", "there", "--out", "/dev/stdout"];
    let refused = stage.run(&stream).expect(1);
    names(&refused.err, &["/dev/stdout", "only a file can hold this format"]);
    let unzip = || stage.json(0, &["bundle", "update", "unzip", "models.zip", "--models", old.as_str()]);
    assert_eq!(unzip()["added"], json!(["textnlp-tiny"]));
    assert_eq!(unzip()["unchanged"], json!(["textnlp-tiny"]));
    let weights = old.join("textnlp-tiny/model.safetensors");
    assert!(std::fs::read(&weights).unwrap() == std::fs::read(new.join("model.safetensors")).unwrap());
    let mut bytes = std::fs::read(stage.made().join("models.zip")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(stage.made().join("models.zip"), bytes).unwrap();
    std::fs::write(&weights, "mine").unwrap();
    let refused = stage.run(&["bundle", "update", "unzip", "models.zip", "--models", old.as_str()]).expect(1);
    names(&refused.err, &["models.zip", "error: "]);
    assert_eq!(std::fs::read_to_string(&weights).unwrap(), "mine", "nothing is replaced before all of it was compared");
}

#[test]
fn bundle_export_writes_the_legacy_layout_and_archive() {
    let stage = Stage::new("export");
    std::fs::write(stage.made().join("a.deb"), "a package").unwrap();
    stage
        .run(&["bundle", "create", "--env", "air-gapped", "--out", "b.tar", "--version", "1.2.3", "--package", "a.deb"])
        .expect(0);
    let exported = stage.json(0, &["bundle", "export", "b.tar", "--layout", "legacy", "--out", "out"]);
    has(&exported, &["folder", "archive", "images", "models"]);
    let folder = stage.made().join("out/offline_bundle");
    for name in ["images", "packages", "models", "configs", "scripts"] {
        assert!(folder.join(name).is_dir(), "no {name} in {:?}", stage.sandbox.files(&folder));
    }
    assert!(folder.join("install.sh").is_file());
    let archive = exported["archive"].as_str().unwrap();
    assert!(archive.ends_with("1.2.3.tar.gz"), "{archive}");
    let listed = said(stage.other("tar", &["-tzf", archive]).output().unwrap()).expect(0);
    names(&listed.out, &["offline_bundle/install.sh", "offline_bundle/packages/a.deb", "offline_bundle/models/"]);
    if tool("skopeo") {
        let image = exported["images"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        let found =
            stage.sandbox.files(&folder).into_iter().find(|f| f.ends_with(image.rsplit('/').next().unwrap())).unwrap();
        let reference = format!("docker-archive:{}", folder.join(found));
        let inspected = said(stage.other("skopeo", &["inspect", &reference]).output().unwrap()).expect(0).json();
        assert_eq!(inspected["Os"], json!("linux"));
    }
}
