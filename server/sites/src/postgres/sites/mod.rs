//! One PostgreSQL shared by several sites: each site has a server; one is the primary, the others are replicas.
//!
//! This module does not decide who leads. The site agent reports it, with a lease, and this supervisor makes its server
//! match. It is a primary only with a lease and with everything that the previous primary had ([`data_directory`]), a replica
//! otherwise. Clients of the primary connect through a proxy socket ([`listeners`]), which closes when the lease of its site
//! is over, whatever the server itself believes ([`gate`]). A former primary is rewound to the point of divergence, or
//! copied again.

mod api;
mod data_directory;
mod facts;
mod gate;
mod listeners;
mod startup;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use textnlp_control::Site;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::config::Sites;
use super::process::{self, Process};
use super::{Config, Error, setup};
use crate::control::{ServerRole, boottime_ms, client};
use data_directory::DataDirectoryState;
use facts::ServerFacts;
use gate::{Gate, Lead};
use listeners::{Direction, Listeners};

/// Poll interval for the site agent: several polls per heartbeat, and a lease is much longer.
const AGENT_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// It answers from memory.
const AGENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Poll interval for the server.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Grace period in which a replica may reconnect: connections between sites break now and then.
const RECONNECT_GRACE_PERIOD: Duration = Duration::from_secs(10);
/// A replica that lacks less than this counts as caught up, in bytes.
const CAUGHT_UP: i64 = 16 << 20;

