//! Requests in, events out: the engine thread and its handle.
//!
//! One thread owns every model, every sequence and every sink, so nothing inside needs a lock. Commands arrive by a
//! bounded channel; events leave by a [`Sink`] that never blocks. Read [`scheduler`] first: it runs one turn at a time.
//! It has no thread and no clock of its own, so tests drive it step by step.

mod handle;
mod request;
mod scheduler;

mod slot;

mod admission;
mod books;
mod draft;
mod embed;
mod isolate;
mod outlet;
mod pace;
mod plan;
mod prefix;
mod readers;
mod run;
mod shares;
mod stats;

pub use embed::{EmbedRequest, EmbedTicket, Embedded, EncoderHandle};
pub use handle::{CancelOnDrop, Engine, EngineOptions, Handle, LoadedModel, ModelInfo, Score, Scored, Ticket};
pub use request::{Done, Event, Failure, Finish, Push, Request, Sampling, Sink, Token};
pub use stats::{ModelStats, Stats};

#[cfg(test)]
mod tests;
