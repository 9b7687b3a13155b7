//! Requests that AWS refuses: wrong signatures, old dates, unknown keys, and what no model has.

use textnlp_sim::{Disruption, Fault, Options, Outcome, Rule, Simulator, Timing};

use crate::boto3;

/// `signed(service, form, …)` signs a form and sends it; `refused(status, code, …)` runs a call that has to fail.
const TOOLS: &str = r#"
import datetime, os, re, urllib.error, urllib.parse, urllib.request
import boto3, botocore.auth, botocore.awsrequest, botocore.client, botocore.credentials, botocore.exceptions
URL = os.environ["AWS_ENDPOINT_URL"]
ONCE = botocore.client.Config(retries={"total_max_attempts": 1})
def refused(status, code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == status, error.response
        assert error.response["ResponseMetadata"]["RequestId"], error.response
        return
    raise AssertionError(f"{code} was not answered")
def opened(url, data=None, headers={}):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
def code(answer):
    return answer[0], re.search("<Code>([^<]*)</Code>", answer[1])[1]
def signed(service, form, age=datetime.timedelta(), secret=os.environ["AWS_SECRET_ACCESS_KEY"], body=None):
    keys = botocore.credentials.Credentials(os.environ["AWS_ACCESS_KEY_ID"], secret)
    data = urllib.parse.urlencode(form)
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    request = botocore.awsrequest.AWSRequest(method="POST", url=URL + "/", data=data, headers=headers)
    now = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *a, **k: now(*a, **k) - age
    try:
        botocore.auth.SigV4Auth(keys, service, "eu-west-1").add_auth(request)
    finally:
        botocore.auth.get_current_datetime = now
    return code(opened(URL + "/", (body or data).encode(), dict(request.headers)))
"#;

#[test]
fn wrong_signatures_are_refused_as_each_protocol_does() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
def client(service, **arguments):
    keys = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client(service, config=ONCE, **{**keys, **arguments})
refused(403, "SignatureDoesNotMatch", client("sts", aws_secret_access_key="x").get_caller_identity)
refused(403, "SignatureDoesNotMatch", client("ec2", aws_secret_access_key="x").describe_vpcs)
refused(403, "InvalidClientTokenId", client("sts", aws_access_key_id="AKIAUNKNOWN").get_caller_identity)
refused(401, "AuthFailure", client("ec2", aws_access_key_id="AKIAUNKNOWN").describe_vpcs)
refused(403, "InvalidClientTokenId", client("sts", aws_session_token="x").get_caller_identity)
identity = {"Action": "GetCallerIdentity", "Version": "2011-06-15"}
vpcs = {"Action": "DescribeVpcs", "Version": "2016-11-15"}
minutes = lambda count: datetime.timedelta(minutes=count)
assert signed("sts", identity, minutes(6)) == (403, "SignatureDoesNotMatch")
assert signed("sts", identity, minutes(-6)) == (403, "SignatureDoesNotMatch")
assert signed("ec2", vpcs, minutes(6)) == (400, "RequestExpired")
# The body is not the one that was signed.
assert signed("sts", identity, body="Action=GetCallerIdentity&Version=2011-06-15&") == (403, "SignatureDoesNotMatch")
assert code(opened(URL + "/", urllib.parse.urlencode(identity).encode())) == (403, "MissingAuthenticationToken")
"#;
    boto3(&simulator, &format!("{TOOLS}{script}"));
    let requests = simulator.requests();
    assert!(requests.iter().all(|request| request.outcome != Outcome::Succeeded), "{requests:?}");
}

#[test]
fn presigned_urls_are_accepted_until_they_expire() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
# As for a token of EKS: a header is part of the signature.
sts = boto3.client("sts")
def presigned(age=datetime.timedelta(), expires=60):
    now = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *a, **k: now(*a, **k) - age
    keys = botocore.credentials.Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    url = URL + "/?Action=GetCallerIdentity&Version=2011-06-15"
    request = botocore.awsrequest.AWSRequest(method="GET", url=url, headers={"x-k8s-aws-id": "a-cluster"})
    botocore.auth.SigV4QueryAuth(keys, "sts", "eu-west-1", expires=expires).add_auth(request)
    botocore.auth.get_current_datetime = now
    return request.url
status, text = opened(presigned(), headers={"x-k8s-aws-id": "a-cluster"})
assert status == 200 and "user/operator" in text, text
assert code(opened(presigned(), headers={"x-k8s-aws-id": "another"})) == (403, "SignatureDoesNotMatch")
assert code(opened(presigned())) == (403, "SignatureDoesNotMatch")
old = presigned(datetime.timedelta(seconds=90))
assert code(opened(old, headers={"x-k8s-aws-id": "a-cluster"})) == (403, "SignatureDoesNotMatch")
longer = presigned(datetime.timedelta(minutes=10), expires=900)
assert opened(longer, headers={"x-k8s-aws-id": "a-cluster"})[0] == 200
"#;
    boto3(&simulator, &format!("{TOOLS}{script}"));
}

