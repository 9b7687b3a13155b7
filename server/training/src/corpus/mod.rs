//! The corpus: text that a small seeded world simulator tells through a paraphrase grammar.
//!
//! A document is a pure function of (seed, split, index), so the corpus needs no disk, training never sees a text twice unless the
//! grammar repeats itself, and anybody can make the same text again. Every choice is counted in bits, which bounds from above
//! how much information a text holds and so tells how well any model could predict it.

mod plots;
mod reader;
mod service;
mod story;
mod talk;
mod tasks;
mod teller;
mod world;

pub use reader::Reader;

use crate::rng::{Rng, mix};
use teller::Teller;

/// Ends every document; also the padding and the start token.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a turn of the operator of the service.
pub const SYSTEM: &str = "<|system|>";
/// Opens a turn of the person.
pub const USER: &str = "<|user|>";
/// Opens a turn of the model.
pub const ASSISTANT: &str = "<|assistant|>";
/// Ends a turn.
pub const END: &str = "<|end|>";
/// All markers, in the order of their token ids.
pub const MARKERS: &[&str] = &[END_OF_TEXT, SYSTEM, USER, ASSISTANT, END];

/// The version of the grammar: a checkpoint made with another one is not continued.
pub const VERSION: u32 = 3;

/// Which part of the world's combinations a story is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Combinations of (character, place, goal) that training sees.
    Train,
    /// Combinations that training never sees.
    HeldOut,
}

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A tale without any marker.
    Story,
    /// Small talk, questions about the world and the product, stories asked for: with chat markers.
    Talk,
    /// Copying, extracting and summarizing.
    Task,
}

/// One text of the corpus.
#[derive(Clone, Debug)]
pub struct Document {
    /// The text, without the marker that ends it.
    pub text: String,
    /// What it is.
    pub kind: Kind,
    /// The bits of choice that went into it.
    pub bits: f64,
    /// Of the stories in it: who, where and what for.
    pub combinations: Vec<Combination>,
}

/// What a story is about; what the hold-out holds out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    /// The name of the main character.
    pub character: String,
    /// The place where the story begins.
    pub place: &'static str,
    /// The number of the plot.
    pub goal: usize,
}

/// Writes one document.
pub fn document(seed: u64, split: Split, index: u64) -> Document {
    let mut rng = Rng::new(seed, mix(index) ^ split as u64);
    // The mixture is part of the recipe, not of the text's information.
    let kind = match rng.below(100) {
        0..60 => Kind::Story,
        60..85 => Kind::Talk,
        _ => Kind::Task,
    };
    document_of(kind, rng, split)
}

/// Writes one document of a kind.
pub fn document_of_kind(seed: u64, split: Split, kind: Kind, index: u64) -> Document {
    document_of(kind, Rng::new(seed, mix(index ^ 0x5eed) ^ ((kind as u64 + 1) << 8) ^ split as u64), split)
}

fn document_of(kind: Kind, rng: Rng, split: Split) -> Document {
    let t = Teller::new(rng);
    let (t, combinations) = match kind {
        Kind::Story => {
            let mut tale = story::Tale::draw(t, split);
            tale.tell();
            while tale.told.len() < 3 && tale.t.chance(0.15) {
                tale.tell_on(split);
            }
            (tale.t, tale.told)
        }
        Kind::Talk => talk::tell(t, split),
        Kind::Task => tasks::tell(t, split),
    };
    Document { text: t.text().to_owned(), kind, bits: t.bits(), combinations }
}

/// Whether a combination of character, place and goal is kept from training: one in sixteen.
fn held_out(character: usize, place: usize, goal: usize) -> bool {
    mix(((character as u64) << 32) ^ ((place as u64) << 16) ^ goal as u64).is_multiple_of(16)
}

/// A name that nobody has, of one to three syllables.
fn invented_name(t: &mut Teller) -> String {
    let syllables = 1 + t.weighted(&[0.3, 0.5, 0.2]);
    let mut name = String::new();
    for i in 0..syllables {
        name.push_str(t.pick(world::ONSETS));
        name.push_str(t.pick(world::VOWELS));
        if i + 1 == syllables {
            name.push_str(t.pick(world::CODAS));
        }
    }
    teller::capitalized(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn document_is_a_pure_function_of_its_index() {
        for index in 0..200 {
            let (a, b) = (document(3, Split::Train, index), document(3, Split::Train, index));
            assert_eq!(a.text, b.text);
            assert_eq!(a.bits.to_bits(), b.bits.to_bits());
        }
        assert_ne!(document(3, Split::Train, 0).text, document(4, Split::Train, 0).text);
    }

    #[test]
    fn training_and_held_out_combinations_are_disjoint() {
        let combinations =
            |split| -> HashSet<Combination> { (0..6_000).flat_map(|i| document(1, split, i).combinations).collect() };
        let (train, held) = (combinations(Split::Train), combinations(Split::HeldOut));
        assert!(held.len() > 500, "{}", held.len());
        assert_eq!(train.intersection(&held).count(), 0);
        let counted = held.iter().all(is_held_out);
        assert!(counted, "a held-out story tells a combination of the training part");
        assert!(!train.iter().any(is_held_out), "training tells a held-out combination");
    }

    fn is_held_out(c: &Combination) -> bool {
        let names: Vec<_> = world::WOMEN.iter().chain(world::MEN).collect();
        let place = world::PLACES.iter().position(|p| p.name == c.place).unwrap();
        names.iter().position(|n| **n == c.character).is_some_and(|name| held_out(name, place, c.goal))
    }

    #[test]
    fn texts_contain_no_grammar_markup() {
        for index in 0..20_000 {
            let d = document(9, Split::Train, index);
            let mut text = d.text.clone();
            for marker in MARKERS {
                text = text.replace(marker, "");
            }
            assert!(!text.contains(['[', ']', '{', '}', '|']), "{text}");
            assert!(!text.contains("  ") && !text.contains(" .") && !text.contains(" a a"), "{text}");
            assert!(d.bits > 1.0 && text.len() > 8, "{text}");
        }
    }

    #[test]
    fn document_mixture_matches_the_recipe() {
        let mut counts = [0usize; 3];
        for index in 0..10_000 {
            counts[document(5, Split::Train, index).kind as usize] += 1;
        }
        assert!((5_800..6_200).contains(&counts[0]) && (2_300..2_700).contains(&counts[1]), "{counts:?}");
    }
}
