use serde_json::json;

use super::super::tests::{Bench, of_postgres, on_both};
use super::super::{Action, Actor, AuditPage};
use super::*;

on_both!(
    every_request_of_a_batch_has_one_result_and_the_last_ends_it,
    requests_of_a_server_that_is_gone_run_again_and_its_late_results_are_dropped,
    replicas_never_claim_the_same_request,
    paused_batch_waits_and_released_requests_are_due_again,
    rest_of_a_batch_that_ends_gets_errors,
    tenants_take_turns,
    files_and_batches_of_another_tenant_do_not_exist,
    bounds_of_a_tenant_hold,
    file_of_an_unfinished_batch_is_kept_and_old_ones_are_deleted,
    lines_keep_every_character,
);

const LEASE: i64 = 1000;

fn event(action: Action) -> AuditEvent {
    AuditEvent::new(&Actor::Key("key".into()), action).tenant("acme")
}

fn file(id: &str) -> BatchFile {
    BatchFile {
        id: id.into(),
        purpose: FilePurpose::Input,
        filename: "a.jsonl".into(),
        endpoint: "/v1/completions".into(),
        bytes: 0,
        lines: 0,
        created_at_ms: 5,
    }
}

async fn upload(store: &Store, tenant: &str, id: &str, lines: &[&str]) {
    let of_tenant = store.tenant(tenant);
    of_tenant.begin_file(&file(id), u64::MAX).await.unwrap().unwrap();
    let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
    let (first, rest) = lines.split_at(1);
    of_tenant.add_lines(id, 0, first).await.unwrap();
    of_tenant.add_lines(id, 1, rest).await.unwrap();
    of_tenant.complete_file(id, "/v1/completions", "a.jsonl", u64::MAX).await.unwrap().unwrap();
}

fn wanted(id: &str, input: &str) -> Batch {
    Batch {
        id: id.into(),
        tenant: "acme".into(),
        user: "key".into(),
        endpoint: "/v1/completions".into(),
        input_file: input.into(),
        output_file: format!("out-{id}"),
        error_file: format!("err-{id}"),
        state: BatchState::InProgress,
        reason: None,
        metadata: "{}".into(),
        total: 0,
        completed: 0,
        failed: 0,
        created_at_ms: 10,
        expires_at_ms: 100_000,
        ending_at_ms: None,
        ended_at_ms: None,
    }
}

async fn create(store: &Store, tenant: &str, id: &str, lines: &[&str]) -> Batch {
    let input = format!("file-{id}");
    upload(store, tenant, &input, lines).await;
    let batch = Batch { tenant: tenant.into(), ..wanted(id, &input) };
    store.tenant(tenant).create_batch(&batch, 9, &event(Action::BatchCreate).tenant(tenant)).await.unwrap().unwrap()
}

fn result(number: i64, is_success: bool) -> RequestResult {
    RequestResult { number, is_success, content: format!("result {number}") }
}

async fn claim(store: &Store, now_ms: i64, most: u32) -> ClaimedBatch {
    store.claim_requests(now_ms, LEASE, most).await.unwrap().unwrap()
}

fn numbers(claimed: &ClaimedBatch) -> Vec<i64> {
    claimed.requests.iter().map(|request| request.number).collect()
}

async fn every_request_of_a_batch_has_one_result_and_the_last_ends_it(bench: Bench) {
    let store = bench.store().await;
    let batch = create(&store, "acme", "b", &["one", "two", "three"]).await;
    let acme = store.tenant("acme");
    assert_eq!((batch.total, acme.file("file-b").await.unwrap().unwrap().bytes), (3, 14));
    assert_eq!(store.claim_requests(20, LEASE, 0).await.unwrap(), None, "none may run");
    let first = claim(&store, 20, 2).await;
    assert_eq!((numbers(&first), first.requests[1].content.as_str()), (vec![0, 1], "two"));
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(1, true)]).await.unwrap(), 1);
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(1, true)]).await.unwrap(), 0, "it has one");
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(0, false)]).await.unwrap(), 1);
    let seen = acme.batch("b").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.completed, seen.failed), (BatchState::InProgress, 1, 1));
    assert_eq!(acme.file("out-b").await.unwrap(), None, "results of a batch that is not finished");
    assert_eq!(store.batch_counts().await.unwrap()[0].oldest_ms, 10);
    let last = claim(&store, 30, 9).await;
    assert_eq!(numbers(&last), [2]);
    store.complete_requests(&batch, &last.claim, &[result(2, true)]).await.unwrap();
    let ended = acme.batch("b").await.unwrap().unwrap();
    assert_eq!((ended.state, ended.completed, ended.failed), (BatchState::Completed, 2, 1));
    assert!(ended.ended_at_ms.is_some() && store.batch_counts().await.unwrap().is_empty());
    let output = acme.lines("out-b", 0, 9).await.unwrap();
    assert_eq!(output, [(1, "result 1".to_owned()), (2, "result 2".to_owned())]);
    let errors = acme.file("err-b").await.unwrap().unwrap();
    assert_eq!((errors.lines, errors.bytes, errors.purpose), (1, 9, FilePurpose::Output));
    assert_eq!(store.claim_requests(i64::MAX / 2, LEASE, 9).await.unwrap(), None);
    let audited = store.audit_page(AuditPage { after: 0, since_ms: 0, limit: 100 }).await.unwrap();
    assert_eq!(audited.iter().filter(|row| row.action == "batch.create").count(), 1);
}

