//! From files to a bundle to an installed site, and what stock tools say on the way.

use std::process::Command;

use crate::made::{Workshop, noise, tree_digest};
use camino::Utf8Path;
use textnlp_bundle::*;

fn unverified() -> UnpackOptions<'static> {
    UnpackOptions {
        authenticity: Authenticity::Unverified { why: "test".into() },
        deep: false,
        drive: Drive::default(),
    }
}

#[test]
fn bundle_verifies_and_installs_its_inputs_unchanged() {
    let shop = Workshop::new();
    let packed = shop.pack("a.tar", &shop.inputs());
    let mut bundle = Bundle::open(&shop.path("a.tar")).unwrap();
    assert_eq!(bundle.manifest(), &packed.manifest);
    let verified = bundle.verify(&VerifyOptions { whole_files: true, ..VerifyOptions::default() }).unwrap();
    assert_eq!(verified.damages, []);
    assert_eq!(verified.bytes, packed.manifest.files.iter().map(|file| file.size).sum::<u64>());

    let site = Site::new(&shop.path("site"));
    let unpacked = site.unpack(&mut bundle, &unverified()).unwrap();
    assert!(!unpacked.unchanged);
    assert_eq!(site.installed().unwrap(), None, "nothing is in use before it is activated");
    site.activate(&unpacked.name).unwrap();
    let installed = site.installed().unwrap().unwrap();
    assert_eq!(installed.content, packed.content);
    for input in shop.inputs().files {
        let there = std::fs::read(site.root().join("current").join(&input.path)).unwrap();
        assert_eq!(there, crate::made::bytes(&input), "{}", input.path);
    }

    let again = site.unpack(&mut Bundle::open(&shop.path("a.tar")).unwrap(), &unverified()).unwrap();
    assert!(again.unchanged && again.written == 0);
}

#[test]
fn stream_and_volumes_install_the_same_site() {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let options = PackOptions { volume_size: Some(2 << 20), ..PackOptions::default() };
    let packed = pack(&shop.inputs(), &shop.path("v.tar"), &options).unwrap();
    assert!(packed.paths.len() > 2, "{:?}", packed.paths);
    let whole: Vec<u8> = packed.paths.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert!(whole == std::fs::read(shop.path("a.tar")).unwrap(), "volumes are the file, cut");

    let mut digests = Vec::new();
    let stream = Bundle::from_stream(std::io::Cursor::new(whole)).unwrap();
    for (n, mut bundle) in
        [stream, Bundle::open(&shop.path("v.tar")).unwrap(), Bundle::open(&shop.path("v.tar.001")).unwrap()]
            .into_iter()
            .enumerate()
    {
        let site = Site::new(&shop.path(&format!("site-{n}")));
        let unpacked = site.unpack(&mut bundle, &unverified()).unwrap();
        digests.push(tree_digest(&unpacked.folder));
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));

    std::fs::remove_file(shop.path("v.tar.002")).unwrap();
    let error = Bundle::open(&shop.path("v.tar")).unwrap_err().to_string();
    assert!(error.contains("v.tar.002 is missing"), "{error}");
}

#[test]
fn file_that_is_no_volume_of_the_bundle_is_named() {
    let shop = Workshop::new();
    const SIZE: usize = 2 << 20;
    let options = PackOptions { volume_size: Some(SIZE as u64), ..PackOptions::default() };
    let packed = pack(&shop.inputs(), &shop.path("v.tar"), &options).unwrap();
    let count = packed.paths.len();
    let path = |number: usize| shop.path(&format!("v.tar.{number:03}"));
    let error = || Bundle::open(&shop.path("v.tar")).unwrap_err();
    for length in [1, SIZE, SIZE + 1] {
        std::fs::write(path(count + 1), vec![0u8; length]).unwrap();
        let found = error();
        let says = format!("{}: not of this bundle, which ends with volume {count}", path(count + 1));
        assert_eq!(found.to_string(), says, "{length}");
        assert!(found.hint().unwrap().contains("move what is not of this bundle"), "{:?}", found.hint());
    }
    // A volume of the bundle that is cut is the one that is named, also with a foreign file behind the last.
    let cut = |number: usize, length: u64| {
        std::fs::OpenOptions::new().write(true).open(path(number)).unwrap().set_len(length).unwrap();
    };
    let length = std::fs::metadata(path(count)).unwrap().len();
    cut(count, length - 1);
    let found = error();
    assert!(matches!(&found, Error::Truncated { path: cut, .. } if *cut == path(count)), "{found}");
    cut(count, length);
    cut(2, 1 << 20);
    let found = error();
    assert!(matches!(&found, Error::Volume { path: cut, .. } if *cut == path(2)), "{found}");
    cut(2, SIZE as u64 + 1);
    let found = error();
    assert!(matches!(&found, Error::Volume { path: cut, .. } if *cut == path(2)), "{found}");
}

