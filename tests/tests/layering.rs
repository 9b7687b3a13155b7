//! The import table of the rooms, held against the manifests: an edge that is not in it fails here.
//!
//! A new edge between our crates is a design change: it is written into this table, and why into the commit.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crate, and which crates of ours it may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("textnlp-buckets", &[]),
    ("textnlp-files", &[]),
    ("textnlp-gcs", &[]),
    ("textnlp-net", &[]),
    ("textnlp-provider", &[]),
    ("textnlp-inference", &[]),
    ("textnlp-candle", &["textnlp-inference"]),
    ("textnlp-models", &["textnlp-inference", "textnlp-buckets"]),
    ("textnlp-control", &[]),
    ("textnlp-keys", &["textnlp-provider"]),
    ("textnlp-onprem", &["textnlp-provider", "textnlp-keys", "textnlp-models"]),
    ("textnlp-kubernetes", &["textnlp-provider", "textnlp-models"]),
    ("textnlp-token", &["textnlp-provider"]),
    ("textnlp-cloud", &["textnlp-provider"]),
    ("textnlp-aws", &["textnlp-provider", "textnlp-cloud", "textnlp-token"]),
    ("textnlp-azure", &["textnlp-provider", "textnlp-cloud", "textnlp-token"]),
    ("textnlp-gcp", &["textnlp-provider", "textnlp-cloud", "textnlp-token", "textnlp-gcs"]),
    ("textnlp-orchestrator", &["textnlp-provider", "textnlp-bundle"]),
    ("textnlp-service", &["textnlp-orchestrator", "textnlp-provider", "textnlp-models", "textnlp-bundle"]),
    ("textnlp-bundle", &["textnlp-models"]),
    ("textnlp-training", &["textnlp-inference", "textnlp-models"]),
    ("textnlp-process", &[]),
    ("textnlp-store", &[]),
    ("textnlp-gateway", &["textnlp-process"]),
    ("textnlp-sites", &["textnlp-process", "textnlp-store", "textnlp-gateway", "textnlp-control", "textnlp-models"]),
    (
        "textnlp-server",
        &[
            "textnlp-process",
            "textnlp-store",
            "textnlp-gateway",
            "textnlp-sites",
            "textnlp-inference",
            "textnlp-candle",
            "textnlp-models",
            "textnlp-bundle",
        ],
    ),
    (
        "textnlp-deploy",
        &[
            "textnlp-provider",
            "textnlp-buckets",
            "textnlp-models",
            "textnlp-inference",
            "textnlp-aws",
            "textnlp-azure",
            // The image that a cloud pushes to its registry is made by the program.
            "textnlp-cloud",
            "textnlp-gcp",
            "textnlp-kubernetes",
            "textnlp-token",
            "textnlp-keys",
            "textnlp-onprem",
            "textnlp-orchestrator",
            "textnlp-service",
            "textnlp-server",
            "textnlp-bundle",
        ],
    ),
    ("textnlp-bench", &["textnlp-inference", "textnlp-candle"]),
    ("textnlp-tests", &[]),
    ("textnlp-cluster", &[]),
    ("textnlp-sim", &[]),
    (
        "textnlp-fuzz",
        &[
            "textnlp-bundle",
            "textnlp-gateway",
            "textnlp-inference",
            "textnlp-kubernetes",
            "textnlp-orchestrator",
            "textnlp-provider",
            "textnlp-server",
            "textnlp-tests",
        ],
    ),
];

/// Crates without domain words, which every crate may import. They import none of ours.
const LEAVES: &[&str] = &["textnlp-files"];

