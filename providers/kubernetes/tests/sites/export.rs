//! What is exported is read by the tools that it is for: kubectl, Kustomize, Helm, and a real API server.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_cluster::Cluster as ControlPlane;
use textnlp_kubernetes::export;
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::operations::{Export, ExportFormat as Form};
use textnlp_provider::settings::Strategy;
use textnlp_provider::{OutputRef, Wanted};

use crate::parts::*;

const KEYS: [&str; 6] = ["database-url", "jwt-key.pem", "tls.crt", "tls.key", "first-key-id", "first-key-sha256"];

/// With everything on, and a value that other versions of YAML take for a boolean.
fn place() -> Fixture {
    by_nginx(Some("letsencrypt"), Fixture { waf: true, ..fixture() })
}

fn exported(form: Form) -> Export {
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
    let folder = tempfile::tempdir().unwrap();
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
    let left: Vec<_> = out
        .lines()
        .filter(|line| line.contains("namespace") && line.replace("\"textnlp-", "").contains("\"textnlp"))
        .collect();
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
