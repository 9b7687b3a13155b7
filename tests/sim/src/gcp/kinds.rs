//! The lifecycle that all kinds of objects share. What differs is a row ([`Kind`]) for each kind.

use std::time::Duration;

use serde_json::{Value, json};

use super::Call;
use super::cloud::{Cloud, Effect, Family, Object, Operation, merge, put, singular, stamp};
use super::errors;
use super::problem::Problem;
use crate::clock::later;

/// Where a request to create an object names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// A member of the object.
    Body(&'static str),
    /// A parameter of the query.
    Query(&'static str),
}

/// What an update does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// The body is merged; lists are replaced as wholes.
    Merge,
    /// The parameter `updateMask` names the members, which have to be among these.
    Mask(&'static [&'static str]),
}

/// A constraint of the organisation, and whether an object violates it.
pub(crate) type Constraint = (&'static str, fn(&Value) -> bool);

/// A kind of object.
pub(crate) struct Kind {
    /// What the ids of its methods start with.
    pub(crate) methods: &'static str,
    /// Those of its methods that have the usual meaning.
    pub(crate) verbs: &'static [&'static str],
    /// The service and the part of the path in front of the id.
    pub(crate) collection: (&'static str, &'static str),
    pub(crate) id: Id,
    /// The member of a list's answer that holds the items.
    pub(crate) items: &'static str,
    /// How changes are told of; without, they are done at once.
    pub(crate) family: Option<Family>,
    /// The type of the response and the metadata of `google.longrunning`.
    pub(crate) message: (&'static str, &'static str),
    /// How many seconds a creation, an update and a deletion take.
    pub(crate) seconds: (u64, u64, u64),
    /// A member for the state, and its values during and after the creation.
    pub(crate) state: Option<(&'static str, &'static str, &'static str)>,
    /// Whether a text is the id of one.
    pub(crate) is_id: fn(&str) -> bool,
    /// Members that the service sets unasked, as pointers and JSON.
    pub(crate) defaults: &'static [(&'static str, &'static str)],
    /// Pointers to names of other objects, which have to exist and cannot be deleted meanwhile; `*` is any item.
    pub(crate) references: &'static [&'static str],
    /// The quota of the project that its objects count against.
    pub(crate) quota: Option<&'static str>,
    /// The member that an update has to carry as it was read last.
    pub(crate) fingerprint: Option<&'static str>,
    pub(crate) update: Update,
    /// Where its labels are.
    pub(crate) labels: &'static str,
    /// Constraints of the organisation, and which objects violate them.
    pub(crate) constraints: &'static [Constraint],
    pub(crate) check: fn(&mut Cloud, &Call<'_>, &Value) -> Result<(), Problem>,
    /// Fills output-only members. It is given the name.
    pub(crate) fill: fn(&mut Cloud, &Call<'_>, &str, &mut Value),
    /// Refuses an update: it is given the object before and after it.
    pub(crate) check_update: fn(&Cloud, &Call<'_>, &Value, &Value) -> Result<(), Problem>,
    /// What else happens at the end of a deletion. It is given the key.
    pub(crate) deleted: fn(&mut Cloud, &str, &Value),
    /// Refuses a deletion. It is given the key.
    pub(crate) check_delete: fn(&Cloud, &str, &Value) -> Result<(), Problem>,
}

/// A row with nothing special.
pub(crate) const KIND: Kind = Kind {
    methods: "",
    verbs: &["get", "list"],
    collection: ("", ""),
    id: Id::Body("name"),
    items: "items",
    family: None,
    message: ("", ""),
    seconds: (10, 10, 10),
    state: None,
    is_id: |id| errors::is_name(id, 63),
    defaults: &[],
    references: &[],
    quota: None,
    fingerprint: None,
    update: Update::Merge,
    labels: "labels",
    constraints: &[],
    check: |_, _, _| Ok(()),
    fill: |_, _, _, _| {},
    check_update: |_, _, _, _| Ok(()),
    deleted: |_, _, _| {},
    check_delete: |_, _, _| Ok(()),
};

/// The kinds of all services.
pub(crate) fn all() -> impl Iterator<Item = &'static Kind> {
    use super::{compute, container, iam, kms, monitoring, redis, registry, run, sql, vertex};
    let all = [
        compute::KINDS,
        container::KINDS,
        sql::KINDS,
        iam::KINDS,
        registry::KINDS,
        redis::KINDS,
        run::KINDS,
        vertex::KINDS,
        kms::KINDS,
        monitoring::KINDS,
    ];
    all.into_iter().flatten()
}

/// The kind of a method that has the usual meaning, and the verb.
pub(crate) fn of_method(id: &str) -> Option<(&'static Kind, &'static str)> {
    let (methods, verb) = id.rsplit_once('.')?;
    let kind = all().find(|kind| kind.methods == methods)?;
    kind.verbs.iter().find(|known| **known == verb).map(|known| (kind, *known))
}

/// The kind of an object.
pub(crate) fn of_key(key: &str) -> Option<&'static Kind> {
    let service = key.split('/').next()?;
    let collection = key.rsplit('/').nth(1)?;
    all().find(|kind| kind.collection == (service, collection))
}

/// The keys that an object's members name.
pub(crate) fn referred(kind: &Kind, project: &str, body: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for pointer in kind.references {
        let parts: Vec<&str> = pointer.split('/').skip(1).collect();
        collect(body, &parts, &mut found);
    }
    found.iter().map(|name| resolve(project, name)).collect()
}

fn collect(body: &Value, parts: &[&str], found: &mut Vec<String>) {
    let Some((first, rest)) = parts.split_first() else {
        found.extend(body.as_str().filter(|name| !name.is_empty()).map(str::to_owned));
        return;
    };
    match *first {
        "*" => body.as_array().into_iter().flatten().for_each(|item| collect(item, rest, found)),
        name => {
            if let Some(member) = body.get(name) {
                collect(member, rest, found);
            }
        }
    }
}

/// The key of what a name or an address of Compute Engine means in a project.
pub(crate) fn resolve(project: &str, name: &str) -> String {
    match name.find("projects/") {
        Some(start) => format!("compute/{}", &name[start..]),
        None => format!("compute/projects/{project}/{}", name.trim_start_matches('/')),
    }
}

/// The names of objects that refer to one.
pub(crate) fn users(cloud: &Cloud, key: &str) -> Vec<(String, bool)> {
    let mut users = Vec::new();
    for (one, object) in &cloud.objects {
        let Some(kind) = of_key(one).filter(|kind| !kind.references.is_empty()) else { continue };
        let project = one.split('/').nth(2).unwrap_or_default();
        if one != key && referred(kind, project, &object.body).iter().any(|used| used == key) {
            let name = one.split_once('/').map_or("", |(_, name)| name);
            users.push((name.to_owned(), object.is_hidden));
        }
    }
    users
}

/// Answers a method with the usual meaning.
pub(crate) fn answer(cloud: &mut Cloud, call: &Call<'_>, kind: &'static Kind, verb: &str) -> Result<Value, Problem> {
    match verb {
        "insert" | "create" => create(cloud, call, kind),
        "get" => read(cloud, call),
        "list" => Ok(list(cloud, call, kind)),
        "aggregatedList" => Ok(aggregated(cloud, call, kind)),
        "patch" | "update" => update(cloud, call, kind),
        _ => delete(cloud, call, kind),
    }
}

fn create(cloud: &mut Cloud, call: &Call<'_>, kind: &'static Kind) -> Result<Value, Problem> {
    let mut body = if call.body.is_null() { json!({}) } else { call.body.clone() };
    let id = match kind.id {
        Id::Body(member) => body[member].as_str().unwrap_or_default().to_owned(),
        Id::Query(parameter) => call.parameter(parameter).unwrap_or_default().to_owned(),
    };
    if !(kind.is_id)(&id) {
        let message = format!(
            "Invalid value for field 'resource.name': '{id}'. Must be a match of regex \
                '(?:[a-z](?:[-a-z0-9]{{0,61}}[a-z0-9])?)'"
        );
        return Err(Problem::with_reason(400, "invalid", message));
    }
    errors::check_labels(&body[kind.labels])?;
    let name = format!("{}/{id}", call.name);
    let key = format!("{}/{name}", call.service.name);
    if let Some(shown) = repeated(cloud, call)? {
        return Ok(shown);
    }
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists(call.service.name, &name));
    }
    for used in referred(kind, &call.project, &body) {
        let short = used.split_once('/').map_or("", |(_, name)| name).to_owned();
        let Some(object) = cloud.objects.get(&used) else { return Err(errors::not_found("compute", &short)) };
        if object.busy_until > cloud.now() {
            let message = format!("The resource '{short}' is not ready");
            return Err(Problem::with_reason(400, "resourceNotReady", message));
        }
    }
    let violated: Vec<(String, String)> = kind
        .constraints
        .iter()
        .filter(|(constraint, is_violated)| cloud.enforces(&call.project, constraint) && is_violated(&body))
        .map(|(constraint, _)| ((*constraint).to_owned(), format!("The resource is {name}.")))
        .collect();
    if !violated.is_empty() {
        return Err(errors::constraints_violated(&call.project, &violated));
    }
    (kind.check)(cloud, call, &body)?;
    for (pointer, default) in kind.defaults {
        if body.pointer(pointer).is_none() {
            put(&mut body, pointer, serde_json::from_str(default).unwrap_or_default());
        }
    }
    if call.service.name == "compute" {
        cloud.describe("compute", &name, &mut body);
    }
    if let Some(member) = kind.fingerprint {
        body[member] = cloud.fingerprint().into();
    }
    (kind.fill)(cloud, call, &name, &mut body);
    if let Some((member, first, _)) = kind.state {
        body[member] = first.into();
    }
    let busy_until = later(cloud.now(), cloud.lag(&cloud.conduct.network_busy.clone()));
    let now = cloud.now();
    let is_network = ["networks", "subnetworks"].contains(&kind.collection.1);
    let object = Object { body, busy_until: if is_network { busy_until } else { now }, is_hidden: false, created: now };
    cloud.objects.insert(key.clone(), object);
    let (target, project) = (key.clone(), call.project.clone());
    let effect: Effect = Box::new(move |cloud| {
        // Quotas show only in the operation.
        if let Some(error) = kind.quota.and_then(|metric| over_quota(cloud, &project, metric)) {
            cloud.objects.remove(&target);
            return Err(error);
        }
        let Some(object) = cloud.objects.get_mut(&target) else { return Ok(Value::Null) };
        if let Some((member, _, last)) = kind.state {
            object.body[member] = last.into();
        }
        Ok(typed(kind.message.0, &object.body))
    });
    finish(cloud, call, kind, ["insert", "CREATE", "create"], kind.seconds.0, &key, effect)
}

