//! Whole scans: of folders, of images made here layer by layer, of lock files held against what `cargo audit` says.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::civil::date;
use serde_json::json;
use textnlp_models::Digest;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn settings() -> Settings {
    Settings::at(at("2026-09-01T12:00:00Z"))
}

fn temporary() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

fn put(root: &Utf8Path, path: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn advisory(root: &Utf8Path, id: &str, package: &str, head: &str, versions: &str) {
    let text = format!(
        "```toml\n[advisory]\nid = \"{id}\"\npackage = \"{package}\"\ndate = \"2026-08-21\"\n{head}\n[versions]\n{versions}\n```\n\n# Title of {id}\n\nText.\n"
    );
    put(root, &format!("crates/{package}/{id}.md"), text);
}

/// Every way in which requirements are written.
fn small_database(root: &Utf8Path) -> Database {
    for (nth, (package, head, versions)) in [
        ("plain", "cvss = \"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H\"", "patched = [\">= 1.2.3\"]"),
        ("caret", "", "patched = [\"^1.2.3\", \">= 2.0.1\"]\nunaffected = [\"< 0.9.0\"]"),
        ("zero", "", "patched = [\"^0.2.5\", \"^0.3.1\", \">= 0.4.0\"]"),
        ("tilde", "", "patched = [\"~0.3.5\", \">= 0.4.2\"]\nunaffected = [\"<= 0.2.9\"]"),
        ("exact", "", "patched = [\"=1.0.5\"]\nunaffected = [\"> 1.0.7\"]"),
        ("never", "", "patched = []"),
        ("gone", "withdrawn = \"2026-08-22\"", "patched = []"),
        ("unkept", "informational = \"unmaintained\"", "patched = []"),
        ("unsafe-one", "informational = \"unsound\"", "patched = [\">= 0.5.0-rc.2\"]"),
        ("noted", "informational = \"notice\"", "patched = []"),
        (
            "scored",
            "cvss = \"CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:N/VI:N/VA:L/SC:N/SI:N/SA:N\"",
            "patched = [\"> 0.2.0, < 0.3.0\", \">= 0.3.2\"]",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        advisory(root, &format!("RUSTSEC-2026-9{nth:03}"), package, head, versions);
    }
    Database::from_rustsec(root, None).unwrap()
}

/// A lock file with the versions around every number that the database mentions.
fn lock_around(database: &Database) -> String {
    let mut packages = BTreeSet::new();
    for advisory in database.sources().iter().flat_map(|s| &s.advisories) {
        let mut versions = BTreeSet::from([semver::Version::new(0, 0, 1), semver::Version::new(99, 0, 0)]);
        for text in advisory.patched.iter().chain(&advisory.unaffected) {
            for c in semver::VersionReq::parse(text).unwrap().comparators {
                let (major, minor, patch) = (c.major, c.minor.unwrap_or(0), c.patch.unwrap_or(0));
                for (minor, patch) in
                    [(minor, patch), (minor, patch + 1), (minor, patch.saturating_sub(1)), (minor + 1, 0)]
                {
                    let mut version = semver::Version::new(major, minor, patch);
                    versions.insert(version.clone());
                    version.pre = semver::Prerelease::new("rc.1").unwrap();
                    versions.insert(version);
                }
                let mut own = semver::Version::new(major, minor, patch);
                own.pre = c.pre.clone();
                versions.insert(own);
            }
        }
        packages.extend(versions.into_iter().map(|v| (advisory.package.clone(), v)));
    }
    let mut text = "version = 4\n".to_owned();
    for (nth, (name, version)) in packages.iter().enumerate() {
        // A few from elsewhere, which no advisory means.
        let source = match nth % 50 {
            0 => "registry+https://example.com/index",
            _ => "registry+https://github.com/rust-lang/crates.io-index",
        };
        text.push_str(&format!("\n[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\n"));
    }
    text
}

/// What cargo-audit finds: (id, package, version), and whether it is a warning.
fn by_cargo_audit(database: &Utf8Path, lock: &str) -> Option<BTreeSet<(String, String, String, bool)>> {
    let own = std::env::var("HOME").map(|home| format!("{home}/.cache/textnlp-deploy/tools/bin/cargo-audit"));
    let program = match own {
        Ok(path) if Utf8Path::new(&path).is_file() => path,
        // It is built in minutes, so only the full run of checks has it for sure.
        _ if tool::missing_where("cargo-audit", "TEXTNLP_TESTS_REQUIRE_AUDIT") => return None,
        _ => "cargo-audit".to_owned(),
    };
    let (_guard, folder) = temporary();
    put(&folder, "Cargo.lock", lock);
    let copy = folder.join("db");
    fs::create_dir(&copy).unwrap();
    let shell = |script: &str| {
        let status = Command::new("sh").args(["-ec", script]).current_dir(&copy).output().unwrap();
        assert!(status.status.success(), "{script}: {}", String::from_utf8_lossy(&status.stderr));
    };
    shell(&format!(
        "cp -r '{database}/crates' . && git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm a"
    ));
    let output = Command::new(program)
        .args(["audit", "--no-fetch", "--json", "--db", copy.as_str(), "--file", folder.join("Cargo.lock").as_str()])
        .current_dir(&folder)
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let one = |v: &serde_json::Value, warning: bool| {
        (text(&v["advisory"]["id"]), text(&v["package"]["name"]), text(&v["package"]["version"]), warning)
    };
    let mut found: BTreeSet<_> =
        told["vulnerabilities"]["list"].as_array().unwrap().iter().map(|v| one(v, false)).collect();
    for warnings in told["warnings"].as_object().unwrap().values() {
        let known = warnings.as_array().unwrap().iter().filter(|w| !w["advisory"].is_null());
        found.extend(known.map(|w| one(w, true)));
    }
    Some(found)
}

fn by_us(database: Database, lock: &str) -> BTreeSet<(String, String, String, bool)> {
    let report = Scan::new(settings()).with(database).of_lock("Cargo.lock", lock).unwrap();
    let known = report.findings.into_iter().filter(|f| f.package.is_some());
    known.map(|f| (f.id, f.package.unwrap(), f.installed.unwrap(), f.kind == Kind::Warning)).collect()
}

#[test]
fn scan_results_match_cargo_audit() {
    let (_guard, folder) = temporary();
    let database = small_database(&folder);
    let lock = lock_around(&database);
    let ours = by_us(database, &lock);
    assert!(ours.len() > 40, "{}", ours.len());
    let Some(theirs) = by_cargo_audit(&folder, &lock) else { return };
    assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), Vec::<&_>::new(), "found by us alone");
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&_>::new(), "found by cargo-audit alone");
}

