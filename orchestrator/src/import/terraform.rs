//! Imports objects of a Terraform state that the environment wants.
//!
//! An object is matched in one of two ways: a `terraform_data` of `export terraform` names the resource and the
//! provider's id, or a kind's table lists the Terraform type. Either way the record comes from the provider, never from
//! the file.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use textnlp_provider::{CloudId, Lineage, Observed, ResourceId, Wanted, error_chain};

use super::tfstate::{TerraformObject, TerraformState, TerraformStatus};
use super::{ImportRefusal, Proposal, named};
use crate::plan::{Facts, SiteFacts};

/// The Terraform type that `export terraform` writes.
const OURS: &str = "terraform_data";

/// The result of matching a Terraform state.
#[derive(Debug, Default)]
pub struct Matched {
    /// Objects that can be recorded.
    pub proposals: Vec<Proposal>,
    /// Objects that are not imported, in the file's order.
    pub left: Vec<SkippedObject>,
}

/// An object that is not imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedObject {
    /// Its Terraform address.
    pub address: String,
    /// The reason.
    pub because: String,
    /// The hint, if there is something to do.
    pub hint: Option<String>,
}

/// The identity of an object according to the file.
struct Claim {
    resource: ResourceId,
    cloud_id: CloudId,
}

/// Reads every object of a file whose kind is known from the providers.
pub async fn matched(facts: &Facts, file: &TerraformState) -> Matched {
    let mut matched = Matched::default();
    let mut taken: BTreeMap<ResourceId, &str> = BTreeMap::new();
    for object in &file.objects {
        let mut leave = |because: String, hint: Option<String>| {
            matched.left.push(SkippedObject { address: object.address.clone(), because, hint });
        };
        let claim = match claim(facts, object) {
            Ok(claim) => claim,
            Err((because, hint)) => {
                leave(because, hint);
                continue;
            }
        };
        if let Some(other) = taken.get(&claim.resource) {
            leave(format!("`{other}` is `{}` already", claim.resource), None);
            continue;
        }
        match named(facts, &claim.resource, &claim.cloud_id, &matched.proposals).await {
            Ok(proposal) => {
                taken.insert(claim.resource, &object.address);
                matched.proposals.push(proposal);
            }
            Err(refusal) => leave(error_chain(&refusal), advice(&refusal)),
        }
    }
    matched
}

