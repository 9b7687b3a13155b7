//! Every target on its seeds, its kept inputs, and mutations of both. `TEXTNLP_TESTS_SEED` repeats a run; `TEXTNLP_FUZZ_RUNS` sets how
//! many mutations.
#![allow(clippy::unwrap_used)]

#[path = "../../src/seeds.rs"]
#[allow(dead_code, unreachable_pub)]
mod seeds;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use textnlp_fuzz::mutation::mutate;
use textnlp_fuzz::{TARGETS, corpus, memory_limit};
use textnlp_tests::Dice;

/// Counts what the process holds and the most it held. Tests of this program therefore run in one.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs one input; its bytes are kept when it fails.
fn try_input(target: &textnlp_fuzz::Target, bytes: &[u8], origin: &str) {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let held = MOST.load(Ordering::Relaxed) - before;
    let limit = memory_limit(bytes.len());
    if outcome.is_err() || held > limit {
        // It outlives the test: the runner gives each program a `/tmp` that ends with it.
        let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "textnlp-fuzz-{}-{}",
            target.name,
            std::process::id()
        ));
        std::fs::write(&kept, bytes).unwrap();
        panic!(
            "{} fails on {origin}: {held} bytes held, {limit} allowed; the input is in {}",
            target.name,
            kept.display()
        );
    }
}

#[test]
fn parsers_of_untrusted_input_never_panic_and_hold_bounded_memory() {
    let seed = seeds::first_seed();
    let runs = seeds::number("TEXTNLP_FUZZ_RUNS");
    let only = std::env::var("TEXTNLP_FUZZ_TARGET").ok();
    for target in TARGETS.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)) {
        let mut random = Dice(seed);
        let inputs = [(target.seeds)(), corpus(target)].concat();
        // Mutations of inputs that are refused at once find nothing. This also builds what lives as long as the process.
        let valid = (target.seeds)().iter().filter(|seed| (target.run)(seed)).count();
        assert!(valid > 0, "{}: no seed is valid", target.name);
        for (n, input) in inputs.iter().enumerate() {
            try_input(target, input, &format!("kept input {n}"));
        }
        for n in 0..runs.unwrap_or(u64::from(target.runs)) {
            let mut bytes = inputs[random.index(inputs.len())].clone();
            mutate(&mut bytes, &inputs, target.most_bytes, &mut random);
            try_input(target, &bytes, &format!("mutation {n} of seed {seed}"));
        }
    }
}
