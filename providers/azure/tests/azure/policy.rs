//! The role that a plan prints, held against the requests that its run makes: it suffices, and nothing in it is unused.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{PolicyRequest, PolicyResource, Provider, Verb, Wanted, error_chain};
use textnlp_sim::azure::Options;

use crate::{Bench, Images, REGION, REMOTE, changed, create, provider_with, remove, run, unchanged, update};

/// Actions that no request of the test needs, each with what needs it.
const UNUSED: &[(&str, &str)] = &[
    ("Microsoft.ContainerRegistry/locations/operationResults/read", FAILED),
    ("Microsoft.ContainerRegistry/registries/pull/read", PUSH),
    ("Microsoft.ContainerRegistry/registries/push/write", PUSH),
    ("Microsoft.DBforPostgreSQL/flexibleServers/restart/action", FAILOVER),
    ("Microsoft.DBforPostgreSQL/locations/operationResults/read", LOCATION),
    ("Microsoft.Network/privateDnsOperationResults/read", LOCATION),
    ("Microsoft.Network/routeTables/read", EXISTING),
    ("Microsoft.Resources/subscriptions/operationresults/read", FAILED),
];
const FAILOVER: &str = "`db failover`, which no plan makes";
/// <https://learn.microsoft.com/azure/role-based-access-control/permissions/containers>,
/// <https://learn.microsoft.com/azure/role-based-access-control/permissions/management-and-governance>.
const FAILED: &str = "why Azure could not delete it: while a deletion goes on, the resource itself says so";
/// `network.rs` has one with a route table.
const EXISTING: &str = "preflight of an existing network: whether its routes lead past the NAT gateway";
/// The registry has a protocol of its own: `tests/sim/tests/road` pushes an image.
const PUSH: &str = "the push of an image";
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>.
const LOCATION: &str = "an answer with `Location` alone: the simulator's have `Azure-AsyncOperation` too";

