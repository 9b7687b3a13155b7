//! The audit log: who did what, when and from where. Rows are only inserted; database triggers reject every other
//! change.
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
    FeatureSet,
    FeatureClear,
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
            Self::FeatureSet => "feature.set",
            Self::FeatureClear => "feature.clear",
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

impl Store {
    /// Inserts an event in a transaction with access to all tenants. Numbers become visible in order, so that an
    /// incremental export misses none: until it ends, the transaction blocks other writers of the log.
    pub(super) async fn record(
        &self,
        transaction: &mut Transaction<'static, Any>,
        event: &AuditEvent,
    ) -> Result<(), StoreError> {
        if let Some((lock, number)) = self.lock("audit log") {
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
    use super::super::tests::{Bench, key, on_both};
    use super::*;

    on_both!(
        no_row_is_changed_or_deleted,
        an_act_and_its_event_are_written_together,
        a_flood_of_wrong_credentials_is_a_bounded_number_of_rows_that_count_all_of_it,
        a_keys_first_use_is_recorded_once_by_all_replicas,
        an_export_goes_on_where_it_ended,
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
}
