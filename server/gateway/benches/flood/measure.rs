//! The cases, what is measured in each, and the report.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::attack::Attack;
use super::client::{Client, Outcome, VALID_KEY};
use super::{HOST, tls_config};

const WARM_UP: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_secs(8);
/// A program that is slow to accept the attacker's connections is measured with those that it has accepted.
const OPENING_TIMEOUT: Duration = Duration::from_secs(60);
/// Addresses of the attacker.
const ADDRESSES: [usize; 2] = [1, 12];
/// The measured client, which is none of them.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 200);
/// Clock ticks a second in `/proc`: 100 on each architecture of Linux that the product runs on.
const TICKS: f64 = 100.0;

#[derive(Debug, Default)]
pub(crate) struct Options {
    program: Option<String>,
    only: String,
    json: bool,
}

impl Options {
    pub(crate) fn read(words: &[&str]) -> Options {
        let mut options = Options::default();
        let mut left = words;
        while !left.is_empty() {
            left = match left {
                ["--json", rest @ ..] => {
                    options.json = true;
                    rest
                }
                ["--only", text, rest @ ..] => {
                    options.only = (*text).to_owned();
                    rest
                }
                ["--gateway", program, rest @ ..] => {
                    options.program = Some((*program).to_owned());
                    rest
                }
                _ => panic!("{left:?}: the options are --gateway \"PROGRAM ARGUMENTS…\", --only TEXT and --json"),
            };
        }
        options
    }
}

/// A process that ends with the benchmark.
struct Process(Child);

impl Process {
    fn start(program: &str, words: &[&str], output: Stdio) -> Process {
        Process(Command::new(program).args(words).stdout(output).spawn().unwrap())
    }

    /// The CPU time of all its threads so far, in seconds.
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The state, which is field 3, follows the program's name in parentheses. utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
        ticks.sum::<f64>() / TICKS
    }

    /// The most resident memory so far.
    fn peak_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let text = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the process has ended");
        text.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Attacker {
    process: Process,
    connections: u64,
    /// The counters that it printed last: connections that were tried, that are open, and what is done.
    counters: watch::Receiver<[u64; 3]>,
}

impl Attacker {
    fn start(bench: &Bench, attack: Attack, addresses: usize) -> Attacker {
        let (to, addresses) = (bench.to.to_string(), addresses.to_string());
        let words: [&str; 5] = ["attack", attack.name(), &to, &bench.certificate, &addresses];
        let mut process = Process::start(&bench.own, &words, Stdio::piped());
        let output = ChildStdout::from_std(process.0.stdout.take().unwrap()).unwrap();
        let (latest, counters) = watch::channel([0u64; 3]);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
                latest.send_replace(numbers.try_into().unwrap());
            }
        });
        Attacker { process, connections: attack.connections() as u64, counters }
    }

    /// Waits until each connection was tried once.
    async fn wait_until_up(&mut self) {
        let connections = self.connections;
        let up = self.counters.wait_for(|[tried, ..]| *tried >= connections);
        if !matches!(timeout(OPENING_TIMEOUT, up).await, Ok(Ok(_))) {
            eprintln!("  not all connections of the attacker were tried in {} s", OPENING_TIMEOUT.as_secs());
        }
    }
}

/// The state of the processes at one time.
struct Sample {
    at: Instant,
    gateway: f64,
    attacker: f64,
    open: u64,
    done: u64,
}

impl Sample {
    fn take(gateway: &Process, attacker: Option<&Attacker>) -> Sample {
        let [_, open, done] = attacker.map_or([0; 3], |attacker| *attacker.counters.borrow());
        Sample {
            at: Instant::now(),
            gateway: gateway.cpu_seconds(),
            attacker: attacker.map_or(0.0, |attacker| attacker.process.cpu_seconds()),
            open,
            done,
        }
    }
}

