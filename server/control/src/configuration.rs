//! Configurations: the primary, and the members that have everything acknowledged.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a site.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Site(String);

impl Site {
    /// A site of that name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The incarnation of a site's disk. A folder that was lost and recreated has a new one, and has nothing that the old
/// one acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// The record of the witness. The configuration with the largest epoch is in force, and each epoch has exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Counts the changes.
    pub epoch: u64,
    /// The site that appends.
    pub primary: Site,
    /// The sites that have everything acknowledged, with their incarnations; the primary is among them.
    pub members: BTreeMap<Site, Incarnation>,
    /// Whether a planned failover holds: the home site gets leadership back only by a command, or if the primary is
    /// lost. It ends when the home site is primary. Absent in the records of older releases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

impl Configuration {
    /// Whether a planned failover holds: a mark says nothing once the home site is primary, as after it was moved in the settings.
    pub fn holds(&self, home: &Site) -> bool {
        self.held && self.primary != *home
    }

    /// Whether this incarnation of a site is a member.
    pub fn has(&self, site: &Site, incarnation: Incarnation) -> bool {
        self.members.get(site) == Some(&incarnation)
    }

    /// The next one, with one member more.
    pub fn with(&self, site: &Site, incarnation: Incarnation) -> Self {
        let mut next = self.next();
        next.members.insert(site.clone(), incarnation);
        next
    }

    /// The next one, with one member less.
    pub fn without(&self, site: &Site) -> Self {
        let mut next = self.next();
        next.members.remove(site);
        next
    }

    /// The next configuration after a failover: a member is the new primary, and the old primary is no longer a member.
    pub fn taken_by(&self, site: &Site) -> Self {
        Self { primary: site.clone(), ..self.without(&self.primary) }
    }

    /// The next configuration after a handover: the primary has passed leadership to another member.
    pub fn given_to(&self, site: &Site) -> Self {
        Self { primary: site.clone(), ..self.next() }
    }

    fn next(&self) -> Self {
        Self { epoch: self.epoch + 1, ..self.clone() }
    }
}

/// The traffic weights. A site that lacks acknowledged control data (revoked keys) gets none. The current primary gets
/// at least what the home site has in normal operation.
pub fn weights(configuration: &Configuration, home: &Site, wanted: &BTreeMap<Site, u32>) -> BTreeMap<Site, u32> {
    let share = |site: &Site| wanted.get(site).copied().unwrap_or_default();
    let of = |site: &Site| match configuration.members.contains_key(site) {
        false => 0,
        true if *site == configuration.primary => share(site).max(share(home)),
        true => share(site),
    };
    wanted.keys().map(|site| (site.clone(), of(site))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> Site {
        Site::new(name)
    }

    #[test]
    fn traffic_weights_follow_the_configuration() {
        let wanted: BTreeMap<_, _> = [("a", 100), ("b", 50), ("c", 0)].map(|(name, share)| (site(name), share)).into();
        let members = ["a", "b", "c"].map(|name| (site(name), Incarnation(1))).into();
        let well = Configuration { epoch: 3, primary: site("a"), members, held: false };
        let shares = |configuration: &Configuration| -> Vec<u32> {
            weights(configuration, &site("a"), &wanted).into_values().collect()
        };
        assert_eq!(shares(&well), [100, 50, 0]);
        assert_eq!(shares(&well.taken_by(&site("b"))), [0, 100, 0]);
        assert_eq!(shares(&well.taken_by(&site("c"))), [0, 50, 100]);
        assert_eq!(shares(&well.given_to(&site("c"))), [100, 50, 100]);
        assert_eq!(shares(&well.without(&site("b"))), [100, 0, 0]);
    }

    #[test]
    fn record_of_an_older_release_is_not_held() {
        let old = r#"{"epoch":3,"primary":"b","members":{"a":1,"b":2}}"#;
        let read: Configuration = serde_json::from_str(old).unwrap();
        assert!(!read.held);
        // An older release compares what it is sent with what it knows.
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let held = Configuration { held: true, ..read };
        let stored = serde_json::to_string(&held).unwrap();
        assert_eq!(serde_json::from_str::<Configuration>(&stored).unwrap(), held);
    }
}
