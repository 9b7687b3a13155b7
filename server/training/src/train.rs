//! The training loop: a recipe, its steps, and checkpoints that resume a killed run with identical bits.

use crate::corpus;
use crate::error::{Error, Result};
use crate::init;
use crate::net::{Shard, Workspace};
use crate::params::{Layout, Shape};
use crate::tokens::Tokens;
use crate::vector;
use crate::windows::Windows;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Gradients are added up in this many places, whatever the number of threads, so that one thread and two give equal bits.
const LANES: usize = 2;

/// Everything that decides what a run learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of the corpus' grammar.
    pub corpus: u32,
    /// The seed of the corpus, of the windows and of the first weights.
    pub seed: u64,
    /// Documents of the corpus.
    pub documents: u64,
    /// The model.
    pub shape: Shape,
    /// Steps in all.
    pub steps: u64,
    /// Tokens of a window.
    pub window: usize,
    /// The share of steps, at the end, that read windows of the whole context.
    pub full_length_share: f64,
    /// The share of steps, at the beginning, of which every other window is an echo (see `windows`).
    pub echo_share: f64,
    /// Tokens of a step in the last quarter of the steps; the quarter before has half, the first half a quarter of them. Early
    /// on the gradient is clear in few tokens and what counts is the number of steps: this learns in a quarter of the time.
    pub tokens_per_step: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The learning rate at the end.
    pub final_learning_rate: f64,
    /// Steps in which the learning rate rises.
    pub warm_up: u64,
    /// AdamW's β1.
    pub beta1: f64,
    /// AdamW's β2.
    pub beta2: f64,
    /// AdamW's weight decay, of matrices only.
    pub weight_decay: f64,
    /// Gradients longer than this are shortened to it.
    pub clip: f64,
}

impl Recipe {
    /// The recipe of `textnlp-tiny`: its numbers are stated in the crate's README.
    pub fn new(shape: Shape, steps: u64, seed: u64) -> Self {
        Self {
            corpus: corpus::VERSION,
            seed,
            documents: 1 << 17,
            window: 256.min(shape.context),
            shape,
            steps,
            full_length_share: 0.1,
            echo_share: 0.1,
            tokens_per_step: 8_192,
            learning_rate: 2e-3,
            final_learning_rate: 1e-4,
            warm_up: (steps / 20).min(300),
            beta1: 0.9,
            beta2: 0.95,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |s: String| Err(Error::Recipe(s));
        if let Some(problem) = self.shape.problem() {
            return wrong(problem);
        }
        if self.corpus != corpus::VERSION {
            return wrong(format!("corpus version {} is not the {} of this program", self.corpus, corpus::VERSION));
        }
        if self.window == 0 || self.window > self.shape.context {
            return wrong(format!(
                "a window of {} tokens does not fit into {} positions",
                self.window, self.shape.context
            ));
        }
        if self.tokens_per_step < self.shape.context || self.documents == 0 {
            return wrong("a step must hold one window of the whole context, and the corpus one document".into());
        }
        Ok(())
    }

    /// The learning rate of a step: a straight rise, then half a cosine.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let share = (step - self.warm_up) as f64 / (self.steps.saturating_sub(self.warm_up)).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos());
        self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * cosine
    }

    /// The tokens of a step.
    pub fn tokens_of(&self, step: u64) -> usize {
        let divisor = match step * 4 / self.steps.max(1) {
            0 | 1 => 4,
            2 => 2,
            _ => 1,
        };
        // The last steps read whole contexts, so there must be room for one.
        (self.tokens_per_step / divisor).max(self.window_of(step))
    }

