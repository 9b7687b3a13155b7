//! Parsers of untrusted input as fuzz targets. Each takes any bytes; a panic, a hang or more memory than [`memory_limit`] allows is a
//! defect. The test `corpus` runs them on the kept inputs and mutations of them; `run` in this folder runs them guided by coverage.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod gateway;
mod gateway_h2;
mod journal;
pub mod mutation;

use std::cell::OnceCell;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::decoder::Spec;
use textnlp_inference::format::Checkpoint;
use textnlp_inference::text::Tokenizer;
use textnlp_kubernetes::Kubernetes;
use textnlp_orchestrator::environment::{Catalogue, Library, Overrides, Source};
use textnlp_orchestrator::import::read_terraform;
use textnlp_orchestrator::plan::Saved;
use textnlp_server::auth::jwt::Signer;
use textnlp_server::config::Security;

/// A parser and its first inputs.
#[derive(Debug)]
pub struct Target {
    /// The name; also that of its folder in `corpus/`.
    pub name: &'static str,
    /// Longer inputs are cut: they cost time and find nothing new.
    pub most_bytes: usize,
    /// Inputs of an ordinary test run. Slow targets have fewer.
    pub runs: u32,
    /// Parses the bytes; whether they are valid.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs, from which mutations start.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "decoder", most_bytes: 4 << 10, runs: 10000, run: decoder, seeds: decoders },
    Target { name: "environment", most_bytes: 16 << 10, runs: 1000, run: environment, seeds: environments },
    Target { name: "gateway-http1", most_bytes: 8 << 10, runs: 600, run: gateway::http1, seeds: gateway::seeds },
    Target { name: "gateway-http2", most_bytes: 8 << 10, runs: 600, run: gateway_h2::run, seeds: gateway_h2::seeds },
    Target { name: "gguf", most_bytes: 64 << 10, runs: 4000, run: gguf, seeds: ggufs },
    Target { name: "journal", most_bytes: 16 << 10, runs: 20000, run: journal::run, seeds: journal::seeds },
    Target { name: "jwt", most_bytes: 8 << 10, runs: 5000, run: jwt, seeds: jwts },
    Target { name: "kubeconfig", most_bytes: 8 << 10, runs: 2000, run: kubeconfig, seeds: kubeconfigs },
    Target { name: "manifest", most_bytes: 16 << 10, runs: 20000, run: manifest, seeds: manifests },
    Target { name: "public-key", most_bytes: 1 << 10, runs: 1500, run: public_key, seeds: public_keys },
    Target { name: "safetensors", most_bytes: 64 << 10, runs: 4000, run: safetensors, seeds: safetensors_files },
    Target { name: "saved-plan", most_bytes: 16 << 10, runs: 10000, run: saved_plan, seeds: saved_plans },
    Target {
        name: "terraform-state",
        most_bytes: 16 << 10,
        runs: 10000,
        run: terraform_state,
        seeds: terraform_states,
    },
    Target { name: "tokenizer", most_bytes: 64 << 10, runs: 10000, run: tokenizer, seeds: tokenizers },
];

/// The most bytes that a target may hold for an input of this length. Files of models are mapped, and a byte of JSON is at most a few
/// hundred in memory.
pub const fn memory_limit(length: usize) -> usize {
    (64 << 20) + 1024 * length
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Files of the repository.
fn files<const N: usize>(paths: [&str; N]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| std::fs::read(root().join(path)).unwrap()).collect()
}

fn environments() -> Vec<Vec<u8>> {
    files([
        "environments/development.yaml",
        "environments/staging.yaml",
        "environments/pilot.yaml",
        "environments/multi-region.yaml",
        "environments/multi-region-clouds.yaml",
        "environments/enterprise.yaml",
    ])
}

fn environment(bytes: &[u8]) -> bool {
    let source = Source { label: "fuzz.yaml".to_owned(), bytes: bytes.to_vec() };
    match Library::built_in().load_source(source, &Overrides::default(), &Catalogue::default()) {
        Ok(_) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

/// Writes the input to a file of this thread.
fn with_file<T>(name: &str, bytes: &[u8], run: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().unwrap()).path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        run(&path)
    })
}

