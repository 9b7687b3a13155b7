//! Vectors of texts that were embedded before: in the memory of this server, and in a Redis that several servers share.
//!
//! A cache changes no answer. It is asked by tenant, model and tokens; on one kind of processor the vectors of a model are the same
//! bits whenever they are computed. Usage, limits and budgets count as without it.

mod memory;
mod redis;
mod value;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use self::memory::Memory;
pub(crate) use self::redis::CacheError;
use self::redis::{Failure, Redis, TIMEOUT};
pub(crate) use self::value::{Fingerprint, Key};
use crate::config::Cache;

/// KiB of vectors that wait until Redis has them. Further ones are not written.
const WRITES: usize = 16 << 10;

/// What a cache did, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheEvent {
    /// A level had this many vectors: `memory` or `redis`.
    Hits(&'static str, u64),
    /// No level had this many vectors.
    Misses(u64),
    /// Redis failed (`connection`, `timeout`, `refused`), its connections were `busy`, a value is `damaged`, or vectors were
    /// `dropped`, because too many waited.
    Error(&'static str),
    /// The memory holds this many vectors and bytes; others were evicted.
    Memory { entries: usize, bytes: usize, evicted: u64 },
}

/// Counts events.
pub(crate) type Count = Arc<dyn Fn(CacheEvent) + Send + Sync>;

/// The two levels.
pub(crate) struct VectorCache {
    environment: String,
    memory: Mutex<Memory>,
    redis: Option<Arc<Redis>>,
    /// A permit for each KiB that waits.
    writes: Arc<Semaphore>,
    count: Count,
}

impl VectorCache {
    /// Reads the address of the Redis, if there is one.
    pub(crate) fn new(settings: &Cache, environment: &str, count: Count) -> Result<Self, CacheError> {
        let redis = settings.redis.as_ref().map(Redis::new).transpose()?.map(Arc::new);
        // At zero from the start: an increase is measured from the first sample.
        let levels = ["memory", "redis"].into_iter().take(if redis.is_some() { 2 } else { 1 });
        levels.for_each(|level| count(CacheEvent::Hits(level, 0)));
        let size = usize::try_from(settings.size.0).unwrap_or(usize::MAX);
        let (environment, memory) = (environment.to_owned(), Mutex::new(Memory::new(size)));
        Ok(Self { environment, memory, redis, writes: Arc::new(Semaphore::new(WRITES)), count })
    }

    /// The key of a text, as tokens, for a tenant.
    pub(crate) fn key(&self, tenant: &str, model: &Fingerprint, tokens: &[u32]) -> Key {
        Key::new(&self.environment, tenant, model, tokens)
    }

    /// The vectors of texts that are known, with this many numbers each. Those of Redis are kept in memory too. A Redis that
    /// does not answer in time has none. May be dropped at any time.
    pub(crate) async fn find(&self, keys: &[Key], width: usize) -> HashMap<Key, Vec<f32>> {
        let mut seen = HashSet::new();
        let keys: Vec<Key> = keys.iter().copied().filter(|key| seen.insert(*key)).collect();
        let (mut in_memory, mut missing) = (Vec::new(), Vec::new());
        {
            let mut memory = self.memory();
            for key in keys {
                match memory.get(&key).filter(|vector| vector.len() == width) {
                    Some(vector) => in_memory.push((key, vector)),
                    None => missing.push(key),
                }
            }
        }
        (self.count)(CacheEvent::Hits("memory", in_memory.len() as u64));
        let mut found: HashMap<Key, Vec<f32>> =
            in_memory.into_iter().map(|(key, vector)| (key, vector.to_vec())).collect();
        let mut from_redis = 0;
        if let Some(redis) = &self.redis {
            // For all parts, so that a slow Redis delays no request by more.
            let until = Instant::now() + TIMEOUT;
            for part in missing.chunks(Redis::most(width)) {
                let values = match redis.get(part, width, until).await {
                    Ok(values) => values,
                    Err(failure) => {
                        self.failed(&failure);
                        break;
                    }
                };
                let mut read = Vec::with_capacity(part.len());
                for (key, value) in part.iter().zip(values) {
                    let Some(value) = value else { continue };
                    match value::decode(key, width, &value) {
                        Some(vector) => read.push((*key, vector)),
                        // The vector that is computed replaces it.
                        None => (self.count)(CacheEvent::Error("damaged")),
                    }
                }
                from_redis += read.len();
                self.remember(&read);
                found.extend(read.into_iter().map(|(key, vector)| (key, vector.to_vec())));
            }
            (self.count)(CacheEvent::Hits("redis", from_redis as u64));
        }
        (self.count)(CacheEvent::Misses((missing.len() - from_redis) as u64));
        found
    }

    /// Keeps vectors that were computed. Redis gets them later, by a task that ends soon. No stop waits for it: what is not
    /// written is computed again.
    pub(crate) fn keep(&self, entries: Vec<(Key, Arc<[f32]>)>) {
        self.remember(&entries);
        let (Some(redis), Some((_, first))) = (&self.redis, entries.first()) else { return };
        let bytes: usize = entries.iter().map(|(_, vector)| value::value_bytes(vector.len())).sum();
        let size = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(permit) = self.writes.clone().try_acquire_many_owned(size) else {
            return (self.count)(CacheEvent::Error("dropped"));
        };
        let (redis, count, most) = (redis.clone(), self.count.clone(), Redis::most(first.len()));
        let until = Instant::now() + TIMEOUT;
        tokio::spawn(async move {
            for part in entries.chunks(most) {
                let written = if Instant::now() < until { redis.put(part, until).await } else { Err(Failure::Busy) };
                if let Err(failure) = written {
                    if let Some(kind) = failure.kind() {
                        count(CacheEvent::Error(kind));
                    }
                    break;
                }
            }
            drop(permit);
        });
    }

    fn remember(&self, entries: &[(Key, Arc<[f32]>)]) {
        let mut memory = self.memory();
        let evicted: u64 = entries.iter().map(|(key, vector)| memory.put(*key, vector.clone())).sum();
        (self.count)(CacheEvent::Memory { entries: memory.len(), bytes: memory.bytes(), evicted });
    }

    fn failed(&self, failure: &Failure) {
        if let Some(kind) = failure.kind() {
            (self.count)(CacheEvent::Error(kind));
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    #[tokio::test]
    async fn vectors_are_found_by_tenant_and_width_and_repeated_keys_count_once() {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let count: Count = Arc::new(move |event| seen.lock().unwrap().push(event));
        let settings = Cache { size: ByteSize(1 << 20), redis: None };
        let cache = VectorCache::new(&settings, "production", count).unwrap();
        let model = Fingerprint([1; 32]);
        let (ours, theirs) = (cache.key("acme", &model, &[1, 2]), cache.key("other", &model, &[1, 2]));
        assert!(cache.find(&[ours], 2).await.is_empty());
        cache.keep(vec![(ours, Arc::from(vec![0.5, 0.25]))]);
        events.lock().unwrap().clear();
        let found = cache.find(&[ours, theirs, ours], 2).await;
        assert_eq!(found, HashMap::from([(ours, vec![0.5, 0.25])]));
        assert!(cache.find(&[ours], 3).await.is_empty());
        let wanted = [
            CacheEvent::Hits("memory", 1),
            CacheEvent::Misses(1),
            CacheEvent::Hits("memory", 0),
            CacheEvent::Misses(1),
        ];
        assert_eq!(*events.lock().unwrap(), wanted);
    }
}
