//! Observes a site in bulk: one list for each kind, by the tag of the lineage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use textnlp_net::retry::{Backoff, RetryPolicy, retry};
use textnlp_provider::{
    CloudId, Error, ErrorKind, KindName, Observed, Ownership, ReadFailure, ResourceId, Result, Scope, Spec, error_chain,
};

use crate::cloud::{Cloud, region_of};
use crate::resource::{Filter, ObservedObject, State};
use crate::table::{self, Row};
use crate::tags;

/// How throttled reads are repeated: a list has many pages, and one that is refused would lose them all.
const READS: RetryPolicy =
    RetryPolicy::new(4, Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(4) });
/// Kinds that are listed at the same time.
const AT_ONCE: usize = 8;

/// Answers for every wanted and recorded id, and for objects of this deployment and site that neither lists, of these kinds.
pub async fn observe<C: Cloud>(
    api: &Arc<C>,
    scope: &Scope<'_>,
    is_observed: impl Fn(&str) -> bool,
) -> Result<Vec<(ResourceId, Observed)>> {
    let (filter, is_observed) = (Filter::<C>::of(scope.lineage), &is_observed);
    // In other regions than that of the site there are only those kinds that a spec names there.
    let specs = scope.wanted.iter().map(|one| (&one.kind, &one.spec));
    let specs = specs.chain(scope.recorded.iter().map(|one| (&one.kind, &one.spec)));
    let elsewhere: BTreeSet<(&str, &str)> =
        specs.filter_map(|(kind, spec)| Some((region_of(spec)?, kind.as_str()))).collect();
    let is_there = |region: &str, row: &Row<C>| elsewhere.contains(&(region, row.kind.name));
    let regions: BTreeSet<&str> = elsewhere.iter().map(|(region, _)| *region).collect();
    let there = regions.into_iter().filter(|region| *region != api.region()).flat_map(|region| {
        table::rows::<C>()
            .filter(move |row| is_there(region, row) && is_observed(row.kind.name))
            .map(move |row| (api.in_region(region), row))
    });
    let here = table::rows::<C>().filter(|row| is_observed(row.kind.name)).map(|row| (api.clone(), row));
    let lists: Vec<_> = here.chain(there).map(|(api, row)| list(api, row, &filter)).collect();
    let lists: Vec<_> = futures::stream::iter(lists).buffer_unordered(AT_ONCE).collect().await;

    let mut answers: BTreeMap<ResourceId, Vec<Observed>> = BTreeMap::new();
    let mut failures: BTreeMap<(String, &'static str), String> = BTreeMap::new();
    let mut shown: BTreeSet<(String, &'static str, String)> = BTreeSet::new();
    for (region, row, list) in lists {
        let objects = match list {
            Ok(objects) => objects,
            Err(error) => {
                failures.insert((region.clone(), row.kind.name), error_chain(&error));
                continue;
            }
        };
        for seen in objects.into_iter().filter(|seen| seen.state != State::Gone) {
            let Some(id) = tags::resource(&seen.tags).filter(|id| id.site() == scope.site.as_str()) else { continue };
            // A list by tags may be stale; the tags that it shows decide.
            if tags::lineage(&seen.tags) != Some(scope.lineage) || seen.state == State::Deleting {
                continue;
            }
            shown.insert((region.clone(), row.kind.name, seen.id.clone()));
            answers.entry(id).or_default().extend(present(row, &seen));
        }
    }

    // An object that is both recorded and wanted is read once, as the recorded one.
    let mut asked: BTreeMap<(&ResourceId, String, Option<String>), Asked<'_, C>> = BTreeMap::new();
    for one in Asked::all(api, scope) {
        asked.entry((one.id, one.api.region().to_owned(), one.object())).or_insert(one);
    }
    let unlisted = |((_, region, object), one): &((&ResourceId, String, Option<String>), Asked<'_, C>)| {
        object.as_ref().is_none_or(|id| !shown.contains(&(region.clone(), one.row.kind.name, id.clone())))
    };
    let asked_for: BTreeSet<ResourceId> = asked.keys().map(|(id, ..)| (*id).clone()).collect();
    let reads: Vec<_> = asked.into_iter().filter(unlisted).map(|(_, one)| one.observe(scope, &failures)).collect();
    let reads: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
    for (id, answer) in reads {
        answers.entry(id).or_default().extend(answer);
    }
    for id in asked_for {
        let known = answers.entry(id).or_default();
        if known.is_empty() {
            known.push(Observed::Absent);
        }
    }
    Ok(answers.into_iter().flat_map(|(id, all)| all.into_iter().map(move |one| (id.clone(), one))).collect())
}

async fn list<C: Cloud>(
    api: Arc<C>,
    row: &'static Row<C>,
    filter: &Filter<C>,
) -> (String, &'static Row<C>, Result<Vec<ObservedObject<Spec>>>) {
    let found = retry(READS, is_throttled, || row.resource.list(&api, filter)).await;
    (api.region().to_owned(), row, found)
}

fn is_throttled(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Throttled { .. })
}

/// An id that an observation was asked for.
struct Asked<'a, C: Cloud> {
    id: &'a ResourceId,
    /// The clients of its region.
    api: Arc<C>,
    row: &'static Row<C>,
    /// Its object, as recorded or as an existing object.
    cloud_id: Option<&'a CloudId>,
    is_external: bool,
    /// Its spec, if it is wanted.
    spec: Option<&'a Spec>,
}

