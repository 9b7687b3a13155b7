use serde_json::json;

use super::super::tests::{Bench, key, of_postgres, on_both};
use super::super::{Action, Actor, AuditPage};
use super::*;

on_both!(
    every_request_of_a_batch_has_one_result_and_the_last_ends_it,
    requests_of_a_server_that_is_gone_run_again_and_its_late_results_are_dropped,
    replicas_never_claim_the_same_request,
    paused_batch_waits_and_released_requests_are_due_again,
    rest_of_a_batch_that_ends_gets_errors,
    tenants_take_turns,
    batch_that_ends_leaves_turns_to_other_tenants,
    claims_and_pages_are_bounded_by_their_bytes,
    request_without_a_line_is_claimed_and_ends,
    files_and_batches_of_another_tenant_do_not_exist,
    bounds_of_a_tenant_hold,
    number_of_files_is_bounded,
    upload_whose_file_is_gone_adds_no_lines,
    large_file_is_deleted_in_several_transactions,
    files_of_a_removed_tenant_are_deleted,
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
    of_tenant.add_lines(id, 0, first).await.unwrap().unwrap();
    of_tenant.add_lines(id, 1, rest).await.unwrap().unwrap();
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

pub(crate) async fn create(store: &Store, tenant: &str, id: &str, lines: &[&str]) -> Batch {
    let input = format!("file-{id}");
    upload(store, tenant, &input, lines).await;
    let batch = Batch { tenant: tenant.into(), ..wanted(id, &input) };
    let event = event(Action::BatchCreate).tenant(tenant);
    store.tenant(tenant).create_batch(&batch, 9, u64::MAX, &event).await.unwrap().unwrap()
}

/// Deletes what is left of a deleted file.
async fn erase(store: &Store, file: &str) {
    assert!(store.erase(file, || false).await.unwrap());
}

async fn sweep(store: &Store, before_ms: Option<i64>, now_ms: i64) -> u64 {
    store.delete_batches(before_ms, now_ms, &CancellationToken::new()).await.unwrap()
}

pub(crate) fn result(number: i64, is_success: bool) -> RequestResult {
    RequestResult { number, is_success, content: format!("result {number}") }
}

pub(crate) async fn claim(store: &Store, now_ms: i64, most: u32) -> ClaimedBatch {
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
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(1, true)], &[]).await.unwrap(), 1);
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(1, true)], &[]).await.unwrap(), 0, "it has one");
    assert_eq!(store.complete_requests(&batch, &first.claim, &[result(0, false)], &[]).await.unwrap(), 1);
    let seen = acme.batch("b").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.completed, seen.failed), (BatchState::InProgress, 1, 1));
    assert_eq!(acme.file("out-b").await.unwrap(), None, "results of a batch that is not finished");
    assert_eq!(store.batch_counts().await.unwrap()[0].oldest_ms, 10);
    let last = claim(&store, 30, 9).await;
    assert_eq!(numbers(&last), [2]);
    store.complete_requests(&batch, &last.claim, &[result(2, true)], &[]).await.unwrap();
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
    assert_eq!(store.complete_requests(&batch, &gone.claim, &[result(0, true)], &[]).await.unwrap(), 0);
    let both = [result(0, true), result(1, true)];
    assert_eq!(store.complete_requests(&batch, &again.claim, &both, &[]).await.unwrap(), 2);
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
        store.complete_requests(&batch, &rest.claim, &[result(0, false), result(1, false)], &[]).await.unwrap();
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

