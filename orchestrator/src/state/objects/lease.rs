//! The lock of an object store: one small object that its holder writes again every few seconds.
//!
//! Nobody compares wall clocks of two machines. Who wants the lock watches the object for as long as a lease lasts, by a clock of
//! its own; whoever holds it counts from the moment before it asked for the renewal. So a holder knows that its lease is over
//! before anybody else can.

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

/// How often a write may meet another version than the one that was just seen.
const COLLISIONS: u32 = 8;

/// The file `lease.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseFile {
    /// The fencing number.
    pub(super) fence: u64,
    /// Counts the renewals.
    pub(super) beat: u64,
    /// Tells this holder from every other one, also from an earlier run of the same process.
    nonce: Uuid,
    /// Given back: whoever comes next need not wait.
    pub(super) released: bool,
    /// How long it holds without being renewed.
    seconds: u64,
    #[serde(flatten)]
    pub(super) holder: Holder,
}

/// A held lease.
pub(super) struct Term {
    wire: Arc<Wire>,
    standing: Mutex<Standing>,
    /// One renewal at a time.
    gate: tokio::sync::Mutex<()>,
}

struct Standing {
    file: LeaseFile,
    tag: Tag,
    /// When it was asked for the last time that it was given, by both clocks.
    asked: (Duration, Timestamp),
    lost: Option<String>,
}

/// A lock that was given.
pub(super) struct Given {
    pub(super) term: Arc<Term>,
    /// The lease before it ran out: its holder may still be at work and not know.
    pub(super) ran_out: bool,
}

/// Takes the lease: at once where nobody has it, after it ran out where its holder is silent; refused where its holder lives.
pub(super) async fn take(wire: &Arc<Wire>, holder: &Holder) -> Result<Given, StateError> {
    // The lease as it was seen first, and when that answer had come: it was renewed before that.
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
                            "{by} with process {pid} on {host} has the lock; looking for up to {seconds} s whether it lives"
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
        let asked = (wire.clock.steady(), wire.clock.now());
        let put = match &tag {
            None => wire.create(LEASE, &json(&file)).await?,
            Some(tag) => wire.update(LEASE, &json(&file), tag).await?,
        };
        // Where somebody was quicker, that one is watched now; where the store told a wrong version, it is asked again.
        let Put::Done(tag) = put else { continue };
        let ran_out = watched.is_some();
        // A store that has never been asked, or is asked while somebody may still be writing, must keep its word.
        if fence == 1 || ran_out {
            prove(wire).await?;
        }
        let standing = Mutex::new(Standing { file, tag, asked, lost: None });
        let term = Term { wire: wire.clone(), standing, gate: tokio::sync::Mutex::default() };
        return Ok(Given { term: Arc::new(term), ran_out });
    }
    Err(wire.unreadable(LEASE, "the store says each time that it was changed meanwhile, and nobody changed it"))
}

/// Who has the lease. One that died a moment ago still has it.
pub(super) async fn holder(wire: &Wire) -> Result<Option<Holder>, StateError> {
    let Some(found) = wire.get(LEASE).await? else { return Ok(None) };
    let there = parse(wire, &found)?;
    Ok((!there.released).then_some(there.holder))
}

/// Asks for two writes whose conditions do not hold. A store that makes them cannot keep two runs apart.
async fn prove(wire: &Wire) -> Result<(), StateError> {
    let Some(there) = wire.get(LEASE).await? else {
        return Err(wire.unreadable(LEASE, "it was written a moment ago and is not there"));
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

impl Term {
    pub(super) fn fence(&self) -> u64 {
        self.standing().file.fence
    }

    /// How it was lost, if it was.
    pub(super) fn lost(&self) -> Option<String> {
        self.standing().lost.clone()
    }

    /// Renews for as long as it holds.
    pub(super) async fn keep(self: Arc<Self>) {
        while self.lost().is_none() {
            self.wire.clock.sleep(self.wire.timing.renew).await;
            // An answer that did not come is asked for again at the next turn; whether the lease still holds is asked before each
            // call.
            let _ = self.renew().await;
        }
    }

    /// Gives it back: the next holder need not wait.
    pub(super) async fn release(&self) -> Result<(), StateError> {
        let _one = self.gate.lock().await;
        let (file, tag) = {
            let standing = self.standing();
            (LeaseFile { released: true, ..standing.file.clone() }, standing.tag.clone())
        };
        self.write(file, tag).await?;
        let mut standing = self.standing();
        standing.lost.get_or_insert_with(|| "it was given back".to_owned());
        Ok(())
    }

    async fn renew(&self) -> Result<(), StateError> {
        let _one = self.gate.lock().await;
        if self.lost().is_some() {
            return Ok(());
        }
        let asked = (self.wire.clock.steady(), self.wire.clock.now());
        let (file, tag) = {
            let standing = self.standing();
            (LeaseFile { beat: standing.file.beat + 1, ..standing.file.clone() }, standing.tag.clone())
        };
        if self.write(file, tag).await? {
            self.standing().asked = asked;
        }
        Ok(())
    }

    /// Writes over our own lease; `false` when it is not ours any more.
    async fn write(&self, file: LeaseFile, mut tag: Tag) -> Result<bool, StateError> {
        for _ in 0..COLLISIONS {
            match self.wire.update(LEASE, &json(&file), &tag).await? {
                Put::Done(tag) => {
                    let mut standing = self.standing();
                    (standing.file, standing.tag) = (file, tag);
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
                        self.standing().lost = Some(because);
                        return Ok(false);
                    }
                    // A renewal of ours whose answer was lost, or a wrong version told: this is the one to write over.
                    tag = there.tag;
                }
            }
        }
        Err(self
            .wire
            .unreadable(LEASE, "the store says each time that it was changed meanwhile, and nobody changed it"))
    }

    /// How much longer it certainly holds.
    fn left(&self) -> Duration {
        let (steady, wall) = (self.wire.clock.steady(), self.wire.clock.now());
        let standing = self.standing();
        if standing.lost.is_some() {
            return Duration::ZERO;
        }
        let gone = steady.saturating_sub(standing.asked.0);
        // A machine that was paused as a whole sees it only by the wall clock, if at all. Set forwards for no reason, it costs a
        // renewal; set backwards it says nothing.
        let by_wall = wall.duration_since(standing.asked.1);
        let gone = gone.max(Duration::try_from(by_wall).unwrap_or_default());
        self.wire.timing.lease.saturating_sub(gone)
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Lease for Term {
    async fn outlives(&self, call: Duration) -> bool {
        if self.left() >= call {
            return true;
        }
        // Whether this comes to an answer or not, the clock decides.
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
