//! How many requests an observation of many objects takes.

use serde_json::json;
use textnlp_provider::{Lineage, Observed, Provider, Scope};
use textnlp_sim::gcp::Options;

use crate::{Bench, LINEAGE, run};

/// The most requests of an observation of two thousand objects of kinds that Google Cloud lists with their attributes and tags.
const MOST: usize = 120;
const RANGES: usize = 900;
/// More than a list may have pages, unless each has the most accounts.
const ACCOUNTS: usize = 1_100;

#[test]
fn two_thousand_objects_are_observed_in_few_requests() {
    run(async {
        let bench = Bench::new(Options::zero_latency().enabled(), false);
        let project = bench.cloud.project().to_owned();
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let text = |id: String| format!("textnlp l={lineage} e={} r={id}", bench.site.environment);
        {
            let mut world = bench.cloud.world();
            for n in 0..RANGES {
                let range = json!({
                    "name": format!("textnlp-range-{n}"), "description": text(format!("main/database/range-{n}")),
                    "purpose": "VPC_PEERING", "addressType": "INTERNAL", "prefixLength": 24, "status": "RESERVED",
                });
                world.put(&format!("compute/projects/{project}/global/addresses/textnlp-range-{n}"), range);
            }
            for n in 0..ACCOUNTS {
                let email = format!("textnlp-{n}@{project}.iam.gserviceaccount.com");
                let name = format!("projects/{project}/serviceAccounts/{email}");
                let description = text(format!("main/cluster/account-{n}"));
                world.put(&format!("iam/{name}"), json!({ "name": name, "email": email, "description": description }));
            }
        }
        let scope =
            Scope { lineage, environment: &bench.site.environment, site: &bench.site.name, wanted: &[], recorded: &[] };
        let before = bench.cloud.requests().len();
        let seen = bench.provider.observe(&scope).await.unwrap();
        let calls = bench.cloud.requests().len() - before;
        let present = seen.iter().filter(|(_, seen)| matches!(seen, Observed::Present(_))).count();
        println!("{calls} requests observe {present} objects");
        assert_eq!(present, RANGES + ACCOUNTS);
        assert!(calls <= MOST, "{calls} requests");
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}
