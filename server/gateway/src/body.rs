//! Bodies in transit: requests with a size limit, responses with their connection.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::answer::{BODY_PAUSE, Refusal};
use super::backend::{BACKEND_BUFFER, Backend, Lease};
use super::listen::{MOST_HEAD, UNREAD_BYTES};
use super::memory::{Memory, Reservation};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body up to this size is taken in first, so that the request can be repeated elsewhere. Prompts are smaller.
const TAKE_IN: u64 = 256 << 10;

/// What a body takes that is not taken in: the unread bytes of its connection, and what the backend has not read.
const STREAM_BYTES: usize = MOST_HEAD + UNREAD_BYTES as usize + BACKEND_BUFFER;

/// A request body for a backend.
#[derive(Debug)]
pub(super) enum Upload {
    /// Here as a whole.
    Whole(Full<Bytes>),
    /// Streamed as it arrives.
    Stream(Limited),
}

/// The most bytes of a body that are discarded: more than a server accepts.
const MOST_DISCARDED: usize = 32 << 20;
/// The longest time for that, and the longest pause in it.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);
const DISCARD_PAUSE: Duration = Duration::from_secs(2);

/// A body as a client sends it. Dropped before its end, as when a request is refused, it is read on and discarded
/// within bounds. Otherwise many clients would not see the refusal: they send all before they read, and fail when the
/// connection is reset or the stream has no window.
#[derive(Debug)]
pub(super) struct Received {
    inner: Option<Incoming>,
    /// The client sends nothing before it is asked to, which reading it does.
    awaits_continue: bool,
    reservation: Option<Reservation>,
}

impl Received {
    pub(super) fn new(body: Incoming, headers: &HeaderMap) -> Received {
        let awaits_continue = headers.get(header::EXPECT).is_some();
        Received { inner: Some(body), awaits_continue, reservation: None }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.awaits_continue = false;
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(inner).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.inner = None;
        }
        Poll::Ready(frame)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(body) = self.inner.take() else { return };
        if self.awaits_continue || body.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(discard(body, self.reservation.take()));
        }
    }
}

async fn discard(mut body: Incoming, _reservation: Option<Reservation>) {
    let all = async {
        let mut left = MOST_DISCARDED;
        // A pause, an error or the end is the end.
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DISCARD_PAUSE, body.frame()).await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { break };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, all).await;
}

/// A stream that may not be longer than it may be, nor pause for too long.
#[derive(Debug)]
pub(super) struct Limited {
    inner: Received,
    most: u64,
    left: u64,
    /// What is still to come, if the client has announced it.
    announced: Option<u64>,
    pause: Option<Pin<Box<Sleep>>>,
    upload: Arc<UploadState>,
}

/// The client's part in a request that fails while its body is forwarded.
#[derive(Debug, Default)]
pub(super) struct UploadState {
    fault: OnceLock<Refusal>,
    /// Whether the backend waits for the client's next bytes.
    is_waiting: AtomicBool,
    /// Cancelled when the client has sent the whole body.
    pub(super) end: CancellationToken,
}

impl UploadState {
    /// Why the client is the cause of a failure. `late`: the request ran out of time.
    pub(super) fn fault(&self, late: bool) -> Option<Refusal> {
        let slow = late && self.is_waiting.load(Relaxed);
        self.fault.get().copied().or(slow.then_some(Refusal::SlowBody))
    }

    fn fail(&self, refusal: Refusal, error: impl Into<BoxError>) -> BoxError {
        // The first cause counts.
        let _ = self.fault.set(refusal);
        error.into()
    }
}

/// A request body before it is sent.
pub(super) enum Taken {
    Whole(Bytes),
    Stream(Limited),
}

/// What the client sent is not a whole body.
const BROKEN: Refusal = Refusal::BadRequest("the body was interrupted or is malformed");

/// Buffers a small body, whose memory is held with the second value; another one stays a stream. `upload` reports the
/// end. `client`: whose memory it is.
pub(super) async fn take(
    mut body: Received,
    most: u64,
    deadline: Instant,
    upload: &Arc<UploadState>,
    memory: &Arc<Memory>,
    client: Option<IpAddr>,
) -> Result<(Taken, Option<Reservation>), Refusal> {
    let known = body.size_hint().exact();
    if body.is_end_stream() {
        upload.end.cancel();
        return Ok((Taken::Whole(Bytes::new()), None));
    }
    if known.is_some_and(|length| length > most) {
        return Err(Refusal::TooLarge(most));
    }
    let length = known.filter(|length| *length <= TAKE_IN).and_then(|length| usize::try_from(length).ok());
    let held = memory.hold(client, length.unwrap_or(STREAM_BYTES))?;
    let upload = upload.clone();
    let limited = |inner| Limited { inner, most, left: most, announced: known, pause: None, upload };
    let Some(length) = length else {
        body.reservation = Some(held);
        return Ok((Taken::Stream(limited(body)), None));
    };
    let limited = limited(body);
    let upload = limited.upload.clone();
    match tokio::time::timeout_at(deadline.min(Instant::now() + BODY_PAUSE), gather(limited, length, &upload)).await {
        Ok(whole) => Ok((Taken::Whole(whole?), Some(held))),
        Err(_) => Err(Refusal::SlowBody),
    }
}

