//! Metrics of the sites of a running environment over a period.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{Runtime, SiteSettings};
use textnlp_orchestrator::load::{HttpWire, LoadRequest, LoadResponse, RequestFailure, Wire};
use textnlp_orchestrator::metrics::{self, FiringAlert, Quantiles, Scrape, Summary};
use textnlp_orchestrator::monthly::{MonthlyUsage, RequestSum};
use textnlp_provider::dashboard::{self, Machines, Watched};
use textnlp_provider::operations::SiteMetrics;
use textnlp_provider::{Lineage, SiteName};
use tokio_util::sync::CancellationToken;

use crate::failure::hinted_chain;
use crate::keys::Admin;
use crate::{ChosenEnvironment, Exit, Failure, Progress, RunningEnvironment, Scope, running, usage_records};

/// The period of a Prometheus, unless another is chosen.
const PERIOD: Duration = Duration::from_secs(3600);
/// The time between two scrapes, unless another is chosen, and its maximum.
const BETWEEN: Duration = Duration::from_secs(30);
const BETWEEN_MAX: Duration = Duration::from_secs(15 * 60);
/// The interval of progress.
const TICK: Duration = Duration::from_secs(1);

/// Where the metrics of a site came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The cluster's Prometheus.
    Prometheus,
    /// Two scrapes of the servers.
    TwoScrapes,
    /// The usage records, which all sites share.
    UsageRecords,
}

/// The summary of one site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteSummary {
    /// The site.
    pub site: SiteName,
    /// Where the metrics came from.
    pub source: Source,
    /// The first time that they cover: later than wanted where a Prometheus has no older samples.
    pub from: Timestamp,
    /// The last time.
    pub until: Timestamp,
    /// The metrics; `None` where they could not be read.
    pub summary: Option<Summary>,
    /// What limits them, and why they could not be read.
    pub notes: Vec<String>,
}

/// Why a site has no history.
const NO_PROMETHEUS: &str = "no Prometheus of the operator in the site's namespace or in `monitoring` has the metrics of this \
                             site: set `monitoring.stack: true`";

/// How the metrics of a site are scraped.
enum Scraper {
    Address(Box<dyn Wire>),
    Site(Arc<dyn SiteMetrics>, Lineage),
}

impl Scraper {
    async fn scrape(&self) -> Result<Scrape, String> {
        let mut scrape = Scrape::default();
        for (replica, text) in self.texts().await? {
            match (replica, text) {
                (replica, Some(text)) => scrape.add(&text, replica.as_deref()),
                (Some(replica), None) => scrape.add_unread(&replica),
                (None, None) => {}
            }
        }
        Ok(scrape)
    }

    /// What each replica exports now, by its name; `None` for one that did not answer. An address has the metrics of all,
    /// with their names in them.
    async fn texts(&self) -> Result<Vec<(Option<String>, Option<String>)>, String> {
        match self {
            Scraper::Address(wire) => {
                let answer = wire.send(LoadRequest::get("/metrics")).await.map_err(|failure| failure.to_string())?;
                if answer.status != 200 {
                    return Err(format!("the metrics endpoint answered with status {}", answer.status));
                }
                Ok(vec![(None, Some(String::from_utf8_lossy(&answer.body).into_owned()))])
            }
            Scraper::Site(site, lineage) => {
                let replicas = site.scrape(*lineage).await.map_err(|error| hinted_chain(&error))?;
                if replicas.is_empty() {
                    return Err("no replica is ready".to_owned());
                }
                Ok(replicas.into_iter().map(|(name, text)| (Some(name), text)).collect())
            }
        }
    }

    /// What all replicas export now.
    async fn exported(&self) -> Result<String, String> {
        let mut all = String::new();
        for (replica, text) in self.texts().await? {
            let unread = || format!("{} could not be read", replica.unwrap_or_default());
            all.push_str(&text.ok_or_else(unread)?);
        }
        Ok(all)
    }
}

/// Reads the metrics of a site whose servers have no address on this machine; `None` if it has none.
fn reader(scope: &Scope, environment: &Environment, site: &SiteName) -> Result<Option<Arc<dyn SiteMetrics>>, Failure> {
    let site = scope.platform.operations_of(&scope.folder, environment, site.as_str(), None)?;
    Ok(site.and_then(|site| site.metrics()))
}

