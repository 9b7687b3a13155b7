//! The witness: stores the configuration in force, and changes it for sites that are entitled to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::configuration::{Configuration, Incarnation, Site};
use crate::message::{Message, Refusal};
use crate::{DRIFT, Millis};

/// The settings of a witness.
#[derive(Debug, Clone)]
pub struct WitnessSettings {
    /// All sites.
    pub sites: BTreeSet<Site>,
    /// The first primary.
    pub home: Site,
    /// How long a primary must be silent before another site may take over, in milliseconds.
    pub grace: Millis,
}

/// The state that a witness must not lose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The configuration in force.
    pub configuration: Option<Configuration>,
    /// The last configuration with at least two members. Each member that was not removed since has everything ever
    /// acknowledged, because a primary without other members acknowledges nothing. (Exception: where one site is
    /// enough, nothing in the log has to outlive a disk.)
    pub safe: Option<Configuration>,
}

/// One configuration that held, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration.
    pub configuration: Configuration,
    /// The site that requested it, and the purpose.
    pub why: String,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Witness {
    settings: WitnessSettings,
    memory: Memory,
    /// When the primary was last heard of, by our clock.
    renewed: Millis,
    /// When each site was last heard, and its incarnation.
    heard: BTreeMap<Site, (Millis, Incarnation)>,
    /// Before a configuration is known: what each site reported.
    reports: BTreeMap<Site, (Incarnation, Option<Configuration>)>,
}

/// After a lost record, epochs continue far beyond those that a site may still receive.
const LEAP: u64 = 1000;

impl Witness {
    /// Starts from the state on disk. A restarted witness waits a whole grace before it grants leadership to another
    /// site.
    pub fn new(settings: WitnessSettings, memory: Memory, now: Millis) -> Self {
        Self { settings, memory, renewed: now, heard: BTreeMap::new(), reports: BTreeMap::new() }
    }

