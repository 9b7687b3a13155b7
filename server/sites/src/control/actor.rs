//! The single owner of a site's protocol state: a thread that handles events, carries out their effects in order, and
//! waits for the disk where needed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use textnlp_control::{
    Effect, Member, Message, Outcome, Overview, Peer, Position, Refused, Settings, Site, Table, Write,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::config::AgentConfig;
use super::disk::Disk;
use super::links::{self, Links};
use super::service::Service;
use super::{Error, clock};

/// Log entries retained before compaction.
const RETAINED_ENTRIES: u64 = 1024;

/// Maximum queued requests; a client beyond it is rejected.
const WAITING: usize = 1024;

enum Event {
    Messages { from: Peer, messages: Vec<Message>, answers: Option<oneshot::Sender<Vec<Message>>> },
    Write { writes: Vec<Write>, answer: oneshot::Sender<Result<Outcome, Refused>> },
    Claim(oneshot::Sender<Result<(), Refused>>),
    GiveUpClaim,
    HandOver { to: Site, hold: bool, answer: oneshot::Sender<Result<(), Refused>> },
    Look(oneshot::Sender<(Overview, usize)>),
    Leadership(oneshot::Sender<Leadership>),
    Table { prefix: String, answer: oneshot::Sender<(Position, Table)> },
    New { after: u64, answer: oneshot::Sender<(u64, Vec<Write>)> },
}

/// The handle through which other tasks talk to the owner.
#[derive(Debug, Clone)]
pub(super) struct Actor {
    events: mpsc::Sender<Event>,
    committed: watch::Receiver<u64>,
    applied: Arc<AtomicU64>,
    beside: Arc<DatabaseFlags>,
    service: Service,
}

/// The state shared with a database outside of the log.
#[derive(Debug)]
struct DatabaseFlags {
    /// See [`Member::set_fit`].
    fit: AtomicBool,
    /// This site is about to hand over leadership: it no longer reports itself as primary.
    held: AtomicBool,
}

/// The current primary, for data stored outside of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leadership {
    pub(super) epoch: u64,
    /// Since which epoch the primary has been that without a break.
    pub(super) since: u64,
    pub(super) primary: Option<Site>,
    /// The previous primary, and since which epoch.
    pub(super) before: Option<(Site, u64)>,
    /// For how many milliseconds from now no other site can become primary; `None` where this site is not primary for
    /// certain.
    pub(super) lease_ms: Option<u64>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Unanswered {
    /// The protocol refused the request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too much waits already, or the process is stopping.
    #[error("the site agent is overloaded or stopping")]
    Busy,
    /// The site is as if it were lost.
    #[error("the service of this site does not answer: {0}")]
    Silent(String),
}

impl Actor {
    /// Appends writes. Returns once the outcome is known, which may be never.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<Outcome, Unanswered> {
        self.heard()?;
        Ok(self.ask(|answer| Event::Write { writes, answer }).await??)
    }

    /// Handles messages and returns the direct replies to the sender.
    pub(super) async fn exchange(&self, from: Peer, messages: Vec<Message>) -> Result<Vec<Message>, Unanswered> {
        self.heard()?;
        self.ask(|answer| Event::Messages { from, messages, answers: Some(answer) }).await
    }

    /// Handles messages without replies.
    pub(super) fn deliver(&self, from: Peer, messages: Vec<Message>) {
        // A message that does not fit into the queue counts as lost.
        let _ = self.events.try_send(Event::Messages { from, messages, answers: None });
    }

    pub(super) async fn claim(&self) -> Result<(), Unanswered> {
        self.heard()?;
        Ok(self.ask(Event::Claim).await??)
    }

    pub(super) async fn give_up_claim(&self) {
        let _ = self.events.send(Event::GiveUpClaim).await;
    }

    /// See [`Member::hand_over`].
    pub(super) async fn hand_over(&self, to: Site, hold: bool) -> Result<(), Unanswered> {
        self.heard()?;
        Ok(self.ask(|answer| Event::HandOver { to, hold, answer }).await??)
    }

    /// The status of this site, and how many entries it ever had to withdraw.
    pub(super) async fn look(&self) -> Result<(Overview, usize), Unanswered> {
        self.ask(Event::Look).await
    }

    /// The current primary and its lease.
    pub(super) async fn standing(&self) -> Result<Leadership, Unanswered> {
        let standing = self.ask(Event::Leadership).await?;
        Ok(Leadership { lease_ms: standing.lease_ms.filter(|_| !self.beside.held.load(Ordering::SeqCst)), ..standing })
    }

    /// Sets whether the database outside of the log is complete enough to lead.
    pub(super) fn is_fit(&self, fit: bool) {
        self.beside.fit.store(fit, Ordering::SeqCst);
    }

    /// The health of this site's service, where it runs elsewhere.
    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// Fails while the site is treated as lost, so that it does not answer.
    pub(super) fn heard(&self) -> Result<(), Unanswered> {
        self.service.silent().map_or(Ok(()), |why| Err(Unanswered::Silent(why)))
    }

    /// Stops reporting this site as primary. `false` when that is so already.
    pub(super) fn suspend_lease(&self) -> bool {
        !self.beside.held.swap(true, Ordering::SeqCst)
    }

    /// The opposite.
    pub(super) fn report_leadership(&self) {
        self.beside.held.store(false, Ordering::SeqCst);
    }

    /// The acknowledged entries of the table whose keys start with a prefix.
    pub(super) async fn table(&self, prefix: &str) -> Result<(Position, Table), Unanswered> {
        self.ask(|answer| Event::Table { prefix: prefix.to_owned(), answer }).await
    }

    /// The writes acknowledged after an index, and the last index; see [`Member::acknowledged_after`].
    pub(super) async fn acknowledged_after(&self, after: u64) -> Result<(u64, Vec<Write>), Unanswered> {
        self.ask(|answer| Event::New { after, answer }).await
    }

    /// Changes whenever more is acknowledged.
    pub(super) fn committed(&self) -> watch::Receiver<u64> {
        self.committed.clone()
    }

    /// The last index that the site's database contains.
    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// It shows it up to here now.
    pub(super) fn is_applied(&self, index: u64) {
        self.applied.store(index, Ordering::Relaxed);
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.events.try_send(event(answer)).map_err(|_| Unanswered::Busy)?;
        answered.await.map_err(|_| Unanswered::Busy)
    }
}

