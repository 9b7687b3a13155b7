//! Topics, alarms, dashboards, budgets and flow logs, driven by boto3.

use std::time::Duration;

use jiff::Span;
use jiff::tz::TimeZone;
use textnlp_sim::aws::costexplorer::charge;
use textnlp_sim::{Options, Simulator, Timing};

use crate::boto3;

#[test]
fn sns_topics_and_subscriptions() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3, json
from botocore.exceptions import ClientError
sns = boto3.client("sns")
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
arn = sns.create_topic(Name="mine", Tags=[{"Key": "a", "Value": "b"}])["TopicArn"]
assert sns.create_topic(Name="mine", Tags=[{"Key": "a", "Value": "b"}])["TopicArn"] == arn
assert code(sns.create_topic, Name="mine", Tags=[]) == "InvalidParameter"
assert code(sns.create_topic, Name="a b") == "InvalidParameter"
def policy(action):
    statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": action, "Resource": arn}
    return json.dumps({"Statement": [statement]})
assert code(sns.set_topic_attributes, TopicArn=arn, AttributeName="Policy", AttributeValue=policy("sns:*")) == "InvalidParameter"
sns.set_topic_attributes(TopicArn=arn, AttributeName="Policy", AttributeValue=policy("sns:Publish"))
assert sns.subscribe(TopicArn=arn, Protocol="email", Endpoint="a@b.c")["SubscriptionArn"] == "pending confirmation"
[one] = sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
assert one["SubscriptionArn"] == "PendingConfirmation"
assert code(sns.unsubscribe, SubscriptionArn="PendingConfirmation") == "InvalidParameter"
assert sns.get_topic_attributes(TopicArn=arn)["Attributes"]["SubscriptionsPending"] == "1"
sns.delete_topic(TopicArn=arn)
sns.delete_topic(TopicArn=arn)
assert code(sns.get_topic_attributes, TopicArn=arn) == "NotFound"
assert code(sns.list_tags_for_resource, ResourceArn=arn) == "ResourceNotFound"
"#;
    boto3(&simulator, script);
}

#[test]
fn cloudwatch_alarms_and_dashboards() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3, json
from botocore.exceptions import ClientError
watch = boto3.client("cloudwatch")
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
alarm = dict(AlarmName="mine", Namespace="AWS/RDS", MetricName="CPUUtilization", Statistic="Average", Period=60,
             EvaluationPeriods=5, Threshold=90, ComparisonOperator="GreaterThanThreshold")
watch.put_metric_alarm(**alarm, Tags=[{"Key": "a", "Value": "b"}])
watch.put_metric_alarm(**{**alarm, "Threshold": 80}, Tags=[{"Key": "a", "Value": "c"}])
[seen] = watch.describe_alarms(AlarmNames=["mine"])["MetricAlarms"]
assert seen["Threshold"] == 80 and seen["StateValue"] == "INSUFFICIENT_DATA"
arn = seen["AlarmArn"]
assert watch.list_tags_for_resource(ResourceARN=arn)["Tags"] == [{"Key": "a", "Value": "b"}]
for wrong in [{"Period": 61}, {"EvaluationPeriods": 2000}, {"DatapointsToAlarm": 6}, {"TreatMissingData": "never"}]:
    assert code(watch.put_metric_alarm, **{**alarm, **wrong}) == "ValidationError", wrong
tagged = boto3.client("resourcegroupstaggingapi").get_resources(ResourceTypeFilters=["cloudwatch:alarm"])
assert [one["ResourceARN"] for one in tagged["ResourceTagMappingList"]] == [arn]
assert code(watch.delete_alarms, AlarmNames=["mine", "other"]) == "ResourceNotFound"
watch.delete_alarms(AlarmNames=["mine"])
body = json.dumps({"widgets": []})
watch.put_dashboard(DashboardName="mine", DashboardBody=body)
assert watch.get_dashboard(DashboardName="mine")["DashboardBody"] == body
assert [one["DashboardName"] for one in watch.list_dashboards(DashboardNamePrefix="mi")["DashboardEntries"]] == ["mine"]
assert code(watch.put_dashboard, DashboardName="mine", DashboardBody="{") == "InvalidParameterInput"
watch.delete_dashboards(DashboardNames=["mine"])
assert code(watch.get_dashboard, DashboardName="mine") == "ResourceNotFound"
"#;
    boto3(&simulator, script);
}

