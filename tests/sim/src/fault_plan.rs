//! Faults that are injected, by rule or by chance.

use std::time::Duration;

use crate::Fault;
use crate::clock::Random;

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Disruption {
    /// The service's error for too many requests; nothing is done.
    Throttled,
    /// HTTP 500; nothing is done.
    Internal,
    /// HTTP 503; nothing is done.
    Unavailable,
    /// The connection closes without an answer, and nothing is done.
    LostRequest,
    /// The request takes effect, and the connection closes without an answer.
    LostReply,
    /// The connection is reset, and nothing is done.
    Reset,
    /// The request takes effect, and its answer arrives so much later, in real time.
    Delayed(Duration),
    /// This error is answered; nothing is done.
    Refused(Fault),
}

/// A fault of chosen requests.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The service by its signing name; any if empty.
    pub service: String,
    /// The operation; any if empty.
    pub operation: String,
    /// The region; any if empty.
    pub region: String,
    /// How many matching requests pass before the first that is disrupted.
    pub after: u32,
    /// How many are disrupted.
    pub times: u32,
    /// What goes wrong.
    pub disruption: Disruption,
}

impl Rule {
    /// Disrupts one request: the `nth` of an operation, counted from 1 and from now.
    pub fn nth(service: &str, operation: &str, nth: u32, disruption: Disruption) -> Self {
        let (service, operation) = (service.to_owned(), operation.to_owned());
        Self { service, operation, region: String::new(), after: nth.saturating_sub(1), times: 1, disruption }
    }

    /// The same in one region only.
    #[must_use]
    pub fn in_region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.region);
        self
    }

    /// Disrupts each request of an operation.
    pub fn always(service: &str, operation: &str, disruption: Disruption) -> Self {
        Self { times: u32::MAX, ..Self::nth(service, operation, 1, disruption) }
    }
}

/// The faults that a simulator injects; none at first.
#[derive(Debug, Default)]
pub struct FaultPlan {
    rules: Vec<Rule>,
    chances: Vec<(f64, Disruption)>,
    random: Option<Random>,
}

impl FaultPlan {
    /// Adds a rule. Of several that match a request the first that was added counts.
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Disrupts requests by chance, the same ones with the same seed and order of requests: each disruption has its
    /// probability, and they add up to 1 at most.
    pub fn by_chance(&mut self, seed: u64, chances: Vec<(f64, Disruption)>) {
        self.random = Some(Random::new(seed));
        self.chances = chances;
    }

    /// Injects nothing more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn next(&mut self, service: &str, operation: &str, region: &str) -> Option<Disruption> {
        let is = |wanted: &str, actual: &str| wanted.is_empty() || wanted == actual;
        let matching = |rule: &&mut Rule| {
            let is_meant = is(&rule.service, service) && is(&rule.operation, operation) && is(&rule.region, region);
            is_meant && rule.times > 0
        };
        let mut disruption = None;
        for rule in self.rules.iter_mut().filter(matching) {
            if rule.after > 0 {
                rule.after -= 1;
            } else if disruption.is_none() {
                rule.times -= 1;
                disruption = Some(rule.disruption.clone());
            }
        }
        if disruption.is_some() {
            return disruption;
        }
        // One number a request, whether or not it is disrupted.
        let drawn = self.random.as_ref()?.fraction();
        let mut bound = 0.0;
        self.chances.iter().find_map(|(probability, disruption)| {
            bound += probability;
            (drawn < bound).then(|| disruption.clone())
        })
    }
}
