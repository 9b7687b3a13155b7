//! What would make a plan fail, found by reads: the subscription, permissions, resource providers, policies, quotas, machine sizes, names,
//! locks, address ranges, existing networks, DNS zones and budgets. Everything is asked at once, and all problems are in one report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_cloud::preflight::{Check, LIMIT, Need, PoolNeed, PoolSettings, by_zone, is_new, names, run, unknown};
use textnlp_cloud::{Range, machine_names};
use textnlp_provider::{EnvironmentName, ErrorKind, Ownership, PolicyRequest, PolicyResource, Problem, Verb, Wanted};

use crate::api::{Api, Call, RESOURCES, SUBSCRIPTIONS, tags_at};
use crate::compute::Offer;
use crate::kinds::budgets::{self, BUDGET};
use crate::kinds::cluster::SPOT;
use crate::kinds::machine_learning::{self, DEPLOYMENT};
use crate::kinds::network::{DATABASES, NETWORK};
use crate::kinds::{database, dns};
use crate::row::LOCATION;
use crate::tables::machines::{self, ALL, ALL_SPOT, Machine, ServingSize};
use crate::{policy, restrictions};

/// The API versions of locks and of permissions.
const LOCKS: &str = "2020-05-01";
const PERMISSIONS: &str = "2022-04-01";
/// Azure's own DNS server, to which others forward what is in private zones
/// (<https://learn.microsoft.com/azure/dns/private-dns-overview>).
const AZURE_DNS: &str = "168.63.129.16";
/// The addresses of a subnet that Azure keeps: <https://learn.microsoft.com/azure/virtual-network/virtual-networks-faq>.
const RESERVED: u64 = 5;
/// An upgrade adds a node for each of these, and at least one: AKS's default of 10 %
/// (<https://learn.microsoft.com/azure/aks/upgrade-aks-node-pools-rolling>).
const SURGE_OF: u64 = 10;
/// The codes of an answer for a region that does not exist, or that has none of a type
/// (<https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors>;
/// Azure/azure-sdk-for-python#21283, Azure/azure-cli#2003).
const NO_REGION: [&str; 2] = ["LocationNotAvailableForResourceType", "NoRegisteredProviderFound"];
/// What an operator does about a quota.
const RAISE: &str = "raise it: portal, Subscriptions > Usage + quotas; a new subscription has no GPUs until then";
const RAISE_SERVING: &str = "raise it: portal, Quotas > Machine learning; a new subscription has no GPUs until then";
/// The types of the quotas of Azure Machine Learning: of a family of machines, and of all machines in a region. Those of workspaces have
/// the same names (<https://learn.microsoft.com/rest/api/azureml/usages/list>).
const OF_FAMILIES: &str = "Microsoft.MachineLearningServices/vmFamily/usages";
const OF_REGION: &str = "Microsoft.MachineLearningServices/dedicatedCores/usages";
/// The checks of names that are unique in all of Azure: the kind, the path, the API version, the type, and the member with its name.
const GLOBAL: [(&str, &str, &str, &str); 3] = [
    (
        "azure.storage",
        "/providers/Microsoft.Storage/checkNameAvailability",
        "2024-01-01",
        "Microsoft.Storage/storageAccounts",
    ),
    (
        "azure.registry",
        "/providers/Microsoft.ContainerRegistry/checkNameAvailability",
        "2023-07-01",
        "Microsoft.ContainerRegistry/registries",
    ),
    // A creation tells it only after minutes (crossplane-contrib/provider-azure#300).
    (
        "azure.database-server",
        "/providers/Microsoft.DBforPostgreSQL/checkNameAvailability",
        database::VERSION,
        "Microsoft.DBforPostgreSQL/flexibleServers",
    ),
];

/// Checks the wanted resources of a site.
pub(crate) async fn preflight(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let checks: Vec<Check<'_>> = vec![
        ("the subscription", subscription(api).boxed()),
        ("the permissions", permissions(api, wanted).boxed()),
        ("the resource providers", providers(api, wanted).boxed()),
        ("the policies", restrictions::denials(api, wanted).boxed()),
        ("the names", names(api, wanted).boxed()),
        ("the global names", taken(api, wanted).boxed()),
        ("the machine sizes and quotas", machines(api, wanted).boxed()),
        ("the quota of Azure Machine Learning", serving(api, wanted).boxed()),
        ("the region of the replica", replicas(api, wanted).boxed()),
        ("the locks", locks(api, wanted).boxed()),
        ("the address ranges", overlaps(api, wanted).boxed()),
        ("the existing network", existing_network(api, wanted).boxed()),
        ("the DNS zones", zones(api, wanted).boxed()),
        ("the budgets", budgets(api, wanted).boxed()),
    ];
    let mut problems = run(checks, LIMIT).await;
    problems.extend(open(wanted));
    problems
}

