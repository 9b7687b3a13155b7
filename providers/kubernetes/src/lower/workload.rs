//! The servers and what clients talk to: jobs before, pods, their service.

use serde_json::{Map, Value, json};
use textnlp_provider::component::{Endpoint, Workload};
use textnlp_provider::{OutputRef, ResourceId};

use super::template::Template;
use super::{
    API_KEY, CERTIFICATE, ENDPOINT, HTTP_PORT, HTTPS_PORT, Ingress, JWT_KEY, Lowering, METRICS_PORT, MODELS,
    MODELS_FILE, PROGRAM, SECRETS, SECRETS_NAME, label_of,
};
use crate::canary::Outside;

/// The Secret with the certificate, where it is ours.
const TLS_SECRET: &str = "textnlp-tls";
/// What programs read, by its name in its folder.
const CONFIG_FILE: &str = "server.yaml";
const GATEWAY_FILE: &str = "gateway.yaml";
/// More replicas than this are a mistyped number.
const REPLICAS_MAX: u32 = 1000;
/// Until whoever spreads connections knows that a pod goes.
const GATEWAY_LEAVES_AFTER: u64 = 5;
/// The server leaves after its gateway has said to all who are connected that it goes.
const API_LEAVES_AFTER: u64 = 10;
/// What leaving takes beside the requests that are waited for.
const LEAVING: u64 = 20;
/// How often a pod that begins is asked whether it is ready.
const STARTUP_PERIOD: u64 = 5;
/// What a pod takes to begin beside its models, generously: a busy machine, a database that is far away.
const STARTUP_SECONDS: u64 = 120;
/// What a slow line and a slow disk bring of a model in a second.
const MODEL_BYTES_PER_SECOND: u64 = 20_000_000;
/// Where nobody knows what the models weigh.
const STARTUP_UNKNOWN: u64 = 1800;

