//! A site on a simulated AWS, as an operator meets it: the real program, real servers in the pods of a real control plane that stands in
//! for EKS, and AWS's own signatures as the tokens of the cluster.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../../../tests/cluster/operator.rs"]
#[allow(dead_code)]
mod operator;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use base64::Engine;
use serde_json::Value;
use textnlp_sim::aws::eks::Eks;
use textnlp_sim::{Options, Scope, Simulator};
use textnlp_tests::{Said, counts, said};

use operator::Operator;

const REGION: &str = "eu-central-1";
const ACCOUNT: &str = "123456789012";
const CLUSTER: &str = "textnlp-pilot-main";

/// An operator with an account of AWS that has nothing in it.
struct Account {
    operator: Operator,
    simulator: Arc<Mutex<Simulator>>,
    url: String,
}

impl Account {
    /// `None` where there is no control plane or no PostgreSQL.
    fn new(about: &str) -> Option<Self> {
        let mut operator = Operator::new(about)?;
        operator.sets.push("data=disposable".to_owned());
        // What is in the environment of the region is the account's, and the rest is as `--provider aws` has it.
        let simulator = Simulator::start(Options::zero_latency());
        let url = simulator.url();
        let endpoint = (operator.cluster.url().to_owned(), operator.cluster.ca_pem().to_owned());
        simulator.world().state::<Eks>(&Scope::new(ACCOUNT, REGION)).endpoint = Some(endpoint);
        let simulator = Arc::new(Mutex::new(simulator));
        let (known, sts) = (simulator.clone(), url.clone());
        operator.cluster.identify(move |token| {
            let arn = caller(&sts, token)?;
            let simulator = known.lock().unwrap();
            let world = simulator.world();
            let cluster = world.find::<Eks>(&Scope::new(ACCOUNT, REGION))?.clusters.get(CLUSTER)?;
            let entry = cluster.entries.get(&arn)?;
            let is_admin = entry.policies.keys().any(|policy| policy.ends_with("/AmazonEKSClusterAdminPolicy"));
            is_admin.then(|| (arn, vec!["system:masters".to_owned()]))
        });
        Some(Self { operator, simulator, url })
    }

    fn run(&self, args: &[&str], more: &[&str]) -> Said {
        let all = [args, &["--provider", "aws"]].concat();
        let mut command = self.operator.command(&all, more);
        command
            .env_remove("KUBECONFIG")
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", Simulator::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", Simulator::SECRET_KEY)
            .env("AWS_EC2_METADATA_DISABLED", "true");
        said(command.output().unwrap())
    }

    /// The ARNs of what carries a lineage, without keys that are about to be deleted.
    fn left(&self) -> Vec<String> {
        let simulator = self.simulator.lock().unwrap();
        let world = simulator.world();
        let now = world.now();
        let all = world.tags.listed("arn:", now);
        let ours = all.filter(|(arn, tags)| tags.contains_key("textnlp-lineage") && !arn.contains(":key/"));
        ours.map(|(arn, _)| arn.to_owned()).collect()
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

/// Who a token of EKS is of, as its authenticator asks STS: the token is a presigned URL.
fn caller(sts: &str, token: &str) -> Option<String> {
    let encoded = token.strip_prefix("k8s-aws-v1.")?;
    let signed = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let signed = String::from_utf8(signed).ok()?;
    let (host, target) = signed.strip_prefix("https://")?.split_once('/')?;
    let mut stream = TcpStream::connect(sts.strip_prefix("http://")?).ok()?;
    let request =
        format!("GET /{target} HTTP/1.1\r\nhost: {host}\r\nx-k8s-aws-id: {CLUSTER}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let arn = answer.split_once("<Arn>")?.1.split_once("</Arn>")?.0;
    answer.starts_with("HTTP/1.1 200").then(|| arn.to_owned())
}

#[test]
fn a_site_is_made_in_an_empty_account_answers_and_is_removed_with_everything() {
    let Some(account) = Account::new("aws") else { return };
    let plan = account.run(&["plan", "-o", "json"], &[]).expect(0).json();
    eprintln!("plan: {:?}, {}", counts(&plan), plan["cost"]["note"]);
    let services: Vec<&str> =
        plan["cost"]["services"].as_array().unwrap().iter().filter_map(|one| one["service"].as_str()).collect();
    assert!(services.contains(&"EKS") && services.contains(&"EC2"), "{:#}", plan["cost"]);

    let policy = account.run(&["plan", "--policy"], &[]);
    let text = policy.out.clone();
    for action in ["eks:CreateCluster", "ec2:CreateVpc", "iam:CreateRole"] {
        assert!(text.contains(action), "{action}: {policy:?}");
    }

    let began = std::time::Instant::now();
    let up = account.run(&["up", "--yes", "--no-gate", "-o", "json"], &[]).expect(0).json();
    eprintln!("up: {:?} in {} s, {:?}", counts(&up), up["seconds"], began.elapsed());
    eprintln!("{:?}", account.requests());
    let again = account.run(&["up", "--yes", "--no-gate", "-o", "json"], &[]).expect(0).json();
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {:#}", again["plan"]);
    let status = account.run(&["status", "-o", "json"], &[]).expect(0).json();
    let drift = status["drift"].as_array().map(Vec::len);
    assert_eq!((status["ready"].as_bool(), drift), (Some(true), Some(0)), "{status:#}");
    let text = account.run(&["generate", "Once upon a time"], &[]);
    assert!(text.exit == 0 && !text.out.trim().is_empty(), "{text:?}");
    let key = account.run(&["key", "create", "somebody", "-o", "json"], &[]).expect(0).json();
    assert!(key["public_id"].is_string(), "a job runs in the cluster: {key}");

    let down: Value = account.run(&["down", "--yes", "-o", "json"], &[]).expect(0).json();
    eprintln!("down: {}", down["plan"]);
    assert_eq!(account.left(), Vec::<String>::new());
}
