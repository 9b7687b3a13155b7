//! Load balancers and target groups that controllers of a cluster created and left behind.

use textnlp_provider::Result;

use crate::api::Api;

/// The signing name of Elastic Load Balancing.
pub(super) const SERVICE: &str = "elasticloadbalancing";

/// The resource in an ARN of this service.
fn resource(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(6, ':').skip(2);
    parts.next().filter(|service| *service == SERVICE)?;
    parts.nth(2)
}

/// Whether an ARN is that of a classic load balancer: `loadbalancer/NAME`.
pub(super) fn is_classic(arn: &str) -> bool {
    resource(arn).and_then(|resource| resource.strip_prefix("loadbalancer/")).is_some_and(|name| !name.contains('/'))
}

/// What an ARN of Elastic Load Balancing is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Balancing {
    LoadBalancer,
    TargetGroup,
}

impl Balancing {
    /// `None` for an ARN of another service, for other ids, and for classic load balancers, which have an API of their own
    /// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_awselasticloadbalancingv2.html>, "resource types").
    pub(super) fn of(arn: &str) -> Option<Self> {
        let mut parts = resource(arn)?.split('/');
        match (parts.next()?, parts.count()) {
            // TYPE/NAME/ID
            ("loadbalancer", 3) => Some(Self::LoadBalancer),
            // NAME/ID
            ("targetgroup", 2) => Some(Self::TargetGroup),
            _ => None,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::LoadBalancer => "load balancer",
            Self::TargetGroup => "target group",
        }
    }

    /// The VPC of such an object; `None` when it is gone.
    pub(super) async fn vpc(self, api: &Api, arn: &str) -> Result<Option<String>> {
        Ok(match self {
            Self::LoadBalancer => {
                let call = api.elb.describe_load_balancers().load_balancer_arns(arn).send();
                let found = api.find(SERVICE, arn, call).await?;
                found.and_then(|found| found.load_balancers?.into_iter().next()?.vpc_id)
            }
            Self::TargetGroup => {
                let call = api.elb.describe_target_groups().target_group_arns(arn).send();
                let found = api.find(SERVICE, arn, call).await?;
                found.and_then(|found| found.target_groups?.into_iter().next()?.vpc_id)
            }
        })
    }

    /// Deletes it. What is not there is deleted without an error.
    pub(super) async fn delete(self, api: &Api, arn: &str) -> Result<()> {
        let action = "delete";
        match self {
            Self::LoadBalancer => {
                let call = api.elb.delete_load_balancer().load_balancer_arn(arn).send();
                api.call(SERVICE, action, arn, call).await.map(drop)
            }
            Self::TargetGroup => {
                let call = api.elb.delete_target_group().target_group_arn(arn).send();
                api.call(SERVICE, action, arn, call).await.map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classic_load_balancer_is_not_taken_for_another() {
        let arn = |resource: &str| format!("arn:aws:elasticloadbalancing:eu-west-1:123456789012:{resource}");
        for (resource, balancing, classic) in [
            ("loadbalancer/net/k8s-text/50dc6c495c0c9188", Some(Balancing::LoadBalancer), false),
            ("loadbalancer/app/k8s-text/50dc6c495c0c9188", Some(Balancing::LoadBalancer), false),
            ("targetgroup/k8s-text/50dc6c495c0c9188", Some(Balancing::TargetGroup), false),
            ("loadbalancer/a0dc6c495c0c9188", None, true),
            ("listener/net/k8s-text/50dc6c495c0c9188/1", None, false),
        ] {
            assert_eq!((Balancing::of(&arn(resource)), is_classic(&arn(resource))), (balancing, classic), "{resource}");
        }
        for other in ["eni-0123", "arn:aws:ec2:eu-west-1:123456789012:loadbalancer/a", ""] {
            assert_eq!((Balancing::of(other), is_classic(other)), (None, false), "{other}");
        }
    }
}
