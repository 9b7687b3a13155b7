//! checkov: which of its checks fail for manifests and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The checks that fail for the files of a folder, by their ids, each with the resources that it fails for. The files are manifests of
/// Kubernetes and templates of CloudFormation. `tests` is the folder of the script that installs checkov.
///
/// # Panics
/// checkov cannot be installed or run, or has checked nothing.
pub fn failures(tests: &Path, folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let installed = Command::new("bash").arg(tests.join("environments")).args(["python", "checkov"]).output();
    let installed = installed.expect("run the script");
    let python = String::from_utf8(installed.stdout).expect("a path");
    assert!(installed.status.success(), "install checkov: {}", String::from_utf8_lossy(&installed.stderr));
    // Without the option, it asks a server for more checks.
    let said = Command::new(Path::new(python.trim()).with_file_name("checkov"))
        .args(["--skip-download", "--framework", "cloudformation", "kubernetes", "--compact", "-o", "json", "-d"])
        .arg(folder)
        .output()
        .expect("run checkov");
    let text = String::from_utf8_lossy(&said.stdout);
    let reports: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&said.stderr)));
    let reports = if reports.is_array() { reports } else { Value::Array(vec![reports]) };
    let reports: Vec<&Value> = reports.as_array().into_iter().flatten().collect();
    let passed: u64 = reports.iter().filter_map(|report| report["summary"]["passed"].as_u64()).sum();
    assert!(passed > 0, "nothing was checked: {text}");
    let mut failures: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let failed = reports.iter().filter_map(|report| report["results"]["failed_checks"].as_array()).flatten();
    for one in failed {
        let text = |member: &str| one[member].as_str().unwrap_or_default().to_owned();
        failures.entry(text("check_id")).or_default().insert(text("resource"));
    }
    failures
}