/// The copy of the real database that lies beside the checkout, where there is one.
fn real_database() -> Option<Utf8PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/advisory-db");
    let folder = std::env::var("TEXTNLP_ADVISORY_DB").unwrap_or_else(|_| beside.to_owned());
    let folder = Utf8PathBuf::from(folder);
    if !folder.join("crates").is_dir() {
        eprintln!(
            "\n*** SKIPPED: no copy of the RustSec database beside the checkout (or in TEXTNLP_ADVISORY_DB) ***\n"
        );
        return None;
    }
    Some(folder)
}

#[test]
fn scan_results_match_cargo_audit_for_the_full_advisory_database() {
    let Some(folder) = real_database() else { return };
    let database = Database::from_rustsec(&folder, None).unwrap();
    assert_eq!(database.unread(), []);
    let lock = lock_around(&database);
    let ours = by_us(database, &lock);
    assert!(ours.len() > 2000, "{}", ours.len());
    let Some(theirs) = by_cargo_audit(&folder, &lock) else { return };
    assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), Vec::<&_>::new(), "found by us alone");
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&_>::new(), "found by cargo-audit alone");
}

#[test]
fn full_advisory_database_is_stored_compactly() {
    let Some(folder) = real_database() else { return };
    let database = Database::from_rustsec(&folder, None).unwrap();
    let bytes = database.to_bytes();
    assert!(bytes.len() < 2 << 20, "{}", bytes.len());
    let again = Database::from_bytes(&bytes, "a").unwrap();
    assert_eq!((again.count(), again.to_bytes()), (database.count(), bytes));
}

