//! Three sites and a witness in small: they speak the watches' JSON over real Unix sockets, and decide by the same rules as far as a
//! drill can see them. What they do not have is a log: control data is a table per site.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_orchestrator::dr::control_client::{ControlClients, SocketPaths};
use textnlp_orchestrator::dr::fault::{Fault, FaultKind, Faults};
use textnlp_orchestrator::gate::{IssuedKey, KeyIssuer, KeyRequest};
use textnlp_orchestrator::load::{Key, LoadRequest, LoadResponse, RequestFailure, Wire};
use textnlp_provider::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

pub const SITES: [&str; 3] = ["one", "two", "three"];
pub const GRACE_MS: u64 = 200;
/// What a front needs to see that a site is gone.
const FRONT_MS: u64 = 120;

#[derive(Default)]
struct Site {
    gone: Option<FaultKind>,
    changed: Option<Instant>,
    /// Whether the front found it gone: it looks away after a time, and after one lost request at the earliest.
    missed: bool,
    table: BTreeMap<String, Value>,
    usage: BTreeSet<String>,
}

/// What a test may set, and what it may look at afterwards.
pub struct Inner {
    sites: BTreeMap<String, Site>,
    pub epoch: u64,
    pub primary: String,
    pub members: Vec<String>,
    renewed: Instant,
    home_since: Instant,
    index: u64,
    turn: usize,
    pub automatic: bool,
    pub automatic_failback: bool,
    /// Whether a planned failover holds.
    pub held: bool,
    /// Every third write reaches the primary alone, although it is acknowledged.
    pub lossy: bool,
    pub witness_gone: bool,
    pub never_promotes: bool,
    /// Whether the front refuses the requests of a drill's client.
    pub refuses: bool,
    /// How long a primary has to be silent before another site may take its place.
    pub grace_ms: u64,
    /// What the servers of `two` say of their database, where they speak of one.
    pub database: Option<&'static str>,
    pub faults: Vec<Fault>,
    pub keys: BTreeSet<String>,
    pub asked: Vec<String>,
}

#[derive(Clone)]
pub struct World {
    pub inner: Arc<Mutex<Inner>>,
    _dir: Arc<tempfile::TempDir>,
    pub state: Utf8PathBuf,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let inner = Inner {
            sites: SITES.map(|name| (name.to_owned(), Site::default())).into(),
            epoch: 3,
            primary: "one".to_owned(),
            members: SITES.map(str::to_owned).into(),
            renewed: Instant::now(),
            home_since: Instant::now(),
            index: 7,
            turn: 0,
            automatic: true,
            automatic_failback: true,
            held: false,
            lossy: false,
            witness_gone: false,
            never_promotes: false,
            refuses: false,
            grace_ms: GRACE_MS,
            database: None,
            faults: Vec::new(),
            keys: BTreeSet::new(),
            asked: Vec::new(),
        };
        let world = Self { inner: Arc::new(Mutex::new(inner)), _dir: Arc::new(dir), state };
        for name in SITES.into_iter().chain(["witness"]) {
            let listener = UnixListener::bind(world.socket(name)).unwrap();
            tokio::spawn(world.clone().listen(name.to_owned(), listener));
        }
        tokio::spawn(world.clone().decide());
        world
    }

    fn socket(&self, name: &str) -> Utf8PathBuf {
        self.state.join(format!("{name}.sock"))
    }

    pub fn control_clients(&self) -> ControlClients {
        let sites = SITES.map(|name| (name.to_owned(), self.socket(name))).into();
        ControlClients::at(&SocketPaths { sites, witness: self.socket("witness"), home: "one".to_owned() })
    }

    pub fn set<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap())
    }

    pub fn lose(&self, name: &str, kind: Option<FaultKind>) {
        self.set(|inner| {
            let site = inner.sites.get_mut(name).unwrap();
            (site.gone, site.changed, site.missed) = (kind, Some(Instant::now()), false);
            // The last heartbeat, however late its turn comes on a busy machine: nobody takes over before a grace from now.
            if kind.is_some() && inner.primary == name {
                inner.renewed = Instant::now();
            }
        });
    }

    pub fn drill_keys(&self) -> usize {
        self.set(|inner| inner.sites.values().map(|site| site.table.len()).sum())
    }

    async fn decide(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.set(Inner::decide);
        }
    }

    async fn listen(self, name: String, listener: UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let gone = self.set(|inner| match name.as_str() {
                "witness" => inner.witness_gone.then_some(FaultKind::Kill),
                site => inner.sites[site].gone,
            });
            match gone {
                Some(FaultKind::Kill) => drop(stream),
                // Connected, and nothing comes for a long time.
                Some(_) => drop(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    drop(stream);
                })),
                None => drop(tokio::spawn(self.clone().answer(name.clone(), stream))),
            }
        }
    }

    async fn answer(self, name: String, mut stream: UnixStream) {
        let Some((method, path, body)) = read(&mut stream).await else { return };
        let (status, answer) = self.set(|inner| {
            inner.asked.push(format!("{name} {method} {path}"));
            inner.answer(&name, &method, &path, &body)
        });
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len()
        );
        let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
    }
}

