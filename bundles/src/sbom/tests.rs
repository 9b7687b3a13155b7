//! Lists of software: the same bytes each time, true, and valid by the official schema.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::*;
use crate::scan::image::Image as Inside;

const LOCK: &str = include_str!("../../../Cargo.lock");
/// Of all programs together.
const CONDITIONS: &[&str] = &["linux/amd64", "linux/arm64", "clouds", "candle"];

fn graph<'a>(lock: &'a Lock, root: &'a str) -> CrateGraph<'a> {
    CrateGraph { lock, root, conditions: CONDITIONS }
}

fn subject(name: &str) -> Subject {
    Subject { name: name.to_owned(), version: "1.0.0".to_owned(), epoch: Some(1_767_225_600) }
}

fn file(path: &str) -> File {
    let (name, version) = ("textnlp-deploy".to_owned(), "1.0.0".to_owned());
    File { kind: "application", path: path.to_owned(), name, version, digest: Digest::of(b"program") }
}

fn all() -> Vec<Sbom> {
    let lock = Lock::parse(LOCK).unwrap();
    let mut inside = Inside { name: "postgres:15".to_owned(), digest: "sha256:00".to_owned(), ..Inside::default() };
    inside.packages.push(Package {
        ecosystem: "Debian:12".to_owned(),
        name: "libssl3".to_owned(),
        version: "3.0.11-1~deb12u2+b1".to_owned(),
        origin: Some(("openssl".to_owned(), "3.0.11-1~deb12u2".to_owned())),
        architecture: Some("amd64".to_owned()),
    });
    inside.programs.insert("usr/bin/app".to_owned(), vec![Package::of_crate("serde", "1.0.200")]);
    let model = Model {
        name: "textnlp-tiny".to_owned(),
        version: None,
        digest: Digest::of(b"weights"),
        license: Some("Apache-2.0".to_owned()),
        source: Some("bundled".to_owned()),
        architecture: Some("gpt2".to_owned()),
    };
    vec![
        program(
            &subject("textnlp-deploy"),
            &[file("bin/linux-amd64/textnlp-deploy")],
            Some(&graph(&lock, "textnlp-deploy")),
        ),
        program(&subject("another"), &[file("bin/linux-amd64/textnlp-deploy")], None),
        program(&subject("everything"), &[], Some(&graph(&lock, "no such crate"))),
        image(&subject("postgres"), &inside, &[file("usr/local/bin/textnlp-deploy")]),
        models(&subject("models"), &[model]),
    ]
}

#[test]
fn sbom_is_deterministic_and_serial_numbers_differ_by_content() {
    let (first, second) = (all(), all());
    assert_eq!(first, second);
    let serials: BTreeSet<&str> = first.iter().map(|s| s.value()["serialNumber"].as_str().unwrap()).collect();
    assert_eq!(serials.len(), first.len());
}

#[test]
fn sbom_lists_every_locked_crate_with_checksum_and_dependencies() {
    let lock = Lock::parse(LOCK).unwrap();
    let sbom = program(&subject("everything"), &[], Some(&graph(&lock, "no such crate")));
    let elsewhere = lock.packages.iter().filter(|p| !is_linked(&p.name, &p.version, CONDITIONS)).count();
    assert_eq!(sbom.components(), LOCK.matches("[[package]]").count() - elsewhere);
    let component = |name: &str| {
        let list = sbom.value()["components"].as_array().unwrap();
        list.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name} is not there")).clone()
    };
    let semver = component("semver");
    assert_eq!(semver["purl"], format!("pkg:cargo/semver@{}", semver["version"].as_str().unwrap()));
    assert_eq!(semver["licenses"][0]["expression"], "MIT OR Apache-2.0");
    assert_eq!(semver["hashes"][0]["content"].as_str().unwrap().len(), 64);
    // Ours are not on any registry: a package URL would say that they are.
    assert!(component("textnlp-bundle")["purl"].is_null());
    let bundle = component("textnlp-bundle")["bom-ref"].clone();
    let dependencies = sbom.value()["dependencies"].as_array().unwrap();
    let needs = &dependencies.iter().find(|d| d["ref"] == bundle).unwrap()["dependsOn"];
    assert!(needs.as_array().unwrap().contains(&semver["bom-ref"]), "{needs}");
    // Every line of every package is resolved.
    for package in &lock.packages {
        for line in &package.dependencies {
            assert!(lock.meant(line).is_some(), "{} needs {line}", package.name);
        }
    }
}

