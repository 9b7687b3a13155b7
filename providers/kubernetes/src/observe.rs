//! Observation of a lineage's objects: one list per kind by label, then reads by name for objects that the lists do not
//! contain.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::Value;
use textnlp_provider::{
    CloudId, Error, ErrorKind, Health, KindName, Lineage, Object, Observed, Ownership, ReadFailure, Recorded,
    ResourceId, Result, Scope, Wanted, error_chain,
};

use crate::api::Api;
use crate::error::Call;
use crate::identity::{self, ObjectLocation};
use crate::ready::Ready;
use crate::table::{self, ROWS, Row};
use crate::{diagnosis, manifest};

/// The limit of concurrent calls.
const AT_ONCE: usize = 8;
/// The limit of unready objects whose pods are inspected; the others usually have the same problem.
const EXPLAINED: usize = 5;

/// The wanted and the recorded state of one resource.
#[derive(Default, Clone, Copy)]
struct ResourceState<'a> {
    wanted: Option<&'a Wanted>,
    recorded: Option<&'a Recorded>,
}

impl<'a> ResourceState<'a> {
    fn kind(&self) -> Option<&'a KindName> {
        self.wanted.map(|wanted| &wanted.kind).or(self.recorded.map(|recorded| &recorded.kind))
    }

    /// The expected locations; recorded ones come first, because they have a uid.
    fn places(&self, row: &Row) -> Vec<ObjectLocation> {
        let recorded = self.recorded.filter(|recorded| recorded.kind.as_str() == row.name);
        let recorded = recorded.and_then(|recorded| ObjectLocation::of_id(row, &recorded.cloud_id));
        let wanted = self.wanted.and_then(|wanted| ObjectLocation::of_spec(row, &wanted.spec).ok());
        let mut places: Vec<ObjectLocation> = recorded.into_iter().collect();
        places.extend(
            wanted.filter(|wanted| {
                !places.iter().any(|one| one.name == wanted.name && one.namespace == wanted.namespace)
            }),
        );
        places
    }
}

/// The list of one kind.
struct KindList {
    row: &'static Row,
    /// The objects of the lineage, or why they could not be listed.
    objects: Result<Vec<Value>, String>,
}

pub(crate) async fn observe(api: &Api, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
    let mut asked: BTreeMap<&ResourceId, ResourceState<'_>> = BTreeMap::new();
    for wanted in scope.wanted.iter().filter(|wanted| wanted.site == *scope.site) {
        asked.entry(&wanted.id).or_default().wanted = Some(wanted);
    }
    for recorded in scope.recorded.iter().filter(|recorded| recorded.site == *scope.site) {
        asked.entry(&recorded.id).or_default().recorded = Some(recorded);
    }
    let lists = list_all(api, scope, &asked).await?;
    let mut answer = Vec::new();
    let mut shown: BTreeSet<ResourceId> = BTreeSet::new();
    let mut degraded = Vec::new();
    for list in &lists {
        for raw in list.objects.iter().flatten() {
            let Some(id) = identity::resource(raw).filter(|id| id.site() == scope.site.as_str()) else { continue };
            // A copy with the lineage label is not the deployment's object. A recorded object is, even if its field
            // managers were cleared.
            let recorded = asked.get(&id).and_then(|asked| asked.recorded);
            let recorded = recorded.and_then(|recorded| ObjectLocation::of_id(list.row, &recorded.cloud_id)?.uid);
            if !identity::is_applied(raw, scope.lineage) && recorded.as_deref() != Some(identity::uid(raw)) {
                continue;
            }
            let object = shown_as(list.row, raw, scope.lineage)?;
            if object.health != Health::Ready && list.row.has_pods && degraded.len() < EXPLAINED {
                degraded.push((answer.len(), list.row, raw.clone()));
            }
            shown.insert(id.clone());
            answer.push((id, Observed::Present(object)));
        }
    }
    for (place, row, raw) in degraded {
        if let Observed::Present(Object { health: Health::Degraded(why), .. }) = &mut answer[place].1 {
            *why = diagnosis::of_pods(api, row, &raw, why.clone()).await;
        }
    }
    let mut observations: Vec<BoxFuture<'_, (ResourceId, Observed)>> = Vec::new();
    for (id, asked) in asked {
        if !shown.contains(id) {
            let lists = &lists;
            observations.push(Box::pin(async move { (id.clone(), look_for(api, scope, lists, asked).await) }));
        }
    }
    answer.extend(several(observations).await);
    Ok(answer)
}

pub(crate) async fn read(api: &Api, kind: &KindName, id: &CloudId) -> Result<Observed> {
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, "read", id.to_string()).because(why.to_owned());
    let row = table::row(kind).ok_or_else(|| invalid("its kind is not known to this provider"))?;
    let example = if row.namespaced { "NAMESPACE/NAME" } else { "NAME" };
    let place = ObjectLocation::of_id(row, id).ok_or_else(|| invalid(&format!("an id of this kind is {example}")))?;
    let Some(raw) = get(api, row, &place).await? else { return Ok(Observed::Absent) };
    // An object without a lineage is read without a field manager: the deployment owns none of its fields.
    let lineage = identity::lineage(&raw).unwrap_or(Lineage(Default::default()));
    Ok(Observed::Present(shown_as(row, &raw, lineage)?))
}

