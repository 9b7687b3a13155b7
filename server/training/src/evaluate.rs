//! The metrics of the model card: how well held-out text is predicted, and whether generated text is coherent and new.

use crate::corpus::{self, ASSISTANT, END, Kind, Reader, Split, USER, document, document_of_kind};
use crate::decode::{Drawing, continue_all};
use crate::error::Result;
use crate::export::Model;
use crate::net::{Shard, Workspace};
use crate::rng::mix;
use serde::Serialize;
use std::collections::HashSet;

/// The prompts of the model card's samples, in their order.
pub const SAMPLE_PROMPTS: &[&str] = &[
    "Once upon a time",
    "Mira walked to the harbour",
    "One evening, a young fox named Emil",
    "It was a cold morning at the lighthouse.",
    "Once upon a time, there was a shy baker",
    "Clara lost her key.",
    "Felix was afraid of the dark.",
    "In the night Nora woke up.",
    "Oscar wanted to learn to swim.",
    "Long ago, there lived a clockmaker",
    "There was an old bear",
    "Hugo has a red kite",
    "Where is my key?",
    "textnlp-deploy",
    "<|user|>What does textnlp-deploy do?<|end|><|assistant|>",
    "<|user|>How do I stop the service?<|end|><|assistant|>",
    "<|user|>Tell me a story about a brave mouse.<|end|><|assistant|>",
    "<|user|>What is a blorfin?<|end|><|assistant|>",
    "<|user|>Copy: lantern Vastrol 7 mirano<|end|><|assistant|>",
    "<|user|>Zoltra the potter lives by the well. Ben has a silver coin. Where does Zoltra live?<|end|><|assistant|>",
];

/// The reference data of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// The seed of the corpus.
    pub seed: u64,
    /// The documents of the corpus.
    pub documents: u64,
    /// Held-out documents to read and stories to write.
    pub stories: usize,
}

/// The metrics of the model card.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Parameters of the model.
    pub parameters: usize,
    /// Held-out documents that were read, and their sizes.
    pub held_out: HeldOut,
    /// The same of documents like those of training.
    pub training: HeldOut,
    /// What was written at temperature 0.7 and at 1.
    pub written: [Written; 2],
    /// Held-out tasks with one right answer.
    pub answers: Answers,
}

/// How well text is predicted.
#[derive(Debug, Serialize)]
pub struct HeldOut {
    /// Documents.
    pub documents: usize,
    /// Their tokens, with the one that ends each.
    pub tokens: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// Cross-entropy in bits per byte.
    pub bits_per_byte: f64,
    /// The generator's own choices in bits per byte: an upper bound of what the text holds.
    pub choice_bits_per_byte: f64,
}

/// How stories are that the model wrote.
#[derive(Debug, Serialize)]
pub struct Written {
    /// How they were drawn.
    pub temperature: f32,
    /// Stories.
    pub stories: usize,
    /// Stories that came to an end within the limit.
    pub ended: f64,
    /// The share of mentions of people, pronouns and things that agree with what was told before.
    pub entity_consistency: f64,
    /// The same of the generator's own stories: what the judge finds in sound text.
    pub entity_consistency_of_generator: f64,
    /// The same of the model's stories with their sentences exchanged among stories: what it finds in unsound text.
    pub entity_consistency_of_shuffled: f64,
    /// The share of different 8-grams of words that are nowhere in the training corpus.
    pub novel_8_grams: f64,
    /// The same of the generator's held-out stories.
    pub novel_8_grams_of_generator: f64,
    /// Different 3-grams of words by all 3-grams.
    pub distinct_3: f64,
}

/// Copying, extracting, listing, spelling and summarizing; the likeliest text is taken.
#[derive(Debug, Serialize)]
pub struct Answers {
    /// The share answered to the letter.
    pub right: f64,
    /// Tasks.
    pub asked: usize,
}

/// Measures a model.
pub fn evaluate(model: &Model, judged: Judged) -> Result<Figures> {
    let held_out: Vec<_> = (0..judged.stories as u64).map(|i| document(judged.seed, Split::HeldOut, i)).collect();
    let training: Vec<_> = (0..judged.stories as u64).map(|i| document(judged.seed, Split::Train, i)).collect();
    Ok(Figures {
        parameters: model.layout.len,
        held_out: read(model, &held_out)?,
        training: read(model, &training)?,
        written: [write(model, judged, 0.7)?, write(model, judged, 1.0)?],
        answers: answer(model, judged)?,
    })
}

fn read(model: &Model, documents: &[corpus::Document]) -> Result<HeldOut> {
    let mut workspace = Workspace::default();
    let end = model.tokens.end_of_text()?;
    let (mut nats, mut tokens, mut bytes, mut bits) = (0.0, 0, 0, 0.0);
    for document in documents {
        let mut ids = vec![end];
        ids.extend(model.tokens.encode(&document.text)?);
        ids.push(end);
        ids.truncate(model.layout.shape.context + 1);
        let length = ids.len() - 1;
        let shard = Shard {
            length,
            inputs: ids[..length].to_vec(),
            positions: (0..length as u32).collect(),
            targets: ids[1..].to_vec(),
        };
        nats += workspace.run(&model.layout, &model.params, &shard, None);
        tokens += length;
        bytes += document.text.len();
        bits += document.bits;
    }
    Ok(HeldOut {
        documents: documents.len(),
        tokens,
        bytes,
        nats_per_token: nats / tokens as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes as f64,
        choice_bits_per_byte: bits / bytes as f64,
    })
}