#[test]
fn program_sbom_lists_only_reachable_crates() {
    let text = "version = 4\n[[package]]\nname = \"top\"\nversion = \"1.0.0\"\ndependencies = [\"a\", \"b 2.0.0\"]\n\
        [[package]]\nname = \"other\"\nversion = \"1.0.0\"\ndependencies = [\"c\"]\n\
        [[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"sparse+https://index.crates.io/\"\n\
        [[package]]\nname = \"b\"\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n\
        [[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"git+https://example.com/b#0123\"\ndependencies = [\"a\"]\n\
        [[package]]\nname = \"c\"\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
    let lock = Lock::parse(text).unwrap();
    let sbom = program(&subject("top"), &[], Some(&graph(&lock, "top")));
    let names: Vec<String> = sbom.value()["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| format!("{}@{}", c["name"].as_str().unwrap(), c["version"].as_str().unwrap()))
        .collect();
    assert_eq!(names, ["b@2.0.0", "top@1.0.0", "a@1.0.0"]);
    // What a scan reads back: only what comes from the registry.
    assert_eq!(packages(&sbom.to_bytes()).unwrap(), [Package::of_crate("a", "1.0.0")]);
    assert_eq!(lock.registry_packages().len(), 3);
}

#[test]
fn every_linked_crate_has_a_license() {
    let lock = Lock::parse(LOCK).unwrap();
    let sbom = program(&subject("textnlp-deploy"), &[], Some(&graph(&lock, "textnlp-deploy")));
    let components = sbom.value()["components"].as_array().unwrap();
    let without: Vec<&Value> = components.iter().filter(|c| c["licenses"].is_null()).map(|c| &c["bom-ref"]).collect();
    assert!(without.is_empty(), "run bundles/src/sbom/licenses.sh and commit the tables: {without:?}");
    let purls = sbom.to_bytes();
    let text = String::from_utf8_lossy(&purls);
    assert!(text.contains("pkg:cargo/tokio@") && !text.contains("pkg:cargo/windows"), "only what Linux has is linked");
}

#[test]
fn sbom_of_an_external_program_lists_its_digest_and_no_crates() {
    let files = [file("bin/linux-arm64/textnlp-deploy")];
    let sbom = program(&subject("textnlp-deploy"), &files, None);
    let [component] = &sbom.value()["components"].as_array().unwrap()[..] else { panic!("{}", sbom.value()) };
    assert_eq!((&component["type"], &component["name"]), (&json!("application"), &json!("textnlp-deploy")));
    assert_eq!(component["hashes"][0]["content"], Digest::of(b"program").hex());
    assert_eq!(sbom.value()["dependencies"][0]["dependsOn"], json!(["file:bin/linux-arm64/textnlp-deploy"]));
    assert_eq!(packages(&sbom.to_bytes()).unwrap(), []);
}

#[test]
fn packages_are_parsed_from_purls() {
    for (purl, wanted) in [
        ("pkg:cargo/tar@0.4.20", Some(("crates.io", "tar", "0.4.20"))),
        ("pkg:cargo/tar@0.4.20?repository_url=https://example.com", None),
        (
            "pkg:deb/debian/libssl3@3.0.11-1~deb12u2%2Bb1?arch=amd64&distro=debian-12",
            Some(("Debian:12", "libssl3", "3.0.11-1~deb12u2+b1")),
        ),
        ("pkg:apk/alpine/musl@1.2.4-r2?distro=alpine-v3.19", Some(("Alpine:v3.19", "musl", "1.2.4-r2"))),
        ("pkg:pypi/foo@1.0", Some(("PyPI", "foo", "1.0"))),
        ("pkg:npm/foo@1.0", None),
        ("cargo/foo", None),
    ] {
        let found = package(purl);
        assert_eq!(
            found.as_ref().map(|p| (p.ecosystem.as_str(), p.name.as_str(), p.version.as_str())),
            wanted,
            "{purl}"
        );
    }
    assert!(packages(b"{}").is_err());
}

/// The crates that cargo links into the program; `None` without the sources of all crates for that target.
fn linked_by_cargo(target: &str, features: &[&str]) -> Option<BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--package", "textnlp-deploy", "--edges", "normal,no-proc-macro"])
        .args(["--prefix", "none", "--format", "{p}", "--target", target, "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .args(features)
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let crates = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        Some(format!("{name} {}", rest.split(' ').next()?))
    });
    output.status.success().then(|| crates.collect())
}

