//! Disks that a cluster's storage driver created.

use serde_json::{Value, json};

use super::items::{self, Collection, find};
use crate::aws::eks::Eks;
use crate::{Call, Fault, Scope, Stages, World};

/// Disks.
pub const VOLUME: Collection = Collection {
    name: "volume",
    prefix: "vol",
    id: "VolumeId",
    ids: "VolumeIds",
    list: "Volumes",
    filter: "Filters",
    state: "State",
    tags: "Tags",
    unknown: "InvalidVolume.NotFound",
    filters: &[("size", "Size"), ("status", "State"), ("volume-id", "VolumeId")],
};

/// Adds a disk that a cluster's storage driver created, and that nothing uses any more.
pub fn leave_behind(world: &mut World, scope: &Scope, id: &str, cluster: &str) {
    let value = json!({ "Size": 10, "VolumeType": "gp3", "Encrypted": true });
    let tags = vec![(format!("kubernetes.io/cluster/{cluster}"), "owned".to_owned())];
    let visible = world.now();
    items::place(world, scope, (id, &VOLUME), value, Stages::settled("available"), (tags, visible));
}

pub(super) fn default_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let is_own = world.find::<Eks>(&call.scope()).is_some_and(|eks| eks.lacks_disk_grant);
    let own = || format!("arn:aws:kms:{}:{}:key/00000000-0000-4000-8000-0000000000eb", call.region, call.account);
    Ok(json!({ "KmsKeyId": if is_own { own() } else { "alias/aws/ebs".to_owned() } }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("VolumeId");
    if find(world, call, &VOLUME, id)?.state.at(call.now) == "in-use" {
        return Err(Fault::new("VolumeInUse", format!("Volume {id} is currently attached")));
    }
    items::remove(world, &call.scope(), id);
    Ok(json!({}))
}
