//! Memory of bodies, of answers and of their guides: bounded for all requests together, for those of one tenant and for
//! those of one key, so that each leaves room for the others.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::App;
use crate::config::ByteSize;
use crate::error::ApiError;
use crate::record::Record;

/// Bodies and answers up to this size are not counted, and are processed on the current thread: a thread switch takes longer.
pub(crate) const SMALL: usize = 64 << 10;

/// Bytes held at once, by all requests.
const MAX_HELD: usize = 64 << 20;

/// Small parts that there is room for in addition, one for each tenant that holds nothing else: two tenants with all that
/// they may hold do not keep out a third.
const MAX_ALONE: usize = 8;

/// A small part of bodies and answers.
pub(crate) const SMALL_PART: usize = 2 << 20;

/// How long a request waits for memory that others hold.
const HELD_TIMEOUT: Duration = Duration::from_secs(10);

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

/// A budget of memory.
pub(crate) struct SharedMemory {
    all: Arc<Semaphore>,
    /// Parts of tenants that hold nothing else.
    alone: Arc<Semaphore>,
    small_kib: u32,
    tenant_kib: u32,
    key_kib: u32,
    /// Those that are in use.
    shares: Mutex<HashMap<Owner, Arc<Semaphore>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Tenant(String),
    Key(String),
}

/// Whose memory is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exhausted {
    Key,
    Tenant,
    All,
}

/// Memory of one request.
#[derive(Debug)]
pub(crate) struct HeldMemory {
    permits: [OwnedSemaphorePermit; 3],
}

impl HeldMemory {
    fn kib(&self) -> u32 {
        self.permits[0].num_permits() as u32
    }

    fn release(&mut self, kib: u32) {
        for permit in &mut self.permits {
            drop(permit.split(kib as usize));
        }
    }
}

impl SharedMemory {
    /// For parts of up to `largest` bytes: two of the largest fit in, one of each tenant, and beside them small ones of
    /// [`MAX_ALONE`] other tenants.
    pub(crate) fn new(largest: usize, small: usize) -> Self {
        let all = MAX_HELD.max(largest.saturating_mul(2));
        let part = |divisor: usize| kib((all / divisor).max(largest));
        Self {
            all: Arc::new(Semaphore::new(kib(all) as usize)),
            alone: Arc::new(Semaphore::new(MAX_ALONE * kib(small) as usize)),
            small_kib: kib(small),
            tenant_kib: part(2),
            key_kib: part(4),
            shares: Mutex::default(),
        }
    }

    /// Waits until there is room beside what other requests hold.
    pub(crate) async fn hold(&self, tenant: &str, key: &str, bytes: usize) -> Result<HeldMemory, Exhausted> {
        let (key, tenant) = self.shares(tenant, key);
        let size = kib(bytes);
        let end = tokio::time::Instant::now() + HELD_TIMEOUT;
        let take = |share: Arc<Semaphore>, exhausted: Exhausted| async move {
            let permit = tokio::time::timeout_at(end, share.acquire_many_owned(size)).await;
            permit.ok().and_then(Result::ok).ok_or(exhausted)
        };
        // The own shares first: a request that waits for them takes no place of others.
        let key = take(key, Exhausted::Key).await?;
        let of_tenant = take(tenant.clone(), Exhausted::Tenant).await?;
        let is_alone = tenant.available_permits() + size as usize == self.tenant_kib as usize;
        let all = take(self.all.clone(), Exhausted::All);
        let all = if is_alone && size <= self.small_kib {
            // Whichever is free first, in this order.
            tokio::select! {
                biased;
                all = all => all?,
                alone = take(self.alone.clone(), Exhausted::All) => alone?,
            }
        } else {
            all.await?
        };
        Ok(HeldMemory { permits: [key, of_tenant, all] })
    }

    /// The most bytes that one key may hold.
    pub(crate) fn key_bytes(&self) -> usize {
        (self.key_kib as usize) << 10
    }

    /// The bytes that are held.
    #[cfg(test)]
    fn held(&self) -> usize {
        MAX_HELD - (self.all.available_permits() << 10)
    }

    /// Those of a key and of its tenant.
    fn shares(&self, tenant: &str, key: &str) -> (Arc<Semaphore>, Arc<Semaphore>) {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        // Permits and those that wait have a reference, too.
        shares.retain(|_, share| Arc::strong_count(share) > 1);
        let mut share = |owner: Owner, kib: u32| {
            shares.entry(owner).or_insert_with(|| Arc::new(Semaphore::new(kib as usize))).clone()
        };
        (share(Owner::Key(key.to_owned()), self.key_kib), share(Owner::Tenant(tenant.to_owned()), self.tenant_kib))
    }
}

/// The memory of an answer: held from before it is made until the client has taken it or is gone.
pub(crate) struct AnswerMemory {
    memory: Arc<SharedMemory>,
    tenant: String,
    key: String,
    held: Vec<HeldMemory>,
}

