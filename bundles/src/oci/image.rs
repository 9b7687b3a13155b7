//! Builds the server's image from the static program, without a container engine. Layers are plain tars, so that a delta
//! finds the chunks that two versions share.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use std::collections::BTreeMap;
use textnlp_models::Digest;

use super::Image;
use super::content::{Blob, Content};
use super::document::{Manifest, Platform, media};
use super::error::{Error, Result};
use super::layer::{Access, Layer};
use crate::elf;
use crate::sbom::File;

/// What the image is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The static program; its ELF header says for which platform.
    pub program: Utf8PathBuf,
    /// The repository's name: `textnlp`.
    pub name: String,
    /// The release's version, which becomes the tag.
    pub version: String,
    /// The timestamp of all files in the image, in seconds since 1970.
    pub epoch: u64,
    /// The commit that the program was built from, if known.
    pub revision: Option<String>,
    /// The URL of the source, if it is public.
    pub source: Option<String>,
    /// Models to put into a layer of their own: a name and a folder each. Usually none, because models are separate items of a bundle.
    pub models: Vec<(String, Utf8PathBuf)>,
}

/// A conventional uid of images without root.
pub const USER: u32 = 65532;
/// The program's path in the image, which is also the entry point.
pub const PROGRAM: &str = "/usr/local/bin/textnlp-deploy";
const HOME: &str = "/var/lib/textnlp";
const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

const ROOT_FOLDER: Access = Access { mode: 0o755, owner: 0 };
const ROOT_FILE: Access = Access { mode: 0o644, owner: 0 };

/// Builds the image. The same recipe gives the same bytes at any time and on any machine. Nothing is written: the program and the
/// models are read once for their digests, and again when the blobs are read.
pub fn assemble(recipe: &Recipe) -> Result<Image> {
    let platform = Platform::linux(elf::static_architecture(&recipe.program)?);
    let tag = super::reference::is_tag(&recipe.version) && super::reference::is_repository(&recipe.name);
    if !tag {
        let what = format!("the image `{}:{}`", recipe.name, recipe.version);
        return Err(Error::malformed(what, "a name has lower-case letters and digits, a version no `+` and no spaces"));
    }
    let mut layers = vec![
        ("the folders, users and certificate authorities", Blob::of(base(recipe.epoch))?),
        ("the program", Blob::of(program(recipe)?)?),
    ];
    if !recipe.models.is_empty() {
        layers.push(("the models", Blob::of(models(recipe)?)?));
    }

    let created = jiff::Timestamp::from_second(i64::try_from(recipe.epoch).unwrap_or(i64::MAX))
        .map_err(|error| Error::malformed("the time of the image", error.to_string()))?
        .to_string();
    let config = Config {
        created: &created,
        architecture: &platform.architecture,
        os: &platform.os,
        config: run(labels(recipe, &created)),
        rootfs: Rootfs { kind: "layers", diff_ids: layers.iter().map(|(_, blob)| blob.digest.to_string()).collect() },
        history: layers.iter().map(|(what, _)| Event { created: &created, created_by: what }).collect(),
    };
    let config = Blob::of(Content::bytes(json(&config)))?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.to_owned()),
        config: config.descriptor(media::CONFIG),
        layers: layers.iter().map(|(_, blob)| blob.descriptor(media::LAYER)).collect(),
        annotations: labels(recipe, &created).into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    };
    let manifest = Blob::of(Content::bytes(json(&manifest)))?;
    let descriptor = manifest.descriptor(media::MANIFEST);

    let mut blobs: Vec<Blob> = layers.into_iter().map(|(_, blob)| blob).chain([config, manifest]).collect();
    blobs.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Image {
        name: format!("{}:{}", recipe.name, recipe.version),
        platform,
        pinned: descriptor.digest,
        manifest: descriptor,
        blobs,
    })
}

/// The files of the image with their digests: the program, and the certificate authorities.
pub fn files(version: &str, program: Digest) -> [File; 2] {
    let file = |kind, path: &str, name: &str, version: &str, digest| File {
        kind,
        path: path.to_owned(),
        name: name.to_owned(),
        version: version.to_owned(),
        digest,
    };
    [
        file("application", PROGRAM, "textnlp-deploy", version, program),
        file("file", ROOTS, "ca-certificates.crt", "", Digest::of(authorities().as_bytes())),
    ]
}

/// What a container of the image runs, and its user.
fn run(labels: BTreeMap<&'static str, String>) -> Run {
    Run {
        user: format!("{USER}:{USER}"),
        ports: ["8080/tcp", "9090/tcp"].into_iter().map(|port| (port, Empty {})).collect(),
        env: vec![
            "PATH=/usr/local/bin".to_owned(),
            format!("HOME={HOME}"),
            format!("SSL_CERT_FILE={ROOTS}"),
            "TMPDIR=/tmp".to_owned(),
        ],
        entrypoint: vec![PROGRAM],
        cmd: vec!["serve", "--config", "/etc/textnlp/server.yaml"],
        volumes: [(HOME, Empty {})].into_iter().collect(),
        working_dir: HOME,
        labels,
        stop_signal: "SIGTERM",
    }
}

