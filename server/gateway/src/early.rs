//! Answers of a backend that does not read the whole request. It answers and closes, and the rest of the request cannot
//! be written: with an error of the write alone, the answer would be lost, though it has arrived.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream to a backend. When the backend does not accept more, writes discard their bytes, so that the answer is read.
/// Without an answer, the read reports the error.
pub(super) struct EarlyAnswer<S> {
    stream: S,
    failed: Option<io::ErrorKind>,
    has_answer: bool,
    is_broken: Arc<AtomicBool>,
}

impl<S> EarlyAnswer<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, failed: None, has_answer: false, is_broken: Arc::default() }
    }

    /// Set when the backend accepts no more.
    pub(super) fn is_broken(&self) -> Arc<AtomicBool> {
        self.is_broken.clone()
    }

    /// The result of a write, or `discarded` where the backend accepts no more.
    fn written<T>(&mut self, result: Poll<io::Result<T>>, discarded: T) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.failed = Some(error.kind());
                self.is_broken.store(true, Relaxed);
                Poll::Ready(Ok(discarded))
            }
            other => other,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EarlyAnswer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        match (self.failed, &read) {
            (Some(_), Poll::Ready(Ok(()))) if buffer.filled().len() > before => self.has_answer = true,
            (Some(kind), Poll::Ready(Ok(()))) if !self.has_answer => return Poll::Ready(Err(kind.into())),
            _ => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EarlyAnswer<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        if self.failed.is_some() {
            return Poll::Ready(Ok(all));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.written(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.failed.is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Writes until the peer accepts no more, and reads then.
    async fn read_after(answer: &'static [u8]) -> (Vec<u8>, io::Result<usize>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = EarlyAnswer::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let peer = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.read_exact(&mut [0; 10]).await.unwrap();
            peer.write_all(answer).await.unwrap();
            // With unread bytes: a reset.
        };
        let writing = async {
            for _ in 0..1000 {
                stream.write_all(&[b'x'; 64 << 10]).await.unwrap();
            }
        };
        tokio::join!(peer, writing);
        let (mut read, is_broken) = (Vec::new(), stream.is_broken());
        let result = stream.read_to_end(&mut read).await;
        (read, result, is_broken.load(Relaxed))
    }

    #[tokio::test]
    async fn answer_is_read_although_the_request_could_not_be_written() {
        let (read, _, is_broken) = read_after(b"HTTP/1.1 401 Unauthorized\r\n\r\n").await;
        assert_eq!((read.as_slice(), is_broken), (&b"HTTP/1.1 401 Unauthorized\r\n\r\n"[..], true));
    }

    #[tokio::test]
    async fn without_an_answer_the_read_reports_that_the_request_was_not_read() {
        let (read, result, is_broken) = read_after(b"").await;
        let kind = result.unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind:?}");
        assert!(read.is_empty() && is_broken);
    }
}
