//! The same things make the same file, whoever makes it, wherever and whenever.

use std::os::unix::fs::PermissionsExt;

use textnlp_tests::{program, said};

use crate::stage::{Goods, NAME, Stage, names, other_model};

#[test]
fn bundle_is_reproducible_across_time_zones_umasks_and_directories() {
    let goods = Goods::get();
    let (here, there) = (Stage::new("here"), Stage::new("elsewhere-with-a-longer-name"));
    let made = |stage: &Stage, folder: &str, zone: &str, mask: &str, out: &str| {
        let line = format!(
            "umask {mask}; exec \"$0\" bundle create --env {NAME} --package a.deb --set models[0].source=file:$PWD/model --out {out}"
        );
        let folder = stage.made().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.deb"), "a package").unwrap();
        std::fs::rename(other_model(stage, &goods.first), folder.join("model")).unwrap();
        let mut shell = stage.other("sh", &["-c", &line, program().as_str()]);
        shell.current_dir(&folder).env("TZ", zone).env("SOURCE_DATE_EPOCH", "1700000000");
        said(shell.output().unwrap()).expect(0);
        std::fs::read(folder.join(out)).unwrap()
    };
    let first = made(&here, "", "Pacific/Kiritimati", "077", "one.tar");
    let second = made(&there, "below", "America/St_Johns", "000", "another-name.tar");
    assert!(first == second, "{} and {} bytes, not the same", first.len(), second.len());
}

#[test]
fn source_date_epoch_sets_the_times_in_a_bundle() {
    let stage = Stage::new("epoch");
    let create = || stage.command(&["bundle", "create", "--env", NAME, "--no-server-image", "--out", "a.tar"]);
    said(create().env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap()).expect(0);
    let listed = said(stage.other("tar", &["-tvf", "a.tar"]).env("TZ", "UTC").output().unwrap()).expect(0);
    assert!(listed.out.lines().all(|line| line.contains(" 2023-11-14 22:13 ")), "{}", listed.out);
    let wrong = said(create().env("SOURCE_DATE_EPOCH", "yesterday").output().unwrap()).expect(2);
    names(&wrong.err, &["SOURCE_DATE_EPOCH", "yesterday", "hint: "]);
}

#[test]
fn invalid_bundle_inputs_are_refused_before_writing() {
    let stage = Stage::new("inputs");
    std::fs::write(stage.made().join("text"), "#!/bin/sh\n").unwrap();
    let cases: [(&[&str], &str, &[&str]); 8] = [
        (&["--program", "/bin/ls"], "program_not_static", &["/bin/ls", "hint: "]),
        (&["--program", "text"], "program_not_static", &["text", "hint: "]),
        (&["--program", "nowhere"], "program_not_static", &["nowhere"]),
        (&["--with-env", "iland"], "", &["iland", "island"]),
        (&["--model", "file:/nowhere/at/all"], "", &["/nowhere/at/all"]),
        (&["--package", "nowhere.deb"], "wrong_inputs", &["nowhere.deb"]),
        (&["--volume-size", "20 parsecs"], "", &["parsecs", "MiB"]),
        (&["--image", "oci:nowhere"], "image", &["nowhere"]),
    ];
    for (flags, code, words) in cases {
        let create = ["bundle", "create", "--env", NAME, "--out", "out.tar"];
        let said = stage.run(&[&create[..], flags].concat());
        assert!([1, 2].contains(&said.exit), "{flags:?}: {said:?}");
        names(&said.err, words);
        if !code.is_empty() {
            let document = stage.run(&[&create[..], flags, &["--output", "json"]].concat()).json();
            assert_eq!(document["error"]["code"], code, "{document:#}");
        }
        let left: Vec<_> =
            stage.sandbox.files(&stage.made()).into_iter().filter(|f| f.starts_with("out.tar")).collect();
        assert!(left.is_empty(), "{flags:?} left {left:?}");
    }
    let nowhere = stage.run(&["bundle", "create", "--env", NAME, "--out", "no/such/folder/out.tar"]).expect(2);
    names(&nowhere.err, &["no/such/folder", "mkdir -p no/such/folder"]);
    let unknown = stage.run(&["bundle", "create", "--env", "iland", "--out", "out.tar"]).expect(2);
    names(&unknown.err, &["iland", "island"]);
}

#[test]
fn damaged_model_cache_is_not_bundled() {
    let stage = Stage::new("cache");
    let create = ["bundle", "create", "--env", NAME, "--no-server-image", "--out", "out.tar"];
    stage.run(&create).expect(0);
    let cached = stage.sandbox.files(&stage.made()).into_iter().find(|f| f.ends_with("model.safetensors"));
    let cached = stage.made().join(cached.expect("models are cached beside their environments"));
    let mut bytes = std::fs::read(&cached).unwrap();
    let times = std::fs::metadata(&cached).unwrap().modified().unwrap();
    bytes[100_000] ^= 1;
    let mode = PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&cached, mode).unwrap();
    std::fs::write(&cached, bytes).unwrap();
    std::fs::File::options().write(true).open(&cached).unwrap().set_modified(times).unwrap();
    let elsewhere = [&create[..create.len() - 1], &["second.tar", "--offline"]].concat();
    let refused = stage.run(&elsewhere);
    assert_eq!(refused.exit, 1, "{refused:?}");
    names(&refused.err, &["models/textnlp-tiny/model.safetensors", "hint: "]);
    assert!(!stage.made().join("second.tar").exists());

    // Where a good bundle lies, the cache is looked through first, and this model is mended from the program.
    let before = std::fs::read(stage.made().join("out.tar")).unwrap();
    stage.run(&[&create[..], &["--offline"]].concat()).expect(0);
    assert!(std::fs::read(stage.made().join("out.tar")).unwrap() == before, "the same bundle again");
}

#[test]
fn inspect_and_diff_show_the_content_of_bundles() {
    let goods = Goods::get();
    let stage = goods.stage();
    let inspected = stage.run(&["bundle", "inspect", &goods.first, "--files", "--trust", &goods.public]).expect(0);
    names(
        &inspected.out,
        &[
            "version 1.0.0",
            "model",
            "textnlp-tiny",
            "environment",
            NAME,
            "models/textnlp-tiny/model.safetensors",
            "which is trusted here",
        ],
    );
    let same = stage.json(0, &["bundle", "diff", &goods.first, &goods.first]);
    assert_eq!(same["same"], true);
    let diff = stage.run(&["bundle", "diff", &goods.first, &goods.third]).expect(0);
    names(&diff.out, &["~ model textnlp-tiny", "~ program textnlp-deploy", "1.0.0 → 3.0.0", "bin/linux-"]);
    let listed = said(stage.other("tar", &["-tf", &goods.first]).output().unwrap()).expect(0);
    assert!(listed.out.starts_with("manifest.json\nmanifest.json.minisig\nSHA256SUMS\ninstall.sh\n"), "{}", listed.out);
    let unpacked = stage.made().join("unpacked");
    std::fs::create_dir_all(&unpacked).unwrap();
    said(stage.other("tar", &["-xf", &goods.first, "-C", unpacked.as_str()]).output().unwrap()).expect(0);
    said(
        stage.other("sha256sum", &["-c", "--quiet", "--strict", "SHA256SUMS"]).current_dir(&unpacked).output().unwrap(),
    )
    .expect(0);
    if crate::stage::tool("minisign") {
        let check = ["-V", "-p", &goods.public, "-m", "manifest.json"];
        said(stage.other("minisign", &check).current_dir(&unpacked).output().unwrap()).expect(0);
    }
}
