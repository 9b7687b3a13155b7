//! Cloud Monitoring: alert policies, the channels that they notify, uptime checks, and dashboards. No metric has values: no incident is ever
//! opened.

use serde_json::{Value, json};

use super::cloud::Cloud;
use super::kinds::{KIND, Kind, Update, collection, read};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::{Behaviour, Source};

/// The layouts of a dashboard.
const LAYOUTS: [&str; 4] = ["mosaicLayout", "gridLayout", "rowLayout", "columnLayout"];
/// The most conditions of a policy.
const MOST_CONDITIONS: usize = 6;
/// The seconds between the runs of an uptime check, of which the first is the usual one, and the most of its timeout.
const PERIODS: [u64; 4] = [60, 300, 600, 900];
const MOST_TIMEOUT: u64 = 60;
/// The most uptime checks of a project.
const MOST_CHECKS: usize = 100;

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        methods: "monitoring.projects.alertPolicies",
        verbs: &["get", "list", "patch", "delete"],
        collection: ("monitoring", "alertPolicies"),
        items: "alertPolicies",
        update: Update::Mask(&["displayName", "conditions", "notificationChannels", "enabled", "userLabels"]),
        labels: "userLabels",
        check_update: |cloud, _, _, after| check_policy(cloud, after),
        ..KIND
    },
    Kind {
        methods: "monitoring.projects.notificationChannels",
        verbs: &["get", "list", "patch"],
        collection: ("monitoring", "notificationChannels"),
        items: "notificationChannels",
        update: Update::Mask(&["displayName", "labels", "enabled", "userLabels"]),
        labels: "userLabels",
        check_update: |_, _, _, after| check_channel(after),
        ..KIND
    },
    Kind {
        methods: "monitoring.projects.uptimeCheckConfigs",
        verbs: &["get", "list"],
        collection: ("monitoring", "uptimeCheckConfigs"),
        items: "uptimeCheckConfigs",
        labels: "userLabels",
        ..KIND
    },
    Kind {
        methods: "monitoring.projects.dashboards",
        verbs: &["get", "list", "delete"],
        collection: ("monitoring", "dashboards"),
        items: "dashboards",
        ..KIND
    },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("monitoring.projects.alertPolicies.create", create_policy),
    ("monitoring.projects.dashboards.create", create_dashboard),
    ("monitoring.projects.dashboards.patch", replace_dashboard),
    ("monitoring.projects.notificationChannels.create", create_channel),
    ("monitoring.projects.notificationChannels.delete", delete_channel),
    ("monitoring.projects.uptimeCheckConfigs.create", create_uptime),
    ("monitoring.projects.uptimeCheckConfigs.patch", change_uptime),
    ("monitoring.projects.uptimeCheckConfigs.delete", delete_uptime),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule("the service gives policies and channels their names, and two may have the same display name", Source::Model),
    rule("a policy has one to six conditions", Source::Model),
    rule("a condition lasts whole minutes, and its values are of a minute or longer", Source::Model),
    rule(
        "the values of a ratio and of what it is a share of have the same alignment period",
        Source::Documentation("https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.alertPolicies"),
    ),
    rule("policies and channels are enabled unless they say otherwise", Source::Model),
    rule("a filter has to name a type of resource", Source::Report("hashicorp/terraform-provider-google#4165")),
    rule(
        "a policy with a channel that is not there is 404",
        Source::Report("hashicorp/terraform-provider-google#25878"),
    ),
    rule(
        "a channel that a policy uses is deleted only with force, which removes it from the policy",
        Source::Report("hashicorp/terraform-provider-google#10337"),
    ),
    rule(
        "a channel for mails has an address",
        Source::Documentation("https://cloud.google.com/monitoring/alerts/using-channels-api"),
    ),
    rule("a patch of a dashboard replaces it; one with a stale etag is 409 ABORTED", Source::Model),
    rule(
        "an answer with a dashboard has defaults that the request left out, and no zeros",
        Source::Report("GoogleCloudPlatform/magic-modules#18515"),
    ),
    rule("a dashboard has a display name and at most one layout, and its tiles are within its columns", Source::Model),
    rule("an answer with a dashboard names it with the number of the project", Source::Assumed),
    rule(
        "a parallel change of policies and channels is 409, and a new project is 403 at first",
        Source::LeftOut(
            "error_retry_predicates.go of GoogleCloudPlatform/magic-modules: requests are answered one at a time, and projects exist before",
        ),
    ),
    rule("a threshold of a chart has neither a color nor a direction", Source::Model),
    rule(
        "the service gives an uptime check its name, and refuses one in the request",
        Source::Report("pulumi/pulumi-google-native#317"),
    ),
    rule(
        "an uptime check of a host is answered with the label project_id",
        Source::Report("hashicorp/terraform-provider-google#7734"),
    ),
    rule(
        "an uptime check has a name, a timeout of at most a minute, and a period of 1, 5, 10 or 15 minutes",
        Source::Model,
    ),
    rule(
        "a change of an uptime check without a period is 400",
        Source::Report("GoogleCloudPlatform/magic-modules#1129"),
    ),
    rule("the period of an uptime check changes in place", Source::Report("GoogleCloudPlatform/magic-modules#8266")),
    rule("a project has at most 100 uptime checks: 429", Source::Report("2i2c-org/infrastructure#7054")),
    rule("a change of an uptime check without a mask replaces it", Source::Model),
    rule(
        "an uptime check that an alert policy uses is not deleted: 400, which does not say why",
        Source::Report("hashicorp/terraform-provider-google#10176"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "monitoring", what, source }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

/// Gives a new object its name, and keeps it.
fn put(cloud: &mut Cloud, call: &Call<'_>) -> Value {
    let mut body = call.body.clone();
    let name = format!("{}/{}", call.name, cloud.number());
    body["name"] = name.as_str().into();
    body["creationRecord"] = json!({ "mutateTime": cloud.now().to_string(), "mutatedBy": call.user });
    if body["enabled"].is_null() {
        body["enabled"] = true.into();
    }
    cloud.put(&format!("monitoring/{name}"), body.clone());
    body
}

fn check_channel(channel: &Value) -> Result<(), Problem> {
    let address = channel["labels"]["email_address"].as_str().unwrap_or_default();
    match channel["type"] == "email" && !address.contains('@') {
        true => Err(invalid("Field \"notification_channel.labels['email_address']\" is required.")),
        false => Ok(()),
    }
}

fn create_channel(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    errors::check_labels(&call.body["userLabels"])?;
    check_channel(&call.body)?;
    Ok(put(cloud, call))
}

/// The seconds of a duration: `60s`.
fn seconds(duration: &Value) -> u64 {
    duration.as_str().and_then(|text| text.strip_suffix('s')?.parse().ok()).unwrap_or_default()
}

fn check_policy(cloud: &Cloud, policy: &Value) -> Result<(), Problem> {
    let conditions = policy["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.is_empty() || conditions.len() > MOST_CONDITIONS {
        return Err(invalid("Field \"alert_policy.conditions\" had an invalid number of values."));
    }
    for (place, condition) in conditions.iter().enumerate() {
        let threshold = &condition["conditionThreshold"];
        let field = format!("alert_policy.conditions[{place}].condition_threshold");
        let filter = threshold["filter"].as_str().unwrap_or_default();
        if !filter.contains("resource.type") {
            let message = format!(
                "Field {field}.filter had an invalid value of \"{filter}\": must specify a restriction on \"resource.type\" \
                 in the filter; see \"https://cloud.google.com/monitoring/api/resources\" for a list of available resource \
                 types."
            );
            return Err(invalid(message));
        }
        if !seconds(&threshold["duration"]).is_multiple_of(60) {
            return Err(invalid(format!(
                "Field {field}.duration had an invalid value: it must be a multiple of a minute."
            )));
        }
        let periods = |name: &str| -> Vec<u64> {
            let all = threshold[name].as_array().into_iter().flatten();
            all.map(|one| seconds(&one["alignmentPeriod"])).collect()
        };
        let of_values = periods("aggregations");
        if of_values.iter().any(|period| *period < 60) {
            return Err(invalid(format!("Field {field}.aggregations had an invalid value: at least 60 seconds.")));
        }
        if threshold["denominatorFilter"].is_string() && periods("denominatorAggregations") != of_values {
            return Err(invalid(format!(
                "Field {field}.denominator_aggregations had an invalid value: its alignment period must be that of aggregations."
            )));
        }
    }
    let missing = channels(policy).find(|name| cloud.get(&format!("monitoring/{name}")).is_none());
    missing.map_or(Ok(()), |name| Err(Problem::new("NOT_FOUND", format!("Notification channel not found: {name}"))))
}

fn channels(policy: &Value) -> impl Iterator<Item = &str> {
    policy["notificationChannels"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn create_policy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    errors::check_labels(&call.body["userLabels"])?;
    check_policy(cloud, &call.body)?;
    Ok(put(cloud, call))
}

fn delete_channel(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    read(cloud, call)?;
    let mut users = collection(cloud, &format!("monitoring/projects/{}/alertPolicies", call.project));
    users.retain(|key| cloud.get(key).is_some_and(|policy| channels(policy).any(|name| name == call.name)));
    let is_forced = call.parameter("force") == Some("true");
    if let Some(user) = users.first().filter(|_| !is_forced) {
        let user = user.trim_start_matches("monitoring/");
        let message = format!("Could not delete \"{}\" because it is still being referenced by: \"{user}\"", call.name);
        return Err(Problem::new("FAILED_PRECONDITION", message));
    }
    for user in users {
        let policy = cloud.objects.get_mut(&user);
        if let Some(names) = policy.and_then(|policy| policy.body["notificationChannels"].as_array_mut()) {
            names.retain(|name| *name != call.name.as_str());
        }
    }
    cloud.objects.remove(&call.key());
    Ok(json!({}))
}

fn create_uptime(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if !call.body["name"].is_null() {
        return Err(invalid("Cannot specify name in an UptimeCheckConfig sent to Create."));
    }
    if collection(cloud, &format!("monitoring/{}", call.name)).len() >= MOST_CHECKS {
        let message = "Error creating uptime check config: too many configs in project";
        return Err(Problem::new("RESOURCE_EXHAUSTED", message));
    }
    let title = call.body["displayName"].as_str().unwrap_or_default().to_lowercase();
    let title: String = title.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = format!("{}/{title}-{}", call.name, cloud.random.hex(11));
    keep_uptime(cloud, call, &name, call.body.clone())
}

fn change_uptime(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let before = read(cloud, call)?;
    if call.body["period"].is_null() {
        return Err(invalid("Field \"uptime_check_config.period\" is required."));
    }
    let after = match call.parameter("updateMask").filter(|mask| !mask.is_empty()) {
        None => call.body.clone(),
        Some(mask) => {
            let mut after = before;
            for member in mask.split(',').filter_map(|path| path.split('.').next()) {
                after[member] = call.body[member].clone();
            }
            after
        }
    };
    keep_uptime(cloud, call, &call.name, after)
}

/// Keeps an uptime check in the form in which answers have it.
fn keep_uptime(cloud: &mut Cloud, call: &Call<'_>, name: &str, mut body: Value) -> Result<Value, Problem> {
    errors::check_labels(&body["userLabels"])?;
    if body["displayName"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("Field \"uptime_check_config.display_name\" is required."));
    }
    if !(1..=MOST_TIMEOUT).contains(&seconds(&body["timeout"])) {
        return Err(invalid("Field \"uptime_check_config.timeout\" must be between 1 and 60 seconds."));
    }
    if body["period"].is_null() {
        body["period"] = format!("{}s", PERIODS[0]).into();
    }
    if !PERIODS.contains(&seconds(&body["period"])) {
        return Err(invalid("Field \"uptime_check_config.period\" had an invalid value."));
    }
    let resource = &mut body["monitoredResource"];
    if resource["type"] == "uptime_url" && resource["labels"]["host"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("Field \"uptime_check_config.monitored_resource.labels['host']\" is required."));
    }
    resource["labels"]["project_id"] = call.project.as_str().into();
    body["name"] = name.into();
    cloud.put(&format!("monitoring/{name}"), body.clone());
    Ok(body)
}

