//! Bounds the HTTP/2 frames that cost a client nothing. h2 bounds resets, CONTINUATION and small DATA frames; PRIORITY,
//! WINDOW_UPDATE, PING and SETTINGS floods it answers for as long as they last. Envoy's rule, simplified: a connection
//! has a number of control frames, and earns more by requests, by answers that need acknowledgement, and by time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::inspect::Inspector;

const FREE_FRAMES: u64 = 1000;
const FRAMES_PER_SECOND: u64 = 10;
const FRAMES_PER_REQUEST: u64 = 20;
/// Some clients acknowledge each frame, for the stream and for the connection.
const FRAMES_PER_ANSWERED_FRAME: u64 = 10;

/// Sent once, before the client's first frame.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// See the module. A flood ends in an error.
pub(super) struct FrameLimit {
    received: Frames,
    sent: Frames,
    budget: Budget,
    flooded: Arc<AtomicBool>,
}

/// Finds the heads of frames in one direction.
struct Frames {
    /// Bytes until the next head.
    rest: usize,
    head: [u8; HEAD],
    filled: usize,
}

struct Budget {
    since: Instant,
    earned: u64,
    spent: u64,
}

impl FrameLimit {
    pub(super) fn new() -> FrameLimit {
        FrameLimit {
            received: Frames::after(PREFACE),
            sent: Frames::after(0),
            budget: Budget { since: Instant::now(), earned: FREE_FRAMES, spent: 0 },
            flooded: Arc::default(),
        }
    }

    /// Set before the error.
    pub(super) fn flooded(&self) -> Arc<AtomicBool> {
        self.flooded.clone()
    }
}

impl Inspector for FrameLimit {
    fn receive(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        self.received.feed(&buffer.filled()[before..], |kind| self.budget.receive(kind));
        if self.budget.is_spent() {
            self.flooded.store(true, Relaxed);
            return Err(io::Error::other("too many control frames"));
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.sent.feed(bytes, |kind| self.budget.send(kind));
    }
}

impl Frames {
    fn after(rest: usize) -> Frames {
        Frames { rest, head: [0; HEAD], filled: 0 }
    }

    fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8)) {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            let taken = (HEAD - self.filled).min(bytes.len() - skipped);
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[skipped..skipped + taken]);
            self.filled += taken;
            bytes = &bytes[skipped + taken..];
            if self.filled == HEAD {
                let [a, b, c, kind, ..] = self.head;
                *self = Frames::after(u32::from_be_bytes([0, a, b, c]) as usize);
                each(kind);
            }
        }
    }
}

impl Budget {
    fn receive(&mut self, kind: u8) {
        match kind {
            HEADERS => self.earned += FRAMES_PER_REQUEST,
            // h2 has limits of its own for these.
            DATA | RST_STREAM | CONTINUATION => {}
            _ => self.spent += 1,
        }
    }

    fn send(&mut self, kind: u8) {
        if kind == DATA {
            self.earned += FRAMES_PER_ANSWERED_FRAME;
        }
    }

    fn is_spent(&self) -> bool {
        self.spent > self.earned && self.spent > self.earned + self.since.elapsed().as_secs() * FRAMES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut bytes = (payload as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.resize(HEAD + payload, 8);
        bytes
    }

    #[test]
    fn heads_are_found_however_the_bytes_are_cut() {
        let kinds = [4, 8, 1, 9, 0, 2, 0];
        let mut bytes = vec![8; PREFACE];
        for (kind, payload) in kinds.into_iter().zip([0, 4, 30, 1, 300, 5, 0]) {
            bytes.extend(frame(kind, payload));
        }
        for cut in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::after(PREFACE), Vec::new());
            bytes.chunks(cut).for_each(|part| frames.feed(part, |kind| found.push(kind)));
            assert_eq!(found, kinds, "{cut}");
        }
    }

    #[test]
    fn control_frames_are_earned_by_requests_and_answers() {
        let mut budget = Budget { since: Instant::now(), earned: 3, spent: 0 };
        for kind in [2, 4, 6, 0, 3, 9] {
            budget.receive(kind);
            assert!(!budget.is_spent());
        }
        budget.send(DATA);
        budget.receive(HEADERS);
        for _ in 0..FRAMES_PER_REQUEST + FRAMES_PER_ANSWERED_FRAME {
            assert!(!budget.is_spent());
            budget.receive(8);
        }
        // Answers of other kinds earn nothing.
        budget.send(HEADERS);
        budget.receive(8);
        assert!(budget.is_spent());
    }
}
