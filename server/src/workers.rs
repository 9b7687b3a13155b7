//! Work that is too long for the threads that serve HTTP: on other threads or in other processes, few at a time, in
//! turns of the tenants and of their keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use textnlp_inference::engine::Failure;
use tokio::sync::{Notify, oneshot};

use crate::error::ApiError;
use crate::record::Record;

/// How long a job waits for its turn.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a bounded number of jobs at once; others wait. The next job is one of the tenant that has the fewest jobs running
/// and had its last turn longest ago, and the same among the tenant's keys: many jobs of one delay those of another by
/// one job.
pub(crate) struct Workers {
    queue: Arc<Mutex<Queue>>,
    /// Notified after each job.
    finished: Arc<Notify>,
}

/// The tenant and the key of a job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    tenant: String,
    key: String,
}

struct Queue {
    /// Workers without a job.
    free: usize,
    /// Jobs that run or wait, above which a tenant has no more than its part of them.
    most_jobs: usize,
    /// Jobs of a tenant that run at once.
    most_running: usize,
    /// Counts jobs, in the order of their arrival and of their start.
    count: u64,
    waiting: BTreeMap<u64, (Owner, oneshot::Sender<Permit>)>,
    /// What each tenant and each key has got, as long as it has jobs.
    tenants: BTreeMap<String, Share>,
    keys: BTreeMap<Owner, Share>,
}

/// The least comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    running: usize,
    /// The count at its last start.
    last: u64,
    jobs: usize,
}

/// The right to run one job. Its end gives a worker to the next job.
pub(crate) struct Permit {
    owner: Owner,
    queue: Arc<Mutex<Queue>>,
}

impl Queue {
    fn add(&mut self, owner: &Owner) {
        self.tenants.entry(owner.tenant.clone()).or_default().jobs += 1;
        self.keys.entry(owner.clone()).or_default().jobs += 1;
    }

    /// Whether a tenant has its part of a full queue: the same number of jobs for each tenant, at least one.
    fn refuses(&self, tenant: &str) -> bool {
        let own = self.tenants.get(tenant).map_or(0, |share| share.jobs);
        let all: usize = self.tenants.values().map(|share| share.jobs).sum();
        let tenants = self.tenants.len() + usize::from(own == 0);
        all >= self.most_jobs && own >= (self.most_jobs / tenants).max(1)
    }

    /// Changes the shares of a job's tenant and key, and forgets those without jobs.
    fn change(&mut self, owner: &Owner, change: impl Fn(&mut Share)) {
        if let Some(share) = self.tenants.get_mut(&owner.tenant) {
            change(share);
        }
        if let Some(share) = self.keys.get_mut(owner) {
            change(share);
        }
        self.tenants.retain(|_, share| share.jobs > 0);
        self.keys.retain(|_, share| share.jobs > 0);
    }

    /// Takes the job whose turn it is; none if all that wait are of tenants with the most jobs that may run.
    fn next(&mut self) -> Option<(Owner, oneshot::Sender<Permit>)> {
        let turn = |arrival: &u64, owner: &Owner| {
            let order = |share: Option<&Share>| share.map_or((0, 0), |share| (share.running, share.last));
            (order(self.tenants.get(&owner.tenant)), order(self.keys.get(owner)), *arrival)
        };
        let has_room = |owner: &Owner| {
            let share = self.tenants.get(&owner.tenant);
            share.is_none_or(|share| share.running < self.most_running)
        };
        let waiting = self.waiting.iter().filter(|(_, (owner, _))| has_room(owner));
        let next = waiting.min_by_key(|(arrival, (owner, _))| turn(arrival, owner))?;
        let arrival = *next.0;
        self.waiting.remove(&arrival)
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives free workers to those that wait.
fn dispatch(queue: &Arc<Mutex<Queue>>) {
    let mut inside = lock(queue);
    while inside.free > 0 {
        let Some((owner, sender)) = inside.next() else { break };
        inside.free -= 1;
        inside.count += 1;
        let now = inside.count;
        inside.change(&owner, |share| {
            share.running += 1;
            share.last = now;
        });
        if let Err(permit) = sender.send(Permit { owner, queue: queue.clone() }) {
            // The request is gone. The end of its permit takes the lock, and dispatches again.
            drop(inside);
            return drop(permit);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        queue.free += 1;
        queue.change(&self.owner, |share| {
            share.running -= 1;
            share.jobs -= 1;
        });
        drop(queue);
        dispatch(&self.queue);
    }
}

/// Takes a job that gave up out of the queue.
struct QueuedJob<'a> {
    queue: &'a Mutex<Queue>,
    arrival: u64,
}

impl Drop for QueuedJob<'_> {
    fn drop(&mut self) {
        let mut queue = lock(self.queue);
        if let Some((owner, _)) = queue.waiting.remove(&self.arrival) {
            queue.change(&owner, |share| share.jobs -= 1);
        }
    }
}

impl Workers {
    pub(crate) fn new(most: usize, finished: &Arc<Notify>) -> Self {
        let queue = Queue {
            free: most,
            most_jobs: usize::MAX,
            most_running: usize::MAX,
            count: 0,
            waiting: BTreeMap::new(),
            tenants: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        Self { queue: Arc::new(Mutex::new(queue)), finished: finished.clone() }
    }

    /// Refuses jobs of tenants that have their part of this many.
    pub(crate) fn with_most_jobs(self, most: usize) -> Self {
        lock(&self.queue).most_jobs = most;
        self
    }

    /// Leaves the other workers to other tenants while this many jobs of a tenant run.
    pub(crate) fn with_most_running(self, most: usize) -> Self {
        lock(&self.queue).most_running = most;
        self
    }

    /// Runs a job of the request's tenant and key when its turn comes.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        record: &Record,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.turn(record).await?;
        self.run_in_turn(turn, work).await
    }

