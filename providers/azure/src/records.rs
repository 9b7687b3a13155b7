//! DNS records in a zone of Azure DNS for a site that another provider creates.

use std::sync::LazyLock;

use async_trait::async_trait;
use textnlp_cloud::ZoneProvider;
use textnlp_provider::{Component, Kind, Observed, Problems, ResourceId, Result, Scope, Site, Wanted};

use crate::provider::Azure;
use crate::{lower, table};

const KINDS: [&str; 2] = ["azure.dns-record", "azure.traffic-site"];

/// The provider of records, with the access of the site that has the zone.
pub type Records = textnlp_cloud::Records<Azure>;

#[async_trait]
impl ZoneProvider for Azure {
    const SIGN_IN: &'static str = "sign in to the Azure subscription of the zone";

    fn record_kinds() -> &'static [Kind] {
        static OWN: LazyLock<Vec<Kind>> =
            LazyLock::new(|| table::kinds().iter().filter(|kind| KINDS.contains(&kind.name)).cloned().collect());
        &OWN
    }

    fn lower_records(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower_records(component, site)
    }

    async fn observe_records(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        Box::pin(self.observe_kinds(scope, |kind| KINDS.contains(&kind))).await
    }
}
