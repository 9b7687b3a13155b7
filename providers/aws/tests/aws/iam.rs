//! Roles, instance profiles, OIDC providers and log groups.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_provider::{Observed, Provider, Wanted};
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::{Disruption, Options, Rule, Scope, Simulator, Timing};

use crate::{ACCOUNT, Bench, lineage, run, site, wanted};

/// The role of a service, with policies of AWS.
pub(crate) fn role(part: &str, service: &str, policies: &[&str]) -> Wanted {
    let managed: Vec<String> = policies.iter().map(|name| format!("arn:aws:iam::aws:policy/{name}")).collect();
    let spec = json!({
        "name": format!("textnlp-staging-here-{part}"), "path": "/textnlp/", "boundary": null,
        "trust": { "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": { "Service": service }, "Action": ["sts:TagSession", "sts:AssumeRole"],
        }] },
        "managed": managed, "inline": {}, "tags": {},
    });
    wanted(&format!("here/cluster/{part}"), "aws.role", &spec)
}

/// The same resource with other values of fields.
pub(crate) fn with(wanted: &Wanted, changes: Value) -> Wanted {
    let mut spec = wanted.spec.as_value().clone();
    for (field, value) in changes.as_object().unwrap() {
        spec[field] = value.clone();
    }
    Wanted { spec: textnlp_provider::Spec::of(&spec), ..wanted.clone() }
}

fn policy(action: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": { "Effect": "Allow", "Action": action, "Resource": "*" } })
}

pub(crate) const BOUNDARY: &str = "arn:aws:iam::123456789012:policy/boundary";

#[test]
fn a_role_lives() {
    let bench = Bench::new();
    bench.simulator.world().state::<Iam>(&Scope::global(ACCOUNT)).policies.insert(BOUNDARY.to_owned());
    run(async {
        let base = role("role", "eks.amazonaws.com", &["AmazonEKSClusterPolicy", "AmazonS3ReadOnlyAccess"]);
        let base = with(&base, json!({ "inline": { "a": policy("s3:GetObject"), "b": policy("s3:ListBucket") } }));
        let changed = with(
            &base,
            json!({
                "boundary": BOUNDARY,
                "managed": ["arn:aws:iam::aws:policy/AmazonEKSClusterPolicy", "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"],
                "inline": { "b": policy("s3:PutObject"), "c": policy("s3:GetObject") },
                "trust": role("role", "ec2.amazonaws.com", &[]).spec.get("trust").unwrap(),
                "tags": { "owner": "me" },
            }),
        );
        bench.bed().whole_life(&base, Some(&changed.spec)).await
    });
    assert!(bench.simulator.world().state::<Iam>(&Scope::global(ACCOUNT)).roles.is_empty());
}

#[test]
fn policies_of_a_role_are_attached_one_call_each_also_when_throttled() {
    let bench = Bench::new();
    bench.simulator.faults().add(Rule::nth("iam", "AttachRolePolicy", 1, Disruption::Throttled));
    bench.simulator.faults().add(Rule::nth("iam", "AttachRolePolicy", 2, Disruption::LostReply));
    run(async {
        let role = role(
            "node-role",
            "ec2.amazonaws.com",
            &["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"],
        );
        bench.bed().make(&role).await.map(drop)
    });
    let mut world = bench.simulator.world();
    let role = world.state::<Iam>(&Scope::global(ACCOUNT)).roles["textnlp-staging-here-node-role"].clone();
    assert_eq!(role.managed.len(), 2);
    assert_eq!(role.arn, format!("arn:aws:iam::{ACCOUNT}:role/textnlp/textnlp-staging-here-node-role"));
}

#[test]
fn an_instance_profile_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (one, other) = (role("one", "ec2.amazonaws.com", &[]), role("other", "ec2.amazonaws.com", &[]));
        let roles = (bed.make(&one).await?, bed.make(&other).await?);
        let spec = json!({
            "name": "textnlp-staging-here-machines", "path": "/textnlp/", "role": "textnlp-staging-here-one", "tags": {},
        });
        let profile = wanted("here/cluster/profile", "aws.instance-profile", &spec);
        let changed = with(&profile, json!({ "role": "textnlp-staging-here-other", "tags": { "owner": "me" } }));
        bed.whole_life(&profile, Some(&changed.spec)).await?;
        bed.unmake(&one, &roles.0).await?;
        bed.unmake(&other, &roles.1).await
    });
}

#[test]
fn an_oidc_provider_lives() {
    let bench = Bench::new();
    run(async {
        let spec = json!({
            "url": "https://oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF", "audiences": ["sts.amazonaws.com"], "tags": {},
        });
        let provider = wanted("here/cluster/oidc", "aws.oidc-provider", &spec);
        let changed = with(&provider, json!({ "audiences": ["other"], "tags": { "owner": "me" } }));
        bench.bed().whole_life(&provider, Some(&changed.spec)).await
    });
}

#[test]
fn a_log_group_lives() {
    let bench = Bench::new();
    run(async {
        let spec =
            json!({ "name": "/aws/eks/textnlp-staging-here/cluster", "retention_days": 90, "key": null, "tags": {} });
        let group = wanted("here/cluster/logs", "aws.log-group", &spec);
        let changed = with(
            &group,
            json!({
                "retention_days": null, "key": format!("arn:aws:kms:eu-west-1:{ACCOUNT}:key/1"), "tags": { "owner": "me" },
            }),
        );
        bench.bed().whole_life(&group, Some(&changed.spec)).await
    });
}

#[test]
fn a_throttled_page_does_not_lose_the_list() {
    const ROLES: usize = 5;
    let timing = Timing { page: 2, ..Timing::default() };
    let bench = Bench::of(Simulator::start(Options { timing, ..Options::default() }), []);
    run(async {
        let bed = bench.bed();
        for number in 0..ROLES {
            bed.make(&role(&format!("role-{number}"), "eks.amazonaws.com", &[])).await?;
        }
        bench.simulator.advance(Duration::from_secs(60));
        bench.simulator.faults().add(Rule::nth("iam", "ListRoles", 2, Disruption::Throttled));
        // No record names them: only the list does.
        let site = site();
        let (environment, here) = (&site.environment, &site.name);
        let scope = textnlp_provider::Scope { lineage: lineage(), environment, site: here, wanted: &[], recorded: &[] };
        let seen = bench.provider.observe(&scope).await.unwrap();
        let present = seen.iter().filter(|(_, seen)| matches!(seen, Observed::Present(_))).count();
        assert_eq!(present, ROLES, "{seen:?}");
        let throttled =
            bench.simulator.requests().into_iter().filter(|request| {
                request.operation == "ListRoles" && request.outcome != textnlp_sim::Outcome::Succeeded
            });
        assert_eq!(throttled.count(), 1);
        Ok(())
    });
}
