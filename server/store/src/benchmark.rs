//! A benchmark of the database, in the manner of pgbench: clients run what the store does for requests, one after the
//! other and without pauses.
//!
//! It works in tables of its own, which the migrations make: in a schema of PostgreSQL, and in a file beside that of
//! SQLite, so that the service does not wait for its writer. Its locks have names of their own. The tables are removed
//! at the end. What a killed run left is removed by the next one.

use std::borrow::Cow;
use std::fs::{File, TryLockError};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use serde::Serialize;
use sqlx::{AnyConnection, Connection, Row};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::copy::io;
use super::dialect::{self, Dialect};
use super::maintenance::{folder_of, free_bytes};
use super::usage::{BATCH, COLLECTS, WAITING};
use super::{ApiKey, MaintenanceError, Reservation, Store, StoreError, Unit, Usage, change, now_ms};
use crate::config::{Database, DatabaseAt};
use crate::rate::Rate;

/// The most clients.
const MAX_CLIENTS: u32 = 64;
/// The shortest and the longest duration.
const DURATIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// Transactions of all clients, at most: this bounds the size of the tables.
const MAX_TRANSACTIONS: u64 = 1_000_000;
/// The free disk space that a file needs for a second, and at most, which is enough for all transactions.
const BYTES_PER_SECOND: u64 = 32 << 20;
const MAX_BYTES: u64 = 2 << 30;
/// How long the last transactions and usage records may take after the duration.
const GRACE: Duration = Duration::from_secs(30);
/// The pause of a client after a failed transaction.
const PAUSE: Duration = Duration::from_millis(20);

/// API keys. A prime number: each client steps through all of them in another order.
const KEYS: u32 = 101;
/// Limits of a key that no benchmark reaches.
const RATE: Rate = Rate { count: 1_000_000_000, per: Duration::from_secs(1) };
const TOKEN_LIMIT: u64 = 1 << 50;
/// The tokens that a request reserves, and those that it uses.
const RESERVED: u64 = 100;
const PROMPT_TOKENS: u64 = 40;
const GENERATED_TOKENS: u64 = 20;

/// The statements of a transaction.
const STATEMENTS: [&str; 4] = ["key_lookup", "take_request", "reserve", "settle"];

/// Starts the names of its locks: PostgreSQL has one set of advisory locks for all schemas of a database.
const LOCKS: &str = "benchmark ";
const SCHEMA: &str = "textnlp_benchmark";
const MAKE: &str = "CREATE SCHEMA textnlp_benchmark; \
    COMMENT ON SCHEMA textnlp_benchmark IS 'made by textnlp, removed by its next benchmark'";
/// Another schema of this name stays.
const REMOVE: &str = "DO $$ BEGIN \
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'textnlp_benchmark' \
        AND obj_description(oid, 'pg_namespace') = 'made by textnlp, removed by its next benchmark') \
    THEN DROP SCHEMA textnlp_benchmark CASCADE; END IF; END $$";
/// The connections that the server, the role and the database still accept. Sessions of other roles are counted, not
/// shown. And whether a publication would send the tables to subscribers, which do not have them.
const FREE: &str = "SELECT least( \
    current_setting('max_connections')::bigint \
        - current_setting('superuser_reserved_connections')::bigint \
        - coalesce(current_setting('reserved_connections', true), '0')::bigint \
        - (SELECT coalesce(sum(numbackends), 0)::bigint FROM pg_stat_database), \
    (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = session_user) \
        - (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user), \
    (SELECT nullif(d.datconnlimit, -1) - s.numbackends FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid \
        WHERE d.datname = current_database())), \
    EXISTS (SELECT FROM pg_publication WHERE puballtables)";
/// Connections besides those of the clients: one writes usage records, and one is in the pool of the service's tables.
const OWN_CONNECTIONS: i64 = 2;

const RUNS: &str = "another benchmark of this database runs";

/// The size of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchmarkPlan {
    /// Clients at the same time, 1 to 64. In PostgreSQL at most half of the free connections, less two.
    pub clients: u32,
    /// When they end.
    pub length: BenchmarkLength,
}

/// When the clients of a benchmark end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchmarkLength {
    /// After this time, 1 second to 10 minutes.
    Duration(Duration),
    /// When each of them has run this number of transactions, at least 1 and 1,000,000 of all clients at most; after 10 minutes at the
    /// latest.
    Transactions(u64),
}

impl Default for BenchmarkPlan {
    fn default() -> Self {
        Self { clients: 4, length: BenchmarkLength::Duration(Duration::from_secs(10)) }
    }
}

