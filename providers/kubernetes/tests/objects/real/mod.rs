//! What happens to objects on a real API server when somebody else, a quota, a role, a crash or a lost answer is in the way.

mod owners;
mod refusals;
mod removals;
mod webhooks;

use std::time::Duration;

use base64::Engine as _;

use crate::cut::{Cut, Side};
use crate::world::{PLANTED, World, definition, deployment, operation, provider, want, with};
use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_cluster::hollow::HOLLOW;
use textnlp_kubernetes::{Access, Kubernetes};
use textnlp_provider::{
    CloudId, Effect, EnvironmentName, Error, ErrorKind, FieldChange, Handle, Health, Lineage, Object, Observed,
    Operation, PolicyRequest, PolicyResource, Progress, Provider, ReadFailure, Recorded, ResourceId, Scope, SiteName,
    Verb, Wanted,
};

const FOREVER: [&str; 3] = ["sh", "-c", "exec sleep 100000"];

/// Calls of one operation that are cut; those that come later look at the same thing again.
const BOUNDARIES: u32 = 4;

fn record(wanted: &Wanted, object: &Object) -> Recorded {
    Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: None,
        spec: wanted.spec.clone(),
        needs: Vec::new(),
        ownership: wanted.ownership.clone(),
        schema: 1,
        cloud_id: object.cloud_id.clone(),
        outputs: object.outputs.clone(),
        protected: false,
        tainted: false,
        created: None,
    }
}

/// Goes on with an operation until it ends or until what it says of itself has this in it.
async fn follow(provider: &dyn Provider, op: &Operation, until: Option<&str>) -> Result<Followed, Error> {
    follow_from(provider, op, None, until, Duration::from_millis(200)).await
}

