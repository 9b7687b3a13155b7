//! The loop: start ready steps, wait for the operations in flight, record the results.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use textnlp_provider::{Identity, Kind, Object, Provider, ResourceId, SiteName, Verb};
use tokio_util::sync::CancellationToken;

use super::flight::{CallAnswer, Flight, Verdict};
use super::gate::{self, Answer};
use super::step::{self, RunFacts, Write};
use super::{
    ApplyError, ClosedGate, CompletedOperation, Drive, ObjectUpdate, Outcome, Skipped, StepFailure, UnfinishedOperation,
};
use crate::event::{Event, EventKind};
use crate::plan::{Branch, Call, ChoiceBasis, Gate, Node, Plan, Step};
use crate::state::{Intent, OpenOperation};

pub(super) struct Run<'a> {
    air: InFlight<'a>,
    plan: &'a Plan,
    /// The count of unfinished dependencies of each step.
    waits: Vec<usize>,
    dependents: Vec<Vec<u32>>,
    /// The longest path from each step to the end, in the time it may take. Steps on the critical path start first.
    way: Vec<Duration>,
    ready: BinaryHeap<(Duration, Reverse<u32>)>,
    skipped: BTreeSet<u32>,
    /// The remaining operations of a step after the one in flight.
    rest: BTreeMap<u32, VecDeque<Call>>,
    /// Gates that are being measured.
    measurements: FuturesUnordered<BoxFuture<'a, (u32, Option<Answer>)>>,
    known: RunFacts,
}

/// What the loop was woken by.
enum Wakeup {
    Landed(Vec<(u64, OperationEnd)>),
    Answered(u32, Option<Answer>),
}

/// The operations in flight, and the journal for their results.
struct InFlight<'a> {
    drive: Drive<'a>,
    stop: &'a CancellationToken,
    flights: BTreeMap<u64, Flight>,
    calls: FuturesUnordered<BoxFuture<'static, (u64, CallAnswer)>>,
    /// What to record, then report, then call. Results and the operations they start share one sync to disk.
    next: Next,
    outcome: Outcome,
    began: Duration,
}

#[derive(Default)]
struct Next {
    writes: BTreeMap<SiteName, Vec<Write>>,
    queued_events: Vec<EventKind>,
    calls: Vec<(u64, Flight, Duration)>,
}

/// How an operation left the flight.
enum OperationEnd {
    Done(Option<Object>),
    Failed,
    Open,
}

/// Recovers the operations of a crashed run. They were all in flight at once, so none depends on another.
pub(super) async fn recover(drive: Drive<'_>, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    let mut air = InFlight::new(drive, stop);
    let sites: Vec<SiteName> = air.drive.state.sites().cloned().collect();
    let mut number = 0;
    air.wait_for_grace_period(&sites).await?;
    for site in sites {
        // Open operations at a site that is not part of this run stay open.
        if !air.drive.providers.contains_key(&site) {
            continue;
        }
        for open in air.drive.state.open(&site).map_err(ApplyError::State)?.into_values() {
            air.resume(number, open);
            number += 1;
        }
    }
    air.finish().await
}

/// Recovers one operation of a crashed run.
pub(super) async fn resume(
    drive: Drive<'_>,
    open: OpenOperation,
    stop: &CancellationToken,
) -> Result<Outcome, ApplyError> {
    let mut air = InFlight::new(drive, stop);
    air.wait_for_grace_period(std::slice::from_ref(&open.intent.operation.site)).await?;
    air.resume(0, open);
    air.finish().await
}

/// Makes one update that is in no plan.
pub(super) async fn update(
    drive: Drive<'_>,
    update: ObjectUpdate,
    stop: &CancellationToken,
) -> Result<Outcome, ApplyError> {
    let ObjectUpdate { wanted, recorded, seen } = update;
    let (resource, kind, site) = (wanted.id.clone(), wanted.kind.clone(), wanted.site.clone());
    let (wanted, recorded, seen) = (Box::new(wanted), Box::new(recorded), Box::new(seen));
    let call = Call::Update { wanted, recorded, seen, stray: false };
    let (node, because) = (Node::Call(call.clone()), String::new());
    let one = Step { id: 0, resource, kind, site, node, after: Vec::new(), changes: Vec::new(), because };
    let mut air = InFlight::new(drive, stop);
    let provider = air.provider(&one.site)?;
    match step::intent(&one, &call, &provider, &mut RunFacts::default(), air.drive.state) {
        Ok(intent) => air.take_off(0, intent),
        Err(failure) => air.fail(&one, failure),
    }
    air.finish().await
}

