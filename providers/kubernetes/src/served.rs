//! What objects of ours need of others in the cluster, without which they are there and do nothing: figures for autoscalers, controllers for
//! ways in. Reads only.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_provider::{Problem, Result, Sort, Wanted};

use crate::api::Api;
use crate::error::Call;
use crate::table;

/// An autoscaler whose figures nobody serves keeps the number of pods where it is, and says so only in its status.
pub(crate) async fn metrics(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    let served: BTreeSet<&str> = apis(wanted).filter_map(|spec| spec["spec"]["group"].as_str()).collect();
    let scalers = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::AUTOSCALER));
    let metrics = scalers.filter_map(|one| one.spec.as_value().pointer("/spec/metrics")?.as_array()).flatten();
    let kinds: BTreeSet<&str> = metrics.filter_map(|metric| metric["type"].as_str()).collect();
    for (kind, group, fix) in [
        ("Resource", "metrics.k8s.io", "install metrics-server in the cluster"),
        (
            "Pods",
            "custom.metrics.k8s.io",
            "set `scaling.adapter: true`, or install an adapter such as prometheus-adapter, with the rule in docs/guide/kubernetes.md, or leave out `scaling.requests_per_second`",
        ),
    ] {
        // What comes with the rest need not be there before.
        if !kinds.contains(kind) || served.contains(group) {
            continue;
        }
        let call = Call {
            action: "ask for the metrics of",
            verb: "get",
            row: table::namespaces(),
            namespace: None,
            name: None,
        };
        match api.document(&call, &format!("/apis/{group}")).await {
            Ok(_) => {}
            // Where nobody may look, it is taken to be there.
            Err(error) if error.sort == Sort::Denied => {}
            Err(error) if error.sort == Sort::NotFound => {
                let cause = format!(
                    "the autoscaler asks {group}, which nobody in the cluster serves: it would add no pods and remove none"
                );
                problems.push(Problem::warning("scaling", cause, fix));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The registrations of APIs among what is wanted.
fn apis(wanted: &[Wanted]) -> impl Iterator<Item = &Value> {
    let ours = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::API_SERVICE));
    ours.map(|one| one.spec.as_value())
}

/// A group of APIs has one server in a cluster: beside somebody else's version of it, ours would take their clients from them.
pub(crate) async fn groups(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    for spec in apis(wanted) {
        let Some(group) = spec["spec"]["group"].as_str() else { continue };
        let ours: BTreeSet<&str> = apis(wanted).filter_map(|spec| spec["metadata"]["name"].as_str()).collect();
        let call =
            Call { action: "ask who serves", verb: "list", row: table::namespaces(), namespace: None, name: None };
        let there = match api.metadata(&call, "/apis/apiregistration.k8s.io/v1/apiservices").await {
            Ok(there) => there,
            // What may not be read is told of by its kind.
            Err(error) if error.sort == Sort::Denied => continue,
            Err(error) => return Err(error),
        };
        let names = there.iter().filter_map(|one| one["metadata"]["name"].as_str());
        // One of the very name is told of as every taken name is.
        let others: Vec<&str> = names
            .filter(|name| name.split_once('.').is_some_and(|(_, of)| of == group) && !ours.contains(name))
            .collect();
        if let Some(first) = others.first() {
            let cause = format!(
                "APIService {} is there, and somebody else made it: whoever asks for {group} would be led to us instead",
                others.join(", ")
            );
            let fix = format!(
                "leave out `scaling.adapter` and give that one the rule in docs/guide/kubernetes.md, or remove it if nobody needs it: kubectl delete apiservice {first}"
            );
            problems.push(Problem::new("scaling.adapter", cause, fix));
        }
    }
    Ok(())
}

/// An ingress whose class nobody serves leads nobody anywhere, and one whose issuer is not there has no certificate.
pub(crate) async fn ways_in(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    let ingresses = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::INGRESS));
    for spec in ingresses.map(|one| one.spec.as_value()) {
        if let Some(class) = spec["spec"]["ingressClassName"].as_str() {
            let fix = "install ingress-nginx in the cluster";
            named(api, "IngressClass", "/apis/networking.k8s.io/v1/ingressclasses", class, fix, problems).await?;
        }
        if let Some(issuer) = spec["metadata"]["annotations"]["cert-manager.io/cluster-issuer"].as_str() {
            let fix = "install cert-manager in the cluster, with a ClusterIssuer";
            named(api, "ClusterIssuer", "/apis/cert-manager.io/v1/clusterissuers", issuer, fix, problems).await?;
        }
    }
    Ok(())
}

/// An object of the cluster's has to be there; which there are is told. Where nobody may look, it is taken to be there.
async fn named(api: &Api, kind: &str, path: &str, name: &str, fix: &str, problems: &mut Vec<Problem>) -> Result<()> {
    let call =
        Call { action: "ask for what leads to", verb: "list", row: table::namespaces(), namespace: None, name: None };
    let there = match api.metadata(&call, path).await {
        Ok(there) => there,
        Err(error) if error.sort == Sort::NotFound => Vec::new(),
        Err(error) if error.sort == Sort::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    let names: Vec<&str> = there.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let fix = if names.is_empty() {
        fix.to_owned()
    } else {
        format!("name one of those that are there: {}", names.join(", "))
    };
    problems.push(Problem::new("cluster.ingress", format!("the cluster has no {kind} `{name}`"), fix));
    Ok(())
}