/// All bytes of a body, or why it failed, as its stream reports to `upload`.
async fn gather<B>(mut body: B, length: usize, upload: &UploadState) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let mut all = BytesMut::with_capacity(length);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| upload.fault(false).unwrap_or(BROKEN))?;
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

impl Body for Limited {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = self.inner.poll_frame(context) else {
            self.upload.is_waiting.store(true, Relaxed);
            let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_PAUSE)));
            ready!(pause.as_mut().poll(context));
            let error = self.upload.fail(Refusal::SlowBody, "the client's body paused for too long");
            return Poll::Ready(Some(Err(error)));
        };
        self.upload.is_waiting.store(false, Relaxed);
        self.pause = None;
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.len() as u64 > self.left => {
                    Some(Err(self.upload.fail(Refusal::TooLarge(self.most), "the client's body is too large")))
                }
                Ok(data) => {
                    self.left -= data.len() as u64;
                    self.announced = self.announced.map(|rest| rest.saturating_sub(data.len() as u64));
                    // The end of an announced body may not be polled for.
                    if self.announced == Some(0) || self.inner.is_end_stream() {
                        self.upload.end.cancel();
                    }
                    Some(Ok(Frame::data(data)))
                }
                // Trailers belong to one hop.
                Err(_) => {
                    self.upload.end.cancel();
                    None
                }
            },
            Some(Err(error)) => Some(Err(self.upload.fail(BROKEN, error))),
            None => {
                self.upload.end.cancel();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Upload::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Upload::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::Whole(body) => body.is_end_stream(),
            Upload::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::Whole(body) => body.size_hint(),
            Upload::Stream(body) => body.size_hint(),
        }
    }
}

/// A response body for the client.
pub(super) enum Download {
    /// The gateway's own.
    Own(Full<Bytes>),
    /// A backend's response. Frames are forwarded one by one, so that tokens are not delayed.
    Backend { inner: Incoming, connection: Option<Connection> },
}

/// The connection of a response, and its in-flight count. Dropping it early closes the connection, which tells the
/// backend that the client is gone.
pub(super) struct Connection {
    backend: Arc<Backend>,
    lease: Lease,
    upload: Arc<UploadState>,
    _in_flight: InFlight,
}

/// Counts a request as in flight for its lifetime.
pub(super) struct InFlight(Arc<Backend>);

impl InFlight {
    pub(super) fn begin(backend: &Arc<Backend>) -> InFlight {
        backend.in_flight.fetch_add(1, Relaxed);
        InFlight(backend.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Download {
    pub(super) fn backend(
        inner: Incoming,
        backend: Arc<Backend>,
        lease: Lease,
        upload: Arc<UploadState>,
        in_flight: InFlight,
    ) -> Download {
        let mut connection = Some(Connection { backend, lease, upload, _in_flight: in_flight });
        if inner.is_end_stream() {
            finish(&mut connection);
        }
        Download::Backend { inner, connection }
    }
}

fn finish(connection: &mut Option<Connection>) {
    if let Some(Connection { backend, lease, upload, .. }) = connection.take()
        // The backend has answered an unfinished request, whose rest must not reach it on this connection.
        && upload.end.is_cancelled()
    {
        backend.give_back(lease);
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (inner, connection) = match &mut *self {
            Download::Own(body) => return Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Download::Backend { inner, connection } => (inner, connection),
        };
        Poll::Ready(match ready!(Pin::new(&mut *inner).poll_frame(context)) {
            Some(Ok(frame)) => {
                if inner.is_end_stream() {
                    finish(connection);
                }
                match frame.into_data() {
                    Ok(data) => Some(Ok(Frame::data(data))),
                    Err(_) => {
                        finish(connection);
                        None
                    }
                }
            }
            Some(Err(error)) => {
                // The client must see that the answer is not whole, so its connection breaks, too.
                if let Some(broken) = connection.take().filter(|broken| broken.upload.fault(false).is_none()) {
                    let why = super::answer::chain(&error);
                    tracing::warn!(backend = %broken.backend.name, %why, "an answer was interrupted");
                    broken.backend.failed_once(why);
                }
                Some(Err(error.into()))
            }
            None => {
                finish(connection);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Download::Own(body) => body.is_end_stream(),
            Download::Backend { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Download::Own(body) => body.size_hint(),
            Download::Backend { inner, .. } => inner.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body that fails after its first bytes.
    struct Failing {
        first: Option<Bytes>,
        refusal: Refusal,
        upload: Arc<UploadState>,
    }

    impl Body for Failing {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Ready(Some(match self.first.take() {
                Some(data) => Ok(Frame::data(data)),
                None => Err(self.upload.fail(self.refusal, "it fails")),
            }))
        }
    }

    #[tokio::test]
    async fn body_that_fails_is_refused_for_its_reason() {
        for refusal in [Refusal::SlowBody, Refusal::TooLarge(3), BROKEN] {
            let upload = Arc::new(UploadState::default());
            let body = Failing { first: Some(Bytes::from_static(b"abc")), refusal, upload: upload.clone() };
            assert_eq!(gather(body, 10, &upload).await, Err(refusal));
        }
        let upload = UploadState::default();
        let whole = Full::new(Bytes::from_static(b"abc")).map_err(|never| -> BoxError { match never {} });
        assert_eq!(gather(whole, 3, &upload).await, Ok(Bytes::from_static(b"abc")));
    }
}
