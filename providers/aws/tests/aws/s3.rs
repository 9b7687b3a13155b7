//! Buckets.

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Model, ModelReplica, ModelStore};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{
    Charge, CloudId, ErrorKind, Observed, Ownership, PolicyRequest, PolicyResource, Provider, Recorded, Scope, Spec,
    Sweep, Verb, Wanted, error_chain,
};
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::aws::kms::Kms;
use textnlp_sim::aws::{ec2, s3};
use textnlp_sim::{Disruption, Fault, Rule};

use crate::kms::key;
use crate::network::{finish, operation, seen, with};
use crate::{Bench, lineage, make_all, output, run, site, wanted};

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
fn the_name_of_a_deleted_s3_bucket_is_free_after_an_hour() {
    let bench = Bench::new();
    bench.simulator.world().state::<s3::S3>(&textnlp_sim::Scope::new("", "")).keeps_names = true;
    run(async {
        let (bed, wanted) = (bench.bed(), bucket(None));
        let made = bed.make(&wanted).await?;
        bed.unmake(&wanted, &made).await?;
        let create = operation(Verb::Create, &wanted, None, 100);
        let error = bench.provider.begin(&create).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.hint.as_deref().unwrap_or_default().contains("an hour"), "{error:?}");
        bench.simulator.advance(std::time::Duration::from_secs(3600));
        finish(&bench, &create).await.unwrap();
        Ok(())
    });
}

#[test]
fn an_error_of_aws_says_whether_it_refused_the_call() {
    let denied = || Disruption::Refused(Fault::new("AccessDenied", "Access Denied").status(403));
    let invalid = || Disruption::Refused(Fault::new("Surprise", "Bad request").status(400));
    for (disruption, is_refused) in [
        (denied(), true),
        (invalid(), true),
        (Disruption::Throttled, false),
        (Disruption::Internal, false),
        (Disruption::LostRequest, false),
        (Disruption::LostReply, false),
    ] {
        let bench = Bench::new();
        let says = format!("{disruption:?}");
        bench.simulator.faults().add(Rule::nth("s3", "CreateBucket", 1, disruption));
        run(async {
            let error = bench.provider.begin(&operation(Verb::Create, &bucket(None), None, 100)).await.unwrap_err();
            assert_eq!(error.refused, is_refused, "{says}: {error:?}");
            Ok(())
        });
    }
}

#[test]
fn a_bucket_of_a_recorded_name_without_our_tags_is_neither_changed_nor_deleted() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let wanted = bucket(None);
        let recorded = bed.make(&wanted).await?;
        let arn = format!("arn:aws:s3:::{NAME}");
        bench.simulator.world().tags.remove(&arn, ["textnlp-lineage", "textnlp-resource", "textnlp-operation"]);
        for verb in [Verb::Update, Verb::Delete] {
            let spec = with(&wanted, "lifecycle", json!([rule(60)]));
            let op = operation(verb, &Wanted { spec, ..wanted.clone() }, Some(&recorded), 101);
            let error = finish(&bench, &op).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Denied);
            assert!(error_chain(&error).contains("has no tag `textnlp-lineage` any more"), "{}", error_chain(&error));
            assert!(error.hint.unwrap().contains("restore its tags `textnlp-lineage`"));
        }
        assert_eq!((bench.calls("PutBucketLifecycleConfiguration"), bench.calls("DeleteBucket")), (1, 0));
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
            "role": "arn:aws:iam::123456789012:role/textnlp/replication", "bucket": output(&made, "arn"), "key": null, "metrics": true,
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
    let store = ModelStore {
        key: key.map(id),
        archive_after_days: existing.is_none().then_some(90),
        ..ModelStore::of(Vec::new())
    };
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
    let mut archived = models(Some("company-models"), None);
    if let ComponentSpec::ModelStore(store) = &mut archived.part {
        store.archive_after_days = Some(90);
    }
    let refused = bench.provider.lower(&archived, &site()).unwrap_err().to_string();
    assert!(refused.contains("its lifecycle is one of its settings"), "{refused}");
    let component = models(Some("company-models"), Some("alias/company"));
    let wanted = lowers_purely(&bench.provider, &component, &site()).unwrap();
    let external = |id: &str| Ownership::External(CloudId::new(id).unwrap());
    assert_eq!(wanted[0].ownership, external("alias/company"));
    assert_eq!(wanted[1].ownership, external("company-models"));
}