fn of_kind<'w>(wanted: &'w [Wanted], kind: &'static str) -> impl Iterator<Item = &'w Wanted> {
    wanted.iter().filter(move |one| one.kind.as_str() == kind && one.ownership == Ownership::Ours)
}

fn text<'w>(one: &'w Wanted, field: &str) -> &'w str {
    one.spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// API servers that every network reaches.
fn open(wanted: &[Wanted]) -> Vec<Problem> {
    let is_open = |one: &&Wanted| one.spec.get("allow_from").is_none_or(Value::is_null);
    let warning = |one: &Wanted| {
        let fix = "set `cluster.allow_from` to the networks that you deploy from";
        Problem::warning(one.id.to_string(), "every network reaches the API server of the cluster", fix)
    };
    of_kind(wanted, crate::table::CLUSTER).filter(is_open).map(warning).collect()
}

async fn subscription(api: &Api) -> Vec<Problem> {
    let place = format!("subscription {}", api.subscription());
    let fix = "enable it: portal, Subscriptions; or name another one in `sites[].account`";
    match api.find(Call::get(api.of_subscription(""), SUBSCRIPTIONS)).await {
        Ok(Some(found)) => match found["state"].as_str() {
            Some("Enabled") | None => Vec::new(),
            // The grace period of a subscription: what exists runs, and new objects are refused later.
            Some("PastDue") => vec![Problem::warning(place, "its payment is past due", fix)],
            Some(state) => vec![Problem::new(place, format!("its state is {state}"), fix)],
        },
        Ok(None) => vec![Problem::new(
            place,
            "there is no such subscription",
            "set `sites[].account` to a subscription that you can read",
        )],
        Err(error) => vec![unknown(&place, &error)],
    }
}

/// Asks for the actions that the plan needs at the subscription. A role on a single object may allow what is missing there.
async fn permissions(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let Some(request) = request(wanted) else { return Vec::new() };
    let path = api.of_subscription("/providers/Microsoft.Authorization/permissions");
    let held = match api.list(Call::get(path, PERMISSIONS)).await {
        Ok(held) => held,
        Err(error) => return vec![unknown("the permissions", &error)],
    };
    let missing: Vec<String> = policy::actions(&request).into_iter().filter(|action| !is_held(&held, action)).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let identity = &api.session.identity;
    let who = if identity.name.is_empty() { "the identity that is signed in" } else { identity.name.as_str() };
    let cause = format!("{who} does not have in the subscription: {}", missing.join(", "));
    let fix = "`textnlp-deploy plan --policy` prints the role that this plan needs";
    vec![Problem::warning("permissions", cause, fix)]
}

/// Whether one of the roles allows an action: patterns have `*`, and a role takes its own exceptions out.
fn is_held(held: &[Value], action: &str) -> bool {
    let action = action.to_ascii_lowercase();
    let lists = |role: &Value, member: &str| {
        let patterns = role[member].as_array().into_iter().flatten().filter_map(Value::as_str);
        patterns.into_iter().any(|pattern| textnlp_cloud::errors::matches(&pattern.to_ascii_lowercase(), &action))
    };
    held.iter().any(|role| lists(role, "actions") && !lists(role, "notActions"))
}

/// The request for the permissions to create, change and delete all of these.
fn request(wanted: &[Wanted]) -> Option<PolicyRequest> {
    let resource = |wanted: &Wanted| PolicyResource {
        id: wanted.id.clone(),
        cloud_id: None,
        kind: wanted.kind.clone(),
        spec: wanted.spec.clone(),
        // An existing object is only read.
        verbs: match wanted.ownership {
            Ownership::Ours => BTreeSet::from([Verb::Create, Verb::Update, Verb::Delete]),
            Ownership::External(_) => BTreeSet::new(),
        },
    };
    Some(PolicyRequest {
        lineage: None,
        environment: EnvironmentName::new("any").ok()?,
        site: wanted.first()?.site.clone(),
        resources: wanted.iter().map(resource).collect(),
    })
}

/// Resource providers that this plan uses and does not register.
async fn providers(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let registered: BTreeSet<&str> = of_kind(wanted, "azure.provider").map(|one| text(one, "name")).collect();
    let used = wanted.iter().filter_map(|one| crate::table::row(&one.kind)).map(|row| row.service);
    let built_in = ["Microsoft.Resources", "Microsoft.Authorization"];
    let used: BTreeSet<&str> = used.filter(|name| !registered.contains(name) && !built_in.contains(name)).collect();
    let mut problems = Vec::new();
    for name in used {
        match api.find(Call::get(api.of_subscription(&format!("/providers/{name}")), RESOURCES)).await {
            Ok(Some(found)) if found["registrationState"] != "Registered" => {
                let fix = format!("`az provider register --namespace {name}`");
                problems.push(Problem::new(name, "the subscription has not registered this resource provider", fix));
            }
            Ok(_) => {}
            Err(error) => problems.push(unknown(name, &error)),
        }
    }
    problems
}