/// A message in a member of any type.
pub(crate) fn typed(kind: &str, body: &Value) -> Value {
    let mut typed = json!({ "@type": format!("type.googleapis.com/{kind}") });
    merge(&mut typed, body);
    typed
}

/// The error of an operation for an object more than the quota allows.
fn over_quota(cloud: &Cloud, project: &str, metric: &str) -> Option<Value> {
    let limit = super::compute::limit(cloud, "", metric);
    if super::compute::used(cloud, project, "", metric) <= limit {
        return None;
    }
    let message = format!("Quota '{metric}' exceeded.  Limit: {limit:.1} globally.");
    let kind = metric.to_lowercase();
    let info = json!({ "quotaInfo": { "metricName": format!("compute.googleapis.com/{kind}"),
        "limitName": metric.replace('_', "-"), "dimensions": { "global": "global" }, "limit": limit } });
    Some(json!({ "http": 403, "text": "FORBIDDEN",
        "errors": [{ "code": "QUOTA_EXCEEDED", "message": message, "errorDetails": [info] }] }))
}

/// The operation that a request with this id started before, if it is the same request.
pub(crate) fn repeated(cloud: &Cloud, call: &Call<'_>) -> Result<Option<Value>, Problem> {
    let Some(id) = call.parameter("requestId") else { return Ok(None) };
    let Some((method, body, operation)) = cloud.requests.get(&(call.project.clone(), id.to_owned())) else {
        return Ok(None);
    };
    if method != call.id || body != &call.body {
        let message = format!("Invalid value for field 'requestId': '{id}'. It was used for another request.");
        return Err(Problem::with_reason(400, "invalid", message));
    }
    Ok(cloud.operations.get(operation).map(|operation| cloud.shown(operation)))
}

