//! The older form: the folder, its archive, its installer, and zip files with models.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use camino::Utf8Path;
use textnlp_bundle::file_source::Folder;
use textnlp_bundle::legacy::update::{apply, create};
use textnlp_bundle::legacy::{Error, Exported, Models, Options, export};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::oci::Platform;
use textnlp_models::Digest;

use crate::tools::{Dir, has, program, skopeo, stand_in, write_images};

/// The content of a bundle: two images, a model, a configuration, a script, a program.
fn shelf(dir: &Dir) -> Folder {
    let root = dir.join("bundle");
    let mut postgres = stand_in(dir.path(), "postgres");
    postgres.name = "docker.io/library/postgres:15".to_owned();
    write_images(&[stand_in(dir.path(), "textnlp"), postgres], &root.join("images"));
    let put = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    put("models/tiny/config.json", b"{}");
    put("models/tiny/model.safetensors", &vec![9; 200_000]);
    put("configs/air-gapped.yaml", b"environment: air-gapped\n");
    put("scripts/check.sh", b"#!/bin/sh\n");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy(program(dir.path(), 62, b"p"), root.join("bin/textnlp-deploy-linux-amd64")).unwrap();
    let item = Item {
        kind: ItemKind::Program,
        name: "textnlp-deploy".to_owned(),
        version: None,
        digest: Digest::of(b""),
        platform: Some("linux/amd64".to_owned()),
        license: None,
        source: None,
        media_type: None,
        paths: vec!["bin/textnlp-deploy-linux-amd64".to_owned()],
    };
    Folder::open(&root, vec![item]).unwrap()
}

fn exported(dir: &Dir, shelf: &Folder, to: &str) -> Exported {
    let platform = Platform::linux("amd64");
    let options = Options { version: "1.0.0".to_owned(), epoch: 1_700_000_000, platform, archive: true };
    export(shelf, &dir.join(to), &options).unwrap()
}

