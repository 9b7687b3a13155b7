//! The custom metrics API: parsing of requests and shape of the answers. Pure.

use serde_json::{Value, json};

use super::rates::Rate;

/// The API group and its only version. Autoscalers of every supported Kubernetes version accept it.
const GROUP: &str = "custom.metrics.k8s.io";
const VERSION: &str = "v1beta2";
/// The only metric, under the name that autoscalers use.
const METRIC: &str = "http_requests_per_second";
/// The longest request target that is read, in bytes.
const MAX_TARGET_BYTES: usize = 8 << 10;

/// An HTTP status and a JSON body.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON document, or a JSON string for plain text.
    pub body: Value,
}

/// A parsed request.
#[derive(Debug, PartialEq)]
pub(super) enum Question {
    /// The liveness probe.
    Health,
    /// The readiness probe.
    Ready,
    /// A static document, such as the discovery document.
    Document(Value),
    /// The request rates of pods.
    Figures { namespace: String, of: Subject, metric_labels: String },
}

/// The pods that a request is about.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    /// One pod, by its name.
    One(String),
    /// All pods with these labels.
    All(String),
}

impl Question {
    /// Parses `/path?query`; `None` for a path that is not served.
    pub(super) fn read(target: &str) -> Option<Self> {
        let target = target.get(..MAX_TARGET_BYTES.min(target.len())).filter(|read| read.len() == target.len())?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parts: Option<Vec<String>> = path.trim_matches('/').split('/').map(|part| decoded(part, false)).collect();
        let parts = parts?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let parameter = |name: &str| {
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
                    "*" => Subject::All(parameter("labelSelector")?),
                    name => Subject::One(name.to_owned()),
                },
                metric_labels: parameter("metricLabelSelector")?,
            },
            _ => return None,
        })
    }
}

impl Answer {
    /// A plain-text answer, for probes and error messages.
    pub(super) fn words(status: u16, words: &str) -> Self {
        Self { status, body: json!(words) }
    }

    /// A Kubernetes `Status` document for a failed request.
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

    /// The `MetricValueList` with the known rates of the pods of a namespace.
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

/// Percent-decodes a text; in a query, `+` is a space. `None` for an invalid escape.
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
    fn metrics_api_requests_are_parsed_from_autoscalers_and_people() {
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
        assert_eq!(of(&"a".repeat(MAX_TARGET_BYTES)), None);
        assert_eq!(Question::read(&"ä".repeat(MAX_TARGET_BYTES)), None);
        assert_eq!(
            (Question::read("/ready"), Question::read("/health")),
            (Some(Question::Ready), Some(Question::Health))
        );
        assert_eq!(Question::read("/"), None);
    }

    #[test]
    fn metrics_api_discovery_lists_the_one_metric() {
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
    fn metric_value_has_a_quantity_a_timestamp_and_a_window() {
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
