//! Checks of a site's cluster: access, ingress, auxiliary pods and scheduling.

use textnlp_net::network::Network;
use textnlp_provider::cluster::{GPU, GPU_RESOURCES, METADATA_SERVICES, is_in_registry};

use super::super::components::gpus;
use super::super::model::*;
use super::super::units::cut;
use super::Checker;

/// The longest deadline of an analytics job, in seconds.
const LONGEST_RUN: u64 = 24 * 3600;
/// The port of DNS servers, which some clouds have at link-local addresses.
const DNS_PORT: u16 = 53;
/// The least memory of a container in bytes; no program starts with less.
const LEAST_MEMORY: u64 = 16 << 20;

impl Checker<'_> {
    /// Cluster settings apply only to sites whose programs run in a cluster.
    pub(super) fn cluster_access(&mut self, i: usize, site: &SiteSettings) {
        let (at, access) = (format!("sites[{i}].cluster"), &site.cluster);
        if !site.is_in_cluster() {
            // Defaults are not serialized, so this is exactly what was configured, also for fields added later.
            let mut access_fields = serde_json::to_value(access).unwrap_or_default();
            // Containers that a cloud runs have an image too, and those of Cloud Run limits.
            if let (true, Some(fields)) = (site.is_endpoint(), access_fields.as_object_mut()) {
                fields.remove("image");
                if site.runtime == Runtime::CloudRun && access.resources.requests.is_empty() {
                    fields.remove("resources");
                }
            }
            for field in access_fields.as_object().into_iter().flat_map(|access_fields| access_fields.keys()) {
                let cause = format!("the site has `runtime: {}` and is not in a cluster", site.runtime);
                self.error(&format!("{at}.{field}"), cause, "remove it, or write `runtime: kubernetes`");
            }
            return;
        }
        self.reached(&at, access);
        if let Some(ingress) = &access.ingress {
            self.ingress(&format!("{at}.ingress"), ingress, access.address.is_some());
        }
        if let Some(analytics) = &access.analytics {
            self.analytics(&format!("{at}.analytics"), analytics);
        }
        self.model_volume(&format!("{at}.models"), &access.models);
        self.nodes(&at, access);
        self.gpu_resource(&format!("{at}.gpu_resource"), site);
    }

    /// Servers compute by CUDA, so that their GPUs are those of NVIDIA's device plugin.
    fn gpu_resource(&mut self, path: &str, site: &SiteSettings) {
        let Some(name) = &site.cluster.gpu_resource else { return };
        if !name.strip_prefix(GPU_RESOURCES).is_some_and(is_label_value) {
            let cause = format!("`{}` is not the name of a GPU that NVIDIA's device plugin offers", cut(name));
            let fix =
                "write it as `kubectl describe nodes` lists it: `nvidia.com/mig-1g.10gb`, `nvidia.com/gpu.shared`";
            self.error(path, cause, fix);
        }
        if gpus(self.environment, site).is_none() {
            let cause = format!("site `{}` has no GPUs", site.name);
            self.error(
                path,
                cause,
                format!("write `gpu: {{ size: small }}`, or remove it: without it, a pod has one of `{GPU}`"),
            );
        }
    }

    /// Pods get the proxy as variables in their template, which must not contain a password.
    pub(super) fn proxy_of_pods(&mut self) {
        let e = self.environment;
        if !e.sites.iter().any(SiteSettings::is_in_cluster) {
            return;
        }
        let Proxy { http, https, .. } = &e.network.proxy;
        for (field, address) in [("http", http), ("https", https)] {
            if matches!(address, Some(UrlSource::Secret(_))) {
                let cause =
                    "pods fetch models through it, and a proxy address from a secret is not supported in pods yet";
                let fix = "write the address of a proxy that asks for no password: `http://PROXY:3128`";
                self.error(&format!("network.proxy.{field}"), cause, fix);
            }
        }
    }

    /// The account at a registry, with which nodes pull the images of clusters.
    pub(super) fn registry(&mut self) {
        let e = self.environment;
        let RegistrySettings { url, existing, user, password } = &e.registry;
        let whole = "write `registry: { url: HOST, user: USER, password: secret:env:NAME }`, or remove it";
        match (user, password) {
            (None, None) => return,
            (Some(_), None) => {
                return self.error("registry.user", "it has no effect without `registry.password`", whole);
            }
            (None, Some(_)) => self.error("registry.password", "the account at the registry has no user", whole),
            (Some(user), Some(_)) => {
                // Both are sent as `USER:PASSWORD` (RFC 7617).
                if user.is_empty() || user.contains(|c: char| c == ':' || c.is_control()) {
                    let cause = format!("`{}` is not the name of a user", cut(user));
                    self.error("registry.user", cause, "write a name without `:`");
                }
            }
        }
        let Some(address) = e.registry.address() else {
            let cause = "it is not set, and the account needs the address of its registry";
            return self.error("registry.url", cause, whole);
        };
        let host = address.split('/').next().unwrap_or_default();
        // A kubelet would take `*` as a pattern, and send the password to other hosts too.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/".contains(c);
        if host.is_empty() || !address.chars().all(is_plain) {
            let cause = format!("`{}` is not the address of a registry", cut(url.as_deref().unwrap_or_default()));
            self.error("registry.url", cause, "write `HOST`, `HOST:PORT` or `HOST/PATH`, as images name it");
        }
        if existing.is_some() || e.sites.iter().any(|site| site.existing.registry.is_some()) {
            let cause = "an existing registry of a cloud is used with the credentials of the nodes";
            self.error("registry.existing", cause, "remove it, or remove `registry.user` and `registry.password`");
        }
        for (i, site) in e.sites.iter().enumerate().filter(|(_, site)| site.is_in_cluster()) {
            let access = &site.cluster;
            let analytics = access.analytics.as_ref().and_then(|analytics| analytics.image.as_ref());
            let images = [&access.image, &access.database_image, &access.models.reference];
            let mut images = images.into_iter().flatten().chain(analytics);
            if !images.any(|image| is_in_registry(image, address)) {
                let cause =
                    format!("no image of the site is in `{}`, so nodes do not use the account there", cut(address));
                let fix = format!("write an image such as `{}/textnlp:VERSION@sha256:…`", cut(address));
                self.warn(&format!("sites[{i}].cluster.image"), cause, fix);
            }
        }
    }

    fn reached(&mut self, at: &str, access: &ClusterAccess) {
        let fields = [
            ("kubeconfig", &access.kubeconfig),
            ("context", &access.context),
            ("image", &access.image),
            ("database_image", &access.database_image),
            ("address", &access.address),
            ("health_address", &access.health_address),
        ];
        for (field, value) in fields.into_iter().filter_map(|(field, value)| Some((field, value.as_deref()?))) {
            self.without_blanks(&format!("{at}.{field}"), value);
        }
        for (field, address, port) in [
            ("address", &access.address, access.port()),
            ("health_address", &access.health_address, access.health().map(|(_, port)| port)),
        ] {
            if let Some(address) = address
                && (port.is_none() || address.trim_start_matches("https://").contains(['/', '?', '#', '@']))
            {
                let cause = format!("`{}` is not the address of a service", cut(address));
                let fix = "write `https://HOST` or `https://HOST:PORT`, without a path";
                self.error(&format!("{at}.{field}"), cause, fix);
            }
        }
        if access.health_address.is_some() && self.environment.witness_place().is_none() {
            let cause = "it has no effect without failover between sites";
            let fix = "remove it, or write `dr: { mode: automatic }` with a second site";
            self.error(&format!("{at}.health_address"), cause, fix);
        }
        for (i, rule) in access.egress.iter().enumerate() {
            self.destination(&format!("{at}.egress[{i}].to"), &rule.to, rule.port == DNS_PORT);
        }
        for (i, network) in access.api_server.iter().enumerate() {
            self.destination(&format!("{at}.api_server[{i}]"), network, false);
        }
        if access.load_balancer && access.address.is_none() {
            let cause = "it has no effect without `address`: the service then has a load balancer";
            self.error(&format!("{at}.load_balancer"), cause, "remove it, or write `address`");
        }
    }

    fn destination(&mut self, at: &str, to: &str, is_dns: bool) {
        let Ok(network) = to.parse::<Network>() else {
            let cause = format!("`{}` is neither an address nor a network", cut(to));
            let fix = "write an address such as `192.0.2.7`, or a network such as `10.0.0.0/8` without host bits; policies know no names";
            return self.error(at, cause, fix);
        };
        let mut metadata = METADATA_SERVICES.iter().filter_map(|text| text.parse::<Network>().ok());
        if !is_dns && metadata.any(|metadata| metadata.includes(&network)) {
            let cause =
                format!("`{network}` has the cloud's metadata service, which gives the credentials of the node");
            self.error(at, cause, "remove it; only a DNS server (`port: 53`) may be there");
        }
    }

    fn ingress(&mut self, at: &str, ingress: &ClusterIngress, has_address: bool) {
        if self.environment.traffic.domain.is_none() {
            self.error(at, "the name that clients use is not configured", "write `traffic: { domain: NAME }`");
        }
        if has_address {
            let fix = "remove one of the two: an ingress is reached at `https://` and `traffic.domain`";
            self.error(at, "it contradicts `address`", fix);
        }
        let fields = [("class", &ingress.class), ("issuer", &ingress.issuer), ("tls_secret", &ingress.tls_secret)];
        for (field, value) in fields.into_iter().filter_map(|(field, value)| Some((field, value.as_deref()?))) {
            let field = format!("{at}.{field}");
            match ingress.kind {
                IngressKind::Ingress => self.object_name(&field, value),
                IngressKind::Route => {
                    self.error(&field, "it has no effect with `kind: route`, which passes TLS through", "remove it");
                }
                IngressKind::Gateway => {
                    let cause = "it has no effect with `kind: gateway`: the Gateway has its class and the certificate for clients";
                    self.error(&field, cause, "remove it");
                }
            }
        }
        match ingress.kind {
            IngressKind::Gateway => self.gateway(at, ingress),
            _ => {
                let fields = [
                    ("gateway", ingress.gateway.is_some()),
                    ("section", ingress.section.is_some()),
                    ("port", ingress.port.is_some()),
                ];
                for (field, _) in fields.into_iter().filter(|(_, is_set)| *is_set) {
                    self.error(
                        &format!("{at}.{field}"),
                        "only `kind: gateway` has this key",
                        "remove it, or write `kind: gateway`",
                    );
                }
            }
        }
        if ingress.kind == IngressKind::Ingress {
            if ingress.class.is_none() {
                let fix = "write `class: nginx`, or the class that your ingress-nginx has";
                self.error(&format!("{at}.class"), "an ingress without a class is handled by no controller", fix);
            }
            if ingress.issuer.is_some() == ingress.tls_secret.is_some() {
                let cause = "the certificate for clients has one source";
                self.error(at, cause, "write either `issuer` (cert-manager) or `tls_secret` (one that exists)");
            }
        }
    }

    fn gateway(&mut self, at: &str, ingress: &ClusterIngress) {
        const FIX: &str = "write `gateway: NAMESPACE/NAME`, as `kubectl get gateways --all-namespaces` shows it";
        match ingress.gateway.as_deref().map(|gateway| gateway.split_once('/')) {
            None => self.error(at, "no Gateway is configured", FIX),
            Some(None) => self.error(&format!("{at}.gateway"), "it needs a namespace and a name", FIX),
            Some(Some((namespace, name))) => {
                if namespace.len() > 63 || namespace.contains('.') {
                    self.error(&format!("{at}.gateway"), "this is not the name of a namespace", FIX);
                } else {
                    self.object_name(&format!("{at}.gateway"), namespace);
                }
                self.object_name(&format!("{at}.gateway"), name);
            }
        }
        if let Some(section) = &ingress.section {
            self.object_name(&format!("{at}.section"), section);
        }
        if ingress.port == Some(0) {
            self.error(
                &format!("{at}.port"),
                "no listener can have this port",
                "write the port of the listener, or remove it",
            );
        }
        if self.environment.tls.mode != TlsMode::LocalCa {
            let cause = format!(
                "with `mode: {}` the Gateway cannot verify the certificate of the pods: it gets only the built-in certificate authority",
                self.environment.tls.mode
            );
            let fix = "write `tls: { mode: local-ca }`; clients see the certificate of the Gateway";
            self.error("tls.mode", cause, fix);
        }
    }

    fn analytics(&mut self, path: &str, analytics: &Analytics) {
        match analytics.image.as_deref() {
            None if !self.environment.server.analytics.enabled => {
                let cause = "no image of your own is configured, and the servers do not analyze usage";
                let fix = "write `server.analytics.enabled: true`, or `image: REGISTRY/textnlp-analytics@sha256:…`";
                self.error(path, cause, fix);
            }
            None if !analytics.command.is_empty() => {
                let cause = "without `image`, the job runs the server program";
                self.error(&format!("{path}.command"), cause, "remove it, or add `image`");
            }
            None => {}
            Some(image) => self.without_blanks(&format!("{path}.image"), image),
        }
        if !is_schedule(&analytics.schedule) {
            let cause = format!("`{}` is not a cron schedule", cut(&analytics.schedule));
            let fix = "write minute, hour, day, month and weekday, in UTC: `0 * * * *` is every hour";
            self.error(&format!("{path}.schedule"), cause, fix);
        }
        let is_wrong = |argument: &String| argument.is_empty() || argument.chars().any(char::is_control);
        if analytics.command.iter().any(is_wrong) {
            let fix = "write the program and its arguments as a list, or remove `command` for that of the image";
            self.error(&format!("{path}.command"), "one of its entries is empty or has control characters", fix);
        }
        if !(1..=LONGEST_RUN).contains(&analytics.deadline.as_seconds()) {
            let fix = "write a time from a second to a day, shorter than from one run to the next";
            self.error(&format!("{path}.deadline"), "the time limit is out of range", fix);
        }
        if analytics.memory.0 < LEAST_MEMORY {
            self.error(
                &format!("{path}.memory"),
                "it is too little memory to start a program",
                "write `16MiB` or more",
            );
        }
    }

    fn model_volume(&mut self, path: &str, models: &ClusterModels) {
        let unread = |what: &str, kind| format!("{what} has no effect with `kind: {kind}`");
        if models.kind == ModelVolume::Node {
            let cause = "a folder of a node needs a `hostPath` volume, which the restricted profile of the namespace refuses because it gives pods access to the node";
            let fix = "write `kind: image`, which each node keeps once for all of its pods, or `kind: claim`";
            self.error(&format!("{path}.kind"), cause, fix);
        }
        if models.kind != ModelVolume::Claim {
            for (field, access_fields) in
                [("size", models.size.is_some()), ("storage_class", models.storage_class.is_some())]
            {
                if access_fields {
                    self.error(
                        &format!("{path}.{field}"),
                        unread("it", models.kind),
                        "remove it, or write `kind: claim`",
                    );
                }
            }
        }
        if models.size.is_some_and(|size| size.0 == 0) {
            self.error(&format!("{path}.size"), "nothing fits", "write twice the size of all models");
        }
        if let Some(class) = &models.storage_class {
            self.object_name(&format!("{path}.storage_class"), class);
        }
        match (models.kind, models.reference.as_deref()) {
            (ModelVolume::Image, None) => {
                let fix = "write `reference: REGISTRY/models@sha256:…`";
                self.error(path, "no image with the models is configured", fix);
            }
            (ModelVolume::Image, Some(reference)) => self.without_blanks(&format!("{path}.reference"), reference),
            (kind, Some(_)) => {
                self.error(&format!("{path}.reference"), unread("it", kind), "remove it, or write `kind: image`");
            }
            (_, None) => {}
        }
    }

    fn nodes(&mut self, path: &str, access: &ClusterAccess) {
        let PodResources { requests, limits } = access.resources;
        let more = |request: Option<String>, limit: Option<String>, is_more: bool| {
            Some(format!("{} are requested, and the limit is {}", request?, limit?)).filter(|_| is_more)
        };
        let texts =
            |amounts: &ResourceAmounts| (amounts.cpu.map(|c| c.to_string()), amounts.memory.map(|m| m.to_string()));
        let ((cpu, memory), (cpu_limit, memory_limit)) = (texts(&requests), texts(&limits));
        for (field, cause) in [
            ("cpu", more(cpu, cpu_limit, requests.cpu > limits.cpu)),
            ("memory", more(memory, memory_limit, requests.memory > limits.memory)),
        ] {
            if let Some(cause) = cause {
                self.error(&format!("{path}.resources.requests.{field}"), cause, "request the limit at most");
            }
        }
        for (key, value) in &access.node_selector {
            if !is_label_key(key) || !(value.is_empty() || is_label_value(value)) {
                let cause = format!("`{}: {}` is not a valid node label", cut(key), cut(value));
                let fix = "write it as `kubectl get nodes --show-labels` does";
                self.error(&format!("{path}.node_selector"), cause, fix);
            }
        }
        for (n, taint) in access.tolerations.iter().enumerate() {
            let path = format!("{path}.tolerations[{n}]");
            let fix = "write `{ key: nvidia.com/gpu, operator: Exists, effect: NoSchedule }`, or `{ key: KEY, value: VALUE, effect: NoSchedule }`";
            let (equal, value) = (taint.operator == TolerationOperator::Equal, taint.value.as_deref());
            if taint.key.as_deref().is_some_and(|key| !is_label_key(key)) {
                self.error(&path, "this is not the key of a taint", fix);
            } else if equal && taint.key.is_none() {
                self.error(&path, "no taint is configured", fix);
            } else if equal != value.is_some() {
                self.error(&path, "`Equal` needs a value, and `Exists` takes none", fix);
            } else if value.is_some_and(|value| !value.is_empty() && !is_label_value(value)) {
                self.error(&path, "this is not the value of a taint", fix);
            }
        }
        for (field, name) in [("runtime_class", &access.runtime_class), ("priority_class", &access.priority_class)] {
            if let Some(name) = name {
                self.object_name(&format!("{path}.{field}"), name);
            }
        }
    }

    fn without_blanks(&mut self, path: &str, text: &str) {
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            self.error(path, "it is empty or contains spaces", "write it without spaces, or remove it");
        }
    }

    fn object_name(&mut self, path: &str, name: &str) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let fits =
            name.len() <= 253 && name.chars().all(plain) && edge(name.chars().next()) && edge(name.chars().last());
        if !fits {
            let cause = format!("`{}` is not the name of an object", cut(name));
            self.error(path, cause, "write it as `kubectl get` shows it: small letters, digits, `-` and `.`");
        }
    }
}

