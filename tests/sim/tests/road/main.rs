//! The same environment on every provider, as an operator meets it ([`whole_life`]): the real program, and real servers on this machine
//! ([`own`]), or in the pods of a real control plane that is a cluster of one's own ([`own`]) or stands in for EKS, with AWS's own signatures
//! as tokens, for GKE ([`gcp`]) or for AKS ([`azure`]). [`clouds`] has three clouds as one service. [`sagemaker`], [`cloud_run`],
//! [`vertex`] and [`azure_ml`] have sites whose servers a cloud runs as containers.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../../../tests/cluster/operator.rs"]
#[allow(dead_code)]
mod operator;

mod azure;
mod azure_ml;
mod cloud_run;
mod clouds;
mod containers;
mod export;
mod follower;
mod gcp;
mod hosts;
mod own;
mod sagemaker;
mod vertex;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine;
use camino::Utf8Path;
use serde_json::Value;
use textnlp_cluster::Cluster;
use textnlp_sim::aws::ec2;
use textnlp_sim::aws::ecr::Ecr;
use textnlp_sim::aws::eks::Eks;
use textnlp_sim::aws::elasticache::ElastiCache;
use textnlp_sim::aws::rds::Rds;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::postgres::{Change, Stand};
use textnlp_sim::{Options, Scope, Simulator};
use textnlp_tests::ports::Ports;
use textnlp_tests::{Said, counts, eventually, said, write_secret};

use follower::Follower;
use operator::{Operator, postgres};

const REGION: &str = "eu-central-1";
const ACCOUNT: &str = "123456789012";
/// The hosted zone of the guide.
const ZONE: &str = "Z0123456789ABCDEFGHIJ";

/// An operator whose first deployment is `staging`, with a gate that any machine opens.
fn of_staging(about: &str) -> Option<Operator> {
    let mut operator = Operator::new(about)?;
    operator.environment = "staging";
    let sets = [
        "database.kind=postgres",
        "scaling.min=3",
        "network.policies=true",
        "gates.users=3",
        "gates.hold=1s",
        "gates.p95_ms=60000",
    ];
    operator.sets.extend(sets.map(str::to_owned));
    Some(operator)
}

/// The role that a cloud's own tool takes, from the file that `plan` writes of it.
fn role_of(operator: &Operator, run: impl Fn(&[&str]) -> Said) -> Value {
    let folder = operator.sandbox.folder().join("policies");
    let written = run(&["plan", "--policy", "--policy-folder", folder.as_str(), "-o", "json"]).expect(0).json();
    serde_json::from_slice(&std::fs::read(written["files"][0].as_str().unwrap()).unwrap()).unwrap()
}

/// An operator with an account of AWS that has nothing in it.
struct Account {
    operator: Operator,
    simulator: Arc<Mutex<Simulator>>,
    url: String,
}

impl Account {
    /// That of an operator whose cluster has this name.
    fn of(mut operator: Operator, cluster: &'static str) -> Option<Self> {
        operator.sets.push("data=disposable".to_owned());
        // What is in the environment of the region is the account's, and the rest is as `--provider aws` has it.
        let (simulator, url) = account_with(operator.cluster, REGION, cluster);
        Some(Self { operator, simulator, url })
    }

    fn run(&self, args: &[&str], more: &[&str]) -> Said {
        run_on_aws(&self.operator, &self.url, args, more)
    }

    fn left(&self) -> Vec<String> {
        left(&self.simulator.lock().unwrap())
    }

    /// How many requests each operation got.
    fn requests(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for exchange in self.simulator.lock().unwrap().requests() {
            *counts.entry(format!("{}:{}", exchange.service, exchange.operation)).or_default() += 1;
        }
        counts
    }
}

fn run_on_aws(operator: &Operator, url: &str, args: &[&str], more: &[&str]) -> Said {
    let all = [args, &["--provider", "aws"]].concat();
    let mut command = operator.command(&all, more);
    command.env_remove("KUBECONFIG").envs(signed_in(url, REGION));
    said(command.output().unwrap())
}

