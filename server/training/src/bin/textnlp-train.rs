//! `textnlp-train`: from nothing to the model that ships, one step per subcommand.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program talks to its user.

use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use textnlp_training::card;
use textnlp_training::corpus::{self, Split};
use textnlp_training::decode::{Drawing, continue_all};
use textnlp_training::error::{Error, Result};
use textnlp_training::evaluate::{self, Judged};
use textnlp_training::export::{Model, export};
use textnlp_training::params::Shape;
use textnlp_training::tokens::Tokens;
use textnlp_training::train::{Recipe, Run, read_recipe, write_whole};

/// Makes textnlp-tiny from nothing: corpus, tokenizer, training, export, measurement.
///
/// Everything is a function of the recipe and its seed. The whole road:
///
///   textnlp-train tokenizer --out tokenizer.json
///   textnlp-train train run/ --tokenizer tokenizer.json --steps 10000
///   textnlp-train export run/ --out model/
///   textnlp-train evaluate model/ --card
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes documents of the corpus to stdout, one after the other, each ended by <|endoftext|>.
    Corpus {
        /// The seed of the corpus.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many documents.
        #[arg(long, default_value_t = 20)]
        documents: u64,
        /// Documents about held-out combinations of character, place and goal.
        #[arg(long)]
        held_out: bool,
    },
    /// Learns the byte-level BPE from the first documents of the corpus.
    Tokenizer {
        /// The seed of the corpus.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Tokens in all, with the 256 bytes and the markers.
        #[arg(long, default_value_t = 2048)]
        size: usize,
        /// How many documents are read.
        #[arg(long, default_value_t = 10_000)]
        documents: u64,
        /// Where to write `tokenizer.json`.
        #[arg(long)]
        out: PathBuf,
    },
    /// Trains, or goes on training. A run that was killed goes on from its last checkpoint to the same bits.
    ///
    /// The folder holds the recipe, the tokenizer, the checkpoint and `log.jsonl`. Given the folder alone, the run that is
    /// in it goes on.
    Train {
        /// The folder of the run.
        folder: PathBuf,
        /// The tokenizer of a new run.
        #[arg(long)]
        tokenizer: Option<PathBuf>,
        /// The seed of a new run.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Steps of a new run, of 8,192 tokens each.
        #[arg(long, default_value_t = 10_000)]
        steps: u64,
        /// Numbers per token.
        #[arg(long, default_value_t = 192)]
        width: usize,
        /// Blocks.
        #[arg(long, default_value_t = 6)]
        layers: usize,
        /// Heads of each attention.
        #[arg(long, default_value_t = 6)]
        heads: usize,
        /// Positions.
        #[arg(long, default_value_t = 1024)]
        context: usize,
        /// Threads: 1 or 2. They change nothing but the time.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        threads: u8,
        /// Seconds between checkpoints.
        #[arg(long, default_value_t = 120)]
        checkpoint_seconds: u64,
        /// Stop after this step, to go on later.
        #[arg(long)]
        until: Option<u64>,
    },
    /// Writes the model folder that the server reads, from the newest checkpoint of a run.
    Export {
        /// The folder of the run.
        folder: PathBuf,
        /// The folder of the model.
        #[arg(long)]
        out: PathBuf,
    },
    /// Measures a model folder on held-out text and prints the results as JSON.
    ///
    /// The corpus to hold it against is the one of the folder's `recipe.json`. With `--card`, the model card is written too.
    Evaluate {
        /// The folder of the model.
        model: PathBuf,
        /// Write `MODEL_CARD.md` into the folder.
        #[arg(long)]
        card: bool,
        /// Held-out documents to read and stories to write.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..))]
        stories: u16,
    },
    /// Continues prompts.
    Sample {
        /// The folder of the model.
        model: PathBuf,
        /// Texts to continue; none writes the twenty samples of the model card.
        prompts: Vec<String>,
        /// The prompts are what a user of a chat says.
        #[arg(long)]
        chat: bool,
        /// 0 takes the likeliest token.
        #[arg(long, default_value_t = 0.7)]
        temperature: f32,
        /// The most tokens of an answer.
        #[arg(long, default_value_t = 300)]
        tokens: usize,
        /// The seed of the drawing.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                eprintln!("  cause: {source}");
                cause = source.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Corpus { seed, documents, held_out } => {
            let split = if held_out { Split::HeldOut } else { Split::Train };
            let mut out = std::io::stdout().lock();
            for i in 0..documents {
                // Whoever reads only the beginning closes the pipe; that is not a failure.
                if writeln!(out, "{}{}\n", corpus::document(seed, split, i).text, corpus::END_OF_TEXT).is_err() {
                    break;
                }
            }
            Ok(())
        }
        Command::Tokenizer { seed, size, documents, out } => {
            let tokens = Tokens::train(seed, size, documents)?;
            write_whole(&out, tokens.to_json()?.as_bytes())?;
            eprintln!("{}: {} tokens", out.display(), tokens.len());
            Ok(())
        }
        Command::Train {
            folder,
            tokenizer,
            seed,
            steps,
            width,
            layers,
            heads,
            context,
            threads,
            checkpoint_seconds,
            until,
        } => {
            let run = match tokenizer {
                None => Run::resume(&folder)?,
                Some(path) => {
                    let vocabulary = Tokens::open(&path)?.len();
                    let shape = Shape { vocabulary, context, width, layers, heads };
                    let text = std::fs::read_to_string(&path).map_err(|source| Error::File {
                        action: "read",
                        path,
                        source,
                    })?;
                    Run::open(&folder, &Recipe::new(shape, steps, seed), &text)?
                }
            };
            train(run, usize::from(threads), Duration::from_secs(checkpoint_seconds), until)
        }
        Command::Export { folder, out } => {
            let run = Run::resume(&folder)?;
            export(&run, &out)?;
            eprintln!(
                "{}: {} parameters after {} of {} steps",
                out.display(),
                run.layout.len,
                run.step,
                run.recipe.steps
            );
            Ok(())
        }
        Command::Evaluate { model: folder, card: wanted, stories } => {
            let model = Model::open(&folder)?;
            let recipe = read_recipe(&folder.join("recipe.json"))?;
            let evaluated = Judged { seed: recipe.seed, documents: recipe.documents, stories: usize::from(stories) };
            let figures = evaluate::evaluate(&model, evaluated)?;
            println!("{}", serde_json::to_string_pretty(&figures).unwrap_or_default());
            if wanted {
                write_whole(&folder.join("MODEL_CARD.md"), card::card(&model, &recipe, &figures)?.as_bytes())?;
            }
            Ok(())
        }
        Command::Sample { model, prompts, chat, temperature, tokens, seed } => {
            sample(&model, &prompts, chat, Drawing { temperature, tokens, seed })
        }
    }
}

