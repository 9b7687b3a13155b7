//! Rate limits and token budgets of sites with a database each: counted once, in the primary's database.
//!
//! Replicas ask their site agent for [leases](textnlp_store::lease). The primary's agent grants them; the others forward.
//! While the primary cannot be reached, a site grants leases from its own share. The other sites copy the counters, so
//! that the next primary continues with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_control::Site;
use textnlp_net::error_chain;
use textnlp_net::retry::retry;
use textnlp_process::Address;
use textnlp_store::lease::{Granted, LeaseAnswer, LeaseRequest};
use textnlp_store::{Counter, CounterName, RETRIES, StoreError, now_ms};
use tokio_util::sync::CancellationToken;

use super::actor::Leadership;
use super::client;
use super::http::{AgentState, refused};

/// Timeout of a request to the primary, with a second attempt.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long before a second attempt: a primary refuses leases for a moment while it takes the role or is busy.
const REFUSED_DELAY: Duration = Duration::from_millis(200);
/// Timeout of a replica's request: longer than the other, with two changes of a database.
const GRANT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a site uses its own share until it asks the primary again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// About this much of what was counted is unknown to the next primary.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Rates, and budgets, that are copied at most; those that are used up longest go first.
const MAX_COUNTERS: u32 = 100_000;
/// Changes that are remembered; with more of them everything is copied again.
const MAX_CHANGES: usize = 10_000;
/// Counters of one transaction.
const BATCH: usize = 500;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Locked during a grant: leases are granted one after the other.
    granted: tokio::sync::Mutex<Granted>,
    changes: Mutex<Changes>,
    /// Until when the primary is not asked, because it did not answer.
    apart_until: Mutex<Option<Instant>>,
}

/// What changed since this process started, by the number of the last change.
#[derive(Debug)]
struct Changes {
    /// Another process, or one that forgot some changes, has another number.
    run: u64,
    last: u64,
    names: BTreeMap<u64, CounterName>,
    numbers: HashMap<CounterName, u64>,
}

impl Default for Changes {
    fn default() -> Self {
        let run = now_ms().unsigned_abs().max(1);
        Self { run, last: 0, names: BTreeMap::new(), numbers: HashMap::new() }
    }
}

impl Changes {
    fn note(&mut self, name: CounterName) {
        if self.names.len() >= MAX_CHANGES {
            self.names.clear();
            self.numbers.clear();
            self.run += 1;
        }
        self.last += 1;
        self.names.insert(self.last, name.clone());
        if let Some(before) = self.numbers.insert(name, self.last) {
            self.names.remove(&before);
        }
    }

    /// What changed after a number; `None` when that is unknown.
    fn after(&self, run: u64, after: u64) -> Option<Vec<CounterName>> {
        (run == self.run && after <= self.last)
            .then(|| self.names.range(after + 1..).map(|(_, name)| name.clone()).collect())
    }
}

impl Counters {
    fn changes(&self) -> std::sync::MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to ask the primary: after a failure, one request at a time tries it again.
    fn may_forward(&self) -> bool {
        let mut until = self.apart_until.lock().unwrap_or_else(PoisonError::into_inner);
        match *until {
            None => true,
            Some(at) if Instant::now() < at => false,
            Some(_) => {
                *until = Some(Instant::now() + FORWARD_TIMEOUT + RETRY_INTERVAL);
                true
            }
        }
    }

    fn forwarded(&self, why: Result<(), &str>) {
        let mut until = self.apart_until.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *until, why.err().map(|_| Instant::now() + RETRY_INTERVAL));
        match (why, before) {
            (Err(why), None) => tracing::warn!(%why, "limits are counted apart: the primary grants no leases"),
            (Ok(()), Some(_)) => tracing::info!("the primary grants leases again"),
            _ => {}
        }
    }
}

