//! Names that are validated at construction. Clones share one text.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A name that breaks its rule, with the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a valid {what}: {rule}", shown(.name))]
pub struct InvalidName {
    /// The kind of name: `site name`, `resource id`.
    pub what: &'static str,
    /// The text that was given.
    pub name: String,
    /// The violated rule, as a sentence part.
    pub rule: &'static str,
}

/// An invalid name can be megabytes long; an error shows its start.
fn shown(name: &str) -> String {
    const SHOWN: usize = 60;
    if name.chars().count() <= SHOWN {
        name.to_owned()
    } else {
        format!("{}…", name.chars().take(SHOWN).collect::<String>())
    }
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a text against the rule of this name.
            pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidName> {
                let name = name.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(name) {
                    Ok(Self(name.into()))
                } else {
                    Err(InvalidName { what: $what, name: name.to_owned(), rule: $rule })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                (*name.0).to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(Cow::<str>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Lower-case letters, digits and inner hyphens, a letter first: valid as a DNS label, a folder and a tag everywhere.
fn label(name: &str, max: usize) -> bool {
    let bytes = name.as_bytes();
    (1..=max).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

checked_name!(
    /// The name of an environment, as in `--env staging`.
    EnvironmentName,
    "environment name",
    "use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter",
    |s| label(s, 40)
);
checked_name!(
    /// The name of one location: provider, account, region and runtime.
    SiteName,
    "site name",
    "use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter",
    |s| label(s, 40)
);
checked_name!(
    /// The name of a component within a site: `database`, `gateway`.
    ComponentName,
    "component name",
    "use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter",
    |s| label(s, 40)
);
checked_name!(
    /// A kind of resource: `PROVIDER.NOUN`, such as `onprem.process`.
    KindName,
    "kind name",
    "use two lower-case labels joined by a dot",
    |s| s.split_once('.').is_some_and(|(provider, noun)| label(provider, 20) && label(noun, 40))
);
checked_name!(
    /// One resource of an environment: `SITE/COMPONENT` or `SITE/COMPONENT/PART`.
    ResourceId,
    "resource id",
    "use two or three lower-case labels joined by slashes",
    |s| (2..=3).contains(&s.split('/').count()) && s.split('/').all(|part| label(part, 40))
);
checked_name!(
    /// The provider's id of an object: an ARN, a self link, a path, a process name.
    CloudId,
    "cloud id",
    "use 1 to 1024 printable characters",
    |s| (1..=1024).contains(&s.len()) && !s.chars().any(char::is_control)
);

impl ResourceId {
    /// Builds `SITE/COMPONENT`.
    pub fn of(site: &SiteName, component: &ComponentName) -> Self {
        Self(format!("{site}/{component}").into())
    }

    /// Builds `SITE/COMPONENT/PART`; `part` must be a label.
    pub fn part(site: &SiteName, component: &ComponentName, part: &str) -> Result<Self, InvalidName> {
        Self::new(format!("{site}/{component}/{part}"))
    }

    /// The site's part of the id.
    pub fn site(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The component's part of the id.
    pub fn component(&self) -> &str {
        self.0.split('/').nth(1).unwrap_or_default()
    }
}

/// The identity of a deployment, whatever its name: created by the first `up`, a tag of every object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(pub Uuid);

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Lineage {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(s).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names_must_be_labels() {
        for good in ["a", "staging", "multi-region-2"] {
            assert!(EnvironmentName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "../x", "1a", &"a".repeat(41)] {
            assert!(EnvironmentName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resource_ids_have_two_or_three_parts() {
        for good in ["here/database", "here/server/replica-0"] {
            assert!(ResourceId::new(good).is_ok(), "{good}");
        }
        for bad in ["here", "here//x", "a/b/c/d", "here/../x", "/a/b"] {
            assert!(ResourceId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_invalid_names_are_truncated_in_messages() {
        let error = SiteName::new("x".repeat(100_000)).unwrap_err().to_string();
        assert!(error.len() < 300, "{}", error.len());
    }
}
