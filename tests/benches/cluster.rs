//! What a site in a cluster costs, beside the tools that people know, on one real control plane in one run: the same objects by `up`, by kubectl
//! and by Helm, whose files are exported from the same environment.
//!
//! `cargo build --release --locked --bins && cargo bench --locked --workspace --bench cluster -- [--times 5]`
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/cluster/operator.rs"]
#[allow(dead_code, reason = "the stories use all of it")]
mod operator;

use std::time::Instant;

use camino::Utf8Path;
use operator::Operator;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|one| one == "--times");
    let times: usize = at.and_then(|at| arguments.get(at + 1)).map_or(5, |text| text.parse().unwrap());
    let (Some(ours), Some(theirs), Some(charted)) =
        (Operator::new("ours"), Operator::new("kubectl"), Operator::new("helm"))
    else {
        return;
    };
    let Some(_) = ours.cluster.helm() else { return };

    // From nothing to pods that are ready, each with a namespace and a database of its own.
    let by_up = timed(|| {
        let out = ours.run(&["up", "--yes", "--no-gate", "-o", "jsonl"], &[]).expect(0).out;
        if arguments.iter().any(|one| one == "--events") {
            println!("{out}");
        }
    });
    let (files, _) = theirs.chart();
    let stream = theirs.sandbox.folder().join("textnlp.yaml");
    theirs.run(&["export", "yaml", "--out", stream.as_str()], &[]).expect(0);
    let head = std::fs::read_to_string(&stream).unwrap();
    let commands = head.lines().filter_map(|line| line.strip_prefix("#   ")?.strip_prefix("kubectl "));
    let made = commands.filter(|command| command.contains("create "));
    let by_kubectl = timed(|| {
        for command in made {
            // Names of files are those of the folder that they were made in.
            let of = |word: &str| match word.strip_prefix("--from-file=") {
                Some(file) => format!("--from-file={file}={}", files.join(file)),
                None => word.to_owned(),
            };
            let words: Vec<String> = command.split(' ').map(of).collect();
            kubectl(&theirs, &words.iter().map(String::as_str).collect::<Vec<_>>());
        }
        kubectl(&theirs, &["apply", "--server-side", "-f", stream.as_str()]);
        kubectl(&theirs, &["rollout", "status", "deployment/textnlp-api", "-n", &theirs.namespace, "--timeout=5m"]);
    });
    let (files, sets) = charted.chart();
    let chart = charted.sandbox.folder().join("chart");
    let mut upgrade = vec!["upgrade", "--install", "textnlp", chart.as_str(), "--namespace", &charted.namespace];
    upgrade.extend(sets.iter().map(String::as_str));
    kubectl(&charted, &["create", "namespace", &charted.namespace]);
    let waited = [upgrade.as_slice(), &["--wait", "--timeout", "5m"]].concat();
    let by_helm = timed(|| helm(&charted, &files, &waited));

    // Nothing has changed.
    let planned = median(times, || drop(ours.run(&["plan", "-o", "json"], &[]).expect(0)));
    let again = median(times, || drop(ours.up(&[])));
    let applied = median(times, || kubectl(&theirs, &["apply", "--server-side", "-f", stream.as_str()]));
    let upgraded = median(times, || helm(&charted, &files, &upgrade));
    println!(
        "| | textnlp-deploy | kubectl apply --server-side | helm upgrade --install | ratio to kubectl | to Helm |"
    );
    println!("|---|---|---|---|---|---|");
    for (what, ours, kubectl, helm) in
        [("first apply to ready", by_up, by_kubectl, by_helm), ("again, nothing changed", again, applied, upgraded)]
    {
        println!(
            "| {what} | {ours:.2} s | {kubectl:.2} s | {helm:.2} s | {:.2} | {:.2} |",
            ours / kubectl,
            ours / helm
        );
    }
    println!("| plan, nothing changed | {planned:.2} s | | | | |");
    ours.run(&["down", "--yes"], &[]).expect(0);
}

fn kubectl(operator: &Operator, arguments: &[&str]) {
    let out = operator.cluster.kubectl(arguments);
    assert!(out.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn helm(operator: &Operator, files: &Utf8Path, arguments: &[&str]) {
    let mut helm = operator.cluster.helm().unwrap();
    let out = helm.current_dir(files).args(arguments).output().unwrap();
    assert!(out.status.success(), "helm {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn timed(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

fn median(times: usize, work: impl Fn()) -> f64 {
    let mut all: Vec<f64> = (0..times).map(|_| timed(&work)).collect();
    all.sort_unstable_by(f64::total_cmp);
    all[times / 2]
}
