//! The service as its clients see it: readiness, latency, error rate, refused credentials, and unusual usage.
//!
//! The rules are those of `templates/kubernetes/prometheus-rule.yaml`, evaluated on the metrics of this site's replicas.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use textnlp_keys::SiteFolder;
use textnlp_provider::component::ServiceLimits;
use textnlp_provider::exposition;

use super::control::{PhaseName, UnitStatus};
use super::probe;

/// A current problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) about: String,
    pub(super) says: String,
}

impl Fact {
    pub(super) fn new(name: &'static str, about: impl Into<String>, says: impl Into<String>) -> Self {
        Self { name, about: about.into(), says: says.into() }
    }
}

/// A replica whose metrics take longer is left out of this poll.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// The metrics of one replica, with a series for each of 500 users.
const METRICS_MAX: u64 = 8 << 20;
/// The longest time that rates are computed over.
const WINDOW_MAX: SignedDuration = SignedDuration::from_mins(5);
/// The shortest: two polls.
const WINDOW_MIN: SignedDuration = SignedDuration::from_secs(10);
/// Polls within [`WINDOW_MAX`], and one before it.
const SAMPLES_MAX: usize = 64;
/// How long a service must not be ready.
const UNREADY_FOR: SignedDuration = SignedDuration::from_mins(5);
/// Invalid credentials within [`WINDOW_MAX`] that are still taken for mistakes.
const REFUSED_MAX: f64 = 300.0;
/// The kinds of insights about the service. With many tenants the traffic of some tenant is nearly always unusual, and receivers cannot
/// silence a kind.
const UNUSUAL: [&str; 3] = ["failures_rise", "latency_rise", "quality_drop"];
/// The group of units that answer clients.
const SERVERS: &str = "server-";

/// What replicas have counted since they began.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    requests: f64,
    failed: f64,
    /// Invalid keys, tokens and tickets.
    refused: f64,
    /// Answers of `/v1/` by the upper bound of their time in seconds, as text; each includes the quicker ones.
    buckets: BTreeMap<String, f64>,
}

impl Counts {
    /// Reads an exposition in the format of Prometheus.
    fn read(metrics: &str) -> Self {
        let mut counts = Counts::default();
        for sample in exposition::samples(metrics) {
            match sample.name {
                "http_requests_total" => {
                    counts.requests += sample.value;
                    if sample.label("status").is_some_and(|status| status.starts_with('5')) {
                        counts.failed += sample.value;
                    }
                }
                "textnlp_authentication_failures_total" => counts.refused += sample.value,
                "http_request_duration_seconds_bucket"
                    if sample.label("route").is_some_and(|route| route.starts_with("/v1/")) =>
                {
                    if let Some(bound) = sample.label("le") {
                        *counts.buckets.entry(bound.to_owned()).or_default() += sample.value;
                    }
                }
                _ => {}
            }
        }
        counts
    }

    /// What came since `before`; a replica that was restarted counts from zero.
    fn since(&self, before: &Counts) -> Counts {
        let is_reset = self.requests < before.requests;
        let grown = |now: f64, before: f64| if is_reset { now } else { (now - before).max(0.0) };
        let buckets = self
            .buckets
            .iter()
            .map(|(bound, now)| (bound.clone(), grown(*now, before.buckets.get(bound).copied().unwrap_or_default())));
        Counts {
            requests: grown(self.requests, before.requests),
            failed: grown(self.failed, before.failed),
            refused: grown(self.refused, before.refused),
            buckets: buckets.collect(),
        }
    }

    fn add(&mut self, more: &Counts) {
        self.requests += more.requests;
        self.failed += more.failed;
        self.refused += more.refused;
        for (bound, count) in &more.buckets {
            *self.buckets.entry(bound.clone()).or_default() += count;
        }
    }

    fn error_rate(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| self.failed / self.requests)
    }

    /// The time that 95 of 100 answers took at most.
    fn p95_seconds(&self) -> Option<f64> {
        exposition::quantile(&self.buckets, 0.95)
    }
}

/// How many insights of the last 24 hours there are of each kind in [`UNUSUAL`].
type Insights = BTreeMap<&'static str, f64>;

