//! Weighted record sets that several sites share: <https://cloud.google.com/dns/docs/routing-policies-overview>. Pure.
//!
//! An item has no name: the text of its site in the TXT record has its address.

use serde_json::{Value, json};
use textnlp_cloud::dns_owner;
use textnlp_cloud::tags::{self, LINEAGE, RESOURCE, Tags};

use crate::api::Api;

/// The start of the address of a health check: <https://cloud.google.com/dns/docs/reference/rest/v1/resourceRecordSets>.
const COMPUTE: &str = "https://www.googleapis.com/compute/v1/";
/// The member of an item that only Cloud DNS writes.
const SIGNATURES: &str = "signatureRrdatas";

/// A site that shares a record set: its text in the TXT record.
pub(super) struct Share {
    pub(super) text: String,
    pub(super) tags: Tags,
    pub(super) address: String,
}

impl Share {
    /// The share that a text states; `None` for a text of others, or of a record of one site.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (tags, address) = (dns_owner::tags::<Api>(text)?, dns_owner::address(text)?);
        Some(Self { text: text.to_owned(), tags, address })
    }

    pub(super) fn is_of(&self, site: &str) -> bool {
        tags::resource(&self.tags).is_some_and(|resource| resource.site() == site)
    }
}

/// Whether a text is that of the resource with these tags.
pub(super) fn is_own(text: &str, tags: &Tags) -> bool {
    dns_owner::tags::<Api>(text)
        .is_some_and(|found| [LINEAGE, RESOURCE].iter().all(|key| found.get(*key) == tags.get(*key)))
}

/// The items of a weighted record set; `None` for another record.
pub(super) fn items(record: &Value) -> Option<&Vec<Value>> {
    record["routingPolicy"]["wrr"]["items"].as_array()
}

fn checked(item: &Value) -> impl Iterator<Item = &Value> {
    item["healthCheckedTargets"]["externalEndpoints"].as_array().into_iter().flatten()
}

/// Whether a health check decides about an item.
pub(super) fn is_checked(item: &Value) -> bool {
    checked(item).next().is_some()
}

/// Whether an item has this address and no other.
pub(super) fn is_at(item: &Value, address: &str) -> bool {
    let mut all = checked(item).chain(item["rrdatas"].as_array().into_iter().flatten());
    all.next().is_some_and(|first| first == address) && all.next().is_none()
}

/// The item of a site.
pub(super) fn item(weight: &Value, address: &str) -> Value {
    json!({ "weight": weight, "healthCheckedTargets": { "externalEndpoints": [address] } })
}

/// An item of another site, as a change takes it.
pub(super) fn kept(item: &Value) -> Value {
    let mut item = item.clone();
    if let Some(members) = item.as_object_mut() {
        members.retain(|name, _| name != SIGNATURES);
    }
    item
}

/// The address of a health check.
pub(super) fn check(id: Option<&str>) -> Option<Value> {
    id.map(|id| format!("{COMPUTE}{id}").into())
}

/// A weighted record set.
pub(super) fn set(name: &str, kind: &str, ttl: &Value, check: &Value, items: Vec<Value>) -> Value {
    let policy = json!({ "healthCheck": check, "wrr": { "items": items } });
    json!({ "name": name, "type": kind, "ttl": ttl, "routingPolicy": policy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GoogleCloudPlatform/k8s-config-connector#9395 has answers.
    #[test]
    fn items_are_known_by_their_addresses() {
        let own = item(&json!(100), "192.0.2.1");
        let answered = json!({
            "kind": "dns#rRSetRoutingPolicyWrrPolicyWrrPolicyItem", "weight": 100.0, "rrdatas": [], "signatureRrdatas": [],
            "healthCheckedTargets": { "externalEndpoints": ["192.0.2.1"], "internalLoadBalancers": [] },
        });
        let unchecked = json!({ "weight": 1, "rrdatas": ["192.0.2.1"] });
        let both = json!({ "weight": 1, "rrdatas": ["192.0.2.1", "192.0.2.2"] });
        for (found, is_found, is_probed) in
            [(&own, true, true), (&answered, true, true), (&unchecked, true, false), (&both, false, false)]
        {
            assert_eq!((is_at(found, "192.0.2.1"), is_checked(found)), (is_found, is_probed), "{found}");
        }
        assert!(!is_at(&json!({ "weight": 1 }), "192.0.2.1"));
        let kept = kept(&answered);
        assert!(kept.get(SIGNATURES).is_none() && kept["weight"] == answered["weight"]);
        let set =
            set("a.", "A", &json!(60), &check(Some("projects/p/global/healthChecks/c")).unwrap(), vec![own.clone()]);
        assert_eq!(items(&set), Some(&vec![own]));
        assert_eq!(set["routingPolicy"]["healthCheck"], format!("{COMPUTE}projects/p/global/healthChecks/c"));
    }
}
