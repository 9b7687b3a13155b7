//! Sizes and quotas of machines, read with `azure_mgmt_compute`. Only its calls are used: it would begin operations again to poll them.

use std::collections::BTreeMap;
use std::sync::Arc;

use azure_core_compute as legacy;
use azure_mgmt_compute::package_2024_07_01::models::resource_sku_restrictions::Type;
use azure_mgmt_compute::package_2024_07_01::models::{ResourceSku, ResourceSkusResult};
use futures::StreamExt;
use textnlp_provider::{Error, ErrorKind, Result, error_chain};

use crate::token::LegacyCredential;
use crate::token::Tokens;
use crate::transport::Transport;

/// Pages of one list.
const MAX_PAGES: usize = 20;

/// The client of one subscription.
pub(crate) struct Compute {
    client: azure_mgmt_compute::package_2024_07_01::Client,
    subscription: String,
}

/// A size as a region offers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The zones that have it; empty where it is not tied to zones.
    pub(crate) zones: Vec<String>,
    /// The quota that its vCPUs count against.
    pub(crate) family: Option<String>,
    /// Why the subscription cannot use it in the whole region.
    pub(crate) refused: Option<String>,
}

/// A quota: the limit and what is used.
pub(crate) type Quotas = BTreeMap<String, (u64, u64)>;

impl Compute {
    pub(crate) fn new(subscription: &str, tokens: Arc<Tokens>, transport: Transport) -> Result<Self> {
        let credential: Arc<dyn legacy::auth::TokenCredential> = Arc::new(LegacyCredential(tokens));
        let client = azure_mgmt_compute::package_2024_07_01::Client::builder(credential)
            .retry(legacy::RetryOptions::none())
            .transport(legacy::TransportOptions::new(Arc::new(transport)))
            .build()
            .map_err(|error| failed("set up", "the client of machines", &error))?;
        Ok(Self { client, subscription: subscription.to_owned() })
    }

    /// The sizes of a region that are among these.
    pub(crate) async fn offers(&self, region: &str, sizes: &[&str]) -> Result<BTreeMap<String, Offer>> {
        let list = self.client.resource_skus_client().list(&self.subscription);
        let mut pages = list.filter(format!("location eq '{region}'")).into_stream().take(MAX_PAGES);
        let mut found = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let ResourceSkusResult { value, .. } = page.map_err(|error| failed("list", "machine sizes", &error))?;
            for sku in value.iter().filter(|sku| sku.resource_type.as_deref() == Some("virtualMachines")) {
                let Some(name) = sku.name.as_deref().filter(|name| sizes.contains(name)) else { continue };
                found.insert(name.to_owned(), offer(region, sku));
            }
        }
        Ok(found)
    }

    /// The quotas of a region by the names of their families. Some of Azure's names have spaces around them (skypilot-org/skypilot#10119).
    pub(crate) async fn quotas(&self, region: &str) -> Result<Quotas> {
        let list = self.client.usage_client().list(region, &self.subscription);
        let mut pages = list.into_stream().take(MAX_PAGES);
        let mut found = Quotas::new();
        while let Some(page) = pages.next().await {
            for usage in page.map_err(|error| failed("list", "quotas", &error))?.value {
                let name = usage.name.value.unwrap_or_default().trim().to_owned();
                let amount = |number: i64| u64::try_from(number).unwrap_or_default();
                found.insert(name, (amount(usage.limit), amount(i64::from(usage.current_value))));
            }
        }
        Ok(found)
    }
}

/// The zones of a size without those that are closed to the subscription (Azure/AKS#5746).
fn offer(region: &str, sku: &ResourceSku) -> Offer {
    let is_here = |one: &Option<String>| one.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(region));
    let info = sku.location_info.iter().find(|one| is_here(&one.location));
    let mut zones = info.map(|one| one.zones.clone()).unwrap_or_default();
    let mut refused = None;
    for restriction in &sku.restrictions {
        let info = restriction.restriction_info.clone().unwrap_or_default();
        match restriction.type_ {
            Some(Type::Zone) => zones.retain(|zone| !info.zones.contains(zone)),
            _ => {
                let why = restriction.reason_code.as_ref().map(|code| format!("{code:?}"));
                refused = Some(why.unwrap_or_else(|| "no reason is given".to_owned()));
            }
        }
    }
    zones.sort();
    Offer { zones, family: sku.family.as_deref().map(|name| name.trim().to_owned()), refused }
}

fn failed(action: &str, subject: &str, error: &legacy::error::Error) -> Error {
    let kind = match error.kind() {
        legacy::error::ErrorKind::HttpResponse { status, .. } => {
            textnlp_cloud::errors::by_status(Some(u16::from(*status)))
        }
        legacy::error::ErrorKind::Credential => ErrorKind::Denied,
        legacy::error::ErrorKind::DataConversion => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let mut failed = Error::new(kind, action, subject).because(error_chain(error));
    if let legacy::error::ErrorKind::HttpResponse { error_code, .. } = error.kind() {
        failed.code.clone_from(error_code);
    }
    failed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn restrictions_close_zones_or_the_region() {
        let sku = |restrictions: serde_json::Value| -> ResourceSku {
            serde_json::from_value(json!({
                "resourceType": "virtualMachines", "name": "Standard_NC4as_T4_v3", "restrictions": restrictions,
                "locationInfo": [{ "location": "WestEurope", "zones": ["3", "1", "2"] }],
            }))
            .unwrap()
        };
        let closed = json!([{ "type": "Zone", "restrictionInfo": { "zones": ["2"] }, "reasonCode": "NotAvailableForSubscription" }]);
        assert_eq!(offer("westeurope", &sku(closed)).zones, ["1", "3"]);
        let none = json!([{ "type": "Location", "reasonCode": "NotAvailableForSubscription" }]);
        assert_eq!(offer("westeurope", &sku(none)).refused.as_deref(), Some("NotAvailableForSubscription"));
    }
}