/// Crate, and what it must not know: a part of a dependency's name.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    // An answer with a token is JSON.
    (
        "textnlp-buckets",
        &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "hyper", "axum", "serde_yaml"],
    ),
    ("textnlp-files", &["textnlp", "tokio", "serde", "camino", "tracing", "anyhow"]),
    ("textnlp-gcs", &["textnlp", "aws-sdk", "azure", "kube", "clap", "indicatif"]),
    ("textnlp-net", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "hyper", "axum", "serde"]),
    ("textnlp-provider", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "reqwest"]),
    ("textnlp-models", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "candle"]),
    (
        "textnlp-inference",
        &["aws-sdk", "google-cloud", "azure", "kube", "clap", "hyper", "axum", "reqwest", "tokio", "sqlx"],
    ),
    (
        "textnlp-candle",
        &["aws-sdk", "google-cloud", "azure", "kube", "clap", "hyper", "axum", "reqwest", "tokio", "sqlx"],
    ),
    ("textnlp-control", &["tokio", "hyper", "axum", "reqwest", "sqlx", "jiff"]),
    ("textnlp-keys", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "reqwest"]),
    ("textnlp-onprem", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif"]),
    // What all clouds have in common.
    ("textnlp-cloud", &["aws-", "google-cloud", "azure", "kube", "clap", "indicatif", "reqwest"]),
    // Who one is for each cloud, and nothing that is done there.
    ("textnlp-aws", &["google-cloud", "azure", "kube", "clap", "indicatif", "reqwest"]),
    ("textnlp-azure", &["aws-", "google-cloud", "kube", "clap", "indicatif"]),
    // Messages of Google's crates are compiled in `textnlp-gcs` only.
    ("textnlp-gcp", &["aws-", "google-cloud", "azure", "kube", "clap", "indicatif"]),
    ("textnlp-token", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif"]),
    ("textnlp-kubernetes", &["aws-sdk", "aws-config", "google-cloud", "azure", "clap", "indicatif", "rcgen"]),
    ("textnlp-bundle", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "axum", "candle"]),
    ("textnlp-orchestrator", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "candle"]),
    ("textnlp-service", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "indicatif", "candle"]),
    // It answers the clients that it tests, and uses none of them.
    ("textnlp-sim", &["aws-sdk", "aws-config", "google-cloud", "azure", "kube", "clap", "reqwest"]),
    ("textnlp-training", &["axum", "hyper", "reqwest"]),
    ("textnlp-process", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "sqlx", "candle", "jsonwebtoken"]),
    ("textnlp-store", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "axum", "hyper", "reqwest", "candle"]),
    (
        "textnlp-gateway",
        &["aws-sdk", "google-cloud", "azure", "kube", "clap", "axum", "sqlx", "candle", "jsonwebtoken"],
    ),
    ("textnlp-sites", &["aws-sdk", "google-cloud", "azure", "kube", "clap", "candle", "tokenizers"]),
    ("textnlp-server", &["aws-sdk", "google-cloud", "azure", "kube", "indicatif", "candle-", "sqlx"]),
];

/// Every crate may import the network layer, except those that are pure computation.
const NETWORK: &str = "textnlp-net";
const WITHOUT_NETWORK: &[&str] = &["textnlp-inference", "textnlp-candle", "textnlp-control"];

/// Crates below `providers/` that are parts of providers, not providers: no environment names them.
const PARTS: &[&str] = &["textnlp-cloud", "textnlp-keys", "textnlp-token"];

