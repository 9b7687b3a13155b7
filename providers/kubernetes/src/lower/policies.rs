//! Network policies: the connections that pods accept and open. Everything else is denied.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use textnlp_models::Source;
use textnlp_net::network::Network as Addresses;
use textnlp_provider::ResourceId;
use textnlp_provider::cluster::{BucketIdentity, EgressRule, METADATA_SERVICES, Transport};
use textnlp_provider::component::{DatabaseAddress, DumpCopies, Network, Workload};
use textnlp_provider::settings::Hosting;

use super::adapter::ADAPTER;
use super::database::{BACKUP, POSTGRES};
use super::nodes::Volume;
use super::template::Template;
use super::{HTTPS_PORT, Lowering, METRICS_PORT};
use crate::canary::CONTROLLER;

/// Networks without public servers.
const PRIVATE: [&str; 6] = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"];
/// The whole Internet, in both families.
const INTERNET: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// The address of NodeLocal DNSCache, which runs in the network of each node.
const NODE_DNS: &str = "169.254.20.10/32";
/// The ports of API servers.
const API_PORTS: [u16; 2] = [443, 6443];
const POSTGRES_PORT: u16 = 5432;
const REDIS_PORT: u16 = 6379;
/// The status port of CloudNativePG's instances.
const INSTANCE_PORT: u16 = 8000;
/// The policy of model downloads.
const MODELS_POLICY: &str = "allow-models";
/// The name of CloudNativePG's operator in the labels of its pods, by its manifests, its chart and OLM.
const OPERATOR: &str = "cloudnative-pg";

/// What a host name or an address is in a policy, which knows addresses only.
enum Host {
    Address(IpAddr),
    /// A server outside of the cluster or a service in it.
    Any,
    /// A server of the Internet.
    Public,
}