#[test]
fn included_advisories_find_the_same_and_a_changed_copy_is_refused() {
    let (_guard, folder) = temporary();
    let database = small_database(&folder);
    let lock = lock_around(&database);
    let bytes = database.to_bytes();
    let carried = Database::from_bytes(&bytes, "sbom/advisories.json").unwrap();
    assert_eq!(carried.sources()[0].date, date(2026, 8, 22));
    assert_eq!(by_us(carried, &lock), by_us(database, &lock));
    let text = String::from_utf8(bytes).unwrap();
    let changed = text.replace(">= 1.2.3", ">= 1.0.0");
    assert!(matches!(Database::from_bytes(changed.as_bytes(), "a"), Err(Error::Digest { .. })));
    let later = text.replace("textnlp-advisories/1", "textnlp-advisories/2");
    assert!(matches!(Database::from_bytes(later.as_bytes(), "a"), Err(Error::Advisories { .. })));
}

#[test]
fn unreadable_advisory_keeps_the_gate_closed() {
    let (_guard, folder) = temporary();
    small_database(&folder);
    put(&folder, "crates/odd/RUSTSEC-2026-8000.md", "no TOML");
    advisory(&folder, "RUSTSEC-2026-8001", "odd", "", "patched = [\">= 1.0.0\"]\nunaffected = [\"< 2.0.0\"]");
    let database = Database::from_rustsec(&folder, None).unwrap();
    let report = Scan::new(settings()).with(database).of_lock("Cargo.lock", "version = 4\n").unwrap();
    assert_eq!(report.not_looked_at.iter().filter(|n| n.required).count(), 2, "{:?}", report.not_looked_at);
    assert!(!gate(&report, Severity::Critical).is_open());
}

#[test]
fn crates_are_not_reported_clean_without_advisories() {
    let lock = "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
    let report = Scan::new(settings()).of_lock("Cargo.lock", lock).unwrap();
    assert_eq!(
        report.not_looked_at[0].why,
        "not matched, because there is no advisory data for Rust crates; packages: 1"
    );
    assert!(report.not_looked_at[0].required && !gate(&report, Severity::Critical).is_open());
}

#[test]
fn outdated_advisories_are_a_finding() {
    let (_guard, folder) = temporary();
    let database = small_database(&folder);
    let scan = |now: &str, days: i64| {
        let settings = Settings { max_age_days: days, ..Settings::at(at(now)) };
        let report = Scan::new(settings).with(database.clone()).of_lock("a", "version = 4\n").unwrap();
        (report.databases[0].age_days, report.findings.iter().any(|f| f.id == "advisories-old"))
    };
    assert_eq!(scan("2026-09-21T00:00:00Z", 30), (30, false));
    assert_eq!(scan("2026-09-22T00:00:00Z", 30), (31, true));
    assert_eq!(scan("2026-11-20T00:00:00Z", 90), (90, false));
}

/// One layer as a tar: (path, mode, content); a path that ends with `/` is a folder.
fn layer(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// An OCI layout with one image under `folder`.
fn layout(root: &Utf8Path, folder: &str, name: &str, run: serde_json::Value, layers: &[Vec<u8>]) {
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        put(root, &format!("{folder}/blobs/sha256/{}", digest.hex()), bytes);
        json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": bytes.len()})
    };
    let layers: Vec<_> = layers.iter().map(|l| blob(l)).collect();
    let config = blob(&serde_json::to_vec(&json!({"os": "linux", "architecture": "amd64", "config": run})).unwrap());
    let mut manifest =
        blob(&serde_json::to_vec(&json!({"schemaVersion": 2, "config": config, "layers": layers})).unwrap());
    manifest["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    put(
        root,
        &format!("{folder}/index.json"),
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [manifest]})).unwrap(),
    );
}