#[test]
fn new_bundle_replaces_all_files_of_an_earlier_one_of_its_name() {
    let shop = Workshop::new();
    let inputs = shop.inputs();
    let named =
        |packed: &Packed| packed.paths.iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>();
    let there = || {
        let found = std::fs::read_dir(shop.path("v.tar").parent().unwrap()).unwrap();
        let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut found: Vec<_> = found.filter(|name| name.starts_with("v.tar")).collect();
        found.sort();
        found
    };
    for volume_size in [Some(1 << 20), Some(2 << 20), None, Some(1 << 20), Some(1 << 30), None] {
        let options = PackOptions { volume_size, ..PackOptions::default() };
        let packed = pack(&inputs, &shop.path("v.tar"), &options).unwrap();
        assert_eq!(there(), named(&packed), "{volume_size:?}");
        assert_eq!(Bundle::open(&shop.path("v.tar")).unwrap().content_digest(), packed.content);
    }

    let other = shop.path("v.tar.001");
    std::fs::create_dir(&other).unwrap();
    let before = std::fs::read(shop.path("v.tar")).unwrap();
    let error = pack(&inputs, &shop.path("v.tar"), &PackOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::NotReplaceable { path } if *path == other), "{error}");
    assert!(other.is_dir() && std::fs::read(shop.path("v.tar")).unwrap() == before);

    // A link stands for a device, too: a bundle never replaces it.
    let link = shop.path("link.tar");
    std::os::unix::fs::symlink(shop.path("v.tar"), &link).unwrap();
    let error = pack(&inputs, &link, &PackOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::NotReplaceable { path } if *path == link), "{error}");
    assert!(link.is_symlink() && std::fs::read(shop.path("v.tar")).unwrap() == before);
}

#[test]
fn stock_tar_and_sha256sum_read_a_bundle() {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let folder = shop.path("plain");
    std::fs::create_dir(&folder).unwrap();
    let listed = run(Command::new("tar").arg("tvf").arg(shop.path("a.tar")));
    assert!(listed.contains("-rwxr-xr-x 0/0") && listed.contains("models/tiny/model.safetensors"), "{listed}");
    let said = run(Command::new("tar").arg("xf").arg(shop.path("a.tar")).current_dir(&folder));
    assert_eq!(said, "", "not a word of warning");
    let said = run(Command::new("sha256sum").args(["--strict", "-c", "SHA256SUMS"]).current_dir(&folder));
    assert_eq!(said.matches(": OK").count(), shop.inputs().files.len() + 1);
}

#[test]
fn model_weights_are_page_aligned() {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let bundle = Bundle::open(&shop.path("a.tar")).unwrap();
    for file in &bundle.manifest().files {
        if file.path.starts_with("models/") && file.size > 0 {
            assert_eq!(bundle.file_offset(&file.path).unwrap() % 4096, 0, "{}", file.path);
        }
    }
}

#[test]
fn same_inputs_produce_the_same_bundle_bytes() {
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    let one = |name: &str, inputs: &Inputs, threads| {
        let drive = Drive { threads, ..Drive::default() };
        pack(inputs, &shop.path(name), &PackOptions { drive, ..PackOptions::default() }).unwrap();
        std::fs::read(shop.path(name)).unwrap()
    };
    let first = one("1.tar", &inputs, 1);
    inputs.files.reverse();
    inputs.items.reverse();
    assert!(first == one("2.tar", &inputs, 2));
    assert!(first == one("4.tar", &inputs, 4));
    assert!(first == one("4.tar", &inputs, 4), "over an existing file");
}

#[test]
fn same_inputs_signed_twice_differ_only_in_the_signature_block() {
    let shop = Workshop::new();
    let secret = shop.path("one.key");
    keygen(&secret, &shop.path("one.pub"), None).unwrap();
    let signed = |name: &str| {
        shop.pack(name, &shop.inputs());
        sign(&shop.path(name), &SecretKey::read(&secret, None).unwrap()).unwrap();
        let mut bytes = std::fs::read(shop.path(name)).unwrap();
        let header = bytes.windows(22).position(|window| window == b"manifest.json.minisig\0").unwrap();
        bytes[header + 512..header + 512 + 1024].fill(0);
        (bytes, Bundle::open(&shop.path(name)).unwrap().content_digest())
    };
    assert!(signed("1.tar") == signed("2.tar"));
}

