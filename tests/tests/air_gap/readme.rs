//! The commands of the README, as they stand there, on a machine of any size and with no network behind the gap.

use textnlp_tests::said;

use crate::stage::{Stage, advisories, lacking, names, tool};

/// The block of the README that creates a bundle: the commands on this side of the gap, and those behind it.
pub(crate) fn commands() -> (String, String) {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```").skip(1).step_by(2).collect();
    let block =
        blocks.iter().find(|block| block.contains("textnlp-deploy bundle create ")).expect("it creates a bundle");
    let (before, behind) = block.split_once("There, with no network:\n").expect("it is installed on another machine");
    let before: Vec<&str> = before.lines().skip(1).collect();
    (before.join("\n"), behind.to_owned())
}

#[test]
fn readme_commands_end_with_an_open_gate() {
    let ip = tool("ip");
    let stage = Stage::new("readme");
    let alone = || stage.other("unshare", &["-n", "true"]).output().is_ok_and(|o| o.status.success());
    if !ip || !alone() && !lacking("the right to have a network of one's own") {
        return;
    }
    let (before, behind) = commands();
    // The repository cannot be cloned here; a copy lies where `bundle create` looks for one.
    let known = stage.sandbox.folder().join("home/.cargo/advisory-db");
    advisories(&stage, known.as_str(), "a-crate-that-nobody-has", "");
    let bin = stage.sandbox.folder().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(textnlp_tests::program(), bin.join("textnlp-deploy")).unwrap();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let made = said(stage.other("sh", &["-euc", &before]).env("PATH", &path).output().unwrap()).expect(0);
    assert!(!made.err.contains("needs backups"), "{}", made.err);

    // The file and the public key cross the gap. Ports are those of the environment: the network there is the story's own.
    let there = stage.sandbox.folder().join("there");
    std::fs::create_dir(&there).unwrap();
    for entry in stage.made().read_dir_utf8().unwrap().flatten() {
        let name = entry.file_name();
        if name.ends_with(".tar") || name.ends_with(".pub") {
            std::fs::rename(entry.path(), there.join(name)).unwrap();
        }
    }
    let script = format!(
        "ip link set lo up\n{behind}\ncd \"$TEXTNLP_ROOT\"\n\
         bin/textnlp-deploy generate 'Once upon a time' --env air-gapped --max-tokens 4 --no-stream >&2\n\
         bin/textnlp-deploy down --env air-gapped --yes --delete-data air-gapped >&2\n"
    );
    let mut shell = stage.other("unshare", &["-n", "sh", "-euc", &script]);
    shell.current_dir(&there).env("TEXTNLP_ROOT", stage.root());
    if let [_, user] = Stage::user() {
        shell.env("TEXTNLP_USER", user);
    }
    let done = said(shell.output().unwrap()).expect(0);
    names(&done.out, &["The air-gapped gate is open", "✓ known vulnerabilities", "1 advisories", "state      "]);
    if std::thread::available_parallelism().unwrap().get() < 16 {
        names(&done.err, &["warning: ", "the minimum for production is 16"]);
    }
    assert!(stage.sandbox.processes().is_empty(), "{:?}", stage.sandbox.processes());
}
