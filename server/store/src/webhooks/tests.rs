use super::super::audit::{Action, Actor, AuditEvent};
use super::super::batches::tests::{claim, create, result};
use super::super::batches::{Batch, EndReason};
use super::super::tests::{Bench, key, of_postgres, on_both};
use super::*;

on_both!(
    ended_batch_has_one_event_for_each_webhook,
    event_has_the_type_of_the_end,
    one_event_of_a_webhook_is_claimed_at_a_time_and_others_are_not_delayed,
    event_of_a_server_that_is_gone_is_claimed_again,
    failed_events_wait_longer_and_longer_and_are_given_up,
    old_events_and_those_beyond_the_bound_are_given_up,
    events_of_a_removed_tenant_are_deleted,
);

const LEASE: i64 = 60_000;

fn ids(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Ends what is left of a batch.
async fn end(store: &Store, batch: &Batch, webhooks: &[&str]) {
    let claimed = claim(store, 20, 9).await;
    assert_eq!(claimed.batch.id, batch.id);
    let results: Vec<_> = claimed.requests.iter().map(|request| result(request.number, true)).collect();
    store.complete_requests(batch, &claimed.claim, &results, &ids(webhooks)).await.unwrap();
}

async fn ended(store: &Store, tenant: &str, id: &str, webhooks: &[&str]) {
    let batch = create(store, tenant, id, &["one", "two"]).await;
    end(store, &batch, webhooks).await;
}

/// The creation of the oldest event.
async fn oldest(store: &Store) -> i64 {
    store.delivery_status().await.unwrap().oldest_ms.unwrap()
}

async fn ended_batch_has_one_event_for_each_webhook(bench: Bench) {
    let store = bench.store().await;
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    let first = claim(&store, 20, 1).await;
    store.complete_requests(&batch, &first.claim, &[result(0, true)], &ids(&["w", "v"])).await.unwrap();
    assert_eq!(store.delivery_status().await.unwrap(), DeliveryStatus { waiting: 0, oldest_ms: None });
    end(&store, &batch, &["w", "v"]).await;
    let late = store.complete_requests(&batch, &first.claim, &[result(0, true)], &ids(&["w"])).await.unwrap();
    assert_eq!((late, store.delivery_status().await.unwrap().waiting), (0, 2), "a batch ends once");
    let at_end = store.tenant("acme").batch("b").await.unwrap().unwrap().ended_at_ms.unwrap();
    assert_eq!(store.claim_delivery(&[], at_end, LEASE).await.unwrap(), None);
    assert_eq!(store.claim_delivery(&ids(&["w"]), at_end - 1, LEASE).await.unwrap(), None, "it is not due");
    // Also with another server.
    let other = bench.open().await;
    let delivery = other.claim_delivery(&ids(&["other", "w"]), at_end, LEASE).await.unwrap().unwrap();
    assert_eq!((delivery.tenant.as_str(), delivery.webhook.as_str(), delivery.object.as_str()), ("acme", "w", "b"));
    assert_eq!((delivery.event.as_str(), delivery.created_at_ms), ("batch.completed", at_end));
    assert!(delivery.id.starts_with("evt_") && delivery.attempts == 1, "{delivery:?}");
    assert!(store.end_delivery(&delivery).await.unwrap());
    assert!(!store.end_delivery(&delivery).await.unwrap());
    assert_eq!(store.delivery_status().await.unwrap().waiting, 1);
    ended(&store, "acme", "c", &[]).await;
    assert_eq!(store.delivery_status().await.unwrap().waiting, 1, "without webhooks there are no events");
}

async fn event_has_the_type_of_the_end(bench: Bench) {
    let store = bench.store().await;
    for (id, event) in [("a", "batch.cancelled"), ("b", "batch.expired"), ("c", "batch.failed")] {
        let batch = create(&store, "acme", id, &["one", "two"]).await;
        match id {
            "a" => {
                let by = AuditEvent::new(&Actor::Key("key".into()), Action::BatchCancel).tenant("acme");
                assert!(store.tenant("acme").cancel_batch(id, &by).await.unwrap());
            }
            "b" => store.fail_batch(id, EndReason::Expired).await.unwrap(),
            _ => store.fail_batch(id, EndReason::KeyInvalid).await.unwrap(),
        }
        end(&store, &batch, &["w"]).await;
        let delivery = store.claim_delivery(&ids(&["w"]), i64::MAX / 2, LEASE).await.unwrap().unwrap();
        assert_eq!((delivery.object.as_str(), delivery.event.as_str()), (id, event));
        assert!(store.end_delivery(&delivery).await.unwrap());
    }
}

async fn one_event_of_a_webhook_is_claimed_at_a_time_and_others_are_not_delayed(bench: Bench) {
    let store = bench.store().await;
    ended(&store, "acme", "b", &["slow"]).await;
    ended(&store, "globex", "c", &["slow", "fast"]).await;
    let now = crate::now_ms() + 1;
    let both = ids(&["slow", "fast"]);
    let other = bench.open().await;
    let mut claimed = Vec::new();
    for server in [&store, &other, &store] {
        claimed.extend(server.claim_delivery(&both, now, LEASE).await.unwrap());
    }
    let of = |webhook: &str| claimed.iter().find(|one| one.webhook == webhook).unwrap();
    assert_eq!((claimed.len(), of("slow").object.as_str(), of("fast").object.as_str()), (2, "b", "c"));
    store.end_delivery(of("slow")).await.unwrap();
    let next = other.claim_delivery(&both, now, LEASE).await.unwrap().unwrap();
    assert_eq!((next.webhook.as_str(), next.object.as_str()), ("slow", "c"));
    store.release_delivery(&next, now).await.unwrap();
    let again = store.claim_delivery(&both, now, LEASE).await.unwrap().unwrap();
    assert_eq!((&again.id, again.attempts), (&next.id, 1), "it was not sent");
}

async fn event_of_a_server_that_is_gone_is_claimed_again(bench: Bench) {
    let store = bench.store().await;
    ended(&store, "acme", "b", &["w"]).await;
    let (now, webhooks) = (crate::now_ms() + 1, ids(&["w"]));
    let gone = store.claim_delivery(&webhooks, now, LEASE).await.unwrap().unwrap();
    assert_eq!(store.claim_delivery(&webhooks, now + LEASE - 1, LEASE).await.unwrap(), None);
    let again = store.claim_delivery(&webhooks, now + LEASE, LEASE).await.unwrap().unwrap();
    assert_eq!((&again.id, again.attempts), (&gone.id, 2), "the same event");
    assert_eq!(store.fail_delivery(&gone, now).await.unwrap(), FailedDelivery::Lost);
    assert!(!store.end_delivery(&gone).await.unwrap(), "it is another server's");
    assert!(store.end_delivery(&again).await.unwrap());
}

async fn failed_events_wait_longer_and_longer_and_are_given_up(bench: Bench) {
    let store = bench.store().await;
    ended(&store, "acme", "b", &["w"]).await;
    let (created, webhooks) = (oldest(&store).await, ids(&["w"]));
    let (mut now, mut waits) = (created, Vec::new());
    let last = loop {
        let delivery = store.claim_delivery(&webhooks, now, LEASE).await.unwrap().unwrap();
        assert_eq!(delivery.attempts, waits.len() as i64 + 1);
        match store.fail_delivery(&delivery, now).await.unwrap() {
            FailedDelivery::Later(again) => {
                assert_eq!(store.claim_delivery(&webhooks, again - 1, LEASE).await.unwrap(), None);
                waits.push(again - now);
                now = again;
            }
            end => break end,
        }
    };
    assert_eq!((last, &waits[..BACKOFF_MS.len()]), (FailedDelivery::GivenUp, &BACKOFF_MS[..]));
    assert!(waits[BACKOFF_MS.len()..].iter().all(|wait| *wait == BACKOFF_MS[4]), "{waits:?}");
    assert!(now < created + MAX_AGE_MS && now + BACKOFF_MS[4] >= created + MAX_AGE_MS);
    assert_eq!(store.delivery_status().await.unwrap().waiting, 0);
}

async fn old_events_and_those_beyond_the_bound_are_given_up(bench: Bench) {
    let store = bench.store().await;
    for id in ["a", "b", "c"] {
        ended(&store, "acme", id, &["w"]).await;
    }
    ended(&store, "globex", "g", &["w"]).await;
    let created = oldest(&store).await;
    assert_eq!(store.give_up_deliveries(created, 4).await.unwrap(), 0);
    assert_eq!(store.give_up_deliveries(created, 2).await.unwrap(), 1, "the bound is of each tenant");
    let mut kept = Vec::new();
    while let Some(delivery) = store.claim_delivery(&ids(&["w"]), created + LEASE, LEASE).await.unwrap() {
        kept.push(delivery.object.clone());
        store.end_delivery(&delivery).await.unwrap();
    }
    assert_eq!(kept, ["b", "c", "g"], "the oldest went");
    ended(&store, "acme", "d", &["removed"]).await;
    let created = oldest(&store).await;
    assert_eq!(store.give_up_deliveries(created + MAX_AGE_MS - 1, 9).await.unwrap(), 0);
    assert_eq!(store.give_up_deliveries(created + MAX_AGE_MS, 9).await.unwrap(), 1);
    assert_eq!(store.delivery_status().await.unwrap().waiting, 0);
}

async fn events_of_a_removed_tenant_are_deleted(bench: Bench) {
    let (store, by) = (bench.store().await, Actor::Operator("ada".to_owned()));
    let of_acme = crate::ApiKey { tenant: "acme".into(), expires_at: Some(1), ..key("0123456789abcdef") };
    store.put_key(&of_acme, None).await.unwrap();
    ended(&store, "acme", "b", &["w"]).await;
    ended(&store, "globex", "g", &["w"]).await;
    assert!(store.remove_tenant("acme", &by).await.unwrap());
    let left = store.claim_delivery(&ids(&["w"]), crate::now_ms() + 1, LEASE).await.unwrap().unwrap();
    assert_eq!((left.tenant.as_str(), store.delivery_status().await.unwrap().waiting), ("globex", 1));
}

#[tokio::test]
async fn row_level_security_holds_events_to_their_tenant() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    ended(&store, "acme", "a", &["w"]).await;
    ended(&store, "globex", "g", &["w"]).await;
    let seen = |tenant: &str| {
        let sql = "SET ROLE textnlp; SET textnlp.tenant = 'TENANT'; SELECT count(*) FROM webhook_deliveries";
        cluster.sql(&name, &sql.replace("TENANT", tenant))
    };
    assert_eq!((seen("").as_str(), seen("acme").as_str()), ("0", "1"));
    let mut narrow = store.tenant("acme").write("x").await.unwrap();
    let reached = sqlx::query("DELETE FROM webhook_deliveries").execute(&mut *narrow).await.unwrap();
    assert_eq!(reached.rows_affected(), 1, "a forgotten WHERE reaches one tenant");
}
