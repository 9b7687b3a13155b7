//! The plots: each lets a goal meet the world and tells what follows from what.

mod hearts;
mod nature;
mod things;

use super::story::Tale;
use super::teller::with_article;
use super::world::{LOOKS, THINGS};
use hearts::{afraid, honest, kindness, learn, quarrel, rescue};
use nature::{noise, plant, storm, sunrise};
use things::{bake, borrow, deliver, lamp, lost, mend, trade, treasure};

/// A plot tells a whole tale; its number is the number of the goal.
pub(crate) type Plot = fn(&mut Tale);

/// All plots. Their order is part of the corpus: the hold-out depends on it.
pub(crate) const PLOTS: &[Plot] = &[
    lost, deliver, mend, bake, rescue, learn, afraid, quarrel, sunrise, noise, plant, trade, kindness, honest, lamp,
    storm, borrow, treasure,
];

/// A thing into the slots `O` (noun), `aO` (with look and article) and `lO` (with look).
fn thing(w: &mut Tale) {
    let noun = w.t.pick(THINGS);
    let look = w.t.pick(LOOKS);
    let full = if w.t.chance(0.75) { format!("{look} {noun}") } else { noun.to_owned() };
    w.t.put("O", noun);
    w.t.put("aO", with_article(&full));
    w.t.put("lO", full);
}

fn second_place(w: &mut Tale) -> usize {
    let q = w.elsewhere(&[w.here]);
    w.stand("Q", q);
    q
}
