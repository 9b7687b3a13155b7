//! The table of behaviours and their sources.

use std::collections::BTreeSet;

use textnlp_sim::{Source, aws};

#[test]
fn every_behaviour_has_a_source_that_can_be_read() {
    let (behaviours, counts) = aws::ledger();
    let mut seen = BTreeSet::new();
    for behaviour in &behaviours {
        assert!(seen.insert((behaviour.service, behaviour.what)), "{} is there twice", behaviour.what);
        if let Source::Documentation(address) | Source::Recording(address) = behaviour.source {
            assert!(address.starts_with("https://"), "{}: {address}", behaviour.what);
        }
        let is_known = behaviour.service == "*" || aws::SERVICES.iter().any(|one| one.name == behaviour.service);
        assert!(is_known, "{} is no service", behaviour.service);
    }
    for service in aws::SERVICES {
        assert!(service.ledger.iter().any(|one| one.service == service.name), "{} has no ledger", service.name);
    }
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
