//! Bundles that bring only what changed.

use crate::made::{Workshop, noise, safetensors, tree_digest};
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::*;

fn options() -> UnpackOptions<'static> {
    UnpackOptions {
        authenticity: Authenticity::Unverified { why: "test".into() },
        deep: false,
        drive: Drive::default(),
    }
}

fn model(name: &str, paths: &[&str]) -> Item {
    Item {
        kind: ItemKind::Model,
        name: name.into(),
        version: None,
        digest: textnlp_models::Digest::of(name.as_bytes()),
        platform: None,
        license: None,
        source: None,
        media_type: None,
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
    }
}

fn file(path: &str, bytes: Vec<u8>) -> Input {
    Input { path: path.into(), executable: false, content: Content::Bytes(bytes) }
}

fn contents(shop: &Workshop, name: &str, inputs: &Inputs) -> Contents {
    Contents::of(&shop.pack(name, inputs).manifest).unwrap()
}

fn make(shop: &Workshop, base: Option<&Contents>, target: &str, scope: &Scope, out: &str) -> CreatedDelta {
    let bundle = Bundle::open(&shop.path(target)).unwrap();
    make_delta(base, &Target::Bundle(&bundle), scope, &shop.path(out), &Drive::default()).unwrap()
}

fn install(shop: &Workshop, bundle: &str, root: &str) -> Site {
    let site = Site::new(&shop.path(root));
    let unpacked = site.unpack(&mut Bundle::open(&shop.path(bundle)).unwrap(), &options()).unwrap();
    site.activate(&unpacked.name).unwrap();
    site
}

fn apply(shop: &Workshop, site: &Site, delta: &str) -> Result<Unpacked> {
    let mut bundle = Bundle::open(&shop.path(delta)).unwrap();
    assert!(bundle.verify(&VerifyOptions::default()).unwrap().is_whole());
    let applied = site.apply(&mut bundle, &options())?;
    site.activate(&applied.name).unwrap();
    Ok(applied)
}

#[test]
fn delta_of_one_changed_tensor_contains_little_more_than_it() {
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    let with = |third: u64| safetensors(&[(1, 20 << 20), (2, 6 << 20), (third, 3_000_000), (4, 9 << 20)]);
    inputs.files.push(file("models/big/model.safetensors", with(3)));
    let base = contents(&shop, "a.tar", &inputs);
    inputs.files.pop();
    inputs.files.push(file("models/big/model.safetensors", with(33)));
    let target = contents(&shop, "b.tar", &inputs);

    let made = make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    let whole = std::fs::metadata(shop.path("b.tar")).unwrap().len();
    let allowed = 3_000_000.0 * 1.1 + whole as f64 * 0.001;
    assert!((made.bytes as f64) <= allowed, "{} bytes for 3000000 changed ones", made.bytes);

    let site = install(&shop, "a.tar", "site");
    let applied = apply(&shop, &site, "d.tar").unwrap();
    assert_eq!(applied.record.content, target.digest());
    let fresh = install(&shop, "b.tar", "fresh");
    assert_eq!(tree_digest(&applied.folder), tree_digest(&fresh.folder(&fresh.current().unwrap().unwrap())));
    assert!(apply(&shop, &site, "d.tar").unwrap().unchanged, "a second time changes nothing");
    site.rollback().unwrap();
    assert_eq!(site.installed().unwrap().unwrap().content, base.digest());
    assert_eq!(apply(&shop, &site, "d.tar").unwrap().written, 0, "it is still there");
}

#[test]
fn delta_of_one_changed_layer_contains_little_more_than_it() {
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    for n in 0..5 {
        inputs.files.push(file(&format!("images/blobs/sha256/{n}"), noise(100 + n, 4 << 20)));
    }
    let base = contents(&shop, "a.tar", &inputs);
    inputs.files.pop();
    // A layer with one file changed in its middle, under the name of its new digest.
    let mut layer = noise(104, 4 << 20);
    layer.splice(2_000_000..2_000_100, noise(7, 50_000));
    inputs.files.push(file("images/blobs/sha256/9", layer));
    let target = contents(&shop, "b.tar", &inputs);
    let made = make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    assert!(made.carried < 50_000 + 3 * (512 << 10), "{}", made.carried);
    let site = install(&shop, "a.tar", "site");
    assert_eq!(apply(&shop, &site, "d.tar").unwrap().record.content, target.digest());
}