impl<'a> Run<'a> {
    pub(super) fn new(drive: Drive<'a>, plan: &'a Plan, stop: &'a CancellationToken) -> Self {
        let waits: Vec<usize> = plan.steps.iter().map(|step| step.after.len()).collect();
        let mut dependents = vec![Vec::new(); plan.steps.len()];
        for step in &plan.steps {
            for before in &step.after {
                dependents[*before as usize].push(step.id);
            }
        }
        let air = InFlight::new(drive, stop);
        let mut way = vec![Duration::ZERO; plan.steps.len()];
        for step in plan.steps.iter().rev() {
            let longest = dependents[step.id as usize].iter().map(|next| way[*next as usize]).max().unwrap_or_default();
            way[step.id as usize] = longest + air.deadline(&step.site, step.kind.as_str());
        }
        let ready = plan.steps.iter().filter(|step| step.after.is_empty());
        let ready = ready.map(|step| (way[step.id as usize], Reverse(step.id))).collect();
        let (skipped, rest, known) = (BTreeSet::new(), BTreeMap::new(), RunFacts::default());
        Self { air, plan, waits, dependents, way, ready, skipped, rest, measurements: FuturesUnordered::new(), known }
    }

    pub(super) async fn apply(mut self) -> Result<Outcome, ApplyError> {
        loop {
            self.start()?;
            self.air.go_on().await?;
            let is_asking = !self.measurements.is_empty();
            if !self.air.is_busy() && !is_asking && (self.ready.is_empty() || self.air.stop.is_cancelled()) {
                break;
            }
            let came = tokio::select! {
                landed = self.air.land(), if self.air.is_busy() => Wakeup::Landed(landed),
                Some((id, answer)) = self.measurements.next(), if is_asking => Wakeup::Answered(id, answer),
                // Steps that ended at once made others ready.
                else => continue,
            };
            match came {
                Wakeup::Landed(landed) => {
                    landed.into_iter().try_for_each(|(id, landed)| self.landed(id as u32, landed))?;
                }
                Wakeup::Answered(id, answer) => self.answered(id, answer),
            }
        }
        let plan = self.plan;
        let left =
            plan.steps.iter().filter(|step| !self.skipped.contains(&step.id) && self.waits[step.id as usize] != DONE);
        for step in left {
            self.air.skip(&step.resource, "asked to stop".to_owned());
        }
        Ok(self.air.end())
    }

    /// Starts ready steps up to the limit of operations in flight.
    fn start(&mut self) -> Result<(), ApplyError> {
        let mut over = Vec::new();
        while self.air.in_use() < self.air.drive.limits.parallel && !self.air.stop.is_cancelled() {
            let Some((_, Reverse(id))) = self.ready.pop() else { break };
            let step = &self.plan.steps[id as usize];
            if let Node::Gate(gate) = &step.node {
                if self.would_remove(gate) {
                    self.ask(step)
                } else {
                    over.push(id)
                }
                continue;
            }
            let provider = self.air.provider(&step.site)?;
            let started = step::begin(step, &provider, &mut self.known).and_then(|mut beginning| {
                let first = beginning.calls.pop_front();
                let intent =
                    first.map(|call| step::intent(step, &call, &provider, &mut self.known, self.air.drive.state));
                Ok((beginning, intent.transpose()?))
            });
            match started {
                Ok((beginning, intent)) => {
                    if let Some(branch) = beginning.branch {
                        self.air.tell(EventKind::Chose { resource: step.resource.clone(), branch: branch.to_string() });
                    }
                    if let Some(what) = beginning.note {
                        self.air.tell(EventKind::Noted { resource: step.resource.clone(), what: what.to_owned() });
                    }
                    self.air.next.writes.entry(step.site.clone()).or_default().extend(beginning.writes);
                    match intent {
                        Some(intent) => {
                            self.rest.insert(id, beginning.calls);
                            self.air.take_off(u64::from(id), intent);
                        }
                        None => over.push(id),
                    }
                }
                Err(failure) => {
                    self.air.fail(step, failure);
                    self.skip_what_waits_for(id);
                }
            }
        }
        over.into_iter().for_each(|id| self.done(id));
        Ok(())
    }

    /// Whether any step behind the gate removes something: a choice may have resolved to no change.
    fn would_remove(&self, gate: &Gate) -> bool {
        gate.open.iter().any(|step| match &self.plan.steps[*step as usize].node {
            Node::Call(_) => true,
            Node::OneOf(one) => {
                matches!(&one.decides, ChoiceBasis::As(other) if self.known.chose.get(other) == Some(&Branch::Replace))
            }
            Node::Note(_) | Node::Gate(_) => false,
        })
    }

