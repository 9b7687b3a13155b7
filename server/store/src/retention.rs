//! Retention: deletes old usage rows, old audit events, old insights, old batches, keys of measurements and expired tickets in bounded
//! transactions, outside of requests.

use std::time::Duration;

use textnlp_net::error_chain as chain;
use textnlp_net::retry::jitter;
use tokio_util::sync::CancellationToken;

use crate::{DAY_MS, Store, StoreError};

/// Between two runs.
const RUN_INTERVAL: Duration = Duration::from_secs(3600);

/// Before the first run of a process, which has enough to do when it starts.
const FIRST_RUN_AFTER: Duration = Duration::from_secs(120);

/// Rows per transaction: other writers wait for one batch at most.
const BATCH: u32 = 2000;

/// Pause between two batches, so that other writers can proceed.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long records are kept, in days; 0 keeps them forever.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // each is its name
pub struct Retention {
    pub usage_days: u32,
    pub audit_days: u32,
    pub insight_days: u32,
    pub batch_days: u32,
    /// After the end of keys that were issued for at most two hours.
    pub key_days: u32,
}

#[derive(Debug, Clone, Copy)]
enum Records {
    Usage,
    Audit,
    Insights,
    Keys,
}

/// Rows that were deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is its name
pub struct Swept {
    pub usage: u64,
    pub audit: u64,
    pub insights: u64,
    pub batches: u64,
    pub keys: u64,
}

/// Runs until shutdown. Expired tickets are always deleted. `now_ms` is the clock; `deleted` gets the number of usage
/// rows of each batch.
pub async fn run(
    store: &Store,
    keep: Retention,
    now_ms: impl Fn() -> i64,
    deleted: impl Fn(u64),
    stop: &CancellationToken,
) {
    let mut wait = FIRST_RUN_AFTER;
    loop {
        // Jitter, so that replicas started together do not run at the same time.
        let wait_for = wait.mul_f64(0.5 + jitter() / 2.0);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait_for) => {}
        }
        wait = RUN_INTERVAL;
        match sweep(store, keep, now_ms(), &deleted, stop).await {
            Ok(swept) if swept == Swept::default() => {}
            Ok(Swept { usage, audit, insights, batches, keys }) => {
                tracing::info!(usage, audit, insights, batches, keys, "old records deleted");
            }
            // Another replica holds the lock: it does the work.
            Err(StoreError::Busy(_)) => tracing::debug!("another replica deletes old records"),
            Err(error) => tracing::warn!(error = %chain(&error), "old records could not be deleted"),
        }
    }
}

/// Deletes everything too old at a time.
pub async fn sweep(
    store: &Store,
    keep: Retention,
    now_ms: i64,
    deleted: impl Fn(u64),
    stop: &CancellationToken,
) -> Result<Swept, StoreError> {
    store.delete_expired_tickets(now_ms).await?;
    let before = |days: u32| (days > 0).then(|| now_ms.saturating_sub(i64::from(days) * DAY_MS));
    let mut swept = Swept::default();
    if let Some(before) = before(keep.usage_days) {
        swept.usage = delete(store, Records::Usage, before, deleted, stop).await?;
    }
    if let Some(before) = before(keep.audit_days) {
        swept.audit = delete(store, Records::Audit, before, drop, stop).await?;
    }
    if let Some(before) = before(keep.insight_days) {
        swept.insights = delete(store, Records::Insights, before, drop, stop).await?;
    }
    if let Some(before) = before(keep.key_days) {
        swept.keys = delete(store, Records::Keys, before, drop, stop).await?;
    }
    // Also without days: uploads that were given up go, and what is left of deleted files.
    swept.batches = store.delete_batches(before(keep.batch_days), now_ms, stop).await?;
    Ok(swept)
}

