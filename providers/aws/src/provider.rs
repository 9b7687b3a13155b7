//! [`Aws`]: the implementation of the provider contract.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_credential_types::provider::SharedCredentialsProvider;
use textnlp_cloud::{Cloud, ImageSource, Images, Work, region_of};
use textnlp_provider::{
    Billed, BilledRequest, CloudId, Component, CostLine, Declaration, Declare, Error, ErrorKind, FieldChange, Handle,
    Kind, KindName, Leftovers, Lineage, Object, Observed, Operation, PlannedObject, PolicyDocument, PolicyRequest,
    Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, Scope, SecretStore, Site, Spec, Sweep, Wanted,
};
use textnlp_token::partition;
use tokio::sync::OnceCell;

use crate::api::{Access, Api, Identity};
use crate::{billed, boundary, costs, declare, lower, policy, preflight, sweep, table};

/// The time between two polls of an object that takes minutes.
const POLL: Duration = Duration::from_secs(4);

/// The provider of one account in one region.
pub struct Aws {
    access: Access,
    secrets: Arc<dyn SecretStore>,
    images: Option<Arc<dyn ImageSource>>,
    poll: Duration,
    api: OnceCell<Arc<Api>>,
    /// The deployment that was observed first; a process has one.
    lineage: OnceLock<Lineage>,
}

impl Aws {
    /// Creates the provider; nothing is called before the first operation. `secrets` has the values of secret references.
    pub fn new(access: Access, secrets: Arc<dyn SecretStore>) -> Self {
        Self { access, secrets, images: None, poll: POLL, api: OnceCell::new(), lineage: OnceLock::new() }
    }

    /// The same provider with another time between polls.
    #[must_use]
    pub fn polling_every(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// The same provider with the images that it pushes.
    #[must_use]
    pub fn pushing(self, images: Arc<dyn ImageSource>) -> Self {
        Self { images: Some(images), ..self }
    }

    /// Who is signed in.
    pub async fn sign_in(access: &Access) -> Result<Identity> {
        Api::identify(access).await
    }

    /// The credentials of the role that is assumed, which a token for its clusters needs; `None` without one.
    ///
    /// # Errors
    /// The role cannot be assumed.
    pub async fn assumed(access: &Access) -> Result<Option<SharedCredentialsProvider>> {
        Api::assumed(access).await
    }

    async fn api(&self) -> Result<&Arc<Api>> {
        self.api
            .get_or_try_init(|| async {
                let images = Images::of(self.images.clone());
                Box::pin(Api::connect(&self.access, self.secrets.clone(), images)).await.map(Arc::new)
            })
            .await
    }

    /// Finds a zone of Route 53.
    ///
    /// # Errors
    /// The account does not have it.
    pub(crate) async fn find_zone(&self, id: &str) -> Result<()> {
        let api = self.api().await?;
        let call = api.route53.get_hosted_zone().id(id).send();
        if api.find("route53", format!("zone {id}"), call).await?.is_some() {
            return Ok(());
        }
        let error = Error::new(ErrorKind::NotFound, "find", format!("zone {id}"));
        Err(error.because(format!("account {} has no such zone", api.identity.account)))
    }

    /// Observes some kinds only.
    pub(crate) async fn observe_kinds(
        &self,
        scope: &Scope<'_>,
        is_observed: impl Fn(&str) -> bool + Send,
    ) -> Result<Vec<(ResourceId, Observed)>> {
        self.lineage.get_or_init(|| scope.lineage);
        Box::pin(textnlp_cloud::observe(self.api().await?, scope, is_observed)).await
    }

    async fn work<'a>(&self, op: &'a Operation) -> Result<Work<'a, Api>> {
        Work::of(self.api().await?, op, self.poll)
    }
}

#[async_trait]
impl Provider for Aws {
    fn kinds(&self) -> &'static [Kind] {
        table::kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        table::row(&wanted.kind).map(|row| textnlp_cloud::diff(row, wanted, recorded, seen)).unwrap_or_default()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::costs(kind, spec, region_of(spec).unwrap_or(&self.access.region)).unwrap_or_else(|| {
            let known = self.kinds().iter().find(|known| known.name == kind.as_str());
            known.map(Kind::costs).unwrap_or_default()
        })
    }

    fn costs_among(&self, kind: &KindName, spec: &Spec, others: &[(&KindName, &Spec)]) -> Option<Vec<CostLine>> {
        costs::among(kind, spec, others, &self.access.region)
    }

    fn costs_inside(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::inside(kind, spec, &self.access.region)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let account = self.api.get().map(|api| api.identity.account.clone());
        let own = Own { account, region: self.access.region.clone() };
        policy::policies(request, |name| own.value(name))
    }

    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        boundary::boundary(request).into_iter().collect()
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        declare::declarations(request, &self.access.region)
    }

    fn planned(&self, wanted: &Wanted, _lineage: Lineage) -> Option<PlannedObject> {
        declare::planned(wanted)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        Ok(preflight::preflight(self.api().await?, wanted, self.lineage.get().copied()).await)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        Box::pin(self.observe_kinds(scope, |_| true)).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        textnlp_cloud::read::<Api>(self.api().await?, kind, id).await
    }

    async fn read_recorded(&self, recorded: &Recorded) -> Result<Observed> {
        let there = self.api().await?.of_spec(&recorded.spec);
        textnlp_cloud::read::<Api>(&there, &recorded.kind, &recorded.cloud_id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.work(op).await?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.work(op).await?.advance(handle).await
    }

    async fn leftovers(&self, sweep: &Sweep<'_>) -> Result<Option<Leftovers>> {
        sweep::leftovers(self.api().await?, sweep).await.map(Some)
    }

    async fn billed(&self, request: &BilledRequest) -> Result<Billed> {
        billed::billed(self.api().await?, request).await
    }
}

/// The values of permissions that only a provider of AWS knows.
pub(crate) struct Own {
    /// `None` before the first sign-in.
    account: Option<String>,
    region: String,
}

impl Own {
    pub(crate) fn of(api: &Api) -> Self {
        Self { account: Some(api.identity.account.clone()), region: api.region.clone() }
    }

    pub(crate) fn value(&self, name: &str) -> Option<String> {
        match name {
            "$account" => self.account.clone(),
            "$region" => Some(self.region.clone()),
            "$partition" => Some(partition(&self.region).name.to_owned()),
            "$dns_suffix" => Some(partition(&self.region).dns_suffix.to_owned()),
            _ => None,
        }
    }
}
