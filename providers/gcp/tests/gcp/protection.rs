//! Data that becomes protected.

use textnlp_sim::gcp::Options;

use crate::programs::engine::{Stack, UP};
use crate::programs::shape::Shape;
use crate::random::Played;
use crate::story::Simulated;

#[test]
fn key_that_a_database_never_gets_is_refused_before_the_first_change() {
    let cloud = Played::with(Options::zero_latency(), None);
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0031);
    let of = |protect_data: bool| {
        let mut shape = Shape::full().without_registry();
        shape.protect_data = protect_data;
        cloud.wanted(&process, &shape, "staging")
    };
    stack.reach(UP, &of(false));
    let (plan, _) = stack.look(UP, &of(true));
    let is_refused = |cause: &str| cause.contains("`key` would have to change: a server keeps its key");
    assert!(plan.refusals.iter().any(|one| is_refused(&one.cause)), "{:?}", plan.refusals);
}
