//! The lock of an object store: a small object that its holder rewrites every few seconds.
//!
//! Wall clocks of different machines are never compared. A run that wants the lock observes the object for the duration
//! of a lease, by its own clock. The holder counts from before it sent the renewal. It therefore knows that its lease
//! has expired before any other run does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::{PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::{Holder, Lease, StateError};
use super::wire::{Found, Put, Tag, Wire};

pub(super) const LEASE: &str = "lease.json";

/// The most retries of a write that meets a newer version than the one just read.
const COLLISIONS: u32 = 8;

/// The file `lease.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseFile {
    /// The fencing number.
    pub(super) fence: u64,
    /// A renewal counter.
    pub(super) beat: u64,
    /// Unique to this holder, also among runs of one process.
    nonce: Uuid,
    /// Released: the next holder need not wait.
    pub(super) released: bool,
    /// How long it lasts without a renewal, in seconds.
    seconds: u64,
    #[serde(flatten)]
    pub(super) holder: Holder,
}

/// A held lease.
pub(super) struct HeldLease {
    wire: Arc<Wire>,
    state: Mutex<LeaseState>,
    /// Allows one renewal at a time.
    gate: tokio::sync::Mutex<()>,
}

struct LeaseState {
    file: LeaseFile,
    tag: Tag,
    /// When the last successful renewal was requested, by both clocks.
    requested_at: (Duration, Timestamp),
    lost: Option<String>,
}

/// A granted lock.
pub(super) struct GrantedLock {
    pub(super) term: Arc<HeldLease>,
    /// Whether the previous lease expired: its holder may still be running without knowing.
    pub(super) ran_out: bool,
}

/// Takes the lease: at once if it is free, after its expiry if its holder is silent. Fails if its holder renews it.
pub(super) async fn take(wire: &Arc<Wire>, holder: &Holder) -> Result<GrantedLock, StateError> {
    // The lease as first read, and when the answer arrived: its renewal was earlier.
    let mut watched: Option<(LeaseFile, Duration)> = None;
    for _ in 0..COLLISIONS {
        let (fence, tag) = loop {
            let Some(found) = wire.get(LEASE).await? else { break (1, None) };
            let (there, now) = (parse(wire, &found)?, wire.clock.steady());
            match &watched {
                _ if there.released => break (there.fence + 1, Some(found.tag)),
                Some((first, _)) if *first != there => return Err(StateError::Held { holder: Some(there.holder) }),
                Some((_, since)) if now.saturating_sub(*since) >= wire.timing.lease => {
                    break (there.fence + 1, Some(found.tag));
                }
                Some(_) => {}
                None => {
                    if let Some(tell) = &wire.tell {
                        let Holder { by, pid, host, .. } = &there.holder;
                        let seconds = wire.timing.lease.as_secs();
                        tell(format!(
                            "{by} with process {pid} on {host} holds the lock; checking for up to {seconds} s whether it is alive"
                        ));
                    }
                    watched = Some((there, now));
                }
            }
            wire.clock.sleep(wire.timing.look).await;
        };
        let seconds = wire.timing.lease.as_secs();
        let file =
            LeaseFile { fence, beat: 0, nonce: Uuid::new_v4(), released: false, seconds, holder: holder.clone() };
        let requested_at = (wire.clock.steady(), wire.clock.now());
        let put = match &tag {
            None => wire.create(LEASE, &json(&file)).await?,
            Some(tag) => wire.update(LEASE, &json(&file), tag).await?,
        };
        // Another run was faster: its lease is observed now. After a wrong version from the store, it is read again.
        let Put::Done(tag) = put else { continue };
        let ran_out = watched.is_some();
        // A new store, and one where another run may still be writing, must enforce conditional writes.
        if fence == 1 || ran_out {
            check_conditions(wire).await?;
        }
        let state = Mutex::new(LeaseState { file, tag, requested_at, lost: None });
        let term = HeldLease { wire: wire.clone(), state, gate: tokio::sync::Mutex::default() };
        return Ok(GrantedLock { term: Arc::new(term), ran_out });
    }
    Err(wire.unreadable(LEASE, "the store reports a concurrent change for each write, and no other run writes"))
}

/// The holder of the lease. A run that just died still counts as holder.
pub(super) async fn holder(wire: &Wire) -> Result<Option<Holder>, StateError> {
    let Some(found) = wire.get(LEASE).await? else { return Ok(None) };
    let there = parse(wire, &found)?;
    Ok((!there.released).then_some(there.holder))
}

