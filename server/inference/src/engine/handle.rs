//! The engine as its users see it: an owner, cheap handles, tickets.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::admission::{AdmissionQueue, Entry};
use super::request::{Failure, Request, Sink};
use super::run::{Run, Then};
use super::scheduler::{Command, LONGEST_SLEEP, Next, Scheduler};
use super::stats::Stats;
use crate::executor::{Executor, Memory, Shape};
use crate::guide::Guides;
use crate::text::Tokenizer;

/// The engine's bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// The most requests that wait for room, all models together.
    pub queue: usize,
    /// The most requests of one model in one batch, unless its executor says how many.
    pub max_running: usize,
    /// The operator's number instead. It lowers that of an executor, and never raises it.
    pub max_batch_size: Option<usize>,
    /// Target duration of a step while a client reads a stream.
    pub step_target: Duration,
    /// A client that reads nothing for this long is given up.
    pub stall: Duration,
    /// Whether keys and values of ended requests serve later ones of their tenant that begin with the same tokens.
    pub prefix_cache: bool,
    /// The most tokens of a sequence that are guessed from its own text and verified in one step; 0 guesses none.
    pub draft_tokens: usize,
    /// The most threads that read the logits of a step; 0 for all cores. Only steps with many logits use several.
    pub threads: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            queue: 256,
            max_running: 32,
            max_batch_size: None,
            step_target: Duration::from_millis(20),
            stall: Duration::from_secs(60),
            prefix_cache: true,
            draft_tokens: 8,
            threads: 0,
        }
    }
}

impl EngineOptions {
    /// The most requests of a model in one batch; `of_executor` is how many that is made for.
    pub(super) fn batch_size(&self, of_executor: Option<usize>) -> usize {
        match (self.max_batch_size, of_executor) {
            (Some(size), most) => size.min(most.unwrap_or(usize::MAX)).max(1),
            (None, most) => most.unwrap_or(self.max_running),
        }
    }
}

/// A model that is ready to run.
pub struct LoadedModel {
    /// Its weights.
    pub executor: Box<dyn Executor>,
    /// Its tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// A context smaller than the model's.
    pub context: Option<usize>,
}

/// Public description of a loaded model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Arc<Shape>,
    /// Its tokens.
    pub tokenizer: Arc<Tokenizer>,
    /// Compiles schemas for them.
    pub guides: Arc<Guides>,
    /// The most tokens of prompt and answer together.
    pub context: usize,
    /// Bytes held when it was loaded.
    pub memory: Memory,
    /// When it was loaded.
    pub loaded: SystemTime,
}

/// A request for the likelihood of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Which loaded model.
    pub model: String,
    /// Whose work it is.
    pub tenant: String,
    /// The text's tokens, at least one, at most the model's context.
    pub tokens: Vec<u32>,
    /// The deadline.
    pub deadline: Option<Instant>,
}

/// How likely a text is. Its perplexity is `exp(-sum / (tokens - 1))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The natural logarithm of each token's probability given those before, from the second token on.
    pub logprobs: Vec<f32>,
    /// Their sum.
    pub sum: f64,
}

/// Owns the engine's thread: dropping it ends running requests and joins.
pub struct Engine {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Talks to the engine; cheap to clone, and usable from any thread.
#[derive(Clone)]
pub struct Handle {
    door: Arc<AdmissionQueue>,
    commands: SyncSender<Command>,
}

/// An accepted request.
pub struct Ticket {
    cancelled: Arc<AtomicBool>,
    commands: SyncSender<Command>,
}

/// Cancels its request when it is dropped: for handlers whose client may leave.
pub struct CancelOnDrop(Ticket);

impl Engine {
    /// Starts the engine's thread.
    pub fn start(options: EngineOptions) -> io::Result<Engine> {
        Engine::start_with(options, || {})
    }

