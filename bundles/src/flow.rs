//! Bytes on their way: read in order, hashed beside one another, handed on in order. Memory is a fixed number of buffers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::rules::MOST_CHUNK;
use crate::sha;

/// A batch takes pieces until it holds this many bytes; the last may be a whole chunk.
pub(crate) const ENOUGH: usize = 1 << 20;
/// Bytes of a file stand in a batch as they stand on pages, so that they can go to the disk from there.
pub(crate) const PAGE: usize = 4096;
/// With room for where the buffer's first page begins, for what lies on the first bytes' page before them, and on the last's after them.
const CAPACITY: usize = ENOUGH + MOST_CHUNK as usize + 3 * PAGE;
/// Batches on their way at most: 40 MiB.
const ON_THE_WAY: usize = 8;
/// A piece takes forty bytes; a batch of one-byte chunks may not become the larger part.
const MOST_PIECES: usize = 8192;

/// What is told about the work as it goes on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The work is known.
    Start {
        /// `create`, `verify`, `unpack`, `apply`, `delta`.
        what: &'static str,
        /// Bytes to be read.
        bytes: u64,
        /// Files.
        files: usize,
    },
    /// An earlier run got this far.
    Resume {
        /// Bytes that are not read again.
        bytes: u64,
    },
    /// Work on this file begins.
    File {
        /// Its path in the bundle.
        path: &'a str,
    },
    /// So many of the bytes are done.
    Bytes {
        /// Since the start, resumed ones included.
        done: u64,
    },
}

/// How a long work is done and watched.
#[derive(Clone, Copy)]
pub struct Drive<'a> {
    /// Threads that hash, one or more.
    pub threads: usize,
    /// Called from the caller's thread and from one other.
    pub progress: &'a (dyn Fn(Event<'_>) + Sync),
    /// Set it, and the work ends with [`Error::Stopped`] within one batch.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Drive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Default for Drive<'static> {
    fn default() -> Drive<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Drive { threads: 2, progress: &|_| {}, stop: &NEVER }
    }
}

impl Drive<'_> {
    pub(crate) fn check(&self, doing: impl FnOnce() -> String) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Stopped { doing: doing() }) } else { Ok(()) }
    }
}

/// One chunk on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) file: usize,
    /// Which chunk of the file.
    pub(crate) chunk: usize,
    pub(crate) start: usize,
    pub(crate) size: usize,
    /// Whether the file's digest is taken anew from here.
    pub(crate) first: bool,
    /// Whether the file ends with it.
    pub(crate) last: bool,
    /// Filled in on the way.
    pub(crate) digest: [u8; 32],
}

/// Some pieces, and the buffer that holds them.
pub(crate) struct Batch {
    data: Box<[u8]>,
    /// The first that begins a page.
    begin: usize,
    used: usize,
    pub(crate) pieces: Vec<Piece>,
    /// Files that ended in this batch, with the digests of all their bytes; empty where these are not asked for.
    pub(crate) ends: Vec<(usize, [u8; 32])>,
    /// The whole-file digest's state after the last piece, when that piece does not end its file.
    pub(crate) state: Option<Vec<u8>>,
}

impl Batch {
    fn new() -> Batch {
        let data = vec![0; CAPACITY].into_boxed_slice();
        let begin = data.as_ptr().align_offset(PAGE).min(PAGE);
        Batch { data, begin, used: begin, pieces: Vec::new(), ends: Vec::new(), state: None }
    }

    fn clear(&mut self) {
        self.used = self.begin;
        self.pieces.clear();
        self.ends.clear();
        self.state = None;
    }

    /// Whether it should be sent off.
    pub(crate) fn full(&self) -> bool {
        self.used >= self.begin + ENOUGH || self.pieces.len() >= MOST_PIECES
    }

    /// Room for the next piece, of at most `MOST_CHUNK` bytes, which begins at this offset of its file.
    pub(crate) fn room(&mut self, offset: u64) -> &mut [u8] {
        let on_page = (offset % PAGE as u64) as usize;
        self.used += (PAGE + on_page - (self.used - self.begin) % PAGE) % PAGE;
        &mut self.data[self.used..]
    }

