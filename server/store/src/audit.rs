//! The audit log: who did what, when and from where. Rows are only inserted, and removed by the retention; database
//! triggers reject every other change.
//!
//! An action that changes the database records its event in the same transaction. Events of requests are frequent and
//! change nothing: [`AuditLog`] aggregates them, one row per kind of event and [`WINDOW`].

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};
use textnlp_net::network::{Network, subscriber};
use tokio::sync::Notify;

use super::scope::Job;
use super::usage::until_written;
use super::{RETRIES, Store, StoreError, now_ms};

/// The actor of an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Actor {
    /// The operator who ran a command: an account, and the machine if known.
    Operator(String),
    /// The public id of a key that a request proved to have.
    Key(String),
    /// The server itself.
    Server,
    /// An unauthenticated request.
    Unknown,
}

impl Actor {
    /// The account that runs this process, by its number: the name in a variable is whatever its caller wrote there.
    pub fn of_process() -> Self {
        Self::Operator(format!("uid {}", rustix::process::getuid().as_raw()))
    }

    /// Its kind and its name: `operator ada@desk`, `key 0123456789abcdef`.
    pub fn describe(&self) -> String {
        let (kind, name) = self.parts();
        format!("{kind} {name}")
    }

    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Operator(name) => ("operator", name),
            Self::Key(id) => ("key", id),
            Self::Server => ("server", "server"),
            Self::Unknown => ("unknown", ""),
        }
    }
}

/// Whether a text may be logged and printed unchanged: short, without control characters, and without characters that
/// reverse the direction of what follows (Unicode UAX 9).
pub fn is_plain(text: &str) -> bool {
    let reverses =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (1..=200).contains(&text.len()) && !text.chars().any(|c| c.is_control() || reverses(c))
}

/// The action. Its name is a contract with consumers of exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is its name
pub enum Action {
    KeyCreate,
    KeyChange,
    KeyRotate,
    KeyRevoke,
    KeyReinstate,
    KeyDelete,
    KeyList,
    KeyCopy,
    KeyFirstUse,
    TenantRemove,
    SecretRotate,
    SignIn,
    Authenticate,
    DatabaseMigrate,
    UsageDelete,
    AuditExport,
    AuditRemove,
    FeatureSet,
    FeatureClear,
    BatchCreate,
    BatchCancel,
    FileDelete,
    ServerStart,
    ServerDrain,
}

impl Action {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyCreate => "key.create",
            Self::KeyChange => "key.change",
            Self::KeyRotate => "key.rotate",
            Self::KeyRevoke => "key.revoke",
            Self::KeyReinstate => "key.reinstate",
            Self::KeyDelete => "key.delete",
            Self::KeyList => "key.list",
            Self::KeyCopy => "key.copy",
            Self::KeyFirstUse => "key.first_use",
            Self::TenantRemove => "tenant.remove",
            Self::SecretRotate => "secret.rotate",
            Self::SignIn => "sign_in",
            Self::Authenticate => "authenticate",
            Self::DatabaseMigrate => "database.migrate",
            Self::UsageDelete => "usage.delete",
            Self::AuditExport => "audit.export",
            Self::AuditRemove => "audit.remove",
            Self::FeatureSet => "feature.set",
            Self::FeatureClear => "feature.clear",
            Self::BatchCreate => "batch.create",
            Self::BatchCancel => "batch.cancel",
            Self::FileDelete => "file.delete",
            Self::ServerStart => "server.start",
            Self::ServerDrain => "server.drain",
        }
    }
}

/// The outcome of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is its name
pub enum Outcome {
    /// Recorded before an act that is done elsewhere, in control data of all sites.
    Attempted,
    Succeeded,
    Refused,
    Failed,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Attempted => "attempted",
            Self::Succeeded => "succeeded",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// An event to be logged.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEvent {
    id: String,
    at_ms: i64,
    until_ms: i64,
    count: u64,
    actor: Actor,
    action: Action,
    outcome: Outcome,
    object: Option<String>,
    tenant: Option<String>,
    source: Option<String>,
    request_id: Option<String>,
    detail: Option<Value>,
}

