//! Text as it becomes certain: bytes in, whole characters out, stop strings cut.

use std::sync::Arc;

/// Turns the bytes of one answer's tokens into text.
///
/// It holds back the bytes of an unfinished character and the longest suffix that could begin a stop string. However the
/// bytes are split, the deltas joined are the same text: what [`String::from_utf8_lossy`] makes of all bytes, cut before
/// the stop string that is complete first (the longest, if several are at the same place).
#[derive(Debug)]
pub struct Stream {
    stops: Arc<[String]>,
    /// Bytes of a character that is not complete yet; never more than three.
    bytes: Vec<u8>,
    /// Text that may yet turn out to begin a stop string.
    held: String,
    stopped: bool,
}

impl Stream {
    /// Empty stop strings stop nothing.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Stream { stops, bytes: Vec::new(), held: String::new(), stopped: false }
    }

    /// Takes the bytes of one token; gives the text that is certain now. After a stop string nothing more comes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.bytes.extend_from_slice(bytes);
        let mut fresh = String::new();
        let mut rest = self.bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    fresh.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    fresh.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        // Can never become a character, whatever follows.
                        Some(length) => {
                            fresh.push(char::REPLACEMENT_CHARACTER);
                            rest = &tail[length..];
                        }
                        None => {
                            rest = tail;
                            break;
                        }
                    }
                }
            }
        }
        self.bytes = rest.to_vec();
        self.pass(&fresh)
    }

    /// The rest: an unfinished character becomes U+FFFD, and held text is released.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let mut rest = String::new();
        if !self.bytes.is_empty() {
            self.bytes.clear();
            rest = self.pass("\u{FFFD}");
        }
        rest.push_str(&std::mem::take(&mut self.held));
        rest
    }

    /// Whether a stop string has ended the text.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn pass(&mut self, fresh: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(fresh);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Where the stop string begins that is complete first.
    ///
    /// Looking for the first to be complete, not the first to begin, makes the answer the same for every split.
    fn first_stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }
}

/// How many bytes at the end of `text` could be the beginning of `stop`.
///
/// A beginning of a stop string starts with a whole character, so the cut is between characters.
fn overlap(text: &str, stop: &str) -> usize {
    let most = (stop.len() - 1).min(text.len());
    (1..=most).rev().find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The deltas for the given pieces, and whether a stop string ended them.
    fn run(pieces: &[&[u8]], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stream = Stream::new(&stops);
        let mut deltas: Vec<String> = pieces.iter().map(|piece| stream.push(piece)).collect();
        deltas.push(stream.finish());
        (deltas, stream.stopped())
    }

    /// The rule by the book: read the text character by character; the first moment it ends with a stop string is the end.
    fn by_the_book(bytes: &[u8], stops: &[String]) -> (String, bool) {
        let whole = String::from_utf8_lossy(bytes);
        let mut text = String::new();
        for c in whole.chars() {
            text.push(c);
            if let Some(longest) = stops.iter().filter(|s| !s.is_empty() && text.ends_with(*s)).map(String::len).max() {
                text.truncate(text.len() - longest);
                return (text, true);
            }
        }
        (text, false)
    }

    #[test]
    fn split_character_is_held_back() {
        let (deltas, _) = run(&[b"a\xE2", b"\x82", b"\xAC!"], &[]);
        assert_eq!(deltas, ["a", "", "€!", ""]);
    }

    #[test]
    fn incomplete_character_is_replaced_only_at_the_end() {
        let (deltas, _) = run(&[b"a\xF0\x9F", b"\x98"], &[]);
        assert_eq!(deltas, ["a", "", "\u{FFFD}"]);
        let (deltas, _) = run(&[b"a\xF0\x9F", b"b"], &[]);
        assert_eq!(deltas, ["a", "\u{FFFD}b", ""]);
    }

    #[test]
    fn stop_string_across_chunk_boundaries_is_cut_exactly() {
        assert_eq!(
            run(&[b"one ST", b"O", b"P two"], &["STOP"]),
            (vec!["one ".into(), "".into(), "".into(), "".into()], true)
        );
        assert_eq!(run(&[b"one ST", b"x"], &["STOP"]), (vec!["one ".into(), "STx".into(), "".into()], false));
        assert_eq!(run(&[b"aab"], &["ab"]), (vec!["a".into(), "".into()], true));
        assert_eq!(run(&[b"one ST"], &["STOP"]), (vec!["one ".into(), "ST".into()], false));
    }

    #[test]
    fn first_completed_stop_string_ends_the_text() {
        // Byte by byte `b` is seen before `abc`; at once it must be the same.
        assert_eq!(run(&[b"x", b"a", b"b", b"c"], &["abc", "b"]).0.concat(), "xa");
        assert_eq!(run(&[b"xabc"], &["abc", "b"]).0.concat(), "xa");
        // At the same place the longest counts.
        assert_eq!(run(&[b"xab"], &["b", "ab"]).0.concat(), "x");
    }

    #[test]
    fn stream_holds_back_text_only_while_a_stop_string_may_match() {
        let (deltas, _) = run(&[b"abab", b"c"], &["ababd"]);
        assert_eq!(deltas, ["", "ababc", ""]);
        let (deltas, _) = run(&[b"xab", b"ab"], &["abd"]);
        assert_eq!(deltas, ["x", "ab", "ab"]);
    }

    proptest! {
        #[test]
        fn streamed_text_is_the_same_for_every_split(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop::sample::select(vec![b'a', b'b', 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF]), 0..6),
                    "[abé€😀]{0,4}".prop_map(String::into_bytes),
                ],
                0..12,
            ),
            stops in prop::collection::vec("[abé€\u{FFFD}]{0,4}", 0..4),
        ) {
            let mut stream = Stream::new(&stops);
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&stream.push(piece));
            }
            text.push_str(&stream.finish());
            prop_assert_eq!((text, stream.stopped()), by_the_book(&pieces.concat(), &stops));
        }
    }
}
