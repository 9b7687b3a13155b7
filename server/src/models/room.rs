//! Room for a model: within the budget of all models, and in the memory of the machine or of the GPU that computes it.

use std::future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use textnlp_inference::cpu::Footprint;
use textnlp_inference::engine::ModelStats;
use textnlp_models::Memory;

use super::{Entry, LoadError, ModelState, Models, Ready};
use crate::config::ByteSize;
use crate::executors;

/// How long a load waits for the memory of unloaded models. Their last requests may take longer.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one that was idle may take to release its memory, on a busy machine: nothing is refused because of it.
const IDLE_RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
const RELEASE_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether an unloaded model has released its memory, which its last requests use.
type IsReleased = Box<dyn Fn() -> bool + Send + Sync>;

/// A loaded model that may be unloaded.
#[derive(Debug)]
struct Held {
    bytes: u64,
    is_idle: bool,
    /// The default model, one that was loaded before the server was ready, or one whose memory is that of another
    /// device.
    is_kept: bool,
}

impl Models {
    /// Unloads the least recently used models until the new one fits into the budget, default and preloaded ones last,
    /// and idle ones until one context of it fits into memory, but no default or preloaded one: requests for another
    /// could take it away from all. The answer is for how many positions there are keys and values: as many as usual,
    /// fewer where there is less room, at least one context.
    pub(super) async fn make_room(
        &self,
        entry: &Arc<Entry>,
        new: &Footprint,
        gpu: Option<usize>,
    ) -> Result<usize, LoadError> {
        let positions = new.positions_within(self.budget.0, self.threads).ok_or_else(|| {
            LoadError::NoRoom(format!(
                "it needs about {}, but models.max_cache_size is {}; quantize it (q8_0 or q4_0), shorten its context or raise the limit",
                ByteSize(new.least(self.threads)),
                self.budget
            ))
        })?;
        let positions = match gpu {
            Some(_) => positions.min(self.beside_others(entry, new, &self.memory(gpu).await?)),
            None => positions,
        };
        let needed = new.total(positions, self.threads);
        released(&self.unloaded, || future::ready(false), Instant::now() + IDLE_RELEASE_TIMEOUT).await;
        self.evict(entry, needed, new, gpu, &self.memory(gpu).await?)?;
        let is_enough = || async { self.memory(gpu).await.is_ok_and(|memory| memory.available >= needed) };
        released(&self.unloaded, is_enough, Instant::now() + RELEASE_TIMEOUT).await;
        fitting(new, positions, self.threads, &self.memory(gpu).await?).map_err(LoadError::NoRoom)
    }

    /// The most positions of a model on a GPU, whose keys and values may be many: as many as leave room beside the
    /// loaded models, so that they stay; without a limit where some have to go for it.
    fn beside_others(&self, entry: &Arc<Entry>, new: &Footprint, memory: &Memory) -> usize {
        let others = self.entries.iter().filter(|other| !Arc::ptr_eq(other, entry));
        let held = others.filter_map(|other| match other.standing() {
            ModelState::Ready(ready) => Some(ready.held),
            _ => None,
        });
        let budget = self.budget.0.saturating_sub(held.fold(0, u64::saturating_add));
        let left = budget.min(memory.available);
        if new.least(self.threads) > left { usize::MAX } else { new.positions_beside(left, self.threads) }
    }

    /// The memory for one more model where it computes.
    async fn memory(&self, gpu: Option<usize>) -> Result<Memory, LoadError> {
        let before = self.engine.stats();
        // A model that was never loaded is not ready because its GPU did not answer.
        let memory = executors::memory(gpu).await.map_err(LoadError::Failed)?;
        if gpu.is_none() {
            return Ok(memory);
        }
        // What a request takes or gives back in between is missing twice, not available twice.
        let after = self.engine.stats();
        let loaded = self.entries.iter().filter_map(|entry| match entry.standing() {
            ModelState::Ready(ready) if ready.gpu == gpu => {
                let is_of = |model: &&ModelStats| !model.retired && model.name == entry.config.name;
                let taken = [&before, &after]
                    .map(|stats| stats.models.iter().find(is_of).map_or(0, |model| model.memory.kv_on_demand));
                Some((ready.held, ready.info.memory.weights, taken[0].min(taken[1])))
            }
            _ => None,
        });
        Ok(beside(memory, loaded))
    }

    /// The default model, or one that is loaded before the server is ready.
    fn is_kept(&self, entry: &Entry) -> bool {
        let name = &entry.config.name;
        *name == self.default || self.preload.contains(name)
    }

