//! The table of behaviours and their sources.

use std::collections::BTreeSet;

use textnlp_sim::{Source, gcp};

/// How many behaviours may be only assumed.
const ASSUMED: usize = 4;

/// Reports of users that concern what is simulated, and that few callers meet.
const REPORTS: &[&str] = &[
    "AI-Hypercomputer/xpk#434",
    "GoogleCloudPlatform/ai-on-gke#849",
    "GoogleCloudPlatform/cluster-toolkit#4058",
    "GoogleCloudPlatform/container-engine-accelerators#407",
    "GoogleCloudPlatform/magic-modules",
    "NVIDIA/gpu-operator#1623",
    "alphagov/govuk-infrastructure#4682",
    "cloudpilot-ai/karpenter-provider-gcp#143",
    "fastai/course-v3#536",
    "kubernetes/autoscaler#2557",
];

#[test]
fn every_behaviour_has_a_source_that_can_be_read() {
    let (behaviours, counts) = gcp::ledger();
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
        let is_known = behaviour.service == "*" || gcp::SERVICES.iter().any(|one| one.name == behaviour.service);
        assert!(is_known, "{} is no service", behaviour.service);
    }
    assert!(counts.get("assumed").is_none_or(|count| *count <= ASSUMED), "{counts:?}");
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable();
    println!("{} behaviours: {counts:?}", behaviours.len());
}

#[test]
fn each_report_is_a_rule_or_is_left_out_with_a_reason() {
    let (behaviours, _) = gcp::ledger();
    for report in REPORTS {
        assert!(behaviours.iter().any(|one| one.source.cites(report)), "no behaviour cites {report}");
    }
}

/// A handler of a method that no document has would never be called.
#[test]
fn every_method_is_in_a_document() {
    let methods = gcp::methods();
    let mut seen = BTreeSet::new();
    for (service, id) in &methods {
        let documents = gcp::SERVICES.iter().find(|one| one.name == *service).unwrap().documents;
        let mut documents = documents.iter().map(|(name, _)| gcp::document::Document::of(name).unwrap());
        assert!(documents.any(|document| document.method(id).is_some()), "no document has {id}");
        assert!(seen.insert(id.clone()), "{id} has two handlers");
    }
    println!("{} methods", methods.len());
}
