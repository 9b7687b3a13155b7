//! Loads at a fixed rate in virtual time: how a service stalls, queues and fails is what a test says.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use textnlp_orchestrator::clock::{Clock, VirtualClock};
use textnlp_orchestrator::load::{
    self, Arrivals, Load, LoadRequest, LoadResponse, Rate, RateResult, RateSecond, RequestFailure, Wire, run_rate,
};
use textnlp_orchestrator::report::Report;
use tokio_util::sync::CancellationToken;

/// How long a request that is sent at this time takes, and how it fails.
type Answer = (Duration, Option<RequestFailure>);

struct Service {
    clock: VirtualClock,
    answer: Box<dyn Fn(Duration) -> Answer + Send + Sync>,
}

impl Service {
    fn new(answer: impl Fn(Duration) -> Answer + Send + Sync + 'static) -> Self {
        let clock = VirtualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
        Self { clock, answer: Box::new(answer) }
    }
}

#[async_trait]
impl Wire for Service {
    async fn send(&self, _request: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let (time, failure) = (self.answer)(self.clock.steady());
        self.clock.sleep(time).await;
        let body = br#"{"text": "a b", "usage": {"completion_tokens": 2}}"#.to_vec();
        failure.map_or(Ok(LoadResponse { status: 200, body }), Err)
    }

