//! The meaning of a cloud's error codes: a row for each code whose words say too little or something else, rules for the words that
//! codes are made of, and the HTTP status for the rest.

use textnlp_provider::ErrorKind;

/// Throttling, where the cloud does not tell for how long.
pub const THROTTLED: ErrorKind = ErrorKind::Throttled { after: None };
/// How many codes of a message are looked up.
const MAX_CODES: usize = 200;
/// The longest message that is shown.
const SHOWN: usize = 1_000;

/// A code of its own meaning. `S` is a service of the cloud, and `H` what an operator does about an error.
pub struct Row<S, H> {
    /// `None` for all services.
    pub service: Option<S>,
    /// The code, as [`Table::base`] returns it.
    pub code: &'static str,
    /// A part of the message, where the meaning depends on it; rows with one come first.
    pub phrase: &'static str,
    /// `None` if the message has the code of the cause.
    pub kind: Option<ErrorKind>,
    /// What an operator does.
    pub hint: H,
}

/// The codes of a cloud.
pub struct Table<S: 'static, H: 'static> {
    /// The codes of their own meaning.
    pub rows: &'static [Row<S, H>],
    /// The meaning of words, as patterns of [`matches()`]. The first rule that applies wins.
    pub rules: &'static [(&'static str, ErrorKind)],
    /// The code without what differs between protocols and places.
    pub base: fn(&str) -> &str,
    /// The service that most services build on: their messages have its codes.
    pub common: Option<S>,
}

impl<S: Copy + PartialEq + 'static, H: Copy + Default + 'static> Table<S, H> {
    /// The meaning of a code by its row or by its words, or that of a code in the message.
    pub fn meaning(&self, service: Option<S>, code: &str, message: &str) -> Option<(ErrorKind, H)> {
        let code = (self.base)(code);
        match self.row(&[service, None], code, message) {
            Some(Row { kind: Some(kind), hint, .. }) => Some((kind.clone(), *hint)),
            Some(Row { kind: None, .. }) => {
                self.inside(service, message).or(Some((ErrorKind::Unavailable, H::default())))
            }
            None => self.by_words(code).map(|kind| (kind, H::default())).or_else(|| self.inside(service, message)),
        }
    }

    /// The meaning of the first code in a message that has a row, of this service or of the common one:
    /// `Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than …`.
    fn inside(&self, service: Option<S>, message: &str) -> Option<(ErrorKind, H)> {
        // The end of a sentence is no part of a code; a code has a capital letter after its first one, a word has none.
        let words =
            message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).map(|word| word.trim_matches('.'));
        let codes = words.filter(|word| word.chars().skip(1).any(|c| c.is_ascii_uppercase())).map(self.base);
        codes.take(MAX_CODES).find_map(|code| {
            let found = self.row(&[service, self.common, None], code, message)?;
            Some((found.kind.clone()?, found.hint))
        })
    }

    /// The row of a code, of the first of these services that has one.
    pub fn row(&self, services: &[Option<S>], code: &str, message: &str) -> Option<&'static Row<S, H>> {
        services.iter().find_map(|service| {
            self.rows.iter().find(|row| row.service == *service && row.code == code && message.contains(row.phrase))
        })
    }

    fn by_words(&self, code: &str) -> Option<ErrorKind> {
        self.rules.iter().find(|(pattern, _)| matches(pattern, code)).map(|(_, kind)| kind.clone())
    }
}

/// Whether a code is as a pattern says, in which `*` stands for any text.
pub fn matches(pattern: &str, code: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == code };
    let Some(mut rest) = code.strip_prefix(head) else { return false };
    let (middle, end) = tail.rsplit_once('*').unwrap_or(("", tail));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(end)
}

/// The meaning of an HTTP status.
pub fn by_status(status: Option<u16>) -> ErrorKind {
    match status {
        Some(401 | 403) => ErrorKind::Denied,
        Some(404 | 410) => ErrorKind::NotFound,
        Some(409 | 412 | 423 | 428) => ErrorKind::Conflict,
        // 509: <https://github.com/boto/botocore/blob/1.44.5/botocore/data/_retry.json>
        Some(429 | 509) => THROTTLED,
        Some(400..=499) => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    }
}

/// Whether an answer says that the call did nothing. A timeout, throttling and a conflict may follow an earlier effect.
pub fn is_refused(kind: &ErrorKind, status: Option<u16>) -> bool {
    use ErrorKind::{Capacity, Denied, Exists, Invalid, NotFound, Quota};
    let is_final = matches!(kind, Capacity | Denied | Exists | Invalid | NotFound | Quota);
    is_final && status.is_some_and(|status| (400..500).contains(&status) && ![408, 429].contains(&status))
}

/// A message on one line, of bounded length.
pub fn shown(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_whole_codes() {
        for (pattern, code, expected) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("A*", "AB", true),
            ("*B", "AB", true),
            ("*B*", "ABC", true),
            ("A*C", "ABC", true),
            ("A*B*D", "ABCD", true),
            ("A*B*D", "ABC", false),
            ("AB*BC", "ABC", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, code), expected, "{pattern} {code}");
        }
    }
}
