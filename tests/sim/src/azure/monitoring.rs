//! Azure Monitor: action groups, metric alerts, workbooks and autoscaling. No metric has values: no alert ever fires, and nothing is
//! scaled.

use serde_json::Value;

use super::cloud::{Cloud, text};
use super::document::Model;
use super::kinds::{self, Answer, Call, KIND, Kind, Special};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

/// The most characters of an action group's short name.
const SHORT_NAME: usize = 12;
/// Where the form of the criteria is.
const FORM: &str = "/properties/criteria/odata.type";
/// The windows of alerts.
const WINDOWS: [&str; 8] = ["PT1M", "PT5M", "PT15M", "PT30M", "PT1H", "PT6H", "PT12H", "P1D"];

/// The version and the model of workbooks.
const WORKBOOKS: &str = "2023-06-01";
const WORKBOOK: Model = "applicationinsights.v2023_06_01.models Workbook";
/// The tag that has the title of a workbook too.
const TITLE: &str = "hidden-title";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: "Microsoft.Insights/actionGroups",
        version: "2023-01-01",
        models: [
            "monitor.models ActionGroupResource",
            "monitor.models ActionGroupPatchBody",
            "monitor.models ActionGroupResource",
            "monitor.models ActionGroupList",
        ],
        has_state: false,
        is_name,
        accept: accept_group,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Insights/metricAlerts",
        version: "2018-03-01",
        models: [
            "monitor.models MetricAlertResource",
            "monitor.models MetricAlertResourcePatch",
            "monitor.models MetricAlertResource",
            "monitor.models MetricAlertResourceCollection",
        ],
        accepted: 200,
        has_state: false,
        is_name,
        accept: accept_alert,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Insights/workbooks",
        version: WORKBOOKS,
        models: [
            WORKBOOK,
            "applicationinsights.v2023_06_01.models WorkbookUpdateParameters",
            WORKBOOK,
            "applicationinsights.v2023_06_01.models WorkbooksListResult",
        ],
        has_state: false,
        is_name: is_guid,
        accept: accept_workbook,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Insights/autoscaleSettings",
        version: "2022-10-01",
        models: [
            "monitor.models AutoscaleSettingResource",
            "monitor.models AutoscaleSettingResourcePatch",
            "monitor.models AutoscaleSettingResource",
            "monitor.models AutoscaleSettingResourceCollection",
        ],
        has_state: false,
        tags: 15,
        is_name,
        references: &["/properties/targetResourceUri"],
        defaults: &[("/properties/enabled", "false")],
        accept: accept_autoscale,
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[Special {
    method: "GET",
    path: "Microsoft.Insights/workbooks",
    version: WORKBOOKS,
    request: "",
    answer: WORKBOOK,
    handler: read_workbook,
}];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a short name of more than 12 characters is 400 GroupShortNameIsTooLong",
        Source::Report("Azure/azure-rest-api-specs#2840"),
    ),
    rule(
        "receivers of an action group have names of their own",
        Source::Documentation("https://learn.microsoft.com/rest/api/monitor/action-groups/create-or-update"),
    ),
    rule(
        "a metric without a value is 400 unless its validation is skipped",
        Source::Report("hashicorp/terraform-provider-azurerm#14743"),
    ),
    rule(
        "the form of the criteria of an alert never changes: 400",
        Source::Report("hashicorp/terraform-provider-azurerm#7910"),
    ),
    rule(
        "a window is one of eight",
        Source::Documentation("https://learn.microsoft.com/azure/azure-monitor/alerts/alerts-create-metric-alert-rule"),
    ),
    rule(
        "names have 1 to 260 characters",
        Source::Documentation(
            "https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftinsights",
        ),
    ),
    rule(
        "the name of a workbook is a GUID",
        Source::Documentation("https://learn.microsoft.com/azure/azure-monitor/visualize/workbooks-automate"),
    ),
    rule(
        "a read of a workbook has its content only with canFetchContent",
        Source::Documentation("https://learn.microsoft.com/rest/api/application-insights/workbooks/get"),
    ),
    rule("the content of a workbook is the text of a JSON object", Source::Model),
    rule(
        "the tag hidden-title has the title of a workbook too, and decides over it",
        Source::Report("hashicorp/terraform-provider-azurerm#22113"),
    ),
    rule(
        "an autoscaling setting is not enabled unless it says so, and is of a resource that is there",
        Source::Documentation("https://learn.microsoft.com/rest/api/monitor/autoscale-settings/create-or-update"),
    ),
    rule(
        "the first number of a profile is not below the lower bound nor above the upper one: 400",
        Source::Documentation(
            "https://learn.microsoft.com/azure/azure-monitor/autoscale/autoscale-understanding-settings",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Insights", what, source }
}

fn is_name(name: &str) -> bool {
    (1..=260).contains(&name.len())
        && !name.contains(['*', '#', '&', '+', ':', '<', '>', '?', '@', '%', '{', '}', '\\', '/'])
}

fn is_guid(name: &str) -> bool {
    let parts: Vec<usize> = name.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

fn read_workbook(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let mut answer = kinds::read(cloud, call)?;
    if call.parameter("canFetchContent") != Some("true")
        && let Some(properties) = answer.body["properties"].as_object_mut()
    {
        properties.shift_remove("serializedData");
    }
    Ok(answer)
}

fn accept_workbook(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let Ok(Value::Object(_)) = serde_json::from_str(text(body, "/properties/serializedData")) else {
        return Err(bad("BadRequest", "The serializedData of a workbook must be valid JSON."));
    };
    let title = body["tags"][TITLE].clone();
    match title.is_null() {
        true => body["tags"][TITLE] = body["properties"]["displayName"].clone(),
        false => body["properties"]["displayName"] = title,
    }
    Ok(())
}

fn accept_autoscale(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let profiles = body.pointer("/properties/profiles").and_then(Value::as_array);
    let is_right = |profile: &Value| {
        let number = |name: &str| profile["capacity"][name].as_str().and_then(|text| text.parse::<u32>().ok());
        let numbers = number("minimum").zip(number("default")).zip(number("maximum"));
        numbers.is_some_and(|((least, first), most)| least <= first && first <= most)
    };
    match profiles.is_some_and(|all| !all.is_empty() && all.iter().all(is_right)) {
        true => Ok(()),
        false => Err(bad("BadRequest", "The capacity of a profile has to have a default between its bounds.")),
    }
}

fn accept_group(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let short = text(body, "/properties/groupShortName");
    if short.chars().count() > SHORT_NAME {
        let message = format!(
            "The action group short name '{short}' is too long. Please specify a short name with '12' or less characters"
        );
        return Err(bad("GroupShortNameIsTooLong", message));
    }
    let receivers = body.pointer("/properties/emailReceivers").and_then(Value::as_array);
    let mut names: Vec<&str> = receivers.into_iter().flatten().map(|one| text(one, "/name")).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    match names.len() == count {
        true => Ok(()),
        false => Err(bad("BadRequest", "The names of the receivers of an action group must be unique.")),
    }
}

fn accept_alert(_: &mut Cloud, _: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let form = text(body, FORM);
    if let Some(before) = before.map(|before| text(before, FORM)).filter(|before| *before != form) {
        let message =
            format!("Alert update failed. Updating from odata.type {before} to odata.type {form} is not supported.");
        return Err(bad("BadRequest", message));
    }
    if !WINDOWS.contains(&text(body, "/properties/windowSize")) {
        return Err(bad("BadRequest", "The window size is not supported."));
    }
    let criteria = body.pointer("/properties/criteria/allOf").and_then(Value::as_array);
    let unknown = criteria.into_iter().flatten().find(|one| one["skipMetricValidation"] != true);
    unknown.map_or(Ok(()), |one| {
        let metric = text(one, "/metricName");
        Err(bad("BadRequest", format!("Couldn't find a metric named {metric}. Make sure the name is correct.")))
    })
}
