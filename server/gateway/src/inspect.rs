//! Inspects what a client sends before the HTTP library reads it, and what it is sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A rule for the bytes of one connection.
pub(super) trait Inspector: Unpin {
    /// Inspects the received bytes from `before` on, and may change them. An error ends the connection.
    fn receive(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()>;

    /// Inspects sent bytes.
    fn send(&mut self, _bytes: &[u8]) {}

    /// Whether nothing more is read.
    fn is_over(&self) -> bool {
        false
    }
}

/// A stream with its inspector.
pub(super) struct Inspected<S, I> {
    stream: S,
    inspector: I,
}

impl<S, I> Inspected<S, I> {
    pub(super) fn new(stream: S, inspector: I) -> Inspected<S, I> {
        Inspected { stream, inspector }
    }
}

impl<S: AsyncRead + Unpin, I: Inspector> AsyncRead for Inspected<S, I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.inspector.is_over() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(self.inspector.receive(buffer, before))
    }
}

impl<S: AsyncWrite + Unpin, I: Inspector> AsyncWrite for Inspected<S, I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.inspector.send(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        let mut left = written;
        for slice in slices {
            let part = left.min(slice.len());
            self.inspector.send(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
