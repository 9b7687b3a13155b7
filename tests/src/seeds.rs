//! Seeds of randomised tests: the same in every run, unless a run is told to try others (`bash tests/run --seed N|new`). A change is
//! then never red because of what another seed finds. A seed that found something is kept in a list in its test.

use std::io::Write;
use std::sync::OnceLock;

/// The first seed of runs that are not told another one.
const USUAL: u64 = 3_353_857_402;

/// The first seed of this test program: `TEXTNLP_TESTS_SEED`, else [`USUAL`]. It is reported once, bypassing the
/// output capture, so that every log contains it.
pub fn first_seed() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let seed = number("TEXTNLP_TESTS_SEED").unwrap_or(USUAL);
        // A failed write to the log must not fail the test.
        let _ = writeln!(std::io::stderr(), "TEXTNLP_TESTS_SEED={seed}");
        seed
    })
}

/// The seeds that found a defect once, then that of this run.
pub fn kept_and_first(kept: &[u64]) -> impl Iterator<Item = u64> {
    kept.iter().copied().chain([first_seed()])
}

/// A variable that must be a number if it is set.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not `{text}`")))
}

/// The command that repeats the current test with one seed; `count` is the variable that limits the number of seeds.
pub fn repeat(seed: u64, count: &str) -> String {
    let (package, program) = (env!("CARGO_PKG_NAME"), env!("CARGO_CRATE_NAME"));
    // libtest names a test's thread after the test, unless it runs tests sequentially.
    let test = std::thread::current().name().filter(|name| *name != "main").unwrap_or_default().to_owned();
    format!("TEXTNLP_TESTS_SEED={seed} {count}=1 cargo test --release -p {package} --test {program} {test}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_seeds_come_before_that_of_the_run() {
        assert_eq!(kept_and_first(&[7, 8]).collect::<Vec<_>>(), [7, 8, first_seed()]);
    }
}