impl AuditEvent {
    /// An act that succeeds now.
    pub fn new(actor: &Actor, action: Action) -> Self {
        let at_ms = now_ms();
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            at_ms,
            until_ms: at_ms,
            count: 1,
            actor: actor.clone(),
            action,
            outcome: Outcome::Succeeded,
            object: None,
            tenant: None,
            source: None,
            request_id: None,
            detail: None,
        }
    }

    /// The same as another event, of now.
    #[must_use]
    pub fn renewed(self) -> Self {
        let at_ms = now_ms();
        Self { id: uuid::Uuid::now_v7().to_string(), at_ms, until_ms: at_ms, ..self }
    }

    /// Sets the outcome.
    #[must_use]
    pub fn outcome(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    /// Sets the object of the action.
    #[must_use]
    pub fn object(self, object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..self }
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(self, tenant: impl Into<String>) -> Self {
        Self { tenant: Some(tenant.into()), ..self }
    }

    /// Sets the request that caused it.
    #[must_use]
    pub fn origin(self, origin: Origin<'_>) -> Self {
        let (source, request_id) = (origin.source.map(shown), Some(origin.request_id.to_owned()));
        Self { source, request_id, ..self }
    }

    /// Sets further details.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        Self { detail: Some(detail), ..self }
    }
}

/// A row of the log, as exported.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)] // each is the column of its name
pub struct AuditRow {
    pub number: i64,
    pub id: String,
    /// Milliseconds since 1970: of the first event.
    pub at: i64,
    /// Of the last event.
    pub until: i64,
    pub count: i64,
    pub actor_kind: String,
    pub actor: String,
    pub action: String,
    pub outcome: String,
    pub object: Option<String>,
    pub tenant: Option<String>,
    pub source: Option<String>,
    pub request_id: Option<String>,
    pub detail: Option<Value>,
}

/// Which rows are exported.
#[derive(Debug, Clone, Copy)]
pub struct AuditPage {
    /// Rows after this number.
    pub after: i64,
    /// Rows whose last event is not older than this, in milliseconds since 1970.
    pub since_ms: i64,
    /// The most rows.
    pub limit: u32,
}

/// The lock for writes.
const WRITES: &str = "audit log";

/// The fewest days that events are kept. The triggers have the same limit.
pub const MIN_AUDIT_DAYS: u32 = 30;

