//! Three simulated clouds as one service, as an operator meets them who follows the guide: the shipped `multi-region-clouds` with the
//! operator's addresses, whose clusters are three real control planes, a drill in which a cloud is cut off, and everything removed.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::azure::AzureCloud;
use textnlp_sim::gcp::GoogleCloud;
use textnlp_sim::{Scope, Simulator};
use textnlp_tests::ports::Ports;
use textnlp_tests::{Said, Sandbox, counts, eventually, said};

use crate::follower::Follower;
use crate::hosts::{self, Hosts};
use crate::operator::{PROGRAM, pinned, postgres, program_for_pods};
use crate::{ACCOUNT, ZONE, account_with, azure, gcp, left, signed_in};

/// The environment of the guide.
const NAME: &str = "world";
const FILE: &str = "world.yaml";
const GUIDE: &str = "docs/guide/clouds.md";
/// The regions of the shipped environment, in the order of its sites.
const REGIONS: [&str; 3] = ["us-east-1", "us-central1", "eastus"];
/// What the controllers of the clouds give the services of the sites, in that order.
const BALANCERS: [&str; 3] = ["k8s-textnlp.elb.us-east-1.amazonaws.com", "203.0.113.20", "203.0.113.30"];

/// An operator with three clouds that have nothing in them, and a database that all of them reach.
struct Clouds {
    aws: Arc<Mutex<Simulator>>,
    gcp: Arc<GoogleCloud>,
    azure: Arc<AzureCloud>,
    hosts: Hosts,
    clusters: [&'static Cluster; 3],
    sandbox: Sandbox,
    namespace: String,
    sets: Vec<String>,
    variables: Vec<(String, String)>,
    _ports: Ports,
}

impl Clouds {
    /// `None` where there are no control planes or no PostgreSQL.
    fn new() -> Option<Self> {
        let clusters = [Cluster::shared()?, Cluster::second()?, Cluster::third()?];
        let database = postgres::shared()?;
        let (sandbox, ports) = (Sandbox::new("clouds"), Ports::ask(1));
        let namespace = clusters[0].namespace_name("clouds");
        let mut sets = vec![
            format!("cluster.namespace={namespace}"),
            format!("traffic.port={}", sandbox.port),
            format!("traffic.metrics_port={}", ports.numbers()[0]),
            "scaling.min=2".to_owned(),
            "data=disposable".to_owned(),
            // Seconds in place of the shipped half minute, which nothing here waits for but the test.
            "dr.watch_every=1s".to_owned(),
        ];
        // Root names the user of an environment with production users.
        sets.extend(rustix::process::geteuid().is_root().then(|| "prerequisites.user=root".to_owned()));
        for (n, cluster) in clusters.iter().enumerate() {
            cluster.kubelet().put_program(PROGRAM, program_for_pods());
            let address = cluster.kubelet().forward(&namespace, "textnlp-api", sandbox.port);
            sets.push(format!("sites[{n}].cluster.address=https://{address}"));
            cluster.kubelet().balance(&namespace, BALANCERS[n]);
            sets.push(format!("sites[{n}].cluster.image={}", pinned("local/textnlp:1")));
        }
        let (aws, url) = account_with(clusters[0], REGIONS[0], "textnlp-world-primary");
        route53::zone(&mut aws.lock().unwrap().world(), &Scope::global(ACCOUNT), ZONE, "example.com", false);
        let gcp = gcp::project_with(clusters[1]);
        let azure = azure::subscription_with(clusters[2], "textnlp-world-tertiary");
        let of_aws = signed_in(&url, REGIONS[0]).into_iter().map(|(name, value)| (name.to_owned(), value));
        let mut variables: Vec<_> = of_aws.chain(gcp.variables()).chain(azure.variables()).collect();
        variables.push(("DATABASE_URL".to_owned(), database.url(&database.database())));
        let hosts = Hosts::start(&[(hosts::GOOGLE, gcp.url()), (hosts::AZURE, azure.url())]);
        Some(Self { aws, gcp, azure, hosts, clusters, sandbox, namespace, sets, variables, _ports: ports })
    }

