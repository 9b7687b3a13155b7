//! The streaming pipeline: reads, hashes and writes in order. Memory is a fixed number of buffers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use textnlp_models::sha::{self, Sha256};
use textnlp_models::{Digest, MOST_CHUNK};

use crate::error::{Error, Result};

/// The bytes of a batch are aligned as on the file's pages, for direct I/O.
pub(crate) const PAGE: usize = 4096;
/// A batch is no larger than the longest chunk.
const MAX_BATCH_BYTES: usize = MOST_CHUNK as usize;
/// Extra space for page alignment before the first and after the last bytes.
const CAPACITY: usize = MAX_BATCH_BYTES + 3 * PAGE;
/// A piece takes forty bytes; a batch of one-byte chunks must not become mostly metadata.
const MOST_PIECES: usize = 8192;

/// Progress events.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The amount of work is known.
    Start {
        /// `create`, `verify`, `unpack`, `apply`, `delta`.
        what: &'static str,
        /// Bytes to be read.
        bytes: u64,
        /// Files.
        files: usize,
    },
    /// Resumed from an earlier run.
    Resume {
        /// Bytes that are not read again.
        bytes: u64,
    },
    /// A file is started.
    File {
        /// Its path in the bundle.
        path: &'a str,
    },
    /// Bytes done so far.
    Bytes {
        /// Since the start, resumed ones included.
        done: u64,
    },
}

/// Options of a long operation.
#[derive(Clone, Copy)]
pub struct Drive<'a> {
    /// Hashing threads, one or more.
    pub threads: usize,
    /// Called from the caller's thread and from one other.
    pub progress: &'a (dyn Fn(Event<'_>) + Sync),
    /// A cancellation flag: the operation ends with [`Error::Stopped`] within one batch.
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

/// How far reading runs ahead of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Two batches: after a kill at most eight MiB are read again.
    Little,
    /// Eight, for work that is not resumable.
    Far,
}

impl Ahead {
    fn batches(self) -> usize {
        match self {
            Ahead::Little => 2,
            Ahead::Far => 8,
        }
    }
}

/// One chunk in the pipeline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) file: usize,
    /// The index of the chunk in its file.
    pub(crate) chunk: usize,
    pub(crate) start: usize,
    pub(crate) size: usize,
    /// Whether the file's digest starts from here.
    pub(crate) first: bool,
    /// Whether the file ends with it.
    pub(crate) last: bool,
    /// Whether the file's digest is known already and not computed.
    pub(crate) known: bool,
    /// Set by the pipeline.
    pub(crate) digest: [u8; 32],
}

/// Some pieces, and the buffer that holds them.
pub(crate) struct Batch {
    /// Shared with the writer, and only read then.
    data: Arc<Vec<u8>>,
    /// The first that begins a page.
    begin: usize,
    used: usize,
    pub(crate) pieces: Vec<Piece>,
    /// Files that ended in this batch, with their digests; empty if whole files are not hashed.
    pub(crate) ends: Vec<(usize, Digest)>,
    /// The digest of the whole file as far as the last piece, when that piece does not end its file.
    pub(crate) state: Option<Sha256>,
}

impl Batch {
    fn new() -> Batch {
        let data = Arc::new(vec![0; CAPACITY]);
        let begin = data.as_ptr().align_offset(PAGE).min(PAGE);
        Batch { data, begin, used: begin, pieces: Vec::new(), ends: Vec::new(), state: None }
    }

    fn clear(&mut self) {
        self.used = self.begin;
        self.pieces.clear();
        self.ends.clear();
        self.state = None;
    }

    /// Whether it has space for another piece of this size; an empty batch takes any.
    pub(crate) fn fits(&self, size: usize) -> bool {
        self.pieces.is_empty()
            || (self.used - self.begin + PAGE + size <= MAX_BATCH_BYTES && self.pieces.len() < MOST_PIECES)
    }

    /// Space for the next piece, of at most `MOST_CHUNK` bytes, which starts at this offset of its file.
    pub(crate) fn room(&mut self, offset: u64) -> &mut [u8] {
        let on_page = (offset % PAGE as u64) as usize;
        self.used += (PAGE + on_page - (self.used - self.begin) % PAGE) % PAGE;
        let used = self.used;
        &mut self.bytes_mut()[used..]
    }

