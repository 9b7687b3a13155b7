//! What is exported is read by the tools that it is for: kubectl, Kustomize, Helm, and a real API server.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_cluster::Cluster as ControlPlane;
use textnlp_kubernetes::export;
use textnlp_provider::cluster::{ClusterGpus, NodeAutoscaler};
use textnlp_provider::component::{Cluster, ComponentSpec};
use textnlp_provider::operations::{Export, ExportFormat as Form};
use textnlp_provider::settings::Strategy;
use textnlp_provider::units::Span;
use textnlp_provider::{Controller, Delivery, GitFolder, OutputRef, Wanted};

use crate::parts::*;

const KEYS: [&str; 6] = ["database-url", "jwt-key.pem", "tls.crt", "tls.key", "first-key-id", "first-key-sha256"];

/// With everything on, and a value that other versions of YAML take for a boolean.
fn place() -> Fixture {
    by_nginx(Some("letsencrypt"), Fixture { waf: true, ..fixture() })
}

fn exported(form: Form<'_>) -> Export {
    export(&objects(&place()), "pilot", form).unwrap()
}

#[test]
fn adapter_with_a_generated_certificate_is_refused_in_an_export() {
    for form in [Form::Yaml, Form::Kustomize, Form::Helm] {
        let why = export(&objects(&Fixture { adapter: true, ..place() }), "pilot", form).unwrap_err();
        assert!(why.contains("`scaling.adapter`") && why.contains("prometheus-adapter"), "{why}");
    }
}

fn text_of<'a>(export: &'a Export, path: &str) -> &'a str {
    &export.files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}")).text
}

fn documents(text: &str) -> Vec<Value> {
    let read = |document| Value::deserialize(document).unwrap();
    serde_yaml::Deserializer::from_str(text).map(read).filter(|one| !one.is_null()).collect()
}

/// By kind and name; a job without the digest in its name.
fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let named = |mut one: Value| {
        let mut name = one["metadata"]["name"].as_str().unwrap().to_owned();
        if one["kind"] == "Job" {
            let (plain, digest) = name.rsplit_once('-').unwrap();
            assert!(digest.len() == 8 && digest.chars().all(|c| c.is_ascii_hexdigit()), "{name}");
            name = plain.to_owned();
            one["metadata"]["name"] = json!(name);
        }
        (format!("{} {name}", one["kind"].as_str().unwrap()), one)
    };
    objects.into_iter().map(named).collect()
}

/// What we would apply, as far as it is known before: what secrets have to do with is left out, or named by where it is read.
fn ours() -> BTreeMap<String, Value> {
    let stream = exported(Form::Yaml);
    by_name(documents(text_of(&stream, "textnlp.yaml")))
}

fn put(export: &Export) -> (tempfile::TempDir, Utf8PathBuf) {
    // checkov passes over hidden folders.
    let folder = tempfile::Builder::new().prefix("export").tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    for file in &export.files {
        std::fs::create_dir_all(path.join(&file.path).parent().unwrap()).unwrap();
        std::fs::write(path.join(&file.path), &file.text).unwrap();
    }
    (folder, path)
}

fn secrets_in(folder: &Utf8Path) {
    std::fs::create_dir_all(folder).unwrap();
    for key in KEYS {
        std::fs::write(folder.join(key), format!("the {key}")).unwrap();
    }
}

fn said(command: &mut Command) -> (bool, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn yaml_export_is_ordered_by_dependency_and_contains_no_secret() {
    let wanted = objects(&place());
    let stream = exported(Form::Yaml);
    let text = text_of(&stream, "textnlp.yaml");
    let all = documents(text);
    let secrets = |one: &&Wanted| one.kind.as_str() == "kubernetes.secret";
    assert_eq!(all.len(), wanted.iter().filter(|one| !secrets(one)).count());
    assert_eq!((all[0]["kind"].as_str(), stream.files.len()), (Some("Namespace"), 1));
    assert!(all.iter().all(|one| one["kind"] != "Secret") && !text.contains("$output"), "{text}");
    let at = |kind: &str| all.iter().position(|one| one["kind"] == kind).unwrap();
    assert!(at("ServiceAccount") < at("Job") && at("Job") < at("Deployment"));
    // The same objects that `up` applies, but for what only it can know.
    let mut same = 0;
    for one in &wanted {
        let spec = one.spec.as_value();
        let found = all
            .iter()
            .find(|object| object["metadata"]["name"] == spec["metadata"]["name"] && object["spec"] == spec["spec"]);
        same += u32::from(found.is_some() && OutputRef::from_value(&spec["spec"]).is_none());
    }
    assert!(same >= 14, "{same} of {} are as they are applied", wanted.len());
    let digest =
        &ours()["Deployment textnlp-api"]["spec"]["template"]["metadata"]["annotations"]["textnlp-config-digest"];
    assert_eq!(digest.as_str().map(str::len), Some(64), "what is configured rolls the pods");
    let keys: BTreeSet<&str> = stream.secrets.iter().flat_map(|one| &one.keys).map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(KEYS));
    assert!(KEYS.iter().all(|key| text.contains(key)), "each is told of at the head");
    assert!(!text.contains("reinstate"), "a key that was taken back stays so");
}