/// Starts the operation of a change, or makes the change at once.
fn finish(
    cloud: &mut Cloud,
    call: &Call<'_>,
    kind: &Kind,
    names: [&str; 3],
    seconds: u64,
    key: &str,
    effect: Effect,
) -> Result<Value, Problem> {
    let Some(family) = kind.family else {
        let _ = effect(cloud);
        return Ok(cloud.objects.get(key).map_or_else(|| json!({}), |object| object.body.clone()));
    };
    let name = match family {
        Family::Compute => names[0],
        Family::Container | Family::Sql => names[1],
        Family::LongRunning => names[2],
    };
    let metadata = typed(kind.message.1, &json!({}));
    Ok(begin(cloud, call, family, name, key, Duration::from_secs(seconds), metadata, effect))
}

/// Starts an operation. Gives it as the call answers it.
#[expect(clippy::too_many_arguments, reason = "an operation has that many parts, and all callers name all of them")]
pub(crate) fn begin(
    cloud: &mut Cloud,
    call: &Call<'_>,
    family: Family,
    kind: &str,
    target: &str,
    takes: Duration,
    metadata: Value,
    effect: Effect,
) -> Value {
    let parts: Vec<&str> = target.split('/').collect();
    let part = |index: usize| parts.get(index).copied().unwrap_or_default();
    let millis = cloud.now().as_millisecond();
    let number = cloud.project(&call.project).map(|project| project.number.clone()).unwrap_or_default();
    let key = match (family, call.service.name) {
        (Family::Compute, _) => {
            let scope = if part(3) == "global" { "global".to_owned() } else { format!("{}/{}", part(3), part(4)) };
            let id = format!("operation-{millis}-{}-{}", cloud.random.hex(13), cloud.random.hex(8));
            format!("compute/projects/{}/{scope}/operations/{id}", part(2))
        }
        (Family::Container, _) => {
            let id = format!("operation-{millis}-{}", cloud.random.uuid());
            format!("container/projects/{}/locations/{}/operations/{id}", part(2), part(4))
        }
        (Family::Sql, _) => format!("sql/projects/{}/operations/{}", part(2), cloud.random.uuid()),
        (Family::LongRunning, service @ ("serviceusage" | "servicenetworking")) => {
            let prefix = if service == "serviceusage" { "acat.p2" } else { "pssn.p24" };
            format!("{service}/operations/{prefix}-{number}-{}", cloud.random.uuid())
        }
        // Operations of Vertex AI are inside of what they change.
        (Family::LongRunning, "aiplatform") => format!("{target}/operations/{}", cloud.number()),
        (Family::LongRunning, service) => {
            format!("{service}/projects/{}/locations/{}/operations/{}", part(2), part(4), cloud.random.uuid())
        }
    };
    let operation = Operation {
        family,
        key,
        kind: kind.to_owned(),
        target: target.to_owned(),
        user: call.user.clone(),
        start: cloud.now(),
        end: None,
        result: None,
        is_hidden: false,
        metadata,
    };
    let key = cloud.start(operation, takes, effect);
    if let Some(id) = call.parameter("requestId") {
        let of_request = (call.id.to_owned(), call.body.clone(), key.clone());
        cloud.requests.insert((call.project.clone(), id.to_owned()), of_request);
    }
    cloud.operations.get(&key).map_or(Value::Null, |operation| cloud.shown(operation))
}