/// `POST /v1/counters`: ends a lease and grants the next one.
pub(super) async fn grant(
    State(watch): State<Arc<AgentState>>,
    Query(query): Query<BTreeMap<String, String>>,
    Json(mut request): Json<LeaseRequest>,
) -> Response {
    if !request.is_valid() {
        let hint = "names have up to 200 characters, and amounts are below 2^50";
        return refused(StatusCode::BAD_REQUEST, "bad_request", "a name or an amount is out of bounds", hint);
    }
    let sites = watch.config.sites().len() as u64;
    let is_forwarded = query.contains_key("forwarded");
    if !is_forwarded {
        if let Err(error) = watch.store.settle_apart(&request, sites).await {
            return failed(&error);
        }
        request.settled_apart = Default::default();
    }
    let answer = match watch.actor.standing().await {
        Ok(Leadership { lease_ms: Some(_), .. }) => match here(&watch, &request, sites).await {
            Some(answer) => answer,
            None => {
                let message = "too many leases are granted";
                return refused(StatusCode::SERVICE_UNAVAILABLE, "busy", message, "try again in a moment");
            }
        },
        _ if is_forwarded => return not_primary(),
        Ok(Leadership { primary: Some(primary), .. }) => elsewhere(&watch, &primary, &request, sites).await,
        _ => watch.store.lease_apart(&request, sites, now_ms()).await,
    };
    answer.map_or_else(|error| failed(&error), |answer| Json(answer).into_response())
}

/// Grants at the primary; `None` where no further lease can be remembered.
async fn here(watch: &AgentState, request: &LeaseRequest, sites: u64) -> Option<Result<LeaseAnswer, StoreError>> {
    let mut granted = watch.counters.granted.lock().await;
    if !granted.has_room(request, now_ms()) {
        return None;
    }
    let leased = granted.leased(request, now_ms());
    let lease = || watch.store.lease(request, sites, leased, now_ms());
    let answer = match retry(RETRIES, StoreError::passes, lease).await {
        Ok(answer) => answer,
        Err(error) => return Some(Err(error)),
    };
    granted.note(request, &answer, now_ms());
    drop(granted);
    let mut changes = watch.counters.changes();
    request.reservation.counters().into_iter().for_each(|name| changes.note(name));
    Some(Ok(answer))
}

async fn elsewhere(
    watch: &AgentState,
    primary: &Site,
    request: &LeaseRequest,
    sites: u64,
) -> Result<LeaseAnswer, StoreError> {
    let mut unsettled = request.settled;
    if let Some(address) = watch.config.peers.get(primary).filter(|_| watch.counters.may_forward()) {
        let why = match forward(address, &json!(request)).await {
            Ok((StatusCode::OK, answer)) => match serde_json::from_value(answer) {
                Ok(answer) => {
                    watch.counters.forwarded(Ok(()));
                    return Ok(answer);
                }
                Err(error) => {
                    unsettled = unsettled.safe_to_repeat();
                    error.to_string()
                }
            },
            // Refused, so nothing was done.
            Ok((status, answer)) => {
                let code = answer["error"]["code"].as_str().unwrap_or_default();
                format!("it answered {status} {code}").trim_end().to_owned()
            }
            Err(why) => {
                if !why.starts_with("connect") {
                    unsettled = unsettled.safe_to_repeat();
                }
                why
            }
        };
        watch.counters.forwarded(Err(&why));
    }
    let answer = watch.store.lease_apart(request, sites, now_ms()).await?;
    Ok(LeaseAnswer { unsettled, ..answer })
}

/// Asks the primary, and once more if it refuses for the moment.
async fn forward(primary: &Address, request: &Value) -> Result<(StatusCode, Value), String> {
    const PATH: &str = "/v1/counters?forwarded=1";
    let begun = Instant::now();
    let answered = client::post(primary, PATH, request, FORWARD_TIMEOUT).await;
    // After an error of its database, the primary may have counted the request.
    let is_for_the_moment = |answer: &Value| matches!(answer["error"]["code"].as_str(), Some("busy" | "not_primary"));
    if !matches!(&answered, Ok((StatusCode::SERVICE_UNAVAILABLE, answer)) if is_for_the_moment(answer)) {
        return answered;
    }
    tokio::time::sleep(REFUSED_DELAY).await;
    match FORWARD_TIMEOUT.checked_sub(begun.elapsed()) {
        Some(rest) => client::post(primary, PATH, request, rest).await,
        None => answered,
    }
}

