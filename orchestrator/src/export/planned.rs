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
    /// The resources that are not declared, and that others must come after.
    refused: BTreeSet<ResourceId>,
}

/// Adds the wanted resources that are not recorded, each after what it needs.
pub(super) fn add(declared: &mut Declared<'_>, facts: &Facts, tool: Tool) {
    let mut progress =
        Progress { facts, tool, known: BTreeMap::new(), beside: BTreeMap::new(), refused: BTreeSet::new() };
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
        });
        if spec.is_err() {
            self.refused.insert(one.id.clone());
        }
        let spec = spec?;
        if let Some(need) = sorted_needs(one).iter().find(|need| self.refused.contains(&need.on)) {
            self.refused.insert(one.id.clone());
            return Err(format!("it must come after `{}`, which is not declared", need.on));
        }
        let wanted = Wanted { spec, ..one.clone() };
        let planned = site.provider.planned(&wanted, self.facts.lineage);
        let PlannedObject { cloud_id, outputs, is_optional } = planned.ok_or_else(|| NO_FORM.to_owned())?;
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
        } else if !is_optional && declared.left.last().is_some_and(|left| left.because != NO_FORM) {
            self.refused.insert(object.id.clone());
        }
        beside.push(object);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use jiff::Timestamp;
    use serde_json::Value;
    use textnlp_provider::settings::Runtime;
    use textnlp_provider::spec::OutputRef;
    use textnlp_provider::{
        CloudId, Component, Declaration, Declare, FieldChange, Handle, Kind, KindName, Need, Object, Operation,
        Placeholder, Problem, Problems, Progress as Advanced, Provider, Ref, Result, Scope, Site, Spec,
    };

    use super::*;
    use crate::plan::{DeleteData, Purpose};

    /// A provider of things, which a tool can declare, and of what none can.
    struct Things;

    #[async_trait]
    impl Provider for Things {
        fn kinds(&self) -> &'static [Kind] {
            &[]
        }

        fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
            let outputs = BTreeMap::from([("id".to_owned(), "id".to_owned())]);
            let body = request.object.spec.as_value().as_object().cloned().unwrap_or_default();
            let one = Declaration { kind: "thing".to_owned(), body, outputs, ..Declaration::default() };
            let mut all = vec![one];
            if request.is_planned && request.object.spec.get("agent").is_some() {
                let agent = Declaration {
                    kind: "agent".to_owned(),
                    is_new_only: true,
                    is_read: true,
                    ..Declaration::default()
                };
                all.insert(0, agent);
            }
            match request.object.kind.as_str() {
                "memory.thing" => Some(Ok(all)),
                "memory.optional" | "memory.refused" => Some(Err("it has no type".to_owned())),
                _ => None,
            }
        }

        fn planned(&self, wanted: &Wanted, _lineage: Lineage) -> Option<PlannedObject> {
            let (name, value) = match wanted.kind.as_str() {
                "memory.secret" => ("secret", json!({ "$secret": "here/password", "version": "1" })),
                _ => ("id", json!(Placeholder::of(wanted, "id").to_string())),
            };
            let outputs = Outputs::from([(name.to_owned(), value)]);
            let is_optional = wanted.kind.as_str() == "memory.optional";
            Some(PlannedObject { cloud_id: CloudId::new(wanted.id.as_str()).ok()?, outputs, is_optional })
        }

        fn lower(&self, _component: &Component, _site: &Site) -> Result<Vec<Wanted>, Problems> {
            Ok(Vec::new())
        }

        fn diff(&self, _wanted: &Wanted, _recorded: &Recorded, _seen: &Object) -> Vec<FieldChange> {
            Vec::new()
        }

        async fn preflight(&self, _wanted: &[Wanted]) -> Result<Vec<Problem>> {
            unreachable!("an export only declares")
        }

        async fn observe(&self, _scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
            unreachable!("an export only declares")
        }

        async fn read(&self, _kind: &KindName, _id: &CloudId) -> Result<Observed> {
            unreachable!("an export only declares")
        }

        async fn begin(&self, _op: &Operation) -> Result<Advanced> {
            unreachable!("an export only declares")
        }

        async fn advance(&self, _op: &Operation, _handle: &Handle) -> Result<Advanced> {
            unreachable!("an export only declares")
        }
    }

    fn id(name: &str) -> ResourceId {
        ResourceId::new(format!("here/{name}")).unwrap()
    }

    fn wanted(name: &str, kind: &str, spec: &Value) -> Wanted {
        Wanted {
            id: id(name),
            kind: KindName::new(kind).unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec: Spec::of(spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        }
    }

    fn facts(wanted: Vec<Wanted>) -> Facts {
        let site = SiteFacts {
            provider: Arc::new(Things),
            protect_data: false,
            wanted,
            holdings: BTreeMap::new(),
            observed: Vec::new(),
            unfilled: BTreeSet::new(),
            open: BTreeMap::new(),
            unresolved: BTreeMap::new(),
            took: crate::state::Durations::default(),
            shortages: crate::state::Shortages::default(),
        };
        Facts {
            environment: EnvironmentName::new("staging").unwrap(),
            purpose: Purpose::Up,
            lineage: Lineage(Uuid::nil()),
            is_new: true,
            delete_data: DeleteData::Nothing,
            gated: false,
            now: Timestamp::UNIX_EPOCH,
            sites: BTreeMap::from([(SiteName::new("here").unwrap(), site)]),
        }
    }

    #[test]
    fn a_resource_is_declared_after_what_it_needs() {
        let output = |name: &str, field: &str| json!(OutputRef::new(id(name), field));
        let server = json!({ "network": output("net", "id"), "password": output("password", "secret") });
        let existing = Ownership::External(CloudId::new("zone-1").unwrap());
        let all = vec![
            Wanted { via: Some(Ref(id("net"))), ..wanted("inside", "memory.thing", &json!({})) },
            wanted("lost", "memory.thing", &json!({ "address": output("net", "address") })),
            wanted("later", "memory.thing", &json!({ "other": output("lost", "id") })),
            wanted("server", "memory.thing", &server),
            wanted("net", "memory.thing", &json!({})),
            wanted("password", "memory.secret", &json!({})),
            Wanted { ownership: existing, ..wanted("zone", "memory.thing", &json!({})) },
        ];
        let exported = super::super::planned(&facts(all), " --file shop.yaml", Tool::Terraform).unwrap();
        assert_eq!(exported.declared, BTreeSet::from([id("net"), id("server")]));
        let why = |name: &str| exported.left.iter().find(|left| left.resource == id(name)).unwrap().because.as_str();
        assert_eq!(why("lost"), "it needs `address` of `here/net`, which is not declared");
        assert_eq!(why("later"), "it needs `id` of `here/lost`, which is not declared");
        assert_eq!((why("inside"), why("zone"), why("password")), (INSIDE, EXTERNAL, NO_FORM));
        let main = exported.files.iter().find(|file| file.path == "main.tf.json").unwrap();
        let main: Value = serde_json::from_str(&main.text).unwrap();
        let server = json!({ "network": "${thing.here_net.id}", "password": "${var.here_password}" });
        assert_eq!(main["resource"]["thing"]["here_server"], server);
        assert_eq!(exported.variables, BTreeSet::from(["here_password".to_owned()]));
        let readme = exported.files.iter().find(|file| file.path == "README.md").unwrap();
        for command in ["state import --file shop.yaml --lineage ", "plan --file shop.yaml\n"] {
            assert!(readme.text.contains(&format!("textnlp-deploy {command}")), "{command} in {}", readme.text);
        }
    }

    #[test]
    fn what_must_come_after_something_undeclared_is_left_out() {
        let after =
            |name: &str, on: &str| Wanted { needs: vec![Need::on(id(on))], ..wanted(name, "memory.thing", &json!({})) };
        let lost = OutputRef::new(id("refused"), "address");
        let all = vec![
            wanted("optional", "memory.optional", &json!({})),
            wanted("refused", "memory.refused", &json!({})),
            wanted("lost", "memory.thing", &json!({ "address": lost })),
            after("group", "optional"),
            after("bucket", "refused"),
            after("last", "lost"),
        ];
        let exported = super::super::planned(&facts(all), " --file shop.yaml", Tool::Terraform).unwrap();
        assert_eq!(exported.declared, BTreeSet::from([id("group")]));
        let why = |name: &str| exported.left.iter().find(|left| left.resource == id(name)).unwrap().because.as_str();
        assert_eq!(why("bucket"), "it must come after `here/refused`, which is not declared");
        assert_eq!(why("last"), "it must come after `here/lost`, which is not declared");
    }

    #[test]
    fn a_part_before_an_object_is_created_before_it() {
        let needs = vec![Need::on(id("access"))];
        let all = vec![
            Wanted { needs, ..wanted("bucket", "memory.thing", &json!({})) },
            wanted("access", "memory.thing", &json!({ "agent": true })),
        ];
        let exported = super::super::planned(&facts(all), " --file shop.yaml", Tool::Terraform).unwrap();
        let main = exported.files.iter().find(|file| file.path == "main.tf.json").unwrap();
        let main: Value = serde_json::from_str(&main.text).unwrap();
        assert_eq!(main["data"]["agent"], json!({ "here_access_new1": {} }));
        let things = &main["resource"]["thing"];
        assert_eq!(things["here_access"]["depends_on"], json!(["data.agent.here_access_new1"]));
        assert_eq!(things["here_bucket"]["depends_on"], json!(["data.agent.here_access_new1", "thing.here_access"]));
    }

    #[test]
    fn the_proposed_lineage_is_that_of_the_accounts() {
        let of = |account: &str| {
            let place = SiteLocation {
                provider: "aws".to_owned(),
                account: account.to_owned(),
                region: "eu-central-1".to_owned(),
                runtime: Runtime::Kubernetes,
            };
            let places = BTreeMap::from([(SiteName::new("here").unwrap(), place)]);
            proposed_lineage(&EnvironmentName::new("staging").unwrap(), &places)
        };
        assert_eq!(of("1"), of("1"));
        assert_ne!(of("1"), of("2"));
    }
}
