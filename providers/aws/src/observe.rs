//! Observes a site in bulk: one list for each kind, by the tag of the lineage.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use textnlp_provider::{
    CloudId, Error, ErrorKind, KindName, Observed, Ownership, ReadFailure, ResourceId, Result, Scope, Spec, error_chain,
};

use crate::api::Api;
use crate::resource::{Filter, ObservedObject, State};
use crate::table::{self, Row};
use crate::tags;

/// Kinds that are listed at the same time.
const AT_ONCE: usize = 8;

/// Answers for every wanted and recorded id, and for objects of this deployment and site that neither lists.
pub(crate) async fn observe(api: &Api, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
    let filter = Filter::Lineage(scope.lineage);
    let lists: Vec<_> = table::rows().map(|row| list(api, row, &filter)).collect();
    let lists: Vec<_> = futures::stream::iter(lists).buffer_unordered(AT_ONCE).collect().await;

    let mut answers: BTreeMap<ResourceId, Vec<Observed>> = BTreeMap::new();
    let mut failures: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut shown: BTreeSet<(&'static str, String)> = BTreeSet::new();
    for (row, list) in lists {
        let objects = match list {
            Ok(objects) => objects,
            Err(error) => {
                failures.insert(row.kind.name, error_chain(&error));
                continue;
            }
        };
        for seen in objects.into_iter().filter(|seen| seen.state != State::Gone) {
            let Some(id) = tags::resource(&seen.tags).filter(|id| id.site() == scope.site.as_str()) else { continue };
            // A list by tags may be stale; the tags that it shows decide.
            if tags::lineage(&seen.tags) != Some(scope.lineage) || seen.state == State::Deleting {
                continue;
            }
            shown.insert((row.kind.name, seen.id.clone()));
            answers.entry(id).or_default().extend(present(row, &seen));
        }
    }

    for one in Asked::all(scope) {
        let Some(row) = table::row(one.kind) else { continue };
        let answer = one.observe(api, row, scope, &failures, &shown).await;
        let known = answers.entry(one.id.clone()).or_default();
        known.extend(answer);
        if known.is_empty() {
            known.push(Observed::Absent);
        }
    }
    Ok(answers.into_iter().flat_map(|(id, all)| all.into_iter().map(move |one| (id.clone(), one))).collect())
}

async fn list(api: &Api, row: &'static Row, filter: &Filter) -> (&'static Row, Result<Vec<ObservedObject<Spec>>>) {
    (row, row.resource.list(api, filter).await)
}

/// An id that an observation was asked for.
struct Asked<'a> {
    id: &'a ResourceId,
    kind: &'a KindName,
    /// Its object, as recorded or as an existing object.
    cloud_id: Option<&'a CloudId>,
    is_external: bool,
    /// Its spec, if it is wanted.
    spec: Option<&'a Spec>,
}

impl<'a> Asked<'a> {
    fn all(scope: &Scope<'a>) -> Vec<Self> {
        let wanted = scope.wanted.iter().map(|wanted| {
            let external = match &wanted.ownership {
                Ownership::External(id) => Some(id),
                Ownership::Ours => None,
            };
            let (id, kind, spec) = (&wanted.id, &wanted.kind, Some(&wanted.spec));
            Self { id, kind, cloud_id: external, is_external: external.is_some(), spec }
        });
        let recorded = scope.recorded.iter().map(|recorded| Self {
            id: &recorded.id,
            kind: &recorded.kind,
            cloud_id: Some(&recorded.cloud_id),
            is_external: matches!(recorded.ownership, Ownership::External(_)),
            spec: None,
        });
        wanted.chain(recorded).collect()
    }

    /// What the lists did not show. They are eventually consistent, so an id that is known is read before it counts as gone.
    async fn observe(
        &self,
        api: &Api,
        row: &'static Row,
        scope: &Scope<'_>,
        failures: &BTreeMap<&'static str, String>,
        shown: &BTreeSet<(&'static str, String)>,
    ) -> Option<Observed> {
        let name = || self.spec.and_then(|spec| row.resource.id(spec));
        let id = self.cloud_id.map(|id| id.as_str().to_owned()).or_else(name);
        let Some(id) = id.filter(|id| !shown.contains(&(row.kind.name, id.clone()))) else {
            return failures.get(row.kind.name).filter(|_| self.cloud_id.is_none()).map(|why| unknown(why.clone()));
        };
        match row.resource.read(api, &id).await {
            Ok(Some(seen)) if !matches!(seen.state, State::Gone | State::Deleting) => {
                let whose = tags::lineage(&seen.tags);
                if self.is_external || self.cloud_id.is_some() && whose.is_none_or(|whose| whose == scope.lineage) {
                    return present(row, &seen);
                }
                match whose {
                    // A name that is wanted and not recorded: listed late.
                    Some(whose) if whose == scope.lineage => present(row, &seen),
                    Some(whose) => Some(unknown(format!("`{id}` belongs to the deployment {whose}"))),
                    None => Some(unknown(format!("`{id}` exists and has no tag `{}`", tags::LINEAGE))),
                }
            }
            Ok(_) => None,
            Err(error) => Some(unknown(error_chain(&error))),
        }
    }
}

fn present(row: &Row, seen: &ObservedObject<Spec>) -> Option<Observed> {
    seen.object(&row.kind).map(Observed::Present)
}

fn unknown(why: String) -> Observed {
    Observed::Unknown(ReadFailure(why))
}

/// Reads one object by its id.
pub(crate) async fn read(api: &Api, kind: &KindName, id: &CloudId) -> Result<Observed> {
    let Some(row) = table::row(kind) else {
        let error = Error::new(ErrorKind::Invalid, "read", id.to_string());
        return Err(error.because(format!("`{kind}` is no kind of AWS")));
    };
    let seen = row.resource.read(api, id.as_str()).await?.filter(|seen| seen.state != State::Gone);
    Ok(seen.and_then(|seen| present(row, &seen)).unwrap_or(Observed::Absent))
}
