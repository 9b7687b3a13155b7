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
        "{megabytes} MiB of incompressible weights, {rounds} rounds. Rates in MB/s, more is better. `dd` writes over the page cache and past \
         it, and reads past it; `roof` is the lesser of the faster write and SHA-256 on two cores. `create` hashes by chunks what is recorded, \
         `first` takes the file's digest too; `verify` reads a bundle that is not in memory, `whole` takes the files' digests too."
    );
    println!(
        "{:>7} {:>7} {:>7} {:>8} {:>7} | {:>7} {:>6} {:>7} {:>6} | {:>7} {:>6} {:>6} {:>7} {:>6} | {:>10} {:>9} {:>10} {:>8}",
        "cached",
        "direct",
        "read",
        "sha256x2",
        "roof",
        "create",
        "/roof",
        "first",
        "/roof",
        "verify",
        "/roof",
        "/read",
        "whole",
        "/roof",
        "tar+sums s",
        "unpack s",
        "time/time",
        "again s"
    );
    for _ in 0..rounds {
        let [cached, direct] = [false, true].map(|direct| {
            let seconds = time(|| copy_to_disk(&weights, &folder.join("copy"), direct));
            if !direct {
                std::fs::remove_file(folder.join("copy")).unwrap();
            }
            rate(seconds)
        });
        let read = rate(time(|| read_from_disk(&folder.join("copy"))));
        std::fs::remove_file(folder.join("copy")).unwrap();
        let sha = rate(time(|| hash_on_two(&weights)));
        let roof = cached.max(direct).min(sha);
        let path = "models/m/model.safetensors";
        let content = Content::File(weights.clone());
        let mut inputs = Inputs {
            version: "1".into(),
            epoch: 1,
            files: vec![Input { path: path.into(), executable: false, content }],
            ..Inputs::default()
        };
        let out = folder.join("b.tar");
        let mut made = None;
        let first = rate(time(|| made = Some(pack(&inputs, &out, &PackOptions::default()).unwrap())));
        let file = made.unwrap().manifest.files.remove(0);
        inputs.promised.insert(path.into(), file.digest);
        inputs.recorded.insert(path.into(), file.chunks);
        std::fs::remove_file(&out).unwrap();
        let create = rate(time(|| drop(pack(&inputs, &out, &PackOptions::default()).unwrap())));
        let [verify, whole] = [false, true].map(|whole_files| {
            forget(&out);
            let options = VerifyOptions { whole_files, ..VerifyOptions::default() };
            rate(time(|| assert!(Bundle::open(&out).unwrap().verify(&options).unwrap().is_whole())))
        });
        let plain = folder.join("plain");
        std::fs::create_dir(&plain).unwrap();
        forget(&out);
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
        forget(&out);
        let unpack = time(install);
        let again = time(install);
        std::fs::remove_dir_all(site.root()).unwrap();
        println!(
            "{cached:7.0} {direct:7.0} {read:7.0} {sha:8.0} {roof:7.0} | {create:7.0} {:6.2} {first:7.0} {:6.2} | {verify:7.0} {:6.2} {:6.2} \
             {whole:7.0} {:6.2} | {stock:10.2} {unpack:9.2} {:10.2} {again:8.3}",
            create / roof,
            first / roof,
            verify / roof,
            verify / read.min(sha),
            whole / roof,
            unpack / stock
        );
    }
    println!(
        "time/time: what unpacking takes of the time that `tar x` and `sha256sum -c` take together; 1.00 or less is wanted"
    );
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

/// What `dd bs=4M iflag=direct` does.
fn read_from_disk(from: &Utf8Path) {
    run(Command::new("dd").arg(format!("if={from}")).args(["of=/dev/null", "bs=4M", "iflag=direct"]));
}

/// Takes a file out of the page cache.
fn forget(path: &Utf8Path) {
    run(Command::new("dd").arg(format!("if={path}")).args(["iflag=nocache", "count=0"]));
}

/// Two threads, each with half of the file: what the processor gives when it does nothing but hash.
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
    let file = file.into_inner().unwrap();
    file.set_len(8 + header.len() as u64 + 100 * length).unwrap();
    // Nothing of it is still on its way to the disk when the first round begins.
    file.sync_all().unwrap();
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
}
