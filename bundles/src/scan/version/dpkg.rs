//! Debian's order, as deb-version(7) has it: `[epoch:]upstream[-revision]`, with `~` before everything, even the end.

use std::cmp::Ordering;

/// `None` when one of them has an epoch that is no number.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    let (a, b) = (split(a)?, split(b)?);
    Some(a.0.cmp(&b.0).then_with(|| part(a.1, b.1)).then_with(|| part(a.2, b.2)))
}

fn split(text: &str) -> Option<(u64, &str, &str)> {
    let text = text.trim();
    let (epoch, rest) = match text.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().ok()?, rest),
        None => (0, text),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (!upstream.is_empty()).then_some((epoch, upstream, revision))
}

/// Where a character stands: `~` before the end, the end before letters, letters before everything else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(b'~') => -1,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

fn part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let digit = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
    while !a.is_empty() || !b.is_empty() {
        while (!a.is_empty() && !digit(a)) || (!b.is_empty() && !digit(b)) {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let order = number(&mut a).cmp(&number(&mut b));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the digits in front: their number, whatever its size, as (how many digits, the digits).
fn number<'a>(bytes: &mut &'a [u8]) -> (usize, &'a [u8]) {
    let end = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, rest) = bytes.split_at(end);
    *bytes = rest;
    let digits = &digits[digits.iter().position(|b| *b != b'0').unwrap_or(digits.len())..];
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_version_order_matches_dpkg() {
        // A small generator of our own: the same pairs in every run, close to one another so that the tails decide.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let pieces = [
            "0", "1", "2", "9", "10", "01", "a", "b", "rc", "~", "~~", "+", ".", ".", "+b", "~rc1", "deb12u3", "-", ".",
        ];
        let mut pairs = vec![("1.0".to_owned(), "1.0".to_owned()), ("1.0-1".to_owned(), "1.0".to_owned())];
        for _ in 0..600 {
            let mut make = || {
                let mut text = if next(4) == 0 { format!("{}:", next(3)) } else { String::new() };
                text.push_str(&next(3).to_string());
                for _ in 0..next(5) {
                    text.push_str(pieces[next(pieces.len())]);
                }
                // dpkg wants a revision after a hyphen.
                if text.ends_with('-') {
                    text.push('1');
                }
                text
            };
            pairs.push((make(), make()));
        }
        // One shell for all, so that the test starts 1200 small programs rather than 1200 shells.
        let script = "while read -r a b; do if dpkg --compare-versions \"$a\" lt \"$b\"; then echo Less; \
                      elif dpkg --compare-versions \"$a\" eq \"$b\"; then echo Equal; else echo Greater; fi; done";
        let input: String = pairs.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        let Some(output) = crate::scan::tool::run("dpkg", "sh", &["-c", script], &input) else { return };
        let output: Vec<&str> = output.lines().collect();
        assert_eq!(output.len(), pairs.len());
        for ((a, b), output) in pairs.iter().zip(output) {
            assert_eq!(format!("{:?}", compare(a, b).unwrap()), output, "{a} and {b}");
        }
    }

    #[test]
    fn dpkg_numbers_have_any_length_and_epochs_must_be_numeric() {
        assert_eq!(compare("20230101000000000000000000001", "20230101000000000000000000000"), Some(Ordering::Greater));
        assert_eq!((compare("x:1", "1"), compare("", "1")), (None, None));
    }
}
