//! What every store must keep, whatever it is made of. Each item gets a fresh place; opening it twice is two processes.

use std::future::Future;
use std::sync::Arc;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use object_store::path::Path;
use textnlp_orchestrator::clock::VirtualClock;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::state::{
    Batch, BodyRef, Entry, Folder, Holder, Lock, MemoryStore, Objects, Operator, SiteLocation, State, StateError, Store,
};
use textnlp_provider::Lineage;
use textnlp_provider::settings::Runtime;
use uuid::Uuid;

use crate::bucket::Bucket;
use crate::world::{environment, here};

/// A way to a place: each call is another process.
pub type Open = Arc<dyn Fn() -> Arc<dyn Store> + Send + Sync>;

/// Every item of the list. `fresh` makes an empty place.
pub async fn all(fresh: &dyn Fn() -> Open) {
    nothing_is_there_at_first(fresh()).await;
    what_is_appended_is_read_by_another_process(fresh()).await;
    many_batches_are_one_log(fresh()).await;
    documents_are_replaced_as_a_whole(fresh()).await;
    whoever_holds_the_lock_is_named(fresh()).await;
    a_lock_given_back_is_free_and_the_next_number_is_higher(fresh()).await;
    a_holder_whose_lock_is_over_writes_nothing(fresh()).await;
    a_state_is_kept(fresh()).await;
    documents_without_the_lock_are_swapped_if_they_are_as_expected(fresh()).await;
}

/// What is looked for in what a store keeps: three letters are in random bytes, and in the letters that keys are written in, now and then;
/// seven bytes with a space, or a word of this length, never are.
const BODY: &str = "body of";
const HOST: &str = "machine-of-whoever-holds-the-lock";

pub fn holder(by: &str) -> Holder {
    let (by, host, tool) = (by.to_owned(), HOST.to_owned(), "test".to_owned());
    Holder { by, pid: 7, host, since: Timestamp::UNIX_EPOCH, tool }
}

/// A batch of one line and one body that goes to the end of what there is.
pub async fn next(store: &dyn Store, text: &str) -> Batch {
    let body = format!("{BODY} {text}").into_bytes();
    let (log_at, bodies_at) =
        (store.log(&here()).await.unwrap().len() as u64, store.bodies_len(&here()).await.unwrap());
    let names = vec![BodyRef { sha256: text.to_owned(), at: bodies_at, len: body.len() as u32 }];
    Batch { log_at, lines: format!("{text}\n").into_bytes(), bodies_at, bodies: body, names }
}

async fn put(store: &dyn Store, lock: &Lock, text: &str) -> Result<BodyRef, StateError> {
    let batch = next(store, text).await;
    store.append(lock, &here(), &batch).await.map(|()| batch.names[0].clone())
}

async fn nothing_is_there_at_first(open: Open) {
    let store = open();
    assert!(store.sites().await.unwrap().is_empty());
    assert!(store.log(&here()).await.unwrap().is_empty());
    assert_eq!(store.bodies_len(&here()).await.unwrap(), 0);
    assert_eq!(store.document("lineage.json").await.unwrap(), None);
}

async fn what_is_appended_is_read_by_another_process(open: Open) {
    let store = open();
    let lock = store.lock(&holder("ada")).await.unwrap();
    let one = put(&*store, &lock, "one").await.unwrap();
    let two = put(&*store, &lock, "two").await.unwrap();
    for reader in [store, open()] {
        assert_eq!(reader.sites().await.unwrap(), [here()]);
        assert_eq!(reader.log(&here()).await.unwrap(), b"one\ntwo\n");
        assert_eq!(reader.bodies_len(&here()).await.unwrap(), 22);
        assert_eq!(reader.body(&here(), &one).await.unwrap(), format!("{BODY} one").as_bytes());
        assert_eq!(reader.body(&here(), &two).await.unwrap(), format!("{BODY} two").as_bytes());
        let none = BodyRef { sha256: String::new(), at: 22, len: 1 };
        assert!(reader.body(&here(), &none).await.is_err());
    }
}

/// Enough of them that a store which puts them together does so, twice.
async fn many_batches_are_one_log(open: Open) {
    const MANY: usize = 70;
    let mut whole = String::new();
    for round in 0..2 {
        let store = open();
        let lock = store.lock(&holder("ada")).await.unwrap();
        for i in 0..MANY {
            let line = format!("line {round} {i}");
            put(&*store, &lock, &line).await.unwrap();
            whole += &format!("{line}\n");
        }
        store.unlock(lock).await.unwrap();
    }
    let reader = open();
    assert_eq!(String::from_utf8(reader.log(&here()).await.unwrap()).unwrap(), whole);
    let lock = reader.lock(&holder("ada")).await.unwrap();
    let last = put(&*reader, &lock, "last").await.unwrap();
    assert_eq!(open().log(&here()).await.unwrap(), (whole + "last\n").into_bytes());
    let another = open();
    another.log(&here()).await.unwrap();
    assert_eq!(another.body(&here(), &last).await.unwrap(), format!("{BODY} last").as_bytes());
}

