//! Disaster recovery between several sites of one machine: relay and site agent in each site, witness and global
//! endpoint beside them.
//!
//! No resource depends on one of another site: a site must start and run while another one is down. The addresses of
//! the others follow from their names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use textnlp_keys::{CA_FILE, SOCKET_PATH_MAX, SiteFolder};
use textnlp_provider::component::{Dns, GlobalEndpoint, Program, Relay, SiteAgent, Witness};
use textnlp_provider::{ComponentName, OutputRef, ResourceId, SiteName};

use super::Lowering;
use crate::names::{DATABASE_FILE, JWT_KEY};
use crate::spec::ControlSpec;
use crate::table::ResourceKind;

/// The component of a site's generated secrets.
const SECRETS: &str = "secrets";
/// Requests to these programs are short.
const GRACE_MS: u64 = 10_000;
/// The global endpoint waits for requests in flight, as a gateway does.
const FRONT_GRACE_MS: u64 = 60_000;
/// The name in every gateway's certificate of a built-in authority; sites differ by their authority.
const CERTIFIED_AS: &str = "localhost";

/// The relay's inbound socket for the site agent.
fn watch_door(border: &ComponentName) -> String {
    format!("{border}-watch")
}

/// The relay's inbound socket for the gateway, used by the global endpoint.
fn gateway_door(border: &ComponentName) -> String {
    format!("{border}-gateway")
}

/// The relay's inbound socket for health checks of the gateway, used by the global endpoint and the site agent.
fn ready_door(border: &ComponentName) -> String {
    format!("{border}-ready")
}

/// The gateway's socket for health checks. Its name follows from the site agent, which the relay and the gateway know.
pub(super) fn ready_socket(watch: &ComponentName) -> String {
    format!("{watch}-ready")
}

/// The relay's inbound socket for the database.
fn database_door_of(border: &ComponentName) -> String {
    format!("{border}-database")
}

/// The relay's outbound socket to another site's database.
pub(super) fn database_door_to(site: &SiteName) -> String {
    format!("db-{site}")
}

/// The inbound socket of a PostgreSQL supervisor.
pub(super) fn database_door(database: &ComponentName) -> String {
    format!("{database}-door")
}

/// The relay's outbound socket to another location.
fn door_to(target: &SiteName) -> String {
    format!("out-{target}")
}

/// What these processes need beyond the common inputs.
struct Unit {
    command: &'static str,
    document: Value,
    /// Whether sites restart it one at a time.
    turns: bool,
    needs: Vec<ResourceId>,
    inputs: BTreeMap<String, Value>,
}