#[test]
fn program_sbom_lists_exactly_what_cargo_links() {
    let lock = Lock::parse(LOCK).unwrap();
    let mut compared = 0;
    for (platform, target) in
        [("linux/amd64", "x86_64-unknown-linux-gnu"), ("linux/arm64", "aarch64-unknown-linux-gnu")]
    {
        for (features, conditions) in [
            (&[][..], &[platform][..]),
            (&["--features", "clouds"], &[platform, "clouds"]),
            (&["--features", "candle"], &[platform, "candle"]),
            (&["--features", "clouds,candle"], &[platform, "clouds", "candle"]),
        ] {
            let Some(linked) = linked_by_cargo(target, features) else {
                eprintln!("\n*** SKIPPED: cargo tree needs the sources of all crates for {target} ***\n");
                continue;
            };
            compared += 1;
            let graph = CrateGraph { lock: &lock, root: "textnlp-deploy", conditions };
            let sbom = program(&subject("textnlp-deploy"), &[], Some(&graph));
            let components = sbom.value()["components"].as_array().unwrap().iter();
            let listed: BTreeSet<String> = components
                .map(|c| format!("{} {}", c["name"].as_str().unwrap(), c["version"].as_str().unwrap()))
                .collect();
            let (more, less): (Vec<_>, Vec<_>) =
                (listed.difference(&linked).collect(), linked.difference(&listed).collect());
            assert!(
                more.is_empty() && less.is_empty(),
                "{target} {features:?}: run bundles/src/sbom/licenses.sh and commit the tables: too many {more:?}, missing {less:?}"
            );
            let registry =
                sbom.value()["components"].as_array().unwrap().iter().filter(|c| !c["purl"].is_null()).count();
            assert_eq!(graph.packages().len(), registry, "one number for one thing");
        }
    }
    // This machine has built the program for its own target.
    assert!(compared > 0 || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "cargo tree must work");
}

#[test]
fn license_table_matches_the_crate_manifests() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let Ok(metadata) = serde_json::from_slice::<Value>(&output.stdout) else {
        // Without the sources of crates for other platforms cargo says nothing.
        eprintln!("\n*** SKIPPED: cargo metadata needs the sources of all crates ***\n");
        return;
    };
    for package in metadata["packages"].as_array().unwrap().iter().filter(|p| !p["source"].is_null()) {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        let stated = package["license"].as_str().map(|l| l.split('/').map(str::trim).collect::<Vec<_>>().join(" OR "));
        let known = license_of_crate(name, version);
        assert!(known.is_none() || known == stated, "{name} {version}: {known:?}, not {stated:?}");
    }
}

/// The interpreter of a virtual environment with the pinned packages, made by `python.sh`.
fn python() -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python.sh");
    let output = Command::new("sh")
        .args([script, "cyclonedx-python-lib[json-validation]==11.12.0"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn sboms_validate_against_the_official_cyclonedx_schema() {
    let Some(python) = python() else {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "the validator must be there");
        eprintln!(
            "\n*** SKIPPED: the CycloneDX validator could not be set up (python3, venv and its packages are needed) ***\n"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cyclonedx_contract.py"));
    for (nth, sbom) in all().iter().enumerate() {
        let path = folder.path().join(format!("{nth}.cdx.json"));
        std::fs::write(&path, sbom.to_bytes()).unwrap();
        command.arg(path);
    }
    let output = command.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("all 5 documents are valid"), "{told}");
}