pub(crate) fn read(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let missing = || errors::not_found(call.service.name, &call.name);
    cloud.get(&call.key()).cloned().ok_or_else(missing)
}

/// The keys of a collection; `-` in its name is any location.
pub(crate) fn collection(cloud: &Cloud, name: &str) -> Vec<String> {
    let wanted: Vec<&str> = name.split('/').collect();
    let is_in = |key: &&String| {
        let parts: Vec<&str> = key.split('/').collect();
        parts.len() == wanted.len() + 1 && parts.iter().zip(&wanted).all(|(part, one)| part == one || *one == "-")
    };
    let is_shown = |key: &&String| cloud.objects.get(*key).is_some_and(|object| !object.is_hidden);
    cloud.objects.keys().filter(is_in).filter(is_shown).cloned().collect()
}

fn list(cloud: &Cloud, call: &Call<'_>, kind: &Kind) -> Value {
    let keys = collection(cloud, &call.key());
    let items: Vec<Value> = keys.iter().filter_map(|key| cloud.get(key).cloned()).collect();
    page(call, kind.items, items)
}

/// A page of items in a list's answer. The token is the number of the next item.
pub(crate) fn page(call: &Call<'_>, member: &str, items: Vec<Value>) -> Value {
    let items: Vec<Value> = items.into_iter().filter(|item| passes(call, item)).collect();
    let size = call.parameter("maxResults").or_else(|| call.parameter("pageSize"));
    let (usual, most) = pages(call);
    let size =
        size.and_then(|text| text.parse().ok()).filter(|size| *size > 0).unwrap_or(usual).min(most).min(call.page);
    let start: usize = call.parameter("pageToken").and_then(|token| token.parse().ok()).unwrap_or(0);
    let is_more = items.len() > start.saturating_add(size);
    let rows: Vec<Value> = items.into_iter().skip(start).take(size).collect();
    // An empty list has no member.
    let mut answer = if rows.is_empty() { json!({}) } else { json!({ (member): rows }) };
    if is_more && call.id != "container.projects.locations.clusters.list" {
        answer["nextPageToken"] = (start + size).to_string().into();
    }
    if call.service.name == "compute" {
        let noun = call.name.rsplit('/').next().unwrap_or_default();
        answer["kind"] = format!("compute#{}List", singular(noun)).into();
        answer["id"] = call.name.clone().into();
        answer["selfLink"] = format!("https://www.googleapis.com/compute/v1/{}", call.name).into();
    }
    answer
}

