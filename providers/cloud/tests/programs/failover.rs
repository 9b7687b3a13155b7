//! Failovers of a managed database to its standby.

use textnlp_orchestrator::plan::Node;
use textnlp_orchestrator::standby::StandbyError;
use textnlp_provider::Wanted;
use textnlp_provider::memory::Fuse;
use textnlp_sim::{Disruption, Rule};

use super::engine::{Stack, UP};

/// The most times that a failover is killed: one makes fewer calls and writes.
const MAX_KILLS: u64 = 200;

/// Only a database with a standby is failed over, once for each command, and the next `up` changes nothing. `failovers` counts those that
/// the cloud accepted.
pub(crate) fn needs_a_standby(stack: &Stack<'_>, [with, without]: [&[Wanted]; 2], failovers: impl Fn() -> usize) {
    let fail_over = || stack.fail_over(&Fuse::default()).unwrap();
    stack.reach(UP, without);
    let refused = fail_over().unwrap_err();
    let is_told = matches!(&refused, StandbyError::NotReady { why, .. } if why.contains("no standby"));
    assert!(is_told && failovers() == 0, "{refused:?}");

    stack.reach(UP, with);
    let [first, second] = [1, 2].map(|count| {
        let after = fail_over().unwrap();
        assert_eq!((after.ready, after.wanted, failovers(), stack.open()), (2, 2, count, 0), "{after:?}");
        after.primary
    });
    assert_ne!(first, second, "the primary moves to the zone of the standby");
    let (plan, _) = stack.look(UP, with);
    let is_note = plan.steps.iter().all(|step| matches!(step.node, Node::Note(_)));
    assert!(is_note && plan.blocked.is_empty() && plan.refusals.is_empty(), "{plan:#?}");
}

/// One whose call was not made yet, or was refused, does not count as made. `disrupt` adds a fault or removes all; `read` is
/// the operation of `service` that reads the database, and `denied` refuses the call.
pub(crate) fn counts_from_its_call(
    stack: &Stack<'_>,
    wanted: &[Wanted],
    (service, read): (&str, &str),
    denied: Rule,
    disrupt: impl Fn(Option<Rule>),
    failovers: impl Fn() -> usize,
) {
    stack.reach(UP, wanted);
    let fail_over = |rule| {
        disrupt(Some(rule));
        let done = stack.fail_over(&Fuse::default()).unwrap();
        disrupt(None);
        assert_eq!(stack.open(), 0, "{done:?}");
        done
    };
    let refused = fail_over(denied).unwrap_err();
    assert!(matches!(&refused, StandbyError::NotMade { .. }) && failovers() == 0, "{refused:?}");
    // The first read finds it; the client of a cloud repeats a read three times.
    let lost = Rule { after: 1, times: 4, ..Rule::always(service, read, Disruption::Unavailable) };
    assert_eq!((fail_over(lost).unwrap().ready, failovers()), (2, 1));
}

/// One that is killed anywhere is not repeated: the next `up` reads what became of it.
pub(crate) fn is_not_repeated(stack: &Stack<'_>, wanted: &[Wanted], failovers: impl Fn() -> usize) {
    stack.reach(UP, wanted);
    let (mut kills, mut made) = (0, 0);
    loop {
        let done = stack.fail_over(&Fuse::blows_at(kills));
        let made_now = failovers();
        assert!(made_now <= made + 1, "it was made {} times", made_now - made);
        made = made_now;
        if let Some(done) = done {
            assert_eq!(done.unwrap().ready, 2);
            break;
        }
        if stack.open() > 0 {
            let busy = stack.fail_over(&Fuse::default()).unwrap().unwrap_err();
            assert!(matches!(&busy, StandbyError::Busy { .. }), "{busy:?}");
            stack.go(UP, wanted, &Fuse::default()).unwrap().unwrap();
        }
        assert_eq!((failovers(), stack.open()), (made, 0));
        kills += 1;
        assert!(kills < MAX_KILLS, "it never ends");
    }
    assert!(kills > 0 && made > 1, "{kills} kills, {made} failovers");
}