#[test]
fn what_no_model_has_is_refused_and_a_violation() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
assert signed("ec2", {"Action": "MakeVpc", "Version": "2016-11-15"}) == (400, "InvalidAction")
assert signed("sts", {"Action": "GetCallerIdentity", "Version": "2011-06-15", "Colour": "red"}) == (400, "ValidationError")
vpc = {"Action": "CreateVpc", "Version": "2016-11-15", "CidrBlock": "10.0.0.0/16"}
assert signed("ec2", {**vpc, "InstanceTenancy": "shared"}) == (400, "InvalidParameterValue")
assert signed("ec2", {**vpc, "Ipv4NetmaskLength": "many"}) == (400, "InvalidParameterValue")
assert signed("ec2", {**vpc, "TagSpecification.2.ResourceType": "vpc"}) == (400, "InvalidParameterValue")
assert signed("ec2", {"Action": "DeleteVpc", "Version": "2016-11-15"}) == (400, "InvalidParameterValue")
assert signed("ec2", {"Action": "DeleteVpc", "Version": "2013-01-01", "VpcId": "vpc-1"}) == (400, "InvalidParameterValue")
assert signed("ec2", {"Action": "CreateDefaultVpc", "Version": "2016-11-15"})[0] == 501
assert signed("nosuch", {"Action": "A", "Version": "1"})[0] == 501
"#;
    boto3(&simulator, &format!("{TOOLS}{script}"));
    let violations = simulator.take_violations();
    let wanted = [
        "no operation \"MakeVpc\"",
        "no member for \"Colour\"",
        "\"shared\" is none of the model's values",
        "\"many\" is no Integer",
        "the numbers of items have gaps",
        "input.VpcId: it is required",
        "\"2013-01-01\" is not the model's",
        "CreateDefaultVpc: not simulated",
        "nosuch: the service is not simulated",
    ];
    assert_eq!(violations.len(), wanted.len(), "{violations:#?}");
    for (violation, wanted) in violations.iter().zip(wanted) {
        assert!(violation.contains(wanted), "{violation} is not {wanted}");
    }
    assert!(simulator.world().scopes::<textnlp_sim::aws::ec2::Ec2>().is_empty());
}

#[test]
fn faults_are_injected_as_the_rules_say() {
    let simulator =
        Simulator::start(Options { timing: Timing { zero_latency: true, ..Timing::default() }, ..Options::default() });
    let rule = |nth, disruption| simulator.faults().add(Rule::nth("ec2", "CreateVpc", nth, disruption));
    rule(1, Disruption::Throttled);
    rule(2, Disruption::Internal);
    rule(3, Disruption::Unavailable);
    rule(4, Disruption::LostRequest);
    rule(5, Disruption::LostReply);
    rule(6, Disruption::Reset);
    rule(7, Disruption::Refused(Fault::new("InsufficientFreeAddressesInSubnet", "none").status(400)));
    let script = r#"
ec2 = boto3.client("ec2", config=ONCE)
def create():
    return ec2.create_vpc(CidrBlock="10.0.0.0/16")
def lost(kind):
    try:
        create()
    except kind:
        return len(ec2.describe_vpcs()["Vpcs"])
    raise AssertionError("an answer arrived")
refused(503, "RequestLimitExceeded", create)
refused(500, "InternalError", create)
refused(503, "Unavailable", create)
closed = botocore.exceptions.ConnectionClosedError
assert lost(closed) == 0
assert lost(closed) == 1
assert lost(closed) == 1
refused(400, "InsufficientFreeAddressesInSubnet", create)
create()
assert [vpc["State"] for vpc in ec2.describe_vpcs()["Vpcs"]] == ["available"] * 2
"#;
    boto3(&simulator, &format!("{TOOLS}{script}"));
    // A client that retries does not notice.
    simulator.faults().add(Rule::nth("", "", 1, Disruption::Throttled));
    boto3(&simulator, "import boto3; boto3.client('sts').get_caller_identity()");
    let requests = simulator.requests();
    let lost: Vec<bool> = requests.iter().map(|request| request.is_lost).collect();
    assert_eq!(lost.iter().filter(|is_lost| **is_lost).count(), 3, "{requests:#?}");
    assert_eq!(requests.iter().filter(|request| request.operation == "GetCallerIdentity").count(), 2);
}

#[test]
#[should_panic(expected = "the contract was broken 1 times")]
fn violation_fails_the_test() {
    let simulator = Simulator::start(Options::default());
    boto3(
        &simulator,
        "import boto3, botocore\ntry: boto3.client('ec2').create_default_vpc()\nexcept botocore.exceptions.ClientError: pass",
    );
}