fn load(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else { return false };
    if let Ok(Some(vocabulary)) = checkpoint.vocabulary()
        && let Ok(tokenizer) = Tokenizer::from_gguf(&vocabulary)
    {
        let _ = tokenizer.encode("The harbour, 42.", true);
    }
    let options = LoadOptions { kv_positions: Some(16), context: Some(16), threads: 1, ..LoadOptions::default() };
    Cpu::load(&checkpoint, &options).is_ok()
}

fn ggufs() -> Vec<Vec<u8>> {
    files([
        "server/inference/tests/golden/llama-q8_0.gguf",
        "server/inference/tests/golden/llama-q5_0.gguf",
        "server/inference/tests/golden/gpt2-q4_0.gguf",
    ])
}

fn gguf(bytes: &[u8]) -> bool {
    with_file("model.gguf", bytes, load)
}

/// The length of `config.json` in four bytes, the file, and the weights.
fn safetensors_files() -> Vec<Vec<u8>> {
    ["llama", "gpt2", "llama-tied"]
        .map(|model| {
            let folder = root().join("server/inference/tests/golden").join(model);
            let config = std::fs::read(folder.join("config.json")).unwrap();
            let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
            [&u32::try_from(config.len()).unwrap().to_le_bytes()[..], &config, &weights].concat()
        })
        .to_vec()
}

fn safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let length = (u32::from_le_bytes(*length) as usize).min(rest.len());
    let (config, weights) = rest.split_at(length);
    with_file("model.safetensors", weights, |path| {
        let folder = path.parent().unwrap();
        std::fs::write(folder.join("config.json"), config).unwrap();
        load(folder)
    })
}

fn decoders() -> Vec<Vec<u8>> {
    files([
        "server/candle/tests/golden/falcon-groups/config.json",
        "server/candle/tests/golden/gpt_neo/config.json",
        "server/candle/tests/golden/mixtral/config.json",
        "server/candle/tests/golden/phi/config.json",
    ])
}

fn decoder(bytes: &[u8]) -> bool {
    with_file("config.json", bytes, |path| Spec::open(path.parent().unwrap()).is_ok())
}

fn tokenizers() -> Vec<Vec<u8>> {
    let small = |model: &str, decoder: &str| {
        format!(
            r#"{{"version":"1.0","added_tokens":[{{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],"normalizer":{{"type":"NFC"}},"pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},"post_processor":null,"decoder":{decoder},"model":{model}}}"#
        )
        .into_bytes()
    };
    vec![
        small(
            r#"{"type":"BPE","unk_token":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"<s>":0,"a":1,"b":2,"ab":3},"merges":[["a","b"]]}"#,
            r#"{"type":"ByteLevel"}"#,
        ),
        small(
            r#"{"type":"BPE","unk_token":"<s>","fuse_unk":true,"byte_fallback":true,"vocab":{"<s>":0,"<0x41>":1,"▁a":2,"▁":3,"a":4},"merges":["▁ a"]}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#,
        ),
        small(
            r#"{"type":"Unigram","unk_id":0,"vocab":[["<s>",0.0],["a",-1.5],["ab",-2.0]],"byte_fallback":false}"#,
            r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#,
        ),
    ]
}

