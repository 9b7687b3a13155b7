//! The lifecycle rule of a storage account, in one policy with the rules of other clients.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::{Effect, Observed, Progress, Provider, Recorded, Verb, Wanted};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::{Bench, record, run};

const RULES: &str = "/properties/policy/rules";
const READ: &str = "Microsoft.Storage/storageAccounts/managementPolicies/read";

/// A lifecycle rule in its account, and how it is recorded.
async fn made(bench: &Bench) -> (Wanted, Recorded) {
    let all = bench.all();
    let mut outputs = BTreeMap::new();
    let parts = ["main/network/group", "main/models/account", "main/models/container", "main/models/lifecycle"];
    let mut made = Vec::new();
    for (number, id) in (1..).zip(parts) {
        let one = all.iter().find(|one| one.id.as_str() == id).unwrap();
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
        let object = bench.finish(&bench.operation(number, Verb::Create, one, &spec, None)).await;
        outputs.insert(one.id.clone(), object.outputs.clone());
        made.push((Wanted { spec: spec.clone(), ..one.clone() }, record(one, &spec, &object)));
    }
    made.pop().unwrap()
}

/// The rules of a policy.
fn rules(bench: &Bench, id: &str) -> Vec<Value> {
    let policy = bench.cloud.world().get(id).unwrap_or_default();
    policy.pointer(RULES).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Their names.
fn names(bench: &Bench, id: &str) -> Vec<String> {
    rules(bench, id).iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_changed_rule_is_drift_and_rules_of_other_clients_stay() {
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        let (wanted, recorded) = made(&bench).await;
        let id = recorded.cloud_id.to_string();
        let rules = || rules(&bench, &id);
        let names = || names(&bench, &id);
        let operation = |number, verb| bench.operation(number, verb, &wanted, &wanted.spec, Some(&recorded));

        // Another client adds a rule, and makes ours delete blobs.
        let mut changed = rules().remove(0);
        changed["definition"]["actions"]["baseBlob"]["delete"] = json!({ "daysAfterModificationGreaterThan": 365.0 });
        let mut other = changed.clone();
        other["name"] = json!("other");
        bench.cloud.world().change(&id, RULES, json!([other, changed]));
        let read = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap();
        let seen = match read {
            Observed::Present(seen) => seen,
            missing => panic!("{missing:?}"),
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["rule"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let object = bench.finish(&operation(10, Verb::Update)).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        assert_eq!((names(), &rules()[0]), (vec!["other".to_owned(), "textnlp".to_owned()], &other));
        assert!(rules()[1]["definition"]["actions"]["baseBlob"]["delete"].is_null());

        // The policy ends with its last rule.
        bench.finish(&operation(11, Verb::Delete)).await;
        assert_eq!(names(), ["other"]);
        let read = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap();
        assert!(matches!(read, Observed::Absent), "{read:?}");
        bench.finish(&bench.operation(12, Verb::Create, &wanted, &wanted.spec, None)).await;
        assert_eq!(names(), ["other", "textnlp"]);
        let own = rules().remove(1);
        bench.cloud.world().change(&id, RULES, json!([own]));
        bench.finish(&operation(13, Verb::Delete)).await;
        assert_eq!(bench.cloud.world().get(&id), None);
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

/// An answer that there is no policy is no proof that there are no rules of other clients.
#[test]
fn rules_of_other_clients_stay_where_reads_show_no_policy() {
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        let (wanted, recorded) = made(&bench).await;
        let id = recorded.cloud_id.to_string();
        let operation = |number, verb| bench.operation(number, verb, &wanted, &wanted.spec, Some(&recorded));
        let mut changed = rules(&bench, &id).remove(0);
        changed["enabled"] = json!(false);
        let mut other = changed.clone();
        other["name"] = json!("other");
        bench.cloud.world().change(&id, RULES, json!([other, changed]));
        // The operation itself finds the policy, and then no read does.
        let hidden = || {
            let fault = Fault::new("ResourceNotFound", "No ManagementPolicy found for account").status(404);
            let hidden = Rule::nth("Microsoft.Storage", READ, 2, Disruption::Refused(fault));
            bench.cloud.faults().add(Rule { times: 3, ..hidden });
        };
        for (number, verb) in [(10, Verb::Update), (11, Verb::Delete)] {
            hidden();
            let begun = bench.provider.begin(&operation(number, verb)).await;
            assert!(matches!(begun, Ok(Progress::Pending { .. })), "{verb}: {begun:?}");
            assert_eq!(names(&bench, &id), ["other", "textnlp"], "{verb}");
            bench.cloud.faults().clear();
            bench.finish(&operation(number, verb)).await;
            assert!(names(&bench, &id).contains(&"other".to_owned()), "{verb}");
        }
        assert_eq!(names(&bench, &id), ["other"]);
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}