    /// The pages of the next piece, and its offset on the first. The bytes before it belong to another piece.
    pub(crate) fn room_on_pages(&mut self, offset: u64, size: usize) -> (&mut [u8], usize) {
        self.room(offset);
        let head = (offset % PAGE as u64) as usize;
        let end = self.begin + (self.used - self.begin + size).next_multiple_of(PAGE);
        let used = self.used;
        (&mut self.bytes_mut()[used - head..end], head)
    }

    /// The buffer has one owner while pieces are added; a second owner would cause a copy.
    fn bytes_mut(&mut self) -> &mut [u8] {
        Arc::make_mut(&mut self.data).as_mut_slice()
    }

    /// Adds the first bytes of the space as a piece, and pads its last page with zeros.
    pub(crate) fn take(&mut self, file: usize, chunk: usize, size: usize, first: bool, last: bool) {
        let known = false;
        self.pieces.push(Piece { file, chunk, start: self.used, size, first, last, known, digest: [0; 32] });
        self.used += size;
        let (used, end) = (self.used, self.begin + (self.used - self.begin).next_multiple_of(PAGE));
        self.bytes_mut()[used..end].fill(0);
    }

    /// The bytes of the last piece.
    pub(crate) fn last(&self) -> &[u8] {
        self.pieces.last().map_or(&[], |piece| self.bytes(piece))
    }

    /// Inserts the bytes that precede the first piece on its page.
    pub(crate) fn before(&mut self, tail: &Tail) {
        if self.pieces.is_empty() {
            let begin = self.begin;
            self.bytes_mut()[begin..begin + tail.0.len()].copy_from_slice(&tail.0);
        }
    }

    /// The ranges to write.
    fn sheet(&self) -> Sheet {
        let mut stretches: Vec<(usize, Range<usize>)> = Vec::new();
        for piece in &self.pieces {
            let end = piece.start + piece.size;
            match stretches.last_mut() {
                Some((file, bytes)) if *file == piece.file => bytes.end = end,
                _ => stretches.push((piece.file, piece.start..end)),
            }
        }
        Sheet { data: self.data.clone(), begin: self.begin, stretches }
    }

    /// The digest of the last piece's file is known.
    pub(crate) fn known(&mut self) {
        self.pieces.iter_mut().rev().take(1).for_each(|piece| piece.known = true);
    }

    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.data[piece.start..piece.start + piece.size]
    }

    /// Computes the digests of the pieces, and continues those of whole files from the state of the previous batch. Both
    /// together cost less than one after the other. The digests of files need those of the pieces, computed here or before.
    fn hash(&mut self, with_pieces: bool, mut whole: Option<&mut Sha256>) {
        let Batch { data, pieces, ends, state, .. } = self;
        let mut stretches = whole.as_mut().map_or_else(Vec::new, |whole| stretches(pieces, whole));
        // File digests take longer than piece digests, so they start first, and both are computed at the same time.
        let files = stretches.iter_mut().map(|stretch| {
            let hasher = std::mem::take(&mut stretch.hash);
            (DigestOf::File(&mut stretch.hash), hasher, &data[stretch.bytes.clone()])
        });
        let wanted = if with_pieces { pieces.as_mut_slice() } else { &mut [] };
        let chunks = wanted.iter_mut().map(|piece| {
            (DigestOf::Piece(&mut piece.digest), Sha256::new(), &data[piece.start..piece.start + piece.size])
        });
        sha::update(files.chain(chunks), |of, hash| match of {
            DigestOf::File(place) => *place = hash,
            DigestOf::Piece(place) => *place = hash.finish(),
        });
        let Some(whole) = whole else { return };
        let mut stretches = stretches.into_iter();
        for piece in pieces.iter().filter(|piece| piece.last && !piece.known) {
            let longer = if piece.first { None } else { stretches.next() };
            let digest = longer.map_or(piece.digest, |stretch| stretch.hash.finish());
            ends.push((piece.file, Digest::from(digest)));
        }
        *state = stretches.next().map(|open| {
            *whole = open.hash;
            open.hash
        });
    }
}

