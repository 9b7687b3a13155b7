//! Who made it: believed only with a key that came on another way, and said loudly where nobody knows.

use serde_json::{Value, json};
use textnlp_tests::said;

use crate::archive::{changed, member, members};
use crate::readme::commands;
use crate::stage::{Goods, NAME, Stage, names, tool};

fn recorded(stage: &Stage) -> Value {
    let record: Value = serde_json::from_slice(&std::fs::read(stage.root().join("installed.json")).unwrap()).unwrap();
    record["sources"][0].clone()
}

#[test]
fn bundle_from_an_unknown_signer_warns_and_is_recorded() {
    let goods = Goods::get();
    let stage = Stage::new("unknown");
    let installed = stage.install(&goods.first, &["--no-up"]).expect(0);
    names(&installed.err, &["warning: authenticity: unverified", "which is not trusted here", "--trust KEY.pub"]);
    names(&installed.out, &["unverified"]);
    assert_eq!(recorded(&stage)["authenticity"], "unverified");
    // Known from here on: the same bytes, believed.
    let installed = stage.install(&goods.first, &["--no-up", "--trust", &goods.public]).expect(0);
    names(&installed.out, &["which is trusted here"]);
    let mut by_variable = stage.command(&["bundle", "verify", &goods.first, "--output", "json"]);
    let verified = said(by_variable.env("TEXTNLP_TRUST", &goods.public).output().unwrap()).expect(0).json();
    assert_eq!(verified["authenticity"]["authenticity"], "verified");
    let unsigned = stage.made().join("unsigned.tar");
    let unsigned = unsigned.as_str();
    stage.run(&["bundle", "create", "--env", NAME, "--no-server-image", "--out", unsigned]).expect(0);
    let verified = stage.run(&["bundle", "verify", unsigned]).expect(0);
    names(&verified.err, &["unverified; it is not signed"]);
}

#[test]
fn only_bundles_of_the_trusted_signer_are_installed() {
    let goods = Goods::get();
    let stage = Stage::new("untrusted");
    stage.run(&["bundle", "keygen", "--out", "other"]).expect(0);
    let bytes = std::fs::read(&goods.first).unwrap();
    let place = |name: &str| stage.made().join(name);
    let block = member(&bytes, "manifest.json.minisig");
    changed(&bytes, &place("stripped.tar"), |copy| copy[block.data..block.data + block.size].fill(b'\n'));
    std::fs::write(place("resigned.tar"), &bytes).unwrap();
    stage.run(&["bundle", "sign", "resigned.tar", "--key", "other.key"]).expect(0);
    // Somebody else's signature of something else, set into this one.
    let second = std::fs::read(&goods.second).unwrap();
    let from = member(&second, "manifest.json.minisig");
    changed(&bytes, &place("borrowed.tar"), |copy| {
        copy[block.data..block.data + block.size].copy_from_slice(&second[from.data..from.data + from.size]);
    });

    let strangers = [
        ("stripped.tar", goods.public.as_str(), "it is not signed"),
        ("resigned.tar", &goods.public, "which is not trusted here"),
        ("borrowed.tar", &goods.public, "its signature is invalid"),
        (&goods.first, "other.pub", "which is not trusted here"),
    ];
    for (bundle, key, why) in strangers {
        for verb in ["verify", "install", "serve", "export"] {
            let mut args = vec!["bundle", verb, bundle, "--trust", key, "--output", "json"];
            let flags = stage.flags();
            match verb {
                "install" => args.extend(flags.iter().map(String::as_str)),
                "serve" => args.extend(["--listen", "127.0.0.1:0"]),
                "export" => args.extend(["--out", "exported"]),
                _ => {}
            }
            let refused = stage.run(&args);
            let document = refused.json();
            let damaged = bundle == "borrowed.tar" && verb == "verify";
            assert_eq!(refused.exit, if damaged { 1 } else { 4 }, "{verb} {bundle}: {document:#}");
            if !damaged {
                assert_eq!(document["error"]["code"], "not_trusted", "{verb} {bundle}: {document:#}");
                names(&document["error"].to_string(), &[why, "--trust KEY.pub"]);
            }
        }
        stage.is_untouched(bundle);
        assert!(!place("exported").exists());
    }
    // A borrowed signature is refused even where nobody is asked for.
    stage.install("borrowed.tar", &[]).expect(4);
    stage.is_untouched("borrowed.tar");
}