/// Whether Kubernetes accepts a schedule: five fields of numbers, names, ranges and steps. Time zones (`TZ=`) and
/// macros such as `@every` are rejected.
fn is_schedule(line: &str) -> bool {
    const MONTHS: &str = "jan feb mar apr may jun jul aug sep oct nov dec";
    const DAYS: &str = "sun mon tue wed thu fri sat";
    let fields: Vec<&str> = line.split(' ').collect();
    let bounds = [(0, 59, ""), (0, 23, ""), (1, 31, ""), (1, 12, MONTHS), (0, 6, DAYS)];
    fields.len() == bounds.len()
        && fields.iter().zip(bounds).all(|(field, (least, most, names))| {
            let number = |text: &str| -> Option<u32> {
                let named = names.split(' ').position(|name| !name.is_empty() && name == text.to_lowercase());
                let digits = !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit());
                let number = match named {
                    Some(index) => u32::try_from(index).ok()? + least,
                    None if digits => text.parse().ok()?,
                    None => return None,
                };
                (least..=most).contains(&number).then_some(number)
            };
            field.split(',').all(|part| {
                let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
                let steps =
                    |step: &str| step.bytes().all(|b| b.is_ascii_digit()) && step.parse::<u8>().is_ok_and(|n| n > 0);
                let ranged = match range.split_once('-') {
                    _ if range == "*" => true,
                    None => number(range).is_some(),
                    Some((from, to)) => matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to),
                };
                ranged && step.is_none_or(steps)
            })
        })
}

