//! Updates of images: the list of images follows from what is there.

use textnlp_bundle::manifest::ItemKey;
use textnlp_bundle::oci::image::assemble;
use textnlp_bundle::oci::layout::{Layout, merge};
use textnlp_bundle::oci::{Image, Platform};
use textnlp_bundle::recipe::IMAGES;
use textnlp_bundle::*;

use crate::tools::*;

const AMD64: u16 = 62;
const ARM64: u16 = 183;

/// A bundle of images that were made of these: name, version, machine, and what tells its program from others.
fn bundle(dir: &Dir, out: &str, images: &[(&str, &str, u16, usize)]) -> Contents {
    let image = |(name, version, machine, salt): &(&str, &str, u16, usize)| {
        let mut recipe = recipe(program(dir.path(), *machine, &vec![b'x'; *salt]), name);
        recipe.version = (*version).to_owned();
        assemble(&recipe).unwrap()
    };
    let images: Vec<Image> = images.iter().map(image).collect();
    let input = |blob: oci::Blob| Input {
        path: format!("{IMAGES}/{}", blob.path),
        executable: false,
        content: Content::Parts(blob.content),
    };
    let inputs = Inputs {
        version: "1".into(),
        epoch: 1,
        items: images.iter().map(|image| image.item(None)).collect(),
        files: merge(&images).unwrap().into_iter().map(input).collect(),
        ..Inputs::default()
    };
    Contents::of(&pack(&inputs, &dir.join(out), &PackOptions::default()).unwrap().manifest).unwrap()
}

fn options() -> UnpackOptions<'static> {
    let authenticity = Authenticity::Unverified { why: "test".into() };
    UnpackOptions { authenticity, deep: false, drive: Drive::default() }
}

fn installed(dir: &Dir, bundle: &str, root: &str) -> Site {
    let site = Site::new(&dir.join(root));
    let unpacked = site.unpack(&mut Bundle::open(&dir.join(bundle)).unwrap(), &options()).unwrap();
    site.activate(&unpacked.name).unwrap();
    site
}

#[test]
fn ten_image_updates_produce_the_same_index_in_any_order() {
    let dir = Dir::new();
    let base = bundle(
        &dir,
        "a.tar",
        &[
            ("changed", "1", AMD64, 1),
            ("tagged", "1", AMD64, 2),
            ("dropped", "1", AMD64, 3),
            // A second platform makes a list of its own of a name, one platform less takes it away.
            ("joined", "1", AMD64, 4),
            ("parted", "1", AMD64, 5),
            ("parted", "1", ARM64, 5),
            ("both", "1", AMD64, 6),
            ("both", "1", ARM64, 6),
            ("same", "1", AMD64, 7),
        ],
    );
    let target = bundle(
        &dir,
        "b.tar",
        &[
            ("changed", "1", AMD64, 11),
            ("tagged", "2", AMD64, 2),
            ("joined", "1", AMD64, 4),
            ("joined", "1", ARM64, 4),
            ("parted", "1", AMD64, 5),
            ("both", "1", AMD64, 12),
            ("both", "1", ARM64, 12),
            ("same", "1", AMD64, 7),
            ("new", "1", AMD64, 8),
            ("newer", "1", AMD64, 9),
            ("newest", "1", ARM64, 10),
        ],
    );
    let keys =
        |contents: &Contents| contents.items.iter().map(|item| (item.key(), item.identity())).collect::<Vec<_>>();
    let (before, after) = (keys(&base), keys(&target));
    let other = |key: &&ItemKey| {
        let find = |list: &[(ItemKey, _)]| list.iter().find(|(there, _)| there == *key).map(|(_, identity)| *identity);
        find(&before) != find(&after)
    };
    let mut changed: Vec<ItemKey> = before.iter().chain(&after).map(|(key, _)| key).filter(other).cloned().collect();
    changed.sort();
    changed.dedup();
    assert_eq!(changed.len(), 10, "{changed:?}");
    for (n, key) in changed.iter().enumerate() {
        let to = Bundle::open(&dir.join("b.tar")).unwrap();
        let scope = Scope::Items(vec![key.clone()]);
        let out = dir.join(&format!("{n}.tar"));
        let made = make_delta(Some(&base), &Target::Bundle(&to), &scope, &out, &Drive::default()).unwrap();
        assert!(made.manifest.files.iter().all(|file| file.path.starts_with("images/blobs/")));
    }

    let fresh = installed(&dir, "b.tar", "fresh").installed().unwrap().unwrap();
    let orders: [fn(usize) -> usize; 4] = [|n| n, |n| 9 - n, |n| (n * 3 + 1) % 10, |n| (n * 7 + 4) % 10];
    for (round, order) in orders.iter().enumerate() {
        let site = installed(&dir, "a.tar", &format!("site-{round}"));
        for n in 0..10 {
            let mut delta = Bundle::open(&dir.join(&format!("{}.tar", order(n)))).unwrap();
            let applied = site.apply(&mut delta, &options()).unwrap();
            site.activate(&applied.name).unwrap();
            // After each of them the list is one that others can read.
            Layout::open(&applied.folder.join(IMAGES)).unwrap();
        }
        let there = site.installed().unwrap().unwrap();
        assert_eq!(there.contents, fresh.contents);
        assert_eq!(there.content, target.digest());
        let current = site.folder(&site.current().unwrap().unwrap());
        let layout = Layout::open(&current.join(IMAGES)).unwrap();
        for platform in ["amd64", "arm64"] {
            layout.image(Some("both:1"), &Platform::linux(platform), "both").unwrap();
        }
        assert!(layout.image(Some("parted:1"), &Platform::linux("arm64"), "parted").is_err());
    }

    // All at once is the same.
    let to = Bundle::open(&dir.join("b.tar")).unwrap();
    make_delta(Some(&base), &Target::Bundle(&to), &Scope::Everything, &dir.join("all.tar"), &Drive::default()).unwrap();
    let site = installed(&dir, "a.tar", "at-once");
    let applied = site.apply(&mut Bundle::open(&dir.join("all.tar")).unwrap(), &options()).unwrap();
    assert_eq!(applied.record.contents, fresh.contents);
}