impl Lowering<'_> {
    pub(super) fn workload(&mut self, workload: &Workload) {
        if workload.replicas == 0 || workload.replicas > REPLICAS_MAX {
            let cause = format!("a deployment of {} replicas makes no sense", workload.replicas);
            self.problem("replicas", cause, format!("choose 1 to {REPLICAS_MAX}"));
        }
        let is_outside = workload.stored.postgres.as_ref().is_some_and(|postgres| postgres.address.is_some());
        if workload.watch.is_some() && !is_outside {
            let cause = "control data is not kept equal between sites in clusters";
            let fix = "write `database: { kind: postgres, url: … }` of one that all sites store in, or leave one site";
            self.problem("watch", cause, fix);
        }
        if workload.growth.is_some() && workload.canary.is_some_and(|canary| canary.share.is_none()) {
            // Also those without clients: what both sets of pods need for themselves would be taken for load, and both would grow.
            let cause = "an autoscaler counts the pods of both releases, and neither alone";
            let fix = "remove `scaling.max`, or choose `rollout.strategy: canary`";
            self.problem("rollout.strategy", cause, fix);
        }
        let Some(image) = self.place.image.clone() else {
            let cause = "no image is named, and a cluster runs nothing else";
            let fix = "`textnlp-deploy bundle create` packs one; push it to a registry that the cluster reaches, and write `sites[].cluster.image: REGISTRY/textnlp:VERSION`";
            return self.problem("image", cause, fix);
        };
        let tree = workload.config.get("textnlp").unwrap_or(&workload.config).as_object().cloned();
        let Some(tree) = tree else {
            let fix = "it must hold `api`, `models`, …";
            return self.problem("config", "the server's configuration is not a tree", fix);
        };
        if tree.get("monitoring").is_some_and(|monitoring| !monitoring["log_file"].is_null()) {
            let cause = "a pod writes its log to its output, where the cluster gathers it";
            self.problem("monitoring.log_file", cause, "remove `server.monitoring.log_file`");
        }
        // Said by the database itself.
        let Some(way) = self.way(&workload.database, &workload.stored) else { return };
        let (secret, authority) = (way.secret.clone(), way.authority.clone());
        let name = self.component.name.clone();
        let ids = ["config", "secrets", "migrate", "first-key", "deployment"].map(|part| self.id(name.as_str(), part));
        let [Some(config), Some(secrets), Some(migrate), Some(first_key), Some(deployment)] = ids else { return };
        let ids = [
            self.id(workload.secrets.as_str(), JWT_KEY),
            self.id(workload.secrets.as_str(), API_KEY),
            self.id(ENDPOINT, "config"),
            self.id(ENDPOINT, "tls"),
            self.id(workload.cluster.as_str(), "service-account"),
        ];
        let [Some(jwt), Some(api_key), Some(gateway), Some(tls), Some(account)] = ids else { return };
        let models = ResourceId::of(&self.site.name, &workload.models);

        let space = space(&tree);
        self.config_map(config.clone(), "textnlp-config", [(CONFIG_FILE.to_owned(), filled(tree, &way.settings))]);
        let mut data = secret.clone();
        data["jwt-key.pem"] = json!(OutputRef::new(jwt, "secret"));
        self.secret(secrets.clone(), SECRETS_NAME, "Opaque", &data, Vec::new());

        let mut env = vec![json!({ "name": "ENVIRONMENT", "value": self.site.environment })];
        let fetch_env: Vec<Value> = env.iter().cloned().chain(self.fetching()).collect();
        let private_ca = self.private_ca();
        if secret.get("database-url").is_some() {
            let from = json!({ "secretKeyRef": { "name": SECRETS_NAME, "key": "database-url" } });
            env.push(json!({ "name": "DATABASE_URL", "valueFrom": from }));
        }
        // One that others renew is read by the pods that run.
        let (tls_secret, tls) = match &self.place.tls_secret {
            Some(name) => (name.clone(), self.id(CERTIFICATE, "secret")),
            None => (TLS_SECRET.to_owned(), Some(tls)),
        };
        let Some(tls) = tls else { return };
        let digest = |id: &ResourceId| json!(OutputRef::new(id.clone(), "digest"));
        let mut arguments = vec!["serve", "--role", "migrate", "--config", "/etc/textnlp/server.yaml"];
        let schema = workload.stored.schema.map(|schema| schema.to_string());
        if let Some(schema) = &schema {
            arguments.extend(["--to", schema]);
        }
        let before = [config.clone(), secrets.clone(), account.clone()].into_iter().chain(way.needs.clone());
        let before = before.chain(private_ca.clone().filter(|_| authority == self.private_authority()));
        let job = |name: &str, args: Value, env: &[Value]| {
            json!({
                "namespace": self.place.namespace, "name": name, "image": image, "program": PROGRAM, "user": self.user(), "args": args,
                "env": env, "database_authority": authority, "nodes": self.place.nodes,
                // Another database is brought to its schema too. What else is configured changes nothing in it.
                "annotations": { "textnlp-secrets-digest": digest(&secrets) },
            })
        };
        let inputs = job("textnlp-migrate", json!(arguments), &env);
        let key_inputs = workload.first_key.then(|| {
            // A kept database may remember that the key was once taken back.
            let put = r#"{"do":"put","public_id":"$(API_KEY_ID)","sha256":"$(API_KEY_SHA256)","name":"first","reinstate":true}"#;
            let arguments = ["serve", "--role", "keys", "--config", "/etc/textnlp/server.yaml", "--do", put];
            let mut env = env.clone();
            for (variable, output) in [("API_KEY_ID", "public_id"), ("API_KEY_SHA256", "sha256")] {
                env.push(json!({ "name": variable, "value": OutputRef::new(api_key.clone(), output) }));
            }
            job("textnlp-first-key", json!(arguments), &env)
        });
        self.object(migrate.clone(), Template::Job, &inputs, before);
        // Beside the pods, which begin without it.
        if let Some(inputs) = key_inputs {
            self.object(first_key, Template::Job, &inputs, [migrate.clone()]);
        }
        let shared_models = self.model_volume();
        let grown = workload.growth.is_some();
        let startup = startup_seconds(self.place.model_bytes);
        // What is there to be read, or which: an old template whose files are another release's would not be the old release.
        let carried = self.place.canary;
        let file = |id: &ResourceId, name: &str| json!(OutputRef::new(id.clone(), name));
        let mut annotations = match carried {
            true => json!({
                "textnlp-config": file(&config, CONFIG_FILE),
                "textnlp-secrets-digest": digest(&secrets),
                "textnlp-models": file(&models, MODELS_FILE),
                "textnlp-gateway": file(&gateway, GATEWAY_FILE),
            }),
            false => json!({
                "textnlp-config-digest": digest(&config),
                "textnlp-secrets-digest": digest(&secrets),
                "textnlp-models-digest": digest(&models),
                "textnlp-gateway-digest": digest(&gateway),
            }),
        };
        let mut needs = vec![account, migrate];
        if carried {
            let parts = ["rollout-account", "rollout-role", "rollout-binding"];
            needs.extend(parts.into_iter().filter_map(|part| self.id(workload.cluster.as_str(), part)));
        }
        // By which clients are shared as soon as pods change.
        let shares = ["http-route", "backend-tls", "service-new"].map(|part| self.id(ENDPOINT, part));
        needs.extend(shares.into_iter().flatten().filter(|_| self.place.is_weighted()));
        let outside = workload.outside.as_ref().filter(|_| carried);
        let reached = outside.and_then(|outside| self.reached(outside, workload.secrets.as_str()));
        needs.extend(reached.clone());
        needs.extend(private_ca);
        needs.extend(self.claim(workload.models.as_str()));
        match self.place.tls_secret {
            Some(_) => needs.push(tls),
            None => annotations["textnlp-tls-digest"] = digest(&tls),
        }
        let fetch_authority = self.private_authority();
        let mut authorities: Vec<&Value> = [&authority, &fetch_authority].map(|one| &one["volume"]).into();
        authorities.retain(|volume| !volume.is_null());
        authorities.dedup();
        let inputs = json!({
            "namespace": self.place.namespace, "image": image, "program": PROGRAM, "user": self.user(), "env": env,
            "tls_secret": tls_secret, "fetch_env": fetch_env, "fetch_authority": fetch_authority,
            "database_authority": authority, "authorities": authorities,
            // Once an autoscaler is there, their number is its own.
            "replicas": (!grown).then_some(workload.replicas),
            "annotations": annotations,
            "carried": carried,
            "canary": workload.canary.filter(|_| carried).map(|canary| {
                let mut canary = json!(canary);
                if self.place.is_weighted() {
                    canary["weighted"] = json!(true);
                }
                canary.to_string()
            }),
            "queries": outside.map(|outside| Outside::written(outside, reached.is_some())),
            "https_port": HTTPS_PORT,
            "metrics_port": METRICS_PORT,
            "model_folder": MODELS,
            "model_space": match &shared_models {
                // Nothing but links.
                Value::Object(_) => "16Mi".to_owned(),
                _ => space,
            },
            "shared_models": shared_models,
            "nodes": self.place.nodes,
            "startup_failures": startup.div_ceil(STARTUP_PERIOD),
            // The deployment is given up a while after a pod would be.
            "progress_seconds": startup + 300,
            "gateway_leaves_after": GATEWAY_LEAVES_AFTER,
            "api_leaves_after": API_LEAVES_AFTER,
            "grace_seconds": API_LEAVES_AFTER + u64::from(workload.drain_seconds) + LEAVING,
        });
        self.object(deployment.clone(), Template::Deployment, &inputs, needs);
        if workload.replicas > 1 {
            // At least two stay, where two are not all there are.
            let inputs = json!({ "namespace": self.place.namespace, "min_available": 2.min(workload.replicas - 1) });
            self.part_of_kind("disruption-budget", Template::DisruptionBudget, &inputs, []);
        }
        if let Some(growth) = &workload.growth {
            let mut inputs = json!(growth);
            inputs["namespace"] = json!(self.place.namespace);
            inputs["min"] = json!(workload.replicas);
            let told = self.adapter(&image);
            self.part_of_kind("autoscaler", Template::Autoscaler, &inputs, [deployment].into_iter().chain(told));
        }
        self.beside(&secrets, &way);
    }

    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        if self.component.name.as_str() != ENDPOINT {
            let cause = format!("what clients of a cluster talk to is called `{ENDPOINT}`");
            return self.problem("name", cause, "this is a fault of the program: tell its makers");
        }
        if !endpoint.tls {
            let cause = "keys would travel in the open through the cluster's network";
            return self.problem("tls", cause, "set `tls: { mode: local-ca }`");
        }
        if endpoint.host != "0.0.0.0" && endpoint.host != "::" {
            let cause = format!("a pod has an address of its own, not `{}`", endpoint.host);
            self.problem("host", cause, "remove `host`");
        }
        if endpoint.port == endpoint.metrics_port {
            let fix = "the usual ones are 8443 and 9090";
            self.problem("port", "clients and metrics need two ports", fix);
        }
        let Some(address) = self.place.address.clone() else {
            let cause = "nobody knows where clients reach the service";
            let fix = "write `traffic: { domain: NAME }`, whose DNS record you point at the load balancer of service `textnlp-api`, or `sites[].cluster.address: https://HOST:PORT` of whatever leads to that service: an ingress, or `kubectl port-forward`";
            return self.problem("address", cause, fix);
        };
        let ids = ["config", "tls", "service"].map(|part| self.id(ENDPOINT, part));
        let [Some(config), Some(tls), Some(service)] = ids else { return };
        let Some(leaf) = self.id(endpoint.certificate.as_str(), "leaf").or_else(|| self.id(CERTIFICATE, "leaf")) else {
            return;
        };
        let gateway = json!({ "gateway": {
            "listen": format!("0.0.0.0:{HTTPS_PORT}"),
            // Whether the pod may be asked is for the cluster to see; whoever asks all the same is answered while there is a server.
            "health": { "path": "/health", "interval_ms": 500, "timeout_ms": 2000, "unhealthy_after": 4, "healthy_after": 1 },
            "backends": [{ "name": "api", "listen": format!("127.0.0.1:{HTTP_PORT}") }],
            "tls": { "certificate_file": "/etc/textnlp-tls/tls.crt", "key_file": "/etc/textnlp-tls/tls.key" },
            "timeout_seconds": endpoint.timeout_seconds,
            "max_request_bytes": endpoint.max_request_bytes,
        } });
        self.config_map(config, "textnlp-gateway", [(GATEWAY_FILE.to_owned(), gateway)]);
        if self.place.tls_secret.is_none() {
            let data = json!({
                "tls.crt": OutputRef::new(leaf.clone(), "certificate"),
                "tls.key": OutputRef::new(leaf, "key"),
            });
            self.secret(tls, TLS_SECRET, "kubernetes.io/tls", &data, Vec::new());
        }
        let inputs = json!({
            "namespace": self.place.namespace,
            "address": address,
            "type": if self.place.led_by_others { "ClusterIP" } else { "LoadBalancer" },
            "port": endpoint.port,
        });
        self.object(service, Template::Service, &inputs, []);
        let inputs = json!({ "namespace": self.place.namespace, "metrics_port": endpoint.metrics_port });
        self.part_of_kind("metrics", Template::Metrics, &inputs, []);
        self.ingress(endpoint);
    }

    /// What leads clients to the service, where a load balancer does not.
    fn ingress(&mut self, endpoint: &Endpoint) {
        let ingress = self.place.ingress.clone();
        if self.place.waf && !matches!(ingress, Some(Ingress::Nginx { .. })) {
            let cause = "the firewall is ModSecurity in ingress-nginx, and no ingress leads to the service";
            self.problem("network.waf", cause, "write `sites[].cluster.ingress: { class: nginx, … }`, or `waf: false`");
        }
        match ingress {
            None => {}
            Some(Ingress::Nginx { class, host, tls_secret, issuer }) => {
                let inputs = json!({
                    "namespace": self.place.namespace,
                    "class": class,
                    "host": host,
                    "tls_secret": tls_secret,
                    "issuer": issuer,
                    "waf": self.place.waf,
                    "timeout_seconds": endpoint.timeout_seconds,
                    "max_request_bytes": endpoint.max_request_bytes,
                });
                self.part_of_kind("ingress", Template::Ingress, &inputs, []);
            }
            Some(Ingress::Route { host }) => {
                let inputs = json!({
                    "namespace": self.place.namespace, "host": host, "timeout_seconds": endpoint.timeout_seconds,
                });
                self.part_of_kind("route", Template::Route, &inputs, []);
            }
            Some(gateway @ Ingress::Gateway { .. }) => self.gateway(endpoint, &gateway),
        }
    }
}

