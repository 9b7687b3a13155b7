//! Certificate Manager.

use textnlp_sim::aws::route53;
use textnlp_sim::{Options, Scope, Simulator};

use crate::boto3;

#[test]
fn boto3_requests_a_certificate_and_waits_for_its_validation() {
    let simulator = Simulator::start(Options::default());
    route53::zone(&mut simulator.world(), &Scope::global("123456789012"), "Z1", "example.com", false);
    let script = r#"
import boto3
from botocore.exceptions import ClientError
acm, dns = boto3.client("acm"), boto3.client("route53")
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
def ask(name, *others, token="one"):
    return dict(DomainName=name, SubjectAlternativeNames=[name, *others], ValidationMethod="DNS", IdempotencyToken=token)
arn = acm.request_certificate(**ask("a.example.com", "*.a.example.com"))["CertificateArn"]
assert acm.request_certificate(**ask("a.example.com", "*.a.example.com"))["CertificateArn"] == arn
assert code(acm.request_certificate, **ask("b.example.com")) == "InvalidParameterException"
def records(arn):
    for _ in range(1000):
        found = acm.describe_certificate(CertificateArn=arn)["Certificate"]
        assert found["Status"] == "PENDING_VALIDATION", found
        if all("ResourceRecord" in one for one in found["DomainValidationOptions"]):
            return [one["ResourceRecord"] for one in found["DomainValidationOptions"]]
    raise AssertionError("no validation record")
one, two = records(arn)
assert one == two and one["Type"] == "CNAME" and one["Name"].endswith(".a.example.com."), (one, two)
other = acm.request_certificate(**ask("a.example.com", token="two"))["CertificateArn"]
assert other != arn and records(other) == [one]
new = {"Name": one["Name"], "Type": "CNAME", "TTL": 60, "ResourceRecords": [{"Value": one["Value"]}]}
dns.change_resource_record_sets(HostedZoneId="Z1", ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": new}]})
for each in (arn, other):
    acm.get_waiter("certificate_validated").wait(CertificateArn=each, WaiterConfig={"Delay": 0, "MaxAttempts": 1000})
acm.add_tags_to_certificate(CertificateArn=arn, Tags=[{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d"}])
acm.remove_tags_from_certificate(CertificateArn=arn, Tags=[{"Key": "a", "Value": "b"}])
assert acm.list_tags_for_certificate(CertificateArn=arn)["Tags"] == [{"Key": "c", "Value": "d"}]
acm.delete_certificate(CertificateArn=arn)
for call in (acm.delete_certificate, acm.describe_certificate, acm.list_tags_for_certificate):
    assert code(call, CertificateArn=arn) == "ResourceNotFoundException"
"#;
    boto3(&simulator, script);
}