impl AnswerMemory {
    /// Waits for the memory of an answer of about this many bytes.
    pub(crate) async fn hold(app: &App, record: &Record, bytes: usize) -> Result<Self, ApiError> {
        let (tenant, key) = record.owner();
        Self::of(&app.answers, tenant, key, bytes).await
    }

    async fn of(memory: &Arc<SharedMemory>, tenant: String, key: String, bytes: usize) -> Result<Self, ApiError> {
        let mut held = Vec::new();
        if bytes > SMALL {
            let bytes = bytes.min(memory.key_bytes());
            held.push(memory.hold(&tenant, &key, bytes).await.map_err(exhausted)?);
        }
        Ok(Self { memory: memory.clone(), tenant, key, held })
    }

    fn kib(&self) -> u32 {
        self.held.iter().map(HeldMemory::kib).sum()
    }

    /// Holds this many bytes in all, and waits for what is more than before.
    async fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = kib(bytes).saturating_sub(self.kib());
        if bytes > SMALL && missing > 0 {
            let more = self.memory.hold(&self.tenant, &self.key, (missing as usize) << 10).await;
            self.held.push(more.map_err(exhausted)?);
        }
        self.shrink(bytes);
        Ok(())
    }

    /// Releases what is held above this many bytes.
    fn shrink(&mut self, bytes: usize) {
        let most = if bytes > SMALL { kib(bytes) } else { 0 };
        while let Some(mut last) = self.held.pop() {
            let rest = self.kib();
            if rest < most {
                last.release((rest + last.kib()).saturating_sub(most));
                self.held.push(last);
                return;
            }
        }
    }

    /// Writes a value as JSON.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<WrittenAnswer, ApiError> {
        let mut writer = Writer { bytes: Vec::new(), most: self.memory.key_bytes(), is_full: false };
        let written = serde_json::to_writer(&mut writer, value);
        if writer.is_full {
            let message = format!("the answer is larger than {}", ByteSize(writer.most as u64));
            let error = ApiError::new(StatusCode::BAD_REQUEST, "answer_too_large", message);
            return Err(error.hint("ask for less in one request"));
        }
        written.map_err(|error| {
            tracing::error!(%error, "an answer could not be written");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
        })?;
        writer.bytes.shrink_to_fit();
        Ok(WrittenAnswer { bytes: writer.bytes, memory: self })
    }
}

/// 429 or 503: there is no room for an answer.
pub(crate) fn exhausted(exhausted: Exhausted) -> ApiError {
    let (status, code, message) = match exhausted {
        Exhausted::Key => {
            (StatusCode::TOO_MANY_REQUESTS, "too_many_answers", "the answers of this key use up its share of memory")
        }
        Exhausted::Tenant => {
            (StatusCode::TOO_MANY_REQUESTS, "too_many_answers", "the answers of this tenant use up its share of memory")
        }
        Exhausted::All => {
            (StatusCode::SERVICE_UNAVAILABLE, "answers_full", "answers use up the server's memory for them")
        }
    };
    ApiError::new(status, code, message)
        .hint("wait for the running requests of this key, or ask for less at once")
        .retry_after(Duration::from_secs(1))
}

/// Takes up to `most` bytes.
struct Writer {
    bytes: Vec<u8>,
    most: usize,
    is_full: bool,
}

impl io::Write for Writer {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if more.len() > self.most.saturating_sub(self.bytes.len()) {
            self.is_full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An answer with its memory.
pub(crate) struct WrittenAnswer {
    bytes: Vec<u8>,
    memory: AnswerMemory,
}

impl AsRef<[u8]> for WrittenAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl WrittenAnswer {
    /// The answer of a request, as soon as there is memory for what is larger than expected. It is held as long as any
    /// part of the bytes waits to be sent.
    pub(crate) async fn respond(mut self) -> Result<Response, ApiError> {
        self.memory.resize(self.bytes.len()).await?;
        Ok(json_response(Body::from(Bytes::from_owner(self))))
    }
}

/// A response of JSON.
pub(crate) fn json_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_tenant_and_one_key_leave_memory_for_others() {
        let memory = SharedMemory::new(10_000_000, 0);
        let hold = |tenant: &str, key: &str| memory.hold(tenant, key, 10_000_000).now_or_never().map(Result::unwrap);
        let first = hold("acme", "1").unwrap();
        assert!(hold("acme", "1").is_none(), "a key has a quarter");
        let others = [hold("acme", "2").unwrap(), hold("acme", "3").unwrap()];
        assert!(hold("acme", "4").is_none(), "a tenant has half");
        let beside = [hold("other", "5").unwrap(), hold("other", "6").unwrap(), hold("third", "7").unwrap()];
        assert!(hold("fourth", "8").is_none(), "all of it is in use");
        drop(first);
        let _again = hold("acme", "1").unwrap();
        drop((others, beside));
        let _last = hold("fourth", "8").unwrap();
        assert_eq!(memory.shares.lock().unwrap().len(), 4, "unused shares are forgotten");
        // Two of the largest bodies fit in, whatever their size.
        let memory = SharedMemory::new(100 << 20, 0);
        let hold = |tenant: &str, key: &str| memory.hold(tenant, key, 100 << 20).now_or_never().map(Result::unwrap);
        let _two = (hold("acme", "1").unwrap(), hold("other", "2").unwrap());
        assert!(hold("third", "3").is_none());
    }