const RELEASE: &[u8] = b"ID=debian\nVERSION_ID=\"12\"\n";
const STATUS: &[u8] = b"Package: libssl3\nStatus: install ok installed\nSource: openssl\nVersion: 3.0.11-1~deb12u1\nArchitecture: amd64\n\nPackage: bash\nStatus: install ok installed\nVersion: 5.2.15-2\n";

#[test]
fn image_scan_covers_the_final_and_the_deleted_layer_content() {
    let (_guard, root) = temporary();
    let key = format!("-----BEGIN {}-----\n{}\n", "PRIVATE KEY", "aB3dE5gH7jK9mN1pQ2sT4vW6xY8zC0fR".repeat(2));
    let program = image::program_with(r#"{"packages":[{"name":"plain","version":"1.0.0","source":"crates.io"}]}"#);
    let first = layer(&[
        ("./etc/os-release", 0o644, RELEASE),
        ("./var/lib/dpkg/status", 0o644, STATUS),
        ("./usr/bin/su", 0o4755, b"x"),
        ("./usr/bin/gone", 0o4755, b"x"),
        ("./bin/sh", 0o755, b"x"),
        ("./srv/open", 0o666, b"x"),
        ("./srv/old/open", 0o666, b"x"),
        ("./tmp/", 0o1777, b""),
        ("./var/spool/", 0o777, b""),
        ("./root/key.pem", 0o600, key.as_bytes()),
        ("./usr/local/bin/app", 0o755, &program),
    ]);
    let second = layer(&[
        ("usr/bin/.wh.gone", 0o644, b""),
        ("srv/old/.wh..wh..opq", 0o644, b""),
        ("root/.wh.key.pem", 0o644, b""),
        ("srv/open", 0o644, b"x"),
    ]);
    layout(
        &root,
        "images",
        "docker.io/library/a:1",
        json!({"Env": ["DB_PASSWORD=kX8/tq0aZ2w"]}),
        &[gzip(&first), second],
    );
    let folder = Folder::open(&root).unwrap();
    let (images, unread) = image::images(&folder, "images", image::Limits::default());
    assert_eq!(unread, []);
    let image = &images[0];
    assert_eq!((image.name.as_str(), image.platform.as_deref()), ("docker.io/library/a:1", Some("linux/amd64")));
    assert_eq!(image.packages.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["bash", "libssl3"]);
    assert_eq!(image.packages[1].ecosystem, "Debian:12");
    assert_eq!(image.programs["usr/local/bin/app"], [Package::of_crate("plain", "1.0.0")]);
    assert_eq!(image.setuid, ["usr/bin/su (4755)"]);
    assert_eq!(image.world_writable, ["var/spool"]);
    assert_eq!(image.shells, ["bin/sh"]);
    assert_eq!(image.unread, []);
    // The key was taken away by the second layer, and lies in the first all the same.
    let secrets: Vec<&str> = image.secrets.iter().map(|f| f.id.as_str()).collect();
    assert_eq!(secrets, ["password-in-file", "private-key"], "{:?}", image.secrets);
    assert!(image.secrets[1].place.ends_with("/root/key.pem:1"), "{}", image.secrets[1].place);

    let (_guard, advisories) = temporary();
    let scan = Scan::new(settings()).with(small_database(&advisories));
    let report = scan.of_folder("the bundle", &folder).unwrap();
    let ids: Vec<&str> = report.findings.iter().map(|f| f.id.as_str()).collect();
    for wanted in
        ["RUSTSEC-2026-9000", "image-root", "image-setuid", "image-world-writable", "image-shell", "private-key"]
    {
        assert!(ids.contains(&wanted), "{wanted} is not in {ids:?}");
    }
    let said = report.not_looked_at.iter().find(|n| n.why.contains("debian")).unwrap();
    assert_eq!(said.why, "not matched, because there is no advisory data for debian 12; packages: 2");
    assert!(!said.required);
    let strict = Scan::new(Settings { require_os_advisories: true, ..settings() }).of_folder("a", &folder).unwrap();
    assert!(strict.not_looked_at.iter().any(|n| n.required && n.why.contains("debian 12")));

    let each = scan.of_images(&folder, "images").unwrap();
    assert_eq!(each.len(), 1);
    assert!(each[0].1.findings.iter().any(|f| f.id == "RUSTSEC-2026-9000") && each[0].1.databases.len() == 1);
}

#[test]
fn user_provided_advisories_match_distribution_packages() {
    let (_guard, root) = temporary();
    layout(
        &root,
        "images",
        "a",
        json!({"User": "65532"}),
        &[layer(&[("etc/os-release", 0o644, RELEASE), ("var/lib/dpkg/status", 0o644, STATUS)])],
    );
    let (_guard, osv) = temporary();
    let debian = |release: &str, id: &str, package: &str, fixed: &str| {
        json!({
            "id": id, "modified": "2026-08-01T00:00:00Z", "summary": "Bad things", "aliases": ["CVE-2026-0001"],
            "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"}],
            "affected": [{"package": {"ecosystem": format!("Debian:{release}"), "name": package},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]}]
        })
    };
    put(&osv, "a/one.json", debian("12", "DSA-1", "openssl", "3.0.11-1~deb12u2").to_string());
    put(
        &osv,
        "many.json",
        json!([debian("12", "DSA-2", "bash", "5.2.15-1"), debian("11", "DSA-3", "openssl", "9")]).to_string(),
    );
    let scan = Scan::new(settings()).with(Database::from_folder(&osv).unwrap());
    let report = scan.of_folder("a", &Folder::open(&root).unwrap()).unwrap();
    let found: Vec<_> = report.findings.iter().filter(|f| f.kind == Kind::Vulnerability).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].id.as_str(), found[0].package.as_deref(), found[0].severity),
        ("DSA-1", Some("libssl3"), Severity::High)
    );
    assert_eq!(found[0].fixed_in.as_deref(), Some(">= 3.0.11-1~deb12u2"));
    assert!(report.listed.iter().any(|l| l.how == "matched against 3 advisories"), "{:?}", report.listed);
    assert!(!report.not_looked_at.iter().any(|n| n.why.contains("debian")));
}

