//! Wanted resources without a record, as objects that the tool creates.
//!
//! Each becomes the record that its creation would leave, with placeholders for what only the creation shows. References to them are
//! then found as those to recorded outputs are. A resource that needs an output of an object that no declaration has is left out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sha2::{Digest, Sha256};
use textnlp_provider::{
    EnvironmentName, Lineage, Observed, Outputs, Ownership, PlannedObject, Recorded, ResourceId, SecretRef, SiteName,
    SpecError, Tool, Wanted,
};
use uuid::Uuid;

use super::{Declared, EXTERNAL, INSIDE, Knowledge, NO_FORM, needed, records};
use crate::plan::{Facts, SiteFacts, sorted_needs};
use crate::state::SiteLocation;

/// The lineage of an environment that has none: the same for the same environment in the same accounts, so that a second export has the
/// names and tags of the first one.
pub fn proposed_lineage(environment: &EnvironmentName, places: &BTreeMap<SiteName, SiteLocation>) -> Lineage {
    let places: Vec<_> =
        places.iter().map(|(site, place)| json!([site, place.provider, place.account, place.region])).collect();
    let digest = Sha256::digest(json!(["export", environment, places]).to_string().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    let id: Uuid = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    Lineage(id)
}

/// What the declarations before a resource tell.
struct Progress<'f> {
    facts: &'f Facts,
    tool: Tool,
    /// The outputs of recorded, external and planned objects.
    known: BTreeMap<ResourceId, Outputs>,
    /// The objects of each site.
    beside: BTreeMap<SiteName, Vec<Recorded>>,
}

/// Adds the wanted resources that are not recorded, each after what it needs.
pub(super) fn add(declared: &mut Declared<'_>, facts: &Facts, tool: Tool) {
    let mut progress = Progress { facts, tool, known: BTreeMap::new(), beside: BTreeMap::new() };
    let mut waiting = Vec::new();
    for (name, site) in &facts.sites {
        let all = records(site);
        let recorded: BTreeSet<&ResourceId> = all.iter().map(|one| &one.id).collect();
        waiting.extend(site.wanted.iter().filter(|one| !recorded.contains(&one.id)).map(|one| (site, one)));
        progress.known.extend(all.iter().map(|one| (one.id.clone(), one.outputs.clone())));
        progress.beside.insert(name.clone(), all);
    }
    while !waiting.is_empty() {
        let ids: BTreeSet<ResourceId> = waiting.iter().map(|(_, one)| one.id.clone()).collect();
        let is_ready = |(_, one): &(&SiteFacts, &Wanted)| {
            let mut hosts = one.via.iter().map(|host| &host.0);
            !hosts.any(|host| ids.contains(host)) && !sorted_needs(one).iter().any(|need| ids.contains(&need.on))
        };
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_ready);
        if ready.is_empty() {
            rest.iter().for_each(|(_, one)| declared.leave(&one.id, "what it needs depends on it"));
            return;
        }
        for (site, one) in ready {
            if let Err(because) = progress.add(declared, site, one) {
                declared.leave(&one.id, because);
            }
        }
        waiting = rest;
    }
}

impl Progress<'_> {
    fn add(&mut self, declared: &mut Declared<'_>, site: &SiteFacts, one: &Wanted) -> Result<(), String> {
        if let Ownership::External(id) = &one.ownership {
            let seen = site.observed.iter().find_map(|(resource, seen)| match seen {
                Observed::Present(object) if *resource == one.id && object.cloud_id == *id => Some(object),
                _ => None,
            });
            self.known.extend(seen.map(|object| (one.id.clone(), object.outputs.clone())));
            return Err(EXTERNAL.to_owned());
        }
        if one.via.is_some() {
            return Err(INSIDE.to_owned());
        }
        let spec = one.spec.resolve(|id| self.known.get(id)).map_err(|error| match error {
            SpecError::Unresolved { resource, field } => needed(resource.as_str(), &field),
            SpecError::Shape { .. } => error.to_string(),
        })?;
        let wanted = Wanted { spec, ..one.clone() };
        let planned = site.provider.planned(&wanted, self.facts.lineage);
        let PlannedObject { cloud_id, outputs } = planned.ok_or_else(|| NO_FORM.to_owned())?;
        let kind = site.provider.kinds().iter().find(|kind| kind.name == one.kind.as_str());
        let object = Recorded {
            id: wanted.id,
            kind: wanted.kind,
            site: wanted.site,
            via: None,
            spec: wanted.spec,
            // Those of its references too, which the resolved spec does not have.
            needs: sorted_needs(one),
            ownership: Ownership::Ours,
            schema: kind.map_or(1, |kind| kind.schema),
            cloud_id,
            created: None,
            outputs,
            protected: wanted.protected,
            tainted: false,
        };
        let beside = self.beside.entry(one.site.clone()).or_default();
        let count = declared.entries.len();
        declared.add(&site.provider, self.tool, (&object, Knowledge::Planned), beside);
        // The name of a secret is enough for a variable, whatever creates the secret.
        let is_secret = object.outputs.values().all(|value| SecretRef::from_value(value).is_some());
        if declared.entries.len() > count || is_secret {
            self.known.insert(object.id.clone(), object.outputs.clone());
        }
        beside.push(object);
        Ok(())
    }
}
