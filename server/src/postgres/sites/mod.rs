//! One PostgreSQL that several sites share: each site has a server, one of them is the primary, the others follow it.
//!
//! Who leads is not decided here. The site's watch says so, with a lease, and this keeper makes its server what that asks for: a primary only with a
//! lease and with everything that the primary of before had ([`standing`]), a copy otherwise. Whoever wants the primary comes by a
//! [`door`], and the door of a site whose lease is over is shut, whatever its server still believes ([`gate`]). A primary of
//! before is rewound to where the new one began, or copied anew.

mod api;
mod door;
mod gate;
mod known;
mod standing;
mod startup;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::config::Sites;
use super::process::{self, Process};
use super::{Config, Error, make};
use crate::control::{boottime_ms, client};
use door::{Door, Doors};
use gate::{Gate, Lead};
use known::{Known, Now};
use standing::Standing;

/// Between two questions to the watch: several per heartbeat, and a lease is much longer.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// It answers from memory.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks at the server.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After something that did not work.
const PAUSE: Duration = Duration::from_secs(1);
/// So long a copy may try by itself to follow a primary that is there: what is between is torn now and then.
const PATIENCE: Duration = Duration::from_secs(10);
/// A copy that lacks less than this of what it has been told of has everything that counts.
const CAUGHT_UP: i64 = 16 << 20;

/// Letting go, so that another site may lead.
pub(super) struct Release {
    to: String,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// Why the lead is not let go of, and what to do.
#[derive(Debug)]
pub(super) struct Refused {
    why: String,
    hint: &'static str,
}

/// Keeps the server what it is to be, until it is told to stop or that ends by itself. The server is stopped when this returns.
pub(super) async fn run(config: Arc<Config>, sites: Sites, told: impl Future<Output = ()>) -> Result<(), Error> {
    make_folder(&config, &sites)?;
    config.write_files()?;
    let (gate, known) = (Gate::new(&sites.site), Arc::new(Known::new(&sites)));
    let (release, releases) = mpsc::channel(1);
    let stop = CancellationToken::new();
    // Whoever ends this ends all of it.
    let _stop = stop.clone().drop_guard();
    api::serve(&config, &sites, &gate, &known, release, stop.clone()).await?;
    let doors = Arc::new(Doors { config: config.clone(), gate: gate.clone(), stop: stop.clone() });
    let out = config.run().join(format!(".s.PGSQL.{}", config.door_number()));
    tokio::spawn(door::serve(doors.clone(), Door::Out, door::bind(&out, config.user)?));
    tokio::spawn(door::serve(doors, Door::In, door::bind(&sites.door, None)?));
    tokio::spawn(ask(sites.clone(), gate.clone(), stop.clone()));
    tokio::spawn(look(config.clone(), gate.clone(), known.clone(), stop));
    let standing = Standing::read(&config)?;
    let state = State::Nothing;
    let mut keeper = Keeper { config, sites, gate, known, state, standing, releases, torn_since: None, rewound: false };
    let ended = tokio::select! {
        ended = keeper.keep() => ended,
        () = told => Ok(()),
    };
    if ended.is_ok() {
        // The doors stay until it has stopped: its copies get the last of it, and whoever begins next finds nobody at work on the folder.
        keeper.gate.set_primary(false);
        keeper.stop().await?;
    }
    ended
}

/// The folder may be gone with the disk: what was in it is copied from another site.
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

/// Asks the watch who leads.
async fn ask(sites: Sites, gate: Arc<Gate>, stop: CancellationToken) {
    let mut every = tokio::time::interval(ASK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let asked_at = boottime_ms();
        let answer = client::get(&sites.watch, "/v1/lead", ASK_WITHIN).await;
        let lead = answer.ok().filter(|(status, _)| *status == StatusCode::OK);
        match lead.and_then(|(_, answer)| serde_json::from_value::<Lead>(answer).ok()) {
            Some(lead) => gate.told(lead, asked_at),
            None => gate.not_told(),
        }
    }
}

/// Looks at the server.
async fn look(config: Arc<Config>, gate: Arc<Gate>, known: Arc<Known>, stop: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        if known.runs() {
            // Of whom it was said that it follows: the one that the door led to before and after.
            let (follows, of) = (gate.follows(), gate.following());
            let seen = make::look(&config, gate.copies_may()).await;
            let follows = follows && gate.follows() && Arc::ptr_eq(&of, &gate.following());
            known.saw(seen, follows.then_some(of));
        }
    }
}