#[test]
fn single_files_are_readable_from_a_bundle() {
    use std::io::{Read, Seek, SeekFrom};
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let bundle = std::sync::Arc::new(Bundle::open(&shop.path("a.tar")).unwrap());
    for input in shop.inputs().files {
        let expected = crate::made::bytes(&input);
        let mut reader = bundle.reader(&input.path).unwrap();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert!(all == expected);
        for at in [0, 1, expected.len() / 2, expected.len().saturating_sub(1)] {
            reader.seek(SeekFrom::Start(at as u64)).unwrap();
            let mut some = vec![0; 100.min(expected.len().saturating_sub(at))];
            reader.read_exact(&mut some).unwrap();
            assert_eq!(some, expected[at.min(expected.len())..][..some.len()]);
        }
    }
}

#[test]
fn input_changed_while_reading_is_named() {
    let shop = Workshop::new();
    let path = shop.path("in/big");
    std::fs::write(&path, noise(9, 24 << 20)).unwrap();
    let mut inputs = shop.inputs();
    inputs.files.push(Input { path: "packages/big".into(), executable: false, content: Content::File(path.clone()) });
    // The change comes when the file is begun.
    let progress = |event: Event<'_>| {
        if let Event::File { path: "packages/big" } = event {
            std::fs::OpenOptions::new()
                .append(true)
                .open(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"))
                .unwrap();
        }
    };
    let drive = Drive { progress: &progress, ..Drive::default() };
    let error = pack(&inputs, &shop.path("a.tar"), &PackOptions { drive, ..PackOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("in/big changed while it was read"), "{error}");
    assert!(!shop.path("a.tar").exists());
}

#[test]
fn unexpected_input_does_not_replace_a_good_bundle() {
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    let good = shop.pack("b.tar", &inputs);
    let before = std::fs::read(shop.path("b.tar")).unwrap();
    inputs.promised = good.manifest.files.iter().map(|file| (file.path.clone(), file.digest)).collect();
    shop.pack("b.tar", &inputs);

    let weights = shop.path("in").join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    for volume_size in [None, Some(1 << 20)] {
        let options = PackOptions { volume_size, ..PackOptions::default() };
        let error = textnlp_bundle::pack(&inputs, &shop.path("b.tar"), &options).unwrap_err();
        assert!(
            matches!(&error, Error::NotAsPromised { paths } if paths == &["models/tiny/model.safetensors"]),
            "{error}"
        );
        let left = std::fs::read_dir(shop.path("b.tar").parent().unwrap()).unwrap();
        let left: Vec<_> = left.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!left.iter().any(|name| name.contains("partial") || name.starts_with("b.tar.")), "{left:?}");
    }
    assert!(std::fs::read(shop.path("b.tar")).unwrap() == before);
}

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn signing_changes_only_the_signature_and_trust_is_external() {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let before = std::fs::read(shop.path("a.tar")).unwrap();
    let keys = |name: &str| (shop.path(&format!("{name}.key")), shop.path(&format!("{name}.pub")));
    let (secret, public) = keys("one");
    let key = keygen(&secret, &public, None).unwrap();
    let other = keygen(&keys("two").0, &keys("two").1, None).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(keygen(&secret, &public, None).is_err(), "a key is never replaced");

    sign(&shop.path("a.tar"), &SecretKey::read(&secret, None).unwrap()).unwrap();
    let after = std::fs::read(shop.path("a.tar")).unwrap();
    let changed: Vec<usize> = (0..after.len()).filter(|at| before[*at] != after[*at]).collect();
    assert!(changed.last().unwrap() - changed[0] < 1024);

    let mut bundle = Bundle::open(&shop.path("a.tar")).unwrap();
    assert_eq!(bundle.authenticity(&TrustSet::new([key.clone()])), Authenticity::Verified { key: key.id() });
    for trust in [TrustSet::default(), TrustSet::new([other])] {
        let Authenticity::Unverified { why } = bundle.authenticity(&trust) else { panic!() };
        assert!(why.contains(&key.id()), "{why}");
    }
    assert!(bundle.verify(&VerifyOptions::default()).unwrap().is_whole());
    stock_minisign(&shop, &key);
}

