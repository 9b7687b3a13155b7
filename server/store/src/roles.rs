//! The two roles of a PostgreSQL database.
//!
//! The login role owns the database. Its jobs may set `textnlp.tenant` to `*`, by which the policy `all_tenants` shows
//! them every row. Statements of a tenant run as `LOGIN_tenant`, to which that policy does not apply and which has no
//! rights on other tables. The role is created by the operator, by our own PostgreSQL, or here where the login role may
//! create roles. Policies refer to `pg_database_owner` only, a role of every server, so that dumps can be restored
//! anywhere.
//!
//! A statement with SQL of an attacker could still call `set_config` for another role, and then `query_to_xml`. Our own
//! PostgreSQL therefore lets only the login role call `set_config`; of another one it needs its administrator.

use std::sync::atomic::Ordering;

use sqlx::Row;

use super::dialect::Dialect;
use super::{Store, StoreError};

/// What is there of the two roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TenantRole {
    /// The login role owns the database, so the policy for all tenants can be limited to it.
    pub(super) owns: bool,
    /// The login role can become the tenants' role.
    pub(super) is_member: bool,
    /// The login role may create it.
    pub(super) may_create: bool,
    /// The policies distinguish the two.
    separated: bool,
}

const STATUS: &str = "\
    SELECT session_user = current_user AND pg_has_role(current_user, 'pg_database_owner', 'USAGE'), \
    coalesce((SELECT pg_has_role(session_user, oid, 'MEMBER') AND NOT rolsuper AND NOT rolbypassrls FROM pg_roles \
        WHERE rolname = session_user || '_tenant'), false), \
    coalesce((SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = session_user), false), \
    (SELECT count(*) = 10 FROM pg_policies WHERE schemaname = current_schema() \
        AND policyname IN ('all_tenants', 'all_tenants_insights', 'all_tenants_batches', 'all_tenants_webhooks'))";

/// Only where the tables are.
const GRANTED: &str = "\
    SELECT coalesce((SELECT has_schema_privilege(oid, current_schema(), 'USAGE') \
        AND has_table_privilege(oid, 'api_usage', 'SELECT') AND has_table_privilege(oid, 'stream_tickets', 'SELECT') \
        AND has_table_privilege(oid, 'stream_tickets', 'INSERT') \
        AND has_table_privilege(oid, 'stream_tickets', 'DELETE') AND has_table_privilege(oid, 'insights', 'SELECT') \
        AND has_table_privilege(oid, 'batch_files', 'SELECT') AND has_table_privilege(oid, 'batch_lines', 'SELECT') \
        AND has_table_privilege(oid, 'batches', 'SELECT') \
        FROM pg_roles WHERE rolname = session_user || '_tenant'), false)";

/// Another database of the server may create the role at the same time.
const CREATE: &str = "\
    DO $$ DECLARE tenant text := session_user || '_tenant'; BEGIN \
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = tenant) THEN \
            EXECUTE format('CREATE ROLE %I NOLOGIN', tenant); \
        END IF; \
        EXECUTE format('GRANT %I TO %I', tenant, session_user); \
    EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation OR internal_error THEN NULL; \
    END $$";

/// A server works with its own schema and the next one, and counts the policies of the names that it knows: one of schema 8 those of
/// `all_tenants`, one of schema 9 those of `insights` too. The tables of a later schema therefore have policies of another name, so that a
/// rollback by one schema is possible.
const SEPARATE: &str = "\
    DO $$ DECLARE name text; wide text; BEGIN \
        FOREACH name IN ARRAY ARRAY['api_keys', 'api_usage', 'stream_tickets', 'audit_log', 'insights', \
            'batch_files', 'batch_lines', 'batches', 'batch_requests', 'webhook_deliveries'] LOOP \
            wide := CASE WHEN name = 'insights' THEN 'all_tenants_insights' WHEN name LIKE 'batch%' THEN 'all_tenants_batches' \
                WHEN name LIKE 'webhook%' THEN 'all_tenants_webhooks' ELSE 'all_tenants' END; \
            EXECUTE format('ALTER POLICY by_tenant ON %I USING (tenant_id = current_setting(''textnlp.tenant'', true))', name); \
            EXECUTE format('DROP POLICY IF EXISTS %I ON %I', wide, name); \
            EXECUTE format('CREATE POLICY %I ON %I TO pg_database_owner \
                USING (current_setting(''textnlp.tenant'', true) = ''*'')', wide, name); \
        END LOOP; \
    END $$";