/// The items of a page where a call asks for no number of them, and the most of a page, as the discovery documents say.
fn pages(call: &Call<'_>) -> (usize, usize) {
    match (call.service.name, call.id) {
        ("compute", _) => (500, 500),
        (_, "iam.projects.serviceAccounts.list") => (20, 100),
        (_, "serviceusage.services.list") => (50, 200),
        _ => (call.page, call.page),
    }
}

/// The simplest filters: `member=value`, `member eq value`, `labels.key=value`, joined by AND.
fn passes(call: &Call<'_>, item: &Value) -> bool {
    let Some(filter) = call.parameter("filter") else { return true };
    filter.split(" AND ").all(|term| {
        let term = term.trim().trim_matches(['(', ')']);
        let split = term.split_once(" eq ").or_else(|| term.split_once('=')).or_else(|| term.split_once(':'));
        let Some((name, wanted)) = split else { return true };
        let pointer = format!("/{}", name.trim().replace('.', "/"));
        let wanted = wanted.trim().trim_matches('"');
        let actual = item.pointer(&pointer);
        match wanted {
            "*" => actual.is_some(),
            wanted => actual.and_then(Value::as_str).is_some_and(|text| text == wanted),
        }
    })
}

/// A list by zone or region.
pub(crate) fn aggregated(cloud: &Cloud, call: &Call<'_>, kind: &Kind) -> Value {
    let start = format!("compute/projects/{}/", call.project);
    let mut scopes = serde_json::Map::new();
    for (key, object) in &cloud.objects {
        let parts: Vec<&str> = key.split('/').collect();
        let is_one = key.starts_with(&start) && parts.iter().rev().nth(1) == Some(&kind.collection.1);
        if !is_one || object.is_hidden || !passes(call, &object.body) {
            continue;
        }
        let scope = if parts[3] == "global" { "global".to_owned() } else { format!("{}/{}", parts[3], parts[4]) };
        let entry = scopes.entry(scope).or_insert_with(|| json!({ (kind.collection.1): [] }));
        if let Some(items) = entry[kind.collection.1].as_array_mut() {
            items.push(object.body.clone());
        }
    }
    let name = call.name.clone();
    let kind = format!("compute#{}AggregatedList", singular(kind.collection.1));
    json!({ "kind": kind, "id": name, "items": scopes, "selfLink": format!("https://www.googleapis.com/compute/v1/{name}") })
}

