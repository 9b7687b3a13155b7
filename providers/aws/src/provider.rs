//! [`Aws`]: the implementation of the provider contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use textnlp_provider::{
    CloudId, Component, CostLine, Error, ErrorKind, FieldChange, Handle, Kind, KindName, Object, Observed, Operation,
    PolicyDocument, PolicyRequest, Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, Scope,
    SecretStore, Site, Spec, Wanted,
};
use textnlp_token::partition;
use tokio::sync::OnceCell;

use crate::api::{Access, Api, Identity};
use crate::work::Work;
use crate::{costs, diff, lower, observe, policy, preflight, table};

/// The time between two polls of an object that takes minutes.
const POLL: Duration = Duration::from_secs(4);

/// The provider of one account in one region.
pub struct Aws {
    access: Access,
    secrets: Arc<dyn SecretStore>,
    poll: Duration,
    api: OnceCell<Api>,
}

impl Aws {
    /// Creates the provider; nothing is called before the first operation. `secrets` has the values of secret references.
    pub fn new(access: Access, secrets: Arc<dyn SecretStore>) -> Self {
        Self { access, secrets, poll: POLL, api: OnceCell::new() }
    }

    /// The same provider with another time between polls.
    #[must_use]
    pub fn polling_every(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    /// Who is signed in.
    pub async fn sign_in(access: &Access) -> Result<Identity> {
        Api::identify(access).await
    }

    async fn api(&self) -> Result<&Api> {
        self.api.get_or_try_init(|| Api::connect(&self.access, self.secrets.clone())).await
    }

    async fn work<'a>(&'a self, op: &'a Operation) -> Result<Work<'a>> {
        let row = table::row(&op.kind).ok_or_else(|| {
            let error = Error::new(ErrorKind::Invalid, op.verb.to_string(), op.resource.to_string());
            error.because(format!("`{}` is no kind of AWS", op.kind))
        })?;
        Ok(Work { api: self.api().await?, op, row, poll: self.poll })
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
        table::row(&wanted.kind).map(|row| diff::diff(row, wanted, recorded, seen)).unwrap_or_default()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::costs(kind, spec, &self.access.region).unwrap_or_else(|| {
            let known = self.kinds().iter().find(|known| known.name == kind.as_str());
            known.map(Kind::costs).unwrap_or_default()
        })
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let account = self.api.get().map(|api| api.identity.account.clone());
        let own = Own { account, region: self.access.region.clone() };
        policy::policies(request, |name| own.value(name))
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        preflight::preflight(self.api().await?, wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        observe::observe(self.api().await?, scope).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        observe::read(self.api().await?, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.work(op).await?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.work(op).await?.advance(handle).await
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
            _ => None,
        }
    }
}