/// The files that rarely change, in a separate layer.
fn base(epoch: u64) -> Content {
    let mut layer = Layer::new(epoch);
    let own = Access { mode: 0o755, owner: USER };
    layer.folder("etc", ROOT_FOLDER);
    layer.bytes("etc/group", ROOT_FILE, format!("root:x:0:\ntextnlp:x:{USER}:\n").as_bytes());
    let users = format!("root:x:0:0:root:/:/sbin/nologin\ntextnlp:x:{USER}:{USER}:textnlp:{HOME}:/sbin/nologin\n");
    layer.bytes("etc/passwd", ROOT_FILE, users.as_bytes());
    layer.folder("etc/ssl", ROOT_FOLDER);
    layer.folder("etc/ssl/certs", ROOT_FOLDER);
    layer.bytes(&ROOTS[1..], ROOT_FILE, authorities().as_bytes());
    layer.folder("etc/textnlp", ROOT_FOLDER);
    layer.folder("tmp", Access { mode: 0o1777, owner: 0 });
    layer.folder("usr", ROOT_FOLDER);
    layer.folder("usr/local", ROOT_FOLDER);
    layer.folder("usr/local/bin", ROOT_FOLDER);
    layer.folder("var", ROOT_FOLDER);
    layer.folder("var/lib", ROOT_FOLDER);
    layer.folder(&HOME[1..], own);
    layer.folder(&format!("{HOME}/models")[1..], own);
    layer.finish()
}

fn program(recipe: &Recipe) -> Result<Content> {
    let mut layer = Layer::new(recipe.epoch);
    for folder in ["usr", "usr/local", "usr/local/bin"] {
        layer.folder(folder, ROOT_FOLDER);
    }
    layer.file(&PROGRAM[1..], Access { mode: 0o755, owner: 0 }, &recipe.program)?;
    Ok(layer.finish())
}

fn models(recipe: &Recipe) -> Result<Content> {
    let mut layer = Layer::new(recipe.epoch);
    let mut models: Vec<_> = recipe.models.iter().collect();
    models.sort();
    for pair in models.windows(2) {
        if pair[0].0 == pair[1].0 {
            return Err(Error::malformed(format!("the model `{}`", pair[0].0), "it is named twice"));
        }
    }
    for folder in ["var", "var/lib"] {
        layer.folder(folder, ROOT_FOLDER);
    }
    let own = Access { mode: 0o755, owner: USER };
    layer.folder(&HOME[1..], own);
    layer.folder(&format!("{HOME}/models")[1..], own);
    for (name, folder) in models {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Error::malformed(format!("the model `{name}`"), "its name is not a valid folder name"));
        }
        let inside = format!("{HOME}/models/{name}");
        layer.folder(&inside[1..], own);
        for file in file_names(folder)? {
            layer.file(
                &format!("{}/{file}", &inside[1..]),
                Access { mode: 0o644, owner: USER },
                &folder.join(&file),
            )?;
        }
    }
    Ok(layer.finish())
}

fn file_names(folder: &Utf8Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| Error::malformed(folder.to_string(), "a file's name in it is not UTF-8"))?;
        // Links are followed: a model store keeps files by content and links to them.
        let kind = fs::metadata(folder.join(&name)).map_err(Error::io("read", folder))?;
        if kind.is_file() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The public certificate authorities as a PEM file, for programs in a container that read one.
fn authorities() -> String {
    let mut text = String::with_capacity(256 << 10);
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = BASE64.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.extend(line.iter().map(|b| char::from(*b)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn labels(recipe: &Recipe, created: &str) -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([
        ("org.opencontainers.image.created", created.to_owned()),
        (
            "org.opencontainers.image.description",
            "Text generation and analysis: server, gateway and deployment in one program".to_owned(),
        ),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("org.opencontainers.image.title", recipe.name.clone()),
        ("org.opencontainers.image.version", recipe.version.clone()),
    ]);
    labels.extend(recipe.revision.clone().map(|revision| ("org.opencontainers.image.revision", revision)));
    labels.extend(recipe.source.clone().map(|source| ("org.opencontainers.image.source", source)));
    labels
}

pub(crate) fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("texts, numbers and lists of them")
}

#[derive(Serialize)]
struct Config<'a> {
    created: &'a str,
    architecture: &'a str,
    os: &'a str,
    config: Run,
    rootfs: Rootfs,
    history: Vec<Event<'a>>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    user: String,
    #[serde(rename = "ExposedPorts")]
    ports: BTreeMap<&'static str, Empty>,
    env: Vec<String>,
    entrypoint: Vec<&'static str>,
    cmd: Vec<&'static str>,
    volumes: BTreeMap<&'static str, Empty>,
    working_dir: &'static str,
    labels: BTreeMap<&'static str, String>,
    stop_signal: &'static str,
}

#[derive(Serialize)]
struct Rootfs {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
struct Event<'a> {
    created: &'a str,
    created_by: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The image that Docker builds runs the same program as the same user. No test builds it: its base image is at a public registry.
    #[test]
    fn the_image_of_docker_runs_as_this_one() {
        let text = include_str!("../../../Dockerfile");
        let run = run(BTreeMap::new());
        let ports: Vec<&str> = run.ports.keys().filter_map(|port| port.strip_suffix("/tcp")).collect();
        let quoted = |words: &[&str]| words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        for line in [
            format!("USER {}", run.user),
            format!("ENV {}", run.env.join(" ")),
            format!("EXPOSE {}", ports.join(" ")),
            format!("ENTRYPOINT [{}]", quoted(&run.entrypoint)),
            format!("CMD [{}]", quoted(&run.cmd)),
            format!("VOLUME {HOME}"),
            format!("WORKDIR {}", run.working_dir),
            format!("STOPSIGNAL {}", run.stop_signal),
            format!("FROM rust:{}-bookworm AS build", env!("CARGO_PKG_RUST_VERSION")),
        ] {
            assert!(text.lines().any(|known| known == line), "{line}");
        }
        assert!(text.contains(&format!("textnlp:x:{USER}:{USER}:textnlp:{HOME}:/sbin/nologin")));
    }
}
