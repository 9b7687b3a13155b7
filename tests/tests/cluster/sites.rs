//! Two clusters that take over from one another: a region is lost, rehearsed and for good, and comes back.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_tests::ports::Ports;
use textnlp_tests::{Said, Sandbox, counts, eventually, print_drill, said};

use super::operator::{PROGRAM, pinned, postgres, program_for_pods};

const NAME: &str = "clusters";

/// An operator with two clusters and a database that both reach.
struct Sites {
    clusters: [&'static Cluster; 2],
    sandbox: Sandbox,
    namespace: String,
    url: String,
    _ports: Ports,
}

impl Sites {
    /// `None` where there are no control planes or no PostgreSQL.
    fn new() -> Option<Self> {
        let clusters = [Cluster::shared()?, Cluster::second()?];
        let database = postgres::shared()?;
        let (sandbox, ports) = (Sandbox::new("sites"), Ports::ask(1));
        let namespace = clusters[0].namespace_name("sites");
        let site = |name: &str, role: &str, region: &str, cluster: &Cluster| {
            cluster.kubelet().put_program(PROGRAM, program_for_pods());
            let address = cluster.kubelet().forward(&namespace, "textnlp-api", sandbox.port);
            format!(
                "  - name: {name}\n    role: {role}\n    provider: kubernetes\n    runtime: kubernetes\n    region: {region}\n    \
                 cluster: {{ kubeconfig: {}, image: \"{}\", address: \"https://{address}\" }}\n",
                cluster.admin(),
                pinned("local/textnlp:1"),
            )
        };
        // Root names the user of an environment with production users.
        let user = if rustix::process::geteuid().is_root() { "prerequisites: { user: root }\n" } else { "" };
        let text = format!(
            "extends: base\nenvironment: {NAME}\nphase: multi-region\nsites:\n{}{}\
             database: {{ kind: postgres, url: \"secret:env:DATABASE_URL\" }}\ncache: {{ kind: memory }}\n\
             traffic: {{ mode: gateway, port: {}, metrics_port: {}, weights: {{ aws-primary: 100, gcp-secondary: 0 }} }}\n\
             replication: {{ database: {{ mode: streaming, max_lag: 5s }} }}\n\
             dr: {{ mode: automatic, witness: {{ provider: onprem, region: local }}, rpo: 5m, rto: 15m, failback: automatic, drill: live }}\n\
             scaling: {{ min: 2 }}\ncluster: {{ namespace: {namespace} }}\nbackup: {{ enabled: false }}\n{user}",
            site("aws-primary", "primary", "us-east-1", clusters[0]),
            site("gcp-secondary", "secondary", "europe-west4", clusters[1]),
            sandbox.port,
            ports.numbers()[0],
        );
        std::fs::create_dir_all(sandbox.folder().join("environments")).unwrap();
        std::fs::write(sandbox.folder().join(format!("environments/{NAME}.yaml")), text).unwrap();
        let url = database.url(&database.database());
        Some(Self { clusters, sandbox, namespace, url, _ports: ports })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(&[args, &["--env", NAME]].concat());
        command.env("DATABASE_URL", &self.url);
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    #[track_caller]
    fn json(&self, args: &[&str], exit: i32) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect(exit).json()
    }

    fn status(&self) -> Value {
        self.run(&["dr", "status", "-o", "json"]).json()
    }

    fn until_in_sync(&self) {
        eventually("every site is in sync", || {
            let status = self.status();
            let sites = status["sites"].as_array()?;
            (sites.len() == 2 && sites.iter().all(|site| site["in_sync"] == true)).then_some(())
        });
    }

    /// The region that a client is answered from: `/health` says it.
    fn region(&self) -> Option<String> {
        let authority = self.sandbox.state(NAME).join("sites/witness/certs/ca.pem");
        let url = format!("https://127.0.0.1:{}/health", self.sandbox.port);
        let output =
            Command::new("curl").args(["-s", "--max-time", "5", "--cacert", authority.as_str(), &url]).output();
        let answer: Value = serde_json::from_slice(&output.unwrap().stdout).ok()?;
        Some(answer["region"].as_str()?.to_owned())
    }

