//! Checks of configurations: each with its reason, its fix, and an example of both outcomes.

mod containers;
mod document;
mod service;
mod values;

use std::collections::BTreeMap;

use super::finding::{Finding, Kind, Severity};
pub(crate) use document::{Document, MOST_BYTES};

/// One check. The examples are tests and documentation.
#[derive(Clone, Copy)]
pub struct Check {
    /// The id, used by allowances.
    pub id: &'static str,
    /// The severity, unless the place lowers it.
    pub severity: Severity,
    /// The message of a finding.
    pub title: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The fix.
    pub fix: &'static str,
    /// A document without a finding.
    pub passes: &'static str,
    /// A document with a finding.
    pub fails: &'static str,
    pub(crate) find: fn(&Document, &mut Hits),
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("id", &self.id).field("severity", &self.severity).finish_non_exhaustive()
    }
}

/// All checks, in the order of the guide.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    service::CHECKS.iter().chain(values::CHECKS).chain(containers::CHECKS)
}

/// The place of a finding.
#[derive(Default)]
pub(crate) struct Hits(Vec<(String, Option<Severity>)>);

impl Hits {
    fn at(&mut self, path: impl Into<String>) {
        self.0.push((path.into(), None));
    }

    fn milder(&mut self, path: impl Into<String>, severity: Severity) {
        self.0.push((path.into(), Some(severity)));
    }
}

/// A document without a phase gets that of another one in its folder: a compose file beside its environment.
pub(crate) fn share_phases(documents: &mut [Document]) {
    let folder = |file: &str| file.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    for document in documents.iter() {
        if let Some(phase) = &document.phase {
            // Two phases in one folder: neither applies to the other documents.
            known
                .entry(folder(&document.file))
                .and_modify(|before| {
                    if before.as_ref() != Some(phase) {
                        *before = None;
                    }
                })
                .or_insert_with(|| Some(phase.clone()));
        }
    }
    for document in documents.iter_mut().filter(|d| d.phase.is_none()) {
        document.phase = known.get(&folder(&document.file)).cloned().flatten();
    }
}

/// All findings of the checks.
pub(crate) fn findings(documents: &[Document]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in documents {
        for check in checks() {
            let mut hits = Hits::default();
            (check.find)(document, &mut hits);
            for (path, severity) in hits.0 {
                let place = if path.is_empty() { document.file.clone() } else { format!("{}: {path}", document.file) };
                findings.push(finding(check, place, severity.unwrap_or(check.severity)));
            }
        }
    }
    findings
}

fn finding(check: &Check, place: String, severity: Severity) -> Finding {
    Finding {
        id: check.id.to_owned(),
        kind: Kind::Configuration,
        severity,
        title: check.title.to_owned(),
        place,
        package: None,
        installed: None,
        fixed_in: None,
        score: None,
        aliases: Vec::new(),
        reason: check.reason.to_owned(),
        fix: check.fix.to_owned(),
        url: None,
    }
}

/// Whether a list of words has this one.
fn has(words: &str, word: &str) -> bool {
    words.split(' ').any(|one| one == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<String> {
        let mut documents = Document::read("a.yaml", text.as_bytes()).unwrap();
        share_phases(&mut documents);
        findings(&documents).into_iter().map(|f| f.id).collect()
    }

    #[test]
    fn every_check_flags_its_bad_example_and_passes_its_good_one() {
        for check in checks() {
            assert!(ids(check.fails).iter().any(|id| id == check.id), "{} does not find its bad example", check.id);
            assert!(!ids(check.passes).iter().any(|id| id == check.id), "{} finds its good example", check.id);
        }
    }

    #[test]
    fn check_ids_are_unique_and_texts_are_not_empty() {
        let mut seen = std::collections::BTreeSet::new();
        for check in checks() {
            assert!(seen.insert(check.id), "{} twice", check.id);
            for text in [check.title, check.reason, check.fix] {
                assert!(text.len() >= 10, "{}: {text}", check.id);
            }
        }
        assert!(seen.len() >= 25, "{}", seen.len());
    }

    #[test]
    fn shipped_environments_have_no_finding_above_medium() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../environments");
        let mut checked = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "yaml") {
                let name = path.file_name().unwrap().to_str().unwrap();
                let documents = Document::read(name, &std::fs::read(&path).unwrap()).unwrap();
                let bad: Vec<String> = findings(&documents)
                    .into_iter()
                    .filter(|f| f.severity > Severity::Medium)
                    .map(|f| format!("{} {}", f.id, f.place))
                    .collect();
                assert_eq!(bad, Vec::<String>::new());
                checked += 1;
            }
        }
        assert!(checked > 5);
    }

    #[test]
    fn compose_file_inherits_the_phase_of_its_directory() {
        let read = |file: &str, text: &str| Document::read(file, text.as_bytes()).unwrap().remove(0);
        let mut documents = vec![
            read("configs/a/environment.yaml", "environment: a\nphase: staging\nsites: []"),
            read("configs/a/compose.yaml", "services: {}"),
            read("configs/b/compose.yaml", "services: {}"),
        ];
        share_phases(&mut documents);
        assert_eq!(documents[1].phase.as_deref(), Some("staging"));
        assert!(documents[2].phase.is_none() && documents[2].in_production());
    }

    #[test]
    fn aliases_merges_and_multiple_documents_are_parsed_and_bombs_refused() {
        let text = "x: &a { privileged: true }\nservices: { web: { <<: *a, image: b } }\n---\nservices: {}\n";
        let documents = Document::read("c.yaml", text.as_bytes()).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].value["services"]["web"]["privileged"], true);
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let refs = vec![format!("*a{}", n - 1); 10].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        assert!(Document::read("bomb.yaml", bomb.as_bytes()).is_err());
    }
}