/// A simulated AWS whose cluster of a name is a control plane, and where it is.
fn account_with(cluster: &Cluster, region: &'static str, name: &'static str) -> (Arc<Mutex<Simulator>>, String) {
    let simulator = Simulator::start(Options::zero_latency());
    let url = simulator.url();
    // It would need AWS's own API of Auto Scaling groups.
    let autoscaler = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/road/autoscaler.py");
    cluster.kubelet().put_program("/cluster-autoscaler", autoscaler);
    let endpoint = (cluster.url().to_owned(), cluster.ca_pem().to_owned());
    simulator.world().state::<Eks>(&Scope::new(ACCOUNT, region)).endpoint = Some(endpoint);
    let simulator = Arc::new(Mutex::new(simulator));
    let (known, sts) = (simulator.clone(), url.clone());
    cluster.identify(move |token| {
        let arn = caller(&sts, token, name)?;
        let simulator = known.lock().unwrap();
        let mut world = simulator.world();
        let cluster = world.state::<Eks>(&Scope::new(ACCOUNT, region)).clusters.get_mut(name)?;
        let is_admin = cluster.entries.get_mut(&arn)?.admits_administrator();
        is_admin.then(|| (arn, vec!["system:masters".to_owned()]))
    });
    (simulator, url)
}

/// The ARNs of what carries a lineage, without keys that are about to be deleted.
fn left(simulator: &Simulator) -> Vec<String> {
    let world = simulator.world();
    let now = world.now();
    let all = world.tags.listed("arn:", now);
    let ours = all.filter(|(arn, tags)| tags.contains_key("textnlp-lineage") && !arn.contains(":key/"));
    ours.map(|(arn, _)| arn.to_owned()).collect()
}

