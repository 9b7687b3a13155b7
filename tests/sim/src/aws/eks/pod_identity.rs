//! Pod identity associations.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{active, bad_token, cluster, in_use, invalid, mismatch, new_tags, not_found, role, set_tags};
use crate::{Call, Fault, World, timestamp};

/// A pod identity association.
#[derive(Clone, Debug)]
pub struct Association {
    /// Its ARN.
    pub arn: String,
    /// The namespace of its pods.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
    /// The ARN of their role.
    pub role: String,
    created: Timestamp,
}

fn association<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Association, Fault> {
    let id = call.text("associationId");
    let found = cluster(world, call, "clusterName")?.associations.get_mut(id);
    found.ok_or_else(|| not_found(format!("No pod identity association found for associationId: {id}")))
}

fn answer(world: &mut World, call: &Call, id: &str) -> Result<Value, Fault> {
    let cluster = cluster(world, call, "clusterName")?;
    let Some(association) = cluster.associations.get(id).cloned() else { return Ok(Value::Null) };
    let mut answer = json!({
        "clusterName": call.text("clusterName"),
        "namespace": association.namespace,
        "serviceAccount": association.service_account,
        "roleArn": association.role,
        "associationArn": association.arn,
        "associationId": id,
        "createdAt": timestamp(association.created),
        "modifiedAt": timestamp(association.created),
    });
    set_tags(world, &association.arn, &mut answer);
    Ok(json!({ "association": answer }))
}

fn check_role(world: &World, call: &Call, arn: &str) -> Result<(), Fault> {
    let actions = ["sts:AssumeRole", "sts:TagSession"];
    match role(world, call, arn, "pods.eks.amazonaws.com", &actions) {
        Some(_) => Ok(()),
        None => Err(invalid("Trust policy of the role in the request is not valid, or the role does not exist")),
    }
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = world.once(call, "clientRequestToken", mismatch(), |world| {
        let (namespace, account) = (call.text("namespace"), call.text("serviceAccount"));
        let cluster = active(world, call, "clusterName")?;
        let of_account = |one: &&Association| one.namespace == namespace && one.service_account == account;
        if let Some(known) = cluster.associations.values().find(of_account) {
            return Err(in_use(format!("Association already exists: {}", known.arn)));
        }
        let arn = call.text("roleArn").to_owned();
        check_role(world, call, &arn)?;
        let tags = new_tags(call)?;
        let id = format!("a-{}", call.random.hex(17));
        let association = Association {
            arn: call.arn(&format!("podidentityassociation/{}/{id}", call.text("clusterName"))),
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            role: arn,
            created: call.now,
        };
        world.tags.set(&association.arn, tags, call.visible());
        active(world, call, "clusterName")?.associations.insert(id.clone(), association);
        Ok(id)
    })?;
    answer(world, call, &id)
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    association(world, call)?;
    answer(world, call, call.text("associationId"))
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (namespace, account) = (call.str("namespace"), call.str("serviceAccount"));
    let name = call.text("clusterName");
    let all = cluster(world, call, "clusterName")?.associations.iter();
    let is_asked = |one: &Association| {
        namespace.is_none_or(|namespace| namespace == one.namespace)
            && account.is_none_or(|account| account == one.service_account)
    };
    let found = all.filter(|(_, one)| is_asked(one)).map(|(id, one)| {
        json!({
            "clusterName": name,
            "namespace": one.namespace,
            "serviceAccount": one.service_account,
            "associationArn": one.arn,
            "associationId": id,
        })
    });
    let found = found.collect();
    call.page("associations", found, bad_token())
}

pub(super) fn update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    active(world, call, "clusterName")?;
    association(world, call)?;
    if let Some(arn) = call.str("roleArn") {
        check_role(world, call, arn)?;
        association(world, call)?.role = arn.to_owned();
    }
    answer(world, call, call.text("associationId"))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    active(world, call, "clusterName")?;
    let arn = association(world, call)?.arn.clone();
    let answer = answer(world, call, call.text("associationId"))?;
    cluster(world, call, "clusterName")?.associations.remove(call.text("associationId"));
    world.tags.forget(&arn);
    Ok(answer)
}