fn tokenizer(bytes: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else { return false };
    if let Ok(ids) = tokenizer.encode("ab abba, Zürich 42 \u{1f600}", true) {
        let _ = tokenizer.decode(&ids);
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    true
}

fn signer() -> Signer {
    let security = Security {
        jwt_expiry: Duration::from_secs(60),
        jwt_private_key_file: None,
        jwt_token_limit: 1,
        api_keys_enabled: true,
        api_key_header: "X-API-Key".into(),
        rate_limit: None,
        token_rate_limit: None,
        issuer: "fuzz".into(),
        oidc: None,
    };
    Signer::new(&security).unwrap()
}

thread_local! {
    static SIGNER: OnceCell<Signer> = const { OnceCell::new() };
}

fn jwts() -> Vec<Vec<u8>> {
    SIGNER.with(|cell| {
        let signer = cell.get_or_init(signer);
        let (token, _) = signer.issue("user", "tenant", 100, Duration::from_secs(60), None).unwrap();
        vec![token.into_bytes(), signer.jwks().to_string().into_bytes()]
    })
}

fn jwt(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    SIGNER.with(|cell| {
        let signer = cell.get_or_init(signer);
        let _ = signer.should_learn(&text);
        let verified = signer.verify(&text);
        if let Ok(claims) = &verified {
            assert_eq!(claims.tenant_id, "tenant", "a token that this signer did not issue");
        }
        // Keys of another site come from its database; the one of this thread stays.
        signer.learn(&[text.into_owned()]);
        verified.is_ok()
    })
}

fn kubeconfigs() -> Vec<Vec<u8>> {
    vec![
        br"apiVersion: v1
kind: Config
current-context: a
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: QQ==, proxy-url: 'http://127.0.0.1:1'}}]
users: [{name: u, user: {token: t, exec: {apiVersion: client.authentication.k8s.io/v1, command: x, args: [a], interactiveMode: Never}}}]
contexts: [{name: a, context: {cluster: c, user: u, namespace: n}}]
"
        .to_vec(),
    ]
}

fn kubeconfig(bytes: &[u8]) -> bool {
    with_file("kubeconfig", bytes, |path| {
        let _ = Kubernetes::current_context(Some(path));
        let _ = Kubernetes::server(Some(path), None);
        Kubernetes::server(Some(path), Some("a")).is_ok()
    })
}

fn manifests() -> Vec<Vec<u8>> {
    let zero = "sha256:".to_owned() + &"0".repeat(64);
    let chunk = "A".repeat(43);
    let full = format!(
        r#"{{"format":1,"kind":"full","version":"1.0.0","epoch":1767225600,"items":[{{"kind":"document","name":"install.sh","digest":"{zero}","paths":["install.sh"]}}],"files":[{{"path":"install.sh","executable":true,"size":5,"digest":"{zero}","chunks":[[5,"{chunk}"]]}}]}}"#
    );
    vec![full.into_bytes()]
}

fn manifest(bytes: &[u8]) -> bool {
    textnlp_bundle::Manifest::parse(bytes).is_ok()
}

fn public_keys() -> Vec<Vec<u8>> {
    vec![b"untrusted comment: minisign public key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n".to_vec()]
}

fn public_key(bytes: &[u8]) -> bool {
    textnlp_bundle::PublicKey::parse(&String::from_utf8_lossy(bytes)).is_ok()
}

fn saved_plans() -> Vec<Vec<u8>> {
    files(["tests/fuzz/seeds/saved-plan.json"])
}

fn saved_plan(bytes: &[u8]) -> bool {
    Saved::read(bytes).is_ok()
}

fn terraform_states() -> Vec<Vec<u8>> {
    vec![
        br#"{"version":4,"terraform_version":"1.9.0","serial":1,"lineage":"a","outputs":{},"resources":[{"module":"module.a","mode":"managed","type":"textnlp_process","name":"b","provider":"provider[\"registry.opentofu.org/x/y\"]","instances":[{"index_key":"a","schema_version":0,"attributes":{"id":"1"},"status":"tainted","deposed":"x"}]}]}"#.to_vec(),
    ]
}

fn terraform_state(bytes: &[u8]) -> bool {
    read_terraform(bytes).is_ok()
}

/// The kept inputs of a target: the files of `corpus/NAME.tar.gz`.
pub fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{}.tar.gz", target.name));
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()));
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut bytes = Vec::new();
        entry.unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    archive.entries().unwrap().map(read).filter(|bytes| !bytes.is_empty()).collect()
}