/// Names that another customer of Azure has, and names of deleted vaults.
async fn taken(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (kind, path, version, arm) in GLOBAL {
        for one in of_kind(wanted, kind) {
            let name = text(one, "name");
            let id = format!("{}/providers/{arm}/{name}", text(one, "group"));
            // An account that exists is judged by its tags.
            match api.find(Call::get(id, version)).await {
                Ok(None) => {}
                Ok(Some(_)) => continue,
                Err(error) => {
                    problems.push(unknown(one.id.as_str(), &error));
                    continue;
                }
            }
            let call = Call::new(Method::POST, api.of_subscription(path), version)
                .body(json!({ "name": name, "type": arm }))
                .saying("check", format!("the name {name}"));
            match api.send(call).await {
                Ok(reply) if reply.body["nameAvailable"] == false => {
                    let cause = format!("the name `{name}` is taken in all of Azure");
                    let fix = "give the environment or the site another name; a name of your own is free some time after its deletion";
                    problems.push(Problem::new(one.id.to_string(), cause, fix));
                }
                Ok(_) => {}
                Err(error) if crate::api::is_unregistered(&error) => {}
                Err(error) => problems.push(unknown(one.id.as_str(), &error)),
            }
        }
    }
    problems.extend(deleted(api, wanted).await);
    problems
}

/// Deleted vaults of the site: they cost nothing, and their names are not used again.
async fn deleted(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in of_kind(wanted, "azure.vault") {
        let path = api.of_subscription("/providers/Microsoft.KeyVault/deletedVaults");
        match api.list(Call::get(path, "2023-07-01")).await {
            Ok(all) => {
                let is_own =
                    |found: &&Value| found["name"].as_str().is_some_and(|name| name.starts_with(text(one, "name")));
                problems.extend(all.iter().find(is_own).map(|found| {
                    let name = found["name"].as_str().unwrap_or_default();
                    let cause = format!("the deleted vault `{name}` of this site can still be recovered");
                    Problem::note(one.id.to_string(), cause, "no action is needed: the new vault has another name")
                }));
            }
            Err(error) => problems.push(unknown(one.id.as_str(), &error)),
        }
    }
    problems
}

/// The machines that a resource asks for at first.
struct Pool<'w> {
    place: String,
    settings: PoolSettings,
    machine: &'static Machine,
    count: u64,
    /// How many its autoscaler may add.
    more: u64,
    is_spot: bool,
    has_one_market: bool,
    /// Whether no other machine is tried where this one lacks.
    has_one_machine: bool,
    zones: Vec<&'w str>,
}

fn pools(wanted: &[Wanted]) -> Vec<Pool<'_>> {
    let list =
        |one: &'_ Wanted, field: &str| one.spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let system = of_kind(wanted, crate::table::CLUSTER).filter_map(|one| {
        let count = one.spec.get("count")?.as_u64()?;
        let machine = machines::named(text(one, "machine"))?;
        Some(Pool {
            place: one.id.to_string(),
            settings: PoolSettings::Fixed,
            machine,
            count,
            more: 0,
            is_spot: false,
            has_one_market: true,
            has_one_machine: true,
            zones: Vec::new(),
        })
    });
    let pools = of_kind(wanted, "azure.pool").filter_map(|one| {
        let markets = list(one, "markets");
        let scaling = |bound: &str| one.spec.get("scaling")?[bound].as_u64();
        let zones = one.spec.get("zones").and_then(Value::as_array).into_iter().flatten();
        let names = machine_names(one.spec.get("machine"));
        Some(Pool {
            place: one.id.to_string(),
            settings: PoolSettings::of_part(&one.id),
            // Another one is tried where it lacks, so that its quota refuses nothing.
            machine: machines::named(names.first()?)?,
            count: scaling("min")?,
            more: scaling("max")?.saturating_sub(scaling("min")?),
            is_spot: markets.first().is_some_and(|market| market == SPOT),
            has_one_market: markets.len() < 2 && names.len() < 2,
            has_one_machine: names.len() < 2,
            zones: zones.filter_map(Value::as_str).collect(),
        })
    });
    system.chain(pools).collect()
}

/// Sizes, their zones, and the quotas of their families: two counters of a region, and one for all spot machines
/// (MicrosoftDocs/azure-docs#62378, kubernetes/autoscaler#2607).
async fn machines(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let pools = pools(wanted);
    if pools.is_empty() {
        return Vec::new();
    }
    let sizes: Vec<&str> = pools.iter().map(|pool| pool.machine.name).collect();
    let (compute, who) = (&api.session.compute, &api.session.identity.name);
    let (offers, quotas, is_new) = futures::join!(
        compute.offers(&api.region, &sizes),
        compute.quotas(&api.region),
        is_new(api, wanted, crate::table::CLUSTER)
    );
    let mut problems = Vec::new();
    let offers = offers.unwrap_or_else(|error| {
        problems.push(unknown("the machine sizes", &error.signed_in_as(who)));
        BTreeMap::new()
    });
    problems.extend(pools.iter().filter_map(|pool| offered(&api.region, pool, &offers)));
    match quotas {
        Ok(quotas) => {
            for (name, need) in needs(&pools, &offers) {
                // A quota that is not listed is not known (skypilot-org/skypilot#10119).
                let Some((limit, used)) = quotas.get(&name) else { continue };
                problems.extend(need.check(&format!("the quota `{name}`"), " vCPUs", *limit, *used, RAISE, is_new));
            }
        }
        Err(error) if error.code.as_deref().is_some_and(|code| NO_REGION.contains(&code)) => {
            let cause = format!("Azure has no virtual machines in `{}` for this subscription", api.region);
            let fix = "check the region's name with `az account list-locations`";
            problems.push(Problem::new("the region", cause, fix));
        }
        Err(error) => problems.push(unknown("the quotas", &error.signed_in_as(who))),
    }
    problems
}

