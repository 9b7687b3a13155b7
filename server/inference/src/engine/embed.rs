//! Embeddings: one thread for each encoder, texts of many requests in one step.
//!
//! Texts are the unit: the next is one of the tenant that was served the fewest tokens, of its request whose last turn is
//! longest ago. So a request of a thousand texts delays others by one step. A step has no padding.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::Failure;
use super::shares::Shares;
use super::stats::Rate;
use crate::cpu::{EncodeError, Encoder};

/// The most tokens that wait, of all requests.
const MAX_WAITING_TOKENS: usize = 4 << 20;
/// Bounds of the suggested retry delay, and its value before the throughput was measured.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));
const UNKNOWN_RETRY: Duration = Duration::from_secs(1);

/// Texts to embed.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// Whose work it is: fairness is between tenants.
    pub tenant: String,
    /// The texts as tokens, special tokens included: at least one text, each of at least one token.
    pub texts: Vec<Vec<u32>>,
    /// The deadline.
    pub deadline: Option<Instant>,
}

/// The vectors of a request's texts, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// One for each text.
    pub vectors: Vec<Vec<f32>>,
    /// Milliseconds until the first text was taken.
    pub queued_ms: f64,
    /// Milliseconds from there to the end.
    pub total_ms: f64,
}

/// Called once, see [`EncoderHandle::submit`].
type Then = Box<dyn FnOnce(Result<Embedded, Failure>) + Send>;

/// Talks to an encoder's thread; cheap to clone. The thread ends when the last handle is gone, after its last step.
#[derive(Clone)]
pub struct EncoderHandle(Arc<Owner>);

/// An accepted request; dropping it cancels.
pub struct EmbedTicket {
    state: Arc<TicketState>,
    shared: Arc<Shared>,
}

/// What a request and its ticket share.
#[derive(Default)]
struct TicketState {
    cancelled: AtomicBool,
    taken: AtomicU64,
}

/// Ends the thread. It is not joined: that would wait for a step, on a thread that serves requests.
struct Owner {
    shared: Arc<Shared>,
    max_tokens: usize,
    vocab: usize,
}

struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// The waiting requests.
struct Waiting {
    requests: BTreeMap<u64, Pending>,
    tenants: Shares<Arc<str>>,
    /// Counts requests and turns.
    count: u64,
    queue: usize,
    /// Tokens of texts that were not taken yet.
    tokens: usize,
    pace: Option<Rate>,
    closed: bool,
}

struct Pending {
    tenant: Arc<str>,
    /// Empty ones were taken.
    texts: Vec<Vec<u32>>,
    next: usize,
    /// Tokens of texts that were not taken yet.
    tokens: usize,
    vectors: Vec<Option<Vec<f32>>>,
    missing: usize,
    deadline: Option<Instant>,
    state: Arc<TicketState>,
    then: Then,
    /// The count at its last turn.
    turn: u64,
    arrived: Instant,
    started: Option<Instant>,
}

/// A text of a step.
struct Taken {
    request: u64,
    place: usize,
    tokens: Vec<u32>,
}

/// What a step ended with: the vectors that are complete, or why it failed.
type StepResult = std::thread::Result<Result<Vec<Option<Vec<f32>>>, EncodeError>>;

/// Calls that are made without the lock.
type Replies = Vec<(Then, Result<Embedded, Failure>)>;

impl EncoderHandle {
    /// Starts the thread of an encoder with a queue of this many requests.
    pub fn start(name: &str, encoder: Encoder, queue: usize) -> io::Result<EncoderHandle> {
        let shared = Arc::new(Shared { waiting: Mutex::new(Waiting::new(queue.max(1))), wake: Condvar::new() });
        let owner = Owner {
            shared: Arc::clone(&shared),
            max_tokens: encoder.settings().max_tokens,
            vocab: encoder.architecture().vocab,
        };
        std::thread::Builder::new().name(format!("embed-{name}")).spawn(move || shared.run(encoder))?;
        Ok(EncoderHandle(Arc::new(owner)))
    }

