//! How fast bundles are made, verified and unpacked, beside what the disk, the processor and stock tools do in the same run.
//!
//! `cargo run --release -p textnlp-bundle --example throughput -- [FOLDER] [MEGABYTES] [ROUNDS]`
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};
use textnlp_bundle::*;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = Utf8PathBuf::from(arguments.next().unwrap_or_else(|| "/tmp".into())).join("bundle-throughput");
    let megabytes: u64 = arguments.next().map_or(4096, |text| text.parse().unwrap());
    let rounds: usize = arguments.next().map_or(3, |text| text.parse().unwrap());
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let weights = folder.join("model.safetensors");
    weights_of(&weights, megabytes);
    let bytes = std::fs::metadata(&weights).unwrap().len();
    let rate = |seconds: f64| bytes as f64 / 1e6 / seconds;
    println!(
        "{megabytes} MiB of incompressible weights, {rounds} rounds, MB/s; the roof is min(disk write, SHA-256 on two cores), the disk as dd \
         writes to it over the page cache or past it, whichever is faster"
    );
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>7} {:>12} {:>8} {:>7} {:>9}",
        "cached",
        "direct",
        "sha256x2",
        "create",
        "/roof",
        "verify",
        "/roof",
        "tar+sums s",
        "unpack s",
        "ratio",
        "again s"
    );
    for _ in 0..rounds {
        let [cached, direct] = [false, true].map(|direct| {
            let seconds = time(|| copy_to_disk(&weights, &folder.join("copy"), direct));
            std::fs::remove_file(folder.join("copy")).unwrap();
            rate(seconds)
        });
        let sha = rate(time(|| hash_on_two(&weights)));
        let roof = cached.max(direct).min(sha);
        let inputs = Inputs {
            version: "1".into(),
            epoch: 1,
            items: Vec::new(),
            files: vec![Input {
                path: "models/m/model.safetensors".into(),
                executable: false,
                content: Content::File(weights.clone()),
            }],
            ..Inputs::default()
        };
        let out = folder.join("b.tar");
        let create = rate(time(|| drop(pack(&inputs, &out, &PackOptions::default()).unwrap())));
        let whole = |report: Verified| assert!(report.is_whole());
        let verify = rate(time(|| whole(Bundle::open(&out).unwrap().verify(&VerifyOptions::default()).unwrap())));
        let plain = folder.join("plain");
        std::fs::create_dir(&plain).unwrap();
        let stock = time(|| {
            run(Command::new("tar").arg("xf").arg(&out).current_dir(&plain));
            run(Command::new("sha256sum").args(["--quiet", "-c", "SHA256SUMS"]).current_dir(&plain));
        });
        std::fs::remove_dir_all(&plain).unwrap();
        let site = Site::new(&folder.join("site"));
        let options = UnpackOptions {
            authenticity: Authenticity::Unverified { why: "bench".into() },
            deep: false,
            drive: Drive::default(),
        };
        let install = || drop(site.unpack(&mut Bundle::open(&out).unwrap(), &options).unwrap());
        let unpack = time(install);
        let again = time(install);
        std::fs::remove_dir_all(site.root()).unwrap();
        println!(
            "{cached:8.0} {direct:8.0} {sha:8.0} {create:8.0} {:7.2} {verify:8.0} {:7.2} {stock:12.2} {unpack:8.2} {:7.2} {again:9.3}",
            create / roof,
            verify / roof,
            unpack / stock
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("peak memory: {}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    std::fs::remove_dir_all(&folder).unwrap();
}

fn time(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// What `dd bs=4M conv=fdatasync` does, with `oflag=direct` where the file system takes that.
fn copy_to_disk(from: &Utf8Path, to: &Utf8Path, direct: bool) {
    let mut dd = Command::new("dd");
    dd.arg(format!("if={from}")).arg(format!("of={to}")).args(["bs=4M", "conv=fdatasync"]);
    if direct {
        dd.arg("oflag=direct");
    }
    run(&mut dd);
}

/// Two processes, each with half of the file: what the processor gives when it does nothing but hash.
fn hash_on_two(path: &Utf8Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    std::thread::scope(|scope| {
        for half in 0..2 {
            let file = &file;
            scope.spawn(move || {
                let mut buffer = vec![0; 4 << 20];
                let (mut at, end) = (half * length / 2, (half + 1) * length / 2);
                let mut hasher = Sha256::new();
                while at < end {
                    let n = (end - at).min(buffer.len() as u64) as usize;
                    file.read_exact_at(&mut buffer[..n], at).unwrap();
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                }
                std::hint::black_box(hasher.finalize());
            });
        }
    });
}

/// A hundred tensors of noise.
fn weights_of(path: &Utf8Path, megabytes: u64) {
    let length = (megabytes << 20) / 100;
    let tensor = |n: u64| {
        format!(r#""t{n}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{},{}]}}"#, n * length, (n + 1) * length)
    };
    let header = format!("{{{}}}", (0..100).map(tensor).collect::<Vec<_>>().join(","));
    let mut file = std::io::BufWriter::with_capacity(4 << 20, std::fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..(100 * length).div_ceil(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.into_inner().unwrap().set_len(8 + header.len() as u64 + 100 * length).unwrap();
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
}
