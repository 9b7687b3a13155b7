//! The analysis of a release: its first pods are compared with the old ones. Pure: times are seconds since the start of
//! the rollout.

use std::collections::VecDeque;

use super::counters::Totals;
use super::{Canary, OperatorCommand};

/// Below this number of answers there is no verdict.
const ENOUGH: u64 = 20;
/// The p-value that proves a failure. It is small because a rollout has hundreds of observations.
const CHANCE: f64 = 1e-6;
/// The p-value that delays a promotion until there are more answers.
const SUSPICION: f64 = 0.01;
/// The window of recent answers in seconds: it shows a late failure however long all went well before.
const WINDOW: u64 = 60;
/// The number of restarts that fails the release.
const RESTARTS: u64 = 3;
/// The share of answers that may be slow: the definition of a 95th percentile.
const SLOW: f64 = 0.05;
/// The reason of a rollout that an operator aborted.
const ABORTED: &str = "requested by `rollout abort`";
/// The ratio to the old release that counts as worse. Both share clients and database, so common trouble is not the new
/// release's.
const WORSE: f64 = 1.5;

/// One observation.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CanaryObservation {
    /// Seconds since the start of the rollout.
    pub(super) at: u64,
    /// Pods of the new release: those that exist, those that the rollout intends, and those that are ready.
    pub(super) pods: u64,
    /// See `pods`.
    pub(super) ready: u64,
    /// The highest restart count of the new pods.
    pub(super) restarts: u64,
    /// New pods whose metrics were read.
    pub(super) measured: u64,
    /// Ready pods of the old release.
    pub(super) old_ready: u64,
    /// Requests of the new pods since the start of the rollout.
    pub(super) new: Totals,
    /// Requests of the old pods in the same time; without clients, their requests before that.
    pub(super) old: Totals,
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AnalysisResult {
    /// Wait, for this reason.
    Wait(String),
    /// Route all clients to the new pods.
    Switch(String),
    /// Replace all pods.
    Promote(String),
    /// Roll back.
    Revert(String),
}

/// The observations so far.
#[derive(Debug)]
pub(super) struct Analysis {
    canary: Canary,
    observations: VecDeque<CanaryObservation>,
    /// The time since which all new pods are ready.
    well_since: Option<u64>,
}

impl Analysis {
    pub(super) fn new(canary: Canary) -> Self {
        Self { canary, observations: VecDeque::new(), well_since: None }
    }

    /// Whether clients may be routed to a second set of pods that has none yet.
    pub(super) fn prepare(&self, observation: CanaryObservation, command: Option<OperatorCommand>) -> AnalysisResult {
        if command == Some(OperatorCommand::Abort) {
            return AnalysisResult::Revert(ABORTED.to_owned());
        }
        if observation.restarts >= RESTARTS {
            return AnalysisResult::Revert(format!("a new pod ended {} times", observation.restarts));
        }
        let ready = format!(
            "{} of {} new pods are ready, and no traffic is routed to them",
            observation.ready, observation.pods
        );
        if observation.at >= self.canary.deadline_seconds {
            return AnalysisResult::Revert(format!(
                "the deadline of {} s has passed: {ready}",
                self.canary.deadline_seconds
            ));
        }
        if observation.pods == 0 || observation.ready < observation.pods {
            return AnalysisResult::Wait(ready);
        }
        if observation.measured < observation.pods {
            return AnalysisResult::Wait(format!("{ready}: {} of them report metrics", observation.measured));
        }
        if command == Some(OperatorCommand::Pause) {
            return AnalysisResult::Wait(format!("held by `rollout pause`; {ready}"));
        }
        let led = self.canary.share.map_or("clients are".to_owned(), |share| format!("{share} % of the traffic is"));
        AnalysisResult::Switch(format!("all {} new pods are ready, and {led} routed to them", observation.pods))
    }