/// The actions of the role for a plan that does this to these resources, or only reads them.
pub(super) fn printed(bench: &Bench, resources: &[Wanted], verb: Option<Verb>) -> BTreeSet<String> {
    let resource = |one: &Wanted| PolicyResource {
        id: one.id.clone(),
        kind: one.kind.clone(),
        cloud_id: None,
        spec: one.spec.clone(),
        verbs: verb.into_iter().collect(),
    };
    let request = PolicyRequest {
        lineage: None,
        environment: bench.site.environment.clone(),
        site: bench.site.name.clone(),
        resources: resources.iter().map(resource).collect(),
    };
    let documents = bench.provider.policies(&request);
    let roles = documents.iter().map(|one| serde_json::from_str::<Value>(&one.text).unwrap());
    let actions = roles.flat_map(|role| {
        assert_eq!(role["NotActions"], json!([]));
        role["Actions"].as_array().unwrap().clone()
    });
    actions.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// From now on the operator may do this and nothing else.
pub(super) fn limit(bench: &Bench, actions: &BTreeSet<String>) {
    bench.cloud.world().allowed = Some(actions.clone());
}

#[test]
fn the_role_of_a_plan_suffices_and_holds_nothing_unused() {
    run(async {
        let bench = Bench { remote: Some(REMOTE), ..Bench::new(Options::zero_latency(), true) };
        {
            // The first zone turns out to have no machines with GPUs only when the pool is there.
            let mut world = bench.cloud.world();
            world.stock_out(&format!("{REGION}-1"), "Standard_NC4as_T4_v3");
            world.conduct.late_capacity = true;
        }
        let wanted = bench.all();
        let up = printed(&bench, &wanted, Some(Verb::Create));
        limit(&bench, &up);
        let mut records = create(&bench, &wanted).await;

        let to_change: Vec<Wanted> =
            records.iter().map(|(one, _)| one.clone()).filter(|one| changed(one) != one.spec).collect();
        let none = printed(&bench, &wanted, None);
        let change = &none | &printed(&bench, &to_change, Some(Verb::Update));
        limit(&bench, &change);
        update(&bench, &mut records).await;

        limit(&bench, &none);
        unchanged(&bench, &records).await;

        let down = printed(&bench, &wanted, Some(Verb::Delete));
        limit(&bench, &down);
        remove(&bench, &records).await;

        let needed = bench.cloud.world().needed.clone();
        let refused: Vec<&String> = needed.iter().filter(|(_, has)| !**has).map(|(action, _)| action).collect();
        assert!(refused.is_empty(), "the roles do not suffice: {refused:#?}");
        let all = &(&up | &change) | &down;
        let unused: Vec<&str> =
            all.iter().map(String::as_str).filter(|action| !needed.contains_key(&action.to_lowercase())).collect();
        let known: Vec<&str> = UNUSED.iter().map(|(action, _)| *action).collect();
        assert_eq!(unused, known, "actions that nothing used, and those of the table");
    });
}

/// The last one is that of what the subnet refers to.
const ESSENTIAL: &[(&str, &str)] = &[
    ("main/network/provider-7", "Microsoft.Network/register/action"),
    ("main/network/group", "Microsoft.Resources/subscriptions/resourceGroups/write"),
    ("main/network/vnet", "Microsoft.Network/virtualNetworks/write"),
    ("main/network/subnet", "Microsoft.Network/natGateways/join/action"),
];

#[test]
fn up_without_an_action_names_it_and_who_is_signed_in() {
    run(async {
        let bench = Bench::new(Options::zero_latency(), false);
        let operator = Options::default().operator;
        let wanted: Vec<Wanted> =
            bench.all().into_iter().filter(|one| one.id.as_str().starts_with("main/network/")).collect();
        let up = printed(&bench, &wanted, Some(Verb::Create));
        let mut outputs = BTreeMap::new();
        let mut tried = 0;
        for (number, one) in (1..).zip(&wanted) {
            let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
            let op = bench.operation(number, Verb::Create, one, &spec, None);
            for (_, action) in ESSENTIAL.iter().filter(|(id, _)| *id == one.id.as_str()) {
                limit(&bench, &up.iter().filter(|one| one != action).cloned().collect());
                let is_told = |text: &str| text.contains(*action) && text.contains(&operator);
                let problems = bench.provider.preflight(&wanted).await.unwrap();
                assert!(problems.iter().any(|one| is_told(&one.to_string())), "{action}: {problems:#?}");
                let error = bench.provider.begin(&op).await.err();
                let error = error.map(|error| error_chain(&error)).unwrap_or_default();
                assert!(is_told(&error), "{action}: {error}");
                tried += 1;
            }
            limit(&bench, &up);
            outputs.insert(one.id.clone(), bench.finish(&op).await.outputs);
        }
        assert_eq!(tried, ESSENTIAL.len());
    });
}

#[test]
fn a_registered_certificate_signs_in_and_another_one_is_refused() {
    run(async {
        let bench = Bench::new(Options::zero_latency(), false);
        let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let names = vec!["deploy.example".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deploy.pem");
        std::fs::write(&file, key.serialize_pem() + &certificate.pem()).unwrap();
        let mut variables: BTreeMap<String, String> = bench.cloud.variables().into_iter().collect();
        variables.remove("AZURE_CLIENT_SECRET");
        variables.insert("AZURE_CLIENT_CERTIFICATE_PATH".to_owned(), file.to_str().unwrap().to_owned());
        let provider = || provider_with(&bench.cloud, variables.clone(), Images(bench.cloud.clone()));
        let refused = provider().preflight(&bench.all()).await;
        let told = refused.map_err(|error| error_chain(&error)).map(|problems| format!("{problems:?}"));
        let told = told.unwrap_or_else(|error| error);
        assert!(told.contains("AADSTS700027"), "{told}");
        bench.cloud.register_certificate(&URL_SAFE_NO_PAD.encode(Sha256::digest(certificate.der())));
        let problems = provider().preflight(&bench.all()).await.unwrap();
        assert!(!format!("{problems:?}").contains("AADSTS"), "{problems:?}");
    });
}
