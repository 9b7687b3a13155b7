-- Tenants, keys, allowances, budgets and usage. Times are milliseconds since 1970 in UTC.

CREATE TABLE tenants (
    id          TEXT    NOT NULL PRIMARY KEY,
    created_at  BIGINT  NOT NULL
);

INSERT INTO tenants (id, created_at) VALUES ('default', 0);

-- A key itself is nowhere: `sha256` is the digest of its whole text.
CREATE TABLE api_keys (
    public_id         TEXT    NOT NULL PRIMARY KEY,
    sha256            TEXT    NOT NULL,
    tenant_id         TEXT    NOT NULL REFERENCES tenants (id),
    name              TEXT    NOT NULL,
    scopes            TEXT    NOT NULL,
    rate_limit        TEXT,
    token_rate_limit  TEXT,
    token_limit       BIGINT,
    created_at        BIGINT  NOT NULL,
    expires_at        BIGINT,
    revoked_at        BIGINT
);

CREATE INDEX idx_api_keys_tenant ON api_keys (tenant_id);

-- Who says nothing sees nobody's rows; a connection of the service says `*`, and narrows down to a tenant for that tenant's work.
-- Forced, because the service owns its tables.
ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE api_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON api_keys USING (current_setting('textnlp.tenant', true) IN ('*', tenant_id));

-- How far a key has used up its rate: the theoretical arrival time of the next unit.
CREATE TABLE allowances (
    subject     TEXT              NOT NULL,
    kind        TEXT              NOT NULL,
    arrival_ms  DOUBLE PRECISION  NOT NULL,
    PRIMARY KEY (subject, kind)
);

-- What a token of /auth/token may spend. Reserved before the work, settled after it.
CREATE TABLE token_budgets (
    jti          TEXT    NOT NULL PRIMARY KEY,
    token_limit  BIGINT  NOT NULL,
    reserved     BIGINT  NOT NULL DEFAULT 0,
    used         BIGINT  NOT NULL DEFAULT 0,
    expires_at   BIGINT  NOT NULL
);

CREATE INDEX idx_token_budgets_expiry ON token_budgets (expires_at);

-- Rows that change with every request leave room for themselves in their page, and are swept early.
ALTER TABLE allowances SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
ALTER TABLE token_budgets SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);