#[test]
fn crates_import_only_allowed_crates() {
    let crates = our_crates();
    assert!(crates.len() >= 9, "the workspace's members were not found");
    let mut wrong = Vec::new();
    for (name, dependencies) in &crates {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(ours, _)| ours == name) else {
            wrong.push(format!("`{name}` is not in the table"));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| d.starts_with("textnlp-")) {
            let is_network = dependency == NETWORK && name != NETWORK && !WITHOUT_NETWORK.contains(&name.as_str());
            if !is_network && !allowed.contains(&dependency.as_str()) && !LEAVES.contains(&dependency.as_str()) {
                wrong.push(format!("`{name}` may not import `{dependency}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn crates_do_not_depend_on_banned_crates() {
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
fn orchestrator_names_no_provider_and_no_runtime() {
    let crates = provider_crates();
    let mut banned: Vec<String> = crates.iter().map(|name| format!("{}::", name.replace('-', "_"))).collect();
    banned.extend(["println!", "eprintln!"].map(str::to_owned));
    // Their names in environment files, as literals.
    let names = crates.iter().filter(|name| !PARTS.contains(&name.as_str()));
    let names = names.filter_map(|name| name.strip_prefix("textnlp-"));
    banned.extend(names.chain(["aws", "gcp", "azure", "process"]).map(|name| format!("\"{name}\"")));
    for folder in ["orchestrator/src", "orchestrator/service/src"] {
        assert_eq!(named_in(&root().join(folder), &banned, |_| false), Vec::<String>::new());
    }
}

#[test]
fn orchestrator_services_neither_print_nor_prompt() {
    let banned = ["print!", "println!", "io::stdin", "io::stdout", "io::stderr", "clap::"];
    let found = named_in(&root().join("orchestrator/service/src"), &banned.map(str::to_owned), |_| false);
    assert_eq!(found, Vec::<String>::new());
}

/// Without the flags of the last `up`, these would be about other settings than those that run: `Scope::last` has them.
#[test]
fn hints_about_settings_have_the_flags_of_the_last_up() {
    let verbs = ["up\"", "up ", "plan\"", "plan ", "gate\"", "gate ", "load ", "baseline record", "baseline compare"];
    let forms = ["command(\"", "command(&format!(\""];
    let banned: Vec<String> = verbs.iter().flat_map(|verb| forms.map(|form| format!("{form}{verb}"))).collect();
    for folder in ["orchestrator/service/src", "cli/src"] {
        assert_eq!(named_in(&root().join(folder), &banned, |_| false), Vec::<String>::new());
    }
}

/// Evidence, keys and settings outlive a crash of the machine; what backups are made and verified in, and the clones of
/// drills, do not have to.
#[test]
fn services_write_files_durably() {
    let banned = ["fs::write(", "File::create", "OpenOptions", "without_sync"];
    let is_scratch = |file: &Path| {
        ["clone.rs", "gather.rs", "scratch_postgres.rs", "verify_backup.rs"].iter().any(|name| file.ends_with(name))
    };
    let found = named_in(&root().join("orchestrator/service/src"), &banned.map(str::to_owned), is_scratch);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_the_cli_wiring_names_providers() {
    let banned: Vec<String> = provider_crates().iter().map(|name| format!("{}::", name.replace('-', "_"))).collect();
    let is_wiring =
        |file: &Path| file.ends_with("cli/src/clouds.rs") || file.parent().is_some_and(|f| f.ends_with("clouds"));
    assert_eq!(named_in(&root().join("cli/src"), &banned, is_wiring), Vec::<String>::new());
}

#[test]
fn providers_depend_on_the_contract_and_no_other_provider() {
    let crates = provider_crates();
    assert!(crates.len() >= 3, "{crates:?}");
    for name in &crates {
        let (_, allowed) = MAY_IMPORT.iter().find(|(ours, _)| ours == name).expect("a row in the table");
        let is_provider = |other: &&str| !PARTS.contains(other) && crates.iter().any(|one| one == other);
        assert!(!allowed.iter().any(is_provider), "{name} may import {allowed:?}");
    }
}

#[test]
fn every_path_in_architecture_md_exists() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut known = Vec::new();
    paths(&root(), &mut known);
    let (mut missing, mut checked, mut in_block) = (Vec::new(), 0, false);
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let words: Vec<&str> = match in_block {
            true => line
                .split(|c: char| c.is_whitespace() || "(),;:".contains(c))
                .filter(|word| is_file(word) || word.ends_with('/'))
                .collect(),
            false => line.split('`').skip(1).step_by(2).filter(|word| is_file(word) || word.contains('/')).collect(),
        };
        let is_path =
            |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-./".contains(&b));
        for word in words.into_iter().filter(is_path) {
            checked += 1;
            if !known.iter().any(|path| path.ends_with(word.trim_end_matches('/'))) {
                missing.push(word);
            }
        }
    }
    assert!(checked > 20, "{checked} paths were found");
    assert!(missing.is_empty(), "ARCHITECTURE.md names what does not exist: {missing:?}");
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    const UNSAFE: [&str; 4] = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"];
    let manifest = read(&root().join("Cargo.toml"));
    for member in manifest["workspace"]["members"].as_array().expect("workspace members") {
        let folder = root().join(member.as_str().expect("a path")).join("src");
        let is_unsafe = rust_files(&folder).iter().any(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            text.lines()
                .any(|line| UNSAFE.iter().any(|word| line.trim_start().split("//").next().unwrap().contains(word)))
        });
        let mut roots = ["lib.rs", "main.rs"].iter().filter_map(|file| std::fs::read_to_string(folder.join(file)).ok());
        let forbids = roots.all(|text| text.contains("#![forbid(unsafe_code)]"));
        assert_eq!(forbids, !is_unsafe, "{}", folder.display());
    }
}

/// Where proptest forgets a failure, the next run tries other cases.
#[test]
fn random_tests_keep_the_seeds_of_their_failures() {
    let forgets = ["failure_persistence:", "None"].join(" ");
    // It draws from seeds of its own, and its callers keep them.
    let keeps_itself = root().join("orchestrator/tests/pure/program.rs");
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().expect("workspace members");
    let files = members.iter().flat_map(|member| rust_files(&root().join(member.as_str().expect("a path"))));
    let (random, forgetful): (Vec<_>, Vec<_>) = files
        .map(|file| (std::fs::read_to_string(&file).unwrap(), file))
        .filter(|(text, file)| text.contains("proptest") && *file != keeps_itself)
        .partition(|(text, _)| !text.contains(&forgets));
    assert!(random.len() > 5, "{} files with random tests were found", random.len());
    assert_eq!(forgetful.into_iter().map(|(_, file)| file).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

/// The string literal after the first quote, if it could be the name of a metric.
fn literal(text: &str) -> Option<&str> {
    let (name, _) = text.split_once('"')?.1.split_once('"')?;
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')).then_some(name)
}

#[test]
fn metrics_page_lists_exactly_the_metrics_of_the_programs() {
    const PREFIXES: [&str; 3] = ["textnlp_", "http_", "process_"];
    let mut registered = BTreeSet::new();
    for file in rust_files(&root().join("server")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let has_metrics = text.contains("registry::Registry") || text.contains("# TYPE {name}");
        if !has_metrics || !file.components().any(|part| part.as_os_str() == "src") {
            continue;
        }
        match text.split_once("Registry::with_prefix(") {
            Some((_, rest)) => {
                let prefix = literal(rest).unwrap();
                let names = rest.split(".register(").skip(1).filter_map(literal);
                registered.extend(names.map(|name| format!("{prefix}_{name}")));
            }
            None => {
                for prefix in PREFIXES {
                    let starts = text.match_indices(&format!("\"{prefix}")).map(|(at, _)| at).collect::<Vec<_>>();
                    registered.extend(starts.into_iter().filter_map(|at| literal(&text[at..])).map(str::to_owned));
                }
            }
        }
    }
    let page = std::fs::read_to_string(root().join("docs/guide/metrics.md")).unwrap();
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let listed: BTreeSet<String> =
        cells.map(|(name, _)| name.to_owned()).filter(|name| PREFIXES.iter().any(|p| name.starts_with(p))).collect();
    assert!(listed.len() > 70, "{listed:?}");
    assert_eq!(listed, registered);
}

/// The lines below a folder that name any of these outside of comments, but for the files that may.
fn named_in(folder: &Path, banned: &[String], may: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in rust_files(folder).into_iter().filter(|file| !may(file)) {
        let text = std::fs::read_to_string(&file).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (number, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if banned.iter().any(|word| code.contains(word.as_str())) {
                wrong.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    wrong
}

/// The crates below `providers/`, but for the contract.
fn provider_crates() -> Vec<String> {
    let manifest = read(&root().join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().expect("workspace members").iter();
    let members = members.filter_map(|member| member.as_str()?.strip_prefix("providers/"));
    members
        .filter(|folder| *folder != "contract" && !folder.contains('/'))
        .map(|folder| format!("textnlp-{folder}"))
        .collect()
}

fn is_file(word: &str) -> bool {
    [".rs", ".md", ".py", ".yaml"].iter().any(|end| word.ends_with(end))
}

/// Everything below a folder, but for what is built and what is hidden.
fn paths(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            paths(&path, found);
        }
        found.push(path);
    }
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