impl Lowering<'_> {
    /// The policies of all pods.
    pub(super) fn policies(&mut self, network: &Network) {
        if !network.policies {
            return;
        }
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "https_port": HTTPS_PORT,
            "metrics_port": METRICS_PORT,
            "ready_port": self.ready_port(),
            "rollout": self.is_carried().then_some(CONTROLLER),
            "adapter": self.cluster.adapter.then_some(ADAPTER),
            "adapter_port": HTTPS_PORT,
            // In an external namespace, the policies must not restrict foreign pods.
            "pods": if self.component.existing.is_some() { ours() } else { json!({}) },
        });
        self.part_of_kind("allow-in", Template::AllowIn, &inputs, []);
        let instances = json!([{ "podSelector": { "matchLabels": { "cnpg.io/cluster": POSTGRES } } }]);
        let configured: Vec<Value> = self.settings().egress.iter().filter_map(configured).collect();
        let mut rules = vec![dns()];
        if self.cluster.postgres.is_some() {
            rules.push(rule(instances.clone(), &[POSTGRES_PORT]));
        }
        rules.extend(configured.iter().cloned());
        self.allow_out("allow-out", "textnlp-out", ours(), rules);
        self.part_of_kind("deny", Template::Deny, &inputs, []);
        let clients = [self.is_carried().then_some(CONTROLLER), self.cluster.adapter.then_some(ADAPTER)];
        let clients: Vec<&str> = clients.into_iter().flatten().collect();
        if !clients.is_empty() {
            let named = json!({ "key": "app.kubernetes.io/name", "operator": "In", "values": clients });
            let servers = json!([{ "podSelector": { "matchLabels": { "app": "textnlp-api" } } }]);
            let rules = vec![self.api_server(), rule(servers, &[METRICS_PORT])];
            self.allow_out("allow-api-clients", "textnlp-api-clients", json!({ "matchExpressions": [named] }), rules);
        }
        if self.cluster.adapter {
            self.part_of_kind("allow-adapter", Template::AllowAdapter, &inputs, []);
        }
        if self.settings().ingress.as_ref().is_some_and(|ingress| ingress.issuer.is_some()) {
            self.part_of_kind("allow-solver", Template::AllowSolver, &inputs, []);
        }
        if self.cluster.postgres.is_some() {
            // CloudNativePG's jobs, which create instances, have the label of the cluster and none of ours.
            let mut egress = vec![rule(instances, &[POSTGRES_PORT, INSTANCE_PORT]), self.api_server(), dns()];
            egress.extend(configured);
            let inputs = json!({
                "namespace": self.cluster.namespace, "name": POSTGRES, "clients": database_clients(),
                "port": POSTGRES_PORT, "instance_port": INSTANCE_PORT, "operator": OPERATOR, "egress": egress,
            });
            self.part_of_kind("allow-database", Template::AllowDatabase, &inputs, []);
        }
    }

    /// The API server. No policy can select it, and in some networks no address block matches it: without configured
    /// addresses, by its ports only. Metadata services listen on neither port.
    fn api_server(&self) -> Value {
        let networks = self.settings().api_server.iter().filter_map(|text| text.parse::<Addresses>().ok());
        let to: Vec<Value> = networks.map(|network| block(network, &[])).collect();
        let rule = rule(json!(to), &API_PORTS);
        match to.is_empty() {
            // An empty list of destinations would mean the same to most networks; none is clear to all.
            true => json!({ "ports": rule["ports"] }),
            false => rule,
        }
    }

    /// The connections of the servers and of their jobs to programs outside of the namespace. Returns the policies.
    pub(super) fn workload_policies(&mut self, workload: &Workload) -> Vec<ResourceId> {
        if !workload.egress.policies {
            return Vec::new();
        }
        let database = workload.stored.postgres.as_ref().and_then(|postgres| postgres.address.as_ref());
        let database = match database {
            // Only a cloud knows the address of its database, and only pods read a secret one.
            None if workload.stored.hosting == Some(Hosting::Managed) => vec![(Host::Any, POSTGRES_PORT)],
            None => Vec::new(),
            Some(DatabaseAddress::Url(url, _)) => hosts(url),
            Some(DatabaseAddress::Secret(_)) => vec![(Host::Any, POSTGRES_PORT)],
        };
        let outside = workload.outside.as_ref().filter(|_| self.is_carried());
        let servers = json!({ "matchLabels": { "app": "textnlp-api" } });
        let controller = json!({ "matchLabels": { "app.kubernetes.io/name": CONTROLLER } });
        let issuer = workload.config.pointer("/textnlp/security/oidc/issuer").and_then(Value::as_str);
        let webhooks = workload.config.pointer("/textnlp/batch/webhooks").and_then(Value::as_array);
        let webhooks = webhooks.into_iter().flatten().filter_map(|webhook| webhook["url"].as_str()).flat_map(hosts);
        let webhooks: Vec<(Host, u16)> = webhooks.collect();
        let collector = workload.config.pointer("/textnlp/monitoring/traces/endpoint").and_then(Value::as_str);
        let cache = workload.config.pointer("/textnlp/cache").filter(|cache| cache["kind"] == "redis");
        let cache = cache.map_or(Vec::new(), |cache| match cache["url"].as_str() {
            Some(url) => hosts(url),
            None if workload.cache.is_some() => vec![(Host::Any, self.cluster.cache.port.unwrap_or(REDIS_PORT))],
            None => vec![(Host::Any, REDIS_PORT)],
        });
        let mut made = Vec::new();
        for (part, name, pods, to) in [
            ("allow-database", "textnlp-database-out", database_clients(), database),
            (MODELS_POLICY, "textnlp-models", servers.clone(), self.downloads(workload)),
            ("allow-oidc", "textnlp-oidc", servers.clone(), issuer.map_or(Vec::new(), hosts)),
            ("allow-webhooks", "textnlp-webhooks", servers.clone(), webhooks),
            ("allow-traces", "textnlp-traces", servers.clone(), collector.map_or(Vec::new(), hosts)),
            ("allow-cache", "textnlp-cache", servers, cache),
            ("allow-prometheus", "textnlp-prometheus", controller, outside.map_or(Vec::new(), |one| hosts(&one.url))),
        ] {
            let mut rules = self.rules(to);
            if part == MODELS_POLICY
                && let Some(identity) = self.bucket_identity(&workload.served)
            {
                rules.extend(sign_in(identity));
            }
            if !rules.is_empty() {
                self.allow_out(part, name, pods, rules);
                made.extend(self.id(self.component.name.as_str(), part));
            }
        }
        made
    }

    /// The connections of the job that copies dumps to a bucket. Returns the policy.
    pub(super) fn copies_policy(&mut self, copies: &DumpCopies) -> Option<ResourceId> {
        const PART: &str = "allow-copies";
        if !copies.egress.policies {
            return None;
        }
        let (scheme, _) = copies.url.split_once("://")?;
        let mut to = copies.endpoint.as_deref().map_or(Vec::new(), hosts);
        // Other stores than those with the protocol of S3 accept tokens, which a service of the cloud gives.
        if to.is_empty() || scheme != "s3" {
            to.push((Host::Public, 443));
        }
        let mut rules = self.rules(by_proxy(to, &copies.egress.proxy));
        let identity = self.cluster.bucket_identity.as_ref().filter(|identity| identity.scheme == scheme);
        rules.extend(identity.filter(|_| copies.credentials.is_none()).into_iter().flat_map(sign_in));
        let pods = json!({ "matchLabels": { "app.kubernetes.io/name": BACKUP } });
        self.allow_out(PART, "textnlp-backup-out", pods, rules);
        self.id(self.component.name.as_str(), PART)
    }

    /// The rules of destinations. Metadata services are refused.
    fn rules(&mut self, to: Vec<(Host, u16)>) -> Vec<Value> {
        let mut rules: Vec<Value> = Vec::new();
        for (host, port) in to {
            if let Host::Address(address) = host
                && is_metadata(address)
            {
                let cause = format!(
                    "{address} is in a network of the cloud's metadata services, which give the credentials of the node"
                );
                self.problem("egress", cause, "write the address of another server: pods never connect to these");
                continue;
            }
            let rule = rule(host.to(), &[port]);
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }

    /// The destinations of model downloads, which the pods of the servers make before they start. None for models in an
    /// image or in the program.
    fn downloads(&self, workload: &Workload) -> Vec<(Host, u16)> {
        if matches!(self.volume(), Volume::Image(_)) {
            return Vec::new();
        }
        let sources = workload.served.iter().filter_map(|model| model.source.parse::<Source>().ok()?.resolve().ok());
        let mut found: Vec<(Host, u16)> = Vec::new();
        for source in sources {
            match source {
                Source::Web(source) => found.extend(hosts(source.url().as_str())),
                Source::Hub(_) | Source::Bucket(_) | Source::SiteBucket(_) => found.push((Host::Public, 443)),
                Source::Bundled | Source::File(_) | Source::Catalogue(_) => {}
            }
        }
        by_proxy(found, &workload.egress.proxy)
    }

    fn allow_out(&mut self, part: &str, name: &str, pods: Value, rules: Vec<Value>) {
        let inputs = json!({ "namespace": self.cluster.namespace, "name": name, "pods": pods, "rules": rules });
        self.part_of_kind(part, Template::AllowOut, &inputs, []);
    }
}