/// Starts the owner; returns the incarnation of the disk. The future ends when the owner had to stop: after a disk
/// error its state cannot be trusted.
pub(super) fn start(
    config: &AgentConfig,
    stop: CancellationToken,
) -> Result<(Actor, u64, impl Future<Output = ()> + use<>), Error> {
    let (disk, state) = Disk::open(&config.folder)?;
    let life = disk.incarnation.0;
    let settings = Settings {
        site: config.site.clone(),
        incarnation: disk.incarnation,
        sites: config.sites(),
        home: config.home.clone(),
        every: config.every_ms,
        grace: config.grace_ms(),
        kept: RETAINED_ENTRIES,
        automatic: config.automatic,
        // A database must be released first.
        failback: config.failback && config.postgres.is_none(),
        sole: config.outside.is_some(),
    };
    let (links, ends) = Links::new(config);
    let (events, inbox) = mpsc::channel(WAITING);
    let (committed_sender, committed) = watch::channel(0);
    let beside = DatabaseFlags { fit: AtomicBool::new(config.postgres.is_none()), held: AtomicBool::new(false) };
    let beside = Arc::new(beside);
    let service = Service::of(config);
    let actor = Actor { events, committed, applied: Arc::default(), beside: beside.clone(), service: service.clone() };
    // A heartbeat that takes longer than a grace is useless.
    let within = Duration::from_millis(config.grace_ms().max(1000));
    tokio::spawn(links::carry(ends, config.site.clone(), within, actor.clone(), stop.clone()));
    let (member, effects) = Member::new(settings, state, clock::now());
    let owner = Owner { member, disk, links, committed_sender, tickets: BTreeMap::new(), ticket: 0, beside, service };
    let every = Duration::from_millis((config.every_ms / 8).clamp(10, 1000));
    let (ended, end) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        if let Err(error) = owner.run(effects, inbox, every, &stop, &runtime) {
            tracing::error!(%error, "control data could not be stored");
        }
        drop(ended);
    })?;
    Ok((actor, life, async move { drop(end.await) }))
}

struct Owner {
    member: Member,
    disk: Disk,
    links: Links,
    committed_sender: watch::Sender<u64>,
    tickets: BTreeMap<u64, oneshot::Sender<Result<Outcome, Refused>>>,
    ticket: u64,
    beside: Arc<DatabaseFlags>,
    service: Service,
}

