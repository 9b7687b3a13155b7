//! Health checks of backends: one task each.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, State};
use super::config::Health;
use super::{Gateway, plain};

/// Checks the health periodically until the backend is removed or the gateway stops.
pub(super) async fn watch(gateway: Arc<Gateway>, backend: Arc<Backend>) {
    loop {
        let health = gateway.live().config.health.clone();
        tokio::select! {
            () = check_backend(&gateway, &health, &backend) => {}
            () = backend.retired.cancelled() => return,
            () = gateway.stops.leave.cancelled() => return,
        }
        backend.close_idle();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(health.interval_ms)) => {}
            () = backend.retired.cancelled() => return,
            () = gateway.stops.leave.cancelled() => return,
        }
    }
}

/// Performs one health check.
pub(super) async fn check_backend(gateway: &Gateway, health: &Health, backend: &Backend) {
    let probe = plain::Probe {
        own: backend.ready_address.as_ref(),
        shared: &backend.address,
        trust: backend.trust.as_ref(),
        path: &health.path,
        most_time: Duration::from_millis(health.timeout_ms),
        most_bytes: 64 << 10,
    };
    let answer = probe.send().await;
    match answer {
        Ok((status, _, _)) if status.is_success() => backend.looked(Ok(()), health),
        Ok((_, _, body)) if says_draining(&body) => backend.drains(),
        Ok((status, _, _)) => backend.looked(Err(format!("{} answers {status}", health.path)), health),
        Err(why) => backend.looked(Err(why), health),
    }
    if !backend.retired.is_cancelled() {
        gateway.metrics.healthy(&backend.name, backend.state() == State::Healthy);
    }
}

/// Whether our server's `/ready` reports draining, as it does after SIGTERM.
fn says_draining(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| body["status"] == "draining")
}
