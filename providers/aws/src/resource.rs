//! The terms of the driver in `textnlp-cloud`, for AWS.

use std::collections::BTreeMap;

use aws_sdk_eks::types::Cluster;
use aws_sdk_resourcegroupstagging::types::ResourceTagMapping;
use aws_smithy_types::DateTime;
use jiff::Timestamp;
pub(crate) use textnlp_cloud::{Make, ObservedObject, Of, Resource, State, same};
use tokio::sync::Mutex;

use crate::api::Api;

/// Which objects a list returns.
pub(crate) type Filter = textnlp_cloud::Filter<Api>;

/// What the lists of one observation share, by region: each is asked for once.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// What the tagging API showed.
    pub(crate) tagged: Mutex<BTreeMap<String, Vec<ResourceTagMapping>>>,
    /// The clusters of the deployment.
    pub(crate) clusters: Mutex<BTreeMap<String, Vec<Cluster>>>,
}

/// The whole seconds of a time.
pub(crate) fn timestamp(at: Option<DateTime>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::from_second(at.secs()).ok())
}
