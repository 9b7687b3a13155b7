//! How many requests an observation of many objects takes.

use serde_json::json;
use textnlp_provider::{Lineage, Observed, Provider, Scope};
use textnlp_sim::azure::Options;

use crate::{Bench, LINEAGE, REGION, run};

/// The most requests of an observation besides one for each object: no list of Azure that has the objects of all kinds has their
/// attributes.
const MOST: usize = 120;
const IDENTITIES: usize = 2_000;

#[test]
fn two_thousand_objects_are_observed_by_few_lists_and_one_read_each() {
    run(async {
        let bench = Bench::new(Options::zero_latency().registered(), false);
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let group = format!("/subscriptions/{}/resourceGroups/textnlp-staging-main", bench.cloud.subscription());
        {
            let mut world = bench.cloud.world();
            let body = json!({
                "id": group, "name": "textnlp-staging-main", "type": "Microsoft.Resources/resourceGroups", "location": REGION,
                "properties": { "provisioningState": "Succeeded" },
            });
            world.put(&group, body);
            for n in 0..IDENTITIES {
                let kind = "Microsoft.ManagedIdentity/userAssignedIdentities";
                let id = format!("{group}/providers/{kind}/identity-{n}");
                let tags = json!({
                    "textnlp-lineage": lineage.to_string(), "textnlp-environment": bench.site.environment,
                    "textnlp-resource": format!("main/cluster/identity-{n}"),
                });
                let unique = uuid::Uuid::from_u128(n as u128).to_string();
                let body = json!({
                    "id": id, "name": format!("identity-{n}"), "type": kind, "location": REGION, "tags": tags,
                    "properties": { "tenantId": unique, "principalId": unique, "clientId": unique },
                });
                world.put(&id, body);
            }
        }
        let scope =
            Scope { lineage, environment: &bench.site.environment, site: &bench.site.name, wanted: &[], recorded: &[] };
        let before = bench.cloud.requests().len();
        let seen = bench.provider.observe(&scope).await.unwrap();
        let calls = bench.cloud.requests().len() - before;
        let present = seen.iter().filter(|(_, seen)| matches!(seen, Observed::Present(_))).count();
        println!("{calls} requests observe {present} objects");
        assert_eq!(present, IDENTITIES);
        assert!(calls <= IDENTITIES + MOST, "{calls} requests");
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}