    /// Unloads what [`to_unload`] names. Nothing is unloaded for a load that is refused.
    fn evict(
        &self,
        entry: &Arc<Entry>,
        needed: u64,
        new: &Footprint,
        gpu: Option<usize>,
        memory: &Memory,
    ) -> Result<(), LoadError> {
        let mut loaded: Vec<(&Arc<Entry>, Arc<Ready>)> = Vec::new();
        for other in self.entries.iter().filter(|other| !Arc::ptr_eq(other, entry)) {
            if let ModelState::Ready(ready) = other.standing() {
                loaded.push((other, ready));
            }
        }
        loaded.sort_by_key(|(other, _)| (self.is_kept(other), other.asked.load(Ordering::Relaxed)));
        // A request holds its model; so do its state and this list.
        let held = |(other, ready): &(&Arc<Entry>, Arc<Ready>)| Held {
            bytes: ready.held,
            is_idle: Arc::strong_count(ready) <= 2,
            is_kept: self.is_kept(other) || ready.gpu != gpu,
        };
        let held: Vec<Held> = loaded.iter().map(held).collect();
        let total = held.iter().fold(needed, |sum, model| sum.saturating_add(model.bytes));
        let least = if memory.total > 0 { new.least(self.threads) } else { 0 };
        let indices = to_unload(&held, total.saturating_sub(self.budget.0), least.saturating_sub(memory.available));
        let indices = indices.unwrap_or_default();
        let name = &entry.config.name;
        let (stays, busy) = after(&held, &indices);
        let (before, of_model) = (self.unloaded.bytes(), self.unloaded.has(name));
        let used = [needed, stays, busy, before].into_iter().fold(0u64, u64::saturating_add);
        if used > self.budget.0 && !may_exceed(self.is_kept(entry), before, of_model) {
            return Err(LoadError::Busy(format!(
                "it needs about {}, and the last answers of unloaded models still use {}: models.max_cache_size is {}; try again",
                ByteSize(needed),
                ByteSize(before),
                self.budget
            )));
        }
        for (other, ready) in indices.iter().filter_map(|index| loaded.get(*index)) {
            tracing::info!(model = %other.config.name, "unloaded to make room");
            self.unloaded.push(&other.config.name, ready.held, self.unload(other, ready));
        }
        Ok(())
    }

    fn unload(&self, entry: &Entry, ready: &Ready) -> IsReleased {
        let id = self.engine.unload(&entry.config.name);
        entry.stand(ModelState::Idle);
        match &ready.embedder {
            Some(embedder) => Box::new(embedder.handle.is_released()),
            None => {
                let engine = self.engine.clone();
                Box::new(move || engine.stats().models.iter().all(|model| Some(model.id) != id))
            }
        }
    }
}

/// Unloaded models whose memory is not free yet: their last answers use it.
#[derive(Default)]
pub(super) struct Unloaded(Mutex<Vec<(String, u64, IsReleased)>>);

impl Unloaded {
    fn push(&self, name: &str, bytes: u64, is_released: IsReleased) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), bytes, is_released));
    }

    /// What they hold now.
    fn bytes(&self) -> u64 {
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|(.., is_released)| !is_released());
        models.iter().fold(0, |sum, (_, bytes, _)| sum.saturating_add(*bytes))
    }

    /// Whether one of them has this name.
    fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(unloaded, ..)| unloaded == name)
    }
}

impl std::fmt::Debug for Unloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unloaded({} bytes)", self.bytes())
    }
}

/// What of a GPU's memory is left beside loaded models, by what each takes at most, its weights, and its keys and
/// values now. Those are taken when requests start, so a GPU that computes little has memory free that is theirs.
fn beside(memory: Memory, loaded: impl Iterator<Item = (u64, u64, u64)>) -> Memory {
    let left = |(held, weights, taken): (u64, u64, u64)| held.saturating_sub(weights).saturating_sub(taken);
    let not_taken = loaded.map(left).fold(0, u64::saturating_add);
    Memory { available: memory.available.saturating_sub(not_taken), ..memory }
}

/// Which models to unload, of these from the least recently used on: any while the budget is exceeded, idle ones while
/// memory is short. `None` if memory would still be short: then nothing is unloaded in vain.
fn to_unload(held: &[Held], over_budget: u64, short: u64) -> Option<Vec<usize>> {
    let (mut indices, mut freed) = (Vec::new(), 0u64);
    for (index, model) in held.iter().enumerate() {
        if freed < over_budget || (model.is_idle && !model.is_kept && freed < short) {
            indices.push(index);
            freed = freed.saturating_add(model.bytes);
        }
    }
    (freed >= short).then_some(indices)
}