    /// The configuration in force.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.memory.configuration.as_ref()
    }

    /// The state to store.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How long ago the primary was heard of.
    pub fn renewed(&self, now: Millis) -> Millis {
        now.saturating_sub(self.renewed)
    }

    /// How long ago each site was heard of.
    pub fn heard(&self, now: Millis) -> BTreeMap<Site, Millis> {
        self.heard.iter().map(|(site, (at, _))| (site.clone(), now.saturating_sub(*at))).collect()
    }

    /// Handles a message. The record must be on disk before the answer is sent.
    pub fn receive(&mut self, now: Millis, message: Message) -> (Option<Record>, Option<Message>) {
        match message {
            Message::Renew { site, incarnation, configuration, stamp } if self.settings.sites.contains(&site) => {
                self.heard.insert(site.clone(), (now, incarnation));
                let record = match &self.memory.configuration {
                    Some(holds) => {
                        if holds.primary == site && holds.has(&site, incarnation) {
                            self.renewed = now;
                        }
                        self.take_back(now, &site, incarnation)
                    }
                    None => self.begin(now, site, incarnation, configuration),
                };
                (record, Some(self.holds(now, Some(stamp), None)))
            }
            Message::Change { by, incarnation, to, seen } => match self.judge(now, &by, incarnation, &to, seen) {
                Ok(None) => (None, Some(self.holds(now, None, None))),
                Ok(Some(why)) => {
                    if self.memory.configuration.as_ref().is_none_or(|holds| holds.primary != to.primary) {
                        // Gives the new primary time to learn of it.
                        self.renewed = now;
                    }
                    self.set(to.clone());
                    (Some(Record { configuration: to, why }), Some(self.holds(now, None, None)))
                }
                Err(refusal) => (None, Some(self.holds(now, None, Some(refusal)))),
            },
            _ => (None, None),
        }
    }

    fn holds(&self, now: Millis, stamp: Option<Millis>, refusal: Option<Refusal>) -> Message {
        Message::Holds { configuration: self.memory.configuration.clone(), stamp, clock: now, refusal }
    }

    /// `None`: it holds already.
    fn judge(
        &self,
        now: Millis,
        by: &Site,
        incarnation: Incarnation,
        to: &Configuration,
        seen: Millis,
    ) -> Result<Option<String>, Refusal> {
        let holds = self.memory.configuration.as_ref().ok_or(Refusal::Unknown)?;
        if holds == to {
            return Ok(None);
        }
        if to.epoch != holds.epoch + 1 {
            return Err(Refusal::Outdated);
        }
        // The requesting site may have lost its disk since, or the primary may be healthy again.
        if seen > now || now - seen >= self.settings.grace / 2 {
            return Err(Refusal::Late);
        }
        let known = to.members.keys().all(|site| self.settings.sites.contains(site));
        if !holds.has(by, incarnation) || !to.members.contains_key(&to.primary) || !known {
            return Err(Refusal::NotAllowed);
        }
        if *by == holds.primary {
            let own = to.members.get(by) == holds.members.get(by);
            let handed_over = to.primary != holds.primary && to.members == holds.members;
            return match to.primary == holds.primary {
                true if own => Ok(Some(members_change(holds, to))),
                false if handed_over => {
                    let held = if to.held { ", until a failback" } else { "" };
                    Ok(Some(format!("{by} handed over the primary role to {}{held}", to.primary)))
                }
                _ => Err(Refusal::NotAllowed),
            };
        }
        // A site of an older release drops the mark of a planned failover: that must not keep it from taking over.
        if *to != (Configuration { held: to.held, ..holds.taken_by(by) }) {
            return Err(Refusal::NotAllowed);
        }
        // Our clock may be fast, the primary's slow.
        let wait = self.settings.grace + self.settings.grace / DRIFT;
        match wait.checked_sub(self.renewed(now)).filter(|left| *left > 0) {
            Some(in_ms) => Err(Refusal::PrimaryLives { in_ms }),
            None => Ok(Some(format!(
                "{by} became primary in place of {}, which was silent for {} ms",
                holds.primary,
                self.renewed(now)
            ))),
        }
    }

    fn set(&mut self, configuration: Configuration) {
        let before = self.memory.configuration.replace(configuration);
        self.memory.safe = before.filter(|before| before.members.len() > 1).or(self.memory.safe.take());
    }

    /// Reverts to the configuration before a primary without other members whose disk is lost. That primary
    /// acknowledged nothing, and no other site could ever take over from it.
    fn take_back(&mut self, now: Millis, site: &Site, incarnation: Incarnation) -> Option<Record> {
        let holds = self.memory.configuration.as_ref()?;
        let is_gone = holds.members.len() == 1 && holds.primary == *site && !holds.has(site, incarnation);
        if !is_gone {
            return None;
        }
        let mut members = self.memory.safe.as_ref().map(|safe| safe.members.clone()).unwrap_or_default();
        members.remove(site);
        let lives = |(other, life): &(&Site, &Incarnation)| {
            self.heard
                .get(*other)
                .is_some_and(|(at, heard)| heard == *life && now.saturating_sub(*at) < self.settings.grace)
        };
        let (primary, members) = match members.iter().find(lives) {
            Some((primary, _)) => (primary.clone(), members.clone()),
            // Nothing was ever acknowledged.
            None if self.memory.safe.is_none() => (site.clone(), BTreeMap::from([(site.clone(), incarnation)])),
            None => return None,
        };
        let why = format!(
            "{site} lost its disk while it was the only member; {primary} has everything that two sites had stored"
        );
        let held = holds.holds(&self.settings.home) && primary != self.settings.home;
        let configuration = Configuration { epoch: holds.epoch + 1, primary, members, held };
        self.renewed = now;
        let safe = self.memory.safe.clone();
        self.set(configuration.clone());
        self.memory.safe = safe;
        Some(Record { configuration, why })
    }

    /// The first configuration. When every site is new, the home site becomes primary. When a site knows a
    /// configuration, our record was lost: the newest one known to any site is in force. No site needs to be assumed
    /// missing, because a change that no site received has had no effect.
    fn begin(
        &mut self,
        now: Millis,
        site: Site,
        incarnation: Incarnation,
        configuration: Option<Configuration>,
    ) -> Option<Record> {
        self.reports.insert(site, (incarnation, configuration));
        let newest =
            self.reports.values().filter_map(|(_, reports)| reports.as_ref()).max_by_key(|reports| reports.epoch);
        let (configuration, why) = match newest {
            Some(newest) if self.reports.len() == self.settings.sites.len() => {
                let found = Configuration { epoch: newest.epoch + LEAP, ..newest.clone() };
                (found, "the witness's record was lost and was restored from all sites".to_owned())
            }
            None if self.reports.len() == self.settings.sites.len() => {
                let (incarnation, _) = self.reports.get(&self.settings.home)?;
                let home = self.settings.home.clone();
                let members = BTreeMap::from([(home.clone(), *incarnation)]);
                (Configuration { epoch: 1, primary: home, members, held: false }, "the first configuration".to_owned())
            }
            _ => return None,
        };
        self.renewed = now;
        self.reports.clear();
        self.set(configuration.clone());
        Some(Record { configuration, why })
    }
}

