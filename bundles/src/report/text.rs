//! Text for the standard fonts: their characters, the width of a text, and line breaks.

use super::widths::{BOLD, REGULAR};

/// The fonts of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Font {
    Regular,
    Bold,
}

/// Encodes text in WinAnsi, the encoding of the standard fonts. Missing characters become similar ones, or `?`.
pub(super) fn encode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' | '\u{a1}'..='\u{ff}' => out.push(u8::try_from(u32::from(c)).unwrap_or(b'?')),
            '\t' | '\n' | '\r' | '\u{a0}' | '\u{2009}' | '\u{202f}' => out.push(b' '),
            '€' => out.push(0x80),
            '‚' => out.push(0x82),
            '„' => out.push(0x84),
            '…' => out.push(0x85),
            '‰' => out.push(0x89),
            'Š' => out.push(0x8a),
            '‹' => out.push(0x8b),
            'Œ' => out.push(0x8c),
            'Ž' => out.push(0x8e),
            '‘' => out.push(0x91),
            '’' => out.push(0x92),
            '“' => out.push(0x93),
            '”' => out.push(0x94),
            '•' => out.push(0x95),
            '–' => out.push(0x96),
            '—' => out.push(0x97),
            '™' => out.push(0x99),
            'š' => out.push(0x9a),
            '›' => out.push(0x9b),
            'œ' => out.push(0x9c),
            'ž' => out.push(0x9e),
            'Ÿ' => out.push(0x9f),
            '→' => out.extend(b"->"),
            '←' => out.extend(b"<-"),
            '≥' => out.extend(b">="),
            '≤' => out.extend(b"<="),
            '−' => out.push(b'-'),
            c if c.is_control() => {}
            _ => out.push(b'?'),
        }
    }
    out
}

/// In points.
pub(super) fn width(encoded: &[u8], font: Font, size: f32) -> f32 {
    let table = if font == Font::Bold { &BOLD } else { &REGULAR };
    let sum: u32 =
        encoded.iter().map(|b| u32::from(table.get(usize::from(*b).wrapping_sub(32)).copied().unwrap_or(0))).sum();
    sum as f32 * size / 1000.0
}

/// Lines that fit: broken at blanks, and within words that are longer than a line, there after `/`, `-`, `_`, `.`, `:` where possible.
pub(super) fn wrap(text: &str, font: Font, size: f32, most: f32) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    let encoded = encode(text);
    for word in encoded.split(|b| *b == b' ').filter(|w| !w.is_empty()) {
        let mut word = word;
        let joined =
            |line: &[u8], word: &[u8]| if line.is_empty() { word.to_vec() } else { [line, b" ", word].concat() };
        if width(&joined(&line, word), font, size) <= most {
            line = joined(&line, word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        while width(word, font, size) > most {
            let fits = (1..word.len()).take_while(|n| width(&word[..*n], font, size) <= most).last().unwrap_or(1);
            let soft = word[..fits].iter().rposition(|b| b"/-_.:,@=".contains(b)).map(|at| at + 1);
            // A break near the start of a line is not used.
            let at = soft.filter(|at| *at * 3 > fits).unwrap_or(fits);
            lines.push(word[..at].to_vec());
            word = &word[at..];
        }
        line = word.to_vec();
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_fit_and_lose_no_text() {
        let text = "a word, averyveryverylongwordwithoutanyblank/that-must_be.broken somewhere — and “more” ≥ 1";
        for most in [20.0, 60.0, 200.0] {
            let lines = wrap(text, Font::Regular, 10.0, most);
            assert!(lines.iter().all(|l| width(l, Font::Regular, 10.0) <= most), "{most}: {lines:?}");
            let kept: Vec<u8> = lines.concat().into_iter().filter(|b| *b != b' ').collect();
            let expected: Vec<u8> = encode(text).into_iter().filter(|b| *b != b' ').collect();
            assert_eq!(kept, expected);
        }
        assert_eq!(wrap("", Font::Bold, 10.0, 50.0), vec![Vec::<u8>::new()]);
    }

    #[test]
    fn text_widths_match_the_font_metrics() {
        assert!((width(b"Hello", Font::Regular, 1000.0) - 2278.0).abs() < 0.1);
        assert!((width(b"Hello", Font::Bold, 1000.0) - 2445.0).abs() < 0.1);
        assert!((width(&encode("€…"), Font::Regular, 1000.0) - 1556.0).abs() < 0.1);
    }
}