    /// Submits a request. Never waits. Refuses texts that are empty, too long or have unknown tokens, and what the queue
    /// has no room for; `then` is not called for these.
    ///
    /// `then` is called once for an accepted request, with [`Failure::Draining`] if its ticket is dropped before. It must
    /// not block: the encoder's thread calls it, or [`EncoderHandle::end`], or the request that takes its place in a full
    /// queue.
    pub fn submit(
        &self,
        request: EmbedRequest,
        then: impl FnOnce(Result<Embedded, Failure>) + Send + 'static,
    ) -> Result<EmbedTicket, Failure> {
        for (place, text) in request.texts.iter().enumerate() {
            if text.len() > self.0.max_tokens {
                return Err(Failure::TooLong { prompt: text.len(), context: self.0.max_tokens });
            }
            if text.is_empty() {
                return Err(Failure::BadPrompt(format!("text {place} has no tokens")));
            }
            if let Some(token) = text.iter().find(|id| **id as usize >= self.0.vocab) {
                return Err(Failure::BadPrompt(format!("the model has no token {token}")));
            }
        }
        if request.texts.is_empty() {
            return Err(Failure::BadPrompt("there is no text".to_owned()));
        }
        let (state, shared) = (Arc::<TicketState>::default(), &self.0.shared);
        let replies = shared.lock().add(request, Box::new(then), Arc::clone(&state), Instant::now())?;
        shared.wake.notify_one();
        reply(replies);
        Ok(EmbedTicket { state, shared: Arc::clone(shared) })
    }

    /// Requests that wait, and those of which texts were taken.
    pub fn load(&self) -> (usize, usize) {
        let waiting = self.0.shared.lock();
        let running = waiting.requests.values().filter(|request| request.started.is_some()).count();
        (waiting.requests.len() - running, running)
    }

