//! The table of behaviours and their sources.

use std::collections::BTreeSet;

use textnlp_sim::{Source, aws};

/// How many behaviours may be only assumed.
const ASSUMED: usize = 9;

#[test]
fn every_behaviour_has_a_source_that_can_be_read() {
    let (behaviours, counts) = aws::ledger();
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
        let is_known = behaviour.service == "*" || aws::SERVICES.iter().any(|one| one.name == behaviour.service);
        assert!(is_known, "{} is no service", behaviour.service);
    }
    for service in aws::SERVICES {
        assert!(service.ledger.iter().any(|one| one.service == service.name), "{} has no ledger", service.name);
    }
    assert!(counts.get("assumed").is_none_or(|count| *count <= ASSUMED), "{counts:?}");
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    println!("{} behaviours: {counts:?}", behaviours.len());
}

/// Handlers of operations that no model has would never be called.
#[test]
fn every_handler_is_of_an_operation_of_the_model() {
    for service in aws::SERVICES {
        let model = aws::model::Model::of(service.model).unwrap();
        let mut seen = BTreeSet::new();
        for (name, _) in service.operations {
            assert!(model.operation(name).is_some(), "{} has no operation {name}", service.name);
            assert!(seen.insert(name), "{}: {name} has two handlers", service.name);
        }
    }
}