    /// The same with a function that the thread calls when it has pushed all events of a step, or of what ended
    /// otherwise: sinks can hand on their events together. It must not block.
    pub fn start_with(options: EngineOptions, pushed: impl Fn() + Send + 'static) -> io::Result<Engine> {
        let queue = options.queue.max(1);
        let options = EngineOptions { queue, max_running: options.max_running.max(1), ..options };
        let door = Arc::new(AdmissionQueue::new(queue, Instant::now()));
        // Every accepted request fits, and then some for the commands of operators.
        let (commands, inbox) = sync_channel(2 * queue + 64);
        let scheduler = Scheduler::new(options, Arc::clone(&door), Instant::now);
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(scheduler, &inbox, &pushed))?;
        Ok(Engine { handle: Handle { door, commands }, thread: Some(thread) })
    }

    /// A further handle.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops: unfinished requests fail with [`Failure::Draining`].
    pub fn shutdown(self) {}
}

impl Deref for Engine {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.door.close();
        // An error means that the thread has ended already.
        let _gone = self.handle.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The engine's thread: runs turns while there is work, and sleeps otherwise.
pub(super) fn run<C: Fn() -> Instant>(mut scheduler: Scheduler<C>, inbox: &Receiver<Command>, pushed: &dyn Fn()) {
    while turns(&mut scheduler, inbox, pushed) {}
    pushed();
    // Requests admitted before the close are still on their way and need an answer.
    while scheduler.is_awaited() {
        match inbox.recv_timeout(Duration::from_secs(1)) {
            Ok(command) => scheduler.command(command),
            Err(_) => break,
        };
        pushed();
    }
}

/// Runs turns until there is nothing to do, then sleeps; `false` when it must stop.
fn turns<C: Fn() -> Instant>(scheduler: &mut Scheduler<C>, inbox: &Receiver<Command>, pushed: &dyn Fn()) -> bool {
    loop {
        while let Ok(command) = inbox.try_recv() {
            if !scheduler.command(command) {
                return false;
            }
        }
        let next = scheduler.turn();
        pushed();
        let sleep = match next {
            Next::Now => continue,
            Next::At(instant) => instant.saturating_duration_since(Instant::now()),
            Next::Idle => LONGEST_SLEEP,
        };
        return match inbox.recv_timeout(sleep) {
            Ok(command) => scheduler.command(command),
            Err(RecvTimeoutError::Timeout) => true,
            // All senders are gone.
            Err(RecvTimeoutError::Disconnected) => false,
        };
    }
}

impl Handle {
    /// Serves a model under `name`. A model with the same name is retired: it finishes its accepted requests.
    ///
    /// May wait for the current step.
    pub fn load(&self, name: &str, model: LoadedModel) -> Result<(), Failure> {
        let shape = Arc::new(model.executor.shape().clone());
        let context = model.context.unwrap_or(usize::MAX).min(shape.context);
        if context == 0 || shape.vocab == 0 {
            return Err(Failure::Model(format!("`{name}` has no context or no vocabulary")));
        }
        let info = ModelInfo {
            name: name.to_owned(),
            guides: Guides::new(&model.tokenizer, shape.vocab),
            shape,
            tokenizer: Arc::clone(&model.tokenizer),
            context,
            memory: model.executor.memory(),
            loaded: SystemTime::now(),
        };
        // The engine must know the slot before a request can use it, so the list changes last.
        let slot = self.door.next_slot()?;
        let load = Command::Load { slot, name: name.to_owned(), context, model: Box::new(model) };
        self.commands.send(load).map_err(|_| Failure::Draining)?;
        if let Some(before) = self.door.list(slot, info) {
            self.commands.send(Command::Unload(before)).map_err(|_| Failure::Draining)?;
        }
        Ok(())
    }

    /// Stops serving a model after its accepted requests; its memory is free when [`Handle::stats`] has no model with the
    /// returned id. `None` if there is no model of that name.
    pub fn unload(&self, name: &str) -> Option<u64> {
        let slot = self.door.unlist(name)?;
        // An error means that the engine, and the model with it, is gone.
        let _gone = self.commands.send(Command::Unload(slot));
        Some(slot.0)
    }