fn offered(region: &str, pool: &Pool<'_>, offers: &BTreeMap<String, Offer>) -> Option<Problem> {
    let name = pool.machine.name;
    let fix = "choose another `gpu.size`, or another region";
    let lacking = |cause: String, fix: &str| match pool.has_one_machine {
        true => Problem::new(pool.place.clone(), cause, fix),
        false => Problem::warning(pool.place.clone(), cause, "the next one of `gpu.machines` is tried"),
    };
    let Some(offer) = offers.get(name) else {
        let is_listed = !offers.is_empty();
        let cause = format!("Azure lists no {name} in {region}");
        return is_listed.then(|| lacking(cause, fix));
    };
    if let Some(why) = &offer.refused {
        let cause = format!("{region} does not offer {name} to this subscription: {why}");
        return Some(lacking(cause, "choose another region, or ask Azure's support for the size"));
    }
    let lacks = pool.zones.iter().any(|zone| !offer.zones.is_empty() && !offer.zones.iter().any(|one| one == zone));
    lacks.then(|| {
        let cause = format!("{name} is only in the zones {}", offer.zones.join(", "));
        Problem::note(pool.place.clone(), cause, "these zones are used")
    })
}

/// What the pools need of each quota.
fn needs(pools: &[Pool<'_>], offers: &BTreeMap<String, Offer>) -> BTreeMap<String, Need> {
    let mut needs: BTreeMap<String, Need> = BTreeMap::new();
    for pool in pools {
        let vcpus = u64::from(pool.machine.vcpus);
        let family = offers.get(pool.machine.name).and_then(|offer| offer.family.clone());
        let family = family.unwrap_or_else(|| pool.machine.quota.to_owned());
        let quotas = if pool.is_spot { vec![ALL_SPOT.to_owned()] } else { vec![family, ALL.to_owned()] };
        for quota in quotas {
            let Pool { settings, count, more, .. } = *pool;
            let own = PoolNeed { settings, each: vcpus, count, more, zones: 1 };
            needs.entry(quota).or_default().add_pool(own, pool.place.clone(), pool.has_one_market);
        }
    }
    needs
}

/// Whether Azure Machine Learning accepts the machines of deployments: its quotas are others than those of virtual machines, and while a
/// release is deployed the machines of the one before it count too.
async fn serving(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let wanted: Vec<&Wanted> = of_kind(wanted, DEPLOYMENT).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let path = format!("/providers/{}/locations/{}/usages", machine_learning::SERVICE, api.region);
    let usages = match api.list(Call::get(api.of_subscription(&path), machine_learning::VERSION)).await {
        Ok(usages) => usages,
        Err(error) if crate::api::is_unregistered(&error) => return Vec::new(),
        Err(error) => return vec![unknown("the quota of Azure Machine Learning", &error)],
    };
    let of_type = |kind: &'static str| {
        usages.iter().filter(move |usage| usage["type"].as_str().is_some_and(|found| found.eq_ignore_ascii_case(kind)))
    };
    let mut problems = Vec::new();
    for one in wanted {
        let Some(machine) = machines::serving_named(text(one, "machine")) else { continue };
        let is_own = |usage: &&Value| family(usage["name"]["value"].as_str()) == family(Some(machine.quota));
        let of_family = of_type(OF_FAMILIES).find(is_own);
        if of_family.is_none() {
            let cause =
                format!("Azure lists no quota of Azure Machine Learning for {} in {}", machine.name, api.region);
            problems.push(Problem::warning(one.id.as_str(), cause, "look it up: portal, Quotas > Machine learning"));
        }
        let all = of_family.into_iter().chain(of_type(OF_REGION));
        problems.extend(all.filter_map(|usage| exceeded(one, machine, usage, &api.region)));
    }
    problems
}

