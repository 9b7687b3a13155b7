//! The table of behaviours and their sources.

use std::collections::BTreeSet;

use textnlp_sim::{Source, azure};

/// How many behaviours may be only assumed.
const ASSUMED: usize = 2;

#[test]
fn every_behaviour_has_a_source_that_can_be_read() {
    let (behaviours, counts) = azure::ledger();
    let mut seen = BTreeSet::new();
    for behaviour in &behaviours {
        assert!(seen.insert((behaviour.service, behaviour.what)), "{} is there twice", behaviour.what);
        match behaviour.source {
            Source::Documentation(address) | Source::Recording(address) => {
                assert!(address.starts_with("https://"), "{}: {address}", behaviour.what);
            }
            Source::Report(report) => {
                let (repository, number) = report.split_once('#').unwrap();
                let is_right = repository.matches('/').count() == 1 && number.parse::<u32>().is_ok();
                assert!(is_right, "{}: {report}", behaviour.what);
            }
            Source::LeftOut(reason) => assert!(!reason.is_empty(), "{}", behaviour.what),
            Source::Model | Source::Double(_) | Source::Assumed => {}
        }
        let is_known = behaviour.service == "*" || azure::NAMESPACES.iter().any(|one| one.0 == behaviour.service);
        assert!(is_known, "{} is no namespace", behaviour.service);
    }
    assert!(counts.get("assumed").is_none_or(|count| *count <= ASSUMED), "{counts:?}");
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    println!("{} behaviours: {counts:?}", behaviours.len());
}

/// A model that no library has would check nothing.
#[test]
fn every_model_is_in_a_library() {
    let models = azure::models();
    for model in &models {
        assert!(azure::document::has(model).unwrap(), "no library has {model}");
    }
    println!("{} models", models.len());
}
