//! [`Records`]: DNS records in a zone of a cloud for a site that another provider creates.

use std::collections::BTreeSet;

use async_trait::async_trait;
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::{
    CloudId, Component, CostLine, Declaration, Declare, FieldChange, Handle, Kind, KindName, Lineage, Object, Observed,
    Operation, PlannedObject, PolicyDocument, PolicyRequest, Problem, Problems, Progress, Provider, ReadFailure,
    Recorded, ResourceId, Result, Scope, Site, Spec, Wanted, error_chain,
};

/// A cloud whose zones may have the records of sites at other providers.
#[async_trait]
pub trait ZoneProvider: Provider {
    /// What an operator does where the records cannot be checked.
    const SIGN_IN: &'static str;

    /// The kinds: records, and the health checks that they depend on.
    fn record_kinds() -> &'static [Kind];

    /// Expands the records of a site that is at another provider. Pure.
    fn lower_records(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems>;

    /// Observes objects of these kinds only.
    async fn observe_records(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>>;
}

/// The records of a site's names. Nothing is called for a site that has none. What is left of a deployment is searched by the provider of
/// the site that has the zone.
pub struct Records<P>(P);

impl<P> Records<P> {
    /// Creates the provider, from that of the site whose account has the zone.
    pub fn new(zone: P) -> Self {
        Self(zone)
    }

    /// The component and the site that this provider expands. Pure.
    pub fn part(component: &Component, site: &Site) -> Option<(Component, Site)> {
        let ComponentSpec::Endpoint(endpoint) = &component.part else { return None };
        let is_elsewhere = endpoint.share.as_ref().is_some_and(|share| share.is_at_other_provider);
        (is_elsewhere && endpoint.zone.is_some()).then(|| (component.clone(), site.clone()))
    }
}

#[async_trait]
impl<P: ZoneProvider> Provider for Records<P> {
    fn kinds(&self) -> &'static [Kind] {
        P::record_kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.0.lower_records(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.0.diff(wanted, recorded, seen)
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        self.0.costs(kind, spec)
    }

    fn costs_among(&self, kind: &KindName, spec: &Spec, others: &[(&KindName, &Spec)]) -> Option<Vec<CostLine>> {
        self.0.costs_among(kind, spec, others)
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        self.0.declare(request)
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        self.0.planned(wanted, lineage)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        if request.resources.is_empty() { Vec::new() } else { self.0.policies(request) }
    }

    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        self.0.boundaries(request)
    }

    /// The site stays manageable while the cloud is lost.
    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let Some(first) = wanted.first() else { return Ok(Vec::new()) };
        Ok(self.0.preflight(wanted).await.unwrap_or_else(|error| {
            let cause = format!("the DNS records of the site cannot be checked: {}", error_chain(&error));
            vec![Problem::warning(first.id.to_string(), cause, P::SIGN_IN)]
        }))
    }

    /// While the cloud is lost, only the records are unknown.
    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        if scope.wanted.is_empty() && scope.recorded.is_empty() {
            return Ok(Vec::new());
        }
        self.0.observe_records(scope).await.or_else(|error| {
            let ids = scope.wanted.iter().map(|one| &one.id).chain(scope.recorded.iter().map(|one| &one.id));
            let ids: BTreeSet<&ResourceId> = ids.collect();
            let unknown = || Observed::Unknown(ReadFailure(error_chain(&error)));
            Ok(ids.into_iter().map(|id| (id.clone(), unknown())).collect())
        })
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.0.read(kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.0.begin(op).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.0.advance(op, handle).await
    }
}