#[test]
fn head_of_a_yaml_export_is_a_comment_with_the_commands_in_their_order() {
    let stream = exported(Form::Yaml);
    let head: Vec<&str> = text_of(&stream, "textnlp.yaml").lines().take_while(|line| line.starts_with('#')).collect();
    let head = head.join("\n");
    let parts = [
        "# Written by `textnlp-deploy export` from environment pilot.",
        "use only one of both in a namespace.",
        "# It contains no secrets. Create these first:",
        "create secret generic",
        "# Each file has the name of its key:",
        "umask 077   # these files are secret",
        "openssl genpkey",
        "# Then, and after each change:",
        "delete jobs -l app.kubernetes.io/part-of=textnlp",
        "kubectl apply --server-side -f FILE",
        "rollout restart deployment/textnlp-api",
    ];
    let at = parts.map(|part| head.find(part).unwrap_or_else(|| panic!("no `{part}` in\n{head}")));
    assert!(at.is_sorted(), "{at:?}\n{head}");
    assert_eq!(head.matches("umask 077").count(), 1, "once, before the first file\n{head}");
}

/// Checks of checkov that the objects for the clusters of clouds in the namespace kube-system do not pass, each with the reason.
const UNCHECKED: &[(&str, &str)] = &[
    ("CKV2_K8S_6", "the network policies of kube-system are those of its operator"),
    ("CKV_K8S_11", "pods wait for the device plugin and the node autoscaler: a limit on CPU makes them wait longer"),
    ("CKV_K8S_22", "NVIDIA documents no read-only file system for its device plugin"),
    ("CKV_K8S_23", "the device plugin creates its socket in a folder of the kubelet, which belongs to root"),
    ("CKV_K8S_29", "the device plugin has a security context of its container, as in NVIDIA's manifest"),
    ("CKV_K8S_31", "NVIDIA documents no seccomp profile for its device plugin"),
    ("CKV_K8S_40", "the device plugin runs as root, for its socket"),
    ("CKV_K8S_8", "the device plugin has no port for a probe"),
    ("CKV_K8S_9", "no Service sends requests to the device plugin or the node autoscaler"),
];

#[test]
fn objects_for_clusters_of_clouds_pass_checkov() {
    let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
    let gpus = ClusterGpus {
        count: 1,
        existing: false,
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        device_plugin: true,
    };
    let autoscaler = NodeAutoscaler {
        image: pinned("registry.k8s.io/autoscaling/cluster-autoscaler:v1.34.5"),
        provider: "aws".to_owned(),
        discovery: "asg:tag=k8s.io/cluster-autoscaler/enabled".to_owned(),
        variables: BTreeMap::from([("AWS_REGION".to_owned(), "eu-west-1".to_owned())]),
        part: "autoscaler-identity".to_owned(),
    };
    let place = Fixture { gpu: Some(gpus), node_autoscaler: Some(autoscaler), ..fixture() };
    let stream = export(&lowered(&cluster, place).unwrap(), "pilot", Form::Yaml).unwrap();
    let kinds: BTreeSet<String> = documents(text_of(&stream, "textnlp.yaml"))
        .iter()
        .map(|one| one["kind"].as_str().unwrap().to_owned())
        .collect();
    for kind in ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "Deployment"] {
        assert!(kinds.contains(kind), "no {kind} in {kinds:?}");
    }
    let (_folder, path) = put(&stream);
    let tests = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests"));
    let failures = crate::checkov::failures(tests, path.as_std_path());
    let failed: Vec<&str> = failures.keys().map(String::as_str).collect();
    assert_eq!(failed, UNCHECKED.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "{failures:#?}");
}

#[test]
fn account_at_a_registry_is_a_secret_that_the_operator_creates() {
    let wanted = own_objects(&with_registry(own_fixture()));
    let stream = export(&wanted, "pilot", Form::Yaml).unwrap();
    let text = text_of(&stream, "textnlp.yaml");
    let created =
        "create secret generic textnlp-registry --type kubernetes.io/dockerconfigjson --from-file=.dockerconfigjson";
    assert!(text.contains(created) && text.contains("' > .dockerconfigjson"), "{text}");
    let all = by_name(documents(text));
    assert_eq!(all["ServiceAccount textnlp-api"]["imagePullSecrets"], json!([{ "name": "textnlp-registry" }]));
    // CloudNativePG reads it by the name that the object says, which Kustomize does not know.
    let folder = export(&wanted, "pilot", Form::Kustomize).unwrap();
    let made: Value = serde_yaml::from_str(text_of(&folder, "kustomization.yaml")).unwrap();
    let secret = made["secretGenerator"].as_array().unwrap().iter().find(|one| one["name"] == "textnlp-registry");
    assert_eq!(secret.unwrap()["options"]["disableNameSuffixHash"], true);
    let chart = export(&wanted, "pilot", Form::Helm).unwrap();
    let template = text_of(&chart, "templates/secret-textnlp-registry.yaml");
    assert!(template.contains("(.Values.secrets).dockerconfigjson | b64enc"), "{template}");
}

