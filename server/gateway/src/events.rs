//! Events that clients cause at will: each is counted, and its log lines are limited, so that no client fills the disk.
//! `templates/fail2ban/textnlp.conf` reads these lines: message and `client` come first.

use std::net::IpAddr;
use std::time::Duration;

use textnlp_process::LineLimit;

use super::admission::Refused;
use super::answer::Refusal;
use super::metrics::Metrics;

/// Log lines of one kind of event in ten seconds, and those about one client.
const MOST_LINES: usize = 100;
const CLIENT_LINES: usize = 20;

/// Why the gateway closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// Another connection takes its place.
    Evicted,
    /// It made no request in time.
    NoRequest,
    /// It had no request for too long.
    Idle,
    /// It sent too many frames that cost it nothing.
    FrameFlood,
    /// It has not taken an answer in time.
    Overdue,
}

impl Closing {
    fn reason(self) -> &'static str {
        match self {
            Closing::Evicted => "evicted",
            Closing::NoRequest => "no_request",
            Closing::Idle => "idle",
            Closing::FrameFlood => "frame_flood",
            Closing::Overdue => "overdue",
        }
    }

    /// The time for what the client sent before it knows.
    pub(super) fn grace(self) -> Duration {
        Duration::from_millis(if self == Closing::Idle { 1000 } else { 250 })
    }
}

/// The limits of log lines.
#[derive(Debug)]
pub(super) struct Events {
    refused_connections: LineLimit,
    closed_connections: LineLimit,
    handshakes: LineLimit,
    refused_requests: LineLimit,
    failed_requests: LineLimit,
}

/// What a log line names of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestLine<'a> {
    pub(super) id: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
}

fn shown(client: Option<IpAddr>) -> Option<tracing::field::DisplayValue<IpAddr>> {
    client.map(|ip| tracing::field::display(ip.to_canonical()))
}

impl Default for Events {
    fn default() -> Self {
        let [refused_connections, closed_connections, handshakes, refused_requests, failed_requests] =
            std::array::from_fn(|_| LineLimit::new(MOST_LINES, CLIENT_LINES));
        Self { refused_connections, closed_connections, handshakes, refused_requests, failed_requests }
    }
}

impl Events {
    pub(super) fn connection_refused(&self, metrics: &Metrics, client: Option<IpAddr>, refused: Refused) {
        let reason = match refused {
            Refused::AddressLimit => "address_limit",
            Refused::Full => "full",
        };
        metrics.connection_refused(reason);
        if let Some(suppressed) = self.refused_connections.next(client) {
            tracing::warn!(client = shown(client), reason, suppressed, "connection refused");
        }
    }

    pub(super) fn connection_closed(&self, metrics: &Metrics, client: Option<IpAddr>, closing: Closing) {
        let reason = closing.reason();
        metrics.connection_closed(reason);
        // Every client is idle at times.
        if closing == Closing::Idle {
            return tracing::debug!(client = shown(client), reason, "connection closed");
        }
        if let Some(suppressed) = self.closed_connections.next(client) {
            tracing::warn!(client = shown(client), reason, suppressed, "connection closed");
        }
    }

    /// `has_begun`: the client sent something. Port scanners and TCP health checks do not.
    pub(super) fn handshake_failed(&self, metrics: &Metrics, client: IpAddr, has_begun: bool, error: &str) {
        metrics.handshake_failed();
        if !has_begun {
            return tracing::debug!(client = shown(Some(client)), error, "handshake failed");
        }
        if let Some(suppressed) = self.handshakes.next(Some(client)) {
            tracing::warn!(client = shown(Some(client)), error, suppressed, "handshake failed");
        }
    }

    /// A request that is no HTTP.
    pub(super) fn malformed(&self, metrics: &Metrics, client: Option<IpAddr>, error: &str) {
        metrics.request_refused("malformed");
        if let Some(suppressed) = self.refused_requests.next(client) {
            tracing::warn!(
                client = shown(client),
                status = 400,
                reason = "malformed",
                error,
                suppressed,
                "request refused"
            );
        }
    }

    /// A request that the gateway answers itself.
    pub(super) fn request_refused(
        &self,
        metrics: &Metrics,
        client: Option<IpAddr>,
        refusal: Refusal,
        request: RequestLine<'_>,
    ) {
        let (from, client) = (client, shown(client));
        let (status, reason) = (refusal.status().as_u16(), refusal.code());
        let RequestLine { id: request_id, method, path } = request;
        metrics.request_refused(reason);
        if refusal.status().is_client_error() {
            if let Some(suppressed) = self.refused_requests.next(from) {
                tracing::warn!(client, status, reason, request_id, method, path, suppressed, "request refused");
            }
        } else if let Some(suppressed) = self.failed_requests.next(from) {
            tracing::warn!(client, status, reason, request_id, method, path, suppressed, "request failed");
        }
    }
}
