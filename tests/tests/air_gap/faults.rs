//! What can be wrong with the file, the medium and the machine: each is named, and nothing of it is ever in use.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};
use textnlp_tests::small::Small;
use textnlp_tests::{program, promptly, said};

use crate::archive::{changed, member, members};
use crate::stage::{Goods, NAME, Stage, names};

const PROGRAM: &str =
    if cfg!(target_arch = "aarch64") { "bin/linux-arm64/textnlp-deploy" } else { "bin/linux-amd64/textnlp-deploy" };
const WEIGHTS: &str = "models/textnlp-tiny/model.safetensors";

/// What was done to it.
type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// A bundle that somebody or something changed; what must be said of it.
struct Broken {
    name: &'static str,
    change: Change,
    says: &'static [&'static str],
}

fn broken(bytes: &[u8]) -> Vec<Broken> {
    let at = |name: &str| member(bytes, name);
    let (manifest, program, weights) = (at("manifest.json"), at(PROGRAM), at(WEIGHTS));
    let (sums, block, config) = (at("SHA256SUMS"), at("manifest.json.minisig"), at("models/textnlp-tiny/config.json"));
    let end = bytes.len();
    let flip = |name: &'static str, at: usize, says: &'static [&'static str]| Broken {
        name,
        change: Box::new(move |copy: &mut Vec<u8>| copy[at] ^= 1),
        says,
    };
    let cut = |name: &'static str, length: usize, says: &'static [&'static str]| Broken {
        name,
        change: Box::new(move |copy: &mut Vec<u8>| copy.truncate(length)),
        says,
    };
    let listed = &bytes[manifest.data..manifest.data + manifest.size];
    let digit = listed.windows(7).position(|w| w == b"sha256:").expect("digests stand in the manifest");
    let digit = manifest.data + digit + 20;
    let mut all = vec![
        flip("a flipped bit in the manifest's digests", digit, &["manifest.json"]),
        flip("a flipped bit in the manifest's filling", manifest.data + manifest.size - 1, &["manifest.json"]),
        flip("a flipped bit in the signature", block.data + 80, &["manifest.json.minisig"]),
        flip("a flipped bit in the sums", sums.data + 100, &["SHA256SUMS"]),
        flip("a flipped bit in the program", program.data + program.size / 2, &[PROGRAM, "chunk"]),
        flip("a flipped bit in the first byte of the weights", weights.data, &[WEIGHTS, "chunk 0"]),
        flip("a flipped bit in the last byte of the weights", weights.data + weights.size - 1, &[WEIGHTS, "chunk"]),
        flip("a flipped bit in a header", program.data - 512 + 100, &[PROGRAM, "header"]),
        flip("a flipped bit in the filling after a file", config.data + config.size, &["config.json", "padding"]),
        flip("a flipped bit in the end", end - 1, &["the end of the archive"]),
        cut("one byte short", end - 1, &["ends at byte"]),
        cut("half of it", end / 2, &["ends at byte"]),
        cut("the manifest alone", manifest.data + manifest.size, &["ends at byte"]),
        cut("a piece of the manifest", manifest.data + 700, &["ends at byte"]),
        cut("nothing of it", 0, &["not a bundle"]),
        Broken {
            name: "a letter behind its end",
            change: Box::new(|copy| copy.extend(b"Dear Sir")),
            says: &["the end of the archive", "there are bytes after it"],
        },
        Broken {
            name: "compressed",
            change: Box::new(|copy| copy[..2].copy_from_slice(&[0x1f, 0x8b])),
            says: &["compressed"],
        },
        Broken {
            name: "a letter",
            change: Box::new(|copy| *copy = b"Dear Sir, ".repeat(100)),
            says: &["not a bundle"],
        },
    ];
    // What an attacker makes of a header: each with a checksum that is right.
    let forge = |name: &'static str, says: &'static [&'static str], edit: fn(&mut [u8])| Broken {
        name,
        change: Box::new(move |copy: &mut Vec<u8>| {
            let header = &mut copy[config.data - 512..config.data];
            edit(header);
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }),
        says,
    };
    all.extend([
        forge("a link", &["config.json", "a link"], |h| {
            h[156] = b'2';
            h[157..168].copy_from_slice(b"/etc/passwd");
        }),
        forge("a device", &["config.json", "a device"], |h| h[156] = b'3'),
        forge("an absolute name", &["config.json", "/etc/cron.d"], |h| {
            h[..100].fill(0);
            h[..13].copy_from_slice(b"/etc/cron.d/x");
        }),
        forge("a name that climbs", &["config.json", "../"], |h| {
            h[..100].fill(0);
            h[..9].copy_from_slice(b"../../out");
        }),
        forge("a second name", &["config.json", "install.sh"], |h| {
            h[..100].fill(0);
            h[..10].copy_from_slice(b"install.sh");
        }),
        forge("a sparse file", &["config.json", "sparse"], |h| h[156] = b'S'),
        forge("a size that lies", &["config.json", "another size"], |h| h[124..135].copy_from_slice(b"77777777777")),
        forge("a program with its owner's rights", &["config.json", "header"], |h| {
            h[100..107].copy_from_slice(b"0004755")
        }),
    ]);
    // A manifest that wants out: as long as the path that it takes the place of.
    let path = config.name.clone().into_bytes();
    let named =
        manifest.data + bytes[manifest.data..].windows(path.len()).position(|w| w == path).expect("it is listed");
    let lie = |name: &'static str, begin: &'static [u8]| {
        let mut liar = path.clone();
        liar[..begin.len()].copy_from_slice(begin);
        Broken {
            name,
            change: Box::new(move |copy: &mut Vec<u8>| copy[named..named + liar.len()].copy_from_slice(&liar)),
            says: &["manifest.json"],
        }
    };
    all.extend([
        lie("a manifest with a path that climbs", b"../../"),
        lie("a manifest with an absolute path", b"/etc/x/"),
        lie("a manifest with a path of its own", b"sudoers/"),
    ]);
    all
}

