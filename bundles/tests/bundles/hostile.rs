//! Bundles made by somebody who means harm, and what is said to each. Nothing of them is ever written.

use crate::made::Workshop;
use textnlp_bundle::manifest::{Chunk, File, Item, ItemKind, Kind, Manifest};
use textnlp_bundle::*;

const BLOCK: usize = 512;

fn options() -> UnpackOptions<'static> {
    UnpackOptions {
        authenticity: Authenticity::Unverified { why: "test".into() },
        deep: false,
        drive: Drive::default(),
    }
}

/// Opens and unpacks these bytes from a file and from a stream; both must refuse with these words and leave nothing.
fn refused(bytes: &[u8], words: &str) {
    let shop = Workshop::new();
    let path = shop.path("evil.tar");
    std::fs::write(&path, bytes).unwrap();
    let site = Site::new(&shop.path("site"));
    let file = Bundle::open(&path).and_then(|mut bundle| site.unpack(&mut bundle, &options()));
    let error = file.unwrap_err().to_string();
    assert!(error.contains(words), "expected `{words}`, it said: {error}");
    let written = std::fs::read_dir(site.root()).map(|entries| entries.count()).unwrap_or(0);
    assert!(written <= 1, "only the lock may be there");

    let stream = std::io::Cursor::new(bytes.to_vec());
    let stream = Bundle::from_stream(stream)
        .and_then(|mut bundle| Site::new(&shop.path("site-2")).unpack(&mut bundle, &options()));
    let error = stream.unwrap_err().to_string();
    assert!(error.contains(words), "from a stream, expected `{words}`, it said: {error}");
    assert!(Site::new(&shop.path("site-2")).contents().unwrap().is_empty());
}

fn valid() -> Vec<u8> {
    let shop = Workshop::new();
    shop.pack("a.tar", &shop.inputs());
    std::fs::read(shop.path("a.tar")).unwrap()
}

/// Where the member's own header begins.
fn header(bytes: &[u8], name: &str) -> usize {
    let wanted = [name.as_bytes(), b"\0"].concat();
    (0..bytes.len() / BLOCK)
        .map(|n| n * BLOCK)
        .find(|at| bytes[*at..].starts_with(&wanted) && &bytes[at + 257..at + 262] == b"ustar")
        .unwrap()
}

/// Changes a header and makes its sum right again.
fn forge(name: &str, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = valid();
    let at = header(&bytes, name);
    change(&mut bytes[at..at + BLOCK]);
    fix(&mut bytes[at..at + BLOCK]);
    bytes
}