    /// Starts the measurement of a gate; other steps continue.
    fn ask(&mut self, step: &'a Step) {
        self.air.next.queued_events.push(EventKind::GateAsked { site: step.site.clone() });
        let Some(gates) = self.air.drive.gates else {
            let no_gate = Answer::Shut(vec!["this run has no gate that can measure it".to_owned()]);
            return self.answered(step.id, Some(no_gate));
        };
        let (clock, within) = (self.air.drive.clock.clone(), self.air.drive.limits.gate);
        let answer = gate::ask(gates, step.site.clone(), clock, within, self.air.stop.clone());
        let id = step.id;
        self.measurements.push(Box::pin(answer.map(move |answer| (id, answer))));
    }

    fn answered(&mut self, id: u32, answer: Option<Answer>) {
        let step = &self.plan.steps[id as usize];
        let because = match answer {
            // The steps behind it are reported as skipped by the stop.
            None => return,
            Some(Answer::Open) => Vec::new(),
            Some(Answer::Shut(because)) if because.is_empty() => vec!["no reason was given".to_owned()],
            Some(Answer::Shut(because)) => because,
        };
        let Next { writes, queued_events, .. } = &mut self.air.next;
        let write = Write::Asked { gate: step.resource.clone(), because: because.clone() };
        writes.entry(step.site.clone()).or_default().push(write);
        queued_events.push(EventKind::GateAnswered { site: step.site.clone(), shut_because: because.clone() });
        if because.is_empty() {
            return self.done(id);
        }
        self.air.outcome.shut.push(ClosedGate { site: step.site.clone(), because });
        self.skip_dependents(id, "the gate is shut".to_owned());
    }

    fn landed(&mut self, id: u32, landed: OperationEnd) -> Result<(), ApplyError> {
        let step = &self.plan.steps[id as usize];
        match landed {
            OperationEnd::Done(object) => {
                if let Some(object) = object {
                    self.known.outputs.insert(step.resource.clone(), object.outputs);
                }
                self.next_call(id, step)
            }
            OperationEnd::Failed | OperationEnd::Open => {
                self.skip_what_waits_for(id);
                Ok(())
            }
        }
    }

    /// Queues the next operation of a step, or ends the step.
    fn next_call(&mut self, id: u32, step: &'a Step) -> Result<(), ApplyError> {
        let Some(call) = self.rest.get_mut(&id).and_then(VecDeque::pop_front) else {
            self.done(id);
            return Ok(());
        };
        if self.air.stop.is_cancelled() {
            self.air.skip(&step.resource, "asked to stop".to_owned());
            self.skip_what_waits_for(id);
            return Ok(());
        }
        let provider = self.air.provider(&step.site)?;
        match step::intent(step, &call, &provider, &mut self.known, self.air.drive.state) {
            Ok(intent) => self.air.take_off(u64::from(id), intent),
            Err(failure) => {
                self.air.fail(step, failure);
                self.skip_what_waits_for(id);
            }
        }
        Ok(())
    }

    fn done(&mut self, id: u32) {
        let step = &self.plan.steps[id as usize];
        if self.known.chose.get(&id) == Some(&Branch::Replace) {
            self.known.replaced.insert(step.resource.clone());
        }
        self.waits[id as usize] = DONE;
        for next in self.dependents[id as usize].clone() {
            let waits = &mut self.waits[next as usize];
            *waits -= 1;
            if *waits == 0 && !self.skipped.contains(&next) {
                self.ready.push((self.way[next as usize], Reverse(next)));
            }
        }
    }

    /// Skips the dependents of a failed step.
    fn skip_what_waits_for(&mut self, id: u32) {
        self.skip_dependents(id, format!("`{}` is not ready", self.plan.steps[id as usize].resource));
    }

    fn skip_dependents(&mut self, id: u32, because: String) {
        self.waits[id as usize] = DONE;
        let mut todo = self.dependents[id as usize].clone();
        while let Some(next) = todo.pop() {
            if self.skipped.insert(next) {
                self.air.skip(&self.plan.steps[next as usize].resource, because.clone());
                todo.extend(&self.dependents[next as usize]);
            }
        }
    }
}

/// Replaces the count of a step that is over.
const DONE: usize = usize::MAX;