#[test]
fn delta_of_unchanged_or_renamed_content_is_empty() {
    let shop = Workshop::new();
    let base = contents(&shop, "a.tar", &shop.inputs());
    let made = make(&shop, Some(&base), "a.tar", &Scope::Everything, "same.tar");
    assert_eq!((made.carried, made.manifest.files.len()), (0, 0));
    let mut inputs = shop.inputs();
    for input in &mut inputs.files {
        input.path = input.path.replace("models/tiny", "models/small");
    }
    inputs.items[0] = model("small", &["models/small/config.json", "models/small/model.safetensors"]);
    let target = contents(&shop, "b.tar", &inputs);
    let made = make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    assert_eq!(made.carried, 0);
    let site = install(&shop, "a.tar", "site");
    assert_eq!(apply(&shop, &site, "d.tar").unwrap().record.content, target.digest());
}

#[test]
fn ten_independent_deltas_converge_in_any_order() {
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    let paths: Vec<String> = (0..10).map(|n| format!("models/m{n}/weights.bin")).collect();
    for (n, path) in paths.iter().enumerate() {
        // The tenth is new, the ninth goes.
        if n < 9 {
            inputs.files.push(file(path, noise(n as u64 + 50, 400_000)));
            inputs.items.push(model(&format!("m{n}"), &[path.as_str()]));
        }
    }
    let base = contents(&shop, "base.tar", &inputs);
    let mut target = shop.inputs();
    for (n, path) in paths.iter().enumerate().filter(|(n, _)| *n != 8) {
        let mut bytes = noise(n as u64 + 50, 400_000);
        bytes[200_000..200_100].copy_from_slice(&noise(n as u64 + 500, 100));
        target.files.push(file(path, bytes));
        let mut item = model(&format!("m{n}"), &[path.as_str()]);
        item.version = Some("2".into());
        target.items.push(item);
    }
    let wanted = contents(&shop, "target.tar", &target);
    for n in 0..10 {
        let scope = Scope::Items(vec![(ItemKind::Model, format!("m{n}"), None)]);
        make(&shop, Some(&base), "target.tar", &scope, &format!("d{n}.tar"));
    }
    let orders = std::env::var("TEXTNLP_TESTS_ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut random = noise(11, orders * 80)
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().unwrap()))
        .collect::<Vec<_>>()
        .into_iter();
    for round in 0..orders {
        let mut order: Vec<usize> = (0..10).collect();
        for at in (1..10).rev() {
            order.swap(at, (random.next().unwrap() % (at as u64 + 1)) as usize);
        }
        let root = format!("site-{round}");
        let site = install(&shop, "base.tar", &root);
        for n in &order {
            apply(&shop, &site, &format!("d{n}.tar")).unwrap_or_else(|error| panic!("{order:?}: {error}"));
        }
        let installed = site.installed().unwrap().unwrap();
        assert_eq!(installed.content, wanted.digest(), "{order:?}");
        assert_eq!(installed.sources.len(), 11);
        std::fs::remove_dir_all(site.root()).unwrap();
    }
}

#[test]
fn delta_on_another_base_is_refused_with_the_mismatches() {
    let shop = Workshop::new();
    let inputs = |config: &[u8], weights: u64| {
        let mut inputs = shop.inputs();
        inputs.files.push(file("configs/x", config.to_vec()));
        inputs.files.push(file("models/m/w", noise(weights, 300_000)));
        inputs
    };
    let a = contents(&shop, "a.tar", &inputs(b"1", 1));
    contents(&shop, "b.tar", &inputs(b"2", 2));
    contents(&shop, "other.tar", &inputs(b"3", 1));
    make(&shop, Some(&a), "b.tar", &Scope::Everything, "d.tar");
    let site = install(&shop, "other.tar", "site");
    let before = tree_digest(site.root());
    let error = apply(&shop, &site, "d.tar").unwrap_err();
    let Error::WrongBase { mismatches, .. } = &error else { panic!("{error}") };
    assert_eq!(mismatches.len(), 1, "{error}");
    assert_eq!(mismatches[0].subject, "configs/x");
    assert_eq!(mismatches[0].found, Some(textnlp_models::Digest::of(b"3")));
    assert_eq!(mismatches[0].expected, Some(textnlp_models::Digest::of(b"1")));
    assert!(error.hint().is_some());
    assert_eq!(tree_digest(site.root()), before, "nothing was touched");
}

#[test]
fn selected_models_are_delivered_without_a_base() {
    let shop = Workshop::new();
    contents(&shop, "a.tar", &shop.inputs());
    let site = install(&shop, "a.tar", "site");
    let inputs = Inputs {
        version: "models-2".into(),
        epoch: 1_700_000_001,
        items: vec![model("new", &["models/new/w"]), model("tiny", &["models/tiny/model.safetensors"])],
        files: vec![
            file("models/new/w", noise(8, 2_000_000)),
            file("models/tiny/model.safetensors", safetensors(&[(9, 100_000)])),
        ],
        ..Inputs::default()
    };
    let made =
        make_delta(None, &Target::Inputs(&inputs), &Scope::Everything, &shop.path("d.tar"), &Drive::default()).unwrap();
    assert_eq!(made.manifest.delta.as_ref().unwrap().expects.len(), 0);
    let applied = apply(&shop, &site, "d.tar").unwrap();
    let there = |path: &str| std::fs::read(applied.folder.join(path)).unwrap();
    assert!(there("models/new/w") == noise(8, 2_000_000));
    assert!(there("models/tiny/model.safetensors") == safetensors(&[(9, 100_000)]));
    assert_eq!(there("models/tiny/config.json"), b"{}", "what the delta does not name stays");
}