fn fix(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn non_regular_members_are_refused() {
    for (kind, words) in [
        (b'1', "it is a link"),
        (b'2', "it is a link"),
        (b'3', "it is a device or pipe"),
        (b'4', "it is a device or pipe"),
        (b'6', "it is a device or pipe"),
        (b'5', "it is a folder"),
        (b'S', "it is a sparse file"),
        (b'g', "it is an extended header"),
        (b'L', "it is an extended header"),
    ] {
        refused(&forge("install.sh", |header| header[156] = kind), words);
    }
    let link = forge("install.sh", |header| {
        header[156] = b'2';
        header[157..168].copy_from_slice(b"/etc/passwd");
    });
    refused(&link, "install.sh");
}

#[test]
fn headers_with_unexpected_names_sizes_owners_or_modes_are_refused() {
    for name in ["../../escape\0", "/etc/passwd\0", "install.sh\0x"] {
        refused(&forge("install.sh", |header| header[..name.len()].copy_from_slice(name.as_bytes())), "its header");
    }
    refused(&forge("install.sh", |header| header[..12].copy_from_slice(b"../escape.sh")), "names `../escape.sh`");
    refused(&forge("install.sh", |header| header[124..136].copy_from_slice(b"77777777777\0")), "another size");
    refused(&forge("install.sh", |header| header[100..108].copy_from_slice(b"0004755\0")), "its header differs");
    refused(&forge("install.sh", |header| header[108..116].copy_from_slice(b"0001750\0")), "its header differs");
    refused(&forge("install.sh", |header| header[136..147].copy_from_slice(b"00000000001")), "its header differs");
    // A size in base 256, as GNU writes it.
    refused(&forge("install.sh", |header| header[124] = 0x80), "another size");
}

#[test]
fn first_member_with_an_excessive_size_is_not_read() {
    for size in ["77777777777", "11240000000", "00000000000", "00000000007"] {
        let bytes = forge("manifest.json", |header| header[124..135].copy_from_slice(size.as_bytes()));
        refused(&bytes, "its header claims");
    }
    refused(&forge("manifest.json", |header| header[0] = b'M'), "its header is damaged, or it is not manifest.json");
    refused(&forge("manifest.json", |header| header[156] = b'2'), "manifest.json");
}

#[test]
fn unexpected_extended_header_is_refused() {
    let bytes = valid();
    let at = header(&bytes, "install.sh");
    let mut pax = vec![0; 2 * BLOCK];
    pax[..10].copy_from_slice(b"PaxHeader\0");
    pax[124..136].copy_from_slice(b"00000000027\0");
    pax[156] = b'x';
    pax[257..265].copy_from_slice(b"ustar\x0000");
    fix(&mut pax[..BLOCK]);
    pax[BLOCK..BLOCK + 23].copy_from_slice(b"23 path=../../etc/evil\n");
    let evil = [&bytes[..at], &pax, &bytes[at..]].concat();
    refused(&evil, "an extended header");
}

#[test]
fn bundle_padding_and_trailer_are_verified() {
    let mut bytes = valid();
    let at = header(&bytes, "install.sh");
    bytes[at + 2 * BLOCK - 1] = 1;
    refused(&bytes, "install.sh");
    let mut bytes = valid();
    *bytes.last_mut().unwrap() = 1;
    refused(&bytes, "the last two blocks");
    refused(&[valid(), vec![0]].concat(), "bytes after it");
    refused(&[valid(), valid()].concat(), "bytes after it");
}

#[test]
fn non_bundles_are_refused_as_such() {
    refused(b"", "not a bundle");
    refused(b"hello", "not a bundle");
    refused(&[0; 4096], "not a bundle");
    refused(&[b"\x1f\x8b".as_slice(), &[0; 1000]].concat(), "it is compressed");
}

#[test]
fn truncated_bundle_is_refused() {
    let bytes = valid();
    for length in [511, 512, 5000, bytes.len() / 2, bytes.len() - 1] {
        let shop = Workshop::new();
        std::fs::write(shop.path("cut.tar"), &bytes[..length]).unwrap();
        let error = Bundle::open(&shop.path("cut.tar")).unwrap_err().to_string();
        assert!(error.contains("ends at byte") || error.contains("shorter than one block"), "{error}");
    }
}

/// A bundle around a manifest that breaks the rules.
fn around(text: &str) -> Vec<u8> {
    let mut data = text.as_bytes().to_vec();
    data.resize(data.len().next_multiple_of(4096), b' ');
    let mut header = vec![0; BLOCK];
    header[..13].copy_from_slice(b"manifest.json");
    header[100..124].copy_from_slice(b"0000644\x000000000\x000000000\0");
    header[124..148].copy_from_slice(format!("{:011o}\0{:011o}\0", data.len(), 7).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..345].copy_from_slice(b"0000000\x000000000\0");
    fix(&mut header);
    [header, data, vec![0; 64 * BLOCK]].concat()
}

fn file(path: &str, sizes: &[u32]) -> File {
    let chunks = sizes.iter().map(|size| Chunk { size: *size, digest: [0; 32] }).collect();
    let size = sizes.iter().map(|size| u64::from(*size)).sum();
    File { path: path.into(), executable: false, size, digest: textnlp_models::Digest::of(b""), chunks }
}

fn manifest(files: Vec<File>) -> Manifest {
    let version = "1".into();
    Manifest { format: 1, kind: Kind::Full, version, epoch: 7, items: Vec::new(), files, keys: None, delta: None }
}

fn text(manifest: &Manifest) -> String {
    String::from_utf8(manifest.to_bytes().unwrap()).unwrap()
}

#[test]
fn manifests_with_unsafe_paths_are_refused() {
    for (path, words) in [
        ("/etc/passwd", "it is absolute"),
        ("../etc/passwd", "`.` or `..`"),
        ("bin/../../x", "`.` or `..`"),
        ("bin/./x", "`.` or `..`"),
        ("bin//x", "empty part"),
        ("bin/", "empty part"),
        ("", "it is empty"),
        ("bin", "a folder is expected there"),
        ("install.sh/x", "install.sh is a file"),
        ("elsewhere/x", "its first part"),
        ("manifest.json", "its first part"),
        ("installed.json", "its first part"),
        ("bin/a\nb", "control"),
        ("bin/a\u{202e}b", "invisible"),
        ("bin\\x", "backslash"),
    ] {
        refused(&around(&text(&manifest(vec![file(path, &[1])]))), words);
    }
    refused(&around(&text(&manifest(vec![file(&format!("bin/{}", "x".repeat(256)), &[1])]))), "longer than 255");
    refused(&around(&text(&manifest(vec![file(&format!("bin{}", "/x".repeat(600)), &[1])]))), "longer than 1024");
}

#[test]
fn inconsistent_manifests_are_refused() {
    let twice = manifest(vec![file("bin/x", &[1]), file("bin/x", &[1])]);
    refused(&around(&text(&twice)), "`bin/x` is listed twice");
    let unordered = manifest(vec![file("models/x", &[1]), file("bin/x", &[1])]);
    refused(&around(&text(&unordered)), "breaks the order of a bundle");
    let nested = manifest(vec![file("bin/x", &[1]), file("bin/x-y", &[1]), file("bin/x/y", &[1])]);
    refused(&around(&text(&nested)), "is a file and the folder of");
    let mut lying = manifest(vec![file("bin/x", &[5, 6])]);
    lying.files[0].size = 12;
    refused(&around(&text(&lying)), "has 12 bytes, its chunks have 11");
    lying.files[0].size = u64::MAX;
    refused(&around(&text(&lying)), "have more than");
    let large = manifest(vec![file("bin/x", &[MOST_CHUNK + 1])]);
    refused(&around(&text(&large)), "are allowed");
    let none = text(&manifest(vec![file("bin/x", &[1])])).replace("[1,\"", "[0,\"");
    refused(&around(&none), "a chunk is");
    let negative = text(&manifest(vec![file("bin/x", &[1])])).replace("\"size\":1", "\"size\":-1");
    refused(&around(&negative), "invalid value");
    let late = Manifest { epoch: u64::MAX, ..manifest(Vec::new()) };
    refused(&around(&text(&late)), "later than an archive can record");
    let newer = Manifest { format: 2, ..manifest(Vec::new()) };
    refused(&around(&text(&newer)), "format 2");
    let delta = Manifest { kind: Kind::Delta, ..manifest(Vec::new()) };
    refused(&around(&text(&delta)), "needs `delta`");
}

#[test]
fn names_and_versions_that_are_no_part_of_a_path_are_refused() {
    let shop = Workshop::new();
    let refused = |change: &dyn Fn(&mut Inputs), words: &str| {
        let mut inputs = shop.inputs();
        change(&mut inputs);
        let error = pack(&inputs, &shop.path("x.tar"), &PackOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Inputs { .. }) && error.to_string().contains(words), "{words}: {error}");
        let mut manifest = shop.pack("good.tar", &shop.inputs()).manifest;
        (manifest.version, manifest.items) = (inputs.version.clone(), inputs.items.clone());
        manifest.items.sort_by_key(Item::key);
        let error = Manifest::parse(&manifest.to_bytes().unwrap()).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    };
    for (version, words) in [
        ("../../x", "it has a slash"),
        ("..", "it has a part `.` or `..`"),
        ("1\\2", "backslash"),
        (&"1".repeat(200), "at most 128 are allowed"),
    ] {
        refused(&|inputs| inputs.version = version.to_owned(), words);
    }
    for (version, words) in [("../../x", "`.` or `..`"), (&"1".repeat(1000), "longer than 255")] {
        refused(&|inputs| inputs.items[1].version = Some(version.to_owned()), words);
    }
    for kind in [ItemKind::Program, ItemKind::Model, ItemKind::Environment, ItemKind::Package, ItemKind::Document] {
        for (name, words) in [("../../evil", "it has a slash"), ("sub/x", "it has a slash"), ("..", "`.` or `..`")] {
            let change = |inputs: &mut Inputs| {
                (inputs.items[0].kind, inputs.items[0].name) = (kind, name.to_owned());
            };
            refused(&change, words);
        }
    }
    let image = |inputs: &mut Inputs| {
        (inputs.items[0].kind, inputs.items[0].name) = (ItemKind::Image, "docker.io/../postgres".to_owned());
    };
    refused(&image, "`.` or `..`");
}