/// What stays loaded when these models are unloaded, and what the last answers of the unloaded ones go on using.
fn after(held: &[Held], indices: &[usize]) -> (u64, u64) {
    let sum = |counts: &dyn Fn(usize, &Held) -> bool| {
        let counted = held.iter().enumerate().filter(|(index, model)| counts(*index, model));
        counted.fold(0u64, |sum, (_, model)| sum.saturating_add(model.bytes))
    };
    (sum(&|index, _| !indices.contains(&index)), sum(&|index, model| indices.contains(&index) && !model.is_idle))
}

/// Whether a model may exceed the budget by what the last answers of unloaded models use, of which `before` bytes are
/// unloaded already: the first such models, so that long answers of one do not keep out another; and a default or
/// preloaded model, unless an earlier loading of it is among them. Everything else would add copy to copy.
fn may_exceed(is_kept: bool, before: u64, of_model: bool) -> bool {
    before == 0 || (is_kept && !of_model)
}

/// Waits until unloaded models have released their memory, until there is enough without it, or until a deadline.
async fn released<F: Future<Output = bool>>(unloaded: &Unloaded, is_enough: impl Fn() -> F, deadline: Instant) {
    while unloaded.bytes() > 0 && !is_enough().await && Instant::now() < deadline {
        tokio::time::sleep(RELEASE_POLL_INTERVAL).await;
    }
}

