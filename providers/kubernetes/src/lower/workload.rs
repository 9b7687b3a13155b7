//! The servers and their endpoint: jobs, pods, autoscaler and service.

use serde_json::{Map, Value, json};
use textnlp_provider::cluster::MODELS_ACCOUNT;
use textnlp_provider::component::{CACHE_PART, CACHE_PASSWORD, CACHE_SECRET, Endpoint, Workload, set_secret_files};
use textnlp_provider::settings::Strategy;
use textnlp_provider::{OutputRef, ResourceId};

use super::company::{download_env, private_authority, private_authority_file};
use super::ingress::{Ingress, address};
use super::resources::{PodResources, model_bytes};
use super::template::Template;
use super::{
    ACCOUNT_OF_PODS, API_KEY, CERTIFICATE, ENDPOINT, HEALTH_PORT, HTTP_PORT, HTTPS_PORT, JWT_KEY, Lowering,
    METRICS_PORT, MODELS, MODELS_FILE, PROBE_PORT, PROGRAM, SECRETS, SECRETS_NAME, label_of,
};
use crate::canary::QueryConfig;
use crate::manifest::{PLAIN, URL};

/// The Secret with the generated certificate.
const TLS_SECRET: &str = "textnlp-tls";
/// The file with the authority of a cache that a cloud runs, in the Secret of the servers.
const CACHE_AUTHORITY: &str = "cache-ca.pem";
/// The file names of the configuration.
const CONFIG_FILE: &str = "server.yaml";
const GATEWAY_FILE: &str = "gateway.yaml";
/// Where the driver keeps the kernels that it compiled: a restarted container does not compile them again.
const KERNELS: &str = "/var/cache/textnlp-cuda";
/// The most that they take, in bytes: less than their volume, because a pod that exceeds it is evicted
/// (<https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/environment-variables.html>).
const MAX_KERNELS: u64 = 512 << 20;
/// The containers of the pods.
const CONTAINERS: [&str; 3] = ["models", "api", "gateway"];
/// A larger number is considered a typing error.
const REPLICAS_MAX: u32 = 1000;
/// The part of a gateway's connections that one client address may have by default. Nodes and ingress controllers may
/// hide the addresses of many clients behind one, so it is larger than on a host; but no address may have all of them.
const ADDRESS_PART: u32 = 8;
/// The gateway's `preStop` sleep in seconds, until load balancers have removed the terminating pod.
const GATEWAY_LEAVES_AFTER: u64 = 5;
/// The server's `preStop` sleep in seconds. The gateway first announces the shutdown to its connections.
const API_LEAVES_AFTER: u64 = 10;
/// The shutdown time besides draining requests, in seconds.
const LEAVING: u64 = 20;
/// The period of the startup probe, in seconds.
const STARTUP_PERIOD: u64 = 5;
/// The startup timeout without models, in seconds: generous, for busy machines and distant databases.
const STARTUP_SECONDS: u64 = 120;
/// The model throughput of a slow network and disk, in bytes per second.
const MODEL_BYTES_PER_SECOND: u64 = 20_000_000;
/// The startup timeout for models of unknown size, in seconds.
const STARTUP_UNKNOWN: u64 = 1800;

