//! Alpine's order: `1.2.3a_rc1_p2-r4`. Numbers after the first that begin with 0 are compared as fractions.

use std::cmp::Ordering;

/// Suffixes in their order; between `rc` and `cvs` stands the version without any.
const SUFFIXES: [&str; 9] = ["alpha", "beta", "pre", "rc", "cvs", "svn", "git", "hg", "p"];
const PLAIN: usize = 4;

#[derive(Debug)]
struct Version<'a> {
    numbers: Vec<&'a str>,
    letter: Option<u8>,
    suffixes: Vec<(usize, &'a str)>,
    revision: &'a str,
}

/// `None` when one of them is no such version.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (parse(a)?, parse(b)?);
    for at in 0..a.numbers.len().max(b.numbers.len()) {
        let order = match (a.numbers.get(at), b.numbers.get(at)) {
            (Some(x), Some(y)) if at > 0 && (x.starts_with('0') || y.starts_with('0')) => x.cmp(y),
            (Some(x), Some(y)) => number(x).cmp(&number(y)),
            // `1.2.1` is later than `1.2`, also than `1.2a`.
            (x, y) => x.is_some().cmp(&y.is_some()),
        };
        if order != Ordering::Equal {
            return Some(order);
        }
    }
    let letters = a.letter.cmp(&b.letter);
    if letters != Ordering::Equal {
        return Some(letters);
    }
    let rank = |suffix: Option<&(usize, &str)>| match suffix {
        Some((kind, _)) if *kind < PLAIN => *kind,
        Some((kind, _)) => kind + 1,
        None => PLAIN,
    };
    for at in 0..a.suffixes.len().max(b.suffixes.len()) {
        let (x, y) = (a.suffixes.get(at), b.suffixes.get(at));
        let digits =
            |s: Option<&(usize, &'_ str)>| s.map(|(_, digits)| number(digits).1.to_owned()).unwrap_or_default();
        let (dx, dy) = (digits(x), digits(y));
        let order = rank(x).cmp(&rank(y)).then_with(|| (dx.len(), dx).cmp(&(dy.len(), dy)));
        if order != Ordering::Equal {
            return Some(order);
        }
    }
    Some(number(a.revision).cmp(&number(b.revision)))
}

/// A number of any size: (how many digits, the digits).
fn number(text: &str) -> (usize, &str) {
    let digits = text.trim_start_matches('0');
    (digits.len(), digits)
}

fn parse(text: &str) -> Option<Version<'_>> {
    let (rest, revision) = match text.trim().rsplit_once("-r") {
        Some((rest, revision)) => (rest, revision),
        None => (text.trim(), ""),
    };
    // A commit's hash after `~` says where it came from, not how late it is.
    let rest = rest.split('~').next()?;
    let mut parts = rest.split('_');
    let mut main = parts.next()?;
    let letter = main.bytes().last().filter(u8::is_ascii_lowercase);
    if letter.is_some() {
        main = &main[..main.len() - 1];
    }
    let numbers: Vec<&str> = main.split('.').collect();
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if numbers.iter().any(|n| n.is_empty() || !plain(n)) || !plain(revision) {
        return None;
    }
    let mut suffixes = Vec::new();
    for part in parts {
        let word = part.trim_end_matches(|c: char| c.is_ascii_digit());
        suffixes.push((SUFFIXES.iter().position(|s| *s == word)?, &part[word.len()..]));
    }
    Some(Version { numbers, letter, suffixes, revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the list that apk-tools checks itself by.
    #[test]
    fn apk_version_order_matches_the_apk_tools_list() {
        let list = "2.34 > 0.1.0_alpha; 0.1.0_alpha = 0.1.0_alpha; 0.1.0_alpha < 0.1.3_alpha; 0.1.3_alpha > 0.1.0_alpha;
            0.1.0_alpha2 > 0.1.0_alpha; 2.2.39-r1 > 2.2.3-r2; 1.0.4-r3 < 1.0.4-r4; 2.0.0 < 2.0.1; 6.0_pre1 < 6.0;
            6.0 < 6.0_p1; 0.12.1-r1 = 0.12.1-r01; 1.0_p10 > 1.0_p9; 1.1.1a < 1.1.1b; 1.1.1b < 1.1.1.1; 1.02 < 1.1; 1.0.2_rc1 < 1.0.2;
            3.0.0_beta1 > 3.0.0_alpha3; 0.9.8e > 0.9.8d-r9; 5.0_git20230101 > 5.0; 13 > 12.99; 1.2.3_rc1_p1 > 1.2.3_rc1";
        for line in list.split(';') {
            let words: Vec<&str> = line.split_whitespace().collect();
            let wanted = match words[1] {
                "<" => Ordering::Less,
                "=" => Ordering::Equal,
                _ => Ordering::Greater,
            };
            assert_eq!(compare(words[0], words[2]), Some(wanted), "{line}");
            assert_eq!(compare(words[2], words[0]), Some(wanted.reverse()), "{line}, the other way round");
        }
        assert_eq!(compare("1.x", "1"), None);
    }
}
