//! Images of machines: those that EKS has for its nodes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::aws::eks::image_names;
use crate::{Call, Fault, World, passes};

/// The account that has the images of EKS, and its alias.
const OWNER: [&str; 2] = ["602401143452", "amazon"];

pub(super) fn describe(_world: &mut World, call: &Call) -> Result<Value, Fault> {
    let owners = call.texts("Owners");
    let is_of_owner = owners.is_empty() || owners.iter().any(|owner| OWNER.contains(owner));
    let mut found = Vec::new();
    for (number, name) in image_names(call.now).into_iter().enumerate().filter(|_| is_of_owner) {
        let architecture = if name.contains("arm64") { "arm64" } else { "x86_64" };
        let field = |field: &str| match field {
            "architecture" => Some(vec![architecture.to_owned()]),
            "name" => Some(vec![name.clone()]),
            "owner-alias" => Some(vec![OWNER[1].to_owned()]),
            "owner-id" => Some(vec![OWNER[0].to_owned()]),
            "state" => Some(vec!["available".to_owned()]),
            _ => None,
        };
        if passes(call.list("Filters"), &BTreeMap::new(), field)? {
            found.push(json!({
                "Architecture": architecture,
                "ImageId": format!("ami-0{number:016x}"),
                "ImageOwnerAlias": OWNER[1],
                "Name": name,
                "OwnerId": OWNER[0],
                "Public": true,
                "State": "available",
            }));
        }
    }
    call.page("Images", found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}