async fn requests_of_a_server_that_is_gone_run_again_and_its_late_results_are_dropped(bench: Bench) {
    let store = bench.store().await;
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    let gone = claim(&store, 20, 9).await;
    assert_eq!(store.claim_requests(20 + LEASE - 1, LEASE, 9).await.unwrap(), None, "its lease has not ended");
    let again = claim(&store, 20 + LEASE, 9).await;
    assert_eq!((numbers(&again), again.requests[0].attempts), (vec![0, 1], 2));
    assert_eq!(store.complete_requests(&batch, &gone.claim, &[result(0, true)]).await.unwrap(), 0);
    let both = [result(0, true), result(1, true)];
    assert_eq!(store.complete_requests(&batch, &again.claim, &both).await.unwrap(), 2);
    assert_eq!(store.tenant("acme").batch("b").await.unwrap().unwrap().completed, 2);
}

async fn replicas_never_claim_the_same_request(bench: Bench) {
    let store = bench.store().await;
    let other = bench.open().await;
    let lines: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    create(&store, "acme", "b", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let claims = (0..6).map(|n| {
        let replica = if n % 2 == 0 { store.clone() } else { other.clone() };
        async move {
            let claimed = crate::change(StoreError::passes, || replica.claim_requests(20, LEASE, 2)).await.unwrap();
            claimed.map_or_else(Vec::new, |claimed| numbers(&claimed))
        }
    });
    let mut all: Vec<i64> = futures::future::join_all(claims).await.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(all, (0..12).collect::<Vec<_>>());
}

async fn paused_batch_waits_and_released_requests_are_due_again(bench: Bench) {
    let store = bench.store().await;
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    let claimed = claim(&store, 20, 1).await;
    store.release_request(&batch, "another", 0, 0, true).await.unwrap();
    store.release_request(&batch, &claimed.claim, 0, 500, false).await.unwrap();
    assert_eq!(store.claim_requests(499, LEASE, 9).await.unwrap(), None);
    let again = claim(&store, 500, 9).await;
    assert_eq!((numbers(&again), again.requests[0].attempts), (vec![0, 1], 1), "it did not run");
    store.release_request(&batch, &again.claim, 0, 0, true).await.unwrap();
    assert_eq!(claim(&store, 500, 9).await.requests[0].attempts, 2);
}

async fn rest_of_a_batch_that_ends_gets_errors(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    for (id, state) in [("c", BatchState::Cancelled), ("e", BatchState::Expired), ("f", BatchState::Failed)] {
        let batch = create(&store, "acme", id, &["one", "two"]).await;
        let now = match state {
            BatchState::Cancelled => {
                assert!(acme.cancel_batch(id, &event(Action::BatchCancel)).await.unwrap());
                assert!(!acme.cancel_batch(id, &event(Action::BatchCancel)).await.unwrap());
                20
            }
            BatchState::Expired => batch.expires_at_ms,
            _ => {
                store.fail_batch(id, EndReason::KeyInvalid).await.unwrap();
                20
            }
        };
        let rest = claim(&store, now, 0).await;
        assert_eq!((numbers(&rest), rest.batch.id.as_str()), (vec![0, 1], id), "they need no room");
        assert!(rest.batch.reason.is_some() && rest.batch.ending_at_ms.is_some());
        store.complete_requests(&batch, &rest.claim, &[result(0, false), result(1, false)]).await.unwrap();
        let ended = acme.batch(id).await.unwrap().unwrap();
        assert_eq!((ended.state, ended.failed), (state, 2));
        assert!(!acme.cancel_batch(id, &event(Action::BatchCancel)).await.unwrap(), "it has ended");
    }
}

async fn tenants_take_turns(bench: Bench) {
    let store = bench.store().await;
    for (tenant, id) in [("acme", "a1"), ("acme", "a2"), ("globex", "g1")] {
        create(&store, tenant, id, &["1", "2", "3", "4"]).await;
    }
    let mut order = Vec::new();
    for now in 20..26 {
        order.push(claim(&store, now, 1).await.batch.tenant);
    }
    assert_eq!(order, ["acme", "globex", "acme", "globex", "acme", "globex"]);
}

async fn files_and_batches_of_another_tenant_do_not_exist(bench: Bench) {
    let store = bench.store().await;
    create(&store, "acme", "b", &["one", "two"]).await;
    let globex = store.tenant("globex");
    assert_eq!(globex.file("file-b").await.unwrap(), None);
    assert_eq!((globex.files("", 9).await.unwrap(), globex.batches("", 9).await.unwrap()), (vec![], vec![]));
    assert_eq!(globex.lines("file-b", 0, 9).await.unwrap(), vec![]);
    assert_eq!(globex.batch("b").await.unwrap(), None);
    assert!(!globex.cancel_batch("b", &event(Action::BatchCancel).tenant("globex")).await.unwrap());
    let deleted = globex.delete_file("file-b", &event(Action::FileDelete).tenant("globex")).await.unwrap();
    assert_eq!(deleted, FileDeletion::Missing);
    let theirs = Batch { tenant: "globex".into(), ..wanted("x", "file-b") };
    let refused = globex.create_batch(&theirs, 9, &event(Action::BatchCreate).tenant("globex")).await.unwrap();
    assert_eq!(refused, Err(BatchRefusal::NoFile));
    globex.abandon_file("file-b").await.unwrap();
    let acme = store.tenant("acme");
    assert_eq!(acme.files("", 9).await.unwrap().len(), 1);
    assert_eq!(acme.batches("", 9).await.unwrap().len(), 1);
    assert_eq!(acme.batch("b").await.unwrap().unwrap().state, BatchState::InProgress);
}

async fn bounds_of_a_tenant_hold(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    create(&store, "acme", "b", &["one", "two"]).await;
    let batch = wanted("c", "file-b");
    let pending = acme.create_batch(&batch, 1, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(pending, Err(BatchRefusal::Pending(1)));
    let other = Batch { endpoint: "/v1/embeddings".into(), ..batch };
    let refused = acme.create_batch(&other, 9, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(refused, Err(BatchRefusal::Endpoint));
    assert_eq!(acme.begin_file(&file("f"), 8).await.unwrap(), Err(BatchRefusal::Full(8)));
    acme.begin_file(&file("f"), 9).await.unwrap().unwrap();
    acme.add_lines("f", 0, &["four".to_owned()]).await.unwrap();
    assert_eq!(acme.file("f").await.unwrap(), None, "it is not complete");
    let full = acme.complete_file("f", "/v1/completions", "a", 12).await.unwrap();
    assert_eq!(full, Err(BatchRefusal::Full(13)));
    acme.abandon_file("f").await.unwrap();
    assert_eq!(acme.lines("f", 0, 9).await.unwrap(), vec![]);
    store.tenant("globex").begin_file(&file("g"), 1).await.unwrap().unwrap();
}

async fn file_of_an_unfinished_batch_is_kept_and_old_ones_are_deleted(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    upload(&store, "acme", "free", &["one", "two"]).await;
    acme.begin_file(&file("given-up"), u64::MAX).await.unwrap().unwrap();
    let in_use = acme.delete_file("file-b", &event(Action::FileDelete)).await.unwrap();
    assert_eq!(in_use, FileDeletion::InUse("b".into()));
    assert_eq!(store.delete_batches(Some(5), 5).await.unwrap(), 0, "none is older than that");
    assert_eq!(store.delete_batches(Some(1000), 1000).await.unwrap(), 1);
    assert_eq!(acme.file("free").await.unwrap(), None);
    assert_eq!(store.delete_batches(None, ABANDONED_MS + 6).await.unwrap(), 1, "the upload");
    let claimed = claim(&store, 20, 9).await;
    store.complete_requests(&batch, &claimed.claim, &[result(0, true), result(1, true)]).await.unwrap();
    assert_eq!(acme.delete_file("out-b", &event(Action::FileDelete)).await.unwrap(), FileDeletion::Deleted);
    assert_eq!(acme.lines("out-b", 0, 9).await.unwrap(), vec![]);
    assert_eq!(store.delete_batches(Some(i64::MAX), 0).await.unwrap(), 2, "a file and a batch");
    assert_eq!((acme.batch("b").await.unwrap(), acme.lines("file-b", 0, 9).await.unwrap()), (None, vec![]));
}

async fn lines_keep_every_character(bench: Bench) {
    let store = bench.store().await;
    let line = json!({ "a": "\u{0} \" \\ \u{1f600} ü \u{2028}" }).to_string();
    upload(&store, "acme", "f", &[line.as_str(), "{\"b\":\"\\u0000\"}"]).await;
    let lines = store.tenant("acme").lines("f", 0, 9).await.unwrap();
    assert_eq!(lines, [(0, line), (1, "{\"b\":\"\\u0000\"}".to_owned())]);
}

#[tokio::test]
async fn row_level_security_holds_batches_to_their_tenant() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    for (tenant, id) in [("acme", "a"), ("globex", "g")] {
        create(&store, tenant, id, &["one", "two"]).await;
    }
    for (table, rows) in [("batches", "1"), ("batch_requests", "2"), ("batch_files", "3"), ("batch_lines", "2")] {
        let seen = |tenant: &str| {
            cluster
                .sql(&name, &format!("SET ROLE textnlp; SET textnlp.tenant = '{tenant}'; SELECT count(*) FROM {table}"))
        };
        assert_eq!((seen(""), seen("acme").as_str()), ("0".to_owned(), rows), "{table}");
    }
    let mut narrow = store.tenant("acme").write("x").await.unwrap();
    let reached = sqlx::query("UPDATE batches SET state = 'failed'").execute(&mut *narrow).await.unwrap();
    assert_eq!(reached.rows_affected(), 1, "a forgotten WHERE reaches one tenant");
}