/// The bytes of a batch, for a writer that runs in parallel with the hashing.
pub(crate) struct Sheet {
    data: Arc<Vec<u8>>,
    begin: usize,
    /// For each file the bytes of its pieces, which are adjacent.
    pub(crate) stretches: Vec<(usize, Range<usize>)>,
}

impl Sheet {
    /// Adjacent bytes of a file, with the count of bytes before them on their first page, and zeros up to the end of
    /// their last.
    pub(crate) fn pages(&self, bytes: &Range<usize>, before: usize) -> &[u8] {
        let end = self.begin + (bytes.end - self.begin).next_multiple_of(PAGE);
        &self.data[bytes.start - before..end]
    }
}

/// The bytes of a file on its last, incomplete page.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn of(bytes: Vec<u8>) -> Tail {
        Tail(bytes)
    }

    /// These bytes follow.
    pub(crate) fn follow(&mut self, bytes: &[u8]) {
        let after = self.0.len() + bytes.len();
        if after >= PAGE {
            self.0.clear();
            self.0.extend_from_slice(&bytes[bytes.len() - after % PAGE..]);
        } else {
            self.0.extend_from_slice(bytes);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The input of a digest, and the field for the result.
enum DigestOf<'a> {
    Piece(&'a mut [u8; 32]),
    File(&'a mut Sha256),
}

/// Computes the digests of all pieces of some batches, two at a time.
fn hash_pieces<'a>(batches: impl Iterator<Item = &'a mut Batch>) {
    let pieces = batches.flat_map(|Batch { data, pieces, .. }| {
        let data: &[u8] = data;
        pieces
            .iter_mut()
            .map(move |piece| (&mut piece.digest, Sha256::new(), &data[piece.start..piece.start + piece.size]))
    });
    sha::update(pieces, |place, hash| *place = hash.finish());
}

/// The part of a batch that belongs to one file, and that file's hash.
struct FileSpan {
    bytes: Range<usize>,
    hash: Sha256,
}

/// The parts of all files, except files with a known digest and files of one piece, whose digest is the piece's. The
/// first part continues with `whole` if its file began in an earlier batch.
fn stretches(pieces: &[Piece], whole: &mut Sha256) -> Vec<FileSpan> {
    let mut stretches: Vec<FileSpan> = Vec::new();
    for piece in pieces.iter().filter(|piece| !(piece.known || piece.first && piece.last)) {
        let end = piece.start + piece.size;
        match stretches.last_mut() {
            Some(stretch) if !piece.first => stretch.bytes.end = end,
            _ => {
                let hash = if piece.first { Sha256::new() } else { std::mem::take(whole) };
                stretches.push(FileSpan { bytes: piece.start..end, hash });
            }
        }
    }
    stretches
}

/// A batch that the first free thread hashes.
type Slot = Arc<Mutex<Option<Batch>>>;

fn claim(slot: &Slot) -> Option<Batch> {
    slot.lock().ok()?.take()
}

/// Whether no thread has claimed the batch, and it has a file to hash.
fn asks(slot: &Slot) -> bool {
    let asked = |batch: &Batch| batch.pieces.iter().any(|piece| !piece.known);
    slot.lock().is_ok_and(|batch| batch.as_ref().is_some_and(asked))
}

/// Whether whole files are hashed in addition to their chunks.
pub(crate) enum WholeFileHashing {
    No,
    /// Only files whose digest is not known; they have few of the bytes.
    Few(Box<Sha256>),
    Yes(Box<Sha256>),
}

impl WholeFileHashing {
    fn hash(&mut self) -> Option<&mut Sha256> {
        match self {
            WholeFileHashing::No => None,
            WholeFileHashing::Few(hash) | WholeFileHashing::Yes(hash) => Some(hash),
        }
    }
}

/// Fills batches with `source` until it leaves one empty, hashes them, and passes them to `sink` in order. The first
/// error ends the operation.
pub(crate) fn run(
    threads: usize,
    ahead: Ahead,
    whole: WholeFileHashing,
    source: impl FnMut(&mut Batch) -> Result<()> + Send,
    sink: impl FnMut(&mut Batch) -> Result<()>,
) -> Result<()> {
    run_with_writer(threads, ahead, whole, source, |_| Ok(()), sink)
}

/// The same, with `write` in parallel with the hashing. It gets each batch's bytes in order; `sink` gets the batch when
/// both are done.
pub(crate) fn run_with_writer(
    threads: usize,
    ahead: Ahead,
    whole: WholeFileHashing,
    mut source: impl FnMut(&mut Batch) -> Result<()> + Send,
    mut write: impl FnMut(&Sheet) -> Result<()> + Send,
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
            write(&batch.sheet())?;
            sink(&mut batch)?;
        }
    }
    // The digest of a file is sequential, so one thread computes it. The other threads hash pieces. If pieces of a batch are not
    // hashed yet when that thread gets it, the thread hashes them together with the file; without file digests it waits for them.
    let ordered = !matches!(whole, WholeFileHashing::No);
    let others = if matches!(whole, WholeFileHashing::Yes(_)) { threads - 1 } else { threads };
    let in_flight = ahead.batches();
    // Reading, hashing pieces, hashing files, writing and the sink are stages that pass buffers on. If one ends early, its channels
    // close and the others end.
    let (to_hash, hash_in) = mpsc::sync_channel::<(Slot, SyncSender<Batch>)>(in_flight);
    let (to_order, order_in) = mpsc::sync_channel::<(Slot, Receiver<Batch>)>(in_flight);
    let (to_write, write_in) = mpsc::sync_channel::<Sheet>(in_flight);
    let (to_written, written) = mpsc::sync_channel::<()>(in_flight);
    let (to_sink, sink_in) = mpsc::sync_channel::<Batch>(in_flight);
    let (recycle, empty) = mpsc::sync_channel::<Batch>(in_flight);
    let hash_in = Mutex::new(hash_in);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<()> {
            let mut made = 0;
            loop {
                let mut batch = match empty.try_recv() {
                    Ok(batch) => batch,
                    Err(_) if made < in_flight => {
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
                let sheet = batch.sheet();
                let slot = Slot::new(Mutex::new(Some(batch)));
                if to_write.send(sheet).is_err()
                    || to_hash.send((slot.clone(), done)).is_err()
                    || to_order.send((slot, ready)).is_err()
                {
                    return Ok(());
                }
            }
        });
        let writer = scope.spawn(move || -> Result<()> {
            while let Ok(sheet) = write_in.recv() {
                write(&sheet)?;
                drop(sheet);
                if to_written.send(()).is_err() {
                    break;
                }
            }
            Ok(())
        });
        for _ in 0..others {
            let hash_in = &hash_in;
            scope.spawn(move || {
                loop {
                    // The lock is held only while waiting for the next batch. A batch of weights has one piece, so only a second batch,
                    // if it is already available, gives a second digest to compute at the same time. With two batches in all, another
                    // thread takes the second one.
                    let mut next = match hash_in.lock() {
                        Ok(queue) => match queue.recv() {
                            Ok(first) => [Some(first), (in_flight > 2).then(|| queue.try_recv().ok()).flatten()],
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
                let unclaimed = if ordered && asks(&slot) { claim(&slot) } else { None };
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
            // The error of a writer that ended is returned below.
            if written.recv().is_err() {
                break;
            }
            result = sink(&mut batch);
            if result.is_err() {
                break;
            }
            // The reader may have ended already.
            let _ = recycle.try_send(batch);
        }
        drop((sink_in, written, recycle));
        // Errors in the order of the archive: the sink's is first. A panic continues in the caller.
        let wrote = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(wrote).and(read)
    })
}

/// Writes dirty pages back during the work, so that disk and processor are busy at the same time.
pub(crate) struct WriteBehind {
    queue: SyncSender<std::fs::File>,
    waiting: u64,
}

impl WriteBehind {
    /// Large enough that a sync costs little, small enough that the last one is short.
    const OFTEN: u64 = 64 << 20;

    /// Runs the work together with a sync thread. A failed sync fails the work: the system reports it only once.
    pub(crate) fn scope<T>(work: impl FnOnce(&mut WriteBehind) -> Result<T>) -> Result<T> {
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

    /// Adds bytes that were written to the file.
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