async fn batch_that_ends_leaves_turns_to_other_tenants(bench: Bench) {
    let store = bench.store().await;
    let lines: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    create(&store, "acme", "a", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    create(&store, "globex", "g", &["1", "2", "3"]).await;
    assert!(store.tenant("acme").cancel_batch("a", &event(Action::BatchCancel)).await.unwrap());
    let mut order = Vec::new();
    for now in 20..26 {
        let claimed = claim(&store, now, 1).await;
        if claimed.batch.tenant == "acme" {
            let results: Vec<RequestResult> =
                numbers(&claimed).into_iter().map(|number| result(number, false)).collect();
            let stored = store.complete_requests(&claimed.batch, &claimed.claim, &results, &[]).await.unwrap();
            assert_eq!(stored, u64::from(ENDING_CLAIM));
        }
        order.push(claimed.batch.tenant);
    }
    assert_eq!(order, ["acme", "globex", "acme", "globex", "acme", "globex"]);
    let acme = store.tenant("acme");
    assert_eq!(acme.batch("a").await.unwrap().unwrap().failed, 600);
    assert_eq!(
        acme.lines("err-a", 598, 999).await.unwrap(),
        [(598, "result 598".to_owned()), (599, "result 599".to_owned())]
    );
}

async fn claims_and_pages_are_bounded_by_their_bytes(bench: Bench) {
    let store = bench.store().await;
    let (long, acme) = ("x".repeat(3 << 20), store.tenant("acme"));
    create(&store, "acme", "b", &[long.as_str(), &long, &long, "short"]).await;
    assert_eq!(numbers(&claim(&store, 20, 9).await), [0, 1], "the first ones, until they are too many bytes");
    assert!(acme.cancel_batch("b", &event(Action::BatchCancel)).await.unwrap());
    assert_eq!(numbers(&claim(&store, 20, 9).await), [2, 3]);
    let bytes = long.len() as u64 + 1;
    assert_eq!(acme.page("file-b", 0, 9).await.unwrap(), Some((0, bytes)), "a page has a line");
    assert_eq!(acme.page("file-b", 2, u32::MAX).await.unwrap(), Some((3, bytes + 6)));
    assert_eq!(acme.page("file-b", 4, 9).await.unwrap(), None);
    assert_eq!(store.tenant("globex").page("file-b", 0, 9).await.unwrap(), None);
}

async fn request_without_a_line_is_claimed_and_ends(bench: Bench) {
    let store = bench.store().await;
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    let mut transaction = store.write_all("x", Job::Batches).await.unwrap();
    sqlx::query("DELETE FROM batch_lines WHERE number = 1").execute(&mut *transaction).await.unwrap();
    store.commit(transaction).await.unwrap();
    let claimed = claim(&store, 20, 9).await;
    assert_eq!((numbers(&claimed), claimed.requests[1].content.as_str()), (vec![0, 1], ""));
    store.complete_requests(&batch, &claimed.claim, &[result(0, true), result(1, false)], &[]).await.unwrap();
    assert_eq!(store.tenant("acme").batch("b").await.unwrap().unwrap().state, BatchState::Completed);
}

async fn files_and_batches_of_another_tenant_do_not_exist(bench: Bench) {
    let store = bench.store().await;
    create(&store, "acme", "b", &["one", "two"]).await;
    let globex = store.tenant("globex");
    assert_eq!(globex.file("file-b").await.unwrap(), None);
    assert_eq!((globex.files("", None, 9).await.unwrap(), globex.batches("", 9).await.unwrap()), (vec![], vec![]));
    assert_eq!(globex.lines("file-b", 0, 9).await.unwrap(), vec![]);
    assert_eq!(globex.batch("b").await.unwrap(), None);
    assert!(!globex.cancel_batch("b", &event(Action::BatchCancel).tenant("globex")).await.unwrap());
    let deleted = globex.delete_file("file-b", &event(Action::FileDelete).tenant("globex")).await.unwrap();
    assert_eq!(deleted, FileDeletion::Missing);
    let theirs = Batch { tenant: "globex".into(), ..wanted("x", "file-b") };
    let by = event(Action::BatchCreate).tenant("globex");
    let refused = globex.create_batch(&theirs, 9, u64::MAX, &by).await.unwrap();
    assert_eq!(refused, Err(BatchRefusal::NoFile));
    globex.abandon_file("file-b").await.unwrap();
    let acme = store.tenant("acme");
    assert_eq!(acme.files("", None, 9).await.unwrap().len(), 1);
    assert_eq!(acme.files("", Some(FilePurpose::Input), 9).await.unwrap().len(), 1);
    assert_eq!(acme.files("", Some(FilePurpose::Output), 9).await.unwrap(), vec![]);
    assert_eq!(acme.batches("", 9).await.unwrap().len(), 1);
    assert_eq!(acme.batch("b").await.unwrap().unwrap().state, BatchState::InProgress);
}

async fn bounds_of_a_tenant_hold(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    create(&store, "acme", "b", &["one", "two"]).await;
    let batch = wanted("c", "file-b");
    let pending = acme.create_batch(&batch, 1, u64::MAX, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(pending, Err(BatchRefusal::Pending(1)));
    let full = acme.create_batch(&batch, 9, 8, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(full, Err(BatchRefusal::Full(8)));
    assert_eq!((acme.stored_bytes().await.unwrap(), store.tenant("globex").stored_bytes().await.unwrap()), (8, 0));
    let other = Batch { endpoint: "/v1/embeddings".into(), ..batch };
    let refused = acme.create_batch(&other, 9, u64::MAX, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(refused, Err(BatchRefusal::Endpoint));
    assert_eq!(acme.begin_file(&file("f"), 8).await.unwrap(), Err(BatchRefusal::Full(8)));
    acme.begin_file(&file("f"), 9).await.unwrap().unwrap();
    acme.add_lines("f", 0, &["four".to_owned()]).await.unwrap().unwrap();
    assert_eq!(acme.file("f").await.unwrap(), None, "it is not complete");
    let full = acme.complete_file("f", "/v1/completions", "a", 12).await.unwrap();
    assert_eq!(full, Err(BatchRefusal::Full(13)));
    acme.abandon_file("f").await.unwrap();
    erase(&store, "f").await;
    assert_eq!((acme.lines("f", 0, 9).await.unwrap(), acme.stored_bytes().await.unwrap()), (vec![], 8));
    store.tenant("globex").begin_file(&file("g"), 1).await.unwrap().unwrap();
}

async fn number_of_files_is_bounded(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    upload(&store, "acme", "input", &["one", "two"]).await;
    let mut transaction = acme.write("x").await.unwrap();
    let query = sqlx::query(
        "INSERT INTO batch_files (id, tenant_id, purpose, filename, endpoint, bytes, lines, state, created_at) \
         WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < $1) \
         SELECT 'many-' || CAST(n AS TEXT), 'acme', 'batch', 'a', '', 0, 0, 'complete', 5 FROM counted",
    );
    query.bind(MAX_FILES as i64 - 2).execute(&mut *transaction).await.unwrap();
    store.commit(transaction).await.unwrap();
    let two_more = acme.create_batch(&wanted("b", "input"), 9, u64::MAX, &event(Action::BatchCreate)).await.unwrap();
    assert_eq!(two_more, Err(BatchRefusal::Files(MAX_FILES - 1)));
    acme.begin_file(&file("last"), u64::MAX).await.unwrap().unwrap();
    assert_eq!(acme.begin_file(&file("f"), u64::MAX).await.unwrap(), Err(BatchRefusal::Files(MAX_FILES)));
}

async fn upload_whose_file_is_gone_adds_no_lines(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    acme.begin_file(&file("f"), u64::MAX).await.unwrap().unwrap();
    acme.abandon_file("f").await.unwrap();
    let line = ["one".to_owned()];
    assert_eq!(acme.add_lines("f", 0, &line).await.unwrap(), Err(BatchRefusal::NoFile), "it is being deleted");
    erase(&store, "f").await;
    assert_eq!(acme.add_lines("f", 0, &line).await.unwrap(), Err(BatchRefusal::NoFile), "it is deleted");
    assert_eq!(acme.lines("f", 0, 9).await.unwrap(), vec![]);
    upload(&store, "acme", "whole", &["one", "two"]).await;
    assert_eq!(acme.add_lines("whole", 2, &line).await.unwrap(), Err(BatchRefusal::NoFile), "it is complete");
}

async fn large_file_is_deleted_in_several_transactions(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    let lines: Vec<String> = (0..1100).map(|n| n.to_string()).collect();
    upload(&store, "acme", "f", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    upload(&store, "acme", "other", &["one", "two"]).await;
    assert!(store.erase_lines("f").await.unwrap(), "only a deleted file loses lines");
    assert_eq!(acme.lines("f", 0, 9999).await.unwrap().len(), 1100);
    assert_eq!(acme.delete_file("f", &event(Action::FileDelete)).await.unwrap(), FileDeletion::Deleted);
    assert_eq!(acme.file("f").await.unwrap(), None);
    assert!(!store.erase_lines("f").await.unwrap());
    assert_eq!(acme.lines("f", 0, 9999).await.unwrap().len(), 600);
    assert!(acme.stored_bytes().await.unwrap() > 1100, "its bytes count until it is gone");
    assert!(!store.erase("f", || true).await.unwrap(), "the server stops");
    assert_eq!(sweep(&store, None, 0).await, 1, "the retention goes on");
    assert_eq!((acme.lines("f", 0, 9999).await.unwrap(), acme.stored_bytes().await.unwrap()), (vec![], 8));
}

async fn files_of_a_removed_tenant_are_deleted(bench: Bench) {
    let (store, by) = (bench.store().await, Actor::Operator("ada".to_owned()));
    let of_acme = crate::ApiKey { tenant: "acme".into(), expires_at: Some(1), ..key("0123456789abcdef") };
    store.put_key(&of_acme, None).await.unwrap();
    create(&store, "acme", "b", &["one", "two"]).await;
    create(&store, "globex", "g", &["one", "two"]).await;
    assert!(store.remove_tenant("acme", &by).await.unwrap());
    let acme = store.tenant("acme");
    assert_eq!((acme.file("file-b").await.unwrap(), acme.batch("b").await.unwrap()), (None, None));
    assert_eq!(claim(&store, 20, 9).await.batch.tenant, "globex");
    assert_eq!(sweep(&store, None, 0).await, 3, "the input, and two files of results");
    assert_eq!(acme.lines("file-b", 0, 9).await.unwrap(), vec![]);
    assert_eq!(store.tenant("globex").lines("file-g", 0, 9).await.unwrap().len(), 2);
}

async fn file_of_an_unfinished_batch_is_kept_and_old_ones_are_deleted(bench: Bench) {
    let store = bench.store().await;
    let acme = store.tenant("acme");
    let batch = create(&store, "acme", "b", &["one", "two"]).await;
    upload(&store, "acme", "free", &["one", "two"]).await;
    acme.begin_file(&file("given-up"), u64::MAX).await.unwrap().unwrap();
    let in_use = acme.delete_file("file-b", &event(Action::FileDelete)).await.unwrap();
    assert_eq!(in_use, FileDeletion::InUse("b".into()));
    assert_eq!(sweep(&store, Some(5), 5).await, 0, "none is older than that");
    let stopped = CancellationToken::new();
    stopped.cancel();
    assert_eq!(store.delete_batches(Some(1000), 1000, &stopped).await.unwrap(), 0);
    assert_eq!(sweep(&store, Some(1000), 1000).await, 1);
    assert_eq!(acme.file("free").await.unwrap(), None);
    assert_eq!(sweep(&store, None, ABANDONED_MS + 6).await, 1, "the upload");
    let in_use = store.delete_old_file("file-b", "acme", (1000, 0), &CancellationToken::new()).await.unwrap();
    assert!(!in_use, "a batch that was created after the file was found");
    let claimed = claim(&store, 20, 9).await;
    store.complete_requests(&batch, &claimed.claim, &[result(0, true), result(1, true)], &[]).await.unwrap();
    assert_eq!(acme.delete_file("out-b", &event(Action::FileDelete)).await.unwrap(), FileDeletion::Deleted);
    erase(&store, "out-b").await;
    assert_eq!(acme.lines("out-b", 0, 9).await.unwrap(), vec![]);
    assert_eq!(sweep(&store, Some(i64::MAX), 0).await, 2, "a file and a batch");
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