impl Store {
    /// Inserts an event in a transaction with access to all tenants. Numbers become visible in order, so that an
    /// incremental export misses none: until it ends, the transaction blocks other writers of the log.
    pub(super) async fn record(
        &self,
        transaction: &mut Transaction<'static, Any>,
        event: &AuditEvent,
    ) -> Result<(), StoreError> {
        if let Some((lock, number)) = self.lock(WRITES) {
            self.ask(sqlx::query(lock).bind(number).execute(&mut **transaction)).await?;
        }
        let (kind, actor) = event.actor.parts();
        let query = sqlx::query(
            "INSERT INTO audit_log (id, at, until, count, actor_kind, actor, action, outcome, object, tenant_id, source, request_id, \
             detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&event.id)
        .bind(event.at_ms)
        .bind(event.until_ms)
        .bind(event.count as i64)
        .bind(kind)
        .bind(actor)
        .bind(event.action.name())
        .bind(event.outcome.name())
        .bind(&event.object)
        .bind(&event.tenant)
        .bind(&event.source)
        .bind(&event.request_id)
        .bind(event.detail.as_ref().map(Value::to_string));
        self.ask(query.execute(&mut **transaction)).await.map(drop)
    }

    /// Inserts events that belong to no other change, atomically; existing ones stay unchanged.
    pub async fn append_audit(&self, events: &[AuditEvent]) -> Result<(), StoreError> {
        let mut transaction = self.write_all("audit events", Job::Audit).await?;
        for event in events {
            self.record(&mut transaction, event).await?;
        }
        self.commit(transaction).await
    }

    /// Removes events that ended before a time, oldest first, at most `most`; returns how many. The log records their
    /// count and the range of their numbers, without which the triggers refuse it.
    pub async fn remove_audit(&self, before_ms: i64, most: u32) -> Result<u64, StoreError> {
        let mut transaction = self.write_all(WRITES, Job::Retention).await?;
        let query = sqlx::query(
            "SELECT count(*), coalesce(min(number), 0), coalesce(max(number), 0) FROM (SELECT number FROM audit_log \
             WHERE at < $1 AND until < $1 ORDER BY at, number LIMIT $2) AS oldest",
        )
        .bind(before_ms)
        .bind(i64::from(most));
        let oldest = self.ask(query.fetch_one(&mut *transaction)).await?;
        let (rows, first, last): (i64, i64, i64) = (oldest.try_get(0)?, oldest.try_get(1)?, oldest.try_get(2)?);
        if rows == 0 {
            return Ok(0);
        }
        let detail = json!({ "rows": rows, "first": first, "last": last, "before": before_ms });
        let event = AuditEvent::new(&Actor::Server, Action::AuditRemove).detail(detail);
        self.record(&mut transaction, &event).await?;
        let query = sqlx::query(
            "DELETE FROM audit_log WHERE number IN (SELECT number FROM audit_log WHERE at < $1 AND until < $1 \
             ORDER BY at, number LIMIT $2)",
        )
        .bind(before_ms)
        .bind(i64::from(most));
        let removed = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(removed)
    }

    /// Rows of the log, in the order of their numbers.
    pub async fn audit_page(&self, page: AuditPage) -> Result<Vec<AuditRow>, StoreError> {
        let query = sqlx::query(
            "SELECT number, id, at, until, count, actor_kind, actor, action, outcome, object, tenant_id, source, request_id, detail \
             FROM audit_log WHERE number > $1 AND until >= $2 ORDER BY number LIMIT $3",
        )
        .bind(page.after)
        .bind(page.since_ms)
        .bind(i64::from(page.limit));
        let mut transaction = self.read_all(Job::Audit).await?;
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &AnyRow) -> Result<AuditRow, StoreError> {
    let detail: Option<String> = row.try_get("detail")?;
    Ok(AuditRow {
        number: row.try_get("number")?,
        id: row.try_get("id")?,
        at: row.try_get("at")?,
        until: row.try_get("until")?,
        count: row.try_get("count")?,
        actor_kind: row.try_get("actor_kind")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        outcome: row.try_get("outcome")?,
        object: row.try_get("object")?,
        tenant: row.try_get("tenant_id")?,
        source: row.try_get("source")?,
        request_id: row.try_get("request_id")?,
        detail: detail.and_then(|text| serde_json::from_str(&text).ok()),
    })
}

/// The origin of a request.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'r> {
    /// The client's address, if it is known.
    pub source: Option<IpAddr>,
    /// Its id.
    pub request_id: &'r str,
}

fn shown(source: IpAddr) -> String {
    source.to_canonical().to_string()
}

/// Aggregates events of requests and writes them asynchronously.
#[derive(Debug, Clone)]
pub struct AuditLog(Arc<AuditState>);

#[derive(Debug)]
struct AuditState {
    waiting: Mutex<PendingEvents>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct PendingEvents {
    groups: HashMap<Group, AuditEvent>,
    /// Keys whose first use this process has recorded; the database has the complete record.
    used: HashSet<String>,
    closed: bool,
    lost: u64,
}

/// Events that are one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Group {
    action: Action,
    outcome: Outcome,
    actor: Actor,
    /// An IPv6 client can use every address of its network.
    source: Option<Network>,
    reason: Option<&'static str>,
}

/// How long events of one kind are summed.
const WINDOW: Duration = Duration::from_secs(60);

/// Maximum number of event kinds per window. Unauthenticated events get the smaller part: a flood of wrong credentials
/// from many addresses is limited to that many rows a minute, and hides no event of a key.
const MAX_GROUPS: usize = 512;
const MAX_UNPROVEN: usize = 32;

/// Keys that are remembered as used.
const MAX_USED: usize = 10_000;

impl AuditLog {
    /// A log and the task that writes it; the task ends when the log was closed and everything is written.
    pub fn start(store: Store) -> (Self, tokio::task::JoinHandle<()>) {
        let log = Self(Arc::new(AuditState { waiting: Mutex::default(), wake: Notify::new() }));
        let task = tokio::spawn(write(store, log.clone()));
        (log, task)
    }

