//! Preflight check of an external Gateway: it exists, and one of its listeners accepts the service's route. Reads only.

use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Problem, Result, Wanted};

use crate::api::Api;
use crate::error::Call;
use crate::table;

const PLACE: &str = "cluster.ingress";
/// The label that holds the name of every namespace.
const NAME: &str = "kubernetes.io/metadata.name";

/// The requirements on a listener.
struct ListenerRequirements<'a> {
    host: &'a str,
    section: Option<&'a str>,
    /// The port that clients connect to.
    port: u16,
    /// The namespace of the route, and its labels.
    namespace: &'a str,
    labels: &'a Value,
}

/// Checks the listeners: a route that none accepts serves no clients, and only its status shows that. `port` is the one
/// that clients connect to.
pub(crate) async fn listeners(api: &Api, wanted: &[Wanted], port: u16, problems: &mut Vec<Problem>) -> Result<()> {
    let routes = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::HTTP_ROUTE));
    for spec in routes.map(|one| one.spec.as_value()) {
        let parent = &spec["spec"]["parentRefs"][0];
        let (Some(namespace), Some(name), Some(ours), Some(host)) = (
            parent["namespace"].as_str(),
            parent["name"].as_str(),
            spec["metadata"]["namespace"].as_str(),
            spec["spec"]["hostnames"][0].as_str(),
        ) else {
            continue;
        };
        let row = table::named("kubernetes.gateway");
        let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(name) };
        let gateway = match api.get(&call).await {
            Ok(gateway) => gateway,
            // Without permission to read Gateways, it is assumed to exist.
            Err(error) if error.kind == ErrorKind::Denied => continue,
            Err(error) => return Err(error),
        };
        let Some(gateway) = gateway else {
            let list = Call { action: "list", verb: "list", row, namespace: None, name: None };
            let there = match api.list(&list, "").await {
                Ok(there) => there,
                Err(error) if error.kind == ErrorKind::Denied => Vec::new(),
                Err(error) => return Err(error),
            };
            problems.push(missing((namespace, name), &there));
            continue;
        };
        let labels = labels(api, wanted, ours).await?;
        let section = parent["sectionName"].as_str();
        let asks = ListenerRequirements { host, section, port, namespace: ours, labels: &labels };
        problems.extend(refusal(&gateway, &asks));
    }
    Ok(())
}

fn missing((namespace, name): (&str, &str), there: &[Value]) -> Problem {
    let named =
        |one: &Value| Some(format!("{}/{}", one["metadata"]["namespace"].as_str()?, one["metadata"]["name"].as_str()?));
    let there: Vec<String> = there.iter().filter_map(named).collect();
    let fix = match there.is_empty() {
        true => "ask a cluster administrator to create one with an HTTPS listener".to_owned(),
        false => format!("choose an existing one: {}", there.join(", ")),
    };
    Problem::new(PLACE, format!("there is no Gateway `{namespace}/{name}`"), fix)
}

/// The labels of a namespace, as they are or as they will be applied.
async fn labels(api: &Api, wanted: &[Wanted], namespace: &str) -> Result<Value> {
    let row = table::namespaces();
    let call = Call { action: "read", verb: "get", row, namespace: None, name: Some(namespace) };
    let there = match api.get(&call).await {
        Ok(there) => there.unwrap_or_default(),
        Err(error) if error.kind == ErrorKind::Denied => Value::Null,
        Err(error) => return Err(error),
    };
    let mut labels = json!({ NAME: namespace });
    let ours = wanted.iter().filter(|one| one.kind.as_str() == row.name).map(|one| one.spec.as_value());
    let ours = ours.filter(|spec| spec["metadata"]["name"] == namespace).map(|spec| spec["metadata"]["labels"].clone());
    for known in std::iter::once(there["metadata"]["labels"].clone()).chain(ours) {
        for (label, value) in known.as_object().into_iter().flatten() {
            labels[label.as_str()] = value.clone();
        }
    }
    Ok(labels)
}

