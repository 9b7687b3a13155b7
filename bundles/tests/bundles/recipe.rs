//! What goes into a bundle, and to which item it belongs.

use std::collections::{BTreeMap, BTreeSet};

use crate::made::Workshop;
use textnlp_bundle::manifest::ItemKind;
use textnlp_bundle::recipe::{self, Ingredients, ProgramFile, list_path};
use textnlp_bundle::{Content, Contents, Input, PackOptions, Scope, Target, make_delta, pack};
use textnlp_models::Digest;

fn list(path: String, text: &str) -> Input {
    Input { path, executable: false, content: Content::Bytes(text.as_bytes().to_vec()) }
}

fn ingredients(shop: &Workshop, version: &str, advisories: &str) -> Ingredients {
    let path = shop.path("in/program");
    let digest = Digest::of(&std::fs::read(&path).unwrap());
    let program = |platform: &str| ProgramFile { platform: platform.into(), path: path.clone(), digest };
    Ingredients {
        version: version.into(),
        epoch: 1,
        programs: vec![program("linux/amd64"), program("linux/arm64")],
        environments: vec![("island".into(), "environment: island\n".into())],
        files: vec![
            list(list_path(ItemKind::Program, "textnlp-deploy", None), version),
            list("sbom/advisories.json".into(), advisories),
        ],
        ..Ingredients::default()
    }
}

#[test]
fn every_bundled_file_belongs_to_an_item() {
    let shop = Workshop::new();
    let inputs = recipe::inputs(ingredients(&shop, "1", "{}")).unwrap();
    let owned: BTreeSet<&str> = inputs.items.iter().flat_map(|item| &item.paths).map(String::as_str).collect();
    let files: BTreeSet<&str> = inputs.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(files, owned);
    assert!(files.contains("install.sh") && files.contains("sbom/program.cdx.json"));
}

#[test]
fn delta_of_newer_advisories_contains_only_them() {
    let shop = Workshop::new();
    let make = |name: &str, version: &str, advisories: &str| {
        let inputs = recipe::inputs(ingredients(&shop, version, advisories)).unwrap();
        pack(&inputs, &shop.path(name), &PackOptions::default()).unwrap()
    };
    let base = Contents::of(&make("a.tar", "1", "{}").manifest).unwrap();
    make("b.tar", "2", "{ }");
    let target = textnlp_bundle::Bundle::open(&shop.path("b.tar")).unwrap();
    let scope = Scope::Items(vec![(ItemKind::Document, "advisories".into(), None)]);
    let made = make_delta(Some(&base), &Target::Bundle(&target), &scope, &shop.path("d.tar"), &Default::default());
    let brought: Vec<_> = made.unwrap().manifest.files.into_iter().map(|file| file.path).collect();
    assert_eq!(brought, ["sbom/advisories.json"]);
}

#[test]
fn image_sbom_paths_are_unique() {
    let names = ["a/b", "a-b", "a+b", "a=2b=b", "a:b", "a=3a=b", "host:5000/a"];
    let mut paths = BTreeMap::new();
    for name in names {
        for platform in ["linux/amd64", "linux/arm64"] {
            let path = list_path(ItemKind::Image, name, Some(platform));
            assert_eq!(paths.insert(path.clone(), (name, platform)), None, "{path}");
        }
    }
}