/// Whether the machines of a deployment are more than a quota allows.
fn exceeded(one: &Wanted, machine: &ServingSize, usage: &Value, region: &str) -> Option<Problem> {
    let (limit, used) = (usage["limit"].as_u64()?, usage["currentValue"].as_u64().unwrap_or_default());
    let bound = |name: &str| one.spec.get("instances").and_then(|bounds| bounds[name].as_u64()).unwrap_or_default();
    let (least, most) = (machine.needed(bound("min")), machine.needed(bound("max")));
    let name = usage["name"]["value"].as_str().unwrap_or_default();
    let quota = format!("the quota `{name}` of Azure Machine Learning in {region} allows {limit} vCPUs");
    let place = one.id.as_str();
    if most > limit {
        let cause = format!("{quota}, and the machines with those reserved for upgrades may have {most}");
        Some(Problem::new(place, cause, format!("lower `scaling.max` or `scaling.min`, or {RAISE_SERVING}")))
    } else if most.saturating_mul(2) > limit {
        let cause = format!("{quota}, and a release may need {most} beside those of the one before it");
        Some(Problem::warning(place, cause, format!("{RAISE_SERVING}; until then a changed release may fail")))
    } else if used.saturating_add(least) > limit {
        let cause = format!("{quota}; {used} are used, and a new deployment needs {least} more");
        Some(Problem::warning(place, cause, RAISE_SERVING))
    } else {
        None
    }
}

/// What is the same in the names of a family in both services: `standardDSv2Family`, and `Standard DSv2 Family Cluster Dedicated vCPUs`;
/// nothing for machines of low priority, which no deployment has.
fn family(name: Option<&str>) -> String {
    let letters = name.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric);
    let letters = letters.collect::<String>().to_ascii_lowercase();
    match letters.split_once("family") {
        Some((start, end)) if !end.contains("lowpriority") => start.trim_start_matches("standard").to_owned(),
        _ => String::new(),
    }
}

/// Replicas of databases in regions where the subscription cannot create a server.
async fn replicas(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_replica = |one: &&Wanted| one.spec.get("source").is_some_and(|source| !source.is_null());
    let replicas: Vec<&Wanted> = of_kind(wanted, "azure.database-server").filter(is_replica).collect();
    for one in replicas {
        let region = text(one, "location");
        let path = format!("/providers/Microsoft.DBforPostgreSQL/locations/{region}/capabilities");
        let found = match api.send(Call::get(api.of_subscription(&path), database::VERSION)).await {
            Ok(reply) => reply.body,
            Err(error) if crate::api::is_unregistered(&error) => continue,
            // Azure does not know the region.
            Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound) => Value::Null,
            Err(error) => {
                problems.push(unknown(one.id.as_str(), &error));
                continue;
            }
        };
        let mut rows = found["value"].as_array().into_iter().flatten();
        if !rows.any(|row| row["supportedServerVersions"].as_array().is_some_and(|all| !all.is_empty())) {
            let cause = format!("the subscription cannot create a PostgreSQL server in {region}");
            let fix = "name another region in `database.replica_region`, or ask Azure's support";
            problems.push(Problem::new(one.id.to_string(), cause, fix));
        }
    }
    problems
}

/// Locks on the subscription or on the groups of the site: they are reported, and never removed (hashicorp/terraform-provider-azurerm#5025).
async fn locks(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let subscription = api.of_subscription("").to_ascii_lowercase();
    let group = |one: &Wanted| format!("{subscription}/resourcegroups/{}", text(one, "name"));
    let groups: Vec<String> = of_kind(wanted, "azure.group").map(group).collect();
    if groups.is_empty() {
        return Vec::new();
    }
    let path = api.of_subscription("/providers/Microsoft.Authorization/locks");
    let all = match api.list(Call::get(path, LOCKS)).await {
        Ok(all) => all,
        Err(error) => return vec![unknown("the locks", &error)],
    };
    let lock = |one: &Value| {
        let id = one["id"].as_str()?.to_ascii_lowercase();
        let scope = id.split("/providers/microsoft.authorization/locks").next()?;
        let is_in = |group: &String| scope == group.as_str() || scope.starts_with(&format!("{group}/"));
        if scope != subscription && !groups.iter().any(is_in) {
            return None;
        }
        let name = one["name"].as_str().unwrap_or_default();
        let place = format!("lock {name}");
        let fix = "remove the lock yourself if it can go";
        Some(match one["properties"]["level"].as_str() {
            Some("ReadOnly") => {
                Problem::new(place, format!("it keeps everything in {} from being changed", last(scope)), fix)
            }
            _ => Problem::warning(place, format!("`down` cannot delete what is in {}", last(scope)), fix),
        })
    };
    all.iter().filter_map(lock).collect()
}

/// Whether each DNS zone exists and answers clients on the internet. Its id has its name.
async fn zones(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for id in by_zone(wanted, "azure.dns-record").into_keys() {
        let place = format!("zone {}", last(id));
        match api.find(Call::get(id, dns::VERSION)).await {
            Ok(Some(zone)) if zone["properties"]["zoneType"] == "Private" => {
                let fix = "set the id of a public zone if clients are elsewhere";
                problems.push(Problem::warning(place, "it answers inside of its networks only", fix));
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let fix = "set `traffic.existing` to the id of a zone: `az network dns zone list --query '[].id'`";
                problems.push(Problem::new(place, "there is no such zone", fix));
            }
            Err(error) => problems.push(unknown(&place, &error)),
        }
    }
    problems
}