#[test]
fn gateway_route_is_in_every_export_and_the_ca_is_a_value() {
    let wanted = objects(&by_gateway(fixture()));
    for form in [Form::Yaml, Form::Kustomize, Form::Helm] {
        let made = export(&wanted, "pilot", form).unwrap();
        let all: String = made.files.iter().map(|file| file.text.as_str()).collect();
        for kind in ["kind: HTTPRoute", "kind: BackendTLSPolicy"] {
            assert!(all.contains(kind), "{form:?}: no {kind}");
        }
        assert!(all.contains("create configmap textnlp-authority --from-file=ca.crt"), "{form:?}: {all}");
        assert!(!all.contains("$output"), "{form:?}");
    }
    // Whoever gives the service of a chart another port leads the route there too.
    let shared = Fixture { rollout: Strategy::Canary, ..by_gateway(fixture()) };
    let chart = export(&objects(&shared), "pilot", Form::Helm).unwrap();
    let route = text_of(&chart, "templates/httproute-textnlp-api.yaml");
    assert_eq!(route.matches("port: {{ include \"textnlp.value\" (list $ \"service.port\" ").count(), 2, "{route}");
}

#[test]
fn prometheus_queries_are_exported_without_a_token() {
    let place = Fixture { rollout: Strategy::Canary, ..place() };
    let mut wanted = objects(&place);
    wanted.retain(|one| !one.id.as_str().starts_with("main/server/"));
    wanted.extend(lowered(&component("server", ComponentSpec::Workload(judged())), place).unwrap());
    for form in [Form::Yaml, Form::Kustomize, Form::Helm] {
        let export = export(&wanted, "pilot", form).unwrap();
        let all: String = export.files.iter().map(|file| file.text.as_str()).collect();
        assert!(all.contains("textnlp-rollout-queries") && !all.contains("prometheus-token"), "{all}");
        assert!(export.secrets.iter().all(|secret| secret.name != "textnlp-prometheus"));
        let is_plain = all.contains("textnlp-api-{{new}}-");
        assert_eq!(is_plain, form != Form::Helm, "Helm would read a placeholder as one of its own");
    }
}

#[test]
fn exported_job_name_changes_with_its_content() {
    let name = |image: &str| {
        let place = fixture().set(|site| site.image = Some(pinned(image)));
        let stream = export(&objects(&place), "pilot", Form::Yaml).unwrap();
        let all = documents(&stream.files[0].text);
        all.iter().find(|one| one["kind"] == "Job").unwrap()["metadata"]["name"].clone()
    };
    assert_eq!(name("a:1"), name("a:1"));
    assert_ne!(name("a:1"), name("a:2"));
}