async fn documents_are_replaced_as_a_whole(open: Open) {
    let store = open();
    let lock = store.lock(&holder("ada")).await.unwrap();
    store.replace(&lock, "lineage.json", b"the first, and the longer one").await.unwrap();
    store.replace(&lock, "lineage.json", b"the second").await.unwrap();
    store.replace(&lock, "journal/here/head.json", b"\x00\xff").await.unwrap();
    assert_eq!(open().document("lineage.json").await.unwrap().unwrap(), b"the second");
    assert_eq!(open().document("journal/here/head.json").await.unwrap().unwrap(), b"\x00\xff");
    assert!(open().log(&here()).await.unwrap().is_empty());
}

async fn whoever_holds_the_lock_is_named(open: Open) {
    let store = open();
    assert_eq!(store.holder().await.unwrap(), None);
    let lock = store.lock(&holder("ada")).await.unwrap();
    match open().lock(&holder("grace")).await {
        Err(StateError::Held { holder: Some(there) }) => assert_eq!(there, holder("ada")),
        other => panic!("{other:?}"),
    }
    assert_eq!(open().holder().await.unwrap(), Some(holder("ada")));
    // Nothing of it disturbs whoever has it.
    put(&*store, &lock, "one").await.unwrap();
    store.unlock(lock).await.unwrap();
    assert_eq!(open().holder().await.unwrap(), None);
}

async fn a_lock_given_back_is_free_and_the_next_number_is_higher(open: Open) {
    let mut last = 0;
    for _ in 0..3 {
        let store = open();
        let lock = store.lock(&holder("ada")).await.unwrap();
        assert!(lock.fence > last);
        assert!(lock.grace.is_zero());
        last = lock.fence;
        store.unlock(lock).await.unwrap();
    }
}

async fn a_holder_whose_lock_is_over_writes_nothing(open: Open) {
    let store = open();
    let first = store.lock(&holder("ada")).await.unwrap();
    put(&*store, &first, "one").await.unwrap();
    store.replace(&first, "lineage.json", b"{}").await.unwrap();
    let over = Lock::for_life(first.fence, ());
    store.unlock(first).await.unwrap();
    let other = open();
    let second = other.lock(&holder("grace")).await.unwrap();
    assert!(second.fence > over.fence);
    let refused = |result: Result<(), StateError>| {
        let refused = matches!(result, Err(StateError::Fenced { .. } | StateError::LeaseLost { .. }));
        assert!(refused, "{result:?}");
    };
    let batch = next(&*store, "two").await;
    refused(store.append(&over, &here(), &batch).await);
    refused(store.replace(&over, "lineage.json", b"late").await);
    refused(store.cut(&over, &here(), 0).await);
    assert_eq!(open().log(&here()).await.unwrap(), b"one\n");
    assert_eq!(open().document("lineage.json").await.unwrap().unwrap(), b"{}");
}

async fn documents_without_the_lock_are_swapped_if_they_are_as_expected(open: Open) {
    let (one, other) = (open(), open());
    assert!(one.documents("audit").await.unwrap().is_empty());
    assert!(!one.swap("audit/2026-11", Some(b"x"), b"one").await.unwrap(), "it does not exist");
    assert!(one.swap("audit/2026-11", None, b"one").await.unwrap());
    assert!(!other.swap("audit/2026-11", None, b"other").await.unwrap(), "it exists");
    assert_eq!(other.document("audit/2026-11").await.unwrap().unwrap(), b"one");
    // Whoever holds the lock of the state is in nobody's way.
    let lock = one.lock(&holder("ada")).await.unwrap();
    assert!(other.swap("audit/2026-11", Some(b"one"), b"one two").await.unwrap());
    assert!(!one.swap("audit/2026-11", Some(b"one"), b"one three").await.unwrap(), "another one was faster");
    one.replace(&lock, "audit/2026-12", b"written under the lock").await.unwrap();
    assert!(other.swap("audit/2026-12", Some(b"written under the lock"), b"later").await.unwrap());
    one.unlock(lock).await.unwrap();
    let mut names = open().documents("audit").await.unwrap();
    names.sort();
    assert_eq!(names, ["2026-11", "2026-12"]);
    assert_eq!(open().document("audit/2026-11").await.unwrap().unwrap(), b"one two");
    one.remove("audit/2026-11").await.unwrap();
    one.remove("audit/2026-11").await.unwrap();
    assert_eq!(open().documents("audit").await.unwrap(), ["2026-12"]);
}