impl<'a> InFlight<'a> {
    fn new(drive: Drive<'a>, stop: &'a CancellationToken) -> Self {
        let began = drive.clock.steady();
        let (flights, calls, next) = (BTreeMap::new(), FuturesUnordered::new(), Next::default());
        Self { drive, stop, flights, calls, next, outcome: Outcome::default(), began }
    }

    /// A call that an earlier holder sent just before it lost its lock may still be in flight.
    async fn wait_for_grace_period(&self, sites: &[SiteName]) -> Result<(), ApplyError> {
        let grace = self.drive.state.grace();
        for site in sites.iter().filter(|_| !grace.is_zero()) {
            if !self.drive.state.open(site).map_err(ApplyError::State)?.is_empty() {
                let text = format!("waiting {} s for calls of the previous run to end", grace.as_secs());
                self.tell(EventKind::Note { text });
                self.drive.clock.sleep(grace).await;
                break;
            }
        }
        Ok(())
    }

    /// Queues the next call of an operation that a crashed run left open.
    fn resume(&mut self, id: u64, open: OpenOperation) {
        let op = &open.intent.operation;
        self.tell(EventKind::Recovering { operation: op.id, resource: op.resource.clone(), verb: op.verb });
        let flight = Flight::new(open.intent, open.handle, self.drive.clock.steady()).resumed();
        self.next.calls.push((id, flight, Duration::ZERO));
    }

    /// Makes what is queued, and waits until all of it ended.
    async fn finish(mut self) -> Result<Outcome, ApplyError> {
        self.go_on().await?;
        while self.is_busy() {
            self.land().await;
            self.go_on().await?;
        }
        Ok(self.end())
    }

    fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Operations in flight or about to be.
    fn in_use(&self) -> usize {
        self.flights.len() + self.next.calls.len()
    }

    fn end(mut self) -> Outcome {
        std::mem::take(&mut self.next.queued_events).into_iter().for_each(|what| self.tell(what));
        self.outcome.seconds = self.drive.clock.steady().saturating_sub(self.began).as_secs_f64();
        self.outcome.stopped = self.stop.is_cancelled();
        self.outcome
    }

    fn tell(&self, what: EventKind) {
        self.drive.events.tell(Event { at: self.drive.clock.now(), what });
    }

    fn provider(&self, site: &SiteName) -> Result<Arc<dyn Provider>, ApplyError> {
        self.drive.providers.get(site).cloned().ok_or_else(|| ApplyError::NoProvider { site: site.clone() })
    }

