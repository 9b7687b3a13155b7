//! The network of a site.

use serde_json::json;
use textnlp_provider::component::Network;

use super::Lowering;

/// The range of a VPC where the environment states none.
const CIDR: &str = "10.42.0.0/16";

impl Lowering<'_> {
    pub(super) fn network(&mut self, network: &Network) {
        let cidr = network.cidr.as_deref().unwrap_or(CIDR);
        self.main("aws.vpc", &json!({ "cidr": cidr, "dns_hostnames": true }));
    }
}