    /// The length of the windows of a step.
    pub fn window_of(&self, step: u64) -> usize {
        let full = (self.steps as f64 * (1.0 - self.full_length_share)) as u64;
        if step >= full { self.shape.context } else { self.window }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Report {
    /// The number of the step, from 0.
    pub step: u64,
    /// Cross-entropy per token, in nats.
    pub loss: f64,
    /// The length of the gradient before it was shortened.
    pub gradient: f64,
    /// The learning rate.
    pub rate: f64,
}

/// A run: a folder with the recipe, the tokenizer, the newest checkpoint and a log.
pub struct Run {
    /// The recipe.
    pub recipe: Recipe,
    /// The layout of the parameters.
    pub layout: Layout,
    /// The tokenizer.
    pub tokens: Tokens,
    /// The parameters.
    pub params: Vec<f32>,
    /// The next step.
    pub step: u64,
    m: Vec<f32>,
    v: Vec<f32>,
    lanes: Vec<Mutex<Lane>>,
    folder: PathBuf,
}

#[derive(Default)]
struct Lane {
    workspace: Workspace,
    grad: Vec<f32>,
    loss: f64,
}

impl Run {
    /// Begins a run in a folder, or goes on with the one that is there if it follows the same recipe.
    pub fn open(folder: &Path, recipe: &Recipe, tokenizer: &str) -> Result<Self> {
        recipe.check()?;
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let (recipe_path, tokens_path) = (folder.join("recipe.json"), folder.join("tokenizer.json"));
        if recipe_path.exists() {
            let there = read_recipe(&recipe_path)?;
            if there != *recipe {
                let problem = format!("its recipe is {}, not {}", json(&there), json(recipe));
                return Err(Error::AnotherRun { path: folder.to_owned(), problem });
            }
            let there = fs::read_to_string(&tokens_path).map_err(Error::file("read", &tokens_path))?;
            if there != tokenizer {
                return Err(Error::AnotherRun {
                    path: folder.to_owned(),
                    problem: "its tokenizer is not the given one".into(),
                });
            }
        } else {
            write_whole(&tokens_path, tokenizer.as_bytes())?;
            write_whole(&recipe_path, json(recipe).as_bytes())?;
        }
        Self::resume(folder)
    }

    /// Goes on with the run of a folder.
    pub fn resume(folder: &Path) -> Result<Self> {
        let recipe = read_recipe(&folder.join("recipe.json"))?;
        recipe.check()?;
        let tokens = Tokens::open(&folder.join("tokenizer.json"))?;
        if tokens.len() != recipe.shape.vocabulary {
            let problem = format!("{} tokens for a vocabulary of {}", tokens.len(), recipe.shape.vocabulary);
            return Err(Error::Recipe(problem));
        }
        let layout = Layout::new(&recipe.shape);
        let mut run = Self {
            params: init::fresh(&layout, recipe.seed),
            m: vec![0.0; layout.len],
            v: vec![0.0; layout.len],
            step: 0,
            lanes: (0..LANES).map(|_| Mutex::new(Lane::default())).collect(),
            folder: folder.to_owned(),
            recipe,
            layout,
            tokens,
        };
        let path = run.checkpoint_path();
        if path.exists() {
            run.load(&path)?;
        }
        Ok(run)
    }

    fn checkpoint_path(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::file("read", path))?;
        let broken = |e: safetensors::SafeTensorError| Error::broken(path, e);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(broken)?;
        let step = header.metadata().as_ref().and_then(|m| m.get("step")).and_then(|s| s.parse().ok());
        self.step = step.ok_or_else(|| Error::broken(path, "no step is named in it"))?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(broken)?;
        for (name, into) in [("params", &mut self.params), ("m", &mut self.m), ("v", &mut self.v)] {
            let tensor = tensors.tensor(name).map_err(broken)?;
            if tensor.dtype() != Dtype::F32 || tensor.data().len() != into.len() * 4 {
                return Err(Error::broken(path, format!("`{name}` is not of this recipe")));
            }
            for (p, b) in into.iter_mut().zip(tensor.data().chunks_exact(4)) {
                *p = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Ok(())
    }

    /// Writes the checkpoint atomically: a kill leaves the previous one.
    pub fn save(&self) -> Result<()> {
        let path = self.checkpoint_path();
        let bytes: Vec<(&str, Vec<u8>)> = [("params", &self.params), ("m", &self.m), ("v", &self.v)]
            .map(|(name, numbers)| (name, numbers.iter().flat_map(|p| p.to_le_bytes()).collect()))
            .into();
        let mut views = Vec::new();
        for (name, bytes) in &bytes {
            let view =
                TensorView::new(Dtype::F32, vec![self.layout.len], bytes).map_err(|e| Error::broken(&path, e))?;
            views.push((*name, view));
        }
        let header = HashMap::from([("step".to_owned(), self.step.to_string())]);
        write_whole(&path, &safetensors::serialize(views, Some(header)).map_err(|e| Error::broken(&path, e))?)
    }

    /// Whether all steps are done.
    pub fn done(&self) -> bool {
        self.step >= self.recipe.steps
    }

    /// Takes one step on `threads` threads (1 or 2: more have nothing to do).
    pub fn step(&mut self, threads: usize) -> Result<Report> {
        let length = self.recipe.window_of(self.step);
        let windows = self.recipe.tokens_of(self.step) / length;
        // About a thousand tokens are worked on at once: more would leave the cache, fewer would starve the products.
        let per_shard = (1_024 / length).clamp(1, windows.div_ceil(LANES));
        let source = Windows {
            tokens: &self.tokens,
            seed: self.recipe.seed,
            documents: self.recipe.documents,
            context: self.recipe.shape.context,
        };
        let echoes = self.step < (self.recipe.steps as f64 * self.recipe.echo_share) as u64;
        let weight = 1.0 / (windows * length) as f32;
        // Windows are numbered by step with room for the shortest ones, so the numbers never meet.
        let base = self.step * self.recipe.tokens_per_step as u64;
        let starts: Vec<usize> = (0..windows).step_by(per_shard).collect();
        let half = starts.len().div_ceil(LANES);
        let work = |lane: usize| -> Result<()> {
            // Nobody else holds this lane: a poisoned one belonged to a step that has already failed.
            let mut state = self.lanes[lane].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let Lane { workspace, grad, loss } = &mut *state;
            grad.clear();
            grad.resize(self.layout.len, 0.0);
            *loss = 0.0;
            for &start in starts.iter().skip(lane * half).take(half) {
                let count = per_shard.min(windows - start);
                let shard: Shard = source.shard(base + start as u64, count, length, echoes)?;
                *loss += workspace.run(&self.layout, &self.params, &shard, Some((grad, weight)));
            }
            Ok(())
        };
        if threads > 1 {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| work(1));
                work(0).and(other.join().unwrap_or_else(|_| Err(Error::Recipe("a worker panicked".into()))))
            })?;
        } else {
            (0..LANES).try_for_each(work)?;
        }
        let mut lanes = self.lanes.iter_mut().map(|l| l.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
        let (Some(first), Some(second)) = (lanes.next(), lanes.next()) else {
            return Err(Error::Recipe("no lanes".into()));
        };
        vector::add(&mut first.grad, &second.grad);
        let loss = (first.loss + second.loss) / (windows * length) as f64;
        let gradient = f64::from(vector::sum_squares(&first.grad)).sqrt();
        if !(loss.is_finite() && gradient.is_finite()) {
            return Err(Error::Recipe(format!("the run diverged at step {}", self.step)));
        }
        if gradient > self.recipe.clip {
            vector::scale(&mut first.grad, (self.recipe.clip / gradient) as f32);
        }
        let rate = self.recipe.rate(self.step);
        let t = self.step as i32 + 1;
        let corrections = [1.0 - self.recipe.beta1.powi(t), 1.0 - self.recipe.beta2.powi(t)];
        for tensor in &self.layout.tensors {
            let decay = if tensor.decays() { self.recipe.weight_decay } else { 0.0 };
            let rates = [rate, self.recipe.beta1, self.recipe.beta2, 1e-8, decay, corrections[0], corrections[1]];
            let at = tensor.range.clone();
            vector::adamw(
                &mut self.params[at.clone()],
                &mut self.m[at.clone()],
                &mut self.v[at.clone()],
                &first.grad[at],
                rates.map(|r| r as f32),
            );
        }
        let report = Report { step: self.step, loss, gradient, rate };
        self.step += 1;
        Ok(report)
    }

    /// Adds a line to the run's log.
    pub fn log(&self, line: &impl Serialize) -> Result<()> {
        let path = self.folder.join("log.jsonl");
        let mut file = File::options().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
        writeln!(file, "{}", serde_json::to_string(line).unwrap_or_default()).map_err(Error::file("write", &path))
    }
}

/// Reads the recipe of a run.
pub fn read_recipe(path: &Path) -> Result<Recipe> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    serde_json::from_str(&text).map_err(|e| Error::broken(path, e))
}

fn json(recipe: &Recipe) -> String {
    serde_json::to_string_pretty(recipe).unwrap_or_default()
}

/// Writes a file durably.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = textnlp_files::Replace::umask().sole_writer().write(path, bytes);
    written.map_err(|error| Error::File { action: error.action, path: error.path, source: error.source })
}