    /// Takes the first bytes of the room as a piece.
    pub(crate) fn take(&mut self, file: usize, chunk: usize, size: usize, first: bool, last: bool) {
        self.pieces.push(Piece { file, chunk, start: self.used, size, first, last, digest: [0; 32] });
        self.used += size;
    }

    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.data[piece.start..piece.start + piece.size]
    }

    /// Of each file the bytes of its pieces here, which are neighbours.
    pub(crate) fn stretches(&self) -> Vec<(usize, Range<usize>)> {
        let mut found: Vec<(usize, Range<usize>)> = Vec::new();
        for piece in &self.pieces {
            let end = piece.start + piece.size;
            match found.last_mut() {
                Some((file, bytes)) if *file == piece.file => bytes.end = end,
                _ => found.push((piece.file, piece.start..end)),
            }
        }
        found
    }

    /// The bytes of neighbouring pieces of one file, with the rest of their first and last page: `before` stands in front of them, zeros
    /// behind. What the pages of other pieces hold stays as it is.
    pub(crate) fn pages(&mut self, bytes: Range<usize>, before: &[u8]) -> &[u8] {
        let first = bytes.start - before.len();
        self.data[first..bytes.start].copy_from_slice(before);
        let end = self.begin + (bytes.end - self.begin).next_multiple_of(PAGE);
        self.data[bytes.end..end].fill(0);
        &self.data[first..end]
    }

    /// Takes the digests that are asked for: of the pieces, and, with the state that the batch before left, of the files they are of.
    /// Both together cost less than one after the other. Those of the files need those of the pieces, now or before.
    fn hash(&mut self, with_pieces: bool, mut whole: Option<&mut Sha256>) {
        let Batch { data, pieces, ends, state, .. } = self;
        let mut stretches = whole.as_mut().map_or_else(Vec::new, |whole| stretches(pieces, whole));
        // They are longer than the pieces, so they come first and the pieces run beside them.
        let files = stretches.iter_mut().map(|stretch| {
            let begun = std::mem::take(&mut stretch.hash);
            (Of::File(&mut stretch.hash), begun, &data[stretch.bytes.clone()])
        });
        let wanted = if with_pieces { pieces.as_mut_slice() } else { &mut [] };
        let chunks = wanted
            .iter_mut()
            .map(|piece| (Of::Piece(&mut piece.digest), Sha256::new(), &data[piece.start..piece.start + piece.size]));
        sha::update(files.chain(chunks), |of, hash| match of {
            Of::File(place) => *place = hash,
            Of::Piece(place) => *place = hash.finalize().into(),
        });
        let Some(whole) = whole else { return };
        let mut stretches = stretches.into_iter();
        for piece in pieces.iter().filter(|piece| piece.last) {
            let longer = if piece.first { None } else { stretches.next() };
            ends.push((piece.file, longer.map_or(piece.digest, |stretch| stretch.hash.finalize().into())));
        }
        *state = stretches.next().map(|open| {
            *whole = open.hash;
            whole.serialize().to_vec()
        });
    }
}

/// What a digest is of, and its place.
enum Of<'a> {
    Piece(&'a mut [u8; 32]),
    File(&'a mut Sha256),
}

/// Takes the digests of all pieces of some batches, two at a time.
fn hash_pieces<'a>(batches: impl Iterator<Item = &'a mut Batch>) {
    let pieces = batches.flat_map(|Batch { data, pieces, .. }| {
        let data: &[u8] = data;
        pieces
            .iter_mut()
            .map(move |piece| (&mut piece.digest, Sha256::new(), &data[piece.start..piece.start + piece.size]))
    });
    sha::update(pieces, |place, hash| *place = hash.finalize().into());
}

/// What of a batch belongs to one file, and that file's hash.
struct Stretch {
    bytes: Range<usize>,
    hash: Sha256,
}

/// Of all files but those of one piece, whose digest is the piece's. The first goes on with `whole` where its file began earlier.
fn stretches(pieces: &[Piece], whole: &mut Sha256) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for piece in pieces.iter().filter(|piece| !(piece.first && piece.last)) {
        let end = piece.start + piece.size;
        match stretches.last_mut() {
            Some(stretch) if !piece.first => stretch.bytes.end = end,
            _ => {
                let hash = if piece.first { Sha256::new() } else { std::mem::take(whole) };
                stretches.push(Stretch { bytes: piece.start..end, hash });
            }
        }
    }
    stretches
}

/// A batch that whoever comes first hashes.
type Slot = Arc<Mutex<Option<Batch>>>;

fn claim(slot: &Slot) -> Option<Batch> {
    slot.lock().ok()?.take()
}

/// Whether, and from where, whole files are hashed beside their chunks.
pub(crate) enum Whole {
    No,
    Yes(Box<Sha256>),
}

impl Whole {
    fn hash(&mut self) -> Option<&mut Sha256> {
        match self {
            Whole::No => None,
            Whole::Yes(hash) => Some(hash),
        }
    }
}

/// A whole-file digest that another run began.
pub(crate) fn restore(state: &[u8]) -> Option<Sha256> {
    let state = sha2::digest::common::hazmat::SerializedState::<Sha256>::try_from(state).ok()?;
    Sha256::deserialize(&state).ok()
}