/// The firing alerts of each site whose metrics its provider reads, by its Prometheus, or why they are unknown.
pub async fn firing_alerts(
    chosen: &ChosenEnvironment,
) -> Result<BTreeMap<SiteName, Result<Vec<FiringAlert>, String>>, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let (_, addresses) = running::metrics_addresses(scope).await?;
    let mut found = BTreeMap::new();
    for site in addresses.into_keys() {
        if let Some(reader) = reader(scope, environment, &site)? {
            let answer = reader.query(&metrics::alerts_query(&reader.matchers())).await;
            let alerts = match answer {
                Ok(answer) => answer.as_ref().and_then(metrics::firing_alerts).ok_or_else(|| NO_PROMETHEUS.to_owned()),
                Err(error) => Err(format!("Prometheus was not read: {}", hinted_chain(&error))),
            };
            found.insert(site, alerts);
        }
    }
    Ok(found)
}

/// The Grafana dashboard of what the environment runs on machines, by its settings. Clusters get theirs by `up`.
pub fn dashboard(chosen: &ChosenEnvironment) -> Result<Value, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let servers = environment.members().any(SiteSettings::is_on_machine);
    let fails_over = environment.witness_place();
    let witness = fails_over.is_some_and(|place| place.runtime == Runtime::Process);
    if !servers && !witness {
        let error = anyhow::anyhow!("environment {} runs nothing on machines", scope.name);
        let hint = match environment.is_endpoint() {
            true => "the metrics of an inference endpoint are in CloudWatch",
            false => "set `monitoring.stack: true` and run `up`: it creates the dashboard in the cluster",
        };
        return Err(Failure::usage("no_machines", error).hint(hint));
    }
    Ok(dashboard::dashboard(Watched::Machines(&Machines {
        environment: scope.name.clone(),
        servers,
        site_agents: servers && fails_over.is_some(),
        shared_database: environment.shares_database(),
        witness,
        dns: environment.dns.is_some(),
    })))
}

/// The metrics of all servers of all serving sites; `None` for a site without an address on this machine and a provider that
/// reads them.
pub struct SiteWire(Vec<(SiteName, Option<Scraper>)>);

impl SiteWire {
    /// Those of a running environment; `None` if those of no site can be read.
    pub async fn of(chosen: &ChosenEnvironment) -> Result<Option<Self>, Failure> {
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        let (lineage, addresses) = running::metrics_addresses(scope).await?;
        let trust = scope.platform.trust(None, Some(environment))?;
        let mut sites = Vec::new();
        for (site, address) in addresses {
            let scraper = match address {
                Some(address) => Some(Scraper::Address(Box::new(HttpWire::new(&address, &trust)?))),
                None => reader(scope, environment, &site)?.map(|reader| Scraper::Site(reader, lineage)),
            };
            sites.push((site, scraper));
        }
        Ok(sites.iter().any(|(_, scraper)| scraper.is_some()).then_some(Self(sites)))
    }
}

#[async_trait]
impl Wire for SiteWire {
    /// Answers every request with the metrics. Where sites have addresses, one that answers is enough for key metrics: the
    /// answer names the other sites that could not be read. Else it fails if a site or one of its replicas does not answer.
    async fn send(&self, _: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let has_address = |scraper: &Option<Scraper>| matches!(scraper, Some(Scraper::Address(_)));
        let (mut body, mut failure) = (Vec::new(), None);
        let needs_all = !self.0.iter().any(|(_, scraper)| has_address(scraper));
        let mut is_read = needs_all;
        for (site, scraper) in &self.0 {
            let exported = match scraper {
                Some(scraper) => scraper.exported().await,
                None => Err("no address has its metrics, and no provider reads them".to_owned()),
            };
            match exported {
                Ok(text) => {
                    is_read |= has_address(scraper);
                    body.extend_from_slice(text.as_bytes());
                }
                Err(why) => {
                    tracing::warn!(%site, why, "metrics not read");
                    body.extend_from_slice(metrics::unread_site(site.as_str()).as_bytes());
                    let failed = RequestFailure::Connect(format!("{site}: {why}"));
                    if needs_all && scraper.is_some() {
                        return Err(failed);
                    }
                    failure.get_or_insert(failed);
                }
            }
        }
        match failure {
            Some(failure) if !is_read => Err(failure),
            _ => Ok(LoadResponse { status: 200, body }),
        }
    }