/// As the migrations made them: for a login role that does not own the database.
const UNITE: &str = "\
    DO $$ DECLARE name text; wide text; BEGIN \
        FOREACH name IN ARRAY ARRAY['api_keys', 'api_usage', 'stream_tickets', 'audit_log', 'insights', \
            'batch_files', 'batch_lines', 'batches', 'batch_requests', 'webhook_deliveries'] LOOP \
            wide := CASE WHEN name = 'insights' THEN 'all_tenants_insights' WHEN name LIKE 'batch%' THEN 'all_tenants_batches' \
                WHEN name LIKE 'webhook%' THEN 'all_tenants_webhooks' ELSE 'all_tenants' END; \
            EXECUTE format('ALTER POLICY by_tenant ON %I \
                USING (current_setting(''textnlp.tenant'', true) IN (''*'', tenant_id))', name); \
            EXECUTE format('DROP POLICY IF EXISTS %I ON %I', wide, name); \
        END LOOP; \
    END $$";

const GRANT: &str = "\
    DO $$ DECLARE tenant text := session_user || '_tenant'; BEGIN \
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = tenant) THEN RETURN; END IF; \
        IF NOT has_schema_privilege(tenant, current_schema(), 'USAGE') THEN \
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), tenant); \
        END IF; \
        EXECUTE format('GRANT SELECT ON api_usage, insights, batch_files, batch_lines, batches TO %I', tenant); \
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON stream_tickets TO %I', tenant); \
    END $$";

impl Store {
    /// Separates the two roles where that is possible. Otherwise statements of tenants keep the rights of the login
    /// role, and a warning says so. The database has the newest schema.
    pub(super) async fn separate_tenants(&self) -> Result<(), StoreError> {
        if self.dialect == Dialect::Sqlite {
            return Ok(());
        }
        let (mut there, mut granted) = (self.tenant_role().await?, self.is_granted().await?);
        let is_incomplete = !granted && (there.is_member || there.may_create);
        if is_incomplete || there.separated != there.owns {
            match self.change_roles(there).await {
                Ok(()) => (there, granted) = (self.tenant_role().await?, self.is_granted().await?),
                // The tables are in use: the next start tries again.
                Err(error) => {
                    tracing::warn!(error = %textnlp_net::error_chain(&error), "the roles of the database could not be changed");
                }
            }
        }
        let is_usable = there.owns && there.separated && there.is_member && granted;
        self.narrows.store(is_usable, Ordering::Relaxed);
        if !is_usable {
            tracing::warn!(
                ?there,
                "statements of tenants run with the rights of the database's login role: `textnlp-deploy preflight` shows what is missing"
            );
        }
        Ok(())
    }

    /// What is there of the two roles; also in an empty database.
    pub(super) async fn tenant_role(&self) -> Result<TenantRole, StoreError> {
        let row = self.one(STATUS).await?;
        Ok(TenantRole {
            owns: row.try_get(0)?,
            is_member: row.try_get(1)?,
            may_create: row.try_get(2)?,
            separated: row.try_get(3)?,
        })
    }

    /// Whether the tenants' role has the rights that it needs.
    async fn is_granted(&self) -> Result<bool, StoreError> {
        Ok(self.one(GRANTED).await?.try_get(0)?)
    }

    /// Idempotent: another replica may be first.
    async fn change_roles(&self, there: TenantRole) -> Result<(), StoreError> {
        let mut transaction = self.write("schema").await?;
        if !there.is_member && there.may_create {
            self.ask(sqlx::raw_sql(CREATE).execute(&mut *transaction)).await?;
        }
        if there.separated != there.owns {
            let statement = if there.owns { SEPARATE } else { UNITE };
            self.ask(sqlx::raw_sql(statement).execute(&mut *transaction)).await?;
        }
        self.ask(sqlx::raw_sql(GRANT).execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }
}