impl Lowering<'_> {
    pub(super) fn workload(&mut self, workload: &Workload) {
        if workload.replicas == 0 || workload.replicas > REPLICAS_MAX {
            let cause = format!("{} replicas are out of range", workload.replicas);
            self.problem("replicas", cause, format!("choose 1 to {REPLICAS_MAX}"));
        }
        let is_outside = workload.stored.postgres.as_ref().is_some_and(|postgres| postgres.address.is_some());
        if workload.watch.is_some() && !is_outside {
            let cause = "replication of control data between sites in clusters is not supported";
            let fix = "write `database: { kind: postgres, url: … }` of a database that all sites use, or keep one site";
            self.problem("watch", cause, fix);
        }
        if workload.autoscaling.is_some() && workload.canary.is_some_and(|canary| canary.share.is_none()) {
            // This holds also for a set without clients: the idle load of two sets would count as load, and both would
            // grow.
            let cause = "an autoscaler counts the pods of both releases together";
            let fix = "remove `scaling.max`, or choose `rollout.strategy: canary`";
            self.problem("rollout.strategy", cause, fix);
        }
        let Some(image) = self.settings().image.clone() else {
            let cause = "no image is set, and a cluster runs only images";
            let fix = "`textnlp-deploy bundle create` packs one; push it to a registry that the cluster reaches, and write `sites[].cluster.image: REGISTRY/textnlp:VERSION@sha256:…`; where the cloud's own registry is supported, `registry.url` is enough";
            return self.problem("image", cause, fix);
        };
        self.pinned("image", &image);
        let tree = workload.config.get("textnlp").unwrap_or(&workload.config).as_object().cloned();
        let Some(mut tree) = tree else {
            let fix = "it must have `api`, `models`, …";
            return self.problem("config", "the server's configuration is not a tree", fix);
        };
        if tree.get("monitoring").is_some_and(|monitoring| !monitoring["log_file"].is_null()) {
            let cause = "a pod writes its log to standard output, where the cluster collects it";
            self.problem("monitoring.log_file", cause, "remove `server.monitoring.log_file`");
        }
        // The database component reports this problem.
        let Some(way) = self.way(&workload.database, &workload.stored, &workload.egress) else { return };
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

        let is_analyzed = tree.get("analytics").is_some();
        let space = space(&tree);
        let external = set_secret_files(&mut tree, |secret| format!("{SECRETS}/{secret}"));
        let cache_authority = self.cache_authority(workload);
        let mut cache_by_company = false;
        if let Some(cache) = tree.get_mut("cache").and_then(Value::as_object_mut) {
            if cache_authority.is_some() {
                cache.insert("authority_file".to_owned(), json!(format!("{SECRETS}/{CACHE_AUTHORITY}")));
            }
            if let Some(file) = cache.get_mut("ca_file") {
                *file = json!(private_authority_file());
                cache_by_company = true;
            }
        }
        self.config_map(config.clone(), "textnlp-config", [(CONFIG_FILE.to_owned(), filled(tree, &way.settings))]);
        let mut data = secret.clone();
        data["jwt-key.pem"] = json!(OutputRef::new(jwt, "secret"));
        for name in external {
            let Some(value) = self.secret_file(workload, &name) else { return };
            data[name] = value;
        }
        if let Some(pem) = cache_authority {
            data[CACHE_AUTHORITY] = pem;
        }
        self.secret(secrets.clone(), SECRETS_NAME, "Opaque", &data, Vec::new());

        let mut env = vec![json!({ "name": "ENVIRONMENT", "value": self.site.environment })];
        let identity = self.bucket_identity(&workload.served).cloned();
        let signs_in = identity.iter().flat_map(|identity| &identity.variables);
        let signs_in = signs_in.map(|(name, value)| json!({ "name": name, "value": value }));
        let fetch_env: Vec<Value> = env.iter().cloned().chain(download_env(&workload.egress)).chain(signs_in).collect();
        // Not where the service account does not have its rights yet.
        let rights = identity.as_ref().and_then(|identity| self.id(workload.models.as_str(), &identity.part));
        // Jobs have another account: their containers get no credentials.
        let models_account = identity.as_ref().and_then(|_| {
            let account = self.id(name.as_str(), "models-account");
            self.service_account(account.clone(), MODELS_ACCOUNT);
            account
        });
        let private_ca = self.private_ca(&workload.egress);
        if secret.get("database-url").is_some() {
            let from = json!({ "secretKeyRef": { "name": SECRETS_NAME, "key": "database-url" } });
            env.push(json!({ "name": "DATABASE_URL", "valueFrom": from }));
        }
        // Running pods read a renewed external certificate; it does not roll them.
        let (tls_secret, tls) = match &self.cluster.certificate {
            Some(name) => (name.clone(), self.id(CERTIFICATE, "secret")),
            None => (TLS_SECRET.to_owned(), Some(tls)),
        };
        let Some(tls) = tls else { return };
        let digest = |id: &ResourceId| json!(OutputRef::new(id.clone(), "digest"));
        let mut arguments = vec!["admin", "migrate", "--config", "/etc/textnlp/server.yaml"];
        let schema = workload.stored.schema.map(|schema| schema.to_string());
        if let Some(schema) = &schema {
            arguments.extend(["--to", schema]);
        }
        let policies = self.workload_policies(workload);
        let before = [config.clone(), secrets.clone(), account.clone()].into_iter().chain(way.needs.clone());
        let before = before.chain(policies);
        let before = before.chain(private_ca.clone().filter(|_| authority == private_authority(&workload.egress)));
        let job = |name: &str, args: Value, env: &[Value]| {
            // A changed database connection migrates the new database. Other configuration has no effect on the job.
            let mut annotations = json!({ "textnlp-secrets-digest": digest(&secrets) });
            if let Some(registry) = self.registry() {
                annotations["textnlp-registry"] = json!(registry);
            }
            json!({
                "namespace": self.cluster.namespace, "name": name, "image": image, "program": PROGRAM, "user": self.user(), "args": args,
                "env": env, "database_authority": authority, "nodes": self.nodes(),
                "annotations": annotations,
            })
        };
        let mut inputs = job("textnlp-migrate", json!(arguments), &env);
        if self.cluster.gpu.is_some() {
            // It runs again when the servers get GPUs, and refuses an image without CUDA before any pod changes.
            inputs["annotations"]["textnlp-device"] = json!("cuda");
        }
        let key_inputs = workload.first_key.then(|| {
            // An existing database may have a record that the key was revoked.
            let put = r#"{"do":"put","public_id":"$(API_KEY_ID)","sha256":"$(API_KEY_SHA256)","name":"first","reinstate":true}"#;
            let arguments = ["admin", "keys", "--config", "/etc/textnlp/server.yaml", "--do", put];
            let mut env = env.clone();
            for (variable, output) in [("API_KEY_ID", "public_id"), ("API_KEY_SHA256", "sha256")] {
                env.push(json!({ "name": variable, "value": OutputRef::new(api_key.clone(), output) }));
            }
            job("textnlp-first-key", json!(arguments), &env)
        });
        self.object(migrate.clone(), Template::Job, &inputs, before);
        // The pods do not depend on this job.
        if let Some(inputs) = key_inputs {
            self.object(first_key, Template::Job, &inputs, [migrate.clone()]);
        }
        // With GPUs, no more pods than those that can be scheduled.
        let share = workload.canary.and_then(|canary| canary.share).unwrap_or(100);
        let most = self.cluster.gpu.as_ref().map(|gpu| (gpu.replicas(self.cluster.rollout, share), gpu.count));
        if let Some((most, gpus)) = most.filter(|(most, _)| workload.replicas > *most) {
            let cause = format!("{gpus} GPUs are enough for {most} replicas, and not for {}", workload.replicas);
            self.problem("gpu.count", cause, "raise it, or lower `scaling.min`");
        }
        if self.cluster.gpu.is_some() && self.cluster.image_from.is_some() {
            let cause = "the pods have GPUs, and the image that `up` pushes computes on the CPU";
            let fix = "build one by `server/cuda/Dockerfile`, push it, and write `sites[].cluster.image: REGISTRY/textnlp-cuda@sha256:…`";
            self.problem("image", cause, fix);
        }
        let autoscaled_to = workload.autoscaling.as_ref().map(|autoscaling| {
            most.map_or(autoscaling.max, |(most, _)| autoscaling.max.min(most)).max(workload.replicas)
        });
        let shared_models = self.model_volume();
        let grown = workload.autoscaling.is_some();
        let startup = startup_seconds(model_bytes(&workload.served));
        let noticed_after = self.cluster.balancer.as_ref().map_or(0, |balancer| balancer.notices_after_seconds);
        let noticed_after = u64::from(noticed_after);
        // For rollouts, pods carry the configuration itself instead of digests, so an old template restores the
        // complete old release.
        let carried = self.is_carried();
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
        if let Some(registry) = self.registry() {
            annotations["textnlp-registry"] = json!(registry);
        }
        let mut needs = vec![account, migrate];
        if carried {
            let parts = ["rollout-account", "rollout-role", "rollout-binding"];
            needs.extend(parts.into_iter().filter_map(|part| self.id(workload.cluster.as_str(), part)));
        }
        // The route and services of traffic weights must exist before pods change.
        let shares = ["http-route", "backend-tls", "service-new"].map(|part| self.id(ENDPOINT, part));
        needs.extend(shares.into_iter().flatten().filter(|_| self.is_weighted()));
        let outside = workload.outside.as_ref().filter(|_| carried);
        let reached = outside.and_then(|outside| self.reached(outside, workload.secrets.as_str()));
        needs.extend(reached.clone());
        needs.extend(private_ca.clone());
        needs.extend(self.claim(workload.models.as_str()));
        needs.extend(rights);
        let of_pods = if models_account.is_some() { MODELS_ACCOUNT } else { ACCOUNT_OF_PODS };
        needs.extend(models_account);
        if let Some(skip) = identity.as_ref().and_then(|identity| identity.skip_annotation.as_deref()) {
            annotations[skip] = json!(CONTAINERS.join(","));
        }
        match self.cluster.certificate {
            Some(_) => needs.push(tls),
            None => annotations["textnlp-tls-digest"] = digest(&tls),
        }
        if let Some(authority) = private_ca.as_ref().filter(|_| cache_by_company) {
            // The servers read it when they start.
            annotations["textnlp-private-ca-digest"] = digest(authority);
        }
        let fetch_authority = private_authority(&workload.egress);
        // Unless it is mounted for the database already.
        let cache_authority = Some(&fetch_authority).filter(|one| cache_by_company && **one != authority);
        let mut authorities: Vec<&Value> = [&authority, &fetch_authority].map(|one| &one["volume"]).into();
        authorities.retain(|volume| !volume.is_null());
        authorities.dedup();
        if most.is_some() {
            env.push(json!({ "name": "CUDA_CACHE_PATH", "value": KERNELS }));
            env.push(json!({ "name": "CUDA_CACHE_MAXSIZE", "value": MAX_KERNELS.to_string() }));
        }
        let inputs = json!({
            "namespace": self.cluster.namespace, "image": image, "program": PROGRAM, "user": self.user(), "env": env,
            "account": of_pods, "tls_secret": tls_secret, "fetch_env": fetch_env, "fetch_authority": fetch_authority,
            "fetch_token": identity.and_then(|identity| identity.token),
            "database_authority": authority, "cache_authority": cache_authority, "authorities": authorities,
            // With an autoscaler, the replica count is not applied.
            "replicas": (!grown).then_some(workload.replicas),
            "annotations": annotations,
            "carried": carried,
            "canary": workload.canary.filter(|_| carried).map(|canary| {
                let mut canary = json!(canary);
                if self.is_weighted() {
                    canary["weighted"] = json!(true);
                }
                canary.to_string()
            }),
            "queries": outside.map(|outside| QueryConfig::written(outside, reached.is_some())),
            "https_port": HTTPS_PORT,
            "health_port": HEALTH_PORT,
            "ready_port": self.ready_port(),
            "probe_port": PROBE_PORT,
            "metrics_port": METRICS_PORT,
            "resources": PodResources::of(&self.settings().resources, &workload.served, most.is_some()).to_json(),
            "gpu": most.map(|_| self.settings().gpu_resource()),
            "kernel_folder": KERNELS,
            // Where no GPU is left for a new pod, it takes that of an old one.
            "gives_way": self.cluster.rollout == Strategy::Rolling
                && most.is_some_and(|(most, _)| autoscaled_to.unwrap_or(workload.replicas) >= most),
            "model_folder": MODELS,
            "model_space": match &shared_models {
                // The cache contains only links.
                Value::Object(_) => "16Mi".to_owned(),
                _ => space,
            },
            "shared_models": shared_models,
            "nodes": self.server_nodes(),
            "startup_failures": startup.div_ceil(STARTUP_PERIOD),
            // The deployment fails later than its slowest pod.
            "progress_seconds": startup + 300,
            "gateway_leaves_after": noticed_after + GATEWAY_LEAVES_AFTER,
            "api_leaves_after": noticed_after + API_LEAVES_AFTER,
            "grace_seconds": noticed_after + API_LEAVES_AFTER + u64::from(workload.drain_seconds) + LEAVING,
        });
        self.object(deployment.clone(), Template::Deployment, &inputs, needs);
        if workload.replicas > 1 {
            // The budget retains two pods, or all but one if there are only two.
            let inputs = json!({ "namespace": self.cluster.namespace, "min_available": 2.min(workload.replicas - 1) });
            self.part_of_kind("disruption-budget", Template::DisruptionBudget, &inputs, []);
        }
        if let Some(autoscaling) = &workload.autoscaling {
            let mut inputs = json!(autoscaling);
            if most.is_some() {
                // Neither follows the load where the GPU computes.
                (inputs["cpu"], inputs["memory"]) = (Value::Null, Value::Null);
                if autoscaling.requests_per_second.is_none() {
                    let cause = "an autoscaler of pods with GPUs needs the request rate";
                    self.problem("scaling", cause, "write `requests_per_second: 5`, with `adapter: true`");
                }
            }
            inputs["namespace"] = json!(self.cluster.namespace);
            (inputs["min"], inputs["max"]) = (json!(workload.replicas), json!(autoscaled_to));
            let adapter_objects = self.adapter(&image);
            self.part_of_kind(
                "autoscaler",
                Template::Autoscaler,
                &inputs,
                [deployment].into_iter().chain(adapter_objects),
            );
        }
        self.beside(&secrets, &way, workload.saml.as_ref(), is_analyzed);
    }

    /// A file in the Secret of the servers: a secret of the site, or the address of a cache that a cloud runs with its password.
    fn secret_file(&self, workload: &Workload, name: &str) -> Option<Value> {
        let secret = |name: &str| Some(json!(OutputRef::new(self.id(workload.secrets.as_str(), name)?, "secret")));
        let Some(cache) = workload.cache.as_ref().filter(|_| name == CACHE_SECRET) else { return secret(name) };
        let group = self.id(cache.as_str(), CACHE_PART)?;
        let password = match self.cluster.cache.has_login {
            true => json!(OutputRef::new(group.clone(), "login")),
            false => secret(CACHE_PASSWORD)?,
        };
        Some(json!({ (URL): OutputRef::new(group, "url"), "password": password }))
    }

    /// The authority of a cache that a cloud runs, if it has one of its own.
    fn cache_authority(&self, workload: &Workload) -> Option<Value> {
        let cache = workload.cache.as_ref().filter(|_| self.cluster.cache.has_authority)?;
        Some(json!({ PLAIN: OutputRef::new(self.id(cache.as_str(), CACHE_PART)?, "ca_pem") }))
    }

    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        if self.component.name.as_str() != ENDPOINT {
            let cause = format!("the endpoint of a cluster must be called `{ENDPOINT}`");
            return self.problem("name", cause, "this is a bug in this program: report it");
        }
        if !endpoint.tls {
            let cause = "API keys would be sent without TLS in the cluster's network";
            return self.problem("tls", cause, "set `tls: { mode: local-ca }`");
        }
        if endpoint.host != "0.0.0.0" && endpoint.host != "::" {
            let cause = format!("a pod has its own address, not `{}`", endpoint.host);
            self.problem("host", cause, "remove `host`");
        }
        if endpoint.port == endpoint.metrics_port {
            let fix = "the usual ones are 8443 and 9090";
            self.problem("port", "clients and metrics need two ports", fix);
        }
        let Some(address) = address(self.settings(), endpoint) else {
            let cause = "the address that clients use is not configured";
            let fix = "write `traffic: { domain: NAME }`, whose DNS record you point at the load balancer of service `textnlp-api`, or `sites[].cluster.address: https://HOST:PORT` of an ingress or a `kubectl port-forward` for that service";
            return self.problem("address", cause, fix);
        };
        let ids = ["config", "tls", "service"].map(|part| self.id(ENDPOINT, part));
        let [Some(config), Some(tls), Some(service)] = ids else { return };
        let Some(leaf) = self.id(endpoint.certificate.as_str(), "leaf").or_else(|| self.id(CERTIFICATE, "leaf")) else {
            return;
        };
        let limits = &endpoint.connections;
        let mut gateway = json!({ "gateway": {
            "listen": format!("0.0.0.0:{HTTPS_PORT}"),
            // Probes have an address that clients do not reach.
            "health_listen": format!("0.0.0.0:{HEALTH_PORT}"),
            // Readiness is the cluster's decision. A request that arrives all the same is answered as long as a server
            // runs.
            "health": { "path": "/health", "interval_ms": 500, "timeout_ms": 2000, "unhealthy_after": 4, "healthy_after": 1 },
            "backends": [{ "name": "api", "listen": format!("127.0.0.1:{HTTP_PORT}") }],
            "tls": { "certificate_file": "/etc/textnlp-tls/tls.crt", "key_file": "/etc/textnlp-tls/tls.key" },
            "timeout_seconds": endpoint.timeout_seconds,
            "max_request_bytes": endpoint.max_request_bytes,
            "max_connections": limits.total,
            "max_connections_per_address": limits.per_address.unwrap_or_else(|| default_per_address(limits.total)),
        } });
        if !limits.trusted_proxies.is_empty() {
            gateway["gateway"]["trusted_proxies"] = json!(limits.trusted_proxies);
        }
        if !limits.cors_origins.is_empty() {
            gateway["gateway"]["cors_origins"] = json!(limits.cors_origins);
        }
        if let Some(port) = self.ready_port() {
            gateway["gateway"]["ready_listen"] = json!(format!("0.0.0.0:{port}"));
            let inputs = json!({ "namespace": self.cluster.namespace, "port": port });
            self.part_of_kind("service-ready", Template::ServiceReady, &inputs, []);
        }
        self.config_map(config, "textnlp-gateway", [(GATEWAY_FILE.to_owned(), gateway)]);
        if self.cluster.certificate.is_none() {
            let data = json!({
                "tls.crt": OutputRef::new(leaf.clone(), "certificate"),
                "tls.key": OutputRef::new(leaf, "key"),
            });
            self.secret(tls, TLS_SECRET, "kubernetes.io/tls", &data, Vec::new());
        }
        let settings = self.settings();
        let is_led_by_others =
            (settings.address.is_some() && !settings.load_balancer) || Ingress::of(settings, endpoint).is_some();
        let balancer = self.cluster.balancer.as_ref().filter(|_| !is_led_by_others);
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "address": address,
            "type": if is_led_by_others { "ClusterIP" } else { "LoadBalancer" },
            "annotations": balancer.map(|balancer| balancer.annotations.clone()).unwrap_or_default(),
            "local": balancer.is_some_and(|balancer| balancer.keeps_addresses),
            "port": endpoint.port,
        });
        self.object(service, Template::Service, &inputs, []);
        let inputs = json!({ "namespace": self.cluster.namespace, "metrics_port": endpoint.metrics_port });
        self.part_of_kind("metrics", Template::Metrics, &inputs, []);
        self.ingress(endpoint);
    }

    /// The ingress, if the service is not exposed by a load balancer.
    fn ingress(&mut self, endpoint: &Endpoint) {
        let cluster = self.cluster;
        let ingress = Ingress::of(&cluster.settings, endpoint);
        if endpoint.waf && !matches!(ingress, Some(Ingress::Nginx { .. })) {
            let cause = "the web application firewall is ModSecurity in ingress-nginx, and the service has no ingress";
            self.problem("network.waf", cause, "write `sites[].cluster.ingress: { class: nginx, … }`, or `waf: false`");
        }
        match ingress {
            None => {}
            Some(Ingress::Nginx { class, host, tls_secret, issuer }) => {
                let inputs = json!({
                    "namespace": self.cluster.namespace,
                    "class": class,
                    "host": host,
                    "tls_secret": tls_secret,
                    "issuer": issuer,
                    "waf": endpoint.waf,
                    "timeout_seconds": endpoint.timeout_seconds,
                    "max_request_bytes": endpoint.max_request_bytes,
                });
                self.part_of_kind("ingress", Template::Ingress, &inputs, []);
            }
            Some(Ingress::Route { host }) => {
                let inputs = json!({
                    "namespace": self.cluster.namespace, "host": host, "timeout_seconds": endpoint.timeout_seconds,
                });
                self.part_of_kind("route", Template::Route, &inputs, []);
            }
            Some(gateway @ Ingress::Gateway { .. }) => self.gateway(endpoint, &gateway),
        }
    }
}