fn sh(folder: &Utf8Path, script: &str, envs: &[(&str, &str)]) -> (bool, String) {
    let out =
        Command::new("dash").current_dir(folder).args(["-c", script]).envs(envs.iter().copied()).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn legacy_export_contains_the_required_files_and_an_archive() {
    let dir = Dir::new();
    let shelf = shelf(&dir);
    let out = exported(&dir, &shelf, "out");
    assert_eq!(out.archive.as_deref(), Some(dir.join("out/textnlp-offline-1.0.0.tar.gz").as_path()));
    assert_eq!(out.images["textnlp:1.0.0"], "textnlp-api.tar");
    assert_eq!(out.images["postgres:15"], "postgres.tar");
    for path in [
        "images/textnlp-api.tar",
        "images/postgres.tar",
        "packages/packages.txt",
        "packages/bin/textnlp-deploy",
        "models/manifest.json",
        "models/tiny/model.safetensors",
        "configs/air-gapped.yaml",
        "configs/server.yaml",
        "scripts/check.sh",
        "install.sh",
        "docker-compose.airgap.yml",
        "SHA256SUMS",
    ] {
        assert!(out.folder.join(path).is_file(), "{path}");
    }
    let models: Models =
        serde_json::from_slice(&std::fs::read(out.folder.join("models/manifest.json")).unwrap()).unwrap();
    assert_eq!((models.version.as_str(), models.created_at.as_str()), ("1.0.0", "2023-11-14T22:13:20Z"));
    assert_eq!(models.models["tiny"].size, 200_002);

    // The archive unpacks with anybody's tar to the same, and is the same each time.
    let (ok, text) = sh(
        &dir.join("out"),
        "mkdir un && tar -C un -xzf textnlp-offline-1.0.0.tar.gz && diff -r un/offline_bundle offline_bundle && (cd un/offline_bundle && sha256sum -c SHA256SUMS)",
        &[],
    );
    assert!(ok, "{text}");
    let again = exported(&dir, &shelf, "again");
    assert_eq!(std::fs::read(again.archive.unwrap()).unwrap(), std::fs::read(out.archive.unwrap()).unwrap());
    let platform = Platform::linux("amd64");
    let options = Options { version: "1.0.0".to_owned(), epoch: 0, platform, archive: false };
    assert!(export(&shelf, &dir.join("out"), &options).is_err(), "nothing is overwritten");
}

#[test]
fn legacy_image_archives_are_readable_by_skopeo_as_docker_archives() {
    if !has("skopeo") {
        return;
    }
    let dir = Dir::new();
    let out = exported(&dir, &shelf(&dir), "out");
    for (file, tag) in [("textnlp-api.tar", "textnlp:1.0.0"), ("postgres.tar", "postgres:15")] {
        let from = format!("docker-archive:{}", out.folder.join("images").join(file));
        let seen: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", &from])).unwrap();
        assert_eq!(seen["Architecture"], "amd64");
        assert_eq!(seen["Layers"].as_array().unwrap().len(), 2);
        let named = format!("{from}:{tag}");
        skopeo(&["copy", "--dest-oci-accept-uncompressed-layers", &named, &format!("oci:{}:x", dir.join(file))]);
    }
}

#[test]
fn legacy_installer_loads_installs_and_copies_offline() {
    let dir = Dir::new();
    let out = exported(&dir, &shelf(&dir), "out");
    let (ok, text) = sh(&out.folder, "dash -n install.sh", &[]);
    assert!(ok, "{text}");
    // A stand-in for the engine that writes down what it is asked.
    let tools = dir.join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::fs::write(tools.join("docker"), format!("#!/bin/sh\necho \"$*\" >>{}\n", dir.join("calls"))).unwrap();
    std::fs::set_permissions(tools.join("docker"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{tools}:/usr/bin:/bin");
    let (prefix, models) = (dir.join("prefix"), dir.join("opt/models"));
    let envs = [("PATH", path.as_str()), ("TEXTNLP_PREFIX", prefix.as_str()), ("TEXTNLP_MODELS_DIR", models.as_str())];
    // Twice: a second run is no accident.
    for _ in 0..2 {
        let (ok, text) = sh(dir.path(), "sh out/offline_bundle/install.sh", &envs);
        assert!(ok, "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Installing TextNLP 1.0.0 from this offline bundle...");
        assert!(text.contains("TextNLP 1.0.0 is installed."), "{text}");
    }
    let calls = std::fs::read_to_string(dir.join("calls")).unwrap();
    assert_eq!(calls, "load -i images/postgres.tar\nload -i images/textnlp-api.tar\n".repeat(2));
    assert_eq!(std::fs::read(models.join("tiny/model.safetensors")).unwrap(), vec![9; 200_000]);
    assert!(models.join("manifest.json").is_file());
    assert_eq!(std::fs::metadata(prefix.join("bin/textnlp-deploy")).unwrap().permissions().mode() & 0o777, 0o755);

    let (ok, text) =
        sh(dir.path(), "sh out/offline_bundle/install.sh", &[("TEXTNLP_ENGINE", "no-such-engine"), envs[1], envs[2]]);
    assert!(!ok && text.contains("TEXTNLP_ENGINE=none"), "{text}");
    std::fs::remove_file(dir.join("calls")).unwrap();
    std::fs::OpenOptions::new()
        .append(true)
        .open(out.folder.join("models/tiny/config.json"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let (ok, text) = sh(dir.path(), "sh out/offline_bundle/install.sh", &envs);
    assert!(!ok && text.contains("damaged") && !dir.join("calls").exists(), "{text}");
}

#[test]
fn damaged_bundle_is_not_exported() {
    let dir = Dir::new();
    let shelf = shelf(&dir);
    let path = dir.join("bundle/models/tiny/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let platform = Platform::linux("amd64");
    let options = Options { version: "1.0.0".to_owned(), epoch: 0, platform, archive: true };
    let error = export(&shelf, &dir.join("out"), &options).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("models/tiny/model.safetensors"), "{cause}");
    assert!(error.hint().contains("verify"));
    assert!(!dir.join("out/offline_bundle").exists() && !dir.join("out/textnlp-offline-1.0.0.tar.gz").exists());
}

fn models(dir: &Dir, name: &str, content: &[(&str, &str)]) -> camino::Utf8PathBuf {
    let root = dir.join(name);
    for (path, text) in content {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir_all(&root).unwrap();
    root
}

fn text(path: &Utf8Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|_| "absent".to_owned())
}

#[test]
fn legacy_update_installs_selected_models_and_skips_missing_ones() {
    let dir = Dir::new();
    let from =
        models(&dir, "from", &[("a/config.json", "new a"), ("a/deep/x", "x"), ("b/config.json", "b"), ("c/x", "c")]);
    let to = models(&dir, "to", &[("a/config.json", "old a"), ("a/gone", "old"), ("c/x", "c"), ("d/x", "d")]);
    let names = ["a", "b", "c", "nobody"].map(str::to_owned);
    let zip = dir.join("update.zip");
    let created = create(&from, &names, &zip, "1.1.0", 1_700_000_000).unwrap();
    assert_eq!(created.skipped, ["nobody"]);
    assert_eq!(created.manifest.models.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let same = dir.join("same.zip");
    create(&from, &names, &same, "1.1.0", 1_700_000_000).unwrap();
    assert_eq!(std::fs::read(&zip).unwrap(), std::fs::read(&same).unwrap());
    // What other people's tools see in it.
    let script = "import zipfile,json,sys; z=zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; print(sorted(z.namelist()), json.loads(z.read('manifest.json'))['version'])";
    let out = Command::new("python3").args(["-c", script, zip.as_str()]).output().unwrap();
    let seen = String::from_utf8(out.stdout).unwrap();
    assert_eq!(seen.trim(), "['a/config.json', 'a/deep/x', 'b/config.json', 'c/x', 'manifest.json'] 1.1.0");

    let applied = apply(&zip, &to).unwrap();
    assert_eq!(
        (applied.replaced, applied.added, applied.unchanged),
        (vec!["a".to_owned()], vec!["b".to_owned()], vec!["c".to_owned()])
    );
    assert_eq!((text(&to.join("a/config.json")), text(&to.join("a/deep/x"))), ("new a".to_owned(), "x".to_owned()));
    assert_eq!((text(&to.join("a/gone")), text(&to.join("d/x"))), ("absent".to_owned(), "d".to_owned()));
    assert!(text(&to.join("manifest.json")).contains("1.1.0") && !to.join(".update").exists());
    assert_eq!(apply(&zip, &to).unwrap().unchanged.len(), 3);
    assert!(matches!(create(&from, &["nobody".to_owned()], &dir.join("n.zip"), "1", 0), Err(Error::Missing { .. })));
    assert!(create(&from, &["../from/a".to_owned()], &dir.join("n.zip"), "1", 0).is_err());
}

#[test]
fn invalid_legacy_update_changes_nothing() {
    let dir = Dir::new();
    let from = models(&dir, "from", &[("a/config.json", "new a"), ("b/config.json", "new b")]);
    let zip = dir.join("update.zip");
    create(&from, &["a".to_owned(), "b".to_owned()], &zip, "1", 0).unwrap();
    let spoil = |script: &str| {
        let to = models(&dir, "to", &[("a/config.json", "old a")]);
        let bad = dir.join("bad.zip");
        let program = format!(
            "import zipfile,sys\nz=zipfile.ZipFile(sys.argv[1]); w=zipfile.ZipFile(sys.argv[2],'w')\n{script}\nw.close()"
        );
        let out = Command::new("python3")
            .args(["-W", "ignore", "-c", &program, zip.as_str(), bad.as_str()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let error = apply(&bad, &to).unwrap_err();
        assert_eq!(text(&to.join("a/config.json")), "old a");
        assert!(!to.join("b").exists() && !to.join(".update").exists() && !dir.join("evil").exists(), "{error}");
        error.to_string()
    };
    let copy = "for n in z.namelist(): w.writestr(n, z.read(n))\n";
    assert!(
        spoil("for n in z.namelist(): w.writestr(n, b'new x' if n=='b/config.json' else z.read(n))")
            .contains("the digest of model b does not match")
    );
    assert!(
        spoil("for n in z.namelist():\n if n!='b/config.json': w.writestr(n, z.read(n))")
            .contains("the digest of model b does not match")
    );
    assert!(spoil(&format!("{copy}w.writestr('../evil', b'x')")).contains("belongs to no model"));
    assert!(spoil(&format!("{copy}w.writestr('a/../../evil', b'x')")).contains("belongs to no model"));
    assert!(spoil(&format!("{copy}w.writestr('/evil', b'x')")).contains("belongs to no model"));
    // A model without files has a checksum that every author can compute.
    for name in ["../evil", "a/../../evil", "a/b", "/evil", "", ".update", "manifest.json"] {
        let script = format!(
            "import json,hashlib\n\
             for n in z.namelist():\n if n!='manifest.json': w.writestr(n, z.read(n))\n\
             m=json.loads(z.read('manifest.json')); c=m['models']['a']['checksum']\n\
             m['models']['{name}']=dict(checksum=c[:-64]+hashlib.sha256(b'').hexdigest(), size=0)\n\
             w.writestr('manifest.json', json.dumps(m))"
        );
        assert!(spoil(&script).contains("which is not a valid folder name"), "{name}");
    }
    assert!(spoil(&format!("{copy}w.writestr('c/x', b'x')")).contains("belongs to no model"));
    assert!(spoil(&format!("{copy}w.writestr('a/more', b'x')")).contains("the digest of model a does not match"));
    assert!(spoil(&format!("{copy}w.writestr('a/big', b'0'*100000, zipfile.ZIP_DEFLATED)")).contains("compressed"));
    assert!(spoil(&format!("{copy}i=zipfile.ZipInfo('a/link'); i.create_system=3; i.external_attr=0o120777<<16; w.writestr(i, '/etc/passwd')")).contains("not a plain file"));
    assert!(spoil("w.writestr('a/config.json', b'x')").contains("manifest.json"));
    let mut bytes = std::fs::read(&zip).unwrap();
    let to = models(&dir, "to", &[("a/config.json", "old a")]);
    // Any byte may be another (every second one is tried); a panic or a changed folder with another content than promised is what must not be.
    for at in (0..bytes.len()).step_by(2) {
        bytes[at] ^= 0x55;
        std::fs::write(dir.join("flip.zip"), &bytes).unwrap();
        let _ = apply(&dir.join("flip.zip"), &to);
        assert!(["old a", "new a"].contains(&text(&to.join("a/config.json")).as_str()), "byte {at}");
        assert!(["absent", "new b"].contains(&text(&to.join("b/config.json")).as_str()), "byte {at}");
        bytes[at] ^= 0x55;
    }
}
