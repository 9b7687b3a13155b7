//! Models and configuration go from the primary to every other site, whoever that is, and nobody who deployed is asked.

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_models::{Digest, MANIFEST};

use super::LONG;
use super::sites::{Sites, until};

/// A model folder as a site has it, of several pieces; gives its digest.
fn put_model(folder: &Utf8Path, seed: u8) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let weights: Vec<u8> = (0..9_000_000u32).map(|n| (n / 7) as u8 ^ seed).collect();
    let mut files = Vec::new();
    let mut whole = Vec::new();
    for (name, bytes) in [("config.json", &b"{}"[..]), ("model.safetensors", &weights)] {
        std::fs::write(folder.join(name), bytes).unwrap();
        let digest = Digest::of(bytes);
        whole.extend_from_slice(format!("{name}\0{}\n", digest.hex()).as_bytes());
        files.push(json!({ "name": name, "digest": digest, "bytes": bytes.len() }));
    }
    let digest = Digest::of(&whole);
    let bytes: u64 = files.iter().map(|file| file["bytes"].as_u64().unwrap()).sum();
    let list = json!({ "format": 1, "source": "file:/somewhere", "digest": digest, "bytes": bytes, "files": files });
    // Last: before it, this is no model.
    std::fs::write(folder.join(MANIFEST), list.to_string()).unwrap();
    digest.hex()
}

fn standing(sites: &Sites, site: &str, data: &str) -> Value {
    sites.status(site)["copies"][data].clone()
}

fn copies(sites: &Sites, site: &str) -> Vec<String> {
    let folder = sites.root().join(site).join("data/control/copies/models");
    let mut names: Vec<String> =
        folder.read_dir_utf8().into_iter().flatten().flatten().map(|e| e.file_name().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn models_and_configuration_are_copied_to_every_site() {
    let mut sites = Sites::start_copying();
    sites.until_all_are_members();
    let at = |site: &str, path: &str| sites.root().join(site).join(path);
    for site in super::NAMES {
        std::fs::write(at(site, "config/server.yaml"), format!("from: {site}\n")).unwrap();
    }
    std::fs::write(at("primary", "config/secret.pem"), "not for others").unwrap();
    let digest = put_model(&at("primary", "models/m"), 1);
    // Nothing is taken from what is not whole.
    std::fs::create_dir_all(at("primary", "models/half")).unwrap();
    std::fs::write(at("primary", "models/half/model.safetensors"), "half").unwrap();
    for site in ["secondary", "tertiary"] {
        until(LONG, || copies(&sites, site) == [digest.clone()]);
        let copied = at(site, "data/control/copies");
        assert!(textnlp_models::verify(&copied.join("models").join(&digest)).is_ok());
        until(LONG, || std::fs::read(copied.join("configuration/server.yaml")).is_ok_and(|b| b == b"from: primary\n"));
        assert!(!copied.join("configuration/secret.pem").exists());
        until(LONG, || {
            let models = standing(&sites, site, "models");
            models["held"] == 1
                && models["missing_bytes"] == 0
                && models["whole_ms"].as_u64().is_some_and(|ms| ms < 5000)
        });
    }
    assert_eq!(standing(&sites, "primary", "models")["source"], true);
    let metrics = sites.metrics("tertiary");
    assert!(metrics.contains("textnlp_copy_missing_bytes{site=\"tertiary\",data=\"models\"} 0"), "{metrics}");
    assert!(metrics.contains("textnlp_copy_whole_seconds{site=\"tertiary\",data=\"configuration\"} "), "{metrics}");

    // Half of another one is there, of which a part is wrong: what is wrong is noticed at the end, and all of it comes anew.
    let other = put_model(&at("primary", "models/n"), 2);
    let part = at("tertiary", &format!("data/control/copies/models/.part-{other}"));
    std::fs::create_dir_all(&part).unwrap();
    let _ = std::fs::write(part.join("model.safetensors"), vec![9; 5_000_000]);
    let both = || {
        let mut both = vec![digest.clone(), other.clone()];
        both.sort();
        both
    };
    until(LONG, || copies(&sites, "tertiary") == both() && copies(&sites, "secondary") == both());
    assert!(textnlp_models::verify(&at("tertiary", "data/control/copies/models").join(&other)).is_ok());

    // The primary is gone with its disk: who takes its place has everything, and gives it back.
    sites.kill("primary");
    sites.lose_disk("primary");
    for model in ["m", "n"] {
        std::fs::remove_dir_all(sites.root().join("primary/models").join(model)).unwrap();
    }
    sites.next_primary();
    sites.run("primary");
    until(LONG, || copies(&sites, "primary") == both());
}

#[test]
fn site_that_cannot_store_a_copy_reports_it_and_keeps_running() {
    let sites = Sites::start_copying();
    sites.until_all_are_members();
    let folder = sites.root().join("tertiary/data/control/copies");
    // What stands in the way of its folder keeps a copy away, whoever asks.
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("models"), "in the way").unwrap();
    put_model(&sites.root().join("primary/models/m"), 3);
    until(LONG, || {
        let models = standing(&sites, "tertiary", "models");
        models["error"].is_string()
    });
    until(LONG, || standing(&sites, "secondary", "models")["held"] == 1);
    assert_eq!(sites.status("tertiary")["role"], "member");
    std::fs::remove_file(folder.join("models")).unwrap();
    until(LONG, || standing(&sites, "tertiary", "models")["held"] == 1);
}
