//! One list of tests for both databases, and what only one of them can do.

use super::*;
use crate::config::{Database, DatabaseAt, PostgresAt};
use crate::rate::Taken;

#[path = "../../tests/support/postgres.rs"]
pub(crate) mod postgres;

/// Runs the named tests on both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name($crate::tests::Bench::sqlite()).await })*
        }
        mod postgres {
            $(#[tokio::test] async fn $name() {
                if let Some(bench) = $crate::tests::Bench::postgres() {
                    super::$name(bench).await
                }
            })*
        }
    };
}
pub(crate) use on_both;

/// Where a test's database is.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) at: DatabaseAt,
}

impl Bench {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = camino::Utf8PathBuf::from_path_buf(folder.path().join("textnlp.db")).unwrap();
        Self { folder, at: DatabaseAt::File(file) }
    }

    pub(crate) fn postgres() -> Option<Self> {
        let cluster = postgres::shared()?;
        let at = PostgresAt::new(&cluster.url(&cluster.database())).unwrap();
        Some(Self { folder: tempfile::tempdir().unwrap(), at: DatabaseAt::Server(at) })
    }

    /// Another one of the same kind.
    pub(crate) fn another(&self) -> Self {
        match self.at {
            DatabaseAt::File(_) => Self::sqlite(),
            DatabaseAt::Server(_) => Self::postgres().unwrap(),
        }
    }

    /// Opened as one replica does.
    pub(crate) async fn open(&self) -> Store {
        Store::open(&Database { at: self.at.clone(), pool_size: 2, max_overflow: 2 }).await.unwrap()
    }

    /// Opened, with the newest schema.
    pub(crate) async fn store(&self) -> Store {
        let store = self.open().await;
        store.prepare().await.unwrap();
        store
    }
}

pub(crate) fn key(public_id: &str) -> ApiKey {
    ApiKey {
        public_id: public_id.into(),
        sha256: "0".repeat(64),
        tenant: "default".into(),
        name: "test".into(),
        scopes: vec!["*".into()],
        rate_limit: None,
        token_rate_limit: None,
        token_limit: None,
        created_at: 1,
        expires_at: None,
        revoked_at: None,
    }
}

#[tokio::test]
async fn locked_database_file_is_busy_and_an_invalid_one_fails() {
    let bench = Bench::sqlite();
    let (store, other) = (bench.store().await, bench.open().await);
    let held = other.write("").await.unwrap();
    assert!(matches!(store.put_key(&key("a"), None).await, Err(StoreError::Busy(_))));
    assert_eq!(store.key("a").await.unwrap(), None, "readers go on");
    drop(held);
    let file = bench.folder.path().join("broken.db");
    std::fs::write(&file, "this is no database, not even a small one ".repeat(100)).unwrap();
    let at = DatabaseAt::File(camino::Utf8PathBuf::from_path_buf(file).unwrap());
    let refused = Store::open(&Database { at, pool_size: 1, max_overflow: 0 }).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
}

#[tokio::test]
async fn servers_and_commands_create_no_database_file_and_no_schema() {
    let bench = Bench::sqlite();
    let DatabaseAt::File(file) = bench.at.clone() else { panic!("SQLite") };
    let database = Database { at: bench.at.clone(), pool_size: 2, max_overflow: 2 };
    let refused = Store::open_existing(&database).await;
    assert!(matches!(&refused, Err(StoreError::Missing(missing)) if *missing == file), "{refused:?}");
    assert!(!file.exists());
    // Also one that something else created, such as a copy on a full disk.
    std::fs::write(&file, "").unwrap();
    for _ in 0..2 {
        let refused = Store::open_existing(&database).await;
        assert!(matches!(&refused, Err(StoreError::Empty(empty)) if *empty == file), "{refused:?}");
    }
    let store = bench.store().await;
    Store::open_existing(&database).await.unwrap().put_key(&key("a"), None).await.unwrap();
    let away = bench.folder.path().join("away.db");
    std::fs::rename(&file, away).unwrap();
    // Connections of readers are opened when they are needed.
    let _ = tokio::join!(store.keys(), store.keys(), store.keys(), store.keys());
    assert!(!file.exists());
}