async fn read(stream: &mut UnixStream) -> Option<(String, String, Value)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        if body.len() >= length.unwrap_or(0) {
            let mut words = head.split_whitespace().map(str::to_owned);
            return Some((words.next()?, words.next()?, serde_json::from_str(body).unwrap_or_default()));
        }
    }
}

impl Inner {
    fn alive(&self, site: &str) -> bool {
        self.sites[site].gone.is_none()
    }

    fn promote(&mut self, to: &str) {
        self.epoch += 1;
        self.primary = to.to_owned();
        self.held &= to != "one";
        self.members = SITES
            .iter()
            .filter(|name| self.alive(name) && self.members.iter().any(|m| m == *name))
            .map(ToString::to_string)
            .collect();
        (self.renewed, self.home_since) = (Instant::now(), Instant::now());
    }

    fn decide(&mut self) {
        if self.alive(&self.primary.clone()) {
            self.renewed = Instant::now();
        }
        let silent = self.renewed.elapsed() >= Duration::from_millis(self.grace_ms);
        // Where the client of a busy machine pauses for longer than a grace, its first request to the lost site would fail
        // after the shift.
        let is_missed = self.sites[&self.primary].missed;
        if silent && is_missed && self.automatic && !self.never_promotes {
            let next = self.members.iter().find(|name| self.alive(name)).cloned();
            if let Some(next) = next {
                self.promote(&next);
            }
        }
        if !self.alive(&self.primary.clone()) {
            return;
        }
        let since = |site: &Site| site.changed.is_none_or(|at| at.elapsed() > Duration::from_millis(GRACE_MS));
        let wanted: Vec<String> = SITES
            .iter()
            .filter(|name| {
                let (site, is) = (&self.sites[**name], self.members.iter().any(|m| m == *name));
                if since(site) { site.gone.is_none() } else { is }
            })
            .map(ToString::to_string)
            .collect();
        if wanted != self.members {
            let (table, usage) = (self.sites[&self.primary].table.clone(), self.sites[&self.primary].usage.clone());
            for name in wanted.iter().filter(|name| !self.members.contains(name)) {
                let site = self.sites.get_mut(name).unwrap();
                (site.table, site.usage) = (table.clone(), usage.clone());
            }
            self.members = wanted;
            self.epoch += 1;
            self.home_since = Instant::now();
        }
        let home_is_well = self.primary != "one" && self.members.iter().any(|m| m == "one");
        if home_is_well
            && !self.held
            && self.automatic_failback
            && self.home_since.elapsed() > Duration::from_millis(2 * GRACE_MS)
        {
            self.promote("one");
        }
    }

    fn status(&self, site: &str) -> Value {
        let role = if self.primary == site {
            "primary"
        } else if self.members.iter().any(|m| m == site) {
            "member"
        } else {
            "outsider"
        };
        let peers: BTreeMap<&str, Value> = SITES
            .iter()
            .filter(|name| **name != site)
            .map(|name| (*name, json!({ "stored": self.index, "member": self.members.iter().any(|m| m == name), "heard_ms": 5, "usage_behind_rows": 0, "usage_behind_ms": 0 })))
            .collect();
        let database = self.database.map(|role| if site == "two" { role } else { "primary" });
        json!({
            "site": site, "role": role, "epoch": self.epoch, "primary": self.primary, "members": self.members, "held": self.held, "writable": role != "outsider",
            "why_not": null, "last": self.index, "committed": self.index, "applied": self.index, "peers": peers, "witness_heard_ms": 3,
            "rpo_ms": { "control": 0, "usage": 20 }, "withdrawn": 0, "automatic": self.automatic,
            "servers_database": database,
        })
    }