/// Deletes batches until one is not full.
async fn delete(
    store: &Store,
    records: Records,
    before_ms: i64,
    deleted: impl Fn(u64),
    stop: &CancellationToken,
) -> Result<u64, StoreError> {
    let mut rows = 0;
    while !stop.is_cancelled() {
        let batch = match records {
            Records::Usage => store.delete_usage(before_ms, BATCH).await?,
            Records::Audit => store.remove_audit(before_ms, BATCH).await?,
            Records::Insights => store.delete_insights(before_ms, BATCH).await?,
            Records::Keys => store.delete_short_lived_keys(before_ms, BATCH).await?,
        };
        deleted(batch);
        rows += batch;
        if batch < u64::from(BATCH) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::tests::{Bench, on_both};
    use crate::{AuditPage, StreamTicket, Usage};

    on_both!(
        what_is_older_than_the_days_goes_and_the_rest_stays,
        days_of_0_keep_usage_and_let_expired_tickets_go,
        one_replica_at_a_time_deletes,
    );

    fn row(n: i64, at_ms: i64) -> Usage {
        Usage {
            id: uuid::Uuid::now_v7(),
            request_id: format!("r{n}"),
            user: "key".into(),
            tenant: if n % 2 == 0 { "acme" } else { "globex" }.into(),
            endpoint: "/v1/generate".into(),
            model: None,
            prompt_tokens: 1,
            generated_tokens: 1,
            charge: None,
            ms: 1,
            status: 200,
            at_ms,
        }
    }

    /// Sweeps usage; returns the deleted rows.
    async fn sweep(
        store: &Store,
        usage_days: u32,
        now_ms: i64,
        deleted: impl Fn(u64),
        stop: &CancellationToken,
    ) -> Result<u64, StoreError> {
        let keep = Retention { usage_days, audit_days: 0, insight_days: 0, batch_days: 0, key_days: 0 };
        super::sweep(store, keep, now_ms, deleted, stop).await.map(|swept| swept.usage)
    }

    async fn left(store: &Store) -> u64 {
        let mut rows = 0;
        for tenant in ["acme", "globex"] {
            rows += store.tenant(tenant).usage_of("key", 0).await.unwrap().0;
        }
        rows
    }

    async fn what_is_older_than_the_days_goes_and_the_rest_stays(bench: Bench) {
        let (store, stop) = (bench.store().await, CancellationToken::new());
        let counted = AtomicU64::new(0);
        let count = |rows| {
            counted.fetch_add(rows, Relaxed);
        };
        // More than one batch is too old; one is just old enough to stay.
        let old = i64::from(BATCH) + 10;
        let rows: Vec<Usage> =
            (0..old).map(|n| row(n, 5 * DAY_MS - 1)).chain([row(1, 5 * DAY_MS), row(2, 9 * DAY_MS)]).collect();
        store.append_usage(&rows).await.unwrap();
        let end = store.usage_end().await.unwrap();
        assert_eq!(sweep(&store, 5, 10 * DAY_MS, count, &stop).await.unwrap(), old as u64);
        assert_eq!(left(&store).await, 2);
        assert_eq!(sweep(&store, 5, 10 * DAY_MS, count, &stop).await.unwrap(), 0);
        // The last row stays however old it is: other sites know by it how far they have this site's rows.
        assert_eq!(sweep(&store, 5, 1000 * DAY_MS, count, &stop).await.unwrap(), 1);
        assert_eq!((left(&store).await, store.usage_end().await.unwrap()), (1, end));
        assert_eq!(counted.load(Relaxed), old as u64 + 1);
        let audited = store.audit_page(AuditPage { after: 0, since_ms: 0, limit: 100 }).await.unwrap();
        let deleted: Vec<i64> = audited
            .iter()
            .filter(|row| row.action == "usage.delete")
            .map(|row| row.detail.as_ref().unwrap()["rows"].as_i64().unwrap())
            .collect();
        assert_eq!(deleted, [i64::from(BATCH), 10, 1]);
    }

    async fn days_of_0_keep_usage_and_let_expired_tickets_go(bench: Bench) {
        let (store, stop) = (bench.store().await, CancellationToken::new());
        store.append_usage(&[row(0, 1), row(1, 2)]).await.unwrap();
        let ticket = StreamTicket { user: "key".into(), tenant: "acme".into(), token: None, body: None };
        store.tenant("acme").put_ticket("a", &ticket, 1000, 8, 0).await.unwrap().unwrap();
        store.tenant("acme").put_ticket("b", &ticket, 5000, 8, 0).await.unwrap().unwrap();
        assert_eq!(sweep(&store, 0, 2000, drop, &stop).await.unwrap(), 0);
        assert_eq!(left(&store).await, 2);
        assert_eq!(store.ticket("a", 0).await.unwrap(), None);
        assert!(store.ticket("b", 0).await.unwrap().is_some());
    }

    async fn one_replica_at_a_time_deletes(bench: Bench) {
        let stores = [bench.store().await, bench.open().await];
        let rows: Vec<Usage> = (0..i64::from(BATCH) * 2).map(|n| row(n, 1)).chain([row(0, 9 * DAY_MS)]).collect();
        stores[0].append_usage(&rows).await.unwrap();
        let stop = CancellationToken::new();
        let sweeps = stores.iter().map(|store| sweep(store, 5, 10 * DAY_MS, drop, &stop));
        let deleted: u64 = futures::future::join_all(sweeps).await.into_iter().map(|done| done.unwrap_or(0)).sum();
        assert!(deleted <= u64::from(BATCH) * 2, "no row is counted twice: {deleted}");
        sweep(&stores[0], 5, 10 * DAY_MS, drop, &stop).await.unwrap();
        assert_eq!(left(&stores[0]).await, 1);
    }
}
