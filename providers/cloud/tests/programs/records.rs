//! What the tests of DNS records of several clouds share. Each has a `Bench` of its own.

use std::time::Duration;

use serde_json::Value;
use textnlp_provider::cluster::{ClusterAccess, ClusterSite};
use textnlp_provider::component::{ComponentSpec, Endpoint, TrafficShare};
use textnlp_provider::conformance::TestBed;
use textnlp_provider::resource::Object;
use textnlp_provider::{
    Component, Error, ErrorKind, Lineage, Observed, Operation, Problem, Progress, Provider, Scope, Site, Spec, Verb,
    Wanted, error_chain,
};

use crate::{Bench, LINEAGE, STEPS, endpoint};

pub(crate) fn bed(bench: &Bench) -> TestBed<'_> {
    let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
    TestBed::new(&bench.provider, bench.site.environment.clone(), bench.site.name.clone(), lineage)
}

/// The same resource with another attribute.
pub(crate) fn with(wanted: &Wanted, field: &str, value: Value) -> Wanted {
    let mut spec = wanted.spec.as_value().clone();
    spec[field] = value;
    Wanted { spec: Spec::of(&spec), ..wanted.clone() }
}

/// Runs an operation to its end, or to its first error that does not pass.
pub(crate) async fn ends(bench: &Bench, op: &Operation) -> Result<Object, Error> {
    let mut handle = None;
    for _ in 0..STEPS {
        let progress = match &handle {
            None => bench.provider.begin(op).await,
            Some(handle) => bench.provider.advance(op, handle).await,
        };
        match progress {
            Ok(Progress::Done(object)) => return Ok(object),
            Ok(Progress::Pending { handle: next, .. }) => handle = Some(next),
            Ok(Progress::Failed { error, .. }) => return Err(error),
            Err(error) if error.kind.may_pass() => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it does not end");
}

pub(crate) async fn observed(bench: &Bench, wanted: &Wanted) -> Vec<Observed> {
    let scope = Scope {
        lineage: Lineage(uuid::Uuid::from_u128(LINEAGE)),
        environment: &bench.site.environment,
        site: &bench.site.name,
        wanted: std::slice::from_ref(wanted),
        recorded: &[],
    };
    let seen = bench.provider.observe(&scope).await.unwrap();
    seen.into_iter().filter(|(id, _)| *id == wanted.id).map(|(_, seen)| seen).collect()
}

/// What `preflight` says of a record.
pub(crate) async fn said(bench: &Bench, wanted: &Wanted) -> String {
    let problems: Vec<Problem> = bench.provider.preflight(std::slice::from_ref(wanted)).await.unwrap();
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The site in a cluster with these settings.
pub(crate) fn site(bench: &Bench, settings: ClusterAccess) -> Site {
    let cluster = ClusterSite { settings, ..ClusterSite::of("textnlp") };
    Site { cluster: Some(Box::new(cluster)), ..bench.site.clone() }
}

pub(crate) fn gateway(endpoint: Endpoint) -> Component {
    Component { name: "gateway".parse().unwrap(), existing: None, part: ComponentSpec::Endpoint(endpoint) }
}

/// One of several sites.
pub(crate) fn shared(zone: &str, is_at_other_provider: bool) -> Component {
    let sites = [("main", 50), ("other", 0)].map(|(name, weight)| (name.parse().unwrap(), weight)).into();
    let share = TrafficShare { weight: 50, is_at_other_provider, host: "one.example.com".to_owned(), sites };
    gateway(Endpoint { share: Some(share), ..endpoint(Some(zone), "text.example.com") })
}

/// A record of another client is reported, and not created.
pub(crate) async fn is_refused(bench: &Bench, wanted: &Wanted) {
    let seen = observed(bench, wanted).await;
    assert!(matches!(seen.as_slice(), [Observed::Unknown(_)]), "the plan changes nothing: {seen:?}");
    assert!(said(bench, wanted).await.contains("a DNS record"));
    let create = bench.operation(1, Verb::Create, wanted, &wanted.spec, None);
    let error = ends(bench, &create).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
}
