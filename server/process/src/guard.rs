//! Limits a connection: timeouts for headers, for idle connections, and for clients that do not read. (Bodies have
//! their own timeout.)

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a connection may be open between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// Write timeout of a response.
const UNREAD: Duration = Duration::from_secs(60);

/// A connection under guard. While `busy` is set, a request is being answered and reading is not timed.
pub(crate) struct Guarded<I> {
    io: I,
    busy: Arc<AtomicBool>,
    header_timeout: Duration,
    /// When the current wait started, and whether it is for the rest of a header.
    waiting: Option<(Instant, bool)>,
    fresh: bool,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Pin<Box<Sleep>>,
    stalled: bool,
    /// Closing a whole Unix socket with an unread request reports an error to its writer. Shutting down only the write
    /// side first would briefly look as if the request had been read and dropped.
    at_once: bool,
}

impl<I> Guarded<I> {
    pub(crate) fn new(io: I, busy: Arc<AtomicBool>, header_timeout: Duration, at_once: bool) -> Self {
        Self {
            io,
            busy,
            header_timeout,
            waiting: None,
            fresh: true,
            read_timer: Box::pin(tokio::time::sleep(header_timeout)),
            write_timer: Box::pin(tokio::time::sleep(UNREAD)),
            stalled: false,
            at_once,
        }
    }

    fn stalled<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = false;
            return written;
        }
        if !self.stalled {
            self.stalled = true;
            self.write_timer.as_mut().reset(Instant::now() + UNREAD);
        }
        ready!(self.write_timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(context, buffer);
        if this.busy.load(Ordering::Relaxed) {
            this.waiting = None;
            this.fresh = false;
            return read;
        }
        if read.is_ready() {
            // The first bytes of a header start its clock; further ones do not stop it.
            if buffer.filled().len() > before && !matches!(this.waiting, Some((_, true))) {
                this.waiting = Some((Instant::now(), true));
            }
            return read;
        }
        let (since, header) = *this.waiting.get_or_insert_with(|| (Instant::now(), this.fresh));
        let end = since + if header { this.header_timeout } else { IDLE };
        if this.read_timer.deadline() != end {
            this.read_timer.as_mut().reset(end);
        }
        ready!(this.read_timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came in time")))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, buffer);
        self.stalled(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, buffers);
        self.stalled(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.stalled(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match self.at_once {
            true => Pin::new(&mut self.io).poll_flush(context),
            false => Pin::new(&mut self.io).poll_shutdown(context),
        };
        self.stalled(context, shut)
    }
}