    /// The provider verifies the connection; no client of the service uses this path.
    fn verified(&self) -> bool {
        false
    }
}

/// A site whose metrics are not in a Prometheus, and why.
type Unrecorded = (SiteName, Scraper, Vec<String>);

/// A site whose metrics are scraped twice.
struct Pending {
    site: SiteName,
    scraper: Scraper,
    notes: Vec<String>,
    first: Result<Scrape, String>,
    at: Timestamp,
}

impl Pending {
    async fn finish(self, clock: &dyn Clock) -> SiteSummary {
        let Pending { site, scraper, mut notes, first, at } = self;
        let second = match first.is_ok() {
            true => scraper.scrape().await,
            false => Ok(Scrape::default()),
        };
        let summary = match (first, second) {
            (Ok(first), Ok(second)) => {
                let (gone, new) = first.replaced(&second);
                let unread: Vec<&str> = first.unread(&second).into_iter().collect();
                if !unread.is_empty() {
                    notes.push(format!("{} could not be read: their requests are not counted", unread.join(", ")));
                }
                if !gone.is_empty() {
                    notes.push(format!("{} stopped: its last requests are not counted", gone.join(", ")));
                }
                if !new.is_empty() {
                    notes.push(format!("{} started: all of its requests are counted", new.join(", ")));
                }
                Some(metrics::between(&first, &second))
            }
            (Err(why), _) | (_, Err(why)) => {
                notes.push(why);
                None
            }
        };
        SiteSummary { site, source: Source::TwoScrapes, from: at, until: clock.now(), summary, notes }
    }
}