/// Sends two writes whose conditions fail. A store that accepts them cannot exclude concurrent runs.
async fn check_conditions(wire: &Wire) -> Result<(), StateError> {
    let Some(there) = wire.get(LEASE).await? else {
        return Err(wire.unreadable(LEASE, "it was just written and cannot be read"));
    };
    let other =
        UpdateVersion { e_tag: Some("\"00000000000000000000000000000000\"".to_owned()), version: Some("1".to_owned()) };
    for mode in [PutMode::Create, PutMode::Update(other)] {
        if wire.put_once(LEASE, there.raw(), mode).await.is_ok() {
            return Err(StateError::Unconditional { place: wire.place.clone() });
        }
    }
    Ok(())
}

impl HeldLease {
    pub(super) fn fence(&self) -> u64 {
        self.state().file.fence
    }

    /// How it was lost, if it was.
    pub(super) fn lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    /// Renews it while it lasts.
    pub(super) async fn keep(self: Arc<Self>) {
        while self.lost().is_none() {
            self.wire.clock.sleep(self.wire.timing.renew).await;
            // A lost answer is retried at the next interval. Each call checks first that the lease still lasts.
            let _ = self.renew().await;
        }
    }

    /// Releases it: the next holder need not wait.
    pub(super) async fn release(&self) -> Result<(), StateError> {
        let _one = self.gate.lock().await;
        let (file, tag) = {
            let state = self.state();
            (LeaseFile { released: true, ..state.file.clone() }, state.tag.clone())
        };
        self.write(file, tag).await?;
        let mut state = self.state();
        state.lost.get_or_insert_with(|| "it was released".to_owned());
        Ok(())
    }

    async fn renew(&self) -> Result<(), StateError> {
        let _one = self.gate.lock().await;
        if self.lost().is_some() {
            return Ok(());
        }
        let requested_at = (self.wire.clock.steady(), self.wire.clock.now());
        let (file, tag) = {
            let state = self.state();
            (LeaseFile { beat: state.file.beat + 1, ..state.file.clone() }, state.tag.clone())
        };
        if self.write(file, tag).await? {
            self.state().requested_at = requested_at;
        }
        Ok(())
    }

    /// Overwrites the own lease; `false` if another run has it.
    async fn write(&self, file: LeaseFile, mut tag: Tag) -> Result<bool, StateError> {
        for _ in 0..COLLISIONS {
            match self.wire.update(LEASE, &json(&file), &tag).await? {
                Put::Done(tag) => {
                    let mut state = self.state();
                    (state.file, state.tag) = (file, tag);
                    return Ok(true);
                }
                Put::Taken(there) => {
                    let found = parse(&self.wire, &there)?;
                    if found.nonce != file.nonce {
                        let by = &found.holder;
                        let because = format!(
                            "{} with process {} on {} has taken lock {} since {:.0}",
                            by.by, by.pid, by.host, found.fence, by.since
                        );
                        self.state().lost = Some(because);
                        return Ok(false);
                    }
                    // An own renewal whose answer was lost, or a wrong version from the store: this is the version to
                    // overwrite.
                    tag = there.tag;
                }
            }
        }
        Err(self
            .wire
            .unreadable(LEASE, "the store reports a concurrent change for each write, and no other run writes"))
    }

    /// How much longer it certainly lasts.
    fn left(&self) -> Duration {
        let (steady, wall) = (self.wire.clock.steady(), self.wire.clock.now());
        let state = self.state();
        if state.lost.is_some() {
            return Duration::ZERO;
        }
        let gone = steady.saturating_sub(state.requested_at.0);
        // A suspended virtual machine notices only by the wall clock, if at all. A wall clock that was set forward
        // costs a renewal; one that was set back is ignored.
        let by_wall = wall.duration_since(state.requested_at.1);
        let gone = gone.max(Duration::try_from(by_wall).unwrap_or_default());
        self.wire.timing.lease.saturating_sub(gone)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Lease for HeldLease {
    async fn outlives(&self, call: Duration) -> bool {
        if self.left() >= call {
            return true;
        }
        // The clock decides, whatever the result.
        let _ = self.renew().await;
        self.left() >= call
    }
}

fn json(file: &LeaseFile) -> Vec<u8> {
    serde_json::to_vec_pretty(file).expect("a lease is plain data")
}

fn parse(wire: &Wire, found: &Found) -> Result<LeaseFile, StateError> {
    serde_json::from_slice(&found.bytes).map_err(|error| wire.unreadable(LEASE, error.to_string()))
}