#[test]
fn python_packages_of_a_bundle_are_matched_by_the_names_of_their_files() {
    let (_guard, root) = temporary();
    let (_guard, osv) = temporary();
    let document = json!({
        "id": "PYSEC-1", "modified": "2026-08-21T00:00:00Z", "summary": "Bad things",
        "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
        "affected": [{"package": {"ecosystem": "PyPI", "name": "Foo_Bar"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}]}]
    });
    put(&osv, "one.json", document.to_string());
    let scan = |settings| Scan::new(settings).with(Database::from_folder(&osv).unwrap());
    put(&root, "scripts/README.md", "text");
    let folder = Folder::open(&root).unwrap();
    assert_eq!(scan(settings()).of_python_packages("packages", &folder).unwrap(), None, "there are none");
    for name in ["Foo_Bar-1.1-py3-none-any.whl", "foo_bar-1.1.tar.gz", "foo-bar.whl", "libssl3_3.0.11-1_amd64.deb"] {
        put(&root, &format!("packages/{name}"), "bytes");
    }

    // Without a finding in a package the gate is as without packages, with advisories for them and without any.
    let of_folder = |scan: &Scan| scan.of_folder("a", &Folder::open(&root).unwrap()).unwrap();
    let report = of_folder(&scan(settings()));
    assert!(report.findings.is_empty() && gate(&report, Severity::Info).is_open(), "{report:?}");
    assert!(
        report.listed.iter().any(|l| l.what == "PyPI packages of packages/" && l.count == 2),
        "{:?}",
        report.listed
    );
    let unmatched: Vec<_> = report.not_looked_at.iter().map(|n| (n.what.as_str(), n.why.as_str())).collect();
    let why =
        "not matched, because their names are not those of Python packages: foo-bar.whl, libssl3_3.0.11-1_amd64.deb";
    assert_eq!(unmatched, [("other files of packages/", why)]);
    let report = of_folder(&Scan::new(settings()));
    assert!(report.not_looked_at.iter().any(|n| n.what == "PyPI packages of packages/"), "{report:?}");
    assert!(gate(&report, Severity::Info).is_open(), "{report:?}");

    put(&root, "packages/more/Foo_Bar-1.0-py3-none-any.whl", "bytes");
    let report = of_folder(&scan(settings()));
    let found: Vec<_> =
        report.findings.iter().map(|f| (f.id.as_str(), f.place.as_str(), f.installed.as_deref())).collect();
    assert_eq!(found, [("PYSEC-1", "packages/more/Foo_Bar-1.0-py3-none-any.whl", Some("1.0"))]);
    assert!(!gate(&report, Severity::Critical).is_open());
    let alone = scan(settings()).of_python_packages("packages", &Folder::open(&root).unwrap()).unwrap().unwrap();
    assert_eq!(alone.findings, report.findings);
    let service = of_folder(&scan(Settings { has_packages: false, ..settings() }));
    assert!(service.findings.is_empty() && service.not_looked_at.is_empty(), "{service:?}");
}