/// The variables of one who is signed in to it.
fn signed_in(url: &str, region: &str) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL", url.to_owned()),
        ("AWS_REGION", region.to_owned()),
        ("AWS_ACCESS_KEY_ID", Simulator::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", Simulator::SECRET_KEY.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// Who a token of EKS is of, as its authenticator asks STS: the token is a presigned URL.
fn caller(sts: &str, token: &str, cluster: &str) -> Option<String> {
    let encoded = token.strip_prefix("k8s-aws-v1.")?;
    let signed = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let signed = String::from_utf8(signed).ok()?;
    let (host, target) = signed.strip_prefix("https://")?.split_once('/')?;
    let mut stream = TcpStream::connect(sts.strip_prefix("http://")?).ok()?;
    let request =
        format!("GET /{target} HTTP/1.1\r\nhost: {host}\r\nx-k8s-aws-id: {cluster}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let arn = answer.split_once("<Arn>")?.1.split_once("</Arn>")?.0;
    answer.starts_with("HTTP/1.1 200").then(|| arn.to_owned())
}

#[test]
fn a_site_is_made_in_an_empty_account_answers_and_is_removed_with_everything() {
    let Some(operator) = of_staging("aws") else { return };
    let account = Account::of(operator, "textnlp-staging-here").unwrap();
    let plan = account.run(&["plan", "-o", "json"], &[]).expect(0).json();
    eprintln!("plan: {:?}, {}", counts(&plan), plan["cost"]["note"]);
    let services: Vec<&str> =
        plan["cost"]["services"].as_array().unwrap().iter().filter_map(|one| one["service"].as_str()).collect();
    assert!(services.contains(&"EKS") && services.contains(&"EC2"), "{:#}", plan["cost"]);

    // Pods would stay pending until a node has joined.
    let steps = plan["steps"].as_array().unwrap();
    let step = |name: &str| steps.iter().find(|step| step["resource"] == name).unwrap_or(&Value::Null);
    let nodes = &step("here/cluster/system-nodes")["id"];
    for pods in ["here/server/migrate", "here/server/deployment"] {
        let after = step(pods)["after"].as_array().cloned().unwrap_or_default();
        assert!(nodes.is_u64() && after.contains(nodes), "{pods} waits for the nodes: {after:?}");
    }

    // The stack in the cluster and CloudWatch each have a dashboard.
    let both = account.run(&["plan", "-o", "json"], &["monitoring.stack=true"]).expect(0).json();
    let planned = both["steps"].as_array().unwrap().iter().filter_map(|step| step["resource"].as_str());
    let dashboards = planned.filter(|id| ["here/monitoring/dashboard", "here/monitoring/overview"].contains(id));
    assert_eq!(dashboards.count(), 2, "{both:#}");

    let policy = account.run(&["plan", "--policy"], &[]);
    let text = policy.out.clone();
    for action in ["eks:CreateCluster", "ec2:CreateVpc", "iam:CreateRole"] {
        assert!(text.contains(action), "{action}: {policy:?}");
    }
    assert!(policy.err.contains("set `account.permission_boundary`"), "{policy:?}");

    let plan = account.run(&["plan", "-o", "json"], &[GPUS]).expect(0).json();
    let steps = plan["steps"].as_array().unwrap();
    for part in [GPU_NODES, "here/cluster/device-plugin"] {
        assert!(steps.iter().any(|step| step["resource"] == part), "{part}: {plan:#}");
    }
    // A new account may run none, and a region may have none.
    let refused = || account.run(&["preflight"], &[GPUS]).expect(1).err;
    let told = refused();
    assert!(told.contains("L-DB2E81BA"), "{told}");
    let types = ["g4dn.xlarge", "g4dn.2xlarge", "g6.xlarge", "g5.xlarge"];
    let lacks = |lacks: bool| {
        let simulator = account.simulator.lock().unwrap();
        let mut world = simulator.world();
        let missing = &mut world.state::<ec2::Missing>(&Scope::new(ACCOUNT, REGION)).0;
        let pairs =
            ec2::zones(REGION).into_iter().flat_map(|zone| types.map(|kind| (zone.id.clone(), kind.to_owned())));
        if lacks { missing.extend(pairs) } else { missing.clear() }
    };
    lacks(true);
    let told = refused();
    assert!(told.contains(&format!("AWS has no {} in {REGION}", types.join(", "))), "{told}");
    lacks(false);

    let folder = account.operator.sandbox.folder();
    let planned = export::planned(|args| account.run(args, &[]), folder, &["here/cluster", "here/network/vpc"]);
    export::planned_cloudformation(|args| account.run(args, &[]), folder, REGION);

    let of_model = |args: &[&str], variables: &[Variable]| {
        let all = [args, &["--provider", "aws"]].concat();
        let mut command = account.operator.command(&all, &[]);
        command.envs(signed_in(&account.url, REGION)).envs(variables.iter().cloned());
        said(command.output().unwrap())
    };
    let models = || {
        let bucket = Bucket {
            scheme: "s3",
            folder: account.operator.sandbox.folder(),
            run: &of_model,
            reader: Vec::new(),
            stranger: vec![("AWS_ACCESS_KEY_ID", "AKIAOFANOTHERPERSON1".to_owned())],
        };
        push_and_pull(&bucket);
        let main = export::terraform(|args| account.run(args, &[]), folder);
        export::same(&planned, |args| account.run(args, &[]), folder, &main);
        let removed = main["removed"].to_string();
        assert!(
            removed.contains("awscc_ec2_subnet_route_table_association.here_network_routes_public_new1"),
            "{removed}"
        );
        export::cloudformation(|args| account.run(args, &[]), folder, REGION);
    };
    let has_device_plugin = || {
        let plugin = ["get", "daemonset", "textnlp-device-plugin", "--namespace", "kube-system"];
        account.operator.cluster.kubectl(&plugin).status.success()
    };
    let gpus = || {
        let scope = Scope::new(ACCOUNT, REGION);
        account.simulator.lock().unwrap().world().quotas.set(&scope, "L-DB2E81BA", 256.0);
        refused_gpus(|args, more| account.run(args, more), folder, &[GPU_NODES, "here/cluster/device-plugin"]);
        let simulator = account.simulator.lock().unwrap();
        let world = simulator.world();
        let cluster = &world.find::<Eks>(&scope).unwrap().clusters["textnlp-staging-here"];
        assert_eq!(cluster.without_device_plugin().len(), 1);
        // The cluster of `kubectl` asks the simulator.
        drop(world);
        drop(simulator);
        assert!(has_device_plugin(), "its nodes offer no GPU");
    };
    whole_life(|args, more| account.run(args, more), || account.left(), models, gpus);
    assert!(!has_device_plugin(), "it is outside of the namespace");
    eprintln!("{:?}", account.requests());
}

/// A variable of a program.
type Variable = (&'static str, String);

/// The bucket that `up` created for models.
struct Bucket<'a> {
    /// The scheme of its address.
    scheme: &'static str,
    /// Has the caches of those who read from it.
    folder: &'a Utf8Path,
    /// Runs a command of the operator with more variables.
    run: &'a dyn Fn(&[&str], &[Variable]) -> Said,
    /// The variables of one who may read from it.
    reader: Vec<Variable>,
    /// The variables of one who may not.
    stranger: Vec<Variable>,
}

/// A model is sent to the bucket once, and fetched from there by its digest.
fn push_and_pull(bucket: &Bucket<'_>) {
    let push = || (bucket.run)(&["model", "push", "bundled", "-o", "json"], &[]).expect(0).json();
    let first = push();
    let pushed = &first["pushed"][0];
    let source = pushed["source"].as_str().unwrap();
    assert!(source.starts_with(&format!("{}://", bucket.scheme)), "{first:#}");
    assert!(pushed["bytes"].as_u64() > Some(1_000_000) && pushed["sent"] == pushed["bytes"], "{first:#}");
    let again = push();
    assert_eq!((&again["pushed"][0]["sent"], &again["source"]), (&Value::from(0), &first["source"]), "{again:#}");
    let pull = |name: &str, variables: &[Variable]| {
        let cache = ("TEXTNLP_STATE_DIR", bucket.folder.join(name).into_string());
        let variables: Vec<Variable> = std::iter::once(cache).chain(variables.iter().cloned()).collect();
        (bucket.run)(&["model", "pull", source, "-o", "json"], &variables)
    };
    let pulled = pull("reader", &bucket.reader).expect(0).json();
    assert_eq!((&pulled["model"]["digest"], &pulled["from_cache"]), (&first["digest"], &Value::from(false)));
    let refused = pull("stranger", &bucket.stranger);
    let hint = refused.json()["error"]["hint"].clone();
    assert!(hint.as_str().is_some_and(|hint| hint.contains("credentials that may read it")), "{refused:?}");
    assert_eq!(refused.exit, 1, "{refused:?}");
}

/// What the operator changes.
const CHANGED: [&str; 2] = ["tags.team=texts", "server.api.max_tokens=2000"];

/// The same on every provider: up with the gate of staging, nothing to do, an answer, a model in the bucket where there is one, a
/// change, what `last` does, and nothing left.
fn whole_life(
    run: impl Fn(&[&str], &[&str]) -> Said,
    left: impl Fn() -> Vec<String>,
    models: impl Fn(),
    last: impl Fn(),
) {
    let up = |more: &[&str]| run(&["up", "--yes", "--no-gate", "-o", "json"], more).expect(0).json();
    let began = std::time::Instant::now();
    let first = run(&["up", "--yes", "-o", "json"], &[]).expect(0).json();
    eprintln!("up: {:?} in {} s, {:?}", counts(&first), first["seconds"], began.elapsed());
    let gate = &first["gate"];
    assert_eq!((&gate["state"], gate["exemptions"].as_array().map(Vec::len)), (&"open".into(), Some(0)), "{gate:#}");
    let metrics = gate["checks"].as_array().unwrap().iter().find(|check| check["name"] == "metrics").unwrap();
    assert_eq!(metrics["ok"], true, "{metrics:#}");
    let again = up(&[]);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let status = run(&["status", "-o", "json"], &[]).expect(0).json();
    let drift = status["drift"].as_array().map(Vec::len);
    assert_eq!((status["ready"].as_bool(), drift), (Some(true), Some(0)), "{status:#}");
    let text = run(&["generate", "Once upon a time"], &[]);
    assert!(text.exit == 0 && !text.out.trim().is_empty(), "{text:?}");
    let key = run(&["key", "create", "a notebook", "-o", "json"], &[]).expect(0).json();
    assert!(key["public_id"].is_string(), "a job runs in the cluster: {key}");
    models();

    let changed = up(&CHANGED);
    let [created, updated, replaced, deleted] = counts(&changed)[..4] else { unreachable!() };
    let is_in_place = updated > 0 && [created, replaced, deleted] == [0, 0, 0];
    assert!(is_in_place, "tags and settings are changed in place: {changed:#}");

    last();
    let down: Value = run(&["down", "--yes", "-o", "json"], &[]).expect(0).json();
    eprintln!("down: {}", down["plan"]);
    assert_eq!(left(), Vec::<String>::new());
}

/// Servers that get GPUs with an image without CUDA: the plan has `parts`, and its document is returned; the pool is created, and the
/// job before the servers refuses the image, so that these answer as before.
fn refused_gpus(run: impl Fn(&[&str], &[&str]) -> Said, folder: &Utf8Path, parts: &[&str]) -> Value {
    other_nodes(&run);
    let sets = [CHANGED[0], CHANGED[1], GPUS];
    let file = folder.join("gpu.plan");
    let plan = run(&["plan", "-o", "json", "--out", file.as_str()], &sets).expect(0).json();
    let steps = plan["steps"].as_array().unwrap();
    for part in parts {
        let is_created = |step: &Value| step["resource"] == *part && step["action"] == "create";
        assert!(steps.iter().any(is_created), "{part}: {plan:#}");
    }
    let lines = plan["cost"]["lines"].as_array().unwrap();
    assert!(lines.iter().any(|line| line["resource"] == GPU_NODES), "{:#}", plan["cost"]);
    let saved = std::fs::read_to_string(&file).unwrap();
    assert!(saved.contains("nvidia.com/gpu"), "{saved}");

    let up = run(&["up", "--yes", "--no-gate", "-o", "json"], &sets).expect(1).json();
    let outcome = &up["outcome"];
    assert!(outcome["done"].to_string().contains(GPU_NODES), "{up:#}");
    let failed = outcome["failed"].as_array().unwrap();
    let is_refused = |step: &Value| {
        step["resource"] == "here/server/migrate" && step.to_string().contains("this program was built without CUDA")
    };
    assert!(failed.len() == 1 && is_refused(&failed[0]), "{up:#}");
    let text = run(&["generate", "Once upon a time"], &[]);
    assert!(text.exit == 0 && !text.out.trim().is_empty(), "{text:?}");
    plan
}

/// Nodes of another size are planned beside those that run, and nodes that are too small for a pod are refused.
fn other_nodes(run: &impl Fn(&[&str], &[&str]) -> Said) {
    let plan = run(&["plan", "-o", "json"], &[CHANGED[0], CHANGED[1], "cluster.node_size=large"]).expect(0).json();
    let steps = plan["steps"].as_array().unwrap();
    let pools = |action: &str| -> Vec<&Value> {
        let of_pool = |id: &str| id.starts_with("here/cluster/") && id.contains("nodes");
        let is_it = |step: &&Value| step["action"] == action && step["resource"].as_str().is_some_and(of_pool);
        steps.iter().filter(is_it).map(|step| &step["resource"]).collect()
    };
    let (created, deleted) = (pools("create"), pools("delete"));
    let is_larger = created.len() == 1 && created[0].as_str().is_some_and(|id| id.contains("large"));
    assert!(is_larger && deleted.len() == 1, "{created:?} {deleted:?}: {plan:#}");
    let small = ["cluster.node_size=small", "sites[0].cluster.resources={ requests: { cpu: 5 } }"];
    let refused = run(&["plan"], &small);
    for words in ["requests 5100m CPU", "write `cluster.node_size: medium`"] {
        assert!(refused.exit != 0 && refused.err.contains(words), "{refused:?}");
    }
}

/// A GPU for each server.
const GPUS: &str = "gpu={ size: small, count: 3 }";

/// The pool of machines with GPUs.
const GPU_NODES: &str = "here/cluster/gpu-nodes";

/// The port that the plan gives a database.
const PORT: u16 = 5432;

/// An address of this machine on which no other test has a server: each reserved port stands for one of 127.0.0.0/8.
fn address(reserved: &Ports) -> Ipv4Addr {
    let [high, low] = reserved.numbers()[0].to_be_bytes();
    let address = Ipv4Addr::new(127, high, low, 1);
    // A server on all addresses of the machine has it too.
    TcpListener::bind((address, PORT)).unwrap_or_else(|error| panic!("port {PORT} of {address} is not free: {error}"));
    address
}

/// An authority, and the certificate that it gave to a server at the address `$1`.
const CERTIFICATES: &str = r#"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=rds -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr
printf 'subjectAltName=IP:%s\n' "$1" >server.ext
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.pem
"#;

/// A real PostgreSQL in place of the managed one of a cloud.
struct Managed {
    database: Arc<postgres::Cluster>,
    address: Ipv4Addr,
    /// The file of the authority of its certificate.
    authority: String,
    _held: Ports,
}

impl Managed {
    fn start(operator: &Operator) -> Self {
        // Who gives the volumes of backups, and the user of PostgreSQL's programs.
        operator.cluster.databases(postgres::programs().unwrap(), postgres::user());
        let files = operator.cluster.folder().join(format!("{}-database", operator.namespace));
        std::fs::create_dir(&files).unwrap();
        let held = Ports::ask(1);
        let address = address(&held);
        let mut openssl = Command::new("sh");
        let made =
            openssl.current_dir(&files).args(["-euc", CERTIFICATES, "sh", &address.to_string()]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let database = Arc::new(postgres::Cluster::start(&format!("listen_addresses = '{address}'\nport = {PORT}")));
        let read = |name: &str| std::fs::read_to_string(files.join(name)).unwrap();
        std::fs::write(
            database.folder().join("data/pg_hba.conf"),
            "local all all trust\nhostssl all textnlp 127.0.0.0/8 scram-sha-256\n",
        )
        .unwrap();
        database.begin_tls(&read("server.pem"), &read("server.key"));
        Self { database, address, authority: format!("{files}/ca.pem"), _held: held }
    }

    /// What stands for the servers of a simulated cloud.
    fn stand(&self) -> Stand {
        let server = self.database.clone();
        let apply = move |change: Change<'_>| match change {
            Change::Password { user: "textnlp", password } => {
                server.sql("postgres", &format!("ALTER ROLE textnlp PASSWORD '{password}'"));
            }
            Change::Password { .. } => {}
            Change::Failover => server.crash_and_start(),
            // Its creation is asked for again when an answer is late.
            Change::Database { name } => {
                if server.sql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'")).is_empty() {
                    server.sql("postgres", &format!("CREATE DATABASE {name} OWNER textnlp"));
                }
            }
        };
        Stand { host: self.address.to_string(), apply: Box::new(apply) }
    }
}

/// The name of the cluster of the environment that the guides show.
const GUIDED: &str = "textnlp-production-main";

/// What holds for tests only, for an operator who follows a guide: the load balancer of the cloud has an address, clients of this
/// machine have another one, and availability is measured over seconds.
fn with_balancer(operator: &mut Operator, balancer: &str) {
    operator.sets.retain(|set| set.starts_with("cluster.namespace=") || set.starts_with("sites[0].cluster.address="));
    operator.sets.extend(["sites[0].cluster.load_balancer=true", "gates.availability_window=5s"].map(str::to_owned));
    operator.cluster.kubelet().balance(&operator.namespace, balancer);
}

/// An operator of a cluster who follows the first section of a guide.
fn guided<'a>(
    operator: &'a Operator,
    section: (&str, &str),
    variables: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
) -> Follower<'a> {
    Follower::of(&operator.sandbox, section, "production.yaml", &operator.sets, variables)
}

