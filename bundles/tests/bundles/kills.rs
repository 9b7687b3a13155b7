//! Creating, unpacking and applying, killed again and again: the end is always the same, and little is done twice.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::made::{Workshop, noise, tree_digest};
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::*;

/// What a killed run had read and the next one reads again, at most.
const MOST_AGAIN: u64 = 8 << 20;
/// Manifest, headers and journal are read by every run.
const HEADS: u64 = 256 << 10;

fn kills() -> usize {
    std::env::var("TEXTNLP_TESTS_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

fn inputs(root: &Utf8Path) -> Inputs {
    let file = |path: &str, name: &str| Input {
        path: path.into(),
        executable: false,
        content: Content::File(root.join(name)),
    };
    let mut files = vec![file("models/m/model.safetensors", "model.safetensors"), file("images/layer", "layer")];
    files.extend((0..50).map(|n| Input {
        path: format!("packages/p{n:02}"),
        executable: n % 2 == 0,
        content: Content::Bytes(noise(n + 1000, 30_000)),
    }));
    let mut inputs = Inputs { version: "1".into(), epoch: 1, files, ..Inputs::default() };
    if let Ok(text) = std::fs::read(root.join("recorded.json")) {
        let model: manifest::File = serde_json::from_slice(&text).unwrap();
        inputs.promised.insert(model.path.clone(), model.digest);
        inputs.recorded.insert(model.path, model.chunks);
    }
    inputs
}

/// Writes down what is known of the model, for the next runs.
fn record(root: &Utf8Path, packed: &Packed) {
    let model = packed.manifest.files.iter().find(|file| file.path.starts_with("models/")).unwrap();
    std::fs::write(root.join("recorded.json"), serde_json::to_vec(model).unwrap()).unwrap();
}

/// Not a test of its own: what the other tests start and kill. It writes one line for each event to the standard error.
#[test]
fn killed_process_entry_point() {
    let (Ok(work), Ok(root)) = (std::env::var("TEXTNLP_KILLED"), std::env::var("TEXTNLP_KILLED_ROOT")) else { return };
    let root = Utf8PathBuf::from(root);
    let progress = |event: Event<'_>| {
        let line = match event {
            Event::Bytes { done } => format!("done {done}\n"),
            Event::Resume { bytes } => format!("resume {bytes}\n"),
            _ => return,
        };
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    };
    let drive = Drive { progress: &progress, ..Drive::default() };
    let options = UnpackOptions { authenticity: Authenticity::Unverified { why: "test".into() }, deep: false, drive };
    match work.as_str() {
        "create" => {
            drop(pack(&inputs(&root), &root.join("out.tar"), &PackOptions { drive, ..PackOptions::default() }).unwrap())
        }
        "volumes" => {
            let options = PackOptions { drive, volume_size: Some(10 << 20) };
            drop(pack(&inputs(&root), &root.join("out.tar"), &options).unwrap());
        }
        "delta" => {
            let target = Bundle::open(&root.join("whole.tar")).unwrap();
            drop(make_delta(None, &Target::Bundle(&target), &Scope::Everything, &root.join("out.tar"), &drive).unwrap())
        }
        "unpack" => {
            drop(
                Site::new(&root.join("site"))
                    .unpack(&mut Bundle::open(&root.join("whole.tar")).unwrap(), &options)
                    .unwrap(),
            );
        }
        "stream" => {
            let mut bundle = Bundle::from_stream(std::fs::File::open(root.join("whole.tar")).unwrap()).unwrap();
            drop(Site::new(&root.join("site")).unpack(&mut bundle, &options).unwrap());
        }
        other => panic!("{other}"),
    }
}

/// How a run of the work ended.
struct Run {
    /// Whether it came to its end.
    ended: bool,
    /// Bytes that an earlier run had done.
    resumed: u64,
    /// Bytes that it read from files, as the system counts them.
    read: u64,
}

/// Runs the work; kills it after some lines.
fn run(work: &str, root: &Utf8Path, lines: usize) -> Run {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["kills::killed_process_entry_point", "--exact", "--nocapture", "--test-threads=1"])
        .env("TEXTNLP_KILLED", work)
        .env("TEXTNLP_KILLED_ROOT", root)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut resumed, mut ended) = (0, true);
    for (n, line) in BufReader::new(child.stderr.take().unwrap()).lines().enumerate() {
        let line = line.unwrap();
        match line.split_once(' ') {
            Some(("done", _)) => {}
            Some(("resume", bytes)) => resumed = bytes.parse().unwrap(),
            _ => panic!("{line}"),
        }
        if n + 1 == lines {
            child.kill().unwrap();
            ended = false;
        }
    }
    // It is dead and not yet buried.
    let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    let status = child.wait().unwrap();
    Run { ended: ended && status.success(), resumed, read }
}