    fn answer(memory: &Arc<SharedMemory>, key: &str, bytes: usize) -> Option<AnswerMemory> {
        AnswerMemory::of(memory, "acme".into(), key.into(), bytes).now_or_never().map(Result::unwrap)
    }

    #[tokio::test]
    async fn guides_of_the_largest_requests_of_two_tenants_fit_in() {
        let most = crate::endpoints::MAX_ANSWERS * textnlp_inference::guide::MAX_MEMORY;
        let one = textnlp_inference::guide::MAX_MEMORY;
        let memory = SharedMemory::new(most, one);
        let hold = |tenant: &str, bytes: usize| memory.hold(tenant, "key", bytes).now_or_never().map(Result::unwrap);
        let first = hold("acme", most).unwrap();
        assert!(hold("acme", 1).is_none(), "the tenant has its part");
        drop(first);
        let two = (hold("acme", most).unwrap(), memory.hold("other", "2", most).now_or_never().unwrap().unwrap());
        let hold = |tenant: &str, bytes: usize| memory.hold(tenant, tenant, bytes).now_or_never().map(Result::unwrap);
        assert!(hold("third", 2 * one).is_none(), "all of it is in use");
        let mut others: Vec<_> = (0..MAX_ALONE).map(|tenant| hold(&format!("small {tenant}"), one).unwrap()).collect();
        assert!(hold("small 0", 1).is_none() && hold("acme", 1).is_none(), "one small part for each other tenant");
        assert!(hold("third", one).is_none(), "all of these are in use too");
        others.pop();
        assert!(hold("third", one).is_some());
        drop((others, two));
        assert_eq!(
            (memory.all.available_permits(), memory.alone.available_permits()),
            (kib(2 * most) as usize, MAX_ALONE * kib(one) as usize)
        );
    }

    async fn respond(written: Result<WrittenAnswer, ApiError>) -> Result<Response, ApiError> {
        written?.respond().await
    }

    #[tokio::test]
    async fn answers_hold_their_memory_until_they_are_taken() {
        let memory = Arc::new(SharedMemory::new(0, SMALL_PART));
        let text = "x".repeat(1 << 20);
        // More than was expected, and less.
        let unread = respond(answer(&memory, "1", 0).unwrap().json(&text)).await.unwrap();
        assert_eq!(memory.held(), (1 << 20) + 1024, "the text in quotes");
        let less = answer(&memory, "1", 8 << 20).unwrap();
        assert_eq!(memory.held(), (9 << 20) + 1024);
        let less = respond(less.json(&&text[..100 << 10])).await.unwrap();
        assert_eq!(memory.held(), (1 << 20) + (101 << 10) + 1024);
        drop(less);
        // A part that waits in a buffer counts for all of it.
        let body = axum::body::to_bytes(unread.into_body(), 2 << 20).await.unwrap();
        let part = body.slice(..1);
        drop(body);
        assert_eq!(memory.held(), (1 << 20) + 1024);
        drop(part);
        assert_eq!(memory.held(), 0);
    }

    #[tokio::test]
    async fn unread_answers_of_a_key_and_of_a_tenant_are_limited() {
        let memory = Arc::new(SharedMemory::new(0, SMALL_PART));
        let text = "x".repeat(5 << 20);
        let make = |key: &str| respond(answer(&memory, key, 0).unwrap().json(&text)).boxed_local();
        let mut unread = vec![make("1").await.unwrap(), make("1").await.unwrap(), make("1").await.unwrap()];
        let mut fourth = make("1");
        assert!(fourth.as_mut().now_or_never().is_none(), "a written answer waits for memory");
        assert!(answer(&memory, "1", 2 << 20).is_none(), "it waits");
        drop(unread.pop());
        unread.push(fourth.await.unwrap());
        unread.extend([make("2").await.unwrap(), make("2").await.unwrap(), make("2").await.unwrap()]);
        assert!(make("3").now_or_never().is_none(), "the tenant has its half");
        assert!(memory.held() <= MAX_HELD / 2);
        assert!(respond(answer(&memory, "1", SMALL).unwrap().json(&"small")).await.is_ok(), "small answers go on");
        drop(unread);
        let error = answer(&memory, "1", 0).unwrap().json(&text.repeat(4)).err().unwrap();
        assert_eq!((error.status.as_u16(), error.code), (400, "answer_too_large"));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn exhausted_memory_says_whose_it_is() {
        for (whose, status, code, word) in [
            (Exhausted::Key, 429, "too_many_answers", "key"),
            (Exhausted::Tenant, 429, "too_many_answers", "tenant"),
            (Exhausted::All, 503, "answers_full", "server"),
        ] {
            let error = exhausted(whose);
            assert_eq!((error.status.as_u16(), error.code, error.retry_after.is_some()), (status, code, true));
            assert!(error.message.contains(word), "{}", error.message);
        }
    }
}