/// The road of a guide, with a database of the cloud, by TLS and a password, and with pods of the image that `up` pushes to a registry of
/// the cloud, to the open gate. `pushed` gives the digest of a tag there, `records` the number of records in the zone, and `holds` checks
/// what else a cloud creates.
fn managed_life(
    (operator, follower): (&Operator, &Follower<'_>),
    managed: &Managed,
    repository: &str,
    pushed: impl Fn(&str) -> Option<String>,
    records: impl Fn() -> usize,
    holds: impl Fn(),
) {
    let had = records();
    for command in ["plan --file production.yaml --costs", "plan --file production.yaml --policy", "preflight"] {
        follower.run(follower.printed(&format!("textnlp-deploy {command}"))).expect(0);
    }
    let plan = follower.about("plan -o json").expect(0).json();
    let steps = plan["steps"].as_array().cloned().unwrap_or_default();
    let step = |name: &str| steps.iter().find(|step| step["resource"] == name).unwrap_or(&Value::Null);
    let push = &step("main/registry/repository")["id"];
    for pods in ["main/server/migrate", "main/server/deployment"] {
        let after = step(pods)["after"].as_array().cloned().unwrap_or_default();
        assert!(push.is_u64() && after.contains(push), "{pods} waits for the push: {after:?}");
    }

    let up = follower.printed("textnlp-deploy up");
    let waits = follower.run(up).expect(3);
    assert!(
        waits.out.contains("db failover") && waits.out.contains("probe"),
        "the gate says what it waits for: {waits:?}"
    );
    let deployment = operator.get("deployment", "textnlp-api");
    let image =
        deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    let (tagged, digest) = image.split_once('@').unwrap_or_default();
    let tag = tagged.strip_prefix(&format!("{repository}:")).unwrap_or_default();
    assert_eq!(pushed(tag).as_deref(), Some(digest), "{image}");
    let encrypted =
        "SELECT count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'textnlp'";
    assert_eq!(managed.database.sql("postgres", encrypted), "t");
    holds();
    let again = || {
        let again = follower.run(&format!("{up} --no-gate -o json")).expect(0).json();
        assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "another up plans nothing: {again:#}");
    };
    again();
    let failover = follower.printed("textnlp-deploy db failover");
    let failover = follower.run(&format!("{failover} --yes -o json")).expect(0).json();
    let is_other = failover["killed"] != failover["primary"];
    assert!(is_other && failover["lost"] == 0 && failover["ready_s"].is_number(), "{failover:#}");
    dump_and_restore(operator, follower, managed);
    follower.about("probe --every 1s --for 7s").expect(0);
    let gate = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy gate"))).expect(0);
    let gate = gate.json()["gate"].clone();
    let checks = gate["checks"].as_array().unwrap();
    let unmeasured: Vec<&Value> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert_eq!((&gate["state"], unmeasured), (&"open".into(), Vec::new()), "{gate:#}");
    let hash = || managed.database.sql("postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'textnlp'");
    let before = hash();
    follower.about("secret rotate database --no-gate -o json").expect(0);
    assert_ne!(hash(), before, "the server has another password");
    again();
    let text = follower.about("generate 'Once upon a time'");
    assert!(text.exit == 0 && !text.out.trim().is_empty(), "{text:?}");
    assert!(records() > had, "the zone has the name of the service");
    keeps_the_database(follower);
    follower.run(follower.printed("textnlp-deploy down --file production.yaml --delete-data")).expect(0);
    assert_eq!(records(), had, "the zone has what it had");
}