impl BenchmarkPlan {
    fn check(self) -> Result<(), MaintenanceError> {
        let Self { clients, length } = self;
        if !(1..=MAX_CLIENTS).contains(&clients) {
            let why = format!("a benchmark has 1 to {MAX_CLIENTS} clients, not {clients}");
            return Err(MaintenanceError::Refused(why));
        }
        let why = match length {
            BenchmarkLength::Duration(duration) if !DURATIONS.contains(&duration) => {
                let (least, most) = (DURATIONS.start().as_secs(), DURATIONS.end().as_secs());
                format!("a benchmark takes {least} to {most} seconds, not {}", duration.as_secs())
            }
            BenchmarkLength::Transactions(_) if !(1..=MAX_TRANSACTIONS).contains(&self.transactions()) => {
                format!("a benchmark has 1 to {MAX_TRANSACTIONS} transactions, not {}", self.transactions())
            }
            BenchmarkLength::Duration(_) | BenchmarkLength::Transactions(_) => return Ok(()),
        };
        Err(MaintenanceError::Refused(why))
    }

    /// How long it may take.
    fn duration(self) -> Duration {
        match self.length {
            BenchmarkLength::Duration(duration) => duration,
            BenchmarkLength::Transactions(_) => *DURATIONS.end(),
        }
    }

    /// How many transactions a client may start.
    fn each(self) -> u64 {
        match self.length {
            BenchmarkLength::Duration(_) => MAX_TRANSACTIONS,
            BenchmarkLength::Transactions(each) => each,
        }
    }

    /// How many all clients may start, without the limit of all benchmarks.
    fn transactions(self) -> u64 {
        self.each().saturating_mul(self.clients.into())
    }

    /// The free disk space that a file needs.
    fn bytes(self) -> u64 {
        match self.length {
            BenchmarkLength::Duration(duration) => BYTES_PER_SECOND.saturating_mul(duration.as_secs()).min(MAX_BYTES),
            BenchmarkLength::Transactions(_) => {
                let bytes = self.transactions().saturating_mul(MAX_BYTES / MAX_TRANSACTIONS);
                bytes.clamp(BYTES_PER_SECOND, MAX_BYTES)
            }
        }
    }
}

/// The result of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchmarkResult {
    /// `sqlite` or `postgresql`.
    pub database: &'static str,
    /// Clients at the same time.
    pub clients: u32,
    /// How long they ran.
    pub seconds: f64,
    /// Connections that they shared.
    pub connections: u32,
    /// The time until all connections were open.
    pub connection_ms: f64,
    /// Transactions that succeeded.
    pub transactions: u64,
    /// Those of each client.
    pub per_client: Vec<u64>,
    /// Transactions that failed. They are not repeated.
    pub failed: u64,
    /// Transactions that succeeded, per second.
    pub per_second: f64,
    /// The latency of transactions that succeeded.
    pub latency_ms: Latency,
    /// The statements of these transactions, and the batches of usage records.
    pub statements: Vec<StatementResult>,
    /// Usage records that were stored.
    pub usage_rows: u64,
    /// Requests that the service recorded meanwhile. `None` if they could not be counted.
    pub service_requests: Option<u64>,
    /// Notes for the operator.
    pub notes: Vec<String>,
}

/// A statement of a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatementResult {
    /// Its name.
    pub name: &'static str,
    /// Calls that succeeded.
    pub calls: u64,
    /// Their latency.
    pub latency_ms: Latency,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The mean.
    pub average: f64,
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The highest.
    pub max: f64,
}

impl Latency {
    /// Those of these times in microseconds; `None` without any. Percentiles are by the nearest rank.
    fn of(mut times: Vec<u32>) -> Option<Self> {
        times.sort_unstable();
        let milliseconds = |time: u32| f64::from(time) / 1000.0;
        let max = milliseconds(*times.last()?);
        let percentile = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().map_or(max, milliseconds)
        };
        let sum: u64 = times.iter().copied().map(u64::from).sum();
        Some(Self {
            average: sum as f64 / 1000.0 / times.len() as f64,
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
            max,
        })
    }
}

/// What clients share.
#[derive(Debug)]
struct Load {
    until: Instant,
    /// The most transactions of a client.
    each: u64,
    /// Transactions that were started.
    started: AtomicU64,
}

/// What a client did. Times are in microseconds, of transactions that succeeded.
#[derive(Debug, Default)]
struct Tally {
    failed: u64,
    transactions: Vec<u32>,
    statements: [Vec<u32>; STATEMENTS.len()],
}

/// The usage records that were stored.
#[derive(Debug, Default)]
struct Records {
    rows: u64,
    /// The times of the batches, in microseconds.
    batches: Vec<u32>,
}