fn stock_minisign(shop: &Workshop, key: &PublicKey) {
    if Command::new("minisign").arg("-v").output().is_err() {
        assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "minisign is not installed");
        eprintln!("SKIPPED: minisign is not installed; its word on our signatures was not asked");
        return;
    }
    let folder = shop.path("signed");
    std::fs::create_dir(&folder).unwrap();
    run(Command::new("tar")
        .arg("xf")
        .arg(shop.path("a.tar"))
        .args(["manifest.json", "manifest.json.minisig"])
        .current_dir(&folder));
    let said =
        run(Command::new("minisign").args(["-Vm", "manifest.json", "-P", &key.to_base64()]).current_dir(&folder));
    assert!(said.contains("Signature and comment signature verified"), "{said}");
    let path = folder.join("manifest.json");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = Command::new("minisign")
        .args(["-Vm", "manifest.json", "-P", &key.to_base64()])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(!refused.status.success());
    // And the other way: a key that minisign made signs here.
    let (secret, public) = (shop.path("stock.key"), shop.path("stock.pub"));
    run(Command::new("minisign").args(["-G", "-W", "-s", secret.as_str(), "-p", public.as_str()]));
    let stock = PublicKey::read(&public).unwrap();
    assert_eq!(sign(&shop.path("a.tar"), &SecretKey::read(&secret, None).unwrap()).unwrap(), stock);
    run(Command::new("tar")
        .arg("xf")
        .arg(shop.path("a.tar"))
        .args(["manifest.json", "manifest.json.minisig"])
        .current_dir(&folder));
    run(Command::new("minisign").args(["-Vm", "manifest.json", "-p", public.as_str()]).current_dir(&folder));
    // A signature that does not cover SHA256SUMS, as the first bundles have it.
    let comments = [
        format!("textnlp bundle, key {}", stock.to_base64()),
        format!("signature of a textnlp bundle by key {}", stock.id()),
    ];
    run(Command::new("minisign")
        .args(["-S", "-s", secret.as_str(), "-m", "manifest.json", "-t", &comments[0], "-c", &comments[1]])
        .current_dir(&folder));
    let mut bytes = std::fs::read(shop.path("a.tar")).unwrap();
    let name = b"manifest.json.minisig";
    let block = bytes.windows(name.len()).position(|bytes| bytes == name).unwrap() + 512;
    let earlier = std::fs::read(folder.join("manifest.json.minisig")).unwrap();
    bytes[block..block + 1024].fill(b'\n');
    bytes[block..block + earlier.len()].copy_from_slice(&earlier);
    std::fs::write(shop.path("a.tar"), bytes).unwrap();
    assert_eq!(*Bundle::open(&shop.path("a.tar")).unwrap().signature(), Signature::Valid { key: stock });
}

#[test]
fn encrypted_key_needs_its_password_and_is_never_printed() {
    let shop = Workshop::new();
    let (secret, public) = (shop.path("e.key"), shop.path("e.pub"));
    let password = Password::new("correct horse".into());
    let key = keygen(&secret, &public, Some(&password)).unwrap();
    let opened = SecretKey::read(&secret, Some(&password)).unwrap();
    assert_eq!(opened.public().unwrap(), key);
    assert_eq!(format!("{opened:?} {password:?}"), "*** ***");
    assert!(SecretKey::read(&secret, None).unwrap_err().to_string().contains("password"));
    assert!(SecretKey::read(&secret, Some(&Password::new("wrong".into()))).is_err());
    let file = shop.path("password");
    std::fs::write(&file, "correct horse\n").unwrap();
    set_mode(&file, 0o644);
    let open = Password::resolve(&format!("secret:file:{file}")).unwrap_err().to_string();
    assert!(open.contains("too open") && open.contains(&format!("chmod 600 {file}")), "{open}");
    set_mode(&file, 0o600);
    let referred = Password::resolve(&format!("secret:file:{file}")).unwrap();
    assert!(SecretKey::read(&secret, Some(&referred)).is_ok());
    assert!(Password::resolve("correct horse").is_err());
    set_mode(&secret, 0o640);
    assert!(SecretKey::read(&secret, Some(&password)).unwrap_err().to_string().contains("too open"));
}

