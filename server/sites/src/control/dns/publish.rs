//! Carries out the due jobs: one request at a time, each with a timeout.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::DNSClass;
use hickory_proto::rr::RecordType::CNAME;
use serde_json::{Value, json};
use textnlp_control::{Millis, Site};
use textnlp_store::now_ms;
use tokio_util::sync::CancellationToken;

use super::super::clock;
use super::super::witness::Running;
use super::failed::{Failed, NXDOMAIN};
use super::message::{self, ADDRESSES, Wanted};
use super::query::query;
use super::records::{Done, Job, State};
use super::settings::DnsConfig;
use super::tsig::Key;

/// A name that follows the sites.
#[derive(Debug)]
pub(in super::super) struct Records {
    config: DnsConfig,
    state: Mutex<State>,
}

/// Values for the metrics endpoint.
#[derive(Debug)]
pub(in super::super) struct DnsMetrics {
    pub(in super::super) failures: u64,
    pub(in super::super) is_right: bool,
    /// Seconds since the name server last confirmed the wanted records; infinite before the first time.
    pub(in super::super) confirmed_seconds: f64,
}

/// Keeps the DNS records up to date until the witness stops.
pub(in super::super) async fn publish(running: Arc<Running>, stop: CancellationToken) {
    const POLL_INTERVAL: Duration = Duration::from_millis(200);
    let Some(records) = &running.dns else { return };
    while !stop.is_cancelled() {
        if let Some(weights) = running.wanted_weights() {
            records.want(&weights);
        }
        tokio::select! {
            // An update in progress may or may not take effect; the next witness starts with an update.
            () = stop.cancelled() => return,
            () = records.step(clock::now(), now_ms()) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

impl Records {
    pub(in super::super) fn new(config: DnsConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    pub(super) fn want(&self, weights: &BTreeMap<Site, u32>) {
        let mut state = self.state();
        if state.want(self.config.wanted(weights)) {
            tracing::info!(name = %self.config.name, addresses = ?state.wanted(), "DNS is updated to send traffic to other sites");
        }
    }

    /// Runs the job that is due at `now`, if any. `wall_ms` is milliseconds since 1970.
    pub(super) async fn step(&self, now: Millis, wall_ms: i64) {
        let Some(job) = self.state().due(now) else { return };
        let done = self.carry_out(&job, wall_ms).await;
        self.tell(&job, &done);
        self.state().done(job, done, now, wall_ms);
    }

    async fn carry_out(&self, job: &Job, wall_ms: i64) -> Done {
        let mut acknowledged = false;
        let work = async {
            let (key, now) = (self.config.key()?, wall_ms.unsigned_abs() / 1000);
            let (Job::Update(wanted) | Job::Check(wanted)) = job;
            if let Job::Update(wanted) = job {
                self.update(&key, wanted, now).await?;
                acknowledged = true;
            }
            self.look(&key, wanted, now).await
        };
        let outcome = work.await;
        Done { acknowledged, outcome }
    }

    async fn update(&self, key: &Key, wanted: &Wanted, now: u64) -> Result<(), Failed> {
        let DnsConfig { zone, name, ttl_seconds, .. } = &self.config;
        let message = message::update(number(), &zone.0, &name.0, *ttl_seconds, wanted);
        match self.exchange(key, message, now).await?.response_code.low() {
            0 => Ok(()),
            rcode => Err(Failed::Refused { what: "update", rcode }),
        }
    }

    /// Whether the authoritative server, not a cache, has the wanted records.
    async fn look(&self, key: &Key, wanted: &Wanted, now: u64) -> Result<(), Failed> {
        let (mut there, mut lives_right) = (BTreeSet::<IpAddr>::new(), true);
        let name = &self.config.name.0;
        for kind in ADDRESSES {
            let answer = self.exchange(key, message::query(number(), name, kind), now).await?;
            let rcode = answer.response_code.low();
            if !matches!(rcode, 0 | NXDOMAIN) {
                return Err(Failed::Refused { what: "query", rcode });
            }
            if !answer.authoritative {
                return Err(Failed::NotAuthoritative);
            }
            if answer.truncation {
                return Err(Failed::Malformed("the answer did not fit into a datagram, and TCP is blocked"));
            }
            for record in answer.answers.iter().filter(|r| r.name == *name && r.dns_class == DNSClass::IN) {
                if record.record_type() == CNAME {
                    return Err(Failed::Alias);
                }
                if let Some(address) = record.data.ip_addr() {
                    there.insert(address);
                    lives_right &= record.ttl == self.config.ttl_seconds;
                }
            }
        }
        if there == *wanted.addresses() && lives_right { Ok(()) } else { Err(Failed::Different { there }) }
    }

    async fn exchange(&self, key: &Key, message: Message, now: u64) -> Result<Message, Failed> {
        let request = key.sign(message, now);
        key.open(&query(self.config.server, &request.bytes).await?, &request, now)
    }

    fn tell(&self, job: &Job, done: &Done) {
        let (Job::Update(wanted) | Job::Check(wanted)) = job;
        let (name, addresses) = (&self.config.name, wanted.addresses());
        if done.acknowledged {
            tracing::info!(%name, ?addresses, "the name server accepted the addresses");
        }
        match (&done.outcome, self.state().error()) {
            (Ok(()), Some(_)) => tracing::info!(%name, ?addresses, "the DNS name is correct again"),
            (Err(error), before) => {
                let hint = error.hint(&self.config);
                // Repetitions count only in the metrics: a server that is down fails many attempts.
                if before.is_none_or(|before| before.code() != error.code()) {
                    tracing::warn!(%name, ?addresses, cause = %error, %hint, "the DNS name is not correct");
                } else {
                    tracing::debug!(%name, ?addresses, cause = %error, "retry");
                }
            }
            (Ok(()), None) => {}
        }
    }

    /// See `GET /v1/status`.
    pub(in super::super) fn status(&self) -> Value {
        let state = self.state();
        let acknowledged = state.acknowledged();
        let at = acknowledged.and_then(|(_, at_ms)| jiff::Timestamp::from_millisecond(at_ms).ok());
        let error = state.error().map(
            |error| json!({ "code": error.code(), "message": error.to_string(), "hint": error.hint(&self.config) }),
        );
        json!({
            "name": self.config.name.to_string(),
            "wanted": state.wanted(),
            "last_acknowledged": acknowledged.map(|(addresses, _)| addresses),
            "at": at.map(|at| at.to_string()),
            "error": error,
        })
    }

    pub(in super::super) fn figures(&self) -> DnsMetrics {
        let state = self.state();
        let since = |at| clock::now().saturating_sub(at) as f64 / 1000.0;
        DnsMetrics {
            failures: state.failures(),
            is_right: state.is_right(),
            confirmed_seconds: state.confirmed().map_or(f64::INFINITY, since),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number for a request that a stranger does not guess.
fn number() -> u16 {
    let random = uuid::Uuid::new_v4();
    u16::from_be_bytes([random.as_bytes()[0], random.as_bytes()[1]])
}
