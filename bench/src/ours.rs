//! The built-in engine: the serving executor, without scheduler and server.

use crate::{Args, Round, likeliest, prompt};
use std::path::Path;
use std::time::Instant;
use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan, SeqId, StepError};
use textnlp_inference::format::{Checkpoint, FormatError};

/// The engine with its model.
pub(crate) struct Engine {
    cpu: Cpu,
    load_seconds: f64,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Engine {
    /// Loads the model.
    pub(crate) fn load(args: &Args, model: &Path) -> std::result::Result<Engine, FormatError> {
        let started = Instant::now();
        let checkpoint = Checkpoint::open(model)?;
        let context = args.prompt + args.generate + 1;
        let options = LoadOptions {
            quantize: args.quantize,
            context: Some(context),
            kv_positions: Some(context.next_multiple_of(32) * args.batch.max(1)),
            threads: args.threads,
            ..LoadOptions::default()
        };
        let (cpu, notes) = Cpu::load(&checkpoint, &options)?;
        notes.iter().for_each(|note| println!("note: {note}"));
        let megabytes = cpu.memory().weights as f64 / 1e6;
        println!("{}: {megabytes:.1} MB of weights, {} threads with {}", model.display(), cpu.threads(), cpu.isa());
        Ok(Engine { cpu, load_seconds: started.elapsed().as_secs_f64() })
    }

    /// How long loading took.
    pub(crate) fn load_seconds(&self) -> f64 {
        self.load_seconds
    }

    /// Bytes of weights that one decoded token reads.
    pub(crate) fn bytes_per_token(&self) -> u64 {
        self.cpu.bytes_per_token()
    }

    /// One prompt and what is generated after it, greedily.
    pub(crate) fn round(&mut self, args: &Args) -> Result<Round> {
        let ids = prompt(args.prompt, self.cpu.shape().vocab);
        let seq = self.open(args)?;
        let started = Instant::now();
        let mut next = self.one(seq, 0, &ids)?;
        let prefill = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for i in 0..args.generate {
            next = self.one(seq, args.prompt + i, &[next])?;
        }
        let decode = started.elapsed().as_secs_f64();
        self.cpu.close(seq);
        Ok(Round { prefill: args.prompt as f64 / prefill, decode: args.generate as f64 / decode })
    }

    /// Tokens per second of several sequences decoded together, in total.
    pub(crate) fn batch(&mut self, args: &Args) -> Result<f64> {
        let vocab = self.cpu.shape().vocab;
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
            let spans: Vec<_> = seqs.iter().zip(&tokens).map(|((seq, _), t)| span(*seq, args.prompt + i, t)).collect();
            self.cpu.step(&spans)?;
            for ((_, next), logits) in seqs.iter_mut().zip(self.cpu.logits().chunks(vocab)) {
                *next = likeliest(logits);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        seqs.iter().for_each(|(seq, _)| self.cpu.close(*seq));
        Ok((args.batch * args.generate) as f64 / seconds)
    }

    fn open(&mut self, args: &Args) -> Result<SeqId> {
        self.cpu.open(args.prompt + args.generate).ok_or_else(|| "the model's context is too short".into())
    }

    fn one(&mut self, seq: SeqId, start: usize, tokens: &[u32]) -> std::result::Result<u32, StepError> {
        self.cpu.step(&[span(seq, start, tokens)])?;
        Ok(likeliest(self.cpu.logits()))
    }
}

fn span(seq: SeqId, start: usize, tokens: &[u32]) -> RowSpan<'_> {
    RowSpan { seq, start, tokens, logits: LogitRows::Last }
}
