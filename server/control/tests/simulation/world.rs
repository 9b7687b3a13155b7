//! Three sites and a witness: clocks that drift, disks that are lost, a network that loses, doubles and delays.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use serde_json::json;
use textnlp_control::{
    Configuration, Effect, Entry, Incarnation, Log, Member, Memory, Message, Outcome, Peer, Position, Refused,
    Settings, Site, Snapshot, State, Table, Witness, WitnessSettings, Write,
};

use super::random::Random;

pub(crate) const SITES: usize = 3;
/// The witness's number among the nodes.
const WITNESS: usize = SITES;

/// Something that goes wrong until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is gone; its disk stays.
    Down(usize),
    /// The process stands still.
    Paused(usize),
    /// Nothing comes or goes.
    Cut(usize),
    /// Nothing comes or goes between two.
    Link(usize, usize),
    /// What is sent does not arrive; what comes does.
    Mute(usize, usize),
}

impl Fault {
    pub(crate) fn of_primary(random: &mut Random, primary: usize) -> Self {
        let other = (0..=WITNESS).filter(|node| *node != primary).collect::<Vec<_>>();
        match random.below(5) {
            0 => Self::Down(primary),
            1 => Self::Paused(primary),
            2 => Self::Cut(primary),
            3 => Self::Link(primary, random.pick(&other)),
            _ => Self::Mute(primary, random.pick(&other)),
        }
    }

