//! [`Gcp`]: the implementation of the provider contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use textnlp_cloud::{GeneratesSecrets, ImageSource, Images, NoSecrets, Work, region_of};
use textnlp_provider::connect::Bearer;
use textnlp_provider::{
    Billed, BilledRequest, CloudId, Component, CostLine, DatabasePart, Declaration, Declare, Error, ErrorKind,
    FieldChange, Handle, Kind, KindName, Leftovers, Lineage, Object, Observed, Operation, PlannedObject,
    PolicyDocument, PolicyRequest, Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, Scope, Secret,
    SecretStore, Site, Spec, Sweep, Wanted,
};
use tokio::sync::OnceCell;

use crate::access::{Access, Identity};
use crate::api::{Api, Call};
use crate::kinds::redis::AUTH_STRING;
use crate::service::Service;
use crate::{billed, costs, kinds, lower, policy, preflight, sweep, table};

/// The time between two polls of an object that takes minutes.
const POLL: Duration = Duration::from_secs(4);

/// The provider of one project in one region.
pub struct Gcp {
    access: Access,
    secrets: Arc<dyn SecretStore>,
    images: Option<Arc<dyn ImageSource>>,
    poll: Duration,
    api: OnceCell<Arc<Api>>,
}

impl Gcp {
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

    /// Who is signed in, and to which project.
    ///
    /// # Errors
    /// No credentials are found, they are refused, or no project is named.
    pub async fn sign_in(access: &Access) -> Result<Identity> {
        let api = Api::connect(access, Arc::new(NoSecrets), Images::of(None)).await?;
        Ok(api.session.identity.clone())
    }

    /// A token for the clusters of the project, of the identity that deploys.
    ///
    /// # Errors
    /// No credentials are found, or they are refused.
    pub async fn cluster_token(access: &Access) -> Result<Bearer> {
        Api::tokens(access)?.bearer().await
    }

    async fn api(&self) -> Result<&Arc<Api>> {
        let connect = || async {
            let images = Images::of(self.images.clone());
            Api::connect(&self.access, self.secrets.clone(), images).await.map(Arc::new)
        };
        self.api.get_or_try_init(connect).await
    }

    /// Observes objects of these kinds only.
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

/// The AUTH strings of instances of Memorystore for Redis.
#[async_trait]
impl GeneratesSecrets for Gcp {
    const START: &'static str = AUTH_STRING;

    async fn generated(&self, id: &str) -> Result<Secret> {
        let call = Call::get(Service::Redis, format!("{id}/authString"));
        let answer = self.api().await?.send(call.saying("read", format!("the AUTH string of {id}"))).await?;
        match answer["authString"].as_str().filter(|text| !text.is_empty()) {
            Some(text) => Ok(Secret::new(text)),
            None => Err(Error::new(ErrorKind::Unavailable, "read", id).because("it has no AUTH string")),
        }
    }
}

#[async_trait]
impl Provider for Gcp {
    fn kinds(&self) -> &'static [Kind] {
        table::kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let Some(row) = table::row(&wanted.kind) else { return Vec::new() };
        let moved = kinds::redis::moved(wanted, recorded);
        textnlp_cloud::diff(row, wanted, recorded, seen).into_iter().chain(moved).collect()
    }

    /// A server, and the database in it, which is an object of its own: without it, the server is empty.
    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        matches!(recorded.kind.as_str(), "gcp.sql-instance" | "gcp.sql-database").then_some(DatabasePart::Data)
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::costs(kind, spec, region_of(spec).unwrap_or(&self.access.region)).unwrap_or_else(|| {
            let known = self.kinds().iter().find(|known| known.name == kind.as_str());
            known.map(Kind::costs).unwrap_or_default()
        })
    }

    fn costs_inside(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        costs::inside(kind, spec, &self.access.region)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        policy::policies(request)
    }

    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        let api = self.api.get().map(|api| &**api);
        table::row(&request.object.kind)?.resource.declare(api, request)
    }

    async fn prepare_declarations(&self, wanted: &[Wanted]) -> Result<()> {
        kinds::prepare_declarations(self.api().await?, wanted).await
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
        match &request.export {
            None => Ok(Billed::NotAvailable(billed::NO_EXPORT.to_owned())),
            Some(export) => billed::billed(self.api().await?, export, request, self.poll).await,
        }
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
        let gcp = Gcp::new(Access::default(), Arc::new(NoSecrets));
        well_formed(&gcp).unwrap();
        let network =
            textnlp_provider::component::ComponentSpec::Network(textnlp_provider::component::Network::default());
        lowers_purely(&gcp, &component("network", network), &site(true)).unwrap();
    }

    #[test]
    fn a_server_without_its_database_is_no_copy_of_the_data() {
        let gcp = Gcp::new(Access::default(), Arc::new(NoSecrets));
        let precious = gcp.kinds().iter().filter(|kind| kind.data == DataClass::Precious);
        let of_database: Vec<&str> =
            precious.map(|kind| kind.name).filter(|name| gcp.database_part(&recorded(name)).is_some()).collect();
        assert_eq!(of_database, ["gcp.sql-instance", "gcp.sql-database"]);
        assert_eq!(gcp.database_part(&recorded("gcp.sql-user")), None);
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
