//! What the engine costs by size: planning, a first `up`, a second one, opening the state, looking at everything; Terraform beside
//! it in the same run where it is installed.
//!
//! `cargo bench -p textnlp-orchestrator --bench engine -- [--sizes 100,1000] [--no-peer] [--chart FILE.svg]`

#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, dead_code)]

mod chart;
mod peer;
mod slow;
#[path = "../../tests/pure/world.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan;
use textnlp_orchestrator::run::{Run, RunOptions, RunOutcome, run_phases};
use textnlp_orchestrator::state::{Folder, State};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Lineage, Wanted};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use world::{UP, World, environment, output, want};

/// What was measured at one size. Times in seconds, memory in MB.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Resources; there are three times as many edges.
    pub size: usize,
    /// Planning and auditing the creation of everything: the 95th percentile.
    pub plan: f64,
    /// The most memory of the process while it did.
    pub plan_mb: f64,
    /// Planning and auditing when everything is there: the 95th percentile.
    pub plan_same: f64,
    /// The first `up` on a local disk, every begin and end durable, a cloud that answers at once.
    pub first_up: f64,
    /// The second `up`, nothing to do.
    pub second_up: f64,
    /// Opening the state.
    pub open: f64,
    /// Looking at everything by lists of 100 with 50 ms a call and 20 calls a second, in virtual time.
    pub refresh: f64,
    /// Terraform's `plan` of as many `terraform_data`, its `apply`, and its `plan` when nothing is to be done.
    pub peer: Option<peer::Figures>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| arguments.iter().position(|a| a == flag).and_then(|at| arguments.get(at + 1));
    let sizes = value("--sizes").map_or("100,300,1000,3000,10000,30000", String::as_str);
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    let with_peer = !arguments.iter().any(|argument| argument == "--no-peer");
    let mut rows: Vec<Row> = Vec::new();
    println!("{}", Row::heads());
    for size in sizes {
        let mut row = measure(size);
        let gave_up = rows.iter().filter_map(|row| row.peer.as_ref()).any(peer::Figures::gave_up);
        row.peer = (with_peer && !gave_up).then(|| peer::measure(size)).flatten();
        println!("{}", row.line());
        rows.push(row);
    }
    if let Some(file) = value("--chart") {
        std::fs::write(file, chart::draw(&rows)).unwrap();
    }
}

impl Row {
    fn heads() -> String {
        format!(
            "{:>6} {:>9} {:>7} {:>10} {:>9} {:>9} {:>8} {:>9}   {}",
            "size",
            "plan ms",
            "MB",
            "no-op ms",
            "up s",
            "again s",
            "open ms",
            "refresh s",
            "terraform: plan s, apply s, no-op s, MB"
        )
    }

    fn line(&self) -> String {
        let Self { size, plan, plan_mb, plan_same, first_up, second_up, open, refresh, peer } = self;
        let peer = peer.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        format!(
            "{size:>6} {:>9.1} {plan_mb:>7.0} {:>10.1} {first_up:>9.2} {second_up:>9.2} {:>8.1} {refresh:>9.1}   {peer}",
            plan * 1e3,
            plan_same * 1e3,
            open * 1e3
        )
    }
}

/// Every resource needs three before it; every tenth begins anew, so that there is width as well as depth.
fn resources(size: usize) -> Vec<Wanted> {
    let one = |number: usize| {
        let mut spec = json!({"number": number, "names": ["a", "b"], "size": {"cores": 2, "memory": "4 GiB"}});
        if !number.is_multiple_of(10) {
            for back in [1, 7, 100] {
                let before = number.saturating_sub(back);
                spec[format!("uses-{back}")] = output(&format!("r{before}"), "id");
            }
        }
        want(&format!("r{number}"), "vault", spec)
    };
    (0..size).map(one).collect()
}

fn measure(size: usize) -> Row {
    let wanted = resources(size);
    let rounds = (40_000 / size).clamp(5, 50);
    let world = World::new();
    let (_, facts) = world.plan(UP, &wanted).unwrap();
    forget_peak();
    let plan = percentile(rounds, || drop(plan::audit(plan::plan(&facts).unwrap(), &facts).unwrap()));
    let plan_mb = peak();
    drop(facts);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().join("state")).unwrap();
    let up = || runtime.block_on(up(&world, &path, &wanted));
    let (first_up, arrival) = timed(up);
    assert_eq!(arrival.outcome.done.len(), size);
    let (second_up, arrival) = timed(up);
    assert!(arrival.outcome.done.is_empty());
    let opened = || {
        let environment = environment();
        let state = State::load(Arc::new(Folder::at(path.clone())), &environment, Lineage(Uuid::nil()));
        runtime.block_on(state).unwrap()
    };
    let open = percentile(5, || drop(opened()));
    let (refresh, plan_same) = slow::refresh(&world, &path, &wanted, rounds);
    Row { size, plan, plan_mb, plan_same, first_up, second_up, open, refresh, peer: None }
}

async fn up(world: &World, path: &Utf8PathBuf, wanted: &[Wanted]) -> RunOutcome {
    let sites = world.site(wanted, &Fuse::default());
    let environment = environment();
    let road = world.road(Arc::new(Folder::at(path.clone())), &sites, &environment, &DiscardEvents);
    let road = Run { clock: Arc::new(SystemClock), ..road };
    let arrival = run_phases(&road, RunOptions { ..UP }, &mut |_, _| true, &CancellationToken::new()).await.unwrap();
    assert!(arrival.is_complete(), "{:?}", arrival.outcome.failed);
    arrival
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let began = Instant::now();
    let result = work();
    (began.elapsed().as_secs_f64(), result)
}

/// The 95th percentile of this many runs, in seconds.
fn percentile(rounds: usize, mut work: impl FnMut()) -> f64 {
    let mut all: Vec<Duration> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    all.sort();
    all[(rounds * 95).div_ceil(100) - 1].as_secs_f64()
}

/// From now on the peak is counted anew.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// The most memory of this process since [`forget_peak`], in MB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
