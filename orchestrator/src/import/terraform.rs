//! Objects of a Terraform state, found among those that the environment wants.
//!
//! Two ways lead to one: `terraform_data` as `export terraform` writes it names our resource and the provider's id, and a kind's table says
//! which Terraform types make objects of it. Either way the provider is asked, and what it shows is what is recorded, never the file's word.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use textnlp_provider::{CloudId, Lineage, ResourceId, told};

use super::tfstate::{TerraformObject, TerraformStanding, TerraformState};
use super::{Proposal, Refusal, named};
use crate::plan::Facts;

/// What `export terraform` makes of a record.
const OURS: &str = "terraform_data";

/// What a Terraform state comes to.
#[derive(Debug, Default)]
pub struct Matched {
    /// What could be taken into the record.
    pub proposals: Vec<Proposal>,
    /// What is left where it is, in the file's order.
    pub left: Vec<Left>,
}

/// An object that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its address in Terraform.
    pub address: String,
    /// Why.
    pub because: String,
    /// What can be done about it, if anything should.
    pub hint: Option<String>,
}

/// What an object of a file says of itself.
struct Claim {
    resource: ResourceId,
    cloud_id: CloudId,
}

/// Asks the providers for every object of a file that one of our kinds knows.
pub async fn matched(facts: &Facts, file: &TerraformState) -> Matched {
    let mut matched = Matched::default();
    let mut taken: BTreeMap<ResourceId, &str> = BTreeMap::new();
    for object in &file.objects {
        let mut leave = |because: String, hint: Option<String>| {
            matched.left.push(Left { address: object.address.clone(), because, hint });
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
            Err(refusal) => leave(told(&refusal), advice(&refusal)),
        }
    }
    matched
}

/// The deployment that every exported object of a file is of, if it is one.
pub fn lineage(file: &TerraformState) -> Option<Lineage> {
    let of = |object: &TerraformObject| {
        let text = input(object).ok()?.get("lineage")?.as_str()?;
        text.parse::<Lineage>().ok()
    };
    let mut all = file.objects.iter().filter_map(of);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

type Because = (String, Option<String>);

fn claim(facts: &Facts, object: &TerraformObject) -> Result<Claim, Because> {
    let plainly = |because: &str| Err((because.to_owned(), None));
    match object.standing {
        TerraformStanding::Managed => {}
        TerraformStanding::Data => return plainly("Terraform only reads it"),
        TerraformStanding::Tainted => {
            let hint = "let Terraform replace it first: `terraform apply`".to_owned();
            return Err(("its creation went wrong half-way".to_owned(), Some(hint)));
        }
        TerraformStanding::Deposed => {
            let hint = "let Terraform remove it: `terraform apply`".to_owned();
            return Err(("it was replaced, and is still to be removed".to_owned(), Some(hint)));
        }
    }
    if object.kind == OURS {
        return exported(facts, object);
    }
    by_kind(facts, object)
}

/// The input of an exported object. Terraform keeps values whose type is open beside their type.
fn input(object: &TerraformObject) -> Result<&Value, String> {
    let input = object.attribute("input")?;
    Ok(match (input.get("value"), input.get("type")) {
        (Some(value), Some(_)) => value,
        _ => input,
    })
}

fn exported(facts: &Facts, object: &TerraformObject) -> Result<Claim, Because> {
    let plainly = |because: String| (because, None);
    let input = input(object).map_err(plainly)?;
    let text = |name: &str| input.get(name).and_then(Value::as_str);
    let (Some(resource), Some(id), Some(_)) = (text("resource"), text("id"), text("kind")) else {
        return Err(plainly("`export terraform` did not write it".to_owned()));
    };
    if let Some(lineage) = text("lineage").filter(|lineage| *lineage != facts.lineage.to_string()) {
        return Err(plainly(format!(
            "it is of deployment {}, not of {}",
            crate::state::cut(lineage, 60),
            facts.lineage
        )));
    }
    let wrong = |what: &str, error: String| (format!("its {what} is none of ours: {error}"), None);
    Ok(Claim {
        resource: ResourceId::new(resource).map_err(|error| wrong("`resource`", error.to_string()))?,
        cloud_id: CloudId::new(id).map_err(|error| wrong("`id`", error.to_string()))?,
    })
}

/// By the tables of the providers: the one resource of that kind that the environment wants and that is not recorded.
fn by_kind(facts: &Facts, object: &TerraformObject) -> Result<Claim, Because> {
    let mut attribute = None;
    let mut free = Vec::new();
    for site in facts.sites.values() {
        for kind in site.provider.kinds() {
            let Some((_, id)) = kind.terraform.iter().find(|(name, _)| *name == object.kind) else { continue };
            attribute = Some(*id);
            let wanted = site.wanted.iter().filter(|wanted| wanted.kind.as_str() == kind.name);
            free.extend(wanted.filter(|wanted| is_free(site.holdings.get(&wanted.id))).map(|wanted| wanted.id.clone()));
        }
    }
    let Some(attribute) = attribute else {
        let because = format!("no provider of this environment makes `{}`", crate::state::cut(&object.kind, 80));
        return Err((because, None));
    };
    let id = object.attribute(attribute).map_err(|because| (because, None))?;
    let cloud_id = id.as_str().map(CloudId::new);
    let Some(Ok(cloud_id)) = cloud_id else {
        return Err((format!("its `{attribute}` is no id"), None));
    };
    match free.as_slice() {
        [resource] => Ok(Claim { resource: resource.clone(), cloud_id }),
        [] => Err(("the environment wants none of its kind that is not recorded".to_owned(), None)),
        several => {
            let names: Vec<String> = several.iter().map(|id| format!("`{id}`")).collect();
            let hint = format!("say which: state import RESOURCE={cloud_id}");
            Err((format!("it may be any of {}", crate::state::cut(&names.join(", "), 300)), Some(hint)))
        }
    }
}

fn is_free(holding: Option<&crate::state::Holding>) -> bool {
    holding.is_none_or(|holding| holding.current.is_none())
}

fn advice(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::Foreign { cloud_id, .. } => Some(format!(
            "name it `existing: {cloud_id}` in the environment: read and checked, never changed; Terraform keeps it"
        )),
        Refusal::Absent { .. } | Refusal::Provider(_) => {
            Some("look whether this is the account and region that it is in".to_owned())
        }
        Refusal::NotWanted { .. } | Refusal::Recorded { .. } | Refusal::Taken { .. } => None,
    }
}