#[test]
fn pods_read_models_of_s3_by_a_role_of_their_own() {
    let bench = Bench::new();
    let from = |sources: &[&str], existing: bool| {
        let mut component = models(None, None);
        if let ComponentSpec::ModelStore(store) = &mut component.part {
            store.permission_boundary = Some("arn:aws:iam::123456789012:policy/boundary".to_owned());
            store.models = sources.iter().map(|source| Model::of("mine", source)).collect();
        }
        let mut site = crate::engine::site_of("staging", true, 3);
        site.cluster.as_mut().unwrap().existing = existing;
        lowers_purely(&bench.provider, &component, &site).unwrap()
    };
    let own = format!("s3://{NAME}/team/sha256-ab/");
    let all = from(&[&own, "s3://others/x.gguf", "hf:org/name", "s3://others/x.gguf"], false);
    let of = |kind: &str| all.iter().find(|one| one.kind.as_str() == kind).unwrap();
    let (role, association) = (of("aws.role").spec.as_value(), of("aws.eks-pod-identity-association"));
    assert_eq!(association.id.as_str(), "here/models/reader");
    let association = association.spec.as_value();
    assert_eq!(
        (&association["namespace"], &association["service_account"]),
        (&json!("textnlp"), &json!("textnlp-models"))
    );
    assert_eq!(role["trust"]["Statement"][0]["Principal"]["Service"], json!(["pods.eks.amazonaws.com"]));
    assert_eq!(role["boundary"], "arn:aws:iam::123456789012:policy/boundary");
    let statements = role["inline"]["models"]["Statement"].as_array().unwrap();
    let read: Vec<&Value> =
        statements.iter().filter(|one| one["Action"] == json!(["s3:GetObject"])).map(|one| &one["Resource"]).collect();
    let own_objects = json!([format!("arn:aws:s3:::{NAME}/team/sha256-ab/*")]);
    assert_eq!(read, [&json!(["arn:aws:s3:::others/x.gguf"]), &own_objects]);
    let keys: Vec<&Value> =
        statements.iter().filter(|one| one["Action"] == json!(["kms:Decrypt"])).map(|one| &one["Resource"]).collect();
    assert_eq!(keys, [&json!("arn:aws:kms:*:*:key/*"), &json!({ "$output": "here/models/key#arn" })]);
    assert_eq!(statements.len(), 6, "three for each bucket");
    assert!(statements.iter().all(|one| one["Resource"] != "*" && one["Action"].as_array().unwrap().len() == 1));
    let is_made = |all: &[Wanted]| all.iter().any(|one| one.id.as_str().contains("reader"));
    assert!(!is_made(&from(&["hf:org/name"], false)) && !is_made(&from(&[&own], true)));
}

fn copied_to(region: &str, existing: Option<&str>) -> Component {
    let mut component = models(existing, None);
    if let ComponentSpec::ModelStore(store) = &mut component.part {
        let boundary = Some("arn:aws:iam::123456789012:policy/boundary".to_owned());
        store.replica = Some(ModelReplica { region: region.to_owned(), permission_boundary: boundary });
    }
    component
}

