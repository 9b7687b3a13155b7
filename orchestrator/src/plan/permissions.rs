//! The permissions that a plan needs, from the tables of its resource kinds, and their policies. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use textnlp_provider::{
    FilledPermission, KindName, Ownership, PolicyDocument, PolicyRequest, PolicyResource, Recorded, ResourceId,
    SiteName, Verb, Wanted,
};

use super::{Call, Facts, Plan, Purpose, SiteFacts};

/// A permission that a plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The site.
    pub site: SiteName,
    /// The permission, in the provider's notation. Values that only the provider knows are placeholders.
    #[serde(flatten)]
    pub permission: FilledPermission,
    /// The resource kinds that need it.
    pub kinds: BTreeSet<KindName>,
}

/// A policy for the permissions that a plan needs at one site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The site.
    pub site: SiteName,
    /// The document.
    #[serde(flatten)]
    pub document: PolicyDocument,
}

/// The permissions that this plan needs, without duplicates.
pub fn permissions(plan: &Plan, facts: &Facts) -> Vec<Permission> {
    let mut all = Vec::new();
    for (site, request) in requests(plan, facts) {
        let kinds = facts.sites.get(&site).map(|site| site.provider.kinds()).unwrap_or_default();
        for (permission, kinds) in request.permissions(kinds, |name| Some(format!("{{{name}}}"))) {
            all.push(Permission { site: site.clone(), permission, kinds });
        }
    }
    all
}

/// The least-privilege policies of this plan, in the formats of its providers; none for a provider without policies.
pub fn policies(plan: &Plan, facts: &Facts) -> Vec<Policy> {
    documents(plan, facts, |site, request| site.provider.policies(request))
}

/// The permissions boundaries for the roles of this plan; none for a provider whose roles have no boundaries.
pub fn boundaries(plan: &Plan, facts: &Facts) -> Vec<Policy> {
    let outputs = |id: &ResourceId| {
        let recorded = facts.sites.values().find_map(|site| site.holdings.get(id)?.current.as_ref());
        recorded.map(|recorded| &recorded.outputs)
    };
    documents(plan, facts, |site, request| {
        let mut request = request.clone();
        // What a role is for has a name once it is recorded.
        request.resources.iter_mut().for_each(|one| one.spec = one.spec.resolve_known(outputs));
        site.provider.boundaries(&request)
    })
}

fn documents(
    plan: &Plan,
    facts: &Facts,
    of: impl Fn(&SiteFacts, &PolicyRequest) -> Vec<PolicyDocument>,
) -> Vec<Policy> {
    let mut all = Vec::new();
    for (site, request) in requests(plan, facts) {
        let documents = facts.sites.get(&site).map(|facts| of(facts, &request)).unwrap_or_default();
        all.extend(documents.into_iter().map(|document| Policy { site: site.clone(), document }));
    }
    all
}

/// What each site's policies are for: every resource, which is read, and the calls of the steps. A resource that cannot
/// be planned, for example because reading it is denied, may be created or changed by the next plan.
fn requests(plan: &Plan, facts: &Facts) -> BTreeMap<SiteName, PolicyRequest> {
    let blocked: BTreeSet<&ResourceId> = plan.blocked.iter().map(|blocked| &blocked.resource).collect();
    let request = |(name, site): (&SiteName, &SiteFacts)| {
        let wanted = site.wanted.iter().filter(|_| plan.purpose == Purpose::Up).map(|one| match &one.ownership {
            Ownership::Ours if blocked.contains(&one.id) => of_wanted(one, site, &[Verb::Create, Verb::Update]),
            _ => of_wanted(one, site, &[]),
        });
        let recorded = site.holdings.values().flat_map(|holding| holding.objects()).map(|one| of_recorded(one, &[]));
        let steps = plan.steps.iter().filter(|step| step.site == *name);
        let calls = steps.flat_map(|step| step.node.calls()).map(|call| match call {
            Call::Create { wanted, .. } | Call::Update { wanted, .. } => of_wanted(wanted, site, &[call.verb()]),
            Call::Delete { recorded, .. } => of_recorded(recorded, &[Verb::Delete]),
        });
        let request = PolicyRequest {
            lineage: plan.lineage,
            environment: plan.environment.clone(),
            site: name.clone(),
            resources: wanted.chain(recorded).chain(calls).collect(),
        };
        (name.clone(), request)
    };
    facts.sites.iter().map(request).collect()
}

fn of_wanted(wanted: &Wanted, site: &SiteFacts, verbs: &[Verb]) -> PolicyResource {
    let (id, kind, spec) = (wanted.id.clone(), wanted.kind.clone(), wanted.spec.clone());
    let current = site.holdings.get(&id).and_then(|holding| holding.current.as_ref());
    let cloud_id = current.map(|current| current.cloud_id.clone());
    PolicyResource { id, kind, cloud_id, spec, verbs: verbs.iter().copied().collect() }
}

fn of_recorded(recorded: &Recorded, verbs: &[Verb]) -> PolicyResource {
    let (id, kind, spec) = (recorded.id.clone(), recorded.kind.clone(), recorded.spec.clone());
    PolicyResource { id, kind, cloud_id: Some(recorded.cloud_id.clone()), spec, verbs: verbs.iter().copied().collect() }
}