impl Host {
    /// The destinations of a rule. Metadata services are never among them.
    fn to(&self) -> Value {
        let internet = |except: &[&str]| -> Vec<Value> {
            let networks = INTERNET.iter().filter_map(|network| network.parse().ok());
            networks.map(|network| block(network, except)).collect()
        };
        match self {
            Self::Address(address) => {
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                json!([{ "ipBlock": { "cidr": format!("{address}/{prefix}") } }])
            }
            Self::Public => json!(internet(&PRIVATE)),
            // In some networks an address block does not match pods.
            Self::Any => {
                let mut to = internet(&[]);
                to.push(json!({ "namespaceSelector": {} }));
                json!(to)
            }
        }
    }
}

/// Destinations with the proxies that connections to them use. Without exceptions, they are the proxies only.
fn by_proxy(mut to: Vec<(Host, u16)>, proxy: &BTreeMap<String, String>) -> Vec<(Host, u16)> {
    let proxies = ["HTTPS_PROXY", "HTTP_PROXY"].into_iter().filter_map(|name| proxy.get(name));
    let proxies: Vec<(Host, u16)> = proxies.flat_map(|url| hosts(url)).collect();
    if to.is_empty() || proxies.is_empty() {
        return to;
    }
    if !proxy.contains_key("NO_PROXY") {
        to.clear();
    }
    to.extend(proxies);
    to
}