    /// Runs a job whose turn has come.
    pub(crate) async fn run_in_turn<T: Send + 'static>(
        &self,
        turn: Permit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let finished = self.finished.clone();
        let work = move || {
            // The thread continues after its client disconnected.
            let _turn = turn;
            let result = work();
            finished.notify_one();
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "a worker was aborted");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
        })
    }

    /// Waits until it is the turn of the request's tenant and key.
    pub(crate) async fn turn(&self, record: &Record) -> Result<Permit, ApiError> {
        let (tenant, key) = record.owner();
        let permit = tokio::time::timeout(WAIT_TIMEOUT, self.permit(Owner { tenant, key })).await;
        permit.map_err(|_| Failure::Busy { retry_after_ms: 1000 })?
    }

    async fn permit(&self, owner: Owner) -> Result<Permit, ApiError> {
        let (sender, permit) = oneshot::channel();
        let arrival = {
            let mut queue = lock(&self.queue);
            if queue.refuses(&owner.tenant) {
                return Err(Failure::Busy { retry_after_ms: 1000 }.into());
            }
            queue.count += 1;
            let arrival = queue.count;
            queue.add(&owner);
            queue.waiting.insert(arrival, (owner, sender));
            arrival
        };
        let _waiting = QueuedJob { queue: &self.queue, arrival };
        dispatch(&self.queue);
        permit.await.map_err(|_| Failure::Draining.into())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;

    fn owner(tenant: &str, key: &str) -> Owner {
        Owner { tenant: tenant.to_owned(), key: key.to_owned() }
    }

    /// A job that has been in the queue since now.
    fn queued<'a>(workers: &'a Workers, tenant: &str, key: &str) -> BoxFuture<'a, Result<Permit, ApiError>> {
        let mut job = workers.permit(owner(tenant, key)).boxed();
        assert!(job.as_mut().now_or_never().is_none(), "it waits");
        job
    }

    #[test]
    fn tenants_and_keys_take_turns() {
        let workers = Workers::new(1, &Arc::default());
        let running = workers.permit(owner("many", "a")).now_or_never().unwrap().unwrap();
        let mut many: Vec<_> = (0..100).map(|_| queued(&workers, "many", "a")).collect();
        let mut other_key = queued(&workers, "many", "b");
        let mut other_tenant = queued(&workers, "few", "c");
        drop(running);
        let second = other_tenant.as_mut().now_or_never().expect("the other tenant is next").unwrap();
        assert!(many.iter_mut().all(|job| job.as_mut().now_or_never().is_none()));
        drop(second);
        let third = other_key.as_mut().now_or_never().expect("then the tenant's other key").unwrap();
        drop(third);
        let next: Vec<_> = many.iter_mut().filter_map(|job| job.as_mut().now_or_never()).collect();
        assert_eq!(next.len(), 1);
    }

    #[test]
    fn tenant_leaves_a_worker_to_others() {
        let workers = Workers::new(2, &Arc::default()).with_most_running(1);
        let running = workers.permit(owner("many", "a")).now_or_never().unwrap().unwrap();
        let mut second = queued(&workers, "many", "b");
        let other = workers.permit(owner("few", "c")).now_or_never().expect("a worker is free").unwrap();
        drop(other);
        assert!(second.as_mut().now_or_never().is_none());
        drop(running);
        let second = second.now_or_never().expect("its next job follows").unwrap();
        drop(second);
        assert_eq!(lock(&workers.queue).free, 2);
    }

    #[test]
    fn full_queue_refuses_only_tenants_that_have_their_part() {
        let workers = Workers::new(1, &Arc::default()).with_most_jobs(8);
        let running = workers.permit(owner("many", "a")).now_or_never().unwrap().unwrap();
        let mut jobs: Vec<_> = (0..7).map(|_| queued(&workers, "many", "a")).collect();
        let refused = |tenant: &str| {
            let job = workers.permit(owner(tenant, "z")).now_or_never();
            job.is_some_and(|job| job.is_err_and(|error| error.code == "queue_full"))
        };
        assert!(refused("many"));
        jobs.extend((0..4).map(|_| queued(&workers, "few", "b")));
        assert!(refused("few") && refused("many"), "a half is the part of each of two");
        jobs.push(queued(&workers, "third", "c"));
        drop((running, jobs));
        assert!(!refused("many"));
    }

    #[test]
    fn jobs_that_give_up_leave_nothing_behind() {
        let workers = Workers::new(2, &Arc::default());
        let running: Vec<_> =
            (0..2).map(|_| workers.permit(owner("t", "k")).now_or_never().unwrap().unwrap()).collect();
        let waiting: Vec<_> = (0..10).map(|_| queued(&workers, "t", "k")).collect();
        drop(waiting);
        // Two got their permit before they were given up.
        let granted: Vec<_> = (0..2).map(|_| queued(&workers, "t", "k")).collect();
        drop(running);
        drop(granted);
        let queue = lock(&workers.queue);
        assert_eq!((queue.free, queue.waiting.len(), queue.tenants.len(), queue.keys.len()), (2, 0, 0, 0));
    }
}
