//! A machine in a temporary folder and a driver that does, one step after another, what the engine does by its plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_onprem::{OnPrem, Options};
use textnlp_provider::component::*;
use textnlp_provider::settings::{DatabaseKind, Role, Runtime, TlsMode};
use textnlp_provider::*;

#[path = "../../../../tests/src/ports.rs"]
mod ports;

use ports::Ports;

/// No step of these tests takes that long on any machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

pub struct Machine {
    pub dir: tempfile::TempDir,
    pub state: Utf8PathBuf,
    pub onprem: Arc<OnPrem>,
    pub site: Site,
    pub lineage: Lineage,
    pub components: Vec<Component>,
    pub recorded: BTreeMap<ResourceId, Recorded>,
    pub next: u64,
    _ports: Ports,
}

pub fn stand_in() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_BIN_EXE_onprem-stand-in"))
}

pub fn sha256(path: &Utf8Path) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(std::fs::read(path).unwrap()))
}

fn name(name: &str) -> ComponentName {
    ComponentName::new(name).unwrap()
}

/// A model of one narrow layer whose numbers are all `number`.
pub fn make_model(dir: &Utf8Path, number: usize) {
    const SHAPES: [(&str, &[usize]); 16] = [
        ("wte.weight", &[2, 2]),
        ("wpe.weight", &[8, 2]),
        ("h.0.ln_1.weight", &[2]),
        ("h.0.ln_1.bias", &[2]),
        ("h.0.attn.c_attn.weight", &[2, 6]),
        ("h.0.attn.c_attn.bias", &[6]),
        ("h.0.attn.c_proj.weight", &[2, 2]),
        ("h.0.attn.c_proj.bias", &[2]),
        ("h.0.ln_2.weight", &[2]),
        ("h.0.ln_2.bias", &[2]),
        ("h.0.mlp.c_fc.weight", &[2, 8]),
        ("h.0.mlp.c_fc.bias", &[8]),
        ("h.0.mlp.c_proj.weight", &[8, 2]),
        ("h.0.mlp.c_proj.bias", &[2]),
        ("ln_f.weight", &[2]),
        ("ln_f.bias", &[2]),
    ];
    std::fs::create_dir_all(dir).unwrap();
    let (mut header, mut numbers) = (serde_json::Map::new(), 0);
    for (name, shape) in SHAPES {
        let end = numbers + shape.iter().product::<usize>();
        let offsets = [4 * numbers, 4 * end];
        header.insert(name.to_owned(), json!({ "dtype": "F32", "shape": shape, "data_offsets": offsets }));
        numbers = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    weights.extend((number as f32).to_le_bytes().repeat(numbers));
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    std::fs::write(
        dir.join("config.json"),
        r#"{"model_type":"gpt2","n_embd":2,"n_layer":1,"n_head":1,"vocab_size":2,"n_positions":8}"#,
    )
    .unwrap();
    std::fs::write(
        dir.join("tokenizer.json"),
        r#"{"version":"1.0","added_tokens":[],"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}"#,
    )
    .unwrap();
}

impl Machine {
    pub fn new(replicas: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("onprem test ").tempdir().unwrap();
        let base = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        make_model(&base.join("the model"), 2);
        let state = base.join("state of it");
        let mut options = Options::new(state.clone(), stand_in()).unwrap();
        options.model_cache = base.join("cache");
        let site = Site {
            environment: EnvironmentName::new("staging").unwrap(),
            name: SiteName::new("here").unwrap(),
            account: "host".to_owned(),
            region: "local".to_owned(),
            runtime: Runtime::Process,
            role: Some(Role::Primary),
            tags: BTreeMap::new(),
            protect_data: false,
            cluster: None,
            subnets: Vec::new(),
            maintenance: None,
        };
        let ports = Ports::ask(2);
        let program = Program { path: stand_in().into_string(), digest: format!("sha256:{}", sha256(&stand_in())) };
        let part = |of: &str, part: ComponentSpec| Component { name: name(of), existing: None, part };
        let generate = [("api-key", SecretRecipe::ApiKey), ("jwt-signing-key", SecretRecipe::RsaSigningKey)];
        let components = vec![
            part("network", ComponentSpec::Network(Network { cidr: None, policies: false, ..Network::default() })),
            part("cluster", ComponentSpec::Cluster(Cluster::of(name("network")))),
            part(
                "secrets",
                ComponentSpec::Secrets(Secrets {
                    generate: generate.map(|(n, r)| (n.to_owned(), r)).into(),
                    shared: Default::default(),
                    given: Default::default(),
                }),
            ),
            part(
                "certificate",
                ComponentSpec::Certificate(Certificate {
                    mode: TlsMode::LocalCa,
                    names: vec!["a.example".to_owned()],
                    days: 30,
                    acme: None,
                }),
            ),
            part(
                "models",
                ComponentSpec::ModelStore(ModelStore {
                    models: vec![Model {
                        name: "Tiny.1".to_owned(),
                        source: format!("file:{}", base.join("the model")),
                        digest: None,
                        role: None,
                        quantize: None,
                        context: None,
                        preload: true,
                    }],
                    max_cache_bytes: 1 << 30,
                    key: None,
                    archive_after_days: None,
                    replica: None,
                    permission_boundary: None,
                }),
            ),
            part(
                "database",
                ComponentSpec::Database(Database {
                    kind: DatabaseKind::Sqlite,
                    hosting: None,
                    schema: None,
                    postgres: None,
                }),
            ),
            part(
                "server",
                ComponentSpec::Workload(Workload {
                    autoscaling: None,
                    replicas,
                    program: program.clone(),
                    config: json!({"textnlp": {"api": {"workers": 1, "stand_in": {}}, "models": {"serve": [{"name": "Tiny.1"}]}}}),
                    cluster: name("cluster"),
                    models: name("models"),
                    database: name("database"),
                    stored: Database { kind: DatabaseKind::Sqlite, hosting: None, schema: None, postgres: None },
                    cache: None,
                    secrets: name("secrets"),
                    first_key: true,
                    watch: None,
                    drain_seconds: 10,
                    canary: None,
                    outside: None,
                    served: Vec::new(),
                    egress: Egress::default(),
                    saml: None,
                }),
            ),
            part(
                "gateway",
                ComponentSpec::Endpoint(Endpoint {
                    host: "127.0.0.1".to_owned(),
                    port: ports.numbers()[0],
                    metrics_port: ports.numbers()[1],
                    tls: true,
                    certificate: name("certificate"),
                    workload: name("server"),
                    watch: None,
                    program,
                    max_request_bytes: 1000,
                    timeout_seconds: 30,
                    connections: Default::default(),
                    domain: None,
                    waf: false,
                    zone: None,
                    managed_certificate: false,
                    acme: false,
                    share: None,
                    base_domain: None,
                }),
            ),
        ];
        Self {
            dir,
            onprem: Arc::new(OnPrem::new(options)),
            state,
            site,
            lineage: Lineage(uuid::Uuid::new_v4()),
            components,
            recorded: BTreeMap::new(),
            next: 1,
            _ports: ports,
        }
    }

    /// One of two sites, of which the other is not there.
    #[allow(dead_code)] // only some of the tests have several sites
    pub fn guarded() -> Self {
        let mut machine = Self::new(1);
        let Some(ComponentSpec::Endpoint(endpoint)) = machine.components.last().map(|last| last.part.clone()) else {
            panic!("the last component is the gateway")
        };
        let peers = vec![SiteName::new("there").unwrap()];
        let rules = FailureDetection { every_ms: 1000, lost_after: 3 };
        let place = SiteName::new("witness").unwrap();
        let border = Relay {
            cluster: name("cluster"),
            endpoint: (endpoint.host, endpoint.port),
            ready: None,
            watch: name("watch"),
            peers: peers.clone(),
            witness: RemoteComponent { site: place.clone(), component: name("witness") },
            database: None,
            program: endpoint.program.clone(),
        };
        let watch = SiteAgent {
            cluster: name("cluster"),
            border: name("border"),
            workload: name("server"),
            peers,
            order: vec![machine.site.name.clone()],
            witness: place,
            home: machine.site.name.clone(),
            rules,
            automatic: true,
            failback: true,
            max_lag_ms: 5000,
            copies: Copies { models_every_ms: 1000, configuration_every_ms: 1000, compress: true },
            database: None,
            outside: None,
            program: endpoint.program,
        };
        machine.workload().watch = Some(name("watch"));
        machine.endpoint().watch = Some(name("watch"));
        for (of, part) in [("border", ComponentSpec::Relay(border)), ("watch", ComponentSpec::SiteAgent(watch))] {
            machine.components.push(Component { name: name(of), existing: None, part });
        }
        machine
    }

    pub fn folder(&self) -> Utf8PathBuf {
        self.state.join("sites/here")
    }

    pub fn workload(&mut self) -> &mut Workload {
        let found = self.components.iter_mut().find_map(|c| match &mut c.part {
            ComponentSpec::Workload(workload) => Some(workload),
            _ => None,
        });
        found.unwrap()
    }

    #[allow(dead_code)] // only some of the tests change it
    pub fn model(&mut self) -> &mut Model {
        let found = self.components.iter_mut().find_map(|c| match &mut c.part {
            ComponentSpec::ModelStore(store) => store.models.first_mut(),
            _ => None,
        });
        found.unwrap()
    }

    pub fn endpoint(&mut self) -> &mut Endpoint {
        let found = self.components.iter_mut().find_map(|c| match &mut c.part {
            ComponentSpec::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        });
        found.unwrap()
    }

    /// Sets a field of the replicas' behaviour.
    pub fn behave(&mut self, field: &str, value: Value) {
        self.workload().config["textnlp"]["api"]["stand_in"][field] = value;
    }

    /// All that is wanted, whoever is needed before whoever needs it.
    pub fn wanted(&self) -> Vec<Wanted> {
        let lowered = self.components.iter().flat_map(|c| self.onprem.lower(c, &self.site).unwrap());
        let mut left: Vec<Wanted> = lowered.collect();
        let mut ordered: Vec<Wanted> = Vec::new();
        while !left.is_empty() {
            let done: BTreeSet<ResourceId> = ordered.iter().map(|w| w.id.clone()).collect();
            let (ready, rest): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|w| w.needs.iter().all(|n| done.contains(&n.on)));
            assert!(!ready.is_empty(), "needs that nobody meets: {rest:?}");
            ordered.extend(ready);
            left = rest;
        }
        ordered
    }

    pub async fn observe(&self) -> BTreeMap<ResourceId, Observed> {
        let (wanted, recorded) = (self.wanted(), self.recorded.values().cloned().collect::<Vec<_>>());
        let scope = Scope {
            lineage: self.lineage,
            environment: &self.site.environment,
            site: &self.site.name,
            wanted: &wanted,
            recorded: &recorded,
        };
        self.onprem.observe(&scope).await.unwrap().into_iter().collect()
    }

    pub fn operation(&mut self, verb: Verb, wanted: &Wanted, spec: Spec, changes: Vec<FieldChange>) -> Operation {
        let id = OperationId(self.next);
        self.next += 1;
        Operation {
            id,
            token: Token::derive(self.lineage, &self.site.name, id),
            verb,
            resource: wanted.id.clone(),
            kind: wanted.kind.clone(),
            site: wanted.site.clone(),
            environment: self.site.environment.clone(),
            lineage: self.lineage,
            via: None,
            host: None,
            spec,
            recorded: self.recorded.get(&wanted.id).cloned(),
            changes,
            bounds: DeleteBounds::default(),
            lacking: Vec::new(),
            is_repeated: false,
        }
    }

    pub fn resolved(&self, wanted: &Wanted) -> Spec {
        wanted
            .spec
            .resolve(|id| self.recorded.get(id).map(|r| &r.outputs))
            .unwrap_or_else(|e| panic!("{}: {e}", wanted.id))
    }

    /// Drives one operation to its end.
    pub async fn drive(&self, op: &Operation) -> std::result::Result<Object, String> {
        let told = |e: Error| {
            format!(
                "{} {}: {e:?} {}",
                op.verb,
                op.resource,
                e.source.as_ref().map(ToString::to_string).unwrap_or_default()
            )
        };
        let begun = Instant::now();
        let mut progress = self.onprem.begin(op).await.map_err(told)?;
        loop {
            match progress {
                Progress::Done(object) => return Ok(object),
                Progress::Failed { error, .. } => return Err(told(error)),
                Progress::Pending { handle, says, again_in } => {
                    assert!(begun.elapsed() < DEADLINE, "{} waits for ever: {says}", op.resource);
                    tokio::time::sleep(again_in).await;
                    progress = self.onprem.advance(op, &handle).await.map_err(told)?;
                }
            }
        }
    }

    pub fn record(&mut self, wanted: &Wanted, spec: Spec, object: Object) {
        let recorded = Recorded {
            id: wanted.id.clone(),
            kind: wanted.kind.clone(),
            site: wanted.site.clone(),
            via: None,
            spec,
            needs: wanted.needs.clone(),
            ownership: wanted.ownership.clone(),
            schema: 1,
            cloud_id: object.cloud_id,
            outputs: object.outputs,
            protected: wanted.protected,
            tainted: false,
            created: None,
        };
        self.recorded.insert(wanted.id.clone(), recorded);
    }

    /// Brings the machine to what is wanted and says what that took.
    pub async fn up(&mut self) -> Vec<String> {
        self.try_up().await.unwrap()
    }

    pub async fn try_up(&mut self) -> std::result::Result<Vec<String>, String> {
        let mut steps = Vec::new();
        let seen = self.observe().await;
        for wanted in self.wanted() {
            let spec = self.resolved(&wanted);
            let asked = Wanted { spec: spec.clone(), ..wanted.clone() };
            let op = match (seen.get(&wanted.id), self.recorded.get(&wanted.id)) {
                (Some(Observed::Unknown(why)), _) => return Err(format!("{}: {}", wanted.id, why.0)),
                (Some(Observed::Present(object)), Some(recorded)) => {
                    let changes = self.onprem.diff(&asked, recorded, object);
                    if changes.is_empty() {
                        continue;
                    }
                    let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
                    steps.push(format!("update {}: {}", wanted.id, fields.join(" ")));
                    self.operation(Verb::Update, &wanted, spec.clone(), changes)
                }
                _ => {
                    steps.push(format!("create {}", wanted.id));
                    self.operation(Verb::Create, &wanted, spec.clone(), Vec::new())
                }
            };
            let object = self.drive(&op).await?;
            assert_eq!(object.lineage, Some(self.lineage));
            self.record(&wanted, spec, object);
        }
        Ok(steps)
    }

    /// Removes everything, those who need before those who are needed.
    pub async fn down(&mut self) {
        let wanted = self.wanted();
        for wanted in wanted.iter().rev().filter(|w| self.recorded.contains_key(&w.id)).cloned().collect::<Vec<_>>() {
            let op = self.operation(Verb::Delete, &wanted, Spec::default(), Vec::new());
            self.drive(&op).await.unwrap();
            self.recorded.remove(&wanted.id);
        }
    }

    pub async fn status(&self) -> textnlp_onprem::supervise::Status {
        textnlp_onprem::supervise::status(&self.folder()).await.unwrap().expect("a supervisor runs")
    }

    pub async fn pid_of(&self, unit: &str) -> u32 {
        self.ready_pid(unit).await.expect("it is ready")
    }

    /// The process of a unit that is ready.
    pub async fn ready_pid(&self, unit: &str) -> Option<u32> {
        use textnlp_onprem::supervise::PhaseName;
        let status = textnlp_onprem::supervise::status(&self.folder()).await.ok()??;
        let unit = status.units.into_iter().find(|u| u.name == unit && u.phase == PhaseName::Ready)?;
        unit.pid
    }

    pub async fn wait_until(&self, what: &str, mut is_so: impl AsyncFnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self).await {
            assert!(begun.elapsed() < DEADLINE, "{what} never came true");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn is_ready(&self, unit: &str) -> bool {
        self.ready_pid(unit).await.is_some()
    }
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal);
}

impl Drop for Machine {
    /// A test that failed leaves no process behind: every one of ours names this folder on its command line or as its folder.
    fn drop(&mut self) {
        let folder = self.folder();
        for _ in 0..3 {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                if String::from_utf8_lossy(&line).contains(folder.as_str()) {
                    kill(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}
