//! Seeds of randomised tests: each commit starts with different ones.

use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

/// The first seed of this test program: `TEXTNLP_TESTS_SEED`, else a number derived from the commit, else 0. It is
/// reported once, bypassing the output capture, so that every log contains it.
pub fn first_seed() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let (seed, source) = match number("TEXTNLP_TESTS_SEED") {
            Some(seed) => (seed, "TEXTNLP_TESTS_SEED"),
            None => commit().map_or((0, "no commit"), |seed| (seed, "commit")),
        };
        let line = format!("{}: first seed {seed} (from {source})", env!("CARGO_CRATE_NAME"));
        // A failed write to the log must not fail the test.
        let _ = writeln!(std::io::stderr(), "{line}");
        seed
    })
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

/// The first 32 bits of the commit id.
fn commit() -> Option<u64> {
    let git = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]).output().ok()?;
    let id = String::from_utf8(git.stdout).ok()?;
    u64::from_str_radix(id.get(..8)?, 16).ok()
}