#[test]
fn decompression_bombs_and_unreadable_layers_are_reported() {
    let (_guard, root) = temporary();
    let bomb = gzip(&layer(&[("big", 0o644, &vec![b'a'; 8 << 20])]));
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 64]].concat();
    let broken = gzip(b"no tar at all, and long enough to be read as a header of one").repeat(20);
    layout(&root, "images", "a", json!({}), &[bomb, zstd, broken]);
    let folder = Folder::open(&root).unwrap();
    let limits = image::Limits { spare: 1 << 20, ratio: 10, entries: 100 };
    let (images, _) = image::images(&folder, "images", limits);
    let whys: Vec<&str> = images[0].unread.iter().map(|(_, why, _)| why.as_str()).collect();
    assert_eq!(whys.len(), 3, "{whys:?}");
    assert!(whys[0].contains("more than an image may have") && whys[1].contains("zstd"), "{whys:?}");
    let report = Scan::new(Settings { limits, ..settings() }).of_folder("a", &folder).unwrap();
    assert!(!gate(&report, Severity::Critical).is_open());
    let (images, _) = image::images(&folder, "images", image::Limits { entries: 0, ..limits });
    assert!(images[0].unread[0].1.contains("more than 0 files"), "{:?}", images[0].unread);
}

#[test]
fn directory_scan_reports_findings_and_what_it_skipped() {
    let (_guard, root) = temporary();
    put(&root, "configs/a/environment.yaml", "environment: a\nphase: air-gapped\ntls: { mode: 'off' }\n");
    put(&root, "configs/a/broken.yaml", "a: [");
    put(&root, "scripts/run.sh", "DB_PASSWORD=\"kX8/tq0aZ2w\"\n");
    put(&root, "scripts/.env", "A=1\n");
    put(&root, "bin/program", "\x7fELF nothing");
    put(&root, "images/old.tar", "tar");
    let key = format!("-----BEGIN {}-----\n{}\n", "PRIVATE KEY", "aB3dE5gH7jK9mN1pQ2sT4vW6xY8zC0fR".repeat(2));
    put(&root, "certs/key.pem", &key);
    std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
    let report = Scan::new(settings()).of_folder("a", &Folder::open(&root).unwrap()).unwrap();
    let found: BTreeSet<String> = report.findings.iter().map(|f| format!("{} {}", f.id, f.place)).collect();
    for wanted in [
        "tls-off configs/a/environment.yaml: tls.mode",
        "password-in-file scripts/run.sh:1",
        "environment-file scripts/.env",
        "private-key certs/key.pem:1",
        "key-readable certs/key.pem",
    ] {
        assert!(found.contains(wanted), "{wanted} is not in {found:?}");
    }
    let unseen: BTreeSet<&str> = report.not_looked_at.iter().map(|n| n.what.as_str()).collect();
    assert_eq!(unseen, BTreeSet::from(["bin/program", "configs/a/broken.yaml", "images/old.tar", "link"]));
    // A program with a list of its crates has been looked at.
    let lock = Lock::parse("version = 4\n[[package]]\nname = \"plain\"\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n").unwrap();
    let subject = crate::sbom::Subject { name: "p".to_owned(), version: "1".to_owned(), epoch: None };
    let graph = crate::sbom::CrateGraph { lock: &lock, root: "p", conditions: &[] };
    put(&root, "sbom/program.cdx.json", crate::sbom::program(&subject, &[], Some(&graph)).to_bytes());
    let (_guard, advisories) = temporary();
    put(&root, CARRIED, small_database(&advisories).to_bytes());
    let report = Scan::new(settings()).of_folder("a", &Folder::open(&root).unwrap()).unwrap();
    assert!(report.findings.iter().any(|f| f.id == "RUSTSEC-2026-9000" && f.place == "sbom/program.cdx.json"));
    assert!(!report.not_looked_at.iter().any(|n| n.what == "bin/program"));
    std::fs::set_permissions(root.join("certs/key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let report = Scan::new(settings()).of_folder("a", &Folder::open(&root).unwrap()).unwrap();
    assert!(!report.findings.iter().any(|f| f.id == "key-readable"));
}

#[test]
fn allowed_findings_are_suppressed_until_the_expiry_date() {
    let list = "allow:\n- { id: tls-off, path: a.yaml, reason: a test without people, until: 2026-09-01 }\n\
        - { id: cors-any, path: '*', reason: nobody needs this one, until: 2027-09-01 }\n";
    let allow = allow::read(list, "scan-allow.yaml").unwrap();
    let texts = [("a.yaml".to_owned(), "environment: a\nphase: pilot\ntls: { mode: 'off' }".to_owned())];
    let scan =
        |now: &str| Scan::new(Settings { allow: allow.clone(), ..Settings::at(at(now)) }).of_environment("a", &texts);
    let before = scan("2026-09-01T23:00:00Z");
    assert_eq!((before.allowed.len(), before.summary.critical), (1, 0));
    assert_eq!(before.findings.iter().map(|f| f.id.as_str()).collect::<Vec<_>>(), ["allowance-unused"]);
    let after = scan("2026-09-02T00:00:00Z");
    assert_eq!((after.allowed.len(), after.summary.critical), (0, 1));
    assert!(after.findings.iter().any(|f| f.id == "allowance-expired"));
}

#[test]
fn every_scan_error_has_a_hint() {
    let (_guard, folder) = temporary();
    let errors = [
        Database::from_folder(&folder).unwrap_err(),
        Database::from_rustsec(&folder, None).unwrap_err(),
        Database::from_bytes(b"{", "a").unwrap_err(),
        allow::read("a", "a").unwrap_err(),
        Scan::new(settings()).of_lock("a", "version = 9").unwrap_err(),
    ];
    assert!(errors.iter().all(|e| e.hint().len() > 10 && !e.to_string().is_empty()));
}