/// The same from a handle, with this pause between two polls.
async fn follow_from(
    provider: &dyn Provider,
    op: &Operation,
    mut handle: Option<Handle>,
    until: Option<&str>,
    pause: Duration,
) -> Result<Followed, Error> {
    let mut last = String::new();
    let mut conflicts = 0;
    for _ in 0..600 {
        let progress = match &handle {
            None => provider.begin(op).await,
            Some(handle) => provider.advance(op, handle).await,
        };
        let progress = match progress {
            // A machine that is busy makes calls late by itself: whoever journaled the operation asks again.
            Err(error)
                if error.kind == ErrorKind::Unavailable || (error.kind == ErrorKind::Conflict && conflicts < 5) =>
            {
                // A controller wrote the object between a read and the write: the engine repeats that too.
                conflicts += u32::from(error.kind == ErrorKind::Conflict);
                last = error.to_string();
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            other => other?,
        };
        match progress {
            Progress::Done(object) => return Ok(Followed::Done(object)),
            Progress::Failed { error, .. } => return Err(error),
            Progress::Pending { handle, says, .. } if until.is_some_and(|until| says.contains(until)) => {
                return Ok(Followed::Says(handle, says));
            }
            Progress::Pending { handle: next, says, .. } => (handle, last) = (Some(next), says),
        }
        tokio::time::sleep(pause).await;
    }
    panic!("{} {} did not end; waited for {until:?}, and heard last: {last}", op.verb, op.resource);
}

enum Followed {
    Done(Object),
    Says(Handle, String),
}

impl Followed {
    #[track_caller]
    fn done(self) -> Object {
        match self {
            Self::Done(object) => object,
            Self::Says(_, says) => panic!("it only says: {says}"),
        }
    }

    #[track_caller]
    fn says(self) -> String {
        match self {
            Self::Says(_, says) => says,
            Self::Done(object) => panic!("it is done: {object:?}"),
        }
    }
}

impl World {
    async fn create(&self, wanted: &Wanted) -> Recorded {
        let op = operation(self, 1, Verb::Create, wanted, None);
        record(wanted, &follow(&self.provider, &op, None).await.unwrap().done())
    }

    async fn seen(&self, wanted: &[Wanted], recorded: &[Recorded]) -> Vec<(ResourceId, Observed)> {
        look(&self.provider, self.lineage, wanted, recorded).await
    }

    async fn object(&self, wanted: &Wanted, recorded: &Recorded) -> Object {
        let seen = self.seen(std::slice::from_ref(wanted), std::slice::from_ref(recorded)).await;
        match seen.into_iter().find(|(id, _)| *id == wanted.id) {
            Some((_, Observed::Present(object))) => object,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self, wanted: &Wanted) -> Error {
        match follow(&self.provider, &operation(self, 1, Verb::Create, wanted, None), None).await {
            Err(error) => error,
            Ok(_) => panic!("{} is not refused", wanted.id),
        }
    }
}

async fn look(
    provider: &dyn Provider,
    lineage: Lineage,
    wanted: &[Wanted],
    recorded: &[Recorded],
) -> Vec<(ResourceId, Observed)> {
    let environment: EnvironmentName = "staging".parse().unwrap();
    let site: SiteName = "here".parse().unwrap();
    provider.observe(&Scope { lineage, environment: &environment, site: &site, wanted, recorded }).await.unwrap()
}

fn told(error: &Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}\n{}", error.hint.as_deref().unwrap_or_default())
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let out = cluster.kubectl(arguments);
    assert!(out.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What kubectl is told stays in a namespace.
fn inside(world: &World, arguments: &[&str]) -> String {
    kubectl(world.cluster, &[arguments, &["--namespace", &world.namespace]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn deployed_service_answers_requests() {
    let Some(world) = World::new("answers") else { return };
    let kubelet = world.cluster.kubelet();
    let page = world.want("config-map", "page", json!({ "data": { "index.html": "hello from a pod" } }));
    let mut web = deployment(2, &["sh", "-c", "exec python3 -m http.server --bind $POD_IP --directory /site 8080"]);
    let pod = &mut web["spec"]["template"]["spec"];
    pod["volumes"] = json!([{ "name": "site", "configMap": { "name": "page" } }]);
    let container = &mut pod["containers"][0];
    container["volumeMounts"] = json!([{ "name": "site", "mountPath": "/site" }]);
    container["env"] = json!([{ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }]);
    container["ports"] = json!([{ "name": "http", "containerPort": 8080 }]);
    container["readinessProbe"] = json!({ "httpGet": { "path": "/", "port": "http" } });
    let ports = json!([{ "name": "http", "port": 80, "targetPort": "http" }]);
    let service = world.want("service", "web", json!({ "spec": { "selector": { "app": "web" }, "ports": ports } }));
    let all = [page, service, world.want("deployment", "web", web)];
    let mut recorded = Vec::new();
    for wanted in &all {
        recorded.push(world.create(wanted).await);
    }
    let address = kubelet.forward(&world.namespace, "web", 80);
    for _ in 0..4 {
        assert_eq!(get(address).await, "hello from a pod");
    }
    // A second look plans nothing.
    for (wanted, recorded) in all.iter().zip(&recorded) {
        let object = world.object(wanted, recorded).await;
        assert_eq!((world.provider.diff(wanted, recorded, &object), object.health), (Vec::new(), Health::Ready));
    }
}

async fn get(address: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()
}

/// Each answer in turn is lost, before the call or after it; another process goes on from what was journaled.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_call_is_resumed_by_another_process() {
    let Some(world) = World::new("cut") else { return };
    world.cluster.kubelet();
    let secret = json!({ "data": { "key": { "$secret": "key", "version": "1" } } });
    let kinds = [
        (world.want("secret", "keys", secret), "/data/key/version", json!("2")),
        (world.want("deployment", "web", deployment(1, &FOREVER)), "/spec/replicas", json!(2)),
        (
            want(
                "namespace",
                &world.cluster.namespace_name("cut"),
                None,
                json!({ "metadata": { "labels": { "a": "1" } } }),
            ),
            "/metadata/labels/a",
            json!("2"),
        ),
    ];
    for (wanted, pointer, value) in kinds {
        let changed = Wanted { spec: with(&wanted.spec, pointer, value), ..wanted.clone() };
        for side in [Side::Before, Side::After] {
            let mut recorded = None;
            let mut number = 0;
            for verb in [Verb::Create, Verb::Update, Verb::Delete] {
                let wish = if verb == Verb::Create { &wanted } else { &changed };
                // One operation for each boundary; the last one was not cut at all.
                for boundary in 0..BOUNDARIES {
                    number += 1;
                    let op = operation(&world, number, verb, wish, recorded.as_ref());
                    let cut = Cut::at(boundary, side);
                    let object = cut_and_go_on(&world, &op, &cut).await;
                    let seen = world.seen(std::slice::from_ref(wish), recorded.as_slice()).await;
                    let seen: Vec<_> = seen.into_iter().filter(|(id, _)| *id == wish.id).collect();
                    let label = format!("{verb} {} cut {side:?} call {boundary}", wish.id);
                    match (verb, &seen[..]) {
                        (Verb::Delete, [(_, Observed::Absent)]) => {}
                        (Verb::Create | Verb::Update, [(_, Observed::Present(there))]) => {
                            assert_eq!(there.cloud_id, object.cloud_id, "{label}");
                            let fresh = record(wish, &object);
                            assert_eq!(world.provider.diff(wish, &fresh, there), Vec::new(), "{label}");
                            recorded = Some(fresh);
                        }
                        other => panic!("{label}: {other:?}"),
                    }
                    if !cut.happened() {
                        break;
                    }
                    // The next boundary is tried from the same beginning.
                    match verb {
                        Verb::Create => drop(
                            follow(
                                &world.provider,
                                &operation(&world, 900, Verb::Delete, wish, recorded.take().as_ref()),
                                None,
                            )
                            .await
                            .unwrap(),
                        ),
                        Verb::Update => {
                            let back = operation(&world, 901, Verb::Update, &wanted, recorded.as_ref());
                            recorded =
                                Some(record(&wanted, &follow(&world.provider, &back, None).await.unwrap().done()));
                        }
                        Verb::Delete => recorded = Some(world.create(wish).await),
                    }
                }
                // The last boundary leaves it as the next verb does not expect it.
                match (verb, recorded.clone()) {
                    (Verb::Create, None) => recorded = Some(world.create(wish).await),
                    (Verb::Delete, Some(left)) => {
                        let op = operation(&world, 902, Verb::Delete, wish, Some(&left));
                        follow(&world.provider, &op, None).await.unwrap().done();
                        recorded = None;
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Runs an operation on a connection that is cut, from there on as another process with a connection of its own.
async fn cut_and_go_on(world: &World, op: &Operation, cut: &Cut) -> Object {
    let first = Kubernetes::with_client(cut.client(&world.cluster.admin()).await, world.vault());
    let mut handle: Option<Handle> = None;
    for _ in 0..600 {
        let progress = match &handle {
            None => first.begin(op).await,
            Some(handle) => first.advance(op, handle).await,
        };
        match progress {
            Ok(Progress::Done(object)) if !cut.happened() => return object,
            Ok(Progress::Pending { handle: next, .. }) if !cut.happened() => handle = Some(next),
            // A machine that is busy makes calls late by itself.
            Err(error) if !cut.happened() && error.kind.may_pass() => {}
            // What was returned after the cut was never written down.
            other => {
                assert!(cut.happened(), "{} {} fails by itself: {other:?}", op.verb, op.resource);
                return go_on(&provider(world.cluster), op, handle).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} {} does not end", op.verb, op.resource);
}

async fn go_on(provider: &dyn Provider, op: &Operation, mut handle: Option<Handle>) -> Object {
    for _ in 0..600 {
        let progress = match &handle {
            None => provider.begin(op).await.unwrap(),
            Some(handle) => provider.advance(op, handle).await.unwrap(),
        };
        match progress {
            Progress::Done(object) => return object,
            Progress::Pending { handle: next, .. } => handle = Some(next),
            Progress::Failed { error, .. } => panic!("{}", told(&error)),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} {} does not end", op.verb, op.resource);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_uses_a_watch_where_permitted() {
    let Some(world) = World::new("watched") else { return };
    world.cluster.kubelet();
    let gate = world.cluster.folder().join(format!("{}.open", world.namespace));
    let mut spec = deployment(1, &FOREVER);
    spec["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({ "exec": { "command": ["test", "-e", gate] }, "periodSeconds": 1 });
    let wanted = world.want("deployment", "web", spec);
    let op = operation(&world, 1, Verb::Create, &wanted, None);
    let Progress::Pending { handle, .. } = world.provider.begin(&op).await.unwrap() else {
        panic!("it is ready too soon")
    };

    // What was known is too old: it looks anew. It may not be watched: it is looked at, in this run and in whichever goes on with it.
    let expired = json!({ "kind": "Status", "reason": "Expired", "message": "too old resource version", "code": 410 });
    let forbidden = json!({ "kind": "Status", "reason": "Forbidden", "message": "deployments.apps is forbidden: User \"u\" cannot watch", "code": 403 });
    let line = Cut::answering(vec![(1, 410, expired), (3, 403, forbidden)]);
    let looking = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let Progress::Pending { handle: unwatched, again_in, .. } = looking.advance(&op, &handle).await.unwrap() else {
        panic!("it is ready too soon")
    };
    assert!(again_in >= Duration::from_millis(300), "{again_in:?}");
    let before = line.calls();
    let Progress::Pending { .. } = looking.advance(&op, &unwatched).await.unwrap() else {
        panic!("it is ready too soon")
    };
    // The object, its pods, and the log of none.
    assert!(line.calls() - before <= 3, "{} calls for a look", line.calls() - before);

    // A line that is lost in the middle of a watch is a look, and the wait goes on.
    let line = Cut::at(1, Side::Before);
    let lost = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let after = lost.advance(&op, &handle).await;
    assert!(matches!(after, Ok(Progress::Pending { .. })), "{after:?}");

    // Watched, a change is seen when it comes.
    let line = Cut::answering(Vec::new());
    let watching = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let opens = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(gate, "").unwrap();
    });
    let object = go_on(&watching, &op, Some(handle)).await;
    assert_eq!(object.health, Health::Ready);
    opens.await.unwrap();
}

/// The credential comes from a program that the kubeconfig names.
#[tokio::test(flavor = "multi_thread")]
async fn exec_plugin_supplies_the_credential() {
    let Some(world) = World::new("printed") else { return };
    inside(&world, &["create", "serviceaccount", "deployer"]);
    inside(
        &world,
        &[
            "create",
            "rolebinding",
            "it",
            "--clusterrole=admin",
            &format!("--serviceaccount={}:deployer", world.namespace),
        ],
    );
    let token = inside(&world, &["create", "token", "deployer"]);
    let token = token.trim();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("token.sh");
    // Good for an hour on paper, and asked for once; then it is about to end, and asked for each time.
    let script = format!(
        "#!/bin/sh\necho asked >> '{0}/asked'\nprintf '%s' '{{\"status\":{{\"token\":\"{token}\",\"expirationTimestamp\":\"'$(cat '{0}/ends')'\"}}}}'\n",
        folder.path().display()
    );
    std::fs::write(&program, script).unwrap();
    let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(world.cluster.admin()).unwrap()).unwrap();
    config["users"][0]["user"] = json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": [program], "interactiveMode": "Never" } });
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, config.to_string()).unwrap();
    let wanted = world.want("config-map", "settings", json!({ "data": { "a": "1" } }));
    for (ends, least) in [("2100-01-01T00:00:00Z", 1), ("2001-01-01T00:00:00Z", 3)] {
        std::fs::write(folder.path().join("ends"), ends).unwrap();
        let _ = std::fs::remove_file(folder.path().join("asked"));
        let access = Access::Kubeconfig { file: Some(file.clone()), context: None, programs: true };
        let printed = Kubernetes::new(access, world.vault());
        let object = follow(&printed, &operation(&world, 1, Verb::Create, &wanted, None), None).await.unwrap().done();
        let recorded = record(&wanted, &object);
        look(&printed, world.lineage, std::slice::from_ref(&wanted), std::slice::from_ref(&recorded)).await;
        follow(&printed, &operation(&world, 2, Verb::Delete, &wanted, Some(&recorded)), None).await.unwrap().done();
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap().lines().count();
        assert!(if least == 1 { asked == 1 } else { asked >= least }, "{ends}: {asked}");
    }
    // It is broken: nothing of what it printed is told.
    std::fs::write(&program, format!("echo {token}; echo sign in first >&2; exit 1")).unwrap();
    let access = Access::Kubeconfig { file: Some(file), context: None, programs: true };
    let problems = Kubernetes::new(access, world.vault()).preflight(&[wanted]).await.unwrap();
    let said = format!("{problems:?}");
    assert!(said.contains("sign in first") && !said.contains(token), "{said}");
}

/// An API server refuses a Secret of this type whose content is no JSON.
#[tokio::test(flavor = "multi_thread")]
async fn account_at_a_registry_is_the_file_that_kubelets_read() {
    let Some(world) = World::new("registry") else { return };
    let password = json!({ "$secret": "key", "version": "1" });
    let account = json!({ "$registry": "r.example.com:5000/team", "username": "ci", "password": password });
    let data = json!({ ".dockerconfigjson": account });
    let wanted = world.want("secret", "pull", json!({ "type": "kubernetes.io/dockerconfigjson", "data": data }));
    let recorded = world.create(&wanted).await;
    let template = "go-template={{index .data \".dockerconfigjson\" | base64decode}}";
    let file: Value = serde_json::from_str(&inside(&world, &["get", "secret", "pull", "-o", template])).unwrap();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("ci:{PLANTED}"));
    let entry = json!({ "username": "ci", "password": PLANTED, "auth": basic });
    assert_eq!(file, json!({ "auths": { "r.example.com:5000/team": entry } }));
    let object = world.object(&wanted, &recorded).await;
    let shown = serde_json::to_string(&object).unwrap();
    assert!(!shown.contains(PLANTED) && !shown.contains(&basic), "{shown}");
    let changes = world.provider.diff(&wanted, &recorded, &object);
    assert!(changes.is_empty(), "{changes:?}");
    let spec = with(&wanted.spec, "/data/.dockerconfigjson/password/version", json!("2"));
    let changes = world.provider.diff(&Wanted { spec, ..wanted }, &recorded, &object);
    assert!(matches!(&changes[..], [one] if matches!(one.effect, Effect::InPlace)), "{changes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn address_gets_its_password_only_in_the_secret_object() {
    let Some(world) = World::new("address") else { return };
    let password = json!({ "$secret": "key", "version": "1" });
    let address = json!({ "$url": "rediss://cache.example.com:6379", "password": password });
    let wanted = world.want("secret", "address", json!({ "type": "Opaque", "data": { "cache-url": address } }));
    let recorded = world.create(&wanted).await;
    let template = "go-template={{index .data \"cache-url\" | base64decode}}";
    let text = inside(&world, &["get", "secret", "address", "-o", template]);
    assert_eq!(text, format!("rediss://:{PLANTED}@cache.example.com:6379"));
    let object = world.object(&wanted, &recorded).await;
    assert!(!serde_json::to_string(&object).unwrap().contains(PLANTED));
    let changes = world.provider.diff(&wanted, &recorded, &object);
    assert!(changes.is_empty(), "{changes:?}");
    for (member, value) in [("$url", "rediss://other.example.com:6379"), ("password/version", "2")] {
        let spec = with(&wanted.spec, &format!("/data/cache-url/{member}"), json!(value));
        let changes = world.provider.diff(&Wanted { spec, ..wanted.clone() }, &recorded, &object);
        assert!(matches!(&changes[..], [one] if matches!(one.effect, Effect::InPlace)), "{member}: {changes:?}");
    }
}

/// The value of a secret is in the Secret and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn secret_value_is_stored_only_in_the_secret_object() {
    let Some(world) = World::new("secret") else { return };
    let wanted = world.want("secret", "keys", json!({ "data": { "key": { "$secret": "key", "version": "1" } } }));
    let recorded = world.create(&wanted).await;
    assert_eq!(inside(&world, &["get", "secret", "keys", "-o", "go-template={{.data.key | base64decode}}"]), PLANTED);
    let object = world.object(&wanted, &recorded).await;
    let shown = serde_json::to_string(&object).unwrap();
    assert!(!shown.contains(PLANTED) && !shown.contains("cGxhbnRlZC1odW50ZXIy"), "{shown}");
    // A person who writes another value is noticed.
    inside(&world, &["patch", "secret", "keys", "-p", r#"{"stringData":{"key":"other"}}"#]);
    inside(&world, &["annotate", "secret", "keys", "vault.example.com/copy=b3RoZXI="]);
    let object = world.object(&wanted, &recorded).await;
    let changes = world.provider.diff(&wanted, &recorded, &object);
    assert!(
        matches!(&changes[..], [one] if one.field == "data.key" && matches!(one.effect, Effect::Refuse(_))),
        "{changes:?}"
    );
    let shown = serde_json::to_string(&object).unwrap();
    assert!(!shown.contains("b3RoZXI="), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hollow_nodes_accept_pods_that_tolerate_them() {
    let Some(world) = World::new("fake") else { return };
    world.cluster.hollow_nodes(3);
    let mut many = deployment(30, &FOREVER);
    let pod = &mut many["spec"]["template"]["spec"];
    pod["tolerations"] = json!([{ "key": HOLLOW, "operator": "Exists" }]);
    pod["nodeSelector"] = json!({ HOLLOW: "true" });
    let wanted = world.want("deployment", "many", many);
    let recorded = world.create(&wanted).await;
    assert_eq!(world.object(&wanted, &recorded).await.health, Health::Ready);
}