impl Lowering<'_> {
    pub(super) fn border(&mut self, border: &Relay) {
        let name = self.component.name.clone();
        let (host, port) = &border.endpoint;
        let gateway = match host.parse::<IpAddr>() {
            Ok(host) if self.elsewhere => SocketAddr::new(host, *port).to_string(),
            Ok(host) => SocketAddr::new(reached(host), *port).to_string(),
            // Resolved by name for each connection.
            Err(_) if self.elsewhere => format!("{host}:{port}"),
            Err(_) => {
                let cause = format!("`{host}` is not an address of this machine");
                return self.problem("host", cause, "write `0.0.0.0`, `127.0.0.1` or another address of this machine");
            }
        };
        let ready = match &border.ready {
            _ if !self.elsewhere => Some(self.socket_at(&self.site.name, &ready_socket(&border.watch))),
            Some((host, port)) => Some(Some(match host.parse::<IpAddr>() {
                Ok(host) => SocketAddr::new(host, *port).to_string(),
                Err(_) => format!("{host}:{port}"),
            })),
            None => None,
        };
        let mut entrances = vec![self.link("gateway-in", &gateway_door(&name), Some(gateway))];
        entrances.extend(ready.map(|ready| self.link("ready-in", &ready_door(&name), ready)));
        if self.elsewhere {
            // Also for the global endpoint, and for the site agent where gateways run in pods.
            for entrance in entrances.iter_mut().flatten() {
                entrance["end_to_end_tls"] = json!(true);
            }
        }
        let watch = self.socket_at(&self.site.name, border.watch.as_str());
        let mut links = vec![self.link("watch-in", &watch_door(&name), watch)];
        links.extend(entrances);
        for peer in &border.peers {
            let there = self.socket_at(peer, &watch_door(&name));
            links.push(self.link(&door_to(peer), &door_to(peer), there));
        }
        if let Some(database) = &border.database {
            let here = self.socket_at(&self.site.name, &database_door(database));
            links.push(self.link("database-in", &database_door_of(&name), here));
            for peer in &border.peers {
                let there = self.socket_at(peer, &database_door_of(&name));
                links.push(self.link(&format!("database-{peer}"), &database_door_to(peer), there));
            }
        }
        let witness = &border.witness;
        let there = self.socket_at(&witness.site, witness.component.as_str());
        links.push(self.link(&door_to(&witness.site), &door_to(&witness.site), there));
        let Some(links) = links.into_iter().collect::<Option<Vec<Value>>>() else { return self.too_long() };
        let Some(listen) = self.socket_at(&self.site.name, name.as_str()) else { return self.too_long() };
        let document = json!({ "border": { "listen": listen, "links": links } });
        let cluster = ResourceId::of(&self.site.name, &border.cluster);
        self.keep_running(
            &border.program,
            Unit { command: "relay", document, turns: true, needs: vec![cluster], inputs: BTreeMap::new() },
        );
    }

    pub(super) fn watch(&mut self, watch: &SiteAgent) {
        let name = self.component.name.clone();
        let ids = [
            self.part("data"),
            self.part_of(&watch.workload, "schema"),
            self.part_of(&watch.workload, "jwt-key"),
            self.part_of(&watch.border, "process"),
        ];
        let [Some(data), Some(schema), Some(jwt), Some(border)] = ids else { return };
        let mut peers = BTreeMap::new();
        for peer in &watch.peers {
            let Some(socket) = self.socket_at(&self.site.name, &door_to(peer)) else { return self.too_long() };
            peers.insert(peer.to_string(), socket);
        }
        let (Some(listen), Some(witness)) =
            (self.socket_at(&self.site.name, name.as_str()), self.socket_at(&self.site.name, &door_to(&watch.witness)))
        else {
            return self.too_long();
        };
        let path = self.control_data(&data, "control");
        let service = self.elsewhere.then(|| self.asked(watch, &jwt));
        if service == Some(None) {
            return;
        }
        let mut document = json!({ "watch": {
            "site": self.site.name,
            "folder": self.folder.join(&path),
            "listen": listen,
            "peers": peers,
            "witness": witness,
            "database": format!("sqlite://{}", self.folder.join(DATABASE_FILE)),
            "jwt_key_file": self.folder.join(&super::serving::jwt_file(&watch.workload)),
            "every_ms": watch.rules.every_ms,
            "lost_after": watch.rules.lost_after,
            "automatic": watch.automatic,
            "failback": watch.failback,
            "home": watch.home,
            "order": watch.order,
            "max_lag_ms": watch.max_lag_ms,
            "copies": {
                "models": self.folder.join("models"),
                "configuration": self.folder.join("config"),
                "models_every_ms": watch.copies.models_every_ms,
                "configuration_every_ms": watch.copies.configuration_every_ms,
                "compress": watch.copies.compress,
            },
        }});
        let cluster = ResourceId::of(&self.site.name, &watch.cluster);
        let mut inputs = BTreeMap::from([("jwt-key".to_owned(), json!(OutputRef::new(jwt, "sha256")))]);
        let mut needs = vec![cluster, border, data];
        if let Some(service) = service.flatten() {
            document["watch"]["service"] = service;
            // Pods fetch their own models.
            document["watch"]["copies"] = Value::Null;
        }
        match &watch.database {
            None if watch.outside.is_some() => {}
            None => needs.push(schema),
            // The site agent names the primary, so it starts before the database.
            Some((database, name)) => {
                let Some(password) = self.part_of(database, "password-file") else { return };
                let Some(keeper) = self.unix(&format!("{database}-0")) else { return };
                document["watch"]["database"] = json!(self.own_address(None, true, name));
                document["watch"]["postgres"] = json!({
                    "keeper": keeper,
                    "own": self.own_address(None, false, name),
                    "password_file": self.folder.join(&super::postgres::secret_file(database, "password")),
                });
                inputs.insert("database-password".to_owned(), json!(OutputRef::new(password.clone(), "sha256")));
                needs.push(password);
            }
        }
        if let Some((database, stored)) = &watch.outside {
            let Some(store) = self.store_of(database, stored) else { return };
            document["watch"]["outside"] = Value::Object(store.settings);
            if let Some(watch) = document["watch"].as_object_mut() {
                watch.shift_remove("database");
            }
            for (name, file) in store.files {
                inputs.insert(name, json!(OutputRef::new(file, "sha256")));
            }
            needs.extend(store.needs);
        }
        self.keep_running(&watch.program, Unit { command: "agent", document, turns: true, needs, inputs });
    }

    /// Where the site agent queries a site that serves elsewhere, and the key of its tokens, which only the agent
    /// reads.
    fn asked(&mut self, watch: &SiteAgent, jwt: &ResourceId) -> Option<Value> {
        let Ok(secrets) = ComponentName::new(SECRETS) else { return None };
        let secret = self.part_of(&secrets, JWT_KEY)?;
        let network = self.network_id();
        let spec =
            json!({ "path": super::serving::jwt_file(&watch.workload), "secret": OutputRef::new(secret, "secret") });
        self.want(jwt.clone(), ResourceKind::File, &spec, [network]);
        let [Some(door), Some(ready)] =
            [gateway_door(&watch.border), ready_door(&watch.border)].map(|door| self.socket_at(&self.site.name, &door))
        else {
            self.too_long();
            return None;
        };
        let tls = json!({ "ca_file": self.folder.join(CA_FILE), "name": CERTIFIED_AS });
        Some(json!({ "at": door, "ready_at": ready, "path": "/ready", "tls": tls }))
    }

    pub(super) fn witness(&mut self, witness: &Witness) {
        let name = self.component.name.clone();
        let Some(data) = self.part("data") else { return };
        let (Some(listen), Some(front)) = (
            self.socket_at(&self.site.name, name.as_str()),
            self.socket_at(&self.site.name, &format!("{}-admin", witness.front)),
        ) else {
            return self.too_long();
        };
        let path = self.control_data(&data, "witness");
        let cluster = ResourceId::of(&self.site.name, &witness.cluster);
        let mut needs = vec![cluster, data];
        let dns = match &witness.dns {
            Some(dns) => match self.dns(dns, &mut needs) {
                Some(dns) => dns,
                None => return,
            },
            None => Value::Null,
        };
        let mut document = json!({ "witness": {
            "folder": self.folder.join(&path),
            "listen": listen,
            "sites": witness.sites,
            "home": witness.home,
            "every_ms": witness.rules.every_ms,
            "lost_after": witness.rules.lost_after,
            "weights": witness.weights,
            "front": front,
        }});
        if !dns.is_null() {
            document["witness"]["dns"] = dns;
        }
        self.keep_running(
            &witness.program,
            Unit { command: "witness", document, turns: false, needs, inputs: BTreeMap::new() },
        );
    }

    /// `dns:` of the witness's file. A secret from a file stays there. Any other is stored here, because the witness
    /// outlives the environment of `up`.
    fn dns(&mut self, dns: &Dns, needs: &mut Vec<ResourceId>) -> Option<Value> {
        let secret_file = match dns.secret.source.strip_prefix("secret:file:") {
            Some(path) => path.to_owned(),
            None => {
                let [Some(secret), Some(file)] = ["dns-key", "dns-key-file"].map(|part| self.part(part)) else {
                    return None;
                };
                let path = "config/dns-key";
                self.given_file("dns-key", &dns.secret, secret, file.clone(), path);
                needs.push(file);
                self.folder.join(path).into_string()
            }
        };
        Some(json!({
            "server": dns.server,
            "zone": dns.zone,
            "name": dns.name,
            "ttl_seconds": dns.ttl_seconds,
            "key": { "name": dns.key, "algorithm": dns.algorithm, "secret_file": secret_file },
            "addresses": dns.addresses,
        }))
    }

    pub(super) fn front(&mut self, front: &GlobalEndpoint) {
        let Some(witness) = self.part_of(&front.witness, "process") else { return };
        let mut backends = Vec::new();
        for (site, weight) in &front.weights {
            let [Some(door), Some(ready)] =
                [gateway_door(&front.border), ready_door(&front.border)].map(|door| self.socket_at(site, &door))
            else {
                return self.too_long();
            };
            let mut backend = json!({ "name": site, "listen": door, "ready_listen": ready, "weight": weight });
            if front.tls {
                let authority = SiteFolder::of(self.folder.state(), site).join(CA_FILE);
                backend["tls"] = json!({ "ca_file": authority, "name": CERTIFIED_AS });
            }
            backends.push(backend);
        }
        let Some(metrics_socket) = self.socket_at(&self.site.name, front.witness.as_str()) else {
            return self.too_long();
        };
        self.gateway_process(super::serving::Gateway {
            host: &front.host,
            port: front.port,
            metrics_port: front.metrics_port,
            tls: front.tls,
            acme: false,
            certificate: &front.certificate,
            program: &front.program,
            max_request_bytes: front.max_request_bytes,
            timeout_seconds: front.timeout_seconds,
            connections: front.connections.clone(),
            backends: json!(backends),
            // A site failure is detected within a second, most of which is the poll interval; for remote sites within
            // three, because a TLS handshake takes three round trips.
            health: json!({
                "path": "/ready",
                "interval_ms": 250,
                "timeout_ms": if front.far { 1250 } else { 500 },
                "unhealthy_after": 2,
                "healthy_after": 1,
                "gives_up": true,
            }),
            metrics_from: vec![metrics_socket],
            ready_listen: None,
            stop_grace_ms: FRONT_GRACE_MS,
            needs: vec![witness],
        });
    }

    /// The folder of a log that cannot be recreated.
    fn control_data(&mut self, id: &ResourceId, called: &str) -> String {
        let path = format!("data/{called}");
        let network = self.network_id();
        self.want_protected(id.clone(), ResourceKind::Control, &ControlSpec { path: path.clone() }, [network]);
        path
    }

    /// The program, its configuration and the process, named after the component.
    fn keep_running(&mut self, program: &Program, made_of: Unit) {
        let name = self.component.name.clone();
        let parts = ["program", "config", "process"].map(|part| self.part(part));
        let [Some(program_id), Some(config_id), Some(process)] = parts else { return };
        let bin = format!("bin/{name}");
        if self.program(&program_id, program, &bin).is_none() {
            return;
        }
        let Some(listen) = self.socket_at(&self.site.name, name.as_str()) else { return self.too_long() };
        let config_file = format!("config/{name}.yaml");
        let network = self.network_id();
        let spec = json!({ "path": config_file, "document": made_of.document });
        self.want(config_id.clone(), ResourceKind::File, &spec, [network]);
        let spec = json!({
            "unit": name.as_str(),
            "program": bin,
            "program_sha256": OutputRef::new(program_id, "sha256"),
            "arguments": [made_of.command],
            "config": config_file,
            "config_sha256": OutputRef::new(config_id, "sha256"),
            "on_config": "restart",
            "inputs": made_of.inputs,
            "watch": [],
            "listen": listen,
            "metrics_listen": listen,
            "ready": { "socket": name.as_str(), "path": "/ready" },
            "stop_grace_ms": GRACE_MS,
            "turns": made_of.turns,
            "state": "running",
        });
        self.want(process, ResourceKind::Process, &spec, made_of.needs);
    }

    fn link(&self, name: &str, door: &str, to: Option<String>) -> Option<Value> {
        let listen = self.socket_at(&self.site.name, door)?;
        Some(json!({ "name": name, "listen": listen, "to": to? }))
    }

    /// The socket of a program of this or another site; `None` when the path is too long for a socket address.
    fn socket_at(&self, site: &SiteName, name: &str) -> Option<String> {
        let path = SiteFolder::of(self.folder.state(), site).socket(name);
        (path.as_str().len() <= SOCKET_PATH_MAX).then(|| format!("unix:{path}"))
    }

    fn too_long(&mut self) {
        let cause =
            format!("sockets are named after the sites, and the path of one has more than {SOCKET_PATH_MAX} bytes");
        self.problem("name", cause, "give the sites names of at most 20 letters");
    }
}

/// Clients on this machine reach a program that listens on all addresses by the loopback address.
pub(super) fn reached(host: IpAddr) -> IpAddr {
    if host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { host }
}