/// Without its dumps, the database of the cloud lets the cluster go.
fn keeps_the_database(follower: &Follower<'_>) {
    let plan = follower.about("plan --down -o json").expect(0).json();
    let kept = plan["retained"].as_array().cloned().unwrap_or_default();
    let because = |name: &str| kept.iter().find(|one| one["resource"] == name).map(|one| one["because"].to_string());
    for name in ["main/backup/volume", "main/cluster"] {
        assert!(because(name).is_some_and(|text| text.contains("down --delete-dumps")), "{name}: {kept:#?}");
    }
    let printed = follower.printed("textnlp-deploy down --file production.yaml --delete-dumps");
    let command = printed.split(" #").next().unwrap_or(printed).trim_end();
    let down = follower.run(&format!("{command} -o json")).expect(0).json();
    let kept = down["retained"].as_array().cloned().unwrap_or_default();
    assert!(kept.iter().any(|one| one["resource"] == "main/database/instance"), "{kept:#?}");
    let in_cluster = |one: &&Value| {
        let kind = one["kind"].as_str().unwrap_or_default();
        kind.starts_with("kubernetes.") || kind.ends_with("cluster")
    };
    assert_eq!(kept.iter().filter(in_cluster).collect::<Vec<_>>(), Vec::<&Value>::new(), "the cluster is gone");
}

