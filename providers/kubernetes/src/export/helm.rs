//! A Helm chart: the same objects, with what differs from place to place as values. Everything else stays what the environment said.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{ExportFile, Item, NeededSecret, SiteObjects, notes, short_digest, yaml};

/// Around the number of an action while the object is a tree; no text of ours has them.
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
        "description": format!("Text generation of your own, as environment {environment} describes it"),
        "type": "application",
        "version": env!("CARGO_PKG_VERSION"),
        "appVersion": env!("CARGO_PKG_VERSION"),
        // From here on pods may sleep before they stop.
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

/// `jwt-key.pem` is `jwtKeyPem` among the values.
pub(super) fn value_name(key: &str) -> String {
    let mut words = key.split(['-', '.']).map(str::to_owned);
    let first = words.next().unwrap_or_default();
    words.fold(first, |all, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        all + &head.to_uppercase() + tail
    })
}

/// Pods with another secret are other pods. Where others bring the Secrets, a `revision` of theirs does it.
const HELPERS: &str =
    "{{- define \"textnlp.secrets-digest\" -}}\n{{ toJson .Values.secrets | sha256sum }}\n{{- end }}\n";

const NOTES: &str = "\
textnlp is in namespace {{ .Release.Namespace }}. It answers when the pods have read their models:

  kubectl -n {{ .Release.Namespace }} rollout status deployment/textnlp-api
  kubectl -n {{ .Release.Namespace }} get service textnlp-api
{{- if not .Values.secrets.existing }}

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
        // Before anything is a value: what the environment alone decides.
        let digest = short_digest(&manifest);
        self.placed(&mut manifest);
        let condition = match (item.row.kind, item.name.as_str()) {
            ("Namespace", _) => {
                manifest["metadata"]["name"] = self.action(format!("{NAMESPACE} | quote"));
                self.set("namespace.create", json!(false));
                Some(".Values.namespace.create")
            }
            ("ServiceMonitor" | "PrometheusRule", _) | ("ConfigMap", "textnlp-dashboard") => {
                self.set("monitoring.enabled", json!(true));
                Some(".Values.monitoring.enabled")
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
            // An `uninstall` takes no data along.
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
                self.value(&mut pod["containers"][0]["image"], "analytics.image");
                self.value(&mut pod["containers"][0]["resources"], "analytics.resources");
                self.pull_secrets(pod);
                None
            }
            ("Deployment", _) => {
                self.deployment(&mut manifest);
                None
            }
            ("Job", name) => {
                // Everything of the values that its pods take.
                let taken = "list .Values.image .Values.imagePullSecrets .Values.nodeSelector .Values.tolerations .Values.secrets";
                let of = format!("print \"{digest}\" (toJson ({taken}))");
                manifest["metadata"]["name"] =
                    self.action(format!("printf \"{name}-%s\" ({of} | sha256sum | trunc 8)"));
                self.pods(&mut manifest["spec"]["template"]);
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
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            self.value(&mut container["resources"], &format!("resources.{name}"));
        }
        self.pods(&mut manifest["spec"]["template"]);
    }

    /// What is chosen of all pods: their image, and on which nodes they are.
    fn pods(&mut self, template: &mut Value) {
        for containers in ["initContainers", "containers"] {
            for container in template["spec"].get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten() {
                self.value(&mut container["image"], "image");
            }
        }
        self.pull_secrets(&mut template["spec"]);
        for (field, empty) in [("nodeSelector", json!({})), ("tolerations", json!([]))] {
            let mut chosen = template["spec"].get(field).cloned().unwrap_or(empty);
            // How long a lost node is waited for is nobody's choice there.
            let kept = match chosen.as_array_mut() {
                Some(all) => all.extract_if(.., |one| one.get("tolerationSeconds").is_some()).collect(),
                None => Vec::new(),
            };
            self.value(&mut chosen, field);
            if !kept.is_empty() {
                chosen = self.action(format!("concat (fromJsonArray `{}`) .Values.{field} | toJson", json!(kept)));
            }
            template["spec"][field] = chosen;
        }
    }

    fn pull_secrets(&mut self, pod: &mut Value) {
        let mut chosen = json!([]);
        self.value(&mut chosen, "imagePullSecrets");
        pod["imagePullSecrets"] = chosen;
    }

    /// Makes a field a value of the chart, with what stands there as its default. JSON is YAML in one line.
    fn value(&mut self, field: &mut Value, path: &str) {
        self.set(path, field.clone());
        *field = self.action(format!(".Values.{path} | toJson"));
    }

    fn set(&mut self, path: &str, value: Value) {
        let place = path.split('.').fold(&mut self.values, |tree, name| &mut tree[name]);
        *place = value;
    }

    fn action(&mut self, action: String) -> Value {
        self.actions.push(action);
        json!(format!("{OPEN}{}{CLOSE}", self.actions.len() - 1))
    }

    /// Wherever an object names the namespace, its own or that of whom it speaks of, it is the one that the chart goes to.
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

    /// The text of a template: braces of ours are no actions of Helm's, and what stands for an action becomes it.
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
    let mut text = String::from("{{- if not .Values.secrets.existing }}\napiVersion: v1\nkind: Secret\nmetadata:\n");
    let _ = writeln!(
        text,
        "  name: {}\n  namespace: {{{{ {NAMESPACE} | quote }}}}\ntype: {}\ndata:",
        secret.name, secret.kind
    );
    for key in &secret.keys {
        let name = value_name(key);
        let lacks = format!("set secrets.{name}, as README.md says");
        let _ = writeln!(text, "  {key}: {{{{ required \"{lacks}\" .Values.secrets.{name} | b64enc | quote }}}}");
    }
    text + "{{- end }}\n"
}

/// What is said of each value, in the order in which they are written.
const ABOUT: &[(&str, &str)] = &[
    ("image", "The image of the server, in a registry that the cluster reaches; best by digest."),
    ("imagePullSecrets", "Who may pull it: a list of {name: …}."),
    ("replicas", "How many pods there are."),
    ("autoscaling", "Between how many pods the autoscaler chooses."),
    ("disruptionBudget", "How many pods stay while nodes are emptied."),
    ("resources", "What the containers of a pod ask for, and the most they get. Memory holds the models."),
    ("analytics", "The job of your own on what is stored: its image, when it runs (cron, UTC), and what it gets."),
    ("nodeSelector", "On which nodes pods may run."),
    ("tolerations", "Which taints of nodes they bear."),
    ("service", "What clients reach: LoadBalancer, or ClusterIP behind an ingress of yours."),
    ("monitoring", "Objects of the Prometheus operator and Grafana's dashboard."),
    (
        "namespace",
        "Whether the namespace is made with its label for restricted pods; `helm install` needs it to be there before.",
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
    text += "# Never written here: `--set-file`, or `existing: true` where something else brings the Secrets; another `revision` rolls the pods then.\n";
    text += &yaml(&json!({ "secrets": empty }))?;
    Ok(text)
}

/// What Helm holds values against before it renders anything.
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
    // Helm puts `global` into every chart.
    properties.insert("global".to_owned(), json!({ "type": "object" }));
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": false,
        "required": ["image"],
        "properties": properties,
    });
    format!("{schema:#}\n")
}

/// A mistyped name of a value is told; what belongs to Kubernetes is for Kubernetes to judge.
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
    fn keys_of_secrets_are_names_of_values() {
        assert_eq!(value_name("jwt-key.pem"), "jwtKeyPem");
        assert_eq!(value_name("tls.crt"), "tlsCrt");
        assert_eq!(value_name("password"), "password");
    }
}