    fn command(&self, args: &[&str]) -> Command {
        let sets = self.sets.iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = args.iter().copied().chain(["--file", FILE]).chain(sets).collect();
        let mut command = self.sandbox.command(&args);
        command.env_remove("KUBECONFIG").envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The operator who follows the guide, with the environment that it shows.
    fn follower(&self) -> Follower<'_> {
        let section = (GUIDE, "One service in three clouds");
        Follower::of(&self.sandbox, section, FILE, &self.sets, self.variables.iter().cloned()).and(GUIDE, "Drills")
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    /// Runs the command that a fault records, as if its cluster were another one.
    #[track_caller]
    fn end_in_another_account(&self) {
        let folder = self.sandbox.state(NAME).join("sites/witness/faults");
        let entries = folder.read_dir_utf8().unwrap().flatten();
        let file = entries.map(|entry| entry.into_path()).find(|path| path.extension() == Some("json")).unwrap();
        let fault: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let recorded = fault["elsewhere"]["arguments"].as_array().unwrap().iter().map(|one| one.as_str().unwrap());
        let mut arguments: Vec<&str> = recorded.collect();
        let at = arguments.iter().position(|one| *one == "--api-server").unwrap() + 1;
        arguments[at] = "https://192.0.2.1";
        let mut command = self.sandbox.command(&arguments);
        let ended = said(command.envs(self.variables.iter().map(|(name, value)| (name, value))).output().unwrap());
        assert!(ended.exit != 0 && ended.err.contains("sign in to that account"), "{ended:?}");
    }

    #[track_caller]
    fn json(&self, args: &[&str], exit: i32) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect(exit).json()
    }

    /// Sends a model to the buckets of all sites, once: their sources, each with the same weights.
    fn push(&self) -> Vec<String> {
        let container = azure::models_container(&self.azure);
        let account = container.split('/').nth(8).unwrap().to_owned();
        let role = self.azure.world().assign(&container, azure::CONTRIBUTOR, self.azure.operator());
        let run = |args: &[&str], variables: &[(&str, &str)]| {
            let mut command = self.command(&[args, &["-o", "json"]].concat());
            command.envs(self.hosts.variables()).envs(variables.iter().copied());
            said(command.output().unwrap()).expect(0).json()
        };
        let push = || run(&["model", "push", "bundled"], &[]);
        let (first, again) = (push(), push());
        let [sent, same] = [&first, &again].map(|pushed| pushed["pushed"].as_array().unwrap());
        let mut sources = Vec::new();
        for (one, same) in sent.iter().zip(same) {
            assert_eq!((&one["sent"], &same["sent"]), (&one["bytes"], &json!(0)), "{again:#}");
            let source = one["source"].as_str().unwrap();
            let cache = self.sandbox.folder().join(format!("pulled-{}", sources.len()));
            let variables = [("TEXTNLP_STATE_DIR", cache.as_str()), ("AZURE_STORAGE_ACCOUNT_NAME", account.as_str())];
            let pulled = run(&["model", "pull", source], &variables);
            let found = (&pulled["model"]["digest"], &pulled["from_cache"]);
            assert_eq!(found, (&first["digest"], &json!(false)), "{pulled:#}");
            sources.push(source.to_owned());
        }
        self.azure.world().objects.remove(&role.to_lowercase());
        // The pods of each cluster compared theirs with the same digest before they served.
        let digest = first["digest"].as_str().unwrap();
        for cluster in self.clusters {
            let log = ["logs", "deployment/textnlp-api", "-c", "models", "-n", &self.namespace];
            let log = String::from_utf8(cluster.kubectl(&log).stdout).unwrap();
            assert!(log.contains(&format!("\"digest\":\"{digest}\"")), "{digest}: {log}");
        }
        sources
    }

    fn until_in_sync(&self) {
        eventually("every site is in sync", || {
            let status = self.run(&["dr", "status", "-o", "json"]).json();
            let sites = status["sites"].as_array()?;
            (sites.len() == 3 && sites.iter().all(|site| site["in_sync"] == true)).then_some(())
        });
    }

    /// The region that a client of the global endpoint is answered from.
    fn region(&self) -> Option<String> {
        let authority = self.sandbox.state(NAME).join("sites/witness/certs/ca.pem");
        let url = format!("https://127.0.0.1:{}/health", self.sandbox.port);
        let mut curl = Command::new("curl");
        let output = curl.args(["-s", "--max-time", "5", "--cacert", authority.as_str(), &url]).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(answer["region"].as_str()?.to_owned())
    }

