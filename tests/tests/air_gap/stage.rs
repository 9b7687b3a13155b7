//! Where these stories play: a folder where bundles are made, a root where they are installed, and the bundles that several share.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_tests::{Said, Sandbox, eventually, http, program, said};

/// The environment of most stories: plain HTTP, so that the plainest of clients can count answers, with keys, and data that is kept.
pub(crate) const NAME: &str = "island";
const ISLAND: &str = "extends: development\nenvironment: island\ndescription: An island without a cable\ndata: protected\n\
                      server:\n  security: { api_keys_enabled: true, rate_limit: 1000000/hour }\n";

/// A folder to make bundles in, and a root to install them in.
pub(crate) struct Stage {
    pub(crate) sandbox: Sandbox,
    root: Utf8PathBuf,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Stage {
        let sandbox = Sandbox::new(name);
        for folder in ["made/environments", "home", "site"] {
            std::fs::create_dir_all(sandbox.folder().join(folder)).unwrap();
        }
        std::fs::write(sandbox.folder().join("made/environments/island.yaml"), ISLAND).unwrap();
        let root = sandbox.folder().join("site");
        Stage { sandbox, root }
    }

    /// The folder where bundles are made; commands run here.
    pub(crate) fn made(&self) -> Utf8PathBuf {
        self.sandbox.folder().join("made")
    }

    /// Where bundles are installed.
    pub(crate) fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// Takes another root from here on.
    pub(crate) fn at_root(&mut self, name: &str) {
        self.root = self.sandbox.folder().join(name);
        std::fs::create_dir_all(&self.root).unwrap();
    }

    /// Prepares a run of any program; nothing of the caller's environment leaks in.
    pub(crate) fn other(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(name);
        command
            .args(args)
            .current_dir(self.made())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.sandbox.folder().join("home"))
            // Stories talk to no other machine; nothing listens here.
            .env("TEXTNLP_ADVISORIES_URL", "http://127.0.0.1:1/advisory-db.git")
            .stdin(Stdio::null());
        command
    }

    /// Prepares a run of the program, as a person types it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.other(program().as_str(), args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().expect("start the program"))
    }

    /// Runs with `--output json` and gives the document; the status is this one.
    #[track_caller]
    pub(crate) fn json(&self, exit: i32, args: &[&str]) -> Value {
        let said = self.run(&[args, &["--output", "json"]].concat());
        assert_eq!(said.exit, exit, "{args:?}\n--- stdout\n{}\n--- stderr\n{}", said.out, said.err);
        said.json()
    }

    /// Runs the program of the installed site, where it is installed.
    pub(crate) fn there(&self, args: &[&str]) -> Said {
        let mut command = self.other(self.root.join("bin/textnlp-deploy").as_str(), args);
        said(command.current_dir(&self.root).output().expect("start the installed program"))
    }

    /// The flags that make an install fit for this machine: ports that are free, and a gate that is over in seconds.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--root".to_owned(), self.root.to_string(), "--yes".to_owned()];
        for set in [
            format!("server.api.port={}", self.sandbox.port),
            "server.api.host=127.0.0.1".to_owned(),
            format!("server.monitoring.metrics_port={}", self.sandbox.metrics_port),
            "prerequisites.allow_below_minimum=true".to_owned(),
            "gates.users=3".to_owned(),
            "gates.hold=1s".to_owned(),
            "gates.p95_ms=60000".to_owned(),
            // The recorded advisories are as old as the checkout.
            "gates.advisories=warn".to_owned(),
        ] {
            flags.extend(["--set".to_owned(), set]);
        }
        flags
    }

    /// `bundle install BUNDLE`, with the flags of this machine and more.
    pub(crate) fn install_args(&self, bundle: &str, more: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = ["bundle", "install", bundle].map(str::to_owned).into();
        args.extend(self.flags());
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    pub(crate) fn install(&self, bundle: impl AsRef<str>, more: &[&str]) -> Said {
        let args = self.install_args(bundle.as_ref(), more);
        self.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `bundle update apply BUNDLES…`.
    pub(crate) fn update(&self, bundles: &[&str], more: &[&str]) -> Said {
        self.run(&[&["bundle", "update", "apply"], bundles, &["--root", self.root.as_str(), "--yes"], more].concat())
    }

    /// The content that is in use: a folder's name.
    pub(crate) fn current(&self) -> Option<String> {
        let link = std::fs::read_link(self.root.join("current")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// The digest of the content that is in use.
    pub(crate) fn digest(&self) -> Option<String> {
        let record = std::fs::read(self.root.join("installed.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).expect("a record is JSON");
        Some(record["content"].as_str().expect("it names its content").to_owned())
    }

    /// The first API key of the installed environment.
    pub(crate) fn key(&self, environment: &str) -> String {
        let folder = self.root.join(".textnlp").join(environment).join("secrets/here.api-key");
        let mut versions: Vec<_> = folder.read_dir_utf8().expect("list the key's versions").flatten().collect();
        versions.sort_by_key(|entry| entry.file_name().to_owned());
        std::fs::read_to_string(versions.last().expect("a key is there").path()).unwrap().trim().to_owned()
    }

    /// One question, answered.
    pub(crate) fn ask(&self, key: &str) -> std::io::Result<http::Answer> {
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 4, "seed": 1 }).to_string();
        http::ask(self.sandbox.port, "POST", "/v1/generate", &[("X-API-Key", key)], body.as_bytes())
    }

    /// The island is in use, as it should be, and answers.
    #[track_caller]
    pub(crate) fn is_well(&self) {
        let status = self.there(&["status", "--env", NAME, "-o", "json"]);
        assert_eq!(status.exit, 0, "{}\n{}", status.out, status.err);
        let status = status.json();
        assert!(status["ready"] == true && status["drift"] == json!([]), "{status:#}");
        let answer = self.ask(&self.key(NAME)).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Takes the island down with its data; nothing runs then.
    #[track_caller]
    pub(crate) fn down(&self) {
        self.there(&["down", "--env", NAME, "--yes", "--delete-data", NAME]).expect(0);
        assert!(self.sandbox.processes().is_empty(), "{:?}", self.sandbox.processes());
    }

    /// Nothing is in use here and nothing runs: an install that was refused.
    #[track_caller]
    pub(crate) fn is_untouched(&self, story: &str) {
        assert_eq!(self.current(), None, "{story}: something is in use");
        for name in ["installed.json", "bin", "environments", ".textnlp"] {
            assert!(!self.root.join(name).exists(), "{story}: it left {name}");
        }
        assert!(self.sandbox.processes().is_empty(), "{story}: {:?}", self.sandbox.processes());
    }
}

/// Bundles that several stories read, and the steps between them: the first, the second with another model and setting, the third with
/// another program besides.
pub(crate) struct Goods {
    stage: Stage,
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) third: String,
    pub(crate) public: String,
    pub(crate) secret: String,
}

impl Goods {
    /// Made once while any story has it; gone with the last.
    pub(crate) fn get() -> Arc<Goods> {
        static SHARED: Mutex<Weak<Goods>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Goods::make());
            *shared = Arc::downgrade(&made);
            made
        })
    }

    /// The stage on which they were made.
    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    fn make() -> Goods {
        let stage = Stage::new("goods");
        let path = |name: &str| stage.made().join(name).to_string();
        let [first, second, third, public, secret] =
            ["one.tar", "two.tar", "three.tar", "maker.pub", "maker.key"].map(path);
        stage.run(&["bundle", "keygen", "--out", "maker"]).expect(0);
        let create = ["bundle", "create", "--env", NAME, "--no-server-image", "--sign-key", &secret, "--out"];
        stage.run(&[&create[..], &[&first, "--version", "1.0.0"]].concat()).expect(0);
        let model = format!("models[0].source=file:{}", other_model(&stage, &first));
        let changes = ["--set", &model, "--set", "server.api.max_tokens=777"];
        stage.run(&[&create[..], &[&second, "--version", "2.0.0"], &changes].concat()).expect(0);
        let other = other_program(&stage);
        let program = ["--program", other.as_str()];
        stage.run(&[&create[..], &[&third, "--version", "3.0.0"], &changes, &program].concat()).expect(0);
        Goods { stage, first, second, third, public, secret }
    }

    /// The step from one bundle to another, or a part of it, signed.
    pub(crate) fn step(&self, to: &Stage, from: &str, target: &str, only: &[&str]) -> String {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().trim_end_matches(".tar").to_owned();
        let out = to.made().join(format!("{}-{}-{}.tar", name(from), name(target), only.concat().replace('/', "-")));
        let mut args = vec!["bundle", "update", "create", "--from", from, "--to", target, "--out", out.as_str()];
        only.iter().for_each(|item| args.extend(["--only", item]));
        args.extend(["--sign-key", &self.secret]);
        to.run(&args).expect(0);
        out.to_string()
    }
}