pub(super) fn is_label_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// A label key, with an optional DNS prefix.
fn is_label_key(key: &str) -> bool {
    let domain = |text: &str| {
        text.len() <= 253
            && text.split('.').all(|part| is_label_value(part) && !part.contains('_') && part == part.to_lowercase())
    };
    match key.split_once('/') {
        Some((before, name)) => domain(before) && is_label_value(name),
        None => is_label_value(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cron_schedules_match_those_kubernetes_accepts() {
        for line in ["0 * * * *", "*/15 8-18 * * mon-fri", "0 0 1,15 JAN-mar 0", "59 23 31 12 6", "5/10 * * * *"] {
            assert!(is_schedule(line), "{line}");
        }
        for line in [
            "",
            "@hourly",
            "0 * * *",
            "0 * * * * *",
            "60 * * * *",
            "0 24 * * *",
            "0 0 0 * *",
            "0 0 * 13 *",
            "0 0 * * 7",
            "*/0 * * * *",
            "5-1 * * * *",
            "0  * * * *",
            "TZ=UTC 0 * * * *",
            "a * * * *",
            "1- * * * *",
            "0 * * * * ",
            "+1 * * * *",
            "*/+1 * * * *",
        ] {
            assert!(!is_schedule(line), "{line}");
        }
    }

    #[test]
    fn label_keys_may_have_a_domain_prefix() {
        for key in ["a", "nvidia.com/gpu", "node.kubernetes.io/lifecycle", "textnlp/workload-type", "A_b"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "a/b/c", "-a", "UPPER.com/a", "a b"] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
