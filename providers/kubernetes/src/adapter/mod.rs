//! What the cluster's autoscaler asks: how many requests a second each pod of the servers answers, on the API of custom metrics.
//!
//! A deployment of one pod runs it. It looks at the pods every few seconds ([`Adapter::look`]), keeps what they counted in the last half
//! minute ([`rates`]), and answers in the words of `custom.metrics.k8s.io/v1beta2` ([`answer`]). It is asked by the API server and by nobody else,
//! which is known by its certificate ([`Adapter::front`]): that server has asked its own rules whether whoever asks it may, before it passes a
//! question on, so that nothing is asked a second time here.

mod answer;
mod rates;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use textnlp_provider::{Result, Sort};
use tokio::time::Instant;

use crate::canary::{Scrape, figures, in_one_line};
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::table;
use crate::trouble::POD;

pub use answer::Answer;
use answer::{Question, Subject};
use rates::{Rate, Rates};

/// How often it looks at the pods.
const LOOK: Duration = Duration::from_secs(5);
/// Pods that are asked for their figures at once.
const AT_ONCE: usize = 32;
/// From the second look on there is something to tell.
const LOOKS: u32 = 2;

/// Whom the API server may be known by: what it writes down for servers beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontProxy {
    /// The authorities that certify it, PEM.
    pub authorities: String,
    /// Its names in certificates; none means any.
    pub names: Vec<String>,
}

/// See the module.
pub struct Adapter {
    kubernetes: Kubernetes,
    namespace: String,
    /// The labels of the pods that are looked at.
    pods: String,
    rates: Mutex<Rates>,
    looks: AtomicU32,
    /// Whether it is known who may ask.
    knows_front: AtomicBool,
}

impl Adapter {
    /// For the pods of a namespace that carry these labels, `app=textnlp-api`.
    pub fn new(kubernetes: Kubernetes, namespace: String, pods: String) -> Self {
        Self {
            kubernetes,
            namespace,
            pods,
            rates: Mutex::default(),
            looks: AtomicU32::new(0),
            knows_front: AtomicBool::new(false),
        }
    }

    /// Looks at the pods for ever; `tell` is told what keeps it from that.
    pub async fn keep(&self, figures: &dyn Scrape, tell: &(dyn Fn(&str) + Sync)) {
        loop {
            let next = Instant::now() + LOOK;
            match self.look(figures).await {
                Ok(()) => drop(self.looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1))),
                Err(error) => tell(&in_one_line(&error)),
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// By which certificate the API server is known, as it says itself in `kube-system`.
    ///
    /// # Errors
    /// Where that cannot be read, and where the cluster has no such thing.
    pub async fn front(&self) -> Result<FrontProxy> {
        let call = Call {
            action: "read who may ask in",
            verb: "get",
            row: table::named("kubernetes.config-map"),
            namespace: Some("kube-system"),
            name: Some("extension-apiserver-authentication"),
        };
        let found = self.kubernetes.api().await?.get(&call).await?;
        let found =
            found.ok_or_else(|| call.error(Sort::NotFound).because("the cluster has no aggregation of APIs"))?;
        let told = |key: &str| found["data"][key].as_str().unwrap_or_default();
        let authorities = told("requestheader-client-ca-file").to_owned();
        if authorities.is_empty() {
            let why =
                "it names no `requestheader-client-ca-file`: the API server shows no certificate to servers beside it";
            return Err(call.error(Sort::NotFound).because(why));
        }
        let names = match told("requestheader-allowed-names") {
            "" => Vec::new(),
            names => serde_json::from_str(names)
                .map_err(|error| call.error(Sort::Invalid).because(format!("requestheader-allowed-names: {error}")))?,
        };
        self.knows_front.store(true, Ordering::Relaxed);
        Ok(FrontProxy { authorities, names })
    }

    /// Whether there is something to tell: whoever is sent here before that would be told of no pods.
    fn is_ready(&self) -> bool {
        self.knows_front.load(Ordering::Relaxed) && self.looks.load(Ordering::Relaxed) >= LOOKS
    }

    /// The answer to a GET of `/path?query`. Only who `is_front`, the API server, is told of pods.
    pub async fn answer(&self, target: &str, is_front: bool) -> Answer {
        let question = match Question::read(target) {
            Some(Question::Health) => return Answer::words(200, "ok"),
            Some(Question::Ready) if self.is_ready() => return Answer::words(200, "ok"),
            Some(Question::Ready) => {
                return Answer::words(503, "it is not known yet who may ask, or the pods were not looked at twice");
            }
            question => question,
        };
        if !is_front {
            return Answer::status(401, "Unauthorized", "only the API server is answered here, by its certificate");
        }
        match question {
            Some(Question::Document(document)) => Answer { status: 200, body: document },
            Some(Question::Figures { namespace, .. }) if namespace != self.namespace => {
                let why =
                    format!("no figures of pods in namespace {namespace} are known here, but of {}", self.namespace);
                Answer::status(404, "NotFound", &why)
            }
            Some(Question::Figures { metric_labels, .. }) if !metric_labels.is_empty() => {
                let why = format!("the metric has no labels, so that `{metric_labels}` chooses nothing");
                Answer::status(400, "BadRequest", &why)
            }
            Some(Question::Figures { of, .. }) => self.figures(of).await,
            _ => Answer::status(404, "NotFound", "there is no such path here"),
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
                &format!("nothing is known of pod {name}: it is not there, or does not answer"),
            ),
            _ => Answer::values(&self.namespace, &known, at),
        }
    }

    async fn look(&self, figures: &dyn Scrape) -> Result<()> {
        let pods = self.pods(&self.pods).await?;
        let asked = pods.iter().filter_map(|pod| {
            let address: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
            let (name, port) = (pod["metadata"]["name"].as_str()?, figures::port(&pod["spec"])?);
            Some(async move { (name, identity::uid(pod), figures.scrape(address, port).await, Instant::now()) })
        });
        let asked: Vec<_> = asked.collect();
        let mut answers = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
        while let Some((name, uid, text, at)) = answers.next().await {
            // Of a pod that does not answer, the last that was known is told until it is old.
            let Ok(text) = text else { continue };
            let totals = figures::read(&text, u32::MAX);
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