/// Summarizes the metrics of each serving site, or of the named one: over a period until now from the cluster's
/// Prometheus where there is one, else over the same time from now on, by two scrapes. A period that is too long for
/// these is until now by the usage records.
pub async fn summarize(
    (chosen, running): (&ChosenEnvironment, &RunningEnvironment),
    (named, period): (Option<&str>, Option<Duration>),
    clock: &dyn Clock,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Vec<SiteSummary>, Failure> {
    let scope = &chosen.scope;
    let environment = &chosen.loaded.environment;
    let (lineage, addresses) = running::metrics_addresses(scope).await?;
    let trust = scope.platform.trust(None, Some(environment))?;
    let (mut summaries, mut pending) = (Vec::new(), Vec::new());
    for (site, address) in addresses.into_iter().filter(|(site, _)| named.is_none_or(|named| named == site.as_str())) {
        progress.doing(&format!("reading the metrics of {site}"));
        let mut notes = Vec::new();
        let scraper = match address {
            Some(address) => Scraper::Address(Box::new(HttpWire::new(&address, &trust)?)),
            None => {
                let Some(reader) = reader(scope, environment, &site)? else { continue };
                match from_prometheus(&*reader, &site, period.unwrap_or(PERIOD), clock).await {
                    Ok(summary) => {
                        summaries.push(summary);
                        continue;
                    }
                    Err(why) => notes.push(why),
                }
                Scraper::Site(reader, lineage)
            }
        };
        pending.push((site, scraper, notes));
    }
    let between = period.unwrap_or(BETWEEN);
    match pending.first().map(|(site, ..)| site.clone()) {
        // Their requests would count twice.
        Some(_) if between > BETWEEN_MAX && !summaries.is_empty() => {
            summaries.extend(pending.into_iter().map(|site| without_history(site, clock.now())));
        }
        Some(site) if between > BETWEEN_MAX => {
            if let Some(named) = named.filter(|_| environment.sites.len() > 1) {
                let error = anyhow::anyhow!(
                    "a period of two scrapes is at most {} minutes, and the usage records are of all sites, not of {named} alone",
                    BETWEEN_MAX.as_secs() / 60
                );
                return Err(Failure::usage("period_too_long", error)
                    .hint("leave out --site, or choose a shorter period: `--period 1m`"));
            }
            progress.doing("reading the usage records");
            let until = clock.now();
            let from = until.checked_sub(between).context("the period begins before the calendar")?;
            let usage = usage_records::between(&Admin::of(chosen, running), from, until).await?;
            summaries.push(of_records(site, &pending, &usage, (from, until)));
        }
        Some(_) => summaries.extend(from_scrapes(pending, between, clock, progress, stop).await?),
        None => {}
    }
    if summaries.is_empty() {
        let what = named.map_or("no serving site".to_owned(), |named| format!("no serving site `{named}`"));
        let error = anyhow::anyhow!("environment {} has {what} with metrics", scope.name);
        return Err(Failure::usage("no_metrics", error).hint(scope.command("status")));
    }
    summaries.sort_by(|a, b| a.site.cmp(&b.site));
    Ok(summaries)
}

/// The summary by the cluster's Prometheus, else why there is none.
async fn from_prometheus(
    reader: &dyn SiteMetrics,
    site: &SiteName,
    period: Duration,
    clock: &dyn Clock,
) -> Result<SiteSummary, String> {
    let until = clock.now();
    let answer = reader.query(&metrics::query(&reader.matchers(), period)).await;
    let answer = answer.map_err(|error| format!("Prometheus was not read: {}", hinted_chain(&error)))?;
    let (summary, from) = answer.as_ref().and_then(metrics::of_prometheus).ok_or(NO_PROMETHEUS)?;
    let source = Source::Prometheus;
    Ok(SiteSummary { site: site.clone(), source, from, until, summary: Some(summary), notes: Vec::new() })
}

/// A site without a history beside one that has it.
fn without_history((site, _, mut notes): Unrecorded, now: Timestamp) -> SiteSummary {
    notes.push("the usage records are of all sites, not of this one alone".to_owned());
    SiteSummary { site, source: Source::UsageRecords, from: now, until: now, summary: None, notes }
}

/// The summary by the usage records. Sites share them, so it is under the name of the first one.
fn of_records(
    site: SiteName,
    sites: &[Unrecorded],
    usage: &MonthlyUsage,
    (from, until): (Timestamp, Timestamp),
) -> SiteSummary {
    let RequestSum { requests, errors, prompt_tokens, generated_tokens, p50_ms, p95_ms, p99_ms, .. } = usage.total;
    let ms = |value: Option<u64>| value.map(|ms| ms as f64);
    let summary = Summary {
        requests,
        errors,
        error_rate: (requests > 0).then(|| errors as f64 / requests as f64),
        latency: Quantiles { p50_ms: ms(p50_ms), p95_ms: ms(p95_ms), p99_ms: ms(p99_ms) },
        prompt_tokens,
        generated_tokens,
        ..Summary::default()
    };
    let since = usage.since_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let names: Vec<String> = sites.iter().map(|(site, ..)| site.to_string()).collect();
    let mut notes: Vec<String> = sites.iter().flat_map(|(.., notes)| notes.clone()).collect();
    notes.push(
        "by usage records: requests with a valid key, and no time to the first token, queue or memory; `--period 1m` measures \
         these"
            .to_owned(),
    );
    if names.len() > 1 {
        notes.push(format!("of all sites: {}", names.join(", ")));
    }
    SiteSummary {
        site,
        source: Source::UsageRecords,
        from: since.map_or(until, |since| since.max(from)),
        until,
        summary: Some(summary),
        notes,
    }
}

async fn from_scrapes(
    sites: Vec<Unrecorded>,
    between: Duration,
    clock: &dyn Clock,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<Vec<SiteSummary>, Failure> {
    let mut pending = Vec::new();
    for (site, scraper, notes) in sites {
        let at = clock.now();
        let first = scraper.scrape().await;
        pending.push(Pending { site, scraper, notes, first, at });
    }
    // Waiting for a site that could not be read would change nothing.
    if pending.iter().any(|one| one.first.is_ok()) {
        wait(between, clock, progress, stop).await?;
    }
    let mut summaries = Vec::new();
    for one in pending {
        summaries.push(one.finish(clock).await);
    }
    Ok(summaries)
}

async fn wait(
    time: Duration,
    clock: &dyn Clock,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let began = clock.steady();
    progress.log(&format!("Scraping the metrics twice, {} s apart …", time.as_secs()));
    loop {
        let passed = clock.steady().saturating_sub(began);
        let left = time.saturating_sub(passed);
        if left.is_zero() {
            return Ok(());
        }
        progress.doing(&format!("scraping the metrics twice: second {} of {}", passed.as_secs(), time.as_secs()));
        tokio::select! {
            () = clock.sleep(left.min(TICK)) => {}
            () = stop.cancelled() => {
                return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped between two scrapes")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use serde_json::{Value, json};
    use textnlp_orchestrator::clock::VirtualClock;
    use textnlp_provider::{Error, ErrorKind};
    use uuid::Uuid;

    use super::*;

    struct Silent;

    impl Progress for Silent {
        fn doing(&self, _: &str) {}
        fn line(&self, _: &str) {}
        fn log(&self, _: &str) {}
        fn warn(&self, _: &str) {}
        fn event(&self, _: &Value) {}
    }

    /// A site whose replica counts ten requests more in each scrape.
    struct Fake {
        scraped: Mutex<u32>,
        prometheus: Option<Value>,
    }

    #[async_trait]
    impl SiteMetrics for Fake {
        async fn scrape(&self, _: Lineage) -> textnlp_provider::Result<BTreeMap<String, Option<String>>> {
            let mut scraped = self.scraped.lock().unwrap();
            *scraped += 1;
            let text = format!("http_requests_total{{route=\"/v1/generate\",status=\"200\"}} {}\n", *scraped * 10);
            // The second pod ends meanwhile.
            let ending = (*scraped == 1).then(|| text.clone());
            Ok(BTreeMap::from([("pod-a".to_owned(), Some(text)), ("pod-b".to_owned(), ending)]))
        }

        fn matchers(&self) -> String {
            "namespace=\"a\"".to_owned()
        }

        async fn query(&self, _: &str) -> textnlp_provider::Result<Option<Value>> {
            match &self.prometheus {
                Some(answer) => Ok(Some(answer.clone())),
                None => Err(Error::new(ErrorKind::Denied, "list", "services")),
            }
        }
    }

    fn site() -> SiteName {
        SiteName::new("here").unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        clock().run(future).unwrap()
    }

    fn clock() -> VirtualClock {
        VirtualClock::at(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn two_scrapes_are_a_period_apart() {
        let clock = clock();
        let fake = Arc::new(Fake { scraped: Mutex::new(0), prometheus: None });
        let sites = vec![(site(), Scraper::Site(fake, Lineage(Uuid::nil())), vec!["why".to_owned()])];
        let (time, stop) = (Duration::from_secs(45), CancellationToken::new());
        let found = clock.run(from_scrapes(sites, time, &clock, &Silent, &stop)).unwrap().unwrap();
        let [one] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((one.source, one.summary.as_ref().map(|summary| summary.requests)), (Source::TwoScrapes, Some(10)));
        assert_eq!(one.until.duration_since(one.from).as_secs(), 45);
        assert_eq!(one.notes, ["why", "pod-b could not be read: their requests are not counted"]);
    }

    #[test]
    fn sites_without_an_address_are_scraped_for_the_gate() {
        let wire = SiteWire(vec![(site(), Some(cluster(0)))]);
        let answer = run(wire.send(LoadRequest::get("/metrics"))).unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(String::from_utf8_lossy(&answer.body).matches("http_requests_total").count(), 2, "of both pods");
        // A replica that cannot be read leaves the check unmeasured.
        let failed = run(wire.send(LoadRequest::get("/metrics"))).unwrap_err();
        assert_eq!(failed, RequestFailure::Connect("here: pod-b could not be read".to_owned()));
    }

    /// What an address exports; `None` for one that does not answer.
    struct Exporter(Option<&'static str>);

    #[async_trait]
    impl Wire for Exporter {
        async fn send(&self, _: LoadRequest) -> Result<LoadResponse, RequestFailure> {
            let text = self.0.ok_or(RequestFailure::Timeout)?;
            Ok(LoadResponse { status: 200, body: text.as_bytes().to_vec() })
        }

        fn verified(&self) -> bool {
            false
        }
    }

    /// A site whose pods were scraped so often.
    fn cluster(scraped: u32) -> Scraper {
        Scraper::Site(Arc::new(Fake { scraped: Mutex::new(scraped), prometheus: None }), Lineage(Uuid::nil()))
    }

    #[test]
    fn sites_that_cannot_be_read_are_named_beside_an_address_that_answers() {
        let read = |sites: Vec<(&str, Option<Scraper>)>| {
            let sites = sites.into_iter().map(|(name, scraper)| (SiteName::new(name).unwrap(), scraper));
            let wire = SiteWire(sites.collect());
            let answer = run(wire.send(LoadRequest::get("/metrics")));
            answer.map(|answer| String::from_utf8(answer.body).unwrap())
        };
        let address = |text| Some(Scraper::Address(Box::new(Exporter(text))));
        let unread = |site: &str| format!("textnlp_gateway_backend_metrics_gathered{{site=\"{site}\"}} 0\n");
        let text = "textnlp_queue_length 1\n";
        let some = read(vec![("a", address(None)), ("b", address(Some(text))), ("c", Some(cluster(1))), ("d", None)]);
        assert_eq!(some, Ok(format!("{}{text}{}{}", unread("a"), unread("c"), unread("d"))));
        let none = read(vec![("a", address(None)), ("b", Some(cluster(0))), ("c", None)]);
        assert!(matches!(&none, Err(RequestFailure::Connect(why)) if why.starts_with("a: ")), "{none:?}");
        let clusters = read(vec![("a", Some(cluster(0))), ("b", None)]).unwrap();
        assert!(clusters.ends_with(&unread("b")), "{clusters}");
        let ending = read(vec![("a", Some(cluster(0))), ("b", Some(cluster(1)))]);
        assert!(matches!(&ending, Err(RequestFailure::Connect(why)) if why.starts_with("b: pod-b")), "{ending:?}");
    }

    #[test]
    fn usage_records_are_of_all_sites_and_begin_where_they_begin() {
        let fake = || Scraper::Site(Arc::new(Fake { scraped: Mutex::new(0), prometheus: None }), Lineage(Uuid::nil()));
        let there = SiteName::new("there").unwrap();
        let sites = [(site(), fake(), vec!["Prometheus: denied".to_owned()]), (there, fake(), Vec::new())];
        let total = RequestSum { requests: 200, errors: 2, p95_ms: Some(480), ..RequestSum::default() };
        let usage = MonthlyUsage { since_ms: Some(600_000), total, ..MonthlyUsage::default() };
        let time = |second| Timestamp::from_second(second).unwrap();
        let found = of_records(site(), &sites, &usage, (time(0), time(3600)));
        assert_eq!((found.source, found.from, found.until), (Source::UsageRecords, time(600), time(3600)));
        let summary = found.summary.unwrap();
        assert_eq!((summary.requests, summary.error_rate, summary.latency.p95_ms), (200, Some(0.01), Some(480.0)));
        assert_eq!((summary.first_token.p95_ms, summary.queue_max), (None, None));
        assert_eq!(
            (found.notes[0].as_str(), found.notes[2].as_str()),
            ("Prometheus: denied", "of all sites: here, there")
        );
        let beside = without_history((site(), fake(), vec!["Prometheus: denied".to_owned()]), time(9));
        assert!(beside.summary.is_none() && beside.notes[1].contains("all sites"), "{beside:?}");
        let none = of_records(site(), &sites[..1], &MonthlyUsage::default(), (time(0), time(3600)));
        assert_eq!((none.from, none.summary.unwrap().error_rate), (time(3600), None));
    }

    #[test]
    fn prometheus_answers_for_the_past_or_says_why_not() {
        let clock = clock();
        let ask = |prometheus: Option<Value>| {
            let fake = Fake { scraped: Mutex::new(0), prometheus };
            run(async { from_prometheus(&fake, &site(), PERIOD, &clock).await })
        };
        let since = json!({ "metric": { "textnlp_value": "since" }, "value": [0, "-600"] });
        let answer = ask(Some(json!({ "data": { "result": [since] } }))).unwrap();
        assert_eq!((answer.source, answer.from.as_second()), (Source::Prometheus, -600));
        assert!(ask(None).unwrap_err().starts_with("Prometheus was not read: "));
        let empty = ask(Some(json!({ "data": { "result": [] } }))).unwrap_err();
        assert!(empty.contains("monitoring.stack"), "{empty}");
    }
}
