//! The HTTP server in front of a simulated cloud.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;

use crate::aws::model::lock;
use crate::clock::Random;
use crate::fault_plan::FaultPlan;
use crate::server::{Protocols, Server};
use crate::{Credential, Timing, World, aws};

/// How many requests and violations are kept.
const MAX_RECORDS: usize = 100_000;

/// How a simulated cloud starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// What ids and chances follow from.
    pub seed: u64,
    /// Delays.
    pub timing: Timing,
    /// The account of the first identity.
    pub account: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, timing: Timing::default(), account: "123456789012".to_owned() }
    }
}

impl Options {
    /// Everything is ready at the next request.
    #[must_use]
    pub fn zero_latency() -> Self {
        Self { timing: Timing { zero_latency: true, ..Timing::default() }, ..Self::default() }
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// With an output.
    #[default]
    Succeeded,
    /// With an error of this code.
    Failed(String),
}

/// One request and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The service, by its signing name.
    pub service: &'static str,
    /// The operation.
    pub operation: String,
    /// The region of the signature.
    pub region: String,
    /// The account of the identity; empty if it is unknown.
    pub account: String,
    /// The ARN of the identity; empty if it is unknown.
    pub identity: String,
    /// The input, in which what the model calls sensitive is `***`.
    pub input: Value,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the answer was lost by an injected fault.
    pub is_lost: bool,
}

/// What happened to a simulated cloud, and the faults that are still to happen.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) faults: Mutex<FaultPlan>,
    exchanges: Mutex<VecDeque<Exchange>>,
    violations: Mutex<Vec<String>>,
}

impl Log {
    pub(crate) fn violation(&self, what: String) {
        let mut violations = lock(&self.violations);
        if violations.len() < MAX_RECORDS {
            violations.push(what);
        }
    }

    pub(crate) fn record(&self, exchange: Exchange) {
        let mut exchanges = lock(&self.exchanges);
        if exchanges.len() == MAX_RECORDS {
            exchanges.pop_front();
        }
        exchanges.push_back(exchange);
    }

    pub(crate) fn requests(&self) -> Vec<Exchange> {
        lock(&self.exchanges).iter().cloned().collect()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    pub(crate) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.violations))
    }

    /// Fails the test if the contract was broken, unless the test fails already.
    pub(crate) fn assert_kept(&self) {
        let violations = self.violations();
        assert!(
            std::thread::panicking() || violations.is_empty(),
            "the contract was broken {} times:\n{}",
            violations.len(),
            violations.join("\n")
        );
    }
}

pub(crate) struct Shared {
    world: Mutex<World>,
    pub(crate) log: Log,
    pub(crate) timing: Timing,
    ids: Random,
}

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(crate) fn request_id(&self) -> String {
        self.ids.uuid()
    }

    pub(crate) fn violation(&self, what: String) {
        self.log.violation(what);
    }

    pub(crate) fn record(&self, exchange: Exchange) {
        self.log.record(exchange);
    }
}

/// A simulated cloud that answers on the loopback interface until it is dropped.
///
/// Dropping it panics if a request or an answer broke the contract and [`Simulator::take_violations`] was not called: a
/// test that uses it is a test of the contract too.
pub struct Simulator {
    shared: Arc<Shared>,
    server: Option<Server>,
    url: String,
}

impl Simulator {
    /// The access key of the first identity, `user/operator` of the account.
    pub const ACCESS_KEY: &str = "AKIASIMULATEDOPERATR";
    /// The secret of [`Simulator::ACCESS_KEY`].
    pub const SECRET_KEY: &str = "simulated/secret+of/the+operator/0000000";

    /// Starts a cloud with nothing in it but one identity.
    ///
    /// # Panics
    /// No port of the loopback interface can be had.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let mut world = World::new(options.seed);
        let operator = Credential {
            secret: Self::SECRET_KEY.to_owned(),
            token: None,
            identity: format!("arn:aws:iam::{}:user/operator", options.account),
            account: options.account,
            id: "AIDASIMULATEDOPERATR".to_owned(),
            expires: None,
        };
        world.credentials.insert(Self::ACCESS_KEY, operator);
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            log: Log::default(),
            timing: options.timing,
            ids: Random::new(options.seed ^ 1),
        });
        let of_server = shared.clone();
        let server = Server::start(Protocols::Http1, Arc::new(move |request| aws::answer(&of_server, request)));
        Self { shared, url: server.url(), server: Some(server) }
    }

    /// The address of every service: the signature of a request names its service and region.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// What the cloud holds. Requests wait while it is locked.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Moves the virtual time.
    pub fn advance(&self, by: std::time::Duration) {
        self.world().advance(by);
    }

    /// All requests so far, at most the last 100,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Exchange> {
        self.shared.log.requests()
    }

    /// The faults to inject.
    pub fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        lock(&self.shared.log.faults)
    }

    /// What broke the contract so far, in either direction.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.log.violations()
    }

    /// The same, for tests that expect them: they no longer fail the test.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        self.shared.log.take_violations()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.server.take());
        self.shared.log.assert_kept();
    }
}