/// The services on each node that give credentials. They are in the networks of metadata services, and give those of the pods' account
/// only.
fn sign_in(identity: &BucketIdentity) -> impl Iterator<Item = Value> {
    identity.services.iter().map(|service| rule(Host::Address(service.ip()).to(), &[service.port()]))
}

/// The selector of all pods of this deployment.
fn ours() -> Value {
    json!({ "matchLabels": { "app.kubernetes.io/part-of": "textnlp" } })
}

/// The selector of those that connect to the database: all but the clients of the API server.
fn database_clients() -> Value {
    let named = json!({ "key": "app.kubernetes.io/name", "operator": "NotIn", "values": [CONTROLLER, ADAPTER] });
    let mut selector = ours();
    selector["matchExpressions"] = json!([named]);
    selector
}

/// The rule of a configured destination.
fn configured(one: &EgressRule) -> Option<Value> {
    let to = json!([block(one.to.parse().ok()?, &[])]);
    Some(json!({ "to": to, "ports": [{ "protocol": protocol(one.protocol), "port": one.port }] }))
}

fn rule(to: Value, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|port| json!({ "protocol": "TCP", "port": port })).collect();
    json!({ "to": to, "ports": ports })
}

/// The cluster's DNS servers: pods, or a cache on each node. Those of OpenShift listen on another port than their
/// service.
fn dns() -> Value {
    let to = json!([{ "namespaceSelector": {} }, { "ipBlock": { "cidr": NODE_DNS } }]);
    let ports: Vec<Value> = ["UDP", "TCP"]
        .into_iter()
        .flat_map(|protocol| [53, 5353].map(|port| json!({ "protocol": protocol, "port": port })))
        .collect();
    json!({ "to": to, "ports": ports })
}

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

/// A network without the metadata services in it and without these networks.
fn block(network: Addresses, except: &[&str]) -> Value {
    let outside = |text: &&&str| {
        let other = text.parse::<Addresses>();
        other.is_ok_and(|other| network.includes(&other) && !other.includes(&network))
    };
    let mut excepted: Vec<&str> = METADATA_SERVICES.iter().chain(except).filter(outside).copied().collect();
    excepted.sort_unstable();
    excepted.dedup();
    match excepted.is_empty() {
        true => json!({ "ipBlock": { "cidr": network.to_string() } }),
        false => json!({ "ipBlock": { "cidr": network.to_string(), "except": excepted } }),
    }
}

/// The hosts and ports of a URL. The address of a PostgreSQL may name several, in its authority or in its query, whose
/// names go before.
fn hosts(url: &str) -> Vec<(Host, u16)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let is_postgres = scheme == "postgres" || scheme == "postgresql";
    let usual = match scheme {
        _ if is_postgres => POSTGRES_PORT,
        "http" => 80,
        "redis" | "rediss" => REDIS_PORT,
        _ => 443,
    };
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = before.split(['/', '#']).next().unwrap_or_default();
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let named = |text: &str| -> (String, Option<u16>) {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        (host.to_owned(), port.and_then(|port| port.parse().ok()))
    };
    let mut found: Vec<(String, Option<u16>)> = authority.split(',').map(named).collect();
    if is_postgres {
        let query = query.split('#').next().unwrap_or_default();
        let pairs: Vec<(&str, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name, decoded(value)))
            .collect();
        let value =
            |wanted: &str| pairs.iter().rev().find(|(name, _)| *name == wanted).map(|(_, value)| value.as_str());
        if let Some(hosts) = value("hostaddr").or_else(|| value("host")) {
            let ports: Vec<Option<u16>> = found.iter().map(|(_, port)| *port).collect();
            let hosts = hosts.split(',').map(|host| host.trim_matches(['[', ']']).to_owned());
            found = hosts.enumerate().map(|(i, host)| (host, ports.get(i).copied().flatten())).collect();
        }
        if let Some(ports) = value("port") {
            let ports: Vec<Option<u16>> = ports.split(',').map(|port| port.parse().ok()).collect();
            let of = |i: usize| if ports.len() == 1 { ports.first() } else { ports.get(i) };
            found.iter_mut().enumerate().for_each(|(i, (_, port))| *port = of(i).copied().flatten().or(*port));
        }
    }
    // A path is that of a Unix socket.
    let remote = found.into_iter().filter(|(host, _)| !host.is_empty() && !host.starts_with('/'));
    let resolved = |host: &str| host.parse().map_or(Host::Any, |address: IpAddr| Host::Address(address.to_canonical()));
    remote.map(|(host, port)| (resolved(&host), port.unwrap_or(usual))).collect()
}

