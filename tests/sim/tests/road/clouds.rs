//! Simulated clouds as one service, as an operator meets them who follows the guide: the shipped `multi-region-clouds` with the operator's
//! addresses and records in Route 53, and its two sites without AWS with records in Cloud DNS. The clusters are real control planes. A
//! drill cuts a cloud off, and everything is removed.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::azure::AzureCloud;
use textnlp_sim::gcp::GoogleCloud;
use textnlp_sim::{Scope, Simulator};
use textnlp_tests::ports::Ports;
use textnlp_tests::{Said, Sandbox, counts, eventually, print_drill, said};

use crate::follower::Follower;
use crate::hosts::{self, Hosts};
use crate::operator::{PROGRAM, pinned, postgres, program_for_pods};
use crate::{ACCOUNT, ZONE, account_with, azure, gcp, left, signed_in};

/// The environment of the guide.
const NAME: &str = "world";
const FILE: &str = "world.yaml";
const GUIDE: &str = "docs/guide/clouds.md";
/// The section with the commands of all services in several clouds.
const COMMANDS: &str = "One service in three clouds";
/// The names of sites with their weights, in their order.
const SITES: [(&str, f64); 3] = [("primary", 100.0), ("secondary", 50.0), ("tertiary", 0.0)];

/// The cloud of a site.
#[derive(Clone, Copy, PartialEq)]
enum CloudOf {
    Aws,
    Gcp,
    Azure,
}

/// A service of the guide.
struct Service {
    /// The section that shows its environment.
    section: &'static str,
    /// The cloud and the region of each site, and what the controllers of the cloud give the service of the cluster there. The primary
    /// has the zone.
    sites: &'static [(CloudOf, &'static str, &'static str)],
    /// What costs money, and what the policies of a plan allow.
    priced: &'static [&'static str],
    allowed: &'static [&'static str],
}

/// The shipped environment.
const THREE: Service = Service {
    section: COMMANDS,
    sites: &[
        (CloudOf::Aws, "us-east-1", "k8s-textnlp.elb.us-east-1.amazonaws.com"),
        (CloudOf::Gcp, "us-central1", "203.0.113.20"),
        (CloudOf::Azure, "eastus", "203.0.113.30"),
    ],
    priced: &["EKS", "Kubernetes Engine", "Virtual Machines"],
    allowed: &["eks:CreateCluster", "container.clusters.create", "Microsoft.ContainerService/managedClusters/write"],
};

/// Without a site on AWS: the primary's zone is one of Cloud DNS, which the site on Azure shares.
const TWO: Service = Service {
    section: "Google Cloud and Azure",
    sites: &[(CloudOf::Gcp, "us-central1", "203.0.113.20"), (CloudOf::Azure, "eastus", "203.0.113.30")],
    priced: &["Kubernetes Engine", "Virtual Machines"],
    allowed: &["dns.changes.create", "compute.healthChecks.create", "Microsoft.ContainerService/managedClusters/write"],
};

/// The weight of a record, where it points, and what its health check probes.
type Weighted = (f64, String, String);

/// An operator with clouds that have nothing in them, and a database that all of them reach.
struct Clouds {
    service: &'static Service,
    aws: Option<Arc<Mutex<Simulator>>>,
    gcp: Arc<GoogleCloud>,
    azure: Arc<AzureCloud>,
    hosts: Hosts,
    clusters: Vec<&'static Cluster>,
    sandbox: Sandbox,
    namespace: String,
    sets: Vec<String>,
    variables: Vec<(String, String)>,
    _ports: Ports,
}

