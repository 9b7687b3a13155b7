//! The loop: start what is ready, wait for what is in the air, write down what came back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use textnlp_provider::{Kind, Object, Provider, ResourceId, SiteName, Verb};
use tokio_util::sync::CancellationToken;

use super::flight::{Flight, Landing, Verdict};
use super::step::{self, Known, Write};
use super::{ApplyError, Did, Drive, Failure, LeftOpen, Outcome, Skipped};
use crate::event::{Event, What};
use crate::plan::{Branch, Call, Node, Plan, Step};

pub(super) struct Run<'a> {
    air: Air<'a>,
    plan: &'a Plan,
    /// How many steps each step still waits for.
    waits: Vec<usize>,
    dependents: Vec<Vec<u32>>,
    /// The length of the longest way from each step to the end, in time that it may take.
    way: Vec<Duration>,
    ready: BinaryHeap<(Duration, Reverse<u32>)>,
    skipped: BTreeSet<u32>,
    /// The operations that a step still has to make after the one in the air.
    rest: BTreeMap<u32, VecDeque<Call>>,
    known: Known,
}

/// The operations in the air, and where their ends are written down.
struct Air<'a> {
    drive: Drive<'a>,
    stop: &'a CancellationToken,
    flights: BTreeMap<u64, Flight>,
    calls: FuturesUnordered<BoxFuture<'static, (u64, Landing)>>,
    outcome: Outcome,
    began: Duration,
}

/// How an operation left the air.
enum Landed {
    Done(Option<Object>),
    Failed,
    Open,
}

type Writes = BTreeMap<SiteName, Vec<Write>>;