/// The problem if no listener accepts the route, or if an unencrypted one would accept it too.
fn refusal(gateway: &Value, asks: &ListenerRequirements<'_>) -> Option<Problem> {
    let name = format!(
        "{}/{}",
        gateway["metadata"]["namespace"].as_str().unwrap_or_default(),
        gateway["metadata"]["name"].as_str().unwrap_or_default()
    );
    let all = gateway["spec"]["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |listener: &&Value| asks.section.is_none_or(|section| listener["name"] == section);
    let matching: Vec<&Value> = all.iter().filter(named).collect();
    if let (Some(section), true) = (asks.section, matching.is_empty()) {
        let names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
        let fix = format!("choose one of its listeners: {}", names.join(", "));
        return Some(Problem::new(PLACE, format!("Gateway {name} has no listener `{section}`"), fix));
    }
    let whys: Vec<(&str, Option<String>)> = matching
        .iter()
        .map(|listener| (listener["name"].as_str().unwrap_or_default(), keeps_from(gateway, listener, asks)))
        .collect();
    let Some((taking, _)) = whys.iter().find(|(_, why)| why.is_none()) else {
        let whys: Vec<String> =
            whys.iter().map(|(name, why)| format!("`{name}` {}", why.as_deref().unwrap_or_default())).collect();
        let cause = format!(
            "no listener of Gateway {name} routes clients of {} at port {} to namespace {}: {}",
            asks.host,
            asks.port,
            asks.namespace,
            whys.join("; ")
        );
        let fix = format!(
            "ask its administrator to add a listener with `protocol: HTTPS`, that hostname and `allowedRoutes: {{ namespaces: {{ from: Selector, selector: {{ matchLabels: {{ {NAME}: {} }} }} }} }}`, or set another Gateway or `port`",
            asks.namespace
        );
        return Some(Problem::new(PLACE, cause, fix));
    };
    // A route without `sectionName` attaches to every listener that accepts it.
    let is_open = |listener: &&&Value| {
        listener["protocol"] == "HTTP" && takes_host(listener, asks.host) && may_come(gateway, listener, asks)
    };
    let open = matching.iter().find(is_open)?["name"].as_str().unwrap_or_default();
    let cause = format!(
        "listener `{open}` of Gateway {name} would also accept the route, and API keys would be sent without TLS"
    );
    Some(Problem::new(PLACE, cause, format!("write `section: {taking}`")))
}

/// Why a listener does not accept the route.
fn keeps_from(gateway: &Value, listener: &Value, asks: &ListenerRequirements<'_>) -> Option<String> {
    let protocol = listener["protocol"].as_str().unwrap_or_default();
    if protocol != "HTTPS" {
        return Some(format!("speaks {protocol}, and HTTPS is needed"));
    }
    if listener["tls"]["mode"] == "Passthrough" {
        return Some("passes TLS through, and an HTTPRoute needs TLS termination".to_owned());
    }
    if listener["port"] != asks.port {
        return Some(format!("listens on port {}", listener["port"]));
    }
    if !takes_host(listener, asks.host) {
        return Some(format!("takes {} alone", listener["hostname"]));
    }
    let kinds = listener["allowedRoutes"]["kinds"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !kinds.is_empty() && !kinds.iter().any(|kind| kind["kind"] == table::HTTP_ROUTE) {
        return Some("does not allow HTTPRoutes".to_owned());
    }
    (!may_come(gateway, listener, asks)).then(|| match from(listener) {
        "Selector" => "allows routes of namespaces with other labels (`allowedRoutes.namespaces.selector`)".to_owned(),
        other => format!("allows no routes of other namespaces (`allowedRoutes.namespaces.from: {other}`)"),
    })
}

fn takes_host(listener: &Value, host: &str) -> bool {
    match listener["hostname"].as_str().filter(|name| !name.is_empty()) {
        None => true,
        Some(name) => match name.strip_prefix('*') {
            Some(end) => host.strip_suffix(end).is_some_and(|label| !label.is_empty()),
            None => name == host,
        },
    }
}

fn from(listener: &Value) -> &str {
    listener["allowedRoutes"]["namespaces"]["from"].as_str().unwrap_or("Same")
}

/// Whether a listener accepts routes of the route's namespace.
fn may_come(gateway: &Value, listener: &Value, asks: &ListenerRequirements<'_>) -> bool {
    match from(listener) {
        "All" => true,
        "Same" => gateway["metadata"]["namespace"] == asks.namespace,
        "Selector" => selects(&listener["allowedRoutes"]["namespaces"]["selector"], asks.labels),
        _ => false,
    }
}

/// Whether a label selector matches these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let all = selector["matchLabels"].as_object();
    all.into_iter().flatten().all(|(label, value)| labels.get(label) == Some(value))
        && selector["matchExpressions"].as_array().into_iter().flatten().all(|one| {
            let value = one["key"].as_str().and_then(|key| labels.get(key));
            let is_one = || one["values"].as_array().is_some_and(|values| value.is_some_and(|v| values.contains(v)));
            match one["operator"].as_str() {
                Some("In") => is_one(),
                Some("NotIn") => !is_one(),
                Some("Exists") => value.is_some(),
                Some("DoesNotExist") => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(section: Option<&str>, listeners: Value, says: Option<&str>) {
        let gateway =
            json!({ "metadata": { "namespace": "infra", "name": "web" }, "spec": { "listeners": listeners } });
        let labels = json!({ NAME: "textnlp", "team": "text" });
        let asks = ListenerRequirements {
            host: "text.example.com",
            section,
            port: 443,
            namespace: "textnlp",
            labels: &labels,
        };
        let refusal_text = refusal(&gateway, &asks).map(|problem| problem.to_string());
        match says {
            None => assert_eq!(refusal_text, None, "{listeners}"),
            Some(says) => assert!(
                refusal_text.as_ref().is_some_and(|refusal_text| refusal_text.contains(says)),
                "{listeners}: {refusal_text:?}"
            ),
        }
    }

    fn https(more: Value) -> Value {
        let mut listener = json!({ "name": "https", "protocol": "HTTPS", "port": 443, "allowedRoutes": { "namespaces": { "from": "All" } } });
        for (name, value) in more.as_object().into_iter().flatten() {
            listener[name.as_str()] = value.clone();
        }
        listener
    }

    #[test]
    fn listener_accepts_a_route_by_protocol_port_host_and_namespace() {
        let from = |namespaces: Value| https(json!({ "allowedRoutes": { "namespaces": namespaces } }));
        let labels = |labels: Value| from(json!({ "from": "Selector", "selector": { "matchLabels": labels } }));
        let expressed = |operator: &str, values: Value| {
            let one = json!({ "key": "team", "operator": operator, "values": values });
            from(json!({ "from": "Selector", "selector": { "matchExpressions": [one] } }))
        };
        for (listener, says) in [
            (https(json!({})), None),
            (https(json!({ "hostname": "*.example.com" })), None),
            (https(json!({ "hostname": "*.text.example.com" })), Some(r#"`https` takes "*.text.example.com" alone"#)),
            (https(json!({ "hostname": "other.example.com" })), Some(r#"takes "other.example.com" alone"#)),
            (https(json!({ "port": 8443 })), Some("`https` listens on port 8443")),
            (https(json!({ "protocol": "TLS" })), Some("`https` speaks TLS, and HTTPS is needed")),
            (https(json!({ "tls": { "mode": "Passthrough" } })), Some("passes TLS through")),
            (
                https(json!({ "allowedRoutes": { "kinds": [{ "kind": "GRPCRoute" }] } })),
                Some("does not allow HTTPRoutes"),
            ),
            (https(json!({ "allowedRoutes": {} })), Some("`allowedRoutes.namespaces.from: Same`")),
            (from(json!({ "from": "None" })), Some("`allowedRoutes.namespaces.from: None`")),
            (labels(json!({ NAME: "textnlp" })), None),
            (labels(json!({ NAME: "other" })), Some("namespaces with other labels")),
            (expressed("In", json!(["text", "voice"])), None),
            (expressed("NotIn", json!(["text"])), Some("namespaces with other labels")),
            (expressed("Exists", json!([])), None),
            (expressed("DoesNotExist", json!([])), Some("namespaces with other labels")),
        ] {
            check(None, json!([listener]), says);
        }
        check(None, json!([]), Some("no listener of Gateway infra/web"));
    }

    #[test]
    fn route_is_not_attached_to_a_plaintext_listener() {
        let open = https(json!({ "name": "http", "protocol": "HTTP", "port": 80 }));
        let both = json!([open, https(json!({}))]);
        check(None, both.clone(), Some("API keys would be sent without TLS; write `section: https`"));
        check(Some("https"), both.clone(), None);
        check(Some("http"), both.clone(), Some("`http` speaks HTTP"));
        check(Some("tls"), both, Some("choose one of its listeners: http, https"));
        let closed = https(json!({ "name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {} }));
        check(None, json!([closed, https(json!({}))]), None);
    }

    #[test]
    fn missing_gateway_is_reported_with_the_existing_ones() {
        let there = json!({ "metadata": { "namespace": "infra", "name": "web" } });
        assert!(missing(("infra", "wep"), &[there]).to_string().contains("choose an existing one: infra/web"));
        assert!(missing(("infra", "wep"), &[]).to_string().contains("there is no Gateway `infra/wep`"));
    }
}
