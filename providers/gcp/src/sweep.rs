//! The search for what a deployment left behind: everything that carries its lineage in the project and region, and the disks of its
//! clusters' volumes, which end with no cluster (Smana/cloud-native-ref#1861).

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use serde_json::Value;
use textnlp_cloud::{Cloud, Filter, State, region_of, sweep, tags};
use textnlp_provider::{Leftover, Leftovers, Result, Sweep, error_chain};

use crate::api::Api;
use crate::kinds::budgets::BUDGET;
use crate::kinds::health_check::HEALTH_CHECK;
use crate::row::relative;
use crate::service::Service;
use crate::table::{self, Row};

/// Kinds that are listed at the same time.
const AT_ONCE: usize = 8;
/// The kind of rings, which never end.
const RING: &str = "gcp.key-ring";
/// The kind of keys, whose names never end.
const KEY: &str = "gcp.key";

/// Searches all regions that the deployment used: in others than that of the site for the kinds that it had there, because some are
/// locations of Cloud KMS only. A kind that cannot be listed is named, and the others are searched.
pub(crate) async fn leftovers(api: &Arc<Api>, wanted: &Sweep<'_>) -> Result<Leftovers> {
    let recorded = || wanted.before.iter().chain(wanted.kept).filter(|one| table::row(&one.kind).is_some());
    let elsewhere: BTreeSet<(&str, &str)> =
        recorded().filter_map(|one| Some((region_of(&one.spec)?, one.kind.as_str()))).collect();
    let mut regions: BTreeSet<&str> = elsewhere.iter().map(|(region, _)| *region).collect();
    regions.insert(&api.region);
    let kept: BTreeSet<(&str, &str)> =
        wanted.kept.iter().map(|one| (one.kind.as_str(), one.cloud_id.as_str())).collect();
    let filter = Filter::<Api>::of(wanted.lineage);
    let mut all = Leftovers::default();
    for region in regions {
        let there = api.in_region(region);
        let place = format!("gcp {} {region}", api.project());
        let is_there = |row: &Row| region == api.region || elsewhere.contains(&(region, row.kind.name));
        let rows = table::rows().filter(|row| row.resource.carries_tags() && is_there(row));
        let lists: Vec<_> = rows.map(|row| list(&there, row, &filter)).collect();
        let lists: Vec<_> = futures::stream::iter(lists).buffer_unordered(AT_ONCE).collect().await;
        for (row, listed) in lists {
            let kind = row.kind.name;
            let listed = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    all.unsearched.insert(Leftover { id: format!("{place} {kind}"), what: error_chain(&error) });
                    continue;
                }
            };
            for seen in listed {
                if kept.contains(&(kind, seen.id.as_str())) || tags::lineage(&seen.tags) != Some(wanted.lineage) {
                    continue;
                }
                let (is_expected, what) = match (&seen.state, kind) {
                    (State::Gone, KEY) => (true, "KMS destroys its versions at the end of their waiting period"),
                    (State::Gone, _) => continue,
                    (State::Deleting, _) => (true, "Google Cloud is deleting it"),
                    _ => (false, row.kind.says),
                };
                let found = Leftover { id: seen.id.clone(), what: what.to_owned() };
                if is_expected {
                    all.expected.insert(found)
                } else {
                    all.left.insert(found)
                };
            }
        }
        all.searched.insert(place);
    }
    for ring in wanted.before.iter().filter(|one| one.kind.as_str() == RING) {
        let what = "KMS keeps rings for ever, and they cost nothing".to_owned();
        all.expected.insert(Leftover { id: ring.cloud_id.to_string(), what });
    }
    // Those of another project than that of the site are in no list.
    for one in wanted.before.iter().filter(|one| [BUDGET, HEALTH_CHECK].contains(&one.kind.as_str())) {
        let id = one.cloud_id.as_str();
        let Some(row) = table::row(&one.kind).filter(|_| !kept.contains(&(one.kind.as_str(), id))) else { continue };
        sweep::by_id(&mut all, api.as_ref(), row, id, wanted.lineage).await;
    }
    let clusters = wanted.before.iter().filter(|one| one.kind.as_str() == table::CLUSTER);
    for cluster in clusters.filter(|one| !kept.contains(&(one.kind.as_str(), one.cloud_id.as_str()))) {
        let name = textnlp_cloud::document::last(cluster.cloud_id.as_str());
        let query = [("filter", format!("labels.goog-k8s-cluster-name={name}"))];
        match api.list(Service::Compute, &api.path("projects/{project}/aggregated/disks"), "items", &query).await {
            Ok(disks) => all.left.extend(disks.iter().filter_map(disk)),
            Err(error) => {
                all.unsearched.insert(Leftover { id: format!("disks of {name}"), what: error_chain(&error) });
            }
        }
    }
    Ok(all)
}

async fn list(
    api: &Arc<Api>,
    row: &'static Row,
    filter: &Filter<Api>,
) -> (&'static Row, Result<Vec<textnlp_cloud::ObservedObject<textnlp_provider::Spec>>>) {
    (row, row.resource.list(api, filter).await)
}

fn disk(disk: &Value) -> Option<Leftover> {
    let id = relative(disk["selfLink"].as_str()?).to_owned();
    Some(Leftover {
        id,
        what: "the disk of a volume of the removed cluster: delete it if nothing needs its data".to_owned(),
    })
}