    fn verified(&self) -> bool {
        true
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn rate(per_second: f64) -> Rate {
    Rate {
        per_second,
        arrivals: Arrivals::Uniform,
        ramp: Duration::ZERO,
        hold: Duration::from_secs(30),
        in_flight: 10_000,
        mix: "1:generate:2".parse().unwrap(),
        timeout: Duration::from_secs(60),
        seed: 1,
    }
}

fn measure(rate: &Rate, answer: impl Fn(Duration) -> Answer + Send + Sync + 'static) -> RateResult {
    let (service, stop) = (Service::new(answer), CancellationToken::new());
    service.clock.run(run_rate(&service, None, rate, &service.clock, &stop, &mut |_| {})).unwrap()
}

/// Answers in 10 ms, except for five seconds in which nothing is answered.
fn stalls(now: Duration) -> Answer {
    let (from, until) = (Duration::from_secs(10), Duration::from_secs(15));
    let stall = if (from..until).contains(&now) { until - now } else { Duration::ZERO };
    (stall + ms(10), None)
}

#[test]
fn stall_is_measured_at_a_fixed_rate_and_hardly_by_users_who_wait() {
    let service = Service::new(stalls);
    let users = Load {
        users: 10,
        ramp: 1000,
        think_min: Duration::ZERO,
        think_max: Duration::ZERO,
        hold: Duration::from_secs(30),
        tokens_min: 2,
        tokens_max: 2,
        validate_share: 0.0,
        model: None,
        embeds: false,
        mix: None,
        timeout: Duration::from_secs(60),
        seed: 1,
    };
    let stop = CancellationToken::new();
    let waiting = service.clock.run(load::run(&service, None, &users, &service.clock, &stop, &mut |_| {})).unwrap();
    assert!(waiting.generate.p99_ms < 20.0 && waiting.generate.max_ms > 4900.0, "{:?}", waiting.generate);

    let fixed = measure(&rate(100.0), stalls);
    assert_eq!((fixed.due, fixed.sent(), fixed.requests, fixed.errors), (3000, 3000, 3000, 0));
    // 500 of the 3,000 requests were due in the stall; the first of them waits for all of it.
    let found = &fixed.latency;
    assert!((10.0..10.1).contains(&found.p50_ms), "{found:?}");
    assert!((1990.0..2030.0).contains(&found.p90_ms), "{found:?}");
    assert!((4680.0..4740.0).contains(&found.p99_ms), "{found:?}");
    assert!((5009.0..5011.0).contains(&found.max_ms), "{found:?}");
    assert!((495..=505).contains(&fixed.in_flight_max), "{}", fixed.in_flight_max);
    assert_eq!(fixed.problems(None), [""; 0]);
    let slow = fixed.problems(Some(500.0));
    assert!(slow.len() == 1 && slow[0].ends_with("is above 500 ms"), "{slow:?}");
}

#[test]
fn requests_beyond_the_limit_in_flight_are_dropped_and_counted() {
    let found = measure(&Rate { in_flight: 100, ..rate(100.0) }, stalls);
    assert_eq!((found.due, found.in_flight_max), (3000, 100));
    assert!((395..=405).contains(&found.dropped), "{}", found.dropped);
    assert_eq!(found.requests, found.sent());
    let problem = format!("{} of 3000 requests were dropped at 100 in flight", found.dropped);
    assert_eq!(found.problems(None), [problem]);
    assert_eq!(found.series.iter().map(|second| u64::from(second.dropped)).sum::<u64>(), found.dropped);
}

#[test]
fn growing_queue_is_not_a_sustained_rate() {
    // One request after the other, each in 20 ms.
    let queue = || {
        let free = Mutex::new(Duration::ZERO);
        move |now: Duration| -> Answer {
            let mut free = free.lock().unwrap();
            *free = now.max(*free) + ms(20);
            (*free - now, None)
        }
    };
    assert_eq!(measure(&rate(40.0), queue()).problems(None), [""; 0]);
    let found = measure(&rate(100.0), queue());
    assert_eq!((found.dropped, found.requests), (0, 3000));
    assert!((49.0..51.0).contains(&found.answered_per_second), "{}", found.answered_per_second);
    let problems = found.problems(None);
    assert!(problems.len() == 1 && problems[0].starts_with("requests in flight grew from 7"), "{problems:?}");
}

#[test]
fn timeouts_count_as_latency_and_other_failures_do_not() {
    let sent = AtomicU64::new(0);
    let found = measure(&rate(100.0), move |_| match sent.fetch_add(1, Ordering::SeqCst) % 10 {
        0 => (ms(2000), Some(RequestFailure::Timeout)),
        1 => (ms(1), Some(RequestFailure::Broken(String::new()))),
        _ => (ms(10), None),
    });
    assert_eq!((found.requests, found.errors, found.latency.count), (3000, 600, 2700));
    let kinds: Vec<(&str, u64)> = found.errors_by_kind.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(kinds, [("broken off", 300), ("timeout", 300)]);
    assert!(found.latency.p50_ms < 11.0 && found.latency.p90_ms >= 2000.0, "{:?}", found.latency);
    assert_eq!((found.kinds.len(), found.kinds[0].errors), (1, 600));
    assert_eq!(found.problems(None), ["600 of 3000 requests failed"]);
}

#[test]
fn rate_grows_in_the_ramp_up_and_random_arrivals_follow_the_seed() {
    let quick = |_: Duration| -> Answer { (ms(10), None) };
    let ramped = Rate { ramp: Duration::from_secs(10), hold: Duration::from_secs(10), ..rate(100.0) };
    let found = measure(&ramped, quick);
    assert_eq!((found.due, found.latency.count), (1500, 1000));
    let due: Vec<u32> = [0, 9, 15].map(|second: usize| found.series[second].due).to_vec();
    assert_eq!(due, [5, 95, 100]);
    assert_eq!((found.sent_per_second, found.seconds < 21.0), (100.0, true));

    let random = |seed: u64| measure(&Rate { arrivals: Arrivals::Poisson, seed, ..rate(100.0) }, quick);
    let found = random(1);
    assert!((2800..3200).contains(&found.due), "{}", found.due);
    assert!(found.problems(None).is_empty() && found.in_flight_max > 2, "{:?}", found.problems(None));
    assert_eq!(found, random(1));
    assert_ne!(found.series, random(2).series);
}

#[test]
fn stopped_run_reports_what_was_in_flight() {
    let (service, stop) = (Service::new(|_| (Duration::from_secs(50), None)), CancellationToken::new());
    let mut seconds = |second: &RateSecond| {
        if second.second == 4 {
            stop.cancel();
        }
    };
    let rate = rate(10.0);
    let found = service.clock.run(run_rate(&service, None, &rate, &service.clock, &stop, &mut seconds)).unwrap();
    assert!(found.stopped && found.seconds < 6.0, "{}", found.seconds);
    assert_eq!((found.requests, found.unfinished), (0, found.sent()));
    assert!(found.unfinished >= 49, "{}", found.unfinished);
    assert_eq!(found.problems(None), ["the run was stopped before its end"]);
}

#[test]
fn report_of_a_fixed_rate_has_plots_and_tables() {
    let found = measure(&Rate { mix: "3:generate:50,1:validate".parse().unwrap(), ..rate(100.0) }, stalls);
    let report = Report { title: "Load".to_owned(), rate: Some(found), ..Report::default() };
    let page = report.to_html();
    assert_eq!(page.matches("<svg").count(), 4);
    for text in ["3:generate:50", "p99.9", "Latency begins when a request was due"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("<script") && !page.contains("NaN"));
    let tables = report.to_tables();
    assert!(tables.tiles.iter().any(|(name, value)| name == "dropped" && value == "0"), "{:?}", tables.tiles);
    assert_eq!(tables.tables[0].rows.len(), 2);
    assert_eq!(report.to_json()["rate"]["rate"]["mix"], "3:generate:50,1:validate");
}
