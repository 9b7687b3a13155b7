//! The workload and the endpoint: configuration files, programs, processes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use textnlp_keys::SOCKET_PATH_MAX;
use textnlp_keys::acme::{CHALLENGES, PUBLIC_CERTIFICATE_FILE};
use textnlp_provider::component::{ConnectionLimits, Endpoint, Program, Workload, set_secret_files};
use textnlp_provider::{ComponentName, OutputRef, ResourceId};

use super::recovery::{reached, ready_socket};
use super::{Lowering, label_of};
use crate::names::{API_KEY, JWT_KEY};
use crate::table::ResourceKind;

/// A machine's replicas share its cores; a larger number is a mistake in the file.
const REPLICAS_MAX: u32 = 64;
/// Grace period after the drain before a program is killed.
const GRACE_AFTER_DRAIN_MS: u64 = 10_000;
/// The longest wait of the gateway for requests in flight.
const GATEWAY_GRACE_MS: u64 = 60_000;

/// Common inputs of a site's gateway and the global endpoint.
pub(super) struct Gateway<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) metrics_port: u16,
    pub(super) tls: bool,
    /// Whether it answers the challenges of a public authority.
    pub(super) acme: bool,
    pub(super) certificate: &'a ComponentName,
    pub(super) program: &'a Program,
    pub(super) max_request_bytes: u64,
    pub(super) timeout_seconds: u32,
    pub(super) connections: ConnectionLimits,
    pub(super) backends: Value,
    pub(super) health: Value,
    pub(super) metrics_from: Vec<String>,
    pub(super) ready_listen: Option<String>,
    pub(super) stop_grace_ms: u64,
    pub(super) needs: Vec<ResourceId>,
}

/// The file of the key that signs a workload's tokens.
pub(super) fn jwt_file(workload: &ComponentName) -> String {
    format!("certs/{workload}-jwt-key.pem")
}

/// The file of a secret of a workload: of a webhook, of the collector of traces, or of the cache.
fn secret_file(workload: &ComponentName, secret: &str) -> String {
    format!("certs/{workload}-{secret}")
}