impl Clouds {
    /// `None` where there are no control planes or no PostgreSQL.
    fn new(service: &'static Service) -> Option<Self> {
        let start: [fn() -> Option<&'static Cluster>; 3] = [Cluster::shared, Cluster::second, Cluster::third];
        let clusters: Vec<&'static Cluster> =
            service.sites.iter().zip(start).map(|(_, start)| start()).collect::<Option<_>>()?;
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
        for (n, ((_, _, balancer), cluster)) in service.sites.iter().zip(&clusters).enumerate() {
            cluster.kubelet().put_program(PROGRAM, program_for_pods());
            let address = cluster.kubelet().forward(&namespace, "textnlp-api", sandbox.port);
            sets.push(format!("sites[{n}].cluster.address=https://{address}"));
            cluster.kubelet().balance(&namespace, balancer);
            sets.push(format!("sites[{n}].cluster.image={}", pinned("local/textnlp:1")));
        }
        let of = |cloud: CloudOf| {
            let n = service.sites.iter().position(|(of, ..)| *of == cloud)?;
            Some((clusters[n], service.sites[n].1, SITES[n].0))
        };
        let aws = of(CloudOf::Aws).map(|(cluster, region, _)| {
            let (simulator, url) = account_with(cluster, region, "textnlp-world-primary");
            route53::zone(&mut simulator.lock().unwrap().world(), &Scope::global(ACCOUNT), ZONE, "example.com", false);
            (simulator, signed_in(&url, region))
        });
        let (cluster, ..) = of(CloudOf::Gcp).unwrap();
        let gcp = if aws.is_some() { gcp::project_with(cluster) } else { gcp::project_with_zone(cluster) };
        let (cluster, _, site) = of(CloudOf::Azure).unwrap();
        let azure = azure::subscription_with(cluster, &format!("textnlp-world-{site}"));
        let (aws, of_aws) = aws.unzip();
        let of_aws = of_aws.into_iter().flatten().map(|(name, value)| (name.to_owned(), value));
        let mut variables: Vec<_> = of_aws.chain(gcp.variables()).chain(azure.variables()).collect();
        variables.push(("DATABASE_URL".to_owned(), database.url(&database.database())));
        let hosts = Hosts::start(&[(hosts::GOOGLE, gcp.url()), (hosts::AZURE, azure.url())]);
        Some(Self { service, aws, gcp, azure, hosts, clusters, sandbox, namespace, sets, variables, _ports: ports })
    }

    fn aws(&self) -> MutexGuard<'_, Simulator> {
        self.aws.as_ref().unwrap().lock().unwrap()
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
        let section = (GUIDE, self.service.section);
        let follower = Follower::of(&self.sandbox, section, FILE, &self.sets, self.variables.iter().cloned());
        follower.and(GUIDE, COMMANDS).and(GUIDE, "Drills")
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
        for cluster in &self.clusters {
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
            (sites.len() == self.clusters.len() && sites.iter().all(|site| site["in_sync"] == true)).then_some(())
        });
    }

    fn until_leads(&self, site: &str) {
        eventually(&format!("site {site} leads"), || {
            (self.run(&["dr", "status", "-o", "json"]).json()["primary"] == site).then_some(())
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
        let url = self.aws().url();
        let config = format!("[default]\nregion = {}\nendpoint_url = {url}\n", self.service.sites[0].1);
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

    /// What the zone has of the name that clients use, by site.
    fn records(&self) -> BTreeMap<String, Weighted> {
        match &self.aws {
            Some(aws) => of_route53(&aws.lock().unwrap()),
            None => of_cloud_dns(&self.gcp),
        }
    }

    /// What [`Clouds::records`] has as long as no site is removed: failovers change no weight.
    fn expected(&self) -> BTreeMap<String, Weighted> {
        let port = self.sandbox.port;
        let record = |((site, weight), (_, _, balancer)): (&(&str, f64), &(CloudOf, &str, &str))| {
            ((*site).to_owned(), (*weight, (*balancer).to_owned(), format!("{balancer}:{port}/health")))
        };
        SITES.iter().zip(self.service.sites).map(record).collect()
    }

    /// How many records the zone has.
    fn zone_size(&self) -> usize {
        let Some(aws) = &self.aws else {
            return self.gcp.world().keys().iter().filter(|key| key.contains("/rrsets/")).count();
        };
        let simulator = aws.lock().unwrap();
        let world = simulator.world();
        world.find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records.len()
    }

    /// What is in the clouds, which were empty.
    fn left(&self) -> Vec<String> {
        let mut all = self.aws.as_ref().map(|aws| left(&aws.lock().unwrap())).unwrap_or_default();
        all.extend(gcp::left(&self.gcp));
        all.extend(self.azure.world().ids());
        all
    }
}

/// The records of Route 53: each site has its own, with its own health check.
fn of_route53(simulator: &Simulator) -> BTreeMap<String, Weighted> {
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
            (site, (one["Weight"].as_f64().unwrap(), target.trim_end_matches('.').to_owned(), probed))
        })
        .collect()
}

