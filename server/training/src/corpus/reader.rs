//! Reads a story and judges whether its people and things hold together, by the world's own tables.

use super::world::{MEN, THINGS, WOMEN};
use std::collections::{HashMap, HashSet};

/// Judges mentions of people and things.
pub struct Reader {
    women: HashMap<&'static str, bool>,
    things: HashSet<&'static str>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader of the world's stories.
    pub fn new() -> Self {
        let names = WOMEN.iter().map(|n| (*n, true)).chain(MEN.iter().map(|n| (*n, false)));
        Self { women: names.collect(), things: THINGS.iter().copied().collect() }
    }

    /// Counts the mentions that agree with what came before, and all of them.
    ///
    /// A name is sound if it is one of the first two people of the story. A pronoun is sound if somebody of that sex has been
    /// named, or will be named first in the same sentence. A thing of the world is sound with `the` if it was mentioned before.
    pub fn mentions(&self, story: &str) -> (usize, usize) {
        let (mut sound, mut all) = (0, 0);
        let mut cast: Vec<&str> = Vec::new();
        let mut invented = false;
        let mut things: HashSet<&str> = HashSet::new();
        let words: Vec<&str> = story
            .split(|c: char| c.is_whitespace() || c == '"')
            .map(|w| w.trim_matches(|c: char| !c.is_alphanumeric()).trim_end_matches("'s"))
            .filter(|w| !w.is_empty())
            .collect();
        for (i, word) in words.iter().enumerate() {
            if self.women.contains_key(word) {
                if !cast.contains(word) {
                    cast.push(word);
                }
                all += 1;
                sound += usize::from(cast.iter().position(|n| n == word).is_some_and(|at| at < 2));
                continue;
            }
            // A name that is in no table may be of either sex.
            if i > 0
                && word.starts_with(char::is_uppercase)
                && word.len() > 2
                && words.iter().filter(|w| w == &word).count() > 1
            {
                invented |= !COMMON.contains(word);
            }
            let she = match word.to_lowercase().as_str() {
                "she" | "her" => Some(true),
                "he" | "him" | "his" => Some(false),
                _ => None,
            };
            if let Some(she) = she {
                let ahead = words[i..].iter().take(12).copied();
                let known = cast.iter().copied().chain(ahead).any(|n| self.women.get(n) == Some(&she));
                all += 1;
                sound += usize::from(known || invented);
            } else if let Some(thing) = self.things.get(word) {
                let definite = words[i.saturating_sub(2)..i].iter().any(|w| w.eq_ignore_ascii_case("the"));
                if definite {
                    all += 1;
                    sound += usize::from(things.contains(thing));
                }
                things.insert(thing);
            }
        }
        (sound, all)
    }
}

/// Words that begin sentences often enough to look like names.
const COMMON: &[&str] = &[
    "The",
    "There",
    "Then",
    "They",
    "That",
    "Without",
    "With",
    "When",
    "But",
    "Once",
    "One",
    "From",
    "And",
    "She",
    "Her",
    "His",
    "Not",
    "All",
    "After",
    "Now",
    "Soon",
    "Suddenly",
    "Just",
    "Before",
    "Every",
    "Every",
    "Perhaps",
    "You",
    "Yes",
    "What",
    "Where",
    "Who",
    "Why",
    "Thank",
    "Take",
    "How",
    "For",
    "Inside",
    "Under",
    "Behind",
    "Beside",
    "Nobody",
    "Everybody",
    "Some",
    "Only",
    "Let",
    "This",
    "First",
    "Next",
    "Look",
    "Come",
    "Back",
    "Each",
    "Both",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(story: &str, sound: usize, all: usize) {
        assert_eq!(Reader::new().mentions(story), (sound, all), "{story}");
    }

    #[test]
    fn consistent_stories_pass_and_inconsistent_ones_fail() {
        check("Mira lost her key. She met Tom. He saw the key.", 6, 6);
        check("Mira lost a key. He met Ben. Then Otto came.", 3, 4);
        check("Mira lost her key. The lantern was there.", 2, 3);
        check("Mira was sad. Mira saw the key.", 2, 3);
    }
}