#[test]
fn pinned_keys_decide_until_they_are_replaced_or_forgotten() {
    let goods = Goods::get();
    let stage = Stage::new("pinned");
    let root = stage.root().as_str();
    let listed = || stage.json(0, &["bundle", "trust", "--root", root]);
    let create = |out: &str, version: &str, more: &[&str]| {
        let create = ["bundle", "create", "--env", NAME, "--no-server-image", "--out", out, "--version", version];
        stage.run(&[&create[..], more].concat()).expect(0)
    };
    let other = stage.json(0, &["bundle", "keygen", "--out", "other"])["key"].clone();
    assert_eq!(listed()["trusted"], json!([]));
    let installed = stage.install(&goods.first, &["--no-up", "--trust", &goods.public]).expect(0);
    names(&installed.out, &["only bundles signed by"]);
    let own = listed()["trusted"][0]["id"].clone();
    assert_eq!((&listed()["newest"]["version"], &listed()["revoked"]), (&json!("1.0.0"), &json!([])));
    let before = stage.digest();

    create("unsigned.tar", "8.0.0", &[]);
    create("foreign.tar", "9.0.0", &["--sign-key", "other.key"]);
    for (bundle, trust) in [("unsigned.tar", &[][..]), ("foreign.tar", &[]), ("foreign.tar", &["--trust", "other.pub"])]
    {
        let refused = stage.install(bundle, &[&["--no-up", "--output", "json"], trust].concat()).expect(4).json();
        assert_eq!(refused["error"]["code"], "not_trusted", "{refused:#}");
        names(&refused["error"].to_string(), &["bundle trust --root", "--forget-trust"]);
        stage.run(&[&["bundle", "verify", bundle, "--root", root], trust].concat()).expect(4);
        assert_eq!(stage.digest(), before);
    }
    stage.run(&["bundle", "verify", "unsigned.tar"]).expect(0);
    stage.install(&goods.second, &["--no-up"]).expect(0);
    let older = stage.install(&goods.first, &["--no-up", "--output", "json"]).expect(4).json();
    assert_eq!(older["error"]["code"], "older_release");
    names(&older["error"].to_string(), &["version 1.0.0", "version 2.0.0", "--downgrade"]);

    // The trusted key names its successor.
    let rotation = ["--sign-key", &goods.secret, "--next-key", "other.pub", "--revoke", &goods.public];
    let created = create("rotation.tar", "3.0.0", &rotation);
    names(&created.out, &["introduces key", "revokes    key", "sh install.sh rotation.tar --trust maker.pub"]);
    stage.install("rotation.tar", &["--no-up"]).expect(0);
    stage.install("rotation.tar", &["--no-up"]).expect(0);
    let now = listed();
    assert_eq!((&now["trusted"][0]["id"], &now["revoked"][0]["id"]), (&other, &own), "{now:#}");
    let revoked = stage.install(&goods.third, &["--no-up", "--trust", &goods.public]).expect(4);
    names(&revoked.err, &["which is revoked here"]);
    stage.install("foreign.tar", &["--no-up"]).expect(0);

    let forgotten = ["--no-up", "--forget-trust", "--downgrade", "--trust", &goods.public];
    stage.install(&goods.third, &forgotten).expect(0);
    assert_eq!((&listed()["trusted"][0]["id"], &listed()["revoked"]), (&own, &json!([])));
}

#[test]
fn the_commands_of_the_readme_run_no_changed_installer_or_program() {
    if !tool("minisign") {
        return;
    }
    let goods = Goods::get();
    let stage = Stage::new("first-install");
    let bytes = std::fs::read(&goods.first).unwrap();
    let all = members(&bytes);
    let installer = member(&bytes, "install.sh");
    let program = all.iter().find(|m| m.name.starts_with("bin/") && m.size > 0).unwrap();
    let attack = |copy: &mut Vec<u8>| {
        let script = format!("#!/bin/sh\ntouch {}/RAN\nexit 0\n", stage.made());
        copy[installer.data..installer.data + installer.size].fill(b'\n');
        copy[installer.data..installer.data + script.len()].copy_from_slice(script.as_bytes());
    };
    let (_, commands) = commands();
    let verdict = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let folder = stage.made().join(name);
        std::fs::create_dir(&folder).unwrap();
        changed(&bytes, &folder.join("textnlp.tar"), |copy| change(copy));
        std::fs::copy(&goods.public, folder.join("release.pub")).unwrap();
        let mut shell = stage.other("sh", &["-c", &commands]);
        let root = folder.join("root");
        said(shell.current_dir(&folder).env("TEXTNLP_ROOT", &root).env("TEXTNLP_ENV", "absent").output().unwrap())
    };
    let whole = verdict("whole", &|_| {});
    names(&whole.out, &["SHA256SUMS: OK", "install.sh: OK", "Installing textnlp.tar with textnlp-deploy"]);
    verdict("installer", &attack).expect(1);
    verdict("program", &|copy| copy[program.data + program.size / 2] ^= 1).expect(1);
    // The sums fit the changed installer, and the signature does not fit the sums.
    verdict("sums", &|copy| {
        attack(copy);
        let sums = member(copy, "SHA256SUMS");
        let text = String::from_utf8(copy[sums.data..sums.data + sums.size].to_vec()).unwrap();
        std::fs::write(stage.made().join("install.sh"), &copy[installer.data..installer.data + installer.size])
            .unwrap();
        let own = stage.other("sha256sum", &["install.sh"]).output().unwrap();
        let line = text.lines().find(|line| line.ends_with("  install.sh")).unwrap();
        let text = text.replace(line, String::from_utf8(own.stdout).unwrap().trim_end());
        copy[sums.data..sums.data + sums.size].copy_from_slice(text.as_bytes());
    })
    .expect(1);
    assert!(!stage.made().join("RAN").exists());
}