/// Prompts of stories: how the held-out stories begin.
fn openings(judged: Judged) -> Vec<String> {
    (0..judged.stories as u64)
        .map(|i| {
            let text = document_of_kind(judged.seed, Split::HeldOut, Kind::Story, i).text;
            text.split_inclusive(' ').take(3).collect::<String>().trim_end().to_owned()
        })
        .collect()
}

fn write(model: &Model, judged: Judged, temperature: f32) -> Result<Written> {
    let prompts = openings(judged);
    let ids = prompts.iter().map(|p| model.tokens.encode(p)).collect::<Result<Vec<_>>>()?;
    let stops = [model.tokens.end_of_text()?, model.tokens.marker(END)?];
    let limit = 400;
    let mut stories = Vec::new();
    let mut ended = 0usize;
    for (at, ids) in ids.chunks(32).enumerate() {
        let drawing = Drawing { temperature, tokens: limit, seed: judged.seed ^ (at as u64) << 32 };
        for (j, written) in continue_all(&model.layout, &model.params, ids, &stops, drawing).into_iter().enumerate() {
            ended += usize::from(written.len() < limit);
            stories.push(format!("{}{}", prompts[at * 32 + j], model.tokens.decode(&written)?));
        }
    }
    let own: Vec<String> = (0..judged.stories as u64)
        .map(|i| document_of_kind(judged.seed, Split::HeldOut, Kind::Story, i).text)
        .collect();
    let (novel, own_novel) = novelty(&stories, &own, judged);
    Ok(Written {
        temperature,
        stories: stories.len(),
        ended: ended as f64 / stories.len().max(1) as f64,
        entity_consistency: consistency(&stories),
        entity_consistency_of_generator: consistency(&own),
        entity_consistency_of_shuffled: consistency(&shuffled(&stories)),
        novel_8_grams: novel,
        novel_8_grams_of_generator: own_novel,
        distinct_3: distinct(&stories, 3),
    })
}

fn consistency(stories: &[String]) -> f64 {
    let reader = Reader::new();
    let (mut sound, mut all) = (0usize, 0usize);
    for story in stories {
        let (s, a) = reader.mentions(story);
        sound += s;
        all += a;
    }
    sound as f64 / all.max(1) as f64
}

/// Stories whose n-th sentence is the n-th of the n-th next story: each sentence sound, the whole not.
fn shuffled(stories: &[String]) -> Vec<String> {
    let sentences: Vec<Vec<&str>> = stories.iter().map(|s| s.split_inclusive(". ").collect()).collect();
    (0..stories.len())
        .map(|i| (0..sentences[i].len()).filter_map(|n| sentences[(i + n) % stories.len()].get(n).copied()).collect())
        .collect()
}

fn grams(text: &str, n: usize) -> Vec<u64> {
    let words: Vec<u64> = text.split_whitespace().map(|w| w.bytes().fold(7, |h, b| mix(h ^ u64::from(b)))).collect();
    words.windows(n).map(|w| w.iter().fold(3, |h, x| mix(h ^ x))).collect()
}

/// The shares of the different 8-grams of two sets of texts that the training corpus does not hold.
fn novelty(a: &[String], b: &[String], judged: Judged) -> (f64, f64) {
    let set = |texts: &[String]| texts.iter().flat_map(|t| grams(t, 8)).collect::<HashSet<u64>>();
    let (mut a, mut b) = (set(a), set(b));
    let (all_a, all_b) = (a.len().max(1), b.len().max(1));
    for i in 0..judged.documents {
        for gram in grams(&document(judged.seed, Split::Train, i).text, 8) {
            a.remove(&gram);
            b.remove(&gram);
        }
    }
    (a.len() as f64 / all_a as f64, b.len() as f64 / all_b as f64)
}

fn distinct(texts: &[String], n: usize) -> f64 {
    let all: Vec<u64> = texts.iter().flat_map(|t| grams(t, n)).collect();
    let different: HashSet<&u64> = all.iter().collect();
    different.len() as f64 / all.len().max(1) as f64
}

/// Tasks of the held-out part have one right answer; the likeliest text must be it.
fn answer(model: &Model, judged: Judged) -> Result<Answers> {
    let stops = [model.tokens.end_of_text()?, model.tokens.marker(END)?];
    let mut asked = Vec::new();
    let mut wanted = Vec::new();
    for i in 0..judged.stories as u64 {
        let text = document_of_kind(judged.seed, Split::HeldOut, Kind::Task, i).text;
        let Some((question, rest)) = text.split_once(ASSISTANT) else { continue };
        debug_assert!(question.starts_with(USER));
        asked.push(model.tokens.encode(&format!("{question}{ASSISTANT}"))?);
        wanted.push(rest.split(END).next().unwrap_or("").to_owned());
    }
    let mut right = 0usize;
    for (ids, wanted) in asked.chunks(32).zip(wanted.chunks(32)) {
        let drawing = Drawing { temperature: 0.0, tokens: 60, seed: 0 };
        for (ids, wanted) in continue_all(&model.layout, &model.params, ids, &stops, drawing).iter().zip(wanted) {
            right += usize::from(model.tokens.decode(ids)? == *wanted);
        }
    }
    Ok(Answers { right: right as f64 / asked.len().max(1) as f64, asked: asked.len() })
}
