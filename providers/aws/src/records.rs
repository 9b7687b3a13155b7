//! DNS records in a zone of Route 53 for a site that another provider creates.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use async_trait::async_trait;
use textnlp_cloud::ZoneProvider;
use textnlp_provider::{Component, Kind, Observed, Problems, ResourceId, Result, Scope, Site, Wanted};

use crate::provider::Aws;
use crate::{lower, table};

const KINDS: [&str; 2] = ["aws.dns-record", "aws.health-check"];

/// The provider of records, with the access of the site whose account has the zone.
pub type Records = textnlp_cloud::Records<Aws>;

#[async_trait]
impl ZoneProvider for Aws {
    const SIGN_IN: &'static str = "sign in to the AWS account of the zone";

    fn record_kinds() -> &'static [Kind] {
        static OWN: LazyLock<Vec<Kind>> =
            LazyLock::new(|| table::kinds().iter().filter(|kind| KINDS.contains(&kind.name)).cloned().collect());
        &OWN
    }

    fn lower_records(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    /// The zones of recorded records may be in another account than the one that is signed in: those records are not gone.
    async fn observe_records(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let zones = scope.recorded.iter().filter_map(|one| one.spec.get("zone").and_then(|zone| zone.as_str()));
        for zone in zones.collect::<BTreeSet<_>>() {
            Box::pin(self.find_zone(zone)).await?;
        }
        Box::pin(self.observe_kinds(scope, |kind| KINDS.contains(&kind))).await
    }
}