/// The lineage of the exported objects, if they share one.
pub fn lineage(file: &TerraformState) -> Option<Lineage> {
    let of = |object: &TerraformObject| {
        let text = input(object).ok()?.get("lineage")?.as_str()?;
        text.parse::<Lineage>().ok()
    };
    let mut all = file.objects.iter().filter_map(of);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

type SkipReason = (String, Option<String>);

fn claim(facts: &Facts, object: &TerraformObject) -> Result<Claim, SkipReason> {
    let plainly = |because: &str| Err((because.to_owned(), None));
    match object.standing {
        TerraformStatus::Managed => {}
        TerraformStatus::Data => return plainly("Terraform only reads it"),
        TerraformStatus::Tainted => {
            let hint = "let Terraform replace it first: `terraform apply`".to_owned();
            return Err(("its creation failed before it was complete".to_owned(), Some(hint)));
        }
        TerraformStatus::Deposed => {
            let hint = "let Terraform remove it: `terraform apply`".to_owned();
            return Err(("it was replaced and must still be removed".to_owned(), Some(hint)));
        }
    }
    if object.kind == OURS {
        return exported(facts, object);
    }
    by_kind(facts, object)
}

/// The input of an exported object. Terraform stores values of dynamic type beside their type.
fn input(object: &TerraformObject) -> Result<&Value, String> {
    let input = object.attribute("input")?;
    Ok(match (input.get("value"), input.get("type")) {
        (Some(value), Some(_)) => value,
        _ => input,
    })
}

fn exported(facts: &Facts, object: &TerraformObject) -> Result<Claim, SkipReason> {
    let plainly = |because: String| (because, None);
    let input = input(object).map_err(plainly)?;
    let text = |name: &str| input.get(name).and_then(Value::as_str);
    let (Some(resource), Some(id), Some(_)) = (text("resource"), text("id"), text("kind")) else {
        return Err(plainly("`export terraform` did not write it".to_owned()));
    };
    if let Some(lineage) = text("lineage").filter(|lineage| *lineage != facts.lineage.to_string()) {
        return Err(plainly(format!(
            "it belongs to deployment {}, not {}",
            crate::state::cut(lineage, 60),
            facts.lineage
        )));
    }
    let wrong = |what: &str, error: String| (format!("its {what} is not one of this program: {error}"), None);
    Ok(Claim {
        resource: ResourceId::new(resource).map_err(|error| wrong("`resource`", error.to_string()))?,
        cloud_id: CloudId::new(id).map_err(|error| wrong("`id`", error.to_string()))?,
    })
}

/// Matched by the provider's tables: the resource that the object's own marks name, else the one with that name in its
/// spec, else the only one of that kind that is wanted and not recorded.
fn by_kind(facts: &Facts, object: &TerraformObject) -> Result<Claim, SkipReason> {
    let mut attribute = None;
    let mut free = Vec::new();
    for site in facts.sites.values() {
        for kind in site.provider.kinds() {
            let Some((_, id)) = kind.terraform.iter().find(|(name, _)| *name == object.kind) else { continue };
            attribute = Some(*id);
            let wanted = site.wanted.iter().filter(|wanted| wanted.kind.as_str() == kind.name);
            let wanted = wanted.filter(|wanted| is_free(site.holdings.get(&wanted.id)));
            free.extend(wanted.map(|wanted| (site, wanted)));
        }
    }
    let Some(attribute) = attribute else {
        let because = format!("no provider of this environment creates `{}`", crate::state::cut(&object.kind, 80));
        return Err((because, None));
    };
    let id = object.attribute(attribute).map_err(|because| (because, None))?;
    let cloud_id = id.as_str().map(CloudId::new);
    let Some(Ok(cloud_id)) = cloud_id else {
        return Err((format!("its `{attribute}` is not an id"), None));
    };
    let is_marked = |(site, wanted): &&(&SiteFacts, &Wanted)| {
        let mut seen = site.observed.iter().filter(|(id, _)| *id == wanted.id);
        seen.any(|(_, seen)| {
            matches!(seen, Observed::Present(object) if object.cloud_id == cloud_id && object.kind == wanted.kind)
        })
    };
    let is_named = |(_, wanted): &&(&SiteFacts, &Wanted)| {
        wanted.spec.get("name").and_then(Value::as_str) == Some(cloud_id.as_str())
    };
    if let Some((_, wanted)) = free.iter().find(is_marked).or_else(|| free.iter().find(is_named)) {
        return Ok(Claim { resource: wanted.id.clone(), cloud_id });
    }
    let free: Vec<&ResourceId> = free.iter().map(|(_, wanted)| &wanted.id).collect();
    match free.as_slice() {
        [resource] => Ok(Claim { resource: (*resource).clone(), cloud_id }),
        [] => Err(("every resource of its kind in the environment is recorded already".to_owned(), None)),
        several => {
            let names: Vec<String> = several.iter().map(|id| format!("`{id}`")).collect();
            let hint = format!("choose one: state import RESOURCE={cloud_id}");
            Err((format!("it can be any of {}", crate::state::cut(&names.join(", "), 300)), Some(hint)))
        }
    }
}

fn is_free(holding: Option<&crate::state::RecordedObjects>) -> bool {
    holding.is_none_or(|holding| holding.current.is_none())
}

fn advice(refusal: &ImportRefusal) -> Option<String> {
    match refusal {
        ImportRefusal::Foreign { cloud_id, .. } => Some(format!(
            "add `existing: {cloud_id}` to the environment: the object is read and checked, never changed; Terraform keeps managing it"
        )),
        ImportRefusal::Absent { .. } | ImportRefusal::Provider(_) => {
            Some("check that this is its account and region".to_owned())
        }
        ImportRefusal::NotWanted { .. } | ImportRefusal::Recorded { .. } | ImportRefusal::Taken { .. } => None,
    }
}