    /// The models that accept requests, by name.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.door.models()
    }

    /// One of them.
    pub fn model(&self, name: &str) -> Option<ModelInfo> {
        self.door.model(name)
    }

    /// Submits a request. Never waits. After `Ok` the sink gets the request's events and exactly one terminal one,
    /// unless it answers [`Push::Gone`](super::Push) or accepts nothing for too long.
    pub fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<Ticket, Failure> {
        self.check(&request.model, &request.prompt)?;
        let now = Instant::now();
        let entry = self.door.enter(&request.model, &request.tenant, now)?;
        let model = request.model.clone();
        self.add(model, entry, now, |tenant, cancelled| Run::answer(request, sink, tenant, cancelled, now))
    }

    /// Requests the likelihood of a text, through the same queue. `then` is called once on the engine's thread unless
    /// the ticket is cancelled: it must not block.
    pub fn score(&self, score: Score, then: Then) -> Result<Ticket, Failure> {
        self.check(&score.model, &score.tokens)?;
        let now = Instant::now();
        let entry = self.door.enter(&score.model, &score.tenant, now)?;
        let model = score.model.clone();
        self.add(model, entry, now, |tenant, cancelled| Run::score(score, then, tenant, cancelled, now))
    }

    /// The last statistics; never waits for a step.
    pub fn stats(&self) -> Stats {
        self.door.stats(Instant::now())
    }

    /// Rejects new requests and waits until the accepted ones have ended, at most until `deadline`. The rest then fails
    /// with [`Failure::Draining`], and the result is `false`.
    pub fn drain(&self, deadline: Instant) -> bool {
        self.door.close();
        let (reply, answer) = sync_channel(1);
        if self.commands.send(Command::Drain { deadline, reply }).is_err() {
            return false;
        }
        // The engine answers within one step of the deadline; its end answers too, by dropping the sender.
        answer.recv().unwrap_or(false)
    }

    fn check(&self, model: &str, tokens: &[u32]) -> Result<(), Failure> {
        let info = self.door.model(model).ok_or_else(|| Failure::NoModel(model.to_owned()))?;
        if tokens.is_empty() {
            return Err(Failure::BadPrompt("the prompt has no tokens".to_owned()));
        }
        if tokens.len() > info.context {
            return Err(Failure::TooLong { prompt: tokens.len(), context: info.context });
        }
        match tokens.iter().find(|&&token| token as usize >= info.shape.vocab) {
            Some(token) => Err(Failure::BadPrompt(format!("`{model}` has no token {token}"))),
            None => Ok(()),
        }
    }

    fn add(
        &self,
        model: String,
        entry: Entry,
        now: Instant,
        make: impl FnOnce(Arc<str>, Arc<AtomicBool>) -> Run,
    ) -> Result<Ticket, Failure> {
        let Entry { slot, tenant, displaces } = entry;
        let cancelled = Arc::new(AtomicBool::new(false));
        let run = Box::new(make(Arc::clone(&tenant), Arc::clone(&cancelled)));
        let failure = match self.commands.try_send(Command::Add { slot, model, displaces, run }) {
            Ok(()) => return Ok(Ticket { cancelled, commands: self.commands.clone() }),
            Err(TrySendError::Full(_)) => Failure::Busy { retry_after_ms: self.door.retry_after(now) },
            Err(TrySendError::Disconnected(_)) => Failure::Draining,
        };
        self.door.leave(&tenant, false, now);
        Err(failure)
    }
}

impl Ticket {
    /// Ends the request at the next step with the tokens so far: its sink gets `Done` with `Finish::Cancelled`.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // A full channel means that the engine is awake and will check anyway.
        let _awake = self.commands.try_send(Command::Look);
    }

    /// Cancels when dropped.
    pub fn cancel_on_drop(self) -> CancelOnDrop {
        CancelOnDrop(self)
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