fn members_change(holds: &Configuration, to: &Configuration) -> String {
    let names = |a: &Configuration, b: &Configuration| -> Vec<String> {
        a.members.iter().filter(|(site, life)| !b.has(site, **life)).map(|(site, _)| site.to_string()).collect()
    };
    match (names(to, holds), names(holds, to)) {
        (came, left) if left.is_empty() => format!("{} added {}", to.primary, came.join(", ")),
        (came, left) if came.is_empty() => format!("{} removed {}", to.primary, left.join(", ")),
        (came, left) => format!("{} added {} and removed {}", to.primary, came.join(", "), left.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness() -> Witness {
        let sites = ["a", "b", "c"].map(Site::new).into();
        Witness::new(WitnessSettings { sites, home: Site::new("a"), grace: 1000 }, Memory::default(), 0)
    }

    fn renew(site: &str, incarnation: u64, configuration: Option<Configuration>) -> Message {
        Message::Renew { site: Site::new(site), incarnation: Incarnation(incarnation), configuration, stamp: 7 }
    }

    fn change(by: &str, incarnation: u64, to: Configuration, seen: Millis) -> Message {
        Message::Change { by: Site::new(by), incarnation: Incarnation(incarnation), to, seen }
    }

    fn refusal(answer: (Option<Record>, Option<Message>)) -> Option<Refusal> {
        match answer {
            (None, Some(Message::Holds { refusal, .. })) => refusal,
            other => panic!("{other:?}"),
        }
    }

    fn begun() -> (Witness, Configuration) {
        let mut witness = witness();
        assert_eq!(witness.receive(1, renew("a", 1, None)).0, None);
        assert_eq!(witness.receive(2, renew("b", 2, None)).0, None);
        let first = witness.receive(3, renew("c", 3, None)).0.unwrap().configuration;
        assert_eq!((first.epoch, first.primary.as_str(), first.members.len()), (1, "a", 1));
        (witness, first)
    }

    #[test]
    fn primary_role_is_free_only_after_the_grace_period_and_for_a_member() {
        let (mut witness, first) = begun();
        let two = first.with(&Site::new("b"), Incarnation(2));
        assert!(witness.receive(10, change("a", 1, two.clone(), 10)).0.is_some());
        assert_eq!(refusal(witness.receive(11, change("a", 1, two.clone(), 11))), None, "the same again");
        let taken = two.taken_by(&Site::new("b"));
        let refused = refusal(witness.receive(500, change("b", 2, taken.clone(), 500)));
        assert!(matches!(refused, Some(Refusal::PrimaryLives { .. })), "{refused:?}");
        witness.receive(900, renew("a", 1, Some(two.clone())));
        assert!(refusal(witness.receive(1900, change("b", 2, taken.clone(), 1900))).is_some());
        // Another life of the primary's disk is not the primary.
        witness.receive(1901, renew("a", 9, Some(two.clone())));
        let outsider = change("c", 3, two.taken_by(&Site::new("c")), 2000);
        assert_eq!(refusal(witness.receive(2000, outsider)), Some(Refusal::NotAllowed));
        let other_life = change("b", 8, taken.clone(), 2000);
        let late = change("b", 2, taken.clone(), 1400);
        assert_eq!(refusal(witness.receive(2000, late)), Some(Refusal::Late));
        assert_eq!(refusal(witness.receive(2000, other_life)), Some(Refusal::NotAllowed));
        assert!(witness.receive(2000, change("b", 2, taken.clone(), 2000)).0.is_some());
        assert_eq!(
            refusal(witness.receive(2001, change("a", 1, two.without(&Site::new("b")), 2001))),
            Some(Refusal::Outdated)
        );
    }

    #[test]
    fn configuration_changes_outside_a_sites_rights_are_refused() {
        let (mut witness, first) = begun();
        let two = first.with(&Site::new("b"), Incarnation(2));
        witness.receive(10, change("a", 1, two.clone(), 10));
        let mut changed = two.with(&Site::new("x"), Incarnation(1));
        assert_eq!(refusal(witness.receive(11, change("a", 1, changed.clone(), 11))), Some(Refusal::NotAllowed));
        changed = two.with(&Site::new("c"), Incarnation(3));
        assert_eq!(refusal(witness.receive(9000, change("b", 2, changed, 9000))), Some(Refusal::NotAllowed));
        let alone = two.without(&Site::new("a"));
        assert_eq!(refusal(witness.receive(12, change("a", 1, alone, 12))), Some(Refusal::NotAllowed));
    }

    #[test]
    fn primary_that_lost_its_disk_while_alone_yields_to_a_complete_member() {
        let (mut witness, first) = begun();
        let two = first.with(&Site::new("b"), Incarnation(2));
        witness.receive(10, change("a", 1, two.clone(), 10));
        let alone = two.taken_by(&Site::new("b"));
        assert!(witness.receive(2000, change("b", 2, alone.clone(), 2000)).0.is_some());
        // It lives: nothing is taken back.
        assert_eq!(witness.receive(2100, renew("b", 2, Some(alone.clone()))).0, None);
        // Its disk is gone, and nobody who has everything is heard of yet.
        assert_eq!(witness.receive(2200, renew("b", 9, None)).0, None);
        assert_eq!(witness.receive(2300, renew("a", 7, None)).0, None);
        assert_eq!(witness.receive(2310, renew("b", 9, None)).0, None, "another disk of a has nothing either");
        witness.receive(2400, renew("a", 1, Some(two)));
        let back = witness.receive(2500, renew("b", 9, None)).0.unwrap().configuration;
        assert_eq!((back.epoch, back.primary.as_str(), back.members.len()), (alone.epoch + 1, "a", 1));
        assert!(back.has(&Site::new("a"), Incarnation(1)));
    }

    #[test]
    fn lost_witness_record_is_rebuilt_from_all_sites() {
        let (_, first) = begun();
        let two = first.with(&Site::new("b"), Incarnation(2));
        let mut fresh = witness();
        assert_eq!(fresh.receive(1, renew("a", 1, Some(first))).0, None);
        assert_eq!(fresh.receive(2, renew("b", 2, Some(two.clone()))).0, None);
        let found = fresh.receive(3, renew("c", 3, None)).0.unwrap().configuration;
        assert_eq!((found.epoch, &found.members), (two.epoch + LEAP, &two.members));
    }
}