#[test]
fn models_are_copied_to_an_s3_bucket_with_a_key_in_another_region() {
    let bench = Bench::new();
    let boundary = "arn:aws:iam::123456789012:policy/boundary".to_owned();
    bench.simulator.world().state::<Iam>(&textnlp_sim::Scope::global(crate::ACCOUNT)).policies.insert(boundary);
    let copied = format!("{NAME}-replica");
    let all = lowers_purely(&bench.provider, &copied_to("eu-central-1", None), &site()).unwrap();
    let role = all.iter().find(|one| one.kind.as_str() == "aws.role").unwrap();
    let allowed = role.spec.as_value()["inline"]["replica"]["Statement"].to_string();
    for part in
        [&format!("arn:aws:s3:::{NAME}/*"), &format!("arn:aws:s3:::{copied}/*"), "s3.eu-central-1.amazonaws.com"]
    {
        assert!(allowed.contains(part), "{part}: {allowed}");
    }
    assert!(!allowed.contains("\"*\""), "{allowed}");
    run(async {
        let bed = bench.bed();
        let mut made = make_all(&bed, all).await?;
        assert_eq!(made.len(), 5);
        bench.simulator.advance(std::time::Duration::from_secs(60));
        {
            let world = bench.simulator.world();
            assert_eq!(s3::bucket(&world, &copied).unwrap().region, "eu-central-1");
            assert_eq!(s3::bucket(&world, NAME).unwrap().region, "eu-west-1");
            let there = textnlp_sim::Scope::new(crate::ACCOUNT, "eu-central-1");
            assert_eq!(world.find::<Kms>(&there).unwrap().keys.len(), 1, "a key of its own");
        }
        let wanted: Vec<Wanted> = made.iter().map(|(one, _)| one.clone()).collect();
        let recorded: Vec<Recorded> = made.iter().map(|(_, recorded)| recorded.clone()).collect();
        let (environment, site) = ("staging".parse().unwrap(), site());
        let scope = Scope {
            lineage: lineage(),
            environment: &environment,
            site: &site.name,
            wanted: &wanted,
            recorded: &recorded,
        };
        let seen = bench.provider.observe(&scope).await.unwrap();
        assert_eq!(seen.len(), 5, "{seen:?}");
        for (id, seen) in &seen {
            let (one, recorded) = made.iter().find(|(one, _)| one.id == *id).unwrap();
            let Observed::Present(object) = seen else { panic!("{id}: {seen:?}") };
            let changes = bench.provider.diff(one, recorded, object);
            assert!(changes.is_empty(), "{id}: {changes:?}");
        }
        // Without a record, what is wanted there is still found there.
        let unrecorded = bench.provider.observe(&Scope { recorded: &[], ..scope }).await.unwrap();
        assert_eq!(unrecorded.len(), 5, "{unrecorded:?}");

        while let Some((one, recorded)) = made.pop() {
            bed.unmake(&one, &recorded).await?;
        }
        assert!(s3::bucket(&bench.simulator.world(), &copied).is_none());
        let sweep = Sweep { lineage: lineage(), before: &recorded, kept: &[] };
        let found = bench.provider.leftovers(&sweep).await.unwrap().unwrap();
        let searched = ["aws eu-central-1", "aws eu-west-1", "aws us-east-1"].map(str::to_owned);
        assert_eq!(found.searched, searched.into());
        assert!(found.left.is_empty(), "{found:?}");
        let keys: Vec<&str> = found.expected.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(keys.len(), 2, "{keys:?}");
        assert!(keys[0].contains(":eu-central-1:") && keys[1].contains(":eu-west-1:"), "{keys:?}");
        Ok(())
    });
}

#[test]
fn copies_of_an_s3_bucket_are_in_another_region_and_of_ours_only() {
    let bench = Bench::new();
    for (region, existing, says) in [
        ("eu-west-1", None, "not another region"),
        ("cn-north-1", None, "not another region"),
        ("eu-west-9", None, "not another region"),
        ("evil.example.com/", None, "not another region"),
        ("eu-central-1", Some("company-models"), "existing bucket is never changed"),
    ] {
        let problems = bench.provider.lower(&copied_to(region, existing), &site()).unwrap_err();
        assert!(problems.to_string().contains(says), "{problems}");
    }
}

#[test]
fn a_region_of_copies_that_is_not_enabled_is_found_before() {
    let bench = Bench::new();
    let global = textnlp_sim::Scope::global(crate::ACCOUNT);
    bench.simulator.world().state::<ec2::Disabled>(&global).0.insert("me-central-1".to_owned());
    run(async {
        let all = lowers_purely(&bench.provider, &copied_to("me-central-1", None), &site()).unwrap();
        let problems = bench.provider.preflight(&all).await.unwrap();
        let found = problems.iter().any(|one| one.place == "region me-central-1" && !one.warning);
        assert!(found, "{problems:?}");
        Ok(())
    });
}

#[test]
fn cost_and_policy_of_an_object_are_those_of_its_region() {
    let bench = Bench::new();
    let here = key();
    let there = with(&here, "region", json!("us-east-1"));
    let is_priced = |spec| {
        let lines = bench.provider.costs(&here.kind, spec);
        lines.iter().any(|line| matches!(line.charge, Charge::Priced { .. }))
    };
    // The price of a key is known there only.
    assert!(is_priced(&there) && !is_priced(&here.spec));
    let resource = |spec: &Spec| PolicyResource {
        id: here.id.clone(),
        cloud_id: None,
        kind: here.kind.clone(),
        spec: spec.clone(),
        verbs: [Verb::Create].into(),
    };
    let request = PolicyRequest {
        lineage: None,
        environment: "staging".parse().unwrap(),
        site: here.site.clone(),
        resources: vec![resource(&here.spec), resource(&there)],
    };
    let text: String = bench.provider.policies(&request).into_iter().map(|document| document.text).collect();
    for region in ["eu-west-1", "us-east-1"] {
        assert!(text.contains(&format!("arn:aws:kms:{region}:")), "{text}");
    }
}