#[test]
fn schemas_of_three_kubernetes_versions_know_every_field() {
    let Some(schemas) = ControlPlane::schemas() else {
        assert!(ControlPlane::shared().is_none(), "run tests/cluster/build: the schemas are not there");
        return;
    };
    let python = Command::new("sh")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python.sh"), "jsonschema==4.25.1"])
        .output();
    let python = String::from_utf8(python.unwrap().stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let held = |objects: &Value| {
        let file = folder.path().join("objects.json");
        std::fs::write(&file, objects.to_string()).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemas.py");
        said(Command::new(python.trim()).args([script, schemas.as_str()]).arg(&file))
    };
    let mut objects = documents(text_of(&exported(Form::Yaml), "textnlp.yaml"));
    let image = with_model_image(&pinned("registry.example.com/models:1"), fixture());
    let weighted = Fixture { rollout: Strategy::Canary, ..by_gateway(fixture()) };
    let places = [with_parts(fixture()), image, weighted];
    for all in places.iter().map(crate::parts::objects).chain([own_objects(&own_fixture())]) {
        let stream = export(&all, "pilot", Form::Yaml).unwrap();
        // Kinds of others are held against their makers' definitions, on the server.
        let others = ["Cluster", "HTTPRoute", "BackendTLSPolicy", "PrometheusRule", "ServiceMonitor"];
        let all = documents(text_of(&stream, "textnlp.yaml")).into_iter();
        objects.extend(all.filter(|one| !others.iter().any(|kind| one["kind"] == *kind)));
    }
    let (ok, out, err) = held(&json!(objects));
    assert!(ok, "{out}{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines.len() == 3 && lines.iter().all(|line| line.contains("of other kinds: PrometheusRule ServiceMonitor")),
        "{out}"
    );
    assert!(text_of(&exported(Form::Yaml), "textnlp.yaml").contains("proxy-buffering: \"off\""));
    // A field that nobody knows is found.
    let deployment = objects.iter_mut().find(|one| one["kind"] == "Deployment").unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = json!({});
    let (ok, out, _) = held(&json!(objects));
    assert!(!ok && out.contains("livenesProbe"), "{out}");
}

#[test]
fn exported_database_is_in_every_format_and_survives_helm_uninstall() {
    let Some(control) = ControlPlane::shared() else { return };
    let wanted = own_objects(&own_fixture());
    let keys = ["password", "username", "database-password"];
    let stream = export(&wanted, "pilot", Form::Yaml).unwrap();
    let text = text_of(&stream, "textnlp.yaml");
    assert!(keys.iter().all(|key| text.contains(&format!("--from-file={key}"))), "{text}");
    assert!(text.contains("create secret generic textnlp-database-owner --type kubernetes.io/basic-auth"), "{text}");

    // CloudNativePG reads its Secret by the name that the object says, which Kustomize does not know.
    let (_folder, base) = put(&export(&wanted, "pilot", Form::Kustomize).unwrap());
    let files = base.join("secrets");
    secrets_in(&files);
    for key in keys {
        std::fs::write(files.join(key), "textnlp").unwrap();
    }
    let built = control.kubectl(&["kustomize", base.as_str()]);
    let built = by_name(documents(&String::from_utf8(built.stdout).unwrap()));
    let named = &built["Cluster textnlp-database"]["spec"]["bootstrap"]["initdb"]["secret"]["name"];
    assert!(built.contains_key(&format!("Secret {}", named.as_str().unwrap())), "{:?}", built.keys());

    let Some(mut helm) = control.helm() else { return };
    let (_folder, chart) = put(&export(&wanted, "pilot", Form::Helm).unwrap());
    let (ok, out, err) = said(helm.args(["lint", "--strict", chart.as_str(), "--set", "secrets.existing=true"]));
    assert!(ok, "{out}{err}");
    let mut helm = control.helm().unwrap();
    let (ok, out, err) = said(helm.args([
        "template",
        "x",
        chart.as_str(),
        "--kube-version",
        "1.34.0",
        "--set",
        "secrets.existing=true",
    ]));
    assert!(ok, "{err}");
    let all = by_name(documents(&out));
    for name in ["Cluster textnlp-database", "PersistentVolumeClaim textnlp-backups"] {
        assert_eq!(all[name]["metadata"]["annotations"]["helm.sh/resource-policy"], "keep", "{name}");
    }
    assert_eq!(all["CronJob textnlp-restore"]["spec"]["suspend"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn auxiliary_objects_are_in_every_export() {
    let Some(control) = ControlPlane::shared() else { return };
    crate::world::add_real_kinds(control).await;
    let wanted = objects(&with_parts(fixture()));
    let stream = export(&wanted, "pilot", Form::Yaml).unwrap();
    let ours = by_name(documents(text_of(&stream, "textnlp.yaml")));
    let names = [
        "CronJob analytics-processor",
        "ConfigMap spot-config",
        "ConfigMap saml-config",
        "PersistentVolumeClaim textnlp-models",
    ];
    assert!(names.iter().all(|name| ours.contains_key(*name)), "{:?}", ours.keys());

    let base = export(&wanted, "pilot", Form::Kustomize).unwrap();
    let (_folder, path) = put(&base);
    let namespace = control.namespace("beside");
    let overlay = path.join("overlay");
    std::fs::create_dir_all(&overlay).unwrap();
    std::fs::write(overlay.join("kustomization.yaml"), format!("resources: [../base]\nnamespace: {namespace}\n"))
        .unwrap();
    secrets_in(&path.join("base/secrets"));
    for pem in ["tls.crt", "tls.key"] {
        std::fs::write(path.join("base/secrets").join(pem), "none").unwrap();
    }
    for file in &base.files {
        std::fs::write(path.join("base").join(&file.path), &file.text).unwrap();
    }
    let built = control.kubectl(&["kustomize", overlay.as_str()]);
    let built = by_name(documents(&String::from_utf8(built.stdout).unwrap()));
    let container = "/spec/jobTemplate/spec/template/spec/containers/0";
    let env = built["CronJob analytics-processor"].pointer(&format!("{container}/env")).unwrap().to_string();
    let secret = built.keys().find_map(|name| name.strip_prefix("Secret textnlp-secrets-")).unwrap();
    assert!(env.contains(&format!("textnlp-secrets-{secret}")), "it reads the Secret by the name that it got: {env}");
    let tried =
        control.kubectl(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-k", overlay.as_str()]);
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));

    let Some(_) = control.helm() else { return };
    let (_folder, chart) = put(&export(&wanted, "pilot", Form::Helm).unwrap());
    let rendered = |more: &[&str]| {
        let args = ["template", "textnlp", chart.as_str(), "--kube-version", "1.34.0", "--namespace", "textnlp"];
        let mut helm = control.helm().unwrap();
        let (ok, out, err) = said(helm.args(args).args(["--set", "secrets.existing=true"]).args(more));
        assert!(ok, "{err}");
        by_name(documents(&out))
    };
    let (clean, out, err) =
        said(control.helm().unwrap().args(["lint", "--strict", chart.as_str(), "--set", "secrets.existing=true"]));
    assert!(clean, "{out}{err}");
    let mut all = rendered(&[]);
    let job = all.get_mut("CronJob analytics-processor").unwrap();
    let pod = job.pointer_mut("/spec/jobTemplate/spec/template/spec").unwrap().as_object_mut().unwrap();
    assert_eq!(pod.remove("imagePullSecrets"), Some(json!([])));
    for name in &names[..3] {
        assert_eq!(all.get(*name), ours.get(*name), "{name}");
    }
    let claim = &all["PersistentVolumeClaim textnlp-models"];
    assert_eq!(claim["spec"], ours["PersistentVolumeClaim textnlp-models"]["spec"]);
    // What the environment says of nodes is what a value of the chart stands at: one for pods with GPUs, one for the others.
    let nodes = |all: &BTreeMap<String, Value>| {
        let of = |prefix: &str| {
            let found = all.iter().find(|(name, _)| name.starts_with(prefix)).unwrap_or_else(|| panic!("{prefix}"));
            found.1["spec"]["template"]["spec"]["nodeSelector"].clone()
        };
        (of("Deployment textnlp-api"), of("Job textnlp-migrate"))
    };
    assert_eq!(nodes(&all), (json!({ "textnlp/pool": "gpu" }), json!({ "pool": "text" })));
    let set = "analytics.image=other:2,analytics.schedule=5 * * * *,nodeSelector.zone=a,gpu.nodeSelector.zone=b";
    let other = rendered(&["--set", set]);
    let job = &other["CronJob analytics-processor"];
    assert_eq!(job["spec"]["schedule"], "5 * * * *");
    assert_eq!(job.pointer(&format!("{container}/image")), Some(&json!("other:2")));
    let chosen = (json!({ "textnlp/pool": "gpu", "zone": "b" }), json!({ "pool": "text", "zone": "a" }));
    assert_eq!(nodes(&other), chosen);
}

#[tokio::test(flavor = "multi_thread")]
async fn kustomize_builds_the_same_objects_and_an_api_server_accepts_them() {
    let Some(control) = ControlPlane::shared() else { return };
    crate::world::add_real_kinds(control).await;
    let base = exported(Form::Kustomize);
    let (_folder, path) = put(&base);
    assert!(!control.kubectl(&["kustomize", path.as_str()]).status.success(), "the secrets are not there");
    secrets_in(&path.join("secrets"));
    let built = control.kubectl(&["kustomize", path.as_str()]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let built = String::from_utf8(built.stdout).unwrap();
    let (secrets, others): (Vec<_>, Vec<_>) = documents(&built).into_iter().partition(|one| one["kind"] == "Secret");
    assert_eq!(secrets.len(), 3);
    // Each Secret has the digest of its content as a part of its name, which is known wherever it is named.
    let mut renamed = serde_json::to_string(&others).unwrap();
    for secret in &secrets {
        let name = secret["metadata"]["name"].as_str().unwrap();
        let (plain, _) = name.rsplit_once('-').unwrap();
        assert!(renamed.contains(name), "{name} is read by nobody");
        renamed = renamed.replace(name, plain);
    }
    let renamed: Vec<Value> = serde_json::from_str(&renamed).unwrap();
    assert_eq!(by_name(renamed), ours());

    // An overlay in a namespace of its own, tried on the server.
    let overlay = path.join("overlay");
    std::fs::create_dir_all(&overlay).unwrap();
    let namespace = control.namespace("kustomized");
    let text = format!("resources: [../base]\nnamespace: {namespace}\n");
    std::fs::write(overlay.join("kustomization.yaml"), text).unwrap();
    std::fs::create_dir_all(path.join("base/secrets")).unwrap();
    for file in &base.files {
        std::fs::write(path.join("base").join(&file.path), &file.text).unwrap();
    }
    secrets_in(&path.join("base/secrets"));
    for pem in ["tls.crt", "tls.key"] {
        std::fs::write(path.join("base/secrets").join(pem), "none").unwrap();
    }
    let tried =
        control.kubectl(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-k", overlay.as_str()]);
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));

    // Applied, and applied again with another secret: by the two commands of the README, since no job is changed in place.
    let apply = || control.kubectl(&["apply", "--server-side", "-k", overlay.as_str()]).status.success();
    assert!(apply());
    std::fs::write(path.join("base/secrets/database-url"), "another").unwrap();
    assert!(!apply(), "the jobs name another Secret");
    let readme = text_of(&base, "README.md");
    let removal = readme
        .lines()
        .find_map(|line| line.strip_prefix("kubectl ").filter(|line| line.contains("delete jobs")))
        .unwrap();
    let removal = removal.replace("-n textnlp ", &format!("-n {namespace} "));
    assert!(control.kubectl(&removal.split(' ').collect::<Vec<_>>()).status.success(), "{removal}");
    assert!(apply());
}

fn argo_cd() -> Controller {
    Controller::ArgoCd { project: "text".to_owned(), cluster: "in-cluster".to_owned() }
}

fn flux() -> Controller {
    Controller::Flux { interval: Span::seconds(300), secret: Some("git".to_owned()) }
}

fn delivery(controller: Controller, namespace: &str) -> Delivery {
    let source = GitFolder {
        repository: "ssh://git@git.example.com/clusters.git".to_owned(),
        path: "./sites/pilot/".to_owned(),
        revision: "refs/heads/main".to_owned(),
    };
    Delivery::new(source, namespace.to_owned(), controller).unwrap()
}

/// The manifests of an export by kind and name, with their stages.
fn staged(export: &Export) -> BTreeMap<String, (String, Value)> {
    let manifests = export.files.iter().filter_map(|file| {
        let (stage, name) = file.path.strip_prefix("manifests/")?.split_once('/')?;
        Some((stage, &file.text)).filter(|_| name != "kustomization.yaml")
    });
    let staged = manifests.flat_map(|(stage, text)| {
        let named = by_name(documents(text)).into_iter();
        named.map(move |(name, manifest)| (name, (stage.to_owned(), manifest)))
    });
    staged.collect()
}

#[test]
fn manifests_for_controllers_are_in_stages_and_keep_data() {
    const KEPT: [&str; 3] = ["Namespace textnlp", "Cluster textnlp-database", "PersistentVolumeClaim textnlp-backups"];
    let wanted = own_objects(&own_fixture());
    for controller in [argo_cd(), flux()] {
        let delivery = delivery(controller, "controllers");
        let made = export(&wanted, "pilot", Form::Delivery(&delivery)).unwrap();
        let all: String = made.files.iter().map(|file| file.text.as_str()).collect();
        assert!(!all.contains("kind: Secret\n") && !all.contains("secretGenerator"), "{all}");
        let readme = text_of(&made, "README.md");
        let keys = made.secrets.iter().flat_map(|secret| &secret.keys);
        assert!(keys.into_iter().all(|key| readme.contains(&format!("--from-file={key}"))), "{readme}");
        assert!(readme.contains("CloudNativePG 1.25 or newer"), "{readme}");

        let staged = staged(&made);
        let stage = |name: &str| staged[name].0.as_str();
        assert_eq!(stage("Namespace textnlp"), "network");
        assert_eq!(stage("NetworkPolicy textnlp-deny"), "network");
        assert_eq!(stage("Cluster textnlp-database"), "database");
        assert_eq!(stage("Job textnlp-migrate"), "migrate");
        assert_eq!(stage("ServiceAccount textnlp-api"), "migrate", "a job needs it");
        // A volume may wait for its first pod, and a service for its address: nothing waits for them.
        for name in ["Deployment textnlp-api", "Service textnlp-api", KEPT[2], "CronJob textnlp-backup"] {
            assert_eq!(stage(name), "service", "{name}");
        }
        for (name, (_, manifest)) in &staged {
            let annotations = &manifest["metadata"]["annotations"];
            let is_kept = annotations["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"
                || annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled";
            assert_eq!(is_kept, KEPT.contains(&name.as_str()), "{name}");
        }
        let deployment = &staged["Deployment textnlp-api"].1;
        assert_eq!(deployment["spec"].get("replicas"), None, "the autoscaler's");
    }
}

#[test]
fn application_has_known_fields_and_its_waves_follow_the_stages() {
    /// The fields of `Application` in Argo CD 3.6, as far as they are written.
    const FIELDS: [(&str, &str); 17] = [
        ("/destination/name", "text"),
        ("/destination/namespace", "text"),
        ("/ignoreDifferences[]/group", "text"),
        ("/ignoreDifferences[]/jsonPointers[]", "text"),
        ("/ignoreDifferences[]/kind", "text"),
        ("/ignoreDifferences[]/name", "text"),
        ("/ignoreDifferences[]/namespace", "text"),
        ("/project", "text"),
        ("/source/path", "text"),
        ("/source/repoURL", "text"),
        ("/source/targetRevision", "text"),
        ("/syncPolicy/automated/prune", "boolean"),
        ("/syncPolicy/automated/selfHeal", "boolean"),
        ("/syncPolicy/retry/backoff/duration", "text"),
        ("/syncPolicy/retry/backoff/factor", "number"),
        ("/syncPolicy/retry/backoff/maxDuration", "text"),
        ("/syncPolicy/retry/limit", "number"),
    ];
    fn leaves(value: &Value, path: &str, found: &mut BTreeSet<(String, &'static str)>) {
        let kind = match value {
            Value::Object(fields) => {
                return fields.iter().for_each(|(name, value)| leaves(value, &format!("{path}/{name}"), found));
            }
            Value::Array(items) => {
                return items.iter().for_each(|item| leaves(item, &format!("{path}[]"), found));
            }
            Value::String(_) => "text",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::Null => "null",
        };
        found.insert((path.to_owned(), kind));
    }
    let delivery = delivery(argo_cd(), "argocd");
    let made = export(&own_objects(&own_fixture()), "pilot", Form::Delivery(&delivery)).unwrap();
    let application = &documents(text_of(&made, "application.yaml"))[0];
    let mut found = BTreeSet::new();
    leaves(&application["spec"], "", &mut found);
    assert!(found.remove(&("/syncPolicy/syncOptions[]".to_owned(), "text")));
    let fields: BTreeSet<_> = FIELDS.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect();
    assert_eq!(found, fields);
    let spec = &application["spec"];
    assert_eq!(application["apiVersion"], "argoproj.io/v1alpha1");
    assert_eq!(application["metadata"]["name"], "textnlp.pilot.main");
    assert_eq!(application["metadata"]["namespace"], "argocd");
    assert_eq!((&spec["source"]["path"], &spec["project"]), (&json!("sites/pilot/manifests"), &json!("text")));
    assert_eq!(spec["ignoreDifferences"][0]["name"], "textnlp-api");
    let staged = staged(&made);
    let wave = |name: &str| {
        let wave = &staged[name].1["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"];
        wave.as_str().unwrap().parse::<u32>().unwrap()
    };
    let names = ["Namespace textnlp", "Cluster textnlp-database", "Job textnlp-migrate", "Deployment textnlp-api"];
    assert!(names.windows(2).all(|two| wave(two[0]) < wave(two[1])), "{:?}", names.map(wave));
}

#[test]
fn kustomizations_of_flux_wait_for_each_other_and_check_what_they_apply() {
    let delivery = delivery(flux(), "flux-system");
    let made = export(&own_objects(&own_fixture()), "pilot", Form::Delivery(&delivery)).unwrap();
    let documents_of_flux = documents(text_of(&made, "flux.yaml"));
    let (repository, steps) = documents_of_flux.split_first().unwrap();
    assert_eq!(repository["spec"]["ref"], json!({ "name": "refs/heads/main" }));
    assert_eq!(repository["spec"]["secretRef"]["name"], "git");
    let mut before = Value::Null;
    for step in steps {
        let spec = &step["spec"];
        assert_eq!(spec["sourceRef"], json!({ "kind": "GitRepository", "name": "textnlp.pilot.main" }));
        assert_eq!(spec["dependsOn"][0]["name"], before, "{step}");
        before.clone_from(&step["metadata"]["name"]);
        let folder = spec["path"].as_str().unwrap().strip_prefix("./sites/pilot/").unwrap();
        let applied = made.files.iter().filter(|file| file.path.starts_with(&format!("{folder}/")));
        let applied: Vec<Value> = applied.flat_map(|file| documents(&file.text)).collect();
        for check in spec["healthChecks"].as_array().unwrap() {
            let is_it = |one: &Value| {
                ["name", "namespace"].iter().all(|field| one["metadata"][*field] == check[*field])
                    && ["apiVersion", "kind"].iter().all(|field| one[*field] == check[*field])
            };
            assert!(applied.iter().any(is_it), "{folder} has no {check}");
        }
    }
    let checked: Vec<_> = steps.iter().map(|step| step["spec"]["healthChecks"][0]["kind"].as_str()).collect();
    assert_eq!((checked[1], checked[2], checked.last()), (Some("Cluster"), Some("Job"), Some(&Some("Deployment"))));
    assert_eq!(before, "textnlp.pilot.main.service");

    let names = |environment: &str, site: &str| {
        let mut wanted = own_objects(&own_fixture());
        wanted.iter_mut().for_each(|one| one.site = site.parse().unwrap());
        let made = export(&wanted, environment, Form::Delivery(&delivery)).unwrap();
        let all = documents(text_of(&made, "flux.yaml"));
        let names: BTreeSet<String> = all.iter().map(|one| one["metadata"]["name"].to_string()).collect();
        // The repository has the name of the site, and each stage one more.
        assert_eq!(names.len(), all.len());
        assert!(names.iter().all(|name| name.trim_matches('"').len() <= 63), "{names:?}");
        names
    };
    let (one, other) = (format!("{}-a", "e".repeat(38)), format!("{}-b", "e".repeat(38)));
    assert!(names(&one, &other).is_disjoint(&names(&one, &one)), "long names keep their bound and differ");
    assert!(names("a-b", "c").is_disjoint(&names("a", "b-c")), "hyphens do not separate names");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_accepts_what_controllers_get_and_it_is_what_kubectl_gets() {
    let Some(control) = ControlPlane::shared() else { return };
    crate::world::add_real_kinds(control).await;
    let namespace = control.namespace("controllers");
    for controller in [argo_cd(), flux()] {
        let delivery = delivery(controller, &namespace);
        let (_folder, path) = put(&exported(Form::Delivery(&delivery)));
        let built = control.kubectl(&["kustomize", path.join("manifests").as_str()]);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let mut built = by_name(documents(&String::from_utf8(built.stdout).unwrap()));
        for manifest in built.values_mut() {
            let metadata = manifest["metadata"].as_object_mut().unwrap();
            let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { continue };
            annotations.retain(|name, _| !name.starts_with("argocd.") && !name.starts_with("kustomize."));
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        assert_eq!(built, ours());
    }
    if !control.define("flux") {
        return;
    }
    let delivery = delivery(flux(), &namespace);
    let (_folder, path) = put(&exported(Form::Delivery(&delivery)));
    let file = path.join("flux.yaml");
    let tried =
        control.kubectl(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file.as_str()]);
    assert!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_chart_lints_and_renders_the_applied_objects() {
    let Some(control) = ControlPlane::shared() else { return };
    let Some(_) = control.helm() else { return };
    let helm = |args: &[&str]| said(control.helm().unwrap().args(args));
    let chart = exported(Form::Helm);
    let (_folder, path) = put(&chart);
    let files = path.join("files");
    secrets_in(&files);
    let sets: Vec<String> = [
        ("databaseUrl", "database-url"),
        ("jwtKeyPem", "jwt-key.pem"),
        ("tlsCrt", "tls.crt"),
        ("tlsKey", "tls.key"),
        ("firstKeyId", "first-key-id"),
        ("firstKeySha256", "first-key-sha256"),
    ]
    .iter()
    .flat_map(|(value, key)| ["--set-file".to_owned(), format!("secrets.{value}={}", files.join(key))])
    .collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let (clean, out, err) = helm(&[&["lint", "--strict", path.as_str()], sets.as_slice()].concat());
    assert!(clean && out.contains("0 chart(s) failed"), "{out}{err}");
    let template = |more: &[&str]| {
        let args = ["template", "textnlp", path.as_str(), "--kube-version", "1.34.0", "--namespace", "textnlp"];
        helm(&[args.as_slice(), sets.as_slice(), more].concat())
    };
    let (rendered, out, err) = template(&["--set", "namespace.create=true"]);
    assert!(rendered, "{err}");
    let mut all = by_name(documents(&out));
    let secrets: Vec<String> = all.keys().filter(|name| name.starts_with("Secret ")).cloned().collect();
    assert_eq!(secrets.len(), 3);
    for name in secrets {
        let secret = all.remove(&name).unwrap();
        for (key, value) in secret["data"].as_object().unwrap() {
            use base64::Engine;
            let plain = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
            assert_eq!(String::from_utf8(plain).unwrap(), format!("the {key}"));
        }
    }
    for one in all.values_mut() {
        let is_deployment = one["kind"] == "Deployment";
        let Some(template) = one.pointer_mut("/spec/template") else { continue };
        let annotations = template.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        let digest = annotations.and_then(|all| all.remove("textnlp-secrets-digest"));
        assert_eq!(digest.is_some(), is_deployment);
        let spec = template["spec"].as_object_mut().unwrap();
        for chosen in ["imagePullSecrets", "nodeSelector", "tolerations"] {
            // The servers' pods bear a lost node for a while, wherever the chart comes to.
            if !(is_deployment && chosen == "tolerations") {
                assert!(spec.remove(chosen).is_some_and(|value| value == json!([]) || value == json!({})));
            }
        }
    }
    let ours = ours();
    for (name, object) in &ours {
        assert_eq!(all.get(name), Some(object), "{name}");
    }
    assert_eq!(all.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());

    // Null is the default, also of what holds values.
    let nulls = "autoscaling=null,service.port=null,monitoring=null,resources=null,nodeSelector=null,tolerations=null,\
                 imagePullSecrets=null,image=null,namespace.create=true";
    let (ok, defaults, err) = template(&["--set", "namespace.create=true"]);
    assert!(ok, "{err}");
    let (ok, out, err) = template(&["--set", nulls]);
    assert!(ok, "{err}");
    let same = |text: &str| {
        let all = documents(text).into_iter().filter(|one| one["kind"] != "Job");
        by_name(all)
    };
    assert_eq!(same(&out), same(&defaults));
    let (ok, out, err) = template(&["--set", "namespace=null"]);
    assert!(ok, "{err}");
    assert!(!by_name(documents(&out)).keys().any(|name| name.starts_with("Namespace ")), "none is created by default");

    // What is set arrives; what is mistyped or lacking is told.
    let (_, out, _) =
        template(&["--set", "image=other:2,autoscaling.max=7,namespace.create=true", "--namespace", "elsewhere"]);
    let other = by_name(documents(&out));
    assert_eq!(other["HorizontalPodAutoscaler textnlp-api-hpa"]["spec"]["maxReplicas"], 7);
    let images: BTreeSet<&str> = out.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert_eq!(images, BTreeSet::from(["\"other:2\""]));
    assert!(other.contains_key("Namespace elsewhere"), "{:?}", other.keys());
    // Names of objects and metrics begin with it too.
    let is_left = |line: &&str| line.replace("\"textnlp-", "").replace("\"textnlp_", "").contains("\"textnlp");
    let left: Vec<_> = out.lines().filter(|line| line.contains("namespace")).filter(is_left).collect();
    assert!(left.is_empty(), "{left:?}");
    // Rights are those of who is there too.
    let (_folder, bound) =
        put(&export(&objects(&Fixture { rollout: Strategy::Canary, ..place() }), "pilot", Form::Helm).unwrap());
    let args = ["template", "textnlp", bound.as_str(), "--kube-version", "1.34.0", "--namespace", "elsewhere"];
    let (ok, out, err) = helm(&[args.as_slice(), sets.as_slice()].concat());
    assert!(ok, "{err}");
    assert_eq!(by_name(documents(&out))["RoleBinding textnlp-rollout"]["subjects"][0]["namespace"], "elsewhere");
    let (_, out, _) = template(&["--set", "secrets.existing=true,monitoring.enabled=false"]);
    let fewer = by_name(documents(&out));
    assert!(
        fewer.keys().all(|name| !name.starts_with("Secret") && !name.starts_with("PrometheusRule")),
        "{:?}",
        fewer.keys()
    );
    let (ok, _, err) = template(&["--set", "autoscaling.maximum=7"]);
    assert!(!ok && err.contains("maximum"), "{err}");
    let from = |name: &str, text: &str| {
        std::fs::write(files.join(name), text).unwrap();
        format!("secrets.databaseUrl={}", files.join(name))
    };
    let (ok, _, err) = template(&["--set-file", &from("nothing", "")]);
    assert!(!ok && err.contains("set secrets.databaseUrl"), "{err}");
    // Whatever a job's pods take is another job.
    let jobs = |more: &[&str]| {
        let (_, out, _) = template(more);
        let jobs = documents(&out).into_iter().filter(|one| one["kind"] == "Job");
        jobs.map(|one| one["metadata"]["name"].to_string()).collect::<BTreeSet<_>>()
    };
    for set in ["image=other:2", "nodeSelector.pool=llm", "imagePullSecrets[0].name=pull", "tolerations[0].key=a"] {
        assert!(jobs(&[]).is_disjoint(&jobs(&["--set", set])), "{set}");
    }
    // Another secret is another pod and another migration.
    let of = |out: &str| {
        let jobs = documents(out).into_iter().filter(|one| one["kind"] == "Job");
        jobs.map(|one| one["metadata"]["name"].to_string()).collect::<BTreeSet<_>>()
    };
    let (_, out, _) = template(&[]);
    let (_, changed, _) = template(&["--set-file", &from("other", "postgres://other")]);
    assert!(of(&out).is_disjoint(&of(&changed)) && of(&out).len() == 2);
}