    /// The verdict after one more observation and an operator's command.
    pub(super) fn evaluate(
        &mut self,
        observation: CanaryObservation,
        command: Option<OperatorCommand>,
    ) -> AnalysisResult {
        let complete = observation.pods > 0 && observation.ready == observation.pods;
        self.well_since = complete.then(|| self.well_since.unwrap_or(observation.at));
        // One observation as old as the window is kept as the baseline.
        while self.observations.get(1).is_some_and(|next| next.at + WINDOW <= observation.at) {
            self.observations.pop_front();
        }
        let before =
            self.observations.front().map_or((Totals::default(), Totals::default()), |first| (first.new, first.old));
        self.observations.push_back(observation);
        if command == Some(OperatorCommand::Abort) {
            return AnalysisResult::Revert(ABORTED.to_owned());
        }
        // Old pods without clients show the usual rate, and nothing about the last minute.
        let old_lately = if self.canary.is_blue_green() { observation.old } else { observation.old.since(before.1) };
        let lately = (observation.new.since(before.0), old_lately);
        for (new, old) in [lately, (observation.new, observation.old)] {
            if let Some(why) = self.is_worse((new, old), CHANCE) {
                return AnalysisResult::Revert(why);
            }
        }
        if observation.restarts >= RESTARTS {
            return AnalysisResult::Revert(format!("a new pod ended {} times", observation.restarts));
        }
        // The new pods have all clients, and the old ones could take over.
        if self.canary.is_blue_green() && observation.ready * 2 < observation.old_ready {
            let (ready, pods, old) = (observation.ready, observation.pods, observation.old_ready);
            return AnalysisResult::Revert(format!(
                "{ready} of {pods} new pods are ready, and {old} of the old release"
            ));
        }
        // No other pod answers the new pods' share of clients. Before the controller's first report, no pod is known.
        let is_seen = observation.pods > 0 || observation.old_ready > 0;
        if self.canary.weighted && is_seen && observation.ready == 0 {
            return AnalysisResult::Revert(format!(
                "none of {} new pods is ready, and part of the traffic is routed to them",
                observation.pods
            ));
        }
        let answered = answered(observation);
        if observation.at >= self.canary.deadline_seconds {
            let why = format!("the deadline of {} s has passed: {answered}", self.canary.deadline_seconds);
            return AnalysisResult::Revert(why);
        }
        let Some(since) = self.well_since else {
            return AnalysisResult::Wait(format!("{} of {} new pods are ready", observation.ready, observation.pods));
        };
        if command == Some(OperatorCommand::Promote) {
            return AnalysisResult::Promote(format!("requested by `rollout promote`; {answered}"));
        }
        if command == Some(OperatorCommand::Pause) {
            return AnalysisResult::Wait(format!("held by `rollout pause`; {answered}"));
        }
        let (well, bake) = (observation.at.saturating_sub(since), self.canary.bake_seconds);
        if well < bake {
            return AnalysisResult::Wait(format!("healthy for {well} of {bake} s: {answered}"));
        }
        if observation.new.answers < ENOUGH {
            let why = format!("{ENOUGH} answers are needed for the analysis: {answered}");
            return AnalysisResult::Wait(why);
        }
        if let Some(why) = self.is_worse((observation.new, observation.old), SUSPICION) {
            return AnalysisResult::Wait(format!("failed analysis: {why}"));
        }
        AnalysisResult::Promote(format!("healthy for {well} s: {answered}"))
    }

    /// Why these answers exceed the limit and are worse than those of the old release.
    fn is_worse(&self, (new, old): (Totals, Totals), by: f64) -> Option<String> {
        if new.answers < ENOUGH {
            return None;
        }
        let worse = |new_part: u64, old_part: u64, limit: f64| {
            let of_old = old_part as f64 / old.answers.max(1) as f64;
            chance(new_part, new.answers, limit.max(WORSE * of_old)) < by
        };
        let of_old = |part: u64| format!("{part} of {} of the old release", old.answers);
        if worse(new.failures, old.failures, self.canary.error_rate) {
            let (failed, all) = (new.failures, new.answers);
            return Some(format!("{failed} of {all} answers of the new release failed, and {}", of_old(old.failures)));
        }
        worse(new.slow, old.slow, SLOW).then(|| {
            let (slow, all, limit) = (new.slow, new.answers, self.canary.slow_ms);
            format!("{slow} of {all} answers of the new release took longer than {limit} ms, and {}", of_old(old.slow))
        })
    }
}

