//! Encryption keys.

use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Observed, Provider, Verb, Wanted};
use textnlp_sim::aws::kms::Kms;
use textnlp_sim::{Disruption, Rule};

use crate::network::{finish, operation, seen, with};
use crate::{ACCOUNT, Bench, run, wanted};

const ALIAS: &str = "alias/textnlp-staging-here-data";

pub(crate) fn key() -> Wanted {
    let account = format!("arn:aws:iam::{ACCOUNT}:root");
    let statement = json!({ "Effect": "Allow", "Principal": { "AWS": account }, "Action": "kms:*", "Resource": "*" });
    let spec = json!({
        "enabled": true,
        "description": "data of a test",
        "policy": { "Version": "2012-10-17", "Statement": [statement] },
        "rotation_days": 365,
        "aliases": [ALIAS],
        "tags": {},
    });
    wanted("here/models/key", "aws.key", &spec)
}

/// The states of all keys.
fn states(bench: &Bench) -> Vec<&'static str> {
    let world = bench.simulator.world();
    let keys = world.find::<Kms>(&Bench::scope()).map(|state| state.keys.values().map(|key| key.state()).collect());
    keys.unwrap_or_default()
}

#[test]
fn a_kms_key_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = key();
        let changed = with(
            &Wanted { spec: with(&wanted, "rotation_days", json!(90)), ..wanted.clone() },
            "description",
            json!("b"),
        );
        bench.bed().whole_life(&wanted, Some(&changed)).await
    });
    assert_eq!(states(&bench), ["PendingDeletion"]);
}

#[test]
fn a_kms_key_in_deletion_is_gone_and_the_next_one_gets_its_alias() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), key());
        let first = bed.make(&wanted).await?;
        bed.unmake(&wanted, &first).await?;
        let second = bed.make(&wanted).await?;
        assert_ne!(first.cloud_id, second.cloud_id);
        assert!(matches!(bench.provider.read(&wanted.kind, &first.cloud_id).await, Ok(Observed::Absent)));
        let world = bench.simulator.world();
        let alias = &world.find::<Kms>(&Bench::scope()).unwrap().aliases[ALIAS];
        assert_eq!(alias.key, second.cloud_id.as_str());
        Ok(())
    });
}

#[test]
fn an_alias_that_a_kms_key_in_deletion_kept_is_moved() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), key());
        let first = bed.make(&wanted).await?;
        // As an operator does in the console, where the alias stays.
        let now = bench.simulator.world().now();
        bench.simulator.world().state::<Kms>(&Bench::scope()).keys.get_mut(first.cloud_id.as_str()).unwrap().deletion =
            Some(now);
        let second = bed.make(&wanted).await?;
        let spec = seen(&bench, &wanted, &second).await.spec;
        assert_eq!(spec.get("aliases"), Some(&json!([ALIAS])));
        Ok(())
    });
}

#[test]
fn a_lost_reply_leaves_one_kms_key() {
    let bench = Bench::new();
    bench.simulator.faults().add(Rule::nth("kms", "CreateKey", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("kms", "CreateAlias", 1, Disruption::LostReply));
    run(async {
        bench.bed().make(&key()).await?;
        Ok(())
    });
    assert_eq!(states(&bench).iter().filter(|state| **state == "Enabled").count(), 1);
}

#[test]
fn a_kms_key_that_was_disabled_by_hand_is_enabled_again() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), key());
        let recorded = bed.make(&wanted).await?;
        let id = recorded.cloud_id.as_str();
        bench.simulator.world().state::<Kms>(&Bench::scope()).keys.get_mut(id).unwrap().enabled = false;
        let object = seen(&bench, &wanted, &recorded).await;
        let changes = bench.provider.diff(&wanted, &recorded, &object);
        assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["enabled"]);
        finish(&bench, &operation(Verb::Update, &wanted, Some(&recorded), 100)).await.unwrap();
        assert_eq!(states(&bench), ["Enabled"]);
        Ok(())
    });
}

#[test]
fn a_kms_policy_that_locks_the_account_out_is_refused() {
    let bench = Bench::new();
    run(async {
        let policy: Value = json!({ "Version": "2012-10-17", "Statement": [] });
        let wanted = Wanted { spec: with(&key(), "policy", policy), ..key() };
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Invalid, Some("MalformedPolicyDocumentException")));
        Ok(())
    });
}
