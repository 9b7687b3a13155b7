//! [`Combined`]: two providers of one site. The kind of a resource selects one of them.
//!
//! Unlike [`Through`](crate::Through), neither works through the other: a cluster's objects, and beside them what the
//! site needs on the operator's machine.

use std::sync::Arc;

use async_trait::async_trait;

use crate::bill::{Billed, BilledRequest};
use crate::component::{Component, Site};
use crate::cost::{Charge, CostLine};
use crate::declare::{Declaration, Declare, PlannedObject};
use crate::error::Result;
use crate::kind::{DatabasePart, Kind, joined};
use crate::name::{CloudId, KindName, Lineage, ResourceId};
use crate::operation::{Handle, Operation, Progress};
use crate::permission::{PolicyDocument, PolicyRequest};
use crate::provider::{Leftovers, Problem, Problems, Provider, Scope, Sweep};
use crate::resource::{FieldChange, Object, Observed, Recorded, Wanted};
use crate::spec::Spec;

/// The component and the site that the second provider expands, if it takes part in the component. Pure.
pub type SecondPart = fn(&Component, &Site) -> Option<(Component, Site)>;

/// Two providers as one. Their kinds differ.
pub struct Combined {
    first: Arc<dyn Provider>,
    second: Arc<dyn Provider>,
    second_part: SecondPart,
    kinds: &'static [Kind],
}

impl Combined {
    /// The first provider expands every component, the second its part of them.
    pub fn new(first: Arc<dyn Provider>, second: Arc<dyn Provider>, second_part: SecondPart) -> Self {
        let kinds = joined(first.kinds(), second.kinds());
        Self { first, second, second_part, kinds }
    }

    fn is_second(&self, kind: &KindName) -> bool {
        self.second.kinds().iter().any(|one| one.name == kind.as_str())
    }

    fn of(&self, kind: &KindName) -> &dyn Provider {
        if self.is_second(kind) { &*self.second } else { &*self.first }
    }
}

#[async_trait]
impl Provider for Combined {
    fn kinds(&self) -> &'static [Kind] {
        self.kinds
    }

    /// What only uses the operator's machine costs nothing extra.
    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        let mut lines = self.of(kind).costs(kind, spec);
        if self.is_second(kind) {
            lines.retain(|line| line.charge != Charge::Included);
        }
        lines
    }

    fn costs_among(&self, kind: &KindName, spec: &Spec, others: &[(&KindName, &Spec)]) -> Option<Vec<CostLine>> {
        let mut lines = self.of(kind).costs_among(kind, spec, others)?;
        lines.retain(|line| !self.is_second(kind) || line.charge != Charge::Included);
        Some(lines)
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        self.of(&request.object.kind).declare(request)
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        self.of(&wanted.kind).planned(wanted, lineage)
    }

    async fn prepare_declarations(&self, wanted: &[Wanted]) -> Result<()> {
        let (second, first): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|one| self.is_second(&one.kind));
        self.first.prepare_declarations(&first).await?;
        self.second.prepare_declarations(&second).await
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let mut documents = self.first.policies(&request.of_kinds(|kind| !self.is_second(kind)));
        documents.extend(self.second.policies(&request.of_kinds(|kind| self.is_second(kind))));
        documents
    }

    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let mut documents = self.first.boundaries(&request.of_kinds(|kind| !self.is_second(kind)));
        documents.extend(self.second.boundaries(&request.of_kinds(|kind| self.is_second(kind))));
        documents
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let mut wanted = self.first.lower(component, site)?;
        if let Some((component, site)) = (self.second_part)(component, site) {
            wanted.extend(self.second.lower(&component, &site)?);
        }
        Ok(wanted)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.of(&wanted.kind).diff(wanted, recorded, seen)
    }

    fn interruption(&self, wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
        self.of(&wanted.kind).interruption(wanted, changes, among)
    }

    fn controller(&self, seen: &Object) -> Option<String> {
        self.of(&seen.kind).controller(seen)
    }

    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        self.of(&recorded.kind).database_part(recorded)
    }

    fn is_refilled(&self, recorded: &Recorded) -> bool {
        self.of(&recorded.kind).is_refilled(recorded)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let (second, first): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|one| self.is_second(&one.kind));
        let mut problems = self.first.preflight(&first).await?;
        problems.extend(self.second.preflight(&second).await?);
        Ok(problems)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let mut seen = Vec::new();
        for (provider, is_second) in [(&self.first, false), (&self.second, true)] {
            let wanted: Vec<_> =
                scope.wanted.iter().filter(|one| self.is_second(&one.kind) == is_second).cloned().collect();
            let recorded: Vec<_> =
                scope.recorded.iter().filter(|one| self.is_second(&one.kind) == is_second).cloned().collect();
            seen.extend(provider.observe(&Scope { wanted: &wanted, recorded: &recorded, ..*scope }).await?);
        }
        Ok(seen)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.of(kind).read(kind, id).await
    }

    async fn read_recorded(&self, recorded: &Recorded) -> Result<Observed> {
        self.of(&recorded.kind).read_recorded(recorded).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.of(&op.kind).begin(op).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.of(&op.kind).advance(op, handle).await
    }

    async fn leftovers(&self, sweep: &Sweep<'_>) -> Result<Option<Leftovers>> {
        let found = [self.first.leftovers(sweep).await?, self.second.leftovers(sweep).await?];
        Ok(found.into_iter().flatten().reduce(|mut all, more| {
            all.join(more);
            all
        }))
    }

    /// What the second provider creates is in the first one's account, or in that of another site.
    async fn billed(&self, request: &BilledRequest) -> Result<Billed> {
        self.first.billed(request).await
    }
}
