//! Existing DNS zones.

use textnlp_cloud::preflight::{by_zone, outside};
use textnlp_provider::{Problem, Wanted};

use super::unknown;
use crate::api::Api;

/// Checks that each zone exists, has the names of its records, and answers clients on the internet.
pub(super) async fn zones(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (id, records) in by_zone(wanted, "aws.dns-record") {
        let place = format!("zone {id}");
        let call = api.route53.get_hosted_zone().id(id).send();
        let zone = match api.find("route53", &place, call).await {
            Ok(answer) => answer.and_then(|answer| answer.hosted_zone),
            Err(error) => {
                problems.push(unknown(&place, &error));
                continue;
            }
        };
        let Some(zone) = zone else {
            let fix = "set `traffic.existing` to the id of a zone: `aws route53 list-hosted-zones`";
            problems.push(Problem::new(place, "there is no such zone in the account", fix));
            continue;
        };
        problems.extend(outside(&records, &zone.name));
        if zone.config.is_some_and(|config| config.private_zone) {
            let fix = "set the id of a public zone if clients are elsewhere";
            problems.push(Problem::warning(place, "it answers inside of its VPCs only", fix));
        }
    }
    problems
}