    /// Records that a key is used for the first time, unless it was used before. Written at once.
    pub fn key_used(&self, key: &str, tenant: &str, origin: Origin<'_>) {
        let mut waiting = self.lock();
        if waiting.used.contains(key) {
            return;
        }
        if waiting.used.len() >= MAX_USED {
            waiting.used.clear();
        }
        waiting.used.insert(key.to_owned());
        let actor = Actor::Key(key.to_owned());
        let event = AuditEvent {
            // One for each key, whichever replica sees it first.
            id: format!("first-use-{key}"),
            ..AuditEvent::new(&actor, Action::KeyFirstUse).object(key).tenant(tenant).origin(origin)
        };
        let source = origin.source.map(subscriber);
        let group = Group { action: event.action, outcome: event.outcome, actor, source, reason: None };
        waiting.add(group, event);
        self.0.wake.notify_one();
    }

    /// Records a sign-in.
    pub fn signed_in(&self, key: &str, tenant: &str, origin: Origin<'_>) {
        let actor = Actor::Key(key.to_owned());
        let event = AuditEvent::new(&actor, Action::SignIn).object(key).tenant(tenant);
        self.sum(event, None, origin);
    }

    /// Records a credential that was refused, and the code of the refusal.
    pub fn refused(&self, action: Action, reason: &'static str, origin: Origin<'_>) {
        let event = AuditEvent::new(&Actor::Unknown, action).outcome(Outcome::Refused);
        self.sum(event.detail(json!({ "reason": reason })), Some(reason), origin);
    }

    /// Records an event of the server itself, immediately.
    pub fn push(&self, event: AuditEvent) {
        let (action, outcome, actor) = (event.action, event.outcome, event.actor.clone());
        self.lock().add(Group { action, outcome, actor, source: None, reason: None }, event);
        self.0.wake.notify_one();
    }

    fn sum(&self, event: AuditEvent, reason: Option<&'static str>, origin: Origin<'_>) {
        let (source, event) = (origin.source.map(subscriber), event.origin(origin));
        let group = Group { action: event.action, outcome: event.outcome, actor: event.actor.clone(), source, reason };
        self.lock().add(group, event);
    }

    /// Accepts no more events, and lets the task end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.wake.notify_one();
    }

    /// Events that could not be written.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    fn lock(&self) -> MutexGuard<'_, PendingEvents> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingEvents {
    fn add(&mut self, mut group: Group, mut event: AuditEvent) {
        if self.closed {
            self.lost += 1;
            return;
        }
        if !self.groups.contains_key(&group) && !self.has_room(&group) {
            // Further events are one row per action, without actor and origin.
            group = Group { actor: Actor::Unknown, source: None, reason: None, ..group };
            let others = AuditEvent::new(&Actor::Unknown, event.action).outcome(event.outcome);
            event = others.detail(json!({ "others": true }));
        }
        match self.groups.get_mut(&group) {
            Some(there) => {
                there.count = there.count.saturating_add(1);
                there.until_ms = there.until_ms.max(event.at_ms);
                if there.source != event.source {
                    there.source = group.source.map(|network| network.to_string());
                }
            }
            None => {
                self.groups.insert(group, event);
            }
        }
    }

    fn has_room(&self, group: &Group) -> bool {
        match group.actor {
            Actor::Unknown => self.groups.keys().filter(|there| there.actor == Actor::Unknown).count() < MAX_UNPROVEN,
            _ => self.groups.len() < MAX_GROUPS,
        }
    }
}

