//! Policies of an organization that refuse objects.

use std::collections::BTreeSet;

use textnlp_provider::{ErrorKind, Problem, Provider, Verb, Wanted, error_chain};
use textnlp_sim::azure::{Options, Policy};

use crate::{Bench, REGION, REMOTE, create, run, secrets};

const CHECK: &str = "Microsoft.PolicyInsights/checkPolicyRestrictions/read";

fn bench() -> Bench {
    Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(Options::zero_latency().registered(), true) }
}

/// Assigns a policy to the subscription, or to a group of it. Gives the id of the assignment.
fn assign(bench: &Bench, group: Option<&str>, policy: Policy) -> String {
    let group = group.map(|name| format!("/resourceGroups/{name}")).unwrap_or_default();
    let scope = format!("/subscriptions/{}{group}", bench.cloud.subscription());
    let assignment = format!("{scope}/providers/Microsoft.Authorization/policyAssignments/company");
    bench.cloud.world().policies.insert(assignment.clone(), policy);
    assignment
}

async fn problems_with(bench: &Bench, assignment: &str, wanted: &[Wanted]) -> Vec<Problem> {
    let problems = bench.provider.preflight(wanted).await.unwrap();
    problems.into_iter().filter(|one| one.fix.contains(assignment)).collect()
}

fn places(problem: &Problem) -> BTreeSet<&str> {
    problem.place.split(", ").collect()
}

#[test]
fn preflight_names_what_a_policy_would_refuse_and_the_creation_is_refused() {
    run(async {
        let owner = "owner".to_owned();
        for (policy, setting, first) in [
            (Policy::RequiredGroupTag(owner.clone()), "set the tag `owner` in `tags`", "main/network/group"),
            (Policy::RequiredTag(owner), "set the tag `owner` in `tags`", "main/network/vnet"),
            (Policy::AllowedLocations(vec![REMOTE.to_owned()]), "choose another `sites[].region`", "main/network/vnet"),
            (
                Policy::AllowedLocations(vec![REGION.to_owned()]),
                "choose another `database.replica_region`",
                "main/database/remote-network",
            ),
            (
                Policy::AllowedLocations(vec![REGION.to_owned()]),
                "choose another `storage.replicate_to`",
                "main/models/replica-account",
            ),
        ] {
            let mut bench = bench();
            let assignment = assign(&bench, None, policy);
            let wanted = bench.all();
            let problems = problems_with(&bench, &assignment, &wanted).await;
            for one in &problems {
                let is_named = one.cause.starts_with("the policy assignment `company` would refuse it: `");
                assert!(is_named && one.warning && !one.note, "{one}");
            }
            let refused: BTreeSet<&str> = problems.iter().flat_map(places).collect();
            let named = problems.iter().find(|one| places(one).contains(first)).map(|one| one.fix.as_str());
            assert!(named.is_some_and(|fix| fix.starts_with(setting)), "{problems:#?}");

            // Nothing else is refused, and what is named is refused by its creation too.
            let place = wanted.iter().position(|one| refused.contains(one.id.as_str())).unwrap();
            let mut outputs = secrets();
            for (one, recorded) in create(&bench, &wanted[..place]).await {
                outputs.insert(one.id, recorded.outputs);
            }
            let spec = wanted[place].spec.resolve(|id| outputs.get(id)).unwrap();
            let error = bench.provider.begin(&bench.operation(900, Verb::Create, &wanted[place], &spec, None)).await;
            let error = error.err().unwrap();
            assert_eq!((&error.kind, error.code.as_deref()), (&ErrorKind::Denied, Some("RequestDisallowedByPolicy")));
            assert!(error_chain(&error).contains(&assignment), "{}", error_chain(&error));

            if setting.contains("tag") {
                bench.site.tags.insert("owner".to_owned(), "text".to_owned());
                let problems = problems_with(&bench, &assignment, &bench.all()).await;
                assert!(problems.is_empty(), "{problems:#?}");
            }
        }
    });
}

#[test]
fn a_policy_refuses_no_object_that_exists() {
    run(async {
        let bench = bench();
        let wanted = bench.all();
        create(&bench, &wanted).await;
        let assignment = assign(&bench, None, Policy::RequiredTag("owner".to_owned()));
        let problems = problems_with(&bench, &assignment, &wanted).await;
        let [problem] = problems.as_slice() else { panic!("{problems:#?}") };
        // The end of its name is only known once it is recorded.
        assert_eq!((problem.warning, problem.place.as_str()), (true, "main/models/vault"));
    });
}

#[test]
fn policies_of_a_group_are_asked_once_it_exists() {
    run(async {
        let bench = bench();
        let wanted = bench.all();
        let group = wanted.iter().find(|one| one.id.as_str() == "main/network/group").unwrap();
        let name = group.spec.get("name").unwrap().as_str().unwrap();
        let assignment = assign(&bench, Some(name), Policy::RequiredTag("owner".to_owned()));
        assert!(problems_with(&bench, &assignment, &wanted).await.is_empty());
        bench.finish(&bench.operation(1, Verb::Create, group, &group.spec, None)).await;
        let problems = problems_with(&bench, &assignment, &wanted).await;
        let named: BTreeSet<&str> = problems.iter().flat_map(places).collect();
        assert!(
            named.contains("main/network/vnet") && !named.contains("main/database/remote-network"),
            "{problems:#?}"
        );
    });
}

#[test]
fn policies_that_cannot_be_asked_are_a_note() {
    run(async {
        let unregistered = Bench::new(Options::zero_latency(), false);
        let denied = bench();
        denied.cloud.world().denied.insert(CHECK.to_owned());
        for (bench, says) in
            [(unregistered, "az provider register --namespace Microsoft.PolicyInsights"), (denied, CHECK)]
        {
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let of_policies: Vec<&Problem> = problems.iter().filter(|one| one.place == "Azure Policy").collect();
            let [one] = of_policies.as_slice() else { panic!("{problems:#?}") };
            assert!(one.note && one.to_string().contains(says), "{one}");
        }
    });
}