#[test]
fn bundle_changed_at_any_byte_is_refused() {
    let goods = Goods::get();
    let mut stage = Stage::new("changed");
    let bytes = std::fs::read(&goods.first).unwrap();
    assert!(members(&bytes).len() > 10);
    // Beside an empty root, one that has content: neither takes anything of it.
    stage.at_root("fresh");
    let (file, used) = (stage.made().join("changed.tar"), stage.sandbox.folder().join("used"));
    let install = |stage: &Stage, bundle: &str| {
        stage.install(bundle, &["--no-up", "--trust", &goods.public, "--downgrade", "--output", "json"])
    };
    stage.at_root("used");
    install(&stage, &goods.third).expect(0);
    let before = stage.digest();
    let first = stage.json(0, &["bundle", "inspect", &goods.first])["digest"].clone();
    for Broken { name, change, says } in broken(&bytes) {
        changed(&bytes, &file, |copy| change(copy));
        let verified = stage.run(&["bundle", "verify", "changed.tar", "--trust", &goods.public]);
        assert!([1, 2, 4].contains(&verified.exit), "{name}: {verified:?}");
        assert!(!verified.err.contains("panicked"), "{name}: {}", verified.err);
        eprintln!("{name}: exit {}: {}", verified.exit, verified.err.replace('\n', " | ").trim());
        names(&verified.err, says);
        names(&verified.err, &["error: ", "hint: "]);
        for root in ["fresh", "used"] {
            stage.at_root(root);
            let refused = install(&stage, "changed.tar");
            let document = refused.json();
            if root == "used" && refused.exit == 0 {
                // What a root has already is not read again: it lay in a part that was not needed, and what is in use is whole.
                eprintln!("  {name}: not needed where the same file is there already");
                assert_eq!(stage.digest().as_deref(), first.as_str(), "{name}");
                verified_by_sums(&stage);
                install(&stage, &goods.third).expect(0);
                continue;
            }
            assert!([1, 2, 4].contains(&refused.exit), "{name} into {root}: {document:#}");
            if document["error"]["code"] != "not_trusted" {
                names(&document["error"].to_string(), says);
            }
            assert!(document["error"]["hint"].is_string(), "{name}: what to do? {document:#}");
            match root {
                "fresh" => stage.is_untouched(name),
                _ => assert_eq!(stage.digest(), before, "{name}"),
            }
        }
    }
    // What was begun with broken bytes does no harm to the whole ones.
    stage.at_root("fresh");
    let whole = install(&stage, &goods.first).expect(0).json();
    let other = stage.json(0, &["bundle", "inspect", &goods.first]);
    assert_eq!(whole["digest"], other["digest"]);
    assert!(used.join("current").exists());
    verified_by_sums(&stage);
}

