//! The search for what a deployment left behind: everything that carries its lineage, in all regions that it used.
//!
//! The tagging API shows deleted objects for a while, and tags of new ones late. What it shows is therefore read once more before it
//! counts. It shows no roles, which are listed by their path.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use textnlp_cloud::{Cloud, region_of};
use textnlp_provider::{Leftover, Leftovers, Result, Sweep, error_chain};
use textnlp_token::partition;

use crate::api::Api;
use crate::kinds::tagged;
use crate::resource::{Filter, State};
use crate::table::{self, Row};
use crate::tags;

/// Objects that are read at the same time.
const AT_ONCE: usize = 8;
/// The kind that the tagging API does not show
/// (<https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/supported-services.html>, read 2026-11-23).
const ROLE: &str = "aws.role";

/// The service and the start of the resource in the ARN of an object, its kind, and how its id follows from the rest.
type Shape = (&'static str, &'static str, &'static str, fn(&str) -> Option<String>);

/// The ARNs of the kinds: <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>.
const SHAPES: &[Shape] = &[
    ("acm", "certificate/", "aws.certificate", whole),
    ("budgets", "budget/", "aws.budget", whole),
    ("cloudwatch", "alarm:", "aws.alarm", whole),
    ("cloudwatch", "dashboard/", "aws.dashboard", whole),
    ("ec2", "elastic-ip/", "aws.elastic-ip", whole),
    ("ec2", "internet-gateway/", "aws.internet-gateway", whole),
    ("ec2", "launch-template/", "aws.launch-template", whole),
    ("ec2", "natgateway/", "aws.nat-gateway", whole),
    ("ec2", "route-table/", "aws.route-table", whole),
    ("ec2", "security-group/", "aws.security-group", whole),
    ("ec2", "subnet/", "aws.subnet", whole),
    ("ec2", "vpc-flow-log/", "aws.flow-log", whole),
    ("ec2", "vpc-endpoint/", "aws.vpc-endpoint", whole),
    ("ec2", "vpc/", "aws.vpc", whole),
    ("ecr", "repository/", "aws.repository", whole),
    // What is in a cluster ends with it. The ARN of an access entry does not tell the path of its identity.
    ("eks", "access-entry/", table::CLUSTER, first),
    ("eks", "addon/", "aws.eks-addon", in_cluster),
    ("eks", "cluster/", table::CLUSTER, whole),
    ("eks", "nodegroup/", "aws.eks-node-group", in_cluster),
    ("eks", "podidentityassociation/", "aws.eks-pod-identity-association", in_cluster),
    ("elasticache", "replicationgroup:", "aws.cache", whole),
    ("elasticache", "subnetgroup:", "aws.cache-subnet-group", whole),
    ("iam", "instance-profile/", "aws.instance-profile", last),
    ("iam", "oidc-provider/", "aws.oidc-provider", whole),
    ("iam", "role/", ROLE, last),
    ("kms", "key/", "aws.key", whole),
    ("logs", "log-group:", "aws.log-group", log_group),
    ("rds", "db:", "aws.db-instance", whole),
    ("rds", "pg:", "aws.db-parameter-group", whole),
    ("rds", "subgrp:", "aws.db-subnet-group", whole),
    ("route53", "healthcheck/", "aws.health-check", whole),
    ("s3", "", "aws.bucket", whole),
    ("sagemaker", "endpoint-config/", "aws.endpoint-config", whole),
    ("sagemaker", "endpoint/", "aws.endpoint", whole),
    ("sagemaker", "model/", "aws.sagemaker-model", whole),
    ("secretsmanager", "secret:", "aws.secret", secret),
    ("sns", "", "aws.topic", whole),
];

fn whole(rest: &str) -> Option<String> {
    Some(rest.to_owned())
}

fn first(rest: &str) -> Option<String> {
    rest.split('/').next().map(str::to_owned)
}

fn last(rest: &str) -> Option<String> {
    rest.rsplit('/').next().map(str::to_owned)
}

/// `CLUSTER/NAME/…` as `CLUSTER:NAME`.
fn in_cluster(rest: &str) -> Option<String> {
    let mut parts = rest.split('/');
    Some(format!("{}:{}", parts.next()?, parts.next()?))
}

fn log_group(rest: &str) -> Option<String> {
    Some(rest.trim_end_matches(":*").to_owned())
}

/// The name of a secret, to which AWS adds a hyphen and six characters.
fn secret(rest: &str) -> Option<String> {
    rest.rsplit_once('-').map(|(name, _)| name.to_owned())
}

/// The service and the resource in an ARN.
fn parts(arn: &str) -> Option<(&str, &str)> {
    let mut parts = arn.splitn(6, ':').skip(2);
    Some((parts.next()?, parts.nth(2)?))
}

/// The kind and the id of an object.
fn object(arn: &str) -> Option<(&'static Row, String)> {
    let (service, resource) = parts(arn)?;
    let shape = |(of, start, kind, id): &Shape| {
        let rest = resource.strip_prefix(start).filter(|_| service == *of)?;
        Some((table::rows().find(|row| row.kind.name == *kind)?, id(rest)?))
    };
    SHAPES.iter().find_map(shape)
}

/// The region of services without regions, as far as the tagging API shows their objects.
fn global_region(region: &str) -> &str {
    match partition(region).name {
        "aws" => "us-east-1",
        "aws-cn" => "cn-north-1",
        "aws-us-gov" => "us-gov-west-1",
        _ => region,
    }
}

/// Searches all regions that the deployment used. A region that cannot be searched is named, and the others are searched.
pub(crate) async fn leftovers(api: &Arc<Api>, sweep: &Sweep<'_>) -> Result<Leftovers> {
    let recorded = sweep.before.iter().chain(sweep.kept).filter(|one| table::row(&one.kind).is_some());
    let mut regions: BTreeSet<&str> = recorded.filter_map(|one| region_of(&one.spec)).collect();
    regions.extend([api.region.as_str(), global_region(&api.region)]);
    let kept: BTreeSet<(&str, &str)> =
        sweep.kept.iter().map(|one| (one.kind.as_str(), one.cloud_id.as_str())).collect();
    let filter = Filter::of(sweep.lineage);

    let mut all = Leftovers::default();
    let mut found: Vec<(Arc<Api>, String)> = Vec::new();
    let mut refused = None;
    for region in &regions {
        let (there, place) = (api.in_region(region), format!("aws {region}"));
        match tagged(&there, filter.tag(), &[]).await {
            Ok(shown) => {
                found.extend(shown.into_iter().filter_map(|one| Some((there.clone(), one.resource_arn?))));
                all.searched.insert(place);
            }
            Err(error) => {
                all.unsearched.insert(Leftover { id: place, what: error_chain(&error) });
                refused = Some(error);
            }
        }
    }
    if let Some(error) = refused.filter(|_| all.searched.is_empty()) {
        return Err(error);
    }
    if let Some(roles) = table::rows().find(|row| row.kind.name == ROLE) {
        match roles.resource.list(api, &filter).await {
            Ok(listed) => {
                for role in listed {
                    let arn = role.outputs.get("arn").and_then(|arn| arn.as_str()).unwrap_or(&role.id);
                    found.push((api.clone(), arn.to_owned()));
                }
            }
            Err(error) => {
                all.unsearched.insert(Leftover { id: "aws roles".to_owned(), what: error_chain(&error) });
            }
        }
    }

    let checks: Vec<_> = found.into_iter().map(|(api, arn)| check(api, arn, sweep, &kept)).collect();
    let mut checked = futures::stream::iter(checks).buffer_unordered(AT_ONCE);
    while let Some((id, finding)) = checked.next().await {
        match finding {
            Finding::Gone => {}
            Finding::Expected(what) => drop(all.expected.insert(Leftover { id, what })),
            Finding::Left(what) => drop(all.left.insert(Leftover { id, what })),
        }
    }
    Ok(all)
}

/// The result of a read of an object that the tagging API shows.
enum Finding {
    /// It does not exist, is another deployment's by now, or was kept.
    Gone,
    Expected(String),
    Left(String),
}

async fn check(api: Arc<Api>, arn: String, sweep: &Sweep<'_>, kept: &BTreeSet<(&str, &str)>) -> (String, Finding) {
    let Some((row, id)) = object(&arn) else {
        let finding = match parts(&arn) {
            Some(("rds", resource)) if resource.starts_with("snapshot:") => {
                Finding::Expected("the last snapshot of a removed database".to_owned())
            }
            _ => Finding::Left("no kind of this program: remove it yourself if nothing needs it".to_owned()),
        };
        return (arn, finding);
    };
    let kind = row.kind.name;
    if kept.contains(&(kind, id.as_str())) {
        return (arn, Finding::Gone);
    }
    let finding = match row.resource.read(&api, &id).await {
        Ok(None) => Finding::Gone,
        Ok(Some(seen)) => match seen.state {
            // A key is read as gone while it waits for its end.
            State::Gone if kind == "aws.key" => {
                Finding::Expected("KMS deletes it at the end of its waiting period".to_owned())
            }
            State::Gone => Finding::Gone,
            State::Deleting => Finding::Expected("AWS is deleting it".to_owned()),
            _ if tags::lineage(&seen.tags) != Some(sweep.lineage) => Finding::Gone,
            _ => Finding::Left(row.kind.says.to_owned()),
        },
        Err(error) => Finding::Left(format!("{}; it could not be read: {}", row.kind.says, error_chain(&error))),
    };
    (arn, finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_arn() {
        for row in table::rows() {
            let kind = row.kind.name;
            // Records have no ARNs. The others end with their cluster and their endpoint, and their ARNs do not tell their ids.
            let is_exempt = ["aws.dns-record", "aws.eks-access-entry", "aws.scaling-target"].contains(&kind);
            let is_known = is_exempt || SHAPES.iter().any(|(_, _, of, _)| *of == kind);
            assert!(is_known, "`SHAPES` lacks {kind}");
        }
        for (_, _, kind, _) in SHAPES {
            assert!(table::rows().any(|row| row.kind.name == *kind), "`SHAPES` has {kind}, which is no kind");
        }
    }

    #[test]
    fn arns_tell_kind_and_id() {
        for (arn, kind, id) in [
            ("arn:aws:ec2:eu-west-1:123456789012:vpc/vpc-0a", "aws.vpc", "vpc-0a"),
            ("arn:aws:ec2:eu-west-1:123456789012:vpc-endpoint/vpce-0a", "aws.vpc-endpoint", "vpce-0a"),
            ("arn:aws:eks:eu-west-1:123456789012:addon/c/coredns/0a", "aws.eks-addon", "c:coredns"),
            ("arn:aws:eks:eu-west-1:123456789012:access-entry/c/role/1/n/0a", "aws.eks-cluster", "c"),
            ("arn:aws:iam::123456789012:role/textnlp/nodes", "aws.role", "nodes"),
            ("arn:aws:iam::123456789012:oidc-provider/oidc.example/id/A", "aws.oidc-provider", "oidc.example/id/A"),
            (
                "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/eks/c/cluster:*",
                "aws.log-group",
                "/aws/eks/c/cluster",
            ),
            ("arn:aws:s3:::models", "aws.bucket", "models"),
            ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:a-b-x1y2z3", "aws.secret", "a-b"),
        ] {
            let (row, found) = object(arn).unwrap();
            assert_eq!((row.kind.name, found.as_str()), (kind, id), "{arn}");
        }
        for arn in ["arn:aws:ec2:eu-west-1:123456789012:volume/vol-0a", "arn:aws:rds:r:1:snapshot:s", "", "arn:aws"] {
            assert!(object(arn).is_none(), "{arn}");
        }
    }
}
