//! Folders, programs and processes that tests are made of.

use std::io::Read as _;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::oci::image::{Recipe, assemble};
use textnlp_bundle::oci::{Blob, Image, layout};

use ports::Ports;

#[allow(unreachable_pub)]
#[path = "../../../tests/src/ports.rs"]
mod ports;

pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    pub(crate) fn join(&self, name: &str) -> Utf8PathBuf {
        self.path().join(name)
    }
}

/// The smallest static program that a kernel would load, for amd64 (62) or arm64 (183); `salt` makes it another one.
pub(crate) fn program(dir: &Utf8Path, machine: u16, salt: &[u8]) -> Utf8PathBuf {
    let mut elf = vec![0u8; 120];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    elf[16..18].copy_from_slice(&2u16.to_le_bytes());
    elf[18..20].copy_from_slice(&machine.to_le_bytes());
    elf[24..32].copy_from_slice(&0x400078u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(salt);
    let path = dir.join(format!("program-{machine}-{}", salt.len()));
    std::fs::write(&path, elf).unwrap();
    path
}

pub(crate) fn recipe(program: Utf8PathBuf, name: &str) -> Recipe {
    Recipe {
        program,
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        epoch: 1_700_000_000,
        revision: Some("abc".to_owned()),
        source: None,
        models: Vec::new(),
    }
}

/// A small image whose layers differ by name.
pub(crate) fn stand_in(dir: &Utf8Path, name: &str) -> Image {
    assemble(&recipe(program(dir, 62, name.repeat(20_000).as_bytes()), name)).unwrap()
}

pub(crate) fn write(blobs: &[Blob], folder: &Utf8Path) {
    for blob in blobs {
        blob.put(folder).unwrap();
    }
}

pub(crate) fn write_images(images: &[Image], folder: &Utf8Path) {
    write(&layout::merge(images).unwrap(), folder);
}

/// Whether a tool is there. Without it a test says so and passes, except where all tools are required.
pub(crate) fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "{tool} is not installed");
    if !found {
        eprintln!("NOT TESTED: {tool} is not installed (Debian: apt-get install {tool})");
    }
    found
}

pub(crate) fn skopeo(args: &[&str]) -> String {
    let out = Command::new("skopeo").arg("--insecure-policy").args(args).output().unwrap();
    assert!(out.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Debian's registry on loopback. It cannot take a free port by itself.
pub(crate) struct Registry {
    process: Child,
    pub(crate) host: String,
    _dir: Dir,
    _ports: Ports,
}

impl Registry {
    pub(crate) fn start(auth: Option<&str>) -> Registry {
        Registry::start_with(auth, None)
    }

    /// `tls`: the paths of a certificate and its key.
    pub(crate) fn start_with(auth: Option<&str>, tls: Option<(&Utf8Path, &Utf8Path)>) -> Registry {
        for _ in 0..10 {
            let dir = Dir::new();
            let ports = Ports::ask(1);
            let host = format!("127.0.0.1:{}", ports.numbers()[0]);
            let auth = auth.map_or(String::new(), |htpasswd| {
                let path = dir.join("htpasswd");
                std::fs::write(&path, htpasswd).unwrap();
                format!("auth: {{ htpasswd: {{ realm: here, path: {path} }} }}\n")
            });
            let tls = tls.map_or(String::new(), |(cert, key)| format!(", tls: {{ certificate: {cert}, key: {key} }}"));
            let config = format!(
                "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: \"{host}\"{tls} }}\n{auth}",
                dir.join("data")
            );
            std::fs::write(dir.join("config.yml"), config).unwrap();
            let mut process = Command::new("docker-registry")
                .args(["serve", dir.join("config.yml").as_str()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while process.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if TcpStream::connect(&host).is_ok() {
                    return Registry { process, host, _dir: dir, _ports: ports };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("no port for docker-registry");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn all(blob: &Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    blob.content.reader().read_to_end(&mut bytes).unwrap();
    bytes
}