/// How long a pod may take to begin with models of so many bytes.
fn startup_seconds(model_bytes: Option<u64>) -> u64 {
    model_bytes.map_or(STARTUP_UNKNOWN, |bytes| STARTUP_SECONDS + bytes.div_ceil(MODEL_BYTES_PER_SECOND))
}

/// The server's configuration with what only a pod knows.
fn filled(mut tree: Map<String, Value>, database: &Value) -> Value {
    let mut set = |section: &str, field: &str, value: Value| {
        let section = tree.entry(section).or_insert_with(|| json!({}));
        if let Value::Object(section) = section {
            section.insert(field.to_owned(), value);
        }
    };
    set("api", "host", json!("0.0.0.0"));
    set("api", "port", json!(HTTP_PORT));
    set("monitoring", "metrics_port", json!(METRICS_PORT));
    set("models", "cache_dir", json!(MODELS));
    set("security", "jwt_private_key_file", json!(format!("{SECRETS}/jwt-key.pem")));
    for (field, value) in database.as_object().into_iter().flatten() {
        set("database", field, value.clone());
    }
    if let Some(Value::Array(served)) = tree.get_mut("models").and_then(|models| models.get_mut("serve")) {
        for model in served {
            let Some(label) = model.get("name").and_then(Value::as_str).map(label_of) else { continue };
            if let Value::Object(model) = model {
                model.insert("path".to_owned(), json!(format!("{MODELS}/{label}")));
            }
        }
    }
    json!({ "textnlp": tree })
}

/// The space for models as the cluster writes sizes: `50GB` is `50G`.
fn space(tree: &Map<String, Value>) -> String {
    let size = tree.get("models").and_then(|models| models["max_cache_size"].as_str()).unwrap_or("50GB");
    let (number, unit) = size.split_at(size.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(size.len()));
    let unit = match unit.trim_end_matches('B') {
        "K" => "k",
        other => other,
    };
    format!("{}{unit}", number.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_time_by_what_their_models_weigh() {
        assert_eq!(startup_seconds(Some(0)), 120);
        assert_eq!(startup_seconds(Some(14_000_000_000)), 820);
        assert_eq!(startup_seconds(None), 1800);
    }

    #[test]
    fn sizes_are_written_as_clusters_write_them() {
        for (ours, theirs) in [("50GB", "50G"), ("512MiB", "512Mi"), ("1KB", "1k"), ("1KiB", "1Ki"), ("1000", "1000")] {
            let tree = json!({ "models": { "max_cache_size": ours } });
            assert_eq!(space(tree.as_object().expect("a tree")), theirs);
        }
    }
}
