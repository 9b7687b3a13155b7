//! Azure Managed Redis: clusters and their databases.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, put, put_missing, text};
use super::kinds::{self, Answer, Call, KIND, Kind, Special, Style, parent};
use super::problem::{Problem, bad, conflict, missing};
use crate::{Behaviour, Source};

const CLUSTER: &str = "Microsoft.Cache/redisEnterprise";
const DATABASES: &str = "Microsoft.Cache/redisEnterprise/databases";
const VERSION: &str = "2025-07-01";
/// Where a database has its keys, which reads do not answer.
const KEYS: &str = "/$keys";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: CLUSTER,
        version: VERSION,
        models: [
            "redisenterprise.models Cluster",
            "redisenterprise.models ClusterUpdate",
            "redisenterprise.models Cluster",
            "redisenterprise.models ClusterList",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        seconds: [300, 120, 120],
        is_name: is_cluster_name,
        kept: &["/kind", "/properties/hostName", "/properties/redisVersion"],
        defaults: &[
            ("/kind", "\"v2\""),
            ("/properties/highAvailability", "\"Enabled\""),
            ("/properties/minimumTlsVersion", "\"1.2\""),
            ("/properties/privateEndpointConnections", "[]"),
            ("/properties/redisVersion", "\"7.4\""),
            ("/properties/resourceState", "\"Running\""),
        ],
        accept: accept_cluster,
        ..KIND
    },
    Kind {
        kind: DATABASES,
        version: VERSION,
        models: [
            "redisenterprise.models Database",
            "redisenterprise.models DatabaseUpdate",
            "redisenterprise.models Database",
            "redisenterprise.models DatabaseList",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        seconds: [120, 60, 60],
        tags: 0,
        is_name: |name| name == "default",
        kept: &[KEYS, "/properties/redisVersion"],
        defaults: &[
            ("/properties/accessKeysAuthentication", "\"Disabled\""),
            ("/properties/clientProtocol", "\"Encrypted\""),
            ("/properties/clusteringPolicy", "\"OSSCluster\""),
            ("/properties/deferUpgrade", "\"NotDeferred\""),
            ("/properties/evictionPolicy", "\"VolatileLRU\""),
            ("/properties/port", "10000"),
            ("/properties/redisVersion", "\"7.4\""),
            ("/properties/resourceState", "\"Running\""),
        ],
        fixed: &["/properties/clusteringPolicy", "/properties/port"],
        holds: parent,
        accept: accept_database,
        show: |_, _, body| {
            if let Some(members) = body.as_object_mut() {
                members.shift_remove("$keys");
            }
        },
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[
    Special {
        method: "POST",
        path: "Microsoft.Cache/redisEnterprise/databases/listKeys",
        version: VERSION,
        request: "",
        answer: "redisenterprise.models AccessKeys",
        handler: |cloud, call| {
            let database = cloud.objects.get(&call.key).ok_or_else(|| missing(call.id()))?;
            Ok(Answer::ok(database.body.pointer(KEYS).cloned().unwrap_or_default()))
        },
    },
    Special {
        method: "POST",
        path: "Microsoft.Cache/redisEnterprise/databases/regenerateKey",
        version: VERSION,
        request: "redisenterprise.models RegenerateKeyParameters",
        answer: "",
        handler: regenerate,
    },
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule("a cluster has one database, which is called default", Source::Report("Azure/bicep-types-az#1458")),
    rule(
        "names have 1 to 60 letters, digits and single inner hyphens",
        Source::Documentation(
            "https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftcache",
        ),
    ),
    rule(
        "a request for a cluster says whether it has public network access: 400 BadRequest",
        Source::Report("MicrosoftLearning/mslearn-azure-ai#200"),
    ),
    rule(
        "sizes of Azure Cache for Redis Enterprise are refused: 400 BadRequest",
        Source::Report("MicrosoftLearning/mslearn-azure-ai#200"),
    ),
    rule("access keys are disabled unless a request enables them", Source::Report("bsarkarlabs-stack/bff-demo#76")),
    rule("one writer a cluster and its database: 409 Conflict", Source::Report("Azure/bicep-types-az#1760")),
    rule("a failed creation leaves the cluster in Failed", Source::Report("Azure/azure-sdk-for-net#30766")),
    rule("the clustering policy of a database does not change", Source::Model),
    rule("a key is another one when its regeneration ends", Source::Model),
    rule(
        "a PUT of a cluster that is there changes nothing",
        Source::LeftOut("changes are PATCH: Azure/azure-service-operator#2009"),
    ),
    rule(
        "a region without capacity accepts a creation, and fails it minutes later with OperationFailed",
        Source::LeftOut("NVIDIA/OSMO#1167 tells no more than of any operation that fails"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Cache", what, source }
}

fn is_cluster_name(name: &str) -> bool {
    kinds::is_name(name, 1..=60, "-") && !name.contains("--") && !name.ends_with('-')
}

fn accept_cluster(_: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if text(body, "/properties/publicNetworkAccess").is_empty() {
        return Err(bad("BadRequest", "The property 'publicNetworkAccess' is required."));
    }
    if text(body, "/sku/name").starts_with("Enterprise") {
        let message = "Creation of new Azure Cache for Redis Enterprise resources is no longer supported.";
        return Err(bad("BadRequest", message));
    }
    let location = text(body, "/location").replace(' ', "").to_lowercase();
    let host = format!("{}.{location}.redis.azure.net", call.name().to_lowercase());
    put_missing(body, "/properties/hostName", host.into());
    let is_replicated = text(body, "/properties/highAvailability") != "Disabled";
    put(body, "/properties/redundancyMode", (if is_replicated { "ZR" } else { "None" }).into());
    Ok(())
}

fn accept_database(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let cluster = cloud.objects.get(&call.parent()).map(|one| text(&one.body, "/properties/provisioningState"));
    if before.is_none() && cluster != Some("Succeeded") {
        return Err(conflict("Conflict", "The cluster is not in a state in which a database can be created."));
    }
    if before.is_none() {
        let keys = json!({ "primaryKey": key(cloud), "secondaryKey": key(cloud) });
        put(body, KEYS, keys);
    }
    Ok(())
}

/// A key in the form of the service: Base64 with characters that have a meaning in addresses.
fn key(cloud: &Cloud) -> String {
    format!("{}+/{}=", cloud.random.hex(20), cloud.random.hex(21))
}

fn regenerate(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    if !cloud.objects.contains_key(&call.key) {
        return Err(missing(call.id()));
    }
    let holds = call.parent();
    if let Some(running) = cloud.running(&holds).cloned() {
        return Err(kinds::busy(cloud, call, &running));
    }
    let which = if call.body["keyType"] == "Secondary" { "secondaryKey" } else { "primaryKey" };
    cloud.set_state(&call.key, "Updating");
    let target = call.key.clone();
    let effect = move |cloud: &mut Cloud| {
        let fresh = key(cloud);
        if let Some(object) = cloud.objects.get_mut(&target) {
            put(&mut object.body, &format!("{KEYS}/{which}"), fresh.into());
        }
        cloud.set_state(&target, "Succeeded");
        Ok(())
    };
    let takes = Some(Duration::from_secs(30));
    let headers = kinds::start(cloud, call, Style::Both, &holds, false, takes, Box::new(effect));
    Ok(Answer { status: 202, body: Value::Null, headers })
}
