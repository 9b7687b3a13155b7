//! Changed feature flags where control data is replicated: written through the site agent.

use textnlp_control::Write;
use textnlp_process::Address;
use textnlp_store::FeatureChange;

use super::keys::{ControlDataError, write};
use super::rows::{self, FEATURE};

/// Stores a change at all sites.
pub async fn put(watch: &Address, change: &FeatureChange) -> Result<(), ControlDataError> {
    let (key, value) = rows::of_feature(change);
    write(watch, Write { key, value: Some(value) }).await
}

/// Removes the change of a flag at all sites.
pub async fn remove(watch: &Address, name: &str) -> Result<(), ControlDataError> {
    write(watch, Write { key: format!("{FEATURE}{name}"), value: None }).await
}