/// Finishes what a dead run left open. All of it was in the air at once, so nothing of it waits for another.
pub(super) async fn recover(drive: Drive<'_>, stop: &CancellationToken) -> Result<Outcome, ApplyError> {
    let mut air = Air::new(drive, stop);
    let sites: Vec<SiteName> = air.drive.state.sites().cloned().collect();
    let mut number = 0;
    air.wait_out_the_grace(&sites).await?;
    for site in sites {
        // What is open at a site that is left alone stays for the next one that goes there.
        if !air.drive.providers.contains_key(&site) {
            continue;
        }
        for (op, open) in air.drive.state.open(&site).map_err(ApplyError::State)? {
            let (resource, verb) = (open.intent.operation.resource.clone(), open.intent.operation.verb);
            air.tell(What::Recovering { operation: op, resource, verb });
            let began = air.drive.clock.steady();
            air.launch(number, Flight::new(open.intent, open.handle, began).resumed(), Duration::ZERO)?;
            number += 1;
        }
    }
    while air.is_busy() {
        air.land().await?;
    }
    Ok(air.end())
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
        let air = Air::new(drive, stop);
        let mut way = vec![Duration::ZERO; plan.steps.len()];
        for step in plan.steps.iter().rev() {
            let longest = dependents[step.id as usize].iter().map(|next| way[*next as usize]).max().unwrap_or_default();
            way[step.id as usize] = longest + air.deadline(&step.site, step.kind.as_str());
        }
        let ready = plan.steps.iter().filter(|step| step.after.is_empty());
        let ready = ready.map(|step| (way[step.id as usize], Reverse(step.id))).collect();
        let (skipped, rest, known) = (BTreeSet::new(), BTreeMap::new(), Known::default());
        Self { air, plan, waits, dependents, way, ready, skipped, rest, known }
    }

    pub(super) async fn apply(mut self) -> Result<Outcome, ApplyError> {
        loop {
            self.start().await?;
            if !self.air.is_busy() && (self.ready.is_empty() || self.air.stop.is_cancelled()) {
                break;
            }
            if self.air.is_busy() {
                for (id, landed) in self.air.land().await? {
                    self.landed(id as u32, landed).await?;
                }
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

    /// Starts as many ready steps as may be in the air; their beginnings are written in one go.
    async fn start(&mut self) -> Result<(), ApplyError> {
        let mut writes = Writes::new();
        let (mut flights, mut over) = (Vec::new(), Vec::new());
        while self.air.flights.len() + flights.len() < self.air.drive.limits.parallel && !self.air.stop.is_cancelled() {
            let Some((_, Reverse(id))) = self.ready.pop() else { break };
            let step = &self.plan.steps[id as usize];
            let provider = self.air.provider(&step.site)?;
            let begun = step::begin(step, &provider, &mut self.known).and_then(|mut beginning| {
                let first = beginning.calls.pop_front();
                let intent =
                    first.map(|call| step::intent(step, &call, &provider, &mut self.known, self.air.drive.state));
                Ok((beginning, intent.transpose()?))
            });
            match begun {
                Ok((beginning, intent)) => {
                    if let Some(branch) = beginning.branch {
                        self.air.tell(What::Chose { resource: step.resource.clone(), branch: branch.to_string() });
                    }
                    if let Some(what) = beginning.note {
                        self.air.tell(What::Noted { resource: step.resource.clone(), what: what.to_owned() });
                    }
                    writes.entry(step.site.clone()).or_default().extend(beginning.writes);
                    match intent {
                        Some(intent) => {
                            self.rest.insert(id, beginning.calls);
                            flights.push((id, Flight::new(intent, None, self.air.drive.clock.steady())));
                        }
                        None => over.push(id),
                    }
                }
                Err(failure) => {
                    self.air.fail(step, failure);
                    self.skip_dependents(id);
                }
            }
        }
        for (_, flight) in &flights {
            let site = flight.operation().site.clone();
            writes.entry(site).or_default().push(Write::Begun(flight.intent.clone()));
        }
        self.air.write(writes).await?;
        for (id, flight) in flights {
            self.air.take_off(u64::from(id), flight)?;
        }
        for id in over {
            self.done(id);
        }
        Ok(())
    }

    async fn landed(&mut self, id: u32, landed: Landed) -> Result<(), ApplyError> {
        let step = &self.plan.steps[id as usize];
        match landed {
            Landed::Done(object) => {
                if let Some(object) = object {
                    self.known.outputs.insert(step.resource.clone(), object.outputs);
                }
                self.next_call(id, step).await
            }
            Landed::Failed | Landed::Open => {
                self.skip_dependents(id);
                Ok(())
            }
        }
    }

    /// The next operation of a step that has several, or its end.
    async fn next_call(&mut self, id: u32, step: &'a Step) -> Result<(), ApplyError> {
        let Some(call) = self.rest.get_mut(&id).and_then(VecDeque::pop_front) else {
            self.done(id);
            return Ok(());
        };
        if self.air.stop.is_cancelled() {
            self.air.skip(&step.resource, "asked to stop".to_owned());
            self.skip_dependents(id);
            return Ok(());
        }
        let provider = self.air.provider(&step.site)?;
        match step::intent(step, &call, &provider, &mut self.known, self.air.drive.state) {
            Ok(intent) => {
                let flight = Flight::new(intent, None, self.air.drive.clock.steady());
                let begun = vec![Write::Begun(flight.intent.clone())];
                self.air.write(Writes::from([(step.site.clone(), begun)])).await?;
                self.air.take_off(u64::from(id), flight)
            }
            Err(failure) => {
                self.air.fail(step, failure);
                self.skip_dependents(id);
                Ok(())
            }
        }
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

    /// Whatever waits for a step that failed is not begun.
    fn skip_dependents(&mut self, id: u32) {
        self.waits[id as usize] = DONE;
        let because = format!("`{}` is not ready", self.plan.steps[id as usize].resource);
        let mut todo = self.dependents[id as usize].clone();
        while let Some(next) = todo.pop() {
            if self.skipped.insert(next) {
                self.air.skip(&self.plan.steps[next as usize].resource, because.clone());
                todo.extend(&self.dependents[next as usize]);
            }
        }
    }
}

/// In the place of a count: the step is over.
const DONE: usize = usize::MAX;

impl<'a> Air<'a> {
    fn new(drive: Drive<'a>, stop: &'a CancellationToken) -> Self {
        let began = drive.clock.steady();
        let (flights, calls) = (BTreeMap::new(), FuturesUnordered::new());
        Self { drive, stop, flights, calls, outcome: Outcome::default(), began }
    }

    /// A call that an earlier holder sent just before it lost its lock may still be on its way.
    async fn wait_out_the_grace(&self, sites: &[SiteName]) -> Result<(), ApplyError> {
        let grace = self.drive.state.grace();
        for site in sites.iter().filter(|_| !grace.is_zero()) {
            if !self.drive.state.open(site).map_err(ApplyError::State)?.is_empty() {
                let text = format!("waiting {} s for calls of the run before this one to end", grace.as_secs());
                self.tell(What::Note { text });
                self.drive.clock.sleep(grace).await;
                break;
            }
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }

    fn end(mut self) -> Outcome {
        self.outcome.seconds = self.drive.clock.steady().saturating_sub(self.began).as_secs_f64();
        self.outcome.stopped = self.stop.is_cancelled();
        self.outcome
    }

    fn tell(&self, what: What) {
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

    async fn write(&mut self, writes: Writes) -> Result<(), ApplyError> {
        for (site, writes) in writes.into_iter().filter(|(_, writes)| !writes.is_empty()) {
            let put = self.drive.state.commit(&site, |pen| writes.into_iter().for_each(|write| write.put(pen))).await;
            put.map_err(|source| ApplyError::Journal { site, source })?;
        }
        Ok(())
    }

    /// Makes the first call of an operation that is written down.
    fn take_off(&mut self, id: u64, flight: Flight) -> Result<(), ApplyError> {
        let op = flight.operation();
        self.tell(What::Started { operation: op.id, resource: op.resource.clone(), verb: op.verb });
        self.launch(id, flight, Duration::ZERO)
    }

    fn launch(&mut self, id: u64, flight: Flight, pause: Duration) -> Result<(), ApplyError> {
        let provider = self.provider(&flight.operation().site)?;
        let lease = self.drive.state.lease();
        let call = flight.call(provider, self.drive.clock.clone(), self.stop.clone(), lease, pause, self.drive.limits);
        self.calls.push(Box::pin(call.map(move |landing| (id, landing))));
        self.flights.insert(id, flight);
        Ok(())
    }

    /// Waits for answers, writes down what they come to, and makes the next calls. Says which operations left the air.
    async fn land(&mut self) -> Result<Vec<(u64, Landed)>, ApplyError> {
        let Some(first) = self.calls.next().await else { return Ok(Vec::new()) };
        let mut landings = vec![first];
        // Whatever else is back already shares one wait for the disk.
        while let Some(Some(more)) = self.calls.next().now_or_never() {
            landings.push(more);
        }
        let (mut writes, mut again, mut landed, mut told) = (Writes::new(), Vec::new(), Vec::new(), Vec::new());
        for (id, landing) in landings {
            let Some(mut flight) = self.flights.remove(&id) else { continue };
            let op = flight.operation().clone();
            let here = writes.entry(op.site.clone()).or_default();
            let verdict = match landing {
                Some(answer) => {
                    let late = self.drive.clock.steady().saturating_sub(flight.began)
                        > self.deadline(&op.site, op.kind.as_str());
                    flight.judge(answer, late, self.drive.limits)
                }
                None if self.stop.is_cancelled() => Verdict::LeaveOpen { error: None, because: flight.last.clone() },
                // Whoever has the lock now finishes it.
                None => Verdict::LeaveOpen { error: None, because: "the lock was lost before the call".to_owned() },
            };
            match verdict {
                Verdict::Done(object) => {
                    let ms = self.drive.clock.steady().saturating_sub(flight.began).as_millis() as u64;
                    let ended = match op.verb {
                        Verb::Delete => Write::Gone { op: op.id },
                        _ => Write::Made { op: op.id, recorded: Box::new(flight.intent.recorded(&object, false)) },
                    };
                    here.push(ended);
                    told.push(What::Done { resource: op.resource.clone(), verb: op.verb, ms });
                    self.outcome.done.push(Did { resource: op.resource, verb: op.verb });
                    landed.push((id, Landed::Done((op.verb != Verb::Delete).then_some(object))));
                }
                Verdict::Pending { handle, says, again_in, moved } => {
                    if moved {
                        here.push(Write::Pending { op: op.id, handle, says: says.clone() });
                    }
                    told.push(What::Says { resource: op.resource, text: says });
                    again.push((id, flight, again_in));
                }
                Verdict::Retry { after, because } => {
                    told.push(What::Retrying { resource: op.resource, because, in_ms: after.as_millis() as u64 });
                    again.push((id, flight, after));
                }
                Verdict::Failed { left, error } => {
                    let failure = Failure::of(&op.resource, &error);
                    let left = left
                        .filter(|_| op.verb == Verb::Create)
                        .map(|left| Box::new(flight.intent.recorded(&left, true)));
                    here.push(Write::Failed { op: op.id, left, because: failure.line() });
                    told.push(failed(&failure, op.verb));
                    self.outcome.failed.push(failure);
                    landed.push((id, Landed::Failed));
                }
                Verdict::LeaveOpen { error, because } => {
                    if let Some(error) = error {
                        let failure = Failure::of(&op.resource, &error);
                        told.push(failed(&failure, op.verb));
                        self.outcome.failed.push(failure);
                    }
                    told.push(What::LeftOpen { operation: op.id, resource: op.resource.clone() });
                    self.outcome.open.push(LeftOpen { operation: op.id, resource: op.resource, because });
                    landed.push((id, Landed::Open));
                }
            }
        }
        self.write(writes).await?;
        told.into_iter().for_each(|what| self.tell(what));
        for (id, flight, pause) in again {
            self.launch(id, flight, pause)?;
        }
        Ok(landed)
    }

    fn fail(&mut self, step: &Step, failure: Failure) {
        let verb = match &step.node {
            Node::Call(call) => call.verb(),
            _ => Verb::Update,
        };
        self.tell(failed(&failure, verb));
        self.outcome.failed.push(failure);
    }

    fn skip(&mut self, resource: &ResourceId, because: String) {
        self.tell(What::Skipped { resource: resource.clone(), because: because.clone() });
        self.outcome.skipped.push(Skipped { resource: resource.clone(), because });
    }
}

fn failed(failure: &Failure, verb: Verb) -> What {
    What::Failed { resource: failure.resource.clone(), verb, because: failure.line(), hint: failure.hint.clone() }
}
