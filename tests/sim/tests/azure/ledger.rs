//! The table of behaviours and their sources.

use std::collections::BTreeSet;

use textnlp_sim::{Source, azure};

/// How many behaviours may be only assumed.
const ASSUMED: usize = 2;

/// Reports of users that concern what is simulated, and that few callers meet.
const REPORTS: &[&str] = &[
    "Azure/AKS#1447",
    "Azure/AKS#2341",
    "Azure/AKS#3292",
    "Azure/AKS#4975",
    "Azure/AKS#51",
    "Azure/AKS#5808",
    "Azure/AKS#847",
    "Azure/aad-pod-identity#725",
    "Azure/aad-pod-identity#880",
    "Azure/azure-cli#18415",
    "Azure/azure-cli#23979",
    "Azure/azure-cli#24324",
    "Azure/azure-cli-extensions#3679",
    "Azure/azure-sdk-for-java#2022",
    "Azure/azure-sdk-tools#611",
    "Azure/terraform-azurerm-avm-res-keyvault-vault#78",
    "MicrosoftDocs/azure-databases-docs#200",
    "MicrosoftDocs/azure-docs#45840",
    "crossplane-contrib/provider-upjet-azure#811",
    "hashicorp/terraform-provider-azurerm#2977",
    "hashicorp/terraform-provider-azurerm#22257",
    "hashicorp/terraform-provider-azurerm#22268",
    "hashicorp/terraform-provider-azurerm#28715",
];

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

#[test]
fn each_report_is_a_rule_or_is_left_out_with_a_reason() {
    let (behaviours, _) = azure::ledger();
    for report in REPORTS {
        assert!(behaviours.iter().any(|one| one.source.cites(report)), "no behaviour cites {report}");
    }
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
