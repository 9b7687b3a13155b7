//! A Helm chart: the same objects, with site-specific settings as values. Everything else is as the environment
//! specifies.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::lower::{PROGRAM, RECEIVERS_NAME, gpu_resource_of};

use super::{ExportFile, Item, NeededSecret, SiteObjects, notes, short_digest, yaml, yaml_text};

/// Delimits the index of a template action while the object is a tree; no generated text contains it.
const OPEN: char = '⟦';
const CLOSE: char = '⟧';
const NAMESPACE: &str = ".Release.Namespace";
const SECRETS_DIGEST: &str = "include \"textnlp.secrets-digest\" . | quote";

pub(super) fn files(site: &SiteObjects, environment: &str) -> Result<Vec<ExportFile>, String> {
    let mut chart = Chart { namespace: &site.namespace, values: json!({}), actions: Vec::new() };
    let mut files = Vec::new();
    for item in &site.items {
        let text = chart.template(item)?;
        files.push(file(&format!("templates/{}", item.file()), text));
    }
    for secret in &site.secrets {
        files.push(file(&format!("templates/secret-{}.yaml", secret.name), template_of(secret)));
    }
    let about = json!({
        "apiVersion": "v2",
        "name": "textnlp",
        "description": format!("Self-hosted text generation of environment {environment}"),
        "type": "application",
        "version": env!("CARGO_PKG_VERSION"),
        "appVersion": env!("CARGO_PKG_VERSION"),
        // `lifecycle.preStop.sleep` needs Kubernetes 1.30.
        "kubeVersion": ">=1.30.0-0",
    });
    files.push(file("Chart.yaml", yaml(&about)?));
    files.push(file("values.yaml", values(&chart.values, &site.secrets)?));
    files.push(file("values.schema.json", schema(&chart.values, &site.secrets)));
    files.push(file("templates/_secrets.tpl", HELPERS.to_owned()));
    files.push(file("templates/NOTES.txt", NOTES.to_owned()));
    files.push(file("README.md", notes::helm(site, environment)));
    Ok(files)
}

/// The name of a Secret's key among the values: `jwt-key.pem` becomes `jwtKeyPem`.
pub(super) fn value_name(key: &str) -> String {
    let mut words = key.split(['-', '.']).filter(|word| !word.is_empty()).map(str::to_owned);
    let first = words.next().unwrap_or_default();
    words.fold(first, |all, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        all + &head.to_uppercase() + tail
    })
}

