//! The search for what a deployment left behind: everything that carries its lineage in the subscription. AKS deletes the group of its
//! nodes with the cluster, with its load balancers and volumes; a group that stays is found by the name that the cluster gave it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use textnlp_cloud::{Filter, State, sweep};
use textnlp_provider::{Leftover, Leftovers, Result, Sweep, error_chain};

use crate::api::{Api, Call, RESOURCES};
use crate::kinds::budgets::BUDGET;
use crate::table::{self, CLUSTER};

/// The kind whose objects stay recoverable.
const VAULT: &str = "azure.vault";

/// Searches the subscription. A part that cannot be searched is named.
pub(crate) async fn leftovers(api: &Arc<Api>, wanted: &Sweep<'_>) -> Result<Leftovers> {
    let kept: BTreeSet<String> = wanted.kept.iter().map(|one| one.cloud_id.as_str().to_ascii_lowercase()).collect();
    let is_kept = |id: &str| kept.contains(&id.to_ascii_lowercase());
    let mut all = Leftovers::default();
    let place = format!("azure {}", api.subscription());
    let filter = Filter::<Api>::of(wanted.lineage);
    for row in table::rows() {
        match row.resource.list(api, &filter).await {
            Ok(listed) => {
                for seen in listed.into_iter().filter(|seen| !is_kept(&seen.id)) {
                    let found = Leftover { id: seen.id, what: row.kind.says.to_owned() };
                    match seen.state {
                        State::Deleting => {
                            all.expected.insert(Leftover { what: "Azure is deleting it".to_owned(), ..found })
                        }
                        _ => all.left.insert(found),
                    };
                }
            }
            Err(error) => {
                let id = format!("{place} {}", row.kind.name);
                all.unsearched.insert(Leftover { id, what: error_chain(&error) });
            }
        }
    }
    all.searched.insert(place);
    for cluster in wanted.before.iter().filter(|one| one.kind.as_str() == CLUSTER && !is_kept(one.cloud_id.as_str())) {
        let Some(group) = cluster.spec.get("node_group").and_then(Value::as_str) else { continue };
        let id = api.of_subscription(&format!("/resourceGroups/{group}"));
        match api.find(Call::get(id.clone(), RESOURCES)).await {
            Ok(Some(_)) => {
                let what =
                    "the group of a removed cluster's nodes: delete it if nothing needs what is in it".to_owned();
                all.left.insert(Leftover { id, what });
            }
            Ok(None) => {}
            Err(error) => {
                all.unsearched.insert(Leftover { id, what: error_chain(&error) });
            }
        }
    }
    for budget in wanted.before.iter().filter(|one| one.kind.as_str() == BUDGET && !is_kept(one.cloud_id.as_str())) {
        let Some(row) = table::row(&budget.kind) else { continue };
        sweep::by_id(&mut all, api.as_ref(), row, budget.cloud_id.as_str(), wanted.lineage).await;
    }
    for vault in wanted.before.iter().filter(|one| one.kind.as_str() == VAULT && !is_kept(one.cloud_id.as_str())) {
        let days = vault.spec.get("soft_delete_days").and_then(Value::as_u64).unwrap_or_default();
        let what = format!("Azure keeps the deleted vault for {days} days, and purges it then");
        all.expected.insert(Leftover { id: vault.cloud_id.to_string(), what });
    }
    Ok(all)
}