/// The journal on top: what one run wrote, another reads with all its checks.
async fn a_state_is_kept(open: Open) {
    let clock = Arc::new(VirtualClock::at(Timestamp::UNIX_EPOCH));
    let lineage = Lineage(Uuid::from_u128(7));
    let load = async || State::load(open(), &environment(), lineage).await.unwrap();
    let operator = Operator {
        by: "ada".to_owned(),
        reason: Some("to see".to_owned()),
        tool: "test".to_owned(),
        host: "machine".to_owned(),
        pid: 7,
    };
    let place = |text: &str| SiteLocation {
        provider: "memory".to_owned(),
        account: text.to_owned(),
        region: text.to_owned(),
        runtime: Runtime::Process,
    };
    let places = [(here(), place("a"))].into();
    let mut locked = load().await.lock(&operator, &places, clock.clone()).await.unwrap();
    let plan = "a plan";
    locked
        .commit(&here(), |pen| {
            let plan = pen.body(&plan);
            pen.entry(Entry::Approved { purpose: Purpose::Up, plan, tracked: true });
        })
        .await
        .unwrap();
    locked.close().await.unwrap();
    let state = load().await;
    assert!(!state.is_new());
    let records = state.history(&here()).await.unwrap();
    assert_eq!(records.len(), 2);
    let Entry::Approved { plan: body, .. } = &records[1].entry else { panic!("{records:?}") };
    assert_eq!(state.body::<String>(&here(), body).await.unwrap(), plan);
}

/// Drives a future in virtual time.
pub fn on<T>(clock: &VirtualClock, future: impl Future<Output = T>) -> T {
    clock.run(future).expect("it ends")
}

pub fn objects(bucket: &Bucket, clock: &VirtualClock) -> Objects {
    Objects::new(Arc::new(bucket.clone()), Path::from("states/staging"), "a bucket", Arc::new(clock.clone()))
}

#[test]
fn memory_store_passes_the_conformance_suite() {
    let fresh = || -> Open {
        let disk = MemoryStore::default();
        Arc::new(move || Arc::new(disk.clone()))
    };
    on(&VirtualClock::at(Timestamp::UNIX_EPOCH), all(&fresh));
}

#[test]
fn folder_store_passes_the_conformance_suite() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    let fresh = || -> Open {
        count.set(count.get() + 1);
        let path = Utf8PathBuf::from_path_buf(folder.path().join(format!("a place {}", count.get()))).unwrap();
        Arc::new(move || Arc::new(Folder::at(path.clone())))
    };
    on(&VirtualClock::at(Timestamp::UNIX_EPOCH), all(&fresh));
}

#[test]
fn bucket_store_passes_the_conformance_suite() {
    let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
    let buckets = std::sync::Mutex::new(Vec::new());
    let fresh = || -> Open {
        let (bucket, clock) = (Bucket::new(), clock.clone());
        buckets.lock().unwrap().push(bucket.clone());
        Arc::new(move || Arc::new(objects(&bucket, &clock)))
    };
    on(&clock, all(&fresh));
    // What a sealed one does not show is there to be seen.
    let content: Vec<_> = buckets.into_inner().unwrap().iter().flat_map(Bucket::content).collect();
    for word in [BODY, HOST] {
        assert!(content.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(word)), "{word}");
    }
}

#[test]
fn encrypted_bucket_passes_the_conformance_suite_and_leaks_nothing() {
    let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
    let buckets = std::sync::Mutex::new(Vec::new());
    let secret = textnlp_orchestrator::backup::Key::generate().secret();
    let key = move || textnlp_orchestrator::backup::Key::parse(&secret).unwrap().remove(0);
    let fresh = || -> Open {
        let (bucket, clock, key) = (Bucket::new(), clock.clone(), key.clone());
        buckets.lock().unwrap().push(bucket.clone());
        Arc::new(move || Arc::new(objects(&bucket, &clock).sealed(key())))
    };
    on(&clock, all(&fresh));
    for bucket in buckets.into_inner().unwrap() {
        for (name, bytes) in bucket.content() {
            assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{name}");
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(BODY) && !text.contains(HOST), "{name}");
        }
        // Without the key it says so, and does not take it for damage.
        if !bucket.content().is_empty() {
            let error = on(&clock, objects(&bucket, &clock).lock(&holder("ada"))).unwrap_err();
            assert!(error.to_string().contains("is encrypted"), "{error}");
        }
    }
}