/// What all clients did.
#[derive(Debug)]
struct Run {
    took: Duration,
    tallies: Vec<Tally>,
    records: Records,
}

impl Store {
    /// Measures the database, which is that of this store. Ends early with `stop`. Refused while a backup or another
    /// benchmark runs, and where free connections or free disk space are short.
    pub async fn benchmark(
        &self,
        database: &Database,
        plan: BenchmarkPlan,
        stop: impl Future<Output = ()>,
    ) -> Result<BenchmarkResult, MaintenanceError> {
        plan.check()?;
        if self.is_standby().await? {
            return Err(MaintenanceError::Standby);
        }
        match &database.at {
            DatabaseAt::File(file) => {
                let folder = folder_of(file);
                let _lock = lock(folder)?;
                check_disk(free_bytes(folder).map_err(failed)?, plan.bytes())?;
                self.measure(database, plan, stop).await
            }
            DatabaseAt::Server(_) => {
                // Outside the pool, which may have one connection only.
                let options = self.writes.connect_options();
                let mut session = self.ask(AnyConnection::connect_with(&options)).await?;
                let done = match self.claim_server(&mut session, plan.clients).await {
                    Ok(()) => self.measure(database, plan, stop).await,
                    Err(refused) => Err(refused),
                };
                self.release(&mut session).await;
                let _ = self.ask(session.close()).await;
                done
            }
        }
    }

    /// Removes what a benchmark left. Repeating it succeeds. A benchmark that still runs fails.
    pub async fn end_benchmark(&self, database: &Database) -> Result<(), StoreError> {
        match &database.at {
            DatabaseAt::File(file) => remove_files(file).await,
            DatabaseAt::Server(_) => change(StoreError::passes, || self.drop_schema()).await,
        }
    }

    async fn drop_schema(&self) -> Result<(), StoreError> {
        self.ask(sqlx::raw_sql(REMOVE).execute(&self.writes)).await.map(drop)
    }

    async fn claim_server(&self, session: &mut AnyConnection, clients: u32) -> Result<(), MaintenanceError> {
        self.claim(session, "benchmark", RUNS).await?;
        self.refuse_during_backup(session).await?;
        let row = self.ask(sqlx::query(FREE).fetch_one(&mut *session)).await?;
        if row.try_get::<bool, _>(1).map_err(StoreError::from)? {
            let why =
                "a publication of the database is FOR ALL TABLES: its subscribers would need those of a benchmark";
            return Err(MaintenanceError::Refused(why.to_owned()));
        }
        check_connections(row.try_get(0).map_err(StoreError::from)?, clients)
    }

    /// Measures in tables that it makes and removes.
    async fn measure(
        &self,
        database: &Database,
        plan: BenchmarkPlan,
        stop: impl Future<Output = ()>,
    ) -> Result<BenchmarkResult, MaintenanceError> {
        self.end_benchmark(database).await?;
        let before = self.usage_end().await?;
        let measured = self.run_in_scratch(database, plan, stop).await;
        let after = self.usage_end().await;
        let left = self.end_benchmark(database).await.err().map(|error| {
            let why = textnlp_net::error_chain(&error);
            format!("its tables were not removed, which the next benchmark does: {why}")
        });
        let mut result = match (measured, &left) {
            (Ok(result), _) => result,
            (Err(error), None) => return Err(error),
            (Err(error), Some(left)) => {
                let why = format!("{}; {left}", textnlp_net::error_chain(&error));
                return Err(match error {
                    MaintenanceError::Store(_) => failed(std::io::Error::other(why)),
                    MaintenanceError::Refused(_) | MaintenanceError::Standby => MaintenanceError::Refused(why),
                });
            }
        };
        result.service_requests =
            after.ok().map(|after| u64::try_from(after.saturating_sub(before)).unwrap_or_default());
        if let Some(requests) = result.service_requests.filter(|requests| *requests > 0) {
            result
                .notes
                .push(format!("the service recorded {requests} requests meanwhile, which use the same database"));
        }
        result.notes.extend(left);
        Ok(result)
    }