    fn answer(&mut self, name: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let refused = |status: u16, message: &str| {
            (status, json!({ "error": { "code": "read_only", "message": message, "hint": null } }))
        };
        match (name, method, path) {
            ("witness", _, _) => (
                200,
                json!({
                    "epoch": self.epoch, "primary": self.primary, "members": self.members, "held": self.held, "renewed_ms": self.renewed.elapsed().as_millis() as u64,
                    "grace_ms": self.grace_ms, "home": "one", "sites": SITES, "weights": { "one": 100, "two": 50, "three": 0 }, "history": [],
                }),
            ),
            (site, "GET", "/v1/status") => (200, self.status(site)),
            (_, "POST", "/v1/write") => {
                if !self.alive(&self.primary) || self.members.iter().filter(|m| self.alive(m)).count() < 2 {
                    return refused(503, "two sites are needed to store it");
                }
                self.index += 1;
                let only_primary = self.lossy && self.index.is_multiple_of(3);
                for write in body["writes"].as_array().unwrap() {
                    let (key, value) = (write["key"].as_str().unwrap(), &write["value"]);
                    for (name, site) in self.sites.iter_mut().filter(|(name, _)| self.members.contains(name)) {
                        match value.is_null() {
                            true => drop(site.table.remove(key)),
                            false if only_primary && *name != self.primary => {}
                            false => drop(site.table.insert(key.to_owned(), value.clone())),
                        }
                    }
                }
                (200, json!({ "epoch": self.epoch, "index": self.index }))
            }
            (site, "GET", path) if path.starts_with("/v1/table?prefix=") => {
                let prefix = &path["/v1/table?prefix=".len()..];
                let entries: BTreeMap<_, _> =
                    self.sites[site].table.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
                (200, json!({ "epoch": self.epoch, "index": self.index, "entries": entries }))
            }
            (site, "POST", "/v1/usage/ids") => {
                let ids = body["request_ids"].as_array().unwrap();
                assert!(ids.len() <= 1000);
                let known: Vec<&Value> =
                    ids.iter().filter(|id| self.sites[site].usage.contains(id.as_str().unwrap())).collect();
                (200, json!({ "known": known }))
            }
            (site, "POST", "/v1/claim") => {
                if self.renewed.elapsed() < Duration::from_millis(self.grace_ms) {
                    return refused(409, "the primary was heard a moment ago");
                }
                self.promote(site);
                (200, self.status(site))
            }
            (site, "POST", "/v1/handover" | "/v1/handover?hold=true") if site == self.primary => {
                self.promote(body["to"].as_str().unwrap());
                self.held |= path.ends_with("?hold=true");
                (200, self.status(site))
            }
            _ => refused(404, "no such thing"),
        }
    }
}

#[async_trait]
impl Wire for World {
    async fn send(&self, ask: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        if ask.request_id.is_some() && self.set(|inner| inner.refuses) {
            return Err(RequestFailure::Connect("refused".to_owned()));
        }
        let id = ask.request_id.clone().unwrap_or_default();
        let to = self.set(|inner| {
            inner.turn += 1;
            let known: Vec<&str> = SITES
                .into_iter()
                .filter(|name| {
                    let site = &inner.sites[*name];
                    let seen = site.changed.is_none_or(|at| at.elapsed() > Duration::from_millis(FRONT_MS));
                    match site.gone {
                        None => seen,
                        Some(_) => !(seen && site.missed),
                    }
                })
                .collect();
            let to = known[inner.turn % known.len()];
            match inner.sites[to].gone {
                Some(kind) => {
                    inner.sites.get_mut(to).unwrap().missed = true;
                    Err(kind)
                }
                None => {
                    for site in inner.sites.values_mut().filter(|site| site.gone.is_none()) {
                        site.usage.insert(id.clone());
                    }
                    Ok(())
                }
            }
        });
        match to {
            Ok(()) => Ok(LoadResponse { status: 200, body: b"{}".to_vec() }),
            Err(FaultKind::Kill) => Err(RequestFailure::Connect("refused".to_owned())),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Err(RequestFailure::Timeout)
            }
        }
    }

    fn verified(&self) -> bool {
        true
    }
}

#[async_trait]
impl Faults for World {
    /// Nobody's data has a filesystem of its own here.
    async fn check(&self, fault: &Fault) -> Result<(), String> {
        match fault.kind {
            FaultKind::DiskFull => Err(format!("{}: on the same filesystem as everything else", fault.site)),
            _ => Ok(()),
        }
    }

    async fn inject(&self, fault: &Fault) -> Result<(), String> {
        self.set(|inner| inner.faults.push(fault.clone()));
        self.lose(&fault.site, Some(fault.kind));
        Ok(())
    }

    async fn revert(&self, id: &str) -> Result<(), String> {
        let fault =
            self.set(|inner| inner.faults.iter().position(|fault| fault.id == id).map(|at| inner.faults.remove(at)));
        if let Some(fault) = fault {
            self.lose(&fault.site, None);
        }
        Ok(())
    }

    async fn open(&self) -> Result<Vec<Fault>, String> {
        Ok(self.set(|inner| inner.faults.clone()))
    }

    async fn ready_units(&self, site: &str) -> Vec<String> {
        if self.set(|inner| inner.alive(site)) { vec!["gateway".to_owned(), "watch".to_owned()] } else { Vec::new() }
    }

    async fn lost_data(&self, _: &Fault) -> Option<String> {
        None
    }

    async fn discard_lost(&self, _: &Fault) -> Result<(), String> {
        Ok(())
    }
}

#[async_trait]
impl KeyIssuer for World {
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String> {
        self.set(|inner| inner.keys.insert(request.name.clone()));
        Ok(IssuedKey { public_id: request.name, key: Key { header: "X-API-Key".to_owned(), value: Secret::new("k") } })
    }

    async fn revoke(&self, public_id: &str) -> Result<(), String> {
        self.set(|inner| inner.keys.remove(public_id));
        Ok(())
    }

    async fn remove_tenant(&self, _: &str) -> Result<Option<String>, String> {
        Ok(None)
    }
}

pub fn lines(path: &Utf8Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count()
}