    /// Whether the encoder's memory is free again: its thread has ended, because all handles and tickets are gone.
    pub fn is_released(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.0.shared);
        move || shared.strong_count() == 0
    }

    /// Fails what waits and refuses what comes.
    pub fn end(&self) {
        let replies = {
            let mut waiting = self.0.shared.lock();
            waiting.closed = true;
            waiting.fail_where(|_| Some(Failure::Draining))
        };
        self.0.shared.wake.notify_one();
        reply(replies);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl EmbedTicket {
    /// Tokens of the texts that were taken so far.
    pub fn taken(&self) -> u64 {
        self.state.taken.load(Ordering::Relaxed)
    }
}

impl Drop for EmbedTicket {
    fn drop(&mut self) {
        self.state.cancelled.store(true, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }
}

fn reply(replies: Replies) {
    replies.into_iter().for_each(|(then, result)| then(result));
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs steps while there is work, and sleeps otherwise.
    fn run(&self, mut encoder: Encoder) {
        let (texts, tokens) = encoder.room();
        while let Some(step) = self.next(texts, tokens) {
            let input: Vec<&[u32]> = step.iter().map(|taken| &taken.tokens[..]).collect();
            let result = catch_unwind(AssertUnwindSafe(|| encoder.embed(&input)));
            let replies = self.lock().finish(step, result, Instant::now());
            reply(replies);
        }
    }

    /// Waits for the texts of the next step; `None` at the end.
    fn next(&self, texts: usize, tokens: usize) -> Option<Vec<Taken>> {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let replies = waiting.fail_where(|request| match request.deadline {
                _ if request.state.cancelled.load(Ordering::Relaxed) => Some(Failure::Draining),
                Some(deadline) if deadline <= now => Some(Failure::Deadline),
                _ => None,
            });
            if !replies.is_empty() {
                drop(waiting);
                reply(replies);
                waiting = self.lock();
                continue;
            }
            let step = waiting.take(texts, tokens, now);
            if !step.is_empty() {
                return Some(step);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    fn new(queue: usize) -> Waiting {
        let (requests, tenants) = (BTreeMap::new(), Shares::default());
        Waiting { requests, tenants, count: 0, queue, tokens: 0, pace: None, closed: false }
    }

    /// Accepts a request. A full queue still has room for a tenant that has little of it, at the cost of the newest
    /// requests of the tenant that has the most. The replies are theirs.
    fn add(
        &mut self,
        request: EmbedRequest,
        then: Then,
        state: Arc<TicketState>,
        now: Instant,
    ) -> Result<Replies, Failure> {
        if self.closed {
            return Err(Failure::Draining);
        }
        let tokens: usize = request.texts.iter().map(Vec::len).sum();
        let busy = Failure::Busy { retry_after_ms: self.retry_after(now) };
        let Some(displaced) = self.displaced_by(&request.tenant, tokens) else { return Err(busy) };
        let displaced = displaced.into_iter().filter_map(|id| self.remove(id));
        let replies = displaced.map(|request| (request.then, Err(busy.clone()))).collect();
        self.count += 1;
        let tenant: Arc<str> = request.tenant.into();
        self.tenants.enter(&tenant);
        self.tokens += tokens;
        let pending = Pending {
            tenant,
            next: 0,
            tokens,
            vectors: vec![None; request.texts.len()],
            missing: request.texts.len(),
            texts: request.texts,
            deadline: request.deadline,
            state,
            then,
            turn: 0,
            arrived: now,
            started: None,
        };
        self.requests.insert(self.count, pending);
        Ok(replies)
    }

    /// The requests that make room for one of a tenant; `None` where it has to be refused. They are the newest of the
    /// tenant that has the most of what is full, requests or tokens, as long as that is more than its fair part and more
    /// than this tenant would have.
    fn displaced_by(&self, tenant: &str, tokens: usize) -> Option<BTreeSet<u64>> {
        let mut displaced = BTreeSet::new();
        let (mut requests, mut waiting) = (self.requests.len(), self.tokens);
        loop {
            let by_requests = requests >= self.queue;
            if !by_requests && (waiting == 0 || waiting + tokens <= MAX_WAITING_TOKENS) {
                return Some(displaced);
            }
            let (limit, added) = if by_requests { (self.queue, 1) } else { (MAX_WAITING_TOKENS, tokens) };
            let mut held: HashMap<&str, (usize, u64)> = HashMap::new();
            for (id, request) in self.requests.iter().filter(|(id, _)| !displaced.contains(*id)) {
                let part = if by_requests { 1 } else { request.tokens };
                if part > 0 {
                    let tenant = held.entry(&request.tenant).or_default();
                    *tenant = (tenant.0 + part, *id);
                }
            }
            let own = held.get(tenant).map_or(0, |(part, _)| *part);
            let fair = limit / (held.len() + usize::from(own == 0));
            let (most, newest) = held.into_values().max()?;
            if most <= fair.max(1) || own + added >= most {
                return None;
            }
            requests -= 1;
            waiting -= self.requests.get(&newest)?.tokens;
            displaced.insert(newest);
        }
    }

    /// How long the texts that wait will take, as far as it was measured.
    fn retry_after(&self, now: Instant) -> u64 {
        let pace = self.pace.map_or(0.0, |pace| pace.at(now));
        let wait = if pace < 1.0 { UNKNOWN_RETRY } else { Duration::from_secs_f64(self.tokens as f64 / pace) };
        wait.clamp(RETRY.0, RETRY.1).as_millis() as u64
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let request = self.requests.remove(&id)?;
        self.tokens -= request.tokens;
        self.tenants.leave(&request.tenant);
        Some(request)
    }

    /// Removes requests that failed, expired or were cancelled.
    fn fail_where(&mut self, why: impl Fn(&Pending) -> Option<Failure>) -> Replies {
        let failing: Vec<(u64, Failure)> =
            self.requests.iter().filter_map(|(id, request)| Some((*id, why(request)?))).collect();
        failing.into_iter().filter_map(|(id, failure)| Some((self.remove(id)?.then, Err(failure)))).collect()
    }

    /// The texts of the next step, at most `texts` with `tokens` tokens in all. A text that does not fit ends the step,
    /// so that shorter ones do not pass it for ever.
    fn take(&mut self, texts: usize, tokens: usize, now: Instant) -> Vec<Taken> {
        let (mut taken, mut room) = (Vec::new(), tokens);
        while taken.len() < texts {
            let has_texts = |(_, request): &(&u64, &Pending)| request.next < request.texts.len();
            let turn = |(id, request): &(&u64, &Pending)| {
                (self.tenants.served(&request.tenant).max(0.0).to_bits(), request.turn, **id)
            };
            let Some((id, _)) = self.requests.iter().filter(has_texts).min_by_key(turn) else { break };
            let id = *id;
            self.count += 1;
            let (count, Some(request)) = (self.count, self.requests.get_mut(&id)) else { break };
            let place = request.next;
            let size = request.texts[place].len();
            if size > room {
                break;
            }
            room -= size;
            request.next += 1;
            request.turn = count;
            request.started.get_or_insert(now);
            request.state.taken.fetch_add(size as u64, Ordering::Relaxed);
            request.tokens -= size;
            self.tokens -= size;
            let tokens = std::mem::take(&mut request.texts[place]);
            taken.push(Taken { request: id, place, tokens });
            let tenant = Arc::clone(&request.tenant);
            self.tenants.charge(&tenant, size as f64);
        }
        taken
    }

    /// Keeps the vectors of a step; the replies are those of requests that are complete or failed.
    fn finish(&mut self, step: Vec<Taken>, result: StepResult, now: Instant) -> Replies {
        let tokens = step.iter().map(|taken| taken.tokens.len() as u64).sum();
        self.pace.get_or_insert_with(|| Rate::new(now)).add(tokens, now);
        let failure = match &result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Failure::Model(error.to_string())),
            Err(_) => Some(Failure::Model("its step was aborted".to_owned())),
        };
        let mut vectors = result.ok().and_then(Result::ok).unwrap_or_default().into_iter();
        let mut replies = Vec::new();
        for Taken { request: id, place, .. } in step {
            let vector = vectors.next().flatten();
            let Some(request) = self.requests.get_mut(&id) else { continue };
            if vector.is_none() {
                let broken = || Failure::Model(format!("the vector of text {place} is not finite"));
                let failure = failure.clone().unwrap_or_else(broken);
                replies.extend(self.remove(id).map(|request| (request.then, Err(failure))));
                continue;
            }
            request.vectors[place] = vector;
            request.missing -= 1;
            if request.missing == 0 {
                replies.extend(self.remove(id).map(|request| request.complete(now)));
            }
        }
        replies
    }
}

impl Pending {
    fn complete(self, now: Instant) -> (Then, Result<Embedded, Failure>) {
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        let started = self.started.unwrap_or(now);
        let embedded = Embedded {
            vectors: self.vectors.into_iter().flatten().collect(),
            queued_ms: ms(self.arrived, started),
            total_ms: ms(started, now),
        };
        (self.then, Ok(embedded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(waiting: &mut Waiting, tenant: &str, texts: &[usize]) -> Result<Vec<Failure>, Failure> {
        let texts = texts.iter().map(|size| vec![1; *size]).collect();
        let request = EmbedRequest { tenant: tenant.to_owned(), texts, deadline: None };
        let replies = waiting.add(request, Box::new(|_| ()), Arc::default(), Instant::now())?;
        Ok(replies.into_iter().filter_map(|(_, result)| result.err()).collect())
    }

    fn requests(step: &[Taken]) -> Vec<u64> {
        step.iter().map(|taken| taken.request).collect()
    }

    #[test]
    fn tenants_and_their_requests_take_turns() {
        let mut waiting = Waiting::new(10);
        add(&mut waiting, "many", &[4; 100]).unwrap();
        add(&mut waiting, "many", &[4; 2]).unwrap();
        add(&mut waiting, "few", &[8; 2]).unwrap();
        let step = waiting.take(64, 32, Instant::now());
        // 16 tokens for each tenant; within one, its requests in turn.
        assert_eq!(step.iter().map(|t| t.tokens.len()).sum::<usize>(), 32);
        let mut taken = requests(&step);
        taken.sort_unstable();
        let first = step.iter().find(|t| t.request == 1).unwrap().request;
        assert_eq!((first, taken), (1, vec![1, 1, 2, 2, 3, 3]));
        assert_eq!(waiting.tokens, 98 * 4);
    }

    #[test]
    fn long_text_is_not_passed_by_shorter_ones() {
        let mut waiting = Waiting::new(10);
        add(&mut waiting, "a", &[10]).unwrap();
        add(&mut waiting, "a", &[30]).unwrap();
        add(&mut waiting, "a", &[1]).unwrap();
        assert_eq!(requests(&waiting.take(64, 32, Instant::now())), [1]);
        assert_eq!(requests(&waiting.take(64, 32, Instant::now())), [2, 3]);
        assert!(waiting.take(64, 32, Instant::now()).is_empty());
    }

    #[test]
    fn full_queue_makes_room_for_a_tenant_below_its_part() {
        let mut waiting = Waiting::new(4);
        for _ in 0..4 {
            assert_eq!(add(&mut waiting, "many", &[3]), Ok(vec![]));
        }
        assert!(matches!(add(&mut waiting, "many", &[3]), Err(Failure::Busy { .. })));
        assert!(matches!(add(&mut waiting, "few", &[3]).unwrap()[..], [Failure::Busy { .. }]));
        assert_eq!(waiting.requests.values().filter(|request| &*request.tenant == "many").count(), 3);
        assert_eq!((waiting.requests.len(), waiting.tokens), (4, 12));
        add(&mut waiting, "few", &[3]).unwrap();
        assert!(matches!(add(&mut waiting, "few", &[3]), Err(Failure::Busy { .. })), "it has its half");
    }

    #[test]
    fn waiting_tokens_are_bounded() {
        let mut waiting = Waiting::new(100);
        add(&mut waiting, "a", &[MAX_WAITING_TOKENS]).unwrap();
        assert!(matches!(add(&mut waiting, "a", &[1]), Err(Failure::Busy { .. })));
        waiting.take(1, usize::MAX, Instant::now());
        add(&mut waiting, "a", &[1]).unwrap();
    }

    #[test]
    fn tenant_that_fills_the_queue_with_tokens_makes_room_for_others() {
        let mut waiting = Waiting::new(100);
        let held = |waiting: &Waiting, tenant: &str| -> usize {
            waiting.requests.values().filter(|request| &*request.tenant == tenant).map(|request| request.tokens).sum()
        };
        // Seven large requests beside more, small ones of another tenant.
        let large = MAX_WAITING_TOKENS / 8;
        for _ in 0..7 {
            assert_eq!(add(&mut waiting, "many", &[large]), Ok(vec![]));
        }
        for _ in 0..10 {
            assert_eq!(add(&mut waiting, "small", &[large / 10]), Ok(vec![]));
        }
        assert!(matches!(add(&mut waiting, "many", &[large]), Err(Failure::Busy { .. })));
        assert!(matches!(add(&mut waiting, "few", &[large]).unwrap()[..], [Failure::Busy { .. }]));
        assert_eq!(["many", "small", "few"].map(|tenant| held(&waiting, tenant) / large), [6, 0, 1]);
        assert!(waiting.requests.keys().all(|id| *id != 7), "its newest made room");
        // One request may need the room of several.
        assert_eq!(add(&mut waiting, "few", &[2 * large]).unwrap().len(), 2);
        assert_eq!((held(&waiting, "many"), held(&waiting, "few")), (4 * large, 3 * large));
        // Refused, it displaces none.
        assert!(matches!(add(&mut waiting, "few", &[2 * large]), Err(Failure::Busy { .. })));
        assert_eq!((held(&waiting, "many"), held(&waiting, "few")), (4 * large, 3 * large));
        assert_eq!(waiting.tokens, waiting.requests.values().map(|request| request.tokens).sum::<usize>());
    }

    #[test]
    fn vectors_keep_the_order_of_texts_and_a_broken_one_fails_its_request_alone() {
        let mut waiting = Waiting::new(10);
        add(&mut waiting, "a", &[2, 2]).unwrap();
        add(&mut waiting, "b", &[2]).unwrap();
        let step = waiting.take(64, 64, Instant::now());
        assert_eq!(step.len(), 3);
        let vectors = step.iter().map(|taken| (taken.request == 1).then(|| vec![taken.place as f32])).collect();
        let replies = waiting.finish(step, Ok(Ok(vectors)), Instant::now());
        assert_eq!(replies.len(), 2);
        let (mut whole, mut broken) = (0, 0);
        for (_, result) in replies {
            match result {
                Ok(embedded) => {
                    whole += 1;
                    assert_eq!(embedded.vectors, [[0.0], [1.0]]);
                }
                Err(failure) => {
                    broken += 1;
                    assert_eq!(failure, Failure::Model("the vector of text 0 is not finite".to_owned()));
                }
            }
        }
        assert_eq!((whole, broken, waiting.requests.len(), waiting.tokens), (1, 1, 0, 0));
    }
}