/// The count of these positions that fit into memory. Refuses a load that would exceed it, which would end in an OOM
/// kill.
pub(crate) fn fitting(new: &Footprint, positions: usize, threads: usize, memory: &Memory) -> Result<usize, String> {
    let known = memory.total > 0;
    let most = if known { new.positions_within(memory.available, threads) } else { Some(positions) };
    most.map(|most| most.min(positions)).ok_or_else(|| {
        format!(
            "it needs about {}, but {} of {} are free ({}); quantize it (q8_0 or q4_0), shorten its context or serve fewer models",
            ByteSize(new.least(threads)),
            ByteSize(memory.available),
            ByteSize(memory.total),
            memory.bound_by
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use textnlp_inference::cpu::Quant;
    use textnlp_inference::family::Architecture;

    use super::*;

    fn architecture() -> Architecture {
        Architecture {
            family: "gpt2".to_owned(),
            layers: 4,
            width: 64,
            heads: 4,
            kv_heads: 4,
            head_dim: 16,
            ffn: 256,
            vocab: 300,
            context: 128,
            ..Architecture::plain()
        }
    }

    #[test]
    fn keys_and_values_shrink_to_the_free_memory_and_larger_models_are_not_loaded() {
        let new = Footprint::estimate(architecture(), 1_000_000, Quant::F16);
        let with = |available: u64| {
            let memory = Memory { total: 1 << 40, available, bound_by: "machine".to_owned() };
            fitting(&new, new.usual_positions(), 1, &memory)
        };
        assert_eq!(with(1 << 40), Ok(32 * 128));
        assert_eq!(with(new.total(640, 1)), Ok(640));
        assert_eq!(with(new.least(1)), Ok(128));
        assert!(with(new.least(1) - 1).unwrap_err().contains("quantize it"));
    }

    #[test]
    fn model_on_a_gpu_takes_a_quarter_of_what_is_left_for_keys_and_values() {
        let wide = Architecture { layers: 32, heads: 32, kv_heads: 8, head_dim: 128, context: 8192, ..architecture() };
        let new = Footprint::estimate(wide, 1_000_000_000, Quant::F16).with_kv(true, 16 << 30);
        assert_eq!(new.kv(8192), 1 << 30);
        let base = new.weights + new.workspace(1);
        let beside = |left: u64| new.positions_beside(base + left, 1);
        assert_eq!(beside(8 << 30), 2 * 8192);
        assert_eq!(beside(100 << 30), 16 * 8192, "at most the usual number");
        assert_eq!(beside(3 << 30), 8192, "at least one context, although a quarter is less");
        // Below 2 GiB a quarter is less than what models on the CPU may take.
        let short = new.clone().with_context(Some(256));
        assert_eq!(short.positions_beside(base + (1 << 30), 1), 512 * 8);
        assert_eq!(short.positions_beside(base + (256 << 20), 1), 256 * 8, "all that is left");
    }

    #[test]
    fn keys_and_values_of_loaded_models_are_not_given_to_another_one() {
        let gpu = || Memory { total: 16 << 30, available: 9 << 30, bound_by: "GPU 0".to_owned() };
        let left = |memory: Memory, loaded: &[(u64, u64, u64)]| beside(memory, loaded.iter().copied());
        assert_eq!(left(gpu(), &[]).available, 9 << 30);
        // What running requests took is missing in the free memory, and is not promised again.
        let busy = Memory { available: 6 << 30, ..gpu() };
        assert_eq!(left(busy.clone(), &[(7 << 30, 3 << 30, 3 << 30), (7 << 30, 3 << 30, 0)]).available, 1 << 30);
        assert_eq!(left(busy, &[(7 << 30, 3 << 30, 5 << 30)]).available, 6 << 30);
        // Two with 3 GiB of weights each: 6 GiB are in use, and 8 GiB are promised.
        let left = left(gpu(), &[(7 << 30, 3 << 30, 0), (7 << 30, 3 << 30, 0)]);
        assert_eq!((left.available, left.total), (1 << 30, 16 << 30));
        let new = Footprint::estimate(architecture(), 1_000_000_000, Quant::F16);
        assert!(fitting(&new, new.usual_positions(), 1, &gpu()).is_ok());
        let refused = fitting(&new, new.usual_positions(), 1, &left).unwrap_err();
        assert!(refused.contains("GPU 0") && refused.contains("serve fewer models"), "{refused}");
    }

    /// Held from the least recently used on, bytes over the budget, bytes short of memory, and what is unloaded.
    type Case<'a> = (&'a [Held], u64, u64, Option<Vec<usize>>);

    #[test]
    fn models_are_unloaded_for_the_budget_and_idle_ones_for_memory_but_not_in_vain() {
        let idle = |bytes| Held { bytes, is_idle: true, is_kept: false };
        let busy = |bytes| Held { is_idle: false, ..idle(bytes) };
        let kept = |bytes| Held { is_kept: true, ..idle(bytes) };
        let cases: [Case<'_>; 13] = [
            (&[], 0, 0, Some(vec![])),
            (&[], 0, 1, None),
            (&[idle(5), idle(3)], 0, 0, Some(vec![])),
            (&[idle(5), idle(3)], 4, 0, Some(vec![0])),
            (&[busy(5), idle(3)], 6, 0, Some(vec![0, 1])),
            (&[idle(5), idle(3)], 0, 4, Some(vec![0])),
            (&[busy(5), idle(3)], 0, 3, Some(vec![1])),
            (&[busy(5), idle(3)], 0, 4, None),
            (&[busy(5), idle(3)], 1, 4, Some(vec![0])),
            (&[idle(5), idle(3)], 1, 9, None),
            (&[kept(5), idle(3)], 0, 3, Some(vec![1])),
            (&[kept(5), idle(3)], 0, 4, None),
            (&[kept(5), idle(3)], 1, 0, Some(vec![0])),
        ];
        for (held, over_budget, short, expect) in cases {
            assert_eq!(to_unload(held, over_budget, short), expect, "{held:?} {over_budget} {short}");
        }
    }

    #[tokio::test]
    async fn load_waits_for_the_memory_of_unloaded_models_only_while_it_needs_it() {
        let polls = Arc::new(AtomicU64::new(0));
        let count = polls.clone();
        let after_three: IsReleased = Box::new(move || count.fetch_add(1, Ordering::Relaxed) >= 3);
        let never: IsReleased = Box::new(|| false);
        let late = Instant::now() + Duration::from_secs(3600);
        let unloaded = Unloaded::default();
        unloaded.push("a", 5, after_three);
        released(&unloaded, || future::ready(false), late).await;
        assert_eq!(polls.load(Ordering::Relaxed), 4);
        unloaded.push("b", 7, never);
        assert!(unloaded.has("b") && !unloaded.has("a"));
        released(&unloaded, || future::ready(true), late).await;
        released(&unloaded, || future::ready(false), Instant::now()).await;
        assert_eq!(unloaded.bytes(), 7);
        released(&Unloaded::default(), || future::ready(false), late).await;
    }

    #[test]
    fn loads_do_not_add_copies_to_those_that_answer_still() {
        let idle = Held { bytes: 5, is_idle: true, is_kept: false };
        let busy = Held { bytes: 3, is_idle: false, is_kept: false };
        assert_eq!(after(&[idle, busy], &[]), (8, 0));
        assert_eq!(
            after(
                &[Held { bytes: 5, is_idle: true, is_kept: false }, Held { bytes: 3, is_idle: false, is_kept: true }],
                &[0, 1]
            ),
            (0, 3)
        );
        // The first that is unloaded while it answers, then no further one, and a default model once.
        let cases = [(false, 0, false, true), (false, 1, false, false), (true, 1, false, true), (true, 1, true, false)];
        for (is_kept, before, of_model, expect) in cases {
            assert_eq!(may_exceed(is_kept, before, of_model), expect, "{is_kept} {before} {of_model}");
        }
    }
}
