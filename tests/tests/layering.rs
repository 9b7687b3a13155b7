//! The import table of the rooms, held against the manifests: an edge that is not in it fails here.
//!
//! A new edge between our crates is a design change: it is written into this table, and why into the commit.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Crate, and which crates of ours it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("textnlp-provider", &[]),
    ("textnlp-models", &[]),
    ("textnlp-inference", &[]),
    ("textnlp-control", &[]),
    ("textnlp-onprem", &["textnlp-provider", "textnlp-models"]),
    ("textnlp-kubernetes", &["textnlp-provider"]),
    ("textnlp-token", &["textnlp-provider"]),
    ("textnlp-orchestrator", &["textnlp-provider", "textnlp-bundle"]),
    ("textnlp-bundle", &["textnlp-models"]),
    ("textnlp-training", &["textnlp-inference", "textnlp-models"]),
    ("textnlp-server", &["textnlp-control", "textnlp-inference", "textnlp-models", "textnlp-bundle"]),
    (
        "textnlp-deploy",
        &[
            "textnlp-provider",
            "textnlp-models",
            "textnlp-inference",
            "textnlp-kubernetes",
            "textnlp-token",
            "textnlp-onprem",
            "textnlp-orchestrator",
            "textnlp-server",
            "textnlp-bundle",
        ],
    ),
    ("textnlp-bench", &["textnlp-inference"]),
    ("textnlp-tests", &[]),
    ("textnlp-cluster", &[]),
];

/// Crate, and what it must not know: a part of a dependency's name.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    ("textnlp-provider", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "reqwest"]),
    ("textnlp-models", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "candle"]),
    (
        "textnlp-inference",
        &["aws-sdk", "google-cloud", "azure", "kube", "clap", "hyper", "axum", "reqwest", "tokio", "sqlx"],
    ),
    ("textnlp-control", &["tokio", "hyper", "axum", "reqwest", "sqlx", "jiff"]),
    ("textnlp-onprem", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif"]),
    // Who one is for each cloud, and nothing that is done there.
    ("textnlp-token", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif"]),
    ("textnlp-kubernetes", &["aws-sdk", "aws-config", "google-cloud", "azure", "clap", "indicatif", "rcgen"]),
    ("textnlp-bundle", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "axum", "candle"]),
    ("textnlp-orchestrator", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "candle"]),
    ("textnlp-training", &["axum", "hyper", "reqwest"]),
    ("textnlp-server", &["aws-sdk", "google-cloud", "azure", "kube", "indicatif", "candle"]),
];

#[test]
fn crates_import_only_what_the_table_allows() {
    let crates = our_crates();
    assert!(crates.len() >= 9, "the workspace's members were not found");
    let mut wrong = Vec::new();
    for (name, dependencies) in &crates {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(ours, _)| ours == name) else {
            wrong.push(format!("`{name}` is not in the table"));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| d.starts_with("textnlp-")) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("`{name}` may not import `{dependency}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_do_not_know_what_they_must_not_know() {
    let crates = our_crates();
    let mut wrong = Vec::new();
    for (name, banned) in MUST_NOT_KNOW {
        for dependency in crates.get(*name).into_iter().flatten() {
            if let Some(part) = banned.iter().find(|part| dependency.starts_with(**part)) {
                wrong.push(format!("`{name}` must not know `{part}…`, and imports `{dependency}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_orchestrator_names_no_cloud() {
    let mut wrong = Vec::new();
    for file in rust_files(&root().join("orchestrator/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if ["textnlp_onprem", "textnlp_aws", "textnlp_gcp", "textnlp_azure", "println!", "eprintln!"]
                .iter()
                .any(|w| code.contains(w))
            {
                wrong.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every member of the workspace with the names of its normal dependencies.
fn our_crates() -> BTreeMap<String, Vec<String>> {
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().expect("workspace members");
    members
        .iter()
        .map(|member| {
            let manifest = read(&root().join(member.as_str().expect("a path")).join("Cargo.toml"));
            let name = manifest["package"]["name"].as_str().expect("a package name").to_owned();
            let normal = manifest.get("dependencies").and_then(|d| d.as_table()).into_iter().flatten();
            (name, normal.map(|(dependency, _)| dependency.clone()).collect())
        })
        .collect()
}

fn read(path: &Path) -> toml::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    toml::from_str(&text).unwrap_or_else(|e| panic!("parse {}: {e}", path.display()))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_owned()
}