fn update(cloud: &mut Cloud, call: &Call<'_>, kind: &'static Kind) -> Result<Value, Problem> {
    let key = call.key();
    if let Some(shown) = repeated(cloud, call)? {
        return Ok(shown);
    }
    let before = read(cloud, call)?;
    errors::check_labels(&call.body[kind.labels])?;
    if let Some(member) = kind.fingerprint {
        match call.body[member].as_str() {
            None => {
                let message = format!("Required field 'resource.{member}' not specified");
                return Err(Problem::with_reason(400, "required", message));
            }
            Some(sent) if before[member] != sent => {
                // Two texts are known.
                let message = match cloud.random.number() % 2 {
                    0 => "Invalid fingerprint.".to_owned(),
                    _ => "Supplied fingerprint does not match current metadata fingerprint.".to_owned(),
                };
                return Err(Problem::with_reason(412, "conditionNotMet", message));
            }
            Some(_) => {}
        }
    }
    let mut after = before.clone();
    match kind.update {
        Update::Merge => merge(&mut after, &call.body),
        Update::Mask(allowed) => {
            let mask = call.parameter("updateMask").unwrap_or_default();
            if mask.is_empty() {
                let message = "The update_mask in the request must be set.";
                return Err(Problem::new("INVALID_ARGUMENT", message));
            }
            for path in mask.split(',').map(camel) {
                if !allowed.iter().any(|one| path == *one || path.starts_with(&format!("{one}."))) {
                    let message = format!("Invalid update mask: {path}");
                    return Err(Problem::new("INVALID_ARGUMENT", message));
                }
                let pointer = format!("/{}", path.replace('.', "/"));
                put(&mut after, &pointer, call.body.pointer(&pointer).cloned().unwrap_or_default());
            }
            if let Some(members) = after.as_object_mut() {
                members.retain(|_, value| !value.is_null());
            }
        }
    }
    (kind.check_update)(cloud, call, &before, &after)?;
    let body = call.body.clone();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let fingerprint = cloud.fingerprint();
        let busy_until = later(cloud.now(), cloud.lag(&cloud.conduct.network_busy.clone()));
        let now = cloud.now().to_string();
        let Some(object) = cloud.objects.get_mut(&target) else { return Ok(Value::Null) };
        match kind.update {
            Update::Merge => merge(&mut object.body, &body),
            Update::Mask(_) => object.body = after,
        }
        stamp(&mut object.body, &fingerprint);
        if object.body.get("updateTime").is_some() {
            object.body["updateTime"] = now.into();
        }
        if kind.collection.1 == "subnetworks" {
            object.busy_until = busy_until;
        }
        Ok(typed(kind.message.0, &object.body))
    });
    // Artifact Registry's update is done at once, though its creation is not.
    if kind.family == Some(Family::LongRunning) && matches!(kind.update, Update::Mask(_)) {
        let _ = effect(cloud);
        return read(cloud, call);
    }
    let name = if call.id.ends_with(".update") { "update" } else { "patch" };
    finish(cloud, call, kind, [name, "UPDATE", "update"], kind.seconds.1, &key, effect)
}