/// The cluster dumps the database of the cloud, and restores what is lost.
fn dump_and_restore(operator: &Operator, follower: &Follower<'_>, managed: &Managed) {
    let keys = || managed.database.sql("textnlp", "SELECT count(*) FROM api_keys");
    let before = keys();
    let dumped = follower.run(follower.printed("textnlp-deploy backup create")).expect(0);
    assert!(dumped.out.contains("backup_2") && dumped.out.contains("verified: restored with "), "{dumped:?}");
    eventually("the dump is known", || {
        let listed = follower.about("backup list -o json").expect(0).json();
        listed["newest_verified"].is_string().then_some(())
    });
    follower.about("key create later -o json").expect(0);
    assert_ne!(keys(), before);
    let key = operator.sandbox.folder().join("key.txt");
    write_secret(&key, &follower.about("backup key show").expect(0).out);
    let from = format!("--from-file={key}");
    let secret = ["create", "secret", "generic", "textnlp-backup-key", "--namespace", &operator.namespace, &from];
    assert!(operator.cluster.kubectl(&secret).status.success());
    let job = ["create", "job", "restore", "--namespace", &operator.namespace, "--from=cronjob/textnlp-restore"];
    assert!(operator.cluster.kubectl(&job).status.success());
    eventually("it is restored", || (operator.get("job", "restore")["status"]["succeeded"] == 1).then_some(()));
    let secret = ["delete", "secret", "textnlp-backup-key", "--namespace", &operator.namespace];
    assert!(operator.cluster.kubectl(&secret).status.success());
    assert_eq!(keys(), before);
    eventually("the service answers", || (follower.about("generate 'Once upon a time'").exit == 0).then_some(()));
}