impl<'a, C: Cloud> Asked<'a, C> {
    /// Those of this provider's kinds, the recorded ones first.
    fn all(api: &Arc<C>, scope: &Scope<'a>) -> Vec<Self> {
        let recorded = scope.recorded.iter().filter_map(|recorded| {
            let is_external = matches!(recorded.ownership, Ownership::External(_));
            let row = table::row(&recorded.kind)?;
            let api = api.of_spec(&recorded.spec);
            Some(Self { id: &recorded.id, api, row, cloud_id: Some(&recorded.cloud_id), is_external, spec: None })
        });
        let wanted = scope.wanted.iter().filter_map(|wanted| {
            let external = match &wanted.ownership {
                Ownership::External(id) => Some(id),
                Ownership::Ours => None,
            };
            let (row, spec) = (table::row(&wanted.kind)?, Some(&wanted.spec));
            let api = api.of_spec(&wanted.spec);
            Some(Self { id: &wanted.id, api, row, cloud_id: external, is_external: external.is_some(), spec })
        });
        recorded.chain(wanted).collect()
    }

    /// The id of its object, if that is known or follows from its name.
    fn object(&self) -> Option<String> {
        let name = || self.spec.and_then(|spec| self.row.resource.id(spec));
        self.cloud_id.map(|id| id.as_str().to_owned()).or_else(name)
    }

    /// What the lists did not show. They are eventually consistent, so an id that is known is read before it counts as gone.
    async fn observe(
        self,
        scope: &Scope<'_>,
        failures: &BTreeMap<(String, &'static str), String>,
    ) -> (ResourceId, Option<Observed>) {
        let row = self.row;
        let Some(id) = self.object() else {
            return (
                self.id.clone(),
                failures.get(&(self.api.region().to_owned(), row.kind.name)).map(|why| unknown(why.clone())),
            );
        };
        let answer = match retry(READS, is_throttled, || row.resource.read(&self.api, &id)).await {
            Ok(Some(seen)) if !matches!(seen.state, State::Gone | State::Deleting) => {
                match tags::lineage(&seen.tags) {
                    _ if self.is_external => present(row, &seen),
                    // Also a name that is wanted and not recorded: listed late.
                    Some(whose) if whose == scope.lineage => present(row, &seen),
                    // The plan tells whether it is the recorded one.
                    None if self.cloud_id.is_some() => present(row, &seen),
                    // Wanted and not recorded: the plan refuses it, and says whose it is.
                    Some(_) if self.cloud_id.is_none() => present(row, &seen),
                    Some(whose) => Some(unknown(format!("`{id}` belongs to the deployment {whose}"))),
                    // A create adopts it.
                    None if !row.resource.carries_tags() => None,
                    None if seen.tags.is_empty() && row.resource.is_made_by_cloud(&seen.id) => None,
                    None => Some(unknown(format!("`{id}` exists and has no tag `{}`", tags::LINEAGE))),
                }
            }
            Ok(_) => None,
            Err(error) => Some(unknown(error_chain(&error))),
        };
        (self.id.clone(), answer)
    }
}

fn present<C: Cloud>(row: &Row<C>, seen: &ObservedObject<Spec>) -> Option<Observed> {
    seen.object(row).map(Observed::Present)
}

fn unknown(why: String) -> Observed {
    Observed::Unknown(ReadFailure(why))
}

/// Reads one object by its id.
pub async fn read<C: Cloud>(api: &C, kind: &KindName, id: &CloudId) -> Result<Observed> {
    let Some(row) = table::row::<C>(kind) else {
        let error = Error::new(ErrorKind::Invalid, "read", id.to_string());
        return Err(error.because(format!("`{kind}` is no kind of {}", C::NAME)));
    };
    let seen = row.resource.read(api, id.as_str()).await?.filter(|seen| seen.state != State::Gone);
    Ok(seen.and_then(|seen| present(row, &seen)).unwrap_or(Observed::Absent))
}