#[tokio::test]
async fn full_disk_is_reported_by_the_store() {
    let store = Bench::sqlite().store().await;
    // SQLite's own page limit gives the same result code as a disk without room.
    sqlx::query("PRAGMA max_page_count = 1").execute(&store.writes).await.unwrap();
    let mut failed = None;
    for n in 0..2000 {
        if let Err(error) = store.put_key(&ApiKey { name: "x".repeat(900), ..key(&format!("{n:016}")) }, None).await {
            failed = Some(error);
            break;
        }
    }
    assert!(matches!(failed, Some(StoreError::Full(_))), "{failed:?}");
}

/// A database of PostgreSQL, and how to ask it as its superuser.
pub(crate) async fn of_postgres() -> Option<(&'static postgres::Cluster, String, Store)> {
    let cluster = postgres::shared()?;
    let name = cluster.database();
    let store = open_at(&cluster.url(&name)).await.unwrap();
    store.prepare().await.unwrap();
    Some((cluster, name, store))
}

async fn open_at(url: &str) -> Result<Store, StoreError> {
    let at = DatabaseAt::Server(PostgresAt::new(url).unwrap());
    Store::open(&Database { at, pool_size: 2, max_overflow: 2 }).await
}

async fn with_one_connection(url: &str) -> Store {
    let at = DatabaseAt::Server(PostgresAt::new(url).unwrap());
    Store::open(&Database { at, pool_size: 1, max_overflow: 0 }).await.unwrap()
}

/// Which session of the server's answers.
async fn pid(store: &Store) -> i32 {
    let row = sqlx::query("SELECT pg_backend_pid()").fetch_one(&store.reads).await.unwrap();
    sqlx::Row::get(&row, 0)
}

#[tokio::test]
async fn writers_block_only_on_the_same_subject() {
    let Some((_, _, store)) = of_postgres().await else { return };
    let held = store.write(&keys::about("a")).await.unwrap();
    assert_eq!(store.put_key(&key("b"), None).await.unwrap(), KeyPut::Created);
    let a = key("a");
    let same = store.put_key(&a, None);
    tokio::pin!(same);
    assert!(futures::poll!(same.as_mut()).is_pending());
    drop(held);
    assert_eq!(same.await.unwrap(), KeyPut::Created);
}

#[tokio::test]
async fn stalled_replica_does_not_block_the_others() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    let still = open_at(&cluster.url(&name)).await.unwrap();
    let rate = "9/hour".parse().unwrap();
    assert!(matches!(still.take("a", "requests", rate, 1).await, Ok(Taken::Yes { .. })));
    let mut held = still.count(&budget::about("a")).await.unwrap();
    let took = store.take("a", "requests", rate, 1).await;
    assert!(
        matches!(took, Err(StoreError::Busy(_))),
        "a request does not wait for as long as the change may stand: {took:?}"
    );
    let take = async || store.take("a", "requests", rate, 1).await;
    let taken = textnlp_net::retry::retry(super::RETRIES, StoreError::passes, take).await.unwrap();
    assert!(matches!(taken, Taken::Yes { .. }), "{taken:?}");
    let gone = still.ask(sqlx::query("SELECT 1").execute(&mut *held)).await;
    assert!(matches!(gone, Err(StoreError::Away(_))), "its change is not done: {gone:?}");
    drop(held);
    assert!(matches!(still.take("a", "requests", rate, 1).await, Ok(Taken::Yes { .. })), "it goes on by itself");
}

