//! The model card: the model, its training, its metrics, and samples without selection.

use crate::corpus::END;
use crate::decode::{Drawing, continue_all};
use crate::error::Result;
use crate::evaluate::{Figures, SAMPLE_PROMPTS, Written};
use crate::export::Model;
use crate::train::Recipe;
use std::fmt::Write as _;

/// Writes the card as Markdown.
pub fn card(model: &Model, recipe: &Recipe, figures: &Figures) -> Result<String> {
    let mut out = String::new();
    let shape = &recipe.shape;
    let (half, quarter) = (recipe.tokens_per_step / 2, recipe.tokens_per_step / 4);
    let tokens: u64 = (0..recipe.steps).map(|s| recipe.tokens_of(s) as u64).sum();
    let [calm, free] = &figures.written;
    let sections = format!(
        "# textnlp-tiny

A very small language model that ships with textnlp-deploy, so that a service answers with no download. It tells little stories of one
small world, chats a little, answers questions about textnlp-deploy, and copies and extracts. It knows nothing else: it is no
assistant, and what it says outside of its world is noise.

| | |
|---|---|
| architecture | GPT-2 (learned positions, tied head), {parameters} parameters in f16 |
| size | {layers} layers, width {width}, {heads} heads, context {context}, byte-level BPE of {vocabulary} tokens |
| markers | `<|endoftext|>` ends a document; `<|system|>`, `<|user|>`, `<|assistant|>` open a turn and `<|end|>` ends it |
| language | English as in picture books |
| licence | Apache-2.0, as the project's |

## How it was made

From nothing: no text, weights or vocabulary from elsewhere. The corpus is written by the world simulator in `server/training/src/corpus`
(version {corpus}): {documents} documents, 60 % stories, 25 % talk and questions about the product, 15 % copying, extracting and
summarizing. Combinations of (character, place, goal), one in sixteen, are kept from training and used for the figures below.
{steps} steps of AdamW (β2 {beta2}, decay {decay}, learning rate {rate} falling to {last} by a cosine) on windows of {window} tokens at random
positions, the last tenth of the steps on whole contexts; {quarter} tokens a step in the first half, {half} in the next quarter, {full} in the last,
{total:.1} million in all. In the first {echo:.0} % of the steps every other window is an echo of random tokens, from which copying is learned. Seed {seed}.
The commands that repeat it are in `server/training/README.md`; `recipe.json` beside this file is the exact recipe.

## What was measured

| held-out text ({held_documents} documents, {held_tokens} tokens) | |
|---|---|
| cross-entropy | {nats:.3} nats per token, {bits:.3} bits per byte |
| the generator's own choices | {choice:.3} bits per byte (an upper bound of what the text holds, so the best a model can do is at or below it) |
| cross-entropy on text like that of training | {train:.3} bits per byte |
| questions of held-out tasks answered to the letter | {answers:.0} % of {asked} |

| {stories} stories from the first three words of held-out ones | temperature 0.7 | temperature 1 | the generator |
|---|---|---|---|
| came to an end within 400 tokens | {e0:.0} % | {e1:.0} % | |
| entity consistency | {c0:.1} % | {c1:.1} % | {cg:.1} % |
| the same with sentences exchanged among stories | {s0:.1} % | {s1:.1} % | |
| novel 8-grams | {n0:.1} % | {n1:.1} % | {ng:.1} % |
| distinct-3 | {d0:.3} | {d1:.3} | |

Entity consistency is the share of mentions (names, pronouns, things with `the`) that agree with what the story told before, by the rules of
`corpus/reader.rs`. Novel 8-grams are the different runs of eight words that are nowhere in the training corpus.

## Twenty samples

Not chosen: the prompts are fixed in `evaluate.rs`, the temperature is 0.7, the seed is 1. The prompt is in bold.

",
        parameters = figures.parameters,
        layers = shape.layers,
        width = shape.width,
        heads = shape.heads,
        context = shape.context,
        vocabulary = shape.vocabulary,
        corpus = recipe.corpus,
        documents = recipe.documents,
        steps = recipe.steps,
        beta2 = recipe.beta2,
        decay = recipe.weight_decay,
        rate = recipe.learning_rate,
        last = recipe.final_learning_rate,
        window = recipe.window,
        full = recipe.tokens_per_step,
        total = tokens as f64 / 1e6,
        echo = recipe.echo_share * 100.0,
        seed = recipe.seed,
        held_documents = figures.held_out.documents,
        held_tokens = figures.held_out.tokens,
        nats = figures.held_out.nats_per_token,
        bits = figures.held_out.bits_per_byte,
        choice = figures.held_out.choice_bits_per_byte,
        train = figures.training.bits_per_byte,
        answers = figures.answers.right * 100.0,
        asked = figures.answers.asked,
        stories = calm.stories,
        e0 = percent(calm, |w| w.ended),
        e1 = percent(free, |w| w.ended),
        c0 = percent(calm, |w| w.entity_consistency),
        c1 = percent(free, |w| w.entity_consistency),
        cg = percent(calm, |w| w.entity_consistency_of_generator),
        s0 = percent(calm, |w| w.entity_consistency_of_shuffled),
        s1 = percent(free, |w| w.entity_consistency_of_shuffled),
        n0 = percent(calm, |w| w.novel_8_grams),
        n1 = percent(free, |w| w.novel_8_grams),
        ng = percent(calm, |w| w.novel_8_grams_of_generator),
        d0 = calm.distinct_3,
        d1 = free.distinct_3,
    );
    out.push_str(&sections);
    let stops = [model.tokens.end_of_text()?, model.tokens.marker(END)?];
    let prompts = SAMPLE_PROMPTS.iter().map(|p| model.tokens.encode(p)).collect::<Result<Vec<_>>>()?;
    let drawing = Drawing { temperature: 0.7, tokens: 300, seed: 1 };
    let written = continue_all(&model.layout, &model.params, &prompts, &stops, drawing);
    for (i, (prompt, ids)) in SAMPLE_PROMPTS.iter().zip(written).enumerate() {
        let text = model.tokens.decode(&ids)?;
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}. **`{prompt}`**{}\n", i + 1, text.replace('\n', "\n   "));
    }
    Ok(out)
}

fn percent(written: &Written, measure: impl Fn(&Written) -> f64) -> f64 {
    measure(written) * 100.0
}