#[test]
fn site_contents_roll_back_and_old_ones_are_collected() {
    let shop = Workshop::new();
    let site = Site::new(&shop.path("site"));
    let mut names = Vec::new();
    for n in 0..3u8 {
        let mut inputs = shop.inputs();
        inputs.files.push(Input { path: "configs/n".into(), executable: false, content: Content::Bytes(vec![n]) });
        shop.pack("a.tar", &inputs);
        let unpacked = site.unpack(&mut Bundle::open(&shop.path("a.tar")).unwrap(), &unverified()).unwrap();
        if n > 0 {
            assert_eq!(unpacked.written, 1, "everything else is linked");
        }
        site.activate(&unpacked.name).unwrap();
        names.push(unpacked.name);
    }
    // What runs is the content before, until a rollback is finished: the same command must not lead there again.
    for _ in 0..3 {
        assert_eq!(site.rollback().unwrap(), names[1]);
        assert_eq!(std::fs::read(shop.path("site/current/configs/n")).unwrap(), [1]);
    }
    site.finish_rollback().unwrap();
    assert_eq!(site.rollback().unwrap(), names[2], "and forward again");
    // A content that the operator chose replaces an unfinished rollback.
    site.activate(&names[1]).unwrap();
    assert_eq!(site.rollback().unwrap(), names[2]);
    site.finish_rollback().unwrap();
    assert_eq!(site.gc().unwrap().removed, [names[0].clone()]);
    assert_eq!(site.contents().unwrap().len(), 2);
}

#[test]
fn files_altered_on_disk_are_repaired_from_the_bundle() {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let site = Site::new(&shop.path("site"));
    let open = || Bundle::open(&shop.path("a.tar")).unwrap();
    let first = site.unpack(&mut open(), &unverified()).unwrap();
    site.activate(&first.name).unwrap();
    let digest = tree_digest(&first.folder);
    // Bits that rot change neither time nor size.
    let victim = first.folder.join("models/tiny/model.safetensors");
    rot(&victim);
    assert!(site.unpack(&mut open(), &unverified()).unwrap().unchanged, "a shallow look does not see it");
    let mended = site.unpack(&mut open(), &UnpackOptions { deep: true, ..unverified() }).unwrap();
    assert!(!mended.unchanged);
    assert_eq!(mended.written, std::fs::metadata(&victim).unwrap().len());
    assert_eq!(tree_digest(&first.folder), digest);
    assert_eq!(site.current().unwrap(), Some(first.name));
}

fn set_mode(path: &Utf8Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

fn rot(path: &Utf8Path) {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let metadata = std::fs::metadata(path).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 1_000_000).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(metadata.modified().unwrap())).unwrap();
    std::fs::set_permissions(path, metadata.permissions()).unwrap();
}

#[test]
fn interrupted_unpack_resumes_and_rereads_pages_after_a_reboot() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    let open = || Bundle::open(&shop.path("a.tar")).unwrap();
    let expected = tree_digest(&Site::new(&shop.path("whole")).unpack(&mut open(), &unverified()).unwrap().folder);
    for restarted in [false, true] {
        let site = Site::new(&shop.path(&format!("site-{restarted}")));
        let stop = AtomicBool::new(false);
        let progress = |event: Event<'_>| {
            if matches!(event, Event::Bytes { done } if done > 2 << 20) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let drive = Drive { threads: 1, progress: &progress, stop: &stop };
        let error = site.unpack(&mut open(), &UnpackOptions { drive, ..unverified() }).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        let name = Site::name_of(&open().content_digest());
        if restarted {
            // A page that never reached the disk, under a note from before the restart.
            let note = site.root().join(format!(".incoming-{name}.json"));
            let text = std::fs::read_to_string(&note).unwrap();
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
            std::fs::write(&note, text.replace(boot.trim(), "another")).unwrap();
            rot(&site.root().join(format!(".incoming-{name}/bin/linux-amd64/textnlp-deploy")));
        }
        let unpacked = site.unpack(&mut open(), &unverified()).unwrap();
        assert!(unpacked.resumed > 0);
        assert_eq!(tree_digest(&unpacked.folder), expected);
    }
}

#[test]
fn insufficient_disk_space_is_reported_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    let needs = Needs { bytes: u64::MAX, inodes: 1, kept: 0 };
    let error = needs.check(&folder.join("not/there/yet")).unwrap_err();
    assert!(matches!(error, Error::Room { unit: "bytes", .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(Needs { bytes: 1, inodes: 1, kept: 0 }.check(folder).is_ok());
}
