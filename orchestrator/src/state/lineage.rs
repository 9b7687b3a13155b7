//! The identity of a deployment and the bindings of its sites.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

/// The location that a site is bound to while it has objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteLocation {
    /// The provider's name.
    pub provider: String,
    /// The account, subscription, project, cluster or machine.
    pub account: String,
    /// The provider's region.
    pub region: String,
    /// How programs run there.
    pub runtime: Runtime,
}

impl fmt::Display for SiteLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, account, region, runtime } = self;
        write!(f, "provider `{provider}`, account `{account}`, region `{region}`, runtime `{runtime}`")
    }
}

/// The file `lineage.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageFile {
    /// The version of the state's format.
    pub format: u32,
    /// The lineage of the deployment.
    pub lineage: Lineage,
    /// The environment it belongs to.
    pub environment: EnvironmentName,
    /// The binding of each site. A site is added when it is first used and removed when it is empty.
    pub sites: BTreeMap<SiteName, SiteLocation>,
    /// The new location, if the state was moved away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<String>,
}