fn delete_uptime(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    read(cloud, call)?;
    let own = format!("check_id=\"{}\"", call.name.rsplit('/').next().unwrap_or_default());
    let uses = |policy: &Value| {
        let conditions = policy["conditions"].as_array().into_iter().flatten();
        let mut filters = conditions.filter_map(|one| one["conditionThreshold"]["filter"].as_str());
        filters.any(|filter| filter.contains(&own))
    };
    let policies = collection(cloud, &format!("monitoring/projects/{}/alertPolicies", call.project));
    if policies.iter().any(|key| cloud.get(key).is_some_and(uses)) {
        return Err(invalid("Request contains an invalid argument."));
    }
    cloud.objects.remove(&call.key());
    Ok(json!({}))
}

fn create_dashboard(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let name = format!("{}/{}", call.name, cloud.random.uuid());
    keep_dashboard(cloud, call, &name)
}

fn replace_dashboard(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let before = read(cloud, call)?;
    let etag = call.body["etag"].as_str().filter(|etag| !etag.is_empty());
    if etag.is_some_and(|etag| before["etag"] != etag) {
        return Err(Problem::new("ABORTED", "The etag does not match that of the dashboard."));
    }
    keep_dashboard(cloud, call, &call.name)
}

/// Keeps the dashboard of a request in the form in which answers have it.
fn keep_dashboard(cloud: &mut Cloud, call: &Call<'_>, name: &str) -> Result<Value, Problem> {
    let mut body = call.body.clone();
    errors::check_labels(&body["labels"])?;
    if body["displayName"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("Field \"dashboard.display_name\" is required."));
    }
    if LAYOUTS.iter().filter(|layout| !body[**layout].is_null()).count() > 1 {
        return Err(invalid("Invalid value at 'dashboard' (oneof), oneof field 'layout' is already set."));
    }
    let columns = body["mosaicLayout"]["columns"].as_u64().unwrap_or_default();
    for tile in items(&mut body, "/mosaicLayout/tiles") {
        let number = |member: &str| tile[member].as_u64().unwrap_or_default();
        if number("xPos") + number("width") > columns || number("width") == 0 || number("height") == 0 {
            return Err(invalid("Field \"mosaic_layout.tiles\" has a tile that is not within the columns."));
        }
        leave_out_zero(tile, "xPos");
        leave_out_zero(tile, "yPos");
        for set in items(tile, "/widget/xyChart/dataSets") {
            set["targetAxis"] = "Y1".into();
        }
        for line in items(tile, "/widget/xyChart/thresholds") {
            if !line["color"].is_null() || !line["direction"].is_null() {
                return Err(invalid("Color and direction are not allowed in the thresholds of an XyChart."));
            }
            leave_out_zero(line, "value");
        }
    }
    let number = cloud.project(&call.project).map(|project| project.number.as_str()).unwrap_or_default();
    body["name"] = name.replacen(&format!("/{}/", call.project), &format!("/{number}/"), 1).into();
    body["etag"] = cloud.fingerprint().into();
    cloud.put(&format!("monitoring/{name}"), body.clone());
    Ok(body)
}

fn items<'b>(body: &'b mut Value, place: &'static str) -> impl Iterator<Item = &'b mut Value> {
    body.pointer_mut(place).and_then(Value::as_array_mut).into_iter().flatten()
}

fn leave_out_zero(body: &mut Value, member: &str) {
    if body[member].as_f64() == Some(0.0)
        && let Some(members) = body.as_object_mut()
    {
        members.shift_remove(member);
    }
}
