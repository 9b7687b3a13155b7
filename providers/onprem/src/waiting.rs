//! How long something has been waited for, by a monotonic clock.
//!
//! A handle names the process that started to wait, and the time by its clock. Another process that continues the
//! operation starts to wait from zero: the step may not have been started at all.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use textnlp_provider::Handle;

/// One provider's clock, and its name in handles.
pub(crate) struct Waiting {
    began: Instant,
    name: String,
}

impl Default for Waiting {
    fn default() -> Self {
        // Two providers in one process differ by the time, two of the same time by the process.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), name: format!("{}-{}", std::process::id(), now.as_nanos()) }
    }
}

impl Waiting {
    /// A handle that starts to wait now.
    pub(crate) fn begin(&self, step: &str) -> Value {
        json!({ "step": step, "by": self.name, "since_ms": self.now_ms() })
    }

    /// How long a handle has waited; `None` when another process created it.
    pub(crate) fn waited_ms(&self, handle: &Handle) -> Option<u64> {
        let ours = handle.0.get("by").and_then(Value::as_str) == Some(&self.name);
        let since = handle.0.get("since_ms").and_then(Value::as_u64).filter(|_| ours)?;
        Some(self.now_ms().saturating_sub(since))
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_restarts_when_another_process_takes_over() {
        let (ours, other) = (Waiting::default(), Waiting::default());
        let handle = Handle(ours.begin("start"));
        assert!(ours.waited_ms(&handle).is_some());
        assert_eq!(other.waited_ms(&handle), None);
        // As an older version wrote it.
        assert_eq!(ours.waited_ms(&Handle(json!({ "step": "start", "since_ms": 1 }))), None);
    }
}
