//! [`Azure`]: the implementation of the provider contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use textnlp_cloud::{GeneratesSecrets, ImageSource, Images, NoSecrets, Work, region_of};
use textnlp_provider::connect::Bearer;
use textnlp_provider::{
    Billed, BilledRequest, CloudId, Component, CostLine, DatabasePart, Declaration, Declare, FieldChange, Handle, Kind,
    KindName, Leftovers, Lineage, Object, Observed, Operation, PlannedObject, PolicyDocument, PolicyRequest, Problem,
    Problems, Progress, Provider, Recorded, ResourceId, Result, Scope, Secret, SecretStore, Site, Spec, Sweep, Wanted,
};
use tokio::sync::OnceCell;

use crate::access::{Access, Identity};
use crate::api::Api;
use crate::kinds::redis;
use crate::{billed, costs, lower, policy, preflight, sweep, table, token};

/// The time between two polls of an object that takes minutes.
const POLL: Duration = Duration::from_secs(4);

/// The provider of one subscription in one region.
pub struct Azure {
    access: Access,
    secrets: Arc<dyn SecretStore>,
    images: Option<Arc<dyn ImageSource>>,
    poll: Duration,
    api: OnceCell<Arc<Api>>,
}

impl Azure {
    /// Creates the provider; nothing is called before the first operation. `secrets` has the values of secret references.
    pub fn new(access: Access, secrets: Arc<dyn SecretStore>) -> Self {
        Self { access, secrets, images: None, poll: POLL, api: OnceCell::new() }
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

    /// Who is signed in, and to which subscription.
    ///
    /// # Errors
    /// No credentials are found, they are refused, or no subscription is named.
    pub async fn sign_in(access: &Access) -> Result<Identity> {
        let api = Api::connect(access, Arc::new(NoSecrets), Images::of(None)).await?;
        Ok(api.session.identity.clone())
    }

    /// A token for the clusters of the subscription, of the identity that deploys.
    ///
    /// # Errors
    /// No credentials are found, or they are refused.
    pub async fn cluster_token(access: &Access) -> Result<Bearer> {
        Api::tokens(access)?.bearer(token::CLUSTERS).await
    }

    async fn api(&self) -> Result<&Arc<Api>> {
        let connect = || async {
            let images = Images::of(self.images.clone());
            Api::connect(&self.access, self.secrets.clone(), images).await.map(Arc::new)
        };
        self.api.get_or_try_init(connect).await
    }

    pub(crate) async fn observe_kinds(
        &self,
        scope: &Scope<'_>,
        is_observed: impl Fn(&str) -> bool + Send,
    ) -> Result<Vec<(ResourceId, Observed)>> {
        textnlp_cloud::observe(self.api().await?, scope, is_observed).await
    }

    async fn work<'a>(&self, op: &'a Operation) -> Result<Work<'a, Api>> {
        Work::of(self.api().await?, op, self.poll)
    }
}

/// The keys of databases of Azure Managed Redis.
#[async_trait]
impl GeneratesSecrets for Azure {
    const START: &'static str = redis::SECRETS;

    async fn generated(&self, id: &str) -> Result<Secret> {
        redis::primary_key(self.api().await?, id).await
    }
}

#[async_trait]
impl Provider for Azure {
    fn kinds(&self) -> &'static [Kind] {
        table::kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        table::row(&wanted.kind).map(|row| textnlp_cloud::diff(row, wanted, recorded, seen)).unwrap_or_default()
    }

    /// A server, and the database in it, which is an object of its own: without it, the server is empty.
    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        matches!(recorded.kind.as_str(), "azure.database-server" | "azure.database").then_some(DatabasePart::Data)
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::costs(kind, spec, region_of(spec).unwrap_or(&self.access.region)).unwrap_or_else(|| {
            let known = self.kinds().iter().find(|known| known.name == kind.as_str());
            known.map(Kind::costs).unwrap_or_default()
        })
    }

    fn costs_inside(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::inside(kind, spec)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        policy::policies(request, &self.access.subscription().unwrap_or_default())
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        let api = self.api.get().map(|api| &**api);
        table::row(&request.object.kind)?.resource.declare(api, request)
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        table::row(&wanted.kind)?.resource.planned(wanted, lineage)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        Ok(preflight::preflight(self.api().await?, wanted).await)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        self.observe_kinds(scope, |_| true).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        textnlp_cloud::read::<Api>(self.api().await?, kind, id).await
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

#[cfg(test)]
mod tests {
    use textnlp_provider::conformance::{lowers_purely, well_formed};
    use textnlp_provider::{DataClass, Ownership};

    use super::*;
    use crate::lower::tests::{component, site};

    #[test]
    fn kinds_are_well_formed() {
        let azure = Azure::new(Access::default(), Arc::new(NoSecrets));
        well_formed(&azure).unwrap();
        let network =
            textnlp_provider::component::ComponentSpec::Network(textnlp_provider::component::Network::default());
        lowers_purely(&azure, &component("network", network), &site(true)).unwrap();
    }

    #[test]
    fn a_server_without_its_database_is_no_copy_of_the_data() {
        let azure = Azure::new(Access::default(), Arc::new(NoSecrets));
        let precious = azure.kinds().iter().filter(|kind| kind.data == DataClass::Precious);
        let of_database: Vec<&str> =
            precious.map(|kind| kind.name).filter(|name| azure.database_part(&recorded(name)).is_some()).collect();
        assert_eq!(of_database, ["azure.database-server", "azure.database"]);
        assert_eq!(azure.database_part(&recorded("azure.dns-zone")), None);
    }

    fn recorded(kind: &str) -> Recorded {
        Recorded {
            id: "main/database/part".parse().unwrap(),
            kind: KindName::new(kind).unwrap(),
            site: "main".parse().unwrap(),
            via: None,
            spec: Spec::default(),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: CloudId::new("part").unwrap(),
            created: None,
            outputs: Default::default(),
            protected: false,
            tainted: false,
        }
    }
}