    fn cordoned(&self, cluster: &Cluster) -> Vec<String> {
        let nodes = cluster.kubectl(&["get", "nodes", "-o", "json"]);
        let nodes: Value = serde_json::from_slice(&nodes.stdout).unwrap();
        let nodes = nodes["items"].as_array().unwrap().iter().filter(|node| node["spec"]["unschedulable"] == true);
        nodes.map(|node| node["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).spawn().unwrap()
    }
}

#[test]
fn lost_cluster_is_failed_over_and_fails_back() {
    let Some(sites) = Sites::new() else { return };
    let home = sites.clusters[0];
    let done = sites.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    sites.until_in_sync();
    let again = sites.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    assert_eq!(sites.region().as_deref(), Some("us-east-1"));

    // What cannot be done to somebody's machines is not tried.
    for more in [&["--fault", "freeze"][..], &["--fault", "disk_full"], &["--fault", "kill", "--lose-data"]] {
        let refused = sites.run(&[&["dr", "drill", "--live", NAME], more].concat()).expect(4);
        assert!(refused.err.contains("does not run on this machine"), "{}", refused.err);
    }
    // Nor by somebody who may not: the rules are said.
    let may_look = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": { "name": "looks", "namespace": sites.namespace },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "looker" }],
    });
    home.feed(&["apply"], &may_look);
    let looker = format!("sites[0].cluster.kubeconfig={}", home.kubeconfig("looker", &[]));
    let refused = sites.run(&["dr", "drill", "--set", &looker]).expect(4);
    assert!(refused.err.contains("kind: ClusterRole") && refused.err.contains("- nodes"), "{}", refused.err);
    assert!(sites.cordoned(home).is_empty(), "nothing was begun");
    home.kubectl(&["delete", "rolebinding", "looks", "-n", &sites.namespace]);

    let mut drill = sites.start(&["dr", "drill", "-o", "json"]);
    eventually("its node takes no pods", || {
        let ended = drill.try_wait().unwrap();
        assert!(ended.is_none(), "the drill is over before it began: {ended:?}");
        (!sites.cordoned(home).is_empty()).then_some(())
    });
    // R13: whoever asks is answered from the other region, long before 30 s are over.
    eventually("the other region answers", || (sites.region().as_deref() == Some("europe-west4")).then_some(()));
    assert_eq!(sites.cordoned(sites.clusters[1]), Vec::<String>::new());
    let report = said(drill.wait_with_output().unwrap()).expect(0).json();
    shows(&report);
    assert_eq!(sites.cordoned(home), Vec::<String>::new());
    eventually("it is home again", || (sites.region().as_deref() == Some("us-east-1")).then_some(()));

    let cut = sites.json(&["dr", "drill", "--fault", "blackhole"], 0);
    shows(&cut);

    // A drill that dies leaves nothing: what keeps the witness gives the nodes back when the time is over.
    let dies = || {
        let leads = |site: &str| (sites.status()["primary"] == site).then_some(());
        eventually("it is home again", || leads("aws-primary"));
        let mut dying = sites.start(&["dr", "drill", "--ttl", "10m"]);
        eventually("another site leads", || leads("gcp-secondary"));
        dying.kill().unwrap();
        dying.wait().unwrap();
        !sites.cordoned(home).is_empty()
    };
    // On a busy machine it may have given the nodes back before it is killed.
    assert!((0..3).any(|_| dies()), "each drill was over before it was killed");
    let refused = sites.run(&["down", "--yes"]).expect(4);
    assert!(refused.err.contains("it still needs the witness"), "{}", refused.err);
    // Where the service is led now.
    sites.json(&["key", "create", "meanwhile"], 0);
    sites.sandbox.expire_faults(NAME);
    eventually("the nodes are given back", || sites.cordoned(home).is_empty().then_some(()));
    eventually("it is home again", || (sites.status()["primary"] == "aws-primary").then_some(()));
    sites.until_in_sync();
    let faults = sites.sandbox.state(NAME).join("sites/witness/faults");
    assert_eq!(faults.read_dir_utf8().unwrap().count(), 0, "nothing is left of it");
    // The next one finishes the one that died.
    let report = sites.json(&["dr", "drill", "--site", "gcp-secondary"], 0);
    shows(&report);
    let again = sites.json(&["up", "--yes", "--no-gate"], 0);
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "all is as it was: {again:#}");

    sites.json(&["down", "--yes"], 0);
    for cluster in sites.clusters {
        assert!(!cluster.kubectl(&["get", "namespace", &sites.namespace]).status.success(), "the namespace was ours");
    }
}

/// Prints the measurements of a drill, and checks what a drill promises.
#[track_caller]
fn shows(report: &Value) {
    print_drill(report);
    assert_eq!((&report["lost"], &report["leftovers"]), (&json!(0), &json!([])), "{report:#}");
    assert_eq!(report["missed"], json!([]), "{report:#}");
    // R14: the primary works with a database that is not in recovery.
    assert_eq!(report["figures"]["database"], "primary", "{report:#}");
}