/// Who gets the mails of a budget, and whether the subscription is billed in its currency: a budget that exists shows it.
async fn budgets(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in of_kind(wanted, BUDGET) {
        let place = one.id.as_str();
        let notifications = one.spec.get("notifications").and_then(Value::as_array).into_iter().flatten();
        if notifications.filter_map(|one| one["groups"].as_array()).all(Vec::is_empty) {
            let cause = "its mails go to the owners of the subscription only, not to webhooks";
            problems.push(Problem::note(place, cause, "name a mailbox as a receiver: `smtps://…&to=…`"));
        }
        let id = crate::table::row(&one.kind).and_then(|row| row.resource.id(&one.spec)).unwrap_or_default();
        let found = match api.find(Call::get(id, budgets::VERSION)).await {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => {
                problems.push(unknown(place, &error));
                continue;
            }
        };
        let (own, billed) = (text(one, "currency"), found["properties"]["currentSpend"]["unit"].as_str());
        if let Some(billed) = billed.filter(|billed| *billed != own) {
            let cause = format!("Azure counts in {billed}, the currency of the bill, and the budget is in {own}");
            let fix = format!("write `budget.monthly` in {billed}, and `budget.currency: {billed}`");
            problems.push(Problem::warning(place, cause, fix));
        }
    }
    problems
}

/// Whether an existing network and its subnets have what a cluster and a managed database need.
async fn existing_network(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let external = |kind: &str, part: &str| {
        wanted.iter().find_map(|one| match &one.ownership {
            Ownership::External(id) if one.kind.as_str() == kind && last(one.id.as_str()) == part => {
                Some((one.id.as_str(), id.as_str()))
            }
            _ => None,
        })
    };
    let Some((place, vnet)) = external("azure.network", "vnet") else { return Vec::new() };
    let cluster = of_kind(wanted, crate::table::CLUSTER).next();
    let has_server = of_kind(wanted, "azure.database-server").next().is_some();
    let mut problems = Vec::new();
    // What cannot be read is told with the names.
    if let Ok(Some(found)) = api.find(Call::get(vnet, NETWORK)).await {
        let (name, region) = (last(vnet), LOCATION.read(&found));
        if region != api.region.as_str() {
            let cause =
                format!("`{name}` is in {}, and the site in {}", region.as_str().unwrap_or_default(), api.region);
            problems.push(Problem::new(place, cause, "name a network in the region of the site"));
        }
        let properties = &found["properties"];
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let read = |space: &Value| -> Vec<Range> {
            texts(&space["addressPrefixes"]).iter().filter_map(|range| Range::read(range)).collect()
        };
        let ranges = read(&properties["addressSpace"]);
        let peerings = properties["virtualNetworkPeerings"].as_array().into_iter().flatten();
        let peered: Vec<Range> = peerings.flat_map(|one| read(&one["properties"]["remoteAddressSpace"])).collect();
        for field in ["pods", "services"] {
            let Some(own) = cluster.and_then(|cluster| Range::read(text(cluster, field))) else { continue };
            if let Some(taken) = ranges.iter().find(|range| own.overlaps(**range)) {
                let cause = format!("`{name}` has {taken}, and the {field} of the cluster have addresses of {own}");
                problems.push(Problem::new(place, cause, "name another network"));
            }
            // MicrosoftDocs/azure-aks-docs#291.
            if let Some(taken) = peered.iter().find(|range| own.overlaps(**range)) {
                let cause = format!(
                    "a network that is peered with `{name}` has {taken}, and the {field} of the cluster have addresses of {own}: pods do not reach its hosts in that range"
                );
                let fix = "no action is needed if they call none of them; else name another network";
                problems.push(Problem::warning(place, cause, fix));
            }
        }
        let mut servers = texts(&properties["dhcpOptions"]["dnsServers"]);
        servers.retain(|server| server != AZURE_DNS);
        if has_server && !servers.is_empty() {
            // hashicorp/terraform-provider-azurerm#12069, MicrosoftDocs/azure-docs#84421.
            let cause = format!(
                "`{name}` has the DNS servers {}, which do not know the private zone of the managed database by themselves",
                servers.join(", ")
            );
            let fix = format!(
                "let them forward `private.postgres.database.azure.com` to {AZURE_DNS}, and link the zone that `up` creates with their network"
            );
            problems.push(Problem::warning(place, cause, fix));
        }
    }
    // The operator of an existing cluster has seen to its subnet.
    if let (Some(cluster), Some((place, id))) = (cluster, external("azure.subnet", "subnet"))
        && let Ok(Some(found)) = api.find(Call::get(id, NETWORK)).await
    {
        problems.extend(too_small(wanted, place, id, &found["properties"]));
        problems.extend(subnet_of_nodes(api, cluster, place, id, &found["properties"]).await);
    }
    if let Some((place, id)) = external("azure.subnet", "database-subnet").filter(|_| has_server)
        && let Ok(Some(found)) = api.find(Call::get(id, NETWORK)).await
    {
        let mut delegations = found["properties"]["delegations"].as_array().into_iter().flatten();
        let service = |one: &Value| one["properties"]["serviceName"].as_str().map(str::to_ascii_lowercase);
        if !delegations.any(|one| service(one) == Some(DATABASES.to_ascii_lowercase())) {
            let cause = format!("`{}` is not delegated to {DATABASES}, which a database needs", last(id));
            let fix = format!("`az network vnet subnet update --ids {id} --delegations {DATABASES}`");
            problems.push(Problem::new(place, cause, fix));
        }
    }
    problems
}

