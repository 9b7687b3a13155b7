//! Inputs for tests: real files in a folder of their own.

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::*;
use textnlp_models::Digest;

pub struct Workshop {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
}

impl Workshop {
    pub fn new() -> Workshop {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        std::fs::create_dir(root.join("in")).unwrap();
        std::fs::write(root.join("in/program"), noise(1, 3 << 20)).unwrap();
        std::fs::write(root.join("in/model.safetensors"), safetensors(&[(1, 700_000), (2, 12), (3, 5 << 20)])).unwrap();
        Workshop { _folder: folder, root }
    }

    pub fn path(&self, name: &str) -> Utf8PathBuf {
        self.root.join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path("in").join(name)).unwrap()
    }

    pub fn inputs(&self) -> Inputs {
        let bytes = |path: &str, bytes: &[u8]| Input {
            path: path.into(),
            executable: false,
            content: Content::Bytes(bytes.to_vec()),
        };
        let file = |path: &str, executable, name: &str| Input {
            path: path.into(),
            executable,
            content: Content::File(self.path("in").join(name)),
        };
        let mut install = bytes("install.sh", b"#!/bin/sh\necho hello\n");
        install.executable = true;
        let model = Item {
            kind: ItemKind::Model,
            name: "tiny".into(),
            version: None,
            digest: model_digest(&[("config.json", b"{}"), ("model.safetensors", &self.read("model.safetensors"))]),
            platform: None,
            license: Some("Apache-2.0".into()),
            source: Some("bundled".into()),
            media_type: None,
            paths: vec!["models/tiny/config.json".into(), "models/tiny/model.safetensors".into()],
        };
        let program = Item {
            kind: ItemKind::Program,
            name: "textnlp-deploy".into(),
            version: Some("0.1.0".into()),
            digest: Digest::of(&self.read("program")),
            platform: Some("linux/amd64".into()),
            license: None,
            source: None,
            media_type: None,
            paths: vec!["bin/linux-amd64/textnlp-deploy".into()],
        };
        Inputs {
            version: "1.0.0".into(),
            epoch: 1_700_000_000,
            items: vec![model, program],
            files: vec![
                file("models/tiny/model.safetensors", false, "model.safetensors"),
                bytes("models/tiny/config.json", b"{}"),
                bytes("models/tiny/empty", b""),
                file("bin/linux-amd64/textnlp-deploy", true, "program"),
                install,
                bytes("configs/air-gapped/environment.yaml", &noise(3, 1000)),
                bytes(
                    &format!("packages/{}/{}", "long/".repeat(40).trim_end_matches('/'), "n".repeat(120)),
                    b"a long path",
                ),
                bytes("sbom/größe.json", b"not ASCII"),
            ],
            ..Inputs::default()
        }
    }

    pub fn pack(&self, name: &str, inputs: &Inputs) -> Packed {
        pack(inputs, &self.path(name), &PackOptions::default()).unwrap()
    }
}

fn model_digest(files: &[(&str, &[u8])]) -> Digest {
    textnlp_models::digest_of_files(files.iter().map(|(name, bytes)| (*name, Digest::of(bytes))))
}

pub fn bytes(input: &Input) -> Vec<u8> {
    match &input.content {
        Content::Parts(parts) => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut parts.reader(), &mut bytes).unwrap();
            bytes
        }
        Content::File(path) => std::fs::read(path).unwrap(),
        Content::Bytes(bytes) => bytes.clone(),
    }
}

/// Incompressible, the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file of tensors, each made of a seed and a length.
pub fn safetensors(tensors: &[(u64, usize)]) -> Vec<u8> {
    let (mut at, mut header) = (0, Vec::new());
    for (n, (_, length)) in tensors.iter().enumerate() {
        header.push(format!(r#""t{n}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{at},{}]}}"#, at + length));
        at += length;
    }
    let header = format!("{{{}}}", header.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    for (seed, length) in tensors {
        bytes.extend_from_slice(&noise(*seed, *length));
    }
    bytes
}

/// Of all paths, modes and bytes under a folder, the record left out.
pub fn tree_digest(folder: &Utf8Path) -> String {
    fn walk(folder: &Utf8Path, hasher: &mut Sha256) {
        use std::os::unix::fs::PermissionsExt;
        let mut entries: Vec<_> = folder.read_dir_utf8().unwrap().map(Result::unwrap).collect();
        entries.sort_by(|a, b| a.file_name().cmp(b.file_name()));
        for entry in entries {
            let metadata = std::fs::symlink_metadata(entry.path()).unwrap();
            hasher.update(format!("{} {:o}\n", entry.file_name(), metadata.permissions().mode()));
            if metadata.is_dir() {
                walk(entry.path(), hasher);
            } else if metadata.is_symlink() {
                hasher.update(entry.path().read_link_utf8().unwrap().as_str());
            } else if entry.file_name() != INSTALLED {
                hasher.update(std::fs::read(entry.path()).unwrap());
            }
        }
    }
    let mut hasher = Sha256::new();
    walk(folder, &mut hasher);
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
