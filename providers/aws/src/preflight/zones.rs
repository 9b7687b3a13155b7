//! Existing DNS zones.

use std::collections::BTreeMap;

use textnlp_provider::{Problem, Wanted};

use super::unknown;
use crate::api::Api;

/// Checks that each zone exists, has the names of its records, and answers clients on the internet.
pub(super) async fn zones(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut names: BTreeMap<&str, Vec<(&Wanted, &str)>> = BTreeMap::new();
    for one in wanted.iter().filter(|one| one.kind.as_str() == "aws.dns-record") {
        let text = |field: &str| one.spec.get(field).and_then(|value| value.as_str()).unwrap_or_default();
        names.entry(text("zone")).or_default().push((one, text("name")));
    }
    let mut problems = Vec::new();
    for (id, records) in names {
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
        let domain = zone.name.trim_end_matches('.').to_ascii_lowercase();
        for (one, name) in records {
            let is_inside = name == domain || name.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'));
            if !is_inside {
                let cause = format!("`{name}` is not in the zone `{domain}`");
                problems.push(Problem::new(one.id.to_string(), cause, "set the id of the zone that has the name"));
            }
        }
        if zone.config.is_some_and(|config| config.private_zone) {
            let fix = "set the id of a public zone if clients are elsewhere";
            problems.push(Problem::warning(place, "it answers inside of its VPCs only", fix));
        }
    }
    problems
}