/// A subnet without an address for each node and for those that upgrades add: AKS refuses it late
/// (Azure/terraform-azurerm-aks#428).
fn too_small(wanted: &[Wanted], place: &str, id: &str, subnet: &Value) -> Option<Problem> {
    let ranges = subnet["addressPrefixes"].as_array().into_iter().flatten().chain([&subnet["addressPrefix"]]);
    let ranges: BTreeSet<&str> = ranges.filter_map(Value::as_str).collect();
    let has: u64 = ranges.into_iter().filter_map(Range::read).map(Range::addresses).sum();
    let most = |pool: &Pool<'_>| pool.count.saturating_add(pool.more);
    let nodes = pools(wanted).iter().map(|pool| most(pool) + most(pool).div_ceil(SURGE_OF)).sum::<u64>();
    let needed = nodes + RESERVED;
    (has > 0 && has < needed).then(|| {
        let cause = format!(
            "`{}` has {has} addresses, and needs {needed}: one for each node, also of upgrades, and {RESERVED} of Azure's own",
            last(id)
        );
        let fix = "name a larger subnet first in `sites[].existing.subnets`, or lower `cluster.max_nodes` or `gpu.max`";
        Problem::new(place, cause, fix)
    })
}

/// Where the default route of a route table leads, unless that is the internet. It takes precedence over a NAT gateway
/// (<https://learn.microsoft.com/azure/nat-gateway/nat-overview>).
fn detour(table: &Value) -> Option<&str> {
    let mut routes = table["properties"]["routes"].as_array()?.iter().map(|one| &one["properties"]);
    let route = routes.find(|one| one["addressPrefix"] == "0.0.0.0/0")?;
    route["nextHopType"].as_str().filter(|hop| *hop != "Internet")
}

/// Whether nodes can be in a subnet: no service has it, its NAT gateway leads them out and to the API server, and clients reach them.
async fn subnet_of_nodes(api: &Api, cluster: &Wanted, place: &str, id: &str, subnet: &Value) -> Vec<Problem> {
    let (mut problems, name) = (Vec::new(), last(id));
    if subnet["delegations"].as_array().is_some_and(|all| !all.is_empty()) {
        let cause = format!("`{name}` is delegated to a service, so that nodes cannot be in it");
        problems.push(Problem::new(place, cause, "name another subnet first in `sites[].existing.subnets`"));
    }
    if let Some(group) = subnet["networkSecurityGroup"]["id"].as_str() {
        // AKS opens ports in the group of its own nodes only (Azure/AKS#674).
        let cause = format!(
            "the network security group `{}` of `{name}` also decides which clients reach the load balancer, and `up` does not change it",
            last(group)
        );
        let fix = "let it allow connections of your clients to the ports of the Service `textnlp-api`";
        problems.push(Problem::warning(place, cause, fix));
    }
    if let Some(table) = subnet["routeTable"]["id"].as_str() {
        match api.find(Call::get(table, NETWORK)).await {
            Ok(found) => {
                if let Some(hop) = detour(&found.unwrap_or_default()) {
                    let cause = format!(
                        "the route table `{}` of `{name}` sends 0.0.0.0/0 to {hop}, which takes precedence over a NAT gateway; routes through a firewall are not supported yet",
                        last(table)
                    );
                    let fix = "name a subnet without this route first in `sites[].existing.subnets`";
                    problems.push(Problem::new(place, cause, fix));
                    return problems;
                }
            }
            Err(error) => problems.push(unknown(place, &error)),
        }
    }
    let Some(gateway) = subnet["natGateway"]["id"].as_str() else {
        let cause = format!(
            "`{name}` has no NAT gateway, by which nodes reach Azure and pull images; routes through a firewall are not supported yet"
        );
        let fix = format!("`az network vnet subnet update --ids {id} --nat-gateway NAT_GATEWAY_ID`");
        problems.push(Problem::new(place, cause, fix));
        return problems;
    };
    let Some(allowed) = cluster.spec.get("allow_from").and_then(Value::as_array) else { return problems };
    let allowed: Vec<Range> = allowed.iter().filter_map(Value::as_str).filter_map(range).collect();
    let gateway = match api.find(Call::get(gateway, NETWORK)).await {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => {
            problems.push(unknown(place, &error));
            return problems;
        }
    };
    let addresses = gateway["properties"]["publicIpAddresses"].as_array().into_iter().flatten();
    for address in addresses.filter_map(|one| one["id"].as_str()) {
        let found = match api.find(Call::get(address, NETWORK)).await {
            Ok(found) => found.unwrap_or_default(),
            Err(error) => {
                problems.push(unknown(place, &error));
                continue;
            }
        };
        let Some(ip) = found["properties"]["ipAddress"].as_str() else { continue };
        if range(ip).is_some_and(|own| !allowed.iter().any(|one| one.overlaps(own))) {
            let cause = format!("nodes reach the API server from {ip}, which `cluster.allow_from` does not allow");
            problems.push(Problem::new(place, cause, format!("add `{ip}/32` to `cluster.allow_from`")));
        }
    }
    problems
}