/// A changed secret rolls the pods. For external Secrets, the value `revision` does. Helm removes a value that is null, also one that
/// holds others: then the default of the chart applies.
const HELPERS: &str = "\
{{- define \"textnlp.secrets-digest\" -}}
{{ toJson .Values.secrets | sha256sum }}
{{- end }}
{{- define \"textnlp.value\" -}}
{{- $value := (index . 0).Values -}}
{{- range splitList \".\" (index . 1) -}}
{{- if not (kindIs \"invalid\" $value) -}}{{- $value = index $value . -}}{{- end -}}
{{- end -}}
{{- if kindIs \"invalid\" $value -}}{{ index . 2 }}{{- else -}}{{ toJson $value }}{{- end -}}
{{- end }}
";

/// The action that gives a value as JSON, by its path.
fn lookup(path: &str, default: &Value) -> String {
    // Go reads the escapes of JSON.
    format!("include \"textnlp.value\" (list $ \"{path}\" {})", json!(default.to_string()))
}

fn is_set(path: &str, default: bool) -> String {
    format!("eq ({}) \"true\"", lookup(path, &json!(default)))
}

const NOTES: &str = "\
textnlp is in namespace {{ .Release.Namespace }}. It is ready when the pods have loaded their models:

  kubectl -n {{ .Release.Namespace }} rollout status deployment/textnlp-api
  kubectl -n {{ .Release.Namespace }} get service textnlp-api
{{- if not (.Values.secrets).existing }}

The first API key is in the file `api-key`, from which first-key-sha256 was made.
{{- end }}
";

struct Chart<'a> {
    namespace: &'a str,
    values: Value,
    actions: Vec<String>,
}

impl Chart<'_> {
    fn template(&mut self, item: &Item) -> Result<String, String> {
        let mut manifest = item.manifest.clone();
        // The digest is taken before any field becomes a value: it covers what the environment specifies.
        let digest = short_digest(&manifest);
        self.placed(&mut manifest);
        let condition = match (item.row.kind, item.name.as_str()) {
            ("Namespace", _) => {
                manifest["metadata"]["name"] = self.action(format!("{NAMESPACE} | quote"));
                self.set("namespace.create", json!(false));
                Some(is_set("namespace.create", false))
            }
            ("ServiceMonitor" | "PrometheusRule" | "AlertmanagerConfig", _) | ("ConfigMap", "textnlp-dashboard") => {
                self.set("monitoring.enabled", json!(true));
                Some(is_set("monitoring.enabled", true))
            }
            ("HorizontalPodAutoscaler", _) => {
                self.value(&mut manifest["spec"]["minReplicas"], "autoscaling.min");
                self.value(&mut manifest["spec"]["maxReplicas"], "autoscaling.max");
                None
            }
            ("PodDisruptionBudget", _) => {
                self.value(&mut manifest["spec"]["minAvailable"], "disruptionBudget.minAvailable");
                None
            }
            // `helm uninstall` must not delete data.
            ("Cluster" | "PersistentVolumeClaim", _) => {
                manifest["metadata"]["annotations"]["helm.sh/resource-policy"] = json!("keep");
                None
            }
            ("Service", "textnlp-api") => {
                self.value(&mut manifest["metadata"]["annotations"], "service.annotations");
                self.value(&mut manifest["spec"]["type"], "service.type");
                self.value(&mut manifest["spec"]["ports"][0]["port"], "service.port");
                None
            }
            ("Service", "textnlp-api-new") => {
                self.value(&mut manifest["spec"]["ports"][0]["port"], "service.port");
                None
            }
            ("HTTPRoute", _) => {
                let backends = manifest.pointer_mut("/spec/rules/0/backendRefs").and_then(Value::as_array_mut);
                for backend in backends.into_iter().flatten() {
                    self.value(&mut backend["port"], "service.port");
                }
                None
            }
            ("CronJob", "analytics-processor") => {
                self.value(&mut manifest["spec"]["schedule"], "analytics.schedule");
                let pod = &mut manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"];
                let is_ours = pod["containers"][0]["command"][0] == PROGRAM;
                self.value(&mut pod["containers"][0]["image"], if is_ours { "image" } else { "analytics.image" });
                self.value(&mut pod["containers"][0]["resources"], "analytics.resources");
                self.pull_secrets(pod);
                None
            }
            ("CronJob", _) => {
                let pod = &mut manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"];
                for containers in ["initContainers", "containers"] {
                    for container in pod.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
                        // The other step is PostgreSQL's.
                        if container["command"][0] == PROGRAM {
                            self.value(&mut container["image"], "image");
                        }
                    }
                }
                self.pull_secrets(pod);
                None
            }
            ("Deployment", _) => {
                self.deployment(&mut manifest);
                None
            }
            ("Job", name) => {
                // Every value that the job's pods use.
                let taken = "list .Values.image .Values.imagePullSecrets .Values.nodeSelector .Values.tolerations .Values.secrets";
                let of = format!("print \"{digest}\" (toJson ({taken}))");
                manifest["metadata"]["name"] =
                    self.action(format!("printf \"{name}-%s\" ({of} | sha256sum | trunc 8)"));
                self.pods(&mut manifest["spec"]["template"], "");
                None
            }
            _ => None,
        };
        let text = self.written(&manifest)?;
        Ok(match condition {
            Some(condition) => format!("{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"),
            None => text,
        })
    }

    fn deployment(&mut self, manifest: &mut Value) {
        if manifest["spec"].get("replicas").is_some() {
            self.value(&mut manifest["spec"]["replicas"], "replicas");
        }
        manifest["spec"]["template"]["metadata"]["annotations"]["textnlp-secrets-digest"] =
            self.action(SECRETS_DIGEST.to_owned());
        let containers = manifest["spec"]["template"]["spec"]["containers"].as_array_mut();
        // Pods with GPUs have nodes of their own.
        let mut group = "";
        for container in containers.into_iter().flatten() {
            if gpu_resource_of(container).is_some() {
                group = "gpu.";
            }
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            self.value(&mut container["resources"], &format!("resources.{name}"));
        }
        self.pods(&mut manifest["spec"]["template"], group);
    }

    /// Makes the common settings of all pods values: image, and those of a group: node selector and tolerations.
    fn pods(&mut self, template: &mut Value, group: &str) {
        for containers in ["initContainers", "containers"] {
            for container in template["spec"].get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
                self.value(&mut container["image"], "image");
            }
        }
        self.pull_secrets(&mut template["spec"]);
        for (field, empty) in [("nodeSelector", json!({})), ("tolerations", json!([]))] {
            let mut chosen = template["spec"].get(field).cloned().unwrap_or(empty);
            // Tolerations with a time, for lost nodes, are not configurable.
            let kept = match chosen.as_array_mut() {
                Some(all) => all.extract_if(.., |one| one.get("tolerationSeconds").is_some()).collect(),
                None => Vec::new(),
            };
            let (path, written) = (format!("{group}{field}"), chosen.clone());
            self.value(&mut chosen, &path);
            if !kept.is_empty() {
                let configured = lookup(&path, &written);
                chosen = self.action(format!(
                    "concat (fromJsonArray `{}`) ({configured} | fromJsonArray) | toJson",
                    json!(kept)
                ));
            }
            template["spec"][field] = chosen;
        }
    }

    fn pull_secrets(&mut self, pod: &mut Value) {
        let mut chosen = json!([]);
        self.value(&mut chosen, "imagePullSecrets");
        pod["imagePullSecrets"] = chosen;
    }

    /// Makes a field a value of the chart, with its current content as the default. JSON is valid YAML on one line.
    fn value(&mut self, field: &mut Value, path: &str) {
        self.set(path, field.clone());
        *field = self.action(lookup(path, field));
    }

    fn set(&mut self, path: &str, value: Value) {
        let place = path.split('.').fold(&mut self.values, |tree, name| &mut tree[name]);
        *place = value;
    }

    fn action(&mut self, action: String) -> Value {
        self.actions.push(action);
        json!(format!("{OPEN}{}{CLOSE}", self.actions.len() - 1))
    }

    /// Replaces the namespace by the release namespace in all references of an object.
    fn placed(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "namespace" && value.as_str() == Some(self.namespace) {
                        *value = self.action(format!("{NAMESPACE} | quote"));
                    } else {
                        self.placed(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.placed(item)),
            _ => {}
        }
    }

    /// The text of a template: literal braces are escaped, and placeholders are replaced by their actions.
    fn written(&self, manifest: &Value) -> Result<String, String> {
        let mut text = yaml(manifest)?.replace("{{", "{{ \"{{\" }}");
        if matches!(manifest["kind"].as_str(), Some("PrometheusRule")) {
            let ours = format!("namespace=\"{}\"", self.namespace);
            text = text.replace(&ours, &format!("namespace=\"{{{{ {NAMESPACE} }}}}\""));
        }
        for (n, action) in self.actions.iter().enumerate() {
            let (plain, action) = (format!("{OPEN}{n}{CLOSE}"), format!("{{{{ {action} }}}}"));
            for quote in ["'", "\""] {
                text = text.replace(&format!("{quote}{plain}{quote}"), &action);
            }
            text = text.replace(&plain, &action);
        }
        Ok(text)
    }
}

fn template_of(secret: &NeededSecret) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Secret\nmetadata:\n");
    if secret.name == RECEIVERS_NAME {
        text.insert_str(
            0,
            &format!("{{{{- if and ({}) (not (.Values.secrets).existing) }}}}\n", is_set("monitoring.enabled", true)),
        );
    } else {
        text.insert_str(0, "{{- if not (.Values.secrets).existing }}\n");
    }
    let _ = writeln!(
        text,
        "  name: {}\n  namespace: {{{{ {NAMESPACE} | quote }}}}\ntype: {}\ndata:",
        secret.name, secret.kind
    );
    for key in &secret.keys {
        let name = value_name(key);
        let lacks = format!("set secrets.{name}, see README.md");
        let key = yaml_text(key);
        let _ = writeln!(text, "  {key}: {{{{ required \"{lacks}\" (.Values.secrets).{name} | b64enc | quote }}}}");
    }
    text + "{{- end }}\n"
}

/// The comment of each value in `values.yaml`, in order.
const ABOUT: &[(&str, &str)] = &[
    ("image", "The server image, in a registry that the cluster can reach, preferably with a digest."),
    ("imagePullSecrets", "The image pull secrets: a list of {name: …}."),
    ("replicas", "The number of pods."),
    ("autoscaling", "The limits of the autoscaler in pods."),
    ("disruptionBudget", "The number of pods that stay available while nodes are drained."),
    ("resources", "Resource requests and limits of the containers of a pod. Models are in memory."),
    ("analytics", "The analytics job: its image if that is your own, its schedule (cron, UTC) and its resources."),
    ("nodeSelector", "The node selector of pods."),
    ("tolerations", "The tolerations of pods."),
    ("gpu", "The node selector and the tolerations of pods with a GPU."),
    ("service", "The type of the service: LoadBalancer, or ClusterIP behind your own ingress."),
    ("monitoring", "Objects of the Prometheus operator and Grafana's dashboard."),
    (
        "namespace",
        "Whether the chart creates the namespace with its label for restricted pods; `helm install` needs the namespace before.",
    ),
];

fn values(values: &Value, secrets: &[NeededSecret]) -> Result<String, String> {
    let mut text = String::new();
    for (name, about) in ABOUT {
        let Some(value) = values.get(name) else { continue };
        let _ = write!(text, "# {about}\n{}\n", yaml(&json!({ *name: value }))?);
    }
    let mut empty = Map::from_iter([("existing".to_owned(), json!(false)), ("revision".to_owned(), json!(""))]);
    empty.extend(secrets.iter().flat_map(|secret| &secret.keys).map(|key| (value_name(key), json!(""))));
    text += "# Do not write secrets here: use `--set-file`, or `existing: true` with existing Secrets; then a new `revision` restarts the pods.\n";
    text += &yaml(&json!({ "secrets": empty }))?;
    Ok(text)
}

/// The `values.schema.json`, against which Helm validates the values before rendering.
fn schema(values: &Value, secrets: &[NeededSecret]) -> String {
    let mut properties: Map<String, Value> =
        values.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), shape(name, value))).collect();
    let mut of_secrets = Map::from_iter([
        ("existing".to_owned(), json!({ "type": "boolean" })),
        ("revision".to_owned(), json!({ "type": "string" })),
    ]);
    of_secrets.extend(
        secrets.iter().flat_map(|secret| &secret.keys).map(|key| (value_name(key), json!({ "type": "string" }))),
    );
    let of_secrets = json!({ "type": "object", "additionalProperties": false, "properties": of_secrets });
    properties.insert("secrets".to_owned(), of_secrets);
    // Helm adds `global` to the values of every chart.
    properties.insert("global".to_owned(), json!({ "type": "object" }));
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

/// The schema of a value. An unknown name is an error; Kubernetes validates its own types.
fn shape(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(_) if matches!(name, "nodeSelector" | "annotations" | "requests" | "limits") => {
            json!({ "type": "object" })
        }
        Value::Object(fields) => {
            let properties: Map<String, Value> =
                fields.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect();
            json!({ "type": "object", "additionalProperties": false, "properties": properties })
        }
        Value::Array(_) => json!({ "type": "array", "items": { "type": "object" } }),
        Value::Number(_) if name == "port" => json!({ "type": "integer", "minimum": 1, "maximum": 65535 }),
        Value::Number(_) => json!({ "type": "integer", "minimum": 1 }),
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::String(_) if name == "type" => json!({ "enum": ["LoadBalancer", "ClusterIP", "NodePort"] }),
        Value::String(_) => json!({ "type": "string", "minLength": 1 }),
        Value::Null => json!({}),
    }
}

fn file(path: &str, text: String) -> ExportFile {
    ExportFile { path: path.to_owned(), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_keys_become_helm_value_names() {
        assert_eq!(value_name("jwt-key.pem"), "jwtKeyPem");
        assert_eq!(value_name("tls.crt"), "tlsCrt");
        assert_eq!(value_name("password"), "password");
        assert_eq!(value_name(".dockerconfigjson"), "dockerconfigjson");
    }
}
