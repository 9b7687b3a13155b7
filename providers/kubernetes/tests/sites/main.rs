//! What sites are lowered to, held against the API server's own judgement, exported, watched and rolled out.
#![allow(clippy::unwrap_used, clippy::print_stderr, unreachable_pub, missing_docs)]

#[path = "../../../../tests/src/checkov.rs"]
mod checkov;
#[path = "../cut/mod.rs"]
#[allow(dead_code)]
mod cut;
mod export;
mod lower;
mod monitoring;
#[path = "../parts/mod.rs"]
#[allow(dead_code)]
mod parts;
mod rollout;
#[path = "../../../../tests/src/seeds.rs"]
#[allow(dead_code)]
mod seeds;
#[path = "../world/mod.rs"]
#[allow(dead_code)]
mod world;