impl Lowering<'_> {
    pub(super) fn workload(&mut self, workload: &Workload) {
        if workload.replicas == 0 || workload.replicas > REPLICAS_MAX {
            let cause = format!("a machine cannot run {} replicas", workload.replicas);
            return self.problem("replicas", cause, format!("choose 1 to {REPLICAS_MAX}"));
        }
        let Some(mut config) = config_tree(&workload.config) else {
            return self.problem(
                "config",
                "the server's configuration is not a tree",
                "it must have `api`, `models`, …",
            );
        };
        let name = self.component.name.clone();
        let parts = ["program", "schema", API_KEY, "jwt-key", "backends"].map(|part| self.part(part));
        let [Some(program), Some(schema), Some(key), Some(jwt_file), Some(backends)] = parts else { return };
        let (Some(api_key), Some(jwt)) =
            (self.part_of(&workload.secrets, API_KEY), self.part_of(&workload.secrets, JWT_KEY))
        else {
            return;
        };
        let Some(store) = self.store_of(&workload.database, &workload.stored) else { return };
        // In an external database that all sites use, API keys are visible to all of them.
        let is_outside = workload.stored.postgres.as_ref().is_some_and(|postgres| postgres.address.is_some());
        let cluster = ResourceId::of(&self.site.name, &workload.cluster);
        let bin = format!("bin/{name}");
        let jwt_path = self::jwt_file(&name);
        let Some(digest) = self.program(&program, &workload.program, &bin) else { return };
        let watch = match &workload.watch {
            Some(watch) => {
                let (Some(process), Some(socket)) = (self.part_of(watch, "process"), self.unix(watch.as_str())) else {
                    return;
                };
                Some((process, socket))
            }
            None => None,
        };

        let spec = json!({ "path": jwt_path, "secret": OutputRef::new(jwt, "secret") });
        let network = self.network_id();
        self.want(jwt_file.clone(), ResourceKind::File, &spec, [network.clone()]);
        let models = self.served_models(&config, &workload.models);
        let folder = self.folder.clone();
        let mut secrets = Vec::new();
        for secret in set_secret_files(&mut config, |secret| folder.join(&secret_file(&name, secret)).to_string()) {
            let (Some(file), Some(value)) = (self.part(&secret), self.part_of(&workload.secrets, &secret)) else {
                return;
            };
            let spec = json!({ "path": secret_file(&name, &secret), "secret": OutputRef::new(value, "secret") });
            self.want(file.clone(), ResourceKind::File, &spec, [network.clone()]);
            secrets.push((secret, file));
        }

        let mut processes = Vec::new();
        let mut listed = Vec::new();
        for number in 0..workload.replicas {
            let unit = format!("{name}-{number}");
            let (Some(config_id), Some(process)) =
                (self.part(&format!("config-{number}")), self.part(&format!("replica-{number}")))
            else {
                return;
            };
            let (Some(listen), Some(metrics)) = (self.unix(&unit), self.unix(&format!("{unit}-metrics"))) else {
                return;
            };
            let config_file = format!("config/{unit}.yaml");
            let mut filled = self.fill(&config, &listen, &metrics, &jwt_path, &store.settings);
            if let Some((_, socket)) = watch.as_ref().filter(|_| !is_outside) {
                filled["textnlp"]["replication"] = json!({ "watch": socket });
            }
            self.want(
                config_id.clone(),
                ResourceKind::File,
                &json!({ "path": config_file, "document": filled }),
                [network.clone()],
            );
            if number == 0 {
                let mut spec = json!({
                    "database": store.named,
                    "version": store.schema,
                    "program": bin,
                    "program_sha256": digest,
                    "config": config_file,
                });
                if store.served {
                    spec["served"] = json!(true);
                }
                let needs = [program.clone(), config_id.clone()].into_iter().chain(store.needs.clone());
                self.want(schema.clone(), ResourceKind::Schema, &spec, needs);
                if workload.first_key {
                    let mut spec = json!({
                        "database": store.named,
                        "public_id": OutputRef::new(api_key.clone(), "public_id"),
                        "sha256": OutputRef::new(api_key.clone(), "sha256"),
                        "name": "first",
                        "program": bin,
                        "config": config_file,
                    });
                    if store.served {
                        spec["served"] = json!(true);
                    }
                    let mut needs = vec![schema.clone(), program.clone(), config_id.clone()];
                    if let Some((process, _)) = watch.as_ref().filter(|_| !is_outside) {
                        spec["replicated"] = json!(true);
                        needs.push(process.clone());
                    }
                    self.want(key.clone(), ResourceKind::ApiKey, &spec, needs);
                }
            }
            let mut inputs: BTreeMap<String, Value> = BTreeMap::new();
            inputs.insert("jwt-key".to_owned(), json!(OutputRef::new(jwt_file.clone(), "sha256")));
            for (name, file) in store.files.iter().chain(&secrets) {
                inputs.insert(name.clone(), json!(OutputRef::new(file.clone(), "sha256")));
            }
            for (label, id) in &models {
                inputs.insert(format!("model-{label}"), json!(OutputRef::new(id.clone(), "digest")));
            }
            let spec = json!({
                "unit": unit,
                "program": bin,
                "program_sha256": OutputRef::new(program.clone(), "sha256"),
                "arguments": ["serve"],
                "config": config_file,
                "config_sha256": OutputRef::new(config_id.clone(), "sha256"),
                "on_config": "restart",
                "inputs": inputs,
                "watch": [],
                "listen": listen,
                "metrics_listen": metrics,
                "ready": { "socket": unit, "path": "/ready" },
                "group": name.as_str(),
                "stop_grace_ms": u64::from(workload.drain_seconds) * 1000 + GRACE_AFTER_DRAIN_MS,
                "state": "running",
            });
            // A replicated key waits for other sites; a replica does not.
            let before = watch.as_ref().map_or(&key, |(process, _)| process);
            self.want(process.clone(), ResourceKind::Process, &spec, [cluster.clone(), schema.clone(), before.clone()]);
            processes.push(process);
            listed.push(json!({ "name": unit, "listen": listen, "metrics_listen": metrics, "weight": 100 }));
        }
        let spec = json!({ "path": format!("config/{name}-backends.yaml"), "document": listed });
        self.want(backends, ResourceKind::File, &spec, processes);
    }

    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let Some(backends) = self.part_of(&endpoint.workload, "backends") else { return };
        let watch = endpoint.watch.as_ref().map(|watch| (self.unix(watch.as_str()), self.unix(&ready_socket(watch))));
        let (watch, ready_listen) = match watch {
            Some((Some(watch), Some(ready))) => (Some(watch), Some(ready)),
            Some(_) => return,
            None => (None, None),
        };
        let mut connections = endpoint.connections.clone();
        // The global endpoint connects through the relay of this site.
        if let (Some(_), Ok(host)) = (&endpoint.watch, endpoint.host.parse()) {
            connections.trusted_proxies.push(reached(host).to_string());
        }
        self.gateway_process(Gateway {
            host: &endpoint.host,
            port: endpoint.port,
            metrics_port: endpoint.metrics_port,
            tls: endpoint.tls,
            acme: endpoint.acme,
            certificate: &endpoint.certificate,
            program: &endpoint.program,
            max_request_bytes: endpoint.max_request_bytes,
            timeout_seconds: endpoint.timeout_seconds,
            connections,
            backends: json!(OutputRef::new(backends, "document")),
            health: json!({ "path": "/ready", "interval_ms": 500, "timeout_ms": 2000, "unhealthy_after": 2, "healthy_after": 1 }),
            metrics_from: watch.into_iter().collect(),
            ready_listen,
            stop_grace_ms: GATEWAY_GRACE_MS,
            needs: Vec::new(),
        });
    }

    /// A gateway named after the component: of a site's replicas, or of sites.
    pub(super) fn gateway_process(&mut self, gateway: Gateway<'_>) {
        let name = self.component.name.clone();
        let parts = ["program", "config", "process"].map(|part| self.part(part));
        let [Some(program), Some(config_id), Some(process)] = parts else { return };
        let Some(leaf) = self.part_of(gateway.certificate, "leaf") else { return };
        let Ok(host) = gateway.host.parse::<std::net::IpAddr>() else {
            let cause = format!("`{}` is not an address to listen on", gateway.host);
            return self.problem("host", cause, "write `0.0.0.0`, `127.0.0.1` or another address of this machine");
        };
        if gateway.port == 0 || gateway.port == gateway.metrics_port {
            let cause = "clients and metrics need two different ports above 0";
            return self.problem("port", cause, "the usual ones are 8443 and 9090");
        }
        let bin = format!("bin/{name}");
        if self.program(&program, gateway.program, &bin).is_none() {
            return;
        }
        let Some(admin) = self.unix(&format!("{name}-admin")) else { return };
        let listen = std::net::SocketAddr::new(host, gateway.port).to_string();
        // Metrics name tenants and keys: they are served on the loopback address only.
        let metrics = format!("127.0.0.1:{}", gateway.metrics_port);
        let config_file = format!("config/{name}.yaml");
        let mut tree = json!({
            "listen": listen,
            "metrics_listen": metrics,
            "backends": gateway.backends,
            "health": gateway.health,
            "timeout_seconds": gateway.timeout_seconds,
            "max_request_bytes": gateway.max_request_bytes,
            "max_connections": gateway.connections.total,
            "admin_listen": admin,
        });
        if let Some(most) = gateway.connections.per_address {
            tree["max_connections_per_address"] = json!(most);
        }
        if !gateway.connections.trusted_proxies.is_empty() {
            tree["trusted_proxies"] = json!(gateway.connections.trusted_proxies);
        }
        if !gateway.connections.cors_origins.is_empty() {
            tree["cors_origins"] = json!(gateway.connections.cors_origins);
        }
        if !gateway.metrics_from.is_empty() {
            tree["metrics_from"] = json!(gateway.metrics_from);
        }
        // Addresses are bound once: a changed one needs a restart.
        let mut inputs = json!({ "listen": listen, "metrics_listen": metrics, "tls": gateway.tls });
        if let Some(ready) = gateway.ready_listen {
            inputs["ready_listen"] = json!(ready);
            tree["ready_listen"] = json!(ready);
        }
        let mut watch = Vec::new();
        let mut ca_file = Value::Null;
        if gateway.tls {
            let certificate = OutputRef::new(leaf.clone(), "certificate_file");
            tree["tls"] =
                json!({ "certificate_file": certificate, "key_file": OutputRef::new(leaf.clone(), "key_file") });
            watch.push(json!(certificate));
            if gateway.acme {
                let [file, challenges] =
                    [PUBLIC_CERTIFICATE_FILE, CHALLENGES].map(|path| json!(self.folder.join(path)));
                tree["tls"]["public"] = json!({ "file": file, "challenges": challenges });
                watch.push(file);
            }
            ca_file = json!(OutputRef::new(leaf, "ca_file"));
        }
        let network = self.network_id();
        self.want(
            config_id.clone(),
            ResourceKind::File,
            &json!({ "path": config_file, "document": { "gateway": tree } }),
            [network],
        );
        let scheme = if gateway.tls { "https" } else { "http" };
        let spec = json!({
            "unit": name.as_str(),
            "program": bin,
            "program_sha256": OutputRef::new(program, "sha256"),
            "arguments": ["gateway"],
            "config": config_file,
            "config_sha256": OutputRef::new(config_id, "sha256"),
            "on_config": "reload",
            "inputs": inputs,
            "watch": watch,
            "listen": format!("{scheme}://{}", std::net::SocketAddr::new(reached(host), gateway.port)),
            "metrics_listen": format!("http://{metrics}"),
            "ca_file": ca_file,
            "ready": { "socket": format!("{name}-admin"), "path": "/status" },
            "stop_grace_ms": gateway.stop_grace_ms,
            "state": "running",
        });
        self.want(process, ResourceKind::Process, &spec, gateway.needs);
    }

    /// The program by its digest, copied so that a rebuild does not replace it. Returns the digest as plain hex.
    pub(super) fn program(&mut self, id: &ResourceId, program: &Program, path: &str) -> Option<String> {
        let digest = program.digest.strip_prefix("sha256:").unwrap_or(&program.digest).to_owned();
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.problem(
                "program",
                format!("`{}` is not a SHA-256 digest", program.digest),
                "lock the release again with `release set`",
            );
            return None;
        }
        let network = self.network_id();
        let spec = json!({ "source": program.path, "sha256": digest, "path": path });
        self.want(id.clone(), ResourceKind::Program, &spec, [network]);
        Some(digest)
    }

    /// The models that the configuration serves, by label and resource.
    fn served_models(&mut self, config: &Map<String, Value>, store: &ComponentName) -> Vec<(String, ResourceId)> {
        let served = config.get("models").and_then(|models| models.get("serve")).and_then(Value::as_array);
        let names: Vec<String> = served
            .into_iter()
            .flatten()
            .filter_map(|model| model.get("name").and_then(Value::as_str).map(label_of))
            .collect();
        names.into_iter().filter_map(|label| self.part_of(store, &label).map(|id| (label, id))).collect()
    }

    pub(super) fn unix(&mut self, name: &str) -> Option<String> {
        let path = self.folder.socket(name);
        if path.as_str().len() > SOCKET_PATH_MAX {
            let cause = format!("the socket {path} has a path longer than {SOCKET_PATH_MAX} bytes");
            self.problem("name", cause, "choose a shorter component name");
            return None;
        }
        Some(format!("unix:{path}"))
    }

    /// The server's configuration with the values that only this provider knows.
    fn fill(
        &self,
        config: &Map<String, Value>,
        listen: &str,
        metrics: &str,
        jwt_path: &str,
        database: &Map<String, Value>,
    ) -> Value {
        let mut tree = config.clone();
        let mut set = |section: &str, field: &str, value: Value| {
            let section = tree.entry(section).or_insert_with(|| json!({}));
            if let Value::Object(section) = section {
                section.insert(field.to_owned(), value);
            }
        };
        set("api", "listen", json!(listen));
        set("api", "metrics_listen", json!(metrics));
        set("models", "cache_dir", json!(self.folder.join("models")));
        for (field, value) in database {
            set("database", field, value.clone());
        }
        set("security", "jwt_private_key_file", json!(self.folder.join(jwt_path)));
        // The gateway binds the port; a server on a Unix socket has none.
        if let Some(Value::Object(api)) = tree.get_mut("api") {
            api.shift_remove("host");
            api.shift_remove("port");
        }
        if let Some(Value::Array(served)) = tree.get_mut("models").and_then(|models| models.get_mut("serve")) {
            for model in served {
                let Some(label) = model.get("name").and_then(Value::as_str).map(label_of) else { continue };
                if let Value::Object(model) = model {
                    model.insert("path".to_owned(), json!(self.folder.join(&format!("models/{label}"))));
                }
            }
        }
        json!({ "textnlp": tree })
    }
}

/// The tree under `textnlp:`, or the whole document.
fn config_tree(config: &Value) -> Option<Map<String, Value>> {
    config.get("textnlp").unwrap_or(config).as_object().cloned()
}