    async fn run_in_scratch(
        &self,
        database: &Database,
        plan: BenchmarkPlan,
        stop: impl Future<Output = ()>,
    ) -> Result<BenchmarkResult, MaintenanceError> {
        if let DatabaseAt::Server(_) = &database.at {
            self.ask(sqlx::raw_sql(MAKE).execute(&self.writes)).await.map_err(explained)?;
        }
        let at = scratch_of(&database.at);
        let scratch = open_scratch(&at, 1).await?;
        let filled = fill(&scratch).await;
        scratch.close().await;
        filled?;
        let began = Instant::now();
        // In PostgreSQL, the writer of usage records does not wait for a connection of a client. SQLite has one writer.
        let writers = u32::from(self.dialect == Dialect::Postgres);
        let scratch = open_scratch(&at, plan.clients + writers).await?;
        let measured = async {
            let connections = scratch.connect_all().await?;
            let connected = began.elapsed();
            let run = run(&scratch, plan).await?;
            result(run, plan, scratch.dialect, (connections, connected))
        };
        let measured = tokio::select! {
            measured = measured => measured,
            () = stop => Err(MaintenanceError::Refused("it was stopped".to_owned())),
        };
        // Files are removed after they are closed.
        scratch.close().await;
        measured
    }

    /// Opens all connections of the pool, and returns how many the store has then.
    async fn connect_all(&self) -> Result<u32, StoreError> {
        let readers = self.reads.options().get_max_connections();
        let mut connections = Vec::new();
        for _ in 0..readers {
            connections.push(self.ask(self.reads.acquire()).await?);
        }
        // SQLite has one more, which writes.
        Ok(readers + u32::from(self.dialect == Dialect::Sqlite))
    }
}

fn failed(error: std::io::Error) -> MaintenanceError {
    io(error).into()
}

/// The lock of a folder, until it is dropped or the process ends.
#[derive(Debug)]
struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing is not enough: a child process that is starting has the file open until its `exec`.
        let _ = self.0.unlock();
    }
}