/// A page of changes.
#[derive(Debug, Serialize, Deserialize)]
struct Page {
    run: u64,
    last: u64,
    counters: Vec<Counter>,
}

impl Page {
    /// Leaves out what no site counts, and what is more than a page has.
    fn truncate(&mut self, now_ms: i64) {
        let before = self.counters.len();
        self.counters.truncate(2 * MAX_COUNTERS as usize);
        self.counters.retain(|counter| counter.is_valid(now_ms));
        let invalid = before - self.counters.len();
        if invalid > 0 {
            tracing::warn!(invalid, "counters of the primary are out of bounds and were left out");
        }
    }
}

/// `GET /v1/counters`: at the primary, the counters that changed after a number, or all of them.
pub(super) async fn changes(
    State(watch): State<Arc<AgentState>>,
    Query(query): Query<BTreeMap<String, u64>>,
) -> Response {
    if !matches!(watch.actor.standing().await, Ok(Leadership { lease_ms: Some(_), .. })) {
        return not_primary();
    }
    let number = |name: &str| query.get(name).copied().unwrap_or(0);
    let (run, last, names) = {
        let changes = watch.counters.changes();
        (changes.run, changes.last, changes.after(number("run"), number("after")))
    };
    let counters = async {
        let Some(names) = names else { return watch.store.counters(MAX_COUNTERS, now_ms()).await };
        let mut counters = Vec::new();
        for name in names {
            counters.extend(watch.store.counter(&name).await?);
        }
        Ok(counters)
    };
    match counters.await {
        Ok(counters) => Json(Page { run, last, counters }).into_response(),
        Err(error) => failed(&error),
    }
}

fn not_primary() -> Response {
    let message = "this site is not the primary";
    refused(StatusCode::SERVICE_UNAVAILABLE, "not_primary", message, "try again in a moment")
}

fn failed(error: &StoreError) -> Response {
    let hint = "check the database of this site";
    refused(StatusCode::SERVICE_UNAVAILABLE, "database", error_chain(error), hint)
}

/// Copies the primary's counters until the site agent stops.
pub(super) async fn follow(watch: Arc<AgentState>, stop: CancellationToken) {
    let mut place: Option<(Site, u64, u64)> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let Some(primary) = primary_elsewhere(&watch).await else { continue };
        let Some(address) = watch.config.peers.get(&primary) else { continue };
        let (run, after) = place.as_ref().filter(|place| place.0 == primary).map_or((0, 0), |place| (place.1, place.2));
        let path = format!("/v1/counters?run={run}&after={after}");
        let Ok((StatusCode::OK, page)) = client::get(address, &path, POLL_TIMEOUT).await else { continue };
        let Ok(mut page) = serde_json::from_value::<Page>(page) else { continue };
        page.truncate(now_ms());
        // What this site counts itself by now is newer.
        if primary_elsewhere(&watch).await.as_ref() != Some(&primary) {
            continue;
        }
        let mut written = Ok(());
        for counters in page.counters.chunks(BATCH) {
            written = retry(RETRIES, StoreError::may_be_repeated, || watch.store.put_counters(counters)).await;
            if written.is_err() {
                break;
            }
        }
        match written {
            Ok(()) => place = Some((primary, page.run, page.last)),
            Err(error) => tracing::warn!(error = %error_chain(&error), "counters could not be copied"),
        }
    }
}

async fn primary_elsewhere(watch: &AgentState) -> Option<Site> {
    let standing = watch.actor.standing().await.ok()?;
    standing.primary.filter(|primary| *primary != watch.config.site)
}

