//! Weights whose chunks were recorded with their digest are hashed once. Nothing that could be seen before is seen less.

use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::made::Workshop;
use textnlp_bundle::manifest::{Chunk, File};
use textnlp_bundle::*;
use textnlp_models::Digest;

const WEIGHTS: &str = "models/tiny/model.safetensors";

/// The inputs of a shop, and its weights as a bundle lists them.
fn shop() -> (Workshop, Inputs, File) {
    let shop = Workshop::new();
    let inputs = shop.inputs();
    let packed = shop.pack("first.tar", &inputs);
    let weights = packed.manifest.files.into_iter().find(|file| file.path == WEIGHTS).unwrap();
    (shop, inputs, weights)
}

fn knowing(inputs: &Inputs, digest: Digest, chunks: &[Chunk]) -> Inputs {
    let mut inputs = inputs.clone();
    inputs.promised.insert(WEIGHTS.into(), digest);
    inputs.recorded.insert(WEIGHTS.into(), chunks.to_vec());
    inputs
}

/// Turns over one bit of the weights.
fn damage(shop: &Workshop) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(shop.path("in/model.safetensors")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3 << 20).unwrap();
}

fn sums_hold(shop: &Workshop, bundle: &str) -> bool {
    let folder = shop.path(&format!("{bundle}.plain"));
    std::fs::create_dir(&folder).unwrap();
    assert!(Command::new("tar").arg("xf").arg(shop.path(bundle)).current_dir(&folder).status().unwrap().success());
    let output = Command::new("sha256sum").args(["-c", "--quiet", "SHA256SUMS"]).current_dir(&folder).output().unwrap();
    output.status.success()
}

#[test]
fn bundle_is_identical_with_and_without_recorded_chunks() {
    let (shop, inputs, weights) = shop();
    let bytes = std::fs::read(shop.path("first.tar")).unwrap();
    for threads in [1, 2, 3, 8] {
        let known = knowing(&inputs, weights.digest, &weights.chunks);
        let options = PackOptions { drive: Drive { threads, ..Drive::default() }, ..PackOptions::default() };
        pack(&known, &shop.path("known.tar"), &options).unwrap();
        assert!(std::fs::read(shop.path("known.tar")).unwrap() == bytes, "{threads} threads");
    }
    assert!(sums_hold(&shop, "known.tar"));
}

#[test]
fn file_changed_after_its_chunks_were_recorded_is_detected() {
    let (shop, inputs, weights) = shop();
    damage(&shop);
    let known = knowing(&inputs, weights.digest, &weights.chunks);
    match pack(&known, &shop.path("out.tar"), &PackOptions::default()) {
        Err(Error::NotAsPromised { paths }) => assert_eq!(paths, [WEIGHTS]),
        other => panic!("{other:?}"),
    }
    let left: Vec<_> =
        shop.path("").read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert!(left.iter().all(|name| !name.starts_with("out.tar")), "{left:?}");
}

#[test]
fn invalid_or_unpromised_chunk_records_are_ignored() {
    let (shop, inputs, weights) = shop();
    let bytes = std::fs::read(shop.path("first.tar")).unwrap();
    let mut shorter = weights.chunks.clone();
    shorter.pop();
    let mut other = weights.chunks.clone();
    other[0].size += 1;
    for chunks in [&[][..], &shorter, &other] {
        shop.pack("known.tar", &knowing(&inputs, weights.digest, chunks));
        assert!(std::fs::read(shop.path("known.tar")).unwrap() == bytes);
    }
    // A wrong promise is refused as ever.
    damage(&shop);
    let wrong = knowing(&inputs, weights.digest, &shorter);
    assert!(matches!(pack(&wrong, &shop.path("out.tar"), &PackOptions::default()), Err(Error::NotAsPromised { .. })));
    let mut unpromised = knowing(&inputs, weights.digest, &weights.chunks);
    unpromised.promised.clear();
    let packed = shop.pack("known.tar", &unpromised);
    let found = packed.manifest.files.iter().find(|file| file.path == WEIGHTS).unwrap();
    assert_eq!(found.digest, Digest::of(&std::fs::read(shop.path("in/model.safetensors")).unwrap()));
}

/// Who may write to the cache may change the weights and what is recorded of them, and a bundle then says something false of that
/// file. Every reader of whole files finds it.
#[test]
fn forged_chunk_record_is_detected_by_verify_and_sha256sum() {
    let (shop, inputs, weights) = shop();
    damage(&shop);
    let packed = shop.pack("evil.tar", &inputs);
    let evil = packed.manifest.files.iter().find(|file| file.path == WEIGHTS).unwrap();
    assert_ne!(evil.digest, weights.digest);
    shop.pack("forged.tar", &knowing(&inputs, weights.digest, &evil.chunks));
    let verify = |whole_files| {
        let options = VerifyOptions { whole_files, ..VerifyOptions::default() };
        Bundle::open(&shop.path("forged.tar")).unwrap().verify(&options).unwrap().damages
    };
    let [damage] = &verify(true)[..] else { panic!("one file is not what it is said to be") };
    assert_eq!(damage.member, WEIGHTS);
    assert!(damage.what.contains("file's digest"), "{damage}");
    assert!(verify(false).is_empty());
    assert!(!sums_hold(&shop, "forged.tar"));
}
