//! Special tokens that clients write: a mark within each keeps it text, while those of a chat template stay tokens.
//!
//! The mark is a character that no text of the request has. It is put into the texts before a template is rendered, so
//! that templates see everything else as it is, and taken out again between finding special tokens and cutting words.

use std::collections::{BTreeMap, HashSet};

use tokenizers::{
    Model as _, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizer as _, Token,
};

use super::{TextError, Tokenizer};

/// Noncharacters of Unicode, which normalizers and templates leave as they are.
pub const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// The spellings of special tokens, as a tree of bytes. Those of one character are not in it: nothing fits inside.
#[derive(Debug, Default)]
pub(super) struct Spellings {
    nodes: Vec<Node>,
    spellings: HashSet<String>,
    /// Whether JSON writes one of them in another way.
    has_escapes: bool,
}

#[derive(Debug, Default)]
struct Node {
    next: BTreeMap<u8, usize>,
    is_end: bool,
}

impl Spellings {
    pub(super) fn new(spellings: impl Iterator<Item = String>) -> Self {
        let mut tree = Self { nodes: vec![Node::default()], ..Self::default() };
        for spelling in spellings.filter(|spelling| spelling.chars().nth(1).is_some()) {
            tree.has_escapes |= spelling.contains(|c: char| c.is_control() || c == '"' || c == '\\');
            let mut at = 0;
            for byte in spelling.bytes() {
                let end = tree.nodes.len();
                at = *tree.nodes[at].next.entry(byte).or_insert(end);
                if at == end {
                    tree.nodes.push(Node::default());
                }
            }
            tree.nodes[at].is_end = true;
            tree.spellings.insert(spelling);
        }
        tree
    }

    /// Whether a text begins with one of them.
    fn begin(&self, text: &[u8]) -> bool {
        let mut node = self.nodes.first();
        for byte in text {
            node = node.and_then(|node| self.nodes.get(*node.next.get(byte)?));
            match node {
                None => return false,
                Some(node) if node.is_end => return true,
                Some(_) => {}
            }
        }
        false
    }

    fn is_in(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        (0..bytes.len()).any(|at| bytes.get(at..).is_some_and(|rest| self.begin(rest)))
    }
}

impl Tokenizer {
    /// Whether texts of a JSON document may spell special tokens. Almost all documents are answered without decoding them.
    pub fn may_spell_special(&self, document: &str) -> bool {
        self.spellings.has_escapes || document.contains("\\u") || self.spellings.is_in(document)
    }

    /// The text with `mark` within each spelling of a special token; none if it has none. Overlapping ones are all marked.
    pub fn mark_special(&self, text: &str, mark: char) -> Option<String> {
        let mut marked = String::new();
        let mut is_marked = false;
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            marked.push(first);
            if self.spellings.begin(rest.as_bytes()) {
                marked.push(mark);
                is_marked = true;
            }
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
        is_marked.then_some(marked)
    }

    /// Splits a rendered text whose marks keep special tokens text. The tokens are those of the text without marks.
    pub fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, TextError> {
        if !self.keeps(mark) {
            // Each part has none of its marked tokens.
            let parts = text.split(mark).map(|part| self.encode(part, false));
            return Ok(parts.collect::<Result<Vec<_>, _>>()?.concat());
        }
        self.refuse_growth(text)?;
        match &self.around {
            Some(_) if self.is_long(text) => self.in_parts(text, None, Some(mark)),
            _ => self.whole_marked(text, mark),
        }
    }

    pub(super) fn whole_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, TextError> {
        let failed = |error: tokenizers::Error| TextError::Encode(error.to_string());
        let mut words = self.inner.get_added_vocabulary().extract_and_normalize(self.inner.get_normalizer(), text);
        let unmark = |part: &mut NormalizedString| {
            part.filter(|c| c != mark);
            Ok(())
        };
        words.normalize(unmark).map_err(failed)?;
        if let Some(splitter) = self.inner.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut words).map_err(failed)?;
        }
        words.tokenize(|part| self.text_tokens(part.get())).map_err(failed)?;
        let splits = words.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(splits.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten()).map(|token| token.id).collect())
    }

    /// The tokens of a word, none of them special. Models such as Unigram have special tokens among their words: then its
    /// first letter and the others are words of their own.
    fn text_tokens(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.inner.get_model().tokenize(word)?;
        let spells_special = |token: &Token| {
            let spelling = word.get(token.offsets.0..token.offsets.1);
            spelling.filter(|spelling| self.spellings.spellings.contains(*spelling))
        };
        if tokens.iter().all(|token| spells_special(token).is_none()) {
            return Ok(tokens);
        }
        let mut parts = Vec::new();
        for token in tokens {
            match spells_special(&token) {
                None => parts.push(token),
                Some(spelling) => {
                    let first = spelling.chars().next().map_or(0, char::len_utf8);
                    let (first, others) = spelling.split_at(first);
                    parts.extend(self.inner.get_model().tokenize(first)?);
                    parts.extend(self.text_tokens(others)?);
                }
            }
        }
        Ok(parts)
    }

    /// Whether the mark is still there after normalization.
    fn keeps(&self, mark: char) -> bool {
        let Some(normalizer) = self.inner.get_normalizer() else { return true };
        let mut marked = NormalizedString::from(format!("<{mark}|").as_str());
        normalizer.normalize(&mut marked).is_ok() && marked.get().matches(mark).count() == 1
    }
}