/// Reads them in an exposition.
fn insights(metrics: &str) -> Insights {
    let samples = exposition::samples(metrics).filter(|sample| sample.name == "textnlp_insights");
    let known = samples.filter_map(|sample| {
        let kind = UNUSUAL.into_iter().find(|kind| sample.label("kind").is_some_and(|label| label == *kind))?;
        Some((kind, sample.value))
    });
    known.collect()
}

/// Something that must last before it is an alert.
#[derive(Debug, Default)]
struct PendingAlert(Option<Timestamp>);

impl PendingAlert {
    fn lasts(&mut self, is_so: bool, least: SignedDuration, now: Timestamp) -> bool {
        self.0 = is_so.then(|| self.0.unwrap_or(now));
        self.0.is_some_and(|since| now.duration_since(since) >= least)
    }
}

/// What was measured within the window, and what is pending.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// The last counts of each replica.
    replicas: BTreeMap<String, Counts>,
    /// Those that replicas showed last: all show those of one database, some later than others.
    insights: Insights,
    /// What all replicas answered between a poll and the one before.
    samples: VecDeque<(Timestamp, Counts)>,
    slow: PendingAlert,
    failing: PendingAlert,
    unready: PendingAlert,
}

impl Service {
    /// Polls the replicas and evaluates the rules.
    pub(super) async fn look(
        &mut self,
        folder: &SiteFolder,
        units: &[UnitStatus],
        limits: &ServiceLimits,
        now: Timestamp,
    ) -> Vec<Fact> {
        let request = "GET /metrics HTTP/1.1\r\nHost: metrics\r\nAccept: text/plain\r\nConnection: close\r\n\r\n";
        let (mut found, mut newest) = (BTreeMap::new(), None::<Insights>);
        for unit in servers(units).filter(|unit| unit.phase == PhaseName::Ready) {
            let socket = folder.socket(&format!("{}-metrics", unit.name));
            let asked = probe::exchange_up_to(&socket, request, METRICS_MAX);
            if let Ok(Ok(answer)) = tokio::time::timeout(POLL_TIMEOUT, asked).await {
                found.insert(unit.name.clone(), Counts::read(&answer));
                let newest = newest.get_or_insert_default();
                for (kind, count) in insights(&answer) {
                    let most = newest.entry(kind).or_default();
                    *most = count.max(*most);
                }
            }
        }
        self.replicas.retain(|name, _| units.iter().any(|unit| unit.name == *name));
        // A poll that no replica answers ends no alert.
        self.insights = newest.unwrap_or_else(|| std::mem::take(&mut self.insights));
        let mut facts = self.evaluate(found, units, limits, now);
        facts.extend(self.unusual());
        facts
    }

    /// A fact for each kind of unusual usage in the last 24 hours.
    fn unusual(&self) -> impl Iterator<Item = Fact> {
        self.insights.iter().filter(|(_, count)| **count > 0.0).map(|(kind, count)| {
            let says = format!("{count:.0} in the last 24 hours: textnlp-deploy analytics list --kind {kind}");
            Fact::new("insights", *kind, says)
        })
    }

