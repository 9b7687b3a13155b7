//! Flow logs of VPCs. No entries are written.

use serde_json::{Value, json};

use super::items::{self, Collection, find, insert, mismatch, new_tags, state};
use super::network;
use crate::{Call, Fault, Stages, World, timestamp};

/// Flow logs.
pub const FLOW_LOG: Collection = Collection {
    name: "vpc-flow-log",
    prefix: "fl",
    id: "FlowLogId",
    ids: "FlowLogIds",
    list: "FlowLogs",
    filter: "Filter",
    state: "FlowLogStatus",
    tags: "Tags",
    unknown: "InvalidFlowLogId.NotFound",
    filters: &[
        ("flow-log-id", "FlowLogId"),
        ("log-group-name", "LogGroupName"),
        ("resource-id", "ResourceId"),
        ("traffic-type", "TrafficType"),
    ],
};

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = new_tags(call, &FLOW_LOG)?;
    let [vpc] = call.texts("ResourceIds")[..] else {
        return Err(Fault::new("InvalidParameterValue", "One VPC at a time is simulated"));
    };
    find(world, call, &network::VPC, vpc)?;
    let interval = call.int("MaxAggregationInterval").unwrap_or(600);
    if ![60, 600].contains(&interval) {
        return Err(Fault::new("InvalidParameterValue", "MaxAggregationInterval must be 60 or 600"));
    }
    let (Some(group), Some(role)) = (call.str("LogGroupName"), call.str("DeliverLogsPermissionArn")) else {
        return Err(Fault::new("InvalidParameter", "LogGroupName and DeliverLogsPermissionArn are required"));
    };
    let value = json!({
        "CreationTime": timestamp(call.now),
        "ResourceId": vpc,
        "TrafficType": call.text("TrafficType"),
        "LogDestinationType": "cloud-watch-logs",
        "LogGroupName": group,
        "DeliverLogsPermissionArn": role,
        "MaxAggregationInterval": interval,
        "LogFormat": "${version} ${account-id} ${interface-id} ${srcaddr} ${dstaddr} ${srcport} ${dstport} ${protocol} \
                      ${packets} ${bytes} ${start} ${end} ${action} ${log-status}",
    });
    let id = world.once(call, "ClientToken", mismatch(), |world| {
        let is_same = |one: &items::Item| {
            ["ResourceId", "TrafficType", "LogGroupName"].iter().all(|member| one.value[*member] == value[*member])
        };
        if state(world, call).all(&FLOW_LOG).any(|(_, one)| is_same(one)) {
            return Ok(String::new());
        }
        Ok(insert(world, call, &FLOW_LOG, value.clone(), Stages::settled("ACTIVE"), tags))
    })?;
    if id.is_empty() {
        let message = "There is an existing Flow Log with the same configuration and log destination.";
        let error = json!({ "Code": "FlowLogAlreadyExists", "Message": message });
        return Ok(json!({ "FlowLogIds": [], "Unsuccessful": [{ "ResourceId": vpc, "Error": error }] }));
    }
    Ok(json!({ "FlowLogIds": [id], "Unsuccessful": [] }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let mut unsuccessful = Vec::new();
    for id in call.texts("FlowLogIds") {
        match find(world, call, &FLOW_LOG, id) {
            Ok(_) => items::remove(world, &call.scope(), id),
            Err(fault) => {
                let error = json!({ "Code": fault.code, "Message": fault.message });
                unsuccessful.push(json!({ "ResourceId": id, "Error": error }));
            }
        }
    }
    Ok(json!({ "Unsuccessful": unsuccessful }))
}