#[test]
fn items_that_are_not_those_of_the_files_are_reported() {
    let shop = Workshop::new();
    let environment = |inputs: &mut Inputs, name: &str, text: &[u8]| {
        let path = "configs/environments/island.yaml".to_owned();
        let content = Content::Bytes(b"environment: island\n".to_vec());
        inputs.files.push(Input { path: path.clone(), executable: false, content });
        let item = Item {
            kind: ItemKind::Environment,
            name: name.to_owned(),
            digest: textnlp_models::Digest::of(text),
            paths: vec![path],
            ..inputs.items[0].clone()
        };
        inputs.items.push(item);
    };
    let damages = |change: &dyn Fn(&mut Inputs)| -> Vec<String> {
        let mut inputs = shop.inputs();
        change(&mut inputs);
        shop.pack("x.tar", &inputs);
        let options = VerifyOptions { whole_files: true, ..VerifyOptions::default() };
        let verified = Bundle::open(&shop.path("x.tar")).unwrap().verify(&options).unwrap();
        verified.damages.iter().map(ToString::to_string).collect()
    };
    let true_text = b"environment: island\n";
    assert_eq!(damages(&|inputs| environment(inputs, "island", true_text)), [""; 0]);
    let zeros = textnlp_models::Digest::from([0; 32]);
    let model = |inputs: &mut Inputs| inputs.items[0].digest = zeros;
    let half = |inputs: &mut Inputs| drop(inputs.items[0].paths.pop());
    let program = |inputs: &mut Inputs| inputs.items[1].digest = zeros;
    let pathless = |inputs: &mut Inputs| inputs.items[1].paths.clear();
    let installer = |inputs: &mut Inputs| inputs.items[1].paths = vec!["install.sh".to_owned()];
    let platform = |inputs: &mut Inputs| inputs.items[1].platform = Some("linux/arm64".to_owned());
    let misnamed = |inputs: &mut Inputs| environment(inputs, "other", true_text);
    let untrue = |inputs: &mut Inputs| environment(inputs, "island", b"another text");
    type Change<'a> = &'a dyn Fn(&mut Inputs);
    let cases: [(&str, Change<'_>); 8] = [
        ("model `tiny`", &model),
        ("model `tiny`", &half),
        ("program `textnlp-deploy`", &program),
        ("program `textnlp-deploy`", &pathless),
        ("program `textnlp-deploy`", &installer),
        ("program `textnlp-deploy`", &platform),
        ("environment `other`", &misnamed),
        ("environment `island`", &untrue),
    ];
    for (item, change) in cases {
        let found = damages(change);
        let [damage] = &found[..] else { panic!("{item}: {found:?}") };
        assert!(damage.contains(&format!("{item} has a digest or paths that are not those of its files")), "{damage}");
    }
}

#[test]
fn non_canonical_manifests_are_refused() {
    let good = text(&manifest(vec![file("bin/x", &[1])]));
    refused(&around(&good.replace("{\"format\":1", "{ \"format\":1")), "canonical");
    refused(&around(&good.replacen("{\"format\":1,", "{\"format\":1,\"extra\":1,", 1)), "unknown field");
    refused(&around(&good.replacen("\"version\":\"1\"", "\"version\":\"1\",\"version\":\"1\"", 1)), "duplicate field");
    refused(&around(&format!("{good}\n")), "canonical");
    refused(&around(&format!("{good}{good}")), "trailing");
    refused(&around(&"[".repeat(100_000)), "manifest.json");
    refused(&around(&format!("[{}]", vec!["\"\""; 2_000_001].join(","))), "strings");
    refused(&around("{\"format\":1"), "manifest.json");
    refused(&around("\u{0}"), "manifest.json");
}

#[test]
fn manifest_errors_are_reported_all_at_once() {
    let mut bad = manifest(vec![file("bin/../x", &[1]), file("bin/y", &[MOST_CHUNK + 1])]);
    bad.files[0].size = 9;
    let error = Manifest::parse(text(&bad).as_bytes()).unwrap_err().to_string();
    for words in ["`.` or `..`", "its chunks have 1", "are allowed"] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn file_with_a_false_digest_is_never_linked_to() {
    // An installed bundle claims the digest of somebody else's file for its own bytes.
    let shop = Workshop::new();
    let inputs = |bytes: &[u8]| Inputs {
        version: "1".into(),
        epoch: 7,
        items: Vec::new(),
        files: vec![Input { path: "bin/tool".into(), executable: true, content: Content::Bytes(bytes.to_vec()) }],
        ..Inputs::default()
    };
    let good = shop.pack("good.tar", &inputs(b"good"));
    let evil = shop.pack("evil.tar", &inputs(b"evil"));
    let mut bytes = std::fs::read(shop.path("evil.tar")).unwrap();
    let (lie, truth) = (good.manifest.files[0].digest.hex(), evil.manifest.files[0].digest.hex());
    let replace = |bytes: &mut Vec<u8>, from: &str, to: &str| {
        while let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    replace(&mut bytes, &truth, &lie);
    let manifest_at = BLOCK..header(&bytes, "manifest.json.minisig");
    let sum = textnlp_models::Digest::of(&bytes[manifest_at]).hex();
    let at = header(&bytes, "SHA256SUMS") + BLOCK;
    bytes[at..at + 64].copy_from_slice(sum.as_bytes());
    std::fs::write(shop.path("evil.tar"), bytes).unwrap();

    let mut evil = Bundle::open(&shop.path("evil.tar")).unwrap();
    let report = evil.verify(&VerifyOptions { whole_files: true, ..VerifyOptions::default() }).unwrap();
    assert!(report.damages[0].to_string().contains("bin/tool"), "{:?}", report.damages);
    let site = Site::new(&shop.path("site"));
    // Its chunks are as it says, so it can be unpacked, and has the good one's name.
    let first = site.unpack(&mut evil, &options()).unwrap();
    let second = site.unpack(&mut Bundle::open(&shop.path("good.tar")).unwrap(), &options()).unwrap();
    assert_eq!(first.name, second.name);
    assert!(!second.unchanged);
    assert_eq!(std::fs::read(second.folder.join("bin/tool")).unwrap(), b"good");
}