/// A decoded value of a query. Invalid encodings are kept unchanged.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = after.get(if byte.is_some() { 2.. } else { 0.. }).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a metadata service may have this address.
fn is_metadata(address: IpAddr) -> bool {
    METADATA_SERVICES.iter().any(|text| text.parse().is_ok_and(|network: Addresses| network.contains(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_read_from_urls() {
        type Named = (Option<String>, u16);
        let of = |url: &str| -> Vec<Named> {
            let known = |host| match host {
                Host::Address(address) => Some(address.to_string()),
                Host::Any | Host::Public => None,
            };
            hosts(url).into_iter().map(|(host, port)| (known(host), port)).collect()
        };
        let named = |port| -> Vec<Named> { vec![(None, port)] };
        assert_eq!(of("postgresql://u@db.example.com/text?sslmode=require"), named(5432));
        assert_eq!(of("postgres://u:p@db.example.com:6432/text"), named(6432));
        assert_eq!(of("postgresql://u@10.0.0.7:5433/text"), [(Some("10.0.0.7".to_owned()), 5433)]);
        assert_eq!(of("postgresql://u@a:1,b:2/text"), [(None, 1), (None, 2)]);
        assert_eq!(of("postgresql://u@[fd00::7]:5433/text"), [(Some("fd00::7".to_owned()), 5433)]);
        assert_eq!(of("http://proxy:3128"), named(3128));
        assert_eq!(of("rediss://ada@cache.example.com/0"), named(6379));
        assert_eq!(of("redis://10.0.0.7:7000"), [(Some("10.0.0.7".to_owned()), 7000)]);
        assert_eq!((of("http://proxy"), of("https://models.example.com/a/")), (named(80), named(443)));
        assert_eq!(of("http://[fd00::1]"), [(Some("fd00::1".to_owned()), 80)]);
        // In the query, as libpq reads it.
        let address = |text: &str, port| vec![(Some(text.to_owned()), port)];
        assert_eq!(of("postgresql:///text?host=db.example.com&port=6432"), named(6432));
        assert_eq!(of("postgresql://u@/text?sslmode=require&host=10.0.0.7"), address("10.0.0.7", 5432));
        assert_eq!(of("postgresql://u@ignored:1/text?host=fd00%3A%3A7&port=2"), address("fd00::7", 2));
        assert_eq!(of("postgresql://db.example.com/text?hostaddr=10.0.0.7&port=5433"), address("10.0.0.7", 5433));
        assert_eq!(of("postgresql://a:1/text?port=2#port=3"), named(2));
        assert_eq!(of("postgresql:///text?host=a,10.0.0.7&port=1,2"), [named(1), address("10.0.0.7", 2)].concat());
        assert_eq!(of("postgresql:///text?host=a,b&port=6432"), [named(6432), named(6432)].concat());
        assert!(of("postgresql:///text?host=%2Fvar%2Frun").is_empty());
        assert_eq!(of("postgresql://u@[::ffff:10.0.0.7]/text"), address("10.0.0.7", 5432));
        assert_eq!(of("https://prometheus.example.com/?host=10.0.0.7&port=1"), named(443));
    }

    #[test]
    fn address_blocks_exclude_metadata_services() {
        let of = |network: &str| block(network.parse().unwrap(), &[])["ipBlock"].clone();
        let all = of("0.0.0.0/0");
        assert!(all["except"].as_array().unwrap().contains(&json!("169.254.0.0/16")), "{all}");
        let all = of("::/0");
        assert!(all["except"].as_array().unwrap().contains(&json!("fd00:ec2::254/128")), "{all}");
        assert_eq!(of("10.0.0.0/8"), json!({ "cidr": "10.0.0.0/8" }));
        // What validation admits for DNS.
        assert_eq!(of("169.254.169.254/32"), json!({ "cidr": "169.254.169.254/32" }));
        let public = Host::Public.to().to_string();
        assert!(
            public.contains("10.0.0.0/8") && public.contains("fc00::/7") && !public.contains("Selector"),
            "{public}"
        );
    }
}