/// Why a replica got no lease.
#[derive(Debug, thiserror::Error)]
#[error("the site agent grants no lease: {0}")]
pub struct LeaseError(String);

impl LeaseError {
    /// With a reason.
    pub fn new(why: impl ToString) -> Self {
        Self(why.to_string())
    }
}

/// Asks a site agent to end a lease and for the next one.
pub async fn lease(agent: &Address, request: &LeaseRequest) -> Result<LeaseAnswer, LeaseError> {
    let answered = client::post(agent, "/v1/counters", &json!(request), GRANT_TIMEOUT).await;
    match answered.map_err(LeaseError)? {
        (StatusCode::OK, answer) => serde_json::from_value(answer).map_err(|error| LeaseError(error.to_string())),
        (status, answer) => {
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            Err(LeaseError(format!("it answered {status} {message}").trim_end().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn changes_name_each_counter_once_and_start_over_when_some_were_forgotten() {
        let name = |id: &str| CounterName::Budget { id: id.to_owned() };
        let mut changes = Changes::default();
        let run = changes.run;
        assert_eq!(changes.after(0, 0), None, "a new follower copies everything");
        for id in ["a", "b", "a"] {
            changes.note(name(id));
        }
        assert_eq!(changes.after(run, 0), Some(vec![name("b"), name("a")]));
        assert_eq!(changes.after(run, 2), Some(vec![name("a")]));
        assert_eq!(changes.after(run, 3), Some(vec![]));
        for number in 0..MAX_CHANGES {
            changes.note(name(&number.to_string()));
        }
        assert_eq!(changes.after(run, 3), None);
        assert!(changes.names.len() < MAX_CHANGES && changes.names.len() == changes.numbers.len());
    }

    #[test]
    fn page_of_counters_is_bounded_and_has_valid_values_only() {
        let budget = |used| Counter::Budget { id: "key k".into(), limit: 1, reserved: 0, used, expires_at: 1 };
        let counters = [budget(-1), budget(1)].into_iter().chain((0..2 * MAX_COUNTERS).map(|_| budget(0))).collect();
        let mut page = Page { run: 1, last: 1, counters };
        page.truncate(0);
        assert_eq!(page.counters.len(), 2 * MAX_COUNTERS as usize - 1);
        assert_eq!(page.counters[0], budget(1));
    }

    #[tokio::test]
    async fn primary_that_refuses_for_a_moment_is_asked_once_more() {
        const REFUSED: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        let asked = Arc::new(AtomicU32::new(0));
        let cases = [(1, "busy", StatusCode::OK, 2), (2, "not_primary", REFUSED, 2), (1, "database", REFUSED, 1)];
        for (refusals, code, expected, requests) in cases {
            asked.store(0, Ordering::SeqCst);
            let count = asked.clone();
            let answer = axum::routing::post(move || {
                let is_refused = count.fetch_add(1, Ordering::SeqCst) < refusals;
                async move { if is_refused { refused(REFUSED, code, "", "") } else { Json(json!({})).into_response() } }
            });
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let primary = Address::Tcp(listener.local_addr().unwrap().to_string());
            let served =
                tokio::spawn(
                    async move { axum::serve(listener, axum::Router::new().route("/v1/counters", answer)).await },
                );
            assert_eq!(forward(&primary, &json!({})).await.unwrap().0, expected);
            assert_eq!(asked.load(Ordering::SeqCst), requests, "{code}");
            served.abort();
        }
    }

    #[test]
    fn unreachable_primary_is_asked_by_one_request_at_a_time() {
        let counters = Counters::default();
        assert!(counters.may_forward() && counters.may_forward());
        counters.forwarded(Err("no answer"));
        assert!(!counters.may_forward());
        *counters.apart_until.lock().unwrap() = Some(Instant::now());
        assert!(counters.may_forward() && !counters.may_forward());
        counters.forwarded(Ok(()));
        assert!(counters.may_forward() && counters.may_forward());
    }
}