/// A folder of advisories as RustSec publishes them, with one of this month against every version of a crate.
pub(crate) fn advisories(stage: &Stage, name: &str, krate: &str, cvss: &str) -> String {
    advisories_of(stage, name, krate, cvss, &textnlp_tests::today())
}

/// The same of another day.
pub(crate) fn advisories_of(stage: &Stage, name: &str, krate: &str, cvss: &str, date: &str) -> String {
    textnlp_tests::advisories(&stage.made().join(name), krate, cvss, date)
}

/// The program with bytes behind its end: another program by digest that does the same.
pub(crate) fn other_program(stage: &Stage) -> Utf8PathBuf {
    let path = stage.made().join("other-program");
    let mut bytes = std::fs::read(program()).unwrap();
    bytes.extend_from_slice(b"another one");
    std::fs::write(&path, bytes).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    path
}

/// The model of a bundle with a few weights that are a little different.
pub(crate) fn other_model(stage: &Stage, bundle: &str) -> Utf8PathBuf {
    let folder = stage.made().join("other-model");
    std::fs::create_dir_all(&folder).unwrap();
    let tar = stage.other("tar", &["-xf", bundle, "-C", folder.as_str(), "models"]).output().unwrap();
    said(tar).expect(0);
    let model = folder.join("models/textnlp-tiny");
    std::fs::remove_file(model.join("textnlp-model.json")).unwrap();
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    // Numbers of 16 bits, low byte first: the last bit is the least that can differ.
    bytes[end - 64..].iter_mut().step_by(2).for_each(|byte| *byte ^= 1);
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    model
}

/// Skips a story loudly where somebody else's tool is missing; where tools are demanded, fails it.
pub(crate) fn tool(name: &str) -> bool {
    let there = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    there || lacking(name)
}

/// See [`tool`].
pub(crate) fn lacking(what: &str) -> bool {
    assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{what} is missing; `tests/run` installs it");
    eprintln!("SKIPPED: {what} is missing here");
    false
}

/// Every word is in the text.
#[track_caller]
pub(crate) fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in:\n{text}");
    }
}

/// Waits until the port is free again.
pub(crate) fn port_is_free(port: u16) {
    eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
}
