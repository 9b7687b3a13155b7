//! The benchmark: this engine and its peers on the same file, in one run, in alternating rounds.
//!
//! `textnlp-bench MODEL.gguf --threads 2`; with `--features peer` stock candle-transformers runs too. `bench/make_gguf.py` creates
//! a model. `--gpu 0` measures it, or a folder from `bench/make_safetensors.py`, on a GPU. Every decode result is printed with
//! the share of the read bandwidth that it reaches, measured in the same minute.
#![allow(clippy::print_stdout)]

mod ours;
#[cfg(feature = "peer")]
mod peer;
mod roof;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure the speed of the engine on this machine, next to its peers
#[derive(Parser)]
struct Args {
    /// A GGUF file (of the Llama architecture when a peer runs too), or a model folder.
    model: PathBuf,
    /// The same model in another file, or in other bits: it runs in the same rounds, and ratios are printed.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Compute threads of each engine.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Generated tokens.
    #[arg(long, default_value_t = 128)]
    generate: usize,
    /// Measured rounds, after one warm-up round.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Number of sequences of the batched decode.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Weights as `f32`, `f16` or `q8_0`; if unset, as in the file. Only for this engine.
    #[arg(long)]
    quantize: Option<textnlp_inference::cpu::Quant>,
    /// Compute on the GPU of this number; a folder is of the Llama architecture in bf16.
    #[arg(long)]
    gpu: Option<usize>,
    /// Lowest speed relative to the peer, in decode and in prefill; fail below it.
    #[arg(long)]
    floor: Option<f64>,
}

/// Tokens per second of one round.
#[derive(Clone, Copy)]
struct Round {
    prefill: f64,
    decode: f64,
}

/// The rounds of one engine.
#[derive(Default)]
struct Rounds(Vec<Round>);

impl Rounds {
    fn median(&self, of: fn(&Round) -> f64) -> f64 {
        let sorted = self.sorted(of);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self, of: fn(&Round) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn print(&self, name: &str) {
        for (what, of) in KINDS {
            let sorted = self.sorted(of);
            let (first, last) = (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0));
            println!("{name:<8} {what:<8} tok/s  min {first:9.1}  median {:9.1}  max {last:9.1}", self.median(of));
        }
    }
}

type Of = fn(&Round) -> f64;
const KINDS: [(&str, Of); 2] = [("prefill", |r| r.prefill), ("decode", |r| r.decode)];

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    #[cfg(feature = "peer")]
    // SAFETY: no other thread runs yet. The peer reads these when its pools start.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", args.threads.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", args.threads.to_string());
    }
    let mut ours = ours::Engine::load(args, &args.model)?;
    let mut other = args.against.as_ref().map(|model| ours::Engine::load(args, model)).transpose()?;
    #[cfg(feature = "peer")]
    let mut peer = peer::Engine::load(args)?;

    let bytes_read = ours.bytes_per_token();
    let roof = bandwidth(args, bytes_read)?;
    println!("bandwidth of the memory for {:.0} MB, what a token reads: {roof:.1} GB/s", bytes_read as f64 / 1e6);
    let (mut of_ours, mut of_batch) = (Rounds::default(), Vec::new());
    let (mut of_other, mut of_other_batch) = (Rounds::default(), Vec::new());
    #[cfg(feature = "peer")]
    let mut of_peer = Rounds::default();
    for round in 0..=args.rounds {
        #[cfg(feature = "peer")]
        let peer_measurements = peer.round(args)?;
        let measured = ours.round(args)?;
        let batch = if args.batch > 1 { ours.batch(args)? } else { f64::NAN };
        let of_other_round = other.as_mut().map(|other| (other.round(args), other.batch(args)));
        // The first warms up.
        if round > 0 {
            of_ours.0.push(measured);
            of_batch.push(batch);
            if let Some((measured, batch)) = of_other_round {
                of_other.0.push(measured?);
                of_other_batch.push(batch?);
            }
            #[cfg(feature = "peer")]
            of_peer.0.push(peer_measurements);
        }
    }

    of_ours.print("ours");
    let again = bandwidth(args, bytes_read)?;
    let used = of_ours.median(|r| r.decode) * bytes_read as f64 / 1e9;
    println!(
        "ours     decode reads {used:.1} GB/s of weights, {:.0} % of the bandwidth ({roof:.1} before, {again:.1} after)",
        100.0 * used / ((roof + again) / 2.0)
    );
    if args.batch > 1 {
        of_batch.sort_by(f64::total_cmp);
        println!("ours     decode of {} sequences  tok/s  median {:9.1}", args.batch, of_batch[of_batch.len() / 2]);
    }
    println!("ours     loaded in {:.3} s", ours.load_seconds());
    if let Some(other) = &other {
        of_other.print("other");
        of_other_batch.sort_by(f64::total_cmp);
        let batches = of_batch[of_batch.len() / 2] / of_other_batch[of_other_batch.len() / 2];
        let bytes = |engine: &ours::Engine| engine.bytes_per_token() as f64;
        let speed = |rounds: &Rounds, engine| rounds.median(|r| r.decode) * bytes(engine) / 1e9;
        println!("ours / other, bytes a token reads: {:.3}", bytes(&ours) / bytes(other));
        for (what, of) in KINDS {
            println!("ours / other, {what}: {:.2}", of_ours.median(of) / of_other.median(of));
        }
        println!("ours / other, decode of {} sequences: {batches:.2}", args.batch);
        println!(
            "ours {:.1} GB/s, other {:.1} GB/s of weights in decode",
            speed(&of_ours, &ours),
            speed(&of_other, other)
        );
    }

    #[cfg(feature = "peer")]
    {
        of_peer.print("candle");
        let mut enough = true;
        for (what, of) in KINDS {
            let ratio = of_ours.median(of) / of_peer.median(of);
            println!("ours / candle, {what}: {ratio:.2}");
            enough &= args.floor.is_none_or(|floor| ratio >= floor);
        }
        if args.batch > 1 {
            let ratio = of_batch[of_batch.len() / 2] / of_peer.median(|r| r.decode);
            println!("ours, {} sequences together / candle, one after the other: {ratio:.2}", args.batch);
        }
        if !enough {
            println!("below the floor of {:.2}", args.floor.unwrap_or_default());
        }
        Ok(enough)
    }
    #[cfg(not(feature = "peer"))]
    match args.floor {
        Some(_) => Err("a floor needs the peer: build with `--features peer`".into()),
        None => Ok(true),
    }
}

/// Gigabytes per second of the memory that the weights are in, for this many bytes of it.
fn bandwidth(args: &Args, bytes: u64) -> Result<f64, Box<dyn std::error::Error>> {
    #[cfg(feature = "cuda")]
    if let Some(number) = args.gpu {
        return Ok(roof::copy_gb_per_second(number, bytes)?);
    }
    Ok(roof::read_gb_per_second(args.threads, bytes))
}

/// The prompt that all engines get.
fn prompt(length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((300 + i * 7919) % 20000 % vocab) as u32).collect()
}

/// The token with the highest logit.
fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}
