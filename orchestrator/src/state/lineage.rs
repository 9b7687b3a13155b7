//! Which deployment this is, and what each of its sites is bound to.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

/// What a site is bound to for as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The provider's name.
    pub provider: String,
    /// The account, subscription, project, cluster or machine.
    pub account: String,
    /// The provider's region.
    pub region: String,
    /// How programs run there.
    pub runtime: String,
}

impl fmt::Display for Place {
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
    /// Which deployment.
    pub lineage: Lineage,
    /// Which environment it belongs to.
    pub environment: EnvironmentName,
    /// What each site is bound to; a site is added when it is first used and goes when nothing of it is left.
    pub sites: BTreeMap<SiteName, Place>,
    /// Where the state lies now, if not here any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<String>,
}