#[test]
fn delta_can_be_applied_from_a_stream() {
    let shop = Workshop::new();
    let base = contents(&shop, "a.tar", &shop.inputs());
    let mut inputs = shop.inputs();
    // The same new bytes twice: they are carried once.
    inputs.files.push(file("models/x/1", noise(5, 3 << 20)));
    inputs.files.push(file("models/x/2", noise(5, 3 << 20)));
    let target = contents(&shop, "b.tar", &inputs);
    let made = make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    assert_eq!(made.carried, 3 << 20);
    let site = install(&shop, "a.tar", "site");
    let mut bundle = Bundle::from_stream(std::fs::File::open(shop.path("d.tar")).unwrap()).unwrap();
    assert_eq!(site.apply(&mut bundle, &options()).unwrap().record.content, target.digest());
}

#[test]
fn delta_on_an_altered_base_is_refused() {
    let shop = Workshop::new();
    let base = contents(&shop, "a.tar", &shop.inputs());
    let mut inputs = shop.inputs();
    inputs.files.push(file("configs/new", b"new".to_vec()));
    contents(&shop, "b.tar", &inputs);
    make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    let site = install(&shop, "a.tar", "site");
    let victim = site.folder(&site.current().unwrap().unwrap()).join("configs/air-gapped/environment.yaml");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&victim, "another hand").unwrap();
    let error = apply(&shop, &site, "d.tar").unwrap_err().to_string();
    assert!(error.contains("configs/air-gapped/environment.yaml was changed after installation"), "{error}");
}

#[test]
fn bundle_diff_lists_items_files_and_bytes() {
    let shop = Workshop::new();
    let base = contents(&shop, "a.tar", &shop.inputs());
    let mut inputs = shop.inputs();
    inputs.items[1].version = Some("0.2.0".into());
    inputs.files.retain(|file| file.path != "models/tiny/empty");
    inputs.files.push(file("configs/new", noise(1, 2000)));
    let after = contents(&shop, "b.tar", &inputs);
    let text = diff(&base, &after).to_string();
    assert!(text.contains("± program textnlp-deploy (linux/amd64)  0.1.0 -> 0.2.0"), "{text}");
    assert!(text.contains("- models/tiny/empty  0 -> 0 bytes"), "{text}");
    assert!(text.contains("+ configs/new  0 -> 2000 bytes, 2000 of them new"), "{text}");
    assert!(diff(&base, &base).is_empty());
}

/// What this thread has read so far.
fn read_so_far() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn interrupted_update_rereads_little() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const WEIGHTS: usize = 48 << 20;
    const AGAIN: u64 = 8 << 20;
    let shop = Workshop::new();
    let mut inputs = shop.inputs();
    let base = contents(&shop, "a.tar", &inputs);
    inputs.files.push(file("models/new/model.safetensors", safetensors(&[(1, WEIGHTS)])));
    let target = contents(&shop, "b.tar", &inputs);
    make(&shop, Some(&base), "b.tar", &Scope::Everything, "d.tar");
    let site = install(&shop, "a.tar", "site");
    for stop_at in [18 << 20, 41 << 20, WEIGHTS as u64] {
        let stop = AtomicBool::new(false);
        let progress = |event: Event<'_>| {
            if let Event::Bytes { done } = event {
                stop.store(done >= stop_at, Ordering::Relaxed);
            }
        };
        let drive = Drive { progress: &progress, stop: &stop, ..Drive::default() };
        let mut bundle = Bundle::open(&shop.path("d.tar")).unwrap();
        let (mut resumed, before) = (0, read_so_far());
        match site.apply(&mut bundle, &UnpackOptions { drive, ..options() }) {
            Err(Error::Stopped { .. }) => {}
            Ok(applied) => {
                resumed = applied.resumed;
                assert_eq!(applied.record.content, target.digest());
            }
            Err(error) => panic!("{error}"),
        }
        let read = read_so_far() - before;
        assert!(read < (23 << 20) + AGAIN, "{read} bytes were read, {resumed} were there");
    }
    assert_eq!(site.contents().unwrap().len(), 2);
    assert!(
        !std::fs::read_dir(site.root())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with(".incoming-") })
    );
}
