//! The built-in engine: the executor that serves, without scheduler and server.

use crate::{Args, Round, likeliest, prompt};
use std::path::Path;
use std::time::Instant;
use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId, StepError};
use textnlp_inference::format::Checkpoint;
use textnlp_inference::sample::{Draw, Penalties};

/// The engine with its model.
pub(crate) struct Engine {
    executor: Box<dyn Executor>,
    bytes_per_token: u64,
    load_seconds: f64,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Engine {
    /// Loads the model.
    pub(crate) fn load(args: &Args, model: &Path) -> Result<Engine> {
        let started = Instant::now();
        let context = args.prompt + args.generate + 1;
        let kv_positions = Some(context.next_multiple_of(32) * args.batch.max(1));
        let (executor, bytes_per_token) = match args.gpu {
            Some(number) => on_gpu(args, model, number, context, kv_positions)?,
            None => on_cpu(args, model, context, kv_positions)?,
        };
        let megabytes = executor.memory().weights as f64 / 1e6;
        println!("{}: {megabytes:.1} MB of weights", model.display());
        Ok(Engine { executor, bytes_per_token, load_seconds: started.elapsed().as_secs_f64() })
    }

    /// How long loading took.
    pub(crate) fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// Bytes of weights that one decoded token reads.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        self.bytes_per_token
    }

    /// One prompt and what is generated after it, greedily.
    pub(crate) fn round(&mut self, args: &Args) -> Result<Round> {
        let ids = prompt(args.prompt, self.executor.shape().vocab);
        let seq = self.open(args)?;
        let started = Instant::now();
        let mut next = self.one(seq, 0, &ids)?;
        let prefill = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for i in 0..args.generate {
            next = self.one(seq, args.prompt + i, &[next])?;
        }
        let decode = started.elapsed().as_secs_f64();
        self.executor.close(seq);
        Ok(Round { prefill: args.prompt as f64 / prefill, decode: args.generate as f64 / decode })
    }

    /// Tokens per second of several sequences decoded together, in total.
    pub(crate) fn batch(&mut self, args: &Args) -> Result<f64> {
        let vocab = self.executor.shape().vocab;
        let ids = prompt(args.prompt, vocab);
        let mut seqs = Vec::new();
        for _ in 0..args.batch {
            let seq = self.open(args)?;
            let next = self.one(seq, 0, &ids)?;
            seqs.push((seq, next));
        }
        let started = Instant::now();
        for i in 0..args.generate {
            let tokens: Vec<[u32; 1]> = seqs.iter().map(|(_, next)| [*next]).collect();
            let spans: Vec<_> =
                seqs.iter().zip(&tokens).map(|((seq, _), token)| self.span(*seq, args.prompt + i, token)).collect();
            self.executor.step(&spans)?;
            let (mut logits, mut drawn) = (self.executor.logits().chunks(vocab), self.executor.drawn().iter());
            for (_, next) in &mut seqs {
                let token = drawn.next().copied().flatten();
                *next = token.unwrap_or_else(|| logits.next().map_or(0, likeliest));
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        seqs.iter().for_each(|(seq, _)| self.executor.close(*seq));
        Ok((args.batch * args.generate) as f64 / seconds)
    }

    fn open(&mut self, args: &Args) -> Result<SeqId> {
        self.executor.open(args.prompt + args.generate).ok_or_else(|| "the model's context is too short".into())
    }

    fn one(&mut self, seq: SeqId, start: usize, tokens: &[u32]) -> std::result::Result<u32, StepError> {
        self.executor.step(&[self.span(seq, start, tokens)])?;
        let drawn = self.executor.drawn().first().copied().flatten();
        Ok(drawn.unwrap_or_else(|| likeliest(self.executor.logits())))
    }

    /// Rows of which the last one's likeliest token is wanted.
    fn span<'a>(&self, seq: SeqId, start: usize, tokens: &'a [u32]) -> RowSpan<'a> {
        let likeliest = Draw { scale: 1.0, top_k: 1, top_p: 1.0, floor: 0.0, at: 0.0, penalties: Penalties::NONE };
        let logits = if self.executor.draws(&likeliest) { LogitRows::Drawn(likeliest) } else { LogitRows::Last };
        RowSpan { seq, start, tokens, logits }
    }
}

fn on_cpu(args: &Args, model: &Path, context: usize, kv_positions: Option<usize>) -> Result<(Box<dyn Executor>, u64)> {
    let (quantize, threads) = (args.quantize, args.threads);
    let options = LoadOptions { quantize, context: Some(context), kv_positions, threads, ..LoadOptions::default() };
    let (cpu, notes) = Cpu::load(&Checkpoint::open(model)?, &options)?;
    notes.iter().for_each(|note| println!("note: {note}"));
    println!("{} threads with {}", cpu.threads(), cpu.isa());
    let bytes = cpu.bytes_per_token();
    Ok((Box::new(cpu), bytes))
}

/// All weights count as read by a token, with the table of tokens: that of the models to compare is the head, too.
#[cfg(feature = "cuda")]
fn on_gpu(
    args: &Args,
    model: &Path,
    number: usize,
    context: usize,
    kv_positions: Option<usize>,
) -> Result<(Box<dyn Executor>, u64)> {
    use textnlp_candle::{Candle, Checkpoint, DeviceKind, Gpu, LoadOptions};

    println!("{}", Gpu::find(number)?.name);
    let (quantize, device) = (args.quantize, DeviceKind::Cuda(number));
    let options = LoadOptions { quantize, context: Some(context), kv_positions, threads: args.threads, device };
    let (candle, notes) = Candle::load(&Checkpoint::open(model)?, &options)?;
    notes.iter().for_each(|note| println!("note: {note}"));
    let bytes = candle.memory().weights;
    Ok((Box::new(candle), bytes))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(
    _args: &Args,
    _model: &Path,
    _number: usize,
    _context: usize,
    _kv_positions: Option<usize>,
) -> Result<(Box<dyn Executor>, u64)> {
    Err("`--gpu` needs a build with `--features cuda`".into())
}
