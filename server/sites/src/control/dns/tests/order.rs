use super::super::failed::Failed;
use super::super::message::Wanted;
use super::super::records::{Done, Job, State};

fn set(addresses: &str) -> Option<Wanted> {
    Wanted::new(addresses.split_whitespace().map(|address| address.parse().unwrap()).collect())
}

fn update(addresses: &str) -> Option<Job> {
    set(addresses).map(Job::Update)
}

fn check(addresses: &str) -> Option<Job> {
    set(addresses).map(Job::Check)
}

fn silent() -> Result<(), Failed> {
    Err(Failed::Silent("x".to_owned()))
}

/// Does what is due at `now` with that outcome.
fn does(state: &mut State, now: u64, acknowledged: bool, outcome: Result<(), Failed>) {
    let job = state.due(now).expect("something is due");
    state.done(job, Done { acknowledged, outcome }, now, 1_000_000 + now as i64);
}

#[test]
fn dns_change_is_sent_at_once_and_verified_every_minute() {
    let mut state = State::default();
    assert_eq!(state.due(0), None);
    assert!(state.want(set("10.0.0.1")));
    assert_eq!(state.due(0), update("10.0.0.1"));
    does(&mut state, 0, true, Ok(()));
    assert!(!state.want(set("10.0.0.1")));
    assert_eq!((state.due(59_999), state.due(60_000)), (None, check("10.0.0.1")));
    does(&mut state, 60_000, false, Ok(()));
    assert!(state.want(set("10.0.0.2")));
    assert_eq!(state.due(60_001), update("10.0.0.2"));
    assert!(!state.is_right());
}

#[test]
fn empty_address_set_changes_nothing() {
    let mut state = State::default();
    assert!(!state.want(set("")));
    assert_eq!(state.due(0), None);
    state.want(set("10.0.0.1"));
    does(&mut state, 0, true, Ok(()));
    assert!(!state.want(set("")));
    assert_eq!(state.due(1), None);
    assert_eq!(state.due(60_000), check("10.0.0.1"));
}

#[test]
fn failed_dns_updates_back_off_and_a_change_is_sent_at_once() {
    let mut state = State::default();
    state.want(set("10.0.0.1"));
    let (mut now, mut waits) = (0, Vec::new());
    for _ in 0..9 {
        does(&mut state, now, false, silent());
        let wait = (0..=40_000).find(|wait| state.due(now + wait).is_some()).unwrap();
        waits.push(wait);
        now += wait;
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    assert_eq!((state.failures(), state.error().unwrap().code()), (9, "unanswered"));
    does(&mut state, now, false, silent());
    assert_eq!(state.due(now + 1), None);
    assert!(state.want(set("10.0.0.2")));
    assert_eq!(state.due(now + 1), update("10.0.0.2"));
    does(&mut state, now + 1, true, Ok(()));
    assert!(state.error().is_none() && state.is_right());
    let (acknowledged, at_ms) = state.acknowledged().unwrap();
    assert_eq!((acknowledged, at_ms), (set("10.0.0.2").unwrap().addresses(), 1_000_001 + now as i64));
}

#[test]
fn acknowledged_but_unverified_dns_update_is_verified_again() {
    let mut state = State::default();
    state.want(set("10.0.0.1"));
    does(&mut state, 0, true, silent());
    assert!(state.is_right() && state.error().is_some());
    assert_eq!((state.due(499), state.due(500)), (None, check("10.0.0.1")));
}

#[test]
fn externally_changed_records_are_set_again() {
    let mut state = State::default();
    state.want(set("10.0.0.1"));
    does(&mut state, 0, true, Ok(()));
    does(&mut state, 60_000, false, Err(Failed::Different { there: [].into() }));
    assert!(!state.is_right());
    assert_eq!(state.due(60_500), update("10.0.0.1"));
    // An alias stays: the tries become slow, although each is acknowledged.
    let mut now = 60_500;
    for _ in 0..8 {
        does(&mut state, now, true, Err(Failed::Alias));
        now += 30_000;
    }
    assert_eq!((state.due(now - 1), state.due(now)), (None, update("10.0.0.1")));
}