/// The probability of at least this many bad answers at this rate: the upper tail of the binomial distribution.
fn chance(bad: u64, all: u64, share: f64) -> f64 {
    // The two counters are read one after the other while requests end.
    let bad = bad.min(all);
    if bad as f64 <= share * all as f64 || share >= 1.0 {
        return 1.0;
    }
    if share <= 0.0 {
        return 0.0;
    }
    // The first term is calculated by logarithms, each next one from the previous. Above the mean they decrease.
    let mut term = share.ln() * bad as f64 + (1.0 - share).ln() * (all - bad) as f64;
    term += (0..bad).map(|i| ((all - i) as f64 / (i + 1) as f64).ln()).sum::<f64>();
    let (mut term, mut sum) = (term.exp(), 0.0);
    for count in bad..=all {
        sum += term;
        term *= (all - count) as f64 / (count + 1) as f64 * share / (1.0 - share);
        if term < sum * 1e-12 {
            break;
        }
    }
    sum
}

fn answered(observation: CanaryObservation) -> String {
    format!(
        "{} of {} new pods ready; {} answers, {} failed, {} slow (old: {}, {}, {})",
        observation.ready,
        observation.pods,
        observation.new.answers,
        observation.new.failures,
        observation.new.slow,
        observation.old.answers,
        observation.old.failures,
        observation.old.slow
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge() -> Analysis {
        Analysis::new(Canary { share: Some(10), ..blue_green() })
    }

    fn blue_green() -> Canary {
        Canary {
            share: None,
            weighted: false,
            bake_seconds: 300,
            deadline_seconds: 1000,
            slow_ms: 500,
            error_rate: 0.01,
        }
    }

    fn totals(answers: u64, failures: u64, slow: u64) -> Totals {
        Totals { answers, failures, slow }
    }

    fn at(at: u64, new: Totals, old: Totals) -> CanaryObservation {
        CanaryObservation { at, pods: 1, ready: 1, measured: 1, new, old, ..CanaryObservation::default() }
    }

    fn reverts(analysis_result: &AnalysisResult, with: &str) -> bool {
        matches!(analysis_result, AnalysisResult::Revert(why) if why.contains(with))
    }

    #[test]
    fn release_is_promoted_only_after_being_healthy_long_enough() {
        let mut judge = judge();
        for second in (0..300).step_by(2) {
            let look = judge.evaluate(at(second, totals(second, 0, 0), totals(9 * second, 0, 0)), None);
            assert!(matches!(look, AnalysisResult::Wait(_)), "{second}: {look:?}");
        }
        assert!(matches!(
            judge.evaluate(at(300, totals(300, 0, 0), totals(2700, 0, 0)), None),
            AnalysisResult::Promote(_)
        ));
    }

    #[test]
    fn late_failures_are_detected_in_the_last_minute() {
        let mut judge = judge();
        for second in 0..250 {
            judge.evaluate(at(second, totals(100 * second, 0, 0), totals(100 * second, 0, 0)), None);
        }
        // Half of the answers fail from now on, which is little beside the 25,000 before.
        let bad = |second: u64| at(second, totals(25_000 + 2 * (second - 250), second - 250, 0), totals(25_000, 0, 0));
        let found = (250..400).find(|second| reverts(&judge.evaluate(bad(*second), None), "failed"));
        assert!(found.is_some_and(|second| second < 315), "{found:?}");
    }

    #[test]
    fn failures_shared_with_the_old_release_do_not_fail_the_new_one() {
        let look = at(60, totals(100, 40, 60), totals(900, 360, 540));
        assert!(matches!(judge().evaluate(look, None), AnalysisResult::Wait(_)));
        let slow = at(60, totals(100, 0, 30), totals(900, 0, 9));
        assert!(reverts(&judge().evaluate(slow, None), "longer than 500 ms"));
        let failed = at(60, totals(100, 12, 0), totals(900, 0, 0));
        assert!(reverts(&judge().evaluate(failed, None), "12 of 100 answers of the new release failed, and 0 of 900"));
        let by_chance = at(60, totals(100, 4, 12), totals(900, 0, 0));
        assert!(matches!(judge().evaluate(by_chance, None), AnalysisResult::Wait(_)), "it may be nothing");
        let few = at(60, totals(19, 19, 19), totals(900, 0, 0));
        assert!(matches!(judge().evaluate(few, None), AnalysisResult::Wait(_)), "too few to say anything");
    }

    #[test]
    fn failed_analysis_waits_for_more_responses() {
        let mut judge = judge();
        judge.evaluate(at(0, totals(0, 0, 0), totals(0, 0, 0)), None);
        let few = judge.evaluate(at(300, totals(20, 5, 0), totals(60, 0, 0)), None);
        assert!(matches!(few, AnalysisResult::Wait(why) if why.starts_with("failed analysis: 5 of 20")));
        let many = judge.evaluate(at(500, totals(2000, 5, 0), totals(6000, 0, 0)), None);
        assert!(matches!(many, AnalysisResult::Promote(_)), "{many:?}");
    }

    #[test]
    fn chance_matches_the_binomial_distribution() {
        let near = |found: f64, expect: f64| assert!((found / expect - 1.0).abs() < 1e-6, "{found} {expect}");
        near(chance(3, 20, 0.01), 1.003576168100e-03);
        near(chance(20, 20, 0.5), 0.5_f64.powi(20));
        near(chance(1, 1, 0.25), 0.25);
        assert_eq!((chance(0, 20, 0.01), chance(5, 20, 0.25), chance(1, 20, 0.0)), (1.0, 1.0, 0.0));
        assert!(chance(60_000, 1_000_000, 0.05) < 1e-300, "many are no trouble");
        near(chance(21, 20, 0.5), 0.5_f64.powi(20));
    }

    #[test]
    fn unmeasured_release_is_never_promoted() {
        let mut judge = judge();
        for second in 0..1000 {
            let look = judge.evaluate(at(second, totals(19, 0, 0), totals(0, 0, 0)), None);
            assert!(matches!(look, AnalysisResult::Wait(_)), "{second}: {look:?}");
        }
        assert!(reverts(&judge.evaluate(at(1000, totals(19, 0, 0), Totals::default()), None), "deadline of 1000 s"));
    }

    #[test]
    fn unready_pod_restarts_the_timer_and_repeated_restarts_revert() {
        let mut judge = judge();
        judge.evaluate(at(0, totals(50, 0, 0), Totals::default()), None);
        let absent = CanaryObservation { ready: 0, ..at(290, totals(50, 0, 0), Totals::default()) };
        assert_eq!(judge.evaluate(absent, None), AnalysisResult::Wait("0 of 1 new pods are ready".to_owned()));
        let back = judge.evaluate(at(310, totals(50, 0, 0), Totals::default()), None);
        assert!(matches!(back, AnalysisResult::Wait(why) if why.starts_with("healthy for 0 of 300 s")));
        let ends = CanaryObservation { ready: 0, restarts: 3, ..at(320, totals(0, 0, 0), Totals::default()) };
        assert!(reverts(&judge.evaluate(ends, None), "ended 3 times"));
    }

    #[test]
    fn operator_command_decides_within_the_deadline() {
        let well = at(10, totals(0, 0, 0), Totals::default());
        assert!(matches!(judge().evaluate(well, Some(OperatorCommand::Promote)), AnalysisResult::Promote(_)));
        assert!(reverts(&judge().evaluate(well, Some(OperatorCommand::Abort)), "rollout abort"));
        let none = CanaryObservation { ready: 0, ..well };
        assert!(
            matches!(judge().evaluate(none, Some(OperatorCommand::Promote)), AnalysisResult::Wait(_)),
            "what does not run yet"
        );
        let mut judge = judge();
        judge.evaluate(at(0, totals(50, 0, 0), Totals::default()), Some(OperatorCommand::Pause));
        let held = judge.evaluate(at(600, totals(50, 0, 0), Totals::default()), Some(OperatorCommand::Pause));
        assert!(matches!(held, AnalysisResult::Wait(why) if why.starts_with("held by")));
        assert!(reverts(
            &judge.evaluate(at(1000, totals(50, 0, 0), Totals::default()), Some(OperatorCommand::Pause)),
            "deadline"
        ));
    }

    #[test]
    fn traffic_switches_once_all_green_pods_are_ready_and_measured() {
        let judge = Analysis::new(blue_green());
        let look = |at: u64, ready: u64, measured: u64| CanaryObservation {
            at,
            pods: 3,
            ready,
            measured,
            ..CanaryObservation::default()
        };
        let waits = |look: CanaryObservation, command: Option<OperatorCommand>, with: &str| {
            let result = judge.prepare(look, command);
            assert!(matches!(&result, AnalysisResult::Wait(why) if why.contains(with)), "{with}: {result:?}");
        };
        waits(CanaryObservation::default(), None, "0 of 0 new pods are ready, and no traffic is routed to them");
        waits(look(10, 2, 2), None, "2 of 3");
        waits(look(10, 2, 2), Some(OperatorCommand::Promote), "2 of 3");
        waits(look(10, 3, 2), None, "2 of them report metrics");
        waits(look(10, 3, 3), Some(OperatorCommand::Pause), "held by `rollout pause`");
        for command in [None, Some(OperatorCommand::Resume), Some(OperatorCommand::Promote)] {
            assert!(matches!(judge.prepare(look(10, 3, 3), command), AnalysisResult::Switch(_)));
        }
        assert!(reverts(&judge.prepare(look(10, 3, 3), Some(OperatorCommand::Abort)), "rollout abort"));
        assert!(reverts(&judge.prepare(look(1000, 3, 3), None), "deadline of 1000 s has passed: 3 of 3"));
        assert!(reverts(&judge.prepare(CanaryObservation { restarts: 3, ..look(10, 2, 2) }, None), "ended 3 times"));
    }

    #[test]
    fn release_with_all_traffic_is_compared_with_the_previous_baseline() {
        // Two in a hundred failed before, so three now are no signal, also within the last minute.
        let usual = totals(1000, 20, 0);
        let mut judge = Analysis::new(blue_green());
        for second in 0..300 {
            let result = judge.evaluate(at(second, totals(100 * second, 3 * second, 0), usual), None);
            assert!(matches!(result, AnalysisResult::Wait(_)), "{second}: {result:?}");
        }
        let bad = at(301, totals(30_100, 1100, 0), usual);
        assert!(reverts(&judge.evaluate(bad, None), "failed, and 20 of 1000 of the old release"));
        let failing = at(2, totals(20, 20, 0), totals(10, 0, 0));
        assert!(reverts(&Analysis::new(blue_green()).evaluate(failing, None), "20 of 20 answers"), "at the first look");
    }

    #[test]
    fn canary_weight_without_ready_new_pods_is_reverted() {
        let shares = || Analysis::new(Canary { weighted: true, share: Some(10), ..blue_green() });
        let look = |pods: u64, ready: u64, old_ready: u64| CanaryObservation {
            at: 10,
            pods,
            ready,
            old_ready,
            ..CanaryObservation::default()
        };
        for gone in [look(1, 0, 3), look(0, 0, 3), look(1, 0, 0)] {
            for command in [None, Some(OperatorCommand::Promote), Some(OperatorCommand::Pause)] {
                assert!(reverts(&shares().evaluate(gone, command), "none of"), "{gone:?}");
            }
        }
        assert!(matches!(shares().evaluate(look(2, 1, 3), None), AnalysisResult::Wait(_)), "one still answers them");
        assert!(
            matches!(shares().evaluate(CanaryObservation::default(), None), AnalysisResult::Wait(_)),
            "nobody has looked yet"
        );
        // The old pods answer in its place where the pods' share is the clients' share.
        assert!(matches!(judge().evaluate(look(1, 0, 3), None), AnalysisResult::Wait(_)));
    }

    #[test]
    fn traffic_returns_to_ready_old_pods_when_the_new_ones_are_not() {
        let look = |ready: u64, old_ready: u64| CanaryObservation {
            pods: 3,
            ready,
            old_ready,
            ..at(20, totals(9, 0, 0), totals(90, 0, 0))
        };
        let result = |ready, old| Analysis::new(blue_green()).evaluate(look(ready, old), None);
        assert!(reverts(&result(0, 3), "0 of 3 new pods are ready, and 3 of the old release"));
        assert!(reverts(&result(1, 3), "1 of 3"));
        // One pod fails, or a node takes equally many pods of both sets.
        for (ready, old) in [(2, 3), (1, 1), (0, 0)] {
            assert!(matches!(result(ready, old), AnalysisResult::Wait(_)), "{ready} {old}");
        }
        assert!(matches!(self::judge().evaluate(look(0, 3), None), AnalysisResult::Wait(_)), "a few have few clients");
    }
}