#[tokio::test]
async fn cancelled_writes_leave_no_connection_in_a_transaction() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    let sessions = || {
        let held = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND datname =";
        cluster.sql("postgres", &format!("{held} '{name}'"))
    };
    for polls in 1..8 {
        // All connections are there. PostgreSQL would end a session that is idle in a transaction after three seconds,
        // which hides one that is left.
        let mut connections = Vec::new();
        for _ in 0..4 {
            let mut connection = store.writes.acquire().await.unwrap();
            let waits = sqlx::query("SET idle_in_transaction_session_timeout = '120s'");
            waits.execute(&mut *connection).await.unwrap();
            connections.push(connection);
        }
        drop(connections);
        let began = std::time::Instant::now();
        while store.writes.num_idle() < 4 {
            assert!(began.elapsed() < Duration::from_secs(30), "{} are idle", store.writes.num_idle());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let change = async {
            let _held = store.count("a").await.unwrap();
            std::future::pending::<()>().await
        };
        {
            tokio::pin!(change);
            for _ in 0..polls {
                assert!(futures::poll!(change.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
        }
        // Before its connection is back or closed, the server may not have begun the transaction yet, or be amid a statement
        // of it.
        let began = std::time::Instant::now();
        while store.writes.num_idle() < store.writes.size() as usize {
            assert!(began.elapsed() < Duration::from_secs(30), "not returned after {polls} polls");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The session of a closed connection may end a little later.
        loop {
            let left = sessions();
            if left == "0" {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "given up after {polls} polls: {left} left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn waiting_requests_do_not_exhaust_the_connection_pool() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    let other = open_at(&cluster.url(&name)).await.unwrap();
    let mut held = other.count(&budget::about("a")).await.unwrap();
    let stays = "SET LOCAL idle_in_transaction_session_timeout = 0";
    other.ask(sqlx::query(stays).execute(&mut *held)).await.unwrap();
    let rate = "9/hour".parse().unwrap();
    // Each waits for a second, and four connections are all there are: one after the other they would take longer than anybody waits.
    let waiting: Vec<_> = (0..60)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.take("a", "requests", rate, 1).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.key("b").await.unwrap(), None);
    assert!(matches!(store.take("b", "requests", rate, 1).await, Ok(Taken::Yes { .. })));
    for waiting in waiting {
        let took = waiting.await.unwrap();
        assert!(matches!(took, Err(StoreError::Busy(_))), "{took:?}");
    }
}

#[tokio::test]
async fn connection_is_reused_unless_it_is_in_a_transaction() {
    let Some((cluster, name, _)) = of_postgres().await else { return };
    let store = with_one_connection(&cluster.url(&name)).await;
    let pid = async || pid(&store).await;
    let before = pid().await;
    assert_eq!(store.put_key(&key("a"), None).await.unwrap(), KeyPut::Created);
    drop(store.write("b").await.unwrap());
    assert_eq!(pid().await, before, "what was begun and not kept is over");
    sqlx::raw_sql("BEGIN").execute(&store.reads).await.unwrap();
    assert_ne!(pid().await, before, "a transaction that nobody knows of");
}

#[tokio::test]
async fn row_level_security_limits_rows_to_the_named_tenant() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    for tenant in ["acme", "globex"] {
        store.put_key(&ApiKey { tenant: tenant.into(), ..key(&format!("of-{tenant}")) }, None).await.unwrap();
    }
    assert_eq!(store.keys().await.unwrap().len(), 2);
    let seen = |setting: &str| {
        let statements =
            format!("SET ROLE textnlp; {setting}; SELECT string_agg(public_id, ' ' ORDER BY public_id) FROM api_keys");
        cluster.sql(&name, &statements)
    };
    assert_eq!(seen("SELECT"), "", "who says nothing sees nothing");
    assert_eq!(seen("SET textnlp.tenant = 'acme'"), "of-acme");
    assert_eq!(seen("SET textnlp.tenant = '*'"), "of-acme of-globex");
    for tenant in ["acme", "globex"] {
        put_ticket(&store, tenant).await;
    }
    let mut narrow = store.tenant("acme").count("").await.unwrap();
    let ended = sqlx::query("DELETE FROM stream_tickets").execute(&mut *narrow).await.unwrap();
    assert_eq!(ended.rows_affected(), 1, "a forgotten WHERE reaches one tenant");
    let foreign = "INSERT INTO stream_tickets (sha256, user_id, tenant_id, expires_at) VALUES ('x', 'u', 'globex', 1)";
    let foreign = sqlx::query(foreign).execute(&mut *narrow).await;
    assert!(foreign.unwrap_err().to_string().contains("row-level security"));
    drop(narrow);
}

async fn put_ticket(store: &Store, tenant: &str) {
    let ticket = StreamTicket { user: "u".into(), tenant: tenant.into(), token: None, body: None };
    store.tenant(tenant).put_ticket(tenant, &ticket, i64::MAX, 9, 0).await.unwrap().unwrap();
}

/// What a statement of the tenant `acme` counts.
async fn counted(store: &Store, statement: &'static str) -> Result<i64, sqlx::Error> {
    let mut narrow = store.tenant("acme").read().await.unwrap();
    sqlx::query(statement).fetch_one(&mut *narrow).await.map(|row| sqlx::Row::get(&row, 0))
}

#[tokio::test]
async fn statement_of_a_tenant_cannot_widen_its_view_by_sql() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    for tenant in ["acme", "globex"] {
        put_ticket(&store, tenant).await;
        store.put_key(&ApiKey { tenant: tenant.into(), ..key(&format!("of-{tenant}")) }, None).await.unwrap();
    }
    assert_eq!(counted(&store, "SELECT count(*) FROM stream_tickets").await.unwrap(), 1);
    for widening in [
        "WITH x AS MATERIALIZED (SELECT set_config('textnlp.tenant', '*', true)) SELECT count(*) FROM x, stream_tickets",
        "WITH x AS MATERIALIZED (SELECT set_config('role', 'none', true), set_config('textnlp.tenant', '*', true)) \
         SELECT count(*) FROM x, stream_tickets",
    ] {
        assert!(counted(&store, widening).await.unwrap() < 2, "{widening}");
    }
    for foreign in ["SELECT count(*) FROM api_keys", "SELECT count(*) FROM audit_log"] {
        let refused = counted(&store, foreign).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
    }
    // As our own PostgreSQL does: without it, SQL within the statement could become the login role again.
    let function = "FUNCTION pg_catalog.set_config(text, text, boolean)";
    let statements = format!("REVOKE EXECUTE ON {function} FROM PUBLIC; GRANT EXECUTE ON {function} TO textnlp");
    cluster.sql(&name, &statements);
    for (escape, why) in [
        ("SELECT count(set_config('role', 'none', true))", "permission denied for function set_config"),
        ("SELECT count(set_config('textnlp.tenant', 'globex', true))", "permission denied for function set_config"),
        ("SELECT count(query_to_xml('set role none', true, true, ''))", "SET is not allowed"),
    ] {
        let refused = counted(&store, escape).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{escape}: {refused}");
    }
    // The rights come back with the next transaction, of whatever kind.
    assert_eq!(store.keys().await.unwrap().len(), 2);
    assert_eq!(counted(&store, "SELECT count(*) FROM stream_tickets").await.unwrap(), 1);
}

#[tokio::test]
async fn roles_of_tenants_follow_the_owner_of_the_database() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    put_ticket(&store, "acme").await;
    let policies = || cluster.sql(&name, "SELECT count(*) FROM pg_policies WHERE policyname = 'all_tenants'");
    assert_eq!((policies().as_str(), store.narrows.load(std::sync::atomic::Ordering::Relaxed)), ("4", true));
    // An operator gives the database to another role: the service goes on, and says what it has lost.
    cluster.sql("postgres", &format!("ALTER DATABASE {name} OWNER TO owner"));
    cluster.sql(&name, "GRANT CREATE ON SCHEMA public TO textnlp");
    let at = DatabaseAt::Server(PostgresAt::new(&cluster.url(&name)).unwrap());
    let database = Database { at, pool_size: 1, max_overflow: 0 };
    let found = check_database(&database).await;
    assert!(found.problems.is_empty() && found.notes[0].cause.contains("which sees all tenants"), "{found:?}");
    let other = Store::open(&database).await.unwrap();
    other.prepare().await.unwrap();
    assert_eq!((policies().as_str(), other.narrows.load(std::sync::atomic::Ordering::Relaxed)), ("0", false));
    other.put_key(&key("a"), None).await.unwrap();
    assert_eq!(other.keys().await.unwrap().len(), 1);
    assert_eq!(counted(&other, "SELECT count(*) FROM stream_tickets").await.unwrap(), 1);
    // And back.
    cluster.sql("postgres", &format!("ALTER DATABASE {name} OWNER TO textnlp"));
    other.prepare().await.unwrap();
    assert_eq!((policies().as_str(), other.narrows.load(std::sync::atomic::Ordering::Relaxed)), ("4", true));
    assert_eq!(other.keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn login_role_that_may_create_roles_makes_its_own_for_tenants() {
    let Some(cluster) = postgres::shared() else { return };
    cluster.sql("postgres", "CREATE ROLE maker LOGIN CREATEROLE");
    let name = cluster.database();
    cluster.sql("postgres", &format!("ALTER DATABASE {name} OWNER TO maker"));
    let store = open_at(&cluster.url(&name).replace("textnlp@", "maker@")).await.unwrap();
    store.prepare().await.unwrap();
    put_ticket(&store, "acme").await;
    assert!(counted(&store, "SELECT count(*) FROM api_keys").await.is_err());
    assert_eq!(cluster.sql("postgres", "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'maker_tenant'"), "f");
}

#[tokio::test]
async fn session_sees_no_tenant_outside_a_transaction_that_names_one() {
    let Some((cluster, name, _)) = of_postgres().await else { return };
    // Also where the role itself is set to see all of them.
    cluster.sql(&name, &format!("ALTER ROLE textnlp IN DATABASE {name} SET textnlp.tenant = '*'"));
    let store = with_one_connection(&cluster.url(&name)).await;
    for tenant in ["acme", "globex"] {
        store.put_key(&ApiKey { tenant: tenant.into(), ..key(&format!("of-{tenant}")) }, None).await.unwrap();
    }
    let seen = async || {
        let row = sqlx::query("SELECT count(*) FROM api_keys").fetch_one(&store.reads).await.unwrap();
        sqlx::Row::get::<i64, _>(&row, 0)
    };
    assert_eq!(seen().await, 0, "no transaction has named a tenant");
    for _ in 0..2 {
        assert_eq!(store.keys().await.unwrap().len(), 2);
        assert_eq!(seen().await, 0, "the job that saw all of them has ended");
        drop(store.tenant("acme").read().await.unwrap());
        assert_eq!(seen().await, 0);
    }
    let mut plain = store.write("").await.unwrap();
    let ended = sqlx::query("UPDATE api_keys SET revoked_at = 1").execute(&mut *plain).await.unwrap();
    assert_eq!(ended.rows_affected(), 0, "a change that named no tenant changes no tenant's rows");
    drop(plain);
}

#[tokio::test]
async fn every_tenant_table_forces_row_level_security() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    let with_tenants = "SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM information_schema.columns WHERE \
                        table_schema = 'public' AND column_name = 'tenant_id'";
    let forced =
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relrowsecurity AND relforcerowsecurity";
    assert_eq!(cluster.sql(&name, with_tenants), cluster.sql(&name, forced));
    assert_eq!(store.role_above_row_security().await.unwrap(), None);
    let above = open_at(&cluster.url(&name).replace("textnlp@", "owner@")).await.unwrap();
    assert_eq!(above.role_above_row_security().await.unwrap().as_deref(), Some("owner"));
}

#[tokio::test]
async fn crashed_database_server_is_a_transient_error() {
    if !postgres::is_installed() {
        return;
    }
    let cluster = postgres::Cluster::start("");
    let store = open_at(&cluster.url(&cluster.database())).await.unwrap();
    store.prepare().await.unwrap();
    // Several connections that do not know yet that their server is gone.
    futures::future::join_all((0..4).map(|n| store.revoke_key(if n == 0 { "a" } else { "b" }, None))).await;
    let begun = store.write("c").await.unwrap();
    cluster.crash_and_start();
    let kept = store.commit(begun).await;
    assert!(
        matches!(&kept, Err(error @ StoreError::Unsure(_)) if !error.passes() && error.may_be_repeated()),
        "{kept:?}"
    );
    let put = async || store.put_key(&key("a"), None).await;
    let first = put().await;
    assert!(first.as_ref().err().is_none_or(StoreError::passes), "{first:?}");
    let again = textnlp_net::retry::retry(super::RETRIES, StoreError::passes, put).await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn connections_to_a_server_that_became_read_only_are_dropped() {
    let Some((cluster, name, _)) = of_postgres().await else { return };
    let store = with_one_connection(&cluster.url(&name)).await;
    let pid = async || pid(&store).await;
    let before = pid().await;
    cluster.sql("postgres", &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    // This one was made before and goes on; a new session is a reader.
    assert_eq!(store.put_key(&key("a"), None).await.unwrap(), KeyPut::Created);
    store.trust.is_lost();
    let refused = store.put_key(&key("b"), None).await.unwrap_err();
    assert!(matches!(refused, StoreError::Away(_)) && refused.passes(), "{refused:?}");
    cluster.sql("postgres", &format!("ALTER DATABASE {name} RESET default_transaction_read_only"));
    assert_eq!(
        store.put_key(&key("b"), None).await.unwrap(),
        KeyPut::Created,
        "the reader's connection is not used again"
    );
    assert_ne!(pid().await, before);
}

#[tokio::test]
async fn database_check_reports_all_problems_at_once() {
    let Some((cluster, name, store)) = of_postgres().await else { return };
    let ask_as = async |user: &str, database: &str| {
        let url = cluster.url(database).replace("textnlp@", &format!("{user}@"));
        let at = DatabaseAt::Server(PostgresAt::new(&url).unwrap());
        check_database(&Database { at, pool_size: 1, max_overflow: 0 }).await
    };
    let found = ask_as("textnlp", &name).await;
    assert_eq!((found.schema, found.problems, found.notes), (newest_schema(), vec![], vec![]));
    assert!(found.made.is_some() && found.connections == Some(97), "{:?}", found.connections);
    let found = ask_as("owner", &name).await;
    assert!(found.problems.is_empty() && found.notes[0].cause.contains("superuser"), "{found:?}");
    cluster.sql(&name, "CREATE ROLE guest LOGIN");
    let found = ask_as("guest", &name).await;
    let causes: Vec<&str> = found.problems.iter().map(|problem| problem.cause.as_str()).collect();
    assert!(causes[0].contains("guest may not create tables in schema public"), "{causes:?}");
    assert!(causes.len() == 5 && causes[1].contains("belongs to textnlp"), "{causes:?}");
    cluster.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 OWNER textnlp");
    let found = ask_as("textnlp", "latin").await;
    assert!(found.schema == 0 && found.problems[0].cause.contains("LATIN1"), "{found:?}");
    let found = ask_as("nobody", &name).await;
    assert!(found.problems[0].fix.starts_with("create the role") && !found.passes, "{found:?}");
    let at = DatabaseAt::Server(PostgresAt::new("postgresql://textnlp@127.0.0.1:9/textnlp").unwrap());
    let found = check_database(&Database { at, pool_size: 1, max_overflow: 0 }).await;
    assert!(found.problems.len() == 1 && found.passes, "it may be about to start: {found:?}");
    drop(store);
}

#[tokio::test]
async fn remote_database_is_verified_against_the_configured_ca() {
    if !postgres::is_installed() {
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cluster = postgres::Cluster::start(&format!("listen_addresses = '127.0.0.1'\nport = {port}"));
    let name = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let authority = |name: &str| {
        let mut of = rcgen::CertificateParams::new(Vec::new()).unwrap();
        of.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, of.self_signed(&key).unwrap().pem()).unwrap();
        (rcgen::Issuer::new(of, key), file.to_str().unwrap().to_owned())
    };
    let ((ours, ours_file), (_, others_file)) = (authority("ours.pem"), authority("others.pem"));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ours).unwrap();
    cluster.begin_tls(&certificate.pem(), &key.serialize_pem());
    let told = async |host: &str, ca: &str| {
        let url = format!("postgresql://textnlp@{host}:{port}/{name}?sslmode=verify-full&sslrootcert={ca}");
        match open_at(&url).await {
            Ok(store) => store.prepare().await.map(|()| "trusted".to_owned()).unwrap(),
            Err(error) => textnlp_net::error_chain(&error),
        }
    };
    assert_eq!(told("localhost", &ours_file).await, "trusted");
    assert_eq!(
        cluster.sql("postgres", "SELECT count(*) > 0 FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()"),
        "t"
    );
    let untrusted = told("localhost", &others_file).await;
    assert!(untrusted.contains("invalid peer certificate"), "{untrusted}");
    let misnamed = told("127.0.0.1", &ours_file).await;
    assert!(misnamed.contains("not valid for name"), "{misnamed}");
}

#[tokio::test]
async fn database_connection_errors_hide_the_password() {
    let Some(cluster) = postgres::shared() else { return };
    let socket = cluster.folder().to_str().unwrap().replace('/', "%2F");
    let told = async |url: String| textnlp_net::error_chain(&open_at(&url).await.err().unwrap());
    let nobody = told(format!("postgresql://nobody:hunter2@{socket}/postgres")).await;
    assert!(nobody.contains("role \"nobody\" does not exist") && !nobody.contains("hunter2"), "{nobody}");
    let nothing = told(format!("postgresql://textnlp:hunter2@{socket}/nothing")).await;
    assert!(nothing.contains("database \"nothing\" does not exist"), "{nothing}");
    let away = told("postgresql://textnlp:hunter2@%2Fnowhere/x".to_owned()).await;
    assert!(away.starts_with("the database is not reachable") && !away.contains("hunter2"), "{away}");
}
