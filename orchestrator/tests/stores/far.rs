//! A cloud at the other end of something that may hold up, stop or lose what passes.

use async_trait::async_trait;
use futures::future::BoxFuture;
use textnlp_provider::component::{Component, Site};
use textnlp_provider::memory::MemoryCloud;
use textnlp_provider::{
    CloudId, Error, ErrorKind, FieldChange, Handle, Kind, KindName, Object, Observed, Operation, Problem, Problems,
    Progress, Provider, Recorded, ResourceId, Result as Answered, Scope, Wanted,
};

/// What lies between.
#[async_trait]
pub trait Way: Send + Sync {
    /// A list sets out; says whether it gets there.
    async fn looks(&self) -> bool {
        true
    }

    /// Its answer comes back.
    async fn looked(&self) {}

    /// A call, there and back; `goes_on` is whether it is not the first of its operation.
    async fn calls(
        &self,
        op: &Operation,
        goes_on: bool,
        call: BoxFuture<'static, Answered<Progress>>,
    ) -> Answered<Progress>;
}

pub struct Far<W> {
    pub cloud: MemoryCloud,
    pub way: W,
}

#[async_trait]
impl<W: Way> Provider for Far<W> {
    fn kinds(&self) -> &'static [Kind] {
        self.cloud.kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.cloud.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.cloud.diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Answered<Vec<Problem>> {
        self.cloud.preflight(wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Answered<Vec<(ResourceId, Observed)>> {
        if !self.way.looks().await {
            return Err(Error::new(ErrorKind::Unavailable, "list", scope.site.as_str()).because("no answer came"));
        }
        let answer = self.cloud.observe(scope).await;
        self.way.looked().await;
        answer
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Answered<Observed> {
        self.cloud.read(kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Answered<Progress> {
        let (cloud, same) = (self.cloud.clone(), op.clone());
        self.way.calls(op, false, Box::pin(async move { cloud.begin(&same).await })).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Answered<Progress> {
        let (cloud, same, handle) = (self.cloud.clone(), op.clone(), handle.clone());
        self.way.calls(op, true, Box::pin(async move { cloud.advance(&same, &handle).await })).await
    }
}