/// The same in another environment: a shell sets the umask.
fn run_elsewhere(work: &str, root: &Utf8Path) {
    let script = "umask 077; exec \"$0\" kills::killed_process_entry_point --exact --nocapture --test-threads=1";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("TEXTNLP_KILLED", work)
        .env("TEXTNLP_KILLED_ROOT", root)
        .envs([("TZ", "Asia/Tokyo"), ("LC_ALL", "tr_TR.UTF-8")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bundle_does_not_depend_on_time_zone_umask_or_inode_order() {
    let shop = Workshop::new();
    let (one, two) = (shop.path("in"), shop.path("two"));
    std::fs::create_dir(&two).unwrap();
    let make = |root: &Utf8Path, names: [&str; 2]| {
        for name in names {
            let bytes = if name == "layer" { noise(5, 3 << 20) } else { crate::made::safetensors(&[(1, 5 << 20)]) };
            std::fs::write(root.join(name), bytes).unwrap();
        }
    };
    make(&one, ["model.safetensors", "layer"]);
    make(&two, ["layer", "model.safetensors"]);
    assert!(run("create", &one, usize::MAX).ended);
    run_elsewhere("create", &two);
    assert_eq!(file_digest(&one.join("out.tar")), file_digest(&two.join("out.tar")));
    for root in [&one, &two] {
        std::fs::rename(root.join("out.tar"), root.join("whole.tar")).unwrap();
    }
    assert!(run("unpack", &one, usize::MAX).ended);
    run_elsewhere("unpack", &two);
    assert_eq!(installed(&one), installed(&two));
}

/// Kills at random places until the work was killed often enough; then lets it end, and asks for the result.
fn check(work: &str, recorded: bool, result: impl Fn(&Utf8Path) -> String, reset: impl Fn(&Utf8Path)) {
    let shop = Workshop::new();
    let root = shop.path("in");
    std::fs::write(root.join("model.safetensors"), crate::made::safetensors(&[(1, 9 << 20), (2, 300), (3, 14 << 20)]))
        .unwrap();
    std::fs::write(root.join("layer"), noise(5, 9 << 20)).unwrap();
    let packed = pack(&inputs(&root), &root.join("whole.tar"), &PackOptions::default()).unwrap();
    if recorded {
        record(&root, &packed);
    }
    assert!(run(work, &root, usize::MAX).ended);
    let expected = result(&root);
    reset(&root);

    let mut random = noise(99, 1 << 16).into_iter();
    let (mut killed, mut before) = (0, 0);
    while killed < kills() {
        let now = run(work, &root, 1 + usize::from(random.next().unwrap()) % 4);
        let again = u64::saturating_sub(before, now.resumed);
        assert!(again <= MOST_AGAIN + HEADS, "{again} bytes are read again: {before} were, {} are kept", now.resumed);
        if now.ended {
            assert_eq!(result(&root), expected);
            reset(&root);
            before = 0;
        } else {
            before = match work {
                // All was done already, and the next run has its own.
                _ if named(&root) => 0,
                // A stream comes from its beginning again: what was done is passed over, not looked at.
                "stream" => now.read,
                _ => now.resumed + now.read,
            };
            killed += 1;
        }
    }
    assert!(run(work, &root, usize::MAX).ended);
    assert_eq!(result(&root), expected);
}

/// Whether what was made has its name.
fn named(root: &Utf8Path) -> bool {
    let site = Site::new(&root.join("site"));
    ["out.tar", "out.tar.001"].iter().any(|name| root.join(name).exists()) || !site.contents().unwrap().is_empty()
}

fn file_digest(path: &Utf8Path) -> String {
    textnlp_models::Digest::of(&std::fs::read(path).unwrap()).to_string()
}

#[test]
fn killed_create_resumes_and_produces_the_same_bytes() {
    let result = |root: &Utf8Path| {
        assert!(!root.join("out.tar.partial").exists() && !root.join("out.tar.partial.journal").exists());
        assert_eq!(file_digest(&root.join("out.tar")), file_digest(&root.join("whole.tar")));
        file_digest(&root.join("out.tar"))
    };
    for recorded in [false, true] {
        check("create", recorded, result, |root| std::fs::remove_file(root.join("out.tar")).unwrap());
    }
}

#[test]
fn killed_volume_create_resumes_and_produces_the_same_bytes() {
    let result = |root: &Utf8Path| {
        let volumes = (1..=4).map(|n| std::fs::read(root.join(format!("out.tar.{n:03}"))).unwrap());
        textnlp_models::Digest::of(&volumes.collect::<Vec<_>>().concat()).to_string()
    };
    check("volumes", false, result, |root| {
        (1..=4).for_each(|n| std::fs::remove_file(root.join(format!("out.tar.{n:03}"))).unwrap())
    });
}

#[test]
fn killed_delta_resumes_and_produces_the_same_bytes() {
    let result = |root: &Utf8Path| {
        assert!(!root.join("out.tar.partial").exists() && !root.join("out.tar.partial.journal").exists());
        file_digest(&root.join("out.tar"))
    };
    check("delta", false, result, |root| std::fs::remove_file(root.join("out.tar")).unwrap());
}

fn installed(root: &Utf8Path) -> String {
    let site = Site::new(&root.join("site"));
    let names = site.contents().unwrap();
    assert_eq!(names.len(), 1);
    tree_digest(&site.folder(&names[0]))
}

#[test]
fn killed_unpack_resumes_and_produces_the_same_tree() {
    check("unpack", false, installed, |root| std::fs::remove_dir_all(root.join("site")).unwrap());
}

#[test]
fn killed_stream_unpack_resumes_and_produces_the_same_tree() {
    check("stream", false, installed, |root| std::fs::remove_dir_all(root.join("site")).unwrap());
}
