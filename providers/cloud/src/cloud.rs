//! What the driver needs to know of a cloud.

use std::sync::Arc;

use textnlp_provider::{ErrorKind, Foreign, Spec};

use crate::table::Row;

/// The field of the specs of objects outside of their site's region.
pub const REGION: &str = "region";

/// The clients of one account and region, and what is the same for all accounts of their cloud.
pub trait Cloud: Send + Sync + Sized + 'static {
    /// What the lists of one observation share: each is asked for once.
    type Shared: Default + Send + Sync + 'static;

    /// The name of the cloud in messages: `AWS`.
    const NAME: &'static str;

    /// The key of the tag that the cloud's console shows as the name of an object.
    const NAME_TAG: Option<&'static str> = None;

    /// Whether a conflict passes after minutes, such as another operation of the same cluster, or a service that was just enabled. The
    /// driver then waits for it as for any pending object; otherwise the caller repeats the call for some seconds.
    const CONFLICTS_LAST: bool = false;

    /// The kinds, by service.
    fn rows() -> &'static [&'static [Row<Self>]];

    /// What an error means, and what an operator does about it. `service` is that of the kind's [`Row`]. `code` is empty where the
    /// cloud has none.
    fn classify(service: &str, code: &str, message: &str) -> (ErrorKind, Option<String>);

    /// Whether tags of this key are those of the cloud or of one of its kinds: specs have none of them.
    fn is_reserved(_key: &str) -> bool {
        false
    }

    /// Whether a plan must name an object of controllers before it is deleted. One that holds nothing may appear while others are being
    /// deleted.
    fn is_named(foreign: &Foreign) -> bool {
        foreign.swept
    }

    /// Who is signed in, as errors name it; empty if that is not known.
    fn signed_in(&self) -> &str;

    /// The region.
    fn region(&self) -> &str;

    /// Whether it is not the region of the site.
    fn is_elsewhere(&self) -> bool;

    /// The clients of another region of the same account.
    fn in_region(self: &Arc<Self>, region: &str) -> Arc<Self>;

    /// The clients of the region that an object with this spec is in.
    fn of_spec(self: &Arc<Self>, spec: &Spec) -> Arc<Self> {
        region_of(spec).map_or_else(|| self.clone(), |region| self.in_region(region))
    }
}

/// The region that a spec states: that of an object outside of its site's region.
pub fn region_of(spec: &Spec) -> Option<&str> {
    spec.get(REGION)?.as_str()
}