/// Masks may be in either form: <https://protobuf.dev/programming-guides/json/#field-masks>.
fn camel(path: &str) -> String {
    let mut camel = String::new();
    let mut is_next = false;
    for c in path.trim().chars() {
        match c {
            '_' => is_next = true,
            c if is_next => {
                camel.push(c.to_ascii_uppercase());
                is_next = false;
            }
            c => camel.push(c),
        }
    }
    camel
}

fn delete(cloud: &mut Cloud, call: &Call<'_>, kind: &'static Kind) -> Result<Value, Problem> {
    let key = call.key();
    if let Some(shown) = repeated(cloud, call)? {
        return Ok(shown);
    }
    let body = read(cloud, call)?;
    (kind.check_delete)(cloud, &key, &body)?;
    let users = users(cloud, &key);
    if let Some((user, _)) = users.iter().find(|(_, is_hidden)| !is_hidden) {
        return Err(errors::in_use(&call.name, user));
    }
    let (target, name) = (key.clone(), call.name.clone());
    let effect: Effect = Box::new(move |cloud| {
        if let Some((user, _)) = self::users(cloud, &target).first() {
            let message = format!("The resource '{name}' is already being used by '{user}'");
            let error = json!({ "code": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "message": message });
            return Err(
                json!({ "http": 400, "text": "BAD REQUEST", "errors": [error], "code": 9, "message": message }),
            );
        }
        if let Some(object) = cloud.objects.remove(&target) {
            (kind.deleted)(cloud, &target, &object.body);
        }
        Ok(json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }))
    });
    finish(cloud, call, kind, ["delete", "DELETE", "delete"], kind.seconds.2, &key, effect)
}

/// Reads an operation.
pub(crate) fn operation(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    let Some(operation) = cloud.operations.get(&key) else {
        let problem = errors::not_found(call.service.name, &call.name);
        return Err(if call.service.name == "sql" { problem.reason("operationDoesNotExist") } else { problem });
    };
    Ok(cloud.shown(operation))
}

/// Lists operations; `-` is any location.
pub(crate) fn operations(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let wanted: Vec<String> = call.key().split('/').map(str::to_owned).collect();
    let is_one = |operation: &&Operation| {
        let parts: Vec<&str> = operation.key.split('/').collect();
        !operation.is_hidden
            && parts.len() == wanted.len() + 1
            && parts.iter().zip(&wanted).all(|(part, one)| part == one || one == "-")
    };
    let shown: Vec<Value> = cloud.operations.values().filter(is_one).map(|one| cloud.shown(one)).collect();
    let shown = match call.parameter("instance") {
        Some(instance) => shown.into_iter().filter(|one| one["targetId"] == instance).collect(),
        None => shown,
    };
    let is_named = ["aiplatform", "container"].contains(&call.service.name);
    let member = if is_named { "operations" } else { "items" };
    let mut answer = page(call, member, shown);
    if call.service.name == "sql" {
        answer["kind"] = "sql#operationsList".into();
    }
    if call.service.name == "container" {
        answer.as_object_mut().map(|members| members.shift_remove("nextPageToken"));
    }
    Ok(answer)
}