#[test]
fn detached_signature_of_a_file_is_verified_by_minisign() {
    if !tool("minisign") {
        return;
    }
    let stage = Stage::new("detached");
    stage.run(&["bundle", "keygen", "--out", "release"]).expect(0);
    let file = stage.made().join("provenance.json");
    std::fs::write(&file, "{}\n").unwrap();
    let signed = stage.json(0, &["bundle", "sign", "--detached", "provenance.json", "--key", "release.key"]);
    assert_eq!(signed["signature"], "provenance.json.minisig");
    let verify = || said(stage.other("minisign", &["-Vm", "provenance.json", "-p", "release.pub"]).output().unwrap());
    names(&verify().expect(0).out, &["file provenance.json"]);
    std::fs::write(&file, "{ }\n").unwrap();
    verify().expect(1);
}

#[test]
fn signing_changes_only_the_signature_block() {
    let goods = Goods::get();
    let stage = Stage::new("resign");
    stage.run(&["bundle", "keygen", "--out", "other"]).expect(0);
    let before = std::fs::read(&goods.first).unwrap();
    std::fs::write(stage.made().join("copy.tar"), &before).unwrap();
    stage.run(&["bundle", "sign", "copy.tar", "--key", "other.key"]).expect(0);
    let after = std::fs::read(stage.made().join("copy.tar")).unwrap();
    let block = member(&before, "manifest.json.minisig");
    let differ: Vec<_> = (0..before.len()).filter(|n| before[*n] != after[*n]).collect();
    assert_eq!(before.len(), after.len());
    assert!(!differ.is_empty());
    assert!(differ.iter().all(|n| (block.data..block.data + block.size).contains(n)), "{:?}", differ.first());
}

#[test]
fn invalid_signing_keys_are_refused_before_the_bundle_is_read() {
    let goods = Goods::get();
    let stage = Stage::new("keys");
    std::fs::write(stage.made().join("text.pub"), "a letter to the editor\n").unwrap();
    for (name, text) in [("password", "swordfish\n"), ("wrong", "sordfish\n")] {
        let file = stage.made().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    for key in [goods.secret.as_str(), "text.pub", "nowhere.pub"] {
        for said in [
            stage.run(&["bundle", "verify", &goods.first, "--trust", key]),
            stage.install(&goods.first, &["--trust", key]),
        ] {
            assert_eq!(said.exit, 2, "{key}: {said:?}");
            names(&said.err, &[key, "error: "]);
        }
    }
    stage.is_untouched("wrong keys");
    let secret = std::fs::read_to_string(&goods.secret).unwrap();
    let wrong = stage.run(&["bundle", "verify", &goods.first, "--trust", &goods.secret]);
    assert!(!wrong.err.contains(secret.lines().nth(1).unwrap()), "a secret is not printed: {}", wrong.err);

    stage.run(&["bundle", "keygen", "--out", "locked", "--password-file", "password"]).expect(0);
    std::fs::copy(&goods.first, stage.made().join("copy.tar")).unwrap();
    let sign = |more: &[&str]| stage.run(&[&["bundle", "sign", "copy.tar", "--key"], more].concat());
    names(&sign(&["locked.key"]).expect(2).err, &["locked.key", "password"]);
    names(&sign(&["locked.key", "--password-file", "wrong"]).expect(2).err, &["locked.key"]);
    names(&sign(&[&goods.public]).expect(2).err, &["maker.pub"]);
    let document = stage.json(0, &["bundle", "verify", "copy.tar", "--trust", &goods.public]);
    assert_eq!(document["authenticity"]["authenticity"], json!("verified"), "a refused signing leaves the old one");
    sign(&["locked.key", "--password-file", "password"]).expect(0);
    stage.run(&["bundle", "verify", "copy.tar", "--trust", "locked.pub"]).expect(0);

    let again = stage.run(&["bundle", "keygen", "--out", "locked"]);
    assert_eq!(again.exit, 2, "a key that is there is not replaced: {again:?}");
    names(&again.err, &["locked.key", "hint: ", "--out"]);
}
