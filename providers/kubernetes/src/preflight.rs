//! What would make an apply fail: no way in, kinds that the cluster lacks, permissions, names that others have. Reads only; the
//! questions about permissions are documents that the API server answers and does not keep.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use textnlp_provider::{Ownership, Problem, Result, Sort, Wanted, told};

use crate::api::Api;
use crate::error::{Call, Rule, missing_rules};
use crate::gateway;
use crate::identity::{self, Place};
use crate::observe::several;
use crate::provider::Kubernetes;
use crate::served;
use crate::table::{self, ROWS, Row};

/// The oldest version whose API has every kind of the table in the version that it names.
const OLDEST_MINOR: u64 = 30;
/// What applying and removing takes.
const VERBS: [&str; 5] = ["get", "list", "create", "patch", "delete"];
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

pub(crate) async fn preflight(kubernetes: &Kubernetes, wanted: &[Wanted]) -> Result<Vec<Problem>> {
    let asked: Vec<(&'static Row, &Wanted)> =
        wanted.iter().filter_map(|one| Some((table::row(&one.kind)?, one))).collect();
    let mut problems = Vec::new();
    let (api, minor) = match reach(kubernetes, &mut problems).await {
        Ok(reached) => reached,
        Err(error) if error.sort == Sort::Denied || error.sort == Sort::Unavailable => {
            let fix = error
                .hint
                .clone()
                .unwrap_or_else(|| "check the address in the kubeconfig, and that this machine reaches it".to_owned());
            return Ok(vec![Problem::new("cluster", told(&error), fix)]);
        }
        Err(error) => return Err(error),
    };
    served::users(&api, wanted, kubernetes.is_told_of_openshift(), &mut problems).await?;
    problems.extend(nodes(&api, kubernetes.min_nodes()).await?);
    problems.extend(kubernetes.max_nodes().map(|most| {
        let cause = format!("`cluster.max_nodes` is {most}, and nobody here makes nodes in a cluster that exists");
        Problem::warning("cluster.max_nodes", cause, "see that the cluster's own autoscaler of nodes has such a limit")
    }));
    if let Some(image) = kubernetes.image().filter(|image| !image.contains("@sha256:")) {
        let cause = format!("`{image}` names no digest: whoever pushes that tag again changes what new pods run");
        problems.push(Problem::warning("cluster.image", cause, "write `REGISTRY/textnlp@sha256:…`"));
    }
    let brought = brought_kinds(wanted);
    let missing = missing_kinds(&api, &asked).await?;
    for row in ROWS.iter().filter(|row| missing.contains(row.name) && !brought.contains(&row.resource())) {
        let fix = match row.brought_by {
            Some(who) => format!("install {who} in the cluster, which brings it"),
            None => format!("use a cluster of version 1.{OLDEST_MINOR} or newer"),
        };
        problems.push(Problem::new(
            row.resource(),
            format!("the cluster has no {} in version {}", row.kind, row.version),
            fix,
        ));
    }
    served::metrics(&api, wanted, &mut problems).await?;
    served::groups(&api, wanted, &mut problems).await?;
    served::ways_in(&api, wanted, &mut problems).await?;
    served::classes(&api, wanted, &mut problems).await?;
    served::default_class(&api, wanted, &mut problems).await?;
    if let Some(port) = kubernetes.gateway_port().filter(|_| !missing.contains("kubernetes.http-route")) {
        gateway::listeners(&api, wanted, port, &mut problems).await?;
    }
    served::image_volumes(minor, wanted, &mut problems);
    let asked: Vec<_> = asked.into_iter().filter(|(row, _)| !missing.contains(row.name)).collect();
    permissions(&api, &asked, &mut problems).await?;
    taken_names(&api, &asked, &mut problems).await?;
    Ok(problems)
}

/// Fewer nodes than the environment names are no reason to stop: a cluster may add some when there are pods for them.
async fn nodes(api: &Api, least: u32) -> Result<Option<Problem>> {
    if least <= 1 {
        return Ok(None);
    }
    let call =
        Call { action: "count the nodes of", verb: "list", row: table::namespaces(), namespace: None, name: None };
    let cause = match api.metadata(&call, "/api/v1/nodes").await {
        Ok(nodes) if nodes.len() >= least as usize => return Ok(None),
        Ok(nodes) => format!("it has {} nodes, and `cluster.min_nodes` is {least}", nodes.len()),
        Err(error) if error.sort == Sort::Denied => {
            format!("whether it has the {least} nodes of `cluster.min_nodes` is not known: you may not list nodes")
        }
        Err(error) => return Err(error),
    };
    let fix = "add nodes, or say how many there should be; nobody here makes nodes in a cluster that exists";
    Ok(Some(Problem::warning("cluster", cause, fix)))
}

/// The kinds whose definitions are among what is wanted, as `certificates.cert-manager.io`: that is what definitions are named.
fn brought_kinds(wanted: &[Wanted]) -> BTreeSet<String> {
    let definitions =
        wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::DEFINITION));
    let names = definitions.filter_map(|one| one.spec.get("metadata")?["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Whether the API server answers, and of which version it is: the number after `1.`.
async fn reach(kubernetes: &Kubernetes, problems: &mut Vec<Problem>) -> Result<(Api, u64)> {
    let api = kubernetes.api().await?;
    let call =
        Call { action: "ask the version of", verb: "get", row: table::namespaces(), namespace: None, name: None };
    let version = api.document(&call, "/version").await?;
    // Some clouds write `34+`.
    let minor = version["minor"].as_str().unwrap_or_default();
    let minor: u64 = minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u64::MAX);
    if minor < OLDEST_MINOR {
        let cause = format!(
            "it runs Kubernetes {}, whose API lacks kinds or versions that are applied",
            version["gitVersion"].as_str().unwrap_or("of an unknown version")
        );
        problems.push(Problem::warning("cluster", cause, format!("upgrade it to 1.{OLDEST_MINOR} or newer")));
    }
    Ok((api, minor))
}

/// The kinds that this cluster does not have.
async fn missing_kinds(api: &Api, asked: &[(&'static Row, &Wanted)]) -> Result<BTreeSet<&'static str>> {
    let mut versions: BTreeMap<String, Vec<&'static Row>> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| asked.iter().any(|(one, _)| one.name == row.name)) {
        versions.entry(row.root()).or_default().push(row);
    }
    let mut missing = BTreeSet::new();
    for (path, rows) in versions {
        let call = Call { action: "ask for the kinds of", verb: "get", row: rows[0], namespace: None, name: None };
        let document = match api.document(&call, &path).await {
            Ok(document) => document,
            Err(error) if error.sort == Sort::NotFound => Value::Null,
            Err(error) => return Err(error),
        };
        let has = |row: &Row| {
            document["resources"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == row.plural))
        };
        missing.extend(rows.into_iter().filter(|row| !has(row)).map(|row| row.name));
    }
    Ok(missing)
}

/// Asks for each kind and namespace what may be done there; what may not is one problem, with the rules to add.
async fn permissions(api: &Api, asked: &[(&'static Row, &Wanted)], problems: &mut Vec<Problem>) -> Result<()> {
    let mut questions = BTreeSet::new();
    for (row, wanted) in asked.iter().filter(|(_, wanted)| wanted.ownership == Ownership::Ours) {
        let number = ROWS.iter().position(|one| one.name == row.name);
        if let (Some(number), Ok(place)) = (number, Place::of_spec(row, &wanted.spec)) {
            questions.extend(VERBS.map(|verb| (place.namespace.clone(), number, verb)));
        }
    }
    let mut answers: Vec<BoxFuture<'_, Result<bool>>> = Vec::new();
    for (namespace, place, verb) in &questions {
        answers.push(Box::pin(may(api, namespace.as_deref(), &ROWS[*place], verb)));
    }
    let answers = several(answers).await;
    let mut refused: BTreeMap<Option<String>, Vec<Rule<'_>>> = BTreeMap::new();
    for ((namespace, place, verb), may) in questions.into_iter().zip(answers) {
        if may? {
            continue;
        }
        let row = &ROWS[place];
        let rules = refused.entry(namespace).or_default();
        match rules.iter_mut().find(|rule| (rule.group, rule.plural) == (row.group, row.plural)) {
            Some(rule) => rule.verbs.push(verb),
            None => rules.push(Rule::of(row, vec![verb])),
        }
    }
    for (namespace, rules) in refused {
        let place = namespace.as_ref().map_or("cluster".to_owned(), |namespace| format!("namespace {namespace}"));
        let kinds: Vec<String> =
            rules.iter().map(|rule| format!("{} {}", rule.verbs.join(", "), rule.resource())).collect();
        let cause = format!("you may not {}", kinds.join("; "));
        let fix = format!(
            "whoever administers the cluster adds this, and binds it to you:\n{}",
            missing_rules(namespace.as_deref(), &rules)
        );
        problems.push(Problem::new(place, cause, fix));
    }
    Ok(())
}

pub(crate) async fn may(api: &Api, namespace: Option<&str>, row: &'static Row, verb: &'static str) -> Result<bool> {
    let attributes = json!({ "namespace": namespace, "verb": verb, "group": row.group, "version": row.version, "resource": row.plural });
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": attributes },
    });
    let call = Call { action: "ask what is allowed on", verb, row, namespace, name: None };
    Ok(api.ask(&call, REVIEWS, &question).await?["status"]["allowed"] == true)
}

/// Names that objects of nobody have; those of other deployments are told when their lineage is known.
async fn taken_names(api: &Api, asked: &[(&'static Row, &Wanted)], problems: &mut Vec<Problem>) -> Result<()> {
    let mut looks: Vec<BoxFuture<'_, Result<Option<Problem>>>> = Vec::new();
    for (row, wanted) in asked.iter().filter(|(_, wanted)| wanted.ownership == Ownership::Ours) {
        looks.push(Box::pin(taken_name(api, row, wanted)));
    }
    for problem in several(looks).await {
        problems.extend(problem?);
    }
    Ok(())
}

async fn taken_name(api: &Api, row: &'static Row, wanted: &Wanted) -> Result<Option<Problem>> {
    let place = match Place::of_spec(row, &wanted.spec) {
        Ok(place) => place,
        Err(error) => {
            return Ok(Some(Problem::new(
                wanted.id.to_string(),
                told(&error),
                "give it a name that the API server takes",
            )));
        }
    };
    let (namespace, name) = (place.namespace.as_deref(), Some(place.name.as_str()));
    let call = Call { action: "read", verb: "get", row, namespace, name };
    let there = match api.get(&call).await {
        // What may not be read is told above.
        Err(error) if error.sort == Sort::Denied => None,
        other => other?,
    };
    let taken = there.filter(|object| identity::lineage(object).is_none());
    Ok(taken.map(|_| {
        let cause = format!("{} is there, and somebody else made it", call.subject());
        Problem::new(wanted.id.to_string(), cause, "choose another name, or remove it if nobody needs it")
    }))
}