#[test]
fn budgets_and_their_notifications() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3
budgets = boto3.client("budgets", region_name="us-east-1")
account = "123456789012"
budget = {"BudgetName": "mine", "BudgetLimit": {"Amount": "500", "Unit": "USD"}, "TimeUnit": "MONTHLY", "BudgetType": "COST"}
notification = {"NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN", "Threshold": 80.0, "ThresholdType": "PERCENTAGE"}
mail = {"SubscriptionType": "EMAIL", "Address": "a@b.c"}
budgets.create_budget(AccountId=account, Budget=budget,
                      NotificationsWithSubscribers=[{"Notification": notification, "Subscribers": [mail]}])
seen = budgets.describe_budget(AccountId=account, BudgetName="mine")["Budget"]
assert seen["BudgetLimit"]["Amount"] == "500.0" and seen["TimePeriod"]["Start"].day == 1, seen
place = dict(AccountId=account, BudgetName="mine")
for call, error, arguments in [
    (budgets.create_budget, budgets.exceptions.DuplicateRecordException, dict(AccountId=account, Budget=budget)),
    (budgets.create_notification, budgets.exceptions.DuplicateRecordException, dict(**place, Notification=notification, Subscribers=[mail])),
    (budgets.create_notification, budgets.exceptions.CreationLimitExceededException,
     dict(**place, Notification={**notification, "Threshold": 90.0}, Subscribers=[mail] * 11)),
    (budgets.describe_budget, budgets.exceptions.AccessDeniedException, dict(AccountId="210987654321", BudgetName="mine")),
]:
    try:
        call(**arguments)
        assert False, arguments
    except error:
        pass
assert budgets.describe_subscribers_for_notification(**place, Notification=notification)["Subscribers"] == [mail]
budgets.delete_budget(**place)
try:
    budgets.describe_budget(**place)
    assert False
except budgets.exceptions.NotFoundException:
    pass
"#;
    boto3(&simulator, script);
}

#[test]
fn costs_by_service_need_an_activated_tag() {
    let timing = Timing { page: 1, ..Timing::default() };
    let simulator = Simulator::start(Options { timing, ..Options::default() });
    let (arn, other) = ("arn:aws:s3:::mine", "arn:aws:s3:::theirs");
    let start = {
        let mut world = simulator.world();
        let now = world.now();
        world.tags.set(arn, [("team".to_owned(), "text".to_owned())], now);
        world.tags.set(other, [("team".to_owned(), "other".to_owned())], now);
        for (arn, service, micros) in
            [(arn, "Amazon S3", 1_250_000), (other, "Amazon S3", 9_000_000), (arn, "AWS KMS", -500)]
        {
            charge(&mut world, "123456789012", arn, service, micros);
        }
        now.to_zoned(TimeZone::UTC).date().first_of_month()
    };
    let end = start.saturating_add(Span::new().months(1));
    let query = format!(
        r#"
import boto3
ce = boto3.client("ce", region_name="us-east-1")
query = dict(TimePeriod={{"Start": "{start}", "End": "{end}"}}, Granularity="MONTHLY", Metrics=["UnblendedCost"],
             GroupBy=[{{"Type": "DIMENSION", "Key": "SERVICE"}}], Filter={{"Tags": {{"Key": "team", "Values": ["text"]}}}})
"#
    );
    let inactive = r#"
assert ce.get_cost_and_usage(**query)["ResultsByTime"][0]["Groups"] == []
ce.update_cost_allocation_tags_status(CostAllocationTagsStatus=[{"TagKey": "team", "Status": "Active"}])
assert ce.get_cost_and_usage(**query)["ResultsByTime"][0]["Groups"] == [], "it takes a day"
"#;
    boto3(&simulator, &format!("{query}{inactive}"));
    simulator.advance(Duration::from_secs(25 * 3_600));
    let active = r#"
first = ce.get_cost_and_usage(**query)
second = ce.get_cost_and_usage(**query, NextPageToken=first["NextPageToken"])
groups = [group for page in (first, second) for group in page["ResultsByTime"][0]["Groups"]]
amounts = {group["Keys"][0]: group["Metrics"]["UnblendedCost"] for group in groups}
assert amounts == {"AWS KMS": {"Amount": "-0.0005000000", "Unit": "USD"}, "Amazon S3": {"Amount": "1.2500000000", "Unit": "USD"}}, amounts
assert "NextPageToken" not in second
for wrong, error in [(dict(NextPageToken="x"), "InvalidNextTokenException"), (dict(TimePeriod={"Start": "2026-02-01", "End": "2026-02-01"}), "ValidationException")]:
    try:
        ce.get_cost_and_usage(**{**query, **wrong})
        assert False, wrong
    except ce.exceptions.ClientError as e:
        assert e.response["Error"]["Code"] == error, e
"#;
    boto3(&simulator, &format!("{query}{active}"));
}