/// The items of the only record set of Cloud DNS, whose health check is for all of them. The text of a site has the address of its item.
fn of_cloud_dns(cloud: &GoogleCloud) -> BTreeMap<String, Weighted> {
    let world = cloud.world();
    let record = |name: &str| {
        let end = format!("/rrsets/{name}");
        let key = world.keys().into_iter().find(|key| key.ends_with(&end));
        key.and_then(|key| world.get(&key).cloned()).unwrap_or_default()
    };
    let (set, owner) = (record("textnlp.example.com./A"), record("_textnlp-a.textnlp.example.com./TXT"));
    let policy = &set["routingPolicy"];
    let check = policy["healthCheck"].as_str().unwrap().rsplit_once("/v1/").unwrap().1;
    let check = &world.get(&format!("compute/{check}")).unwrap()["httpsHealthCheck"];
    let path = check["requestPath"].as_str().unwrap();
    let texts: Vec<&str> = owner["rrdatas"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let items = policy["wrr"]["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let address = item["healthCheckedTargets"]["externalEndpoints"][0].as_str().unwrap();
            let members = |text: &str| -> BTreeMap<String, String> {
                let text: String = text.split('"').skip(1).step_by(2).collect();
                let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
                pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            };
            let mut of_sites = texts.iter().copied().map(members);
            let of_site = of_sites.find(|members| members.get("address").is_some_and(|one| one == address)).unwrap();
            let site = of_site["resource"].split('/').next().unwrap().to_owned();
            (site, (item["weight"].as_f64().unwrap(), address.to_owned(), format!("{address}:{}{path}", check["port"])))
        })
        .collect()
}

/// From a plan to sites in sync, by the commands of the guide.
fn created(clouds: &Clouds, follower: &Follower<'_>) {
    let plan = clouds.json(&["plan"], 0);
    let services = plan["cost"]["services"].as_array().cloned().unwrap_or_default();
    let services: Vec<&str> = services.iter().filter_map(|one| one["service"].as_str()).collect();
    eprintln!("plan: {:?}, {services:?}", counts(&plan));
    for of in clouds.service.priced {
        assert!(services.iter().any(|service| service.contains(of)), "{of} in {services:?}");
    }
    let costs = follower.run(follower.printed("textnlp-deploy plan --file world.yaml --costs")).expect(0);
    assert!(costs.out.contains("Kubernetes Engine"), "{costs:?}");
    let policy = follower.run(follower.printed("textnlp-deploy plan --file world.yaml --policy")).expect(0);
    for action in clouds.service.allowed {
        assert!(policy.out.contains(action), "{action}: {policy:?}");
    }

    follower.run(follower.printed("textnlp-deploy preflight")).expect(0);
    let done = follower.run(&format!("{} -o json", follower.printed("textnlp-deploy up"))).expect(0).json();
    eprintln!("up: {:?} in {} s", counts(&done), done["seconds"]);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    clouds.until_in_sync();
    assert_eq!(clouds.records(), clouds.expected());
    let again = clouds.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let active = clouds.service.sites.iter().zip(SITES).filter(|(_, (_, weight))| *weight > 0.0);
    let active: Vec<&str> = active.map(|((_, region, _), _)| *region).collect();
    eventually("an active site answers", || {
        clouds.region().filter(|region| active.contains(&region.as_str())).map(drop)
    });
}

