//! Values of the database that requests without a credential ask for: read at most once in an interval, by one request
//! at a time.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// How long a value is used: longer than a read takes, and shorter than a client waits for a change.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Recent<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Recent<T> {
    /// The last value if it is younger than `age`; else the one that `read` gives. Waits while another request reads it.
    pub(crate) async fn get(&self, age: Duration, read: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some((at, value)) = last.as_ref()
            && at.elapsed() < age
        {
            return value.clone();
        }
        let value = read.await;
        *last = Some((Instant::now(), value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn value_is_read_once_in_its_age_by_one_request() {
        let (recent, reads) = (Recent::default(), AtomicU64::new(0));
        let get = |age| {
            recent.get(age, async {
                tokio::task::yield_now().await;
                reads.fetch_add(1, Relaxed) + 1
            })
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(futures::future::join_all((0..100).map(|_| get(hour))).await, [1; 100]);
        assert_eq!((get(Duration::ZERO).await, get(hour).await), (2, 2), "an old value is read again");
    }
}
