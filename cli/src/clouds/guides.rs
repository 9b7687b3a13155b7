//! The environments in the guides of clouds and clusters, as the program reads them.

use camino::Utf8Path;
use textnlp_orchestrator::environment::{Library, LoadError, Overrides, Problem, Severity};
use textnlp_tests::guide;

use super::catalogue;

const GUIDES: [&str; 4] = ["aws", "azure", "gcp", "kubernetes"];
/// What a fragment is merged onto where no whole environment stands above it.
const SHIPPED: &str = "pilot";

/// Whether a block is an environment, or a fragment of one. One of another file, such as a kubeconfig, begins with a comment that names
/// the file.
fn is_environment(block: &str) -> bool {
    !block.starts_with('#')
}

/// The name of a whole environment: a fragment extends nothing.
fn name(block: &str) -> Option<&str> {
    let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key));
    value("extends: ").and_then(|_| value("environment: "))
}

/// An error, or a setting that the provider does not support. A reader who has the secrets finds their variables and files.
fn is_wrong(problem: &&Problem) -> bool {
    let is_secret = ["the variable `", "there is no file "].iter().any(|start| problem.cause.starts_with(start));
    match problem.severity {
        Severity::Error => true,
        Severity::Refusal => !is_secret,
        Severity::Warning | Severity::Note => false,
    }
}

#[test]
fn environments_in_the_guides_are_valid() {
    let mut count = 0;
    for page in GUIDES {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        // The first whole environment of a guide is that of the sections below it.
        let mut base = SHIPPED.to_owned();
        let blocks = guide::blocks_of(&format!("docs/guide/{page}.md"), "yaml");
        for block in blocks.iter().filter(|block| is_environment(block)) {
            let (label, text) = match name(block) {
                Some(name) => (name, block.clone()),
                None => ("fragment", format!("extends: {base}\nenvironment: fragment\n{block}")),
            };
            let file = folder.join(format!("{label}.yaml"));
            std::fs::write(&file, &text).unwrap();
            let report = match Library::built_in().load_file(&file, &Overrides::default(), &catalogue()) {
                Ok(loaded) => loaded.report,
                Err(LoadError::Invalid(report)) => report,
                Err(other) => panic!("{page}.md: {other}\n{text}"),
            };
            let wrong: Vec<String> = report.0.iter().filter(is_wrong).map(ToString::to_string).collect();
            assert!(wrong.is_empty(), "{page}.md: {wrong:#?}\n{text}");
            if let Some(name) = name(block).filter(|_| base == SHIPPED) {
                base = name.to_owned();
            }
            count += 1;
        }
    }
    assert!(count >= 28, "{count} environments were found");
}