    pub(crate) fn that_takes_the_primary_away(random: &mut Random, primary: usize) -> Self {
        random.pick(&[Self::Down(primary), Self::Paused(primary), Self::Cut(primary)])
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Event {
    Tick(usize),
    Deliver { to: usize, from: usize, message: Message },
    Client,
}

struct Node {
    member: Option<Member>,
    /// What is on disk.
    disk: Disk,
    life: u64,
    /// Until when, by its clock, something beside it believes that this site leads: it was told once, and is not told of what comes after.
    believes_until: u64,
    /// Its clock runs this many thousandths of true time.
    rate: u64,
    offset: u64,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    configuration: Option<Configuration>,
    base: Snapshot,
    entries: Vec<Entry>,
}

impl Disk {
    fn last(&self) -> u64 {
        self.base.at.index + self.entries.len() as u64
    }

    fn log(&self) -> Log {
        Log::new(self.base.clone(), self.entries.clone()).unwrap()
    }
}

pub(crate) struct World {
    now: u64,
    every: u64,
    grace: u64,
    kept: u64,
    sole: bool,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    nodes: Vec<Node>,
    witness: Option<Witness>,
    witness_disk: Memory,
    witness_rate: u64,
    faults: Vec<Fault>,
    /// What waits for a paused node.
    held: Vec<(usize, Event)>,
    random: Random,
    calm: bool,
    tickets: u64,
    written: BTreeMap<u64, String>,
    acknowledged: BTreeMap<u64, (Position, String)>,
    newest: Option<(Position, String)>,
    committed: BTreeMap<u64, Entry>,
    /// Who ever had an entry on disk.
    stored: BTreeMap<(u64, u64), BTreeSet<usize>>,
    configurations: BTreeMap<u64, Configuration>,
    told: bool,
    broken: Option<String>,
}

fn site(node: usize) -> Site {
    Site::new(["a", "b", "c"][node])
}

fn number(site: &Site) -> usize {
    ["a", "b", "c"].iter().position(|name| *name == site.as_str()).unwrap()
}

impl World {
    pub(crate) fn new(random: &mut Random, (every, grace): (u64, u64), sole: bool, told: bool) -> Self {
        let rate = |random: &mut Random| 970 + random.below(61);
        let mut world = Self {
            now: 1,
            every,
            grace,
            kept: 1 + random.below(30),
            sole,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            nodes: Vec::new(),
            witness: None,
            witness_disk: Memory::default(),
            witness_rate: rate(random),
            faults: Vec::new(),
            held: Vec::new(),
            random: Random::new(random.next()),
            calm: false,
            tickets: 0,
            written: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            newest: None,
            committed: BTreeMap::new(),
            stored: BTreeMap::new(),
            configurations: BTreeMap::new(),
            told,
            broken: None,
        };
        for node in 0..SITES {
            let (rate, offset) = (rate(random), random.below(1_000_000));
            world.nodes.push(Node {
                member: None,
                disk: Disk::default(),
                life: node as u64 + 1,
                believes_until: 0,
                rate,
                offset,
            });
            world.start(node);
            let first = world.random.below(every);
            world.plan(first, Event::Tick(node));
        }
        world.start(WITNESS);
        world.plan(1, Event::Client);
        world
    }

    /// A network as it is on a good day.
    pub(crate) fn be_calm(&mut self) {
        self.calm = true;
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + after, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn clock(&self, node: usize) -> u64 {
        if node == WITNESS {
            return self.now * self.witness_rate / 1000;
        }
        self.nodes[node].offset + self.now * self.nodes[node].rate / 1000
    }

    fn start(&mut self, node: usize) {
        let now = self.clock(node);
        if node == WITNESS {
            let settings = WitnessSettings { sites: (0..SITES).map(site).collect(), home: site(0), grace: self.grace };
            self.witness = Some(Witness::new(settings, self.witness_disk.clone(), now));
            return;
        }
        let disk = &self.nodes[node].disk;
        let state = State { configuration: disk.configuration.clone(), log: disk.log() };
        let settings = Settings {
            site: site(node),
            incarnation: Incarnation(self.nodes[node].life),
            sites: (0..SITES).map(site).collect(),
            home: site(0),
            every: self.every,
            grace: self.grace,
            kept: self.kept,
            automatic: true,
            failback: true,
            sole: self.sole,
        };
        let (member, effects) = Member::new(settings, state, now);
        self.nodes[node].member = Some(member);
        self.carry_out(node, effects);
    }

    fn stop(&mut self, node: usize) {
        if node == WITNESS {
            self.witness = None;
        } else {
            self.nodes[node].member = None;
        }
    }

    fn is_down(&self, node: usize) -> bool {
        if node == WITNESS { self.witness.is_none() } else { self.nodes[node].member.is_none() }
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        !self.faults.iter().any(|fault| match *fault {
            Fault::Cut(node) => node == from || node == to,
            Fault::Link(a, b) => (a, b) == (from, to) || (b, a) == (from, to),
            Fault::Mute(a, b) => (a, b) == (from, to),
            _ => false,
        })
    }

    pub(crate) fn begin(&mut self, fault: &Fault) {
        self.say(|| format!("begin {fault:?}"));
        self.faults.push(*fault);
        if let Fault::Down(node) = fault {
            self.stop(*node);
        }
    }

    pub(crate) fn end(&mut self, fault: &Fault) {
        self.say(|| format!("end {fault:?}"));
        self.faults.retain(|there| there != fault);
        match *fault {
            Fault::Down(node) if !self.faults.contains(&Fault::Down(node)) && self.is_down(node) => self.start(node),
            Fault::Paused(node) => {
                let (held, rest) = std::mem::take(&mut self.held).into_iter().partition(|(at, _)| *at == node);
                self.held = rest;
                let held: Vec<(usize, Event)> = held;
                for (_, event) in held {
                    self.plan(1, event);
                }
            }
            _ => {}
        }
    }

    /// A random fault begins or ends, or a disk is lost.
    pub(crate) fn strike(&mut self, random: &mut Random) {
        if !self.faults.is_empty() && random.once_in(2) {
            let fault = random.pick(&self.faults.clone());
            return self.end(&fault);
        }
        let node = random.below(SITES as u64 + 1) as usize;
        let other = (node + 1 + random.below(SITES as u64) as usize) % (SITES + 1);
        let fault = match random.below(7) {
            0 | 1 => Fault::Down(node),
            2 => Fault::Paused(node),
            3 => Fault::Cut(node),
            4 => Fault::Link(node, other),
            5 => Fault::Mute(node, other),
            _ => return self.lose_disk(node),
        };
        if !self.faults.contains(&fault) {
            self.begin(&fault);
        }
    }

    /// A site comes back with an empty folder. One at a time: two lost disks lose what only those two had.
    fn lose_disk(&mut self, node: usize) {
        let Some(newest) = self.configurations.values().next_back() else { return };
        let whole = |(site, life): (&Site, &Incarnation)| self.nodes[number(site)].life == life.0;
        let others: Vec<bool> = newest.members.iter().filter(|(s, _)| number(s) != node).map(whole).collect();
        if node == WITNESS || self.faults.contains(&Fault::Down(node)) || others.is_empty() || others.contains(&false) {
            return;
        }
        self.say(|| format!("lose the disk of {node}"));
        self.stop(node);
        self.nodes[node].disk = Disk::default();
        self.nodes[node].life += 10;
        self.start(node);
    }

    pub(crate) fn heal(&mut self) {
        for fault in self.faults.clone() {
            self.end(&fault);
        }
        self.calm = true;
    }

    pub(crate) fn run_for(&mut self, time: u64) -> Result<(), String> {
        let until = self.now + time;
        while let Some(Reverse((at, sequence))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            self.queue.pop();
            self.now = self.now.max(at);
            let event = self.events.remove(&sequence).unwrap();
            self.happen(event);
            if let Some(why) = self.broken.take() {
                return Err(format!("at {} ms: {why}", self.now));
            }
        }
        self.now = until;
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        let node = match &event {
            Event::Tick(node) | Event::Deliver { to: node, .. } => *node,
            Event::Client => return self.client(),
        };
        if self.faults.contains(&Fault::Paused(node)) {
            return self.held.push((node, event));
        }
        if let Event::Tick(_) = event {
            let again = self.every / 4 + self.random.below(self.every / 20 + 1);
            self.plan(again, Event::Tick(node));
        }
        if self.is_down(node) {
            return;
        }
        let now = self.clock(node);
        match event {
            Event::Tick(_) => {
                let effects = self.nodes[node].member.as_mut().unwrap().tick(now);
                self.carry_out(node, effects);
            }
            Event::Deliver { from, message, .. } if node == WITNESS => {
                let (record, answer) = self.witness.as_mut().unwrap().receive(now, message);
                if let Some(record) = record {
                    self.say(|| format!("witness: {} {:?}", record.why, record.configuration));
                    self.saw(&record.configuration);
                    // Dying here leaves the change made and nobody told.
                    self.witness_disk = self.witness.as_ref().unwrap().memory().clone();
                }
                if let Some(answer) = answer {
                    self.send(WITNESS, from, answer);
                }
            }
            Event::Deliver { from, message, .. } => {
                let peer = if from == WITNESS { Peer::Witness } else { Peer::Site(site(from)) };
                let effects = self.nodes[node].member.as_mut().unwrap().receive(now, &peer, message);
                self.carry_out(node, effects);
            }
            Event::Client => {}
        }
        self.check();
    }

    /// Somebody writes at whoever believes to be primary, and so at two if two believe it.
    fn client(&mut self) {
        let again = self.random.below(self.every / 2) + 1;
        self.plan(again, Event::Client);
        for node in 0..SITES {
            if self.is_down(node) || self.faults.contains(&Fault::Paused(node)) {
                continue;
            }
            let (ticket, now) = (self.tickets + 1, self.clock(node));
            let key = format!("k{ticket}");
            let write = Write { key: key.clone(), value: Some(json!(ticket)) };
            if let Ok(effects) = self.nodes[node].member.as_mut().unwrap().write(now, ticket, vec![write]) {
                self.tickets = ticket;
                self.written.insert(ticket, key);
                self.carry_out(node, effects);
            }
        }
        self.check();
    }

    /// In order, and sometimes the machine dies in between.
    fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            if !self.calm && self.random.once_in(20_000) {
                self.say(|| format!("{node} dies between two effects"));
                self.stop(node);
                return self.start(node);
            }
            let disk = &mut self.nodes[node].disk;
            match effect {
                Effect::Configure(configuration) => {
                    disk.configuration = Some(configuration.clone());
                    self.saw(&configuration);
                }
                Effect::Append(entries) => {
                    for entry in &entries {
                        self.stored.entry((entry.at.epoch, entry.at.index)).or_default().insert(node);
                    }
                    if entries.first().is_some_and(|first| first.at.index != disk.last() + 1) {
                        self.broken = Some(format!("{node} appended with a gap"));
                    }
                    disk.entries.extend(entries);
                }
                Effect::Withdraw { after, entries } => {
                    disk.entries.truncate((after - disk.base.at.index) as usize);
                    // A site that is no member any more holds what nobody counts on, and after a long pause it may hear first from whoever
                    // led in between (seed 772234): what it lacks it gets before it is a member again.
                    let life = Incarnation(self.nodes[node].life);
                    let newest = self.configurations.values().next_back();
                    let counts = newest.is_some_and(|newest| newest.has(&site(node), life));
                    if let Some(lost) = entries.iter().find(|e| counts && self.committed.get(&e.at.index) == Some(e)) {
                        self.broken = Some(format!("{node} withdrew what was acknowledged: {:?}", lost.at));
                    }
                }
                Effect::Install { snapshot, .. } => (disk.base, disk.entries) = (snapshot, Vec::new()),
                Effect::Compact { snapshot, rest } => (disk.base, disk.entries) = (snapshot, rest),
                Effect::Send(to, message) => {
                    let to = match &to {
                        Peer::Witness => WITNESS,
                        Peer::Site(site) => number(site),
                    };
                    self.send(node, to, message);
                }
                Effect::Committed(upto) => self.is_committed(node, upto),
                Effect::Answer(ticket, Outcome::Acknowledged(at)) => {
                    let key = self.written.get(&ticket).cloned().unwrap();
                    // Also where the disk was lost a moment later.
                    let mut on = self.stored.get(&(at.epoch, at.index)).cloned().unwrap_or_default();
                    on.extend((0..SITES).filter(|other| self.nodes[*other].disk.base.at.index >= at.index));
                    let disks = on.len();
                    if disks < if self.sole { 1 } else { 2 } {
                        self.broken = Some(format!("{key} was acknowledged by {node} and lies on {disks} disks"));
                    }
                    if self.newest.as_ref().is_none_or(|(newest, _)| newest.index < at.index) {
                        self.newest = Some((at, key.clone()));
                    }
                    self.acknowledged.insert(ticket, (at, key));
                }
                Effect::Answer(_, Outcome::Unknown) => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if !self.passes(from, to) || (!self.calm && self.random.once_in(20)) {
            return;
        }
        let copies = if !self.calm && self.random.once_in(30) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if !self.calm && self.random.once_in(100) { self.grace * 3 } else { self.every / 20 + 1 };
            let delay = 1 + self.random.below(late);
            self.plan(delay, Event::Deliver { to, from, message: message.clone() });
        }
    }

    fn saw(&mut self, configuration: &Configuration) {
        let there = self.configurations.entry(configuration.epoch).or_insert_with(|| configuration.clone());
        if there != configuration {
            self.broken = Some(format!("two configurations of epoch {}", configuration.epoch));
        }
    }

    fn is_committed(&mut self, node: usize, upto: u64) {
        let Some(member) = &self.nodes[node].member else { return };
        let log = member.log();
        let many = (upto - log.base().at.index) as usize;
        // Newest first, until one that was compared before.
        for entry in log.entries()[..many].iter().rev() {
            if self.committed.get(&entry.at.index) == Some(entry) {
                break;
            }
            let there = self.committed.entry(entry.at.index).or_insert_with(|| entry.clone());
            if there != entry {
                self.broken = Some(format!("{node} committed {:?} where {:?} was", entry.at, there.at));
            }
        }
    }

    /// What believes in a site's lead beside it (a database) is told so at any moment, and of its end only before the site itself gives its place away.
    fn believe(&mut self, node: usize) {
        let now = self.clock(node);
        let Node { member: Some(member), believes_until, .. } = &mut self.nodes[node] else { return };
        match member.leads_until(now) {
            Some(until) => *believes_until = until.max(*believes_until),
            None if matches!(member.writable(now), Err(Refused::HandingOver { .. })) => *believes_until = 0,
            None => {}
        }
    }

    fn check(&mut self) {
        let faults = self.faults.clone();
        (0..SITES).filter(|node| !faults.contains(&Fault::Paused(*node))).for_each(|node| self.believe(node));
        // Also of those that stand still or are gone: their clocks go on.
        let led: Vec<usize> = (0..SITES).filter(|node| self.nodes[*node].believes_until > self.clock(*node)).collect();
        if led.len() > 1 {
            self.broken = Some(format!("{led:?} are led at one time"));
        }
        let writers: Vec<usize> = (0..SITES)
            .filter(|node| self.nodes[*node].member.as_ref().is_some_and(|m| m.writable(self.clock(*node)).is_ok()))
            .collect();
        if writers.len() > 1 {
            self.broken = Some(format!("{writers:?} believe that they may write"));
        }
        let Some(writer) = writers.first() else { return };
        let log = self.nodes[*writer].member.as_ref().unwrap().log();
        let has = |at: &Position| match at.index.checked_sub(log.base().at.index + 1) {
            Some(place) => log.entries().get(place as usize).is_some_and(|entry| entry.at == *at),
            None => true,
        };
        // The newest is enough at every step: the log has no gaps, and committed entries are compared as they come.
        let newest = self.newest.as_ref();
        if let Some((at, key)) = newest.filter(|(at, _)| !has(at)) {
            self.broken = Some(format!("{writer} may write and lacks {key} at {at:?}"));
        }
    }

    /// An operator's request for another primary, made of the one by the newest configuration; held until a failback.
    pub(crate) fn hand_over(&mut self, to: usize) -> Result<(), String> {
        let from = self.primary().ok_or("there is no primary")?;
        let now = self.clock(from);
        let member = self.nodes[from].member.as_mut().ok_or("the primary is down")?;
        let effects = member.hand_over(now, &site(to), true).map_err(|why| format!("no handover to {to}: {why}"))?;
        self.carry_out(from, effects);
        Ok(())
    }

    /// Whether a planned failover holds by the newest configuration, and whether all sites know it.
    pub(crate) fn held(&self) -> (bool, bool) {
        let newest = self.configurations.values().next_back();
        let known = |node: &Node| node.member.as_ref().and_then(Member::configuration) == newest;
        (newest.is_some_and(|newest| newest.held), self.nodes.iter().all(known))
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// After all faults have ended: everybody has everything, home is primary, and a write is acknowledged.
    pub(crate) fn expect_whole(&mut self) -> Result<(), String> {
        let before = self.acknowledged.len();
        self.run_for(5 * self.every)?;
        if self.acknowledged.len() == before {
            return Err("nothing is acknowledged any more".to_owned());
        }
        if self.primary() != Some(0) {
            return Err(format!("home is not primary in the end, {:?} is", self.primary()));
        }
        let primary = self.nodes[0].member.as_ref().unwrap();
        if primary.leads_until(self.clock(0)).is_none() {
            return Err("nobody leads in the end".to_owned());
        }
        let table: &Table = primary.table();
        if let Some((_, key)) = self.acknowledged.values().find(|(_, key)| !table.contains_key(key)) {
            return Err(format!("{key} was acknowledged and is not in the table"));
        }
        let members: BTreeSet<_> = primary.configuration().unwrap().members.keys().cloned().collect();
        if members.len() != SITES {
            return Err(format!("only {members:?} are members in the end"));
        }
        for node in 1..SITES {
            let other = self.nodes[node].member.as_ref().unwrap();
            if other.committed().index + 8 < primary.committed().index {
                return Err(format!("{node} stays behind"));
            }
            let common = other.committed().index.min(primary.committed().index);
            let at = |log: &Log| log.entries().iter().find(|e| e.at.index == common).cloned();
            if let (Some(a), Some(b)) = (at(primary.log()), at(other.log()))
                && a != b
            {
                return Err(format!("{node} has another entry at {common}"));
            }
            // What lies on its disk is what it believes.
            if self.nodes[node].disk.log() != *other.log() {
                return Err(format!("the disk of {node} is not what it believes"));
            }
        }
        Ok(())
    }

    /// Who is primary by the newest configuration.
    pub(crate) fn primary(&self) -> Option<usize> {
        self.configurations.values().next_back().map(|c| number(&c.primary))
    }

    pub(crate) fn changes_of_primary(&self) -> usize {
        let primaries: Vec<&Site> = self.configurations.values().map(|c| &c.primary).collect();
        primaries.windows(2).filter(|two| two[0] != two[1]).count()
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.told {
            eprintln!("{:>8} {}", self.now, text());
        }
    }
}