/// What the server is at the moment.
enum State {
    Nothing,
    Copy(Process),
    Primary { process: Process, made: bool },
}

struct Keeper {
    config: Arc<Config>,
    sites: Sites,
    gate: Arc<Gate>,
    known: Arc<Known>,
    state: State,
    standing: Option<Standing>,
    releases: mpsc::Receiver<Release>,
    /// Since when the copy does not follow.
    torn_since: Option<Instant>,
    /// It was rewound since it last followed.
    rewound: bool,
}

impl Keeper {
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
                // Who has given up was told that nothing changed: nothing does.
                && !answer.is_closed()
            {
                let released = self.release(&to).await;
                // Whoever asked may have gone.
                let _ = answer.send(released);
            }
            let done = self.turn().await;
            self.tell(&done);
            let pause = match done {
                Ok(()) => {
                    // The watch is asked several times a second, and each answer is a change.
                    let _ = tokio::time::timeout(PAUSE, changed.changed()).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(error = %crate::error::chain(&error), "the database is not what it is to be");
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
                // Its door is shut; whether another will lead is not known yet.
                false => Ok(()),
            },
            Some(other) => self.follow(&other, &lead).await,
            None => Ok(()),
        }
    }

    /// What there is to know for others.
    fn tell(&self, done: &Result<(), Error>) {
        let lead = self.gate.lead();
        let now = match &self.state {
            State::Nothing => Now::Nothing,
            State::Copy(_) => Now::Copy,
            State::Primary { .. } => Now::Primary,
        };
        let fit = self.standing.as_ref().is_some_and(|standing| standing.is_fit(&self.sites.site, &lead));
        self.known.is(now, fit && !matches!(self.state, State::Nothing), done.as_ref().err());
    }

    /// This site leads: its server is a primary, or becomes one.
    async fn lead(&mut self, lead: &Lead) -> Result<(), Error> {
        if !matches!(self.state, State::Primary { .. }) {
            self.may_lead(lead)?;
        }
        match std::mem::replace(&mut self.state, State::Nothing) {
            State::Nothing => {
                if !self.will_follow() {
                    self.note(Standing::Primary { epoch: lead.epoch })?;
                }
                self.start()
            }
            State::Copy(process) => {
                self.state = State::Copy(process);
                // From here on it has a history of its own.
                self.note(Standing::Primary { epoch: lead.epoch })?;
                make::promote(&self.config).await?;
                if let State::Copy(process) = std::mem::replace(&mut self.state, State::Nothing) {
                    self.state = State::Primary { process, made: false };
                }
                tracing::info!(epoch = lead.epoch, "the database here is the primary now");
                self.make().await
            }
            primary @ State::Primary { made: true, .. } => {
                self.state = primary;
                self.note(Standing::Primary { epoch: lead.epoch })
            }
            primary @ State::Primary { made: false, .. } => {
                self.state = primary;
                self.make().await
            }
        }
    }

    /// Makes a primary what it is to be, and lets in whom it is for.
    async fn make(&mut self) -> Result<(), Error> {
        make::make(&self.config).await?;
        self.gate.set_primary(true);
        // pg_rewind asks the files in which history a server is.
        make::checkpoint(&self.config).await?;
        self.gate.take_copies();
        if let State::Primary { made, .. } = &mut self.state {
            *made = true;
        }
        Ok(())
    }

    /// Refuses to lead with what is older than what another site had.
    fn may_lead(&self, lead: &Lead) -> Result<(), Error> {
        let folder = &self.config.folder;
        let fix = "have another site lead (`textnlp-deploy dr failover --to SITE`), or restore a copy";
        match &self.standing {
            _ if !self.is_there() => {
                Err(Error::Unfit(format!("{folder} holds no PostgreSQL, and this site is to lead: {fix}")))
            }
            Some(standing) if standing.is_fit(&self.sites.site, lead) => Ok(()),
            // The first primary of all, or one that was restored.
            None if lead.since <= 1 || self.config.dump.as_ref().is_some_and(|dump| dump.is_file()) => Ok(()),
            _ => Err(Error::Unfit(format!(
                "what is in {folder} may lack what the primary before epoch {} had, and this site is to lead: {fix}",
                lead.since
            ))),
        }
    }

    /// Another site leads: the server here is a copy of that one's, or becomes one.
    async fn follow(&mut self, primary: &str, lead: &Lead) -> Result<(), Error> {
        let is_copy = matches!(self.standing, Some(Standing::Copy { .. })) && self.is_there();
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
            return self.note(Standing::Copy { of: primary.to_owned(), epoch: lead.epoch });
        }
        if self.known.is_connected(&self.gate.following()) {
            // It is getting what it lacks.
            self.torn_since = None;
            return Ok(());
        }
        if self.torn_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(());
        }
        let Some(through) = self.config.following() else { return Ok(()) };
        self.torn_since = None;
        let mut changed = self.gate.changed();
        let moved =
            async { while self.gate.lead().primary.as_deref() == Some(primary) && changed.changed().await.is_ok() {} };
        let is_there = tokio::select! {
            is_there = make::reaches(&self.config, &through) => is_there,
            // Who is to lead does not wait for who led.
            () = moved => false,
        };
        if is_there {
            // It is there and we cannot follow it: it has gone another way than we did, or has forgotten us.
            tracing::warn!(%primary, rewound = self.rewound, "the copy cannot follow the primary by itself");
            self.stop().await?;
            return if self.rewound { self.copy(primary).await } else { self.rewind(primary).await };
        }
        Ok(())
    }

    /// Makes a copy of what is there, or from nothing.
    async fn become_copy(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        if !make::reaches(&self.config, &through).await {
            return Err(Error::Copy(format!("the primary at {primary} cannot be reached yet")));
        }
        match self.standing {
            Some(Standing::Primary { .. }) if self.is_there() => self.rewind(primary).await,
            _ => self.copy(primary).await,
        }
    }

    async fn rewind(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        self.note(Standing::Half)?;
        if !process::rewind(&self.config, &through).await? {
            return self.copy(primary).await;
        }
        self.rewound = true;
        self.known.rewound();
        tracing::info!(%primary, "what went another way than the primary was taken back");
        self.note(Standing::Copy { of: primary.to_owned(), epoch: 0 })?;
        self.start()
    }

    async fn copy(&mut self, primary: &str) -> Result<(), Error> {
        let Some(through) = self.config.following() else { return Ok(()) };
        // What is there stays until there is something better.
        process::copy_primary(&self.config, &through).await?;
        self.note(Standing::Half)?;
        process::take_copy(&self.config).await?;
        self.known.copied();
        tracing::info!(%primary, "the primary was copied");
        self.note(Standing::Copy { of: primary.to_owned(), epoch: 0 })?;
        self.start()
    }

    /// Lets the copy at a site have everything, and stops. Nothing is stopped when that cannot be.
    async fn release(&mut self, to: &str) -> Result<(), Refused> {
        const WAIT: &str = "wait until it has caught up; `textnlp-deploy dr status` tells how far each site is";
        let refused = |why: String| Refused { why, hint: WAIT };
        if !matches!(self.state, State::Primary { made: true, .. }) {
            return Err(refused(format!("the database of {} is no primary at the moment", self.sites.site)));
        }
        let Some(copy) = self.known.copies().remove(to).filter(|copy| copy.connected) else {
            return Err(refused(format!("the copy of the database at {to} does not follow")));
        };
        if copy.behind_ms > self.sites.max_lag_ms {
            return Err(refused(format!(
                "the copy of the database at {to} is {} ms behind ({} bytes); at most {} ms are allowed (replication.database.max_lag)",
                copy.behind_ms, copy.behind_bytes, self.sites.max_lag_ms
            )));
        }
        self.gate.release();
        // A primary that stops lets its copies have the last of it first.
        let stopped = self.stop().await;
        self.gate.set_primary(false);
        stopped.map_err(|error| refused(crate::error::chain(&error)))
    }

    fn is_there(&self) -> bool {
        self.config.data().join("PG_VERSION").is_file()
    }

    /// A server that finds this file follows until it is promoted.
    fn will_follow(&self) -> bool {
        self.config.data().join("standby.signal").is_file()
    }

    /// Starts the server on what is there.
    fn start(&mut self) -> Result<(), Error> {
        self.config.write_files()?;
        self.torn_since = None;
        let follows = self.will_follow();
        let process = Process::start(&self.config)?;
        self.state = if follows { State::Copy(process) } else { State::Primary { process, made: false } };
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.known.is(Now::Nothing, false, None);
        match std::mem::replace(&mut self.state, State::Nothing) {
            State::Nothing => Ok(()),
            State::Copy(process) | State::Primary { process, .. } => Ok(process.stop().await?),
        }
    }

    /// Writes down what the folder is now, where that is news.
    fn note(&mut self, standing: Standing) -> Result<(), Error> {
        if self.standing.as_ref() != Some(&standing) {
            standing.write(&self.config)?;
            self.standing = Some(standing);
        }
        Ok(())
    }
}