    fn evaluate(
        &mut self,
        found: BTreeMap<String, Counts>,
        units: &[UnitStatus],
        limits: &ServiceLimits,
        now: Timestamp,
    ) -> Vec<Fact> {
        let mut sample = Counts::default();
        for (name, counts) in found {
            // The time of requests that a replica counted before its first observation is unknown.
            if let Some(before) = self.replicas.get(&name) {
                sample.add(&counts.since(before));
            }
            self.replicas.insert(name, counts);
        }
        self.samples.push_back((now, sample));
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
        let mut facts = Vec::new();
        let latency_for = seconds(limits.latency_for_seconds);
        let slow = self.within(latency_for, now).p95_seconds().filter(|p95| *p95 > limits.latency_seconds);
        if self.slow.lasts(slow.is_some(), latency_for, now) {
            let says = format!(
                "95 of 100 answers took up to {:.2} s; the limit is {} s for {} s",
                slow.unwrap_or_default(),
                limits.latency_seconds,
                limits.latency_for_seconds
            );
            facts.push(Fact::new("latency", "service", says));
        }
        let errors_for = seconds(limits.error_rate_for_seconds);
        let failing = self.within(errors_for, now).error_rate().filter(|rate| *rate > limits.error_rate);
        if self.failing.lasts(failing.is_some(), errors_for, now) {
            let says = format!(
                "{:.1} % of the answers were failures of the server; the limit is {:.1} % for {} s",
                failing.unwrap_or_default() * 100.0,
                limits.error_rate * 100.0,
                limits.error_rate_for_seconds
            );
            facts.push(Fact::new("errors", "service", says));
        }
        let refused = self.within(WINDOW_MAX, now).refused;
        if refused > REFUSED_MAX {
            let says = format!("clients sent {refused:.0} invalid keys, tokens or tickets within five minutes");
            facts.push(Fact::new("authentication", "service", says));
        }
        let mut wanted = servers(units).filter(|unit| unit.phase != PhaseName::Stopped).peekable();
        let is_unready = wanted.peek().is_some() && wanted.all(|unit| unit.phase != PhaseName::Ready);
        if self.unready.lasts(is_unready, UNREADY_FOR, now) {
            facts.push(Fact::new("ready", "service", "no replica has been ready for five minutes"));
        }
        facts
    }

    /// What was answered within the window of a rule.
    fn within(&self, lasts: SignedDuration, now: Timestamp) -> Counts {
        let window = lasts.clamp(WINDOW_MIN, WINDOW_MAX);
        let mut all = Counts::default();
        self.samples.iter().filter(|(at, _)| now.duration_since(*at) < window).for_each(|(_, sample)| all.add(sample));
        all
    }
}

fn servers(units: &[UnitStatus]) -> impl Iterator<Item = &UnitStatus> {
    units.iter().filter(|unit| unit.name.starts_with(SERVERS))
}