/// Fills batches with `source` until it leaves one empty, hashes them, and gives them to `sink` in order. The first error ends all.
pub(crate) fn run(
    threads: usize,
    whole: Whole,
    mut source: impl FnMut(&mut Batch) -> Result<()> + Send,
    mut sink: impl FnMut(&mut Batch) -> Result<()>,
) -> Result<()> {
    if threads <= 1 {
        let mut batch = Batch::new();
        let mut whole = whole;
        loop {
            batch.clear();
            source(&mut batch)?;
            if batch.pieces.is_empty() {
                return Ok(());
            }
            batch.hash(true, whole.hash());
            sink(&mut batch)?;
        }
    }
    // A file's digest takes one piece after another, so one thread takes it. The others take those of the pieces; what they have not come
    // to when it is that thread's turn, it takes beside the file's.
    let ordered = matches!(whole, Whole::Yes(_));
    let others = if ordered { threads - 1 } else { threads };
    // Reading, hashing pieces, hashing files and the sink: four stages that hand one another the buffers. When any ends early its
    // channels close, and the others end.
    let (to_hash, hash_in) = mpsc::sync_channel::<(Slot, SyncSender<Batch>)>(ON_THE_WAY);
    let (to_order, order_in) = mpsc::sync_channel::<(Slot, Receiver<Batch>)>(ON_THE_WAY);
    let (to_sink, sink_in) = mpsc::sync_channel::<Batch>(ON_THE_WAY);
    let (recycle, empty) = mpsc::sync_channel::<Batch>(ON_THE_WAY);
    let hash_in = Mutex::new(hash_in);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<()> {
            let mut made = 0;
            loop {
                let mut batch = match empty.try_recv() {
                    Ok(batch) => batch,
                    Err(_) if made < ON_THE_WAY => {
                        made += 1;
                        Batch::new()
                    }
                    Err(_) => match empty.recv() {
                        Ok(batch) => batch,
                        Err(_) => return Ok(()),
                    },
                };
                batch.clear();
                source(&mut batch)?;
                if batch.pieces.is_empty() {
                    return Ok(());
                }
                let (done, ready) = mpsc::sync_channel(1);
                let slot = Slot::new(Mutex::new(Some(batch)));
                if to_hash.send((slot.clone(), done)).is_err() || to_order.send((slot, ready)).is_err() {
                    return Ok(());
                }
            }
        });
        for _ in 0..others {
            let hash_in = &hash_in;
            scope.spawn(move || {
                loop {
                    // The lock is held while waiting for the next batch only. Weights fill a batch with one piece, so that only a second
                    // batch, when it is there already, brings something to hash beside it.
                    let mut next = match hash_in.lock() {
                        Ok(queue) => match queue.recv() {
                            Ok(first) => [Some(first), queue.try_recv().ok()],
                            Err(_) => return,
                        },
                        Err(_) => return,
                    }
                    .into_iter()
                    .flatten()
                    .filter_map(|(slot, done)| Some((claim(&slot)?, done)))
                    .collect::<Vec<_>>();
                    hash_pieces(next.iter_mut().map(|(batch, _)| batch));
                    for (batch, done) in next {
                        if done.send(batch).is_err() {
                            return;
                        }
                    }
                }
            });
        }
        scope.spawn(move || {
            let mut whole = whole;
            while let Ok((slot, ready)) = order_in.recv() {
                let unclaimed = if ordered { claim(&slot) } else { None };
                let with_pieces = unclaimed.is_some();
                let Some(mut batch) = unclaimed.or_else(|| ready.recv().ok()) else { return };
                batch.hash(with_pieces, whole.hash());
                if to_sink.send(batch).is_err() {
                    return;
                }
            }
        });
        let mut result = Ok(());
        while let Ok(mut batch) = sink_in.recv() {
            result = sink(&mut batch);
            if result.is_err() {
                break;
            }
            // The reader may be at its end already.
            let _ = recycle.try_send(batch);
        }
        drop((sink_in, recycle));
        // The sink's error came first in the order of the archive; a panic in the reader goes on in the caller.
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(read)
    })
}

/// Writes dirty pages out while the work goes on, so that the disk is not idle first and the processor afterwards.
pub(crate) struct WriteBehind {
    queue: SyncSender<std::fs::File>,
    waiting: u64,
}

impl WriteBehind {
    /// Large enough that a sync costs little, small enough that the last one is short.
    const OFTEN: u64 = 64 << 20;

    /// Runs the work beside a thread that syncs. A sync that failed is the work's failure: the system tells it only once.
    pub(crate) fn beside<T>(work: impl FnOnce(&mut WriteBehind) -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            let (queue, files) = mpsc::sync_channel::<std::fs::File>(1);
            let syncing = scope.spawn(move || files.into_iter().try_for_each(|file| file.sync_data()));
            let mut behind = WriteBehind { queue, waiting: 0 };
            let done = work(&mut behind);
            drop(behind);
            let synced = syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.and_then(|done| synced.map(|()| done).map_err(Error::io("write to disk", "what was written")))
        })
    }

    /// So many bytes were written to the file.
    pub(crate) fn wrote(&mut self, bytes: u64, file: &std::fs::File) {
        self.waiting += bytes;
        // While the last sync still runs, the bytes wait for the next.
        if self.waiting >= Self::OFTEN
            && let Ok(file) = file.try_clone()
            && self.queue.try_send(file).is_ok()
        {
            self.waiting = 0;
        }
    }
}