    fn kind(&self, site: &SiteName, name: &str) -> Option<&'static Kind> {
        self.drive.providers.get(site)?.kinds().iter().find(|kind| kind.name == name)
    }

    fn deadline(&self, site: &SiteName, kind: &str) -> Duration {
        self.kind(site, kind).map_or(Duration::from_secs(600), |kind| kind.deadline)
    }

    /// Records what is queued, reports the results and makes the calls.
    async fn go_on(&mut self) -> Result<(), ApplyError> {
        let Next { writes, queued_events, calls } = std::mem::take(&mut self.next);
        for (site, writes) in writes.into_iter().filter(|(_, writes)| !writes.is_empty()) {
            let put =
                self.drive.state.commit(&site, |writer| writes.into_iter().for_each(|write| write.put(writer))).await;
            put.map_err(|source| ApplyError::Journal { site, source })?;
        }
        queued_events.into_iter().for_each(|what| self.tell(what));
        calls.into_iter().try_for_each(|(id, flight, pause)| self.launch(id, flight, pause))
    }

    /// Makes the first call of a recorded operation.
    fn take_off(&mut self, id: u64, intent: Intent) {
        let op = &intent.operation;
        self.next.queued_events.push(EventKind::Started {
            operation: op.id,
            resource: op.resource.clone(),
            verb: op.verb,
        });
        let flight = Flight::new(intent, None, self.drive.clock.steady());
        let writes = self.next.writes.entry(flight.operation().site.clone()).or_default();
        writes.push(Write::Begun(flight.intent.clone()));
        self.next.calls.push((id, flight, Duration::ZERO));
    }

    fn launch(&mut self, id: u64, flight: Flight, pause: Duration) -> Result<(), ApplyError> {
        let provider = self.provider(&flight.operation().site)?;
        let (lease, op) = (self.drive.state.lease(), flight.operation());
        // Looked up for each call: the host may have been replaced meanwhile, or have new outputs.
        let host = op.via.as_ref().and_then(|host| self.drive.state.current(&op.site, &host.0));
        let (clock, stop, limits) = (self.drive.clock.clone(), self.stop.clone(), self.drive.limits);
        let call = flight.call((provider, host), clock, stop, lease, pause, limits);
        self.calls.push(Box::pin(call.map(move |landing| (id, landing))));
        self.flights.insert(id, flight);
        Ok(())
    }

    /// Waits for answers and returns the operations that ended with them. The caller records the results.
    async fn land(&mut self) -> Vec<(u64, OperationEnd)> {
        let Some(first) = self.calls.next().await else { return Vec::new() };
        let mut landings = vec![first];
        // Answers that are already there share one sync to disk.
        while let Some(Some(more)) = self.calls.next().now_or_never() {
            landings.push(more);
        }
        let mut landed = Vec::new();
        for (id, landing) in landings {
            let Some(mut flight) = self.flights.remove(&id) else { continue };
            let op = flight.operation().clone();
            let verdict = match landing {
                Some(answer) => {
                    let late = self.drive.clock.steady().saturating_sub(flight.began)
                        > self.deadline(&op.site, op.kind.as_str());
                    let kind = self.kind(&op.site, op.kind.as_str());
                    let is_part = kind.is_some_and(|kind| kind.identity == Identity::Part);
                    flight.judge(answer, late, is_part, self.drive.limits)
                }
                None if self.stop.is_cancelled() => Verdict::LeaveOpen { error: None, because: flight.last.clone() },
                // The present holder of the lock recovers it.
                None => Verdict::LeaveOpen { error: None, because: "the lock was lost before the call".to_owned() },
            };
            let Next { writes, queued_events, calls } = &mut self.next;
            let here = writes.entry(op.site.clone()).or_default();
            match verdict {
                Verdict::Done(object) => {
                    let ms = self.drive.clock.steady().saturating_sub(flight.began).as_millis() as u64;
                    let ended = match op.verb {
                        Verb::Delete => Write::Gone { op: op.id },
                        _ => Write::Made { op: op.id, recorded: Box::new(flight.intent.recorded(&object, false)) },
                    };
                    here.push(ended);
                    queued_events.push(EventKind::Done { resource: op.resource.clone(), verb: op.verb, ms });
                    self.outcome.done.push(CompletedOperation { resource: op.resource, verb: op.verb });
                    landed.push((id, OperationEnd::Done((op.verb != Verb::Delete).then_some(object))));
                }
                Verdict::Pending { handle, says, again_in, moved } => {
                    if moved {
                        here.push(Write::Pending { op: op.id, handle, says: says.clone() });
                    }
                    queued_events.push(EventKind::Says { resource: op.resource, text: says });
                    calls.push((id, flight, again_in));
                }
                Verdict::Retry { after, because } => {
                    queued_events.push(EventKind::Retrying {
                        resource: op.resource,
                        because,
                        in_ms: after.as_millis() as u64,
                    });
                    calls.push((id, flight, after));
                }
                Verdict::Failed { left, error, refused } => {
                    let failure = StepFailure { refused, ..StepFailure::of(&op.resource, &error) };
                    let left = left
                        .filter(|_| op.verb == Verb::Create)
                        .map(|left| Box::new(flight.intent.recorded(&left, true)));
                    here.push(Write::Failed { op: op.id, left, because: failure.line(), refused });
                    queued_events.push(failed(&failure, op.verb));
                    self.outcome.failed.push(failure);
                    landed.push((id, OperationEnd::Failed));
                }
                Verdict::LeaveOpen { error, because } => {
                    if let Some(error) = error {
                        let failure = StepFailure::of(&op.resource, &error);
                        queued_events.push(failed(&failure, op.verb));
                        self.outcome.failed.push(failure);
                    }
                    queued_events.push(EventKind::LeftOpen { operation: op.id, resource: op.resource.clone() });
                    self.outcome.open.push(UnfinishedOperation { operation: op.id, resource: op.resource, because });
                    landed.push((id, OperationEnd::Open));
                }
            }
        }
        landed
    }

    fn fail(&mut self, step: &Step, failure: StepFailure) {
        let verb = match &step.node {
            Node::Call(call) => call.verb(),
            _ => Verb::Update,
        };
        self.next.queued_events.push(failed(&failure, verb));
        self.outcome.failed.push(failure);
    }

    fn skip(&mut self, resource: &ResourceId, because: String) {
        self.next.queued_events.push(EventKind::Skipped { resource: resource.clone(), because: because.clone() });
        self.outcome.skipped.push(Skipped { resource: resource.clone(), because });
    }
}

fn failed(failure: &StepFailure, verb: Verb) -> EventKind {
    EventKind::Failed { resource: failure.resource.clone(), verb, because: failure.line(), hint: failure.hint.clone() }
}