fn seconds(seconds: u64) -> SignedDuration {
    SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn unit(name: &str, phase: PhaseName) -> UnitStatus {
        UnitStatus {
            name: name.to_owned(),
            phase,
            pid: None,
            restarts: 0,
            failures: 0,
            spec_digest: None,
            reload_digest: None,
            operation: None,
            says: String::new(),
            file_gone: false,
        }
    }

    /// What a replica shows after so many quick and slow answers, of which some failed.
    fn counts(quick: u32, slow: u32, failed: u32) -> Counts {
        let all = quick + slow;
        Counts::read(&format!(
            "# TYPE http_requests counter\n\
             http_requests_total{{method=\"POST\",status=\"200\"}} {}\n\
             http_requests_total{{method=\"POST\",status=\"404\"}} 0\n\
             http_requests_total{{method=\"POST\",status=\"503\"}} {failed}\n\
             http_request_duration_seconds_bucket{{le=\"1.0\",method=\"POST\",route=\"/v1/generate\"}} {quick}\n\
             http_request_duration_seconds_bucket{{le=\"2.5\",method=\"POST\",route=\"/v1/generate\"}} {all}\n\
             http_request_duration_seconds_bucket{{le=\"+Inf\",method=\"POST\",route=\"/v1/generate\"}} {all}\n\
             http_request_duration_seconds_bucket{{le=\"1.0\",method=\"GET\",route=\"/health\"}} 100000\n\
             http_request_duration_seconds_bucket{{le=\"+Inf\",method=\"GET\",route=\"/health\"}} 100000\n",
            all - failed
        ))
    }

    /// Polls every five seconds and says at which second which rule fires first.
    fn fires(polls: impl Fn(i64) -> Option<Counts>, until: i64) -> Vec<(i64, String)> {
        let (mut service, mut fired) = (Service::default(), Vec::<(i64, String)>::new());
        let units = [unit("server-0", PhaseName::Ready), unit("gateway", PhaseName::Unready)];
        for second in (0..=until).step_by(5) {
            let found = polls(second).map(|counts| ("server-0".to_owned(), counts)).into_iter().collect();
            for fact in service.evaluate(found, &units, &ServiceLimits::default(), at(second)) {
                if fired.iter().all(|(_, name)| name != fact.name) {
                    fired.push((second, fact.name.to_owned()));
                }
            }
        }
        fired
    }

    fn each(second: i64, count: u32) -> u32 {
        u32::try_from(second / 5).unwrap() * count
    }

    #[test]
    fn counts_are_those_of_the_api() {
        assert_eq!(counts(100, 0, 0).p95_seconds(), Some(0.95));
        let p95 = counts(0, 100, 0).p95_seconds().unwrap();
        assert!((p95 - 2.425).abs() < 1e-9, "{p95}");
        assert_eq!((counts(0, 0, 0).p95_seconds(), counts(0, 0, 0).error_rate()), (None, None));
        assert_eq!(counts(50, 50, 10).error_rate(), Some(0.1));
        assert_eq!(Counts::read("nonsense\n} \n{} x\n"), Counts::default());
    }

    #[test]
    fn latency_alert_fires_after_five_minutes_and_error_alert_after_ten() {
        let slow = |second| Some(counts(0, each(second, 10), 0));
        assert_eq!(fires(slow, 900), [(305, "latency".to_owned())]);
        let failing = |second| Some(counts(each(second, 10), 0, each(second, 1)));
        assert_eq!(fires(failing, 900), [(605, "errors".to_owned())]);
        let well = |second| Some(counts(each(second, 10), 0, 0));
        assert_eq!(fires(well, 1_200), []);
        let once = |second: i64| Some(counts(0, each(second.min(5), 10), 0));
        assert_eq!(fires(once, 900), [], "one burst of slow answers is no alert");
        let restarted = |second: i64| Some(counts(0, each(if second > 100 { second - 100 } else { second }, 10), 0));
        assert_eq!(fires(restarted, 900), [(305, "latency".to_owned())], "a restart is no negative rate");
    }

    #[test]
    fn each_kind_of_unusual_usage_is_one_fact() {
        let mut service = Service::default();
        let of = |rises: u32| {
            insights(&format!(
                "# TYPE textnlp_insights gauge\ntextnlp_insights{{kind=\"summary\"}} 24\n\
                 textnlp_insights{{kind=\"latency_rise\"}} {rises}\ntextnlp_insights{{kind=\"quality_drop\"}} 0\n"
            ))
        };
        assert_eq!(of(2), BTreeMap::from([("latency_rise", 2.0), ("quality_drop", 0.0)]));
        service.insights = of(2);
        let facts: Vec<Fact> = service.unusual().collect();
        let [Fact { name: "insights", about, says }] = &facts[..] else { panic!("{facts:?}") };
        assert!(about == "latency_rise" && says.starts_with("2 in the last 24 hours: "), "{about}: {says}");
        service.insights = of(0);
        assert_eq!(service.unusual().count(), 0);
    }

    #[test]
    fn authentication_alert_fires_for_more_than_one_invalid_credential_a_second() {
        let refused = |second, count| {
            let series = "textnlp_authentication_failures_total";
            let [keys, tokens] = [each(second, count), each(second, 1)];
            Some(Counts::read(&format!(
                "{series}{{type=\"invalid_api_key\"}} {keys}\n{series}{{type=\"invalid_token\"}} {tokens}\n"
            )))
        };
        assert_eq!(fires(|second| refused(second, 4), 1_200), [], "five in five seconds");
        assert_eq!(fires(|second| refused(second, 5), 1_200), [(255, "authentication".to_owned())]);
    }

    #[test]
    fn no_ready_replica_alert_fires_after_five_minutes() {
        let mut service = Service::default();
        let mut look = |phases: [PhaseName; 2], second| {
            let units = [unit("server-0", phases[0]), unit("server-1", phases[1]), unit("gateway", PhaseName::Ready)];
            let facts = service.evaluate(BTreeMap::new(), &units, &ServiceLimits::default(), at(second));
            facts.iter().any(|fact| fact.name == "ready")
        };
        use PhaseName::{Ready, Starting, Stopped, Unready, Waiting};
        assert!(!look([Waiting, Unready], 0) && !look([Starting, Unready], 299) && look([Waiting, Waiting], 300));
        assert!(!look([Waiting, Ready], 301) && !look([Waiting, Unready], 302) && !look([Waiting, Unready], 601));
        assert!(
            !look([Stopped, Stopped], 602) && !look([Stopped, Stopped], 2_000),
            "what should not run is not missed"
        );
    }
}