fn default_per_address(total: u32) -> u32 {
    (total / ADDRESS_PART).max(1)
}

/// The startup timeout of a pod, in seconds.
fn startup_seconds(model_bytes: Option<u64>) -> u64 {
    model_bytes.map_or(STARTUP_UNKNOWN, |bytes| STARTUP_SECONDS + bytes.div_ceil(MODEL_BYTES_PER_SECOND))
}

/// The server's configuration with the settings that are specific to pods.
fn filled(mut tree: Map<String, Value>, database: &Value) -> Value {
    let mut set = |section: &str, field: &str, value: Value| {
        let section = tree.entry(section).or_insert_with(|| json!({}));
        if let Value::Object(section) = section {
            section.insert(field.to_owned(), value);
        }
    };
    set("api", "listen", json!(format!("127.0.0.1:{HTTP_PORT}")));
    set("api", "health_listen", json!(format!("0.0.0.0:{PROBE_PORT}")));
    set("api", "metrics_listen", json!(format!("0.0.0.0:{METRICS_PORT}")));
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

/// The space for models as a Kubernetes quantity: `50GB` is `50G`.
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
    fn one_address_never_has_every_connection_by_default() {
        assert_eq!([12_000, 8, 1].map(default_per_address), [1500, 1, 1]);
    }

    #[test]
    fn startup_timeout_depends_on_the_model_size() {
        assert_eq!(startup_seconds(Some(0)), 120);
        assert_eq!(startup_seconds(Some(14_000_000_000)), 820);
        assert_eq!(startup_seconds(None), 1800);
    }

    #[test]
    fn sizes_are_written_as_kubernetes_quantities() {
        for (ours, theirs) in [("50GB", "50G"), ("512MiB", "512Mi"), ("1KB", "1k"), ("1KiB", "1Ki"), ("1000", "1000")] {
            let tree = json!({ "models": { "max_cache_size": ours } });
            assert_eq!(space(tree.as_object().expect("a tree")), theirs);
        }
    }
}
