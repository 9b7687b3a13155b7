//! Buckets.

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, ModelStore};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{CloudId, ErrorKind, Ownership, Provider, Verb, Wanted};
use textnlp_sim::aws::s3;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::kms::key;
use crate::network::{finish, operation, seen, with};
use crate::{Bench, output, run, site, wanted};

const NAME: &str = "textnlp-123456789012-staging-here-models";

fn bucket(key: Option<&str>) -> Wanted {
    let arn = format!("arn:aws:s3:::{NAME}");
    let spec = json!({
        "name": NAME,
        "owner_enforced": true,
        "public_access_blocked": true,
        "encryption": { "key": key, "bucket_key": true },
        "versioned": true,
        "policy": {
            "Version": "2012-10-17",
            "Statement": [{
                "Sid": "OnlyTls", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
                "Resource": [arn, format!("{arn}/*")],
                "Condition": { "Bool": { "aws:SecureTransport": "false" } },
            }],
        },
        "lifecycle": [rule(30)],
        "replication": null,
        "tags": {},
    });
    wanted("here/models/bucket", "aws.bucket", &spec)
}

fn rule(old_versions: u32) -> Value {
    json!({
        "id": "models", "enabled": true, "prefix": "", "transitions": [{ "days": 0, "class": "INTELLIGENT_TIERING" }],
        "expire_days": null, "old_versions_expire_days": old_versions, "abort_uploads_days": 7,
    })
}

#[test]
fn an_s3_bucket_lives() {
    let bench = Bench::new();
    run(async {
        let (bed, key) = (bench.bed(), key());
        let made = bed.make(&key).await?;
        let wanted = bucket(Some(&output(&made, "arn")));
        let mut changed = with(&wanted, "lifecycle", json!([rule(60)]));
        for (field, value) in [("policy", Value::Null), ("versioned", json!(false))] {
            changed = with(&Wanted { spec: changed, ..wanted.clone() }, field, value);
        }
        bed.whole_life(&wanted, Some(&changed)).await?;
        bed.unmake(&key, &made).await
    });
}

#[test]
fn an_s3_bucket_with_models_is_emptied_a_page_a_call() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), bucket(None));
        let made = bed.make(&wanted).await?;
        for number in 0..1300 {
            let key = format!("models/{number}");
            // A replaced version for each.
            s3::insert(&mut bench.simulator.world(), NAME, &key, b"old");
            s3::insert(&mut bench.simulator.world(), NAME, &key, b"new");
        }
        bed.unmake(&wanted, &made).await?;
        assert_eq!(bench.calls("DeleteObjects"), 3);
        assert!(s3::bucket(&bench.simulator.world(), NAME).is_none());
        Ok(())
    });
}

#[test]
fn settings_of_an_s3_bucket_that_show_late_are_set_once() {
    let bench = Bench::consistent_after(std::time::Duration::from_secs(60));
    run(async {
        bench.bed().make(&bucket(None)).await?;
        Ok(())
    });
    for call in ["PutBucketEncryption", "PutBucketVersioning", "PutBucketPolicy", "PutBucketLifecycleConfiguration"] {
        assert!((1..=2).contains(&bench.calls(call)), "{call}: {}", bench.calls(call));
    }
}

#[test]
fn an_s3_name_of_another_account_is_refused() {
    let bench = Bench::new();
    let taken = Fault::new("BucketAlreadyExists", "The requested bucket name is not available.");
    bench.simulator.faults().add(Rule::always("s3", "CreateBucket", Disruption::Refused(taken)));
    run(async {
        let error = finish(&bench, &operation(Verb::Create, &bucket(None), None, 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists);
        Ok(())
    });
}

#[test]
fn an_s3_bucket_is_replicated_to_one_with_versions_only() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let copy = Wanted { spec: with(&bucket(None), "name", json!("textnlp-copy")), ..bucket(None) };
        let copy = Wanted { id: "here/models/copy".parse().unwrap(), spec: with(&copy, "policy", Value::Null), ..copy };
        let unversioned = Wanted { spec: with(&copy, "versioned", json!(false)), ..copy.clone() };
        let made = bed.make(&unversioned).await?;
        let replication = json!({
            "role": "arn:aws:iam::123456789012:role/textnlp/replication", "bucket": output(&made, "arn"), "key": null,
        });
        let wanted = Wanted { spec: with(&bucket(None), "replication", replication), ..bucket(None) };
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert!(textnlp_provider::error_chain(&error).contains("Destination bucket must have versioning"), "{error}");
        finish(&bench, &operation(Verb::Update, &copy, Some(&made), 101)).await.unwrap();
        let object = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap();
        assert_eq!(object.spec.get("replication"), wanted.spec.get("replication"));
        Ok(())
    });
}

#[test]
fn an_s3_policy_changed_by_hand_is_found() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), bucket(None));
        let made = bed.make(&wanted).await?;
        let open = Wanted { spec: with(&wanted, "policy", Value::Null), ..wanted.clone() };
        finish(&bench, &operation(Verb::Update, &open, Some(&made), 100)).await.unwrap();
        let object = seen(&bench, &wanted, &made).await;
        let changes = bench.provider.diff(&wanted, &made, &object);
        assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["policy"]);
        Ok(())
    });
}

fn models(existing: Option<&str>, key: Option<&str>) -> Component {
    let id = |text: &str| CloudId::new(text).unwrap();
    let store = ModelStore { models: Vec::new(), max_cache_bytes: 1, key: key.map(id), archive_after_days: Some(90) };
    Component { name: "models".parse().unwrap(), existing: existing.map(id), part: ComponentSpec::ModelStore(store) }
}

#[test]
fn models_have_an_encrypted_s3_bucket_that_answers_tls_only() {
    let bench = Bench::new();
    let wanted = lowers_purely(&bench.provider, &models(None, None), &site()).unwrap();
    let [key, bucket] = wanted.as_slice() else { panic!("{wanted:?}") };
    assert_eq!((key.kind.as_str(), bucket.kind.as_str()), ("aws.key", "aws.bucket"));
    assert!(key.protected && bucket.protected);
    assert_eq!(bucket.spec.get("name"), Some(&json!(NAME)));
    assert_eq!(
        bucket.spec.get("encryption"),
        Some(&json!({ "key": { "$output": "here/models/key#arn" }, "bucket_key": true }))
    );
    assert_eq!(bucket.spec.as_value()["policy"]["Statement"][0]["Condition"]["Bool"]["aws:SecureTransport"], "false");
    assert_eq!(bucket.spec.as_value()["lifecycle"][0]["transitions"], json!([{ "days": 90, "class": "GLACIER_IR" }]));
    assert!(bucket.needs.iter().any(|need| need.on == key.id));
}

#[test]
fn an_existing_s3_bucket_and_an_existing_key_are_never_changed() {
    let bench = Bench::new();
    let component = models(Some("company-models"), Some("alias/company"));
    let wanted = lowers_purely(&bench.provider, &component, &site()).unwrap();
    let external = |id: &str| Ownership::External(CloudId::new(id).unwrap());
    assert_eq!(wanted[0].ownership, external("alias/company"));
    assert_eq!(wanted[1].ownership, external("company-models"));
}
