//! Load balancers and target groups that controllers of a cluster created and left behind.

use std::collections::BTreeMap;

use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};
use textnlp_provider::{Error, ErrorKind, Result};

use crate::api::Api;
use crate::tags::Tags;

/// The signing name of Elastic Load Balancing.
pub(super) const SERVICE: &str = "elasticloadbalancing";
/// The most resources of one `DescribeTags`.
pub(super) const TAGGED: usize = 20;
/// The version of the API of classic load balancers
/// (<https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/Welcome.html>).
const CLASSIC: &str = "2012-06-01";
/// The classic load balancers of one answer: each lists its machines, at most a thousand.
const PAGE: &str = "50";

/// The resource in an ARN of this service.
fn resource(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(6, ':').skip(2);
    parts.next().filter(|service| *service == SERVICE)?;
    parts.nth(2)
}

/// What an ARN of Elastic Load Balancing is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Balancing {
    /// A classic load balancer, which has an API of its own.
    Classic,
    LoadBalancer,
    TargetGroup,
}

impl Balancing {
    /// `None` for an ARN of another service and for other ids
    /// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_awselasticloadbalancingv2.html>,
    /// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_awselasticloadbalancing.html>, "resource types").
    pub(super) fn of(arn: &str) -> Option<Self> {
        let mut parts = resource(arn)?.split('/');
        match (parts.next()?, parts.count()) {
            // NAME
            ("loadbalancer", 1) => Some(Self::Classic),
            // TYPE/NAME/ID
            ("loadbalancer", 3) => Some(Self::LoadBalancer),
            // NAME/ID
            ("targetgroup", 2) => Some(Self::TargetGroup),
            _ => None,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Classic => "classic load balancer",
            Self::LoadBalancer => "load balancer",
            Self::TargetGroup => "target group",
        }
    }

