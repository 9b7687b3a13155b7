//! What it costs where the state is kept: a folder beside a bucket of S3's protocol (moto on this machine) in the same run.
//!
//! `cargo bench -p textnlp-orchestrator --bench journal -- [--commits 200] [--sizes 100,1000]`

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, dead_code)]

#[path = "../../../tests/src/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use jiff::Timestamp;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::state::{Entry, Folder, Holder, Locked, Objects, Operator, SiteLocation, State, Store};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};
use uuid::Uuid;

/// A way to a place: each call is another process.
type Open = Box<dyn Fn(usize) -> Arc<dyn Store>>;

fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let commits: usize = value("--commits").map_or(200, |text| text.parse().unwrap());
    let sizes = value("--sizes").map_or("100,1000", String::as_str);
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let local: Open = Box::new(move |number| Arc::new(Folder::at(path.join(number.to_string()))));
    let server = servers::moto(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests"));
    let bucket: Option<Open> = server.as_ref().map(|server| {
        runtime().block_on(make_bucket(&server.address));
        let store = bucket(&server.address);
        let open = move |number: usize| -> Arc<dyn Store> {
            let root = Path::from(format!("company/{number}"));
            Arc::new(Objects::new(store.clone(), root, "a bucket", Arc::new(SystemClock)))
        };
        Box::new(open) as Open
    });
    let opens: Vec<String> = sizes.iter().map(|size| format!("{:>14}", format!("open {size} ms"))).collect();
    println!(
        "{:<8} {:>10} {:>10}{} {:>12} {:>11}",
        "store",
        "commit p50",
        "p95 ms",
        opens.concat(),
        "hand over ms",
        "take over s"
    );
    for (name, open) in [("folder", Some(local)), ("bucket", bucket)] {
        let Some(open) = open else { continue };
        let (p50, p95) = committing(&open, commits);
        let opened: Vec<String> = sizes.iter().map(|size| format!("{:>14.1}", millis(opening(&open, *size)))).collect();
        let handed = millis(handing_over(&open));
        let taken = taking_over(&open).as_secs_f64();
        println!(
            "{name:<8} {:>10.2} {:>10.2}{} {handed:>12.1} {taken:>11.2}",
            millis(p50),
            millis(p95),
            opened.concat()
        );
    }
}

/// One record with a body at a time, each durable before the next is written.
fn committing(open: &Open, commits: usize) -> (Duration, Duration) {
    let runtime = runtime();
    let mut locked = runtime.block_on(locked(open(0)));
    let mut times: Vec<Duration> = (0..commits)
        .map(|number| {
            let began = Instant::now();
            runtime.block_on(commit(&mut locked, number));
            began.elapsed()
        })
        .collect();
    runtime.block_on(locked.close()).unwrap();
    times.sort();
    (times[times.len() / 2], times[times.len() * 95 / 100])
}

/// A state of so many commits, read whole with all its checks by another process: the best of five.
fn opening(open: &Open, size: usize) -> Duration {
    let runtime = runtime();
    let mut locked = runtime.block_on(locked(open(size)));
    for number in 0..size {
        runtime.block_on(commit(&mut locked, number));
    }
    runtime.block_on(locked.close()).unwrap();
    let times = (0..5).map(|_| {
        let began = Instant::now();
        let state = runtime.block_on(State::load(open(size), &environment(), lineage())).unwrap();
        assert!(!state.is_new());
        began.elapsed()
    });
    times.min().unwrap()
}

/// The lock of a holder that gives it back, taken by the next one: the best of five.
fn handing_over(open: &Open) -> Duration {
    let runtime = runtime();
    let times = (0..5).map(|_| {
        let began = Instant::now();
        let store = open(1);
        let lock = runtime.block_on(store.lock(&holder())).unwrap();
        runtime.block_on(store.unlock(lock)).unwrap();
        began.elapsed()
    });
    times.min().unwrap()
}

/// The lock of a holder that dies with a journal behind it, until the next one has it and may write.
fn taking_over(open: &Open) -> Duration {
    let runtime = runtime();
    let mut locked = runtime.block_on(locked(open(2)));
    runtime.block_on(commit(&mut locked, 0));
    // As when its process ends: nothing is given back, and nothing is renewed any more.
    drop(locked);
    let began = Instant::now();
    let store = open(2);
    let lock = runtime.block_on(store.lock(&holder())).unwrap();
    let taken = began.elapsed();
    runtime.block_on(store.unlock(lock)).unwrap();
    taken
}

async fn locked(store: Arc<dyn Store>) -> Locked {
    let [provider, account, region] = ["memory", "1", "local"].map(str::to_owned);
    let place = SiteLocation { provider, account, region, runtime: Runtime::Process };
    let places = BTreeMap::from([(here(), place)]);
    let operator = Operator {
        by: "ada".to_owned(),
        reason: None,
        tool: "bench".to_owned(),
        host: "machine".to_owned(),
        pid: std::process::id(),
    };
    let state = State::load(store, &environment(), lineage()).await.unwrap();
    state.lock(&operator, &places, Arc::new(SystemClock)).await.unwrap()
}

async fn commit(locked: &mut Locked, number: usize) {
    let body = format!("the body of commit {number}: {}", "x".repeat(500));
    let write = |pen: &mut textnlp_orchestrator::state::JournalWriter<'_>| {
        let plan = pen.body(&body);
        pen.entry(Entry::Approved { purpose: Purpose::Up, plan, tracked: true });
    };
    locked.commit(&here(), write).await.unwrap();
}

fn bucket(address: &str) -> Arc<dyn ObjectStore> {
    let store = AmazonS3Builder::new()
        .with_endpoint(address)
        .with_bucket_name("states")
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_client_options(ClientOptions::new().with_allow_http(true));
    Arc::new(store.build().unwrap())
}

async fn make_bucket(address: &str) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(client.put(format!("{address}/states")).send().await.unwrap().status().is_success());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn environment() -> EnvironmentName {
    EnvironmentName::new("staging").unwrap()
}

fn here() -> SiteName {
    SiteName::new("here").unwrap()
}

fn lineage() -> Lineage {
    Lineage(Uuid::from_u128(7))
}

fn holder() -> Holder {
    let [by, host, tool] = ["grace", "machine", "bench"].map(str::to_owned);
    Holder { by, pid: std::process::id(), host, since: Timestamp::now(), tool }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
