//! Looking after backends: one task each.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, State};
use super::config::Health;
use super::{Gateway, plain};

/// Looks again and again until the backend is removed or the gateway leaves.
pub(super) async fn watch(gateway: Arc<Gateway>, backend: Arc<Backend>) {
    loop {
        let health = gateway.live().config.health.clone();
        tokio::select! {
            () = look(&gateway, &health, &backend) => {}
            () = backend.retired.cancelled() => return,
            () = gateway.stops.drain.cancelled() => return,
        }
        backend.close_idle();
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(health.interval_ms)) => {}
            () = backend.retired.cancelled() => return,
            () = gateway.stops.drain.cancelled() => return,
        }
    }
}

/// Looks once.
pub(super) async fn look(gateway: &Gateway, health: &Health, backend: &Backend) {
    let answer = plain::get(&backend.address, &health.path, Duration::from_millis(health.timeout_ms), 64 << 10).await;
    let result = answer.and_then(|(status, _, _)| match status.is_success() {
        true => Ok(()),
        false => Err(format!("{} answers {status}", health.path)),
    });
    backend.looked(result, health);
    if !backend.retired.is_cancelled() {
        gateway.metrics.healthy(&backend.name, backend.state() == State::Healthy);
    }
}