/// Locks the folder of a file for one benchmark.
fn lock(folder: &Utf8Path) -> Result<FolderLock, MaintenanceError> {
    let folder = File::open(folder).map_err(failed)?;
    match folder.try_lock() {
        Ok(()) => Ok(FolderLock(folder)),
        Err(TryLockError::WouldBlock) => Err(MaintenanceError::Refused(RUNS.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn check_disk(free: u64, needed: u64) -> Result<(), MaintenanceError> {
    if free < needed {
        let why = format!("it needs {} MiB of free disk space, and there are {} MiB", needed >> 20, free >> 20);
        return Err(MaintenanceError::Refused(why));
    }
    Ok(())
}

fn check_connections(free: i64, clients: u32) -> Result<(), MaintenanceError> {
    let free = free.max(0);
    let most = (free / 2 - OWN_CONNECTIONS).max(0);
    if i64::from(clients) > most {
        let why = format!(
            "the role of the service has {free} free connections to the database. A benchmark uses at most half of them, \
             and {OWN_CONNECTIONS} are not for clients: at most {most} clients, not {clients}"
        );
        return Err(MaintenanceError::Refused(why));
    }
    Ok(())
}

/// Why the schema was not made.
fn explained(error: StoreError) -> MaintenanceError {
    let code = match &error {
        StoreError::Failed(inner) => inner.as_database_error().and_then(|inner| inner.code()).map(Cow::into_owned),
        _ => None,
    };
    let why = match code.as_deref() {
        Some("42P06") => "the database has a schema textnlp_benchmark that no benchmark made: rename it",
        Some("42501") => "the role of the service may not create a schema: GRANT CREATE ON DATABASE … TO …",
        _ => return error.into(),
    };
    MaintenanceError::Refused(why.to_owned())
}

/// What the names of its SQLite files start with.
fn prefix(file: &str) -> String {
    format!("{file}-benchmark-")
}

/// Where the tables of a benchmark are. A SQLite file has a new name each time: a connection of an aborted benchmark may
/// still remove its log, by name.
fn scratch_of(at: &DatabaseAt) -> DatabaseAt {
    match at {
        DatabaseAt::File(file) => {
            let name = uuid::Uuid::new_v4().simple();
            DatabaseAt::File(format!("{}{name}", prefix(file.as_str())).into())
        }
        DatabaseAt::Server(server) => DatabaseAt::Server(server.clone()),
    }
}

/// Removes the files of all benchmarks of a SQLite database.
async fn remove_files(file: &Utf8Path) -> Result<(), StoreError> {
    let prefix = prefix(file.file_name().unwrap_or_default());
    let mut entries = tokio::fs::read_dir(folder_of(file)).await.map_err(io)?;
    while let Some(entry) = entries.next_entry().await.map_err(io)? {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        match tokio::fs::remove_file(entry.path()).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    Ok(())
}

/// A store in the tables of a benchmark.
async fn open_scratch(at: &DatabaseAt, connections: u32) -> Result<Store, StoreError> {
    match at {
        DatabaseAt::File(_) => Store::open(&Database { at: at.clone(), pool_size: connections, max_overflow: 0 }).await,
        DatabaseAt::Server(server) => Ok(Store { locks: LOCKS, ..dialect::open_schema(server, SCHEMA, connections)? }),
    }
}

/// Makes the tables, with API keys.
async fn fill(scratch: &Store) -> Result<(), StoreError> {
    scratch.migrate(None).await?;
    for number in 0..KEYS {
        let key = ApiKey {
            public_id: subject(number),
            sha256: "0".repeat(64),
            tenant: "default".to_owned(),
            name: "benchmark".to_owned(),
            scopes: vec!["*".to_owned()],
            rate_limit: Some(RATE),
            token_rate_limit: Some(RATE),
            token_limit: Some(TOKEN_LIMIT),
            created_at: now_ms(),
            expires_at: None,
            revoked_at: None,
        };
        scratch.put_key(&key, None).await?;
    }
    Ok(())
}

fn subject(key: u32) -> String {
    format!("benchmark-{key}")
}

async fn run(scratch: &Store, plan: BenchmarkPlan) -> Result<Run, MaintenanceError> {
    let (usage, inbox) = mpsc::channel(WAITING);
    let began = Instant::now();
    let load = Load { until: began + plan.duration(), each: plan.each(), started: AtomicU64::new(0) };
    let load = Arc::new(load);
    // They end with it, also where this function is cancelled.
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        clients.spawn(client(scratch.clone(), number, load.clone(), usage.clone()));
    }
    drop(usage);
    let ended = async {
        let mut tallies = Vec::new();
        while let Some(ended) = clients.join_next().await {
            let tally = ended.map_err(|error| io(std::io::Error::other(error)))?;
            tallies.push(tally?);
        }
        Ok::<_, StoreError>((tallies, began.elapsed()))
    };
    let all = async { tokio::try_join!(ended, write_usage(scratch, inbox)) };
    let late = |_| {
        let seconds = GRACE.as_secs();
        MaintenanceError::Refused(format!("the last transactions did not end within {seconds} s"))
    };
    let ((tallies, took), records) = tokio::time::timeout(plan.duration() + GRACE, all).await.map_err(late)??;
    Ok(Run { took, tallies, records })
}

/// Runs transactions until the end of the load. A lock that was not free, or a lost connection, is a failed
/// transaction; any other error ends the benchmark.
async fn client(store: Store, number: u32, load: Arc<Load>, usage: mpsc::Sender<Usage>) -> Result<Tally, StoreError> {
    let (mut tally, mut key) = (Tally::default(), number);
    for _ in 0..load.each {
        if Instant::now() >= load.until || load.started.fetch_add(1, Ordering::Relaxed) >= MAX_TRANSACTIONS {
            break;
        }
        key = (key + number + 1) % KEYS;
        let began = Instant::now();
        match transaction(&store, &subject(key)).await {
            Ok(parts) => {
                tally.transactions.push(microseconds(began.elapsed()));
                for (times, part) in tally.statements.iter_mut().zip(parts) {
                    times.push(microseconds(part));
                }
                // Waits where the writer does not keep up. A writer that failed ends the benchmark.
                if usage.send(record(key)).await.is_err() {
                    break;
                }
            }
            Err(error) if error.may_be_repeated() => {
                tally.failed += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(tally)
}

/// What the store does for one request of a key with all limits, and the times of [`STATEMENTS`].
async fn transaction(store: &Store, subject: &str) -> Result<[Duration; STATEMENTS.len()], StoreError> {
    let mut last = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        now.saturating_duration_since(std::mem::replace(&mut last, now))
    };
    store.key(subject).await?;
    let found = lap();
    // No limit is near.
    store.take(subject, "requests", RATE, 1).await?;
    let taken = lap();
    let reservation = Reservation {
        unit: Unit::Tokens,
        subject: subject.to_owned(),
        key_limit: Some(TOKEN_LIMIT),
        token: None,
        rate: Some(RATE),
        units: RESERVED,
    };
    let _ = store.reserve(&reservation).await?;
    let reserved = lap();
    store.settle(&reservation, PROMPT_TOKENS + GENERATED_TOKENS).await?;
    Ok([found, taken, reserved, lap()])
}

fn record(key: u32) -> Usage {
    Usage {
        id: uuid::Uuid::now_v7(),
        request_id: uuid::Uuid::new_v4().to_string(),
        user: subject(key),
        tenant: "default".to_owned(),
        endpoint: "/v1/generate".to_owned(),
        model: Some("benchmark".to_owned()),
        prompt_tokens: PROMPT_TOKENS,
        generated_tokens: GENERATED_TOKENS,
        charge: None,
        ms: 100,
        status: 200,
        at_ms: now_ms(),
    }
}

/// Stores usage records in batches, as the service does, but each batch is tried once.
async fn write_usage(store: &Store, mut inbox: mpsc::Receiver<Usage>) -> Result<Records, StoreError> {
    let (mut records, mut batch) = (Records::default(), Vec::with_capacity(BATCH));
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        let began = Instant::now();
        match store.append_usage(&batch).await {
            Ok(()) => {
                records.batches.push(microseconds(began.elapsed()));
                records.rows += count(batch.len());
            }
            Err(error) if error.may_be_repeated() => {}
            Err(error) => return Err(error),
        }
        batch.clear();
        if inbox.is_empty() {
            tokio::time::sleep(COLLECTS).await;
        }
    }
    Ok(records)
}

fn result(
    Run { took, tallies, records }: Run,
    plan: BenchmarkPlan,
    dialect: Dialect,
    (connections, connected): (u32, Duration),
) -> Result<BenchmarkResult, MaintenanceError> {
    let (mut all, mut per_client) = (Tally::default(), Vec::new());
    for mut tally in tallies {
        per_client.push(count(tally.transactions.len()));
        all.failed += tally.failed;
        all.transactions.append(&mut tally.transactions);
        for (times, part) in all.statements.iter_mut().zip(&mut tally.statements) {
            times.append(part);
        }
    }
    let transactions = count(all.transactions.len());
    let Some(latency_ms) = Latency::of(all.transactions) else {
        return Err(MaintenanceError::Refused(format!("no transaction succeeded, and {} failed", all.failed)));
    };
    let statement = |(name, times): (&'static str, Vec<u32>)| {
        let calls = count(times.len());
        Latency::of(times).map(|latency_ms| StatementResult { name, calls, latency_ms })
    };
    let batches = ("append_usage", records.batches);
    let statements = STATEMENTS.into_iter().zip(all.statements).chain([batches]).filter_map(statement).collect();
    let mut notes = Vec::new();
    let ended = transactions + all.failed;
    match plan.length {
        BenchmarkLength::Duration(_) if ended >= MAX_TRANSACTIONS => {
            notes.push(format!("it ended after {MAX_TRANSACTIONS} transactions"));
        }
        BenchmarkLength::Transactions(_) if ended < plan.transactions() => {
            let (seconds, wanted) = (plan.duration().as_secs(), plan.transactions());
            notes.push(format!("it ended after {seconds} s with {ended} of {wanted} transactions"));
        }
        BenchmarkLength::Duration(_) | BenchmarkLength::Transactions(_) => {}
    }
    if records.rows < transactions {
        notes.push(format!("{} usage records were not stored", transactions - records.rows));
    }
    Ok(BenchmarkResult {
        database: dialect.name(),
        clients: plan.clients,
        seconds: took.as_secs_f64(),
        connections,
        connection_ms: connected.as_secs_f64() * 1000.0,
        transactions,
        per_client,
        failed: all.failed,
        per_second: transactions as f64 / took.as_secs_f64(),
        latency_ms,
        statements,
        usage_rows: records.rows,
        service_requests: None,
        notes,
    })
}

fn microseconds(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::tests::{Bench, key, of_postgres, on_both};

    on_both!(
        result_adds_up_and_nothing_is_left,
        each_client_runs_its_transactions,
        what_a_killed_benchmark_left_is_removed_by_the_next_one,
        stopped_benchmark_removes_its_tables_and_another_one_is_refused_meanwhile,
    );

    fn plan(clients: u32, seconds: u64) -> BenchmarkPlan {
        BenchmarkPlan { clients, length: BenchmarkLength::Duration(Duration::from_secs(seconds)) }
    }

    fn counted(clients: u32, each: u64) -> BenchmarkPlan {
        BenchmarkPlan { clients, length: BenchmarkLength::Transactions(each) }
    }

    fn database(bench: &Bench) -> Database {
        Database { at: bench.at.clone(), pool_size: 2, max_overflow: 2 }
    }

    /// Whether there are tables of a benchmark.
    async fn is_there(bench: &Bench, store: &Store) -> bool {
        let DatabaseAt::File(_) = &bench.at else {
            let row = store.one("SELECT count(*) FROM pg_namespace WHERE nspname = 'textnlp_benchmark'").await;
            return row.unwrap().try_get::<i64, _>(0).unwrap() > 0;
        };
        let mut entries = std::fs::read_dir(bench.folder.path()).unwrap();
        entries.any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(&prefix("textnlp.db")))
    }

    async fn until_there(bench: &Bench, store: &Store) {
        let began = Instant::now();
        while !is_there(bench, store).await {
            assert!(began.elapsed() < Duration::from_secs(60), "no benchmark begins");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_ordered(latency: &Latency) -> bool {
        let Latency { average, p50, p95, p99, max } = *latency;
        0.0 < average && average <= max * 1.001 && p50 <= p95 && p95 <= p99 && p99 <= max
    }

    async fn result_adds_up_and_nothing_is_left(bench: Bench) {
        let store = bench.store().await;
        store.put_key(&key("a"), None).await.unwrap();
        let result = store.benchmark(&database(&bench), plan(3, 1), pending()).await.unwrap();
        assert_eq!(result.database, store.dialect.name());
        assert_eq!((result.clients, result.per_client.len()), (3, 3), "{result:?}");
        assert_eq!(result.per_client.iter().sum::<u64>(), result.transactions, "{result:?}");
        assert!(result.transactions > 0 && result.per_second > 0.0, "{result:?}");
        assert_eq!(result.connections, 4, "three clients and a writer: {result:?}");
        assert!(is_ordered(&result.latency_ms), "{result:?}");
        for (statement, name) in result.statements.iter().zip(STATEMENTS) {
            assert_eq!((statement.name, statement.calls), (name, result.transactions), "{result:?}");
        }
        assert!(result.statements.iter().all(|statement| is_ordered(&statement.latency_ms)), "{result:?}");
        assert_eq!(result.statements.last().unwrap().name, "append_usage", "{result:?}");
        assert!(result.usage_rows <= result.transactions, "{result:?}");
        assert_eq!(result.service_requests, Some(0), "{result:?}");
        assert!(!is_there(&bench, &store).await, "its tables are there");
        // The tables of the service are as before.
        assert_eq!((store.keys().await.unwrap().len(), store.usage_end().await.unwrap()), (1, 0));
    }

    async fn each_client_runs_its_transactions(bench: Bench) {
        let store = bench.store().await;
        let result = store.benchmark(&database(&bench), counted(3, 40), pending()).await.unwrap();
        assert_eq!((result.clients, result.per_client.len()), (3, 3), "{result:?}");
        // Failed ones count, as they are not repeated.
        assert_eq!(result.transactions + result.failed, 120, "{result:?}");
        assert!(result.per_client.iter().all(|transactions| *transactions <= 40), "{result:?}");
    }

    async fn what_a_killed_benchmark_left_is_removed_by_the_next_one(bench: Bench) {
        let (store, database) = (bench.store().await, database(&bench));
        tokio::select! {
            ended = store.benchmark(&database, plan(2, 10), pending()) => panic!("{ended:?}"),
            () = until_there(&bench, &store) => {}
        }
        assert!(is_there(&bench, &store).await, "an aborted benchmark removes nothing");
        let began = Instant::now();
        loop {
            match store.benchmark(&database, plan(1, 1), pending()).await {
                Ok(_) => break,
                // PostgreSQL ends the session of an aborted one a little later.
                Err(error) => assert_eq!(error.to_string(), RUNS),
            }
            assert!(began.elapsed() < Duration::from_secs(60), "its lock is held");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!is_there(&bench, &store).await, "its tables are there");
    }

    async fn stopped_benchmark_removes_its_tables_and_another_one_is_refused_meanwhile(bench: Bench) {
        let (store, database) = (bench.store().await, database(&bench));
        let stop = async {
            until_there(&bench, &store).await;
            let refused = store.benchmark(&database, plan(1, 1), pending()).await.unwrap_err();
            assert_eq!(refused.to_string(), RUNS);
        };
        let stopped = store.benchmark(&database, plan(2, 10), stop).await.unwrap_err();
        assert_eq!(stopped.to_string(), "it was stopped");
        assert!(!is_there(&bench, &store).await, "its tables are there");
        store.end_benchmark(&database).await.unwrap();
    }

    #[tokio::test]
    async fn bounds_of_a_benchmark_are_refused_with_one_message() {
        let bench = Bench::sqlite();
        let store = bench.store().await;
        for (plan, expect) in [
            (plan(0, 1), "a benchmark has 1 to 64 clients, not 0"),
            (plan(65, 1), "a benchmark has 1 to 64 clients, not 65"),
            (plan(1, 0), "a benchmark takes 1 to 600 seconds, not 0"),
            (plan(1, 601), "a benchmark takes 1 to 600 seconds, not 601"),
            (counted(1, 0), "a benchmark has 1 to 1000000 transactions, not 0"),
            (counted(10, 100_001), "a benchmark has 1 to 1000000 transactions, not 1000010"),
        ] {
            let refused = store.benchmark(&database(&bench), plan, pending()).await.unwrap_err();
            assert_eq!(refused.to_string(), expect);
        }
        let disk = check_disk(100 << 20, plan(1, 10).bytes()).unwrap_err().to_string();
        assert_eq!(disk, "it needs 320 MiB of free disk space, and there are 100 MiB");
        check_disk(2 << 30, plan(1, 600).bytes()).unwrap();
        assert_eq!([counted(10, 1000).bytes(), counted(10, 100_000).bytes()], [32 << 20, 2_147_000_000]);
        let connections = check_connections(9, 3).unwrap_err().to_string();
        let expect = "the role of the service has 9 free connections to the database. A benchmark uses at most half of \
                      them, and 2 are not for clients: at most 2 clients, not 3";
        assert_eq!(connections, expect);
        check_connections(9, 2).unwrap();
        check_connections(-1, 1).unwrap_err();
    }

    #[test]
    fn lock_of_a_folder_is_free_although_another_process_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let held = lock(folder).unwrap();
        assert_eq!(lock(folder).unwrap_err().to_string(), RUNS);
        // The same open file, as a child process has it.
        let _inherited = held.0.try_clone().unwrap();
        drop(held);
        lock(folder).unwrap();
    }

    #[tokio::test]
    async fn schema_that_no_benchmark_made_stays() {
        let Some((cluster, name, store)) = of_postgres().await else { return };
        let made = "CREATE SCHEMA textnlp_benchmark; CREATE TABLE textnlp_benchmark.mine AS SELECT 7 AS n";
        cluster.sql(&name, made);
        let at = DatabaseAt::Server(crate::PostgresAt::new(&cluster.url(&name)).unwrap());
        let database = Database { at, pool_size: 2, max_overflow: 2 };
        let refused = store.benchmark(&database, plan(1, 1), pending()).await.unwrap_err();
        assert!(refused.to_string().contains("that no benchmark made"), "{refused}");
        store.end_benchmark(&database).await.unwrap();
        assert_eq!(cluster.sql(&name, "SELECT n FROM textnlp_benchmark.mine"), "7");
        // More than half of the free connections of this server.
        let refused = store.benchmark(&database, plan(64, 1), pending()).await.unwrap_err();
        assert!(refused.to_string().contains("free connections"), "{refused}");
        cluster.sql("postgres", &format!("ALTER DATABASE {name} CONNECTION LIMIT 8"));
        let refused = store.benchmark(&database, plan(2, 1), pending()).await.unwrap_err();
        assert!(refused.to_string().contains("free connections"), "{refused}");
        cluster.sql(&name, "CREATE PUBLICATION everything FOR ALL TABLES");
        let refused = store.benchmark(&database, plan(1, 1), pending()).await.unwrap_err();
        assert!(refused.to_string().contains("FOR ALL TABLES"), "{refused}");
    }

    #[tokio::test]
    async fn benchmark_does_not_wait_for_locks_of_the_service() {
        let Some((cluster, name, store)) = of_postgres().await else { return };
        let at = DatabaseAt::Server(crate::PostgresAt::new(&cluster.url(&name)).unwrap());
        let database = Database { at, pool_size: 2, max_overflow: 2 };
        // Locks of a session: PostgreSQL soon ends an idle transaction.
        let mut session = store.writes.acquire().await.unwrap();
        for about in ["usage", "schema", "audit log"] {
            store.claim(&mut session, about, "it is taken").await.unwrap();
        }
        store.ask(sqlx::raw_sql(MAKE).execute(&store.writes)).await.unwrap();
        let scratch = open_scratch(&database.at, 1).await.unwrap();
        fill(&scratch).await.unwrap();
        scratch.append_usage(&[record(0)]).await.unwrap();
        let waits = store.append_usage(&[record(0)]).await.unwrap_err();
        assert!(matches!(waits, StoreError::Busy(_)), "{waits:?}");
        scratch.close().await;
        session.close().await.unwrap();
        store.end_benchmark(&database).await.unwrap();
        assert_eq!(store.usage_end().await.unwrap(), 0);
    }

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        assert_eq!(Latency::of(Vec::new()), None);
        let expect = Latency { average: 0.5, p50: 0.5, p95: 0.5, p99: 0.5, max: 0.5 };
        assert_eq!(Latency::of(vec![500]), Some(expect));
        let expect = Latency { average: 50.5, p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 };
        assert_eq!(Latency::of((1..=100).rev().map(|n| n * 1000).collect()), Some(expect));
    }
}
