//! Python's order, by PEP 440: `[N!]N(.N)*[{a|b|rc}N][.postN][.devN][+local]`.

use std::cmp::Ordering;

/// Sorts like the version does. Later ones are larger.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    epoch: u64,
    release: Vec<u64>,
    /// -1: a development version of the release itself; 0 to 2: a, b, rc; 3: the release.
    pre: (i8, u64),
    post: Option<u64>,
    /// A development version comes before what it becomes: true is later.
    dev: (bool, u64),
    local: Vec<(bool, u64, String)>,
}

/// `None` when one of them is no such version.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    Some(key(a)?.cmp(&key(b)?))
}

fn key(text: &str) -> Option<Key> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_prefix('v').unwrap_or(&text);
    let (public, local) = text.split_once('+').unwrap_or((text, ""));
    let (epoch, rest) = match public.split_once('!') {
        Some((epoch, rest)) => (epoch.parse().ok()?, rest),
        None => (0, public),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (numbers, mut rest) = rest.split_at(end);
    let mut release: Vec<u64> =
        numbers.trim_end_matches('.').split('.').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    while release.len() > 1 && release.last() == Some(&0) {
        release.pop();
    }
    let (mut pre, mut post, mut dev) = (None, None, None);
    while !rest.is_empty() {
        rest = rest.trim_start_matches(['.', '-', '_']);
        let word = &rest[..rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len())];
        let after = rest[word.len()..].trim_start_matches(['.', '-', '_']);
        let digits = &after[..after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())];
        let number = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        match word {
            "a" | "alpha" => pre = Some((0, number)),
            "b" | "beta" => pre = Some((1, number)),
            "rc" | "c" | "pre" | "preview" => pre = Some((2, number)),
            // `1.0-1` is `1.0.post1`.
            "post" | "rev" | "r" => post = Some(number),
            "" if !digits.is_empty() => post = Some(number),
            "dev" => dev = Some(number),
            _ => return None,
        }
        rest = &after[digits.len()..];
    }
    let pre = match (pre, post, dev) {
        (Some(pre), ..) => pre,
        (None, None, Some(_)) => (-1, 0),
        _ => (3, 0),
    };
    let local = local
        .split(['.', '-', '_'])
        .filter(|p| !p.is_empty())
        .map(|p| p.parse().map_or((false, 0, p.to_owned()), |n| (true, n, String::new())))
        .collect();
    Some(Key { epoch, release, pre, post, dev: dev.map_or((true, 0), |n| (false, n)), local })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order that PEP 440 itself lists.
    #[test]
    fn python_version_order_matches_pep_440() {
        let sorted = [
            "1.dev0",
            "1.0.dev456",
            "1.0a1",
            "1.0a2.dev456",
            "1.0a12.dev456",
            "1.0a12",
            "1.0b1.dev456",
            "1.0b2",
            "1.0b2.post345.dev456",
            "1.0b2.post345",
            "1.0rc1.dev456",
            "1.0rc1",
            "1.0",
            "1.0+abc.5",
            "1.0+abc.7",
            "1.0+5",
            "1.0.post456.dev34",
            "1.0.post456",
            "1.0.15",
            "1.1.dev1",
            "1!0.1",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Some(Ordering::Less), "{} before {}", pair[0], pair[1]);
        }
        assert_eq!(compare("1.0", "v1.0.0"), Some(Ordering::Equal));
        assert_eq!((compare("1.0", "one"), compare("1.0.x", "1")), (None, None));
    }
}
