//! Route 53.

use textnlp_sim::aws::route53;
use textnlp_sim::{Options, Scope, Simulator};

use crate::boto3;

#[test]
fn boto3_changes_records_and_waits_for_the_name_servers() {
    let simulator = Simulator::start(Options::default());
    route53::zone(&mut simulator.world(), &Scope::global("123456789012"), "Z1", "example.com", false);
    let script = r#"
import boto3, botocore
dns = boto3.client("route53")
def refused(code, words, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code and words in str(error), error
        return
    raise AssertionError(code)
def record(name, kind, *values, **more):
    values = [{"Value": value} for value in values]
    return {"Name": name, "Type": kind, "TTL": 60, "ResourceRecords": values, **more}
def batch(*changes):
    changes = [{"Action": action, "ResourceRecordSet": one} for action, one in changes]
    return {"HostedZoneId": "Z1", "ChangeBatch": {"Changes": changes}}
change = dns.change_resource_record_sets
one, two = record("A.example.com", "A", "192.0.2.1"), record("a.example.com.", "A", "192.0.2.2")
made = change(**batch(("CREATE", one)))["ChangeInfo"]
assert made["Status"] == "PENDING", made
dns.get_waiter("resource_record_sets_changed").wait(Id=made["Id"], WaiterConfig={"Delay": 0})
refused("InvalidChangeBatch", "but it already exists", change, **batch(("CREATE", two)))
refused("InvalidChangeBatch", "do not match the current values", change, **batch(("DELETE", two)))
refused("InvalidChangeBatch", "was not found", change, **batch(("DELETE", record("b.example.com", "A", "192.0.2.1"))))
refused("InvalidChangeBatch", "conflicts with other records", change, **batch(("CREATE", record("a.example.com", "CNAME", "x.example.net"))))
refused("InvalidChangeBatch", "not permitted in zone", change, **batch(("CREATE", record("a.example.org", "A", "192.0.2.1"))))
refused("NoSuchHostedZone", "Z2", change, **{**batch(("CREATE", one)), "HostedZoneId": "Z2"})
# A batch is applied completely or not at all.
refused("InvalidChangeBatch", "already exists", change, **batch(("CREATE", record("c.example.com", "A", "192.0.2.1")), ("CREATE", one)))
change(**batch(("DELETE", one), ("CREATE", two)))
for n in (1, 2):
    change(**batch(("CREATE", record("*.w.example.com", "CNAME", "x.example.net", SetIdentifier=str(n), Weight=n))))
refused("InvalidChangeBatch", "non-simple", change, **batch(("CREATE", record("*.w.example.com", "CNAME", "x.example.net"))))
pages = dns.get_paginator("list_resource_record_sets").paginate(HostedZoneId="Z1", PaginationConfig={"PageSize": 2})
found = [(one["Name"], one["Type"], one.get("SetIdentifier")) for page in pages for one in page["ResourceRecordSets"]]
wild = "\\052.w.example.com."
assert found == [("example.com.", "NS", None), ("example.com.", "SOA", None), ("a.example.com.", "A", None), (wild, "CNAME", "1"), (wild, "CNAME", "2")], found
assert dns.get_hosted_zone(Id="/hostedzone/Z1")["HostedZone"]["Name"] == "example.com."
"#;
    boto3(&simulator, script);
}

#[test]
fn boto3_creates_tags_changes_and_deletes_health_checks() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3, botocore
dns = boto3.client("route53")
def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return
    raise AssertionError(code)
config = {"Type": "HTTPS", "FullyQualifiedDomainName": "a.example.com", "Port": 443, "ResourcePath": "/health", "RequestInterval": 30, "FailureThreshold": 3}
made = dns.create_health_check(CallerReference="one", HealthCheckConfig=config)["HealthCheck"]
again = dns.create_health_check(CallerReference="one", HealthCheckConfig=config)["HealthCheck"]
assert made["Id"] == again["Id"], again
refused("HealthCheckAlreadyExists", dns.create_health_check, CallerReference="one", HealthCheckConfig={**config, "Port": 8443})
tags = [{"Key": f"k{n}", "Value": "v"} for n in range(10)]
dns.change_tags_for_resource(ResourceType="healthcheck", ResourceId=made["Id"], AddTags=tags)
refused("InvalidInput", dns.change_tags_for_resource, ResourceType="healthcheck", ResourceId=made["Id"], AddTags=[{"Key": "more", "Value": "v"}])
dns.change_tags_for_resource(ResourceType="healthcheck", ResourceId=made["Id"], RemoveTagKeys=["k0"])
sets = dns.list_tags_for_resources(ResourceType="healthcheck", ResourceIds=[made["Id"]])["ResourceTagSets"]
assert len(sets[0]["Tags"]) == 9, sets
changed = dns.update_health_check(HealthCheckId=made["Id"], HealthCheckVersion=1, Port=8443)["HealthCheck"]
assert changed["HealthCheckVersion"] == 2 and changed["HealthCheckConfig"]["Port"] == 8443, changed
refused("HealthCheckVersionMismatch", dns.update_health_check, HealthCheckId=made["Id"], HealthCheckVersion=1, Port=443)
assert [one["Id"] for one in dns.get_paginator("list_health_checks").paginate().build_full_result()["HealthChecks"]] == [made["Id"]]
dns.delete_health_check(HealthCheckId=made["Id"])
refused("NoSuchHealthCheck", dns.get_health_check, HealthCheckId=made["Id"])
refused("HealthCheckAlreadyExists", dns.create_health_check, CallerReference="one", HealthCheckConfig=config)
"#;
    boto3(&simulator, script);
}
