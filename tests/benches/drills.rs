//! What losing a site costs: each fault several times on three local sites, and the worst of them as a row of `docs/guide/measured.md`.
//!
//! `cargo build --release --locked --bins && cargo bench --locked --workspace --bench drills -- [--times 5] [--database sqlite|postgres] [--faults kill,freeze]`
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/regions/place.rs"]
#[allow(dead_code, reason = "the stories use all of it")]
mod place;

use place::{NAME, Regions};
use serde_json::Value;
use textnlp_tests::eventually;

/// A fault as `dr drill` takes it, and how the table calls it.
const FAULTS: [(&str, &[&str], &str); 6] = [
    ("lose-data", &["--fault", "kill", "--lose-data", "--live", NAME], "kill, its data lost too"),
    ("kill", &["--fault", "kill"], "kill"),
    ("freeze", &["--fault", "freeze"], "freeze"),
    ("blackhole", &["--fault", "blackhole"], "blackhole"),
    ("secondary", &["--fault", "kill", "--site", "secondary"], "kill of the secondary"),
    // The last one: it needs filesystems that are mounted while nothing runs, and then no data can be lost any more.
    ("disk_full", &["--fault", "disk_full"], "disk full (filesystems of its own)"),
];

fn main() {
    let mut times = 5u32;
    let mut database = "sqlite".to_owned();
    let mut faults: Vec<String> = FAULTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage(&format!("{word} lacks its value")));
        match word.as_str() {
            // What cargo passes on.
            "--bench" => {}
            "--times" => {
                times =
                    value().parse().ok().filter(|n| (1..=100).contains(n)).unwrap_or_else(|| usage("1 to 100 times"))
            }
            "--database" => database = value(),
            "--faults" => faults = value().split(',').map(str::to_owned).collect(),
            other => usage(&format!("`{other}` is nothing that is known here")),
        }
    }
    if !["sqlite", "postgres"].contains(&database.as_str()) {
        usage("the database is sqlite or postgres");
    }
    if let Some(strange) = faults.iter().find(|name| FAULTS.iter().all(|(known, ..)| known != name)) {
        usage(&format!("`{strange}` is no fault: {}", FAULTS.map(|(name, ..)| name).join(", ")));
    }
    let mut regions = Regions::with("bench", "", &format!("database: {{ kind: {database} }}\n"));
    up(&regions);
    println!("worst of {times}, {database}\n");
    println!(
        "| fault at the primary | service back after | writes taken after | requests failed until the shift, after it | usage missing from | answers without usage | lost | a drill |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, arguments, words) in FAULTS {
        if !faults.iter().any(|wanted| wanted == name) {
            continue;
        }
        if name == "disk_full" {
            regions.run(&["down", "--yes"]).expect(0);
            if !regions.mount_data("primary") {
                eprintln!("LEFT OUT: only root can give a site a filesystem of its own");
                continue;
            }
            up(&regions);
        }
        let reports: Vec<Value> = (0..times).map(|_| drill(&regions, arguments)).collect();
        println!("{}", row(words, &reports));
    }
    regions.run(&["down", "--yes"]).expect(0);
    regions.unmount();
    regions.run(&["down", "--yes", "--delete-data", NAME]).expect(0);
}

fn usage(why: &str) -> ! {
    eprintln!("{why}\nusage: drills [--times 5] [--database sqlite|postgres] [--faults lose-data,kill,freeze,…]");
    std::process::exit(2)
}

fn up(regions: &Regions) {
    regions.run(&["up", "--yes", "--no-gate"]).expect(0);
    until_well(regions);
}

fn until_well(regions: &Regions) {
    eventually("nothing is left to act on", || {
        let status = regions.json_any(&["dr", "status"]);
        (status["primary"] == "primary" && status["ready"] == true).then_some(())
    });
}

/// One drill, from a service that is well. A target that was missed is a figure like any other.
fn drill(regions: &Regions, arguments: &[&str]) -> Value {
    let said = regions.run(&[&["dr", "drill", "-o", "json"], arguments].concat());
    assert!([0, 3].contains(&said.exit), "{}\n{}", said.out, said.err);
    until_well(regions);
    said.json()
}

fn row(words: &str, reports: &[Value]) -> String {
    let worst = |pointer: &str| -> Option<f64> {
        // What did not come back at all is worse than any figure.
        let all: Option<Vec<f64>> = reports.iter().map(|report| report.pointer(pointer)?.as_f64()).collect();
        all?.into_iter().reduce(f64::max)
    };
    let seconds = |ms: Option<f64>| ms.map_or("never".to_owned(), |ms| format!("{:.2} s", ms / 1000.0));
    let number = |pointer: &str| worst(pointer).map_or("?".to_owned(), |n| format!("{n:.0}"));
    format!(
        "| {words} | {} | {} | {}, {} | {} | {} | {} | {} |",
        seconds(worst("/figures/service_rto_ms")),
        seconds(worst("/figures/control_rto_ms")),
        number("/figures/failed/during"),
        number("/figures/failed/after_shift"),
        seconds(worst("/figures/rpo_ms")),
        number("/unaccounted"),
        number("/lost"),
        seconds(worst("/seconds").map(|s| s * 1000.0)),
    )
}