fn train(mut run: Run, threads: usize, checkpoint: Duration, until: Option<u64>) -> Result<()> {
    let last = until.unwrap_or(u64::MAX).min(run.recipe.steps);
    eprintln!("{} parameters, step {} of {}", run.layout.len, run.step, run.recipe.steps);
    let (mut saved, mut mean) = (Instant::now(), None);
    while run.step < last {
        let began = Instant::now();
        let report = run.step(threads)?;
        let smooth = mean.map_or(report.loss, |m: f64| 0.95 * m + 0.05 * report.loss);
        mean = Some(smooth);
        if report.step.is_multiple_of(20) {
            run.log(&report)?;
            eprintln!(
                "step {} loss {:.4} (mean {smooth:.4}) gradient {:.3} rate {:.2e} {:.2} s",
                report.step,
                report.loss,
                report.gradient,
                report.rate,
                began.elapsed().as_secs_f64()
            );
        }
        if saved.elapsed() >= checkpoint {
            run.save()?;
            saved = Instant::now();
        }
    }
    run.save()
}

fn sample(model: &Path, prompts: &[String], chat: bool, drawing: Drawing) -> Result<()> {
    let model = Model::open(model)?;
    let samples: Vec<String> = if prompts.is_empty() {
        evaluate::SAMPLE_PROMPTS.iter().map(|p| (*p).to_owned()).collect()
    } else if chat {
        prompts.iter().map(|p| format!("{}{p}{}{}", corpus::USER, corpus::END, corpus::ASSISTANT)).collect()
    } else {
        prompts.to_vec()
    };
    let ids = samples.iter().map(|p| model.tokens.encode(p)).collect::<Result<Vec<_>>>()?;
    let stops = [model.tokens.end_of_text()?, model.tokens.marker(corpus::END)?];
    let written = continue_all(&model.layout, &model.params, &ids, &stops, drawing);
    for (prompt, ids) in samples.iter().zip(written) {
        println!("{prompt}⟶{}\n", model.tokens.decode(&ids)?);
    }
    Ok(())
}