/// A network, or a single address.
fn range(text: &str) -> Option<Range> {
    if text.contains('/') { Range::read(text) } else { Range::read(&format!("{text}/32")) }
}

/// Networks that overlap can never be connected.
async fn overlaps(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if of_kind(wanted, "azure.network").next().is_none() {
        return problems;
    }
    let path = api.of_subscription("/providers/Microsoft.Network/virtualNetworks");
    let others = match api.list(Call::get(path, NETWORK)).await {
        Ok(others) => others,
        Err(error) => return vec![unknown("the address ranges", &error)],
    };
    for one in of_kind(wanted, "azure.network") {
        let Some(own) = Range::read(text(one, "cidr")) else { continue };
        for other in &others {
            // Another environment has the same resource under another name.
            let tags = tags_at(other, "/tags");
            let resource = tags.get(textnlp_cloud::tags::RESOURCE).map(String::as_str);
            if resource == Some(one.id.as_str()) && other["name"] == text(one, "name") {
                continue;
            }
            let ranges = other["properties"]["addressSpace"]["addressPrefixes"].as_array().into_iter().flatten();
            let mut ranges = ranges.filter_map(Value::as_str).filter_map(Range::read);
            if let Some(range) = ranges.find(|range| own.overlaps(*range)) {
                let name = other["name"].as_str().unwrap_or_default();
                let cause = format!("its range overlaps with that of `{name}`, {range}: they can never be connected");
                let fix = match last(one.id.as_str()) {
                    "vnet" => "set another `network.cidr` if they ever should be",
                    // That of a replica in another region.
                    _ => "no setting chooses another range: no action is needed if they never should be",
                };
                problems.push(Problem::note(one.id.to_string(), cause, fix));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_hold_what_their_patterns_say() {
        let held = [
            json!({ "actions": ["Microsoft.Network/*"], "notActions": ["Microsoft.Network/*/delete"] }),
            json!({ "actions": ["*/read"], "notActions": [] }),
        ];
        for (action, expected) in [
            ("Microsoft.Network/virtualNetworks/write", true),
            ("microsoft.network/virtualNetworks/delete", false),
            ("Microsoft.Storage/storageAccounts/read", true),
            ("Microsoft.Storage/storageAccounts/write", false),
        ] {
            assert_eq!(is_held(&held, action), expected, "{action}");
        }
    }

    #[test]
    fn families_have_the_same_name_in_both_services() {
        for (name, expected) in [
            ("standardDSv2Family", "dsv2"),
            ("Standard DSv2 Family Cluster Dedicated vCPUs", "dsv2"),
            ("Standard NCASv3_T4 Family Cluster Dedicated vCPUs", "ncasv3t4"),
            ("Standard DSv2 Family Cluster Low Priority vCPUs", ""),
            ("Total Cluster Dedicated Regional vCPUs", ""),
        ] {
            assert_eq!(family(Some(name)), expected, "{name}");
        }
    }

    #[test]
    fn spot_machines_have_a_quota_of_their_own() {
        let machine = machines::named("Standard_NC4as_T4_v3").unwrap();
        let pool = |is_spot| Pool {
            place: "p".to_owned(),
            settings: PoolSettings::Gpus,
            machine,
            count: 2,
            more: 0,
            is_spot,
            has_one_market: true,
            has_one_machine: true,
            zones: vec!["1"],
        };
        let names = |pools: &[Pool<'_>]| needs(pools, &BTreeMap::new()).into_keys().collect::<Vec<_>>();
        assert_eq!(names(&[pool(true)]), [ALL_SPOT]);
        assert_eq!(names(&[pool(false)]), ["Standard NCASv3_T4 Family", ALL]);
        let offers =
            BTreeMap::from([(machine.name.to_owned(), Offer { zones: vec!["2".to_owned()], ..Offer::default() })]);
        assert!(offered("westeurope", &pool(false), &offers).unwrap().cause.contains("only in the zones 2"));
    }
}