/// The tokens that the cache of the site accepts. The pods have its address with the last one.
fn tokens_of_cache(simulator: &Mutex<Simulator>, operator: &Operator) -> Vec<String> {
    let name = format!("{GUIDED}-cache");
    let tokens = {
        let simulator = simulator.lock().unwrap();
        let world = simulator.world();
        world.find::<ElastiCache>(&Scope::new(ACCOUNT, REGION)).unwrap().groups[&name].tokens.clone()
    };
    let secret = operator.get("secret", "textnlp-secrets");
    let encoded = secret["data"]["cache-url"].as_str().unwrap();
    let address = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
    let token = tokens.last().unwrap();
    let expected = format!("rediss://:{token}@master.{name}.{REGION}.cache.amazonaws.com:6379");
    assert!(String::from_utf8(address).unwrap() == expected, "the servers have another address of the cache");
    tokens
}

#[test]
fn the_guide_leads_to_pods_of_a_pushed_image_with_a_managed_database() {
    let Some(mut operator) = Operator::new("awsdb") else { return };
    let managed = Managed::start(&operator);
    with_balancer(&mut operator, "k8s-textnlp.elb.eu-central-1.amazonaws.com");
    let (simulator, url) = account_with(operator.cluster, REGION, GUIDED);
    {
        let simulator = simulator.lock().unwrap();
        let mut world = simulator.world();
        world.state::<Rds>(&Scope::new(ACCOUNT, REGION)).stand = Some(managed.stand());
        route53::zone(&mut world, &Scope::global(ACCOUNT), ZONE, "example.com", false);
    }
    let pushed = |tag: &str| {
        let simulator = simulator.lock().unwrap();
        let world = simulator.world();
        let ecr = world.find::<Ecr>(&Scope::new(ACCOUNT, REGION)).unwrap();
        ecr.repositories["textnlp"].pushed.images.get(tag).cloned()
    };
    operator.sets.extend(["cache.kind=redis", "cache.hosting=managed"].map(str::to_owned));
    // The server that stands in for RDS is not certified by Amazon.
    operator.sets.push(format!("network.private_ca={}", managed.authority));
    let section = ("docs/guide/aws.md", "From an empty account");
    let follower = guided(&operator, section, signed_in(&url, REGION));
    let repository = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/textnlp";
    let records = || {
        let simulator = simulator.lock().unwrap();
        let world = simulator.world();
        world.find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records.len()
    };
    let holds = || {
        {
            let simulator = simulator.lock().unwrap();
            let world = simulator.world();
            let clusters = &world.find::<Eks>(&Scope::new(ACCOUNT, REGION)).unwrap().clusters;
            assert!(clusters[GUIDED].key.is_some(), "the secrets in the cluster are encrypted with a key of the site");
        }
        let before = tokens_of_cache(&simulator, &operator);
        assert_eq!(before.len(), 1);
        follower.about("secret rotate cache --no-gate -o json").expect(0);
        let after = tokens_of_cache(&simulator, &operator);
        assert!(after.len() == 2 && after[0] == before[0], "until the pods are replaced, they use the old one");
    };
    managed_life((&operator, &follower), &managed, repository, pushed, records, holds);
    let simulator = simulator.lock().unwrap();
    assert_eq!(left(&simulator), Vec::<String>::new());
    let snapshots = simulator.world().find::<Rds>(&Scope::new(ACCOUNT, REGION)).unwrap().snapshots.len();
    assert_eq!(snapshots, 1, "the last snapshot of precious data is what stays");
}
