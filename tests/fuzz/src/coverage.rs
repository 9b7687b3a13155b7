//! A fuzz target guided by coverage: the variable `TEXTNLP_FUZZ_TARGET` names it. Started by the script `run`.
#![no_main]
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use textnlp_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TEXTNLP_FUZZ_TARGET").expect("TEXTNLP_FUZZ_TARGET names a target");
    TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
});

libfuzzer_sys::fuzz_target!(
    init: {
        // The engine reads its inputs after this.
        if let Some(folder) = std::env::var_os("TEXTNLP_FUZZ_SEEDS") {
            for (n, seed) in (TARGET.seeds)().iter().enumerate() {
                std::fs::write(std::path::Path::new(&folder).join(format!("seed-{n}")), seed).unwrap();
            }
        }
    },
    |bytes: &[u8]| {
        (TARGET.run)(&bytes[..bytes.len().min(TARGET.most_bytes)]);
    }
);