/// The installed files are those of the list in them, by somebody else's program.
fn verified_by_sums(stage: &Stage) {
    let record: Value = serde_json::from_slice(&std::fs::read(stage.root().join("installed.json")).unwrap()).unwrap();
    let list: String = record["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            format!(
                "{}  {}\n",
                f["digest"].as_str().unwrap().trim_start_matches("sha256:"),
                f["path"].as_str().unwrap()
            )
        })
        .collect();
    std::fs::write(stage.made().join("sums"), list).unwrap();
    let sums = stage.made().join("sums");
    let mut check = stage.other("sha256sum", &["-c", "--quiet", "--strict", sums.as_str()]);
    said(check.current_dir(stage.root().join("current")).output().unwrap()).expect(0);
}

#[test]
fn volumes_install_as_one_bundle_and_a_missing_one_is_named() {
    let goods = Goods::get();
    let stage = Stage::new("volumes");
    let create = ["bundle", "create", "--env", NAME, "--no-server-image", "--out", "part.tar", "--volume-size", "20MB"];
    let made = stage.json(0, &create);
    let volumes: Vec<_> = made["volumes"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect();
    assert!(volumes.len() >= 3 && volumes[0].ends_with("part.tar.001"), "{volumes:?}");
    for name in ["part.tar", "part.tar.001"] {
        let verified = stage.json(0, &["bundle", "verify", name]);
        assert_eq!(verified["digest"], made["digest"]);
    }
    // One after the other they are the bundle, by any tool.
    let line = format!("cat part.tar.0* | '{}' bundle install - --no-up --root '{}'", program(), stage.root());
    said(stage.other("sh", &["-c", &line]).output().unwrap()).expect(0);
    assert_eq!(stage.digest().as_deref(), made["digest"].as_str());

    let mut stage = stage;
    // As the printed command does, with nothing but a shell and tar.
    let extract = "cat part.tar.[0-9][0-9][0-9] | tar --no-same-owner --no-same-permissions -xf - install.sh bin";
    for name in ["part.tar.001", "part.tar"] {
        stage.at_root(&format!("extracted-{name}"));
        let line = format!("{extract} && sh install.sh {name} --no-up {}", stage.flags().join(" "));
        said(stage.other("sh", &["-c", &line]).output().unwrap()).expect(0);
        assert_eq!(stage.digest().as_deref(), made["digest"].as_str(), "{name}");
    }
    stage.at_root("fresh");
    let path = |n: usize| stage.made().join(&volumes[n]);
    let last = volumes.len() - 1;
    let away = stage.made().join("away");
    for (n, says) in [(1, "part.tar.002"), (last, volumes[last].as_str()), (0, "part.tar")] {
        std::fs::rename(path(n), &away).unwrap();
        let refused = stage.install("part.tar", &["--no-up"]);
        assert!([1, 2].contains(&refused.exit), "{refused:?}");
        names(&refused.err, &[says]);
        eprintln!("volume {} missing: exit {}: {}", n + 1, refused.exit, refused.err.replace('\n', " | "));
        std::fs::rename(&away, path(n)).unwrap();
        stage.is_untouched("a volume is missing");
    }
    // Two that changed their names.
    std::fs::rename(path(0), &away).unwrap();
    std::fs::rename(path(1), path(0)).unwrap();
    std::fs::rename(&away, path(1)).unwrap();
    let swapped = stage.install("part.tar", &["--no-up"]).expect(2);
    names(&swapped.err, &["not a bundle"]);
    stage.is_untouched("volumes are swapped");
    drop(goods);
}

#[test]
fn stream_installs_and_a_cut_stream_resumes() {
    let goods = Goods::get();
    let stage = Stage::new("stream");
    let bytes = std::fs::read(&goods.first).unwrap();
    let fed = |bytes: &[u8], more: &[&str]| {
        let args = stage.install_args("-", &[&["--trust", &goods.public, "--output", "json"], more].concat());
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut child =
            stage.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may stop listening before the end.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        said(child.wait_with_output().unwrap())
    };
    let cut = fed(&bytes[..bytes.len() * 3 / 4], &[]).expect(1).json();
    names(&cut["error"].to_string(), &["ends at byte", "copy"]);
    assert_eq!(stage.current(), None);
    assert!(stage.sandbox.processes().is_empty());
    let whole = fed(&bytes, &[]).expect(0).json();
    assert!(whole["resumed_bytes"].as_u64().unwrap() > 1_000_000, "{whole:#}");
    assert_eq!((&whole["gate"]["state"], &whole["authenticity"]["authenticity"]), (&json!("open"), &json!("verified")));
    stage.is_well();
    let again = fed(&bytes, &[]).expect(0).json();
    assert_eq!((&again["unchanged"], &again["plan"]["unchanged"]), (&json!(true), &whole["plan"]["create"]));
    let mut broken = bytes.clone();
    let at = member(&bytes, PROGRAM).data + 1000;
    broken[at] ^= 1;
    let before = stage.digest();
    // What is there already need not be read: content that differs is never taken, whichever it is.
    let said = fed(&broken, &["--no-up"]);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    assert_eq!(stage.digest(), before);
    stage.is_well();
    stage.down();
}

/// A program for a machine that this is not: the same one with another word in its header.
fn other_machine(stage: &Stage) -> (String, &'static str) {
    let (word, platform) = if cfg!(target_arch = "aarch64") { (62u16, "linux/amd64") } else { (183, "linux/arm64") };
    let mut bytes = std::fs::read(program()).unwrap();
    bytes[18..20].copy_from_slice(&word.to_le_bytes());
    let path = stage.made().join("other-machine");
    std::fs::write(&path, bytes).unwrap();
    (path.to_string(), platform)
}

#[test]
fn install_preflight_reports_all_problems_at_once() {
    let stage = Stage::new("preflight");
    let (other, platform) = other_machine(&stage);
    let mut create =
        stage.command(&["bundle", "create", "--env", NAME, "--no-server-image", "--out", "b.tar", "--program", &other]);
    said(create.env("SOURCE_DATE_EPOCH", "4102444800").output().unwrap()).expect(0);
    let taken = std::net::TcpListener::bind(("127.0.0.1", stage.sandbox.port)).unwrap();
    let refused = stage.install("b.tar", &["--output", "json"]).expect(1).json();
    let problems = refused["problems"].as_array().unwrap();
    let text = refused.to_string();
    names(
        &text,
        &[
            platform,
            "--program",
            "clock",
            "before the bundle was created",
            &format!("{}", stage.sandbox.port),
            "is taken by",
        ],
    );
    assert!(problems.len() >= 3, "{refused:#}");
    stage.is_untouched("preflight");
    drop(taken);
    // Asked alone it changes nothing either way.
    let goods = Goods::get();
    stage.install(&goods.first, &["--preflight"]).expect(0);
    stage.is_untouched("only looked");
}

#[test]
fn install_needs_an_environment_when_a_bundle_has_several() {
    let stage = Stage::new("several");
    let create = ["bundle", "create", "--no-server-image", "--out"];
    stage.run(&[&create[..], &["two.tar", "--env", NAME, "--with-env", "development"]].concat()).expect(0);
    let which = stage.install("two.tar", &["--output", "json"]).expect(2).json();
    assert_eq!(which["error"]["code"], "which_environment");
    names(&which["error"].to_string(), &[NAME, "development", "--env"]);
    let unknown = stage.install("two.tar", &["--env", "iland", "--output", "json"]).expect(2).json();
    assert_eq!(unknown["error"]["code"], "no_such_environment");
    names(&unknown["error"].to_string(), &["iland", NAME, "development"]);
    stage.is_untouched("which environment");
    stage.install("two.tar", &["--env", "development", "--no-up"]).expect(0);
    // A second one of the same file beside it.
    stage.install("two.tar", &["--env", NAME]).expect(0);
    stage.is_well();
    stage.down();
    let mistyped = stage.run(&["bundle", "install", "--env", NAME, "no-such.tar", "--root", stage.root().as_str()]);
    assert!([1, 2].contains(&mistyped.exit), "{mistyped:?}");
    names(&mistyped.err, &["no-such.tar"]);
}

#[test]
fn concurrent_install_is_refused() {
    let goods = Goods::get();
    let stage = Stage::new("both");
    let bytes = std::fs::read(&goods.first).unwrap();
    let args = stage.install_args("-", &["--no-up"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut first =
        stage.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = first.stdin.take().unwrap();
    // It waits for the rest, with the site's lock in its hand.
    input.write_all(&bytes[..bytes.len() / 2]).unwrap();
    promptly("it is at work", || {
        stage
            .root()
            .read_dir()
            .unwrap()
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with(".incoming-"))
            .then_some(())
    });
    let second = stage.install(&goods.first, &["--output", "json"]).expect(4).json();
    assert_eq!(second["error"]["code"], "locked", "{second:#}");
    names(&second["error"].to_string(), &[stage.root().as_str()]);
    assert!(second["error"]["hint"].is_string());
    input.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(input);
    said(first.wait_with_output().unwrap()).expect(0);
    stage.install(&goods.first, &["--no-up"]).expect(0);
}

#[test]
fn root_of_which_the_state_belongs_to_the_environments_user_passes_the_preflight() {
    let goods = Goods::get();
    let stage = Stage::new("user");
    let state = stage.root().join(".textnlp");
    std::fs::create_dir_all(&state).unwrap();
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("nobody:")).unwrap();
    let uid = line.split(':').nth(2).and_then(|uid| uid.parse().ok());
    if std::os::unix::fs::chown(&state, uid, None).is_err() {
        println!("only root can prepare the state of another user");
        return;
    }
    let as_user = stage.install(&goods.first, &["--preflight", "--set", "prerequisites.user=nobody"]).expect(0);
    names(&as_user.out, &["preflight passed"]);
    let as_root = stage.install(&goods.first, &["--preflight", "--output", "json"]).expect(4).json();
    assert_eq!(as_root["error"]["code"], "other_owner", "{as_root:#}");
}

#[test]
fn installer_runs_no_program_that_other_users_can_replace() {
    use std::os::unix::fs::PermissionsExt;
    let goods = Goods::get();
    let stage = Stage::new("stranger");
    let program = stage.root().join("bin/textnlp-deploy");
    std::fs::create_dir_all(stage.root().join("bin")).unwrap();
    std::fs::write(&program, "#!/bin/sh\necho \"it ran\"\n").unwrap();
    let set_mode = |path: &camino::Utf8Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(&program, 0o755);
    let install = |mode| {
        set_mode(stage.root(), mode);
        let line = "tar -xf \"$1\" install.sh && exec sh install.sh \"$1\" --root \"$2\"";
        let mut command = stage.other("sh", &["-c", line, "sh", &goods.first, stage.root().as_str()]);
        said(command.output().unwrap())
    };
    names(&install(0o755).expect(0).out, &["it ran"]);
    let refused = install(0o777).expect(2);
    assert!(!refused.out.contains("it ran"), "{}", refused.out);
    names(&refused.err, &["other users can replace the program in", "hint: use a folder"]);
}

#[test]
fn missing_space_inodes_and_permissions_are_found_before_writing() {
    let goods = Goods::get();
    let stage = Stage::new("room");
    let in_file =
        stage.run(&["bundle", "install", &goods.first, "--no-up", "--root", &format!("{}/below", goods.first)]);
    names(&in_file.expect(2).err, &["needs a folder", "one.tar is a file"]);
    let Some(small) = Small::mount(stage.sandbox.folder().join("small"), "size=20m") else { return };
    let root = format!("{}/site", small.place());
    let ports = [
        format!("server.api.port={}", stage.sandbox.port),
        format!("server.monitoring.metrics_port={}", stage.sandbox.metrics_port),
    ];
    let given = [
        "--no-up",
        "--trust",
        goods.public.as_str(),
        "--root",
        root.as_str(),
        "--set",
        ports[0].as_str(),
        "--set",
        ports[1].as_str(),
    ];
    let flags = [&given[..], Stage::user()].concat();
    let install = || stage.run(&[&["bundle", "install", &goods.first], &flags[..]].concat());
    let full = install().expect(1);
    names(
        &full.err,
        &[small.place().as_str(), "bytes free", "are needed: programs ", "data and logs ", "hint: free some bytes"],
    );
    small.remount("size=900m,nr_inodes=8");
    assert!(!full.err.contains("--state-dir"), "the flag of an install is --root: {}", full.err);
    let inodes = install().expect(1);
    names(&inodes.err, &["inodes free", "hint: free some inodes"]);
    small.remount("ro,nr_inodes=10000");
    let reading = install().expect(1);
    names(&reading.err, &["--root", "is not writable", "Read-only"]);
    small.remount("rw");
    install().expect(0);

    // Room that goes away while it writes: said, and gone on with when it is back.
    std::fs::remove_dir_all(&root).unwrap();
    let mut child = stage
        .command(&[&["bundle", "install", "-"], &flags[..]].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::fs::read(&goods.first).unwrap();
    let mut input = child.stdin.take().unwrap();
    let manifest = member(&bytes, PROGRAM).data + (4 << 20);
    input.write_all(&bytes[..manifest]).unwrap();
    let incoming =
        || std::fs::read_dir(&root).ok()?.flatten().find(|e| e.file_name().to_string_lossy().starts_with(".incoming-"));
    promptly("it is at work", incoming);
    small.remount("size=30m");
    let _ = input.write_all(&bytes[manifest..]);
    drop(input);
    let full = said(child.wait_with_output().unwrap()).expect(1);
    names(&full.err, &["No space left", "hint: free some space"]);
    assert!(std::fs::symlink_metadata(format!("{root}/current")).is_err());
    small.remount("size=900m");
    install().expect(0);
}