/// The object at a location, if it has the expected uid.
async fn get(api: &Api, row: &'static Row, place: &ObjectLocation) -> Result<Option<Value>> {
    let (namespace, name) = (place.namespace.as_deref(), Some(place.name.as_str()));
    let raw = api.get(&Call { action: "read", verb: "get", row, namespace, name }).await?;
    Ok(raw.filter(|raw| place.uid.as_deref().is_none_or(|uid| uid == identity::uid(raw))))
}

/// One list per kind over all namespaces; without that permission, one per namespace of the resources.
async fn list_all(
    api: &Api,
    scope: &Scope<'_>,
    asked: &BTreeMap<&ResourceId, ResourceState<'_>>,
) -> Result<Vec<KindList>> {
    let selector = format!("{}={}", identity::LINEAGE, scope.lineage);
    let namespaces: BTreeSet<String> = asked
        .values()
        .filter_map(|asked| Some((asked, table::row(asked.kind()?)?)))
        .flat_map(|(asked, row)| asked.places(row))
        .filter_map(|place| place.namespace)
        .collect();
    let mut lists: Vec<BoxFuture<'_, Result<Vec<Value>>>> = Vec::new();
    for row in &ROWS {
        lists.push(Box::pin(list(api, row, &selector, &namespaces)));
    }
    let mut found = Vec::new();
    let mut lost = Vec::new();
    for (row, objects) in ROWS.iter().zip(several(lists).await) {
        let objects = match objects {
            Ok(objects) => Ok(objects),
            // A kind that the cluster lacks has no objects.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => {
                let why = error_chain(&error);
                lost.push(error);
                Err(why)
            }
        };
        found.push(KindList { row, objects });
    }
    // If no kind can be listed, that is an error, not a list of unknown objects.
    match lost.len() == ROWS.len() {
        true => Err(lost.swap_remove(0)),
        false => Ok(found),
    }
}

async fn list(api: &Api, row: &'static Row, selector: &str, namespaces: &BTreeSet<String>) -> Result<Vec<Value>> {
    let everywhere = Call { action: "list", verb: "list", row, namespace: None, name: None };
    match api.list(&everywhere, selector).await {
        Err(error) if error.kind == ErrorKind::Denied && row.namespaced && !namespaces.is_empty() => {}
        other => return other,
    }
    let mut objects = Vec::new();
    for namespace in namespaces {
        objects.extend(api.list(&Call { namespace: Some(namespace), ..everywhere }, selector).await?);
    }
    Ok(objects)
}

/// The results of calls in their order, with limited concurrency.
pub(crate) async fn several<T>(calls: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    futures::stream::iter(calls).buffered(AT_ONCE).collect().await
}

/// Reads an object that the lists do not contain: it is absent, it lost its label, or a foreign object has its name.
async fn look_for(api: &Api, scope: &Scope<'_>, lists: &[KindList], asked: ResourceState<'_>) -> Observed {
    let unknown = |why: String| Observed::Unknown(ReadFailure(why));
    let Some(row) = asked.kind().and_then(table::row) else {
        return unknown("its kind is not known to this provider".to_owned());
    };
    let ownership = asked.wanted.map(|wanted| &wanted.ownership).or(asked.recorded.map(|recorded| &recorded.ownership));
    if let Some(Ownership::External(id)) = ownership {
        let kind = KindName::new(row.name).expect("the names in the table are kind names");
        return read(api, &kind, id).await.unwrap_or_else(|error| unknown(error_chain(&error)));
    }
    if let Some(Err(why)) = lists.iter().find(|list| list.row.name == row.name).map(|list| &list.objects) {
        return unknown(why.clone());
    }
    for place in asked.places(row) {
        let uid = place.uid.clone();
        let there = match get(api, row, &ObjectLocation { uid: None, ..place }).await {
            Ok(Some(raw)) => raw,
            Ok(None) => continue,
            Err(error) => return unknown(error_chain(&error)),
        };
        // The recorded object, without the lineage label.
        if uid.as_deref() == Some(identity::uid(&there)) && identity::lineage(&there).is_none() {
            return shown_as(row, &there, scope.lineage)
                .map_or_else(|error| unknown(error_chain(&error)), Observed::Present);
        }
        // It was created after the lists were read, or it belongs to another lineage.
        let whose = match identity::lineage(&there) {
            Some(lineage) if lineage == scope.lineage => "was created during the check".to_owned(),
            Some(lineage) => format!("belongs to lineage {lineage}"),
            None => format!("has no lineage label: {} created it", identity::creator(&there)),
        };
        // Even if the recorded object is gone, a create would fail on the name.
        return unknown(format!(
            "{} {} exists and {whose}",
            row.resource(),
            there["metadata"]["name"].as_str().unwrap_or_default()
        ));
    }
    Observed::Absent
}

fn shown_as(row: &Row, raw: &Value, lineage: Lineage) -> Result<Object> {
    let ready = match raw["metadata"]["deletionTimestamp"].is_string() {
        true => Ready::NotYet(diagnosis::of_ending(raw)),
        false => (row.ready)(raw),
    };
    manifest::seen(row, raw, &identity::manager(lineage), ready)
}