    /// The VPC of such an object; `None` when it is gone.
    pub(super) async fn vpc(self, api: &Api, arn: &str) -> Result<Option<String>> {
        Ok(match self {
            Self::Classic => {
                let fields = [("LoadBalancerNames.member.1", name(arn))];
                let found = query(api, ("read", arn), "DescribeLoadBalancers", &fields).await;
                match found.and_then(|body| read(classics_in(&body))) {
                    Ok((found, _)) => found.into_iter().next().and_then(|one| one.vpc),
                    Err(error) if error.kind == ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                }
            }
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
            Self::Classic => {
                let fields = [("LoadBalancerName", name(arn))];
                query(api, (action, arn), "DeleteLoadBalancer", &fields).await.map(drop)
            }
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

/// A classic load balancer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Classic {
    pub(super) name: String,
    /// `None` in EC2-Classic.
    vpc: Option<String>,
    pub(super) subnets: Vec<String>,
}

impl Classic {
    /// Its ARN, which its API does not name.
    pub(super) fn arn(&self, api: &Api) -> String {
        api.arn(SERVICE, &api.region, &format!("loadbalancer/{}", self.name))
    }
}

/// The name in the ARN of a classic load balancer.
fn name(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or_default()
}

/// One call of the API of classic load balancers.
async fn query(api: &Api, words: (&str, &str), operation: &str, fields: &[(&str, &str)]) -> Result<String> {
    let fields = [&[("Action", operation), ("Version", CLASSIC)][..], fields].concat();
    api.query(SERVICE, words, &fields).await
}

fn read<T>(answer: Result<T, XmlDecodeError>) -> Result<T> {
    let failed = || Error::new(ErrorKind::Unavailable, "read", "an answer of Elastic Load Balancing");
    answer.map_err(|error| failed().because(error.to_string()))
}

/// The answer of a region that has no classic load balancers
/// (<https://docs.aws.amazon.com/elasticloadbalancing/2012-06-01/APIReference/CommonErrors.html>).
const ABSENT: &str = "InvalidAction";

/// The classic load balancers of the region: no filter is offered.
pub(super) async fn classics(api: &Api) -> Result<Vec<Classic>> {
    let (mut all, mut marker) = (Vec::new(), String::new());
    loop {
        let fields = [("PageSize", PAGE), ("Marker", marker.as_str())];
        let fields = if marker.is_empty() { &fields[..1] } else { &fields[..] };
        let body = match query(api, ("list", "classic load balancers"), "DescribeLoadBalancers", fields).await {
            Err(error) if error.code.as_deref() == Some(ABSENT) => return Ok(all),
            body => body?,
        };
        let (page, next) = read(classics_in(&body))?;
        all.extend(page);
        if next.is_empty() {
            return Ok(all);
        }
        marker = next;
    }
}

/// The tags of classic load balancers, by name.
pub(super) async fn classic_tags(api: &Api, names: &[&str]) -> Result<BTreeMap<String, Tags>> {
    let mut all = BTreeMap::new();
    for some in names.chunks(TAGGED) {
        let keys: Vec<String> = (1..=some.len()).map(|index| format!("LoadBalancerNames.member.{index}")).collect();
        let fields: Vec<(&str, &str)> = keys.iter().map(String::as_str).zip(some.iter().copied()).collect();
        match query(api, ("read", "tags of classic load balancers"), "DescribeTags", &fields).await {
            Ok(body) => all.extend(read(tags_in(&body))?),
            // One of them was deleted since it was listed: the next read shows the rest.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Whether a classic load balancer has a tag now. Its ARN is only a name, which another one may have got since the tagging API saw it.
pub(super) async fn has_tag(api: &Api, arn: &str, (key, value): (&str, &str)) -> Result<bool> {
    let tags = classic_tags(api, &[name(arn)]).await?;
    Ok(tags.get(name(arn)).and_then(|tags| tags.get(key)).is_some_and(|found| found == value))
}

fn text(element: &mut ScopedDecoder<'_, '_>) -> Result<String, XmlDecodeError> {
    Ok(try_data(element)?.into_owned())
}

/// The load balancers in an answer, and the marker of the next page; it is empty on the last one.
fn classics_in(body: &str) -> Result<(Vec<Classic>, String), XmlDecodeError> {
    let (mut all, mut marker) = (Vec::new(), String::new());
    let mut document = Document::new(body);
    let mut root = document.root_element()?;
    while let Some(mut result) = root.next_tag() {
        while let Some(mut part) = result.next_tag() {
            if part.start_el().matches("NextMarker") {
                marker = text(&mut part)?;
            } else if part.start_el().matches("LoadBalancerDescriptions") {
                while let Some(mut member) = part.next_tag() {
                    all.push(classic_in(&mut member)?);
                }
            }
        }
    }
    Ok((all, marker))
}

fn classic_in(member: &mut ScopedDecoder<'_, '_>) -> Result<Classic, XmlDecodeError> {
    let mut found = Classic::default();
    while let Some(mut part) = member.next_tag() {
        if part.start_el().matches("LoadBalancerName") {
            found.name = text(&mut part)?;
        } else if part.start_el().matches("VPCId") {
            found.vpc = Some(text(&mut part)?).filter(|vpc| !vpc.is_empty());
        } else if part.start_el().matches("Subnets") {
            while let Some(mut subnet) = part.next_tag() {
                found.subnets.push(text(&mut subnet)?);
            }
        }
    }
    Ok(found)
}

/// The tags in an answer, by the name of the load balancer.
fn tags_in(body: &str) -> Result<BTreeMap<String, Tags>, XmlDecodeError> {
    let mut all = BTreeMap::new();
    let mut document = Document::new(body);
    let mut root = document.root_element()?;
    while let Some(mut result) = root.next_tag() {
        while let Some(mut descriptions) = result.next_tag() {
            while let Some(mut member) = descriptions.next_tag() {
                let (mut name, mut tags) = (String::new(), Tags::new());
                while let Some(mut part) = member.next_tag() {
                    if part.start_el().matches("LoadBalancerName") {
                        name = text(&mut part)?;
                    } else if part.start_el().matches("Tags") {
                        while let Some(mut tag) = part.next_tag() {
                            let (key, value) = tag_in(&mut tag)?;
                            tags.insert(key, value);
                        }
                    }
                }
                all.insert(name, tags);
            }
        }
    }
    Ok(all)
}

fn tag_in(tag: &mut ScopedDecoder<'_, '_>) -> Result<(String, String), XmlDecodeError> {
    let (mut key, mut value) = (String::new(), String::new());
    while let Some(mut part) = tag.next_tag() {
        if part.start_el().matches("Key") {
            key = text(&mut part)?;
        } else if part.start_el().matches("Value") {
            value = text(&mut part)?;
        }
    }
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_of_an_object_is_read_from_its_arn() {
        let arn = |resource: &str| format!("arn:aws:elasticloadbalancing:eu-west-1:123456789012:{resource}");
        for (resource, balancing) in [
            ("loadbalancer/net/k8s-text/50dc6c495c0c9188", Some(Balancing::LoadBalancer)),
            ("loadbalancer/app/k8s-text/50dc6c495c0c9188", Some(Balancing::LoadBalancer)),
            ("targetgroup/k8s-text/50dc6c495c0c9188", Some(Balancing::TargetGroup)),
            ("loadbalancer/a0dc6c495c0c9188", Some(Balancing::Classic)),
            ("listener/net/k8s-text/50dc6c495c0c9188/1", None),
        ] {
            assert_eq!(Balancing::of(&arn(resource)), balancing, "{resource}");
        }
        for other in ["eni-0123", "arn:aws:ec2:eu-west-1:123456789012:loadbalancer/a", ""] {
            assert_eq!(Balancing::of(other), None, "{other}");
        }
    }

    #[test]
    fn answers_about_classic_load_balancers_are_read() {
        let one = |name: &str, place: &str| {
            format!(
                "<member><ListenerDescriptions><member><PolicyNames/><Listener><Protocol>TCP</Protocol></Listener></member>\
                 </ListenerDescriptions><LoadBalancerName>{name}</LoadBalancerName>{place}<Instances><member><InstanceId>i-1</InstanceId>\
                 </member></Instances></member>"
            )
        };
        let place = "<VPCId>vpc-1</VPCId><Subnets><member>subnet-1</member><member>subnet-2</member></Subnets>";
        let balancers = [one("a", place), one("b", "<Subnets/>")].concat();
        let answer = |marker: &str| {
            format!(
                "<DescribeLoadBalancersResponse xmlns=\"http://elasticloadbalancing.amazonaws.com/doc/2012-06-01/\">\
                 <DescribeLoadBalancersResult><LoadBalancerDescriptions>{balancers}</LoadBalancerDescriptions>{marker}\
                 </DescribeLoadBalancersResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></DescribeLoadBalancersResponse>"
            )
        };
        let subnets = ["subnet-1", "subnet-2"].map(str::to_owned).to_vec();
        let first = Classic { name: "a".to_owned(), vpc: Some("vpc-1".to_owned()), subnets };
        let second = Classic { name: "b".to_owned(), ..Classic::default() };
        let (found, marker) = classics_in(&answer("<NextMarker>b&amp;c</NextMarker>")).unwrap();
        assert_eq!((found, marker.as_str()), (vec![first, second], "b&c"));
        assert_eq!(classics_in(&answer("")).unwrap().1, "");

        let tags = "<DescribeTagsResponse><DescribeTagsResult><TagDescriptions><member><Tags><member><Value>owned</Value>\
            <Key>kubernetes.io/cluster/text</Key></member></Tags><LoadBalancerName>a</LoadBalancerName></member></TagDescriptions>\
            </DescribeTagsResult></DescribeTagsResponse>";
        let expected = Tags::from([("kubernetes.io/cluster/text".to_owned(), "owned".to_owned())]);
        assert_eq!(tags_in(tags).unwrap(), BTreeMap::from([("a".to_owned(), expected)]));
    }
}