/// A drill of the guide: the site of the primary fails, another one takes over, and the primary leads again.
fn drill(clouds: &Clouds, follower: &Follower<'_>, fault: &str) {
    let command = follower.printed("textnlp-deploy dr drill --file world.yaml --fault kill").replace("kill", fault);
    let report = follower.run(&format!("{command} -o json")).expect(0).json();
    let found = &report["figures"];
    print_drill(&report);
    assert_eq!((&report["site"], &report["lost"], &report["missed"]), (&json!("primary"), &json!(0), &json!([])));
    assert_eq!((&found["database"], &report["leftovers"]), (&json!("primary"), &json!([])), "{report:#}");
    clouds.until_leads("primary");
    clouds.until_in_sync();
    assert_eq!(clouds.records(), clouds.expected());
}

/// The removal of the guide leaves nothing.
fn removed(clouds: &Clouds, follower: &Follower<'_>) {
    follower.run(follower.printed("textnlp-deploy down --file world.yaml --delete-data world")).expect(0);
    assert_eq!(clouds.left(), Vec::<String>::new());
    assert_eq!(clouds.zone_size(), 2, "the zone has what each zone has");
    for cluster in &clouds.clusters {
        assert!(!cluster.kubectl(&["get", "namespace", &clouds.namespace]).status.success(), "the namespace was ours");
    }
    assert_eq!((clouds.gcp.violations(), clouds.azure.violations()), (Vec::<String>::new(), Vec::<String>::new()));
}

#[test]
fn three_clouds_serve_as_one_survive_the_loss_of_the_first_and_are_removed() {
    let Some(mut clouds) = Clouds::new(&THREE) else { return };
    created(&clouds, &clouds.follower());

    let sources = clouds.push();
    let schemes: Vec<&str> = sources.iter().filter_map(|source| source.split(':').next()).collect();
    assert_eq!(schemes, ["s3", "gs", "az"], "{sources:?}");

    // A fault is reverted with credentials in files only, so the drill is refused without them.
    let refused = clouds.run(&["dr", "drill", "--fault", "kill"]).expect(4);
    assert!(refused.err.contains("credentials"), "{}", refused.err);
    clouds.sign_in_by_files();
    let follower = clouds.follower();
    for fault in ["kill", "blackhole"] {
        drill(&clouds, &follower, fault);
    }

    // A drill that dies leaves nothing: the supervisor of the witness signs in to AWS and gives the nodes back.
    let home = clouds.clusters[0];
    let cordoned = || {
        let nodes: Value = serde_json::from_slice(&home.kubectl(&["get", "nodes", "-o", "json"]).stdout).unwrap();
        nodes["items"].as_array().unwrap().iter().any(|node| node["spec"]["unschedulable"] == true)
    };
    let dies = || {
        clouds.until_leads("primary");
        let mut dying = clouds.command(&["dr", "drill", "--ttl", "10m"]).stdout(Stdio::null()).spawn().unwrap();
        clouds.until_leads("secondary");
        dying.kill().unwrap();
        dying.wait().unwrap();
        cordoned()
    };
    // On a busy machine it may have given the nodes back before it is killed.
    assert!((0..3).any(|_| dies()), "each drill was over before it was killed");
    clouds.end_in_another_account();
    assert!(cordoned(), "another cluster of that name is not taken for it");
    clouds.sandbox.expire_faults(NAME);
    eventually("the nodes are given back", || (!cordoned()).then_some(()));
    clouds.until_leads("primary");

    // While AWS is lost, another site can be changed; only its records are unknown.
    let up = ["up", "--site", "secondary", "--yes", "--no-gate", "--set", "server.api.max_tokens=2048", "-o", "json"];
    let mut alone = clouds.command(&up);
    let alone = said(alone.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").output().unwrap());
    let done = alone.json()["outcome"]["done"].to_string();
    assert!(done.contains("secondary/server/config") && done.contains("secondary/server/deployment"), "{alone:?}");
    assert!(alone.out.contains("secondary/gateway/record"), "what is not known is named: {alone:?}");

    removed(&clouds, &follower);
}

#[test]
fn two_clouds_share_a_record_set_of_cloud_dns_survive_the_loss_of_the_first_and_are_removed() {
    let Some(clouds) = Clouds::new(&TWO) else { return };
    let follower = clouds.follower();
    created(&clouds, &follower);
    drill(&clouds, &follower, "blackhole");
    removed(&clouds, &follower);
}