/// Times in milliseconds, of those that succeeded.
#[derive(Debug, Serialize)]
struct Times {
    count: usize,
    failed: usize,
    /// Why, and how often.
    failures: BTreeMap<String, usize>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl Times {
    fn of(outcomes: Vec<Outcome>) -> Times {
        let count = outcomes.len();
        let mut times: Vec<f64> = Vec::new();
        let mut failures: BTreeMap<String, usize> = BTreeMap::new();
        for outcome in outcomes {
            match outcome {
                Ok(time) => times.push(time.as_secs_f64() * 1000.0),
                Err(why) => *failures.entry(why).or_default() += 1,
            }
        }
        times.sort_by(f64::total_cmp);
        // The nearest rank.
        let at = |share: f64| times.get(((times.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
        let (p50_ms, p95_ms, p99_ms) = (at(0.5), at(0.95), at(0.99));
        Times { count, failed: count - times.len(), failures, p50_ms, p95_ms, p99_ms }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    hostile: String,
    addresses: usize,
    /// Connections of the attacker that were open at the end.
    open: u64,
    /// Tries of connections, handshakes or refused requests of the attacker.
    attacks_per_second: f64,
    attacker_cpu_ms_per_second: f64,
    requests: Times,
    /// The p95 of the requests, divided by that of the case without an attacker.
    p95_ratio: Option<f64>,
    new_connections: Times,
    gateway_cpu_ms_per_second: f64,
    gateway_peak_mb: f64,
}

struct Bench {
    /// Files of the gateway, removed at the end.
    _folder: TempDir,
    own: String,
    gateway: Vec<String>,
    certificate: String,
    to: SocketAddr,
    tls: TlsConnector,
    _backend: Process,
}

impl Bench {
    fn start(program: Option<&str>) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
        let (certificate, key, config) = (path("cert.pem"), path("key.pem"), path("gateway.yaml"));
        let certified = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        std::fs::write(&certificate, certified.cert.pem()).unwrap();
        std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
        let own = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
        let mut backend = Process::start(&own, &["backend"], Stdio::piped());
        let mut line = String::new();
        std::io::BufReader::new(backend.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let text = format!(
            "gateway:\n  listen: \"{to}\"\n  tls: {{ certificate_file: {certificate}, key_file: {key} }}\n  backends: [ {{ name: a, listen: \"{}\" }} ]\n",
            line.trim()
        );
        std::fs::write(&config, text).unwrap();
        let mut gateway: Vec<String> = match program {
            Some(program) => program.split_whitespace().map(str::to_owned).collect(),
            None => vec![own.clone(), "gateway".to_owned()],
        };
        gateway.push(config);
        let tls = TlsConnector::from(tls_config(&certificate, "http/1.1"));
        Bench { _folder: folder, own, gateway, certificate, to, tls, _backend: backend }
    }

    /// Measures one case with a new gateway.
    async fn measure(&self, attack: Option<(Attack, usize)>, name: &str, baseline: Option<f64>) -> Row {
        let addresses = attack.map_or(0, |(_, addresses)| addresses);
        eprintln!("{name}, {addresses} addresses");
        let words: Vec<&str> = self.gateway.iter().map(String::as_str).collect();
        let gateway = Process::start(words[0], &words[1..], Stdio::null());
        let client = Arc::new(Client::new(CLIENT, self.to, self.tls.clone(), VALID_KEY));
        client.wait_until_ready().await;
        let mut attacker = attack.map(|(attack, addresses)| Attacker::start(self, attack, addresses));
        if let Some(attacker) = &mut attacker {
            attacker.wait_until_up().await;
        }
        client.load(WARM_UP).await;
        let before = Sample::take(&gateway, attacker.as_ref());
        let (requests, connections) = client.load(PERIOD).await;
        let after = Sample::take(&gateway, attacker.as_ref());
        let seconds = (after.at - before.at).as_secs_f64();
        let (requests, connections) = (Times::of(requests), Times::of(connections));
        for (why, count) in requests.failures.iter().chain(&connections.failures) {
            eprintln!("  {count} failed: {why}");
        }
        let row = Row {
            hostile: name.to_owned(),
            addresses,
            open: after.open,
            attacks_per_second: (after.done - before.done) as f64 / seconds,
            attacker_cpu_ms_per_second: (after.attacker - before.attacker) * 1000.0 / seconds,
            p95_ratio: requests.p95_ms.zip(baseline).map(|(p95, baseline)| p95 / baseline),
            requests,
            new_connections: connections,
            gateway_cpu_ms_per_second: (after.gateway - before.gateway) * 1000.0 / seconds,
            gateway_peak_mb: gateway.peak_mb(),
        };
        // In this order: the attacker must not use the next gateway.
        drop(attacker);
        drop(gateway);
        row
    }
}

pub(crate) async fn run(options: &Options) {
    let bench = Bench::start(options.program.as_deref());
    let first = bench.measure(None, "none", None).await;
    let baseline = first.requests.p95_ms;
    let mut rows = vec![first];
    for attack in Attack::ALL {
        for addresses in ADDRESSES {
            if attack.name().contains(&options.only) {
                rows.push(bench.measure(Some((attack, addresses)), attack.name(), baseline).await);
            }
        }
    }
    rows.push(bench.measure(None, "none, again", baseline).await);
    if options.json {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let gateway = options.program.as_deref().unwrap_or("this build");
        let document = json!({ "gateway": gateway, "cores": cores, "seconds": PERIOD.as_secs(), "rows": rows });
        println!("{}", serde_json::to_string_pretty(&document).unwrap());
    } else {
        print(&rows);
    }
}

const HEADS: [&str; 16] = [
    "hostile client",
    "addresses",
    "open",
    "attacks/s",
    "attacker CPU ms/s",
    "requests",
    "failed",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "p95 ratio",
    "new connections",
    "failed",
    "p95 ms",
    "gateway CPU ms/s",
    "gateway peak MB",
];

impl Row {
    fn cells(&self) -> [String; 16] {
        let ms = |time: Option<f64>| time.map_or("–".to_owned(), |ms| format!("{ms:.2}"));
        let (requests, connections) = (&self.requests, &self.new_connections);
        [
            self.hostile.clone(),
            self.addresses.to_string(),
            self.open.to_string(),
            format!("{:.0}", self.attacks_per_second),
            format!("{:.0}", self.attacker_cpu_ms_per_second),
            requests.count.to_string(),
            requests.failed.to_string(),
            ms(requests.p50_ms),
            ms(requests.p95_ms),
            ms(requests.p99_ms),
            ms(self.p95_ratio),
            connections.count.to_string(),
            connections.failed.to_string(),
            ms(connections.p95_ms),
            format!("{:.0}", self.gateway_cpu_ms_per_second),
            format!("{:.0}", self.gateway_peak_mb),
        ]
    }
}

/// A table for a terminal, which is also one for Markdown.
fn print(rows: &[Row]) {
    let mut lines = vec![HEADS.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
            println!("|{}|", rules.join("|"));
        }
    }
}
