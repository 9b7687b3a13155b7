//! Versions of PostgreSQL that RDS does not have.

use std::collections::BTreeSet;

use aws_sdk_rds::types::DbEngineVersion;
use serde_json::Value;
use textnlp_cloud::region_of;
use textnlp_provider::{Ownership, Problem, Wanted};

use super::unknown;
use crate::api::Api;

const SERVICE: &str = "rds";
const PLACE: &str = "the versions of PostgreSQL";

/// New servers of a major version that RDS does not have. A replica has that of its source, also in another region.
pub(super) async fn databases(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let is_server = |one: &&Wanted| {
        let is_replica = one.spec.get("source").is_some_and(|source| !source.is_null());
        one.kind.as_str() == "aws.db-instance"
            && one.ownership == Ownership::Ours
            && !is_replica
            && region_of(&one.spec).is_none()
    };
    let servers: Vec<&Wanted> = wanted.iter().filter(is_server).collect();
    if servers.is_empty() {
        return Vec::new();
    }
    let pages = api.rds.describe_db_engine_versions().engine("postgres").into_paginator().items().send();
    let offered: Vec<DbEngineVersion> = match api.call(SERVICE, "list", PLACE, pages.try_collect()).await {
        Ok(offered) => offered,
        Err(error) => return vec![unknown(PLACE, &error)],
    };
    let majors: BTreeSet<&str> =
        offered.iter().filter_map(|one| one.engine_version.as_deref()?.split('.').next()).collect();
    let mut problems = Vec::new();
    for one in servers {
        let text = |field: &str| one.spec.get(field).and_then(Value::as_str);
        let (Some(name), Some(version)) = (text("name"), text("version")) else { continue };
        if majors.is_empty() || majors.contains(version) {
            continue;
        }
        // One that is there keeps a version that RDS does not offer any more.
        let call = api.rds.describe_db_instances().db_instance_identifier(name).send();
        match api.find(SERVICE, name, call).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                let known = majors.iter().copied().collect::<Vec<_>>().join(", ");
                let cause = format!("RDS has no PostgreSQL {version} in {}", api.region);
                problems.push(Problem::new(
                    one.id.to_string(),
                    cause,
                    format!("set `database.version` to one of {known}"),
                ));
            }
            Err(error) => problems.push(unknown(one.id.as_str(), &error)),
        }
    }
    problems
}