    /// Credentials of AWS in files of its own tools, in place of variables.
    fn sign_in_by_files(&mut self) {
        let folder = self.sandbox.folder().join("aws");
        std::fs::create_dir(&folder).unwrap();
        let url = self.aws.lock().unwrap().url();
        let config = format!("[default]\nregion = {}\nendpoint_url = {url}\n", REGIONS[0]);
        let (id, key) = (Simulator::ACCESS_KEY, Simulator::SECRET_KEY);
        let credentials = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {key}\n");
        self.variables.retain(|(name, _)| !name.starts_with("AWS_"));
        let files =
            [("AWS_CONFIG_FILE", "config", config), ("AWS_SHARED_CREDENTIALS_FILE", "credentials", credentials)];
        for (variable, name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            self.variables.push((variable.to_owned(), path.into_string()));
        }
    }

    /// What Route 53 has of the name that clients use, by site: the weight, where it points, and what its health check probes.
    fn records(&self) -> BTreeMap<String, (u64, String, String)> {
        let simulator = self.aws.lock().unwrap();
        let world = simulator.world();
        let state = world.find::<Route53>(&Scope::global(ACCOUNT)).unwrap();
        let of_name = state.zones[ZONE].records.values().filter(|one| one["Name"] == "textnlp.example.com.");
        of_name
            .map(|one| {
                let alias = one["AliasTarget"]["DNSName"].as_str();
                let target = alias.or(one["ResourceRecords"][0]["Value"].as_str()).unwrap();
                let check = &state.checks[one["HealthCheckId"].as_str().unwrap()]["HealthCheckConfig"];
                let probed = check["IPAddress"].as_str().or(check["FullyQualifiedDomainName"].as_str()).unwrap();
                let probed = format!("{probed}:{}{}", check["Port"], check["ResourcePath"].as_str().unwrap());
                let site = one["SetIdentifier"].as_str().unwrap().to_owned();
                (site, (one["Weight"].as_u64().unwrap(), target.trim_end_matches('.').to_owned(), probed))
            })
            .collect()
    }

    /// How many records the zone has.
    fn zone_size(&self) -> usize {
        let simulator = self.aws.lock().unwrap();
        let world = simulator.world();
        world.find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records.len()
    }

