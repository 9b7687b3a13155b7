//! `pii`: personal data in requests.

use super::document::{Section, nearest};

/// What is searched for in requests, and what then happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pii {
    /// What happens with what is found.
    pub action: PiiAction,
    /// What is searched for.
    pub kinds: Vec<PiiKind>,
}

/// What happens with personal data that is found in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PiiAction {
    /// It is counted in the metrics.
    Count,
    /// Each value is replaced by a mark: `[EMAIL]`.
    Mask,
    /// The request is refused.
    Refuse,
}

/// A kind of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PiiKind {
    /// E-mail addresses.
    Email,
    /// International bank account numbers (ISO 13616).
    Iban,
    /// Numbers of payment cards (ISO/IEC 7812).
    Card,
    /// Telephone numbers in international form (E.164).
    Phone,
    /// Social security numbers of the United States.
    Ssn,
    /// Addresses of IPv4 and IPv6.
    Ip,
}

const ACTIONS: [(&str, PiiAction); 3] =
    [("count", PiiAction::Count), ("mask", PiiAction::Mask), ("refuse", PiiAction::Refuse)];

impl PiiAction {
    /// Its name in files and metrics.
    pub fn name(self) -> &'static str {
        ACTIONS.iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }
}

impl PiiKind {
    /// All of them. Where values of several kinds begin at one place, the first one counts.
    pub const ALL: [Self; 6] = [Self::Email, Self::Iban, Self::Card, Self::Phone, Self::Ssn, Self::Ip];

    /// Its name in files, metrics and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Iban => "iban",
            Self::Card => "card",
            Self::Phone => "phone",
            Self::Ssn => "ssn",
            Self::Ip => "ip",
        }
    }

    /// What a masked text has instead of a value.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Email => "[EMAIL]",
            Self::Iban => "[IBAN]",
            Self::Card => "[CARD]",
            Self::Phone => "[PHONE]",
            Self::Ssn => "[SSN]",
            Self::Ip => "[IP]",
        }
    }
}

/// `pii`; without it, requests are not searched.
pub(super) fn pii(parent: &Section<'_>) -> Option<Pii> {
    if !parent.has("pii") {
        return None;
    }
    let section = parent.section("pii");
    if !section.has("action") {
        section.wrong("action", "is missing", "one of: count, mask, refuse".to_owned());
    }
    let action = section.word("action", &ACTIONS).unwrap_or(PiiAction::Count);
    let names = PiiKind::ALL.map(PiiKind::name);
    let mut kinds = Vec::new();
    let wanted = section.texts("kinds");
    if wanted.as_ref().is_some_and(Vec::is_empty) {
        section.wrong("kinds", "is empty", format!("any of: {}", names.join(", ")));
    }
    for name in wanted.unwrap_or_else(|| names.map(str::to_owned).to_vec()) {
        match PiiKind::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) if kinds.contains(&kind) => section.wrong("kinds", format!("has `{name}` twice"), None),
            Some(kind) => kinds.push(kind),
            None => {
                let hint = match nearest(&name, &names) {
                    Some(word) => format!("did you mean `{word}`?"),
                    None => format!("any of: {}", names.join(", ")),
                };
                section.wrong("kinds", format!("cannot have `{name}`"), hint);
            }
        }
    }
    section.finish();
    Some(Pii { action, kinds })
}
