//! The custom metrics adapter: it serves the request rate of each server pod to the cluster's autoscaler.
//!
//! It runs as a deployment of one pod. It polls the pods every few seconds ([`Adapter::look`]), keeps the counters of
//! the last 30 s ([`rates`]), and answers as `custom.metrics.k8s.io/v1beta2` ([`answer`]). Its only client is the API
//! server, which it authenticates by its certificate ([`Adapter::front`]). The API server authorises each request
//! before it forwards it, so the adapter does not authorise again.

mod answer;
mod rates;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use textnlp_provider::{ErrorKind, Result};
use tokio::time::Instant;

use crate::canary::{Scrape, counters, in_one_line};
use crate::diagnosis::POD;
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::table;

pub use answer::Answer;
use answer::{Question, Subject};
use rates::{Rate, Rates};

/// The interval between two polls of the pods.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The limit of concurrent scrapes.
const AT_ONCE: usize = 32;
/// A rate takes two polls.
const MIN_POLLS: u32 = 2;

/// The client certificates of the API server's front proxy, as the aggregation layer publishes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontProxy {
    /// The certificate authorities, as PEM.
    pub authorities: String,
    /// The allowed common names; an empty list allows any.
    pub names: Vec<String>,
}

/// The adapter; see the module.
pub struct Adapter {
    kubernetes: Kubernetes,
    namespace: String,
    /// The label selector of the pods that are polled.
    pods: String,
    rates: Mutex<Rates>,
    looks: AtomicU32,
    /// Whether the front proxy's certificate is known.
    knows_proxy: AtomicBool,
}

impl Adapter {
    /// Creates an adapter for the pods of a namespace with these labels, such as `app=textnlp-api`.
    pub fn new(kubernetes: Kubernetes, namespace: String, pods: String) -> Self {
        Self {
            kubernetes,
            namespace,
            pods,
            rates: Mutex::default(),
            looks: AtomicU32::new(0),
            knows_proxy: AtomicBool::new(false),
        }
    }

    /// Polls the pods until the process ends; `tell` reports what prevents a poll.
    pub async fn keep(&self, figures: &dyn Scrape, tell: &(dyn Fn(&str) + Sync)) {
        loop {
            let next = Instant::now() + POLL_INTERVAL;
            match self.look(figures).await {
                Ok(()) => drop(self.looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1))),
                Err(error) => tell(&in_one_line(&error)),
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// The client certificates of the API server, read from the `extension-apiserver-authentication` map of
    /// `kube-system`.
    ///
    /// # Errors
    /// If the map cannot be read, or the cluster has no front proxy.
    pub async fn front(&self) -> Result<FrontProxy> {
        let call = Call {
            action: "read who may ask in",
            verb: "get",
            row: table::named("kubernetes.config-map"),
            namespace: Some("kube-system"),
            name: Some("extension-apiserver-authentication"),
        };
        let found = self.kubernetes.api().await?.get(&call).await?;
        let found = found
            .ok_or_else(|| call.error(ErrorKind::NotFound).because("the cluster does not support API aggregation"))?;
        let value_of = |key: &str| found["data"][key].as_str().unwrap_or_default();
        let authorities = value_of("requestheader-client-ca-file").to_owned();
        if authorities.is_empty() {
            let why = "it has no `requestheader-client-ca-file`: the API server has no client certificate for extension API servers";
            return Err(call.error(ErrorKind::NotFound).because(why));
        }
        let names = match value_of("requestheader-allowed-names") {
            "" => Vec::new(),
            names => serde_json::from_str(names).map_err(|error| {
                call.error(ErrorKind::Invalid).because(format!("requestheader-allowed-names: {error}"))
            })?,
        };
        self.knows_proxy.store(true, Ordering::Relaxed);
        Ok(FrontProxy { authorities, names })
    }

    /// Whether there are two polls: before that, a client would get an empty list.
    fn is_ready(&self) -> bool {
        self.knows_proxy.load(Ordering::Relaxed) && self.looks.load(Ordering::Relaxed) >= MIN_POLLS
    }

    /// The answer to a GET of `/path?query`. Only the API server (`is_front`) gets the metrics of pods.
    pub async fn answer(&self, target: &str, is_front: bool) -> Answer {
        let question = match Question::read(target) {
            Some(Question::Health) => return Answer::words(200, "ok"),
            Some(Question::Ready) if self.is_ready() => return Answer::words(200, "ok"),
            Some(Question::Ready) => {
                return Answer::words(
                    503,
                    "not ready: the trusted clients are not loaded, or the pods were not polled twice",
                );
            }
            question => question,
        };
        if !is_front {
            return Answer::status(401, "Unauthorized", "only the API server with its client certificate is allowed");
        }
        match question {
            Some(Question::Document(document)) => Answer { status: 200, body: document },
            Some(Question::Figures { namespace, .. }) if namespace != self.namespace => {
                let why =
                    format!("this adapter has no metrics of pods in namespace {namespace}, only in {}", self.namespace);
                Answer::status(404, "NotFound", &why)
            }
            Some(Question::Figures { metric_labels, .. }) if !metric_labels.is_empty() => {
                let why = format!("the metric has no labels, so `{metric_labels}` matches nothing");
                Answer::status(400, "BadRequest", &why)
            }
            Some(Question::Figures { of, .. }) => self.figures(of).await,
            _ => Answer::status(404, "NotFound", "this path does not exist"),
        }
    }

    async fn figures(&self, of: Subject) -> Answer {
        let names: Vec<String> = match &of {
            Subject::One(name) => vec![name.clone()],
            Subject::All(labels) => match self.pods(labels).await {
                Ok(pods) => pods.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect(),
                Err(error) => {
                    let (status, reason) = match error.code.as_deref() {
                        Some("BadRequest") => (400, "BadRequest"),
                        _ => (503, "ServiceUnavailable"),
                    };
                    return Answer::status(status, reason, &in_one_line(&error));
                }
            },
        };
        let (now, at) = (Instant::now(), jiff::Timestamp::now());
        let known: Vec<(String, Rate)> = {
            let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            names.into_iter().filter_map(|name| Some((name.clone(), rates.of(&name, now)?))).collect()
        };
        match of {
            Subject::One(name) if known.is_empty() => Answer::status(
                404,
                "NotFound",
                &format!("no metrics of pod {name}: it does not exist or does not answer"),
            ),
            _ => Answer::values(&self.namespace, &known, at),
        }
    }

    async fn look(&self, figures: &dyn Scrape) -> Result<()> {
        let pods = self.pods(&self.pods).await?;
        let asked = pods.iter().filter_map(|pod| {
            let address: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
            let (name, port) = (pod["metadata"]["name"].as_str()?, counters::port(&pod["spec"])?);
            Some(async move { (name, identity::uid(pod), figures.scrape(address, port).await, Instant::now()) })
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((name, uid, text, at)) = answers.next().await {
            // The last known rate of a pod that does not answer is served until it is stale.
            let Ok(text) = text else { continue };
            let totals = counters::read(&text, u32::MAX);
            self.rates.lock().unwrap_or_else(PoisonError::into_inner).look(name, uid, totals, at);
        }
        let there: BTreeSet<&str> = pods.iter().map(identity::uid).collect();
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).keep(&there);
        Ok(())
    }

    async fn pods(&self, labels: &str) -> Result<Vec<Value>> {
        let call = Call { action: "list", verb: "list", row: &POD, namespace: Some(&self.namespace), name: None };
        self.kubernetes.api().await?.list(&call, labels).await
    }
}