async fn write(store: Store, log: AuditLog) {
    loop {
        let _ = tokio::time::timeout(WINDOW, log.0.wake.notified()).await;
        let (events, closed): (Vec<AuditEvent>, bool) = {
            let mut waiting = log.lock();
            (std::mem::take(&mut waiting.groups).into_values().collect(), waiting.closed)
        };
        if !events.is_empty() {
            let append = || store.append_audit(&events);
            if let Err(error) = until_written(RETRIES, append, || log.lock().closed).await {
                let mut waiting = log.lock();
                waiting.lost = waiting.lost.saturating_add(events.iter().map(|event| event.count).sum());
                tracing::error!(rows = events.len(), error = %textnlp_net::error_chain(&error), "audit events lost");
            }
        }
        // Also writes events that arrived during the last write.
        if closed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::DAY_MS;
    use super::super::retention::{Retention, sweep};
    use super::super::tests::{Bench, key, on_both};
    use super::*;

    on_both!(
        no_row_is_changed_or_deleted,
        an_act_and_its_event_are_written_together,
        a_flood_of_wrong_credentials_is_a_bounded_number_of_rows_that_count_all_of_it,
        a_keys_first_use_is_recorded_once_by_all_replicas,
        an_export_goes_on_where_it_ended,
        old_events_are_removed_with_a_record_of_them,
        no_event_of_the_last_30_days_is_removed,
        events_of_any_age_are_kept_without_a_record_of_their_removal,
    );

    const ALL: AuditPage = AuditPage { after: 0, since_ms: 0, limit: 10_000 };

    fn operator() -> Actor {
        Actor::Operator("alice".into())
    }

    async fn actions(store: &Store) -> Vec<String> {
        store.audit_page(ALL).await.unwrap().into_iter().map(|row| row.action).collect()
    }

    async fn no_row_is_changed_or_deleted(bench: Bench) {
        let store = bench.store().await;
        store.append_audit(&[AuditEvent::new(&operator(), Action::KeyList)]).await.unwrap();
        let before = store.audit_page(ALL).await.unwrap();
        for statement in ["UPDATE audit_log SET actor = 'bob'", "DELETE FROM audit_log", "TRUNCATE audit_log"] {
            let mut transaction = store.write_all("test", Job::Audit).await.unwrap();
            let refused = sqlx::query(statement).execute(&mut *transaction).await;
            let refused = refused.unwrap_err().to_string();
            // SQLite has no TRUNCATE at all.
            assert!(refused.contains("append-only") || refused.contains("syntax error"), "{statement}: {refused}");
        }
        assert_eq!(store.audit_page(ALL).await.unwrap(), before);
        assert!(before.iter().any(|row| row.action == "key.list" && row.actor == "alice"));
    }

    async fn an_act_and_its_event_are_written_together(bench: Bench) {
        let store = bench.store().await;
        let (wanted, by) = (key("0123456789abcdef"), operator());
        store.put_key(&wanted, Some(&by)).await.unwrap();
        store.put_key(&wanted, Some(&by)).await.unwrap();
        let renamed = super::super::ApiKey { name: "other".into(), ..wanted.clone() };
        store.put_key(&renamed, Some(&by)).await.unwrap();
        let rotated = super::super::ApiKey { sha256: "1".repeat(64), ..renamed };
        store.put_key(&rotated, Some(&by)).await.unwrap();
        store.revoke_key(&wanted.public_id, Some(&by)).await.unwrap();
        store.revoke_key(&wanted.public_id, Some(&by)).await.unwrap();
        store.reinstate_key(&wanted.public_id, Some(&by)).await.unwrap();
        // What another site had acknowledged is an act of that site.
        store.mirror_key(&key("fedcba9876543210")).await.unwrap();
        let rows = store.audit_page(ALL).await.unwrap();
        let migrated = rows.first().unwrap();
        assert_eq!((migrated.action.as_str(), migrated.outcome.as_str()), ("database.migrate", "succeeded"));
        let acts: Vec<_> = rows.iter().skip(1).map(|row| row.action.as_str()).collect();
        // What changed nothing is no act.
        assert_eq!(acts, ["key.create", "key.change", "key.rotate", "key.revoke", "key.reinstate"]);
        for row in rows.iter().skip(1) {
            assert_eq!((row.actor_kind.as_str(), row.actor.as_str()), ("operator", "alice"));
            assert_eq!((row.object.as_deref(), row.tenant.as_deref()), (Some("0123456789abcdef"), Some("default")));
        }
        let mut given_up = store.write_all("test", Job::Keys).await.unwrap();
        store.record(&mut given_up, &AuditEvent::new(&by, Action::KeyRevoke)).await.unwrap();
        drop(given_up);
        assert_eq!(actions(&store).await.len(), rows.len(), "an act that was not done leaves no event");
    }

    #[test]
    fn control_and_direction_characters_are_not_plain() {
        assert!(is_plain("Ada's key, ключ, 鍵") && !is_plain("") && !is_plain(&"x".repeat(201)));
        for text in ["a\nb", "a\u{1b}[2J", "a\u{9b}2J", "a\u{202e}b", "a\u{2066}b", "a\u{200f}b"] {
            assert!(!is_plain(text), "{text:?}");
        }
    }

    async fn a_flood_of_wrong_credentials_is_a_bounded_number_of_rows_that_count_all_of_it(bench: Bench) {
        let store = bench.store().await;
        let (log, task) = AuditLog::start(store.clone());
        // An IPv6 client can use another address for each.
        for (network, last) in [("2001:db8:0:1", 900), ("2001:db8:0:2", 1)] {
            for n in 0..last {
                let source = format!("{network}::{n:x}").parse().ok();
                log.refused(Action::Authenticate, "invalid_api_key", Origin { source, request_id: "r" });
            }
        }
        for n in 0..10_000 {
            let source = Some(IpAddr::from([10, 0, (n / 250 % 200) as u8, (n % 250) as u8]));
            log.refused(Action::SignIn, "invalid_api_key", Origin { source, request_id: "r" });
        }
        let source = Some(IpAddr::from([192, 0, 2, 7]));
        for _ in 0..3 {
            log.signed_in("k1", "acme", Origin { source, request_id: "r7" });
        }
        log.close();
        task.await.unwrap();
        let rows = store.audit_page(ALL).await.unwrap();
        let mut networks: Vec<_> =
            rows.iter().filter(|row| row.action == "authenticate").map(|row| (row.source.clone(), row.count)).collect();
        networks.sort();
        assert_eq!(networks, [(Some("2001:db8:0:1::/64".into()), 900), (Some("2001:db8:0:2::".into()), 1)]);
        let rows: Vec<_> = rows.iter().filter(|row| row.action == "sign_in").collect();
        let refused: Vec<_> = rows.iter().filter(|row| row.outcome == "refused").collect();
        // One more than the distinct ones: all others together.
        assert!(refused.len() <= MAX_UNPROVEN + 1, "{}", refused.len());
        assert_eq!(refused.iter().map(|row| row.count).sum::<i64>(), 10_000);
        assert!(refused.iter().any(|row| row.source.as_deref() == Some("10.0.0.0")));
        let signed_in = rows.iter().find(|row| row.outcome == "succeeded").unwrap();
        assert_eq!((signed_in.count, signed_in.actor.as_str()), (3, "k1"));
        assert_eq!((signed_in.source.as_deref(), signed_in.request_id.as_deref()), (Some("192.0.2.7"), Some("r7")));
        assert_eq!(log.lost(), 0);
    }

    async fn a_keys_first_use_is_recorded_once_by_all_replicas(bench: Bench) {
        let stores = [bench.store().await, bench.open().await];
        for store in &stores {
            let (log, task) = AuditLog::start(store.clone());
            for _ in 0..5 {
                log.key_used("k1", "acme", Origin { source: None, request_id: "r" });
            }
            log.close();
            task.await.unwrap();
        }
        let first = actions(&stores[0]).await.into_iter().filter(|action| action == "key.first_use").count();
        assert_eq!(first, 1);
    }

    async fn an_export_goes_on_where_it_ended(bench: Bench) {
        let store = bench.store().await;
        let events: Vec<_> = (0..5).map(|_| AuditEvent::new(&operator(), Action::KeyList)).collect();
        store.append_audit(&events).await.unwrap();
        let all = store.audit_page(ALL).await.unwrap();
        let (mut pages, mut after) = (Vec::new(), 0);
        loop {
            let page = store.audit_page(AuditPage { after, since_ms: 0, limit: 2 }).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.number;
            pages.extend(page);
        }
        assert_eq!(pages, all);
        let later = AuditPage { since_ms: now_ms() + 1_000_000, ..ALL };
        assert!(store.audit_page(later).await.unwrap().is_empty());
    }

    /// Events that ended this many days ago.
    async fn append(store: &Store, days: &[i64]) {
        let event = |days: &i64| {
            let at_ms = now_ms() - days * DAY_MS;
            AuditEvent { at_ms, until_ms: at_ms, ..AuditEvent::new(&operator(), Action::KeyList) }
        };
        store.append_audit(&days.iter().map(event).collect::<Vec<_>>()).await.unwrap();
    }

    async fn old_events_are_removed_with_a_record_of_them(bench: Bench) {
        let stores = [bench.store().await, bench.open().await];
        append(&stores[0], &[100, 99, 41, 39, 1]).await;
        let before = stores[0].audit_page(ALL).await.unwrap();
        let removed = before[1].number..=before[3].number;
        let keep = Retention { usage_days: 0, audit_days: 40, insight_days: 0, batch_days: 0, key_days: 0 };
        // Two replicas at once: each row is removed and counted once.
        let stop = CancellationToken::new();
        let sweeps = stores.iter().map(|store| sweep(store, keep, now_ms(), drop, &stop));
        let swept = futures::future::join_all(sweeps).await.into_iter().map(|swept| swept.unwrap().audit);
        assert_eq!(swept.sum::<u64>(), 3);
        let after = stores[0].audit_page(ALL).await.unwrap();
        let (record, kept) = after.split_last().unwrap();
        let rest: Vec<_> = before.into_iter().filter(|row| !removed.contains(&row.number)).collect();
        assert_eq!(kept, rest);
        assert_eq!((record.action.as_str(), record.actor_kind.as_str()), ("audit.remove", "server"));
        let detail = record.detail.as_ref().unwrap();
        assert_eq!(
            (&detail["rows"], &detail["first"], &detail["last"]),
            (&json!(3), &json!(removed.start()), &json!(removed.end()))
        );
        // Batches: each has its own record.
        append(&stores[0], &[50, 50, 50]).await;
        let horizon = now_ms() - 40 * DAY_MS;
        let batches = [stores[0].remove_audit(horizon, 2).await, stores[0].remove_audit(horizon, 2).await];
        assert_eq!(batches.map(Result::unwrap), [2, 1]);
        let removals = actions(&stores[0]).await.into_iter().filter(|action| action == "audit.remove").count();
        assert_eq!(removals, 3);
        let forever = Retention { usage_days: 0, audit_days: 0, insight_days: 0, batch_days: 0, key_days: 0 };
        append(&stores[0], &[5000]).await;
        assert_eq!(sweep(&stores[0], forever, now_ms(), drop, &stop).await.unwrap().audit, 0);
    }

    async fn no_event_of_the_last_30_days_is_removed(bench: Bench) {
        let store = bench.store().await;
        append(&store, &[29, 1]).await;
        let before = store.audit_page(ALL).await.unwrap();
        let refused = store.remove_audit(now_ms(), 10).await.unwrap_err();
        assert!(textnlp_net::error_chain(&refused).contains("more than 30 days"), "{refused:?}");
        assert_eq!(store.audit_page(ALL).await.unwrap(), before, "neither the events nor a record of their removal");
    }

    async fn events_of_any_age_are_kept_without_a_record_of_their_removal(bench: Bench) {
        let store = bench.store().await;
        append(&store, &[400, 399, 398]).await;
        let before = store.audit_page(ALL).await.unwrap();
        let removal = |first: i64, last: i64| {
            let event = AuditEvent::new(&operator(), Action::AuditRemove);
            event.detail(json!({ "rows": 1, "first": first, "last": last }))
        };
        let old = before[1].number;
        // None; one of another row; one that is not the newest row.
        for records in [
            vec![],
            vec![removal(old + 1, old + 1)],
            vec![removal(old, old), AuditEvent::new(&operator(), Action::KeyList)],
        ] {
            let mut transaction = store.write_all("test", Job::Audit).await.unwrap();
            for record in &records {
                store.record(&mut transaction, record).await.unwrap();
            }
            let delete = sqlx::query("DELETE FROM audit_log WHERE number = $1").bind(old);
            let refused = delete.execute(&mut *transaction).await.unwrap_err();
            assert!(refused.to_string().contains("append-only"), "{refused}");
        }
        assert_eq!(store.audit_page(ALL).await.unwrap(), before);
    }
}
