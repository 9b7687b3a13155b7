//! The words of the API of custom metrics: what can be asked, and how it is answered. Pure.

use serde_json::{Value, json};

use super::rates::Rate;

/// The group, and the only version: autoscalers of every Kubernetes that is served take it.
const GROUP: &str = "custom.metrics.k8s.io";
const VERSION: &str = "v1beta2";
/// The only metric, as autoscalers name it.
const METRIC: &str = "http_requests_per_second";
/// The longest question that is read: selectors are written by people.
const LONGEST: usize = 8 << 10;

/// A status of HTTP, and a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// What it says; a text is one in words.
    pub body: Value,
}

/// What is asked.
#[derive(Debug, PartialEq)]
pub(super) enum Question {
    /// Whether it lives.
    Health,
    /// Whether it may be asked.
    Ready,
    /// What is served here.
    Document(Value),
    /// What pods answer.
    Figures { namespace: String, of: Subject, metric_labels: String },
}

/// Of which pods.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    /// Of this one.
    One(String),
    /// Of those that carry these labels.
    All(String),
}

impl Question {
    /// Reads `/path?query`; `None` is a path that is not served.
    pub(super) fn read(target: &str) -> Option<Self> {
        let target = target.get(..LONGEST.min(target.len())).filter(|read| read.len() == target.len())?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parts: Option<Vec<String>> = path.trim_matches('/').split('/').map(|part| decoded(part, false)).collect();
        let parts = parts?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let asks = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map_or(Some(String::new()), |(_, value)| decoded(value, true))
        };
        let group = || json!({ "groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION });
        let about = || json!({ "name": GROUP, "versions": [group()], "preferredVersion": group() });
        Some(match parts[..] {
            ["health"] => Self::Health,
            ["ready"] => Self::Ready,
            ["apis"] => Self::Document(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [about()] })),
            ["apis", GROUP] => {
                let mut group = about();
                (group["kind"], group["apiVersion"]) = (json!("APIGroup"), json!("v1"));
                Self::Document(group)
            }
            ["apis", GROUP, VERSION] => Self::Document(json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": format!("{GROUP}/{VERSION}"),
                "resources": [{
                    "name": format!("pods/{METRIC}"),
                    "singularName": "",
                    "namespaced": true,
                    "kind": "MetricValueList",
                    "verbs": ["get"],
                }],
            })),
            ["apis", GROUP, VERSION, "namespaces", namespace, "pods", name, METRIC] => Self::Figures {
                namespace: namespace.to_owned(),
                of: match name {
                    "*" => Subject::All(asks("labelSelector")?),
                    name => Subject::One(name.to_owned()),
                },
                metric_labels: asks("metricLabelSelector")?,
            },
            _ => return None,
        })
    }
}

impl Answer {
    /// For people and probes.
    pub(super) fn words(status: u16, words: &str) -> Self {
        Self { status, body: json!(words) }
    }

    /// What the API says of a question that it does not answer.
    pub(super) fn status(status: u16, reason: &str, message: &str) -> Self {
        let body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
        });
        Self { status, body }
    }

    /// What pods of a namespace answer, as it is known at a time.
    pub(super) fn values(namespace: &str, known: &[(String, Rate)], at: jiff::Timestamp) -> Self {
        let items: Vec<Value> = known
            .iter()
            .map(|(name, rate)| {
                let ago = jiff::SignedDuration::try_from(rate.ago).unwrap_or_default();
                let known = at.checked_sub(ago).unwrap_or(at);
                json!({
                    "describedObject": { "kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "v1" },
                    "metric": { "name": METRIC, "selector": null },
                    "timestamp": known.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    "windowSeconds": (rate.over.as_secs_f64().round() as u64).max(1),
                    "value": format!("{}m", rate.millis),
                })
            })
            .collect();
        let version = format!("{GROUP}/{VERSION}");
        Self {
            status: 200,
            body: json!({ "kind": "MetricValueList", "apiVersion": version, "metadata": {}, "items": items }),
        }
    }
}

/// What `%2A` means, and `+` within a query; `None` for what means nothing.
fn decoded(text: &str, is_query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if is_query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ROOT: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/pods";

    #[test]
    fn questions_are_read_as_autoscalers_and_people_write_them() {
        let of = |target: &str| Question::read(&format!("{ROOT}/{target}"));
        let figures = |of: Subject, labels: &str| Question::Figures {
            namespace: "shop".to_owned(),
            of,
            metric_labels: labels.to_owned(),
        };
        let all = |labels: &str| figures(Subject::All(labels.to_owned()), "");
        assert_eq!(of("*/http_requests_per_second?labelSelector=app%3Dtextnlp-api"), Some(all("app=textnlp-api")));
        assert_eq!(of("%2A/http_requests_per_second?labelSelector=a+in+%28b%2Cc%29"), Some(all("a in (b,c)")));
        assert_eq!(of("*/http_requests_per_second"), Some(all("")));
        assert_eq!(
            of("api-1/http_requests_per_second?timeout=1s"),
            Some(figures(Subject::One("api-1".to_owned()), ""))
        );
        assert_eq!(
            of("*/http_requests_per_second?labelSelector=a&metricLabelSelector=b%3Dc"),
            Some(figures(Subject::All("a".to_owned()), "b=c"))
        );
        for nothing in [
            "*/other",
            "*",
            "",
            "*/http_requests_per_second/more",
            "%zz/http_requests_per_second",
            "%2/x",
            "%+1/http_requests_per_second",
        ] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        assert_eq!(of("*/http_requests_per_second?labelSelector=%ff"), None, "no text");
        assert_eq!(of(&"a".repeat(LONGEST)), None);
        assert_eq!(Question::read(&"ä".repeat(LONGEST)), None);
        assert_eq!(
            (Question::read("/ready"), Question::read("/health")),
            (Some(Question::Ready), Some(Question::Health))
        );
        assert_eq!(Question::read("/"), None);
    }

    #[test]
    fn whoever_looks_what_is_served_finds_the_one_metric() {
        let document = |path: &str| match Question::read(path) {
            Some(Question::Document(document)) => document,
            other => panic!("{path}: {other:?}"),
        };
        let list = document("/apis/custom.metrics.k8s.io/v1beta2");
        assert_eq!(list["resources"][0]["name"], "pods/http_requests_per_second");
        let group = document("/apis/custom.metrics.k8s.io");
        assert_eq!((&group["kind"], &group["preferredVersion"]["version"]), (&json!("APIGroup"), &json!("v1beta2")));
        assert_eq!(document("/apis/")["groups"][0]["name"], "custom.metrics.k8s.io");
    }

    #[test]
    fn a_value_is_a_quantity_with_its_time_and_its_window() {
        let rate = Rate { millis: 1234, over: Duration::from_millis(29_600), ago: Duration::from_secs(3) };
        let told =
            Answer::values("shop", &[("api-1".to_owned(), rate)], "2026-01-02T03:04:05Z".parse().expect("a time"));
        let item = &told.body["items"][0];
        assert_eq!(
            item["describedObject"],
            json!({ "kind": "Pod", "namespace": "shop", "name": "api-1", "apiVersion": "v1" })
        );
        assert_eq!((&item["value"], &item["windowSeconds"]), (&json!("1234m"), &json!(30)));
        assert_eq!((&item["timestamp"], &item["metric"]["name"]), (&json!("2026-01-02T03:04:02Z"), &json!(METRIC)));
    }
}