    /// What is in the three clouds, which were empty.
    fn left(&self) -> Vec<String> {
        let mut all = left(&self.aws.lock().unwrap());
        all.extend(gcp::left(&self.gcp));
        all.extend(self.azure.world().ids());
        all
    }
}

#[test]
fn three_clouds_serve_as_one_survive_the_loss_of_the_first_and_are_removed() {
    let Some(mut clouds) = Clouds::new() else { return };
    let follower = clouds.follower();
    let plan = clouds.json(&["plan"], 0);
    let services = plan["cost"]["services"].as_array().cloned().unwrap_or_default();
    let services: Vec<&str> = services.iter().filter_map(|one| one["service"].as_str()).collect();
    eprintln!("plan: {:?}, {services:?}", counts(&plan));
    for of in ["EKS", "Kubernetes Engine", "Virtual Machines"] {
        assert!(services.iter().any(|service| service.contains(of)), "{of} in {services:?}");
    }
    let costs = follower.run(follower.printed("textnlp-deploy plan --file world.yaml --costs")).expect(0);
    assert!(costs.out.contains("Kubernetes Engine"), "{costs:?}");
    let policy = follower.run(follower.printed("textnlp-deploy plan --file world.yaml --policy")).expect(0);
    for action in ["eks:CreateCluster", "container.clusters.create", "Microsoft.ContainerService/managedClusters/write"]
    {
        assert!(policy.out.contains(action), "{action}: {policy:?}");
    }

    follower.run(follower.printed("textnlp-deploy preflight")).expect(0);
    let done = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy up"))).expect(0).json();
    eprintln!("up: {:?} in {} s", counts(&done), done["seconds"]);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    clouds.until_in_sync();
    let port = clouds.sandbox.port;
    let record = |weight: u64, balancer: &str| (weight, balancer.to_owned(), format!("{balancer}:{port}/health"));
    let sites = ["primary", "secondary", "tertiary"].map(str::to_owned).into_iter();
    let expected = sites.zip([100, 50, 0].iter().zip(BALANCERS).map(|(weight, balancer)| record(*weight, balancer)));
    assert_eq!(clouds.records(), expected.collect());
    let again = clouds.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    eventually("an active site answers", || {
        clouds.region().filter(|region| REGIONS[..2].contains(&region.as_str())).map(drop)
    });

    let sources = clouds.push();
    let schemes: Vec<&str> = sources.iter().filter_map(|source| source.split(':').next()).collect();
    assert_eq!(schemes, ["s3", "gs", "az"], "{sources:?}");

    // A fault is reverted with credentials in files only, so the drill is refused without them.
    let refused = clouds.run(&["dr", "drill", "--fault", "kill"]).expect(4);
    assert!(refused.err.contains("credentials"), "{}", refused.err);
    clouds.sign_in_by_files();
    let follower = clouds.follower();
    let drill = follower.printed("textnlp-deploy dr drill --file world.yaml --fault kill");
    for fault in ["kill", "blackhole"] {
        let report = follower.run(&format!("{} -o json", drill.replace("kill", fault))).expect(0).json();
        let found = &report["figures"];
        eprintln!(
            "{fault} of {}: service {} ms, writes {} ms, lost {}, unaccounted {}, failed {}, {} s in all",
            report["site"],
            found["service_rto_ms"],
            found["control_rto_ms"],
            report["lost"],
            report["unaccounted"],
            report["requests_failed"],
            report["seconds"],
        );
        assert_eq!((&report["site"], &report["lost"], &report["missed"]), (&json!("primary"), &json!(0), &json!([])));
        assert_eq!((&found["database"], &report["leftovers"]), (&json!("primary"), &json!([])), "{report:#}");
        eventually("AWS leads again", || {
            (clouds.run(&["dr", "status", "-o", "json"]).json()["primary"] == "primary").then_some(())
        });
        clouds.until_in_sync();
    }

    // A drill that dies leaves nothing: the supervisor of the witness signs in to AWS and gives the nodes back.
    let home = clouds.clusters[0];
    let mut dying = clouds.command(&["dr", "drill", "--ttl", "10m"]).stdout(Stdio::null()).spawn().unwrap();
    eventually("another site leads", || {
        (clouds.run(&["dr", "status", "-o", "json"]).json()["primary"] == "secondary").then_some(())
    });
    dying.kill().unwrap();
    dying.wait().unwrap();
    let cordoned = || {
        let nodes: Value = serde_json::from_slice(&home.kubectl(&["get", "nodes", "-o", "json"]).stdout).unwrap();
        nodes["items"].as_array().unwrap().iter().any(|node| node["spec"]["unschedulable"] == true)
    };
    assert!(cordoned());
    clouds.end_in_another_account();
    assert!(cordoned(), "another cluster of that name is not taken for it");
    clouds.sandbox.expire_faults(NAME);
    eventually("the nodes are given back", || (!cordoned()).then_some(()));
    eventually("AWS leads again", || {
        (clouds.run(&["dr", "status", "-o", "json"]).json()["primary"] == "primary").then_some(())
    });

    // While AWS is lost, another site can be changed; only its records are unknown.
    let up = ["up", "--site", "secondary", "--yes", "--no-gate", "--set", "server.api.max_tokens=2048", "-o", "json"];
    let mut alone = clouds.command(&up);
    let alone = said(alone.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").output().unwrap());
    let done = alone.json()["outcome"]["done"].to_string();
    assert!(done.contains("secondary/server/config") && done.contains("secondary/server/deployment"), "{alone:?}");
    assert!(alone.out.contains("secondary/gateway/record"), "what is not known is named: {alone:?}");

    follower.run(follower.printed("textnlp-deploy down --file world.yaml --delete-data world")).expect(0);
    assert_eq!(clouds.left(), Vec::<String>::new());
    assert_eq!(clouds.zone_size(), 2, "the zone has what each zone has");
    for cluster in clouds.clusters {
        assert!(!cluster.kubectl(&["get", "namespace", &clouds.namespace]).status.success(), "the namespace was ours");
    }
    assert_eq!((clouds.gcp.violations(), clouds.azure.violations()), (Vec::<String>::new(), Vec::<String>::new()));
}
