//! Any byte anywhere, any length: damage is found and told by its place; nothing panics.

use std::io::Cursor;

use crate::made::{Workshop, noise};
use proptest::prelude::*;
use textnlp_bundle::*;

/// A small bundle of each kind: unsigned, signed, delta.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SAMPLES.get_or_init(|| {
        let shop = Workshop::new();
        let mut inputs = shop.inputs();
        inputs.files.retain(|file| !file.path.starts_with("bin/") && !file.path.ends_with("safetensors"));
        inputs.items.clear();
        let file = |path: &str, bytes| Input { path: path.into(), executable: false, content: Content::Bytes(bytes) };
        inputs.files.push(file("models/tiny/model.safetensors", crate::made::safetensors(&[(1, 3000), (2, 50_000)])));
        inputs.files.push(file("images/layer", noise(4, 150_000)));
        let base = Contents::of(&shop.pack("plain.tar", &inputs).manifest).unwrap();
        shop.pack("signed.tar", &inputs);
        let (secret, public) = (shop.path("k"), shop.path("k.pub"));
        keygen(&secret, &public, None).unwrap();
        sign(&shop.path("signed.tar"), &SecretKey::read(&secret, None).unwrap()).unwrap();
        inputs.files.push(file("models/new", noise(77, 60_000)));
        shop.pack("next.tar", &inputs);
        let next = Bundle::open(&shop.path("next.tar")).unwrap();
        make_delta(Some(&base), &Target::Bundle(&next), &Scope::Everything, &shop.path("delta.tar"), &Drive::default())
            .unwrap();
        ["plain.tar", "signed.tar", "delta.tar"].iter().map(|name| std::fs::read(shop.path(name)).unwrap()).collect()
    })
}

fn found(bytes: Vec<u8>) -> Option<String> {
    let drive = Drive { threads: 1, ..Drive::default() };
    match Bundle::from_stream(Cursor::new(bytes))
        .and_then(|mut bundle| bundle.verify(&VerifyOptions { drive, ..VerifyOptions::default() }))
    {
        Ok(report) if report.is_whole() => None,
        Ok(report) => Some(report.damages.iter().map(|damage| damage.to_string()).collect::<Vec<_>>().join("; ")),
        Err(error) => Some(error.to_string()),
    }
}

/// The member that holds a byte, and whether that byte is content: by walking the tar as any tool would.
fn member_at(bytes: &[u8], at: usize) -> (String, bool) {
    let (mut position, mut pax_begin) = (0, None);
    while position + 512 <= bytes.len() {
        let header = &bytes[position..position + 512];
        if header.iter().all(|byte| *byte == 0) {
            return ("the end of the archive".into(), false);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&header[124..135]).unwrap(), 8).unwrap();
        let data = position + 512;
        let end = data + size.next_multiple_of(512);
        if header[156] == b'x' {
            pax_begin = Some(position);
        } else {
            let begin = pax_begin.take().unwrap_or(position);
            let name = String::from_utf8_lossy(header[..100].split(|byte| *byte == 0).next().unwrap()).into_owned();
            if (begin..end).contains(&at) {
                return (name, (data..data + size).contains(&at));
            }
        }
        position = end;
    }
    ("the end of the archive".into(), false)
}

/// Flips one bit and asks for the right place.
fn check_flip(sample: usize, at: usize, bit: u8) {
    let mut bytes = samples()[sample].clone();
    let at = at % bytes.len();
    let (member, content) = member_at(&bytes, at);
    bytes[at] ^= 1 << bit;
    let said = found(bytes).unwrap_or_else(|| panic!("a flip at {at} in {member} of sample {sample} was not found"));
    // Names longer than a header holds stand there shortened.
    let short: String = member.chars().take(60).collect();
    // Who changes the first header's magic has no bundle any more.
    let named = said.contains(&short) || (at < 512 && said.contains("not a bundle"));
    assert!(named, "sample {sample}, byte {at} in {member}: it said {said}");
    let inner = !["manifest.json", "manifest.json.minisig", "SHA256SUMS"].contains(&member.as_str());
    if content && inner {
        assert!(said.contains("chunk"), "{said}");
    }
}

#[test]
fn sample_bundles_are_valid() {
    for sample in samples() {
        assert_eq!(found(sample.clone()), None);
    }
}

#[test]
fn every_flipped_byte_in_the_bundle_header_is_detected() {
    for sample in 0..samples().len() {
        for at in (0..16_000).step_by(3) {
            check_flip(sample, at, (at % 8) as u8);
        }
    }
}

fn cases() -> u32 {
    std::env::var("TEXTNLP_TESTS_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn any_flipped_bit_is_detected_and_located(sample in 0..3usize, at: usize, bit in 0..8u8) {
        check_flip(sample, at, bit);
    }

    #[test]
    fn any_truncated_bundle_is_refused(sample in 0..3usize, length: usize) {
        let bytes = &samples()[sample];
        prop_assert!(found(bytes[..length % bytes.len()].to_vec()).is_some());
    }

    #[test]
    fn arbitrary_bytes_instead_of_the_manifest_are_refused(sample in 0..3usize, noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let mut bytes = samples()[sample].clone();
        if !noise.is_empty() {
            bytes[512..512 + noise.len()].copy_from_slice(&noise);
            prop_assert!(found(bytes).is_some());
        }
        let _ = textnlp_bundle::Manifest::parse(&noise);
    }

    /// Valid JSON with pieces exchanged goes deeper than noise does.
    #[test]
    fn parsing_a_mutated_manifest_never_panics(sample in 0..3usize, edits in proptest::collection::vec((any::<usize>(), any::<usize>(), 0..40usize), 1..6)) {
        let bytes = &samples()[sample];
        let end = bytes.iter().skip(512).position(|byte| *byte == b' ').unwrap_or(4096) + 512;
        let mut text = bytes[512..end].to_vec();
        for (from, to, length) in edits {
            let (from, to) = (from % text.len(), to % text.len());
            let piece = text[from..(from + length).min(text.len())].to_vec();
            text.splice(to..(to + length / 2).min(text.len()), piece);
        }
        if let Ok(manifest) = textnlp_bundle::Manifest::parse(&text) {
            prop_assert_eq!(manifest.to_bytes().unwrap(), text);
        }
    }
}