/// A request to release leadership to another site.
pub(super) struct Release {
    to: String,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// Why leadership was not released, with a hint.
#[derive(Debug)]
pub(super) struct Refused {
    why: String,
    hint: &'static str,
}

/// Keeps the server in its role until shutdown or failure. The server is stopped when this returns.
pub(super) async fn run(config: Arc<Config>, sites: Sites, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    make_folder(&config, &sites)?;
    config.write_files()?;
    let (gate, known) = (Gate::new(&sites.site), Arc::new(ServerFacts::new(&sites)));
    let (release, releases) = mpsc::channel(1);
    let stop = CancellationToken::new();
    // When this ends, all tasks end.
    let _stop = stop.clone().drop_guard();
    api::serve(&config, &sites, &gate, &known, release, stop.clone()).await?;
    let listeners = Arc::new(Listeners { config: config.clone(), gate: gate.clone(), stop: stop.clone() });
    let out = config.run().join(format!(".s.PGSQL.{}", config.door_number()));
    tokio::spawn(listeners::serve(listeners.clone(), Direction::Out, listeners::bind(&out, config.user)?));
    tokio::spawn(listeners::serve(listeners, Direction::In, listeners::bind(&sites.door, None)?));
    tokio::spawn(ask(sites.clone(), gate.clone(), stop.clone()));
    tokio::spawn(look(config.clone(), gate.clone(), known.clone(), stop));
    let standing = DataDirectoryState::read(&config)?;
    let state = State::Nothing;
    let mut supervisor =
        SitesSupervisor { config, sites, gate, known, state, standing, releases, torn_since: None, rewound: false };
    let ended = tokio::select! {
        ended = supervisor.keep() => ended,
        () = shutdown => Ok(()),
    };
    if ended.is_ok() {
        // The sockets stay open until the server has stopped: its replicas receive the rest, and a successor finds no
        // process using the directory.
        supervisor.gate.set_primary(false);
        supervisor.stop().await?;
    }
    ended
}

/// The directory may be lost with the disk: its data is copied from another site.
fn make_folder(config: &Config, sites: &Sites) -> Result<(), Error> {
    let fails = |source| Error::Folder { path: config.folder.clone(), source };
    if !config.folder.is_dir() {
        std::fs::create_dir_all(&config.folder).map_err(fails)?;
        std::fs::set_permissions(&config.folder, std::fs::Permissions::from_mode(0o700)).map_err(fails)?;
        if let Some((user, group)) = config.user {
            std::os::unix::fs::chown(&config.folder, Some(user), Some(group)).map_err(fails)?;
        }
    }
    if let Some(link) = sites.link.as_ref().filter(|link| link.symlink_metadata().is_err()) {
        let fails = |source| Error::Folder { path: link.clone(), source };
        link.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(fails)?;
        std::os::unix::fs::symlink(&config.folder, link).map_err(fails)?;
    }
    Ok(())
}

/// Polls the site agent for the primary.
async fn ask(sites: Sites, gate: Arc<Gate>, stop: CancellationToken) {
    let mut every = tokio::time::interval(AGENT_POLL_INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let requested_at = boottime_ms();
        let answer = client::get(&sites.watch, "/v1/lead", AGENT_TIMEOUT).await;
        let lead = answer.ok().filter(|(status, _)| *status == StatusCode::OK);
        match lead.and_then(|(_, answer)| serde_json::from_value::<Lead>(answer).ok()) {
            Some(lead) => gate.update(lead, requested_at),
            None => gate.not_told(),
        }
    }
}

/// Polls the server.
async fn look(config: Arc<Config>, gate: Arc<Gate>, known: Arc<ServerFacts>, stop: CancellationToken) {
    let mut every = tokio::time::interval(POLL_INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if known.runs() {
            // Compares which primary it follows before and after the observation.
            let (follows, of) = (gate.follows(), gate.following());
            let seen = setup::observe(&config, gate.copies_may()).await;
            let follows = follows && gate.follows() && Arc::ptr_eq(&of, &gate.following());
            known.saw(seen, follows.then_some(of));
        }
    }
}

/// The state of the server.
enum State {
    Nothing,
    Copy(Process),
    Primary { process: Process, made: bool },
}

struct SitesSupervisor {
    config: Arc<Config>,
    sites: Sites,
    gate: Arc<Gate>,
    known: Arc<ServerFacts>,
    state: State,
    standing: Option<DataDirectoryState>,
    releases: mpsc::Receiver<Release>,
    /// Since when the replica does not follow.
    torn_since: Option<Instant>,
    /// It was rewound since it last followed.
    rewound: bool,
}

impl SitesSupervisor {
    async fn keep(&mut self) -> Result<(), Error> {
        let mut changed = self.gate.changed();
        loop {
            let process = match &mut self.state {
                State::Nothing => None,
                State::Copy(process) | State::Primary { process, .. } => Some(process),
            };
            if let Some(ended) = process.map(Process::try_ended).transpose()?.flatten() {
                return Err(Error::Ended(ended));
            }
            if let Ok(Release { to, answer }) = self.releases.try_recv()
                // The answer of a request that timed out was that nothing changed.
                && !answer.is_closed()
            {
                let released = self.release(&to).await;
                // The requester may be gone.
                let _ = answer.send(released);
            }
            let done = self.turn().await;
            self.tell(&done);
            let pause = match done {
                Ok(()) => {
                    // The site agent is polled several times a second, and each answer is a change.
                    let _ = tokio::time::timeout(PAUSE, changed.changed()).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(error = %textnlp_net::error_chain(&error), "the database does not have its designated role");
                    PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn turn(&mut self) -> Result<(), Error> {
        if let (State::Nothing, Some(pid)) = (&self.state, process::left(&self.config)) {
            return Err(Error::Left(pid));
        }
        let lead = self.gate.lead();
        match lead.primary.clone() {
            Some(primary) if primary == self.sites.site => match self.gate.leads() {
                true => self.lead(&lead).await,
                // Its socket is closed; whether another site will lead is not known yet.
                false => Ok(()),
            },
            Some(other) => self.follow(&other, &lead).await,
            None => Ok(()),
        }
    }

    /// Publishes the state.
    fn tell(&self, done: &Result<(), Error>) {
        let lead = self.gate.lead();
        let now = match &self.state {
            State::Nothing => ServerRole::NotRunning,
            State::Copy(_) => ServerRole::Copy,
            State::Primary { .. } => ServerRole::Primary,
        };
        let fit = self.standing.as_ref().is_some_and(|standing| standing.is_fit(&self.sites.site, &lead));
        self.known.is(now, fit && !matches!(self.state, State::Nothing), done.as_ref().err());
    }

    /// This site leads: its server is or becomes a primary.
    async fn lead(&mut self, lead: &Lead) -> Result<(), Error> {
        if !matches!(self.state, State::Primary { .. }) {
            self.may_lead(lead)?;
        }
        match std::mem::replace(&mut self.state, State::Nothing) {
            State::Nothing => {
                if !self.will_follow() {
                    self.note(DataDirectoryState::Primary { epoch: lead.epoch })?;
                }
                self.start()
            }
            State::Copy(process) => {
                self.state = State::Copy(process);
                // From here on it has a history of its own.
                self.note(DataDirectoryState::Primary { epoch: lead.epoch })?;
                setup::promote(&self.config).await?;
                if let State::Copy(process) = std::mem::replace(&mut self.state, State::Nothing) {
                    self.state = State::Primary { process, made: false };
                }
                tracing::info!(epoch = lead.epoch, "the local database is the primary now");
                self.make().await
            }
            primary @ State::Primary { made: true, .. } => {
                self.state = primary;
                self.note(DataDirectoryState::Primary { epoch: lead.epoch })
            }
            primary @ State::Primary { made: false, .. } => {
                self.state = primary;
                self.make().await
            }
        }
    }

    /// Applies the configuration to a primary, and accepts clients.
    async fn make(&mut self) -> Result<(), Error> {
        setup::make(&self.config).await?;
        self.gate.set_primary(true);
        // pg_rewind reads the timeline from the files.
        setup::checkpoint(&self.config).await?;
        self.gate.take_copies();
        if let State::Primary { made, .. } = &mut self.state {
            *made = true;
        }
        Ok(())
    }

    /// Refuses to lead with data older than another site's.
    fn may_lead(&self, lead: &Lead) -> Result<(), Error> {
        let folder = &self.config.folder;
        let fix = "make another site primary (`textnlp-deploy dr failover --to SITE`), or restore a backup";
        match &self.standing {
            _ if !self.is_there() => Err(Error::Unfit(format!(
                "{folder} contains no PostgreSQL data, but this site is to become primary: {fix}"
            ))),
            Some(standing) if standing.is_fit(&self.sites.site, lead) => Ok(()),
            // The first primary of all, or one that was restored.
            None if lead.since <= 1 || self.config.dump.as_ref().is_some_and(|dump| dump.is_file()) => Ok(()),
            _ => Err(Error::Unfit(format!(
                "{folder} may lack data of the primary before epoch {}, but this site is to become primary: {fix}",
                lead.since
            ))),
        }
    }

    /// Another site leads: the local server is or becomes its replica.
    async fn follow(&mut self, primary: &str, lead: &Lead) -> Result<(), Error> {
        let is_copy = matches!(self.standing, Some(DataDirectoryState::Copy { .. })) && self.is_there();
        match (&self.state, is_copy) {
            (State::Primary { .. }, _) | (State::Copy(_), false) => {
                self.gate.set_primary(false);
                self.stop().await
            }
            (State::Nothing, true) => self.start(),
            (State::Nothing, false) => self.become_copy(primary).await,
            (State::Copy(_), true) => self.look_at_copy(primary, lead).await,
        }
    }

    async fn look_at_copy(&mut self, primary: &str, lead: &Lead) -> Result<(), Error> {
        if self.known.follows(&self.gate.following(), CAUGHT_UP) {
            (self.torn_since, self.rewound) = (None, false);
            return self.note(DataDirectoryState::Copy { of: primary.to_owned(), epoch: lead.epoch });
        }
        if self.known.is_connected(&self.gate.following()) {
            // It is catching up.
            self.torn_since = None;
            return Ok(());
        }
        if self.torn_since.get_or_insert_with(Instant::now).elapsed() < RECONNECT_GRACE_PERIOD {
            return Ok(());
        }
        let Some(through) = self.config.following() else { return Ok(()) };
        self.torn_since = None;
        let mut changed = self.gate.changed();
        let moved =
            async { while self.gate.lead().primary.as_deref() == Some(primary) && changed.changed().await.is_ok() {} };
        let is_there = tokio::select! {
            is_there = setup::reaches(&self.config, &through) => is_there,
            // Becoming primary must not wait for the old primary.
            () = moved => false,
        };
        if is_there {
            // The primary is reachable but cannot be followed: the timelines diverged, or it no longer has the WAL.
            tracing::warn!(%primary, rewound = self.rewound, "the copy cannot follow the primary without a rewind or a new copy");
            self.stop().await?;
            return if self.rewound { self.copy(primary).await } else { self.rewind(primary).await };
        }
        Ok(())
    }

    /// Turns the existing data into a replica, or creates one from scratch.
    async fn become_copy(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        if !setup::reaches(&self.config, &through).await {
            return Err(Error::Copy(format!("the primary at {primary} cannot be reached yet")));
        }
        match self.standing {
            Some(DataDirectoryState::Primary { .. }) if self.is_there() => self.rewind(primary).await,
            _ => self.copy(primary).await,
        }
    }

    async fn rewind(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        self.note(DataDirectoryState::Half)?;
        if !process::rewind(&self.config, &through).await? {
            return self.copy(primary).await;
        }
        self.rewound = true;
        self.known.rewound();
        tracing::info!(%primary, "changes that diverged from the primary were reverted");
        self.note(DataDirectoryState::Copy { of: primary.to_owned(), epoch: 0 })?;
        self.start()
    }

    async fn copy(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        // The old data stays until the copy is complete.
        process::copy_primary(&self.config, &through).await?;
        self.note(DataDirectoryState::Half)?;
        process::take_copy(&self.config).await?;
        self.known.copied();
        tracing::info!(%primary, "the primary was copied");
        self.note(DataDirectoryState::Copy { of: primary.to_owned(), epoch: 0 })?;
        self.start()
    }

    /// Lets the replica at a site receive everything, then stops the server. If that fails, nothing is stopped.
    async fn release(&mut self, to: &str) -> Result<(), Refused> {
        const WAIT: &str = "wait until it has caught up; `textnlp-deploy dr status` shows how far each site is";
        let refused = |why: String| Refused { why, hint: WAIT };
        if !matches!(self.state, State::Primary { made: true, .. }) {
            return Err(refused(format!("the database of {} is not a primary at the moment", self.sites.site)));
        }
        let Some(copy) = self.known.copies().remove(&Site::new(to)).filter(|copy| copy.connected) else {
            return Err(refused(format!("the copy of the database at {to} does not replicate")));
        };
        if copy.behind_ms > self.sites.max_lag_ms {
            return Err(refused(format!(
                "the copy of the database at {to} is {} ms behind ({} bytes); at most {} ms are allowed (replication.database.max_lag)",
                copy.behind_ms, copy.behind_bytes, self.sites.max_lag_ms
            )));
        }
        self.gate.release();
        // A stopping primary sends the rest of the WAL to its replicas first.
        let stopped = self.stop().await;
        self.gate.set_primary(false);
        stopped.map_err(|error| refused(textnlp_net::error_chain(&error)))
    }

    fn is_there(&self) -> bool {
        self.config.data().join("PG_VERSION").is_file()
    }

    /// A server that finds this file follows until it is promoted.
    fn will_follow(&self) -> bool {
        self.config.data().join("standby.signal").is_file()
    }

    /// Starts the server on the existing data.
    fn start(&mut self) -> Result<(), Error> {
        self.config.write_files()?;
        self.torn_since = None;
        let follows = self.will_follow();
        let process = Process::start(&self.config)?;
        self.state = if follows { State::Copy(process) } else { State::Primary { process, made: false } };
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.known.is(ServerRole::NotRunning, false, None);
        match std::mem::replace(&mut self.state, State::Nothing) {
            State::Nothing => Ok(()),
            State::Copy(process) | State::Primary { process, .. } => Ok(process.stop().await?),
        }
    }

    /// Records the state of the data directory, if it changed.
    fn note(&mut self, standing: DataDirectoryState) -> Result<(), Error> {
        if self.standing.as_ref() != Some(&standing) {
            standing.write(&self.config)?;
            self.standing = Some(standing);
        }
        Ok(())
    }
}
