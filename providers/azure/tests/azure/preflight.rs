//! What `preflight` says of the subscription, its resource providers and names.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use textnlp_provider::component::{Cluster, ComponentSpec};
use textnlp_provider::{Problem, Provider, Verb, Wanted};
use textnlp_sim::azure::Options;

use crate::{Access, Azure, Bench, ENDPOINT, REGION, REMOTE, Secrets, create, run};

const STORAGE: &str = "Microsoft.Storage";
const ACCOUNTS: &str = "Microsoft.Storage/storageAccounts";

/// A site with a vault, and with copies of models and of the database in another region.
fn bench() -> Bench {
    Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(Options::zero_latency().registered(), true) }
}

async fn problems(bench: &Bench, wanted: &[Wanted], is_one: impl Fn(&Problem) -> bool) -> Vec<Problem> {
    let mut problems = bench.provider.preflight(wanted).await.unwrap();
    problems.retain(is_one);
    problems
}

/// The resources of a site up to one of them.
fn up_to(bench: &Bench, id: &str) -> Vec<Wanted> {
    let mut wanted = bench.all();
    let place = wanted.iter().position(|one| one.id.as_str() == id).unwrap();
    wanted.truncate(place + 1);
    wanted
}

/// <https://learn.microsoft.com/azure/cost-management-billing/manage/subscription-states>
#[test]
fn a_subscription_that_is_not_enabled_is_named() {
    run(async {
        let bench = bench();
        let wanted = bench.all();
        for (state, word, says) in [
            ("Enabled", None, ""),
            ("PastDue", Some("warning"), "its payment is past due"),
            ("Disabled", Some("refused"), "its state is Disabled"),
        ] {
            bench.cloud.world().state = state.to_owned();
            let found = problems(&bench, &wanted, |one| one.place.starts_with("subscription ")).await;
            assert!(found.iter().all(|one| one.cause == says), "{state}: {found:#?}");
            assert_eq!(found.iter().map(Problem::word).collect::<Vec<_>>(), Vec::from_iter(word), "{state}");
        }
    });
}

#[test]
fn a_region_that_does_not_exist_is_refused() {
    run(async {
        let bench = bench();
        let mut variables: BTreeMap<String, String> = bench.cloud.variables().into_iter().collect();
        variables.insert(ENDPOINT.to_owned(), bench.cloud.url());
        for (region, expected) in [(REGION, 0), ("westeuropa", 1)] {
            let (subscription, variables) = (bench.cloud.subscription().to_owned(), Some(variables.clone()));
            let access = Access { subscription, region: region.to_owned(), variables };
            let provider = Azure::new(access, Arc::new(Secrets));
            let mut found = provider.preflight(&bench.all()).await.unwrap();
            found.retain(|one| one.cause.contains("no virtual machines in"));
            assert_eq!(found.iter().filter(|one| one.word() == "refused").count(), expected, "{region}: {found:?}");
        }
    });
}

/// A plan registers what the site needs, so that only a plan without that step is refused.
#[test]
fn a_resource_provider_that_stays_unregistered_is_named() {
    run(async {
        let bench = Bench { gpu: None, ..Bench::new(Options::zero_latency(), false) };
        let unregistered = async |wanted: &[Wanted]| {
            problems(&bench, wanted, |one| one.cause.contains("has not registered this resource provider")).await
        };
        let mut wanted = bench.all();
        assert_eq!(unregistered(&wanted).await, Vec::<Problem>::new());
        wanted.retain(|one| one.spec.get("name") != Some(&json!(STORAGE)));
        let found = unregistered(&wanted).await;
        let [problem] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((problem.place.as_str(), problem.word()), (STORAGE, "refused"));
        assert_eq!(problem.fix, format!("`az provider register --namespace {STORAGE}`"));
        bench.cloud.world().register(&[STORAGE]);
        assert_eq!(unregistered(&wanted).await, Vec::<Problem>::new());
    });
}

/// hashicorp/terraform#11485, hashicorp/terraform-provider-azurerm#2940, crossplane-contrib/provider-azure#300.
#[test]
fn a_name_that_another_subscription_has_is_refused() {
    run(async {
        let bench = bench();
        let wanted = bench.all();
        let taken = async || problems(&bench, &wanted, |one| one.cause.contains("is taken in all of Azure")).await;
        assert_eq!(taken().await, Vec::<Problem>::new());
        for (kind, id) in [
            (ACCOUNTS, "main/models/account"),
            (ACCOUNTS, "main/models/replica-account"),
            ("Microsoft.ContainerRegistry/registries", "main/registry/registry"),
            ("Microsoft.DBforPostgreSQL/flexibleServers", "main/database/server"),
            ("Microsoft.DBforPostgreSQL/flexibleServers", "main/database/remote"),
        ] {
            let one = wanted.iter().find(|one| one.id.as_str() == id).unwrap();
            let name = one.spec.get("name").unwrap().as_str().unwrap();
            bench.cloud.world().taken.insert((kind.to_owned(), name.to_owned()), Timestamp::MAX);
            let found = taken().await;
            let [problem] = found.as_slice() else { panic!("{id}: {found:#?}") };
            assert_eq!((problem.place.as_str(), problem.word()), (id, "refused"));
            assert!(problem.cause.contains(name), "{problem}");
            bench.cloud.world().taken.clear();
        }
    });
}

#[test]
fn a_name_of_the_site_itself_is_not_taken() {
    run(async {
        let bench = bench();
        create(&bench, &up_to(&bench, "main/models/account")).await;
        let found = problems(&bench, &bench.all(), |one| one.place == "main/models/account").await;
        assert_eq!(found, Vec::<Problem>::new());
    });
}

/// hashicorp/terraform-provider-azurerm#12972: its name stays taken. A creation chooses the end of a new name, so that `preflight` checks none.
#[test]
fn a_deleted_vault_of_the_site_is_noted() {
    run(async {
        let bench = bench();
        let wanted = up_to(&bench, "main/models/vault");
        let deleted = async || problems(&bench, &wanted, |one| one.cause.contains("can still be recovered")).await;
        let records = create(&bench, &wanted).await;
        assert_eq!(deleted().await, Vec::<Problem>::new());
        let (vault, recorded) = records.last().unwrap();
        bench.finish(&bench.operation(900, Verb::Delete, vault, &vault.spec, Some(recorded))).await;
        let name = bench.cloud.world().deleted_vaults.keys().next().unwrap().clone();
        let found = deleted().await;
        let [problem] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((problem.place.as_str(), problem.word()), ("main/models/vault", "note"));
        assert!(problem.cause.contains(&name), "{problem}");
        // The vault of another site.
        for (object, _) in bench.cloud.world().deleted_vaults.values_mut() {
            object.body["name"] = json!("another");
        }
        assert_eq!(deleted().await, Vec::<Problem>::new());
    });
}

#[test]
fn an_api_server_that_every_network_reaches_is_warned_of() {
    run(async {
        let bench = bench();
        let allowed = vec!["203.0.113.0/24".to_owned()];
        for (allow_from, word) in [(Some(allowed), None), (None, Some("warning"))] {
            let cluster = Cluster { allow_from, ..Cluster::of("network".parse().unwrap()) };
            let wanted = bench.lower("cluster", ComponentSpec::Cluster(cluster));
            let found = problems(&bench, &wanted, |one| one.cause.contains("every network reaches")).await;
            assert_eq!(found.iter().map(Problem::word).collect::<Vec<_>>(), Vec::from_iter(word), "{found:#?}");
        }
    });
}