impl Owner {
    fn run(
        mut self,
        effects: Vec<Effect>,
        mut inbox: mpsc::Receiver<Event>,
        every: Duration,
        stop: &CancellationToken,
        runtime: &tokio::runtime::Handle,
    ) -> std::io::Result<()> {
        self.carry_out(effects, None)?;
        let mut tick = runtime.block_on(async { tokio::time::interval(every) });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => None,
                    _ = tick.tick() => Some(None),
                    event = inbox.recv() => event.map(Some),
                }
            });
            let is_silent = self.service.is_silent();
            match event {
                None => return Ok(()),
                Some(None) if is_silent => {}
                // Treated as lost in transit.
                Some(Some(Event::Messages { .. })) if is_silent => {}
                Some(None) => {
                    self.member.set_fit(self.beside.fit.load(Ordering::SeqCst));
                    let effects = self.member.tick(clock::now());
                    self.carry_out(effects, None)?;
                }
                Some(Some(event)) => self.take_in(event)?,
            }
        }
    }

    fn take_in(&mut self, event: Event) -> std::io::Result<()> {
        let now = clock::now();
        match event {
            Event::Messages { from, messages, answers } => {
                let mut back = Vec::new();
                for message in messages {
                    let effects = self.member.receive(now, &from, message);
                    self.carry_out(effects, answers.is_some().then_some((&from, &mut back)))?;
                }
                if let Some(answers) = answers {
                    // The requester may be gone.
                    let _ = answers.send(back);
                }
            }
            Event::Write { writes, answer } => {
                self.ticket += 1;
                match self.member.write(now, self.ticket, writes) {
                    Ok(effects) => {
                        self.tickets.insert(self.ticket, answer);
                        self.carry_out(effects, None)?;
                    }
                    Err(refused) => drop(answer.send(Err(refused))),
                }
            }
            Event::Claim(answer) => {
                self.member.set_fit(self.beside.fit.load(Ordering::SeqCst));
                let claimed = self.member.claim(now);
                self.do_or_refuse(claimed, answer)?;
            }
            Event::GiveUpClaim => self.member.give_up_claim(),
            Event::HandOver { to, hold, answer } => {
                let handover = self.member.hand_over(now, &to, hold);
                self.do_or_refuse(handover, answer)?;
            }
            Event::Look(answer) => drop(answer.send((self.member.overview(now), self.disk.withdrawn))),
            Event::Leadership(answer) => {
                let configuration = self.member.configuration();
                drop(answer.send(Leadership {
                    epoch: configuration.map_or(0, |c| c.epoch),
                    since: self.disk.since(),
                    before: self.disk.before(),
                    primary: configuration.map(|c| c.primary.clone()),
                    lease_ms: self.member.leads_until(now).map(|until| until - now),
                }));
            }
            Event::New { after, answer } => {
                drop(answer.send((self.member.committed().index, self.member.acknowledged_after(after))));
            }
            Event::Table { prefix, answer } => {
                let table = self.member.table();
                let begins = table.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
                let found = begins.map(|(key, value)| (key.clone(), value.clone())).collect();
                let _ = answer.send((self.member.committed(), found));
            }
        }
        Ok(())
    }

    fn do_or_refuse(
        &mut self,
        done: Result<Vec<Effect>, Refused>,
        answer: oneshot::Sender<Result<(), Refused>>,
    ) -> std::io::Result<()> {
        let result = match done {
            Ok(effects) => self.carry_out(effects, None).map(|()| Ok(()))?,
            Err(refused) => Err(refused),
        };
        let _ = answer.send(result);
        Ok(())
    }

    /// Carries out effects in order: data to be stored is on disk before the next one. Replies to the requester are
    /// collected in `back`.
    fn carry_out(&mut self, effects: Vec<Effect>, mut back: Option<(&Peer, &mut Vec<Message>)>) -> std::io::Result<()> {
        for effect in effects {
            match effect {
                Effect::Configure(configuration) => {
                    let members: Vec<_> = configuration.members.keys().map(Site::as_str).collect();
                    tracing::info!(
                        epoch = configuration.epoch,
                        primary = %configuration.primary,
                        members = members.join(", "),
                        held = configuration.held,
                        "the configuration changed"
                    );
                    self.disk.configure(&configuration)?;
                }
                Effect::Append(entries) => self.disk.append(&entries)?,
                Effect::Withdraw { after, entries } => {
                    let many = entries.len();
                    tracing::warn!(many, after, "unacknowledged entries were withdrawn; they are kept in `withdrawn`");
                    self.disk.withdraw(after, &entries)?;
                }
                Effect::Install { snapshot, aside } => self.disk.install(&snapshot, &aside)?,
                Effect::Compact { snapshot, rest } => self.disk.compact(&snapshot, &rest)?,
                Effect::Send(to, message) => match &mut back {
                    Some((peer, answers)) if **peer == to => answers.push(message),
                    _ => self.links.send(&to, message),
                },
                Effect::Committed(upto) => drop(self.committed_sender.send_replace(upto)),
                Effect::Answer(ticket, outcome) => {
                    if let Some(answer) = self.tickets.remove(&ticket) {
                        let _ = answer.send(Ok(outcome));
                    }
                }
            }
        }
        Ok(())
    }
}
