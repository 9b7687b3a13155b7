//! Compares versions by the rules of their ecosystem.

mod apk;
mod dpkg;
mod pep440;

use std::cmp::Ordering;

/// A family of version numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// crates.io, npm, and Bitnami's advisories of servers such as PostgreSQL.
    Semantic,
    /// Debian and Ubuntu.
    Dpkg,
    /// Alpine and its kin.
    Apk,
    /// Python packages.
    Pep440,
}

impl Scheme {
    /// By the ecosystem's name as OSV writes it: `Debian:12`.
    pub(crate) fn of(ecosystem: &str) -> Option<Scheme> {
        match ecosystem.split(':').next().unwrap_or_default() {
            "crates.io" | "npm" | "Bitnami" => Some(Scheme::Semantic),
            "Debian" | "Ubuntu" => Some(Scheme::Dpkg),
            "Alpine" | "Wolfi" | "Chainguard" => Some(Scheme::Apk),
            "PyPI" => Some(Scheme::Pep440),
            _ => None,
        }
    }

    /// `None` when one of them is no version of this family.
    pub(crate) fn compare(self, a: &str, b: &str) -> Option<Ordering> {
        match self {
            Scheme::Semantic => Some(semantic(a)?.cmp_precedence(&semantic(b)?)),
            Scheme::Dpkg => dpkg::compare(a, b),
            Scheme::Apk => apk::compare(a, b),
            Scheme::Pep440 => pep440::compare(a, b),
        }
    }
}

/// OSV documents leave `.0` out at the end.
fn semantic(text: &str) -> Option<semver::Version> {
    let padded = match text.split(['-', '+']).next()?.matches('.').count() {
        0 if text.bytes().all(|b| b.is_ascii_digit()) => format!("{text}.0.0"),
        1 if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') => format!("{text}.0"),
        _ => text.to_owned(),
    };
    semver::Version::parse(&padded).ok()
}
